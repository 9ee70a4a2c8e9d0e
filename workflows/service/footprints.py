"""The WGS84 boxes of the scenes of an archive, around their tiles."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.geometry import BBox, enclosing

_READERS = 4


class SceneBoxes:
    """The WGS84 boxes of scenes; a segment is read when a scene of it is first requested.

    Safe to share between threads.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._boxes: dict[int, dict[str, BBox]] = {}
        self._lock = threading.Lock()

    def of(self, entries: Iterable[LedgerEntry]) -> list[BBox | None]:
        """Return the box of each scene; None for a scene without tiles."""
        entries = list(entries)
        ordinals = {entry.segment_ordinal for entry in entries} - {None}
        with self._lock, ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(self._read, sorted(ordinals - self._boxes.keys())))
        return [
            None
            if entry.segment_ordinal is None
            else self._boxes[entry.segment_ordinal].get(entry.scene_id)
            for entry in entries
        ]

    def _read(self, ordinal: int) -> None:
        rows = self._archive.read_segment(ordinal, ["scene_index", "bbox"])
        scenes = self._archive.segments[ordinal].scenes
        self._boxes[ordinal] = {
            scenes[index]: enclosing(rows["bbox"][rows["scene_index"] == index])
            for index in np.unique(rows["scene_index"]).tolist()
        }
