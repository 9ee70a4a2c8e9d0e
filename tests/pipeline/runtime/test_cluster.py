"""A private Ray is of its user only, leaves nothing behind, and leaves signals to the program."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from pipeline.runtime import cluster
from pipeline.runtime.cluster import private_root
from storage.errors import ConfigError, SkysiftError
from tests.support.paths import REPOSITORY

STARTED = """
import json, os, sys
from pathlib import Path
from pipeline.runtime.cluster import ray_session
from tests.support.listening import listening_addresses
with ray_session(cpus=1):
    import ray
    folder, = Path(os.environ["SKYSIFT_RAY_DIR"]).glob("skysift-ray-*/r/session_latest/sockets")
    node = ray.remote(lambda: ray.util.get_node_ip_address())
    print(json.dumps({
        "listens": sorted(map(str, listening_addresses())),
        "node": ray.get(node.remote()),
        "folder": str(folder.parents[2]),
        "mode": folder.parents[2].stat().st_mode,
        "variables": [name for name in os.environ if name.startswith("RAY_ENABLE")],
    }), flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A short folder for the folders of private instances."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


def _start(root: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", STARTED, *arguments],
        env={**environment, "HOME": str(home), "SKYSIFT_RAY_DIR": str(root)},
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_private_ray_is_closed_to_others_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    killed = _start(root, tmp_path, "wait")
    assert killed.stdout is not None
    state = json.loads(killed.stdout.readline())
    killed.kill()
    killed.communicate(timeout=30)
    assert Path(state["folder"]).exists()
    assert state["listens"]
    assert all(ip_address(address).is_loopback for address in state["listens"])
    assert state["node"] == "127.0.0.1"
    assert stat.S_IMODE(state["mode"]) == 0o700
    assert stat.S_IMODE((tmp_path / ".ray/auth_token").stat().st_mode) == 0o600
    assert state["variables"] == []  # processes of this one may join a cluster
    (tmp_path / ".ray/auth_token").chmod(0o644)
    following = _start(root, tmp_path)
    out, _ = following.communicate(timeout=120)
    assert json.loads(out)["folder"] != state["folder"]
    assert list(root.glob("skysift-ray-*")) == []
    assert stat.S_IMODE((tmp_path / ".ray/auth_token").stat().st_mode) == 0o600


def test_only_folders_of_ended_processes_are_removed(root: Path, monkeypatch) -> None:
    monkeypatch.setenv("SKYSIFT_RAY_DIR", str(root))
    names = ("ended", "at-work", "new", "another")
    folders = {name: root / f"skysift-ray-{name}" for name in names}
    for folder in folders.values():
        (folder / "r").mkdir(parents=True)
    aside = root / "aside"
    aside.mkdir()
    (root / "skysift-ray-link").symlink_to(aside)
    hour_ago = time.time() - 3600
    for name in ("ended", "at-work", "another"):
        os.utime(folders[name], (hour_ago, hour_ago))
    if os.geteuid() == 0:
        os.chown(folders["another"], 12345, 12345)
    handle = os.open(folders["at-work"], os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with cluster._private_folder() as own:
            assert stat.S_IMODE(own.stat().st_mode) == 0o700
            cluster._remove_if_left(own)
            os.utime(own, (hour_ago, hour_ago))
            cluster._remove_if_left(own)
            assert own.exists()
        assert not own.exists()
    finally:
        os.close(handle)
    assert not folders["ended"].exists()
    assert folders["at-work"].exists()
    assert folders["new"].exists()
    assert aside.exists()
    if os.geteuid() == 0:
        assert folders["another"].exists()


@pytest.mark.parametrize("given", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"])
def test_a_token_is_saved_once_unless_one_is_given(given: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with monkeypatch.context() as setting:
        setting.setenv(given, "disabled")
        cluster._save_token()
    assert list(tmp_path.iterdir()) == []
    cluster._save_token()
    [saved] = (tmp_path / ".ray").iterdir()
    text = saved.read_text()
    assert len(text) == 64
    cluster._save_token()
    assert saved.read_text() == text
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_a_folder_too_long_for_sockets_is_refused_or_replaced(monkeypatch) -> None:
    long = "/tmp/" + "long" * 10
    monkeypatch.setenv("SKYSIFT_RAY_DIR", long)
    with pytest.raises(ConfigError, match="SKYSIFT_RAY_DIR"):
        private_root()
    monkeypatch.delenv("SKYSIFT_RAY_DIR")
    monkeypatch.setattr(tempfile, "tempdir", long)
    assert private_root() == Path("/tmp")


def test_sigterm_goes_to_the_program_while_ray_starts() -> None:
    class Stopped(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stopped

    def ends(number: int, frame: object) -> None:
        sys.exit(number)  # as Ray's handler does

    def receive() -> None:
        with cluster._sigterm_kept():
            signal.signal(signal.SIGTERM, ends)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            receive()
        assert signal.getsignal(signal.SIGTERM) is stop
        with pytest.raises(SystemExit), cluster._sigterm_kept():
            sys.exit(3)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_cannot_be_joined_is_named(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SkysiftError, match="'nonsense' cannot be joined"):
        cluster._join("nonsense")
