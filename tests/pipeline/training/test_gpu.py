"""Training on GPUs: NCCL between the workers, bf16 on the device, bundles that load anywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer

from encoders.bundle import load_encoder
from pipeline.runtime.cluster import ray_session
from pipeline.training.driver import train
from pipeline.training.resources import ResourceRequest
from storage.dataset import LabelledDataset
from tests.support.training_world import SPEC, write_dataset

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="this machine has no NVIDIA GPU that torch can use"),
]


@pytest.fixture(scope="module", autouse=True)
def gpu_session():
    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "set")
    write_dataset(uri)
    return uri


def _tell_backend(config: dict[str, str]) -> str:
    if config["expected"] != dist.get_backend():
        raise RuntimeError(f"the process group is {dist.get_backend()}")
    return dist.get_backend()


@pytest.mark.parametrize(("device", "backend"), [("gpu", "nccl"), ("cpu", "gloo")])
def test_workers_talk_over_what_their_device_has(tmp_path: Path, device, backend):
    request = ResourceRequest.of(replace(SPEC, device=device))
    assert request.uses_gpu == (device == "gpu")
    trainer = TorchTrainer(
        _tell_backend,
        train_loop_config={"expected": backend},
        scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=request.uses_gpu),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
    )
    trainer.fit()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_what_a_cpu_can_load(dataset, tmp_path: Path, precision):
    spec = replace(SPEC, device="gpu", precision=precision, epochs=16, queue_rows=8)
    result = train(dataset, spec, str(tmp_path / "run"))
    on_cpu = train(dataset, replace(spec, device="cpu"), str(tmp_path / "cpu"))
    expected = on_cpu.best_metrics["nDCG@50"]
    assert result.best_metrics["nDCG@50"] == pytest.approx(expected, abs=0.1)
    data = LabelledDataset.open(dataset)
    z_ND = load_encoder(result.bundle_uri)(data.images[:8])
    np.testing.assert_allclose(np.linalg.norm(z_ND, axis=1), 1, atol=1e-5)


def test_a_run_moves_from_gpu_to_cpu(dataset, tmp_path: Path):
    train(dataset, replace(SPEC, device="gpu"), str(tmp_path / "run"))
    moved = replace(SPEC, device="cpu", epochs=5)
    assert train(dataset, moved, str(tmp_path / "run"), resume=True).epochs == 5


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_one_does(dataset, tmp_path: Path):
    spec = replace(SPEC, device="gpu", augment=None)
    one = train(dataset, spec, str(tmp_path / "one"))
    two = train(dataset, replace(spec, workers=2), str(tmp_path / "two"))
    for name, value in one.best_metrics.items():
        assert two.best_metrics[name] == pytest.approx(value, abs=0.05), name
