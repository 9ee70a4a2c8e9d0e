"""Thumbnails of tiles, drawn from their source scenes and cached in memory."""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.errors import NotFoundError
from storage.quarantine import Quarantine
from storage.scene import CatalogSpec, Scene
from workflows.report.by_place import PlaceRenderer, bands_of_pictures, tile_renderer
from workflows.report.rendering import TileRenderer, encoded
from workflows.service.mosaic import Drawn, Mosaic
from workflows.service.schema import ThumbnailQuery

logger = logging.getLogger(__name__)

_LIST_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """A picture and its ETag; ``content`` is None when the client has it.

    ``source`` is ``drawn``, ``cache`` or ``unchanged``, for the metrics; ``note`` says what the
    picture does not show.
    """

    content: bytes | None
    etag: str
    source: str
    note: str = ""


class _LruCache:
    """A cache of pictures by name that drops the least recently used; safe between threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes, self._used_bytes = capacity_bytes, 0
        self._files: OrderedDict[str, Drawn] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Drawn | None:
        with self._lock:
            if name in self._files:
                self._files.move_to_end(name)
            return self._files.get(name)

    def put(self, name: str, file: Drawn) -> None:
        with self._lock:
            if name not in self._files:
                self._files[name] = file
                self._used_bytes += len(file.content)
            while self._used_bytes > self._capacity_bytes:
                self._used_bytes -= len(self._files.popitem(last=False)[1].content)


class Thumbnails:
    """Draws tiles of an archive from the files of their scenes, and caches pictures.

    Parameters
    ----------
    catalog
        Catalog of the scenes; None for the files that the archive remembers.
    cache_bytes
        Bytes of the thumbnails cached in memory.
    """

    def __init__(self, catalog: CatalogSpec | None, cache_bytes: int) -> None:
        self.catalog = catalog
        self._cache = _LruCache(cache_bytes)
        self._scenes: dict[str, Scene] = {}
        self._is_listed = False
        self._renderer: TileRenderer | None = None
        self._mosaic: Mosaic | None = None
        self._snapshot = ""
        self._listed_s = float("-inf")
        self._lock = threading.Lock()

    def etag(self, archive: Archive, tile: str, scene_id: str, how: ThumbnailQuery) -> str:
        """Return a tag that changes whenever the thumbnail of a tile would.

        Raises
        ------
        NotFoundError
            The archive has no such scene.
        """
        entry = archive.ledger.entries.get(scene_id)
        if entry is None:
            raise NotFoundError(f"the archive has no scene {scene_id!r}; see /v1/scenes")
        by_place = self._by_place(archive)
        shown = by_place.identity if by_place else ""
        look = f"{how.size} {how.preset} {how.gamma} {shown}"
        identity = f"{archive.uri} {tile} {scene_id} {entry.fingerprint} {look}"
        return f'"{hashlib.sha256(identity.encode()).hexdigest()[:24]}"'

    def cached(self, etag: str) -> Drawn | None:
        """Return a picture that is in the cache, else None."""
        return self._cache.get(etag)

    def keep(self, etag: str, picture: Drawn) -> None:
        """Put a picture into the cache."""
        self._cache.put(etag, picture)

    def draw(self, archive: Archive, tile: str, scene_id: str, how: ThumbnailQuery) -> Drawn:
        """Draw a tile as PNG.

        Raises
        ------
        NotFoundError
            The files of the scene are not known, or can no longer be read.
        """
        with Quarantine(f"tile {tile} of scene {scene_id}") as fault:
            renderer = self.renderer(archive, scene_id)
            pixels = renderer.draw(scene_id, tile, how.preset, how.gamma)
        if fault:
            self.forget()
            logger.warning("%s cannot be drawn: %s", fault.subject, fault.reason)
            raise NotFoundError(f"tile {tile} cannot be drawn: {fault.for_clients}")
        return Drawn(content=encoded(pixels, "PNG", how.size))

    def obstacle(self, archive: Archive) -> str:
        """Return why no tile of an archive can be drawn; empty when the files are known."""
        if self.catalog is not None:
            return ""
        entries = archive.ledger.entries.values()
        known = (entry.scene_id for entry in entries if entry.state == "embedded")
        with Quarantine("pictures") as fault:
            for scene_id in islice(known, 1):
                archive.scene(scene_id)
        return fault.reason

    def bands(self, archive: Archive) -> tuple[str, ...]:
        """Return the names of the bands of pictures; none where there can be no picture."""
        if self.catalog is None:
            return archive.spec.bands
        return bands_of_pictures(archive.spec, self.catalog)

    def mosaic(self, archive: Archive) -> Mosaic | None:
        """Return the scenes that tiles of published embeddings are drawn from; else None."""
        renderer = self._by_place(archive)
        if renderer is None:
            return None
        with self._lock:
            self._mosaic = self._mosaic or Mosaic.of_catalog(renderer)
            return self._mosaic

    def renderer(self, archive: Archive, scene_id: str = "") -> TileRenderer:
        """Return the renderer; the catalog is read again when it lacks a scene of the archive."""
        with self._lock:
            stale = time.monotonic() - self._listed_s > _LIST_EVERY_S
            lacks = not self._is_listed or bool(
                scene_id and not archive.spec.published and scene_id not in self._scenes
            )
            if self.catalog is not None and lacks and stale:
                scenes = read_scenes(self.catalog, self.bands(archive)).scenes
                self._scenes = {scene.id: scene for scene in scenes}
                self._is_listed, self._listed_s = True, time.monotonic()
                self._renderer = None
            if self._renderer is None or self._snapshot != archive.snapshot:
                listed = None if self.catalog is None else self._scenes.values()
                self._renderer, self._mosaic = tile_renderer(archive, listed), None
                self._snapshot = archive.snapshot
            return self._renderer

    def forget(self) -> None:
        """Look the files of scenes up again: they may have been moved, or be new."""
        with self._lock:
            self._is_listed = False
            if self.catalog is None:
                self._renderer = None

    def _by_place(self, archive: Archive) -> PlaceRenderer | None:
        """Return the renderer of published embeddings where there is a catalog."""
        renderer = self.renderer(archive) if archive.spec.published and self.catalog else None
        return renderer if isinstance(renderer, PlaceRenderer) else None
