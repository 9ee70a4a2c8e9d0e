"""Heads side by side: their vectors, and a loss for each."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.losses import LabelStatistics, build_loss
from encoders.projection import Ensemble, build_head, mlp_options
from encoders.spec import EncoderSpec
from pipeline.training.spec import TrainingJob, TrainingSpec
from storage.errors import ConfigError
from storage.location import Location

SPEC = EncoderSpec(
    backbone="tiny-cnn",
    bands=("red", "green", "blue"),
    band_mean=(120.0, 120.0, 120.0),
    band_std=(60.0, 60.0, 60.0),
    tile_px=32,
    dimension=16,
    head=mlp_options(8, heads=4, dropout=0.5),
)


def batch(rows: int = 8, dimension: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = np.random.default_rng(0)
    labels = (draws.random((rows, 3)) < 0.5).astype(np.float64)
    return normalize(torch.tensor(draws.normal(size=(rows, dimension)))), torch.tensor(labels)


@pytest.mark.parametrize("name", ["macl", "msc"])
def test_the_loss_is_the_mean_of_the_losses_of_the_heads(name: str):
    z, y = batch()
    # The vectors of an ensemble: each head of length 1 / sqrt(2).
    z = torch.cat([normalize(part) for part in z.chunk(2, 1)], 1) / 2**0.5
    statistics = LabelStatistics.from_labels(y.numpy())
    both = build_loss(name, statistics, dimension=6, heads=2, initial_seed=5).double()
    single = [
        build_loss(name, statistics, dimension=3, initial_seed=seed).double() for seed in (5, 6)
    ]
    heads = [part * 2**0.5 for part in z.chunk(2, 1)]
    each = [loss(part, y) for loss, part in zip(single, heads, strict=True)]
    assert both(z, y).item() == pytest.approx(sum(each).item() / 2, rel=1e-12)
    keys = both(z[2:5], y[2:5], keys=(z, y), offset=2)
    parts = [
        loss(part[2:5], y[2:5], keys=(part, y), offset=2)
        for loss, part in zip(single, heads, strict=True)
    ]
    assert keys.item() == pytest.approx(sum(parts).item() / 2, rel=1e-12)


def test_the_cosine_of_an_ensemble_is_the_mean_of_its_heads(tmp_path):
    save_bundle(new_encoder(SPEC), str(tmp_path))
    encoder = load_encoder(str(tmp_path))
    tiles = np.random.default_rng(1).integers(0, 255, (5, 3, 32, 32)).astype(np.uint8)
    vectors = encoder(tiles)
    features = torch.from_numpy(encoder.features(tiles))
    assert isinstance(encoder.head, Ensemble)
    with torch.no_grad():
        units = [normalize(head(features)).numpy() for head in encoder.head.heads]
    expected = np.mean([unit @ unit.T for unit in units], axis=0)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


def test_each_head_sees_other_features_in_training():
    head = build_head(64, 4, mlp_options(8, heads=2, dropout=0.5))
    head.heads[1].load_state_dict(head.heads[0].state_dict())
    first, second = head(torch.ones(3, 64)).chunk(2, 1)
    assert not torch.allclose(first, second)
    first, second = head.eval()(torch.ones(3, 64)).chunk(2, 1)
    assert torch.equal(first, second)


def test_heads_that_cannot_share_the_dimension_are_refused():
    for build in (lambda: build_head(4, 7, mlp_options(8, 2)), lambda: TrainingSpec(heads=3)):
        with pytest.raises(ConfigError, match=r"heads cannot share \d+ dimensions evenly"):
            build()
    with pytest.raises(ConfigError, match="dropout 1 leaves no features"):
        TrainingSpec(dropout=1.0)


def test_the_number_of_heads_belongs_to_the_run():
    def job(**change: float) -> TrainingJob:
        spec = TrainingSpec(**change)
        return TrainingJob(
            dataset=Location("a"), dataset_digest="b", spec=spec, output=Location("c")
        )

    assert job(heads=1).lineage == job().lineage != job(heads=2).lineage
    assert job(dropout=0.1).digest != job().digest
    assert job(dropout=0.1).lineage == job().lineage
