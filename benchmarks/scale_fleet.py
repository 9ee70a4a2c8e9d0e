"""A simulated fleet of search nodes: queries arrive, are routed, wait, are answered and merged.

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
    """Queries a second that the busiest node allows, and the latencies at a part of that load."""

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
    regions: float = 0.0,
    load: float = 0.7,
    spread: Floats | None = None,
    queries: int = 20_000,
    seed: int = 0,
) -> Outcome:
    """Simulate queries at a part of the load that the fleet can bear.

    Parameters
    ----------
    layout, fleet, archive, constants, routes
        What is simulated.
    regions
        The share of queries with a region.
    load
        The share of time for which the busiest part of the fleet works.
    spread
        Factors by which real service times differ from their median; 1 by default.
    queries, seed
        Their number, and the seed of arrivals.
    """
    rng = np.random.default_rng(seed)
    owner = owners(routes.list_rows, fleet.nodes)
    asked = [
        _asked(layout, fleet, archive, constants, routes, owner, rng, regions)
        for _ in range(queries)
    ]
    work = np.zeros(fleet.nodes)
    for parts in asked:
        for node, ns in parts:
            work[node] += ns
    messages = sum(len(parts) for parts in asked)
    fan_out = messages / queries
    at_client = fan_out * (fleet.message_ns + constants.merge)
    if layout == "lists":
        at_client += archive.lists * constants.centre
    # Each node also runs one core's worth of clients.
    limits = {
        "search nodes": fleet.cores * 1e9 / (work.max() / queries),
        "clients": fleet.nodes * 1e9 / at_client,
    }
    busiest = min(limits, key=lambda name: limits[name])
    arrivals = np.cumsum(rng.exponential(1e9 / (load * limits[busiest]), queries))
    factors = rng.choice(np.ones(1) if spread is None else spread, messages)
    latencies = _served(arrivals, asked, factors, fleet, constants, archive, layout)
    p50, p99 = np.percentile(latencies, (50, 99)) / 1e6
    return Outcome(
        queries_a_second=limits[busiest],
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
) -> list[tuple[int, float]]:
    """Return the nodes that a query asks, each with its CPU time there."""
    if layout == "lists":
        probed = routes.probed[rng.integers(len(routes.probed))]
        relative = routes.list_rows / routes.list_rows.mean()
        lists = np.bincount(owner[probed], relative[probed], minlength=fleet.nodes)
        lists *= archive.probes / len(probed)
        times = {
            node: cpu_ns(constants, archive, lists=lists[node], centres=False)
            for node in np.flatnonzero(lists).tolist()
        }
        return list(times.items())
    own = cpu_ns(constants, archive, fleet.nodes)
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
    constants: Constants,
    archive: Archive,
    layout: Layout,
) -> Floats:
    """Return the latency (Q,) of each query: nodes serve in the order in which requests arrive.

    A query takes turns at the clients, which send its messages one after the other and, when the
    last answer is there, merge.
    """
    clients = [0.0] * fleet.nodes
    first = archive.lists * constants.centre if layout == "lists" else 0.0
    requests: list[tuple[float, int, int, float]] = []
    sent = iter(factors.tolist())
    for query, (arrival, parts) in enumerate(zip(arrivals.tolist(), asked, strict=True)):
        client = query % fleet.nodes
        now = max(arrival, clients[client]) + first
        for node, ns in parts:
            now += fleet.message_ns
            requests.append((now + fleet.network_ns, query, node, ns * next(sent)))
        clients[client] = now + len(parts) * constants.merge
    free = [[0.0] * fleet.cores for _ in range(fleet.nodes)]
    done = np.zeros(len(arrivals))
    for at, query, node, ns in sorted(requests):
        finished = max(at, free[node][0]) + ns
        heapq.heapreplace(free[node], finished)
        done[query] = max(done[query], finished)
    merging = np.array([len(parts) for parts in asked]) * constants.merge
    return done + fleet.network_ns + merging - arrivals
