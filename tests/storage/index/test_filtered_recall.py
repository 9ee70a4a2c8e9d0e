"""Tuned search keeps its recall under filters, also those that select whole clusters."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.vectors import Mixture
from storage.index.filter import Filter
from storage.index.quantizer import ShardParameters, set_threads, train
from tests.support.shard_world import CLASSES, Rows, Shards, make_shards

ROWS, DIMENSION, LISTS, QUERIES = 100_000, 32, 512, 200


@cache
def world() -> tuple[Rows, np.ndarray[Any, Any], Shards]:
    """Rows whose place, time, scene and labels follow their vectors; queries; three shards."""
    set_threads(1)
    mixture = Mixture(dimension=DIMENSION, clusters=1000)
    vectors = mixture.draw(ROWS, 1)
    rng = np.random.default_rng(2)
    near = np.argmax(vectors @ mixture.draw(50, 2).T, axis=1)  # a region of the sphere
    corner = np.stack([-170 + 6.8 * near + rng.uniform(0, 6.5, ROWS), rng.uniform(-80, 79, ROWS)])
    age = np.argsort(np.argsort(vectors[:, 0])) / ROWS
    tile = np.stack([np.arange(ROWS) // 1000, np.arange(ROWS) % 1000], axis=1).astype(np.int32)
    labels = np.zeros((ROWS, len(CLASSES)), np.uint8)
    labels[:, 0] = vectors @ vectors[5] > np.quantile(vectors @ vectors[5], 0.99)
    labels[:, 1] = rng.random(ROWS) < 0.001
    rows = {
        "row": np.arange(ROWS),
        "embedding": vectors.astype(np.float16),
        "grid": np.full(ROWS, "epsg32648-10-64", object),
        "tile": tile,
        "tile_key": np.array([f"epsg32648-10-64/{c}/{r}" for c, r in tile.tolist()], object),
        "scene": np.array([f"S{n}" for n in near.tolist()], object),
        "bbox": np.concatenate([corner, corner + 0.01]).T,
        "datetime": np.datetime64("2023-01-01", "ms") + (age * 7.3e10).astype("timedelta64[ms]"),
        "cloud_fraction": rng.random(ROWS).astype(np.float32),
        "labels": labels,
    }
    parameters = ShardParameters(kind="ivf_flat", dimension=DIMENSION, nlist=LISTS)
    trained = train(vectors[::2], parameters)
    shards = make_shards(rows, parameters, (30_000, 60_000), trained=trained)
    queries = mixture.draw(QUERIES, 3)
    everything = np.ones(ROWS, bool)
    for nprobe in (1, 2, 4, 8, 16, 32):
        tuned = Shards(shards, nprobe)
        if recall(tuned, rows, queries, Filter(), everything) >= 0.95:
            return rows, queries, tuned
    raise AssertionError("no number of lists reaches the recall")


def recall(
    shards: Shards,
    rows: Rows,
    queries: np.ndarray[Any, Any],
    where: Filter,
    keep: np.ndarray[Any, Any],
) -> float:
    kept = np.flatnonzero(keep)
    exact = queries @ rows["embedding"][kept].astype(np.float32).T
    truth = rows["row"][kept[np.argpartition(-exact, 9, axis=1)[:, :10]]]
    found = shards.search(queries, 10, where).rows
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]))


def days(share: float) -> str:
    moment = np.datetime64("2023-01-01", "ms") + np.timedelta64(int(share * 7.3e10), "ms")
    return f"{moment}Z"


@pytest.mark.parametrize(
    ("where", "least", "most"),
    [
        (Filter(bbox=(-170, -80, -163.3, -5)), 0.002, 0.03),
        (Filter(bbox=(-170, -80, -102, 80)), 0.1, 0.4),
        (Filter(polygon="POLYGON((-100 -80, -80 -80, -80 -20, -100 -60, -100 -80))"), 0.005, 0.05),
        (Filter(until=days(0.01)), 0.009, 0.011),
        (Filter(until=days(0.001)), 0.0009, 0.0011),
        (Filter(since=days(0.9)), 0.09, 0.11),
        (Filter(scenes=("S7",)), 0.002, 0.06),
        (Filter(labels=("water",)), 0.009, 0.011),
        (Filter(labels=("forest",)), 0.0007, 0.0013),
        (Filter(max_cloud_fraction=0.1), 0.09, 0.11),
        (Filter(bbox=(-170, -80, 0, 80), since=days(0.5), max_cloud_fraction=0.05), 0.002, 0.03),
    ],
)
def test_recall_holds_under_a_selective_filter(where: Filter, least: float, most: float):
    rows, queries, tuned = world()
    keep = np.zeros(ROWS, bool)
    for shard in tuned.shards.values():
        keep[shard.sidecar.row[shard.sidecar.matching(where)]] = True
    assert least <= keep.mean() <= most
    assert recall(tuned, rows, queries, where, keep) >= 0.95
    alone = [recall(tuned, rows, query[None], where, keep) for query in queries[:50]]
    assert np.mean(alone) >= 0.95
