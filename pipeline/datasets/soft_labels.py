"""Labels of unlabelled rows as probabilities, from the labelled rows that look alike.

Two teachers score every class for every unlabelled row: a multi-label logistic regression, and a
propagation of the labels along the graph of nearest neighbours, each in several numbers of
principal directions. The mean of their ranks orders
the rows by class; the share of the class among the labelled rows says where the order is cut. A
ramp around the cut, instead of a step, leaves the rows near it undecided. In a further round a head
learns from these probabilities, and the propagation along its neighbours is a third teacher.

Shapes: N rows, L labelled and U unlabelled rows, F features, D directions, C classes, k neighbours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoders.projection import half_whitened
from pipeline.datasets.spec import SoftLabelSpec
from pipeline.training.head import learned_vectors
from storage.errors import ConfigError
from storage.index.graph import nearest_neighbours

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

_PENALTY = 1.0  # of the logistic regression: half the square of the coefficients, per class
_SPREAD = 0.1  # width of the kernel that weighs an edge by its cosine
_KEEP = 0.9  # share of a row's score that comes from its neighbours
_ROUNDS = 30
_FOLDS = 3
_TINY = 1e-12


def soft_labels(
    features_NF: Floats, y_LC: Labels, spec: SoftLabelSpec, *, seed: int = 0, steps: int = 360
) -> Floats:
    """Return the labels of the unlabelled rows as probabilities, (U, C) float32.

    Parameters
    ----------
    features_NF
        Features of the L labelled rows, followed by those of the U unlabelled rows.
    y_LC
        Labels of the labelled rows, 0 and 1.
    spec
        The settings.
    seed, steps
        Seed and steps of the training of a further round.

    Raises
    ------
    ConfigError
        There are fewer than two labelled rows, no unlabelled row, or a feature is not finite.

    Notes
    -----
    Peak memory is about ``4 N (2 F + S + 3 D + 12 k + 4 C)`` bytes, D the most directions and S the
    sum of all: 1.5 GB for 100,000 rows of 512 features and 20 classes. Nothing of size N x N is
    made.
    """
    labelled = len(y_LC)
    if labelled < 2 or labelled >= len(features_NF):
        raise ConfigError(
            f"soft labels: {labelled} labelled of {len(features_NF)} rows; give at least 2 with "
            "labels, and rows without"
        )
    if not np.isfinite(features_NF).all():
        raise ConfigError(
            "soft labels: a feature is infinite or not a number; embed the rows again"
        )
    most = min(features_NF.shape[1], len(features_NF) - 1)
    widths = sorted({min(width, most) for width in spec.directions})
    spaces = [half_whitened(features_NF, d) for d in widths]
    first_UC, second_UC = _teacher_ranks(spaces, y_LC, spec.neighbours)
    mean_UC: Floats = (first_UC + second_UC) / np.float32(2)
    if spec.method == "f1":
        return _by_f1(spaces, y_LC, mean_UC, spec.neighbours)
    soft_UC = probabilities(mean_UC, y_LC.mean(0), spec)
    for _ in range(1, spec.rounds):
        learned_ND = learned_vectors(
            features_NF,
            np.arange(len(features_NF)),
            np.concatenate([y_LC, soft_UC]).astype(np.float32),
            seed=seed,
            steps=steps,
        )
        third_UC = _ranks(propagated(learned_ND, y_LC, spec.neighbours)[labelled:])
        soft_UC = probabilities(
            np.mean([first_UC, second_UC, third_UC], axis=0), y_LC.mean(0), spec
        )
    return soft_UC


def probabilities(rank_UC: Floats, share_C: NDArray[np.float64], spec: SoftLabelSpec) -> Floats:
    """Turn ranks into probabilities by the shares of the classes.

    Parameters
    ----------
    rank_UC
        Rank of each row in its class, 0 (least) to 1.
    share_C
        ``π_c``, the share of the labelled rows that hold the class. A class of no labelled row has
        the probability 0: no teacher knows how it looks.
    spec
        Method ``ramp``, ``cap`` or ``band``, and the band b.

    Returns
    -------
    ndarray
        ``clip(((1 + b) π - (1 - e)) / (2 b π), 0, 1)`` for the ramp, float32 (U, C).

    Examples
    --------
    >>> ranks = np.array([[1.0], [0.9], [0.8], [0.7], [0.5]], np.float32)
    >>> probabilities(ranks, np.array([0.2]), SoftLabelSpec(band=0.5)).ravel().round(2).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    from_top_UC = 1 - rank_UC
    width_C = spec.band * share_C
    ramp_UC = np.clip((share_C + width_C - from_top_UC) / np.maximum(2 * width_C, _TINY), 0, 1)
    if spec.method == "cap":
        ramp_UC = (ramp_UC >= 0.5).astype(float)
    elif spec.method == "band":
        ramp_UC = np.where((ramp_UC > 0) & (ramp_UC < 1), 0.5, ramp_UC)
    return ramp_UC.astype(np.float32)


def _teacher_ranks(
    spaces: Sequence[Floats], y_LC: Labels, neighbours: int
) -> tuple[Floats, Floats]:
    """Return the ranks of the unlabelled rows by both teachers, (U, C); means over the spaces."""
    labelled = len(y_LC)
    logistic = [logistic_scores(z[:labelled], y_LC, z[labelled:]) for z in spaces]
    spread = [propagated(z, y_LC, neighbours)[labelled:] for z in spaces]
    return _mean_ranks(logistic), _mean_ranks(spread)


def _mean_ranks(scores: Sequence[Floats]) -> Floats:
    mean_UC: Floats = np.mean([_ranks(score_UC) for score_UC in scores], axis=0, dtype=np.float32)
    return mean_UC


def _ranks(score_UC: Floats) -> Floats:
    """Return the rank of each row in its column, from 0.5 / U to 1 - 0.5 / U."""
    order = score_UC.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return ((order + 0.5) / len(score_UC)).astype(np.float32)


def logistic_scores(x_LD: Floats, y_LC: Labels, x_UD: Floats) -> Floats:
    """Return the margins (U, C) of a logistic regression of every class on unit vectors."""
    from scipy.optimize import minimize
    from scipy.special import expit

    scale = np.sqrt(x_LD.shape[1])  # unit vectors have deviations of 1 / scale
    rows = np.hstack([x_LD * scale, np.ones((len(x_LD), 1))]).astype(np.float64)
    shape = rows.shape[1], y_LC.shape[1]

    def cost(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(shape)
        margins, free = rows @ weights, weights.copy()
        free[-1] = 0  # the intercept is not shrunk
        value = np.logaddexp(0, margins).sum() - (y_LC * margins).sum()
        slope = rows.T @ (expit(margins) - y_LC) + _PENALTY * free
        return float(value + _PENALTY / 2 * (free**2).sum()), slope.ravel()

    found = minimize(
        cost, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    weights = found.x.reshape(shape).astype(np.float32)
    margins_UC: Floats = x_UD @ (weights[:-1] * np.float32(scale)) + weights[-1]
    return margins_UC


def propagated(white_ND: Floats, y_LC: Labels, neighbours: int) -> Floats:
    """Spread the labels of the first L rows over the graph of nearest neighbours.

    ``F ← α S F + (1 - α) Y`` with S the symmetric graph of weights ``exp((cos - 1) / 0.1)``,
    normalised by the roots of the degrees, α = 0.9, 30 rounds; divided by the same spread of "is
    labelled", so that a row far from all labelled rows is not scored low for that.

    Returns
    -------
    ndarray
        Score of each class, 0 to about 1, float32 (N, C).
    """
    from scipy.sparse import coo_array

    rows, labelled = len(white_ND), len(y_LC)
    cosine_Nk, other_Nk = nearest_neighbours(white_ND, neighbours)
    first = np.repeat(np.arange(rows), other_Nk.shape[1])
    known = other_Nk.ravel() >= 0
    weight = np.exp((cosine_Nk.ravel()[known] - 1) / _SPREAD).astype(np.float32)
    pairs = first[known], other_Nk.ravel()[known]
    graph = coo_array((weight, pairs), shape=(rows, rows)).tocsr()
    graph = graph.maximum(graph.T)
    root_N1: Floats = (graph.sum(1).clip(1e-12) ** -0.5).astype(np.float32)[:, None]
    start = np.zeros((rows, y_LC.shape[1] + 1), np.float32)
    start[:labelled, :-1], start[:labelled, -1] = y_LC, 1
    spread: Floats = start.copy()
    for _ in range(_ROUNDS):
        moved: Floats = graph @ (root_N1 * spread)
        spread = (_KEEP * root_N1 * moved + (1 - _KEEP) * start).astype(np.float32)
    return (spread[:, :-1] / np.maximum(spread[:, -1:], 1e-12)).astype(np.float32)


def _by_f1(spaces: Sequence[Floats], y_LC: Labels, rank_UC: Floats, neighbours: int) -> Floats:
    """Cut each class at the rank that has the best F1 on labelled rows whose labels are hidden."""
    fold_L = np.random.default_rng(0).permutation(len(y_LC)) % _FOLDS
    hidden_LC = np.zeros(y_LC.shape, np.float32)
    for fold in range(_FOLDS):
        known, hidden = np.flatnonzero(fold_L != fold), np.flatnonzero(fold_L == fold)
        order = np.concatenate([known, hidden])
        both = _teacher_ranks([z[order] for z in spaces], y_LC[known], neighbours)
        hidden_LC[hidden] = (both[0] + both[1]) / 2
    labels = [
        rank_UC[:, label] >= _best_cut(hidden_LC[:, label], y_LC[:, label])
        for label in range(y_LC.shape[1])
    ]
    return np.stack(labels, axis=1).astype(np.float32)


def _best_cut(score_L: Floats, y_L: Labels) -> float:
    """Return the least score that counts as present where F1 is best; infinite without holders."""
    if not y_L.any():
        return float("inf")
    order = np.argsort(-score_L, kind="stable")
    f1 = 2 * np.cumsum(y_L[order]) / (np.arange(1, len(y_L) + 1) + y_L.sum())
    return float(score_L[order][int(f1.argmax())])


def f1_scores(predicted_NC: NDArray[np.bool_], y_NC: Labels) -> tuple[float, float]:
    """Return the F1 over all labels together, and the mean of the F1 of every class that occurs.

    Examples
    --------
    >>> f1_scores(np.array([[True, False], [True, False]]), np.array([[1, 0], [0, 1]], np.uint8))
    (0.5, 0.3333333333333333)
    """
    both_C = (predicted_NC & (y_NC > 0)).sum(0)
    size_C = predicted_NC.sum(0) + y_NC.sum(0)
    occurs_C = y_NC.any(0)
    micro = 2 * both_C.sum() / max(size_C.sum(), 1)
    macro = (2 * both_C / np.maximum(size_C, 1))[occurs_C]
    return float(micro), float(macro.mean()) if len(macro) else float("nan")
