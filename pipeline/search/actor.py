"""A search node as a Ray actor: the same answers, and its figures in Ray's Prometheus metrics.

An actor of a version that is no longer current ends itself after a time without searches; a client
that searches the version later starts the actor again.

Counters and the latency histogram appear on the metrics port of each Ray node as
``ray_skysift_search_*``; a thread of its own updates them once a second.
"""

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter, Histogram

from pipeline.search.local_socket import Endpoint, UnixSocketServer
from pipeline.search.node import SearchNode
from pipeline.search.stats import SearchStats, ShardWork, StatsSnapshot
from storage.errors import SkysiftError
from storage.index.manifest import current_version
from storage.location import Location

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_BOUNDARIES_S = [0.001 * 2**step for step in range(-1, 15)]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """The Ray node and process of a search actor, its rows by shard, and its figures."""

    node_id: str
    process_id: int
    threads: int
    rows: dict[str, int]
    meter: StatsSnapshot


class SearchActor(SearchNode):
    """A :class:`pipeline.search.node.SearchNode` with a socket and Prometheus metrics.

    The actor ends when its version is superseded and ``retire_after_s`` pass without a search.
    """

    def __init__(
        self,
        index: Location,
        version: str,
        names: Mapping[str, int] | None = None,
        threads: int | None = None,
        at_once: int = 4,
        retire_after_s: float = 600.0,
    ) -> None:
        super().__init__(index, version, names, threads)
        self._socket = UnixSocketServer(self, at_once)
        self._retire_after_s = retire_after_s
        threading.Thread(target=self._maintain, name="search-maintenance", daemon=True).start()

    def socket_endpoint(self) -> Endpoint | None:
        """Return the endpoint of this actor's socket, for clients on the same machine."""
        return self._socket.endpoint

    def state(self) -> NodeState:
        """Return the rows that this actor holds, and its figures.

        Raises
        ------
        CorruptIndexError
            A file is missing or differs from the manifest.
        """
        return NodeState(
            node_id=ray.get_runtime_context().get_node_id(),
            process_id=os.getpid(),
            threads=self._threads,
            rows={name: shard.rows for name, shard in self._shards().shards.items()},
            meter=self.meter.read(),
        )

    def _maintain(self) -> None:
        """Export the figures once a second; retire when it is time."""
        exporter = _Exporter(self.meter, {"index": self._index.uri, "version": self._version})
        pause, checked_s = threading.Event(), 0.0
        while not pause.wait(_EVERY_S):
            exporter.export()
            idle_s = self.meter.idle_s()
            checked_s = min(checked_s, idle_s)
            if idle_s - checked_s >= self._retire_after_s:
                checked_s = idle_s
                if self._superseded():
                    logger.info("search actor of %s version %s retires", self._index, self._version)
                    ray.kill(ray.get_runtime_context().current_actor)

    def _superseded(self) -> bool:
        try:
            return current_version(self._index) != self._version
        except SkysiftError as error:
            logger.warning("cannot tell which version of %s is current: %s", self._index, error)
            return False


class _Exporter:
    """Adds the counts since the last export to Ray's metrics."""

    def __init__(self, meter: SearchStats, tags: dict[str, str]) -> None:
        self._meter, self._tags, self._before = meter, tags, StatsSnapshot()
        keys = ("index", "version")
        self._seconds = Histogram(
            "skysift_search_seconds", "Time to answer a message", _BOUNDARIES_S, keys
        )
        self._queries = Counter("skysift_search_queries", "Queries answered", keys)
        by_shard = (*keys, "shard")
        self._probes = Counter("skysift_search_probes", "Lists probed", by_shard)
        self._rows = Counter("skysift_search_rows_scanned", "Rows compared", by_shard)

    def export(self) -> None:
        """Export the difference to the last export."""
        before, now = self._before, self._meter.read()
        for seconds in self._meter.between(before.messages, now.messages):
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
