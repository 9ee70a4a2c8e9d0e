"""Compact an index: merge small shards and drop dead rows, without training and without vectors.

What a shard stores of a row is taken over bit for bit, so a compacted index answers what the
uncompacted one answers. The archive is not read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.indexing.build import MergeJob, built_once
from pipeline.indexing.plan import morton
from pipeline.indexing.update import mean_fit
from storage.geometry import centres
from storage.index.files import ShardWriter, Vectors, VerifiedFiles
from storage.index.manifest import FileEntry, IndexManifest, ShardEntry
from storage.index.quantizer import QuantizationError, ShardIndexBuilder, set_threads
from storage.index.ranking import Int64
from storage.index.sidecar import Sidecar, encode_columns, join_rows, order_of
from storage.location import StorageOptions


def groups_to_merge(manifest: IndexManifest) -> list[tuple[ShardEntry, ...]]:
    """Return the shards that become one: small ones and those with dead rows, neighbours together.

    A shard is small when it holds less than half of what a build would give it.
    """
    wanted = manifest.spec["shards"]
    full = math.ceil(manifest.rows / wanted) if wanted else int(manifest.spec["rows_per_shard"])
    loose = [s for s in manifest.shards if s.dead_rows or 2 * s.live_rows < full]
    groups: list[list[ShardEntry]] = []
    for shard in sorted(loose, key=_place):
        there = sum(s.live_rows for s in groups[-1]) if groups else full
        if there + shard.live_rows > full:
            groups.append([])
        groups[-1].append(shard)
    return [tuple(group) for group in groups if len(group) > 1 or group[0].dead_rows]


def _place(shard: ShardEntry) -> tuple[int, str]:
    lon, lat = centres([shard.bbox])[0].tolist()
    return morton(lon, lat), shard.name


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMerger:
    """Merges shards of one version into shards of the next; a plain value that travels to a task.

    Peak memory: that of the merged shard, twice, plus its columns.
    """

    index_uri: str
    version: str
    trained: FileEntry
    dimension: int
    classes: tuple[str, ...]
    options: StorageOptions | None = None

    def __call__(self, job: MergeJob) -> ShardEntry:
        """Merge shards, or return what was merged before."""
        return built_once(self.index_uri, self.version, job, self._merge, self.options)

    def _merge(self, job: MergeJob) -> ShardEntry:
        set_threads(1)
        files = VerifiedFiles(self.index_uri, self.options)
        alive = [_alive(files, shard) for shard in job.sources]
        columns = join_rows(
            [
                Sidecar(files.open(shard.columns), shard.columns.path).take(kept)
                for shard, kept in zip(job.sources, alive, strict=True)
            ],
            len(self.classes),
        )
        order = order_of(columns)
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order))
        text = encode_columns({n: v[order] for n, v in columns.items()}, self.classes)
        del columns, order
        live = [shard.live_rows for shard in job.sources]

        def fill(filled: ShardIndexBuilder, vectors: Vectors | None) -> QuantizationError:
            done = 0
            for shard, kept in zip(job.sources, alive, strict=True):
                at = positions[done : done + len(kept)]
                done += len(kept)
                places = np.full(shard.rows, -1, dtype=np.int64)
                places[kept] = at
                filled.merge_from(files.open(shard.index), places)
                if vectors is not None and shard.vectors is not None:
                    source = files.open(shard.vectors).view(np.float16)
                    vectors[at] = source.reshape(shard.rows, -1)[kept]
            return mean_fit([shard.fit for shard in job.sources], live)

        draft = ShardWriter(
            index_uri=self.index_uri,
            version=self.version,
            name=job.name,
            dimension=self.dimension if job.sources[0].vectors else 0,
            trained_rows=sum(s.trained_rows * s.live_rows // s.rows for s in job.sources),
            options=self.options,
        )
        return draft.write(files.open(self.trained), text, fill)


def _alive(files: VerifiedFiles, shard: ShardEntry) -> Int64:
    """Return the positions (n,) of a shard's live rows."""
    alive: npt.NDArray[np.bool_] = np.ones(shard.rows, dtype=np.bool_)
    if shard.dead:
        alive[files.open(shard.dead).view(np.int64)] = False
    return np.flatnonzero(alive)


def shards_after(
    manifest: IndexManifest, groups: Sequence[tuple[ShardEntry, ...]], merged: Sequence[ShardEntry]
) -> tuple[ShardEntry, ...]:
    """Return the shards that stay, then the merged ones."""
    gone = {shard.name for group in groups for shard in group}
    return (*(shard for shard in manifest.shards if shard.name not in gone), *merged)
