"""A damaged index is made again, not carried on; of two writers none undoes the other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline.indexing.driver as driver
import pipeline.indexing.maintenance as maintenance
from pipeline.indexing.build import ShardJob, built_once
from pipeline.indexing.driver import build_index, compact_index, plan_build, update_index
from pipeline.indexing.maintenance import index_versions, rollback_index, verify_index
from pipeline.indexing.spec import IndexSpec
from pipeline.indexing.steps import draw_sample, train_lists
from storage.archive.reader import Archive
from storage.errors import ArchiveConflictError, CorruptIndexError
from storage.index.manifest import (
    IndexManifest,
    current_version,
    list_versions,
    read_manifest,
    sealed,
    set_current,
    unsealed,
)
from storage.location import Location
from storage.locks import exchange
from storage.progress import ignore
from tests.support.archive_world import add_scenes, create_archive
from tests.support.indexing_world import in_this_process  # noqa: F401
from tests.support.object_store import MotoS3

pytestmark = pytest.mark.usefixtures("in_this_process")
SPEC = IndexSpec(kind="ivf_sq8", shards=2, nlist=4)


@pytest.fixture
def world(tmp_path: Path) -> tuple[str, str]:
    """An archive of 600 rows in two segments, and an index of lossy codes with exact vectors."""
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, 16)
    add_scenes(archive, {"A": 200, "B": 100}, 0)
    add_scenes(archive, {"C": 300}, 1)
    build_index(archive, index, SPEC)
    return archive, index


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_build_mends_every_file_of_an_index(world: tuple[str, str], damage: str):
    archive, index = world
    kinds = {file.suffix for file in Path(index).rglob("*") if file.is_file()}
    for name in [*sorted(kinds - {".json"}), "trained.faiss", "manifest.json"]:
        version = current_version(index)
        folder = Path(index, version)
        file = Path(index, "CURRENT")
        if name:
            file = min(folder.glob(f"*{name}"))
        if damage == "delete":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            flip(file)
        built = build_index(archive, index, SPEC)
        assert built.version != version or file.exists()
        assert verify_index(index).ok
        assert build_index(archive, index, SPEC) == built  # and then nothing is left to do


@pytest.mark.parametrize("suffix", ["faiss", "arrow", "vectors", "lists"])
def test_an_update_over_a_damaged_shard_is_refused(world: tuple[str, str], suffix: str):
    archive, index = world
    before = current_version(index)
    flip(Path(index, before, f"shard-00001.{suffix}"))
    add_scenes(archive, {"D": 50}, 2)
    with pytest.raises(CorruptIndexError, match="skysift index build"):
        update_index(index)
    assert current_version(index) == before
    assert len(list_versions(index)) == 1
    assert build_index(archive, index, SPEC).rows == 650
    assert verify_index(index).ok


def test_a_compaction_over_a_damaged_shard_is_refused(world: tuple[str, str]):
    archive, index = world
    for seed in (2, 3):
        add_scenes(archive, {f"D{seed}": 20}, seed)
        update_index(index)
    before = read_manifest(index)
    kept = before.shards[0].vectors
    assert kept is not None
    flip(Path(index, kept.path))
    with pytest.raises(CorruptIndexError, match="skysift index build"):
        compact_index(index)
    assert current_version(index) == before.version


def _grow(archive: str, index: str) -> IndexManifest:
    add_scenes(archive, {f"new-{len(list_versions(index))}": 30}, 7)
    return update_index(index)


def _rebuild(archive: str, index: str) -> IndexManifest:
    return build_index(archive, index, IndexSpec(kind="flat", shards=1))


def _compact(archive: str, index: str) -> IndexManifest:
    return compact_index(index)


def _roll_back(archive: str, index: str) -> IndexManifest:
    return rollback_index(index)


WRITERS = {"build": _rebuild, "update": _grow, "compact": _compact, "rollback": _roll_back}
Writer = Callable[[str, str], IndexManifest]


@pytest.mark.parametrize("faster", WRITERS)
@pytest.mark.parametrize("slower", WRITERS)
def test_a_slower_writer_undoes_nothing(
    world: tuple[str, str], slower: str, faster: str, monkeypatch: pytest.MonkeyPatch
):
    """The faster writer runs through while the slower writer is about to publish."""
    archive, index = world
    for seed in (2, 3):  # two small shards to merge
        add_scenes(archive, {f"D{seed}": 20}, seed)
        update_index(index)
    reached: list[str] = []

    def overtaken(name: str, module: Any) -> None:
        real = getattr(module, name)

        def late(*args: Any) -> Any:
            if not reached:
                reached.append(slower)
                WRITERS[faster](archive, index)
                reached.append(current_version(index))
            return real(*args)

        monkeypatch.setattr(module, name, late)

    overtaken("publish", driver)
    overtaken("set_current", maintenance)
    with pytest.raises(ArchiveConflictError, match="run the same command again"):
        WRITERS[slower](archive, index)
    assert current_version(index) == reached[1]
    versions = list_versions(index)
    assert len(versions) == len({name[:4] for name in versions})
    assert verify_index(index).ok
    again = WRITERS[slower](archive, index)
    assert current_version(index) == again.version


def test_versions_are_numbered_on_after_a_rollback(world: tuple[str, str]):
    archive, index = world
    _grow(archive, index)
    rollback_index(index)
    assert _grow(archive, index).version.startswith("0003-")
    assert [info.version[:4] for info in index_versions(index)] == ["0001", "0002", "0003"]


def test_a_lost_pointer_is_set_again(world: tuple[str, str]):
    _, index = world
    version = current_version(index)
    Path(index, "CURRENT").unlink()
    with pytest.raises(CorruptIndexError, match=f"index rollback --to.*{version}"):
        read_manifest(index)
    assert rollback_index(index, version).version == version
    assert current_version(index) == version


def test_a_damaged_receipt_is_not_believed(world: tuple[str, str]):
    """A receipt that says other rows than the shard has would end in the manifest."""
    archive, index = world
    receipt = Path(index, current_version(index), "shard-00000.json")
    values = json.loads(receipt.read_bytes())
    assert unsealed("receipt", receipt.read_bytes())["shard"]["rows"] == 300
    values["receipt"]["shard"]["rows"] = 299
    receipt.write_text(json.dumps(values))
    Path(index, "CURRENT").unlink()
    (receipt.parent / "manifest.json").unlink()  # as after a kill
    assert [shard.rows for shard in build_index(archive, index, SPEC).shards] == [300, 300]


def test_what_was_made_for_another_kind_is_not_continued_with(world: tuple[str, str]):
    """As where a build is continued after the kind that `auto` chooses has changed."""
    archive, index = world
    plans = [plan_build(archive, replace(SPEC, kind=kind)) for kind in ("ivf_sq8", "ivf_flat")]
    sample, _ = draw_sample(Archive.open(archive), plans[0], 0)
    sq8, flat, again = (
        train_lists(Location(index), "1000-00000000", plan, sample, ignore)
        for plan in (*plans, plans[1])
    )
    assert sq8.sha256 != flat.sha256 == again.sha256
    shard, job = read_manifest(index).shards[0], ShardJob(name="shard-00000", pieces=())
    built: list[ShardJob] = []
    for trained in (sq8, flat, flat):
        built_once(
            Location(index), "1000-00000000", trained, job, lambda job: built.append(job) or shard
        )
    assert len(built) == 2


def test_a_sealed_document_is_bound_to_its_bytes():
    data = sealed("manifest", {"rows": 3, "name": "a", "bbox": [1.5, 2.0]})
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        try:
            values = unsealed("manifest", bytes(damaged))
        except (ValueError, KeyError, TypeError):
            continue
        assert values == unsealed("manifest", data)  # a blank became another blank


def test_the_pointer_in_an_object_store_moves_from_the_version_that_was_read(moto_s3: MotoS3):
    folder = moto_s3.location("index")
    assert exchange(folder, "CURRENT", b"", b"one")
    assert not exchange(folder, "CURRENT", b"", b"other")
    assert not exchange(folder, "CURRENT", b"two", b"other")
    assert exchange(folder, "CURRENT", b"one", b"two")
    assert (folder / "CURRENT").read() == b"two"


def test_a_move_from_an_outdated_pointer_is_refused(world: tuple[str, str]):
    archive, index = world
    first = current_version(index)
    second = _grow(archive, index).version
    with pytest.raises(ArchiveConflictError, match=f"{second} current"):
        set_current(Location(index), first, first.encode())
    assert current_version(index) == second
