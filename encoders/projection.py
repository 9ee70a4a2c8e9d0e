"""Projection heads: from the features of a backbone to embedding vectors.

Shape legend: B batch, N samples, F features, D embedding dimension.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.spec import dimension_of_each
from storage.errors import ConfigError

HALF_WHITENING = 0.5
"""Scores are divided by the square root of their deviation: with less the first directions decide
alone, with more the noise of the last."""
_LEAST_VARIANCE = 1e-10
"""Smallest variance of a score, as a share of the largest."""
_ROWS = 8192


def build_head(features: int, dimension: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a head from its plain description.

    Parameters
    ----------
    features, dimension
        F and D.
    options
        ``{"kind": "mlp", "hidden": 512}`` (linear, ReLU, linear; with ``"heads": 4`` or
        ``"dropout": 0.1`` an `Ensemble` of them), ``{"kind": "linear"}`` (a single linear layer, as
        returned by `principal_head`), ``{"kind": "identity"}`` (the features) or ``{"kind":
        "parts", "appearance": 128, "labels": 64, "blend": 0.2, "roots": true, "head": {...}}`` (a
        `TwoParts`, whose label head has the options ``head``; with ``roots`` its appearance head
        begins with `SquareRoots`).

    Raises
    ------
    ConfigError
        The kind is unknown, the dimension of an identity head differs from F, or that of an
        ensemble is no multiple of its heads.

    Examples
    --------
    >>> build_head(4, 4, {"kind": "identity"})
    Identity()
    """
    kind = options.get("kind", "mlp")
    if kind == "mlp":
        # Without batch norm: a sample's vector must not depend on the other rows of a worker.
        hidden, heads = int(options.get("hidden", 512)), int(options.get("heads", 1))
        dropout = float(options.get("dropout", 0))
        width = dimension if heads == 1 else dimension_of_each(dimension, heads)
        mlps = [
            nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(heads)
        ]
        return Ensemble(mlps, dropout) if heads > 1 or dropout else mlps[0]
    if kind == "linear":
        return nn.Linear(features, dimension)
    if kind == "identity":
        if features != dimension:
            raise ConfigError(
                f"the embedding is the {features} features as they are, but dimension is "
                f"{dimension}; set dimension to {features} or reduce with a linear head"
            )
        return nn.Identity()
    if kind == "parts":
        appearance: nn.Module = nn.Linear(features, options["appearance"])
        if options.get("roots"):
            appearance = nn.Sequential(SquareRoots(), appearance)
        return TwoParts(appearance, build_head(features, options["labels"], options["head"]))
    raise ConfigError(f"no head is called {kind!r}; choose mlp, linear or identity")


def mlp_options(hidden: int, heads: int = 1, dropout: float = 0.0) -> dict[str, Any]:
    """Return the options of a multilayer perceptron for `build_head`."""
    options: dict[str, Any] = {"kind": "mlp", "hidden": hidden}
    return (
        options
        | ({"heads": heads} if heads > 1 else {})
        | ({"dropout": dropout} if dropout else {})
    )


class Ensemble(nn.Module):
    """Heads side by side for the same features, each of unit length.

    The cosine of two vectors is the mean of the heads' cosines. With
    `encoders.losses.EnsembleLoss` each head learns by itself.

    Parameters
    ----------
    heads
        Heads of the same dimension.
    dropout
        Share of the features that training sets to 0 at random, other ones for each head.
    """

    def __init__(self, heads: Sequence[nn.Module], dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return the vectors of all heads, (B, D), of length √H together."""
        vectors = (head(self.dropout(features_BF)) for head in self.heads)
        return torch.cat([F.normalize(vector, dim=1) for vector in vectors], dim=1)


class SquareRoots(nn.Module):
    """Square roots of features that are never negative: a few large ones decide less."""

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return the roots, (B, F)."""
        return features_BF.clamp(min=0).sqrt()


class TwoParts(nn.Module):
    """Two heads side by side, each of unit length: appearance or places first, then labels.

    Parameters
    ----------
    appearance, labels
        Heads for the same features.
    """

    def __init__(self, appearance: nn.Module, labels: nn.Module) -> None:
        super().__init__()
        self.appearance, self.labels = appearance, labels

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return both parts, (B, D), of length √2 together."""
        parts = (self.appearance(features_BF), self.labels(features_BF))
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)


def principal_head(
    features_NF: NDArray[np.float32],
    dimension: int,
    whitening: float = 0.0,
    *,
    centred: bool = True,
) -> nn.Linear:
    """Return the linear layer that projects features on their principal directions.

    The layer reduces features to D dimensions without training. Cosines between projected vectors
    approximate the cosines between centred features, or between the features as they are.

    Parameters
    ----------
    features_NF
        Features of a sample of tiles, float32, at least ``dimension`` rows.
    dimension
        D.
    whitening
        Each score is divided by its standard deviation to this power: 0 leaves the scores, 0.5 is
        half-whitening, 1 whitens. No variance counts as less than 1e-10 of the largest.
    centred
        Whether the mean of the sample is subtracted first. The mean of one collection of images is
        not that of another.

    Raises
    ------
    ConfigError
        There are fewer rows or features than D.

    Notes
    -----
    Peak memory is ``8 F (F + 8192)`` bytes beside the features.
    """
    rows, features = features_NF.shape
    if min(rows, features) < dimension:
        raise ConfigError(
            f"cannot reduce {rows} rows of {features} features to {dimension} dimensions; "
            "ask for fewer or give more tiles"
        )
    mean_F = torch.zeros(features, dtype=torch.float64)
    if centred:
        mean_F = torch.from_numpy(features_NF.mean(0, dtype=np.float64))
    covariance_FF = torch.zeros(features, features, dtype=torch.float64)
    for start in range(0, rows, _ROWS):
        centred_RF = torch.from_numpy(features_NF[start : start + _ROWS]) - mean_F
        covariance_FF += centred_RF.T @ centred_RF / rows
    variances_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    directions_FD = vectors_FF.flip(1)[:, :dimension]
    # The sign of an eigenvector is arbitrary: make its largest component positive.
    signs_D = directions_FD.gather(0, directions_FD.abs().argmax(0, keepdim=True)).sign()
    variances_D = variances_F.flip(0)[:dimension]
    least = variances_F.max().clamp(min=_LEAST_VARIANCE) * _LEAST_VARIANCE
    scales_D = variances_D.clamp(min=least) ** (-whitening / 2)
    head = nn.Linear(features, dimension)
    with torch.no_grad():
        head.weight.copy_((directions_FD * signs_D * scales_D).T)
        head.bias.copy_(-(head.weight.double() @ mean_F))
    return head


def appearance_head(features_NF: NDArray[np.float32], dimension: int) -> tuple[nn.Module, bool]:
    """Return a head of half-whitened principal components, and whether it begins with roots.

    The components are about zero, of the square roots of the features where none is negative.

    Raises
    ------
    ConfigError
        As `principal_head` says.
    """
    roots = bool((features_NF >= 0).all())
    fitted = np.sqrt(features_NF) if roots else features_NF
    head = principal_head(fitted, dimension, HALF_WHITENING, centred=False)
    return (nn.Sequential(SquareRoots(), head) if roots else head), roots


def half_whitened(features_NF: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Return unit vectors (N, D) of the half-whitened principal scores of features.

    D is the least of ``most``, F and N - 1.
    """
    rows, features = features_NF.shape
    head = principal_head(features_NF, min(most, features, rows - 1), HALF_WHITENING)
    with torch.inference_mode():
        unit_ND: NDArray[np.float32] = F.normalize(head(torch.from_numpy(features_NF))).numpy()
    return unit_ND
