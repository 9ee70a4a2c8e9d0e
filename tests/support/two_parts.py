"""An encoder of two parts whose head has learned labels on a frozen backbone."""

from typing import Any

import numpy as np
import torch

from encoders.bundle import Encoder, new_encoder, with_appearance
from encoders.losses import LabelStatistics, build_loss
from tests.support.service_world import encoder_spec

_STEPS = 150


def two_part_encoder(
    tiles: np.ndarray[Any, Any], classes: np.ndarray[Any, Any], appearance: int
) -> Encoder:
    """Train a head on the class (n,) of tiles (n, 3, 32, 32); put principal components before it.

    Parameters
    ----------
    appearance
        Width of the appearance part.
    """
    frozen = new_encoder(encoder_spec(training={"freeze_backbone": True}))
    features = frozen.features(tiles.astype(np.float32))
    labels = torch.eye(int(classes.max()) + 1)[torch.as_tensor(classes)]
    loss = build_loss("supcon-all", LabelStatistics.from_labels(labels))
    optimiser = torch.optim.Adam(frozen.head.parameters(), 0.01)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        vectors = frozen.project(torch.as_tensor(features))
        loss(vectors, labels).backward()
        optimiser.step()
    return with_appearance(frozen.eval(), features, appearance)
