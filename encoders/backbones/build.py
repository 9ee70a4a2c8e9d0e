"""Backbones by name: networks from normalised tiles to features, for any number of bands.

A backbone is built from a name and plain options, so a bundle can rebuild it without the folder of
its pretrained weights. ``tiny-cnn`` is defined here; the other names are architectures of
``transformers`` and, if installed, all models of ``timm``; ``exported`` is a network of one's own
from a file of ``torch.export`` (:mod:`encoders.backbones.exported`). Pixels are normalised and
bundles written in :mod:`encoders.bundle`, heads are in :mod:`encoders.projection`.

Shape legend: B batch, C bands, H and W pixels, F features.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.backbones.exported import build_exported
from encoders.backbones.stem import Backbone
from encoders.backbones.timm import build_timm
from encoders.backbones.transformers import ARCHITECTURES, build_transformers
from storage.errors import ConfigError, SkysiftError

# What torch and transformers raise for options, or a config.json, that make no network.
_WRONG_OPTIONS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

BACKBONES = ("tiny-cnn", *ARCHITECTURES, "timm", "exported")
"""The names that :func:`build_backbone` knows."""


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; halves the size when ``stride`` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_first = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_second = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        residual = F.avg_pool2d(x_BCHW, self.stride) if self.stride > 1 else x_BCHW
        if self.shortcut is not None:
            residual = self.shortcut(residual)
        y = F.relu(self.norm_first(self.first(x_BCHW)))
        y = self.norm_second(self.second(y))
        return F.relu(y + residual)


class TinyCnn(Backbone):
    """A small residual network that trains in a minute on a CPU core.

    Two stride-2 convolutions, then three residual stages of ``width``, 2 and 4 times ``width``
    channels; the features are the mean and the maximum over the last map. Without batch norm the
    embeddings collapse in the first epochs of a contrastive loss; `encoders.batch_norm` keeps the
    statistics exact across workers.

    Parameters
    ----------
    bands
        Number of input bands.
    width
        Channels of the first stage, a multiple of 8.

    Raises
    ------
    ConfigError
        ``width`` is not a positive multiple of 8.
    """

    def __init__(self, bands: int, width: int = 32) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ConfigError(f"tiny-cnn: width is {width}; give a positive multiple of 8")
        self.stem = nn.Sequential(
            nn.Conv2d(bands, width // 2, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.dimension = 8 * width
        self.options = {"width": width}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features_BF of normalised tiles of at least 16x16 pixels."""
        y = self.stages(self.stem(x_BCHW))
        return torch.cat([y.mean((2, 3)), y.amax((2, 3))], dim=1)


def build_backbone(
    name: str, bands: Sequence[str], pretrained: str | None = None, **options: Any
) -> Backbone:
    """Build a backbone by name.

    Parameters
    ----------
    name
        One of `BACKBONES`.
    bands
        Band names in channel order.
    pretrained
        Folder, or id on the model hub, of a pretrained model; the stem is inflated by
        `encoders.backbones.stem.inflate_stem`. None gives random weights. For ``exported`` the
        file of the network.
    options
        ``tiny-cnn``: ``width``. ``timm``: ``model`` (a model name of timm) and ``input_px``.
        ``exported``: ``input_px``, and ``graph`` in place of a file. Other
        names: ``config`` (a mapping of the ``transformers`` configuration, only without
        ``pretrained``) and ``input_px``.

    Raises
    ------
    ConfigError
        The name or an option is unknown, the pretrained model has another architecture, or a
        package is not installed.
    NotFoundError
        The pretrained weights do not exist or are incomplete.
    """
    if not bands:
        raise ConfigError(f"backbone {name}: no bands are given; name at least one")
    try:
        if name == "tiny-cnn":
            if pretrained is not None:
                raise ConfigError("backbone tiny-cnn has no pretrained weights; leave `pretrained`")
            return TinyCnn(len(bands), **options)
        if name == "timm":
            return build_timm(tuple(bands), pretrained, **options)
        if name == "exported":
            return build_exported(bands, pretrained, **options)
        if name in ARCHITECTURES:
            return build_transformers(name, tuple(bands), pretrained, **options)
    except SkysiftError:
        raise
    except _WRONG_OPTIONS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"backbone {name}: a wrong option ({reason}); see its docstring"
        ) from None
    raise ConfigError(f"no backbone is called {name!r}; choose one of {', '.join(BACKBONES)}")
