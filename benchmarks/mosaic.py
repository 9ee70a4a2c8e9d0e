"""Map tiles from a cloud-optimized GeoTIFF on disk, in an archive of a million tiles.

    python -m benchmarks.mosaic [--full]

One COG of 6144 x 6144 pixels at 10 m (three bands of uint16, deflate, overviews) stands for 992
scenes of two dates; the archive holds 1,015,808 rows in 124 segments. Tiles are drawn without HTTP
and without the cache: each is asked for once. The operating system has the file in memory.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.map_world import BANDS, ROWS, World, make_archive
from benchmarks.measure import Row, publish
from storage.archive.reader import Archive
from storage.index.filter import Filter
from workflows.report.colours import preset_of
from workflows.report.rendering import TileRenderer
from workflows.service.footprints import ScenePlaces
from workflows.service.mosaic import Look, MapTile, Mosaic

WORLD = World(tile_px=192)
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
    uri = make_archive(folder, WORLD)
    look = Look(period=Filter(), preset=preset_of(BANDS, None))
    started = time.perf_counter()
    archive = Archive.open(uri)
    mosaic, renderer = Mosaic.of_archive(archive, ScenePlaces(archive)), TileRenderer(archive)
    west, south, east, north = mosaic_box(archive)
    first = MapTile.at((west + east) / 2, (south + north) / 2, 12)
    mosaic.draw(first, look, renderer)
    first_s = time.perf_counter() - started

    rng = np.random.default_rng(0)

    def timed(tile: MapTile) -> float:
        begun = time.perf_counter()
        mosaic.draw(tile, look, renderer)
        return 1000 * (time.perf_counter() - begun)

    places = [
        MapTile.at(rng.uniform(west, east), rng.uniform(south, north), zoom)
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
            what=f"archive of {ROWS:,} tiles opened and the first map tile drawn",
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


if __name__ == "__main__":
    main()
