"""The synthetic landscape: the land cover of each pixel and its reflectance on a day.

Everything is computed from a seed by noise filtered in the frequency domain. Classes overlap in
mean colour and change with the season, so that texture decides a tile's label; three of the eight
classes are rare. This module touches no file: ``workflows.demo.world`` writes.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

CLASSES = {
    1: "forest", 2: "cropland", 3: "grassland", 4: "water",
    5: "built-up", 6: "greenhouse", 7: "mine", 8: "airport",
}  # fmt: skip
FOREST, CROPLAND, GRASSLAND, WATER, BUILT_UP, GREENHOUSE, MINE, AIRPORT = CLASSES
COLOURS = (
    "#2f6b3a", "#e2c25b", "#a5c96b", "#4a86c5", "#c9574f", "#8a8f98", "#7a4b2a", "#8d5fb0",
)  # fmt: skip
BANDS = ("blue", "green", "red", "nir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """An area of ground, the same on every day; an index or a mask of its pixels makes a part.

    Attributes
    ----------
    classes
        Land-cover value of each pixel, a key of ``CLASSES``; uint8 (h, w).
    broad, mottle, grain, along, across
        Noise of falling wavelength, zero mean and unit variance; position in pixels in the frame
        of the field, the town or the object; float32 (h, w).
    """

    classes: NDArray[np.uint8]
    broad: Float
    mottle: Float
    grain: Float
    along: Float
    across: Float

    def __getitem__(self, pixels: slice | NDArray[np.bool_]) -> "Ground":
        return Ground(**{field.name: getattr(self, field.name)[pixels] for field in fields(self)})

    def cells(self, length_px: float, width_px: float, salt: int = 0) -> Float:
        """Draw one number in [0, 1) for each cell of a lattice along and across."""
        i = np.floor(self.along / length_px).astype(np.float64)
        j = np.floor(self.across / width_px).astype(np.float64)
        # The hash of shader programs: the fraction of a large sine looks random.
        draw = np.sin(12.9898 * i + 78.233 * j + 37.719 * salt) * 43758.5453 % 1
        return np.asarray(draw, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Season:
    """Light (``sun``) and reflectance of the air (``haze``) in ``BANDS``, and the state of plants.

    Vegetation has a ``vigour`` from 0 (bare) to 1; ``crop_phase`` (0 to 1) is of the crop calendar.
    """

    sun: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    haze: tuple[float, ...] = (0.010, 0.006, 0.003, 0.0)
    vigour: float = 1.0
    crop_phase: float = 0.0


SUMMER = Season()
AUTUMN = Season(
    sun=(0.55, 0.62, 0.70, 0.74), haze=(0.035, 0.020, 0.010, 0.004), vigour=0.45, crop_phase=0.45
)


def noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelength_px: float, rough: bool = False
) -> Float:
    """Draw a random field of zero mean and unit variance, periodic at its edges; float32 (h, w).

    ``wavelength_px`` is the typical size of a light-dark period; a ``rough`` field has all shorter
    wavelengths by a power law, as terrain has.

    Examples
    --------
    >>> field = noise(np.random.default_rng(0), (64, 64), 8)
    >>> field.shape, round(float(field.std()), 3)
    ((64, 64), 1.0)
    """
    white = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    frequency = np.hypot(
        np.fft.fftfreq(shape[0])[:, None].astype(np.float32),
        np.fft.rfftfreq(shape[1])[None, :].astype(np.float32),
    )
    period = np.maximum(frequency, 1 / max(shape)) * wavelength_px
    gain = (1 + period**2) ** -1.25 if rough else np.exp(-2 * (period - 1) ** 2) * (period < 4)
    gain[0, 0] = 0
    field = np.fft.irfft2(white * gain.astype(np.float32), shape)
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def make_ground(seed: int, zone: int, shape: tuple[int, int]) -> Ground:
    """Make the ground of a UTM zone from a seed; ``shape`` is height and width in pixels."""
    rng = np.random.default_rng([seed, zone])
    relief = noise(rng, shape, 420, rough=True)
    moisture = noise(rng, shape, 160, rough=True) + 0.35 * relief
    ragged = moisture + 0.12 * noise(rng, shape, 9)
    dry, wet = np.quantile(moisture, [0.44, 0.63])
    classes = np.full(shape, GRASSLAND, np.uint8)
    classes[ragged < dry] = CROPLAND
    classes[ragged > wet] = FOREST
    river = np.abs(noise(rng, shape, 520, rough=True) + 0.04 * moisture)
    classes[(river < 0.035) | (relief < np.quantile(relief, 0.03))] = WATER
    along, across = _districts(rng, shape)
    town = noise(rng, shape, 150, rough=True) - 0.3 * moisture
    classes[(town > np.quantile(town, 0.925)) & (classes != WATER)] = BUILT_UP
    for value, (per_megapixel, _, _) in _OBJECTS.items():
        for _ in range(max(1, round(per_megapixel * shape[0] * shape[1] / 2**20))):
            _place(rng, value, classes, along, across)
    return Ground(
        classes=classes,
        broad=noise(rng, shape, 200, rough=True),
        mottle=noise(rng, shape, 13),
        grain=noise(rng, shape, 3.2),
        along=along,
        across=across,
    )


def _districts(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Float, Float]:
    """Divide the ground into districts whose fields and streets have directions of their own."""
    rows, columns = np.indices(shape, dtype=np.float32)
    angle = 0.7 * np.round(1.5 * noise(rng, shape, 400, rough=True))
    along, across = _rotated(rows, columns, angle)
    # The offset by angle keeps the parcels of two districts from drawing the same numbers.
    return (along + 997 * angle).astype(np.float32), across


def _rotated(rows: Any, columns: Any, angle: Any) -> tuple[Float, Float]:
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * columns + sine * rows, cosine * rows - sine * columns


# Rare objects: number per megapixel, then the ranges of half their length and half their width, px.
_OBJECTS: dict[int, tuple[float, tuple[float, float], tuple[float, float]]] = {
    GREENHOUSE: (11, (16, 30), (12, 22)),
    MINE: (9, (14, 26), (14, 26)),
    AIRPORT: (5.5, (48, 64), (12, 13)),
}


def _place(rng: np.random.Generator, value: int, classes: NDArray[Any], *frame: Float) -> None:
    """Put one object on fields or grass; its pixels take coordinates from its own centre."""
    _, half_length, half_width = _OBJECTS[value]
    for _ in range(50):
        row, column = rng.integers(classes.shape).tolist()
        if classes[row, column] in (CROPLAND, GRASSLAND):
            break
    top, left = max(0, row - 70), max(0, column - 70)
    window = (slice(top, row + 70), slice(left, column + 70))
    rows, columns = np.indices(classes[window].shape, dtype=np.float32)
    u, v = _rotated(rows + (top - row), columns + (left - column), rng.uniform(0, np.pi))
    extent = np.abs(u) / rng.uniform(*half_length), np.abs(v) / rng.uniform(*half_width)
    covered = (np.hypot(*extent) if value == MINE else np.maximum(*extent)) < 1
    classes[window][covered] = value
    for coordinate, own in zip(frame, (u, v), strict=True):
        coordinate[window][covered] = own[covered]


# The two colours of each class in BANDS; `_mixture` says how they mix.
_LOOKS = {
    FOREST: ((0.025, 0.048, 0.030, 0.31), (0.040, 0.062, 0.068, 0.21)),
    CROPLAND: ((0.035, 0.075, 0.045, 0.40), (0.078, 0.115, 0.145, 0.24)),
    GRASSLAND: ((0.040, 0.080, 0.060, 0.30), (0.065, 0.095, 0.110, 0.22)),
    WATER: ((0.045, 0.065, 0.050, 0.025), (0.050, 0.040, 0.020, 0.010)),
    BUILT_UP: ((0.180, 0.190, 0.220, 0.29), (0.080, 0.085, 0.090, 0.12)),
    GREENHOUSE: ((0.210, 0.220, 0.225, 0.30), (0.090, 0.100, 0.120, 0.20)),
    MINE: ((0.130, 0.145, 0.170, 0.215), (0.090, 0.130, 0.100, 0.05)),
    AIRPORT: ((0.050, 0.088, 0.080, 0.27), (0.105, 0.110, 0.115, 0.14)),
}


def reflectance(ground: Ground, season: Season) -> Float:
    """Render the reflectance on a clear day, 0 to about 0.6, of ``BANDS``; float32 (4, h, w)."""
    image = np.empty((len(BANDS), *ground.classes.shape), np.float32)
    for value, colours in _LOOKS.items():
        pixels = ground.classes == value
        share, tone = _mixture(value, ground[pixels], season)
        first, second = np.array(colours, np.float32)[:, :, None]
        image[:, pixels] = (share * first + (1 - share) * second) * tone
    for axis in (1, 2):  # the lens spreads a little of each pixel over its neighbours
        image = 0.74 * image + 0.13 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    image *= 1 + np.float32(0.09) * ground.broad
    image *= np.array(season.sun, np.float32)[:, None, None]
    image += np.array(season.haze, np.float32)[:, None, None]
    return np.clip(image, 0.001, 1.2, out=image)


def _mixture(value: int, part: Ground, season: Season) -> tuple[Any, Any]:
    """Return the share of the first colour in the pixels (n,) of a class, and their brightness."""
    u, v = part.along, part.across
    if value == FOREST:
        return season.vigour, np.clip(1 + 0.3 * part.grain, 0.25, 2)
    if value == CROPLAND:
        calendar = (part.cells(21, 13) + season.crop_phase) % 1
        growth = np.clip(1.6 - 4 * np.abs(calendar - 0.3), 0, 1) * (0.4 + 0.6 * season.vigour)
        hedge = np.where((u % 21 < 1.2) | (v % 13 < 1), 0.72, 1)
        return growth, (0.8 + 0.4 * part.cells(21, 13, salt=1)) * hedge
    if value == GRASSLAND:
        return season.vigour, 1 + 0.13 * part.mottle + 0.04 * part.grain
    if value == WATER:
        return np.clip(0.5 + 0.3 * part.broad, 0, 1), 1 + 0.03 * part.grain
    if value == BUILT_UP:
        street = (u % 8 < 1.7) | (v % 6.5 < 1.5)
        return np.where(street, 0, part.cells(8, 6.5)), 1 + 0.15 * part.grain
    if value == GREENHOUSE:
        return (v % 4.5 > 1.4) & (u % 17 > 1.5), 0.85 + 0.3 * part.cells(17, 4.5)
    if value == MINE:
        depth = np.hypot(u, v) + 0.7 * part.mottle
        return depth > 4, 0.9 + 0.33 * np.sin(depth * (2 * np.pi / 5.5)) + 0.05 * part.grain
    runways = (np.abs(v + 5) < 2.2) | ((np.abs(v - 4) < 1.1) & (np.abs(u) < 46))
    apron = (np.abs(u) < 17) & (v > 5)
    return ~(runways | apron), np.where(apron, 1.9, 1) * (1 + 0.1 * part.mottle)
