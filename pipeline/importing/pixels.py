"""Pixel embeddings pooled to tiles: the mean vector of the valid pixels of each tile, on Dask.

Tiles lie on the raster's own pixels, so nothing is resampled. A raster is cut into blocks of tiles,
each a scene of the ledger, so that a run that was stopped goes on in the middle of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from pipeline.importing.places import Columns, Float64, PlacedGroup, PlacedRows
from pipeline.importing.spec import ImportSpec, Unusable
from pipeline.runtime.dask import blocks_of, compute
from pipeline.tiles.grid import TileGrid, window_of_bbox
from storage.embeddings.layouts import PixelLayout
from storage.embeddings.rasters import Raster, geotiff_raster, geotiffs, is_zarr, zarr_rasters
from storage.embeddings.table import TABLE_SUFFIXES
from storage.errors import ConfigError
from storage.geometry import BBox
from storage.location import Location
from storage.quarantine import Quarantine
from storage.raster.pixel_grid import Window
from storage.values import json_digest

Float32 = npt.NDArray[np.float32]

_PART_TILES = 128
_BLOCK_PX = 512
_SAMPLED_BLOCKS = 4
_MOST_PARTS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterPart:
    """A block of tiles of a raster."""

    scene_id: str
    fingerprint: str
    raster: Raster
    grid: TileGrid
    window: Window
    min_valid_fraction: float

    @property
    def rows(self) -> int:
        """Rows at most."""
        size = self.grid.tile_px
        return (self.window.width // size) * (self.window.height // size)

    def read(self) -> PlacedRows:
        """Read the pixels and return the mean vector of each tile with enough of them."""
        size = self.grid.tile_px
        blocks = list(blocks_of(self.window, max(_BLOCK_PX // size, 1) * size))
        pool = delayed(_pooled)
        found = compute([pool(self.raster, block, size) for block in blocks])
        means = np.concatenate([mean for mean, _ in found])
        shares = np.concatenate([share for _, share in found])
        tiles = np.concatenate([_tiles(block, size) for block in blocks])
        kept = np.flatnonzero(shares >= self.min_valid_fraction)
        # By rows of tiles, whatever the blocks were.
        kept = kept[np.lexsort((tiles[kept, 0], tiles[kept, 1]))]
        if not len(kept):
            return PlacedRows(groups=())
        count = len(kept)
        window = np.full((count, 4), size, np.int32)
        window[:, :2] = tiles[kept][:, ::-1] * size
        columns: Columns = {
            "embedding": means[kept],
            "tile": tiles[kept],
            "window": window,
            "bbox": self.grid.bbox_wgs84(tiles[kept]),
            "datetime": np.full(count, self.raster.datetime),
            "valid_fraction": shares[kept],
            "cloud_fraction": np.zeros(count, np.float32),
        }
        return PlacedRows(groups=(PlacedGroup(grid=self.grid, columns=columns, row=kept),))


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterHeader:
    """A raster, and how its tiles are made."""

    raster: Raster
    tile_px: int
    min_valid_fraction: float
    bbox: BBox | None = None

    @property
    def place(self) -> Location:
        """The file or group."""
        return self.raster.place

    @property
    def layout(self) -> PixelLayout:
        """How numbers become vectors."""
        return self.raster.layout

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.raster.dimension

    @property
    def grid(self) -> TileGrid:
        """The grid of its tiles."""
        pixels = self.raster.pixels
        return TileGrid(
            crs=pixels.crs,
            resolution=pixels.resolution,
            tile_px=self.tile_px,
            anchor=pixels.anchor,
        )

    @property
    def tiles(self) -> int:
        """Tiles at most."""
        return sum(part.rows for part in self.parts(""))

    @property
    def fingerprint(self) -> str:
        """Changes when the pixels change, or how vectors and tiles are made of them."""
        raster = self.raster
        how = [raster.layout.name, raster.layout.nodata, self.tile_px, self.min_valid_fraction]
        return json_digest([raster.name, raster.revision, str(raster.datetime), how])[:16]

    def parts(self, name: str) -> list[RasterPart]:
        """Return the blocks of tiles that touch the box, if there is one."""
        grid, size = self.grid, self.tile_px * _PART_TILES
        wanted = window_of_bbox(self.raster.pixels, self.bbox) if self.bbox else self.raster.extent
        extent = wanted.intersection(self.raster.extent)
        if extent is None:
            return []
        if extent.width * extent.height > _MOST_PARTS * size * size:
            raise ConfigError(
                f"{self.place} has more than {_MOST_PARTS:,} blocks of {size:,} px; give --bbox, "
                "or larger tiles (--tile-px)"
            )
        return [
            RasterPart(
                scene_id=f"{name}.{column}_{row}",
                fingerprint=self.fingerprint,
                raster=self.raster,
                grid=grid,
                window=_whole_tiles(self.raster.extent, column, row, size, self.tile_px),
                min_valid_fraction=self.min_valid_fraction,
            )
            for row in range(extent.row // size, -(-(extent.row + extent.height) // size))
            for column in range(extent.column // size, -(-(extent.column + extent.width) // size))
        ]

    def sample(self, rows: int) -> Float64:
        """Return mean vectors of tiles of a few blocks, spread over the raster."""
        extent, size = self.raster.extent, self.tile_px
        side = max(_BLOCK_PX // size, 1) * size
        blocks = list(_spread(extent, side, size))
        found = [_pooled(self.raster, block, size) for block in blocks]
        means = np.concatenate([mean[share > 0] for mean, share in found])
        return means[: max(rows, 1)].astype(np.float64)


def is_raster(source: Location) -> bool:
    """Tell whether a source is one of rasters: a Zarr group, or GeoTIFFs and no table."""
    if is_zarr(source):
        return True
    names = [file.uri.lower() for file in source.list()]
    return not any(name.endswith(TABLE_SUFFIXES) for name in names) and bool(geotiffs(source))


def raster_headers(source: Location, spec: ImportSpec) -> Iterator[RasterHeader | Unusable]:
    """Yield the rasters of a source, and the files that are none with the reason."""

    def header(raster: Raster) -> RasterHeader:
        return RasterHeader(
            raster=raster,
            tile_px=spec.tile_px,
            min_valid_fraction=spec.min_valid_fraction,
            bbox=spec.bbox,
        )

    if is_zarr(source):
        yield from map(header, zarr_rasters(source, spec.choice))
        return
    for file in geotiffs(source):
        with Quarantine(str(file)) as fault:
            yield header(geotiff_raster(file, spec.choice))
        if fault:
            yield Unusable(place=file, name=file.stem, reason=fault.reason)


def pooled(vectors: Float32, tile_px: int) -> tuple[Float32, Float32]:
    """Return the mean vector of each tile (n, D), and the share of its pixels with a vector (n,).

    Parameters
    ----------
    vectors
        (D, h, w) of whole tiles; NaN where a pixel has none.
    tile_px
        Side of a tile.

    Examples
    --------
    >>> vectors = np.array([[[1, 3], [np.nan, 5]]], np.float32)
    >>> pooled(vectors, 2)
    (array([[3.]], dtype=float32), array([0.75], dtype=float32))
    """
    bands, height, width = vectors.shape
    shape = (height // tile_px, tile_px, width // tile_px, tile_px)
    valid = np.isfinite(vectors[0])
    counts = valid.reshape(shape).sum(axis=(1, 3), dtype=np.int64).reshape(-1)
    filled = np.where(valid, vectors, np.float32(0)).reshape(bands, *shape)
    # By rows first: sums along the last axis are fast, and few numbers are left.
    sums = filled.sum(axis=4, dtype=np.float32).sum(axis=2, dtype=np.float64)
    means = sums.reshape(bands, -1).T / np.maximum(counts, 1)[:, None]
    return means.astype(np.float32), (counts / tile_px**2).astype(np.float32)


def _pooled(raster: Raster, block: Window, tile_px: int) -> tuple[Float32, Float32]:
    return pooled(raster.read(block), tile_px)


def _tiles(block: Window, size: int) -> npt.NDArray[np.int32]:
    """Return column and row (n, 2) of the tiles of a block, row by row."""
    columns = np.arange(block.column // size, (block.column + block.width) // size)
    rows = np.arange(block.row // size, (block.row + block.height) // size)
    grid = np.meshgrid(columns, rows)
    return np.stack([grid[0].ravel(), grid[1].ravel()], axis=1).astype(np.int32)


def _whole_tiles(extent: Window, column: int, row: int, size: int, tile_px: int) -> Window:
    """Return the window of whole tiles that a block and an extent share."""
    left = max(column * size, extent.column // tile_px * tile_px)
    top = max(row * size, extent.row // tile_px * tile_px)
    right = min((column + 1) * size, -(-(extent.column + extent.width) // tile_px) * tile_px)
    bottom = min((row + 1) * size, -(-(extent.row + extent.height) // tile_px) * tile_px)
    return Window(column=left, row=top, width=right - left, height=bottom - top)


def _spread(extent: Window, side: int, tile_px: int) -> Iterator[Window]:
    """Yield blocks of whole tiles, spread evenly over a window."""
    per_side = int(np.sqrt(_SAMPLED_BLOCKS))
    for down in range(per_side):
        for across in range(per_side):
            column = extent.column + extent.width * (2 * across + 1) // (2 * per_side)
            row = extent.row + extent.height * (2 * down + 1) // (2 * per_side)
            column, row = (at // tile_px * tile_px for at in (column, row))
            yield Window(column=column, row=row, width=side, height=side)
