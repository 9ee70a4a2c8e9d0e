"""Windows and pixel grids, without I/O; :mod:`storage.raster.reader` reads on them."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import GridError

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle of grid pixels: its upper-left pixel and its size."""

    column: int
    row: int
    width: int
    height: int

    def intersection(self, other: "Window") -> "Window | None":
        """Return the common part of two windows, or None when they do not touch.

        Examples
        --------
        >>> a = Window(column=0, row=0, width=4, height=4)
        >>> a.intersection(Window(column=3, row=-2, width=4, height=4))
        Window(column=3, row=0, width=1, height=2)
        """
        column, row = max(self.column, other.column), max(self.row, other.row)
        width = min(self.column + self.width, other.column + other.width) - column
        height = min(self.row + self.height, other.row + other.height) - row
        if width <= 0 or height <= 0:
            return None
        return Window(column=column, row=row, width=width, height=height)

    def union(self, other: "Window") -> "Window":
        """Return the smallest window that holds both."""
        column, row = min(self.column, other.column), min(self.row, other.row)
        width = max(self.column + self.width, other.column + other.width) - column
        height = max(self.row + self.height, other.row + other.height) - row
        return Window(column=column, row=row, width=width, height=height)

    def slices_in(self, outer: "Window") -> tuple[slice, slice]:
        """Return where this window lies in an array (rows, columns) of ``outer``."""
        row, column = self.row - outer.row, self.column - outer.column
        return slice(row, row + self.height), slice(column, column + self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelGrid:
    """Square pixels that cover a CRS from an anchor.

    Pixel (column, row) covers x in ``anchor_x + [column, column + 1] * resolution`` and y in
    ``anchor_y - [row, row + 1] * resolution``: rows grow southwards.
    """

    crs: str
    resolution: float
    anchor: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not (self.resolution > 0 and math.isfinite(self.resolution)):
            raise GridError(f"a grid's resolution is {self.resolution}; give CRS units per pixel")

    def affine(self, column: float, row: float) -> tuple[float, float, float, float, float, float]:
        """Return the transform (a, b, c, d, e, f) of a raster whose corner is at (column, row)."""
        size = self.resolution
        x, y = self.anchor[0] + column * size, self.anchor[1] - row * size
        return size, 0.0, x, 0.0, -size, y


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Pixels of one window of a scene.

    Parameters
    ----------
    values
        float32 (bands, height, width), NaN where a band holds no data.
    valid
        bool (height, width), True where at least one band holds data.
    cloud
        bool (height, width), True where the pixel is valid and the mask says cloud or shadow.
    """

    values: Float32
    valid: Bool
    cloud: Bool
