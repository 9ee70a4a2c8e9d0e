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

RECALL_AT = 10
"""Hits at which recall is measured."""
_LIST_ROWS = 64
_QUERIES = 128
_PROBED_LISTS = 16
RERANKS = (2, 4, 8, 16, 32, 64)
"""Candidates per hit to choose from."""
_TURNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a kind finds and costs.

    Attributes
    ----------
    parameters
        Kind and sizes.
    rerank
        Candidates per hit whose exact scores are needed; 1 when none are kept.
    recall
        Recall@10 with every list probed.
    centres_us, row_us, candidate_us
        CPU time of a query of a batch, in microseconds: to choose its lists, to compare it with a
        row of them, and to compute the exact score of a candidate.
    build_s
        CPU time of training, and of adding every row, in seconds.
    """

    parameters: ShardParameters
    rerank: int
    recall: float
    centres_us: float
    row_us: float
    candidate_us: float
    build_s: float

    def query_us(self, rows: int, nprobe: int = _PROBED_LISTS, rerank: int | None = None) -> float:
        """Return the CPU time of a query for ten hits among ``rows`` rows, in microseconds."""
        probed = rows * min(nprobe / self.parameters.nlist, 1)
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
    """

    def __init__(self, rows: Float32, total: int) -> None:
        self._rows, self._total = rows, total
        self._queries = rows[:: max(len(rows) // _QUERIES, 1)]
        self._halves = rows.astype(np.float16)
        exact = self._queries @ rows.T
        # The queries are rows of the pilot, so each finds itself, with and without approximation.
        self._least = -np.partition(-exact, RECALL_AT - 1, axis=1)[:, RECALL_AT - 1]
        self._exact = exact

    def estimate(
        self, parameters: ShardParameters, target: float, sample_rows: int, *, rerank: bool = True
    ) -> Estimate:
        """Store the rows in a kind and measure it.

        Parameters
        ----------
        parameters
            Kind and sizes of the index; the pilot has fewer lists.
        target
            Recall@10 that the rescored candidates have to reach.
        sample_rows
            Rows that the index is trained on.
        rerank
            Whether exact vectors are kept, which correct the scores of lossy kinds.
        """
        set_threads(1)
        rows, count = self._rows, len(self._queries)
        lists = max(min(parameters.nlist, len(rows) // _LIST_ROWS), 1)
        small = replace(parameters, nlist=lists)
        started = time.thread_time()
        trained_centres(rows, small)
        centres_s, started = time.thread_time() - started, time.thread_time()
        trained = train(rows, small)
        codes_s = max(time.thread_time() - started - centres_s, 0)
        builder, started = ShardIndexBuilder(trained), time.thread_time()
        builder.add(np.arange(len(rows)), self._halves)
        add_s = time.thread_time() - started
        index = scannable(builder.loaded.lists)
        index.nprobe = lists
        queries = builder.loaded.query(self._queries)
        reranks = parameters.lossy and rerank
        recall, factor = self._recall(index.search(queries, self._deepest)[1], target, reranks)
        depth = RECALL_AT * factor
        scan_s = _seconds(lambda: index.search(queries, depth)) / count / len(rows)
        candidates = np.random.default_rng(0).integers(0, len(rows), (count, depth))
        stored = HalfVectors.stored([self._halves])
        stored.compile()  # as in a search node
        exact = partial(stored.scores, self._queries, candidates)
        centre_s = _seconds(self._nearest_centres(parameters)) / count
        training = sample_rows * parameters.nlist / (len(rows) * lists)
        adding = add_s / len(rows) + centre_s
        return Estimate(
            parameters=parameters,
            rerank=factor,
            recall=recall,
            centres_us=1e6 * centre_s,
            row_us=1e6 * scan_s,
            candidate_us=1e6 * _seconds(exact) / count / depth,
            build_s=training * centres_s + codes_s + self._total * adding,
        )

    @property
    def _deepest(self) -> int:
        return min(RECALL_AT * RERANKS[-1], len(self._rows))

    def _recall(self, found: Int64, target: float, reranks: bool) -> tuple[float, int]:
        """Return the recall, and the least candidates per hit that reach the target."""
        right = np.take_along_axis(self._exact, found, axis=1) >= self._least[:, None]
        recall = 0.0
        for factor in RERANKS if reranks else (1,):
            hits = np.minimum(right[:, : RECALL_AT * factor].sum(axis=1), RECALL_AT)
            recall = float(hits.mean() / RECALL_AT)
            if recall >= target:
                break
        return recall, factor

    def _nearest_centres(self, parameters: ShardParameters) -> Callable[[], object]:
        centres = faiss.IndexFlatIP(parameters.dimension)
        centres.add(np.resize(self._rows, (parameters.nlist, parameters.dimension)))
        probed = min(_PROBED_LISTS, parameters.nlist)
        return lambda: centres.search(self._queries, probed)


def _seconds(call: Callable[[], object]) -> float:
    """Return the least CPU seconds of some calls."""
    taken = []
    for _ in range(_TURNS):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return min(taken)
