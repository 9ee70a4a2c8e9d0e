import hashlib
import json
from pathlib import Path

import numpy as np
import pystac
import pytest

from storage.catalog.read import read_scenes
from storage.raster.geotiff import inspect
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader, read_categorical
from storage.scene import CatalogSpec, MaskMapping
from workflows.demo.landscape import BANDS, CLASSES, make_ground
from workflows.demo.world import CLOUD_VALUES, WorldSpec, build_world

SMALL = WorldSpec(seed=3, scene_px=128, scenes_per_zone=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"), SMALL)


@pytest.fixture(scope="module")
def scenes(world):
    spec = CatalogSpec(
        source=world.catalog, mask=MaskMapping(asset="scl", cloud_values=CLOUD_VALUES)
    )
    listed = read_scenes(spec, BANDS)
    assert not listed.rejected
    return {scene.id: scene for scene in listed.scenes}


def fingerprints(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_gives_the_same_files(world, tmp_path):
    build_world(tmp_path, SMALL)
    assert fingerprints(tmp_path) == fingerprints(Path(world.catalog).parent)
    assert len(fingerprints(tmp_path)) == 5 * 6 + 2 + 2


def test_an_interrupted_build_is_completed_and_the_rest_is_left_alone(world, tmp_path):
    build_world(tmp_path, SMALL)
    (tmp_path / "items.json").unlink()
    broken = tmp_path / "scenes" / "34a-20241021"
    (broken / "item.json").unlink()
    (broken / "nir.tif").write_bytes(b"half a file")
    kept = tmp_path / "scenes" / "33a-20240618" / "red.tif"
    before = kept.stat().st_mtime_ns
    build_world(tmp_path, SMALL)
    assert fingerprints(tmp_path) == fingerprints(Path(world.catalog).parent)
    assert kept.stat().st_mtime_ns == before


def test_another_seed_replaces_the_world(world, tmp_path):
    build_world(tmp_path, SMALL)
    other = build_world(tmp_path, WorldSpec(seed=4, scene_px=128, scenes_per_zone=1))
    old, new = fingerprints(Path(world.catalog).parent), fingerprints(tmp_path)
    assert old.keys() == new.keys()
    assert all(old[name] != new[name] for name in old if name.endswith("red.tif"))
    assert Path(other.catalog).exists()


def test_items_are_valid_stac(world):
    document = json.loads(Path(world.catalog).read_text())
    for feature in document["features"]:
        # pystac bundles the schemas of the core, not those of the extensions.
        item = pystac.Item.from_dict({**feature, "stac_extensions": []}, migrate=False)
        item.validate()
        assert feature["properties"]["eo:cloud_cover"] <= 100
    assert {f["properties"]["proj:epsg"] for f in document["features"]} == {32633, 32634}


def test_scenes_read_as_reflectance_on_their_grid(scenes):
    grid = PixelGrid(crs="EPSG:32633", resolution=10.0)
    with SceneReader(scenes["33a-20240618"], grid) as reader:
        assert (reader.extent.width, reader.extent.height) == (128, 128)
        block = reader.read(reader.extent)
    clear = block.values[:, block.valid & ~block.cloud]
    assert block.values.shape == (4, 128, 128)
    assert 0.0 < np.median(clear) < 0.5  # scale and the baseline's offset were applied
    assert clear[3].mean() > clear[2].mean()  # vegetation reflects near infrared


def test_days_share_the_ground_but_not_the_light(scenes):
    grid = PixelGrid(crs="EPSG:32634", resolution=10.0)
    blocks = []
    for day in ("20240618", "20241021"):
        with SceneReader(scenes[f"34a-{day}"], grid) as reader:
            blocks.append(reader.read(reader.extent))
    both = blocks[0].valid & blocks[1].valid & ~blocks[0].cloud & ~blocks[1].cloud
    summer, autumn = (block.values[3, both] for block in blocks)
    assert autumn.mean() < 0.8 * summer.mean()
    assert np.corrcoef(summer, autumn)[0, 1] > 0.4


def test_the_overcast_day_is_cloud_all_over(scenes):
    grid = PixelGrid(crs="EPSG:32633", resolution=10.0)
    with SceneReader(scenes["33a-20240807"], grid) as reader:
        block = reader.read(reader.extent)
    assert block.cloud[block.valid].mean() > 0.97


def test_land_cover_lies_on_the_scenes(world, scenes):
    info = inspect(world.landcover["EPSG:32633"])
    grid = PixelGrid(crs="EPSG:32633", resolution=10.0)
    with SceneReader(scenes["33a-20240618"], grid) as reader:
        block = reader.read(reader.extent)
        values, _ = read_categorical(world.landcover["EPSG:32633"], grid, reader.extent)
    assert (info.crs, info.width, info.height) == ("EPSG:32633", 128, 128)
    assert set(np.unique(values)) <= set(CLASSES)
    clear = block.valid & ~block.cloud
    water = next(value for value, name in CLASSES.items() if name == "water")
    wet = block.values[3, clear & (values == water)]
    assert wet.size
    assert wet.mean() < 0.5 * block.values[3, clear & (values != water)].mean()


def test_every_class_occurs_and_three_are_rare():
    share = np.bincount(make_ground(7, 33, (1024, 1024)).classes.ravel(), minlength=9)[1:] / 2**20
    assert (share > 0.001).all()
    assert (np.sort(share)[:3] < 0.02).all()
    assert share.max() > 0.25
