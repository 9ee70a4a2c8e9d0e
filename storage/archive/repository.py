"""The Icechunk repository below an archive: opening, making, and its failures by name.

:mod:`storage.archive.reader` reads the groups of a repository, :mod:`storage.archive.writer` writes
them, :mod:`storage.archive.maintenance` manages snapshots.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import icechunk
import zarr

from storage.errors import (
    ArchiveConflictError,
    ConfigError,
    CorruptIndexError,
    NotFoundError,
    SkysiftError,
)
from storage.location import Location

BRANCH = "main"
_FIRST_SNAPSHOT = "1CECHNKREP0F1RSTCMT0"
"""The id of the first snapshot of every repository."""
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)
"""What Zarr, its codecs and JSON raise for damaged content."""
_BRANCH_FILE = f"refs/branch.{BRANCH}/ref.json"
_DAMAGE = re.compile(
    r"annot read|Invalid Icechunk|invalid magic|(not |be )found|ref json|equested range"
)
"""Reasons of Icechunk that a file is damaged or gone; the others are of the store."""
_BROKEN_OFF = "I/O error"
"""Icechunk's reason for a damaged file, and for a store that broke off its answer."""
_DELETED = "ref.json.deleted"
_SNAPSHOTS_NAMED = 5
_MAKING_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
icechunk.set_logs_filter("error")  # the local-storage warning: commits hold a file lock below


def open_repository(place: Location) -> icechunk.Repository:
    """Open the repository of an archive.

    Raises
    ------
    NotFoundError
        The place holds no archive.
    SkysiftError
        The store refuses or cannot be reached.
    """
    missing = NotFoundError(f"no archive at {place}; `skysift ingest` creates one")
    if place.is_local and not place.path.is_dir():
        raise missing  # asking Icechunk would create the folder, or end this process at a file
    with translate_errors(place):
        if repository := _opened(place):
            return repository
        if not _snapshot_files(place):
            raise missing
        # A snapshot after the first is written after the branch, perhaps since the first look.
        if repository := _opened(place):
            return repository
    raise CorruptIndexError(f"archive {place}: {_BRANCH_FILE} is gone; {_way_back(place)}")


def _opened(place: Location) -> icechunk.Repository | None:
    """Return the repository of an archive, None when it has no branch."""
    try:
        return icechunk.Repository.open(place.icechunk())
    except icechunk.IcechunkError as error:
        if "doesn't exist" in str(error):
            return None
        raise


def make_repository(place: Location) -> icechunk.Repository:
    """Open the repository of an archive, or make it; another process may make it meanwhile.

    Icechunk makes a repository in an empty place only. The first snapshot of a repository whose
    making was killed is removed when no other process finishes it.

    Raises
    ------
    ConfigError
        The place holds other files.
    SkysiftError
        The store refuses or cannot be reached.
    """
    storage = place.icechunk()
    for pause_s in _MAKING_PAUSES_S:
        with suppress(icechunk.IcechunkError):
            return icechunk.Repository.open_or_create(storage)
        with suppress(NotFoundError):  # the other process is not done
            return open_repository(place)
        time.sleep(pause_s)
    files = place.list()
    if other := [file for file in files if f"/snapshots/{_FIRST_SNAPSHOT}" not in file.uri]:
        raise ConfigError(
            f"archive {place}: no archive is there, but {other[0]} is; give an empty place"
        )
    for file in files:
        file.delete()
    with translate_errors(place):
        return icechunk.Repository.open_or_create(storage)


def read_session(
    repository: icechunk.Repository, place: Location, snapshot: str | None
) -> icechunk.Session:
    """Open a snapshot of an archive, None for the newest, for reading.

    Raises
    ------
    NotFoundError
        There is no archive, or it has no such snapshot.
    SkysiftError
        The store refuses or cannot be reached.
    """
    missing = NotFoundError(
        f"archive {place} has no snapshot {snapshot or 'yet'!r}; "
        "`skysift archive snapshots` prints those it has"
    )
    with translate_errors(
        place, reading=f"snapshot {snapshot}" if snapshot else "the newest snapshot"
    ):
        try:
            session = (
                repository.readonly_session(snapshot_id=snapshot)
                if snapshot
                else repository.readonly_session(BRANCH)
            )
            session.status()
            stored = repository.lookup_snapshot(session.snapshot_id).id
        except icechunk.IcechunkError as error:
            if not snapshot or "snapshot" not in store_reason(error):
                raise
            raise missing from error
        if stored != session.snapshot_id:
            raise ValueError(f"its file holds snapshot {stored}")
        if not has_root(session):
            raise missing
    return session


def writing_session(repository: icechunk.Repository) -> icechunk.Session:
    """Open the newest snapshot for writing, and read it: see :func:`has_root`."""
    session = repository.writable_session(BRANCH)
    session.status()
    return session


def writing_fork(repository: icechunk.Repository) -> Any:
    """Return a fork of such a session; the fork reads the snapshot by itself."""
    fork = repository.writable_session(BRANCH).fork()
    fork.status()
    return fork


def has_root(session: icechunk.Session) -> bool:
    """Tell whether a repository holds an archive, whose making may have been cut off.

    Zarr takes an unreadable snapshot for an empty one, so the snapshot is read first.
    """
    session.status()
    try:
        zarr.open_group(session.store, mode="r")
    except zarr.errors.GroupNotFoundError:
        return False
    return True


def newest_snapshot(place: Location) -> str:
    """Return the snapshot that the archive names as its newest; empty when there is no such one.

    Icechunk opens no repository whose branch is damaged, so the branch's file is read here.
    """
    try:
        name = str(json.loads((place / _BRANCH_FILE).read())["snapshot"])
    except (NotFoundError, *UNREADABLE):
        return ""
    return name if (place / "snapshots" / name).exists() else ""


def name_newest(place: Location, snapshot: str) -> None:
    """Write the file of a damaged branch again.

    Raises
    ------
    NotFoundError
        There is no archive, or it has no such snapshot.
    """
    known = _snapshots(place)
    if snapshot not in known:
        raise NotFoundError(
            f"archive {place} has no snapshot {snapshot!r}; it has {', '.join(known) or 'none'}"
        )
    (place / _BRANCH_FILE).write(json.dumps({"snapshot": snapshot}).encode())


def tag_names(place: Location) -> list[str]:
    """Return the names of all tags; Icechunk's own list leaves out damaged tags."""
    found = (file.uri.rpartition("/refs/tag.") for file in (place / "refs").list())
    files = [name for _, mark, name in found if mark]
    names = {name.removesuffix("/ref.json") for name in files if name.endswith("/ref.json")}
    return sorted(name for name in names if f"{name}/{_DELETED}" not in files)


def remove_tag(repository: icechunk.Repository, place: Location, name: str) -> None:
    """Delete a tag, also a damaged one, with the mark that Icechunk leaves for a deleted tag."""
    try:
        with translate_errors(place):
            repository.delete_tag(name)
    except CorruptIndexError:
        (place / "refs" / f"tag.{name}" / _DELETED).write(b"")


def _snapshots(place: Location) -> list[str]:
    """Return the ids of the snapshots that have a file, the newest file first."""
    files = sorted(_snapshot_files(place), key=Location.modified_at, reverse=True)
    return [file.uri.rpartition("/")[2] for file in files]


def _snapshot_files(place: Location) -> list[Location]:
    folder = place / "snapshots"
    # s3fs lists a folder as a file of itself while another process writes the first file there.
    return [file for file in folder.list() if file not in (folder, folder / _FIRST_SNAPSHOT)]


def _way_back(place: Location) -> str:
    """Return the remedy for an archive whose newest state cannot be read."""
    try:
        newest = newest_snapshot(place)
        older = [name for name in _snapshots(place) if name != newest][:_SNAPSHOTS_NAMED]
    except SkysiftError:
        older = []
    return (
        "restore the archive from a copy, or go back with `skysift archive rollback` to the first "
        f"of these snapshots that can be read: {', '.join(older) or 'none'}; the next "
        "`skysift ingest` embeds the later scenes again"
    )


@contextmanager
def translate_errors(
    place: Location, change: str = "", *, reading: str = "", remedy: str = ""
) -> Iterator[None]:
    """Name the archive when its store fails; conflicts between writers pass as they are.

    Parameters
    ----------
    place
        The archive.
    change
        Name of the change that the block makes; an error then means that the repository refuses
        the change.
    reading
        Name of the part that the block reads; an error of Zarr, its codecs or JSON then means that
        the part is damaged.
    remedy
        The next step when that part is damaged; by default going back to an earlier snapshot.

    Raises
    ------
    SkysiftError
        The store refuses, breaks off or cannot be reached.
    CorruptIndexError
        A file is damaged or gone.
    ArchiveConflictError
        The repository refuses the change.
    """
    kinds = (icechunk.IcechunkError, *(UNREADABLE if reading else ()))
    try:
        yield
    except SkysiftError:
        raise
    except kinds as error:
        reason = store_reason(error) or type(error).__name__
        part = reading or "a file"
        damaged = _DAMAGE.search(reason) or (_BROKEN_OFF in reason and place.is_local)
        if isinstance(error, UNREADABLE) or (not change and damaged):
            raise CorruptIndexError(
                f"archive {place}: {part} is damaged ({reason}); {remedy or _way_back(place)}"
            ) from error
        if change:
            reason = " ".join(str(error).split("`->")[-1].split())[:200]
            raise ArchiveConflictError(
                f"archive {place}: {change} was refused: {reason}; "
                "`skysift archive snapshots` shows how it stands, then repeat"
            ) from error
        problem = (
            f"archive {place}: its store failed: {reason}; check the endpoint, the "
            "bucket, the credentials and the disk, then repeat: what was committed is kept"
        )
        if _BROKEN_OFF in reason:
            problem += f"; if it fails again, {part} is damaged: {remedy or _way_back(place)}"
        raise SkysiftError(problem) from error


def store_reason(error: Exception) -> str:
    """Return the first line of an error, without the trace that Icechunk writes below it."""
    reason = " ".join(str(error).partition("context:")[0].replace("|", " ").split())
    return reason.removeprefix("x ")[:200]
