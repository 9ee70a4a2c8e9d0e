"""`skysift dataset`: labelled datasets to train and evaluate with."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from storage.progress import ProgressSink
from workflows.commands.common import (
    Run,
    Verb,
    catalog_options,
    pass_run,
    reason_lines,
    recipe_option,
)
from workflows.console import ProgressView
from workflows.exit_codes import EXIT_QUARANTINED

if TYPE_CHECKING:
    from storage.dataset import DatasetInfo

    Imported = tuple[DatasetInfo, dict[str, str]]  # and the scenes left out, with their reasons


# The recipe keys that each importer of images takes.
_SETTINGS = {
    "folder": ("table", "tile_px", "bands", "resolution_m", "split"),
    "dlrsd": ("min_share", "tile_px", "split"),
    "whdld": ("min_share", "tile_px", "split"),
    "uc-merced": ("tile_px", "split"),
    "ml-aid": ("tile_px", "split"),
    "bigearthnet": ("bands", "tile_px"),
}


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
    scenes       your own scenes (--scenes) and a land-cover raster

    All sources but bigearthnet and scenes may be a .tar. Errors name the missing
    file. A scene that cannot be read is left out with its reason (exit code 3).
    """  # noqa: D301
    by_name = _import_scenes if run.recipe.dataset.importer == "scenes" else _import_images
    with ProgressView() as progress:
        found, left_out = by_name(run, progress)
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


def _import_images(run: Run, progress: ProgressSink) -> "Imported":
    from pipeline.datasets.importers import importers

    section = run.recipe.dataset
    settings = {name: getattr(section, name) for name in _SETTINGS[section.importer]}
    info = importers[section.importer](
        run.need_path("dataset.source"),
        run.need("dataset.uri"),
        **settings,
        progress=progress,
    )
    return info, {}


def _import_scenes(run: Run, progress: ProgressSink) -> "Imported":
    from pipeline.datasets.scenes import import_scenes
    from storage.catalog.read import read_scenes
    from storage.quarantine import none_readable
    from workflows.labels import label_scenes

    section = run.recipe.dataset
    listing = read_scenes(run.catalog_spec(), section.bands)
    rejected = {item.scene_id: item.reason for item in listing.distinct_rejected}
    if not listing.scenes:
        raise none_readable(rejected)
    unreadable: dict[str, str] = {}
    grid = replace(run.recipe.grid, tile_px=run.recipe.grid.tile_px or run.need("dataset.tile_px"))
    labels = label_scenes(
        listing.scenes,
        grid,
        run.need_path("dataset.landcover.href"),
        run.need("dataset.landcover.classes"),
        min_fraction=section.landcover.min_fraction,
        left_out=unreadable,
        progress=progress,
    )
    info = import_scenes(
        listing.scenes,
        grid,
        labels,
        run.need("dataset.uri"),
        bands=section.bands,
        rules=run.recipe.tiles,
        split=run.recipe.dataset.split,
        block_tiles=section.block_tiles,
        left_out=unreadable,
        progress=progress,
    )
    return info, rejected | unreadable
