"""Reads are checked against plain rasterio and numpy, bit for bit where nothing is resampled."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from storage.errors import ConfigError, SceneError
from storage.location import Location, StorageOptions
from storage.raster.geotiff import inspect, resolution_in
from storage.raster.picture import read_picture
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader, read_categorical
from storage.raster.writer import write_geotiff
from storage.scene import MaskSource, Scene
from tests.support.rasters import CRS, GRID, HOME, ORIGIN, bands, numbers, read, scene, tiff

# --- pixels that are the grid's ---------------------------------------------------------------


def test_aligned_scene_is_read_bit_for_bit(tmp_path: Path) -> None:
    array = numbers(3)
    href = tiff(tmp_path / "a.tif", array)
    made = scene(*bands(href, [3, 1]))
    with SceneReader(made, GRID) as reader:
        assert reader.extent == HOME
        block = reader.read(HOME)
    np.testing.assert_array_equal(block.values, array[[2, 0]].astype(np.float32))
    assert block.values.dtype == np.float32
    assert block.valid.all()
    assert not block.cloud.any()


@pytest.fixture(scope="module")
def home_scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, np.ndarray]:
    array = numbers(2)
    href = tiff(tmp_path_factory.mktemp("home") / "a.tif", array)
    return scene(*bands(href, [1, 2])), array


@settings(max_examples=60, deadline=None)
@given(
    column=st.integers(-70, 70),
    row=st.integers(-70, 70),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
)
def test_any_window_is_the_scene_in_a_field_of_nothing(
    home_scene: tuple[Scene, np.ndarray], column: int, row: int, width: int, height: int
) -> None:
    made, array = home_scene
    field = np.full((2, 400, 400), np.nan, np.float32)
    field[:, 180 : 180 + 40, 180 : 180 + 48] = array
    window = Window(column=HOME.column + column, row=HOME.row + row, width=width, height=height)
    expected = field[:, 180 + row : 180 + row + height, 180 + column : 180 + column + width]
    block = read(made, window)
    np.testing.assert_array_equal(block.values, expected)
    np.testing.assert_array_equal(block.valid, ~np.isnan(expected[0]))


def test_scene_between_grid_pixels_moves_as_a_whole(tmp_path: Path) -> None:
    shifted = Affine(10, 0, ORIGIN[0] + 3.7, 0, -10, ORIGIN[1] - 4.2)
    array, cloud = numbers(1), (numbers(1) > 150).astype(np.uint8)
    fine = tiff(tmp_path / "10m.tif", array, transform=shifted)
    # Each coarse pixel holds one number under 2 x 2 fine ones: nearest gives it back exactly.
    coarse = np.kron(array[:, ::2, ::2], np.ones((1, 2, 2), np.uint16))
    half = tiff(tmp_path / "20m.tif", array[:, ::2, ::2], transform=shifted @ Affine.scale(2))
    mask = tiff(tmp_path / "mask.tif", cloud, transform=shifted)
    made = scene(
        *bands(half, [1]),
        *bands(fine, [1]),
        mask=MaskSource(href=mask, cloud_values=(1,)),
    )
    with SceneReader(made, GRID, resampling="nearest") as reader:
        assert reader.extent == HOME
    block = read(made, resampling="nearest")
    np.testing.assert_array_equal(block.values[1], array[0])
    np.testing.assert_array_equal(block.values[0], coarse[0])
    np.testing.assert_array_equal(block.cloud, cloud[0] == 1)


def test_bottom_up_file_is_turned_not_resampled(tmp_path: Path) -> None:
    array = numbers(1)
    upwards = Affine(10, 0, ORIGIN[0], 0, 10, ORIGIN[1] - 400)
    href = tiff(tmp_path / "up.tif", array[:, ::-1], transform=upwards)
    made = scene(*bands(href, [1]))
    np.testing.assert_array_equal(read(made).values, array)
    part = Window(column=HOME.column + 5, row=HOME.row + 30, width=7, height=20)
    np.testing.assert_array_equal(read(made, part).values[0, :10], array[0, 30:, 5:12])


# --- from numbers to values -------------------------------------------------------------------


def test_nodata_scale_and_offset_of_the_file_apply(tmp_path: Path) -> None:
    array = numbers(2)
    href = tiff(tmp_path / "a.tif", array, nodata=5, scales=(0.5, 1), offsets=(-3, 2))
    values = read(scene(*bands(href, [1, 2]))).values
    expected = np.where(array == 5, np.nan, array).astype(np.float32)
    expected = expected * np.float32([0.5, 1])[:, None, None] + np.float32([-3, 2])[:, None, None]
    np.testing.assert_array_equal(values, expected)


def test_catalog_overrules_the_file_once(tmp_path: Path) -> None:
    array = numbers(1)
    href = tiff(tmp_path / "a.tif", array, nodata=5, scales=(0.5,), offsets=(-3,))
    made = scene(*bands(href, [1], nodata=7.0, scale=1e-4, offset=-0.1))
    expected = np.where(array == 7, np.nan, array).astype(np.float32)
    np.testing.assert_array_equal(read(made).values, expected * np.float32(1e-4) + np.float32(-0.1))


@pytest.mark.parametrize("nodata", [-9999.0, 70000.0, 5.5])
def test_nodata_that_the_dtype_cannot_hold_marks_nothing(tmp_path: Path, nodata: float) -> None:
    array = numbers(1)
    made = scene(*bands(tiff(tmp_path / "a.tif", array), [1], nodata=nodata))
    np.testing.assert_array_equal(read(made).values, array)


def test_nodata_of_nan_means_that_every_number_counts(tmp_path: Path) -> None:
    array = numbers(1)
    href = tiff(tmp_path / "a.tif", array, nodata=5)
    assert np.isnan(read(scene(*bands(href, [1]))).values).sum() == (array == 5).sum() > 0
    made = scene(*bands(href, [1], nodata=math.nan))
    np.testing.assert_array_equal(read(made).values, array)
    warped = read(made, pixels=PixelGrid(crs=CRS, resolution=10.0, anchor=(0, 0)))
    np.testing.assert_array_equal(warped.values, array)


@pytest.mark.parametrize("resolution", [10.0, 5.0], ids=["as-is", "warped"])
@pytest.mark.parametrize("kind", ["mask", "alpha", "nodata"])
def test_missing_pixels_are_missing_warped_or_not(
    tmp_path: Path, kind: str, resolution: float
) -> None:
    array = numbers(2) + 1
    missing = np.zeros((40, 48), bool)
    missing[8:24, 16:40] = True
    profile: dict[str, Any] = {}
    if kind == "mask":
        profile["mask"] = ~missing
    elif kind == "nodata":
        array[:, missing] = 0
        profile["nodata"] = 0
    else:
        alpha = np.where(missing, 0, 65535).astype(np.uint16)[None]
        array = np.concatenate([array, array[:1], alpha])
        profile |= {"photometric": "RGB", "alpha": "YES"}
    href = tiff(tmp_path / "a.tif", array, **profile)
    factor = int(10 / resolution)
    window = Window(
        column=HOME.column * factor,
        row=HOME.row * factor,
        width=48 * factor,
        height=40 * factor,
    )
    grid = PixelGrid(crs=CRS, resolution=resolution)
    block = read(scene(*bands(href, [1, 2])), window, grid, resampling="nearest")
    expected = np.kron(~missing, np.ones((factor, factor), bool))
    np.testing.assert_array_equal(block.valid, expected)
    np.testing.assert_array_equal(np.isnan(block.values[0]), ~expected)


@pytest.mark.parametrize("resolution", [10.0, 5.0], ids=["as-is", "warped"])
def test_each_band_has_its_own_nodata_pixels(tmp_path: Path, resolution: float) -> None:
    array = numbers(2) + 1
    array[0, :20], array[1, 10:] = 0, 0
    href = tiff(tmp_path / "a.tif", array, nodata=0)
    factor = int(10 / resolution)
    window = Window(
        column=HOME.column * factor, row=HOME.row * factor, width=48 * factor, height=40 * factor
    )
    grid = PixelGrid(crs=CRS, resolution=resolution)
    block = read(scene(*bands(href, [1, 2])), window, grid, resampling="nearest")
    assert np.isnan(block.values).mean(axis=(1, 2)).tolist() == [0.5, 0.75]
    np.testing.assert_array_equal(
        block.valid[:, 0], np.kron((array[:, :, 0] > 0).any(axis=0), np.ones(factor, bool))
    )


def test_not_finite_numbers_are_missing(tmp_path: Path) -> None:
    array = numbers(1, dtype="float32")
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    block = read(scene(*bands(tiff(tmp_path / "a.tif", array), [1])))
    assert block.valid[0].tolist() == [False] * 3 + [True] * 45
    assert np.isnan(block.values[0, 0, :3]).all()


@pytest.mark.parametrize("resolution", [10.0, 5.0], ids=["as-is", "warped"])
def test_nodata_beyond_float32_is_missing(tmp_path: Path, resolution: float) -> None:
    array = numbers(1, dtype="float64")
    array[0, :20] = -1.7e308
    href = tiff(tmp_path / "a.tif", array, nodata=-1.7e308)
    factor = int(10 / resolution)
    window = Window(
        column=HOME.column * factor, row=HOME.row * factor, width=48 * factor, height=40 * factor
    )
    grid = PixelGrid(crs=CRS, resolution=resolution)
    block = read(scene(*bands(href, [1])), window, grid, resampling="nearest")
    assert block.valid[:, 0].tolist() == [False] * 20 * factor + [True] * 20 * factor


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [((8, 9), (), [0, 1, 1, 0]), ((), (3,), [0, 1, 1, 0]), ((3,), (0,), [1, 0, 1, 0])],
)
def test_cloud_classes_and_bits(
    tmp_path: Path, values: tuple[int, ...], bits: tuple[int, ...], expected: list[int]
) -> None:
    array = numbers(1) + 1
    array[0, :, 40:] = 0
    classes = np.tile(np.uint8([[3, 8, 9, 4]]), (1, 40, 12))
    image = tiff(tmp_path / "a.tif", array, nodata=0)
    # A nodata value of the mask's own (here 8) is a class like any other.
    mask = MaskSource(
        href=tiff(tmp_path / "mask.tif", classes, nodata=8), cloud_values=values, cloud_bits=bits
    )
    block = read(scene(*bands(image, [1]), mask=mask))
    np.testing.assert_array_equal(block.cloud[:, :40], np.tile(np.bool_(expected), (40, 10)))
    assert not block.cloud[:, 40:].any(), "what is not valid is not cloud"


# --- pixels that are not the grid's -----------------------------------------------------------


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_other_crs_equals_rasterio_reproject(tmp_path: Path, resampling: str) -> None:
    array = numbers(1) + 1
    href = tiff(tmp_path / "a.tif", array)
    grid = PixelGrid(crs="EPSG:4326", resolution=1e-4)
    made = scene(*bands(href, [1]))
    with SceneReader(made, grid, resampling=resampling) as reader:
        window = reader.extent
        values = reader.read(window).values[0]
    expected = np.full(values.shape, np.nan, np.float32)
    reproject(
        array[0].astype(np.float32),
        expected,
        src_transform=Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]),
        src_crs=CRS,
        dst_transform=Affine(*grid.affine(window.column, window.row)),
        dst_crs=grid.crs,
        dst_nodata=np.nan,
        resampling=Resampling[resampling],
    )
    assert np.isfinite(values).mean() > 0.9
    np.testing.assert_allclose(values, expected, atol=1e-3)
    outside = Window(
        column=window.column - 9, row=window.row - 9, width=window.width + 18, height=9
    )
    assert not read(made, outside, grid).valid.any()


def test_rotated_file_is_warped(tmp_path: Path) -> None:
    turn = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(10, -10)
    array = np.full((1, 40, 48), 7, np.uint16)
    href = tiff(tmp_path / "a.tif", array, transform=turn)
    assert inspect(href).pixel_size == pytest.approx((10, 10))
    with SceneReader(scene(*bands(href, [1])), GRID) as reader:
        block = reader.read(reader.extent)
    assert 0.97 < block.valid.sum() / array.size < 1.03
    assert np.unique(block.values[block.valid[None]]).tolist() == [7]
    assert not block.valid[0, 0]
    assert not block.valid[-1, -1]


def test_strips_of_a_warp_join_without_a_seam(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1))
    with SceneReader(scene(*bands(href, [1])), PixelGrid(crs=CRS, resolution=7.0)) as reader:
        e = reader.extent
        whole = reader.read(e).values
        rows = [
            reader.read(Window(column=e.column, row=e.row + i, width=e.width, height=1)).values
            for i in range(e.height)
        ]
    np.testing.assert_array_equal(whole, np.concatenate(rows, axis=1))


# --- bad input --------------------------------------------------------------------------------


def corrupt(path: Path, kind: str) -> str:
    array = numbers(1, 64, 64)
    target = path / f"{kind}.tif"
    if kind == "missing":
        return str(target)
    if kind == "text":
        target.write_text("not a picture")
    elif kind == "png":
        Image.fromarray(array[0].astype(np.uint8)).save(target, format="PNG")
    elif kind == "vrt":
        source = tiff(path / "source.tif", array)
        target.write_text(
            f'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand band="1" '
            f'dataType="UInt16"><SimpleSource><SourceFilename>{source}</SourceFilename>'
            "</SimpleSource></VRTRasterBand></VRTDataset>"
        )
    elif kind == "no-crs":
        tiff(target, array, crs=None)
    elif kind == "gcps":
        points = [
            GroundControlPoint(r, c, 75 + c / 99, 9 - r / 99) for r in (0, 64) for c in (0, 64)
        ]
        with rasterio.open(
            target,
            "w",
            driver="GTiff",
            width=64,
            height=64,
            count=1,
            dtype="uint16",
            gcps=points,
            crs="EPSG:4326",
        ) as dataset:
            dataset.write(array)
    elif kind == "complex":
        tiff(target, array.astype(np.complex64))
    elif kind in ("half", "stub"):
        tiff(target, array)
        data = target.read_bytes()
        target.write_bytes(data[: len(data) // 2 if kind == "half" else 100])
    return str(target)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "does not exist"),
        ("text", "cannot be opened as GeoTIFF"),
        ("png", "cannot be opened as GeoTIFF"),
        ("vrt", "cannot be opened as GeoTIFF"),
        ("no-crs", "no CRS"),
        ("gcps", "ground control points"),
        ("complex", "complex"),
        ("half", "truncated"),
        ("stub", "cannot be opened as GeoTIFF|truncated"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, kind: str, says: str) -> None:
    href = corrupt(tmp_path, kind)
    for attempt in (lambda: inspect(href), lambda: SceneReader(scene(*bands(href, [1])), GRID)):
        with pytest.raises(SceneError, match=says) as caught:
            attempt()
        assert href in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_block_is_named_when_it_is_read(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1, 64, 64))
    with rasterio.open(href) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    data = bytearray(Path(href).read_bytes())
    data[start : start + 50] = b"\xff" * 50
    Path(href).write_bytes(data)
    with (
        SceneReader(scene(*bands(href, [1])), GRID) as reader,
        pytest.raises(SceneError, match=r"a\.tif cannot be read at rows"),
    ):
        reader.read(reader.extent)


def test_missing_band_says_what_the_file_has(tmp_path: Path) -> None:
    href = str(tmp_path / "a.tif")
    write_geotiff(
        href, numbers(2), CRS, (10, 0, ORIGIN[0], 0, -10, ORIGIN[1]), descriptions=("B02", "B03")
    )
    with pytest.raises(SceneError, match=r"scene scene: .*a\.tif has 2 band\(s\) \(B02, B03\).* 4"):
        SceneReader(scene(*bands(href, [4])), GRID)


def test_gdal_virtual_paths_are_refused() -> None:
    for href in ("/vsicurl/http://127.0.0.1/a.tif", "/vsizip/a.zip/a.tif"):
        with pytest.raises(SceneError, match="virtual"):
            inspect(href)
    with pytest.raises(ConfigError, match="ftp"):
        inspect("ftp://example.com/a.tif")


def test_unknown_resampling_is_refused(home_scene: tuple[Scene, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="bilinear"):
        SceneReader(home_scene[0], GRID, resampling="fancy")


# --- pictures, classes, writing ---------------------------------------------------------------


def test_write_geotiff_makes_a_cog_that_reads_back(tmp_path: Path) -> None:
    array = numbers(2, 600, 700)
    href = str(tmp_path / "deep" / "a.tif")
    write_geotiff(
        href, array, CRS, (10, 0, ORIGIN[0], 0, -10, ORIGIN[1]), nodata=0, descriptions=("B2", "B3")
    )
    info = inspect(href)
    assert info.crs == CRS
    assert info.transform == (10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    assert (info.width, info.height, info.count, info.nodata) == (700, 600, 2, 0)
    assert info.descriptions == ("B2", "B3")
    with rasterio.open(href) as dataset:
        assert dataset.overviews(1) == [2, 4]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(dataset.read(), array)
    assert [entry.name for entry in Path(href).parent.iterdir()] == ["a.tif"]


def test_scene_on_s3_is_read_with_the_recipes_keys(
    moto_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    array = numbers(2)
    place = moto_s3.location("scenes", "a.tif")
    transform = (10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    write_geotiff(place, array, CRS, transform)
    block = read(scene(*bands(place, [1, 2])))
    np.testing.assert_array_equal(block.values, array)
    with pytest.raises(SceneError, match=r"absent\.tif cannot be opened"):
        inspect(place.at(moto_s3.uri("absent.tif")))


def test_credentials_are_resolved_once_for_all_windows_of_a_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [*bands(tiff(tmp_path / "a.tif", numbers()), [1, 2])]
    sources += bands(tiff(tmp_path / "b.tif", numbers()), [1])
    mask = MaskSource(href=tiff(tmp_path / "m.tif", numbers(1)), cloud_values=(1,))
    resolutions = []
    resolved = StorageOptions.resolved

    def counted(options: StorageOptions) -> StorageOptions:
        resolutions.append(options)
        return resolved(options)

    monkeypatch.setattr(StorageOptions, "resolved", counted)
    with SceneReader(scene(*sources, mask=mask), GRID, overviews=True) as reader:
        for row in range(0, 40, 8):
            reader.read(replace(HOME, row=HOME.row + row, height=8))
    assert len(resolutions) == 1


def test_files_that_need_different_credentials_are_refused(tmp_path: Path) -> None:
    places = [
        Location("s3://a/a.tif", StorageOptions(region="eu-west-1")),
        Location("s3://b/b.tif", StorageOptions(region="eu-north-1")),
    ]
    made = scene(*(source for place in places for source in bands(place, [1])))
    with pytest.raises(SceneError, match=r"s3://a/a\.tif, s3://b/b\.tif.*the same options"):
        SceneReader(made, GRID)


def test_class_raster_is_read_by_nearest(tmp_path: Path) -> None:
    classes = numbers(1, dtype="uint8")
    href = tiff(tmp_path / "a.tif", classes)
    window = Window(column=2 * HOME.column - 4, row=2 * HOME.row, width=100, height=80)
    grid = PixelGrid(crs=CRS, resolution=5.0)
    read_classes, known = read_categorical(href, grid, window)
    assert read_classes.dtype == np.uint8
    assert not known[:, :4].any()
    assert known[:, 4:].all()
    np.testing.assert_array_equal(read_classes[:, 4:], np.kron(classes[0], np.ones((2, 2), int)))


def test_resolution_in_another_crs_keeps_the_detail(tmp_path: Path) -> None:
    info = inspect(tiff(tmp_path / "a.tif", numbers(1)))
    assert resolution_in(info, CRS) == 10
    assert resolution_in(info, "EPSG:3857") == pytest.approx(
        10 / math.cos(math.radians(17.9)), rel=0.01
    )


def test_antimeridian_bbox(tmp_path: Path) -> None:
    href = tiff(
        tmp_path / "a.tif",
        numbers(1),
        crs="EPSG:32601",
        transform=Affine(900, 0, 166000, 0, -900, 100000),
    )
    west, _, east, _ = inspect(href).bbox
    assert west > 179.9
    assert -180 < east < -179
    with pytest.raises(SceneError, match="antimeridian"):
        SceneReader(scene(*bands(href, [1])), PixelGrid(crs="EPSG:4326", resolution=0.01))


# --- real scenes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "naip_m_4709963_se_14_1_20090818",
        "naip_m_4709963_se_14_1_20100629",
        "landsat_ucayali_1985",
        "s2l2a_majortom_199U_1099R_10m",
        "landsat7_bahamas_RGB.byte",
        "s2_multiband_openeo_3857",
    ],
)
def test_real_scene_on_its_own_grid_is_read_bit_for_bit(real_data: Path, name: str) -> None:
    href = str(real_data / "scenes" / f"{name}.tif")
    info = inspect(href)
    grid = PixelGrid(crs=info.crs, resolution=float(f"{min(info.pixel_size):.9g}"))
    with rasterio.open(href) as dataset:
        truth = dataset.read(masked=True).astype(np.float32).filled(np.nan)
    with SceneReader(scene(*bands(href, range(1, info.count + 1))), grid) as reader:
        values = reader.read(reader.extent).values
    np.testing.assert_array_equal(values, truth)


def test_real_oblong_pixels_are_warped(real_data: Path) -> None:
    href = str(real_data / "scenes" / "s2l2a_ssl4eo_0000200_20200813.tif")
    info = inspect(href)
    grid = PixelGrid(crs=info.crs, resolution=resolution_in(info, info.crs))
    with SceneReader(scene(*bands(href, [1])), grid) as reader:
        block = reader.read(reader.extent)
    with rasterio.open(href) as dataset:
        assert np.nanmean(block.values) == pytest.approx(dataset.read(1).mean(), rel=1e-3)
    assert block.valid.mean() > 0.98


def test_real_sentinel1_with_control_points_only_is_named(real_data: Path) -> None:
    href = str(real_data / "scenes" / "s1_grd_20180716_vv_gcps.tif")
    with pytest.raises(SceneError, match=r"s1_grd_20180716_vv_gcps\.tif .* ground control points"):
        inspect(href)


# --- twice the pixel size ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    count=st.sampled_from([1, 2]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    holes=st.sampled_from([0.0, 0.03, 0.5]),
    dtype=st.sampled_from(["int8", "uint8", "uint16", "int16"]),
    resampling=st.sampled_from(["bilinear", "nearest"]),
    corner=st.tuples(st.integers(-6, 3), st.integers(-6, 3)),
    seed=st.integers(0, 99),
)
def test_pixels_of_twice_the_size_are_those_of_a_warp_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    height: int,
    width: int,
    holes: float,
    dtype: str,
    resampling: str,
    corner: tuple[int, int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(1, np.iinfo(dtype).max, (count, height, width)).astype(dtype)
    array[rng.random(array.shape) < holes] = 0
    coarse = Affine(20, 0, ORIGIN[0], 0, -20, ORIGIN[1])
    folder = tmp_path_factory.mktemp("double")
    href = tiff(folder / "coarse.tif", array, transform=coarse, nodata=0)
    fine = Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    with (
        rasterio.open(href) as source,
        WarpedVRT(
            source, transform=fine, width=2 * width, height=2 * height, dtype="float32",
            nodata=math.nan, src_nodata=0, UNIFIED_SRC_NODATA="NO",
            resampling=Resampling[resampling],
        ) as vrt,
    ):  # fmt: skip
        truth = np.pad(vrt.read(), ((0, 0), (9, 40), (9, 40)), constant_values=np.nan)
    with SceneReader(
        scene(*bands(href, range(1, count + 1))), GRID, resampling=resampling
    ) as reader:
        assert reader.extent == replace(HOME, width=2 * width, height=2 * height)
        for column, row in (corner, (corner[0] + 3, corner[1] + 7)):
            window = Window(
                column=HOME.column + column, row=HOME.row + row, width=width + 5, height=17
            )
            part = truth[:, 9 + row : 26 + row, 9 + column : 14 + column + width]
            np.testing.assert_array_equal(reader.read(window).values, part)


# --- whole files ------------------------------------------------------------------------------


def test_a_whole_file_has_the_values_of_its_scene(tmp_path: Path) -> None:
    hidden = numbers(1)[0] < 50
    href = tiff(
        tmp_path / "a.tif", numbers(2), mask=~hidden, scales=(0.5, 2.0), offsets=(-3.0, 0.0)
    )
    expected = read(scene(*bands(href, [2, 1]))).values
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(read_picture(href, [2, 1]).values, expected)
    np.testing.assert_array_equal(read_picture(href).values, expected[::-1])


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_named(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=4, height=4, count=1, dtype=dtype, crs=CRS,
        transform=Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1]),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 4, 4), np.complex64))
    for attempt in (
        lambda: inspect(str(path)),
        lambda: SceneReader(scene(*bands(str(path), [1])), GRID),
        lambda: read_picture(str(path)),
    ):
        with pytest.raises(SceneError, match=r"a\.tif holds complex numbers; convert it to ampl"):
            attempt()
