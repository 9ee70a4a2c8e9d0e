"""Random augmentation of training batches that preserves land-cover labels, for any bands.

The functions work on normalised tiles (mean 0, deviation 1 per band, invalid pixels 0): a dropped
band or a cut-out square has the value of invalid pixels. Values are drawn per sample.

Shape legend: B batch, C bands, H and W pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Kinds and strengths of the augmentation; 0 switches a kind off (``crop_scale``: 1).

    Attributes
    ----------
    dihedral
        Apply one of the eight rotations and reflections of a square.
    crop_scale
        Smallest side of a crop as a share of the side of the tile; crops are resized back.
    gain, offset
        Largest relative change of contrast and largest shift (in standard deviations), drawn once
        for all bands and again at half strength for each band: sun, haze and sensor.
    noise
        Standard deviation of the added pixel noise.
    band_dropout
        Probability that one band of a sample is set to 0; ignored for a single band.
    cutout
        Side of a square set to 0, as a share of the side of the tile.
    """

    dihedral: bool = True
    crop_scale: float = 0.8
    gain: float = 0.1
    offset: float = 0.1
    noise: float = 0.0
    band_dropout: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ConfigError(f"augment: crop_scale {self.crop_scale} must be in (0, 1]")
        for name in ("gain", "offset", "noise", "band_dropout", "cutout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augment: {name} {getattr(self, name)} must be in [0, 1)")

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Return an augmented batch.

        Parameters
        ----------
        x_BCHW
            Normalised square tiles; not modified.
        generator
            CPU generator: the same state gives the same augmentation on every device.
        """
        y = x_BCHW
        if self.dihedral or self.crop_scale < 1:
            y = turn_and_crop(y, self.dihedral, self.crop_scale, generator)
        if self.gain or self.offset:
            y = jitter(y, self.gain, self.offset, generator)
        if self.noise:
            noise = torch.randn(y.shape, generator=generator) * self.noise
            y = y + noise.to(y.device, y.dtype)
        if self.band_dropout and y.shape[1] > 1:
            y = drop_band(y, self.band_dropout, generator)
        if self.cutout:
            y = cut_out(y, self.cutout, generator)
        return y


def turn_and_crop(
    x_BCHW: Tensor, dihedral: bool, smallest: float, generator: torch.Generator
) -> Tensor:
    """Rotate or reflect each square tile and crop a random square, in a single resampling.

    Parameters
    ----------
    x_BCHW
        Normalised square tiles.
    dihedral
        Draw one of the eight symmetries of the square.
    smallest
        Smallest side of the crop as a share of the side of the tile; 1 keeps the whole tile.
    generator
        CPU generator.
    """
    draws_6B = torch.rand(6, len(x_BCHW), generator=generator)
    side_B = smallest + (1 - smallest) * draws_6B[0]
    theta_B23 = torch.zeros(len(x_BCHW), 2, 3)
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = side_B
    theta_B23[:, :, 2] = ((2 * draws_6B[1:3] - 1) * (1 - side_B)).T
    if dihedral:
        signs_B2 = torch.where(draws_6B[3:5] < 0.5, -1.0, 1.0).T
        theta_B23[:, :, :2] *= signs_B2[:, None, :]
        swapped = (draws_6B[5] < 0.5)[:, None, None]
        theta_B23[:, :, :2] = torch.where(swapped, theta_B23[:, :, [1, 0]], theta_B23[:, :, :2])
    grid = F.affine_grid(theta_B23.to(x_BCHW), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def jitter(x_BCHW: Tensor, gain: float, offset: float, generator: torch.Generator) -> Tensor:
    """Change contrast and level of each tile, for all bands and by half as much for each band."""
    batch, bands = x_BCHW.shape[:2]
    common_2B1 = torch.rand(2, batch, 1, generator=generator) * 2 - 1
    single_2BC = torch.rand(2, batch, bands, generator=generator) * 2 - 1
    draws = (common_2B1 + single_2BC / 2).to(x_BCHW)[..., None, None]
    return x_BCHW * (1 + gain * draws[0]) + offset * draws[1]


def drop_band(x_BCHW: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Set one random band of each tile to 0 with this probability."""
    batch, bands = x_BCHW.shape[:2]
    band_B = torch.randint(bands, (batch,), generator=generator)
    selected_B = torch.rand(batch, generator=generator) < chance
    dropped_BC = F.one_hot(band_B, bands).bool() & selected_B[:, None]
    return x_BCHW.masked_fill(dropped_BC[..., None, None].to(x_BCHW.device), 0.0)


def cut_out(x_BCHW: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """Set a square of this side (share of the tile) to 0; its centre is uniform in the tile."""
    batch, _, height, width = x_BCHW.shape
    centre_2B = torch.rand(2, batch, 1, generator=generator)
    rows_BH = (torch.arange(height) / height - centre_2B[0]).abs() < side / 2
    columns_BW = (torch.arange(width) / width - centre_2B[1]).abs() < side / 2
    square_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    return x_BCHW.masked_fill(square_BHW[:, None].to(x_BCHW.device), 0.0)
