"""Ingest under faults: whatever dies, a rerun ends with the rows of an undisturbed run."""

import inspect
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from storage.archive.audit import verify
from storage.archive.reader import Archive
from storage.errors import SkysiftError
from storage.location import Location, StorageOptions
from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.ingest_forks import Forks, Run, evenly, forks
from tests.support.ingest_world import SIZE_PX, TILE_PX, make_bundle, write_scene
from tests.support.object_store import MotoS3
from workflows.exit_codes import is_no_space

Truth = dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def fork() -> Iterator[Forks]:
    with forks() as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two scenes to embed, one without data, one that cannot be read; each in its own commit."""
    folder = tmp_path_factory.mktemp("faults")
    scenes = folder / "scenes"
    scenes.mkdir()
    write_scene(scenes, "site_20240501", seed=1, nodata_columns=2 * TILE_PX)
    write_scene(scenes, "site_20240601", seed=2, nodata_columns=3 * TILE_PX)
    write_scene(scenes, "dark_20240702", seed=3, nodata_columns=SIZE_PX)
    (scenes / "torn_20240703.tif").write_bytes((scenes / "site_20240501.tif").read_bytes()[:9000])
    return Run(source=str(scenes), encoder=make_bundle(folder / "bundle"), archive="")


@pytest.fixture(scope="module")
def truth(fork: Forks, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """The rows of an undisturbed run."""
    whole = replace(run, archive=str(tmp_path_factory.mktemp("truth") / "archive"))
    assert fork.run(whole)[0].error == ""
    rows = rows_of(whole.archive)
    assert len(rows) == 8 + 4
    return rows


def rows_of(uri: str | Location) -> Truth:
    """Every live row by (scene, tile key), with its vector; fails when one is there twice."""
    archive = Archive.open(uri)
    assert verify(archive) == []
    found: Truth = {}
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal, ["scene", "tile_key", "embedding"])
        for scene, key, vector in zip(
            rows["scene"], rows["tile_key"], rows["embedding"], strict=True
        ):
            assert (scene, key) not in found
            found[scene, key] = vector.tobytes()
    return found


def states_of(uri: str | Location) -> dict[str, str]:
    return {one.scene_id: one.state for one in Archive.open(uri).scenes()}


STATES = {
    "site_20240501": "embedded",
    "site_20240601": "embedded",
    "dark_20240702": "empty",
    "torn_20240703": "quarantined",
}


def killed_and_run_again(fork: Forks, run: Run, truth: Truth, step: int, before: Truth) -> None:
    """Kill a run at a line; what survived is sound, and the same command finishes the rest."""
    assert fork.run(replace(run, kill_at=step))[0].signal == 9
    if Archive.exists(run.archive):
        survived = rows_of(run.archive).items()
        assert survived <= truth.items() | before.items(), step
    again = fork.run(run)[0]
    assert again.error == "", step
    assert rows_of(run.archive) == truth, step
    assert states_of(run.archive) == STATES, step


def test_a_driver_killed_while_it_makes_the_archive_leaves_nothing_in_the_way(
    fork: Forks, run: Run, truth: Truth, tmp_path: Path
):
    whole = fork.run(replace(run, archive=str(tmp_path / "whole")))[0]
    source, first = inspect.getsourcelines(Archive.create)
    inside = {f"storage/archive/reader.py:{first + n}" for n in range(len(source))}
    steps = [step for step, line in enumerate(whole.lines) if line in inside]
    assert len(steps) > 5
    for step in steps[1::2]:
        mine = replace(run, archive=str(tmp_path / f"killed-{step}"))
        killed_and_run_again(fork, mine, truth, step, {})


def test_a_driver_killed_at_any_line_is_finished_by_the_next_run(
    fork: Forks, run: Run, truth: Truth, tmp_path: Path
):
    whole = fork.run(replace(run, archive=str(tmp_path / "whole")))[0]
    for step in evenly(whole.lines, 6):
        mine = replace(run, archive=str(tmp_path / f"killed-{step}"))
        killed_and_run_again(fork, mine, truth, step, {})


@pytest.fixture(scope="module")
def old(fork: Forks, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of other pixels of the same scenes: all of it is to be superseded."""
    folder = tmp_path_factory.mktemp("old")
    scenes = folder / "scenes"
    scenes.mkdir()
    for number, path in enumerate(sorted(Path(run.source).iterdir())):
        write_scene(scenes, path.stem, seed=10 + number)
    before = replace(run, source=str(scenes), archive=str(folder / "archive"))
    assert fork.run(before)[0].rows == 4 * 16
    return folder / "archive"


def test_a_driver_killed_while_it_supersedes_hides_no_row_too_early(
    fork: Forks, run: Run, truth: Truth, old: Path, tmp_path: Path
):
    before = rows_of(str(old))
    shutil.copytree(old, tmp_path / "whole")
    whole = fork.run(replace(run, archive=str(tmp_path / "whole")))[0]
    for step in evenly(whole.lines, 4):
        mine = replace(run, archive=str(tmp_path / f"killed-{step}"))
        shutil.copytree(old, mine.archive)
        killed_and_run_again(fork, mine, truth, step, before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("superseding", [False, True])
def test_a_driver_killed_at_every_line(
    fork: Forks, run: Run, truth: Truth, old: Path, tmp_path: Path, superseding: bool
):
    """Every line that runs: where it runs last with many commits, and first with a single one."""
    mine = replace(run, archive=str(tmp_path / "archive"))
    if superseding:
        mine = replace(mine, segment_rows=10, commit_interval_s=3600.0)

    def reset() -> None:
        shutil.rmtree(mine.archive, ignore_errors=True)
        if superseding:
            shutil.copytree(old, mine.archive)

    reset()
    steps = list(enumerate(fork.run(mine)[0].lines))
    chosen = {line: step for step, line in (reversed(steps) if superseding else steps)}
    before = rows_of(str(old)) if superseding else {}
    for step in sorted(chosen.values()):
        reset()
        killed_and_run_again(fork, mine, truth, step, before)


def test_two_ingests_at_once_leave_the_rows_of_one(
    fork: Forks, run: Run, truth: Truth, tmp_path: Path
):
    for attempt in range(3):
        mine = replace(run, archive=str(tmp_path / f"archive-{attempt}"))
        ends = fork.run(mine, mine, mine)
        assert [one.error for one in ends] == ["", "", ""]
        assert rows_of(mine.archive) == truth
        assert states_of(mine.archive) == STATES


def test_two_ingests_at_once_into_an_object_store(
    fork: Forks, run: Run, truth: Truth, moto_s3: MotoS3
):
    options = moto_s3.options
    mine = replace(run, archive=moto_s3.uri("archive"), options=asdict(options))
    ends = fork.run(mine, mine)
    assert [one.error for one in ends] == ["", ""]
    assert rows_of(Location(mine.archive, options)) == truth
    assert states_of(Location(mine.archive, options)) == STATES


@pytest.fixture(scope="module")
def proxy(moto_server: str) -> Iterator[FaultProxy]:
    with fault_proxy(moto_server) as running:
        yield running


@pytest.fixture
def remote(run: Run, moto_s3: MotoS3, proxy: FaultProxy) -> Iterator[Run]:
    """The run with its archive behind the proxy, which is told of no fault yet."""
    options = replace(moto_s3.options, endpoint_url=proxy.address)
    proxy.plan()
    yield replace(run, archive=moto_s3.uri("archive"), options=asdict(options))
    proxy.plan()


def healed(fork: Forks, proxy: FaultProxy, remote: Run, truth: Truth) -> None:
    """Run again without faults; the archive is that of an undisturbed run."""
    proxy.plan()
    assert fork.run(replace(remote, retry=True))[0].error == ""
    options = StorageOptions(**(remote.options or {}))
    assert rows_of(Location(remote.archive, options)) == truth
    assert states_of(Location(remote.archive, options)) == STATES


def every(step: int, first: int = 0) -> Callable[[int], bool]:
    return lambda number: number % step == first


def test_a_store_that_refuses_dawdles_and_loses_replies_gets_the_rows(
    fork: Forks, proxy: FaultProxy, remote: Run, truth: Truth
):
    proxy.plan(
        Fault(kind="refuse", methods=("PUT",), turn=every(4)),
        Fault(kind="lose", methods=("PUT",), turn=every(4, 2)),
        Fault(kind="refuse", methods=("GET",), turn=every(5)),
        Fault(kind="lose", methods=("GET",), turn=every(5, 2)),
        Fault(kind="slow", turn=every(10), delay_s=0.1),
    )
    assert fork.run(remote)[0].error == ""
    assert proxy.struck > 20
    options = StorageOptions(**(remote.options or {}))
    proxy.plan()
    assert rows_of(Location(remote.archive, options)) == truth
    assert states_of(Location(remote.archive, options)) == STATES


def test_a_reply_that_breaks_off_ends_in_a_clear_error_and_the_next_run_heals(
    fork: Forks, proxy: FaultProxy, remote: Run, truth: Truth
):
    proxy.plan(Fault(kind="cut", methods=("GET",), path="refs/", turn=lambda number: number > 12))
    error = fork.run(remote)[0].error
    assert error.startswith(f"SkysiftError: archive {remote.archive}: its store failed: ")
    assert "then repeat: what was committed is kept" in error
    healed(fork, proxy, remote, truth)


@pytest.mark.parametrize(
    ("kind", "move"),  # of the branch: for the repository, the archive, a scene and another one
    [("kill", 0), ("kill", 3), ("kill-after", 3)],
)
def test_a_driver_killed_as_it_moves_the_branch_is_finished_by_the_next_run(
    fork: Forks, proxy: FaultProxy, remote: Run, truth: Truth, tmp_path: Path, kind: Any, move: int
):
    mine = replace(remote, pid_file=str(tmp_path / "pid"))
    moving = Fault(
        kind=kind,
        methods=("PUT",),
        path="refs/branch.main",
        turn=lambda number: number == move,
        victim=lambda: int(Path(mine.pid_file).read_text()),
    )
    proxy.plan(moving)
    assert fork.run(mine)[0].signal == 9
    healed(fork, proxy, mine, truth)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["refuse", "lose", "cut", "kill", "kill-after"])
def test_every_single_request_may_fail(
    fork: Forks, proxy: FaultProxy, remote: Run, truth: Truth, tmp_path: Path, kind: Any
):
    """One request of a run after the other, from the making of the archive to the last commit."""
    remote = replace(remote, segment_rows=100, commit_interval_s=3600.0)
    assert fork.run(replace(remote, archive=f"{remote.archive}-whole"))[0].error == ""
    for number in range(len(proxy.passed)):
        mine = replace(
            remote, archive=f"{remote.archive}-{number}", pid_file=str(tmp_path / f"pid-{number}")
        )
        fault = Fault(
            kind=kind,
            turn=lambda count, number=number: count == number,
            victim=lambda mine=mine: int(Path(mine.pid_file).read_text()),
        )
        proxy.plan(fault)
        end = fork.run(mine)[0]
        if kind.startswith("kill"):
            assert end.signal == 9
        else:
            assert end.error == "" or end.error.startswith("SkysiftError: "), number
        if end.signal or end.error:
            healed(fork, proxy, mine, truth)
        else:
            assert rows_of(Location(mine.archive, StorageOptions(**(mine.options or {})))) == truth


@pytest.mark.parametrize(
    "kinds",
    [
        ("refuse", "cut", "lose", "slow"),
        *(pytest.param((kind,), marks=pytest.mark.slow) for kind in ("refuse", "cut", "lose")),
    ],
)
def test_scenes_behind_a_failing_store_are_embedded_right_or_set_aside(
    fork: Forks, proxy: FaultProxy, run: Run, moto_s3: MotoS3, truth: Truth, tmp_path: Path,
    kinds: tuple[Any, ...],
):  # fmt: skip
    for path in Path(run.source).iterdir():
        moto_s3.location("scenes", path.name).upload(path)
    mine = replace(
        run,
        source=moto_s3.uri("scenes", "*.tif"),
        archive=str(tmp_path / "archive"),
        options=asdict(replace(moto_s3.options, endpoint_url=proxy.address)),
    )
    every_third = [
        Fault(
            kind=kind,
            methods=("GET",),
            path=".tif",
            turn=every(3 * len(kinds), 3 * number + 1),
            delay_s=0.2,
        )
        for number, kind in enumerate(kinds)
    ]
    proxy.plan(*every_third)
    assert fork.run(mine)[0].error == ""
    assert proxy.struck > 0
    assert rows_of(mine.archive).items() <= truth.items()
    assert states_of(mine.archive).keys() == STATES.keys()
    healed(fork, proxy, mine, truth)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, to be made smaller and larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(
    fork: Forks, run: Run, truth: Truth, small_disk: Path
):
    def resize(size_bytes: int) -> None:
        command = ["mount", "-o", f"remount,size={size_bytes}", str(small_disk)]
        subprocess.run(command, check=True)

    mine = replace(run, archive=str(small_disk / "archive"))
    assert fork.run(mine)[0].error == ""
    usage = os.statvfs(small_disk)
    full_bytes = (usage.f_blocks - usage.f_bfree) * usage.f_bsize
    for share in (0.1, 0.5, 0.9):
        shutil.rmtree(mine.archive)
        resize(int(full_bytes * share))
        error = fork.run(mine)[0].error
        assert error.startswith("SkysiftError: "), share
        assert is_no_space(SkysiftError(error)), error
        resize(2 * full_bytes)
        if Archive.exists(mine.archive):
            assert rows_of(mine.archive).items() <= truth.items()
        assert fork.run(mine)[0].error == ""
        assert rows_of(mine.archive) == truth
        assert states_of(mine.archive) == STATES
