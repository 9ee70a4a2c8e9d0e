"""Read the bands of a scene on a pixel grid; read class rasters.

A :class:`SceneReader` puts the bands of a scene, whatever files and resolutions they come in, on
one :class:`PixelGrid`. Windows come from :mod:`pipeline.tiles.read`, scenes from
:mod:`storage.catalog.read`; :mod:`storage.raster.geotiff` opens one file,
:mod:`storage.raster.picture` reads pictures.

Notes
-----
Files whose pixels are the grid's pixels (same CRS and size) are read as they are, bit for bit. If
such a scene sits between the grid's pixels, it moves as a whole, all bands and the mask, by at most
half a pixel: cheaper than resampling, without loss, and less than the error of the sensors.
Bands of exactly twice the pixel size are interpolated by :mod:`storage.raster.upsample`, to the
numbers that a warp gives; everything else goes through one WarpedVRT per file.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from storage.errors import SceneError
from storage.location import Location
from storage.raster.geotiff import (
    environment,
    named_faults,
    opened,
    raster_info,
    resolution_in,
)
from storage.raster.layer import (
    AlignedRaster,
    TargetGrid,
    by_nodata,
    gaps_of,
    layer_of,
    pixel_offset,
)
from storage.raster.pixel_grid import Block, Bool, PixelGrid, Window
from storage.scene import BandSource, MaskSource, Scene

_ALIGNED_PX = 0.05  # pixels that lie this close over a whole file are the same pixels
_ROUNDING_PX = 1e-3
_NO_NODATA = math.nan
_WHOLE_LIMIT = 2.0**53  # a float64 holds every whole number below


class SceneReader:
    """The bands and the cloud mask of a scene on one pixel grid; a context manager.

    Its files stay open until the block ends. ``extent`` is the scene's window on the grid, rounded
    outwards; ``holds_bytes`` says that all bands are stored as bytes, without scale and offset. An
    instance belongs to one thread.

    Parameters
    ----------
    scene
        The scene to read.
    pixels
        The grid to read it on.
    resampling
        How rasterio interpolates bands whose pixels are not the grid's; the mask is always read by
        nearest neighbour.
    overviews
        Read bands from the coarsest overview that is no coarser than the grid: much less to read
        for previews and statistics, at whatever the file's maker reduced it with. The mask is
        never read from overviews.

    Raises
    ------
    SceneError
        A file cannot be opened or lacks a band.
    """

    def __init__(
        self,
        scene: Scene,
        pixels: PixelGrid,
        resampling: str = "bilinear",
        overviews: bool = False,
    ) -> None:
        self.scene = scene
        self.pixels = pixels
        self._overviews = overviews
        self._steps: list[float] = []
        local = any(place.is_local for place in scene.hrefs)
        self._environment = environment(_common_place(scene), sidecars=local)
        with ExitStack() as files, self._environment:
            self._files = files
            self._layers, self._mask = self._open(resampling)
            self._files = files.pop_all()  # they stay open only if all of them opened
        extent = self._layers[0].window
        for layer in self._layers[1:]:
            extent = extent.union(layer.window)
        self.extent: Window = extent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()

    def read(self, window: Window) -> Block:
        """Read one window of the grid; pixels outside the scene are invalid.

        Raises
        ------
        SceneError
            A file is damaged or can no longer be reached.
        """
        shape = (window.height, window.width)
        values = np.empty((len(self.scene.bands), *shape), np.float32)
        # Layers write where they cover the window; the fill is skipped when all cover it whole.
        if any(window.intersection(layer.window) != window for layer in self._layers):
            values.fill(np.nan)
        cloud = np.zeros(shape, np.bool_)
        with self._environment:
            whole = [layer.read_into(values, window) for layer in self._layers]
            if self._mask is not None and self.scene.mask is not None:
                cloud = _is_cloud(
                    *_exact(self._mask, window, self.scene.mask.href), self.scene.mask
                )
        valid = np.ones(shape, np.bool_)
        if not any(whole):  # else one band holds data everywhere
            valid = np.logical_not(np.isnan(values).all(axis=0))
        return Block(values=values, valid=valid, cloud=cloud & valid)

    def file_pixels(self, window: Window) -> int:
        """Estimate the pixels of files, those of the mask included, behind a window of the grid."""
        shared = window.intersection(self.extent)
        area = 0 if shared is None else shared.width * shared.height
        return round(sum(area * max(step, 1) ** 2 for step in self._steps))

    def _open(self, resampling: str) -> tuple[list[AlignedRaster], AlignedRaster | None]:
        files: dict[Location, list[int]] = {}
        for position, band in enumerate(self.scene.bands):
            files.setdefault(band.href, []).append(position)
        opened = [
            (self._bands_of(href, [self.scene.bands[p].index for p in positions]), positions)
            for href, positions in files.items()
        ]
        self._check_numbers(opened)
        self.holds_bytes = all(
            _is_byte(dataset, self.scene.bands[p])
            for dataset, positions in opened
            for p in positions
        )
        corners = (pixel_offset(dataset, self.pixels) for dataset, _ in opened)
        # All bands move by the shift of the first aligned file, so that they stay together.
        shift = next(
            ((round(c) - c, round(r) - r) for c, r in (x for x in corners if x is not None)),
            (0.0, 0.0),
        )
        place = TargetGrid(pixels=self.pixels, shift=shift, resampling=resampling)
        layers = [
            layer
            for dataset, positions in opened
            for layer in self._layers_of(dataset, positions, place)
        ]
        mask = self.scene.mask
        if mask is None:
            return layers, None
        dataset = self._dataset(mask.href, [mask.index])
        if self._overviews:
            self._steps.append(self._step_of(dataset))
        source = BandSource(
            name="cloud mask",
            href=mask.href,
            index=mask.index,
            scale=1.0,
            offset=0.0,
            nodata=_NO_NODATA,
        )
        place = replace(place, resampling="nearest")
        gaps = gaps_of(dataset, [source], self._mapped(mask.href))
        return layers, layer_of(self._files, dataset, [source], [0], place, gaps)

    def _layers_of(
        self, dataset: Any, positions: Sequence[int], place: TargetGrid
    ) -> list[AlignedRaster]:
        """Put the bands of one file on the grid, together where they have the same nodata."""
        bands = [self.scene.bands[position] for position in positions]
        mapped = self._mapped(bands[0].href)
        layers = []
        with named_faults(bands[0].href):
            for group in by_nodata(dataset, bands):
                sources = [bands[i] for i in group]
                gaps = gaps_of(dataset, sources, mapped)
                places = [positions[i] for i in group]
                layers.append(layer_of(self._files, dataset, sources, places, place, gaps))
        return layers

    def _mapped(self, href: Location) -> list[int]:
        """Return the bands of a file that the scene reads as data or as cloud mask."""
        masks = () if self.scene.mask is None else (self.scene.mask,)
        return [part.index for part in (*self.scene.bands, *masks) if part.href == href]

    def _check_numbers(self, opened: Sequence[tuple[Any, list[int]]]) -> None:
        """Refuse bands whose numbers cannot mean the same: bytes, counts and reals, unscaled."""
        found: dict[tuple[Any, ...], str] = {}
        for dataset, positions in opened:
            for band in (self.scene.bands[position] for position in positions):
                dtype = np.dtype(dataset.dtypes[band.index - 1])
                if band.scale is None and dataset.scales[band.index - 1] == 1:
                    kind = ("real",) if dtype.kind == "f" else ("whole", dtype.itemsize == 1)
                    found.setdefault(kind, f"{band.name} {dtype.name}")
        if len(found) > 1:
            raise SceneError(
                f"scene {self.scene.id} mixes number types without a scale: "
                f"{', '.join(found.values())}; state each band's scale in the catalog or the recipe"
            )

    def _bands_of(self, href: Location, indexes: Sequence[int]) -> Any:
        """Open the file of some bands, or its overview that suits the grid."""
        dataset = self._dataset(href, indexes)
        if not self._overviews:
            return dataset
        step, factors = self._step_of(dataset), dataset.overviews(indexes[0])
        fine = [level for level, factor in enumerate(factors) if factor <= step * (1 + 1e-6)]
        self._steps.append(step / factors[fine[-1]] if fine else step)
        return self._dataset(href, indexes, fine[-1]) if fine else dataset

    def _step_of(self, dataset: Any) -> float:
        """Return how many pixels of a file a side of a pixel of the grid has."""
        return self.pixels.resolution / resolution_in(raster_info(dataset), self.pixels.crs)

    def _dataset(self, href: Location, indexes: Sequence[int], overview: int | None = None) -> Any:
        dataset = self._files.enter_context(opened(href, overview=overview))
        for index in indexes:
            if not 1 <= index <= dataset.count:
                names = ", ".join(name for name in dataset.descriptions if name) or "unnamed"
                raise SceneError(
                    f"scene {self.scene.id}: {href} has {dataset.count} band(s) ({names}), "
                    f"but band number {index} was requested; correct the recipe's band mapping"
                )
        return dataset


def read_categorical(
    href: str | Location, pixels: PixelGrid, window: Window
) -> tuple[npt.NDArray[Any], Bool]:
    """Read one window of a class raster on a grid, by nearest neighbour.

    Returns
    -------
    numbers
        (height, width): the classes, exact; 0 where there are none.
    known
        bool (height, width): False outside the raster and where it has no data.

    Raises
    ------
    SceneError
        The raster cannot be read, or has numbers beyond 2**53 that would have to be warped.
    """
    file = Location.of(href)
    with environment(file), ExitStack() as files:
        dataset = files.enter_context(opened(file))
        band = BandSource(name="class", href=file, scale=1.0, offset=0.0)
        place = TargetGrid(pixels=pixels, shift=(0.0, 0.0), resampling="nearest")
        gaps = gaps_of(dataset, [band], [1])
        return _exact(layer_of(files, dataset, [band], [0], place, gaps), window, file)


def _is_byte(dataset: Any, band: BandSource) -> bool:
    place = band.index - 1
    scale = dataset.scales[place] if band.scale is None else band.scale
    offset = dataset.offsets[place] if band.offset is None else band.offset
    return (dataset.dtypes[place], scale, offset) == ("uint8", 1, 0)


def _common_place(scene: Scene) -> Location:
    """Return a file of a scene whose options reach all files of the scene.

    GDAL has one configuration at a time, and a window is read from all files.
    """
    places = [Location.of(href) for href in scene.hrefs]
    remote = [place for place in places if not place.is_local]
    if len({place.options for place in remote}) > 1:
        raise SceneError(
            f"scene {scene.id} has files that different storage options reach "
            f"({', '.join(map(str, remote))}); give all of them the same options"
        )
    return (remote or places)[0]


def _exact(layer: AlignedRaster, window: Window, href: Location) -> tuple[npt.NDArray[Any], Bool]:
    """Return the classes or flags of a window and where it has some, 0 elsewhere."""
    numbers, known = layer.numbers(window)
    numbers[~known] = 0
    if numbers.dtype.kind == "f" and np.abs(numbers).max(initial=0) >= _WHOLE_LIMIT:
        raise SceneError(
            f"{href} has classes or flags beyond 2**53, which a warp would round; "
            "put the file on the grid of the bands first"
        )
    return numbers, known


def _is_cloud(numbers: npt.NDArray[Any], known: Bool, mask: MaskSource) -> Bool:
    cloud = np.zeros(known.shape, np.bool_)
    for value in mask.cloud_values:
        cloud |= numbers == value
    if mask.cloud_bits:
        whole = numbers.astype(np.int64) if numbers.dtype.kind == "f" else numbers
        bits = sum(1 << bit for bit in mask.cloud_bits)
        cloud |= whole.astype(np.uint64) & np.uint64(bits) != 0
    return cloud & known
