"""Pairs of places: which acquisitions count, and a run that learns from an archive of two dates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.tiles.spec import GridSpec
from pipeline.training.place_sources import ArchivePlaces, PlaceSpec, open_source
from pipeline.training.places import PLACES, mined, place_groups, write_places
from pipeline.training.spec import TrainingJob
from pipeline.training.worker import TrainingWorker
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset, read_info
from storage.errors import ConfigError
from storage.location import Location
from storage.progress import ignore
from storage.scene import CatalogSpec
from tests.support.archive_world import create_archive
from tests.support.dated_world import add_scene
from tests.support.place_world import SIDE, TILE_PX
from tests.support.training_world import SPEC, ingest_two_dates, write_dataset


def test_cloud_and_season_decide_which_acquisitions_count(tmp_path: Path):
    uri = str(tmp_path / "archive")
    create_archive(uri, 8)
    vectors = np.random.default_rng(0).normal(size=(4, 8))
    add_scene(uri, "june", "2020-06-10", vectors, cloud=np.array([0, 0, 0.5, 0]))
    add_scene(uri, "july", "2021-07-01", vectors[:3], cloud=np.array([0.05, 0, 0]))
    add_scene(uri, "december", "2021-12-20", vectors[:2], cloud=np.array([0.02, 0.9]))
    archive = Archive.open(uri)
    keys = archive.read_all(["tile_key", "scene"])
    seen = ArchivePlaces(archive, archive.spec).seen(ignore)

    def places(**rules) -> list[list[str]]:
        chosen = mined(seen, replace(SPEC, **rules), "archive")
        found = {name: keys[name][chosen] for name in ("tile_key", "scene")}
        names = sorted(set(keys["tile_key"]))
        at = [[str(s)[:3] for s in found["scene"][found["tile_key"] == name]] for name in names]
        return [sorted(scenes) for scenes in at if scenes]

    assert places() == [["dec", "jul", "jun"], ["jul", "jun"]]
    assert places(place_season_days=30) == [["jul", "jun"], ["jul", "jun"]]
    assert places(place_cloud=0.6)[2:] == [["jul", "jun"]]
    with pytest.raises(ConfigError, match="places with two acquisitions"):
        mined(seen, replace(SPEC, place_cloud=0.01), "archive")


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
    ingest_two_dates(folder)
    pairs = {"place_pairs": str(folder / "archive"), "place_weight": 2.0, "place_batch": 16}
    return TrainingJob(
        dataset=Location(str(folder / "set")),
        dataset_digest=info.digest,
        spec=replace(SPEC, epochs=12, augment=None, **pairs),
        output=Location(str(folder / "out")),
    )


def source_of(job: TrainingJob, source: str | None = None) -> PlaceSpec:
    return PlaceSpec(catalog=CatalogSpec.of(source or job.spec.place_pairs))


def test_a_run_brings_two_dates_of_a_place_together(job: TrainingJob):
    write_places(source_of(job), job.spec, read_info(job.dataset), job.output)
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
    with pytest.raises(ConfigError, match=r"archive .* has bands .* but expected are"):
        open_source(PlaceSpec(catalog=CatalogSpec.of(uri)), read_info(job.dataset))


def test_scenes_that_were_never_ingested_give_the_pairs_of_their_archive(
    job: TrainingJob, tmp_path: Path
):
    """Tile by tile, with the pixels, the keys and the ground that is kept apart."""
    inputs, scenes = read_info(job.dataset), str(Path(str(job.dataset)).parent / "scenes")
    apart = "epsg32632-10-16/2000/-30000"
    rules, found = replace(job.spec, most_places=20), []
    for source in (job.spec.place_pairs, scenes):
        target = Location(str(tmp_path / Path(str(source)).name))
        write_places(source_of(job, source), rules, inputs, target, lambda key: key == apart)
        found.append(LabelledDataset.open(target / PLACES))
    archive, catalog = found
    assert len(catalog) == 40
    assert apart not in set(catalog.rows["tile_key"])
    assert archive.rows.equals(catalog.rows)
    np.testing.assert_array_equal(archive.images, catalog.images)


def test_a_catalog_of_another_grid_is_another_source(job: TrainingJob):
    scenes = str(Path(str(job.dataset)).parent / "scenes")
    assert source_of(job).digest == ""
    native = source_of(job, scenes)
    assert native.digest != replace(native, grid=GridSpec(resolution=20)).digest
    with pytest.raises(ConfigError, match=r"set grid\.tile_px to 16"):
        open_source(replace(native, grid=GridSpec(tile_px=32)), read_info(job.dataset))
