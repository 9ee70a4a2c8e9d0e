"""Scalable neighbour discriminative loss (SNDL) of the graph relation network."""

from collections.abc import Sequence

import torch

from encoders.losses.core import PairLoss, Pairs, Ratio


class Grn(PairLoss):
    """``L = mean_i  -log( Σ_{a≠i} w_ia exp(s_ia/τ) / Σ_{a≠i} exp(s_ia/τ) )``.

    ``w_ia = (C - Hamming(y_i, y_a)) / C`` is the share of labels, present or absent, on which both
    agree; an empty label set is a row of zeros. The weight stands *inside* the logarithm (a
    weighted neighbourhood probability). The key queue of the trainer replaces the paper's memory
    bank.

    References
    ----------
    Kang et al., Graph Relation Network, IEEE TGRS 2020.
    """

    takes_probabilities = True

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors that agree with a key on at least one label."""
        classes = pairs.y_RC.shape[1]
        hamming_RG = pairs.size_R[:, None] + pairs.size_G - 2 * pairs.shared_RG
        weight_RG = pairs.set_self((classes - hamming_RG) / max(classes, 1), 0.0)
        logits_RG = pairs.set_self(pairs.similarity_RG / self.temperature, -1e30)
        alike_RG = torch.where(weight_RG > 0, logits_RG + weight_RG.clamp_min(1e-12).log(), -1e30)
        usable_R = (weight_RG > 0).any(1)
        value_R = torch.where(usable_R, logits_RG.logsumexp(1) - alike_RG.logsumexp(1), 0)
        return [Ratio(value_R.sum(), usable_R.sum().to(value_R))]
