"""Similarity-dissimilarity loss: one weight for the five relations of two label sets."""

from collections.abc import Sequence

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast, divisor
from encoders.losses.statistics import LabelStatistics


class SimDis(PairLoss):
    """``L = mean_i  -1/|P(i)| Σ_{p∈P(i)} K^s_ip K^d_ip log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    ``K^s_ip = |Y_i ∩ Y_p| / |Y_i|`` and ``K^d_ip = 1 / (1 + |Y_p - Y_i|)``: similarity is measured
    against the anchor's set, dissimilarity by the additional labels of the candidate. P(i) are the
    keys that share a label with i. Weights for |Y_i| = 3: disjoint 0, equal 1, one shared and two
    additional labels 1/9, two of the three 2/3, all three and one additional label 1/2. The weight
    stands outside the logarithm, where it scales the gradient. With single labels the loss is
    SupCon.

    References
    ----------
    Huang et al., Similarity-Dissimilarity Loss for Multi-label Supervised Contrastive Learning,
    arXiv 2410.13439.
    """

    takes_probabilities = True

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        temperature: float = 0.07,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors that have a positive."""
        similar_RG = pairs.shared_RG / divisor(pairs.size_R)[:, None]
        surplus_RG = pairs.size_G - pairs.shared_RG
        positives_R = pairs.set_self(pairs.any_RG, 0.0).sum(1)
        weight_RG = similar_RG / (1 + surplus_RG) / divisor(positives_R)[:, None]
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=(positives_R > 0).to(weight_RG))]
