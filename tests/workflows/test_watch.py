"""Watching a source: what is new arrives once, in archive and index, whatever stops the watch."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.ingest.driver
import workflows.sources
import workflows.watch
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.search.saved import SavedSearch, save_search
from pipeline.search.standing import StandingQuery
from storage.archive.audit import verify
from storage.archive.maintenance import create_tag, delete_scenes, rollback
from storage.archive.reader import Archive
from storage.errors import CatalogError, EncoderMismatchError, SkysiftError
from storage.index.manifest import read_manifest
from storage.location import Location
from storage.locks import exclusive_lock, watcher_lock
from storage.scene import CatalogSpec
from tests.support.bad_scenes import BAD
from tests.support.command_line import run
from tests.support.counted_reads import counted_reads
from tests.support.embeddings import clay_v0, make_chips
from tests.support.ingest_world import TILE_PX, make_bundle, rows_of, write_scene
from tests.support.object_store import MotoS3
from workflows.exit_codes import EXIT_DELIVERED
from workflows.watch import PollReport, Watcher, WatchJob


@pytest.fixture
def job(tmp_path: Path) -> WatchJob:
    """Two scenes in a folder, and nothing made of them yet."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_scene(scenes, "site_20240501", seed=1)
    write_scene(scenes, "site_20240601", seed=2)
    return WatchJob(
        ingest=IngestSpec(
            catalog=CatalogSpec(source=str(scenes)),
            encoder_uri=make_bundle(tmp_path / "bundle"),
            archive_uri=str(tmp_path / "archive"),
        ),
        index_uri=str(tmp_path / "index"),
        index=IndexSpec(kind="flat", shards=1),
    )


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed in this process: what a watch does with the outcome is the same."""
    monkeypatch.setattr(
        pipeline.ingest.driver, "_batches_on_ray", pipeline.ingest.driver._local_batches
    )


@pytest.fixture
def broken(job: WatchJob) -> WatchJob:
    """One file that is no scene: all of a watch but the work that Ray does."""
    for path in _scenes(job).iterdir():
        path.unlink()
    (_scenes(job) / "bad_20240501.tif").write_bytes(b"II*\0")
    return replace(job, index_uri=None)


def _scenes(job: WatchJob) -> Path:
    return Path(job.ingest.catalog.source)


def _in_step(job: WatchJob) -> bool:
    """Whether the index has what the archive has."""
    archive = Archive.open(job.ingest.archive_uri)
    assert verify(archive) == []
    manifest = read_manifest(str(job.index_uri))
    return (manifest.snapshot, manifest.rows) == (archive.snapshot, len(archive))


@contextmanager
def _no_session():
    raise AssertionError("there was nothing to do")
    yield


def _cli(job: WatchJob) -> list[str]:
    return [
        "watch",
        *("--scenes", job.ingest.catalog.source, "--encoder", job.ingest.encoder_uri),
        *("--archive", job.ingest.archive_uri),
        *(["--index", job.index_uri] if job.index_uri else []),
    ]


@pytest.mark.usefixtures("ray_session")
def test_polls_bring_what_is_new_and_nothing_twice(job: WatchJob):
    job = replace(job, index_uri=None)
    first = Watcher(job).poll()
    assert {one.scene_id: (one.state, one.rows) for one in first.arrivals} == {
        "site_20240501": ("embedded", 16),
        "site_20240601": ("embedded", 16),
    }
    again = Watcher(job, session=_no_session).poll()
    assert (again.arrivals, again.changed, again.scenes_known) == ((), False, 2)
    assert again.snapshot == first.snapshot

    time.sleep(0.01)
    write_scene(_scenes(job), "site_20240601", seed=9, nodata_columns=3 * TILE_PX)
    new = write_scene(_scenes(job), "site_20240701", seed=3)
    (_scenes(job) / "half_20240702.tif").write_bytes(new.read_bytes()[:9000])
    third = Watcher(job).poll()
    told = {one.scene_id: (one.state, one.rows, one.replaced) for one in third.arrivals}
    assert told == {
        "half_20240702": ("quarantined", 0, False),
        "site_20240601": ("embedded", 4, True),
        "site_20240701": ("embedded", 16, False),
    }
    assert "half_20240702.tif" in third.quarantined["half_20240702"]

    (_scenes(job) / "half_20240702.tif").write_bytes(new.read_bytes())  # the copy is complete
    fourth = Watcher(job).poll()
    assert [(one.scene_id, one.rows) for one in fourth.arrivals] == [("half_20240702", 16)]
    assert len(rows_of(job.ingest.archive_uri)) == 16 + 4 + 16 + 16


@pytest.mark.usefixtures("ray_session", "_here")
def test_an_index_that_is_behind_its_archive_is_brought_up_to_date(job: WatchJob):
    first = Watcher(job).poll()
    assert first.index_changed
    assert _in_step(job)
    again = Watcher(job, session=_no_session).poll()
    assert (again.changed, again.index_version) == (False, first.index_version)

    create_tag(job.ingest.archive_uri, "whole")
    delete_scenes(job.ingest.archive_uri, ["site_20240501"])
    write_scene(_scenes(job), "site_20240701", seed=3, nodata_columns=2 * TILE_PX)
    ingest(plan_ingest(job.ingest))  # and then the watch was killed
    assert not _in_step(job)
    report = Watcher(job).poll()
    assert (report.arrivals, report.index_changed) == ((), True)
    assert _in_step(job)
    assert len(Archive.open(job.ingest.archive_uri)) == 16 + 8
    delete_scenes(job.ingest.archive_uri, ["site_20240501"], again=True)
    assert [one.scene_id for one in Watcher(job).poll().arrivals] == ["site_20240501"]
    assert _in_step(job)
    assert len(Archive.open(job.ingest.archive_uri)) == 16 + 8 + 16

    rollback(job.ingest.archive_uri, "whole")
    assert [one.scene_id for one in Watcher(job).poll().arrivals] == ["site_20240701"]
    assert _in_step(job)
    assert len(Archive.open(job.ingest.archive_uri)) == 16 + 16 + 8


def test_the_watch_goes_on_after_a_failed_poll_and_ends_on_a_wrong_job(
    broken: WatchJob, tmp_path: Path
):
    hidden = tmp_path / "elsewhere"
    steps = iter(
        [
            lambda: _scenes(broken).rename(hidden) and _scenes(broken).mkdir(),
            lambda: _scenes(broken).rmdir() or hidden.rename(_scenes(broken)),
            lambda: make_bundle(tmp_path / "bundle", seed=7),
        ]
    )
    waited: list[float] = []
    outcomes: list[PollReport | SkysiftError] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        with (
            pytest.raises(SkysiftError, match=r"`skysift watch`: process .* is at work"),
            watcher_lock(broken.ingest.archive_uri),
        ):
            raise AssertionError
        next(steps)()

    with pytest.raises(EncoderMismatchError):
        Watcher(broken, session=_no_session).watch(3600, report=outcomes.append, wait=wait)
    first, second, third = outcomes
    assert isinstance(first, PollReport)
    assert list(first.quarantined) == ["bad_20240501"]
    assert isinstance(second, CatalogError)
    assert isinstance(third, PollReport)
    assert not third.changed
    assert all(3000 < seconds <= 3600 for seconds in waited)
    with watcher_lock(broken.ingest.archive_uri):
        pass


def test_a_poll_without_news_reads_no_weights(
    broken: WatchJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    watcher = Watcher(broken, session=_no_session)
    with counted_reads(monkeypatch) as first:
        assert watcher.poll().changed
    assert first["weights"] == 1
    with counted_reads(monkeypatch) as second:
        assert not watcher.poll().changed
    assert second == {"opens": 1, "folds": 1}
    with counted_reads(monkeypatch) as once:
        assert run(*_cli(broken), "--once").code == 0
    assert once == {"weights": 1, "opens": 1, "folds": 1}
    make_bundle(tmp_path / "bundle", seed=7)
    with pytest.raises(EncoderMismatchError):
        watcher.poll()


@pytest.mark.usefixtures("ray_session", "_here")
def test_good_scenes_are_searchable_whatever_becomes_of_the_others(
    job: WatchJob, monkeypatch: pytest.MonkeyPatch
):
    BAD["damaged-in-its-middle"](_scenes(job) / "bad_20240502.tif", 1)
    first = Watcher(job).poll()
    assert list(first.quarantined) == ["bad_20240502"]
    assert _in_step(job)
    assert len(Archive.open(job.ingest.archive_uri)) == 2 * 16

    for day in (1, 2):
        write_scene(_scenes(job), f"late_2024070{day}", seed=day)
    whole = pipeline.ingest.driver._local_batches
    monkeypatch.setattr(
        pipeline.ingest.driver,
        "_batches_on_ray",
        lambda plan: (batch for batch in whole(plan) if batch["scene"][0] == 0),
    )
    with pytest.raises(SkysiftError, match="1 of 2 scenes did not come back"):
        Watcher(job).poll()
    assert _in_step(job)
    assert len(Archive.open(job.ingest.archive_uri)) == 3 * 16


@pytest.mark.usefixtures("ray_session", "_here")
def test_the_command_polls_once_for_cron_and_tells(job: WatchJob):
    job = replace(job, index_uri=None)
    first = run(*_cli(job), "--once", "--json")
    assert first.code == 0, first.err
    assert [one["scene_id"] for one in first.data["arrivals"]] == ["site_20240501", "site_20240601"]
    again = run(*_cli(job), "--once")
    assert again.code == 0
    assert "scenes new or changed  0" in again.out
    (_scenes(job) / "bad_20240702.tif").write_bytes(b"II*\0")
    log = Path(job.ingest.archive_uri).parent / "logs" / "events.jsonl"
    third = run(*_cli(job), "--once", "--events", str(log))
    assert third.code == 3
    assert "bad_20240702" in third.out
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["event"] for one in events] == ["started", "scene", "committed", "finished"]
    assert (events[1]["scene"], events[1]["state"]) == ("bad_20240702", "quarantined")
    with watcher_lock(job.ingest.archive_uri):
        busy = run(*_cli(job), "--once")
    assert busy.code == 1
    assert f"`skysift watch`: process {os.getpid()} on " in busy.err


def test_a_source_that_holds_nothing_yet_is_no_failure_but_one_that_was_emptied_is(
    broken: WatchJob, tmp_path: Path
):
    (_scenes(broken) / "bad_20240501.tif").rename(tmp_path / "later.tif")
    first = run(*_cli(broken), "--once")
    assert first.code == 0, first.err
    assert "holds no scenes" in first.out
    assert run(*_cli(broken), "--once", "--json").data["snapshot"] is None
    (tmp_path / "later.tif").rename(_scenes(broken) / "bad_20240501.tif")
    assert run(*_cli(broken), "--once").code == 3
    nothing_new = run(*_cli(broken), "--once", "--since", "2025-01-01")
    assert nothing_new.code == 0, nothing_new.err
    assert "none of the 1 entries" in nothing_new.out
    (_scenes(broken) / "bad_20240501.tif").unlink()
    emptied = run(*_cli(broken), "--once")
    assert emptied.code == 1
    assert "holds no scenes" in emptied.err


def test_a_watch_that_was_killed_can_be_started_again(broken: WatchJob):
    command = [sys.executable, "-m", "workflows.cli", *_cli(broken), "--interval", "1s", "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdout is not None
        reports = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.kill()
    assert [len(report["arrivals"]) for report in reports] == [1, 0]
    (_scenes(broken) / "bad_20240601.tif").write_bytes(b"II*\0")
    with watcher_lock(broken.ingest.archive_uri):
        report = Watcher(broken, session=_no_session).poll()
    assert [one.scene_id for one in report.arrivals] == ["bad_20240601"]
    assert report.scenes_known == 2


@pytest.mark.usefixtures("ray_session", "_here")
@pytest.mark.parametrize("step", ["ingest", "_update_index", "_deliver"])
def test_a_watch_moves_to_another_node_amid_a_poll(
    job: WatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, moto_s3: MotoS3
):
    """The first node sleeps before a step, and goes on when the second one has done all of it.

    So do two of a CronJob that overlap. The lock is a lease, which a silent node loses.
    """
    Watcher(job).poll()
    lease = moto_s3.location("archive")
    monkeypatch.setattr(
        workflows.watch, "watcher_lock", lambda _: exclusive_lock(lease, "watch", lease_s=4.0)
    )
    archive = Archive.open(job.ingest.archive_uri)
    search = SavedSearch(
        title="everything",
        encoder_fingerprint=archive.spec.encoder_fingerprint,
        vector=tuple(archive.read(archive.live_rows(0)[:1])["embedding"][0].tolist()),
        min_score=-1.0,
    )
    told, states = tmp_path / "hits.jsonl", Location(str(tmp_path / "standing"))
    nodes = []
    for _ in range(2):
        query = StandingQuery(search, states, told)
        nodes.append(Watcher(replace(job, standing=(query,))))
    first, second = nodes
    second.once()  # what is there is known
    write_scene(_scenes(job), "site_20240701", seed=3)
    owner = workflows.sources if step == "ingest" else first
    ours = getattr(owner, step)

    def overtaken(*given: object, **named: object) -> object:
        monkeypatch.setattr(owner, step, ours)
        with pytest.raises(SkysiftError, match=f"process {os.getpid()} on .* is at work"):
            second.once()
        (lease / ".owner.json").write(b"")  # as when it was silent for too long
        assert [event["scene"] for event in second.once().delivered] == ["site_20240701"]
        for renewal in [one for one in threading.enumerate() if one.name == "lease"]:
            renewal.join(20)  # the first node notices its loss, and renews no more
        return ours(*given, **named)

    monkeypatch.setattr(owner, step, overtaken)
    if step == "_deliver":  # too late to be refused; it tells nothing
        assert first.once().delivered == ()
    else:
        with pytest.raises(SkysiftError, match="has taken over"):
            first.once()
    assert _in_step(job)
    assert len(rows_of(job.ingest.archive_uri)) == 3 * 16
    assert [json.loads(line)["scene"] for line in told.read_text().splitlines()] == [
        "site_20240701"
    ]
    assert not second.once().changed


@pytest.mark.usefixtures("ray_session", "_here")
def test_new_hits_of_a_saved_search_are_reported_once(job: WatchJob, tmp_path: Path):
    assert run(*_cli(job), "--once").code == 0
    archive = Archive.open(job.ingest.archive_uri)
    search = SavedSearch(
        title="everything",
        encoder_fingerprint=archive.spec.encoder_fingerprint,
        vector=tuple(archive.read(archive.live_rows(0)[:1])["embedding"][0].tolist()),
        min_score=-1.0,
    )
    save_search(search, str(tmp_path / "all.json"))
    told = tmp_path / "told" / "hits.jsonl"
    standing = ("--once", "--saved", str(tmp_path / "all.json"), "--deliver", str(told))
    assert run(*_cli(job), *standing).code == 0  # what is there is known
    write_scene(_scenes(job), "site_20240701", seed=3)
    news = run(*_cli(job), *standing)
    assert news.code == EXIT_DELIVERED
    assert re.search(r"everything, site_20240701 +16 hits", news.out)
    assert run(*_cli(job), *standing, "--json").data["delivered"] == []
    (event,) = map(json.loads, told.read_text().splitlines())
    assert (event["scene"], len(event["hits"])) == ("site_20240701", 16)

    alone = run(*_cli(job), "--once", "--deliver", str(told))
    assert (alone.code, "need a search; name it with --saved" in alone.err) == (2, True)
    without = run(*_cli(replace(job, index_uri=None)), *standing)
    assert without.code == 2
    assert "index" in without.err
    save_search(replace(search, min_score=None), str(tmp_path / "all.json"))
    bare = run(*_cli(job), *standing)
    assert (bare.code, "has no least score" in bare.err) == (2, True)


def _chips(folder: Path, month: int) -> Path:
    """Write a table of published embeddings of one day."""
    day = f"2022{month:02}10"
    chips = make_chips(12, 768, day=f"2022-{month:02}-10", seed=month)
    return clay_v0(folder, chips, f"clay_32TPT_{day}_{day}_v001.gpq")


@pytest.mark.usefixtures("ray_session")
def test_published_embeddings_are_followed_once_and_their_hits_reported_once(tmp_path: Path):
    source, archive, told = (tmp_path / name for name in ("clay", "archive", "hits.jsonl"))
    command = ("watch", "--embeddings", source, "--archive", archive, "--once", "--json")
    indexed = (*command, "--index", tmp_path / "index", "-s", "index.kind=flat")
    source.mkdir()
    nothing = run(*command)
    assert (nothing.code, nothing.data["snapshot"]) == (0, None)
    assert "holds no embeddings" in nothing.data["nothing"]
    first_file = _chips(source, 6)
    first = run(*indexed).data
    assert [one["rows"] for one in first["arrivals"]] == [12]
    rows = Archive.open(str(archive))
    search = SavedSearch(
        title="everything",
        encoder_fingerprint=rows.spec.encoder_fingerprint,
        vector=tuple(rows.read(rows.live_rows(0)[:1])["embedding"][0].tolist()),
        min_score=-1.0,
    )
    save_search(search, str(tmp_path / "all.json"))
    standing = (*indexed, "--saved", tmp_path / "all.json", "--deliver", told)
    assert run(*standing).data["arrivals"] == []

    new_file = _chips(source, 7)
    half = source / "half_20220810.gpq"
    half.write_bytes(new_file.read_bytes()[:5000])
    third = run(*standing)
    assert third.code == EXIT_DELIVERED
    outcomes = {one["scene_id"]: (one["state"], one["rows"]) for one in third.data["arrivals"]}
    assert outcomes == {new_file.stem: ("embedded", 12), half.stem: ("quarantined", 0)}
    again = run(*standing)
    assert (again.code, again.data["arrivals"], again.data["delivered"]) == (0, [], [])
    (event,) = map(json.loads, told.read_text().splitlines())
    assert (event["scene"], len(event["hits"])) == (new_file.stem, 12)

    for path in (first_file, new_file):
        path.unlink()
    assert run(*standing).code == 0  # the file that is left is known, and cannot be used
    half.write_bytes(_chips(tmp_path / "later", 8).read_bytes())
    late = run(*standing).data
    assert [(one["scene_id"], one["rows"]) for one in late["arrivals"]] == [(half.stem, 12)]
    assert [event["scene"] for event in late["delivered"]] == [half.stem]
    assert len(Archive.open(str(archive))) == 3 * 12

    half.unlink()
    emptied = run(*standing)
    assert (emptied.code, "holds no embeddings" in emptied.err) == (1, True)
    wrong = run(*command, "--scenes", "scenes", "--max-cloud", "20")
    assert (wrong.code, "leave out --scenes, --max-cloud" in wrong.err) == (2, True)
