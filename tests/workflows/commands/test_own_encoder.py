"""The page about a network of one's own, as its reader follows it."""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from encoders.bundle import load_encoder
from encoders.spec import read_bundle, read_spec
from storage.parts import DEFAULT_BLEND
from storage.raster.writer import write_geotiff
from tests.support.command_line import page_blocks, run_beside
from tests.support.training_world import write_dataset

BANDS = ("red", "green", "blue", "nir")


def _skysift(folder: Path, line: str, *more: str) -> "subprocess.CompletedProcess[str]":
    return run_beside(folder, "-m", "workflows.cli", *shlex.split(line)[1:], *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, a part of one as picture, the network and the recipe of the page."""
    place = tmp_path_factory.mktemp("reader")
    (place / "scenes").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = rng.integers(100, 4000, (4, 16, 16)).astype(np.uint16)
        scene = np.kron(coarse, np.ones((1, 16, 16), np.uint16))
        _write(place / "scenes" / f"scene{number}_20240601.tif", scene, number * 2560)
    _write(place / "picture.tif", scene[:, 64:128, 128:192], 0)
    (place / "own.yaml").write_text(page_blocks("encoder.md", "yaml")[0])
    assert run_beside(place, "-c", page_blocks("encoder.md", "python")[0]).stderr == ""
    return place


def _write(path: Path, pixels: np.ndarray, east: int) -> None:
    place = (10, 0, 320000 + east, 0, -10, 4800000)
    write_geotiff(str(path), pixels, "EPSG:32632", place, nodata=0, descriptions=BANDS)


def test_the_page_leads_from_a_network_to_hits(folder: Path):
    *commands, search = page_blocks("encoder.md", "sh")[0].splitlines()
    for line in commands:
        done = _skysift(folder, line)
        assert done.returncode == 0, done.stderr
    found = _skysift(folder, search, "--json")
    assert found.returncode == 0, found.stderr
    best, *others = json.loads(found.stdout)["hits"]
    assert best["scene"] == "scene1_20240601"
    assert best["score"] > 0.999 > others[0]["score"]
    assert len(others) == 4


@pytest.mark.parametrize("verb", ["evaluate", "train"])
def test_evaluate_and_train_take_the_network(folder: Path, verb: str):
    line = next(
        line for line in page_blocks("encoder.md", "sh")[1].splitlines() if f" {verb} " in line
    )
    code = (
        "import torch; from torch import nn; "
        "torch.export.save(torch.export.export(nn.Sequential(nn.Conv2d(2, 8, 4, 4), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), (torch.zeros(2, 2, 16, 16),), "
        "dynamic_shapes=({0: torch.export.Dim('n')},)), 'network.pt2')"
    )
    place = folder / verb
    write_dataset(str(place / "work" / "aid" / "dataset"), rows=60)
    assert run_beside(place, "-c", code).returncode == 0
    more = ["--epochs", "1", "-s", "training.batch_size=16", "-s", "training.device=cpu"]
    if verb == "train":
        more += ["--appearance", "4"]
    else:
        more = ["-s", "evaluate.split=val"]
    done = _skysift(place, line, *more)
    assert done.returncode == 0, done.stderr
    if verb == "train":  # the page goes on with the bundle of this line
        two = _skysift(place, page_blocks("encoder.md", "sh")[3].splitlines()[1], "--appearance=4")
        assert two.returncode == 0, two.stderr
        parts = read_spec(str(place / "work" / "two")).parts
        assert parts is not None
        made, at_once = (
            read_bundle(str(place / "work" / at)).fingerprint for at in ("two", "run/two-parts")
        )
        assert made == at_once
        assert (parts.appearance, parts.blend) == (4, DEFAULT_BLEND)
        exported = _skysift(place, page_blocks("encoder.md", "sh")[6].strip(), "--json")
        assert exported.returncode == 0, exported.stderr
        trained = read_bundle(str(place / "work/run/bundle")).fingerprint
        assert read_bundle(str(place / "hub/aid")).fingerprint == trained
        assert json.loads(exported.stdout)["fingerprint"] == trained


WRITE_WEIGHTS = """
import sys; sys.path.insert(0, ".")
import numpy as np, torch
from my_encoders import Whole
torch.manual_seed(5)
whole = Whole(4).eval()
torch.save(whole.state_dict(), "whole.pt")
pixels = torch.randint(0, 9000, (3, 4, 64, 64)).float()
np.savez("whole.npz", pixels=pixels.numpy(), vectors=whole(pixels).detach().numpy())
"""


def test_a_whole_encoder_gives_the_vectors_of_its_code_without_the_code(folder: Path):
    """It normalises pixels itself and returns unit vectors."""
    module = folder / "my_encoders.py"
    module.write_text(page_blocks("encoder.md", "python")[1])
    (folder / "whole.yaml").write_text(page_blocks("encoder.md", "yaml")[2])
    assert run_beside(folder, "-c", WRITE_WEIGHTS).returncode == 0
    make, *others, search = page_blocks("encoder.md", "sh")[2].splitlines()
    made = _skysift(folder, make)
    assert made.returncode == 0, made.stderr
    module.unlink()
    for line in others:
        done = _skysift(folder, line)
        assert done.returncode == 0, done.stderr
    found = json.loads(_skysift(folder, search, "--json").stdout)["hits"]
    assert found[0]["scene"] == "scene1_20240601"
    assert found[0]["score"] > 0.999 > found[1]["score"]
    encoder, kept = load_encoder(str(folder / "work/whole")), np.load(folder / "whole.npz")
    vectors = encoder(kept["pixels"])
    np.testing.assert_allclose(vectors, kept["vectors"], atol=1e-5)


def test_a_network_that_does_not_fit_is_one_line(folder: Path):
    wrong = _skysift(
        folder,
        "skysift encoder make -r own.yaml -s 'encoder.bands=[red, nir]'"
        " -s 'encoder.band_mean=[1, 2]' -s 'encoder.band_std=[1, 2]'",
        "--encoder",
        "no",
    )
    assert wrong.returncode == 2
    assert "takes 4 bands, the encoder has 2 (red, nir)" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert not (folder / "no").exists()
