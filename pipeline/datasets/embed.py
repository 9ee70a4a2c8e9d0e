"""Vectors of the images of a labelled dataset, which may be larger than memory.

Also the encoder of two parts, whose first part is fitted to such vectors.
"""

import numpy as np
from numpy.typing import NDArray

from encoders.bundle import Encoder, load_encoder, require_one_part, with_appearance
from storage.dataset import LabelledDataset, evenly
from storage.errors import EncoderMismatchError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore

_BATCH = 64
_APPEARANCE_ROWS = 10_000


def embed_images(
    encoder: Encoder,
    dataset: LabelledDataset,
    rows: NDArray[np.int64],
    *,
    projected: bool = True,
    progress: ProgressSink = ignore,
) -> NDArray[np.float32]:
    """Return the vectors of rows of a dataset, float32 (n, D), reading 64 images at a time.

    Parameters
    ----------
    encoder, dataset
        The encoder, and a dataset of its bands.
    rows
        Row numbers (n,), at least one.
    projected
        Without, the features (n, F) of the backbone.

    Raises
    ------
    EncoderMismatchError
        The dataset has other bands, or tiles of another size.
    """
    if dataset.tile_px != encoder.tile_px:
        raise EncoderMismatchError(
            f"the dataset has tiles of {dataset.tile_px} px, the encoder takes "
            f"{encoder.tile_px} px; import it with --set dataset.tile_px={encoder.tile_px}"
        )
    if dataset.bands != encoder.bands:
        raise EncoderMismatchError(
            f"the dataset has bands {', '.join(dataset.bands)}, the encoder takes "
            f"{', '.join(encoder.bands)}; choose a matching pair"
        )
    embed, parts = encoder if projected else encoder.features, []
    for start in range(0, len(rows), _BATCH):
        chosen = rows[start : start + _BATCH]
        parts.append(embed(np.asarray(dataset.images[chosen], np.float32)))
        done = start + len(chosen)
        progress(Progress(stage="embed", done=done, total=len(rows), unit="images"))
    return np.concatenate(parts)


def sampled_features(encoder: Encoder, dataset: LabelledDataset, most: int) -> NDArray[np.float32]:
    """Return the backbone's features (n, F) of at most this many train rows, evenly spaced."""
    rows = evenly(dataset.indices("train"), most)
    return embed_images(encoder, dataset, rows, projected=False)


def most_appearance(encoder: Encoder, dataset: LabelledDataset) -> int:
    """Return the largest width of an appearance part: of the features, and of the train rows."""
    rows = min(len(dataset.indices("train")), _APPEARANCE_ROWS)
    return min(encoder.backbone.dimension, rows)


def two_part_encoder(
    trained: str | Location, dataset: str | Location, dimension: int, blend: float
) -> Encoder:
    """Return a trained encoder with an appearance part, fitted to at most 10,000 train rows.

    Parameters
    ----------
    trained, dataset
        Bundle of the trained encoder, and the labelled dataset.
    dimension, blend
        Width of the appearance part, and its weight in a query that names none, 0 to 1.

    Raises
    ------
    ConfigError, EncoderMismatchError, NotFoundError
        See :func:`encoders.bundle.with_appearance` and :func:`embed_images`, or one is not there.
    """
    encoder = load_encoder(trained)
    require_one_part(encoder.spec)
    features = sampled_features(encoder, LabelledDataset.open(dataset), _APPEARANCE_ROWS)
    return with_appearance(encoder, features, dimension, blend)
