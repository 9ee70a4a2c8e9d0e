"""Small GeoTIFFs and the scenes of them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from storage.location import Location
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import BandSource, MaskSource, Scene

CRS = "EPSG:32648"
GRID = PixelGrid(crs=CRS, resolution=10.0)
ORIGIN = (362610.0, 1987090.0)  # column 36261, row -198709 of GRID
HOME = Window(column=36261, row=-198709, width=48, height=40)


def tiff(path: Path, array: np.ndarray, **profile: Any) -> str:
    """Write (bands, h, w) with a transform at ORIGIN, unless told otherwise."""
    mask, internal = profile.pop("mask", None), profile.pop("internal", True)
    colorinterp = profile.pop("colorinterp", None)
    scales, offsets = profile.pop("scales", None), profile.pop("offsets", None)
    count, height, width = array.shape
    settings = {
        "driver": "GTiff",
        "crs": CRS,
        "transform": Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]),
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
        "compress": "deflate",
    } | profile
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            path, "w", width=width, height=height, count=count, dtype=array.dtype, **settings
        ) as dataset,
    ):
        if scales:
            dataset.scales, dataset.offsets = scales, offsets
        if colorinterp:
            dataset.colorinterp = colorinterp
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
    return str(path)


def numbers(count: int = 2, height: int = 40, width: int = 48, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(7).integers(0, 200, (count, height, width)).astype(dtype)


def scene(*bands: BandSource, mask: MaskSource | None = None) -> Scene:
    return Scene(id="scene", datetime=datetime(2020, 2, 23, tzinfo=UTC), bands=bands, mask=mask)


def bands(href: str | Location, indexes: Sequence[int], **more: Any) -> list[BandSource]:
    return [BandSource(name=f"b{i}", href=href, index=i, **more) for i in indexes]


def read(made: Scene, window: Window = HOME, pixels: PixelGrid = GRID, **more: Any) -> Any:
    with SceneReader(made, pixels, **more) as reader:
        return reader.read(window)


def warped_truth(values: np.ndarray, grid: PixelGrid, window: Window, **how: Any) -> np.ndarray:
    """Return rasterio's warp of float32 pixels (h, w) at ORIGIN, NaN where missing."""
    out = np.full((window.height, window.width), np.nan, np.float32)
    reproject(
        values.astype(np.float32),
        out,
        src_transform=Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]),
        src_crs=CRS,
        src_nodata=np.nan,
        dst_transform=Affine(*grid.affine(window.column, window.row)),
        dst_crs=grid.crs,
        dst_nodata=np.nan,
        **({"resampling": Resampling.bilinear} | how),
    )
    return out
