"""Pairs of places of an archive, mined once for a training run and kept beside it.

Two acquisitions of one tile key are a pair. Cloudy tiles are left out, those of another season by
choice, and the ground of the dataset's validation and test rows. The pixels of the acquisitions lie
in ``places/`` of the run, as a dataset without labels.
"""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.archive_tiles import ArchiveTiles, append_tiles, blocks_kept_apart
from pipeline.training.spec import TrainingSpec
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset, read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import ProgressSink, ignore

PLACES = "places"
"""Name of the dataset of the acquisitions in the folder of a run."""
_YEAR_DAYS = 366
Ints = NDArray[np.int64]


def mined(
    archive: Archive, spec: TrainingSpec, is_apart: Callable[[str], bool] = lambda _: False
) -> Ints:
    """Return the rows of the archive that are acquisitions of places with two or more.

    Parameters
    ----------
    spec
        ``place_cloud``, ``place_season_days`` and ``most_places`` are the rules; ``seed`` draws the
        places where there are more. A season is around the day of the clearest acquisition.
    is_apart
        Tells which tiles, by their keys, are left out.

    Raises
    ------
    ConfigError
        Fewer than two places are left.
    """
    columns = archive.read_all(["tile_key", "datetime", "cloud_fraction"])
    is_clear = ~(columns["cloud_fraction"] > spec.place_cloud)  # NaN: no mask is known
    keys, clouds = columns["tile_key"], columns["cloud_fraction"]
    day = columns["datetime"].astype("datetime64[D]")
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
            f"training: archive {archive.uri} has {len(places)} places with two acquisitions that "
            f"are clear (cloud up to {spec.place_cloud:g}); ingest more dates of the same "
            "ground, or allow more cloud and season"
        )
    drawn = np.random.default_rng(spec.seed).permutation(len(places))[: spec.most_places]
    chosen = np.sort(np.concatenate([places[place] for place in drawn]))
    rows_n: Ints = columns["row"][chosen]
    return rows_n


def write_places(
    spec: TrainingSpec, dataset: LabelledDataset, output: Location, progress: ProgressSink = ignore
) -> None:
    """Write the acquisitions of ``spec.place_pairs`` beside a run, unless they are there.

    Raises
    ------
    ConfigError
        The archive has other bands or tile sizes than the dataset, or too few places.
    NotFoundError, SceneError
        There is no such archive, or its scenes cannot be read.
    """
    target = output / PLACES
    try:
        read_info(target)
        return
    except NotFoundError:
        archive = Archive.open(spec.place_pairs or "")
    ours, theirs = (dataset.bands, dataset.tile_px), (archive.spec.bands, archive.spec.tile_px)
    if ours != theirs:
        raise ConfigError(
            f"training: the archive of place pairs has bands {', '.join(theirs[0])} and tiles of "
            f"{theirs[1]} px, the dataset {', '.join(ours[0])} and {ours[1]} px; take an archive "
            "of the dataset's bands and tile size"
        )
    rows = mined(archive, spec, blocks_kept_apart(dataset))
    columns = archive.read(rows, [field.name for field in fields(ArchiveTiles)])
    tiles = ArchiveTiles(**columns)
    with DatasetWriter(
        target,
        bands=dataset.bands,
        classes=dataset.classes,
        resolution_m=dataset.resolution_m,
        origin={"importer": "place pairs", "archive": archive.uri, "snapshot": archive.snapshot},
        normalisation=(dataset.info.band_mean, dataset.info.band_std),
    ) as writer:
        labels = np.zeros((len(tiles), len(dataset.classes)), np.uint8)
        writer.finish(append_tiles(writer, archive, tiles, labels, {}, progress))


def place_groups(places: LabelledDataset) -> tuple[Ints, ...]:
    """Return the row numbers of the acquisitions of each place that has two or more."""
    _, number = np.unique(places.rows["tile_key"].to_numpy(dtype=str), return_inverse=True)
    order = np.argsort(number, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    return tuple(group for group in groups if len(group) > 1)
