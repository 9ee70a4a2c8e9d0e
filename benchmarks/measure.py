"""What every benchmark shares: rows of one table, measuring in turns, the machine, the JSON file.

A benchmark module measures, makes a `Row` of each figure, and calls `publish`; ``make bench`` and
``docs/performance.md`` are made from the JSON files that it leaves beside the modules.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent
_PACKAGES = (
    "dask",
    "faiss-cpu",
    "faiss-gpu",
    "icechunk",
    "numpy",
    "rasterio",
    "ray",
    "torch",
    "zarr",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure beside its peer or limit of the same run.

    Attributes
    ----------
    what
        What was measured, with its sizes.
    ours, peer
        The two figures, in `unit`; `peer` is None where only a goal in `unit` is stated.
    against
        The name of the peer or limit.
    ratio
        What the goal speaks of: usually the median of the ratios of neighbouring turns; the figure
        itself where there is no peer.
    goal, direction
        The ratio wanted, and which side of it is good; None where nothing was promised.
    note
        What limits it, in a sentence.
    """

    what: str
    ours: float
    unit: str
    ratio: float
    peer: float | None = None
    against: str = ""
    goal: float | None = None
    direction: Literal["at least", "at most"] = "at least"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.direction == "at least" else self.ratio <= self.goal


_PAUSE_S = 0.02


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rested(call: Callable[[], object]) -> float:
    """Return the seconds of one call, after a pause in which what others left spinning rests."""
    time.sleep(_PAUSE_S)
    return seconds(call)


def in_turns(
    ours: Callable[[], object], peer: Callable[[], object], turns: int, calls: int = 1
) -> tuple[float, float, float]:
    """Measure two calls one after the other, so that other work on the machine touches both alike.

    With several ``calls``, each is called so often in a row in its turn, as for a throughput.

    Returns
    -------
    tuple of float
        Median seconds of a call of ours, of the peer, and the median of the ratios ours / peer.
        The first turn warms up and does not count.
    """

    def turn(call: Callable[[], object]) -> float:
        return rested(lambda: [call() for _ in range(calls)]) / calls

    pairs = [(turn(ours), turn(peer)) for _ in range(turns + 1)][1:]
    return (
        statistics.median(own for own, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(own / other for own, other in pairs),
    )


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES if any(distributions(name=name))},
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text: a line of figures under each name.

    Examples
    --------
    >>> print(table([Row(what="reads", ours=9.0, unit="tiles/s", peer=10.0, against="a loop",
    ...                  ratio=0.9, goal=0.95)]))
    reads
        9 tiles/s, a loop 10: ratio 0.9, goal at least 0.95: NOT MET
    """
    return "\n".join(f"{row.what}\n    {_figures(row)}" for row in rows)


def _figures(row: Row) -> str:
    text = f"{row.ours:.4g} {row.unit}"
    if row.peer is not None:
        text += f", {row.against} {row.peer:.4g}: ratio {row.ratio:.3g}"
    if row.goal is not None:
        verdict = "met" if row.met else "NOT MET"
        text += f", goal {row.direction} {row.goal:g}: {verdict}"
    return f"{text}\n    {row.note}" if row.note else text


def publish(
    name: str, rows: Sequence[Row], *, partial: bool = False, folder: Path = FOLDER
) -> None:
    """Print the rows and keep them in ``<folder>/<name>.json`` with the machine.

    ``partial`` also keeps what that file has and was not measured again.
    """
    print(table(rows))
    file, again = folder / f"{name}.json", {row.what for row in rows}
    before = json.loads(file.read_text())["rows"] if partial and file.exists() else []
    listed = [row for row in before if row["what"] not in again]
    listed += [{**asdict(row), "met": row.met} for row in rows]
    file.write_text(json.dumps({"machine": machine(), "rows": listed}, indent=1) + "\n")
