"""Importers: the stated layouts arrive whole, the first thing that is missing is named."""

import csv
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pipeline.analysis.landcover import TileLabels
from pipeline.datasets.folder import import_folder
from pipeline.datasets.importers import importers
from pipeline.datasets.scenes import import_scenes
from pipeline.datasets.spec import SplitRule
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.spec import GridSpec, TileRules
from storage.dataset import LabelledDataset
from storage.errors import ConfigError, NotFoundError, SceneError
from storage.progress import Progress
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, Scene

CLASSES = ("water", "forest")


def _folder(root: Path, count: int = 6, size: int = 12, **columns: list[str]) -> Path:
    """An image folder whose image i is filled with the value i."""
    (root / "images" / "a").mkdir(parents=True)
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", *columns, *CLASSES])
        for i in range(count):
            name = f"a/{i}.png"
            Image.new("RGB", (size, size + 2 * i), (i, 10 + i, 20 + i)).save(root / "images" / name)
            writer.writerow([name, *(values[i] for values in columns.values()), i % 2, 1])
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _folder(tmp_path / "source")


def test_a_folder_arrives_in_the_tables_order(folder: Path, tmp_path: Path):
    reports: list[Progress] = []
    import_folder(str(folder), str(tmp_path / "set"), progress=reports.append)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert data.images.dtype == np.uint8
    assert data.images.shape == (6, 3, 12, 12)
    assert data.images[:, :, 5, 5].tolist() == [[i, 10 + i, 20 + i] for i in range(6)]
    assert data.labels.tolist() == [[i % 2, 1] for i in range(6)]
    assert data.classes == CLASSES
    assert data.rows["source"].tolist() == [f"a/{i}.png" for i in range(6)]
    assert (reports[-1].done, reports[-1].total) == (6, 6)


def test_splits_and_groups_of_the_table_are_kept(tmp_path: Path):
    splits = ["train", "val", "test", "train", "train", "val"]
    source = _folder(tmp_path / "source", split=splits, scene=list("xxyyzz"))
    import_folder(str(source), str(tmp_path / "set"))
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert data.split.tolist() == splits
    assert data.rows["group"].tolist() == list("xxyyzz")
    assert data.classes == CLASSES


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_gives_the_same_dataset_as_its_folder(folder: Path, tmp_path: Path, suffix):
    packed = tmp_path / f"packed{suffix}"
    with tarfile.open(packed, "w:gz" if suffix.endswith("gz") else "w") as archive:
        archive.add(folder, "deep/er")
    from_tar = import_folder(str(packed), str(tmp_path / "b"))
    assert from_tar.digest == import_folder(str(folder), str(tmp_path / "a")).digest


def test_a_remote_folder_and_a_remote_tar_are_read(folder: Path, tmp_path: Path, moto_s3):
    for path in folder.rglob("*.*"):
        moto_s3.location("set", str(path.relative_to(folder))).upload(path)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder, "")
    moto_s3.location("x.tar").upload(tmp_path / "x.tar")
    expected = import_folder(str(folder), str(tmp_path / "set")).digest
    for name in ("set", "x.tar"):
        source, target = moto_s3.location(name), moto_s3.location("out", name)
        assert import_folder(source, target).digest == expected


def test_images_are_cut_square_and_resized(folder: Path, tmp_path: Path):
    import_folder(str(folder), str(tmp_path / "set"), tile_px=5, bands=["grey"])
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert data.images.shape == (6, 1, 5, 5)
    assert (data.images[3] == data.images[3, 0, 0, 0]).all()


def test_an_import_that_is_there_is_not_repeated(folder: Path, tmp_path: Path):
    uri = str(tmp_path / "set")
    first = import_folder(str(folder), uri)
    stamp = (tmp_path / "set" / "images.npy").stat().st_mtime_ns
    assert import_folder(str(folder), uri) == first
    assert (tmp_path / "set" / "images.npy").stat().st_mtime_ns == stamp
    assert import_folder(str(folder), uri, tile_px=6).tile_px == 6


def test_a_replaced_image_is_imported_again(folder: Path, tmp_path: Path):
    uri = str(tmp_path / "set")
    import_folder(str(folder), uri)
    Image.new("RGB", (12, 12), (200, 200, 200)).save(folder / "images" / "a" / "3.png")
    import_folder(str(folder), uri)
    assert LabelledDataset.open(uri).images[3].min() == 200


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_tar_that_ends_early_is_named(folder: Path, tmp_path: Path, suffix: str):
    path, mode = tmp_path / f"a{suffix}", f"w:{suffix.removeprefix('.tar').removeprefix('.')}"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, "a")
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(
            (ConfigError, NotFoundError), match=rf"a\{suffix}.*not a readable|no lab"
        ):
            import_folder(str(path), str(tmp_path / "set"))


def test_the_split_rule_divides_by_group_and_keeps_its_word():
    rule = SplitRule(val=0.2, test=0.1, seed=3)
    drawn = [rule.of(f"group-{i}") for i in range(4000)]
    assert drawn.count("val") / 4000 == pytest.approx(0.2, abs=0.02)
    assert drawn.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn == [rule.of(f"group-{i}") for i in range(4000)]
    assert drawn != [SplitRule(val=0.2, test=0.1).of(f"group-{i}") for i in range(4000)]
    with pytest.raises(ConfigError, match="leave train rows"):
        SplitRule(val=0.5, test=0.5)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("image,water\nnowhere.png,1\n", NotFoundError, r"nowhere\.png"),
        ("picture,water\na/0.png,1\n", ConfigError, "no column `image`"),
        ("image,water\na/0.png,2\n", ConfigError, "column water"),
        ("image,split,water\na/0.png,dev,1\n", ConfigError, "split 'dev'"),
        ("image,split\na/0.png,train\n", ConfigError, "classes"),
        ("image,water\n", ConfigError, "lists no image"),
        ("", ConfigError, "not a CSV table"),
    ],
)
def test_a_wrong_table_is_named(folder: Path, tmp_path: Path, table, error, message):
    (folder / "labels.csv").write_text(table)
    with pytest.raises(error, match=message):
        import_folder(str(folder), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_missing_and_damaged_sources_are_named(folder: Path, tmp_path: Path):
    uri = str(tmp_path / "set")
    with pytest.raises(NotFoundError, match=r"no labels\.csv"):
        import_folder(str(tmp_path / "source" / "images"), uri)
    with pytest.raises(NotFoundError, match=r"gone\.tar"):
        import_folder(str(tmp_path / "gone.tar"), uri)
    (tmp_path / "bad.tar").write_bytes(b"x" * 600)
    with pytest.raises(ConfigError, match="not a readable tar"):
        import_folder(str(tmp_path / "bad.tar"), uri)
    (folder / "images" / "a" / "4.png").write_bytes(b"GIF89a")
    with pytest.raises(SceneError, match=r"a/4\.png is not a readable picture: it is no PNG, JPEG"):
        import_folder(str(folder), uri)
    with pytest.raises(ConfigError, match="name 1, 3 or 4 bands"):
        import_folder(str(folder), uri, bands=["a", "b"])


def test_an_image_path_cannot_leave_its_folder(folder: Path, tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    for name in ("../../secret.png", str(tmp_path / "secret.png")):
        (folder / "labels.csv").write_text(f"image,water\n{name},1\n")
        with pytest.raises(ConfigError, match="outside its folder"):
            import_folder(str(folder), str(tmp_path / "set"))


# --- tiles of scenes ---------------------------------------------------------------------------


def _scene(folder: Path, name: str, value: int) -> Scene:
    path = folder / f"{name}.tif"
    array = np.full((2, 64, 96), value, np.uint16)
    array[1] += np.arange(96, dtype=np.uint16)
    array[:, :20, :20] = 0
    write_geotiff(
        str(path), array, "EPSG:32648", (10, 0, 600000, 0, -10, 1500000), nodata=0, cog=False
    )
    bands = tuple(
        BandSource(name=band, href=str(path), index=i)
        for i, band in enumerate(("red", "nir"), start=1)
    )
    return Scene(id=name, datetime=datetime(2024, 1, 1, tzinfo=UTC), bands=bands)


@pytest.fixture
def scenes(tmp_path: Path) -> list[Scene]:
    return [_scene(tmp_path, "first", 100), _scene(tmp_path, "second", 900)]


def _labels(scene: Scene, spec: GridSpec, leave_out: int = 0) -> TileLabels:
    grid = grid_for_scene(scene, spec)
    columns, rows = np.meshgrid(np.arange(3750, 3756), np.arange(-9375, -9371))
    tiles = np.stack([columns.ravel(), rows.ravel()], 1).astype(np.int32)
    fractions = np.tile(np.array([[0.9, 0.1]], np.float32), (len(tiles), 1))
    fractions[tiles[:, 0] % 2 == 1] = (0.0, 1.0)
    fractions[:leave_out] = 0
    return TileLabels(
        tile_keys=np.array(grid.keys(tiles), object),
        fractions=fractions,
        mapped=np.ones(len(tiles), np.float32),
        classes=CLASSES,
        min_fraction=0.2,
    )


SPEC = GridSpec(tile_px=16)
RULES = TileRules(min_valid_fraction=0.6)


def test_tiles_of_scenes_carry_their_labels_and_share_splits_by_ground(scenes, tmp_path: Path):
    labels = _labels(scenes[0], SPEC, leave_out=3)
    uri = str(tmp_path / "set")
    arguments = {"bands": ("red", "nir"), "rules": RULES, "block_tiles": 2}
    info = import_scenes(scenes, SPEC, labels, uri, split=SplitRule(val=0.3, test=0.3), **arguments)
    data = LabelledDataset.open(uri)
    assert info.resolution_m == 10.0
    assert data.images.shape[1:] == (2, 16, 16)
    assert set(data.rows["scene"]) == {"first", "second"}
    labelled = dict(zip(labels.tile_keys, labels.labels, strict=True))
    for key, row in zip(data.rows["tile_key"], data.labels, strict=True):
        assert row.tolist() == labelled[key].tolist()
        assert row.any()
    # 24 tiles lie in a scene; the nodata corner takes 1 of them and 3 have no label, one is both.
    assert len(data) == 2 * (24 - 3)
    by_ground = data.rows.groupby("group")["split"].nunique()
    assert by_ground.max() == 1
    assert set(data.split) == {"train", "val", "test"}
    assert np.nanmin(data.images[data.rows["scene"] == "second", 0]) == 900


def test_importing_the_same_scenes_again_returns_at_once(scenes, tmp_path: Path):
    labels = _labels(scenes[0], SPEC)
    uri = str(tmp_path / "set")
    first = import_scenes(scenes, SPEC, [labels], uri, bands=("red", "nir"))
    stamp = (tmp_path / "set" / "images.npy").stat().st_mtime_ns
    assert import_scenes(scenes, SPEC, [labels], uri, bands=("red", "nir")) == first
    assert (tmp_path / "set" / "images.npy").stat().st_mtime_ns == stamp
    fewer = import_scenes(scenes[:1], SPEC, [labels], uri, bands=("red", "nir"))
    assert fewer.count < first.count


def test_scenes_that_do_not_fit_are_named(scenes, tmp_path: Path):
    uri, labels = str(tmp_path / "set"), _labels(scenes[0], SPEC)
    with pytest.raises(ConfigError, match="scene first has bands red, nir"):
        import_scenes(scenes, SPEC, labels, uri, bands=("red",))
    with pytest.raises(ConfigError, match="no usable row"):
        import_scenes(scenes, SPEC, _labels(scenes[0], SPEC, 24), uri, bands=("red", "nir"))
    other = TileLabels(
        tile_keys=labels.tile_keys,
        fractions=labels.fractions,
        mapped=labels.mapped,
        classes=("a", "b"),
        min_fraction=0.2,
    )
    with pytest.raises(ConfigError, match="different classes"):
        import_scenes(scenes, SPEC, [labels, other], uri, bands=("red", "nir"))


def test_ground_that_two_grids_share_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    near, far = _scene(tmp_path, "near", 100), _scene(tmp_path, "far", 200)
    with rasterio.open(str(far.bands[0].href), "r+") as file:
        file.crs = "EPSG:32649"
    labels = _labels(near, SPEC)
    import_scenes([near], SPEC, labels, str(tmp_path / "one"), bands=("red", "nir"))
    assert "scenes lie on" not in caplog.text
    import_scenes([near, far], SPEC, labels, str(tmp_path / "two"), bands=("red", "nir"))
    assert "the scenes lie on 2 grids (epsg32648-10-16, epsg32649-10-16)" in caplog.text


def test_the_real_labelled_set_arrives_whole(real_data: Path, tmp_path: Path):
    source = real_data / "aid_multilabel_150px.tar"
    info = importers["folder"](str(source), str(tmp_path / "aid"))
    data = LabelledDataset.open(str(tmp_path / "aid"))
    assert (info.count, info.tile_px, len(info.classes)) == (3000, 150, 17)
    assert [len(data.indices(s)) for s in ("train", "val", "test")] == [1917, 483, 600]
    assert data.labels[:, info.classes.index("mobile-home")].sum() == 2
