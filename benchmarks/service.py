"""Searches over HTTP beside the same searches in process: overhead, throughput, killed processes.

    python -m benchmarks.service [--full]

The in-process limit is `pipeline.search.searcher.Searcher` with the same search actors, asked by as
many threads as there are clients. The clients over HTTP are a process of their own (aiohttp), so
that they do not share an interpreter with the service; they do share the machine's cores with it,
as the threads of the limit do. ``--full`` adds ten minutes at 80 % load, in each of which a search
actor, an HTTP replica and the actor that keeps HAProxy are killed. RAY_SERVE_ENABLE_HA_PROXY=0
measures Ray Serve's own proxy.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.measure import Row, publish
from benchmarks.service_clients import HEADERS
from benchmarks.vectors import clustered, make_archive
from pipeline.indexing.driver import build_index
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from workflows.service.deploy import serve_indexes
from workflows.service.proxy import haproxy_at
from workflows.service.settings import BackendConfig, Limits, ServiceSpec

ROWS, DIMENSION, K = 100_000, 128, 10
CLIENTS = (1, 8, 64)
SECONDS, TURNS = 5.0, 3
PAIRS = 300
QUERIES = 256
FULL_SECONDS, KILL_EVERY_S = 600.0, 20.0
_LIMIT = "the application (FastAPI), and processes that wake each other up."
_REPLICA, _SEARCHER, _PROXY = "ray::ServeReplica", "ray::SearchActor", "ray::HAProxyManager"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    spec = _spec(2 if given.full else 1)
    with (
        tempfile.TemporaryDirectory(prefix="bs") as folder,
        haproxy_at(spec, warn=print) as behind_haproxy,
        ray_session(),
    ):
        index = str(Path(folder) / "index")
        build_index(make_archive(Path(folder), ROWS, DIMENSION), index)
        with serving(index, spec, behind_haproxy=behind_haproxy) as address:
            url = f"{address}/v1/search"
            searcher = Searcher.connect(index, replicas=spec.replicas)
            rows = [_overhead(url, searcher)]
            for clients in CLIENTS:
                rows += _throughput(url, searcher, clients)
            if given.full:
                best = max(row.ours for row in rows if row.unit == "requests/s")
                rows += _endurance(url, 0.8 * best)
    publish("service", rows)


def _spec(replicas: int = 1) -> ServiceSpec:
    """Return a service at a free port, without limits of a client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = Limits(rate_per_s=0, share=max(CLIENTS))  # all clients have one address
    return ServiceSpec(port=port, limits=limits, replicas=replicas)


@contextmanager
def serving(
    index: str, spec: ServiceSpec | None = None, *, behind_haproxy: bool = False
) -> Iterator[str]:
    """Serve an index as `skysift serve` does."""
    spec = spec or _spec()
    up, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve_indexes,
        args=({"rows": BackendConfig(index_uri=index, replicas=spec.replicas)}, spec),
        kwargs={"ready": lambda _: up.set(), "stop": stop, "behind_haproxy": behind_haproxy},
    )
    thread.start()
    try:
        if not up.wait(120):
            raise RuntimeError("the service did not start in 120 s")
        yield f"http://127.0.0.1:{spec.port}"
    finally:
        stop.set()
        thread.join()


def _queries() -> np.ndarray[Any, Any]:
    return next(iter(clustered(QUERIES, DIMENSION, seed=9)))


def _bodies() -> list[bytes]:
    return [json.dumps({"vector": query.tolist(), "k": K}).encode() for query in _queries()]


def _overhead(url: str, searcher: Searcher) -> Row:
    """Ask in turns, one at a time, in process and over HTTP from one process."""
    queries = _queries()
    bodies = _bodies()
    own, other = [], []

    async def turns() -> None:
        async with aiohttp.ClientSession() as session:
            for turn in range(PAIRS + 20):
                number = turn % QUERIES
                started = time.perf_counter()
                searcher.search(queries[number], K).to_arrow()
                between = time.perf_counter()
                async with session.post(url, data=bodies[number], headers=HEADERS) as answer:
                    await answer.read()
                    assert answer.status == 200
                ended = time.perf_counter()
                other.append(1e3 * (between - started))
                own.append(1e3 * (ended - between))

    asyncio.run(turns())
    ours, inside = statistics.median(own[20:]), statistics.median(other[20:])
    return Row(
        what=f"p50 of a search over HTTP, one client, {ROWS:,} rows of {DIMENSION}",
        ours=ours,
        unit="ms",
        peer=inside,
        against="in process",
        ratio=ours - inside,
        goal=5.0,
        direction="at most",
        note=f"The ratio is the ms added by HTTP, Ray Serve and JSON. Limit: {_LIMIT}",
    )


def _throughput(url: str, searcher: Searcher, clients: int) -> list[Row]:
    """Ask as fast as answers come, over HTTP and in process by turns."""
    over, inside = [], []
    for _ in range(TURNS):
        over.append(_load(url, clients, SECONDS / TURNS))
        inside.append(_in_process(searcher, clients, SECONDS / TURNS))
    rates = statistics.median(run["per_s"] for run in over), statistics.median(inside)
    failed = sum(run["failed"] for run in over)
    p99 = statistics.median(run["p99_ms"] for run in over)
    what = f"{clients} client{'s' if clients > 1 else ''}"
    return [
        Row(
            what=f"{what}: requests over HTTP",
            ours=rates[0],
            unit="requests/s",
            peer=rates[1],
            against=f"{clients} threads in process",
            ratio=rates[0] / rates[1],
            note=f"{failed} failed.",
        ),
        Row(what=f"{what}: p99 over HTTP", ours=p99, unit="ms", ratio=p99),
    ]


def _in_process(searcher: Searcher, clients: int, seconds: float) -> float:
    """Return searches a second of several threads."""
    queries, until = _queries(), time.monotonic() + seconds

    def work(first: int) -> int:
        done = 0
        while time.monotonic() < until:
            searcher.search(queries[(first + done) % QUERIES], K).to_arrow()
            done += 1
        return done

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        total = sum(pool.map(work, range(clients)))
    return total / (time.monotonic() - started)


def _load(url: str, clients: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
    """Send requests from another process, ``rate`` a second, or all at once when it is 0."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"\n".join(_bodies()))
        file.flush()
        words = [url, file.name, str(clients), str(seconds), str(rate)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.service_clients", *words],
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _endurance(url: str, rate: float) -> list[Row]:
    """Ask for minutes at a steady rate while processes are killed; watch their memory."""
    over = threading.Event()
    killed: Counter[str] = Counter()
    memory: list[float] = []

    def disturb() -> None:
        for title in cycle((_SEARCHER, _REPLICA, _PROXY)):
            if over.wait(KILL_EVERY_S):
                return
            memory.append(_memory_bytes())
            for found in _processes(title)[:1]:
                os.kill(found, signal.SIGKILL)
                killed[title] += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = _load(url, 64, FULL_SECONDS, rate)
    finally:
        over.set()
        thread.join()
    counts = ", ".join(f"{count} of {title}" for title, count in killed.items())
    text = f"{found['sent']:.0f} requests at {found['per_s']:.0f}/s; killed {counts}"
    failures = f" Failed: {found['failures']}." if found["failures"] else ""
    return [
        Row(
            what=f"failed requests in {FULL_SECONDS / 60:.0f} min at 80 % load, processes killed",
            ours=found["failed"],
            unit="requests",
            ratio=found["failed"],
            goal=0,
            direction="at most",
            note=f"{text}; p99 {found['p99_ms']:.0f} ms.{failures}",
        ),
        Row(
            what=f"memory of the service after those {FULL_SECONDS / 60:.0f} min",
            ours=memory[-1] / 1e6,
            unit="MB",
            peer=memory[0] / 1e6,
            against="first minute",
            ratio=memory[-1] / memory[0],
            goal=1.1,
            direction="at most",
        ),
    ]


def _processes(title: str) -> list[int]:
    """Return the ids of this Ray's actors with a title, such as ray::ServeReplica."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = (folder / "cmdline").read_bytes().startswith(title.encode())
            if named and _parent(_parent(int(folder.name))) == os.getpid():  # a child of the raylet
                found.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return found


def _parent(process: int) -> int:
    stat = Path(f"/proc/{process}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def _memory_bytes() -> float:
    total = 0
    for pid in [*_processes(_REPLICA), *_processes(_SEARCHER)]:
        status = Path(f"/proc/{pid}/status").read_text()
        total += 1024 * int(status.partition("VmRSS:")[2].split()[0])
    return float(total)


if __name__ == "__main__":
    main()
