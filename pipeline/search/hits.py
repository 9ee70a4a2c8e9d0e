"""The answer to a search, and how partial answers are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.index.ranking import Float32, Int64, best_in_order
from storage.index.search import SearchResult
from storage.index.sidecar import Columns, empty_rows, hit_table, join_rows, row_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """The answer to a batch of Q queries.

    Attributes
    ----------
    scores
        (Q, k) float32 cosine similarities, highest first; -inf where there are fewer rows.
    rows
        (Q, k) int64 archive rows at ``snapshot``; -1 where there are fewer.
    coverage
        Share of the shards in question that answered; below 1 only when that was allowed.
    missing
        Names of the shards that did not answer.
    snapshot, version
        The archive's snapshot and the index's version that were searched.
    columns
        The side-car's columns of the rows that are present, query by query.
    truncated
        Numbers of the queries of a search by score that more rows reach than the limit.
    """

    scores: Float32
    rows: Int64
    coverage: float
    missing: tuple[str, ...]
    snapshot: str
    version: str
    columns: Columns
    classes: tuple[str, ...]
    truncated: tuple[int, ...] = ()

    def to_arrow(self) -> pa.Table:
        """Return one row a hit: query, rank, score, then row, tile_key, scene, west, ... labels."""
        query, rank = np.nonzero(self.rows >= 0)
        table = hit_table(self.columns, self.classes)
        heads: list[tuple[str, npt.NDArray[Any]]] = [
            ("query", query.astype(np.int32)),
            ("rank", rank.astype(np.int32)),
            ("score", self.scores[query, rank]),
        ]
        for place, (name, values) in enumerate(heads):
            table = table.add_column(place, name, pa.array(values))
        return table

    def without(self, own: Sequence[Sequence[int]], k: int) -> "Hits":
        """Return the first k hits of each query that are not among its ``own`` archive rows.

        Parameters
        ----------
        own
            Archive rows to leave out, for each of the Q queries.
        k
            Hits to keep of each query.
        """
        keep = self.rows >= 0
        present = keep.copy()
        for number, own_rows in enumerate(own):
            if own_rows:
                keep[number] &= ~np.isin(self.rows[number], own_rows)
        rank = keep.cumsum(axis=1) - 1
        keep &= rank < k
        query, column = np.nonzero(keep)
        shape = len(keep), min(k, keep.shape[1])
        scores = np.full(shape, -np.inf, dtype=np.float32)
        rows = np.full(shape, -1, dtype=np.int64)
        scores[query, rank[keep]] = self.scores[query, column]
        rows[query, rank[keep]] = self.rows[query, column]
        columns = {name: values[keep[present]] for name, values in self.columns.items()}
        return replace(self, scores=scores, rows=rows, columns=columns)


def merge(answers: Sequence[SearchResult], queries: int, k: int, classes: int) -> SearchResult:
    """Merge answers over different shards into one."""
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    rows = np.full((queries, k), -1, dtype=np.int64)
    if not answers:
        return SearchResult(scores=scores, rows=rows, columns=empty_rows(classes))
    present = [answer.rows >= 0 for answer in answers]
    sizes = [np.count_nonzero(mask) for mask in present]
    query = np.concatenate([np.nonzero(mask)[0] for mask in present])
    score = np.concatenate([a.scores[mask] for a, mask in zip(answers, present, strict=True)])
    group = np.repeat(np.arange(len(answers)), sizes)
    position = np.concatenate([np.arange(size) for size in sizes])

    def keys(answer: int, position: Int64) -> list[tuple[str, str]]:
        return row_keys({name: v[position] for name, v in answers[answer].columns.items()})

    best, rank = best_in_order(query, score, group, position, k, keys)
    joined = join_rows([answer.columns for answer in answers], classes)
    columns = {name: values[best] for name, values in joined.items()}
    scores[query[best], rank] = score[best]
    rows[query[best], rank] = columns["row"]
    return SearchResult(scores=scores, rows=rows, columns=columns)


class AboveScore:
    """Collects the rows that reach a score from searches of growing depth.

    Parameters
    ----------
    queries
        Number of queries.
    score, limit
        The least score of a row, and the most rows of a query.
    """

    def __init__(self, queries: int, score: float, limit: int) -> None:
        self._queries, self._score, self._limit = queries, np.float32(score), limit
        self._parts: list[tuple[Int64, Int64, Hits, Int64]] = []
        self._truncated: list[int] = []

    def take(self, numbers: Int64, hits: Hits, *, last: bool) -> Int64:
        """Add the hits of the queries ``numbers``; return the queries that may have more rows.

        A query is complete when its last hit is below the score.
        """
        above = (hits.rows >= 0) & (hits.scores >= self._score)
        done = ~above[:, -1] | last
        self._truncated += numbers[above.sum(axis=1) > self._limit].tolist()
        query, rank = np.nonzero(hits.rows >= 0)
        keep = (above & done[:, None])[query, rank] & (rank < self._limit)
        self._parts.append((numbers[query[keep]], rank[keep], hits, np.flatnonzero(keep)))
        return numbers[~done]

    def hits(self) -> Hits:
        """Return the hits of all complete queries."""
        owner = np.concatenate([part[0] for part in self._parts])
        rank = np.concatenate([part[1] for part in self._parts])
        order = np.lexsort((rank, owner))
        first = self._parts[0][2]
        joined = join_rows(
            [{n: v[index] for n, v in hits.columns.items()} for _, _, hits, index in self._parts],
            len(first.classes),
        )
        score = np.concatenate(
            [hits.scores[hits.rows >= 0][index] for _, _, hits, index in self._parts]
        )
        width = int(rank.max(initial=-1)) + 1
        scores = np.full((self._queries, width), -np.inf, dtype=np.float32)
        rows = np.full((self._queries, width), -1, dtype=np.int64)
        scores[owner, rank], rows[owner, rank] = score, joined["row"]
        return Hits(
            scores=scores,
            rows=rows,
            coverage=min(hits.coverage for _, _, hits, _ in self._parts),
            missing=tuple(sorted({name for part in self._parts for name in part[2].missing})),
            snapshot=first.snapshot,
            version=first.version,
            columns={name: values[order] for name, values in joined.items()},
            classes=first.classes,
            truncated=tuple(sorted(self._truncated)),
        )
