"""What a kind of index finds and costs, measured on some rows of an archive. A home of faiss.

The pilot stores the same rows in each kind in question, on this machine, and searches them with
some of them as queries. The figures of the whole index are projected from it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import faiss
import numpy as np

from storage.index.quantizer import (
    ShardIndexBuilder,
    ShardParameters,
    scannable,
    set_threads,
    train,
    trained_centres,
)
from storage.index.ranking import Float32, Int64
from storage.index.vectors import HalfVectors
from storage.parts import Parts, recall_queries

RECALL_AT = 10
"""Hits at which recall is measured."""
_LIST_ROWS = 64
_QUERIES = 256
_PROBES = (1, 2, 4, 8, 16, 32, 64)
RERANKS = (2, 4, 8, 16, 32, 64)
"""Candidates per hit to choose from."""
_TIMED_LISTS, _TIMED_FACTOR = 16, 32  # lists and candidates per hit whose times are taken
_TURNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a kind finds and costs.

    Attributes
    ----------
    parameters
        Kind and sizes.
    nprobe, rerank
        Lists to probe and candidates per hit whose exact scores are needed, 1 when none are kept:
        those that reach the recall in the least time.
    recall, recall_ceiling
        Recall@10 with those, and with every list probed.
    centres_us, row_us, candidate_us
        CPU time of a query of a batch, in microseconds: to choose its lists, to compare it with a
        row of them, and to keep one more candidate and compute its exact score.
    build_s
        CPU time of training, and of adding every row, in seconds.
    """

    parameters: ShardParameters
    nprobe: int
    rerank: int
    recall: float
    recall_ceiling: float
    centres_us: float
    row_us: float
    candidate_us: float
    build_s: float

    def query_us(self, rows: int, nprobe: int | None = None, rerank: int | None = None) -> float:
        """Return the CPU time of a query for ten hits among ``rows`` rows, in microseconds."""
        probed = rows * min((nprobe or self.nprobe) / self.parameters.nlist, 1)
        candidates = RECALL_AT * (rerank or self.rerank)
        return self.centres_us + probed * self.row_us + candidates * self.candidate_us


class Pilot:
    """Rows of an archive that are stored in each kind in question.

    Parameters
    ----------
    rows
        Vectors (n, D), more than 256 of them.
    total
        Number of rows of the index.
    parts
        The parts of the vectors, whose recall is that of the worst measured blend; None for one.
    """

    def __init__(self, rows: Float32, total: int, parts: Parts | None = None) -> None:
        self._rows, self._total = rows, total
        self._centres: dict[int, tuple[Float32, float]] = {}
        own = np.arange(0, len(rows), max(len(rows) // _QUERIES, 1))
        queries = recall_queries(parts, rows[own])
        self._blends, own = len(queries), np.tile(own, len(queries))
        self._queries = queries.reshape(len(own), -1)
        self._halves = rows.astype(np.float16)
        self._exact = self._queries @ rows.T
        self._exact[np.arange(len(own)), own] = -np.inf  # that a query finds itself does not count
        self._least = -np.partition(-self._exact, RECALL_AT - 1, axis=1)[:, RECALL_AT - 1]

    def estimate(
        self, parameters: ShardParameters, target: float, sample_rows: int, *, rerank: bool = True
    ) -> Estimate:
        """Store the rows in a kind and measure it.

        Parameters
        ----------
        parameters
            Kind and sizes of the index; the pilot has fewer lists, and finds as much in as many of
            them as the index will.
        target
            Recall@10 to reach.
        sample_rows
            Rows that the index is trained on.
        rerank
            Whether exact vectors are kept, which correct the scores of lossy kinds.
        """
        set_threads(1)
        rows, count = self._rows, len(self._queries)
        lists = max(min(parameters.nlist, len(rows) // _LIST_ROWS), 1)
        small = replace(parameters, nlist=lists)
        centres, centres_s = self._trained_centres(small)
        started = time.thread_time()
        trained = train(rows, small, centres)
        codes_s = time.thread_time() - started
        builder, started = ShardIndexBuilder(trained), time.thread_time()
        builder.add(np.arange(len(rows)), self._halves)
        add_s = time.thread_time() - started
        index = scannable(builder.loaded.lists)
        queries = builder.loaded.query(self._queries)
        factors = RERANKS if parameters.lossy and rerank else (1,)
        recall: dict[tuple[int, int], float] = {}
        for nprobe in (*(n for n in _PROBES if n < lists), lists):
            index.nprobe = nprobe
            found = index.search(queries, min(RECALL_AT * factors[-1] + 1, len(rows)))[1]
            recall |= {(nprobe, factor): self._recall(found, factor) for factor in factors}
        depth = RECALL_AT * _TIMED_FACTOR
        scan_s, deep_s = (
            _seconds(partial(index.search, queries, k)) / count for k in (RECALL_AT, depth)
        )
        candidates = np.random.default_rng(0).integers(0, len(rows), (count, depth))
        stored = HalfVectors.stored([self._halves])
        stored.compile()  # as in a search node
        exact_s = _seconds(partial(stored.scores, self._queries, candidates)) / count / depth
        keep_s = max(deep_s - scan_s, 0) / (depth - RECALL_AT)
        centre_s = _seconds(self._nearest_centres(parameters)) / count
        training = sample_rows * parameters.nlist / (len(rows) * lists)
        adding = add_s / len(rows) + centre_s
        costs = Estimate(
            parameters=parameters,
            nprobe=lists,
            rerank=factors[-1],
            recall=recall[lists, factors[-1]],
            recall_ceiling=recall[lists, factors[-1]],
            centres_us=1e6 * centre_s,
            row_us=1e6 * scan_s / len(rows),
            candidate_us=1e6 * (keep_s + exact_s),
            build_s=training * centres_s + codes_s + self._total * adding,
        )
        enough = [pair for pair, reached in recall.items() if reached >= target]
        if not enough:
            return costs
        best = min(enough, key=lambda pair: costs.query_us(self._total, *pair))
        return replace(
            costs,
            nprobe=best[0],
            rerank=best[1],
            recall=recall[best],
            recall_ceiling=recall[lists, best[1]],
        )

    def _trained_centres(self, parameters: ShardParameters) -> tuple[Float32, float]:
        """Return the centres of lists, which kinds share, and the CPU seconds that they took."""
        if parameters.nlist not in self._centres:
            started = time.thread_time()
            centres = trained_centres(self._rows, parameters)
            self._centres[parameters.nlist] = centres, time.thread_time() - started
        return self._centres[parameters.nlist]

    def _recall(self, found: Int64, factor: int) -> float:
        """Return the recall of exact scores of the first candidates (Q, depth), -1 where none.

        Of several blends it is the lowest.
        """
        found = found[:, : RECALL_AT * factor + 1]
        right = np.take_along_axis(self._exact, found, axis=1) >= self._least[:, None]
        count = np.minimum((right & (found >= 0)).sum(axis=1), RECALL_AT)
        return float(count.reshape(self._blends, -1).mean(axis=1).min() / RECALL_AT)

    def _nearest_centres(self, parameters: ShardParameters) -> Callable[[], object]:
        centres = faiss.IndexFlatIP(parameters.dimension)
        centres.add(np.resize(self._rows, (parameters.nlist, parameters.dimension)))
        probed = min(_TIMED_LISTS, parameters.nlist)
        return lambda: centres.search(self._queries, probed)


def _seconds(call: Callable[[], object]) -> float:
    """Return the least CPU seconds of some calls."""
    taken = []
    for _ in range(_TURNS):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return min(taken)
