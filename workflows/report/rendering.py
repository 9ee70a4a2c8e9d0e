"""Images of tiles for people, drawn from the files of their scenes.

:mod:`workflows.report.colours` decides about bands and brightness.
"""

import base64
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.tiles.grid import TileGrid
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset, evenly
from storage.errors import NotFoundError
from storage.quarantine import Quarantine
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import Scene
from workflows.report.colours import (
    BYTES,
    LIGHT_GREY,
    Preset,
    Stretch,
    coloured,
    preset_of,
    stretch_of,
)

logger = logging.getLogger(__name__)

MOST_FILE_PIXELS = 16 * 1024 * 1024
"""Pixels of a band that one picture may decode; a scene without overviews may have any number."""
ADD_OVERVIEWS = (
    "add overviews to their files (gdaladdo -ro -r average FILE), or write them as cloud-optimized "
    "GeoTIFFs"
)
_PREVIEW_PX = 256
SAMPLED_SCENES = 6
_SAMPLED_ROWS = 64


class TileRenderer:
    """Draws tiles of an archive from the scenes that they came from.

    Tiles of one grid have the same stretch on all dates. Safe to share between threads.

    Parameters
    ----------
    archive
        The archive of the tiles.
    scenes
        The scenes of a catalog, with the bands to show; None for those that the archive remembers.
    preset
        Bands to show, see :func:`workflows.report.colours.presets_of`; None for the default.
    gamma
        Brightens dark places above 1.
    """

    def __init__(
        self,
        archive: Archive,
        scenes: Iterable[Scene] | None = None,
        preset: str | None = None,
        gamma: float = 1.0,
    ) -> None:
        self.archive = archive
        self._preset, self._gamma = preset, gamma
        self._listed = scenes is not None
        self._scenes = {scene.id: scene for scene in scenes or ()}
        self._stretches: dict[tuple[str, str], Stretch] = {}
        self._lock = Lock()

    def draw(
        self, scene_id: str, tile_key: str, preset: str | None = None, gamma: float | None = None
    ) -> NDArray[np.uint8]:
        """Draw one tile as one scene shows it.

        Parameters
        ----------
        scene_id, tile_key
            The scene and the tile.
        preset, gamma
            In place of those of the renderer.

        Returns
        -------
        ndarray
            uint8 (tile_px, tile_px, 3); invalid pixels are light grey.

        Raises
        ------
        NotFoundError
            The scene is not in the catalog, the archive does not remember its files, or the key is
            not of a grid of the archive.
        SceneError
            The scene can no longer be read.
        """
        grid, place = self.tile(tile_key)
        with self._opened(self.scene(scene_id), grid.pixels, preset) as (reader, look):
            return self._picture(reader, grid.window(*place), grid.id, look, gamma)[0]

    def draw_or_blank(self, scene_id: str, tile_key: str) -> NDArray[np.uint8]:
        """Draw one tile; light grey where having no picture of it is no fault."""
        return self.draw(scene_id, tile_key)

    def tile(self, tile_key: str) -> tuple[TileGrid, tuple[int, int]]:
        """Return the grid of a tile, and its column and row.

        Raises
        ------
        NotFoundError
            The key is not of a grid of the archive.
        """
        grid_id, place = grid_and_place(tile_key)
        grids = self.archive.ledger.grids
        if grid_id not in grids:
            raise NotFoundError(
                f"tile {tile_key} is on no grid of archive {self.archive.uri}; "
                f"it has {', '.join(grids)}"
            )
        return TileGrid.from_dict(grids[grid_id]), place

    @contextmanager
    def _opened(
        self, scene: Scene, pixels: PixelGrid, preset: str | None, overviews: bool = False
    ) -> Iterator[tuple[SceneReader, Preset]]:
        """Open the bands of a preset, clouds and all."""
        look = preset_of(scene.band_names, preset or self._preset)
        shown = replace(shown_bands(scene, look), mask=None)
        with SceneReader(shown, pixels, overviews=overviews) as reader:
            yield reader, look

    def _picture(
        self, reader: SceneReader, window: Window, grid_id: str, look: Preset, gamma: float | None
    ) -> tuple[NDArray[np.uint8], float]:
        """Return the picture of a window, and the share of its pixels that have data."""
        values = as_rgb(reader.read(window).values, look)
        stretch = self.stretch(grid_id, look) if not reader.holds_bytes else BYTES
        image = coloured(values, stretch, gamma or self._gamma)
        gaps = np.isnan(values).any(axis=0)
        image[gaps] = LIGHT_GREY
        return image, 1 - float(gaps.mean())

    def scene(self, scene_id: str) -> Scene:
        """Return a scene with its files.

        Raises
        ------
        NotFoundError
            The scene is not in the catalog, or the archive does not remember its files.
        """
        if scene_id not in self._scenes:
            if self._listed:
                raise NotFoundError(
                    f"scene {scene_id} of archive {self.archive.uri} is not in the catalog; "
                    "give the catalog that was ingested"
                )
            self._scenes[scene_id] = self.archive.scene(scene_id)
        return self._scenes[scene_id]

    def stretch(self, grid_id: str, preset: Preset) -> Stretch:
        """Return the stretch of all scenes on a grid of the archive, computed once.

        It is made from previews of a few scenes, evenly spread over the dates; scenes that cannot
        be read are left out.
        """
        key = grid_id, preset.name
        with self._lock:
            if key not in self._stretches:
                self._stretches[key] = self._measured(grid_id, preset)
            return self._stretches[key]

    def _measured(self, grid_id: str, preset: Preset) -> Stretch:
        samples = []
        for scene_id, grid in self._sampled(grid_id):
            with Quarantine(f"scene {scene_id}") as fault:
                scene = shown_bands(self.scene(scene_id), preset)
                samples.append(as_rgb(_preview(scene, grid)[:, None], preset)[:, 0])
            if fault:
                logger.warning("%s is left out of the stretch: %s", fault.subject, fault.reason)
        return stretch_of(samples, preset.joint)

    def _sampled(self, grid_id: str) -> list[tuple[str, TileGrid]]:
        """Return a few scenes on a grid, evenly spread over the dates, and that grid."""
        entries = [e for e in self.archive.scenes() if e.grid_id == grid_id and e.rows]
        entries.sort(key=lambda entry: (str(entry.datetime), entry.scene_id))
        grid = TileGrid.from_dict(self.archive.ledger.grids[grid_id])
        chosen = evenly(np.arange(len(entries)), SAMPLED_SCENES).tolist()
        return [(entries[number].scene_id, grid) for number in chosen]


def row_painter(dataset: LabelledDataset, side_px: int = 256) -> Callable[[int], bytes]:
    """Return a function that draws a row of a dataset as a PNG; all rows have one stretch.

    Parameters
    ----------
    dataset
        The rows to draw.
    side_px
        Side of a picture; smaller tiles are enlarged, which people see better.
    """
    look = preset_of(dataset.bands, None)
    chosen = evenly(np.arange(len(dataset)), _SAMPLED_ROWS)
    samples = [np.asarray(dataset.images[row], np.float32)[list(look.bands)] for row in chosen]
    values = np.concatenate([sample.reshape(3, -1) for sample in samples], axis=1)
    valid = values[np.isfinite(values)]
    are_bytes = valid.size and (valid == np.rint(valid)).all() and 1 < valid.max() <= 255
    stretch = BYTES if are_bytes and valid.min() >= 0 else stretch_of([values], look.joint)

    def paint(row: int) -> bytes:
        image = np.asarray(dataset.images[row], np.float32)[list(look.bands)]
        drawn = coloured(image, stretch)
        drawn[np.isnan(image).any(axis=0)] = LIGHT_GREY
        return encoded(drawn, "PNG", max(side_px, dataset.tile_px))

    return paint


def shown_bands(scene: Scene, preset: Preset) -> Scene:
    """Return a scene with the bands of a preset only, each once."""
    return replace(scene, bands=tuple(scene.bands[place] for place in dict.fromkeys(preset.bands)))


def as_rgb(values: NDArray[np.float32], preset: Preset) -> NDArray[np.float32]:
    """Return red, green and blue (3, h, w) from the bands of :func:`shown_bands` (n, h, w)."""
    order = list(dict.fromkeys(preset.bands))
    return values[[order.index(band) for band in preset.bands]]


def _preview(scene: Scene, grid: TileGrid) -> NDArray[np.float32]:
    """Return the values (bands, n) of a scene at a coarse resolution.

    Cloud is left out unless under 5 % of the preview is clear. Of a large scene without overviews
    only the middle is read.
    """
    with SceneReader(scene, grid.pixels) as reader:
        extent = reader.extent
    shrink = max(1.0, max(extent.width, extent.height) / _PREVIEW_PX)
    pixels = PixelGrid(crs=grid.crs, resolution=grid.resolution * shrink, anchor=grid.anchor)
    with SceneReader(scene, pixels, overviews=True) as reader:
        window = reader.extent
        while (
            reader.file_pixels(window) > MOST_FILE_PIXELS and min(window.width, window.height) > 8
        ):
            window = _middle(window)
        block = reader.read(window)
    usable = block.valid & ~block.cloud
    if usable.mean() < 0.05:
        usable = block.valid
    return block.values[:, usable]


def _middle(window: Window) -> Window:
    width, height = window.width // 2, window.height // 2
    column, row = window.column + width // 2, window.row + height // 2
    return Window(column=column, row=row, width=width, height=height)


def grid_and_place(tile_key: str) -> tuple[str, tuple[int, int]]:
    """Split the key of a tile into the id of its grid, and its column and row.

    Raises
    ------
    NotFoundError
        The text is not the key of a tile.

    Examples
    --------
    >>> grid_and_place("epsg32648-10-64/566/-3103")
    ('epsg32648-10-64', (566, -3103))
    """
    try:
        grid_id, column, row = tile_key.rsplit("/", 2)
        return grid_id, (int(column), int(row))
    except ValueError as error:
        raise NotFoundError(
            f"{tile_key!r} is not the key of a tile, such as epsg32648-10-64/566/-3103"
        ) from error


def sized(image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Resize an image (h, w, 3) to a longer side of ``side_px`` pixels."""
    height, width = image.shape[:2]
    factor = side_px / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def encoded(image: NDArray[np.uint8], kind: str, side_px: int) -> bytes:
    """Encode an image as a file.

    Parameters
    ----------
    image
        uint8 (h, w, 3).
    kind
        ``PNG`` or ``JPEG``.
    side_px
        Longer side of the encoded image.
    """
    sink = BytesIO()
    quality = {"quality": 88} if kind == "JPEG" else {}
    Image.fromarray(sized(image, side_px)).save(sink, kind, **quality, optimize=True)
    return sink.getvalue()


def data_uri(image: NDArray[np.uint8], side_px: int = 144) -> str:
    """Encode an image as a ``data:`` URI, which a page shows without a file beside it.

    Parameters
    ----------
    image
        uint8 (h, w, 3).
    side_px
        Longer side of the encoded image.
    """
    return "data:image/jpeg;base64," + base64.b64encode(encoded(image, "JPEG", side_px)).decode()
