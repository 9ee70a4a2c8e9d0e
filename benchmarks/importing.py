"""Import of a million published embeddings beside what pyarrow reads and the archive writes."""

import argparse
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from benchmarks.measure import Row, in_turns, publish
from pipeline.importing import ImportSpec, import_embeddings, plan_import
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.embeddings.table import PART_ROWS

DIMENSION = 768
_GROUP_ROWS = 16_384
_CHIP_DEGREES = 0.05
_GRID = "epsg32603-10-512"


def write_table(path: Path, rows: int) -> None:
    """Write chips in the layout of Clay v0, as its files are: ZSTD, lists of float32, polygons."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 0.06, DIMENSION).astype(np.float32)
    writer: pq.ParquetWriter | None = None
    for first in range(0, rows, _GROUP_ROWS):
        size = min(_GROUP_ROWS, rows - first)
        column, row = np.divmod(np.arange(first, first + size), 1000)
        west, south = -6 + column * _CHIP_DEGREES / 10, row * _CHIP_DEGREES / 10
        boxes = shapely.box(west, south, west + _CHIP_DEGREES, south + _CHIP_DEGREES)
        vectors = mean + rng.normal(0, 0.02, (size, DIMENSION)).astype(np.float32)
        starts = np.arange(size + 1, dtype=np.int32) * DIMENSION
        table = pa.table(
            {
                "index": pa.array(np.arange(first, first + size)),
                "source_url": pa.array([f"s3://tiles/{n}.tif" for n in range(first, first + size)]),
                "date": pa.array(np.full(size, np.datetime64("2022-06-10", "D"))),
                "embeddings": pa.ListArray.from_arrays(starts, vectors.reshape(-1)),
                "geometry": pa.array(shapely.to_wkb(boxes), pa.binary()),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


class Bare:
    """The limit: pyarrow reads every column that is needed, and the archive writes such rows."""

    def __init__(self, table: Path, archive: Path) -> None:
        self._table, self._archive = table, archive
        rng = np.random.default_rng(1)
        vectors = rng.normal(size=(PART_ROWS, DIMENSION)).astype(np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def __call__(self) -> None:
        """Read and write the whole table, part by part."""
        spec = ArchiveSpec(
            encoder_fingerprint="ab" * 32,
            encoder_uri="bundle",
            dimension=DIMENSION,
            bands=("b1",),
            tile_px=512,
        )
        shutil.rmtree(self._archive, ignore_errors=True)
        Archive.create(str(self._archive), spec)
        writer, number, waiting = ArchiveWriter(str(self._archive)), count(), 0
        receipts, entries = [], []
        file = pq.ParquetFile(pa.memory_map(str(self._table)))
        columns = ["embeddings", "geometry", "date"]
        for batch in file.iter_batches(_GROUP_ROWS, columns=columns):
            for column in batch.columns:
                _values_of(column)
            waiting += batch.num_rows
            if waiting >= PART_ROWS or batch.num_rows < _GROUP_ROWS:
                scene = f"scene{next(number)}"
                segment = SegmentRows(
                    id=scene, scenes=(scene,), grids=(_GRID,), columns=self._columns(waiting)
                )
                receipts.append(write_segment(writer.fork, segment, spec))
                entries.append(
                    LedgerEntry(
                        scene_id=scene,
                        state="embedded",
                        fingerprint=scene,
                        rows=waiting,
                        grid_id=_GRID,
                    )
                )
                waiting = 0
        writer.commit(receipts, entries, {_GRID: {"tile_px": 512}}, "rows")

    def _columns(self, rows: int) -> dict[str, Any]:
        tile = np.stack(np.divmod(np.arange(rows), 256), axis=1).astype(np.int32)
        return {
            "embedding": self._vectors[:rows],
            "scene_index": np.zeros(rows, np.int32),
            "tile": tile,
            "window": np.hstack([tile, tile]),
            "bbox": np.random.default_rng(2).uniform(0, 40, (rows, 4)),
            "datetime": np.full(rows, np.datetime64("2024-05-01", "ms")),
            "valid_fraction": np.ones(rows, np.float32),
            "cloud_fraction": np.zeros(rows, np.float32),
        }


def _values_of(column: pa.Array) -> Any:
    """Return a column as numpy has it."""
    if pa.types.is_list(column.type):
        return np.asarray(column.flatten().to_numpy()).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def rate(folder: Path, rows: int, turns: int) -> Row:
    """Rows/s of an import, beside the limit in the same run."""
    table = folder / "clay_01NAA_20220610_20220610_v001.gpq"
    write_table(table, rows)

    def imported() -> None:
        shutil.rmtree(folder / "archive", ignore_errors=True)
        plan = plan_import(ImportSpec(source=str(table), archive_uri=str(folder / "archive")))
        assert import_embeddings(plan).rows == rows

    ours_s, peer_s, ratio = in_turns(imported, Bare(table, folder / "bare"), turns)
    return Row(
        what=f"rows/s imported, {rows:,} rows of {DIMENSION} dimensions in the layout of Clay v0",
        ours=rows / ours_s,
        peer=rows / peer_s,
        against="pyarrow reads, then the archive writes such rows",
        unit="rows/s",
        ratio=1 / ratio,
        goal=0.8,
        note="Ours also plans, takes the mean, checks, centres and scales every vector, and "
        "projects every polygon.",
    )


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more turns")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish("importing", [rate(Path(folder), arguments.rows, 5 if arguments.full else 3)])


if __name__ == "__main__":
    main()
