"""`skysift train`: an encoder from a labelled dataset."""

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option


@click.command(
    "train",
    cls=Verb,
    example="""
    skysift train -r aid
    skysift train --dataset work/aid/dataset --output work/run --loss macl --epochs 10""",
)
@recipe_option("--dataset", "dataset.uri", "Dataset to train on.", metavar="URI")
@recipe_option("--output", "training.output", "Folder of the run.", metavar="URI")
@recipe_option("--backbone", "training.backbone", "Kind of network.", metavar="NAME")
@recipe_option("--pretrained", "training.pretrained", "Folder of weights.", metavar="FOLDER")
@recipe_option(
    "--freeze/--no-freeze", "training.freeze_backbone", "Train only the head.", is_flag=True
)
@recipe_option("--loss", "training.loss", "Name of the loss.", metavar="NAME")
@recipe_option("--epochs", "training.epochs", "Epochs.", type=int, metavar="N")
@recipe_option("--workers", "training.workers", "Ray Train workers.", type=int, metavar="N")
@click.option("--resume", is_flag=True, help="Go on although settings changed where that works.")
@pass_run
def train(run: Run, resume: bool) -> None:
    """Train an encoder; the same command continues a stopped run.

    The output folder holds the best encoder (bundle/), history.csv and checkpoints.
    """
    from pipeline.training.driver import train as run_training
    from storage.location import Location
    from workflows.recipe.specs import training_spec

    dataset = run.need_path("dataset.uri", "--dataset")
    output = run.need("training.output", "--output")
    if (run.recipe.training.pretrained or "").startswith((".", "/")):
        run.need_path("training.pretrained", "--pretrained")
    with run.ray(), run.progress() as progress:
        result = run_training(
            Location.of(dataset, run.storage),
            training_spec(run.settings),
            Location.of(output, run.storage),
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
