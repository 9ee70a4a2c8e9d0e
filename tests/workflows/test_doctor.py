"""The doctor finds what is wrong, says what to do, and changes nothing."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from storage.errors import ConfigError
from storage.location import Location, StorageOptions
from workflows import doctor
from workflows.cli import main


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
    monkeypatch.setattr(doctor, "requires", lambda _: ["prometheus-client>=0.21", "ray[data]>=2"])
    monkeypatch.setattr(
        doctor, "distributions", lambda: [there("Prometheus_Client", "0.26"), there("ray", "2.60")]
    )
    assert doctor._packages().verdict == "ok"
    monkeypatch.setattr(doctor, "distributions", lambda: [there("ray", "1.0")])
    assert (
        doctor._packages().found == "prometheus-client missing (needs >=0.21), ray 1.0 (needs >=2)"
    )


def test_exactly_one_faiss_is_installed(monkeypatch):
    there = namedtuple("Distribution", "name version")
    monkeypatch.setattr(doctor, "version", lambda name: "1.15.1")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "requires", lambda _: ["faiss-cpu>=1.13.2"])
    gpu, cpu = there("faiss-gpu", "1.15.1"), there("faiss-cpu", "1.15.1")
    monkeypatch.setattr(doctor, "distributions", lambda: [gpu])
    assert (doctor._faiss().verdict, doctor._packages().verdict) == ("ok", "ok")
    monkeypatch.setattr(doctor, "distributions", lambda: [gpu, cpu])
    assert doctor._faiss().found == "faiss-cpu 1.15.1 and faiss-gpu 1.15.1"
    assert doctor._faiss().advice.startswith("`pip uninstall -y faiss-cpu faiss-gpu`, then `pip")
    monkeypatch.setattr(doctor, "distributions", list)
    assert doctor._faiss().verdict == "broken"


def test_what_is_broken_is_named_with_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "gdal_report", lambda: ("3.0", frozenset({"GTiff"})))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**10, 10**10, 10**6))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"archive:\n  uri: {recipe}/archive\nindex:\n  uri: out/index\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--no-ray", "-r", str(recipe)])
    assert ended.value.code == 1
    lines = capsys.readouterr().out
    for text in ("BROKEN  GDAL: 3.0 without COG", "BROKEN  disk", "BROKEN  archive.uri"):
        assert text in lines
    assert lines.count("-> ") >= 3
    assert "note    index.uri" in lines


def test_an_object_store_that_is_not_there_is_broken(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    options = StorageOptions(
        endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b", region="x"
    )
    finding = doctor.place_finding("archive.uri", Location("s3://bucket/archive", options))
    assert finding.verdict == "broken"
    assert "credentials" in finding.advice


def test_ray_that_does_not_start_is_broken(monkeypatch):
    def fails() -> None:
        raise ConfigError("no such cluster")

    monkeypatch.setenv("SKYSIFT_RAY_DIR", "/tmp")
    assert doctor.ray_finding(fails).verdict == "broken"
    assert doctor.ray_finding(lambda: None).verdict == "ok"
    monkeypatch.setenv("SKYSIFT_RAY_DIR", "/tmp/" + "long" * 20)
    assert "short folder" in doctor.ray_finding(lambda: None).advice


def test_a_driver_that_fails_is_broken(monkeypatch, tmp_path: Path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor._gpu().verdict == "broken"
    tool.write_text("#!/bin/sh\necho 'H200, 570.1, 141 GB'\n")
    assert "H200, 570.1, 141 GB" in doctor._gpu().found


def test_help_needs_nothing_heavy():
    code = (
        "import workflows.commands.doctor, sys; "
        "print([name for name in ('ray', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
