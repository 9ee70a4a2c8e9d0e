"""`skysift dataset`: labelled datasets to train and evaluate with."""

from typing import TYPE_CHECKING

import click

from workflows.commands.common import Run, Verb, catalog_options, pass_run, recipe_option

if TYPE_CHECKING:
    from storage.dataset import DatasetInfo
    from storage.progress import ProgressSink


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
@recipe_option(
    "--importer",
    "dataset.importer",
    "What the source is, see above.",
    type=click.Choice([*_SETTINGS, "scenes"]),
)
@recipe_option("--source", "dataset.source", "Folder or .tar to import.", metavar="PATH")
@recipe_option("--dataset", "dataset.uri", "Dataset to write.", metavar="URI")
@recipe_option("--landcover", "dataset.landcover.href", "Land-cover raster.", metavar="URI")
@catalog_options
@pass_run
def import_(run: Run) -> None:
    """Import a labelled dataset; one that is there from the same source is kept.

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
    scenes       scenes of one's own (--scenes) and a land-cover raster

    All but bigearthnet and scenes may also be a .tar. What is missing is named.
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


def _import_images(run: Run, progress: "ProgressSink") -> "DatasetInfo":
    from pipeline.datasets.importers import importers
    from storage.location import Location
    from workflows.recipe.specs import split_rule

    section = run.recipe.dataset
    settings = {name: getattr(section, name) for name in _SETTINGS[section.importer]}
    if "split" in settings:
        settings["split"] = split_rule(run.settings)
    return importers[section.importer](
        Location.of(run.need_path("dataset.source", "--source"), run.storage),
        Location.of(run.need("dataset.uri", "--dataset"), run.storage),
        **settings,
        progress=progress,
    )


def _import_scenes(run: Run, progress: "ProgressSink") -> "DatasetInfo":
    from pipeline.datasets.scenes import import_scenes
    from storage.catalog.read import read_scenes
    from storage.location import Location
    from workflows.labels import label_scenes
    from workflows.recipe.specs import catalog_spec, grid_spec, split_rule, tile_rules

    section = run.recipe.dataset
    scenes = read_scenes(catalog_spec(run.settings), section.bands, run.storage).scenes
    grid = grid_spec(run.settings, run.need("dataset.tile_px"))
    labels = label_scenes(
        scenes,
        grid,
        run.need_path("dataset.landcover.href", "--landcover"),
        run.need("dataset.landcover.classes"),
        min_fraction=section.landcover.min_fraction,
        options=run.storage,
        progress=progress,
    )
    return import_scenes(
        scenes,
        grid,
        labels,
        Location.of(run.need("dataset.uri", "--dataset"), run.storage),
        bands=section.bands,
        rules=tile_rules(run.settings),
        split=split_rule(run.settings),
        block_tiles=section.block_tiles,
        progress=progress,
    )
