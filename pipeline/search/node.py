"""A search node: some shards of one index version, loaded and ready. Knows nothing of Ray."""

import os
import threading
from collections.abc import Mapping

from pipeline.search.stats import SearchStats
from storage.index.files import VerifiedFiles
from storage.index.manifest import IndexManifest, read_manifest
from storage.index.plan import PassPlan, SearchPlan
from storage.index.quantizer import set_threads
from storage.index.ranking import Float32, Int64
from storage.index.search import SearchResult, ShardSet
from storage.index.sidecar import Columns
from storage.location import Location


class SearchNode:
    """Answers for some shards of one version of an index.

    The first call verifies and loads the shards, so a node whose files were damaged tells each
    caller and recovers when the files are restored.

    Parameters
    ----------
    index, version
        The index version.
    names
        The shards to hold, each with the number of the group in which it is searched; all shards,
        in one group, by default.
    threads
        Threads of one search; the CPUs of this machine by default.
    manifest
        The manifest of the version; read with the shards by default.
    meter
        Counts the lists probed and rows compared.
    """

    def __init__(
        self,
        index: Location,
        version: str,
        names: Mapping[str, int] | None = None,
        threads: int | None = None,
        manifest: IndexManifest | None = None,
        meter: SearchStats | None = None,
    ) -> None:
        self._index, self._version = index, version
        self._names = names
        self._threads = threads or len(os.sched_getaffinity(0))
        self._manifest = manifest
        self._meter = meter
        self._lock = threading.Lock()
        self._loaded: ShardSet | None = None

    def ready(self) -> int:
        """Load the shards if they are not loaded yet; return the id of this process.

        Raises
        ------
        CorruptIndexError
            A file is missing or differs from the manifest.
        """
        self._shards()
        return os.getpid()

    def search(self, plan: SearchPlan, queries: Float32) -> SearchResult:
        """Answer canonical queries (Q, D) from the plan's shards."""
        set_threads(self._threads)  # OpenMP keeps this for each calling thread
        return self._shards().search(queries.astype("f8"), plan)

    def explain(self, plan: SearchPlan, queries: int) -> PassPlan:
        """Return how :meth:`search` would compare so many queries with rows."""
        return self._shards().explain(plan, queries)

    def find(self, plan: SearchPlan) -> Columns:
        """Return the first ``plan.k`` rows of each of the plan's shards that match its filter."""
        return self._shards().find(plan)

    def vectors(self, plan: SearchPlan, rows: Int64) -> tuple[Int64, Float32]:
        """Return the archive rows (m,) of ``rows`` that are live here, and their vectors (m, D)."""
        return self._shards().vectors(plan, rows)

    def _shards(self) -> ShardSet:
        with self._lock:
            if self._loaded is None:
                set_threads(self._threads)
                manifest = self._manifest or read_manifest(self._index, self._version)
                files = VerifiedFiles(self._index)
                shards = [
                    files.load(shard, mapped=manifest.mapped)
                    for shard in manifest.shards
                    if self._names is None or shard.name in self._names
                ]
                self._loaded = ShardSet(
                    shards,
                    on_scan=self._meter.scanned if self._meter else None,
                    threads=self._threads,
                    groups=self._names,
                )
            return self._loaded
