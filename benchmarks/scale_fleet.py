"""A simulated fleet of search nodes: requests arrive, are routed, wait, are answered and merged.

The clock and the service times are simulated; routing is not. Which shards a filter leaves, which
lists a query probes and how unequal the lists are is taken from a real index, by the code that a
search runs. Three ways to divide an index among nodes:

``rows``
    A part of the rows on each node. Every node answers every query.
``places``
    Rows that are neighbours on the ground on one node, as `index build` divides them. A query with
    a region asks the nodes within it.
``lists``
    Whole lists on each node. A query asks the nodes that have the lists it probes; the client
    compares the centres.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.scale_model import Archive, Constants, cpu_ns

Layout = Literal["rows", "places", "lists"]
LAYOUTS: tuple[Layout, ...] = ("rows", "places", "lists")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Nodes of equal size, and what a message costs.

    Attributes
    ----------
    nodes, cores
        Their number, and the cores of each.
    message_ns
        CPU time of the client for each node that it asks.
    network_ns
        Time of a message on its way, one way.
    """

    nodes: int
    cores: int
    message_ns: float
    network_ns: float = 100_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """What real queries ask of a real index.

    Attributes
    ----------
    parts
        The number of parts that the index is divided into on the ground.
    within
        For each query with a region, the parts that it touches.
    probed
        The lists (Q, P) that each query probes.
    list_rows
        The rows (nlist,) of the lists.
    """

    parts: int
    within: Sequence[npt.NDArray[np.int64]]
    probed: npt.NDArray[np.int64]
    list_rows: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Queries a second that the busiest part allows; latencies of requests at a part of that load.

    ``asked`` is the mean number of nodes that a request asks.
    """

    queries_a_second: float
    p50_ms: float
    p99_ms: float
    asked: float
    busiest: str


def simulate(
    layout: Layout,
    fleet: Fleet,
    archive: Archive,
    constants: Constants,
    routes: Routes,
    *,
    batch: int = 1,
    regions: float = 0.0,
    load: float = 0.7,
    spread: Floats | None = None,
    requests: int = 5000,
    seed: int = 0,
) -> Outcome:
    """Simulate requests at a part of the load that the fleet can bear.

    Parameters
    ----------
    layout, fleet, archive, constants, routes
        What is simulated.
    batch
        Queries of a request; the cores of a node divide a batch among them.
    regions
        The share of requests with a region.
    load
        The share of time for which the busiest part of the fleet works.
    spread
        Factors by which real service times differ from their median; 1 by default.
    requests, seed
        Their number, and the seed of arrivals.
    """
    rng = np.random.default_rng(seed)
    owner = owners(routes.list_rows, fleet.nodes)
    asked = [
        _asked(layout, fleet, archive, constants, routes, owner, rng, regions, batch)
        for _ in range(requests)
    ]
    work = np.zeros(fleet.nodes)
    for parts in asked:
        for node, ns in parts:
            work[node] += ns
    messages = sum(len(parts) for parts in asked)
    fan_out = messages / requests
    prepare = batch * archive.lists * constants.centre if layout == "lists" else 0.0
    at_client = prepare + fan_out * (fleet.message_ns + batch * constants.merge)
    # Requests a second. Each node also runs one core's worth of clients.
    limits = {
        "search nodes": fleet.cores * 1e9 / (work.max() / requests),
        "clients": fleet.nodes * 1e9 / at_client,
    }
    busiest = min(limits, key=lambda name: limits[name])
    arrivals = np.cumsum(rng.exponential(1e9 / (load * limits[busiest]), requests))
    factors = rng.choice(np.ones(1) if spread is None else spread, messages)
    merging = batch * constants.merge
    latencies = _served(arrivals, asked, factors, fleet, prepare, merging, together=batch > 1)
    p50, p99 = np.percentile(latencies, (50, 99)) / 1e6
    return Outcome(
        queries_a_second=batch * limits[busiest],
        p50_ms=float(p50),
        p99_ms=float(p99),
        asked=fan_out,
        busiest=busiest,
    )


def _asked(
    layout: Layout,
    fleet: Fleet,
    archive: Archive,
    constants: Constants,
    routes: Routes,
    owner: npt.NDArray[np.int64],
    rng: np.random.Generator,
    regions: float,
    batch: int,
) -> list[tuple[int, float]]:
    """Return the nodes that a request asks, each with its CPU time there."""
    if layout == "lists":
        relative = routes.list_rows / routes.list_rows.mean()
        times: dict[int, float] = {}
        for query in rng.integers(len(routes.probed), size=batch).tolist():
            probed = routes.probed[query]
            lists = np.bincount(owner[probed], relative[probed], minlength=fleet.nodes)
            lists *= archive.probes / len(probed)
            for node in np.flatnonzero(lists).tolist():
                own = cpu_ns(constants, archive, lists=lists[node], centres=False)
                times[node] = times.get(node, 0.0) + own
        return list(times.items())
    own = batch * cpu_ns(constants, archive, fleet.nodes)
    nodes = range(fleet.nodes)
    if layout == "places" and rng.random() < regions:
        touched = routes.within[rng.integers(len(routes.within))]
        nodes = np.unique(touched * fleet.nodes // routes.parts).tolist()
    return [(node, own) for node in nodes]


def owners(list_rows: npt.NDArray[np.int64], nodes: int) -> npt.NDArray[np.int64]:
    """Return the node (nlist,) of each list: the longest first, each to the emptiest node.

    Examples
    --------
    >>> owners(np.array([5, 1, 4, 2]), 2).tolist()
    [0, 0, 1, 1]
    """
    filled = [(0, node) for node in range(nodes)]
    owner = np.empty(len(list_rows), dtype=np.int64)
    for number in np.argsort(-list_rows, kind="stable").tolist():
        rows, node = heapq.heappop(filled)
        owner[number] = node
        heapq.heappush(filled, (rows + int(list_rows[number]), node))
    return owner


def _served(
    arrivals: Floats,
    asked: Sequence[Sequence[tuple[int, float]]],
    factors: Floats,
    fleet: Fleet,
    prepare: float,
    merging: float,
    *,
    together: bool,
) -> Floats:
    """Return the latency of each request: nodes serve in the order in which messages arrive.

    A request takes turns at the clients, which prepare it, send its messages one after the other
    and, when the last answer is there, merge. The cores of a node work ``together`` on a message,
    or each on one of its own.
    """
    clients = [0.0] * fleet.nodes
    messages: list[tuple[float, int, int, float]] = []
    sent = iter(factors.tolist())
    for request, (arrival, parts) in enumerate(zip(arrivals.tolist(), asked, strict=True)):
        client = request % fleet.nodes
        now = max(arrival, clients[client]) + prepare
        for node, ns in parts:
            now += fleet.message_ns
            messages.append((now + fleet.network_ns, request, node, ns * next(sent)))
        clients[client] = now + len(parts) * merging
    servers, speed = (1, fleet.cores) if together else (fleet.cores, 1)
    free = [[0.0] * servers for _ in range(fleet.nodes)]
    done = np.zeros(len(arrivals))
    for at, request, node, ns in sorted(messages):
        finished = max(at, free[node][0]) + ns / speed
        heapq.heapreplace(free[node], finished)
        done[request] = max(done[request], finished)
    fan_out = np.array([len(parts) for parts in asked])
    return done + fleet.network_ns + fan_out * merging - arrivals
