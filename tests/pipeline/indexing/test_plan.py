"""What an index may take: the memory of its shards, and of the processes that build them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.vectors import make_archive
from pipeline.indexing.driver import build_index, plan_build
from pipeline.indexing.pilot import fastest
from pipeline.indexing.plan import predicted_bytes
from pipeline.indexing.spec import IndexSpec
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from storage.index.kinds import Kind
from storage.index.pilot import Estimate, Pilot
from storage.index.quantizer import ShardIndexBuilder, ShardParameters, set_threads, train
from tests.support.shard_world import make_rows

DIMENSION, ROWS, LARGE_ROWS = 32, 24_000, 150_000
pytestmark = pytest.mark.usefixtures("ray_session")

# What a fresh process holds before and after it loads every shard, and searches.
LOAD = """
import json, os, sys
import numpy as np
from storage.index.files import VerifiedFiles
from storage.index.manifest import read_manifest
from tests.support.shard_world import Shards
def resident():
    with open("/proc/self/smaps_rollup") as lines:
        kinds = dict(line.split()[:2] for line in lines if line.endswith("kB\\n"))
    return 1024 * (int(kinds["Anonymous:"]))
index, mapped = sys.argv[1], sys.argv[2] == "mapped"
files, manifest = VerifiedFiles(index), read_manifest(index)
before = resident()
shards = Shards([files.load(s, mapped=mapped) for s in manifest.shards], manifest.nprobe)
taken = resident() - before
found = shards.search(np.eye(manifest.parameters.dimension)[:1], 10).rows
print(json.dumps([taken, found.tolist()]))
"""
BUILD = """
import json, sys
from dataclasses import replace
from pipeline.indexing.build import ShardBuilder, ShardJob
from pipeline.indexing.driver import plan_build
from pipeline.indexing.spec import IndexSpec
from pipeline.indexing.steps import draw_sample
from storage.archive.reader import Archive
from storage.index.files import file_entry
from storage.index.quantizer import train
from storage.location import Location
archive, index, limit = Archive.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plan = plan_build(archive.uri, IndexSpec(kind="ivf_sq8", builder_memory_bytes=limit))
sample, _ = draw_sample(archive, replace(plan, sample_rows=4000), 0)
def memory(name):
    with open("/proc/self/status") as lines:
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
data = train(sample, replace(plan.parameters, nlist=16))
trained = file_entry(Location(index), "v/trained.faiss", data)
builder = ShardBuilder(index=Location(index), version="v", archive=Location(archive.uri),
                       snapshot=archive.snapshot, trained=trained, keep_vectors=True)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = memory("VmRSS")
builder(ShardJob(name="shard-00000", pieces=plan.pieces[0]))
grown = memory("VmHWM") - before
print(json.dumps([memory("VmHWM"), grown, plan.builder_bytes, len(plan.pieces)]))
"""


def told(code: str, *arguments: str) -> list[int]:
    """What a Python process of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_archive(tmp_path_factory.mktemp("budget"), ROWS, DIMENSION, clusters=100)


def test_the_budget_is_never_exceeded_and_decides_what_is_stored(archive: str, tmp_path: Path):
    """From any memory to almost too little: counted bytes and those of a fresh process."""
    codes = []
    for per_row in (160, 105, 96, 84):
        budget, index = per_row * ROWS, str(tmp_path / str(per_row))
        manifest = build_index(archive, index, IndexSpec(memory_bytes=budget, nlist=32))
        assert manifest.measured_bytes <= manifest.predicted_bytes <= budget
        assert manifest.recall[str(manifest.nprobe)] >= 0.95 or manifest.advice
        codes.append(manifest.parameters.code_bytes)
    assert codes[0] > codes[-1]
    with pytest.raises(ConfigError, match="more than the 1680000 allowed"):
        plan_build(archive, IndexSpec(memory_bytes=70 * ROWS))


def test_a_process_takes_what_is_counted(archive: str, large: str, tmp_path: Path):
    """The difference of two indexes, so that what a process needs besides does not count."""
    taken, counted = [], []
    for number, uri in enumerate((archive, large)):
        spec = IndexSpec(kind="ivf_sq8", nlist=32, shards=1, rerank=False)
        manifest = build_index(uri, str(tmp_path / str(number)), spec)
        taken.append(told(LOAD, str(tmp_path / str(number)), "read")[0])
        counted.append(manifest.measured_bytes)
    columns = predicted_bytes(manifest.parameters, LARGE_ROWS - ROWS, 0, 0, reranks=True)
    assert 0.3 * columns < taken[1] - taken[0] <= counted[1] - counted[0]


def test_a_mapped_shard_takes_memory_only_where_it_is_touched(archive: str, tmp_path: Path):
    index = str(tmp_path)
    manifest = build_index(archive, index, IndexSpec(kind="ivf_sq8", nlist=64, mapped=True))
    read, found = told(LOAD, index, "read")
    mapped, same = told(LOAD, index, "mapped")
    assert same == found
    stored = ROWS * (DIMENSION + 8)
    assert read - mapped > 0.8 * stored
    assert manifest.mapped
    assert Searcher.local(index).search(np.eye(DIMENSION)[:1], 10).rows.tolist() == found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_archive(tmp_path_factory.mktemp("large"), LARGE_ROWS, DIMENSION, clusters=100)


def test_a_builder_stays_below_its_stated_memory(large: str, tmp_path: Path):
    """A shard of so many rows takes what the plan says, and a limit makes shards smaller."""
    free, none = (
        plan_build(large, IndexSpec(kind="ivf_sq8", shards=n)).builder_bytes for n in (1, 150)
    )
    limit = (free + none) // 2
    grown = []
    for asked in (limit, free):
        peak, more, predicted, shards = told(BUILD, large, str(tmp_path / str(asked)), str(asked))
        assert peak <= predicted <= asked
        assert (shards > 1) == (asked == limit)
        grown.append((more, predicted))
    (few, few_predicted), (many, many_predicted) = grown
    assert 0.2 < (many - few) / (many_predicted - few_predicted) <= 1
    with pytest.raises(ConfigError, match=r"at a time, more than the \d+ allowed"):
        plan_build(large, IndexSpec(kind="ivf_sq8", shards=1, builder_memory_bytes=limit))


KINDS_AND_SIZES: tuple[tuple[Kind, int], ...] = (
    ("ivf_flat", 0),
    ("ivf_sq8", 0),
    ("ivf_opq", 8),
    ("ivf_opq", 4),
    ("ivf_pq4", 4),
    ("ivf_rabitq", 4),
)


def estimate(kind: Kind, recall: float, row_us: float) -> Estimate:
    parameters = ShardParameters(kind=kind, dimension=16, nlist=64, pq_bytes=8)
    return Estimate(
        parameters=parameters,
        nprobe=4,
        rerank=2,
        recall=recall,
        recall_ceiling=recall,
        centres_us=1.0,
        row_us=row_us,
        candidate_us=0.1,
        build_s=1.0,
    )


def test_the_fastest_kind_that_reaches_the_recall_is_built():
    exact, close = estimate("ivf_flat", 1, 0.5), estimate("ivf_sq8", 0.99, 0.45)
    quick, poor = estimate("ivf_pq4", 0.98, 0.1), estimate("ivf_rabitq", 0.9, 0.01)
    among = [exact, close, poor, quick]
    assert fastest(among, 0.97, 10**6) is quick
    assert fastest(among, 0.985, 10**6) is exact  # nearly as fast as the other, and more exact
    assert fastest([close, poor], 0.995, 10**6) is close


def recall_of(parameters: ShardParameters, rows: np.ndarray) -> float:
    """Recall@10 of the other rows with every list probed, row by row."""
    shard = ShardIndexBuilder(train(rows, parameters))
    shard.add(np.arange(len(rows)), rows.astype(np.float16))
    shard.loaded.lists.nprobe = parameters.nlist
    own = np.arange(0, len(rows), len(rows) // 256)
    found = shard.loaded.whole.search(rows[own], 11)[1]
    truth = np.argsort(-(rows[own] @ rows.T), axis=1)[:, :11]
    shares = [
        len((set(a[:11]) & set(b)) - {row}) / 10
        for row, a, b in zip(own, found, truth, strict=True)
    ]
    return float(np.mean(shares))


def test_the_pilot_ranks_kinds_as_they_are():
    set_threads(1)
    rows = make_rows(4000, 16, 3)["embedding"].astype(np.float32)
    pilot = Pilot(rows, 4_000_000)
    found = {
        (kind, size, rerank): pilot.estimate(
            ShardParameters(kind=kind, dimension=16, nlist=64, pq_bytes=size, bits=size),
            0.97,
            4000,
            rerank=rerank,
        )
        for kind, size in KINDS_AND_SIZES
        for rerank in (False, True)
    }
    plain = {key[:2]: estimate.recall_ceiling for key, estimate in found.items() if not key[2]}
    coarse = ShardParameters(kind="ivf_opq", dimension=16, nlist=62, pq_bytes=4)
    assert plain["ivf_opq", 4] == pytest.approx(recall_of(coarse, rows), abs=0.005)
    assert plain["ivf_flat", 0] == 1 >= plain["ivf_sq8", 0] > 0.9
    assert plain["ivf_sq8", 0] > plain["ivf_opq", 8] > plain["ivf_opq", 4]
    for (kind, size, rerank), estimate in found.items():
        assert estimate.rerank == 1 or rerank
        assert estimate.recall >= (0.97 if rerank else min(plain[kind, size], 0.97))
        assert estimate.build_s > 0
        assert estimate.query_us(8_000_000) > estimate.query_us(4_000_000) > estimate.candidate_us


def test_columns_of_labels_count_too():
    p = ShardParameters(kind="ivf_sq8", dimension=64, nlist=8)
    with_labels = predicted_bytes(p, 1000, 17, 1, reranks=True)
    assert with_labels - predicted_bytes(p, 1000, 0, 1, reranks=True) == 3 * 1000
