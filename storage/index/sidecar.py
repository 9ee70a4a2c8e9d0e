"""The columns of a shard's rows besides their vectors: an Arrow file beside the FAISS file.

Rows are in the order (tile key, scene id), so a row's position in its shard breaks ties between
equal scores, and the vectors of a shard carry positions as their ids. The file is read through
its buffer without copies: columns of a memory-mapped file cost no memory until they are touched.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import ConfigError, CorruptIndexError
from storage.geometry import EDGES, BBox, Floats, Mask, enclosing, intersects_polygon, touches
from storage.index.filter import Filter

Int64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

BYTES_PER_ROW = 8 + 2 + 2 * 4 + 4 + 4 * 8 + 8 + 4
"""Size of a row in the file; labels add one bit a class, in whole bytes."""
HIT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("tile_key", pa.string()),
        ("scene", pa.string()),
        *((edge, pa.float64()) for edge in EDGES),
        ("datetime", pa.timestamp("ms", tz="UTC")),
        ("cloud_fraction", pa.float32()),
        ("labels", pa.list_(pa.string())),
    ]
)
"""The columns of :func:`hit_table`."""
_NUMBERS = 2**31
TILE_KEY = re.compile(r"(.+)/(0|-?[1-9][0-9]{0,9})/(0|-?[1-9][0-9]{0,9})")


def order_of(columns: Mapping[str, Any]) -> Int64:
    """Return the indices (n,) that sort rows by tile key, then scene id, as text.

    Examples
    --------
    >>> scenes = np.array(["x", "y", "x"], object)
    >>> order_of({"grid": np.array(["g"] * 3, object), "scene": scenes,
    ...           "tile": np.array([[12, 0], [3, 0], [12, 0]])})
    array([0, 2, 1])
    """
    keys = _keys(pa.array(columns["grid"]), *_tile_numbers(columns["tile"]))
    table = pa.table({"tile": keys, "scene": pa.array(columns["scene"]).cast(pa.string())})
    order = pc.sort_indices(table, sort_keys=[("tile", "ascending"), ("scene", "ascending")])
    return np.asarray(order.to_numpy()).astype(np.int64)


def encode_columns(rows: Mapping[str, Any], classes: Sequence[str]) -> bytes:
    """Encode rows, already in order, as the bytes of a side-car file.

    Parameters
    ----------
    rows
        Columns as :meth:`Sidecar.take` returns them; ``grid`` and ``scene`` may be Arrow arrays.
    classes
        Names of the columns of ``labels``.
    """
    column, row = _tile_numbers(rows["tile"])
    columns = {
        "row": pa.array(rows["row"], pa.int64()),
        "grid": _coded(rows["grid"]).cast(pa.dictionary(pa.int16(), pa.string())),
        "tile_column": column,
        "tile_row": row,
        "scene": _coded(rows["scene"]).cast(pa.dictionary(pa.int32(), pa.string())),
        "bbox": _fixed(rows["bbox"].astype(np.float64)),
        "datetime": pa.array(rows["datetime"].astype("datetime64[ms]"), pa.timestamp("ms")),
        "cloud_fraction": pa.array(rows["cloud_fraction"].astype(np.float32)),
    }
    if classes:
        bits = np.packbits(rows["labels"].astype(bool), axis=1, bitorder="little")
        columns["labels"] = _fixed(bits)
    batch = pa.record_batch(columns, metadata={"classes": json.dumps(list(classes))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _coded(names: Any) -> pa.DictionaryArray:
    array = pa.array(names)
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _tile_numbers(tile: npt.NDArray[Any]) -> tuple[pa.Array, pa.Array]:
    return tuple(pa.array(np.ascontiguousarray(tile[:, i]), pa.int32()) for i in (0, 1))


class Sidecar:
    """The columns of one shard's n rows, in (tile key, scene id) order.

    Parameters
    ----------
    data
        The bytes of the file, for example a memory map; kept, not copied.
    name
        The file's name, for messages.

    Raises
    ------
    CorruptIndexError
        The bytes are not a side-car file.
    """

    def __init__(self, data: Any, name: str) -> None:
        try:
            self._open(pa.ipc.open_file(pa.py_buffer(data)).get_batch(0))
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise CorruptIndexError(
                f"{name} is not a side-car file ({str(error).partition(chr(10))[0]}); "
                "run `skysift index verify`"
            ) from error

    @classmethod
    def joined(cls, parts: Sequence["Sidecar"]) -> "Sidecar":
        """Return the rows of several shards one after the other, in memory; one stays as it is."""
        if len(parts) == 1:
            return parts[0]
        table = pa.Table.from_batches([part._batch for part in parts]).unify_dictionaries()
        whole = cls.__new__(cls)
        whole._open(table.combine_chunks().to_batches()[0])
        return whole

    def _open(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.classes = tuple(json.loads(batch.schema.metadata[b"classes"]))
        column = batch.column
        self.row: Int64 = column("row").to_numpy()
        self.bbox: Floats = _unfixed(column("bbox"), np.float64)
        self.datetime: npt.NDArray[np.datetime64] = column("datetime").to_numpy()
        self.cloud_fraction: npt.NDArray[np.float32] = column("cloud_fraction").to_numpy()
        self._tile = (column("tile_column").to_numpy(), column("tile_row").to_numpy())
        self._names = {
            name: np.array(column(name).dictionary.to_pylist(), dtype=object)
            for name in ("grid", "scene")
        }
        self._codes = {name: column(name).indices.to_numpy() for name in ("grid", "scene")}
        self._label_bits: npt.NDArray[np.uint8] = (
            _unfixed(column("labels"), np.uint8)
            if self.classes
            else np.empty((len(self.row), 0), np.uint8)
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def nbytes(self) -> int:
        """Size of all columns in bytes."""
        return int(self._batch.nbytes)

    @cached_property
    def extent(self) -> tuple[BBox, str, str]:
        """The WGS84 box around all rows, and the ISO 8601 UTC times of the oldest and newest."""
        return enclosing(self.bbox), str(self.datetime.min()), str(self.datetime.max())

    @property
    def tiles(self) -> tuple[list[str], npt.NDArray[np.int16], npt.NDArray[np.int32]]:
        """The names of grids, and the number of the grid (n,) and the tile (n, 2) of each row."""
        names: list[str] = self._names["grid"].tolist()
        return names, self._codes["grid"], np.stack(self._tile, axis=1)

    def matching(self, where: Filter) -> Mask:
        """Return the mask (n,) of the rows that meet every condition of a filter.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        """
        start, end = where.interval
        mask = np.ones(len(self), dtype=np.bool_)
        if start is not None:
            mask &= self.datetime >= start
        if end is not None:
            mask &= self.datetime <= end
        if where.max_cloud_fraction is not None:
            mask &= self.cloud_fraction <= np.float32(where.max_cloud_fraction)
        if where.scenes:
            mask &= self._of("scene", where.scenes)
        if where.tiles:
            mask &= self._of_tiles(where.tiles)
        for label in where.labels:
            mask &= self._with_label(label)
        if where.bbox is not None:
            mask &= touches(self.bbox, where.bbox)
        if isinstance(where.polygon, str):
            rows = np.flatnonzero(mask)  # polygons are costly: only the remaining rows are tested
            mask[rows] = intersects_polygon(self.bbox[rows], where.polygon)
        return mask

    def take(self, positions: Int64) -> Columns:
        """Return the columns of rows, in the given order, as plain arrays.

        ``row``, ``grid`` and ``scene`` (text), ``tile`` (m, 2), ``bbox`` (m, 4), ``datetime``,
        ``cloud_fraction`` and ``labels`` (m, K) uint8; :func:`hit_table` makes a table of them.
        """
        labels = np.unpackbits(
            self._label_bits[positions], axis=1, count=len(self.classes), bitorder="little"
        )
        return {
            "row": self.row[positions],
            **{name: self._names[name][self._codes[name][positions]] for name in self._names},
            "tile": np.stack([part[positions] for part in self._tile], axis=1),
            "bbox": self.bbox.take(positions, axis=0),  # several times as fast as an index
            "datetime": self.datetime[positions],
            "cloud_fraction": self.cloud_fraction[positions],
            "labels": labels,
        }

    def keys(self, positions: Int64) -> list[tuple[str, str]]:
        """Return (tile key, scene id) of rows."""
        return row_keys(self.take(positions))

    def _with_label(self, label: str) -> Mask:
        if label not in self.classes:
            near = difflib.get_close_matches(label, self.classes, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(self.classes)}"
            raise ConfigError(
                f"filter: no class is named {label!r}; "
                + (hint if self.classes else "this archive stores no labels")
            )
        byte, bit = divmod(self.classes.index(label), 8)
        return (self._label_bits[:, byte] >> bit & 1).astype(np.bool_)

    def _of(self, name: str, values: Sequence[str]) -> Mask:
        matches = np.isin(self._names[name], np.array(values, dtype=object))
        return np.asarray(matches[self._codes[name]], dtype=np.bool_)

    def _of_tiles(self, tiles: Sequence[str]) -> Mask:
        wanted: dict[str, list[tuple[int, int]]] = {}
        for tile in tiles:
            key = TILE_KEY.fullmatch(tile)
            if key is None:
                raise ConfigError(f"filter: {tile!r} is not a tile key; give grid/column/row")
            numbers = int(key[2]), int(key[3])
            if max(map(abs, numbers)) < _NUMBERS:
                wanted.setdefault(key[1], []).append(numbers)
        column, row = self._tile
        mask = np.zeros(len(self), dtype=np.bool_)
        for grid, tiles_of in wanted.items():  # one look at the columns, however many tiles
            columns, rows = np.array(tiles_of, dtype=np.int64).T
            near = np.flatnonzero(np.isin(column, columns))
            near = near[np.isin(_one_number(column[near], row[near]), _one_number(columns, rows))]
            mask[near] = self._of("grid", [grid])[near]
        return mask


def _one_number(column: npt.NDArray[Any], row: npt.NDArray[Any]) -> Int64:
    return np.asarray((column.astype(np.int64) << 32) + row)


def row_keys(columns: Columns) -> list[tuple[str, str]]:
    """Return (tile key, scene id) of the rows that :meth:`Sidecar.take` returned."""
    places = zip(columns["grid"], columns["tile"].tolist(), columns["scene"], strict=True)
    return [(f"{grid}/{column}/{row}", scene) for grid, (column, row), scene in places]


def hit_table(columns: Columns, classes: Sequence[str]) -> pa.Table:
    """Return rows that :meth:`Sidecar.take` returned as a table of :data:`HIT_SCHEMA`."""
    text, box, labels = pa.string(), columns["bbox"], columns["labels"]
    offsets = np.r_[0, np.cumsum(labels.sum(axis=1, dtype=np.int64))]
    names = np.array([*classes, ""], dtype=object)[np.nonzero(labels)[1]]
    column, row = _tile_numbers(columns["tile"])
    values = [
        pa.array(columns["row"]),
        _keys(pa.array(columns["grid"], text), column, row),
        pa.array(columns["scene"], text),
        *(pa.array(np.ascontiguousarray(box[:, i])) for i in range(4)),
        pa.array(columns["datetime"], pa.timestamp("ms")).cast(HIT_SCHEMA.field("datetime").type),
        pa.array(columns["cloud_fraction"]),
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(names, text)),
    ]
    return pa.Table.from_arrays(values, schema=HIT_SCHEMA)


def join_rows(parts: Sequence[Columns], classes: int) -> Columns:
    """Return the rows of several :meth:`Sidecar.take` one after the other."""
    if not parts:
        return empty_rows(classes)
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def empty_rows(classes: int) -> Columns:
    """Return the columns of no rows, as :meth:`Sidecar.take` does."""
    return {
        "row": np.empty(0, np.int64),
        "grid": np.empty(0, object),
        "scene": np.empty(0, object),
        "tile": np.empty((0, 2), np.int32),
        "bbox": np.empty((0, 4), np.float64),
        "datetime": np.empty(0, "datetime64[ms]"),
        "cloud_fraction": np.empty(0, np.float32),
        "labels": np.empty((0, classes), np.uint8),
    }


def _keys(grid: pa.Array, column: pa.Array, row: pa.Array) -> pa.Array:
    text = pa.string()
    return pc.binary_join_element_wise(grid.cast(text), column.cast(text), row.cast(text), "/")


def _fixed(values: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    data = np.ascontiguousarray(values)
    width = data.dtype.itemsize * data.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(data), [None, pa.py_buffer(data)]
    )


def _unfixed(column: pa.FixedSizeBinaryArray, dtype: Any) -> npt.NDArray[Any]:
    width = column.type.byte_width // np.dtype(dtype).itemsize
    values = np.frombuffer(column.buffers()[1], dtype=dtype, count=len(column) * width)
    return values.reshape(len(column), width)
