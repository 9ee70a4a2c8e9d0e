"""Incremental false negative detection (IFND): near-duplicates leave the negatives."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from encoders.losses.core import CHUNK_PAIRS, PairLoss, Pairs, Ratio, contrast, require
from encoders.losses.statistics import LabelStatistics

_ROUNDS = 10
_REMOVED = -1e9  # log v of a removed key


class Ifnd(PairLoss):
    """SupCon over any shared label; the denominator leaves out probable false negatives.

    ``L = mean_i  -1/|P(i)| Σ_{p∈P(i)} log( exp(s_ip/τ) / Σ_{a≠i, a∉F(i)} exp(s_ia/τ) )``. F(i) are
    keys that share no label with i but are in the same cluster of the batch's embeddings (spherical
    k-means), with both samples among the most confident ``share · progress`` of the keys. The
    confidence is the margin between the nearest and the second nearest centre. ``progress`` grows
    during the training.

    The paper clusters the whole training set between epochs; this implementation clusters the
    gathered keys of a step, with the same result on every worker.

    References
    ----------
    Chen et al., Incremental False Negative Detection for Contrastive Learning, ICLR 2022
    (arXiv 2106.03719).
    """

    takes_probabilities = True

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        clusters: int = 32,
        share: float = 0.5,
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__(statistics, temperature=temperature, chunk_pairs=chunk_pairs)
        require(clusters >= 2, "clusters", "2 or more", clusters)
        require(0 <= share <= 1, "share", "0 to 1", share)
        self.clusters, self.share = clusters, share

    def prepare(self, z_GD: Tensor, y_GC: Tensor) -> Tensor | None:
        """Return the cluster of each confident key and -1 for the other keys, shape (G,)."""
        confident = int(self.share * self.progress * len(z_GD))
        if confident < 2 or len(z_GD) <= self.clusters:
            return None
        near_GK = z_GD @ _centres(z_GD, self.clusters).T
        best_G2, own_G2 = near_GK.topk(2, dim=1)
        order = (best_G2[:, 1] - best_G2[:, 0]).argsort(stable=True)
        return own_G2[:, 0].index_fill(0, order[confident:], -1)

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the mean over the anchors with a positive."""
        removed_RG = None
        if pairs.known_G is not None:
            own_R = pairs.known_G[pairs.offset : pairs.offset + len(pairs.z_RD)]
            same_RG = (own_R[:, None] == pairs.known_G) & (own_R[:, None] >= 0)
            removed_RG = (same_RG & (pairs.shared_RG == 0)).to(pairs.shared_RG) * _REMOVED
        logits_RG = pairs.similarity_RG / self.temperature
        return [contrast(pairs, pairs.any_RG, logits_RG, log_negative_weight_RK=removed_RG)]


def _centres(z_GD: Tensor, clusters: int) -> Tensor:
    """Return the centres of spherical k-means, started from evenly spaced rows, shape (K, D).

    An empty cluster keeps its centre.
    """
    start = torch.linspace(0, len(z_GD) - 1, clusters, device=z_GD.device).long()
    centre_KD = z_GD[start]
    for _ in range(_ROUNDS):
        own_G = (z_GD @ centre_KD.T).argmax(1)
        sum_KD = torch.zeros_like(centre_KD).index_add_(0, own_G, z_GD)
        empty_K = torch.bincount(own_G, minlength=clusters) == 0
        centre_KD = torch.where(empty_K[:, None], centre_KD, normalize(sum_KD, dim=1))
    return centre_KD
