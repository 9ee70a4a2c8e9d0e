"""Filters: what they let through is what a plain reading of each condition lets through."""

import datetime as dt

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError
from storage.index.filter import Filter, may_match
from storage.index.sidecar import Sidecar, encode_columns, hit_table
from tests.support.shard_world import CLASSES, make_rows, passes

ROWS = make_rows(400, 4)
SIDECAR = Sidecar(encode_columns(ROWS, CLASSES), "columns")
longitude, latitude = st.floats(-180, 180), st.floats(-90, 90)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    south, north = sorted((draw(latitude), draw(latitude)))
    return draw(longitude), south, draw(longitude), north


@settings(max_examples=200, deadline=None)
@given(
    bbox=st.none() | boxes(),
    since=st.sampled_from([None, "2023-03-01", "2024-01-01T12:00:00+02:00"]),
    until=st.sampled_from([None, "2024-03-01", dt.date(2024, 6, 1)]),
    cloud=st.sampled_from([None, 0.0, 0.3, 1.0]),
    scenes=st.sampled_from([(), ("S1", "S4"), ("absent",)]),
    labels=st.sampled_from([(), ("forest",), CLASSES]),
    tiles=st.sampled_from([(), tuple(ROWS["tile_key"][:3]), ("other/1/2",)]),
)
def test_rows_match_by_every_condition_and_pruning_never_loses_one(
    bbox, since, until, cloud, scenes, labels, tiles
):
    where = Filter(
        bbox=bbox,
        since=since,
        until=until,
        max_cloud_fraction=cloud,
        scenes=scenes,
        labels=labels,
        tiles=tiles,
    )
    expected = [passes(where, ROWS, n) for n in range(400)]
    np.testing.assert_array_equal(SIDECAR.matching(where), expected)
    assert may_match(where, *SIDECAR.extent) or not any(expected)
    assert bool(where) == (where != Filter())
    assert hash(where) == hash(Filter(**{n: getattr(where, n) for n in where.__slots__}))


@settings(max_examples=50, deadline=None)
@given(ring=st.lists(st.tuples(st.floats(-179, 179), st.floats(-80, 80)), min_size=3, max_size=7))
def test_polygons_match_the_rows_whose_box_they_meet(ring):
    polygon = shapely.MultiPoint(ring).convex_hull
    if polygon.geom_type != "Polygon":
        return
    where = Filter(polygon=shapely.geometry.mapping(polygon))
    assert where == Filter(polygon=polygon.wkt)
    expected = [
        any(
            polygon.intersects(shapely.box(*part))
            for part in ([(w, s, e, n)] if w <= e else [(w, s, 180, n), (-180, s, e, n)])
        )
        for w, s, e, n in ROWS["bbox"].tolist()
    ]
    np.testing.assert_array_equal(SIDECAR.matching(where), expected)
    assert may_match(where, *SIDECAR.extent) or not any(expected)


def test_the_hit_table_names_the_labels_of_each_row():
    labels = hit_table(SIDECAR.take(np.arange(400)), CLASSES)["labels"].to_pylist()
    assert labels == [
        [name for name, has in zip(CLASSES, row, strict=True) if has] for row in ROWS["labels"]
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bbox": (1, 2, 3)}, "has 3 numbers"),
        ({"bbox": (0, 5, 1, 2)}, "south <= north"),
        ({"bbox": (0, 0, 400, 2)}, "WGS84 degrees"),
        ({"bbox": (0, 0, float("nan"), 2)}, "WGS84 degrees"),
        ({"polygon": "POLYGON((0 0,1 1,1 0,0 1,0 0))"}, r"Self-intersection\[0.5 0.5\]"),
        ({"polygon": "POLYGON((0 0,1 1"}, "neither WKT nor GeoJSON"),
        ({"polygon": "{}"}, "neither WKT nor GeoJSON"),
        ({"polygon": "POINT(1 1)"}, "is a Point"),
        ({"polygon": "POLYGON((170 0,190 0,190 5,170 0))"}, "cut it at the antimeridian"),
        ({"since": "2024-02-01", "until": "2024-01-01"}, "swap the two dates"),
        ({"until": "soon"}, "until is 'soon'"),
        ({"max_cloud_fraction": 30}, r"in \[0, 1\]"),
        ({"scenes": "S1"}, "give a list of names"),
    ],
)
def test_senseless_filters_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Filter(**values)


def test_a_date_as_until_includes_its_day():
    assert Filter(until="2024-05-31").interval[1] == np.datetime64("2024-05-31T23:59:59.999")
    assert Filter(until=dt.date(2024, 5, 31)) == Filter(until="2024-05-31")
    assert Filter(until="2024-05-31T00:00").interval[1] == np.datetime64("2024-05-31T00:00", "ms")
