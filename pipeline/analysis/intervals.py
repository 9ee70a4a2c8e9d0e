"""How sure a difference between two rankings of the same queries is: a paired bootstrap.

Shapes: Q queries, M scores of each query (labels, say), B resamples, U units that are drawn (the
queries, or groups of them).

References
----------
B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_RANGE = (2.5, 97.5)
_CHUNK = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference of means, and the interval that holds 95 % of its resamples."""

    mean: float
    low: float
    high: float


def paired_difference(
    ours: ArrayLike,
    others: ArrayLike,
    *,
    together_Q: ArrayLike | None = None,
    resamples: int = 5000,
    seed: int = 0,
) -> Difference:
    """Return how far the mean of some scores is above the mean of others, for the same queries.

    Each resample draws the queries with replacement, the same for both.

    Parameters
    ----------
    ours, others
        A score of each query (Q,), or several (Q, M): the mean over the queries is taken first,
        then the mean over the M. NaN where a query has no score; all three values are NaN when
        none has.
    together_Q
        A number of each query from 0 (Q,): queries of one number depend on each other and are drawn
        together. None: each query alone.
    resamples, seed
        Number of resamples and seed of their draws.

    Notes
    -----
    Memory is 4,000 Q bytes.

    Examples
    --------
    >>> found = paired_difference([0.5, 0.75, 0.25], [0.25, 0.5, 0.0])
    >>> found.mean, found.low, found.high
    (0.25, 0.25, 0.25)
    """
    gap_QM = np.asarray(ours, np.float64) - np.asarray(others, np.float64)
    gap_QM = gap_QM.reshape(len(gap_QM), -1)
    mean, rng = plain_mean(gap_QM), np.random.default_rng(seed)
    if not np.isfinite(mean):
        return Difference(mean=mean, low=mean, high=mean)
    unit_Q = np.arange(len(gap_QM)) if together_Q is None else np.asarray(together_Q)
    units = int(unit_Q.max()) + 1
    drawn = [
        _weighted_means(gap_QM, _counts(rng.integers(units, size=(size, units)))[:, unit_Q])
        for size in np.diff([*range(0, resamples, _CHUNK), resamples])
    ]
    low, high = np.nanpercentile(np.concatenate(drawn), _RANGE)
    return Difference(mean=mean, low=float(low), high=float(high))


def _counts(drawn_BU: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each unit was drawn by each resample, (B, U)."""
    resamples, units = drawn_BU.shape
    cells = drawn_BU + units * np.arange(resamples)[:, None]
    return np.bincount(cells.reshape(-1), minlength=drawn_BU.size).reshape(drawn_BU.shape)


def plain_mean(values: ArrayLike) -> float:
    """Return the mean over the queries of scores (Q,) or (Q, M), then over the M, without NaN.

    Examples
    --------
    >>> plain_mean([[1.0, 0.5], [0.0, float("nan")]])
    0.5
    """
    scores = np.asarray(values, np.float64)
    return float(_weighted_means(scores.reshape(len(scores), -1), np.ones((1, len(scores))))[0])


def _weighted_means(gap_QM: Floats, weights_BQ: NDArray[Any]) -> Floats:
    """Return the mean over M of the weighted means over Q, for each row of weights, (B,)."""
    scored_QM = np.isfinite(gap_QM)
    counts_BM = weights_BQ @ scored_QM  # a resample may miss all queries of a label
    totals_BM = weights_BQ @ np.where(scored_QM, gap_QM, 0)
    means_BM = totals_BM / np.maximum(counts_BM, 1)
    labels_B = (counts_BM > 0).sum(1)
    means_B = np.full(len(weights_BQ), np.nan)
    np.divide(means_BM.sum(1), labels_B, out=means_B, where=labels_B > 0)
    return means_B
