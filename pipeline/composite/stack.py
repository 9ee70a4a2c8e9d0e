"""Many acquisitions on one grid as one lazy Dask array, through odc-stac. The home of odc.

odc-stac plans: which scenes touch which block, which granules make one day, and the graph. The
pixels are read by :class:`storage.raster.reader.SceneReader` behind odc-stac's driver interface, so
that scale, offset, nodata, cloud mask, warping, credentials and the GTiff-only rule are those of
every other reader of scenes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dask.array as da
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.loader.types import FixedCoord, RasterBandMetadata, RasterGroupMetadata
from odc.stac import load
from pyproj import Transformer

from storage.catalog.stac_write import placed_item
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import Scene

_PIXELS = ("pixels", 1)
_DAY, _SCENE = "skysift:day", "skysift:scene"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A scene on a pixel grid: the window that it covers, and the solar day of its acquisition."""

    scene: Scene
    extent: Window
    day: str


def place(scene: Scene, pixels: PixelGrid) -> Placed:
    """Find where a scene lies on a grid, from the headers of its files.

    Raises
    ------
    SceneError
        A file cannot be opened, or the scene has no place on the grid.
    """
    with SceneReader(scene, pixels) as reader:
        extent = reader.extent
    middle = pixels.affine(extent.column + extent.width / 2, extent.row + extent.height / 2)
    to_wgs84 = Transformer.from_crs(pixels.crs, "EPSG:4326", always_xy=True)
    longitude, _ = to_wgs84.transform(middle[2], middle[5])
    day = (scene.datetime + timedelta(hours=longitude / 15)).date()
    return Placed(scene=scene, extent=extent, day=day.isoformat())


def scene_stack(
    placed: Sequence[Placed],
    pixels: PixelGrid,
    window: Window,
    *,
    block_px: int,
) -> da.Array:
    """Return the scenes over a window as a lazy stack, a layer a day.

    Granules of one solar day are one layer: where they overlap, the first that is clear counts.

    Parameters
    ----------
    placed
        At least one scene, all with the same bands.
    pixels
        The grid; scenes of other pixels are warped to it.
    window
        The window to stack.
    block_px
        Largest side of a block; a block holds all days and bands.

    Returns
    -------
    dask.array.Array
        float32 (days, bands, height, width), NaN where invalid or cloudy.
    """
    driver = _SceneDriver(pixels, placed[0].scene.band_names)
    items = []
    for source in placed:
        scene, extent = source.scene, source.extent
        transform = pixels.affine(extent.column, extent.row)
        shape = (extent.height, extent.width)
        name = f"urn:skysift:{scene.id}:{scene.fingerprint}"
        period = (scene.datetime, scene.datetime)
        item = placed_item(scene.id, period, name, pixels.crs, transform, shape)
        item.properties[_DAY] = source.day
        item.extra_fields[_SCENE] = scene
        items.append(item)
    box = GeoBox(
        (window.height, window.width),
        Affine(*pixels.affine(window.column, window.row)),
        pixels.crs,
    )
    loaded = load(
        items,
        bands=["pixels"],
        geobox=box,
        groupby=_DAY,
        driver=driver,
        chunks={"time": -1, "y": block_px, "x": block_px},
    )
    stack: da.Array = loaded["pixels"].data
    return stack


class _SceneDriver:
    """How odc-stac reads scenes: its ``ReaderDriver`` and ``MDParser``, without any state."""

    dask_reader = None
    aux_reader = None

    def __init__(self, pixels: PixelGrid, bands: Sequence[str]) -> None:
        self._pixels, self._bands = pixels, tuple(bands)

    @property
    def md_parser(self) -> "_SceneDriver":
        return self

    def extract(self, item: Any) -> RasterGroupMetadata:
        """Describe every item: one float32 array of all bands."""
        meta = RasterBandMetadata("float32", float("nan"), dims=("band", "y", "x"))
        return RasterGroupMetadata({_PIXELS: meta}, extra_coords=(FixedCoord("band", self._bands),))

    def driver_data(self, item: Any, band_key: Any) -> Scene:
        """Return the scene of an item, for :meth:`open`."""
        scene: Scene = item.extra_fields[_SCENE]
        return scene

    def new_load(self, geobox: GeoBox, *, chunks: Any = None) -> None:
        """Begin a load; nothing is shared within one."""

    def finalise_load(self, load_state: None) -> None:
        """End a load."""

    def capture_env(self) -> dict[str, Any]:
        """Return nothing: every reader sets up its own GDAL environment."""
        return {}

    @contextmanager
    def restore_env(self, env: dict[str, Any], load_state: None) -> Iterator[None]:
        """Do nothing, as :meth:`capture_env`."""
        yield

    def open(self, source: Any, context: None) -> "_BlockReader":
        """Return the reader of one scene; files are opened when a block is read."""
        return _BlockReader(source.driver_data, self._pixels)


@dataclass(frozen=True, slots=True)
class _BlockReader:
    """Reads the blocks of one scene: odc-stac's ``RasterReader``."""

    scene: Scene
    pixels: PixelGrid

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
        """Return where in the block the scene lies, and its pixels there (bands, h, w)."""
        window = self._window(dst_geobox)
        with SceneReader(self.scene, self.pixels) as reader:
            shared = window.intersection(reader.extent)
            if shared is None:
                nothing = np.empty((len(self.scene.bands), 0, 0), np.float32)
                return (slice(0, 0), slice(0, 0)), nothing
            block = reader.read(shared)
        block.values[:, block.cloud] = np.nan
        return shared.slices_in(window), block.values

    def _window(self, box: GeoBox) -> Window:
        size, (left, top) = self.pixels.resolution, self.pixels.anchor
        return Window(
            column=round((box.transform.c - left) / size),
            row=round((top - box.transform.f) / size),
            width=box.shape.x,
            height=box.shape.y,
        )
