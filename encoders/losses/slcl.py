"""Stepwise label contrastive loss (SLCL): one two-class contrast per label column."""

from collections.abc import Sequence

from encoders.losses.core import PairLoss, Pairs, Ratio, contrast


class Slcl(PairLoss):
    """``L = mean_{i,c}  -1/|P_c(i)| Σ_{p∈P_c(i)} log( exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    P_c(i) are the keys that agree with i on label c: both hold the label or both lack it. Written
    as matrix products ``w_ip = Σ_c [ y_ic y_pc / (n_c - 1) + (1-y_ic)(1-y_pc) / (G - n_c - 1) ]``
    with n_c counted among the G keys. Columns on which no key agrees with i leave the mean.

    References
    ----------
    Lin et al., Findings of ACL 2023 (arXiv 2212.00552).
    """

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over all (anchor, column) for which a key agrees."""
        count_C = pairs.y_GC.sum(0)
        weight_RG, count_R = 0 * pairs.shared_RG, 0 * pairs.size_R
        for y_RC, y_GC, others_C in (
            (pairs.y_RC, pairs.y_GC, count_C - 1),
            (1 - pairs.y_RC, 1 - pairs.y_GC, len(pairs.y_GC) - count_C - 1),
        ):
            agreeing_C = (others_C > 0).to(others_C)
            weight_RG += (y_RC * agreeing_C / others_C.clamp_min(1)) @ y_GC.T
            count_R += y_RC @ agreeing_C
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=count_R)]
