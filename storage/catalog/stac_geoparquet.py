"""Items from STAC-GeoParquet: one table row an item, its properties as columns.

Items get the columns that a scene needs, the geometry where a query has an area.

References
----------
STAC GeoParquet specification 1.1, https://github.com/stac-utils/stac-geoparquet.
"""

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.catalog.stac import item_candidate
from storage.dates import as_utc
from storage.errors import CatalogError
from storage.geometry import geojson_of
from storage.location import Location
from storage.quarantine import Quarantine
from storage.scene import Candidate, CatalogSpec, Rejected

SUFFIXES = (".parquet", ".geoparquet")
_BATCH_ROWS = 1024
_NEEDED = {"id", "assets"}
_OWN_FIELDS = {"id", "type", "stac_version", "stac_extensions", "collection", "links", "assets"}
_NESTED = {"assets", "links", "bbox", "properties"}
_GEOMETRIES = {"proj:geometry"}


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
        unused = _GEOMETRIES if spec.query.area else {*_GEOMETRIES, "geometry"}
        columns = [name for name in table.schema_arrow.names if name not in unused]
        first = 0
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
            yield from _candidates(batch, first, source, spec)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(
            f"{source} is no readable Parquet: {' '.join(str(error).split())[:200]}; write it again"
        ) from error


def _candidates(
    batch: pa.RecordBatch, first: int, source: Location, spec: CatalogSpec
) -> Iterator[Candidate | Rejected]:
    """Yield each row as a candidate, or the reason against it; rows count from ``first``."""
    rows = None
    with Quarantine("rows together"):  # several times as fast as one by one
        rows = batch.to_pylist()
    for index in range(batch.num_rows):
        name = where = f"row {first + index} of {source}"
        with Quarantine(where) as fault:
            name = str(batch.column("id")[index])
            row = rows[index] if rows else batch.slice(index, 1).to_pylist()[0]
            yield item_candidate(source, _item(row), spec, where)
        if fault:
            yield Rejected(scene_id=name, reason=f"{where} cannot be used: {fault.reason}")


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the JSON of an item."""
    values: dict[str, Any] = {name: _parsed(name, value) for name, value in _plain(row).items()}
    bbox = values.pop("bbox", None)
    geometry = values.pop("geometry", None)
    item = {name: values.pop(name) for name in _OWN_FIELDS if name in values}
    properties = values.pop("properties", None)
    return {
        "stac_version": "1.0.0",
        "links": [],
        **item,
        "type": "Feature",
        "geometry": geojson_of(geometry) if isinstance(geometry, (bytes, str)) else geometry,
        "bbox": _bbox(bbox) if bbox else None,
        "properties": {**values, **(properties if isinstance(properties, dict) else {})},
    }


def _parsed(name: str, value: Any) -> Any:
    """Return the value of a column that some writers fill with JSON."""
    return json.loads(value) if name in _NESTED and isinstance(value, str) else value


def _bbox(bbox: Any) -> list[float]:
    """Return a box that is a list, or a struct as GeoParquet's covering has it."""
    if not isinstance(bbox, dict):
        return list(bbox)
    edges = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
    return [bbox[edge] for edge in edges if edge in bbox]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a field of a struct that only other rows have goes away."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        value = dict(value)  # a map
    if isinstance(value, Mapping):
        # NaN is what tables have for null; as `nodata` it means the same as none.
        return {
            name: _plain(item) for name, item in value.items() if item is not None and item == item
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime):
        return as_utc(value).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, dt.date) else value
