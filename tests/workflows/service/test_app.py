"""The HTTP application: authentication, refused requests, content of the answers."""

import asyncio
import base64
import io
import json
import re
import threading
import time
from collections.abc import AsyncIterator

import geopandas as gpd
import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient

from storage.errors import ConfigError, CorruptIndexError, NotFoundError, SearchUnavailableError
from tests.support.service_backend import PNG, OneRow
from workflows.service.app import create_app
from workflows.service.guard import Buckets
from workflows.service.schema import (
    SearchAnswer,
    SearchBody,
)
from workflows.service.settings import Limits, MapConfig, ServiceSpec, check_exposure
from workflows.service.tokens import token_digests

TOKEN = "0123456789abcdef-token"
OTHER = "fedcba9876543210-token"
GUARDED = (
    "/v1/index",
    "/v1/mosaic/0/0/0",
    "/v1/scenes",
    "/v1/tiles/g/1/2/thumbnail.png",
    "/v1/scores/1/0/0.mvt?like=ADw",
    "/v1/colours/1/0/0.mvt",
    "/metrics",
)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def backend():
    return OneRow()


@pytest.fixture
def client(backend):
    return _client(backend)


def _client(backend, **settings) -> TestClient:
    return TestClient(create_app(backend, **settings), base_url="http://127.0.0.1:8000")


def test_a_search_passes_the_query_and_returns_hits(client, backend):
    query = {"lonlat": [10, 20], "k": 3, "filter": {"bbox": [0, 0, 1, 1], "scenes": ["a"]}}
    answer = client.post("/v1/search", json=query)
    assert answer.status_code == 200
    assert answer.json()["hits"][0]["tile_key"] == "g/1/2"
    assert answer.json()["coverage"] == 1.0
    body, image = backend.requests[0]
    assert (body.lonlat, body.k, body.filter.scenes, image) == ((10, 20), 3, ["a"], None)


def test_geojson_is_given_when_asked_for_and_cut_at_the_antimeridian(client):
    answer = client.post(
        "/v1/search", json={"vector": [1.0]}, headers={"Accept": "application/geo+json"}
    )
    assert answer.headers["content-type"] == "application/geo+json"
    (feature,) = answer.json()["features"]
    (east,), (west,) = feature["geometry"]["coordinates"]
    assert {point[0] for point in east} == {179.0, 180.0}
    assert {point[0] for point in west} == {-180.0, -179.0}
    assert feature["properties"]["score"] == 0.5


def test_parquet_is_negotiated(client):
    headers = {"Accept": "application/vnd.apache.parquet"}
    for answer in (
        client.post("/v1/search", json={"vector": [1.0]}, headers=headers),
        client.get("/v1/scenes", headers=headers),
    ):
        assert answer.headers["content-type"] == "application/vnd.apache.parquet"
        frame = gpd.read_parquet(io.BytesIO(answer.content))
        assert frame.crs.to_authority() == ("OGC", "CRS84")
        assert len(frame) == len(frame.geometry.dropna()) > 0


def test_an_image_arrives_as_base64_or_in_a_form(client, backend):
    encoded = base64.b64encode(PNG).decode()
    assert client.post("/v1/search", json={"image_base64": encoded}).status_code == 200
    query = json.dumps({"k": 2, "filter": {"bbox": [0, 0, 1, 1]}})
    answer = client.post(
        "/v1/search", files={"image": ("../../evil.png", PNG)}, data={"query": query}
    )
    assert answer.status_code == 200, answer.text
    assert [image for _, image in backend.requests] == [PNG] * 2
    assert backend.requests[1][0].filter.bbox == (0, 0, 1, 1)
    assert client.post("/v1/search", files={"image": ("a.png", PNG)}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "word"),
    [
        (b"x", "multipart/form-data", 422, "boundary"),
        (b"x", "multipart/form-data; boundary=b", 422, "boundary"),
        (
            b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\n{}\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
            "no part `image`",
        ),
        (b"k=1", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
    ],
)
def test_an_invalid_form_is_named(client, content, kind, status, word):
    answer = client.post("/v1/search", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert word in answer.json()["message"]


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"image": (None, PNG)}, "no part `image` that is a file"),
        ({"image": PNG, "query": (None, "{")}, "not valid JSON"),
        ({"image": PNG, "query": (None, "[]")}, "not a JSON object"),
        ({"image": PNG, "query": (None, " " * (8 * 2**20 + 1))}, "8,388,608 bytes a field"),
        ({f"file{n}": PNG for n in range(9)}, "at most 8 files and fields"),
        ({f"field{n}": (None, "x") for n in range(9)}, "at most 8 files and fields"),
    ],
)
def test_a_form_is_bounded_and_its_faults_are_named(client, backend, parts, word):
    answer = client.post("/v1/search", files=parts)
    assert answer.status_code == 422, answer.text
    assert word in answer.json()["message"]
    assert backend.requests == []


def test_a_long_form_is_refused_while_it_is_read(backend):
    client = _client(backend, limits=Limits(max_body_bytes=1000))
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    answer = client.post(
        "/v1/search",
        content=(part for part in [head, *[bytes(100)] * 50, b"\r\n--b--\r\n"]),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert (answer.status_code, "1,000 bytes" in answer.json()["message"]) == (413, True)
    assert backend.requests == []


def test_a_query_may_be_a_file_and_the_last_of_equal_parts_counts(client, backend):
    parts = [("image", PNG), ("image", PNG + b"2"), ("query", ("q.json", b'{"k": 3}'))]
    assert client.post("/v1/search", files=parts).status_code == 200
    ((body, image),) = backend.requests
    assert (body.k, image) == (3, PNG + b"2")


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
        ({"vector": [1.0], "k": "3"}, "body.k"),
        ({"negative": [{"tile": "g/1/2"}]}, "or positive examples"),
        ({"image_base64": "%%%"}, "not valid base64"),
    ],
)
def test_a_wrong_request_is_named_in_one_line(client, body, word):
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 422
    assert word in answer.json()["message"]
    assert "\n" not in answer.json()["message"]


def test_not_a_number_is_no_vector(client):
    answer = client.post("/v1/search", content=b'{"vector": [NaN]}', headers=JSON)
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


@pytest.mark.parametrize("kind", [RuntimeError, CorruptIndexError])
def test_a_fault_of_the_service_tells_nothing_of_itself(backend, kind):
    backend.fault = kind("/secret/path")
    client = TestClient(
        create_app(backend), base_url="http://127.0.0.1", raise_server_exceptions=False
    )
    answer = client.post("/v1/search", json={"vector": [1.0]})
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert "secret" not in answer.text


def test_all_but_the_probes_and_the_page_need_a_token(backend, caplog):
    caplog.set_level("INFO")
    client = _client(backend, digests=token_digests(f"{OTHER}, {TOKEN}"))
    for path in ("/v1/health", "/v1/ready", "/", "/web/main.js", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    for authorization in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
        headers = {"Authorization": authorization} if authorization else {}
        for answer in (
            client.post("/v1/search", json={"vector": [1.0]}, headers=headers),
            *(client.get(path, headers=headers) for path in GUARDED),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
    assert backend.requests == []
    for token in (TOKEN, OTHER):
        good = {"Authorization": f"Bearer {token}"}
        assert client.post("/v1/search", json={"vector": [1.0]}, headers=good).status_code == 200
        assert [client.get(path, headers=good).status_code for path in GUARDED] == [200] * len(
            GUARDED
        )
    lines = [record.getMessage() for record in caplog.records if record.name == "skysift.access"]
    assert len(lines) == 5 + (5 + 2) * (1 + len(GUARDED))
    assert all(TOKEN not in line and OTHER not in line for line in lines)
    assert json.loads(lines[-1])["route"] == "/metrics"


def test_browsers_keep_the_script_and_the_styles_of_the_page(client):
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.headers["cache-control"] == "no-cache"
    found = re.findall(r'"(web/map[^"]*)"', page.text)
    assert [re.sub(r"\?[0-9a-f]{16}$", "", path) for path in found] == ["web/map.css", "web/map.js"]
    for path, kind in zip(found, ("text/css", "text/javascript"), strict=True):
        answer = client.get(f"/{path}")
        assert answer.headers["content-type"].startswith(kind)
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("tokens", ["secret", f"{TOKEN},", f"{TOKEN},secret"])
def test_a_short_token_is_refused(tokens):
    with pytest.raises(ConfigError, match="at least 16"):
        token_digests(tokens)


def test_a_client_above_its_rate_waits_and_others_do_not(backend):
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    assert [buckets.take("a", 2.0, 3) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", 2.0, 3) == 0
    now[0] = 0.5
    assert [buckets.take("a", 2.0, 3) for _ in range(2)] == [0, 0.5]
    client = _client(backend, limits=Limits(rate_per_s=0.001, burst=2))
    answers = [client.get("/v1/scenes") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert client.get("/v1/health").status_code == 200


def test_wrong_tokens_count_against_the_rate(backend):
    limits = Limits(rate_per_s=0.001, burst=3)
    client = _client(backend, digests=token_digests(TOKEN), limits=limits)
    guesses = [
        client.get("/v1/scenes", headers={"Authorization": f"Bearer {n}"}).status_code
        for n in range(5)
    ]
    assert guesses == [401, 401, 401, 429, 429]
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/scenes", headers=good).status_code == 200


def test_only_named_origins_may_send_requests(backend):
    ask = {"Origin": "https://maps.example", "Access-Control-Request-Method": "POST"}
    assert (
        "access-control-allow-origin"
        not in _client(backend).options("/v1/search", headers=ask).headers
    )
    named = _client(backend, map_config=MapConfig(cors_origins=("https://maps.example",)))
    allowed = named.options("/v1/search", headers=ask).headers
    assert allowed["access-control-allow-origin"] == "https://maps.example"
    other = named.options("/v1/search", headers={**ask, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_the_page_lets_nothing_foreign_in_but_the_base_map(backend):
    policy = _client(backend).get("/").headers["content-security-policy"]
    assert "http" not in policy
    assert "unsafe" not in policy
    map_config = MapConfig(base_map="https://tiles.example/{z}/{x}/{y}.png?key=1")
    policy = _client(backend, map_config=map_config).get("/").headers["content-security-policy"]
    assert "img-src 'self' blob: data: https://tiles.example;" in policy
    with pytest.raises(ConfigError, match="not a URL template"):
        create_app(backend, map_config=MapConfig(base_map="tiles/{z}"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/tiles/g/1/-2/thumbnail.png?scene=a&size=64", "image/png"),
        ("/v1/mosaic/3/1/2?since=2024-05-01", "image/webp"),
    ],
)
def test_a_picture_is_not_sent_twice(client, path, kind):
    first = client.get(path)
    assert (first.content, first.headers["content-type"]) == (PNG, kind)
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["1/2/0", "25/0/0", "a/0/0", "1/0/-1", "0/0/0?since=x", "0/0/0?gamma=0"]
)
def test_a_tile_of_no_map_is_refused(client, path):
    assert client.get(f"/v1/mosaic/{path}").status_code in (404, 422)


@pytest.mark.parametrize("path", ["../../etc/passwd", "g/1/x", "G%2f..%2f/1/2", "g;rm/1/2"])
def test_an_invalid_tile_key_never_reaches_the_archive(client, path):
    assert client.get(f"/v1/tiles/{path}").status_code in (404, 422)
    assert client.get(f"/v1/tiles/{path}/thumbnail.png").status_code in (404, 422)


def test_requests_are_counted_by_route(client):
    client.post("/v1/search", json={"vector": [1.0]})
    client.post("/v1/search", json={})
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert re.search(r'requests_total\{.*route="/v1/search",status="200"\} 1.0', text)
    assert re.search(r'requests_total\{.*route="/v1/search",status="422"\} 1.0', text)
    assert re.search(r'requests_total\{.*route="other",status="404"\} 1.0', text)
    assert re.search(r'request_seconds_count\{.*route="/v1/search"\} 2.0', text)


def test_a_long_body_is_refused_whether_its_length_is_declared_or_not(backend):
    client = _client(backend, limits=Limits(max_body_bytes=1000))
    body = json.dumps({"vector": [1.0] * 1000}).encode()
    declared = client.post("/v1/search", content=body)
    parts = (body[i : i + 100] for i in range(0, 5000, 100))
    undeclared = client.post("/v1/search", content=parts, headers=JSON)
    assert (declared.status_code, undeclared.status_code) == (413, 413)
    assert "1,000 bytes" in undeclared.json()["message"]
    assert backend.requests == []


def test_a_web_page_elsewhere_cannot_reach_a_service_on_loopback(backend):
    client = _client(backend)
    answer = client.get("/v1/health", headers={"Host": "evil.example:8000"})
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in client.get("/v1/health").headers
    assert _client(backend, hosts=None).get("/v1/health", headers={"Host": "a.b"}).is_success


def test_ready_says_what_is_served_or_503(client, backend):
    assert client.get("/v1/ready").json()["version"] == "0001-ab"
    backend.fault = NotFoundError("no index")
    assert client.get("/v1/ready").json()["message"] == "no index"
    backend.fault = OSError("/secret/path is not reachable")
    answer = client.get("/v1/ready")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "secret" not in answer.text


def test_scenes_come_in_pages(client):
    first = client.get("/v1/scenes?limit=2").json()
    rest = client.get("/v1/scenes?limit=2&offset=2").json()
    assert [s["scene"] for s in first["scenes"] + rest["scenes"]] == ["s0", "s1", "s2"]
    assert first["total"] == 3
    assert client.get("/v1/scenes?limit=0").status_code == 422


def test_openapi_names_every_route(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/collections",
        "/collections/searches/{search}",
        "/collections/searches/{search}/items",
        "/collections/searches/{search}/items/{feature}",
        "/collections/searches/{search}/queryables",
        "/collections/{collection}",
        "/collections/{collection}/items",
        "/collections/{collection}/items/{feature}",
        "/collections/{collection}/queryables",
        "/conformance",
        "/metrics",
        "/search",
        "/v1/accuracy",
        "/v1/change",
        "/v1/colours/{z}/{x}/{y}.mvt",
        "/v1/detections",
        "/v1/health",
        "/v1/index",
        "/v1/indexes",
        "/v1/marks",
        "/v1/mosaic/{z}/{x}/{y}",
        "/v1/ready",
        "/v1/saved-search",
        "/v1/saved-search/open",
        "/v1/scenes",
        "/v1/scores/{z}/{x}/{y}.mvt",
        "/v1/search",
        "/v1/suggestions",
        "/v1/tiles/{grid}/{column}/{row}",
        "/v1/tiles/{grid}/{column}/{row}/thumbnail.png",
    }
    assert document["components"]["schemas"]["SearchBody"]["examples"]
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/suggestions", "/v1/detections", "/v1/marks", "/v1/saved-search", "/v1/saved-search/open"],
)
def test_marks_need_a_token_too(backend, path):
    client = _client(backend, digests=token_digests(TOKEN))
    assert client.post(path, json={"positive": [{"tile": "g/1/2"}]}).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_beyond_loopback_a_token_is_required(host):
    with pytest.raises(ConfigError, match="SKYSIFT_TOKEN"):
        check_exposure(ServiceSpec(host=host))
    assert check_exposure(ServiceSpec(host=host, token=TOKEN)) == token_digests(TOKEN)
    assert TOKEN not in repr(ServiceSpec(host=host, token=TOKEN))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_no_token_is_needed(host):
    assert check_exposure(ServiceSpec(host=host)) == ()


# ---------------------------------------------------------------- pages elsewhere


EVIL = "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, True),  # a program
        ({"Origin": "http://127.0.0.1:8000"}, True),  # the map, in a browser without metadata
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://search.example", "Sec-Fetch-Site": "same-origin"}, True),  # by a proxy
        ({"Sec-Fetch-Site": "none"}, True),  # typed by a person
        ({"Origin": "https://maps.example"}, True),
        ({"Origin": "https://maps.example", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": EVIL}, False),
        ({"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:3000"}, False),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://maps.example.evil.example"}, False),
        (
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
            False,
        ),  # an image of a tile
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
    ],
)
def test_a_page_elsewhere_makes_no_route_work(backend, headers, admitted):
    named = MapConfig(cors_origins=("https://maps.example",))
    client = _client(backend, map_config=named)
    form = {"image": ("a.png", PNG)}
    answers = [
        client.post("/v1/search", json={"vector": [1.0]}, headers=headers),
        client.post("/v1/search", files=form, headers=headers),
        *(client.get(path, headers=headers) for path in (*GUARDED, "/v1/ready")),
    ]
    assert {answer.status_code for answer in answers} == {200 if admitted else 403}
    assert len(backend.requests) == (2 if admitted else 0)
    # whether a tile is there cannot be told either
    gone = client.get("/v1/tiles/g/9/9", headers=headers)
    assert gone.status_code == (404 if admitted else 403)


def test_a_link_elsewhere_opens_the_map_and_nothing_else(client):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.post("/", headers=link).status_code == 403
    assert client.get("/", headers={**link, "Sec-Fetch-Mode": "no-cors"}).status_code == 403


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_says_that_it_is_json_or_a_form(client, backend, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post("/v1/search", content=b'{"vector": [1.0]}', headers=headers)
    assert answer.status_code == 415
    assert backend.requests == []


def test_every_answer_stays_with_its_origin(backend):
    backend.fault = RuntimeError()
    client = TestClient(
        create_app(backend), base_url="http://127.0.0.1", raise_server_exceptions=False
    )
    vector = {"json": {"vector": [1.0]}}
    for status, answer in (
        (200, client.get("/v1/health")),
        (400, client.get("/v1/health", headers={"Host": "evil.example"})),
        (403, client.get("/v1/scenes", headers={"Origin": EVIL})),
        (404, client.get("/nowhere")),
        (405, client.put("/v1/health")),
        (422, client.post("/v1/search", json={})),
        (500, client.post("/v1/search", **vector)),
    ):
        assert answer.status_code == status
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"


# ---------------------------------------------------------------- bounded and shared


class _Slow(OneRow):
    """A backend whose searches wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.inside = 0

    def search(self, body: SearchBody, image: bytes | None) -> SearchAnswer:
        self.inside += 1
        assert self.go_on.wait(30)
        return super().search(body, image)

    suggest = search


async def _waiting(
    app, count: int, address: str, backend: _Slow, route: str = "search", **request
) -> list:
    """Start requests of one client; return their tasks once the service has as many as it takes."""
    transport = httpx.ASGITransport(app, client=(address, 1))
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")
    before = backend.inside
    tasks = [asyncio.create_task(client.post(f"/v1/{route}", **request)) for _ in range(count)]
    for _ in range(50):
        await asyncio.sleep(0.01)
        if backend.inside - before == count:
            break
    return tasks


def test_one_client_cannot_hold_every_place():
    backend = _Slow()
    app = create_app(backend, limits=Limits(share=5, decoding=2))
    vector = {"json": {"vector": [1.0]}}

    async def run() -> list[int]:
        mine = await _waiting(app, 7, "10.0.0.1", backend, **vector)
        assert backend.inside == 5
        yours = await _waiting(app, 1, "10.0.0.2", backend, **vector)
        assert backend.inside == 6
        backend.go_on.set()
        answers = await asyncio.gather(*mine, *yours)
        again = await _waiting(app, 5, "10.0.0.1", backend, **vector)
        return [answer.status_code for answer in answers + await asyncio.gather(*again)]

    assert sorted(asyncio.run(run())) == [200] * 11 + [429] * 2


@pytest.mark.parametrize(
    ("route", "long"),
    [
        ("search", {"files": {"image": ("a.png", PNG)}}),
        ("suggestions", {"json": {"positive": [{"tile": "g/1/2"}]}}),
    ],
)
def test_one_client_cannot_hold_every_place_of_long_work(route, long):
    backend = _Slow()
    app = create_app(backend, limits=Limits(decoding=2))

    async def run() -> set[int]:
        mine = await _waiting(app, 4, "10.0.0.1", backend, route, **long)
        assert backend.inside == 1
        yours = await _waiting(app, 1, "10.0.0.2", backend, route, **long)
        assert backend.inside == 2
        backend.go_on.set()
        return {answer.status_code for answer in await asyncio.gather(*mine, *yours)}

    assert asyncio.run(run()) == {200}


def test_health_answers_when_every_thread_is_taken():
    backend = _Slow()
    app = create_app(backend, limits=Limits(share=100))

    async def run() -> int:
        tasks = await _waiting(app, 60, "10.0.0.1", backend, json={"vector": [1.0]})
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await asyncio.wait_for(client.get("/v1/health"), 5)
        backend.go_on.set()
        await asyncio.gather(*tasks)
        return answer.status_code

    assert asyncio.run(run()) == 200


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_slow_upload_is_ended(backend, kind):
    app = create_app(backend, limits=Limits(upload_s=0.2))

    async def endless() -> AsyncIterator[bytes]:
        yield _form_data(IMAGE + b"\r\n\r\nx")[:-9]
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            headers = {"Content-Type": kind}
            return await client.post("/v1/search", content=endless(), headers=headers)

    answer = asyncio.run(asyncio.wait_for(run(), 10))
    assert (answer.status_code, "0.2 s" in answer.json()["message"]) == (408, True)
    assert backend.requests == []


@pytest.mark.parametrize(
    "query",
    [
        (b"", b"[", 1_000_000, b""),
        (b'{"filter": {"polygon": ', b'{"a":', 90_000, b""),
        (b'{"vector": [', b"0,", 4_000_000, b"0]}"),
        (b"{", b'"x":1,', 49_000, b'"x":1}'),
        (b'{"positive": [', b"1,", 99_000, b"1]}"),
        (b'{"k": ', b"9", 5_000_000, b"}"),
        (b'{"tile": "', b"a", 8_000_000, b'"}'),
        (b'{"tile": "', b"\\ud800", 1, b'"}'),
        (b"\xff\xfe", b"{\x00", 1, b"}\x00"),
        (b"", b"\x00", 1_000_000, b""),
    ],
)
@pytest.mark.parametrize("in_form", [True, False])
def test_a_query_that_is_large_or_odd_is_refused_at_once(client, backend, query, in_form):
    head, repeated, count, tail = query
    query = head + repeated * count + tail
    since = time.monotonic()
    if in_form:
        parts = {"image": ("a.png", PNG), "query": ("q.json", query)}
        answer = client.post("/v1/search", files=parts)
    else:
        answer = client.post("/v1/search", content=query, headers=JSON)
    assert answer.status_code == 422, answer.text[:300]
    assert len(answer.text) < 1000
    assert time.monotonic() - since < 2
    assert backend.requests == []


@pytest.mark.parametrize(
    "charset", ["utf-16", "idna", "punycode", "undefined", "zlib", "utf-8; charset=idna"]
)
def test_a_form_is_read_as_utf8_only(client, backend, charset):
    """Python's codecs take a form's text in quadratic time, or fail in ways of their own."""
    form = _form_data(b"; name=query\r\n\r\n{}", IMAGE + b"\r\n\r\nx")
    kind = f"multipart/form-data; charset={charset}; boundary=b"
    answer = client.post("/v1/search", content=form, headers={"Content-Type": kind})
    assert answer.status_code == 415, answer.text
    form = _form_data(IMAGE + b"\r\n\r\nx")
    for named in ('charset="UTF-8"; boundary=b', "boundary=b; charset=utf8"):
        kind = f"multipart/form-data; {named}"
        answer = client.post("/v1/search", content=form, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text


IMAGE = b"; name=image; filename=a"


@pytest.mark.parametrize(
    ("head", "repeated", "count", "tail", "status"),
    [
        (b"; name=image", b"\r\n ;a=b", 1_000_000, b"\r\n\r\nx", 422),
        (IMAGE, b"; a", 4_000_000, b"\r\n\r\nx", 422),
        (IMAGE, b'; a*1=""', 1_500_000, b"\r\n\r\nx", 422),
        (IMAGE + b"\r\n", b"X: y\r\n", 2_000_000, b"\r\nx", 422),
        (b"", b"\r\n--b", 1_000_000, b"", 422),
        (IMAGE + b"\r\n\r\n", b"\r\n--", 3_500_000, b"", 200),
        (IMAGE + b"\r\n\r\n", b"\r", 15_000_000, b"", 200),
    ],
)
def test_a_form_of_many_parts_or_long_headers_takes_no_time(
    client, backend, head, repeated, count, tail, status
):
    since = time.monotonic()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    form = _form_data(head + repeated * count + tail)
    answer = client.post("/v1/search", content=form, headers=headers)
    assert answer.status_code == status, answer.text
    assert time.monotonic() - since < 3


def _form_data(*parts: bytes) -> bytes:
    head = b"--b\r\nContent-Disposition: form-data"
    return b"".join(head + part + b"\r\n" for part in parts) + b"--b--\r\n"
