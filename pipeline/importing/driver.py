"""The run of an import: parts are read ahead in threads, and this thread alone writes and commits.

The archive, its ledger and its commits are those of ingest: see
:class:`pipeline.ingest.commit.Recorder`.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.importing.places import PlacedGroup, PlacedRows, with_unit_vectors
from pipeline.importing.spec import ImportPlan, ImportReport, Source
from pipeline.ingest.commit import Recorder
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import PublishedModel
from storage.archive.writer import SegmentRows, write_segment
from storage.dates import as_utc
from storage.errors import ArchiveConflictError, EncoderMismatchError
from storage.location import Location
from storage.prefetch import prefetch
from storage.progress import Event, EventSink, Progress, ProgressSink, ignore
from storage.quarantine import Quarantine
from storage.values import json_digest

_LOCAL_AHEAD, _REMOTE_AHEAD = 1, 3
_ROWS_NAMED = 10
_FRACTIONS = ("valid_fraction", "cloud_fraction")
_COLUMNS = ("embedding", "tile", "window", "bbox", "datetime", *_FRACTIONS)


@dataclass(frozen=True, kw_only=True)
class PartRows:
    """The rows of a part as an archive stores them, or the reason why there are none."""

    part: Source
    rows: PlacedRows
    fault: str = ""
    trace: str = ""


class ReadPart:
    """Reads parts; a part that cannot be read is quarantined. Safe to call from several threads."""

    def __init__(self, model: PublishedModel) -> None:
        self._model = model

    def __call__(self, part: Source) -> PartRows:
        """Read a part, and centre and scale its vectors."""
        rows = PlacedRows(groups=())
        with Quarantine(f"part {part.scene_id}") as fault:
            rows = with_unit_vectors(part.read(), self._model)
        return PartRows(part=part, rows=rows, fault=fault.reason, trace=fault.trace)


def import_embeddings(
    plan: ImportPlan, *, progress: ProgressSink = ignore, events: EventSink = ignore
) -> ImportReport:
    """Carry out a plan: read, centre, scale, write and commit every part to do.

    Files that cannot be read are quarantined with their reason, and so are unusable rows of the
    others. Stopped in any way, the run loses uncommitted work only, and the same call finishes the
    rest.

    Raises
    ------
    EncoderMismatchError
        Another model's archive was made at the place since the plan.
    SkysiftError
        The archive cannot be written.

    Notes
    -----
    Peak memory: a few parts of :data:`storage.embeddings.table.PART_ROWS` rows.
    """
    started = time.monotonic()
    archive = _open_archive(plan)
    events(Event(event="started", archive=str(plan.spec.archive_uri), scenes=len(plan.todo)))
    importer = Importer(plan, archive, events)
    done = 0

    def report() -> None:
        rate = importer.counts["rows"] / max(time.monotonic() - started, 1e-9)
        progress(
            Progress(
                stage="import",
                done=done,
                total=len(plan.todo),
                unit="parts",
                speed=f"{rate:,.0f} rows/s",
            )
        )

    ahead = _LOCAL_AHEAD if Location.of(plan.spec.source).is_local else _REMOTE_AHEAD
    try:
        for rows in prefetch(ReadPart(plan.model), plan.todo, ahead):
            importer.add(rows)
            done += 1
            report()
    finally:
        importer.commit()
    seconds = time.monotonic() - started
    events(
        Event(
            event="finished",
            snapshot=importer.snapshot,
            scenes=len(plan.todo),
            rows=importer.counts["rows"],
            seconds=round(seconds, 3),
        )
    )
    return ImportReport(
        snapshot=importer.snapshot,
        imported=importer.counts["embedded"],
        empty=importer.counts["empty"],
        quarantined=dict(importer.quarantined),
        left_out=dict(importer.left_out),
        done_before=plan.done,
        rows=importer.counts["rows"],
        seconds=seconds,
    )


class Importer(Recorder):
    """Collects parts, writes their rows as segments and commits them.

    Parameters
    ----------
    plan
        The plan that the parts belong to; its rejected files are quarantined.
    archive
        The plan's archive at its newest snapshot.
    events
        Receives the outcome of each scene, and every commit.
    """

    def __init__(self, plan: ImportPlan, archive: Archive, events: EventSink = ignore) -> None:
        super().__init__(archive, plan.spec.commit_interval_s, "import", events)
        self._segment_rows = plan.spec.segment_rows
        self._known = archive.ledger.entries
        self._waiting: list[tuple[str, str, PlacedGroup]] = []
        self.left_out: Counter[str] = Counter()
        self.reject(plan.rejected)

    def add(self, read: PartRows) -> None:
        """Take a part; write and commit when it is time."""
        part, left_out = read.part, read.rows.left_out
        groups = [group for group in read.rows.groups if len(group)]
        if read.fault or not groups:
            self._record_without_rows(part, read.fault, left_out)
        for number, group in enumerate(groups, 1):
            name = part.scene_id if number == 1 else f"{part.scene_id}~{number}"
            reason = left_out_text(left_out, part.rows) if number == 1 else ""
            self.record(_entry(name, part.fingerprint, group, reason), group.grid.to_dict())
            self._waiting.append((name, part.fingerprint, group))
        if groups:
            self.left_out.update({reason: len(rows) for reason, rows in left_out.items()})
        self._hide_stale(part, len(groups))
        if sum(len(group) for _, _, group in self._waiting) >= self._segment_rows:
            self._write()
        if self.is_due:
            self.commit()

    def _record_without_rows(
        self, part: Source, fault: str, left_out: Mapping[str, npt.NDArray[np.int64]]
    ) -> None:
        reason = fault or left_out_text(left_out, part.rows)
        self.record(
            LedgerEntry(
                scene_id=part.scene_id,
                state="quarantined" if reason else "empty",
                fingerprint=part.fingerprint,
                reason=reason or "no rows",
            )
        )

    def _hide_stale(self, part: Source, groups: int) -> None:
        """Hide further scenes of an earlier state of the part that it no longer has."""
        number = max(groups, 1) + 1
        while (name := f"{part.scene_id}~{number}") in self._known:
            if self._known[name].state == "embedded":
                self.record(
                    LedgerEntry(
                        scene_id=name,
                        state="deleted",
                        fingerprint=part.fingerprint,
                        reason="its file was replaced",
                    )
                )
            number += 1

    def _write(self) -> None:
        if not self._waiting:
            return
        names, fingerprints, groups = zip(*self._waiting, strict=True)
        columns = {name: _joined([group.columns[name] for group in groups]) for name in _COLUMNS}
        columns["scene_index"] = np.repeat(
            np.arange(len(names), dtype=np.int32), [len(group) for group in groups]
        )
        content = [self._spec.encoder_fingerprint, list(zip(names, fingerprints, strict=True))]
        segment = SegmentRows(
            id=json_digest(content)[:20],
            scenes=names,
            grids=tuple(group.grid.id for group in groups),
            columns=columns,
        )
        self._receipts.append(write_segment(self._writer.fork, segment, self._spec))
        self._waiting = []


def left_out_text(left_out: Mapping[str, npt.NDArray[np.int64]], rows: int) -> str:
    """Return which rows were left out and why, in one line; empty when none were.

    Examples
    --------
    >>> left_out_text({"no vector": np.array([3, 8])}, 10)
    '2 of 10 rows left out: no vector (rows 3, 8)'
    """
    if not left_out:
        return ""
    reasons = []
    for reason, numbers in left_out.items():
        shown = ", ".join(map(str, numbers[:_ROWS_NAMED].tolist()))
        more = ", ..." if len(numbers) > _ROWS_NAMED else ""
        reasons.append(f"{reason} (rows {shown}{more})")
    count = sum(map(len, left_out.values()))
    return f"{count:,} of {rows:,} rows left out: {'; '.join(reasons)}"


def _entry(name: str, fingerprint: str, group: PlacedGroup, reason: str) -> LedgerEntry:
    moments = group.columns["datetime"].astype("datetime64[ms]")
    first, last = (as_utc(moment.item()) for moment in (moments.min(), moments.max()))
    return LedgerEntry(
        scene_id=name,
        state="embedded",
        fingerprint=fingerprint,
        datetime=first,
        reason=reason,
        rows=len(group),
        grid_id=group.grid.id,
        end=last if last > first else None,
    )


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _open_archive(plan: ImportPlan) -> Archive:
    """Return the plan's archive as it is now; make the archive when it is new."""
    if plan.existing is None:
        try:
            return Archive.create(plan.spec.archive_uri, plan.archive)
        except ArchiveConflictError:  # another import made it since the plan
            pass
    archive = Archive.open(plan.spec.archive_uri)
    if archive.spec.encoder_fingerprint != plan.archive.encoder_fingerprint:
        raise EncoderMismatchError(
            f"archive {archive.uri} was made for other vectors since the import was planned; run "
            "the command again"
        )
    return archive
