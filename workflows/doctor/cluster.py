"""The checks of a cluster: its address, its dashboard and token, its nodes, a training's room.

A node is compared with this machine: pickles and Arrow tables travel between them, and both read
the same files.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.runtime.cluster import private_root
from pipeline.training.spec import TrainingSpec
from storage.errors import ConfigError
from workflows.doctor.facts import Facts, gather
from workflows.doctor.findings import Finding, Probe, Verdict, first_line
from workflows.doctor.machine import disk_finding, faiss_finding, gpu_finding
from workflows.doctor.places import clock_finding
from workflows.submit import is_loopback

_ANSWER_S, _JOIN_S, _START_S = 3.0, 40.0, 90.0
_MIN_STORE_BYTES = 2 * 10**9
_TOKEN = "`export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...` with the cluster's token"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster of a recipe.

    Attributes
    ----------
    address
        Ray's address; None for a private instance.
    cpus
        CPUs of the private instance.
    dashboard
        URL of the dashboard; None where it is not looked at.
    training
        The training that has to fit; None where the recipe has none.
    """

    address: str | None = None
    cpus: int | None = None
    dashboard: str | None = None
    training: TrainingSpec | None = field(default=None, repr=False)


def cluster_probes(cluster: Cluster) -> list[Probe]:
    """Return the probes of Ray and of the dashboard."""
    probes = [Probe("Ray", lambda: ray_findings(cluster), limit_s=_START_S + 10)]
    if url := cluster.dashboard:
        probes.append(Probe("dashboard", lambda: dashboard_findings(url)))
    return probes


def ray_findings(cluster: Cluster) -> list[Finding]:
    """Check that Ray starts or can be joined, and how its nodes are."""
    try:
        private_root()
        if cluster.address:
            _check_listens(cluster.address)
    except ConfigError as error:
        advice = "`export SKYSIFT_RAY_DIR=/tmp`"
        return [Finding("Ray", "broken", str(error), advice)]
    except OSError as error:
        return [_nothing_listens(str(cluster.address), error)]
    answer = _look(cluster)
    if fault := answer.get("fault"):
        where = f"the cluster at {cluster.address}" if cluster.address else "a private instance"
        advice = f"if the cluster wants a token: {_TOKEN}" if cluster.address else "`df -h /tmp`"
        return [Finding("Ray", "broken", f"{version('ray')}, {where}: {fault[:200]}", advice)]
    nodes = answer["nodes"]
    what = f"{len(nodes)} nodes at {cluster.address}" if cluster.address else "starts"
    findings = [Finding("Ray", "ok", f"{version('ray')}, {what}")]
    if cluster.address:
        here = Facts(**gather())
        findings += [node_finding(node, here) for node in nodes]
    if cluster.training:
        resources = [node["resources"] for node in nodes]
        findings.append(training_finding(cluster.training, resources, answer["grows"]))
    return findings


def _check_listens(address: str) -> None:
    """Connect to a Ray address; OSError where nothing listens. ``auto`` names no port."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), _ANSWER_S).close()


def _nothing_listens(address: str, error: OSError) -> Finding:
    port = urlsplit(address if "://" in address else f"//{address}").port
    advice = (
        "correct cluster.address (RAY_ADDRESS), open the port in the firewall, or start the head: "
        f"`RAY_AUTH_MODE=token ray start --head --port={port}`, `ray up cluster.yaml`"
    )
    return Finding("Ray", "broken", f"nothing listens at {address} ({first_line(error)})", advice)


def _look(cluster: Cluster) -> dict[str, Any]:
    """Run :mod:`workflows.doctor.on_ray`; ``fault`` is why it did not answer."""
    request = json.dumps({"address": cluster.address, "cpus": cluster.cpus})
    command = [sys.executable, "-m", "workflows.doctor.on_ray"]
    limit_s = _JOIN_S if cluster.address else _START_S
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=limit_s, check=True
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"no answer within {limit_s:g} s"}
    except subprocess.CalledProcessError as error:
        return {"fault": (error.stderr or "").strip().rpartition("\n")[2] or str(error)}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def node_finding(node: Mapping[str, Any], here: Facts) -> Finding:
    """Judge a node of a cluster: its releases beside this machine's, FAISS, GPUs, disk and clock.

    Parameters
    ----------
    node
        What :mod:`workflows.doctor.on_ray` tells of it.
    here
        This machine.
    """
    what, resources = f"node {node['address']}", node["resources"]
    if "facts" not in node:
        return Finding(
            what, "note", node["fault"], "`ray status` and the node's raylet.out tell more"
        )
    facts = Facts(**node["facts"])
    judged = [
        _releases(facts, here),
        faiss_finding(facts),
        gpu_finding(facts, int(resources.get("GPU", 0))),
        disk_finding("temporary files", facts.folder, facts.free_bytes, facts.total_bytes),
        clock_finding("this node", node["ahead_s"]),
        _store(resources.get("object_store_memory", 0)),
    ]
    worst: Verdict = "broken" if any(one.verdict == "broken" for one in judged) else "note"
    faults = [one for one in judged if one.verdict == worst and one.advice]
    if faults:
        found = "; ".join(f"{one.what}: {one.found}" for one in faults)
        advice = f"on {facts.node}: {'; '.join(one.advice for one in faults)}"
        return Finding(what, worst, found, advice)
    sizes = f"{facts.free_bytes / 1e9:.0f} GB free"
    found = f"{facts.node}, {resources.get('CPU', 0):g} CPUs, {len(facts.gpus)} GPUs, {sizes}"
    return Finding(what, "ok", f"{found}; releases as here")


def _releases(facts: Facts, here: Facts) -> Finding:
    wrong = [
        f"{name} {there} (here {own})"
        for name, own in {"Python": here.python, **here.versions}.items()
        for there in ({"Python": facts.python, **facts.versions}.get(name, "missing"),)
        if there != own and not (name == "skysift" and there == "missing")
    ]
    advice = "`pip install -c constraints.txt skysift` with the constraints of this machine"
    return Finding("releases", "broken" if wrong else "ok", ", ".join(wrong), advice)


def _store(size_bytes: float) -> Finding:
    found = f"{size_bytes / 1e9:.1f} GB; Ray then moves objects to disk, slowly"
    advice = "`ray start --object-store-memory=8000000000`, with a /dev/shm of that size"
    return Finding("object store", "note" if size_bytes < _MIN_STORE_BYTES else "ok", found, advice)


def training_finding(
    spec: TrainingSpec, nodes: Sequence[Mapping[str, float]], grows: bool
) -> Finding:
    """Check that the workers of a training fit on the idle cluster; one that grows may get room."""
    from pipeline.training.resources import ResourceRequest

    per_worker = {"CPU": float(spec.cpus_per_worker)}
    if spec.device == "gpu":
        per_worker["GPU"] = 1.0
    request = ResourceRequest(workers=spec.workers, per_worker=per_worker)
    room = request.capacity(nodes)
    each = " and ".join(f"{count:g} {kind}" for kind, count in per_worker.items())
    found = f"{spec.workers} workers of {each} each; Ray has room for {room}"
    if room >= spec.workers:
        return Finding("training", "ok", found)
    fewer = f"`--set training.workers={room}`, or " if room else ""
    device = "`--set training.device=auto`, or " if spec.device == "gpu" else ""
    advice = f"{fewer}{device}add nodes: max_workers in cluster.yaml, maxReplicas of the group"
    if grows:
        return Finding("training", "note", f"{found}, and the autoscaler may add nodes", advice)
    return Finding("training", "broken", found, advice)


def dashboard_findings(url: str) -> list[Finding]:
    """Check that the dashboard answers, asks for a token, takes this one, and is Ray's release."""
    try:
        open_status, release = _ask(url, None)
        token, path = ray_token()
        status = open_status
        if open_status in {401, 403} and token:
            status, release = _ask(url, token)
    except (OSError, ValueError, http.client.HTTPException) as error:
        advice = (
            "`ray dashboard cluster.yaml` or `kubectl port-forward service/skysift-head-svc 8265` "
            "leads there; or correct cluster.dashboard"
        )
        return [Finding("dashboard", "broken", f"{url}: {first_line(error)}", advice)]
    return [*file_findings("Ray's token", path), _dashboard(url, open_status, status, release)]


def _dashboard(url: str, open_status: int, status: int, release: str) -> Finding:
    if open_status == 200 and not is_loopback(url):
        advice = "start Ray with `RAY_AUTH_MODE=token ray start --head`, or listen on loopback"
        return Finding("dashboard", "broken", f"{url} takes jobs from anyone, no token", advice)
    if status in {401, 403}:
        fault = "wants a token, and there is none" if status == 401 else "refuses this token"
        advice = f"{_TOKEN}: `ray get-auth-token` on the head prints it"
        return Finding("dashboard", "broken", f"{url} {fault}", advice)
    if not release:
        advice = "correct cluster.dashboard: another program answers there"
        return Finding("dashboard", "broken", f"{url} is not Ray's ({status})", advice)
    if release != version("ray"):
        found = f"{url} is of Ray {release}, this machine has {version('ray')}"
        return Finding("dashboard", "broken", found, f"`pip install 'ray=={release}'`")
    guard = "takes the token" if open_status != 200 else "needs no token, on this machine alone"
    return Finding("dashboard", "ok", f"{url}, Ray {release}, {guard}")


def _ask(url: str, token: str | None) -> tuple[int, str]:
    """Return status and Ray's release of a dashboard."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http(s)://host:port")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_ANSWER_S)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/api/version", headers=headers)
        answer = connection.getresponse()
        body = answer.read(100_000)
    finally:
        connection.close()
    try:
        return answer.status, str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError):
        return answer.status, ""


def ray_token() -> tuple[str, Path | None]:
    """Return Ray's token and its file, where Ray looks for them; empty where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), None
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip(), path
    except (OSError, UnicodeDecodeError):
        return "", path if given else None


def file_findings(what: str, path: Path | None) -> list[Finding]:
    """Judge a file with a secret: it is there, and only its user reads it."""
    if path is None:
        return []
    try:
        mode = path.stat().st_mode
    except OSError as error:
        advice = f"correct the path, or write the file: `ls -l {path.parent}`"
        return [Finding(what, "broken", f"{path}: {error.strerror}", advice)]
    if mode & 0o077:
        found = f"{path} can be read by other users (mode {mode & 0o777:o})"
        return [Finding(what, "broken", found, f"`chmod 600 {path}`")]
    return [Finding(what, "ok", f"{path}, for its user only")]
