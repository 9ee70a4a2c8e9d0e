"""Telemetry of the service: Prometheus metrics, and a JSON line of log for each request.

A log line holds method, route, path, status, times and sizes, the index, and the first characters
of the token's digest. It never holds headers, queries or bodies, so neither a token nor a vector
can get into the log.
"""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.archive.ledger import SceneState

access_log = logging.getLogger("skysift.access")

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A version of an index, and the commit that it was made of: its time, and scenes by state."""

    version: str
    rows: int
    committed_at: datetime
    scenes: Mapping[str, int]


class Metrics:
    """The metrics of one replica, named by their label ``replica``, about an index."""

    def __init__(self, index: str = "") -> None:
        self.index = index
        self._replica = f"{platform.node()}:{os.getpid()}"
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def metric(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            names = ["replica", "index", *labels]
            return kind(f"skysift_{name}", text, names, registry=self.registry, **options)

        self._requests = metric(
            Counter, "http_requests", "Requests answered.", "method", "route", "status"
        )
        self._seconds = metric(
            Histogram, "http_request_seconds", "Time to answer.", "route", buckets=_BUCKETS_S
        )
        self._inside = metric(Gauge, "http_requests_in_progress", "Requests being answered.")
        self._thumbnails = metric(Counter, "thumbnails", "Thumbnails given.", "source")
        self._faulty = metric(Gauge, "token_file_invalid", "1 while the token file is invalid.")
        self._rows = metric(Gauge, "index_rows", "Rows of the index that is served.", "version")
        self._committed = metric(
            Gauge, "archive_commit_time_seconds", "Unix time of the commit that is served."
        )
        self._scenes = metric(Gauge, "archive_scenes", "Scenes of the commit, by state.", "state")

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(self._replica, self.index, method, route, status).inc()
        self._seconds.labels(self._replica, self.index, route).observe(seconds)

    def entered(self, change: int) -> None:
        """Count requests in progress up or down."""
        self._inside.labels(self._replica, self.index).inc(change)

    def thumbnail(self, source: str) -> None:
        """Count a thumbnail: ``drawn``, ``cache`` or ``unchanged`` (the client has it)."""
        self._thumbnails.labels(self._replica, self.index, source).inc()

    def serving(self, indexes: Mapping[str, Served]) -> None:
        """Record the version of each index that is served, and the commit of its archive."""
        self._rows.clear()
        for index, served in indexes.items():
            names = (self._replica, index)
            self._rows.labels(*names, served.version).set(served.rows)
            self._committed.labels(*names).set(served.committed_at.timestamp())
            for state in get_args(SceneState):
                self._scenes.labels(*names, state).set(served.scenes.get(state, 0))

    def of(self, index: str) -> "Metrics":
        """Return the same metrics about another index."""
        other = copy(self)
        other.index = index
        return other

    def tokens(self, faulty: bool) -> None:
        """Record whether the token file is invalid, so that older tokens are in force."""
        self._faulty.labels(self._replica, "").set(faulty)

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


class RequestMetrics:
    """Count, time and log every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, observing its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # gets the token's digest
        started, status, sent_bytes = time.perf_counter(), 500, 0

        async def observed(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.entered(1)
        try:
            await self._app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.entered(-1)
            route = getattr(scope.get("route"), "path", "") or "other"
            self._metrics.answered(scope["method"], route, status, seconds)
            access_log.info(
                "%s",
                _line(
                    scope,
                    self._metrics.index,
                    route,
                    status,
                    milliseconds=seconds * 1e3,
                    sent=sent_bytes,
                ),
            )


def _line(
    scope: Scope, index: str, route: str, status: int, *, milliseconds: float, sent: int
) -> str:
    client = scope.get("client")
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0] if client else "",
            "token": scope.get("state", {}).get("token", ""),
            "index": index,
            "method": scope["method"],
            "route": route,
            "path": scope["path"][:512],
            "status": status,
            "ms": round(milliseconds, 2),
            "bytes": sent,
        }
    )


def log_to_stderr() -> None:
    """Write the access log of this process to its stderr, once."""
    if not access_log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access_log.addHandler(handler)
        access_log.setLevel(logging.INFO)
        access_log.propagate = False
