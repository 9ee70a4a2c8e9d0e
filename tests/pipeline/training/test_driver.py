"""Training runs: the plain worker alone, then Ray Train around it, killed in several ways."""

import csv
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from ray.train import WorkerGroupError

from encoders.bundle import load_encoder
from encoders.metrics import random_ranking_metrics, retrieval_metrics
from pipeline.training.driver import _named, baseline_bundle, train
from pipeline.training.spec import TrainingJob, TrainingResult, TrainingSpec
from pipeline.training.worker import TrainingWorker
from storage.dataset import LabelledDataset, read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, DivergedError, NotFoundError, SkysiftError
from storage.location import Location
from storage.progress import Progress
from tests.support.listening import listening_addresses
from tests.support.training_world import LONG, SPEC, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "set")
    write_dataset(uri)
    return uri


def _worker(dataset: str, output: Path, spec: TrainingSpec = SPEC, **more) -> TrainingWorker:
    job = TrainingJob(
        dataset=Location(dataset),
        dataset_digest=read_info(dataset).digest,
        spec=spec,
        output=Location(str(output)),
    )
    return TrainingWorker(job, **more)


def _run(worker: TrainingWorker, checkpoint: Path | None = None, keep: Path | None = None):
    """Run a plain worker; with ``keep``, write a checkpoint of every report below it."""

    def report(row, save):
        if keep is not None:
            folder = keep / f"{row['epoch']:.0f}-{row.get('step', 0):.0f}"
            folder.mkdir(parents=True)
            save(folder)

    return worker.run(checkpoint, report)


def _history(path: Path) -> list[dict[str, str]]:
    with (path / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks lose time to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the plain worker --------------------------------------------------------------------------


def test_a_worker_alone_trains_an_encoder_that_beats_untrained_and_random(dataset, tmp_path: Path):
    spec = replace(SPEC, epochs=32)
    outcome = _run(_worker(dataset, tmp_path, spec))
    trained = load_encoder(str(tmp_path / "bundle"))
    assert trained.fingerprint == outcome["fingerprint"]
    assert trained.spec.classes == ("a", "b", "c")
    assert trained.spec.loss["name"] == "macl"
    assert trained.spec.training["best_epoch"] == outcome["best_epoch"]
    data = LabelledDataset.open(dataset)
    train_rows, val_rows = data.indices("train"), data.indices("val")
    truth = data.labels[val_rows], data.labels[train_rows]
    baseline_bundle(dataset, spec, str(tmp_path / "untrained"), "untrained")
    untrained = load_encoder(str(tmp_path / "untrained"))

    def ndcg(encoder) -> float:
        z_val, z_train = encoder(data.images[val_rows]), encoder(data.images[train_rows])
        return retrieval_metrics(z_val, truth[0], z_train, truth[1])["nDCG@50"]

    assert ndcg(trained) == pytest.approx(outcome["best_metrics"]["nDCG@50"], abs=1e-6)
    assert ndcg(trained) > ndcg(untrained) + 0.1
    assert ndcg(trained) > random_ranking_metrics(*truth)["nDCG@50"] + 0.15
    history = _history(tmp_path)
    assert [int(row["epoch"]) for row in history] == list(range(1, 33))
    scores = [float(row["nDCG@50"]) for row in history]
    assert int(np.argmax(scores)) + 1 == outcome["best_epoch"]


def test_a_run_continued_from_any_checkpoint_ends_with_the_same_bundle(dataset, tmp_path: Path):
    spec = replace(SPEC, checkpoint_every_steps=2, queue_rows=8)
    straight = _run(_worker(dataset, tmp_path / "a", spec), keep=tmp_path / "kept")
    folders = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert {"1-0", "2-0", "3-0"} < set(folders)
    middle = next(name for name in folders if name.startswith("1-") and name != "1-0")
    for name in (middle, "2-0", "3-0"):
        continued = _run(_worker(dataset, tmp_path / name, spec), tmp_path / "kept" / name)
        assert continued == straight
        assert len(_history(tmp_path / name)) == 3


def test_the_moving_average_is_what_is_scored_and_saved(dataset, tmp_path: Path):
    worker = _worker(dataset, tmp_path, replace(SPEC, ema_decay=0.9, eval_every=SPEC.epochs))
    outcome = _run(worker)
    saved = load_encoder(str(tmp_path / "bundle"))
    average = worker.loop.average
    for name, value in saved.state_dict().items():
        assert torch.equal(value, average[name]), name
    data = LabelledDataset.open(dataset)
    rows = [data.indices(split) for split in ("val", "train")]
    z_val, z_train = (saved(data.images[part]) for part in rows)
    scores = retrieval_metrics(z_val, data.labels[rows[0]], z_train, data.labels[rows[1]])
    assert scores["nDCG@50"] == pytest.approx(outcome["best_metrics"]["nDCG@50"], abs=1e-6)
    assert outcome["best_epoch"] == SPEC.epochs


def test_no_checkpoint_of_a_diverged_run_holds_what_is_not_finite(dataset, tmp_path: Path):
    # The statistics of batch norm overflow some steps before the loss does.
    wild = replace(SPEC, learning_rate=1e4, checkpoint_every_steps=1)
    with pytest.raises(DivergedError):
        _run(_worker(dataset, tmp_path / "run", wild), keep=tmp_path / "kept")
    kept = sorted((tmp_path / "kept").iterdir())
    assert kept
    for folder in kept:
        tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
        assert all(value.isfinite().all() for value in tensors.values()), folder.name


def test_checkpoints_are_never_pickles(dataset, tmp_path: Path):
    _run(_worker(dataset, tmp_path / "a", replace(SPEC, epochs=1)), keep=tmp_path / "kept")
    checkpoint = tmp_path / "kept" / "1-0"
    assert {path.name for path in checkpoint.iterdir()} == {"state.json", "tensors.safetensors"}
    json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "tensors.safetensors").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ConfigError, match="cannot be read"):
        _run(_worker(dataset, tmp_path / "b"), checkpoint)


def test_training_stops_early_and_keeps_the_best_epoch(dataset, tmp_path: Path):
    # A learning rate this small changes nothing, so no epoch is better than the first.
    spec = replace(SPEC, epochs=9, patience=2, learning_rate=1e-12)
    outcome = _run(_worker(dataset, tmp_path, spec))
    assert (outcome["epochs"], outcome["best_epoch"]) == (3, 1)


def test_the_features_of_a_frozen_backbone_are_computed_once(dataset, tmp_path: Path):
    spec = replace(SPEC, freeze_backbone=True, features_uri=str(tmp_path / "shared"))
    stages: list[str] = []

    def record(report: Progress) -> None:
        stages.append(report.stage)

    first = _run(_worker(dataset, tmp_path / "a", spec, progress=record))
    assert "features" in stages
    stages.clear()
    assert _run(_worker(dataset, tmp_path / "b", spec, progress=record)) == first
    assert "features" not in stages
    assert len(list((tmp_path / "shared").iterdir())) == 1
    encoder = load_encoder(str(tmp_path / "a" / "bundle"))
    start = _worker(dataset, tmp_path / "c", spec).encoder
    unchanged = {k for k, v in start.state_dict().items() if (v == encoder.state_dict()[k]).all()}
    assert all(name in unchanged for name in start.state_dict() if name.startswith("backbone."))
    assert "head.2.weight" not in unchanged


def test_the_embedding_may_be_the_features(dataset, tmp_path: Path):
    outcome = _run(_worker(dataset, tmp_path, replace(SPEC, embedding="features")))
    encoder = load_encoder(str(tmp_path / "bundle"))
    assert encoder.dimension == encoder.backbone.dimension == 64
    assert encoder.fingerprint == outcome["fingerprint"]


def test_baselines_have_the_stated_kind(dataset, tmp_path: Path):
    for kind, dimension in (("untrained", 8), ("features", 64), ("principal", 8)):
        fingerprint = baseline_bundle(dataset, SPEC, str(tmp_path / kind), kind)
        encoder = load_encoder(str(tmp_path / kind))
        assert (encoder.fingerprint, encoder.dimension) == (fingerprint, dimension)
    with pytest.raises(ConfigError, match="'best'"):
        baseline_bundle(dataset, SPEC, str(tmp_path / "x"), "best")


def test_probabilities_train_as_they_are_or_are_refused(dataset, tmp_path: Path):
    hard = LabelledDataset.open(dataset)
    soft = hard.labels * np.where(hard.split == "train", 0.8, 1)[:, None].astype(np.float32)
    with DatasetWriter(str(tmp_path / "soft"), bands=hard.bands, classes=hard.classes) as writer:
        rows = {name: hard.rows[name].tolist() for name in ("source", "split")}
        writer.append(np.asarray(hard.images), soft, rows)
        writer.finish()
    spec = replace(SPEC, epochs=1, queue_rows=8)
    found = [
        _run(_worker(uri, tmp_path / name, spec))["fingerprint"]
        for uri, name in ((dataset, "a"), (str(tmp_path / "soft"), "b"))
    ]
    assert found[0] != found[1]
    with pytest.raises(ConfigError, match=r"soft: loss triplet: it needs labels of 0 and 1"):
        _worker(str(tmp_path / "soft"), tmp_path / "c", replace(SPEC, loss="triplet"))


@pytest.mark.parametrize("shared", [0, 1])
def test_validation_rows_without_a_label_of_the_train_rows_are_refused(tmp_path: Path, shared: int):
    """A score that is no number is greater than none: the first epoch would stay the best."""
    uri, rng = str(tmp_path / "set"), np.random.default_rng(0)
    labels = np.zeros((40, 3), np.uint8)
    labels[:30, :2] = rng.random((30, 2)) < 0.6
    labels[30:, 2] = 1  # a class of the validation rows only
    labels[30, 0] = shared
    with DatasetWriter(uri, bands=("red", "nir"), classes=("a", "b", "c")) as writer:
        rows = {"source": [str(i) for i in range(40)], "split": ["train"] * 30 + ["val"] * 10}
        writer.append(rng.normal(1000, 40, (40, 2, 16, 16)).astype(np.float32), labels, rows)
        writer.finish()
    worker = _worker(uri, tmp_path / "run", replace(SPEC, epochs=1))
    if shared:
        assert _run(worker)["best_epoch"] == 1
        return
    with pytest.raises(ConfigError, match=r"validation rows have no .* label .* that a train row"):
        _run(worker)


def test_a_queue_with_macl_warns(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(NotFoundError):
        train(str(tmp_path / "nowhere"), replace(SPEC, queue_rows=64), str(tmp_path / "run"))
    assert "queue_rows 64 with macl: keys of earlier batches lower its scores" in caplog.text


def test_wrong_settings_are_named(dataset, tmp_path: Path):
    with pytest.raises(ConfigError, match="shared evenly by 3 workers"):
        replace(SPEC, workers=3)
    with pytest.raises(ConfigError, match="cannot learn"):
        replace(SPEC, freeze_backbone=True, embedding="features")
    with pytest.raises(ConfigError, match="monitor 'accuracy'"):
        _run(_worker(dataset, tmp_path, replace(SPEC, monitor="accuracy")))
    with pytest.raises(NotFoundError, match="nowhere"):
        train(str(tmp_path / "nowhere"), SPEC, str(tmp_path / "run"))


# --- around it, Ray Train ----------------------------------------------------------------------

EPOCHS = list(range(1, 11))


@dataclass(frozen=True)
class TwoWorkers:
    """A run of two workers, its reports, and the error of a second driver meanwhile."""

    output: Path
    result: TrainingResult
    reports: list[Progress]
    refused: str
    listens: set[IPv4Address | IPv6Address]


@pytest.fixture(scope="module")
def two_workers(
    dataset: str, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> TwoWorkers:
    output = tmp_path_factory.mktemp("runs") / "two"
    reports, refused = list[Progress](), list[str]()
    listens = set[IPv4Address | IPv6Address]()

    def record(report: Progress) -> None:
        if not reports:
            with pytest.raises(SkysiftError) as error:
                train(dataset, LONG, str(output))
            refused.append(str(error.value))
            listens.update(listening_addresses())
        reports.append(report)

    result = train(dataset, LONG, str(output), progress=record)
    return TwoWorkers(output, result, reports, refused[0], listens)


def test_two_workers_train_with_gathered_negatives(dataset, two_workers):
    result, reports = two_workers.result, two_workers.reports
    assert load_encoder(result.bundle_uri).fingerprint == result.fingerprint
    assert result.epochs == 10
    assert result.best_metrics["nDCG@50"] > 0.6
    assert [int(row["epoch"]) for row in _history(two_workers.output)] == EPOCHS
    assert reports[-1].done == reports[-1].total
    assert "nDCG@50" in reports[-1].note
    assert {report.stage for report in reports} == {"train"}


def test_nothing_listens_beyond_the_loopback_during_a_training(two_workers):
    assert two_workers.listens
    assert all(address.is_loopback for address in two_workers.listens)


def test_a_second_driver_is_refused_while_the_first_is_at_work(two_workers):
    holder = f"training: process {os.getpid()} on {socket.gethostname()}"
    assert holder in two_workers.refused


def test_a_finished_run_returns_at_once(dataset, two_workers):
    output, result = two_workers.output, two_workers.result
    reports: list[Progress] = []
    started = time.monotonic()
    spec = replace(LONG, workers=1)  # where it runs does not make it another run
    assert train(dataset, spec, str(output), progress=reports.append) == result
    assert time.monotonic() - started < 1
    assert reports == []


def test_another_run_in_the_same_folder_is_refused(dataset, two_workers, tmp_path: Path):
    output = str(two_workers.output)
    with pytest.raises(ConfigError, match="learning_rate"):
        train(dataset, replace(LONG, learning_rate=1.0), output)
    with pytest.raises(ConfigError, match="dimension"):
        train(dataset, replace(LONG, dimension=4), output, resume=True)
    write_dataset(str(tmp_path / "other"), rows=60)
    with pytest.raises(ConfigError, match="another dataset"):
        train(str(tmp_path / "other"), LONG, output, resume=True)


def test_a_run_resumes_with_more_epochs_and_another_number_of_workers(
    dataset, two_workers, tmp_path: Path, caplog
):
    output = tmp_path / "run"
    shutil.copytree(two_workers.output, output)
    longer = replace(LONG, workers=1, epochs=12)
    with caplog.at_level(logging.WARNING, "pipeline.training.record"):
        assert train(dataset, longer, str(output), resume=True).epochs == 12
    assert "resumes with other settings: epochs 10 -> 12, workers 2 -> 1" in caplog.text
    assert [int(row["epoch"]) for row in _history(output)] == [*EPOCHS, 11, 12]
    assert _history(output)[:9] == _history(two_workers.output)[:9]


def _children(name: str) -> list[int]:
    """Process ids below this process whose command line contains a name."""
    parents, named = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
                if name in (entry / "cmdline").read_text():
                    named.append(int(entry.name))
            except (OSError, ProcessLookupError):
                continue

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid in named if is_ours(pid)]


def test_a_killed_worker_is_replaced_and_nothing_is_lost(dataset, tmp_path: Path, two_workers):
    killed: list[int] = []

    def kill_one(report: Progress) -> None:
        if report.stage == "train" and report.done > report.total // 3 and not killed:
            killed.append(_children("RayTrainWorker")[-1])
            os.kill(killed[0], signal.SIGKILL)

    result = train(dataset, LONG, str(tmp_path / "run"), progress=kill_one)
    assert killed
    assert [int(row["epoch"]) for row in _history(tmp_path / "run")] == EPOCHS
    assert result.fingerprint == two_workers.result.fingerprint


KILLED_WHOLE = """
import sys
from dataclasses import replace
from tests.support.training_world import LONG
from pipeline.runtime.cluster import ray_session
from pipeline.training.driver import train
with ray_session(cpus=2):
    train(sys.argv[1], LONG, sys.argv[2])
"""


def test_a_run_killed_whole_continues_with_the_same_command(dataset, tmp_path: Path, two_workers):
    output = tmp_path / "run"
    driver = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHOLE, dataset, str(output)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (output / "history.csv").exists() or len(_history(output)) < 3:
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert not (output / "bundle").exists()
    result = train(dataset, LONG, str(output))
    assert [int(row["epoch"]) for row in _history(output)] == EPOCHS
    assert result.fingerprint == two_workers.result.fingerprint


def test_a_run_lives_in_an_object_store(tmp_path: Path, moto_s3, ray_session, monkeypatch):
    monkeypatch.setenv("SKYSIFT_CACHE", str(tmp_path))
    dataset, output = moto_s3.location("set"), moto_s3.location("run")
    write_dataset(dataset)
    result = train(dataset, SPEC, output)
    assert result.bundle_uri == moto_s3.uri("run", "bundle")
    assert load_encoder(output.at(result.bundle_uri)).fingerprint == result.fingerprint
    assert train(dataset, SPEC, output) == result


def test_what_a_worker_finds_wrong_is_raised_as_it_is(dataset, tmp_path: Path, ray_session):
    with pytest.raises(ConfigError, match="no option 'tau'"):
        train(dataset, replace(SPEC, loss_options={"tau": 1}), str(tmp_path / "a"))


def test_a_diverged_run_is_not_tried_again(dataset, tmp_path: Path, ray_session):
    steps: list[int] = []
    wild = replace(LONG, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"lower training\.learning_rate"):
        train(dataset, wild, str(tmp_path), progress=lambda report: steps.append(report.done))
    assert steps.count(1) == 1


def test_a_failed_run_is_told_in_one_line(dataset, tmp_path: Path):
    job = _worker(dataset, tmp_path).job
    ours = SkysiftError("training: the loss became nan")
    assert _named(WorkerGroupError("all failed", {1: ours}), job) is ours
    theirs = RuntimeError("Traceback ...\n  gloo: connection closed")
    message = str(_named(WorkerGroupError("all failed", {0: theirs}), job))
    assert "gloo: connection closed" in message
    assert str(tmp_path) in message
    assert "\n" not in message
