"""A hit is the same in every format, whoever writes it, also at 180 degrees."""

import csv
import datetime as dt
import io
import json
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import ConfigError
from storage.formats import (
    HIT_COLUMNS,
    feature_collection,
    geoparquet,
    hit_records,
    located,
    read_csv_hits,
    write_geoparquet,
    write_hits,
    write_rows,
)
from storage.geometry import EDGES, footprints
from storage.index.sidecar import HIT_SCHEMA
from workflows.service.negotiation import GEOJSON, negotiated
from workflows.service.schema import HitBody, SearchAnswer

BOXES = np.array([[10.0, 0.0, 11.0, 1.0], [179.5, -10.0, -179.5, -9.0]])


@pytest.fixture
def hits() -> pa.Table:
    """Two hits as a search returns them, the second across 180 degrees."""
    moments = [dt.datetime(2024, 5, 1, 10, 30, tzinfo=dt.UTC)] * 2
    rows = {
        "query": pa.array([0, 0], pa.int32()),
        "rank": pa.array([1, 2], pa.int32()),
        "score": pa.array([0.5, 0.25], pa.float32()),
        "closer_than": pa.array([0.9, None], pa.float64()),
        "row": [7, 8],
        "tile_key": ["g/1/2", "g/3/4"],
        "scene": ["a", "b"],
        **dict(zip(EDGES, BOXES.T, strict=True)),
        "datetime": pa.array(moments, HIT_SCHEMA.field("datetime").type),
        "cloud_fraction": pa.array([0.0, 0.1], pa.float32()),
        "labels": [["water", "forest"], []],
    }
    return located(pa.table(rows), footprints(BOXES))


SIGNS = ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "'=1", "\uff1d1", "plain", "a=b", "", " =1"]


@pytest.mark.parametrize("text", SIGNS)
def test_no_cell_of_a_table_is_a_formula(hits: pa.Table, tmp_path: Path, text: str) -> None:
    column = hits.schema.get_field_index("scene")
    hits = hits.set_column(column, "scene", pa.array([text, text]))
    hits = hits.set_column(hits.schema.get_field_index("labels"), "labels", [[[text]], [[]]])
    hits = hits.set_column(hits.schema.get_field_index("score"), "score", [[-0.5, -0.25]])
    write_hits(hits, str(tmp_path / "hits.csv"))
    data = (tmp_path / "hits.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    for cell in (rows[0]["scene"], rows[0]["labels"]):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    assert [row["scene"] for row in read_csv_hits(data)] == [text, text]
    assert [row["score"] for row in rows] == ["-0.5", "-0.25"]  # numbers stay numbers


def test_every_format_has_the_same_hits(hits: pa.Table, tmp_path: Path) -> None:
    for suffix in ("geojson", "parquet", "csv"):
        write_hits(hits, str(tmp_path / f"hits.{suffix}"))
    records = hit_records(hits)
    assert [record["rank"] for record in records] == [1, 2]
    assert records[1]["bbox"] == BOXES[1].tolist()
    features = json.loads((tmp_path / "hits.geojson").read_text())["features"]
    assert features[0]["properties"] == {
        "rank": 1,
        "score": 0.5,
        "closer_than": 0.9,
        "row": 7,
        "tile_key": "g/1/2",
        "scene": "a",
        "datetime": "2024-05-01T10:30:00Z",
        "cloud_fraction": 0.0,
        "labels": ["water", "forest"],
    }
    assert features[1]["bbox"] == BOXES[1].tolist()
    frame = gpd.read_parquet(tmp_path / "hits.parquet")
    assert frame.crs.to_authority() == ("OGC", "CRS84")
    boxes = pq.read_table(tmp_path / "hits.parquet")["bbox"].to_pylist()  # geopandas hides it
    assert boxes[1] == {"xmin": -180, "ymin": -10, "xmax": 180, "ymax": -9}
    assert frame.geometry.tolist() == footprints(BOXES).tolist()
    assert gpd.read_file(tmp_path / "hits.geojson").geometry.tolist() == frame.geometry.tolist()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "hits.csv").read_text())))
    assert next(iter(rows[0])) == "rank"
    assert list(rows[0])[-2:] == ["geometry", "labels"]
    assert gpd.GeoSeries.from_wkt([row["geometry"] for row in rows]).tolist() == (
        frame.geometry.tolist()
    )
    for name in ("rank", "tile_key", "scene", "row"):
        assert [str(value) for value in frame[name]] == [row[name] for row in rows]


def test_a_hit_has_one_footprint_from_the_command_line_and_over_http(
    hits: pa.Table, tmp_path: Path
) -> None:
    write_hits(hits, str(tmp_path / "hits.geojson"))
    written = json.loads((tmp_path / "hits.geojson").read_text())["features"]
    bodies = [HitBody(**record) for record in hit_records(hits)]
    answer = SearchAnswer(
        query="q", snapshot="S", version="v", coverage=1.0, ordinary=False, learned=False,
        like="ADw", hits=bodies,
    )  # fmt: skip
    response = json.loads(bytes(negotiated(answer, GEOJSON).body))
    assert response["features"] == written
    assert response["snapshot"] == "S"


def test_a_record_without_a_place_has_no_geometry() -> None:
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    records = [
        {"scene": "a", "bbox": None, "geometry": None},
        {"scene": "b", "bbox": [0, 0, 1, 1], "geometry": square},
    ]
    features = feature_collection(records, total=2)["features"]
    assert [f["geometry"] and f["geometry"]["type"] for f in features] == [None, "Polygon"]
    frame = gpd.read_parquet(io.BytesIO(geoparquet(records)))
    assert frame["scene"].tolist() == ["b"]
    assert len(gpd.read_parquet(io.BytesIO(geoparquet([])))) == 0


def test_a_file_appears_when_it_is_complete_or_not_at_all(hits: pa.Table, tmp_path: Path) -> None:
    def broken() -> Iterator[pa.Table]:
        yield hits
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_geoparquet(broken(), str(tmp_path / "rows.parquet"))
    with pytest.raises(ConfigError, match="nothing to write"):
        write_geoparquet([], str(tmp_path / "rows.parquet"))
    assert list(tmp_path.iterdir()) == []
    assert write_geoparquet([hits, hits], str(tmp_path / "rows.parquet")) == 4
    assert len(gpd.read_parquet(tmp_path / "rows.parquet")) == 4


def test_hits_have_one_schema_everywhere(hits: pa.Table, tmp_path: Path) -> None:
    """Of a search, over HTTP, and in files: the same names, in one order."""
    assert tuple(HitBody.model_fields) == (*HIT_COLUMNS, "dates")
    assert tuple(hits.column_names) == ("query", *HIT_COLUMNS)
    assert set(HIT_SCHEMA.names) - set(EDGES) <= set(HIT_COLUMNS)
    write_hits(hits, str(tmp_path / "hits.parquet"))
    assert tuple(pq.read_table(tmp_path / "hits.parquet").column_names) == HIT_COLUMNS
    assert tuple(hit_records(hits)[0]) == HIT_COLUMNS


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_rows_are_written_as_their_name_says(tmp_path: Path, name: str) -> None:
    rows = {"source": ["a/b.jpg", "=c.jpg"], "score": [0.25, float("nan")]}
    write_rows(rows, str(tmp_path / name))
    is_csv = name.endswith(".csv")
    read = pd.read_csv(tmp_path / name) if is_csv else pd.read_parquet(tmp_path / name)
    assert read["source"].tolist() == ["a/b.jpg", "'=c.jpg" if is_csv else "=c.jpg"]
    np.testing.assert_array_equal(read["score"], rows["score"])
    with pytest.raises(ConfigError, match=r"end the name in \.parquet or \.csv"):
        write_rows(rows, str(tmp_path / "rows.geojson"))
