"""The weight between appearance and labels at query time, in indexes that were built once."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import skysift
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.batch import search_many
from pipeline.search.detections import marked_tiles, suggest
from pipeline.search.examples import named_example
from pipeline.search.query import QueryResolver, blended, learn
from pipeline.search.question import Question
from pipeline.search.saved import SavedSearch, load_search
from pipeline.search.searcher import Searcher
from pipeline.search.standing import StandingQuery
from storage.archive.reader import Archive
from storage.errors import ConfigError
from storage.index.manifest import read_manifest
from storage.location import Location
from storage.parts import Parts
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run
from tests.support.vector_tiles import read_tile
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.layers import Layers
from workflows.service.settings import BackendConfig, Limits

PARTS = Parts(appearance=24, labels=8)
COUNT = 300
KINDS = ("flat", "ivf_flat", "ivf_pq4")
BLENDS = (0.0, 0.2, 0.5, 1.0)
ASKED = 7

Vectors = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three indexes of one archive of vectors of two parts."""
    folder = tmp_path_factory.mktemp("parts")
    archive = str(folder / "archive")
    create_archive(archive, PARTS.dimension, parts=PARTS)
    embedding = np.random.default_rng(0).normal(size=(COUNT, PARTS.dimension))
    for part in np.split(embedding, [PARTS.appearance], axis=1):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    add_scenes(archive, {"A": COUNT}, embedding=embedding)
    for kind in KINDS:
        build_index(archive, str(folder / kind), IndexSpec(kind=kind))
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Any]:
    return live_rows(str(folder / "archive"))


def _truth(rows: dict[str, Any], asked: int, blend: float) -> Vectors:
    """Return ``w cos(p) + (1 − w) cos(l)`` of every row, in float64."""
    parts = np.split(rows["embedding"].astype(np.float64), [PARTS.appearance], axis=1)
    p, label = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
    return np.asarray(blend * (p @ p[asked]) + (1 - blend) * (label @ label[asked]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_weighted_sum_of_the_cosines_in_every_kind_of_index(folder, rows, kind):
    searcher = Searcher.local(str(folder / kind))
    assert Archive.open(str(folder / "archive")).spec.parts == searcher.manifest.parts == PARTS
    query = QueryResolver(searcher).tile(rows["tile_key"][ASKED])
    lists = searcher.manifest.parameters.nlist
    for blend in BLENDS:
        truth = dict(zip(rows["row"].tolist(), _truth(rows, ASKED, blend).tolist(), strict=True))
        asked = blended(searcher, query, blend)
        hits = searcher.answer(asked, 20, nprobe=lists)
        best = sorted((value for row, value in truth.items() if row != query.row), reverse=True)
        scores = hits.scores[0]
        np.testing.assert_allclose(scores, [truth[row] for row in hits.rows[0]], atol=5e-4)
        np.testing.assert_allclose(scores, best[:20], atol=5e-4)
        least = (best[9] + best[10]) / 2
        above = searcher.answer(asked, min_score=least, nprobe=lists)
        assert above.rows[0].tolist()[:10] == hits.rows[0].tolist()[:10]
        assert (above.rows[0] >= 0).sum() == 10
        places = searcher.answer(asked, 5, distinct="place", nprobe=lists)
        dated = [truth[row] for row in places.dates["row"].to_pylist()]
        np.testing.assert_allclose(places.dates["score"], dated, atol=5e-4)


def test_a_query_without_blend_takes_that_of_the_encoder(folder, rows):
    searcher = Searcher.local(str(folder / "flat"))
    resolver = QueryResolver(searcher)
    like = named_example(resolver, tile=rows["tile_key"][ASKED])
    question = Question(searcher=searcher, resolver=resolver, positive=tuple(like))
    unsaid, said = question.top(5), question.blended(0.15).top(5)
    assert unsaid.scores.tolist() == said.scores.tolist()
    assert unsaid.queries[0].blend == 0.15
    assert "appearance by 0.15 and labels by 0.85" in unsaid.queries[0].remark
    assert np.isnan(unsaid.closer_than).all()  # pairs are of whole vectors: of a blend of 0.5
    assert np.isfinite(question.blended(0.5).top(5).closer_than).all()
    assert question.blended(1.0).top(5).rows.tolist() != unsaid.rows.tolist()


def test_every_door_takes_the_blend_of_the_encoder(folder, rows, tmp_path):
    index, key, k = folder / "flat", rows["tile_key"][ASKED], 5
    searcher = Searcher.local(str(index))
    truth = _truth(rows, ASKED, PARTS.blend)
    order = np.argsort(-truth)
    order = order[order != ASKED][:k]
    least = float(truth[order[-1]]) - 1e-3
    resolver = QueryResolver(searcher)
    query = resolver.tile(key)
    doors: dict[str, list[tuple[int, float]]] = {}

    def told(name: str, hits: list[dict[str, Any]]) -> None:
        doors[name] = [(hit["row"], hit["score"]) for hit in hits[:k]]

    told("searcher", searcher.answer(query, k).to_arrow().to_pylist())
    told("places", searcher.answer(query, k, distinct="place").to_arrow().to_pylist())
    told("by score", searcher.answer(query, min_score=least).to_arrow().to_pylist())
    told("python", skysift.open(str(index)).like(tile=key).top(k).to_arrow().to_pylist())
    (batch,) = search_many([query], partial(searcher.answer, k=k), k)
    told("batch", batch.to_pylist())
    search = SavedSearch.of(searcher, query, k=k, min_score=least)
    told("saved", search.answer(searcher).to_arrow().to_pylist())
    standing = StandingQuery(search, Location(str(tmp_path / "standing")))
    standing.begin(lambda: None)
    (event,) = standing.poll(lambda: searcher, searcher.archive.ledger)
    told("standing", event["hits"])
    told("suggestions", suggest(searcher, query, k).to_arrow().to_pylist())
    told("command", run("search", "--index", index, "-k", k, "--tile", key, "--json").data["hits"])
    out = tmp_path / "each.parquet"
    each = run("search", "--index", index, "-k", k, "--tile", key, "--each", "--out", out)
    assert each.code == 0, each.err
    told("each", pq.read_table(out).to_pylist())
    backend = IndexBackend(BackendConfig(index_uri=str(index)))
    client = TestClient(create_app(backend, limits=Limits(rate_per_s=0)), "http://127.0.0.1:8000")
    answer = client.post("/v1/search", json={"tile": key, "k": k}).json()
    told("service", answer["hits"])

    scores = dict(zip(rows["row"].tolist(), truth.tolist(), strict=True))
    for name, found in doors.items():
        assert [score for _, score in found] == pytest.approx(
            [scores[row] for row, _ in found], abs=5e-4
        ), name
        if name != "suggestions":  # which are not the best hits
            assert [row for row, _ in found] == rows["row"][order].tolist(), name
    (own,) = marked_tiles(searcher, blended(searcher, query)).to_pylist()
    assert own["score"] == pytest.approx(1, abs=5e-4)
    squares = read_tile(Layers(searcher).scores(answer["like"], (0, 0, 0)))["scores"]
    assert max(square["score"] for square in squares) == pytest.approx(1, abs=2e-3)


def test_a_query_that_was_weighed_is_not_weighed_again(folder, rows):
    searcher = Searcher.local(str(folder / "flat"))
    query = QueryResolver(searcher).tile(rows["tile_key"][ASKED])
    for weighed in (blended(searcher, query, 0.0), replace(query, learned=True)):
        assert blended(searcher, weighed) is weighed
        assert searcher.answer(weighed, 3).queries == (weighed,)


def test_a_blend_that_does_not_apply_is_refused(folder, rows):
    searcher = Searcher.local(str(folder / "flat"))
    query = QueryResolver(searcher).tile(rows["tile_key"][ASKED])
    with pytest.raises(ConfigError, match=r"blend is 1\.5; give a number from 0 to 1"):
        blended(searcher, query, 1.5)
    with pytest.raises(ConfigError, match=r"learned from 10 marks .* leave blend out"):
        learn(searcher, [query] * 7, [query] * 3, blend=0.2)
    empty = replace(query, vector=np.eye(PARTS.dimension, dtype=np.float32)[0])
    with pytest.raises(ConfigError, match="the lengths 1 and 0"):
        blended(searcher, empty)
    manifest = replace(read_manifest(str(folder / "flat")), parts=None)
    whole = Searcher(searcher.index, manifest, searcher._backend)
    assert blended(whole, query) is query
    with pytest.raises(ConfigError, match="blend is for vectors of two parts"):
        blended(whole, query, 0.2)


def test_the_command_a_saved_search_and_the_service_answer_alike(folder, rows, tmp_path):
    index, key, saved = folder / "flat", rows["tile_key"][ASKED], tmp_path / "saved.json"
    common = ("search", "--index", index, "-k", 5, "--json")
    by_command = run(*common, "--tile", key, "--blend", 0.8, "--save", saved)
    assert by_command.code == 0, by_command.err
    best = np.sort(np.delete(_truth(rows, ASKED, 0.8), ASKED))[::-1][:5]
    scores = [hit["score"] for hit in by_command.data["hits"]]
    np.testing.assert_allclose(scores, best, atol=5e-4)
    assert load_search(str(saved)).blend == 0.8
    again = run(*common[:3], "--saved", saved, "--json")
    for name in ("hits", "note"):
        assert again.data[name] == by_command.data[name]

    backend = IndexBackend(BackendConfig(index_uri=str(index)))
    app = create_app(backend, limits=Limits(rate_per_s=0))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    body = {"tile": key, "k": 5, "blend": 0.8}
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    assert [hit["row"] for hit in answer.json()["hits"]] == [
        hit["row"] for hit in by_command.data["hits"]
    ]
    assert [hit["score"] for hit in answer.json()["hits"]] == pytest.approx(scores)
    assert client.post("/v1/search", json={**body, "blend": 2}).status_code == 422
