"""Supervised contrastive loss (SupCon) with two definitions of a positive for label sets."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast, require
from encoders.losses.statistics import LabelStatistics


class SupCon(PairLoss):
    """``L = mean_i  -1/|P(i)| Σ_{p∈P(i)} log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    With ``positives="any"`` P(i) are the keys that share at least one label with i, with ``"all"``
    the keys with the same label set. Anchors without a positive leave the mean. An empty label set
    has no positives.

    References
    ----------
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (the sum outside).
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        positives: Literal["any", "all"] = "any",
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        require(positives in ("any", "all"), "positives", "'any' or 'all'", positives)
        self.positives, self.takes_probabilities = positives, positives == "any"

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors of the mean over each anchor's positives."""
        weight_RG = pairs.any_RG if self.positives == "any" else same_set(pairs)
        return [contrast(pairs, weight_RG, pairs.similarity_RG / self.temperature)]


def same_set(pairs: Pairs) -> Tensor:
    """Return 1 where the label sets are equal and not empty, else 0, shape (R, G)."""
    equal_RG = pairs.shared_RG * 2 == pairs.size_R[:, None] + pairs.size_G
    return equal_RG.to(pairs.shared_RG.dtype).mul_(pairs.any_RG)
