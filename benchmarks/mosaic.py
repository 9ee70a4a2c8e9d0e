"""Map tiles from a cloud-optimized GeoTIFF on disk, in an archive of a million tiles.

    python -m benchmarks.mosaic [--full]

One COG of 6144 x 6144 pixels at 10 m (three bands of uint16, deflate, overviews) stands for 992
scenes of two dates; the archive holds 1,015,808 rows in 124 segments. Tiles are drawn without HTTP
and without the cache: each is asked for once. The operating system has the file in memory.
"""

import argparse
import datetime as dt
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, publish
from pipeline.tiles.grid import TileGrid
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.index.filter import Filter
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, Scene
from workflows.report.colours import preset_of
from workflows.report.rendering import TileRenderer
from workflows.service.footprints import ScenePlaces
from workflows.service.mosaic import Look, MapTile, Mosaic

BANDS = ("red", "green", "blue")
SIDE_PX, TILE_PX, CRS = 6144, 192, "EPSG:32632"
TILES_A_SIDE = SIDE_PX // TILE_PX
SEGMENTS, SCENES_A_SEGMENT = 124, 8
ZOOMS = (9, 10, 11, 12, 13, 14)
TILES_A_ZOOM = 12
_LIMIT = "GDAL's warp and the decoding of blocks; each tile opens its files anew."


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="Five times as many tiles.")
    full = parser.parse_args().full
    with tempfile.TemporaryDirectory() as folder:
        publish("mosaic", _rows(Path(folder), TILES_A_ZOOM * (5 if full else 1)))


def _rows(folder: Path, tiles_a_zoom: int) -> list[Row]:
    uri = _make_archive(folder)
    look = Look(period=Filter(), preset=preset_of(BANDS, None))
    started = time.perf_counter()
    archive = Archive.open(uri)
    mosaic, renderer = Mosaic(archive, ScenePlaces(archive)), TileRenderer(archive)
    west, south, east, north = mosaic_box(archive)
    first = _tile((west + east) / 2, (south + north) / 2, 12)
    mosaic.draw(first, look, renderer)
    first_s = time.perf_counter() - started

    rng = np.random.default_rng(0)

    def timed(tile: MapTile) -> float:
        begun = time.perf_counter()
        mosaic.draw(tile, look, renderer)
        return 1000 * (time.perf_counter() - begun)

    places = [
        _tile(rng.uniform(west, east), rng.uniform(south, north), zoom)
        for zoom in ZOOMS
        for _ in range(tiles_a_zoom)
    ]
    with ThreadPoolExecutor(2) as pool:
        times = list(pool.map(timed, places))
    half, most = statistics.median(times), float(np.percentile(times, 95))
    return [
        Row(
            what=f"map tile, p50 of {len(times)} (zoom 9 to 14, two at a time)",
            ours=half,
            unit="ms",
            ratio=half,
            goal=150,
            direction="at most",
            note=_LIMIT,
        ),
        Row(what="the same, p95", ours=most, unit="ms", ratio=most, note=_LIMIT),
        Row(
            what="archive of 1,015,808 tiles opened and the first map tile drawn",
            ours=first_s,
            unit="s",
            ratio=first_s,
            goal=1,
            direction="at most",
            note="the boxes of the scenes, read from every segment.",
        ),
    ]


def mosaic_box(archive: Archive) -> tuple[float, float, float, float]:
    """Return the box of a scene: all lie at one place."""
    (place,) = ScenePlaces(archive).of(archive.scenes()[:1])
    assert place
    return place.box


def _tile(lon: float, lat: float, z: int) -> MapTile:
    count = 2**z
    x = int((lon + 180) / 360 * count)
    y = int((1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2 * count)
    return MapTile(z=z, x=x, y=y)


def _make_archive(folder: Path) -> str:
    grid = TileGrid(crs=CRS, resolution=10.0, tile_px=TILE_PX)
    east, north = 10 * TILE_PX * 250, 10 * TILE_PX * 2600
    rng = np.random.default_rng(0)
    coarse = rng.integers(200, 3000, (3, SIDE_PX // 32, SIDE_PX // 32))
    pixels = coarse.repeat(32, 1).repeat(32, 2).astype(np.uint16)
    pixels += rng.integers(0, 200, pixels.shape, np.uint16)
    write_geotiff(str(folder / "scene.tif"), pixels, CRS, (10, 0, east, 0, -10, north), nodata=0)
    spec = ArchiveSpec(
        encoder_fingerprint="ab" * 32, encoder_uri="b", dimension=2, bands=BANDS, tile_px=TILE_PX
    )
    uri = str(folder / "archive")
    writer = ArchiveWriter(Archive.create(uri, spec))
    tiles = np.array(
        [(250 + c, -2600 + r) for r in range(TILES_A_SIDE) for c in range(TILES_A_SIDE)], np.int32
    )
    boxes = grid.bbox_wgs84(tiles)
    receipts, entries = [], []
    for number in range(SEGMENTS):
        scenes = list(_scenes(folder, number))
        count = len(scenes) * len(tiles)
        columns = {
            "embedding": np.tile(np.float32([1, 0]), (count, 1)),
            "tile": np.tile(tiles, (len(scenes), 1)),
            "window": np.zeros((count, 4), np.int32),
            "bbox": np.tile(boxes, (len(scenes), 1)),
            "datetime": np.full(count, np.datetime64("2024-05-01", "ms")),
            "valid_fraction": np.ones(count, np.float32),
            "cloud_fraction": np.zeros(count, np.float32),
            "scene_index": np.repeat(np.arange(len(scenes), dtype=np.int32), len(tiles)),
        }
        rows = SegmentRows(
            id=f"s{number}",
            scenes=tuple(scene.id for scene in scenes),
            grids=(grid.id,) * len(scenes),
            columns=columns,
            origins=tuple(Origin(scene=scene) for scene in scenes),
        )
        receipts.append(write_segment(writer.fork, rows, spec))
        entries += [
            LedgerEntry(
                scene_id=scene.id,
                state="embedded",
                fingerprint="",
                datetime=scene.datetime,
                rows=len(tiles),
                grid_id=grid.id,
            )
            for scene in scenes
        ]
    writer.commit(receipts, entries, {grid.id: grid.to_dict()}, "benchmark")
    return uri


def _scenes(folder: Path, number: int) -> Iterator[Scene]:
    for place in range(SCENES_A_SEGMENT):
        yield Scene(
            id=f"scene-{number}-{place}",
            datetime=dt.datetime(2024, 1 + number % 2, 1, tzinfo=dt.UTC),
            bands=tuple(
                BandSource(name=name, href=str(folder / "scene.tif"), index=i, scale=1e-4)
                for i, name in enumerate(BANDS, start=1)
            ),
        )


if __name__ == "__main__":
    main()
