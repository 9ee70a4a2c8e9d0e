"""Base classes of the losses: one call signature, ratios of sums, one contrast formula.

A loss is the sum of a few ratios ``sum over anchors / sum over anchors``. Numerator and denominator
stay apart until the end, which makes a gathered batch exact: each worker sums over its own anchors,
the denominators are summed over the workers, and only then divided (``encoders.gather``).

Shapes: B local anchors, R anchors of one chunk, G keys of the global batch, D dimension, C labels,
T ratios of a loss.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.losses.statistics import LabelStatistics
from storage.errors import ConfigError

Keys = tuple[Tensor, Tensor]
Reduction = Literal["total", "anchor"]
CHUNK_PAIRS = 2**22  # 16 MiB: less and the heap fragments, more and each matrix is mapped anew
_ABSENT = -1e30  # logit of a key left out: finite, so that 0 x _ABSENT is 0 and not NaN


class RatioSums(NamedTuple):
    """The T ratios of a loss as sums over anchors; the loss is ``Σ_t numerator / denominator``.

    ``numerator_T`` carries the gradient; ``denominator_T`` (a sum of weights or a count of anchors)
    has none.
    """

    numerator_T: Tensor
    denominator_T: Tensor


class Ratio(NamedTuple):
    """One term of a loss over some anchors: two scalars, the denominator without a gradient."""

    numerator: Tensor
    denominator: Tensor


def divide(sums: RatioSums) -> Tensor:
    """Return the sum of the ratios; a ratio without any anchor is 0, with a gradient of 0."""
    denominator_T = torch.where(sums.denominator_T > 0, sums.denominator_T, 1)
    return (sums.numerator_T / denominator_T).sum()


class Loss(nn.Module):
    """A loss over local anchors and global keys.

    ``loss(z_BD, y_BC)`` is the loss of one batch. ``loss(z_BD, y_BC, keys=(z_GD, y_GC), offset=b)``
    contrasts the B rows as anchors with G keys; rows b..b+B of the keys are the anchors themselves.
    Embeddings have unit norm; labels are multi-hot, or probabilities where `takes_probabilities`:
    every sum and product of labels is then an expectation, and 0 and 1 mean what they did.
    bfloat16 and float16 inputs are computed in float32, also under autocast. The loss of a batch
    without a usable anchor is 0.

    ``progress`` is the completed share of the training, 0 to 1; the training loop sets it before
    each step for the losses that change over time (``macl``, ``ifnd``).
    """

    progress: float = 1.0
    takes_probabilities: bool = False

    def forward(
        self, z_BD: Tensor, y_BC: Tensor, keys: Keys | None = None, offset: int = 0
    ) -> Tensor:
        """Return the scalar loss; raise ConfigError when the shapes do not fit."""
        return divide(self.sums(z_BD, y_BC, keys, offset))

    def sums(
        self, z_BD: Tensor, y_BC: Tensor, keys: Keys | None = None, offset: int = 0
    ) -> RatioSums:
        """Return numerators and denominators summed over the local anchors."""
        z_GD, y_GC = (z_BD, y_BC) if keys is None else keys
        _check_shapes(z_BD, y_BC, z_GD, y_GC, offset)
        if not self.takes_probabilities and are_probabilities(y_GC):
            raise ConfigError(refusal(type(self).__name__))
        with torch.autocast(z_BD.device.type, enabled=False):
            z_BD, z_GD = _at_least_float32(z_BD), _at_least_float32(z_GD)
            y_BC, y_GC = y_BC.to(z_BD.dtype), y_GC.to(z_BD.dtype)
            ratios = self.ratios(z_BD, y_BC, z_GD, y_GC, offset)
        return RatioSums(
            torch.stack([ratio.numerator for ratio in ratios]),
            torch.stack([ratio.denominator for ratio in ratios]).detach(),
        )

    def ratios(
        self, z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int
    ) -> Sequence[Ratio]:
        """Return the terms of the loss over these anchors; inputs are float32 or float64."""
        raise NotImplementedError


class Pairs:
    """R anchors against G keys, with the label relations that the losses are written in.

    Matrices are (R, G) and computed on first use. They contain the pair of an anchor with itself,
    row r and column offset + r; :meth:`set_self` overwrites that entry.
    """

    def __init__(
        self,
        z_RD: Tensor,
        y_RC: Tensor,
        z_GD: Tensor,
        y_GC: Tensor,
        offset: int,
        known_G: Tensor | None = None,
    ) -> None:
        self.z_RD, self.y_RC, self.z_GD, self.y_GC, self.offset = z_RD, y_RC, z_GD, y_GC, offset
        self.known_G = known_G

    @cached_property
    def similarity_RG(self) -> Tensor:
        """``s_ij``, the inner products of the embeddings, with gradient."""
        return self.z_RD @ self.z_GD.T

    @cached_property
    def shared_RG(self) -> Tensor:
        """``|Y_i ∩ Y_j|``, integers as floats, or its expectation ``Σ_c y_ic y_jc``."""
        return self.y_RC @ self.y_GC.T

    @cached_property
    def size_R(self) -> Tensor:
        """``|Y_i|`` of the anchors."""
        return self.y_RC.sum(1)

    @cached_property
    def size_G(self) -> Tensor:
        """``|Y_j|`` of the keys."""
        return self.y_GC.sum(1)

    @cached_property
    def jaccard_RG(self) -> Tensor:
        """``J_ij = |Y_i ∩ Y_j| / |Y_i ∪ Y_j|``; 0 for two empty label sets."""
        return self.shared_RG / divisor(self.union_RG)

    @property
    def union_RG(self) -> Tensor:
        """``|Y_i ∪ Y_j|``, or its expectation."""
        return self.size_R[:, None] + self.size_G - self.shared_RG

    @cached_property
    def any_RG(self) -> Tensor:
        """1 where anchor and key share a label, else 0; ``min(1, Σ_c y_ic y_jc)``.

        Of probabilities that is the upper bound of the chance of a common label.
        """
        return self.shared_RG.clamp_max(1)

    def set_self(self, matrix_RG: Tensor, value: float) -> Tensor:
        """Write ``value`` in place at each anchor's pair with itself; return the matrix."""
        rows = len(self.z_RD)
        matrix_RG[:, self.offset : self.offset + rows].diagonal().fill_(value)
        return matrix_RG


def contrast(
    pairs: Pairs,
    weight_RK: Tensor,
    logits_RK: Tensor,
    *,
    reduction: Reduction = "anchor",
    log_negative_weight_RK: Tensor | None = None,
    count_R: Tensor | None = None,
) -> Ratio:
    """Return the weighted contrastive sum that the pair losses are built from.

    ``- Σ_i u_i Σ_p w_ip log( exp(l_ip) / Σ_{a≠i} v_ia exp(l_ia) )  over  Σ_i n_i`` with

    * ``reduction="anchor"``: ``u_i = 1 / Σ_p w_ip`` and ``n_i = 1`` where anchor i has a positive
      (weights that sum to less than 1e-31 in float32 count as none),
    * ``reduction="total"``: ``u_i = 1`` and ``n_i = Σ_p w_ip``,
    * ``count_R`` given: ``u_i = 1`` and ``n_i = count_i``.

    Parameters
    ----------
    pairs
        The anchors and keys. K ≥ G: columns from G on are further keys, such as prototypes.
    weight_RK
        ``w_ip ≥ 0``, zero for keys that are not positives. Each anchor's pair with itself is
        overwritten.
    logits_RK
        ``l_ia``, similarity over temperature. Each anchor's pair with itself is overwritten.
    log_negative_weight_RK
        ``log v_ia``, the weight of the keys in the denominator; None for v = 1.
    count_R
        ``n_i``, the count of each anchor in the denominator of the ratio.
    """
    weight_RK = pairs.set_self(weight_RK, 0.0)
    logits_RK = pairs.set_self(logits_RK, _ABSENT)
    weighted_RK = logits_RK
    if log_negative_weight_RK is not None:
        weighted_RK = logits_RK + log_negative_weight_RK
    total_R = weight_RK.sum(1)
    # Σ_p w (lse - l): two row sums instead of a matrix of log-probabilities.
    value_R = total_R * weighted_RK.logsumexp(1) - (weight_RK * logits_RK).sum(1)
    if count_R is not None:
        return Ratio(value_R.sum(), count_R.sum())
    if reduction == "total":
        return Ratio(value_R.sum(), total_R.sum())
    # A sum of denormal weights has no reciprocal, and the gradient would not be a number.
    limits = torch.finfo(total_R.dtype)
    usable_R = total_R > limits.tiny / limits.eps
    value_R = value_R / torch.where(usable_R, total_R, 1)
    return Ratio(value_R.sum(), usable_R.sum().to(value_R.dtype))


class PairLoss(Loss):
    """A loss whose terms are sums over anchors, each over one row of pairs; rows can be chunked.

    Parameters
    ----------
    statistics
        Label counts of the training set; subclasses that use the counts keep them.
    temperature
        ``τ``, divides the similarities.
    chunk_pairs
        Largest number of pairs whose matrices exist at once. More rows are evaluated chunk by chunk
        and recomputed in the backward pass: peak memory is a few matrices of ``chunk_pairs`` floats
        (at least one row of G), the gradient is the same.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        temperature: float = 0.1,
        chunk_pairs: int = CHUNK_PAIRS,
    ) -> None:
        super().__init__()
        require(temperature > 0, "temperature", "more than 0", temperature)
        require(chunk_pairs > 0, "chunk_pairs", "more than 0", chunk_pairs)
        self.temperature, self.chunk_pairs = temperature, chunk_pairs

    def terms(self, pairs: Pairs) -> Sequence[Ratio]:
        """Return the ratios of the loss over the anchors of ``pairs``."""
        raise NotImplementedError

    def prepare(self, z_GD: Tensor, y_GC: Tensor) -> Tensor | None:
        """Return a value per key that all chunks need (``Pairs.known_G``), or None."""
        return None

    def ratios(
        self, z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int
    ) -> Sequence[Ratio]:
        """Return the sums of :meth:`terms` over chunks of rows."""
        known_G = self.prepare(z_GD.detach(), y_GC)
        rows = max(1, self.chunk_pairs // max(len(z_GD), 1))

        def chunk(z_RD: Tensor, y_RC: Tensor, start: int) -> Sequence[Ratio]:
            return self.terms(Pairs(z_RD, y_RC, z_GD, y_GC, offset + start, known_G))

        if len(z_BD) <= rows:
            return chunk(z_BD, y_BC, 0)

        parts = [
            cast(
                "Sequence[Ratio]",
                checkpoint(
                    chunk,
                    z_BD[start : start + rows],
                    y_BC[start : start + rows],
                    start,
                    use_reentrant=False,
                    preserve_rng_state=False,
                ),
            )
            for start in range(0, len(z_BD), rows)
        ]
        return [
            Ratio(*(torch.stack(scalars).sum() for scalars in zip(*term, strict=True)))
            for term in zip(*parts, strict=True)
        ]


def divisor(x: Tensor) -> Tensor:
    """Return 1 in place of the zeros of a sum, to divide by."""
    return torch.where(x > 0, x, 1)


def are_probabilities(y: Tensor) -> bool:
    """Tell whether labels hold values other than 0 and 1."""
    return y.is_floating_point() and bool(((y != 0) & (y != 1)).any())


def refusal(loss: str) -> str:
    """Return why a loss refuses probabilities, and the next step."""
    return (
        f"loss {loss}: it needs labels of 0 and 1, and these are probabilities; take macl or "
        "another loss that weighs overlap (docs/howto/soft-labels.md), or a dataset without them"
    )


def require(holds: bool, option: str, expected: str, got: object) -> None:
    """Raise a ConfigError that names the loss option unless ``holds``."""
    if not holds:
        raise ConfigError(f"loss option {option}: expected {expected}, got {got!r}")


def _at_least_float32(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def _check_shapes(z_BD: Tensor, y_BC: Tensor, z_GD: Tensor, y_GC: Tensor, offset: int) -> None:
    fits = (
        z_BD.ndim == z_GD.ndim == y_BC.ndim == y_GC.ndim == 2
        and len(z_BD) == len(y_BC)
        and len(z_GD) == len(y_GC)
        and z_BD.shape[1] == z_GD.shape[1]
        and y_BC.shape[1] == y_GC.shape[1]
        and 0 <= offset <= len(z_GD) - len(z_BD)
    )
    if not fits:
        raise ConfigError(
            "loss: anchors, keys, labels and offset do not fit: "
            f"z {tuple(z_BD.shape)}, y {tuple(y_BC.shape)}, keys {tuple(z_GD.shape)} and "
            f"{tuple(y_GC.shape)}, offset {offset}"
        )
