"""Decode the stored vectors of many rows of an inverted file at once.

FAISS's `reconstruct_batch` prepares a decoder for every row, which takes longer than the exact
scores. Scalar codes are therefore gathered into one array and decoded in one call.
"""

import ctypes
from typing import Any

import faiss
import numpy as np

from storage.errors import CorruptIndexError
from storage.index.ranking import Float32, Int64


class CodeDecoder:
    """The vectors of a filled inverted file by position; safe to read from several threads.

    Parameters
    ----------
    lists
        The inverted file; nothing may be added to it from now on.

    Raises
    ------
    CorruptIndexError
        A row between the first and the last is missing.
    """

    def __init__(self, lists: Any) -> None:
        self._lists = lists  # owns the memory that is read
        self._offsets: Int64 | None = None
        if not isinstance(lists, faiss.IndexIVFScalarQuantizer) or not lists.ntotal:
            lists.make_direct_map()
            return
        stored: Any = lists.invlists
        width = int(lists.code_size)
        addresses = np.zeros(lists.ntotal, dtype=np.int64)
        for number in range(lists.nlist):
            if size := stored.list_size(number):
                ids = faiss.rev_swig_ptr(stored.get_ids(number), size)
                addresses[ids] = int(stored.get_codes(number)) + width * np.arange(size)
        first = int(addresses.min())
        if not first:
            raise CorruptIndexError("a shard lacks rows; run `skysift index verify`")
        span = int(addresses.max()) - first + width
        memory: Any = (ctypes.c_char * span).from_address(first)
        self._decoder = lists.sq
        # A view over the memory from the first to the last code, with one overlapping element for
        # every byte at which a code may start: codes are gathered by one index operation.
        self._codes = np.ndarray((span - width + 1,), f"V{width}", memory, strides=(1,))
        self._offsets = np.subtract(addresses, first, out=addresses)

    def __getitem__(self, positions: Int64) -> Float32:
        """Return the vectors (m, D) as FAISS decodes them."""
        if self._offsets is None:
            vectors: Float32 = self._lists.reconstruct_batch(positions)
            return vectors
        codes = self._codes[self._offsets[positions]].view(np.uint8)
        decoded: Float32 = self._decoder.decode(codes.reshape(-1, self._codes.itemsize))
        return decoded
