"""GeoParquet written table by table, so that a file may be larger than memory.

Specification: https://geoparquet.org/releases/v1.1.0. Without a ``crs`` the coordinates are
longitude and latitude on WGS84 (OGC:CRS84), which is what tiles' boxes are.
"""

import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from storage.archive.reader import Archive, Columns
from storage.errors import ConfigError
from storage.geometry import footprints
from storage.location import Location, StorageOptions

EDGES = ("west", "south", "east", "north")
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]},
    },
}


def write_geoparquet(
    tables: Iterable[pa.Table], uri: str | Location, options: StorageOptions | None = None
) -> int:
    """Write tables of one schema, one row group each, as one GeoParquet file; return its rows.

    The file appears when it is complete, and not at all when a table fails to come.

    Parameters
    ----------
    tables
        With the boxes of their rows, WGS84 degrees, in :data:`EDGES`; those become ``geometry``,
        a polygon in WKB.

    Raises
    ------
    ConfigError
        There is no table.
    """
    target = Location.of(uri, options)
    near = target.path.parent if target.is_local else None
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=near) as folder:
        path, rows = Path(folder) / "part.parquet", 0
        writer: pq.ParquetWriter | None = None
        try:
            for table in tables:
                part = _with_geometry(table)
                if writer is None:
                    writer = pq.ParquetWriter(path, part.schema, compression="zstd")
                writer.write_table(part)
                rows += len(part)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ConfigError(f"{uri}: there is nothing to write, not even an empty table")
        if near is not None:
            path.replace(target.path)
        else:
            target.upload(path)
    return rows


def _with_geometry(table: pa.Table) -> pa.Table:
    boxes = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    shapes = pa.array(shapely.to_wkb(footprints(boxes)), pa.binary())
    part = table.drop_columns(list(EDGES)).append_column("geometry", shapes)
    return part.replace_schema_metadata({"geo": json.dumps(_GEO)})


_TIME = pa.timestamp("ms", tz="UTC")
EXPORTED = ("scene", "tile_key", "datetime", "valid_fraction", "cloud_fraction", "bbox")


def to_geoparquet(
    archive: Archive, uri: str | Location, options: StorageOptions | None = None
) -> int:
    """Write all live rows as one GeoParquet file, a row group a segment; return how many.

    Its columns are ``row``, scene, tile key, UTC datetime, fractions, ``labels`` (lists of class
    names) when there are any, ``embedding`` (lists of D float32) and the footprint as geometry.

    Notes
    -----
    Peak memory is a few copies of one segment, whatever the size of the archive.
    """
    labels = ("labels",) if archive.spec.classes else ()
    names = (*EXPORTED, *labels, "embedding")
    parts = (archive.read_segment(segment.ordinal, names) for segment in archive.segments)
    empty = archive.read([], (*names, "row"))
    tables = (_table(part, archive.spec.classes) for part in itertools.chain([empty], parts))
    return write_geoparquet(tables, uri, options)


def _table(columns: Columns, classes: tuple[str, ...]) -> pa.Table:
    """Return rows as an Arrow table, their boxes as four columns."""
    vectors = columns["embedding"].astype(np.float32)
    starts = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    data: dict[str, Any] = {
        "row": columns["row"],
        "scene": pa.array(columns["scene"].tolist(), pa.string()),
        "tile_key": pa.array(columns["tile_key"].tolist(), pa.string()),
        "datetime": pa.array(columns["datetime"].astype("datetime64[ms]"), _TIME),
        "valid_fraction": columns["valid_fraction"],
        "cloud_fraction": columns["cloud_fraction"],
    }
    if classes:
        names = np.array(classes, dtype=object)
        listed = [names[mask.astype(bool)].tolist() for mask in columns["labels"]]
        data["labels"] = pa.array(listed, pa.list_(pa.string()))
    data["embedding"] = pa.ListArray.from_arrays(starts, vectors.reshape(-1))
    edges = dict(zip(EDGES, columns["bbox"].T, strict=True))
    return pa.table(data | edges)


def hits_to_geoparquet(hits: pd.DataFrame, bbox: npt.NDArray[np.float64]) -> bytes:
    """Return search hits, one a row, as GeoParquet; ``bbox`` (n, 4) are their WGS84 boxes."""
    return _parquet(gpd.GeoDataFrame(hits, geometry=footprints(bbox), crs="EPSG:4326"))


def hits_to_geojson(hits: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return search hits as a GeoJSON FeatureCollection.

    Parameters
    ----------
    hits
        Columns of equal length: ``bbox`` (n, 4) WGS84 degrees; every other one-dimensional
        column becomes a property.
    """
    properties = {n: v for n, v in hits.items() if n != "bbox" and v.ndim == 1}
    geometry = footprints(hits["bbox"])
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(geometry[index])),
            "properties": {name: _plain(values[index]) for name, values in properties.items()},
        }
        for index in range(len(geometry))
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _parquet(frame: "gpd.GeoDataFrame") -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return f"{np.datetime_as_string(value, unit='s')}Z"
    return value.item() if isinstance(value, np.generic) else value
