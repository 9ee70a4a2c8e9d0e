"""Binary cross-entropy of a linear classifier: the control without metric learning."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from encoders.losses.core import Loss, Ratio
from encoders.losses.statistics import LabelStatistics


class Bce(Loss):
    """``L = mean_i mean_c  BCE(σ(w_c·z_i + b_c), y_ic)`` with a learned linear layer (C, D).

    An empty label set is a row of zeros: every label is absent.
    """

    takes_probabilities = True

    def __init__(self, statistics: LabelStatistics, *, dimension: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dimension, statistics.classes)

    def ratios(
        self, z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int
    ) -> Sequence[Ratio]:
        """Return the mean over the anchors; the keys are not used."""
        return [classification(self.classifier(z_BD), y_BC)]


def classification(logits_BC: Tensor, y_BC: Tensor) -> Ratio:
    """Return the cross-entropy, summed over anchors and averaged over labels, over the anchors."""
    value = binary_cross_entropy_with_logits(logits_BC, y_BC, reduction="sum")
    return Ratio(value / max(y_BC.shape[1], 1), value.new_tensor(len(y_BC)))
