"""Chips of published embeddings from (Geo)Parquet: files, their parts, and the rows of a part.

A row that cannot be used is left out with its reason; a file that cannot be read is an error. A
part is a fixed number of consecutive rows, so that a run that was stopped goes on in the middle of
a large file. :mod:`storage.embeddings.layouts` says which column is what.

References
----------
GeoParquet 1.1.0, https://geoparquet.org/releases/v1.1.0.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from pyproj.exceptions import CRSError

from storage.catalog.files import date_of_name
from storage.dates import Moment, parse_moment
from storage.embeddings.layouts import Choice, Columns, TableLayout, crs_of_mgrs, table_layout
from storage.errors import CatalogError, ConfigError, SceneError
from storage.location import Location, named_failures

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TABLE_SUFFIXES = (".parquet", ".geoparquet", ".gpq")
PART_ROWS = 65_536
"""Rows of a part, which are in memory together."""
_BATCH_ROWS = 2048  # whose vectors stay in a processor's last cache between two steps
_FIRST_ROWS = 64
_SAMPLED_GROUPS = 8
_DEGREES = "EPSG:4326"
_DATE_TEXT = re.compile(
    r"(\d{4})-?(\d{2})-?(\d{2})(?:[T ](\d{2}):?(\d{2}):?(\d{2})?)?(?:\.\d+)?(?:Z|[+-]00:?00)?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """An open table's header: its layout and what its file says about all of its rows.

    Attributes
    ----------
    place, rows
        The file, and the number of its rows.
    layout
        With what a person stated filled in.
    dimension
        Length of its vectors; 0 in a table without rows whose schema does not say.
    model, version
        Of the footer ``emb`` where there is one, else of the layout.
    crs
        CRS of the geometry.
    chip_crs
        CRS in which chips are squares, where the name of the file tells; else empty.
    date
        Date of its rows, where no column has one.
    """

    place: Location
    rows: int
    layout: TableLayout
    dimension: int
    model: str
    version: str
    crs: str
    chip_crs: str
    date: np.datetime64 | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChipRows:
    """Usable rows of a part of a table.

    ``vectors`` (n, D) float32 as published; ``corners`` (n, m, 2) longitude and latitude of the
    points of each outline, of which there is one where only centres are known; ``datetime`` (n,)
    datetime64[ms]; ``crs`` (n,) texts, empty where unknown; ``cloud`` (n,) shares; ``row`` (n,)
    numbers in the file, from 0. ``left_out`` maps reasons to the numbers of rows.
    """

    vectors: Float32
    corners: Float64
    datetime: npt.NDArray[Any]
    crs: npt.NDArray[np.object_]
    cloud: Float32
    row: npt.NDArray[np.int64]
    left_out: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)


def read_header(place: Location, choice: Choice) -> Table:
    """Read and check the header of a table.

    Raises
    ------
    CatalogError
        The file is no Parquet, or no row can have a date.
    ConfigError
        No layout fits.
    """
    with _opened(place) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        metadata = schema.metadata or {}
        footer = _json(metadata.get(b"emb"))
        dimension = _dimension(file, choice.columns)
        layout = table_layout(
            schema.names,
            str(place),
            name=choice.layout,
            columns=choice.columns,
            dimension=dimension,
        )
    model = _json(footer.get("model"))
    return Table(
        place=place,
        rows=rows,
        layout=layout,
        dimension=dimension,
        model=str(model.get("name") or layout.model),
        version=str(model.get("version") or layout.version),
        crs=_crs_of(choice.crs or _declared(metadata, layout.columns.geometry), place),
        chip_crs=crs_of_mgrs(PurePosixPath(place.uri).name),
        date=None if layout.columns.date else _date(place, footer, choice.date),
    )


def read_rows(table: Table, start: int, stop: int) -> ChipRows:
    """Read rows ``start`` to ``stop`` of a table.

    Raises
    ------
    SceneError
        The file is damaged, or its geometry is of no known form.

    Notes
    -----
    Peak memory: the vectors once, and one row group.
    """
    names = table.layout.columns
    wanted = list(names.named.values())
    others = [name for name in wanted if name != names.vector]
    made = np.empty((min(stop, table.rows) - start, table.dimension), np.float32)
    faults = [_vectors(pa.array([], pa.list_(pa.float32())), table.dimension)[1]]
    batches, count = [], 0
    with _opened(table.place) as file:
        schema = pa.schema([file.schema_arrow.field(name) for name in others])
        # The memory of a batch's vectors serves the next one.
        for batch in _batches(file, start, stop, wanted):
            vectors, unusable = _vectors(batch.column(names.vector), table.dimension)
            made[count : count + len(vectors)] = vectors
            count += len(vectors)
            faults.append(unusable)
            batches.append(batch.select(others))
        # While the file is open: its memory may be a part of theirs.
        joined = {reason: np.concatenate([part[reason] for part in faults]) for reason in faults[0]}
        return _checked(made, joined, pa.Table.from_batches(batches, schema), table, start)


def sample_vectors(table: Table, rows: int) -> Float32:
    """Return about ``rows`` finite vectors (n, D), from row groups spread over a table."""
    parts = [np.empty((0, table.dimension), np.float32)]
    with _opened(table.place) as file:
        spread = np.linspace(0, max(file.num_row_groups - 1, 0), _SAMPLED_GROUPS)
        groups = sorted(set(spread.astype(int).tolist())) if file.num_row_groups else []
        for group in groups:
            size = max(rows // len(groups), 1)
            name = table.layout.columns.vector
            for batch in file.iter_batches(size, row_groups=[group], columns=[name]):
                vectors, faults = _vectors(batch.column(0), table.dimension)
                parts.append(vectors[~np.logical_or.reduce([*faults.values()])])
                break
    return np.concatenate(parts)


def _checked(
    vectors: Float32, faults: dict[str, Mask], data: pa.Table, table: Table, start: int
) -> ChipRows:
    """Return the rows whose vectors (n, D) and other columns are sound."""
    names, count = table.layout.columns, len(vectors)
    corners, misplaced = _corners(data, table)
    moments = (
        np.full(count, table.date, "datetime64[ms]")
        if table.date is not None
        else _moments(_column(data, names.date))
    )
    faults |= misplaced
    faults["no date"] = np.isnat(moments)
    left_out, good = {}, np.ones(count, np.bool_)
    for reason, bad in faults.items():
        if (bad & good).any():
            left_out[reason] = start + np.flatnonzero(bad & good)
            good &= ~bad
    keep: Any = slice(None) if good.all() else good
    crs = np.full(count, table.chip_crs, object)
    if names.crs:
        crs = np.array([text or "" for text in _column(data, names.crs).to_pylist()], object)
    cloud = np.zeros(count, np.float32)
    if names.cloud:
        shares = np.asarray(_column(data, names.cloud).to_numpy(zero_copy_only=False), np.float32)
        cloud = np.clip(np.nan_to_num(shares / np.float32(100)), 0, 1)
    return ChipRows(
        vectors=vectors[keep],
        corners=corners[keep],
        datetime=moments[keep],
        crs=crs[keep],
        cloud=cloud[keep],
        row=start + np.flatnonzero(good),
        left_out=left_out,
    )


@contextmanager
def _opened(place: Location) -> Iterator[pq.ParquetFile]:
    fs, path = place.filesystem()
    try:
        with named_failures(place), fs.open(path, "rb") as stream:
            source = pa.memory_map(path) if place.is_local else stream
            yield pq.ParquetFile(source, pre_buffer=not place.is_local)
    except pa.ArrowException as error:
        raise CatalogError(
            f"{place} is no readable Parquet: {' '.join(str(error).split())[:200]}; copy it again"
        ) from error


def _batches(
    file: pq.ParquetFile, start: int, stop: int, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows from ``start`` to ``stop``; only row groups that hold some are read."""
    groups: list[int] = []
    first = at = 0
    for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if at < stop and at + rows > start:
            first = at if not groups else first
            groups.append(number)
        at += rows
    at = first
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        low, high = max(start - at, 0), min(stop - at, batch.num_rows)
        if low < high:
            yield batch.slice(low, high - low)
        at += batch.num_rows
        if at >= stop:
            return


def _column(data: pa.Table, name: str) -> pa.Array:
    column = data.column(name)
    joined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(joined, pa.ChunkedArray):
        joined = pa.concat_arrays(joined.chunks)
    return joined.storage if isinstance(joined, pa.ExtensionArray) else joined


def _vectors(column: pa.Array, dimension: int) -> tuple[Float32, dict[str, Mask]]:
    """Return vectors (n, D) of lists of numbers, and which rows hold none and why.

    Lists of lists are averaged over all axes but the last.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    null = np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)
    starts = np.arange(len(column) + 1, dtype=np.int64)
    inner = starts
    while _is_list(column.type):
        inner = starts
        starts, column = _descended(column, starts)
    counts = np.diff(starts)
    widths = np.diff(inner) if inner is not starts else counts
    values = np.asarray(
        column.slice(starts[0], starts[-1] - starts[0]).to_numpy(zero_copy_only=False)
    )
    if values.dtype.kind not in "fiu":
        raise SceneError(f"its vectors hold {column.type}, expected numbers")
    # Lists of lists have a fixed shape; their number of leaves says whether a row has it.
    usual = int(np.median(counts[~null])) if (~null).any() else dimension
    leaves = dimension if counts is widths or usual == dimension else usual
    wrong = ~null & ((counts != leaves) | (leaves % max(dimension, 1) != 0))
    bad = null | wrong
    if bad.any():
        shaped = np.zeros((len(null), leaves), np.float32)
        places = (starts[:-1] - starts[0])[~bad]
        shaped[~bad] = values[places[:, None] + np.arange(leaves)]
    else:
        shaped = np.asarray(values, np.float32).reshape(len(null), leaves)
    if leaves != dimension:
        shaped = shaped.reshape(len(null), -1, dimension).mean(axis=1)
    # A sum is finite unless a part is not, or it overflows, which a second look finds.
    sums = np.einsum("nd->n", shaped)
    unsound = ~np.isfinite(sums)
    unsound[unsound] = ~np.isfinite(shaped[unsound]).all(axis=1)
    zero = ~bad & ~unsound & ~shaped.any(axis=1) if (sums == 0).any() else np.zeros_like(bad)
    return shaped, {
        "no vector": null,
        f"vector not of {dimension} numbers": wrong,
        "vector not finite": unsound & ~bad,
        "vector of zeros": zero,
    }


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _descended(
    column: pa.Array, starts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return where rows begin among the items of their lists, and the items.

    Items are those of ``values``: null lists keep their place, which ``flatten`` would close.
    """
    if pa.types.is_fixed_size_list(column.type):
        return (starts + column.offset) * column.type.list_size, column.values
    offsets = np.asarray(column.offsets.to_numpy(zero_copy_only=False), np.int64)
    return offsets[starts], column.values


def _corners(data: pa.Table, table: Table) -> tuple[Float64, dict[str, Mask]]:
    """Return the points of outlines (n, m, 2) in WGS84 degrees, and which rows have none and why.

    Outlines of fewer points than others repeat their last.
    """
    names = table.layout.columns
    if not names.geometry:
        axes = [
            np.asarray(_column(data, n).to_numpy(zero_copy_only=False), np.float64)
            for n in (names.lon, names.lat)
        ]
        corners = np.stack(axes, axis=1)[:, None, :]
        missing = ~_throughout(np.isfinite(corners))
    else:
        shapes = _shapes(_column(data, names.geometry))
        missing = np.asarray(shapely.is_missing(shapes) | shapely.is_empty(shapes), np.bool_)
        corners = _points(shapes, missing)
    faults: dict[str, Mask] = {"no geometry": missing}
    if table.crs != _DEGREES:
        metres = ~missing & _throughout(np.abs(corners) <= (180, 90))
        faults[f"degrees under a CRS in metres ({table.crs}); give --crs EPSG:4326"] = metres
        x, y = _to_degrees(table.crs).transform(corners[..., 0], corners[..., 1])
        corners = np.stack([x, y], axis=-1)
    outside = ~_throughout(np.abs(corners) <= (180 + 1e-6, 90 + 1e-6))
    faults["geometry outside WGS84 degrees"] = ~missing & outside
    return np.clip(corners, (-180, -90), (180, 90)), faults


def _throughout(points: npt.NDArray[np.bool_]) -> Mask:
    """Return which rows (n,) of (n, m, 2) are true at every number."""
    return np.asarray(points.all(axis=(1, 2)), np.bool_)


def _shapes(column: pa.Array) -> npt.NDArray[np.object_]:
    kind = column.type
    values = column.to_numpy(zero_copy_only=False)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return np.asarray(shapely.from_wkb(values, on_invalid="ignore"), object)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.asarray(shapely.from_wkt(values, on_invalid="ignore"), object)
    raise SceneError(f"its geometry is of type {kind}, expected WKB or WKT")


def _points(shapes: npt.NDArray[np.object_], missing: Mask) -> Float64:
    """Return the points of shapes (n, m, 2), the last repeated; NaN where a shape is missing."""
    points, index = shapely.get_coordinates(shapes, return_index=True)
    counts = np.bincount(index, minlength=len(shapes))
    most = int(counts.max(initial=1))
    if len(points) == most * len(shapes):
        return np.asarray(points, np.float64).reshape(len(shapes), most, 2)
    first = np.cumsum(counts) - counts
    at = first[:, None] + np.minimum(np.arange(most), np.maximum(counts - 1, 0)[:, None])
    filled = np.asarray(points, np.float64)[np.minimum(at, max(len(points) - 1, 0))]
    filled[missing] = np.nan
    return np.asarray(filled)


def _moments(column: pa.Array) -> npt.NDArray[Any]:
    """Return dates, times or texts that begin with one as datetime64[ms]; NaT where none is."""
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        moments = column.cast(pa.timestamp("ms"), safe=False)
        return np.asarray(moments.to_numpy(zero_copy_only=False), "datetime64[ms]")
    coded = column.cast(pa.string()).dictionary_encode()
    texts = [_moment(text) for text in coded.dictionary.to_pylist()] + [np.datetime64("NaT", "ms")]
    codes = coded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(np.array(texts, "datetime64[ms]")[codes])


def _moment(text: str | None) -> np.datetime64:
    match = _DATE_TEXT.match(text or "")
    if match is None:
        return np.datetime64("NaT", "ms")
    year, month, day, hour, minute, second = (part or "00" for part in match.groups())
    try:
        return np.datetime64(f"{year}-{month}-{day}T{hour}:{minute}:{second}", "ms")
    except ValueError:
        return np.datetime64("NaT", "ms")


def _date(place: Location, footer: Mapping[str, Any], given: Moment | None) -> np.datetime64:
    """Return the date of all rows of a table: given, of its name, or of its footer."""
    if given is not None:
        moment = parse_moment(given, "date")
    else:
        try:
            moment = date_of_name(place.stem)
        except CatalogError as error:
            stated = footer.get("start_datetime") or footer.get("datetime")
            if not stated:
                raise CatalogError(
                    f"{place} has neither a column of dates nor a date in its name; give --date, "
                    "or map a column: --columns date=..."
                ) from error
            moment = parse_moment(str(stated), f"{place}: datetime")
    return np.datetime64(moment.replace(tzinfo=None), "ms")


def _dimension(file: pq.ParquetFile, columns: Columns | None) -> int:
    """Return the length of a table's vectors, by its schema or its first rows; 0 if unknown."""
    mapped = columns.vector if columns else ""
    names = [mapped] if mapped else ["embedding", "embeddings"]
    name = next((name for name in names if name in file.schema_arrow.names), None)
    if name is None:
        return 0
    kind = file.schema_arrow.field(name).type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not _is_list(kind):
        raise ConfigError(
            f"column {name} holds {kind}, not lists of numbers; map another: --columns vector=..."
        )
    if pa.types.is_fixed_size_list(kind) and not _is_list(kind.value_type):
        return int(kind.list_size)
    for batch in file.iter_batches(_FIRST_ROWS, columns=[name]):
        lengths = Counter(filter(None, map(_length, batch.column(0).to_pylist())))
        if lengths:
            return lengths.most_common(1)[0][0]
    return 0


def _length(value: Any) -> int:
    """Return the length of a vector; of lists of lists, that of the innermost."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return len(value) if value else 0


def _declared(metadata: Mapping[bytes, bytes], column: str) -> Any:
    """Return the CRS that GeoParquet's footer declares for a column, if any."""
    columns = _json(metadata.get(b"geo")).get("columns")
    stated = columns.get(column) if isinstance(columns, dict) else None
    return stated.get("crs") if isinstance(stated, dict) else None


def _crs_of(declared: Any, place: Location) -> str:
    """Return a CRS; longitude and latitude for every CRS in degrees, and where none is declared."""
    if not declared:
        return _DEGREES
    try:
        crs = pyproj.CRS.from_user_input(declared)
    except CRSError as error:
        raise CatalogError(
            f"{place} has a CRS that cannot be read ({str(error)[:80]}); give --crs EPSG:CODE"
        ) from error
    if crs.is_geographic:
        return _DEGREES
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


@lru_cache(64)
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, _DEGREES, always_xy=True)


def _json(value: Any) -> dict[str, Any]:
    """Return a JSON object of a footer; empty for anything else."""
    try:
        parsed = json.loads(value) if isinstance(value, (bytes, str)) else value
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def part_count(rows: int) -> int:
    """Return the number of parts of a table, at least one.

    Examples
    --------
    >>> part_count(0), part_count(PART_ROWS), part_count(PART_ROWS + 1)
    (1, 1, 2)
    """
    return max(math.ceil(rows / PART_ROWS), 1)
