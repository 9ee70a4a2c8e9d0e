"""Label tables: CSV text, read as text.

Names stay as they are written (``007`` is not 7); only the columns of classes become numbers.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.values import alike

_SEPARATORS = "\t;,"
_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells by column, without blanks around them, and the line of each row in the file."""

    where: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def flags(self, names: Sequence[str]) -> NDArray[np.uint8]:
        """Return columns of 0 and 1 (also true and false) as (rows, columns).

        Raises
        ------
        ConfigError
            A cell holds another value.
        """
        out = np.zeros((len(self.lines), len(names)), np.uint8)
        for number, name in enumerate(names):
            for row, cell in enumerate(self.columns[name]):
                flag = _FLAGS.get(cell.lower())
                if flag is None:
                    raise ConfigError(
                        f"{self.where}, line {self.lines[row]}: column {name} holds {cell!r}, "
                        "which is not 0 or 1; the columns of classes hold 0 and 1 only"
                    )
                out[row, number] = flag
        return out


def read_table(data: bytes, where: str, key: str) -> Table:
    """Read a table with a header; comma, semicolon or tab separate its cells.

    Parameters
    ----------
    data, where
        Content of the file, and its name in messages.
    key
        A column that the table has to have.

    Raises
    ------
    ConfigError
        The text is not UTF-8 (or UTF-16 with its mark), a row has other cells than the header, the
        column ``key`` is missing, or a column has no name or the name of another column.
    """
    text = _decoded(data, where)
    separator = next((mark for mark in _SEPARATORS if key in _cells(text, mark)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ConfigError(
            f"{where}, line {reader.line_num}, is not a CSV table ({error}); correct it"
        ) from error
    if not rows:
        raise ConfigError(f"{where} is not a CSV table: it is empty; fill it")
    names, *rows = rows
    while names and not names[-1]:  # separators at the end of the lines
        names.pop()
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) < len(names) or any(row[len(names) :]):
            raise ConfigError(
                f"{where}, line {line} has {len(row)} cells, the header {len(names)}; correct it"
            )
    _check_names(names, where)
    if key not in names:
        raise ConfigError(f"{where} has no column `{key}`; it has {', '.join(names)}")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    return Table(where, columns, lines[1:])


def first_twice(names: Iterable[str]) -> tuple[int, int] | None:
    """Return the positions of the first name that occurs again, None when all differ.

    Examples
    --------
    >>> first_twice(["a", "b", "a"])
    (0, 2)
    """
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in seen:
            return seen[name], position
        seen[name] = position
    return None


def _cells(text: str, separator: str) -> list[str]:
    """Return the cells of the first line."""
    return [cell.strip(' "') for cell in (text.splitlines() or [""])[0].split(separator)]


def _decoded(data: bytes, where: str) -> str:
    utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not a CSV table in UTF-8 ({error.reason} at byte {error.start}); "
            "save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ConfigError(f"{where} is not a CSV table: it holds zero bytes; save it as UTF-8")
    return text


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse columns without a name, and columns that seem to be one column twice."""
    for number, name in enumerate(names, start=1):
        if not name or name.startswith("Unnamed:"):  # as pandas calls such a column
            raise ConfigError(f"{where}: column {number} has no name; name it or remove it")
    if (pair := first_twice(map(alike, names))) is not None:
        first, second = (names[position] for position in pair)
        raise ConfigError(
            f"{where} has the column {first!r} twice"
            f"{f' (also as {second!r})' if second != first else ''}; keep one of the columns"
        )
    known = set(map(alike, names))
    for name in names:
        # pandas writes the second column `water` of a table as `water.1`.
        stem, _, suffix = name.rpartition(".")
        if suffix.isdecimal() and alike(stem) in known and any(map(str.isalpha, stem)):
            raise ConfigError(
                f"{where}: the columns {stem!r} and {name!r} seem to be one column twice, renamed "
                "by a program; keep one of the columns"
            )
