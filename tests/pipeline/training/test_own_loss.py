"""A loss of one's own on Ray's workers: its module travels, its source decides what the run is."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.bundle import load_encoder
from encoders.plugins import find_plugin
from pipeline.training.driver import train
from pipeline.training.record import resume_or_return
from pipeline.training.spec import TrainingJob
from pipeline.training.worker import TrainingWorker
from storage.dataset import read_info
from storage.errors import ConfigError
from storage.location import Location
from tests.support.own_losses import write_losses
from tests.support.training_world import SPEC, write_dataset

NAME = "travelling_losses"
OWN = replace(
    SPEC, loss=f"{NAME}:HardNegatives", loss_options={"hardness": 2.0}, workers=2, epochs=2
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a dataset, and one with a loss that only this process can import from."""
    write_dataset(str(tmp_path / "set"))
    (tmp_path / "code").mkdir()
    write_losses(tmp_path / "code", NAME)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), *sys.path])
    yield tmp_path
    sys.modules.pop(NAME, None)


def test_a_package_travels_with_the_modules_that_git_ignores(folder: Path, ray_session: None):
    package = folder / "code" / "travelling"
    package.mkdir()
    losses = write_losses(package, "losses")
    losses.write_text("from travelling._version import version\n" + losses.read_text())
    (package / "__init__.py").write_text("")
    (package / "_version.py").write_text("version = 1\n")
    (package / ".gitignore").write_text("_version.py\n")
    spec = replace(OWN, loss="travelling.losses:HardNegatives", epochs=1, workers=1)
    result = train(str(folder / "set"), spec, str(folder / "run"))
    assert load_encoder(result.bundle_uri).spec.loss["name"] == spec.loss


def test_the_module_travels_and_the_encoder_names_its_source(folder: Path, ray_session: None):
    dataset, output = str(folder / "set"), str(folder / "run")
    digest = find_plugin("losses", OWN.loss).digest
    result = train(dataset, OWN, output)
    assert result.epochs == 2
    _changed(folder)
    with pytest.raises(ConfigError, match=r"other settings \(source of loss\)"):
        train(dataset, OWN, output)
    with pytest.raises(ConfigError, match=r"source of loss\); choose another output$"):
        train(dataset, OWN, output, resume=True)
    shutil.rmtree(folder / "code")
    encoder = load_encoder(result.bundle_uri)  # without the module
    assert encoder.fingerprint == result.fingerprint
    assert encoder.spec.loss == {"name": OWN.loss, "hardness": 2.0, "source_sha256": digest}


def _changed(folder: Path) -> None:
    with (folder / "code" / f"{NAME}.py").open("a") as stream:
        stream.write("# another thought\n")


def _job(folder: Path) -> TrainingJob:
    dataset = Location(str(folder / "set"))
    return TrainingJob(
        dataset=dataset,
        dataset_digest=read_info(dataset).digest,
        spec=OWN,
        output=Location(str(folder / "run")),
        sources={"loss": find_plugin("losses", OWN.loss).digest},
    )


def test_a_changed_source_is_another_run(folder: Path):
    before = _job(folder)
    _changed(folder)
    after = _job(folder)
    assert before.digest != after.digest
    assert before.lineage != after.lineage
    assert resume_or_return(after, resume=False) is None  # nothing there yet


def test_a_worker_with_another_source_refuses(folder: Path):
    job = _job(folder)
    _changed(folder)
    with pytest.raises(ConfigError, match="bring the same source to all machines"):
        TrainingWorker(job)
