import numpy as np
import pytest

from pipeline.analysis.landcover import TileLabels, join_labels, tile_labels
from pipeline.tiles.grid import TileGrid
from storage.errors import ConfigError, SceneError
from storage.raster.pixel_grid import Window
from storage.raster.writer import write_geotiff
from tests.support.tiles import tile_at

CLASSES = {1: "forest", 2: "water", 7: "mine"}
GRID = TileGrid(crs="EPSG:32633", resolution=10.0, tile_px=16)
LEFT, TOP = 700_000.0, 5_000_000.0  # 160 m tiles: columns from 4375, rows from -31250


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    """A class raster of 40 by 56 pixels with a nodata strip, on the grid's own pixels."""
    values = np.random.default_rng(0).choice([1, 1, 1, 2, 7, 9], (40, 56)).astype(np.uint8)
    values[:, 48:] = 0
    uri = str(tmp_path_factory.mktemp("landcover") / "classes.tif")
    write_geotiff(uri, values[None], GRID.crs, (10.0, 0.0, LEFT, 0.0, -10.0, TOP), nodata=0)
    return uri, values


def tiles_over(width, height):
    extent = Window(column=70_000, row=-500_000, width=width, height=height)
    return GRID.tiles_over(extent)


def test_fractions_equal_a_loop_over_the_pixels(raster):
    uri, values = raster
    tiles = tiles_over(56, 40)
    shuffled = tiles[np.random.default_rng(1).permutation(len(tiles))]
    found = tile_labels(uri, GRID, shuffled, CLASSES, min_fraction=0.2)
    assert found.classes == ("forest", "water", "mine")
    assert found.tile_keys.tolist() == [GRID.key(c, r) for c, r in shuffled]
    for (column, row), fractions, mapped in zip(
        shuffled, found.fractions, found.mapped, strict=True
    ):
        x, y = (column - 4375) * 16, (row + 31250) * 16
        part = values[y : y + 16, x : x + 16]
        known = part[part > 0]
        expected = [(known == v).sum() / max(known.size, 1) for v in CLASSES]
        np.testing.assert_allclose(fractions, expected, atol=1e-6)
        assert mapped == pytest.approx(known.size / 256)
    np.testing.assert_array_equal(found.labels, (found.fractions >= 0.2).astype(np.uint8))
    assert 0 < found.labels.mean() < 1


def test_ground_without_land_cover_has_no_label(raster):
    found = tile_labels(raster[0], GRID, np.array([[4300, -31300]], np.int32), CLASSES)
    assert found.mapped.tolist() == [0]
    assert found.labels.sum() == 0


def test_a_raster_in_another_crs_gives_the_same_ground(raster, tmp_path):
    """Halves of a raster in degrees land in the right tiles of a UTM grid."""
    values = np.full((200, 200), 1, np.uint8)
    values[:, 100:] = 2
    uri = str(tmp_path / "degrees.tif")
    west, north = 15.0, 45.0
    write_geotiff(uri, values[None], "EPSG:4326", (0.0005, 0, west, 0, -0.0005, north), nodata=255)
    left = tile_at(GRID, west + 0.02, north - 0.05)
    right = tile_at(GRID, west + 0.08, north - 0.05)
    middle = tile_at(GRID, west + 0.05, north - 0.05)
    tiles = np.array([left, right, middle], np.int32)
    found = tile_labels(uri, GRID, tiles, CLASSES)
    np.testing.assert_array_equal(found.fractions[:2, :2], [[1, 0], [0, 1]])
    assert 0 < found.fractions[2, 0] < 1
    np.testing.assert_allclose(found.mapped, 1)


def test_overlapping_tiles_are_counted_each_for_itself(raster):
    uri, values = raster
    grid = TileGrid(crs=GRID.crs, resolution=10.0, tile_px=16, stride_px=8)
    tiles = np.array([[8750, -62500], [8751, -62500]], np.int32)
    found = tile_labels(uri, grid, tiles, CLASSES)
    for i, start in enumerate((0, 8)):
        assert found.fractions[i, 1] == pytest.approx((values[:16, start : start + 16] == 2).mean())


def test_ray_counts_the_same(raster, ray_session):
    tiles = tiles_over(56, 40)
    here = tile_labels(raster[0], GRID, tiles, CLASSES)
    there = tile_labels(raster[0], GRID, tiles, CLASSES, scheduler="ray")
    np.testing.assert_array_equal(here.fractions, there.fractions)


def test_labels_survive_parquet_and_join(raster, tmp_path):
    found = tile_labels(raster[0], GRID, tiles_over(56, 40), CLASSES, min_fraction=0.1)
    uri = str(tmp_path / "labels.parquet")
    found.to_parquet(uri)
    read = TileLabels.from_parquet(uri)
    both = join_labels([found, read])
    assert len(both) == 2 * len(found)
    assert (read.classes, read.min_fraction) == (found.classes, 0.1)
    for name in ("tile_keys", "fractions", "mapped", "labels"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
    with pytest.raises(ConfigError, match="same settings"):
        join_labels([found, tile_labels(raster[0], GRID, tiles_over(16, 16), CLASSES)])


def test_bad_input_is_named(raster, tmp_path):
    tiles = tiles_over(16, 16)
    with pytest.raises(ConfigError, match="at least one class"):
        tile_labels(raster[0], GRID, tiles, {})
    with pytest.raises(ConfigError, match="two values have one class"):
        tile_labels(raster[0], GRID, tiles, {1: "water", 2: "Water "})
    with pytest.raises(ConfigError, match="min_fraction"):
        tile_labels(raster[0], GRID, tiles, CLASSES, min_fraction=0)
    with pytest.raises(SceneError, match=r"gone\.tif"):
        tile_labels(str(tmp_path / "gone.tif"), GRID, tiles, CLASSES)


@pytest.mark.parametrize(
    ("dtype", "gap", "nodata"),
    [
        ("float32", float("nan"), None),
        ("float32", float("nan"), float("nan")),
        ("int8", 0, 0),
        ("uint8", 255, 255),
        ("int64", -9999, -9999),
    ],
)
def test_a_raster_of_any_type_counts_mapped_ground_only(tmp_path, dtype, gap, nodata):
    values = np.array([[1, gap], [2, 7]], dtype).repeat(16, 0).repeat(16, 1)
    uri = str(tmp_path / "classes.tif")
    write_geotiff(uri, values[None], GRID.crs, (10.0, 0, LEFT, 0, -10.0, TOP), nodata=nodata)
    found = tile_labels(uri, GRID, tiles_over(32, 32), CLASSES)
    assert found.mapped.tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(found.fractions, [[1, 0, 0], [0] * 3, [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float32"])
def test_ground_beyond_a_raster_without_nodata_is_not_mapped(tmp_path, dtype):
    uri = str(tmp_path / "classes.tif")
    values = np.ones((1, 16, 24), dtype)  # a tile and a half
    write_geotiff(uri, values, GRID.crs, (10.0, 0, LEFT, 0, -10.0, TOP))
    found = tile_labels(uri, GRID, np.array([[4375, -31250], [4376, -31250]], np.int32), CLASSES)
    assert found.mapped.tolist() == [1, 0.5]
    assert found.fractions[:, 0].tolist() == [1, 1]


def test_codes_that_float32_cannot_tell_apart_are_classes_of_their_own(tmp_path):
    codes = {2**24: "even", 2**24 + 1: "odd"}
    values = np.array([list(codes)], np.uint32).repeat(16, 0).repeat(16, 1)
    uri = str(tmp_path / "classes.tif")
    write_geotiff(uri, values[None], GRID.crs, (10.0, 0, LEFT, 0, -10.0, TOP))
    found = tile_labels(uri, GRID, tiles_over(32, 16), codes)
    np.testing.assert_array_equal(found.fractions, [[1, 0], [0, 1]])
    moved = TileGrid(crs="EPSG:3857", resolution=14.0, tile_px=8)  # warped
    west, south, east, north = GRID.bbox_wgs84(np.array([[4376, -31250]], np.int32))[0]
    tile = tile_at(moved, (west + east) / 2, (south + north) / 2)
    assert tile_labels(uri, moved, np.array([tile], np.int32), codes).labels.tolist() == [[0, 1]]
