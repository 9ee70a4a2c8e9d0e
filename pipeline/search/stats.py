"""The cost of searches: latency, rate, lists probed and rows scanned by shard. No Ray.

Recording is a few additions under a lock (microseconds); percentiles are computed on reading.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

_KEPT = 4096
_WINDOW_S = 60.0


@dataclass(kw_only=True, slots=True)
class ShardWork:
    """Totals of one shard: its queries, and the lists probed and rows scanned for them."""

    queries: int = 0
    probes: int = 0
    rows_scanned: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsSnapshot:
    """The figures of one search actor.

    Attributes
    ----------
    messages, queries
        Answered since the start; a message holds any number of queries.
    queries_per_s
        Of the last minute, or since the start when that is shorter.
    p50_ms, p95_ms, p99_ms
        Percentiles of the time to answer a message, over the last 4,096; 0 before the first.
    shards
        Totals by shard name.
    """

    messages: int = 0
    queries: int = 0
    queries_per_s: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    shards: dict[str, ShardWork] = field(default_factory=dict)


class SearchStats:
    """Counts the searches of an actor; safe to share between threads.

    Parameters
    ----------
    clock
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=_KEPT)
        self._messages = self._queries = 0
        self._shards: dict[str, ShardWork] = {}

    def answered(self, seconds: float, queries: int) -> None:
        """Count an answered message."""
        with self._lock:
            self._messages += 1
            self._queries += queries
            self._recent.append((self._clock(), seconds, queries))

    def scanned(self, queries: int, probes: int, rows: Mapping[str, int]) -> None:
        """Count the cost of queries: lists probed, and the rows compared in each shard."""
        with self._lock:
            for shard, compared in rows.items():
                work = self._shards.setdefault(shard, ShardWork())
                work.queries += queries
                work.probes += probes
                work.rows_scanned += compared

    def read(self) -> StatsSnapshot:
        """Return the totals, and the recent latency and rate."""
        with self._lock:
            now, recent = self._clock(), list(self._recent)
            shards = {
                name: ShardWork(queries=w.queries, probes=w.probes, rows_scanned=w.rows_scanned)
                for name, w in sorted(self._shards.items())
            }
            messages, queries = self._messages, self._queries
        window = min(max(now - self._started, 1e-9), _WINDOW_S)
        if len(recent) == _KEPT:  # older ones of the minute were dropped
            window = min(window, max(now - recent[0][0], 1e-9))
        late = sum(count for end, _, count in recent if now - end <= window)
        times = np.array([seconds for _, seconds, _ in recent] or [0.0])
        p50, p95, p99 = (1000 * np.percentile(times, (50, 95, 99))).tolist()
        return StatsSnapshot(
            messages=messages,
            queries=queries,
            queries_per_s=late / window,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            shards=shards,
        )

    def idle_s(self) -> float:
        """Return the seconds since the last answer, or since the start."""
        with self._lock:
            last = self._recent[-1][0] if self._recent else self._started
        return self._clock() - last

    def between(self, first: int, last: int) -> list[float]:
        """Return the seconds of messages ``first`` to ``last``, from 0, as far as remembered."""
        with self._lock:
            dropped = self._messages - len(self._recent)
            times = [seconds for _, seconds, _ in self._recent]
        return times[max(first - dropped, 0) : max(last - dropped, 0)]
