"""`skysift demo`: the whole chain on synthetic data."""

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.console import ProgressView, format_table


@click.command("demo", cls=Verb, example="skysift demo")
@click.option(
    "--folder", default="demo", show_default=True, metavar="PATH", help="Folder of all output."
)
@click.option("--seed", default=7, show_default=True, help="Decides the world and the training.")
@pass_run
def demo(run: Run, folder: str, seed: int) -> None:
    """Make a world, train on it, embed it, index it, search it and draw a report.

    Needs no data. Finished stages are skipped, so an interrupted demo continues.
    """
    from workflows.demo.evaluate import METRICS
    from workflows.demo.run import run_demo

    with ProgressView() as progress:
        result = run_demo(folder, seed=seed, cluster=run.ray, progress=progress)
    rows = [[name, *(result.scores[name].get(m) for m in METRICS)] for name in result.scores]
    data = {
        "folder": result.folder,
        "report": result.report,
        "recipe": result.recipe,
        "scores": result.scores,
        "commands": result.commands,
        "stages": result.stages,
        "seconds": sum(stage.seconds for stage in result.stages if not stage.skipped),
    }
    lines = [
        *format_table(["encoder", *METRICS], rows),
        "",
        f"report  {result.report}",
        f"recipe  {result.recipe}",
        "",
        "Try next:",
        *(f"  {line}" for line in result.commands),
    ]
    run.show(data, lines)
