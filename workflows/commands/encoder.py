"""`skysift encoder`: bundles of untrained encoders, their content, and export to a hub."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from storage.location import Location
from workflows.commands.common import (
    Run,
    Verb,
    catalog_options,
    pass_run,
    reason_lines,
    recipe_option,
)
from workflows.exit_codes import EXIT_QUARANTINED


@click.group()
def encoder() -> None:
    """Make an encoder from pretrained weights or a network of one's own, show or export one."""


@encoder.command(
    "make",
    cls=Verb,
    example="""
    skysift encoder make -r naip-series
    skysift encoder make --backbone tiny-cnn --encoder work/untrained --dataset work/aid/dataset
    skysift encoder make --backbone clip --pretrained models/clip --encoder work/clip
    skysift encoder make -r own --backbone exported --pretrained network.pt2
    skysift encoder make --trained work/run/bundle --dataset work/aid/dataset --encoder work/two
    skysift encoder make --trained work/run/bundle --place-pairs work/archive --encoder work/two""",
)
@recipe_option("--encoder", "encoder.bundle")
@recipe_option("--backbone", "encoder.backbone")
@recipe_option("--pretrained", "encoder.pretrained")
@recipe_option("--prompt", "encoder.prompt")
@recipe_option("--trained", "encoder.trained", "Bundle of a trained encoder: make two parts.")
@recipe_option(
    "--place-pairs", "encoder.place_pairs", "With --trained: archive or catalog of several dates."
)
@recipe_option("--appearance", "encoder.appearance", "With --trained: width of the added part.")
@recipe_option("--blend", "encoder.blend", "With --trained: its weight in searches, 0 to 1.")
@recipe_option("--dataset", "dataset.uri", "Dataset whose bands and statistics to take.")
@catalog_options
@pass_run
@click.pass_context
def make(ctx: click.Context, run: Run) -> None:
    """Write an encoder bundle without training it.

    The statistics of the bands are those of the recipe, else of a labelled dataset, else they are
    computed over the scenes of the catalog. Without any of these, a pretrained network of red,
    green and blue has its own, for values 0 to 255. A scene that cannot be read is left out with
    its reason (exit code 3).

    With --trained, the encoder has two parts, for `skysift search --blend`: the appearance that the
    backbone of a trained bundle sees, fitted to the training rows of the dataset, and the vectors
    of its head. With --place-pairs the first part is a head that learns to find the same place on
    another date, from an archive or from scenes that were never ingested; a dataset, if given,
    keeps its validation and test ground out.

    Backbones clip and siglip bring the text tower of their model, for `skysift search --text`.
    """
    fingerprint, left_out = run.make_encoder()
    made = {"encoder": run.need("encoder.bundle"), "fingerprint": fingerprint}
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


@encoder.command(
    "export",
    cls=Verb,
    example="""
    skysift encoder export --encoder work/run/bundle --output hub/aid --licence cc-by-nc-4.0
    skysift evaluate -r aid --json > scores.json
    skysift encoder export -r aid --output hub/aid --evaluation scores.json --trained-on AID""",
)
@recipe_option("--encoder", "encoder.bundle")
@click.option("--output", metavar="URI", required=True, help="Folder to write.")
@click.option("--name", metavar="TEXT", help="Name of the model; that of the folder without.")
@click.option("--licence", metavar="ID", help="Licence of the weights, such as apache-2.0.")
@click.option(
    "--trained-on", metavar="NAME", help="Name of the data set, such as its id on the hub."
)
@click.option(
    "--evaluation",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Result of `skysift evaluate --json`; without, the validation scores of the training.",
)
@pass_run
def export(
    run: Run,
    output: str,
    name: str | None,
    licence: str | None,
    trained_on: str | None,
    evaluation: Path | None,
) -> None:
    """Write an encoder and its model card to a folder that a model hub takes.

    The folder is an encoder as any other, with the same fingerprint and vectors. `transformers`
    reads the backbone of its architectures from it, and so does --pretrained. Nothing is uploaded:
    the client of the hub does that.
    """
    from encoders.hub import Card, export_bundle, read_evaluation

    bundle, folder = run.finished_encoder(), Location.of(output)
    split, scores = read_evaluation(evaluation, bundle) if evaluation else ("", {})
    card = Card(
        name=name or folder.stem,
        licence=licence,
        trained_on=trained_on,
        split=split,
        scores=scores,
    )
    fingerprint = export_bundle(bundle, folder, card)
    run.show({"folder": str(folder), "encoder": str(bundle), "fingerprint": fingerprint})


def _text(value: Any) -> Any:
    if isinstance(value, Mapping) and "graph" in value:
        steps = [node["op"] for node in value["graph"]["nodes"]]
        return {**value, "graph": f"{len(steps)} steps of {len(set(steps))} operators"}
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
