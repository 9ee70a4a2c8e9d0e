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
machines, 1999; H.-T. Lin et al., A note on Platt's probabilistic outputs, 2007. Accuracy by a
stratified random sample: P. Olofsson et al., Good practices for estimating area and assessing
accuracy of land change, Remote Sensing of Environment 148, 2014; strata and their posterior: T.
Dalenius and J. Hodges, Minimum variance stratification, JASA 54, 1959; W. Ericson, Subjective
Bayesian models in sampling finite populations, JRSS B 31, 1969.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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

_WRONG, _UNLABELLED = 14.0, 88.0
"""Weight of the wrong marks for the square root of their number, and of all unlabelled rows, beside
a penalty of half the square."""
_FOLDS = 10
_UNCERTAIN, _BEST = 5, 3
"""Candidates for each tile to mark: uncertain ones, and best ones."""
_BELOW, _PRIOR, _DRAWS = 3, 2.0, 4000
"""Strata below a threshold; marks that a calibration is worth in each stratum; posterior draws."""
_CENTRAL = (0.05, 0.5, 0.95)
_QUANTILES, _WEAK, _PENALTY = 21, 0.25, 1e-3
_STEPS = 100


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

    A logistic fit with an L2 penalty. The wrong marks weigh by the square root of their number,
    since they are alike, the unlabelled rows the same for any number, and the right marks as much
    as both together. The vectors are centred and scaled by the sample, so that the penalty means
    the same for every encoder.

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
    [0.81, -0.29, -0.52]
    """
    dimension = np.shape(right)[1]
    groups = [
        np.asarray(group, dtype=np.float64).reshape(-1, dimension)
        for group in (right, wrong, unlabelled)
    ]
    groups = [group[np.lexsort(group.T)] for group in groups]  # the order decides about rounding
    no = _WRONG * float(np.sqrt(len(groups[1])))
    weights = [
        np.full(len(group), total / max(len(group), 1))
        for group, total in zip(groups, (no + _UNLABELLED, no, _UNLABELLED), strict=True)
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
    uncertain = near[: _UNCERTAIN * count]
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
    """

    slope: float
    offset: float

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
    """Precision and recall that a calibration expects at a threshold; only a sample measures them.

    ``precision`` is the share of the rows at or above the threshold that are right, ``recall`` the
    share of the right rows that are there. ``rows`` and ``right`` are the rows at or above the
    threshold, and those of them that are right.
    """

    rows: int
    right: float
    precision: float
    recall: float


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
    slope, offset = _curve(np.concatenate(scores), known, sample)
    return Calibration(slope=slope, offset=offset)


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
    probability = calibration.probability(scores)
    above = probability >= threshold
    right = float(probability[above].sum())
    return Expected(
        rows=int(above.sum()),
        right=right,
        precision=right / max(int(above.sum()), 1),
        recall=right / max(float(probability.sum()), 1e-12),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """Rows of similar probability, of which some are drawn at random and marked.

    ``rows`` is their number, ``lowest`` their least probability, and ``expected`` the share of them
    that a calibration expects to be right.
    """

    rows: int
    lowest: float
    expected: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Precision, recall and F1 at a threshold, measured by marks of a stratified random sample.

    All are of the rows of the strata, ``rows`` of which are at or above the threshold. Intervals
    hold 90 % of the posterior, and the figures are its medians.
    """

    threshold: float
    rows: int
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]


def stratify(probability: npt.ArrayLike, threshold: float, floor: float) -> list[Stratum]:
    """Divide rows into strata: those at or above a threshold, and three below.

    The strata below are cut so that the sums of the standard deviations of their rows are equal
    (Dalenius and Hodges), by which many improbable rows weigh as much as few uncertain ones.

    Parameters
    ----------
    probability
        That of each row (n,), highest first.
    threshold
        Least probability of a detection.
    floor
        Least probability of a row.

    Returns
    -------
    list of Stratum
        The most probable first; the first one has the rows at or above the threshold. Rows follow
        each other as in ``probability``.

    Raises
    ------
    ConfigError
        No row reaches the threshold.

    Examples
    --------
    >>> [one.rows for one in stratify([0.9, 0.8, 0.4, 0.3, 0.1, 0.02], 0.5, 0.01)]
    [2, 1, 1, 2]
    """
    values = np.asarray(probability, dtype=np.float64)
    above = int((values >= threshold).sum())
    if not above:
        raise ConfigError(
            f"accuracy: no tile without a mark has a probability of {threshold:g} or more; lower "
            "the threshold"
        )
    spread = np.sqrt(values[above:] * (1 - values[above:])).cumsum()
    cuts = spread[-1] * np.arange(1, _BELOW) / _BELOW if len(spread) else np.empty(0)
    inner = above + 1 + np.searchsorted(spread, cuts)
    edges = np.unique([0, above, *inner, len(values)]).tolist()
    lowest = [threshold, *values[[end - 1 for end in edges[2:-1]]].tolist(), floor]
    return [
        Stratum(rows=end - start, lowest=least, expected=float(values[start:end].mean()))
        for start, end, least in zip(edges, edges[1:], lowest, strict=False)
    ]


def draw(strata: Sequence[Stratum], count: int) -> tuple[Int64, Int64]:
    """Draw rows of strata at random: half from the first stratum, the others from those below.

    A larger count draws the same rows and more of them. The rows of all strata are mixed, so that
    the first rows to be marked are a sample too.

    Parameters
    ----------
    strata
        Of :func:`stratify`.
    count
        Rows to draw; fewer come where strata are smaller.

    Returns
    -------
    positions, numbers
        The rows (m,), and of each its stratum, from 0.

    Examples
    --------
    >>> positions, numbers = draw([Stratum(rows=4, lowest=0.5, expected=0.8)], 2)
    >>> len(positions), numbers.tolist()
    (2, [0, 0])
    """
    below = max(len(strata) - 1, 1)
    shares = [count / 2, *[count / 2 / below] * (len(strata) - 1)]
    places, positions, numbers, start = [], [], [], 0
    for number, (stratum, share) in enumerate(zip(strata, shares, strict=True)):
        rows = min(max(round(share), 2), stratum.rows)
        drawn = np.random.default_rng(number).permutation(stratum.rows)[:rows]
        positions.append(start + drawn)
        numbers.append(np.full(rows, number))
        places.append((np.arange(rows) + 0.5) / rows)
        start += stratum.rows
    order = np.lexsort((np.concatenate(numbers), np.concatenate(places)))
    return np.concatenate(positions)[order], np.concatenate(numbers)[order]


def accuracies(
    strata: Sequence[Stratum], right: Sequence[int], wrong: Sequence[int]
) -> list[Accuracy]:
    """Measure precision, recall and F1 at the lower end of each stratum.

    The right rows of a stratum are those that were marked so and a part of those without a mark,
    which is drawn from the beta-binomial posterior of the stratum. Its prior is worth two marks, as
    many of them right as the calibration expects: with Jeffreys' prior, which expects half of the
    rows to be right, recall is far too low where many rows are improbable.

    Parameters
    ----------
    strata
        The most probable first.
    right, wrong
        The marks of each kind in each stratum.

    Returns
    -------
    list of Accuracy
        That of the threshold first, then those of lower thresholds.

    Notes
    -----
    The seed of the draws is fixed: equal marks give equal figures.

    Examples
    --------
    >>> high = Stratum(rows=100, lowest=0.5, expected=0.8)
    >>> low = Stratum(rows=900, lowest=0.01, expected=0.05)
    >>> accuracies([high, low], right=[28, 1], wrong=[2, 29])[0].precision
    0.94
    """
    rng, drawn = np.random.default_rng(0), []
    for one, yes, no in zip(strata, right, wrong, strict=True):
        expected = np.clip(one.expected, 1e-6, 1 - 1e-6)
        share = rng.beta(yes + _PRIOR * expected, no + _PRIOR * (1 - expected), _DRAWS)
        drawn.append(yes + rng.binomial(one.rows - yes - no, share))
    found = np.cumsum(drawn, axis=0)
    every = np.maximum(found[-1], 1e-9)
    rows = np.cumsum([one.rows for one in strata])
    return [
        Accuracy(
            threshold=one.lowest,
            rows=int(count),
            **_central("precision", detected / count),
            **_central("recall", detected / every),
            **_central("f1", 2 * detected / (count + every)),
        )
        for one, count, detected in zip(strata, rows, found, strict=True)
    ]


def _central(name: str, values: Float64) -> dict[str, Any]:
    low, middle, high = np.quantile(values, _CENTRAL).tolist()
    return {name: middle, f"{name}_interval": (low, high)}


def _curve(
    scores: Float64, known: npt.NDArray[np.bool_], unlabelled: npt.NDArray[np.floating]
) -> tuple[float, float]:
    """Return slope and offset of the logistic curve through marks.

    Newton's method; a small penalty keeps separable marks finite.
    """
    from scipy.special import expit

    values = np.concatenate([scores, unlabelled])
    centre, spread = values.mean(), values.std() or 1.0
    right, wrong = int(known.sum()), int((~known).sum())
    marked = np.where(known, (right + 1) / (right + 2), 1 / (wrong + 2))
    targets = np.concatenate([marked, np.zeros(len(unlabelled))])
    share = _WEAK * len(known) / max(len(unlabelled), 1)
    weights = np.repeat([1.0, share], [len(known), len(unlabelled)])
    rows = np.stack([(values - centre) / spread, np.ones(len(values))], axis=1)
    found = np.zeros(2)
    for _ in range(_STEPS):
        expected = expit(rows @ found)
        slopes = (weights * (expected - targets)) @ rows + _PENALTY * found
        bends = (rows.T * (weights * expected * (1 - expected))) @ rows
        step = np.linalg.solve(bends + _PENALTY * np.eye(2), slopes)
        found -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    slope = max(float(found[0]), _PENALTY) / float(spread)  # a curve never falls
    return slope, float(found[1]) - slope * float(centre)


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
