"""Labelled datasets from a recipe: of images, and of the tiles of scenes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pipeline.datasets.importers import importers, own_importer
from pipeline.datasets.own import import_own
from pipeline.datasets.scenes import import_scenes
from storage.catalog.read import read_scenes
from storage.dataset import DatasetInfo
from storage.errors import ConfigError
from storage.progress import ProgressSink
from storage.quarantine import none_readable
from workflows.labels import label_scenes, marked_labels

if TYPE_CHECKING:
    from workflows.stages import Stages

IMPORTER_KEYS = {
    "folder": ("table", "tile_px", "bands", "resolution_m", "split"),
    "dlrsd": ("min_share", "tile_px", "split"),
    "whdld": ("min_share", "tile_px", "split"),
    "uc-merced": ("tile_px", "split"),
    "ml-aid": ("tile_px", "split"),
    "bigearthnet": ("bands", "tile_px"),
    "annotated": ("table", "add_to", "split"),
}
"""The recipe keys that each importer of images takes; one's own takes `importer_options`."""


class ImportedDataset(NamedTuple):
    """A new dataset, and why scenes are missing from it."""

    info: DatasetInfo
    left_out: dict[str, str]


def import_images(stages: "Stages", progress: ProgressSink) -> ImportedDataset:
    """Import images with labels, by an importer of the project or one of the user's own."""
    section = stages.recipe.dataset
    importer: Callable[..., DatasetInfo]
    if section.importer in importers:
        importer, keys = importers[section.importer], IMPORTER_KEYS[section.importer]
        settings = {name: getattr(section, name) for name in keys}
        if section.importer_options:
            raise ConfigError(
                f"dataset.importer_options are for importers of your own; {section.importer!r} "
                f"has the keys {', '.join(f'dataset.{key}' for key in keys)}"
            )
    else:
        importer = partial(import_own, own_importer(section.importer))
        settings = {"options": section.importer_options, "split": section.split}
    info = importer(
        stages.need_path("dataset.source").with_drivers(stages.recipe.catalog.drivers),
        stages.need("dataset.uri"),
        **settings,
        progress=progress,
    )
    return ImportedDataset(info, {})


def import_tiles(stages: "Stages", progress: ProgressSink) -> ImportedDataset:
    """Import the tiles of scenes, labelled by a land-cover raster or by marks."""
    section = stages.recipe.dataset
    listing = read_scenes(stages.catalog_spec(), section.bands)
    rejected = {item.scene_id: item.reason for item in listing.distinct_rejected}
    if not listing.scenes:
        raise none_readable(rejected)
    unreadable: dict[str, str] = {}
    tile_px = stages.recipe.grid.tile_px or stages.need("dataset.tile_px")
    grid = replace(stages.recipe.grid, tile_px=tile_px)
    if section.marks is not None:
        labels = marked_labels(stages.need_path("dataset.marks"))
    else:
        labels = label_scenes(
            listing.scenes,
            grid,
            stages.need_path("dataset.landcover.href"),
            stages.need("dataset.landcover.classes"),
            min_fraction=section.landcover.min_fraction,
            left_out=unreadable,
            progress=progress,
        )
    info = import_scenes(
        listing.scenes,
        grid,
        labels,
        stages.need("dataset.uri"),
        bands=section.bands,
        rules=stages.recipe.tiles,
        split=section.split,
        block_tiles=section.block_tiles,
        left_out=unreadable,
        progress=progress,
    )
    return ImportedDataset(info, rejected | unreadable)
