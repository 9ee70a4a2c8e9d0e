"""`skysift demo`: all of it, without data."""

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.console import format_table

_METRICS = ("rare mAP", "macro mAP", "mAP", "nDCG@50", "WAP@50")


@click.command("demo", cls=Verb, example="skysift demo")
@click.option(
    "--folder", default="demo", show_default=True, metavar="PATH", help="Where everything goes."
)
@click.option("--seed", default=7, show_default=True, help="Decides the world and the training.")
@pass_run
def demo(run: Run, folder: str, seed: int) -> None:
    """Make a world, train on it, embed it, index it, search it and draw a report.

    Needs no data. What is done is skipped, so a demo that was stopped is completed.
    """
    from workflows.demo.run import run_demo

    with run.progress() as progress:
        done = run_demo(folder, seed=seed, cluster=run.ray, progress=progress)
    rows = [[name, *(done.scores[name].get(m) for m in _METRICS)] for name in done.scores]
    data = {
        "folder": done.folder,
        "report": done.report,
        "recipe": done.recipe,
        "scores": done.scores,
        "commands": done.commands,
        "stages": done.stages,
        "seconds": sum(stage.seconds for stage in done.stages if not stage.skipped),
    }
    lines = [
        *format_table(["encoder", *_METRICS], rows),
        "",
        f"report  {done.report}",
        f"recipe  {done.recipe}",
        "",
        "Try next:",
        *(f"  {line}" for line in done.commands),
    ]
    run.show(data, lines)
