"""`skysift dataset`: labelled datasets to train and evaluate with."""

import click

from workflows.commands.common import (
    Run,
    Verb,
    catalog_options,
    pass_run,
    reason_lines,
    recipe_option,
)
from workflows.console import format_table
from workflows.exit_codes import EXIT_QUARANTINED


@click.group()
def dataset() -> None:
    """Make labelled datasets."""


@dataset.command(
    "import",
    cls=Verb,
    example="""
    skysift dataset import --source aid.tar --dataset work/aid/dataset --set dataset.tile_px=128
    skysift dataset import --importer dlrsd --source DLRSD --dataset work/dlrsd
    skysift dataset import -r world.yaml --importer scenes""",
)
@recipe_option("--importer", "dataset.importer")
@recipe_option("--source", "dataset.source")
@recipe_option("--dataset", "dataset.uri")
@recipe_option("--landcover", "dataset.landcover.href")
@recipe_option("--marks", "dataset.marks")
@recipe_option("--table", "dataset.table", metavar="NAME")
@recipe_option("--add-to", "dataset.add_to")
@catalog_options
@pass_run
@click.pass_context
def import_(ctx: click.Context, run: Run) -> None:
    """Import a labelled dataset; an existing one from the same source is kept.

    \b
    folder       labels.csv (image, 0/1 columns, maybe split) and PNG, JPEG or
                 GeoTIFF images in images/ or beside the table
    dlrsd        Images/<scene>/<name>.tif and Labels/<scene>/<name>.png
    whdld        Images/<name>.jpg and ImagesPNG/<name>.png
    uc-merced    Images/<scene>/<name>.tif and LandUse_Multilabeled.txt or .csv,
                 or LandUse_multilabels.mat
    ml-aid       multilabel.csv, images_tr/ and images_test/ with <name>.jpg
    bigearthnet  version 2: metadata.parquet and
                 BigEarthNet-S2/<tile>/<patch>/<patch>_<band>.tif
    scenes       your own scenes (--scenes) and a land-cover raster, or marks
    annotated    a folder of `skysift dataset suggest`, with the labels in --table:
                 Label Studio's JSON or JSON-MIN, COCO or GeoJSON
    module:Name  an importer of your own (docs/howto/importer.md)

    All sources but bigearthnet and scenes may be a .tar. Errors name the missing
    file. A scene that cannot be read is left out with its reason (exit code 3).
    """  # noqa: D301
    found, left_out = run.import_dataset()
    run.show(
        {"dataset": run.need("dataset.uri"), "info": found, "left_out": left_out},
        {
            "dataset": run.need("dataset.uri"),
            "images": found.count,
            "bands": ", ".join(found.bands),
            "tile_px": found.tile_px,
            "classes": f"{len(found.classes)} ({', '.join(found.classes)})",
            **(reason_lines("scenes left out", left_out) if left_out else {}),
        },
    )
    if left_out:
        ctx.exit(EXIT_QUARANTINED)


@dataset.command(
    "suggest",
    cls=Verb,
    example="""
    skysift dataset suggest --from work/archive --class water --class forest --output work/label
    skysift dataset suggest --from work/archive --dataset work/set --output work/label --rows 200
    skysift dataset import --importer annotated --source work/label --table export.json \\
        --add-to work/set --dataset work/set2""",
)
@recipe_option("--from", "archive.uri", "Archive of the tiles; without, rows of the dataset.")
@recipe_option("--dataset", "dataset.uri", "The labelled dataset; its rows count as covered.")
@recipe_option("--class", "dataset.suggest.classes", "Class of a first dataset; again for more.")
@recipe_option("--encoder", "encoder.bundle", "Without an archive: encoder of the features.")
@recipe_option("--output", "dataset.suggest.output")
@recipe_option("--rows", "dataset.suggest.rows")
@recipe_option("--candidates", "dataset.suggest.candidates")
@pass_run
@click.pass_context
def suggest(ctx: click.Context, run: Run) -> None:
    """Choose tiles to label next, for annotation programs.

    The tiles stand for the most others that no labelled row is like (coverage of the features).
    The folder has a picture of each, tasks for Label Studio, COCO and GeoJSON; `skysift dataset
    import --importer annotated` reads the labels back.
    """
    found = run.suggest_tiles()
    run.show(
        found,
        {
            "folder": found.output,
            "tiles to label": found.suggested,
            "chosen among": found.candidates,
            "labelled rows": found.labelled,
            **(reason_lines("scenes left out", found.left_out) if found.left_out else {}),
        },
    )
    if found.left_out:
        ctx.exit(EXIT_QUARANTINED)


@dataset.command(
    "extend",
    cls=Verb,
    example="""
    skysift dataset extend --dataset work/aid/dataset --from work/archive --output work/aid/soft""",
)
@recipe_option("--dataset", "dataset.uri", "The labelled dataset.")
@recipe_option("--from", "archive.uri", "Archive of the unlabelled tiles.")
@recipe_option("--output", "dataset.extend.output")
@recipe_option("--rows", "dataset.extend.rows")
@recipe_option("--method", "dataset.extend.method")
@recipe_option("--band", "dataset.extend.band")
@recipe_option("--rounds", "dataset.extend.rounds")
@pass_run
def extend(run: Run) -> None:
    """Add the tiles of an archive, with probabilities for labels.

    Two teachers on the archive's features label the tiles: a logistic regression, and a
    propagation along the nearest neighbours. Before anything is written, a part of the labelled
    rows is hidden: the F1 of their new labels, and the gain of a training with them, are shown.
    Where the gain of nDCG@50 is not larger than its error, or macro mAP falls, the command refuses.
    """
    found = run.extend_dataset()
    measured = found.measured
    metrics = [
        [name, before, measured.extended[name], measured.extended[name] - before]
        for name, before in measured.supervised.items()
    ]
    head = ["metric", "labelled rows only", "with probabilities", "gain"]
    run.show(
        found,
        [
            f"{found.output}: {found.labelled:,} labelled rows, {found.added:,} added",
            f"F1 of hidden labels: {measured.micro_f1:.3f}, by class {measured.macro_f1:.3f}",
            f"nDCG@50 of the same hidden rows: {measured.gain:+.3f} ± {measured.error:.3f}",
            "",
            *format_table(head, metrics),
        ],
    )
