"""Recall of a finished index by nprobe: sampled rows as queries, against exact scores."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage.archive.reader import Archive
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.manifest import ShardEntry
from storage.index.pilot import RECALL_AT
from storage.index.quantizer import set_threads
from storage.index.ranking import Float32, Float64, Int64, canonical_queries
from storage.index.shard import Shard, ShardGroup
from storage.location import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecall:
    """The answers of a shard to the sampled queries.

    ``truth`` holds the exact best (scores, rows) (Q, C), with C at least 11; ``found`` by nprobe
    the candidates as (Q, depth): FAISS's scores, the scores that a search orders by, the exact
    scores, and the rows.
    """

    truth: tuple[Float32, Int64]
    found: dict[int, tuple[Float32, Float32, Float32, Int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallProbe:
    """Searches a shard with the sampled queries (Q, D) at each nprobe of a grid, and exactly."""

    index: Location
    archive: Location
    snapshot: str
    queries: Float32
    nprobe_grid: tuple[int, ...]
    depth: int
    threads: int = 1

    def __call__(self, entry: ShardEntry) -> ShardRecall:
        """Measure one shard."""
        set_threads(self.threads)
        files = VerifiedFiles(self.index)
        shard = ShardGroup([files.load(entry)])
        everything = shard.select(Filter(), [entry.name])
        queries = canonical_queries(self.queries, shard.dimension)
        queries32 = queries.astype(np.float32)
        exact = self._exact(shard, files, entry)

        def best(positions: Int64) -> tuple[Float32, Int64]:
            # One more than the recall is measured at, because the query's own row does not count.
            scores, positions = exact.scan(queries, RECALL_AT + 1, positions)
            return scores, _rows(shard, positions)

        def searched(nprobe: int) -> tuple[Float32, Float32, Float32, Int64]:
            proposed, positions = shard.nearest(
                queries32, self.depth, shard.probes(queries32, nprobe), everything
            )
            final, true = (group.scores(queries, positions) for group in (shard, exact))
            return proposed, final, true, _rows(shard, positions)

        # The widest search takes longest, so it starts first.
        widest_first = sorted(self.nprobe_grid, reverse=True)
        with ThreadPoolExecutor(self.threads, "recall", set_threads, (1,)) as pool:
            found = dict(zip(widest_first, pool.map(searched, widest_first), strict=True))
            parts = pool.map(best, np.array_split(everything.positions, self.threads))
            scores, rows = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return ShardRecall(truth=(scores, rows), found=dict(sorted(found.items())))

    def _exact(self, shard: ShardGroup, files: VerifiedFiles, entry: ShardEntry) -> ShardGroup:
        """Return a shard with exact vectors: from the archive for lossy kinds that keep none."""
        if shard.reranks or not shard.lossy:
            return shard
        archive = Archive.open(self.archive, self.snapshot)
        vectors = archive.read(shard.sidecar.row, ["embedding"])["embedding"]
        return ShardGroup([Shard(entry.name, files.open(entry.index), shard.sidecar, vectors)])


def measured_recall(
    parts: Sequence[ShardRecall], own_rows: Int64, rerank_depth: int
) -> dict[int, Float64]:
    """Return the recall@10 (Q,) of each query by nprobe; the query's own row does not count.

    Parameters
    ----------
    parts
        The answers of each shard to all queries.
    own_rows
        The archive row (Q,) of each query.
    rerank_depth
        Candidates of a query that a search rescores, over all shards.
    """
    scores, rows = (np.concatenate([part.truth[i] for part in parts], axis=1) for i in (0, 1))
    truth = _best(scores, scores, rows, own_rows)
    count = np.isfinite(truth).sum(axis=1)
    least = np.where(np.isfinite(truth), truth, np.inf).min(axis=1)
    recall = {}
    for nprobe in parts[0].found:
        proposed, final, true, rows = (
            np.concatenate([part.found[nprobe][i] for part in parts], axis=1) for i in range(4)
        )
        # As a search does: FAISS's scores choose the candidates, the final scores order them.
        chosen = np.argsort(-proposed, axis=1, kind="stable")[:, :rerank_depth]
        final, true, rows = (np.take_along_axis(a, chosen, axis=1) for a in (final, true, rows))
        # Equal scores are equally right, so answers are judged by score, not by row.
        right = _best(final, true, rows, own_rows) >= least[:, None]
        recall[nprobe] = right.sum(axis=1) / np.maximum(count, 1)
    return recall


def _best(final: Float32, true: Float32, rows: Int64, own_rows: Int64) -> Float32:
    """Return the true scores (Q, 10) of the rows that score best, without the query's own row."""
    others = np.where(rows == own_rows[:, None], -np.inf, final)
    order = np.argsort(-others, axis=1, kind="stable")[:, :RECALL_AT]
    best = np.take_along_axis(np.where(np.isfinite(others), true, -np.inf), order, axis=1)
    return best.astype(np.float32)


def _rows(shard: ShardGroup, positions: Int64) -> Int64:
    return np.where(positions >= 0, shard.sidecar.row[positions], -1)
