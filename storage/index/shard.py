"""Loaded FAISS shards: probe their lists or scan their rows, under a filter. A home of faiss.

Ids in FAISS are positions: the place of a row in the (tile key, scene id) order of its shard. FAISS
proposes candidates; scores that leave this module come from :mod:`storage.index.ranking` and are
exact. The caller verifies the files (:mod:`storage.index.files`): no unverified byte reaches FAISS.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storage.errors import CorruptIndexError
from storage.geometry import Mask
from storage.index.filter import Filter
from storage.index.gpu import MOST_RESULTS, gpu_copy
from storage.index.manifest import shard_number
from storage.index.quantizer import (
    Bytes,
    DecodedVectors,
    codes_of,
    joined,
    loaded,
    scannable,
)
from storage.index.ranking import QUANTUM, Float32, Floats, Int64, best_of_shard
from storage.index.sidecar import Sidecar
from storage.index.vectors import HalfVectors

ID_BYTES = 8
MASK_BYTES = 2
"""Size of a row in the masks of live and of selected rows."""
_SCAN_VALUES = 2**21
_SCAN_QUERIES = 256
_CACHED_FILTERS = 16


def memory_of(rows: int, index_bytes: int, columns_bytes: int, *, exact_vectors: bool) -> int:
    """Return the memory of a loaded shard; exact vectors stay on disk."""
    ids = 0 if exact_vectors else ID_BYTES
    return index_bytes + columns_bytes + rows * (MASK_BYTES + ids)


class Shard:
    """The verified files of one shard, and the positions of its deleted rows.

    Parameters
    ----------
    name
        From :func:`storage.index.manifest.shard_name`.
    data
        Verified bytes of the FAISS file, or the verified local file itself, to be mapped.
    sidecar
        The columns of its rows.
    vectors
        The archive's vectors (n, D) float16 by position, for exact scores of lossy kinds; usually
        a memory map. None: scores are those of the stored approximations.
    deleted
        Positions of rows that are no longer live.
    list_rows
        The number of rows in each list (nlist,); counted when None.

    Raises
    ------
    CorruptIndexError
        The parts do not belong together.
    """

    def __init__(
        self,
        name: str,
        data: Bytes | Path,
        sidecar: Sidecar,
        vectors: npt.NDArray[np.float16] | None = None,
        deleted: Int64 | None = None,
        list_rows: Int64 | None = None,
    ) -> None:
        self.name, self.data, self.sidecar, self.vectors = name, data, sidecar, vectors
        self.list_rows = loaded(data).list_rows if list_rows is None else list_rows
        counts = {int(self.list_rows.sum()), len(sidecar)}
        if vectors is not None:
            counts.add(len(vectors))
        if len(counts) > 1:
            raise CorruptIndexError(
                f"{name}: its files hold {sorted(counts)} rows; run `skysift index verify`"
            )
        self.deleted = np.empty(0, np.int64) if deleted is None else deleted
        self.rows = len(sidecar)
        self.number = shard_number(name)


class RowMask:
    """The rows that may be returned, as a mask (n,) and as FAISS's ID selector.

    ``shards`` are the numbers of the shards in question, ``lists`` the mask (nlist,) of the lists
    that hold a selected row once :meth:`ShardGroup.lists_with` has computed it. The selector is
    None where every row is selected, which FAISS scans faster.
    """

    def __init__(self, mask: Mask, shards: Sequence[int] = ()) -> None:
        self.mask = mask
        self.shards = shards
        self.lists: Mask | None = None
        self.count = int(np.count_nonzero(mask))
        self._bits = np.packbits(mask, bitorder="little")
        self.selector: Any = (
            None
            if self.count == len(mask)
            else faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))
        )

    @cached_property
    def positions(self) -> Int64:
        """The positions (count,) of the rows, ascending."""
        return np.flatnonzero(self.mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """The lists (Q, P) that queries probe, nearest first, and the similarity to each centre."""

    lists: Int64
    similarity: Float32

    @classmethod
    def joined(cls, parts: Sequence["Probes"]) -> "Probes":
        """Return the probes of several blocks of queries as one."""
        lists = np.concatenate([part.lists for part in parts])
        return cls(lists=lists, similarity=np.concatenate([part.similarity for part in parts]))

    def __getitem__(self, query: slice | Int64) -> "Probes":
        return Probes(lists=self.lists[query], similarity=self.similarity[query])


class ShardGroup:
    """Shards whose rows are in one FAISS index; safe to search from several threads.

    One index is searched faster than several that hold the same rows. Positions count through the
    shards in order. A mapped file has a group of its own.

    Attributes
    ----------
    rows
        Number of rows, deleted rows included.
    reranks
        Whether FAISS's order is approximate and exact vectors correct it.
    margin
        Bound on the difference of FAISS's float32 score to the exact score, both ways: the error
        of a sum of D products and of the norm, and again for a rotation.

    Raises
    ------
    CorruptIndexError
        A shard does not hold the rows that it should.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._numbers = {shard.name: number for number, shard in enumerate(shards)}
        self.sidecar = Sidecar.joined([shard.sidecar for shard in shards])
        self.rows = len(self.sidecar)
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self._live = np.ones(self.rows, dtype=np.bool_)
        for shard, start in zip(shards, self._starts, strict=False):
            self._live[start + shard.deleted] = False
        self._list_rows: Int64 = np.stack([shard.list_rows for shard in shards])
        self.list_rows: Int64 = self._list_rows.sum(axis=0)
        self._loaded = joined([shard.data for shard in shards], self._list_rows)
        self.index = scannable(self._loaded.lists)
        self._centres = self.index.quantizer
        if int(self.index.ntotal) != self.rows:
            raise CorruptIndexError(
                f"{shards[0].name}: {self.index.ntotal} rows in its index, expected {self.rows}; "
                "run `skysift index verify`"
            )
        self.nlist = int(self.index.nlist)
        self.dimension = int(self.index.d)
        self.lossy = self._loaded.lossy
        self.reranks = self.lossy and all(shard.vectors is not None for shard in shards)
        steps = 1 if self._loaded.rotation is None else 2
        self.margin = 4 * steps * (self.dimension + 8) * QUANTUM
        self._gpu = gpu_copy(self.index) if faiss.get_num_gpus() else None
        self._vectors = self._row_vectors()
        self._selections: OrderedDict[tuple[Filter, frozenset[str]], RowMask] = OrderedDict()
        self._lock = threading.Lock()

    def split(self, positions: Int64) -> list[tuple[int, Int64]]:
        """Split ascending positions by shard: number of the shard and its positions."""
        parts = np.split(positions, np.searchsorted(positions, self._starts[1:-1]))
        return [(number, part) for number, part in enumerate(parts) if len(part)]

    def _row_vectors(self) -> HalfVectors | DecodedVectors:
        """Return the vectors that decide scores: the archive's, or their approximations."""
        stored = [shard.vectors for shard in self.shards if shard.vectors is not None]
        if len(stored) == len(self.shards):
            return HalfVectors.stored(stored)
        if self.lossy:
            return DecodedVectors(self._loaded, self.index)
        return HalfVectors(codes_of(self.index))

    def decode(self, positions: Int64) -> Floats:
        """Return the canonical vectors (m, D) of rows: the archive's, or their approximations."""
        return self._vectors[positions]

    def scores(self, queries: Floats, positions: Int64) -> Float32:
        """Return the exact scores (Q, C) of canonical queries (Q, D) and rows at positions (Q, C).

        -inf where a position is -1.
        """
        return self._vectors.scores(queries, positions)

    def compile(self) -> None:
        """Load the compiled scores now, where they are used at all."""
        if isinstance(self._vectors, HalfVectors):
            self._vectors.compile()

    def select(self, where: Filter, names: Collection[str]) -> RowMask:
        """Return the live rows of the named shards that match a filter; recent masks are cached.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        """
        key = (where, frozenset(names))
        with self._lock:
            if key in self._selections:
                self._selections.move_to_end(key)
                return self._selections[key]
        numbers = sorted(self._numbers[name] for name in names if name in self._numbers)
        mask = self._live
        if where or len(numbers) < len(self.shards):
            mask = np.zeros(self.rows, dtype=np.bool_)
            for number in numbers:  # columns of other shards are not read
                rows = slice(self._starts[number], self._starts[number + 1])
                mask[rows] = self._live[rows] & self.shards[number].sidecar.matching(where)
        selection = RowMask(mask, numbers)
        with self._lock:
            self._selections[key] = selection
            if len(self._selections) > _CACHED_FILTERS:
                self._selections.popitem(last=False)
        return selection

    def probes(self, queries: Float32, count: int, among: Mask | None = None) -> Probes:
        """Return the ``count`` nearest lists of queries (Q, D), of those ``among`` (nlist,)."""
        parameters: Any = None
        if among is not None:
            allowed = RowMask(among)  # owns the bits that the selector reads
            parameters = faiss.SearchParameters()
            parameters.sel = allowed.selector
        asked = self._loaded.probe(queries)
        similarity, lists = self._centres.search(asked, count, params=parameters)
        return Probes(lists=lists, similarity=similarity)

    def rows_in(self, probes: Probes, selection: RowMask) -> dict[str, int]:
        """Return the number of rows of each shard in question in the probed lists."""
        rows = self._list_rows[:, probes.lists.ravel()].sum(axis=1).tolist()
        return {self.shards[number].name: rows[number] for number in selection.shards}

    def lists_with(self, selection: RowMask) -> Mask:
        """Return the mask (nlist,) of lists that hold a selected row; cached in the selection."""
        if selection.lists is None:
            lists = np.zeros(self.nlist, dtype=np.bool_)
            for number in np.flatnonzero(self.list_rows).tolist():
                pointer = self.index.invlists.get_ids(number)
                ids = faiss.rev_swig_ptr(pointer, int(self.list_rows[number]))
                lists[number] = selection.mask[ids].any()
                self.index.invlists.release_ids(number, pointer)
            selection.lists = lists
        return selection.lists

    def nearest(
        self, queries: Float32, k: int, probes: Probes, selection: RowMask
    ) -> tuple[Float32, Int64]:
        """Return FAISS's k best: scores (Q, k), highest first, and positions, -1 where none."""
        count, queries = len(queries), self._loaded.query(queries)
        if self._gpu and selection.selector is None and k <= MOST_RESULTS:
            scores, positions = self._gpu.search(queries, k, probes.lists, probes.similarity)
            scores[positions < 0] = -np.inf
            return scores, positions
        scores = np.empty((count, k), dtype=np.float32)
        positions = np.empty((count, k), dtype=np.int64)
        pointer = faiss.swig_ptr
        self.index.search_preassigned_c(
            count, pointer(queries), k, pointer(probes.lists), pointer(probes.similarity),
            pointer(scores), pointer(positions), False, _search_parameters(probes, selection),
        )  # fmt: skip
        scores[positions < 0] = -np.inf
        return scores, positions

    def scan(self, queries: Floats, k: int, rows: Int64) -> tuple[Float32, Int64]:
        """Compare canonical queries (Q, D) with the rows at positions (n,), ascending, exactly.

        Returns
        -------
        tuple
            The scores and the positions of the k best rows of each shard, (Q, shards * k) at most,
            in no order.
        """
        single = queries.astype(np.float32, copy=False)
        double = queries.astype(np.float64, copy=False)
        step = max(_SCAN_VALUES // self.dimension, 1)
        best: list[tuple[Float32, Int64]] = []
        for _, shard in self.split(rows):
            shape = len(queries), min(k, len(shard))
            scores = np.full(shape, -np.inf, dtype=np.float32)
            positions = np.full(shape, -1, dtype=np.int64)
            for start in range(0, len(shard), step):
                chunk = shard[start : start + step]
                vectors = self.decode(chunk)
                for first in range(0, len(queries), _SCAN_QUERIES):
                    block = slice(first, first + _SCAN_QUERIES)
                    least = scores[block].min(axis=1, keepdims=True)
                    among = np.arange(len(chunk))
                    if start and scores[block].size < len(chunk):  # few rows are among the best
                        rough = single[block] @ vectors.astype(np.float32, copy=False).T
                        among = np.flatnonzero((rough >= least - self.margin).any(axis=0))
                    # In float64 sums of products are exact.
                    exact = double[block] @ vectors[among].astype(np.float64, copy=False).T
                    fresh = exact.astype(np.float32)
                    better = (fresh >= least).any(axis=0)
                    fresh = fresh[:, better]
                    places = np.broadcast_to(chunk[among[better]], fresh.shape)
                    scores[block], positions[block] = best_of_shard(
                        np.concatenate([scores[block], fresh], axis=1),
                        np.concatenate([positions[block], places], axis=1),
                        shape[1],
                    )
            best.append((scores, positions))
        scores, positions = (np.concatenate(parts, axis=1) for parts in zip(*best, strict=True))
        return scores, positions


def _search_parameters(probes: Probes, selection: RowMask) -> Any:
    parameters: Any = faiss.SearchParametersIVF()
    parameters.nprobe = probes.lists.shape[1]
    parameters.sel = selection.selector  # kept alive by the caller's selection
    return parameters
