"""Retrieval metrics for multi-label databases: exact, with ties resolved, in chunks of queries.

Every query ranks the database by cosine similarity (in float64; scores closer than 1e-9 are equal
and keep the order of the database), without the row of the query itself. ``r_i`` is the number of
labels shared with the i-th hit; an item is relevant if ``r_i > 0`` unless stated otherwise. A
metric is the mean over the queries that have a relevant item. With few labels a random ranking
scores high too: always report :func:`random_ranking_metrics` as the baseline.

=================  =================================================================================
``mAP``            ``1/N_rel Σ_i rel_i P@i`` over the whole ranking
``mAP@k``          the same over the first k hits, divided by the relevant ones *among them*
``P@k``, ``R@k``   ``Σ rel / k`` and ``Σ rel / N_rel``
``nDCG@k``         ``Σ (2^r_i - 1) / log2(1 + i)``, over the ideal of the **whole** database
``nDCG-J@k``       nDCG with the Jaccard overlap as gain
``nDCG-cos@k``     nDCG with ``r / sqrt(|Y_q| |Y_i|)`` as gain
``ACG@k``          ``Σ r_i / k``
``WAP@k``          ``Σ rel_i ACG@i / Σ rel_i`` over the first k
``Jaccard@10``     mean Jaccard overlap of the first 10 hits
``surplus@10``     labels of a hit that the query does not have, mean of the first 10 hits
``ANMRR``          normalised mean rank of the relevant items (MPEG-7), 0 is best
``mAP J>=0.6``     mAP where relevant means a Jaccard overlap of at least 0.6
``macro mAP``      mean over labels c of the mAP of "queries with c look for items with c"
``rare mAP``       the same over the rare third of the labels that can be scored
=================  =================================================================================

Shapes: Q queries, N database rows, V distinct label sets of the database, q queries of one chunk,
n database rows of one block, D dimension, C labels, K hits kept, R relevant items.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.ranking import (
    EXCLUDED,
    POSITION,
    Floats,
    Ints,
    Keys,
    chunks,
    cosine_keys,
    each_query,
    excluding_own,
    first_keys,
)
from encoders.relevance import Gains, Relevance
from storage.errors import ConfigError

JACCARD_RELEVANT = 0.6
JACCARD_HITS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Retrieval scores of one ranking.

    Attributes
    ----------
    metrics
        Mean score by name; NaN when no query can be scored.
    by_query
        The score of each query, shape (Q,), for every metric that is a mean over queries; NaN for
        a query without a relevant item.
    label_ap_QC
        Average precision of each query for each of its labels, NaN for the others and for labels
        that no item holds; None without the whole ranking.
    queries
        Number of queries with a relevant item.
    """

    metrics: dict[str, float]
    by_query: dict[str, Floats]
    label_ap_QC: Floats | None
    queries: int

    @property
    def label_ap(self) -> Floats | None:
        """The mAP of every label, shape (C,), NaN for one that cannot be scored; None as above."""
        return None if self.label_ap_QC is None else _label_means(self.label_ap_QC)


def retrieval_metrics(
    z_QD: ArrayLike,
    y_QC: ArrayLike,
    z_ND: ArrayLike,
    y_NC: ArrayLike,
    k: int = 50,
    *,
    exclude_self: ArrayLike | None = None,
    rare_counts: ArrayLike | None = None,
    full: bool = True,
    chunk_bytes: int = 2**28,
) -> dict[str, float]:
    """Return the scores of :func:`score_retrieval` by name."""
    return score_retrieval(
        z_QD,
        y_QC,
        z_ND,
        y_NC,
        k,
        exclude_self=exclude_self,
        rare_counts=rare_counts,
        full=full,
        chunk_bytes=chunk_bytes,
    ).metrics


def score_retrieval(
    z_QD: ArrayLike,
    y_QC: ArrayLike,
    z_ND: ArrayLike,
    y_NC: ArrayLike,
    k: int = 50,
    *,
    exclude_self: ArrayLike | None = None,
    rare_counts: ArrayLike | None = None,
    full: bool = True,
    chunk_bytes: int = 2**28,
) -> Scores:
    """Rank a database for every query and score the rankings by shared labels.

    Parameters
    ----------
    z_QD, z_ND
        Query and database embeddings, any float dtype, compared by cosine; may be memory-mapped.
    y_QC, y_NC
        Multi-hot labels of the queries and of the database.
    k
        Depth of the metrics named ``@k``; limited to the size of the database.
    exclude_self
        Database position of each query itself, or -1; shape (Q,).
    rare_counts
        Training counts of the labels, which define the rare third; default: counts of ``y_NC``.
    full
        False omits the metrics of the whole ranking (``mAP``, ``ANMRR``, ``mAP J>=0.6``,
        ``macro mAP``, ``rare mAP``) and keeps only k hits per query.
    chunk_bytes
        Size of the largest array, the keys of a chunk of queries; at least one row of N keys.

    Raises
    ------
    ConfigError
        Shapes do not fit, k is not positive or an embedding is not finite.

    Notes
    -----
    Time O(Q N D + Q N log N) with ``full``, else O(Q N D). Memory is a few times ``chunk_bytes``,
    plus the database in float64 when that is below 2 GiB; a Q × N matrix is never allocated. Long
    rankings are scored with the number of threads of torch.

    References
    ----------
    Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002 (DCG);
    Manjunath et al., Color and texture descriptors, IEEE TCSVT 2001 (ANMRR).

    Examples
    --------
    >>> z = np.eye(3)
    >>> y = [[1, 0], [1, 0], [0, 1]]
    >>> retrieval_metrics(z, y, z, y, k=1)["P@1"]
    1.0
    """
    z_QD, z_ND = np.asarray(z_QD), np.asarray(z_ND)
    relevance = Relevance.of(y_QC, y_NC, k, exclude_self, rare_counts)
    if z_QD.ndim != 2 or z_ND.ndim != 2 or z_QD.shape[1] != z_ND.shape[1]:
        raise ConfigError(f"metrics: embeddings do not fit: {z_QD.shape} and {z_ND.shape}")
    if (len(z_QD), len(z_ND)) != (relevance.queries, relevance.items):
        raise ConfigError(
            f"metrics: {len(z_QD)} queries and {len(z_ND)} items have labels for "
            f"{relevance.queries} and {relevance.items}"
        )
    return _score(cosine_keys(z_QD, z_ND), relevance, full, chunk_bytes)


def random_ranking_metrics(
    y_QC: ArrayLike,
    y_NC: ArrayLike,
    k: int = 50,
    *,
    exclude_self: ArrayLike | None = None,
    rare_counts: ArrayLike | None = None,
    full: bool = True,
    seed: int = 0,
    chunk_bytes: int = 2**28,
) -> dict[str, float]:
    """Score one random ranking per query: the chance level of every metric.

    Parameters are those of :func:`score_retrieval`; the ranking depends only on ``seed``.
    """
    relevance = Relevance.of(y_QC, y_NC, k, exclude_self, rare_counts)

    def keys(rows: slice, items: slice) -> Ints:
        shape = rows.stop - rows.start, items.stop - items.start
        rng = np.random.default_rng((seed, rows.start, items.start))
        keys_qn = rng.integers(-(2**30), 2**30, size=shape) << np.int64(32)
        return keys_qn + np.arange(items.start, items.stop)

    return _score(keys, relevance, full, chunk_bytes).metrics


def rare_labels(counts_C: Floats, label_ap_C: Floats) -> Ints:
    """Return the rarest third (at least one label) of the scored labels, rarest first.

    Examples
    --------
    >>> rare_labels(np.array([9, 1, 5, 2]), np.array([0.5, np.nan, 0.5, 0.5]))
    array([3])
    """
    scored = np.flatnonzero(np.isfinite(label_ap_C))
    by_count = scored[np.argsort(counts_C[scored], kind="stable")]
    return by_count[: max(1, len(scored) // 3)]


def _score(keys: Keys, relevance: Relevance, full: bool, chunk_bytes: int) -> Scores:
    k, near = (int(relevance.hits_q(depth).max(initial=1)) for depth in (relevance.k, JACCARD_HITS))
    depth = relevance.items if full else max(k, near)
    parts: list[dict[str, Floats]] = []
    label_parts: list[Floats] = []
    rankings = _Rankings(relevance) if full else None
    keys = excluding_own(keys, relevance.exclude_Q)
    # The largest array of a chunk: keys of 8 bytes, or a few arrays of gains with V columns.
    width = max(8 * depth, 32 * max(k, len(relevance.count_V)))
    for rows in chunks(relevance.queries, width, chunk_bytes):
        ranked_qK = first_keys(keys, rows, relevance.items, depth, chunk_bytes)
        gains = relevance.gains(rows)
        values = _first_hits(
            _sets(ranked_qK[:, :k], relevance), gains, relevance.hits_q(relevance.k, rows)
        )
        near_sets_qK = _sets(ranked_qK[:, :near], relevance)
        near_q = relevance.hits_q(JACCARD_HITS, rows)
        for name, gain_qV in (("Jaccard", gains.jaccard_qV), ("surplus", gains.surplus_qV)):
            values[f"{name}@{JACCARD_HITS}"] = _take(gain_qV, near_sets_qK).sum(1) / near_q
        if rankings is not None:
            whole, label_ap_qC = rankings.score(ranked_qK, gains, rows)
            values |= whole
            label_parts.append(label_ap_qC)
        usable_q = gains.relevant_q > 0
        parts.append({name: np.where(usable_q, value, np.nan) for name, value in values.items()})
    by_query = {
        name.replace("@k", f"@{relevance.k}"): np.concatenate([part[name] for part in parts])
        for name in (parts[0] if parts else ())
    }
    metrics = {name: _mean(value_Q) for name, value_Q in by_query.items()}
    queries = sum(int(np.isfinite(values["P@k"]).sum()) for values in parts)
    if rankings is None:
        return Scores(metrics=metrics, by_query=by_query, label_ap_QC=None, queries=queries)
    label_ap_QC = np.concatenate([*label_parts, np.empty((0, relevance.y_QC.shape[1]))])
    label_ap_C = _label_means(label_ap_QC)
    metrics["macro mAP"] = _mean(label_ap_C)
    metrics["rare mAP"] = _mean(label_ap_C[rare_labels(relevance.rare_counts_C, label_ap_C)])
    return Scores(metrics=metrics, by_query=by_query, label_ap_QC=label_ap_QC, queries=queries)


def _label_means(label_ap_QC: Floats) -> Floats:
    """Return the mean of the finite values of each column, NaN without any, shape (C,)."""
    scored_QC = np.isfinite(label_ap_QC)
    return _divide(np.where(scored_QC, label_ap_QC, 0).sum(0), scored_QC.sum(0))


def _sets(ranked_qK: Ints, relevance: Relevance) -> Ints:
    """Return the label set of each hit; V, with a gain of 0, for the excluded row (sorted last)."""
    included_qK = ranked_qK < EXCLUDED
    set_qK = relevance.set_N[ranked_qK & POSITION * included_qK]
    return np.where(included_qK, set_qK, len(relevance.count_V))


def _first_hits(set_qk: Ints, gains: Gains, depth_q: Ints) -> dict[str, Floats]:
    """Return the metrics of the first k hits, or all if fewer, for each query, shape (q,) each."""
    shared_qk, jaccard_qk, cosine_qk = (
        _take(gain_qV, set_qk) for gain_qV in (gains.shared_qV, gains.jaccard_qV, gains.cosine_qV)
    )
    relevant_qk, hits_q = shared_qk > 0, (shared_qk > 0).sum(1)
    rank_k = np.arange(1, set_qk.shape[1] + 1)
    mean_gain_qk = np.cumsum(shared_qk, 1) / rank_k
    precision_qk = np.cumsum(relevant_qk, 1) / rank_k
    return {
        "mAP@k": _divide((precision_qk * relevant_qk).sum(1), hits_q, empty=0),
        "P@k": hits_q / depth_q,
        "R@k": _divide(hits_q, gains.relevant_q),
        "nDCG@k": _ndcg(2**shared_qk - 1, 2**gains.shared_qV - 1, gains.count_qV),
        "nDCG-J@k": _ndcg(jaccard_qk, gains.jaccard_qV, gains.count_qV),
        "nDCG-cos@k": _ndcg(cosine_qk, gains.cosine_qV, gains.count_qV),
        "ACG@k": shared_qk.sum(1) / depth_q,
        "WAP@k": _divide((mean_gain_qk * relevant_qk).sum(1), hits_q, empty=0),
    }


class _Rankings:
    """Scores whole rankings, query by query, and each label that a query has."""

    def __init__(self, relevance: Relevance) -> None:
        self._relevance, self._most_relevant = relevance, relevance.most_relevant
        self._has_CV = np.ascontiguousarray(relevance.set_VC.T > 0)
        self._count_N = np.arange(1.0, relevance.items + 1)
        self._inverse_N = 1 / self._count_N

    def score(self, ranked_qN: Ints, gains: Gains, rows: slice) -> tuple[dict[str, Floats], Floats]:
        """Return the metrics of a chunk of queries, and the precision of their labels, (q, C)."""

        def score_query(query: int) -> tuple[tuple[float, float, float], dict[int, float]]:
            key_N = ranked_qN[query]
            position_N = key_N[: np.searchsorted(key_N, EXCLUDED)] & POSITION
            rank_R = self._ranks(gains.shared_qV[query] > 0, position_N)
            if not len(rank_R):
                return (math.nan, math.nan, math.nan), {}
            similar_R = self._ranks(gains.jaccard_qV[query] >= JACCARD_RELEVANT, position_N)
            held = {
                int(label): self._average_precision(self._ranks(self._has_CV[label], position_N))
                for label in np.flatnonzero(self._relevance.y_QC[rows.start + query])
            }
            whole, similar = self._average_precision(rank_R), self._average_precision(similar_R)
            return (whole, _anmrr(rank_R, self._most_relevant), similar), held

        scores = each_query(score_query, len(ranked_qN), self._relevance.items)
        label_ap_qC = np.full((len(ranked_qN), len(self._has_CV)), np.nan)
        for query, (_, held) in enumerate(scores):
            for label, precision in held.items():
                label_ap_qC[query, label] = precision
        columns = np.array([values for values, _ in scores]).reshape(-1, 3).T
        return dict(zip(("mAP", "ANMRR", "mAP J>=0.6"), columns, strict=True)), label_ap_qC

    def _ranks(self, relevant_V: NDArray[np.bool_], position_N: Ints) -> Ints:
        """Return the ranks (from 0, ascending) of the items with a relevant label set."""
        # Gather by item first: a table of N bytes stays in the cache for the lookups by position.
        relevant_N = np.take(relevant_V, self._relevance.set_N)
        return np.flatnonzero(np.take(relevant_N, position_N))

    def _average_precision(self, rank_R: Ints) -> float:
        """Return the mean precision at the ranks of the relevant items; NaN without any."""
        if not len(rank_R):
            return math.nan
        inverse_R = np.take(self._inverse_N, rank_R)
        return float(self._count_N[: len(rank_R)] @ inverse_R) / len(rank_R)


def _anmrr(rank_R: Ints, most_relevant: int) -> float:
    """Return ANMRR as in MPEG-7: ranks beyond K count as 1.25 K; the ideal ranking gives 0."""
    relevant = len(rank_R)
    window = min(4 * relevant, 2 * most_relevant)
    near = int(np.searchsorted(rank_R, window))
    rank_sum = rank_R[:near].sum() + near + 1.25 * window * (relevant - near)
    best = 0.5 * (1 + relevant)
    return float((rank_sum / relevant - best) / (1.25 * window - best))


def _ndcg(gain_qk: Floats, gain_qV: Floats, count_qV: Floats) -> Floats:
    """Return the discounted gain of k hits over the ideal gain; NaN where the ideal is 0."""
    discount_k = 1 / np.log2(np.arange(2, gain_qk.shape[1] + 2))
    best_qV = np.argsort(-gain_qV, 1)
    until_qV = np.cumsum(np.take_along_axis(count_qV, best_qV, 1), 1)
    # In the ideal ranking the label sets fill the ranks in order of gain. Each set covers a run of
    # ranks, whose discounts are a difference of the cumulative sum: no ranking of N items is built.
    total = np.append(0, np.cumsum(discount_k))
    filled_qV = total[np.minimum(until_qV, len(discount_k)).astype(int)]
    stretch_qV = np.diff(filled_qV, axis=1, prepend=0)
    ideal_q = (np.take_along_axis(gain_qV, best_qV, 1) * stretch_qV).sum(1)
    return _divide(gain_qk @ discount_k, ideal_q)


def _take(gain_qV: Floats, set_qK: Ints) -> Floats:
    """Return the gain of each hit, shape (q, K); 0 for the excluded row, whose set is V."""
    taken_qK: Floats = np.take_along_axis(np.pad(gain_qV, ((0, 0), (0, 1))), set_qK, 1)
    return taken_qK


def _divide(above: NDArray[Any], below: NDArray[Any], empty: float = np.nan) -> Floats:
    """Return the quotient, and ``empty`` where the divisor is 0."""
    quotient: Floats = np.full(np.shape(above), float(empty))
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def _mean(value_Q: Floats) -> float:
    """Return the mean of the finite values; NaN without any."""
    finite = value_Q[np.isfinite(value_Q)]
    return float(finite.mean()) if len(finite) else float("nan")
