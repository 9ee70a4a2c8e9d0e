"""Every loss against its formula written out in loops, and the behaviour all of them share."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch.nn.functional import normalize

from encoders.losses import LabelStatistics, build_loss, loss_names, loss_options
from storage.errors import ConfigError

DIMENSION, CLASSES = 4, 5
NAMES = loss_names()


def batch(rows=9, seed=0, dtype=torch.float64):
    """Unit embeddings and labels with an empty row, a duplicate and a label with one holder."""
    rng = np.random.default_rng(seed)
    z = torch.tensor(rng.normal(size=(rows, DIMENSION)), dtype=dtype)
    y = torch.tensor((rng.random((rows, CLASSES)) < 0.4).astype(np.float64), dtype=dtype)
    y[:, -1] = 0
    if rows > 4:
        y[1, 0] = y[2, 0] = y[3, 1] = y[4, -1] = 1
        y[0] = 0
        z[2], y[2] = z[1], y[1]
    return normalize(z), y


def make(name, y, **options):
    torch.manual_seed(3)
    statistics = LabelStatistics.from_labels(y.numpy())
    return build_loss(name, statistics, dimension=DIMENSION, **options).to(y.dtype)


def label_sets(y):
    return [set(row.nonzero().flatten().tolist()) for row in y]


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 0.0


def log_share(z, i, p, temperature):
    """``log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``."""
    s = (z @ z.T / temperature).tolist()
    return s[i][p] - math.log(sum(math.exp(s[i][a]) for a in range(len(z)) if a != i))


def mean_over_anchors(z, weight, temperature):
    """Mean over anchors of ``-Σ_p weight(i, p) log share``; a weight of None is no positive."""
    rows = range(len(z))
    values = []
    for i in rows:
        weights = {p: weight(i, p) for p in rows if p != i and weight(i, p) is not None}
        if weights:
            values.append(-sum(w * log_share(z, i, p, temperature) for p, w in weights.items()))
    return sum(values) / len(values)


def expect(name, z, y, want, **options):
    assert make(name, y, **options)(z, y).item() == pytest.approx(want, rel=1e-9)


# ---------------------------------------------------------------- values, one loss after the other


def test_two_samples_by_hand():
    # s = 0.6, τ = 0.5: the only key of each anchor is its positive, so the share is 1.
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    loss = build_loss("supcon-any", LabelStatistics.from_labels(y.numpy()), temperature=0.5)
    assert loss(z, y).item() == pytest.approx(0.0)
    # A third sample without a common label adds exp(0/τ) and exp(-.8/τ) to the denominators.
    z = torch.cat([z, torch.tensor([[0.0, -1.0]], dtype=torch.float64)])
    y = torch.cat([y, torch.tensor([[0.0, 0.0]], dtype=torch.float64)])
    first = math.log(1 + math.exp(0 / 0.5 - 0.6 / 0.5))
    second = math.log(1 + math.exp(-0.8 / 0.5 - 0.6 / 0.5))
    assert loss(z, y).item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("kind", ["any", "all"])
def test_supcon(kind):
    z, y = batch(12)
    y[5] = y[1]
    sets = label_sets(y)

    def positive(i, p):
        return bool(sets[i] & sets[p]) if kind == "any" else bool(sets[i]) and sets[i] == sets[p]

    def weight(i, p):
        count = sum(positive(i, a) for a in range(len(z)) if a != i)
        return 1 / count if positive(i, p) else None

    expect(f"supcon-{kind}", z, y, mean_over_anchors(z, weight, 0.1))


@pytest.mark.parametrize("kind", ["any", "all"])
def test_supcon_of_single_labels_is_that_of_pytorch_metric_learning(kind):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(32, 8))).requires_grad_()
    classes = torch.tensor(rng.integers(0, 6, 32))
    y = torch.nn.functional.one_hot(classes).double()
    ours = make(f"supcon-{kind}", y, temperature=0.2)(normalize(x), y)
    theirs = SupConLoss(temperature=0.2)(x, classes)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


def test_simdis_weights_of_the_five_relations():
    anchor = [1, 1, 1, 0, 0]
    others = {
        "disjoint": ([0, 0, 0, 1, 1], None),
        "equal": ([1, 1, 1, 0, 0], 1.0),
        "partial": ([1, 0, 0, 1, 1], 1 / 9),
        "subset": ([1, 1, 0, 0, 0], 2 / 3),
        "superset": ([1, 1, 1, 1, 0], 1 / 2),
    }
    z = normalize(torch.tensor(np.random.default_rng(0).normal(size=(6, 4))))
    y = torch.tensor([anchor, *(labels for labels, _ in others.values())]).double()
    loss = make("simdis", y)
    # The anchor alone, against all: its four positives share the mean.
    keys = (z, y)
    want = -sum(
        w / 4 * log_share(z, 0, p, 0.07)
        for p, (_, w) in enumerate(others.values(), 1)
        if w is not None
    )
    assert loss(z[:1], y[:1], keys=keys).item() == pytest.approx(want)


def test_simdis_of_single_labels_is_supcon():
    z, _ = batch(20)
    y = torch.nn.functional.one_hot(torch.arange(20) % 5).double()
    want = make("supcon-any", y, temperature=0.07)(z, y)
    torch.testing.assert_close(make("simdis", y)(z, y), want)


def test_mulsupcon():
    z, y = batch(12)
    sets = label_sets(y)
    total, count = 0.0, 0
    for i, labels in enumerate(sets):
        for c in labels:
            holders = [p for p in range(len(z)) if p != i and c in sets[p]]
            if holders:
                count += 1
                total -= sum(log_share(z, i, p, 0.1) for p in holders) / len(holders)
    expect("mulsupcon", z, y, total / count)


def test_jaccard():
    z, y = batch(12)
    sets = label_sets(y)

    def weight(i, p):
        total = sum(jaccard(sets[i], sets[a]) for a in range(len(z)) if a != i)
        return jaccard(sets[i], sets[p]) / total if total else None

    expect("jaccard", z, y, mean_over_anchors(z, weight, 0.1))


def test_jspcl_contrasts_probabilities():
    z, y = batch(12)
    loss = make("jspcl", y, share=0.25)
    logits = loss.classifier(z)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    contrast = make("jaccard", y)(normalize(logits.sigmoid()), y)
    torch.testing.assert_close(loss(z, y), 0.75 * entropy + 0.25 * contrast)


def test_slcl():
    z, y = batch(8)
    total, count = 0.0, 0
    for i in range(len(z)):
        for c in range(CLASSES):
            agreeing = [p for p in range(len(z)) if p != i and y[p, c] == y[i, c]]
            if agreeing:
                count += 1
                total -= sum(log_share(z, i, p, 0.1) for p in agreeing) / len(agreeing)
    expect("slcl", z, y, total / count)


def test_icl():
    z, y = batch(6)
    loss = make("icl", y)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(loss.classifier(z), y)
    values = []
    for i in range(len(z)):
        tokens = normalize(z[i] * loss.e_CD)
        for c in range(CLASSES):
            alike = [k for k in range(CLASSES) if k != c and y[i, k] == y[i, c]]
            if alike:
                shares = [log_share(tokens, c, k, loss.temperature) for k in alike]
                values.append(-sum(shares) / len(shares))
    want = 0.5 * entropy.item() + 0.5 * sum(values) / len(values)
    assert loss(z, y).item() == pytest.approx(want)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_msc(alpha):
    z, y = batch(8)
    loss = make("msc", y, alpha=alpha, beta=0.3)
    sets = label_sets(y)
    near = (z @ z.T / 0.1).tolist()
    proto = (z @ normalize(loss.prototype_CD).T / 0.1).tolist()
    values = []
    for i, labels in enumerate(sets):
        if not labels:
            continue
        below = math.log(
            0.3 * sum(math.exp(near[i][k]) for k in range(len(z)) if k != i)
            + sum(map(math.exp, proto[i]))
        )
        value = 0.0
        for c in labels:
            m = {k: alpha / len(labels | sets[k]) for k in range(len(z)) if k != i and c in sets[k]}
            n = sum(m.values()) + 1
            value -= sum(w / n * (near[i][k] - below) for k, w in m.items())
            value -= (proto[i][c] - below) / n
        values.append(value / len(labels))
    assert loss(z, y).item() == pytest.approx(sum(values) / len(values))


def test_probmcl():
    z, y = batch(12)
    y[5], y[6] = torch.tensor([1, 1, 1, 0, 0]), torch.tensor([1, 1, 0, 0, 0])
    sets = label_sets(y)

    def weight(i, p):
        overlaps = [jaccard(sets[i], sets[a]) for a in range(len(z)) if a != i]
        positives = sum(overlap >= 2 / 3 for overlap in overlaps)
        overlap = jaccard(sets[i], sets[p])
        return overlap / positives if overlap >= 2 / 3 else None

    expect("probmcl", z, y, mean_over_anchors(z, weight, 0.1), threshold=2 / 3)


def test_ifnd_leaves_near_duplicates_without_common_labels_out_of_the_denominator():
    # Two tight clusters; in each, two labels that never meet.
    centres = torch.eye(DIMENSION, dtype=torch.float64)[:2].repeat_interleave(4, 0)
    noise = torch.tensor(np.random.default_rng(0).normal(size=(8, DIMENSION)))
    z = normalize(centres + 0.01 * noise)
    y = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2, 0, 0]), CLASSES).double()
    loss = make("ifnd", y, clusters=2, share=1.0)
    s = (z @ z.T / 0.1).tolist()
    cluster, label = [0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 0, 0]
    values = []
    for i in range(8):
        keys = [
            a for a in range(8) if a != i and (label[a] == label[i] or cluster[a] != cluster[i])
        ]
        below = math.log(sum(math.exp(s[i][a]) for a in keys))
        positives = [p for p in range(8) if p != i and label[p] == label[i]]
        values.append(sum(below - s[i][p] for p in positives) / len(positives))
    assert loss(z, y).item() == pytest.approx(sum(values) / 8)
    loss.progress = 0.0
    torch.testing.assert_close(loss(z, y), make("supcon-any", y)(z, y))


def test_cbml():
    z, y = batch(10, seed=4)
    loss = make("cbml", y, margin=0.3)
    sets, s = label_sets(y), (z @ z.T).tolist()
    values = []
    for i in range(len(z)):
        positives = [s[i][p] for p in range(len(z)) if p != i and sets[i] & sets[p]]
        negatives = [s[i][n] for n in range(len(z)) if n != i and not sets[i] & sets[n]]
        if not positives or not negatives:
            continue
        hard_p = [v for v in positives if v - 0.3 < max(negatives)]
        hard_n = [v for v in negatives if v + 0.3 > min(positives)]
        values.append(0.0)
        if hard_p and hard_n:
            centre = (np.mean(positives) + np.mean(negatives)) / 2
            values[-1] = (
                math.log(1 + sum(math.exp((0.5 - v) / 0.5) for v in hard_p))
                + math.log(1 + sum(math.exp((v - 0.5) / 0.05) for v in hard_n))
                + 0.5 * np.mean([(v - centre) ** 2 for v in negatives])
            )
    assert len(values) > 3
    assert loss(z, y).item() == pytest.approx(np.mean(values))


def test_grn():
    z, y = batch(8)
    s = (z @ z.T / 0.1).tolist()
    values = []
    for i in range(len(z)):
        keys = [a for a in range(len(z)) if a != i]
        agree = {a: (y[i] == y[a]).double().mean().item() for a in keys}
        above = sum(agree[a] * math.exp(s[i][a]) for a in keys)
        values.append(-math.log(above / sum(math.exp(s[i][a]) for a in keys)))
    expect("grn", z, y, np.mean(values))


def test_triplet_takes_the_hardest_pair():
    z, y = batch(10)
    sets, distance = label_sets(y), torch.cdist(z, z).tolist()
    values = []
    for i in range(len(z)):
        positives = [distance[i][p] for p in range(len(z)) if p != i and sets[i] & sets[p]]
        negatives = [distance[i][n] for n in range(len(z)) if n != i and not sets[i] & sets[n]]
        if positives and negatives:
            values.append(max(0.0, max(positives) - min(negatives) + 0.2))
    assert make("triplet", y)(z, y).item() == pytest.approx(np.mean(values), abs=1e-5)


def test_bce():
    z, y = batch(10)
    loss = make("bce", y)
    want = torch.nn.functional.binary_cross_entropy_with_logits(loss.classifier(z), y)
    torch.testing.assert_close(loss(z, y), want)


# ------------------------------------------------------------------------- shared by all losses


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(name):
    z, y = batch(9)
    if name == "triplet":  # has a kink where two negatives are equally hard
        z, y = batch(4)
    loss = make(name, y)
    z.requires_grad_()
    assert loss(z, y) > 0
    assert torch.autograd.gradcheck(lambda z: loss(normalize(z), y), z, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_anchors_of_two_halves_add_up_to_the_whole(name):
    z, y = batch(10)
    loss = make(name, y)
    whole = loss.sums(z, y)
    parts = [loss.sums(z[a:b], y[a:b], keys=(z, y), offset=a) for a, b in ((0, 3), (3, 10))]
    for field in ("numerator_T", "denominator_T"):
        added = sum(getattr(part, field) for part in parts)
        torch.testing.assert_close(added, getattr(whole, field))


@pytest.mark.parametrize("name", [n for n in NAMES if "chunk_pairs" in loss_options(n)])
def test_chunked_rows_have_the_value_and_gradient_of_all_rows(name):
    z, y = batch(11)
    z.requires_grad_()
    results = []
    for chunk_pairs in (2**24, 30, 1):
        loss = make(name, y, chunk_pairs=chunk_pairs)
        value = loss(z, y)
        results.append([value, *torch.autograd.grad(value, [z, *loss.parameters()])])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["macl", "supcon-any"])
def test_chunked_rows_keep_little_for_the_backward_pass(name):
    z, y = batch(256)
    z.requires_grad_()

    def saved(chunk_pairs):
        numbers = []
        loss = make(name, y, chunk_pairs=chunk_pairs)

        def pack(tensor):
            numbers.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(z, y)
        return sum(numbers)

    assert saved(16 * 256) < 256 * 256 / 2 < saved(256 * 256)


CASES = {
    "no labels": lambda z, y: (z, y * 0),
    "no positives": lambda z, y: (z[:CLASSES], torch.eye(CLASSES)),
    "all alike": lambda z, y: (z, torch.ones_like(y)),
    "one sample": lambda z, y: (z[:1], torch.ones_like(y[:1])),
    "duplicates": lambda z, y: (z[:1].repeat(6, 1), y[:6]),
    "opposites": lambda z, y: (torch.cat([z[:3], -z[:3]]), y[:6]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_odd_batches_give_finite_values_and_gradients(name, dtype):
    for case, change in CASES.items():
        z, y = change(*batch(9, dtype=torch.float32))
        loss = make(name, y)
        z = z.to(dtype).clone().requires_grad_()
        value = loss(z, y)
        value.backward()
        assert value.dtype == torch.float32, case
        assert torch.isfinite(value), case
        assert torch.isfinite(z.grad).all(), case
        parameters = [p.grad for p in loss.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in parameters), case


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_no_number_is_not_hidden(name):
    z, y = batch()
    z[1] = torch.nan
    assert not make(name, y)(z, y).isfinite()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"bce", "jspcl", "icl", "msc", "slcl", "grn"}))
def test_a_batch_without_positives_is_0_without_gradient(name):
    z, _ = batch(CLASSES)
    y = torch.eye(CLASSES, dtype=torch.float64)
    z.requires_grad_()
    value = make(name, y)(z, y)
    value.backward()
    assert value.item() == 0
    assert (z.grad == 0).all()


def test_unlabelled_rows_change_the_mean_only_as_negatives():
    z, y = batch(9)
    y[8] = 0
    loss = make("supcon-any", y)
    below = torch.tensor([float((z[i] @ z[8] / 0.1).exp()) for i in range(9)])
    assert loss.sums(z, y).denominator_T == loss.sums(z[:8], y[:8]).denominator_T
    assert loss(z, y) > loss(z[:8], y[:8])
    assert (below > 0).all()


def test_autocast_computes_in_float32():
    z, y = batch(9, dtype=torch.float32)
    loss = make("macl", y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z, y)
    torch.testing.assert_close(value, loss(z, y))


# -------------------------------------------------------------------------------- the registry


def test_parameters_of_a_loss_follow_the_seed():
    y = batch()[1]
    first, again, other = (make("msc", y, initial_seed=seed).prototype_CD for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unknown_names_and_options_are_named():
    statistics = LabelStatistics.from_labels(np.eye(3))
    with pytest.raises(ConfigError, match="did you mean 'supcon-any'"):
        build_loss("supcon_any", statistics)
    with pytest.raises(ConfigError, match=r"no option 'temp'; it has temperature, chunk_pairs"):
        build_loss("jaccard", statistics, temp=0.1)
    with pytest.raises(ConfigError, match=r"temperature: expected more than 0, got -0.1"):
        build_loss("jaccard", statistics, temperature=-0.1)
    with pytest.raises(ConfigError, match="pass dimension=D"):
        build_loss("msc", statistics)


def test_misfitting_shapes_are_named():
    z, y = batch(6)
    with pytest.raises(ConfigError, match=r"offset 4"):
        make("macl", y)(z[:3], y[:3], keys=(z, y), offset=4)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_default_that_builds(name):
    y = batch()[1]
    assert (
        make(name, y, **loss_options(name)).state_dict().keys() == make(name, y).state_dict().keys()
    )


# ------------------------------------------------------------------------------ label statistics


def test_statistics_count_labels_and_pairs():
    y = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    statistics = LabelStatistics.from_labels(y)
    assert statistics.class_counts == (3, 2, 0)
    assert statistics.pair_counts == ((3, 2, 0), (2, 2, 0), (0, 0, 0))
    # rarities .25, .5: rows .375, .25, .375; Jaccard of the six pairs: 1/2, 0, 1, 0, 1/2, 0.
    assert statistics.mean_rarity == pytest.approx((0.375 + 0.25 + 0.375) / 3)
    assert statistics.mean_jaccard == pytest.approx(2 / 6)


def test_statistics_of_many_rows_sample_the_mean_overlap():
    y = np.random.default_rng(0).random((20_000, 6)) < 0.3
    exact = LabelStatistics.from_labels(y[:4096]).mean_jaccard
    assert LabelStatistics.from_labels(y).mean_jaccard == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("labels", [np.zeros((0, 3)), np.zeros(3), np.full((2, 2), 0.5)])
def test_statistics_refuse_what_is_no_label_table(labels):
    with pytest.raises(ConfigError, match="labels: expected"):
        LabelStatistics.from_labels(labels)
