"""Synthetic rows, shards over them, and the slow truth that searches are compared with."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from storage.index.filter import Filter
from storage.index.plan import SearchPlan
from storage.index.quantizer import Bytes, ShardIndexBuilder, ShardParameters, train
from storage.index.ranking import canonical_queries
from storage.index.search import SearchResult, ShardSet
from storage.index.shard import Shard
from storage.index.sidecar import Sidecar, encode_columns, order_of

GRID = "epsg32648-10-64"
CLASSES = ("water", "forest", "crops")
Rows = dict[str, np.ndarray[Any, Any]]


def make_rows(count: int, dimension: int, seed: int = 0, distinct: int | None = None) -> Rows:
    """Rows as the archive returns them; ``distinct`` bounds the number of different vectors."""
    rng = np.random.default_rng(seed)
    distinct = distinct or count
    centres = rng.normal(size=(max(distinct // 20, 1), dimension))
    pool = centres[rng.integers(0, len(centres), distinct)] + 0.4 * rng.normal(
        size=(distinct, dimension)
    )
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    embedding = pool.astype(np.float16)[
        rng.permutation(distinct) if distinct == count else rng.integers(0, distinct, count)
    ]
    tile = np.stack([rng.integers(-12, 12, count), np.arange(count) % 97], axis=1).astype(np.int32)
    corner = np.stack([rng.uniform(-180, 179, count), rng.uniform(-80, 79, count)], axis=1)
    bbox = np.concatenate([corner, corner + 0.9], axis=1)
    crossing = np.arange(count) % 50 == 7
    bbox[crossing, 0], bbox[crossing, 2] = 179.6, -179.5
    return {
        "row": rng.permutation(count).astype(np.int64) + (3 << 32),
        "embedding": embedding,
        "grid": np.full(count, GRID, dtype=object),
        "tile": tile,
        "tile_key": np.array([f"{GRID}/{c}/{r}" for c, r in tile.tolist()], object),
        "scene": np.array([f"S{i}" for i in rng.integers(0, 30, count)], object),
        "bbox": bbox,
        "datetime": np.datetime64("2023-01-01", "ms")
        + rng.integers(0, 2 * 365 * 86_400_000, count).astype("timedelta64[ms]"),
        "cloud_fraction": rng.random(count).astype(np.float32),
        "labels": rng.integers(0, 2, (count, len(CLASSES))).astype(np.uint8),
    }


def make_shards(
    rows: Rows,
    parameters: ShardParameters,
    cuts: Sequence[int] = (),
    exact_vectors: bool = False,
    dead: np.ndarray[Any, Any] | None = None,
    trained: Bytes | None = None,
) -> list[Shard]:
    """Cut rows into shards; ``dead`` are row ids that are no longer live."""
    trained = _trained(parameters) if trained is None else trained
    edges = [0, *sorted(cuts), len(rows["row"])]
    shards = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start == stop:
            continue
        part = {name: values[start:stop] for name, values in rows.items()}
        order = order_of(part)
        part = {name: values[order] for name, values in part.items()}
        sidecar = Sidecar(encode_columns(part, CLASSES), "columns")
        positions = np.arange(len(order))
        data = fill(trained, positions, part["embedding"], len(order))
        gone = None if dead is None else np.flatnonzero(np.isin(part["row"], dead))
        vectors = part["embedding"] if exact_vectors else None
        shards.append(Shard(f"shard-{number:05d}", data, sidecar, vectors, gone))
    return shards


class Shards:
    """Shards and how widely they are searched, for searches with plain vectors."""

    def __init__(
        self,
        shards: Sequence[Shard],
        nprobe: int = 1,
        rerank: int = 1,
        groups: Mapping[str, int] | None = None,
    ) -> None:
        self._set, self._nprobe, self._rerank = ShardSet(shards, groups=groups), nprobe, rerank
        self.shards, self.columns = self._set.shards, self._set.columns

    def search(
        self,
        vectors: np.ndarray[Any, Any],
        k: int,
        where: Filter | None = None,
        nprobe: int | None = None,
        names: Sequence[str] | None = None,
    ) -> SearchResult:
        """The k best rows of each query."""
        plan = SearchPlan(
            k=k,
            where=where or Filter(),
            shards=tuple(self.shards if names is None else names),
            nprobe=nprobe or self._nprobe,
            rerank=self._rerank,
        )
        queries = canonical_queries(vectors, np.shape(vectors)[-1]).astype(np.float32)
        return self._set.search(plan, queries)


def fill(trained: Bytes, positions: Any, embedding: Any, rows: int) -> Bytes:
    """The bytes of a shard built for ``rows`` rows."""
    filled = ShardIndexBuilder(trained)
    filled.add(positions, embedding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.faiss"
        filled.save(path, rows)
        return np.fromfile(path, dtype=np.uint8)


@cache
def _trained(parameters: ShardParameters) -> Any:
    sample = make_rows(max(40 * parameters.nlist, 1024), parameters.dimension, seed=11)
    return train(sample["embedding"].astype(np.float32), parameters)


def brute_force(
    rows: Mapping[str, Any], queries: np.ndarray[Any, Any], k: int, keep: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores and rows (Q, k) by Python's sort over (score, tile key, scene id, row)."""
    unit = queries.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.round(unit * 2**24) / 2**24
    scores = np.full((len(unit), k), -np.inf, dtype=np.float32)
    found = np.full((len(unit), k), -1, dtype=np.int64)
    for i, query in enumerate(unit):
        values = (rows["embedding"].astype(np.float64) @ query).astype(np.float32)
        ranked = sorted(
            np.flatnonzero(keep).tolist(),
            key=lambda n: (-values[n], rows["tile_key"][n], rows["scene"][n], n),
        )[:k]
        scores[i, : len(ranked)] = values[ranked]
        found[i, : len(ranked)] = rows["row"][ranked]
    return scores, found


def passes(where: Filter, rows: Mapping[str, Any], n: int) -> bool:
    """Whether row n meets a filter, condition by condition in plain Python."""
    start, end = where.interval
    return all(
        (
            start is None or rows["datetime"][n] >= start,
            end is None or rows["datetime"][n] <= end,
            where.max_cloud_fraction is None
            or rows["cloud_fraction"][n] <= np.float32(where.max_cloud_fraction),
            not where.scenes or rows["scene"][n] in where.scenes,
            not where.tiles or rows["tile_key"][n] in where.tiles,
            all(rows["labels"][n][CLASSES.index(label)] for label in where.labels),
            where.bbox is None or _boxes_touch(rows["bbox"][n], where.bbox),
            where.polygon is None or _in_polygon(rows["bbox"][n].tolist(), str(where.polygon)),
        )
    )


def _in_polygon(box: Sequence[float], wkt: str) -> bool:
    west, south, east, north = box
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    polygon = shapely.from_wkt(wkt)
    return any(polygon.intersects(shapely.box(w, south, e, north)) for w, e in spans)


def _boxes_touch(one: Sequence[float], other: Sequence[float]) -> bool:
    def parts(west: float, east: float) -> list[tuple[float, float]]:
        return [(west, east)] if west <= east else [(west, 180), (-180, east)]

    meridians = any(
        w <= other_e and other_w <= e
        for w, e in parts(one[0], one[2])
        for other_w, other_e in parts(other[0], other[2])
    )
    return bool(meridians and one[1] <= other[3] and other[1] <= one[3])
