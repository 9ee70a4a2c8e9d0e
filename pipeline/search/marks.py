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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.floating]

LEAST_MARKS = 10
"""Marks from which on a query is learned; fewer are combined by their means."""
LEAST_OF_EACH = 3
"""Right marks, and wrong marks, that a calibration needs."""
CANDIDATES = 1000
"""Hits among which the tiles to mark next are chosen, at least."""
UNLABELLED_ROWS = 1000
"""Rows of the archive that stand for everything that was not marked."""

_RIGHT, _WRONG, _UNLABELLED = 200.0, 100.0, 100.0
"""Total weights of the marks and of the unlabelled rows, beside a penalty of half the square."""
_FOLDS = 10
_WIDE, _NARROW, _BEST = 10, 5, 3
"""Candidates for each tile to mark: uncertain ones in the first round and later; best ones."""
_RESAMPLED, _INTERVAL = 200, (0.05, 0.95)
_QUANTILES, _WEAK, _PENALTY = 21, 0.25, 1e-3
_BINS, _STEPS = 4096, 100


def marks_in_words(right: int, wrong: int) -> str:
    """Return numbers of marks for people.

    Examples
    --------
    >>> marks_in_words(3, 1)
    '3 right marks and 1 wrong mark'
    """
    kinds = ((right, "right"), (wrong, "wrong"))
    return " and ".join(f"{n:,} {kind} mark{'' if n == 1 else 's'}" for n, kind in kinds)


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


def next_marks(
    scores: npt.ArrayLike,
    right: npt.ArrayLike,
    wrong: npt.ArrayLike,
    read: Callable[[Int64], Vectors],
    count: int,
) -> Int64:
    """Return the positions of the candidates whose marks would teach most.

    Of fewer than ten marks all are uncertain ones, with scores near that of the right mark that is
    least alike: further out, a query of a few marks finds hardly any right ones. Later uncertain
    scores lie midway between the right and the wrong marks, and the best hits have the share that
    wrong marks have among the marks: where right tiles are rare, the best hits bring some, and
    where they are common, only the boundary teaches. Both kinds are spread: each is the one least
    like those chosen before.

    Parameters
    ----------
    scores
        The scores (n,) of candidates, highest first, by a query made of the marks.
    right, wrong
        The scores of the marks by that query; ``wrong`` may be empty.
    read
        Returns the vectors (m, D) of candidates by their positions.
    count
        Tiles to mark.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> next_marks([1.0, 0.8, 0.6, 0.0], [0.8], [0.0], vectors.__getitem__, 2).tolist()
    [1, 3]
    """
    scored, yes, no = (np.asarray(part, dtype=np.float64) for part in (scores, right, wrong))
    if not len(scored):
        return np.empty(0, dtype=np.int64)
    marks = len(yes) + len(no)
    first = marks < LEAST_MARKS
    best = 0 if first else round(count * len(no) / marks)
    outside = no.mean() if len(no) else scored.min()
    boundary = yes.min() if first else (yes.mean() + outside) / 2
    near = np.argsort(np.abs(scored - boundary), kind="stable")
    uncertain = near[: (_WIDE if first else _NARROW) * count]
    top = np.arange(min(_BEST * best, len(scored)))
    pool = np.union1d(top, uncertain)
    vectors = np.asarray(read(pool), dtype=np.float64)
    similar = vectors @ vectors.T
    chosen = _spread(np.searchsorted(pool, top), [], best, similar)
    chosen = _spread(np.searchsorted(pool, uncertain), chosen, count, similar)
    return np.asarray(pool[chosen])


def _spread(members: Int64, chosen: list[int], count: int, similar: Float64) -> list[int]:
    """Return ``count`` members, those chosen before among them, each least like the others."""
    chosen = list(chosen)
    while len(chosen) < count:
        left = members[~np.isin(members, chosen)]
        if not len(left):
            break
        likeness = similar[left][:, chosen].max(axis=1) if chosen else np.zeros(len(left))
        chosen.append(int(left[np.argmin(likeness)]))
    return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Probabilities for the scores of a query, from marks that were held back.

    Attributes
    ----------
    slope, offset
        The probability that a row of a score is right is the logistic function of ``slope`` times
        the score plus ``offset``.
    scores, right
        The score of each mark by a query that was made without it, and whether the mark is right.
    unlabelled
        Quantiles of the scores of the archive's sample.
    """

    slope: float
    offset: float
    scores: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()
    unlabelled: tuple[float, ...] = ()

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Precision and recall at a threshold, as far as the calibration knows.

    ``precision`` is the share of the rows at or above the threshold that are right, ``recall`` the
    share of the right rows that are there. The intervals hold nine of ten resamples of the marks.
    ``rows`` and ``right`` are the rows at or above the threshold, and those of them that are right.
    """

    rows: int
    right: float
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


def calibrate(right: Vectors, wrong: Vectors, unlabelled: Vectors) -> Calibration:
    """Fit the probabilities of :func:`learned_vector` to marks that were held back.

    Each tenth of the marks is scored by a query of the others. A logistic curve is fitted to these
    scores with the targets of Platt; the unlabelled rows count as wrong, all together as much as a
    quarter of the marks, and hold the curve down where there are no marks.

    Parameters
    ----------
    right, wrong, unlabelled
        As in :func:`learned_vector`.

    Raises
    ------
    ConfigError
        There are fewer than three right or three wrong marks.
    """
    if min(len(right), len(wrong)) < LEAST_OF_EACH:
        raise ConfigError(
            f"marks: {marks_in_words(len(right), len(wrong))} give no probabilities; mark at least "
            f"{LEAST_OF_EACH} tiles of each kind"
        )
    yes, no = (np.asarray(part, dtype=np.float64) for part in (right, wrong))
    yes, no = (part[np.lexsort(part.T)] for part in (yes, no))
    folds = [np.arange(len(part)) % min(_FOLDS, len(part)) for part in (yes, no)]
    scores = [np.empty(len(part)) for part in (yes, no)]
    for fold in range(_FOLDS):
        held = [numbers == fold for numbers in folds]
        if any(part.any() for part in held):
            query = learned_vector(yes[~held[0]], no[~held[1]], unlabelled)
            for part, out, own in zip((yes, no), scores, held, strict=True):
                out[own] = part[own] @ query
    of_sample = np.asarray(unlabelled, dtype=np.float64) @ learned_vector(yes, no, unlabelled)
    sample = np.quantile(of_sample, np.linspace(0, 1, _QUANTILES)) if len(of_sample) else of_sample
    known = np.repeat([True, False], [len(yes), len(no)])
    held_back = np.concatenate(scores)
    ((slope, offset),) = _curves(held_back, known, sample, np.ones((1, len(known))))
    return Calibration(
        slope=float(slope),
        offset=float(offset),
        scores=tuple(held_back.tolist()),
        right=tuple(known.tolist()),
        unlabelled=tuple(sample.tolist()),
    )


def expect(calibration: Calibration, scores: npt.ArrayLike, threshold: float) -> Expected:
    """Return precision and recall at a threshold among rows with these scores.

    Parameters
    ----------
    calibration
        Of the query.
    scores
        The scores (n,) of all rows in question.
    threshold
        Least probability.
    """
    scored = np.asarray(scores, dtype=np.float64)
    above = calibration.probability(scored) >= threshold
    if not above.any():
        nothing = (0.0, 0.0)
        return Expected(
            rows=0, right=0.0, precision=0.0, precision_interval=nothing,
            recall=0.0, recall_interval=nothing,
        )  # fmt: skip
    known = np.asarray(calibration.right, dtype=bool)
    groups = [np.flatnonzero(known), np.flatnonzero(~known)]
    rng, weights = np.random.default_rng(0), np.zeros((_RESAMPLED, len(known)))
    for group in groups:  # as many right and as many wrong marks in each resample
        for resample in weights:
            np.add.at(resample, rng.choice(group, len(group)), 1)
    curves = _curves(np.asarray(calibration.scores), known, calibration.unlabelled, weights)
    curves = np.vstack([[calibration.slope, calibration.offset], curves])
    found, total = (_right_rows(curves, part) for part in (scored[above], scored))
    precision, recall = found / above.sum(), found / np.maximum(total, 1e-12)
    return Expected(
        rows=int(above.sum()),
        right=float(found[0]),
        precision=float(precision[0]),
        precision_interval=_interval(precision[1:]),
        recall=float(recall[0]),
        recall_interval=_interval(recall[1:]),
    )


def _right_rows(curves: Float64, scores: Float64) -> Float64:
    """Return how many rows of these scores are right, by each of the curves (B, 2)."""
    from scipy.special import expit

    counts, centres = np.ones(len(scores)), scores
    if len(scores) > _BINS:
        counts, edges = np.histogram(scores, _BINS)
        centres = (edges[1:] + edges[:-1]) / 2
    slope, offset = curves.T[:, :, None]
    return np.asarray(expit(slope * centres + offset) @ counts)


def _interval(values: Float64) -> tuple[float, float]:
    low, high = np.quantile(values, _INTERVAL).tolist()
    return low, high


def _curves(
    scores: Float64, known: npt.NDArray[np.bool_], unlabelled: npt.ArrayLike, weights: Float64
) -> Float64:
    """Return slope and offset (B, 2) of logistic curves through marks with weights (B, n).

    Newton's method for all curves at once; a small penalty keeps separable marks finite.
    """
    from scipy.special import expit

    sample = np.asarray(unlabelled, dtype=np.float64)
    values = np.concatenate([scores, sample])
    centre, spread = values.mean(), values.std() or 1.0
    right, wrong = int(known.sum()), int((~known).sum())
    marked = np.where(known, (right + 1) / (right + 2), 1 / (wrong + 2))
    targets = np.concatenate([marked, np.zeros(len(sample))])
    share = _WEAK * len(known) / max(len(sample), 1)
    weighed = np.hstack([weights, np.full((len(weights), len(sample)), share)])
    rows = np.stack([(values - centre) / spread, np.ones(len(values))], axis=1)
    found = np.zeros((len(weights), 2))
    for _ in range(_STEPS):
        expected = expit(found @ rows.T)
        slopes = (weighed * (expected - targets)) @ rows + _PENALTY * found
        bends = np.einsum("bn,ni,nj->bij", weighed * expected * (1 - expected), rows, rows)
        step = np.linalg.solve(bends + _PENALTY * np.eye(2), slopes[:, :, None])[:, :, 0]
        found -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    slope = np.maximum(found[:, 0], _PENALTY) / spread  # a curve never falls
    return np.stack([slope, found[:, 1] - slope * centre], axis=1)


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
