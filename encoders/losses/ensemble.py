"""The loss of an ensemble of heads: the mean of one loss for each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.losses.core import Keys, Loss, RatioSums


class EnsembleLoss(Loss):
    """The mean of one loss for each head of `encoders.projection.Ensemble`.

    Each loss sees the vectors of its head alone, so that the heads learn apart.

    Parameters
    ----------
    losses
        The loss of each head, in the order of the heads.
    """

    def __init__(self, losses: Sequence[Loss]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.takes_probabilities = losses[0].takes_probabilities

    def sums(
        self, z_BD: Tensor, y_BC: Tensor, keys: Keys | None = None, offset: int = 0
    ) -> RatioSums:
        """Return the ratios of all heads, T of each, whose sum is the mean of the losses."""
        heads = len(self.losses)
        z_GD, y_GC = (z_BD, y_BC) if keys is None else keys
        found = []
        for loss, z_Bd, z_Gd in zip(
            self.losses, z_BD.chunk(heads, 1), z_GD.chunk(heads, 1), strict=True
        ):
            assert isinstance(loss, Loss)
            loss.progress = self.progress
            # A part of a vector of unit length has the length 1 / sqrt(H).
            own = None if keys is None else (z_Gd * heads**0.5, y_GC)
            found.append(loss.sums(z_Bd * heads**0.5, y_BC, own, offset))
        return RatioSums(
            torch.cat([sums.numerator_T for sums in found]) / heads,
            torch.cat([sums.denominator_T for sums in found]),
        )
