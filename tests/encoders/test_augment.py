"""Augmentations: effect per sample, and reproducible draws."""

import numpy as np
import pytest
import torch

from encoders.augment import Augmentation, row_generators, turn_and_crop
from storage.errors import ConfigError

OFF = {"dihedral": False, "crop_scale": 1.0, "gain": 0.0, "offset": 0.0}


def _rows(count: int, seed: int = 0) -> list[torch.Generator]:
    return row_generators(seed, 0, range(count))


def _ones(batch: int = 64) -> torch.Tensor:
    return torch.ones(batch, 3, 16, 16)


def test_everything_off_changes_nothing():
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(Augmentation(**OFF)(x, _rows(4)), x)


def test_the_same_generator_gives_the_same_batch_and_leaves_the_input_alone():
    x = torch.randn(4, 3, 16, 16)
    original = x.clone()
    augment = Augmentation(noise=0.1, band_dropout=0.5, cutout=0.3)
    first = augment(x, _rows(4, seed=3))
    assert torch.equal(first, augment(x, _rows(4, seed=3)))
    assert not torch.equal(first, augment(x, _rows(4, seed=4)))
    assert torch.equal(x, original)


def test_a_tile_is_augmented_alike_beside_any_others():
    x = torch.randn(6, 3, 16, 16)
    augment = Augmentation(noise=0.1, band_dropout=0.5, cutout=0.3)
    whole = augment(x, row_generators(5, 7, range(6)))
    for rows in (range(2), range(2, 6)):
        torch.testing.assert_close(augment(x[rows], row_generators(5, 7, rows)), whole[rows])
    same = augment(x[:1].expand(2, 3, 16, 16), row_generators(5, 7, range(2)))
    assert not torch.equal(same[0], same[1])  # two views of a sample that a batch holds twice
    with pytest.raises(ConfigError, match="2 generators for 6 tiles"):
        augment(x, _rows(2))


def test_turns_are_exactly_the_eight_symmetries_of_the_square():
    square = torch.arange(25.0).reshape(5, 5)
    turned = turn_and_crop(square.expand(400, 1, 5, 5), True, 1.0, _rows(400))
    seen = {tuple(tile.flatten().tolist()) for tile in turned.round()}
    expected = set()
    for mirrored in (square, square.T):
        expected |= {tuple(torch.rot90(mirrored, k).flatten().tolist()) for k in range(4)}
    assert seen == expected
    torch.testing.assert_close(turned, turned.round())


def test_crops_are_magnified_parts_of_the_tile():
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    cropped = turn_and_crop(ramp, False, 0.5, _rows(200))
    spread = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]).numpy()
    assert 0.49 < spread.min() < 0.6
    assert 0.9 < spread.max() <= 1
    assert cropped.min() >= 0
    assert cropped.max() <= 1
    left = cropped[:, 0, 0, 0].numpy()
    assert left.min() < 0.05
    assert left.max() > 0.4


def test_jitter_stays_within_its_limits_and_differs_between_samples_and_bands():
    augment = Augmentation(**{**OFF, "gain": 0.2, "offset": 0.1})
    y = augment(_ones(), _rows(64))[:, :, 0, 0].numpy()
    assert np.abs(y - 1).max() <= 1.5 * (0.2 + 0.1)
    assert len(np.unique(y)) == y.size


def test_band_dropout_clears_one_band_of_some_samples():
    y = Augmentation(**OFF, band_dropout=0.5)(_ones(400), _rows(400))
    cleared = (y == 0).all(dim=(2, 3)).sum(1)
    assert set(cleared.tolist()) == {0, 1}
    assert 0.4 < cleared.float().mean() < 0.6
    single = torch.ones(50, 1, 4, 4)
    assert torch.equal(Augmentation(**OFF, band_dropout=0.9)(single, _rows(50)), single)


def test_cutout_clears_a_square_in_all_bands():
    y = Augmentation(**OFF, cutout=0.5)(_ones(200), _rows(200))
    hole = (y == 0).all(1)
    assert torch.equal(hole, (y == 0).any(1))
    area = hole.float().mean((1, 2))
    assert area.max() == pytest.approx(0.25, abs=0.05)
    assert area.min() > 0
    assert len({tuple(h.flatten().tolist()) for h in hole}) > 50


def test_noise_has_the_stated_deviation():
    y = Augmentation(**OFF, noise=0.3)(_ones(), _rows(64))
    assert float((y - 1).std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("setting", [{"crop_scale": 0.0}, {"gain": 1.0}, {"cutout": -0.1}])
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Augmentation(**setting)
