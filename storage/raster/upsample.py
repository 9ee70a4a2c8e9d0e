"""Files of pixels twice as large as the grid's, put on it by arithmetic instead of a warp.

Sentinel-2 has such bands beside those of 10 m. The result is that of GDAL's warper bit for bit,
edges and missing pixels included, at a third of its cost: the weights of a bilinear interpolation
are 9, 3, 3 and 1 sixteenths here, so sums of 16-bit numbers are exact in float32.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.raster.pixel_grid import Float32


class Upsample2x:
    """Windows of a file on a grid of half its pixel size; the file's corner is a grid corner.

    Parameters
    ----------
    source
        Reads numbers (bands, h, w) of at most 16 bits by rows and columns of the file.
    shape
        Height and width of the file, in its pixels.
    nodata
        The number that means "no data", in the file's dtype.
    smooth
        Interpolate bilinearly; nearest neighbour otherwise.
    alone
        The file has one band. GDAL's warper then gives no data wherever the nearest pixel of the
        file has none; with more bands it interpolates there from the neighbours.
    """

    def __init__(
        self, source: Any, shape: tuple[int, int], nodata: Any, smooth: bool, alone: bool
    ) -> None:
        self._source, self._nodata, self._smooth, self._alone = source, nodata, smooth, alone
        self._height, self._width = shape

    def read(self, rows: slice, columns: slice) -> tuple[Any, None]:
        """Return values (bands, h, w) of grid rows and columns, counted from the file's corner.

        Float32 with NaN where the warper has none when smooth, else the file's numbers.
        """
        source, crop = zip(_around(rows, self._height), _around(columns, self._width), strict=True)
        raw, _ = self._source.read(*source)
        if self._smooth:
            return self._interpolated(raw)[:, crop[0], crop[1]], None
        return raw.repeat(2, axis=1).repeat(2, axis=2)[:, crop[0], crop[1]], None

    def _interpolated(self, raw: npt.NDArray[Any]) -> Float32:
        missing = None if self._nodata is None else raw == self._nodata
        values = raw.astype(np.float32)
        if missing is None or not missing.any():
            return _doubled(_doubled(values, 1, "edge"), 2, "edge")
        # As GDAL does: missing neighbours count neither in the sum nor in its weight.
        values[missing] = 0
        known = (~missing).astype(np.float32)
        sums, weights = (
            _doubled(_doubled(array, 1, "constant"), 2, "constant") for array in (values, known)
        )
        with np.errstate(invalid="ignore"):
            result: Float32 = sums / weights  # 0 / 0 is NaN: no neighbour has data
        if self._alone:
            result[missing.repeat(2, axis=1).repeat(2, axis=2)] = np.nan
        return result


def _around(rows: slice, length: int) -> tuple[slice, slice]:
    """Return the file's pixels around some of the grid's, and where these lie once doubled.

    Examples
    --------
    >>> _around(slice(5, 9), 100)
    (slice(1, 6, None), slice(3, 7, None))
    """
    first, stop = max(rows.start // 2 - 1, 0), min((rows.stop + 1) // 2 + 1, length)
    return slice(first, stop), slice(rows.start - 2 * first, rows.stop - 2 * first)


def _doubled(array: Float32, axis: int, beyond: Any) -> Float32:
    """Interpolate along an axis: three quarters of a pixel and one of its neighbour."""
    padding = [(int(axis == other),) * 2 for other in range(array.ndim)]
    padded = np.moveaxis(np.pad(array, padding, mode=beyond), axis, 0)
    # 3/4 of the nearer pixel is the pixel less a quarter: one product serves both outputs.
    quarters = padded * np.float32(0.25)
    rest = padded[1:-1] - quarters[1:-1]
    shape = list(array.shape)
    shape[axis] *= 2
    result = np.empty(shape, np.float32)
    along = np.moveaxis(result, axis, 0)
    np.add(rest, quarters[:-2], out=along[0::2])
    np.add(rest, quarters[2:], out=along[1::2])
    return result
