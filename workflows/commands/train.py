"""`skysift train`: an encoder from a labelled dataset."""

import click

from pipeline.training.spec import TrainingSpec
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import ProgressView
from workflows.recipe.sections import spec_from


@click.command(
    "train",
    cls=Verb,
    example="""
    skysift train -r aid
    skysift train --dataset work/aid/dataset --output work/run --loss macl --epochs 10""",
)
@recipe_option("--dataset", "dataset.uri")
@recipe_option("--output", "training.output")
@recipe_option("--backbone", "training.backbone")
@recipe_option("--pretrained", "training.pretrained")
@recipe_option("--freeze/--no-freeze", "training.freeze_backbone")
@recipe_option("--loss", "training.loss")
@recipe_option("--epochs", "training.epochs")
@recipe_option("--workers", "training.workers")
@click.option("--resume", is_flag=True, help="Go on although settings changed where that works.")
@pass_run
def train(run: Run, resume: bool) -> None:
    """Train an encoder; the same command continues a stopped run.

    The output folder holds the best encoder (bundle/), history.csv and checkpoints.
    """
    from pipeline.training.driver import train as run_training

    dataset = run.need_path("dataset.uri")
    output = run.need("training.output")
    if (run.recipe.training.pretrained or "").startswith((".", "/")):
        run.need_path("training.pretrained")
    with run.ray(), ProgressView() as progress:
        result = run_training(
            dataset,
            spec_from(TrainingSpec, run.recipe.training),
            output,
            resume=resume,
            progress=progress,
        )
    lines = {
        "bundle": result.bundle_uri,
        "fingerprint": result.fingerprint,
        "epochs": result.epochs,
        "best epoch": result.best_epoch,
        **{f"  {name}": float(value) for name, value in result.best_metrics.items()},
        "history": result.history_csv,
    }
    run.show(result, lines)
