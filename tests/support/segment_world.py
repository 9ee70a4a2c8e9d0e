"""Segments of the archive written row by row, for tests of what a commit leaves."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment

SPEC = ArchiveSpec(
    encoder_fingerprint="ab" * 32,
    encoder_uri="bundle",
    dimension=8,
    bands=("red",),
    tile_px=64,
    classes=("water", "forest"),
)
WHEN = datetime(2024, 5, 1, tzinfo=UTC)


def rows(segment_id: str, scenes: dict[str, int], seed: int = 0) -> SegmentRows:
    """A segment with the given number of rows of each scene."""
    random = np.random.default_rng(seed)
    count = sum(scenes.values())
    embedding = random.normal(size=(count, SPEC.dimension)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    west = random.uniform(-170, 170, count)
    return SegmentRows(
        id=segment_id,
        scenes=tuple(scenes),
        grids=tuple("g10" for _ in scenes),
        columns={
            "embedding": embedding,
            "scene_index": np.repeat(np.arange(len(scenes)), list(scenes.values())).astype("i4"),
            "tile": np.stack([np.arange(count), np.full(count, 7)], axis=1).astype("i4"),
            "window": np.zeros((count, 4), "i4"),
            "bbox": np.stack([west, west * 0, west + 1, west * 0 + 1], axis=1),
            "datetime": np.full(count, np.datetime64("2024-05-01T00:00:00", "ms")),
            "valid_fraction": np.ones(count, "f4"),
            "cloud_fraction": np.zeros(count, "f4"),
            "labels": random.integers(0, 2, (count, 2)).astype("u1"),
        },
    )


def entry(scene: str, count: int, fingerprint: str = "v1") -> LedgerEntry:
    """The ledger's entry of an embedded scene."""
    return LedgerEntry(
        scene_id=scene,
        state="embedded",
        fingerprint=fingerprint,
        datetime=WHEN,
        rows=count,
        grid_id="g10",
    )


def commit(writer: ArchiveWriter, segment: SegmentRows, fingerprint: str = "v1") -> str:
    """Write a segment and commit it; return the snapshot."""
    index = segment.columns["scene_index"]
    entries = [
        entry(scene, int(np.sum(index == i)), fingerprint) for i, scene in enumerate(segment.scenes)
    ]
    receipt = write_segment(writer.fork, segment, SPEC)
    return writer.commit([receipt], entries, {"g10": {"tile_px": 64}}, "test")


def archive_of_two(tmp_path: Path) -> Archive:
    """An archive of two embedded scenes and a quarantined one."""
    uri = str(tmp_path / "archive")
    Archive.create(uri, SPEC)
    writer = ArchiveWriter(uri)
    commit(writer, rows("s1", {"a": 3, "b": 2}))
    writer.commit(
        [],
        [LedgerEntry(scene_id="c", state="quarantined", fingerprint="v1", reason="truncated")],
        {},
        "bad scene",
    )
    return Archive.open(uri)
