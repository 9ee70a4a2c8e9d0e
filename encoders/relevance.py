"""Relevance of database items to queries: label overlaps with the distinct label sets.

A database has far fewer distinct label sets than items, so gains, ideal rankings and numbers of
relevant items are computed per label set.

Shapes: Q queries, q queries of a chunk, N items, V distinct label sets, C labels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.ranking import Floats, Ints, chunks
from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Gains:
    """Gains of q queries from each of the V label sets, and the number of items with each set."""

    shared_qV: Floats
    jaccard_qV: Floats
    cosine_qV: Floats
    surplus_qV: Floats
    count_qV: Floats

    @property
    def relevant_q(self) -> Floats:
        """Number of items that share a label with each query, shape (q,)."""
        counts_q: Floats = ((self.shared_qV > 0) * self.count_qV).sum(1)
        return counts_q


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """Labels of queries and database, grouped into V distinct label sets.

    ``set_N`` is the label set of each item and ``count_V`` the number of items with each set;
    ``exclude_Q`` is the database position of each query itself, or -1; ``rare_counts_C`` defines
    the rare labels and ``k`` the depth of the metrics named ``@k``.
    """

    y_QC: Floats
    set_VC: Floats
    set_N: Ints
    count_V: Ints
    exclude_Q: Ints
    rare_counts_C: Floats
    k: int

    @classmethod
    def of(
        cls,
        y_QC: ArrayLike,
        y_NC: ArrayLike,
        k: int,
        exclude_self: ArrayLike | None,
        rare_counts: ArrayLike | None,
    ) -> "Relevance":
        """Check the labels and group the database by label set; see ``score_retrieval``."""
        y_QC, y_NC = np.asarray(y_QC), np.asarray(y_NC)
        if y_QC.ndim != 2 or y_NC.ndim != 2 or y_QC.shape[1] != y_NC.shape[1]:
            raise ConfigError(f"metrics: labels do not fit: {y_QC.shape} and {y_NC.shape}")
        if k < 1 or len(y_NC) == 0:
            raise ConfigError(f"metrics: expected k >= 1 and a database, got {k}, {len(y_NC)}")
        exclude_Q = np.full(len(y_QC), -1) if exclude_self is None else np.asarray(exclude_self)
        counts_C = y_NC.sum(0) if rare_counts is None else np.asarray(rare_counts)
        if exclude_Q.shape != (len(y_QC),) or counts_C.shape != (y_QC.shape[1],):
            raise ConfigError(
                "metrics: exclude_self or rare_counts do not fit: "
                f"{exclude_Q.shape}, {counts_C.shape} for {y_QC.shape} query labels"
            )
        set_N, first_V = _label_sets(y_NC)
        return cls(
            y_QC=y_QC.astype(np.float64),
            set_VC=y_NC[first_V].astype(np.float64),
            set_N=set_N,
            count_V=np.bincount(set_N),
            exclude_Q=exclude_Q.astype(np.int64),
            rare_counts_C=counts_C.astype(np.float64),
            k=k,
        )

    @property
    def queries(self) -> int:
        """Q."""
        return len(self.y_QC)

    @property
    def items(self) -> int:
        """N."""
        return len(self.set_N)

    def hits_q(self, depth: int, rows: slice = slice(None)) -> Ints:
        """Return the number of hits of each query that a metric of this depth uses, shape (q,).

        A query whose own row is excluded has one item less.
        """
        hits_q: Ints = np.clip(self.items - (self.exclude_Q[rows] >= 0), 1, depth)
        return hits_q

    @cached_property
    def most_relevant(self) -> int:
        """Largest number of relevant items of a query."""
        parts = chunks(self.queries, 32 * len(self.set_VC), 2**26)
        maxima = [self.gains(rows).relevant_q.max(initial=0) for rows in parts]
        return int(max(maxima, default=0))

    def gains(self, rows: slice) -> Gains:
        """Return the gains of the queries of a chunk from each label set."""
        y_qC = self.y_QC[rows]
        shared_qV = y_qC @ self.set_VC.T
        size_q1, size_V = y_qC.sum(1, keepdims=True), self.set_VC.sum(1)
        count_qV = np.repeat(self.count_V[None].astype(np.float64), len(y_qC), axis=0)
        own_q = self.exclude_Q[rows]
        has_own = np.flatnonzero(own_q >= 0)
        count_qV[has_own, self.set_N[own_q[has_own]]] -= 1
        return Gains(
            shared_qV=shared_qV,
            jaccard_qV=shared_qV / np.maximum(size_q1 + size_V - shared_qV, 1),
            cosine_qV=shared_qV / np.sqrt(np.maximum(size_q1 * size_V, 1)),
            surplus_qV=size_V - shared_qV,
            count_qV=count_qV,
        )


def _label_sets(y_NC: NDArray[Any]) -> tuple[Ints, Ints]:
    """Return the label set of each row as a number, and the first row with each set.

    Labels are packed 31 at a time into an integer behind the number so far, so any C fits.
    """
    set_N = np.zeros(len(y_NC), np.int64)
    first_V = np.zeros(1, np.int64)
    for start in range(0, y_NC.shape[1], 31):
        bits = (y_NC[:, start : start + 31] > 0).astype(np.int64)
        code_N = (set_N << np.int64(31)) + bits @ (1 << np.arange(bits.shape[1]))
        _, first_V, set_N = np.unique(code_N, return_index=True, return_inverse=True)
    return set_N.reshape(-1), first_V
