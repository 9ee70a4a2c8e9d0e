"""Tiles of chips: where on a grid a published chip lies, so that dates of one place share keys.

Chips are squares of a UTM zone. Their corners, projected there, give size and position, and the
grid's tiles have that size and may begin at every pixel (stride 1), so that a tile is the chip,
and the same chip of another date has the same key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj.exceptions import CRSError, ProjError

from pipeline.tiles.grid import TileGrid
from storage.archive.spec import PublishedModel
from storage.embeddings.table import ChipRows
from storage.errors import GridError
from storage.geometry import around_points, centres
from storage.outlines import from_wgs84

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

_PIXELS_A_SIDE = 500
_FAR_PX = 2**31 - 2**20
_TWICE = "the same tile and date twice"
_NO_DIRECTION = "vector equal to the mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedGroup:
    """Rows of one grid in which no tile occurs twice.

    ``columns`` are those of an archive, ``embedding`` with vectors as published; ``row`` (n,) are
    the numbers of the rows in their source.
    """

    grid: TileGrid
    columns: Columns
    row: Int64

    def __len__(self) -> int:
        return len(self.columns["tile"])


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedRows:
    """The rows of a part by groups, the largest first, and rows left out by reason."""

    groups: tuple[PlacedGroup, ...]
    left_out: Mapping[str, Int64] = field(default_factory=dict)


def placed_chips(rows: ChipRows, chip_m: float | None = None) -> PlacedRows:
    """Return the rows of a table with their tiles.

    Parameters
    ----------
    rows
        Chips as polygons, or as centres.
    chip_m
        Side of a chip in metres; needed for centres.

    Raises
    ------
    GridError
        Chips are centres and their side is not known, or a CRS is none.
    """
    lons, lats = rows.corners[..., 0], rows.corners[..., 1]
    boxes = around_points(lons, lats) if len(rows) else np.empty((0, 4))
    zones = _zones(rows.crs, boxes)
    groups: list[PlacedGroup] = []
    twice: list[Int64] = []
    for crs in sorted(set(zones.tolist())):
        chosen = np.flatnonzero(zones == crs)
        x, y = _projected(crs, lons[chosen], lats[chosen])
        grid, tiles = _tiles(crs, x, y, chip_m)
        ordinal, repeated = _occurrences(tiles, rows.datetime[chosen])
        twice.append(rows.row[chosen[repeated]])
        whole = boxes[chosen] if x.shape[1] > 1 else grid.bbox_wgs84(tiles)
        for number in range(int(ordinal.max(initial=0)) + 1):
            part = np.flatnonzero((ordinal == number) & ~repeated)
            groups.append(_group(rows, chosen[part], grid, tiles[part], whole[part]))
    groups.sort(key=len, reverse=True)
    left_out = dict(rows.left_out)
    if sum(map(len, twice)):
        left_out[_TWICE] = np.sort(np.concatenate(twice))
    return PlacedRows(groups=tuple(groups), left_out=left_out)


def _group(
    rows: ChipRows, chosen: Int64, grid: TileGrid, tiles: Int32, boxes: Float64
) -> PlacedGroup:
    whole: Any = slice(None) if len(chosen) == len(rows) else chosen
    count, side = len(chosen), grid.tile_px
    window = np.empty((count, 4), np.int32)
    window[:, :2], window[:, 2:] = tiles[:, ::-1], side
    columns: Columns = {
        "embedding": rows.vectors[whole],
        "tile": tiles,
        "window": window,
        "bbox": boxes,
        "datetime": rows.datetime[whole],
        "valid_fraction": np.ones(count, np.float32),
        "cloud_fraction": rows.cloud[whole],
    }
    return PlacedGroup(grid=grid, columns=columns, row=rows.row[whole])


def _zones(stated: npt.NDArray[np.object_], boxes: Float64) -> npt.NDArray[np.object_]:
    """Return the CRS of each chip: the stated one, else the UTM zone of its centre."""
    zones = stated.copy()
    missing = np.flatnonzero(zones == "")
    if len(missing):
        lons, lats = centres(boxes[missing]).T
        numbers = np.minimum((lons + 180) // 6 + 1, 60).astype(np.int64)
        codes = np.where(lats >= 0, 32600, 32700) + numbers
        zones[missing] = [f"EPSG:{code}" for code in codes.tolist()]
    return zones


def _projected(crs: str, lons: Float64, lats: Float64) -> tuple[Float64, Float64]:
    try:
        x, y = from_wgs84(crs).transform(lons, lats)
    except (CRSError, ProjError) as error:
        raise GridError(f"chips are said to lie in {crs}, which is no CRS for them") from error
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GridError(f"chips are said to lie in {crs}, but some lie outside its area")
    return np.asarray(x), np.asarray(y)


def _tiles(crs: str, x: Float64, y: Float64, chip_m: float | None) -> tuple[TileGrid, Int32]:
    """Return the grid of chips with corners (n, m) in its CRS, and their tiles (n, 2)."""
    left, right, bottom, top = x.min(1), x.max(1), y.min(1), y.max(1)
    if x.shape[1] == 1:
        if chip_m is None:
            raise GridError("chips are given by their centres; state their side: --chip-m METRES")
        side = float(chip_m)
        left, top = left - side / 2, top + side / 2
    else:
        side = float(np.median(np.maximum(right - left, top - bottom)))
    if not side > 0:
        raise GridError("chips have no area; state their side: --chip-m METRES")
    resolution = _round_number(side / _PIXELS_A_SIDE)
    anchor = (_shared_offset(left, resolution), _shared_offset(top, resolution))
    grid = TileGrid(
        crs=crs,
        resolution=resolution,
        tile_px=max(round(side / resolution), 1),
        stride_px=1,
        anchor=anchor,
    )
    starts = np.stack([left - anchor[0], anchor[1] - top], axis=1) / resolution
    # Corners of half or quarter pixels are common; they shall not fall to either side by rounding.
    tiles = np.floor(starts + 0.5 + 0.07)
    if np.abs(tiles).max(initial=0) > _FAR_PX:
        raise GridError(f"chips of {side:g} m lie too far from the origin of {crs}")
    return grid, tiles.astype(np.int32)


def _round_number(value: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20 ... (or .1, .2, .5 ...) that is not above a value.

    Examples
    --------
    >>> [_round_number(value) for value in (10.24, 0.64, 7.68)]
    [10.0, 0.5, 5.0]
    """
    power = 10.0 ** np.floor(np.log10(value))
    return float(f"{max(step for step in (1, 2, 5) if step * power <= value) * power:.3g}")


def _shared_offset(positions: Float64, step: float) -> float:
    """Return the offset from whole steps that all positions share; 0 when they share none.

    Examples
    --------
    >>> _shared_offset(np.array([5.0, 15.0001, 24.9999]), 10.0)
    5.0
    >>> _shared_offset(np.array([5.0, 11.0]), 10.0)
    0.0
    """
    if not len(positions):
        return 0.0
    first = round(float(positions[0]) / step * 100) % 100 / 100 * step
    away = np.abs((positions - first + step / 2) % step - step / 2)
    return float(f"{first:.9g}") if (away < step / 20).all() else 0.0


def _occurrences(tiles: Int32, moments: npt.NDArray[Any]) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Return for each row how many distinct earlier dates of its tile there are, and repeats.

    Examples
    --------
    >>> tiles = np.array([[0, 0], [0, 1], [0, 0], [0, 0]], np.int32)
    >>> ordinal, repeated = _occurrences(tiles, np.array([5, 5, 7, 5]))
    >>> ordinal.tolist(), repeated.tolist()
    ([0, 0, 1, 0], [False, False, False, True])
    """
    keys = (tiles[:, 0].astype(np.int64) << 32) + tiles[:, 1].astype(np.int64)
    times = np.asarray(moments).astype(np.int64)
    order = np.lexsort((np.arange(len(keys)), times, keys))
    new_tile = np.diff(keys[order], prepend=keys[order[:1]] - 1) != 0
    new_date = new_tile | (np.diff(times[order], prepend=times[order[:1]] - 1) != 0)
    dates = np.cumsum(new_date)
    first = np.maximum.accumulate(np.where(new_tile, dates, 0))
    ordinal, repeated = np.empty(len(keys), np.int64), np.empty(len(keys), np.bool_)
    ordinal[order], repeated[order] = dates - first, ~new_date
    return ordinal, repeated


def with_unit_vectors(placed: PlacedRows, model: PublishedModel) -> PlacedRows:
    """Return rows with vectors as an archive stores them; rows without a direction are left out.

    The vectors are changed in place.
    """
    groups, lost = [], []
    for group in placed.groups:
        vectors = group.columns["embedding"]
        model.unit_vectors(vectors, out=vectors)
        columns = {**group.columns, "embedding": vectors}
        sound = np.isfinite(vectors[:, 0])
        if not sound.all():
            lost.append(group.row[~sound])
            columns = {name: values[sound] for name, values in columns.items()}
        groups.append(PlacedGroup(grid=group.grid, columns=columns, row=group.row[sound]))
    more = {_NO_DIRECTION: np.sort(np.concatenate(lost))} if lost else {}
    return PlacedRows(groups=tuple(groups), left_out={**placed.left_out, **more})
