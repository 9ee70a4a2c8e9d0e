"""Pictures of the tiles of an index, for answers in a notebook."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import Image

from storage.display import Picture
from storage.errors import SkysiftError
from storage.scene import CatalogSpec
from workflows.report.by_place import catalog_scenes, tile_renderer
from workflows.report.contact_sheet import contact_sheet, tiles_of_table
from workflows.report.rendering import TileRenderer, data_uri

if TYPE_CHECKING:
    from pipeline.search.searcher import Searcher

THUMBNAIL_PX = 96
_AT_ONCE = 4
_KEPT = 2_000


class ArchivePictures:
    """Draws tiles of the archive that an index pins.

    Keeps the pictures that it drew, about 3 kB each. Safe to share between threads.

    Parameters
    ----------
    searcher
        Searches the index.
    catalog
        Lists the scenes to draw from; None for those that the archive remembers.
    """

    def __init__(self, searcher: "Searcher", catalog: CatalogSpec | None = None) -> None:
        self._searcher, self._catalog = searcher, catalog
        self._drawn: dict[tuple[str, str], Picture] = {}

    @cached_property
    def renderer(self) -> TileRenderer:
        """Draws with one stretch for all answers."""
        archive = self._searcher.archive
        return tile_renderer(archive, catalog_scenes(archive.spec, self._catalog))

    def thumbnails(self, tiles: Sequence[tuple[str, str]]) -> tuple[list[Picture], str]:
        """Return the picture of each (scene id, tile key), and why some of them are missing."""
        missing: list[str] = []
        renderer = self.renderer  # made before there are threads

        def draw(tile: tuple[str, str]) -> Picture:
            if tile not in self._drawn:
                try:
                    picture = Picture(data_uri(renderer.draw(*tile), THUMBNAIL_PX))
                except SkysiftError as error:
                    missing.append(str(error))
                    return Picture("")
                if len(self._drawn) >= _KEPT:
                    self._drawn.clear()
                self._drawn[tile] = picture
            return self._drawn[tile]

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(draw, tiles))
        count = len(missing)
        return found, f"{count} without a picture: {min(missing)}" if count else ""

    def sheet(self, hits: pa.Table, title: str, columns: int, side_px: int) -> Image.Image:
        """Draw the rows of a table of hits on one page."""
        page = contact_sheet(
            tiles_of_table(hits), self.renderer, title=title, columns=columns, side_px=side_px
        )
        return Image.open(BytesIO(page))
