"""Label statistics of a training set: counts of each label and of each pair of labels."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.errors import ConfigError

_SAMPLE_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelStatistics:
    """Counts over the N label rows of a training set with C classes.

    Attributes
    ----------
    rows
        N, the number of label rows.
    class_counts
        ``n_c``, C integers: number of rows with label c.
    pair_counts
        ``n_cd``, C × C integers: number of rows with both c and d; the diagonal is ``n_c``.
    mean_rarity
        Mean over the labelled rows of ``rho_i``, the mean of ``1 - n_c / N`` over the row's labels.
    mean_jaccard
        Mean Jaccard overlap of two different rows, measured on at most 4,096 evenly spaced rows.
    """

    rows: int
    class_counts: tuple[int, ...]
    pair_counts: tuple[tuple[int, ...], ...]
    mean_rarity: float
    mean_jaccard: float

    @property
    def classes(self) -> int:
        """C, the number of labels."""
        return len(self.class_counts)

    @classmethod
    def from_labels(cls, y_NC: ArrayLike) -> Self:
        """Count the labels of a training set.

        Parameters
        ----------
        y_NC
            Multi-hot labels, shape (N, C), values 0 or 1, any dtype.

        Raises
        ------
        ConfigError
            When the array is not two-dimensional, is empty or contains values other than 0 and 1.

        Examples
        --------
        >>> statistics = LabelStatistics.from_labels([[1, 1], [1, 0], [0, 0]])
        >>> statistics.class_counts, statistics.pair_counts
        ((2, 1), ((2, 1), (1, 1)))
        """
        y_NC = np.asarray(y_NC)
        if y_NC.ndim != 2 or 0 in y_NC.shape:
            raise ConfigError(f"labels: expected a non-empty (N, C) array, got shape {y_NC.shape}")
        if not np.isin(y_NC, (0, 1)).all():
            raise ConfigError("labels: expected only 0 and 1; threshold label fractions first")
        y_NC = y_NC.astype(np.float64)
        pairs_CC = np.rint(y_NC.T @ y_NC).astype(int)
        counts_C = np.diagonal(pairs_CC)
        sizes_N = y_NC.sum(1)
        labelled = sizes_N > 0
        rarity = (y_NC @ (1 - counts_C / len(y_NC)))[labelled] / sizes_N[labelled]
        return cls(
            rows=len(y_NC),
            class_counts=tuple(counts_C.tolist()),
            pair_counts=tuple(map(tuple, pairs_CC.tolist())),
            mean_rarity=float(rarity.mean()) if labelled.any() else 0.0,
            mean_jaccard=_mean_jaccard(y_NC),
        )


def _mean_jaccard(y_NC: NDArray[np.float64]) -> float:
    """Return the mean Jaccard overlap over pairs of different rows, on an even sample of rows."""
    # Rows with equal label sets are counted once and weighted: U patterns instead of N rows.
    chosen = np.linspace(0, len(y_NC) - 1, min(len(y_NC), _SAMPLE_ROWS)).astype(int)
    patterns_UC, copies_U = np.unique(y_NC[chosen], axis=0, return_counts=True)
    shared_UU = patterns_UC @ patterns_UC.T
    sizes_U = patterns_UC.sum(1)
    union_UU = sizes_U[:, None] + sizes_U - shared_UU
    jaccard_UU = np.divide(shared_UU, union_UU, out=np.zeros_like(shared_UU), where=union_UU > 0)
    with_self = copies_U @ jaccard_UU @ copies_U
    self_pairs = (np.diagonal(jaccard_UU) * copies_U).sum()
    pairs = len(chosen) * (len(chosen) - 1)
    return float((with_self - self_pairs) / pairs) if pairs else 0.0
