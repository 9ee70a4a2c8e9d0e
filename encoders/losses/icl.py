"""Intra-label contrastive loss (ICL): present against absent labels within one sample."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.losses.bce import classification
from encoders.losses.core import Loss, Ratio, require
from encoders.losses.statistics import LabelStatistics

_LEAST = 1e-12  # lower bound of a token's norm


class Icl(Loss):
    """``L = (1-λ) BCE(W z + b, y) + λ mean_{i,c} -1/|A_c(i)| Σ_{k∈A_c(i)} log q_ick``.

    ``q_ick = exp(t_ic·t_ik/τ) / Σ_{l≠c} exp(t_ic·t_il/τ)``; λ is ``share``.

    Each label of sample i has a token ``t_ic = normalize(z_i ∘ e_c)`` with a learned embedding
    ``e_c``. ``A_c(i)`` are the other labels with the same state as c: present if c is present,
    absent if c is absent. The contrast stays inside one sample, so the keys are not used. The
    paper takes the tokens from a text encoder; images have none, hence ``z_i ∘ e_c``.

    References
    ----------
    Lin et al., Findings of ACL 2023 (arXiv 2212.00552).
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        dimension: int,
        temperature: float = 0.1,
        share: float = 0.5,
    ) -> None:
        super().__init__()
        require(temperature > 0, "temperature", "more than 0", temperature)
        require(0 < share < 1, "share", "between 0 and 1", share)
        self.temperature, self.share = temperature, share
        self.classifier = nn.Linear(dimension, statistics.classes)
        self.e_CD = nn.Parameter(torch.randn(statistics.classes, dimension))

    def ratios(
        self, z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int
    ) -> Sequence[Ratio]:
        """Return the classification term and the contrast of the label tokens."""
        itself = torch.eye(y_BC.shape[1], dtype=torch.bool, device=z_BD.device)
        logits_BCC = (self._cosines(z_BD) / self.temperature).masked_fill(itself, -1e30)
        alike_BCC = (y_BC[:, :, None] == y_BC[:, None]).masked_fill(itself, False).to(z_BD)
        total_BC = alike_BCC.sum(2)
        value_BC = total_BC * logits_BCC.logsumexp(2) - (alike_BCC * logits_BCC).sum(2)
        contrast = (value_BC / total_BC.clamp_min(1)).sum()
        labels = classification(self.classifier(z_BD), y_BC)
        return [
            Ratio((1 - self.share) * labels.numerator, labels.denominator),
            Ratio(self.share * contrast, (total_BC > 0).sum().to(contrast)),
        ]

    def _cosines(self, z_BD: Tensor) -> Tensor:
        """Return ``t_ic·t_ik``, shape (B, C, C), from one product of ``z²`` and ``e_c∘e_k``."""
        pairs_PD = (self.e_CD[:, None] * self.e_CD).flatten(0, 1)
        classes = len(self.e_CD)
        products_BCC = (z_BD.square() @ pairs_PD.T).reshape(-1, classes, classes)
        norm_BC = products_BCC.diagonal(dim1=1, dim2=2).clamp_min(_LEAST**2).sqrt()
        return products_BCC / (norm_BC[:, :, None] * norm_BC[:, None])
