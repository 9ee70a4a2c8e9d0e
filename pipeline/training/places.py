"""Pairs of places, mined once for a training run and kept beside it.

Two acquisitions of one tile key are a pair. Cloudy tiles are left out, those of another season by
choice, and the ground of the dataset's validation and test rows. The pixels of the acquisitions lie
in ``places/`` of the run, as a dataset without labels.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.training.place_sources import Inputs, PlaceSpec, Seen, open_source
from pipeline.training.spec import TrainingSpec
from storage.dataset import LabelledDataset, read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import ProgressSink, ignore

logger = logging.getLogger(__name__)

PLACES = "places"
"""Name of the dataset of the acquisitions in the folder of a run."""
_YEAR_DAYS = 366
Ints = NDArray[np.int64]


def mined(
    seen: Seen, spec: TrainingSpec, name: str, is_apart: Callable[[str], bool] = lambda _: False
) -> Ints:
    """Return the positions of the acquisitions of places that have two or more.

    Parameters
    ----------
    seen
        All acquisitions.
    spec
        ``place_cloud``, ``place_season_days`` and ``most_places`` are the rules; ``seed`` draws the
        places where there are more. A season is around the day of the clearest acquisition.
    name
        What the acquisitions are of, for messages.
    is_apart
        Tells which tiles, by their keys, are left out.

    Raises
    ------
    ConfigError
        Fewer than two places are left.
    """
    keys, clouds = seen.tile_key, seen.cloud_fraction
    is_clear = ~(clouds > spec.place_cloud)  # NaN: no mask is known
    day = seen.datetime.astype("datetime64[D]")
    day_of_year = (day - day.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)
    of_place: dict[str, list[int]] = {}
    for row in np.flatnonzero(is_clear).tolist():
        of_place.setdefault(keys[row], []).append(row)
    places: list[Ints] = []
    for key, rows in of_place.items():
        if len(rows) < 2 or is_apart(key):
            continue
        clearest = min(rows, key=lambda row: (np.nan_to_num(clouds[row]), row))
        apart = np.abs(day_of_year[rows] - day_of_year[clearest])
        in_season = np.minimum(apart, _YEAR_DAYS - apart) <= (spec.place_season_days or _YEAR_DAYS)
        if in_season.sum() > 1:
            places.append(np.array(rows)[in_season])
    if len(places) < 2:
        raise ConfigError(
            f"training: {name} has {len(places)} places with two acquisitions that are clear "
            f"(cloud up to {spec.place_cloud:g}); give more dates of the same ground, or allow "
            "more cloud and season"
        )
    drawn = np.random.default_rng(spec.seed).permutation(len(places))[: spec.most_places]
    chosen: Ints = np.sort(np.concatenate([places[place] for place in drawn]))
    return chosen


def write_places(
    source: PlaceSpec,
    spec: TrainingSpec,
    inputs: Inputs,
    output: Location,
    is_apart: Callable[[str], bool] = lambda _: False,
    progress: ProgressSink = ignore,
) -> None:
    """Write the acquisitions of a source to `PLACES` of a folder, unless they are there.

    Parameters
    ----------
    source
        Archive or catalog.
    spec
        As for `mined`.
    inputs
        Dataset or encoder, whose bands, tile size and statistics the acquisitions have.
    output
        The folder.
    is_apart
        Tells which tiles, by their keys, are left out.
    progress
        Receives the scenes that were read.

    Raises
    ------
    ConfigError
        The source has other bands or tile sizes, or too few places.
    CatalogError, NotFoundError, SceneError
        There is no such source, or its scenes cannot be read.
    """
    target = output / PLACES
    try:
        read_info(target)
        return
    except NotFoundError:
        opened = open_source(source, inputs)
    chosen = mined(opened.seen(progress), spec, opened.name, is_apart)
    with DatasetWriter(
        target,
        bands=inputs.bands,
        classes=inputs.classes,
        resolution_m=inputs.resolution_m,
        origin={"importer": "place pairs", **opened.origin},
        normalisation=(inputs.band_mean, inputs.band_std),
    ) as writer:
        labels = np.zeros((len(chosen), len(inputs.classes)), np.uint8)
        left_out = opened.append(writer, chosen, labels, progress)
        writer.finish(left_out)
    for scene_id, reason in left_out.items():
        logger.warning("place pairs: scene %s is left out: %s", scene_id, reason)


def place_groups(places: LabelledDataset) -> tuple[Ints, ...]:
    """Return the row numbers of the acquisitions of each place that has two or more."""
    _, number = np.unique(places.rows["tile_key"].to_numpy(dtype=str), return_inverse=True)
    order = np.argsort(number, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    return tuple(group for group in groups if len(group) > 1)
