"""A search node: some shards of one index version, loaded and ready. Knows nothing of Ray."""

import os
import threading
import time
from collections.abc import Mapping

import numpy as np

from pipeline.search.stats import SearchStats
from storage.index.manifest import read_manifest, shard_number
from storage.index.plan import PassPlan, SearchPlan
from storage.index.ranking import Float32, Int64
from storage.index.search import Float16, SearchResult, ShardSet
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

    Attributes
    ----------
    meter
        Counts answers, lists probed and rows compared.
    """

    def __init__(
        self,
        index: Location,
        version: str,
        names: Mapping[str, int] | None = None,
        threads: int | None = None,
    ) -> None:
        self._index, self._version = index, version
        self._names = names
        self._threads = threads or len(os.sched_getaffinity(0))
        self.meter = SearchStats()
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
        started = time.perf_counter()
        result = self._shards().search(plan, queries)
        self.meter.answered(time.perf_counter() - started, len(queries))
        return result

    def explain(self, plan: SearchPlan) -> PassPlan:
        """Return how :meth:`search` would compare queries with rows."""
        return self._shards().explain(plan)

    def find(self, plan: SearchPlan, vectors: bool = False) -> Columns:
        """Return the first ``plan.k`` rows of each of the plan's shards that match its filter."""
        return self._shards().find(plan, vectors)

    def page(self, plan: SearchPlan, start: int) -> Columns:
        """Return the first ``plan.k`` rows of the plan's shard that match, from a position on."""
        return self._shards().page(plan, start)

    def project(self, plan: SearchPlan, directions: Float32) -> dict[str, Float16]:
        """Return the dot products (n, m) of the rows of each of the plan's shards, by its name."""
        return self._shards().project(plan, directions)

    def columns(self, plan: SearchPlan, places: Int64) -> Columns:
        """Return the columns of rows at those of the places (m,) that are in the plan's shards.

        The column ``place`` is the place of each.
        """
        numbers = [shard_number(name) for name in plan.shards]
        own = places[np.isin(places >> 32, numbers)]
        return {**self._shards().columns(own), "place": own}

    def _shards(self) -> ShardSet:
        with self._lock:
            if self._loaded is None:
                manifest = read_manifest(self._index, self._version)
                self._loaded = ShardSet.load(
                    self._index, manifest, self._names, self.meter.scanned, self._threads
                )
                self._loaded.compile()
            return self._loaded
