"""Pages of the layers over a million tiles: the time of each, wherever it lies.

python -m benchmarks.layers --rows 1000000
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.vectors import make_archive
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from workflows.service.collections import Collections, Wanted
from workflows.service.footprints import ScenePlaces


def _filters(searcher: Searcher) -> dict[str, Filter]:
    """Return no filter, a box of some tiles of the last shard, and a wide box and a year."""
    columns, _ = searcher.page(Filter(), 1, (len(searcher.manifest.shards) - 1, 0))
    x, y = columns["bbox"][0, :2].tolist()
    small, wide = (x - 0.1, y - 0.1, x + 0.1, y + 0.1), (x - 10, y - 10, x + 10, y + 10)
    return {
        "everything": Filter(),
        "a box of 20 km": Filter(bbox=small),
        "a box of 20 degrees and a year": Filter(bbox=wide, since="2023-01-01", until="2023-12-31"),
    }


def main() -> None:
    """Build an index of rows and page through it; print milliseconds a page of 1,000 tiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--pages", type=int, default=10, help="Pages to take at each end.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = make_archive(Path(folder), options.rows, dimension=8, clusters=64)
        build_index(archive, f"{folder}/index", IndexSpec(kind="flat", shards=4))
        searcher = Searcher.local(f"{folder}/index")
        tiles = Collections(searcher, ScenePlaces(searcher.archive), None).get("tiles")
        for name, where in _filters(searcher).items():
            for place, start in (("first pages", None), ("last shard", "3.0")):
                times, count, token = [], 0, start
                for _ in range(options.pages):
                    began = time.perf_counter()
                    wanted = Wanted(where=where, limit=options.limit, token=token)
                    found, token, _ = tiles.page(wanted)
                    times.append(1000 * (time.perf_counter() - began))
                    count += len(found)
                    if token is None:
                        break
                print(
                    f"{name}, {place}: {count:,} tiles; first {times[0]:.0f} ms, "
                    f"median {statistics.median(times):.0f} ms, most {max(times):.0f} ms"
                )


if __name__ == "__main__":
    main()
