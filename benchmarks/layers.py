"""Pages of the layers: the time of each, wherever it lies.

    python -m benchmarks.layers [--full]

A page of 1,000 tiles is made in this process, without HTTP and JSON, at the beginning of an index
and in the last of its four shards.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Row, publish
from benchmarks.vectors import make_archive
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from workflows.service.collections import Tiles, Wanted

SHARDS = 4
PAGES = 10
LIMIT = 1000


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="Four million rows in place of one.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bm") as folder, ray_session():
        publish("layers", layer_rows(Path(folder), 4_000_000 if given.full else 1_000_000))


def layer_rows(folder: Path, rows: int) -> list[Row]:
    """Return a figure for each filter, over an index of so many rows."""
    archive = make_archive(folder, rows, dimension=8, clusters=64)
    build_index(archive, str(folder / "index"), IndexSpec(kind="flat", shards=SHARDS))
    searcher = Searcher.local(str(folder / "index"))
    return [_row(searcher, name, where, rows) for name, where in _filters(searcher).items()]


def _filters(searcher: Searcher) -> dict[str, Filter]:
    """Return no filter, a box of some tiles of the last shard, and a wide box and a year."""
    columns, _ = searcher.page(Filter(), 1, (SHARDS - 1, 0))
    x, y = columns["bbox"][0, :2].tolist()
    small, wide = (x - 0.1, y - 0.1, x + 0.1, y + 0.1), (x - 10, y - 10, x + 10, y + 10)
    return {
        "no condition": Filter(),
        "a box of 20 km": Filter(bbox=small),
        "a box of 20 degrees and a year": Filter(bbox=wide, since="2023-01-01", until="2023-12-31"),
    }


def _row(searcher: Searcher, name: str, where: Filter, rows: int) -> Row:
    first, count = _pages(searcher, where, None)
    last, _ = _pages(searcher, where, f"{SHARDS - 1}.0")
    early, late = (1000 * statistics.median(times) for times in (first, last))
    return Row(
        what=f"page of up to 1,000 of {rows:,} tiles, {name}: in the last shard",
        ours=late,
        unit="ms",
        peer=early,
        against="the first pages",
        ratio=late / early,
        goal=1.5,
        direction="at most",
        note=f"median of at most {PAGES} pages; the slowest page took "
        f"{1000 * max(first + last):.0f} ms, the first {PAGES} held {count:,} tiles.",
    )


def _pages(searcher: Searcher, where: Filter, token: str | None) -> tuple[Sequence[float], int]:
    """Return the seconds of each page from a place on, and the number of tiles on them."""
    tiles, times, count = Tiles(searcher), [], 0
    for _ in range(PAGES):
        started = time.perf_counter()
        page = tiles.page(Wanted(where=where, limit=LIMIT, token=token))
        times.append(time.perf_counter() - started)
        count += len(page.features)
        if (token := page.token) is None:
            break
    return times, count


if __name__ == "__main__":
    main()
