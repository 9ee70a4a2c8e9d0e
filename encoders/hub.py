"""An encoder as a folder that a model hub takes: the bundle's own files, and a model card.

The exported folder is a bundle (:mod:`encoders.bundle`): its files are copied byte for byte, so it
has the same fingerprint and gives the same vectors, and an archive made with one is searched with
the other. Beside them:

- ``README.md``: the model card, with the YAML block that the hub reads (licence, tags, data,
  scores as ``model-index``).
- ``config.json``: of a backbone of ``transformers`` its configuration there, so that
  ``from_pretrained`` reads the backbone with `KEY_MAPPING`; else the network's name and options.
- ``preprocessor_config.json``: mean and deviation of the bands as the hub states them, for values
  divided by 255.

Nothing here reaches a network: uploading is left to the hub's own client.

References
----------
Model cards and ``model-index``: the documentation of the Hugging Face Hub, "Model Cards".
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from encoders.backbones.transformers import ARCHITECTURES, KEY_MAPPING, hub_config
from encoders.spec import (
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    BundleFiles,
    EncoderSpec,
    read_bundle,
)
from storage.errors import ConfigError
from storage.location import Location

CARD_FILE = "README.md"
_BYTE = 255
_TAGS = ("remote-sensing", "satellite-imagery", "image-retrieval", "embeddings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The facts of a model card that a bundle does not hold.

    Attributes
    ----------
    name
        Name of the model.
    licence
        Identifier of the licence of the weights, such as ``apache-2.0``; None leaves it out.
    trained_on
        Name of the data set; None for its digest alone.
    split, scores
        Split and scores of an evaluation; empty for those that the training kept, of the
        validation split.
    """

    name: str
    licence: str | None = None
    trained_on: str | None = None
    split: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


def export_bundle(bundle: str | Location, folder: str | Location, card: Card) -> str:
    """Write a bundle and its model card to a folder, and return the fingerprint.

    Parameters
    ----------
    bundle
        Folder written by `encoders.bundle.save_bundle`.
    folder
        Folder to write; one that holds no model card, which a person may have edited.
    card
        What the model card says beside the facts of the bundle.

    Raises
    ------
    NotFoundError, EncoderMismatchError
        The bundle is not there, or a file of it was changed.
    ConfigError
        The folder holds a model card already.
    """
    source, target = Location.of(bundle), Location.of(folder)
    if (target / CARD_FILE).exists():
        raise ConfigError(
            f"{target} holds a {CARD_FILE} already, which may have been edited; give another "
            "folder, or delete it"
        )
    files = read_bundle(source)
    content = {
        "config.json": _json(_config(files.spec)),
        "preprocessor_config.json": _json(_preprocessing(files.spec)),
        WEIGHTS_FILE: files.weights,
        **({TOKENIZER_FILE: files.tokenizer} if files.spec.text else {}),
        DESCRIPTION_FILE: (source / DESCRIPTION_FILE).read(),
        CARD_FILE: model_card(files, card).encode(),
    }
    for name, data in content.items():
        (target / name).write(data)
    return files.fingerprint


def read_evaluation(file: Path, bundle: str | Location) -> tuple[str, dict[str, float]]:
    """Return split and scores of an encoder from the result of ``skysift evaluate --json``.

    Raises
    ------
    ConfigError
        The file is no such result, or one of another encoder.
    """
    try:
        found = json.loads(file.read_text())
        split, scores, scored = found["split"], dict(found["metrics"]), found["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file} is no evaluation of a dataset ({type(error).__name__}: {error}); write one "
            "with `skysift evaluate --dataset DATASET --encoder BUNDLE --json`"
        ) from error
    if scored != (own := read_bundle(bundle).fingerprint):
        raise ConfigError(
            f"{file} holds scores of encoder {str(scored)[:16]}, and {bundle} is {own[:16]}; "
            "evaluate this encoder"
        )
    return split, {name: value for name, value in scores.items() if value is not None}


def model_card(files: BundleFiles, card: Card) -> str:
    """Return the text of a model card, with its YAML block."""
    spec = files.spec
    header = yaml.safe_dump(_header(spec, card), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {card.name}",
        _opening(spec),
        _input(spec),
        _use(spec),
        _training(files, card),
    ]
    if scores := _scores(spec, card):
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
        parts.append(
            f"## Scores\n\nRetrieval by shared labels, {_split(card)} split.\n\n"
            f"| score | value |\n|---|---|\n{rows}"
        )
    licence = card.licence or "Not stated: ask the author before you use the weights."
    return "\n\n".join([*parts, f"## Licence\n\n{licence}"]) + "\n"


def _header(spec: EncoderSpec, card: Card) -> dict[str, Any]:
    """Return the values that the hub reads from a model card."""
    loss = [spec.loss["name"]] if spec.loss else []
    header: dict[str, Any] = {
        "library_name": "skysift",
        "pipeline_tag": "image-feature-extraction",
        "tags": [*_TAGS, spec.backbone, *loss],
    }
    if card.licence:
        header["license"] = card.licence
    if card.trained_on:
        header["datasets"] = [card.trained_on]
    if scores := _scores(spec, card):
        name = card.trained_on or _dataset(spec)
        kind = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        found = [{"type": n, "name": n, "value": round(v, 6)} for n, v in scores.items()]
        result = {
            "task": {"type": "image-retrieval", "name": "Retrieval by shared labels"},
            "dataset": {"type": kind, "name": name, "split": _split(card)},
            "metrics": found,
        }
        header["metrics"] = list(scores)
        header["model-index"] = [{"name": card.name, "results": [result]}]
    return header


def _scores(spec: EncoderSpec, card: Card) -> dict[str, float]:
    """Return the scores to state, without those that are not numbers."""
    scores = card.scores or spec.training.get("metrics", {})
    return {name: float(value) for name, value in scores.items() if math.isfinite(value)}


def _split(card: Card) -> str:
    return card.split if card.scores else "validation"


def _dataset(spec: EncoderSpec) -> str:
    return f"data set {str(spec.training.get('dataset', 'unknown'))[:16]}"


def _opening(spec: EncoderSpec) -> str:
    parts = spec.parts
    form = f"{spec.dimension} numbers of unit length"
    if parts is not None:
        form += f": {parts.appearance} of {spec.first_part}, then {parts.labels} of labels"
    return (
        f"An encoder of satellite and aerial image tiles: {len(spec.bands)} bands of "
        f"{spec.tile_px} x {spec.tile_px} pixels to a vector of {form}. Vectors of similar ground "
        f"have a large cosine. The network is {spec.backbone}."
    )


def _input(spec: EncoderSpec) -> str:
    """Return the section on bands, statistics and pixel size."""
    ground = f"{spec.resolution_m:g} m" if spec.resolution_m else "not stated"
    bands = zip(spec.bands, spec.band_mean, spec.band_std, strict=True)
    rows = "\n".join(f"| {name} | {mean:.6g} | {std:.6g} |" for name, mean, std in bands)
    return (
        f"## Input\n\nPixel values as they are in the files, less the mean, over the deviation; "
        f"an invalid pixel (NaN) becomes the mean. Tile: {spec.tile_px} px, ground size of a "
        f"pixel: {ground}.\n\n| band | mean | deviation |\n|---|---|---|\n{rows}"
    )


def _use(spec: EncoderSpec) -> str:
    """Return the section on reading the folder, with ``transformers`` where that can."""
    text = (
        "## Use\n\n`FOLDER` is this folder, downloaded.\n\n"
        "```python\nfrom skysift import Encoder\n\n"
        'encoder = Encoder.load("FOLDER")\n'
        f"vectors = encoder(tiles)  # (n, {len(spec.bands)}, {spec.tile_px}, {spec.tile_px}) to "
        f"(n, {spec.dimension})\n```\n\n"
        "```sh\nskysift encoder info --encoder FOLDER\n"
        "skysift evaluate --dataset DATASET --encoder FOLDER\n```"
    )
    if spec.backbone not in ARCHITECTURES:
        return text
    model = ARCHITECTURES[spec.backbone][1]
    return (
        f"{text}\n\nThe backbone alone, to train it further or by `transformers`:\n\n"
        f"```sh\nskysift train --dataset DATASET --backbone {spec.backbone} --pretrained FOLDER "
        "--output RUN\n```\n\n"
        f"```python\nfrom transformers import {model}\n\n"
        f'backbone = {model}.from_pretrained("FOLDER", key_mapping={KEY_MAPPING!r})\n```'
    )


def _training(files: BundleFiles, card: Card) -> str:
    """Return the section on the data, the loss and the identity of the encoder."""
    spec, lines = files.spec, []
    if spec.training.get("dataset"):
        named = f"{card.trained_on}, " if card.trained_on else ""
        lines.append(f"- Data: {named}{_dataset(spec)}.")
    if spec.classes:
        lines.append(f"- Labels: {', '.join(spec.classes)}.")
    if spec.loss:
        options = ", ".join(f"{k} {v}" for k, v in spec.loss.items() if k != "name")
        lines.append(f"- Loss: {spec.loss['name']}{f' ({options})' if options else ''}.")
    if (frozen := spec.training.get("freeze_backbone")) is not None:
        lines.append(f"- Trained: {'the head alone' if frozen else 'every weight'}.")
    if not lines:
        lines.append("- Not trained on labels.")
    return "\n".join(["## Training", "", *lines, f"- Fingerprint: `{files.fingerprint}`."])


def _config(spec: EncoderSpec) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    if spec.backbone in ARCHITECTURES:
        return hub_config(spec.backbone, spec.bands, spec.backbone_options)
    options = {name: value for name, value in spec.backbone_options.items() if name != "graph"}
    return {"model_type": spec.backbone, "num_channels": len(spec.bands), **options}


def _preprocessing(spec: EncoderSpec) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``; any unit of the pixels cancels out."""
    return {
        "do_rescale": True,
        "rescale_factor": 1 / _BYTE,
        "do_normalize": True,
        "image_mean": [mean / _BYTE for mean in spec.band_mean],
        "image_std": [std / _BYTE for std in spec.band_std],
        "size": {"height": spec.tile_px, "width": spec.tile_px},
        "bands": list(spec.bands),
        "resolution_m": spec.resolution_m,
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
