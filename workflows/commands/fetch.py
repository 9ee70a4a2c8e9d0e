"""`skysift fetch`: scenes from the web, checked by their checksums."""

from pathlib import Path

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.console import ProgressView


@click.command(
    "fetch",
    cls=Verb,
    example="""
    skysift fetch prairie
    skysift fetch prairie --out data/scenes
    skysift fetch ours.json --dry-run""",
)
@click.argument("scenes", metavar="NAME")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("scenes"),
    show_default=True,
    metavar="FOLDER",
    help="Where the files go.",
)
@click.option("--dry-run", is_flag=True, help="Print the files and addresses, and stop.")
@pass_run
def fetch(run: Run, /, scenes: str, out: Path, dry_run: bool) -> None:
    """Fetch scenes from the internet, checked by size and SHA-256; files that are there stay.

    NAME is `prairie`, the scenes of the tutorial (13 MB, public domain), or a .json file with
    `title`, `licence` and `files` of `name`, `url`, `bytes` and `sha256`. A stopped run is
    continued by the same command.
    """
    from workflows.fetch import fetch, read_scene_list

    found = read_scene_list(scenes)
    facts = {"scenes": found.title, "licence": found.licence, "folder": str(out)}
    if dry_run:
        run.show(
            {**facts, "files": found.files}, [f"{file.name}  {file.url}" for file in found.files]
        )
        return
    with ProgressView() as progress:
        report = fetch(found, out, progress)
    counts = {"fetched": len(report.fetched), "there before": len(report.there_before)}
    run.show({**facts, "report": report}, {**facts, **counts})
