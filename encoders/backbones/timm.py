"""Networks of ``timm`` as backbones, if ``timm`` is installed.

``timm`` requires ``torchvision``, which is not available for every build of torch, and is therefore
imported only when a recipe selects it. Weights come from a local folder or the model hub, as
safetensors only.

Shape legend: B batch, C bands, H and W pixels, F features.
"""

from typing import Any

import safetensors.torch
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


class TimmBackbone(Backbone):
    """A network of ``timm`` without the classifier; the features are the pooled features.

    Parameters
    ----------
    network
        The network, with a stem for the bands.
    bands
        Number of bands.
    model, input_px
        Model name in ``timm``; side to resize tiles to, None keeps their size.
    """

    def __init__(self, network: Any, bands: int, model: str, input_px: int | None) -> None:
        super().__init__()
        self.network, self.input_px = network, input_px
        self.options = {"model": model, "input_px": input_px}
        self.dimension = count_features(self, bands, input_px or 64)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF of normalised tiles."""
        features: Tensor = self.network(resized(x_BCHW, self.input_px))
        return features


def build_timm(
    bands: tuple[str, ...],
    pretrained: str | None,
    *,
    model: str = "resnet18",
    input_px: int | None = None,
) -> TimmBackbone:
    """Build a network of ``timm``; see `encoders.backbones.build.build_backbone`.

    Raises
    ------
    ConfigError
        ``timm`` or ``torchvision`` is not installed, or the model name is unknown.
    NotFoundError
        The weights do not exist.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"backbone timm needs the packages timm and torchvision ({error}); install both for "
            "this torch, or choose another backbone, for example resnet or convnextv2"
        ) from error
    if pretrained is None:
        if not timm.is_model(model):
            raise ConfigError(f"backbone timm: it has no model {model!r}; see timm.list_models()")
        network = timm.create_model(model, num_classes=0, in_chans=len(bands))
        return TimmBackbone(network, len(bands), model, input_px)
    network = _pretrained(timm, model, pretrained)
    fit_stem(network, bands)
    return TimmBackbone(network, len(bands), model, input_px)


def _pretrained(timm: Any, model: str, source: str) -> Any:
    """Return a network of 3 bands with weights from a folder, or from the model hub."""
    folder = pretrained_folder(source)
    try:
        if folder is None:
            place = {"hf_hub_id": source}
            return timm.create_model(
                model, pretrained=True, num_classes=0, pretrained_cfg_overlay=place
            )
        network = timm.create_model(model, num_classes=0)
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        known = network.state_dict()  # a classifier in the file is left out
        fitting = {
            name: value
            for name, value in weights.items()
            if name in known and value.shape == known[name].shape
        }
        require_weights(source, f"timm {model}", known.keys() - fitting.keys(), len(known))
        network.load_state_dict(fitting, strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise NotFoundError(
            f"pretrained weights {source} of timm {model} {unreadable(folder)} "
            f"({str(error).partition(chr(10))[0]}); give a folder with model.safetensors, or a "
            "hub id and a network"
        ) from error
    return network
