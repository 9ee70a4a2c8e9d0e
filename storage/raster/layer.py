"""One GeoTIFF on a pixel grid: as it is where its pixels are the grid's, warped elsewhere."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as FileWindow

from storage.errors import ConfigError, SceneError
from storage.location import Location
from storage.raster.geotiff import alpha_index, named_faults, perimeter, reproject
from storage.raster.pixel_grid import Bool, Float32, PixelGrid, Window
from storage.raster.upsample import Upsample2x
from storage.scene import BandSource

_ALIGNED_PX = 0.05  # pixels that lie this close over a whole file are the same pixels
_ROUNDING_PX = 1e-3
_EXACT_PX = 1e-6  # pixels that lie this close give the numbers of a warp
_BUFFER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetGrid:
    """Grid of a read: file position + ``shift`` (columns, rows) = grid position, in pixels."""

    pixels: PixelGrid
    shift: tuple[float, float]
    resampling: str

    def __post_init__(self) -> None:
        if self.resampling not in Resampling.__members__:
            raise ConfigError(
                f"resampling {self.resampling!r} is unknown; give one of "
                f"{', '.join(sorted(Resampling.__members__))}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaps:
    """What marks the pixels without data in some bands of a file, beside not finite numbers.

    Attributes
    ----------
    nodata
        The number that means "no data"; None for none.
    masks
        Bands, from 1, whose masks count: none, one for all bands, or every band's own.
    alpha
        The alpha band, 0 for none; its pixels of 0 hold no data, partly transparent ones do.
    """

    nodata: float | None = None
    masks: tuple[int, ...] = ()
    alpha: int = 0


class RowReader:
    """Rows of an open file (or VRT) in its own numbers, for windows that move down the file.

    Whole rows of blocks are read and kept until a window is below them, so that no block is decoded
    twice however the windows cut it: the decoder's own cache is too small for wide scenes. Rows of
    blocks that would take more than 256 MB are left to that cache.
    """

    def __init__(
        self, dataset: Any, href: Location, indexes: Sequence[int], gaps: Gaps | None = None
    ) -> None:
        self._dataset, self._href, self._gaps = dataset, href, gaps or Gaps()
        self._indexes = tuple(indexes)
        rows = max(dataset.block_shapes[index - 1][0] for index in indexes)
        pixel_bytes = sum(np.dtype(dataset.dtypes[index - 1]).itemsize for index in indexes)
        # A row of blocks that exceeds the buffer is read in exactly the rows of each window.
        fits = rows * dataset.width * pixel_bytes <= _BUFFER_BYTES
        self._block_rows = rows if fits else 1
        self._columns = slice(0, 0)
        self._first = self._stop = 0
        self._buffer: list[Any] = []

    def read(self, rows: slice, columns: slice) -> tuple[Any, Any]:
        """Return numbers (bands, h, w) and where masks or alpha leave data; not to be written to.

        The second is bool (bands, h, w), None when nothing is masked.

        Raises
        ------
        SceneError
            The file is damaged or can no longer be reached.
        """
        # Only windows that move down in the same columns can reuse decoded rows.
        if columns != self._columns or not self._first <= rows.start <= self._stop:
            self._columns, self._buffer = columns, []
            self._first = self._stop = rows.start
        if rows.stop > self._stop:
            # Up to the end of a row of blocks: GDAL decodes whole blocks anyway.
            until = -(-rows.stop // self._block_rows) * self._block_rows
            until = min(until, self._dataset.height)
            fresh = self._decode(slice(self._stop, until))
            old = [array[:, rows.start - self._first :] for array in self._buffer]
            if old and old[0].shape[1]:
                fresh = [np.concatenate(pair, axis=1) for pair in zip(old, fresh, strict=True)]
            self._first, self._stop, self._buffer = rows.start, until, fresh
        part = slice(rows.start - self._first, rows.stop - self._first)
        raw, *known = (array[:, part] for array in self._buffer)
        return raw, np.broadcast_to(known[0], raw.shape) if known else None

    def _decode(self, rows: slice) -> list[Any]:
        source = FileWindow.from_slices(rows, self._columns)
        masks, alpha = self._gaps.masks, self._gaps.alpha
        known = []
        with named_faults(self._href, f" at rows {rows.start} to {rows.stop}"):
            if masks:
                known.append(self._dataset.read_masks(masks, window=source) != 0)
            raw = self._dataset.read(
                (*self._indexes, alpha) if alpha else self._indexes, window=source
            )
        if alpha:
            known.append(raw[-1:] != 0)
            raw = raw[:-1]
        return [raw, reduce(np.logical_and, known)] if known else [raw]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedRaster:
    """Bands of one open file (or VRT) whose pixels are the grid's pixels within ``window``."""

    reader: RowReader | Upsample2x
    window: Window
    positions: tuple[int, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: Any
    flipped: bool = False

    def read_into(self, values: Float32, window: Window) -> bool:
        """Fill the part of ``values`` (bands, h, w of ``window``) that this file covers.

        Returns
        -------
        True when every pixel of the window holds data in this file.
        """
        shared = window.intersection(self.window)
        if shared is None:
            return False
        rows, columns = shared.slices_in(window)
        raw, known = self._read(shared)
        whole = shared == window
        for band, position in enumerate(self.positions):
            target, numbers = values[position, rows, columns], raw[band]
            # Numbers beyond float32 become infinite, without a warning.
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(target, numbers, casting="unsafe")
            missing = self._missing(numbers, None if known is None else known[band])
            if missing is not None and missing.any():
                np.copyto(target, np.nan, where=missing)
                whole = False
            if self.scales[band] != 1:
                target *= np.float32(self.scales[band])
            if self.offsets[band] != 0:
                target += np.float32(self.offsets[band])
        return whole

    def numbers(self, window: Window) -> tuple[npt.NDArray[Any], Bool]:
        """Return the first band's numbers (h, w), and where they hold data.

        Integers keep their type in a file that is read as it is; a warp gives them as float64 where
        float32 cannot hold them.
        """
        known = np.zeros((window.height, window.width), np.bool_)
        shared = window.intersection(self.window)
        if shared is None:
            return np.zeros(known.shape, np.uint8), known
        rows, columns = shared.slices_in(window)
        raw, masks = self._read(shared)
        numbers = np.zeros(known.shape, raw.dtype)
        numbers[rows, columns] = raw[0]
        missing = self._missing(raw[0], None if masks is None else masks[0])
        known[rows, columns] = True if missing is None else ~missing
        return numbers, known

    def _read(self, shared: Window) -> tuple[Any, Any]:
        """Return the numbers (bands, h, w) of a part of the grid and, if masked, where data is."""
        rows, columns = shared.slices_in(self.window)
        if self.flipped:
            rows = slice(self.window.height - rows.stop, self.window.height - rows.start)
        raw, known = self.reader.read(rows, columns)
        if not self.flipped:
            return raw, known
        return raw[:, ::-1], None if known is None else known[:, ::-1]

    def _missing(self, numbers: Any, known: Any) -> Any:
        """Return the mask of pixels without data, None when every pixel has data."""
        gaps = [] if known is None else [~known]
        if numbers.dtype.kind == "f":
            gaps.append(~np.isfinite(numbers))
        if self.nodata is not None:
            gaps.append(numbers == self.nodata)
        return reduce(np.logical_or, gaps) if gaps else None


def by_nodata(dataset: Any, bands: Sequence[BandSource]) -> list[list[int]]:
    """Group the positions of bands of a file by the nodata that catalog and file state for them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, band in enumerate(bands):
        key = (str(band.nodata), str(dataset.nodatavals[band.index - 1]))
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def gaps_of(dataset: Any, bands: Sequence[BandSource], mapped: Sequence[int]) -> Gaps:
    """Return the marks of the gaps of some bands of an open file.

    Within a file GDAL's order holds: a mask overrules the nodata value and the alpha band. Nodata
    that the catalog states replaces that of the file and counts beside a mask.

    Parameters
    ----------
    dataset
        The open file.
    bands
        Bands of this file, all with the same nodata: a group of :func:`by_nodata`.
    mapped
        All bands of this file that are read as data. An alpha band among them is no alpha.
    """
    indexes = tuple(band.index for band in bands)
    stated, flags = bands[0].nodata, dataset.mask_flag_enums
    own = flags[indexes[0] - 1]
    masks: tuple[int, ...] = ()
    if not all(flags[index - 1] for index in indexes):  # no flag: a mask for each band
        masks = indexes
    elif MaskFlags.per_dataset in own and MaskFlags.alpha not in own:
        of_numbers = MaskFlags.nodata in own  # the pixels with the nodata of all bands
        masks = () if of_numbers and stated is not None else indexes[:1]
    nodata = dataset.nodatavals[indexes[0] - 1] if stated is None else stated
    if nodata is None or math.isnan(nodata) or (masks and stated is None):
        nodata = None
    alpha = alpha_index(dataset)
    return Gaps(nodata=nodata, masks=masks, alpha=0 if masks or alpha in mapped else alpha)


def layer_of(
    files: ExitStack,
    dataset: Any,
    bands: Sequence[BandSource],
    positions: Sequence[int],
    place: TargetGrid,
    gaps: Gaps,
) -> AlignedRaster:
    """Put bands of an open file on the grid; a VRT that this takes is closed with ``files``.

    Parameters
    ----------
    files
        Stack that closes the VRT.
    dataset
        The open file.
    bands
        Bands of this file.
    positions
        Their positions among the bands of the scene.
    place
        The grid.
    gaps
        What marks the gaps of all these bands.
    """
    # The cheapest way first: as it is, doubled by arithmetic, warped.
    corner = pixel_offset(dataset, place.pixels)
    if corner is not None:
        column, row = corner[0] + place.shift[0], corner[1] + place.shift[1]
        if max(abs(column - round(column)), abs(row - round(row))) <= _ALIGNED_PX:
            window = Window(
                column=round(column), row=round(row), width=dataset.width, height=dataset.height
            )
            return plain_layer(dataset, bands, positions, window, gaps, dataset.transform.e > 0)
    return _doubled_layer(dataset, bands, positions, place, gaps) or _warped_layer(
        files, dataset, bands, positions, place, gaps
    )


def plain_layer(
    dataset: Any,
    bands: Sequence[BandSource],
    positions: Sequence[int],
    window: Window,
    gaps: Gaps,
    flipped: bool,
) -> AlignedRaster:
    """Take a file as it is: its pixels are those of ``window``, from the bottom if flipped."""
    indexes = tuple(band.index for band in bands)
    dtype = np.dtype(dataset.dtypes[0])
    own = gaps.nodata is not None and bands[0].nodata is None
    if own and dtype.kind in "iu" and dtype.itemsize == 8:
        # rasterio states nodata as a float, which lacks digits for 64-bit integers; masks do not.
        gaps = replace(gaps, nodata=None, masks=indexes)
    return AlignedRaster(
        reader=RowReader(dataset, bands[0].href, indexes, gaps),
        window=window,
        nodata=_typed(gaps.nodata, dtype),
        flipped=flipped,
        positions=tuple(positions),
        **_numbers(dataset, bands),
    )


def _doubled_layer(
    dataset: Any,
    bands: Sequence[BandSource],
    positions: Sequence[int],
    place: TargetGrid,
    gaps: Gaps,
) -> AlignedRaster | None:
    """Take a file whose pixels cover four of the grid's each; None when it is not such a file."""
    pixels, dtype = place.pixels, np.dtype(dataset.dtypes[0])
    corner = pixel_offset(dataset, replace(pixels, resolution=2 * pixels.resolution))
    smooth = place.resampling == "bilinear"
    # Sums of sixteenths of 16-bit integers are exact in float32; other types would round.
    exact = place.resampling == "nearest" or (dtype.kind in "iu" and dtype.itemsize <= 2)
    wide = min(dataset.width, dataset.height) > 1  # a warp does not interpolate a line of pixels
    known = place.resampling in ("bilinear", "nearest")
    if corner is None or gaps.masks or gaps.alpha or not (exact and wide and known):
        return None
    column, row = (2 * offset + shift for offset, shift in zip(corner, place.shift, strict=True))
    off_px = max(abs(column - round(column)), abs(row - round(row)))
    if off_px > _EXACT_PX or dataset.transform.e > 0:
        return None
    nodata = _typed(gaps.nodata, dtype)
    rows = RowReader(dataset, bands[0].href, [band.index for band in bands])
    return AlignedRaster(
        reader=Upsample2x(
            rows,
            (dataset.height, dataset.width),
            nodata,
            smooth,
            alone=dataset.count == 1,
        ),
        window=Window(
            column=round(column),
            row=round(row),
            width=2 * dataset.width,
            height=2 * dataset.height,
        ),
        nodata=None if smooth else nodata,
        positions=tuple(positions),
        **_numbers(dataset, bands),
    )


def _warped_layer(
    files: ExitStack,
    dataset: Any,
    bands: Sequence[BandSource],
    positions: Sequence[int],
    place: TargetGrid,
    gaps: Gaps,
) -> AlignedRaster:
    href = bands[0].href
    if len(gaps.masks) > 1:
        raise SceneError(
            f"{href} has a mask for each of its bands, and its pixels are not those of the grid: "
            "GDAL does not warp such masks; write one mask or a nodata value"
        )
    window = _window_on(dataset, href, place)
    dtype = np.dtype(dataset.dtypes[0])
    # A type that holds the file's numbers exactly, integers up to 32 bits included.
    wide = np.promote_types(dtype, np.float32)
    # The warper takes numbers close to a nodata value for it. Nearest neighbour mixes no pixels,
    # so its numbers can be compared afterwards.
    mixes = place.resampling != "nearest"
    nodata, alpha = gaps.nodata if mixes else None, gaps.alpha
    if nodata is None and dtype.kind == "f":
        nodata = math.nan
    if gaps.masks and nodata is not None:
        # In a file of one band, a warp heeds a mask or nodata; it heeds nodata and alpha in any.
        dataset = files.enter_context(
            WarpedVRT(dataset, src_nodata=None, src_alpha=-1, add_alpha=True)
        )
        alpha = dataset.count
    vrt = files.enter_context(
        WarpedVRT(
            dataset,
            crs=CRS.from_user_input(place.pixels.crs),
            transform=Affine(
                *place.pixels.affine(window.column - place.shift[0], window.row - place.shift[1])
            ),
            width=window.width,
            height=window.height,
            resampling=Resampling[place.resampling],
            dtype=wide.name,
            nodata=math.nan,
            src_nodata=nodata,
            src_alpha=alpha or -1,  # 0 lets rasterio look for one
            SRC_ALPHA_MAX="1e-30",  # every alpha but 0 is opaque, whatever its type
            UNIFIED_SRC_NODATA="NO",  # bands lack data one by one, not together
        )
    )
    return AlignedRaster(
        reader=RowReader(vrt, href, [band.index for band in bands]),
        window=window,
        nodata=None if mixes else _typed(gaps.nodata, wide),
        positions=tuple(positions),
        **_numbers(dataset, bands),
    )


def _numbers(dataset: Any, bands: Sequence[BandSource]) -> dict[str, Any]:
    """Return scales and offsets of bands; the file's own where the catalog is silent."""
    return {
        "scales": tuple(
            dataset.scales[band.index - 1] if band.scale is None else band.scale for band in bands
        ),
        "offsets": tuple(
            dataset.offsets[band.index - 1]
            if band.offset is None or (band.offset_of_counts and not _holds_counts(dataset, band))
            else band.offset
            for band in bands
        ),
    }


def _holds_counts(dataset: Any, band: BandSource) -> bool:
    """Tell whether a band holds counts: integers that are more than bytes."""
    dtype = np.dtype(dataset.dtypes[band.index - 1])
    return dtype.kind in "iu" and dtype.itemsize > 1


def _typed(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """Return a number in a file's dtype, which compares fast; None if the dtype cannot hold it."""
    if nodata is None or dtype.kind == "f":
        return nodata if nodata is None else dtype.type(nodata)
    limits = np.iinfo(dtype)
    if nodata % 1 != 0 or not limits.min <= nodata <= limits.max:
        return None
    return dtype.type(nodata)


def pixel_offset(dataset: Any, pixels: PixelGrid) -> tuple[float, float] | None:
    """Return a file's upper-left corner in grid pixels; None unless its pixels fit the grid's."""
    t, size = dataset.transform, pixels.resolution
    fits = (
        t.b == t.d == 0
        and abs(t.a / size - 1) * dataset.width <= _ALIGNED_PX
        and abs(abs(t.e) / size - 1) * dataset.height <= _ALIGNED_PX
        and dataset.crs == CRS.from_user_input(pixels.crs)
    )
    if not fits:
        return None
    top = t.f + max(t.e, 0.0) * dataset.height
    return (t.c - pixels.anchor[0]) / size, (pixels.anchor[1] - top) / size


def _window_on(dataset: Any, href: Location, place: TargetGrid) -> Window:
    """Return the window, rounded outwards, that a file of other pixels covers on the grid."""
    pixels = place.pixels
    target = CRS.from_user_input(pixels.crs)
    xs, ys = perimeter(dataset.transform, dataset.width, dataset.height)
    xs, ys = reproject(dataset.crs, target, xs, ys)
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise SceneError(f"{href} lies outside the area of {pixels.crs}; choose another grid CRS")
    if target.is_geographic and np.ptp(xs) > 180 and not dataset.crs.is_geographic:
        raise SceneError(
            f"{href} crosses the antimeridian and cannot be put on a grid in {pixels.crs}; "
            "choose a projected grid CRS, or its native one"
        )
    columns = (xs - pixels.anchor[0]) / pixels.resolution + place.shift[0]
    rows = (pixels.anchor[1] - ys) / pixels.resolution + place.shift[1]
    left, top = (math.floor(v.min() + _ROUNDING_PX) for v in (columns, rows))
    right, bottom = (math.ceil(v.max() - _ROUNDING_PX) for v in (columns, rows))
    return Window(column=left, row=top, width=max(1, right - left), height=max(1, bottom - top))
