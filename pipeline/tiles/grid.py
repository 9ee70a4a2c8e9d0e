"""Grids of tiles that lie still on the ground.

Tiles count from an anchor of the CRS, not from a scene's corner, so two acquisitions of one place
have the same tile keys. :mod:`pipeline.tiles.read` reads the pixels.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import CRS

from pipeline.tiles.spec import Edge, GridSpec
from storage.errors import ConfigError, GridError
from storage.geometry import BBox, around_points, unwrapped
from storage.outlines import from_wgs84, perimeter, project, tile_bounds, to_wgs84
from storage.raster.geotiff import crs_name, inspect, resolution_in
from storage.raster.pixel_grid import PixelGrid, Window
from storage.scene import Scene

Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

MOST_TILES = 2**22
"""Most tiles of a scene; their rows wait in memory until the scene is whole."""
_FARTHEST = 2**31 - 1  # columns and rows are stored as int32
_EDGE_POINTS = 3
_WGS84 = "EPSG:4326"
_ROUNDING_PX = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class TileGrid:
    """Square tiles that cover a CRS, counted from an anchor: columns eastwards, rows southwards.

    Resolution and anchor are rounded to nine significant digits.

    Examples
    --------
    >>> grid = TileGrid(crs="EPSG:32648", resolution=10.0, tile_px=64)
    >>> grid.id, grid.key(566, -3103)
    ('epsg32648-10-64', 'epsg32648-10-64/566/-3103')
    >>> TileGrid.from_dict(grid.to_dict()) == grid
    True
    """

    crs: str
    resolution: float
    tile_px: int
    stride_px: int = 0
    anchor: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        stride_px = self.stride_px or self.tile_px
        if not 1 <= stride_px <= self.tile_px:
            raise GridError(
                f"tiles of {self.tile_px} px at a stride of {stride_px} px leave gaps or do not "
                "advance; give a stride from 1 to the tile's size"
            )
        object.__setattr__(self, "stride_px", stride_px)
        object.__setattr__(self, "resolution", _rounded(self.resolution))
        object.__setattr__(self, "anchor", (_rounded(self.anchor[0]), _rounded(self.anchor[1])))
        if self.crs.lower().startswith("epsg:"):
            object.__setattr__(self, "crs", self.crs.upper())

    @property
    def id(self) -> str:
        """Short name, safe in URLs and paths; equal for equal grids only."""
        crs = self.crs.lower().replace(":", "")
        if not crs.isalnum():
            crs = f"crs{hashlib.sha256(self.crs.encode()).hexdigest()[:8]}"
        parts = [crs, f"{self.resolution:.9g}", str(self.tile_px)]
        if self.stride_px != self.tile_px:
            parts.append(f"s{self.stride_px}")
        if self.anchor != (0.0, 0.0):
            parts.append(f"a{self.anchor[0]:.9g}_{self.anchor[1]:.9g}")
        return "-".join(parts).replace("+", "")

    @property
    def pixels(self) -> PixelGrid:
        """The pixels that the tiles are made of."""
        return PixelGrid(crs=self.crs, resolution=self.resolution, anchor=self.anchor)

    def key(self, column: int, row: int) -> str:
        """Return the identity of a tile: the same for every acquisition of that ground."""
        return f"{self.id}/{column}/{row}"

    def keys(self, tiles: Int32) -> list[str]:
        """Return the keys of tiles, int32 (n, 2) of column and row."""
        prefix = self.id
        return [f"{prefix}/{column}/{row}" for column, row in tiles.tolist()]

    def window(self, column: int, row: int) -> Window:
        """Return the grid pixels of a tile."""
        stride, size = self.stride_px, self.tile_px
        return Window(column=column * stride, row=row * stride, width=size, height=size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"anchor": list(self.anchor)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TileGrid":
        """Return the grid that :meth:`to_dict` described."""
        return TileGrid(**(values | {"anchor": tuple(values["anchor"])}))

    def naming(self, edge: Edge) -> "TileGrid":
        """Return the grid whose columns and rows name the tiles of an edge rule.

        Shifted tiles begin at any pixel, so the grid of stride 1 names them, and with them all
        other tiles of their scene: equal keys still mean equal ground.
        """
        return replace(self, stride_px=1) if edge == "shift" else self

    def tiles_over(self, extent: Window, edge: Edge = "pad") -> Int32:
        """Return the tiles over a window of grid pixels.

        Parameters
        ----------
        extent
            Usually :attr:`storage.raster.reader.SceneReader.extent`.
        edge
            ``pad``: every tile that shares a pixel with the window; ``drop``: tiles wholly within
            the window; ``shift``: these, and tiles moved inwards to the edge for the remainder.

        Returns
        -------
        int32 (n, 2): column and row on :meth:`naming`'s grid, row by row.

        Raises
        ------
        GridError
            The window has more than ``MOST_TILES`` tiles, or they lie too far from the anchor.
        """
        self._check_size(extent, edge)
        columns = self._along(extent.column, extent.width, edge)
        rows = self._along(extent.row, extent.height, edge)
        grid = np.meshgrid(columns, rows)
        return np.stack([grid[0].ravel(), grid[1].ravel()], axis=1)

    def _check_size(self, extent: Window, edge: Edge) -> None:
        """Refuse windows of wrong headers before arrays are made of their tiles."""
        columns = self._span(extent.column, extent.width, edge)
        rows = self._span(extent.row, extent.height, edge)
        count = math.prod(max(stop - first, 0) for first, stop in (columns, rows))
        if count > MOST_TILES:
            raise GridError(
                f"grid {self.id} cuts {extent.width:,} x {extent.height:,} px into {count:,} "
                f"tiles, but a scene may have {MOST_TILES:,}; give a coarser grid.resolution, or "
                "cut the scene into several files"
            )
        unit_px = self.stride_px if edge == "shift" else 1
        farthest = max(map(abs, (*columns, *rows))) * unit_px
        if farthest > _FARTHEST - extent.width - extent.height:
            raise GridError(
                f"the scene lies {farthest:,} columns or rows of grid {self.id} from the grid's "
                f"anchor, and {_FARTHEST:,} can be counted; set grid.anchor near the scenes"
            )

    def _span(self, start: int, length: int, edge: Edge) -> tuple[int, int]:
        """Return the first tile along a side of a window, and the one after the last."""
        size, stride, stop = self.tile_px, self.stride_px, start + length
        if edge == "pad":
            return (start - size) // stride + 1, (stop - 1) // stride + 1
        return -(-start // stride), (stop - size) // stride + 1

    def _along(self, start: int, length: int, edge: Edge) -> Int32:
        within = np.arange(*self._span(start, length, edge), dtype=np.int32)
        if edge != "shift":
            return within
        # The single tile of a scene smaller than a tile begins at the scene's edge.
        ends = np.array([start, max(start + length - self.tile_px, start)], np.int32)
        return np.unique(np.concatenate([ends, within * np.int32(self.stride_px)]))

    def bbox_wgs84(self, tiles: Int32) -> Float64:
        """Return the boxes of tiles in degrees.

        Parameters
        ----------
        tiles
            int32 (n, 2): column and row.

        Returns
        -------
        float64 (n, 4): west, south, east, north; west > east across the antimeridian.

        Raises
        ------
        GridError
            A tile lies outside the area of the CRS.
        """
        left, bottom, right, top = tile_bounds(asdict(self), tiles).T[:, :, None]
        xs, ys = perimeter(left, bottom, right, top, _EDGE_POINTS)
        lons, lats = project(
            to_wgs84(self.crs), xs, ys, f"a tile of grid {self.id} lies outside its CRS"
        )
        boxes = around_points(lons, np.clip(lats, -90, 90))
        for pole in (-90.0, 90.0):
            point = _pole(self.crs, pole)
            if point is not None:
                x, y = point
                inside = ((left <= x) & (x <= right) & (bottom <= y) & (y <= top))[:, 0]
                boxes[inside, 0], boxes[inside, 2] = -180, 180
                boxes[inside, 1 if pole < 0 else 3] = pole
        return boxes


def grid_for_scene(scene: Scene, spec: GridSpec) -> TileGrid:
    """Return the tile grid of a scene; see :func:`pixels_for_scene`.

    Raises
    ------
    SceneError
        The file cannot be opened.
    ConfigError
        The spec's CRS is not a CRS, or the spec states no tile size.
    """
    if spec.tile_px is None:
        raise ConfigError(
            "the grid states no tile size and there is no encoder to take it from; set grid.tile_px"
        )
    pixels = pixels_for_scene(scene, spec)
    return TileGrid(
        crs=pixels.crs,
        resolution=pixels.resolution,
        tile_px=spec.tile_px,
        stride_px=spec.stride_px or spec.tile_px,
        anchor=pixels.anchor,
    )


def encoder_grid(spec: GridSpec | None, tile_px: int, resolution_m: float | None) -> GridSpec:
    """Return a grid whose tile size, and without a spec the resolution, are those of an encoder.

    Raises
    ------
    ConfigError
        The spec's CRS is not a CRS, or has no places on a map.
    """
    spec = spec or GridSpec(resolution=resolution_m or "native")
    grid_crs(spec)  # a wrong one would quarantine every scene
    return replace(spec, tile_px=spec.tile_px or tile_px)


def grid_crs(spec: GridSpec) -> str | None:
    """Return the CRS that a spec states for all scenes; None for the CRS of each scene.

    Raises
    ------
    ConfigError
        The spec's CRS is not a CRS, or has no places on a map.
    """
    if spec.crs == "native":
        return None
    name = crs_name(spec.crs)
    parsed = CRS.from_user_input(name)
    if not (parsed.is_geographic or parsed.is_projected):
        raise ConfigError(
            f"grid.crs {spec.crs} has no places on a map ({parsed.type_name}); give a projected or "
            "geographic CRS such as EPSG:32648"
        )
    return name


def pixels_for_scene(scene: Scene, spec: GridSpec) -> PixelGrid:
    """Return the pixel grid of a scene.

    A CRS or resolution that the spec leaves open is that of the file of the first band.

    Raises
    ------
    SceneError
        The file cannot be opened.
    ConfigError
        The spec's CRS is not a CRS.
    """
    crs = grid_crs(spec)
    resolution = None if spec.resolution == "native" else spec.resolution
    if crs is None or resolution is None:
        info = inspect(scene.bands[0].href)
        crs = crs or info.crs
        resolution = resolution or resolution_in(info, crs)
    return PixelGrid(
        crs=crs,
        resolution=_rounded(resolution),
        anchor=(_rounded(spec.anchor[0]), _rounded(spec.anchor[1])),
    )


def window_of_bbox(pixels: PixelGrid, bbox: BBox) -> Window:
    """Return the window, rounded outwards, that a WGS84 box covers on a pixel grid.

    Raises
    ------
    GridError
        The grid's CRS has no such place.
    """
    west, south, east, north = unwrapped([bbox])[0].tolist()
    lons, lats = perimeter(west, south, east, north, 21)
    xs, ys = project(from_wgs84(pixels.crs), lons, lats, f"box {bbox} is not in {pixels.crs}")
    columns = (xs - pixels.anchor[0]) / pixels.resolution
    rows = (pixels.anchor[1] - ys) / pixels.resolution
    left, top = (math.floor(v.min() + _ROUNDING_PX) for v in (columns, rows))
    right, bottom = (math.ceil(v.max() - _ROUNDING_PX) for v in (columns, rows))
    return Window(column=left, row=top, width=max(1, right - left), height=max(1, bottom - top))


def _rounded(value: float) -> float:
    """Keep nine significant digits, so that equal grids have equal ids."""
    return float(f"{value:.9g}")


@lru_cache(64)
def _pole(crs: str, lat: float) -> tuple[float, float] | None:
    """Return the place of a pole in a CRS; None where the pole is not a single point."""
    if CRS.from_user_input(crs).is_geographic:
        return None
    x, y = from_wgs84(crs).transform([0.0, 90.0, 180.0], [lat] * 3)
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) + np.ptp(y) > 1:
        return None
    return float(x[0]), float(y[0])
