"""The steps of building and growing an index, each a call of the driver."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from pipeline.indexing.build import ShardBuilder, ShardJob
from pipeline.indexing.pilot import piloted, with_estimate
from pipeline.indexing.plan import FLAT_ROWS, IndexPlan, Piece, Segments, plan_index
from pipeline.indexing.recall import RecallProbe, measured_recall
from pipeline.indexing.spec import IndexSpec
from pipeline.indexing.update import growth_advice, list_health, mean_fit
from pipeline.runtime.tasks import run_tasks
from storage.archive.maintenance import pin_snapshot
from storage.archive.reader import Archive
from storage.archive.samples import uniform_rows
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.geometry import centres, enclosing
from storage.index.files import VerifiedFiles, file_entry
from storage.index.manifest import (
    FORMAT,
    FileEntry,
    IndexManifest,
    ShardEntry,
    list_versions,
    sealed,
    shard_name,
    unsealed,
    write_manifest,
)
from storage.index.pairs import PAIR_ROWS, PairScores
from storage.index.pilot import RECALL_AT, RERANKS, Estimate
from storage.index.quantizer import ShardParameters, set_threads, train
from storage.index.ranking import Float32, Int64
from storage.location import Location
from storage.parts import Parts, recall_queries
from storage.progress import Progress, ProgressSink
from storage.values import json_digest

logger = logging.getLogger(__name__)

Recall = Mapping[int, Mapping[int, tuple[float, ...]]]
"""Recall@10 by the candidates per hit and nprobe, for each of the measured blends (W,)."""
RECALL_QUERIES = 256


def segment_extents(archive: Archive, skip: frozenset[str] = frozenset()) -> Segments:
    """Return (ordinal, live rows, centre) of the segments that have live rows."""
    extents: Segments = []
    for segment in archive.segments:
        if segment.id in skip or not len(archive.live_rows(segment.ordinal)):
            continue
        boxes = archive.read_segment(segment.ordinal, ["bbox"])["bbox"]
        lon, lat = centres([enclosing(boxes)])[0].tolist()
        extents.append((segment.ordinal, len(boxes), (lon, lat)))
    return extents


def draw_sample(archive: Archive, plan: IndexPlan, seed: int) -> tuple[Float32, Int64]:
    """Return a uniform sample of the live rows: vectors (n, D) and row ids (n,)."""
    rows = uniform_rows(archive, plan.sample_rows, seed)
    return archive.read(rows, ["embedding"])["embedding"].astype(np.float32), rows


def pair_scores(archive: Archive, seed: int, sample: Float32 | None = None) -> PairScores | None:
    """Measure how alike two random rows are, with rows of a uniform sample where one is given."""
    if sample is None or len(sample) < PAIR_ROWS:
        rows = uniform_rows(archive, PAIR_ROWS, seed)
        sample = archive.read(rows, ["embedding"])["embedding"].astype(np.float32)
    chosen = np.linspace(0, len(sample) - 1, min(PAIR_ROWS, len(sample))).astype(np.int64)
    return PairScores.of(sample[chosen])


def plans_of(archive: Archive, spec: IndexSpec) -> Callable[[ShardParameters | None], IndexPlan]:
    """Return a function that plans an index of an archive, with a kind and sizes or without."""
    sizes = archive.spec.dimension, len(archive.spec.classes)
    return partial(plan_index, spec, *sizes, segment_extents(archive))


def plan_once(index: Location, version: str, archive: Archive, spec: IndexSpec) -> IndexPlan:
    """Return the plan of a version; an interrupted build goes on with the kind that it chose."""
    receipt, plans = index / version / "plan.json", plans_of(archive, spec)
    try:
        values = unsealed("plan", receipt.read())
        chosen = ShardParameters(**values["parameters"])
        return with_estimate(plans(chosen), Estimate(**{**values, "parameters": chosen}))
    except (NotFoundError, ValueError, KeyError, TypeError):
        plan = piloted(archive, spec, plans)
    if plan.estimate:
        receipt.write(sealed("plan", asdict(plan.estimate)))
    return plan


def train_lists(
    index: Location, version: str, plan: IndexPlan, sample: Float32, progress: ProgressSink
) -> FileEntry:
    """Return the trained quantizers' file, from an interrupted build if there was one."""
    receipt, parameters = index / version / "trained.json", asdict(plan.parameters)
    try:
        values = unsealed("trained", receipt.read())
        finished = FileEntry(**values["file"])
        if values["parameters"] == parameters:
            VerifiedFiles(index).open(finished)
            return finished
    except (NotFoundError, CorruptIndexError, ValueError, KeyError, TypeError):
        pass  # not trained, or damaged since
    logger.info("training on %s rows", len(sample))
    progress(Progress(stage="train", done=0, total=1, unit="quantizers"))
    set_threads(threads_for(1))
    trained = train(sample, plan.parameters)
    entry = file_entry(index, f"{version}/trained.faiss", trained)
    receipt.write(sealed("trained", {"file": asdict(entry), "parameters": parameters}))
    progress(Progress(stage="train", done=1, total=1, unit="quantizers"))
    return entry


def fill_shards(
    builder: ShardBuilder,
    pieces: Sequence[tuple[Piece, ...]],
    first: int,
    progress: ProgressSink,
) -> list[ShardEntry]:
    """Fill one shard for each tuple of pieces, numbered from ``first``."""
    return run_tasks(
        builder,
        [ShardJob(name=shard_name(n), pieces=part) for n, part in enumerate(pieces, first)],
        stage="build shards",
        unit="shards",
        cpus=builder.threads,
        progress=progress,
    )


def measure_recall(
    builder: ShardBuilder,
    plan: IndexPlan,
    shards: Sequence[ShardEntry],
    sample: tuple[Float32, Int64],
    parts: Parts | None,
    progress: ProgressSink,
) -> Recall:
    """Return recall@10, measured with rows of the sample as queries of each measured blend.

    Where probing every list is exact, its recall is 1 and not measured.
    """
    nlist = plan.parameters.nlist
    vectors, rows = sample
    chosen = np.unique(np.linspace(0, len(rows) - 1, RECALL_QUERIES).astype(np.int64))
    asked, own_rows = recall_queries(parts, vectors[chosen]), rows[chosen]
    blends, queries, dimension = asked.shape
    if plan.parameters.kind == "flat":
        return {1: {1: (1.0,) * blends}}
    reranks = RERANKS if plan.rerank > 1 else (1,)
    exact = not plan.parameters.lossy or plan.rerank > 1
    steps = sorted({2**i for i in range(31)} | {3 * 2**i for i in range(30)})
    grid = tuple(nprobe for nprobe in steps if nprobe <= max(nlist // 4, 1))
    depth = RECALL_AT * max(reranks) + 1
    probe = RecallProbe(
        index=builder.index,
        archive=builder.archive,
        snapshot=builder.snapshot,
        queries=asked.reshape(-1, dimension),
        nprobe_grid=grid if exact else (*grid, nlist),
        depth=depth,
        threads=builder.threads,
    )
    found = run_tasks(
        probe,
        list(shards),
        stage="measure recall",
        unit="shards",
        cpus=builder.threads,
        progress=progress,
    )
    everywhere = {nlist: (1.0,) * blends} if exact else {}

    def measured(rerank: int) -> dict[int, tuple[float, ...]]:
        candidates = RECALL_AT * rerank + 1 if plan.rerank > 1 else depth * len(shards)
        each = measured_recall(found, np.tile(own_rows, blends), candidates)
        return {n: tuple(q.reshape(blends, queries).mean(axis=1).tolist()) for n, q in each.items()}

    return {rerank: everywhere | measured(rerank) for rerank in reranks}


def tuned(recall: Recall, plan: IndexPlan, target: float) -> tuple[int, int]:
    """Return the nprobe and the candidates per hit that reach a recall at the least cost.

    The recall is that of the worst blend. Where none reach it, those with the highest recall.
    """
    worst = {rerank: {n: min(of) for n, of in found.items()} for rerank, found in recall.items()}
    least = {
        (next((n for n in sorted(found) if found[n] >= target), max(found)), rerank): found
        for rerank, found in worst.items()
    }
    enough = [pair for pair, found in least.items() if found[pair[0]] >= target]
    if not enough:
        return max(least, key=lambda pair: least[pair][pair[0]])
    estimate = plan.estimate
    return min(enough, key=lambda pair: estimate.query_us(plan.rows, *pair) if estimate else pair)


def first_manifest(
    archive: Archive,
    spec: IndexSpec,
    plan: IndexPlan,
    builder: ShardBuilder,
    digest: str,
    shards: Sequence[ShardEntry],
    recalls: Recall,
    pairs: PairScores | None,
) -> IndexManifest:
    """Return the manifest of a new build."""
    files = VerifiedFiles(builder.index)
    imbalance, empty = list_health(files, shards)
    if empty:
        logger.warning(
            "%s of %s lists are empty; ask for fewer lists", empty, plan.parameters.nlist
        )
    nprobe, rerank = tuned(recalls, plan, spec.recall)
    recall = {n: min(of) for n, of in recalls[rerank].items()}
    parts = archive.spec.parts
    return IndexManifest(
        version=builder.version,
        digest=digest,
        archive_uri=archive.uri,
        snapshot=archive.snapshot,
        encoder_fingerprint=archive.spec.encoder_fingerprint,
        segments=tuple(segment.id for segment in archive.segments),
        parameters=plan.parameters,
        spec=asdict(spec),
        trained=builder.trained,
        shards=tuple(shards),
        predicted_bytes=plan.predicted_bytes,
        measured_bytes=sum(shard.memory_bytes for shard in shards),
        nprobe=nprobe,
        rerank=rerank,
        recall={str(nprobe): value for nprobe, value in recall.items()},
        recall_version=builder.version,
        recall_by_blend={
            f"{blend:g}": {str(nprobe): of[number] for nprobe, of in recalls[rerank].items()}
            for number, blend in enumerate(parts.measured if parts else ())
        },
        fit=mean_fit([shard.fit for shard in shards], [shard.rows for shard in shards]),
        trained_imbalance=imbalance,
        list_imbalance=imbalance,
        empty_lists=empty,
        classes=archive.spec.classes,
        advice=_recall_advice(recall, nprobe, spec.recall, plan),
        pairs=pairs,
        grids=archive.ledger.grids,
        parts=parts,
    )


def _recall_advice(recall: Mapping[int, float], nprobe: int, target: float, plan: IndexPlan) -> str:
    if recall[nprobe] < target:
        reason = f"recall@10 is {recall[nprobe]:.3f} at best, {target} was asked for"
    elif nprobe == plan.parameters.nlist > 1 and plan.rows > FLAT_ROWS:
        reason = f"recall@10 of {target} takes every list, so each search compares all rows"
    else:
        return ""
    return f"{reason}; allow more memory, or ask for less recall"


def with_shards(
    manifest: IndexManifest, shards: Sequence[ShardEntry], index: Location
) -> IndexManifest:
    """Return a grown or compacted manifest with its shards, their measures and the advice."""
    imbalance, empty = list_health(VerifiedFiles(index), shards)
    after = replace(
        manifest,
        shards=tuple(shards),
        measured_bytes=sum(shard.memory_bytes for shard in shards),
        list_imbalance=imbalance,
        empty_lists=empty,
    )
    return replace(after, advice=growth_advice(after))


def publish(manifest: IndexManifest, index: Location, replaces: bytes) -> IndexManifest:
    """Make a version the current version, once the files that it takes over are verified.

    Parameters
    ----------
    replaces
        The content of CURRENT that the version was made from.

    Raises
    ------
    ConfigError
        The version takes more memory than allowed.
    CorruptIndexError
        A file of an earlier version is damaged; the current version stays.
    ArchiveConflictError
        Another writer has moved CURRENT meanwhile; it stays where that writer moved it.
    """
    budget = manifest.spec["memory_bytes"]
    if budget is not None and manifest.measured_bytes > budget:
        raise ConfigError(
            f"index {index} takes {manifest.measured_bytes} bytes, more than the {budget} "
            "allowed; raise the memory or build it again: the current version stays"
        )
    files, own = VerifiedFiles(index), f"{manifest.version}/"
    for file in manifest.files:
        if not file.path.startswith(own):
            files.open(file)
    pin_snapshot(index.at(manifest.archive_uri), manifest.snapshot, index, manifest.version)
    write_manifest(index, manifest, replaces)
    if manifest.advice:
        logger.warning("index %s: %s", index, manifest.advice)
    return manifest


def next_version(index: Location, digest: str) -> str:
    """Return the name of the version that follows all versions, also after a rollback."""
    numbers = [int(version.partition("-")[0]) for version in list_versions(index)]
    return f"{max(numbers, default=0) + 1:04d}-{digest[:8]}"


def version_digest(source: str, snapshot: str, spec: Mapping[str, Any]) -> str:
    """Return the digest of everything that decides the content of a version."""
    return json_digest([FORMAT, source, snapshot, dict(spec)])


def threads_for(jobs: int) -> int:
    """Return the CPUs of each of several jobs, on nodes of this node's size."""
    local = len(os.sched_getaffinity(0))
    cpus = int(min(ray.cluster_resources().get("CPU", 1), local))
    return max(cpus // max(jobs, 1), 1)
