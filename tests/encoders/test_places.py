"""Pairs of places: the gathered gradient against the plain formula, and draws by global row."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from encoders.gather import global_loss
from encoders.gather_check import (
    ROWS_PER_WORKER,
    Case,
    gathered_steps,
    gradients_of,
    small_batch,
    small_encoder,
    small_loss,
)
from encoders.places import PlaceRows, place_loss
from storage.errors import ConfigError

WEIGHT, HALF = 0.25, ROWS_PER_WORKER // 2


def both_losses(model, loss, x_BF, y_BC, group):
    """Labels and pairs one after the other, as the training loop does: rows i and i + 3 pair."""
    value = global_loss(loss, normalize(model(x_BF)), y_BC, group)
    value.backward()
    first, second = normalize(model(x_BF)).chunk(2)
    pairs = WEIGHT * place_loss(first, second, group=group)
    pairs.backward()
    return value.detach() + pairs.detach()


def plain_formula(z, other):
    """Return ½ [NCE(a → b) + NCE(b → a)] from exponentials, pair by pair."""
    total = torch.zeros((), dtype=z.dtype)
    for a, b in ((z, other), (other, z)):
        for i in range(len(z)):
            similar = torch.exp(a[i] @ b.T / 0.1)
            total = total - torch.log(similar[i] / similar.sum()) / len(z)
    return total / 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_gathered_gradient_is_that_of_the_formula(workers):
    x_GF, y_GC = small_batch(workers)
    model, loss = small_encoder(), small_loss("supcon-all", {}, y_GC)
    z_GD = normalize(model(x_GF))
    rows = np.arange(len(x_GF)).reshape(workers, 2, HALF)
    pairs = plain_formula(z_GD[rows[:, 0].ravel()], z_GD[rows[:, 1].ravel()])
    expected = loss(z_GD, y_GC) + WEIGHT * pairs
    expected.backward()
    gradient = gradients_of(model, loss)
    if workers == 1:
        model = small_encoder()
        value, found = both_losses(model, loss, x_GF, y_GC, None), gradients_of(model, loss)
    else:
        case = Case("supcon-all", {}, both_losses)
        [[(value, found)]] = gathered_steps([case], [workers])
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-9)
    assert max(part.abs().max() for part in gradient) > 1e-3
    for got, want in zip(found, gradient, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_workers_share_the_pairs_of_one_process():
    places = tuple(np.arange(3 * i, 3 * i + 2 + i % 2) for i in range(9))
    rows = PlaceRows(inputs=np.zeros((27, 1)), places=places, batch_size=6)
    whole = np.stack(rows.draw(3, 5), axis=1)
    assert len(set((whole // 3)[:, 0])) == 6  # different places
    assert (whole[:, 0] // 3 == whole[:, 1] // 3).all()
    assert (whole[:, 0] != whole[:, 1]).all()
    parts = [np.stack(rows.draw(3, 5, rank, 2), axis=1) for rank in range(2)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, np.stack(rows.draw(3, 6), axis=1))


def test_places_of_one_acquisition_are_refused():
    with pytest.raises(ConfigError, match="ingest more dates"):
        PlaceRows(inputs=np.zeros((3, 1)), places=(np.array([0, 1]), np.array([2])))


def test_a_batch_of_fewer_pairs_than_workers_is_refused():
    rows = PlaceRows(inputs=np.zeros((4, 1)), places=(np.array([0, 1]), np.array([2, 3])))
    with pytest.raises(ConfigError, match="none to each of 3 workers"):
        rows.draw(0, 0, 0, 3)
