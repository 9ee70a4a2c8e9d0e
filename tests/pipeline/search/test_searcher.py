"""Search through actors: exact, whole when one dies, honest when all copies are gone."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pipeline.indexing.driver import build_index, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search import fleet as search_fleet
from pipeline.search.fleet import ActorPool, Placement, running_nodes
from pipeline.search.hits import Hits
from pipeline.search.query import Query, combine
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError, NotFoundError, SearchUnavailableError
from storage.index import manifest as manifest_module
from storage.index.filter import Filter
from storage.index.manifest import read_manifest
from storage.index.plan import SearchPlan
from storage.index.quantizer import set_threads
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.shard_world import Rows, brute_force, passes

DIMENSION = 16
EXHAUSTIVE = 10**6
WHERE = Filter(bbox=(-120, -60, 60, 60), until="2024-08-01", labels=("water",))
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    set_threads(1)


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Rows]:
    """An archive of 600 rows and its index in four shards; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    for seed, scenes in enumerate(({"A": 150, "B": 150}, {"C": 300})):
        add_scenes(archive, scenes, seed)
    build_index(archive, index, IndexSpec(kind="ivf_flat", shards=4, nlist=4))
    return archive, index, live_rows(archive)


@pytest.fixture(scope="module")
def searcher(world: tuple[str, str, Rows]) -> Iterator[Searcher]:
    """A client whose shards are on two actors each."""
    client = Searcher.connect(world[1], replicas=2)
    yield client
    client.stop()


def queries(count: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).normal(size=(count, DIMENSION))


def assert_exact(hits: Hits, rows: Rows, asked: np.ndarray[Any, Any], where: Filter) -> None:
    keep = np.array([passes(where, rows, n) for n in range(len(rows["row"]))])
    scores, found = brute_force(rows, asked, hits.scores.shape[1], keep)
    np.testing.assert_array_equal(hits.scores, scores)
    np.testing.assert_array_equal(hits.rows, found)


@pytest.mark.parametrize("where", [Filter(), WHERE])
def test_actors_answer_like_brute_force_and_like_one_process(
    world: tuple[str, str, Rows], searcher: Searcher, where: Filter
):
    asked = queries()
    hits = searcher.search(asked, 25, where, nprobe=EXHAUSTIVE)
    assert_exact(hits, world[2], asked, where)
    local = Searcher.local(world[1]).search(asked, 25, where, nprobe=EXHAUSTIVE)
    assert local.to_arrow().equals(hits.to_arrow())
    assert (hits.coverage, hits.missing) == (1.0, ())
    assert hits.snapshot == read_manifest(world[1]).snapshot


def test_hits_become_a_table_of_ranked_rows(world: tuple[str, str, Rows], searcher: Searcher):
    rows = world[2]
    hits = searcher.search(queries(3), 4)
    table = hits.to_arrow().to_pydict()
    assert table["query"] == [0] * 4 + [1] * 4 + [2] * 4
    assert table["rank"] == [1, 2, 3, 4] * 3
    np.testing.assert_array_equal(table["score"], hits.scores.ravel())
    by_row = {row: n for n, row in enumerate(rows["row"].tolist())}
    for i, row in enumerate(table["row"]):
        n = by_row[row]
        assert table["tile_key"][i] == rows["tile_key"][n]
        assert table["scene"][i] == rows["scene"][n]
        assert list(table["bbox"][i].values()) == list(rows["bbox"][n])
        assert np.datetime64(table["datetime"][i].replace(tzinfo=None), "ms") == rows["datetime"][n]


def test_shards_out_of_range_are_never_asked(
    world: tuple[str, str, Rows], searcher: Searcher, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    gather = ActorPool.gather

    def spy(self: ActorPool, method: str, plan: SearchPlan, *arguments: Any) -> Any:
        asked.extend(plan.shards)
        return gather(self, method, plan, *arguments)

    monkeypatch.setattr(ActorPool, "gather", spy)
    searcher.search(queries(1), 3, Filter(until="2020-01-01"))
    assert asked == []
    oldest = min(searcher.manifest.shards, key=lambda shard: shard.since)
    hits = searcher.search(queries(1), 3, Filter(until=oldest.since))
    assert asked == [oldest.name]
    assert (hits.rows >= 0).sum() == 1


def test_killing_an_actor_in_the_middle_of_queries_loses_none(
    world: tuple[str, str, Rows], searcher: Searcher
):
    asked = queries(1)
    victim = searcher._backend.process_ids()[0]  # type: ignore[union-attr]
    truth = Searcher.local(world[1]).search(asked, 7, nprobe=EXHAUSTIVE)
    for number in range(200):
        if number == 50:
            os.kill(victim, signal.SIGKILL)
        hits = searcher.search(asked, 7, nprobe=EXHAUSTIVE)
        assert hits.coverage == 1.0
        np.testing.assert_array_equal(hits.rows, truth.rows)


def test_hits_that_travelled_have_their_metadata(searcher: Searcher):
    hits = searcher.search(queries(3), 7)
    travelled = pickle.loads(pickle.dumps(hits))
    keep = np.arange(7) % 2 == 0
    for one, other in ((travelled, hits), (travelled.where(keep, 3), hits.where(keep, 3))):
        assert one.to_arrow().equals(other.to_arrow())


def search_until_all_are_up(searcher: Searcher) -> ActorPool:
    pool = searcher._backend
    assert isinstance(pool, ActorPool)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for _ in range(pool.placement.replicas):  # requests take turns
            searcher.search(queries(1), 3)
        if not pool._down:
            break
        time.sleep(0.2)
    return pool


def test_a_killed_actor_comes_back_and_is_asked_again(searcher: Searcher):
    before = search_until_all_are_up(searcher).process_ids()  # another test may have killed one
    os.kill(before[0], signal.SIGKILL)
    after = search_until_all_are_up(searcher).process_ids()
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.fixture
def single(tmp_path: Path) -> Iterator[tuple[str, Searcher]]:
    """The folder of an index of two shards, and a client with one copy of each."""
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 60})
    build_index(archive, index, IndexSpec(shards=2))
    client = Searcher.connect(index)
    yield index, client
    client.stop()


def test_without_a_living_copy_the_answer_says_what_is_missing(single: tuple[str, Searcher]):
    index, client = single
    (process,) = client._backend.process_ids()  # type: ignore[union-attr]
    whole = client.search(queries(1), 3)
    impatient = Searcher.connect(index, recovery_s=0)
    os.kill(process, signal.SIGKILL)
    hits = impatient.search(queries(1), 3, require_complete=False)
    assert (hits.coverage, hits.missing) == (0.0, ("shard-00000", "shard-00001"))
    assert (hits.rows == -1).all()
    with pytest.raises(SearchUnavailableError, match="shard-00000 and 1 more of 2 shards did not"):
        impatient.search(queries(1), 3)
    again = client.search(queries(1), 3)  # this client waits until the actor is back
    np.testing.assert_array_equal(again.rows, whole.rows)


def test_a_stopped_fleet_starts_again_for_whoever_still_asks(single: tuple[str, Searcher]):
    index, client = single
    whole = client.search(queries(1), 3)
    Searcher.connect(index).stop()
    np.testing.assert_array_equal(client.search(queries(1), 3).rows, whole.rows)


def test_a_damaged_shard_is_named_at_once_and_answers_when_restored(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 60})
    manifest = build_index(archive, index, IndexSpec(shards=2))
    path = tmp_path / "index" / manifest.shards[1].index.path
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"?")
    client = Searcher.connect(index)
    try:
        with pytest.raises(SearchUnavailableError, match=r"shard-00001\.faiss has sha256"):
            client.search(queries(1), 3)
        path.write_bytes(good)
        deadline = time.monotonic() + 30
        while client.search(queries(1), 3, require_complete=False).coverage < 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        client.stop()


def test_tasks_search_with_a_client_that_was_sent_to_them(
    world: tuple[str, str, Rows], searcher: Searcher
):
    @ray.remote(num_cpus=0)
    def ask(client: Searcher) -> tuple[list[int], list[int]]:
        fleet = client._backend
        assert isinstance(fleet, ActorPool)
        hits = client.search(queries(), 5, nprobe=EXHAUSTIVE)
        return fleet.process_ids(), hits.rows.ravel().tolist()

    here = searcher.search(queries(), 5, nprobe=EXHAUSTIVE).rows.ravel().tolist()
    processes, there = ray.get(ask.remote(searcher))
    assert there == here
    assert processes == searcher._backend.process_ids()  # type: ignore[union-attr]


def test_an_update_does_not_disturb_who_searches_the_old_version(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 100, "B": 100})
    build_index(archive, index, IndexSpec(shards=2))
    old_rows = live_rows(archive)
    old = Searcher.connect(index)
    add_scenes(archive, {"B": 80}, seed=5, version="v2")
    update_index(index)
    new = Searcher.connect(index)
    try:
        asked = queries()
        assert_exact(old.search(asked, 20, nprobe=EXHAUSTIVE), old_rows, asked, Filter())
        assert_exact(new.search(asked, 20, nprobe=EXHAUSTIVE), live_rows(archive), asked, Filter())
    finally:
        old.stop()
        new.stop()


def test_actors_of_an_old_version_retire_when_idle_and_come_back_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search_fleet, "_RETIRE_AFTER_S", 3.0)
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 100})
    build_index(archive, index, IndexSpec(shards=2))
    old_rows = live_rows(archive)
    old = Searcher.connect(index)
    asked = queries()
    old.search(asked, 5)
    add_scenes(archive, {"B": 80}, seed=5)
    update_index(index)
    new = Searcher.connect(index)
    try:
        deadline = time.monotonic() + 60
        while running_nodes(old.index, old.manifest.version):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(running_nodes(new.index, new.manifest.version)) == 1
        assert_exact(old.search(asked, 20, nprobe=EXHAUSTIVE), old_rows, asked, Filter())
    finally:
        old.stop()
        new.stop()


def example(rows: Rows, *numbers: int) -> list[Query]:
    return [
        Query(vector=rows["embedding"][n].astype("f4"), label=f"row {n}", row=int(rows["row"][n]))
        for n in numbers
    ]


def test_an_answer_leaves_out_the_rows_that_its_query_is_made_of(
    world: tuple[str, str, Rows], searcher: Searcher
):
    rows = world[2]
    query = combine(example(rows, 3, 40), example(rows, 90))
    hits = searcher.search(query.vector, 30, nprobe=EXHAUSTIVE).rows[0].tolist()
    own = set(rows["row"][[3, 40, 90]].tolist())
    assert own & set(hits)
    for client in (searcher, Searcher.local(world[1])):
        answer = client.answer(query, 12, nprobe=EXHAUSTIVE)
        assert answer.rows[0].tolist() == [row for row in hits if row not in own][:12]
        assert answer.to_arrow()["row"].to_pylist() == answer.rows[0].tolist()
        assert answer.to_arrow()["rank"].to_pylist() == list(range(1, 13))
        whole = client.answer(query, 12, keep_own=True, nprobe=EXHAUSTIVE)
        assert whole.rows[0].tolist() == hits[:12]


def test_several_queries_are_answered_each_by_itself(world: tuple[str, str, Rows]):
    client, rows = Searcher.local(world[1]), world[2]
    several = [*example(rows, 5, 7), Query(vector=queries(1)[0].astype("f4"), label="vector")]
    together = client.answer(several, 6, WHERE, nprobe=EXHAUSTIVE)
    for number, query in enumerate(several):
        alone = client.answer(query, 6, WHERE, nprobe=EXHAUSTIVE)
        np.testing.assert_array_equal(together.rows[number], alone.rows[0])
        np.testing.assert_array_equal(together.scores[number], alone.scores[0])
    np.testing.assert_array_equal(together.columns["row"], together.rows[together.rows >= 0])


def test_an_answer_by_score_has_every_row_that_reaches_it_but_its_own(
    world: tuple[str, str, Rows],
):
    client, rows = Searcher.local(world[1]), world[2]
    (query,) = example(rows, 11)
    every = client.search(query.vector, 600, nprobe=EXHAUSTIVE)
    level = float(every.scores[0, 50])
    others = [row for row in every.rows[0].tolist() if row != query.row]
    answer = client.answer(query, min_score=level, nprobe=EXHAUSTIVE)
    count = int((every.scores[0] >= level).sum()) - 1
    assert answer.rows[0, :count].tolist() == others[:count]
    assert (answer.rows[0, count:] == -1).all()
    cut = client.answer(query, min_score=level, limit=8, nprobe=EXHAUSTIVE)
    assert (cut.rows[0].tolist(), cut.truncated) == (others[:8], (0,))


def test_an_answer_needs_a_query_and_a_hit(world: tuple[str, str, Rows]):
    client, rows = Searcher.local(world[1]), world[2]
    with pytest.raises(ConfigError, match="0 queries"):
        client.answer([])
    for settings in ({"k": 0}, {"min_score": 0.5, "limit": 0}):
        with pytest.raises(ConfigError, match="at most 0 hits each"):
            client.answer(example(rows, 3), **settings)


def test_a_local_searcher_reads_current_and_the_manifest_once(
    world: tuple[str, str, Rows], monkeypatch: pytest.MonkeyPatch
):
    reads: list[str] = []
    for name in ("current_version", "_manifest"):
        function = getattr(manifest_module, name)

        def counted(*arguments: Any, name: str = name, function: Any = function) -> Any:
            reads.append(name)
            return function(*arguments)

        monkeypatch.setattr(manifest_module, name, counted)
    Searcher.local(world[1]).search(queries(1), 3)
    assert sorted(reads) == ["_manifest", "current_version"]


def test_the_index_has_the_vectors_of_the_rows_that_match(
    world: tuple[str, str, Rows], searcher: Searcher
):
    rows = world[2]
    number = {row: n for n, row in enumerate(rows["row"].tolist())}
    for client in (searcher, Searcher.local(world[1])):
        table, vectors = client.find_vectors(WHERE, 20)
        assert table.equals(client.find(WHERE, 20))
        members = [number[row] for row in table["row"].to_pylist()]
        np.testing.assert_array_equal(vectors, rows["embedding"][members].astype("f4"))
        nothing = client.find_vectors(Filter(until="1999-01-01"))
        assert (len(nothing[0]), nothing[1].shape) == (0, (0, DIMENSION))


def test_a_plan_says_what_each_actor_does(world: tuple[str, str, Rows], searcher: Searcher):
    oldest = min(searcher.manifest.shards, key=lambda shard: shard.since)
    plan = searcher.explain(7, Filter(until=oldest.since), nprobe=2)
    assert plan.shards == (oldest.name,)
    assert [work.selected for work in plan.passes] == [1]
    whole = searcher.explain(7)
    assert sum(work.selected for work in whole.passes) == 600
    local = Searcher.local(world[1]).explain(7)
    assert (local.shards, local.nprobe) == (whole.shards, whole.nprobe)


def test_find_lists_the_rows_that_match(world: tuple[str, str, Rows], searcher: Searcher):
    rows = world[2]
    keep = [n for n in range(600) if passes(WHERE, rows, n)]
    found = searcher.find(WHERE)
    keys = sorted((rows["tile_key"][n], rows["scene"][n]) for n in keep)
    assert list(zip(found["tile_key"].to_pylist(), found["scene"].to_pylist(), strict=True)) == keys
    assert searcher.find(WHERE, limit=3)["tile_key"].to_pylist() == [key for key, _ in keys[:3]]


@pytest.mark.parametrize(
    ("vectors", "k", "where", "message"),
    [
        (np.ones((1, 5)), 3, Filter(), r"shape \(1, 5\), expected \(queries, 16\)"),
        (np.full((2, DIMENSION), np.inf), 3, Filter(), "query 0 is not finite"),
        (np.ones((1, DIMENSION)), 601, Filter(), "k is 601, but .* holds 600 rows"),
        (np.ones((1, DIMENSION)), 0, Filter(), "k is 0"),
        (np.ones((1, DIMENSION)), 3, Filter(labels=("sea",)), "no class is named 'sea'"),
    ],
)
def test_wrong_questions_are_named(
    world: tuple[str, str, Rows], vectors: Any, k: int, where: Filter, message: str
):
    with pytest.raises(ConfigError, match=message):
        Searcher.local(world[1]).search(vectors, k, where)


def test_missing_indexes_and_versions_are_named(world: tuple[str, str, Rows], tmp_path: Path):
    with pytest.raises(NotFoundError, match="no finished index at"):
        Searcher.connect(str(tmp_path))
    with pytest.raises(NotFoundError, match="has no version 0009-00000000; it has 0001-"):
        Searcher.connect(world[1], version="0009-00000000")


def test_replicas_of_a_shard_are_on_different_actors():
    placement = Placement(actors=5, replicas=3)
    for shard in range(20):
        assert len(set(placement.holders(shard))) == 3
    held = np.bincount([actor for shard in range(20) for actor in placement.holders(shard)])
    assert held.tolist() == [12] * 5


def test_actors_ask_for_something_without_which_ray_places_them_anywhere(searcher: Searcher):
    """What comes of it is in test_search_nodes.py, which is slow."""
    held = ray.cluster_resources()["memory"] - ray.available_resources()["memory"]
    assert held >= 2


@pytest.mark.parametrize("limit", [10_000, 20])
@pytest.mark.parametrize("where", [Filter(), WHERE])
def test_a_search_by_score_returns_every_row_that_reaches_it(
    world: tuple[str, str, Rows], searcher: Searcher, where: Filter, limit: int
):
    asked, rows = queries(4), world[2]
    keep = np.array([passes(where, rows, n) for n in range(600)])
    scores, found = brute_force(rows, asked, 600, keep)
    level = float(scores[0, min(100, int(keep.sum()) // 2)])
    hits = searcher.search_above(asked, level, where, limit=limit, nprobe=EXHAUSTIVE)
    local = Searcher.local(world[1])
    same = local.search_above(asked, level, where, limit=limit, nprobe=EXHAUSTIVE)
    assert same.to_arrow().equals(hits.to_arrow())
    reach = (scores >= np.float32(level)).sum(axis=1)
    assert hits.truncated == tuple(np.flatnonzero(reach > limit).tolist())
    for i, count in enumerate(np.minimum(reach, limit).tolist()):
        there = hits.rows[i] >= 0
        assert there.sum() == count
        np.testing.assert_array_equal(hits.rows[i, :count], found[i, :count])
        np.testing.assert_array_equal(hits.scores[i, :count], scores[i, :count])
    np.testing.assert_array_equal(hits.columns["row"], hits.rows[hits.rows >= 0])


def test_a_score_that_no_row_reaches_gives_no_hit(world: tuple[str, str, Rows]):
    hits = Searcher.local(world[1]).search_above(queries(3), 1.0)
    assert (hits.rows.shape, hits.truncated, len(hits.to_arrow())) == ((3, 0), (), 0)


@pytest.mark.parametrize(
    ("vectors", "score", "limit", "message"),
    [
        (np.ones((1, DIMENSION)), 1.5, 10, "score is 1.5"),
        (np.ones((1, DIMENSION)), float("nan"), 10, "score is nan"),
        (np.ones((1, DIMENSION)), 0.5, 0, "limit is 0"),
        (np.ones((0, DIMENSION)), 0.5, 10, "there is no query"),
    ],
)
def test_wrong_searches_by_score_are_named(
    world: tuple[str, str, Rows], vectors: Any, score: float, limit: int, message: str
):
    with pytest.raises(ConfigError, match=message):
        Searcher.local(world[1]).search_above(vectors, score, limit=limit)


def test_a_filter_that_leaves_out_shards_probes_as_widely_as_without_shards(tmp_path: Path):
    archive = str(tmp_path / "archive")
    create_archive(archive, DIMENSION)
    for seed in range(6):
        add_scenes(archive, {f"S{seed}": 500}, seed, days=400 * seed)
    found: dict[int, int] = {}
    where = Filter(since="2027-06-01")
    for shards in (1, 6):
        index = str(tmp_path / f"index-{shards}")
        build_index(archive, index, IndexSpec(kind="ivf_flat", shards=shards, nlist=64))
        client = Searcher.local(index)
        assert len(client.explain(10, where).shards) == max(shards // 2, 1)
        tuned = client.search(queries(50), 10, where, nprobe=2)
        exact = client.search(queries(50), 10, where, nprobe=EXHAUSTIVE)
        pairs = zip(tuned.rows.tolist(), exact.rows.tolist(), strict=True)
        found[shards] = sum(len(set(a) & set(b)) for a, b in pairs)
    assert found[1] < 500  # few lists are looked into
    assert abs(found[6] - found[1]) <= 5, found
