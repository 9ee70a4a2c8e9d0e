"""Uses of marks: the tiles to mark next, and every place with its probability.

The mathematics is that of :mod:`pipeline.search.marks`; this module asks the index for rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.search.hits import Hits
from pipeline.search.marks import (
    CANDIDATES,
    Calibration,
    Expected,
    Float64,
    calibrate,
    expect,
    marks_in_words,
    next_marks,
)
from pipeline.search.query import Query, blended, units
from pipeline.search.searcher import Searcher, Where
from storage.errors import ConfigError
from storage.geometry import Mask
from storage.index.filter import Filter

RIGHT, WRONG = "right", "wrong"
"""The values of the column ``mark``."""
THRESHOLD = 0.5
"""Least probability of a detection, where nothing else is said."""
REVIEWED = 20
"""Tiles of a review, where nothing else is said."""
DETECTED_ROWS = 100_000
"""Most rows of a region whose probabilities are computed, where nothing else is said."""
_FLOOR = 0.01
_DEEPEST = 10_000


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The rows of a region with their probabilities, and the expectation at a threshold.

    Attributes
    ----------
    hits
        Every row of the region whose probability is 1 % or more, the best first; rows with a mark
        are among them.
    probability
        (n,) of each, that it is right.
    mark
        ``right`` or ``wrong`` of each row that was marked, else None.
    threshold
        Least probability of a detection.
    calibration, expected
        Probabilities of scores, and the expectation at the threshold among the unmarked rows.
    floor, below
        Least probability of a row that was looked at, and the rows of the region that were not, as
        theirs is lower.
    review
        Positions of the unmarked rows whose probability is nearest to the threshold, nearest first.
    """

    hits: Hits
    probability: Float64
    mark: tuple[str | None, ...]
    threshold: float
    calibration: Calibration
    expected: Expected
    floor: float
    below: int
    review: npt.NDArray[np.int64]

    @property
    def detected(self) -> Mask:
        """The mask (n,) of the detections: marked as right, or probable and not marked as wrong."""
        marks = np.array(self.mark, dtype=object)
        return np.asarray(
            (marks == RIGHT) | ((self.probability >= self.threshold) & (marks != WRONG))
        )

    @property
    def unmarked(self) -> npt.NDArray[np.int64]:
        """Positions of the rows without a mark."""
        return np.flatnonzero([name is None for name in self.mark])

    def to_arrow(self, *, everything: bool = False, most: int | None = None) -> pa.Table:
        """Return the detections as :meth:`pipeline.search.hits.Hits.to_arrow` returns hits.

        The columns ``probability`` and ``mark`` come last.

        Parameters
        ----------
        everything
            Return all rows in place of the detections.
        most
            Return the best of them, at most as many.
        """
        keep = np.ones(len(self.probability), dtype=np.bool_) if everything else self.detected
        return self.rows_at(np.flatnonzero(keep)[:most])

    def to_review(self) -> pa.Table:
        """Return the rows to review, nearest to the threshold first."""
        table = self.rows_at(np.sort(self.review))
        return _ranked(table.take(pa.array(np.argsort(np.argsort(self.review)))))

    def marked(self, searcher: Searcher) -> pa.Table:
        """Return the marks that are tiles of the index, as hits with probability and mark.

        Raises
        ------
        SearchUnavailableError
            A shard did not answer.
        """
        (query,) = self.hits.queries
        return marked_tiles(searcher, query, self.calibration)

    def rows_at(self, positions: npt.NDArray[np.int64]) -> pa.Table:
        """Return rows by their ascending positions; only these are read and outlined."""
        keep = np.zeros(self.hits.rows.shape, dtype=np.bool_)
        keep[0, positions] = True
        marks = tuple(self.mark[position] for position in positions.tolist())
        hits = self.hits.where(keep, len(positions))
        return _with(hits.to_arrow(), marks, self.probability[positions])


def marked_tiles(
    searcher: Searcher, query: Query, calibration: Calibration | None = None
) -> pa.Table:
    """Return the marks of a query that are tiles of the index, as hits with the column ``mark``.

    Parameters
    ----------
    searcher, query
        The index, and a query with its marks.
    calibration
        Adds the column ``probability``.

    Raises
    ------
    SearchUnavailableError
        A shard did not answer.
    """
    marks = marks_by_row(query)
    tiles = [one for one in (*query.right, *query.wrong) if one.tile and one.row is not None]
    hits = tiles_as_hits(searcher, query, [(str(one.tile), str(one.scene)) for one in tiles])
    known = np.isin(hits.rows, list(marks))
    hits = hits.where(known, int(known.sum()))
    names = tuple(marks[row] for row in hits.rows[0].tolist())
    probability = None if calibration is None else calibration.probability(hits.scores[0])
    return _with(hits.to_arrow(), names, probability)


def tiles_as_hits(searcher: Searcher, query: Query, tiles: Sequence[tuple[str, str]]) -> Hits:
    """Return tiles by key and scene as hits of a query; those that the index lacks are left out.

    Raises
    ------
    SearchUnavailableError
        A shard did not answer.
    """
    where = Filter(
        tiles=tuple(sorted({key for key, _ in tiles})),
        scenes=tuple(sorted({scene for _, scene in tiles})),
    )
    most = max(len(where.tiles) * len(where.scenes), 1)
    hits = searcher.answer(query, min(most, searcher.manifest.rows), where, keep_own=True)
    table, wanted = hits.to_arrow(), set(tiles)
    found = zip(table["tile_key"].to_pylist(), table["scene"].to_pylist(), strict=True)
    keep = np.zeros(hits.rows.shape, dtype=np.bool_)
    keep[0, : len(table)] = [key in wanted for key in found]
    return hits.where(keep, int(keep.sum()))


def suggest(searcher: Searcher, query: Query, count: int = 10, where: Where = None) -> Hits:
    """Return the tiles whose marks would teach a query most, the best hits first.

    Parameters
    ----------
    searcher, where
        The index, and which of its rows may be suggested.
    query
        Of :func:`pipeline.search.query.learn`, with its marks.
    count
        Tiles to mark.

    Raises
    ------
    ConfigError
        The count is below 1, or the filter is invalid.
    NotFoundError
        The archive is not there.
    SearchUnavailableError
        A shard did not answer.

    Notes
    -----
    They are chosen among the best hits, as deep as the boundary between right and wrong is expected
    to lie: at least 1,000 and at most 10,000.
    """
    if count < 1:
        raise ConfigError(f"suggest: count is {count}; give at least 1")
    query = blended(searcher, query)
    vector = query.weights
    right, wrong = units(query.right or (query,)) @ vector, units(query.wrong)
    against = wrong @ vector if len(wrong) else np.empty(0)
    sample = searcher.unlabelled(query.rows) @ vector
    low = against.mean() if len(against) else sample.min(initial=1.0)
    share = (sample >= (right.mean() + low) / 2).mean() if len(sample) else 0.0
    depth = int(np.clip(2 * share * searcher.manifest.rows, CANDIDATES, _DEEPEST))
    hits = searcher.answer(query, min(depth, searcher.manifest.rows), where)
    present = hits.rows[0][hits.rows[0] >= 0]

    def read(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        vectors = searcher.archive.read(present[positions], ["embedding"])["embedding"]
        return np.asarray(vectors, dtype=np.float32)

    keep = np.zeros(hits.rows.shape, dtype=np.bool_)
    keep[0, next_marks(hits.scores[0][: len(present)], right, against, read, count)] = True
    return hits.where(keep, count)


def calibration_of(searcher: Searcher, query: Query) -> Calibration:
    """Return the calibration of the scores of a query, from its marks.

    Raises
    ------
    ConfigError
        The query was not learned from marks, or there are fewer than three of a kind.
    """
    if not query.learned:
        raise ConfigError(
            f"detections: the query has {marks_in_words(len(query.right), len(query.wrong))}; give "
            "at least 10, 3 of each, so that scores have a probability"
        )
    return calibrate(units(query.right), units(query.wrong), searcher.unlabelled(query.rows))


def detect(
    searcher: Searcher,
    query: Query,
    *,
    threshold: float = THRESHOLD,
    where: Where = None,
    review: int = REVIEWED,
    limit: int = DETECTED_ROWS,
    calibration: Calibration | None = None,
) -> Detections:
    """Return the rows of a region with the probability of each.

    Parameters
    ----------
    searcher, query
        The index, and a query that was learned from marks.
    threshold
        Least probability of a detection, between 0 and 1.
    where
        The region.
    review
        Tiles to review.
    limit
        Most rows; ``hits.truncated`` tells whether more have a probability of 1 % or more.
    calibration
        That of a saved search; made from the marks of the query by default.

    Raises
    ------
    ConfigError
        There are too few marks, or the threshold is not between 0 and 1.
    NotFoundError
        The archive is not there.
    SearchUnavailableError
        A shard did not answer.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"detections: threshold is {threshold}; give a number between 0 and 1")
    known = calibration or calibration_of(searcher, query)
    floor = min(_FLOOR, threshold)
    lowest = float(np.clip(known.score_at(floor), -1, 1))
    hits = searcher.answer(query, where=where, min_score=lowest, limit=limit, keep_own=True)
    rows = hits.rows[0][hits.rows[0] >= 0].tolist()
    probability = known.probability(hits.scores[0][: len(rows)])
    marks = marks_by_row(query)
    mark = tuple(marks.get(row) for row in rows)
    unmarked = np.flatnonzero([name is None for name in mark])
    distance = np.abs(probability[unmarked] - threshold)
    region = sum(one.selected for one in searcher.explain(where=where).passes)
    return Detections(
        hits=hits,
        probability=probability,
        mark=mark,
        threshold=threshold,
        calibration=known,
        expected=expect(known, hits.scores[0][unmarked], threshold),
        floor=float(probability[-1]) if hits.truncated else floor,
        below=region - len(rows),
        review=unmarked[np.argsort(distance, kind="stable")[:review]],
    )


def marks_by_row(query: Query) -> dict[int, str]:
    """Return ``right`` or ``wrong`` of each archive row that a query was made of."""
    groups = ((RIGHT, query.right), (WRONG, query.wrong))
    return {one.row: mark for mark, group in groups for one in group if one.row is not None}


def _with(
    table: pa.Table, mark: tuple[str | None, ...], probability: Float64 | None = None
) -> pa.Table:
    if probability is not None:
        table = table.append_column("probability", pa.array(probability, pa.float64()))
    return table.append_column("mark", pa.array(mark, pa.string()))


def _ranked(table: pa.Table) -> pa.Table:
    """Return hits with ranks that count from 1."""
    place = table.schema.get_field_index("rank")
    return table.set_column(place, "rank", pa.array(np.arange(1, len(table) + 1), pa.int32()))
