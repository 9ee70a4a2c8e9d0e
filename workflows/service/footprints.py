"""The WGS84 boxes of the scenes of an archive, around their tiles."""

import threading
from collections.abc import Iterable

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.geometry import BBox, enclosing


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
        return [
            None
            if entry.segment_ordinal is None
            else self._segment(entry.segment_ordinal).get(entry.scene_id)
            for entry in entries
        ]

    def _segment(self, ordinal: int) -> dict[str, BBox]:
        with self._lock:
            if ordinal not in self._boxes:
                rows = self._archive.read_segment(ordinal, ["scene", "bbox"])
                names, number = np.unique(rows["scene"].astype(str), return_inverse=True)
                self._boxes[ordinal] = {
                    str(name): enclosing(rows["bbox"][number == i]) for i, name in enumerate(names)
                }
            return self._boxes[ordinal]
