"""Folders of a sensor's products, named as their makers name them, become scenes."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import pytest

from storage.catalog.presets import PRESETS
from storage.catalog.read import read_scenes
from storage.location import Location
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.raster.writer import write_geotiff
from storage.scene import BandMapping, CatalogSpec, PresetName, Scene, SceneList
from storage.values import printable


def folder(root: Path, *names: str) -> Path:
    """Write a small GeoTIFF by each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.ones((1, 16, 16), np.uint16)
        write_geotiff(
            Location.of(path), pixels, "EPSG:32648", (10, 0, 362610, 0, -10, 1987090), cog=False
        )
    return root


def load(root: Path, preset: PresetName, *bands: str, **more: object) -> SceneList:
    return read_scenes(CatalogSpec(source=str(root), preset=preset, **more), bands)  # type: ignore[arg-type]


def names(scene: Scene) -> list[str]:
    return [Path(band.href.uri).name for band in scene.bands]


S2 = "T48QUE_20200223T032739"
SAFE = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T131203.SAFE"
LANDSAT = "LC08_L2SP_107035_20150806_20200909_02_T1"
TM = "LT05_L2SP_006066_19900801_20200915_02_T1"
HLS = "HLS.{}.T48QUE.2020050T032739.v2.0"
L30, S30 = HLS.format("L30"), HLS.format("S30")
OLI = f"{LANDSAT}_SR_B"
RTC = "S1A_IW_20200607T010203_DVP_RTC30_G_gpuned_1234"
GRD = "s1a-iw-grd-{}-20180716t004042-20180716t004107-022812-0278f9-00{}"


def test_every_name_of_a_preset_has_one():
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "files", "bands", "scene_id", "when", "expected"),
    [
        (
            "sentinel-2",
            [f"{S2}_{b}.tif" for b in ("B02_10m", "B02_20m", "B11_20m", "B05_20m", "TCI_10m")],
            ("swir16", "B02"),
            S2,
            datetime(2020, 2, 23, 3, 27, 39, tzinfo=UTC),
            [f"{S2}_B11_20m.tif", f"{S2}_B02_10m.tif"],
        ),
        (
            "sentinel-2",
            ["S2A_32TQM_20200219_0_L2A/B04.tif", "S2A_32TQM_20200219_0_L2A/thumbnail.tif"],
            ("red",),
            "S2A_32TQM_20200219_0_L2A",
            datetime(2020, 2, 19, tzinfo=UTC),
            ["B04.tif"],
        ),
        (
            "landsat-c2",
            [f"{LANDSAT}_{b}.TIF" for b in ("SR_B4", "SR_B5", "ST_B10", "QA_RADSAT")],
            ("red", "nir"),
            LANDSAT,
            datetime(2015, 8, 6, tzinfo=UTC),
            [f"{LANDSAT}_SR_B4.TIF", f"{LANDSAT}_SR_B5.TIF"],
        ),
        (
            "landsat-c2",
            [f"{TM}_SR_B{n}.TIF" for n in (1, 2, 3, 4)],
            ("red", "nir"),
            TM,
            datetime(1990, 8, 1, tzinfo=UTC),
            [f"{TM}_SR_B3.TIF", f"{TM}_SR_B4.TIF"],
        ),
        (
            "hls",
            [f"{HLS.format('L30')}.{b}.tif" for b in ("B04", "B05", "Fmask", "SZA")],
            ("red", "nir"),
            HLS.format("L30"),
            datetime(2020, 2, 19, 3, 27, 39, tzinfo=UTC),
            [f"{HLS.format('L30')}.B04.tif", f"{HLS.format('L30')}.B05.tif"],
        ),
        (
            "hls",
            [f"{HLS.format('S30')}.{b}.tif" for b in ("B05", "B8A", "B08")],
            ("nir",),
            HLS.format("S30"),
            datetime(2020, 2, 19, 3, 27, 39, tzinfo=UTC),
            [f"{HLS.format('S30')}.B8A.tif"],
        ),
        (
            "naip",
            ["m_3607717_sw_18_060_20160620_20161013.tif"],
            ("nir", "red"),
            "m_3607717_sw_18_060_20160620_20161013",
            datetime(2016, 6, 20, tzinfo=UTC),
            ["m_3607717_sw_18_060_20160620_20161013.tif"] * 2,
        ),
        (
            "sentinel-1",
            [f"{RTC}_VV.tif", f"{RTC}_VH.tif", f"{RTC}_ls_map.tif"],
            ("vv", "vh"),
            RTC,
            datetime(2020, 6, 7, 1, 2, 3, tzinfo=UTC),
            [f"{RTC}_VV.tif", f"{RTC}_VH.tif"],
        ),
        (
            "sentinel-1",
            [f"{GRD.format('vv', 1)}.tiff", f"{GRD.format('vh', 2)}.tiff"],
            ("vh",),
            "s1a-iw-grd-20180716t004042-20180716t004107-022812-0278f9",
            datetime(2018, 7, 16, 0, 40, 42, tzinfo=UTC),
            [f"{GRD.format('vh', 2)}.tiff"],
        ),
    ],
)
def test_the_files_of_a_product_are_one_scene(
    tmp_path: Path,
    preset: PresetName,
    files: list[str],
    bands: tuple[str, ...],
    scene_id: str,
    when: datetime,
    expected: list[str],
):
    found = load(folder(tmp_path, *files), preset, *bands)
    assert found.rejected == ()
    (scene,) = found.scenes
    assert (scene.id, scene.datetime, names(scene)) == (scene_id, when, expected)


def test_numbers_and_masks_are_those_of_the_sensor(tmp_path: Path):
    folder(tmp_path / "l", f"{LANDSAT}_SR_B4.TIF", f"{LANDSAT}_QA_PIXEL.TIF")
    (landsat,) = load(tmp_path / "l", "landsat-c2", "red").scenes
    band, mask = landsat.bands[0], landsat.mask
    assert (band.scale, band.offset, band.nodata) == (2.75e-5, -0.2, 0)
    assert mask is not None
    assert mask.cloud_bits == (1, 2, 3, 4)
    granule = f"{SAFE}/GRANULE/L2A_T33NZA/IMG_DATA"
    late = [
        f"{granule}/R{r}m/T33NZA_20220706T085611_{b}_{r}m.tif"
        for b, r in (("B04", 10), ("SCL", 20))
    ]
    folder(tmp_path / "s", *late, f"{S2}_B04_10m.tif", f"{S2}_SCL_20m.tif")
    scenes = {scene.id: scene for scene in load(tmp_path / "s", "sentinel-2", "red").scenes}
    offsets = {name: scene.bands[0].offset for name, scene in scenes.items()}
    assert offsets == {"T33NZA_20220706T085611": -0.1, S2: None}
    assert all(s.mask and s.mask.cloud_values == (3, 8, 9, 10) for s in scenes.values())
    (naip,) = load(folder(tmp_path / "n", "m_3607717_sw_18_1_20160620.tif"), "naip", "nir").scenes
    assert (naip.bands[0].index, naip.bands[0].scale, naip.mask) == (4, None, None)


def document(real_data: Path, name: str) -> dict[str, Any]:
    item: dict[str, Any] = json.loads((real_data / "stac" / name).read_text())
    return item


def test_landsat_is_as_a_real_item_says(real_data: Path):
    """Names of the files, common names, and the bits of QA_PIXEL."""
    item = document(real_data, "landsat-c2l2-sr-LC09_L2SR_086107_20240311_20240312_02_T2_SR.json")
    preset, compared = PRESETS["landsat-c2"], 0
    for asset in item["assets"].values():
        name = PurePosixPath(asset["href"]).name
        parts = preset.parse(name)
        for band in asset.get("eo:bands", ()):
            assert parts is not None
            assert preset.mapping(band["common_name"], parts.stem).asset == parts.band
            compared += 1
        if name.endswith("_QA_PIXEL.TIF"):
            fields = {f["name"]: f["offset"] for f in asset["classification:bitfields"]}
            cloudy = {fields[name] for name in ("dilated", "cirrus", "cloud", "shadow")}
            assert preset.mask is not None
            assert set(preset.mask.cloud_bits) == cloudy
    assert compared == 7


@pytest.mark.parametrize(
    ("preset", "name", "suffix"),
    [
        ("naip", "naip_m_4207009_ne_19_060_20211024.json", ".tif"),
        ("sentinel-1", "sentinel-1.json", ".tiff"),
    ],
)
def test_files_of_a_real_item_are_those_of_the_preset(
    real_data: Path, preset: PresetName, name: str, suffix: str
):
    hrefs = [a["href"] for a in document(real_data, name)["assets"].values()]
    found = [h for h in hrefs if PurePosixPath(h).suffix == suffix]
    assert found
    assert all(PRESETS[preset].parse(href) for href in found)


def number_file(path: Path, number: float, dtype: str, bands: int = 1) -> None:
    """Write 16 x 16 px of one number, twice it in the second band, and so on."""
    steps = np.arange(1, bands + 1).reshape(-1, 1, 1)
    pixels = (np.full((bands, 16, 16), number) * steps).astype(dtype)
    place = ("EPSG:32648", (30, 0, 362610, 0, -30, 1987090))
    write_geotiff(Location.of(path), pixels, *place, cog=False)


@pytest.mark.parametrize(
    ("preset", "files", "values", "cloud"),
    [
        # The example of USGS: 18,639 is a reflectance of 0.313.
        ("landsat-c2", {f"{OLI}4.TIF": 18639, f"{OLI}5.TIF": 0}, (0.31257, None), None),
        ("landsat-c2", {f"{OLI}4.TIF": 18639, f"{LANDSAT}_QA_PIXEL.TIF": 16}, (0.31257,), True),
        ("landsat-c2", {f"{OLI}4.TIF": 18639, f"{LANDSAT}_QA_PIXEL.TIF": 21824}, (0.31257,), False),
        ("landsat-c2", {f"{TM}_SR_B3.TIF": 7273, f"{TM}_SR_B4.TIF": 43636}, (0.0, 1.0), None),
        ("hls", {f"{L30}.B04.tif": 1234, f"{L30}.B05.tif": -9999}, (0.1234, None), None),
        ("hls", {f"{S30}.B04.tif": 812, f"{S30}.Fmask.tif": 0b100}, (0.0812,), True),
        ("hls", {f"{S30}.B04.tif": 812, f"{S30}.Fmask.tif": 0b01110000}, (0.0812,), False),
        ("naip", {"m_3607717_sw_18_060_20160620_20161013.tif": 50}, (50, 200), None),
        ("sentinel-1", {f"{RTC}_VV.tif": 0.08, f"{RTC}_VH.tif": 0.02}, (0.08, 0.02), None),
        ("sentinel-2", {f"{S2}_B04_10m.tif": 1812, f"{S2}_SCL_20m.tif": 9}, (0.1812,), True),
        ("sentinel-2", {f"{SAFE}/T33NZA_20220706T085611_B04.tif": 1812}, (0.0812,), None),
    ],
)
def test_numbers_of_a_product_become_values(
    tmp_path: Path,
    preset: PresetName,
    files: dict[str, float],
    values: tuple[float | None, ...],
    cloud: bool | None,
):
    for name, number in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kinds = {"hls": "int16", "naip": "uint8", "sentinel-1": "float32"}
        dtype = "uint8" if "Fmask" in name or "SCL" in name else kinds.get(preset, "uint16")
        number_file(tmp_path / name, number, dtype, bands=4 if preset == "naip" else 1)
    bands = ("vv", "vh") if preset == "sentinel-1" else ("red", "nir")
    (scene,) = load(tmp_path, preset, *bands[: len(values)]).scenes
    grid = PixelGrid(crs="EPSG:32648", resolution=30.0)
    with SceneReader(scene, grid) as reader:
        block = reader.read(reader.extent)
    expected = [np.nan if value is None else value for value in values]
    np.testing.assert_allclose(block.values[:, 8, 8], expected, atol=2e-5)
    assert (scene.mask is None) == (cloud is None)
    assert bool(block.cloud.all()) == bool(cloud)


def test_a_late_product_without_a_baseline_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder(tmp_path, f"{S2}_B04.tif", f"{S2}_SCL.tif")
    load(tmp_path, "sentinel-2", "red")
    assert caplog.text == ""
    folder(tmp_path, "T33NZA_20220706T085611_B04.tif")
    load(tmp_path, "sentinel-2", "red")
    assert "1 scenes, such as T33NZA_20220706T085611, state no processing baseline" in caplog.text


def test_what_a_preset_cannot_use_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder(tmp_path, f"{S2}_B04_10m.tif", f"{S2}_B05_20m.tif", "mosaic.tif")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, "sentinel-2", "B05", "red")
    assert names(found.scenes[0]) == [f"{S2}_B05_20m.tif", f"{S2}_B04_10m.tif"]
    assert "1 of 1 scenes" in caplog.text
    assert "no file of the cloud mask SCL: their clouds stay" in caplog.text
    (stranger,) = found.rejected
    assert stranger.scene_id == "mosaic.tif"
    assert "not one of the preset sentinel-2" in stranger.reason
    reasons = {r.scene_id: r.reason for r in load(tmp_path, "sentinel-2", "pan", "red").rejected}
    assert "band 'pan' is none of the preset's: it has coastal (B01), blue (B02)" in reasons[S2]
    reasons = {r.scene_id: r.reason for r in load(tmp_path, "sentinel-2", "swir22").rejected}
    assert "no file ending in 'B12' for band 'swir22'" in reasons[S2]


def test_a_mapping_replaces_a_band_of_the_preset(tmp_path: Path):
    folder(tmp_path, f"{S2}_B08_10m.tif", f"{S2}_B8A_20m.tif")
    (scene,) = load(tmp_path, "sentinel-2", "nir", bands={"nir": BandMapping(asset="B8A")}).scenes
    assert names(scene) == [f"{S2}_B8A_20m.tif"]


def test_files_beside_those_of_a_scene_are_unused_also_without_a_preset(tmp_path: Path):
    folder(
        tmp_path,
        *(f"{S2}_{b}.tif" for b in ("B02_10m", "B05_20m", "SCL_20m")),
        "T48QUE_20200304T032739_B05_20m.tif",
    )
    found = read_scenes(
        CatalogSpec(source=str(tmp_path), bands={"blue": BandMapping(asset="_B02_10m.tif")}),
        ["blue"],
    )
    assert [scene.id for scene in found.scenes] == [S2]
    (alone,) = found.rejected
    assert alone.scene_id == "T48QUE_20200304T032739_B05_20m"
    assert printable(alone.reason) == alone.reason


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (f"{S2}_B04_10m.tif", "sentinel-2"),
        (f"{LANDSAT}_SR_B4.TIF", "landsat-c2"),
        (f"{HLS.format('S30')}.B04.tif", "hls"),
        ("m_3607717_sw_18_060_20160620.tif", "naip"),
        (f"{RTC}_VV.tif", "sentinel-1"),
    ],
)
def test_a_folder_without_a_preset_is_told_the_one_that_fits(
    tmp_path: Path, name: str, preset: str
):
    found = read_scenes(CatalogSpec(source=str(folder(tmp_path, name))), ["green"])
    assert f"or give the preset {preset} (--scenes-preset)" in found.rejected[0].reason
