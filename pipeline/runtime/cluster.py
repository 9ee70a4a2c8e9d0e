"""Connect to Ray: join an existing cluster, or start a private instance.

A private instance belongs to the process that starts it. It listens on the loopback interface, and
uses token authentication (Ray's own default for local ones since 2.59; setting ``RAY_AUTH_MODE``
after Ray is imported would break it). Its files lie in a new folder that only its user may enter
and that is removed with the instance; the folder of a killed process is removed by the next start.
"""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

from storage.errors import ConfigError, SkysiftError

logger = logging.getLogger(__name__)

_PREFIX = "skysift-ray-"
_ROOT_CHARS = 20  # Ray adds up to 87 characters; the name of a socket has at most 107
_NEW_S = 2.0


def joins_cluster(address: str | None) -> bool:
    """Tell whether :func:`ray_session` would join a cluster, not start a private instance."""
    ray = sys.modules.get("ray")  # a process that never imported Ray is not connected to Ray
    return bool(address or os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized()))


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    An existing connection of this process is used as it is and left alone. Otherwise
    ``address`` (or ``RAY_ADDRESS``) names a cluster to join; with neither, a private local
    instance is started and stopped again.

    Parameters
    ----------
    address
        Ray address to join, for example ``"auto"``.
    cpus
        CPUs of a private instance; all of this machine's when None.

    Raises
    ------
    ConfigError
        The path of the folder for private instances is too long.
    SkysiftError
        The cluster cannot be joined.
    """
    with _signals_wait():
        import ray  # slow, and a small ingest does without

    if ray.is_initialized():
        yield
        return
    # Ray Train v2 and Ray Data print through the driver; the command line shows its own progress.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # No usage report is sent; the report would also start one more process.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else private_folder(private_root()) as folder:
        try:
            with _signals_wait(), _handler_of_sigterm_stays():
                if folder is None:
                    _join(str(address))
                else:
                    _start_private(folder, cpus)
            yield
        finally:
            with _signals_wait():
                ray.shutdown()


def private_root() -> Path:
    """Return the folder in which private instances make theirs: ``SKYSIFT_RAY_DIR`` or temporary.

    Raises
    ------
    ConfigError
        The path of ``SKYSIFT_RAY_DIR`` is too long for the names of Ray's sockets.
    """
    given = os.environ.get("SKYSIFT_RAY_DIR")
    root = Path(given or tempfile.gettempdir()).absolute()
    if len(str(root)) <= _ROOT_CHARS:
        return root
    if given:
        raise ConfigError(
            f"SKYSIFT_RAY_DIR {root} makes socket names that are too long; "
            f"set SKYSIFT_RAY_DIR to a folder of at most {_ROOT_CHARS} characters, such as /tmp"
        )
    return Path("/tmp")


def _join(address: str) -> None:
    """Connect to a cluster; SkysiftError where Ray cannot."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SkysiftError(
            f"the Ray cluster at {address!r} cannot be joined ({line}); check the address "
            "(cluster.address, RAY_ADDRESS), and that the cluster runs with your token"
        ) from error


def _start_private(folder: Path, cpus: int | None) -> None:
    """Start an instance in a folder, on loopback and with a token."""
    import ray
    from ray._private import ray_constants

    _save_token()
    # Ray listens on all interfaces, unless the address of its node is the loopback's. Ray chooses
    # that address itself only where clusters are disabled, and replaces the address if given.
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, enabled = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _temp_dir=str(folder / "r"),  # Ray opens this folder to everyone
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _save_token() -> None:
    """Save the user's token for Ray, readable by that user only; Ray would let everyone read it."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    token = Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not token.exists():
        with tempfile.NamedTemporaryFile("w", dir=token.parent) as new:
            new.write(secrets.token_hex(32))
            new.flush()
            with suppress(FileExistsError):  # another process was faster
                os.link(new.name, token)
    status = token.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        token.chmod(0o600)


@contextmanager
def private_folder(root: Path) -> Iterator[Path]:
    """Make a folder that only this user may enter, and remove it after the block.

    This process holds a lock on it, however the process ends.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # ends with this process, however the process ends
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of this user whose process has ended without removing the folder."""
    try:
        status = folder.lstat()
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < _NEW_S:
            return  # of another user, or not locked yet
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        logger.debug("%s is in use", folder)
    finally:
        os.close(handle)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP after the block; a second one of a kind at once.

    An exception amid the start or the end of Ray is lost in a callback, or leaves parts that abort
    the process. Signals that have no handler in Python do not wait.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if came.count(number) > 1:
            handlers[number](number, frame)

    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, note)
        yield
    finally:
        for waited, handler in handlers.items():
            signal.signal(waited, handler)
        for waited in came:
            handlers[waited](waited, None)


@contextmanager
def _handler_of_sigterm_stays() -> Iterator[None]:
    """Keep Ray from replacing a handler of SIGTERM by its own, which ends without a word."""
    from ray._private import utils

    if not callable(signal.getsignal(signal.SIGTERM)):
        yield
        return
    before, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
