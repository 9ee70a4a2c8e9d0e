"""Images of tiles for people: true colour, stretched by the brightness of their scene."""

import base64
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.tiles.grid import TileGrid
from storage.archive.reader import Archive
from storage.errors import NotFoundError
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.scene import Scene

_PREVIEW_PX = 256
_GAMMA = 0.7


class TileRenderer:
    """Draws tiles of an archive from the scenes that they came from.

    All tiles of a scene have the same stretch, which is computed once. Safe to share between
    threads.

    Parameters
    ----------
    archive
        The archive of the tiles.
    scenes
        The scenes of a catalog, with the bands to show; None for those that the archive remembers.
    """

    def __init__(self, archive: Archive, scenes: Iterable[Scene] | None = None) -> None:
        self.archive = archive
        self._listed = scenes is not None
        self._scenes = {scene.id: scene for scene in scenes or ()}
        self._stretches: dict[tuple[str, str], NDArray[np.float32]] = {}

    def draw(self, scene_id: str, tile_key: str) -> NDArray[np.uint8]:
        """Draw one tile as one scene shows it.

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
        scene = self.scene(scene_id)
        grid_id, place = grid_and_place(tile_key)
        grids = self.archive.ledger.grids
        if grid_id not in grids:
            raise NotFoundError(
                f"tile {tile_key} is on no grid of archive {self.archive.uri}; "
                f"it has {', '.join(grids)}"
            )
        grid = TileGrid.from_dict(grids[grid_id])
        if (scene_id, grid_id) not in self._stretches:
            self._stretches[scene_id, grid_id] = self._stretch(scene, grid)
        with SceneReader(scene, grid.pixels) as reader:
            block = reader.read(grid.window(*place))
        bands = list(rgb_indices(scene.band_names))
        return stretched(block.values[bands], self._stretches[scene_id, grid_id][:, bands])

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

    def _stretch(self, scene: Scene, grid: TileGrid) -> NDArray[np.float32]:
        """Return the 2nd and 98th percentile of each band over a preview; float32 (2, bands).

        Cloud is left out unless under 5 % of the preview is clear.
        """
        with SceneReader(scene, grid.pixels) as reader:
            extent = reader.extent
        shrink = max(1.0, max(extent.width, extent.height) / _PREVIEW_PX)
        pixels = PixelGrid(crs=grid.crs, resolution=grid.resolution * shrink, anchor=grid.anchor)
        with SceneReader(scene, pixels, overviews=True) as reader:
            block = reader.read(reader.extent)
        usable = block.valid & ~block.cloud
        if usable.mean() < 0.05:
            usable = block.valid
        values = block.values[:, usable]
        if not values.size:
            return np.repeat(np.array([[0], [1]], np.float32), len(values), axis=1)
        return np.nanpercentile(values, [2, 98], axis=1).astype(np.float32)


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


def rgb_indices(bands: tuple[str, ...]) -> tuple[int, int, int]:
    """Choose the bands shown as red, green and blue: by name, else the first ones.

    Examples
    --------
    >>> rgb_indices(("blue", "green", "red", "nir"))
    (2, 1, 0)
    >>> rgb_indices(("vv",))
    (0, 0, 0)
    """
    if {"red", "green", "blue"} <= set(bands):
        return bands.index("red"), bands.index("green"), bands.index("blue")
    last = len(bands) - 1
    return 0, min(1, last), min(2, last)


def stretched(values: NDArray[np.float32], stretch: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch three bands to 8 bits.

    Parameters
    ----------
    values
        float32 (3, h, w), NaN where invalid.
    stretch
        float32 (2, 3).

    Returns
    -------
    ndarray
        uint8 (h, w, 3).
    """
    low, high = stretch[:, :, None, None]
    share = np.clip((values - low) / np.maximum(high - low, 1e-9), 0, 1) ** _GAMMA
    grey = np.where(np.isnan(share), np.float32(0.92), share)
    image: NDArray[np.uint8] = np.moveaxis(np.rint(255 * grey), 0, -1).astype(np.uint8)
    return image


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
