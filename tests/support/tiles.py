"""Tiles found by place, computed by rasterio."""

import math

from rasterio.warp import transform

from pipeline.tiles.grid import TileGrid


def tile_at(grid: TileGrid, lon: float, lat: float) -> tuple[int, int]:
    """Return column and row of the tile that holds a point; the grid's tiles do not overlap."""
    (x,), (y,) = transform("EPSG:4326", grid.crs, [lon], [lat])
    side = grid.tile_px * grid.resolution
    return math.floor((x - grid.anchor[0]) / side), math.floor((grid.anchor[1] - y) / side)
