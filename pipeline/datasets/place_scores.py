"""Whether tiles of an archive find their own ground on another date, by any encoder.

The vectors of an archive are those of one encoder. To compare an encoder with its backbone's
features, the tiles are read from their scenes again. Which acquisitions count is decided as for
the pairs of a training, by its settings.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoders.bundle import Encoder
from pipeline.analysis.comparison import Comparison
from pipeline.analysis.evaluation import SamePlace, Vectors, find_same_place
from pipeline.datasets.embed import embed_images
from pipeline.datasets.score import Compared, side_by_side
from pipeline.training.place_sources import PlaceSpec
from pipeline.training.places import PLACES, write_places
from pipeline.training.spec import TrainingSpec
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.scene import CatalogSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceQueries:
    """How many tiles look for their place, and how deep.

    Attributes
    ----------
    depths
        Numbers of hits looked at.
    most, seed
        Largest number of queries, and seed of their draw.
    """

    depths: Sequence[int] = (1, 5, 10)
    most: int = 2000
    seed: int = 0


def score_places(
    encoder: Encoder,
    archive: Archive,
    ways: Mapping[str, Vectors],
    rules: TrainingSpec,
    queries: PlaceQueries,
    progress: ProgressSink = ignore,
) -> Compared:
    """Score how often a tile of an archive finds its own place in the other scenes, by query.

    Parameters
    ----------
    encoder, archive
        The encoder, and an archive of several dates with tiles such as it takes.
    ways
        See :func:`pipeline.analysis.evaluation.blends_to_score`.
    rules
        Which acquisitions count: see :func:`pipeline.training.places.mined`.
    queries
        How many of them are queries, and how deep they look. A resample of the bootstrap draws
        places, since the acquisitions of a place depend on each other.

    Raises
    ------
    ConfigError, SceneError
        The archive has too few places, or other bands or tiles; or no scene can be read.
    """
    with tempfile.TemporaryDirectory(prefix="skysift-places-") as folder:
        source = PlaceSpec(catalog=CatalogSpec.of(archive.location))
        unlabelled = replace(encoder.spec, classes=("place",))  # a dataset has at least one class
        write_places(source, rules, unlabelled, Location(folder), progress=progress)
        tiles = LabelledDataset.open(Location(folder) / PLACES)
        features = embed_images(
            encoder, tiles, np.arange(len(tiles)), projected=False, progress=progress
        )
    vectors = encoder.projected(features)
    weighted = {blend: weigh(vectors) for blend, weigh in ways.items()}
    frozen = None if encoder.spec.head.get("kind") == "identity" else features
    found = {
        name: find_same_place(
            z,
            tiles.rows["tile_key"].to_numpy(str),
            tiles.rows["scene"].to_numpy(str),
            queries.depths,
            most_queries=queries.most,
            seed=queries.seed,
        )
        for name, z in side_by_side(frozen, weighted).items()
    }
    return _compared(archive, tiles, found)


def _compared(
    archive: Archive,
    tiles: LabelledDataset,
    found: Mapping[str, SamePlace],
) -> Compared:
    """Return the scores of several vectors for the same queries."""
    first = next(iter(found.values()))
    places = tiles.rows["tile_key"].nunique()
    left_out = tiles.info.origin.get("left_out", {})
    missing = "".join(f" Scene {name} is left out: {why}." for name, why in left_out.items())
    return Compared(
        uri=archive.uri,
        sources=tiles.rows["source"].to_numpy(str)[first.rows],
        comparison=Comparison(
            by_query={
                name: {f"same place@{k}": values for k, values in one.found.items()}
                for name, one in found.items()
            },
            items=len(tiles),
            together_Q=first.place_Q,
        ),
        note=f"{places:,} places in {first.scenes} scenes.{missing}",
    )
