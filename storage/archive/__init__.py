"""The archive of embeddings: an Icechunk repository of Zarr v3 groups, with its ledger.

Indexes over an archive live in :mod:`storage.index`; neither imports the other.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from storage.archive.reader import Archive

__all__ = ["Archive"]

__getattr__ = public_names(
    __name__,
    {
        "Archive": "storage.archive.reader",
    },
)
