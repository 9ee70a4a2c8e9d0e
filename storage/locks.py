"""Who may work on a place: one process at a time, and the second is told who the first is.

On a disk a claim is a lock of the operating system, which ends with its process however that ends.
In an object store it is a small object, created on the condition that there is none and renewed
while its owner lives; one that was not renewed for a minute is dead and the next process takes it
over. That needs a store with conditional writes (S3 has them; another is used with a warning and
without a claim) and clocks that agree to seconds.
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
from storage.location import Location, StorageOptions, named_failures

logger = logging.getLogger(__name__)

LEASE_S = 60.0
_RENEWALS = 4  # in each lease, so that a slow store costs no claim
_LOCK, _OWNER = ".owner.lock", ".owner.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a claim."""

    host: str
    pid: int
    since: str
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """Return this process, with a token of its own for each claim."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(host=socket.gethostname(), pid=os.getpid(), since=since, token=uuid.uuid4().hex)

    @classmethod
    def read(cls, data: bytes) -> "Holder":
        """Return the owner that a claim names."""
        return cls(**json.loads(data))

    def to_bytes(self) -> bytes:
        """Return the owner as a claim says it."""
        return json.dumps(asdict(self)).encode()

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended: it ran on this machine."""
        return self.host == socket.gethostname() and not Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def exclusive_lock(
    uri: str | Location,
    what: str,
    options: StorageOptions | None = None,
    *,
    lease_s: float = LEASE_S,
) -> Iterator[Callable[[], None]]:
    """Be the only process that works on a folder inside the block.

    Parameters
    ----------
    uri
        Folder, which need not exist.
    what
        What is done there, for the message to others: ``training``.
    options
        Object store.
    lease_s
        Seconds after which a claim in an object store is dead when its owner does not renew it.

    Yields
    ------
    callable
        Raises SkysiftError once the claim is another's: this process was silent for longer than a
        lease. To be called before something is written that must not be written twice.

    Raises
    ------
    SkysiftError
        Another process is at work there; it is named.
    """
    place = Location.of(uri, options)
    if place.is_local:
        with _locked(place.path, what):
            yield lambda: None
        return
    lease = _Lease(place / _OWNER, what, lease_s)
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
def _locked(folder: Path, what: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _OWNER
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        try:
            owner = str(Holder.read(note.read_bytes()))
        except (OSError, ValueError, TypeError):
            owner = "a process that has just begun"
        raise _refusal(what, str(folder), owner) from error
    try:
        Location.of(note).write(Holder.here().to_bytes())
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _refusal(what: str, uri: str, owner: str, more: str = "") -> SkysiftError:
    return SkysiftError(
        f"{what}: {owner} is at work on {uri}; wait for it, stop it, or choose another output{more}"
    )


class _NoConditionsError(Exception):
    """The store knows no conditional writes."""


class _Lease:
    """A claim in an object store, renewed by a thread."""

    def __init__(self, claim: Location, what: str, lease_s: float) -> None:
        self._claim, self._what, self._lease_s = claim, what, lease_s
        self._owner = Holder.here()
        self._etag = ""
        self._lost_to = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="claim")

    def take(self) -> None:
        """Create the claim, or take over a dead one."""
        etag = self._write(None)
        if etag is None:
            etag = self._write(self._dead_claim())
        if etag is None:
            raise _refusal(self._what, str(self._claim), "a process that has just begun")
        self._etag = etag
        self._thread.start()

    def check(self) -> None:
        """Raise when the claim was lost."""
        if self._lost_to:
            raise SkysiftError(
                f"{self._what}: {self._lost_to} has taken over {self._claim}, because this process "
                f"was silent for more than {self._lease_s:.0f} s; it goes on from the last "
                "checkpoint"
            )

    def release(self) -> None:
        """Stop renewing, and leave the place to others."""
        self._ended.set()
        self._thread.join()
        if self._lost_to:
            return
        try:
            # An empty claim is a free one; written on the condition that it is still ours.
            _write_if(self._claim, b"", self._etag)
        except SkysiftError as error:
            logger.warning("the claim on %s was not given back: %s", self._claim, error)

    def _write(self, etag: str | None) -> str | None:
        return _write_if(self._claim, self._owner.to_bytes(), etag)

    def _dead_claim(self) -> str | None:
        """Return the tag of a claim that may be taken over; SkysiftError when its owner lives."""
        try:
            modified, etag = _modified_at(self._claim)
            data = self._claim.read()
        except NotFoundError:
            return None
        if not data:
            return etag
        owner = Holder.read(data)
        if owner.token == self._owner.token:
            return etag  # it was created, only the answer was lost
        left_s = self._lease_s - (datetime.now(UTC) - modified).total_seconds()
        if left_s > 0 and not owner.is_gone():
            more = f" (if that process is dead, the place is free in {left_s:.0f} s)"
            raise _refusal(self._what, str(self._claim), str(owner), more)
        logger.warning("%s: taking over %s from %s, which is dead", self._what, self._claim, owner)
        return etag

    def _renew(self) -> None:
        while not self._ended.wait(self._lease_s / _RENEWALS):
            try:
                etag = self._write(self._etag)
                if etag is None:
                    self._meet(Holder.read(self._claim.read()))
                else:
                    self._etag = etag
            except (SkysiftError, ValueError) as error:
                logger.warning(
                    "%s: the claim on %s was not renewed: %s", self._what, self._claim, error
                )
            if self._lost_to:
                return

    def _meet(self, owner: Holder) -> None:
        """See whose claim it is: ours when only the answer to a renewal was lost."""
        if owner.token == self._owner.token:
            self._etag = _modified_at(self._claim)[1]
        else:
            self._lost_to = str(owner)


def _write_if(claim: Location, data: bytes, etag: str | None) -> str | None:
    """Write a remote file if its content still has a tag (None: if there is no file).

    Returns the new tag; None when the file is another, and nothing was written.
    """
    fs, path = claim.filesystem()
    condition = {"mode": "create"} if etag is None else {"IfMatch": etag}
    with named_failures(claim):
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


def _modified_at(claim: Location) -> tuple[datetime, str]:
    """Return when a remote file was written, by the store's clock, and the tag of its content."""
    fs, path = claim.filesystem()
    with named_failures(claim):
        found = fs.info(path)
    return found["LastModified"], str(found["ETag"])
