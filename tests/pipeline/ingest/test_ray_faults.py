"""Ingest while workers are killed; tests/test_hosts.py loses whole hosts."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from storage.archive.audit import verify
from storage.archive.reader import Archive
from storage.progress import Progress
from storage.scene import CatalogSpec
from tests.support.ingest_world import make_bundle, rows_of, write_scene

SCENES = 10


@pytest.fixture
def job(tmp_path: Path) -> IngestSpec:
    """Ten scenes of sixteen tiles, one commit for each."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for day in range(1, SCENES + 1):
        write_scene(scenes, f"site_202405{day:02}", seed=day)
    return IngestSpec(
        catalog=CatalogSpec(source=str(scenes)),
        encoder_uri=make_bundle(tmp_path / "bundle"),
        archive_uri=str(tmp_path / "archive"),
        segment_rows=1,
        commit_interval_s=0.0,
    )


def workers_of(process: int) -> Iterator[int]:
    """The Ray workers below a process that read and embed (an agent's end would end the node)."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue  # no process, or one that just ended
        if parent == process:
            child = int(folder.name)
            if title.startswith(b"ray::") and b"MapBatches" in title:
                yield child
            yield from workers_of(child)


def assert_whole(job: IngestSpec) -> None:
    archive = Archive.open(job.archive_uri)
    assert verify(archive) == []
    assert [one.state for one in archive.scenes()] == ["embedded"] * SCENES
    assert len(rows_of(job.archive_uri)) == SCENES * 16


@pytest.mark.usefixtures("ray_session")
def test_workers_killed_in_the_middle_cost_no_row_and_no_scene(job: IngestSpec):
    killed: list[int] = []

    def kill_once(report: Progress) -> None:
        if report.done >= 2 and not killed:
            killed.extend(workers_of(os.getpid()))
            for worker in killed:
                os.kill(worker, signal.SIGKILL)

    report = ingest(plan_ingest(job), progress=kill_once)
    assert killed
    assert (report.embedded, report.quarantined) == (SCENES, {})
    assert_whole(job)
