"""An index over the years: updates, compaction, drift, going back, and what garbage is."""

import datetime as dt
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.vectors import add_rows, clustered, make_archive
from pipeline.indexing.build import MergeJob
from pipeline.indexing.compact import ShardMerger, groups_to_merge
from pipeline.indexing.driver import build_index, compact_index, update_index
from pipeline.indexing.maintenance import collect_garbage, index_versions, rollback_index
from pipeline.indexing.spec import IndexSpec
from storage.archive.maintenance import delete_scenes
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.manifest import IndexManifest, read_manifest
from storage.index.quantizer import set_threads
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.shard_world import Shards, brute_force, passes

DIMENSION = 16
DAY = dt.timedelta(days=1)
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    set_threads(1)


def load(index: str, manifest: IndexManifest) -> Shards:
    files = VerifiedFiles(index)
    return Shards(
        [files.load(shard) for shard in manifest.shards], manifest.nprobe, manifest.rerank
    )


def grow(folder: Path, spec: IndexSpec) -> tuple[str, str]:
    """An archive and its index after two updates and a deletion."""
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 200, "B": 200})
    build_index(archive, index, spec)
    add_scenes(archive, {"C": 90}, seed=7)
    add_scenes(archive, {"B": 60}, seed=8, version="v2")
    update_index(index)
    add_scenes(archive, {"D": 40}, seed=9)
    delete_scenes(archive, ["C"], reason="test")
    update_index(index)
    return archive, index


@pytest.mark.parametrize(
    "spec",
    [
        IndexSpec(kind="flat", shards=3),
        IndexSpec(kind="ivf_flat", shards=3, nlist=4),
        IndexSpec(kind="ivf_sq8", shards=3, nlist=4, rerank=False),
        IndexSpec(kind="ivf_opq", shards=3, nlist=4, rerank=False),
        IndexSpec(kind="ivf_rabitq", shards=3, nlist=4),
    ],
    ids=lambda spec: spec.kind,
)
def test_a_compacted_index_answers_bit_for_bit_what_it_answered_before(
    spec: IndexSpec, tmp_path: Path
):
    archive, index = grow(tmp_path, spec)
    before = read_manifest(index)
    after = compact_index(index)
    assert after.version > before.version
    assert after.snapshot == before.snapshot
    assert after.rows == before.rows == 300
    assert sum(shard.dead_rows for shard in after.shards) == 0
    assert len(after.shards) < len(before.shards)
    assert after.measured_bytes < before.measured_bytes
    assert after.trained == before.trained
    queries = np.random.default_rng(1).normal(size=(8, DIMENSION))
    rows = live_rows(archive)
    for where in (Filter(), Filter(labels=("water",), until="2024-06-30"), Filter(scenes=("B",))):
        one, two = (load(index, m).search(queries, 25, where, 10**6) for m in (before, after))
        np.testing.assert_array_equal(one.scores, two.scores)
        np.testing.assert_array_equal(one.rows, two.rows)
        if before.parameters.lossy and before.rerank == 1:
            continue  # scores are those of stored approximations
        keep = np.array([passes(where, rows, n) for n in range(len(rows["row"]))])
        scores, found = brute_force(rows, queries, 25, keep)
        np.testing.assert_array_equal(two.scores, scores)
        np.testing.assert_array_equal(two.rows, found)
    assert compact_index(index) == after  # there is nothing left to do


def test_an_index_grows_on_after_compaction(tmp_path: Path):
    archive, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=3, nlist=4))
    compacted = compact_index(index)
    add_scenes(archive, {"E": 30, "A": 50}, seed=11, version="v3")
    after = update_index(index)
    assert after.rows == len(live_rows(archive)["row"])
    assert after.grown_rows == compacted.grown_rows + 80
    names = [shard.name for shard in after.shards]
    assert len(set(names)) == len(names)
    compact_index(index)
    rows = live_rows(archive)
    queries = np.random.default_rng(2).normal(size=(5, DIMENSION))
    found = load(index, read_manifest(index)).search(queries, 30, nprobe=10**6)
    np.testing.assert_array_equal(
        found.rows, brute_force(rows, queries, 30, np.ones(len(rows["row"]), bool))[1]
    )


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 999),
    steps=st.lists(st.sampled_from(["add", "again", "delete"]), min_size=1, max_size=3),
    shards=st.integers(1, 4),
    ties=st.booleans(),
)
def test_any_growth_and_compaction_is_brute_force(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: list[str], shards: int, ties: bool
):
    folder = tmp_path_factory.mktemp("growth")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(3 if ties else 300, DIMENSION))

    def add(scene: str, version: str) -> None:
        count = int(rng.integers(20, 60))
        picked = pool[rng.integers(0, len(pool), count)]
        add_scenes(archive, {scene: count}, int(rng.integers(1e6)), version, embedding=picked)

    add("A", "v1")
    add("B", "v1")
    build_index(archive, index, IndexSpec(kind="ivf_flat", nlist=3, shards=shards))
    for number, step in enumerate(steps):
        if step == "delete":
            delete_scenes(archive, ["B"], reason="test")
        else:
            add("A" if step == "again" else f"N{number}", f"w{number}")
        update_index(index)
    rows = live_rows(archive)
    for manifest in (read_manifest(index), compact_index(index)):
        found = load(index, manifest).search(pool[:2], 40, nprobe=10**6)
        scores, expected = brute_force(rows, pool[:2], 40, np.ones(len(rows["row"]), bool))
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_array_equal(found.rows, expected)


def test_a_killed_compaction_goes_on_where_it_was(tmp_path: Path):
    _, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=6, nlist=4))
    before = read_manifest(index)

    class Stop(Exception):
        pass

    def stop(report: object) -> None:
        if report.done == 1:  # type: ignore[attr-defined]
            raise Stop

    with pytest.raises(Stop):
        compact_index(index, progress=stop)
    assert read_manifest(index) == before
    written = {path: path.stat().st_mtime_ns for path in Path(index).glob("*/shard-*.faiss")}
    after = compact_index(index)
    for path, when in written.items():
        assert path.stat().st_mtime_ns == when
    assert after.rows == before.rows


def test_the_lists_of_an_index_are_counted(tmp_path: Path):
    _, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    manifest = read_manifest(index)
    files = VerifiedFiles(index)
    sizes = sum(files.open(shard.lists).view(np.int64) for shard in manifest.shards)
    assert sizes.sum() == sum(shard.rows for shard in manifest.shards)
    assert manifest.empty_lists == int((sizes == 0).sum())
    assert manifest.list_imbalance == pytest.approx(4 * (sizes**2).sum() / sizes.sum() ** 2)


def test_rollback_goes_to_a_sound_version_only_and_readers_go_on(tmp_path: Path):
    _, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    versions = [one.version for one in index_versions(index)]
    assert len(versions) == 3
    assert [one.current for one in index_versions(index)] == [False, False, True]
    pinned = load(index, read_manifest(index))
    queries = np.eye(DIMENSION)[:3]
    answer = pinned.search(queries, 9)
    assert rollback_index(index).version == versions[1]
    assert rollback_index(index).version == versions[0]
    np.testing.assert_array_equal(pinned.search(queries, 9).rows, answer.rows)
    with pytest.raises(NotFoundError, match="has no version before 0001-"):
        rollback_index(index)
    newest = read_manifest(index, versions[2])
    path = Path(index) / newest.shards[-1].index.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptIndexError, match=rf"{versions[2]} is damaged, {versions[0]} stays"):
        rollback_index(index, versions[2])
    assert read_manifest(index).version == versions[0]


def test_garbage_is_what_neither_current_nor_recent_readers_nor_builds_need(tmp_path: Path):
    _, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    compact_index(index)
    versions = [one.version for one in index_versions(index)]
    assert len(versions) == 4
    (Path(index) / "0009-deadbeef").mkdir()
    unfinished = Path(index) / "0009-deadbeef" / "shard-00000.faiss"
    unfinished.write_bytes(b"part of a build")
    assert collect_garbage(index, keep=1).files == ()  # all of it is younger than a day
    later = dt.datetime.now(dt.UTC) + 2 * DAY
    # the second version was replaced two hours ago: whoever opened it may still read it
    for version, age_h in zip(versions, (90, 80, 2, 1), strict=True):
        when = (later - dt.timedelta(hours=age_h)).timestamp()
        os.utime(Path(index) / version / "manifest.json", (when, when))
    spared = collect_garbage(index, keep=1, in_use=versions[:1], dry_run=True, now=later)
    assert spared.versions == ()
    told = collect_garbage(index, keep=1, dry_run=True, now=later)
    assert told.versions == (versions[0],)
    assert [one.version for one in index_versions(index)] == versions
    done = collect_garbage(index, keep=1, now=later)
    assert done.files == told.files
    assert str(unfinished) in done.files
    assert [one.version for one in index_versions(index)] == versions[1:]
    rollback_index(index, versions[1])
    far = later + 30 * DAY
    collect_garbage(index, keep=1, now=far)
    left = [one.version for one in index_versions(index)]
    assert left == [versions[1], versions[3]]  # current, and the newest
    with pytest.raises(ConfigError, match="keep is 0"):
        collect_garbage(index, keep=0)
    for version in left:
        rollback_index(index, version)  # every file that they need is there
        assert load(index, read_manifest(index)).search(np.eye(DIMENSION)[:1], 5)


def test_a_merge_of_shards_without_their_archive_is_the_same_shard(tmp_path: Path):
    """Merging reads index files only: the snapshot may be gone."""
    _, index = grow(tmp_path, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    manifest = read_manifest(index)
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    merger = ShardMerger(
        index=Location(index),
        version="0008-00000000",
        trained=manifest.trained,
        dimension=DIMENSION,
        classes=manifest.classes,
    )
    (group, *_) = groups_to_merge(manifest)
    entry = merger(MergeJob(name="shard-00090", sources=group))
    assert entry.rows == sum(shard.live_rows for shard in group)
    assert merger(MergeJob(name="shard-00090", sources=group)) == entry
    receipt = json.loads((Path(index) / "0008-00000000" / "shard-00090.json").read_text())
    assert receipt["receipt"]["shard"]["rows"] == entry.rows


@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0])
def test_recall_survives_a_fifth_of_shifted_rows_or_a_build_is_advised(
    shift: float, tmp_path: Path
):
    archive, index = make_archive(tmp_path, 10_000, DIMENSION, clusters=60), str(tmp_path / "index")
    build_index(archive, index, IndexSpec(kind="ivf_flat"))
    drawn = partial(clustered, dimension=DIMENSION, clusters=60)
    old, new = next(drawn(600, seed=98)), next(drawn(100, seed=99, shift=shift))
    before = recall(index, old)
    add_rows(archive, 2000, clusters=60, seed=7, shift=shift)
    manifest = update_index(index)
    lost = before - recall(index, np.concatenate([old[:500], new]))
    assert lost <= 0.01 or "build the index again" in manifest.advice
    assert manifest.grown_rows == 2000
    assert bool(manifest.advice) == (shift == 1.0)  # and it is not advised for nothing


def recall(index: str, queries: np.ndarray) -> float:
    shards = load(index, read_manifest(index))
    tuned, exact = (shards.search(queries, 10, nprobe=n).rows for n in (None, 10**6))
    same = [len(set(a) & set(b)) for a, b in zip(tuned.tolist(), exact.tolist(), strict=True)]
    return float(np.mean(same)) / 10
