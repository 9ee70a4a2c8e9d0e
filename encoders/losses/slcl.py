"""Stepwise label contrastive loss (SLCL): one two-class contrast per label column."""

from collections.abc import Sequence

from encoders.losses.core import PairLoss, Pairs, Ratio, contrast
from encoders.losses.mulsupcon import label_shares


class Slcl(PairLoss):
    """``L = mean_{i,c}  -1/|P_c(i)| Σ_{p∈P_c(i)} log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    P_c(i) are the keys that agree with i on label c: both hold the label or both lack it. Written
    as matrix products ``w_ip = Σ_c [ y_ic y_pc / (n_c - 1) + (1-y_ic)(1-y_pc) / (G - n_c - 1) ]``
    with n_c counted among the G keys. Columns on which no key agrees with i leave the mean.

    References
    ----------
    Lin et al., Findings of ACL 2023 (arXiv 2212.00552).
    """

    takes_probabilities = True

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over all (anchor, column) for which a key agrees."""
        weight_RG, count_R = 0 * pairs.shared_RG, 0 * pairs.size_R
        for y_RC, y_GC in ((pairs.y_RC, pairs.y_GC), (1 - pairs.y_RC, 1 - pairs.y_GC)):
            share_RC, agreeing_R = label_shares(y_RC, y_GC)
            weight_RG += share_RC @ y_GC.T
            count_R += agreeing_R
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=count_R)]
