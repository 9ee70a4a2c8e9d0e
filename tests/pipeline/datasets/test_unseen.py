"""Queries of scene classes that training never had: which they are, or why it is not known."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.archive_tiles import block_of
from pipeline.datasets.unseen import scene_classes, unseen_queries
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter

GROUPS = ["Town", "Sea"] * 10 + ["Dam"] * 8 + ["Pier"] * 6 + ["Lock"]
SPLITS = ["train"] * 20 + ["test"] * 7 + ["val"] + ["test"] * 7
COLUMNS = {"group": GROUPS, "split": SPLITS}


def _dataset(folder: Path, **columns: list[str]) -> LabelledDataset:
    count = len(columns["split"])
    with DatasetWriter(str(folder / "set"), bands=("b1",), classes=("a",)) as writer:
        rows = {"source": [str(i) for i in range(count)], **columns}
        writer.append(np.ones((count, 1, 4, 4), np.float32), np.ones((count, 1), np.uint8), rows)
        writer.finish()
    return LabelledDataset.open(str(folder / "set"))


def _unseen(dataset: LabelledDataset, learned: frozenset[str] | None) -> tuple[list[str], str]:
    queries, items = dataset.labelled("test"), dataset.labelled("train", "val")
    is_unseen_Q, note = unseen_queries(dataset, queries, items, learned)
    return dataset.rows["group"].to_numpy()[queries[is_unseen_Q]].tolist(), note


def test_a_class_is_unseen_by_its_name_and_needs_a_second_row(tmp_path: Path):
    dataset = _dataset(tmp_path, **COLUMNS)
    found, note = _unseen(dataset, frozenset({"town", "sea"}))
    assert found == ["Dam"] * 7 + ["Pier"] * 6  # a single lock would have nothing to find
    assert note == "Training had no scene class of the name: Dam, Pier."
    assert _unseen(dataset, frozenset({"dam"}))[0] == ["Pier"] * 6


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (None, "is not known"),
        (frozenset({"dam", "pier"}), "Training had every scene class of the queries"),
    ],
)
def test_the_note_says_why_there_are_none(tmp_path: Path, learned, said: str):
    found, note = _unseen(_dataset(tmp_path, **COLUMNS), learned)
    assert (found, said in note) == ([], True)


def test_few_queries_are_named_and_not_scored(tmp_path: Path):
    few = _dataset(tmp_path, group=GROUPS[:20] + ["Dam"] * 4, split=SPLITS[:24])
    found, note = _unseen(few, frozenset({"town", "sea"}))
    assert found == []
    assert "lacked the scene classes Dam, of fewer than 5 queries" in note


def test_blocks_of_ground_and_single_images_are_no_scene_classes(tmp_path: Path):
    keys = [f"epsg32632-10-16/{2003 + i}/-30000" for i in range(12)]
    splits = ["train", "val", "test"] * 4
    blocks = _dataset(
        tmp_path / "a", group=[block_of(k, 4) for k in keys], tile_key=keys, split=splits
    )
    assert scene_classes(blocks) is None
    assert "no scene classes" in _unseen(blocks, frozenset({"town"}))[1]
    images = _dataset(tmp_path / "b", group=[str(i) for i in range(12)], split=splits)
    assert scene_classes(images) is None
