"""Deleted rows, drift and advice of an index that grows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage.archive.reader import ROW_BITS, Archive
from storage.errors import EncoderMismatchError, NotFoundError
from storage.index.files import VerifiedFiles, file_entry
from storage.index.manifest import IndexManifest, ShardEntry
from storage.index.quantizer import QuantizationError
from storage.index.sidecar import Sidecar
from storage.location import Location
from storage.progress import Progress, ProgressSink

DRIFT_LIMIT = 1.25
IMBALANCE_LIMIT = 1.5
CHANGED_LIMIT = 0.3
_LEAST_FIT = 1e-6


def check_same_archive(archive: Archive, current: IndexManifest) -> None:
    """Refuse to grow an index with the rows of another archive.

    Raises
    ------
    EncoderMismatchError
        The archive holds vectors of another encoder.
    NotFoundError
        The archive does not begin with the segments that the index covers.
    """
    found = archive.spec.encoder_fingerprint
    if found != current.encoder_fingerprint:
        raise EncoderMismatchError(
            f"archive {archive.uri} holds vectors of encoder {found[:16]}, the index those of "
            f"{current.encoder_fingerprint[:16]}; build a new index"
        )
    covered = len(current.segments)
    if tuple(segment.id for segment in archive.segments[:covered]) != current.segments:
        raise NotFoundError(
            f"archive {archive.uri} no longer begins with the {covered} segments that index "
            f"version {current.version} covers; build the index again"
        )


def mark_deleted(
    index: Location,
    version: str,
    archive: Archive,
    current: IndexManifest,
    progress: ProgressSink,
) -> list[ShardEntry]:
    """Return the current shards with the rows that are no longer live marked as deleted.

    Raises
    ------
    NotFoundError
        The archive has live rows that the index has dropped as deleted: it was rolled back.
    """
    live = [archive.live_rows(ordinal) for ordinal in range(len(current.segments))]
    files, shards = VerifiedFiles(index), []
    for number, shard in enumerate(current.shards, 1):
        rows = Sidecar(files.open(shard.columns), shard.columns.path).row
        live_rows = np.concatenate([live[o] for o in np.unique(rows >> ROW_BITS).tolist()])
        deleted = np.flatnonzero(~np.isin(rows, live_rows)).astype("<i8")
        if len(deleted) < len(rows):
            path = f"{version}/{shard.name}.dead"
            entry = file_entry(index, path, deleted) if len(deleted) else None
            shards.append(replace(shard, dead=entry, dead_rows=len(deleted)))
        progress(
            Progress(stage="hide dead rows", done=number, total=len(current.shards), unit="shards")
        )
    missing = sum(map(len, live)) - sum(shard.live_rows for shard in shards)
    if missing:
        raise NotFoundError(
            f"archive {archive.uri} has {missing} live rows that index version {current.version} "
            "dropped as deleted (the archive was rolled back); build the index again"
        )
    return shards


def with_growth(current: IndexManifest, added: Sequence[ShardEntry]) -> IndexManifest:
    """Return the manifest with the quantization error of all rows added since the build."""
    rows = sum(shard.rows for shard in added)
    fits = [shard.fit for shard in added]
    weights = [shard.rows for shard in added]
    if current.grown_fit:
        rows, fits = rows + current.grown_rows, [*fits, current.grown_fit]
        weights.append(current.grown_rows)
    if not fits:
        return current
    grown = mean_fit(fits, weights)
    return replace(current, grown_fit=grown, grown_rows=rows, drift=_drift(current.fit, grown))


def mean_fit(fits: Sequence[QuantizationError], rows: Sequence[int]) -> QuantizationError:
    """Return the quantization error of several groups of rows together."""
    return QuantizationError(
        distance=float(np.average([fit.distance for fit in fits], weights=rows)),
        distortion=float(np.average([fit.distortion for fit in fits], weights=rows)),
    )


def _drift(trained: QuantizationError, grown: QuantizationError) -> float:
    """Return the worse of the two error ratios (distance to centroid, quantization distortion)."""
    pairs = ((grown.distance, trained.distance), (grown.distortion, trained.distortion))
    return max(new / max(old, _LEAST_FIT) for new, old in pairs)


def list_health(files: VerifiedFiles, shards: Sequence[ShardEntry]) -> tuple[float, int]:
    """Return the imbalance of the lists of all shards (1: even), and the number of empty lists."""
    sizes = np.sum([files.open(shard.lists).view(np.int64) for shard in shards], axis=0)
    imbalance = len(sizes) * np.square(sizes.astype(float)).sum() / float(sizes.sum()) ** 2
    return float(imbalance), int(np.count_nonzero(sizes == 0))


def growth_advice(manifest: IndexManifest) -> str:
    """Return the reason for a new build, empty when there is none."""
    uneven = manifest.list_imbalance / manifest.trained_imbalance
    trained = sum(shard.trained_rows * shard.live_rows // shard.rows for shard in manifest.shards)
    if manifest.drift > DRIFT_LIMIT:
        reason = f"the rows added since fit its lists {manifest.drift:.2f} times as badly"
    elif uneven > IMBALANCE_LIMIT:
        reason = f"its lists are {uneven:.2f} times as uneven as when it was built"
    elif trained < (1 - CHANGED_LIMIT) * manifest.rows:
        reason = f"only {trained} of {manifest.rows} rows are those it was built from"
    else:
        return ""
    return f"{reason}; build the index again"
