"""A projection head trained on features in memory, in seconds and without a cluster.

`learned_vectors` is for measurements: whether soft labels pay (`pipeline.datasets.extend`) and how
losses compare (`benchmarks.results`). Its loop, losses and sampler are those of every training.
`place_head` is the first of two parts (`pipeline.training.place_part`).

Shapes: N rows, n training rows, F features, D dimension, C labels.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import normalize
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from encoders.backbones.stem import Backbone
from encoders.bundle import Encoder
from encoders.loop import TrainingLoop, TrainingRows
from encoders.losses import build_loss
from encoders.losses.statistics import LabelStatistics
from encoders.places import PlaceRows, place_loss
from encoders.projection import build_head, mlp_options
from encoders.spec import EncoderSpec
from pipeline.training.spec import TrainingSpec
from storage.dataset import hard_labels

Floats = NDArray[np.float32]
STEPS = 360
"""Steps of a training of a head."""
HEAD = TrainingSpec(batch_size=256, freeze_backbone=True)
"""MACL's default in one head of 128 numbers."""


class FrozenFeatures(Backbone):
    """Stands for a backbone whose features are computed already."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension


def head_encoder(
    features: int, dimension: int, hidden: int, seed: int, heads: int = 1, dropout: float = 0.0
) -> Encoder:
    """Return an encoder of F features in place of pixels, with a random head."""
    spec = EncoderSpec(
        backbone="features",
        bands=("feature",),
        band_mean=(0.0,),
        band_std=(1.0,),
        tile_px=1,
        dimension=dimension,
        head=mlp_options(hidden, heads, dropout),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(spec, FrozenFeatures(features), build_head(features, dimension, spec.head))


def learned_vectors(
    features_NF: Floats,
    rows: NDArray[np.int64],
    labels_nC: NDArray[np.uint8] | Floats,
    *,
    seed: int = 0,
    steps: int = STEPS,
    spec: TrainingSpec = HEAD,
    places: PlaceRows | None = None,
) -> Floats:
    """Train a head on some rows and return the vectors of all rows, (N, D).

    Parameters
    ----------
    features_NF
        Features of all rows, float32.
    rows, labels_nC
        The training rows, and their labels of 0 and 1 or probabilities.
    steps
        Steps to take at least; training ends with the epoch.
    spec
        The head, its loss and its batches; ``epochs`` and ``seed`` of it are not used.
    places
        Pairs of places for a second loss, whose inputs are features too.
    """
    built = build_loss(
        spec.loss,
        LabelStatistics.from_labels(hard_labels(labels_nC)),
        dimension=spec.dimension,
        heads=spec.heads,
        initial_seed=seed,
        **spec.loss_options,
    )
    data = TrainingRows(inputs=features_NF, rows=rows, labels=labels_nC)
    encoder = head_encoder(
        features_NF.shape[1], spec.dimension, spec.hidden, seed, spec.heads, spec.dropout
    )
    loop = TrainingLoop(encoder, built, data, replace(spec, epochs=1, seed=seed))
    epochs = -(-steps // loop.steps_per_epoch)
    spec = replace(spec, epochs=epochs, seed=seed)
    loop = TrainingLoop(encoder, built, data, spec, places=places)
    while loop.epoch < loop.spec.epochs:
        for _ in loop.run_epoch():
            pass
    return loop.embed(np.arange(len(features_NF)))


def place_head(
    places: PlaceRows, dimension: int, *, seed: int = 0, steps: int = STEPS
) -> nn.Linear:
    """Train a linear layer on pairs of places alone, without labels.

    Parameters
    ----------
    places
        Pairs of places, whose inputs are features.
    dimension
        Length of a vector, D.
    seed
        Seed of the weights and of the pairs.
    steps
        Steps of AdamW, whose rate of 1e-3 falls to zero along a cosine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(places.inputs.shape[1], dimension)
    optimizer = AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        pair = (torch.from_numpy(places.inputs[rows]) for rows in places.draw(seed, step))
        one, other = (normalize(head(features_BF), dim=1) for features_BF in pair)
        optimizer.zero_grad()
        place_loss(one, other).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head
