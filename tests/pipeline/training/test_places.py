"""Pairs of places: which acquisitions count, and a run that learns from an archive of two dates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.training.places import PLACES, mined, place_groups, write_places
from pipeline.training.spec import TrainingJob
from pipeline.training.worker import TrainingWorker
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset, read_info
from storage.errors import ConfigError
from storage.location import Location
from tests.support.archive_world import create_archive
from tests.support.dated_world import add_scene
from tests.support.training_world import SPEC, TILE_PX, ingest_two_dates, write_dataset

SIDE = 6


def test_cloud_and_season_decide_which_acquisitions_count(tmp_path: Path):
    uri = str(tmp_path / "archive")
    create_archive(uri, 8)
    vectors = np.random.default_rng(0).normal(size=(4, 8))
    add_scene(uri, "june", "2020-06-10", vectors, cloud=np.array([0, 0, 0.5, 0]))
    add_scene(uri, "july", "2021-07-01", vectors[:3], cloud=np.array([0.05, 0, 0]))
    add_scene(uri, "december", "2021-12-20", vectors[:2], cloud=np.array([0.02, 0.9]))
    archive = Archive.open(uri)
    keys = archive.read_all(["tile_key", "scene"])

    def places(**rules) -> list[list[str]]:
        rows = mined(archive, replace(SPEC, **rules))
        found = archive.read(rows, ["tile_key", "scene"])
        names = sorted(set(keys["tile_key"]))
        at = [[str(s)[:3] for s in found["scene"][found["tile_key"] == name]] for name in names]
        return [sorted(scenes) for scenes in at if scenes]

    assert places() == [["dec", "jul", "jun"], ["jul", "jun"]]
    assert places(place_season_days=30) == [["jul", "jun"], ["jul", "jun"]]
    assert places(place_cloud=0.6)[2:] == [["jul", "jun"]]
    with pytest.raises(ConfigError, match="places with two acquisitions"):
        mined(archive, replace(SPEC, place_cloud=0.01))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A run whose archive shows the same ground at two dates, the second one brighter."""
    folder = tmp_path_factory.mktemp("places")
    torch.set_num_threads(1)
    write_dataset(str(folder / "set"))
    info = read_info(str(folder / "set"))
    spec = EncoderSpec(
        backbone="tiny-cnn",
        backbone_options={"width": 8},
        bands=info.bands,
        band_mean=info.band_mean,
        band_std=info.band_std,
        tile_px=TILE_PX,
        dimension=64,
        head={"kind": "identity"},
    )
    save_bundle(new_encoder(spec), str(folder / "bundle"))
    ingest_two_dates(folder, SIDE)
    pairs = {"place_pairs": str(folder / "archive"), "place_weight": 2.0, "place_batch": 16}
    return TrainingJob(
        dataset=Location(str(folder / "set")),
        dataset_digest=info.digest,
        spec=replace(SPEC, epochs=12, augment=None, **pairs),
        output=Location(str(folder / "out")),
    )


def test_a_run_brings_two_dates_of_a_place_together(job: TrainingJob):
    write_places(job.spec, LabelledDataset.open(job.dataset), job.output)
    places = LabelledDataset.open(job.output / PLACES)
    groups = np.array(place_groups(places))
    assert groups.shape == (SIDE * SIDE, 2)
    assert len(set(places.rows["scene"])) == 2

    def recall(spec) -> float:
        own = replace(job, spec=spec)
        TrainingWorker(own).run(None, lambda row, save: None)
        z = load_encoder(own.bundle)(np.asarray(places.images, np.float32))
        similar = z[groups[:, 0]] @ z[groups[:, 1]].T
        return float((similar.argmax(1) == np.arange(len(groups))).mean())

    alone, paired = recall(replace(job.spec, place_pairs=None)), recall(job.spec)
    assert paired > alone + 0.2, (alone, paired)


def test_the_archive_has_the_bands_of_the_dataset(job: TrainingJob, tmp_path: Path):
    uri = str(tmp_path / "archive")
    create_archive(uri, 8)
    with pytest.raises(ConfigError, match="the archive of place pairs has bands"):
        write_places(
            replace(job.spec, place_pairs=uri),
            LabelledDataset.open(job.dataset),
            Location(str(tmp_path / "out")),
        )
