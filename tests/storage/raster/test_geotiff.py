"""What lies beside a GeoTIFF counts as GDAL reads it; a file without a place says what it has."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from storage.catalog.read import read_scenes
from storage.errors import SceneError
from storage.raster.geotiff import inspect
from storage.raster.picture import read_picture
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.scene import BandMapping, CatalogSpec
from tests.support.rasters import CRS, ORIGIN, bands, numbers, read, scene, tiff

WKT = rasterio.CRS.from_user_input(CRS).to_wkt().replace('"', "&quot;")
WORLD = f"10\n0\n0\n-10\n{ORIGIN[0] + 5}\n{ORIGIN[1] - 5}\n"


def beside(href: str, content: str) -> None:
    Path(f"{href}.aux.xml").write_text(f"<PAMDataset>{content}</PAMDataset>")


def unplaced(path: Path, array: np.ndarray, **profile: Any) -> str:
    """Write a GeoTIFF without CRS and transform."""
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(
            path, "w", driver="GTiff", count=len(array), dtype=array.dtype,
            height=array.shape[1], width=array.shape[2], **profile,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(array)
    return str(path)


@pytest.mark.parametrize("factor", [1, 2, 3], ids=["as-is", "doubled", "warped"])
def test_bands_have_the_nodata_scale_and_offset_of_the_file_beside(
    tmp_path: Path, factor: int
) -> None:
    array = numbers(3)
    href = tiff(tmp_path / "a.tif", array, nodata=9)
    beside(
        href,
        '<PAMRasterBand band="1"><NoDataValue>5</NoDataValue></PAMRasterBand>'
        '<PAMRasterBand band="2"><NoDataValue>6</NoDataValue>'
        "<Scale>2</Scale><Offset>1</Offset></PAMRasterBand>",
    )
    truth = array.astype(np.float32)
    for band, nodata in enumerate((5, 6, 9)):
        truth[band][array[band] == nodata] = np.nan
    truth[1] = truth[1] * 2 + 1
    grid = PixelGrid(crs=CRS, resolution=10 / factor)
    with SceneReader(scene(*bands(href, [1, 2, 3])), grid, resampling="nearest") as reader:
        values = reader.read(reader.extent).values
    with rasterio.open(href) as dataset:
        assert dataset.nodatavals == (5, 6, 9)
    np.testing.assert_array_equal(values, truth.repeat(factor, 1).repeat(factor, 2))
    np.testing.assert_array_equal(read_picture(href).values, truth)


@pytest.mark.parametrize("suffix", [".tfw", ".tifw", ".wld", ".TFW"])
def test_a_world_file_places_the_pixels(tmp_path: Path, suffix: str) -> None:
    array = numbers(1)
    href = unplaced(tmp_path / "a.tif", array)
    beside(href, f"<SRS>{WKT}</SRS>")
    (tmp_path / f"a{suffix}").write_text(WORLD)
    assert inspect(href).transform == (10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    np.testing.assert_array_equal(read(scene(*bands(href, [1]))).values, array)


def test_statistics_and_descriptions_beside_change_no_number(tmp_path: Path) -> None:
    array = numbers(1)
    href = tiff(tmp_path / "a.tif", array)
    beside(
        href,
        '<PAMRasterBand band="1"><Description>red</Description><Metadata>'
        '<MDI key="STATISTICS_MINIMUM">3</MDI></Metadata></PAMRasterBand>',
    )
    assert inspect(href).descriptions == ("red",)
    np.testing.assert_array_equal(read(scene(*bands(href, [1]))).values, array)


def test_nothing_is_written_beside_a_file_that_is_read(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1), nodata=5)
    read(scene(*bands(href, [1])))
    read_picture(href)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tif"]


def test_overviews_beside_serve_previews_only(tmp_path: Path) -> None:
    array = numbers(1, 64, 64)
    href = tiff(tmp_path / "a.tif", array)
    shutil.copy(href, tmp_path / "b.tif")
    with rasterio.Env(COMPRESS_OVERVIEW="DEFLATE"), rasterio.open(href, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    with rasterio.open(href, overview_level=0) as dataset:
        half = dataset.read()
        transform = dataset.transform
    shutil.move(tmp_path / "b.tif", href)
    tiff(tmp_path / "a.tif.ovr", half + 1000, crs=None, transform=transform)
    made = scene(*bands(href, [1]))
    grid = PixelGrid(crs=CRS, resolution=20.0)
    with SceneReader(made, grid, overviews=True) as reader:
        assert np.nanmin(reader.read(reader.extent).values) >= 1000
    with SceneReader(made, grid) as reader:
        assert np.nanmax(reader.read(reader.extent).values) < 1000


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1))
    mask = np.full((1, 20, 24), 255, np.uint8)
    tiff(tmp_path / "m.tif", mask)
    with rasterio.open(tmp_path / "m.tif", "r+") as dataset:
        dataset.update_tags(INTERNAL_MASK_FLAGS_1="2")
    shutil.move(tmp_path / "m.tif", f"{href}.msk")
    with pytest.raises(SceneError, match=r"a\.tif"):
        read(scene(*bands(href, [1])))


@pytest.mark.parametrize("suffix", [".msk", ".MSK", ".ovr", ".msk.ovr"])
def test_a_file_beside_of_another_format_is_never_opened(tmp_path: Path, suffix: str) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1), mask=np.ones((40, 48), bool), internal=False)
    if suffix == ".MSK":
        Path(f"{href}.msk").unlink()
    Path(f"{href}{suffix}").write_text('<VRTDataset rasterXSize="48" rasterYSize="40"/>')
    with pytest.raises(SceneError, match=rf"a\.tif{suffix} is not a TIFF"):
        inspect(href)


def test_metadata_beside_that_name_another_file_are_refused(tmp_path: Path) -> None:
    href = tiff(tmp_path / "a.tif", numbers(1))
    beside(href, '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/x.vrt</MDI></Metadata>')
    with pytest.raises(SceneError, match=r"aux\.xml names a file of overviews"):
        inspect(href)


def test_rational_polynomials_alone_ask_for_orthorectification(tmp_path: Path) -> None:
    zeros = [0.0] * 20
    rpc = RPC(
        height_off=100.0, height_scale=500.0, lat_off=45.1, lat_scale=0.1, line_off=32.0,
        line_scale=32.0, long_off=15.0, long_scale=0.1, samp_off=32.0, samp_scale=32.0,
        line_num_coeff=zeros, samp_num_coeff=zeros, line_den_coeff=[1.0, *zeros[1:]],
        samp_den_coeff=[1.0, *zeros[1:]],
    )  # fmt: skip
    href = str(tmp_path / "a.tif")
    for crs in (None, "EPSG:4326"):
        with rasterio.open(
            href, "w", driver="GTiff", count=1, dtype="uint8", height=9, width=9, rpcs=rpc, crs=crs
        ) as dataset:
            dataset.write(np.ones((1, 9, 9), np.uint8))
        with pytest.raises(SceneError, match=r"a\.tif .*\(RPC\).*orthorectify"):
            inspect(href)


def test_a_transform_without_crs_and_a_crs_without_transform_are_told_apart(tmp_path: Path) -> None:
    href = unplaced(tmp_path / "a.tif", numbers(1))
    with pytest.raises(SceneError, match=r"a\.tif has no CRS; assign"):
        inspect(href)
    (tmp_path / "a.tfw").write_text(WORLD)
    with pytest.raises(SceneError, match=r"a\.tif has a transform but no CRS; assign"):
        inspect(href)
    (tmp_path / "a.tfw").unlink()
    beside(href, f"<SRS>{WKT}</SRS>")
    with pytest.raises(SceneError, match=r"a\.tif has a CRS but no usable transform"):
        inspect(href)
    points = [GroundControlPoint(r, c, c, r) for r in (0, 40) for c in (0, 48)]
    with rasterio.open(
        tmp_path / "g.tif", "w", driver="GTiff", count=1, dtype="uint8", height=9, width=9,
        gcps=points, crs=CRS,
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 9, 9), np.uint8))
    with pytest.raises(SceneError, match=r"g\.tif .*ground control points"):
        inspect(str(tmp_path / "g.tif"))


def test_files_beside_remote_ones_are_read_when_asked_or_listed(
    moto_s3: Any, tmp_path: Path
) -> None:
    array, gap = numbers(1), np.zeros((40, 48), bool)
    gap[:, 20:] = True
    href = tiff(tmp_path / "a_20240105.tif", array, mask=~gap, internal=False)
    place = moto_s3.location("listed", "a_20240105.tif")
    for suffix in ("", ".msk"):
        place.at(f"{place}{suffix}").upload(Path(f"{href}{suffix}"))
    values = [read(scene(*bands(where, [1]))).values for where in (place, place.with_sidecars())]
    np.testing.assert_array_equal(values[0], array)
    np.testing.assert_array_equal(np.isnan(values[1][0]), gap)
    folder = moto_s3.location("listed")
    (listed,) = read_scenes(
        CatalogSpec(source=folder, bands={"red": BandMapping()}), ["red"]
    ).scenes
    np.testing.assert_array_equal(np.isnan(read(listed).values[0]), gap)
    # A scene of local and remote files: the local file's mask counts.
    mixed = scene(*bands(href, [1]), *bands(place, [1]))
    np.testing.assert_array_equal(np.isnan(read(mixed).values[0]), gap)


def test_a_remote_file_without_crs_tells_of_sidecars(moto_s3: Any, tmp_path: Path) -> None:
    place = moto_s3.location("bare.tif")
    place.upload(Path(unplaced(tmp_path / "a.tif", numbers(1))))
    with pytest.raises(SceneError, match=r"no CRS.*\.aux\.xml beside it needs storage\.sidecars"):
        inspect(place)
