"""MSC: a learned prototype per label, so that every label has a positive."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast, divisor, require
from encoders.losses.statistics import LabelStatistics


class Msc(PairLoss):
    """Contrast against the batch and C label prototypes, weighted by label overlap.

    With ``M_ikc = α y_ic y_kc / |Y_i ∪ Y_k|`` and ``N_ic = Σ_{k≠i} M_ikc + y_ic``::

        L = mean_i  -1/|Y_i| Σ_{c∈Y_i} [ Σ_{k≠i} M_ikc/N_ic log q_ik + 1/N_ic log q_ic ]
        q_ix = exp(s_ix/τ) / ( β Σ_{k≠i} exp(s_ik/τ) + Σ_c exp(s_ic/τ) )

    s_ic is the similarity with the unit-norm prototype of label c. The weights of an anchor sum to
    1 over each of its |Y_i| labels. β > 0 weakens the batch as negatives; with α = 0 the prototypes
    are the only positives.

    References
    ----------
    Audibert et al., Exploring Contrastive Learning for Long-Tailed Multi-Label Text
    Classification, ECML PKDD 2024; the defaults are those of the published configuration.
    """

    takes_probabilities = True

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        dimension: int,
        alpha: float = 0.0,
        beta: float = 0.1,
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        require(alpha >= 0, "alpha", "0 or more", alpha)
        require(beta > 0, "beta", "more than 0", beta)
        self.alpha, self.beta = alpha, beta
        self.prototype_CD = nn.Parameter(torch.randn(statistics.classes, dimension))

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the labelled anchors."""
        share_RG, share_RC = self._weights(pairs)
        near_RC = pairs.z_RD @ normalize(self.prototype_CD, dim=1).T
        batch_RG = torch.full_like(share_RG, self.beta).log()
        labelled_R = (pairs.size_R > 0).to(share_RG)
        return [
            contrast(
                pairs,
                torch.cat([share_RG, share_RC], 1),
                torch.cat([pairs.similarity_RG, near_RC], 1) / self.temperature,
                log_negative_weight_RK=torch.cat([batch_RG, torch.zeros_like(share_RC)], 1),
                count_R=labelled_R,
            )
        ]

    def _weights(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the weights of the keys and of the prototypes.

        ``Σ_c M_ikc / N_ic / |Y_i|``, shape (R, G), and ``1 / N_ic / |Y_i|``, shape (R, C).
        """
        overlap_RG = pairs.set_self(self.alpha / divisor(pairs.union_RG), 0.0)
        share_RC = pairs.y_RC / (overlap_RG @ pairs.y_GC + 1) / divisor(pairs.size_R)[:, None]
        return overlap_RG * (share_RC @ pairs.y_GC.T), share_RC
