"""What an encoder on disk says of itself, read without torch: the plan of a run needs no network.

:mod:`encoders.bundle` builds and saves encoders; the format of the two files is described there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.errors import ConfigError, EncoderMismatchError
from storage.location import StorageOptions, join_uri, read_bytes

FORMAT = "skysift-encoder/1"
DESCRIPTION_FILE, WEIGHTS_FILE = "encoder.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """What an encoder is, in plain values.

    Attributes
    ----------
    backbone, backbone_options
        Name and options for `encoders.backbones.build.build_backbone`.
    bands
        Band names in channel order.
    band_mean, band_std
        Mean and standard deviation of each band, in the unit of the raw pixel values.
    tile_px
        Height and width of a tile.
    resolution_m
        Ground size of a pixel the encoder was trained at; None when unknown.
    dimension
        Length of a vector, D.
    head
        Options for `encoders.projection.build_head`.
    classes
        Labels it was trained with, in column order.
    loss, training
        Name and options of the loss; what is known of the run. For people and for provenance.
    """

    backbone: str
    bands: tuple[str, ...]
    band_mean: tuple[float, ...]
    band_std: tuple[float, ...]
    tile_px: int
    dimension: int
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "mlp", "hidden": 512})
    resolution_m: float | None = None
    classes: tuple[str, ...] = ()
    loss: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.bands) == len(self.band_mean) == len(self.band_std):
            raise ConfigError(
                f"encoder: {len(self.bands)} bands, {len(self.band_mean)} means and "
                f"{len(self.band_std)} standard deviations; give one of each per band"
            )
        if not all(std > 0 for std in self.band_std):
            raise ConfigError(
                f"encoder: band_std {self.band_std} must be positive; drop the constant band"
            )
        if self.tile_px < 1 or self.dimension < 1:
            raise ConfigError(
                f"encoder: tile_px {self.tile_px} and dimension {self.dimension} must be positive"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleFiles:
    """The checked content of a bundle.

    Attributes
    ----------
    spec
        The description, parsed.
    fingerprint
        The sha256 of both files' sha256: the name under which an archive knows the encoder.
    weights
        The bytes of ``model.safetensors``.
    """

    spec: EncoderSpec
    fingerprint: str
    weights: bytes = field(repr=False)


def read_bundle(uri: str, options: StorageOptions | None = None) -> BundleFiles:
    """Read both files of a bundle and check that they belong together.

    Raises
    ------
    NotFoundError
        The folder or one of its two files is not there.
    ConfigError
        ``encoder.json`` is malformed.
    EncoderMismatchError
        A file was changed after it was saved.
    """
    description = read_bytes(join_uri(uri, DESCRIPTION_FILE), options)
    weights = read_bytes(join_uri(uri, WEIGHTS_FILE), options)
    return BundleFiles(
        spec=_parse(description, weights, uri),
        fingerprint=bundle_fingerprint(description, weights),
        weights=weights,
    )


def _parse(description: bytes, weights: bytes, uri: str) -> EncoderSpec:
    where = join_uri(uri, DESCRIPTION_FILE)
    try:
        content = json.loads(description)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError(f"{where} is not of format {FORMAT}; save the bundle again")
        raw = content["spec"]
        stated_spec, stated_weights = content["spec_sha256"], content["weights_sha256"]
        spec = EncoderSpec(**{name: _frozen(value) for name, value in raw.items()})
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is malformed ({type(error).__name__}: {error}); save the bundle again"
        ) from error
    if spec_digest(raw) != stated_spec:
        raise EncoderMismatchError(
            f"{where} was changed after it was saved: its description hashes to "
            f"{spec_digest(raw)[:16]}, it states {str(stated_spec)[:16]}; restore the bundle"
        )
    found = hashlib.sha256(weights).hexdigest()
    if found != stated_weights:
        raise EncoderMismatchError(
            f"{join_uri(uri, WEIGHTS_FILE)} was changed after it was saved: it hashes to "
            f"{found[:16]}, {DESCRIPTION_FILE} states {str(stated_weights)[:16]}; "
            "restore the bundle"
        )
    return spec


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def spec_digest(spec: Any) -> str:
    """Return the sha256 of a description's plain values."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def bundle_fingerprint(description: bytes, weights: bytes) -> str:
    """Return the fingerprint of a bundle from the bytes of its two files."""
    parts = (hashlib.sha256(part).digest() for part in (description, weights))
    return hashlib.sha256(b"".join(parts)).hexdigest()
