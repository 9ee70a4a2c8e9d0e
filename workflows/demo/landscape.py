"""The made-up ground: which land cover lies where, and how it looks on a given day.

Everything is computed from a seed by noise filtered in the frequency domain. Classes overlap in
mean colour and change with the season, so that a tile's label must be read from its texture;
three of the eight classes are rare. No file is touched here: ``workflows.demo.world`` writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

CLASSES: dict[int, str] = {
    1: "forest",
    2: "cropland",
    3: "grassland",
    4: "water",
    5: "built-up",
    6: "greenhouse",
    7: "mine",
    8: "airport",
}
FOREST, CROPLAND, GRASSLAND, WATER, BUILT_UP, GREENHOUSE, MINE, AIRPORT = CLASSES
COLOURS = (
    "#2f6b3a", "#e2c25b", "#a5c96b", "#4a86c5", "#c9574f", "#8a8f98", "#7a4b2a", "#8d5fb0",
)  # fmt: skip
BANDS = ("blue", "green", "red", "nir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """A piece of ground, the same on every day.

    Attributes
    ----------
    classes
        Land-cover value of each pixel, a key of ``CLASSES``; uint8 (h, w).
    relief, broad, mottle, grain
        Noise of falling wavelength, zero mean and unit variance; float32 (h, w).
    along, across
        Position in pixels in the frame of the field, the town or the object; float32 (h, w).
    chance
        Random numbers in [0, 1) that parcels and roofs draw from; float32 (65536,).
    """

    classes: NDArray[np.uint8]
    relief: Float
    broad: Float
    mottle: Float
    grain: Float
    along: Float
    across: Float
    chance: Float

    def rows(self, start: int, stop: int) -> "Ground":
        """Return the rows ``start`` to ``stop`` of the ground, as views."""
        part = slice(start, stop)
        return Ground(
            classes=self.classes[part],
            relief=self.relief[part],
            broad=self.broad[part],
            mottle=self.mottle[part],
            grain=self.grain[part],
            along=self.along[part],
            across=self.across[part],
            chance=self.chance,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Season:
    """What a day does to the look of the ground.

    Attributes
    ----------
    sun
        Brightness of the light in each of ``BANDS``; 1 is high summer.
    haze
        Reflectance that the air adds in each of ``BANDS``.
    vigour
        How green vegetation is, from 0 (bare) to 1.
    sun_from
        Direction of the sun as (east, north), unit length.
    crop_phase
        Shift of the crop calendar, in turns.
    """

    sun: tuple[float, float, float, float]
    haze: tuple[float, float, float, float]
    vigour: float
    sun_from: tuple[float, float]
    crop_phase: float


SUMMER = Season(
    sun=(1.0, 1.0, 1.0, 1.0),
    haze=(0.010, 0.006, 0.003, 0.0),
    vigour=1.0,
    sun_from=(0.6, -0.8),
    crop_phase=0.0,
)
AUTUMN = Season(
    sun=(0.55, 0.62, 0.70, 0.74),
    haze=(0.035, 0.020, 0.010, 0.004),
    vigour=0.45,
    sun_from=(0.2, -0.98),
    crop_phase=0.45,
)


def noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelength_px: float, rough: bool = False
) -> Float:
    """Draw a random field of zero mean and unit variance, periodic at its edges.

    Parameters
    ----------
    wavelength_px
        Typical size of a light-dark period.
    rough
        True adds all longer wavelengths' smaller companions (a power law), as terrain has.

    Returns
    -------
    ndarray
        float32 (h, w).

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
    return _float((field - field.mean()) / field.std())


def make_ground(seed: int, zone: int, shape: tuple[int, int]) -> Ground:
    """Make the ground of one UTM zone.

    ``seed`` and ``zone`` decide everything; ``shape`` is height and width in pixels.
    """
    rng = np.random.default_rng([seed, zone])
    relief = noise(rng, shape, 420, rough=True)
    moisture = noise(rng, shape, 160, rough=True) + 0.35 * relief
    classes = _natural_cover(rng, relief, moisture)
    along, across = _districts(rng, shape)
    town = noise(rng, shape, 150, rough=True) - 0.3 * moisture
    classes[(town > np.quantile(town, 0.925)) & (classes != WATER)] = BUILT_UP
    megapixels = shape[0] * shape[1] / 2**20
    for value, per_megapixel, stamp in (
        (GREENHOUSE, 11, _greenhouse_shape),
        (MINE, 9, _mine_shape),
        (AIRPORT, 5.5, _airport_shape),
    ):
        for _ in range(max(1, round(per_megapixel * megapixels))):
            _place(rng, classes, along, across, value, stamp)
    return Ground(
        classes=classes,
        relief=relief,
        broad=noise(rng, shape, 200, rough=True),
        mottle=noise(rng, shape, 13),
        grain=noise(rng, shape, 3.2),
        along=along,
        across=across,
        chance=rng.random(65536, dtype=np.float32),
    )


def _natural_cover(rng: np.random.Generator, relief: Float, moisture: Float) -> NDArray[np.uint8]:
    ragged = moisture + 0.12 * noise(rng, relief.shape, 9)
    dry, wet = np.quantile(moisture, [0.44, 0.63])
    classes = np.full(relief.shape, GRASSLAND, np.uint8)
    classes[ragged < dry] = CROPLAND
    classes[ragged > wet] = FOREST
    river = np.abs(noise(rng, relief.shape, 520, rough=True) + 0.04 * moisture)
    classes[(river < 0.035) | (relief < np.quantile(relief, 0.03))] = WATER
    return classes


def _districts(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Float, Float]:
    """Lay patches of ground whose fields and streets run in directions of their own."""
    rows, columns = np.indices(shape, dtype=np.float32)
    bent = rows + 8 * noise(rng, shape, 60), columns + 8 * noise(rng, shape, 60)
    nearest = np.full(shape, np.inf, np.float32)
    angle = np.zeros(shape, np.float32)
    for _ in range(max(4, shape[0] * shape[1] // 26000)):
        row, column = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        distance = (bent[0] - row) ** 2 + (bent[1] - column) ** 2
        closer = distance < nearest
        nearest[closer] = distance[closer]
        angle[closer] = rng.uniform(0, np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    # The offset by angle keeps the parcels of two districts from drawing the same numbers.
    along = cosine * columns + sine * rows + 997 * angle
    return _float(along), _float(cosine * rows - sine * columns)


def _place(
    rng: np.random.Generator,
    classes: NDArray[np.uint8],
    along: Float,
    across: Float,
    value: int,
    stamp: Callable[[np.random.Generator, Float, Float], NDArray[np.bool_]],
) -> None:
    """Put one object on fields or grass and give it coordinates of its own."""
    height, width = classes.shape
    row, column = int(rng.integers(height)), int(rng.integers(width))
    for _ in range(50):
        if classes[row, column] in (CROPLAND, GRASSLAND):
            break
        row, column = int(rng.integers(height)), int(rng.integers(width))
    reach = 70
    window = (
        slice(max(0, row - reach), min(height, row + reach)),
        slice(max(0, column - reach), min(width, column + reach)),
    )
    rows, columns = np.mgrid[window].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u = np.float32(np.cos(angle)) * (columns - column) + np.float32(np.sin(angle)) * (rows - row)
    v = np.float32(np.cos(angle)) * (rows - row) - np.float32(np.sin(angle)) * (columns - column)
    covered = stamp(rng, u, v)
    classes[window][covered] = value
    along[window][covered] = u[covered]
    across[window][covered] = v[covered]


def _greenhouse_shape(rng: np.random.Generator, u: Float, v: Float) -> NDArray[np.bool_]:
    return (np.abs(u) < rng.uniform(16, 30)) & (np.abs(v) < rng.uniform(12, 22))


def _mine_shape(rng: np.random.Generator, u: Float, v: Float) -> NDArray[np.bool_]:
    lobes = 1 + 0.18 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6))
    return np.asarray(np.hypot(u * rng.uniform(0.7, 1.0), v) < rng.uniform(15, 26) * lobes)


def _airport_shape(rng: np.random.Generator, u: Float, v: Float) -> NDArray[np.bool_]:
    half = rng.uniform(48, 64)
    return (np.abs(u) < half) & (v > -7) & (v < 18)


def reflectance(ground: Ground, season: Season) -> Float:
    """Render the ground as it reflects on a clear day of a season.

    Returns
    -------
    ndarray
        Surface reflectance, about 0 to 0.6; float32 (4, h, w) in the order of ``BANDS``.
    """
    image = np.empty((len(BANDS), *ground.classes.shape), np.float32)
    for value, look in _LOOKS.items():
        where = ground.classes == value
        pixels = _Pixels(
            along=ground.along[where],
            across=ground.across[where],
            broad=ground.broad[where],
            mottle=ground.mottle[where],
            grain=ground.grain[where],
            chance=ground.chance,
        )
        image[:, where] = look(pixels, season)
    for axis in (1, 2):  # the lens spreads a little of each pixel over its neighbours
        image = 0.74 * image + 0.13 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    slope_south, slope_east = np.gradient(ground.relief)
    facing = season.sun_from[1] * slope_south - season.sun_from[0] * slope_east
    shade = 1 + 0.10 * np.clip(facing / facing.std(), -3, 3) + 0.05 * ground.broad
    image *= np.float32(shade)
    image *= np.array(season.sun, np.float32)[:, None, None]
    image += np.array(season.haze, np.float32)[:, None, None]
    return _float(np.clip(image, 0.001, 1.2, out=image))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pixels:
    """The pixels of one class, each field float32 (n,)."""

    along: Float
    across: Float
    broad: Float
    mottle: Float
    grain: Float
    chance: Float

    def cells(self, length_px: float, width_px: float, salt: int = 0) -> Float:
        """Draw one number in [0, 1) for each cell of a lattice."""
        i = np.floor(self.along / length_px).astype(np.int64)
        j = np.floor(self.across / width_px).astype(np.int64)
        return _float(self.chance[(i * 73856093 ^ j * 19349663 ^ salt * 83492791) & 0xFFFF])


def _float(values: NDArray[Any]) -> Float:
    return np.asarray(values, np.float32)


def _colour(*bands: float) -> Float:
    return np.array(bands, np.float32)[:, None]


def _vegetation(green: Float, bare: Float, vigour: float | Float) -> Float:
    return _float(vigour * green + (1 - vigour) * bare)


def _forest(at: _Pixels, season: Season) -> Float:
    leaf = _vegetation(
        _colour(0.025, 0.048, 0.030, 0.31), _colour(0.040, 0.062, 0.068, 0.21), season.vigour
    )
    tone = np.clip(1 + 0.30 * at.grain + 0.08 * at.mottle + 0.12 * at.broad, 0.25, 2)
    return _float(leaf * tone)


def _cropland(at: _Pixels, season: Season) -> Float:
    calendar = (at.cells(21, 13) + season.crop_phase) % 1
    growth = np.clip(1.6 - 4 * np.abs(calendar - 0.3), 0, 1) * (0.4 + 0.6 * season.vigour)
    ripe = (calendar > 0.75)[None, :]
    soil = np.where(ripe, _colour(0.07, 0.12, 0.15, 0.27), _colour(0.085, 0.11, 0.14, 0.21))
    plants = _vegetation(_colour(0.035, 0.075, 0.045, 0.40), soil, growth)
    rows = 1 + 0.05 * np.sin(at.across * (2 * np.pi / 3.3)) * (at.cells(21, 13, 1) > 0.4)
    hedge = (at.along % 21 < 1.2) | (at.across % 13 < 1.0)
    tone = (0.85 + 0.3 * at.cells(21, 13, 2)) * rows * (1 + 0.03 * at.grain)
    return _float(plants * tone * np.where(hedge, 0.72, 1))


def _grassland(at: _Pixels, season: Season) -> Float:
    grass = _vegetation(
        _colour(0.040, 0.080, 0.060, 0.30), _colour(0.065, 0.095, 0.110, 0.22), season.vigour
    )
    return _float(grass * (1 + 0.13 * at.mottle + 0.15 * at.broad + 0.04 * at.grain))


def _water(at: _Pixels, season: Season) -> Float:
    turbid = np.clip(0.5 + 0.3 * at.broad, 0, 1)
    water = _vegetation(
        _colour(0.045, 0.065, 0.050, 0.025), _colour(0.05, 0.04, 0.02, 0.01), turbid
    )
    return _float(water * (1 + 0.03 * at.grain))


def _built_up(at: _Pixels, season: Season) -> Float:
    roof = _colour(0.13, 0.14, 0.16, 0.21) * (0.55 + 1.1 * at.cells(8, 6.5, 3))
    street = _colour(0.09, 0.095, 0.10, 0.13)
    garden = _vegetation(
        _colour(0.04, 0.07, 0.05, 0.29), _colour(0.06, 0.075, 0.08, 0.20), season.vigour
    )
    town = np.where((at.along % 8 < 1.7) | (at.across % 6.5 < 1.5), street, roof)
    return _float(np.where(at.grain > 1.1, garden, town) * (1 + 0.04 * at.grain))


def _greenhouse(at: _Pixels, season: Season) -> Float:
    plastic = _colour(0.21, 0.22, 0.225, 0.30) * (0.85 + 0.3 * at.cells(17, 4.5, 4))
    gap = _colour(0.09, 0.10, 0.12, 0.20)
    between = (at.across % 4.5 < 1.4) | (at.along % 17 < 1.5)
    return _float(np.where(between, gap, plastic) * (1 + 0.02 * at.grain))


def _mine(at: _Pixels, season: Season) -> Float:
    depth = np.hypot(at.along, at.across) + 0.7 * at.mottle
    terrace = 1 + 0.33 * np.sin(depth * (2 * np.pi / 5.5)) - 0.012 * np.clip(20 - depth, 0, 20)
    rock = _colour(0.13, 0.145, 0.17, 0.215) * terrace * (1 + 0.05 * at.grain)
    return _float(np.where(depth < 4, _colour(0.09, 0.13, 0.10, 0.05), rock))


def _airport(at: _Pixels, season: Season) -> Float:
    u, v = at.along, at.across
    lawn = _grassland(at, season)
    paved = (np.abs(v) < 2.2) | ((np.abs(v - 9) < 1.1) & (np.abs(u) < 46))
    paved |= (np.abs(np.abs(u) - 26) < 1.1) & (v > 0) & (v < 9)
    apron = (np.abs(u + 6) < 17) & (v > 10) & (v < 15)
    hall = (np.abs(u + 6) < 14) & (v >= 15) & (u % 6 < 4.5)
    ground = np.where(paved, _colour(0.10, 0.105, 0.11, 0.14), lawn)
    ground = np.where(apron, _colour(0.20, 0.205, 0.21, 0.25), ground)
    return _float(np.where(hall, _colour(0.28, 0.29, 0.30, 0.33), ground))


_LOOKS: dict[int, Callable[[_Pixels, Season], Float]] = {
    FOREST: _forest,
    CROPLAND: _cropland,
    GRASSLAND: _grassland,
    WATER: _water,
    BUILT_UP: _built_up,
    GREENHOUSE: _greenhouse,
    MINE: _mine,
    AIRPORT: _airport,
}
