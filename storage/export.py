"""Rows of the archive in the formats that other tools open: GeoParquet and GeoJSON."""

import io
import json
from collections.abc import Mapping
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from storage.archive import Archive, Columns
from storage.footprints import footprints
from storage.object_store import StorageOptions, write_bytes

EXPORTED = ("scene", "tile_key", "datetime", "valid_fraction", "cloud_fraction", "bbox")


def to_frame(
    archive: Archive, rows: npt.NDArray[np.int64] | None = None, *, vectors: bool = True
) -> "gpd.GeoDataFrame":
    """Return rows (n,) of the archive, all live ones by default, as a GeoDataFrame in EPSG:4326.

    Its columns are ``row``, scene, tile key, UTC datetime, fractions, ``labels`` (lists of class
    names) when there are any, ``embedding`` (lists of D float32) unless ``vectors`` is False, and
    the footprint as geometry.
    """
    names = [*EXPORTED, *(["labels"] if archive.spec.classes else [])]
    if vectors:
        names.append("embedding")
    if rows is None:
        parts = [archive.read_segment(segment.ordinal, names) for segment in archive.segments]
        columns = (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            if parts
            else archive.read([], names)
        )
    else:
        columns = archive.read(rows, names)
    return _frame(columns, archive.spec.classes)


def to_geoparquet(
    archive: Archive,
    uri: str,
    rows: npt.NDArray[np.int64] | None = None,
    options: StorageOptions | None = None,
) -> int:
    """Write rows, all live ones by default, as one GeoParquet file; return how many."""
    frame = to_frame(archive, rows)
    write_bytes(uri, _parquet(frame), options)
    return len(frame)


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


def _frame(columns: Columns, classes: tuple[str, ...]) -> "gpd.GeoDataFrame":
    names = np.array(classes, dtype=object)
    data: dict[str, Any] = {
        name: columns[name]
        for name in ("row", "scene", "tile_key", "valid_fraction", "cloud_fraction")
    }
    data["datetime"] = columns["datetime"].astype("datetime64[ms]")
    if classes:
        data["labels"] = [names[mask.astype(bool)].tolist() for mask in columns["labels"]]
    if "embedding" in columns:
        data["embedding"] = list(columns["embedding"].astype(np.float32))
    frame = gpd.GeoDataFrame(data, geometry=footprints(columns["bbox"]), crs="EPSG:4326")
    frame["datetime"] = frame["datetime"].dt.tz_localize("UTC")
    return frame


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return f"{np.datetime_as_string(value, unit='s')}Z"
    return value.item() if isinstance(value, np.generic) else value
