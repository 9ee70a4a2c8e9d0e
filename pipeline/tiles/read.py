"""The tiles of a scene and their pixels, streamed. Pure kernels: no Ray.

:class:`~pipeline.tiles.grid.TileGrid` defines where tiles lie; :func:`read_tiles` reads the tiles
of a scene that satisfy the rules, one strip (a row of tiles across the scene) at a time.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.tiles.grid import Float64, Int32, TileGrid
from pipeline.tiles.spec import TileRules
from storage.errors import ConfigError
from storage.quarantine import Quarantine
from storage.raster.geotiff import raster_revision
from storage.raster.pixel_grid import Block, Bool, Float32, Window
from storage.raster.reader import SceneReader
from storage.scene import Scene

T = TypeVar("T")

_STRIP_BYTES = 256 * 1024 * 1024
_READERS = 16


def read_each(
    scenes: Sequence[Scene], read: Callable[[Scene], T]
) -> Iterator[tuple[Scene, T | Quarantine]]:
    """Read something of many scenes, such as headers, in threads; yield in the order of scenes.

    A scene that cannot be read yields its fault in place of a result.
    """

    def attempt(scene: Scene) -> tuple[Scene, T | Quarantine]:
        with Quarantine(f"scene {scene.id}") as fault:
            return scene, read(scene)
        return scene, fault

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(attempt, scenes)


def local_revision(scene: Scene) -> str:
    """Return 16 hexadecimal digits that change when a local file of a scene is replaced.

    Sizes and times of modification tell. The text is empty for a scene without local files: an
    object store would take a request for each file.
    """
    revisions = [raster_revision(file) for file in scene.hrefs if file.is_local]
    return hashlib.sha256(" ".join(revisions).encode()).hexdigest()[:16] if revisions else ""


def count_tiles(scene: Scene, grid: TileGrid, rules: TileRules) -> int:
    """Return how many tiles a scene has at most: before any is skipped for nodata or cloud.

    Raises
    ------
    SceneError
        A file of the scene cannot be opened.
    """
    with SceneReader(scene, grid.pixels) as reader:
        return len(grid.tiles_over(reader.extent, rules.edge))


@dataclass(kw_only=True, slots=True)
class TileCounts:
    """Counts of a scene's tiles by outcome; :func:`read_tiles` adds to them as it reads."""

    kept: int = 0
    skipped_nodata: int = 0
    skipped_cloud: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TileBatch:
    """At least one tile of one scene.

    Parameters
    ----------
    pixels
        float32 (n, bands, tile_px, tile_px), NaN where invalid; may be a strided view. Overlapping
        tiles share memory: copy before writing.
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

    def only(self, which: slice | Bool) -> "TileBatch":
        """Return some of the tiles; without a copy where that is all of them or a slice."""
        if not isinstance(which, slice) and which.all():
            return self
        return TileBatch(**{part.name: getattr(self, part.name)[which] for part in fields(self)})


def read_tiles(
    scene: Scene,
    grid: TileGrid,
    rules: TileRules,
    *,
    batch_size: int = 64,
    resampling: str = "bilinear",
    counts: TileCounts | None = None,
) -> Iterator[TileBatch]:
    """Stream the tiles of a scene that satisfy the rules, row by row.

    Parameters
    ----------
    scene, grid, rules
        The scene, the tiles to cut it into, and the rules for keeping them.
    batch_size
        Tiles to a batch at most; all but the last hold more than half as many.
    resampling
        For bands whose pixels are not the grid's.
    counts
        Receives the numbers of tiles kept and skipped.

    Yields
    ------
    TileBatch

    Raises
    ------
    SceneError
        A file cannot be opened or read.

    Notes
    -----
    Peak memory is two strips (rows of tiles across the scene, each at most 256 MB of values), one
    batch and one row of the files' blocks. Tiles of a strip are views of it, not copies, unless
    some are skipped or short strips are put together. No TIFF block is decoded twice, save where
    a row of tiles is cut because of the bound.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give at least 1")
    counts = counts if counts is not None else TileCounts()
    waiting: list[TileBatch] = []
    with SceneReader(scene, grid.pixels, resampling=resampling) as reader:
        named = grid.naming(rules.edge)
        every, pitch = grid.tiles_over(reader.extent, rules.edge), grid.stride_px // named.stride_px
        for tiles in _strips(every, pitch, grid, len(scene.bands)):
            # One read per strip: neighbours share TIFF blocks, which would be decoded again for
            # each tile. The strip spans its first to its last tile, gaps included.
            left, right = named.window(*tiles[0].tolist()), named.window(*tiles[-1].tolist())
            block = reader.read(left.union(right))
            valid, cloud = _fractions(block, len(tiles), grid)
            has_data = (valid > 0) & (valid >= rules.min_valid_fraction)
            keep = has_data & (cloud <= rules.max_cloud_fraction)
            counts.kept += int(keep.sum())
            counts.skipped_nodata += int((~has_data).sum())
            counts.skipped_cloud += int((has_data & ~keep).sum())
            if not keep.any():
                continue
            # A view: pixels are copied only below, for tiles that are kept and short strips.
            # Nothing writes to it, but torch warns of arrays that it may not write to.
            views = sliding_window_view(block.values, grid.tile_px, axis=2, writeable=True)
            pixels = views[:, :, :: grid.stride_px].transpose(2, 0, 1, 3)
            strip = _described(pixels, tiles, named, reader.extent, valid, cloud)
            # Equal parts waste less than full batches and a small rest; short parts of several
            # strips share a batch.
            for part in _parts(strip.only(keep), batch_size):
                if sum(map(len, waiting)) + len(part) > batch_size:
                    yield _joined(waiting)
                    waiting = []
                waiting.append(part)
    if waiting:
        yield _joined(waiting)


def _described(
    pixels: Float32, tiles: Int32, named: TileGrid, extent: Window, valid: Float64, cloud: Float64
) -> TileBatch:
    size = np.full(len(tiles), named.tile_px)
    # Far from the anchor, pixels are counted beyond int32, where tiles are not.
    corner = tiles[:, ::-1].astype(np.int64) * named.stride_px - (extent.row, extent.column)
    return TileBatch(
        pixels=pixels,
        tiles=tiles.astype(np.int32),
        window=np.column_stack([corner, size, size]).astype(np.int32),
        bbox=named.bbox_wgs84(tiles),
        valid_fraction=valid.astype(np.float32),
        cloud_fraction=cloud.astype(np.float32),
    )


def _parts(strip: TileBatch, batch_size: int) -> Iterator[TileBatch]:
    """Cut a strip into parts of nearly equal length, none longer than a batch."""
    count = -(-len(strip) // batch_size)
    for start, stop in pairwise(len(strip) * part // count for part in range(count + 1)):
        yield strip.only(slice(start, stop))


def _joined(parts: list[TileBatch]) -> TileBatch:
    """Join parts; a single part is returned without a copy."""
    if len(parts) == 1:
        return parts[0]
    return TileBatch(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(TileBatch)
        }
    )


def _strips(tiles: Int32, pitch: int, grid: TileGrid, bands: int) -> Iterator[Int32]:
    """Split tiles into strips: rows of evenly spaced tiles within the memory bound.

    ``pitch`` is the distance of two neighbouring tiles, in the columns that count tiles. Strips of
    the same columns follow each other downwards, in the order of the files' blocks.
    """
    column_bytes = bands * grid.tile_px * grid.stride_px * np.dtype(np.float32).itemsize
    longest = max(1, _STRIP_BYTES // column_bytes)
    columns = np.unique(tiles[:, 0])
    # The tiles form a full rectangle. Tiles shifted inwards to an edge break the even spacing, and
    # a view with one stride needs even spacing, so they make strips of their own.
    for even in np.split(np.arange(len(columns)), np.flatnonzero(np.diff(columns) != pitch) + 1):
        for start in range(0, len(even), longest):
            yield from tiles.reshape(-1, len(columns), 2)[:, even[start : start + longest]]


def _fractions(block: Block, count: int, grid: TileGrid) -> tuple[Float64, Float64]:
    """Return valid and cloud fraction of each tile of a strip, from running sums of its columns."""
    # Overlapping tiles count each pixel once per strip, not once per tile.
    starts = np.arange(count) * grid.stride_px

    def per_tile(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        running = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=0))])
        sums: npt.NDArray[np.int64] = running[starts + grid.tile_px] - running[starts]
        return sums

    full = grid.tile_px**2
    valid = np.full(count, full) if block.valid.all() else per_tile(block.valid)
    cloud = per_tile(block.cloud) if block.cloud.any() else np.zeros(count)
    return valid / full, cloud / np.maximum(valid, 1)
