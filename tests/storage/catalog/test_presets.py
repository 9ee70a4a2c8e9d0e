"""Folders of a sensor's products, named as their makers name them, become scenes."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from storage.catalog.presets import PRESETS
from storage.catalog.read import read_scenes
from storage.location import Location
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
