"""A query that learns from marks, what to mark next, and what its scores mean."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from pipeline.search.marks import (
    LEAST_MARKS,
    Calibration,
    accuracies,
    calibrate,
    draw,
    expect,
    learned_vector,
    next_marks,
    stratify,
)
from storage.errors import ConfigError

Array = np.ndarray[Any, Any]


def world(rows: int = 4000, dimension: int = 24, seed: int = 0) -> tuple[Array, Array]:
    """Unit vectors of thirty clusters, three of them right, that vary along the same axes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, dimension))
    owner = rng.integers(30, size=rows)
    alike = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, dimension))
    vectors = centres[owner] + 0.5 * rng.normal(size=(rows, dimension)) + alike
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, owner < 3


def drawn(right: Array, count: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.choice(np.flatnonzero(right), count), rng.choice(np.flatnonzero(~right), count)


def test_the_learned_direction_is_that_of_scikit_learn():
    vectors, right = world(1000)
    yes, no = drawn(right, 12, 1)
    sample = vectors[:300]
    ours = learned_vector(vectors[yes], vectors[no], sample)
    rows = np.concatenate([vectors[yes], vectors[no], sample])
    spread = np.sqrt(((sample - sample.mean(0)) ** 2).sum(1).mean())
    no = 14 * 12**0.5
    weights = np.repeat([(no + 88) / 12, no / 12, 88 / 300], [12, 12, 300])
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    peer.fit((rows - sample.mean(0)) / spread, np.arange(len(rows)) < 12, weights)
    np.testing.assert_allclose(ours, peer.coef_[0] / np.linalg.norm(peer.coef_[0]), atol=1e-5)


def test_a_learned_query_ranks_better_than_the_means():
    vectors, right = world()
    learned, means = [], []
    for seed in range(5):
        yes, no = drawn(right, 10, seed)
        sample = vectors[np.random.default_rng(seed).choice(len(vectors), 500)]
        query = learned_vector(vectors[yes], vectors[no], sample)
        rocchio = vectors[yes].mean(0) - 0.5 * vectors[no].mean(0)
        learned.append(average_precision_score(right, vectors @ query))
        means.append(average_precision_score(right, vectors @ rocchio))
    assert np.mean(learned) > np.mean(means) + 0.05


@pytest.mark.parametrize("wrong", [0, 8])
def test_the_order_of_marks_does_not_count(wrong: int):
    vectors, right = world(500)
    yes, no = drawn(right, 8, 2)
    no = no[:wrong]
    first = learned_vector(vectors[yes], vectors[no], vectors[:100])
    again = learned_vector(vectors[yes[::-1]], vectors[no[::-1]], vectors[:100][::-1])
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(first) == pytest.approx(1)


def test_first_marks_are_uncertain_later_ones_have_best_hits_as_wrong_marks_prevail():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 8))
    scores = np.linspace(1, -1, 400)

    def chosen(right: int, wrong: int) -> Array:
        marks = np.full(right, 0.5), np.full(wrong, -0.5)
        return next_marks(scores, *marks, vectors.__getitem__, 10)

    early = chosen(4, 4)
    assert np.abs(scores[early] - 0.5).max() < 0.2  # the fifty nearest to the right marks
    few_right, few_wrong = chosen(5, 45), chosen(45, 5)
    assert (scores[few_right] > 0.85).sum() == 9  # the thirty best
    assert (scores[few_wrong] > 0.85).sum() == 1
    for found in (early, few_right, few_wrong):
        assert len(set(found.tolist())) == 10
    assert len(chosen(45, 5)[:3]) == 3
    assert len(next_marks(scores[:4], [1.0], [], vectors.__getitem__, 10)) == 4
    assert len(next_marks([], [1.0], [], vectors.__getitem__, 10)) == 0


def test_marked_tiles_next_to_each_other_are_not_all_asked_for():
    """Of many equal uncertain tiles only one is suggested while others are left."""
    vectors = np.concatenate([np.tile([1.0, 0, 0, 0], (17, 1)), np.eye(4)[1:]])
    found = next_marks(np.zeros(20), [0.5], [-0.5], vectors.__getitem__, 4)
    assert sorted(vectors[found].argmax(1).tolist()) == [0, 1, 2, 3]


def test_probabilities_and_expectations_hold_where_marks_are_near_the_boundary():
    vectors, right = world(6000, seed=3)
    errors = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sample = vectors[rng.choice(3000, 500)]
        yes, no = drawn(right[:3000], 6, seed)
        marks = np.r_[yes, no]
        for _ in range(6):
            known = right[marks]
            query = learned_vector(vectors[marks[known]], vectors[marks[~known]], sample)
            rest = np.setdiff1d(np.arange(3000), marks)
            rest = rest[np.argsort(-(vectors[rest] @ query))]
            scores = vectors[marks] @ query
            more = next_marks(
                vectors[rest] @ query, scores[known], scores[~known],
                lambda at, rest=rest: vectors[rest[at]], 10,
            )  # fmt: skip
            marks = np.r_[marks, rest[more]]
        known = right[marks]
        groups = vectors[marks[known]], vectors[marks[~known]], sample
        calibration = calibrate(*groups)
        scores = vectors[3000:] @ learned_vector(*groups)
        for threshold in (0.3, 0.6):
            found = expect(calibration, scores, threshold)
            hit = calibration.probability(scores) >= threshold
            precision, recall = (
                right[3000:][hit].mean(),
                right[3000:][hit].sum() / right[3000:].sum(),
            )
            assert found.rows == hit.sum()
            assert found.right == pytest.approx(found.precision * found.rows)
            errors += [abs(found.precision - precision), abs(found.recall - recall)]
    assert np.mean(errors) < 0.12


def test_a_calibration_is_reproducible_and_rises_with_the_score():
    vectors, right = world(800)
    yes, no = drawn(right, 9, 5)
    groups = vectors[yes], vectors[no], vectors[:200]
    first, again = calibrate(*groups), calibrate(groups[0][::-1], groups[1][::-1], groups[2])
    assert first == again
    assert first.slope > 0
    assert first.probability(first.score_at(0.8)) == pytest.approx(0.8)
    turned = calibrate(vectors[no], vectors[no], vectors[:200])  # nothing tells them apart
    assert turned.slope > 0


def test_too_few_marks_give_no_probabilities():
    vectors, _ = world(50)
    with pytest.raises(ConfigError, match="2 right marks and 20 wrong marks give no probabilities"):
        calibrate(vectors[:2], vectors[2:22], vectors[22:])
    assert LEAST_MARKS == 10


def test_a_threshold_that_nothing_reaches_expects_nothing():
    found = expect(Calibration(slope=1.0, offset=-9.0), [0.5], 0.9)
    assert (found.rows, found.precision, found.recall) == (0, 0.0, 0.0)
    with pytest.raises(ConfigError, match=r"probability of 0\.9 or more; lower"):
        stratify([0.5], 0.9, 0.01)


def test_strata_have_every_row_once_and_a_larger_sample_has_the_smaller_one():
    probability = np.sort(np.random.default_rng(0).beta(0.2, 2, 5000))[::-1]
    probability = probability[probability >= 0.01]
    strata = stratify(probability, 0.5, 0.01)
    assert sum(one.rows for one in strata) == len(probability)
    assert strata[0].rows == (probability >= 0.5).sum()
    edges = np.cumsum([0, *(one.rows for one in strata)])
    for one, start, end in zip(strata, edges, edges[1:], strict=False):
        assert one.expected == pytest.approx(probability[start:end].mean())
        assert one.lowest <= probability[start:end].min()
    assert [one.lowest for one in strata][::3] == [0.5, 0.01]
    small, large = (draw(strata, count) for count in (40, 80))
    for positions, numbers in (small, large):
        assert len(set(positions.tolist())) == len(positions)
        np.testing.assert_array_equal(np.searchsorted(edges, positions, "right") - 1, numbers)
    assert set(small[0].tolist()) < set(large[0].tolist())
    assert np.bincount(large[1]).tolist() == [40, 13, 13, 13]
    assert len(set(large[1][:7].tolist())) == 4  # the first marks are of all strata
    few, _ = draw(stratify([0.9, 0.8, 0.02], 0.5, 0.01), 60)
    assert sorted(few.tolist()) == [0, 1, 2]


def test_intervals_of_a_random_sample_hold_the_truth_whatever_the_calibration_is_worth():
    rng = np.random.default_rng(0)
    said = np.sort(rng.beta(0.3, 1.2, 20_000))[::-1]
    said = said[said >= 0.01]
    strata, covered = stratify(said, 0.5, 0.01), []
    edges = np.cumsum([0, *(one.rows for one in strata)])
    for power in (0.5, 1.0, 2.0):  # too low, true and too high
        for _ in range(60):
            right = rng.random(len(said)) < said**power
            positions = np.concatenate(
                [
                    start + rng.choice(end - start, marks, replace=False)
                    for start, end, marks in zip(edges, edges[1:], (40, 13, 13, 13), strict=False)
                ]
            )
            numbers = np.searchsorted(edges, positions, "right") - 1
            kinds = [np.bincount(numbers[right[positions] == kind], minlength=4) for kind in (1, 0)]
            found = accuracies(strata, *(kind.tolist() for kind in kinds))[0]
            hit = right[: strata[0].rows]
            truth = hit.mean(), hit.sum() / right.sum()
            intervals = found.precision_interval, found.recall_interval
            covered.append([a <= t <= b for t, (a, b) in zip(truth, intervals, strict=True)])
    assert (np.mean(covered, axis=0) > 0.85).all()


def test_when_all_rows_have_a_mark_the_figures_are_exact():
    strata = stratify([0.9, 0.8, 0.4, 0.3], 0.5, 0.01)
    found = accuracies(strata, right=[1, 1, 0], wrong=[1, 0, 1])
    assert (found[0].precision, found[0].recall) == (0.5, 0.5)
    assert found[0].f1_interval == (0.5, 0.5)
    assert [one.rows for one in found] == [2, 3, 4]
