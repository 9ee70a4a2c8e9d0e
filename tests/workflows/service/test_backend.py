"""The service over a real archive: searches, pictures, uploads, the contract, a new version."""

import base64
import io
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import one_of
from PIL import Image
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from encoders.bundle import new_encoder
from pipeline.indexing.driver import build_index
from pipeline.indexing.maintenance import rollback_index
from pipeline.search.detections import detect, suggest
from pipeline.search.query import FEATURELESS, QueryResolver, learn
from pipeline.search.saved import read_search
from storage.archive.maintenance import Memory
from storage.archive.maintenance import remember as note
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec
from tests.support.service_world import DAYS, TILE_PX, add_day, encoder_spec, make_world
from workflows.service import mosaic
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend, no_pictures_because
from workflows.service.mosaic import opening_tiles
from workflows.service.schema import MosaicQuery
from workflows.service.settings import BackendConfig, Limits
from workflows.service.tokens import token_digests

TOKEN = "0123456789abcdef-token"

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def served(folder, ray_session) -> BackendConfig:
    return make_world(folder)


@pytest.fixture(scope="module")
def client(served) -> TestClient:
    return _client(IndexBackend(served))


def _client(backend: IndexBackend) -> TestClient:
    app = create_app(backend, limits=Limits(rate_per_s=0))
    return TestClient(app, base_url="http://127.0.0.1:8000")


def remember(folder: Path) -> Memory:
    catalog = CatalogSpec(source=str(folder / "moved" / "*.tif"))
    scenes = read_scenes(catalog, ("b1", "b2", "b3")).scenes
    return note(str(folder / "archive"), catalog.source, scenes)


def _png(size: tuple[int, int] = (40, 50)) -> bytes:
    return _encoded(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))


def _encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _search(client: TestClient, **body) -> list[dict]:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def test_every_kind_of_query_finds_and_leaves_its_own_rows_out(client):
    form = {"query": json.dumps({"k": 1})}
    answer = client.post("/v1/search", files={"image": _png()}, data=form)
    (hit,) = answer.json()["hits"]
    found = _search(client, tile=hit["tile_key"], scene=hit["scene"], k=48)
    assert len(found) == 47
    assert hit["row"] not in {other["row"] for other in found}
    assert [other["rank"] for other in found] == list(range(1, 48))
    assert {other["tile_key"] for other in found[:2]} == {hit["tile_key"]}  # its two other days
    only = _search(
        client, tile=hit["tile_key"], k=5, filter={"since": "2024-06-01", "until": "2024-06-01"}
    )
    assert {other["scene"] for other in only} == {"site_20240601"}
    west, south, east, north = hit["bbox"]
    place = [(west + east) / 2, (south + north) / 2]
    (near,) = _search(client, lonlat=place, date="2024-05-03", k=1)
    assert near["tile_key"] == hit["tile_key"]
    inside = _search(client, box=[*place, *place], k=48)
    assert len(inside) == 45  # without the three days of the tile in the box
    assert hit["tile_key"] not in {other["tile_key"] for other in inside}


def test_examples_pull_and_push(client, served):
    manifest = IndexBackend(served)._current().searcher.manifest
    archive = Archive.open(manifest.archive_uri, manifest.snapshot)
    rows = archive.read(np.concatenate([archive.live_rows(s.ordinal) for s in archive.segments]))
    vectors = rows["embedding"].astype(np.float32)
    good, bad = [0, 21], [9]
    target = vectors[good].mean(0) - 0.5 * vectors[bad].mean(0)
    order = np.argsort(-(vectors @ target), kind="stable")
    truth = [rows["row"][i] for i in order if i not in (*good, *bad)]

    def named(i: int) -> dict[str, str]:
        return {"tile": rows["tile_key"][i], "scene": rows["scene"][i]}

    found = _search(client, positive=[*map(named, good)], negative=[*map(named, bad)], k=10)
    assert [hit["row"] for hit in found] == truth[:10]


def test_marks_are_suggested_and_detected_as_in_python(client, served):
    backend = IndexBackend(served)
    searcher = backend._current().searcher
    archive = searcher.archive
    rows = archive.read(archive.live_rows(0), ["tile_key", "scene"])
    keys = list(zip(rows["tile_key"].tolist(), rows["scene"].tolist(), strict=True))
    groups = {"positive": keys[:6], "negative": keys[-6:]}
    marks = {n: [{"tile": t, "scene": s} for t, s in group] for n, group in groups.items()}
    resolver = QueryResolver(searcher)
    query = learn(searcher, *(resolver.marked(group) for group in groups.values()))
    answer = client.post("/v1/suggestions", json={**marks, "k": 5})
    assert answer.status_code == 200, answer.text
    suggested = [hit["row"] for hit in answer.json()["hits"]]
    assert suggested == suggest(searcher, query, 5).rows[0].tolist()
    assert _search(client, **marks, k=3)[0]["closer_than"] is None

    asked = {**marks, "threshold": 0.2, "review": 4, "k": 7}
    answer = client.post("/v1/detections", json=asked)
    assert answer.status_code == 200, answer.text
    found, same = answer.json(), detect(searcher, query, threshold=0.2, review=4)
    assert found["total"] == same.detected.sum()
    assert [hit["row"] for hit in found["hits"]] == same.to_arrow()["row"].to_pylist()[:7]
    assert [hit["row"] for hit in found["review"]] == same.to_review()["row"].to_pylist()
    assert found["expected"]["precision"] == pytest.approx(same.expected.precision)
    assert {hit["mark"] for hit in found["hits"]} <= {"right", None}
    geojson = client.post("/v1/detections", json=asked, headers={"Accept": "application/geo+json"})
    assert [f["properties"]["row"] for f in geojson.json()["features"]] == [
        hit["row"] for hit in found["hits"]
    ]
    box = found["hits"][0]["bbox"]
    near = client.post("/v1/detections", json={**asked, "filter": {"bbox": box}}).json()
    assert 0 < near["total"] < found["total"]
    form = {"query": json.dumps({**marks, "k": 2})}
    pictured = client.post("/v1/suggestions", files={"image": _png()}, data=form)
    assert len(pictured.json()["hits"]) == 2
    few = client.post("/v1/detections", json={"positive": marks["positive"]})
    assert few.status_code == 422
    assert "at least 10, 3 of each" in few.json()["message"]
    assert client.post("/v1/detections", json={**asked, "threshold": 1}).status_code == 422


def test_an_accuracy_check_is_drawn_marked_measured_and_saved(client, served):
    searcher = IndexBackend(served)._current().searcher
    rows = searcher.archive.read(searcher.archive.live_rows(0), ["tile_key", "scene"])
    keys = zip(rows["tile_key"].tolist(), rows["scene"].tolist(), strict=True)
    named = [{"tile": tile, "scene": scene} for tile, scene in keys]
    asked = {"positive": named[:6], "negative": named[-6:], "threshold": 0.2}
    drawn = client.post("/v1/detections", json={**asked, "check": 20}).json()["check"]
    found = client.post("/v1/detections", json=asked).json()
    assert found["check"] is None
    best = {hit["row"] for hit in found["hits"] if hit["mark"] is None}
    assert {one["row"] for one in drawn["tiles"] if one["detected"]} <= best
    assert drawn["measured"]["marked"] == 0
    assert sum(one["rows"] for one in drawn["strata"]) == searcher.manifest.rows - 12
    assert drawn["below"] == 0
    check = {
        "strata": drawn["strata"],
        "below": drawn["below"],
        "tiles": [
            {
                "tile": one["tile_key"],
                "mark": "right" if one["detected"] else "wrong",
                **{name: one[name] for name in ("scene", "stratum", "probability")},
            }
            for one in drawn["tiles"]
        ],
    }
    measured = client.post("/v1/accuracy", json=check).json()
    assert measured["marked"] == len(drawn["tiles"])
    assert measured["scope"] == "The figures are of 36 tiles without a mark, and leave out none."
    fewer = client.post("/v1/accuracy", json={**check, "below": 1500}).json()["scope"]
    assert "and leave out 1,500 tiles below: recall does not count right tiles there" in fewer
    assert measured["accuracy"][0]["threshold"] == 0.2
    assert measured["accuracy"][0]["precision"] > 0.9
    again = client.post("/v1/detections", json={**asked, "checked": check}).json()["check"]
    assert again["measured"] == measured
    assert [one["mark"] for one in again["tiles"]] == [one["mark"] for one in check["tiles"]]
    other = client.post("/v1/detections", json={**asked, "threshold": 0.3, "checked": check})
    assert other.json()["check"] is None
    file = client.post("/v1/saved-search", json={**asked, "check": check}).json()
    assert client.post("/v1/saved-search/open", json=file).json()["check"] == check
    twice = {**check, "tiles": check["tiles"][:1] * 2}
    refused = client.post("/v1/accuracy", json=twice)
    assert refused.status_code == 422
    assert "a tile is there twice" in refused.json()["message"]


def test_a_saved_search_keeps_marks_threshold_and_review_and_is_opened_again(client, served):
    searcher = IndexBackend(served)._current().searcher
    rows = searcher.archive.read(searcher.archive.live_rows(0), ["tile_key", "scene"])
    keys = list(zip(rows["tile_key"].tolist(), rows["scene"].tolist(), strict=True))
    named = [{"tile": tile, "scene": scene} for tile, scene in keys]
    marks = {"positive": named[:6], "negative": named[-6:]}
    asked = {**marks, "threshold": 0.2, "review": 4, "filter": {"max_cloud_fraction": 0.5}}
    file = client.post("/v1/saved-search", json={**asked, "title": "lakes"})
    search = read_search(file.content, "the file")
    assert (search.title, search.threshold, search.review) == ("lakes", 0.2, 4)
    found = client.post("/v1/detections", json=asked).json()
    same = search.detect(searcher).to_arrow()["row"].to_pylist()
    assert same == [hit["row"] for hit in found["hits"]]

    opened = client.post("/v1/saved-search/open", json=file.json()).json()
    assert {name: opened[name] for name in ("positive", "negative")} == marks
    assert (opened["threshold"], opened["review"], opened["left_out"]) == (0.2, 4, 0)
    assert opened["filter"] == {"max_cloud_fraction": 0.5}
    foreign = client.post(
        "/v1/saved-search/open", json={**file.json(), "encoder_fingerprint": "of another"}
    ).json()
    assert foreign["positive"] == marks["positive"]  # the same tiles, by key and scene
    pictured = client.post(
        "/v1/saved-search", files={"image": _png()}, data={"query": json.dumps(marks)}
    )
    assert client.post("/v1/saved-search/open", json=pictured.json()).json()["left_out"] == 1
    table = client.post("/v1/marks", json=marks, headers={"Accept": "application/geo+json"}).json()
    listed = [(f["properties"]["tile_key"], f["properties"]["mark"]) for f in table["features"]]
    assert sorted(listed) == sorted(
        (tile, mark)
        for mark, group in (("right", keys[:6]), ("wrong", keys[-6:]))
        for tile, _ in group
    )
    few = client.post("/v1/saved-search", json={"positive": named[:2], "threshold": 0.5})
    assert few.status_code == 422
    assert "at least 10" in few.json()["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it is not JSON"),
        (b"{}", 'does not begin with {"skysift": "saved search"'),
        (b'{"skysift": "saved search", "version": 2}', "it has no 'vector'"),
        (b"[" * 100_000, "not a saved search"),
    ],
)
def test_what_is_no_saved_search_is_said_in_one_line(client, body, message):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/saved-search/open", content=body, headers=headers)
    assert answer.status_code == 422
    assert message in answer.json()["message"]


def test_places_are_ranked_by_their_change(client, monkeypatch):
    monkeypatch.setattr("pipeline.search.change.FEWEST_PAIRS", 10)
    periods = {"before": "2024-05", "after": "2024-07", "k": 4}
    answer = client.post("/v1/change", json=periods)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["compared"], found["unjudged"], len(found["changes"])) == (16, 0, 4)
    first = found["changes"][0]
    assert (first["before_scene"], first["scene"]) == ("site_20240501", "site_20240701")
    assert first["moved"] > first["usual"]
    within = {**periods, "filter": {"bbox": first["bbox"]}}
    near = client.post("/v1/change", json=within).json()["changes"]
    assert first["tile_key"] in {one["tile_key"] for one in near}
    shapes = client.post("/v1/change", json=periods, headers={"Accept": "application/geo+json"})
    assert shapes.json()["compared"] == 16
    assert shapes.json()["features"][0]["properties"]["tile_key"] == first["tile_key"]
    search = client.post("/v1/search", json={"tile": first["tile_key"], "scene": first["scene"]})
    toward = client.post("/v1/change", json={**periods, "toward": search.json()["like"]}).json()
    assert toward["query"] == "toward the query from 2024-05 to 2024-07"
    gains = [one["moved"] for one in toward["changes"]]
    assert gains == sorted(gains, reverse=True)
    assert 0 < gains[0] <= 2

    monkeypatch.setattr("workflows.service.backend._MOST_COMPARED", 47)
    refused = client.post("/v1/change", json=periods)
    assert refused.status_code == 422
    assert refused.json()["message"].endswith(
        "has 48 rows, and a request compares at most 47, whatever its filter; on the command line "
        "`skysift change --before 2024-05 --after 2024-07` has no such limit"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": "2025"}, "give two periods in their order"),
        ({"before": "soon"}, "before is 'soon'; give a year, month or day"),
        ({"k": 1001}, "at most 1000"),
        ({"toward": "ADw"}, "embed them with the encoder of this index"),
        ({"filter": {"bbox": ["1", 2, 3, 4]}}, "bbox"),
    ],
)
def test_a_change_that_cannot_be_asked_for_is_refused(client, change, message):
    answer = client.post("/v1/change", json={"before": "2024-05", "after": "2024-07", **change})
    assert answer.status_code == 422
    assert message in answer.json()["message"]


def test_a_tile_lists_its_days_and_shows_each(client, folder):
    (hit,) = _search(client, vector=[1.0] * 16, k=1)
    tile = client.get(f"/v1/tiles/{hit['tile_key']}").json()
    assert [a["scene"] for a in tile["acquisitions"]] == [f"site_{day}" for day in DAYS]
    path = f"/v1/tiles/{hit['tile_key']}/thumbnail.png"
    pictures = [
        client.get(path, params={"scene": day["scene"], "size": 32}).content
        for day in tile["acquisitions"]
    ]
    assert len({*pictures}) == 3
    assert {Image.open(io.BytesIO(png)).size for png in pictures} == {(32, 32)}
    newest = client.get(path, params={"size": 32})
    assert newest.content == pictures[-1]
    text = client.get("/metrics").text
    assert 'source="drawn"} 3.0' in text
    assert 'source="cache"} 1.0' in text
    assert 'state="embedded"} 3.0' in text
    assert 'state="quarantined"} 0.0' in text
    committed = re.search(r"skysift_archive_commit_time_seconds{.*} (.*)", text)
    assert 0 <= time.time() - float(committed[1]) < 3600
    known = {"If-None-Match": newest.headers["etag"]}
    assert client.get(path, params={"size": 32}, headers=known).status_code == 304


def test_a_picture_is_that_of_its_place(client):
    """Tiles of plain colours: a tile whose red is stronger is the redder picture."""
    hits = _search(client, vector=[1.0] * 16, k=48)
    day = [hit for hit in hits if hit["scene"] == "site_20240501"]
    colours = np.random.default_rng(99).integers(20, 220, (3, 4, 4))
    reds, seen = [], []
    for hit in day:
        column, row = (int(part) for part in hit["tile_key"].split("/")[1:])
        low_column, low_row = (min(int(h["tile_key"].split("/")[i]) for h in day) for i in (1, 2))
        reds.append(colours[0, row - low_row, column - low_column])
        path = f"/v1/tiles/{hit['tile_key']}/thumbnail.png"
        png = client.get(path, params={"scene": hit["scene"], "size": 16}).content
        seen.append(np.asarray(Image.open(io.BytesIO(png)))[..., 0].mean())
    assert len(day) == 16
    assert np.corrcoef(np.argsort(np.argsort(reds)), np.argsort(np.argsort(seen)))[0, 1] > 0.95


def test_missing_tiles_and_scenes_are_not_drawn(client, served, tmp_path):
    (hit,) = _search(client, vector=[1.0] * 16, k=1)
    grid = hit["tile_key"].split("/")[0]
    for path in (f"{grid}/1/1", "nogrid/1/1"):
        assert client.get(f"/v1/tiles/{path}").status_code == 404
        assert client.get(f"/v1/tiles/{path}/thumbnail.png").status_code == 404
    path = f"/v1/tiles/{hit['tile_key']}/thumbnail.png"
    assert client.get(path, params={"scene": "../site"}).status_code == 404


def test_the_archive_alone_is_enough_for_pictures_until_its_files_are_gone(client, served, folder):
    (hit,) = _search(client, vector=[1.0] * 16, k=1)
    path = f"/v1/tiles/{hit['tile_key']}/thumbnail.png"
    backend = IndexBackend(BackendConfig(index_uri=served.index_uri))
    alone = _client(backend)
    assert alone.get("/v1/index").json()["pictures"] is True
    assert alone.get(path).content == client.get(path).content
    (folder / "scenes").rename(folder / "moved")
    try:
        answer = alone.get(path, params={"size": 64})
        assert answer.status_code == 404
        assert "site_20240701.tif" in answer.json()["message"]
        again = remember(folder)
        assert len(again.scenes) == 3
        assert alone.get(path, params={"size": 64}).status_code == 200
    finally:
        (folder / "moved").rename(folder / "scenes")


def test_the_map_shows_the_scenes_where_the_index_has_them(client):
    """The tile of the map in the middle of the index is full, and the other side of Earth empty."""
    west, south, east, north = client.get("/v1/index").json()["bbox"]
    lon, lat = (west + east) / 2, np.radians((south + north) / 2)
    x = int((lon + 180) / 360 * 2**16)
    y = int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**16)
    full = client.get(f"/v1/mosaic/16/{x}/{y}")
    image = np.asarray(Image.open(io.BytesIO(full.content)).convert("RGBA"))
    assert full.headers["content-type"] == "image/webp"
    assert image[..., 3].min() == 255
    empty = client.get(f"/v1/mosaic/16/{x - 2**15}/{y}")
    assert not np.asarray(Image.open(io.BytesIO(empty.content)).convert("RGBA")).any()
    newest = client.get(f"/v1/mosaic/16/{x}/{y}?since=2024-07-01").content
    oldest = client.get(f"/v1/mosaic/16/{x}/{y}?until=2024-05-01").content
    assert newest == full.content != oldest


def test_what_a_map_tile_does_not_show_is_said_until_it_shows_it(served, monkeypatch):
    client = _client(IndexBackend(served))
    west, south, east, north = client.get("/v1/index").json()["bbox"]
    lat = np.radians((south + north) / 2)
    x = int(((west + east) / 2 + 180) / 360 * 2**16)
    y = int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**16)
    with monkeypatch.context() as patch:
        patch.setattr(mosaic, "MOST_FILE_PIXELS", 0)
        hatched = client.get(f"/v1/mosaic/16/{x}/{y}")
    assert hatched.status_code == 200
    assert hatched.headers["skysift-note"] == mosaic.NO_OVERVIEWS
    assert "etag" not in hatched.headers
    shown = client.get(f"/v1/mosaic/16/{x}/{y}")
    assert "skysift-note" not in shown.headers
    assert shown.content != hatched.content


def test_a_picture_of_one_colour_is_told_apart(client):
    grey = _encoded(np.full((40, 40, 3), 90, np.uint8))
    for png, told in ((grey, FEATURELESS), (_png(), "")):
        answer = client.post("/v1/search", files={"image": png}, data={"query": "{}"})
        assert answer.json()["note"] == told


def test_a_picture_of_other_bands_is_refused_with_their_number(client):
    grey = _encoded(np.zeros((40, 40), np.uint8))
    for query, bands in (({}, 1), ({"bands": [1, 2, 0]}, 1)):
        form = {"query": json.dumps(query)}
        answer = client.post("/v1/search", files={"image": grey}, data=form)
        assert (answer.status_code, answer.json()["bands"]) == (422, bands)
        assert answer.json()["error"] == "PictureBandsError"
    assert "bands" not in client.post("/v1/search", json={"vector": [1.0]}).json()


def test_an_older_archive_says_why_there_are_no_pictures(served, client, monkeypatch):
    monkeypatch.setattr(Archive, "origins", lambda *_: {})
    config = BackendConfig(index_uri=served.index_uri)
    older = _client(IndexBackend(config))
    (hit,) = _search(client, vector=[1.0] * 16, k=1)
    answer = older.get(f"/v1/tiles/{hit['tile_key']}/thumbnail.png")
    assert answer.status_code == 404
    assert "skysift archive remember" in answer.json()["message"]
    about = older.get("/v1/index").json()
    assert about["pictures"] is False
    assert about["no_pictures_because"] == no_pictures_because(config)
    assert "skysift archive remember" in about["no_pictures_because"]


def test_scenes_come_with_the_box_of_their_tiles(client):
    page = client.get("/v1/scenes", params={"state": "embedded"}).json()
    assert [scene["scene"] for scene in page["scenes"]] == [f"site_{day}" for day in DAYS]
    boxes = np.array([scene["bbox"] for scene in page["scenes"]])
    hits = np.array([hit["bbox"] for hit in _search(client, vector=[1.0] * 16, k=48)])
    np.testing.assert_allclose(boxes[0, :2], hits[:, :2].min(0))
    np.testing.assert_allclose(boxes[0, 2:], hits[:, 2:].max(0))
    np.testing.assert_allclose(client.get("/v1/index").json()["bbox"], boxes[0])
    assert client.get("/v1/scenes", params={"state": "empty"}).json()["total"] == 0


def test_an_upload_is_told_by_its_content_and_a_bomb_is_not_decoded(client, tmp_path):
    huge = bytearray(_png((8, 8)))
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    tif, deep = tmp_path / "five.tif", tmp_path / "deep.tif"
    place = ("EPSG:32632", (10, 0, 0, 0, -10, 640))
    write_geotiff(str(tif), np.ones((5, 64, 64), np.uint8), *place, cog=False)
    write_geotiff(str(deep), np.ones((70, 256, 256), np.uint8), *place, cog=False)
    for upload, word in (
        (bytes(huge), "cannot be decoded"),
        (_png((1100, 1000)), "1000 x 1100 pixels"),
        (deep.read_bytes(), "70 bands"),
        (tif.read_bytes(), "5 bands"),
        (tif.read_bytes()[:500], "the image"),
        (_png()[:100], "the image"),
        (b"\x89PNG", "cannot be decoded"),
        (b"GIF89a", "no PNG, JPEG or GeoTIFF"),
        (b"<VRTDataset><SourceFilename>/etc/passwd", "no PNG, JPEG or GeoTIFF"),
    ):
        answer = client.post("/v1/search", files={"image": upload})
        assert answer.status_code == 422, answer.text
        assert word in answer.json()["message"]
        assert "/tmp" not in answer.json()["message"]


def test_another_encoder_takes_over_without_a_dropped_answer(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr("workflows.service.backend._POLL_S", 0.05)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    config = make_world(tmp_path / "old")
    make_world(tmp_path / "new", new_encoder(encoder_spec(dimension=24), seed=5))
    client = _client(IndexBackend(config))
    before = client.get("/v1/ready").json()["version"]
    (best,) = _search(client, vector=[1.0] * 16, k=1)
    image = base64.b64encode(_png((TILE_PX, TILE_PX))).decode()
    build_index(tmp_path / "new" / "archive", config.index, other_archive=True)
    seen = set()
    while client.get("/v1/ready").json()["version"] == before:
        for query in ({"tile": best["tile_key"]}, {"image_base64": image}):
            seen |= {client.post("/v1/search", json=query).status_code}
    assert client.get("/v1/index").json()["dimension"] == 24
    seen |= {client.post("/v1/search", json={"image_base64": image}).status_code}
    assert seen == {200}
    assert _search(client, positive=[{"tile": best["tile_key"], "scene": best["scene"]}])  # a mark
    refused = client.post("/v1/search", json={"vector": [1.0] * 16})
    assert refused.status_code == 422
    rollback_index(config.index)
    while client.get("/v1/ready").json()["version"] != before:
        pass
    assert _search(client, vector=[1.0] * 16)


def _not_ready(client: TestClient) -> str:
    """Check that a service is not ready; return the reason that it gives."""
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
    return answer.json()["message"]


def test_no_index_is_not_ready(tmp_path):
    client = _client(IndexBackend(BackendConfig(index_uri=str(tmp_path / "none"))))
    assert "no finished index at" in _not_ready(client)
    assert client.post("/v1/search", json={"vector": [1.0]}).status_code == 404


def test_a_service_without_its_files_is_not_ready_until_they_are_back(tmp_path, ray_session):
    config = make_world(tmp_path)
    for gone, reason in (("archive", "no archive"), ("index", "no finished index")):
        (tmp_path / gone).rename(tmp_path / "elsewhere")
        client = _client(IndexBackend(config))
        assert reason in _not_ready(client)
        (tmp_path / "elsewhere").rename(tmp_path / gone)
        assert client.get("/v1/ready").is_success
    current = tmp_path / "index" / "CURRENT"
    current.write_bytes(b"\0\xff")
    assert client.get("/v1/ready").is_success  # the version that is loaded goes on
    assert "CURRENT" in _not_ready(_client(IndexBackend(config)))


def test_a_service_whose_actors_died_is_not_ready_until_they_are_back(served):
    backend = IndexBackend(served)
    client = _client(backend)
    assert client.get("/v1/ready").is_success
    backend._current().searcher._backend.stop()
    assert "no search actor answers" in _not_ready(client)
    until = time.monotonic() + 30
    while client.get("/v1/ready").status_code == 503 and time.monotonic() < until:
        time.sleep(0.1)
    assert _search(client, vector=[1.0] * 16)


def test_the_service_is_ready_when_its_index_is_loaded_and_then_draws_the_opening_view(
    tmp_path, ray_session, monkeypatch
):
    config = make_world(tmp_path)
    backend, loads, draws = IndexBackend(config), threading.Event(), threading.Event()
    newest, drawn = backend._newest, backend.mosaic

    def slowly(wait: threading.Event, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *asked, **how: (wait.wait(), work(*asked, **how))[1]

    monkeypatch.setattr(backend, "_newest", slowly(loads, newest))
    monkeypatch.setattr(backend, "mosaic", slowly(draws, drawn))
    client = _client(backend)
    backend.prepare()
    assert "is being loaded" in _not_ready(client)
    loads.set()
    while client.get("/v1/ready").status_code == 503:
        time.sleep(0.05)
    draws.set()
    about = backend.about()
    tiles = opening_tiles(tuple(about.bbox), about.mosaic_zoom)
    for thread in threading.enumerate():
        if thread.name == "skysift-prepare":
            thread.join()
    assert {drawn(tile, MosaicQuery(), "").source for tile in tiles} == {"cache"}


# ---------------------------------------------------------------- the contract


def test_the_answers_are_what_openapi_says(served):
    """All checks of schemathesis, on well-formed and malformed requests of every operation.

    A request can be right by the schema and make no sense to this index (a vector of another
    length, a tile that is not there), so 404, 415, 422 and, from layers, 400 are answers to a
    well-formed one too.
    """
    allowed = {"expected-statuses": ["2xx", "400", "404", "415", "422"]}
    config = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": allowed}})
    app = create_app(
        IndexBackend(served),
        digests=token_digests(TOKEN),
        limits=Limits(rate_per_s=0),
        hosts=None,
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 31
    for operation in operations:
        modes = [operation.as_strategy(mode) for mode in GenerationMode]

        @settings(
            max_examples=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=one_of(*modes))
        def conforms(case) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

        conforms()


# ---------------------------------------------------------------- a new version


def test_a_new_version_takes_over_without_a_dropped_or_mixed_answer(served, folder, monkeypatch):
    monkeypatch.setattr("workflows.service.backend._POLL_S", 0.05)
    client = _client(IndexBackend(served))
    before = client.get("/v1/ready").json()
    answers: list[tuple[int, dict]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/v1/search", json={"vector": [1.0] * 16, "k": 48})
            answers.append((answer.status_code, answer.json()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        add_day(folder, "20240801", seed=9)
        while client.get("/v1/ready").json()["version"] == before["version"]:
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    after = client.get("/v1/ready").json()
    assert (before["rows"], after["rows"]) == (48, 64)
    assert {status for status, _ in answers} == {200}
    days = {before["version"]: {*DAYS}, after["version"]: {*DAYS, "20240801"}}
    snapshots = {before["version"]: before["snapshot"], after["version"]: after["snapshot"]}
    for _, answer in answers:
        assert answer["snapshot"] == snapshots[answer["version"]]
        seen = {hit["scene"].removeprefix("site_") for hit in answer["hits"]}
        assert seen <= days[answer["version"]]
    assert client.get("/v1/scenes").json()["total"] == 4
