"""MulSupCon: one supervised contrast per label of the anchor."""

from collections.abc import Sequence

from torch import Tensor

from encoders.losses.core import PairLoss, Pairs, Ratio, contrast

_LEAST = 1e-4  # number of other holders below which a label has none: sums of floats are inexact


class MulSupCon(PairLoss):
    """``L = 1/Σ_i|Y_i| Σ_i Σ_{c∈Y_i} -1/|P_c(i)| Σ_{p∈P_c(i)} log q_ip``.

    ``q_ip = exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ)``; P_c(i) are the other keys with label c. Written as
    one matrix product, the weight of a pair is ``w_ip = Σ_c y_ic y_pc / (n_c - 1)`` with ``n_c``
    the number of keys that hold c (of probabilities ``n_c - y_ic``). A label that only the anchor
    holds is skipped, in the sum and in ``|Y_i|``.

    References
    ----------
    Zhang and Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024.
    """

    takes_probabilities = True

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over all (anchor, label) for which another key holds the label."""
        share_RC, count_R = label_shares(pairs.y_RC, pairs.y_GC)
        weight_RG = share_RC @ pairs.y_GC.T
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, weight_RG, logits_RG, count_R=count_R)]


def label_shares(y_RC: Tensor, y_GC: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``y_ic / (n_c - y_ic)``, 0 where no other key holds c, and its count per anchor.

    The count is the sum of ``y_ic`` over the labels that another key holds, shape (R,).
    """
    others_RC = y_GC.sum(0) - y_RC
    held_RC = y_RC * (others_RC > _LEAST)
    return held_RC / others_RC.clamp_min(_LEAST), held_RC.sum(1)
