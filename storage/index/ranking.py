"""Scores that no shard layout, batch size, thread count or CPU can change, and their order.

A score is the dot product of a unit query and a stored vector. Both are made of multiples of
2**-24 (stored vectors are float16; queries and decoded approximations are rounded to it), so
every product is a multiple of 2**-48 and every partial sum, being below 32, fits the 53 bits of a
float64: the sum is exact in whatever order it is added up. The score is that sum as float32.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
RowKeys = Callable[[int, Int64], list[tuple[str, str]]]

QUANTUM = 2.0**-24
_PAIRS_AT_ONCE = 4096


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


def pair_scores(queries: Floats, query: Int64, vectors: Callable[[slice], Floats]) -> Float32:
    """Return the scores (m,) of pairs of a query and a vector.

    Parameters
    ----------
    queries
        Canonical queries (Q, D).
    query
        Index (m,) of each pair's query.
    vectors
        Returns the canonical vectors of a slice of the pairs.

    Notes
    -----
    Whatever their types, values are multiplied and added up as float64; handing over float32 (in
    which queries are exact too) is many times as fast, because large copies are.
    """
    scores = np.empty(len(query), dtype=np.float32)
    queries32 = queries.astype(np.float32)
    for start in range(0, len(query), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        own = queries32[query[part]]
        scores[part] = np.einsum("md,md->m", vectors(part), own, dtype=np.float64)
    return scores


def kth_largest(scores: Float32, k: int) -> Float32:
    """Return the k-th largest value of each row (Q, C) as (Q,); -inf when C < k.

    Examples
    --------
    >>> kth_largest(np.array([[3, 1, 2]], dtype=np.float32), 2)
    array([2.], dtype=float32)
    """
    columns = scores.shape[1]
    if columns < k:
        return np.full(len(scores), -np.inf, dtype=np.float32)
    return np.partition(scores, columns - k, axis=1)[:, columns - k]


def best_in_order(
    query: Int64,
    scores: Float32,
    group: Int64,
    position: Int64,
    k: int,
    keys: RowKeys | None = None,
) -> tuple[Int64, Int64]:
    """Order candidates by query, score (highest first), tile key and scene id; keep k a query.

    Parameters
    ----------
    query, scores, group, position
        One candidate an element (m,): its query, score, shard and position there. Positions
        follow (tile key, scene id) within a shard.
    k
        How many to keep of each query.
    keys
        Returns (tile key, scene id) of positions of a shard; asked only when equal scores of one
        query come from different shards.

    Returns
    -------
    tuple
        Indices of the candidates kept, in order, and the rank of each in its query, from 0.
    """
    order = np.lexsort((position, group, -scores, query))
    query_, scores_, group_ = query[order], scores[order], group[order]
    same = (query_[1:] == query_[:-1]) & (scores_[1:] == scores_[:-1])
    if keys is not None and (same & (group_[1:] != group_[:-1])).any():
        for start, stop in _runs(same):
            run = order[start:stop]
            if len(np.unique(group[run])) > 1:
                order[start:stop] = _by_key(run, group, position, keys)
    sizes = np.bincount(query_)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = rank < k
    return order[kept], rank[kept]


def _runs(same: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (start, stop) of the stretches whose neighbours are the same."""
    edges = np.diff(np.r_[0, same.astype(np.int8), 0])
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), (stops + 1).tolist(), strict=True))


def _by_key(
    run: Int64,
    group: Int64,
    position: Int64,
    keys: RowKeys,
) -> Int64:
    named: dict[int, tuple[str, str]] = {}
    for shard in np.unique(group[run]).tolist():
        members = run[group[run] == shard]
        named.update(zip(members.tolist(), keys(shard, position[members]), strict=True))
    return np.array(sorted(run.tolist(), key=named.__getitem__), dtype=np.int64)
