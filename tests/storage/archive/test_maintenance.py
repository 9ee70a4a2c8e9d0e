"""Care of an archive: what is deleted stays away, what is old can be had back until it is freed."""

import datetime as dt
from pathlib import Path

import pytest

from storage.archive.audit import audit, verify
from storage.archive.ledger import LedgerEntry
from storage.archive.maintenance import (
    MINIMUM_AGE,
    collect_garbage,
    create_tag,
    delete_scenes,
    delete_tag,
    list_snapshots,
    list_tags,
    pin_snapshot,
    resolve_snapshot,
    rollback,
    unpin_snapshots,
)
from storage.archive.reader import Archive
from storage.archive.writer import ArchiveWriter
from storage.errors import ArchiveConflictError, ConfigError, NotFoundError
from tests.support.archive_world import add_scenes, create_archive, live_rows, three_scenes
from tests.support.object_store import MotoS3

DAY = dt.timedelta(days=1)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An archive of three scenes in two segments."""
    return three_scenes(str(tmp_path / "archive"))


def test_a_deleted_scene_is_gone_now_and_there_at_the_older_snapshot(uri: str):
    before = Archive.open(uri)
    done = delete_scenes(uri, ["b", "c"], reason="licence ended")
    assert (done.scenes, done.rows) == (("b", "c"), 6)
    now = Archive.open(uri)
    assert (now.snapshot, len(now)) == (done.snapshot, 3)
    assert set(live_rows(uri)["scene"]) == {"a"}
    assert verify(now) == []
    states = {entry.scene_id: (entry.state, entry.reason) for entry in now.scenes()}
    assert states["b"] == ("deleted", "licence ended")
    assert len(Archive.open(uri, snapshot=before.snapshot)) == 9


def test_a_deleted_scene_keeps_its_fingerprint_unless_it_is_wanted_again(uri: str):
    delete_scenes(uri, ["a"])
    listing = [("a", "v1"), ("b", "v1"), ("c", "v1")]
    assert audit(Archive.open(uri), listing).complete
    same = delete_scenes(uri, ["a"])
    assert same.rows == 0
    assert same.snapshot == Archive.open(uri).snapshot
    assert len(list_snapshots(uri)) == 5  # the repository, the archive, two segments, one deletion
    delete_scenes(uri, ["a"], again=True)
    assert audit(Archive.open(uri), listing).changed == ("a",)


def test_a_scene_that_is_embedded_again_gets_new_rows(uri: str):
    old = Archive.open(uri).live_rows(1).tolist()
    delete_scenes(uri, ["c"], again=True)
    add_scenes(uri, {"c": 4}, seed=2)  # the very segment that was there before
    archive = Archive.open(uri)
    assert len(archive) == 9
    assert archive.live_rows(1).tolist() == []
    assert [segment.id for segment in archive.segments] == ["a-b-v1-1", "c-v1-2", "c-v1-2-2"]
    assert not set(archive.live_rows(2).tolist()) & set(old)
    assert verify(archive) == []


def test_deleting_what_is_not_there_deletes_nothing(uri: str):
    with pytest.raises(NotFoundError, match="no scene ghost; nothing was deleted"):
        delete_scenes(uri, ["a", "ghost"])
    assert len(Archive.open(uri)) == 9
    with pytest.raises(ConfigError, match="no scene"):
        delete_scenes(uri, [])


def test_tags_name_one_snapshot_for_ever(uri: str):
    first = create_tag(uri, "release-1")
    delete_scenes(uri, ["a"])
    assert list_tags(uri) == {"release-1": first}
    assert resolve_snapshot(uri, "release-1") == first
    assert [entry.tags for entry in list_snapshots(uri)][:2] == [(), ("release-1",)]
    with pytest.raises(ArchiveConflictError, match="tags are immutable"):
        create_tag(uri, "release-1")
    with pytest.raises(ConfigError, match="no name for a tag"):
        create_tag(uri, "a/b")
    with pytest.raises(NotFoundError, match="no snapshot"):
        create_tag(uri, "release-2", snapshot="nowhere")
    delete_tag(uri, "release-1")
    with pytest.raises(NotFoundError, match="no tag 'release-1'"):
        delete_tag(uri, "release-1")


def test_a_rollback_brings_back_what_was_and_can_be_undone(uri: str):
    create_tag(uri, "good")
    delete_scenes(uri, ["a"])
    add_scenes(uri, {"bad": 5}, seed=3)
    moved = rollback(uri, "good")
    assert set(live_rows(uri)["scene"]) == {"a", "b", "c"}
    assert verify(Archive.open(uri)) == []
    add_scenes(uri, {"d": 1}, seed=4)
    assert len(Archive.open(uri)) == 10
    rollback(uri, moved.previous)
    assert set(live_rows(uri)["scene"]) == {"b", "c", "bad"}
    with pytest.raises(NotFoundError, match="no snapshot 'nowhere'"):
        rollback(uri, "nowhere")


def test_a_writer_that_began_before_a_rollback_commits_onto_it(uri: str):
    create_tag(uri, "good")
    delete_scenes(uri, ["a"])
    writer = ArchiveWriter(uri)
    rollback(uri, "good")
    entry = next(entry for entry in Archive.open(uri).scenes() if entry.scene_id == "b")
    assert entry.state == "embedded"
    writer.commit([], [_quarantined("x")], {}, "late")
    assert {entry.scene_id for entry in Archive.open(uri).scenes()} == {"a", "b", "c", "x"}
    assert len(Archive.open(uri)) == 9


def test_garbage_is_freed_and_the_newest_and_tagged_states_stay(uri: str):
    old = Archive.open(uri).snapshot
    delete_scenes(uri, ["a"])
    kept = create_tag(uri, "kept")
    delete_scenes(uri, ["b"])
    later = dt.datetime.now(dt.UTC) + 2 * DAY
    assert collect_garbage(uri, 3 * DAY, now=later).expired == ()
    promised = collect_garbage(uri, DAY, now=later, dry_run=True)
    assert len(Archive.open(uri, snapshot=old)) == 9
    done = collect_garbage(uri, DAY, now=later)
    assert old in done.expired
    assert kept not in done.expired
    assert promised.expired == done.expired
    assert done.freed_bytes > 0
    with pytest.raises(NotFoundError, match="no snapshot"):
        Archive.open(uri, snapshot=old)
    assert len(Archive.open(uri, snapshot=kept)) == 6
    assert verify(Archive.open(uri)) == []
    assert len(Archive.open(uri)) == 4
    add_scenes(uri, {"d": 2}, seed=5)
    assert len(Archive.open(uri)) == 6


def test_snapshots_that_an_index_reads_are_never_collected(uri: str, tmp_path: Path):
    """Pinned by version; a pin that was taken back can be made again."""
    index, other = str(tmp_path / "index"), str(tmp_path / "other")
    first = Archive.open(uri).snapshot
    pin_snapshot(uri, first, index, "0001-a")
    pin_snapshot(uri, first, index, "0001-a")
    second = delete_scenes(uri, ["a"]).snapshot
    pin_snapshot(uri, second, index, "0002-b")
    pin_snapshot(uri, second, other, "0001-c")
    delete_scenes(uri, ["b"])
    later = dt.datetime.now(dt.UTC) + 2 * DAY
    assert {first, second}.isdisjoint(collect_garbage(uri, DAY, now=later).expired)
    assert len(Archive.open(uri, snapshot=first)) == 9
    unpin_snapshots(uri, index, keep=["0001-a"])
    collect_garbage(uri, DAY, now=later)
    assert len(Archive.open(uri, snapshot=second)) == 6  # the other index reads it
    unpin_snapshots(uri, other, keep=[])
    pin_snapshot(uri, second, index, "0002-b")
    collect_garbage(uri, DAY, now=later)
    assert len(Archive.open(uri, snapshot=second)) == 6
    unpin_snapshots(uri, index, keep=[])
    collect_garbage(uri, DAY, now=later)
    for snapshot in (first, second):
        with pytest.raises(NotFoundError, match="no snapshot"):
            Archive.open(uri, snapshot=snapshot)
    with pytest.raises(ConfigError, match="no name for a tag"):
        create_tag(uri, "index:mine")


def test_young_objects_are_never_collected(uri: str):
    with pytest.raises(ConfigError, match="running ingest"):
        collect_garbage(uri, MINIMUM_AGE - dt.timedelta(seconds=1))
    writer = ArchiveWriter(uri)
    collect_garbage(uri, MINIMUM_AGE)
    writer.commit([], [_quarantined("x")], {}, "goes on")
    assert len(Archive.open(uri)) == 9


def test_care_of_an_archive_on_s3(moto_s3: MotoS3):
    uri = moto_s3.location("archive")
    create_archive(uri, 8)
    add_scenes(uri, {"a": 3, "b": 2})
    create_tag(uri, "all")
    delete_scenes(uri, ["a"])
    assert len(Archive.open(uri)) == 2
    later = dt.datetime.now(dt.UTC) + 2 * DAY
    assert collect_garbage(uri, DAY, now=later).expired
    rollback(uri, "all")
    assert len(Archive.open(uri)) == 5


def _quarantined(scene: str) -> LedgerEntry:
    return LedgerEntry(scene_id=scene, state="quarantined", fingerprint="", reason="truncated")
