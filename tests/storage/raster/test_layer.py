"""Gaps are the same however a file marks them and whatever grid it is read on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from storage.errors import SceneError
from storage.raster.picture import read_picture
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader, read_categorical
from storage.scene import BandSource, MaskSource
from tests.support.rasters import (
    CRS,
    GRID,
    HOME,
    ORIGIN,
    bands,
    numbers,
    read,
    scene,
    tiff,
    warped_truth,
)

GRIDS = {
    "as-is": GRID,
    "half": PixelGrid(crs=CRS, resolution=5.0),
    "warped": PixelGrid(crs=CRS, resolution=7.0),
    "degrees": PixelGrid(crs="EPSG:4326", resolution=1e-4),
}
BASE = (np.add.outer(np.arange(40) * 2, np.arange(48)) + 1000).astype(np.uint16)
GAP = np.zeros((40, 48), bool)
GAP[8:24, 16:40] = True
STATED = np.zeros((40, 48), bool)  # pixels that hold the nodata value of the catalog
STATED[30:, :9] = True


def values_on(grid: PixelGrid, *sources: BandSource) -> tuple[Window, np.ndarray]:
    with SceneReader(scene(*sources), grid) as reader:
        return reader.extent, reader.read(reader.extent).values


def check(grid: PixelGrid, truth: np.ndarray, *sources: BandSource) -> None:
    """Compare the first band with rasterio's warp of the same pixels with NaN in the gaps."""
    window, values = values_on(grid, *sources)
    expected = warped_truth(truth, grid, window)
    both = ~np.isnan(values[0]) & ~np.isnan(expected)
    np.testing.assert_allclose(values[0][both], expected[both], atol=0.1)
    rim = np.isnan(values[0]) != np.isnan(expected)
    assert rim.mean() < (0.03 if grid != GRID else 1e-9), "the rim of a gap may differ in a warp"


def alpha(array: np.ndarray, opaque: Any) -> np.ndarray:
    return np.concatenate([array, np.where(GAP, 0, opaque).astype(array.dtype)[None]])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("internal", [True, False], ids=["internal", "msk"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_mask_counts_beside_the_nodata_of_the_catalog(
    tmp_path: Path, grid: PixelGrid, count: int, internal: bool, dtype: str
) -> None:
    array = np.where(GAP, 60000, BASE)
    array[STATED] = 7
    stack = np.stack([array] * count).astype(dtype)
    href = tiff(tmp_path / "a.tif", stack, mask=~GAP, internal=internal)
    assert (tmp_path / "a.tif.msk").exists() != internal
    check(grid, np.where(GAP, np.nan, array), *bands(href, [1]))
    check(grid, np.where(GAP | STATED, np.nan, array), *bands(href, [1], nodata=7.0))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "opaque"),
    [
        *[("uint8", 255), ("uint8", 3), ("uint16", 65535), ("uint16", 255), ("int16", 255)],
        *[("uint32", 1), ("float32", 1.0), ("float32", 0.001), ("float64", 255.0)],
    ],
)
def test_alpha_of_any_type_hides_only_what_is_fully_transparent(
    tmp_path: Path, grid: PixelGrid, count: int, dtype: str, opaque: float
) -> None:
    base = (BASE % 250 + 1) if dtype == "uint8" else BASE
    array = np.stack([np.where(GAP, 0, base)] * count).astype(dtype)
    interpretation = [*[ColorInterp.gray] * count, ColorInterp.alpha]
    href = tiff(tmp_path / "a.tif", alpha(array, opaque), colorinterp=interpretation)
    truth = np.where(GAP, np.nan, base.astype(np.float64))
    check(grid, truth, *bands(href, range(1, count + 1)))
    whole = read_picture(href).values
    assert whole.shape == (count, 40, 48), "alpha is no band"
    np.testing.assert_array_equal(np.isnan(whole[0]), GAP)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_alpha_that_is_mapped_is_data(tmp_path: Path, grid: PixelGrid) -> None:
    near_infrared = np.where(GAP, 0, BASE % 200 + 5).astype(np.uint8)
    array = np.stack([BASE % 250, BASE % 240, BASE % 230, near_infrared]).astype(np.uint8)
    names = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    href = tiff(tmp_path / "a.tif", array, photometric="RGB", colorinterp=list(names))
    assert np.isnan(values_on(GRID, *bands(href, [1]))[1]).sum() == GAP.sum()
    # Other nodata puts the bands into layers of their own; the file's alpha is data to all.
    for sources in (bands(href, [4, 1, 2, 3]), [*bands(href, [4]), *bands(href, [1], nodata=251)]):
        window, values = values_on(grid, *sources)
        truths = [warped_truth(array[i].astype(float), grid, window) for i in (3, 0)]
        for value, truth in zip(values, truths, strict=False):
            np.testing.assert_array_equal(np.isnan(value), np.isnan(truth))
            np.testing.assert_allclose(value, truth, atol=0.1)


def test_a_cloud_mask_beside_bands_knows_that_alpha_is_mapped(tmp_path: Path) -> None:
    array = np.stack([BASE, np.where(GAP, 0, BASE), np.full_like(BASE, 4)])
    interpretation = [ColorInterp.gray, ColorInterp.alpha, ColorInterp.undefined]
    href = tiff(tmp_path / "a.tif", array, colorinterp=interpretation)
    clouds = MaskSource(href=href, index=3, cloud_values=(4,))
    assert read(scene(*bands(href, [1, 2]), mask=clouds)).cloud.all()
    # Without the mapping, pixels that are transparent hold neither data nor cloud.
    np.testing.assert_array_equal(read(scene(*bands(href, [1]), mask=clouds)).cloud, ~GAP)


def test_alpha_counts_beside_nodata(tmp_path: Path) -> None:
    array = np.where(STATED, 7, BASE)[None]
    interpretation = [ColorInterp.gray, ColorInterp.alpha]
    href = tiff(tmp_path / "a.tif", alpha(array, 9), nodata=7, colorinterp=interpretation)
    for grid in GRIDS.values():
        check(grid, np.where(GAP | STATED, np.nan, BASE), *bands(href, [1]))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_nodata_of_nan_leaves_mask_and_alpha(tmp_path: Path, grid: PixelGrid) -> None:
    masked = tiff(tmp_path / "a.tif", BASE[None], mask=~GAP)
    interpretation = [ColorInterp.gray, ColorInterp.alpha]
    transparent = tiff(
        tmp_path / "b.tif", alpha(BASE[None], 9), nodata=BASE[0, 0], colorinterp=interpretation
    )
    for href in (masked, transparent):
        check(grid, np.where(GAP, np.nan, BASE), *bands(href, [1], nodata=math.nan))


def test_infinity_under_no_mask_is_missing(tmp_path: Path) -> None:
    array = BASE[None].astype(np.float32)
    array[0, 0, 0] = np.inf
    values = read(scene(*bands(tiff(tmp_path / "a.tif", array, mask=~GAP), [1]))).values
    assert np.isnan(values[0, 0, 0])


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_nodata_of_64_bits_is_exact(tmp_path: Path, dtype: str) -> None:
    # rasterio writes nodata as a float, so the value is given beside the file.
    nodata, path = 2**60 + 1, tmp_path / "a.tif"
    array = np.full((1, 40, 48), 2**60, dtype)
    array[0, GAP] = nodata
    tiff(path, array)
    (tmp_path / "a.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><NoDataValue>{nodata}</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )
    with rasterio.open(path) as dataset:
        assert (dataset.read_masks(1) == 0).sum() == GAP.sum()
    values = read(scene(*bands(str(path), [1]))).values
    np.testing.assert_array_equal(np.isnan(values[0]), GAP)


# --- masks of single bands --------------------------------------------------------------------


def test_a_mask_of_each_band_counts_as_it_is_and_is_refused_in_a_warp(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", np.stack([BASE, BASE]))
    masks = np.stack([~GAP, ~STATED]).astype(np.uint8) * 255
    tiff(tmp_path / "m.tif", masks)
    with rasterio.open(tmp_path / "m.tif", "r+") as dataset:
        dataset.update_tags(INTERNAL_MASK_FLAGS_1="0", INTERNAL_MASK_FLAGS_2="0")
    (tmp_path / "m.tif").rename(tmp_path / "a.tif.msk")
    values = read(scene(*bands(href, [1, 2]))).values
    np.testing.assert_array_equal(np.isnan(values), [GAP, STATED])
    np.testing.assert_array_equal(np.isnan(read_picture(href).values), [GAP, STATED])
    with pytest.raises(SceneError, match=r"a\.tif has a mask for each of its bands"):
        SceneReader(scene(*bands(href, [1, 2])), GRIDS["warped"])


# --- classes and flags ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "high", "resolution"),
    [
        *[("uint8", 7, 10), ("int8", 6, 20), ("int16", 15, 20), ("uint32", 31, 10)],
        *[("uint32", 31, 20), ("uint32", 31, 15), ("int32", 31, 15), ("int64", 62, 10)],
        *[("int64", 63, 20), ("uint64", 63, 10), ("uint64", 63, 20), ("uint64", 52, 15)],
        ("float32", 23, 15),
    ],
)
def test_low_bits_are_seen_beside_high_ones(
    tmp_path: Path, dtype: str, high: int, resolution: int
) -> None:
    """Oracle: the bit in numpy, spread over the pixels of the mask by nearest neighbour."""
    image = tiff(tmp_path / "a.tif", numbers(1, 60, 60) + 1)
    flags = np.random.default_rng(3).integers(0, 2, (60 * 10 // resolution,) * 2)
    stored = (flags.astype(object) + (1 << high)) % 2**64
    stored = stored.astype(np.uint64).astype(dtype)[None]
    size = rasterio.Affine(resolution, 0, ORIGIN[0], 0, -resolution, ORIGIN[1])
    mask = MaskSource(href=tiff(tmp_path / "m.tif", stored, transform=size), cloud_bits=(0,))
    window = Window(column=HOME.column, row=HOME.row, width=60, height=60)
    at = (np.arange(60) * 10 + 5) // resolution
    cloud = read(scene(*bands(image, [1]), mask=mask), window).cloud
    np.testing.assert_array_equal(cloud, flags[np.ix_(at, at)] == 1)


def test_flags_that_a_warp_would_round_are_refused(tmp_path: Path) -> None:
    flags = np.full((1, 40, 48), (1 << 63) | 1, np.uint64)
    href = tiff(tmp_path / "m.tif", flags)
    made = scene(*bands(href, [1]), mask=MaskSource(href=href, cloud_bits=(0,)))
    assert read(made).cloud.all()
    with pytest.raises(SceneError, match=r"m\.tif has classes or flags beyond 2\*\*53"):
        read(
            made,
            pixels=GRIDS["warped"],
            window=Window(column=51804, row=-283867, width=9, height=9),
        )


def test_a_mask_of_clouds_has_gaps_of_its_own(tmp_path: Path) -> None:
    image = tiff(tmp_path / "a.tif", BASE[None])
    href = tiff(tmp_path / "m.tif", np.full((1, 40, 48), 9, np.uint8), mask=~GAP)
    made = scene(*bands(image, [1]), mask=MaskSource(href=href, cloud_values=(9, -1, 300)))
    np.testing.assert_array_equal(read(made).cloud, ~GAP)


@pytest.mark.parametrize("grid", [GRIDS["as-is"], GRIDS["half"]], ids=["as-is", "half"])
@pytest.mark.parametrize(
    ("dtype", "codes", "profile"),
    [
        ("float32", (1, 2, math.nan), {"nodata": math.nan}),
        ("float32", (1, 2, math.nan), {}),
        ("float64", (2**31 + 1, 2**31 + 2, -9999), {"nodata": -9999}),
        ("uint32", (2**24, 2**24 + 1, 2**32 - 1), {"nodata": 2**32 - 1}),
        ("int64", (2**60, 2**60 + 1, -1), {"nodata": -1}),
        ("int8", (-3, 4, -128), {"nodata": -128}),
        ("uint8", (0, 255, 3), {"nodata": 3}),
    ],
)
def test_classes_are_exact_and_gaps_are_none(
    tmp_path: Path, grid: PixelGrid, dtype: str, codes: tuple[float, ...], profile: dict[str, Any]
) -> None:
    which = np.random.default_rng(5).integers(0, 3, (40, 48))
    array = np.array(codes, dtype)[which]
    href = tiff(tmp_path / "a.tif", array[None], **profile)
    factor = round(10 / grid.resolution)
    window = Window(
        column=HOME.column * factor - 4, row=HOME.row * factor, width=48 * factor + 4, height=40
    )
    found, known = read_categorical(href, grid, window)
    spread = np.kron(which, np.ones((factor, factor), int))[:40]
    np.testing.assert_array_equal(known, np.pad(spread < 2, ((0, 0), (4, 0))))
    for number, code in enumerate(codes[:2]):
        np.testing.assert_array_equal(found[:, 4:][spread == number] == code, True)
        assert not (found[:, 4:][spread == 1 - number] == code).any()


def test_every_number_is_a_class_where_nothing_means_nodata(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", np.arange(256, dtype=np.uint8).reshape(1, 16, 16))
    window = Window(column=HOME.column, row=HOME.row, width=16, height=16)
    assert read_categorical(href, GRID, window)[1].all()


def test_classes_close_to_nodata_are_classes_in_a_warp(tmp_path: Path) -> None:
    array = np.full((1, 40, 48), 2**32 - 3, np.uint32)
    array[0, GAP] = 2**32 - 1
    href = tiff(tmp_path / "a.tif", array, nodata=2**32 - 1)
    window = Window(column=HOME.column * 3, row=HOME.row * 3, width=144, height=120)
    grid = PixelGrid(crs=CRS, resolution=10 / 3)
    found, known = read_categorical(href, grid, window)
    np.testing.assert_array_equal(known, np.kron(~GAP, np.ones((3, 3), bool)))
    assert (found[known] == 2**32 - 3).all()
