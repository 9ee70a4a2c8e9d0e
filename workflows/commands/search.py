"""`skysift search`: the tiles most like something."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.commands.search_examples import check_examples, example_options, examples
from workflows.console import format_table

if TYPE_CHECKING:
    from pipeline.queries import Query
    from pipeline.search import Hits, Searcher

_WIDE = 100


@click.command(
    "search",
    cls=Verb,
    example="""
    skysift search --index work/index --lonlat=-99.15,47.02 -k 5
    skysift search -r naip-series --tile epsg26914-5-64/1520/-16278 --since 2012-01-01
    skysift search -r naip-series --image chip.png --out hits.geojson
    skysift search -r naip-series --tile A/1/2 --tile A/1/3 --not-tile A/5/5 --min-score 0.8
    skysift search -r naip-series --like-label water --each --out hits.parquet""",
)
@recipe_option("--index", "index.uri", "Index to search.", metavar="URI")
@example_options
@recipe_option("-k --k", "search.k", "Number of hits.", type=int, metavar="N")
@recipe_option(
    "--bbox", "search.filter.bbox", "Only in this box.", type=float, nargs=4, metavar="W S E N"
)
@recipe_option(
    "--polygon", "search.filter.polygon", "Only in this polygon: WKT or GeoJSON.", metavar="TEXT"
)
@recipe_option("--since", "search.filter.since", "Only from then on.", metavar="DATE")
@recipe_option("--until", "search.filter.until", "Only up to then.", metavar="DATE")
@recipe_option(
    "--max-cloud-fraction",
    "search.filter.max_cloud_fraction",
    "Only with no more cloud.",
    type=float,
    metavar="FRACTION",
)
@recipe_option(
    "--in-scene",
    "search.filter.scenes",
    "Only in this scene; again for more.",
    multiple=True,
    metavar="ID",
)
@recipe_option(
    "--label",
    "search.filter.labels",
    "Only with this label; again for more.",
    multiple=True,
    metavar="NAME",
)
@click.option("--min-score", type=float, metavar="S", help="All hits with this score, not -k.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    metavar="N",
    help="With --min-score: no more of each query (10,000).",
)
@click.option("--each", is_flag=True, help="Ask with each example by itself; needs --out.")
@click.option("--include-self", is_flag=True, help="Keep the tiles that ask among the hits.")
@recipe_option("--encoder", "encoder.bundle", "Bundle for --image; the archive's.", metavar="URI")
@click.option("--out", metavar="URI", help="Write the hits to a .geojson, .parquet or .csv file.")
@pass_run
def search(run: Run, /, **options: Any) -> None:
    """Find the tiles most like examples: images, places, tiles, scenes, labels or vectors.

    Several examples make one query, their mean; --not- examples are subtracted with half the
    weight. With --each they are asked one by one and all hits go to one GeoParquet file, however
    many. Searches in this process; on the cluster's search actors when the recipe names a cluster
    or RAY_ADDRESS is set.
    """
    from pipeline.queries import combine

    _check(options)
    with _searcher(run) as searcher:
        positive, negative = examples(run, searcher, options)
        asking = _Asking(run, searcher, options)
        if options["each"]:
            asking.each(positive)
        else:
            alone = len(positive) == 1 and not negative
            asking.one(positive[0] if alone else combine(positive, negative))


def _check(options: dict[str, Any]) -> None:
    from workflows.hits import check_format

    check_examples(options)
    out = options["out"]
    if out:
        check_format(out)
    if options["each"] and not (out and out.lower().endswith(".parquet")):
        raise click.UsageError("--each writes GeoParquet; give --out FILE.parquet")


@contextmanager
def _searcher(run: Run) -> Iterator["Searcher"]:
    from pipeline.search import Searcher

    uri = run.need_path("index.uri", "--index")
    if run.recipe.cluster.address is None and not os.environ.get("RAY_ADDRESS"):
        yield Searcher.local(uri, options=run.storage)
        return
    with run.ray():
        yield Searcher.connect(uri, options=run.storage, replicas=run.recipe.search.replicas)


class _Asking:
    """Asks an index as the options say, and shows or writes the hits."""

    def __init__(self, run: Run, searcher: "Searcher", options: dict[str, Any]) -> None:
        from workflows.build import search_filter

        self._run, self._searcher, self._options = run, searcher, options
        self._where = search_filter(run.settings)
        by_score = options["min_score"] is not None
        self._k: int = options["limit"] if by_score else run.recipe.search.k
        self._rows = searcher.manifest.rows
        self._truncated = 0

    def one(self, query: "Query") -> None:
        """Show the hits of one query."""
        from pipeline.search_batch import hits_without
        from workflows.hits import hit_records, write_hits

        own = () if self._options["include_self"] else query.rows
        hits = self._search(query.vector, min(self._k + len(own), self._rows))
        table = hits_without(hits.to_arrow(), [query], self._k) if own else hits.to_arrow()
        if self._options["out"]:
            write_hits(table, self._options["out"], self._run.storage)
        records = hit_records(table)
        answer = {
            "query": query.label,
            "snapshot": hits.snapshot,
            "version": hits.version,
            "coverage": hits.coverage,
            "truncated": bool(self._truncated),
            "hits": records,
        }
        lines = [f"like {query.label}", *_lines(records)] if records else ["no hits"]
        self._run.show(answer, lines + self._warnings())

    def each(self, queries: list["Query"]) -> None:
        """Write the hits of every query, block by block."""
        from pipeline.search_batch import search_each
        from storage.geoparquet import write_geoparquet

        out, keep = self._options["out"], self._options["include_self"]
        tables = search_each(queries, self._search, self._k, self._rows, keep_own=keep)
        count = write_geoparquet(tables, out, self._run.storage)
        manifest = self._searcher.manifest
        answer = {
            "queries": len(queries),
            "hits": count,
            "out": out,
            "snapshot": manifest.snapshot,
            "version": manifest.version,
            "truncated": self._truncated,
        }
        lines = [f"{count:,} hits of {len(queries):,} queries written to {out}"]
        self._run.show(answer, lines + self._warnings())

    def _search(self, vectors: Any, k: int) -> "Hits":
        least = self._options["min_score"]
        if least is None:
            return self._searcher.search(vectors, k, self._where)
        hits = self._searcher.search_above(vectors, least, self._where, limit=k)
        self._truncated += len(hits.truncated)
        return hits

    def _warnings(self) -> list[str]:
        if not self._truncated:
            return []
        return [
            f"{self._truncated:,} queries have more hits than {self._k:,}: raise --limit, or "
            "--min-score"
        ]


def _lines(records: list[dict[str, Any]]) -> list[str]:
    """Lay hits out as a table; a grid that all hits share is named once, above it."""
    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    grids = {record["tile_key"].rsplit("/", 2)[0] for record in records}
    cut = len(next(iter(grids))) + 1 if len(grids) == 1 else 0
    columns = ["rank", "score", "date", "tile", "scene"]
    rows = [
        [r["rank"], r["score"], r["datetime"].date().isoformat(), r["tile_key"][cut:], r["scene"]]
        for r in records
    ]
    if width >= _WIDE:
        columns.insert(3, "lon,lat")
        for row, record in zip(rows, records, strict=True):
            west, south, east, north = record["bbox"]
            middle = (west + east + (360 if east < west else 0)) / 2
            row.insert(3, f"{middle:.4f},{(south + north) / 2:.4f}")
    heading = [f"tiles of grid {grids.pop()}/"] if cut else []
    return [*heading, *format_table(columns, rows, width)]
