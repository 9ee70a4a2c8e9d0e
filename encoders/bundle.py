"""An encoder on disk: ``encoder.json`` and ``model.safetensors``, read without unpickling.

An encoder with a text tower has ``tokenizer.json`` besides.

The JSON file holds all settings that decide the embedding of a pixel (architecture, bands with mean
and standard deviation, tile size, head), the provenance (classes, loss, training run) and the hash
of each other file. The fingerprint is the hash of description and weights and identifies the
encoder of an archive.

Shape legend: B batch, N tiles, C bands, H and W pixels, F features, D embedding dimension.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from encoders.backbones.build import BACKBONES, build_backbone
from encoders.backbones.own import Own
from encoders.backbones.stem import Backbone
from encoders.plugins import find_plugin
from encoders.projection import TwoParts, appearance_head, build_head
from encoders.spec import (
    DESCRIPTION_FILE,
    FORMAT,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    EncoderSpec,
    bundle_fingerprint,
    no_text,
    read_bundle,
)
from encoders.text import PLAIN_PROMPT, TextTower, build_text, pretrained_text
from storage.display import Described
from storage.errors import ConfigError
from storage.location import Location
from storage.locks import exclusive_lock
from storage.parts import DEFAULT_BLEND, PLACE_BLEND, Parts
from storage.values import json_digest

_CHUNK_TILES = {"cpu": 16}
"""Tiles per forward pass. 16 tiles fit into the caches of a CPU: tiny-cnn is 1.8 times as fast as
with 128 tiles of 224 pixels a side. Other devices need more tiles to be busy."""
_CHUNK_TILES_ELSEWHERE = 256
_UNIT_TOLERANCE = 1e-5


class Encoder(Described, nn.Module):
    """Map raw pixel values to unit vectors.

    Parameters
    ----------
    spec
        Description of the encoder.
    backbone, head
        Networks that match ``spec``; built from ``spec`` with random weights when None.
    text
        The text tower that ``spec`` describes; None where it describes none.

    Attributes
    ----------
    bands, tile_px, dimension
        Those of ``spec``.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Backbone | None = None,
        head: nn.Module | None = None,
        text: TextTower | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.bands, self.tile_px, self.dimension = spec.bands, spec.tile_px, spec.dimension
        self.backbone = backbone or build_backbone(
            spec.backbone, spec.bands, **spec.backbone_options
        )
        self.head = head or build_head(self.backbone.dimension, spec.dimension, spec.head)
        self.text = text
        for name, values in (("mean_C11", spec.band_mean), ("std_C11", spec.band_std)):
            column = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        nn.Module.to(self, memory_format=self.backbone.memory_format)  # type: ignore[call-overload]

    @classmethod
    def load(
        cls, uri: str | Location, device: str | None = "cpu", *, words: bool = True
    ) -> "Encoder":
        """Read and check an encoder; return the encoder in evaluation mode.

        Parameters
        ----------
        uri
            Folder written by `save_bundle`.
        device
            Torch device for the weights; None for a GPU if one is available.
        words
            Load the text tower too, if there is one; images are embedded without it.

        Raises
        ------
        NotFoundError
            The folder or one of its files does not exist.
        ConfigError
            ``encoder.json`` is malformed, or names another architecture than that of the weights.
        EncoderMismatchError
            A file was changed after it was saved.
        """
        files = read_bundle(uri)
        try:
            described = files.spec.text if words else {}
            text = (
                build_text(files.spec.backbone, described, files.tokenizer) if described else None
            )
            encoder = cls(files.spec, text=text)
            weights = safetensors.torch.load(files.weights)
            if not words:
                weights = {n: part for n, part in weights.items() if not n.startswith("text.")}
            encoder.load_state_dict(weights)
        except ConfigError as error:
            raise ConfigError(f"bundle {uri}: {error}") from error
        except (RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"bundle {uri}: the weights do not fit {DESCRIPTION_FILE} ({reason}); "
                "save the bundle again"
            ) from error
        encoder.__dict__["fingerprint"] = files.fingerprint
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return encoder.eval().requires_grad_(False).to(device)

    def facts(self) -> dict[str, Any]:
        """Return network, bands, tile size, dimension, classes and fingerprint."""
        pixel, parts = self.spec.resolution_m, self.spec.parts
        first = self.spec.first_part
        split = f": {parts.appearance} {first}, {parts.labels} labels" if parts else ""
        return {
            "backbone": self.spec.backbone,
            "bands": self.bands,
            "tiles of": f"{self.tile_px} px" + (f" of {pixel:g} m" if pixel else ""),
            "vectors": f"{self.dimension} values{split}",
            "trained on": self.spec.classes,
            "loss": self.spec.loss.get("name"),
            "words as": self.spec.text.get("prompt"),
            "parameters": sum(part.numel() for part in self.parameters()),
            "fingerprint": self.fingerprint[:16],
        }

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean_C11.device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the files of the bundle, computed on first access.

        `load_encoder` and `save_bundle` give the same value for the same encoder.
        """
        files = _serialise(self)
        return bundle_fingerprint(files[DESCRIPTION_FILE], files[WEIGHTS_FILE])

    def normalise(self, x_BCHW: Tensor) -> Tensor:
        """Scale raw values to mean 0 and deviation 1 per band; NaN (invalid) becomes 0.

        Raises
        ------
        ConfigError
            The bands or the size of the tiles differ from the encoder's.
        """
        expected = (len(self.bands), self.tile_px, self.tile_px)
        if x_BCHW.ndim != 4 or tuple(x_BCHW.shape[1:]) != expected:
            raise ConfigError(
                f"encoder: tiles have shape {tuple(x_BCHW.shape)}, expected (n, "
                f"{', '.join(map(str, expected))}) for bands {', '.join(self.bands)}; "
                "read those bands at that tile size"
            )
        x_BCHW = (x_BCHW.to(self.mean_C11.dtype) - self.mean_C11) / self.std_C11
        x_BCHW = torch.nan_to_num(x_BCHW, 0.0, 0.0, 0.0)
        return x_BCHW.contiguous(memory_format=self.backbone.memory_format)

    def project(self, features_BF: Tensor) -> Tensor:
        """Project features to unit vectors z_BD, float32 (also under autocast)."""
        return F.normalize(self.head(features_BF).to(self.mean_C11.dtype), dim=1)

    @overload
    def forward(self, x_BCHW: Tensor) -> Tensor: ...
    @overload
    def forward(self, x_BCHW: NDArray[Any]) -> NDArray[np.float32]: ...
    def forward(self, x_BCHW: Tensor | NDArray[Any]) -> Tensor | NDArray[np.float32]:
        """Encode tiles.

        Parameters
        ----------
        x_BCHW
            Raw pixel values in the bands and tile size of the encoder; NaN is invalid and becomes
            the band's mean. A tensor keeps its graph; an array of any numeric dtype is encoded in
            chunks, in inference and evaluation mode, and may be a memory map of any length.

        Returns
        -------
        Tensor or ndarray
            z_BD, float32, unit norm; a tensor for a tensor, an array for an array.

        Raises
        ------
        ConfigError
            The bands or the size of the tiles differ from the encoder's.
        """
        if isinstance(x_BCHW, Tensor):
            return self.project(self.backbone(self.normalise(x_BCHW)))
        return self._in_chunks(self.forward, x_BCHW, self.dimension)

    __call__ = forward

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode words.

        Parameters
        ----------
        texts
            What tiles may show, such as ``["solar farm in desert"]``.

        Returns
        -------
        ndarray
            z_BD, float32, unit norm, in the space of the tiles' vectors.

        Raises
        ------
        ConfigError
            The encoder has no text tower, or a text is empty or too long.
        """
        if self.text is None:
            raise ConfigError(no_text(self.spec.backbone, self.fingerprint))
        with torch.inference_mode():
            z_BD = F.normalize(self.text(texts).float(), dim=1)
        return np.asarray(z_BD.cpu().numpy())

    def features(self, x_NCHW: NDArray[Any]) -> NDArray[np.float32]:
        """Return the backbone's features (N, F), float32, of tiles as for `forward`."""
        return self._in_chunks(
            lambda x_BCHW: self.backbone(self.normalise(x_BCHW)).float(),
            x_NCHW,
            self.backbone.dimension,
        )

    def projected(self, features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors (N, D), float32, of features that `features` returned."""
        return self._in_chunks(self.project, features_NF, self.dimension)

    def _in_chunks(
        self, network: Callable[[Tensor], Tensor], rows: NDArray[Any], width: int
    ) -> NDArray[np.float32]:
        """Return what a part of the encoder makes of rows, (N, width), in evaluation mode."""
        training = self.training
        self.eval()
        out = np.empty((len(rows), width), dtype=np.float32)
        step = _CHUNK_TILES.get(self.device.type, _CHUNK_TILES_ELSEWHERE)
        try:
            with torch.inference_mode():
                for start in range(0, max(len(rows), 1), step):
                    # Torch wants to own what it may write; a read-only memory map is copied.
                    chunk = np.require(rows[start : start + step], np.float32, "W")
                    made = network(torch.from_numpy(chunk).to(self.device))
                    out[start : start + step] = made.cpu().numpy()
        finally:
            self.train(training)
        return out


load_encoder = Encoder.load


def save_bundle(encoder: Encoder, uri: str | Location) -> str:
    """Write an encoder to a folder and return its fingerprint.

    The description is written last: a reader between the writes finds no bundle or raises an
    error, since the files do not belong together.
    """
    files = _serialise(_without_code(encoder))
    folder = Location.of(uri)
    # Without the lock the files of two encoders that are saved at once could be mixed. In an object
    # store nothing prevents that, and the mixed bundle is refused when it is loaded.
    alone = exclusive_lock(folder, "encoder", beside="save") if folder.is_local else nullcontext()
    with alone:
        for name, content in files.items():
            (folder / name).write(content)
    return bundle_fingerprint(files[DESCRIPTION_FILE], files[WEIGHTS_FILE])


def _without_code(encoder: Encoder) -> Encoder:
    """Return an encoder whose backbone is no code of the user's, but its graph."""
    own = encoder.backbone
    if not isinstance(own, Own):
        return encoder
    network = own.exported()
    spec = replace(
        encoder.spec,
        backbone="exported",
        backbone_options=network.options,
        training={**encoder.spec.training, "backbone": own.origin},
    )
    return Encoder(spec, network, encoder.head, encoder.text)


def new_encoder(
    spec: EncoderSpec,
    *,
    pretrained: str | None = None,
    seed: int = 0,
) -> Encoder:
    """Build an untrained encoder, to start from or to compare with.

    Parameters
    ----------
    spec
        The encoder. ``backbone_options`` and, for an identity head, ``dimension`` are taken from
        the network that is built.
    pretrained
        Folder (or hub id) of pretrained weights; None for random weights.
    seed
        Seed of the random weights.

    Raises
    ------
    ConfigError
        The network cannot take tiles of that size, or as
        :func:`encoders.backbones.build.build_backbone` says.
    """
    options = dict(spec.backbone_options)
    if pretrained is not None:
        options.pop("config", None)  # the configuration is that of the pretrained model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plugin = None if spec.backbone in BACKBONES else find_plugin("backbones", spec.backbone)
        if plugin and pretrained is not None:
            raise ConfigError(f"{plugin} loads its weights itself; leave `pretrained`")
        backbone = (
            Own(plugin, spec.bands, spec.tile_px, options)
            if plugin
            else build_backbone(spec.backbone, spec.bands, pretrained, **options)
        )
        identity = spec.head.get("kind") == "identity"
        spec = replace(
            spec,
            backbone_options=backbone.options,
            dimension=backbone.dimension if identity else spec.dimension,
        )
        encoder = Encoder(spec, backbone).eval()
    try:
        encoder(_probes(encoder))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"encoder: {spec.backbone} cannot take tiles of {spec.tile_px} px ({reason}); "
            "give a larger tile_px"
        ) from error
    return encoder


def with_text(encoder: Encoder, source: str | None, prompt: str = PLAIN_PROMPT) -> Encoder:
    """Return an encoder with the text tower of the model that its weights are from, if it has one.

    Parameters
    ----------
    encoder
        The encoder with the image tower.
    source
        Folder, or id on the model hub, of the pretrained model; None for random weights.
    prompt
        Words are put in place of ``{}``.

    Raises
    ------
    ConfigError
        There is a prompt and no text tower to take it, or the head leaves the space of the words.
    NotFoundError
        The model has a text tower without tokenizer.
    """
    spec = encoder.spec
    identity = spec.head.get("kind") == "identity"
    text = pretrained_text(spec.backbone, source, prompt) if source and identity else None
    if text is None:
        if prompt != PLAIN_PROMPT:
            raise ConfigError(
                f"encoder: prompt {prompt!r} is for words, and backbone {spec.backbone} with these "
                "weights and this head has no text tower; take backbone clip or siglip with "
                "pretrained weights of both towers and head identity, or leave prompt out"
            )
        return encoder
    return Encoder(replace(spec, text=text.options), encoder.backbone, encoder.head, text).eval()


def with_appearance(
    encoder: Encoder,
    features_NF: NDArray[np.float32],
    dimension: int,
    blend: float = DEFAULT_BLEND,
) -> Encoder:
    """Return an encoder of two parts: what its backbone sees, and what its head learned.

    The appearance part is the half-whitened principal components of the backbone's features, or of
    their square roots where none is negative, about zero and not about their mean: images of
    another collection have another mean. A frozen backbone knows nothing of the labels; one that
    was trained as well keeps more than its head does.

    Parameters
    ----------
    encoder
        Encoder of one part.
    features_NF
        Features of the backbone for the tiles that the components are fitted to; at least
        ``dimension`` rows.
    dimension
        Width of the appearance part.
    blend
        Weight of the appearance part in a query that names none, from 0 to 1.

    Raises
    ------
    ConfigError
        The encoder has two parts already, or as `principal_head` says.
    """
    require_one_part(encoder.spec)
    appearance, roots = appearance_head(features_NF, dimension)
    return _with_first_part(encoder, appearance, dimension, blend, roots=roots)


def with_places(
    encoder: Encoder,
    places: nn.Linear,
    learned: Mapping[str, Any],
    blend: float = PLACE_BLEND,
) -> Encoder:
    """Return an encoder of two parts: a head that has learned places, and the encoder's head.

    Parameters
    ----------
    encoder
        Encoder of one part.
    places
        Layer from the backbone's features to the place part.
    learned
        Provenance of the pairs, stated as ``places`` of the training.
    blend
        Weight of the place part in a query that names none, from 0 to 1.

    Raises
    ------
    ConfigError
        The encoder has two parts already.
    """
    require_one_part(encoder.spec)
    told = replace(encoder.spec, training={**encoder.spec.training, "places": dict(learned)})
    encoder = Encoder(told, encoder.backbone, encoder.head)
    return _with_first_part(encoder, places, places.out_features, blend)


def require_one_part(spec: EncoderSpec) -> None:
    """Refuse an encoder of two parts, to which none can be added.

    Raises
    ------
    ConfigError
        The encoder has two parts.
    """
    if spec.parts is not None:
        raise ConfigError("encoder: it has two parts already; give the one that they were made of")


def _with_first_part(
    encoder: Encoder, first: nn.Module, dimension: int, blend: float, *, roots: bool = False
) -> Encoder:
    spec = encoder.spec
    parts = Parts(appearance=dimension, labels=spec.dimension, blend=blend)
    options = {"kind": "parts", **asdict(parts), "head": dict(spec.head)}
    if roots:
        options["roots"] = True
    spec = replace(spec, head=options, dimension=parts.dimension)
    return Encoder(spec, encoder.backbone, TwoParts(first, encoder.head)).eval()


def require_distinct_vectors(encoder: Encoder) -> None:
    """Refuse an encoder that gives different tiles the same vector, or no unit vector.

    Random weights without training may do so: batch norm has no statistics yet, and every layer
    shrinks what passes, down to nothing.

    Raises
    ------
    ConfigError
        The vectors say nothing about the tiles.
    """
    faults = [_fault(encoder(tiles)) for tiles in _scaled_probes(encoder)]
    if all(faults):
        raise ConfigError(
            f"encoder: {encoder.spec.backbone} with these weights gives {faults[0]}; give "
            "pretrained weights (encoder.pretrained), or another backbone such as tiny-cnn, or "
            "train"
        )


def _fault(z_ND: NDArray[np.float32]) -> str:
    """Return why the vectors of the probes say nothing; empty where they are distinct."""
    cosines_NN = z_ND @ z_ND.T
    if not np.abs(np.diag(cosines_NN) - 1).max() <= _UNIT_TOLERANCE:  # NaN too
        return f"vectors of norm {np.sqrt(np.diag(cosines_NN)).min():.2g} instead of 1"
    return "the same vector for different tiles" if cosines_NN.min() > 1 - _UNIT_TOLERANCE else ""


def _scaled_probes(encoder: Encoder) -> Iterator[NDArray[np.float32]]:
    """Return probes; a network that gets pixels as they are expects shares, bytes or counts."""
    spec, tiles = encoder.spec, _probes(encoder)
    as_they_are = not any(spec.band_mean) and set(spec.band_std) == {1.0}
    return (tiles * scale for scale in ((1, 100, 10_000) if as_they_are else (1,)))


def _probes(encoder: Encoder) -> NDArray[np.float32]:
    """Return noise, coarse noise, a gradient and an even tile, in the range of the bands."""
    side, bands = encoder.tile_px, len(encoder.bands)
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((bands, side, side))
    coarse = np.resize(rng.standard_normal((bands, 4, 4)), (bands, side, side))
    slope = np.broadcast_to(np.linspace(-2, 2, side), (bands, side, side))
    tiles = np.stack([fine, coarse, slope, np.zeros_like(fine)])
    mean, std = (
        np.array(v)[:, None, None] for v in (encoder.spec.band_mean, encoder.spec.band_std)
    )
    return np.asarray(tiles * std + mean, np.float32)


def _serialise(encoder: Encoder) -> dict[str, bytes]:
    """Return the bytes of each file, the description last; equal encoders give equal bytes."""
    state = {
        name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()
    }
    weights = safetensors.torch.save(state)
    spec = json.loads(json.dumps(asdict(encoder.spec)))
    if encoder.text is None:
        del spec["text"]  # as before there were text towers: the fingerprint stays
    description = {
        "format": FORMAT,
        "spec": spec,
        "spec_sha256": json_digest(spec),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    files = {WEIGHTS_FILE: weights}
    if encoder.text is not None:
        files[TOKENIZER_FILE] = encoder.text.tokenizer
        description["tokenizer_sha256"] = hashlib.sha256(encoder.text.tokenizer).hexdigest()
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    return {**files, DESCRIPTION_FILE: text.encode()}
