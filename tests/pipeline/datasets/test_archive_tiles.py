"""The blocks of a dataset's splits, found again in its rows."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.archive_tiles import block_of, blocks_kept_apart, side_of_blocks
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter

KEYS = [f"epsg32632-10-16/{2003 + 3 * i}/{-30000 + 5 * i}" for i in range(12)]


def _dataset(folder: Path, rows: dict[str, list[str]]) -> LabelledDataset:
    with DatasetWriter(str(folder), bands=("b1",), classes=("a",)) as writer:
        splits = ["train", "val", "test"] * 4
        rows = {"source": [f"s{i}" for i in range(12)], "split": splits, **rows}
        writer.append(np.ones((12, 1, 4, 4), np.float32), np.ones((12, 1), np.uint8), rows)
        writer.finish()
    return LabelledDataset.open(str(folder))


@pytest.mark.parametrize("side", [1, 3, 4, 10])
def test_the_ground_of_validation_and_test_is_known_for_any_size_of_blocks(tmp_path: Path, side):
    dataset = _dataset(tmp_path, {"tile_key": KEYS, "group": [block_of(key, side) for key in KEYS]})
    assert side_of_blocks(dataset) == side
    is_apart = blocks_kept_apart(dataset)
    assert all(is_apart(KEYS[i]) for i in range(12) if i % 3)
    assert not is_apart("epsg32632-10-16/0/0")


def test_groups_that_are_no_blocks_keep_nothing_apart(tmp_path: Path):
    dataset = _dataset(tmp_path, {"tile_key": KEYS, "group": [f"town-{i}" for i in range(12)]})
    assert side_of_blocks(dataset) is None
    assert not blocks_kept_apart(dataset)(KEYS[1])
