"""Small archives with known rows, written the way ingest writes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.location import Location
from storage.parts import Parts
from tests.support.shard_world import CLASSES, GRID, Rows, make_rows

FINGERPRINT = "ab" * 32


def create_archive(
    place: str | Location,
    dimension: int,
    fingerprint: str = FINGERPRINT,
    parts: Parts | None = None,
) -> None:
    """Create an empty archive."""
    spec = ArchiveSpec(
        encoder_fingerprint=fingerprint,
        encoder_uri="bundle",
        dimension=dimension,
        bands=("red",),
        tile_px=64,
        classes=CLASSES,
        parts=parts,
    )
    Archive.create(place, spec)


def add_scenes(
    place: str | Location,
    scenes: Mapping[str, int],
    seed: int = 0,
    version: str = "v1",
    embedding: np.ndarray[Any, Any] | None = None,
    days: int = 0,
    tile: np.ndarray[Any, Any] | None = None,
) -> str:
    """Commit a segment with the given number of rows of each scene, dated ``days`` days later.

    Tiles are drawn at random, some of them twice, unless ``tile`` gives them.
    """
    archive = Archive.open(place)
    writer = ArchiveWriter(archive)
    count = sum(scenes.values())
    rows = make_rows(count, archive.spec.dimension, seed)
    columns = {
        name: rows[name] for name in ("tile", "bbox", "datetime", "cloud_fraction", "labels")
    }
    columns["datetime"] = columns["datetime"] + np.timedelta64(days, "D")
    columns["tile"] = columns["tile"] if tile is None else tile
    vectors = rows["embedding"].astype(np.float32) if embedding is None else embedding
    columns |= {
        "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "scene_index": np.repeat(np.arange(len(scenes)), list(scenes.values())).astype(np.int32),
        "window": np.zeros((count, 4), np.int32),
        "valid_fraction": np.ones(count, np.float32),
    }
    segment = SegmentRows(
        id=f"{'-'.join(scenes)}-{version}-{seed}",
        scenes=tuple(scenes),
        grids=(GRID,) * len(scenes),
        columns=columns,
    )
    entries = [
        LedgerEntry(scene_id=scene, state="embedded", fingerprint=version, rows=rows_, grid_id=GRID)
        for scene, rows_ in scenes.items()
    ]
    receipt = write_segment(writer.fork, segment, archive.spec)
    return writer.commit([receipt], entries, {GRID: {"tile_px": 64}}, "test")


def live_rows(place: str | Location) -> Rows:
    """All live rows of the newest snapshot, as the brute-force truth reads them."""
    archive = Archive.open(place)
    parts = [archive.read_segment(segment.ordinal) for segment in archive.segments]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def three_scenes(where: str) -> str:
    """Make an archive of scenes a, b and c in two segments; return where."""
    create_archive(where, 8)
    add_scenes(where, {"a": 3, "b": 2}, seed=1)
    add_scenes(where, {"c": 4}, seed=2)
    return where
