"""Items from STAC-GeoParquet: one table row an item, its properties as columns.

Items get the columns that a scene needs; geometry stays in the table.

References
----------
STAC GeoParquet specification 1.1, https://github.com/stac-utils/stac-geoparquet.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.catalog.stac import item_candidate
from storage.dates import as_utc
from storage.errors import CatalogError
from storage.location import Location
from storage.scene import Candidate, CatalogSpec, Rejected

SUFFIXES = (".parquet", ".geoparquet")
_BATCH_ROWS = 1024
_NEEDED = {"id", "assets"}
_OWN_FIELDS = {"id", "type", "stac_version", "stac_extensions", "collection", "links", "assets"}
_GEOMETRIES = {"geometry", "proj:geometry"}


def table_candidates(source: Location, spec: CatalogSpec) -> Iterator[Candidate | Rejected]:
    """Yield a candidate for every row of a STAC-GeoParquet table.

    Parameters
    ----------
    source
        The table.
    spec
        How to find bands and mask in its items.

    Raises
    ------
    CatalogError
        The table is not Parquet, or its columns are not those of STAC items.
    NotFoundError
        The table does not exist.

    Notes
    -----
    Memory: the file and one batch of rows.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(source.read()))
        missing = _NEEDED - set(table.schema_arrow.names)
        if missing:
            raise CatalogError(
                f"{source} is no STAC-GeoParquet: it has no column "
                f"{' and no '.join(sorted(missing))}; give a table of STAC items"
            )
        columns = [name for name in table.schema_arrow.names if name not in _GEOMETRIES]
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                yield item_candidate(source, _item(row), spec)
    except pa.ArrowException as error:
        raise CatalogError(
            f"{source} is no readable Parquet: {' '.join(str(error).split())[:200]}; write it again"
        ) from error


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the JSON of an item, without its geometry."""
    values: dict[str, Any] = _plain(row)
    bbox = values.pop("bbox", None)
    item = {name: values.pop(name) for name in _OWN_FIELDS if name in values}
    properties = values.pop("properties", None)
    return {
        "stac_version": "1.0.0",
        "links": [],
        **item,
        "type": "Feature",
        "geometry": None,
        "bbox": _bbox(bbox) if bbox else None,
        "properties": {**values, **(properties if isinstance(properties, dict) else {})},
    }


def _bbox(bbox: Any) -> list[float]:
    """Return a box that is a list, or a struct as GeoParquet's covering has it."""
    if not isinstance(bbox, dict):
        return list(bbox)
    edges = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
    return [bbox[edge] for edge in edges if edge in bbox]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a field of a struct that only other rows have goes away."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime):
        return as_utc(value).isoformat().replace("+00:00", "Z")
    return value
