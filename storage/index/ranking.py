"""Scores that no shard layout, batch size, thread count or CPU can change, and their order.

A score is the dot product of a unit query and a stored vector. Both are made of multiples of
2**-24 (stored vectors are float16; queries and decoded approximations are rounded to it), so
every product is a multiple of 2**-48 and every partial sum, being below 32, fits the 53 bits of a
float64: the sum is exact in whatever order it is added up. The score is that sum as float32.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
RowKeys = Callable[[Int64], list[tuple[str, str]]]

QUANTUM = 2.0**-24
_PAIRS_AT_ONCE = 1024  # their float64 vectors stay in the second-level cache
_SIGN_EXPONENT_FRACTION = np.int32(-0x70002000)
_EXPONENT_OFFSET = np.float32(2.0**112)
_LAST_PLACE = 2**32 - 2  # one more, for a place of -1, is the largest number of 32 bits


def canonical(vectors: npt.NDArray[np.floating]) -> Float64:
    """Round vectors (n, D) to multiples of 2**-24; float16 values stay what they are.

    Examples
    --------
    >>> x = np.array([[0.1, 0.25]], dtype=np.float16)
    >>> bool((canonical(x) == x).all())
    True
    """
    return np.rint(vectors.astype(np.float64) * (1 / QUANTUM)) * QUANTUM


def canonical_queries(vectors: npt.ArrayLike, dimension: int) -> Float64:
    """Check queries (Q, D), or one (D,), scale them to unit length and make them canonical.

    Raises
    ------
    ConfigError
        A query has the wrong dimension, is not finite or has no length.
    """
    queries = np.asarray(vectors, dtype=np.float64)
    if queries.ndim == 1:
        queries = queries[None]
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ConfigError(
            f"queries have shape {np.shape(vectors)}, expected (queries, {dimension}); "
            "embed them with the encoder of this index"
        )
    norms = np.sqrt(np.einsum("qd,qd->q", queries, queries))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        what = "has length 0" if norms[bad[0]] == 0 else "is not finite"
        raise ConfigError(f"query {bad[0]} {what}; give finite vectors that are not all zero")
    return canonical(queries / norms[:, None])


def widened(halves: npt.NDArray[np.float16]) -> Float32:
    """Return finite float16 values as float32, several times as fast as numpy's conversion.

    Sign, exponent and fraction move to their places in a float32, whose exponent is then too small
    by 112.

    Examples
    --------
    >>> widened(np.array([1.5, -2.0**-24], np.float16)).tolist() == [1.5, -2.0**-24]
    True
    """
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_EXPONENT_FRACTION
    values = bits.view(np.float32)
    values *= _EXPONENT_OFFSET
    return values


def exact_scores(queries: Floats, positions: Int64, vectors: Callable[[Int64], Floats]) -> Float32:
    """Return the scores (Q, C) of candidates, -inf where there is none.

    Parameters
    ----------
    queries
        Canonical queries (Q, D).
    positions
        The candidates (Q, C) of each query; -1 where there are fewer.
    vectors
        Returns the canonical vectors (m, D) of positions (m,).
    """
    scores = np.empty(positions.shape, dtype=np.float32)
    queries = queries.astype(np.float64, copy=False)
    count, width = positions.shape
    step = max(_PAIRS_AT_ONCE // max(width, 1), 1)
    for start in range(0, count, step):
        own = slice(start, start + step)
        for first in range(0, width, _PAIRS_AT_ONCE):
            part = own, slice(first, first + _PAIRS_AT_ONCE)
            members = np.maximum(positions[part], 0)
            found = vectors(members.ravel()).astype(np.float64, copy=False)
            rows = found.reshape(*members.shape, -1)
            scores[part] = np.einsum("qcd,qd->qc", rows, queries[own])
    scores[positions < 0] = -np.inf
    return scores


def best_in_order(
    scores: Float32, places: Int64, k: int, starts: Int64, keys: RowKeys
) -> tuple[Float32, Int64]:
    """Order candidates by score (highest first), tile key and scene id; keep k of each query.

    Parameters
    ----------
    scores
        Of the candidates (Q, C); -inf where there is none.
    places
        Numbers (Q, C) of their rows, below 2**32, which follow (tile key, scene id) within a
        shard; -1 where there is none.
    k
        How many to keep of each query.
    starts
        The first number of each shard, ascending.
    keys
        Returns (tile key, scene id) of numbers; called only when equal scores of one query come
        from different shards.

    Returns
    -------
    tuple
        Scores and numbers (Q, k), -inf and -1 where there are fewer.

    Examples
    --------
    >>> scores = np.array([[0.5, 0.9, 0.9]], np.float32)
    >>> best_in_order(scores, np.array([[7, 8, 3]]), 2, np.array([0]), lambda _: [])[1]
    array([[3, 8]])
    """
    packed = _packed(scores, places)
    packed.sort(axis=1)
    scores, places = _unpacked(packed[:, ::-1])
    if len(starts) > 1:
        same = (scores[:, 1:] == scores[:, :-1]) & (places[:, 1:] >= 0)
        for query in np.flatnonzero(same.any(axis=1)).tolist():
            for start, stop in _runs(scores[query]):
                first, last = np.searchsorted(starts, places[query, [start, stop - 1]], "right")
                if first != last:
                    _sort_by_key(places[query, start:stop], keys)
    missing = k - scores.shape[1]
    if missing > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        places = np.pad(places, ((0, 0), (0, missing)), constant_values=-1)
    return scores[:, :k], places[:, :k]


def best_of_shard(scores: Float32, places: Int64, k: int) -> tuple[Float32, Int64]:
    """Return the k best of candidates (Q, C) of one shard, in no order; all when C is at most k."""
    if scores.shape[1] <= k:
        return scores, places
    packed = _packed(scores, places)
    packed.partition(packed.shape[1] - k, axis=1)
    return _unpacked(packed[:, -k:])


def _packed(scores: Float32, places: Int64) -> Int64:
    """Return numbers that are the larger the higher the score, and the lower the place."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0, its equal
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (ascending.astype(np.int64) << 32) + (_LAST_PLACE - places)


def _unpacked(packed: Int64) -> tuple[Float32, Int64]:
    ascending = (packed >> 32).astype(np.int32)
    bits = ascending ^ ((ascending >> 31) & np.int32(0x7FFFFFFF))
    return bits.view(np.float32), _LAST_PLACE - (packed & 0xFFFFFFFF)


def _runs(scores: Float32) -> list[tuple[int, int]]:
    """Return (start, stop) of the stretches of equal scores (C,)."""
    edges = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1], True])
    return [(a, b) for a, b in pairwise(edges.tolist()) if b - a > 1 and np.isfinite(scores[a])]


def _sort_by_key(places: Int64, keys: RowKeys) -> None:
    """Order numbers of rows in place, by (tile key, scene id)."""
    named = keys(places)
    places[:] = places[sorted(range(len(named)), key=named.__getitem__)]
