"""Partial gradients against one process with the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from encoders.gather import KeyQueue, cached_backward, gather_keys, global_loss
from encoders.gather_check import (
    CLASSES,
    DIMENSION,
    Case,
    gathered_steps,
    gradients_of,
    one_process_step,
    small_batch,
    small_encoder,
    small_loss,
)
from encoders.losses import LabelStatistics, build_loss, loss_names
from storage.errors import ConfigError

WORKERS = (2, 3, 4)
OPTIONS = {
    "macl": {
        "chunk_pairs": 20,
        "kappa": 2.0,
        "alpha": 0.5,
        "exactness": 0.5,
        "prototypes": 0.5,
        "temperature_start": 0.3,
    },
    "ifnd": {"clusters": 2},
}


def cached(model, loss, x_BF, y_BC, group):
    return cached_backward(
        lambda x: normalize(model(x)), x_BF.split(4), y_BC, loss, group=group, no_sync=model.no_sync
    )


CASES = {
    **{name: Case(name, OPTIONS.get(name, {})) for name in loss_names()},
    "macl cached": Case("macl", OPTIONS["macl"], cached),
    "macl, 2 heads": Case("macl", {"heads": 2, "exactness": 0.5}),
}


@pytest.fixture(scope="module")
def gathered():
    """Loss and gradients of every loss at 2, 3 and 4 workers, from real gloo processes."""
    return dict(zip(CASES, gathered_steps(list(CASES.values()), WORKERS), strict=True))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", CASES)
def test_gathered_gradient_is_that_of_one_process(gathered, name, workers):
    value, gradient = gathered[name][WORKERS.index(workers)]
    expected_value, expected = one_process_step(*CASES[name][:2], workers)
    assert max(g.abs().max() for g in expected) > 1e-3
    torch.testing.assert_close(value, expected_value, rtol=0, atol=1e-9)
    for got, want in zip(gradient, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_one_process_needs_no_process_group():
    x_GF, y_GC = small_batch(2)
    z = normalize(small_encoder()(x_GF))
    keys, labels, offset = gather_keys(z, y_GC)
    assert keys is z
    assert labels is y_GC
    assert offset == 0
    loss = small_loss("macl", {}, y_GC)
    assert global_loss(loss, z, y_GC) == loss(z, y_GC)


def test_cached_gradient_replays_dropout():
    x_GF, y_GC = small_batch(3)
    model = nn.Sequential(small_encoder(), nn.Dropout(0.5))
    loss = small_loss("supcon-any", {}, y_GC)
    chunks = x_GF.split(5)

    torch.manual_seed(5)
    z = torch.cat([model(chunk) for chunk in chunks])
    loss(normalize(z), y_GC).backward()
    expected = gradients_of(model)
    model.zero_grad()

    torch.manual_seed(5)
    # normalize() after dropout may meet a zero row: it stays zero.
    cached_backward(lambda x: normalize(model(x)), chunks, y_GC, loss)
    for got, want in zip(gradients_of(model), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_queue_keeps_the_newest_keys_without_gradient():
    queue = KeyQueue(5, DIMENSION, CLASSES)
    x_GF, y_GC = small_batch(1)
    first, second = x_GF[:3, :4].float(), x_GF[3:6, :4].float()
    y_GC[3:6] *= 0.3  # probabilities stay what they are
    queue.push(first, y_GC[:3])
    queue.push(second.requires_grad_(), y_GC[3:6])
    z, y = queue.extend(torch.zeros(1, DIMENSION), torch.zeros(1, CLASSES))
    assert not z.requires_grad
    torch.testing.assert_close(z, torch.cat([torch.zeros(1, 4), second.detach(), first[:2]]))
    assert torch.equal(y[1:], torch.cat([y_GC[3:6], y_GC[:2]]).float())
    copy = KeyQueue(5, DIMENSION, CLASSES)
    copy.load_state_dict(queue.state_dict())
    torch.testing.assert_close(copy.extend(z, y), queue.extend(z, y))


def test_queued_keys_take_part_in_the_next_loss():
    x_GF, y_GC = small_batch(2)
    z = normalize(small_encoder()(x_GF)).detach().float()
    y = y_GC.float()
    loss = build_loss("supcon-any", LabelStatistics.from_labels(y.numpy()))
    queue = KeyQueue(6, DIMENSION, CLASSES)
    global_loss(loss, z[:6], y[:6], queue=queue)
    value = global_loss(loss, z[6:], y[6:], queue=queue)
    expected = loss(z[6:], y[6:], keys=(torch.cat([z[6:], z[:6]]), torch.cat([y[6:], y[:6]])))
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, loss(z[6:], y[6:]))


def test_queue_without_rows_is_refused():
    with pytest.raises(ConfigError, match="at least one row"):
        KeyQueue(0, DIMENSION, CLASSES)
