"""Which tiles to show: named ones, those of scenes, or the hits of a search."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from storage.archive import Archive
from storage.errors import ConfigError, NotFoundError
from storage.object_store import StorageOptions, read_bytes
from workflows.sheet import SheetTile


def tiles_of_rows(archive: Archive, rows: ArrayLike) -> list[SheetTile]:
    """Return the tiles of rows (n,) in their order.

    Raises
    ------
    NotFoundError
        A row is not live.
    """
    found = archive.read(rows, ["scene", "tile_key", "datetime"])
    days = found["datetime"].astype("datetime64[D]").astype(str)
    return [
        SheetTile(scene=str(scene), tile_key=str(key), date=str(day))
        for scene, key, day in zip(found["scene"], found["tile_key"], days, strict=True)
    ]


def rows_where(archive: Archive, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    """Return the ids of the live rows whose scene or tile key is one of some.

    Raises
    ------
    NotFoundError
        One of them has no live row.
    """
    wanted, missing = set(values), set(values)
    parts = [np.empty(0, np.int64)]
    for segment in archive.segments:
        if column == "scene" and not wanted & set(segment.scenes):
            continue
        found = archive.read_segment(segment.ordinal, [column])
        mine = np.array([value in wanted for value in found[column]], bool)
        missing -= set(found[column][mine])
        parts.append(found["row"][mine])
    if missing:
        raise NotFoundError(
            f"archive {archive.uri} has no live row of {column.replace('_', ' ')} "
            f"{', '.join(sorted(missing))}; `skysift archive info --scenes` lists its scenes"
        )
    return np.concatenate(parts)


def tiles_of_hits(uri: str, options: StorageOptions | None = None) -> list[SheetTile]:
    """Read the hits that `skysift search` wrote: --out files, or what --json printed.

    Raises
    ------
    ConfigError
        The file holds something else.
    """
    try:
        return [_tile(record) for record in _records(uri, read_bytes(uri, options))]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{uri} holds no hits ({type(error).__name__}: {error}); give what "
            "`skysift search` wrote with --out, or printed with --json"
        ) from error


def _records(uri: str, data: bytes) -> Iterable[Mapping[str, Any]]:
    kind = PurePosixPath(uri).suffix.lower()
    if kind == ".parquet":
        columns = ["scene", "tile_key", "datetime", "score"]
        return list(pq.read_table(BytesIO(data), columns=columns).to_pylist())
    if kind == ".csv":
        return list(csv.DictReader(StringIO(data.decode())))
    document = json.loads(data)
    if document.get("type") == "FeatureCollection":
        return [feature["properties"] for feature in document["features"]]
    return list(document["hits"])


def _tile(record: Mapping[str, Any]) -> SheetTile:
    return SheetTile(
        scene=str(record["scene"]),
        tile_key=str(record["tile_key"]),
        date=str(record["datetime"])[:10],
        score=float(record["score"]),
    )
