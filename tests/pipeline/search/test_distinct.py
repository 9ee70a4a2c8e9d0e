"""One hit for each place: exact, in the order of hits, with every date inside."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.indexing.driver import build_index, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.batch import search_many
from pipeline.search.query import Query
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from storage.index.filter import Filter
from storage.index.manifest import read_manifest
from storage.index.pairs import ORDINARY, PairScores
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.indexing_world import in_this_process, patch_out_ray
from tests.support.shard_world import Rows, brute_force, passes

__all__ = ["in_this_process"]
DIMENSION = 16
EXHAUSTIVE = 10**6
SCENES = ("A", "B", "C", "D", "E")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, Rows]:
    """Forty places on five days; two thirds of a vector are the place's, so its dates are alike."""
    folder = tmp_path_factory.mktemp("places")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    rng = np.random.default_rng(5)
    places = rng.normal(size=(40, DIMENSION))
    for day, name in enumerate(SCENES):
        vectors = (2 * places + rng.normal(size=places.shape)).astype(np.float32)
        add_scenes(archive, {name: 40}, seed=0, version=name, embedding=vectors, days=day)
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        build_index(archive, index, IndexSpec(kind="ivf_flat", shards=3, nlist=4))
    return Searcher.local(index), live_rows(archive)


def _queries(rows: Rows, count: int = 5) -> list[Query]:
    vectors = np.random.default_rng(8).normal(size=(count, DIMENSION)).astype(np.float32)
    own = Query(
        vector=rows["embedding"][7].astype(np.float32), label="own", row=int(rows["row"][7])
    )
    return [*(Query(vector=vector, label="random") for vector in vectors), own]


def _truth(
    rows: Rows, query: Query, k: int, where: Filter
) -> list[tuple[str, list[tuple[float, str]]]]:
    """The places in order, each with the scores and the scenes of its dates in order."""
    keep = [
        passes(where, rows, n) and rows["row"][n] not in query.rows for n in range(len(rows["row"]))
    ]
    scores, found = brute_force(rows, query.vector[None], len(keep), np.array(keep))
    number = {row: n for n, row in enumerate(rows["row"].tolist())}
    dates: dict[str, list[tuple[float, str]]] = {}
    for score, row in zip(scores[0].tolist(), found[0].tolist(), strict=True):
        if row >= 0:
            one = number[row]
            dates.setdefault(rows["tile_key"][one], []).append((score, rows["scene"][one]))
    return list(dates.items())[:k]


@pytest.mark.parametrize("k", [1, 7, 40, 60])
@pytest.mark.parametrize("where", [Filter(), Filter(scenes=("B", "D", "E"), labels=("water",))])
def test_places_and_dates_are_those_of_brute_force(
    world: tuple[Searcher, Rows], where: Filter, k: int
):
    searcher, rows = world
    queries = _queries(rows)
    hits = searcher.answer(queries, k, where, distinct="place", nprobe=EXHAUSTIVE)
    found: dict[int, list[Any]] = {number: [] for number in range(len(queries))}
    for hit in hits.to_arrow().to_pylist():
        dates = [(date["score"], date["scene"]) for date in hit["dates"]]
        assert (hit["score"], hit["scene"]) == dates[0]
        assert hit["rank"] == len(found[hit["query"]]) + 1
        found[hit["query"]].append((hit["tile_key"], dates))
    assert list(found.values()) == [_truth(rows, query, k, where) for query in queries]


def test_a_place_has_every_date_that_passes_whatever_its_score(world: tuple[Searcher, Rows]):
    searcher, rows = world
    query = _queries(rows)[0]
    hits = searcher.answer(query, distinct="place", min_score=0.2, nprobe=EXHAUSTIVE)
    table = hits.to_arrow().to_pylist()
    truth = _truth(rows, query, 40, Filter())
    assert [hit["tile_key"] for hit in table] == [key for key, dates in truth if dates[0][0] >= 0.2]
    assert {len(hit["dates"]) for hit in table} == {5}
    some = searcher.answer(query, distinct="place", min_score=0.0, limit=3, nprobe=EXHAUSTIVE)
    assert (len(some.to_arrow()), some.truncated) == (3, (0,))
    assert hits.truncated == ()


def test_hits_of_places_travel_and_are_written_block_by_block(world: tuple[Searcher, Rows]):
    searcher, rows = world
    queries = _queries(rows)
    hits = searcher.answer(queries, 3, distinct="place")
    again = pickle.loads(pickle.dumps(hits))
    assert again.to_arrow().equals(hits.to_arrow())

    def answer(block: Any) -> Any:
        return searcher.answer(block, 3, distinct="place")

    (table,) = search_many(queries, answer, 3)
    assert table["dates"].to_pylist() == hits.to_arrow()["dates"].to_pylist()


def test_no_match_is_no_place_and_a_wrong_word_is_refused(world: tuple[Searcher, Rows]):
    searcher, rows = world
    query = _queries(rows)[0]
    assert (
        len(searcher.answer(query, 5, Filter(until="1990-01-01"), distinct="place").to_arrow()) == 0
    )
    with pytest.raises(ConfigError, match="distinct is 'scene'"):
        searcher.answer(query, 5, distinct="scene")


def test_a_score_has_a_share_and_noise_is_like_nothing(world: tuple[Searcher, Rows]):
    searcher, rows = world
    vectors = rows["embedding"].astype(np.float32)
    products = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    own = Query(vector=vectors[7], label="own", row=int(rows["row"][7]))
    hits = searcher.answer(own, 3)
    (score, *_), (share, *_) = hits.scores[0].tolist(), hits.to_arrow()["closer_than"].to_pylist()
    assert share == pytest.approx((products < score).mean(), abs=0.005)
    assert share > ORDINARY
    assert hits.ordinary == ()
    away = -vectors.mean(axis=0)
    assert searcher.answer([own, Query(vector=away, label="away")], 3).ordinary == (1,)


def test_an_old_index_answers_without_shares_until_it_is_updated(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 30})
    with monkeypatch.context() as patch:
        patch.setattr(PairScores, "of", classmethod(lambda *_: None))
        old = build_index(archive, index)
    assert old.pairs is None
    hits = Searcher.local(index).search(np.eye(DIMENSION)[:1], 2)
    assert (hits.closer_than, hits.ordinary) == (None, ())
    assert hits.to_arrow()["closer_than"].to_pylist() == [None, None]
    new = update_index(index)
    assert new.snapshot == old.snapshot
    assert read_manifest(index).pairs == new.pairs
    assert new.pairs is not None
    assert new.pairs.rows == 30
    assert update_index(index).version == new.version
