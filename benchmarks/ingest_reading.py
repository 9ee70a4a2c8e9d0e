"""Reading beside a hand-written rasterio loop, alone and with an encoder; mixed resolutions."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from benchmarks.ingest_world import BANDS, CRS, plain_loop, write_scenes
from benchmarks.measure import Row, in_turns
from pipeline.tiles.grid import TileGrid
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import TileRules
from storage.scene import BandSource, Scene

TILE_PX = 128


def read_all(scenes: list[Scene], grid: TileGrid) -> int:
    """Read every tile of scenes; return how many."""
    batches = (read_tiles(scene, grid, TileRules(), batch_size=16) for scene in scenes)
    return sum(len(batch) for each in batches for batch in each)


def scene_of(*hrefs: str) -> Scene:
    """Return a scene of four bands, in one file or two to each of two."""
    per_file = len(BANDS) // len(hrefs)
    bands = tuple(
        BandSource(name=name, href=hrefs[number // per_file], index=number % per_file + 1)
        for number, name in enumerate(BANDS)
    )
    return Scene(id=Path(hrefs[0]).stem, datetime=datetime(2024, 5, 1, tzinfo=UTC), bands=bands)


def reading(folder: Path, full: bool) -> Iterator[Row]:
    """Tiles read by ours and by a loop with rasterio, in turns in one process."""
    names = write_scenes(folder, 4 if full else 2, 8192, 1024)
    scenes = [scene_of(name) for name in names]
    grid = TileGrid(crs=CRS, resolution=10.0, tile_px=TILE_PX)
    tiles = read_all(scenes, grid)
    assert tiles == plain_loop(names, TILE_PX)[0]
    ours_s, peer_s, ratio = in_turns(
        lambda: read_all(scenes, grid), lambda: plain_loop(names, TILE_PX), 9 if full else 5
    )
    yield Row(
        what="tiles/s read from tiled, deflated GeoTIFFs (4 bands of uint16, 128 px), one process",
        ours=tiles / ours_s,
        peer=tiles / peer_s,
        against="a strip loop with rasterio",
        unit="tiles/s",
        ratio=1 / ratio,
        goal=0.9,
        note="Limit: GDAL's inflate, three quarters of the time; the rest is casting to float32. "
        "Each block is decoded once (tests/pipeline/tiles/test_read.py counts).",
    )


def mixed(folder: Path, full: bool) -> Iterator[Row]:
    """Two bands of 10 m and two of 20 m, beside a loop with rasterio and a WarpedVRT."""
    fine, coarse = folder / "10m", folder / "20m"
    fine.mkdir(), coarse.mkdir()
    [ten] = write_scenes(fine, 1, 8192, 1024, bands=2)
    [twenty] = write_scenes(coarse, 1, 4096, 512, bands=2, size_m=20.0)
    grid = TileGrid(crs=CRS, resolution=10.0, tile_px=TILE_PX)
    scenes = [scene_of(ten, twenty)]
    tiles = read_all(scenes, grid)
    ours_s, peer_s, ratio = in_turns(
        lambda: read_all(scenes, grid), lambda: _warped_loop(ten, twenty), 9 if full else 5
    )
    yield Row(
        what="tiles/s read of a scene of two 10 m and two 20 m bands, on the 10 m grid",
        ours=tiles / ours_s,
        peer=tiles / peer_s,
        against="a strip loop with a bilinear WarpedVRT",
        unit="tiles/s",
        ratio=1 / ratio,
        goal=1.0,
        note="Aligned 2:1 bands are interpolated by numpy, bit for bit as GDAL warps them.",
    )


def _warped_loop(ten: str, twenty: str) -> None:
    with (
        rasterio.Env(GDAL_NUM_THREADS=1, GDAL_CACHEMAX=128 * 1024 * 1024),
        rasterio.open(ten) as fine,
        rasterio.open(twenty) as coarse,
        WarpedVRT(
            coarse,
            crs=fine.crs,
            transform=fine.transform,
            width=fine.width,
            height=fine.height,
            resampling=Resampling.bilinear,
            dtype="float32",
            src_nodata=0,
            nodata=float("nan"),
        ) as warped,
    ):
        for row in range(0, fine.height, TILE_PX):
            window = ((row, row + TILE_PX), (0, fine.width))
            strip = np.empty((4, TILE_PX, fine.width), np.float32)
            strip[:2] = fine.read(window=window)
            strip[:2][strip[:2] == 0] = np.nan
            strip[2:] = warped.read(window=window)
