"""The live rows of an archive as one GeoParquet file."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from storage.archive.reader import Archive, Columns
from storage.formats import write_geoparquet
from storage.geometry import EDGES
from storage.location import Location

_TIME = pa.timestamp("ms", tz="UTC")
EXPORTED = ("scene", "tile_key", "datetime", "valid_fraction", "cloud_fraction", "bbox")


def to_geoparquet(archive: Archive, uri: str | Location) -> int:
    """Write all live rows as one GeoParquet file, a row group a segment; return their number.

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
    return write_geoparquet(tables, uri)


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
        labels = [names[flags.astype(bool)].tolist() for flags in columns["labels"]]
        data["labels"] = pa.array(labels, pa.list_(pa.string()))
    data["embedding"] = pa.ListArray.from_arrays(starts, vectors.reshape(-1))
    edges = dict(zip(EDGES, columns["bbox"].T, strict=True))
    return pa.table(data | edges)
