"""Archives with files behind them, for the benchmarks of the map: a million tiles of 992 scenes.

All scenes have one grid, a UTM zone. They lie at one place and share a file, or beside each other
in 31 rows of 32, each with a file of its own.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.vectors import Mixture
from pipeline.tiles.grid import TileGrid
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, Scene

BANDS = ("red", "green", "blue")
TILES_A_SIDE = 32
SCENES, SCENES_A_SEGMENT = 992, 8
ROWS = SCENES * TILES_A_SIDE**2
_CRS, _CORNER_M, _SCENES_A_ROW = "EPSG:32632", (320_000, 5_120_000), 32


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Pixels of 10 m along a tile, values of a vector; ``spread`` scenes have a place each."""

    tile_px: int
    dimension: int = 2
    spread: bool = False

    @property
    def grid(self) -> TileGrid:
        """The grid of all scenes."""
        return TileGrid(crs=_CRS, resolution=10.0, tile_px=self.tile_px)

    def corner(self, number: int) -> tuple[int, int]:
        """Return the column and row of the north-western tile of a scene."""
        tile_m = 10 * self.tile_px
        column, row = _CORNER_M[0] // tile_m, -(_CORNER_M[1] // tile_m)
        if not self.spread:
            return column, row
        down, across = divmod(number, _SCENES_A_ROW)
        return column + across * TILES_A_SIDE, row + down * TILES_A_SIDE

    def file(self, folder: Path, number: int) -> Path:
        """Return the file of a scene."""
        return folder / f"scene-{number if self.spread else 0}.tif"


def make_archive(folder: Path, world: World) -> str:
    """Write the files and the archive; return its URI."""
    for number in range(SCENES if world.spread else 1):
        _write_file(folder, world, number)
    spec = ArchiveSpec(
        encoder_fingerprint="ab" * 32,
        encoder_uri="b",
        dimension=world.dimension,
        bands=BANDS,
        tile_px=world.tile_px,
    )
    uri = str(folder / "archive")
    writer = ArchiveWriter(Archive.create(uri, spec))
    receipts, entries = [], []
    numbers = iter(range(SCENES))
    while some := list(islice(numbers, SCENES_A_SEGMENT)):
        rows = _segment(folder, world, some)
        receipts.append(write_segment(writer.fork, rows, spec))
        entries += _entries(rows, world)
    writer.commit(receipts, entries, {world.grid.id: world.grid.to_dict()}, "benchmark")
    return uri


def _write_file(folder: Path, world: World, number: int) -> None:
    side, (column, row) = TILES_A_SIDE * world.tile_px, world.corner(number)
    rng = np.random.default_rng(number)
    coarse = rng.integers(200, 3000, (3, side // 32, side // 32))
    pixels = coarse.repeat(32, 1).repeat(32, 2).astype(np.uint16)
    pixels += rng.integers(0, 200, pixels.shape, np.uint16)
    tile_m = 10 * world.tile_px
    place = (10, 0, column * tile_m, 0, -10, -row * tile_m)
    write_geotiff(str(world.file(folder, number)), pixels, _CRS, place, nodata=0)


def _tiles(world: World, number: int) -> npt.NDArray[np.int32]:
    column, row = world.corner(number)
    side = range(TILES_A_SIDE)
    return np.array([(column + c, row + r) for r in side for c in side], np.int32)


def _segment(folder: Path, world: World, numbers: list[int]) -> SegmentRows:
    tiles = np.concatenate([_tiles(world, number) for number in numbers])
    scenes = list(_scenes(folder, world, numbers))
    count = len(tiles)
    each = count // len(scenes)
    plain = np.tile(np.float32([1, 0]), (count, 1))
    columns = {
        "embedding": Mixture(dimension=world.dimension).draw(count, numbers[0])
        if world.dimension > 2
        else plain,
        "tile": tiles,
        "window": np.zeros((count, 4), np.int32),
        "bbox": world.grid.bbox_wgs84(tiles),
        "datetime": np.full(count, np.datetime64("2024-05-01", "ms")),
        "valid_fraction": np.ones(count, np.float32),
        "cloud_fraction": np.zeros(count, np.float32),
        "scene_index": np.repeat(np.arange(len(scenes), dtype=np.int32), each),
    }
    return SegmentRows(
        id=f"s{numbers[0]}",
        scenes=tuple(scene.id for scene in scenes),
        grids=(world.grid.id,) * len(scenes),
        columns=columns,
        origins=tuple(Origin(scene=scene) for scene in scenes),
    )


def _scenes(folder: Path, world: World, numbers: list[int]) -> Iterator[Scene]:
    for number in numbers:
        yield Scene(
            id=f"scene-{number:03d}",
            datetime=dt.datetime(2024, 1 + number % 2, 1, tzinfo=dt.UTC),
            bands=tuple(
                BandSource(name=name, href=str(world.file(folder, number)), index=i, scale=1e-4)
                for i, name in enumerate(BANDS, start=1)
            ),
        )


def _entries(rows: SegmentRows, world: World) -> Iterator[LedgerEntry]:
    for origin in rows.origins:
        yield LedgerEntry(
            scene_id=origin.scene.id,
            state="embedded",
            fingerprint="",
            datetime=origin.scene.datetime,
            rows=TILES_A_SIDE**2,
            grid_id=world.grid.id,
        )
