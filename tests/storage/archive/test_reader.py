"""The archive: what is committed is there once, whole, and at every snapshot as it was."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from storage.archive.audit import verify
from storage.archive.ledger import CHECKPOINT_EVERY_PAGES, Ledger, LedgerEntry, fold_page
from storage.archive.maintenance import delete_scenes
from storage.archive.reader import Archive
from storage.archive.spec import root_attributes
from storage.archive.writer import ArchiveWriter, write_segment
from storage.errors import ArchiveConflictError, ConfigError, NotFoundError, SkysiftError
from tests.support.object_store import MotoS3
from tests.support.segment_world import SPEC, WHEN, commit, entry, rows


@pytest.fixture
def uri(tmp_path: Path) -> str:
    where = str(tmp_path / "archive")
    Archive.create(where, SPEC)
    return where


def test_committed_rows_come_back_as_written(uri: str):
    segment = rows("s1", {"a": 3, "b": 2})
    commit(ArchiveWriter(uri), segment)
    archive = Archive.open(uri)
    assert len(archive) == 5
    read = archive.read_segment(0)
    np.testing.assert_array_equal(read["embedding"], segment.columns["embedding"].astype("f2"))
    for name in ("bbox", "tile", "labels", "datetime"):
        np.testing.assert_array_equal(read[name], segment.columns[name])
    assert read["scene"].tolist() == ["a"] * 3 + ["b"] * 2
    assert read["tile_key"][4] == "g10/4/7"
    assert archive.spec == SPEC
    assert [(s.scene_id, s.rows, s.datetime) for s in archive.scenes()] == [
        ("a", 3, WHEN),
        ("b", 2, WHEN),
    ]


def test_rows_are_read_by_id_in_the_order_asked(uri: str):
    writer = ArchiveWriter(uri)
    commit(writer, rows("s1", {"a": 3}, seed=1))
    commit(writer, rows("s2", {"b": 4}, seed=2))
    archive = Archive.open(uri)
    wanted = [(1 << 32) + 2, 0, 2, (1 << 32) + 2]
    read = archive.read(wanted, ["scene", "tile"])
    assert read["scene"].tolist() == ["b", "a", "a", "b"]
    assert read["tile"][:, 0].tolist() == [2, 0, 2, 2]
    assert read["row"].tolist() == wanted
    assert archive.read([], ["embedding", "labels"])["embedding"].shape == (0, 8)
    with pytest.raises(NotFoundError, match="no live row"):
        archive.read([3])
    with pytest.raises(NotFoundError, match="no column 'altitude'"):
        archive.read([0], ["altitude"])


def test_a_reprocessed_scene_hides_its_old_rows_and_old_snapshots_keep_them(uri: str):
    writer = ArchiveWriter(uri)
    old = commit(writer, rows("s1", {"a": 3, "b": 2}))
    commit(writer, rows("s2", {"a": 4}, seed=9), fingerprint="v2")
    now, then = Archive.open(uri), Archive.open(uri, snapshot=old)
    assert len(now) == 6
    assert now.live_rows(0).tolist() == [3, 4]
    assert now.read_segment(0, ["scene"])["scene"].tolist() == ["b", "b"]
    assert now.to_dask().shape == (6, 8)
    assert len(then) == 5
    assert then.live_rows(0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(NotFoundError):
        now.read([0])


def test_two_writers_settle_every_scene_once(uri: str):
    first, second = ArchiveWriter(uri), ArchiveWriter(uri)
    mine = write_segment(second.fork, rows("s2", {"b": 2}), SPEC)
    shared = write_segment(second.fork, rows("s3", {"a": 3}), SPEC)
    commit(first, rows("s1", {"a": 3}))
    second.commit([mine, shared], [entry("b", 2), entry("a", 3)], {}, "second")
    archive = Archive.open(uri)
    assert len(archive) == 5
    assert {s.scene_id: s.segment_ordinal for s in archive.scenes()} == {"a": 0, "b": 1}
    assert len(archive.segments) == 2


def test_the_ledger_is_the_same_after_many_pages(uri: str):
    writer = ArchiveWriter(uri)
    commit(writer, rows("s1", {"a": 3}))
    for number in range(CHECKPOINT_EVERY_PAGES + 3):
        scene = LedgerEntry(
            scene_id=f"q{number}", state="quarantined", fingerprint="x", reason="truncated"
        )
        writer.commit([], [scene], {}, "page")
    archive = Archive.open(uri)
    assert len(archive) == 3
    assert len(archive.scenes()) == CHECKPOINT_EVERY_PAGES + 4
    assert archive.ledger.grids == {"g10": {"tile_px": 64}}
    assert archive.ledger.pages == CHECKPOINT_EVERY_PAGES + 4


def test_a_vector_that_is_not_of_unit_norm_is_refused(uri: str):
    bad = rows("s1", {"a": 3})
    bad.columns["embedding"][1] = np.nan
    with pytest.raises(SkysiftError, match="row 1 has norm nan"):
        write_segment(ArchiveWriter(uri).fork, bad, SPEC)


def test_missing_archives_and_snapshots_are_named(uri: str, tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"no archive at .*nothing"):
        Archive.open(str(tmp_path / "nothing"))
    with pytest.raises(NotFoundError, match="no snapshot '1CECHNKREP0F1RSTCMT1'"):
        Archive.open(uri, snapshot="1CECHNKREP0F1RSTCMT1")
    with pytest.raises(ArchiveConflictError, match="an archive exists"):
        Archive.create(uri, SPEC)


def test_an_archive_is_made_among_nothing_but_what_a_killed_process_left(tmp_path: Path):
    uri = str(tmp_path / "archive")
    Archive.create(uri, SPEC)
    for file in (tmp_path / "archive").rglob("*"):
        if file.is_file() and file.name != "1CECHNKREP0F1RSTCMT0":
            file.unlink()
    assert len(Archive.create(uri, SPEC)) == 0
    scene = tmp_path / "scenes" / "a.tif"
    scene.parent.mkdir()
    scene.write_bytes(b"pixels")
    with pytest.raises(ConfigError, match=r"but .*a\.tif is; give an empty place"):
        Archive.create(str(scene.parent), SPEC)
    assert scene.read_bytes() == b"pixels"


def test_an_archive_pickles_and_opens_as_xarray(uri: str):
    commit(ArchiveWriter(uri), rows("s1", {"a": 3}))
    archive = pickle.loads(pickle.dumps(Archive.open(uri)))
    dataset = archive.to_xarray()
    assert dict(dataset.sizes) == {"row": 3, "dimension": 8, "edge": 4, "class": 2}
    assert dataset["datetime"].values[0] == np.datetime64("2024-05-01")
    np.testing.assert_array_equal(dataset["embedding"].values, archive.read_segment(0)["embedding"])
    assert dataset["tile_key"].values[2] == "g10/2/7"


def test_the_root_follows_the_published_convention_for_embeddings(real_data: Path):
    schema = real_data.parent / "schemas" / "zarr" / "geoemb.v1.schema.json"
    if not schema.exists():
        pytest.skip(f"the schema is not at {schema}")
    document = {"zarr_format": 3, "node_type": "group", "attributes": root_attributes(SPEC)}
    jsonschema.validate(document, json.loads(schema.read_text()))
    del document["attributes"]["geoemb:chip_layout"]
    with pytest.raises(jsonschema.ValidationError, match="chip_layout"):
        jsonschema.validate(document, json.loads(schema.read_text()))


def test_the_archive_lives_on_s3_just_the_same(moto_s3: MotoS3):
    uri = moto_s3.location("archive")
    Archive.create(uri, SPEC)
    writer = ArchiveWriter(uri)
    commit(writer, rows("s1", {"a": 3}))
    assert len(Archive.open(uri)) == 3
    with pytest.raises(NotFoundError, match="no archive at"):
        Archive.open(moto_s3.location("other"))


def test_what_another_job_settled_from_the_same_pixels_is_neither_merged_nor_revived(uri: str):
    """Two jobs embed the same scenes; then one scene is deleted, before the second commits."""
    first, second = ArchiveWriter(uri), ArchiveWriter(uri)
    both = rows("same", {"a": 2, "b": 3})
    receipt = write_segment(second.fork, both, SPEC)
    other = write_segment(second.fork, rows("other", {"c": 1}), SPEC)
    commit(first, both)
    delete_scenes(uri, ["a"], again=True)
    second.commit(
        [receipt, other], [entry("a", 2), entry("b", 3), entry("c", 1)], {"g10": {}}, "late"
    )
    archive = Archive.open(uri)
    assert {one.scene_id: one.state for one in archive.scenes()} == {
        "a": "deleted",
        "b": "embedded",
        "c": "embedded",
    }
    assert [segment.id for segment in archive.segments] == ["same", "other"]
    assert sorted(name for name, _ in archive._root["segments"].groups()) == ["other", "same"]
    assert verify(archive) == []


def test_a_scene_deleted_while_it_is_embedded_again_stays_deleted(uri: str):
    commit(ArchiveWriter(uri), rows("one", {"a": 2}))
    late = ArchiveWriter(uri)
    delete_scenes(uri, ["a"])
    commit(late, rows("two", {"a": 2, "b": 1}))
    states = {one.scene_id: one.state for one in Archive.open(uri).scenes()}
    assert states == {"a": "deleted", "b": "embedded"}
    assert len(Archive.open(uri)) == 1


def test_a_ledger_that_holds_unprintable_text_can_be_read():
    item = {"scene_id": "sur\ud800\x1b[2J", "state": "quarantined", "reason": "a\nb"}
    stored = [item | {"fingerprint": ""}]
    page = {"checkpoint": False, "segments": [], "grids": {}, "entries": stored}
    entries = fold_page(Ledger(), json.dumps(page).encode()).entries
    [(name, read)] = entries.items()
    assert name == read.scene_id == "sur\\ud800\\x1b[2J"
    assert read.reason == "a\\nb"


def test_a_relative_path_of_the_encoder_is_taken_from_either_folder(tmp_path, monkeypatch):
    (tmp_path / "enc").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    archive = Archive.create("archive", replace(SPEC, encoder_uri="enc"))
    assert archive.encoder.path == Path("enc")
    pickled = pickle.dumps(archive)
    monkeypatch.chdir(tmp_path / "here")
    opened = Archive.open(str(tmp_path / "archive"))
    assert opened.encoder.path == tmp_path / "enc"
    assert pickle.loads(pickled).spec == opened.spec
    stated = str(tmp_path / "gone")
    moved = Archive.create(str(tmp_path / "other"), replace(SPEC, encoder_uri=stated))
    assert moved.encoder.uri == stated
