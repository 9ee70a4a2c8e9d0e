import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.index.filter import Filter
from storage.index.kinds import ESTIMATING, KINDS, Kind
from storage.index.plan import SearchPlan
from storage.index.quantizer import ShardParameters, set_threads, train
from storage.index.ranking import canonical_queries
from storage.index.search import ShardSet
from storage.index.shard import Shard, ShardGroup
from tests.support.shard_world import (
    CLASSES,
    Shards,
    brute_force,
    fill,
    make_rows,
    make_shards,
    passes,
)

DIMENSION = 16
EVERYTHING = 10**6


@pytest.fixture(autouse=True)
def one_thread():
    set_threads(1)  # OpenMP threads that wait for each other on a busy machine are slow


def parameters(kind: Kind, nlist: int = 7) -> ShardParameters:
    return ShardParameters(
        kind=kind, dimension=DIMENSION, nlist=1 if kind == "flat" else nlist, pq_bytes=8
    )


filters = st.builds(
    Filter,
    bbox=st.sampled_from([None, (-90.0, -40.0, 100.0, 60.0), (150.0, -80.0, -150.0, 80.0)]),
    polygon=st.sampled_from([None, "POLYGON((-120 -70, 170 -50, 90 80, -120 -70))"]),
    since=st.sampled_from([None, "2023-05-01"]),
    until=st.sampled_from([None, "2024-06-30"]),
    max_cloud_fraction=st.sampled_from([None, 0.6]),
    scenes=st.sampled_from([(), ("S1", "S2", "S3", "S9"), ("absent",)]),
    labels=st.sampled_from([(), ("water",), ("water", "crops")]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(300, 420),
    distinct=st.sampled_from([None, 40, 3]),
    kind=st.sampled_from(KINDS),
    exact_vectors=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    where=filters,
    k=st.sampled_from([1, 5, 60, 500]),
    dead_every=st.sampled_from([0, 3]),
)
def test_exhaustive_search_is_brute_force_for_any_shards(
    seed, count, distinct, kind, exact_vectors, cuts, where, k, dead_every
):
    exact_vectors |= kind in ESTIMATING
    rows = make_rows(count, DIMENSION, seed, distinct)
    dead = rows["row"][::dead_every] if dead_every else None
    world = (rows, parameters(kind))
    one = Shards(make_shards(*world, (), exact_vectors, dead))
    several = make_shards(*world, cuts, exact_vectors, dead)
    many = Shards(several)
    grouped = Shards(several, groups={shard.name: n % 2 for n, shard in enumerate(several)})
    queries = np.random.default_rng(seed).normal(size=(3, DIMENSION))
    queries[0] = rows["embedding"][0]
    keep = np.array([passes(where, rows, n) for n in range(count)])
    keep &= True if dead is None else ~np.isin(rows["row"], dead)

    stored = {**rows}
    if kind in ("ivf_sq8", "ivf_opq", "ivf_pq") and not exact_vectors:
        (shard,) = one.shards.values()  # the truth is over what the shard stores
        back = np.argsort(shard.sidecar.row)[np.argsort(np.argsort(rows["row"]))]
        stored["embedding"] = ShardGroup([shard]).decode(np.arange(count))[back]
    scores, found = brute_force(stored, queries, k, keep)
    # a row id that is repeated under one (tile, scene) may come in either order: compare keys
    for shards in (one, many, grouped):
        answer = shards.search(queries, k, where, EVERYTHING)
        np.testing.assert_array_equal(answer.scores, scores)
        assert _keys(rows, answer.rows) == _keys(rows, found)
        present = answer.rows >= 0
        columns = shards.columns(answer.places[present])
        np.testing.assert_array_equal(columns["row"], answer.rows[present])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**16),
    distinct=st.sampled_from([None, 60, 5, 1]),
    kind=st.sampled_from([kind for kind in KINDS if kind != "flat"]),
    cuts=st.lists(st.integers(0, 420), max_size=4),
    k=st.sampled_from([1, 5, 30]),
    rerank=st.sampled_from([1, 2, 8]),
    nprobe=st.sampled_from([1, 3]),
    where=filters,
    dead_every=st.sampled_from([0, 3]),
)
def test_shards_groups_and_batches_do_not_change_what_a_few_lists_give(
    seed, distinct, kind, cuts, k, rerank, nprobe, where, dead_every
):
    rows = make_rows(420, DIMENSION, seed, distinct)
    dead = rows["row"][::dead_every] if dead_every else None
    several = make_shards(rows, parameters(kind), cuts, True, dead)
    whole = make_shards(rows, parameters(kind), (), True, dead)
    worlds = (
        Shards(whole, nprobe, rerank),
        Shards(several, nprobe, rerank),
        Shards(several, nprobe, rerank, {shard.name: n % 3 for n, shard in enumerate(several)}),
    )
    queries = np.random.default_rng(seed).normal(size=(9, DIMENSION))
    queries[0] = rows["embedding"][0]
    truth = worlds[0].search(queries, k, where)
    for world in worlds:
        together = world.search(queries, k, where)
        alone = [world.search(query, k, where) for query in queries]
        np.testing.assert_array_equal(together.scores, truth.scores)
        assert _keys(rows, together.rows) == _keys(rows, truth.rows)
        np.testing.assert_array_equal(np.concatenate([a.scores for a in alone]), truth.scores)
        assert _keys(rows, np.concatenate([a.rows for a in alone])) == _keys(rows, truth.rows)


def _keys(rows, found):
    names = {
        row: (rows["tile_key"][n], rows["scene"][n]) for n, row in enumerate(rows["row"].tolist())
    }
    return [names.get(row) for row in found.reshape(-1).tolist()]


def test_ties_across_shards_come_in_key_order_even_when_all_vectors_are_equal():
    rows = make_rows(400, DIMENSION, distinct=1)
    answers = [
        Shards(make_shards(rows, parameters("ivf_flat", 1), cuts)).search(
            rows["embedding"][:1].astype(np.float32), 50, nprobe=1
        )
        for cuts in ((), (100, 200, 300))
    ]
    keys = sorted(zip(rows["tile_key"], rows["scene"], strict=True))[:50]
    for answer in answers:
        assert _keys(rows, answer.rows) == keys


def test_scores_closer_than_float32_can_tell_are_ordered_exactly():
    rows = make_rows(300, 128, distinct=1)
    rng = np.random.default_rng(0)
    bits = rows["embedding"].view(np.uint16)
    small_values = np.abs(rows["embedding"]) < 0.02
    bits += (small_values & (rng.random(bits.shape) < 0.1)).astype(np.uint16)  # next float16
    small = ShardParameters(kind="flat", dimension=128)
    queries = rng.normal(size=(20, 128))
    queries += 20 * rows["embedding"][0]
    answer = Shards(make_shards(rows, small, (150,))).search(queries, 5)
    scores, found = brute_force(rows, queries, 5, np.ones(300, bool))
    np.testing.assert_array_equal(answer.scores, scores)
    np.testing.assert_array_equal(answer.rows, found)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_does_not_change_a_bit_of_a_score(kind):
    rows = make_rows(600, DIMENSION)
    shards = Shards(make_shards(rows, parameters(kind), (200,), kind in ESTIMATING))
    queries = np.random.default_rng(5).normal(size=(70, DIMENSION))
    together = shards.search(queries, 10, nprobe=EVERYTHING)
    for i in range(0, 70, 7):
        alone = shards.search(queries[i], 10, nprobe=EVERYTHING)
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])


@pytest.mark.parametrize(("kind", "exact_vectors"), [("ivf_flat", False), ("ivf_pq", True)])
@pytest.mark.parametrize("selectivity", [0.01, 0.1, 0.5])
def test_tuned_search_keeps_its_recall_under_a_selective_filter(kind, exact_vectors, selectivity):
    count = 6_000
    rows = make_rows(count, DIMENSION, seed=2)
    shards = Shards(
        make_shards(rows, parameters(kind, 32), (2500,), exact_vectors), nprobe=8, rerank=16
    )
    where = Filter(max_cloud_fraction=selectivity)
    keep = rows["cloud_fraction"] <= np.float32(selectivity)
    queries = rows["embedding"][:40].astype(np.float32)
    _, truth = brute_force(rows, queries, 10, keep)
    found = shards.search(queries, 10, where).rows
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert recall >= 0.95
    assert set(found.flat) <= {*rows["row"][keep], -1}


@pytest.mark.parametrize(("kind", "exact_vectors"), [("ivf_flat", False), ("ivf_pq", True)])
@pytest.mark.parametrize("cloud", [1.0, 0.3])
def test_k_rows_come_back_whenever_there_are_k(kind, exact_vectors, cloud):
    rows = make_rows(600, DIMENSION)
    dead = rows["row"][100:480]  # most lists are nearly empty
    shards = Shards(
        make_shards(rows, parameters(kind, 64), (300,), exact_vectors, dead), nprobe=1, rerank=2
    )
    where = Filter(max_cloud_fraction=cloud)
    live = ~np.isin(rows["row"], dead) & (rows["cloud_fraction"] <= cloud)
    for k in (3, 40, 150, 400):
        found = shards.search(np.random.default_rng(0).normal(size=(9, DIMENSION)), k, where)
        there = min(k, int(live.sum()))
        assert ((found.rows >= 0).sum(axis=1) == there).all()
        columns = shards.columns(found.places[found.rows >= 0])
        np.testing.assert_array_equal(columns["row"], found.rows[found.rows >= 0])
        assert (np.diff(found.scores[:, :there], axis=1) <= 0).all()
        assert all(len(set(line)) == there for line in found.rows[:, :there].tolist())


def test_columns_tell_the_truth_about_each_hit():
    rows = make_rows(300, DIMENSION)
    shards = Shards(make_shards(rows, parameters("flat"), (100, 150)))
    answer = shards.search(rows["embedding"][:4].astype(np.float32), 5)
    columns = shards.columns(answer.places.ravel())
    by_row = {row: n for n, row in enumerate(rows["row"].tolist())}
    source = [by_row[row] for row in columns["row"].tolist()]
    for name in ("scene", "tile", "bbox", "datetime", "cloud_fraction", "labels"):
        np.testing.assert_array_equal(columns[name], rows[name][source])


def test_a_subset_of_shards_answers_for_its_rows_only():
    rows = make_rows(300, DIMENSION)
    shards = Shards(make_shards(rows, parameters("flat"), (120,)))
    answer = shards.search(np.eye(DIMENSION)[:2], 5, names=["shard-00001"])
    assert np.isin(answer.rows, rows["row"][120:]).all()
    with pytest.raises(NotFoundError, match="shard-00009"):
        shards.search(np.eye(DIMENSION)[:2], 5, names=["shard-00009"])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((2, 5)), r"shape \(2, 5\), expected \(queries, 16\)"),
        (np.full((1, DIMENSION), np.nan), "query 0 is not finite"),
        (np.zeros((1, DIMENSION)), "query 0 has length 0"),
    ],
)
def test_unusable_queries_are_named(queries, message):
    with pytest.raises(ConfigError, match=message):
        canonical_queries(queries, DIMENSION)


def test_too_few_rows_to_train_on_is_an_error():
    rows = make_rows(200, DIMENSION)["embedding"].astype(np.float32)
    with pytest.raises(ConfigError, match="needs at least 256 rows to train on, got 200"):
        train(rows, parameters("ivf_pq"))


def test_training_and_filling_are_deterministic():
    rows = make_rows(500, DIMENSION)["embedding"]
    for kind in KINDS:
        files = []
        for _ in range(2):
            trained = train(rows.astype(np.float32), parameters(kind))
            files.append(fill(trained, np.arange(500), rows, 500).tobytes())
        assert files[0] == files[1]


def test_files_of_different_shards_do_not_load_together():
    rows = make_rows(400, DIMENSION)
    one, other = make_shards(rows, parameters("flat"), (150,))
    trained = train(rows["embedding"].astype(np.float32), parameters("flat"))
    data = fill(trained, np.arange(150), rows["embedding"][:150], 150)
    assert Shard("shard-00000", data, one.sidecar).rows == 150
    with pytest.raises(CorruptIndexError, match=r"\[150, 250\] rows"):
        Shard("shard-00000", data, other.sidecar)


def test_an_unknown_class_is_named_with_the_nearest_one():
    rows = make_rows(300, DIMENSION)
    shards = Shards(make_shards(rows, parameters("flat")))
    with pytest.raises(ConfigError, match="did you mean 'forest'"):
        shards.search(np.eye(DIMENSION)[:1], 5, Filter(labels=("forrest",)))
    assert CLASSES[1] == "forest"


@pytest.mark.parametrize(
    ("kind", "exact_vectors"), [("flat", False), ("ivf_flat", False), ("ivf_pq", True)]
)
def test_stored_vectors_are_those_of_the_archive(kind, exact_vectors):
    rows = make_rows(600, DIMENSION)
    deleted = rows["row"][::3]
    shards = make_shards(rows, parameters(kind), (200,), exact_vectors, deleted)
    where = Filter(max_cloud_fraction=0.5)
    plan = SearchPlan(k=600, where=where, shards=tuple(shard.name for shard in shards))
    found = ShardSet(shards).find(plan, vectors=True)
    number = {row: n for n, row in enumerate(rows["row"].tolist())}
    members = [number[row] for row in found["row"].tolist()]
    keep = (rows["cloud_fraction"] <= np.float32(0.5)) & ~np.isin(rows["row"], deleted)
    assert sorted(members) == np.flatnonzero(keep).tolist()
    np.testing.assert_array_equal(found["vector"], rows["embedding"][members].astype(np.float32))
