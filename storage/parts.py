"""Vectors of two parts, and the weight between them that a query chooses.

A vector of an encoder of two parts is ``v = [p; l] / √2``: the appearance part p and the label part
l, each of unit length. A query of weight w is ``q = √2 [w p; (1 − w) l]``, so that its dot product
with a vector is ``w cos(p) + (1 − w) cos(l)``, in an index of any kind.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError
from storage.values import Count, Fraction, check_limits

DEFAULT_BLEND = 0.15
"""For one head; recipes of others name the blend that `benchmarks.dial` chose for them."""
PLACE_BLEND = 0.5
"""Of a first part that has learned places: at this weight a date held out finds the same place
first most often (`benchmarks.place_pairs`)."""
EVEN_BLEND = 0.5
"""The blend of which a score is the cosine similarity of the whole vectors."""
_NO_LENGTH = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The parts of the vectors of an encoder.

    Attributes
    ----------
    appearance
        Width of the appearance part, which comes first.
    labels
        Width of the label part.
    blend
        Weight of the appearance part in a query that names none, from 0 to 1.
    """

    appearance: Count
    labels: Count
    blend: Fraction = DEFAULT_BLEND

    def __post_init__(self) -> None:
        check_limits(self, "parts")

    @property
    def dimension(self) -> int:
        """Width of a whole vector, D."""
        return self.appearance + self.labels

    @property
    def measured(self) -> tuple[float, ...]:
        """Blends at which the recall of an index is measured: both ends and the default."""
        return tuple(sorted({0.0, self.blend, 1.0}))

    def query(self, vector: npt.ArrayLike, blend: float) -> npt.NDArray[np.float64]:
        """Return the query (D,) whose dot product with a vector is its blended score.

        Parameters
        ----------
        vector
            A vector (D,) of the encoder. Each of its parts is scaled to unit length.
        blend
            Weight w of the appearance part, from 0 to 1.

        Raises
        ------
        ConfigError
            The blend is not from 0 to 1, or the vector has another shape or a part without length.

        Examples
        --------
        >>> Parts(appearance=1, labels=2).query([3.0, 0.0, 2.0], 0.5).round(3).tolist()
        [0.707, 0.0, 0.707]
        """
        if not 0 <= blend <= 1:
            raise ConfigError(f"search: blend is {blend}; give a number from 0 to 1")
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (self.dimension,):
            raise ConfigError(
                f"search: a query has shape {values.shape}, expected ({self.dimension},); "
                "embed it with the encoder of this index"
            )
        parts = np.split(values, [self.appearance])
        lengths = [float(np.linalg.norm(part)) for part in parts]
        if not all(np.isfinite(length) and length > 0 for length in lengths):
            raise ConfigError(
                f"search: the parts of a query have the lengths {lengths[0]:g} and "
                f"{lengths[1]:g}; give a finite vector whose parts are not zero"
            )
        weights = (blend / lengths[0], (1 - blend) / lengths[1])
        scaled = [weight * part for weight, part in zip(weights, parts, strict=True)]
        return np.asarray(np.sqrt(2) * np.concatenate(scaled))

    def weighted(self, vectors_ND: npt.ArrayLike, blend: float) -> npt.NDArray[np.float32]:
        """Return unit vectors (N, D) whose dot products are the blended scores of the vectors.

        For scores of many queries at once, as in `encoders.metrics`: with p and l the parts of a
        vector, scaled to unit length, its row is ``[√w p; √(1 − w) l]``.

        Parameters
        ----------
        vectors_ND
            Vectors of the encoder; a part without length stays zero.
        blend
            Weight w of the appearance part, from 0 to 1.

        Raises
        ------
        ConfigError
            The blend is not from 0 to 1, or the vectors have another width.

        Examples
        --------
        >>> Parts(appearance=1, labels=2).weighted([[3.0, 0.0, 2.0]], 0.25).tolist()
        [[0.5, 0.0, 0.8660253882408142]]
        """
        values = np.asarray(vectors_ND, dtype=np.float32)
        if not 0 <= blend <= 1:
            raise ConfigError(f"parts: blend is {blend}; give a number from 0 to 1")
        if values.ndim != 2 or values.shape[1] != self.dimension:
            raise ConfigError(
                f"parts: vectors have shape {values.shape}, expected (N, {self.dimension})"
            )
        weights = (np.sqrt(blend), np.sqrt(1 - blend))
        scaled = [
            weight * part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), _NO_LENGTH)
            for weight, part in zip(
                weights, np.split(values, [self.appearance], axis=1), strict=True
            )
        ]
        return np.asarray(np.concatenate(scaled, axis=1), dtype=np.float32)


def recall_queries(
    parts: Parts | None, vectors: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the queries (W, n, D) that vectors (n, D) make at each of the W measured blends.

    Vectors of one part, for which ``parts`` is None, are queries as they are, and W is 1.
    """
    if parts is None:
        return vectors[None]
    asked = [[parts.query(vector, blend) for vector in vectors] for blend in parts.measured]
    return np.asarray(asked, dtype=np.float32)
