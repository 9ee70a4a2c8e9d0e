"""Encoders of two parts from a recipe: a part that has learned places, from scenes to searches."""

from pathlib import Path

import pytest
import torch

from encoders.bundle import load_encoder
from encoders.spec import read_spec
from pipeline.training import driver
from storage.parts import PLACE_BLEND
from tests.support.command_line import Outcome, run
from tests.support.place_world import write_scenes
from tests.support.training_world import train_here, write_dataset

TILE = "epsg32632-10-16/2003/-29998"
TRAIN = ("-s", "training.backbone_options={width: 8}", "-s", "training.dimension=8")
TRAIN += ("-s", "training.hidden=16", "-s", "training.batch_size=16", "-s", "training.device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A labelled dataset, and scenes of two dates that were never ingested."""
    torch.set_num_threads(1)  # tiny networks lose time to threads that wait for each other
    folder = tmp_path_factory.mktemp("two-parts")
    write_dataset(str(folder / "set"))
    write_scenes(folder / "scenes", ("red", "nir"))
    return folder


@pytest.fixture
def train(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that trains in this process."""
    monkeypatch.setattr(driver, "_run_on_ray", driver._run_on_ray)  # is restored afterwards
    train_here()

    def call(*options: object) -> Outcome:
        place = ("--dataset", folder / "set", "--output", folder / "run")
        return run("train", *place, *TRAIN, *options)

    return call


def test_a_part_that_has_learned_places_serves_searches(folder: Path, train):
    """Labels and places in one run; of its bundle alone; archive, index, search and scores."""
    pairs = ("--place-pairs", folder / "scenes", "--appearance", 16)
    trained = train("--epochs", 2, "--freeze", *pairs, "--json")
    assert trained.code == 0, trained.err
    two = folder / "run" / "two-parts"
    assert trained.data["bundle_uri"] == str(two)
    parts = read_spec(two).parts
    assert (parts.appearance, parts.labels, parts.blend) == (16, 8, PLACE_BLEND)

    archive = ("--archive", folder / "archive")
    made = run("ingest", "--scenes", folder / "scenes", "--encoder", two, *archive)
    assert made.code == 0, made.err
    built = run("index", "build", *archive, "--index", folder / "index")
    assert "blend 0: 1.000, blend 0.5: 1.000, blend 1: 1.000" in built.out
    ask = ("search", "--index", folder / "index", f"--tile={TILE}", "--blend", 1, "--json")
    assert run(*ask).data["hits"][0]["tile_key"] == TILE  # on the other date
    scored = run("evaluate", *archive, "--same-place", "--json").data["by_blend"]
    assert scored["0"]["recall@5"] + 0.4 < scored["0.5"]["recall@5"]

    again = ("--trained", folder / "run" / "bundle", "--encoder", folder / "again")
    source = ("--place-pairs", folder / "archive", "--appearance", 16)
    of_archive = run("encoder", "make", *again, *source, "--dataset", folder / "set", "--json")
    assert of_archive.code == 0, of_archive.err
    weights = [load_encoder(uri).head.appearance.weight for uri in (two, folder / "again")]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)  # threads sum in another order
    assert load_encoder(two).facts()["vectors"] == "24 values: 16 places, 8 labels"

    twice = run("encoder", "make", "--trained", two, *source, "--encoder", folder / "no")
    assert "two parts already" in twice.err
    looks = ("--trained", two, "--dataset", folder / "set", "--appearance", 8)
    assert "two parts already" in run("encoder", "make", *looks, "--encoder", folder / "no").err


def test_what_cannot_be_made_is_refused_before_the_work(folder: Path, train):
    wide = train("--appearance", 5000)
    assert (wide.code, "give at most 64" in wide.err) == (2, True), wide.err
    alone = run("encoder", "make", "--place-pairs", folder / "scenes", "--encoder", folder / "no")
    assert "give the encoder with --trained" in alone.err
