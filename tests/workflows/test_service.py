"""The HTTP application: who is let in, what is refused and how, what an answer holds."""

import base64
import datetime as dt
import io
import json
import struct
import zlib

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from encoders.bundle import EncoderSpec, load_encoder, pretrained_bundle
from pipeline.indexing import build_index, update_index
from storage.errors import ConfigError, NotFoundError, SearchUnavailableError
from storage.rasters import write_geotiff
from tests.archive_world import add_scenes, create_archive
from workflows.service.app import Limits, create_app, token_digest
from workflows.service.backend import IndexBackend, Served
from workflows.service.deploy import ServiceSpec, check_exposure
from workflows.service.schema import (
    HitBody,
    ReadyAnswer,
    SceneBody,
    ScenesAnswer,
    SearchAnswer,
    SearchBody,
)

TOKEN = "0123456789abcdef-token"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


class _Backend:
    """An index of one row; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[SearchBody, bytes | None, str]] = []
        self.fault: Exception | None = None

    def search(self, body: SearchBody, image: bytes | None, suffix: str) -> SearchAnswer:
        self.asked.append((body, image, suffix))
        if self.fault is not None:
            raise self.fault
        hit = HitBody(
            rank=1,
            score=0.5,
            row=2**32 + 7,
            tile="g/1/2",
            scene="a",
            datetime=dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
            bbox=(179.0, 1.0, -179.0, 2.0),
            cloud_fraction=0.0,
            labels=["water"],
        )
        return SearchAnswer(snapshot="S", version="0001-ab", coverage=1.0, hits=[hit])

    def scenes(self, offset: int, limit: int) -> ScenesAnswer:
        found = [
            SceneBody(scene=f"s{n}", state="embedded", reason="", rows=1, datetime=None)
            for n in range(offset, min(offset + limit, 3))
        ]
        return ScenesAnswer(snapshot="S", total=3, offset=offset, scenes=found)

    def ready(self) -> ReadyAnswer:
        if self.fault is not None:
            raise self.fault
        return ReadyAnswer(version="0001-ab", snapshot="S", rows=1)


@pytest.fixture
def backend():
    return _Backend()


@pytest.fixture
def client(backend):
    return _client(backend)


def _client(backend, **settings) -> TestClient:
    return TestClient(create_app(backend, **settings), base_url="http://127.0.0.1:8000")


def test_a_search_passes_the_query_and_returns_hits(client, backend):
    body = {"lonlat": [10, 20], "k": 3, "filter": {"bbox": [0, 0, 1, 1], "scenes": ["a"]}}
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200
    assert answer.json()["hits"][0]["tile"] == "g/1/2"
    assert answer.json()["coverage"] == 1.0
    asked, image, _ = backend.asked[0]
    assert (asked.lonlat, asked.k, asked.filter.scenes, image) == ((10, 20), 3, ["a"], None)


def test_geojson_is_given_when_asked_for_and_unwraps_the_antimeridian(client):
    answer = client.post(
        "/v1/search", json={"vector": [1.0]}, headers={"Accept": "application/geo+json"}
    )
    assert answer.headers["content-type"] == "application/geo+json"
    (feature,) = answer.json()["features"]
    assert feature["geometry"]["coordinates"][0][0] == [179.0, 1.0]
    assert feature["geometry"]["coordinates"][0][1] == [181.0, 1.0]
    assert feature["properties"]["score"] == 0.5


def test_an_image_arrives_as_base64_or_as_it_is(client, backend):
    encoded = base64.b64encode(PNG).decode()
    assert client.post("/v1/search", json={"image_base64": encoded}).status_code == 200
    answer = client.post("/v1/search/image?k=2&bbox=0,0,1,1", content=PNG)
    assert answer.status_code == 200
    assert [(image, suffix) for _, image, suffix in backend.asked] == [(PNG, ".png")] * 2
    assert backend.asked[1][0].filter.bbox == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "exactly one of"),
        ({"vector": [1.0], "tile": "a"}, "not vector and tile"),
        ({"vector": []}, "at least 1"),
        ({"vector": [1.0], "k": 0}, "body.k"),
        ({"vector": [1.0], "k": 10**9}, "at most 1000"),
        ({"lonlat": [200, 0]}, "body.lonlat"),
        ({"vector": [1.0], "filter": {"bbx": [0, 0, 1, 1]}}, "body.filter.bbx"),
        ({"vector": [1.0], "date": "2020-01-01"}, "date goes with lonlat"),
        ({"image_base64": "%%%"}, "no base64"),
        ({"image_base64": base64.b64encode(b"GIF89a").decode()}, "no PNG, JPEG or GeoTIFF"),
    ],
)
def test_a_wrong_request_is_named_in_one_line(client, body, word):
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 422
    assert word in answer.json()["message"]
    assert "\n" not in answer.json()["message"]


def test_not_a_number_is_no_vector(client):
    answer = client.post("/v1/search", content=b'{"vector": [NaN]}')
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (ConfigError("inverted dates"), 422),
        (NotFoundError("no tile g/9/9"), 404),
        (SearchUnavailableError("shard 3 is dead"), 503),
    ],
)
def test_an_error_of_the_search_keeps_its_message_and_gets_a_status(client, backend, fault, status):
    backend.fault = fault
    answer = client.post("/v1/search", json={"tile": "g/9/9"})
    assert answer.status_code == status
    assert answer.json() == {"error": type(fault).__name__, "message": str(fault)}


def test_a_wrong_box_of_an_image_query_is_named(client):
    answer = client.post("/v1/search/image?bbox=a,b", content=PNG)
    assert (answer.status_code, answer.json()["error"]) == (422, "ConfigError")
    assert "west,south,east,north" in answer.json()["message"]


def test_a_fault_of_the_service_tells_nothing_of_itself(backend):
    backend.fault = RuntimeError("/secret/path")
    client = TestClient(
        create_app(backend), base_url="http://127.0.0.1", raise_server_exceptions=False
    )
    answer = client.post("/v1/search", json={"vector": [1.0]})
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert "secret" not in answer.text


def test_a_token_is_asked_for_by_all_but_the_probes(backend):
    client = _client(backend, digest=token_digest(TOKEN))
    for path in ("/v1/health", "/v1/ready"):
        assert client.get(path).status_code == 200
    for authorization in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
        headers = {"Authorization": authorization} if authorization else {}
        for answer in (
            client.post("/v1/search", json={"vector": [1.0]}, headers=headers),
            client.post("/v1/search/image", content=PNG, headers=headers),
            client.get("/v1/scenes", headers=headers),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
    assert backend.asked == []
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/v1/search", json={"vector": [1.0]}, headers=good).status_code == 200
    assert client.get("/v1/scenes", headers=good).status_code == 200


def test_a_short_token_is_refused():
    with pytest.raises(ConfigError, match="at least 16"):
        token_digest("secret")


def test_a_long_body_is_refused_whether_its_length_is_told_or_not(backend):
    client = _client(backend, limits=Limits(max_body_bytes=1000))
    body = json.dumps({"vector": [1.0] * 1000}).encode()
    told = client.post("/v1/search", content=body)
    untold = client.post("/v1/search", content=(body[i : i + 100] for i in range(0, 5000, 100)))
    assert (told.status_code, untold.status_code) == (413, 413)
    assert "1,000 bytes" in untold.json()["message"]
    assert backend.asked == []


def test_a_web_page_elsewhere_cannot_reach_a_service_on_loopback(backend):
    client = _client(backend)
    answer = client.get("/v1/health", headers={"Host": "evil.example:8000"})
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in client.get("/v1/health").headers
    assert _client(backend, hosts=None).get("/v1/health", headers={"Host": "a.b"}).is_success


def test_ready_says_what_is_served_or_503(client, backend):
    assert client.get("/v1/ready").json()["version"] == "0001-ab"
    backend.fault = NotFoundError("no index")
    assert client.get("/v1/ready").status_code == 503


def test_scenes_come_in_pages(client):
    first = client.get("/v1/scenes?limit=2").json()
    rest = client.get("/v1/scenes?limit=2&offset=2").json()
    assert [s["scene"] for s in first["scenes"] + rest["scenes"]] == ["s0", "s1", "s2"]
    assert first["total"] == 3
    assert client.get("/v1/scenes?limit=0").status_code == 422


def test_openapi_names_every_route(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/health",
        "/v1/ready",
        "/v1/scenes",
        "/v1/search",
        "/v1/search/image",
    }
    assert client.get("/docs").status_code == 404  # its pages would come from a CDN


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_beyond_loopback_a_token_is_required(host):
    with pytest.raises(ConfigError, match="SKYSIFT_TOKEN"):
        check_exposure(ServiceSpec(host=host))
    assert check_exposure(ServiceSpec(host=host, token=TOKEN)) == token_digest(TOKEN)
    assert TOKEN not in repr(ServiceSpec(host=host, token=TOKEN))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_no_token_is_needed(host):
    assert check_exposure(ServiceSpec(host=host)) is None


# ---------------------------------------------------------------- with a real index


@pytest.fixture(scope="module")
def served(tmp_path_factory, ray_session) -> Served:
    folder = tmp_path_factory.mktemp("served")
    spec = EncoderSpec(
        backbone="tiny-cnn",
        bands=("b1", "b2", "b3"),
        band_mean=(128.0,) * 3,
        band_std=(70.0,) * 3,
        tile_px=32,
        dimension=16,
    )
    bundle, archive = str(folder / "bundle"), str(folder / "archive")
    fingerprint = pretrained_bundle(bundle, spec)
    create_archive(archive, load_encoder(bundle).dimension, fingerprint=fingerprint)
    add_scenes(archive, {"A": 40, "B": 20}, seed=1)
    build_index(archive, str(folder / "index"))
    return Served(index_uri=str(folder / "index"), encoder_uri=bundle, max_image_px=1_000_000)


@pytest.fixture
def real(served) -> TestClient:
    return _client(IndexBackend(served))


def _png(size: tuple[int, int] = (40, 50)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_an_index_answers_and_a_tile_is_not_its_own_hit(real):
    hit = real.post("/v1/search/image?k=1", content=_png()).json()["hits"][0]
    body = {"tile": hit["tile"], "scene": hit["scene"], "k": 60}
    found = real.post("/v1/search", json=body).json()
    assert len(found["hits"]) == 59
    assert hit["row"] not in {one["row"] for one in found["hits"]}
    assert [one["rank"] for one in found["hits"]] == list(range(1, 60))
    only = real.post("/v1/search", json={**body, "k": 5, "filter": {"scenes": ["B"]}}).json()
    assert {one["scene"] for one in only["hits"]} == {"B"}
    west, south, east, north = hit["bbox"]
    place = [(west + east) / 2, (south + north) / 2]
    assert real.post("/v1/search", json={"lonlat": place}).status_code == 200


def test_an_upload_is_told_by_its_content_and_a_bomb_is_not_decoded(real, tmp_path):
    huge = bytearray(_png((8, 8)))
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    large = _png((1100, 1000))
    tif = tmp_path / "five.tif"
    write_geotiff(
        str(tif), np.ones((5, 64, 64), np.uint8), "EPSG:32632", (10, 0, 0, 0, -10, 640), cog=False
    )
    for upload, word in (
        (bytes(huge), "cannot be decoded"),
        (large, "1000 x 1100 pixels"),
        (tif.read_bytes(), "5 bands"),
        (tif.read_bytes()[:500], "the image"),
        (_png()[:100], "the image"),
        (b"\x89PNG", "cannot be decoded"),
    ):
        answer = real.post("/v1/search/image", content=upload)
        assert answer.status_code == 422, answer.text
        assert word in answer.json()["message"]
        assert "/tmp" not in answer.json()["message"]


def test_a_new_version_is_picked_up_between_two_requests(served, monkeypatch):
    monkeypatch.setattr("workflows.service.backend._LOOK_EVERY_S", 0.0)
    client = _client(IndexBackend(served))
    before = client.get("/v1/ready").json()
    add_scenes(str(served.index_uri).replace("index", "archive"), {"C": 30}, seed=2)
    update_index(served.index_uri)
    after = client.get("/v1/ready").json()
    assert (before["rows"], after["rows"]) == (60, 90)
    assert after["version"] != before["version"]
    assert client.get("/v1/scenes").json()["total"] == 3
    assert (
        client.post("/v1/search", json={"vector": [1.0] * 16}).json()["version"]
        == (after["version"])
    )


def test_no_index_is_not_ready(tmp_path, ray_session):
    client = _client(IndexBackend(Served(index_uri=str(tmp_path / "none"))))
    assert client.get("/v1/ready").status_code == 503
    assert client.post("/v1/search", json={"vector": [1.0]}).status_code == 404
