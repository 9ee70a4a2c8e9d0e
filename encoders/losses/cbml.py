"""Contrastive Bayesian metric learning (CBML): soft thresholds on mined pairs, a spread term."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import softplus

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, require
from encoders.losses.statistics import LabelStatistics


class Cbml(PairLoss):
    """Push mined positives above a threshold and negatives below it; keep their spread small.

    For anchor i with positives P (a shared label) and negatives N (none)::

        P' = {p : s_ip - m < max_N s},   N' = {n : s_in + m > min_P s}
        L_i = log(1 + Σ_{P'} exp(-(s_ip - a_p)/b_p)) + log(1 + Σ_{N'} exp((s_in - a_n)/b_n))
              + ω mean_N (s_in - μ_i)²,      μ_i = h mean_P s + (1-h) mean_N s

    and ``L = mean_i L_i`` over the anchors with a positive and a negative; without a mined pair
    ``L_i`` is 0. The authors sum the spread over N; the mean used here does not depend on the
    batch size.

    Parameters
    ----------
    positive_threshold, positive_scale, negative_threshold, negative_scale
        ``a_p, b_p, a_n, b_n``.
    margin
        m, the margin of the mining.
    spread, blend
        ω and h.

    References
    ----------
    Kan et al., Contrastive Bayesian Analysis for Deep Metric Learning, TPAMI 2022
    (arXiv 2210.04402), the "log" form; the defaults are Skysift's.
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
        super().__init__(statistics, temperature=1.0, chunk_pairs=chunk_pairs)
        require(positive_scale > 0, "positive_scale", "more than 0", positive_scale)
        require(negative_scale > 0, "negative_scale", "more than 0", negative_scale)
        self.positive = (positive_threshold, positive_scale)
        self.negative = (negative_threshold, negative_scale)
        self.margin, self.spread, self.blend = margin, spread, blend

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors with a positive and a negative."""
        s_RG, fixed_RG = pairs.similarity_RG, pairs.similarity_RG.detach()
        positive_RG = pairs.set_self(pairs.shared_RG > 0, False)
        negative_RG = pairs.set_self(pairs.shared_RG == 0, False)
        positives_R, negatives_R = positive_RG.sum(1), negative_RG.sum(1)
        usable_R = (positives_R > 0) & (negatives_R > 0)
        nearest_R = torch.where(negative_RG, fixed_RG, -torch.inf).amax(1)
        furthest_R = torch.where(positive_RG, fixed_RG, torch.inf).amin(1)
        # Positives are mined against the nearest negative and negatives against the furthest
        # positive, so an anchor has mined pairs of both kinds or of neither.
        # Negated, because a comparison with NaN is false: NaN has to reach the loss.
        mined_R = usable_R & ~(furthest_R - self.margin >= nearest_R)
        below_R = torch.where(mined_R, nearest_R + self.margin, -torch.inf)
        above_R = torch.where(mined_R, furthest_R - self.margin, torch.inf)
        near_RG = (positive_RG & (fixed_RG < below_R[:, None])).to(s_RG)
        far_RG = (negative_RG & (fixed_RG > above_R[:, None])).to(s_RG)
        nearest_R, furthest_R = (torch.where(mined_R, x_R, 0) for x_R in (nearest_R, furthest_R))

        # A pair is either positive or negative, so one exponential serves both sums. Shifting by
        # the extremes bounds the exponential by 1: it cannot overflow.
        (near_at, near_scale), (far_at, far_scale) = self.positive, self.negative
        slope_RG = far_RG / far_scale - near_RG / near_scale
        shift_RG = (
            near_RG * (furthest_R / near_scale)[:, None] - far_RG * (nearest_R / far_scale)[:, None]
        )
        exp_RG = torch.addcmul(shift_RG, slope_RG, s_RG).exp()
        near_R = _log(vecdot(exp_RG, near_RG)) + (near_at - furthest_R) / near_scale
        far_R = _log(vecdot(exp_RG, far_RG)) + (nearest_R - far_at) / far_scale

        of_negative_RG = torch.where(negative_RG, s_RG, 0)
        of_positive_R = torch.where(positive_RG, s_RG, 0).sum(1) / positives_R.clamp_min(1)
        mean_R = of_negative_RG.sum(1) / negatives_R.clamp_min(1)
        square_R = vecdot(of_negative_RG, of_negative_RG) / negatives_R.clamp_min(1)
        centre_R = self.blend * of_positive_R + (1 - self.blend) * mean_R
        spread_R = square_R - 2 * centre_R * mean_R + centre_R**2  # mean of (s - centre)^2
        value_R = softplus(near_R) + softplus(far_R) + self.spread * spread_R
        value_R = torch.where(mined_R, value_R, 0)
        return [Ratio(value_R.sum(), usable_R.sum().to(value_R))]


def _log(sum_R: Tensor) -> Tensor:
    """Logarithm with a floor for rows without mined pairs, whose value is discarded."""
    return sum_R.clamp_min(1e-30).log()
