"""`skysift index` for its growth and care: what each verb tells, and mistakes in one line."""

import datetime as dt
import os
import re
from pathlib import Path

import pytest

from storage.archive.maintenance import collect_garbage, delete_scenes, unpin_snapshots
from storage.archive.repository import tag_names
from storage.index.manifest import read_manifest
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def at(tmp_path: Path) -> list[str]:
    """The options that name an archive of two scenes and its index."""
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, 8)
    add_scenes(archive, {"a": 300, "b": 200})
    options = ["--archive", archive, "--index", index]
    assert run("index", "build", *options, "--kind", "ivf_flat").code == 0
    return options


def test_an_index_grows_is_compacted_rolled_back_and_cleaned(at: list[str]):
    archive, index = at[1], at[2:]
    add_scenes(archive, {"c": 40}, seed=3)
    delete_scenes(archive, ["b"], reason="test")
    grown = run("index", "update", *index, "--json").data
    assert [shard["dead_rows"] for shard in grown["shards"]] == [200, 0]
    compacted = run("index", "compact", *index, "--json").data
    assert [(shard["rows"], shard["dead_rows"]) for shard in compacted["shards"]] == [(340, 0)]
    listed = run("index", "list", *index, "--json").data
    assert [one["rows"] for one in listed] == [500, 340, 340]
    assert [one["current"] for one in listed] == [False, False, True]
    table = run("index", "list", *index).out.splitlines()
    assert [line[:1] for line in table[1:]] == [" ", " ", "*"]
    shown = run("index", "info", *index).out
    assert re.search(r"^rows +340$", shown, re.MULTILINE)
    assert "recall@10" in shown
    back = run("index", "rollback", *index, "--json").data
    assert back["current version"] == listed[1]["version"]
    chosen = run("index", "rollback", *index, "--to", listed[2]["version"], "--json").data
    assert chosen["current version"] == listed[2]["version"]
    told = run("index", "gc", *index, "--keep", "1", "--older-than", "1d", "--dry-run", "--json")
    assert told.data == {"versions": [], "files": [], "dry_run": True}
    assert run("index", "verify", *index).code == 0


def test_a_dry_run_predicts_what_the_build_measures(at: list[str]):
    options = [*at, "--kind", "ivf_opq", "--memory", "1MB", "--shards", "2"]
    told = run("index", "build", *options, "--dry-run", "--json").data
    assert 0.5 < told["recall_ceiling"] <= 1
    built = run("index", "build", *options, "--json").data
    assert built["measured_bytes"] <= told["predicted_bytes"] <= 1_000_000
    shown = run("index", "build", *options, "--dry-run").out
    for word in (
        "bytes per row",
        "memory when loaded",
        "recall@10 expected",
        "memory of a builder",
    ):
        assert word in shown
    exact = run("index", "build", *at, "--kind", "flat", "--dry-run").out
    assert re.search(r"recall@10 expected +1\.000,", exact)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build", "--memory", "1kB"], 2, "more than the 1000 allowed"),
        (["build", "--builder-memory", "1MB"], 2, "more than the 1000000 allowed"),
        (["build", "--kind", "ivf_rabitq", "--set", "index.rerank=false"], 2, "always reranked"),
        (["build", "--shards", "501"], 2, "ask for at most 500"),
        (["rollback"], 1, "no version before 0001-"),
        (["rollback", "--to", "0007-00000000"], 1, "has no version 0007-00000000; it has 0001-"),
        (["verify", "--version", "x"], 1, "has no version x"),
        (["gc", "--keep", "0"], 2, "--keep"),
        (["info", "--version", "x"], 1, "has no version x"),
    ],
)
def test_mistakes_end_in_one_line(at: list[str], arguments: list[str], code: int, text: str):
    options = at if arguments[0] == "build" else at[2:]
    refused = run("index", *arguments, *options)
    assert (refused.code, refused.err.count("\n")) == (code, 1), refused.err
    assert text in refused.err


def test_an_index_belongs_to_one_archive_and_an_archive_has_rows(at: list[str], tmp_path: Path):
    other = str(tmp_path / "other")
    create_archive(other, 8)
    empty = run("index", "build", "--archive", other, "--index", tmp_path / "new")
    assert (empty.code, empty.err.count("\n")) == (2, 1)
    assert "no live rows" in empty.err
    add_scenes(other, {"x": 10})
    refused = run("index", "build", "--archive", other, *at[2:])
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is of archive" in refused.err
    build = ("index", "build", "--archive", other, *at[2:], "--other-archive")
    assert run(*build).code == 0
    assert [read_manifest(at[3]).rows, read_manifest(at[3]).archive_uri] == [10, other]
    assert run("index", "rollback", *at[2:]).code == 0
    assert read_manifest(at[3]).archive_uri == at[1]
    assert run(*build).code == 0
    assert _pins(other)
    assert _pins(at[1])
    long_ago = dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp()
    for file in Path(at[3]).rglob("*"):
        os.utime(file, (long_ago, long_ago))
    assert run("index", "gc", *at[2:], "--keep", 1, "--older-than", "1h").code == 0
    assert _pins(other)
    assert not _pins(at[1])  # no version reads it any more
    assert run("index", "update", *at[2:]).code == 0


def _pins(archive: str) -> list[str]:
    return [name for name in tag_names(Location(archive)) if name.startswith("index:")]


def test_archive_gc_keeps_what_an_index_pins_and_a_lost_snapshot_is_one_clear_error(at: list[str]):
    archive, index = at[1], at[3]
    pinned, key = read_manifest(index).snapshot, live_rows(archive)["tile_key"][0]
    add_scenes(archive, {"c": 5}, seed=4)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=3)
    hour = dt.timedelta(hours=1)
    assert pinned not in collect_garbage(archive, hour, now=later).expired
    ask = ("search", "--index", index, "--tile", key)
    assert run(*ask).code == 0
    unpin_snapshots(archive, index, keep=[])
    collect_garbage(archive, hour, now=later)
    assert run(*ask).code == 0  # the index holds the vector of the tile
    lost = run("search", "--index", index, "--image", __file__)  # the archive names the encoder
    assert (lost.code, lost.err.count("\n")) == (1, 1), lost.err
    assert f"has no snapshot '{pinned}'" in lost.err
