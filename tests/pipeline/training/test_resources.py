"""The resource request of a run: refused when impossible, reported while it waits."""

import logging
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch.distributed as dist

from pipeline.training.driver import train
from pipeline.training.network import interface_of, open_store
from pipeline.training.resources import ResourceRequest
from storage.errors import ConfigError
from storage.progress import Progress
from tests.support.training_world import SPEC, write_dataset


@pytest.mark.parametrize(
    ("per_worker", "nodes", "capacity"),
    [
        ({"CPU": 2.0}, [{"CPU": 5.0}, {"CPU": 1.0}], 2),
        ({"CPU": 2.0, "GPU": 1.0}, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 1),
        ({"CPU": 1.0, "GPU": 1.0}, [{"CPU": 1.0, "GPU": 4.0}], 1),
        ({"CPU": 4.0}, [], 0),
    ],
)
def test_workers_are_counted_by_machine(per_worker, nodes, capacity):
    assert ResourceRequest(workers=1, per_worker=per_worker).capacity(nodes) == capacity


def test_what_the_cluster_can_never_give_is_refused_at_once(tmp_path: Path, ray_session):
    write_dataset(str(tmp_path / "set"), rows=40)
    impossible = {
        r"64 CPUs each need 64 CPUs; the cluster has 2 CPUs on 1 ": {"cpus_per_worker": 64},
        r"4 workers .* need 4 CPUs; the cluster has 2 .* room for 2": {"workers": 4},
        r"1 GPUs; the cluster has 2 CPUs and 0 GPUs": {"device": "gpu"},
    }
    for message, settings in impossible.items():
        with pytest.raises(ConfigError, match=message):
            train(str(tmp_path / "set"), replace(SPEC, **settings), str(tmp_path / "run"))


def test_a_run_says_what_it_waits_for_and_then_trains(tmp_path: Path, ray_session, caplog):
    @ray.remote(num_cpus=2)
    class Hog:
        def ready(self) -> None:
            return None

    hog = Hog.remote()
    ray.get(hog.ready.remote())
    write_dataset(str(tmp_path / "set"), rows=40)
    waits = threading.Event()
    notes: list[str] = []

    def record(report: Progress) -> None:
        notes.append(report.note)
        if "waiting" in report.note and not waits.is_set():
            waits.set()
            ray.kill(hog)

    with caplog.at_level(logging.WARNING, "pipeline.training.resources"):
        spec = replace(SPEC, epochs=1)
        assert (
            train(str(tmp_path / "set"), spec, str(tmp_path / "run"), progress=record).epochs == 1
        )
    assert "waiting for 1 CPUs (the cluster has 2, 0 free)" in notes
    assert "training: waiting for 1 CPUs" in caplog.text
    assert "waiting" not in notes[-1]


def test_the_store_of_a_group_listens_at_one_address():
    store = open_store("127.0.0.2")
    store.set("key", "value")
    assert dist.TCPStore("127.0.0.2", store.port, is_master=False).get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", store.port), 5)


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") is None
