"""The Icechunk repository below an archive: opening, making, locking, and its failures by name.

:mod:`storage.archive.reader` reads what is in it, :mod:`storage.archive.writer` writes,
:mod:`storage.archive.maintenance` looks after it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import icechunk
import zarr
from filelock import FileLock

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
        Nothing is there.
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
    """Open the repository of an archive, or make it; another process may do so at this moment.

    Icechunk makes none where anything is. What a process that was killed while making one left
    there, its first snapshot, is removed once nobody finishes it.

    Raises
    ------
    ConfigError
        Other things are there.
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
    left = place.list()
    if other := [file for file in left if f"/snapshots/{_FIRST_SNAPSHOT}" not in file.uri]:
        raise ConfigError(
            f"archive {place}: no archive is there, but {other[0]} is; give an empty place"
        )
    for file in left:
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
    """Do the same with a fork of such a session, which reads the snapshot for itself."""
    fork = repository.writable_session(BRANCH).fork()
    fork.status()
    return fork


def has_root(session: icechunk.Session) -> bool:
    """Tell whether an archive was made in a repository; its making may have been cut off.

    Zarr takes a snapshot that cannot be read for an empty one, so it is read first.
    """
    session.status()
    try:
        zarr.open_group(session.store, mode="r")
    except zarr.errors.GroupNotFoundError:
        return False
    return True


@contextmanager
def translate_errors(place: Location) -> Iterator[None]:
    """Name the archive when its store fails; conflicts between writers pass as they are.

    Raises
    ------
    SkysiftError
        The store refuses, breaks off or cannot be reached.
    """
    try:
        yield
    except icechunk.IcechunkError as error:
        raise SkysiftError(
            f"archive {place}: its store failed: {store_reason(error)}; check the endpoint, the "
            "bucket, the credentials and the disk, then repeat: what was committed is kept"
        ) from error


@contextmanager
def store_refusals(place: Location, what: str) -> Iterator[None]:
    """Name the archive and the attempt when the repository refuses a change.

    Raises
    ------
    ArchiveConflictError
        It refused.
    """
    try:
        yield
    except icechunk.IcechunkError as error:
        reason = " ".join(str(error).split("`->")[-1].split())[:200]
        raise ArchiveConflictError(
            f"archive {place}: {what} was refused: {reason}; "
            "`skysift archive snapshots` shows how it stands, then repeat"
        ) from error


def store_reason(error: icechunk.IcechunkError) -> str:
    """Return what Icechunk says went wrong, without the trace that it draws below it."""
    said = " ".join(str(error).partition("context:")[0].replace("|", " ").split())
    return said.removeprefix("x ")[:200]


class commit_lock:
    """Serialise commits to a local archive; object stores do it themselves."""

    def __init__(self, place: Location) -> None:
        self._lock: FileLock | None = None
        if place.is_local:
            path = place.path.absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{path}.lock")

    def __enter__(self) -> None:
        if self._lock:
            self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock:
            self._lock.release()
