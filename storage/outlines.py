"""The ground of tiles: rectangles of a CRS as polygons in WGS84 degrees.

A tile is a square of its grid's CRS, which is turned against the meridians nearly everywhere: its
WGS84 box has more ground than the tile. The corners follow from the description of the grid, which
every archive stores, and the tile's column and row. An edge that bends in degrees gets as many
points as keep it within :data:`TOLERANCE` of its length.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from storage.errors import GridError
from storage.geometry import BBox, Floats, areas, footprints

Shapes = npt.NDArray[np.object_]
Grids = Mapping[str, Mapping[str, Any]]
"""The plain description of each tile grid by its id, as the ledger has it."""

TOLERANCE = 5e-4
"""Most distance between a footprint's edge and the tile's, as a share of the edge."""
_MOST_PARTS = 64
_DESCRIBED = {"crs", "resolution", "tile_px", "stride_px", "anchor"}


def tile_bounds(grid: Mapping[str, Any], tiles: npt.ArrayLike) -> Floats:
    """Return left, bottom, right, top (n, 4) of tiles (n, 2) in units of the grid's CRS.

    Parameters
    ----------
    grid
        The plain description of a grid: resolution, tile_px, stride_px and anchor.
    tiles
        Columns, counted eastwards, and rows, counted southwards.
    """
    starts = np.asarray(tiles, np.float64).reshape(-1, 2) * grid["stride_px"]
    left = grid["anchor"][0] + starts[:, 0] * grid["resolution"]
    top = grid["anchor"][1] - starts[:, 1] * grid["resolution"]
    side = grid["tile_px"] * grid["resolution"]
    return np.stack([left, top - side, left + side, top], axis=1)


def tile_outlines(
    grids: Grids, names: npt.ArrayLike, tiles: npt.ArrayLike, boxes: Floats
) -> Shapes:
    """Return the footprints (n,) of tiles as shapely polygons.

    Parameters
    ----------
    grids
        The known grids.
    names
        Id of each tile's grid (n,).
    tiles
        Column and row of each tile (n, 2).
    boxes
        WGS84 box of each tile (n, 4): its footprint where its grid is not described.

    Raises
    ------
    GridError
        A tile lies outside its CRS.
    """
    found = footprints(boxes)
    for grid, numbers, places, back in _by_grid(grids, names, tiles):
        found[numbers] = outlines(str(grid["crs"]), tile_bounds(grid, places))[back]
    return found


def tile_corners(grids: Grids, names: npt.ArrayLike, tiles: npt.ArrayLike, boxes: Floats) -> Floats:
    """Return longitude and latitude of the corners (n, 4, 2) of tiles, for drawing.

    Parameters
    ----------
    grids, names, tiles, boxes
        As in :func:`tile_outlines`.
    """
    west, south, east, north = boxes.T
    xs = np.stack([west, east, east, west], axis=1)
    ys = np.stack([south, south, north, north], axis=1)
    found = np.stack([xs, ys], axis=2)
    for grid, numbers, places, back in _by_grid(grids, names, tiles):
        ring = _ring(tile_bounds(grid, places), 1)
        lons, lats = project(to_wgs84(str(grid["crs"])), *ring, _outside(str(grid["crs"])))
        found[numbers] = np.stack([lons, lats], axis=2)[back]
    return found


def _by_grid(grids: Grids, names: npt.ArrayLike, tiles: npt.ArrayLike) -> list[Any]:
    """Return the known grids of tiles, the numbers of the tiles, and the distinct tiles."""
    known, places = np.asarray(names, dtype=object), np.asarray(tiles, np.int64).reshape(-1, 2)
    found = []
    for name in sorted(set(known.tolist())):
        if not grids.get(name, {}).keys() >= _DESCRIBED:
            continue
        numbers = np.flatnonzero(known == name)
        codes, back = np.unique((places[numbers] << [32, 0]).sum(axis=1), return_inverse=True)
        distinct = np.stack([(codes + 2**31) >> 32, (codes + 2**31) % 2**32 - 2**31], axis=1)
        found.append((grids[name], numbers, distinct, back))
    return found


def outlines(crs: str, bounds: Floats) -> Shapes:
    """Return rectangles (n, 4) left, bottom, right, top of a CRS as polygons (n,) in degrees.

    Raises
    ------
    GridError
        A rectangle lies outside the CRS.

    Examples
    --------
    >>> shape = outlines("EPSG:32633", np.array([[600000.0, 5400000, 600640, 5400640]]))[0]
    >>> len(shape.exterior.coords), round(shapely.box(*shape.bounds).area / shape.area, 3)
    (5, 1.036)
    """
    parts = _parts(*project(to_wgs84(crs), *_ring(bounds, 2), _outside(crs)))
    shapes = np.empty(len(bounds), dtype=object)
    for count in np.unique(parts).tolist():
        chosen = parts == count
        ring = _ring(bounds[chosen], count)
        shapes[chosen] = areas(*project(to_wgs84(crs), *ring, _outside(crs)))
    return shapes


def hull_outline(grids: Grids, name: str, tiles: npt.ArrayLike, box: BBox) -> Shapes:
    """Return the convex hull, in their grid's CRS, of tiles (n, 2) as one polygon (1,) in degrees.

    Parameters
    ----------
    grids, name, tiles
        The known grids, the id of the tiles' grid, and their columns and rows.
    box
        WGS84 box around the tiles: the result where the grid is not described.

    Raises
    ------
    GridError
        A tile lies outside the CRS.
    """
    grid = grids.get(name, {})
    if not grid.keys() >= _DESCRIBED:
        return footprints(np.array([box]))
    left, bottom, right, top = tile_bounds(grid, tiles).T
    xs, ys = np.r_[left, right, right, left], np.r_[bottom, bottom, top, top]
    # One line has the same hull as its points, and is 20 times faster to make.
    hull = shapely.convex_hull(shapely.linestrings(np.stack([xs, ys], axis=1)))
    step = max(np.ptp(xs), np.ptp(ys)) / 8
    points = shapely.get_coordinates(shapely.segmentize(hull, step))[:-1]
    crs = str(grid["crs"])
    lons, lats = project(to_wgs84(crs), points[:, 0], points[:, 1], _outside(crs))
    return areas(lons[None], lats[None])


def _ring(bounds: Floats, parts: int) -> tuple[Floats, Floats]:
    """Return x and y (n, 4 * parts) around rectangles, anticlockwise from bottom left."""
    left, bottom, right, top = np.asarray(bounds, dtype=np.float64).T[:, :, None]
    along = np.arange(parts) / parts
    low, high = np.zeros(parts), np.ones(parts)
    xs = left + (right - left) * np.concatenate([along, high, 1 - along, low])
    ys = bottom + (top - bottom) * np.concatenate([low, along, high, 1 - along])
    return xs, ys


def _parts(lons: Floats, lats: Floats) -> npt.NDArray[np.int64]:
    """Return the parts (n,) that an edge takes, given corners and middles of edges (n, 8).

    The distance of an edge from its chord falls with the square of the number of parts.
    """
    lons = np.unwrap(lons, period=360, axis=1)
    points = np.stack([lons * np.cos(np.radians(lats.mean(axis=1, keepdims=True))), lats])
    starts, middles = points[:, :, ::2], points[:, :, 1::2]
    ends = np.roll(starts, -1, axis=2)
    off = np.hypot(*(middles - (starts + ends) / 2))
    bend = (off / np.maximum(np.hypot(*(ends - starts)), 1e-12)).max(axis=1)
    parts: npt.NDArray[np.int64] = np.ceil(np.sqrt(bend / TOLERANCE)).astype(np.int64)
    return parts.clip(1, _MOST_PARTS)


def perimeter(left: Any, bottom: Any, right: Any, top: Any, points: int) -> tuple[Any, Any]:
    """Return points along the four edges of boxes, corners twice, edge by edge."""
    along = np.linspace(0.0, 1.0, points)
    low, high = np.zeros_like(along), np.ones_like(along)
    xs = left + (right - left) * np.concatenate([along, high, along, low])
    ys = bottom + (top - bottom) * np.concatenate([low, along, high, along])
    return xs, ys


def project(transformer: Transformer, x: Any, y: Any, message: str) -> tuple[Any, Any]:
    """Transform points.

    Raises
    ------
    GridError
        A point has no place in the other CRS; the error begins with ``message``.
    """
    try:
        x, y = transformer.transform(x, y)
    except ProjError as error:
        raise GridError(f"{message}; check the CRS and the place") from error
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GridError(f"{message}; check the CRS and the place")
    return x, y


@lru_cache(64)
def to_wgs84(crs: str) -> Transformer:
    """Return the transformer from a CRS to longitude and latitude on WGS84."""
    return Transformer.from_crs(CRS.from_user_input(crs), CRS.from_epsg(4326), always_xy=True)


@lru_cache(64)
def from_wgs84(crs: str) -> Transformer:
    """Return the transformer from longitude and latitude on WGS84 to a CRS."""
    return Transformer.from_crs(CRS.from_epsg(4326), CRS.from_user_input(crs), always_xy=True)


def _outside(crs: str) -> str:
    return f"a tile lies outside its CRS {crs}"
