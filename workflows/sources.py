"""The sources that a watch follows: scenes to embed, and published embeddings to import.

Both take new data into the archive exactly once, whatever stopped an earlier run, because the
archive's ledger holds all that was done.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline.importing.driver import import_embeddings
from pipeline.importing.plan import plan_import
from pipeline.importing.spec import ImportSpec
from pipeline.ingest.cost import SAMPLE_SCENES, estimate_cost
from pipeline.ingest.driver import ingest, plan_ingest, read_encoder
from pipeline.ingest.spec import IngestSpec, PlannedEncoder
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.location import Location
from storage.progress import EventSink, ProgressSink
from storage.scene import SceneQuery

RaySession = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneOutcome:
    """The outcome of a scene in a poll; ``replaced`` when an older version was in the archive."""

    scene_id: str
    state: str
    rows: int
    reason: str
    replaced: bool


class Scenes:
    """Scenes of a catalog, which an encoder embeds.

    Parameters
    ----------
    spec
        The ingest.
    session
        Entered when there are scenes to embed.
    progress, events
        Receive the stages of the ingest, and the outcome of each scene.
    on_cluster
        Whether another machine's memory is used, not this one's.
    """

    def __init__(
        self,
        spec: IngestSpec,
        session: RaySession,
        progress: ProgressSink,
        events: EventSink,
        *,
        on_cluster: bool,
    ) -> None:
        self._spec, self._session, self._on_cluster = spec, session, on_cluster
        self._progress, self._events = progress, events
        # Kept between polls, so that a poll compares versions and does not read weights.
        self._encoder: PlannedEncoder | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all scenes are meant, so that a source without any has lost those it had."""
        return self._spec.catalog.query == SceneQuery()

    def take_new(self) -> tuple[Archive | None, tuple[SceneOutcome, ...]]:
        """Embed new and changed scenes; return the archive after it and the outcome of each.

        Raises
        ------
        EmptyCatalogError
            The source offers no scene.
        SkysiftError
            The source cannot be read, the disk has no room, or as
            :func:`pipeline.ingest.driver.ingest`.
        """
        self._encoder = read_encoder(self._spec.encoder_uri, self._encoder)
        plan = plan_ingest(self._spec, encoder=self._encoder)
        if not (plan.todo or plan.rejected):
            return plan.existing, ()
        cost = estimate_cost(plan, sample_scenes=SAMPLE_SCENES, on_cluster=self._on_cluster)
        cost.require_room()
        with self._session() if plan.todo else nullcontext():
            ingest(plan, progress=self._progress, events=self._events)
        archive = _newest(plan.existing, self._spec.archive_uri)
        names = [scene.id for scene in plan.todo] + [item.scene_id for item in plan.rejected]
        return archive, _outcomes(archive, names, plan.reprocessed)


class Embeddings:
    """Published embeddings, which need no encoder and no Ray.

    Parameters
    ----------
    spec
        The import.
    progress, events
        Receive the parts of the import, and the outcome of each scene.
    """

    is_whole = True
    """A source without embeddings has lost those that it had."""

    def __init__(self, spec: ImportSpec, progress: ProgressSink, events: EventSink) -> None:
        self._spec, self._progress, self._events = spec, progress, events

    def take_new(self) -> tuple[Archive | None, tuple[SceneOutcome, ...]]:
        """Import new and changed parts; return the archive after it and the outcome of each scene.

        Raises
        ------
        EmptyCatalogError
            The source offers no embeddings.
        SkysiftError
            As :func:`pipeline.importing.plan.plan_import` and
            :func:`pipeline.importing.driver.import_embeddings`.
        """
        plan = plan_import(self._spec)
        if not (plan.todo or plan.rejected):
            return plan.existing, ()
        import_embeddings(plan, progress=self._progress, events=self._events)
        archive = _newest(plan.existing, self._spec.archive_uri)
        known: Mapping[str, LedgerEntry] = plan.existing.ledger.entries if plan.existing else {}
        # A part may have become several scenes, so the ledger says which.
        changed = [name for name, e in archive.ledger.entries.items() if known.get(name) != e]
        return archive, _outcomes(archive, changed, known)


def _newest(existing: Archive | None, uri: str | Location) -> Archive:
    return existing.latest() if existing is not None else Archive.open(uri)


def _outcomes(
    archive: Archive, names: Iterable[str], replaced: Iterable[str]
) -> tuple[SceneOutcome, ...]:
    entries, older = archive.ledger.entries, set(replaced)
    return tuple(
        SceneOutcome(
            scene_id=name,
            state=entries[name].state,
            rows=entries[name].rows,
            reason=entries[name].reason,
            replaced=name in older,
        )
        for name in names
        if name in entries
    )
