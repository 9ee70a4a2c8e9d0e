"""The worker of an index build, free of Ray: it fills one shard from the archive.

It is a plain value that travels to a task, and calling it twice is harmless: a shard whose receipt
and files are as they should be is not built again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.indexing.plan import Piece
from storage.archive.reader import Archive
from storage.archive.writer import CHUNK_ROWS
from storage.errors import CorruptIndexError, NotFoundError
from storage.index.files import ShardWriter, Vectors, VerifiedFiles
from storage.index.manifest import FileEntry, ShardEntry, shard_entry
from storage.index.quantizer import (
    QuantizationError,
    ShardIndexBuilder,
    quantization_error,
    set_threads,
)
from storage.index.ranking import Float32, Int64
from storage.index.sidecar import Columns, encode_columns, join_rows, order_of
from storage.location import StorageOptions, join_uri, read_bytes, write_bytes
from storage.prefetch import prefetch

J = TypeVar("J", "ShardJob", "MergeJob")
_FIT_ROWS = 4096
_COLUMNS = ("scene_index", "tile", "bbox", "datetime", "cloud_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard to build: its name and the rows of the archive that it holds."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob:
    """One shard to make of others: its name and theirs."""

    name: str
    sources: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBuilder:
    """Builds shards of one version from an archive at one snapshot.

    Peak memory: :func:`pipeline.indexing.plan.builder_bytes`. ``first_build`` says whether the rows
    were there to be trained on.
    """

    index_uri: str
    version: str
    archive_uri: str
    snapshot: str
    trained: FileEntry
    keep_vectors: bool
    first_build: bool = True
    threads: int = 1
    options: StorageOptions | None = None

    def __call__(self, job: ShardJob) -> ShardEntry:
        """Build a shard, or return the one that is there."""
        return built_once(self.index_uri, self.version, job, self._build, self.options)

    def _build(self, job: ShardJob) -> ShardEntry:
        set_threads(self.threads)
        archive = Archive.open(self.archive_uri, self.snapshot, self.options)
        columns = _columns(archive, job)
        order = order_of(columns)
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order))
        text = encode_columns({n: v[order] for n, v in columns.items()}, archive.spec.classes)
        del columns, order
        trained = VerifiedFiles(self.index_uri, self.options).open(self.trained)
        stride, sample = max(job.rows // _FIT_ROWS, 1), list[Float32]()

        def read(rows: Int64) -> npt.NDArray[np.float16]:
            return archive.read(rows, ["embedding"])["embedding"]

        def fill(filled: ShardIndexBuilder, vectors: Vectors | None) -> QuantizationError:
            done = 0
            for embedding in prefetch(read, _batches(archive, job)):
                at = positions[done : done + len(embedding)]
                done += len(embedding)
                filled.add(at, embedding)
                if vectors is not None:
                    vectors[at] = embedding
                sample.append(embedding[::stride].astype(np.float32))
            return quantization_error(trained, np.concatenate(sample))

        draft = ShardWriter(
            index_uri=self.index_uri,
            version=self.version,
            name=job.name,
            dimension=archive.spec.dimension if self.keep_vectors else 0,
            trained_rows=job.rows if self.first_build else 0,
            options=self.options,
        )
        return draft.write(trained, text, fill)


def built_once(
    index_uri: str,
    version: str,
    job: J,
    build: Callable[[J], ShardEntry],
    options: StorageOptions | None,
) -> ShardEntry:
    """Return the shard of a job that was finished before, or build it and leave a receipt."""
    receipt = join_uri(index_uri, version, f"{job.name}.json")
    told = json.loads(json.dumps(asdict(job)))
    try:
        values = json.loads(read_bytes(receipt, options))
        if values["job"] == told:
            entry, files = shard_entry(values["shard"]), VerifiedFiles(index_uri, options)
            for file in entry.files:
                files.open(file)
            return entry
    except (NotFoundError, CorruptIndexError, ValueError, KeyError, TypeError):
        pass  # not finished: it is built (again)
    entry = build(job)
    write_bytes(receipt, json.dumps({"job": told, "shard": asdict(entry)}).encode(), options)
    return entry


def _columns(archive: Archive, job: ShardJob) -> Columns:
    """Return what the archive knows of the rows of a shard, besides vectors."""
    labels = ("labels",) if archive.spec.classes else ()
    known, parts = archive.ledger.entries, list[Columns]()
    for piece in job.pieces:
        whole = archive.read_segment(piece.ordinal, (*_COLUMNS, *labels))
        part = {name: values[piece.start : piece.stop] for name, values in whole.items()}
        scenes = archive.segments[piece.ordinal].scenes
        grids = [entry.grid_id if (entry := known.get(scene)) else "" for scene in scenes]
        code = part.pop("scene_index")
        part["scene"], part["grid"] = (np.array(names, object)[code] for names in (scenes, grids))
        parts.append(part)
    return join_rows(parts, len(archive.spec.classes))


def _batches(archive: Archive, job: ShardJob) -> Iterator[Int64]:
    """Yield the row ids of a shard, in the order of its pieces."""
    for piece in job.pieces:
        rows = archive.live_rows(piece.ordinal)[piece.start : piece.stop]
        for start in range(0, len(rows), CHUNK_ROWS):
            yield rows[start : start + CHUNK_ROWS]
