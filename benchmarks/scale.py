"""What 100 million and a billion rows take: a model, a simulated fleet, and a run that confirms it.

    python -m benchmarks.scale                    # measure constants, simulate, write docs/scale.md
    python -m benchmarks.scale --confirm 30000000 --folder FOLDER

The second form builds a real index in a folder, searches it, and compares what it took with what
the model says.
"""

import argparse
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.measure import Row, machine, table
from benchmarks.scale_fleet import LAYOUTS, Fleet, Outcome, Routes, simulate
from benchmarks.scale_model import (
    PROBES,
    Archive,
    Constants,
    build_hours,
    cpu_ns,
    measured,
)
from benchmarks.search import Echo
from benchmarks.vectors import clustered, make_archive
from pipeline.indexing.driver import build_index
from pipeline.indexing.plan import lists_for
from pipeline.indexing.spec import IndexSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.fleet import Placement
from pipeline.search.hits import merge
from pipeline.search.node import SearchNode
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from storage.index.manifest import read_manifest
from storage.index.plan import plan_search
from storage.index.ranking import canonical_queries
from storage.location import Location

PAGE = Path(__file__).parent.parent / "docs/scale.md"
_PARTS, _SMALL_ROWS, _QUERIES, _BATCH = 64, 200_000, 2048, 256
_NODE_CORES, _NODE_BYTES, _NODE_PRICE = 16, 64e9, 0.8
_USED = 0.8
_CONFIRM_LISTS, _SAMPLE = 4096, 64


def fleets(archive: Archive) -> tuple[int, ...]:
    """Return the least nodes that hold an archive in memory, and four and sixteen times those."""
    least = math.ceil(archive.memory_bytes / (_USED * _NODE_BYTES))
    return least, 4 * least, 16 * least


def real_routes(index: str) -> tuple[Routes, np.ndarray[Any, Any]]:
    """Return what queries ask of a small real index, and how unequal their times are."""
    manifest = read_manifest(index)
    searcher = Searcher.local(index)
    queries = next(clustered(_QUERIES, manifest.parameters.dimension, seed=99))
    exact = canonical_queries(queries, manifest.parameters.dimension)
    group = searcher._backend._groups[0]
    probed = group.probes(exact.astype(np.float32), manifest.nprobe).lists
    within = []
    for shard in manifest.shards:  # a region around the middle of each shard's box
        west, south, east, north = shard.bbox
        lon, lat = (west + east) / 2, (south + north) / 2
        box = (max(lon - 5, -180), max(lat - 5, -90), min(lon + 5, 180), min(lat + 5, 90))
        names = plan_search(manifest, 10, Filter(bbox=box)).shards
        order = [entry.name for entry in manifest.shards]
        within.append(np.array([order.index(name) for name in names]))
    taken = []
    for query in queries:
        started = time.perf_counter()
        searcher.search(query, 10)
        taken.append(time.perf_counter() - started)
    _merges_like_one(index, searcher, queries[:64])
    routes = Routes(
        parts=len(manifest.shards), within=within, probed=probed, list_rows=group.list_rows
    )
    return routes, np.array(taken) / statistics.median(taken)


def _merges_like_one(
    index: str, whole: Searcher, queries: np.ndarray[Any, Any], nodes: int = 8
) -> None:
    """Check that a query divided among nodes and merged has the answer of one node."""
    manifest = read_manifest(index)
    placement = Placement(actors=nodes, replicas=1)
    held: dict[int, dict[str, int]] = {}
    for number, shard in enumerate(manifest.shards):
        held.setdefault(placement.holders(number)[0], {})[shard.name] = 0
    plan = plan_search(manifest, 10, None, manifest.parameters.nlist)
    sent = canonical_queries(queries, manifest.parameters.dimension).astype(np.float32)
    answers = [
        SearchNode(Location.of(index), manifest.version, names, 1).search(
            replace(plan, shards=tuple(names)), sent
        )
        for names in held.values()
    ]
    merged = merge(answers, len(queries), 10, whole._columns)
    expected = whole.search(queries, 10, nprobe=manifest.parameters.nlist)
    if not (merged.rows == expected.rows).all():
        raise AssertionError("nodes that are merged answer otherwise than one node")


def message_ns(actors: int = 4, turns: int = 200) -> float:
    """Return the CPU time of a client for one message to an actor and its answer."""
    echoes = [Echo.remote() for _ in range(actors)]
    query = np.zeros((1, 128), np.float32)
    ray.get([echo.answer.remote(query) for echo in echoes])
    started = time.process_time_ns()
    for _ in range(turns):
        ray.get([echo.answer.remote(query) for echo in echoes])
    taken = (time.process_time_ns() - started) / turns / actors
    for echo in echoes:
        ray.kill(echo)
    return taken


def archives() -> Iterator[Archive]:
    """Yield the sizes of the page."""
    for dimension in (128, 768):
        for rows in (100_000_000, 1_000_000_000):
            yield Archive(rows=rows, dimension=dimension, lists=lists_for(rows))


def simulated(
    constants: dict[int, Constants], routes: Routes, spread: Any, message: float
) -> list[dict[str, Any]]:
    """Return a record of each archive, fleet and layout."""
    records = []
    for archive in archives():
        found = constants[archive.dimension]
        for nodes in fleets(archive):
            fleet = Fleet(nodes=nodes, cores=_NODE_CORES, message_ns=message)
            for layout in LAYOUTS:
                one, many = (
                    simulate(
                        layout, fleet, archive, found, routes,
                        batch=batch, regions=0.5, spread=spread if batch == 1 else None,
                        requests=requests,
                    )
                    for batch, requests in ((1, 5000), (_BATCH, 500))
                )  # fmt: skip
                records.append(_record(archive, fleet, layout, one, many, found))
    return records


def _record(
    archive: Archive,
    fleet: Fleet,
    layout: str,
    one: Outcome,
    many: Outcome,
    constants: Constants,
) -> dict[str, Any]:
    return {
        "rows": archive.rows,
        "dimension": archive.dimension,
        "lists": archive.lists,
        "layout": layout,
        "nodes": fleet.nodes,
        "memory_gb": archive.memory_bytes / 1e9,
        "disk_gb": archive.disk_bytes / 1e9,
        "price_an_hour": fleet.nodes * _NODE_PRICE,
        "build_hours": build_hours(constants, archive, fleet.nodes * fleet.cores),
        "one": asdict(one),
        "many": asdict(many),
    }


def page_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the records as a table of Markdown."""
    heads = ("rows", "D", "memory, disk", "nodes", "$/h", "build h", "layout", "nodes asked")
    heads += ("queries/s one by one", "p50, p99 ms", f"queries/s by {_BATCH}", "p50, p99 ms")
    lines = [" | ".join(heads), "|".join("---" for _ in heads)]
    lines += [
        f"{r['rows'] / 1e6:,.0f} M | {r['dimension']} | {r['memory_gb']:,.0f}, "
        f"{r['disk_gb']:,.0f} GB | {r['nodes']} | {r['price_an_hour']:.1f} | "
        f"{r['build_hours']:.2f} | {r['layout']} | {r['one']['asked']:.1f} | "
        f"{_load(r['one'])} | {_load(r['many'])}"
        for r in records
    ]
    return [f"| {line} |" for line in lines]


def _load(outcome: dict[str, Any]) -> str:
    busiest = "*" if outcome["busiest"] == "clients" else ""
    return (
        f"{outcome['queries_a_second']:,.0f}{busiest} | "
        f"{outcome['p50_ms']:.1f}, {outcome['p99_ms']:.1f}"
    )


def constants_table(constants: dict[int, Constants], message: float) -> list[str]:
    """Return the constants as a table of Markdown."""
    names = [name for name in Constants.__dataclass_fields__ if name != "dimension"]
    lines = [
        f"| D | {' | '.join(f'{name}, ns' for name in names)} | message, ns |",
        "|---" * (len(names) + 2) + "|",
    ]
    for dimension, found in constants.items():
        values = " | ".join(f"{getattr(found, name):,.3g}" for name in names)
        lines.append(f"| {dimension} | {values} | {message:,.0f} |")
    return lines


def write_page(parts: dict[str, Sequence[str]], page: Path = PAGE) -> None:
    """Replace the parts of the page between ``<!-- NAME -->`` and ``<!-- end -->``."""
    text = page.read_text()
    for name, lines in parts.items():
        middle = "\n".join(["", *lines, ""])
        pattern = rf"(<!-- {name} -->).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, t=middle: m[1] + t + m[2], text, flags=re.DOTALL)
    page.write_text(text)


def confirm(rows: int, folder: Path, cores: int) -> list[Row]:
    """Build and search a real index, and compare it with the model."""
    archive = Archive(rows=rows, dimension=128, lists=_CONFIRM_LISTS)
    uri = make_archive(folder, rows)
    index = str(folder / "index")
    shards = max(rows // 4_000_000, 1)
    spec = IndexSpec(
        kind="ivf_pq4", shards=shards, nlist=_CONFIRM_LISTS, sample_rows=_SAMPLE * _CONFIRM_LISTS
    )
    with ray_session(cpus=cores):
        constants = measured(128, cores)
        started = time.perf_counter()
        build_index(uri, index, spec)
        built = (time.perf_counter() - started) / 3600
    before = _memory()
    searcher = Searcher.local(index)
    queries = next(clustered(_QUERIES, seed=99))
    manifest = searcher.manifest
    archive = replace(archive, probes=PROBES, rerank=manifest.rerank)
    ask = partial(searcher.search, k=10, nprobe=PROBES)
    for _ in range(3):
        ask(queries)
    batch = statistics.median(_seconds(lambda: ask(queries)) for _ in range(7)) / _QUERIES
    taken = [_seconds(lambda q=query: ask(q[None])) for query in queries]
    predicted = cpu_ns(constants, archive) / cores / 1e9
    note = f"{rows:,} x 128 in {_CONFIRM_LISTS:,} lists, {PROBES} probed, rerank {manifest.rerank}"
    memory = (_memory() - before) / rows
    expected = archive.memory_bytes / rows
    filled = build_hours(constants, archive, cores, _SAMPLE)
    return [
        Row(
            what=f"time of a query in a batch of {_QUERIES}, {note}",
            ours=1e6 * batch, unit="us", peer=1e6 * predicted, against="the model",
            ratio=batch / predicted,
        ),
        Row(
            what=f"one query in this process, {note}",
            ours=1e3 * statistics.median(taken), unit="ms", ratio=1e3 * statistics.median(taken),
            goal=5.0, direction="at most", note=f"p99 {1e3 * np.percentile(taken, 99):.1f} ms",
        ),
        Row(
            what=f"memory of a row, {note}", ours=memory, unit="bytes", peer=expected,
            against="the model", ratio=memory / expected,
        ),
        Row(
            what=f"build, {note}", ours=built, unit="hours",
            peer=filled, against="the model", ratio=built / filled,
        ),
    ]  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _memory() -> int:
    """Return the anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def main(arguments: list[str] | None = None) -> None:
    """Measure, simulate and write the page; or confirm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--confirm", type=int, metavar="ROWS", help="build and search a real index")
    parser.add_argument("--folder", type=Path, help="with --confirm: where to build; is kept")
    chosen = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    if chosen.confirm:
        folder = chosen.folder or Path(tempfile.mkdtemp(prefix="bench-scale-"))
        folder.mkdir(parents=True, exist_ok=True)
        print(table(confirm(chosen.confirm, folder, cores)))
        return
    with tempfile.TemporaryDirectory() as name, ray_session(cpus=cores):
        constants = {dimension: measured(dimension, cores) for dimension in (128, 768)}
        folder = Path(name)
        index = str(folder / "index")
        spec = IndexSpec(kind="ivf_pq4", shards=_PARTS)
        build_index(make_archive(folder, _SMALL_ROWS), index, spec)
        routes, spread = real_routes(index)
        message = message_ns()
    records = simulated(constants, routes, spread, message)
    here = machine()
    made = f"Measured {here['date']} on {here['processor']}, {here['cores']} cores."
    write_page(
        {
            "constants": [made, "", *constants_table(constants, message)],
            "fleets": page_table(records),
        }
    )
    print("\n".join([*constants_table(constants, message), *page_table(records)]))


if __name__ == "__main__":
    main()
