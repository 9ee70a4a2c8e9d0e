"""`skysift migrate`: the files of earlier releases in the newest form."""

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.console import format_table


@click.command(
    "migrate",
    cls=Verb,
    example="""
    skysift migrate --dry-run work/archive work/index work/dataset work/bundle searches/lake.json
    skysift migrate work/archive searches/lake.json""",
)
@click.argument("places", metavar="PLACE...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Print the changes, and stop.")
@pass_run
def migrate(run: Run, places: tuple[str, ...], dry_run: bool) -> None:
    """Name the formats of archives, indexes, datasets, bundles and saved searches; renew old ones.

    All formats of earlier releases are read as they are: nothing has to be migrated before an
    upgrade. Readers see the old form until the new one is whole, and the same command again changes
    nothing. An earlier release does not read a saved search that was rewritten.
    """
    from workflows.migrate import migrate as renew

    done = [renew(run.location(place), dry_run=dry_run) for place in places]
    rows = [
        (one.place, one.kind, one.format, f"{'now' if one.changed else 'to get'}: {one.change}")
        if one.change
        else (one.place, one.kind, one.format, "newest")
        for one in done
    ]
    run.show(done, format_table(("place", "kind", "format", "state"), rows, width=100))
