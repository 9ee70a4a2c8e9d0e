"""Retrieval scores for multi-label databases: exact, tie-safe, never a Q × N matrix.

Every query ranks the database by cosine similarity (in float64; scores closer than 1e-9 are equal
and keep the database's order), without the query's own row. ``r_i`` is the number of labels shared
with the i-th hit; an item is relevant when ``r_i > 0`` unless stated. A score is the mean over the
queries that have a relevant item. ANY relevance is easy when labels are few: always show
:func:`random_ranking_metrics` beside it.

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
        Name to mean score; NaN when no query can be scored.
    label_ap
        mAP of every label, shape (C,), NaN where no query holds the label or no item has it;
        None without the whole ranking.
    queries
        Number of queries with a relevant item.
    """

    metrics: dict[str, float]
    label_ap: Floats | None
    queries: int


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
    """Rank a database for every query and score the ranking by labels.

    Parameters
    ----------
    z_QD, z_ND
        Query and database embeddings, any float dtype, compared by cosine; may be memory-mapped.
    y_QC, y_NC
        Their multi-hot labels.
    k
        Depth of the metrics named ``@k``; at most the whole database is used.
    exclude_self
        For each query the database position of the query itself, or -1; shape (Q,).
    rare_counts
        Training counts of the labels, which decide the rare third; default: counts of ``y_NC``.
    full
        False leaves out what needs the whole ranking (``mAP``, ``ANMRR``, ``mAP J>=0.6``,
        ``macro mAP``, ``rare mAP``) and keeps only k hits per query.
    chunk_bytes
        Size of the largest array, the keys of a chunk of queries; at least one row of N keys.

    Raises
    ------
    ConfigError
        When shapes do not fit, k is not positive or an embedding is not finite.

    Notes
    -----
    Time O(Q N D + Q N log N) with ``full``, else O(Q N D); memory a few times ``chunk_bytes``, and
    the database in float64 when that is below 2 GiB. Long rankings are scored with as many threads
    as torch has.

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
    truth = Relevance.of(y_QC, y_NC, k, exclude_self, rare_counts)
    if z_QD.ndim != 2 or z_ND.ndim != 2 or z_QD.shape[1] != z_ND.shape[1]:
        raise ConfigError(f"metrics: embeddings do not fit: {z_QD.shape} and {z_ND.shape}")
    if (len(z_QD), len(z_ND)) != (truth.queries, truth.items):
        raise ConfigError(
            f"metrics: {len(z_QD)} queries and {len(z_ND)} items have labels for "
            f"{truth.queries} and {truth.items}"
        )
    return _score(cosine_keys(z_QD, z_ND), truth, full, chunk_bytes)


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
    """Score one random ranking per query: what every metric is without any skill.

    Parameters are those of :func:`score_retrieval`; the ranking is a function of ``seed``.
    """
    truth = Relevance.of(y_QC, y_NC, k, exclude_self, rare_counts)

    def keys(rows: slice, items: slice) -> Ints:
        shape = rows.stop - rows.start, items.stop - items.start
        rng = np.random.default_rng((seed, rows.start, items.start))
        keys_qn = rng.integers(-(2**30), 2**30, size=shape) << np.int64(32)
        return keys_qn + np.arange(items.start, items.stop)

    return _score(keys, truth, full, chunk_bytes).metrics


def rare_labels(counts_C: Floats, label_ap_C: Floats) -> Ints:
    """Return the rarest third (at least one) of the labels that have a score, rarest first.

    Examples
    --------
    >>> rare_labels(np.array([9, 1, 5, 2]), np.array([0.5, np.nan, 0.5, 0.5]))
    array([3])
    """
    scored = np.flatnonzero(np.isfinite(label_ap_C))
    by_count = scored[np.argsort(counts_C[scored], kind="stable")]
    return by_count[: max(1, len(scored) // 3)]


def _score(keys: Keys, truth: Relevance, full: bool, chunk_bytes: int) -> Scores:
    k, near = truth.hits(truth.k), truth.hits(JACCARD_HITS)
    depth = truth.items if full else max(k, near)
    found: list[dict[str, Floats]] = []
    rankings = _Rankings(truth) if full else None
    keys = excluding_own(keys, truth.exclude_Q)
    # A chunk's largest array: its keys of 8 bytes, or its gains, some arrays of V columns.
    width = max(8 * depth, 32 * max(k, len(truth.count_V)))
    for rows in chunks(truth.queries, width, chunk_bytes):
        kept_qK = first_keys(keys, rows, truth.items, depth, chunk_bytes)
        gains = truth.gains(rows)
        values = _first_hits(_sets(kept_qK[:, :k], truth), gains)
        set_qK = _sets(kept_qK[:, :near], truth)
        values[f"Jaccard@{JACCARD_HITS}"] = _take(gains.jaccard_qV, set_qK).mean(1)
        if rankings is not None:
            values |= rankings.score(kept_qK, gains, rows)
        usable_q = gains.relevant_q > 0
        found.append({name: np.where(usable_q, value, np.nan) for name, value in values.items()})
    metrics = {
        name.replace("@k", f"@{truth.k}"): _mean(np.concatenate([v[name] for v in found]))
        for name in (found[0] if found else ())
    }
    queries = sum(int(np.isfinite(values["P@k"]).sum()) for values in found)
    if rankings is None:
        return Scores(metrics=metrics, label_ap=None, queries=queries)
    label_ap_C = _divide(rankings.sum_C, rankings.count_C)
    metrics["macro mAP"] = _mean(label_ap_C)
    metrics["rare mAP"] = _mean(label_ap_C[rare_labels(truth.rare_counts_C, label_ap_C)])
    return Scores(metrics=metrics, label_ap=label_ap_C, queries=queries)


def _sets(kept_qK: Ints, truth: Relevance) -> Ints:
    """Label set of each hit; V, which gains nothing, for the excluded row, which comes last."""
    known_qK = kept_qK < EXCLUDED
    return np.where(known_qK, truth.set_N[kept_qK & POSITION * known_qK], len(truth.count_V))


def _first_hits(set_qk: Ints, gains: Gains) -> dict[str, Floats]:
    """Metrics of the first k hits, per query."""
    shared_qk, jaccard_qk, cosine_qk = (
        _take(gain_qV, set_qk) for gain_qV in (gains.shared_qV, gains.jaccard_qV, gains.cosine_qV)
    )
    relevant_qk, hits_q = shared_qk > 0, (shared_qk > 0).sum(1)
    place_k = np.arange(1, set_qk.shape[1] + 1)
    mean_gain_qk = np.cumsum(shared_qk, 1) / place_k
    precision_qk = np.cumsum(relevant_qk, 1) / place_k
    return {
        "mAP@k": _divide((precision_qk * relevant_qk).sum(1), hits_q, empty=0),
        "P@k": precision_qk[:, -1],
        "R@k": _divide(hits_q, gains.relevant_q),
        "nDCG@k": _ndcg(2**shared_qk - 1, 2**gains.shared_qV - 1, gains.count_qV),
        "nDCG-J@k": _ndcg(jaccard_qk, gains.jaccard_qV, gains.count_qV),
        "nDCG-cos@k": _ndcg(cosine_qk, gains.cosine_qV, gains.count_qV),
        "ACG@k": mean_gain_qk[:, -1],
        "WAP@k": _divide((mean_gain_qk * relevant_qk).sum(1), hits_q, empty=0),
    }


class _Rankings:
    """Scores whole rankings, query by query, and adds up the labels' average precisions."""

    def __init__(self, truth: Relevance) -> None:
        self._truth, self._most_relevant = truth, truth.most_relevant
        self._has_CV = np.ascontiguousarray(truth.set_VC.T > 0)
        self._count_N = np.arange(1.0, truth.items + 1)
        self._inverse_N = 1 / self._count_N
        self.sum_C, self.count_C = np.zeros((2, len(self._has_CV)))

    def score(self, kept_qN: Ints, gains: Gains, rows: slice) -> dict[str, Floats]:
        """Return the metrics of a chunk of queries."""

        def one(query: int) -> tuple[tuple[float, float, float], dict[int, float]]:
            key_N = kept_qN[query]
            position_N = key_N[: np.searchsorted(key_N, EXCLUDED)] & POSITION
            place_R = self._places(gains.shared_qV[query] > 0, position_N)
            if not len(place_R):
                return (math.nan, math.nan, math.nan), {}
            alike_R = self._places(gains.jaccard_qV[query] >= JACCARD_RELEVANT, position_N)
            held = {
                int(label): self._average_precision(self._places(self._has_CV[label], position_N))
                for label in np.flatnonzero(self._truth.y_QC[rows.start + query])
            }
            anmrr = _anmrr(place_R, self._most_relevant)
            return (self._average_precision(place_R), anmrr, self._average_precision(alike_R)), held

        found = each_query(one, len(kept_qN), self._truth.items)
        for _, held in found:
            for label, precision in held.items():
                if math.isfinite(precision):
                    self.sum_C[label] += precision
                    self.count_C[label] += 1
        columns = np.array([values for values, _ in found]).reshape(-1, 3).T
        return dict(zip(("mAP", "ANMRR", "mAP J>=0.6"), columns, strict=True))

    def _places(self, wanted_V: NDArray[np.bool_], position_N: Ints) -> Ints:
        """Return the places (from 0, rising) of the items whose label set is wanted."""
        # By item first: a table of bytes stays in the cache when it is looked up by position.
        wanted_N = np.take(wanted_V, self._truth.set_N)
        return np.flatnonzero(np.take(wanted_N, position_N))

    def _average_precision(self, place_R: Ints) -> float:
        """Return the mean precision at the places of the relevant items; NaN without any."""
        if not len(place_R):
            return math.nan
        inverse_R = np.take(self._inverse_N, place_R)
        return float(self._count_N[: len(place_R)] @ inverse_R) / len(place_R)


def _anmrr(place_R: Ints, most_relevant: int) -> float:
    """MPEG-7: places beyond K count as 1.25 K; the relevant items in the best order give 0."""
    relevant = len(place_R)
    window = min(4 * relevant, 2 * most_relevant)
    near = int(np.searchsorted(place_R, window))
    place_sum = place_R[:near].sum() + near + 1.25 * window * (relevant - near)
    best = 0.5 * (1 + relevant)
    return float((place_sum / relevant - best) / (1.25 * window - best))


def _ndcg(gain_qk: Floats, gain_qV: Floats, count_qV: Floats) -> Floats:
    """Discounted gain of k hits over that of the best k items; NaN where that is 0."""
    discount_k = 1 / np.log2(np.arange(2, gain_qk.shape[1] + 2))
    best_qV = np.argsort(-gain_qV, 1)
    until_qV = np.cumsum(np.take_along_axis(count_qV, best_qV, 1), 1)
    # Sets in order of gain fill the places up to k: each takes a stretch of the discounts.
    total = np.append(0, np.cumsum(discount_k))
    filled_qV = total[np.minimum(until_qV, len(discount_k)).astype(int)]
    stretch_qV = np.diff(filled_qV, axis=1, prepend=0)
    ideal_q = (np.take_along_axis(gain_qV, best_qV, 1) * stretch_qV).sum(1)
    return _divide(gain_qk @ discount_k, ideal_q)


def _take(gain_qV: Floats, set_qK: Ints) -> Floats:
    """Gain of each hit; 0 for the excluded row, whose set is V."""
    taken_qK: Floats = np.take_along_axis(np.pad(gain_qV, ((0, 0), (0, 1))), set_qK, 1)
    return taken_qK


def _divide(above: NDArray[Any], below: NDArray[Any], empty: float = np.nan) -> Floats:
    """Quotient, ``empty`` where the divisor is 0."""
    quotient: Floats = np.full(np.shape(above), float(empty))
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def _mean(value_Q: Floats) -> float:
    """Mean of the finite values; NaN without any."""
    finite = value_Q[np.isfinite(value_Q)]
    return float(finite.mean()) if len(finite) else float("nan")
