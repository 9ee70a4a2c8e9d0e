"""Pretrained weights by folder and by id of the model hub: the same for every verb."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encoders.backbones.build import build_backbone
from encoders.bundle import load_encoder
from encoders.spec import pretrained_folder
from tests.support.paths import REPOSITORY
from tests.support.small_vit import SMALL_VIT
from tests.support.training_world import write_dataset

ID = "someone/small-vit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, weights in a folder, and the same weights in the hub's cache."""
    place = tmp_path_factory.mktemp("hub")
    write_dataset(str(place / "set"), rows=60)
    torch.manual_seed(0)
    network = build_backbone("vit", ["red", "green", "blue"], config=SMALL_VIT)
    network.model.save_pretrained(place / "weights")
    repository = place / "home" / "hub" / f"models--{ID.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(place / "weights", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return place


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a new process: the hub's library reads its settings once."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-P", "-m", "workflows.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_verb_takes_an_id_of_the_hub_and_a_folder(folder: Path):
    common = ("--backbone", "vit", "--dataset", "set", "-s", "encoder.head={kind: identity}")
    fingerprints = []
    for source in (ID, "weights", str(folder / "weights")):
        bundle = folder / f"bundle-{len(fingerprints)}"
        made = run(
            folder, "encoder", "make", *common, "--pretrained", source, "--encoder", str(bundle)
        )
        assert made.returncode == 0, made.stderr
        fingerprints.append(load_encoder(str(bundle)).fingerprint)
    assert len(set(fingerprints)) == 1
    scored = run(
        folder, "evaluate", *common, "--pretrained", ID, "-s", "evaluate.split=val", "--json"
    )
    assert scored.returncode == 0, scored.stderr
    assert fingerprints[0] in scored.stdout


def test_training_takes_an_id_of_the_hub(folder: Path):
    trained = run(
        folder,
        *["train", "--dataset", "set", "--output", "run", "--backbone", "vit"],
        *["--pretrained", ID, "--epochs", "1", "-s", "training.batch_size=16"],
        *["-s", "training.device=cpu", "-s", "cluster.cpus=1"],
    )
    assert trained.returncode == 0, trained.stderr
    assert load_encoder(str(folder / "run" / "bundle")).spec.backbone == "vit"


@pytest.mark.parametrize("verb", ["encoder make", "evaluate"])
def test_weights_that_are_nowhere_are_named(folder: Path, verb: str):
    common = ("--backbone", "vit", "--dataset", "set", "--encoder", "new")
    typo = run(folder, *verb.split(), *common, "--pretrained", "./weigths")
    assert typo.returncode == 2
    assert "encoder.pretrained: 'weigths' does not exist; did you mean 'weights'?" in typo.stderr
    unknown = run(folder, *verb.split(), *common, "--pretrained", "someone/else")
    assert unknown.returncode == 1
    assert "are no folder here, and cannot be had from the model hub" in unknown.stderr
    assert len(unknown.stderr.strip().splitlines()) == 1


def test_what_is_a_folder_and_what_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for source in ("weights", "weights/gone", "./gone", "~/gone", "/gone", "a/b/c"):
        assert pretrained_folder(source) is not None, source
    for source in ("someone/model", "model"):
        assert pretrained_folder(source) is None, source
