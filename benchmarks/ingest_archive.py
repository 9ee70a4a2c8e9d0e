"""Archive writes beside plain Zarr v3; ingest as the archive grows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.ingest_world import job, write_bundle, write_scenes
from benchmarks.measure import Row, in_turns
from pipeline.ingest.driver import ingest, plan_ingest
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment

DIMENSION = 256
SPEC = ArchiveSpec(
    encoder_fingerprint="ab" * 32,
    encoder_uri="bundle",
    dimension=DIMENSION,
    bands=("b1",),
    tile_px=128,
)
_GRID = "epsg32632-10-128"


def columns_of(rows: int, seed: int = 0) -> dict[str, Any]:
    """Return the columns of a segment of one scene."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, DIMENSION)).astype(np.float32)
    tile = np.stack(np.divmod(np.arange(rows), 256), axis=1).astype(np.int32)
    return {
        "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "scene_index": np.zeros(rows, np.int32),
        "tile": tile,
        "window": np.concatenate([tile * 128, np.full((rows, 2), 128)], axis=1).astype(np.int32),
        "bbox": rng.uniform(0, 40, (rows, 4)),
        "datetime": np.full(rows, np.datetime64("2024-05-01", "ms")),
        "valid_fraction": np.ones(rows, np.float32),
        "cloud_fraction": np.zeros(rows, np.float32),
    }


def add_segment(writer: ArchiveWriter, number: int, columns: dict[str, Any]) -> None:
    """Write and commit a segment of one scene."""
    scene, rows = f"scene{number:05d}", len(columns["tile"])
    segment = SegmentRows(id=scene, scenes=(scene,), grids=(_GRID,), columns=columns)
    receipt = write_segment(writer.fork, segment, SPEC)
    entry = LedgerEntry(
        scene_id=scene, state="embedded", fingerprint=scene, rows=rows, grid_id=_GRID
    )
    writer.commit([receipt], [entry], {_GRID: {"tile_px": 128}}, scene)


def writes(folder: Path, full: bool) -> Iterator[Row]:
    """Rows/s written and committed, beside the same arrays in a plain Zarr v3 group."""
    rows = 65_536 if full else 32_768
    columns, number = columns_of(rows), count()
    Archive.create(str(folder / "archive"), SPEC)
    writer = ArchiveWriter(str(folder / "archive"))

    def plain() -> None:
        group = zarr.open_group(str(folder / f"plain{next(number)}"), mode="w")
        for name, data in columns.items():
            stored = data.astype(np.float16) if name == "embedding" else data
            stored = stored.astype(np.int64) if name == "datetime" else stored
            array = group.create_array(
                name,
                shape=stored.shape,
                dtype=stored.dtype,
                chunks=(8192, *stored.shape[1:]),
                compressors=None if name == "embedding" else "auto",
            )
            array[...] = stored

    ours_s, peer_s, ratio = in_turns(
        lambda: add_segment(writer, next(number), columns), plain, 9 if full else 5
    )
    yield Row(
        what=f"rows/s written and committed, {rows:,} rows of {DIMENSION} dimensions",
        ours=rows / ours_s,
        peer=rows / peer_s,
        against="the same arrays in plain Zarr v3",
        unit="rows/s",
        ratio=1 / ratio,
        goal=1.0,
        note="Ours checks every vector's norm, and the commit makes them visible all at once.",
    )


def growth(folder: Path, full: bool) -> Iterator[Row]:
    """Time of a scene through a whole ingest, into an archive of many segments and a young one."""
    segments, turns = (1024, 5) if full else (256, 3)
    scenes = 16
    bundle, folders = write_bundle(folder / "bundle", 128, 32), count()

    def ingested(archive: str, sources: Sequence[str], segment_rows: int = 8192) -> None:
        part = folder / f"scenes{next(folders)}"
        part.mkdir()
        for number, source in enumerate(sources):
            (part / f"{part.name}-{number}_20240501.tif").symlink_to(source)
        spec = job(str(part / "*.tif"), bundle, folder / archive, 128)
        ingest(plan_ingest(replace(spec, segment_rows=segment_rows)), local=True)

    (folder / "sources").mkdir()
    names = write_scenes(folder / "sources", scenes, 1024, 1024)
    (folder / "tile").mkdir()
    ingested("large", write_scenes(folder / "tile", 1, 128, 128) * segments, segment_rows=1)
    own, peer, ratio = in_turns(
        lambda: ingested("large", names), lambda: ingested("small", names), turns
    )
    yield Row(
        what=f"ms a scene of 64 tiles through an ingest of {scenes}, tiny-cnn of width 32, into an "
        f"archive of {segments:,} segments",
        ours=own / scenes * 1e3,
        peer=peer / scenes * 1e3,
        against="a young archive",
        unit="ms",
        ratio=ratio,
        goal=1.1,
        direction="at most",
        note="Plan and commit included. Icechunk rewrites its list of arrays in each commit.",
    )
