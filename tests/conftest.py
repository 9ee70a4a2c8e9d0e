"""Fixtures shared by all tests: one Ray session, one S3 server, the real data when it is there."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from storage.location import Location, StorageOptions
from tests.support.object_store import MotoS3
from tests.support.paths import REAL_DATA

# No test may reach a model hub, whatever the machine's network allows.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SKYSIFT_RAY_DIR", "/tmp")
# A run in the background of a script ignores Ctrl-C, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private Ray instance of two CPUs for the whole run."""
    from pipeline.runtime.cluster import ray_session

    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The address of a moto S3 server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(f"{address}/moto-api/", server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the moto S3 server did not start")


@pytest.fixture
def moto_s3(moto_server: str) -> Iterator[MotoS3]:
    """An S3 server with one empty bucket; nothing of it is in the environment."""
    options = StorageOptions(
        endpoint_url=moto_server,
        region="eu-central-1",
        access_key_id="testing",
        secret_access_key="testing",
    )
    bucket = "skysift-test"
    fs, _ = Location(f"s3://{bucket}", options).filesystem()
    fs.mkdir(bucket)
    yield MotoS3(options, bucket)
    fs.invalidate_cache()
    fs.rm(bucket, recursive=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scenes, labels and weights; tests that need it skip without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data is not at {REAL_DATA}")
    return REAL_DATA


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the texts of every test travel between the processes of the tests as UTF-8."""
    report = yield
    report.sections = [(title, _utf8(text)) for title, text in report.sections]
    if report.failed and _utf8(report.longreprtext) != report.longreprtext:
        report.longrepr = _utf8(report.longreprtext)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the list of skipped tests
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say in the last lines how to install the browser that tests were skipped for."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    missing = [report for report in skipped if "chromium is not installed" in str(report.longrepr)]
    if missing:
        terminalreporter.write_line(
            f"{len(missing)} tests of the map were skipped: chromium is not installed; "
            "`apt-get install chromium` as root (or `make browser`) installs it",
            yellow=True,
            bold=True,
        )
