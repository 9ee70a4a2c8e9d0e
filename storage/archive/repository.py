"""The Icechunk repository below an archive: opening, making, and its failures by name.

:mod:`storage.archive.reader` reads the groups of a repository, :mod:`storage.archive.writer` writes
them, :mod:`storage.archive.maintenance` manages snapshots.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import icechunk
import zarr

from storage.errors import ArchiveConflictError, ConfigError, NotFoundError, SkysiftError
from storage.location import Location

BRANCH = "main"
_FIRST_SNAPSHOT = "1CECHNKREP0F1RSTCMT0"
"""The id of the first snapshot of every repository."""
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
    if place.is_local and not place.path.exists():
        raise missing  # asking Icechunk would create the folder
    with translate_errors(place):
        try:
            return icechunk.Repository.open(place.icechunk())
        except icechunk.IcechunkError as error:
            if "doesn't exist" not in str(error):
                raise
            raise missing from error


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
    with translate_errors(place):
        try:
            session = (
                repository.readonly_session(snapshot_id=snapshot)
                if snapshot
                else repository.readonly_session(BRANCH)
            )
        except icechunk.IcechunkError as error:
            if "snapshot" not in store_reason(error):
                raise
            raise missing from error
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


@contextmanager
def translate_errors(place: Location, change: str = "") -> Iterator[None]:
    """Name the archive when its store fails; conflicts between writers pass as they are.

    Parameters
    ----------
    place
        The archive.
    change
        Name of the change that the block makes; an error then means that the repository refuses
        the change.

    Raises
    ------
    SkysiftError
        The store refuses, breaks off or cannot be reached.
    ArchiveConflictError
        The repository refuses the change.
    """
    try:
        yield
    except icechunk.IcechunkError as error:
        if change:
            reason = " ".join(str(error).split("`->")[-1].split())[:200]
            raise ArchiveConflictError(
                f"archive {place}: {change} was refused: {reason}; "
                "`skysift archive snapshots` shows how it stands, then repeat"
            ) from error
        raise SkysiftError(
            f"archive {place}: its store failed: {store_reason(error)}; check the endpoint, the "
            "bucket, the credentials and the disk, then repeat: what was committed is kept"
        ) from error


def store_reason(error: icechunk.IcechunkError) -> str:
    """Return the first line of an Icechunk error, without the trace below it."""
    reason = " ".join(str(error).partition("context:")[0].replace("|", " ").split())
    return reason.removeprefix("x ")[:200]
