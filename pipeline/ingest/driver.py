"""From scenes to archived embeddings: the plan, the run, and the driver that alone commits.

:func:`ingest` runs the kernels of :mod:`pipeline.ingest.kernels` on Ray Data
(:mod:`pipeline.ingest.on_ray`), or a small run in its own process, and hands finished scenes to
:class:`pipeline.ingest.commit.Committer`.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from encoders.spec import BundleFiles, read_bundle
from pipeline.ingest.commit import Committer
from pipeline.ingest.kernels import Batch, EmbedScenes, SceneCollector
from pipeline.ingest.spec import IngestPlan, IngestReport, IngestSpec
from pipeline.runtime.cluster import ray_session
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
    SkysiftError,
)
from storage.location import StorageOptions
from storage.progress import Event, EventSink, Progress, ProgressSink, quiet, unheard
from storage.scene import Rejected, Scene, SceneList

LOCAL_TILES = 4096
"""A run of so few tiles ends sooner without Ray, whose start alone takes many seconds."""


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
    here: bool = False,
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
    here
        Read and embed in this process, without Ray; for runs that would end before Ray begins.
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
        with nullcontext() if here else ray_session(address):
            batches = _batches_here if here else _batches_on_ray
            _collect(plan, committer, batches(plan, options), progress)
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


def _collect(
    plan: IngestPlan, committer: Committer, batches: Iterable[Batch], progress: ProgressSink
) -> None:
    """Put the rows of scenes together and hand them to the committer."""
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
        for batch in batches:
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


def _batches_here(plan: IngestPlan, options: StorageOptions | None) -> Iterator[Batch]:
    """Run the stages scene by scene in a thread of this process.

    Ctrl-C is raised in the main thread. Met inside torch's C++ it would end the process before
    finished scenes are committed.
    """
    with ThreadPoolExecutor(1, "embed") as pool:
        embed = pool.submit(EmbedScenes, plan, options, device=None).result()

        def rows(index: int) -> list[Batch]:
            return list(embed({"scene": np.array([index])}))

        for index in range(len(plan.todo)):
            yield from pool.submit(rows, index).result()


def _batches_on_ray(plan: IngestPlan, options: StorageOptions | None) -> Iterable[Batch]:
    """Run the stages on Ray Data."""
    from pipeline.ingest.on_ray import embedded_batches  # Ray Data takes seconds to import

    return embedded_batches(plan, options)


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
        from pipeline.analysis.landcover import TileLabels  # brings dask

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
