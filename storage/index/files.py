"""The files of an index: written whole, and verified before a byte of them is used."""

import hashlib
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import CorruptIndexError, NotFoundError
from storage.index.manifest import FileEntry, ShardEntry
from storage.index.quantizer import Bytes, QuantizationError, ShardIndexBuilder
from storage.index.shard import Shard, memory_of
from storage.index.sidecar import Sidecar
from storage.location import (
    StorageOptions,
    download,
    is_local,
    join_uri,
    local_path,
    sha256_of_file,
    staged,
    write_bytes,
)


class VerifiedFiles:
    """Verified access to the files of an index; remote ones are copied to a private folder.

    The folder goes when this object does; what was opened stays readable.
    """

    def __init__(self, index_uri: str, options: StorageOptions | None = None) -> None:
        self.index_uri = index_uri
        self._options = options
        self._folder: Path | None = None

    def open(self, entry: FileEntry) -> npt.NDArray[np.uint8]:
        """Map a file into memory and return its bytes once they match the manifest's digest.

        Raises
        ------
        CorruptIndexError
            The file is missing, or its size or digest differs.
        """
        return self._verified(entry)[1]

    def path(self, entry: FileEntry) -> Path:
        """Return a local file that matches the manifest's digest, to be mapped by who reads it.

        Raises
        ------
        CorruptIndexError
            The file is missing, or its size or digest differs.
        """
        return self._verified(entry)[0]

    def _verified(self, entry: FileEntry) -> tuple[Path, npt.NDArray[np.uint8]]:
        uri = join_uri(self.index_uri, entry.path)
        problem = f"index file {uri}"
        remedy = "restore it from a copy, or build the index again"
        try:
            path = self._local(uri, entry)
            size = path.stat().st_size
        except (NotFoundError, FileNotFoundError) as error:
            raise CorruptIndexError(f"{problem} is missing; {remedy}") from error
        if size != entry.size_bytes:
            raise CorruptIndexError(
                f"{problem} has {size} bytes, expected {entry.size_bytes}; {remedy}"
            )
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise CorruptIndexError(
                f"{problem} has sha256 {found[:12]}…, expected {entry.sha256[:12]}…; {remedy}"
            )
        return path, np.frombuffer(data, dtype=np.uint8)

    def load(self, entry: ShardEntry, *, mapped: bool = False) -> Shard:
        """Load a shard from its verified files.

        Parameters
        ----------
        entry
            The shard.
        mapped
            Map its FAISS file instead of reading it, for shards larger than memory: searches then
            read what they touch from disk. The files must stay until the shard is let go.

        Raises
        ------
        CorruptIndexError
            A file is missing or differs.
        """
        data = self.path(entry.index) if mapped else self.open(entry.index)
        sidecar = Sidecar(self.open(entry.columns), entry.columns.path)
        vectors = (
            self.open(entry.vectors).view(np.float16).reshape(entry.rows, -1)
            if entry.vectors
            else None
        )
        deleted = self.open(entry.dead).view(np.int64) if entry.dead else None
        list_rows = self.open(entry.lists).view(np.int64)
        return Shard(entry.name, data, sidecar, vectors, deleted, list_rows)

    def _local(self, uri: str, entry: FileEntry) -> Path:
        if is_local(uri):
            return local_path(uri)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="skysift-index-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / entry.sha256
        if not path.exists():
            download(uri, path, self._options)
        return path


def file_entry(
    index_uri: str, path: str, data: bytes | npt.NDArray[Any], options: StorageOptions | None
) -> FileEntry:
    """Write a file of an index and return its entry."""
    blob = data if isinstance(data, bytes) else data.tobytes()
    entry = FileEntry(path=path, sha256=hashlib.sha256(blob).hexdigest(), size_bytes=len(blob))
    write_bytes(join_uri(index_uri, path), blob, options)
    return entry


@contextmanager
def new_file(
    index_uri: str, path: str, options: StorageOptions | None
) -> Iterator[tuple[Path, Callable[[], FileEntry]]]:
    """Hand out a local file to write, and what returns its entry once it is written.

    The file is in the index after the block, whole.
    """
    with staged(join_uri(index_uri, path), options) as local:
        yield (
            local,
            lambda: FileEntry(
                path=path, sha256=sha256_of_file(local), size_bytes=local.stat().st_size
            ),
        )


Vectors = npt.NDArray[np.float16]
Fill = Callable[[ShardIndexBuilder, Vectors | None], QuantizationError]
"""Adds a shard's rows, writes the archive's vectors (n, D) by position, and says how they fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardWriter:
    """A shard to be written: its place, and what its rows do not tell.

    ``dimension`` is that of the archive's vectors when they are kept beside the shard, else 0.
    """

    index_uri: str
    version: str
    name: str
    dimension: int
    trained_rows: int
    options: StorageOptions | None = None

    def write(self, trained: Bytes, columns: bytes, fill: Fill) -> ShardEntry:
        """Write the shard's files and return its entry.

        Vectors go to disk as they come, so the memory it takes is that of the FAISS index and of
        the columns.

        Raises
        ------
        CorruptIndexError
            ``fill`` added another number of rows than the columns have.
        """
        sidecar, filled = Sidecar(columns, self.name), ShardIndexBuilder(trained)
        rows = len(sidecar)
        fit, vectors = self._filled(filled, rows, fill)
        lists = filled.loaded.list_rows
        with self._new("faiss") as (path, entry):
            filled.save(path, rows)
            index = entry()
        del filled
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
            columns=file_entry(self.index_uri, self._path("arrow"), columns, self.options),
            lists=file_entry(self.index_uri, self._path("lists"), lists, self.options),
            vectors=vectors,
        )

    def _filled(
        self, filled: ShardIndexBuilder, rows: int, fill: Fill
    ) -> tuple[QuantizationError, FileEntry | None]:
        if not self.dimension:
            return fill(filled, None), None
        with self._new("vectors") as (path, entry):
            shape = (rows, self.dimension)
            vectors = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
            fit = fill(filled, vectors)
            vectors.flush()
            return fit, entry()

    def _path(self, suffix: str) -> str:
        return f"{self.version}/{self.name}.{suffix}"

    def _new(self, suffix: str) -> AbstractContextManager[tuple[Path, Callable[[], FileEntry]]]:
        return new_file(self.index_uri, self._path(suffix), self.options)
