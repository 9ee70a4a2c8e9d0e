"""Random augmentation of training batches that preserves land-cover labels, for any bands.

The functions work on normalised tiles (mean 0, deviation 1 per band, invalid pixels 0): a dropped
band or a cut-out square has the value of invalid pixels. Values are drawn per sample.

Shape legend: B batch, C bands, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from storage.errors import ConfigError

Generators = Sequence[torch.Generator]


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

    def __call__(self, x_BCHW: Tensor, generators: Generators) -> Tensor:
        """Return an augmented batch.

        Parameters
        ----------
        x_BCHW
            Normalised square tiles; not modified.
        generators
            One CPU generator for each tile: the same state gives the same augmentation on every
            device, and beside any other tiles.

        Raises
        ------
        ConfigError
            The number of generators is not that of the tiles.
        """
        if len(generators) != len(x_BCHW):
            raise ConfigError(
                f"augment: {len(generators)} generators for {len(x_BCHW)} tiles; give one for each"
            )
        y = x_BCHW
        if self.dihedral or self.crop_scale < 1:
            y = turn_and_crop(y, self.dihedral, self.crop_scale, generators)
        if self.gain or self.offset:
            y = jitter(y, self.gain, self.offset, generators)
        if self.noise:
            noise = torch.stack([torch.randn(y.shape[1:], generator=g) for g in generators])
            noise *= self.noise
            y = y + noise.to(y.device, y.dtype)
        if self.band_dropout and y.shape[1] > 1:
            y = drop_band(y, self.band_dropout, generators)
        if self.cutout:
            y = cut_out(y, self.cutout, generators)
        return y


def row_generators(seed: int, step: int, rows: range) -> list[torch.Generator]:
    """Return a generator for each of these rows of the global batch of a step.

    The states depend on seed, step and the row's number in the global batch: a row is augmented
    alike on any number of workers and after a restart, and a sample that a batch holds twice gets
    two views.
    """
    states = np.random.SeedSequence((seed, step)).generate_state(rows.stop, np.uint64)
    return [torch.Generator().manual_seed(int(states[row] >> np.uint64(1))) for row in rows]


def _uniform(generators: Generators, *shape: int) -> Tensor:
    """Return uniform numbers of 0 to 1 with one column for each generator, (..., B)."""
    return torch.stack([torch.rand(shape, generator=g) for g in generators], dim=-1)


def turn_and_crop(
    x_BCHW: Tensor, dihedral: bool, smallest: float, generators: Generators
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
    generators
        One CPU generator for each tile.
    """
    draws_6B = _uniform(generators, 6)
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


def jitter(x_BCHW: Tensor, gain: float, offset: float, generators: Generators) -> Tensor:
    """Change contrast and level of each tile, for all bands and by half as much for each band."""
    bands = x_BCHW.shape[1]
    uniform_2BC = _uniform(generators, 2, 1 + bands).transpose(1, 2) * 2 - 1
    draws = (uniform_2BC[..., :1] + uniform_2BC[..., 1:] / 2).to(x_BCHW)[..., None, None]
    return x_BCHW * (1 + gain * draws[0]) + offset * draws[1]


def drop_band(x_BCHW: Tensor, chance: float, generators: Generators) -> Tensor:
    """Set one random band of each tile to 0 with this probability."""
    bands = x_BCHW.shape[1]
    place_B, selected_B = _uniform(generators, 2)
    band_B = (place_B * bands).long().clamp_max(bands - 1)
    dropped_BC = F.one_hot(band_B, bands).bool() & (selected_B < chance)[:, None]
    return x_BCHW.masked_fill(dropped_BC[..., None, None].to(x_BCHW.device), 0.0)


def cut_out(x_BCHW: Tensor, side: float, generators: Generators) -> Tensor:
    """Set a square of this side (share of the tile) to 0; its centre is uniform in the tile."""
    height, width = x_BCHW.shape[2:]
    centre_2B = _uniform(generators, 2)[..., None]
    rows_BH = (torch.arange(height) / height - centre_2B[0]).abs() < side / 2
    columns_BW = (torch.arange(width) / width - centre_2B[1]).abs() < side / 2
    square_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    return x_BCHW.masked_fill(square_BHW[:, None].to(x_BCHW.device), 0.0)
