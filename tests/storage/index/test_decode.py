"""Stored rows are read back as FAISS itself reconstructs them, wherever they lie."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from storage.errors import CorruptIndexError
from storage.index import kernels
from storage.index.kinds import Kind
from storage.index.quantizer import (
    DecodedVectors,
    ShardIndex,
    ShardIndexBuilder,
    ShardParameters,
    codes_of,
    loaded,
    train,
)
from storage.index.ranking import canonical_queries, exact_scores
from storage.index.vectors import Codes, HalfVectors

DIMENSION, ROWS = 24, 500


def filled(kind: Kind, rows: int, tmp_path: Path, mapped: bool) -> ShardIndex:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(ROWS, DIMENSION)).astype(np.float16)
    nlist = 1 if kind == "flat" else 9
    parameters = ShardParameters(kind=kind, dimension=DIMENSION, nlist=nlist, pq_bytes=8)
    shard = ShardIndexBuilder(train(vectors.astype(np.float32), parameters))
    shard.add(rng.permutation(rows), vectors[:rows])
    if not mapped:
        return shard.loaded
    shard.save(tmp_path / "shard.faiss", rows)
    return loaded(tmp_path / "shard.faiss")


def vectors_of(shard: ShardIndex) -> HalfVectors | DecodedVectors:
    if shard.lossy:
        return DecodedVectors(shard, shard.lists)
    return HalfVectors(codes_of(shard.lists))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_opq"])
def test_rows_are_what_faiss_reconstructs(kind: Kind, mapped: bool, tmp_path: Path):
    shard = filled(kind, ROWS, tmp_path, mapped)
    rows = vectors_of(shard)
    asked = np.random.default_rng(0).integers(0, ROWS, 2000)
    shard.lists.make_direct_map()
    expected = shard.canonical(shard.lists.reconstruct_batch(asked))
    np.testing.assert_array_equal(rows[asked], expected)
    assert rows[asked[:0]].shape == (0, DIMENSION)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(count: int, tmp_path: Path):
    rows = vectors_of(filled("ivf_flat", count, tmp_path, mapped=False))
    assert rows[np.arange(count)].shape == (count, DIMENSION)


def test_a_missing_row_is_found_before_memory_is_read(tmp_path: Path):
    shard = filled("ivf_flat", 0, tmp_path, mapped=False)
    whole = ShardIndexBuilder(np.asarray(faiss.serialize_index(shard.whole)))
    whole.add(np.array([0, 2, 2]), np.ones((3, DIMENSION), np.float16))
    with pytest.raises(CorruptIndexError, match="lacks rows"):
        codes_of(whole.loaded.lists)


def test_scores_of_float16_rows_are_exact_wherever_they_lie():
    rng = np.random.default_rng(5)
    parts = [(rng.normal(size=(n, DIMENSION)) / 5).astype(np.float16) for n in (7, 0, 40, 1)]
    parts[0][0], parts[2][3] = -(2.0**-24), 2.0**-15  # subnormal
    queries = canonical_queries(rng.normal(size=(9, DIMENSION)), DIMENSION)
    rows = np.concatenate(parts)
    positions = rng.integers(-1, len(rows), (9, 50))
    positions[0] = -1
    expected = exact_scores(queries, positions, lambda asked: rows[asked].astype(np.float64))
    stored = HalfVectors.stored(parts)
    np.testing.assert_array_equal(stored.scores(queries, positions), expected)
    stored.compile()
    np.testing.assert_array_equal(stored.scores(queries, positions), expected)

    # A file may put the codes at an odd address, in any order.
    order, width = rng.permutation(len(rows)), 2 * DIMENSION
    memory = np.zeros(len(rows) * width + 1, np.uint8)
    memory[1:] = rows[order].view(np.uint8).ravel()
    first = memory.ctypes.data + 1
    table = np.argsort(order) * width
    scattered = HalfVectors(Codes(memory, width, first, first + len(memory) - 1, table=table))
    scattered.compile()
    asked = positions[:, ::2]  # not contiguous
    np.testing.assert_array_equal(scattered.scores(queries, asked), expected[:, ::2])
    np.testing.assert_array_equal(scattered[np.arange(len(rows))], rows)
    assert scattered.scores(queries, positions[:, :0]).shape == (9, 0)


def test_scores_need_no_folder_for_compiled_code(tmp_path: Path):
    """A container may let its user write nowhere."""
    package = Path(kernels.__file__).parents[1]
    copied = tmp_path / "storage"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "index" / "__pycache__").write_text("not a folder")
    program = "import storage.index.kernels as k; print(k.half_scores.stats.cache_path, k.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": os.devnull}
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["None", str(copied / "index" / "kernels.py")]
