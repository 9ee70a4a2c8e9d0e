"""A cluster's address, dashboard and token, nodes, and the room for a training."""

import json
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.http_server import Answers, answering
from tests.support.training_world import SPEC
from workflows.doctor.cluster import (
    Cluster,
    dashboard_findings,
    node_finding,
    ray_findings,
    training_finding,
)
from workflows.doctor.facts import Facts, gather

TOKEN = "0123456789abcdef" * 4


class _Dashboard(Answers):
    """A dashboard of Ray: 401 without a token, 403 with a wrong one."""

    release, wants = version("ray"), True

    def do_GET(self) -> None:
        kind, given = type(self), self.headers.get("Authorization", "")
        right = not kind.wants or given == f"Bearer {TOKEN}"
        body = json.dumps({"ray_version": kind.release}) if right else "no"
        self.answer(200 if right else 403 if given else 401, body)


@pytest.fixture
def dashboard() -> Iterator[str]:
    with answering(_Dashboard) as address:
        yield address


@pytest.fixture
def token(monkeypatch, tmp_path: Path) -> Path:
    path = tmp_path / "auth_token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


def test_a_dashboard_takes_the_token_and_has_the_release(dashboard, token, monkeypatch):
    assert [each.verdict for each in dashboard_findings(dashboard)] == ["ok", "ok"]
    token.chmod(0o644)
    readable, _ = dashboard_findings(dashboard)
    assert readable.advice == f"`chmod 600 {token}`"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    (wrong,) = dashboard_findings(dashboard)
    assert "refuses this token" in wrong.found
    assert "`ray get-auth-token`" in wrong.advice
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    token.unlink()
    missing, refused = dashboard_findings(dashboard)
    assert str(token) in missing.found
    assert "wants a token" in refused.found


def test_an_open_dashboard_or_one_of_another_release_is_broken(dashboard, token, monkeypatch):
    monkeypatch.setattr(_Dashboard, "wants", False)
    assert dashboard_findings(dashboard)[-1].verdict == "ok"  # of this machine alone
    monkeypatch.setattr("workflows.doctor.cluster.is_loopback", lambda url: False)
    assert "takes jobs from anyone" in dashboard_findings(dashboard)[-1].found
    monkeypatch.setattr(_Dashboard, "wants", True)
    monkeypatch.setattr(_Dashboard, "release", "2.1.0")
    assert dashboard_findings(dashboard)[-1].advice == "`pip install 'ray==2.1.0'`"


def test_where_nothing_listens_is_said_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        (joined,) = ray_findings(Cluster(address=address))
        (shown,) = dashboard_findings(f"http://{address}")
    assert f"nothing listens at {address}" in joined.found
    assert "`RAY_AUTH_MODE=token ray start --head" in joined.advice
    assert shown.verdict == "broken"
    monkeypatch.setenv("SKYSIFT_RAY_DIR", "/tmp/" + "long" * 20)
    assert "SKYSIFT_RAY_DIR=/tmp" in ray_findings(Cluster())[0].advice


def _node(**changed):
    told = gather()
    resources = {"CPU": 2.0, "object_store_memory": 8e9, **changed.pop("resources", {})}
    ahead_s = changed.pop("ahead_s", 0.0)
    return {
        "address": "10.0.0.7",
        "resources": resources,
        "ahead_s": ahead_s,
        "facts": {**told, "free_bytes": 10**12, "total_bytes": 10**12, **changed},
    }


@pytest.mark.parametrize(
    ("changed", "verdict", "texts"),
    [
        ({}, "ok", ("2 CPUs, 0 GPUs",)),
        ({"python": "3.12.1"}, "broken", ("Python 3.12.1 (here 3.11",)),
        ({"versions": {"ray": "2.1"}}, "broken", ("ray 2.1 (here", "torch missing")),
        ({"faiss": ("faiss-cpu 1", "faiss-gpu 1")}, "broken", ("FAISS: faiss-cpu 1 and",)),
        ({"free_bytes": 10**6}, "broken", ("0.0 GB free",)),
        ({"resources": {"GPU": 1.0}}, "broken", ("0 of the 1 wanted",)),
        ({"resources": {"object_store_memory": 1e8}}, "note", ("object store: 0.1 GB",)),
        ({"ahead_s": 1200.0}, "broken", ("1,200 s ahead",)),
    ],
)
def test_a_node_is_compared_with_this_machine(changed, verdict, texts):
    finding = node_finding(_node(**changed), Facts(**gather()))
    assert finding.verdict == verdict
    assert all(text in finding.found for text in texts), finding.found
    assert bool(finding.advice) == (verdict != "ok")


def test_a_node_that_did_not_answer_is_a_note():
    finding = node_finding(
        {"address": "10.0.0.7", "resources": {}, "fault": "no worker started within 10 s"},
        Facts(**gather()),
    )
    assert (finding.verdict, finding.found) == ("note", "no worker started within 10 s")


def test_a_training_has_to_fit_unless_the_cluster_grows():
    from dataclasses import replace

    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]
    spec = replace(SPEC, workers=2, cpus_per_worker=1, device="gpu")
    finding = training_finding(spec, nodes, grows=False)
    assert (finding.verdict, "room for 1" in finding.found) == ("broken", True)
    assert "`--set training.workers=1`" in finding.advice
    assert training_finding(spec, nodes, grows=True).verdict == "note"
    assert training_finding(replace(spec, device="cpu"), nodes, grows=False).verdict == "ok"
