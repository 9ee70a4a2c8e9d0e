"""MACL: multi-label adaptive contrastive learning, the default loss.

The equations of the paper are not public; the abstract and the code notes name the parts (pairwise
label reweighting, dynamic temperature scaling, label-aware negatives). This module states each part
with a switch of its own, so that each is one row of an ablation.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from encoders.losses.core import (
    CHUNK_PAIRS,
    PairLoss,
    Pairs,
    Ratio,
    Reduction,
    contrast,
    divisor,
    require,
)
from encoders.losses.statistics import LabelStatistics

Reweighting = Literal["sets", "pairs", "labels", "product", "none"]
_MOST_LOG_WEIGHT = math.log(1e30)  # sums of such weights are finite in float32
_PAIR_COLUMNS = 512  # label pairs per matrix product, so that C (C + 1) / 2 columns never exist


class Macl(PairLoss):
    """``L = mean_i  -1/Σ_p w_ip Σ_{p∈P(i)} w_ip log q_ip``.

    ``q_ip = exp(s_ip/τ_ip) / Σ_{a≠i} v_ia exp(s_ia/τ_ia)``; P(i) shares a label with i;
    ``S = Y_i ∩ Y_p``. The counts n, N and the means J̄, ρ̄ are those of the training set, not of the
    batch. Anchors without a positive leave the mean.

    Parameters
    ----------
    statistics
        Label counts of the training set.
    reweighting
        Pairwise label reweighting (PLR): shared and rare label combinations weigh more. With the
        rarity ``r_c = δ (N/n_c)^β``, ``"sets"`` sums ``Π_{c∈T} r_c`` over all non-empty T ⊆ S, as a
        share of the sum over T ⊆ Y_i:
        ``w_ip = (Π_{c∈S} (1 + r_c) - 1) / (Π_{c∈Y_i} (1 + r_c) - 1)``.
        ``"pairs"``: ``Σ_{c≤d, both in S} (N/n_cd)^β``; ``"labels"``: ``Σ_{c∈S} (N/n_c)^β``;
        ``"product"``: the mean of ``(N/n_cd)^β`` over all (c, d) of Y_i × Y_p; ``"none"``: 1.
    beta, discount
        Exponent β of the reweighting, and the factor δ of each further label of a set. With β = 0
        and δ = 1 ``"sets"`` weighs by ``2^|S| - 1``, the gain of nDCG; as δ approaches 0 the
        weights approach those of ``"labels"``.
    temperature, temperature_start, alpha, gamma, temperature_min, temperature_max
        Dynamic temperature scaling (DTS): ``τ_ij = clip(τ0 (1 + α (J_ij - J̄)) (1 + γ (ρ_i - ρ̄)))``
        with ρ_i the mean of ``1 - n_c/N`` over Y_i (ρ̄ for an empty set). α > 0 raises the
        temperature of pairs with a large overlap; γ < 0 lowers the temperature of anchors with rare
        labels. τ0 is ``temperature``, or ``start + progress (temperature - start)`` when
        ``temperature_start`` is given.
    kappa
        Label-aware negatives, with the negative weight ``v_ia = exp(κ s_ia)`` (no gradient, scaled
        to mean 1 per anchor) where Y_i and Y_a are disjoint, else 1: the weight of a partly
        overlapping sample is never raised.
    prototypes
        π > 0 adds one learned unit vector per label to the keys of every anchor, with that label as
        its label set and π times the weight of a sample, so that every label has a positive.
        Requires ``dimension``.
    weighted
        Also weight positives by ``J_ip``.
    exactness, exactness_power
        The trade-off λ between coverage (0) and exactness: adds λ times SupCon (mean over anchors,
        τ0) with positives weighted by ``J_ip^q``, without prototypes, and raises α by
        ``λ / (1 + λ)``.
    reduction
        ``"anchor"``: the mean over anchors of each anchor's weighted mean, as above; ``"total"``:
        one weighted mean over all positives, ``Σ_i Σ_p (..) / Σ_i Σ_p w_ip``.

    Notes
    -----
    The weight of a pair with ``"sets"`` is at most 1, reached where ``Y_i ⊆ Y_p``.
    ``reweighting="none", alpha=0, gamma=0, kappa=0`` is SupCon over any shared label;
    ``reweighting="labels", beta=1, reduction="total"`` is close to MulSupCon.

    References
    ----------
    MACL, arXiv 2512.16294 (abstract and public notes only).
    """

    takes_probabilities = True

    rarity_C: Tensor
    log1p_rarity_C: Tensor
    pair_first_P: Tensor
    pair_second_P: Tensor
    pair_weight_P: Tensor
    weight_CC: Tensor

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        dimension: int | None = None,
        temperature: float = 0.08,
        temperature_start: float | None = None,
        reweighting: Reweighting = "sets",
        beta: float = 2.0,
        discount: float = 0.4,
        alpha: float = -0.1,
        gamma: float = -1.0,
        kappa: float = 0.0,
        prototypes: float = 0.0,
        weighted: bool = False,
        exactness: float = 0.0,
        exactness_power: float = 4.0,
        reduction: Reduction = "anchor",
        temperature_min: float = 0.02,
        temperature_max: float = 1.0,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        modes = get_args(Reweighting)
        require(reweighting in modes, "reweighting", f"one of {modes}", reweighting)
        require(reduction in ("total", "anchor"), "reduction", "'total' or 'anchor'", reduction)
        require(kappa >= 0, "kappa", "0 or more", kappa)
        require(discount > 0, "discount", "more than 0", discount)
        require(prototypes >= 0, "prototypes", "0 or more", prototypes)
        start = temperature if temperature_start is None else temperature_start
        require(start > 0, "temperature_start", "more than 0", start)
        require(exactness >= 0, "exactness", "0 or more", exactness)
        require(exactness_power > 0, "exactness_power", "more than 0", exactness_power)
        limits = (temperature_min, temperature_max)
        require(
            0 < limits[0] <= limits[1], "temperature_min, temperature_max", "0 < min ≤ max", limits
        )
        self.reweighting, self.reduction, self.weighted = reweighting, reduction, weighted
        self.temperature_start = start
        self.alpha = alpha + exactness / (1 + exactness)
        self.gamma, self.kappa, self.prototypes = gamma, kappa, prototypes
        self.exactness, self.exactness_power = exactness, exactness_power
        self.temperature_limits = limits
        self.mean_jaccard, self.mean_rarity = statistics.mean_jaccard, statistics.mean_rarity
        self._count(statistics, beta, discount)
        if prototypes:
            require(dimension is not None, "prototypes", "dimension=D with it", dimension)
            self.prototype_CD = nn.Parameter(torch.randn(statistics.classes, dimension or 0))

    def _count(self, statistics: LabelStatistics, beta: float, discount: float) -> None:
        """Store the rarity of each label and the weight of each label pair as buffers."""
        counts_CC = torch.tensor(statistics.pair_counts, dtype=torch.float64)
        log_weight_CC = beta * (statistics.rows / counts_CC.clamp_min(1)).log()
        weight_CC = log_weight_CC.exp()
        if self.reweighting in ("pairs", "labels", "product"):
            largest = float(log_weight_CC.max())
            most = beta * _MOST_LOG_WEIGHT / max(largest, 1e-9)
            expected = f"{most:.3g} or less for reweighting {self.reweighting!r} of these labels"
            require(largest <= _MOST_LOG_WEIGHT, "beta", expected, beta)
        if self.reweighting == "labels":
            first = second = torch.arange(statistics.classes)
        else:
            first, second = torch.triu_indices(statistics.classes, statistics.classes)
        self.register_buffer("rarity_C", 1 - counts_CC.diagonal() / statistics.rows, False)
        # r_c of `reweighting`; rarity_C above is 1 - n_c/N, the rarity that ρ_i averages.
        # log(1 + δ (N/n)^β) from logarithms, which no β overflows.
        log_rarity_C = math.log(discount) + log_weight_CC.diagonal()
        self.register_buffer("log1p_rarity_C", log_rarity_C.logaddexp(torch.zeros(())), False)
        self.register_buffer("weight_CC", weight_CC, False)
        self.register_buffer("pair_first_P", first, False)
        self.register_buffer("pair_second_P", second, False)
        self.register_buffer("pair_weight_P", weight_CC[first, second], False)

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the reweighted contrast and, with ``exactness``, the exactness term."""
        full = self._with_prototypes(pairs) if self.prototypes else pairs
        weight_RK = self.positive_weights(full)
        weight_RK[:, len(pairs.z_GD) :] *= self.prototypes
        ratios = [
            contrast(
                full,
                weight_RK,
                full.similarity_RG / self.temperatures(full),
                reduction=self.reduction,
                log_negative_weight_RK=self.log_negative_weights(full) if self.kappa else None,
            )
        ]
        if self.exactness:
            power_RG = pairs.jaccard_RG.pow(self.exactness_power)
            plain = contrast(pairs, power_RG, pairs.similarity_RG / self.current_temperature)
            ratios.append(Ratio(self.exactness * plain.numerator, plain.denominator))
        return ratios

    @property
    def current_temperature(self) -> float:
        """τ0 at the current ``progress``."""
        return self.temperature_start + self.progress * (self.temperature - self.temperature_start)

    def _with_prototypes(self, pairs: Pairs) -> Pairs:
        """Return the pairs with C further keys: key G + c is the prototype of label c."""
        z_CD = normalize(self.prototype_CD, dim=1)
        one_hot_CC = torch.eye(len(z_CD), dtype=pairs.y_GC.dtype, device=z_CD.device)
        keys = torch.cat([pairs.z_GD, z_CD]), torch.cat([pairs.y_GC, one_hot_CC])
        return Pairs(pairs.z_RD, pairs.y_RC, *keys, pairs.offset)

    def positive_weights(self, pairs: Pairs) -> Tensor:
        """Return ``w_ip``, shape (R, G), zero for pairs without a shared label."""
        if self.reweighting == "none":
            weight_RG = pairs.any_RG.clone()
        elif self.reweighting == "product":
            weight_RG = self._product_mean(pairs)
        elif self.reweighting == "sets":
            weight_RG = self._set_share(pairs.y_RC, pairs.y_GC)
        else:
            weight_RG = self._pair_sum(pairs.y_RC, pairs.y_GC)
        return weight_RG.mul_(pairs.jaccard_RG) if self.weighted else weight_RG

    def _set_share(self, y_RC: Tensor, y_GC: Tensor) -> Tensor:
        """``(Π_{c∈S} (1 + r_c) - 1) / (Π_{c∈Y_i} (1 + r_c) - 1)``, in logarithms."""
        log1p_rarity_RC = y_RC * self.log1p_rarity_C.to(y_RC.dtype)
        own_R1 = log1p_rarity_RC.sum(1, keepdim=True)
        shared_RG = log1p_rarity_RC @ y_GC.T
        # Both products are divided by Π_{c∈Y_i} (1 + r_c), so every exponent is at most 0; the 1 is
        # subtracted by expm1, in which the small overlaps of probabilities keep their digits.
        weight_RG = (shared_RG - own_R1).exp_().mul_(shared_RG.neg().expm1_().neg_())
        whole_R1 = -torch.expm1(-own_R1)
        return weight_RG.div_(whole_R1.clamp_min_(torch.finfo(whole_R1.dtype).tiny))

    def _pair_sum(self, y_RC: Tensor, y_GC: Tensor) -> Tensor:
        """``φ(y_R) diag(r) φ(y_G)ᵀ`` with φ the indicator of the label pairs (or labels)."""
        weight_RG = y_RC.new_zeros(len(y_RC), len(y_GC))
        weight_P = self.pair_weight_P.to(y_RC.dtype)
        for start in range(0, len(weight_P), _PAIR_COLUMNS):
            part = slice(start, start + _PAIR_COLUMNS)
            first, second = self.pair_first_P[part], self.pair_second_P[part]
            anchors_RP = _both(y_RC, first, second) * weight_P[part]
            weight_RG.addmm_(anchors_RP, _both(y_GC, first, second).T)
        return weight_RG

    def _product_mean(self, pairs: Pairs) -> Tensor:
        """Mean of ``(N/n_cd)^β`` over Y_i × Y_p; zero for pairs without a shared label."""
        weight_RG = pairs.y_RC @ self.weight_CC.to(pairs.y_RC.dtype) @ pairs.y_GC.T
        weight_RG /= divisor(pairs.size_R[:, None] * pairs.size_G)
        return weight_RG.mul_(pairs.any_RG)

    def temperatures(self, pairs: Pairs) -> Tensor | float:
        """Return ``τ_ij`` as (R, G), as (R, 1) when α is 0, or the constant τ0."""
        if self.alpha == self.gamma == 0:
            return self.current_temperature
        rarity_R = pairs.y_RC @ self.rarity_C.to(pairs.y_RC.dtype) / divisor(pairs.size_R)
        rarity_R = torch.where(pairs.size_R > 0, rarity_R - self.mean_rarity, 0)
        scale: Tensor = self.current_temperature * (1 + self.gamma * rarity_R[:, None])
        if self.alpha:
            scale = scale * (1 + self.alpha * (pairs.jaccard_RG - self.mean_jaccard))
        return scale.clamp(*self.temperature_limits)

    def log_negative_weights(self, pairs: Pairs) -> Tensor:
        """Return ``log v_ia``, shape (R, G): 0 for keys that are not disjoint from the anchor.

        Over the disjoint keys of an anchor ``v`` has mean 1.
        """
        negative_RG = pairs.set_self(pairs.shared_RG == 0, False)
        hardness_RG = (self.kappa * pairs.similarity_RG.detach()).masked_fill_(
            ~negative_RG, -torch.inf
        )
        count_R = negative_RG.sum(1, keepdim=True)
        log_mean_R = hardness_RG.logsumexp(1, keepdim=True) - count_R.clamp_min(1).log()
        return torch.where(negative_RG, hardness_RG - log_mean_R, 0)


def _both(y_NC: Tensor, first_P: Tensor, second_P: Tensor) -> Tensor:
    """Return the probability that a row holds both labels of a pair, which may be one label."""
    y_NP = y_NC[:, first_P]
    return torch.where(first_P == second_P, y_NP, y_NP * y_NC[:, second_P])
