"""Ingest, training and search across hosts of their own addresses, with hosts lost on the way."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.archive.reader import Archive
from tests.support.host_jobs import HOSTS
from tests.support.hosts import POSSIBLE, Hosts, hosts
from tests.support.ingest_world import make_bundle, write_scene
from tests.support.training_world import write_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="needs root and the `ip` of iproute2"),
]
SCENES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, an untrained encoder, and labelled images."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "scenes").mkdir()
    for number in range(SCENES):
        day = f"2024{1 + number // 28:02d}{1 + number % 28:02d}"
        write_scene(folder / "scenes", f"site_{day}", seed=number)
    make_bundle(folder / "bundle")
    write_dataset(str(folder / "dataset"))
    return folder


@pytest.fixture
def cluster() -> Iterator[Hosts]:
    with hosts(HOSTS) as running:
        yield running


def run(
    cluster: Hosts, job: str, folder: Path, name: str, halfway: Callable[[], None] | None = None
) -> dict[str, object]:
    """Run a job on the head; call ``halfway`` once it is half done."""
    command = [sys.executable, "-m", "tests.support.host_jobs", job, str(folder), name]
    printed, called = [], False
    with cluster.start(command) as process:
        watchdog = threading.Timer(400, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line.decode(errors="replace"))
            words = printed[-1].split()
            if halfway and not called and _half_done(words):
                called = True
                halfway()
        watchdog.cancel()
    results = [line for line in printed if line.startswith("result ")]  # Ray may talk on
    assert results, "".join(printed[-30:])
    assert called or halfway is None, "it was over before anything was broken"
    return dict(json.loads(results[-1].removeprefix("result ")))


def _half_done(words: list[str]) -> bool:
    """Tell whether a line of :func:`tests.support.host_jobs.say` is past the middle."""
    return (
        words[:1] == ["progress"] and words[3].isdigit() and int(words[2]) * 2 >= int(words[3]) > 1
    )


def rows_of(uri: Path) -> dict[tuple[str, str], bytes]:
    """Return the vector of every (scene, tile), each once."""
    archive = Archive.open(str(uri))
    found = {}
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal, ["scene", "tile_key", "embedding"])
        for number, vector in enumerate(rows["embedding"]):
            found[rows["scene"][number], rows["tile_key"][number]] = np.asarray(vector).tobytes()
    assert len(found) == len(archive)
    return found


@pytest.mark.parametrize("loss", ["kill", "cut"])
def test_an_ingest_that_loses_a_host_ends_with_the_same_rows(cluster, folder, loss):
    if not (folder / "undisturbed").exists():
        run(cluster, "ingest", folder, "undisturbed")
    report = run(cluster, "ingest", folder, loss, lambda: getattr(cluster, loss)(2))
    assert report["quarantined"] == {}
    assert rows_of(folder / loss) == rows_of(folder / "undisturbed")
    assert len(rows_of(folder / loss)) == SCENES * 16


@pytest.mark.parametrize("loss", ["kill", "cut"])
def test_training_that_loses_a_host_goes_on_from_its_checkpoint(cluster, folder, loss):
    if not (folder / "run-undisturbed").exists():
        run(cluster, "train", folder, "run-undisturbed")
    result = run(cluster, "train", folder, f"run-{loss}", lambda: getattr(cluster, loss)(2))
    assert result
    histories = [
        (folder / f"run-{name}" / "history.csv").read_text().splitlines()
        for name in ("undisturbed", loss)
    ]
    assert len(histories[0]) == len(histories[1])


@pytest.mark.parametrize("loss", ["kill", "cut"])
def test_searches_lose_nothing_with_a_host(cluster, folder, loss):
    if not (folder / "undisturbed").exists():
        run(cluster, "ingest", folder, "undisturbed")
    assert run(cluster, "search", folder, "undisturbed", lambda: getattr(cluster, loss)(2)) == {
        "wrong": 0
    }
