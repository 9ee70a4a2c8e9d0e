"""`skysift dataset`: labelled datasets to train and evaluate with."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from storage.progress import ProgressSink
from workflows.commands.common import Run, Verb, catalog_options, pass_run, recipe_option

if TYPE_CHECKING:
    from storage.dataset import DatasetInfo


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
def import_(run: Run) -> None:
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
    file.
    """  # noqa: D301
    by_name = _import_scenes if run.recipe.dataset.importer == "scenes" else _import_images
    with run.progress() as progress:
        found = by_name(run, progress)
    run.show(
        {"dataset": run.need("dataset.uri"), "info": found},
        {
            "dataset": run.need("dataset.uri"),
            "images": found.count,
            "bands": ", ".join(found.bands),
            "tile_px": found.tile_px,
            "classes": f"{len(found.classes)} ({', '.join(found.classes)})",
        },
    )


def _import_images(run: Run, progress: ProgressSink) -> "DatasetInfo":
    from pipeline.datasets.importers import importers

    section = run.recipe.dataset
    settings = {name: getattr(section, name) for name in _SETTINGS[section.importer]}
    return importers[section.importer](
        run.need_path("dataset.source"),
        run.need("dataset.uri"),
        **settings,
        progress=progress,
    )


def _import_scenes(run: Run, progress: ProgressSink) -> "DatasetInfo":
    from pipeline.datasets.scenes import import_scenes
    from storage.catalog.read import read_scenes
    from workflows.labels import label_scenes

    section = run.recipe.dataset
    scenes = read_scenes(run.catalog_spec(), section.bands).scenes
    grid = replace(run.recipe.grid, tile_px=run.recipe.grid.tile_px or run.need("dataset.tile_px"))
    labels = label_scenes(
        scenes,
        grid,
        run.need_path("dataset.landcover.href"),
        run.need("dataset.landcover.classes"),
        min_fraction=section.landcover.min_fraction,
        progress=progress,
    )
    return import_scenes(
        scenes,
        grid,
        labels,
        run.need("dataset.uri"),
        bands=section.bands,
        rules=run.recipe.tiles,
        split=run.recipe.dataset.split,
        block_tiles=section.block_tiles,
        progress=progress,
    )
