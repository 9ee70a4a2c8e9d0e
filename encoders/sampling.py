"""Batch sampling for contrastive losses: at least two samples per label, rare labels more often.

A contrastive loss has no positive for a label that only one sample of the batch holds. The sampler
composes global batches in which every present label has at least two holders, repeats samples with
rare labels by a tempered frequency, visits every sample in an epoch, and gives each worker its
share. The sampler needs labels only and does not import torch.

Shapes: N samples, C labels, L batches of an epoch, B samples of a global batch.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.errors import ConfigError

Ints = NDArray[np.int64]
_TRIES = 32  # candidates examined before a batch falls back to a sample that it already contains


def repeat_factors(y_NC: ArrayLike, power: float = 0.5, limit: float = 8.0) -> NDArray[np.float64]:
    """Return the repeat factor of each sample, at least 1: its expected visits per epoch, (N,).

    ``r_i = min(limit, max(1, max_{c∈Y_i} (f / f_c)^power))`` with ``f_c`` the share of samples that
    hold c and f the median of the non-zero shares. ``power=0`` repeats no sample.

    References
    ----------
    Gupta et al., LVIS, CVPR 2019 (repeat factor sampling).

    Examples
    --------
    >>> repeat_factors([[1, 0, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0]]).round(2).tolist()
    [1.0, 1.0, 1.41, 1.0]
    """
    y_NC = np.asarray(y_NC) > 0
    share_C = y_NC.mean(0)
    held_C = share_C > 0
    if not held_C.any():
        return np.ones(len(y_NC))
    lift_C = np.zeros(len(share_C))
    lift_C[held_C] = (np.median(share_C[held_C]) / share_C[held_C]) ** power
    factor_N: NDArray[np.float64] = np.clip((y_NC * lift_C).max(1), 1.0, limit)
    return factor_N


class LabelAwareBatchSampler:
    """Batches of sample indices for one worker; a ``batch_sampler`` for a ``DataLoader``.

    The global batches depend only on (labels, batch size, seed, epoch, power); a worker takes the
    contiguous share of its rank. A resumed job may therefore have another number of workers.

    Every epoch has ``len(sampler)`` global batches, ``ceil(Σ r_i / B)`` of :func:`repeat_factors`.
    An epoch visits every sample at least once, provided that the partners of singleton labels
    (labels with one holder in the batch) fit into the repeated share; ``coverage`` is the visited
    share. If no other holder fits, the batch repeats the sample itself (two augmented views).

    Parameters
    ----------
    labels_NC
        Multi-hot labels of the N training samples.
    batch_size
        B, rows of the global batch; a multiple of ``world_size``, at least 2.
    seed
        Seed of all draws, combined with the epoch.
    rank, world_size
        Rank of this worker, and the number of workers.
    power
        Exponent of the repeat factors, 0 (no repeats) to 1 (inverse frequency).

    Raises
    ------
    ConfigError
        The labels are not (N, C), or the batch cannot be shared by the workers.
    """

    def __init__(
        self,
        labels_NC: ArrayLike,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        power: float = 0.5,
    ) -> None:
        labels_NC = np.asarray(labels_NC)
        if labels_NC.ndim != 2 or len(labels_NC) == 0:
            raise ConfigError(f"sampler: expected labels (N, C), got shape {labels_NC.shape}")
        if batch_size < 2 or batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"sampler: expected a global batch of 2 or more that {world_size} workers share "
                f"evenly and a rank below {world_size}; got batch {batch_size}, rank {rank}"
            )
        self.labels_NC = labels_NC.astype(bool)
        self.batch_size, self.seed, self.power = batch_size, seed, power
        self.rank, self.world_size = rank, world_size
        self.factors_N = repeat_factors(labels_NC, power)
        self._labels = [np.flatnonzero(row).tolist() for row in self.labels_NC]
        self._holders = [np.flatnonzero(column) for column in self.labels_NC.T]
        self._start = 0
        self.set_epoch(0)

    def __len__(self) -> int:
        return int(np.ceil(self.factors_N.sum() / self.batch_size - 1e-9))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this worker's indices batch by batch, from the position of `load_state_dict`."""
        start, self._start = self._start, 0
        share = self.batch_size // self.world_size
        own = slice(self.rank * share, (self.rank + 1) * share)
        for batch in self.plan_LB[start:]:
            yield batch[own].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Compose the batches of an epoch; the next iteration starts at the first batch."""
        self.epoch, self._start = epoch, 0
        rng = np.random.default_rng((self.seed, epoch))
        composer = _Composer(
            labels=self._labels,
            holders=self._holders,
            rng=rng,
            copies=_whole_copies(self.factors_N, rng),
            slots=len(self) * self.batch_size,
        )
        self.plan_LB = np.array([composer.batch(self.batch_size) for _ in range(len(self))])

    @property
    def coverage(self) -> float:
        """Share of the samples that the current epoch visits."""
        return len(np.unique(self.plan_LB)) / len(self.labels_NC)

    def state_dict(self, batches_done: int = 0) -> dict[str, Any]:
        """Return plain values to resume from after ``batches_done`` batches of this epoch.

        The caller counts the batches: a loader prefetches, so the sampler cannot know which batches
        have been trained on.
        """
        return {"epoch": self.epoch, "batches_done": batches_done, "plan": self._digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises
        ------
        ConfigError
            The labels, the batch size, the power or the seed differ from those of the state.
        """
        self.set_epoch(int(state["epoch"]))
        if state["plan"] != self._digest():
            raise ConfigError(
                "sampler: the saved state belongs to other labels, another batch size, power or "
                "seed; resume with those of the checkpoint or start a new run"
            )
        self._start = int(state["batches_done"])

    def _digest(self) -> str:
        return hashlib.sha256(self.plan_LB.tobytes()).hexdigest()[:16]


@dataclass(kw_only=True, slots=True)
class _Composer:
    """Composes batches from one shuffled queue so that every label gets a second positive.

    ``singletons`` maps each label with one holder in the batch to that holder. A holder of
    singleton labels needs at most one more place (in the worst case for a copy of itself), so a
    batch can be completed as long as the number of free places is at least the number of such
    holders.
    """

    labels: list[list[int]]
    holders: list[Ints]
    rng: np.random.Generator
    copies: Ints
    slots: int
    queue: Iterator[int] = field(init=False)
    closing: bool = False
    deferred: list[int] = field(init=False, default_factory=list)
    unvisited: set[int] = field(init=False)
    members: list[int] = field(init=False)
    count: list[int] = field(init=False)
    singletons: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        entries = np.repeat(np.arange(len(self.labels)), self.copies)
        self.queue = itertools.chain(self._shuffled(entries), self._endless())
        self.unvisited = set(range(len(self.labels)))

    def batch(self, size: int) -> list[int]:
        """Compose the next batch."""
        self.members, self.count, self.singletons = [], [0] * len(self.holders), {}
        while (places := size - len(self.members)) > 0:
            crowded = len(set(self.singletons.values())) >= places
            self._add(self._partner() if crowded else self._next(places))
        return [self.members[i] for i in self.rng.permutation(size).tolist()]

    def _next(self, places: int) -> int:
        """Return the next sample of the queue after which the batch can still be completed."""
        if not self.closing and self.slots <= len(self.unvisited):
            # The remaining slots are needed by the unvisited samples: no more repeats.
            self.closing, self.deferred = True, []
            rest = self._shuffled(np.array(sorted(self.unvisited)))
            self.queue = itertools.chain(rest, self._endless())
        for index, sample in enumerate(self.deferred):
            if self._fits(sample, places):
                return self.deferred.pop(index)
        for _ in range(_TRIES):
            sample = next(entry for entry in self.queue if self.copies[entry] > 0)
            if self._fits(sample, places):
                return sample
            self.deferred.append(sample)
        return self._partner()

    def _fits(self, sample: int, places: int) -> bool:
        """Tell whether every singleton label can still get a second positive after this sample."""
        labels = self.labels[sample]
        holders = {holder for label, holder in self.singletons.items() if label not in labels}
        if any(self.count[label] == 0 for label in labels):
            holders.add(sample)
        return len(holders) < places

    def _partner(self) -> int:
        """Return a second positive for all singleton labels of one holder, without new labels.

        If no candidate qualifies, the holder itself is returned.
        """
        if not self.singletons:
            return self.members[int(self.rng.integers(len(self.members)))]
        label, holder = next(iter(self.singletons.items()))
        needs = {label for label, owner in self.singletons.items() if owner == holder}
        others = self.holders[label]
        tried = self.rng.choice(others, min(_TRIES, len(others)), replace=False).tolist()
        fitting = [sample for sample in tried if self._settles(sample, needs)]
        return max(fitting, key=self._usefulness, default=holder)

    def _settles(self, sample: int, needs: set[int]) -> bool:
        labels = self.labels[sample]
        return needs.issubset(labels) and all(self.count[label] for label in labels)

    def _usefulness(self, sample: int) -> tuple[bool, int, bool, int]:
        settled = sum(label in self.singletons for label in self.labels[sample])
        new = sample not in self.members
        return new, settled, sample in self.unvisited, int(self.copies[sample])

    def _add(self, sample: int) -> None:
        self.members.append(sample)
        self.unvisited.discard(sample)
        self.copies[sample] -= 1
        self.slots -= 1
        for label in self.labels[sample]:
            self.count[label] += 1
            if self.count[label] == 1:
                self.singletons[label] = sample
            else:
                self.singletons.pop(label, None)

    def _shuffled(self, entries: Ints) -> list[int]:
        shuffled: list[int] = self.rng.permutation(entries).tolist()
        return shuffled

    def _endless(self) -> Iterator[int]:
        """Start another round when the queue is exhausted before the end of the epoch."""
        while True:
            self.copies += 1
            yield from self._shuffled(np.arange(len(self.labels)))


def _whole_copies(factors_N: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """Round repeat factors to whole copies at random, preserving the sum (systematic sampling)."""
    order = rng.permutation(len(factors_N))
    steps = np.floor(np.cumsum(factors_N[order]) + rng.random())
    copies_N = np.empty(len(factors_N), np.int64)
    copies_N[order] = np.diff(steps, prepend=0)
    return copies_N
