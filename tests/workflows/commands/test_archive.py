"""`skysift archive` for its care: each verb tells what it did, and mistakes end in one line."""

from pathlib import Path

import pytest

from storage.archive.reader import Archive
from tests.support.archive_world import add_scenes, create_archive
from tests.support.command_line import run


@pytest.fixture
def at(tmp_path: Path) -> list[str]:
    """The option that names an archive of two scenes."""
    uri = str(tmp_path / "archive")
    create_archive(uri, 8)
    add_scenes(uri, {"a": 3, "b": 2})
    return ["--archive", uri]


def test_a_deletion_is_tagged_rolled_back_and_undone(at: list[str]):
    tagged = run("archive", "tag", "all", *at, "--json").data
    done = run("archive", "delete-scene", "a", *at, "--reason", "licence ended", "--json")
    assert (done.code, done.data["rows"]) == (0, 3)
    info = run("archive", "info", *at, "--scenes", "--json").data
    assert (info["rows"], info["scenes deleted"]) == (2, 1)
    assert {one["scene_id"]: one["reason"] for one in info["scenes"]} == {
        "a": "licence ended",
        "b": "",
    }
    history = run("archive", "snapshots", *at, "--json").data
    assert [one["tags"] for one in history[:2]] == [[], ["all"]]
    assert run("archive", "info", *at, "--snapshot", "all", "--json").data["rows"] == 5
    back = run("archive", "rollback", "all", *at, "--json").data
    assert back == {"snapshot": tagged["snapshot"], "previous": done.data["snapshot"]}
    assert len(Archive.open(at[1])) == 5
    assert run("archive", "rollback", back["previous"], *at).code == 0
    assert len(Archive.open(at[1])) == 2


def test_garbage_is_said_before_it_goes(at: list[str]):
    run("archive", "delete-scene", "a", *at)
    planned = run("archive", "gc", *at, "--older-than", "1h", "--dry-run", "--json").data
    assert planned == {"expired": [], "freed_bytes": 0, "dry_run": True}
    assert "snapshots gone  0" in run("archive", "gc", *at).out
    for span, text in {"10m": "running ingest", "soon": "not a span of time"}.items():
        refused = run("archive", "gc", *at, "--older-than", span)
        assert refused.code == 2
        assert text in refused.err
        assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["delete-scene", "ghost"], 1, "no scene ghost; nothing was deleted"),
        (["rollback", "nowhere"], 1, "no snapshot 'nowhere'"),
        (["tag", "x", "--delete"], 1, "no tag 'x'; it has none"),
        (["tag", "a/b"], 2, "no name for a tag"),
        (["delete-scene"], 2, "Missing argument"),
    ],
)
def test_a_mistake_is_one_line(at: list[str], arguments: list[str], code: int, text: str):
    outcome = run("archive", *arguments, *at)
    assert outcome.code == code
    assert text in outcome.err
    assert outcome.err.count("\n") == 1
