"""`skysift dataset import` of scenes: bad scenes are named, and the others are imported."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio

from storage.dataset import LabelledDataset
from storage.raster.writer import write_geotiff
from tests.support.bad_scenes import BAD
from tests.support.command_line import Outcome, run
from tests.support.ingest_world import SIZE_PX, write_scene

KEYS = {
    "catalog.bands": {f"b{number}": {"index": number} for number in (1, 2, 3)},
    "dataset.bands": ["b1", "b2", "b3"],
    "dataset.landcover.classes": {1: "field", 2: "wood"},
    "dataset.tile_px": 32,
    "dataset.block_tiles": 1,
}


def import_scenes(folder: Path, name: str = "set", *more: str) -> Outcome:
    settings = [f"--set={key}={json.dumps(value)}" for key, value in KEYS.items()]
    return run(
        *("dataset", "import", "--importer", "scenes", "--scenes", folder / "scenes", *settings),
        *("--landcover", folder / "landcover.tif", "--dataset", folder / name, *more),
    )


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of scenes, beside the land cover of the ground of `write_scene`."""
    monkeypatch.setattr("pipeline.datasets.scenes._BATCH", 4)  # a row of tiles
    classes = np.random.default_rng(9).integers(1, 3, (1, SIZE_PX, SIZE_PX), dtype=np.uint8)
    with rasterio.open(write_scene(tmp_path, "landcover", seed=0)) as place:
        grid = {"crs": str(place.crs), "transform": place.transform[:6]}
    write_geotiff(str(tmp_path / "landcover.tif"), classes, *grid.values(), nodata=0)
    (tmp_path / "scenes").mkdir()
    return tmp_path / "scenes"


def write_good(scenes: Path) -> None:
    write_scene(scenes, "a_20240101", seed=1)
    write_scene(scenes, "y_20240601", seed=2)


def test_bad_scenes_of_every_kind_are_named_and_the_others_are_the_dataset(
    scenes: Path, tmp_path: Path
):
    write_good(scenes)
    assert import_scenes(tmp_path, "good").code == 0
    good = LabelledDataset.open(str(tmp_path / "good"))
    bad = {f"{kind}_{2000 + year}0501": kind for year, kind in enumerate(BAD)}
    for name, kind in bad.items():
        BAD[kind](scenes / f"{name}.tif", 3)
    write_scene(scenes, "undated", seed=4)
    done = import_scenes(tmp_path, "set", "--json")
    assert done.code == 3, done.err
    assert done.data["left_out"].keys() == {*bad, "undated"}
    assert "no date" in done.data["left_out"]["undated"]
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert set(data.rows["scene"]) == {"a_20240101", "y_20240601"}
    assert np.array_equal(data.images, good.images)
    assert data.info.digest == good.info.digest


def test_the_first_ten_bad_scenes_are_named_for_people_and_the_others_counted(
    scenes: Path, tmp_path: Path
):
    write_good(scenes)
    for day in range(10, 22):
        BAD["empty"](scenes / f"empty_202402{day}.tif", 0)
    done = import_scenes(tmp_path)
    assert done.code == 3
    assert sum("empty_202402" in line.split()[0] for line in done.out.splitlines()) == 10
    assert re.search(r"scenes left out +12\n", done.out)
    assert "and 2 more; --json names all" in done.out


def test_an_import_is_kept_beside_a_bad_header_and_repeated_after_bad_pixels(
    scenes: Path, tmp_path: Path
):
    write_good(scenes)
    images = tmp_path / "set" / "images.npy"
    BAD["torn"](scenes / "b_20240301.tif", 3)
    assert import_scenes(tmp_path).code == 3
    first = images.stat().st_mtime_ns
    assert import_scenes(tmp_path).code == 3
    assert images.stat().st_mtime_ns == first
    BAD["damaged-in-its-middle"](scenes / "b_20240301.tif", 3)
    again = import_scenes(tmp_path, "set", "--json").data
    assert again["left_out"].keys() == {"b_20240301"}
    assert again["info"]["origin"]["left_out"] == again["left_out"]
    first = images.stat().st_mtime_ns
    assert import_scenes(tmp_path).code == 3
    assert images.stat().st_mtime_ns > first


@pytest.mark.parametrize(
    ("name", "kind"),
    [("undated", "one-band"), ("a_20240101", "torn"), ("b_20240101", "damaged-in-its-middle")],
)
def test_an_import_of_bad_scenes_alone_writes_nothing(
    scenes: Path, tmp_path: Path, name: str, kind: str
):
    BAD[kind](scenes / f"{name}.tif", 1)
    failed = import_scenes(tmp_path)
    assert (failed.code, failed.out) == (1, "")
    assert f"none of 1 scenes can be read ({name}: " in failed.err
    assert not (tmp_path / "set").exists()


def test_marks_label_the_tiles_of_scenes(scenes: Path, tmp_path: Path):
    """Marks of `skysift detect --marks-out` become a dataset of right and wrong tiles."""
    write_good(scenes)
    assert import_scenes(tmp_path, "all").code == 0
    keys = sorted(set(LabelledDataset.open(str(tmp_path / "all")).rows["tile_key"]))
    marked = {key: ("right", "wrong")[place % 2] for place, key in enumerate(keys[:8])}
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [0.0, 0.0]},
            "properties": {"tile_key": key, "scene": "a_20240101", "mark": mark},
        }
        for key, mark in [*marked.items(), ("elsewhere/1/2", "right"), (keys[9], None)]
    ]
    file = tmp_path / "marks.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    done = import_scenes(tmp_path, "marks", "--marks", str(file))
    assert done.code == 0, done.err
    data = LabelledDataset.open(str(tmp_path / "marks"))
    assert data.info.classes == ("right", "wrong")
    assert set(data.rows["tile_key"]) == set(marked)
    assert len(data.rows["tile_key"]) == 16  # both dates
    for key, labels in zip(data.rows["tile_key"], data.labels, strict=True):
        assert labels.tolist() == [marked[key] == "right", marked[key] == "wrong"]
    file.write_text(file.read_text().replace('"mark"', '"remark"'))
    refused = import_scenes(tmp_path, "none", "--marks", str(file))
    assert refused.code == 2
    assert "no feature has a tile_key and a mark" in refused.err
