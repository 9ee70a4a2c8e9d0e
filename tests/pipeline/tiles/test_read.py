"""Tiles against plain arrays: nothing lost, nothing twice, the same keys for the same ground."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds

from pipeline.tiles.grid import TileGrid, grid_crs, grid_for_scene
from pipeline.tiles.read import TileCounts, count_tiles, read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.errors import ConfigError, GridError, SceneError
from storage.raster.layer import RowReader
from storage.raster.pixel_grid import Window
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, MaskSource, Scene
from tests.support.tiles import tile_at

UTM = "EPSG:32648"
EVERYTHING = TileRules(min_valid_fraction=0.0)


def make_scene(href: str, bands: int = 1, **more: Any) -> Scene:
    sources = tuple(BandSource(name=f"b{i}", href=href, index=i) for i in range(1, bands + 1))
    moment = datetime(2020, 2, 23, tzinfo=UTC)
    return Scene(**({"id": "scene", "datetime": moment, "bands": sources} | more))


def write(path: Path, array: np.ndarray, corner: tuple[float, float], size: float = 10) -> str:
    transform = (size, 0, corner[0], 0, -size, corner[1])
    write_geotiff(str(path), array, UTM, transform, nodata=0, cog=False, block_px=32)
    return str(path)


def collect(scene: Scene, grid: TileGrid, rules: TileRules = EVERYTHING, **more: Any) -> Any:
    batches = list(read_tiles(scene, grid, rules, **more))
    names = ("pixels", "tiles", "window", "bbox", "valid_fraction", "cloud_fraction")
    return {name: np.concatenate([getattr(b, name) for b in batches]) for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiling")


# --- the ground is covered --------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    column=st.integers(-40, 40),
    row=st.integers(-40, 40),
    tile_px=st.integers(1, 24),
    overlap=st.floats(0, 0.9),
    edge=st.sampled_from(["pad", "shift", "drop"]),
    seed=st.integers(0, 9),
)
def test_every_valid_pixel_is_in_a_tile(
    folder: Path,
    width: int,
    height: int,
    column: int,
    row: int,
    tile_px: int,
    overlap: float,
    edge: Any,
    seed: int,
) -> None:
    array = np.random.default_rng(seed).integers(0, 4, (1, height, width)).astype(np.uint16)
    scene = make_scene(write(folder / "a.tif", array, (column * 10, -row * 10)))
    stride = max(1, int(tile_px * (1 - overlap)))
    grid = TileGrid(crs=UTM, resolution=10, tile_px=tile_px, stride_px=stride)
    rules = replace(EVERYTHING, edge=edge)
    batches = list(read_tiles(scene, grid, rules, batch_size=7))
    seen = np.full((height, width), -1.0)
    times = np.zeros((height, width), int)
    for batch in batches:
        for pixels, window in zip(batch.pixels, batch.window, strict=True):
            y, x = np.mgrid[: window[2], : window[3]] + window[:2, None, None]
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            assert edge == "pad" or inside.all() or min(width, height) < tile_px
            assert np.isnan(pixels[0][~inside]).all()
            seen[y[inside], x[inside]] = np.nan_to_num(pixels[0][inside])
            times[y[inside], x[inside]] += 1
    if edge == "drop":
        np.testing.assert_array_equal(seen[times > 0], array[0][times > 0])
    else:
        np.testing.assert_array_equal(seen[array[0] > 0], array[0][array[0] > 0])
    if stride == tile_px:
        assert times.max(initial=0) <= (9 if edge == "shift" else 1)
    keys = [key for batch in batches for key in grid.naming(edge).keys(batch.tiles)]
    assert len(keys) == len(set(keys))


@settings(max_examples=25, deadline=None)
@given(
    dx=st.floats(-4.9, 4.9),
    dy=st.floats(-4.9, 4.9),
    crop=st.integers(0, 3),
)
def test_acquisitions_of_one_ground_share_keys(
    folder: Path, dx: float, dy: float, crop: int
) -> None:
    """A second pass that is off by less than half a pixel, or a few pixels smaller."""
    array = np.random.default_rng(3).integers(1, 99, (1, 64, 80)).astype(np.uint16)
    first = make_scene(write(folder / "first.tif", array, (362600, 1987100)))
    later = make_scene(
        write(
            folder / "later.tif",
            array[:, crop:, crop:],
            (362600 + 10 * crop + dx, 1987100 - 10 * crop + dy),
        )
    )
    spec = GridSpec(tile_px=16)
    grids = [grid_for_scene(scene, spec) for scene in (first, later)]
    assert grids[0] == grids[1]
    a, b = (collect(scene, grids[0]) for scene in (first, later))
    np.testing.assert_array_equal(a["tiles"], b["tiles"])
    both = ~np.isnan(b["pixels"])
    np.testing.assert_array_equal(a["pixels"][both], b["pixels"][both])


@settings(max_examples=60, deadline=None)
@given(
    starts=st.tuples(st.integers(-90, 90), st.integers(-90, 90)),
    lengths=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile_px=st.integers(1, 24),
    stride=st.integers(1, 24),
)
def test_shifted_keys_are_those_of_their_ground(
    starts: tuple[int, int], lengths: tuple[int, int], tile_px: int, stride: int
) -> None:
    """Two scenes side by side: a key that both have names the same pixels, and only then."""
    grid = TileGrid(crs=UTM, resolution=10, tile_px=tile_px, stride_px=min(stride, tile_px))
    named, ground = grid.naming("shift"), {}
    for start, length in zip(starts, lengths, strict=True):
        extent = Window(column=start, row=7, width=length, height=30)
        tiles = grid.tiles_over(extent, "shift")
        windows = [named.window(*tile) for tile in tiles.tolist()]
        assert len(set(windows)) == len(windows)
        columns = {w.column for w in windows}
        assert {min(columns), max(columns)} == {start, max(start + length - tile_px, start)}
        for key, window in zip(named.keys(tiles), windows, strict=True):
            assert ground.setdefault(key, window) == window
        whole = {tuple(t) for t in (grid.tiles_over(extent, "drop") * grid.stride_px).tolist()}
        assert whole <= {tuple(t) for t in tiles.tolist()}
    assert len(set(ground.values())) == len(ground)


# --- batches, rules, counts -------------------------------------------------------------------


def test_batches_are_more_than_half_full_and_their_arrays_agree(folder: Path) -> None:
    array = np.random.default_rng(0).integers(1, 99, (3, 90, 110)).astype(np.uint16)
    scene = make_scene(write(folder / "batch.tif", array, (362600, 1987100)), 3)
    grid = TileGrid(crs=UTM, resolution=10, tile_px=16)
    batches = list(read_tiles(scene, grid, EVERYTHING, batch_size=10))
    assert all(5 < len(batch) <= 10 for batch in batches[:-1])
    assert sum(map(len, batches)) == count_tiles(scene, grid, EVERYTHING)
    for batch in batches:
        assert batch.pixels.shape == (len(batch), 3, 16, 16)
        assert {str(x.dtype) for x in (batch.tiles, batch.window)} == {"int32"}
        assert {str(x.dtype) for x in (batch.valid_fraction, batch.cloud_fraction)} == {"float32"}
        expected = (~np.isnan(batch.pixels).all(axis=1)).mean(axis=(1, 2))
        np.testing.assert_allclose(batch.valid_fraction, expected)
        corners = batch.tiles[:, ::-1] * 16 - (-198710, 36260)
        np.testing.assert_array_equal(batch.window[:, :2], corners)
        np.testing.assert_array_equal(batch.bbox, grid.bbox_wgs84(batch.tiles))
    assert {len(batch) for batch in read_tiles(scene, grid, EVERYTHING, batch_size=3)} == {2, 3}
    whole = collect(scene, grid, batch_size=10_000)
    np.testing.assert_array_equal(
        whole["pixels"], np.concatenate([batch.pixels for batch in batches])
    )


def test_rules_decide_and_counts_tell(folder: Path) -> None:
    array = np.ones((1, 64, 64), np.uint16)
    array[:, :, :24] = 0  # the first of four columns of tiles is empty, the second half empty
    cloud = np.zeros((1, 64, 64), np.uint8)
    cloud[:, :32, 48:] = 3
    cloud[:, :, :24] = 3  # over nodata: must not count
    href = write(folder / "rules.tif", array, (0, 0))
    mask = write(folder / "rules_mask.tif", cloud, (0, 0))
    scene = make_scene(href, mask=MaskSource(href=mask, cloud_values=(3,)))
    grid = TileGrid(crs=UTM, resolution=10, tile_px=16)

    counts = TileCounts()
    kept = collect(scene, grid, EVERYTHING, counts=counts)
    assert counts == TileCounts(kept=12, skipped_nodata=4, skipped_cloud=0)
    assert sorted(set(kept["valid_fraction"].tolist())) == [0.5, 1.0]
    assert kept["cloud_fraction"][kept["tiles"][:, 0] == 3].tolist() == [1, 1, 0, 0]
    assert kept["cloud_fraction"][kept["tiles"][:, 0] != 3].max() == 0

    counts = TileCounts()
    rules = TileRules(min_valid_fraction=0.6, max_cloud_fraction=0.5)
    kept = collect(scene, grid, rules, counts=counts)
    assert counts == TileCounts(kept=6, skipped_nodata=8, skipped_cloud=2)
    assert kept["tiles"].tolist() == [[2, 0], [2, 1], [2, 2], [3, 2], [2, 3], [3, 3]]


def test_long_strips_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(1, 99, (1, 40, 200)).astype(np.uint16)
    scene = make_scene(write(folder / "long.tif", array, (37, -5)))
    grid = TileGrid(crs=UTM, resolution=10, tile_px=16, stride_px=8)
    whole = collect(scene, grid)
    monkeypatch.setattr("pipeline.tiles.read._STRIP_BYTES", 4 * 16 * 8 * 3)
    pieces = collect(scene, grid)
    order = np.lexsort(pieces["tiles"].T)
    assert (np.diff(order) < 0).any()
    for name in whole:
        np.testing.assert_array_equal(whole[name], pieces[name][order])


@pytest.mark.parametrize(("tile_px", "stride_px"), [(24, 24), (24, 10), (80, 80), (48, 30)])
def test_no_block_of_a_file_is_asked_for_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tile_px: int, stride_px: int
) -> None:
    """Blocks are 32 pixels a side and the tiles never fit them."""
    array = np.random.default_rng(0).integers(1, 99, (2, 150, 170)).astype(np.uint16)
    scene = make_scene(write(folder / "blocks.tif", array, (363590, 1987130)), 2)
    asked = np.zeros((5, 6), int)
    decode = RowReader._decode

    def counted(self: RowReader, rows: slice) -> Any:
        first, last = self._columns.start // 32, (self._columns.stop - 1) // 32
        asked[rows.start // 32 : (rows.stop - 1) // 32 + 1, first : last + 1] += 1
        return decode(self, rows)

    monkeypatch.setattr(RowReader, "_decode", counted)
    grid = TileGrid(crs=UTM, resolution=10, tile_px=tile_px, stride_px=stride_px)
    pixels = collect(scene, grid)["pixels"]
    assert asked.min() == asked.max() == 1
    assert np.isin(array, pixels).all()


def test_scene_without_a_pixel_gives_no_batch(folder: Path) -> None:
    scene = make_scene(write(folder / "empty.tif", np.zeros((1, 32, 32), np.uint16), (0, 0)))
    grid = TileGrid(crs=UTM, resolution=10, tile_px=16)
    counts = TileCounts()
    assert list(read_tiles(scene, grid, EVERYTHING, counts=counts)) == []
    assert counts == TileCounts(kept=0, skipped_nodata=4, skipped_cloud=0)


# --- grids ------------------------------------------------------------------------------------


def test_native_and_stated_grids(folder: Path) -> None:
    array = np.ones((1, 64, 64), np.uint16)
    scene = make_scene(write(folder / "native.tif", array, (362612.2, 1987088.2), 19.9999999999))
    native = grid_for_scene(scene, GridSpec(tile_px=32))
    assert native == TileGrid(crs=UTM, resolution=20, tile_px=32)
    assert native.id == "epsg32648-20-32"
    stated = grid_for_scene(
        scene, GridSpec(crs="epsg:3857", resolution=25, tile_px=32, stride_px=16, anchor=(5, 0.5))
    )
    assert stated.id == "epsg3857-25-32-s16-a5_0.5"
    same_detail = grid_for_scene(scene, GridSpec(crs="EPSG:3857", tile_px=32))
    assert same_detail.resolution == pytest.approx(20 / math.cos(math.radians(17.96)), rel=0.01)
    with pytest.raises(ConfigError, match="EPSG:32648"):
        grid_for_scene(scene, GridSpec(crs="nowhere", tile_px=32))
    with pytest.raises(ConfigError, match=r"states no tile size.*set grid\.tile_px"):
        grid_for_scene(scene, GridSpec())


@settings(max_examples=50, deadline=None)
@given(
    resolution=st.floats(1e-5, 1e5),
    tile_px=st.integers(1, 1024),
    data=st.data(),
    anchor=st.tuples(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7)),
)
def test_grid_survives_its_dict_and_ids_differ_when_grids_do(
    resolution: float, tile_px: int, data: st.DataObject, anchor: tuple[float, float]
) -> None:
    stride = data.draw(st.integers(1, tile_px))
    grid = TileGrid(
        crs=UTM, resolution=resolution, tile_px=tile_px, stride_px=stride, anchor=anchor
    )
    assert TileGrid.from_dict(grid.to_dict()) == grid
    assert set(grid.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")
    others = [
        TileGrid(
            crs="EPSG:32649",
            resolution=resolution,
            tile_px=tile_px,
            stride_px=stride,
            anchor=anchor,
        ),
        TileGrid(
            crs=UTM, resolution=resolution * 1.001, tile_px=tile_px, stride_px=stride, anchor=anchor
        ),
        TileGrid(
            crs=UTM, resolution=resolution, tile_px=tile_px + 1, stride_px=stride, anchor=anchor
        ),
    ]
    assert len({grid.id, *(other.id for other in others)}) == 4


def test_footprints_hold_what_rasterio_says() -> None:
    grid = TileGrid(crs=UTM, resolution=10, tile_px=512)
    tiles = grid.tiles_over(Window(column=36261, row=-198709, width=3000, height=3000))
    for (column, row), box in zip(tiles.tolist(), grid.bbox_wgs84(tiles), strict=True):
        left, top = column * 5120, -row * 5120
        bounds = (left, top - 5120, left + 5120, top)
        expected = transform_bounds(UTM, "EPSG:4326", *bounds, densify_pts=3)
        np.testing.assert_allclose(box, expected, atol=1e-7)


def test_footprints_across_the_antimeridian_and_over_a_pole() -> None:
    fiji = TileGrid(crs="EPSG:32701", resolution=100, tile_px=256)
    box = fiji.bbox_wgs84(np.int32([tile_at(fiji, 180.0, -17.0)]))[0]
    assert box[0] > 179
    assert box[2] < -179
    degrees = TileGrid(crs="EPSG:4326", resolution=0.1, tile_px=10)
    boxes = degrees.bbox_wgs84(np.int32([[179, 0], [180, 0]]))
    np.testing.assert_allclose(boxes[:, [0, 2]], [[179, 180], [-180, -179]])
    polar = TileGrid(crs="EPSG:3031", resolution=100, tile_px=256, anchor=(-5000, 5000))
    box = polar.bbox_wgs84(np.int32([tile_at(polar, 0.0, -89.99)]))[0]
    assert box[[0, 1, 2]].tolist() == [-180, -90, 180]
    assert -90 < box[3] < -89


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(GridError, match="gaps"):
        TileGrid(crs=UTM, resolution=10, tile_px=16, stride_px=17)
    with pytest.raises(GridError, match="outside"):
        TileGrid(crs=UTM, resolution=10, tile_px=16).bbox_wgs84(np.int32([[10**6, 0]]))
    with pytest.raises(ConfigError, match="min_valid_fraction"):
        TileRules(min_valid_fraction=50)
    with pytest.raises(ConfigError, match="edge"):
        TileRules(edge="cut")  # type: ignore[arg-type]


# --- real scenes ------------------------------------------------------------------------------


def real_scene(real_data: Path, name: str, indexes: tuple[int, ...], **more: Any) -> Scene:
    href = str(real_data / "scenes" / f"{name}.tif")
    bands = tuple(BandSource(name=f"b{i}", href=href, index=i) for i in indexes)
    return Scene(id=name, datetime=datetime(2020, 1, 1, tzinfo=UTC), bands=bands, **more)


def test_real_naip_years_share_keys_and_read_bit_for_bit(real_data: Path) -> None:
    years = ("20090818", "20100629", "20150926")
    scenes = [real_scene(real_data, f"naip_m_4709963_se_14_1_{y}", (1, 2, 3, 4)) for y in years]
    grids = {grid_for_scene(scene, GridSpec(tile_px=64)) for scene in scenes}
    assert [grid.id for grid in grids] == ["epsg26914-5-64"]
    grid = grids.pop()
    tiles = [collect(scene, grid, TileRules()) for scene in scenes]
    assert tiles[0]["tiles"].tolist() == tiles[1]["tiles"].tolist() == tiles[2]["tiles"].tolist()
    for scene, found in zip(scenes, tiles, strict=True):
        with rasterio.open(scene.bands[0].href.uri) as dataset:
            truth = dataset.read(masked=True).astype(np.float32).filled(np.nan)
        for pixels, (row, column, height, width) in zip(
            found["pixels"], found["window"], strict=True
        ):
            if row >= 0 and column >= 0:
                part = truth[:, row : row + height, column : column + width]
                np.testing.assert_array_equal(pixels[:, : part.shape[1], : part.shape[2]], part)


def test_real_landsat_years_share_keys_in_degrees(real_data: Path) -> None:
    scenes = [real_scene(real_data, f"landsat_ucayali_{y}", (1, 2, 3)) for y in (1985, 2005)]
    grids = [grid_for_scene(scene, GridSpec(tile_px=64)) for scene in scenes]
    assert grids[0] == grids[1]
    a, b = (collect(scene, grids[0], TileRules()) for scene in scenes)
    assert a["tiles"].tolist() == b["tiles"].tolist()
    np.testing.assert_allclose(a["bbox"][:, 2] - a["bbox"][:, 0], 64 * 0.000808483756)


def test_real_sentinel2_joins_10_and_20_m_bands(real_data: Path) -> None:
    folder = real_data / "scenes"
    fine, coarse, mask = (
        str(folder / f"s2l2a_majortom_199U_1099R_{kind}.tif")
        for kind in ("10m", "20m", "cloudmask")
    )
    bands = (
        BandSource(name="B08", href=fine, index=4),
        BandSource(name="B8A", href=coarse, index=4),
    )
    scene = Scene(
        id="thailand",
        datetime=datetime(2020, 2, 23, tzinfo=UTC),
        bands=bands,
        mask=MaskSource(href=mask, cloud_values=(1, 2, 3)),
    )
    grid = grid_for_scene(scene, GridSpec(tile_px=64))
    found = collect(scene, grid, TileRules(edge="drop", min_valid_fraction=1))
    assert grid.id == "epsg32648-10-64"
    assert not np.isnan(found["pixels"]).any()
    truth = np.zeros((2, 1068, 1068), np.float32)
    with rasterio.open(fine) as near, rasterio.open(coarse) as far:
        truth[0] = near.read(4)
        reproject(
            far.read(4).astype(np.float32),
            truth[1],
            src_transform=far.transform,
            src_crs=far.crs,
            dst_transform=near.transform,
            dst_crs=near.crs,
            resampling=Resampling.bilinear,
        )
    for pixels, (row, column, height, width) in zip(found["pixels"], found["window"], strict=True):
        np.testing.assert_array_equal(pixels, truth[:, row : row + height, column : column + width])


def test_real_scene_classification_masks_clouds(real_data: Path) -> None:
    folder = real_data / "scenes"
    scl = str(folder / "s2l2a_29RKH_20200219_SCL_200m.tif")
    scene = real_scene(
        real_data,
        "s2l2a_29RKH_20200219_100m",
        (1,),
        mask=MaskSource(href=scl, cloud_values=(3, 8, 9, 10)),
    )
    grid = grid_for_scene(scene, GridSpec(tile_px=64))
    found = collect(scene, grid, EVERYTHING)
    with rasterio.open(scl) as dataset:
        share = np.isin(dataset.read(1), (3, 8, 9, 10)).mean()
    cloudy = (found["cloud_fraction"] * found["valid_fraction"]).sum() * 64**2
    assert cloudy / (1098**2) == pytest.approx(share, rel=0.05)
    clear = collect(scene, grid, TileRules(max_cloud_fraction=0.01))
    assert 0 < len(clear["tiles"]) < len(found["tiles"])


def test_real_truncated_file_is_named(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "scenes" / "naip_m_4709963_se_14_1_20100629.tif"
    broken = tmp_path / "broken.tif"
    broken.write_bytes(source.read_bytes()[:1_500_000])
    scene = make_scene(str(broken), 4)
    with pytest.raises(SceneError, match=r"broken\.tif is truncated"):
        grid_for_scene(scene, GridSpec(tile_px=64))


@pytest.mark.parametrize("edge", ["pad", "drop", "shift"])
def test_a_window_of_more_tiles_than_a_scene_may_have_is_refused_before_they_are_made(edge: Any):
    grid = TileGrid(crs=UTM, resolution=1e-3, tile_px=64)
    for size in (10**6, 10**12, 10**40):
        with pytest.raises(GridError, match=r"tiles, but a scene may have 4,194,304"):
            grid.tiles_over(Window(column=0, row=0, width=size, height=size), edge)


@pytest.mark.parametrize("edge", ["pad", "drop", "shift"])
@pytest.mark.parametrize("side", [1, -1])
def test_far_from_the_anchor_tiles_are_numbered_right_or_refused(edge: Any, side: int):
    """Python's own integers are the oracle; 31 bits end at 2,147,483,647."""
    grid = TileGrid(crs=UTM, resolution=10.0, tile_px=32)
    for start in (2**20, 2**30, 2**31 - 96, 2**31, 2**33, 2**35 * 10, 2**62, 2**70):
        extent = Window(column=side * start, row=-side * start, width=96, height=64)
        if start * (1 if edge == "shift" else 1 / 32) > 2**31 - 200:
            with pytest.raises(GridError, match=r"set grid\.anchor near the scenes"):
                grid.tiles_over(extent, edge)
            continue
        tiles = grid.tiles_over(extent, edge)
        named = grid.naming(edge)
        corners = [(c * named.stride_px, r * named.stride_px) for c, r in tiles.tolist()]
        expected = [
            (column, row)
            for row in range(-side * start, -side * start + 64, 32)
            for column in range(side * start, side * start + 96, 32)
        ]
        assert corners == expected


def test_the_window_of_a_tile_far_from_the_anchor_is_its_place_in_the_scene(tmp_path: Path):
    pixel, column, row = 0.003, 2_000_000_000 // 32, 1_000_000_000 // 32
    corner = (column * 32 * pixel, -row * 32 * pixel)
    array = np.arange(1, 64 * 96 + 1, dtype=np.uint16).reshape(1, 64, 96)
    scene = make_scene(write(tmp_path / "drone.tif", array, corner, pixel))
    grid = TileGrid(crs=UTM, resolution=pixel / 4, tile_px=32)  # beyond int32 in grid pixels
    found = collect(scene, grid)
    assert found["window"].min(axis=0)[:2].tolist() == [0, 0]
    assert found["window"].max(axis=0)[:2].tolist() == [4 * 64 - 32, 4 * 96 - 32]


@pytest.mark.parametrize("crs", ["EPSG:99999", "nonsense", "EPSG:5773", "EPSG:4978"])
def test_a_grid_needs_the_crs_of_a_map(crs: str):
    assert grid_crs(GridSpec()) is None
    assert grid_crs(GridSpec(crs="EPSG:32648+5773")) is not None
    with pytest.raises(ConfigError, match="give a"):
        grid_crs(GridSpec(crs=crs))
