"""The archive remembers the files of its scenes: whole, without secrets, and as they are now."""

import datetime as dt
import math
from pathlib import Path

import icechunk
import pytest
import zarr

from storage.archive.maintenance import delete_scenes, remember
from storage.archive.origins import Origin, origins_from_bytes, origins_to_bytes
from storage.archive.reader import Archive
from storage.archive.repository import writing_session
from storage.archive.writer import write_origins
from storage.errors import CorruptIndexError, NotFoundError
from storage.location import Location, StorageOptions
from storage.scene import BandSource, MaskSource, Scene
from tests.support.archive_world import three_scenes

ARCHIVE = Location("s3://b/archive", StorageOptions(region="eu-central-1", access_key_id="key"))
DAY = dt.datetime(2024, 5, 1, 10, 30, tzinfo=dt.UTC)


def scene(name: str = "a", href: str = "s3://b/a.tif", **fields) -> Scene:
    return Scene(id=name, datetime=DAY, bands=(BandSource(name="red", href=href),), **fields)


FULL = Scene(
    id="S2A_é",
    datetime=DAY,
    bands=(
        BandSource(name="red", href="s3://b/red.tif", index=3, scale=1e-4, offset=0.0, nodata=0.0),
        BandSource(name="nir", href="s3://b/nir.tif", nodata=math.nan, offset_of_counts=True),
    ),
    mask=MaskSource(href="s3://b/scl.tif", index=2, cloud_values=(0, 3, 8), cloud_bits=(1,)),
    collection="sentinel-2-l2a",
    cloud_cover_percent=0.0,
    bbox=(179.5, -17.0, -179.5, -16.0),
    revision="1-2",
    end=DAY + dt.timedelta(days=30),
    sources=("x", "y"),
    document="s3://b/item.json",
)


@pytest.mark.parametrize("one", [FULL, scene()], ids=["full", "least"])
def test_a_scene_comes_back_as_it_was_with_the_options_of_the_archive(one: Scene):
    data = origins_to_bytes([Origin(scene=one, catalog="s3://b/items.json")])
    (back,) = origins_from_bytes(data, ARCHIVE).values()
    assert (back.catalog, back.signed) == ("s3://b/items.json", False)
    assert repr(back.scene) == repr(one)  # NaN differs from itself
    assert back.scene.fingerprint == one.fingerprint
    assert {href.options for href in back.scene.hrefs} == {ARCHIVE.options}


def test_files_beside_a_remote_file_are_read_again_as_at_the_ingest():
    file = Location("s3://b/a.tif").with_sidecars()
    one = Scene(id="a", datetime=DAY, bands=(BandSource(name="red", href=file),))
    (back,) = origins_from_bytes(origins_to_bytes([Origin(scene=one)]), ARCHIVE).values()
    assert all(href.options.sidecars for href in back.scene.hrefs)


def test_the_formats_that_were_asked_for_are_remembered():
    file = Location("s3://b/a.jp2").with_drivers(["jp2"])
    one = Scene(id="a", datetime=DAY, bands=(BandSource(name="red", href=file),))
    (back,) = origins_from_bytes(origins_to_bytes([Origin(scene=one)]), ARCHIVE).values()
    assert {href.drivers for href in back.scene.hrefs} == {("jp2",)}


def test_neither_signatures_nor_keys_are_kept():
    signed = "https://me:pass@host/a.tif?se=2024-01-01&sig=abcsecret"
    one = Scene(
        id="a",
        datetime=DAY,
        bands=(BandSource(name="red", href=ARCHIVE.at(signed)),),
        document="https://host/a.json?sig=abcsecret",
    )
    data = origins_to_bytes([Origin(scene=one)])
    assert not any(word in data for word in (b"abcsecret", b"pass", b"key"))
    (back,) = origins_from_bytes(data, ARCHIVE).values()
    assert back.signed
    assert back.scene.hrefs[0].uri == "https://host/a.tif"


def test_a_changed_byte_is_noticed():
    data = bytearray(origins_to_bytes([Origin(scene=scene())]))
    data[data.index(b"a.tif")] = ord("b")
    with pytest.raises(ValueError, match="digest"):
        origins_from_bytes(bytes(data), ARCHIVE)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An archive of an earlier Skysift: two segments without origins."""
    return three_scenes(str(tmp_path / "archive"))


def test_an_older_archive_is_read_and_says_what_to_do(uri: str):
    archive = Archive.open(uri)
    assert archive.origins(0) == {}
    with pytest.raises(NotFoundError, match="skysift archive remember --scenes"):
        archive.scene("a")
    with pytest.raises(NotFoundError, match="no tiles of scene z"):
        archive.scene("z")


def test_remembered_files_are_seen_through_snapshots_of_before(uri: str):
    """An index pins the snapshot that it was built from."""
    pinned = Archive.open(uri)
    done = remember(uri, "items.json", [scene("a", version) for version in ("s3://b/1.tif",)])
    assert (done.scenes, done.missing, done.changed) == (("a",), ("b", "c"), ("a",))
    assert pinned.scene("a").hrefs == (Location("s3://b/1.tif"),)
    with pytest.raises(NotFoundError, match="scene b"):
        pinned.scene("b")
    again = remember(uri, "items.json", [scene("a", "s3://c/1.tif"), scene("c"), scene("other")])
    assert again.scenes == ("a", "c")
    assert pinned.scene("a").hrefs == (Location("s3://c/1.tif"),)  # moved
    now = Archive.open(uri)
    assert (now.snapshot, len(now)) == (again.snapshot, 9)
    delete_scenes(uri, ["a"])
    assert now.scene("a").hrefs == (Location("s3://c/1.tif"),)


def test_a_catalog_of_other_scenes_changes_nothing(uri: str):
    before = Archive.open(uri).snapshot
    with pytest.raises(NotFoundError, match=r"lists none of the 3 scenes"):
        remember(uri, "items.json", [scene("z")])
    assert Archive.open(uri).snapshot == before


def test_a_writer_that_is_faster_keeps_its_commit(uri: str, monkeypatch: pytest.MonkeyPatch):
    """A program without the lock commits between the opening of the session and its commit."""
    archive, others = Archive.open(uri), []

    def slow_session(repository: icechunk.Repository) -> icechunk.Session:
        session = writing_session(repository)
        if not others:
            other = writing_session(repository)
            zarr.open_group(other.store, mode="a").create_group("beside")
            others.append(other.commit("beside"))
        return session

    monkeypatch.setattr("storage.archive.writer.writing_session", slow_session)
    write_origins(archive, {"a": Origin(scene=scene())})
    newest = Archive.open(uri)
    assert others[0] in {snapshot for snapshot, _, _ in newest.snapshots()}
    assert newest.scene("a") == scene()


def test_signed_scenes_name_their_catalog(uri: str):
    remember(uri, "s3://b/items.json", [scene("a", "https://host/a.tif?sig=abc")])
    with pytest.raises(NotFoundError, match=r"signed addresses .*--scenes s3://b/items\.json"):
        Archive.open(uri).scene("a")


def test_damaged_origins_are_an_error(uri: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("storage.archive.writer.origins_to_bytes", lambda _: b"[]\nno digest")
        remember(uri, "items.json", [scene("a")])
    with pytest.raises(CorruptIndexError, match="origins of segment"):
        Archive.open(uri).scene("a")
