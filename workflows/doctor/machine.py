"""The checks of a machine: Python, packages, GDAL, FAISS, GPU, disks, memory.

What a node of a cluster has in common with this machine is judged by the same functions, from
:class:`workflows.doctor.facts.Facts`.
"""

import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from storage.raster.geotiff import gdal_report
from workflows.doctor.facts import Facts, existing, gather
from workflows.doctor.findings import Finding, Probe, checked

_MIN_FREE_BYTES = 5 * 10**9
_MOST_USED = 0.95
"""Share of a disk that may be in use: beyond it Ray writes no objects to the disk."""
RAY_FILES = "Ray's files"
_MIN_SHARED_BYTES = 2 * 10**9
_MIN_PYTHON = (3, 11)
_DRIVERS = ("GTiff", "COG")
_INSTALL = "pip install -c constraints.txt"


def machine_probes(gpus: int = 0) -> list[Probe]:
    """Return the probes of this machine; ``gpus`` is the number of GPUs that it has to have."""
    checks = {
        "Python": _python,
        "packages": _packages,
        "GDAL": _gdal,
        "shared memory": _shared_memory,
    }
    probes = [Probe(what, partial(_only, check)) for what, check in checks.items()]
    return [*probes, Probe("GPU and FAISS", lambda: _devices(gpus), limit_s=30.0)]


def _only(check: Callable[[], Finding]) -> list[Finding]:
    return [check()]


def _devices(gpus: int) -> list[Finding]:
    facts = Facts(**gather())
    return [faiss_finding(facts), gpu_finding(facts, gpus)]


def _python() -> Finding:
    text = platform.python_version()
    recent = tuple(int(part) for part in text.split(".")[:2]) >= _MIN_PYTHON
    found = f"{text}, {platform.platform()}"
    return checked("Python", recent, found, "install Python 3.11 or later")


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
    advice = f"`{_INSTALL} skysift`"
    return checked("packages", not wrong, found, advice)


def faiss_finding(facts: Facts) -> Finding:
    """Judge FAISS: one distribution ships it (the files of two are mixed), and it uses the GPUs."""
    found = " and ".join(facts.faiss) or "none is installed"
    kept = "faiss-gpu" if facts.gpus or facts.gpu_fault else "faiss-cpu"
    names = [text.partition(" ")[0] for text in facts.faiss]
    advice = f"`{_INSTALL} --force-reinstall --no-deps {kept}`"
    if names:
        advice = f"`pip uninstall -y {' '.join(names)}`, then {advice}"
    if len(names) != 1:
        return Finding("FAISS", "broken", found, advice)
    if facts.gpus and names == ["faiss-cpu"]:
        return Finding("FAISS", "note", f"{found}, which leaves the GPU idle in `index`", advice)
    if facts.gpus and not facts.faiss_gpus:
        found += f" sees none of the {len(facts.gpus)} GPUs"
        advice = "`echo $CUDA_VISIBLE_DEVICES` has to name them; `nvidia-smi` shows CUDA's release"
        return Finding("FAISS", "broken", found, advice)
    return Finding("FAISS", "ok", found + (f" on {facts.faiss_gpus} GPUs" if facts.gpus else ""))


def _gdal() -> Finding:
    release, drivers = gdal_report()
    missing = [name for name in _DRIVERS if name not in drivers]
    drivers_found = f"without {', '.join(missing)}" if missing else f"with {', '.join(_DRIVERS)}"
    advice = "install rasterio's own wheel, which has them"
    return checked("GDAL", not missing, f"{release} {drivers_found}", advice)


def gpu_finding(facts: Facts, wanted: int = 0) -> Finding:
    """Judge the GPUs: as many as wanted, with a driver that works and a torch that uses them."""
    found, torch = "; ".join(facts.gpus), facts.versions.get("torch", "")
    if facts.gpu_fault:
        advice = "repair the driver until `nvidia-smi` works; after an update of it, reboot"
        return Finding("GPU", "broken", f"nvidia-smi fails ({facts.gpu_fault})", advice)
    if len(facts.gpus) < wanted:
        advice = (
            "`nvidia-smi -L` has to list them: install the driver, or start the container with "
            "`--gpus all` (Kubernetes: the limit nvidia.com/gpu)"
        )
        return Finding("GPU", "broken", f"{len(facts.gpus)} of the {wanted} wanted", advice)
    if not facts.gpus:
        return Finding("GPU", "note", "none; everything runs on the CPU")
    if not facts.torch_gpus:
        found += f", but torch {torch} cannot use it"
        advice = f"`{_INSTALL} --force-reinstall --no-deps torch` installs the build for CUDA"
        if "+cpu" not in torch:
            advice = "update the driver: `nvidia-smi` shows a CUDA release older than torch's build"
        return Finding("GPU", "broken" if wanted else "note", found, advice)
    return Finding("GPU", "ok", f"{found}, used by torch {torch}")


def disk_probe(named: Sequence[tuple[str, Path]]) -> Probe:
    """Return the probe of the disks of folders, each with its purpose; a disk counts once."""

    def look() -> list[Finding]:
        disks: dict[int, tuple[str, Path]] = {}
        for what, folder in named:
            near = existing(folder)
            disks.setdefault(near.stat().st_dev, (what, near))
        return [_disk(what, folder) for what, folder in disks.values()]

    return Probe("disk", look)


def _disk(what: str, folder: Path) -> Finding:
    disk = shutil.disk_usage(folder)
    return disk_finding(what, str(folder), disk.free, disk.total)


def disk_finding(what: str, folder: str, free_bytes: int, total_bytes: int) -> Finding:
    """Judge the space of a disk that a folder is on."""
    full = what == RAY_FILES and free_bytes < (1 - _MOST_USED) * total_bytes
    found = f"{_size(free_bytes)} free of {_size(total_bytes)} in {folder} ({what})"
    advice = (
        f"`du -xh -d 2 {folder} | sort -h | tail` shows what fills it; or use a larger disk: "
        "`export TMPDIR=/larger/tmp SKYSIFT_RAY_DIR=/larger`, `ray start --temp-dir`"
    )
    if free_bytes < _MIN_FREE_BYTES:
        return Finding("disk", "broken", found, advice)
    if full:
        found += f"; above {_MOST_USED:.0%} in use Ray writes no objects to it"
        return Finding("disk", "broken", found, advice)
    return Finding("disk", "ok", found)


def _size(count: int) -> str:
    return f"{count / 1e9:.0f} GB" if count >= 10**10 else f"{count / 1e9:.1f} GB"


def _shared_memory() -> Finding:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("shared memory", "note", "no /dev/shm on this system")
    total = shutil.disk_usage(shared).total
    if total < _MIN_SHARED_BYTES:
        found = f"{total / 1e9:.1f} GB; Ray then keeps its objects on disk, slowly"
        advice = "start the container with `--shm-size=4g`"
        return Finding("shared memory", "note", found, advice)
    return Finding("shared memory", "ok", f"{total / 1e9:.0f} GB")
