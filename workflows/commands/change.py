"""`skysift change`: the places of an archive that changed most between two periods."""

from typing import TYPE_CHECKING, Any

import click

from workflows.commands.archive_options import archive_option, snapshot_option
from workflows.commands.common import Area, Run, Verb, pass_run, recipe_option
from workflows.console import ProgressView, format_table

if TYPE_CHECKING:
    from pipeline.search.change import Changes


@click.command(
    "change",
    cls=Verb,
    example="""
    skysift change -r landsat-series --before 1985 --after 2005
    skysift change --archive work/archive --before 2019-06/2019-08 --after 2024-06/2024-08
    skysift change --archive work/archive --before 2019 --after 2024 --toward searches/mine.json
    skysift change --archive work/archive --before ../2020 --after 2021/.. --out changes.geojson""",
)
@archive_option
@snapshot_option
@click.option("--before", required=True, metavar="PERIOD",
              help="A year, month or day, or START/END; .. is an open end.")  # fmt: skip
@click.option("--after", required=True, metavar="PERIOD", help="The later period.")
@click.option("--toward", metavar="FILE",
              help="Rank by how much more alike to this saved search places became.")  # fmt: skip
@recipe_option("-k --k", "search.k")
@recipe_option("--bbox", "search.filter.bbox", "Rank only places in this box.")
@recipe_option(
    "--polygon",
    "search.filter.polygon",
    "Rank only places in this area: WKT, GeoJSON or a file.",
    type=Area(),
    metavar="AREA",
)
@recipe_option("--max-cloud-fraction", "search.filter.max_cloud_fraction")
@recipe_option("--in-scene", "search.filter.scenes", "Only of this scene; again for more.")
@recipe_option("--label", "search.filter.labels", "Later with this label; again for more.")
@click.option("--min-score", type=float, metavar="S", help="Only changes of at least this score.")
@click.option("--blend", type=float, metavar="W",
              help="Weight of appearance against labels, 0 to 1, for an encoder of two parts; the "
              "encoder's own without.")  # fmt: skip
@click.option("--out", metavar="URI", help="Write changes to a .geojson, .parquet or .csv file.")
@pass_run
def change(run: Run, /, **options: Any) -> None:
    """Rank places by how far they moved between two periods, beyond the usual.

    Compares the clearest tile of a place before with the clearest after. "moved" is the angle
    between their vectors in degrees, each less the mean vector of its scene; with --toward, the
    gain in similarity. "usual" is its median over the places of the same two scenes, and
    the score is how many robust standard deviations a place is above it. From 3.5 on a change
    stands out; where most of the ground changed, nothing does, and the order still holds. Filters
    of place select what is ranked, not what is usual.
    """
    from pipeline.search.change import ChangeSpec, find_changes
    from pipeline.search.saved import load_search
    from storage.formats import check_format, write_hits

    if options["out"]:
        check_format(options["out"])
    spec = ChangeSpec(
        before=options["before"],
        after=options["after"],
        where=run.recipe.search.filter,
        k=run.recipe.search.k,
        min_score=options["min_score"],
        blend=options["blend"],
    )
    toward = load_search(run.location(options["toward"])) if options["toward"] else None
    with ProgressView() as progress:
        found = find_changes(run.open_archive(), spec, toward, progress=progress)
    if options["out"]:
        write_hits(found.table, run.location(options["out"]))
    run.show(_document(found), _lines(found))


def _document(found: "Changes") -> dict[str, Any]:
    from storage.formats import hit_records

    return {
        "query": found.title,
        "snapshot": found.snapshot,
        "compared": found.compared,
        "beyond": found.beyond,
        "unjudged": found.unjudged,
        "changes": hit_records(found.table),
    }


def _lines(found: "Changes") -> list[str]:
    from pipeline.search.movement import BEYOND_USUAL

    rows = found.table.to_pylist()
    grids = {row["tile_key"].rsplit("/", 2)[0] for row in rows}
    cut = len(next(iter(grids))) + 1 if len(grids) == 1 else 0
    digits = 3 if found.toward else 1
    columns = ["rank", "score", "moved", "usual", "before", "after", "tile"]
    table = [
        [
            *(row["rank"], f"{row['score']:.2f}"),
            *(f"{row[name]:.{digits}f}" for name in ("moved", "usual")),
            *(row[name].date().isoformat() for name in ("before_datetime", "datetime")),
            row["tile_key"][cut:],
        ]
        for row in rows
    ]
    unjudged = f", {found.unjudged:,} more not judged" if found.unjudged else ""
    heads = [
        found.title,
        f"{found.compared:,} places compared, {found.beyond:,} of them with a score of "
        f"{BEYOND_USUAL} or more{unjudged}",
    ]
    heads += [f"tiles of grid {grids.pop()}/"] if cut else []
    return [*heads, *(format_table(columns, table) if rows else ["no place"])]
