"""The TensorBoard log has the figures of the table, also after a restart."""

import csv
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.training.log import TrainingLog
from storage.location import Location


def _rows(count: int, first: int = 1) -> list[dict[str, float]]:
    return [
        {
            "epoch": float(epoch),
            "loss": 1 / epoch,
            "learning_rate": 0.1 * epoch,
            "images_per_s": 50.0 + epoch,
            "train_s": 2.0,
            "nDCG@50": 0.1 * epoch,
        }
        for epoch in range(first, first + count)
    ]


def _write(folder: Path, rows, *, before=()) -> None:
    target = Location(str(folder))
    log = TrainingLog(target / "history.csv", target / "tensorboard")
    log.resume(list(before))
    for row in rows:
        log.add(row)
        log.write()
    log.close()


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a TensorBoard log, as TensorBoard itself reads it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


TAGS = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "speed/images_per_s": "images_per_s",
    "speed/train_s": "train_s",
    "val/nDCG@50": "nDCG@50",
}


def _same(folder: Path) -> None:
    """Table and log hold the same figures."""
    with (folder / "history.csv").open() as stream:
        table = list(csv.DictReader(stream))
    shown = board(folder / "tensorboard")
    assert set(shown) == set(TAGS)
    for tag, column in TAGS.items():
        assert [step for step, _ in shown[tag]] == [int(row["epoch"]) for row in table]
        expected = [float(row[column]) for row in table]
        assert [value for _, value in shown[tag]] == pytest.approx(expected)


def test_tensorboard_reads_the_figures_of_the_table(tmp_path: Path):
    _write(tmp_path, _rows(3))
    _same(tmp_path)


def test_a_run_that_goes_on_hides_what_it_does_again(tmp_path: Path):
    _write(tmp_path, _rows(4))
    changed = [{**row, "loss": 9.0} for row in _rows(3, first=3)]
    _write(tmp_path, changed, before=_rows(2))
    _same(tmp_path)
    assert board(tmp_path / "tensorboard")["train/loss"][2:] == [(3, 9.0), (4, 9.0), (5, 9.0)]


def test_a_log_in_an_object_store(tmp_path: Path, moto_s3):
    history, board = moto_s3.location("history.csv"), moto_s3.location("tensorboard")
    log = TrainingLog(history, board)
    for row in _rows(2):
        log.add(row)
        log.write()
    for file in board.list():
        file.download(tmp_path / "tensorboard" / file.uri.rpartition("/")[2])
    history.download(tmp_path / "history.csv")
    log.close()
    _same(tmp_path)
