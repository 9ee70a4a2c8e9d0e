"""From a query to hits: the client, one actor per node, replicas.

Scanning shards lives in :mod:`storage.index`, building them in :mod:`pipeline.indexing`.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from pipeline.search.hits import Hits
    from pipeline.search.searcher import Searcher
    from storage.index.filter import Filter

__all__ = ["Filter", "Hits", "Searcher"]

__getattr__ = public_names(
    __name__,
    {
        "Hits": "pipeline.search.hits",
        "Searcher": "pipeline.search.searcher",
        "Filter": "storage.index.filter",
    },
)
