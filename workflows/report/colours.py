"""Colours: which bands a picture shows, and how their values become 8 bits.

Bytes are shown as they are. Other values (reflectance, counts, radar) get one stretch, which is the
same for all dates of a place, so that pictures of two dates can be compared: for optical bands one
pair of limits for the three bands, which keeps their balance; for radar one pair for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import NotFoundError

LIGHT_GREY = 235
"""Invalid pixels in pictures without transparency."""
_PERCENTILES = (2.0, 98.0)
_NAMES = {
    "red": ("red", "b04"),
    "green": ("green", "b03"),
    "blue": ("blue", "b02"),
    "nir": ("nir", "nir08", "b08", "b8a"),
    "swir": ("swir16", "swir", "b11", "swir22", "b12"),
    "vv": ("vv",),
    "vh": ("vh",),
    "hh": ("hh",),
    "hv": ("hv",),
}
"""Names of bands in catalogs, in small letters, the best first."""
_CHOICES = (
    ("true", "True colour", ("red", "green", "blue"), True),
    ("false", "False colour: plants are red", ("nir", "red", "green"), True),
    ("swir", "Short-wave infrared", ("swir", "nir", "red"), True),
    ("radar", "Radar: VV, VH, VV", ("vv", "vh", "vv"), False),
    ("radar-h", "Radar: HH, HV, HH", ("hh", "hv", "hh"), False),
    ("vv", "Radar: VV", ("vv", "vv", "vv"), True),
    ("hh", "Radar: HH", ("hh", "hh", "hh"), True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Three bands as red, green and blue.

    ``bands`` are positions in the bands of a scene; ``joint`` gives the three one stretch.
    """

    name: str
    title: str
    bands: tuple[int, int, int]
    joint: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """The values of red, green and blue that are shown as 0 and as 255."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


BYTES = Stretch(low=(0.0,) * 3, high=(255.0,) * 3)


def presets_of(bands: Sequence[str]) -> tuple[Preset, ...]:
    """Return the presets that some bands offer, the default first.

    Examples
    --------
    >>> [(p.name, p.bands) for p in presets_of(("B02", "B03", "B04", "B08"))]
    [('true', (2, 1, 0)), ('false', (3, 2, 1))]
    >>> [(p.name, p.bands) for p in presets_of(("x", "y"))]
    [('first', (0, 1, 1))]
    """
    places = {name.lower(): place for place, name in reversed([*enumerate(bands)])}
    known = {
        name: next((places[alias] for alias in aliases if alias in places), None)
        for name, aliases in _NAMES.items()
    }
    found = []
    for name, title, wanted, joint in _CHOICES:
        red, green, blue = (known[band] for band in wanted)
        if red is not None and green is not None and blue is not None:
            found.append(Preset(name=name, title=title, bands=(red, green, blue), joint=joint))
    if found or not bands:  # imported embeddings have no bands
        return tuple(found)
    last = len(bands) - 1
    first = (0, min(1, last), min(2, last))
    title = f"Bands {', '.join(bands[i] for i in dict.fromkeys(first))}"
    return (Preset(name="first", title=title, bands=first),)


def preset_of(bands: Sequence[str], name: str | None) -> Preset:
    """Return a preset by its name, the default for None.

    Raises
    ------
    NotFoundError
        The bands do not offer it.
    """
    offered = presets_of(bands)
    if not offered:
        raise NotFoundError("imported embeddings have no bands to draw")
    for preset in offered:
        if name in (None, preset.name):
            return preset
    raise NotFoundError(
        f"bands {', '.join(bands)} have no preset {name!r}; "
        f"give one of {', '.join(preset.name for preset in offered)}"
    )


def stretch_of(samples: Sequence[NDArray[np.float32]], joint: bool) -> Stretch:
    """Return the stretch from the 2nd to the 98th percentile of samples.

    Parameters
    ----------
    samples
        float32 (3, n), one a scene; NaN where invalid.
    joint
        One pair of limits for the three bands.
    """
    values = np.concatenate(samples, axis=1) if samples else np.empty((3, 0), np.float32)
    limits = np.tile(np.array([[0.0], [1.0]]), 3)
    for band in range(3):
        chosen = values if joint else values[band]
        valid = chosen[np.isfinite(chosen)]
        if valid.size:
            limits[:, band] = np.percentile(valid, _PERCENTILES)
    low, high = limits.tolist()
    return Stretch(low=tuple(low), high=tuple(high))


def coloured(
    values: NDArray[np.float32], stretch: Stretch, gamma: float = 1.0
) -> NDArray[np.uint8]:
    """Return three bands as 8 bits.

    Parameters
    ----------
    values
        float32 (3, h, w), NaN where invalid.
    stretch
        The values that become 0 and 255.
    gamma
        Shares are raised to 1 / gamma: above 1 brightens dark places.

    Returns
    -------
    ndarray
        uint8 (h, w, 3); a pixel that is invalid in a band is 0 in that band.
    """
    low, high = (np.array(side, np.float32)[:, None, None] for side in (stretch.low, stretch.high))
    share = np.clip((values - low) / np.maximum(high - low, np.float32(1e-9)), 0, 1)
    if gamma != 1:
        share **= np.float32(1 / gamma)
    share = np.nan_to_num(share, copy=False)
    image: NDArray[np.uint8] = np.moveaxis(np.rint(255 * share), 0, -1).astype(np.uint8)
    return image
