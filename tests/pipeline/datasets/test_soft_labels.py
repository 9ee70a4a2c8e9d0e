"""Soft labels: each teacher against a plain computation, and what a ramp makes of their ranks."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from encoders.projection import half_whitened
from pipeline.datasets.extend import Measurement, measure
from pipeline.datasets.soft_labels import (
    f1_scores,
    logistic_scores,
    probabilities,
    propagated,
    soft_labels,
)
from pipeline.datasets.spec import SoftLabelSpec
from storage.errors import ConfigError

LABELLED, CLASSES = 60, 4


@pytest.fixture(scope="module")
def world():
    """Rows whose features are sums of a direction for each of their labels, and noise."""
    rng = np.random.default_rng(0)
    y = (rng.random((400, CLASSES)) < [0.5, 0.3, 0.2, 0.1]).astype(np.uint8)
    y[:8] = np.tile(np.eye(CLASSES, dtype=np.uint8), (2, 1))
    x = y @ rng.normal(size=(CLASSES, 32)) + rng.normal(0, 0.4, (400, 32))
    return x.astype(np.float32), y


@pytest.mark.parametrize("method", ["ramp", "cap", "band", "f1"])
def test_every_method_finds_the_labels_of_rows_like_the_labelled(world, method):
    x, y = world
    found = soft_labels(x, y[:LABELLED], SoftLabelSpec(method=method))
    assert found.shape == (400 - LABELLED, CLASSES)
    assert found.dtype == np.float32
    values = set(np.unique(found))
    assert values <= {0.0, 1.0} if method in ("cap", "f1") else 0 <= min(values) < max(values) <= 1
    assert (0.5 in values) == (method == "band") or method == "ramp"
    micro, macro = f1_scores(found > 0.5, y[LABELLED:])
    assert micro > 0.8 or method == "band"  # which leaves a part undecided
    assert macro > 0.7 or method == "band"


def test_the_ramp_of_no_width_is_the_step_and_its_half_lies_on_the_step(world):
    ranks = np.random.default_rng(1).random((500, 3)).astype(np.float32)
    shares = np.array([0.5, 0.2, 0.01])
    step = probabilities(ranks, shares, SoftLabelSpec(method="cap"))
    assert np.array_equal(probabilities(ranks, shares, SoftLabelSpec(band=1e-6)).round(), step)
    assert np.array_equal(probabilities(ranks, shares, SoftLabelSpec(band=0.5)) >= 0.5, step > 0)
    np.testing.assert_allclose(step.mean(0), shares, atol=0.05)


def test_the_logistic_teacher_is_that_of_scikit_learn(world):
    x, y = world
    white = half_whitened(x, 128)
    found = logistic_scores(white[:LABELLED], y[:LABELLED], white[LABELLED:])
    scale = np.sqrt(white.shape[1])
    for label in range(CLASSES):
        model = LogisticRegression(tol=1e-8).fit(white[:LABELLED] * scale, y[:LABELLED, label])
        expected = model.decision_function(white[LABELLED:] * scale)
        np.testing.assert_allclose(found[:, label], expected, atol=5e-3)


def test_propagation_is_that_of_the_dense_graph(world):
    x, y = world
    white = half_whitened(x, 128)
    cosine = (white @ white.T).astype(float)
    np.fill_diagonal(cosine, -np.inf)
    near = cosine >= np.sort(cosine, 1)[:, [-5]]
    weight = np.where(near | near.T, np.exp((cosine - 1) / 0.1), 0)
    degree = weight.sum(1)
    graph = weight / np.sqrt(degree[:, None] * degree)
    start = np.zeros((400, CLASSES + 1))
    start[:LABELLED, :-1], start[:LABELLED, -1] = y[:LABELLED], 1
    spread = start
    for _ in range(30):
        spread = 0.9 * graph @ spread + 0.1 * start
    expected = spread[:, :-1] / np.maximum(spread[:, -1:], 1e-12)
    np.testing.assert_allclose(propagated(white, y[:LABELLED], 5), expected, atol=1e-4)


def test_a_class_that_no_labelled_row_holds_stays_absent(world):
    x, y = world
    y = np.hstack([y, np.zeros((400, 1), np.uint8)])
    assert not soft_labels(x, y[:LABELLED], SoftLabelSpec())[:, -1].any()


def test_several_numbers_of_directions_are_averaged_by_rank(world):
    x, y = world
    known, (few, many) = y[:LABELLED], (half_whitened(x, width) for width in (4, 32))
    ranks = [
        (rankdata(score, method="ordinal", axis=0) - 0.5) / len(score)
        for white in (few, many)
        for score in (
            logistic_scores(white[:LABELLED], known, white[LABELLED:]),
            propagated(white, known, 10)[LABELLED:],
        )
    ]
    spec = SoftLabelSpec(directions=(4, 32, 4000))  # no more than the 32 features
    expected = probabilities(np.mean(ranks, axis=0), known.mean(0), spec)
    np.testing.assert_allclose(soft_labels(x, known, spec), expected, atol=1e-4)


def test_a_second_round_adds_the_neighbours_of_a_learned_space(world):
    x, y = world
    first = soft_labels(x, y[:LABELLED], SoftLabelSpec())
    second = soft_labels(x, y[:LABELLED], SoftLabelSpec(rounds=2), steps=20)
    assert not np.array_equal(first, second)
    hidden = y[LABELLED:]
    assert f1_scores(second >= 0.5, hidden)[1] > f1_scores(first >= 0.5, hidden)[1] - 0.02


def gained(after: np.ndarray, classes: tuple[float, float]) -> Measurement:
    """A measurement of some gains of single rows, and macro mAP without and with."""
    return Measurement(
        micro_f1=0.9,
        macro_f1=0.9,
        supervised={"macro mAP": classes[0]},
        extended={"macro mAP": classes[1]},
        gain=float(after.mean()),
        error=float(after.std(ddof=1) / np.sqrt(len(after))),
    )


def test_a_gain_pays_beyond_its_error_and_not_at_the_cost_of_the_classes():
    sure = np.array([0.02, 0.04] * 50)
    assert gained(sure, (0.5, 0.6)).pays
    assert not gained(sure, (0.5, 0.4)).pays
    assert not gained(np.array([-0.3, 0.31] * 50), (0.5, 0.6)).pays


def test_the_error_of_a_measured_gain_is_that_of_rows_compared_with_themselves(world):
    x, y = world
    found = measure(x, y[:LABELLED], SoftLabelSpec(), steps=20)
    assert found.gain == pytest.approx(
        found.extended["nDCG@50"] - found.supervised["nDCG@50"], abs=0.01
    )
    assert 0 < found.error < 0.1


def test_half_whitening_leaves_the_root_of_the_deviations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 3)) * [9.0, 4.0, 1.0] + 7
    z = half_whitened(x.astype(np.float32), 2)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    scores = (x - x.mean(0))[:, :2] / np.sqrt([9.0, 4.0])
    expected = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    assert np.mean(np.abs(np.abs(z) - np.abs(expected)).max(1) < 0.1) > 0.95


def test_f1_is_that_of_scikit_learn(world):
    y = world[1]
    guess = np.random.default_rng(2).random(y.shape) < 0.4
    micro, macro = f1_scores(guess, y)
    assert micro == pytest.approx(f1_score(y, guess, average="micro"))
    assert macro == pytest.approx(f1_score(y, guess, average="macro"))


def test_what_cannot_be_labelled_is_named(world):
    x, y = world
    with pytest.raises(ConfigError, match="400 labelled of 400 rows"):
        soft_labels(x, y, SoftLabelSpec())
    with pytest.raises(ConfigError, match="not a number"):
        soft_labels(x * np.float32(np.inf), y[:LABELLED], SoftLabelSpec())
    with pytest.raises(ConfigError, match="method 'best' is not ramp, cap, band, f1"):
        SoftLabelSpec(method="best")
