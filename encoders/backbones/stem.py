"""The first convolution of a pretrained network, adapted from red, green and blue to any bands.

Shape legend: B batch, C bands, H and W pixels, F features, O and I output and input channels.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import ConfigError

RGB = ("red", "green", "blue")


class Backbone(nn.Module):
    """A network from normalised tiles to features.

    Attributes
    ----------
    dimension
        Number of features F.
    options
        Plain values that rebuild the same architecture: ``build_backbone(name, bands, **options)``.
    memory_format
        Order in memory of the tiles and of weights of four dimensions.
    """

    dimension: int
    options: dict[str, Any]
    memory_format = torch.channels_last


def inflate_stem(weight_OIHW: Tensor, bands: Sequence[str]) -> Tensor:
    """Inflate the weights of a pretrained RGB stem to any bands.

    A band named red, green or blue takes the weights of that channel, every other band the mean of
    the three channels. All weights are scaled by 3/N, so a grey image gives the same activations.

    Parameters
    ----------
    weight_OIHW
        Weights of the first convolution, I = 3 in the order red, green, blue.
    bands
        The N band names in channel order.

    Returns
    -------
    Tensor
        Weights of shape (O, N, H, W), equal to ``weight_OIHW`` for the bands red, green, blue.

    Examples
    --------
    >>> stem = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    >>> inflate_stem(stem, ["nir", "blue"]).flatten().tolist()
    [4.5, 9.0]
    """
    mean_OHW = weight_OIHW.mean(1)
    columns = [weight_OIHW[:, RGB.index(band)] if band in RGB else mean_OHW for band in bands]
    return torch.stack(columns, dim=1) * (3 / len(bands))


def fit_stem(model: nn.Module, bands: Sequence[str]) -> None:
    """Replace the first convolution of a model, with 3 channels, by a convolution of the bands."""
    path, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    wider = nn.Conv2d(
        len(bands),
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stem.stride,  # type: ignore[arg-type]
        stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    with torch.no_grad():
        wider.weight.copy_(inflate_stem(stem.weight, bands))
        if stem.bias is not None and wider.bias is not None:
            wider.bias.copy_(stem.bias)
    setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], wider)


def require_weights(source: str, network: str, missing: Collection[str], total: int) -> None:
    """Refuse pretrained weights that leave tensors of a network at random.

    Parameters
    ----------
    source, network
        The weights and the network, for the message.
    missing
        Names of the tensors that the weights lack or hold in another shape.
    total
        Number of tensors of the network.

    Raises
    ------
    ConfigError
        A tensor is missing.
    """
    # Counters of batch norm, which the first releases of torch did not save, decide nothing.
    names = sorted(name for name in missing if not name.endswith("num_batches_tracked"))
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(
            f"pretrained weights {source} lack {len(names)} of the {total} tensors of {network} "
            f"({shown}), which would stay random; give the weights of this architecture"
        )


def unreadable(folder: Path | None) -> str:
    """Return what is wrong with pretrained weights of a folder, or of the model hub for None."""
    if folder is not None:
        return "cannot be read"
    return "are no folder here, and cannot be had from the model hub"


def resized(x_BCHW: Tensor, size_px: int | None) -> Tensor:
    """Return tiles resized to ``size_px``; unchanged if the size is None or already matches."""
    if size_px is None or tuple(x_BCHW.shape[-2:]) == (size_px, size_px):
        return x_BCHW
    return F.interpolate(
        x_BCHW, (size_px, size_px), mode="bilinear", align_corners=False, antialias=True
    )


def count_features(backbone: nn.Module, bands: int, size_px: int) -> int:
    """Return the number of features of a backbone, measured on an empty tile."""
    training = backbone.training
    with torch.no_grad():
        count = backbone.eval()(torch.zeros(1, bands, size_px, size_px)).shape[1]
    backbone.train(training)
    return int(count)
