"""Stored rows are read back as FAISS itself reconstructs them, wherever they lie."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from storage.errors import CorruptIndexError
from storage.index.kinds import Kind
from storage.index.quantizer import (
    CodeDecoder,
    ShardIndex,
    ShardIndexBuilder,
    ShardParameters,
    loaded,
    train,
)

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


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_opq"])
def test_rows_are_what_faiss_reconstructs(kind: Kind, mapped: bool, tmp_path: Path):
    shard = filled(kind, ROWS, tmp_path, mapped)
    rows = CodeDecoder(shard.lists)
    asked = np.random.default_rng(0).integers(0, ROWS, 2000)
    shard.lists.make_direct_map()
    np.testing.assert_array_equal(rows[asked], shard.lists.reconstruct_batch(asked))
    assert rows[asked[:0]].shape == (0, DIMENSION)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(count: int, tmp_path: Path):
    rows = CodeDecoder(filled("ivf_flat", count, tmp_path, mapped=False).lists)
    assert rows[np.arange(count)].shape == (count, DIMENSION)


def test_a_missing_row_is_found_before_memory_is_read(tmp_path: Path):
    shard = filled("ivf_flat", 0, tmp_path, mapped=False)
    whole = ShardIndexBuilder(np.asarray(faiss.serialize_index(shard.whole)))
    whole.add(np.array([0, 2, 2]), np.ones((3, DIMENSION), np.float16))
    with pytest.raises(CorruptIndexError, match="lacks rows"):
        CodeDecoder(whole.loaded.lists)
