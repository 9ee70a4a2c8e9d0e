"""Answer many queries block by block: at most two blocks of hits are in memory.

While the caller writes one block of hits, the next block is searched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa

from pipeline.search.hits import Hits
from pipeline.search.query import Query
from storage.prefetch import prefetch

BLOCK_HITS = 100_000
"""Hits of one block, about 30 MB with their columns."""
_MOST_QUERIES = 1024


def search_many(
    queries: Iterable[Query], answer: Callable[[Sequence[Query]], Hits], k: int
) -> Iterator[pa.Table]:
    """Return the hits of every query, one row a hit, a table for each block of queries.

    Parameters
    ----------
    queries
        Read block by block.
    answer
        Answers a block, usually :meth:`pipeline.search.searcher.Searcher.answer` with its options.
    k
        Most hits of a query, which decides the size of a block.

    Returns
    -------
    Iterator
        Tables of ``query`` (number of the query, from 0), ``asked`` (its label), ``rank`` from 1,
        then the other columns of :meth:`pipeline.search.hits.Hits.to_arrow`.
    """
    size = max(min(BLOCK_HITS // k, _MOST_QUERIES), 1)

    def table_of(numbered: tuple[int, list[Query]]) -> pa.Table:
        first, block = numbered
        table = answer(block).to_arrow()
        number = table["query"].to_numpy()
        labels = np.array([query.label for query in block], dtype=object)[number]
        table = table.set_column(0, "query", pa.array((number + first).astype(np.int32)))
        return table.add_column(1, "asked", pa.array(labels, pa.string()))

    source = iter(queries)
    blocks = iter(lambda: list(islice(source, size)), [])
    return prefetch(table_of, ((number * size, block) for number, block in enumerate(blocks)))
