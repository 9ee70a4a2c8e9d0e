"""Map tiles of an archive's scenes: the right place, the newest clear pixel, within bounds."""

import datetime as dt
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image
from rasterio.enums import Resampling

from pipeline.tiles.grid import TileGrid
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.errors import NotFoundError
from storage.index.filter import Filter
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, MaskSource, Scene
from workflows.report.colours import preset_of
from workflows.report.rendering import TileRenderer
from workflows.service import mosaic as module
from workflows.service.footprints import ScenePlaces
from workflows.service.mosaic import (
    NO_OVERVIEWS,
    TOO_LONG,
    TOO_MANY,
    Drawn,
    Look,
    MapTile,
    Mosaic,
    opening_tiles,
    zoom_of,
)

BANDS = ("red", "green", "blue", "nir")
SIDE, TILE_PX = 512, 128
GRID = TileGrid(crs="EPSG:32632", resolution=10.0, tile_px=TILE_PX)
EAST, NORTH = 1280 * 400, 1280 * 4000
TO_DEGREES = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
DAYS = ("2024-05-01", "2024-06-01", "2024-07-01")
REFLECTANCE = (0.05, 0.1, 0.2)  # of the three days, in red


def scene(folder: Path, number: int, *, cog: bool = True, blank: int = 0) -> Scene:
    """A scene of one reflectance; the newest is cloudy in its western half.

    The first ``blank`` columns have no data.
    """
    red = REFLECTANCE[number]
    values = np.array([red, red / 2, red / 4, red * 2])[:, None, None] * 10_000
    numbers = np.broadcast_to(values, (4, SIDE, SIDE)).astype(np.uint16)
    numbers[..., :blank] = 0
    place = ("EPSG:32632", (10, 0, EAST, 0, -10, NORTH))
    file, clouds = folder / f"day{number}.tif", folder / f"day{number}_clouds.tif"
    write_geotiff(str(file), numbers, *place, cog=cog)
    cloudy = np.zeros((1, SIDE, SIDE), np.uint8)
    cloudy[..., : SIDE // 2] = 9 if number == 2 else 0
    write_geotiff(str(clouds), cloudy, *place)
    return Scene(
        id=f"day{number}",
        datetime=dt.datetime.fromisoformat(f"{DAYS[number]}T10:00+00:00"),
        bands=tuple(
            BandSource(name=name, href=str(file), index=i, scale=1e-4, nodata=0)
            for i, name in enumerate(BANDS, start=1)
        ),
        mask=MaskSource(href=str(clouds), cloud_values=(9,)),
    )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return make_archive(tmp_path, [scene(tmp_path, number) for number in range(3)])


def make_archive(folder: Path, scenes: list[Scene]) -> Archive:
    uri, across = str(folder / "archive"), SIDE // TILE_PX
    spec = ArchiveSpec(
        encoder_fingerprint="ab" * 32,
        encoder_uri="bundle",
        dimension=2,
        bands=BANDS,
        tile_px=TILE_PX,
    )
    Archive.create(uri, spec)
    writer = ArchiveWriter(uri)
    tiles = np.array([(400 + c, -4000 + r) for r in range(across) for c in range(across)], np.int32)
    count = len(tiles) * len(scenes)
    every = np.tile(tiles, (len(scenes), 1))
    columns = {
        "embedding": np.tile(np.float32([1, 0]), (count, 1)),
        "tile": every,
        "window": np.zeros((count, 4), np.int32),
        "bbox": GRID.bbox_wgs84(every),
        "datetime": np.repeat(
            [np.datetime64(s.datetime.replace(tzinfo=None), "ms") for s in scenes], len(tiles)
        ),
        "valid_fraction": np.ones(count, np.float32),
        "cloud_fraction": np.zeros(count, np.float32),
        "scene_index": np.repeat(np.arange(len(scenes), dtype=np.int32), len(tiles)),
    }
    segment = SegmentRows(
        id="s",
        scenes=tuple(s.id for s in scenes),
        grids=(GRID.id,) * len(scenes),
        columns=columns,
        origins=tuple(Origin(scene=s) for s in scenes),
    )
    entries = [
        LedgerEntry(
            scene_id=s.id,
            state="embedded",
            fingerprint=s.fingerprint,
            datetime=s.datetime,
            rows=len(tiles),
            grid_id=GRID.id,
        )
        for s in scenes
    ]
    receipt = write_segment(writer.fork, segment, spec)
    writer.commit([receipt], entries, {GRID.id: GRID.to_dict()}, "test")
    return Archive.open(uri)


def at(column: float, row: float, z: int = 14) -> MapTile:
    """The tile of the map at a pixel of the scenes."""
    lon, lat = TO_DEGREES.transform(EAST + 10 * column, NORTH - 10 * row)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(lon, lat)
    world = 20_037_508.342789244
    side = 2 * world / 2**z
    return MapTile(z=z, x=int((x + world) // side), y=int((world - y) // side))


def drawn(archive: Archive, tile: MapTile, preset: str | None = None, **period: str) -> np.ndarray:
    look = Look(period=Filter(**period), preset=preset_of(BANDS, preset))
    made = Mosaic.of_archive(archive, ScenePlaces(archive)).draw(tile, look, TileRenderer(archive))
    return pixels_of(made)


def pixels_of(made: Drawn) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made.content)).convert("RGBA"))


def middle(archive: Archive, tile: MapTile, **period: str) -> list[int]:
    return drawn(archive, tile, **period)[120:136, 120:136].mean(axis=(0, 1)).round().tolist()


@pytest.mark.parametrize("z", [0, 3, 11, 24])
def test_a_tile_lies_where_every_web_map_has_it(z: int):
    """Truth: the corners by pyproj."""
    tile = MapTile(z=z, x=2**z // 3, y=2**z // 5)
    grid = tile.pixels
    to_mercator = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    west, south, east, north = tile.bbox
    np.testing.assert_allclose(to_mercator.transform(west, north), grid.anchor, atol=1e-3)
    x, y = to_mercator.transform(east, south)
    side = 256 * grid.resolution
    np.testing.assert_allclose((x - grid.anchor[0], grid.anchor[1] - y), side, atol=1e-3)


@pytest.mark.parametrize("numbers", [(1, 2, 0), (1, 0, 2), (25, 0, 0)])
def test_a_tile_of_no_map_is_refused(numbers: tuple[int, int, int]):
    with pytest.raises(NotFoundError, match="no map has a tile"):
        MapTile(**dict(zip("zxy", numbers, strict=True)))


def test_the_newest_clear_pixel_is_shown_and_clouds_only_where_nothing_is_clear(archive: Archive):
    west, east = at(128, 256), at(384, 256)
    newest, second = middle(archive, east), middle(archive, west)
    cloudy = middle(archive, west, since="2024-07-01")
    assert newest == cloudy
    assert second != newest
    assert second == middle(archive, west, until="2024-06-01")
    assert newest[3] == 255


def test_a_day_and_its_end_are_meant(archive: Archive):
    place = at(384, 256)
    reds = [middle(archive, place, since=day, until=day)[0] for day in DAYS]
    assert reds == sorted(reds)
    assert len({*reds}) == 3
    assert not drawn(archive, place, since="2023-01-01", until="2023-12-31").any()


def test_dates_and_bands_can_be_compared(archive: Archive):
    """One stretch: twice the reflectance is brighter, and red stays redder than blue."""
    place = at(384, 256)
    first, second = (middle(archive, place, until=day) for day in DAYS[:2])
    assert first[0] > first[1] > first[2]
    assert second[0] > 1.5 * first[0]
    nir = drawn(archive, place, "false")[128, 128]
    assert nir[0] > nir[1] > nir[2]


def test_a_pixel_lies_at_its_place(archive: Archive):
    """The western edge of the scenes, by pyproj, is where the picture begins."""
    tile = at(0, 256, z=12)
    alpha = drawn(archive, tile)[..., 3]
    to_mercator = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:3857", always_xy=True)
    x, y = to_mercator.transform(EAST, NORTH - 2560)
    column = (x - tile.pixels.anchor[0]) / tile.pixels.resolution
    row = int((tile.pixels.anchor[1] - y) / tile.pixels.resolution)
    first = int(np.argmax(alpha[row] > 0))
    assert abs(first - column) <= 1.5


def test_a_narrow_strip_that_only_an_older_scene_has_is_drawn(tmp_path: Path):
    archive = make_archive(tmp_path, [scene(tmp_path, 0), scene(tmp_path, 1, blank=18)])
    tile = at(256, 256, z=12)
    older = drawn(archive, tile, until=DAYS[0])
    both = drawn(archive, tile)
    np.testing.assert_array_equal(both[..., 3], older[..., 3])
    assert (both != older).any()


def test_a_place_without_data_is_read_of_three_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scenes = [replace(scene(tmp_path, 0, blank=256), id=f"s{number}") for number in range(6)]
    archive, read = make_archive(tmp_path, scenes), []
    whole = module._read
    monkeypatch.setattr(module, "_read", lambda *asked: read.append(asked) or whole(*asked))
    image = drawn(archive, at(256, 256, z=12))
    assert len(read) == 3
    assert image[..., 3].any()


def test_beside_the_scenes_nothing_is_drawn(archive: Archive):
    tile = at(128, 256)
    assert not drawn(archive, replace(tile, x=tile.x + 100)).any()
    assert drawn(archive, at(256, 256, z=5)).any()  # a few pixels


def test_a_large_file_without_overviews_is_hatched_where_it_would_be_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    archive = make_archive(tmp_path, [scene(tmp_path, 0, cog=False)])
    monkeypatch.setattr(module, "MOST_FILE_PIXELS", 200_000)
    mosaic, renderer = Mosaic.of_archive(archive, ScenePlaces(archive)), TileRenderer(archive)
    look = Look(period=Filter(), preset=preset_of(BANDS, None))
    far = [mosaic.draw(at(256, 256, z=z), look, renderer) for z in (10, 9)]
    assert [made.note for made in far] == [module.NO_OVERVIEWS] * 2
    assert "gdaladdo" in module.NO_OVERVIEWS
    assert [record.getMessage() for record in caplog.records] == [
        f"scene day0: {module.NO_OVERVIEWS}"
    ]
    (place,) = ScenePlaces(archive).of(archive.scenes())
    rows, columns = at(256, 256, z=10).slices_of(place.box)
    alpha = pixels_of(far[0])[..., 3].copy()
    assert 0.1 < (alpha[rows, columns] > 90).mean() < 0.5  # stripes, there
    alpha[rows, columns] = 0
    assert alpha.max() < 90  # and nowhere else
    near = mosaic.draw(at(256, 256, z=15), look, renderer)
    assert near.note == ""
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(tmp_path / "day0.tif", "r+") as file:
        file.build_overviews([2, 4, 8, 16], Resampling.average)
    assert (tmp_path / "day0.tif.ovr").exists()  # as the note advises
    mended = mosaic.draw(at(256, 256, z=10), look, renderer)
    assert mended.note == ""
    assert pixels_of(mended)[rows, columns, 3].mean() > 200
    assert pixels_of(near)[..., 3].all()


def test_no_further_scene_is_begun_when_the_time_is_over(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_SECONDS", -1.0)
    look = Look(period=Filter(), preset=preset_of(BANDS, None))
    made = Mosaic.of_archive(archive, ScenePlaces(archive)).draw(
        at(256, 256), look, TileRenderer(archive)
    )
    assert made.note == module.TOO_LONG
    assert (pixels_of(made)[..., 3] == 0).mean() > 0.5  # stripes, and no picture


def test_a_scene_that_is_gone_is_passed_over_and_the_last_one_gives_the_reason(
    archive: Archive, tmp_path: Path
):
    place = at(384, 256)
    (tmp_path / "day2.tif").unlink()
    assert middle(archive, place) == middle(archive, place, until="2024-06-01")
    for number in (0, 1):
        (tmp_path / f"day{number}.tif").unlink()
    with pytest.raises(NotFoundError, match=r"no scene can be drawn here: .*day2\.tif"):
        drawn(archive, place)


def test_the_tag_changes_with_what_is_shown(archive: Archive):
    made = Mosaic.of_archive(archive, ScenePlaces(archive))
    look = Look(period=Filter(), preset=preset_of(BANDS, None))
    looks = [
        look,
        replace(look, gamma=2.0),
        replace(look, preset=preset_of(BANDS, "false")),
        replace(look, period=Filter(since="2024-06-01")),
    ]
    tags = [made.etag(at(0, 0), one) for one in looks] + [made.etag(at(0, 0, z=3), look)]
    assert len({*tags}) == 5


def test_the_map_is_drawn_to_the_pixels_of_the_scenes(archive: Archive):
    assert zoom_of(archive) == 14  # 9.55 m a pixel at the equator


@pytest.mark.parametrize(("box", "zooms"), [
    ((9.0, 48.0, 11.0, 49.0), {8, 9}),
    ((9.0, 48.0, 9.001, 48.001), {15}),  # the page does not zoom in further
    ((-180.0, -90.0, 180.0, 90.0), {0, 1}),
    ((179.0, 48.0, -179.0, 49.0), set()),
])  # fmt: skip
def test_the_view_that_opens_has_tiles_over_the_whole_box(box, zooms) -> None:
    tiles = opening_tiles(box, 24)
    assert {tile.z for tile in tiles} == zooms
    for zoom in zooms:
        west, south, east, north = zip(*(t.bbox for t in tiles if t.z == zoom), strict=True)
        assert min(west) <= box[0]
        assert max(east) >= box[2]
        assert min(south) <= max(box[1], -85.05)
        assert max(north) >= min(box[3], 85.05)


def test_pictures_last_that_would_be_the_same_another_time() -> None:
    lasting = {note: Drawn(content=b"", note=note).lasts for note in ("", TOO_MANY)}
    assert all(lasting.values())
    assert not any(Drawn(content=b"", note=note).lasts for note in (TOO_LONG, NO_OVERVIEWS))
