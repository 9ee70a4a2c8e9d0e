"""A Ray cluster of several hosts on this machine: network namespaces joined by a bridge.

Each host has an address and a raylet of its own, so it can be killed, or cut off by taking its link
down, as a machine in a rack can. Files are shared, as an object store would be. Needs root and
``ip`` (iproute2).
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POSSIBLE = os.geteuid() == 0 and shutil.which("ip") is not None
HEAD = 0
_SUBNET = "10.77.7"
_ADDRESS = f"{_SUBNET}.10:6390"
_RAY = str(Path(sys.executable).with_name("ray"))
# A host that is gone is noticed after two seconds rather than half a minute.
_IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Hosts:
    """A running cluster: host 0 is the head, without CPUs; the others have one CPU each."""

    tag: str
    folder: Path
    environment: dict[str, str]
    raylets: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def add(self, *options: str) -> int:
        """Start a host; the first is the head."""
        number = len(self.raylets)
        self._link(number)
        role = [f"--address={_ADDRESS}", "--num-cpus=1"]
        if number == HEAD:
            role = ["--head", "--port=6390", "--num-cpus=0", "--include-dashboard=false"]
        command = [_RAY, "start", *role, *options, "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={_SUBNET}.{10 + number}", "--object-store-memory=150000000"]
        command.append(f"--temp-dir={self.folder}/{number}")
        self.raylets[number] = self.start(command, number)
        return number

    def start(self, command: Sequence[str], number: int = HEAD) -> subprocess.Popen[bytes]:
        """Start a command on a host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self._name(number), *command],
            env=self.environment,
            stdout=subprocess.PIPE if number == HEAD and self.raylets else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def kill(self, number: int) -> None:
        """Kill every process of a host at once."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._name(number)], check=True, capture_output=True, text=True
        )
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self, number: int) -> None:
        """Take a host off the network; its processes go on."""
        _ip("link", "set", f"{self.tag}o{number}", "down")

    def close(self) -> None:
        """Kill what runs and take the network down."""
        for number, raylet in reversed(self.raylets.items()):
            self.kill(number)
            raylet.wait(timeout=30)
            _ip("netns", "delete", self._name(number))
        _ip("link", "delete", self.tag)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, number: int) -> str:
        return f"{self.tag}h{number}"

    def _link(self, number: int) -> None:
        name, outside, inside = self._name(number), f"{self.tag}o{number}", f"{self.tag}i{number}"
        _ip("netns", "add", name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("link", "set", outside, "master", self.tag, "up")
        _ip("-n", name, "addr", "add", f"{_SUBNET}.{10 + number}/24", "dev", inside)
        for link in (inside, "lo"):
            _ip("-n", name, "link", "set", link, "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Run a head and ``count`` hosts with the token on, and take all of it down again."""
    folder = Path(tempfile.mkdtemp(prefix="sky", dir="/tmp"))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    address = {"RAY_ADDRESS": _ADDRESS, "OMP_NUM_THREADS": "1"}
    cluster = Hosts(
        f"sk{secrets.token_hex(2)}", folder, {**os.environ, **token, **address, **_IMPATIENT}
    )
    _ip("link", "add", cluster.tag, "type", "bridge")
    try:
        _ip("addr", "add", f"{_SUBNET}.1/24", "dev", cluster.tag)
        _ip("link", "set", cluster.tag, "up")
        cluster.add()
        _wait_for_head(cluster.raylets[HEAD])
        for _ in range(count):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


def _wait_for_head(head: subprocess.Popen[bytes]) -> None:
    host, _, port = _ADDRESS.partition(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the head did not start")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
