"""The tiles of a scene and their pixels, streamed. Pure kernels: no Ray.

:class:`~pipeline.grids.TileGrid` says where tiles lie; :func:`read_tiles` reads those of a scene
that are worth an embedding, one strip of them at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from pipeline.grids import Edge, Float64, GridSpec, Int32, TileGrid, grid_for_scene
from storage.errors import ConfigError
from storage.object_store import StorageOptions
from storage.pixels import Block, Float32
from storage.rasters import SceneReader
from storage.scenes import Scene

__all__ = [
    "GridSpec",
    "TileBatch",
    "TileCounts",
    "TileGrid",
    "TileRules",
    "count_tiles",
    "grid_for_scene",
    "read_tiles",
]

_STRIP_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class TileRules:
    """Which tiles are worth an embedding.

    Parameters
    ----------
    edge
        ``pad`` keeps the tiles that reach beyond the scene, the rest of them invalid; ``drop``
        keeps only those wholly within it; ``shift`` keeps those and adds, for what they leave,
        tiles that are moved inwards to the scene's edge and overlap their neighbours.
    min_valid_fraction
        Least share of a tile's pixels that hold data; a tile without any is never kept.
    max_cloud_fraction
        Largest share of a tile's valid pixels that the mask calls cloud or shadow.
    """

    edge: Edge = "pad"
    min_valid_fraction: float = 0.5
    max_cloud_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.edge not in get_args(Edge):
            raise ConfigError(f"tile rule edge is {self.edge!r}; give 'pad', 'shift' or 'drop'")
        for name in ("min_valid_fraction", "max_cloud_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"tile rule {name} is {getattr(self, name)}; give 0 to 1")


def count_tiles(
    scene: Scene, grid: TileGrid, rules: TileRules, options: StorageOptions | None = None
) -> int:
    """Return how many tiles a scene has at most: before any is skipped for nodata or cloud.

    Raises
    ------
    SceneError
        A file of the scene cannot be opened.
    """
    with SceneReader(scene, grid.pixels, options) as reader:
        return len(grid.tiles_over(reader.extent, rules.edge))


@dataclass(kw_only=True, slots=True)
class TileCounts:
    """What became of a scene's tiles; :func:`read_tiles` adds to it while it goes."""

    kept: int = 0
    skipped_nodata: int = 0
    skipped_cloud: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TileBatch:
    """At least one tile of one scene; its arrays belong to the receiver.

    Parameters
    ----------
    pixels
        float32 (n, bands, tile_px, tile_px), NaN where invalid.
    tiles
        int32 (n, 2): column and row on the grid that names the tiles of the edge rule
        (:meth:`TileGrid.naming`).
    window
        int32 (n, 4): row, column, height and width in pixels from the scene's upper-left corner;
        rows and columns of padded tiles may be negative.
    bbox
        float64 (n, 4): west, south, east, north in WGS84 degrees.
    valid_fraction, cloud_fraction
        float32 (n,): share of the pixels that hold data; share of those that are cloud or shadow.
    """

    pixels: Float32
    tiles: Int32
    window: Int32
    bbox: Float64
    valid_fraction: Float32
    cloud_fraction: Float32

    def __len__(self) -> int:
        return len(self.tiles)


def read_tiles(
    scene: Scene,
    grid: TileGrid,
    rules: TileRules,
    *,
    batch_size: int = 64,
    options: StorageOptions | None = None,
    resampling: str = "bilinear",
    counts: TileCounts | None = None,
) -> Iterator[TileBatch]:
    """Stream the tiles of a scene that satisfy the rules, row by row.

    Parameters
    ----------
    scene, grid, rules
        What to read, where, and what to keep.
    batch_size
        Tiles to a batch; the last may have fewer.
    options
        How to reach the files.
    resampling
        For bands whose pixels are not the grid's.
    counts
        Told how many tiles were kept and skipped.

    Yields
    ------
    TileBatch

    Raises
    ------
    SceneError
        A file cannot be opened or read.

    Notes
    -----
    Peak memory is one strip (a row of tiles across the scene, at most 256 MB of values) and one
    batch. Within a strip no TIFF block is decoded twice.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give at least 1")
    counts = counts if counts is not None else TileCounts()
    with SceneReader(scene, grid.pixels, options, resampling) as reader:
        named = grid.naming(rules.edge)
        batch = _Batch(batch_size, reader, named)
        every, pitch = grid.tiles_over(reader.extent, rules.edge), grid.stride_px // named.stride_px
        for tiles in _strips(every, pitch, grid, len(scene.bands)):
            left, top = named.window(*tiles[0].tolist()), named.window(*tiles[-1].tolist())
            block = reader.read(left.union(top))
            valid, cloud = _fractions(block, len(tiles), grid)
            has_data = (valid > 0) & (valid >= rules.min_valid_fraction)
            keep = has_data & (cloud <= rules.max_cloud_fraction)
            counts.kept += int(keep.sum())
            counts.skipped_nodata += int((~has_data).sum())
            counts.skipped_cloud += int((has_data & ~keep).sum())
            for position in np.flatnonzero(keep):
                start = position * grid.stride_px
                values = block.values[:, :, start : start + grid.tile_px]
                batch.add(values, tiles[position], valid[position], cloud[position])
                if batch.is_full:
                    yield batch.take()
        if not batch.is_empty:
            yield batch.take()


class _Batch:
    """Tiles on their way into a batch: one copy of each, from the strip to its place."""

    def __init__(self, size: int, reader: SceneReader, grid: TileGrid) -> None:
        self._size, self._grid, self._extent = size, grid, reader.extent
        self._shape = (len(reader.scene.bands), grid.tile_px, grid.tile_px)
        self._reset()

    def _reset(self) -> None:
        self._pixels = np.empty((self._size, *self._shape), np.float32)
        self._rows: list[tuple[Int32, float, float]] = []

    def add(self, values: Float32, tile: Int32, valid: float, cloud: float) -> None:
        self._pixels[len(self._rows)] = values
        self._rows.append((tile, valid, cloud))

    @property
    def is_full(self) -> bool:
        return len(self._rows) == self._size

    @property
    def is_empty(self) -> bool:
        return not self._rows

    def take(self) -> TileBatch:
        tiles, valid, cloud = (np.array(column) for column in zip(*self._rows, strict=True))
        size = np.full(len(tiles), self._grid.tile_px)
        corner = tiles[:, ::-1] * self._grid.stride_px - (self._extent.row, self._extent.column)
        batch = TileBatch(
            pixels=self._pixels[: len(tiles)],
            tiles=tiles.astype(np.int32),
            window=np.column_stack([corner, size, size]).astype(np.int32),
            bbox=self._grid.bbox_wgs84(tiles),
            valid_fraction=valid.astype(np.float32),
            cloud_fraction=cloud.astype(np.float32),
        )
        self._reset()
        return batch


def _strips(tiles: Int32, pitch: int, grid: TileGrid, bands: int) -> Iterator[Int32]:
    """Split tiles into rows of evenly spaced ones; what breaks the memory bound into pieces.

    ``pitch`` is the distance of two tiles in the columns that count them.
    """
    column_bytes = bands * grid.tile_px * grid.stride_px * np.dtype(np.float32).itemsize
    longest = max(1, _STRIP_BYTES // column_bytes)
    for row in np.unique(tiles[:, 1]):
        whole = tiles[tiles[:, 1] == row]
        for strip in np.split(whole, np.flatnonzero(np.diff(whole[:, 0]) != pitch) + 1):
            for start in range(0, len(strip), longest):
                yield strip[start : start + longest]


def _fractions(block: Block, count: int, grid: TileGrid) -> tuple[Float64, Float64]:
    """Return valid and cloud fraction of each tile of a strip, from running sums of its columns."""
    starts = np.arange(count) * grid.stride_px

    def per_tile(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        running = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=0))])
        sums: npt.NDArray[np.int64] = running[starts + grid.tile_px] - running[starts]
        return sums

    full = grid.tile_px**2
    valid = np.full(count, full) if block.valid.all() else per_tile(block.valid)
    cloud = per_tile(block.cloud) if block.cloud.any() else np.zeros(count)
    return valid / full, cloud / np.maximum(valid, 1)
