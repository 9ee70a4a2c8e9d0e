"""Jobs: what travels to the cluster, what never does, and what comes back."""

import contextlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.errors import ConfigError, NotFoundError, SkysiftError
from workflows.submit import (
    Submission,
    asks_for_token,
    connect,
    follow,
    is_loopback,
    job_result,
    package,
    refuse_secrets,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def test_code_and_recipe_are_packaged_and_the_arguments_name_the_copy(tmp_path):
    recipe = tmp_path / "world.yaml"
    recipe.write_text("name: world\n")
    folder = tmp_path / "package"
    arguments = package(["ingest", "-r", str(recipe), "--archive", "s3://b/a"], folder)
    assert arguments == ["ingest", "-r", "recipe-2.yaml", "--archive", "s3://b/a"]
    assert (folder / "recipe-2.yaml").read_text() == "name: world\n"
    assert package([f"--recipe={recipe}"], tmp_path / "2") == ["--recipe=recipe-0.yaml"]
    assert package(["-r", "naip-series"], tmp_path / "3") == ["-r", "naip-series"]
    assert (folder / "workflows" / "cli.py").is_file()
    assert (folder / "workflows" / "recipes" / "aid.yaml").is_file()
    assert not list(folder.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("submission", "word"),
    [
        (Submission(arguments=("ingest",), environment={"AWS_SECRET_ACCESS_KEY": "x"}), "--env"),
        (Submission(arguments=("ingest", "--set", "storage.secret_access_key=x")), "--set storage"),
        (Submission(arguments=("serve", "--set=service.token=x")), "--set service.token"),
    ],
)
def test_a_credential_is_refused(submission, word):
    with pytest.raises(ConfigError, match=word):
        refuse_secrets(submission)


@pytest.mark.parametrize(
    ("value", "refused"), [("abc", True), ("${KEY:-abc}", True), ("${AWS_KEY}", False)]
)
def test_a_recipe_may_name_a_variable_but_hold_no_credential(tmp_path, value, refused):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"storage:\n  secret_access_key: {value}\n")
    submission = Submission(arguments=("ingest", "--recipe", str(recipe)))
    if not refused:
        refuse_secrets(submission)
        return
    with pytest.raises(ConfigError, match=r"r\.yaml: storage\.secret_access_key") as caught:
        refuse_secrets(submission)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://[::1]:8265", True),
        ("http://localhost:8265", True),
        ("http://localhost.evil.example:8265", False),
        ("https://10.0.0.1", False),
        ("http://0.0.0.0:8265", False),
    ],
)
def test_loopback_is_known(address, expected):
    assert is_loopback(address) is expected


class _Dashboard(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Dashboard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_open_dashboard_elsewhere_is_refused(dashboard, monkeypatch):
    assert not asks_for_token(dashboard)
    monkeypatch.setattr("workflows.submit.is_loopback", lambda address: False)
    with pytest.raises(ConfigError, match="accepts jobs from anyone"):
        connect(dashboard)
    monkeypatch.setattr(_Dashboard, "status", 401)
    assert asks_for_token(dashboard)


def test_an_address_that_is_none_or_answers_not_is_named():
    with pytest.raises(ConfigError, match="not a dashboard address"):
        asks_for_token("ray://head:10001")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SkysiftError, match=re.escape(address)):
            asks_for_token(address)


# ---------------------------------------------------------------- against a real head


@dataclass(frozen=True)
class _Head:
    port: int
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def skysift(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "RAY_AUTH_TOKEN": token or self.token,
            "PYTHONPATH": str(REPOSITORY),
        }
        return subprocess.run(
            [sys.executable, "-m", "workflows.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[_Head]:
    """A Ray head of its own, with dashboard and token."""
    port, agent_port = _free_port(), _free_port()
    token = "0123456789abcdef" * 4
    folder = Path(tempfile.mkdtemp(prefix="sj", dir="/tmp"))  # Ray's sockets want a short path
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent_port}",
        "--num-cpus=2", "--disable-usage-stats",
        f"--temp-dir={folder}",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _up(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield _Head(port, token)
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _up(port: int) -> bool:
    try:
        return asks_for_token(f"http://127.0.0.1:{port}")
    except SkysiftError:
        return False


def test_a_job_runs_with_its_recipe_and_gives_log_and_exit_code(head, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: ${WORLD}\ngrid:\n  tile_px: 77\n")
    target = ["--address", head.address]
    shown = ["--", "recipe", "show", "-r", str(recipe)]
    done = head.skysift("submit", *target, "--env", "WORLD=here", *shown)
    assert done.returncode == 0, done.stderr
    assert "name: here" in done.stdout
    assert "tile_px: 77" in done.stdout
    failed = head.skysift("submit", *target, *shown)
    assert failed.returncode == 2
    assert "uses ${WORLD}, which is not set" in failed.stdout
    job_id = re.search(r"skysift-\w+", done.stderr).group()
    listed = head.skysift("jobs", "list", *target)
    assert re.search(rf"{job_id}\s+SUCCEEDED\s+recipe show", listed.stdout), listed.stdout
    assert "name: here" in head.skysift("jobs", "logs", *target, job_id).stdout


def test_a_wrong_token_and_an_unknown_job_are_one_line(head):
    wrong = head.skysift("jobs", "list", "--address", head.address, token="f" * 64)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN" in wrong.stderr
    unknown = head.skysift("jobs", "stop", "--address", head.address, "skysift-0")
    assert unknown.returncode == 1
    assert "knows no job 'skysift-0'" in unknown.stderr


class _CuttingProxy:
    """A TCP proxy that cuts the first connections that have carried a log for a while."""

    def __init__(self, port: int, cuts: int) -> None:
        self._target, self.cuts = port, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if b"line 1\n" in data and self.cuts:
                    self.cuts -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other direction closed both ends
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            end.close()


def test_a_dropped_connection_loses_and_repeats_nothing(head):
    from ray.job_submission import JobSubmissionClient

    proxy = _CuttingProxy(head.port, cuts=2)
    headers = {"Authorization": f"Bearer {head.token}"}
    client = JobSubmissionClient(f"http://127.0.0.1:{proxy.port}", headers=headers)
    program = "import time\nfor n in range(4): print('line', n, flush=True); time.sleep(0.7)"
    job_id = client.submit_job(entrypoint=f'{sys.executable} -c "{program}"')
    log: list[str] = []
    result = follow(client, job_id, log.append, reconnect_s=(0.2,))
    proxy.close()
    assert proxy.cuts == 0
    lines = [line for line in "".join(log).splitlines() if line.startswith("line")]
    assert lines == ["line 0", "line 1", "line 2", "line 3"]
    assert (result.status, result.exit_code) == ("SUCCEEDED", 0)
    with pytest.raises(NotFoundError):
        job_result(client, "skysift-0")
