"""Losses of labels that are probabilities, against loops over their expectations in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from encoders.losses import LabelStatistics, build_loss, loss_names
from storage.errors import ConfigError

ROWS, CLASSES, T = 9, 4, 0.2
REFUSING = {"supcon-all", "cbml", "triplet", "icl"}


@pytest.fixture(scope="module")
def world():
    """Embeddings, probabilities with an empty row and rows of 0 and 1, and the training labels."""
    rng = np.random.default_rng(0)
    z = normalize(torch.tensor(rng.normal(size=(ROWS, 3))))
    y = torch.tensor(rng.random((ROWS, CLASSES)) * (rng.random((ROWS, CLASSES)) < 0.6))
    y[:3] = (y[:3] > 0).double()
    y[3] = 0
    train = (rng.random((50, CLASSES)) < [0.6, 0.3, 0.1, 0.04]).astype(float)
    return z, y, LabelStatistics.from_labels(train), train


def contrast(z, weight, count, tau=lambda i, a: T):
    """``Σ_i Σ_p weight(i, p) (-log share)`` over ``Σ_i count(i, weights)``."""
    total, below = 0.0, 0.0
    for i in range(ROWS):
        others = [p for p in range(ROWS) if p != i]
        logit = {p: float(z[i] @ z[p]) / tau(i, p) for p in others}
        lse = math.log(sum(math.exp(v) for v in logit.values()))
        weights = {p: weight(i, p) for p in others}
        n = count(i, weights)
        scale = 1 / sum(weights.values()) if n is None and sum(weights.values()) else 1
        total += scale * sum(w * (lse - logit[p]) for p, w in weights.items())
        below += (sum(weights.values()) > 0) if n is None else n
    return total / below


def shared(y, i, p):
    return float((y[i] * y[p]).sum())


def jaccard(y, i, p):
    union = float((y[i] + y[p] - y[i] * y[p]).sum())
    return shared(y, i, p) / union if union else 0.0


def macl_sets(y, train, i, p):
    rarity = 0.4 * (len(train) / np.maximum(train.sum(0), 1)) ** 2.0
    above = math.prod((1 + r) ** float(a * b) for r, a, b in zip(rarity, y[i], y[p], strict=True))
    own = math.prod((1 + r) ** float(a) for r, a in zip(rarity, y[i], strict=True))
    return (above - 1) / (own - 1) if own > 1 else 0.0


def macl_pairs(y, train, i, p):
    counts = np.maximum(train.T @ train, 1)
    holds = lambda row, c, d: float(row[c] if c == d else row[c] * row[d])  # noqa: E731
    return sum(
        holds(y[i], c, d) * holds(y[p], c, d) * (len(train) / counts[c, d]) ** 2.0
        for c in range(CLASSES)
        for d in range(c, CLASSES)
    )


def macl_temperature(y, train, statistics, alpha=-0.1, gamma=-1.0):
    rarity = 1 - train.mean(0)

    def tau(i, a):
        size = float(y[i].sum())
        rho = float(y[i].numpy() @ rarity) / size - statistics.mean_rarity if size else 0.0
        return T * (1 + alpha * (jaccard(y, i, a) - statistics.mean_jaccard)) * (1 + gamma * rho)

    return tau


def per_label(y, i, p):
    """The weight of MulSupCon: the other holders of a label are counted without the anchor."""
    return sum(
        float(y[i, c] * y[p, c] / (y[:, c].sum() - y[i, c]))
        for c in range(CLASSES)
        if y[:, c].sum() - y[i, c] > 0
    )


def holders(y, i):
    return sum(float(y[i, c]) for c in range(CLASSES) if y[:, c].sum() - y[i, c] > 0)


def expected(name, world):
    z, y, statistics, train = world
    anchor = lambda i, weights: None  # noqa: E731
    tau = macl_temperature(y, train, statistics)
    size = lambda i: float(y[i].sum())  # noqa: E731
    some = lambda i: sum(min(1, shared(y, i, p)) for p in range(ROWS) if p != i)  # noqa: E731
    if name == "macl":
        return contrast(z, lambda i, p: macl_sets(y, train, i, p), anchor, tau)
    if name == "macl pairs":
        return contrast(z, lambda i, p: macl_pairs(y, train, i, p), anchor, tau)
    if name == "jaccard":
        return contrast(z, lambda i, p: jaccard(y, i, p), anchor)
    if name == "supcon-any":
        return contrast(z, lambda i, p: min(1, shared(y, i, p)), anchor)
    if name == "mulsupcon":
        return contrast(z, lambda i, p: per_label(y, i, p), lambda i, w: holders(y, i))
    if name == "slcl":
        return contrast(
            z,
            lambda i, p: per_label(y, i, p) + per_label(1 - y, i, p),
            lambda i, w: holders(y, i) + holders(1 - y, i),
        )
    assert name == "simdis"
    return contrast(
        z,
        lambda i, p: (
            shared(y, i, p) / size(i) / (1 + size(p) - shared(y, i, p)) / some(i) if some(i) else 0
        ),
        lambda i, w: float(some(i) > 0),
    )


@pytest.mark.parametrize(
    "name", ["macl", "macl pairs", "jaccard", "supcon-any", "mulsupcon", "slcl", "simdis"]
)
def test_probabilities_weigh_as_their_expectation(world, name):
    z, y, statistics, _ = world
    loss, _, reweighting = name.partition(" ")
    options = {"reweighting": reweighting} if reweighting else {}
    value = build_loss(loss, statistics, temperature=T, **options).double()(z, y)
    assert float(value) == pytest.approx(expected(name, world), rel=1e-10)


def test_small_probabilities_keep_their_digits_in_float32(world):
    z, y, statistics, _ = world
    loss = build_loss("macl", statistics)
    y = y * 1e-3
    assert float(loss(z.float(), y.float())) == pytest.approx(float(loss(z, y)), rel=1e-5)


@pytest.mark.parametrize("name", loss_names())
def test_a_loss_takes_probabilities_or_says_that_it_does_not(world, name):
    z, y, statistics, _ = world
    loss = build_loss(name, statistics, dimension=3).double()
    assert loss.takes_probabilities == (name not in REFUSING)
    if name in REFUSING:
        with pytest.raises(ConfigError, match=r"needs labels of 0 and 1.* take macl"):
            loss(z, y)
    else:
        assert loss(z, y).isfinite()
        assert not torch.isclose(loss(z, y), loss(z, (y >= 0.5).double()))
