"""JPEG 2000 and VRT: the numbers of a GeoTIFF where asked for, and nothing that was not asked."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from storage.errors import SceneError
from storage.location import Driver, Location
from storage.raster.geotiff import inspect, raster_revision
from storage.raster.picture import read_picture
from storage.raster.vrt import read_vrt
from tests.support.object_store import MotoS3
from tests.support.rasters import CRS, HOME, ORIGIN, bands, numbers, read, scene, tiff

BOTH: tuple[Driver, ...] = ("jp2", "vrt")


def jp2(path: Path, array: np.ndarray) -> str:
    """Write (bands, h, w) without loss, as JPEG 2000."""
    losslessly = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
    return tiff(path, array, **losslessly, tiled=None, blockxsize=64, blockysize=64, compress=None)


def source(name: str, band: int = 1, column: int = 0, more: str = "", relative: int = 1) -> str:
    rect = 'ySize="40" yOff="0"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SrcRect xOff="0" xSize="48" {rect}/><DstRect xOff="{column}" xSize="48" {rect}/>{more}'
        "</SimpleSource>"
    )


def vrt(path: Path, *sources: str, band: str = "", attributes: str = "", more: str = "") -> str:
    """Write a mosaic of one band, 96 px wide, whose corner is ORIGIN."""
    x, y = ORIGIN
    path.write_text(
        f'<VRTDataset rasterXSize="96" rasterYSize="40" {attributes}><SRS>{CRS}</SRS>'
        f"<GeoTransform>{x}, 10, 0, {y}, 0, -10</GeoTransform>{more}"
        f'<VRTRasterBand dataType="UInt16" band="1" {band}><NoDataValue>0</NoDataValue>'
        f"{''.join(sources)}</VRTRasterBand></VRTDataset>"
    )
    return str(path)


def of_place(place: Location) -> Any:
    return read(scene(*bands(place, [1]))).values


def values(href: str | Location) -> Any:
    """Return the values of a file, all formats allowed."""
    return of_place(Location.of(href).with_drivers(BOTH))


def test_jpeg_2000_has_the_numbers_of_the_geotiff(tmp_path: Path):
    array = numbers(3)
    with rasterio.open(jp2(tmp_path / "a.jp2", array)) as made:
        assert made.driver == "JP2OpenJPEG"
    place = Location.of(tmp_path / "a.jp2").with_drivers(["jp2"])
    whole = tiff(tmp_path / "a.tif", array)
    np.testing.assert_array_equal(
        read(scene(*bands(place, [3, 1]))).values, read(scene(*bands(whole, [3, 1]))).values
    )
    np.testing.assert_array_equal(read_picture(place).values, array)
    assert inspect(place).bbox == inspect(whole).bbox


@pytest.mark.parametrize("name", ["a.jp2", "A.JP2", "a.vrt"])
@pytest.mark.parametrize("reader", [of_place, inspect, read_picture])
def test_other_formats_are_opened_only_where_asked_for(tmp_path: Path, name: str, reader: Any):
    tiff(tmp_path / "b.tif", numbers(1))
    if name.lower().endswith("jp2"):
        jp2(tmp_path / name, numbers(1))
    else:
        vrt(tmp_path / name, source("b.tif"))
    form = name.lower()[-3:]
    reader(Location.of(tmp_path / name).with_drivers([form]))
    other = {"jp2": "vrt", "vrt": "jp2"}[form]
    for given, advice in (((), form), ((other,), "jp2, vrt")):
        with pytest.raises(SceneError, match=rf"set catalog\.drivers=\[{advice}\]"):
            reader(Location.of(tmp_path / name).with_drivers(given))


def test_a_name_opens_no_other_format_than_its_own(tmp_path: Path):
    jp2(tmp_path / "a.jp2", numbers(1))
    (tmp_path / "a.jp2").rename(tmp_path / "a.tif")
    vrt(tmp_path / "b.vrt", source("a.tif"))
    (tmp_path / "b.vrt").rename(tmp_path / "b.jp2")
    tiff(tmp_path / "c.tif", numbers(1))
    (tmp_path / "c.tif").rename(tmp_path / "c.vrt")
    for name, form in (("a.tif", "GeoTIFF"), ("b.jp2", "JPEG 2000"), ("c.vrt", "VRT")):
        with pytest.raises(SceneError, match=rf"{name} cannot be opened as {form}"):
            values(str(tmp_path / name))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_jpeg_2000_is_refused(tmp_path: Path, share: float):
    path = Path(jp2(tmp_path / "a.jp2", numbers(1, 400, 480)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SceneError, match=r"a\.jp2 (is truncated|cannot be opened)"):
        values(str(path))


def test_a_vrt_has_the_numbers_of_its_files(tmp_path: Path):
    parts = numbers(2)
    tiff(tmp_path / "a.tif", parts[:1])
    (tmp_path / "tiles").mkdir()
    jp2(tmp_path / "tiles" / "b.jp2", parts[1:])
    for relative, root in ((1, ""), (0, f"{tmp_path}/")):
        names = [f"{root}a.tif", f"{root}tiles/b.jp2"]
        mosaic = vrt(
            tmp_path / "m.vrt",
            source(names[0], relative=relative),
            source(names[1], column=48, relative=relative),
            more="<Metadata><MDI key='OVERVIEW_FILE'>/etc/passwd</MDI></Metadata>",
        )
        with rasterio.open(mosaic) as truth:
            expected = truth.read().astype(np.float32)
        expected[expected == 0] = np.nan
        got = read(
            scene(*bands(Location(mosaic, drivers=BOTH), [1])),
            type(HOME)(column=HOME.column, row=HOME.row, width=96, height=40),
        ).values
        np.testing.assert_array_equal(got, expected)
        assert np.isfinite(got).any()


def test_a_vrt_changes_with_its_files(tmp_path: Path):
    tiff(tmp_path / "a.tif", numbers(1))
    place = Location(vrt(tmp_path / "m.vrt", source("a.tif")), drivers=("vrt",))
    before = raster_revision(place)
    assert raster_revision(place) == before
    os.utime(tmp_path / "a.tif", (1, 1))
    assert raster_revision(place) != before


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"sources": [source("../secret.tif")]}, r"names the file '\.\./secret\.tif'"),
        ({"sources": [source("/etc/passwd", relative=0)]}, "not in the folder of the VRT"),
        ({"sources": [source("link.tif")]}, "not in the folder of the VRT"),
        ({"sources": [source("http://127.0.0.1:9/a.tif", relative=0)]}, "not in the folder"),
        ({"sources": [source("/vsicurl/http://127.0.0.1:9/a.tif", relative=0)]}, "not in the fol"),
        ({"sources": [source("/vsizip/a.zip/a.tif", relative=0)]}, "not in the folder"),
        ({"sources": [source("s3://b/a.tif", relative=0)]}, "not in the folder"),
        ({"sources": [source("")]}, "names the file ''"),
        ({"sources": [source("GTIFF_DIR:1:a.tif", relative=0)]}, "does not exist"),
        ({"sources": [source("vrt://a.tif?bands=1")]}, "not in the folder|does not exist"),
        ({"sources": [source("gone.tif")]}, r"gone\.tif does not exist"),
        ({"sources": [source("other.vrt")]}, r"other\.vrt is VRT, which is read only"),
        ({"sources": [source("wms.tif")]}, r"wms\.tif cannot be opened as GeoTIFF"),
        ({"sources": [source("short.tif")]}, r"short\.tif is truncated"),
        ({"sources": [source("a.tif", more="<OpenOptions/>")]}, "uses OpenOptions"),
        ({"sources": [source("a.tif")], "band": 'subClass="VRTDerivedRasterBand"'}, "VRTDerived"),
        ({"sources": [source("a.tif")], "band": 'subClass="VRTRawRasterBand"'}, "VRTRaw"),
        ({"sources": [source("a.tif")], "attributes": 'subClass="VRTWarpedDataset"'}, "VRTWarp"),
        ({"sources": [source("a.tif"), "<PixelFunctionCode/>"]}, "uses PixelFunctionCode"),
        ({"sources": []}, "a VRT of 0 files"),
    ],
)
def test_a_vrt_reaches_nothing_else(tmp_path: Path, made: dict[str, Any], message: str):
    folder = tmp_path / "catalog"
    folder.mkdir()
    tiff(tmp_path / "secret.tif", numbers(1))
    whole = Path(tiff(folder / "a.tif", numbers(1))).read_bytes()
    (folder / "link.tif").symlink_to(tmp_path / "secret.tif")
    (folder / "short.tif").write_bytes(whole[:-200])
    (folder / "wms.tif").write_text("<GDAL_WMS><Service name='TMS'/></GDAL_WMS>")
    vrt(folder / "other.vrt", source("a.tif"))
    path = vrt(folder / "m.vrt", *made.pop("sources"), **made)
    with pytest.raises(SceneError, match=message):
        values(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<VRTDataset", "cannot be opened as VRT"),
        ("<WMS/>", "it is other XML"),
        (
            "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><VRTDataset>&b;</VRTDataset>",
            "ot",
        ),
        ("\udcff", "cannot be opened as VRT"),
    ],
)
def test_what_is_no_vrt_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "m.vrt").write_text(text, errors="surrogateescape")
    with pytest.raises(SceneError, match=message):
        values(str(tmp_path / "m.vrt"))


def test_the_size_of_a_vrt_is_bounded(tmp_path: Path):
    tiff(tmp_path / "a.tif", numbers(1))
    path = vrt(tmp_path / "m.vrt", *(source(f"{n}.tif") for n in range(10_001)))
    with pytest.raises(SceneError, match=r"a VRT of 10,001 files"):
        values(path)
    path = vrt(tmp_path / "m.vrt", source("a.tif"), " " * (16 << 20))
    with pytest.raises(SceneError, match=r"a VRT at most 16,777,216"):
        values(path)


@pytest.mark.parametrize("crs", ["http://127.0.0.1:9/crs", "/etc/passwd", "+proj=utm +zone=48"])
def test_the_crs_of_a_vrt_names_no_file(tmp_path: Path, crs: str):
    tiff(tmp_path / "a.tif", numbers(1))
    path = Path(vrt(tmp_path / "m.vrt", source("a.tif")))
    path.write_text(path.read_text().replace(CRS, crs))
    with pytest.raises(SceneError, match="neither a code nor WKT"):
        values(str(path))


def test_a_vrt_cannot_claim_more_pixels_than_its_files_hold(tmp_path: Path):
    tiff(tmp_path / "a.tif", numbers(1))
    path = Path(vrt(tmp_path / "m.vrt", source("a.tif")))
    path.write_text(path.read_text().replace('XSize="96"', 'XSize="2000000000"'))
    with pytest.raises(SceneError, match="claims 2,000,000,000"):
        values(str(path))


def test_a_vrt_in_a_bucket_reads_its_own_prefix_alone(tmp_path: Path, moto_s3: MotoS3):
    folder = moto_s3.location("vrt")
    (folder / "in/a.tif").upload(Path(tiff(tmp_path / "a.tif", numbers(1))))
    (folder / "out/a.tif").upload(tmp_path / "a.tif")
    bucket_path = folder.uri.removeprefix("s3://")
    names = {
        "good": source("a.tif"),
        "long": source(f"/vsis3/{bucket_path}/in/a.tif", relative=0),
        "above": source("../out/a.tif"),
        "local": source(f"{tmp_path}/a.tif", relative=0),
    }
    for name, part in names.items():
        vrt(tmp_path / "m.vrt", part)
        (folder / f"in/{name}.vrt").upload(tmp_path / "m.vrt")
    truth = values(str(tmp_path / "a.tif"))
    for name in ("good", "long"):
        np.testing.assert_array_equal(
            np.nan_to_num(values(folder / f"in/{name}.vrt")), np.nan_to_num(truth)
        )
    for name in ("above", "local"):
        with pytest.raises(SceneError, match="not in the folder of the VRT"):
            values(folder / f"in/{name}.vrt")
    assert len(read_vrt((folder / "in/good.vrt").with_drivers(["vrt"])).sources) == 1
