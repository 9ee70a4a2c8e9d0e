"""Archives of whole scenes with one date each: the same ground, seen again and again."""

import datetime as dt
from typing import Any

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from tests.support.shard_world import CLASSES, GRID


def add_scene(
    place: str,
    scene: str,
    date: str,
    vectors: np.ndarray[Any, Any],
    *,
    columns: np.ndarray[Any, Any] | None = None,
    cloud: float | np.ndarray[Any, Any] = 0.0,
) -> None:
    """Commit a scene: ``vectors`` (n, D) of the tiles in ``columns`` (n,) of row 0 of the grid."""
    archive, count = Archive.open(place), len(vectors)
    column = np.arange(count) if columns is None else columns
    west = column * 0.01
    moment = np.datetime64(date, "ms")
    segment = SegmentRows(
        id=scene,
        scenes=(scene,),
        grids=(GRID,),
        columns={
            "tile": np.stack([column, np.zeros(count)], axis=1).astype(np.int32),
            "bbox": np.stack([west, np.zeros(count), west + 0.01, np.full(count, 0.01)], axis=1),
            "datetime": np.full(count, moment),
            "cloud_fraction": np.broadcast_to(np.float32(cloud), count).copy(),
            "labels": (np.arange(count)[:, None] % (1 + np.arange(len(CLASSES))) == 0).astype("u1"),
            "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            "scene_index": np.zeros(count, np.int32),
            "window": np.zeros((count, 4), np.int32),
            "valid_fraction": np.ones(count, np.float32),
        },
    )
    entry = LedgerEntry(
        scene_id=scene,
        state="embedded",
        fingerprint="v1",
        rows=count,
        grid_id=GRID,
        datetime=dt.datetime.fromisoformat(date).replace(tzinfo=dt.UTC),
    )
    writer = ArchiveWriter(archive)
    receipt = write_segment(writer.fork, segment, archive.spec)
    writer.commit([receipt], [entry], {GRID: {"tile_px": 64}}, scene)
