"""A search node as a Ray actor: the same answers, and its meter in Ray's Prometheus metrics.

An actor of a version that is no longer current ends itself when nobody has asked it for a while; a
reader that still asks it later starts it again.

Counters and the latency histogram appear on the metrics port of each Ray node as
``ray_skysift_search_*``; they are brought up to date once a second, away from the searches.
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Counter, Histogram

from pipeline.search.local_socket import Key, UnixSocketServer
from pipeline.search.node import NodeState, SearchNode
from pipeline.search.stats import ShardWork, StatsSnapshot
from storage.errors import SkysiftError
from storage.index.manifest import current_version
from storage.location import StorageOptions

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_BOUNDARIES_S = [0.001 * 2**step for step in range(-1, 15)]


class SearchActor(SearchNode):
    """See :class:`pipeline.search.node.SearchNode`; ends when superseded and idle for so long."""

    def __init__(
        self,
        index_uri: str,
        version: str,
        names: Mapping[str, int] | None = None,
        options: StorageOptions | None = None,
        threads: int | None = None,
        at_once: int = 4,
        retire_after_s: float = 600.0,
    ) -> None:
        super().__init__(index_uri, version, names, options, threads)
        self._socket = UnixSocketServer(self, at_once)
        self._retire_after_s = retire_after_s
        threading.Thread(target=self._look_after, name="search-care", daemon=True).start()

    def socket_endpoint(self) -> Key | None:
        """Return what clients on this machine need to ask without messages."""
        return self._socket.endpoint

    def state(self, node_id: str = "") -> NodeState:
        """Return what this actor holds and has done; ``node_id`` is that of its Ray node."""
        return super().state(node_id or ray.get_runtime_context().get_node_id())

    def _look_after(self) -> None:
        """Export the meter once a second; retire when it is time."""
        index_uri, version, _ = self._source
        exporter = _Exporter(self, {"index": index_uri, "version": version})
        pause, looked_s = threading.Event(), 0.0
        while not pause.wait(_EVERY_S):
            exporter.export()
            idle_s = self.meter.idle_s()
            looked_s = min(looked_s, idle_s)
            if idle_s - looked_s >= self._retire_after_s:
                looked_s = idle_s
                if self._superseded():
                    logger.info("search actor of %s version %s retires", index_uri, version)
                    ray.kill(ray.get_runtime_context().current_actor)

    def _superseded(self) -> bool:
        index_uri, version, options = self._source
        try:
            return current_version(index_uri, options) != version
        except SkysiftError as error:
            logger.warning("which version of %s is current is unknown: %s", index_uri, error)
            return False


class _Exporter:
    """Adds what the meter counted since the last time to Ray's metrics."""

    def __init__(self, node: SearchNode, tags: dict[str, str]) -> None:
        self._node, self._tags, self._before = node, tags, StatsSnapshot()
        keys = ("index", "version")
        self._seconds = Histogram(
            "skysift_search_seconds", "Time to answer a message", _BOUNDARIES_S, keys
        )
        self._queries = Counter("skysift_search_queries", "Queries answered", keys)
        by_shard = (*keys, "shard")
        self._probes = Counter("skysift_search_probes", "Lists probed", by_shard)
        self._rows = Counter("skysift_search_rows_scanned", "Rows compared", by_shard)

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
