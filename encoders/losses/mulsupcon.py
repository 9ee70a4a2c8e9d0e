"""MulSupCon: one supervised contrast per label of the anchor."""

from collections.abc import Sequence

from encoders.losses.core import PairLoss, Pairs, Ratio, contrast


class MulSupCon(PairLoss):
    """``L = 1/Σ_i|Y_i| Σ_i Σ_{c∈Y_i} -1/|P_c(i)| Σ_{p∈P_c(i)} log q_ip``.

    ``q_ip = exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ)``; P_c(i) are the other keys with label c. Written as
    one matrix product, the weight of a pair is ``w_ip = Σ_c y_ic y_pc / (n_c - 1)`` with ``n_c``
    the number of keys that hold c. A label that only the anchor holds is skipped, in the sum and
    in ``|Y_i|``.

    References
    ----------
    Zhang and Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024.
    """

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over all (anchor, label) for which another key holds the label."""
        others_C = pairs.y_GC.sum(0) - 1
        shared_C = (others_C > 0).to(others_C)
        weight_RG = (pairs.y_RC * shared_C / others_C.clamp_min(1)) @ pairs.y_GC.T
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=pairs.y_RC @ shared_C)]
