"""ProbMCL: positives are the keys whose label overlap reaches a threshold."""

from collections.abc import Sequence

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast, require
from encoders.losses.statistics import LabelStatistics


class ProbMcl(PairLoss):
    """``L = mean_i  -1/|P(i)| Σ_{p∈P(i)} J_ip log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    P(i) are the keys whose Jaccard overlap with i is at least ``threshold``; all other keys are
    negatives. The paper's mixture-density encoder is not part of this loss.

    References
    ----------
    Sajedi et al., ProbMCL, ICASSP 2024 (arXiv 2401.01448).
    """

    takes_probabilities = True

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        threshold: float = 0.5,
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        require(0 < threshold <= 1, "threshold", "more than 0, at most 1", threshold)
        self.threshold = threshold

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors with a positive."""
        # The tolerance lets a threshold of 2/3 include an overlap of 2/3 in float32.
        positive_RG = (pairs.jaccard_RG >= self.threshold - 1e-6).to(pairs.jaccard_RG)
        positives_R = pairs.set_self(positive_RG, 0.0).sum(1)
        weight_RG = positive_RG * pairs.jaccard_RG / positives_R.clamp_min(1)[:, None]
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=(positives_R > 0).to(weight_RG))]
