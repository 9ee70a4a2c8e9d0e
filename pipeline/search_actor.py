"""A search node as a Ray actor: the same answers, and its meter in Ray's Prometheus metrics.

Counters and the latency histogram appear on the metrics port of each Ray node as
``ray_skysift_search_*``; they are brought up to date once a second, away from the searches.
"""

import threading
from collections.abc import Collection
from typing import Any

import ray
from ray.util.metrics import Counter, Histogram

from pipeline.search_meter import MeterReading, ShardWork
from pipeline.search_node import NodeState, SearchNode
from storage.object_store import StorageOptions

_EVERY_S = 1.0
_BOUNDARIES_S = [0.001 * 2**step for step in range(-1, 15)]


class SearchActor(SearchNode):
    """See :class:`pipeline.search_node.SearchNode`."""

    def __init__(
        self,
        index_uri: str,
        version: str,
        names: Collection[str] | None = None,
        options: StorageOptions | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(index_uri, version, names, options, threads)
        exporter = _Exporter(self, {"index": index_uri, "version": version})
        threading.Thread(target=exporter.run, name="search-metrics", daemon=True).start()

    def state(self, node_id: str = "") -> NodeState:
        """Return what this actor holds and has done; ``node_id`` is that of its Ray node."""
        return super().state(node_id or ray.get_runtime_context().get_node_id())


class _Exporter:
    """Adds what the meter counted since the last time to Ray's metrics."""

    def __init__(self, node: SearchNode, tags: dict[str, str]) -> None:
        self._node, self._tags, self._before = node, tags, MeterReading()
        keys = ("index", "version")
        self._seconds = Histogram(
            "skysift_search_seconds", "Time to answer a message", _BOUNDARIES_S, keys
        )
        self._queries = Counter("skysift_search_queries", "Queries answered", keys)
        by_shard = (*keys, "shard")
        self._probes = Counter("skysift_search_probes", "Lists probed", by_shard)
        self._rows = Counter("skysift_search_rows_scanned", "Rows compared", by_shard)

    def run(self) -> None:
        """Export once a second, for ever."""
        pause = threading.Event()
        while not pause.wait(_EVERY_S):
            self.export()

    def export(self) -> None:
        """Export what is new."""
        meter, before = self._node.meter, self._before
        now = meter.read()
        for seconds in meter.between(before.messages, now.messages):
            self._seconds.observe(seconds, self._tags)
        _add(self._queries, now.queries - before.queries, self._tags)
        for name, work in now.shards.items():
            old = before.shards.get(name, ShardWork())
            tags = {**self._tags, "shard": name}
            _add(self._probes, work.probes - old.probes, tags)
            _add(self._rows, work.rows_scanned - old.rows_scanned, tags)
        self._before = now


def _add(counter: Any, more: int, tags: dict[str, str]) -> None:
    if more:
        counter.inc(more, tags)
