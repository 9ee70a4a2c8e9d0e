"""`skysift search`: the tiles most like given examples."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.errors import ConfigError
from storage.geometry import centres
from storage.index.filter import Filter
from storage.location import Location
from workflows.commands.common import (
    Area,
    CommaList,
    Run,
    Verb,
    option_group,
    pass_run,
    recipe_option,
)
from workflows.console import format_table
from workflows.recipe.document import read_text

if TYPE_CHECKING:
    from encoders.bundle import Encoder
    from pipeline.search.hits import Hits
    from pipeline.search.query import Query, QueryResolver
    from pipeline.search.searcher import Searcher
    from storage.index.manifest import IndexManifest


_WIDE = 100
_MOST_JSON_BYTES = 256 * 1024 * 1024
_ORDINARY = (
    "nothing in the archive is like it: the best hit is closer than {} of random pairs of tiles"
)
_TRUNCATED = "{:,} queries have more hits than {:,}: raise --limit, or --min-score"
KINDS = ("image", "text", "lonlat", "tile", "vector")
LIKE = ("scene", "label", "bbox", "polygon", "since", "until")


class LonLat(click.ParamType[tuple[float, float]]):
    """Two numbers with a comma between them."""

    name = "LON,LAT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        """Read longitude and latitude in degrees."""
        try:
            lon, lat = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LON,LAT, such as 103.75,17.92", param, ctx)
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            self.fail(f"{value!r} is outside -180..180, -90..90; longitude comes first", param, ctx)
        return lon, lat


marks_option = click.option(
    "--marks",
    metavar="FILE",
    help="Right and wrong marks: GeoJSON or GeoParquet with the column mark, or a saved search.",
)

filter_options = option_group(
    recipe_option("--bbox", "search.filter.bbox", "Only in this box."),
    recipe_option(
        "--polygon",
        "search.filter.polygon",
        "Only in this area: WKT, GeoJSON or a file.",
        type=Area(),
        metavar="AREA",
    ),
    recipe_option("--since", "search.filter.since", "Only from then on."),
    recipe_option("--until", "search.filter.until", "Only up to then."),
    recipe_option("--max-cloud-fraction", "search.filter.max_cloud_fraction"),
    recipe_option("--in-scene", "search.filter.scenes", "Only in this scene; again for more."),
    recipe_option("--label", "search.filter.labels", "Only with this label; again for more."),
)

# Examples, positive and negative, and how to read them.
_many = partial(click.option, multiple=True)
example_options = option_group(
    _many("--image", metavar="FILE", help="Like this PNG, JPEG or GeoTIFF."),
    click.option(
        "--bands",
        type=CommaList(int),
        metavar="N,N,...",
        help="With --image: its bands, in the encoder's order; 0 for one that it lacks.",
    ),
    _many("--text", metavar="WORDS", help="Like these words, if the encoder has a text tower."),
    _many("--lonlat", "--at", type=LonLat(), help="Like the tile at this place."),
    click.option("--date", metavar="DATE", help="With --lonlat: the acquisition nearest to this."),
    _many("--tile", metavar="KEY", help="Like this tile of the archive."),
    click.option("--scene", metavar="ID", help="With --tile: of this scene, not the newest."),
    _many("--vector", metavar="FILE", help="Like the vectors in this .npy or JSON file."),
    _many("--like-scene", metavar="ID", help="Like the tiles of this scene."),
    _many("--like-label", metavar="NAME", help="Like the tiles with this label."),
    click.option(
        "--like-bbox", type=float, nargs=4, metavar="W S E N", help="Like the tiles here."
    ),
    click.option("--like-polygon", type=Area(), help="Like the tiles in this area."),
    click.option("--like-since", metavar="DATE", help="Of those, only from then on."),
    click.option("--like-until", metavar="DATE", help="Of those, only up to then."),
    _many("--not-image", metavar="FILE", help="Unlike this picture."),
    _many("--not-text", metavar="WORDS", help="Unlike these words."),
    _many("--not-lonlat", type=LonLat(), help="Unlike the tile at this place."),
    _many("--not-tile", metavar="KEY", help="Unlike this tile."),
    _many("--not-vector", metavar="FILE", help="Unlike the vectors in this file."),
    marks_option,
)


def _check(options: dict[str, Any]) -> None:
    """Check that there is an example, and that options that go together are given together.

    Raises
    ------
    click.UsageError
        An option is missing or goes with no other option.
    """
    from storage.formats import check_format

    asked = any(options[kind] for kind in KINDS) or _like(options) or options["marks"]
    alone = ("each", "save", "score_map", "suggest")
    asked_else = any(options[name] for name in alone) or options["blend"] is not None
    if options["saved"] and (asked or asked_else):
        raise click.UsageError("--saved brings its own example, blend, filters and number of hits")
    if options["each"] and (options["save"] or options["score_map"]):
        raise click.UsageError("--save and --score-map are of one query; leave --each out")
    if not asked and not options["saved"]:
        raise click.UsageError(
            "give an example: --image, --text, --lonlat, --tile, --vector, tiles by --like-scene, "
            "--like-label, --like-bbox, --like-polygon, --marks, or a --saved search"
        )
    for name, owner in (("bands", "image"), ("date", "lonlat"), ("scene", "tile")):
        if options[name] is not None and not options[owner] and not options[f"not_{owner}"]:
            raise click.UsageError(f"--{name} goes with --{owner}")
    if options["suggest"] and (options["each"] or options["min_score"] is not None):
        raise click.UsageError("--suggest chooses its own tiles; leave --each and --min-score out")
    if options["each"] and options["marks"]:
        raise click.UsageError("--marks make one query; leave --each out")
    if options["each"] and any(options[f"not_{kind}"] for kind in KINDS):
        raise click.UsageError("--each searches one by one; leave the --not- options out")
    out = options["out"]
    if out:
        check_format(out)
    if options["each"] and not (out and out.lower().endswith(".parquet")):
        raise click.UsageError("--each writes GeoParquet; give --out FILE.parquet")


def examples(
    run: Run, searcher: "Searcher", options: dict[str, Any]
) -> tuple[list["Query"], list["Query"]]:
    """Return the queries of the positive and of the negative examples."""
    from pipeline.search.examples import read_marks
    from pipeline.search.query import QueryResolver, combine, load_archive_encoder

    def load() -> "Encoder":
        given = run.recipe.encoder.bundle and run.need_path("encoder.bundle")
        return load_archive_encoder(searcher, given)

    resolver = QueryResolver(searcher, load=load)
    files = searcher.index.with_drivers(run.recipe.catalog.drivers)
    positive = list(_named(resolver, options, "", files))
    like = _like(options)
    if like:
        names = {"scene": "scenes", "label": "labels"}
        tiles = resolver.tiles(Filter(**{names.get(n, n): v for n, v in like.items()}))
        positive += tiles if options["each"] else [combine(tiles)]  # one example, their mean
    negative = list(_named(resolver, options, "not_", files))
    if options["marks"]:
        right, wrong = read_marks(resolver, run.location(options["marks"]))
        return positive + right, negative + wrong
    return positive, negative


def _like(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[f"like_{name}"] for name in LIKE if options[f"like_{name}"]}


def _named(
    resolver: "QueryResolver", options: dict[str, Any], prefix: str, files: Location
) -> Iterator["Query"]:
    for href in options[f"{prefix}image"]:
        yield resolver.image(files.at(href), options["bands"])
    for words in options[f"{prefix}text"]:
        yield resolver.text(words)
    for lon, lat in options[f"{prefix}lonlat"]:
        yield resolver.point(lon, lat, options["date"])
    for key in options[f"{prefix}tile"]:
        yield resolver.tile(key, options["scene"])
    for path in options[f"{prefix}vector"]:
        yield from _vectors(path)


def _vectors(path: str) -> Iterator["Query"]:
    import numpy as np

    from pipeline.search.query import Query

    try:
        if path.endswith(".npy") and Path(path).is_file():
            values = np.load(path, mmap_mode="r", allow_pickle=False)  # its header may lie
        else:
            values = np.asarray(json.loads(read_text(Path(path), _MOST_JSON_BYTES)))
        if values.dtype.kind not in "iuf":
            raise ValueError(f"it holds {values.dtype.name}")
        vectors = np.atleast_2d(np.asarray(values, np.float32))
    except (ValueError, EOFError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} holds no vector of numbers ({error}); give .npy or JSON") from (
            error
        )
    if vectors.ndim != 2:
        raise ConfigError(f"{path} holds an array of {vectors.ndim} dimensions; give one or two")
    for number, vector in enumerate(vectors):
        yield Query(vector=vector, label=path if len(vectors) == 1 else f"{path} {number}")


@click.command(
    "search",
    cls=Verb,
    example="""
    skysift search --index work/index --lonlat=-99.15,47.02 -k 5
    skysift search -r naip-series --tile epsg26914-5-64/1520/-16278 --since 2012-01-01
    skysift search -r naip-series --image chip.png --out hits.geojson
    skysift search --index work/index --text "solar farm in desert"
    skysift search -r naip-series --tile A/1/2 --tile A/1/3 --not-tile A/5/5 --min-score 0.8
    skysift search -r naip-series --like-label water --each --out hits.parquet
    skysift search --index work/index --lonlat=-99.15,47.02 --score-map lake.pmtiles
    skysift search --index work/index --lonlat=-99.15,47.02 --save searches/lake.json
    skysift search --index work/index --saved searches/lake.json
    skysift search --index work/index --marks marks.geojson --suggest 10 --out next.geojson""",
)
@recipe_option("--index", "index.uri")
@example_options
@recipe_option("-k --k", "search.k")
@filter_options
@click.option("--min-score", type=float, metavar="S", help="All hits with this score, not -k.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    metavar="N",
    help="With --min-score: no more of each query (10,000).",
)
@click.option(
    "--distinct",
    type=click.Choice(["place"]),
    help="place: one hit a place, with its dates inside.",
)
@click.option(
    "--blend",
    type=click.FloatRange(0, 1),
    metavar="W",
    help="Weight of appearance against labels, 0 to 1, for an encoder of two parts.",
)
@click.option(
    "--suggest",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Show the N tiles whose marks would teach most, in place of the best hits.",
)
@click.option("--each", is_flag=True, help="Search with each example by itself; needs --out.")
@click.option("--include-self", is_flag=True, help="Keep the examples among the hits.")
@click.option("--explain", is_flag=True, help="Show how it would be searched, and stop.")
@recipe_option("--encoder", "encoder.bundle", "Bundle for --image and --text; the archive's.")
@click.option("--save", metavar="FILE", help="Keep the search as a .json file.")
@click.option("--saved", metavar="FILE", help="Run a search that --save kept.")
@click.option(
    "--score-map", metavar="FILE", help="Write how alike every place is, as a .pmtiles map."
)
@click.option("--out", metavar="URI", help="Write the hits to a .geojson, .parquet or .csv file.")
@pass_run
def search(run: Run, /, **options: Any) -> None:
    """Find the tiles most like examples: images, words, places, tiles, scenes, labels or vectors.

    Several examples make one query: fewer than ten their mean, from which the mean of the --not-
    examples is subtracted with half the weight; from ten on it is learned from them, with other
    tiles of the archive as weak examples of what is wrong. With --each every example is a query of
    its own, and all hits go to one GeoParquet file. Searches in this process; on the cluster's
    search actors when the recipe names a cluster or RAY_ADDRESS is set.
    """
    from pipeline.search.detections import suggest
    from pipeline.search.query import blended, learn
    from workflows.report.score_map import check_score_map, write_score_map

    _check(options)
    if options["score_map"]:
        check_score_map(options["score_map"])
    by_score = options["min_score"] is not None
    k: int = options["limit"] if by_score else run.recipe.search.k
    with open_searcher(run) as searcher:
        if options["saved"]:
            _run_saved(run, searcher, options["saved"], options["out"])
            return
        positive, negative = examples(run, searcher, options)
        answer = partial(
            searcher.answer,
            k=k,
            where=run.recipe.search.filter,
            min_score=options["min_score"],
            limit=options["limit"],
            keep_own=options["include_self"],
            distinct=options["distinct"],
        )
        if options["explain"]:
            _explain(run, searcher, k, by_score)
        elif options["each"]:
            each = [blended(searcher, query, options["blend"]) for query in positive]
            _write_each(run, searcher.manifest, answer, each, k, options["out"])
        else:
            query = learn(searcher, positive, negative, blend=options["blend"])
            if options["save"]:
                _save(run, searcher, query, k, options)
            if options["score_map"]:
                write_score_map(searcher, query, run.location(options["score_map"]))
            if options["suggest"]:
                hits = suggest(searcher, query, options["suggest"], run.recipe.search.filter)
            else:
                hits = answer(query)
            _show_hits(run, query.label, hits, k, options["out"])


@contextmanager
def open_searcher(run: Run) -> Iterator["Searcher"]:
    """Open the index of a recipe, in this process or on the actors of the recipe's cluster."""
    from pipeline.search.searcher import Searcher

    index = run.need_path("index.uri")
    if run.recipe.cluster.address is None and not os.environ.get("RAY_ADDRESS"):
        yield Searcher.local(index)
        return
    with run.ray():
        yield Searcher.connect(index, replicas=run.recipe.search.replicas)


def _save(run: Run, searcher: "Searcher", query: "Query", k: int, options: dict[str, Any]) -> None:
    """Keep a search as a file."""
    from pipeline.search.saved import SavedSearch, save_search

    search = SavedSearch.of(
        searcher,
        query,
        run.recipe.search.filter,
        k=k,
        min_score=options["min_score"],
        distinct=options["distinct"],
    )
    save_search(search, run.location(options["save"]))


def _run_saved(run: Run, searcher: "Searcher", uri: str, out: str | None) -> None:
    """Show the hits of a saved search."""
    from pipeline.search.saved import load_search

    search = load_search(run.location(uri))
    _show_hits(run, search.title, search.answer(searcher), search.k, out)


def _show_hits(run: Run, label: str, hits: "Hits", k: int, out: str | None) -> None:
    """Show the hits of a query; write them when a file is named."""
    from storage.formats import hit_records, write_hits
    from storage.index.pairs import in_words

    table = hits.to_arrow()
    if out:
        write_hits(table, run.location(out))
    query = hits.queries[0]
    records, note = hit_records(table), "; ".join(filter(None, (query.note, query.remark)))
    result = {
        "query": label,
        "snapshot": hits.snapshot,
        "version": hits.version,
        "coverage": hits.coverage,
        "truncated": bool(hits.truncated),
        "ordinary": bool(hits.ordinary),
        "note": note,
        "hits": records,
    }
    lines = [f"like {label}", *_lines(records)] if records else ["no hits"]
    if hits.ordinary:
        lines.append(_ORDINARY.format(in_words(records[0]["closer_than"])))
    if note:
        lines.append(note)
    run.show(result, [*lines, _TRUNCATED.format(1, k)] if hits.truncated else lines)


def _write_each(
    run: Run,
    manifest: "IndexManifest",
    answer: "Callable[[Sequence[Query]], Hits]",
    queries: "Sequence[Query]",
    k: int,
    out: str,
) -> None:
    """Write the hits of every query to one file, block by block."""
    from pipeline.search.batch import search_many
    from storage.formats import write_geoparquet

    truncated = 0

    def counted(block: "Sequence[Query]") -> "Hits":
        nonlocal truncated
        hits = answer(block)
        truncated += len(hits.truncated)
        return hits

    count = write_geoparquet(search_many(queries, counted, k), run.location(out))
    result = {
        "queries": len(queries),
        "hits": count,
        "out": out,
        "snapshot": manifest.snapshot,
        "version": manifest.version,
        "truncated": truncated,
    }
    lines = [f"{count:,} hits of {len(queries):,} queries written to {out}"]
    run.show(result, [*lines, _TRUNCATED.format(truncated, k)] if truncated else lines)


def _explain(run: Run, searcher: "Searcher", k: int, by_score: bool) -> None:
    """Show the plan of the search."""
    from pipeline.search.searcher import FIRST_DEPTH

    depth = min(FIRST_DEPTH if by_score else k, searcher.manifest.rows)
    plan = searcher.explain(depth, run.recipe.search.filter)
    run.show(asdict(plan), str(plan).splitlines())


def _lines(records: list[dict[str, Any]]) -> list[str]:
    """Lay hits out as a table; a grid that all hits share is named once, above it."""
    from storage.index.pairs import in_words

    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    grids = {record["tile_key"].rsplit("/", 2)[0] for record in records}
    cut = len(next(iter(grids))) + 1 if len(grids) == 1 else 0
    columns = ["rank", "score", "date", "tile", "scene"]
    rows = [
        [r["rank"], r["score"], r["datetime"].date().isoformat(), r["tile_key"][cut:], r["scene"]]
        for r in records
    ]
    if records[0]["closer_than"] is not None:
        columns.insert(2, "closer")
        for row, record in zip(rows, records, strict=True):
            row.insert(2, in_words(record["closer_than"]))
    if "dates" in records[0]:
        columns.insert(-1, "dates")
        for row, record in zip(rows, records, strict=True):
            row.insert(-1, len(record["dates"]))
    if width >= _WIDE:
        place = columns.index("tile")
        columns.insert(place, "lon,lat")
        for row, record in zip(rows, records, strict=True):
            lon, lat = centres([record["bbox"]])[0]
            row.insert(place, f"{lon:.4f},{lat:.4f}")
    heading = [f"tiles of grid {grids.pop()}/"] if cut else []
    return [*heading, *format_table(columns, rows, width)]
