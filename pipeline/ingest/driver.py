"""From scenes to archived embeddings: the plan, the run, and the driver that alone commits.

:func:`ingest` runs the kernels of :mod:`pipeline.ingest.kernels` on Ray Data
(:mod:`pipeline.ingest.on_ray`), or a small run in its own process, and hands finished scenes to
:class:`pipeline.ingest.commit.Committer`.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.spec import DESCRIPTION_FILE, WEIGHTS_FILE, read_bundle
from pipeline.ingest.commit import Committer
from pipeline.ingest.kernels import Batch, EmbedScenes, SceneCollector
from pipeline.ingest.spec import IngestPlan, IngestReport, IngestSpec, PlannedEncoder
from pipeline.runtime.cluster import ray_session
from pipeline.tiles.grid import encoder_grid
from pipeline.tiles.read import local_revision
from pipeline.tiles.spec import GridSpec
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.catalog.read import read_scenes
from storage.errors import (
    ArchiveConflictError,
    ConfigError,
    EncoderMismatchError,
    GridError,
    NotFoundError,
    SkysiftError,
)
from storage.location import Location
from storage.progress import Event, EventSink, Progress, ProgressSink, ignore
from storage.scene import Rejected, Scene

if TYPE_CHECKING:
    from pipeline.analysis.landcover import TileLabels

LOCAL_TILES = 4096
"""Up to this many tiles a run ends sooner without Ray, whose start alone takes many seconds."""


def read_encoder(uri: str | Location, known: PlannedEncoder | None = None) -> PlannedEncoder:
    """Read and check the bundle of an encoder, and keep everything but the weights.

    Parameters
    ----------
    uri
        Folder of the bundle.
    known
        An earlier result for the same bundle, returned when no file was replaced since.

    Raises
    ------
    NotFoundError
        The folder or one of its two files does not exist.
    ConfigError
        The description is malformed.
    EncoderMismatchError
        A file was changed after it was saved.
    """
    # Size with modification time, or an object store's entity tag, costs two requests and no
    # transfer of weights. A replacement that these miss cannot embed anything: EmbedTiles compares
    # the fingerprint of the weights it loads with the plan's. The revisions are read before the
    # files, so a replacement in between is noticed at the next comparison.
    folder = Location.of(uri)
    version = " ".join((folder / name).revision() for name in (DESCRIPTION_FILE, WEIGHTS_FILE))
    if known is not None and known.version == version:
        return known
    bundle = read_bundle(folder)
    return PlannedEncoder(spec=bundle.spec, fingerprint=bundle.fingerprint, version=version)


def plan_ingest(spec: IngestSpec, *, encoder: PlannedEncoder | None = None) -> IngestPlan:
    """Compare the catalog with the archive's ledger.

    Parameters
    ----------
    spec
        The scenes, the encoder and the archive.
    encoder
        Result of :func:`read_encoder` for the spec's bundle; read now when None.

    Raises
    ------
    CatalogError
        The catalog cannot be read or holds no scene.
    EncoderMismatchError
        The archive was made with another encoder.
    GridError
        The archive was made with another grid, other rules or other labels.
    ConfigError
        The rules and the labels do not go together.
    """
    # Workers of a cluster and later searches have other working directories.
    spec = replace(spec, encoder_uri=Location.of(spec.encoder_uri).absolute)
    encoder = encoder or read_encoder(spec.encoder_uri)
    grid = encoder_grid(spec.grid, encoder.spec.tile_px, encoder.spec.resolution_m)
    labels = _read_labels(spec, spec.labels_uri) if spec.labels_uri else None
    archive = _archive_spec(spec, encoder, grid, () if labels is None else labels.classes)
    listing = read_scenes(spec.catalog, encoder.spec.bands)
    existing = existing_archive(spec.archive_uri)
    entries: Mapping[str, LedgerEntry] = {}
    if existing is not None:
        _check_same(existing, archive)
        entries = existing.ledger.entries
    todo = tuple(scene for scene in listing.scenes if _is_pending(scene, entries, spec))
    return IngestPlan(
        spec=spec,
        archive=archive,
        grid=grid,
        encoder=encoder,
        labels=labels,
        existing=existing,
        todo=todo,
        rejected=tuple(
            item for item in listing.distinct_rejected if not _is_recorded(item, entries)
        ),
        reprocessed=tuple(scene.id for scene in todo if scene.id in entries),
        done=len(listing.scenes) - len(todo),
    )


def ingest(
    plan: IngestPlan,
    *,
    address: str | None = None,
    local: bool = False,
    progress: ProgressSink = ignore,
    events: EventSink = ignore,
) -> IngestReport:
    """Carry out a plan: read, embed, write and commit every scene to do.

    Scenes that cannot be read are quarantined with their reason; the others go on. Stopped in any
    way, the run loses uncommitted work only, and the same call finishes the rest.

    Parameters
    ----------
    plan
        Result of :func:`plan_ingest`.
    address
        Ray cluster to join; None joins the cluster of RAY_ADDRESS or starts a private one.
    local
        Read and embed in this process, without Ray; for runs that would end before Ray begins.
    progress
        Receives scenes done, tiles per second, and how many scenes were empty or quarantined.
    events
        Receives the outcome of each scene, and every commit.

    Raises
    ------
    EncoderMismatchError
        The bundle was replaced after the plan was made.
    SkysiftError
        The archive cannot be written, or workers lost scenes.
    """
    started = time.monotonic()
    archive = _open_archive(plan)
    events(Event(event="started", archive=str(plan.spec.archive_uri), scenes=len(plan.todo)))
    committer = Committer(plan, archive, events)
    committer.reject(plan.rejected)
    if plan.todo:
        with nullcontext() if local else ray_session(address):
            batches = _local_batches if local else _batches_on_ray
            _collect(plan, committer, batches(plan), progress)
    report = committer.report(time.monotonic() - started)
    events(
        Event(
            event="finished",
            snapshot=report.snapshot,
            scenes=report.embedded + report.empty + len(report.quarantined),
            rows=report.rows,
            seconds=round(report.seconds, 3),
        )
    )
    return report


def existing_archive(uri: str | Location) -> Archive | None:
    """Return the archive at its newest snapshot; None when it has not been made."""
    try:
        return Archive.open(uri)
    except NotFoundError:
        return None


def _open_archive(plan: IngestPlan) -> Archive:
    """Return the plan's archive as it is now; make the archive when it is new."""
    uri = plan.spec.archive_uri
    if plan.existing is not None:
        archive = _same_archive(plan.existing)
    else:
        try:
            return Archive.create(uri, plan.archive)
        except ArchiveConflictError:  # another ingest made it since the plan
            archive = Archive.open(uri)
    _check_same(archive, plan.archive)
    return archive


def _same_archive(planned: Archive) -> Archive:
    """Return the archive of a plan as it is now, and refuse another one at its place."""
    try:
        archive = planned.latest()
    except SkysiftError:
        if Archive.exists(planned.location):
            raise
        raise ArchiveConflictError(
            f"archive {planned.uri} was deleted since the run was planned; restore it, or run the "
            "command again for a new one"
        ) from None
    lost = planned.ledger.entries.keys() - archive.ledger.entries.keys()
    if lost:
        raise ArchiveConflictError(
            f"archive {planned.uri} lost {len(lost):,} scenes since the run was planned: it was "
            "made again or rolled back; run the command again"
        )
    return archive


def _collect(
    plan: IngestPlan, committer: Committer, batches: Iterable[Batch], progress: ProgressSink
) -> None:
    """Put the rows of scenes together and hand them to the committer."""
    collector = SceneCollector()
    started, scenes, tiles = time.monotonic(), 0, 0

    def report() -> None:
        rate = tiles / (time.monotonic() - started)
        counts = {"empty": committer.counts["empty"], "quarantined": len(committer.quarantined)}
        progress(
            Progress(
                stage="ingest",
                done=scenes,
                total=len(plan.todo),
                unit="scenes",
                speed=f"{rate:,.0f} tiles/s",
                note=", ".join(f"{count:,} {name}" for name, count in counts.items() if count),
            )
        )

    report()
    try:
        for batch in batches:
            tiles += int(np.sum(batch["status"] == 0))
            for rows in collector.add(batch):
                committer.add(rows)
                scenes += 1
            report()
    except KeyboardInterrupt:
        committer.commit()
        raise
    if scenes < len(plan.todo):
        committer.commit()
        raise SkysiftError(
            f"{len(plan.todo) - scenes} of {len(plan.todo)} scenes did not come back from the "
            "workers; the others are committed: run the same command again for the rest"
        )


def _local_batches(plan: IngestPlan) -> Iterator[Batch]:
    """Run the kernels scene by scene in a thread of this process.

    Ctrl-C is raised in the main thread. Raised inside torch's C++ it would end the process before
    finished scenes are committed.
    """
    with ThreadPoolExecutor(1, "embed") as pool:
        embed = pool.submit(EmbedScenes, plan, device=None).result()

        def rows(index: int) -> list[Batch]:
            return list(embed({"scene": np.array([index])}))

        for index in range(len(plan.todo)):
            yield from pool.submit(rows, index).result()


def _batches_on_ray(plan: IngestPlan) -> Iterable[Batch]:
    """Run the kernels on Ray Data."""
    from pipeline.ingest.on_ray import embedded_batches  # Ray Data takes seconds to import

    return embedded_batches(plan)


def _read_labels(spec: IngestSpec, table: str | Location) -> "TileLabels":
    if spec.rules.edge == "shift":
        raise ConfigError(
            "labels name whole tiles of the grid, which tiles shifted to a scene's edge are not; "
            "give the tile rule edge 'pad' or 'drop', or no labels"
        )
    from pipeline.analysis.landcover import TileLabels  # brings dask

    return TileLabels.from_parquet(table)


def _archive_spec(
    spec: IngestSpec, encoder: PlannedEncoder, grid: GridSpec, classes: tuple[str, ...]
) -> ArchiveSpec:
    tile_px = encoder.spec.tile_px
    if grid.tile_px != tile_px:
        raise GridError(
            f"the grid's tiles are {grid.tile_px} px, but encoder {spec.encoder_uri} was trained "
            f"on {tile_px} px; set grid.tile_px to {tile_px}"
        )
    return ArchiveSpec(
        encoder_fingerprint=encoder.fingerprint,
        encoder_uri=str(spec.encoder_uri),
        dimension=encoder.spec.dimension,
        bands=encoder.spec.bands,
        tile_px=tile_px,
        grid=asdict(grid),
        rules=asdict(spec.rules),
        classes=classes,
        parts=encoder.spec.parts,
    )


def _check_same(archive: Archive, planned: ArchiveSpec) -> None:
    uri, existing = archive.uri, archive.spec
    if existing.encoder_fingerprint != planned.encoder_fingerprint:
        raise EncoderMismatchError(
            f"archive {uri} holds vectors of encoder {existing.encoder_fingerprint[:16]}, not of "
            f"{planned.encoder_fingerprint[:16]}; use that encoder or name a new archive"
        )
    for name in ("grid", "rules", "classes"):
        stored, new = _plain(getattr(existing, name)), _plain(getattr(planned, name))
        if stored != new:
            raise GridError(
                f"archive {uri} was made with {name} {stored}, not {new}; "
                "keep the recipe, or name a new archive"
            )


def _plain(value: Any) -> Any:
    """Return a value as it looks after a round trip through JSON."""
    return json.loads(json.dumps(value))


def _is_recorded(item: Rejected, entries: Mapping[str, LedgerEntry]) -> bool:
    entry = entries.get(item.scene_id)
    return entry is not None and (entry.state, entry.reason) == ("quarantined", item.reason)


def _is_pending(scene: Scene, entries: Mapping[str, LedgerEntry], spec: IngestSpec) -> bool:
    entry = entries.get(scene.id)
    if entry is None or entry.fingerprint != scene.known_as(entry.fingerprint):
        return True
    if entry.state == "quarantined" and spec.retry_quarantined:
        return True
    return entry.state != "deleted" and bool(entry.files) and _is_replaced(scene, entry.files)


def _is_replaced(scene: Scene, files: str) -> bool:
    """Tell whether local files of a scene changed behind its STAC item; lost files did not."""
    try:
        return local_revision(scene) != files
    except NotFoundError:
        return False
