"""Scores of retrieval by labels and by place, beside what chance gives."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from encoders.metrics import random_ranking_metrics, score_retrieval
from pipeline.analysis.evaluation import evaluate_labels, same_group_shares, same_place_recall
from pipeline.analysis.intervals import paired_difference
from storage.errors import ConfigError
from storage.parts import Parts


@pytest.fixture(scope="module")
def series():
    """Three scenes of the same 30 places and one scene elsewhere; embeddings say the place."""
    rng = np.random.default_rng(0)
    place = rng.normal(size=(30, 8))
    z = np.concatenate([place + 0.05 * rng.normal(size=place.shape) for _ in range(3)])
    z = np.concatenate([z, rng.normal(size=(20, 8))])
    keys = [f"grid/{i}/0" for i in range(30)] * 3 + [f"grid/{i}/9" for i in range(20)]
    scenes = np.repeat(["a", "b", "c", "d"], [30, 30, 30, 20])
    return z, keys, scenes


def test_a_tile_finds_its_place_in_the_other_scenes(series):
    result = same_place_recall(*series)
    assert result["queries"] == 90
    assert result["scenes"] == 4
    assert result["recall@1"] > 0.95
    # 2 of 80 candidates are right: one draw, and five draws without replacement.
    assert result["random recall@1"] == pytest.approx(2 / 80)
    assert result["random recall@5"] == pytest.approx(1 - math.comb(78, 5) / math.comb(80, 5))


def test_recall_of_embeddings_without_information_is_that_of_chance(series):
    _, keys, scenes = series
    z = np.random.default_rng(1).normal(size=(len(keys), 8))
    result = same_place_recall(z, keys, scenes, k=(1, 20))
    assert result["recall@20"] == pytest.approx(result["random recall@20"], abs=0.15)
    assert result["recall@1"] < 0.1


def test_tiles_of_the_own_scene_are_no_hits():
    # The nearest tile of each is its neighbour in the same scene.
    z = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]])
    result = same_place_recall(z, ["p", "q", "p", "q"], ["a", "a", "b", "b"], k=(1, 2, 5))
    assert result["recall@1"] == 0.5
    assert result["recall@2"] == result["recall@5"] == result["random recall@5"] == 1.0


def test_a_sample_of_queries_is_repeatable(series):
    sampled = same_place_recall(*series, most_queries=20, seed=3)
    assert sampled["queries"] == 20
    assert sampled == same_place_recall(*series, most_queries=20, seed=3)


def test_places_seen_once_leave_no_query():
    result = same_place_recall(np.eye(3), ["p", "q", "r"], ["a", "b", "b"])
    assert result["queries"] == 0
    assert math.isnan(result["recall@1"])


def test_lengths_that_differ_are_named():
    with pytest.raises(ConfigError, match="3 embeddings, 2 tile keys"):
        same_place_recall(np.eye(3), ["p", "q"], ["a", "b", "c"])


def test_labels_are_scored_beside_a_random_ranking():
    rng = np.random.default_rng(0)
    y = (rng.random((200, 4)) < [0.5, 0.3, 0.2, 0.0]).astype(np.uint8)
    z = y @ rng.normal(size=(4, 6)) + 0.1 * rng.normal(size=(200, 6))
    own = np.arange(50)
    result = evaluate_labels(
        z[:50], y[:50], z, y, ["field", "water", "road", "dock"], k=10, exclude_self=own
    )
    scores = score_retrieval(z[:50], y[:50], z, y, 10, exclude_self=own)
    assert result.metrics == scores.metrics
    assert result.random == random_ranking_metrics(y[:50], y, 10, exclude_self=own)
    assert result.metrics["macro mAP"] > result.random["macro mAP"] + 0.2
    assert list(result.label_ap) == ["field", "water", "road"]
    assert result.label_ap["water"] == scores.label_ap[1]
    assert (result.queries, result.items) == (scores.queries, 200)
    assert json.loads(json.dumps(asdict(result))) == asdict(result)


def test_class_names_must_fit_the_labels():
    with pytest.raises(ConfigError, match="2 class names for labels"):
        evaluate_labels(np.eye(3), np.eye(3), np.eye(3), np.eye(3), ["a", "b"])


def test_a_query_is_no_hit_of_itself():
    z = np.array([[1, 0], [1, 0.1], [0, 1]])
    groups = ["town", "sea", "town"]
    alone = same_group_shares(z, groups, z, groups, k=1, exclude_self=[0, 1, 2])
    assert alone.tolist() == [0, 0, 0]
    assert same_group_shares(z, groups, z, groups, k=5, exclude_self=[0, -1, 2]).tolist() == [
        0.5,
        pytest.approx(1 / 3),
        0.5,
    ]


def test_an_interval_of_a_difference_is_that_of_its_queries():
    """For one score of each query it is the interval of a mean: two deviations of it."""
    rng = np.random.default_rng(0)
    other = rng.normal(size=400)
    ours = other + rng.normal(0.1, 0.5, size=400)
    found = paired_difference(ours, other)
    assert found.mean == pytest.approx(np.mean(ours - other))
    half = 1.96 * np.std(ours - other) / 20
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=0.1)


def test_queries_that_depend_on_each_other_are_drawn_together():
    """Repeating each query makes nothing surer."""
    rng = np.random.default_rng(0)
    scores, place = rng.normal(size=50), np.arange(50)
    once = paired_difference(scores, np.zeros(50))
    again = paired_difference(
        scores.repeat(4), np.zeros(200), together_Q=rng.permutation(place).repeat(4)
    )
    assert (again.mean, again.low, again.high) == pytest.approx(
        (once.mean, once.low, once.high), rel=0.1
    )
    alone = paired_difference(scores.repeat(4), np.zeros(200))
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_a_difference_of_labels_is_the_mean_over_labels():
    ours = np.array([[1.0, np.nan], [0.5, np.nan], [np.nan, 0.25]])
    found = paired_difference(ours, np.zeros_like(ours))
    assert found.mean == pytest.approx((0.75 + 0.25) / 2)
    assert 0.25 <= found.low <= found.high <= 1


@pytest.mark.parametrize("blend", [0, 0.2, 0.5, 1])
def test_weighted_vectors_rank_as_blended_queries(blend):
    rng = np.random.default_rng(1)
    parts, vectors = Parts(appearance=3, labels=5), rng.normal(size=(20, 8))
    stored = parts.weighted(vectors, 0.5)
    weighted = parts.weighted(vectors, blend)
    scores = np.stack([stored @ parts.query(vector, blend) for vector in vectors])
    np.testing.assert_allclose(weighted @ weighted.T, scores, atol=1e-6)


def test_weighted_vectors_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(2, 7\), expected \(N, 8\)"):
        Parts(appearance=3, labels=5).weighted(np.ones((2, 7)), 0.5)
    with pytest.raises(ConfigError, match="blend is 2"):
        Parts(appearance=3, labels=5).weighted(np.ones((2, 8)), 2)
