"""Locks: one process works on an output, one watches an archive, one commits at a time.

On a disk a lock is a lock of the operating system, which ends with its process however the process
ends. In an object store a lock is a lease: a small object, created on the condition that there is
none and renewed while its holder lives. A lease that was not renewed for a minute is dead, and the
next process takes it over. Leases need a store with conditional writes (S3 has them; another store
is used with a warning and without a lock) and clocks that agree to seconds.
"""

import errno
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from storage.errors import NotFoundError, SkysiftError
from storage.location import Location, named_failures, split_uri
from storage.values import check_types, is_running

logger = logging.getLogger(__name__)

LEASE_S = 60.0
_RENEWALS = 4  # in each lease, so that a slow store costs no lease


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    since: str
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """Return this process, with a new token for each lock."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=socket.gethostname(), pid=os.getpid(), since=since, token=uuid.uuid4().hex)

    @classmethod
    def read(cls, data: bytes) -> "Holder":
        """Return the holder that a lock's file names, an unknown one where the file is damaged."""
        try:
            holder = cls(**json.loads(data))
            check_types(holder)
        except (ValueError, TypeError):
            return cls(host="an unknown machine", pid=0, since="an unknown time", token="")
        return holder

    def to_bytes(self) -> bytes:
        """Return the content of a lock's file."""
        return json.dumps(asdict(self)).encode()

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended: it ran on this machine."""
        return self.host == socket.gethostname() and not is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def exclusive_lock(
    uri: str | Location,
    work: str,
    *,
    beside: str = "",
    lease_s: float = LEASE_S,
) -> Iterator[Callable[[], None]]:
    """Be the only process that works on a folder inside the block.

    Parameters
    ----------
    uri
        Folder, which need not exist.
    work
        Name of the work, for the message to other processes: ``training``.
    beside
        Suffix of the lock's files where they may not lie in the folder, but have to lie beside.
    lease_s
        Seconds after which a lease in an object store is dead when its holder does not renew it.

    Yields
    ------
    callable
        Raises SkysiftError once another process has the lease: this process was silent for longer
        than a lease. To be called before something is written that must not be written twice.

    Raises
    ------
    SkysiftError
        Another process holds the lock; the message names it.
    """
    place = Location.of(uri)
    folder = place.uri.rstrip("/")
    is_bucket = not place.is_local and "/" not in split_uri(folder)[1]
    stem = f"{folder}.{beside}" if beside and not is_bucket else f"{folder}/.{beside or 'owner'}"
    with _held(place, stem, work, lease_s) as check:
        yield check


@contextmanager
def watcher_lock(uri: str | Location) -> Iterator[Callable[[], None]]:
    """Be the only watcher of an archive inside the block; see :func:`exclusive_lock`.

    The lock lies beside the archive, whose folder holds nothing but its repository.
    """
    with exclusive_lock(uri, "`skysift watch`", beside="watch") as check:
        yield check


@contextmanager
def commit_lock(place: Location) -> Iterator[None]:
    """Wait for other commits to a local archive; object stores order commits themselves."""
    if not place.is_local:
        yield
        return
    path = place.path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def exchange(folder: Location, name: str, before: bytes, after: bytes) -> bool:
    """Replace a small file of a folder if its content is still ``before``; tell whether it was.

    An empty ``before`` stands for no file.
    """
    file = folder / name
    if not file.is_local:
        try:
            return _exchange_remote(file, before, after)
        except _NoConditionsError:
            logger.warning("%s lacks conditional writes: keep two writers apart yourself", folder)
            file.write(after)
            return True
    with commit_lock(folder):
        if _content(file) != before:
            return False
        file.write(after)
        return True


def _content(file: Location) -> bytes:
    try:
        return file.read()
    except NotFoundError:
        return b""


def _exchange_remote(file: Location, before: bytes, after: bytes) -> bool:
    etag = _modified_at(file)[1] if file.exists() else None
    return _content(file) == before and _write_if(file, after, etag) is not None


@contextmanager
def _held(place: Location, stem: str, work: str, lease_s: float) -> Iterator[Callable[[], None]]:
    """Hold the lock whose files have a common stem."""
    note = place.at(f"{stem}.json")
    if place.is_local:
        with _locked(place, note, f"{place.at(stem).path.absolute()}.lock", work):
            yield lambda: None
        return
    lease = _Lease(place, note, work, lease_s)
    try:
        lease.take()
    except _NoConditionsError:
        logger.warning("%s lacks conditional writes: nothing keeps two at once apart there", place)
        yield lambda: None
        return
    try:
        yield lease.check
    finally:
        lease.release()


@contextmanager
def _locked(place: Location, note: Location, path: str, work: str) -> Iterator[None]:
    """Hold a lock of the operating system; ``note`` names its holder meanwhile."""
    note.path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        try:
            holder = str(Holder.read(note.read()))
        except SkysiftError:
            holder = "a process that has just begun"
        raise _refusal(work, place, holder) from error
    try:
        note.write(Holder.here().to_bytes())
        yield
    finally:
        note.delete()
        Path(path).unlink(missing_ok=True)  # while held: who waits for this file finds it gone
        lock.release()


def _refusal(work: str, place: Location, holder: str, more: str = "") -> SkysiftError:
    return SkysiftError(
        f"{work}: {holder} is at work on {place}; wait for it, stop it, or choose another "
        f"output{more}"
    )


class _NoConditionsError(Exception):
    """The store knows no conditional writes."""


class _Lease:
    """A lock in an object store, renewed by a thread."""

    def __init__(self, place: Location, note: Location, work: str, lease_s: float) -> None:
        self._place, self._note, self._work, self._lease_s = place, note, work, lease_s
        self._holder = Holder.here()
        self._etag = ""
        self._lost_to = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def take(self) -> None:
        """Create the lease, or take over a dead one."""
        etag = self._write(None)
        if etag is None:
            etag = self._write(self._dead_lease())
        if etag is None:
            raise _refusal(self._work, self._place, "a process that has just begun")
        self._etag = etag
        self._thread.start()

    def check(self) -> None:
        """Raise when another process has the lease."""
        if self._lost_to:
            raise SkysiftError(
                f"{self._work}: {self._lost_to} has taken over {self._place}, because this process "
                f"was silent for more than {self._lease_s:.0f} s; it stops here and loses "
                "nothing that was saved"
            )

    def release(self) -> None:
        """Stop renewing, and free the lease."""
        self._ended.set()
        self._thread.join()
        if self._lost_to:
            return
        try:
            # An empty object is a free lease; written on the condition that the lease is ours.
            _write_if(self._note, b"", self._etag)
        except SkysiftError as error:
            logger.warning("the lease on %s was not freed: %s", self._place, error)

    def _write(self, etag: str | None) -> str | None:
        return _write_if(self._note, self._holder.to_bytes(), etag)

    def _dead_lease(self) -> str | None:
        """Return the tag of a lease that may be taken over; SkysiftError when its holder lives."""
        try:
            modified, etag = _modified_at(self._note)
            data = self._note.read()
        except NotFoundError:
            return None
        if not data:
            return etag
        holder = Holder.read(data)
        if holder.token == self._holder.token:
            return etag  # the lease was created, only the answer was lost
        left_s = self._lease_s - (datetime.now(UTC) - modified).total_seconds()
        if left_s > 0 and not holder.is_gone():
            more = f" (if that process is dead, the place is free in {left_s:.0f} s)"
            raise _refusal(self._work, self._place, str(holder), more)
        logger.warning("%s: taking over %s from %s, which is dead", self._work, self._place, holder)
        return etag

    def _renew(self) -> None:
        while not self._ended.wait(self._lease_s / _RENEWALS):
            try:
                etag = self._write(self._etag)
                if etag is None:
                    self._find(Holder.read(self._note.read()))
                else:
                    self._etag = etag
            except (SkysiftError, ValueError) as error:
                logger.warning(
                    "%s: the lease on %s was not renewed: %s", self._work, self._place, error
                )
            if self._lost_to:
                return

    def _find(self, holder: Holder) -> None:
        """Note the holder of the lease: this process when only an answer to it was lost."""
        if holder.token == self._holder.token:
            self._etag = _modified_at(self._note)[1]
        else:
            self._lost_to = str(holder)


def _write_if(file: Location, data: bytes, etag: str | None) -> str | None:
    """Write a remote file if its content still has a tag (None: if no file exists).

    Returns the new tag; None when the file is another, and nothing was written.
    """
    fs, path = file.filesystem()
    condition = {"mode": "create"} if etag is None else {"IfMatch": etag}
    with named_failures(file):
        try:
            return str(fs.pipe_file(path, data, **condition)["ETag"])
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and "condition" in str(error):
                return None
            if error.errno == errno.ENOSYS:
                raise _NoConditionsError from error
            raise


def _modified_at(file: Location) -> tuple[datetime, str]:
    """Return when a remote file was written, by the store's clock, and the tag of its content."""
    fs, path = file.filesystem()
    with named_failures(file):
        found = fs.info(path)
    return found["LastModified"], str(found["ETag"])
