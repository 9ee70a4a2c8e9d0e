"""What shards are trained to be: how vectors are rotated and stored, merged and mapped."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from storage.index.filter import Filter
from storage.index.kinds import KINDS, Kind
from storage.index.quantizer import (
    ShardIndexBuilder,
    ShardParameters,
    loaded,
    opq_rotation,
    quantization_error,
    set_threads,
    train,
)
from storage.index.shard import Shard
from tests.support.shard_world import Shards, fill, make_rows, make_shards

DIMENSION = 16


@pytest.fixture(autouse=True)
def one_thread():
    set_threads(1)


def parameters(kind: Kind, **others: int) -> ShardParameters:
    nlist = 1 if kind == "flat" else 7
    settings = {"pq_bytes": 8, "nlist": nlist} | others
    return ShardParameters(kind=kind, dimension=DIMENSION, **settings)


def vectors(count: int = 600, seed: int = 0) -> np.ndarray:
    return make_rows(count, DIMENSION, seed)["embedding"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 3])
def test_a_stored_vector_takes_the_bytes_that_the_plan_counts(kind: Kind, bits: int):
    p = parameters(kind, bits=bits)
    assert loaded(train(vectors().astype(np.float32), p)).lists.code_size == p.code_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_merged_shards_propose_what_one_shard_proposes(kind: Kind, tmp_path: Path):
    rows, p = vectors(), parameters(kind)
    trained = train(rows.astype(np.float32), p)
    whole = loaded(fill(trained, np.arange(500), rows[:500], 500))
    halves = [fill(trained, np.arange(300), rows[i : i + 300], 300) for i in (0, 300)]
    merged = ShardIndexBuilder(trained)
    merged.merge_from(halves[0], np.arange(300))
    merged.merge_from(halves[1], np.r_[np.arange(300, 500), np.full(100, -1)])
    assert merged.loaded.list_rows.tolist() == [
        whole.lists.get_list_size(i) for i in range(whole.lists.nlist)
    ]
    merged.save(tmp_path / "merged.faiss", 500)
    back = loaded(tmp_path / "merged.faiss")
    queries = np.ascontiguousarray(vectors(20, 5), dtype=np.float32)
    scores = np.full((2, 20, 500), np.nan, dtype=np.float32)
    for index, score_of_row in zip((whole, back), scores, strict=True):
        index.lists.nprobe = index.lists.nlist
        found, ids = index.whole.search(queries, 500)
        np.put_along_axis(score_of_row, ids, found, axis=1)
    assert np.isfinite(scores).all()
    # Turned in batches of other sizes, vectors may differ in the last bit on some CPUs.
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-5)


def test_a_rotation_spreads_the_variance_and_keeps_scores():
    rng = np.random.default_rng(0)
    residuals = (rng.normal(size=(4000, 12)) * np.geomspace(3, 0.01, 12)).astype(np.float32)
    rotation = opq_rotation(residuals, 4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-5)
    share = np.cov((residuals @ rotation.T).T).diagonal().reshape(4, 3).prod(axis=1)
    axes = np.cov(residuals.T).diagonal().reshape(4, 3).prod(axis=1)
    assert share.max() / share.min() < 100 < axes.max() / axes.min()


def test_a_rotated_product_quantizer_stores_vectors_closer_than_a_plain_one():
    rng = np.random.default_rng(1)
    square = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    spread = rng.normal(size=(6000, DIMENSION)) * np.geomspace(1, 0.05, DIMENSION) @ square
    sample = (spread / np.linalg.norm(spread, axis=1, keepdims=True)).astype(np.float32)
    plain, rotated = (
        quantization_error(train(sample[:4000], parameters(kind, pq_bytes=4)), sample[4000:])
        for kind in ("ivf_pq", "ivf_opq")
    )
    assert rotated.distortion < 0.9 * plain.distortion
    assert rotated.distance == pytest.approx(plain.distance, abs=1e-3)


def test_k_means_leaves_no_list_empty_when_rows_differ():
    rows = vectors(2000).astype(np.float32)
    trained = train(rows, parameters("ivf_flat", nlist=32))
    filled = ShardIndexBuilder(trained)
    filled.add(np.arange(2000), rows.astype(np.float16))
    assert filled.loaded.list_rows.min() > 0


def test_a_mapped_shard_answers_like_a_read_one(tmp_path: Path):
    rows = make_rows(900, DIMENSION)
    for kind in KINDS:
        (read,) = make_shards(rows, parameters(kind), exact_vectors=True)
        order = np.argsort(np.argsort(read.sidecar.row))
        embedding = rows["embedding"][np.argsort(rows["row"])][order]
        path = tmp_path / f"{kind}.faiss"
        trained = train(make_rows(1024, DIMENSION, 11)["embedding"].astype("f4"), parameters(kind))
        filled = ShardIndexBuilder(trained)
        filled.add(np.arange(900), embedding)
        filled.save(path, 900)
        mapped = Shard("shard-00000", path, read.sidecar, embedding)
        queries = np.random.default_rng(2).normal(size=(6, DIMENSION))
        where = Filter(max_cloud_fraction=0.5)
        for k, nprobe in ((5, 2), (40, 10**6)):
            one, two = (
                Shards([s], rerank=4).search(queries, k, where, nprobe) for s in (read, mapped)
            )
            np.testing.assert_array_equal(one.rows, two.rows)
            np.testing.assert_array_equal(one.scores, two.scores)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_trains_fills_and_searches_like_the_cpu(kind: Kind, monkeypatch):
    """Same rows at exhaustive search; rows may change lists only where centres are equally near."""
    if not faiss.get_num_gpus():
        pytest.skip("the installed FAISS sees no GPU")
    rows, queries = make_rows(4000, DIMENSION), np.random.default_rng(3).normal(size=(50, 16))
    p = parameters(kind, nlist=1 if kind == "flat" else 32)
    answers, sizes = [], []
    for gpus in (faiss.get_num_gpus(), 0):
        monkeypatch.setattr("storage.index.gpu.faiss.get_num_gpus", lambda n=gpus: n)
        trained = train(rows["embedding"].astype(np.float32), p)
        (shard,) = make_shards(rows, p, exact_vectors=True, trained=trained)
        sizes.append(shard.list_rows)
        answers.append(Shards([shard], nprobe=8, rerank=16).search(queries, 10))
        exhaustive = Shards([shard], rerank=16).search(queries, 10, nprobe=10**6)
        answers[-1] = (answers[-1], exhaustive)
    (tuned, whole), (tuned_cpu, whole_cpu) = answers
    np.testing.assert_array_equal(whole.rows, whole_cpu.rows)
    same = [len(set(a) & set(b)) / 10 for a, b in zip(tuned.rows, tuned_cpu.rows, strict=True)]
    assert np.mean(same) >= 0.99
    assert np.abs(np.subtract(*sizes)).sum() <= 0.02 * 4000
