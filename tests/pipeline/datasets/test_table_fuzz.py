"""Mutated label tables: each is imported, every image under its own name, or refused."""

import io
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.datasets.bigearthnet import _read_table as read_bigearthnet
from pipeline.datasets.folder import import_folder
from pipeline.datasets.published import CLASSES, UC_MERCED, _table_labels
from storage.dataset import LabelledDataset
from tests.support.fuzz import faults_of, mutate_bytes

_IMAGES = 6
_TABLE = "image,split,group,water,forest\n" + "".join(
    f"{n}.png,{('train', 'val', 'test')[n % 3]},g{n},{n % 2},{int(n > 2)}\n" for n in range(_IMAGES)
)
_MARKS = (",", ";", "\t", '"', "\n", "\r\n", "\0", " ", "\ufeff", "é", "0", "1", "2", ".png", "../")


@cache
def images() -> Path:
    """Return a folder of small images."""
    folder = Path(tempfile.mkdtemp(prefix="skysift-table-fuzz-"))
    for n in range(_IMAGES):
        pixels = np.random.default_rng(n).integers(0, 256, (4, 4), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@cache
def published() -> dict[str, bytes]:
    """Return the tables of published datasets."""
    lines = ["\t".join(["IMAGE\\LABEL", *CLASSES])]
    lines += ["\t".join([f"beach{n:02}", *("01"[n % 2] * 17)]) for n in range(3)]
    mat, parquet = io.BytesIO(), io.BytesIO()
    savemat(mat, {"labels": np.zeros((17, 2100), np.uint8)}, do_compression=True)
    pd.DataFrame(
        {"patch_id": ["a_1_2", "a_3_4"], "labels": [["Pastures"], []], "split": ["train", "test"]}
    ).to_parquet(parquet)
    return {
        "a.txt": "\n".join(lines).encode(),
        "a.mat": mat.getvalue(),
        "a.parquet": parquet.getvalue(),
    }


def import_mutated(seed: int) -> None:
    """Import the images with the table of a seed; the pixels of a row are those of its name."""
    rng = random.Random(seed)
    if rng.random() < 0.6:
        text = _TABLE
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(_MARKS) + text[at + rng.randint(0, 1) :]
        data = text.encode(rng.choice(["utf-8", "utf-8", "utf-16", "latin-1"]), "replace")
    else:
        data = mutate_bytes(_TABLE.encode(), rng)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / "images").symlink_to(images())
        (source / "labels.csv").write_bytes(data)
        import_folder(str(source), f"{folder}/set", bands=["grey"])
        found = LabelledDataset.open(f"{folder}/set")
        for name, image in zip(found.rows["source"], found.images, strict=True):
            with Image.open(images() / name) as picture:
                assert np.array_equal(image[0], np.asarray(picture))


def read_published(seed: int) -> None:
    """Read a published table of a seed."""
    rng = random.Random(seed)
    name = rng.choice(sorted(published()))
    data = mutate_bytes(published()[name], rng)
    if name.endswith("parquet"):
        read_bigearthnet(data)
    else:
        _table_labels(UC_MERCED, data, name)


@pytest.mark.parametrize("target", [import_mutated, read_published])
def test_mutated_tables_are_imported_or_refused(target):
    assert faults_of(target, range(80)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", [import_mutated, read_published])
def test_a_thousand_mutated_tables_are_imported_or_refused(target):
    assert faults_of(target, range(1000, 2000)) == []
