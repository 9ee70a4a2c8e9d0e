"""What a search returns, and how partial answers become one."""

from collections.abc import Sequence
from dataclasses import dataclass
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
        Names of the shards that did not.
    snapshot, version
        The archive's snapshot and the index's version that the answer is from.
    columns
        What the index knows of the rows that are there, query by query.
    truncated
        Queries of a search by score that more rows reach than were allowed.
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


def merge(answers: Sequence[SearchResult], queries: int, k: int, classes: int) -> SearchResult:
    """Merge answers over different shards into one."""
    if len(answers) == 1:
        return answers[0]
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    rows = np.full((queries, k), -1, dtype=np.int64)
    if not answers:
        return SearchResult(scores=scores, rows=rows, columns=empty_rows(classes))
    places = [np.nonzero(answer.rows >= 0) for answer in answers]
    sizes = [len(query) for query, _ in places]
    query = np.concatenate([query for query, _ in places])
    score = np.concatenate([a.scores[at] for a, at in zip(answers, places, strict=True)])
    group = np.repeat(np.arange(len(answers)), sizes)
    position = np.concatenate([np.arange(size) for size in sizes])

    def keys(answer: int, at: Int64) -> list[tuple[str, str]]:
        return row_keys({name: v[at] for name, v in answers[answer].columns.items()})

    kept, rank = best_in_order(query, score, group, position, k, keys)
    joined = join_rows([answer.columns for answer in answers], classes)
    columns = {name: values[kept] for name, values in joined.items()}
    scores[query[kept], rank] = score[kept]
    rows[query[kept], rank] = columns["row"]
    return SearchResult(scores=scores, rows=rows, columns=columns)


class AboveScore:
    """Collects the rows that reach a score, query by query, out of searches of growing depth.

    Parameters
    ----------
    queries
        How many queries there are.
    score, limit
        The least score of a row, and how many rows to keep of each query.
    """

    def __init__(self, queries: int, score: float, limit: int) -> None:
        self._queries, self._score, self._limit = queries, np.float32(score), limit
        self._parts: list[tuple[Int64, Int64, Hits, Int64]] = []
        self._truncated: list[int] = []

    def take(self, asked: Int64, hits: Hits, *, last: bool) -> Int64:
        """Settle the queries that were asked; return those that may have more rows to find."""
        above = (hits.rows >= 0) & (hits.scores >= self._score)
        done = ~above[:, -1] | last
        self._truncated += asked[above.sum(axis=1) > self._limit].tolist()
        query, rank = np.nonzero(hits.rows >= 0)
        kept = (above & done[:, None])[query, rank] & (rank < self._limit)
        self._parts.append((asked[query[kept]], rank[kept], hits, np.flatnonzero(kept)))
        return asked[~done]

    def hits(self) -> Hits:
        """Return everything that was settled."""
        owner = np.concatenate([part[0] for part in self._parts])
        rank = np.concatenate([part[1] for part in self._parts])
        order = np.lexsort((rank, owner))
        first = self._parts[0][2]
        joined = join_rows(
            [{n: v[at] for n, v in hits.columns.items()} for _, _, hits, at in self._parts],
            len(first.classes),
        )
        score = np.concatenate([hits.scores[hits.rows >= 0][at] for _, _, hits, at in self._parts])
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
