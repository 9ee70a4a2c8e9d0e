"""`skysift detect`: every place that marks ask for, with its probability."""

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.commands.search import filter_options, marks_option, open_searcher
from workflows.console import format_table

if TYPE_CHECKING:
    from pipeline.search.accuracy import Check
    from pipeline.search.detections import Detections
    from pipeline.search.saved import SavedSearch
    from pipeline.search.searcher import Searcher

_log = logging.getLogger(__name__)
_SHOWN = 20
_OUTPUTS = ("out", "marks_out", "review_out", "check_out")


@click.command(
    "detect",
    cls=Verb,
    example="""
    skysift detect --index work/index --marks marks.geojson --out detections.geojson
    skysift detect --index work/index --marks marks.geojson --threshold 0.8 --save solar.json
    skysift detect --index work/next --saved solar.json --out detections.parquet
    skysift detect --index work/index --saved solar.json --review-out review.geojson
    skysift detect --index work/index --saved solar.json --check 60 --check-out check.csv
    skysift detect --checked check.csv""",
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
@click.option(
    "--check",
    type=click.IntRange(20, 1000),
    metavar="N",
    help="Draw N tiles at random, whose marks measure precision and recall.",
)
@click.option("--check-out", metavar="URI", help="Write them; fill the column mark.")
@click.option("--checked", metavar="FILE", help="That file with marks: print what it measures.")
@pass_run
def detect(run: Run, /, **options: Any) -> None:
    """Find every place that marks ask for, with the probability that it is right.

    Needs at least ten marks, three right and three wrong ones. The probabilities come from marks
    that were held back. The tiles to review are those nearest to the threshold: mark them, and
    detect again.

    Precision and recall are expected, not measured, until a random sample is checked: --check
    draws it, a person fills the column mark with right or wrong, and --checked prints precision,
    recall and F1 with intervals of 90 %. --save keeps the sample.
    """
    from storage.formats import check_format, write_hits

    outputs = {name: options[name] for name in _OUTPUTS if options[name]}
    _refuse_mixtures(options, outputs)
    for uri in outputs.values():
        check_format(uri)
    if not (options["marks"] or options["saved"]):
        _show_checked(run, options["checked"])
        return
    with open_searcher(run) as searcher:
        search = _search(run, searcher, options)
        found = search.detect(searcher, limit=options["limit"])
        search = _with_check(run, search, found, options)
        if options["save"]:
            _save(run, search, options["save"])
        tables = {
            "out": found.to_arrow,
            "marks_out": lambda: found.marked(searcher),
            "review_out": found.to_review,
        }
        if (check := search.check) is not None:
            tables["check_out"] = lambda: check.to_arrow(searcher, found.hits.queries[0])
        for name, uri in outputs.items():
            write_hits(tables[name](), run.location(uri))
    _show(run, search, found)


def _refuse_mixtures(options: dict[str, Any], outputs: dict[str, str]) -> None:
    """Refuse options that do not go together.

    Raises
    ------
    click.UsageError
        With the options in question.
    """
    sources = [name for name in ("marks", "saved") if options[name]]
    if len(sources) == 2 or not (sources or options["checked"]):
        raise click.UsageError("give either --marks or --saved, or --checked alone")
    if not sources and (outputs or options["save"] or options["check"]):
        raise click.UsageError("--checked alone prints; give --marks or --saved too")
    if options["check"] and not options["check_out"]:
        raise click.UsageError("--check draws tiles for --check-out; give that too")


def _show_checked(run: Run, uri: str) -> None:
    """Print what a check measures, without the index."""
    from pipeline.search.accuracy import read_check

    check = read_check(run.location(uri))
    run.show(check.summary(), _measured(check))


def _with_check(
    run: Run, search: "SavedSearch", found: "Detections", options: dict[str, Any]
) -> "SavedSearch":
    """Return the search with the check that the options ask for, or with its own if that fits.

    A check that is drawn again with more tiles keeps its marks.

    Raises
    ------
    ConfigError
        The file of a check is of other detections.
    """
    from dataclasses import replace

    from pipeline.search.accuracy import CHECKED, Check, read_check
    from storage.errors import ConfigError

    check = search.check
    if check is not None and not check.fits(found):
        _log.warning("the accuracy check of the saved search is of other detections: left out")
        check = None
    if options["checked"]:
        check = read_check(run.location(options["checked"]))
        if not check.fits(found):
            raise ConfigError(
                f"{options['checked']} is a check of other detections: of other marks, another "
                "threshold, region or version of the index; draw a new one with --check N"
            )
    if options["check"] or (options["check_out"] and check is None):
        drawn = Check.of(found, options["check"] or CHECKED)
        check = drawn if check is None else drawn.with_marks(check)
    return replace(search, check=check)


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
        "check": None if search.check is None else search.check.summary(),
        "truncated": bool(found.hits.truncated),
        "detections": records,
        "review": hit_records(found.to_review()),
    }
    figures = ["no tile without a mark reaches the threshold"]
    if expected.rows:
        figures = [
            f"precision {expected.precision:.0%} and recall {expected.recall:.0%} expected from "
            "the marks; an accuracy check measures them (--check)"
        ]
    if search.check is not None and search.check.marked:
        figures = _measured(search.check)
    elif search.check is not None:
        figures.append(
            f"{len(search.check.tiles)} tiles drawn at random: fill their column mark with right "
            "or wrong, and give the file as --checked"
        )
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


def _measured(check: "Check") -> list[str]:
    """Return what a check measures, for people."""
    figures = check.accuracy()
    table = format_table(
        ("probability", "tiles", "precision", "recall", "F1"),
        [
            [
                f">= {one.threshold:.2g}",
                f"{one.rows:,}",
                _percent(one.precision, one.precision_interval),
                _percent(one.recall, one.recall_interval),
                _percent(one.f1, one.f1_interval),
            ]
            for one in figures[: max(len(figures) - 1, 1)]  # recall of all rows is 1
        ],
    )
    return [
        *table,
        f"measured by {check.marked} of {len(check.tiles)} tiles drawn at random; in brackets the "
        "interval of 90 %",
        check.scope,
    ]


def _percent(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{value:.0%} ({low:.0%}-{high:.0%})"
