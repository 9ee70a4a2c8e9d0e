"""Pictures from the index alone: archive and scenes in an object store, and Ray Serve."""

import io
import json
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient
from PIL import Image
from ray import serve

from storage.archive.maintenance import remember
from storage.archive.reader import Archive
from storage.location import Location
from storage.scene import BandSource
from tests.support.object_store import MotoS3
from tests.support.service_world import TILE_PX, make_world, write_scene
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend, no_pictures_because
from workflows.service.deploy import Arguments, application
from workflows.service.settings import BackendConfig, Limits

TOKEN = "0123456789abcdef" * 4
SECRET = "HUSH"

pytestmark = pytest.mark.usefixtures("ray_session")


def _client(config: BackendConfig) -> TestClient:
    app = create_app(IndexBackend(config), limits=Limits(rate_per_s=0))
    return TestClient(app, base_url="http://127.0.0.1:8000")


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def _middle_tile(about: dict, z: int = 16) -> str:
    west, south, east, north = about["bbox"]
    lat = np.radians((south + north) / 2)
    x = int(((west + east) / 2 + 180) / 360 * 2**z)
    y = int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**z)
    return f"{z}/{x}/{y}"


def test_the_service_shows_pictures_of_an_archive_in_an_object_store(
    moto_s3: MotoS3, tmp_path: Path
):
    """Truth: the pixels of the same scene, written to this disk."""
    place = moto_s3.location("world")
    make_world(place)
    client = _client(BackendConfig(index_uri=place / "index"))
    about = client.get("/v1/index").json()
    assert (about["pictures"], about["no_pictures_because"]) == (True, "")
    body = {"vector": [1.0] * 16, "k": 1, "filter": {"since": "2024-06-01", "until": "2024-06-01"}}
    (hit,) = client.post("/v1/search", json=body).json()["hits"]
    path = f"/v1/tiles/{hit['tile_key']}/thumbnail.png"
    thumbnail = client.get(path, params={"scene": hit["scene"], "size": TILE_PX})
    write_scene(Location.of(tmp_path), "20240601", seed=1)
    with rasterio.open(tmp_path / "site_20240601.tif") as file:
        whole = file.read().transpose(1, 2, 0)
    shown = _pixels(thumbnail.content)[..., :3]
    squares = [
        whole[row : row + TILE_PX, column : column + TILE_PX]
        for row in range(0, len(whole), TILE_PX)
        for column in range(0, len(whole), TILE_PX)
    ]
    assert sum(np.array_equal(shown, square) for square in squares) == 1
    mosaic = client.get(f"/v1/mosaic/{_middle_tile(about)}?until=2024-06-01")
    image = _pixels(mosaic.content)
    assert image[..., 3].min() == 255
    assert np.ptp(image[..., :3].reshape(-1, 3), axis=0).min() > 20


def test_an_archive_keeps_no_signature_and_the_service_says_so(tmp_path: Path):
    config = make_world(tmp_path)
    archive = Archive.open(str(tmp_path / "archive"))
    signed = [
        _with_href(archive, entry.scene_id, f"https://h/{entry.scene_id}.tif?sig={SECRET}")
        for entry in archive.scenes()
    ]
    remember(str(tmp_path / "archive"), f"https://h/items.json?sig={SECRET}", signed)
    alone = BackendConfig(index_uri=config.index_uri)
    client = _client(alone)
    about = client.get("/v1/index").json()
    assert about["pictures"] is False
    assert "signed addresses" in about["no_pictures_because"]
    assert "--scenes https://h/items.json" in about["no_pictures_because"]
    assert no_pictures_because(alone) == about["no_pictures_because"]
    (hit,) = client.post("/v1/search", json={"vector": [1.0] * 16, "k": 1}).json()["hits"]
    answers = [
        client.get("/v1/index"),
        client.get(f"/v1/tiles/{hit['tile_key']}/thumbnail.png"),
        client.get(f"/v1/mosaic/{_middle_tile(about)}"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 404]
    assert all("signed addresses" in answer.text for answer in answers)
    assert all(SECRET not in answer.text for answer in answers)
    files = [path.read_bytes() for path in (tmp_path / "archive").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in files)
    assert _client(config).get(f"/v1/tiles/{hit['tile_key']}/thumbnail.png").status_code == 200


def _with_href(archive: Archive, scene_id: str, address: str):
    scene = archive.scene(scene_id)
    href = Location(address)
    bands = tuple(BandSource(name=b.name, href=href, index=b.index) for b in scene.bands)
    return type(scene)(id=scene.id, datetime=scene.datetime, bands=bands)


def test_the_application_of_ray_serve_shows_pictures_of_the_index_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a RayService of deploy/kuberay runs, with an index and no catalog."""
    make_world(tmp_path)
    monkeypatch.setenv("SKYSIFT_TOKEN", TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def get(path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps({"index": {"uri": str(tmp_path / "index")}}))
        made = application(Arguments(recipe=str(recipe)))
        serve.run(made, name="pictures", route_prefix="/")
        about = json.loads(get("/v1/index"))
        assert about["pictures"] is True
        query = json.dumps({"vector": [1.0] * 16, "k": 1}).encode()
        (hit,) = json.loads(get("/v1/search", query))["hits"]
        thumbnail = _pixels(get(f"/v1/tiles/{hit['tile_key']}/thumbnail.png?size=64"))
        assert thumbnail.shape[:2] == (64, 64)
        assert np.ptp(thumbnail[..., :3]) > 10
        mosaic = _pixels(get(f"/v1/mosaic/{_middle_tile(about)}"))
        assert mosaic[..., 3].min() == 255
    finally:
        serve.shutdown()
