"""Checks of an archive: every scene accounted for, every row sound."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.archive.ledger import LedgerEntry, Segment
from storage.archive.reader import Archive, Columns
from storage.errors import CorruptIndexError
from storage.geometry import are_boxes

NORM_TOLERANCE = 5e-3
"""Allowed distance of a stored vector's norm from 1; float16 rounding stays below 1e-3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """The ledger against a catalog.

    ``missing`` scenes are in the catalog and in no state of the ledger: the archive has a gap.
    ``changed`` scenes were embedded from other pixels than the catalog offers now. ``unlisted``
    scenes are in the ledger but no longer in the catalog.
    """

    embedded: int
    empty: int
    quarantined: dict[str, str]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every scene of the catalog is accounted for, from its current pixels."""
        return not (self.missing or self.changed)


def audit(archive: Archive, catalog: Iterable[tuple[str, str]]) -> AuditReport:
    """Compare an archive's ledger with a catalog.

    Parameters
    ----------
    archive
        The archive, at the snapshot in question.
    catalog
        (scene id, fingerprint) of every scene that should be accounted for; an empty fingerprint
        (an item that the catalog reader rejected) is not compared.
    """
    fingerprints = dict(catalog)
    entries = archive.ledger.entries
    states = [entry.state for entry in entries.values()]
    return AuditReport(
        embedded=states.count("embedded"),
        empty=states.count("empty"),
        quarantined={
            entry.scene_id: entry.reason
            for entry in archive.scenes()
            if entry.state == "quarantined"
        },
        missing=tuple(sorted(fingerprints.keys() - entries.keys())),
        changed=tuple(
            sorted(
                scene
                for scene, fingerprint in fingerprints.items()
                if fingerprint and scene in entries and entries[scene].fingerprint != fingerprint
            )
        ),
        unlisted=tuple(sorted(entries.keys() - fingerprints.keys())),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A fault of stored rows, and the scenes that have to be embedded again."""

    text: str
    scenes: tuple[str, ...]


def verify(archive: Archive) -> list[str]:
    """Read every live row and return the faults, one line each.

    Compares each column with its digest in the ledger, and checks row counts against the ledger,
    vector norms, coordinate and fraction ranges, and that no (tile, scene) occurs twice. Memory:
    one segment's rows.
    """
    return [fault.text for fault in row_faults(archive)]


def row_faults(archive: Archive) -> list[Fault]:
    """Return the faults of all live rows; see :func:`verify`."""
    live = [sorted(archive.ledger.live_scenes(segment)) for segment in archive.segments]
    pairs = zip(archive.segments, live, strict=True)
    faults = [fault for pair in pairs for fault in _segment_faults(archive, *pair)]
    placed = {scene for scenes in live for scene in scenes}
    lost = [entry for entry in archive.scenes() if entry.rows and entry.scene_id not in placed]
    return faults + [_miscounted(entry, 0) for entry in lost]


def unsealed_segments(archive: Archive) -> list[Segment]:
    """Return the segments with live rows that an older Skysift wrote without digests."""
    return [
        segment
        for segment in archive.segments
        if not segment.digests and archive.ledger.live_scenes(segment)
    ]


def _segment_faults(archive: Archive, segment: Segment, scenes: list[str]) -> Iterator[Fault]:
    where, everywhere = f"segment {segment.id}", tuple(scenes)
    try:
        rows = archive.read_segment(segment.ordinal)
    except CorruptIndexError as error:
        yield Fault(text=f"{where}: {error}", scenes=everywhere)
        return
    # With sound digests the rows are as they were embedded, and would be so again.
    again = () if segment.digests else everywhere
    yield from (Fault(text=f"{where}: {text}", scenes=again) for text in _row_faults(rows))
    names, counts = np.unique(rows["scene"].astype(str), return_counts=True)
    found = dict(zip(names.tolist(), counts.tolist(), strict=True))
    for entry in (archive.ledger.entries[scene] for scene in scenes):
        if found.get(entry.scene_id, 0) != entry.rows:
            yield _miscounted(entry, found.get(entry.scene_id, 0))


def _miscounted(entry: LedgerEntry, found: int) -> Fault:
    text = f"scene {entry.scene_id}: {found} rows found, {entry.rows} in the ledger"
    return Fault(text=text, scenes=(entry.scene_id,))


def _row_faults(rows: Columns) -> list[str]:
    norms = np.linalg.norm(rows["embedding"].astype(np.float32), axis=1)
    keys = set(zip(rows["tile_key"].tolist(), rows["scene"].tolist(), strict=True))
    checks = {
        "vectors not finite or not of unit norm": ~(np.abs(norms - 1) < NORM_TOLERANCE),
        "boxes outside WGS84 or upside down": ~are_boxes(rows["bbox"]),
        "valid fractions outside [0, 1]": _outside_unit(rows["valid_fraction"]),
        "cloud fractions outside [0, 1]": _outside_unit(rows["cloud_fraction"]),
    }
    faults = [f"{int(bad.sum())} {fault}" for fault, bad in checks.items() if bad.any()]
    if len(keys) != len(norms):
        faults.append(f"{len(norms) - len(keys)} rows repeat a tile of the same scene")
    return faults


def _outside_unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return ~((values >= 0) & (values <= 1))
