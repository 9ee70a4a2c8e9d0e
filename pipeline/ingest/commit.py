"""The driver's side of ingest: finished scenes become segments and ledger entries."""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.ingest.kernels import SceneRows
from pipeline.ingest.spec import IngestPlan, IngestReport
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.writer import (
    UNIT_NORM_TOLERANCE,
    ArchiveWriter,
    SegmentReceipt,
    SegmentRows,
    write_segment,
)
from storage.location import Location
from storage.progress import Event, EventSink, ignore
from storage.scene import Rejected, Scene
from storage.values import json_digest

if TYPE_CHECKING:
    from pipeline.analysis.landcover import TileLabels

logger = logging.getLogger(__name__)


class Recorder(ABC):
    """Collects ledger entries and written segments, and commits them together from time to time.

    Parameters
    ----------
    archive
        At its newest snapshot.
    interval_s
        Seconds between commits.
    work
        Name of the work in the messages of commits.
    events
        Receives the outcome of each scene, and every commit.
    """

    def __init__(
        self, archive: Archive, interval_s: float, work: str, events: EventSink = ignore
    ) -> None:
        self._events, self._interval_s, self._work = events, interval_s, work
        self._writer = ArchiveWriter(archive)
        self._spec = archive.spec
        self._receipts: list[SegmentReceipt] = []
        self._entries: list[LedgerEntry] = []
        self._grids: dict[str, dict[str, Any]] = {}
        self._last_commit = time.monotonic()
        self.snapshot = archive.snapshot
        self.counts: Counter[str] = Counter()
        self.quarantined: dict[str, str] = {}

    def record(self, entry: LedgerEntry, grid: Mapping[str, Any] | None = None) -> None:
        """Take the state of a scene, and the plain form of its grid, for the next commit."""
        self._entries.append(entry)
        if grid is not None and entry.grid_id is not None:
            self._grids[entry.grid_id] = dict(grid)
        self.counts[entry.state] += 1
        self.counts["rows"] += entry.rows
        if entry.state == "quarantined":
            self.quarantined[entry.scene_id] = entry.reason
        self._events(
            Event(
                event="scene",
                scene=entry.scene_id,
                state=entry.state,
                rows=entry.rows,
                reason=entry.reason or None,
            )
        )

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Quarantine the entries that a catalog or a source refused."""
        for item in rejected:
            self.record(
                LedgerEntry(
                    scene_id=item.scene_id,
                    state="quarantined",
                    fingerprint="",
                    reason=item.reason,
                )
            )

    @property
    def is_due(self) -> bool:
        """Whether it is time for a commit."""
        return time.monotonic() - self._last_commit >= self._interval_s

    def commit(self) -> None:
        """Write and commit everything that was taken."""
        self._write()
        if self._entries:
            message = f"{self._work} {len(self._entries)} scenes"
            self.snapshot = self._writer.commit(self._receipts, self._entries, self._grids, message)
            self._events(
                Event(
                    event="committed",
                    snapshot=self.snapshot,
                    scenes=len(self._entries),
                    rows=sum(entry.rows for entry in self._entries),
                )
            )
        self._receipts, self._entries, self._grids = [], [], {}
        self._last_commit = time.monotonic()

    @abstractmethod
    def _write(self) -> None:
        """Write rows that wait as a segment, and keep its receipt."""


class Committer(Recorder):
    """Collects finished scenes, writes them as segments and commits them.

    Parameters
    ----------
    plan
        The plan that the scenes belong to.
    archive
        The plan's archive at its newest snapshot.
    events
        Receives the outcome of each scene, and every commit.
    """

    def __init__(self, plan: IngestPlan, archive: Archive, events: EventSink = ignore) -> None:
        super().__init__(archive, plan.spec.commit_interval_s, "ingest", events)
        self._plan = plan
        self._catalog = str(Location.of(plan.spec.catalog.source).absolute)
        self._labels = None if plan.labels is None else _LabelLookup(plan.labels)
        self._waiting: list[SceneRows] = []

    def add(self, rows: SceneRows) -> None:
        """Take a finished scene; write and commit when it is time."""
        scene, note = self._plan.todo[rows.index], rows.note
        if note.get("trace"):
            logger.debug("scene %s: %s\n%s", scene.id, note["reason"], note["trace"])
        entry = LedgerEntry(
            scene_id=scene.id,
            state="quarantined",
            fingerprint=scene.fingerprint,
            datetime=scene.datetime,
            reason=note.get("reason") or _vector_fault(rows),
            files=note.get("files", ""),
        )
        if not entry.reason:
            entry = replace(
                entry,
                state="embedded" if len(rows) else "empty",
                reason="" if len(rows) else _why_empty(rows),
                rows=len(rows),
                grid_id=note["grid_id"],
                end=scene.end,
                sources=scene.sources,
            )
        if entry.rows:
            self._waiting.append(rows)
        self.record(entry, note.get("grid"))
        if sum(map(len, self._waiting)) >= self._plan.spec.segment_rows:
            self._write()
        if self.is_due:
            self.commit()

    def report(self, seconds: float) -> IngestReport:
        """Commit the rest and return the counts of the run."""
        self.commit()
        return IngestReport(
            snapshot=self.snapshot,
            embedded=self.counts["embedded"],
            empty=self.counts["empty"],
            quarantined=dict(self.quarantined),
            done_before=self._plan.done,
            rows=self.counts["rows"],
            seconds=seconds,
        )

    def _write(self) -> None:
        if not self._waiting:
            return
        scenes = [self._plan.todo[rows.index] for rows in self._waiting]
        columns = {
            name: np.concatenate([rows.columns[name] for rows in self._waiting])
            for name in ("embedding", "tile", "window", "bbox", "valid_fraction", "cloud_fraction")
        }
        counts = [len(rows) for rows in self._waiting]
        columns["scene_index"] = np.repeat(np.arange(len(scenes), dtype=np.int32), counts)
        columns["datetime"] = np.repeat(
            np.array([s.datetime.replace(tzinfo=None) for s in scenes], "datetime64[ms]"), counts
        )
        grids = tuple(str(rows.note["grid_id"]) for rows in self._waiting)
        if self._labels is not None:
            columns["labels"] = self._labels.of(grids, columns["scene_index"], columns["tile"])
        segment = SegmentRows(
            id=_segment_id(self._plan, scenes),
            scenes=tuple(scene.id for scene in scenes),
            grids=grids,
            columns=columns,
            origins=tuple(Origin(scene=scene, catalog=self._catalog) for scene in scenes),
        )
        self._receipts.append(write_segment(self._writer.fork, segment, self._spec))
        self._waiting = []


class _LabelLookup:
    """Tile labels by tile key; a tile that is missing from the table has no label."""

    def __init__(self, table: "TileLabels") -> None:
        self._rows = {key: row for row, key in enumerate(table.tile_keys)}
        # The last row, index -1, is that of all tiles that the table does not hold.
        self._labels = np.vstack([table.labels, np.zeros((1, len(table.classes)), np.uint8)])

    def of(
        self, grids: Sequence[str], scene_index: npt.NDArray[Any], tiles: npt.NDArray[Any]
    ) -> npt.NDArray[np.uint8]:
        """Return the labels (n, K) of tiles (n, 2) whose scenes lie on ``grids``."""
        pairs = zip(scene_index.tolist(), tiles.tolist(), strict=True)
        keys = (f"{grids[scene]}/{column}/{row}" for scene, (column, row) in pairs)
        return np.asarray(self._labels[[self._rows.get(key, -1) for key in keys]], np.uint8)


def _why_empty(rows: SceneRows) -> str:
    counts = rows.note["counts"]
    return (
        f"no tile passed the rules: {counts['skipped_nodata']} with too little data, "
        f"{counts['skipped_cloud']} too cloudy"
    )


def _vector_fault(rows: SceneRows) -> str:
    """Return why an archive would refuse the vectors, if so: huge pixels overflow an encoder."""
    norms = np.linalg.norm(rows.columns["embedding"], axis=1)
    broken = int(np.sum(~(np.abs(norms - 1) < UNIT_NORM_TOLERANCE)))
    return f"{broken} of {len(rows)} embeddings are not finite and of unit norm" if broken else ""


def _segment_id(plan: IngestPlan, scenes: Sequence[Scene]) -> str:
    """Hash all that decides a segment's content, so that a repeated run writes the same id."""
    content = [
        plan.archive.encoder_fingerprint,
        dict(plan.archive.grid),
        dict(plan.archive.rules),
        list(plan.archive.classes),
        [[scene.id, scene.fingerprint] for scene in scenes],
    ]
    return json_digest(content)[:20]
