"""The tutorial as its reader follows it: every line runs on the real scenes and prints the same."""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copy, copytree

import geopandas
import pytest
from PIL import Image

from tests.support.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "tutorial.md"
OPTIONAL = "Optional"
# What a line says after one of these is the machine's or the run's own.
OWN = ("archive grows by", "memory", "seconds", "snapshot", "index version", "version", "polled")
OWN += ("fingerprint", "best epoch", "bundle", "history", "serving", "segments")

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Step:
    """A block of commands and what the page says that they print."""

    section: str
    commands: str
    shown: tuple[str, ...]


def steps_of(page: str) -> list[Step]:
    found = []
    for section in page.split("\n## ")[1:]:
        blocks = re.findall(r"```sh\n(.*?)```(?:\s*```text\n(.*?)```)?", section, re.DOTALL)
        title = section.partition("\n")[0]
        found += [Step(title, commands, tuple(text.splitlines())) for commands, text in blocks]
    return found


STEPS = steps_of(PAGE.read_text())


class Reader:
    """Somebody with a shell in a folder that holds what the page asks for."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        for name in ("scenes", "later"):
            (folder / name).mkdir()
        for scene in sorted((data / "scenes").glob("naip_m_4709963_*.tif")):
            copy(scene, folder / ("later" if "_2015" in scene.stem else "scenes"))
        weights = data / "weights" / "mobilenet_v2_imagenet_folded"
        copytree(weights, folder / "weights" / "mobilenet_v2")
        copy(data / "aid_multilabel_150px.tar", folder)
        recipe = re.search(r"```yaml\n(name: prairie\n.*?)```", PAGE.read_text(), re.DOTALL)
        assert recipe
        (folder / "prairie.yaml").write_text(recipe[1])
        ours = ("AID_TAR", "MOBILENET_V2", "SCENES", "SKYSIFT_WORK", "SKYSIFT_TOKEN", "RAY_ADDRESS")
        self._environment = {key: value for key, value in os.environ.items() if key not in ours}
        self._environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "80",
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._server: subprocess.Popen[str] | None = None

    def does(self, commands: str) -> list[str]:
        """Run a block and return what it printed; a server goes on until :meth:`leaves`."""
        if commands.startswith("skysift serve"):
            return [self._serves(commands)]
        done = subprocess.run(
            ["bash", "-e", "-c", commands.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{commands}{done.stdout}{done.stderr}"
        return done.stdout.splitlines()

    def _serves(self, command: str) -> str:
        assert self._server is None
        self._server = subprocess.Popen(
            [*command.split(), "--port", str(self._port)],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout
        return self._server.stdout.readline().rstrip()

    def leaves(self) -> None:
        """Press Ctrl-C."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.communicate(timeout=120)
            assert self._server.returncode == 0


@pytest.fixture(scope="module")
def reader(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody who has followed all of the tutorial but its optional part."""
    one = Reader(tmp_path_factory.mktemp("prairie"), real_data)
    try:
        for step in STEPS:
            if not step.section.startswith(OPTIONAL):
                check(step, one.does(step.commands))
    finally:
        one.leaves()
    return one


def check(step: Step, printed: list[str]) -> None:
    """Every line that the page shows was printed, in that order; others may lie between."""
    rest = iter(printed)
    for line in step.shown:
        if line != "…":
            found = any(same(line, other) for other in rest)
            assert found, f"{step.section}: {line!r} is not what\n{step.commands}prints:\n" + (
                "\n".join(printed)
            )


def same(shown: str, printed: str) -> bool:
    """Compare two lines; a shown one may be cut at its end, and decimals differ by 0.03.

    >>> same("like a: tile…", "like a: tile b"), same("rank 1  0.71", "rank 1  0.72")
    (True, True)
    >>> same("rows  660", "rows  661"), same("seconds  24", "seconds  8")
    (False, True)
    """
    if shown.endswith("…"):
        return printed.startswith(shown[:-1])
    for name in OWN:
        if shown.lstrip().startswith(name):
            return printed.lstrip().startswith(name)
    words, others = shown.split(), printed.split()
    return len(words) == len(others) and all(map(_alike, words, others))


def _alike(word: str, other: str) -> bool:
    if re.fullmatch(r"-?\d+\.\d+", word) and re.fullmatch(r"-?\d+(\.\d+)?", other):
        return abs(float(word) - float(other)) <= 0.03
    return word == other


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print(reader: Reader):
    hits = geopandas.read_file(reader.folder / "hits.geojson")
    assert len(hits) == 12
    assert hits.crs.to_epsg() == 4326
    for name in ("sheet.png", "hits.png"):
        with Image.open(reader.folder / name) as picture:
            assert min(picture.size) > 192
    assert (reader.folder / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_optional_part_as_well(reader: Reader):
    steps = [step for step in STEPS if step.section.startswith(OPTIONAL)]
    assert steps
    for step in steps:
        check(step, reader.does(step.commands))


def test_lines_fit_a_terminal():
    assert [line for step in STEPS for line in step.shown if len(line) > 80] == []
    assert {step.section[0] for step in STEPS} >= set("123456789")
