"""An index of an archive: what it holds, that a build can be repeated, and what an update hides."""

import datetime as dt
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.indexing.driver import build_index, plan_build, update_index
from pipeline.indexing.maintenance import collect_garbage, verify_index
from pipeline.indexing.plan import cut_into_shards, plan_index
from pipeline.indexing.spec import IndexSpec
from storage.archive.maintenance import delete_scenes, rollback
from storage.archive.reader import Archive
from storage.archive.samples import uniform_rows
from storage.errors import ConfigError, CorruptIndexError, EncoderMismatchError, NotFoundError
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.kinds import KINDS, Kind
from storage.index.manifest import IndexManifest, list_versions, read_manifest, set_current
from storage.index.quantizer import set_threads
from storage.location import Location
from storage.progress import Progress
from tests.support.archive_world import FINGERPRINT, add_scenes, create_archive, live_rows
from tests.support.object_store import MotoS3
from tests.support.shard_world import Shards, brute_force

DIMENSION = 16
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    set_threads(1)


@pytest.fixture(scope="module")
def archive_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive of 900 rows in three segments; built once, not to be changed."""
    uri = str(tmp_path_factory.mktemp("world") / "archive")
    create_archive(uri, DIMENSION)
    for seed, scenes in enumerate(({"A": 200, "B": 100}, {"C": 300}, {"D": 150, "E": 150})):
        add_scenes(uri, scenes, seed)
    return uri


def load(index_uri: str | Location) -> Shards:
    manifest = read_manifest(index_uri)
    files = VerifiedFiles(index_uri)
    return Shards(
        [files.load(shard) for shard in manifest.shards], manifest.nprobe, manifest.rerank
    )


def assert_is_brute_force(index_uri: str, archive_uri: str, k: int = 20) -> None:
    rows = live_rows(archive_uri)
    queries = np.random.default_rng(1).normal(size=(8, DIMENSION))
    answer = load(index_uri).search(queries, k, nprobe=10**6)
    scores, found = brute_force(rows, queries, k, np.ones(len(rows["row"]), dtype=bool))
    np.testing.assert_array_equal(answer.scores, scores)
    np.testing.assert_array_equal(answer.rows, found)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_holds_every_live_row_of_the_archive(archive_uri: str, kind: Kind, tmp_path: Path):
    index_uri = str(tmp_path / "index")
    manifest = build_index(archive_uri, index_uri, IndexSpec(kind=kind, shards=3, nlist=8))
    assert manifest.rows == 900
    assert [shard.rows for shard in manifest.shards] == [300, 300, 300]
    assert manifest.snapshot == Archive.open(archive_uri).snapshot
    assert manifest.encoder_fingerprint == FINGERPRINT
    assert manifest.recall[str(manifest.nprobe)] >= 0.95
    assert manifest.measured_bytes <= manifest.predicted_bytes <= 1.4 * manifest.measured_bytes
    assert_is_brute_force(index_uri, archive_uri)
    assert verify_index(index_uri).ok


def test_extents_enclose_exactly_the_rows_of_a_shard(archive_uri: str, tmp_path: Path):
    manifest = build_index(archive_uri, str(tmp_path), IndexSpec(shards=4))
    rows = live_rows(archive_uri)
    files = VerifiedFiles(str(tmp_path))
    for shard in manifest.shards:
        mine = np.isin(rows["row"], files.load(shard).sidecar.row)
        assert mine.sum() == shard.rows
        box = rows["bbox"][mine]
        assert shard.bbox[1] == box[:, 1].min()
        assert shard.bbox[3] == box[:, 3].max()
        times = rows["datetime"][mine]
        assert (str(times.min()), str(times.max())) == (shard.since, shard.until)


def test_the_same_build_again_does_nothing_and_two_builds_are_the_same(
    archive_uri: str, tmp_path: Path
):
    spec = IndexSpec(kind="ivf_sq8", shards=2, nlist=4)
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    first = build_index(archive_uri, one, spec)
    stages: list[str] = []
    again = build_index(archive_uri, one, spec, progress=lambda p: stages.append(p.stage))
    assert again == first
    assert not stages
    assert build_index(archive_uri, other, spec).files == first.files


def test_a_killed_build_goes_on_where_it_was(archive_uri: str, tmp_path: Path):
    index_uri, spec = str(tmp_path), IndexSpec(kind="ivf_flat", shards=3, nlist=4)

    class Stop(Exception):
        pass

    def stop_when_filled(report: Progress) -> None:
        if report.stage == "measure recall":
            raise Stop

    with pytest.raises(Stop):
        build_index(archive_uri, index_uri, spec, progress=stop_when_filled)
    with pytest.raises(NotFoundError, match="no finished index"):
        read_manifest(index_uri)
    files = sorted(tmp_path.glob("*/*.faiss"))
    written = {path: path.stat().st_mtime_ns for path in files}
    assert len(files) == 4
    damaged = files[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    build_index(archive_uri, index_uri, spec)
    changed = [path for path in files if path.stat().st_mtime_ns != written[path]]
    assert changed == [damaged]
    assert_is_brute_force(index_uri, archive_uri)


KILLED = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import ray
from pipeline.indexing import steps as index_steps, driver as indexing
from storage.index.quantizer import ShardIndexBuilder
index_steps.run_tasks = lambda work, jobs, **_: [work(job) for job in jobs]
indexing.ray_session = lambda address: nullcontext()
ray.cluster_resources = lambda: {"CPU": 1}
save = ShardIndexBuilder.save
def save_half(self, path, rows):
    if list(Path(sys.argv[2]).glob("*/shard-00000.json")):
        path.write_bytes(b"half of a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, path, rows)
ShardIndexBuilder.save = save_half
spec = indexing.IndexSpec(kind="ivf_sq8", shards=3, nlist=4)
indexing.build_index(sys.argv[1], sys.argv[2], spec)
"""


def test_a_build_killed_while_it_writes_a_shard_ends_as_if_it_had_not_been(
    archive_uri: str, tmp_path: Path
):
    index_uri, other = str(tmp_path / "killed"), str(tmp_path / "whole")
    child = subprocess.run([sys.executable, "-c", KILLED, archive_uri, index_uri], check=False)
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(NotFoundError, match="no finished index"):
        read_manifest(index_uri)
    (first,) = Path(index_uri).glob("*/shard-*.faiss")
    written = first.stat().st_mtime_ns
    spec = IndexSpec(kind="ivf_sq8", shards=3, nlist=4)
    resumed = build_index(archive_uri, index_uri, spec)
    assert first.stat().st_mtime_ns == written
    assert resumed.files == build_index(archive_uri, other, spec).files
    assert verify_index(index_uri).ok


@pytest.mark.parametrize("damage", ["flip", "missing", "swap", "truncate"])
def test_a_damaged_file_is_found_before_faiss_reads_it(
    archive_uri: str, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
):
    manifest = build_index(archive_uri, str(tmp_path), IndexSpec(shards=2))
    target, other = (tmp_path / shard.index.path for shard in manifest.shards)
    data = target.read_bytes()
    if damage == "flip":
        target.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    elif damage == "missing":
        target.unlink()
    elif damage == "truncate":
        target.write_bytes(data[:-7])
    else:
        target.write_bytes(other.read_bytes())
        other.write_bytes(data)

    def never(data: object) -> None:
        raise AssertionError("FAISS got unverified bytes")

    monkeypatch.setattr("storage.index.shard.faiss.deserialize_index", never)
    with pytest.raises(CorruptIndexError, match=r"shard-00000\.faiss"):
        VerifiedFiles(str(tmp_path)).load(manifest.shards[0])
    report = verify_index(str(tmp_path))
    assert len(report.problems) == (2 if damage == "swap" else 1)
    assert "shard-00000.faiss" in report.problems[0]


def test_a_damaged_manifest_or_pointer_is_named(archive_uri: str, tmp_path: Path):
    manifest = build_index(archive_uri, str(tmp_path), IndexSpec())
    path = tmp_path / manifest.version / "manifest.json"
    sealed = json.loads(path.read_text())
    sealed["manifest"]["nprobe"] = 99
    path.write_text(json.dumps(sealed))
    with pytest.raises(CorruptIndexError, match="its digest differs"):
        read_manifest(str(tmp_path))
    (tmp_path / "CURRENT").write_text("../elsewhere")
    with pytest.raises(CorruptIndexError, match="not a version"):
        read_manifest(str(tmp_path))


@pytest.fixture
def grown(tmp_path: Path) -> tuple[str, str, IndexManifest]:
    """An index, and its archive after a scene was added and another one reprocessed."""
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 200, "B": 200})
    before = build_index(archive, index, IndexSpec(kind="ivf_flat", shards=3, nlist=4))
    add_scenes(archive, {"C": 90}, seed=7)
    add_scenes(archive, {"B": 60}, seed=8, version="v2")
    return archive, index, before


def test_an_update_adds_new_rows_and_hides_dead_ones_without_touching_files(
    grown: tuple[str, str, IndexManifest],
):
    archive, index, before = grown
    after = update_index(index)
    assert after.rows == 200 + 90 + 60
    assert after.trained == before.trained
    # the third shard held nothing but rows of B: it is gone
    assert [shard.index for shard in after.shards[:2]] == [
        shard.index for shard in before.shards[:2]
    ]
    assert [shard.dead_rows for shard in after.shards] == [0, 67, 0]
    assert_is_brute_force(index, archive)
    assert update_index(index) == after
    rebuilt = build_index(archive, index, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    assert rebuilt.version > after.version
    assert_is_brute_force(index, archive)


def test_older_versions_stay_whole_until_garbage_is_collected(
    grown: tuple[str, str, IndexManifest],
):
    archive, index, before = grown
    after = update_index(index)
    assert list_versions(index) == [before.version, after.version]
    assert verify_index(index, before.version).ok
    set_current(index, before.version)
    assert read_manifest(index) == before
    set_current(index, after.version)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    assert collect_garbage(index, keep=1, now=later).versions == (before.version,)
    assert list_versions(index) == [after.version]
    assert_is_brute_force(index, archive)  # the old version's shards are still used
    with pytest.raises(NotFoundError, match=f"no version {before.version}"):
        set_current(index, before.version)


def test_rows_unlike_the_trained_ones_bring_the_advice_to_build_again(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(1, DIMENSION)) + 0.1 * rng.normal(size=(450, DIMENSION))
    add_scenes(archive, {"A": 400}, embedding=alike[:400])
    build_index(archive, index, IndexSpec(kind="ivf_flat", nlist=4))
    add_scenes(archive, {"B": 50}, seed=1, embedding=alike[400:])
    calm = update_index(index)
    assert calm.drift == pytest.approx(1, abs=0.2)
    assert calm.advice == ""
    add_scenes(archive, {"C": 50}, seed=2, embedding=rng.normal(size=(50, DIMENSION)))
    shifted = update_index(index)
    assert shifted.drift > 2
    assert "build the index again" in shifted.advice


def test_an_update_after_a_rollback_never_leaves_live_rows_out(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    whole = add_scenes(archive, {"A": 200, "B": 200})
    build_index(archive, index, IndexSpec(kind="flat", shards=3))
    delete_scenes(archive, ["B"], reason="test")
    smaller = update_index(index)
    assert smaller.rows == 200
    rollback(archive, whole)
    with pytest.raises(NotFoundError, match=r"133 live rows .* rolled back.*build the index again"):
        update_index(index)
    assert read_manifest(index) == smaller
    build_index(archive, index, IndexSpec(kind="flat", shards=3))
    assert_is_brute_force(index, archive)


def test_an_archive_of_another_encoder_is_refused(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 50})
    manifest = build_index(archive, index)
    other = str(tmp_path / "other")
    create_archive(other, DIMENSION, fingerprint="cd" * 32)
    add_scenes(other, {"A": 50})
    from storage.index.manifest import write_manifest

    write_manifest(Location(index), replace(manifest, archive_uri=other))
    with pytest.raises(EncoderMismatchError, match=r"cdcdcdcd.* abababab"):
        update_index(index)


def test_an_empty_archive_and_a_missing_one_are_named(tmp_path: Path):
    uri = str(tmp_path / "archive")
    with pytest.raises(NotFoundError, match="no archive at"):
        build_index(uri, str(tmp_path / "index"))
    create_archive(uri, DIMENSION)
    with pytest.raises(ConfigError, match="no live rows; ingest"):
        build_index(uri, str(tmp_path / "index"))


def test_an_index_on_s3_is_the_local_one(archive_uri: str, moto_s3: MotoS3, tmp_path: Path):
    remote, uri = moto_s3.uri("archive"), moto_s3.uri("index", "main")
    create_archive(Location(remote, moto_s3.options), DIMENSION)
    add_scenes(Location(remote, moto_s3.options), {"A": 120, "B": 80})
    index = Location(uri, moto_s3.options)
    manifest = build_index(Location(remote, moto_s3.options), index, IndexSpec(shards=2))
    assert verify_index(index).ok
    rows = live_rows(Location(remote, moto_s3.options))
    queries = np.eye(DIMENSION)[:4]
    answer = load(index).search(queries, 9, Filter(), nprobe=10**6)
    scores, found = brute_force(rows, queries, 9, np.ones(200, dtype=bool))
    np.testing.assert_array_equal(answer.rows, found)
    np.testing.assert_array_equal(answer.scores, scores)
    assert manifest.rows == 200


def test_the_kind_follows_from_rows_and_memory(archive_uri: str):
    def plan(rows: int, memory: int | None = None, **spec: object):
        segments = [(0, rows, (10.0, 20.0))]
        return plan_index(IndexSpec(memory_bytes=memory, **spec), 128, 0, segments)  # type: ignore[arg-type]

    assert plan(5_000).parameters.kind == "flat"
    assert plan(1_000_000).parameters.kind == "ivf_flat"
    assert plan(1_000_000, 300_000_000).parameters.kind == "ivf_sq8"
    small = plan(1_000_000, 120_000_000)
    assert small.parameters.kind == "ivf_opq"
    assert small.predicted_bytes <= 120_000_000
    assert small.rerank > 1
    with pytest.raises(ConfigError, match=r"takes at least \d+ bytes, more than the 1000 allowed"):
        plan(1_000_000, 1000)
    with pytest.raises(ConfigError, match="ivf_pq needs more than 9 rows"):
        plan(9, kind="ivf_pq")
    assert plan_build(archive_uri).rows == 900


def test_every_row_lands_in_one_shard_and_neighbours_stay_together():
    rng = np.random.default_rng(3)
    segments = [
        (i, int(rng.integers(1, 50)), (float(rng.uniform(-180, 180)), float(rng.uniform(-80, 80))))
        for i in range(30)
    ]
    total = sum(count for _, count, _ in segments)
    for shards in (1, 2, 7, total):
        cut = cut_into_shards(segments, shards)
        seen = [
            (p.ordinal, row) for pieces in cut for p in pieces for row in range(p.start, p.stop)
        ]
        assert len(seen) == len(set(seen)) == total
        sizes = [sum(p.stop - p.start for p in shard) for shard in cut]
        assert max(sizes) - min(sizes) <= 1


def test_the_sample_is_uniform_over_segments():
    counts = [1000, 10, 0, 5000]

    class Segments:
        segments = tuple(SimpleNamespace(ordinal=ordinal) for ordinal in range(4))
        ledger = SimpleNamespace(
            entries={
                str(ordinal): SimpleNamespace(rows=count, segment_ordinal=ordinal)
                for ordinal, count in enumerate(counts)
            }
        )

        def __len__(self) -> int:
            return sum(counts)

        def live_rows(self, ordinal: int) -> np.ndarray[Any, Any]:
            return (ordinal << 32) + np.arange(counts[ordinal])

    archive: Any = Segments()
    drawn = np.zeros(4)
    for seed in range(40):
        rows = uniform_rows(archive, 600, seed)
        assert len(np.unique(rows)) == 600
        for ordinal, count in enumerate(counts):
            positions = rows[rows >> 32 == ordinal] - (ordinal << 32)
            assert not len(positions) or positions.max() < count
        drawn += np.bincount(rows >> 32, minlength=4)
    np.testing.assert_allclose(drawn / drawn.sum(), np.array(counts) / sum(counts), atol=0.01)
