"""The doctor finds what is wrong with a machine, says what to do, and changes nothing."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from workflows.cli import main
from workflows.doctor import machine
from workflows.doctor.facts import Facts, gather
from workflows.doctor.machine import RAY_FILES, disk_finding, disk_probe, faiss_finding, gpu_finding

CARD = "H200, 570.1, 141 GB"
CPU_BUILD = {"torch": "2.13.0+cpu"}


def facts(**changed) -> Facts:
    return Facts(**{"node": "here", "python": "3.11.7", "versions": {"torch": "2.13.0"}, **changed})


def test_this_machine_is_looked_at_and_json_tells(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--no-ray", "--json"])
    report = json.loads(capsys.readouterr().out)
    verdicts = {found["what"]: found["verdict"] for found in report["findings"]}
    assert verdicts["GDAL"] == "ok"
    assert {"Python", "packages", "FAISS", "GPU", "disk", "shared memory"} <= set(verdicts)
    assert ended.value.code == (1 if "broken" in verdicts.values() else 0)
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_found_however_it_writes_its_name(monkeypatch):
    there = namedtuple("there", "name version")
    monkeypatch.setattr(machine, "requires", lambda _: ["prometheus-client>=0.21", "ray[data]>=2"])
    monkeypatch.setattr(
        machine, "distributions", lambda: [there("Prometheus_Client", "0.26"), there("ray", "2.60")]
    )
    assert machine._packages().verdict == "ok"
    monkeypatch.setattr(machine, "distributions", lambda: [there("ray", "1.0")])
    assert (
        machine._packages().found == "prometheus-client missing (needs >=0.21), ray 1.0 (needs >=2)"
    )


def test_the_official_faiss_gpu_counts_for_faiss_cpu(monkeypatch):
    there = namedtuple("there", "name version")
    monkeypatch.setattr(machine, "requires", lambda _: ["faiss-cpu>=1.13.2"])
    monkeypatch.setattr(machine, "distributions", lambda: [there("faiss-gpu", "1.15.1")])
    assert machine._packages().verdict == "ok"


@pytest.mark.parametrize(
    ("installed", "gpus", "seen", "verdict", "advice"),
    [
        (("faiss-cpu 1",), 0, None, "ok", ""),
        (("faiss-gpu 1",), 0, None, "ok", ""),
        (("faiss-cpu 1", "faiss-gpu 1"), 0, None, "broken", "--no-deps faiss-cpu`"),
        ((), 0, None, "broken", "`pip install -c constraints.txt --force-reinstall"),
        (("faiss-cpu 1",), 2, 0, "note", "`pip uninstall -y faiss-cpu`, then `pip"),
        (("faiss-gpu 1",), 2, 0, "broken", "CUDA_VISIBLE_DEVICES"),
        (("faiss-gpu 1",), 2, 2, "ok", ""),
    ],
)
def test_exactly_one_faiss_is_installed_and_uses_the_gpus(installed, gpus, seen, verdict, advice):
    finding = faiss_finding(facts(faiss=installed, gpus=(CARD,) * gpus, faiss_gpus=seen))
    assert finding.verdict == verdict
    assert advice in finding.advice
    assert bool(finding.advice) == (verdict != "ok")


@pytest.mark.parametrize(
    ("changed", "wanted", "verdict", "advice"),
    [
        ({}, 0, "note", ""),
        ({}, 1, "broken", "--gpus all"),
        ({"gpus": (CARD,), "torch_gpus": 1}, 1, "ok", ""),
        ({"gpus": (CARD,), "torch_gpus": 1}, 2, "broken", "nvidia-smi -L"),
        ({"gpus": (CARD,), "torch_gpus": 0}, 0, "note", "update the driver"),
        ({"gpus": (CARD,), "torch_gpus": 0, "versions": CPU_BUILD}, 1, "broken", "no-deps torch`"),
        ({"gpu_fault": "no driver"}, 0, "broken", "`nvidia-smi`"),
    ],
)  # fmt: skip
def test_gpus_are_as_many_as_wanted_and_usable(changed, wanted, verdict, advice):
    finding = gpu_finding(facts(**changed), wanted)
    assert finding.verdict == verdict
    assert advice in finding.advice


def test_what_nvidia_smi_says_is_read(monkeypatch, tmp_path: Path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'cannot talk to the driver'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = Facts(**gather())
    assert (found.gpus, found.gpu_fault) == ((), "cannot talk to the driver")
    assert gpu_finding(found).verdict == "broken"
    tool.write_text(f"#!/bin/sh\necho '{CARD}'\n")
    found = Facts(**gather())
    assert found.gpus == (CARD,)
    assert found.torch_gpus is not None
    assert faiss_finding(found).verdict in {"note", "broken"}


def test_the_disk_of_ray_has_to_be_less_full_than_others():
    wide = {"free_bytes": 40 * 10**9, "total_bytes": 10**12}
    assert disk_finding(RAY_FILES, "/tmp", **wide).verdict == "broken"
    assert "95%" in disk_finding(RAY_FILES, "/tmp", **wide).found
    assert disk_finding("index.uri", "/data", **wide).verdict == "ok"
    full = disk_finding("index.uri", "/data", 10**6, 10**12)
    assert "`du -xh -d 2 /data" in full.advice


def test_a_disk_counts_once_and_a_small_one_is_found(tmp_path: Path):
    """/dev/shm is a real file system of another size than that of the tests' folder."""
    folders = [("archive.uri", tmp_path / "a"), ("index.uri", tmp_path / "b" / "c")]
    assert len(disk_probe(folders).look()) == 1
    if Path("/dev/shm").is_dir():
        assert len(disk_probe([*folders, ("training.output", Path("/dev/shm/run"))]).look()) == 2


def test_what_is_broken_is_named_with_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "gdal_report", lambda: ("3.0", frozenset({"GTiff"})))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(10**10, 10**10, 10**6))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"archive:\n  uri: {recipe}/archive\nindex:\n  uri: out/index\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--no-ray", "-r", str(recipe)])
    assert ended.value.code == 1
    lines = capsys.readouterr().out
    for text in ("BROKEN  GDAL: 3.0 without COG", "BROKEN  disk", "BROKEN  archive.uri"):
        assert text in lines
    assert lines.count("\n        -> ") >= 3
    assert "note    index.uri" in lines


def test_help_needs_nothing_heavy():
    code = (
        "import workflows.commands.doctor, sys; "
        "print([name for name in ('ray', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
