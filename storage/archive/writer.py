"""Writing to the archive: segments into forks, and the one committer that merges them.

A segment is written whole into a fork of a session, in the job's own process or in a worker;
:class:`ArchiveWriter` merges forks and commits them together with a ledger page. Every commit
adds the page after the last one it saw, so two jobs that commit at once collide on that page: the
slower job reads the entries of the faster one and tries again with the rest.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import icechunk
import numpy as np
import numpy.typing as npt
import zarr

from storage.archive.ledger import (
    Ledger,
    LedgerEntry,
    Segment,
    column_digest,
    page_bytes,
    page_name,
)
from storage.archive.origins import ORIGINS, Origin, origins_to_bytes
from storage.archive.reader import STORED_COLUMNS, Archive, read_ledger
from storage.archive.repository import (
    translate_errors,
    writing_fork,
    writing_session,
)
from storage.archive.spec import ArchiveSpec
from storage.errors import ArchiveConflictError, SkysiftError
from storage.location import Location
from storage.locks import commit_lock
from storage.values import json_digest

CHUNK_ROWS = 8192
UNIT_NORM_TOLERANCE = 1e-2
"""How far from 1 the norm of a vector may be that is written."""
_TIME: dict[str, Any] = {"units": "milliseconds since 1970-01-01", "calendar": "standard"}
_WRITERS = 4
_COMMIT_ATTEMPTS = 5
_RETRY_AFTER_S = 0.2


@dataclass(frozen=True, kw_only=True)
class SegmentRows:
    """The rows of one segment, as arrays.

    ``scene_index`` (n,) int32 points into ``scenes`` and ``grids`` (one grid id a scene).
    ``columns`` holds ``embedding`` (n, D) of unit norm, ``tile`` (n, 2) int32 column and row,
    ``window`` (n, 4) int32 row, column, height, width in pixels, ``bbox`` (n, 4) float64 WGS84
    degrees w s e n, ``datetime`` (n,) datetime64 UTC, ``valid_fraction`` and ``cloud_fraction``
    (n,) in [0, 1] and, when the archive has classes, ``labels`` (n, K) uint8. ``origins`` are those
    of the scenes.
    """

    id: str
    scenes: tuple[str, ...]
    grids: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[Any]]
    origins: tuple[Origin, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["embedding"])


@dataclass(frozen=True, kw_only=True)
class SegmentReceipt:
    """A written segment on its way to the committer: the fork that holds it, size and digests."""

    id: str
    rows: int
    scenes: tuple[str, ...]
    digests: Mapping[str, str]
    fork: Any


class ArchiveWriter:
    """The one committer of a job.

    Segments are written into the fork that :attr:`fork` hands out (in this process or a worker);
    :meth:`commit` merges their receipts and records the states of their scenes.

    Parameters
    ----------
    archive
        An open archive, whose repository and ledger are used, or a place to open.
    """

    def __init__(self, archive: Archive | Location | str) -> None:
        if not isinstance(archive, Archive):
            archive = Archive.open(archive)
        self.location = archive.location
        self._repository = archive.repository
        with translate_errors(self.location):
            self.fork: Any = writing_fork(self._repository)
        self._known = (archive.snapshot, archive.ledger)

    def commit(
        self,
        receipts: Sequence[SegmentReceipt],
        entries: Sequence[LedgerEntry],
        grids: Mapping[str, dict[str, Any]],
        message: str,
        digests: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    ) -> str:
        """Commit segments and entries of scenes; return the new snapshot's id.

        ``digests`` are those of the columns of committed segments, by ordinal, for an archive that
        was written without.

        An entry whose scene is in one of the segments gets that segment's ordinal here. When
        another writer commits first, the same segments are merged onto its commit and tried
        again, without the scenes that the other writer recorded from the same pixels. A commit to
        an object store that fails is tried again as well: a commit that took effect unseen is
        recognised by its entries.

        Raises
        ------
        ArchiveConflictError
            Other writers were faster on every attempt.
        SkysiftError
            The store failed on every attempt.
        """
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                with translate_errors(self.location), commit_lock(self.location):
                    session = writing_session(self._repository)
                    ledger = self._ledger_of(session)
                    entries, receipts = _pending_entries(ledger, entries, receipts)
                    if not entries and not digests:
                        return str(session.snapshot_id)
                    session.merge(*{id(r.fork): r.fork for r in receipts}.values())
                    after = _advance(ledger, receipts, entries, grids)
                    after = _sealed(after, session, digests)
                    pages = zarr.open_group(session.store, mode="a", path="ledger")
                    _put_bytes(pages, page_name(ledger.pages), page_bytes(ledger, after))
                    snapshot = str(session.commit(message))
                    self._known = (snapshot, after)
                    self.fork = writing_fork(self._repository)
                    return snapshot
            except icechunk.ConflictError:
                continue
            except SkysiftError:
                if self.location.is_local or attempt == _COMMIT_ATTEMPTS - 1:
                    raise  # a disk that is full stays full
                time.sleep(_RETRY_AFTER_S * 2**attempt)
        raise _outrun(self.location)

    def _ledger_of(self, session: icechunk.Session) -> Ledger:
        """Read the ledger that a session starts from, unless this writer wrote it."""
        snapshot = str(session.snapshot_id)
        if self._known[0] != snapshot:
            self._known = (snapshot, read_ledger(zarr.open_group(session.store, mode="r")))
        return self._known[1]


def write_origins(archive: Archive, origins: Mapping[str, Origin]) -> str:
    """Commit the origins of embedded scenes, by scene id, in place of those that are stored.

    Returns
    -------
    The id of the new snapshot; rows and ledger are those of the newest snapshot.

    Raises
    ------
    ArchiveConflictError
        Other writers were faster on every attempt.
    """
    place = archive.location
    for _ in range(_COMMIT_ATTEMPTS):
        newest = archive.latest()
        with translate_errors(place), commit_lock(place), suppress(icechunk.ConflictError):
            session = writing_session(newest.repository)
            segments = zarr.open_group(session.store, mode="a", path="segments")
            for segment in newest.segments:
                fresh = {name: origins[name] for name in segment.scenes if name in origins}
                if fresh:
                    known = newest.origins(segment.ordinal) | fresh
                    group = segments.require_group(segment.id)
                    _put_bytes(group, ORIGINS, origins_to_bytes(known.values()))
            return str(session.commit(f"remember the files of {len(origins)} scenes"))
    raise _outrun(place)


def write_segment(fork: Any, rows: SegmentRows, spec: ArchiveSpec) -> SegmentReceipt:
    """Write one segment into a fork of a session.

    Raises
    ------
    SkysiftError
        An embedding is not finite or not of unit norm, or a column has the wrong shape.
    """
    with ThreadPoolExecutor(_WRITERS) as pool:
        columns = {**rows.columns, "embedding": _checked_embedding(rows, spec, pool)}
        columns["datetime"] = columns["datetime"].astype("datetime64[ms]").astype(np.int64)
        segment_id = _unused_id(fork, rows.id)
        group = zarr.open_group(fork.store, mode="a", path="segments").create_group(
            segment_id, overwrite=True
        )
        group.attrs.update({"scenes": list(rows.scenes), "grids": list(rows.grids)})
        names = (*STORED_COLUMNS, "labels") if spec.classes else STORED_COLUMNS
        arrays = [_array(group, name, columns[name], rows) for name in names]
        digests = dict(zip(names, pool.map(_write, arrays), strict=True))
    if rows.origins:
        _put_bytes(group, ORIGINS, origins_to_bytes(rows.origins))
    return SegmentReceipt(
        id=segment_id, rows=len(rows), scenes=rows.scenes, digests=digests, fork=fork
    )


def _array(
    group: zarr.Group, name: str, values: npt.NDArray[Any], rows: SegmentRows
) -> tuple[Any, npt.NDArray[Any]]:
    """Return a new array for a column, and the values to write."""
    data = np.ascontiguousarray(values)
    if len(data) != len(rows):
        raise SkysiftError(
            f"segment {rows.id}: column {name} has {len(data)} rows, expected {len(rows)}"
        )
    # Equal chunks of at most CHUNK_ROWS: edge chunks are stored whole.
    count = max(len(data), 1)
    chunk_rows = math.ceil(count / math.ceil(count / CHUNK_ROWS))
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(chunk_rows, *data.shape[1:]),
        dimension_names=["row", *([f"{name}_axis"] if data.ndim == 2 else [])],
        # Unit vectors in float16 do not compress; the other columns do.
        compressors=None if name == "embedding" else "auto",
        attributes=dict(_TIME) if name == "datetime" else None,
    )
    return array, data


def _write(pair: tuple[Any, npt.NDArray[Any]]) -> str:
    """Write an array and return the digest of its values."""
    array, data = pair
    array[...] = data
    return column_digest(data)


def _unused_id(fork: Any, segment_id: str) -> str:
    """Return the id for a segment: its own, or the next one when that is committed already.

    A deleted scene that is embedded again makes the segment that it made before. Under the old
    id its hidden rows would come back to life, which readers such as an index rely on not to
    happen.
    """
    root = zarr.open_group(fork.store, mode="r")
    if f"segments/{segment_id}" not in root:
        return segment_id
    committed = {segment.id for segment in read_ledger(root).segments}
    number, unused = 1, segment_id
    while unused in committed:
        number += 1
        unused = f"{segment_id}-{number}"
    return unused


def _checked_embedding(
    rows: SegmentRows, spec: ArchiveSpec, pool: ThreadPoolExecutor
) -> npt.NDArray[np.float16]:
    """Check vectors and round them to float16, block by block in the threads of a pool."""
    embedding = np.asarray(rows.columns["embedding"], dtype=np.float32)
    if embedding.ndim != 2 or embedding.shape[1] != spec.dimension:
        raise SkysiftError(
            f"segment {rows.id}: embeddings of shape {embedding.shape}, expected "
            f"(rows, {spec.dimension}) for encoder {spec.encoder_fingerprint[:12]}"
        )
    norms = np.empty(len(embedding), dtype=np.float32)
    rounded = np.empty(embedding.shape, dtype=np.float16)

    def check(start: int) -> None:
        rows = slice(start, start + CHUNK_ROWS)
        norms[rows] = np.sqrt(np.einsum("nd,nd->n", embedding[rows], embedding[rows]))
        with np.errstate(over="ignore"):  # such vectors are refused below
            rounded[rows] = embedding[rows]

    list(pool.map(check, range(0, len(embedding), CHUNK_ROWS)))
    if not np.all(np.abs(norms - 1) < UNIT_NORM_TOLERANCE):
        worst = int(np.nanargmax(np.where(np.isfinite(norms), np.abs(norms - 1), np.inf)))
        raise SkysiftError(
            f"segment {rows.id}: row {worst} has norm {norms[worst]:.4g}, expected 1; "
            "embeddings must be finite and L2-normalised"
        )
    return rounded


def _outrun(place: Location) -> ArchiveConflictError:
    return ArchiveConflictError(
        f"archive {place}: other writers committed first {_COMMIT_ATTEMPTS} times; "
        "run one ingest at a time, then repeat this one: finished scenes are skipped"
    )


def _pending_entries(
    ledger: Ledger, entries: Sequence[LedgerEntry], receipts: Sequence[SegmentReceipt]
) -> tuple[list[LedgerEntry], list[SegmentReceipt]]:
    """Return the entries and receipts that a commit adds; the forks keep no other segment.

    A segment that is committed already was made by another job from the same pixels; the ledger's
    entries of its scenes are newer than those of this writer.
    """
    committed = {segment.id for segment in ledger.segments}
    superseded = {scene for r in receipts if r.id in committed for scene in r.scenes}
    pending = [e for e in entries if e.scene_id not in superseded and not _is_recorded(ledger, e)]
    scenes = {entry.scene_id for entry in pending}
    needed = [r for r in receipts if scenes.intersection(r.scenes)]
    for receipt in receipts:
        if receipt not in needed:
            # Merged as well, its rows would occur twice, or without a ledger entry.
            del zarr.open_group(receipt.fork.store, mode="a", path="segments")[receipt.id]
    return pending, needed


def _is_recorded(ledger: Ledger, entry: LedgerEntry) -> bool:
    known = ledger.entries.get(entry.scene_id)
    if known is None:
        return False
    if known.state == "deleted" and entry.fingerprint and entry.fingerprint == known.fingerprint:
        return True  # deleted since this job began: an ingest leaves deleted scenes out
    return (known.state, known.fingerprint, known.reason, known.files) == (
        entry.state,
        entry.fingerprint,
        entry.reason,
        entry.files,
    )


def _advance(
    ledger: Ledger,
    receipts: Iterable[SegmentReceipt],
    entries: Sequence[LedgerEntry],
    grids: Mapping[str, dict[str, Any]],
) -> Ledger:
    fresh = [
        Segment(
            ordinal=ordinal,
            id=receipt.id,
            rows=receipt.rows,
            scenes=receipt.scenes,
            digests=receipt.digests,
        )
        for ordinal, receipt in enumerate(receipts, start=len(ledger.segments))
    ]
    home = {scene: segment.ordinal for segment in fresh for scene in segment.scenes}
    placed = [
        replace(entry, segment_ordinal=home[entry.scene_id]) if entry.scene_id in home else entry
        for entry in entries
    ]
    return ledger.after(fresh, placed, grids)


def _sealed(
    ledger: Ledger, session: icechunk.Session, digests: Mapping[int, Mapping[str, str]]
) -> Ledger:
    """Return a ledger that states the digest of the archive's spec, and those of segments."""
    if not ledger.spec_digest:
        attributes = dict(zarr.open_group(session.store, mode="r").attrs)
        ledger = replace(ledger, spec_digest=json_digest(attributes))
    if not digests:
        return ledger
    segments = tuple(
        replace(segment, digests=segment.digests or digests.get(segment.ordinal, {}))
        for segment in ledger.segments
    )
    return replace(ledger, segments=segments)


def _put_bytes(group: zarr.Group, name: str, content: bytes) -> None:
    data = np.frombuffer(content, dtype=np.uint8)
    group.create_array(name, data=data, chunks=data.shape, overwrite=name == ORIGINS)
