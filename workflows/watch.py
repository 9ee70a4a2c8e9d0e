"""Keep an archive and its index up to date with a source: poll, take new data, update, report.

Scenes are embedded, published embeddings imported (:mod:`workflows.sources`).

The ledger of the archive and the manifest of the index hold all that was done. So a watcher that
was killed at any moment goes on where it was, and a poll without news reads the source once.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache

from pipeline.importing.spec import ImportSpec
from pipeline.indexing.driver import build_index, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.driver import existing_archive
from pipeline.ingest.spec import IngestSpec
from pipeline.search.searcher import Searcher
from pipeline.search.standing import Event, StandingQuery
from storage.archive.ledger import Ledger
from storage.archive.reader import Archive
from storage.errors import (
    ConfigError,
    EmptyCatalogError,
    EncoderMismatchError,
    GridError,
    NotFoundError,
    SkysiftError,
)
from storage.index.manifest import read_manifest
from storage.location import Location
from storage.locks import watcher_lock
from storage.progress import EventSink, ProgressSink, ignore
from workflows.sources import Embeddings, RaySession, SceneOutcome, Scenes

logger = logging.getLogger(__name__)

# Errors of the job itself: the next poll would raise them again.
_FATAL = (ConfigError, EncoderMismatchError, GridError)


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchJob:
    """An ingest or import to repeat, and the index of its archive unless that is None.

    ``on_cluster`` says that another machine's memory is used, not this one's. The ``standing``
    queries need an index.
    """

    ingest: IngestSpec | ImportSpec
    index_uri: str | Location | None = None
    index: IndexSpec = field(default_factory=IndexSpec)
    on_cluster: bool = False
    standing: tuple[StandingQuery, ...] = ()

    def __post_init__(self) -> None:
        if self.standing and self.index_uri is None:
            raise ConfigError("watch: standing queries need an index; give --index")


@dataclass(frozen=True, kw_only=True, slots=True)
class PollReport:
    """The findings and the work of one poll, at ``snapshot`` of the archive.

    ``index_version`` is the version that is now current, None without an index;
    ``index_changed`` tells whether this poll made it. ``nothing`` says why the source offered no
    scene; empty when it offered some. ``delivered`` are the events of standing queries.
    """

    started_at: dt.datetime
    seconds: float
    arrivals: tuple[SceneOutcome, ...]
    scenes_known: int
    snapshot: str | None
    index_version: str | None = None
    index_changed: bool = False
    nothing: str = ""
    delivered: tuple[Event, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything changed or was delivered."""
        return bool(self.arrivals) or self.index_changed or bool(self.delivered)

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Scenes that were set aside, and why."""
        return {
            scene.scene_id: scene.reason for scene in self.arrivals if scene.state == "quarantined"
        }


class Watcher:
    """Polls a source for one job.

    Parameters
    ----------
    job
        The ingest or import, and the index.
    session
        Entered only when there is work for Ray.
    progress
        Receives the stages of the ingest and of the index.
    events
        Receives the outcome of each scene.
    """

    def __init__(
        self,
        job: WatchJob,
        *,
        session: RaySession = nullcontext,
        progress: ProgressSink = ignore,
        events: EventSink = ignore,
    ) -> None:
        self._job, self._session = job, session
        self._progress = progress
        self._source: Scenes | Embeddings = (
            Embeddings(job.ingest, progress, events)
            if isinstance(job.ingest, ImportSpec)
            else Scenes(job.ingest, session, progress, events, on_cluster=job.on_cluster)
        )

    def once(self) -> PollReport:
        """Poll once, as the only watcher of the archive.

        Raises
        ------
        SkysiftError
            Another watcher is at work, or as :meth:`poll` says.
        """
        with watcher_lock(self._job.ingest.archive_uri) as check_lock:
            return self.poll(check_lock)

    def poll(self, check_lock: Callable[[], None] = lambda: None) -> PollReport:
        """Read the source once, take new and changed scenes, and bring the index up to date.

        An index that is behind its archive, as after a kill between the two, is brought up to date
        as well.

        Parameters
        ----------
        check_lock
            Raises once another watcher took over, as from a process that slept; called before the
            index is brought up to date and before events are delivered.

        Raises
        ------
        SkysiftError
            The source cannot be read or holds nothing any more, the disk has no room, or as
            :func:`pipeline.ingest.driver.ingest`,
            :func:`pipeline.importing.driver.import_embeddings` and
            :func:`pipeline.indexing.driver.update_index` say.
        """
        started, started_at = time.monotonic(), dt.datetime.now(dt.UTC)
        place, nothing = self._job.ingest.archive_uri, ""
        arrivals: tuple[SceneOutcome, ...] = ()
        for query in self._job.standing:
            query.begin(self._indexed)
        try:
            archive, arrivals = self._source.take_new()
        except EmptyCatalogError as error:
            archive = existing_archive(place)
            held_scenes = archive is not None and bool(archive.ledger.entries)
            if held_scenes and self._source.is_whole:
                raise  # as of a disk that is not mounted
            nothing = str(error)
        except SkysiftError:
            # Scenes that were committed before become searchable all the same.
            self._update_index(existing_archive(place))
            raise
        check_lock()
        version, changed = self._update_index(archive)
        check_lock()
        delivered = self._deliver()
        return PollReport(
            started_at=started_at,
            seconds=time.monotonic() - started,
            arrivals=arrivals,
            scenes_known=0 if archive is None else len(archive.ledger.entries),
            snapshot=None if archive is None else archive.snapshot,
            index_version=version,
            index_changed=changed,
            nothing=nothing,
            delivered=delivered,
        )

    def watch(
        self,
        interval_s: float,
        *,
        report: Callable[[PollReport | SkysiftError], None],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Poll again and again, until interrupted.

        Parameters
        ----------
        interval_s
            Seconds from the beginning of one poll to that of the next.
        report
            Receives the report of each poll, or the error that ended it: an unreachable store or
            a source that is gone for the moment does not end the watch.
        wait
            How to let seconds pass.

        Raises
        ------
        SkysiftError
            Another watcher is at work, the archive's store cannot be reached at the start, or the
            job is wrong in a way that no later poll heals.
        """
        with watcher_lock(self._job.ingest.archive_uri) as check_lock:
            while True:
                check_lock()
                started = time.monotonic()
                try:
                    outcome: PollReport | SkysiftError = self.poll(check_lock)
                except _FATAL:
                    raise
                except SkysiftError as error:
                    logger.warning("this poll failed, the next one tries again: %s", error)
                    outcome = error
                report(outcome)
                wait(max(interval_s - (time.monotonic() - started), 0))

    def _indexed(self) -> Ledger | None:
        """Return the ledger at the snapshot that the index pins; None without an index."""
        assert self._job.index_uri is not None, "WatchJob checks it"
        place = Location.of(self._job.index_uri).absolute
        try:
            manifest = read_manifest(place)
        except NotFoundError:
            return None
        return Archive.open(place.at(manifest.archive_uri), manifest.snapshot).ledger

    def _deliver(self) -> tuple[Event, ...]:
        """Tell the new hits of the standing queries; return their events."""
        if not self._job.standing or (ledger := self._indexed()) is None:
            return ()
        uri = Location.of(self._job.index_uri or "")
        with ExitStack() as stack:

            @cache
            def searcher() -> Searcher:
                if not self._job.on_cluster:
                    return Searcher.local(uri)
                stack.enter_context(self._session())
                return Searcher.connect(uri)

            delivered = [event for query in self._job.standing for event in query.deliver()]
            for query in self._job.standing:
                delivered += query.poll(searcher, ledger)
        return tuple(delivered)

    def _update_index(self, archive: Archive | None) -> tuple[str | None, bool]:
        """Return the index's current version, and whether this poll made it.

        After a rollback of the archive the index is built again: an update cannot bring back rows
        that it hides.
        """
        uri = self._job.index_uri
        if uri is None or archive is None:
            return None, False
        try:
            current = read_manifest(uri)
        except NotFoundError:
            current = None  # the first poll builds the index
        if not len(archive) or (current and current.snapshot == archive.snapshot):
            return current.version if current else None, False
        history = {snapshot for snapshot, _, _ in archive.snapshots()}
        with self._session():
            if current and current.snapshot in history:
                index = update_index(uri, progress=self._progress)
            else:
                index = build_index(archive.location, uri, self._job.index, progress=self._progress)
        return index.version, True
