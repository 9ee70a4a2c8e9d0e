"""Search hits as other programs take them: records, GeoJSON, GeoParquet, CSV."""

import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from storage.archive.export import hits_to_geojson, hits_to_geoparquet
from storage.errors import ConfigError
from storage.location import StorageOptions, write_bytes

EDGES = ("west", "south", "east", "north")


def hit_records(table: pa.Table) -> list[dict[str, Any]]:
    """Return the hits of one query as plain values; ranks count from 1.

    Parameters
    ----------
    table
        What :meth:`pipeline.search.searcher.Hits.to_arrow` gave.
    """
    records = []
    for rank, row in enumerate(table.to_pylist(), start=1):
        box = [row.pop(edge) for edge in EDGES]
        del row["query"]
        records.append({**row, "rank": rank, "bbox": box})
    return records


def check_format(uri: str) -> None:
    """Check that hits can be written to a file of this name.

    Raises
    ------
    ConfigError
        It does not end in .geojson, .json, .parquet or .csv.
    """
    if PurePosixPath(uri).suffix.lower() not in _WRITERS:
        raise ConfigError(
            f"hits cannot be written to {uri!r}: end it in .geojson, .parquet or .csv"
        )


def write_hits(table: pa.Table, uri: str, options: StorageOptions | None = None) -> None:
    """Write hits in the format that the name ends in.

    Raises
    ------
    ConfigError
        The name ends in something else; see :func:`check_format`.
    """
    check_format(uri)
    write_bytes(uri, _WRITERS[PurePosixPath(uri).suffix.lower()](table), options)


def _boxes(table: pa.Table) -> np.ndarray:
    return np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)


def _geojson(table: pa.Table) -> bytes:
    names = [name for name in table.column_names if name not in (*EDGES, "query", "labels")]
    columns = {name: table[name].to_numpy() for name in names}
    columns["rank"] = np.arange(1, len(table) + 1)
    columns["labels"] = np.array([", ".join(v or []) for v in table["labels"].to_pylist()], object)
    return hits_to_geojson({**columns, "bbox": _boxes(table)}).encode()


def _geoparquet(table: pa.Table) -> bytes:
    kept = table.drop_columns([*EDGES, "query"]).to_pandas()
    kept["rank"] = np.arange(1, len(kept) + 1)
    return hits_to_geoparquet(kept, _boxes(table))


def _csv(table: pa.Table) -> bytes:
    labels = pa.array([", ".join(v or []) for v in table["labels"].to_pylist()], pa.string())
    flat = table.drop_columns(["query", "rank", "labels"])
    flat = flat.add_column(0, "rank", pa.array(np.arange(1, len(table) + 1)))
    sink = io.BytesIO()
    pa.csv.write_csv(flat.append_column("labels", labels), sink)
    return sink.getvalue()


_WRITERS = {".geojson": _geojson, ".json": _geojson, ".parquet": _geoparquet, ".csv": _csv}
