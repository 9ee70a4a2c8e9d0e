"""What a search actor is: one node's shards, loaded and ready. Knows nothing of Ray."""

import os
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.search.stats import SearchStats, StatsSnapshot
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.manifest import read_manifest
from storage.index.quantizer import set_threads
from storage.index.ranking import Float32
from storage.index.search import SearchResult, ShardSet
from storage.index.sidecar import Columns
from storage.location import StorageOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """A search node: where it is, the rows it holds by shard, and what it has done."""

    node_id: str
    process_id: int
    threads: int
    rows: dict[str, int]
    meter: StatsSnapshot


class SearchNode:
    """Answers for some shards of one version of an index.

    Shards are verified and loaded by the first call, so a node whose files were damaged says so to
    each caller and recovers when they are restored.

    Parameters
    ----------
    index_uri, version
        The index.
    names
        The shards to hold, each with the number of the group that it is asked for in; all of them,
        in one group, by default.
    options
        Where the object store is.
    threads
        Threads of one search; the CPUs of this machine by default.
    """

    def __init__(
        self,
        index_uri: str,
        version: str,
        names: Mapping[str, int] | None = None,
        options: StorageOptions | None = None,
        threads: int | None = None,
    ) -> None:
        self._source = (index_uri, version, options)
        self._names = names
        self._threads = threads or len(os.sched_getaffinity(0))
        self.meter = SearchStats()
        self._lock = threading.Lock()
        self._loaded: ShardSet | None = None

    def ready(self) -> int:
        """Load the shards if they are not loaded yet; return this process's id.

        Raises
        ------
        CorruptIndexError
            A file is missing or is not what the manifest says.
        """
        self._shards()
        return os.getpid()

    def search(
        self,
        queries: Float32,
        k: int,
        where: Filter,
        nprobe: int | None,
        names: Collection[str],
    ) -> SearchResult:
        """Answer canonical queries (Q, D) from the named shards."""
        started = time.perf_counter()
        set_threads(self._threads)  # OpenMP keeps this for each calling thread
        found = self._shards().search_canonical(queries.astype("f8"), k, where, nprobe, names)
        self.meter.answered(time.perf_counter() - started, len(queries))
        return found

    def state(self, node_id: str = "") -> NodeState:
        """Return what this node holds and has done.

        Raises
        ------
        CorruptIndexError
            A file is missing or is not what the manifest says.
        """
        return NodeState(
            node_id=node_id,
            process_id=os.getpid(),
            threads=self._threads,
            rows={name: len(shard) for name, shard in self._shards().shards.items()},
            meter=self.meter.read(),
        )

    def find(self, where: Filter, limit: int, names: Collection[str]) -> Columns:
        """Return the first rows of the named shards that match a filter."""
        return self._shards().find(where, limit, names)

    def _shards(self) -> ShardSet:
        with self._lock:
            if self._loaded is None:
                set_threads(self._threads)
                index_uri, version, options = self._source
                manifest = read_manifest(index_uri, version, options)
                files = VerifiedFiles(index_uri, options)
                wanted = [
                    shard
                    for shard in manifest.shards
                    if self._names is None or shard.name in self._names
                ]
                shards = [files.load(shard, mapped=manifest.mapped) for shard in wanted]
                self._loaded = ShardSet(
                    shards,
                    manifest.nprobe,
                    manifest.rerank,
                    on_scan=self.meter.scanned,
                    threads=self._threads,
                    groups=self._names,
                )
            return self._loaded
