"""Jaccard similarity contrastive loss (JSCL)."""

from collections.abc import Sequence

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast
from encoders.losses.statistics import LabelStatistics


class Jaccard(PairLoss):
    """``L = mean_i  - Σ_p J_ip log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) ) / Σ_p J_ip``.

    ``J_ip = |Y_i ∩ Y_p| / |Y_i ∪ Y_p|``. This is JSCL as it is commonly read; its authors' code
    multiplies J into the denominator instead, which is infinite when an anchor overlaps nobody.

    References
    ----------
    Lin et al., An Effective Deployment of Contrastive Learning in Multi-label Text Classification,
    Findings of ACL 2023 (arXiv 2212.00552).
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(temperature=temperature, chunk_pairs=chunk_pairs)

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors that overlap somebody."""
        return [contrast(pairs, pairs.jaccard_RG, pairs.similarity_RG / self.temperature)]
