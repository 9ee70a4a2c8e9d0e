"""Places as supervision: two acquisitions of one tile attract each other, other places repel.

Shapes: B pairs of this worker, G = W · B pairs of the global batch, N rows, D dimension.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from encoders.gather import Group, gather_rows_of
from storage.errors import ConfigError

Ints = NDArray[np.int64]
TEMPERATURE = 0.1
_STREAM = 7  # keeps the draws of pairs apart from those of augmentation


def place_loss(
    z_BD: Tensor, other_BD: Tensor, temperature: float = TEMPERATURE, group: Group = None
) -> Tensor:
    """Return ½ [NCE(a → b) + NCE(b → a)] of the pairs over the global batch, ready for DDP.

    The mean of the returned values over the workers is the loss of the global batch, and the mean
    of the gradients is its gradient, as of :func:`encoders.gather.global_loss`.

    Parameters
    ----------
    z_BD, other_BD
        Unit vectors of two acquisitions of each place; B is the same on every worker, and no place
        occurs twice in the global batch.
    temperature
        τ.

    References
    ----------
    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018.
    """
    z_GD, offset = gather_rows_of(z_BD, group)
    other_GD, _ = gather_rows_of(other_BD, group)
    own_B = torch.arange(offset, offset + len(z_BD), device=z_BD.device)
    forth = F.cross_entropy(z_BD @ other_GD.T / temperature, own_B)
    back = F.cross_entropy(other_BD @ z_GD.T / temperature, own_B)
    return (forth + back) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceRows:
    """Acquisitions of places, without labels.

    Attributes
    ----------
    inputs
        As `encoders.loop.TrainingRows.inputs`: pixels, or features of a frozen backbone.
    places
        Row numbers of the acquisitions of each place, two or more.
    weight
        λ, by which the loss of the pairs is multiplied.
    batch_size
        Pairs of the global batch.
    """

    inputs: NDArray[Any]
    places: tuple[Ints, ...]
    weight: float = 0.25
    batch_size: int = 128

    def __post_init__(self) -> None:
        if len(self.places) < 2 or min(map(len, self.places)) < 2:
            raise ConfigError(
                f"place pairs: {len(self.places)} places with two acquisitions are too few; at "
                "least 2 are needed, so ingest more dates of the same ground"
            )

    def draw(self, seed: int, step: int, rank: int = 0, world_size: int = 1) -> tuple[Ints, Ints]:
        """Return the rows of a worker's pairs in a step, (B,) and (B,).

        The global batch follows from seed and step: different places, and two different
        acquisitions of each. Workers take equal parts of it in their order.

        Raises
        ------
        ConfigError
            There are fewer pairs in a batch than workers.

        Examples
        --------
        >>> rows = PlaceRows(inputs=np.zeros((4, 1)), places=(np.array([0, 1]), np.array([2, 3])))
        >>> first, second = rows.draw(0, 0)
        >>> sorted((first + second).tolist())
        [1, 5]
        """
        rng = np.random.default_rng((seed, step, _STREAM))
        count = min(self.batch_size, len(self.places)) // world_size * world_size
        if not count:
            raise ConfigError(
                f"place pairs: {len(self.places)} places in batches of {self.batch_size} give none "
                f"to each of {world_size} workers; ingest more ground, or train with fewer workers"
            )
        drawn = rng.permutation(len(self.places))[:count]
        pairs = np.array([rng.permutation(self.places[place])[:2] for place in drawn])
        share = len(pairs) // world_size
        own = pairs[rank * share : (rank + 1) * share]
        return own[:, 0].astype(np.int64), own[:, 1].astype(np.int64)
