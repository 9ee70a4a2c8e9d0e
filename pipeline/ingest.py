"""From scenes to archived embeddings: Ray Data streams tiles, the driver alone commits.

:func:`ingest` runs the kernels of :mod:`pipeline.ingest_stages` as Ray Data stages (reads on CPU
workers, the encoder in an actor pool) and hands finished scenes to
:class:`pipeline.ingest_commit.Committer`. Pixels never reach the driver; vectors do (hundreds of
bytes a tile), because a segment holds whole scenes and one process then both writes and commits.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.data

from encoders.bundle_spec import BundleFiles, read_bundle
from pipeline.cluster import ray_session
from pipeline.ingest_commit import Committer
from pipeline.ingest_plan import IngestPlan, IngestReport, IngestSpec
from pipeline.ingest_stages import (
    Batch,
    EmbedScenes,
    EmbedTiles,
    ReadScenes,
    SceneCollector,
)
from pipeline.tiling import GridSpec
from storage.archive import Archive
from storage.archive_spec import ArchiveSpec
from storage.catalog import Rejected, SceneList, read_scenes
from storage.errors import (
    ArchiveConflictError,
    ConfigError,
    EncoderMismatchError,
    GridError,
    SkysiftError,
)
from storage.events import Event, EventSink, unheard
from storage.ledger import LedgerEntry
from storage.object_store import StorageOptions, is_local
from storage.progress import Progress, ProgressSink, quiet
from storage.scenes import Scene

PIXEL_BLOCK_BYTES = 16 * 1024 * 1024
VECTOR_BLOCK_BYTES = 64 * 1024
READER_CPUS = 0.25
GPU_FEEDER_CPUS = 0.75
LOCAL_SCENES_AT_ONCE = 2
REMOTE_SCENES_AT_ONCE = 8


def plan_ingest(spec: IngestSpec, options: StorageOptions | None = None) -> IngestPlan:
    """Compare the catalog with the archive's ledger.

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
    bundle = read_bundle(spec.encoder_uri, options)
    grid = spec.grid or GridSpec(
        tile_px=bundle.spec.tile_px, resolution=bundle.spec.resolution_m or "native"
    )
    listing = read_scenes(spec.catalog, bundle.spec.bands, options)
    archive = _archive_spec(spec, bundle, grid, options)
    entries: Mapping[str, LedgerEntry] = {}
    if Archive.exists(spec.archive_uri, options):
        existing = Archive.open(spec.archive_uri, options=options)
        _check_same(existing.spec, archive, spec.archive_uri)
        entries = existing.ledger.entries
    todo = tuple(scene for scene in listing.scenes if _is_open(scene, entries, spec))
    return IngestPlan(
        spec=spec,
        archive=archive,
        grid=grid,
        todo=todo,
        rejected=tuple(item for item in _distinctly_named(listing) if _is_news(item, entries)),
        reprocessed=tuple(scene.id for scene in todo if scene.id in entries),
        done=len(listing.scenes) - len(todo),
    )


def ingest(
    plan: IngestPlan,
    *,
    options: StorageOptions | None = None,
    address: str | None = None,
    progress: ProgressSink = quiet,
    events: EventSink = unheard,
) -> IngestReport:
    """Carry out a plan: read, embed, write and commit every open scene.

    Scenes that cannot be read are quarantined with their reason; the others go on. Stopped in any
    way, the run loses what was not committed yet, and the same call finishes the rest.

    Parameters
    ----------
    plan
        What :func:`plan_ingest` returned.
    options
        Where the object store is; also sent to the workers.
    address
        Ray cluster to join; a private one is started when None and none is known.
    progress
        Receives scenes done, tiles per second, and how many scenes were empty or quarantined.
    events
        Receives what became of each scene, and every commit.
    """
    started = time.monotonic()
    _ensure_archive(plan, options)
    events(Event(event="started", archive=plan.spec.archive_uri, scenes=len(plan.todo)))
    committer = Committer(plan, options, events)
    committer.reject(plan.rejected)
    if plan.todo:
        with ray_session(address):
            _run_stages(plan, committer, options, progress)
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


def _ensure_archive(plan: IngestPlan, options: StorageOptions | None) -> None:
    """Make the archive when it is new; another ingest may do so at the same moment."""
    uri = plan.spec.archive_uri
    if not Archive.exists(uri, options):
        with suppress(ArchiveConflictError):
            Archive.create(uri, plan.archive, options)
    _check_same(Archive.open(uri, options=options).spec, plan.archive, uri)


def _run_stages(
    plan: IngestPlan,
    committer: Committer,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> None:
    collector = SceneCollector()
    started, scenes, tiles = time.monotonic(), 0, 0

    def tell() -> None:
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

    tell()
    try:
        for batch in _embedded_batches(plan, options):
            tiles += int(np.sum(batch["status"] == 0))
            for rows in collector.add(batch):
                committer.add(rows)
                scenes += 1
            tell()
    except KeyboardInterrupt:
        committer.commit()
        raise
    if scenes < len(plan.todo):
        committer.commit()
        raise SkysiftError(
            f"{len(plan.todo) - scenes} of {len(plan.todo)} scenes did not come back from the "
            "workers; what did is committed: run the same command again for the rest"
        )


def _embedded_batches(plan: IngestPlan, options: StorageOptions | None) -> Iterable[Batch]:
    """Run the stages on Ray Data; yield batches without pixels."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(int(resources.get("CPU", 1)), 1)
    with _streaming_context(PIXEL_BLOCK_BYTES if gpus else VECTOR_BLOCK_BYTES):
        indexes = [{"scene": index} for index in range(len(plan.todo))]
        scenes: Any = ray.data.from_items(indexes, override_num_blocks=len(indexes))
        if gpus:
            rows = _on_gpus(scenes, plan, options, min(gpus, len(indexes)))
        else:
            rows = _on_cpus(scenes, plan, options, min(cpus, len(indexes)))
        yield from rows.iter_batches(batch_size=None, prefetch_batches=1)


def _on_cpus(scenes: Any, plan: IngestPlan, options: StorageOptions | None, actors: int) -> Any:
    """Read and embed on every CPU: pixels stay in the process that reads them."""
    local = all(is_local(band.href) for band in plan.todo[0].bands)
    at_once = LOCAL_SCENES_AT_ONCE if local else REMOTE_SCENES_AT_ONCE
    return scenes.map_batches(
        EmbedScenes,
        fn_constructor_args=(plan, options),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_concurrent_calls_per_actor=at_once,
            max_tasks_in_flight_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
    )


def _on_gpus(scenes: Any, plan: IngestPlan, options: StorageOptions | None, actors: int) -> Any:
    """Read on CPUs, wherever they are, for the nodes that have GPUs."""
    return scenes.map_batches(
        ReadScenes(plan, options), batch_size=1, num_cpus=READER_CPUS
    ).map_batches(
        EmbedTiles,
        fn_constructor_args=(plan.spec.encoder_uri, options, "cuda"),
        batch_size=None,
        num_cpus=GPU_FEEDER_CPUS,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
    )


@contextmanager
def _streaming_context(block_bytes: int) -> Iterator[None]:
    """Small blocks, so that the first tiles come early and memory stays bounded."""
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size
    context.target_max_block_size = block_bytes
    try:
        yield
    finally:
        context.target_max_block_size = before


def _archive_spec(
    spec: IngestSpec, bundle: BundleFiles, grid: GridSpec, options: StorageOptions | None
) -> ArchiveSpec:
    classes: tuple[str, ...] = ()
    if spec.labels_uri and spec.rules.edge == "shift":
        raise ConfigError(
            "labels name whole tiles of the grid, which tiles shifted to a scene's edge are not; "
            "give the tile rule edge 'pad' or 'drop', or no labels"
        )
    if spec.labels_uri:
        from pipeline.landcover import TileLabels  # brings dask

        classes = tuple(TileLabels.from_parquet(spec.labels_uri, options).classes)
    if grid.tile_px != bundle.spec.tile_px:
        raise GridError(
            f"the grid's tiles are {grid.tile_px} px, but encoder {spec.encoder_uri} was trained "
            f"on {bundle.spec.tile_px} px; set grid.tile_px to {bundle.spec.tile_px}"
        )
    return ArchiveSpec(
        encoder_fingerprint=bundle.fingerprint,
        encoder_uri=spec.encoder_uri,
        dimension=bundle.spec.dimension,
        bands=bundle.spec.bands,
        tile_px=grid.tile_px,
        grid=asdict(grid),
        rules=asdict(spec.rules),
        classes=classes,
    )


def _check_same(existing: ArchiveSpec, wanted: ArchiveSpec, uri: str) -> None:
    if existing.encoder_fingerprint != wanted.encoder_fingerprint:
        raise EncoderMismatchError(
            f"archive {uri} holds vectors of encoder {existing.encoder_fingerprint[:16]}, not of "
            f"{wanted.encoder_fingerprint[:16]}; use that encoder or name a new archive"
        )
    for name in ("grid", "rules", "classes"):
        had, wants = _plain(getattr(existing, name)), _plain(getattr(wanted, name))
        if had != wants:
            raise GridError(
                f"archive {uri} was made with {name} {had}, not {wants}; "
                "keep the recipe, or name a new archive"
            )


def _plain(value: Any) -> Any:
    """Return a value as it looks after a round trip through JSON."""
    return json.loads(json.dumps(value))


def _distinctly_named(listing: SceneList) -> list[Rejected]:
    """Name a rejected duplicate apart from the scene that was accepted under the same id."""
    accepted = {scene.id for scene in listing.scenes}
    return [
        replace(item, scene_id=f"{item.scene_id} (duplicate)")
        if item.scene_id in accepted
        else item
        for item in listing.rejected
    ]


def _is_news(item: Rejected, entries: Mapping[str, LedgerEntry]) -> bool:
    entry = entries.get(item.scene_id)
    return entry is None or (entry.state, entry.reason) != ("quarantined", item.reason)


def _is_open(scene: Scene, entries: Mapping[str, LedgerEntry], spec: IngestSpec) -> bool:
    entry = entries.get(scene.id)
    if entry is None or entry.fingerprint != scene.fingerprint:
        return True
    return entry.state == "quarantined" and spec.retry_quarantined
