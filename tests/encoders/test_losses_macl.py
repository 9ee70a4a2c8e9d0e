"""MACL against loops over its docstring, its reductions to other losses, and each of its parts."""

import math
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from encoders.losses import LabelStatistics, build_loss, loss_options
from encoders.losses.core import Pairs
from storage.errors import ConfigError

ROWS, CLASSES = 10, 4
PLAIN = {"reweighting": "none", "alpha": 0.0, "gamma": 0.0, "kappa": 0.0}


def batch(seed=0):
    rng = np.random.default_rng(seed)
    z = normalize(torch.tensor(rng.normal(size=(ROWS, 3))))
    y = torch.tensor((rng.random((ROWS, CLASSES)) < 0.45).astype(np.float64))
    y[0] = 0
    return z, y


@pytest.fixture(scope="module")
def training():
    """Label table of a training set that is not the batch."""
    return (np.random.default_rng(7).random((50, CLASSES)) < [0.6, 0.3, 0.1, 0.02]).astype(float)


def by_loops(z, y, train, o, prototypes=None):
    """The docstring of Macl, one pair at a time."""
    rows, anchors = len(train), len(z)
    if prototypes is not None:
        z, y = torch.cat([z, prototypes]), torch.cat([y, torch.eye(CLASSES, dtype=y.dtype)])
    counts = np.maximum(train.T @ train, 1)
    rarity = 1 - np.diag(train.T @ train) / rows
    sets = [set(row.nonzero().flatten().tolist()) for row in y]
    train_sets = [set(np.flatnonzero(row)) for row in train]
    rho_bar = np.mean([np.mean([rarity[c] for c in s]) for s in train_sets if s])
    overlap = [
        len(a & b) / max(len(a | b), 1)
        for i, a in enumerate(train_sets)
        for k, b in enumerate(train_sets)
        if i != k
    ]
    above, below, terms = 0.0, 0.0, []
    for i, anchor in enumerate(sets[:anchors]):
        s = (z[i] @ z.T).tolist()
        rho = np.mean([rarity[c] for c in anchor]) - rho_bar if anchor else 0.0
        others = [a for a in range(len(z)) if a != i]
        jaccard = {a: len(anchor & sets[a]) / max(len(anchor | sets[a]), 1) for a in others}
        tau = {
            a: o["temperature"]
            * (1 + o["alpha"] * (jaccard[a] - np.mean(overlap)))
            * (1 + o["gamma"] * rho)
            for a in others
        }
        tau = {a: min(max(t, o["temperature_min"]), o["temperature_max"]) for a, t in tau.items()}
        negatives = [a for a in others if not anchor & sets[a]]
        hard = {a: math.exp(o["kappa"] * s[a]) for a in negatives}
        mean = sum(hard.values()) / max(len(hard), 1)
        presence = {a: hard[a] / mean if a in hard else 1.0 for a in others}
        log_sum = math.log(sum(presence[a] * math.exp(s[a] / tau[a]) for a in others))
        weights = {
            p: pair_weight(anchor, sets[p], counts, rows, o) for p in others if anchor & sets[p]
        }
        weights = {p: w * (o["prototypes"] if p >= anchors else 1) for p, w in weights.items()}
        if o["weighted"]:
            weights = {p: w * jaccard[p] for p, w in weights.items()}
        value = sum(w * (log_sum - s[p] / tau[p]) for p, w in weights.items())
        above, below = above + value, below + sum(weights.values())
        if weights:
            terms.append(value / sum(weights.values()))
    return above / below if o["reduction"] == "total" else np.mean(terms)


def pair_weight(anchor, other, counts, rows, o):
    shared = anchor & other
    rare = {c: o["discount"] * (rows / counts[c, c]) ** o["beta"] for c in anchor}
    if o["reweighting"] == "sets":
        return combinations_of(shared, rare) / combinations_of(anchor, rare)
    if o["reweighting"] == "none":
        return 1.0
    if o["reweighting"] == "labels":
        return sum((rows / counts[c, c]) ** o["beta"] for c in shared)
    if o["reweighting"] == "pairs":
        pairs = combinations_with_replacement(sorted(shared), 2)
        return sum((rows / counts[c, d]) ** o["beta"] for c, d in pairs)
    return np.mean([(rows / counts[c, d]) ** o["beta"] for c, d in product(anchor, other)])


def combinations_of(labels, rare):
    """Sum over all non-empty subsets of the product of their labels' rarities."""
    subsets = (t for size in range(1, len(labels) + 1) for t in combinations(labels, size))
    return sum(math.prod(rare[c] for c in subset) for subset in subsets)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"discount": 1.0, "beta": 0.0, "reduction": "total"},
        {"prototypes": 0.5, "kappa": 1.0, "weighted": True},
        {"reweighting": "pairs", "beta": 1.0, "prototypes": 2.0},
        {"beta": 0.5, "gamma": 1.0},
        {"reweighting": "labels", "alpha": 0.8},
        {"reweighting": "product", "reduction": "total"},
        {"kappa": 4.0, "weighted": True},
        {"alpha": -0.9, "gamma": -1.5, "temperature_min": 0.09, "temperature_max": 0.11},
    ],
)
def test_every_part_follows_its_formula(training, options):
    z, y = batch()
    loss = build_loss("macl", LabelStatistics.from_labels(training), dimension=3, **options)
    vectors = [normalize(p.detach().double()) for p in loss.parameters()]
    want = by_loops(z, y, training, loss_options("macl") | options, *vectors)
    assert loss(z, y).item() == pytest.approx(want, rel=1e-6)


def test_the_temperature_moves_from_its_start_as_training_goes_on(training):
    z, y = batch()
    statistics = LabelStatistics.from_labels(training)
    moving = build_loss("macl", statistics, temperature_start=0.3, temperature=0.1, exactness=0.5)
    for progress, temperature in ((0.0, 0.3), (0.25, 0.25), (1.0, 0.1)):
        moving.progress = progress
        fixed = build_loss("macl", statistics, temperature=temperature, exactness=0.5)
        torch.testing.assert_close(moving(z, y), fixed(z, y))


def test_a_label_that_the_batch_lacks_still_has_its_prototype(training):
    statistics = LabelStatistics.from_labels(training)
    z, y = normalize(torch.eye(3)), torch.eye(3, CLASSES)
    assert build_loss("macl", statistics)(z, y) == 0
    loss = build_loss("macl", statistics, prototypes=1.0, dimension=3)
    loss(z, y).backward()
    # Descending moves the prototype towards the only holder of its label, as far as it can turn.
    toward = -(loss.prototype_CD.grad[:3] * z).sum(1)
    assert (toward > 0).all()


def test_huge_label_tables_do_not_overflow():
    y = (torch.arange(200)[:, None] % torch.arange(2, 62) == 0).float()
    y[0] = 1
    z = normalize(torch.randn(200, 8)).requires_grad_()
    loss = build_loss("macl", LabelStatistics.from_labels(y[1:2].repeat(10_000, 1)), beta=3.0)
    loss(z, y).backward()
    assert loss(z, y).isfinite()
    assert z.grad.isfinite().all()


def test_a_large_beta_is_finite_or_refused(training):
    z, y = batch()
    statistics = LabelStatistics.from_labels(training)
    for beta in (*range(10, 60), 400):  # from 22 on weights are denormal, and later 0
        anchors = z.float().requires_grad_()
        value = build_loss("macl", statistics, beta=float(beta))(anchors, y.float())
        value.backward()
        assert value.isfinite(), beta
        assert anchors.grad.isfinite().all(), beta
    limit = 30 * math.log(10) / math.log(50 / 1)  # one of 50 rows holds the rarest pair of labels
    for reweighting in ("pairs", "labels", "product"):
        with pytest.raises(ConfigError, match=r"beta: expected [\d.]+ or less .* these labels"):
            build_loss("macl", statistics, reweighting=reweighting, beta=1.5 * limit)
    pairs = build_loss("macl", statistics, reweighting="pairs", beta=0.9 * limit)
    assert pairs(z.float(), y.float()).isfinite()


def test_without_its_parts_it_is_supcon(training):
    z, y = batch()
    statistics = LabelStatistics.from_labels(training)
    plain = build_loss("macl", statistics, temperature=0.2, beta=0.0, **PLAIN)
    supcon = build_loss("supcon-any", statistics, temperature=0.2)
    torch.testing.assert_close(plain(z, y), supcon(z, y))


def test_weighted_and_without_other_parts_it_is_the_jaccard_loss(training):
    z, y = batch()
    statistics = LabelStatistics.from_labels(training)
    weighted = build_loss("macl", statistics, temperature=0.1, weighted=True, **PLAIN)
    torch.testing.assert_close(weighted(z, y), build_loss("jaccard", statistics)(z, y))


def test_single_labels_at_beta_1_weigh_a_pair_by_inverse_frequency(training):
    z, y = batch()
    statistics = LabelStatistics.from_labels(y.numpy())
    ours = build_loss(
        "macl",
        statistics,
        temperature=0.1,
        **{**PLAIN, "reweighting": "labels", "reduction": "total"},
    )
    # 1/n_c instead of MulSupCon's 1/(n_c - 1): close, not equal, and closer with more samples.
    many_z, many_y = z.repeat(40, 1), y.repeat(40, 1)
    mulsupcon = build_loss("mulsupcon", statistics)
    near = abs(ours(many_z, many_y) / mulsupcon(many_z, many_y) - 1)
    assert near < 0.01
    assert near < abs(ours(z, y) / mulsupcon(z, y) - 1)


def test_exactness_adds_a_jaccard_power_term_and_softens_overlap(training):
    alpha, temperature = (loss_options("macl")[name] for name in ("alpha", "temperature"))
    z, y = batch()
    statistics = LabelStatistics.from_labels(training)
    plain = build_loss("macl", statistics, alpha=alpha + 0.2)(z, y)
    jaccard = build_loss("jaccard", statistics, temperature=temperature)(z, y)
    both = build_loss("macl", statistics, exactness=0.25, exactness_power=1.0)(z, y)
    torch.testing.assert_close(both, plain + 0.25 * jaccard)
    # A high power leaves only equal label sets; every sample has a twin in this batch.
    z, y = batch(1)[0], y[:5].repeat(2, 1)
    plain = build_loss("macl", statistics, alpha=alpha + 0.5)(z, y)
    sharp = build_loss("macl", statistics, exactness=1.0, exactness_power=200.0)(z, y)
    torch.testing.assert_close(
        sharp, plain + build_loss("supcon-all", statistics, temperature=temperature)(z, y)
    )


def test_rare_pairs_pull_harder_than_common_ones():
    # Anchor 0 shares {0} with 1 and {0, 1} with 2; pair (0, 1) is rare in training.
    train = np.array([[1, 0]] * 98 + [[1, 1]] * 2)
    y = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    z = normalize(torch.ones(3, 3) + 0.1 * torch.eye(3)).requires_grad_()
    loss = build_loss("macl", LabelStatistics.from_labels(train), gamma=0.0)
    loss(z[:1], y[:1], keys=(z, y)).backward()
    # Descending pulls key 2 towards the anchor and lets key 1 go.
    toward = -(z.grad @ z[0].detach())
    assert toward[2] > 0 > toward[1]


def test_hard_negatives_are_pushed_harder_and_partial_overlap_is_not():
    y = torch.tensor(
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0, 0, 1]]
    )
    z = normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0.9, 0.2], [0.9, 0.3], [-1.0, 0.1]]))

    def share(kappa):
        z_G = z.clone().requires_grad_()
        loss = build_loss("macl", LabelStatistics.from_labels(y.numpy()), gamma=0.0, kappa=kappa)
        loss(z[:1], y[:1], keys=(z_G, y)).backward()
        return z_G.grad.norm(dim=1)

    calm, keen = share(0.0), share(5.0)
    assert keen[3] > 1.2 * calm[3]
    assert keen[4] < calm[4]


def test_gamma_sharpens_or_softens_rare_anchors():
    train = np.array([[1, 0]] * 95 + [[0, 1]] * 5)
    statistics = LabelStatistics.from_labels(train)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    z = normalize(torch.eye(3))
    pairs = Pairs(z, y, z, y, 0)
    common, rare, empty = (
        build_loss("macl", statistics, temperature=0.1, alpha=0.0, gamma=-1.0)
        .temperatures(pairs)
        .flatten()
    )
    assert rare < 0.05 < 0.1 < common < 0.11
    assert empty == pytest.approx(0.1)
    common, rare, _ = (
        build_loss("macl", statistics, temperature=0.1, alpha=0.0, gamma=1.0)
        .temperatures(pairs)
        .flatten()
    )
    assert common < 0.1 < 0.18 < rare


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reweighting": "pair"}, "reweighting: expected one of"),
        ({"discount": 0.0}, "discount: expected more than 0"),
        ({"prototypes": -1.0}, "prototypes: expected 0 or more"),
        ({"prototypes": 1.0}, "prototypes: expected dimension=D"),
        ({"temperature_start": 0.0}, "temperature_start: expected more than 0"),
        ({"kappa": -1.0}, "kappa: expected 0 or more"),
        ({"exactness_power": 0.0}, "exactness_power: expected more than 0"),
        ({"temperature_min": 2.0}, "temperature_min, temperature_max"),
        ({"reduction": "mean"}, "reduction: expected 'total' or 'anchor'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build_loss("macl", LabelStatistics.from_labels(np.eye(3)), **options)
