"""Boxes at the antimeridian behave as boxes elsewhere, against plain geometry of their parts."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError
from storage.geometry import (
    BBox,
    around_points,
    centres,
    cut,
    enclosing,
    footprints,
    geojson_footprints,
    intersects_polygon,
    polygon_wkt,
    touches,
    unwrapped,
)
from storage.raster.geotiff import RasterInfo

WHOLE_PX = st.integers(-180, 180).map(float)  # whole degrees, so that edges meet often


@st.composite
def boxes(draw: st.DrawFn) -> BBox:
    south, north = sorted((draw(st.integers(-90, 90)), draw(st.integers(-90, 90))))
    return draw(WHOLE_PX), float(south), draw(WHOLE_PX), float(north)


def parts(box: BBox) -> list[shapely.Polygon]:
    """The box on a plane of three globes side by side, cut by hand."""
    west, south, east, north = box
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    return [shapely.box(w + turn, south, e + turn, north)
            for w, e in spans for turn in (-360, 0, 360)]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(boxes(), boxes())
def test_boxes_touch_where_their_parts_on_the_globe_do(one: BBox, other: BBox) -> None:
    expected = any(a.intersects(b) for a in parts(one) for b in parts(other))
    assert touches(np.array([one]), other).tolist() == [expected]
    assert touches(np.array([other]), one).tolist() == [expected]


@settings(max_examples=300, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=5))
def test_the_enclosing_box_covers_every_box(many: list[BBox]) -> None:
    around = enclosing(np.array(many))
    for part in (part for box in many for part in cut(box)):
        assert any(
            outer[0] <= part[0] and part[2] <= outer[2]
            and outer[1] <= part[1] and part[3] <= outer[3]
            for outer in cut(around)
        )  # fmt: skip
    if not any(west > east for west, _, east, _ in many):
        assert around[0] <= around[2]


def test_an_enclosing_box_crosses_only_when_that_is_the_short_way() -> None:
    assert enclosing([[179, 0, -179, 1], [-179, 0, -178, 2]]) == (179, 0, -178, 2)
    assert enclosing([[179, 0, -179, 1], [-10, 0, 10, 2]]) == (-180, 0, 180, 2)
    assert enclosing([[170, 0, 180, 1], [-180, 0, -170, 2]]) == (-180, 0, 180, 2)
    assert enclosing([[0.1, 0, 0.2, 1], [0.3, 0, 0.4, 2]]) == (0.1, 0, 0.4, 2)


@settings(max_examples=200, deadline=None)
@given(boxes(), st.lists(st.tuples(st.floats(-179, 179), st.floats(-80, 80)), min_size=3))
def test_a_box_meets_a_polygon_when_its_footprint_does(
    box: BBox, ring: list[tuple[float, float]]
) -> None:
    polygon = shapely.MultiPoint(ring).convex_hull
    if polygon.geom_type != "Polygon":
        return
    footprint = footprints(np.array([box]))[0]
    assert intersects_polygon(np.array([box]), polygon.wkt)[0] == footprint.intersects(polygon)


def test_middles_and_widths_go_across() -> None:
    crossing = [[179, 0, -178, 2], [178, 0, -179, 2], [10, 0, 20, 2]]
    np.testing.assert_array_equal(centres(crossing), [[-179.5, 1], [179.5, 1], [15, 1]])
    np.testing.assert_array_equal(unwrapped(crossing)[:, 2], [182, 181, 20])


def test_footprints_are_cut_at_180_degrees() -> None:
    (geometry,) = geojson_footprints([[179, 0, -179, 1]])
    assert geometry["type"] == "MultiPolygon"
    east, west = (np.array(polygon[0]) for polygon in geometry["coordinates"])
    assert (east[:, 0].min(), east[:, 0].max()) == (179, 180)
    assert (west[:, 0].min(), west[:, 0].max()) == (-180, -179)


@pytest.mark.parametrize(
    ("lons", "west", "east"),
    [
        ([170, 180], 170, 180),
        ([-180, -170], -180, -170),
        ([170, -170], 170, -170),
        ([170, 190], 170, -170),
        ([-60, 60], -60, 60),
        ([-180, -90, 0, 90, 180], -180, 180),
    ],
)
def test_boxes_around_points(lons: list[float], west: float, east: float) -> None:
    boxes_ = around_points(np.array([lons], float), np.zeros((1, len(lons))))
    assert boxes_[0, [0, 2]].tolist() == [west, east]


def test_a_raster_of_the_whole_globe_has_its_box() -> None:
    info = RasterInfo(
        crs="EPSG:4326",
        transform=(1.0, 0.0, -180.0, 0.0, -1.0, 90.0),
        width=360,
        height=180,
        count=1,
        dtype="uint8",
        nodata=None,
        descriptions=("",),
    )
    assert info.bbox == (-180, -90, 180, 90)


class HasInterface:
    """What a library of geometries offers."""

    __geo_interface__ = {  # noqa: RUF012
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": shapely.box(0, 0, 2, 1).__geo_interface__},
            {"type": "Feature", "geometry": shapely.box(1, 0, 3, 1).__geo_interface__},
        ],
    }


@pytest.mark.parametrize(
    "area",
    [
        shapely.box(0, 0, 3, 1),
        shapely.box(0, 0, 3, 1).wkt,
        shapely.to_geojson(shapely.box(0, 0, 3, 1)),
        {"type": "Feature", "geometry": shapely.box(0, 0, 3, 1).__geo_interface__},
        HasInterface(),
        HasInterface.__geo_interface__,
        json.dumps(HasInterface.__geo_interface__),
        {
            "type": "GeometryCollection",
            "geometries": [shapely.box(0, 0, 3, 1).__geo_interface__],
        },
    ],
    ids=lambda area: type(area).__name__,
)
def test_an_area_of_any_form_is_the_same_polygon(area: object):
    assert shapely.from_wkt(polygon_wkt(area)).equals(shapely.box(0, 0, 3, 1))


@pytest.mark.parametrize(
    ("area", "text"),
    [
        ({"type": "FeatureCollection", "features": []}, "without area"),
        (
            {"type": "FeatureCollection", "features": [{"geometry": None}]},
            "neither WKT nor GeoJSON",
        ),
        (
            {
                "type": "GeometryCollection",
                "geometries": [{"type": "Point", "coordinates": [0, 0]}],
            },
            "polygon is a Point",
        ),
        (
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]}
                ],
            },
            "not valid",
        ),
        (5, "neither WKT nor GeoJSON"),
    ],
)
def test_an_area_that_is_none_is_refused(area: object, text: str):
    with pytest.raises(ConfigError, match=text) as raised:
        polygon_wkt(area)
    assert "\n" not in str(raised.value)
