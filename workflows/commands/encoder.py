"""`skysift encoder`: bundles of untrained encoders, and the content of a bundle."""

from dataclasses import asdict
from typing import Any

import click

from encoders.spec import EncoderSpec
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
from workflows.recipe.sections import spec_from


@click.group()
def encoder() -> None:
    """Make an encoder from pretrained weights, or show one."""


@encoder.command(
    "make",
    cls=Verb,
    example="""
    skysift encoder make -r naip-series
    skysift encoder make --backbone tiny-cnn --encoder work/untrained --dataset work/aid/dataset""",
)
@recipe_option("--encoder", "encoder.bundle")
@recipe_option("--backbone", "encoder.backbone")
@recipe_option("--pretrained", "encoder.pretrained")
@recipe_option("--dataset", "dataset.uri", "Dataset whose bands and statistics to take.")
@catalog_options
@pass_run
@click.pass_context
def make(ctx: click.Context, run: Run) -> None:
    """Write an encoder bundle without training it.

    The statistics of the bands are those of the recipe, else of a labelled dataset, else they are
    computed over the scenes of the catalog. A scene that cannot be read is left out with its reason
    (exit code 3).
    """
    from encoders.bundle import new_encoder, require_distinct_vectors, save_bundle

    target = run.need("encoder.bundle")
    if run.recipe.encoder.pretrained is not None:
        run.need_path("encoder.pretrained")
    section = run.recipe.encoder
    spec, left_out = _spec(run)
    untrained = new_encoder(spec, pretrained=section.pretrained, seed=section.seed)
    require_distinct_vectors(untrained)
    made = {"encoder": target, "fingerprint": save_bundle(untrained, target)}
    reasons = reason_lines("scenes left out", left_out) if left_out else {}
    run.show({**made, "left_out": left_out}, {**made, **reasons})
    if left_out:
        ctx.exit(EXIT_QUARANTINED)


@encoder.command("info", cls=Verb, example="skysift encoder info --encoder work/bundle")
@recipe_option("--encoder", "encoder.bundle")
@pass_run
def info(run: Run) -> None:
    """Show the inputs of an encoder and its training."""
    from encoders.bundle import load_encoder

    uri = run.need_path("encoder.bundle")
    loaded = load_encoder(uri)
    facts = {"encoder": uri, "fingerprint": loaded.fingerprint, **asdict(loaded.spec)}
    run.show(facts, {name: _text(value) for name, value in facts.items()})


def _spec(run: Run) -> tuple[EncoderSpec, dict[str, str]]:
    """Return the spec of a new encoder, and why scenes are missing from its statistics."""
    from pipeline.analysis.statistics import band_statistics
    from storage.catalog.read import read_scenes
    from storage.dataset import read_info
    from storage.quarantine import none_readable

    section = run.recipe.encoder
    if section.band_mean is not None and section.band_std is not None:
        return spec_from(EncoderSpec, section), {}
    if run.recipe.dataset.uri is not None:
        info = read_info(run.recipe.dataset.uri)
        names = ("band_mean", "band_std", "bands", "tile_px", "classes")
        return spec_from(EncoderSpec, section, **{name: getattr(info, name) for name in names}), {}
    listing = read_scenes(run.catalog_spec(), section.bands)
    rejected = {item.scene_id: item.reason for item in listing.distinct_rejected}
    if not listing.scenes:
        raise none_readable(rejected)
    with ProgressView() as progress:
        statistics = band_statistics(listing.scenes, progress=progress)
    spec = spec_from(EncoderSpec, section, band_mean=statistics.mean, band_std=statistics.std)
    return spec, {**rejected, **statistics.skipped}


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
