"""Pictures of published embeddings: their tiles as the scenes of a catalog show them.

A row of published embeddings names the file of its vector and no scene. So the scene is found by
place and date: of those whose box holds the tile's middle, the nearest in time.
"""

import datetime as dt
import hashlib
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.tiles.grid import TileGrid, grid_for_scene
from pipeline.tiles.spec import GridSpec
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.catalog.read import read_scenes
from storage.dataset import evenly
from storage.errors import NotFoundError, SceneError
from storage.geometry import BBox, centres, touches
from storage.quarantine import Quarantine
from storage.raster.geotiff import inspect
from storage.raster.pixel_grid import PixelGrid, Window
from storage.scene import CatalogSpec, Scene
from workflows.report.colours import LIGHT_GREY, Preset, Stretch
from workflows.report.rendering import (
    ADD_OVERVIEWS,
    MOST_FILE_PIXELS,
    SAMPLED_SCENES,
    TileRenderer,
)

logger = logging.getLogger(__name__)

_SIDE_PX = 256
_TRIES = 3
_WHOLE = 0.9
"""Share of a picture with data from which no other scene is tried."""
_READERS = 8
_COLOURS = ("red", "green", "blue")


def bands_of_pictures(archive: ArchiveSpec, catalog: CatalogSpec) -> tuple[str, ...]:
    """Return the bands to read from the scenes of a catalog for pictures of an archive.

    Those of the archive's encoder; of published embeddings, those that the catalog's settings name,
    else red, green and blue.
    """
    return archive.bands or tuple(catalog.bands) or _COLOURS


def catalog_scenes(archive: ArchiveSpec, catalog: CatalogSpec | None) -> tuple[Scene, ...] | None:
    """Return the scenes of a catalog for pictures of an archive; None without a catalog.

    Raises
    ------
    CatalogError
        The catalog cannot be read.
    """
    if catalog is None:
        return None
    return read_scenes(catalog, bands_of_pictures(archive, catalog)).scenes


def tile_renderer(
    archive: Archive,
    scenes: Iterable[Scene] | None = None,
    preset: str | None = None,
    gamma: float = 1.0,
) -> TileRenderer:
    """Return what draws the tiles of an archive; the parameters are those of a renderer."""
    if archive.spec.published and scenes is not None:
        return PlaceRenderer(archive, scenes, preset, gamma)
    return TileRenderer(archive, scenes, preset, gamma)


class PlaceRenderer(TileRenderer):
    """Draws tiles of published embeddings from scenes of the same place; parameters as there.

    All pictures have one stretch, and 256 pixels a side, whatever the pixels of the embeddings.

    Attributes
    ----------
    placed
        The scenes and their boxes in WGS84 degrees.
    identity
        Text that differs between sets of scenes.
    """

    def __init__(
        self,
        archive: Archive,
        scenes: Iterable[Scene],
        preset: str | None = None,
        gamma: float = 1.0,
    ) -> None:
        scenes = tuple(scenes)
        super().__init__(archive, scenes, preset, gamma)
        self.placed = _placed(scenes)
        prints = sorted(scene.fingerprint for scene, _ in self.placed)
        self.identity = hashlib.sha256(" ".join(prints).encode()).hexdigest()
        self._boxes = np.array([box for _, box in self.placed]).reshape(-1, 4)

    def draw(
        self, scene_id: str, tile_key: str, preset: str | None = None, gamma: float | None = None
    ) -> NDArray[np.uint8]:
        """Draw one tile as the scene of its place nearest to its date shows it.

        Returns
        -------
        ndarray
            uint8 (256, 256, 3); pixels without data are light grey.

        Raises
        ------
        NotFoundError
            No scene of the catalog has the place, or the key is not of a grid of the archive.
        SceneError
            No scene of the place can be read.
        """
        grid, (column, row) = self.tile(tile_key)
        entry = self.archive.ledger.entries.get(scene_id)
        found = self._near(grid, column, row, entry.datetime if entry else None)
        finer = grid.tile_px / _SIDE_PX
        pixels = PixelGrid(crs=grid.crs, resolution=grid.resolution * finer, anchor=grid.anchor)
        step = grid.stride_px / finer
        window = Window(
            column=round(column * step), row=round(row * step), width=_SIDE_PX, height=_SIDE_PX
        )
        best, share, reason = None, -1.0, ""
        for scene in found[:_TRIES]:
            with Quarantine(f"scene {scene.id}") as fault:
                with self._opened(scene, pixels, preset, overviews=True) as (reader, look):
                    if reader.file_pixels(window) > MOST_FILE_PIXELS:
                        raise SceneError(f"its scenes have no overviews: {ADD_OVERVIEWS}")
                    image, held = self._picture(reader, window, "", look, gamma)
                if held > share:
                    best, share = image, held
            reason = reason or fault.reason
            if share >= _WHOLE:
                break
        if best is None:
            raise SceneError(f"tile {tile_key}: {reason}")
        return best

    def draw_or_blank(self, scene_id: str, tile_key: str) -> NDArray[np.uint8]:
        """Draw one tile; light grey where the catalog has no scene."""
        try:
            return self.draw(scene_id, tile_key)
        except NotFoundError:
            return np.full((_SIDE_PX, _SIDE_PX, 3), LIGHT_GREY, np.uint8)

    def _near(
        self, grid: TileGrid, column: int, row: int, moment: dt.datetime | None
    ) -> list[Scene]:
        """Return the scenes whose boxes hold the middle of a tile, the nearest in time first."""
        box = grid.bbox_wgs84(np.array([[column, row]], np.int32))
        lon, lat = centres(box)[0].tolist()
        middle = (lon, lat, lon, lat)
        held = touches(self._boxes, middle) if len(self._boxes) else np.zeros(0, np.bool_)
        found = [self.placed[number][0] for number in np.flatnonzero(held).tolist()]
        if not found:
            raise NotFoundError(
                f"no scene of the catalog holds {lon:.5f}, {lat:.5f}; add scenes of that place"
            )
        return sorted(
            found, key=lambda s: (abs(s.datetime - moment) if moment else dt.timedelta(), s.id)
        )

    def stretch(self, grid_id: str, preset: Preset) -> Stretch:
        """Return the stretch of all scenes, computed once."""
        return super().stretch("", preset)

    def _sampled(self, grid_id: str) -> list[tuple[str, TileGrid]]:
        """Return a few scenes, evenly spread over the dates, each with a grid of its own CRS."""
        scenes = sorted((scene for scene, _ in self.placed), key=lambda s: (s.datetime, s.id))
        chosen = [scenes[number] for number in evenly(np.arange(len(scenes)), SAMPLED_SCENES)]
        return [(scene.id, grid_for_scene(scene, GridSpec(tile_px=_SIDE_PX))) for scene in chosen]


def _placed(scenes: Sequence[Scene]) -> list[tuple[Scene, BBox]]:
    """Return scenes with their boxes; a scene whose file cannot be read is left out."""

    def box_of(scene: Scene) -> BBox | None:
        with Quarantine(f"scene {scene.id}") as fault:
            return scene.bbox or inspect(scene.bands[0].href).bbox
        logger.warning("%s has no pictures: %s", fault.subject, fault.reason)
        return None

    with ThreadPoolExecutor(_READERS) as pool:
        boxes = list(pool.map(box_of, scenes))
    return [(scene, box) for scene, box in zip(scenes, boxes, strict=True) if box is not None]
