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
@pass_run
def extend(run: Run) -> None:
    """Add the tiles of an archive, with probabilities for labels.

    Two teachers on the archive's features label the tiles: a logistic regression, and a
    propagation along the nearest neighbours. Before anything is written, a part of the labelled
    rows is hidden: the F1 of their new labels, and the gain of a training with them, are shown.
    Where the gain is not larger than its error, the command refuses.
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
            "",
            *format_table(head, metrics),
        ],
    )
