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
import ray
from ray._private import utils

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
        with cluster.private_folder(private_root()) as own:
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


class _Received(Exception):
    pass


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal whose handler raises :class:`_Received`."""

    def receive(number: int, frame: object) -> None:
        raise _Received

    before = signal.signal(request.param, receive)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("moment", ["init", "shutdown"])
def test_a_signal_waits_until_ray_has_started_or_ended(
    number: int, moment: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def step(name: str) -> None:
        if name == "init":
            utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
        if name == moment:
            signal.raise_signal(number)
        done.append(name)

    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("SKYSIFT_RAY_DIR", str(root))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: step("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: step("shutdown"))
    handler = signal.getsignal(number)
    with pytest.raises(_Received), cluster.ray_session():
        done.append("work")
    assert done == (["init", "shutdown"] if moment == "init" else ["init", "work", "shutdown"])
    assert signal.getsignal(number) is handler
    assert not list(root.glob("skysift-ray-*"))


def test_a_second_signal_does_not_wait(number: int) -> None:
    after = []

    def receive_two() -> None:
        for name in ("first", "second"):
            signal.raise_signal(number)
            after.append(name)

    with pytest.raises(_Received), cluster._signals_wait():
        receive_two()
    assert after == ["first"]


def test_a_cluster_that_cannot_be_joined_is_named(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SkysiftError, match="'nonsense' cannot be joined"):
        cluster._join("nonsense")
