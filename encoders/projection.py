"""Projection heads: from the features of a backbone to embedding vectors.

Shape legend: B batch, N samples, F features, D embedding dimension.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from storage.errors import ConfigError


def build_head(features: int, dimension: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a head from its plain description.

    Parameters
    ----------
    features, dimension
        F and D.
    options
        ``{"kind": "mlp", "hidden": 512}`` (linear, ReLU, linear), ``{"kind": "linear"}`` (a single
        linear layer, as returned by `principal_head`) or ``{"kind": "identity"}`` (the features).

    Raises
    ------
    ConfigError
        The kind is unknown, or the dimension of an identity head differs from F.

    Examples
    --------
    >>> build_head(4, 4, {"kind": "identity"})
    Identity()
    """
    kind = options.get("kind", "mlp")
    if kind == "mlp":
        # Without batch norm: a sample's vector must not depend on the other rows of a worker.
        hidden = int(options.get("hidden", 512))
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dimension))
    if kind == "linear":
        return nn.Linear(features, dimension)
    if kind == "identity":
        if features != dimension:
            raise ConfigError(
                f"the embedding is the {features} features as they are, but dimension is "
                f"{dimension}; set dimension to {features} or reduce with a linear head"
            )
        return nn.Identity()
    raise ConfigError(f"no head is called {kind!r}; choose mlp, linear or identity")


def principal_head(features_NF: NDArray[np.float32], dimension: int) -> nn.Linear:
    """Return the linear layer that projects features on their principal directions.

    The layer reduces features to D dimensions without training. Cosines between projected vectors
    approximate the cosines between centred features.

    Parameters
    ----------
    features_NF
        Features of a sample of tiles, float32, at least ``dimension`` rows.
    dimension
        D.

    Raises
    ------
    ConfigError
        There are fewer rows or features than D.
    """
    rows, features = features_NF.shape
    if min(rows, features) < dimension:
        raise ConfigError(
            f"cannot reduce {rows} rows of {features} features to {dimension} dimensions; "
            "ask for fewer or give more tiles"
        )
    values_NF = torch.from_numpy(features_NF).double()
    mean_F = values_NF.mean(0)
    covariance_FF = (values_NF - mean_F).T @ (values_NF - mean_F) / rows
    directions_FD = torch.linalg.eigh(covariance_FF).eigenvectors.flip(1)[:, :dimension]
    # The sign of an eigenvector is arbitrary: make its largest component positive.
    signs_D = directions_FD.gather(0, directions_FD.abs().argmax(0, keepdim=True)).sign()
    head = nn.Linear(features, dimension)
    with torch.no_grad():
        head.weight.copy_((directions_FD * signs_D).T)
        head.bias.copy_(-(head.weight.double() @ mean_F))
    return head
