"""`skysift encoder`: bundles that no training made, and what is in a bundle."""

from typing import Any

import click

from workflows.commands.common import Run, Verb, catalog_options, pass_run, recipe_option


@click.group()
def encoder() -> None:
    """Make an encoder from pretrained weights alone, or look at one."""


@encoder.command(
    "make",
    cls=Verb,
    example="""
    skysift encoder make -r naip-series
    skysift encoder make --backbone tiny-cnn --encoder work/untrained --dataset work/aid/dataset""",
)
@recipe_option("--encoder", "encoder.bundle", "Bundle to write.", metavar="URI")
@recipe_option("--backbone", "encoder.backbone", "Kind of network.", metavar="NAME")
@recipe_option(
    "--pretrained", "encoder.pretrained", "Folder of pretrained weights.", metavar="FOLDER"
)
@recipe_option(
    "--dataset", "dataset.uri", "Dataset whose bands and statistics to take.", metavar="URI"
)
@catalog_options
@pass_run
def make(run: Run) -> None:
    """Write an encoder bundle without training it.

    The statistics of the bands come from the recipe, else from a labelled dataset, else they are
    computed over the scenes of the catalog.
    """
    from encoders.bundle import new_encoder, save_bundle

    target = run.need("encoder.bundle", "--encoder")
    if run.recipe.encoder.pretrained is not None:
        run.need_path("encoder.pretrained", "--pretrained")
    section = run.recipe.encoder
    untrained = new_encoder(_spec(run), pretrained=section.pretrained, seed=section.seed)
    fingerprint = save_bundle(untrained, target, run.storage)
    run.show({"encoder": target, "fingerprint": fingerprint})


@encoder.command("info", cls=Verb, example="skysift encoder info --encoder work/bundle")
@recipe_option("--encoder", "encoder.bundle", "Bundle to read.", metavar="URI")
@pass_run
def info(run: Run) -> None:
    """Say what an encoder takes and what it was trained with."""
    from dataclasses import asdict

    from encoders.bundle import load_encoder

    uri = run.need_path("encoder.bundle", "--encoder")
    loaded = load_encoder(uri, run.storage)
    facts = {"encoder": uri, "fingerprint": loaded.fingerprint, **asdict(loaded.spec)}
    run.show(facts, {name: _text(value) for name, value in facts.items()})


def _spec(run: Run) -> Any:
    from dataclasses import replace

    from pipeline.analysis.statistics import band_statistics
    from storage.catalog.read import read_scenes
    from storage.dataset import read_info
    from workflows.recipe.specs import catalog_spec, encoder_spec

    section = run.recipe.encoder
    if section.band_mean is not None and section.band_std is not None:
        return encoder_spec(run.settings, section.band_mean, section.band_std)
    if run.recipe.dataset.uri is not None:
        found = read_info(run.recipe.dataset.uri, run.storage)
        spec = encoder_spec(run.settings, found.band_mean, found.band_std)
        return replace(spec, bands=found.bands, tile_px=found.tile_px, classes=found.classes)
    listing = read_scenes(catalog_spec(run.settings), section.bands, run.storage)
    with run.progress() as progress:
        statistics = band_statistics(listing.scenes, options=run.storage, progress=progress)
    return encoder_spec(run.settings, statistics.mean, statistics.std)


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
