"""Content of an archive at rest: damage is an error before it is an answer, and can be mended."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest

import storage.archive.repository as repository_module
import storage.archive.writer as writer_module
from storage.archive.audit import unsealed_segments, verify
from storage.archive.ledger import Ledger, LedgerEntry, Segment, fold_page, page_bytes
from storage.archive.maintenance import create_tag, delete_tag, list_tags, mend, rollback
from storage.archive.reader import Archive
from storage.archive.repository import translate_errors
from storage.archive.writer import ArchiveWriter
from storage.errors import CorruptIndexError, NotFoundError, SkysiftError
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive
from workflows.migrate import migrate

ROWS = {"a": 40, "b": 30}
Content = dict[tuple[str, str], list[Any]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An archive of three segments; the scenes of the second are ``c`` and ``d``."""
    where = str(tmp_path / "archive")
    create_archive(where, 16)
    add_scenes(where, ROWS, seed=1)
    add_scenes(where, {"c": 30, "d": 40}, seed=2)
    add_scenes(where, {"e": 70}, seed=3)
    return where


def content(archive: Archive) -> Content:
    """Every value of every live row, by scene and tile."""
    rows: Content = {}
    for segment in archive.segments:
        columns = archive.read_segment(segment.ordinal)
        for n, key in enumerate(zip(columns["scene"], columns["tile_key"], strict=True)):
            rows[key] = [np.asarray(v[n]).tolist() for k, v in columns.items() if k != "row"]
    return rows


def embedding_chunks(uri: str) -> list[Path]:
    """The chunk files of the vectors: 70 rows of 16 float16."""
    return [f for f in sorted(Path(uri, "chunks").iterdir()) if f.stat().st_size == 70 * 16 * 2]


def test_exchanged_vectors_are_found_and_only_they(uri: str):
    first, second, _ = embedding_chunks(uri)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    faults = verify(Archive.open(uri))
    assert len(faults) == 2
    assert all("column embedding" in fault and "--mend" in fault for fault in faults)


@pytest.mark.parametrize(
    "read",
    [
        lambda archive: archive.read(archive.live_rows(1)[:2], ["embedding"]),
        lambda archive: archive.read_segment(1, ["embedding"]),
        lambda archive: archive.to_dask().compute(),
    ],
)
def test_a_flipped_bit_is_an_error_of_every_reader(uri: str, read: Callable[[Archive], object]):
    bad = _flip_embedding_of(uri, 1)
    archive = Archive.open(uri)
    with pytest.raises(CorruptIndexError, match=r"column embedding of segment c-d.*digest differs"):
        read(archive)
    archive.read_segment(1, ["bbox", "scene"])
    archive.read_segment(0)
    _flip(bad)
    read(archive)


def test_mending_embeds_the_scenes_of_damaged_segments_again(uri: str):
    before = content(Archive.open(uri))
    _flip_embedding_of(uri, 1)
    done = mend(uri)
    assert (done.scenes, done.sealed) == (("c", "d"), 0)
    now = Archive.open(uri)
    assert verify(now) == []
    states = {entry.scene_id: (entry.state, entry.fingerprint) for entry in now.scenes()}
    assert states["c"] == states["d"] == ("deleted", "")  # an ingest embeds both again
    assert now.to_dask().compute().shape == (140, 16)
    add_scenes(uri, {"c": 30, "d": 40}, seed=2)
    assert content(Archive.open(uri)) == before
    assert mend(uri).scenes == ()


def test_an_older_archive_is_read_and_gets_digests(uri: str, monkeypatch: pytest.MonkeyPatch):
    """Segments and pages as they were written before there were digests."""
    fold: Callable[[Ledger, Ledger], bytes] = page_bytes

    def old_page(before: Ledger, after: Ledger) -> bytes:
        page = json.loads(fold(before, after).partition(b"\n")[0])
        for segment in page["segments"]:
            del segment["digests"]
        return json.dumps(
            {k: v for k, v in page.items() if k not in ("page", "spec_digest")}
        ).encode()

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "page_bytes", old_page)
        add_scenes(uri, {"old": 70}, seed=4)
    before = content(Archive.open(uri))
    assert [segment.id for segment in unsealed_segments(Archive.open(uri))] == ["old-v1-4"]
    assert verify(Archive.open(uri)) == []
    assert migrate(uri, dry_run=True).change == "digests of segments (1)"
    assert [migrate(uri).changed for _ in range(2)] == [True, False]
    now = Archive.open(uri)
    assert unsealed_segments(now) == []
    assert content(now) == before
    _flip_embedding_of(uri, 3)
    assert len(verify(Archive.open(uri))) == 1


def test_a_page_is_bound_to_its_place_and_its_bytes():
    segment = Segment(ordinal=0, id="s", rows=2, scenes=("a",), digests={"tile": "00"})
    entry = LedgerEntry(scene_id="a", state="embedded", fingerprint="v", rows=2, segment_ordinal=0)
    empty = Ledger()
    first = empty.after([segment], [entry], {})
    page = page_bytes(empty, first)
    assert fold_page(empty, page) == first
    with pytest.raises(ValueError, match="it is page 0"):
        fold_page(first, page)
    for position in range(len(page)):
        damaged = bytearray(page)
        damaged[position] ^= 1
        with pytest.raises((ValueError, KeyError, TypeError)):
            fold_page(empty, bytes(damaged))


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_branch_is_named_again(uri: str, damage: str):
    before, newest = content(Archive.open(uri)), Archive.open(uri).snapshot
    ref = Path(uri, "refs", "branch.main", "ref.json")
    if damage == "delete":
        ref.unlink()
    else:
        other = ("1" if newest[0] == "0" else "0") + newest[1:]  # its last letter is mostly padding
        ref.write_text(ref.read_text()[: None if damage == "flip" else 20].replace(newest, other))
    with pytest.raises(CorruptIndexError, match=f"rollback.*{newest}"):
        Archive.open(uri)
    with pytest.raises(NotFoundError, match="no snapshot 'nowhere'"):
        rollback(uri, "nowhere")
    assert rollback(uri, newest).previous == ""
    assert content(Archive.open(uri)) == before


def test_an_archive_made_between_two_looks_is_found(uri: str, monkeypatch: pytest.MonkeyPatch):
    ref = Path(uri, "refs", "branch.main", "ref.json")
    named = ref.rename(f"{uri}.ref")
    looked = repository_module._snapshot_files

    def made_meanwhile(place: Location) -> list[Location]:
        named.rename(ref)
        return looked(place)

    monkeypatch.setattr(repository_module, "_snapshot_files", made_meanwhile)
    assert Archive.exists(uri)


def test_a_damaged_newest_snapshot_leads_back_to_the_one_before(uri: str):
    newest = Archive.open(uri).snapshot
    file = Path(uri, "snapshots", newest)
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(CorruptIndexError, match="can be read") as caught:
        Archive.open(uri)
    assert rollback(uri, _first_named(caught.value)).previous == newest
    assert {scene for scene, _ in content(Archive.open(uri))} == {"a", "b", "c", "d"}
    add_scenes(uri, {"e": 70}, seed=3)
    assert verify(Archive.open(uri)) == []


def test_a_snapshot_file_of_another_snapshot_is_refused(uri: str):
    older = Archive.open(uri).snapshot
    newest = add_scenes(uri, {"f": 10}, seed=5)
    folder = Path(uri, "snapshots")
    (folder / newest).write_bytes((folder / older).read_bytes())
    with pytest.raises(CorruptIndexError, match=f"holds snapshot {older}"):
        Archive.open(uri)


def test_a_damaged_tag_is_named_and_can_be_removed(uri: str):
    create_tag(uri, "good")
    create_tag(uri, "bad")
    Path(uri, "refs", "tag.bad", "ref.json").write_text('{"snapshot":')
    with pytest.raises(CorruptIndexError, match=r"tag bad is damaged.*archive tag bad --delete"):
        list_tags(uri)
    delete_tag(uri, "bad")
    assert list(list_tags(uri)) == ["good"]


def test_a_writer_goes_on_beside_a_damaged_segment(uri: str):
    _flip_embedding_of(uri, 0)
    ArchiveWriter(uri)
    add_scenes(uri, {"z": 5}, seed=9)
    assert len(verify(Archive.open(uri))) == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_damaged_file_gives_another_answer(uri: str, seed: int):
    """A short form of tests/test_corruption.py: bits, ends, exchanges and losses of every file."""
    truth = content(Archive.open(uri))
    draw = random.Random(seed)
    for _ in _damaged(Path(uri), draw, 60):
        try:
            found, remedy = content(Archive.open(uri)), ""
        except SkysiftError as error:
            found, remedy = truth, str(error)
        assert found == truth
        assert not remedy or "skysift archive" in remedy


def _damaged(folder: Path, draw: random.Random, count: int) -> Iterator[None]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for _ in range(count):
        file, other = draw.sample(files, 2)
        before = {path: path.read_bytes() for path in (file, other)}
        kind = draw.choice(["flip", "flip", "cut", "swap", "delete"])
        if kind == "flip":
            _flip(file, draw.randrange(len(before[file])))
        elif kind == "cut":
            file.write_bytes(before[file][: draw.randrange(len(before[file]))])
        elif kind == "delete":
            file.unlink()
        else:
            file.write_bytes(before[other])
            other.write_bytes(before[file])
        yield
        for path, data in before.items():
            path.write_bytes(data)


def _flip(file: Path, at: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def _flip_embedding_of(uri: str, ordinal: int) -> Path:
    """Flip a bit of a vector of one segment; return the file."""
    sound = Archive.open(uri).read_segment(ordinal, ["embedding"])["embedding"].tobytes()
    file = next(f for f in embedding_chunks(uri) if f.read_bytes() == sound)
    _flip(file)
    return file


def _first_named(error: Exception) -> str:
    return str(error).partition("can be read: ")[2].partition(",")[0].partition(";")[0]


def test_a_remote_store_that_breaks_off_is_not_called_damage():
    """Icechunk says the same of a damaged file and of an answer that was cut off."""
    error = icechunk.IcechunkError("  x I/O error\n  | context:")
    for place, kind in (("/archive", CorruptIndexError), ("s3://bucket/archive", SkysiftError)):
        with (
            pytest.raises(SkysiftError) as raised,
            translate_errors(Location(place), remedy="run X"),
        ):
            raise error
        assert type(raised.value) is kind
        assert str(raised.value).endswith("is damaged: run X" if kind is SkysiftError else "run X")
