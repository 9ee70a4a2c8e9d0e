"""Maintenance of an archive: deleting scenes, tags, going back, freeing space.

Every change is a commit or a move of a reference; rows are never rewritten. Rows that a
deletion or a rollback hides stay readable at their snapshot until :func:`collect_garbage` expires
the snapshot.

A deleted scene keeps its ledger entry, in state ``deleted`` and with the fingerprint of the pixels
that were embedded. So an ingest of the same catalog leaves it out, and embeds it again only when
its pixels changed, or when the deletion allows it (``again=True``, which forgets the
fingerprint).

:func:`mend` does the same to the scenes of damaged segments; :func:`remember` changes where their
files are.
"""

import datetime as dt
import hashlib
import itertools
import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import icechunk

from storage.archive.audit import row_faults, unsealed_segments
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.repository import (
    BRANCH,
    name_newest,
    newest_snapshot,
    open_repository,
    remove_tag,
    store_reason,
    tag_names,
    translate_errors,
)
from storage.archive.writer import ArchiveWriter, write_origins
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.location import Location
from storage.locks import commit_lock
from storage.scene import Scene

logger = logging.getLogger(__name__)

MINIMUM_AGE = dt.timedelta(hours=1)
"""No object younger than this is collected: a running ingest may be about to commit it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """Result of :func:`delete_scenes`: ``rows`` are no longer live at ``snapshot``."""

    snapshot: str
    scenes: tuple[str, ...]
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Mending:
    """Result of :func:`mend`: scenes to embed again, and segments that have got digests."""

    snapshot: str
    scenes: tuple[str, ...]
    sealed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Result of :func:`remember`: scenes with files now, those that the catalog lacks, and others.

    ``changed`` are scenes whose files are others than those that were embedded.
    """

    snapshot: str
    scenes: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """A move of the newest state to ``snapshot``; rolling back to ``previous`` undoes it."""

    snapshot: str
    previous: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Snapshots and bytes that :func:`collect_garbage` freed, or would free."""

    expired: tuple[str, ...]
    freed_bytes: int
    dry_run: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotEntry:
    """One snapshot of the archive's history, with the tags that name it."""

    id: str
    written_at: dt.datetime
    message: str
    tags: tuple[str, ...]


def delete_scenes(
    uri: str | Location,
    scene_ids: Sequence[str],
    *,
    reason: str = "deleted",
    again: bool = False,
) -> Deletion:
    """Hide all rows of scenes, in one commit; older snapshots still show them.

    Parameters
    ----------
    uri
        The archive.
    scene_ids
        Scenes of the ledger, in any state; deleting a deleted scene changes nothing.
    reason
        Kept in the ledger.
    again
        Let the next ingest embed them again, also from the same pixels. True for a scene that is
        deleted already lets the next ingest embed the scene.

    Raises
    ------
    NotFoundError
        There is no archive, or it does not know one of the scenes; then none is deleted.
    ConfigError
        No scene is named.
    """
    ids = tuple(dict.fromkeys(scene_ids))
    if not ids:
        raise ConfigError("no scene to delete is named; give at least one id")
    archive = Archive.open(uri)
    known = archive.ledger.entries
    missing = [scene for scene in ids if scene not in known]
    if missing:
        raise NotFoundError(
            f"archive {uri} has no scene {', '.join(missing[:5])}"
            f"{f' (and {len(missing) - 5} more)' if len(missing) > 5 else ''}; nothing was "
            "deleted: `skysift archive info --scenes` lists those it has"
        )
    entries = [_deleted(known[scene], reason, again) for scene in ids]
    changed = [entry for entry in entries if entry != known[entry.scene_id]]
    snapshot = archive.snapshot
    if changed:
        message = f"delete {len(changed)} scenes"
        snapshot = ArchiveWriter(archive).commit([], changed, {}, message)
    return Deletion(snapshot=snapshot, scenes=ids, rows=sum(known[scene].rows for scene in ids))


def mend(uri: str | Location) -> Mending:
    """Hide the scenes of damaged segments, so that the next ingest embeds these scenes again.

    Segments that an older Skysift wrote without digests get digests of their present content.

    Raises
    ------
    NotFoundError
        There is no archive.
    CorruptIndexError
        The newest snapshot itself is damaged; :func:`rollback` is the remedy.
    """
    archive = Archive.open(uri)
    entries = archive.ledger.entries
    scenes = sorted({scene for fault in row_faults(archive) for scene in fault.scenes})
    digests = {
        segment.ordinal: archive.digests(segment)
        for segment in unsealed_segments(archive)
        if not archive.ledger.live_scenes(segment).intersection(scenes)
    }
    snapshot = archive.snapshot
    if scenes or digests:
        changed = [_deleted(entries[scene], "its rows were damaged", True) for scene in scenes]
        message = f"mend: {len(scenes)} scenes to embed again, {len(digests)} segments sealed"
        snapshot = ArchiveWriter(archive).commit([], changed, {}, message, digests)
    return Mending(snapshot=snapshot, scenes=tuple(scenes), sealed=len(digests))


def remember(uri: str | Location, catalog: str | Location, scenes: Iterable[Scene]) -> Memory:
    """Note in an archive where the files of its scenes are, in place of earlier notes.

    For an archive of an earlier Skysift, which noted none, and for files that were moved. Rows
    stay as they are, and so do the notes of scenes that are not among ``scenes``.

    Parameters
    ----------
    uri
        The archive.
    catalog
        Where the scenes were listed.
    scenes
        Scenes with their files.

    Raises
    ------
    NotFoundError
        There is no archive, or none of its scenes is among ``scenes``.
    """
    archive = Archive.open(uri)
    source = str(Location.of(catalog).absolute)
    embedded = {e.scene_id: e.fingerprint for e in archive.scenes() if e.state == "embedded"}
    found = {
        scene.id: Origin(scene=scene, catalog=source) for scene in scenes if scene.id in embedded
    }
    if not found:
        raise NotFoundError(
            f"{source} lists none of the {len(embedded)} scenes of archive {uri}; give the catalog "
            "that was ingested (`skysift archive info --scenes` lists the scenes)"
        )
    changed = (
        name
        for name, origin in found.items()
        if origin.scene.known_as(embedded[name]) != embedded[name]
    )
    return Memory(
        snapshot=write_origins(archive, found),
        scenes=tuple(sorted(found)),
        missing=tuple(sorted(embedded.keys() - found.keys())),
        changed=tuple(sorted(changed)),
    )


def list_snapshots(uri: str | Location) -> list[SnapshotEntry]:
    """Return the history of the newest state, the newest first.

    Raises
    ------
    NotFoundError
        There is no archive.
    """
    archive = Archive.open(uri)
    tags = list_tags(archive.location)
    return [
        SnapshotEntry(
            id=snapshot,
            written_at=dt.datetime.fromisoformat(written_at),
            message=message,
            tags=tuple(name for name, tagged in tags.items() if tagged == snapshot),
        )
        for snapshot, written_at, message in archive.snapshots()
    ]


def list_tags(uri: str | Location) -> dict[str, str]:
    """Return the snapshot that each tag names, by tag.

    Raises
    ------
    NotFoundError
        There is no archive.
    CorruptIndexError
        A tag is damaged.
    """
    place = Location.of(uri)
    repository = open_repository(place)
    return {tag: _tagged(repository, place, tag) for tag in tag_names(place)}


def resolve_snapshot(uri: str | Location, name: str) -> str:
    """Return the snapshot that a tag names; any other name is taken for a snapshot's id."""
    place = Location.of(uri)
    if name not in tag_names(place):
        return name
    return _tagged(open_repository(place), place, name)


def _tagged(repository: icechunk.Repository, place: Location, tag: str) -> str:
    remedy = f"`skysift archive tag {tag} --delete` removes the tag"
    with translate_errors(place, reading=f"tag {tag}", remedy=remedy):
        snapshot = str(repository.lookup_tag(tag))
        if not (place / "snapshots" / snapshot).exists():
            raise ValueError(f"it names {snapshot}, which is gone")
        return snapshot


def create_tag(
    uri: str | Location,
    name: str,
    snapshot: str | None = None,
) -> str:
    """Name a snapshot, the newest by default; return its id. Tagged snapshots never expire.

    Raises
    ------
    NotFoundError
        There is no such archive or snapshot.
    ConfigError
        The name is not usable.
    ArchiveConflictError
        The name is or was taken: a tag means one snapshot for ever, also after its deletion.
    """
    if not name or {*"/:"}.intersection(name) or not name.isprintable() or name != name.strip():
        raise ConfigError(f"{name!r} is no name for a tag; use letters, digits, '-' and '.'")
    archive = Archive.open(uri, snapshot)
    with translate_errors(archive.location, f"tag {name!r}"):
        archive.repository.create_tag(name, archive.snapshot)
    return archive.snapshot


def delete_tag(uri: str | Location, name: str) -> None:
    """Remove a tag; its name cannot be used again.

    Raises
    ------
    NotFoundError
        There is no such archive or tag.
    """
    place = Location.of(uri)
    repository, tags = open_repository(place), tag_names(place)
    if name not in tags:
        raise NotFoundError(
            f"archive {uri} has no tag {name!r}; it has {', '.join(tags) or 'none'}"
        )
    remove_tag(repository, place, name)


def pin_snapshot(
    uri: str | Location,
    snapshot: str,
    index_uri: str | Location,
    version: str,
) -> None:
    """Keep a snapshot for as long as a version of an index reads it.

    A pin is a tag that :func:`unpin_snapshots` takes back. Without leave to write to the archive
    nothing is pinned, and a warning says so.
    """
    base = f"{_pin_prefix(index_uri)}{version}"
    place = Location.of(uri)
    repository = open_repository(place)
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}:{number}"
        with suppress(CorruptIndexError):
            if name in tag_names(place) and _tagged(repository, place, name) == snapshot:
                return
        try:
            repository.create_tag(name, snapshot)
        except icechunk.IcechunkError as error:
            if "already exists" in str(error):
                continue  # the name of a pin that was taken back cannot be used again
            logger.warning(
                "snapshot %s of archive %s could not be pinned for index %s; do not collect the "
                "archive's garbage while the index is in use: %s",
                *(snapshot, uri, index_uri, store_reason(error)),
            )
        return


def unpin_snapshots(
    uri: str | Location,
    index_uri: str | Location,
    keep: Collection[str],
) -> None:
    """Take back the pins of all versions of an index but some.

    Raises
    ------
    NotFoundError
        There is no archive.
    ArchiveConflictError
        The store refuses.
    """
    place, prefix = Location.of(uri), _pin_prefix(index_uri)
    repository = open_repository(place)
    with translate_errors(place, f"taking back the pins of index {index_uri}"):
        for name in tag_names(place):
            if name.startswith(prefix) and name.removeprefix(prefix).split(":")[0] not in keep:
                remove_tag(repository, place, name)


def _pin_prefix(index_uri: str | Location) -> str:
    """Return how the tags of an index begin; people's tags have no colon."""
    digest = hashlib.sha256(Location.of(index_uri).absolute.uri.encode()).hexdigest()[:12]
    return f"index:{digest}:"


def rollback(uri: str | Location, to: str) -> Rollback:
    """Make an earlier state the newest one again.

    Later commits leave the history, yet stay readable by their snapshots (which
    can be rolled back to) until garbage is collected; tag a snapshot to keep it. The next ingest
    embeds the scenes that the earlier state does not have. An index of a later snapshot must be
    built again: rows that the index hides as deleted may be live now.

    Parameters
    ----------
    uri
        The archive. Let no ingest run.
    to
        A snapshot's id, or a tag.

    Raises
    ------
    NotFoundError
        There is no such archive, snapshot or tag.
    ArchiveConflictError
        Another writer committed meanwhile.
    """
    place = Location.of(uri)
    with commit_lock(place):
        previous = newest_snapshot(place)
        if not previous:
            name_newest(place, to)
        archive = Archive.open(place, resolve_snapshot(place, to))
        target = archive.snapshot
        with translate_errors(place, f"going back to {target}"):
            if previous not in ("", target):
                archive.repository.reset_branch(BRANCH, target, from_snapshot_id=previous)
    return Rollback(snapshot=target, previous=previous)


def collect_garbage(
    uri: str | Location,
    older_than: dt.timedelta,
    *,
    dry_run: bool = False,
    now: dt.datetime | None = None,
) -> Garbage:
    """Forget old snapshots and free the objects that only they need.

    The newest state, tagged snapshots and snapshots that a version of an index pins always stay, as
    do all their rows; collecting the garbage of the index takes pins back.

    Parameters
    ----------
    uri
        The archive.
    older_than
        Age from which snapshots, and objects that nothing refers to, go; at least
        :data:`MINIMUM_AGE`.
    dry_run
        Change nothing; ``freed_bytes`` then counts the objects that are unreachable already, not
        those of snapshots that would expire.
    now
        The time that ages are counted to.

    Raises
    ------
    NotFoundError
        There is no archive.
    ConfigError
        ``older_than`` is too short to be safe.
    """
    if older_than < MINIMUM_AGE:
        raise ConfigError(
            f"objects of {older_than} ago may belong to a running ingest; "
            f"give at least {MINIMUM_AGE} (h:mm:ss)"
        )
    limit = (now or dt.datetime.now(dt.UTC)) - older_than
    place = Location.of(uri)
    with commit_lock(place), translate_errors(place, "collecting garbage"):
        repository = open_repository(place)
        newest, *older = repository.ancestry(branch=BRANCH)
        protected = {newest.id, *list_tags(place).values()}
        # The repository's own first snapshot has no parent and is always kept.
        expired = [
            item.id
            for item in older
            if item.id not in protected and item.parent_id is not None and item.written_at < limit
        ]
        if not dry_run:
            expired = sorted({*repository.expire_snapshots(limit)} - protected)
        summary = repository.garbage_collect(limit, dry_run=dry_run)
    return Garbage(
        expired=tuple(sorted(expired)), freed_bytes=int(summary.bytes_deleted), dry_run=dry_run
    )


def _deleted(entry: LedgerEntry, reason: str, again: bool) -> LedgerEntry:
    if entry.state == "deleted" and not (again and entry.fingerprint):
        return entry
    return LedgerEntry(
        scene_id=entry.scene_id,
        state="deleted",
        fingerprint="" if again else entry.fingerprint,
        datetime=entry.datetime,
        reason=entry.reason if entry.state == "deleted" else reason,
    )
