"""Rows and hits as GeoJSON, GeoParquet and CSV: one schema of hits and one writer of each format.

GeoParquet is written table by table, so that a file may be larger than memory.

References
----------
GeoParquet 1.1.0, https://geoparquet.org/releases/v1.1.0. GeoJSON, RFC 7946.
"""

import csv
import datetime as dt
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
import shapely

from storage.errors import ConfigError
from storage.geometry import EDGES, from_geojson, geojson
from storage.location import Location
from storage.outlines import Shapes
from storage.values import json_digest

HIT_COLUMNS = (
    "rank", "score", "closer_than", "row", "tile_key", "scene", "datetime", "cloud_fraction",
    "labels", "bbox", "geometry",
)  # fmt: skip
"""What every hit has, in Arrow, JSON, GeoJSON, GeoParquet and CSV; ``rank`` counts from 1."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BOX = pa.struct([(corner, pa.float64()) for corner in _CORNERS])
_GEOMETRY = {
    "encoding": "WKB",
    "geometry_types": ["Polygon", "MultiPolygon"],
    "covering": {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}},
}
# Spreadsheets evaluate a cell that begins like this. An apostrophe before makes the cell text; one
# that is there already gets another, so that readers take off exactly one.
_FORMULA = r"^[=+\-@\t\r'\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"


def located(table: pa.Table, shapes: Shapes) -> pa.Table:
    """Return rows with ``bbox`` and ``geometry`` (WKB) at the end, in place of their edges.

    Parameters
    ----------
    table
        With the boxes of its rows, WGS84 degrees, in :data:`storage.geometry.EDGES`.
    shapes
        Footprints (n,) of the rows.
    """
    edges = [table[edge].combine_chunks() for edge in EDGES]
    box = pa.StructArray.from_arrays(edges, fields=list(_BOX))
    wkb = pa.array(shapely.to_wkb(shapes), pa.binary())
    return table.drop_columns(list(EDGES)).append_column("bbox", box).append_column("geometry", wkb)


def hit_records(table: pa.Table) -> list[dict[str, Any]]:
    """Return the hits of one query as plain values of :data:`HIT_COLUMNS`.

    ``bbox`` is west, south, east, north; ``geometry`` is GeoJSON; both in WGS84 degrees.

    Parameters
    ----------
    table
        As :meth:`pipeline.search.hits.Hits.to_arrow` returns it.
    """
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    records: list[dict[str, Any]] = table.drop_columns(["query", "geometry"]).to_pylist()
    for record, geometry in zip(records, geojson(shapes), strict=True):
        record["bbox"] = list(record["bbox"].values())
        record["geometry"] = geometry
    return records


def feature_collection(records: Iterable[Mapping[str, Any]], **members: Any) -> dict[str, Any]:
    """Return records as a GeoJSON FeatureCollection.

    Parameters
    ----------
    records
        JSON values by name; ``bbox`` and ``geometry`` (GeoJSON; both None for no place) become
        members of the feature, the others become properties.
    members
        Further members of the collection.
    """
    features = []
    for record in records:
        row = dict(record)
        box, geometry = row.pop("bbox"), row.pop("geometry")
        place = {"bbox": box, "geometry": geometry} if box else {"geometry": None}
        features.append({"type": "Feature", **place, "properties": row})
    return {"type": "FeatureCollection", **members, "features": features}


def geoparquet(rows: pa.Table | Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as a GeoParquet file.

    Parameters
    ----------
    rows
        A table with ``bbox`` and ``geometry`` (:func:`located`), or records as
        :func:`feature_collection` takes them; records without a place are left out.
    """
    sink = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else _placed(rows)
    pq.write_table(_covered(table), sink, **_PARQUET)
    return sink.getvalue()


def write_geoparquet(
    tables: Iterable[pa.Table], uri: str | Location, metadata: Mapping[str, Any] | None = None
) -> int:
    """Write tables of one schema, one row group each, as one GeoParquet file; return its rows.

    The file appears when it is complete, and not at all when a table fails to come. The file names
    no CRS, which means longitude and latitude on WGS84 (OGC:CRS84). Its column ``bbox`` covers the
    footprints, so readers skip the row groups outside a box; a footprint that is cut at the
    antimeridian is covered from -180 to 180.

    Parameters
    ----------
    tables
        With ``bbox`` and ``geometry`` (:func:`located`).
    uri
        The file.
    metadata
        JSON values for the file's footer, by key.

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
        parts = (_covered(table, metadata or {}) for table in tables)
        first = next(parts, None)
        if first is None:
            raise ConfigError(f"{target}: there is nothing to write, not even an empty table")
        with closing(pq.ParquetWriter(path, first.schema, **_PARQUET)) as writer:
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
    """Write the hits of one query in the format that the name ends in.

    Raises
    ------
    ConfigError
        The name ends in something else; see :func:`check_format`.
    """
    check_format(uri)
    Location.of(uri).write(_WRITERS[_suffix(uri)](table))


def read_records(uri: str | Location) -> list[dict[str, Any]]:
    """Return the rows of a GeoJSON or GeoParquet file, with ``lonlat``, the middle of each.

    It is None for a feature without a geometry.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        The file is neither, or its content is damaged.
    """
    file = Location.of(uri)
    data = file.read()
    try:
        if _suffix(file) == ".parquet":
            records = pq.read_table(io.BytesIO(data)).to_pylist()
            shapes = shapely.from_wkb([record.pop("geometry") for record in records])
        else:
            document = json.loads(data)
            check_features(document)
            records = [dict(feature["properties"]) for feature in document["features"]]
            geometries = [feature["geometry"] for feature in document["features"]]
            shapes = np.full(len(geometries), None, dtype=object)
            given = [number for number, geometry in enumerate(geometries) if geometry is not None]
            shapes[given] = from_geojson([geometries[number] for number in given])
        middles = shapely.centroid(shapes)
        places = np.stack([shapely.get_x(middles), shapely.get_y(middles)], axis=1)
        pairs = zip(records, places.tolist(), strict=True)
        return [
            {**record, "lonlat": tuple(place) if np.isfinite(place).all() else None}
            for record, place in pairs
        ]
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, shapely.errors.ShapelyError
    ) as error:  # fmt: skip
        raise ConfigError(
            f"{file} is neither GeoJSON nor GeoParquet with features "
            f"({error or type(error).__name__})"
        ) from error


def _suffix(uri: str | Location) -> str:
    return PurePosixPath(str(uri)).suffix.lower()


def _flat(hits: pa.Table) -> pa.Table:
    """Return hits with edges for the box and texts at the end: footprint, labels, dates."""
    boxes = zip(EDGES, hits["bbox"].combine_chunks().flatten(), strict=True)
    shapes = shapely.from_wkb(hits["geometry"].to_numpy(zero_copy_only=False))
    hits = hits.drop_columns(["query", "bbox"])
    for edge, values in boxes:
        hits = hits.append_column(edge, values)
    texts: dict[str, Any] = {"geometry": shapely.to_wkt(shapes)}
    texts |= {"labels": [", ".join(names or []) for names in hits["labels"].to_pylist()]}
    if "dates" in hits.column_names:
        texts["dates"] = [
            "; ".join(f"{date['scene']} {date['score']:.4f}" for date in dates)
            for dates in hits["dates"].to_pylist()
        ]
    for name, values in texts.items():
        hits = hits.drop_columns([name]).append_column(name, pa.array(values, pa.string()))
    return hits


def _geojson(hits: pa.Table) -> bytes:
    document = json.loads(json.dumps(feature_collection(hit_records(hits)), default=_as_text))
    return json.dumps({**document, "sha256": json_digest(document["features"])}).encode()


def _as_text(moment: dt.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def check_features(document: Mapping[str, Any]) -> None:
    """Compare the features of a collection with the digest that the collection states, if any.

    Raises
    ------
    ValueError
        The features differ from those that were written.
    """
    if document.get("sha256") not in (None, json_digest(document["features"])):
        raise ValueError("the digest of its features differs")


def write_rows(columns: Mapping[str, Sequence[Any]], uri: str | Location) -> None:
    """Write rows, given by their columns, as the name says: ``.csv`` or ``.parquet``.

    Raises
    ------
    ConfigError
        The name ends in something else; see :func:`check_rows_format`.
    """
    check_rows_format(uri)
    table, sink = pa.table(dict(columns)), io.BytesIO()
    if _suffix(uri) == ".csv":
        pa.csv.write_csv(_without_formulas(table), sink)
    else:
        pq.write_table(table, sink, **_PARQUET)
    Location.of(uri).write(sink.getvalue())


def check_rows_format(uri: str | Location) -> None:
    """Check, before any work, that rows can be written to a file of this name.

    Raises
    ------
    ConfigError
        The name does not end in .parquet or .csv.
    """
    if _suffix(uri) not in (".parquet", ".csv"):
        raise ConfigError(
            f"rows cannot be written to {str(uri)!r}: end the name in .parquet or .csv"
        )


def _csv(hits: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(_without_formulas(_flat(hits)), sink)
    return sink.getvalue()


def _without_formulas(flat: pa.Table) -> pa.Table:
    """Return a table whose texts no spreadsheet takes for a formula."""
    for position, column in enumerate(flat.schema):
        if pa.types.is_string(column.type):
            cells = pa.compute.replace_substring_regex(flat[column.name], _FORMULA, r"'\0")
            flat = flat.set_column(position, column.name, cells)
    return flat


def read_csv_hits(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a CSV file that :func:`write_hits` wrote, as text."""
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(data.decode())))
    for row in rows:
        row.update({n: cell.removeprefix("'") for n, cell in row.items() if isinstance(cell, str)})
    return rows


_PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def _parquet(hits: pa.Table) -> bytes:
    return geoparquet(hits.drop_columns(["query"]))


_WRITERS = {".geojson": _geojson, ".json": _geojson, ".parquet": _parquet, ".csv": _csv}


def _placed(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the records that have a place as a table of :func:`located`."""
    rows = [dict(record) for record in records if record["bbox"] is not None]
    boxes = np.array([row.pop("bbox") for row in rows], dtype=np.float64).reshape(-1, 4)
    shapes = from_geojson([row.pop("geometry") for row in rows])
    table = pa.Table.from_pylist(rows)
    for edge, values in zip(EDGES, boxes.T, strict=True):
        table = table.append_column(edge, pa.array(np.ascontiguousarray(values)))
    return located(table, shapes)


def _covered(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> pa.Table:
    """Return a table whose boxes cover its footprints, with the metadata of GeoParquet."""
    bounds = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False)))
    edges = [pa.array(np.ascontiguousarray(values)) for values in bounds.reshape(-1, 4).T]
    box = pa.StructArray.from_arrays(edges, fields=list(_BOX))
    place = table.schema.get_field_index("bbox")
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": _GEOMETRY}}
    texts = {name: json.dumps(value) for name, value in {"geo": geo, **(metadata or {})}.items()}
    return table.set_column(place, "bbox", box).replace_schema_metadata(texts)
