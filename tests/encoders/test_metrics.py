"""Retrieval metrics against loops over their definitions, torchmetrics and scikit-learn."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
)

from encoders.metrics import random_ranking_metrics, rare_labels, retrieval_metrics, score_retrieval
from encoders.ranking import nearest
from storage.errors import ConfigError

QUERIES, ITEMS, CLASSES, K = 12, 40, 5, 7


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    z_ND[7] = z_ND[3]
    y_NC = (rng.random((ITEMS, CLASSES)) < [0.6, 0.4, 0.2, 0.1, 0.0]).astype(np.uint8)
    y_NC[0] = 0
    y_NC[1, 3] = 1
    return z_ND[:QUERIES], y_NC[:QUERIES], z_ND, y_NC


def ranking(z_q, z_ND, excluded):
    """Positions by cosine, best first, equal ones in order of position."""
    unit = z_ND.astype(float) / np.linalg.norm(z_ND.astype(float), axis=1, keepdims=True)
    score = unit @ (z_q.astype(float) / np.linalg.norm(z_q.astype(float)))
    order = sorted(range(len(z_ND)), key=lambda i: (-round(score[i], 9), i))
    return [i for i in order if i != excluded]


def average_precision(relevant):
    hits = [sum(relevant[: i + 1]) / (i + 1) for i, r in enumerate(relevant) if r]
    return sum(hits) / len(hits) if hits else math.nan


def by_loops(z_QD, y_QC, z_ND, y_NC, k, own):
    """Every metric as the module's table states it, one query at a time."""
    found, per_label = {}, {c: [] for c in range(y_NC.shape[1])}
    orders = [ranking(z, z_ND, e) for z, e in zip(z_QD, own, strict=True)]
    relevant_counts = [
        sum(bool((y_QC[q] & y_NC[i]).any()) for i in order) for q, order in enumerate(orders)
    ]
    for q, order in enumerate(orders):
        labels = set(np.flatnonzero(y_QC[q]))
        sets = [set(np.flatnonzero(y_NC[i])) for i in order]
        for c in labels:
            per_label[c].append(average_precision([c in s for s in sets]))
        r = [len(labels & s) for s in sets]
        if not any(r):
            continue
        j = [len(labels & s) / len(labels | s) for s in sets]
        cosine = [
            n / math.sqrt(len(labels) * len(s)) if n else 0 for n, s in zip(r, sets, strict=True)
        ]
        rel, ng = [n > 0 for n in r], relevant_counts[q]
        acg = [sum(r[: i + 1]) / (i + 1) for i in range(k)]
        hits = sum(rel[:k])
        window = min(4 * ng, 2 * max(relevant_counts))
        places = [i if i <= window else 1.25 * window for i, n in enumerate(rel, 1) if n]
        best = 0.5 * (1 + ng)
        values = {
            "mAP": average_precision(rel),
            f"mAP@{k}": average_precision(rel[:k]) if hits else 0.0,
            f"P@{k}": hits / k,
            f"R@{k}": hits / ng,
            f"nDCG@{k}": ndcg([2**n - 1 for n in r], k),
            f"nDCG-J@{k}": ndcg(j, k),
            f"nDCG-cos@{k}": ndcg(cosine, k),
            f"ACG@{k}": acg[-1],
            f"WAP@{k}": sum(a for a, n in zip(acg, rel, strict=False) if n) / hits if hits else 0.0,
            "Jaccard@10": float(np.mean(j[:10])),
            "surplus@10": float(np.mean([len(s - labels) for s in sets[:10]])),
            "ANMRR": (np.mean(places) - best) / (1.25 * window - best),
            "mAP J>=0.6": average_precision([value >= 0.6 for value in j]),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    metrics = {name: np.nanmean(values) for name, values in found.items()}
    label_ap = np.array(
        [np.nanmean(v) if np.isfinite(v).any() else np.nan for v in per_label.values()]
    )
    return metrics, label_ap, len(found["mAP"])


def ndcg(gains, k):
    def dcg(values):
        return sum(g / math.log2(1 + i) for i, g in enumerate(values[:k], 1))

    return dcg(gains) / dcg(sorted(gains, reverse=True))


def test_a_query_that_is_no_item_sees_the_whole_of_a_small_database(world):
    """With k of the database's size or more, only the queries that are items have one less."""
    own = np.where(np.arange(QUERIES) % 2, -1, np.arange(QUERIES))
    mixed = score_retrieval(*world, ITEMS + 3, exclude_self=own).metrics
    z_QD, y_QC, z_ND, y_NC = world
    for parity in (0, 1):  # the mean over all is the mean of the two halves
        assert (own[parity::2] >= 0).all() == (parity == 0)
    halves = [
        score_retrieval(z_QD[p::2], y_QC[p::2], z_ND, y_NC, ITEMS + 3, exclude_self=own[p::2])
        for p in (0, 1)
    ]
    total = sum(half.queries for half in halves)
    for name in (f"P@{ITEMS + 3}", f"ACG@{ITEMS + 3}", f"nDCG@{ITEMS + 3}", "Jaccard@10", "mAP"):
        apart = sum(half.metrics[name] * half.queries for half in halves) / total
        assert mixed[name] == pytest.approx(apart, abs=1e-12), name


@pytest.mark.parametrize("exclude", [True, False])
def test_every_metric_follows_its_definition(world, exclude):
    z_QD, y_QC, z_ND, y_NC = world
    own = np.arange(QUERIES) if exclude else np.full(QUERIES, -1)
    scores = score_retrieval(*world, K, exclude_self=own)
    metrics, label_ap, queries = by_loops(z_QD, y_QC, z_ND, y_NC, K, own)
    assert scores.queries == queries == QUERIES - 2
    np.testing.assert_allclose(scores.label_ap, label_ap)
    assert np.isnan(label_ap[4])
    for name, value in metrics.items():
        assert scores.metrics[name] == pytest.approx(value), name
        assert np.nanmean(scores.by_query[name]) == pytest.approx(value), name
    assert np.isnan(scores.by_query["mAP"]).sum() == 2
    assert scores.metrics["macro mAP"] == pytest.approx(np.nanmean(label_ap))
    assert scores.metrics["rare mAP"] == pytest.approx(label_ap[3])
    assert set(scores.metrics) == {*metrics, "macro mAP", "rare mAP"}


def test_torchmetrics_and_scikit_learn_agree(world):
    z_QD, y_QC, z_ND, y_NC = world
    z_ND = z_ND + 0.01 * np.arange(ITEMS)[:, None]  # no ties: they order them otherwise
    # torchmetrics takes items with a score of 0 or less for irrelevant.
    score_QN = 10 + z_QD @ z_ND.T / np.linalg.norm(z_ND, axis=1)
    shared_QN = y_QC.astype(int) @ y_NC.T.astype(int)
    usable = [q for q in range(QUERIES) if shared_QN[q].any()]
    found = {"mAP": [], "P@7": [], "R@7": [], "nDCG@7": [], "sklearn nDCG": [], "sklearn AP": []}
    for q in usable:
        score, relevant = torch.tensor(score_QN[q]), torch.tensor(shared_QN[q] > 0)
        gain = 2 ** shared_QN[q] - 1
        found["mAP"].append(retrieval_average_precision(score, relevant))
        found["P@7"].append(retrieval_precision(score, relevant, top_k=7))
        found["R@7"].append(retrieval_recall(score, relevant, top_k=7))
        found["nDCG@7"].append(retrieval_normalized_dcg(score, torch.tensor(gain), top_k=7))
        found["sklearn nDCG"].append(ndcg_score([gain], [score_QN[q]], k=7, ignore_ties=True))
        found["sklearn AP"].append(average_precision_score(shared_QN[q] > 0, score_QN[q]))
    ours = retrieval_metrics(z_QD, y_QC, z_ND, y_NC, 7)
    for name, values in found.items():
        key = {"sklearn nDCG": "nDCG@7", "sklearn AP": "mAP"}.get(name, name)
        assert ours[key] == pytest.approx(np.mean(values)), name


def test_equal_scores_keep_the_order_of_the_database():
    z_ND = np.ones((5, 3))
    y_NC = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    metrics = retrieval_metrics(z_ND[:1], [[1, 0]], z_ND, y_NC, 2)
    assert metrics["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics["P@2"] == 0.5


@pytest.mark.parametrize("chunk_bytes", [1, 4000, 2**28])
@pytest.mark.parametrize("full", [True, False])
def test_cutting_the_work_changes_nothing(world, chunk_bytes, full):
    own = np.arange(QUERIES)
    whole = retrieval_metrics(*world, K, exclude_self=own)
    cut = retrieval_metrics(*world, K, exclude_self=own, full=full, chunk_bytes=chunk_bytes)
    assert "mAP" in cut or not full
    assert cut == pytest.approx({name: whole[name] for name in cut}, rel=1e-12)


def test_memory_stays_below_the_matrix_of_all_pairs():
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(20_000, 8)).astype(np.float32)
    y_NC = (rng.random((20_000, 6)) < 0.3).astype(np.uint8)
    tracemalloc.start()
    retrieval_metrics(z_ND[:500], y_NC[:500], z_ND, y_NC, 10, full=False, chunk_bytes=2**21)
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    retrieval_metrics(z_ND[:50], y_NC[:50], z_ND, y_NC, 10, chunk_bytes=2**21)
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 16 * 2**20 < 500 * 20_000 * 8
    assert whole < 16 * 2**20


def test_a_random_ranking_scores_what_chance_gives():
    rng = np.random.default_rng(0)
    y_NC = (rng.random((2000, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.uint8)
    own = np.arange(300)
    metrics = random_ranking_metrics(y_NC[:300], y_NC, 20, exclude_self=own)
    assert metrics == random_ranking_metrics(y_NC[:300], y_NC, 20, exclude_self=own)
    assert metrics != random_ranking_metrics(y_NC[:300], y_NC, 20, exclude_self=own, seed=1)
    share = [(y_NC[q] @ y_NC.T > 0).mean() for q in range(300) if y_NC[q].any()]
    assert metrics["P@20"] == pytest.approx(np.mean(share), abs=0.02)
    assert metrics["mAP"] == pytest.approx(np.mean(share), abs=0.02)
    assert metrics["macro mAP"] == pytest.approx(y_NC.mean(0).mean(), abs=0.02)


def test_rare_labels_are_the_rarest_third_that_can_be_scored():
    counts = np.array([50, 1, 30, 2, 9, 7, 8])
    label_ap = np.array([0.5, np.nan, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert rare_labels(counts, label_ap).tolist() == [3, 5]


def test_training_counts_decide_what_is_rare(world):
    counts = [1, 90, 80, 70, 60]
    scores = score_retrieval(*world, K, rare_counts=counts)
    assert scores.metrics["rare mAP"] == pytest.approx(scores.label_ap[0])


def test_queries_without_labels_leave_nan():
    metrics = retrieval_metrics(np.eye(2), np.zeros((2, 3)), np.eye(2), np.ones((2, 3)), 1)
    assert all(math.isnan(value) for value in metrics.values())


def test_a_small_database_is_used_whole():
    y = np.array([[1], [1], [0]])
    metrics = retrieval_metrics(np.eye(3), y, np.eye(3), y, 50, exclude_self=[0, 1, 2])
    # The other holder is one of the two other items.
    assert metrics["P@50"] == 0.5
    assert metrics["R@50"] == 1.0
    assert metrics["Jaccard@10"] == 0.5


def test_nearest_leaves_out_the_group_of_the_query():
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(50, 4))
    group_N = np.arange(50) % 3
    for chunk_bytes in (1, 2**28):
        scores, positions = nearest(
            z_ND[:9], z_ND, 40, groups=(group_N[:9], group_N), chunk_bytes=chunk_bytes
        )
        for q in range(9):
            want = [i for i in ranking(z_ND[q], z_ND, None) if group_N[i] != group_N[q]]
            assert positions[q][: len(want)].tolist() == want
            assert (positions[q][len(want) :] == -1).all()
            assert np.isneginf(scores[q][len(want) :]).all()
    unit = z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(scores[0, 0], unit[0] @ unit[positions[0, 0]], atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_QD": np.ones((12, 5))}, r"embeddings do not fit: \(12, 5\) and \(40, 6\)"),
        ({"y_QC": np.ones((11, 5))}, "12 queries and 40 items have labels for 11 and 40"),
        ({"y_NC": np.ones((40, 4))}, "labels do not fit"),
        ({"k": 0}, "expected k >= 1"),
        ({"exclude_self": [1]}, "exclude_self or rare_counts do not fit"),
        ({"z_ND": np.full((40, 6), np.nan)}, "embedding row 0 is not finite"),
    ],
)
def test_what_does_not_fit_is_named(world, change, message):
    arguments = dict(zip(("z_QD", "y_QC", "z_ND", "y_NC"), world, strict=True))
    with pytest.raises(ConfigError, match=message):
        retrieval_metrics(**(arguments | change))


def test_threads_change_nothing_about_a_long_ranking():
    rng = np.random.default_rng(5)
    z = rng.standard_normal((70_000, 4)).astype(np.float32)
    y = (rng.random((70_000, 5)) < 0.2).astype(np.uint8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(score_retrieval(z[:7], y[:7], z, y, exclude_self=np.arange(7)))
    finally:
        torch.set_num_threads(before)
    assert found[0].metrics == found[1].metrics
    np.testing.assert_array_equal(found[0].label_ap, found[1].label_ap)
