"""The mathematics of marks: a query that learns, the tiles to mark next, probabilities of hits.

A mark says that a tile is right or wrong. All functions are pure and deterministic: the same marks
give the same result, in whatever order they come. Vectors are rows of unit length; the unlabelled
ones are a uniform sample of the archive, nearly all of which are wrong.

References
----------
Query: C. Manning et al., Introduction to Information Retrieval, 2008, chapters 9 and 14; unlabelled
rows as weak negatives: C. Elkan and K. Noto, Learning classifiers from only positive and unlabeled
data, KDD 2008. Marks: D. Lewis and W. Gale, A sequential algorithm for training text classifiers,
SIGIR 1994 (uncertain); K. Brinker, Incorporating diversity in active learning with support vector
machines, ICML 2003 (spread). Probabilities: J. Platt, Probabilistic outputs for support vector
machines, 1999; H.-T. Lin et al., A note on Platt's probabilistic outputs, 2007. Intervals: B. Efron
and R. Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.floating]

LEAST_MARKS = 10
"""Marks from which on a query is learned; fewer are combined by their means."""
LEAST_OF_EACH = 3
"""Right marks, and wrong marks, that a calibration needs."""
UNLABELLED_ROWS = 1000
"""Rows of the archive that stand for everything that was not marked."""

_RIGHT, _WRONG, _UNLABELLED = 200.0, 100.0, 100.0
"""Total weights of the marks and of the unlabelled rows, beside a penalty of half the square."""
_FOLDS = 10


def learned_vector(right: Vectors, wrong: Vectors, unlabelled: Vectors) -> Float64:
    """Return the direction (D,) of unit length along which right marks lie beyond everything else.

    A logistic fit with an L2 penalty. Right marks weigh as much as wrong marks and unlabelled rows
    together, each group by itself as much as any number of its members. The vectors are centred and
    scaled by the sample, so that the penalty means the same for every encoder.

    Parameters
    ----------
    right, wrong
        The marks (n, D); ``wrong`` may be empty.
    unlabelled
        A uniform sample (m, D) of the archive, without the marks.

    Notes
    -----
    A convex problem: milliseconds for hundreds of marks.

    Examples
    --------
    >>> eye = np.eye(3)
    >>> learned_vector(eye[:1], eye[1:2], eye[2:]).round(2).tolist()
    [0.82, -0.41, -0.41]
    """
    dimension = np.shape(right)[1]
    groups = [
        np.asarray(group, dtype=np.float64).reshape(-1, dimension)
        for group in (right, wrong, unlabelled)
    ]
    groups = [group[np.lexsort(group.T)] for group in groups]  # the order decides about rounding
    weights = [
        np.full(len(group), total / max(len(group), 1))
        for group, total in zip(groups, (_RIGHT, _WRONG, _UNLABELLED), strict=True)
    ]
    rows = np.concatenate(groups)
    archive = groups[2] if len(groups[2]) > 1 else rows
    centre = archive.mean(axis=0)
    spread = np.sqrt(((archive - centre) ** 2).sum(axis=1).mean()) or 1.0
    targets = np.repeat([1.0, 0.0, 0.0], [len(group) for group in groups])
    *direction, _ = _logistic(
        (rows - centre) / spread, targets, np.concatenate(weights), penalty=1.0
    )
    return np.asarray(direction) / max(float(np.linalg.norm(direction)), 1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What the scores of a query mean, from marks that were held back.

    Attributes
    ----------
    slope, offset
        The probability that a row of a score is right is the logistic function of ``slope`` times
        the score plus ``offset``.
    scores, right
        The score of each mark by a query that was made without it, and whether the mark is right.
    """

    slope: float
    offset: float
    scores: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()

    def probability(self, scores: npt.ArrayLike) -> Float64:
        """Return the probability, from 0 to 1, that rows with these scores are right.

        Examples
        --------
        >>> Calibration(slope=10.0, offset=-5.0).probability([0.0, 0.5, 1.0]).round(3).tolist()
        [0.007, 0.5, 0.993]
        """
        from scipy.special import expit

        return np.asarray(expit(self.slope * np.asarray(scores, dtype=np.float64) + self.offset))

    def score_at(self, probability: float) -> float:
        """Return the score of rows with a probability between 0 and 1.

        Examples
        --------
        >>> Calibration(slope=10.0, offset=-5.0).score_at(0.5)
        0.5
        """
        return float((np.log(probability / (1 - probability)) - self.offset) / self.slope)


def _logistic(rows: Float64, targets: Float64, weights: Float64, penalty: float) -> Float64:
    """Return the coefficients (D + 1,) of a logistic fit, the intercept last.

    ``targets`` (n,) are probabilities; the penalty is half the square of all but the intercept.
    """
    from scipy.optimize import minimize  # slow to import, and most searches do without
    from scipy.special import expit

    def cost(values: Float64) -> tuple[float, Float64]:
        direction, margins = values[:-1], rows @ values[:-1] + values[-1]
        losses = np.logaddexp(0, margins) - targets * margins
        slopes = weights * (expit(margins) - targets)
        total = weights @ losses + penalty / 2 * direction @ direction
        return float(total), np.append(rows.T @ slopes + penalty * direction, slopes.sum())

    start = np.zeros(rows.shape[1] + 1)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options=_CONVERGED)
    return np.asarray(found.x)


_CONVERGED = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-7}
