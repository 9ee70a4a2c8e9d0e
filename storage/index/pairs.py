"""How alike two random rows of an archive are: the scale that gives a score its meaning.

A cosine similarity of .8 is much for one encoder and little for another. A share is the same for
all: the part of all pairs of rows that are less alike than a query and its hit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

PAIR_ROWS = 2048
"""Rows of the sample; two million pairs."""
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)
"""Shares at which the score is kept. The sample cannot tell larger shares apart."""
ORDINARY = 0.9
"""A query whose best hit has a smaller share is like nothing in the archive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairScores:
    """The distribution of the scores between random rows.

    ``scores`` are those that the ``shares`` of the pairs of ``rows`` sampled rows do not reach,
    both ascending.
    """

    rows: int
    shares: tuple[float, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, vectors: Float32) -> "PairScores | None":
        """Measure unit vectors (n, D); None when there are less than two.

        Examples
        --------
        >>> found = PairScores.of(np.eye(4, dtype=np.float32))
        >>> (found.rows, set(found.scores))
        (4, {0.0})
        """
        if len(vectors) < 2:
            return None
        products = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        scores = np.quantile(products, SHARES)
        return cls(rows=len(vectors), shares=SHARES, scores=tuple(map(float, scores)))

    def share_below(self, scores: npt.ArrayLike) -> Float64:
        """Return the share of pairs below each score, at most the largest share that is kept.

        Examples
        --------
        >>> pairs = PairScores(rows=9, shares=(0.0, 0.5, 0.9), scores=(0.0, 0.2, 0.6))
        >>> pairs.share_below([-0.5, 0.4, 0.95]).tolist()
        [0.0, 0.7, 0.9]
        """
        asked = np.asarray(scores, dtype=np.float64)
        return np.interp(asked, self.scores, self.shares).round(6)


def in_words(share: float) -> str:
    """Return a share for people, rounded down.

    Examples
    --------
    >>> [in_words(share) for share in (0.9999, 0.99934, 0.9871, 0.5)]
    ['99.99 %', '99.9 %', '98 %', '50 %']
    """
    digits = 2 if share >= 0.9999 else 1 if share >= 0.99 else 0
    scale = 10**digits
    return f"{np.floor(share * 100 * scale + 1e-6) / scale:.{digits}f} %"
