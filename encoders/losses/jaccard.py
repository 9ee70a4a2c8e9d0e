"""Jaccard similarity contrastive loss (JSCL)."""

from collections.abc import Sequence

from encoders.losses.core import PairLoss, Pairs, Ratio, contrast


class Jaccard(PairLoss):
    """``L = mean_i  - Σ_p J_ip log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) ) / Σ_p J_ip``.

    ``J_ip = |Y_i ∩ Y_p| / |Y_i ∪ Y_p|``. This is the common reading of JSCL; the authors' code
    multiplies J into the denominator instead, which is infinite for an anchor without overlap.

    References
    ----------
    Lin et al., An Effective Deployment of Contrastive Learning in Multi-label Text Classification,
    Findings of ACL 2023 (arXiv 2212.00552).
    """

    takes_probabilities = True

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors that share a label with another key."""
        return [contrast(pairs, pairs.jaccard_RG, pairs.similarity_RG / self.temperature)]
