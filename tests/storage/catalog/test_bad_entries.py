"""One malformed entry, of whatever kind, is rejected by its name; it never stops a catalog."""

import datetime as dt
import json
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from storage.catalog.read import read_scenes
from storage.errors import CatalogError, EmptyCatalogError, SkysiftError
from storage.scene import BandMapping, CatalogSpec, MaskMapping, SceneList, SceneQuery
from tests.support.fuzz import faults_of, mutate_bytes, mutate_document
from tests.support.stac_api_server import stac_api

GLOBE = "POLYGON ((-180 -90, 180 -90, 180 90, -180 90, -180 -90))"
QUERIES = {
    "none": SceneQuery(),
    "all": SceneQuery(
        polygon=GLOBE, since="1990-01-01", max_cloud_cover_percent=100, collections=("c",)
    ),
    "box": SceneQuery(bbox=(-180, -90, 180, 90)),
}
SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
TIFF = "image/tiff; application=geotiff"


def item(name: Any = "bad", **more: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "c",
        "geometry": SQUARE,
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2020-01-01T00:00:00Z", "eo:cloud_cover": 5},
        "links": [],
        "assets": {
            "px": {
                "href": "./a.tif",
                "type": TIFF,
                "eo:bands": [{"name": "B04", "common_name": "red"}],
                "raster:bands": [{"scale": 0.1, "offset": 1, "nodata": 0, "data_type": "uint16"}],
            },
            "qa": {"href": "s3://bucket/qa.tif", "type": TIFF, "roles": ["data"]},
        },
        **more,
    }


def dated(**properties: Any) -> dict[str, Any]:
    return {"properties": {"datetime": "2020-01-01T00:00:00Z", **properties}}


def asset(**fields: Any) -> dict[str, Any]:
    return {"assets": {"px": {"href": "./a.tif", "type": TIFF, **fields}}}


BIG = 10**400
DEEP = json.loads("[" * 900 + "]" * 900)
# What is wrong, and whether the scene can still be used.
CORPUS: dict[str, tuple[dict[str, Any], bool]] = {
    "no id": ({"id": None}, False),
    "an id that is a number": ({"id": 5}, False),
    "an id that is a list": ({"id": ["x"]}, False),
    "an id that is empty": ({"id": ""}, False),
    "an id with a lone surrogate": ({"id": "\ud800"}, False),
    "an id that turns text around": ({"id": "a\u202eb"}, False),
    "roles that are a number": (asset(roles=5), True),
    "roles of lists": (asset(roles=[["data"]]), True),
    "a media type that is a number": (asset(type=5), True),
    "a media type that is a list": (asset(type=[TIFF]), True),
    "an href that is a number": (asset(href=5), False),
    "an href that is empty": (asset(href=""), False),
    "an href with NUL": (asset(href="a\0b.tif"), True),  # the reader will say so
    "an href that is no address": (asset(href="http://[::1/a.tif"), False),
    "assets that are a list": ({"assets": [1]}, False),
    "assets that are text": ({"assets": "px"}, False),
    "an asset that is text": ({"assets": {"px": "a.tif"}}, False),
    "alternates that are a list": (asset(alternate=[1]), True),
    "bands that are a number": (asset(bands=7), False),
    "a band that is a number": (asset(**{"raster:bands": [7]}), False),
    "a scale of 0": (asset(**{"raster:bands": [{"scale": 0, "offset": 0}]}), False),
    "a scale that is huge": (asset(**{"raster:bands": [{"scale": BIG}]}), False),
    "a scale that is not finite": (asset(**{"raster:bands": [{"scale": "inf"}]}), False),
    "an offset that is not a number": (asset(**{"raster:bands": [{"offset": "nan"}]}), False),
    "a nodata that is a list": (asset(**{"raster:bands": [{"nodata": [0]}]}), False),
    "links that are a number": ({"links": 5}, False),
    "properties that are null": ({"properties": None}, False),
    "properties that are a list": ({"properties": []}, False),
    "nesting without end": (dated(z=DEEP), False),
    "no time": (dated(datetime=None), False),
    "a time of another calendar": (dated(datetime="2024-13-01T00:00:00Z"), False),
    "a leap second": (dated(datetime="2016-12-31T23:59:60Z"), False),
    "a time that is a number": (dated(datetime=5), False),
    "a time before the year 1": (dated(datetime="0001-01-01T00:00:00+14:00"), False),
    "a time after the year 9999": (dated(datetime="9999-12-31T23:59:59-14:00"), False),
    "a period that ends after 9999": (
        dated(
            datetime=None,
            start_datetime="2020-01-01T00:00:00Z",
            end_datetime="9999-12-31T23:59:59-14:00",
        ),
        False,
    ),
    "a cloud cover that is huge": (dated(**{"eo:cloud_cover": BIG}), False),
    "a cloud cover that is text": (dated(**{"eo:cloud_cover": "many"}), False),
    "sources that are text": (dated(**{"skysift:sources": "abc"}), False),
    "sources that are a number": (dated(**{"skysift:sources": 5}), False),
    "a baseline of another spelling": (dated(**{"s2:processing_baseline": "five"}), True),
    "a bbox that is huge": ({"bbox": [BIG, 0, 1, 1]}, False),
    "a bbox of text": ({"bbox": "here"}, False),
    "a bbox of three numbers": ({"bbox": [1, 2, 3]}, False),
    "a stac version that is a number": ({"stac_version": 1}, False),
    "extensions that are a number": ({"stac_extensions": 5}, False),
    "a collection that is no text": ({"collection": {"id": "c"}}, False),
    "a geometry without end": ({"geometry": {"type": "Polygon", "coordinates": DEEP}}, False),
}
# These are wrong only for a query with a polygon.
PLACELESS: dict[str, dict[str, Any]] = {
    "a geometry of an unknown type": {"geometry": {"type": "Blob", "coordinates": []}},
    "a ring of two points": {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}},
    "a geometry that is text": {"geometry": "POINT (0 0)"},
    "a geometry that is empty": {"geometry": {"type": "Polygon", "coordinates": []}},
    "a geometry of huge numbers": {"geometry": {"type": "Point", "coordinates": [BIG, 0]}},
    "a geometry of no numbers": {"geometry": {"type": "Point", "coordinates": [None, 0]}},
    "a geometry that is not finite": {"geometry": {"type": "Point", "coordinates": ["nan", 0]}},
    "neither geometry nor bbox": {"geometry": None, "bbox": None},
    "no geometry, and a bbox upside down": {"geometry": None, "bbox": [0, 1, 1, 0]},
}


def listing(folder: Path, *items: Any, query: str | SceneQuery = "none", **spec: Any) -> SceneList:
    text = json.dumps({"type": "FeatureCollection", "features": list(items)})
    (folder / "c.json").write_text(text)
    return read(str(folder / "c.json"), query, **spec)


def read(source: str, query: str | SceneQuery = "none", **spec: Any) -> SceneList:
    bands = {"red": BandMapping(asset="px")}
    asked = QUERIES[query] if isinstance(query, str) else query
    catalog = {"source": source, "bands": bands, "query": asked, **spec}
    found = read_scenes(CatalogSpec(**catalog), ["red"])
    for one in found.rejected:
        assert one.reason.isprintable(), one
        one.scene_id.encode()
        assert one.reason, one
        assert len(one.reason) < 2000, one
    return found


@pytest.mark.parametrize("query", list(QUERIES))
@pytest.mark.parametrize("what", [*CORPUS, *PLACELESS])
def test_a_malformed_item_is_rejected_and_the_good_ones_stay(
    tmp_path: Path, what: str, query: str
) -> None:
    change, usable = CORPUS[what] if what in CORPUS else (PLACELESS[what], query != "all")
    if what in PLACELESS and query == "box":
        usable = what not in ("neither geometry nor bbox", "no geometry, and a bbox upside down")
    found = listing(tmp_path, item("first"), item() | change, item("last"), query=query)
    good = [scene.id for scene in found.scenes if scene.id != "bad"]
    assert good == ["first", "last"]
    assert len(found.scenes) + len(found.rejected) == 3
    assert (len(found.scenes) == 3) == usable, found.rejected


@pytest.mark.parametrize(
    "links",
    [
        [{"rel": "item", "href": "a\0b.json"}],
        [{"rel": "item", "href": 5}],
        [{"rel": "item", "href": "http://[::1/i.json"}],
        [{"rel": "item", "href": "\ud800.json"}],
        [{"rel": "item", "href": "deep.json"}],
        [{"rel": "item", "href": "digits.json"}],
        [{"rel": "item", "href": "/dev/zero"}],
        [{"rel": "item", "href": "."}],
        [{"rel": "child", "href": "number.json"}],
    ],
)
def test_a_bad_link_is_rejected_and_the_others_are_followed(
    tmp_path: Path, links: list[dict[str, Any]]
) -> None:
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": ""}
    links = [{"rel": "item", "href": "good.json"}, *links, {"rel": "item", "href": "last.json"}]
    (tmp_path / "catalog.json").write_text(json.dumps(root | {"links": links}))
    (tmp_path / "good.json").write_text(json.dumps(item("good")))
    (tmp_path / "last.json").write_text(json.dumps(item("last")))
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "digits.json").write_text('{"type": "Feature", "x": ' + "9" * 5000 + "}")
    (tmp_path / "number.json").write_text(json.dumps(root | {"links": 5}))
    found = read(str(tmp_path))
    assert [scene.id for scene in found.scenes] == ["good", "last"]
    assert len(found.rejected) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 200_000, "not JSON: maximum recursion"),
        ('{"type": "Feature",\n "x": ' + "9" * 5000 + "}", "not JSON"),
        ('{"type": "Feature",\n "x" 1}', "line 2 column 6"),
        ("\xff\xfe", "not JSON"),
        ("5", "holds a int"),
        ('{"type": "FeatureCollection", "features": 5}', "its features are a int"),
        ('{"type": "Catalog", "links": {}, "features": 5}', "holds no scenes"),
    ],
)
def test_a_document_that_is_none_is_named_with_the_place_of_the_fault(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CatalogError, match=says) as raised:
        read(str(tmp_path / "c.json"))
    assert str(tmp_path / "c.json") in str(raised.value)


@pytest.mark.parametrize("name", ["c.json", "c.parquet"])
def test_a_pipe_or_folder_is_no_document(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CatalogError, match="is not a file"):
        read(str(tmp_path / name))


# ---------------------------------------------------------------- tables


def row(name: str, **more: Any) -> dict[str, Any]:
    found = item(name)
    return {
        "id": name,
        "collection": "c",
        "assets": found["assets"],
        "datetime": dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        "bbox": {"xmin": 0.0, "ymin": 0.0, "xmax": 1.0, "ymax": 1.0},
        "geometry": shapely.to_wkb(shapely.box(0, 0, 1, 1)),
        **more,
    }


def table(folder: Path, *rows: dict[str, Any], **columns: pa.Array) -> str:
    made = pa.Table.from_pylist(list(rows))
    for name, values in columns.items():
        index = made.schema.get_field_index(name)
        made = made.append_column(name, values) if index < 0 else made.set_column(
            index, name, values
        )  # fmt: skip
    pq.write_table(made, folder / "t.parquet")
    return str(folder / "t.parquet")


NANOSECONDS = pa.array([1, 2**63 - 1, 3], pa.int64()).cast(pa.timestamp("us", "UTC"))
BROKEN_TEXT = pa.Array.from_buffers(
    pa.string(),
    3,
    [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")],
)


@pytest.mark.parametrize(
    "columns",
    [
        {"datetime": NANOSECONDS},
        {"title": BROKEN_TEXT},
        {"datetime": pa.array(["2020-01-01T00:00:00Z", "soon", "2020-01-02T00:00:00Z"])},
        {"bbox": pa.array([[0.0, 0, 1, 1], [0.0], [0.0, 0, 1, 1]])},
        {"geometry": pa.array([shapely.to_wkb(shapely.box(0, 0, 1, 1)), b"\x01", None])},
        {"assets": pa.array([json.dumps(item()["assets"]), "{", json.dumps(item()["assets"])])},
        {"id": pa.array(["first", None, "last"])},
    ],
)
def test_one_odd_row_is_rejected_by_its_number(tmp_path: Path, columns: dict[str, Any]) -> None:
    source = table(tmp_path, row("first"), row("bad"), row("last"), **columns)
    found = read(source, "all" if "geometry" in columns else "none")
    assert [scene.id for scene in found.scenes] == ["first", "last"]
    assert "row 1 of" in found.rejected[0].reason


@pytest.mark.parametrize("encode", [shapely.to_wkb, shapely.to_wkt, shapely.to_geojson])
def test_a_polygon_selects_rows_by_their_geometry(tmp_path: Path, encode: Any) -> None:
    slanted = shapely.Polygon([(0, 0), (0.2, 0), (1, 1), (0.8, 1)])
    source = table(tmp_path, row("slanted", geometry=encode(slanted)))

    def found(wkt: str) -> list[str]:
        query = SceneQuery(polygon=wkt)
        spec = CatalogSpec(source=source, bands={"red": BandMapping(asset="px")}, query=query)
        return [scene.id for scene in read_scenes(spec, ["red"]).scenes]

    assert found("POLYGON ((0.4 0.4, 0.6 0.4, 0.6 0.6, 0.4 0.4))") == ["slanted"]
    with pytest.raises(EmptyCatalogError, match="satisfies"):
        found("POLYGON ((0.8 0.1, 0.9 0.1, 0.9 0.2, 0.8 0.1))")


def test_assets_may_be_a_map_and_missing_numbers_nan(tmp_path: Path) -> None:
    px = item()["assets"]["px"]
    kind = pa.map_(pa.string(), pa.struct([("href", pa.string()), ("type", pa.string())]))
    assets = pa.array([[("px", {"href": px["href"], "type": px["type"]})]], kind)
    clouds = {"eo:cloud_cover": pa.array([float("nan")])}
    source = table(tmp_path, row("one"), assets=assets, **clouds)
    (scene,) = read(source, "all").scenes
    assert scene.cloud_cover_percent is None
    assert scene.bands[0].href.uri == str(tmp_path / "a.tif")


# ---------------------------------------------------------------- what is left of the good ones


def test_ids_count_within_what_is_asked_for(tmp_path: Path) -> None:
    other = item("same", collection="other", properties={"datetime": "2021-01-01T00:00:00Z"})
    found = listing(tmp_path, other, item("same"), query=SceneQuery(collections=("c",)))
    assert ([scene.collection for scene in found.scenes], found.rejected) == (["c"], ())
    both = listing(tmp_path, other, item("same"))
    assert "occurs before" in both.rejected[0].reason


@pytest.mark.parametrize("bbox", [None, [0, 1, 1, 0], [float("nan"), 0, 1, 1], [0, 50, 1, 200]])
def test_a_geometry_stands_in_for_a_bbox(tmp_path: Path, bbox: Any) -> None:
    found = listing(tmp_path, item(bbox=bbox), query="box")
    assert [scene.id for scene in found.scenes] == ["bad"]
    with pytest.raises(EmptyCatalogError):
        listing(tmp_path, item(bbox=bbox), query=SceneQuery(bbox=(5, 5, 6, 6)))


def test_a_saved_page_says_that_there_are_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = {"type": "FeatureCollection", "features": [item()], "numberMatched": 609}
    page["links"] = [{"rel": "next", "href": "https://example.org/?token=hush"}]
    (tmp_path / "c.json").write_text(json.dumps(page))
    assert len(read(str(tmp_path / "c.json")).scenes) == 1
    assert "one page of an answer of 609 items" in caplog.text


# ---------------------------------------------------------------- fuzz


def mutated_item(folder: str, seed: int) -> None:
    rng = random.Random(seed)
    changed = mutate_document(item("bad"), rng)
    features = [item("first"), changed, item("last")]
    if seed % 7 == 0:
        changed = mutate_document({"type": "FeatureCollection", "features": features}, rng)
        (Path(folder) / "c.json").write_text(json.dumps(changed))
        read(str(Path(folder) / "c.json"), rng.choice(list(QUERIES)))
        return
    mask = MaskMapping(asset="qa", cloud_values=(1,)) if seed % 2 else None
    spec: dict[str, Any] = {"mask": mask} | ({"bands": {}} if seed % 3 == 0 else {})
    query = rng.choice(list(QUERIES))
    found = listing(Path(folder), *features, query=query, **spec)
    ids = [scene.id for scene in found.scenes]
    assert {"first", "last"} <= set(ids), found
    hash(found)
    for scene in found.scenes:
        assert scene.fingerprint


def mutated_catalog(folder: str, seed: int) -> None:
    rng = random.Random(seed)
    root = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "c",
        "description": "",
        "links": [{"rel": "item", "href": "i.json"}, {"rel": "child", "href": "sub/c.json"}],
    }
    place = Path(folder)
    (place / "sub").mkdir(exist_ok=True)
    (place / "i.json").write_bytes(mutate_bytes(json.dumps(item("i")).encode(), rng))
    (place / "sub" / "c.json").write_text(json.dumps(mutate_document(root, rng)))
    (place / "catalog.json").write_text(json.dumps(root))
    (place / "sub" / "i.json").write_text(json.dumps(mutate_document(item("sub"), rng)))
    read(folder, rng.choice(list(QUERIES)))


def mutated_row(folder: str, seed: int) -> None:
    rng = random.Random(seed)
    rows = [row("first"), row("bad"), row("last")]
    if seed % 2:
        text = {**row("bad"), "geometry": None, "datetime": "2020-01-01T00:00:00Z"}
        changed = mutate_document(text, rng)
        rows = [{name: json.dumps(value) for name, value in one.items()} for one in [changed] * 2]
        rows = [{"id": "a", "assets": "{}"} | one for one in rows]
    try:
        source = table(Path(folder), *rows)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return  # no such table can be written
    if seed % 2 == 0:
        path = Path(source)
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    read(source, rng.choice(list(QUERIES)))


def mutated_answer(seed: int) -> None:
    rng = random.Random(seed)
    with stac_api([item("first"), item("bad"), item("last")]) as api:
        api.change = lambda answer: mutate_document(answer, rng)
        read(api.url, rng.choice(list(QUERIES)))


def test_mutated_documents_are_read_or_refused(tmp_path: Path) -> None:
    for target in (mutated_item, mutated_catalog, mutated_row):
        for seed in range(60):
            try:
                target(str(tmp_path), seed)
            except SkysiftError:
                continue


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "count"), [(mutated_item, 4000), (mutated_catalog, 1000), (mutated_row, 1500)]
)
def test_thousands_of_mutated_documents_are_read_or_refused(
    tmp_path: Path, target: Any, count: int
) -> None:
    assert faults_of(partial(target, str(tmp_path)), range(count)) == []


@pytest.mark.slow
def test_mutated_answers_of_an_api_are_read_or_refused() -> None:
    assert faults_of(mutated_answer, range(500)) == []
