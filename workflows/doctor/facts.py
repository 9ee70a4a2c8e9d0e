"""Facts of a machine: versions, FAISS, GPUs, disk, clock; gathered here and on a cluster's nodes.

A node runs :func:`gather` before anything of Skysift has to be installed there: the module travels
by value, and its head imports the standard library only.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

# Those whose releases have to be the same on all nodes: they exchange data or read the same files.
_COMPARED = ("skysift", "ray", "torch", "numpy", "pyarrow", "zarr", "icechunk", "rasterio")
_NVIDIA_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of one machine, as :func:`gather` saw them.

    Attributes
    ----------
    node
        Its host name.
    python
        Release of Python.
    versions
        Name to release of the packages that all machines of a cluster share.
    faiss
        The distributions that ship the module ``faiss``, such as ``faiss-cpu 1.15.1``.
    gpus
        Name, driver and memory of each GPU, as ``nvidia-smi`` tells.
    gpu_fault
        Why ``nvidia-smi`` failed; empty where it did not, or is missing.
    torch_gpus
        GPUs that torch can use; None on a machine without GPUs.
    faiss_gpus
        GPUs that FAISS can use; None on a machine without GPUs.
    folder
        Temporary folder.
    free_bytes
        Free space in that folder.
    total_bytes
        Size of its disk.
    now_s
        Seconds since 1970 (UTC) by the machine's clock.
    """

    node: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    faiss: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    gpu_fault: str = ""
    torch_gpus: int | None = None
    faiss_gpus: int | None = None
    folder: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    now_s: float = 0.0


def gather(folder: str = "") -> dict[str, Any]:
    """Return the fields of :class:`Facts` for the machine that runs this.

    Parameters
    ----------
    folder
        Folder whose disk is looked at; empty for the temporary folder.
    """
    installed = {(d.name or "").lower().replace("_", "-"): d.version for d in distributions()}
    gpus, fault = nvidia_gpus()
    folder = folder or tempfile.gettempdir()
    disk = shutil.disk_usage(existing(Path(folder)))
    return {
        "node": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: installed[name] for name in _COMPARED if name in installed},
        "faiss": tuple(f"{n} {v}" for n, v in sorted(installed.items()) if n.startswith("faiss")),
        "gpus": gpus,
        "gpu_fault": fault,
        "torch_gpus": _torch_gpus() if gpus else None,
        "faiss_gpus": _faiss_gpus() if gpus else None,
        "folder": folder,
        "free_bytes": disk.free,
        "total_bytes": disk.total,
        "now_s": time.time(),
    }


def existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def nvidia_gpus() -> tuple[tuple[str, ...], str]:
    """Return the GPUs as ``nvidia-smi`` tells, and why it failed; empty where it is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), ""
    command = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_S, check=True
        )
    except subprocess.CalledProcessError as error:
        text = (error.stdout or error.stderr or "").strip().partition("\n")[0]
        return (), text or f"exit code {error.returncode}"
    except (subprocess.SubprocessError, OSError) as error:
        return (), str(error)
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip()), ""


def _torch_gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _faiss_gpus() -> int:
    try:
        import faiss
    except ImportError:
        return 0
    return int(getattr(faiss, "get_num_gpus", int)())
