"""Architectures of ``transformers`` as backbones, with random or pretrained weights.

Weights come from a local folder or, by id, from the model hub, as safetensors only.

Shape legend: B batch, C bands, H and W pixels, F features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from encoders.backbones.stem import (
    Backbone,
    count_features,
    fit_stem,
    require_weights,
    resized,
    unreadable,
)
from encoders.spec import pretrained_folder
from storage.errors import ConfigError, NotFoundError

# name: (configuration class, model class) in `transformers`
ARCHITECTURES = {
    "mobilenet_v2": ("MobileNetV2Config", "MobileNetV2Model"),
    "resnet": ("ResNetConfig", "ResNetModel"),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2Model"),
    "vit": ("ViTConfig", "ViTModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel"),
    "clip": ("CLIPVisionConfig", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel"),
}
_SEQUENCES = {"vit", "dinov2", "dinov3", "clip", "siglip"}
SHARED = {"clip": "image_embeds", "siglip": "pooler_output"}
"""Image towers, and their output that lies in the space of a text tower."""

KEY_MAPPING = {r"^backbone\.model\.": ""}
"""Names in the weights of a bundle, as a pattern, to those of ``transformers``."""


class TransformersBackbone(Backbone):
    """An image model of ``transformers`` with a stem for N bands.

    The features are the global average of the last map (convolutional models) or the class token
    after the last layer norm (``vit``, ``dinov2``, ``dinov3``), or the vector in the space that an
    image tower shares with a text tower (``clip``, ``siglip``).

    Parameters
    ----------
    name
        One of `ARCHITECTURES`.
    model
        The model, with a stem for the bands.
    input_px
        Side to resize tiles to (bilinear) before the network; None keeps their size.
    """

    def __init__(self, name: str, model: Any, input_px: int | None) -> None:
        super().__init__()
        self.model = model
        self.input_px = input_px
        self.is_sequence, self.is_vit = name in _SEQUENCES, name == "vit"
        self.shared = SHARED.get(name)
        self.options = {"config": plain_config(model), "input_px": input_px}
        self.dimension = count_features(self, model.config.num_channels, input_px or 64)
        for path, parameter in model.named_parameters():
            if path.endswith("mask_token"):
                parameter.requires_grad_(False)  # no tile is masked; DDP requires all gradients

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF of normalised tiles."""
        options = {"interpolate_pos_encoding": True} if self.is_vit else {}
        pixels = resized(x_BCHW, self.input_px)
        output = self.model(pixel_values=pixels, **options)
        if self.shared is not None:
            features: Tensor = output[self.shared]
            return features
        last: Tensor = output.last_hidden_state
        return last[:, 0] if self.is_sequence else last.mean((2, 3))


def build_transformers(
    name: str,
    bands: tuple[str, ...],
    pretrained: str | None,
    *,
    config: Mapping[str, Any] | None = None,
    input_px: int | None = None,
) -> TransformersBackbone:
    """Build an architecture of ``transformers``; see `encoders.backbones.build.build_backbone`."""
    from huggingface_hub.errors import StrictDataclassError  # slow, and tiny-cnn does not need it

    try:
        model = _model(name, bands, pretrained, config)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"backbone {name}: its configuration is wrong ({reason})") from error
    if input_px is None and name in _SEQUENCES:
        input_px = int(model.config.image_size)
    return TransformersBackbone(name, model, input_px)


def _model(
    name: str, bands: tuple[str, ...], pretrained: str | None, config: Mapping[str, Any] | None
) -> Any:
    """Return a model of ``transformers`` with a stem for the bands."""
    import transformers

    config_class, model_class = (getattr(transformers, part) for part in ARCHITECTURES[name])
    extra = {"add_pooling_layer": False} if name == "vit" else {}
    if pretrained is None:
        settings = {**(config or {}), "num_channels": len(bands)}
        return model_class(config_class(**settings), **extra)
    if config:
        raise ConfigError(f"backbone {name}: give `config` or `pretrained`, not both")
    model = load_pretrained(name, model_class, pretrained, extra)
    _fit(name, model, bands)
    return model


def load_pretrained(
    name: str, model_class: Any, source: str, extra: Mapping[str, Any] | None = None
) -> Any:
    """Load a model of ``transformers`` whose weights are all there.

    Parameters
    ----------
    name, model_class
        One of `ARCHITECTURES`, and the class of the model or of one of its towers.
    source
        Folder, or id on the model hub.
    extra
        Options of the model class.

    Raises
    ------
    ConfigError
        The source is another architecture, or lacks a tensor.
    NotFoundError
        There are no weights.
    """
    from transformers import PretrainedConfig
    from transformers.utils import logging

    folder = pretrained_folder(source)
    if folder is not None:
        source = str(folder)
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"{source} holds no config.json; give a folder of a transformers model, or a hub id"
            )
    output: Any = logging  # transformers writes progress bars and a report to stderr
    shown, verbosity = output.is_progress_bar_enabled(), output.get_verbosity()
    output.disable_progress_bar()
    output.set_verbosity_error()
    try:
        stored = PretrainedConfig.get_config_dict(source)[0].get("model_type")
        if stored not in (model_class.config_class.model_type, name):
            raise ConfigError(f"{source} is a {stored!r} model, not {name!r}; change one of them")
        model, loaded = model_class.from_pretrained(
            source,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            dtype=torch.float32,  # else that of the file, which may be half
            key_mapping=KEY_MAPPING,  # an exported bundle is a folder of weights too
            **(extra or {}),
        )
    except (OSError, SafetensorError) as error:
        raise NotFoundError(
            f"pretrained weights {source} of {name} {unreadable(folder)} "
            f"({str(error).partition(chr(10))[0]}); give a folder with config.json and "
            "model.safetensors"
        ) from error
    finally:
        output.set_verbosity(verbosity)
        if shown:
            output.enable_progress_bar()
    missing = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    require_weights(source, name, missing, len(model.state_dict()))
    return model


def hub_config(name: str, bands: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of an architecture, as `TransformersBackbone.options` state it."""
    import transformers

    config_class, model_class = ARCHITECTURES[name]
    settings = {**options["config"], "num_channels": len(bands), "architectures": [model_class]}
    config: dict[str, Any] = getattr(transformers, config_class)(**settings).to_diff_dict()
    return config


def byte_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of red, green and blue that a model takes, for values 0 to 255.

    Parameters
    ----------
    source
        Folder, or id on the model hub, with a ``preprocessor_config.json``.

    Raises
    ------
    ConfigError
        The model does not say.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        folder = pretrained_folder(source)
        stated = ImageProcessingMixin.get_image_processor_dict(str(folder or source))[0]
        mean, std = (
            tuple(255 * float(value) for value in stated[name])
            for name in ("image_mean", "image_std")
        )
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} states no mean and deviation of its pixels (preprocessor_config.json); give "
            "scenes or a dataset to compute them over, or encoder.band_mean and encoder.band_std"
        ) from error
    return mean, std


def _fit(name: str, model: Any, bands: tuple[str, ...]) -> None:
    """Adapt the stem of a pretrained model to the bands."""
    if model.config.num_channels != 3:
        if model.config.num_channels == len(bands):
            return
        raise ConfigError(
            f"pretrained {name} has {model.config.num_channels} bands, the recipe {len(bands)}; "
            "start from a model of 3 bands or of as many"
        )
    fit_stem(model, bands)
    model.config.num_channels = len(bands)
    for module in model.modules():
        if getattr(module, "num_channels", None) == 3:
            module.num_channels = len(bands)


def plain_config(model: Any) -> dict[str, Any]:
    """Return the JSON values of a model's configuration that are not the defaults.

    They describe the network, not its files.
    """
    defaults = type(model.config)().to_dict()
    values = {
        key: value
        for key, value in model.config.to_dict().items()
        if key in defaults and value != defaults[key]
    }
    skipped = {"architectures", "dtype", "transformers_version", "id2label", "label2id"}
    return {
        key: value
        for key, value in values.items()
        if key not in skipped
        and not key.startswith("_")
        and isinstance(value, (bool, int, float, str, list, type(None)))
    }
