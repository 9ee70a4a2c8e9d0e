"""Accuracy checks: a random sample of the rows of a detection that a person marks.

Marks that were made to find more are where rows are hard or good, so they say little about the rows
without a mark. A stratified random sample does, whatever the query and its calibration are worth:
the mathematics is in :mod:`pipeline.search.marks`. The marks of a check are not those of the query.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.search.detections import RIGHT, WRONG, Detections, tiles_as_hits
from pipeline.search.marks import Accuracy, Stratum, accuracies, draw, stratify
from pipeline.search.query import Query
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from storage.formats import read_csv_hits, read_records
from storage.location import Location

CHECKED = 60
"""Tiles of a check, where nothing else is said."""
LEAST_CHECKED = 20
"""Fewest tiles of a check."""
_MOST_ROWS = 2**53


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedTile:
    """A tile that was drawn, with the number of its stratum from 1; ``mark`` is None before."""

    tile: str
    scene: str
    stratum: int
    probability: float
    mark: Literal["right", "wrong"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A stratified random sample of the rows without a mark, and what a person says of its tiles.

    Attributes
    ----------
    strata
        All rows in question: those at or above the threshold, then three parts of those below.
    tiles
        The drawn tiles, in the order in which they are marked. Any number of them may have a mark.
    below
        Rows of the region that are not in question, as they are less probable; None in a check of
        before they were counted.
    """

    strata: tuple[Stratum, ...]
    tiles: tuple[CheckedTile, ...]
    below: int | None = None

    def __post_init__(self) -> None:
        if not self.strata or not all(1 <= one.rows <= _MOST_ROWS for one in self.strata):
            raise ConfigError(
                f"accuracy check: a stratum has no rows or over {_MOST_ROWS:,}; draw a new check"
            )
        if self.below is not None and not 0 <= self.below <= _MOST_ROWS:
            raise ConfigError(
                f"accuracy check: {self.below:,} tiles are below its strata; draw a new check"
            )
        numbers = {tile.stratum for tile in self.tiles}
        if not numbers <= set(range(1, len(self.strata) + 1)):
            raise ConfigError(
                f"accuracy check: a tile is of stratum {max(numbers)}, and there are "
                f"{len(self.strata)}"
            )
        names = {(tile.tile, tile.scene) for tile in self.tiles}
        counts = np.sum([self._marks(RIGHT), self._marks(WRONG)], axis=0)
        if len(names) < len(self.tiles) or np.any(counts > [one.rows for one in self.strata]):
            raise ConfigError("accuracy check: a tile is there twice; mark each tile once")

    @classmethod
    def of(cls, found: Detections, count: int = CHECKED) -> "Check":
        """Draw tiles of a detection; equal detections give equal tiles.

        Parameters
        ----------
        found
            The detections, whose rows without a mark are in question.
        count
            Tiles, at least 20: half of them at or above the threshold.

        Raises
        ------
        ConfigError
            The count is below 20, or no row without a mark reaches the threshold.
        """
        if count < LEAST_CHECKED:
            raise ConfigError(
                f"accuracy check: {count} tiles tell too little; give {LEAST_CHECKED} or more"
            )
        strata = _strata(found)
        positions, numbers = draw(strata, count)
        rows = found.unmarked[positions]
        order = np.argsort(rows)
        table = found.rows_at(rows[order])
        keys = zip(
            table["tile_key"].to_pylist(), table["scene"].to_pylist(),
            numbers[order].tolist(), found.probability[rows[order]].tolist(), strict=True,
        )  # fmt: skip
        tiles = [
            CheckedTile(tile=tile, scene=scene, stratum=number + 1, probability=probability)
            for tile, scene, number, probability in keys
        ]
        drawn = tuple(tiles[at] for at in np.argsort(order))
        return cls(strata=tuple(strata), tiles=drawn, below=found.below)

    def with_marks(self, other: "Check") -> "Check":
        """Return the check with the marks that another one has for its tiles."""
        marks = {(one.tile, one.scene): one.mark for one in other.tiles}
        tiles = [replace(one, mark=marks.get((one.tile, one.scene))) for one in self.tiles]
        return replace(self, tiles=tuple(tiles))

    @property
    def marked(self) -> int:
        """The number of tiles with a mark."""
        return sum(tile.mark is not None for tile in self.tiles)

    def accuracy(self) -> list[Accuracy]:
        """Return precision, recall and F1 at the threshold, then those at lower thresholds.

        They are of all rows of the strata. The fewer tiles have a mark, the wider are the
        intervals; tiles without one are taken to be like those of their stratum.
        """
        return accuracies(self.strata, self._marks(RIGHT), self._marks(WRONG))

    @property
    def scope(self) -> str:
        """Which tiles the figures are of, and how many they leave out, for people."""
        rows, floor = sum(one.rows for one in self.strata), 100 * self.strata[-1].lowest
        if self.below == 0:
            return f"The figures are of {_counted(rows)} without a mark, and leave out none."
        others = "those" if self.below is None else _counted(self.below)
        return (
            f"The figures are of {_counted(rows)} without a mark from {floor:.2g} % on, and leave "
            f"out {others} below: recall does not count right tiles there."
        )

    def summary(self) -> dict[str, Any]:
        """Return what the check measures as plain values.

        These are the numbers of its ``tiles`` and of those ``marked``, those ``below`` and its
        ``scope`` in words, and the ``accuracy`` at the threshold first, then at lower ones; the
        last has all rows in question.
        """
        accuracy = [asdict(one) for one in self.accuracy()]
        return {
            "tiles": len(self.tiles),
            "marked": self.marked,
            "below": self.below,
            "scope": self.scope,
            "accuracy": accuracy,
        }

    def fits(self, found: Detections) -> bool:
        """Tell whether the check is one of these detections, and not of others."""
        try:
            strata = _strata(found)
        except ConfigError:
            return False
        ours, theirs = (
            [(one.rows, one.lowest, one.expected) for one in each] for each in (self.strata, strata)
        )
        return len(ours) == len(theirs) and bool(np.allclose(ours, theirs, rtol=1e-5))

    def to_arrow(self, searcher: Searcher, query: Query) -> pa.Table:
        """Return the tiles in their order, as hits of a query with the columns of a check.

        These are ``probability``; ``stratum`` (from 1), ``stratum_rows``, ``stratum_from`` (its
        least probability), ``stratum_expected``; ``rows_below``; ``detected``; and ``mark``.

        Raises
        ------
        SearchUnavailableError
            A shard did not answer.
        """
        hits = tiles_as_hits(searcher, query, [(one.tile, one.scene) for one in self.tiles])
        table = hits.to_arrow()
        keys = zip(table["tile_key"].to_pylist(), table["scene"].to_pylist(), strict=True)
        places = {key: at for at, key in enumerate(keys)}
        tiles = [one for one in self.tiles if (one.tile, one.scene) in places]
        table = table.take([places[one.tile, one.scene] for one in tiles])
        strata = [self.strata[one.stratum - 1] for one in tiles]
        ranks = pa.array(np.arange(1, len(tiles) + 1), pa.int32())
        table = table.set_column(table.schema.get_field_index("rank"), "rank", ranks)
        for name, values in {
            "probability": pa.array([one.probability for one in tiles], pa.float64()),
            "stratum": pa.array([one.stratum for one in tiles], pa.int32()),
            "stratum_rows": pa.array([one.rows for one in strata], pa.int64()),
            "stratum_from": pa.array([one.lowest for one in strata], pa.float64()),
            "stratum_expected": pa.array([one.expected for one in strata], pa.float64()),
            "rows_below": pa.array([self.below] * len(tiles), pa.int64()),
            "detected": pa.array([one.stratum == 1 for one in tiles], pa.bool_()),
            "mark": pa.array([one.mark for one in tiles], pa.string()),
        }.items():
            table = table.append_column(name, values)
        return table

    def _marks(self, mark: str) -> list[int]:
        numbers = [one.stratum - 1 for one in self.tiles if one.mark == mark]
        counts: list[int] = np.bincount(numbers, minlength=len(self.strata)).tolist()
        return counts


def read_check(uri: str | Location) -> Check:
    """Read the file of a check, as `skysift detect --check` writes it.

    Parameters
    ----------
    uri
        GeoJSON, GeoParquet or CSV with the columns of :meth:`Check.to_arrow`; ``mark`` is
        ``right``, ``wrong`` or empty.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        It is no accuracy check, or a mark is something else.
    """
    place = Location.of(uri)
    is_csv = PurePosixPath(place.uri).suffix.lower() == ".csv"
    records = read_csv_hits(place.read()) if is_csv else read_records(place)
    try:
        return _of_records(records)
    except KeyError as error:
        reason = f"it has no column {error.args[0]!r}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise ConfigError(
        f"{place} is no accuracy check: {reason}; write one with `skysift detect --check N "
        "--check-out FILE`, and fill its column mark"
    )


def _of_records(records: Sequence[dict[str, Any]]) -> Check:
    """Return the check of the rows of a file.

    Raises
    ------
    KeyError, TypeError, ValueError
        The rows are those of something else.
    """
    strata: dict[int, Stratum] = {}
    tiles = []
    for record in records:
        number = int(record["stratum"])
        stratum = Stratum(
            rows=int(record["stratum_rows"]),
            lowest=float(record["stratum_from"]),
            expected=float(record["stratum_expected"]),
        )
        if strata.setdefault(number, stratum) != stratum:
            raise ValueError(f"rows of stratum {number} differ in what they say of it")
        tiles.append(
            CheckedTile(
                tile=str(record["tile_key"]),
                scene=str(record["scene"]),
                stratum=number,
                probability=float(record["probability"]),
                mark=_mark(record["mark"]),
            )
        )
    if sorted(strata) != list(range(1, len(strata) + 1)):
        raise ValueError(f"its strata are {sorted(strata)}, which leave out some")
    below = records[0].get("rows_below")
    return Check(
        strata=tuple(strata[number] for number in sorted(strata)),
        tiles=tuple(tiles),
        below=None if below in (None, "") else int(below),
    )


def _counted(tiles: int) -> str:
    return f"{tiles:,} tile{'' if tiles == 1 else 's'}"


def _mark(value: Any) -> Literal["right", "wrong"] | None:
    word = str(value or "").strip().lower()
    if word == RIGHT:
        return "right"
    if word == WRONG:
        return "wrong"
    if word:
        raise ValueError(f"a mark is {value!r:.40}; give right, wrong or nothing")
    return None


def _strata(found: Detections) -> list[Stratum]:
    return stratify(found.probability[found.unmarked], found.threshold, found.floor)
