"""The places of the scenes of an archive: the box around their tiles, and the hull of the tiles."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.geometry import BBox, enclosing, geojson
from storage.outlines import hull_outline

_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenePlace:
    """The WGS84 box around the tiles of a scene, and their hull as a GeoJSON geometry."""

    box: BBox
    geometry: dict[str, Any]


class ScenePlaces:
    """The places of scenes; a segment is read when a scene of it is first requested.

    Safe to share between threads.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._places: dict[int, dict[str, ScenePlace]] = {}
        self._lock = threading.Lock()

    def of(self, entries: Iterable[LedgerEntry]) -> list[ScenePlace | None]:
        """Return the place of each scene; None for a scene without tiles."""
        entries = list(entries)
        ordinals = {entry.segment_ordinal for entry in entries} - {None}
        with self._lock, ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(self._read, sorted(ordinals - self._places.keys())))
        return [
            None
            if entry.segment_ordinal is None
            else self._places[entry.segment_ordinal].get(entry.scene_id)
            for entry in entries
        ]

    def _read(self, ordinal: int) -> None:
        rows = self._archive.read_segment(ordinal, ["scene_index", "grid", "tile", "bbox"])
        scenes, grids = self._archive.segments[ordinal].scenes, self._archive.ledger.grids
        found = {}
        for index in np.unique(rows["scene_index"]).tolist():
            own = rows["scene_index"] == index
            box, grid = enclosing(rows["bbox"][own]), str(rows["grid"][own][0])
            shape = hull_outline(grids, grid, rows["tile"][own], box)
            found[scenes[index]] = ScenePlace(box=box, geometry=geojson(shape)[0])
        self._places[ordinal] = found
