"""Exact cosine rankings in chunks; equal scores are ordered by position.

Float64 similarities are converted to integer sort keys that contain the position, so one sort
orders scores and ties, and the order does not depend on the chunking.

Shapes: Q queries, N items, q queries of one chunk, n items of one block, D dimension, K hits kept.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from storage.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = Callable[[slice, slice], Ints]
T = TypeVar("T")

SCORE_SCALE = 2.0**30  # a key is (-score · 2^30) · 2^32 + position
POSITION = np.int64(2**32 - 1)
_CONVERTED_BYTES = 2**31
_BLOCK = 8192  # items scored at once for a whole ranking: the keys stay in the cache
EXCLUDED = np.int64(2**31 - 1) << np.int64(32)

_THREADED_ITEMS = 65_536


def nearest(
    z_QD: ArrayLike,
    z_ND: ArrayLike,
    k: int,
    *,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    chunk_bytes: int = 2**28,
) -> tuple[Floats, Ints]:
    """Return the k items of highest cosine similarity for every query, equal scores by position.

    Parameters
    ----------
    z_QD, z_ND
        Query and database embeddings.
    k
        Number of items per query.
    groups
        Integer groups of the queries and of the items; items of the query's group are excluded.
    chunk_bytes
        Size of the largest array, the keys of a chunk of queries.

    Returns
    -------
    scores_QK, positions_QK
        Cosine similarity and database position; -inf and -1 where fewer than k items remain.
    """
    z_QD, z_ND = np.asarray(z_QD), np.asarray(z_ND)
    cosine = cosine_keys(z_QD, z_ND)
    if groups is None:
        keys = cosine
    else:
        group_Q, group_N = (np.asarray(group) for group in groups)

        def keys(rows: slice, items: slice) -> Ints:
            keys_qn = cosine(rows, items)
            keys_qn[group_Q[rows, None] == group_N[items]] = EXCLUDED
            return keys_qn

    firsts = [
        first_keys(keys, rows, len(z_ND), k, chunk_bytes)
        for rows in chunks(len(z_QD), 32 * k, chunk_bytes)
    ]
    keys_QK = np.concatenate([*firsts, np.empty((0, min(k, len(z_ND))), np.int64)])
    keys_QK = np.pad(keys_QK, ((0, 0), (0, k - keys_QK.shape[1])), constant_values=EXCLUDED)
    missing_QK = keys_QK >= EXCLUDED
    scores_QK = np.where(missing_QK, -np.inf, -(keys_QK >> np.int64(32)) / SCORE_SCALE)
    return scores_QK, np.where(missing_QK, -1, keys_QK & POSITION)


def cosine_keys(z_QD: NDArray[Any], z_ND: NDArray[Any]) -> Keys:
    """Return sort keys of cosine similarities: best first, then by position.

    A database below 2 GiB in float64 is converted once, a larger database block by block.
    """
    small = 8 * z_ND.size < _CONVERTED_BYTES
    unit_ND = _unit(z_ND, 0) if small else None

    def keys(rows: slice, items: slice) -> Ints:
        unit_nD = _unit(z_ND[items], items.start) if unit_ND is None else unit_ND[items]
        score_qn = _unit(z_QD[rows], rows.start) @ unit_nD.T
        # Rounding to 2^-30 makes scores equal that differ only by the order of summation.
        score_qn *= -SCORE_SCALE
        keys_qn = np.rint(score_qn, out=score_qn).astype(np.int64)
        keys_qn <<= np.int64(32)
        keys_qn += np.arange(items.start, items.stop)
        return keys_qn

    return keys


def excluding_own(keys: Keys, exclude_Q: Ints) -> Keys:
    """Return keys that sort each query's own row last."""

    def excluding(rows: slice, items: slice) -> Ints:
        keys_qn = keys(rows, items)
        own_q = exclude_Q[rows]
        inside = np.flatnonzero((own_q >= items.start) & (own_q < items.stop))
        keys_qn[inside, own_q[inside] - items.start] = EXCLUDED
        return keys_qn

    return excluding


def first_keys(keys: Keys, rows: slice, items: int, depth: int, chunk_bytes: int) -> Ints:
    """Return the ``depth`` smallest keys of each query in ascending order, shape (q, depth)."""
    count = rows.stop - rows.start
    if depth >= items:
        first_qK = np.empty((count, items), np.int64)
        for start in range(0, items, _BLOCK):
            stop = min(start + _BLOCK, items)
            first_qK[:, start:stop] = keys(rows, slice(start, stop))
        each_query(lambda query: first_qK[query].sort(), count, items)
        return first_qK
    block = max(depth, chunk_bytes // (8 * max(count, 1)))
    first_qK = np.empty((count, 0), np.int64)
    for start in range(0, items, block):
        found_qn = keys(rows, slice(start, min(start + block, items)))
        first_qK = np.concatenate([first_qK, found_qn], 1) if first_qK.size else found_qn
        if first_qK.shape[1] > depth:
            first_qK = np.partition(first_qK, depth - 1, axis=1)[:, :depth]
    first_qK.sort(axis=1)
    return first_qK


def each_query(work: Callable[[int], T], queries: int, items: int) -> list[T]:
    """Return the result of each query of a chunk; long rankings use the threads of torch."""
    threads = min(torch.get_num_threads(), queries)
    if threads < 2 or items < _THREADED_ITEMS:
        return [work(query) for query in range(queries)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(queries)))


def chunks(queries: int, width: int, chunk_bytes: int) -> Iterator[slice]:
    """Split the queries into chunks of at most 1,024 queries with ``width`` bytes per query."""
    size = min(1024, max(1, chunk_bytes // width))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))


def _unit(z_nD: NDArray[Any], start: int) -> Floats:
    """Return rows of unit norm in float64; a zero row stays zero."""
    z_nD = np.asarray(z_nD, np.float64)
    norm_n1 = np.linalg.norm(z_nD, axis=1, keepdims=True)
    if not np.isfinite(norm_n1).all():
        first = start + int(np.argmin(np.isfinite(norm_n1)))
        raise ConfigError(f"embedding row {first} is not finite")
    return z_nD / np.where(norm_n1 > 0, norm_n1, 1)
