"""The answer to a search, and how partial answers are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.geometry import Mask
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

    def where(self, keep: Mask, most: int) -> "Hits":
        """Return the first ``most`` hits of each query that a mask (Q, k) keeps."""
        present = self.rows >= 0
        rank = (keep & present).cumsum(axis=1) - 1
        keep = keep & present & (rank < most)
        query = np.nonzero(keep)[0]
        shape = len(keep), min(most, keep.shape[1])
        scores = np.full(shape, -np.inf, dtype=np.float32)
        rows = np.full(shape, -1, dtype=np.int64)
        scores[query, rank[keep]] = self.scores[keep]
        rows[query, rank[keep]] = self.rows[keep]
        columns = {name: values[keep[present]] for name, values in self.columns.items()}
        return replace(self, scores=scores, rows=rows, columns=columns)


def together(parts: Sequence[tuple[Int64, Hits]], queries: int) -> Hits:
    """Return the hits of searches for some of the queries each, given the queries' numbers."""
    width = max(int((hits.rows >= 0).sum(axis=1).max(initial=0)) for _, hits in parts)
    scores = np.full((queries, width), -np.inf, dtype=np.float32)
    rows = np.full((queries, width), -1, dtype=np.int64)
    for numbers, hits in parts:
        scores[numbers, : hits.rows.shape[1]] = hits.scores[:, :width]
        rows[numbers, : hits.rows.shape[1]] = hits.rows[:, :width]
    owners = [numbers[np.nonzero(hits.rows >= 0)[0]] for numbers, hits in parts]
    order = np.argsort(np.concatenate(owners), kind="stable")
    first = parts[0][1]
    joined = join_rows([hits.columns for _, hits in parts], len(first.classes))
    return replace(
        first,
        scores=scores,
        rows=rows,
        coverage=min(hits.coverage for _, hits in parts),
        missing=tuple(sorted({name for _, hits in parts for name in hits.missing})),
        columns={name: values[order] for name, values in joined.items()},
    )


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
