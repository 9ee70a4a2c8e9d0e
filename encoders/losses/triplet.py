"""Triplet loss with batch-hard mining: the metric-learning control."""

from collections.abc import Sequence

import torch
from torch.nn.functional import triplet_margin_loss

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, require
from encoders.losses.statistics import LabelStatistics


class Triplet(PairLoss):
    """``L = mean_i max(0, |z_i - z_p| - |z_i - z_n| + m)``, torch's ``triplet_margin_loss``.

    p is the furthest key that shares a label with i, n the nearest key that shares none. Anchors
    without a positive or without a negative leave the mean.

    References
    ----------
    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017 (batch hard).
    """

    def __init__(
        self, statistics: LabelStatistics, *, margin: float = 0.2, chunk_pairs: int = CHUNK_PAIRS
    ) -> None:
        super().__init__(statistics, temperature=1.0, chunk_pairs=chunk_pairs)
        require(margin > 0, "margin", "more than 0", margin)
        self.margin = margin

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors with a positive and a negative."""
        fixed_RG = pairs.similarity_RG.detach()
        positive_RG = pairs.set_self(pairs.shared_RG > 0, False)
        negative_RG = pairs.set_self(pairs.shared_RG == 0, False)
        usable = (positive_RG.any(1) & negative_RG.any(1)).nonzero().squeeze(1)
        hard_positive = fixed_RG.masked_fill(~positive_RG, torch.inf)[usable].argmin(1)
        hard_negative = fixed_RG.masked_fill(~negative_RG, -torch.inf)[usable].argmax(1)
        value = triplet_margin_loss(
            pairs.z_RD[usable],
            pairs.z_GD[hard_positive],
            pairs.z_GD[hard_negative],
            margin=self.margin,
            reduction="sum",
        )
        return [Ratio(value, value.new_tensor(len(usable)))]
