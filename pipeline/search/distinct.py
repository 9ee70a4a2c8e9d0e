"""One hit for each place, with every date of the place inside.

A place is a tile key, so acquisitions on different days share it; two grids make two places of the
same ground. The first hit of a place stands for it, so places are in the order of hits: by (score,
tile key, scene id). Too few places among the hits are answered by more hits, until there are enough
places or no more rows: the answer is exact where the search is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.search.hits import Hits, together
from storage.errors import ConfigError
from storage.geometry import Mask
from storage.index.filter import Filter
from storage.index.ranking import Float32, Float64, Int64, canonical_queries
from storage.index.sidecar import row_keys

if TYPE_CHECKING:
    from pipeline.search.query import Query
    from pipeline.search.searcher import Searcher

DISTINCT = ("place",)
"""What hits may be distinct by."""
_DEEPER, _FIRST = 4, 4
_PLACES_AT_ONCE = 1000
_DATES = ("score", "row", "scene", "datetime", "cloud_fraction")


@dataclass(frozen=True, kw_only=True, repr=False)
class PlaceHits(Hits):
    """Hits of different places; ``dates`` has a row for each acquisition of each place.

    Its columns are the query and the rank of the place (both from 0), ``score``, ``row``,
    ``scene``, ``datetime`` and ``cloud_fraction``, ordered by query, rank, score (highest first)
    and scene.
    """

    dates: pa.Table

    def to_arrow(self) -> pa.Table:
        """Return the table of :meth:`Hits.to_arrow` with the column ``dates``, a list of structs.

        The hit itself is the first of the dates, or among them where few lists are probed.
        """
        table = super().to_arrow()
        places = [self.dates[name].to_numpy() for name in ("query", "rank")]
        count = np.zeros(self.rows.shape, dtype=np.int64)
        np.add.at(count, tuple(places), 1)
        offsets = np.r_[0, np.cumsum(count[self.rows >= 0])].astype(np.int32)
        columns = [self.dates[name].combine_chunks() for name in _DATES]
        inside = pa.StructArray.from_arrays(columns, names=list(_DATES))
        return table.append_column("dates", pa.ListArray.from_arrays(pa.array(offsets), inside))


def answer_places(
    searcher: "Searcher",
    queries: "Sequence[Query]",
    k: int,
    where: Filter | None,
    *,
    keep_own: bool = False,
    **settings: Any,
) -> PlaceHits:
    """Answer queries with one hit for each of k places.

    Parameters
    ----------
    searcher, queries, k, where, keep_own, settings
        As in :meth:`pipeline.search.searcher.Searcher.answer`.
    """
    if k < 1:
        raise ConfigError(f"search: k is {k}; give at least 1")
    answer = searcher.answer
    options: dict[str, Any] = {"where": where, "keep_own": keep_own, **settings}
    by_score, rows = settings.get("min_score") is not None, searcher.manifest.rows
    most = min(k, rows)
    pending, depth = np.arange(len(queries)), min(_FIRST * most, rows)
    parts: list[tuple[Int64, Hits]] = []
    truncated: list[int] = []
    while len(pending):
        options["limit" if by_score else "k"] = depth
        hits = answer([queries[number] for number in pending.tolist()], **options)
        present = (hits.rows >= 0).sum(axis=1)
        first = _first_of_places(hits)
        enough = first.sum(axis=1) >= most
        done = enough | (present < depth) | (depth == rows)
        more = np.isin(np.arange(len(pending)), hits.truncated)
        truncated += pending[done & (more | (first.sum(axis=1) > most)) & by_score].tolist()
        parts.append((pending[done], _of_queries(hits.where(first, most), np.flatnonzero(done))))
        pending, depth = pending[~done], min(depth * _DEEPER, rows)
    hits = replace(together(parts, len(queries)), truncated=tuple(sorted(truncated)))
    own = [() if keep_own else query.rows for query in queries]
    vectors = np.stack([query.vector for query in queries])
    scales = np.array([query.scale for query in queries])
    dates = _dates(searcher, vectors, scales, hits, where, own)
    fields = {name: getattr(hits, name) for name in Hits.__dataclass_fields__}
    return PlaceHits(**fields, dates=dates)


def _first_of_places(hits: Hits) -> Mask:
    """Return the mask (Q, k) of the hits that are the first of their query at their place."""
    query, rank = np.nonzero(hits.rows >= 0)
    columns = hits.columns
    grid = np.unique(columns["grid"].astype(str), return_inverse=True)[1]
    keys = np.column_stack([query, grid, columns["tile"]])
    first = np.unique(keys, axis=0, return_index=True)[1] if len(keys) else np.empty(0, np.int64)
    mask = np.zeros(hits.rows.shape, dtype=np.bool_)
    mask[query[first], rank[first]] = True
    return mask


def _of_queries(hits: Hits, chosen: Int64) -> Hits:
    """Return the hits of some queries."""
    arrays = {name: getattr(hits, name)[chosen] for name in ("scores", "rows", "places")}
    return replace(hits, **arrays)


def _dates(
    searcher: "Searcher",
    vectors: Float32,
    scales: Float64,
    hits: Hits,
    where: Filter | None,
    own: Sequence[Sequence[int]],
) -> pa.Table:
    """Return every acquisition at the places of hits that meets the filter; see PlaceHits."""
    exact = canonical_queries(vectors, searcher.manifest.parameters.dimension) * scales[:, None]
    query, rank = np.nonzero(hits.rows >= 0)
    keys = pa.table(
        {"query": query, "rank": rank, "tile_key": [key for key, _ in row_keys(hits.columns)]}
    )
    step = max(_PLACES_AT_ONCE // max(hits.rows.shape[1], 1), 1)
    parts = [
        _dates_of(searcher, exact, keys.filter(_between(keys["query"], start, step)), where, own)
        for start in range(0, max(len(vectors), 1), step)
    ]
    return pa.concat_tables(parts).combine_chunks()


def _between(numbers: Any, start: int, count: int) -> Any:
    return pc.and_(pc.greater_equal(numbers, start), pc.less(numbers, start + count))


def _dates_of(
    searcher: "Searcher",
    queries: Any,
    keys: pa.Table,
    where: Filter | None,
    own: Sequence[Sequence[int]],
) -> pa.Table:
    """Return the acquisitions of the places (query, rank, tile_key) of a few queries."""
    # Without a hit no tile is named, and a filter without tiles lets every row pass.
    tiles = tuple(sorted(set(keys["tile_key"].to_pylist())))
    within = replace(where or Filter(), tiles=tiles)
    table, vectors = _acquisitions(searcher, within) if tiles else searcher.find_vectors(within, 1)
    members: dict[str, list[int]] = {}
    for number, key in enumerate(table["tile_key"].to_pylist()):
        members.setdefault(key, []).append(number)
    rows = table["row"].to_pylist()
    found = [
        (place["query"], place["rank"], number)
        for place in keys.to_pylist()
        for number in members[place["tile_key"]]
        if rows[number] not in own[place["query"]]
    ]
    query, rank, position = np.array(found, dtype=np.int64).reshape(-1, 3).T
    scores = np.einsum("nd,nd->n", queries[query], vectors[position].astype(np.float64))
    dates = pa.table(
        {
            "query": query.astype(np.int32),
            "rank": rank.astype(np.int32),
            "score": scores.astype(np.float32),
            **{name: table[name].take(pa.array(position)) for name in _DATES[1:]},
        }
    )
    keys_of_order = [("query", "ascending"), ("rank", "ascending"), ("score", "descending")]
    return dates.take(pc.sort_indices(dates, sort_keys=[*keys_of_order, ("scene", "ascending")]))


def _acquisitions(searcher: "Searcher", where: Filter) -> tuple[pa.Table, Float32]:
    """Return every row that matches a filter of tiles, and the vectors."""
    limit = 16 * len(where.tiles)
    while True:
        table, vectors = searcher.find_vectors(where, limit)
        if len(table) < limit or limit >= searcher.manifest.rows:
            return table, vectors
        limit *= _DEEPER
