"""Tables of published embeddings: layouts that are recognised, and rows that are left out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shapely

from storage.embeddings.layouts import Choice, Columns, parse_columns
from storage.embeddings.table import PART_ROWS, read_header, read_rows, sample_vectors
from storage.errors import CatalogError, ConfigError
from storage.location import Location
from tests.support import embeddings
from tests.support.embeddings import Chips, geo, lists, make_chips, wkb, write

PRODUCTS = {
    "clay-v0": (embeddings.clay_v0, 768, 5120.0, "Clay v0"),
    "clay-v1.5-naip": (embeddings.clay_naip, 1024, 153.6, "Clay v1.5"),
    "clay-v1.5-s2": (embeddings.clay_s2, 1024, 2560.0, "Clay v1.5"),
    "earth-index": (embeddings.earth_index, 384, 320.0, "SoftCon 2.0.0"),
    "major-tom": (embeddings.major_tom, 64, 2240.0, "Major TOM"),
    "earth-embeddings": (embeddings.earth_embeddings, 32, 3840.0, "EarthEmbeddings"),
    "terramind": (embeddings.terramind, 5, 2240.0, "TerraMind"),
}


def opened(path: Path, **choice: object):
    return read_header(Location.of(str(path)), Choice(**choice))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_layout_is_recognised_and_its_rows_are_those_written(name: str, tmp_path: Path):
    write_product, dimension, side_m, model = PRODUCTS[name]
    chips = make_chips(10, dimension, side_m)
    table = opened(write_product(tmp_path, chips))
    assert (table.layout.name, table.dimension, table.rows) == (name, dimension, 10)
    assert f"{table.model} {table.version}".rstrip() == model
    rows = read_rows(table, 0, 10)
    assert rows.left_out == {}
    np.testing.assert_allclose(rows.vectors, chips.vectors, atol=2e-3, rtol=1e-3)
    assert (rows.datetime.astype("datetime64[D]") == chips.days).all()
    np.testing.assert_allclose(rows.corners.mean(axis=1), chips.centres, atol=side_m / 111_320)


def test_rows_of_a_part_are_read_across_row_groups(tmp_path: Path):
    chips = make_chips(30, 768)
    table = opened(embeddings.clay_v0(tmp_path, chips))
    rows = read_rows(table, 5, 23)
    np.testing.assert_array_equal(rows.vectors, chips.vectors[5:23])
    assert rows.row.tolist() == list(range(5, 23))
    assert PART_ROWS > 0


def test_each_bad_row_has_its_reason_and_the_others_stay(tmp_path: Path):
    chips = make_chips(9, 4)
    vectors: list = [*chips.vectors]
    vectors[0], vectors[1], vectors[2], vectors[3] = None, [1.0, 2.0], [1, np.nan, 0, 0], [0] * 4
    shapes: list = [*chips.polygons]
    shapes[4], shapes[5] = None, shapely.box(400, 0, 401, 1)
    days = [*chips.days.astype(str)]
    days[6] = "soon"
    columns = {
        "embedding": lists(vectors),
        "geometry": wkb(shapes),
        "day": pa.array(days),
    }
    table = opened(
        write(tmp_path / "rows.parquet", columns, geo()),
        columns=parse_columns("vector=embedding, geometry=geometry, date=day"),
    )
    rows = read_rows(table, 0, 9)
    assert {reason: numbers.tolist() for reason, numbers in rows.left_out.items()} == {
        "no vector": [0],
        "vector not of 4 numbers": [1],
        "vector not finite": [2],
        "vector of zeros": [3],
        "no geometry": [4],
        "geometry outside WGS84 degrees": [5],
        "no date": [6],
    }
    np.testing.assert_array_equal(rows.vectors, chips.vectors[7:])
    sample = sample_vectors(table, 9)  # four rows of each of two row groups
    np.testing.assert_array_equal(sample, chips.vectors[7:])


def test_degrees_under_a_crs_in_metres_are_noticed_and_can_be_put_right(tmp_path: Path):
    """As in the sample of a real product, which declares Web Mercator and holds degrees."""
    chips = make_chips(4, 8)
    columns = {
        "embedding": lists(chips.vectors),
        "geometry": wkb(chips.polygons),
        "datetime": pa.array(chips.days.astype("datetime64[ns]")),
    }
    path = write(tmp_path / "planet.parquet", columns, geo("EPSG:3857"))
    mapped = Columns(vector="embedding", geometry="geometry", date="datetime")
    rows = read_rows(opened(path, columns=mapped), 0, 4)
    assert len(rows) == 0
    assert [*rows.left_out] == ["degrees under a CRS in metres (EPSG:3857); give --crs EPSG:4326"]
    rows = read_rows(opened(path, columns=mapped, crs="OGC:CRS84"), 0, 4)
    assert len(rows) == 4


def test_metres_under_a_crs_in_metres_become_degrees(tmp_path: Path):
    columns = {
        "embedding": lists(np.eye(2)),
        "geometry": wkb([shapely.box(0, 0, 111_319.49, 111_325.14)] * 2),
        "datetime": pa.array(["2024-01-01"] * 2),
    }
    path = write(tmp_path / "mercator.parquet", columns, geo("EPSG:3857"))
    mapped = Columns(vector="embedding", geometry="geometry", date="datetime")
    rows = read_rows(opened(path, columns=mapped), 0, 2)
    np.testing.assert_allclose(rows.corners[0].max(axis=0), [1, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        ({}, ConfigError, "no known layout (columns emb, geom, day)"),
        ({"layout": "clay-v0"}, ConfigError, "no column embeddings, geometry, date"),
        ({"layout": "alphaearth"}, ConfigError, "not one of a table"),
        ({"columns": Columns(vector="emb", geometry="nil")}, ConfigError, "no column nil"),
        ({"columns": Columns(vector="day", geometry="geom")}, ConfigError, "not lists of numbers"),
        (
            {"columns": Columns(vector="emb", geometry="geom")},
            CatalogError,
            "neither a column of dates nor a date in its name; give --date",
        ),
    ],
)
def test_a_table_that_does_not_say_what_is_what_ends_in_one_line(
    choice: dict, error: type[Exception], text: str, tmp_path: Path
):
    chips = make_chips(2, 3)
    columns = {
        "emb": lists(chips.vectors),
        "geom": wkb(chips.polygons),
        "day": pa.array(chips.days),
    }
    path = write(tmp_path / "rows.parquet", columns)
    with pytest.raises(error) as raised:
        opened(path, **choice)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["vector", "vektor=emb", "vector=", "=emb"])
def test_a_mapping_that_is_none_is_refused(text: str):
    with pytest.raises(ConfigError, match="is not NAME=COLUMN"):
        parse_columns(text)


def test_a_damaged_file_is_one_line(tmp_path: Path):
    path = embeddings.clay_v0(tmp_path, make_chips(20, 768))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CatalogError, match="no readable Parquet"):
        opened(path)


def test_the_written_chips_are_what_the_helpers_say():
    chips: Chips = make_chips(3, 8, 320.0)
    made: Callable = shapely.centroid
    centroids = shapely.get_coordinates(made(chips.polygons))
    np.testing.assert_allclose(centroids, chips.centres, atol=1e-6)
