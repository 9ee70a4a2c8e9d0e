"""Keep an archive and its index up to date with a source: poll, embed what is new, update.

What was done is in the archive's ledger and the index's manifest, nowhere else. So a watcher that
was killed anywhere goes on where it was, and a poll without news costs one look at the source.
"""

import datetime as dt
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.indexing.driver import build_index, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.cost import SAMPLE_SCENES, estimate_cost, require_room
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestPlan, IngestSpec
from storage.archive.reader import Archive
from storage.errors import (
    ConfigError,
    EmptyCatalogError,
    EncoderMismatchError,
    GridError,
    NotFoundError,
    SkysiftError,
)
from storage.index.manifest import IndexManifest, read_manifest
from storage.location import Location, StorageOptions, is_local, local_path
from storage.progress import EventSink, ProgressSink, quiet, unheard
from storage.scene import SceneQuery

logger = logging.getLogger(__name__)

RaySession = Callable[[], AbstractContextManager[None]]
# What no later poll heals.
_FATAL = (ConfigError, EncoderMismatchError, GridError)


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchJob:
    """What to keep up to date: the ingest, and the index of its archive unless that is None.

    ``on_cluster`` says that another machine's memory is used, not this one's.
    """

    ingest: IngestSpec
    index_uri: str | None = None
    index: IndexSpec = field(default_factory=IndexSpec)
    on_cluster: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneOutcome:
    """A scene that a poll settled: what became of it, and whether an older version was there."""

    scene_id: str
    state: str
    rows: int
    reason: str
    replaced: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PollReport:
    """What one poll found and did, at ``snapshot`` of the archive.

    ``index_version`` is the version that is now current, None without an index;
    ``index_changed`` tells whether this poll made it. ``nothing`` says why the source had nothing
    to offer; empty when it had.
    """

    started_at: dt.datetime
    seconds: float
    arrivals: tuple[SceneOutcome, ...]
    scenes_known: int
    snapshot: str | None
    index_version: str | None = None
    index_changed: bool = False
    nothing: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything changed."""
        return bool(self.arrivals) or self.index_changed

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Scenes that were set aside, and why."""
        return {one.scene_id: one.reason for one in self.arrivals if one.state == "quarantined"}


@contextmanager
def sole_watcher(archive_uri: str) -> Iterator[None]:
    """Be the only watcher of an archive inside the block, until the process ends in any way.

    Watchers of an archive on this machine's disk see each other wherever they run from; those of
    an archive in an object store only on the same machine. (Two at once waste work, but embed
    nothing twice.)

    Raises
    ------
    SkysiftError
        Another one is at work.
    """
    if is_local(archive_uri):
        path = Path(f"{local_path(archive_uri).absolute()}.watch.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        name = hashlib.sha256(archive_uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"skysift-watch-{name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise SkysiftError(
            f"another `skysift watch` is at work on {archive_uri}; let it finish, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def poll(
    job: WatchJob,
    *,
    session: RaySession = nullcontext,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
    events: EventSink = unheard,
) -> PollReport:
    """Look at the source once, embed what is new or changed, and bring the index up to date.

    An index that is behind its archive, as after a kill between the two, is brought up to date
    as well.

    Parameters
    ----------
    job
        What to keep up to date.
    session
        Entered only when there is work for Ray.
    options
        Where the object store is.
    progress
        Receives the stages of the ingest and of the index.
    events
        Receives what becomes of each scene.

    Raises
    ------
    SkysiftError
        The source cannot be read or holds nothing any more, the disk has no room, or as
        :func:`pipeline.ingest.driver.ingest` and :func:`pipeline.indexing.driver.update_index` say.
    """
    started, started_at = time.monotonic(), dt.datetime.now(dt.UTC)
    arrivals: tuple[SceneOutcome, ...] = ()
    nothing = ""
    try:
        plan = plan_ingest(job.ingest, options)
    except EmptyCatalogError as error:
        if _has_vanished(job, options):
            raise
        nothing = str(error)
    else:
        arrivals = _embed(job, plan, session, options, progress, events)
    archive = _archive(job, options)
    version, changed = _bring_index(job, archive, session, options, progress)
    return PollReport(
        started_at=started_at,
        seconds=time.monotonic() - started,
        arrivals=arrivals,
        scenes_known=0 if archive is None else len(archive.ledger.entries),
        snapshot=None if archive is None else archive.snapshot,
        index_version=version,
        index_changed=changed,
        nothing=nothing,
    )


def _has_vanished(job: WatchJob, options: StorageOptions | None) -> bool:
    """Tell whether a source that is empty now held scenes before: a disk that is not mounted."""
    archive = _archive(job, options)
    asks_for_all = job.ingest.catalog.query == SceneQuery()
    return asks_for_all and archive is not None and bool(archive.ledger.entries)


def _embed(
    job: WatchJob,
    plan: IngestPlan,
    session: RaySession,
    options: StorageOptions | None,
    progress: ProgressSink,
    events: EventSink,
) -> tuple[SceneOutcome, ...]:
    if not (plan.todo or plan.rejected):
        return ()
    cost = estimate_cost(plan, options, sample_scenes=SAMPLE_SCENES, on_cluster=job.on_cluster)
    require_room(cost, plan.spec.archive_uri)
    with session() if plan.todo else nullcontext():
        ingest(plan, options=options, progress=progress, events=events)
    return _arrivals(plan, options)


def watch(
    job: WatchJob,
    interval_s: float,
    *,
    report: Callable[[PollReport | SkysiftError], None],
    session: RaySession = nullcontext,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
    events: EventSink = unheard,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Poll again and again, until interrupted.

    Parameters
    ----------
    job, session, options, progress, events
        As for :func:`poll`.
    interval_s
        Seconds from the beginning of one poll to that of the next.
    report
        Receives what each poll did, or the error that ended it: an unreachable store or a
        source that is gone for the moment does not end the watch.
    wait
        How to let seconds pass.

    Raises
    ------
    SkysiftError
        Another watcher is at work, or the job is wrong in a way that no later poll heals.
    """
    with sole_watcher(job.ingest.archive_uri):
        while True:
            started = time.monotonic()
            try:
                outcome: PollReport | SkysiftError = poll(
                    job, session=session, options=options, progress=progress, events=events
                )
            except _FATAL:
                raise
            except SkysiftError as error:
                logger.warning("this poll failed, the next one tries again: %s", error)
                outcome = error
            report(outcome)
            wait(max(interval_s - (time.monotonic() - started), 0))


def _arrivals(plan: IngestPlan, options: StorageOptions | None) -> tuple[SceneOutcome, ...]:
    entries = Archive.open(plan.spec.archive_uri, options=options).ledger.entries
    ids = [scene.id for scene in plan.todo] + [item.scene_id for item in plan.rejected]
    return tuple(
        SceneOutcome(
            scene_id=name,
            state=entries[name].state,
            rows=entries[name].rows,
            reason=entries[name].reason,
            replaced=name in plan.reprocessed,
        )
        for name in ids
        if name in entries
    )


def _archive(job: WatchJob, options: StorageOptions | None) -> Archive | None:
    """Return the archive, None when no scene has ever been there."""
    if not Archive.exists(job.ingest.archive_uri, options):
        return None
    return Archive.open(job.ingest.archive_uri, options=options)


def _bring_index(
    job: WatchJob,
    archive: Archive | None,
    session: RaySession,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> tuple[str | None, bool]:
    """Return the index's current version, and whether it was made here.

    After a rollback of the archive the index is built again: an update cannot bring back rows
    that it hides.
    """
    if job.index_uri is None or archive is None:
        return None, False
    current = _manifest(job.index_uri, options)
    version = current.version if current else None
    if not len(archive) or (current and current.snapshot == archive.snapshot):
        return version, False
    history = {snapshot for snapshot, _, _ in archive.snapshots()}
    with session():
        if current and current.snapshot in history:
            made = update_index(_at(job.index_uri, options), progress=progress)
        else:
            places = _at(archive.uri, options), _at(job.index_uri, options)
            made = build_index(*places, job.index, progress=progress)
    return made.version, True


def _manifest(index_uri: str, options: StorageOptions | None) -> IndexManifest | None:
    try:
        return read_manifest(_at(index_uri, options))
    except NotFoundError:
        return None  # the first poll builds it


def _at(uri: str, options: StorageOptions | None) -> Location:
    return Location(uri, options or StorageOptions())
