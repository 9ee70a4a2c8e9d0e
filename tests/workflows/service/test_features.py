"""The layers as other programs read them: pystac-client, GDAL, and the standards' own schemas."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pystac
import pytest
import requests
import shapely
from fastapi.testclient import TestClient
from pystac_client import Client

from pipeline.search.saved import SavedSearch, plain_filter, save_search
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.index.filter import Filter
from storage.location import Location
from tests.support.service_world import DAYS, TILES, make_world, serving
from workflows.service.app import create_app, create_service
from workflows.service.backend import IndexBackend
from workflows.service.collections import _tile_feature
from workflows.service.settings import BackendConfig, Limits
from workflows.service.tokens import Access

ROWS = TILES * TILES * len(DAYS)
TOKEN = "a-token-of-the-tests"
OTHER = "other"
LANDING_PAGES = ["", f"/v1/{OTHER}/layers"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> BackendConfig:
    folder = tmp_path_factory.mktemp("features")
    made = make_world(folder)
    archive = Archive.open(str(folder / "archive"))
    searcher = Searcher.local(made.index)
    search = SavedSearch(
        title="the first tile",
        encoder_fingerprint=searcher.manifest.encoder_fingerprint,
        vector=tuple(archive.read_all(["embedding"])["embedding"][0].astype(float).tolist()),
        k=20,
        filter=plain_filter(Filter(since="2024-05-15")),
    )
    for place in ("searches", f"searches/{OTHER}"):
        save_search(search, str(folder / place / "first.json"))
    return BackendConfig(index_uri=made.index, searches=str(folder / "searches"))


@pytest.fixture(scope="module")
def app(config: BackendConfig):
    other = replace(config, searches=Location.of(config.searches or "") / OTHER)
    backends = {"first": IndexBackend(config), OTHER: IndexBackend(other)}
    return create_service(backends, Access(), limits=Limits(rate_per_s=0))


@pytest.fixture(scope="module")
def client(app) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def address(app) -> Iterator[str]:
    with serving(app) as address:
        yield address


def pages(client: TestClient, path: str) -> Iterator[dict]:
    """Every page from a path on, by its next links."""
    while path:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield page
        path = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")


def test_every_tile_is_on_one_page_and_where_the_archive_says(
    client: TestClient, config: BackendConfig
):
    found = [
        f for page in pages(client, "/collections/tiles/items?limit=7") for f in page["features"]
    ]
    archive = Searcher.local(config.index).archive
    rows = archive.read_all(["grid", "tile", "tile_key", "scene", "bbox", "datetime"])
    shapes = dict(zip(rows["row"].tolist(), archive.footprints(rows), strict=True))
    assert sorted(f["properties"]["row"] for f in found) == sorted(rows["row"].tolist())
    for feature in found:
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert shape.equals(shapes[feature["properties"]["row"]])
    (page, *_) = pages(client, f"/collections/tiles/items/{found[5]['id']}")
    assert page == found[5]


def test_the_number_of_matches_is_exact_or_left_out(client: TestClient):
    for path in ("tiles/items?", "scenes/items?", "scenes/items?datetime=2024-06-01&"):
        found = list(pages(client, f"/collections/{path}limit=2"))
        numbers = {page["numberMatched"] for page in found}
        assert numbers == {sum(page["numberReturned"] for page in found)}
    (page, *_) = pages(client, "/collections/tiles/items?datetime=2024-06-01&limit=2")
    assert "numberMatched" not in page
    searched = client.get("/search?collections=scenes&limit=1").json()
    assert searched["numberMatched"] == len(
        list(pages(client, "/collections/scenes/items?limit=1"))
    )


def test_bbox_and_datetime_choose_as_the_filter_does(client: TestClient, config: BackendConfig):
    searcher = Searcher.local(config.index)
    west, south, _, north = searcher.manifest.bbox
    box = (west, south, west + 0.003, north)
    query = f"bbox={','.join(map(str, box))}&datetime=2024-05-15/.."
    for limit in (3, 1000):
        found = [
            feature["properties"]["row"]
            for page in pages(client, f"/collections/tiles/items?{query}&limit={limit}")
            for feature in page["features"]
        ]
        wanted = searcher.find(Filter(bbox=box, since="2024-05-15"))["row"].to_pylist()
        assert sorted(found) == sorted(wanted)
        assert 0 < len(found) < ROWS
    one_day = client.get("/collections/scenes/items?datetime=2024-06-01").json()["features"]
    assert [feature["id"] for feature in one_day] == ["site_20240601"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/collections/tiles/items?bbox=1,2,3", "bbox"),
        ("/collections/tiles/items?bbox=5,50,4,nan", "bbox"),
        ("/collections/tiles/items?datetime=yesterday", "yesterday"),
        ("/collections/tiles/items?datetime=a/b/c", "two ends"),
        ("/collections/tiles/items?token=1.x", "token"),
        ("/collections/tiles/items?limit=0", "limit"),
        ("/collections/tiles/items?colour=red", "colour"),
        ("/collections/scenes/items?scene=site_20240601", "no queryable 'scene'"),
        ("/search?intersects=x", "intersects"),
        ("/search?bbox=0,0,1,1&intersects={}", "not both"),
    ],
)
def test_a_wrong_question_is_answered_with_its_reason(client: TestClient, path: str, words: str):
    answer = client.get(path)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["message"]


def test_the_description_of_the_layers_names_the_answers_that_they_give(client: TestClient):
    document = client.get("/openapi.json").json()
    layers = [
        operation
        for operations in document["paths"].values()
        for operation in operations.values()
        if "layers" in operation.get("tags", ())
    ]
    assert len(layers) == 2 * 12  # of the default index, and of the named one
    assert all("400" in one["responses"] and "422" not in one["responses"] for one in layers)
    assert "HTTPValidationError" not in json.dumps(document)


@pytest.mark.parametrize("name", ["tiles", "searches/first"])
def test_each_queryable_chooses_the_features_of_equal_value(client: TestClient, name: str):
    at = f"/collections/{name}"
    links = {link["rel"]: link["href"] for link in client.get(at).json()["links"]}
    answer = client.get(links["http://www.opengis.net/def/rel/ogc/1.0/queryables"])
    assert answer.headers["content-type"] == "application/schema+json"
    everything = client.get(f"{at}/items?limit=2000").json()["features"]
    assert sorted(answer.json()["properties"]) == ["scene", "tile_key"]
    for key in answer.json()["properties"]:
        value = everything[0]["properties"][key]
        wanted = [one["id"] for one in everything if one["properties"][key] == value]
        query = {key: value, "limit": 1}
        first = client.get(f"{at}/items", params=query).json()
        follow = {link["rel"]: link["href"] for link in first["links"]}
        found = client.get(f"{at}/items", params={**query, "limit": 2000}).json()["features"]
        assert [one["id"] for one in found] == wanted
        assert 0 < len(wanted) < len(everything)
        if len(wanted) > 1:
            after = client.get(follow["next"]).json()["features"]
            assert after[0]["id"] == wanted[1]
    assert client.get(f"{at}/items?scene=nothing").json()["features"] == []


def test_what_is_not_there_is_404(client: TestClient):
    for path in ("nothing", "searches/second", "tiles/items/99999", "scenes/items/no"):
        answer = client.get(f"/collections/{path}")
        assert answer.status_code == 404, answer.text
    assert "tiles" in client.get("/collections/tile").json()["message"]


@pytest.mark.parametrize("landing", LANDING_PAGES)
def test_pystac_client_needs_nothing_new(address: str, landing: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        catalog = Client.open(address + landing)
        names = [collection.id for collection in catalog.get_collections()]
        assert names == ["tiles", "scenes", "searches/first"]
        for method in ("GET", "POST"):
            search = catalog.search(collections=["tiles"], limit=10, method=method)
            items = list(search.items())
            assert len({item.id for item in items}) == len(items) == ROWS
            both = catalog.search(limit=ROWS - 2, max_items=1000, method=method)
            assert len(list(both.items())) == ROWS + len(DAYS)
        west, south, _, north = items[0].bbox
        point = {"type": "Point", "coordinates": [west + 1e-4, (south + north) / 2]}
        near = catalog.search(collections=["tiles"], intersects=point, datetime="2024-06-01")
        assert 1 <= len(list(near.items())) <= 4
        assert [i.id for i in catalog.search(ids=["site_20240501"]).items()] == ["site_20240501"]
        hits = list(catalog.get_collection("searches/first").get_items())
    assert [hit.properties["rank"] for hit in hits] == list(range(1, 21))
    assert min(hit.datetime.date().isoformat() for hit in hits) > "2024-05-15"


def test_every_document_is_valid_stac(client: TestClient):
    """pystac brings the schemas of STAC itself, so this needs no network."""
    documents = client.get("/collections").json()["collections"]
    for name in ("tiles", "scenes", "searches/first"):
        (page, *_) = pages(client, f"/collections/{name}/items?limit=2")
        documents += page["features"]
    for document in documents:
        pystac.validation.validate_dict(document)
    landing = client.get("/").json()
    pystac.validation.validate_dict({**landing, "links": landing["links"]})
    assert client.get("/conformance").json()["conformsTo"] == landing["conformsTo"]


def test_the_layers_of_a_named_index_lead_to_no_other_index(client: TestClient):
    landing = client.get(f"/v1/{OTHER}/layers", headers={"Accept": "text/html"}).json()
    layers = f"{client.base_url}/v1/{OTHER}/layers/"
    (page, *_) = pages(client, f"/v1/{OTHER}/layers/collections/tiles/items?limit=2")
    (feature, _) = page["features"]
    links = [*landing["links"], *page["links"], *feature["links"]]
    elsewhere = {one["href"] for one in links if not one["href"].startswith(layers)}
    assert elsewhere == {f"{client.base_url}/docs"}
    picture = feature["assets"]["thumbnail"]["href"]
    assert picture.startswith(f"{client.base_url}/v1/{OTHER}/tiles/")
    assert client.get(picture).headers["content-type"] == "image/png"
    for path in ("openapi.json", "conformance", "collections/searches/first"):
        assert client.get(layers + path).status_code == 200
    for path in ("metrics", "v1/index", "web/map.js"):
        assert client.get(layers + path).status_code == 404


@pytest.mark.parametrize("landing", LANDING_PAGES)
def test_gdal_reads_the_layers(address: str, landing: str):
    """As QGIS does: the driver OAPIF, with the layers' extent, a filter, and pages."""
    ogrinfo = shutil.which("ogrinfo")
    if ogrinfo is None:
        pytest.skip("ogrinfo is not installed: `apt-get install gdal-bin` as root installs it")

    def run(*words: str) -> str:
        command = [ogrinfo, "-ro", f"OAPIF:{address}{landing}", "-oo", "PAGE_SIZE=10", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "tiles" in run()
    text = run("-q", "tiles")
    assert len(set(re.findall(r"row \(\w+\) = (\d+)", text))) == ROWS
    first = re.search(r"POLYGON \(\([^)]*\)\)", text)
    assert first
    west, south, east, north = shapely.from_wkt(first[0]).bounds
    spot = [str(value) for value in ((west + east) / 2, (south + north) / 2) * 2]
    assert 3 <= run("-q", "tiles", "-spat", *spot).count("OGRFeature(tiles)") < ROWS
    assert run("-q", "scenes").count("OGRFeature(scenes)") == len(DAYS)
    assert run("-q", "searches/first").count("OGRFeature(searches/first)") == 20


def test_a_saved_search_is_the_same_search(client: TestClient, config: BackendConfig):
    (page,) = pages(client, "/collections/searches/first/items?limit=50")
    first = page["features"][0]["properties"]
    searcher = Searcher.local(config.index)
    row = searcher.archive.read_all(["embedding"])
    hits = searcher.search(row["embedding"][0], 20, Filter(since="2024-05-15"))
    assert [f["properties"]["row"] for f in page["features"]] == hits.rows[0].tolist()
    np.testing.assert_allclose(first["score"], hits.scores[0, 0])


def test_layers_need_the_token_and_pages_for_people_do_not(config: BackendConfig):
    digests = [hashlib.sha256(TOKEN.encode()).hexdigest()]
    app = create_app(IndexBackend(config), digests=digests)
    with serving(app) as address:
        for path in ("/conformance", "/collections", "/collections/tiles/items", "/search"):
            assert requests.get(f"{address}{path}").status_code == 401
            headers = {"Authorization": f"Bearer {TOKEN}"}
            assert requests.get(f"{address}{path}", headers=headers).status_code == 200
        for path in ("/", "/docs"):
            assert requests.get(f"{address}{path}").status_code == 200


def test_browsers_get_the_map_and_programs_the_landing_page(client: TestClient):
    page = client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    forwarded = client.get("/", headers={"X-Forwarded-Proto": "https"}).json()["links"]
    assert {link["href"].split(":")[0] for link in forwarded} == {"https"}


def test_the_page_of_the_api_loads_nothing_from_elsewhere(client: TestClient):
    text = client.get("/docs").text
    assert "//" not in text.replace("<!doctype html>", "")
    for part in ("web/docs.js", "web/vendor/swagger-ui-bundle.js", "web/vendor/swagger-ui.css"):
        assert part in text
        assert client.get(f"/{part}").status_code == 200


def test_links_are_not_followed_out_of_the_folder_of_searches(client: TestClient, tmp_path: Path):
    for name in ("..%2Ffirst", "%2e%2e", "first.json"):
        assert client.get(f"/collections/searches/{name}").status_code == 404


READ = """
import sys
import pyogrio
for layer in sys.argv[2:]:
    frame = pyogrio.read_dataframe("OAPIF:" + sys.argv[1], layer=layer)
    print(len(frame), frame.geometry.is_valid.all())
"""


@pytest.mark.parametrize("landing", LANDING_PAGES)
def test_a_newer_gdal_reads_the_layers(address: str, landing: str):
    """The GDAL of pyogrio is there wherever the tests are; it blocks, so it has its own process."""
    command = [sys.executable, "-c", READ, address + landing, "tiles", "searches/first"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == [f"{ROWS} True", "20 True"]


def test_the_picture_of_a_tile_is_that_of_its_scene_whatever_its_id():
    properties = {"tile_key": "g/1/2", "row": 5, "scene": "day 1 & 2 #a"}
    feature = _tile_feature("tiles", properties, (0, 0, 1, 1), {})
    address = urlsplit(feature["assets"]["thumbnail"]["href"])
    assert (address.path, address.fragment) == ("tiles/g/1/2/thumbnail.png", "")
    assert parse_qs(address.query) == {"scene": ["day 1 & 2 #a"]}
