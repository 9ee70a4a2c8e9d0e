"""Pixel embeddings: numbers become vectors as the products define, whatever the layout on disk."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from storage.embeddings.layouts import Choice
from storage.embeddings.rasters import dequantized, geotiff_raster, zarr_rasters
from storage.errors import CatalogError, ConfigError, SceneError
from storage.location import Location
from tests.support.embeddings import signed_power, write_alphaearth, write_zarr

CONVENTION = {"geoemb:type": "pixel", "geoemb:quantization": {"method": "signed_power"}}


def unit_pixels(bands: int, height: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(bands, height, width))
    return vectors / np.linalg.norm(vectors, axis=0)


def test_int8_of_alphaearth_is_the_square_with_its_sign():
    true = unit_pixels(64, 5, 4)
    stored = signed_power(true)
    vectors = dequantized(stored, "signed_power")
    np.testing.assert_allclose(vectors, true, atol=0.01)
    np.testing.assert_array_equal(
        dequantized(np.int8([-128]), "signed_power"), -np.square(np.float32(128 / 127.5))
    )
    linear = stored / np.linalg.norm(stored.astype(float), axis=0)
    assert np.abs(linear - true).max() > 0.05  # plausible, and wrong


def test_a_bottom_up_geotiff_is_read_southwards_and_its_gaps_stay(tmp_path: Path):
    stored = signed_power(unit_pixels(64, 40, 50))
    stored[:, 3, 7] = -128
    raster = geotiff_raster(Location.of(str(write_alphaearth(tmp_path, stored))), Choice())
    assert (raster.layout.name, raster.dimension) == ("alphaearth", 64)
    assert str(raster.datetime) == "2024-01-01T00:00:00.000"
    found = raster.read(raster.extent)
    expected = np.square(stored / np.float32(127.5)) * np.sign(stored)
    expected[:, 3, 7] = np.nan
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "dims", [("time", "band", "y", "x"), ("time", "y", "x", "band"), ("y", "x", "time", "band")]
)
def test_zarr_is_read_by_the_names_of_its_dimensions(dims: tuple[str, ...], tmp_path: Path):
    stored = np.random.default_rng(2).integers(-127, 128, (2, 16, 12, 10)).astype(np.int8)
    scales = np.random.default_rng(3).uniform(0.01, 0.02, (2, 12, 10)).astype(np.float32)
    scales[1, 4, 5], scales[1, 6, 7] = np.inf, np.nan
    write_zarr(
        str(tmp_path / "t.zarr"),
        stored,
        scales=scales,
        attributes={},
        years=[2023, 2024],
        dims=dims,
    )
    rasters = zarr_rasters(Location.of(str(tmp_path / "t.zarr")), Choice())
    assert [(r.layout.name, str(r.datetime)[:4], r.name) for r in rasters] == [
        ("tessera", "2023", "t-utm32-2023-01-01"),
        ("tessera", "2024", "t-utm32-2024-01-01"),
    ]
    found = rasters[1].read(rasters[1].extent)
    expected = stored[1] * scales[1]
    expected[:, 4, 5] = expected[:, 6, 7] = np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(rasters[0].read(rasters[0].extent), stored[0] * scales[0], rtol=1e-6)


def test_the_quantization_of_a_zarr_group_is_that_of_its_attributes(tmp_path: Path):
    stored = signed_power(unit_pixels(128, 8, 8))[None]
    stored[0, :, 2, 2] = -128
    place = str(tmp_path / "olmo.zarr")
    write_zarr(place, stored, attributes=CONVENTION, years=[2024])
    (raster,) = zarr_rasters(Location.of(place), Choice())
    assert (raster.layout.name, raster.layout.nodata) == ("olmoearth", -128)
    found = raster.read(raster.extent)
    assert np.isnan(found[:, 2, 2]).all()
    assert np.isfinite(found).sum() == 128 * 63


def write_tif(path: Path, dtype: str, transform: Affine) -> Location:
    options = {"driver": "GTiff", "width": 8, "height": 8, "count": 3, "crs": "EPSG:32632"}
    with rasterio.open(path, "w", dtype=dtype, transform=transform, **options) as file:
        file.write(np.ones((3, 8, 8), dtype))
    return Location.of(str(path))


def test_rasters_that_would_be_read_wrongly_are_refused(tmp_path: Path):
    upright = Affine(10, 0, 600_000, 0, -10, 5_100_000)
    with pytest.raises(ConfigError, match="nothing says how they become vectors; name the layout"):
        geotiff_raster(write_tif(tmp_path / "a_20240101.tif", "int8", upright), Choice())
    oblong = Affine(10, 0, 600_000, 0, -20, 5_100_000)
    with pytest.raises(SceneError, match="not upright squares"):
        geotiff_raster(write_tif(tmp_path / "b_20240101.tif", "float32", oblong), Choice())
    with pytest.raises(CatalogError, match="neither a date in its name nor a year"):
        geotiff_raster(write_tif(tmp_path / "c.tif", "float32", upright), Choice())
