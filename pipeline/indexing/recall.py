"""How much of the truth an index finds, by nprobe: measured on sampled rows after a build."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from pipeline.indexing.plan import IndexPlan
from pipeline.indexing.spec import IndexSpec
from storage.archive.reader import Archive
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.manifest import ShardEntry
from storage.index.quantizer import PQ_CODEWORDS, ShardParameters, proposals, set_threads, train
from storage.index.ranking import Float32, Float64, Int64, canonical_queries, pair_scores
from storage.index.shard import Shard, ShardGroup
from storage.location import StorageOptions

PILOT_ROWS = 16_384
_RUN_ROWS = 1024
_QUERIES = 128
_FOUND = 10
_RERANKS = (4, 16, 64)


def with_estimated_recall(archive: Archive, plan: IndexPlan, spec: IndexSpec) -> IndexPlan:
    """Return the plan with its expected recall and the candidates per result that it needs."""
    if not plan.parameters.lossy or plan.rows <= PQ_CODEWORDS:
        return plan
    rows = _pilot_rows(archive, spec.seed)
    recalls = estimate_recall(rows, plan.parameters, (1, *_RERANKS))
    if plan.rerank == 1:
        return replace(plan, recall_ceiling=recalls[1])
    wanted = (1 + spec.recall) / 2
    enough = next((n for n in _RERANKS if recalls[n] >= wanted), _RERANKS[-1])
    return replace(plan, rerank=enough, recall_ceiling=recalls[enough])


def estimate_recall(
    rows: Float32, parameters: ShardParameters, reranks: tuple[int, ...]
) -> dict[int, float]:
    """Return recall@10 by candidates per result, with every list probed.

    Parameters
    ----------
    rows
        Vectors (n, D) of the pilot, n above 256.
    parameters
        How they are stored; with fewer lists, as there are fewer rows.
    reranks
        Candidates per result that are rescored exactly.
    """
    set_threads(1)
    lists = max(min(parameters.nlist, len(rows) // 64), 1)
    trained = train(rows, replace(parameters, nlist=lists))
    queries = rows[:: max(len(rows) // _QUERIES, 1)]
    exact = queries @ rows.T
    least = -np.partition(-exact, _FOUND - 1, axis=1)[:, _FOUND - 1]
    depth = min(_FOUND * max(reranks), len(rows))
    found = proposals(trained, rows, queries, depth)
    right = np.take_along_axis(exact, found, axis=1) >= least[:, None]
    counts = {n: right[:, : _FOUND * n].sum(axis=1) for n in reranks}
    return {n: float(np.minimum(count, _FOUND).mean() / _FOUND) for n, count in counts.items()}


def _pilot_rows(archive: Archive, seed: int) -> Float32:
    """Return vectors (n, D) of runs of rows that start anywhere: few pieces of the archive."""
    live = [archive.live_rows(segment.ordinal) for segment in archive.segments]
    ends = np.cumsum([len(rows) for rows in live])
    runs = np.arange(0, ends[-1], _RUN_ROWS)
    drawn = np.random.default_rng(seed).choice(
        runs, size=min(PILOT_ROWS // _RUN_ROWS, len(runs)), replace=False
    )
    wanted = []
    for start in np.sort(drawn).tolist():
        segment = int(np.searchsorted(ends, start, side="right"))
        first = start - int(ends[segment] - len(live[segment]))
        wanted.append(live[segment][first : first + _RUN_ROWS])
    rows = archive.read(np.concatenate(wanted), ["embedding"])["embedding"]
    return np.asarray(rows, dtype=np.float32)


RECALL_AT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecall:
    """What a shard answered to the sampled queries.

    ``truth`` holds at least the exact best (scores, rows) (Q, 11); ``found`` by nprobe its
    candidates as (Q, depth): FAISS's scores, the scores that a search orders by, the true scores,
    the rows.
    """

    truth: tuple[Float32, Int64]
    found: dict[int, tuple[Float32, Float32, Float32, Int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallProbe:
    """Asks a shard the sampled queries (Q, D) at several nprobe, and for the exact answers."""

    index_uri: str
    archive_uri: str
    snapshot: str
    queries: Float32
    ladder: tuple[int, ...]
    depth: int
    threads: int = 1
    options: StorageOptions | None = None

    def __call__(self, entry: ShardEntry) -> ShardRecall:
        """Measure one shard."""
        set_threads(self.threads)
        files = VerifiedFiles(self.index_uri, self.options)
        shard = ShardGroup([files.load(entry)])
        everything = shard.select(Filter(), [entry.name])
        queries = canonical_queries(self.queries, shard.dimension)
        queries32 = queries.astype(np.float32)
        truthful = self._truthful(shard, files, entry)

        def best(positions: Int64) -> tuple[Float32, Int64]:
            scores, positions = truthful.scan(queries, RECALL_AT + 1, positions)
            return scores, _rows(shard, positions)

        def looked(nprobe: int) -> tuple[Float32, Float32, Float32, Int64]:
            proposed, positions = shard.nearest(
                queries32, self.depth, shard.probes(queries32, nprobe), everything
            )
            final, true = (_scores(by, queries, positions) for by in (shard, truthful))
            return proposed, final, true, _rows(shard, positions)

        widest_first = sorted(self.ladder, reverse=True)
        with ThreadPoolExecutor(self.threads, "recall", set_threads, (1,)) as pool:
            looks = zip(widest_first, pool.map(looked, widest_first), strict=True)
            found = dict(sorted(looks, key=itemgetter(0)))
            parts = pool.map(best, np.array_split(everything.positions, self.threads))
            scores, rows = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return ShardRecall(truth=(scores, rows), found=found)

    def _truthful(self, shard: ShardGroup, files: VerifiedFiles, entry: ShardEntry) -> ShardGroup:
        """Return the shard with the archive's vectors, for lossy kinds that keep none."""
        if shard.reranks or not shard.lossy:
            return shard
        archive = Archive.open(self.archive_uri, self.snapshot, self.options)
        vectors = archive.read(shard.sidecar.row, ["embedding"])["embedding"]
        return ShardGroup([Shard(entry.name, files.open(entry.index), shard.sidecar, vectors)])


def measured_recall(
    parts: Sequence[ShardRecall], own_rows: Int64, rerank_depth: int
) -> dict[int, float]:
    """Return recall@10 by nprobe of all shards together; a query's own row does not count.

    Parameters
    ----------
    parts
        What each shard answered.
    own_rows
        The archive row (Q,) that each query is.
    rerank_depth
        How many candidates a search rescores of each query.
    """
    scores, rows = (np.concatenate([part.truth[i] for part in parts], axis=1) for i in (0, 1))
    truth = _best(scores, scores, rows, own_rows)
    wanted = np.isfinite(truth).sum(axis=1)
    least = np.where(np.isfinite(truth), truth, np.inf).min(axis=1)
    recall = {}
    for nprobe in parts[0].found:
        proposed, final, true, rows = (
            np.concatenate([part.found[nprobe][i] for part in parts], axis=1) for i in range(4)
        )
        kept = np.argsort(-proposed, axis=1, kind="stable")[:, :rerank_depth]
        final, true, rows = (np.take_along_axis(a, kept, axis=1) for a in (final, true, rows))
        # Equal scores are equally right, so answers are judged by score, not by row.
        right = _best(final, true, rows, own_rows) >= least[:, None]
        recall[nprobe] = float(np.mean(right.sum(axis=1) / np.maximum(wanted, 1)))
    return recall


def _best(final: Float32, true: Float32, rows: Int64, own_rows: Int64) -> Float32:
    """Return the true scores (Q, 10) of the rows that score best, without the query's own."""
    others = np.where(rows == own_rows[:, None], -np.inf, final)
    order = np.argsort(-others, axis=1, kind="stable")[:, :RECALL_AT]
    best = np.take_along_axis(np.where(np.isfinite(others), true, -np.inf), order, axis=1)
    return best.astype(np.float32)


def _scores(shard: ShardGroup, queries: Float64, positions: Int64) -> Float32:
    query, column = np.nonzero(positions >= 0)
    at = positions[query, column]
    scores = np.full(positions.shape, -np.inf, dtype=np.float32)
    scores[query, column] = pair_scores(queries, query, lambda part: shard.decode(at[part]))
    return scores


def _rows(shard: ShardGroup, positions: Int64) -> Int64:
    return np.where(positions >= 0, shard.sidecar.row[positions], -1)
