"""GeoParquet written table by table, so that a file may be larger than memory.

Specification: https://geoparquet.org/releases/v1.1.0. Without a ``crs`` the coordinates are
longitude and latitude on WGS84 (OGC:CRS84), which is what tiles' boxes are.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from storage.errors import ConfigError
from storage.footprints import footprints
from storage.object_store import StorageOptions, upload
from storage.uris import is_local, local_path

EDGES = ("west", "south", "east", "north")
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]},
    },
}


def write_geoparquet(
    tables: Iterable[pa.Table], uri: str, options: StorageOptions | None = None
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
    near = local_path(uri).parent if is_local(uri) else None
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
            path.replace(local_path(uri))
        else:
            upload(path, uri, options)
    return rows


def _with_geometry(table: pa.Table) -> pa.Table:
    boxes = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    shapes = pa.array(shapely.to_wkb(footprints(boxes)), pa.binary())
    part = table.drop_columns(list(EDGES)).append_column("geometry", shapes)
    return part.replace_schema_metadata({"geo": json.dumps(_GEO)})
