"""Write one GeoTIFF, Cloud Optimized or plain: whole, or block by block in little memory."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import rasterio
from rasterio.shutil import copy as copy_raster
from rasterio.transform import Affine
from rasterio.windows import Window as FileWindow

from storage.location import Location, sha256_of_file

_CACHE_BYTES = 32 * 1024 * 1024


class GeotiffWriter:
    """A GeoTIFF that is written block by block; a context manager.

    It appears at its URI when the context ends without an error, whole or not at all. Until then
    it lies in a temporary folder of this machine.

    Parameters
    ----------
    uri
        The file.
    shape
        Bands, height, width.
    dtype
        Name of the numbers' type.
    crs, transform
        As in :class:`storage.raster.geotiff.RasterInfo`.
    nodata
        The number that means "no data", also in pixels that are never written.
    descriptions
        Names of the bands.
    cog
        Cloud Optimized, with overviews by averaging (nearest for one uint8 band of classes).
    block_px
        Size of the internal tiles; blocks that cover whole ones are cheapest.

    Attributes
    ----------
    sha256
        Digest of the finished file, in hexadecimal digits; empty before.
    """

    def __init__(
        self,
        uri: str | Location,
        shape: tuple[int, int, int],
        dtype: str,
        crs: str,
        transform: Sequence[float],
        *,
        nodata: float | None = None,
        descriptions: Sequence[str] = (),
        cog: bool = True,
        block_px: int = 256,
    ) -> None:
        self._target = Location.of(uri)
        self._cog, self._block_px = cog, block_px
        self._is_classes = shape[0] == 1 and dtype == "uint8"
        self._descriptions = tuple(descriptions)
        self._profile = {
            "driver": "GTiff",
            "count": shape[0],
            "height": shape[1],
            "width": shape[2],
            "dtype": dtype,
            "crs": crs,
            "transform": Affine(*transform[:6]),
            "nodata": nodata,
            "tiled": True,
            "blockxsize": block_px,
            "blockysize": block_px,
            "compress": "deflate",
            "bigtiff": "IF_SAFER",
        }
        self.sha256 = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="skysift-")
            self._folder = Path(stack.enter_context(folder))
            stack.enter_context(rasterio.Env())
            self._dataset = stack.enter_context(
                rasterio.open(self._folder / "plain.tif", "w", **self._profile)
            )
            for index, name in enumerate(self._descriptions, start=1):
                self._dataset.set_band_description(index, name)
            self._stack = stack.pop_all()
        return self

    def write(self, block: npt.NDArray[Any], row: int = 0, column: int = 0) -> None:
        """Write a block (bands, h, w) whose upper-left pixel is at a row and column."""
        height, width = block.shape[1:]
        self._dataset.write(block, window=FileWindow(column, row, width, height))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                self._finish()

    def _finish(self) -> None:
        self._dataset.close()
        finished = self._folder / "plain.tif"
        if self._cog:
            finished = self._folder / "cog.tif"
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
                copy_raster(
                    self._folder / "plain.tif",
                    finished,
                    driver="COG",
                    blocksize=self._block_px,
                    overviews="AUTO",
                    resampling="NEAREST" if self._is_classes else "AVERAGE",
                    compress="deflate",
                    bigtiff="IF_SAFER",
                )
        self.sha256 = sha256_of_file(finished)
        self._target.upload(finished)


def write_geotiff(
    uri: str | Location,
    array: npt.NDArray[Any],
    crs: str,
    transform: Sequence[float],
    *,
    nodata: float | None = None,
    descriptions: Sequence[str] = (),
    cog: bool = True,
    block_px: int = 256,
) -> None:
    """Write an array (bands, height, width) as a GeoTIFF; see :class:`GeotiffWriter`."""
    count, height, width = array.shape
    with GeotiffWriter(
        uri,
        (count, height, width),
        array.dtype.name,
        crs,
        transform,
        nodata=nodata,
        descriptions=descriptions,
        cog=cog,
        block_px=block_px,
    ) as target:
        target.write(array)
