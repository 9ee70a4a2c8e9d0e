"""The checks of `skysift doctor`: can this machine run Skysift, and the next step if it cannot.

Each check is a function that returns a :class:`Finding`. A check changes nothing, and a check that
fails does not stop the others.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.runtime.cluster import private_root
from storage.errors import ConfigError, SkysiftError
from storage.location import Location
from storage.raster.geotiff import gdal_report

Verdict = Literal["ok", "note", "broken"]
_MIN_FREE_BYTES = 5 * 10**9
_MIN_SHARED_BYTES = 2 * 10**9
_MIN_PYTHON = (3, 11)
_DRIVERS = ("GTiff", "COG")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``advice`` is empty if there is nothing to repair."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def machine_findings() -> list[Finding]:
    """Check this machine: Python, packages, GDAL, GPU, disk, memory."""
    checks = (_python, _packages, _faiss, _gdal, _gpu, _disk, _shared_memory)
    return [check() for check in checks]


def ray_finding(connect: Callable[[], object]) -> Finding:
    """Check that Ray starts, or can be joined; ``connect`` connects and disconnects."""
    try:
        private_root()
    except ConfigError as error:
        advice = "set SKYSIFT_RAY_DIR to a short folder, such as /tmp"
        return Finding("Ray", "broken", str(error), advice)
    try:
        connect()
    except (SkysiftError, OSError, RuntimeError, ValueError) as error:
        found = f"{version('ray')} does not start: {' '.join(str(error).split())[:160]}"
        advice = "check the address and the token (RAY_ADDRESS, RAY_AUTH_TOKEN)"
        return Finding("Ray", "broken", found, advice)
    return Finding("Ray", "ok", f"{version('ray')} starts")


def _checked(what: str, passed: bool, found: str, advice: str) -> Finding:
    return Finding(what, "ok", found) if passed else Finding(what, "broken", found, advice)


def _python() -> Finding:
    text = platform.python_version()
    recent = tuple(int(part) for part in text.split(".")[:2]) >= _MIN_PYTHON
    found = f"{text}, {platform.platform()}"
    return _checked("Python", recent, found, "install Python 3.11 or later")


def _packages() -> Finding:
    """Compare the installed packages with the requirements of Skysift."""
    try:
        required = [Requirement(line) for line in requires("skysift") or []]
    except PackageNotFoundError:
        advice = "install the wheel, or `pip install -e .` in its repository"
        found = "Skysift is not installed in this environment"
        return Finding("packages", "broken", found, advice)
    installed = {  # a distribution may write `prometheus_client` for `prometheus-client`
        canonicalize_name(package.name): package.version
        for package in distributions()
        if package.name
    }
    cpu, gpu = canonicalize_name("faiss-cpu"), canonicalize_name("faiss-gpu")
    if gpu in installed:  # it is the same module, with GPUs
        installed.setdefault(cpu, installed[gpu])
    wrong = [
        f"{requirement.name} {installed.get(name, 'missing')} (needs {requirement.specifier})"
        for requirement in required
        for name in (canonicalize_name(requirement.name),)
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and not requirement.specifier.contains(installed.get(name, "0"), prereleases=True)
    ]
    found = ", ".join(wrong) or f"Skysift {version('skysift')}, no package is missing"
    advice = "install them with `pip install -c constraints.txt skysift`"
    return _checked("packages", not wrong, found, advice)


def _faiss() -> Finding:
    """Check that exactly one distribution ships the module faiss: the files of two are mixed."""
    names = sorted({d.name for d in distributions() if (d.name or "").startswith("faiss")})
    found = " and ".join(f"{name} {version(name)}" for name in names) or "none is installed"
    kept = "faiss-gpu" if shutil.which("nvidia-smi") else "faiss-cpu"
    advice = f"`pip install -c constraints.txt --force-reinstall --no-deps {kept}`"
    if names:
        advice = f"`pip uninstall -y {' '.join(names)}`, then {advice}"
    return _checked("FAISS", len(names) == 1, found, advice)


def _gdal() -> Finding:
    release, drivers = gdal_report()
    missing = [name for name in _DRIVERS if name not in drivers]
    drivers_found = f"without {', '.join(missing)}" if missing else f"with {', '.join(_DRIVERS)}"
    advice = "install rasterio's own wheel, which has them"
    return _checked("GDAL", not missing, f"{release} {drivers_found}", advice)


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "note", "none; everything runs on the CPU")
    command = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        advice = "check the driver; `nvidia-smi` has to work first"
        return Finding("GPU", "broken", f"nvidia-smi fails ({error})", advice)
    found = "; ".join(answer.stdout.split("\n")).strip("; ")
    if "+cpu" in version("torch"):
        found += f", but torch {version('torch')} cannot use it"
        advice = "install the CUDA build of torch to embed and train on it"
        return Finding("GPU", "note", found, advice)
    return Finding("GPU", "ok", found)


def _disk() -> Finding:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    text = f"{free / 1e9:.0f} GB free in {tempfile.gettempdir()}"
    advice = "free some, or set TMPDIR and SKYSIFT_RAY_DIR to a larger disk"
    return _checked("disk", free >= _MIN_FREE_BYTES, text, advice)


def _shared_memory() -> Finding:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("shared memory", "note", "no /dev/shm on this system")
    total = shutil.disk_usage(shared).total
    if total < _MIN_SHARED_BYTES:
        found = f"{total / 1e9:.1f} GB; Ray then keeps its objects on disk, slowly"
        advice = "start the container with --shm-size=4g"
        return Finding("shared memory", "note", found, advice)
    return Finding("shared memory", "ok", f"{total / 1e9:.0f} GB")


def place_finding(key: str, place: Location) -> Finding:
    """Check that the place of a recipe key exists or can be made."""
    try:
        found = place.exists()
    except SkysiftError as error:
        advice = "check storage.endpoint_url, the credentials and the network"
        return Finding(key, "broken", str(error), advice)
    if found:
        return Finding(key, "ok", f"{place} exists")
    if place.is_local and not _can_be_made(place.path):
        advice = "choose another place, or change its permissions"
        return Finding(key, "broken", f"{place} does not exist and cannot be written", advice)
    return Finding(key, "note", f"{place} can be reached; nothing is there yet")


def _can_be_made(path: Path) -> bool:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    return parent.is_dir() and os.access(parent, os.W_OK)
