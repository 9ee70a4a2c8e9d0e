"""`skysift train`: an encoder from a labelled dataset."""

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option


@click.command(
    "train",
    cls=Verb,
    example="""
    skysift train -r aid
    skysift train --dataset work/aid/dataset --output work/run --loss macl --epochs 10
    skysift train -r aid-labels --loss mulsupcon --output work/mulsupcon""",
)
@recipe_option("--dataset", "dataset.uri")
@recipe_option("--output", "training.output")
@recipe_option("--backbone", "training.backbone")
@recipe_option("--pretrained", "training.pretrained")
@recipe_option("--freeze/--no-freeze", "training.freeze_backbone")
@recipe_option("--place-pairs", "training.place_pairs")
@recipe_option("--appearance", "training.appearance", "Width of an added appearance part.")
@recipe_option("--blend", "training.blend", "With --appearance: its weight in searches, 0 to 1.")
@recipe_option("--loss", "training.loss")
@recipe_option("--epochs", "training.epochs")
@recipe_option("--workers", "training.workers")
@click.option("--resume", is_flag=True, help="Go on although settings changed where that works.")
@pass_run
def train(run: Run, resume: bool) -> None:
    """Train an encoder; the same command continues a stopped run.

    The output folder holds the best encoder (bundle/), history.csv and checkpoints. With
    --appearance it holds an encoder of two parts as well (two-parts/), for `skysift search
    --blend`, as `skysift encoder make --trained` makes it. With --place-pairs too the first part
    has learned to find the same place on another date.
    """
    result = run.train(resume=resume)
    lines = {
        "bundle": result.bundle_uri,
        "fingerprint": result.fingerprint,
        "epochs": result.epochs,
        "best epoch": result.best_epoch,
        **{f"  {name}": float(value) for name, value in result.best_metrics.items()},
        "history": result.history_csv,
    }
    run.show(result, lines)
