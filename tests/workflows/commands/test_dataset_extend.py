"""`skysift dataset extend` and `suggest`: tiles of an archive join a dataset, labelled or not."""

import json
from pathlib import Path

import numpy as np
import pytest

from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter
from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec
from tests.support.command_line import run

SIDE, TILE_PX, CLASSES = 12, 16, 3
BANDS = ("b1", "b2", "b3")
GRID_ID = "epsg32632-10-16"


def tiles(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles with a wave of its own direction in each band whose label they hold."""
    labels = (rng.random((count, CLASSES)) < 0.4).astype(np.uint8)
    labels[labels.sum(1) == 0, 0] = 1
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    shift = rng.uniform(0, 6, (3, count, 1, 1))
    angles = (1.5 * x + shift[0], 1.5 * y + shift[1], 0.7 * (x + y) + shift[2])
    waves = np.stack([np.sin(angle) for angle in angles], axis=1) * labels[:, :, None, None]
    pixels = 128 + 40 * waves + rng.normal(0, 8, waves.shape)
    return pixels.clip(1, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A dataset of images, and an archive of 144 tiles, of which the dataset holds one."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    spec = EncoderSpec(
        backbone="tiny-cnn",
        backbone_options={"width": 8},
        bands=BANDS,
        band_mean=(128.0,) * 3,
        band_std=(30.0,) * 3,
        tile_px=TILE_PX,
        dimension=64,
        head={"kind": "identity"},
    )
    save_bundle(new_encoder(spec), str(folder / "bundle"))
    pixels, labels = tiles(rng, SIDE * SIDE)
    np.save(folder / "truth.npy", labels)
    np.save(folder / "pixels.npy", pixels)
    (folder / "scenes").mkdir()
    mosaic = pixels.reshape(SIDE, SIDE, 3, TILE_PX, TILE_PX).transpose(2, 0, 3, 1, 4)
    write_geotiff(
        str(folder / "scenes/site_20240501.tif"),
        mosaic.reshape(3, SIDE * TILE_PX, SIDE * TILE_PX),
        "EPSG:32632",
        (10, 0, 160 * 2000, 0, -10, 160 * 30000),
        nodata=0,
        block_px=64,
        descriptions=BANDS,
    )
    ingest(
        plan_ingest(
            IngestSpec(
                catalog=CatalogSpec(source=str(folder / "scenes/*.tif")),
                encoder_uri=str(folder / "bundle"),
                archive_uri=str(folder / "archive"),
            )
        )
    )
    images, labels = tiles(rng, 110)
    write_dataset(folder / "set", images, labels, f"{GRID_ID}/2000/-30000")
    return folder


def write_dataset(folder: Path, images: np.ndarray, labels: np.ndarray, held: str) -> None:
    rows = {
        "source": [str(i) for i in range(len(images))],
        "split": ["train"] * 32 + ["val"] * (len(images) - 32),
        "group": [f"block {i}" for i in range(len(images))],
        "tile_key": [held] + [f"elsewhere/{i}/0" for i in range(1, len(images))],
    }
    with DatasetWriter(str(folder), bands=BANDS, classes=("a", "b", "c")) as writer:
        writer.append(images, labels, rows)
        writer.finish()


def test_an_archive_extends_a_dataset_and_a_training_learns_from_it(world: Path):
    output = world / "extended"
    # Few rows, many steps: the labelled rows alone are overfitted, so the measurement finds a gain.
    settings = ("--set", "dataset.extend.steps=250", "--set", "dataset.extend.seed=1")
    place = ("--dataset", world / "set", "--from", world / "archive", "--output", output)
    outcome = run("dataset", "extend", *place, *settings, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    measured = found["measured"]
    assert measured["micro_f1"] > 0.7
    assert measured["gain"] > measured["error"] > 0
    data, before = LabelledDataset.open(str(output)), LabelledDataset.open(str(world / "set"))
    assert found["added"] == SIDE * SIDE - 1  # without the tile that the dataset holds
    assert len(data) == len(before) + found["added"]
    assert np.array_equal(data.images[: len(before)], before.images)
    assert np.array_equal(data.soft_labels[: len(before)], before.labels)
    assert set(data.split[len(before) :]) == {"train"}
    assert np.array_equal(data.labelled("train"), before.indices("train"))  # truth to score with
    archive = Archive.open(str(world / "archive")).read_all(["tile_key", "window"])
    place_of = dict(zip(archive["tile_key"], range(SIDE * SIDE), strict=True))
    truth = np.load(world / "truth.npy")
    added = [place_of[key] for key in data.rows["tile_key"][len(before) :]]
    agreement = (data.labels[len(before) :] == truth[added]).mean()
    assert agreement > 0.75
    trained = run(
        *("train", "--dataset", output, "--output", world / "run", "--epochs", "1"),
        *("--set", "training.batch_size=32", "--set", "training.device=cpu"),
    )
    assert trained.code == 0, trained.err


def test_labels_that_say_nothing_of_the_tiles_are_refused(world: Path):
    rng = np.random.default_rng(3)
    images = tiles(rng, 110)[0]
    labels = (rng.random((110, CLASSES)) < 0.4).astype(np.uint8)
    write_dataset(world / "noise", images, labels, "elsewhere/0/0")
    place = ("--dataset", world / "noise", "--from", world / "archive", "--output", world / "none")
    outcome = run("dataset", "extend", *place, "--set", "dataset.extend.steps=60")
    assert outcome.code == 1
    assert "the probabilities do not pay here: nDCG@50" in outcome.err
    assert not (world / "none").exists()


def test_tiles_are_suggested_labelled_by_people_and_imported(world: Path):
    output, truth = world / "to-label", np.load(world / "truth.npy")
    place = ("--from", world / "archive", "--dataset", world / "set", "--output", output)
    outcome = run("dataset", "suggest", *place, "--rows", "9", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["suggested"], found["candidates"], found["labelled"]) == (9, 143, 110)
    tasks = json.loads((output / "label-studio.json").read_bytes())
    assert [set(task) for task in tasks] == [{"data"}] * 9  # no predictions
    assert len(list((output / "images").iterdir())) == 9
    ground = json.loads((output / "tiles.geojson").read_bytes())["features"]
    assert ground[0]["properties"]["tile_key"] == tasks[0]["data"]["tile_key"]
    columns = Archive.open(str(world / "archive")).read_all(["tile_key"])["tile_key"].tolist()
    for number, (task, feature) in enumerate(zip(tasks, ground, strict=True)):
        labels = truth[columns.index(task["data"]["tile_key"])]
        names = [name for name, flag in zip("abc", labels, strict=True) if flag]
        result = {"type": "choices", "from_name": "labels", "to_name": "image"}
        given = [{**result, "value": {"choices": names}}] if number else []
        task["annotations"] = [{"result": given, "was_cancelled": number == 8}]
        feature["properties"] |= dict(zip("abc", labels.tolist(), strict=True))
    (output / "export.json").write_text(json.dumps(tasks))
    (output / "edited.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": ground})
    )
    source = ("dataset", "import", "--importer", "annotated", "--source", output)
    joined = ("--table", "export.json", "--add-to", world / "set", "--dataset", world / "more")
    outcome = run(*source, *joined)
    assert outcome.code == 0, outcome.err
    data, before = LabelledDataset.open(str(world / "more")), LabelledDataset.open(world / "set")
    assert len(data) == len(before) + 8  # without the task that was skipped
    assert np.array_equal(data.images[: len(before)], before.images)
    assert not data.is_soft.any()
    assert set(data.split[len(before) :]) == {"train"}
    rows = [columns.index(key) for key in data.rows["tile_key"][len(before) :]]
    expected = truth[rows] * (np.arange(8) > 0)[:, None]  # the first has no label
    assert np.array_equal(data.labels[len(before) :], expected)
    alone = ("--table", "edited.geojson", "--dataset", world / "first")
    outcome = run(*source, *alone)
    assert outcome.code == 0, outcome.err
    data = LabelledDataset.open(str(world / "first"))
    rows = [columns.index(key) for key in data.rows["tile_key"]]
    assert np.array_equal(data.labels, truth[rows])
    bands = np.load(world / "pixels.npy")[rows]
    assert np.array_equal(data.images, bands.astype(np.float32))  # of the scene, not the picture
    twice = run("dataset", "suggest", *place[:-1], f"{place[-1]}2", "--class", "water")
    assert twice.code == 2
    assert "leave --class out" in twice.err
    again = run("dataset", "suggest", *place)
    assert again.code == 2
    assert "choose another folder" in again.err


def test_rows_of_probabilities_are_suggested(world: Path):
    rng = np.random.default_rng(5)
    images, labels = tiles(rng, 30)
    soft = np.where(np.arange(30)[:, None] < 20, labels, labels * 0.75).astype(np.float32)
    rows = {"source": [str(i) for i in range(30)], "split": ["train"] * 30}
    with DatasetWriter(str(world / "half"), bands=BANDS, classes=("a", "b", "c")) as writer:
        writer.append(images, soft, rows)
        writer.finish()
    place = ("--dataset", world / "half", "--encoder", world / "bundle", "--output", world / "rows")
    outcome = run("dataset", "suggest", *place, "--rows", "4", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["suggested"], found["candidates"], found["labelled"]) == (4, 10, 20)
    coco = json.loads((world / "rows/coco.json").read_bytes())
    coco["annotations"] = [
        {"id": i, "image_id": image["id"], "category_id": 2}
        for i, image in enumerate(coco["images"])
    ]
    (world / "rows/coco-labelled.json").write_text(json.dumps(coco))
    source = ("--source", world / "rows", "--table", "coco-labelled.json")
    target = ("--add-to", world / "half", "--dataset", world / "half2")
    outcome = run("dataset", "import", "--importer", "annotated", *source, *target)
    assert outcome.code == 0, outcome.err
    data = LabelledDataset.open(str(world / "half2"))
    assert len(data) == 30  # a labelled row takes the place of the row of probabilities
    assert data.is_soft.tolist() == [False] * 20 + [True] * 6 + [False] * 4
    assert data.labels[-4:].tolist() == [[0, 1, 0]] * 4
