"""The files of an index: written whole, and verified before a byte of them is used."""

import hashlib
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import CorruptIndexError, NotFoundError
from storage.index.manifest import FileEntry, ShardEntry
from storage.index.quantizer import Bytes, QuantizationError, ShardIndexBuilder
from storage.index.ranking import Int64
from storage.index.shard import Shard, memory_of
from storage.index.sidecar import Columns, Sidecar, encode_columns, order_of
from storage.location import Location, sha256_of_file


class VerifiedFiles:
    """Verified access to the files of an index; remote files are copied to a private folder.

    The folder is deleted with this object; open files stay readable.
    """

    def __init__(self, index_uri: str | Location) -> None:
        self._index = Location.of(index_uri)
        self._folder: Path | None = None

    def open(self, entry: FileEntry) -> npt.NDArray[np.uint8]:
        """Map a file into memory and return its bytes once they match the manifest's digest.

        Raises
        ------
        CorruptIndexError
            The file is missing, or its size or digest differs.
        """
        location = self._index / entry.path
        problem = f"index file {location}"
        remedy = "restore it from a copy, or build the index again with `skysift index build`"
        try:
            path = self.local(entry)
            size = path.stat().st_size
        except (NotFoundError, FileNotFoundError) as error:
            raise CorruptIndexError(f"{problem} is missing; {remedy}") from error
        if size != entry.size_bytes:
            raise CorruptIndexError(
                f"{problem} has {size} bytes, expected {entry.size_bytes}; {remedy}"
            )
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            raise CorruptIndexError(
                f"{problem} has sha256 {digest[:12]}…, expected {entry.sha256[:12]}…; {remedy}"
            )
        return np.frombuffer(data, dtype=np.uint8)

    def load(self, entry: ShardEntry, *, mapped: bool = False) -> Shard:
        """Load a shard from its verified files.

        Parameters
        ----------
        entry
            The shard.
        mapped
            Map the FAISS file instead of reading it, for shards larger than memory: searches then
            read the pages that they touch from disk. The files must stay while the shard is used.

        Raises
        ------
        CorruptIndexError
            A file is missing or differs.
        """
        data: Bytes | Path = self.open(entry.index)
        if mapped:
            data = self.local(entry.index)
        sidecar = Sidecar(self.open(entry.columns), entry.columns.path)
        vectors = (
            self.open(entry.vectors).view(np.float16).reshape(entry.rows, -1)
            if entry.vectors
            else None
        )
        deleted = self.open(entry.dead).view(np.int64) if entry.dead else None
        list_rows = self.open(entry.lists).view(np.int64)
        return Shard(entry.name, data, sidecar, vectors, deleted, list_rows)

    def local(self, entry: FileEntry) -> Path:
        """Return the local file of an entry, unverified; a remote file is downloaded once."""
        location = self._index / entry.path
        if location.is_local:
            return location.path
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="skysift-index-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / entry.sha256
        if not path.exists():
            location.download(path)
        return path


def file_entry(index: Location, path: str, data: bytes | npt.NDArray[Any]) -> FileEntry:
    """Write a file of an index and return its entry."""
    blob = data if isinstance(data, bytes) else data.tobytes()
    (index / path).write(blob)
    return FileEntry(path=path, sha256=hashlib.sha256(blob).hexdigest(), size_bytes=len(blob))


@contextmanager
def new_file(index: Location, path: str) -> Iterator[tuple[Path, Callable[[], FileEntry]]]:
    """Yield a local file to write, and a function that returns its entry once it is written.

    The file appears in the index, whole, after the block.
    """
    with (index / path).staged() as local:
        yield (
            local,
            lambda: FileEntry(
                path=path, sha256=sha256_of_file(local), size_bytes=local.stat().st_size
            ),
        )


Vectors = npt.NDArray[np.float16]
Fill = Callable[[ShardIndexBuilder, Int64, Vectors | None], QuantizationError]
"""Adds a shard's rows at their positions (n,), writes the archive's vectors (n, D) by position, and
returns the quantization error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardWriter:
    """A shard to be written.

    ``dimension`` is that of the archive's vectors when they are kept beside the shard, else 0.
    """

    index: Location
    version: str
    name: str
    dimension: int
    trained_rows: int

    def write(
        self, trained: Bytes, columns: Columns, classes: Sequence[str], fill: Fill
    ) -> ShardEntry:
        """Write the shard's files and return its entry.

        Vectors go to disk as they come, so the peak memory is that of the FAISS index and of the
        columns.

        Parameters
        ----------
        trained
            The trained index.
        columns
            The rows (n,) in any order, as :meth:`Sidecar.take` returns them; emptied.
        classes
            Names of the columns of ``labels``.
        fill
            Adds the rows; receives the position of each row of ``columns``.

        Raises
        ------
        CorruptIndexError
            ``fill`` added another number of rows than the columns have.
        """
        order = order_of(columns)
        rows = len(order)
        positions = np.empty_like(order)
        positions[order] = np.arange(rows)
        text = encode_columns({name: values[order] for name, values in columns.items()}, classes)
        columns.clear()  # before FAISS needs the memory
        del order
        sidecar, builder = Sidecar(text, self.name), ShardIndexBuilder(trained)
        fit, vectors = self._fill(builder, positions, fill)
        lists = builder.loaded.list_rows
        with new_file(self.index, self._path("faiss")) as (path, entry):
            builder.save(path, rows)
            index = entry()
        del builder
        bbox, since, until = sidecar.extent
        return ShardEntry(
            name=self.name,
            rows=rows,
            bbox=bbox,
            since=since,
            until=until,
            memory_bytes=memory_of(
                rows, index.size_bytes, sidecar.nbytes, exact_vectors=vectors is not None
            ),
            trained_rows=self.trained_rows,
            fit=fit,
            index=index,
            columns=file_entry(self.index, self._path("arrow"), text),
            lists=file_entry(self.index, self._path("lists"), lists),
            vectors=vectors,
        )

    def _fill(
        self, builder: ShardIndexBuilder, positions: Int64, fill: Fill
    ) -> tuple[QuantizationError, FileEntry | None]:
        if not self.dimension:
            return fill(builder, positions, None), None
        with new_file(self.index, self._path("vectors")) as (path, entry):
            shape = len(positions), self.dimension
            vectors = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
            fit = fill(builder, positions, vectors)
            vectors.flush()
            return fit, entry()

    def _path(self, suffix: str) -> str:
        return f"{self.version}/{self.name}.{suffix}"
