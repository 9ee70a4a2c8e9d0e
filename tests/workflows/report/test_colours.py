"""Colours: bytes as they are, other values with one stretch that keeps their balance."""

import numpy as np
import pytest

from storage.errors import NotFoundError
from workflows.report.colours import BYTES, coloured, preset_of, presets_of, stretch_of


@pytest.mark.parametrize(
    ("bands", "names"),
    [
        (("blue", "green", "red"), ["true"]),
        (("B02", "B03", "B04", "B08"), ["true", "false"]),
        (("B02", "B03", "B04", "B8A", "B11"), ["true", "false", "swir"]),
        (("VV", "VH"), ["radar", "vv"]),
        (("hh",), ["hh"]),
        (("b1", "b2", "b3", "b4"), ["first"]),
        (("elevation",), ["first"]),
    ],
)
def test_the_bands_decide_what_can_be_shown(bands, names):
    presets = presets_of(bands)
    assert [preset.name for preset in presets] == names
    assert all(0 <= band < len(bands) for preset in presets for band in preset.bands)
    assert preset_of(bands, None) == presets[0]


def test_a_preset_that_the_bands_lack_is_refused_with_those_they_have():
    with pytest.raises(NotFoundError, match="'false'; give one of true"):
        preset_of(("red", "green", "blue"), "false")


def test_bytes_are_shown_as_they_are():
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16).repeat(3, 0)
    np.testing.assert_array_equal(coloured(values, BYTES)[..., 1].ravel(), np.arange(256))


def test_a_joint_stretch_keeps_the_order_of_the_bands_and_an_own_one_does_not():
    rng = np.random.default_rng(0)
    dark, bright = (rng.uniform(0, high, (3, 4000)).astype(np.float32) for high in (0.1, 0.4))
    dark[2] *= 0.25  # little blue
    joint = stretch_of([dark, bright], joint=True)
    assert len({*joint.low, *joint.high}) == 2
    shown = coloured(dark[:, :, None], joint)
    assert shown[..., 0].mean() > 3 * shown[..., 2].mean()
    own = stretch_of([dark], joint=False)
    assert own.high[0] == pytest.approx(np.percentile(dark[0], 98))
    assert own.high[2] == pytest.approx(np.percentile(dark[2], 98))


def test_gamma_brightens_and_keeps_the_ends():
    values = np.array([[[0.0, 64, 255]]] * 3, np.float32)
    plain, bright = (coloured(values, BYTES, gamma)[0, :, 0].tolist() for gamma in (1.0, 2.0))
    assert plain == [0, 64, 255]
    assert bright == [0, round(255 * (64 / 255) ** 0.5), 255]


def test_no_sample_gives_a_stretch_that_draws():
    assert coloured(np.full((3, 2, 2), 0.5, np.float32), stretch_of([], joint=True)).max() == 128
