"""Contrastive Bayesian metric learning: soft thresholds on mined pairs and a spread term."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from encoders.losses.core import CHUNK_PAIRS, Fraction, PairLoss, Pairs, require
from encoders.losses.statistics import LabelStatistics


class Cbml(PairLoss):
    """Mined positives above a threshold, mined negatives below it, and little spread between them.

    For anchor i with positives P (a shared label) and negatives N (none)::

        P' = {p : s_ip - m < max_N s},   N' = {n : s_in + m > min_P s}
        L_i = log(1 + Σ_{P'} exp(-(s_ip - a_p)/b_p)) + log(1 + Σ_{N'} exp((s_in - a_n)/b_n))
              + ω mean_N (s_in - μ_i)²,      μ_i = h mean_P s + (1-h) mean_N s

    and ``L = mean_i L_i`` over the anchors with both; without any mined pair ``L_i`` is 0. The
    authors sum the spread over N; the mean does not depend on the batch size.

    Parameters
    ----------
    positive_threshold, positive_scale, negative_threshold, negative_scale
        ``a_p, b_p, a_n, b_n``.
    margin
        m, of the mining.
    spread, blend
        ω and h.

    References
    ----------
    Kan et al., Contrastive Bayesian Analysis for Deep Metric Learning, TPAMI 2022
    (arXiv 2210.04402), the "log" form; defaults are ours.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        positive_threshold: float = 0.5,
        positive_scale: float = 0.5,
        negative_threshold: float = 0.5,
        negative_scale: float = 0.05,
        margin: float = 0.1,
        spread: float = 0.5,
        blend: float = 0.5,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(temperature=1.0, chunk_pairs=chunk_pairs)
        require(positive_scale > 0, "positive_scale", "more than 0", positive_scale)
        require(negative_scale > 0, "negative_scale", "more than 0", negative_scale)
        self.positive = (positive_threshold, positive_scale)
        self.negative = (negative_threshold, negative_scale)
        self.margin, self.spread, self.blend = margin, spread, blend

    def terms(self, pairs: Pairs) -> Sequence[Fraction]:
        """Return the mean over the anchors with a positive and a negative."""
        s_RG = pairs.similarity_RG
        positive_RG = pairs.set_self(pairs.shared_RG > 0, False)
        negative_RG = pairs.set_self(pairs.shared_RG == 0, False)
        usable_R = positive_RG.any(1) & negative_RG.any(1)
        fixed_RG = s_RG.detach()
        nearest_R = fixed_RG.masked_fill(~negative_RG, -torch.inf).amax(1, keepdim=True)
        furthest_R = fixed_RG.masked_fill(~positive_RG, torch.inf).amin(1, keepdim=True)
        mined_positive_RG = positive_RG & (fixed_RG - self.margin < nearest_R)
        mined_negative_RG = negative_RG & (fixed_RG + self.margin > furthest_R)
        # Without one kind of mined pair the anchor has nothing to learn from.
        mined_R = mined_positive_RG.any(1) & mined_negative_RG.any(1)
        centre_R = self.blend * _mean(s_RG, positive_RG) + (1 - self.blend) * _mean(
            s_RG, negative_RG
        )
        value_R = (
            _soft_count((self.positive[0] - s_RG) / self.positive[1], mined_positive_RG)
            + _soft_count((s_RG - self.negative[0]) / self.negative[1], mined_negative_RG)
            + self.spread * _mean((s_RG - centre_R[:, None]) ** 2, negative_RG)
        )
        value_R = torch.where(mined_R & usable_R, value_R, 0)
        return [Fraction(value_R.sum(), usable_R.sum().to(value_R))]


def _soft_count(x_RG: Tensor, chosen_RG: Tensor) -> Tensor:
    """``log(1 + Σ_chosen exp(x))`` per row."""
    return softplus(x_RG.masked_fill(~chosen_RG, -1e30).logsumexp(1))


def _mean(x_RG: Tensor, chosen_RG: Tensor) -> Tensor:
    """Mean of the chosen entries per row, 0 without any."""
    return (x_RG * chosen_RG).sum(1) / chosen_RG.sum(1).clamp_min(1)
