"""How sure a difference between two rankings of the same queries is: a paired bootstrap.

Shapes: Q queries, M scores of each query (labels, say), B resamples.

References
----------
B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_RANGE = (2.5, 97.5)
_CHUNK = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference of means, and the interval that holds 95 % of its resamples."""

    mean: float
    low: float
    high: float


def paired_difference(
    ours: ArrayLike, others: ArrayLike, *, resamples: int = 5000, seed: int = 0
) -> Difference:
    """Return how far the mean of some scores is above the mean of others, for the same queries.

    Each resample draws the queries with replacement, the same for both.

    Parameters
    ----------
    ours, others
        A score of each query (Q,), or several (Q, M): the mean over the queries is taken first,
        then the mean over the M. NaN where a query has no score.
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
    finite_QM = np.isfinite(gap_QM)
    total_QM, queries = np.where(finite_QM, gap_QM, 0), len(gap_QM)
    rng = np.random.default_rng(seed)

    def means(weights_BQ: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> ArrayLike:
        counts_BM = weights_BQ @ finite_QM
        with np.errstate(invalid="ignore"):  # a resample may miss all queries of a label
            return np.nanmean((weights_BQ @ total_QM) / counts_BM, axis=1)

    drawn = [
        means(rng.multinomial(queries, np.full(queries, 1 / queries), size=size).astype(float))
        for size in np.diff([*range(0, resamples, _CHUNK), resamples])
    ]
    low, high = np.percentile(np.concatenate(drawn), _RANGE)
    mean = np.asarray(means(np.ones((1, queries))))[0]
    return Difference(mean=float(mean), low=float(low), high=float(high))
