"""What `skysift doctor` looks at: whether this machine can run Skysift, and what to do if not.

Each check is a function that returns a :class:`Finding`; none changes anything, and a check that
fails never stops the others.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from storage.errors import SkysiftError
from storage.location import StorageOptions, exists, is_local, local_path
from storage.raster.geotiff import gdal_report

Verdict = Literal["ok", "note", "broken"]
_MIN_FREE_BYTES = 5 * 10**9
_MIN_SHARED_BYTES = 2 * 10**9
_MIN_PYTHON = (3, 11)
_RAY_FOLDER_CHARS = 40
_DRIVERS = ("GTiff", "COG")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found, and what to do about it; ``advice`` is empty when nothing."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def machine_findings() -> list[Finding]:
    """Look at this machine: Python, packages, GDAL, GPU, disk, memory."""
    checks: Sequence[Callable[[], Finding]] = (
        _python,
        _packages,
        _faiss,
        _gdal,
        _gpu,
        _disk,
        _shared_memory,
    )
    return [check() for check in checks]


def store_findings(uris: Sequence[tuple[str, str]], options: StorageOptions) -> list[Finding]:
    """Look at the places that a recipe names.

    Parameters
    ----------
    uris
        Recipe key and URI of each.
    options
        How to reach the object store.
    """
    return [_place(key, uri, options) for key, uri in uris]


def ray_finding(connect: Callable[[], object]) -> Finding:
    """Tell whether Ray starts, or can be joined; ``connect`` does it and gives it back."""
    folder = os.environ.get("SKYSIFT_RAY_DIR", tempfile.gettempdir())
    if len(folder) > _RAY_FOLDER_CHARS:
        return Finding(
            what="Ray",
            verdict="broken",
            found=f"its folder {folder} makes socket names that are too long",
            advice="set SKYSIFT_RAY_DIR to a short folder, such as /tmp",
        )
    try:
        connect()
    except (SkysiftError, OSError, RuntimeError, ValueError) as error:
        return Finding(
            what="Ray",
            verdict="broken",
            found=f"{version('ray')} does not start: {' '.join(str(error).split())[:160]}",
            advice="check the address and the token (RAY_ADDRESS, RAY_AUTH_TOKEN)",
        )
    return Finding(what="Ray", verdict="ok", found=f"{version('ray')} starts")


def _python() -> Finding:
    text = platform.python_version()
    if tuple(int(part) for part in text.split(".")[:2]) < _MIN_PYTHON:
        return Finding(
            what="Python", verdict="broken", found=text, advice="install Python 3.11 or later"
        )
    return Finding(what="Python", verdict="ok", found=f"{text}, {platform.platform()}")


def _packages() -> Finding:
    """Compare what is installed with what the package asks for."""
    try:
        wanted = [Requirement(line) for line in requires("skysift") or []]
    except PackageNotFoundError:
        return Finding(
            what="packages",
            verdict="broken",
            found="Skysift is not installed in this environment",
            advice="install the wheel, or `pip install -e .` in its repository",
        )
    installed = {  # a distribution may write `prometheus_client` for `prometheus-client`
        canonicalize_name(found.name): found.version for found in distributions() if found.name
    }
    wrong = [
        f"{one.name} {installed.get(name, 'missing')} (needs {one.specifier})"
        for one, name in ((one, canonicalize_name(one.name)) for one in wanted)
        if (one.marker is None or one.marker.evaluate({"extra": ""}))
        and not one.specifier.contains(installed.get(name, "0"), prereleases=True)
    ]
    if wrong:
        return Finding(
            what="packages",
            verdict="broken",
            found=", ".join(wrong),
            advice="install them with `pip install -c constraints.txt skysift`",
        )
    return Finding(what="packages", verdict="ok", found=f"Skysift {version('skysift')}, all there")


def _faiss() -> Finding:
    names = sorted(
        {found.name for found in distributions() if (found.name or "").startswith("faiss")}
    )
    if len(names) > 1:
        return Finding(
            what="FAISS",
            verdict="broken",
            found=f"{' and '.join(names)} both install the module faiss",
            advice="uninstall faiss-cpu when you want the GPU, the other one when not",
        )
    return Finding(what="FAISS", verdict="ok", found=f"{names[0]} {version(names[0])}")


def _gdal() -> Finding:
    release, drivers = gdal_report()
    missing = [name for name in _DRIVERS if name not in drivers]
    if missing:
        return Finding(
            what="GDAL",
            verdict="broken",
            found=f"{release} without {', '.join(missing)}",
            advice="install rasterio's own wheel, which has them",
        )
    return Finding(what="GDAL", verdict="ok", found=f"{release} with {', '.join(_DRIVERS)}")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding(what="GPU", verdict="note", found="none; everything runs on the CPU")
    asked = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Finding(
            what="GPU",
            verdict="broken",
            found=f"nvidia-smi fails ({error})",
            advice="check the driver; `nvidia-smi` has to work first",
        )
    found = "; ".join(answer.stdout.split("\n")).strip("; ")
    if "+cpu" in version("torch"):
        return Finding(
            what="GPU",
            verdict="note",
            found=f"{found}, but torch {version('torch')} cannot use it",
            advice="install the CUDA build of torch to embed and train on it",
        )
    return Finding(what="GPU", verdict="ok", found=found)


def _disk() -> Finding:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    text = f"{free / 1e9:.0f} GB free in {tempfile.gettempdir()}"
    if free < _MIN_FREE_BYTES:
        return Finding(
            what="disk",
            verdict="broken",
            found=text,
            advice="free some, or set TMPDIR and SKYSIFT_RAY_DIR to a larger disk",
        )
    return Finding(what="disk", verdict="ok", found=text)


def _shared_memory() -> Finding:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding(what="shared memory", verdict="note", found="no /dev/shm on this system")
    total = shutil.disk_usage(shared).total
    if total < _MIN_SHARED_BYTES:
        return Finding(
            what="shared memory",
            verdict="note",
            found=f"{total / 1e9:.1f} GB; Ray then keeps its objects on disk, slowly",
            advice="start the container with --shm-size=4g",
        )
    return Finding(what="shared memory", verdict="ok", found=f"{total / 1e9:.0f} GB")


def _place(key: str, uri: str, options: StorageOptions) -> Finding:
    try:
        there = exists(uri, options)
    except SkysiftError as error:
        return Finding(
            what=key,
            verdict="broken",
            found=str(error),
            advice="check storage.endpoint_url, the credentials and the network",
        )
    if there:
        return Finding(what=key, verdict="ok", found=f"{uri} is there")
    if is_local(uri) and not _can_be_made(local_path(uri)):
        return Finding(
            what=key,
            verdict="broken",
            found=f"{uri} is not there and cannot be written",
            advice="choose another place, or change its permissions",
        )
    return Finding(what=key, verdict="note", found=f"{uri} can be reached; nothing is there yet")


def _can_be_made(path: Path) -> bool:
    near = next(parent for parent in path.absolute().parents if parent.exists())
    return near.is_dir() and os.access(near, os.W_OK)
