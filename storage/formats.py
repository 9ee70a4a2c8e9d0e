"""Rows and hits as GeoJSON, GeoParquet and CSV: one footprint rule and one writer of each format.

Footprints are those of :mod:`storage.geometry`. GeoParquet is written table by table, so that a
file may be larger than memory.

References
----------
GeoParquet 1.1.0, https://geoparquet.org/releases/v1.1.0. GeoJSON, RFC 7946.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pyproj
import shapely

from storage.errors import ConfigError
from storage.geometry import EDGES, footprints, geojson_footprints
from storage.location import Location
from storage.values import json_digest

_GEOMETRY = {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}
# Spreadsheets evaluate a cell that begins like this. An apostrophe before makes the cell text; one
# that is there already gets another, so that readers take off exactly one.
_FORMULA = r"^[=+\-@\t\r'\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"


def hit_records(table: pa.Table) -> list[dict[str, Any]]:
    """Return the hits of one query as plain values with a ``bbox``; ranks count from 1.

    Parameters
    ----------
    table
        As :meth:`pipeline.search.hits.Hits.table` returns it.
    """
    records: list[dict[str, Any]] = _ranked(table).to_pylist()
    for record in records:
        record["bbox"] = [record.pop(edge) for edge in EDGES]
    return records


def feature_collection(records: Iterable[Mapping[str, Any]], **members: Any) -> dict[str, Any]:
    """Return records as a GeoJSON FeatureCollection.

    Parameters
    ----------
    records
        JSON values by name; ``bbox`` (WGS84 degrees, None for no place) becomes the geometry, the
        others become properties.
    members
        Further members of the collection.
    """
    rows = [dict(record) for record in records]
    boxes = [row.pop("bbox") for row in rows]
    geometries = iter(geojson_footprints([box for box in boxes if box is not None]))
    features = [
        {
            "type": "Feature",
            "geometry": None if box is None else next(geometries),
            "properties": row,
        }
        for row, box in zip(rows, boxes, strict=True)
    ]
    return {"type": "FeatureCollection", **members, "features": features}


def geoparquet(rows: pa.Table | Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as a GeoParquet file.

    Parameters
    ----------
    rows
        A table with the boxes of its rows in :data:`EDGES`, or records as
        :func:`feature_collection` takes them; records without a box are left out.
    """
    sink = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else _placed(rows)
    crs = pyproj.CRS.from_epsg(4326).to_json_dict()
    placed = _with_geometry(table, {"crs": crs})
    pq.write_table(placed, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def write_geoparquet(tables: Iterable[pa.Table], uri: str | Location) -> int:
    """Write tables of one schema, one row group each, as one GeoParquet file; return its rows.

    The file appears when it is complete, and not at all when a table fails to come. The file names
    no CRS, which means longitude and latitude on WGS84 (OGC:CRS84).

    Parameters
    ----------
    tables
        With the boxes of their rows, WGS84 degrees, in :data:`EDGES`; those become ``geometry``,
        a polygon in WKB.
    uri
        The file.

    Raises
    ------
    ConfigError
        There is no table.
    """
    target, rows = Location.of(uri), 0
    near = target.path.parent if target.is_local else None
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=near) as folder:
        path = Path(folder) / "part.parquet"
        parts = map(_with_geometry, tables)
        first = next(parts, None)
        if first is None:
            raise ConfigError(f"{target}: there is nothing to write, not even an empty table")
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
        with closing(pq.ParquetWriter(path, first.schema, **options)) as writer:
            part: pa.Table | None = first
            while part is not None:
                writer.write_table(part)
                rows += len(part)
                part = next(parts, None)
        if near is not None:
            path.replace(target.path)
        else:
            target.upload(path)
    return rows


def check_format(uri: str | Location) -> None:
    """Check that hits can be written to a file of this name.

    Raises
    ------
    ConfigError
        The name does not end in .geojson, .json, .parquet or .csv.
    """
    if _suffix(uri) not in _WRITERS:
        raise ConfigError(
            f"hits cannot be written to {str(uri)!r}: end the name in .geojson, .parquet or .csv"
        )


def write_hits(table: pa.Table, uri: str | Location) -> None:
    """Write the hits of one query in the format that the name ends in; ranks count from 1.

    Raises
    ------
    ConfigError
        The name ends in something else; see :func:`check_format`.
    """
    check_format(uri)
    Location.of(uri).write(_WRITERS[_suffix(uri)](_ranked(table)))


def _suffix(uri: str | Location) -> str:
    return PurePosixPath(str(uri)).suffix.lower()


def _ranked(table: pa.Table) -> pa.Table:
    """Return the hits of one query without its number, with ranks from 1."""
    ranks = pa.array(np.arange(1, len(table) + 1))
    position = table.schema.get_field_index("rank")
    return table.set_column(position, "rank", ranks).drop_columns(["query"])


def _flat(hits: pa.Table) -> pa.Table:
    """Return hits with their labels, and the dates of their places, as texts at the end."""
    texts = {"labels": [", ".join(names or []) for names in hits["labels"].to_pylist()]}
    if "dates" in hits.column_names:
        texts["dates"] = [
            "; ".join(f"{date['scene']} {date['score']:.4f}" for date in dates)
            for dates in hits["dates"].to_pylist()
        ]
    for name, values in texts.items():
        hits = hits.drop_columns([name]).append_column(name, pa.array(values, pa.string()))
    return hits


def _geojson(hits: pa.Table) -> bytes:
    records = _flat(hits).to_pylist()
    for record in records:
        record["bbox"] = [record.pop(edge) for edge in EDGES]
        record["datetime"] = f"{record['datetime']:%Y-%m-%dT%H:%M:%SZ}"
    document = feature_collection(records)
    return json.dumps({**document, "sha256": json_digest(document["features"])}).encode()


def check_features(document: Mapping[str, Any]) -> None:
    """Compare the features of a collection with the digest that the collection states, if any.

    Raises
    ------
    ValueError
        The features differ from those that were written.
    """
    if document.get("sha256") not in (None, json_digest(document["features"])):
        raise ValueError("the digest of its features differs")


def _csv(hits: pa.Table) -> bytes:
    flat, sink = _flat(hits), io.BytesIO()
    for position, column in enumerate(flat.schema):
        if pa.types.is_string(column.type):
            cells = pa.compute.replace_substring_regex(flat[column.name], _FORMULA, r"'\0")
            flat = flat.set_column(position, column.name, cells)
    names = [name for name in flat.column_names if name != "rank"]
    pa.csv.write_csv(flat.select(["rank", *names]), sink)
    return sink.getvalue()


def read_csv_hits(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a CSV file that :func:`write_hits` wrote, as text."""
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(data.decode())))
    for row in rows:
        row.update({n: cell.removeprefix("'") for n, cell in row.items() if isinstance(cell, str)})
    return rows


_WRITERS = {".geojson": _geojson, ".json": _geojson, ".parquet": geoparquet, ".csv": _csv}


def _placed(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the records that have a box as a table with :data:`EDGES`."""
    rows = [dict(record) for record in records if record["bbox"] is not None]
    boxes = np.array([row.pop("bbox") for row in rows], dtype=np.float64).reshape(-1, 4)
    table = pa.Table.from_pylist(rows)
    for edge, values in zip(EDGES, boxes.T, strict=True):
        table = table.append_column(edge, pa.array(np.ascontiguousarray(values)))
    return table


def _with_geometry(table: pa.Table, more: Mapping[str, Any] | None = None) -> pa.Table:
    """Return a table with the footprints of its rows in place of their boxes.

    ``more`` are further metadata of the column.
    """
    boxes = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    shapes = pa.array(shapely.to_wkb(footprints(boxes)), pa.binary())
    part = table.drop_columns(list(EDGES)).append_column("geometry", shapes)
    columns = {"geometry": {**_GEOMETRY, **(more or {})}}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": columns}
    return part.replace_schema_metadata({"geo": json.dumps(geo)})
