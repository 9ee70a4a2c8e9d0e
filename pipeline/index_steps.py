"""The steps that building and growing an index share, each one call of the driver."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray

from pipeline.index_build import ShardBuilder, ShardJob
from pipeline.index_plan import IndexPlan, Piece, Segments
from pipeline.index_recall import RECALL_AT, RecallProbe, measured_recall
from pipeline.samples import uniform_rows
from pipeline.tasks import run_tasks
from storage.archive import Archive
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.manifest import (
    FORMAT,
    FileEntry,
    IndexFiles,
    IndexManifest,
    ShardEntry,
    file_entry,
    write_manifest,
)
from storage.object_store import StorageOptions, join_uri, read_bytes, write_bytes
from storage.progress import Progress, ProgressSink
from storage.ranking import Float32, Int64
from storage.shards import set_threads, similarity_to_lists, train

logger = logging.getLogger(__name__)

RECALL_QUERIES = 100


def survey(archive: Archive, skip: frozenset[str] = frozenset()) -> Segments:
    """Return (ordinal, live rows, centre) of the segments that have live rows."""
    found: Segments = []
    for segment in archive.segments:
        if segment.id in skip or not len(archive.live_rows(segment.ordinal)):
            continue
        box = archive.read_segment(segment.ordinal, ["bbox"])["bbox"]
        west, south, east, north = box.mean(axis=0).tolist()
        found.append((segment.ordinal, len(box), ((west + east) / 2, (south + north) / 2)))
    return found


def draw_sample(archive: Archive, plan: IndexPlan, seed: int) -> tuple[Float32, Int64]:
    """Return a uniform sample of the live rows: vectors (n, D) and row ids (n,)."""
    rows = uniform_rows(archive, plan.sample_rows, seed)
    return archive.read(rows, ["embedding"])["embedding"].astype(np.float32), rows


def train_lists(
    index_uri: str,
    version: str,
    plan: IndexPlan,
    sample: Float32,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> tuple[FileEntry, float]:
    """Train, or take what an interrupted build trained; return the file and the imbalance."""
    receipt = join_uri(index_uri, version, "trained.json")
    try:
        values = json.loads(read_bytes(receipt, options))
        finished = FileEntry(**values["trained"])
        IndexFiles(index_uri, options).open(finished)
        return finished, float(values["imbalance"])
    except (NotFoundError, CorruptIndexError, ValueError, KeyError, TypeError):
        logger.info("training on %s rows", len(sample))
    progress(Progress(stage="train", done=0, total=1, unit="quantizers"))
    set_threads(threads_for(1))
    trained = train(sample, plan.parameters)
    _, imbalance = similarity_to_lists(trained, sample)
    entry = file_entry(index_uri, f"{version}/trained.faiss", trained, options)
    text = json.dumps({"trained": asdict(entry), "imbalance": imbalance})
    write_bytes(receipt, text.encode(), options)
    progress(Progress(stage="train", done=1, total=1, unit="quantizers"))
    return entry, imbalance


def fill_shards(
    builder: ShardBuilder,
    pieces: Sequence[tuple[Piece, ...]],
    first: int,
    progress: ProgressSink,
) -> list[ShardEntry]:
    """Fill one shard for each tuple of pieces, numbered from ``first``."""
    return run_tasks(
        builder,
        [ShardJob(name=f"shard-{n:05d}", pieces=part) for n, part in enumerate(pieces, first)],
        stage="build shards",
        unit="shards",
        cpus=builder.threads,
        progress=progress,
    )


def measure_recall(
    builder: ShardBuilder,
    plan: IndexPlan,
    shards: Sequence[ShardEntry],
    sample: Float32,
    own_rows: Int64,
    progress: ProgressSink,
) -> dict[int, float]:
    """Return recall@10 by nprobe, measured with rows of the sample as queries."""
    nlist = plan.parameters.nlist
    if plan.parameters.kind == "flat":
        return {1: 1.0}
    chosen = np.unique(np.linspace(0, len(sample) - 1, RECALL_QUERIES).astype(np.int64))
    depth = RECALL_AT * plan.rerank + 1
    probe = RecallProbe(
        index_uri=builder.index_uri,
        archive_uri=builder.archive_uri,
        snapshot=builder.snapshot,
        queries=sample[chosen],
        ladder=(*(2**i for i in range(nlist.bit_length()) if 2**i < nlist), nlist),
        depth=depth,
        threads=builder.threads,
        options=builder.options,
    )
    parts = run_tasks(
        probe,
        list(shards),
        stage="measure recall",
        unit="shards",
        cpus=builder.threads,
        progress=progress,
    )
    rescored = depth if plan.rerank > 1 else depth * len(shards)
    return measured_recall(parts, own_rows[chosen], rescored)


def tuned_nprobe(recall: Mapping[int, float], wanted: float) -> int:
    """Return the least nprobe that reaches the recall, or the largest there is.

    Examples
    --------
    >>> tuned_nprobe({1: 0.6, 2: 0.96, 4: 1.0}, 0.95)
    2
    """
    return next((nprobe for nprobe in sorted(recall) if recall[nprobe] >= wanted), max(recall))


def publish(
    manifest: IndexManifest, index_uri: str, options: StorageOptions | None
) -> IndexManifest:
    """Make a version the current one, unless it takes more memory than was allowed.

    Raises
    ------
    ConfigError
        It takes more memory than was allowed.
    """
    budget = manifest.spec["memory_bytes"]
    if budget is not None and manifest.measured_bytes > budget:
        raise ConfigError(
            f"index {index_uri} takes {manifest.measured_bytes} bytes, more than the {budget} "
            "allowed; raise the memory or build it again: the current version stays"
        )
    write_manifest(index_uri, manifest, options)
    if manifest.advice:
        logger.warning("index %s: %s", index_uri, manifest.advice)
    return manifest


def next_version(current: IndexManifest | None, digest: str) -> str:
    """Return the name of the version that follows the current one."""
    number = int(current.version.partition("-")[0]) + 1 if current else 1
    return f"{number:04d}-{digest[:8]}"


def version_digest(source: str, snapshot: str, spec: Mapping[str, Any]) -> str:
    """Return what identifies a version by everything that decides its content."""
    text = json.dumps([FORMAT, source, snapshot, dict(spec)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def threads_for(jobs: int) -> int:
    """Return the CPUs for each of so many jobs, on nodes of this node's size."""
    here = len(os.sched_getaffinity(0))
    cpus = int(min(ray.cluster_resources().get("CPU", 1), here))
    return max(cpus // max(jobs, 1), 1)
