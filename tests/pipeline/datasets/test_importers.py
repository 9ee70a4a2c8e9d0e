"""Importers of published datasets, against small copies of their layouts with labels by hand."""

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from rasterio.transform import Affine
from scipy.io import savemat

from pipeline.datasets.bigearthnet import BANDS, import_bigearthnet
from pipeline.datasets.bigearthnet import CLASSES as BIGEARTHNET_CLASSES
from pipeline.datasets.folder import import_folder
from pipeline.datasets.importers import importers
from pipeline.datasets.published import CLASSES, SCENES
from storage.dataset import LabelledDataset
from storage.errors import ConfigError, NotFoundError, SceneError
from storage.raster.writer import write_geotiff
from tests.support.paths import REPOSITORY
from workflows.cli import cli
from workflows.datasets import IMPORTER_KEYS

import_dlrsd, import_whdld = importers["dlrsd"], importers["whdld"]
import_uc_merced, import_ml_aid = importers["uc-merced"], importers["ml-aid"]


def _rgb(path: Path, value: int, size: int = 256) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value, value + 1, value + 2)).save(path)


def _labels(data: LabelledDataset) -> dict[str, set[str]]:
    return {
        name: {data.classes[i] for i in np.flatnonzero(row)}
        for name, row in zip(data.rows["source"], data.labels, strict=True)
    }


# --- DLRSD and WHDLD -----------------------------------------------------------------------------


@pytest.fixture
def dlrsd(tmp_path: Path) -> Path:
    """Two images: half field, half trees with 1 in 128 pixels car; and water with one ship."""
    root = tmp_path / "DLRSD"
    for name, value in (("airplane/airplane00", 10), ("beach/beach07", 90)):
        _rgb(root / "Images" / f"{name}.tif", value)
        (root / "Labels" / name).parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((256, 256), 8, np.uint8)
    mask[:, 128:] = 16
    mask[:2, :] = 4
    picture = Image.fromarray(mask, "P")
    picture.putpalette([7] * 768)
    picture.save(root / "Labels" / "airplane" / "airplane00.png")
    mask = np.full((256, 256), 17, np.uint8)
    mask[0, :2] = 14
    Image.fromarray(mask, "L").save(root / "Labels" / "beach" / "beach07.png")
    return root


def test_dlrsd_labels_are_the_classes_of_enough_pixels(dlrsd: Path, tmp_path: Path):
    info = import_dlrsd(str(dlrsd), str(tmp_path / "set"))
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == {
        "airplane/airplane00": {"field", "trees"},
        "beach/beach07": {"water"},
    }
    assert data.images[:, :, 9, 9].tolist() == [[10, 11, 12], [90, 91, 92]]
    assert (info.tile_px, info.resolution_m, len(info.classes)) == (256, 0.3048, 17)
    import_dlrsd(str(dlrsd), str(tmp_path / "set"), min_share=0.0, tile_px=64)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == {
        "airplane/airplane00": {"field", "trees", "cars"},
        "beach/beach07": {"water", "ship"},
    }
    assert (data.tile_px, data.resolution_m) == (64, pytest.approx(4 * 0.3048))


def test_a_tar_of_dlrsd_gives_the_same(dlrsd: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(dlrsd, "DLRSD")
    packed = import_dlrsd(str(tmp_path / "x.tar.gz"), str(tmp_path / "a"))
    assert packed.digest == import_dlrsd(str(dlrsd), str(tmp_path / "b")).digest


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("Labels/beach/beach07.png", r"dlrsd: Labels/beach/beach07\.png is missing in .*DLRSD"),
        ("Images/airplane/airplane00.tif", r"Images/airplane/airplane00\.tif is missing"),
    ],
)
def test_the_first_missing_file_of_dlrsd_is_named(dlrsd: Path, tmp_path: Path, gone, message):
    (dlrsd / gone).unlink()
    with pytest.raises(NotFoundError, match=message):
        import_dlrsd(str(dlrsd), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_what_is_not_dlrsd_is_named(dlrsd: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"folder Images is missing .* Labels/<name>\.png"):
        import_dlrsd(str(tmp_path / "empty"), str(tmp_path / "set"))
    mask = dlrsd / "Labels" / "beach" / "beach07.png"
    Image.fromarray(np.full((256, 256), 18, np.uint8), "L").save(mask)
    with pytest.raises(SceneError, match=r"beach07\.png has pixels of none of the 17 classes"):
        import_dlrsd(str(dlrsd), str(tmp_path / "set"))
    _rgb(mask, 3)
    with pytest.raises(SceneError, match="is RGB, not one class number a pixel"):
        import_dlrsd(str(dlrsd), str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="min_share 2"):
        import_dlrsd(str(dlrsd), str(tmp_path / "set"), min_share=2)


def test_whdld_masks_are_read_by_colour(tmp_path: Path):
    root = tmp_path / "WHDLD"
    _rgb(root / "Images" / "wh0001.jpg", 100)
    _rgb(root / "Images" / "wh0002.jpg", 30)
    colours = np.zeros((256, 256, 3), np.uint8)
    colours[:100], colours[100:] = (0, 255, 0), (0, 0, 255)
    colours[:4, :128] = (255, 255, 0)  # 512 of 65,536 pixels are road
    (root / "ImagesPNG").mkdir()
    Image.fromarray(colours).save(root / "ImagesPNG" / "wh0001.png")
    colours[:] = (128, 128, 128)
    Image.fromarray(colours).quantize(4).save(root / "ImagesPNG" / "wh0002.png")  # a palette
    import_whdld(str(root), str(tmp_path / "set"))
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == {"wh0001": {"vegetation", "water"}, "wh0002": {"bare-soil"}}
    import_whdld(str(root), str(tmp_path / "set"), min_share=0.005)
    labels = _labels(LabelledDataset.open(str(tmp_path / "set")))
    assert labels["wh0001"] == {"vegetation", "water", "road"}
    _rgb(root / "ImagesPNG" / "wh0002.png", 77)
    with pytest.raises(SceneError, match=r"wh0002\.png has pixels of none of the 6 classes"):
        import_whdld(str(root), str(tmp_path / "other"))


# --- UC Merced -----------------------------------------------------------------------------------

TRUTH = {"agricultural00": {"field"}, "harbor99": {"dock", "ship", "water"}}


def _uc_merced(root: Path, table: str) -> Path:
    """Two images; one is 2 px narrower, as some of the real ones are."""
    for name, size in (("agricultural00", (256, 256)), ("harbor99", (254, 256))):
        path = root / "Images" / name.rstrip("0123456789") / f"{name}.tif"
        path.parent.mkdir(parents=True)
        Image.new("RGB", size, (len(name), 2, 3)).save(path)
    if table.endswith(".mat"):
        labels = np.zeros((17, 2100), np.uint8)
        labels[CLASSES.index("field"), 0] = 1
        labels[[CLASSES.index(c) for c in TRUTH["harbor99"]], SCENES.index("harbor") * 100 + 99] = 1
        savemat(root / table, {"labels": labels})
        return root
    separator = "\t" if table.endswith(".txt") else ","
    lines = [separator.join(["IMAGE\\LABEL", *CLASSES])]
    lines += [
        separator.join([name, *(str(int(c in present)) for c in CLASSES)])
        for name, present in TRUTH.items()
    ]
    (root / table).write_text("\r\n".join(lines) + "\r\n")
    return root


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_uc_merced_with_a_table_of_text(tmp_path: Path, suffix):
    root = _uc_merced(tmp_path / "ucm", f"LandUse_Multilabeled.{suffix}")
    info = import_uc_merced(str(root), str(tmp_path / "set"))
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == TRUTH
    assert data.images.shape == (2, 3, 256, 256)
    assert data.images[:, 0, 5, 5].tolist() == [14, 8]
    assert (info.bands, info.resolution_m) == (("red", "green", "blue"), 0.3048)


def test_uc_merced_with_the_matlab_table(tmp_path: Path):
    root = _uc_merced(tmp_path / "ucm", "LandUse_multilabels.mat")
    # The table has all 2,100 images: the message names the first missing image.
    with pytest.raises(NotFoundError, match=r"image agricultural01\.tif of LandUse"):
        import_uc_merced(str(root), str(tmp_path / "set"))
    for scene in SCENES:
        for number in range(100):
            path = root / "Images" / scene / f"{scene}{number:02d}.tif"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                Image.new("RGB", (4, 4)).save(path)
    import_uc_merced(str(root), str(tmp_path / "set"), tile_px=8)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert len(data) == 2100
    found = _labels(data)
    assert {name: found.pop(name) for name in TRUTH} == TRUTH
    assert not any(found.values())


def test_a_wrong_table_of_uc_merced_is_named(tmp_path: Path):
    root = _uc_merced(tmp_path / "ucm", "LandUse_Multilabeled.txt")
    table = root / "LandUse_Multilabeled.txt"
    good = table.read_text()
    for text, message in (
        (good.replace("airplane", "plane"), "has no column airplane"),
        (good.replace("\t1", "\t5"), "not 0 or 1"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            import_uc_merced(str(root), str(tmp_path / "set"))
    table.unlink()
    with pytest.raises(NotFoundError, match=r"LandUse_Multilabeled\.txt or .* is missing in"):
        import_uc_merced(str(root), str(tmp_path / "set"))
    (root / "LandUse_multilabels.mat").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no readable `labels`"):
        import_uc_merced(str(root), str(tmp_path / "set"))


def test_ml_aid_keeps_its_test_part(tmp_path: Path):
    root = tmp_path / "aid"
    truth = {f"airport_{i}": {"airplane", "cars"} if i % 2 else {"grass"} for i in range(40)}
    for i, name in enumerate(truth):
        part = "images_test" if i < 8 else "images_tr"
        _rgb(root / part / "Airport" / f"{name}.jpg", 100 + i, size=20)
    lines = [",".join(["IMAGE\\LABEL", *CLASSES])]
    lines += [
        ",".join([name, *(str(int(c in labels)) for c in CLASSES)])
        for name, labels in truth.items()
    ]
    (root / "multilabel.csv").write_text("\n".join(lines) + "\n")
    import_ml_aid(str(root), str(tmp_path / "set"), tile_px=10)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == truth
    assert set(data.split[:8]) == {"test"}
    assert set(data.split[8:]) == {"train", "val"}
    assert np.abs(data.images[:, 0].mean((1, 2)) - (100 + np.arange(40))).max() < 2
    (root / "images_tr" / "Airport" / "airport_31.jpg").unlink()
    with pytest.raises(NotFoundError, match=r"ml-aid: image airport_31\.jpg of multilabel\.csv"):
        import_ml_aid(str(root), str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="leave `min_share` out"):
        import_ml_aid(str(root), str(tmp_path / "set"), min_share=0.5)


# --- BigEarthNet v2 ------------------------------------------------------------------------------

TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
PATCHES = {
    f"{TILE}_26_57": (["Arable land", "Mixed forest"], "train"),
    f"{TILE}_26_58": (["Inland waters"], "validation"),
    f"{TILE}_31_02": (["Inland wetlands", "Pastures"], "test"),
}
RESOLUTIONS_M = {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}


@pytest.fixture
def bigearthnet(tmp_path: Path) -> Path:
    root = tmp_path / "BigEarthNet"
    for number, patch in enumerate(PATCHES):
        folder = root / "BigEarthNet-S2" / TILE / patch
        folder.mkdir(parents=True)
        for code in BANDS.values():
            step_m = RESOLUTIONS_M.get(code, 20)
            side = 1200 // step_m
            # A ramp from left to right that is the same on the ground in every resolution.
            ramp = 1000 * number + (np.arange(side) + 0.5) * step_m
            pixels = np.broadcast_to(ramp, (1, side, side)).astype(np.uint16)
            place = (step_m, 0, 300000 + 1200 * number, 0, -step_m, 5300000)
            write_geotiff(
                str(folder / f"{patch}_{code}.tif"), pixels, "EPSG:32633", place, cog=False
            )
    pd.DataFrame(
        {
            "patch_id": list(PATCHES),
            "labels": [labels for labels, _ in PATCHES.values()],
            "split": [split for _, split in PATCHES.values()],
            "country": "Austria",
        }
    ).to_parquet(root / "metadata.parquet")
    return root


def test_bigearthnet_arrives_on_one_grid_with_its_own_split(bigearthnet: Path, tmp_path: Path):
    info = import_bigearthnet(str(bigearthnet), str(tmp_path / "set"))
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert _labels(data) == {patch: set(labels) for patch, (labels, _) in PATCHES.items()}
    assert data.split.tolist() == ["train", "val", "test"]
    assert data.images.shape == (3, 12, 120, 120)
    assert data.images.dtype == np.uint16
    assert (info.resolution_m, info.classes, info.bands) == (10, BIGEARTHNET_CLASSES, tuple(BANDS))
    assert set(data.rows["group"]) == {TILE}
    # Away from the edges every band is the ramp at 10 m, whatever its own resolution.
    expected = 1000 + (np.arange(120) + 0.5) * 10
    error = np.abs(data.images[1, :, 60].astype(float) - expected)[:, 6:-6]
    assert error.max() <= 1


def test_bands_of_bigearthnet_are_chosen_by_either_name(bigearthnet: Path, tmp_path: Path):
    import_bigearthnet(str(bigearthnet), str(tmp_path / "a"), bands=("red", "nir"), tile_px=60)
    import_bigearthnet(str(bigearthnet), str(tmp_path / "b"), bands=("B04", "B08"), tile_px=60)
    first, second = (LabelledDataset.open(str(tmp_path / name)) for name in "ab")
    assert first.bands == ("red", "nir")
    assert first.resolution_m == 20
    np.testing.assert_array_equal(first.images, second.images)
    with pytest.raises(ConfigError, match="no band 'B10'"):
        import_bigearthnet(str(bigearthnet), str(tmp_path / "c"), bands=("B10",))


def test_what_bigearthnet_lacks_is_named(bigearthnet: Path, tmp_path: Path):
    uri = str(tmp_path / "set")
    patch = f"{TILE}_26_58"
    (bigearthnet / "BigEarthNet-S2" / TILE / patch / f"{patch}_B11.tif").unlink()
    with pytest.raises(NotFoundError, match=rf"BigEarthNet-S2/{TILE}/{patch}/{patch}_B11\.tif is"):
        import_bigearthnet(str(bigearthnet), uri)
    import_bigearthnet(str(bigearthnet), uri, bands=("B12",))
    frame = pd.read_parquet(bigearthnet / "metadata.parquet")
    for column, value, message in (
        ("split", "dev", "split 'dev'"),
        ("labels", ["Sea"], "label 'Sea'"),
    ):
        wrong = frame.copy()
        wrong.at[1, column] = value
        wrong.to_parquet(bigearthnet / "metadata.parquet")
        with pytest.raises(ConfigError, match=message):
            import_bigearthnet(str(bigearthnet), uri)
    (bigearthnet / "metadata.parquet").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"metadata\.parquet is not a table"):
        import_bigearthnet(str(bigearthnet), uri)
    shutil.rmtree(bigearthnet)
    with pytest.raises(NotFoundError, match=r"metadata\.parquet is missing"):
        import_bigearthnet(str(bigearthnet), uri)


def test_bigearthnet_in_an_object_store(bigearthnet: Path, tmp_path: Path, moto_s3):
    for path in [bigearthnet / "metadata.parquet", *bigearthnet.rglob("*_B04.tif")]:
        moto_s3.location("ben", str(path.relative_to(bigearthnet))).upload(path)
    remote = import_bigearthnet(moto_s3.location("ben"), str(tmp_path / "a"), bands=["red"])
    assert (
        remote.digest
        == import_bigearthnet(str(bigearthnet), str(tmp_path / "b"), bands=["red"]).digest
    )


# --- GeoTIFFs in an image folder -----------------------------------------------------------------


def _tiff_folder(root: Path, nodata: float | None = None) -> Path:
    (root / "images").mkdir(parents=True)
    for i in range(2):
        pixels = np.full((5, 16, 20), 300 * (i + 1), np.int16)
        pixels += np.arange(5, dtype=np.int16)[:, None, None]
        pixels[:, 0, 2] = -9999
        place = (10, 0, 0, 0, -10, 0)
        path = str(root / "images" / f"{i}.tif")
        write_geotiff(path, pixels, "EPSG:32633", place, nodata=nodata, cog=False)
    (root / "labels.csv").write_text("image,water\n0.tif,1\n1.tif,0\n")
    return root


def test_geotiffs_of_any_bands_keep_their_values(tmp_path: Path):
    bands = ("blue", "green", "red", "nir", "swir16")
    import_folder(str(_tiff_folder(tmp_path / "a")), str(tmp_path / "set"), bands=bands)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert (data.images.dtype, data.images.shape) == (np.int16, (2, 5, 16, 16))
    assert data.images[1, :, 8, 8].tolist() == [600, 601, 602, 603, 604]
    assert data.images[0, 0, 0, 0] == -9999
    source = _tiff_folder(tmp_path / "b", nodata=-9999)
    import_folder(str(source), str(tmp_path / "set"), bands=bands, tile_px=8)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert (data.images.dtype, data.images.shape) == (np.float32, (2, 5, 8, 8))
    assert np.nanmin(data.images) == 300  # no invalid pixel bled into its neighbours
    with pytest.raises(ConfigError, match=r"0\.tif has 5 bands, not 3"):
        import_folder(str(source), str(tmp_path / "other"))
    (source / "images" / "0.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(SceneError, match=r"image 0\.tif cannot be opened as GeoTIFF"):
        import_folder(str(source), str(tmp_path / "other"), bands=bands)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_masks_and_nodata_beside_a_geotiff_count(tmp_path: Path, packed: bool):
    source = _tiff_folder(tmp_path / "a")
    whole = np.arange(16 * 20).reshape(1, 16, 20).astype(np.int16) + 1
    hidden = (whole[0] % 7 > 0).astype(np.uint8) * 255
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 0, 0, -10, 0)}
    shape = {"width": 20, "height": 16, "count": 1, "dtype": "int16"}
    for number in range(2):
        path = source / "images" / f"{number}.tif"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
            rasterio.open(path, "w", driver="GTiff", **shape, **place) as file,
        ):
            file.write(whole)
            if number == 0:
                file.write_mask(hidden)
    assert (source / "images" / "0.tif.msk").is_file()
    (source / "images" / "1.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand>'
        "</PAMDataset>"
    )
    if packed:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(source, "a")
        source = tmp_path / "a.tar"
    import_folder(str(source), str(tmp_path / "set"), bands=["red"])
    images = LabelledDataset.open(str(tmp_path / "set")).images
    assert np.array_equal(np.isnan(images[0, 0]), hidden[:, 2:18] == 0)
    assert np.array_equal(np.isnan(images[1, 0]), whole[0, :, 2:18] == 9)


# --- by name -------------------------------------------------------------------------------------


def test_every_importer_is_a_word_of_the_command_line(
    dlrsd: Path, bigearthnet: Path, tmp_path: Path
):
    assert {*IMPORTER_KEYS, "scenes"} == set(importers)
    uc_merced = _uc_merced(tmp_path / "ucm", "LandUse_Multilabeled.txt")
    sources = {"dlrsd": dlrsd, "uc-merced": uc_merced, "bigearthnet": bigearthnet}
    for name, source in sources.items():
        uri = str(tmp_path / "sets" / name)
        words = ["dataset", "import", "--importer", name, "--source", str(source)]
        result = CliRunner().invoke(cli, [*words, "--dataset", uri, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["info"]["count"] == len(LabelledDataset.open(uri))
        assert LabelledDataset.open(uri).bands == ("red", "green", "blue")


def test_the_commands_of_the_page_run_as_printed(
    dlrsd: Path, bigearthnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    _uc_merced(tmp_path / "UCMerced_LandUse", "LandUse_Multilabeled.txt")
    _rgb(tmp_path / "aid" / "images" / "a.png", 7)
    (tmp_path / "aid" / "labels.csv").write_text("image,water\na.png,1\n")
    with tarfile.open("aid.tar", "w") as archive:
        archive.add("aid", "aid")
    page = (REPOSITORY / "docs" / "datasets.md").read_text()
    lines = re.findall(r"^skysift (dataset import .*)", page, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        result = CliRunner().invoke(cli, shlex.split(line))
        assert result.exit_code == 0, result.output
