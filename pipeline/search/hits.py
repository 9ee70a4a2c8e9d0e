"""The answer to a search, and how partial answers are merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.formats import located
from storage.geometry import Mask
from storage.index.pairs import ORDINARY, Float64, PairScores
from storage.index.ranking import Float32, Int64, best_in_order
from storage.index.search import SearchResult
from storage.index.sidecar import Columns, hit_table, row_keys
from storage.outlines import tile_outlines

ReadColumns = Callable[[Int64], Columns]
"""Reads the columns of the rows at places (m,), in their order."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The answer to a batch of Q queries.

    The metadata of the rows are read when they are first asked for.

    Attributes
    ----------
    scores
        (Q, k) float32 cosine similarities, highest first; -inf where there are fewer rows.
    rows
        (Q, k) int64 archive rows at ``snapshot``; -1 where there are fewer.
    places
        (Q, k) int64 places of the rows in the index
        (:class:`storage.index.search.SearchResult`); -1 where there are fewer.
    coverage
        Share of the shards in question that answered; below 1 only when that was allowed.
    missing
        Names of the shards that did not answer.
    snapshot, version
        The archive's snapshot and the index's version that were searched.
    classes
        Names of the columns of ``labels``.
    truncated
        Numbers of the queries of a search by score that more rows reach than the limit.
    pairs
        The scores between random rows of the archive; None in an index of before.
    grids
        The tile grids of the archive, which give tiles their footprints.
    """

    scores: Float32
    rows: Int64
    places: Int64
    coverage: float
    missing: tuple[str, ...]
    snapshot: str
    version: str
    classes: tuple[str, ...]
    truncated: tuple[int, ...] = ()
    pairs: PairScores | None = None
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    read_columns: ReadColumns = field(repr=False, compare=False)

    @cached_property
    def columns(self) -> Columns:
        """The side-car's columns of the rows that are present, query by query.

        Raises
        ------
        SearchUnavailableError
            The columns were not read yet, and a shard did not answer.
        """
        return self.read_columns(self.places[self.rows >= 0])

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields with the columns that were read: hits travel without the searcher."""
        known = _KnownColumns(places=self.places[self.rows >= 0], columns=self.columns)
        return {**self.__dict__, "read_columns": known}

    @property
    def closer_than(self) -> Float64 | None:
        """The share (Q, k) of random pairs of rows with a lower score; None in an old index."""
        return None if self.pairs is None else self.pairs.share_below(self.scores)

    @property
    def ordinary(self) -> tuple[int, ...]:
        """Numbers of the queries that nothing is like: the best hit is as close as random rows."""
        if self.pairs is None:
            return ()
        shares = self.pairs.share_below(self.scores[:, :1])
        shown = self.rows[:, :1] >= 0
        return tuple(np.flatnonzero((shares < ORDINARY) & shown).tolist())

    def to_arrow(self) -> pa.Table:
        """Return one row a hit: ``query`` (from 0) and :data:`storage.formats.HIT_COLUMNS`.

        ``rank`` counts from 1. ``closer_than`` is the share of random pairs of rows with a lower
        score; null in the hits of an index of before. ``geometry`` is the footprint of the tile
        (WKB, WGS84 degrees), ``bbox`` the box around it.
        """
        query, rank = np.nonzero(self.rows >= 0)
        columns = self.columns
        shapes = tile_outlines(self.grids, columns["grid"], columns["tile"], columns["bbox"])
        table = located(hit_table(columns, self.classes), shapes)
        heads: list[tuple[str, npt.NDArray[Any]]] = [
            ("query", query.astype(np.int32)),
            ("rank", (rank + 1).astype(np.int32)),
            ("score", self.scores[query, rank]),
        ]
        shares = self.closer_than
        closer = pa.nulls(len(query), pa.float64()) if shares is None else shares[query, rank]
        for place, (name, values) in enumerate(heads):
            table = table.add_column(place, name, pa.array(values))
        return table.add_column(len(heads), "closer_than", pa.array(closer, pa.float64()))

    def where(self, keep: Mask, most: int) -> "Hits":
        """Return the first ``most`` hits of each query that a mask (Q, k) keeps."""
        keep = keep & (self.rows >= 0)
        rank = keep.cumsum(axis=1) - 1
        keep &= rank < most
        query, rank = np.nonzero(keep)[0], rank[keep]
        scores, rows, places = _blank(len(keep), min(most, keep.shape[1]))
        scores[query, rank] = self.scores[keep]
        rows[query, rank] = self.rows[keep]
        places[query, rank] = self.places[keep]
        return replace(self, scores=scores, rows=rows, places=places)


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownColumns:
    """The columns of rows at places (n,), which are read again from memory."""

    places: Int64
    columns: Columns

    def __call__(self, places: Int64) -> Columns:
        order = np.argsort(self.places)
        found = order[np.searchsorted(self.places[order], places)]
        return {name: values[found] for name, values in self.columns.items()}


def together(parts: Sequence[tuple[Int64, Hits]], queries: int) -> Hits:
    """Return the hits of searches for some of the queries each, given the queries' numbers."""
    width = max(int((hits.rows >= 0).sum(axis=1).max(initial=0)) for _, hits in parts)
    scores, rows, places = _blank(queries, width)
    for numbers, hits in parts:
        columns = slice(hits.rows.shape[1])
        scores[numbers, columns] = hits.scores[:, :width]
        rows[numbers, columns] = hits.rows[:, :width]
        places[numbers, columns] = hits.places[:, :width]
    return replace(
        parts[0][1],
        scores=scores,
        rows=rows,
        places=places,
        coverage=min(hits.coverage for _, hits in parts),
        missing=tuple(sorted({name for _, hits in parts for name in hits.missing})),
    )


def merge(
    answers: Sequence[SearchResult], queries: int, k: int, read_columns: ReadColumns
) -> SearchResult:
    """Merge answers over different shards into one."""
    if not answers:
        scores, rows, places = _blank(queries, k)
        return SearchResult(scores=scores, rows=rows, places=places)
    scores, rows, places = (
        np.concatenate([getattr(answer, name) for answer in answers], axis=1)
        for name in ("scores", "rows", "places")
    )
    # Equal scores of an answer are in order, so the numbers of its hits are.
    numbers = np.arange(scores.size).reshape(scores.shape)

    def keys(numbers: Int64) -> list[tuple[str, str]]:
        return row_keys(read_columns(places.ravel()[numbers]))

    scores, found = best_in_order(
        scores, np.where(rows < 0, -1, numbers), k, np.arange(0, scores.size, k), keys
    )
    rows, places = (np.where(found < 0, -1, all_.ravel()[found]) for all_ in (rows, places))
    return SearchResult(scores=scores, rows=rows, places=places)


def _blank(queries: int, k: int) -> tuple[Float32, Int64, Int64]:
    """Return scores, rows and places (Q, k) of no hits."""
    none = np.full((queries, k), -1, dtype=np.int64)
    return np.full((queries, k), -np.inf, dtype=np.float32), none, none.copy()
