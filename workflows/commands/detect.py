"""`skysift detect`: every place that marks ask for, with its probability."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.commands.search import filter_options, marks_option, open_searcher
from workflows.console import format_table

if TYPE_CHECKING:
    from pipeline.search.detections import Detections
    from pipeline.search.saved import SavedSearch
    from pipeline.search.searcher import Searcher

_SHOWN = 20


@click.command(
    "detect",
    cls=Verb,
    example="""
    skysift detect --index work/index --marks marks.geojson --out detections.geojson
    skysift detect --index work/index --marks marks.geojson --threshold 0.8 --save solar.json
    skysift detect --index work/next --saved solar.json --out detections.parquet
    skysift detect --index work/index --saved solar.json --review-out review.geojson""",
)
@recipe_option("--index", "index.uri")
@marks_option
@click.option("--saved", metavar="FILE", help="A saved search with marks, in place of --marks.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Least probability of a detection; that of the saved search, or 0.5.",
)
@click.option(
    "--review",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Tiles to review, nearest to the threshold; those of the saved search, or 20.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Rows at most whose probabilities are computed.",
)
@filter_options
@click.option("--save", metavar="FILE", help="Keep marks, region and threshold as a .json file.")
@click.option("--out", metavar="URI", help="Write the detections: .geojson, .parquet or .csv.")
@click.option("--marks-out", metavar="URI", help="Write the marks that are tiles of the index.")
@click.option("--review-out", metavar="URI", help="Write the tiles to review.")
@pass_run
def detect(run: Run, /, **options: Any) -> None:
    """Find every place that marks ask for, with the probability that it is right.

    Needs at least ten marks, three right and three wrong ones. The probabilities come from marks
    that were held back; precision and recall are what they let expect at the threshold among the
    tiles without a mark, with the range of nine in ten resamples of the marks. The tiles to review
    are those nearest to the threshold: mark them, and detect again.
    """
    from storage.formats import check_format, write_hits

    if bool(options["marks"]) == bool(options["saved"]):
        raise click.UsageError("give either --marks or --saved")
    outputs = {name: options[name] for name in ("out", "marks_out", "review_out") if options[name]}
    for uri in outputs.values():
        check_format(uri)
    with open_searcher(run) as searcher:
        search = _search(run, searcher, options)
        found = search.detect(searcher, limit=options["limit"])
        if options["save"]:
            _save(run, search, options["save"])
        tables = {
            "out": found.to_arrow,
            "marks_out": lambda: found.marked(searcher),
            "review_out": found.to_review,
        }
        for name, uri in outputs.items():
            write_hits(tables[name](), run.location(uri))
    _show(run, search, found)


def _search(run: Run, searcher: "Searcher", options: dict[str, Any]) -> "SavedSearch":
    """Return the search that the options ask for; they replace the settings of a file."""
    from dataclasses import replace

    from pipeline.search.detections import THRESHOLD, calibration_of
    from pipeline.search.examples import read_marks
    from pipeline.search.query import QueryResolver, learn
    from pipeline.search.saved import SavedSearch, load_search, plain_filter

    where = run.recipe.search.filter
    if options["saved"]:
        search = load_search(run.location(options["saved"]))
        search = replace(search, filter={**search.filter, **plain_filter(where)})
    else:
        marks = read_marks(QueryResolver(searcher), run.location(options["marks"]))
        query = learn(searcher, *marks)
        search = SavedSearch.of(searcher, query, where, calibration=calibration_of(searcher, query))
    if search.calibration is None:
        calibration = calibration_of(searcher, search.query(searcher))
        search = replace(search, calibration=calibration)
    if options["review"] is not None:
        search = replace(search, review=options["review"])
    return search.at(options["threshold"] or search.threshold or THRESHOLD)


def _save(run: Run, search: "SavedSearch", uri: str) -> None:
    from pipeline.search.saved import save_search

    save_search(search, run.location(uri))


def _show(run: Run, search: "SavedSearch", found: "Detections") -> None:
    from pipeline.search.detections import marks_by_row
    from storage.formats import hit_records

    records, expected = hit_records(found.to_arrow()), found.expected
    of_index = list(marks_by_row(found.hits.queries[0]).values())
    marks = {name: of_index.count(name) for name in ("right", "wrong")}
    answer = {
        "query": search.title,
        "snapshot": found.hits.snapshot,
        "version": found.hits.version,
        "threshold": found.threshold,
        "marks": marks,
        "expected": asdict(expected),
        "truncated": bool(found.hits.truncated),
        "detections": records,
        "review": hit_records(found.to_review()),
    }
    figures = ["no tile without a mark reaches the threshold"]
    if expected.rows:
        figures = [
            _percent("precision", expected.precision, expected.precision_interval),
            _percent("recall", expected.recall, expected.recall_interval),
        ]
    lines = [
        f"{len(records):,} detections at a probability of {found.threshold:g} or more",
        *figures,
        f"{len(found.review)} tiles to review, nearest to the threshold",
    ]
    if found.hits.truncated:
        lines.append("more tiles have a probability of 1 % or more: raise --limit or narrow it")
    rows = [
        [
            r["rank"],
            f"{r['probability']:.2f}",
            r["mark"] or "",
            r["datetime"].date().isoformat(),
            r["tile_key"],
            r["scene"],
        ]
        for r in records[:_SHOWN]
    ]
    table = format_table(("rank", "prob.", "mark", "date", "tile", "scene"), rows) if rows else []
    more = len(records) - _SHOWN
    run.show(answer, [*table, *([f"and {more:,} more; --out has all"] if more > 0 else []), *lines])


def _percent(name: str, value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"expected {name} {value:.0%} ({low:.0%} to {high:.0%} over resampled marks)"
