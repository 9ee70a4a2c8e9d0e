"""Compact an index: merge small shards and drop deleted rows, without training or vectors.

Stored codes are copied bit for bit, so a compacted index answers exactly as before. The archive is
not read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.indexing.build import MergeJob, built_once
from pipeline.indexing.plan import morton
from pipeline.indexing.update import mean_fit
from storage.geometry import centres
from storage.index.files import ShardWriter, Vectors, VerifiedFiles
from storage.index.manifest import FileEntry, IndexManifest, ShardEntry
from storage.index.quantizer import QuantizationError, ShardIndexBuilder, set_threads
from storage.index.ranking import Int64
from storage.index.sidecar import Sidecar, join_rows
from storage.location import Location


def groups_to_merge(manifest: IndexManifest) -> list[tuple[ShardEntry, ...]]:
    """Group the shards to merge, neighbours together: small shards, and shards with deleted rows.

    A shard is small when it holds less than half of the rows that a build would give it.
    """
    shards = manifest.spec["shards"]
    full = math.ceil(manifest.rows / shards) if shards else int(manifest.spec["rows_per_shard"])
    loose = [s for s in manifest.shards if s.dead_rows or 2 * s.live_rows < full]
    groups: list[list[ShardEntry]] = []
    for shard in sorted(loose, key=_place):
        rows = sum(s.live_rows for s in groups[-1]) if groups else full
        if rows + shard.live_rows > full:
            groups.append([])
        groups[-1].append(shard)
    return [tuple(group) for group in groups if len(group) > 1 or group[0].dead_rows]


def _place(shard: ShardEntry) -> tuple[int, str]:
    lon, lat = centres([shard.bbox])[0].tolist()
    return morton(lon, lat), shard.name


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMerger:
    """Merges shards of one version into shards of the next; a plain value that travels to a task.

    Peak memory: twice that of the merged shard, plus its columns.
    """

    index: Location
    version: str
    trained: FileEntry
    dimension: int
    classes: tuple[str, ...]

    def __call__(self, job: MergeJob) -> ShardEntry:
        """Merge shards, or return the finished shard."""
        return built_once(self.index, self.version, self.trained, job, self._merge)

    def _merge(self, job: MergeJob) -> ShardEntry:
        set_threads(1)
        files = VerifiedFiles(self.index)
        live = [_live_positions(files, shard) for shard in job.sources]
        columns = join_rows(
            [
                Sidecar(files.open(shard.columns), shard.columns.path).take(rows)
                for shard, rows in zip(job.sources, live, strict=True)
            ],
            len(self.classes),
        )

        def fill(
            builder: ShardIndexBuilder, positions: Int64, vectors: Vectors | None
        ) -> QuantizationError:
            done = 0
            for shard, rows in zip(job.sources, live, strict=True):
                merged = np.full(shard.rows, -1, dtype=np.int64)
                merged[rows] = positions[done : done + len(rows)]
                done += len(rows)
                builder.merge_from(files.open(shard.index), merged)
                if vectors is not None and shard.vectors is not None:
                    source = files.open(shard.vectors).view(np.float16)
                    vectors[merged[rows]] = source.reshape(shard.rows, -1)[rows]
            return mean_fit([s.fit for s in job.sources], [s.live_rows for s in job.sources])

        writer = ShardWriter(
            index=self.index,
            version=self.version,
            name=job.name,
            dimension=self.dimension if job.sources[0].vectors else 0,
            trained_rows=sum(s.trained_rows * s.live_rows // s.rows for s in job.sources),
        )
        trained = files.open(self.trained)
        return writer.write(trained, columns, self.classes, fill)


def _live_positions(files: VerifiedFiles, shard: ShardEntry) -> Int64:
    """Return the positions (n,) of a shard's live rows."""
    live = np.ones(shard.rows, dtype=np.bool_)
    if shard.dead:
        live[files.open(shard.dead).view(np.int64)] = False
    return np.flatnonzero(live)


def shards_after(
    manifest: IndexManifest, groups: Sequence[tuple[ShardEntry, ...]], merged: Sequence[ShardEntry]
) -> tuple[ShardEntry, ...]:
    """Return the shards that stay, then the merged shards."""
    gone = {shard.name for group in groups for shard in group}
    return (*(shard for shard in manifest.shards if shard.name not in gone), *merged)
