"""SAFE folders, virtual rasters and STAC items of JPEG 2000 are read where the switch says so."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from storage.catalog.read import read_scenes
from storage.location import Driver
from storage.scene import BandMapping, CatalogSpec, Scene, SceneList
from tests.support.rasters import numbers, tiff
from tests.support.safe import PRODUCT, SCENE, safe_product


def load(root: Path, *names: str, drivers: tuple[Driver, ...] = (), **more: object) -> SceneList:
    spec = CatalogSpec(source=str(root), drivers=drivers, **more)  # type: ignore[arg-type]
    return read_scenes(spec, names or ("red",))


def files(scene: Scene) -> list[str]:
    return [Path(band.href.uri).name for band in scene.bands]


@pytest.mark.parametrize("below", ["", PRODUCT])
def test_a_safe_folder_is_a_scene(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture):
    safe_product(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = load(
            tmp_path / below, "blue", "swir16", "B8A", drivers=("jp2",), preset="sentinel-2"
        )
    assert found.rejected == ()
    assert caplog.messages == []
    (scene,) = found.scenes
    assert scene.id == SCENE
    assert f"{scene.datetime:%Y-%m-%dT%H:%M:%SZ}" == "2022-07-06T08:56:11Z"
    assert files(scene) == [f"{SCENE}_{b}.jp2" for b in ("B02_10m", "B11_20m", "B8A_20m")]
    assert {(band.scale, band.offset, band.nodata) for band in scene.bands} == {(1e-4, -0.1, 0)}
    assert scene.mask is not None
    assert Path(scene.mask.href.uri).name == f"{SCENE}_SCL_20m.jp2"
    assert scene.mask.cloud_values == (3, 8, 9, 10)


def test_without_the_switch_a_safe_folder_is_one_reason(tmp_path: Path):
    safe_product(tmp_path)
    found = load(tmp_path, preset="sentinel-2")
    assert not found.scenes
    (rejected,) = found.rejected
    assert rejected.scene_id == SCENE
    assert "is JPEG 2000" in rejected.reason
    assert "set catalog.drivers=[jp2]" in rejected.reason
    unnamed = load(tmp_path)
    assert any("preset sentinel-2" in item.reason for item in unnamed.rejected)


def test_a_scene_of_geotiffs_needs_no_further_format(tmp_path: Path):
    """The same bands as JPEG 2000 or in a VRT beside the GeoTIFFs are unused, not wrong."""
    safe_product(tmp_path)
    for path in list(tmp_path.rglob("*_B04_10m.jp2")):
        tiff(path.with_suffix(".tif"), numbers(1))
    tiff(tmp_path / "T48QUE_20200223T032739_B04.tif", numbers(1))
    (tmp_path / "T48QUE_20200223T032739.vrt").write_text("<VRTDataset/>")
    found = load(tmp_path, preset="sentinel-2")
    assert found.rejected == ()
    assert sorted(file for scene in found.scenes for file in files(scene)) == [
        f"{SCENE}_B04_10m.tif",
        "T48QUE_20200223T032739_B04.tif",
    ]


def test_the_finest_file_of_a_band_counts(tmp_path: Path):
    safe_product(tmp_path)
    (scene,) = load(tmp_path, "B02", "B05", drivers=("jp2",), preset="sentinel-2").scenes
    assert files(scene) == [f"{SCENE}_B02_10m.jp2", f"{SCENE}_B05_20m.jp2"]


def test_a_vrt_over_two_geotiffs_is_a_scene(tmp_path: Path):
    for number in (1, 2):
        tiff(
            tmp_path / f"part{number}.tif",
            numbers(1),
            transform=Affine(10, 0, 362610 + 480 * (number - 1), 0, -10, 1987090),
        )
    parts = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">part{n}.tif</SourceFilename>'
        f'<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="48" ySize="40"/>'
        f'<DstRect xOff="{48 * (n - 1)}" yOff="0" xSize="48" ySize="40"/></SimpleSource>'
        for n in (1, 2)
    )
    (tmp_path / "mosaic_20200223.vrt").write_text(
        '<VRTDataset rasterXSize="96" rasterYSize="40"><SRS>EPSG:32648</SRS><GeoTransform>'
        '362610,10,0,1987090,0,-10</GeoTransform><VRTRasterBand dataType="UInt16" band="1">'
        f"<Description>red</Description>{parts}</VRTRasterBand></VRTDataset>"
    )
    (scene,) = load(tmp_path / "mosaic_20200223.vrt", drivers=("vrt",)).scenes
    assert scene.id == "mosaic_20200223"
    tiff(tmp_path / "part2.tif", numbers(1, dtype="uint16") + 1)
    (changed,) = load(tmp_path / "*.vrt", drivers=("vrt",)).scenes
    assert changed.fingerprint != scene.fingerprint
    closed = load(tmp_path / "mosaic_20200223.vrt")
    assert "is VRT" in closed.rejected[0].reason
    assert "set catalog.drivers=[vrt]" in closed.rejected[0].reason


def item(tmp_path: Path, **assets: dict[str, object]) -> Path:
    path = tmp_path / "item.json"
    document = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "a",
        "geometry": None,
        "properties": {"datetime": "2020-02-23T00:00:00Z"},
        "links": [],
        "assets": assets,
    }
    path.write_text(json.dumps(document))
    return path


def asset(name: str, media_type: str) -> dict[str, object]:
    return {"href": name, "type": media_type, "eo:bands": [{"name": "B04", "common_name": "red"}]}


def test_an_item_with_both_formats_gives_the_geotiff(tmp_path: Path):
    """Earth Search has each band as ``red`` and as ``red-jp2``."""
    both = item(
        tmp_path,
        **{"red-jp2": asset("B04.jp2", "image/jp2"), "red": asset("B04.tif", "image/tiff")},
    )
    for drivers in ((), ("jp2",)):
        (scene,) = load(both, drivers=drivers).scenes
        assert files(scene) == ["B04.tif"]


@pytest.mark.parametrize("media_type", ["image/jp2", "application/octet-stream"])
def test_an_item_of_jpeg_2000_names_the_switch(tmp_path: Path, media_type: str):
    only = item(tmp_path, red=asset("B04.jp2", media_type))
    (rejected,) = load(only).rejected
    assert "catalog.drivers=[jp2]" in rejected.reason
    mapped = load(only, bands={"red": {"asset": "red"}})
    assert "set catalog.drivers=[jp2]" in mapped.rejected[0].reason
    (scene,) = load(only, drivers=("jp2",)).scenes
    assert files(scene) == ["B04.jp2"]


def test_a_mosaic_beside_its_files_is_left_alone(tmp_path: Path):
    tiff(tmp_path / "a_20200223.tif", numbers(1))
    (tmp_path / "mosaic_20200223.vrt").write_text("<VRTDataset/>")
    loaded = load(tmp_path, bands={"red": BandMapping(asset=".tif")})
    assert [scene.id for scene in loaded.scenes] == ["a_20200223"]
    assert not loaded.rejected
    (tmp_path / "a_20200223.tif").unlink()
    (rejected,) = load(tmp_path).rejected
    assert "catalog.drivers=[vrt]" in rejected.reason


def test_documents_beside_closed_rasters_are_read(tmp_path: Path):
    tiff(tmp_path / "B04.tif", numbers(1))
    item(tmp_path, red=asset("B04.tif", "image/tiff"))
    (tmp_path / "B04.tif").rename(tmp_path / "B04.bin")
    (tmp_path / "preview.jp2").write_bytes(b"")
    item(tmp_path, red=asset("B04.bin", "image/tiff"))
    (scene,) = load(tmp_path).scenes
    assert scene.id == "a"


def test_the_product_is_as_gdal_reads_it(tmp_path: Path):
    """The files of the test are JPEG 2000 indeed, at their place."""
    folder = safe_product(tmp_path)
    (blue,) = folder.rglob(f"{SCENE}_B02_10m.jp2")
    with rasterio.open(blue) as made:
        assert (made.driver, made.crs.to_epsg(), made.res) == ("JP2OpenJPEG", 32633, (10, 10))
        assert np.any(made.read())
