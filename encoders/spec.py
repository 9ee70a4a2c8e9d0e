"""Specifications of encoders and of their optimisation, and the bundle on disk, without torch.

Planning a run reads a bundle from here and does not import torch. :mod:`encoders.bundle` builds and
saves encoders and describes the format of the two files; :mod:`encoders.loop` trains.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage.errors import ConfigError, EncoderMismatchError, NotFoundError
from storage.location import Location
from storage.parts import Parts
from storage.values import (
    Count,
    Natural,
    NonNegative,
    Positive,
    as_spec,
    check_limits,
    check_types,
    json_digest,
    refuse_later,
)

FORMAT = "skysift-encoder/1"
DESCRIPTION_FILE, WEIGHTS_FILE = "encoder.json", "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_REMEDY = "restore the bundle, or repeat the `skysift train` or `skysift encoder make` of it"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """Description of an encoder, in plain values.

    Attributes
    ----------
    backbone
        Name of the network for `encoders.backbones.build.build_backbone`.
    backbone_options
        Options of that network.
    bands
        Band names in channel order.
    band_mean
        Mean of each band, in the unit of the raw pixel values.
    band_std
        Standard deviation of each band, in the unit of the raw pixel values.
    tile_px
        Height and width of a tile.
    resolution_m
        Ground size of a pixel of the training tiles; None when unknown.
    dimension
        Length of a vector, D.
    head
        Options for `encoders.projection.build_head`.
    classes
        Labels of the training set, in column order.
    loss
        Name and options of the loss.
    training
        Provenance of the training run.
    text
        Options of the text tower for `encoders.text.TextTower`; empty without one.
    """

    backbone: str
    bands: tuple[str, ...]
    band_mean: tuple[float, ...]
    band_std: tuple[Positive, ...]
    tile_px: Count
    dimension: Count
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "mlp", "hidden": 512})
    resolution_m: Positive | None = None
    classes: tuple[str, ...] = ()
    loss: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.band_mean) == len(self.band_std):
            raise ConfigError(
                f"encoder: {len(self.bands)} bands, {len(self.band_mean)} means and "
                f"{len(self.band_std)} standard deviations; give one of each per band"
            )
        check_limits(self, "encoder")
        if self.parts is not None and self.parts.dimension != self.dimension:
            raise ConfigError(
                f"encoder: its parts have {self.parts.dimension} values, but dimension is "
                f"{self.dimension}; save the bundle again"
            )

    @property
    def parts(self) -> Parts | None:
        """The parts of a vector, which the options of a head of two parts state; else None."""
        if self.head.get("kind") != "parts":
            return None
        stated = {k: v for k, v in self.head.items() if k not in ("kind", "roots", "head")}
        return as_spec(Parts, stated, "encoder.head")

    @property
    def first_part(self) -> Literal["appearance", "places"]:
        """What the first of two parts is: what the backbone sees, or places that were learned."""
        return "places" if "places" in self.training else "appearance"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSpec:
    """Settings of the optimisation, read by `encoders.loop.TrainingLoop`.

    Attributes
    ----------
    epochs
        Passes over the training rows.
    batch_size
        Rows of the global batch.
    learning_rate
        Highest learning rate of AdamW, between a linear warm-up and a cosine decay to zero.
    backbone_learning_rate
        The same for the backbone. None: a tenth of `learning_rate` for pretrained weights, which
        the full rate of a random head would overwrite, else `learning_rate`.
    weight_decay
        Weight decay of AdamW.
    warmup_epochs
        Epochs of the warm-up.
    gradient_clip
        Largest norm of the gradient; a longer gradient is scaled down.
    sampling_power
        Lift of rare labels by the batch sampler, 0 (none) to 1.
    seed
        Seed of the weights, the batches and the augmentation.
    precision
        ``bf16`` runs the network under autocast.
    freeze_backbone
        Train only the head; the inputs are features of the backbone instead of pixels.
    augment
        Options of `encoders.augment.Augmentation` for pixel batches; None for no augmentation. Not
        used with a frozen backbone.
    queue_rows
        Keys kept from earlier batches (`encoders.gather.KeyQueue`); 0 for none.
    chunk_rows
        Rows encoded at once when a batch does not fit into memory (GradCache); 0 for all.
    ema_decay
        Decay per step of an exponential moving average of the weights, which is evaluated and
        stored in place of the last weights; 0 for none, 0.99 to 0.9999 otherwise. It holds one
        more copy of the trained weights in memory.
    """

    epochs: Count = 20
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    backbone_learning_rate: Positive | None = None
    weight_decay: NonNegative = 0.01
    warmup_epochs: NonNegative = 1.0
    gradient_clip: Positive = 1.0
    sampling_power: float = 0.5
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze_backbone: bool = False
    augment: Mapping[str, Any] | None = field(default_factory=dict)
    queue_rows: Natural = 0
    chunk_rows: Natural = 0
    ema_decay: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_limits(self, "training")
        if self.ema_decay >= 1:
            raise ConfigError(
                f"training: ema_decay {self.ema_decay} would keep the first weights; give less "
                "than 1, such as 0.999"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"training: precision {self.precision!r} is not fp32 or bf16")


def dimension_of_each(dimension: int, heads: int) -> int:
    """Return the dimension of each head of an ensemble; raise ConfigError if it is no integer."""
    if dimension % heads:
        raise ConfigError(
            f"{heads} heads cannot share {dimension} dimensions evenly; give a multiple of {heads}"
        )
    return dimension // heads


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleFiles:
    """The checked content of a bundle.

    Attributes
    ----------
    spec
        The parsed description.
    fingerprint
        SHA-256 over the SHA-256 of description and weights: the encoder's identity in an archive.
        The description states the SHA-256 of the tokenizer.
    weights
        The bytes of ``model.safetensors``.
    tokenizer
        The bytes of ``tokenizer.json``; empty without a text tower.
    """

    spec: EncoderSpec
    fingerprint: str
    weights: bytes = field(repr=False)
    tokenizer: bytes = field(default=b"", repr=False)


def read_bundle(uri: str | Location) -> BundleFiles:
    """Read the files of a bundle and check that they belong together.

    Raises
    ------
    NotFoundError
        The folder or one of its files does not exist.
    ConfigError
        ``encoder.json`` is malformed.
    EncoderMismatchError
        A file was changed after it was saved.
    """
    folder = Location.of(uri)
    description, weights = _read(folder, DESCRIPTION_FILE), _read(folder, WEIGHTS_FILE)
    spec, stated = _parse(description, folder)
    tokenizer = _read(folder, TOKENIZER_FILE) if spec.text else b""
    for name, content in ((WEIGHTS_FILE, weights), (TOKENIZER_FILE, tokenizer)):
        found = hashlib.sha256(content).hexdigest()
        if name in stated and found != stated[name]:
            raise EncoderMismatchError(
                f"{folder / name} was changed after it was saved: it hashes to "
                f"{found[:16]}, {DESCRIPTION_FILE} states {str(stated[name])[:16]}; {_REMEDY}"
            )
    return BundleFiles(
        spec=spec,
        fingerprint=bundle_fingerprint(description, weights),
        weights=weights,
        tokenizer=tokenizer,
    )


def read_spec(uri: str | Location) -> EncoderSpec:
    """Read the description of a bundle alone: a few kilobytes, whatever the size of the weights.

    Raises
    ------
    NotFoundError
        The folder or its ``encoder.json`` does not exist.
    ConfigError
        ``encoder.json`` is malformed.
    EncoderMismatchError
        ``encoder.json`` was changed after it was saved.
    """
    folder = Location.of(uri)
    return _parse(_read(folder, DESCRIPTION_FILE), folder)[0]


def no_text(backbone: str, fingerprint: str) -> str:
    """Return why an encoder embeds no words, and the next step."""
    return (
        f"encoder {fingerprint[:16]} ({backbone}) has no text tower: ask by a picture, place or "
        "tile, or embed the scenes with an encoder that has one (docs/search.md, Words)"
    )


def _read(folder: Location, name: str) -> bytes:
    try:
        return (folder / name).read()
    except NotFoundError as error:
        raise NotFoundError(f"bundle {folder}: {error}; {_REMEDY}") from error


def pretrained_folder(source: str) -> Path | None:
    """Return the folder that a name of pretrained weights means; None for an id on the model hub.

    An id is ``name`` or ``owner/name``. A name is a folder where it exists, lies in a folder that
    exists, is absolute, begins with ``.`` or ``~``, or has more than one slash.

    Examples
    --------
    >>> pretrained_folder("facebook/dinov2-small"), pretrained_folder("./weights")
    (None, PosixPath('weights'))
    """
    path = Path(source).expanduser()
    is_path = path.is_absolute() or source.startswith(".") or source.count("/") > 1
    return path if is_path or Path(*path.parts[:1]).exists() else None


def _parse(description: bytes, folder: Location) -> tuple[EncoderSpec, dict[str, str]]:
    """Return the spec, and the SHA-256 that the description states of each other file."""
    where = folder / DESCRIPTION_FILE
    try:
        content = json.loads(description)
        if isinstance(content, dict):
            refuse_later(f"bundle {folder}", content.get("format"), FORMAT)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError(f"{where} is not of format {FORMAT}; {_REMEDY}")
        raw = content["spec"]
        stated_spec, stated = content["spec_sha256"], {WEIGHTS_FILE: content["weights_sha256"]}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
        }
        spec = EncoderSpec(**values)
        check_types(spec)
        if spec.text:
            stated[TOKENIZER_FILE] = content["tokenizer_sha256"]
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is malformed ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    if json_digest(raw) != stated_spec:
        raise EncoderMismatchError(
            f"{where} was changed after it was saved: its description hashes to "
            f"{json_digest(raw)[:16]}, it states {str(stated_spec)[:16]}; {_REMEDY}"
        )
    return spec, stated


def bundle_fingerprint(description: bytes, weights: bytes) -> str:
    """Return the fingerprint of a bundle from the bytes of its description and weights."""
    parts = (hashlib.sha256(part).digest() for part in (description, weights))
    return hashlib.sha256(b"".join(parts)).hexdigest()
