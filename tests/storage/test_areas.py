"""Areas in any form and CRS become the same polygon; what is none is refused in one line."""

import json
from pathlib import Path
from typing import Any

import geopandas
import pytest
import shapely

from storage.areas import is_area_file
from storage.errors import ConfigError, NotFoundError
from storage.geometry import polygon_wkt
from storage.index.filter import Filter
from storage.scene import SceneQuery

FIELDS = [
    shapely.box(500000, 1976000, 502000, 1978000),
    shapely.box(502000, 1976000, 504000, 1978000),
]
UTM = geopandas.GeoDataFrame({"crop": ["rice", "maize"]}, geometry=FIELDS, crs="EPSG:32648")


def degrees() -> Any:
    """The fields in degrees, by another library."""
    return geopandas.GeoSeries(
        [shapely.segmentize(shapely.union_all(FIELDS), 50)], crs=32648
    ).to_crs(4326)[0]


def difference(wkt: str, expected: Any) -> float:
    """Return the share of two shapes that only one of them covers."""
    found = shapely.from_wkt(wkt)
    return float(shapely.symmetric_difference(found, expected).area / expected.area)


def old_geojson() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(UTM.to_json())
    document["crs"] = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32648"}}
    return document


@pytest.mark.parametrize(
    "name", ["a.gpkg", "a.shp", "a.fgb", "a.geoparquet", "a.geojson", "a.wkt", "A.GEOJSON"]
)
def test_a_file_of_another_crs_is_the_same_area_as_by_geopandas(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.endswith("parquet"):
        UTM.to_parquet(path)
    elif name.endswith("wkt"):
        path.write_text(f"SRID=32648;{shapely.union_all(FIELDS).wkt}\n")
    elif name.lower().endswith("json"):
        path.write_text(json.dumps(old_geojson()), encoding="utf-8-sig")
    else:
        UTM.to_file(path)
    assert is_area_file(str(path))
    wkt = polygon_wkt(path)
    assert difference(wkt, degrees()) < 1e-5
    assert SceneQuery(polygon=path).polygon == Filter(polygon=path).polygon == wkt


@pytest.mark.parametrize(
    "area",
    [
        UTM,
        UTM.geometry,
        old_geojson(),
        json.dumps(old_geojson()),
        shapely.set_srid(shapely.union_all(FIELDS), 32648),
    ],
    ids=["frame", "series", "geojson", "text", "srid"],
)
def test_an_object_of_another_crs_is_transformed(area: Any):
    assert difference(polygon_wkt(area), degrees()) < 1e-5


def test_an_area_across_the_antimeridian_has_a_part_on_each_side():
    area = geopandas.GeoSeries([shapely.box(800000, 1000000, 900000, 1100000)], crs="EPSG:32660")
    found = shapely.from_wkt(polygon_wkt(area))
    assert found.geom_type == "MultiPolygon"
    assert (found.bounds[0], found.bounds[2]) == (-180, 180)
    back = area.to_crs("+proj=longlat +lon_0=180 +datum=WGS84")[0]
    assert found.area == pytest.approx(back.area, rel=1e-3)


def test_files_that_are_no_area_are_refused_in_one_line(tmp_path: Path):
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(1, 2)], crs=4326)
    points.to_file(tmp_path / "points.gpkg")
    UTM.to_file(tmp_path / "two.gpkg", layer="a")
    UTM.to_file(tmp_path / "two.gpkg", layer="b")
    UTM.iloc[:0].to_parquet(tmp_path / "empty.parquet")
    UTM.to_file(tmp_path / "nocrs.shp")
    (tmp_path / "nocrs.prj").unlink()
    (tmp_path / "vrt.gpkg").write_text(
        "<OGRVRTDataSource><OGRVRTLayer name='x'/></OGRVRTDataSource>"
    )
    (tmp_path / "table.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    (tmp_path / "bad.geojson").write_text("{")
    (tmp_path / "area.kml").write_text("<kml/>")
    reasons = {
        "points.gpkg": "polygon is a Point",
        "two.gpkg": r"has 2 layers \(a, b\)",
        "empty.parquet": "without area",
        "nocrs.shp": "state its CRS",
        "vrt.gpkg": "does not begin as a .gpkg file does",
        "table.parquet": "cannot be read as an area",
        "bad.geojson": r"bad.geojson is no area",
        "area.kml": "is no area; give a file that ends in",
    }
    for name, reason in reasons.items():
        with pytest.raises(ConfigError, match=reason) as raised:
            polygon_wkt(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(NotFoundError, match="does not exist"):
        polygon_wkt(tmp_path / "gone.gpkg")


@pytest.mark.parametrize(
    ("area", "reason"),
    [
        ("aoi.gpkg", "is a text, not a path"),
        ("SRID=999999;POLYGON ((0 0, 1 0, 1 1, 0 0))", "EPSG:999999 is not known"),
        (
            {**old_geojson(), "crs": {"properties": {"name": "+proj=utm +nadgrids=/etc/passwd"}}},
            "is not a code",
        ),
        (
            geopandas.GeoSeries([shapely.Point(0, 0).buffer(1e6)], crs="EPSG:3031"),
            "encloses a pole",
        ),
        (geopandas.GeoSeries([None, FIELDS[0]], crs="EPSG:32648"), "neither WKT nor GeoJSON"),
    ],
    ids=["name", "srid", "proj", "pole", "none"],
)
def test_areas_without_a_place_are_refused(area: Any, reason: str):
    with pytest.raises(ConfigError, match=reason) as raised:
        polygon_wkt(area)
    assert "\n" not in str(raised.value)
