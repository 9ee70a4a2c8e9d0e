"""Copies that are made while an ingest commits, and what is restored from them."""

import itertools
import re
from pathlib import Path

import pytest

from pipeline.indexing.driver import build_index, update_index
from pipeline.search.searcher import Searcher
from storage.archive.audit import row_faults
from storage.archive.maintenance import list_snapshots, list_tags
from storage.archive.reader import Archive
from storage.errors import SkysiftError
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive
from tests.support.indexing_world import in_this_process  # noqa: F401
from tests.support.paths import REPOSITORY

DIMENSION = 8
SAFE = ("refs", "snapshots", "transactions", "manifests", "chunks")


class Ingest:
    """Commits a scene, and brings the index up to date, when the copy asks for it."""

    def __init__(self, archive: Location, index: Location | None = None) -> None:
        self.archive, self._index = archive, index
        self._numbers = itertools.count()
        create_archive(archive, DIMENSION)
        self.commit()
        if index is not None:
            build_index(archive, index)

    def commit(self) -> None:
        number = next(self._numbers)
        add_scenes(self.archive, {f"scene-{number}": 5}, seed=number)
        if self._index is not None and number:
            update_index(self._index)


def copy(parts: tuple[str, ...], source: Location, target: Location, ingest: Ingest) -> None:
    """Copy parts of a folder in order; the ingest commits again and again meanwhile."""
    for part in parts:
        files = (source / part).list()
        for number, file in enumerate(files):
            if number % 20 == 0:
                ingest.commit()
            name = file.uri.removeprefix(f"{source.uri}/")
            (target / name).write(file.read())


def test_the_page_copies_in_the_safe_order():
    page = (REPOSITORY / "docs" / "backup.md").read_text()
    (line,) = re.findall(r"^cp -a (work/archive/refs .*) backup/archive/$", page, re.M)
    assert tuple(name.removeprefix("work/archive/") for name in line.split()) == SAFE


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_copy_in_the_order_of_a_reader_is_whole(kind: str, tmp_path: Path, request):
    root = (
        Location(str(tmp_path))
        if kind == "disk"
        else request.getfixturevalue("moto_s3").location("w")
    )
    source, target = root / "archive", root / "copy"
    ingest = Ingest(source)
    before = Archive.open(source)
    copy(SAFE, source, target, ingest)
    restored = Archive.open(target)
    assert len(before) < len(restored) < len(Archive.open(source))
    assert not row_faults(restored)
    assert restored.snapshot in {entry.id for entry in list_snapshots(source)}
    add_scenes(target, {"later": 5})
    assert len(Archive.open(target)) == len(restored) + 5


def test_a_copy_that_takes_the_newest_state_last_is_broken(tmp_path: Path):
    """Why the order matters: the reference names a snapshot that was not there yet."""
    source, target = Location(str(tmp_path / "archive")), Location(str(tmp_path / "copy"))
    copy(SAFE[::-1], source, target, Ingest(source))
    with pytest.raises(SkysiftError, match="damaged"):
        Archive.open(target)


@pytest.mark.usefixtures("in_this_process")
def test_an_index_is_copied_before_its_archive(tmp_path: Path):
    """The copies come back at the addresses of the originals, which are gone."""
    source, target = Location(str(tmp_path / "live")), Location(str(tmp_path / "copy"))
    ingest = Ingest(source / "archive", source / "index")
    copy(("index/CURRENT",), source, target, ingest)
    versions = sorted(path.name for path in (source / "index").path.glob("0*"))
    copy(tuple(f"index/{name}" for name in versions), source, target, ingest)
    copy(tuple(f"archive/{name}" for name in SAFE), source, target, ingest)
    source.path.rename(tmp_path / "lost")
    target.path.rename(source.path)
    searcher = Searcher.local(source / "index")
    assert searcher.manifest.snapshot in list_tags(source / "archive").values()
    assert len(searcher.archive) == searcher.manifest.rows
    assert update_index(source / "index").rows == len(Archive.open(source / "archive"))
