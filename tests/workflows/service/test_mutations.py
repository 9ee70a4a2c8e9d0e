"""Mutated requests and pictures are answered, never with 500, late, or at the cost of memory."""

import base64
import io
import json
import random
from functools import cache, partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.search.searcher import Searcher
from storage.scene import CatalogSpec
from tests.support.fuzz import ODD_VALUES, faults_of, mutate_bytes, mutate_document
from tests.support.service_world import make_world
from workflows.service import backend
from workflows.service.app import create_app
from workflows.service.decoding import Decoder
from workflows.service.settings import Limits

TILE = "epsg32632-10-32/1000/-15000"
BODIES = (
    {"vector": [0.5] * 16, "k": 3},
    {"lonlat": [6.79, 43.33], "date": "2024-05-03T00:00:00Z", "k": 2},
    {"tile": TILE, "scene": "site_20240501"},
    {"box": [6.0, 43.0, 7.0, 44.0]},
    {"positive": [{"tile": TILE}], "negative": [{"tile": TILE, "scene": "site_20240601"}]},
    {
        "vector": [0.5] * 16,
        "filter": {
            "bbox": [170.0, -10.0, -170.0, 10.0],
            "polygon": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
            "since": "2024-01-01",
            "until": "2024-12-31T23:59:59+14:00",
            "max_cloud_fraction": 0.5,
            "scenes": ["site_20240501"],
            "labels": [],
        },
    },
)
ODD_PARTS = (
    *("\u00b2", "\u0661", "--1", "+1", " 1", "1_0", "0x1", "1e3", "007", "-0", "9" * 400, "%"),
    *("\x00", "..", ".", "", "\u00e9", "\ud800", "a b", "2147483648", "-2147483649", "NaN", "1.0"),
)


@cache
def pictures() -> tuple[bytes, ...]:
    """Return a picture of each kind that is decoded."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    colours = Image.fromarray(pixels[..., :3])
    made = [
        (colours, "PNG", {}),
        (Image.fromarray(pixels, "RGBA"), "PNG", {}),
        (colours.convert("P"), "PNG", {"transparency": 3}),
        (colours.convert("1"), "PNG", {}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (colours, "JPEG", {}),
        (colours, "JPEG", {"progressive": True}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
    ]
    files = []
    for image, kind, options in made:
        out = io.BytesIO()
        image.save(out, kind, **options)
        files.append(out.getvalue())
    return tuple(files)


@cache
def client(folder: str) -> TestClient:
    """Return a client of the service."""
    config = backend.BackendConfig(
        index_uri=f"{folder}/index",
        catalog=CatalogSpec(source=f"{folder}/scenes/*.tif"),
        max_image_px=1_000_000,
    )
    app = create_app(backend.IndexBackend(config), limits=Limits(rate_per_s=0))
    return TestClient(app, base_url="http://127.0.0.1:8000").__enter__()


class _WithoutRay(Searcher):
    @classmethod
    def connect(cls, index, version=None, **options) -> Searcher:
        return Searcher.local(index, version=version)


def ask(folder: str, seed: int) -> None:
    """Send the request of a seed, in a process that has no Ray."""
    backend.Searcher = _WithoutRay
    rng = random.Random(seed)
    request = rng.choice([_json, _json, _raw_json, _form, _tile, _list])
    method, path, options = request(rng)
    answer = client(folder).request(method, path, **options)  # raises what would be a 500
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert "\n" not in answer.json()["message"]


def _json(rng: random.Random) -> tuple[str, str, dict]:
    body = json.dumps(mutate_document(rng.choice(BODIES), rng))
    return "POST", "/v1/search", {"content": body, "headers": {"Content-Type": "application/json"}}


def _raw_json(rng: random.Random) -> tuple[str, str, dict]:
    body = mutate_bytes(json.dumps(rng.choice(BODIES)).encode(), rng)
    return "POST", "/v1/search", {"content": body, "headers": {"Content-Type": "application/json"}}


def _form(rng: random.Random) -> tuple[str, str, dict]:
    image = mutate_bytes(rng.choice(pictures()), rng)
    query = json.dumps(mutate_document({"k": 2, "filter": BODIES[-1]["filter"]}, rng)).encode()
    if rng.random() < 0.2:
        return "POST", "/v1/search", {"json": {"image_base64": base64.b64encode(image).decode()}}
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image,
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\n' + query,
    ]
    body = b"\r\n".join([*rng.sample(parts, rng.choice((1, 2, 2, 2))), b"--b--\r\n"])
    if rng.random() < 0.3:
        body = mutate_bytes(body, rng)
    kind = rng.choice(["b"] * 8 + ["c", "", "b; charset=utf-16"])
    headers = {"Content-Type": f"multipart/form-data; boundary={kind}"}
    return "POST", "/v1/search", {"content": body, "headers": headers}


def _tile(rng: random.Random) -> tuple[str, str, dict]:
    parts = TILE.split("/")
    parts[rng.randrange(3)] = rng.choice(ODD_PARTS)
    path = "/".join(quote(part, safe="", errors="surrogatepass") for part in parts)
    if rng.random() < 0.5:
        return "GET", f"/v1/tiles/{path}", {}
    odd = rng.choice(ODD_PARTS)
    query = quote(odd, errors="surrogatepass")
    key = rng.choice(["scene", "size"])
    place = path if rng.random() < 0.3 else TILE
    headers = {"If-None-Match": rng.choice(["", "*", '"', '"abc", W/"d"'])}
    return "GET", f"/v1/tiles/{place}/thumbnail.png?{key}={query}", {"headers": headers}


def _list(rng: random.Random) -> tuple[str, str, dict]:
    value = str(rng.choice([*ODD_PARTS, *ODD_VALUES]))[:2000]
    query = f"{rng.choice(['offset', 'limit', 'state'])}={quote(value, errors='surrogatepass')}"
    path = rng.choice(["/v1/scenes", "/v1/index", "/v1/ready", "/metrics", "/v1/health", "/"])
    accept = rng.choice(["", "*/*", "application/geo+json", "application/vnd.apache.parquet", ";"])
    return "GET", f"{path}?{query}", {"headers": {"Accept": accept}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_session) -> str:
    place: Path = tmp_path_factory.mktemp("service")
    make_world(place)
    return str(place)


def test_the_requests_are_answered_before_they_are_mutated(folder):
    assert client(folder).get("/v1/ready").json()["rows"] == 48
    assert client(folder).get(f"/v1/tiles/{TILE}").json()["acquisitions"]
    statuses = [client(folder).post("/v1/search", json=body).status_code for body in BODIES]
    assert statuses == [200] * len(BODIES)
    for picture in pictures():
        answer = client(folder).post("/v1/search", files={"image": picture})
        assert answer.status_code == 200 or "bands" in answer.json()["message"], answer.text


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_requests_are_answered(folder, count):
    assert faults_of(partial(ask, folder), range(count)) == []


@cache
def decoder() -> Decoder:
    """Return the decoder of a process."""
    return Decoder(1 << 20)


def decode(seed: int) -> None:
    """Decode the picture of a seed."""
    rng = random.Random(seed)
    pixels = decoder()(mutate_bytes(rng.choice(pictures()), rng))
    assert pixels.dtype == np.float32
    assert pixels.ndim == 3


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_mutated_pictures_are_decoded_or_refused(count):
    assert faults_of(decode, range(count)) == []
