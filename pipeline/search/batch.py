"""Search for a whole set of examples, block by block: no more than two blocks are in memory.

While the caller writes one block of hits, the next one is searched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.search.hits import Hits
from pipeline.search.query import Query
from storage.index.ranking import Float32
from storage.prefetch import prefetch

BLOCK_HITS = 100_000
"""Hits of one block, about 30 MB with what the index knows of them."""
_MOST_QUERIES = 1024

Search = Callable[[Float32, int], Hits]
"""Searches for vectors (Q, D): so many hits of each."""


def exclude_query_rows(table: pa.Table, owners: Sequence[Query], k: int) -> pa.Table:
    """Return the first k hits of each query that are not rows the query itself is made of.

    Parameters
    ----------
    table
        What :meth:`pipeline.search.searcher.Hits.to_arrow` gave for these queries: k hits of each,
        and as many more as a query is made of rows.
    """
    if not any(owner.rows for owner in owners):
        return table
    query = table["query"].to_numpy()
    own = np.zeros(len(table), dtype=np.bool_)
    for number, owner in enumerate(owners):
        if owner.rows:
            mine = slice(*np.searchsorted(query, (number, number + 1)))
            own[mine] = np.isin(table["row"].to_numpy()[mine], owner.rows)
    kept = table.filter(pa.array(~own))
    sizes = np.bincount(query[~own], minlength=len(owners))
    rank = np.arange(len(kept)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = kept.schema.get_field_index("rank")
    kept = kept.set_column(place, "rank", pa.array(rank.astype(np.int32)))
    return kept.filter(pc.less(kept["rank"], k))


def search_many(
    queries: Iterable[Query], search: Search, k: int, rows: int, *, keep_own: bool = False
) -> Iterator[pa.Table]:
    """Return the k hits of every query, one row a hit, a table for each block of queries.

    Parameters
    ----------
    queries
        What to look for; read block by block.
    search
        How to search, usually a method of a searcher with its filter.
    k
        Hits of each query.
    rows
        Rows of the index, the most that can be asked for.
    keep_own
        Keep the rows that a query is made of among its hits.

    Returns
    -------
    Iterator
        Tables of ``query`` (number of the query, from 0), ``asked`` (its label), ``rank`` from 0,
        then what :meth:`pipeline.search.searcher.Hits.to_arrow` has.
    """
    block = max(min(BLOCK_HITS // k, _MOST_QUERIES), 1)

    def answer(part: tuple[int, Sequence[Query]]) -> pa.Table:
        start, some = part
        more = 0 if keep_own else max(len(query.rows) for query in some)
        hits = search(np.stack([query.vector for query in some]), min(k + more, rows))
        owners = [Query(vector=q.vector, label=q.label) for q in some] if keep_own else some
        table = exclude_query_rows(hits.to_arrow(), owners, k)
        number = table["query"].to_numpy()
        asked = np.array([query.label for query in some], dtype=object)[number]
        table = table.set_column(0, "query", pa.array((number + start).astype(np.int32)))
        return table.add_column(1, "asked", pa.array(asked, pa.string()))

    source = iter(queries)
    blocks = iter(lambda: list(islice(source, block)), [])
    return prefetch(answer, ((number * block, some) for number, some in enumerate(blocks)))
