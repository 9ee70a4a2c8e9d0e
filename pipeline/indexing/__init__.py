"""From an archive to an index version: plan, shards, recall, updates, compaction.

Indexes at rest live in :mod:`storage.index`, searches in :mod:`pipeline.search`.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from pipeline.indexing.driver import build_index, update_index
    from pipeline.indexing.spec import IndexSpec

__all__ = ["IndexSpec", "build_index", "update_index"]

__getattr__ = public_names(
    __name__,
    {
        "build_index": "pipeline.indexing.driver",
        "update_index": "pipeline.indexing.driver",
        "IndexSpec": "pipeline.indexing.spec",
    },
)
