"""The ledger: the state of every scene, as a fold over append-only pages.

Each commit of the archive adds one page (a JSON document) with the segments that it brought and
the scenes that it recorded. The state of the archive is the fold of the pages in order: the last
word on a scene wins. A row of a segment is *live* exactly when the ledger names that segment for
the row's scene, so a reprocessed scene hides its old rows by the same commit that brings the new
ones, and no tombstone is stored anywhere else.

A page ends with a line that holds its SHA-256, and names its own number, the digests of the
columns of its segments and the digest of the archive's spec. Pages of older archives have none.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from storage.values import check_types, printable

SceneState = Literal["embedded", "empty", "quarantined", "deleted"]
CHECKPOINT_EVERY_PAGES = 64
"""Interval of pages that repeat the whole state, which bounds the pages that opening reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """State of one scene.

    ``rows`` counts its tiles in segment ``segment_ordinal`` (None unless embedded);
    ``fingerprint`` identifies the pixels that were seen, so a changed scene is noticed, and
    ``files`` the local files that held them, empty when there were none or an early release wrote
    the entry; ``grid_id`` names the tile grid that was used. ``end`` and ``sources`` are the last
    moment of a composite and the ids of the scenes it was made from. A deleted scene keeps its
    entry, so that an ingest does not bring it back unasked. Id and reason are made printable, also
    those that an archive holds already.
    """

    scene_id: str
    state: SceneState
    fingerprint: str
    datetime: dt.datetime | None = None
    reason: str = ""
    rows: int = 0
    segment_ordinal: int | None = None
    grid_id: str | None = None
    end: dt.datetime | None = None
    sources: tuple[str, ...] = ()
    files: str = ""

    def __post_init__(self) -> None:
        for name in ("scene_id", "reason"):
            object.__setattr__(self, name, printable(getattr(self, name)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One immutable group of rows: ``ordinal`` counts segments in commit order, from 0.

    ``digests`` holds the SHA-256 of each column (:func:`column_digest`); it is empty in an archive
    that was written before there were digests.
    """

    ordinal: int
    id: str
    rows: int
    scenes: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The fold of all pages.

    ``grids`` maps grid ids to the plain description of each grid; ``spec_digest`` is that of the
    archive's spec, empty when no page states one.
    """

    pages: int = 0
    entries: Mapping[str, LedgerEntry] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    grids: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    spec_digest: str = ""

    def live_scenes(self, segment: Segment) -> frozenset[str]:
        """Return the scenes of a segment whose rows are live."""
        return frozenset(
            scene
            for scene in segment.scenes
            if scene in self.entries and self.entries[scene].segment_ordinal == segment.ordinal
        )

    def after(
        self,
        segments: Iterable[Segment],
        entries: Iterable[LedgerEntry],
        grids: Mapping[str, dict[str, Any]],
    ) -> "Ledger":
        """Return the state after one more page."""
        return replace(
            self,
            pages=self.pages + 1,
            entries={**self.entries, **{entry.scene_id: entry for entry in entries}},
            segments=(*self.segments, *segments),
            grids={**self.grids, **grids},
        )


def page_bytes(before: Ledger, after: Ledger) -> bytes:
    """Encode the page that leads from one state to the next."""
    kept = after.segments[: len(before.segments)] == before.segments
    whole = after.pages % CHECKPOINT_EVERY_PAGES == 0 or not kept
    known = {} if whole else before.entries
    page = {
        "page": before.pages,
        "spec_digest": after.spec_digest,
        "checkpoint": whole,
        "segments": [
            asdict(segment) for segment in after.segments[0 if whole else len(before.segments) :]
        ],
        "entries": [
            asdict(entry) for scene, entry in after.entries.items() if known.get(scene) != entry
        ],
        "grids": {
            grid_id: grid
            for grid_id, grid in after.grids.items()
            if whole or grid_id not in before.grids
        },
    }
    body = json.dumps(page, default=dt.datetime.isoformat, separators=(",", ":")).encode()
    return b"%s\n%s" % (body, hashlib.sha256(body).hexdigest().encode())


def fold_page(ledger: Ledger, data: bytes) -> Ledger:
    """Return the state after reading one page.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        The page is damaged, or is another page.
    """
    body, sealed, seal = data.partition(b"\n")
    if sealed and hashlib.sha256(body).hexdigest().encode() != seal:
        raise ValueError("its digest differs")
    page = json.loads(body)
    if page.get("page", ledger.pages) != ledger.pages:
        raise ValueError(f"it is page {page['page']}")
    if page["checkpoint"]:
        ledger = Ledger(pages=ledger.pages)
    ledger = replace(ledger, spec_digest=page.get("spec_digest", ""))
    segments = [Segment(**{**item, "scenes": tuple(item["scenes"])}) for item in page["segments"]]
    entries = [_entry(item) for item in page["entries"]]
    if not sealed:
        for part in (*segments, *entries):
            check_types(part)
    return ledger.after(segments, entries, page["grids"])


def column_digest(values: npt.NDArray[Any]) -> str:
    """Return the SHA-256 (hexadecimal) of an array's type, shape and values."""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def page_name(number: int) -> str:
    """Return the name under which a page is stored, from its number."""
    return f"{number:08d}"


def first_page_to_read(page_count: int) -> int:
    """Return the number of the last checkpoint page, from which a fold may start.

    Examples
    --------
    >>> [first_page_to_read(n) for n in (0, 5, 64, 65, 130)]
    [0, 0, 63, 63, 127]
    """
    return max(page_count // CHECKPOINT_EVERY_PAGES * CHECKPOINT_EVERY_PAGES - 1, 0)


def _entry(item: dict[str, Any]) -> LedgerEntry:
    values = item | {"sources": tuple(item.get("sources", ()))}
    for name in ("datetime", "end"):
        moment = item.get(name)
        values[name] = dt.datetime.fromisoformat(moment) if moment else None
    return LedgerEntry(**values)
