"""Cost of exact retrieval metrics, beside the matrix product that an exact ranking requires.

    python -m benchmarks.metrics [--full]

Random unit vectors of 128 numbers, 17 long-tailed labels. ``--full`` scores 100,000 queries against
a million rows, which takes an hour or more; without it so few queries are measured that the time
for 100,000 is an extrapolation (work grows with the queries; a fixed part is measured apart).
Every measurement is made in a fresh process, whose peak of memory it reports.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.measure import Row, publish
from encoders.metrics import score_retrieval

DIMENSION, LABELS, ITEMS, QUERIES = 128, 17, 1_000_000, 100_000
_SPAWN = multiprocessing.get_context("spawn")
Found = dict[str, float]


def world(queries: int, items: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Return queries and database with their labels."""
    rng = np.random.default_rng(0)
    count = queries + items
    y = (rng.random((count, LABELS)) < np.geomspace(0.6, 0.01, LABELS)).astype(np.uint8)
    z = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z[:queries], y[:queries], z[queries:], y[queries:]


def scored(queries: int, items: int, full: bool) -> Found:
    """Score queries after a warm-up; return seconds, and the growth of memory in bytes."""
    z_QD, y_QC, z_ND, y_NC = world(queries, items)
    few = min(2, queries)
    before = _peak_bytes()
    started = time.perf_counter()
    score_retrieval(z_QD[:few], y_QC[:few], z_ND, y_NC, full=full)
    fixed_s = time.perf_counter() - started
    started = time.perf_counter()
    score_retrieval(z_QD, y_QC, z_ND, y_NC, full=full)
    return {
        "seconds": time.perf_counter() - started,
        "fixed_s": fixed_s,
        "bytes": _peak_bytes() - before,
    }


def multiplied(queries: int, items: int) -> Found:
    """Multiply the same vectors in float64, block by block: the floor of an exact ranking."""
    z_QD, _, z_ND, _ = world(queries, items)
    unit_QD, unit_DN = z_QD.astype(np.float64), np.ascontiguousarray(z_ND.T, np.float64)
    out = np.empty((min(queries, 256), 8192))
    started = time.perf_counter()
    for first in range(0, queries, 256):
        rows = unit_QD[first : first + 256]
        for start in range(0, items - items % 8192, 8192):
            np.matmul(rows, unit_DN[:, start : start + 8192], out=out[: len(rows)])
    return {"seconds": time.perf_counter() - started}


def fresh(work: Callable[..., Found], *arguments: Any) -> Found:
    """Call a function of this module in a process of its own."""
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    found: Found = receiver.recv()
    process.join()
    return found


def _send(sender: Connection, work: Callable[..., Found], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(queries: int, items: int) -> list[Row]:
    """Return the rows of the table."""
    floor = 1e3 * fresh(multiplied, queries, items)["seconds"] / queries
    rows, peaks = [], []
    for full, what in ((True, "All scores, whole rankings"), (False, "Scores of the first 50")):
        found = fresh(scored, queries, items, full)
        peaks.append(found["bytes"])
        fixed_s = found["fixed_s"]
        each_ms = 1e3 * max(found["seconds"] - fixed_s, 0.0) / queries
        hours = (fixed_s + each_ms / 1e3 * QUERIES) / 3600
        method = "measured" if queries >= QUERIES else "extrapolated"
        rows.append(
            Row(
                what=f"{what}: {queries:,} queries x {items:,} rows",
                ours=each_ms,
                peer=floor,
                unit="ms/query",
                against="matrix product alone, float64",
                ratio=each_ms / floor,
                note=f"{QUERIES:,} queries: {hours:.2f} h ({method}); "
                f"{fixed_s:.1f} s of it do not depend on them.",
            )
        )
    matrix = 4.0 * QUERIES * items
    rows.append(
        Row(
            what=f"Memory beyond the vectors, {queries:,} queries x {items:,} rows",
            ours=max(peaks) / 2**30,
            peer=matrix / 2**30,
            unit="GiB",
            against=f"the float32 matrix of {QUERIES:,} queries",
            ratio=max(peaks) / matrix,
            goal=0.01,
            direction="at most",
            note="Does not grow with the queries: the database in float64, and chunks of keys.",
        )
    )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="all 100,000 queries; hours")
    parser.add_argument("--queries", type=int, default=512)
    chosen = parser.parse_args(arguments)
    publish("metrics", measure(QUERIES if chosen.full else chosen.queries, ITEMS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
