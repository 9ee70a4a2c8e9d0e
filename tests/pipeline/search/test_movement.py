"""The mathematics of change: what all tiles share does not count, and outliers stay outliers."""

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.search.movement import (
    BEYOND_USUAL,
    SMALLEST_SPREAD,
    SMALLEST_SPREAD_DEGREES,
    centred_angle,
    gain,
    robust_scores,
)

VECTORS = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 12), st.just(5)), elements=st.floats(-1, 1, width=16)
)
_scores = partial(robust_scores, smallest_spread=SMALLEST_SPREAD)
VALUES = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-2, 2, width=16))


@given(VECTORS, VECTORS)
def test_a_movement_that_all_tiles_share_does_not_count(x, shift):
    moved = x + shift[0]
    angle = centred_angle(x, moved, x.mean(0), moved.mean(0))
    np.testing.assert_allclose(angle, 0, atol=1e-3)


@given(VECTORS, st.randoms(use_true_random=False))
def test_the_angle_is_that_of_the_definition_and_symmetric(x, random):
    y = x[random.sample(range(len(x)), len(x))]
    mean = x.mean(0)
    there, back = centred_angle(x, y, mean, mean), centred_angle(y, x, mean, mean)
    np.testing.assert_allclose(there, back, atol=1e-5)
    assert ((there >= 0) & (there <= 180)).all()
    for one, other, found in zip(x - mean, y - mean, there, strict=True):
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        if min(np.linalg.norm(one), np.linalg.norm(other)) > 1e-3:
            np.testing.assert_allclose(np.cos(np.radians(found)), one @ other / lengths, atol=1e-9)


@given(VECTORS, VECTORS, st.floats(0.1, 10))
def test_the_gain_is_a_difference_of_cosines_whatever_the_length_of_the_query(x, y, length):
    size = min(len(x), len(y))
    x, y, query = x[:size], y[:size], np.array([1.0, 2, 3, 4, 5])
    expected = [(b @ query - a @ query) / np.linalg.norm(query) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(gain(x, y, length * query), expected, atol=1e-9)
    np.testing.assert_allclose(gain(y, x, query), -gain(x, y, query))


@given(VALUES, st.floats(0.5, 4), st.floats(-3, 3))
def test_scores_keep_order_and_know_neither_unit_nor_origin(values, unit, origin):
    scores, median, spread = _scores(values)
    assert (np.diff(scores[np.argsort(values, kind="stable")]) >= 0).all()
    assert np.median(scores) == 0
    assert median == np.median(values)
    if spread > SMALLEST_SPREAD:
        np.testing.assert_allclose(
            _scores(values * (1 + unit) + origin)[0],
            scores,
            rtol=1e-6,
            atol=1e-6,
        )


def test_few_changes_move_the_scores_of_the_others_little_and_stand_out():
    rng = np.random.default_rng(0)
    usual = rng.normal(0.3, 0.05, 500)
    changed = np.r_[usual, np.full(100, 1.2)]
    scores, _, _ = _scores(changed)
    assert (scores[500:] > BEYOND_USUAL).all()
    assert np.abs(scores[:500] - _scores(usual)[0]).max() < 1
    # Of 10,000 normal values the rule calls some two outliers above.
    assert (_scores(rng.normal(0.3, 0.05, 10_000))[0] > BEYOND_USUAL).sum() < 12


def test_what_is_the_same_up_to_rounding_has_no_outlier():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 64))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    again = (x + 1e-4 * rng.normal(size=x.shape)).astype(np.float16).astype(np.float64)
    angles = centred_angle(x, again, x.mean(0), again.mean(0))
    scores, _, spread = robust_scores(angles, SMALLEST_SPREAD_DEGREES)
    assert spread == SMALLEST_SPREAD_DEGREES
    assert np.abs(scores).max() < 0.1
