"""Connect to Ray: join an existing cluster, or start a private instance.

A private instance uses token authentication (Ray's own default for local ones since 2.59; setting
``RAY_AUTH_MODE`` after Ray is imported would break it), writes below a short folder (Ray's sockets
have a 107-byte limit) and is shut down by the process that started it.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


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
    """
    import ray  # slow, and a small ingest does without

    if ray.is_initialized():
        yield
        return
    # Ray Train v2 and Ray Data print through the driver; the command line shows its own progress.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # No usage report is sent; the report would also start one more process.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        folder = Path(os.environ.get("SKYSIFT_RAY_DIR", tempfile.gettempdir())) / "skysift-ray"
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _temp_dir=str(folder),
        )
    try:
        yield
    finally:
        ray.shutdown()
