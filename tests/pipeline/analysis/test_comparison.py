"""Vectors of the same rows side by side: which labels count, which queries have a twin."""

import numpy as np
import pytest

from encoders.metrics import retrieval_metrics
from pipeline.analysis.comparison import FROZEN, RANDOM, LabelledRows, compare, near_duplicates

CLASSES = ("field", "road", "dam", "pier")


@pytest.fixture(scope="module")
def rows() -> LabelledRows:
    """Labels of 30 queries and 60 images; a dam is in one query, no query has a pier."""
    rng = np.random.default_rng(0)
    y_QC, y_NC = (
        (rng.random((count, 4)) < [0.6, 0.4, 0, 0]).astype(np.uint8) for count in (30, 60)
    )
    y_QC[:, 0] |= y_QC.sum(1) == 0
    y_QC[3, 2], y_NC[:8, 2] = 1, 1
    return LabelledRows(y_QC=y_QC, y_NC=y_NC, counts_C=y_NC.sum(0).astype(float))


def test_labels_that_a_few_queries_decide_are_left_out(rows):
    rng = np.random.default_rng(1)
    z_QD, z_ND = rng.normal(size=(30, 5)), rng.normal(size=(60, 5))
    found = compare({"encoder": (z_QD, z_ND)}, rows, CLASSES, 10, np.zeros(30, bool))
    assert found.left_out == ["dam"]
    common = retrieval_metrics(z_QD, rows.y_QC[:, :2], z_ND, rows.y_NC[:, :2], 10)
    means = found.means["encoder"]
    assert means["macro mAP"] == pytest.approx(common["macro mAP"])
    assert means["rare mAP"] == pytest.approx(common["rare mAP"])
    whole = retrieval_metrics(z_QD, rows.y_QC, z_ND, rows.y_NC, 10)
    for name in ("nDCG@10", "Jaccard@10", "surplus@10"):
        assert means[name] == pytest.approx(whole[name])
    assert "same scene@10" not in means


def test_without_a_label_to_score_the_means_over_labels_are_unknown(rows):
    few = LabelledRows(y_QC=rows.y_QC[:4], y_NC=rows.y_NC, counts_C=rows.counts_C)
    z_ND = np.random.default_rng(1).normal(size=(60, 5))
    found = compare({"encoder": (z_ND[:4], z_ND)}, few, CLASSES, 10, np.zeros(4, bool))
    means = found.means["encoder"]
    assert np.isnan([means["macro mAP"], means["rare mAP"]]).all()
    assert np.isfinite(means["nDCG@10"])


def test_an_encoder_is_compared_with_its_features_and_with_chance(rows):
    rng = np.random.default_rng(2)
    knows = np.eye(4)[:, :2]  # vectors that are the labels themselves
    pairs = {
        RANDOM: (rng.normal(size=(30, 5)), rng.normal(size=(60, 5))),
        FROZEN: (rng.normal(size=(30, 5)), rng.normal(size=(60, 5))),
        "encoder": (rows.y_QC @ knows + 0.01, rows.y_NC @ knows + 0.01),
    }
    is_near_Q = np.arange(30) < 2
    found = compare(pairs, rows, CLASSES, 10, is_near_Q)
    assert {name: list(gaps) for name, gaps in found.differences.items()} == {
        "encoder": [FROZEN, RANDOM]
    }
    gap = found.differences["encoder"][RANDOM]["nDCG@10"]
    assert 0 < gap.low < gap.mean < gap.high
    assert gap.mean == pytest.approx(
        found.means["encoder"]["nDCG@10"] - found.means[RANDOM]["nDCG@10"]
    )
    by_query = found.by_query["encoder"]
    assert found.means["encoder"]["nDCG@10, no twins"] == pytest.approx(
        by_query["nDCG@10"][2:].mean()
    )


def test_a_query_is_not_its_own_near_duplicate():
    x = np.eye(3)
    x[2] = [1, 0.1, 0]
    assert near_duplicates(x, x).all()
    assert near_duplicates(x, x, exclude_self=np.arange(3)).tolist() == [True, False, True]
