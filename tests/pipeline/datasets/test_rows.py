"""Imports that are done already: only while every file is as it was written."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.rows import Rows, write_rows
from storage.dataset import DatasetInfo, LabelledDataset
from storage.location import Location
from storage.progress import ignore
from tests.support.object_store import MotoS3

ROWS = Rows(
    sources=("a", "b"),
    groups=("a", "b"),
    splits=("train", "val"),
    bands=("red",),
    classes=("x", "y"),
    resolution_m=None,
    origin={"importer": "test"},
)


def imported(uri: str | Location, read: list[int]) -> DatasetInfo:
    def row(number: int) -> tuple[np.ndarray, np.ndarray]:
        read.append(number)
        return np.full((1, 4, 4), number, np.float32), np.eye(2, dtype=np.uint8)[number]

    return write_rows(uri, ROWS, row, ignore)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_importing_again_mends_every_file(tmp_path: Path, damage: str):
    uri, read = str(tmp_path / "set"), list[int]()
    first = imported(uri, read)
    for file in sorted((tmp_path / "set").iterdir()):
        again = imported(uri, read := [])
        assert again == first
        assert read == []
        data = file.read_bytes()
        if damage == "delete":
            file.unlink()
        else:
            file.write_bytes(
                data[:-3] + (b"" if damage == "cut" else bytes([data[-3] ^ 1]) + data[-2:])
            )
        imported(uri, read := [])
        assert read == [0, 1], file
        assert LabelledDataset.open(uri).info == first


def test_importing_again_mends_an_object(moto_s3: MotoS3):
    uri = moto_s3.location("sets", "again")
    imported(uri, [])
    file = uri / "labels.npy"
    file.write(file.read()[:-1] + b"\7")
    imported(uri, read := [])
    assert read == [0, 1]
    imported(uri, read := [])
    assert read == []
