"""The worker of an index build, free of Ray: it fills one shard from the archive.

The worker is a plain value that travels to a task. Calling it twice is harmless: a shard with a
receipt and intact files is not built again.
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
from storage.index.manifest import FileEntry, ShardEntry, sealed, shard_entry, unsealed
from storage.index.quantizer import (
    QuantizationError,
    ShardIndexBuilder,
    quantization_error,
    set_threads,
)
from storage.index.ranking import Float32, Int64
from storage.index.sidecar import Columns, join_rows
from storage.location import Location
from storage.prefetch import prefetch

J = TypeVar("J", "ShardJob", "MergeJob")
_FIT_ROWS = 4096
_COLUMNS = ("scene_index", "tile", "bbox", "datetime", "cloud_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A shard to build: its name and its rows of the archive."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob:
    """A shard to merge from other shards."""

    name: str
    sources: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBuilder:
    """Builds shards of one version from an archive at one snapshot.

    Peak memory: :func:`pipeline.indexing.plan.builder_bytes`. ``first_build`` tells that the
    quantizers could be trained on the rows.
    """

    index: Location
    version: str
    archive: Location
    snapshot: str
    trained: FileEntry
    keep_vectors: bool
    first_build: bool = True
    threads: int = 1

    def __call__(self, job: ShardJob) -> ShardEntry:
        """Build a shard, or return the finished shard."""
        return built_once(self.index, self.version, self.trained, job, self._build)

    def _build(self, job: ShardJob) -> ShardEntry:
        set_threads(self.threads)
        archive = Archive.open(self.archive, self.snapshot)
        trained = VerifiedFiles(self.index).open(self.trained)
        stride, sample = max(job.rows // _FIT_ROWS, 1), list[Float32]()

        def read(rows: Int64) -> npt.NDArray[np.float16]:
            return archive.read(rows, ["embedding"])["embedding"]

        def fill(
            builder: ShardIndexBuilder, positions: Int64, vectors: Vectors | None
        ) -> QuantizationError:
            done = 0
            for embedding in prefetch(read, _batches(archive, job)):
                batch = positions[done : done + len(embedding)]
                done += len(embedding)
                builder.add(batch, embedding)
                if vectors is not None:
                    vectors[batch] = embedding
                sample.append(embedding[::stride].astype(np.float32))
            return quantization_error(trained, np.concatenate(sample))

        writer = ShardWriter(
            index=self.index,
            version=self.version,
            name=job.name,
            dimension=archive.spec.dimension if self.keep_vectors else 0,
            trained_rows=job.rows if self.first_build else 0,
        )
        return writer.write(trained, _columns(archive, job), archive.spec.classes, fill)


def built_once(
    index: Location, version: str, trained: FileEntry, job: J, build: Callable[[J], ShardEntry]
) -> ShardEntry:
    """Return the finished shard of a job and trained quantizers, or build it; write a receipt."""
    receipt = index / version / f"{job.name}.json"
    made_of = json.loads(json.dumps({"job": asdict(job), "trained": trained.sha256}))
    try:
        values = unsealed("receipt", receipt.read())
        if {name: values[name] for name in made_of} == made_of:
            entry, files = shard_entry(values["shard"]), VerifiedFiles(index)
            for file in entry.files:
                files.open(file)
            return entry
    except (NotFoundError, CorruptIndexError, ValueError, KeyError, TypeError):
        pass  # not finished, or damaged since
    entry = build(job)
    receipt.write(sealed("receipt", {**made_of, "shard": asdict(entry)}))
    return entry


def _columns(archive: Archive, job: ShardJob) -> Columns:
    """Return the archive's columns of the rows of a shard, without vectors."""
    labels = ("labels",) if archive.spec.classes else ()
    entries, parts = archive.ledger.entries, list[Columns]()
    for piece in job.pieces:
        segment = archive.read_segment(piece.ordinal, (*_COLUMNS, *labels))
        part = {name: values[piece.start : piece.stop] for name, values in segment.items()}
        scenes = archive.segments[piece.ordinal].scenes
        grids = [entry.grid_id if (entry := entries.get(scene)) else "" for scene in scenes]
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
