"""Files of a training run at rest: damage is named, and the same command makes the run whole."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.bundle import load_encoder
from pipeline.training.record import resume_or_return, write_record
from pipeline.training.spec import TrainingJob, TrainingResult
from pipeline.training.worker import TrainingWorker
from storage.dataset import read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError
from storage.location import Location
from tests.support.training_world import SPEC, write_dataset

ONE = replace(SPEC, epochs=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, Path]:
    """A finished run with its record, and the folder of its last checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    write_dataset(str(folder / "set"))
    job = TrainingJob(
        dataset=Location(str(folder / "set")),
        dataset_digest=read_info(str(folder / "set")).digest,
        spec=ONE,
        output=Location(str(folder / "out")),
    )
    checkpoint = folder / "checkpoint"
    write_record(job, _trained(job, None, checkpoint))
    return job, checkpoint


def _trained(job: TrainingJob, start: Path | None, keep: Path | None = None) -> TrainingResult:
    def report(row: dict[str, float], save: Any) -> None:
        if keep is not None and row["epoch"] == ONE.epochs:
            keep.mkdir(exist_ok=True)
            save(keep)

    outcome = TrainingWorker(job).run(start, report)
    return TrainingResult(bundle_uri=str(job.bundle), history_csv=str(job.history), **outcome)


@pytest.fixture
def run(finished: tuple[TrainingJob, Path], tmp_path: Path) -> tuple[TrainingJob, Path]:
    """A copy of the finished run."""
    job, checkpoint = finished
    output = Path(shutil.copytree(job.output.path, tmp_path / "out"))
    kept = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    return replace(job, output=Location(str(output))), kept


def flip(file: Path, at: int = -50) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


BUNDLE = ("bundle/model.safetensors", "bundle/encoder.json")
DAMAGES = [(name, kind) for name in BUNDLE for kind in ("flip", "cut", "delete")]


@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, ("history.csv", "delete")])
def test_a_finished_run_with_a_damaged_file_is_finished_again(
    run: tuple[TrainingJob, Path], name: str, damage: str
):
    job, checkpoint = run
    before = load_encoder(job.bundle).fingerprint
    assert resume_or_return(job, resume=False) is not None
    file = job.output.path / name
    if damage == "delete":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        flip(file)
    assert resume_or_return(job, resume=False) is None
    _trained(job, checkpoint)
    assert load_encoder(job.bundle).fingerprint == before
    assert resume_or_return(job, resume=False) is not None


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_refused(run: tuple[TrainingJob, Path], name: str):
    job, checkpoint = run
    flip(checkpoint / name)
    with pytest.raises(ConfigError, match=r"cannot be read.*delete the run's folder `checkpoints`"):
        _trained(job, checkpoint)


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(
    run: tuple[TrainingJob, Path], tmp_path: Path
):
    job, _ = run
    worker = TrainingWorker(job)
    worker.run(None, lambda row, save: None)
    with torch.no_grad():
        worker.encoder.head[0].bias[0] = torch.nan
    worker.save(tmp_path)
    with pytest.raises(ConfigError, match="not finite; delete the run's folder `checkpoints`"):
        _trained(job, tmp_path)


def test_the_checkpoint_of_another_run_is_refused(run: tuple[TrainingJob, Path]):
    job, checkpoint = run
    other = replace(job, spec=replace(ONE, seed=5))
    with pytest.raises(ConfigError, match="of a run on another dataset or with other networks"):
        _trained(other, checkpoint)
    longer = replace(job, spec=replace(ONE, epochs=3))  # as a resumption may
    assert _trained(longer, checkpoint).epochs == 3


def test_a_checkpoint_without_digests_is_one_of_an_older_skysift(run: tuple[TrainingJob, Path]):
    job, checkpoint = run
    file = checkpoint / "state.json"
    state = json.loads(file.read_text())
    for name in ("sha256", "tensors_sha256", "lineage"):
        del state[name]
    file.write_text(json.dumps(state))
    assert _trained(job, checkpoint).epochs == 2


def test_a_damaged_record_is_named_and_an_older_record_is_read(run: tuple[TrainingJob, Path]):
    job, _ = run
    file = job.output.path / "run.json"
    record = json.loads(file.read_text())
    plain = {name: value for name, value in record.items() if name != "sha256"}
    file.write_text(json.dumps(plain))
    done = resume_or_return(job, resume=False)
    assert done is not None
    assert asdict(done) == record["result"]
    text = json.dumps(record)
    file.write_text(text.replace(record["result"]["fingerprint"], "0" * 64))
    with pytest.raises(ConfigError, match=r"run\.json is damaged.*delete the file"):
        resume_or_return(job, resume=False)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"digest": 1}', '{"result": {"a": 1}}'])
def test_a_malformed_record_is_named(run: tuple[TrainingJob, Path], text: str):
    job, _ = run
    (job.output.path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        resume_or_return(job, resume=False)


def test_a_dataset_replaced_after_planning_is_refused(
    run: tuple[TrainingJob, Path], tmp_path: Path
):
    job, _ = run
    other = Path(shutil.copytree(job.dataset.path, tmp_path / "set"))
    replaced = replace(job, dataset=Location(str(other)))
    TrainingWorker(replaced)
    with DatasetWriter(str(other), bands=("red", "nir"), classes=("a", "b", "c")) as writer:
        images, labels = (
            np.load(job.dataset.path / f"{name}.npy") for name in ("images", "labels")
        )
        writer.append(images[:100] + 1, labels[:100], _rows(100))
        writer.finish()
    with pytest.raises(ConfigError, match="was replaced after this run was planned"):
        TrainingWorker(replaced)


def _rows(count: int) -> dict[str, list[str]]:
    return {"source": [str(n) for n in range(count)], "split": ["train"] * count}


def test_damaged_features_are_computed_again(run: tuple[TrainingJob, Path], tmp_path: Path):
    job, _ = run
    frozen = replace(
        job, spec=replace(ONE, freeze_backbone=True), output=Location(str(tmp_path / "frozen"))
    )
    first = _trained(frozen, None)
    (file,) = (tmp_path / "frozen").glob("features-*.npy")
    sound = file.read_bytes()
    flip(file, 2000)
    assert _trained(frozen, None).fingerprint == first.fingerprint
    assert file.read_bytes() == sound
