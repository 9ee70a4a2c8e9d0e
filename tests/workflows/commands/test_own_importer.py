"""The page about an importer of one's own, as its reader follows it."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.bundle import load_encoder
from storage.dataset import LabelledDataset
from tests.support.command_line import page_blocks, run_beside

CLASSES = ("Forest", "River", "SeaLake")


def _skysift(folder: Path, line: str, *more: str) -> "subprocess.CompletedProcess[str]":
    done = run_beside(folder, "-m", "workflows.cli", *shlex.split(line)[1:], *more)
    assert done.returncode == 0, done.stderr
    return done


def _lines(block: int) -> list[str]:
    return page_blocks("importer.md", "sh")[block].splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of three classes, as EuroSAT has them, and the module of the page."""
    place = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (place / "EuroSAT" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 60, (64, 64, 3)) + 60 * label
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(place / "EuroSAT" / name / f"{name}_{number}.jpg")
    (place / "my_importers.py").write_text(page_blocks("importer.md", "python")[0])
    for line in _lines(0)[:2]:
        _skysift(place, line)
    return place


def test_the_page_makes_a_dataset_whose_origin_names_the_code(folder: Path):
    data = LabelledDataset.open(str(folder / "work/eurosat"))
    assert data.classes == CLASSES
    assert data.images.shape == (36, 3, 64, 64)
    assert data.labels.sum(axis=1).tolist() == [1] * 36
    labels = [Path(source).parent.name for source in data.rows["source"]]
    assert [CLASSES[row.argmax()] for row in data.labels] == labels
    assert data.info.origin["importer"] == "my_importers:by_folder"
    smaller = LabelledDataset.open(str(folder / "work/eurosat32"))
    assert smaller.tile_px == 32
    assert smaller.info.origin["importer_options"] == {"tile_px": 32}


def test_the_recipe_of_the_page_is_the_same_import_until_the_source_changes(folder: Path):
    (folder / "own.yaml").write_text(page_blocks("importer.md", "yaml")[0])
    images = folder / "work/eurosat32/images.npy"
    before = images.stat().st_mtime_ns
    _skysift(folder, "skysift dataset import -r own.yaml")
    assert images.stat().st_mtime_ns == before
    with (folder / "my_importers.py").open("a") as stream:
        stream.write("# another thought\n")
    _skysift(folder, "skysift dataset import -r own.yaml")
    assert images.stat().st_mtime_ns > before


def test_an_encoder_trained_on_the_dataset_names_the_importer(folder: Path):
    origin = LabelledDataset.open(str(folder / "work/eurosat32")).info.origin
    small = ["--backbone", "tiny-cnn", "--epochs", "1", "-s", "training.batch_size=8"]
    _skysift(folder, _lines(0)[2], *small, "-s", "training.device=cpu")
    training = load_encoder(str(folder / "work/run/bundle")).spec.training
    assert training["importer"] == {
        "name": "my_importers:by_folder",
        "options": {"tile_px": 32},
        "source_sha256": origin["importer_sha256"],
    }


def test_the_entry_point_of_the_page_is_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    site = folder / "site-packages"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").write_text("")
    (site / "my_package" / "importers.py").write_text(page_blocks("importer.md", "python")[0])
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    written = page_blocks("importer.md", "toml")[0].partition("entry-points.")[2]
    (info / "entry_points.txt").write_text("[" + written.replace('"', ""))
    code = (
        f"import sys; sys.path.append({str(site)!r}); "
        f"from workflows.cli import main; main({shlex.split(_lines(1)[0])[1:]!r})"
    )
    done = run_beside(folder, "-c", code)
    assert done.returncode == 0, done.stderr
    data = LabelledDataset.open(str(folder / "work/eurosat"))
    assert data.info.origin["importer"] == "eurosat"
