"""Build and grow an index: the drivers that hand the workers to Ray.

A build trains on a uniform sample, fills shards in parallel, measures their recall, and only then
writes the manifest and moves CURRENT. After a kill the same call continues: the name of the version
follows from the archive's snapshot and the request.
"""

import logging
import math
from dataclasses import asdict, replace

from pipeline.indexing.build import MergeJob, ShardBuilder
from pipeline.indexing.compact import ShardMerger, groups_to_merge, shards_after
from pipeline.indexing.maintenance import verify_index
from pipeline.indexing.pilot import piloted
from pipeline.indexing.plan import IndexPlan, cut_into_shards
from pipeline.indexing.spec import IndexSpec
from pipeline.indexing.steps import (
    draw_sample,
    fill_shards,
    first_manifest,
    measure_recall,
    next_version,
    pair_scores,
    plan_once,
    plans_of,
    publish,
    segment_extents,
    threads_for,
    train_lists,
    version_digest,
    with_shards,
)
from pipeline.indexing.update import check_same_archive, mark_deleted, with_growth
from pipeline.runtime.cluster import ray_session
from pipeline.runtime.tasks import run_tasks
from storage.archive.reader import Archive
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.index.manifest import (
    IndexManifest,
    ShardEntry,
    read_manifest,
    read_pointer,
    shard_name,
    shard_number,
)
from storage.location import Location
from storage.progress import ProgressSink, ignore

logger = logging.getLogger(__name__)


def plan_build(archive_uri: str | Location, spec: IndexSpec | None = None) -> IndexPlan:
    """Return the plan that :func:`build_index` would follow.

    Raises
    ------
    NotFoundError
        There is no archive.
    ConfigError
        The archive is empty, or no index fits the request.
    """
    archive, spec = Archive.open(archive_uri), spec or IndexSpec()
    return piloted(archive, spec, plans_of(archive, spec))


def build_index(
    archive_uri: str | Location,
    index_uri: str | Location,
    spec: IndexSpec | None = None,
    *,
    other_archive: bool = False,
    address: str | None = None,
    progress: ProgressSink = ignore,
) -> IndexManifest:
    """Index an archive's newest snapshot; nothing is done when that version is current and sound.

    An index of two-part vectors whose recall was not measured at each blend is built again.

    Parameters
    ----------
    archive_uri, index_uri
        The archive, and the folder of the index.
    spec
        The request.
    other_archive
        The index may be of another archive: its next version is of this one, and searches change
        over to it, also where its vectors are of another encoder.
    address
        Ray cluster to join; by default a running cluster, else a private one.
    progress
        Receives the stages train, build shards and measure recall.

    Returns
    -------
    IndexManifest
        The version that is now current.

    Raises
    ------
    NotFoundError
        There is no archive.
    ConfigError
        The archive is empty, no index fits the request, or the index is of another archive.
    """
    spec = spec or IndexSpec()
    archive = Archive.open(Location.of(archive_uri).absolute)
    index = Location.of(index_uri).absolute
    digest = version_digest(archive.uri, archive.snapshot, asdict(spec))
    pointer, current = read_pointer(index), _current(index)
    if current and current.digest == digest and (current.recall_by_blend or not current.parts):
        if (report := verify_index(index, current.version)).ok:
            return current
        logger.warning("building index %s again: %s", index, report.problems[0])
    if current and current.archive_uri != archive.uri and not other_archive:
        raise ConfigError(
            f"index {index} is of archive {current.archive_uri}, not {archive.uri}; choose another "
            "folder for the new index, or --other-archive to change its searches over"
        )
    version = next_version(index, digest)
    plan = plan_once(index, version, archive, spec)
    logger.info("index %s: version %s: %s", index, version, plan)
    with ray_session(address):
        sample = draw_sample(archive, plan, spec.seed)
        builder = ShardBuilder(
            index=index,
            version=version,
            archive=archive.location,
            snapshot=archive.snapshot,
            trained=train_lists(index, version, plan, sample[0], progress),
            keep_vectors=plan.rerank > 1,
            threads=threads_for(len(plan.pieces)),
        )
        shards = fill_shards(builder, plan.pieces, 0, progress)
        recall = measure_recall(builder, plan, shards, sample, archive.spec.parts, progress)
    pairs = pair_scores(archive, spec.seed, sample[0])
    manifest = first_manifest(archive, spec, plan, builder, digest, shards, recall, pairs)
    return publish(manifest, index, pointer)


def update_index(
    index_uri: str | Location,
    *,
    address: str | None = None,
    progress: ProgressSink = ignore,
) -> IndexManifest:
    """Bring an index to its archive's newest snapshot, without training again.

    New segments become new shards; rows that are no longer live are marked as deleted. The drift of
    the new rows is measured, and the manifest's advice tells when a new build is better.

    Raises
    ------
    NotFoundError
        There is no index, or its archive is gone.
    EncoderMismatchError
        The archive now holds vectors of another encoder.
    ConfigError
        The archive holds no live rows any more.
    CorruptIndexError
        A file of the current version is damaged.
    ArchiveConflictError
        Another writer has made another version current meanwhile.
    """
    index = Location.of(index_uri).absolute
    pointer, current = read_pointer(index), read_manifest(index)
    archive = Archive.open(index.at(current.archive_uri))
    check_same_archive(archive, current)
    if archive.snapshot == current.snapshot and (current.pairs or current.rows < 2):
        return current
    digest = version_digest(current.digest, archive.snapshot, {})
    version = next_version(index, digest)
    old = mark_deleted(index, version, archive, current, progress)
    added = _add_segments(index, version, archive, current, address, progress)
    shards = (*old, *added)
    if not shards:
        raise ConfigError(
            f"archive {archive.uri} holds no live rows any more; "
            f"the index stays at version {current.version}"
        )
    after = replace(
        with_growth(current, added),
        version=version,
        digest=digest,
        snapshot=archive.snapshot,
        segments=tuple(segment.id for segment in archive.segments),
        grids=archive.ledger.grids,
        pairs=current.pairs or pair_scores(archive, int(current.spec["seed"])),
    )
    return publish(with_shards(after, shards, index), index, pointer)


def compact_index(
    index_uri: str | Location,
    *,
    address: str | None = None,
    progress: ProgressSink = ignore,
) -> IndexManifest:
    """Merge the small shards that updates left and drop deleted rows; nothing is trained.

    The new version answers as the current version does, on the same snapshot.

    Raises
    ------
    NotFoundError
        There is no index.
    CorruptIndexError
        A file of the current version is damaged.
    ArchiveConflictError
        Another writer has made another version current meanwhile; its rows stay.
    """
    index = Location.of(index_uri).absolute
    pointer, current = read_pointer(index), read_manifest(index)
    groups = groups_to_merge(current)
    if not groups:
        return current
    digest = version_digest(current.digest, current.snapshot, {"compact": True})
    version = next_version(index, digest)
    merger = ShardMerger(
        index=index,
        version=version,
        trained=current.trained,
        dimension=current.parameters.dimension,
        classes=current.classes,
    )
    first = _next_number(current)
    jobs = [
        MergeJob(name=shard_name(number), sources=sources)
        for number, sources in enumerate(groups, first)
    ]
    with ray_session(address):
        merged = run_tasks(merger, jobs, stage="merge shards", unit="shards", progress=progress)
    shards = shards_after(current, groups, merged)
    after = replace(current, version=version, digest=digest)
    return publish(with_shards(after, shards, index), index, pointer)


def _add_segments(
    index: Location,
    version: str,
    archive: Archive,
    current: IndexManifest,
    address: str | None,
    progress: ProgressSink,
) -> list[ShardEntry]:
    """Fill shards with the segments that the current version does not cover."""
    fresh = segment_extents(archive, skip=frozenset(current.segments))
    if not fresh:
        return []
    rows = sum(count for _, count, _ in fresh)
    pieces = cut_into_shards(fresh, math.ceil(rows / int(current.spec["rows_per_shard"])))
    with ray_session(address):
        builder = ShardBuilder(
            index=index,
            version=version,
            archive=archive.location,
            snapshot=archive.snapshot,
            trained=current.trained,
            keep_vectors=current.rerank > 1,
            first_build=False,
            threads=threads_for(len(pieces)),
        )
        return fill_shards(builder, pieces, _next_number(current), progress)


def _next_number(current: IndexManifest) -> int:
    return 1 + max(shard_number(shard.name) for shard in current.shards)


def _current(index: Location) -> IndexManifest | None:
    try:
        return read_manifest(index)
    except NotFoundError:
        return None  # this is the first build
    except CorruptIndexError as error:
        logger.warning("building index %s again: %s", index, error)
        return None
