"""A saved search that is made again for the index of another encoder."""

import json
from pathlib import Path

import pytest

from storage.index.manifest import read_manifest
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def indexes(tmp_path: Path) -> tuple[str, str]:
    """Indexes of the same tiles by two encoders."""
    made = []
    for name, fingerprint in (("old", "ab" * 32), ("new", "cd" * 32)):
        archive, index = str(tmp_path / name), str(tmp_path / f"{name}-index")
        create_archive(archive, 8, fingerprint=fingerprint)
        add_scenes(archive, {"a": 60, "b": 40})
        assert run("index", "build", "--archive", archive, "--index", index).code == 0
        made.append(index)
    return made[0], made[1]


def test_marks_become_the_tiles_of_the_new_encoder(indexes: tuple[str, str], tmp_path: Path):
    old, new = indexes
    keys = live_rows(str(tmp_path / "old"))["tile_key"][:2]
    file, again = tmp_path / "field.json", tmp_path / "again.json"
    marks = ["--tile", keys[0], "--not-tile", keys[1], "--scene", "a"]
    assert run("search", "--index", old, *marks, "--save", file).code == 0
    refused = run("search", "--index", new, "--saved", file)
    assert (refused.code, refused.err.count("\n")) == (1, 1), refused.err
    assert "make the search again: --marks FILE --save FILE" in refused.err
    assert run("search", "--index", new, "--marks", file, "--save", again).code == 0
    saved = json.loads(again.read_text())
    assert saved["encoder_fingerprint"] == read_manifest(new).encoder_fingerprint
    found = {(mark["mark"], mark["tile"], mark["scene"]) for mark in saved["marks"]}
    assert found == {("right", keys[0], "a"), ("wrong", keys[1], "a")}
    direct = run("search", "--index", new, *marks, "--json").data["hits"]
    assert run("search", "--index", new, "--saved", again, "--json").data["hits"][:10] == direct


def test_a_mark_without_a_place_is_named(indexes: tuple[str, str], tmp_path: Path):
    old, new = indexes
    (tmp_path / "v.json").write_text(json.dumps([1.0] * 8))
    file = tmp_path / "vector.json"
    vector = ["--vector", tmp_path / "v.json", "--save", file]
    assert run("search", "--index", old, *vector).code == 0
    refused = run("search", "--index", new, "--marks", file)
    assert refused.err.count("\n") == 1
    assert "is of another encoder and has no place" in refused.err
