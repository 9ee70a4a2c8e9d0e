"""Metrics of a training run per epoch: ``history.csv`` and a TensorBoard log.

Both hold the same figures. The table is rewritten after each epoch. The TensorBoard log is appended
to, and a run that continues from a checkpoint hides the later epochs of the log.
"""

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.location import Location

Row = dict[str, float]
_GROUPS = {
    "loss": "train",
    "learning_rate": "train",
    "images_per_s": "speed",
    "train_s": "speed",
    "evaluate_s": "speed",
}
"""Heading of each figure in TensorBoard; all others are validation scores."""


class TrainingLog:
    """The rows of a run, one per epoch, and the files with these rows.

    Parameters
    ----------
    history, board
        The CSV file, and the folder of the TensorBoard log. A remote log is written to the local
        disk and copied after each epoch.
    """

    def __init__(self, history: Location, board: Location) -> None:
        self._history, self._board_folder = history, board
        self._board: _Board | None = None
        self._written_epoch = 0.0
        self.rows: list[Row] = []

    def resume(self, rows: list[Row]) -> None:
        """Continue after these rows; all rows but the last are already in the files."""
        self.rows = rows
        self._written_epoch = rows[-1]["epoch"] - 1 if rows else 0.0

    def add(self, row: Mapping[str, float]) -> None:
        """Append the figures of an epoch, including ``epoch``."""
        self.rows.append(dict(row))

    def write(self) -> None:
        """Bring both files up to date; only one worker may call this."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "epoch": int(row["epoch"])} for row in self.rows)
        self._history.write(text.getvalue().encode())
        new = [row for row in self.rows if row["epoch"] > self._written_epoch]
        if new:
            self._board = self._board or _Board(self._board_folder)
            self._board.write(new)
            self._written_epoch = new[-1]["epoch"]

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self._board is not None:
            self._board.close()
            self._board = None


class _Board:
    """The event file of one process, created with the first row."""

    def __init__(self, target: Location) -> None:
        self._target = target
        self._writer: Any = None
        self._scratch = None if target.is_local else tempfile.TemporaryDirectory(prefix="skysift-")
        self._folder = Path(self._scratch.name) if self._scratch else target.path

    def write(self, rows: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import; one worker writes

        if self._writer is None:
            # A restart from an earlier checkpoint writes these epochs again: hide the old values.
            first = int(rows[0]["epoch"])
            self._writer = SummaryWriter(str(self._folder), purge_step=first)
        for row in rows:
            for name in row.keys() - {"epoch"}:
                tag = f"{_GROUPS.get(name, 'val')}/{name}"
                self._writer.add_scalar(tag, row[name], int(row["epoch"]))
        self._writer.flush()
        if self._scratch:
            for path in self._folder.iterdir():
                (self._target / path.name).upload(path)

    def close(self) -> None:
        self._writer.close()
        if self._scratch:
            self._scratch.cleanup()
