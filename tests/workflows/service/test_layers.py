"""Map tiles that colour every place: the right colour, at the right place, at every zoom."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sklearn.decomposition import PCA

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.indexing_world import patch_out_ray
from tests.support.service_world import make_world
from tests.support.shard_world import Rows
from tests.support.vector_tiles import read_tile
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.layers import Layers, from_text, to_text
from workflows.service.settings import Limits
from workflows.service.vector_tiles import EXTENT, mercator

DIMENSION = 16


@pytest.fixture(scope="module", params=["ivf_flat", "ivf_sq8", "flat"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Searcher, Rows]:
    """Sixty places of the whole globe on two days, some rows deleted."""
    folder = tmp_path_factory.mktemp("layers")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    for day, name in enumerate("AB"):
        vectors = np.random.default_rng(day).normal(size=(60, DIMENSION)).astype(np.float32)
        add_scenes(archive, {name: 60}, seed=0, version=name, embedding=vectors, days=day)
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        lists = {} if request.param == "flat" else {"nlist": 3}
        build_index(archive, index, IndexSpec(kind=request.param, shards=2, **lists))
    return Searcher.local(index), live_rows(archive)


def _best(rows: Rows, query: np.ndarray) -> dict[str, float]:
    """The highest score of each tile key, by brute force."""
    found: dict[str, float] = {}
    scores = rows["embedding"].astype(np.float64) @ (query / np.linalg.norm(query))
    for key, score in zip(rows["tile_key"], scores.tolist(), strict=True):
        found[key] = max(score, found.get(key, -1))
    return found


def _unit_query() -> np.ndarray:
    query = np.random.default_rng(3).normal(size=DIMENSION)
    return np.asarray(query / np.linalg.norm(query))


def _middles(rows: Rows) -> dict[str, tuple[float, float]]:
    boxes = mercator(rows["bbox"].astype(np.float64))
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    middles[:, 0] %= 1
    return {key: tuple(middle) for key, middle in zip(rows["tile_key"], middles, strict=True)}


def test_each_place_has_its_best_score_where_it_lies(world: tuple[Searcher, Rows]):
    searcher, rows = world
    query = _unit_query()
    best, middles = _best(rows, query), _middles(rows)
    layers = Layers(searcher)
    zoom, seen = 14, {}
    for key, (x, y) in middles.items():
        column, row = int(x * 2**zoom), int(y * 2**zoom)
        tile = read_tile(layers.scores(to_text(query), (zoom, column, row)))
        for place in tile.get("scores-places", []):
            seen[place["tile"]] = place["score"]
            if place["tile"] == key:
                left, top, right, bottom = place["box"]
                at = (x * 2**zoom - column) * EXTENT, (y * 2**zoom - row) * EXTENT
                assert left <= at[0] <= right
                assert top <= at[1] <= bottom
    assert seen.keys() == best.keys()
    for key, score in seen.items():
        assert score == pytest.approx(best[key], abs=0.003)


def test_far_out_a_square_has_the_best_score_of_its_places(world: tuple[Searcher, Rows]):
    searcher, rows = world
    query = _unit_query()
    best, middles = _best(rows, query), _middles(rows)
    wanted: dict[tuple[int, int], float] = {}
    for key, (x, y) in middles.items():
        cell = int(x * 64), int(y * 64)
        wanted[cell] = max(best[key], wanted.get(cell, -1))
    squares = read_tile(Layers(searcher).scores(to_text(query), (0, 0, 0)))["scores"]
    found = {(s["box"][0] * 64 // EXTENT, s["box"][1] * 64 // EXTENT): s["score"] for s in squares}
    assert found.keys() == wanted.keys()
    assert all(found[cell] == pytest.approx(wanted[cell], abs=0.003) for cell in wanted)
    quarters = [
        read_tile(Layers(searcher).scores(to_text(query), (1, x, y))).get("scores", [])
        for x in (0, 1)
        for y in (0, 1)
    ]
    assert max(s["score"] for part in quarters for s in part) == max(found.values())


def test_colours_are_the_principal_components(world: tuple[Searcher, Rows]):
    searcher, rows = world
    layers, middles = Layers(searcher), _middles(rows)
    colours: dict[str, list[int]] = {}
    for x, y in middles.values():
        tile = read_tile(layers.colours((14, int(x * 2**14), int(y * 2**14))))
        for place in tile["colours-places"]:
            colours[place["tile"]] = list(bytes.fromhex(place["colour"][1:]))
    keys = sorted(colours)
    axes = PCA(3).fit(rows["embedding"].astype(np.float64))
    along = axes.transform(rows["embedding"].astype(np.float64))
    means = [along[np.array(rows["tile_key"]) == key].mean(axis=0) for key in keys]
    shown = np.array([colours[key] for key in keys], dtype=np.float64)
    alike = np.corrcoef(shown.T, np.transpose(means))[:3, 3:]
    np.testing.assert_allclose(np.abs(alike), np.eye(3), atol=0.2)
    assert np.abs(np.diag(alike)).min() > 0.97
    assert Layers(searcher).colours((0, 0, 0)) == layers.colours((0, 0, 0))


def test_the_text_of_a_vector_is_checked():
    vector = np.random.default_rng(0).normal(size=8)
    (again,) = from_text(to_text(vector), 8)
    np.testing.assert_allclose(again, vector, rtol=1e-3)  # with its length, by which scores grow
    for text in ("?", "abc", to_text(vector)[:-3]):
        with pytest.raises(ConfigError):
            from_text(text, 8)


def test_a_search_names_the_vector_of_its_map(tmp_path_factory, ray_session):
    backend = IndexBackend(make_world(tmp_path_factory.mktemp("served")))
    client = TestClient(
        create_app(backend, limits=Limits(rate_per_s=0)), base_url="http://127.0.0.1:8000"
    )
    about = client.get("/v1/index").json()
    assert about["pairs"]["shares"] == sorted(about["pairs"]["shares"])
    west, south, east, north = about["bbox"]
    middle = [(west + east) / 2, (south + north) / 2]
    answer = client.post("/v1/search", json={"lonlat": middle, "k": 3, "distinct": "place"}).json()
    assert len({hit["tile_key"] for hit in answer["hits"]}) == 3
    assert [len(hit["dates"]) for hit in answer["hits"]] == [
        2 if hit["tile_key"] == answer["query"].split("tile ")[1].split(" of")[0] else 3
        for hit in answer["hits"]
    ]
    assert all(0 < hit["closer_than"] <= 0.9999 for hit in answer["hits"])
    x, y = mercator(np.array([[*middle, *middle]]))[0, :2] * 2**14
    path = f"14/{int(x)}/{int(y)}.mvt"
    tile = client.get(f"/v1/scores/{path}", params={"like": answer["like"]})
    assert tile.headers["content-type"] == "application/vnd.mapbox-vector-tile"
    scores = {one["tile"]: one["score"] for one in read_tile(tile.content)["scores-places"]}
    for hit in answer["hits"]:
        if hit["tile_key"] in scores:
            assert scores[hit["tile_key"]] >= round(hit["score"], 3) - 0.002
    assert len(scores) > 4
    assert client.get(f"/v1/colours/{path}").status_code == 200
    assert client.get("/v1/colours/1/2/0.mvt").status_code == 422
    assert client.get(f"/v1/scores/{path}", params={"like": "abcd"}).status_code == 422
