"""Jaccard similarity *probability* contrastive loss (JSPCL)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import normalize

from encoders.losses.bce import classification
from encoders.losses.core import CHUNK_PAIRS, Ratio, require
from encoders.losses.jaccard import Jaccard
from encoders.losses.statistics import LabelStatistics


class Jspcl(Jaccard):
    """``L = (1-λ) BCE(q, y) + λ JSCL(q/|q|, y)`` with ``q_i = σ(W z_i + b)`` the probabilities.

    The contrast compares predicted label probabilities instead of embeddings; the linear layer
    (C, D) is learned, λ is ``share``.

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
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        require(0 < share < 1, "share", "between 0 and 1", share)
        self.classifier, self.share = nn.Linear(dimension, statistics.classes), share

    def ratios(
        self, z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int
    ) -> Sequence[Ratio]:
        """Return the classification term and the contrast of the probabilities."""
        logits_BC, logits_GC = self.classifier(z_BD), self.classifier(z_GD)
        q_BC, q_GC = normalize(logits_BC.sigmoid(), dim=1), normalize(logits_GC.sigmoid(), dim=1)
        (contrast,) = super().ratios(q_BC, y_BC, q_GC, y_GC, offset)
        labels = classification(logits_BC, y_BC)
        return [
            Ratio((1 - self.share) * labels.numerator, labels.denominator),
            Ratio(self.share * contrast.numerator, contrast.denominator),
        ]
