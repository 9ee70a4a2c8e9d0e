"""An encoder whose first part has learned places: a trained encoder, and pairs of dates.

The head of the first part learns from pairs alone, on the features of the encoder's backbone. So
both parts stem from one backbone, whatever the second part was trained on.
"""

import tempfile
from collections.abc import Callable

import numpy as np

from encoders.bundle import Encoder, load_encoder, require_one_part, with_places
from encoders.places import PlaceRows
from encoders.spec import read_spec
from pipeline.datasets.embed import embed_images
from pipeline.training.head import place_head
from pipeline.training.place_sources import PlaceSpec
from pipeline.training.places import PLACES, place_groups, write_places
from pipeline.training.spec import TrainingSpec
from storage.dataset import LabelledDataset
from storage.location import Location
from storage.parts import PLACE_BLEND
from storage.progress import ProgressSink, ignore


def place_part_encoder(
    trained: str | Location,
    source: PlaceSpec,
    spec: TrainingSpec,
    dimension: int,
    blend: float = PLACE_BLEND,
    *,
    is_apart: Callable[[str], bool] = lambda _: False,
    progress: ProgressSink = ignore,
) -> Encoder:
    """Return a trained encoder with a part before its own that has learned places.

    Parameters
    ----------
    trained
        Bundle of the trained encoder.
    source
        Archive or catalog of several dates of the same ground.
    spec
        ``place_batch``, ``place_cloud``, ``place_season_days``, ``most_places`` and ``seed`` say
        how pairs are chosen.
    dimension, blend
        Width of the place part, and its weight in a query that names none, 0 to 1.
    is_apart
        Tells which tiles, by their keys, are left out.
    progress
        Receives the scenes that were read, and the tiles that were embedded.

    Raises
    ------
    ConfigError, NotFoundError, SceneError
        The encoder has two parts already, or as :func:`pipeline.training.places.write_places`.
    """
    own = read_spec(trained)
    require_one_part(own)
    with tempfile.TemporaryDirectory(prefix="skysift-places-") as scratch:
        folder = Location(scratch)
        write_places(source, spec, own, folder, is_apart, progress)
        return learn_place_part(trained, folder / PLACES, spec, dimension, blend, progress=progress)


def learn_place_part(
    trained: str | Location,
    places: str | Location,
    spec: TrainingSpec,
    dimension: int,
    blend: float = PLACE_BLEND,
    *,
    progress: ProgressSink = ignore,
) -> Encoder:
    """Do the same with acquisitions that are written: those of ``places``, a dataset."""
    encoder, dataset = load_encoder(trained), LabelledDataset.open(places)
    rows = np.arange(len(dataset))
    features = embed_images(encoder, dataset, rows, projected=False, progress=progress)
    groups = place_groups(dataset)
    pairs = PlaceRows(inputs=features, places=groups, batch_size=spec.place_batch)
    head = place_head(pairs, dimension, seed=spec.seed)
    return with_places(encoder, head, {"dataset": dataset.info.digest}, blend)
