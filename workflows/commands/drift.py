"""`skysift archive drift`: whether some rows differ from all the others."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from workflows.commands.archive_options import (
    archive_option,
    snapshot_option,
)
from workflows.commands.common import Run, Verb, pass_run
from workflows.console import ProgressView, format_table

if TYPE_CHECKING:
    from storage.archive.reader import Archive


@click.command(
    "drift",
    cls=Verb,
    example="""
    skysift archive drift --archive work/archive --by season
    skysift archive drift --archive work/archive --split 2024-06-01
    skysift archive drift --archive work/archive --since-snapshot release-1""",
)
@archive_option
@snapshot_option
@click.option("--by", type=click.Choice(["month", "season", "year"]),
              help="Each period against all others; month by default.")  # fmt: skip
@click.option("--split", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="Acquisitions from this day on against those before.")  # fmt: skip
@click.option("--since-snapshot", metavar="ID", help="Rows added since this snapshot or tag.")
@click.option("--sample", type=click.IntRange(20, 20_000), default=1000, show_default=True,
              help="Rows drawn of each side for the test.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 1, True, True), default=0.01, show_default=True,
              help="Chance of calling anything drifted when nothing is.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@pass_run
def drift(run: Run, /, **options: Any) -> None:
    """Test whether the embeddings of some rows are distributed differently from the rest.

    "shift" is the distance of the two mean embeddings over all rows; "mmd" is the squared maximum
    mean discrepancy of two uniform samples, and "p" how often a random division gives as much.
    Rows of other ground differ too: compare rows of the same area.
    """
    from pipeline.analysis.drift import DriftSpec, measure_drift

    if sum(options[name] is not None for name in ("by", "split", "since_snapshot")) > 1:
        raise click.UsageError("give at most one of --by, --split and --since-snapshot")
    archive = run.open_archive()
    groups, names = _groups(archive, options)
    permutations = max(999, round(10 * len(names) / options["alpha"]))
    spec = DriftSpec(
        sample_rows=options["sample"],
        permutations=permutations,
        alpha=options["alpha"],
        seed=options["seed"],
    )
    with ProgressView() as progress:
        found = measure_drift(archive, groups, names, spec, progress=progress)
    columns = ["rows of", "rows", "shift", "mmd", "p", "drifted"]
    rows = [[g.name, g.rows, g.mean_shift, g.mmd, g.p_value, g.drifted] for g in found]
    run.show({"snapshot": archive.snapshot, "groups": found}, format_table(columns, rows))


def _groups(archive: "Archive", options: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    from pipeline.analysis.drift import groups_by_date, groups_by_period, groups_by_snapshot
    from storage.archive.maintenance import resolve_snapshot
    from storage.archive.reader import Archive

    if options["split"] is not None:
        return groups_by_date(archive, options["split"].replace(tzinfo=dt.UTC))
    if options["since_snapshot"] is not None:
        snapshot = resolve_snapshot(archive.location, options["since_snapshot"])
        return groups_by_snapshot(archive, Archive.open(archive.location, snapshot))
    return groups_by_period(archive, options["by"] or "month")
