"""`skysift loss`: the losses of a training, and the exactness test of one's own."""

import click

from workflows.commands.common import CommaList, Run, Verb, pass_run, recipe_option
from workflows.console import format_table
from workflows.exit_codes import EXIT_FAILED


@click.group()
def loss() -> None:
    """List the losses, or test whether a loss is exact on several workers."""


@loss.command("list", cls=Verb, example="skysift loss list")
@pass_run
def list_(run: Run) -> None:
    """List the losses and their options: Skysift's own, and those of installed packages."""
    from encoders.losses import loss_names, loss_options
    from encoders.plugins import plugin_names

    found = {name: loss_options(name) for name in (*loss_names(), *plugin_names("losses"))}
    run.show(found, {k: ", ".join(f"{n}={v}" for n, v in found[k].items()) for k in found})


@loss.command(
    "check",
    cls=Verb,
    example="""
    skysift loss check --loss my_losses:HardNegatives
    skysift loss check --loss macl --set training.loss_options.exactness=0.25""",
)
@recipe_option("--loss", "training.loss")
@click.option(
    "--workers",
    type=CommaList(int),
    default="2,3,4",
    show_default=True,
    help="Numbers of worker processes to compare with one process.",
)
@pass_run
@click.pass_context
def check(ctx: click.Context, run: Run, workers: tuple[int, ...]) -> None:
    """Compare the gradient of a loss on several workers with that of one process.

    Real processes gather their keys, as in a training, and compute in float64. Exits with 1 when
    a gradient differs.
    """
    from encoders.gather_check import check_gather

    training = run.recipe.training
    results = check_gather(training.loss, training.loss_options, workers=workers)
    exact = all(result.is_exact for result in results)
    rows = [
        [
            result.workers,
            result.loss,
            result.gathered_loss,
            f"{result.largest_gradient:.2e}",
            f"{result.difference:.1e}",
            "exact" if result.is_exact else "DIFFERS",
        ]
        for result in results
    ]
    head = ["workers", "loss of one", "gathered", "largest gradient", "difference", ""]
    verdict = (
        f"{training.loss} trains alike on any number of workers"
        if exact
        else f"{training.loss} depends on the number of workers: sum over the anchors, and return "
        "the count or weight to divide by as the denominator of the Ratio"
    )
    run.show(
        {"loss": training.loss, "exact": exact, "results": results},
        [*format_table(head, rows), "", verdict],
    )
    if not exact:
        ctx.exit(EXIT_FAILED)
