"""STAC APIs over real HTTP, and tables of STAC items: the scenes that a plain filter would find."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import pandas as pd
import pytest
from shapely.geometry import box

from storage.catalog.read import read_scenes
from storage.catalog.stac_api import api_candidates
from storage.errors import CatalogError, NotFoundError
from storage.location import Location
from storage.scene import BandMapping, CatalogSpec, SceneQuery
from tests.support.object_store import MotoS3
from tests.support.stac_api_server import StacApi, make_item, stac_api

ITEMS = 57


def _items() -> list[dict[str, Any]]:
    """Items along the equator, one a day, every fifth in another collection."""
    found = []
    for number in range(ITEMS):
        west = -180 + 6.0 * number
        found.append(
            make_item(
                number,
                (west, -1.0, west + 5.0, 1.0),
                f"2024-{5 + number // 30:02d}-{1 + number % 30:02d}T10:00:00.5Z",
                collection="sentinel" if number % 5 == 0 else "landsat",
                **{"eo:cloud_cover": number % 100},
            )
        )
    return found


@pytest.fixture
def api() -> Iterator[StacApi]:
    with stac_api(_items()) as running:
        yield running


def _ids(spec: CatalogSpec) -> list[str]:
    listing = read_scenes(spec, ["red"])
    assert listing.rejected == ()
    return [scene.id for scene in listing.scenes]


@pytest.mark.parametrize("methods", [("GET", "POST"), ("GET",), ("POST",)])
def test_every_page_is_read_and_every_item_comes_once(api: StacApi, methods: tuple[str, ...]):
    api.methods = methods
    spec = CatalogSpec(source=api.url)
    found = list(api_candidates(Location(api.url), spec, page_items=10))
    assert [one.id for one in found] == [item["id"] for item in api.items]
    assert len(api.searches) == 6
    assert {search["method"] for search in api.searches} == {"POST" if "POST" in methods else "GET"}
    scene = read_scenes(spec, ["red", "B5"]).scenes[3]
    assert [(band.href.uri, band.index) for band in scene.bands] == [
        ("s3://bucket/003.tif", 1),
        ("s3://bucket/003.tif", 2),
    ]
    assert scene.datetime == datetime(2024, 5, 4, 10, 0, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "query",
    [
        SceneQuery(bbox=(0, -0.5, 40, 0.5)),
        SceneQuery(bbox=(170, -10, -160, 10)),
        SceneQuery(since=datetime(2024, 5, 3), until=datetime(2024, 5, 9, 23, 59, 59, 999_999)),
        SceneQuery(since=datetime(2024, 6, 20, tzinfo=UTC)),
        SceneQuery(until=datetime(2024, 5, 4, 10, 0, 0, 400_000)),
        SceneQuery(collections=("sentinel",), max_cloud_cover_percent=20),
        SceneQuery(bbox=(-180, -90, 180, 90), collections=("landsat", "sentinel")),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_search_finds_what_the_same_filter_finds_in_a_file(
    api: StacApi, tmp_path: Path, query: SceneQuery, method: str
):
    api.methods = (method,)
    document = tmp_path / "items.json"
    document.write_text(json.dumps({"type": "FeatureCollection", "features": api.items}))
    truth = read_scenes(CatalogSpec(source=str(document), query=query), ["red"])
    expected = {scene.id: scene.datetime for scene in truth.scenes}
    found = read_scenes(CatalogSpec(source=api.url, query=query), ["red"])
    assert {scene.id: scene.datetime for scene in found.scenes} == expected
    assert 0 < len(found.scenes) == len(expected)


def test_the_server_does_the_selecting(api: StacApi):
    query = SceneQuery(
        bbox=(170, -10, -160, 10),
        since=datetime(2024, 5, 1),
        until=datetime(2024, 5, 2, 23, 59, 59, 999_999),
        collections=("sentinel",),
    )
    assert _ids(CatalogSpec(source=api.url, query=query)) == ["item-000"]
    asked = [(search["bbox"], search["datetime"]) for search in api.searches]
    interval = "2024-05-01T00:00:00Z/2024-05-03T00:00:00Z"
    assert asked == [
        ([170.0, -10.0, 180.0, 10.0], interval),
        ([-180.0, -10.0, -160.0, 10.0], interval),
    ]


def test_an_item_on_both_sides_of_the_antimeridian_comes_once(api: StacApi):
    api.items.append(make_item(900, (175.0, -1.0, -175.0, 1.0), "2024-07-01T00:00:00Z"))
    query = SceneQuery(bbox=(178, -1, -178, 1))
    assert _ids(CatalogSpec(source=api.url, query=query)).count("item-900") == 1


def test_a_bad_item_is_rejected_by_name_and_the_others_stay(api: StacApi):
    api.items[1] = {**api.items[1], "assets": {}}
    api.items[2] = {**api.items[2], "type": "Nonsense"}
    api.items[3]["assets"]["data"]["href"] = "/etc/secret.tif"
    api.items[4]["assets"]["data"]["href"] = "https://example.com/a.tif"
    api.items[5]["properties"] = {"datetime": None, "start_datetime": None, "end_datetime": None}
    listing = read_scenes(CatalogSpec(source=api.url), ["red"])
    reasons = {item.scene_id: item.reason for item in listing.rejected}
    assert set(reasons) == {f"item-00{number}" for number in range(1, 6)}
    assert "no band 'red'" in reasons["item-001"]
    assert "/etc/secret.tif, which cannot be read" in reasons["item-003"]
    assert "reads s3://" in reasons["item-004"]
    assert len(listing.scenes) == ITEMS - 5


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_named(api: StacApi):
    api.refuse = [503, 429]
    assert len(_ids(CatalogSpec(source=api.url))) == ITEMS
    api.refuse = [400]
    with pytest.raises(CatalogError, match=r"answered 400.*Busy"):
        read_scenes(CatalogSpec(source=api.url), ["red"])
    api.stuck = True
    with pytest.raises(CatalogError, match="same page of 10 items"):
        list(api_candidates(Location(api.url), CatalogSpec(source=api.url), page_items=10))


@pytest.mark.parametrize("round_", [{50: 0}, {30: 10}, {20: 10}])
def test_pages_that_go_round_come_to_an_end(api: StacApi, round_: dict[int, int]):
    api.round = round_
    spec = CatalogSpec(source=api.url)
    with pytest.raises(CatalogError, match="again and again"):
        list(api_candidates(Location(api.url), spec, page_items=10))
    assert len(api.searches) < 40


def test_an_empty_page_is_not_the_end_and_many_are(api: StacApi, caplog: pytest.LogCaptureFixture):
    def emptied(pages: range) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def change(answer: dict[str, Any]) -> dict[str, Any]:
            empty = "features" in answer and len(api.searches) in pages
            return answer | {"features": []} if empty else answer

        return change

    spec = CatalogSpec(source=api.url)
    api.change = emptied(range(2, 4))
    assert len(list(api_candidates(Location(api.url), spec, page_items=10))) == ITEMS - 20
    assert "empty pages" not in caplog.text
    api.change, api.stuck = emptied(range(len(api.searches) + 2, 1000)), True
    assert len(list(api_candidates(Location(api.url), spec, page_items=10))) == 10
    assert "empty pages are taken for the end" in caplog.text


@pytest.mark.parametrize(
    "query", [SceneQuery(until="9999-12-31"), SceneQuery(since="0001-01-01", until="9999-12-30")]
)
def test_a_search_reaches_to_the_ends_of_time(api: StacApi, query: SceneQuery):
    assert len(_ids(CatalogSpec(source=api.url, query=query))) == ITEMS
    if query.since:
        assert api.searches[-1]["datetime"] == "0001-01-01T00:00:00Z/9999-12-31T00:00:00Z"


@pytest.mark.parametrize(
    "change",
    [
        {"features": 5},
        {"features": None},
        {"links": 5},
        {"links": [{"rel": "next"}]},
        {"links": [{"rel": "next", "href": 5}]},
        {"links": [{"rel": "next", "href": "http://[::1"}]},
        {"links": [{"rel": "next", "href": "file:///etc/passwd"}]},
    ],
)
def test_an_answer_of_another_shape_is_named(api: StacApi, change: dict[str, Any]):
    api.change = lambda answer: answer | change if "features" in answer else answer
    with pytest.raises(CatalogError, match=re.escape(api.url) + "|not followed"):
        read_scenes(CatalogSpec(source=api.url), ["red"])


def test_an_item_with_odd_links_is_one_item(api: StacApi):
    for number, links in enumerate([5, [5], [{"rel": "self", "href": "http://[::1"}], None]):
        api.items[number]["links"] = links
    found = read_scenes(CatalogSpec(source=api.url), ["red"])
    assert len(found.scenes) + len(found.rejected) == ITEMS
    assert len(found.scenes) >= ITEMS - 4


def test_what_is_no_api_is_said_to_be_none(api: StacApi):
    with pytest.raises(CatalogError, match="answered 404"):
        read_scenes(CatalogSpec(source=f"{api.url}/nowhere"), ["red"])
    api.conforms_to = []
    with pytest.raises(CatalogError, match="no STAC API with item search"):
        read_scenes(CatalogSpec(source=api.url), ["red"])
    with pytest.raises(CatalogError, match="could not be reached"):
        read_scenes(CatalogSpec(source="http://127.0.0.1:9/"), ["red"])


def test_an_api_without_a_match_says_so(api: StacApi):
    query = SceneQuery(since=datetime(2030, 1, 1))
    with pytest.raises(CatalogError, match="finds nothing for the query"):
        read_scenes(CatalogSpec(source=api.url, query=query), ["red"])


# ---------------------------------------------------------------- STAC-GeoParquet


def _table(items: list[dict[str, Any]], covering: bool) -> geopandas.GeoDataFrame:
    """Items as STAC-GeoParquet has them: properties as columns, a box as struct or list."""
    rows = []
    for item in items:
        west, south, east, north = item["bbox"]
        edges = {"xmin": west, "ymin": south, "xmax": east, "ymax": north}
        properties = dict(item["properties"])
        properties["datetime"] = pd.Timestamp(properties["datetime"])
        rows.append(
            {
                **{name: item[name] for name in ("type", "stac_version", "id", "collection")},
                "bbox": edges if covering else item["bbox"],
                "links": [{"rel": "self", "href": f"https://example.com/{item['id']}"}],
                "assets": item["assets"],
                "geometry": box(west, south, east, north),
                **properties,
            }
        )
    return geopandas.GeoDataFrame(rows, crs="EPSG:4326")


@pytest.mark.parametrize("covering", [True, False])
def test_a_table_of_items_gives_the_scenes_of_the_items(tmp_path: Path, covering: bool):
    items = _items()
    items[7]["assets"]["other"] = {"href": "s3://bucket/other.jp2", "type": "image/jp2"}
    items[8]["properties"]["updated"] = "2025-01-01T00:00:00Z"
    (tmp_path / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": items})
    )
    table = tmp_path / "items.parquet"
    _table(items, covering).to_parquet(table)
    query = SceneQuery(bbox=(-150, -1, 60, 1), max_cloud_cover_percent=50)
    spec = CatalogSpec(source=str(tmp_path / "items.json"), query=query)
    truth = read_scenes(spec, ["red"])
    found = read_scenes(replace(spec, source=str(table)), ["red"])
    assert found.rejected == truth.rejected
    same = [replace(scene, document="") for scene in found.scenes]  # each row is its own document
    assert same == [replace(scene, document="") for scene in truth.scenes]
    assert [scene.fingerprint for scene in found.scenes] == [
        scene.fingerprint for scene in truth.scenes
    ]
    assert len(found.scenes) > 10


def test_a_table_on_s3_with_a_mapped_band(tmp_path: Path, moto_s3: MotoS3):
    table = tmp_path / "items.parquet"
    _table(_items(), covering=True).to_parquet(table)
    source = moto_s3.location("items.parquet")
    source.upload(table)
    spec = CatalogSpec(source=source, bands={"nir": BandMapping(asset="data", index=2)})
    scenes = read_scenes(spec, ["nir"]).scenes
    assert [scene.bands[0].index for scene in scenes] == [2] * ITEMS


def test_what_is_no_table_of_items_is_named(tmp_path: Path):
    pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(CatalogError, match="no STAC-GeoParquet: it has no column assets"):
        read_scenes(CatalogSpec(source=str(tmp_path / "other.parquet")), ["red"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CatalogError, match="no readable Parquet"):
        read_scenes(CatalogSpec(source=str(tmp_path / "broken.parquet")), ["red"])
    with pytest.raises(NotFoundError):
        read_scenes(CatalogSpec(source=str(tmp_path / "missing.parquet")), ["red"])
