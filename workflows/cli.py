"""The command line: `skysift VERB`. Wiring only; the verbs are in :mod:`workflows.commands`.

Nothing heavy is imported before a verb runs, so that help is instant.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click

from workflows.exit_codes import run_to_exit_code

# Verb -> (module, attribute, its line in the list of verbs).
VERBS = {
    "demo": ("demo", "demo", "Run all of it on a synthetic world."),
    "dataset": ("dataset", "dataset", "Make labelled datasets."),
    "train": ("train", "train", "Train an encoder on a labelled dataset."),
    "loss": ("loss", "loss", "List the losses, or test one of your own."),
    "encoder": ("encoder", "encoder", "Make an encoder without training, or look at one."),
    "fetch": ("fetch", "fetch", "Fetch the scenes of the tutorial, or of a list."),
    "composite": ("composite", "composite", "Make cloud-free composites of a series of scenes."),
    "ingest": ("ingest", "ingest", "Tile and embed scenes into an archive."),
    "watch": ("watch", "watch", "Embed new scenes of a source, again and again."),
    "index": ("index", "index", "Build, grow and maintain search indexes."),
    "search": ("search", "search", "Find the tiles most like an image, a place or a tile."),
    "detect": ("detect", "detect", "Find every place that marks ask for, with its probability."),
    "change": ("change", "change", "Find the places that changed most between two periods."),
    "evaluate": ("evaluate", "evaluate", "Score how well similar tiles are found."),
    "archive": ("archive", "archive", "Look at, check, export and maintain archives."),
    "migrate": ("migrate", "migrate", "Name the formats of files, and renew old ones."),
    "report": ("report", "report", "Draw an archive and its searches as one HTML page."),
    "serve": ("serve", "serve", "Serve a map and searches over HTTP."),
    "submit": ("jobs", "submit", "Run a command as a job of a Ray cluster."),
    "jobs": ("jobs", "jobs", "See and stop such jobs."),
    "recipe": ("recipe", "recipe", "Look at recipes."),
    "doctor": ("doctor", "doctor", "Check this machine and say what to fix."),
}


class _Verbs(click.Group):
    """Verbs that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(import_module(f"workflows.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items()])


@click.command(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="skysift")
def cli() -> None:
    """Ask a large archive of satellite scenes where else it looks like this.

    Start with `skysift demo`, which needs no data.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for signs that the terminal lacks
    own = given[: given.index("--")] if "--" in given else given

    def command() -> object:
        for argument in given:
            if argument != argument.encode(errors="replace").decode():
                raise click.UsageError(f"{argument!r} is not UTF-8; rename the file or folder")
        return cli.main(args=given, prog_name="skysift", standalone_mode=False)

    sys.exit(run_to_exit_code(command, debug="--debug" in own))


if __name__ == "__main__":
    main()
