"""Change as a query: the tiles of an archive at two periods, ranked by how far they moved.

A place that has a tile in both periods makes a pair: of each period the clearest acquisition, the
newest of equally clear ones. Pairs of the same two scenes are judged by each other, because season,
sensor and light are the same for all of them (:mod:`pipeline.search.movement`); where two scenes
share less than 30 places, pairs of the same two seasons are; then the rest together.

Conditions on the place select the places that are ranked, never those that they are judged by.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.search.movement import (
    BEYOND_USUAL,
    FEWEST_PAIRS,
    SMALLEST_SPREAD,
    SMALLEST_SPREAD_DEGREES,
    centred_angle,
    gain,
    robust_scores,
)
from storage.archive.reader import Archive, Columns
from storage.dates import parse_period
from storage.display import Described
from storage.errors import ConfigError
from storage.formats import located
from storage.geoarrow import tagged
from storage.index.filter import Filter
from storage.index.sidecar import Sidecar, encode_columns, hit_table
from storage.progress import Progress, ProgressSink, ignore
from storage.values import Count, Fraction, as_spec, check_limits

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.search.saved import SavedSearch

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_BLOCK_ROWS = 8192
_COLUMNS = ("row", "grid", "scene", "tile", "bbox", "datetime", "cloud_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeSpec:
    """Two periods to compare, and how many changes are wanted.

    Parameters
    ----------
    before, after
        The periods: a year, month or day, or two of them with a slash between; ``..`` is an open
        end (:func:`storage.dates.parse_period`).
    where
        Conditions. ``max_cloud_fraction`` and ``scenes`` hold for both acquisitions; ``bbox``,
        ``polygon``, ``tiles`` and ``labels`` (of the later acquisition) select the places that are
        ranked. The periods take the place of ``since`` and ``until``.
    k
        Most changes.
    min_score
        Least score; None takes the best ``k``, whatever their score.
    blend
        Weight of the appearance part of vectors of two parts, from 0 (labels only) to 1 (appearance
        only); None for that of the encoder.

    Raises
    ------
    ConfigError
        A value is invalid, or the periods overlap.
    """

    before: str
    after: str
    where: Filter = field(default_factory=Filter)
    k: Count = 100
    min_score: float | None = None
    blend: Fraction | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", Filter.of(self.where))
        check_limits(self, "change")
        if self.where.since or self.where.until:
            raise ConfigError("change: the periods are `before` and `after`; leave since and until")
        ended, began = self.before_rows.until, self.after_rows.since
        if ended is None or began is None or ended >= began:  # type: ignore[operator]
            raise ConfigError(
                f"change: the period before ({self.before}) does not end before the period after "
                f"({self.after}) begins; give two periods in their order, such as 2019 and 2024"
            )

    @property
    def before_rows(self) -> Filter:
        """The conditions on the earlier acquisition of a pair."""
        return self._both(self.before, "change: before")

    @property
    def after_rows(self) -> Filter:
        """The conditions on the later acquisition of a pair."""
        return self._both(self.after, "change: after")

    @property
    def places(self) -> Filter:
        """The conditions on the places that are ranked."""
        return replace(self.where, max_cloud_fraction=None, scenes=())

    def _both(self, period: str, subject: str) -> Filter:
        since, until = parse_period(period, subject)
        clear, scenes = self.where.max_cloud_fraction, self.where.scenes
        return Filter(since=since, until=until, max_cloud_fraction=clear, scenes=scenes)


@dataclass(frozen=True, kw_only=True, repr=False)
class Changes(Described):
    """Places in the order of their change, the largest first.

    Attributes
    ----------
    table
        A row a place. ``row``, ``tile_key``, ``scene``, ``datetime``, ``cloud_fraction``,
        ``labels``, ``bbox`` and ``geometry`` are those of the later acquisition, as hits have
        them; ``before_row``, ``before_scene``, ``before_datetime`` and ``before_cloud_fraction``
        are those of the earlier one. ``moved`` is the angle in degrees (0 to 180), or the gain in
        similarity to a saved search (-2 to 2); ``usual`` its median over the ``pairs`` that the
        place is judged by; ``score`` how many robust standard deviations ``moved`` is above
        ``usual``. ``rank`` counts from 1; ``query`` is 0.
    compared
        Pairs that were judged.
    beyond
        Of them, those of at least :data:`pipeline.search.movement.BEYOND_USUAL`.
    unjudged
        Pairs without the 30 others that a judgement needs.
    snapshot
        Of the archive.
    title
        For people.
    toward
        Whether ``moved`` is a gain in similarity.
    """

    table: pa.Table
    compared: int
    beyond: int
    unjudged: int
    snapshot: str
    title: str
    toward: bool

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.table.to_pylist())

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table

    def to_pandas(self) -> "pd.DataFrame":
        """Return :attr:`table` as a data frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def facts(self) -> dict[str, Any]:
        """Return the number of pairs compared, and the first changes."""
        first = self.table.slice(0, 10).to_pylist()
        return {
            "changes": self.title,
            "pairs compared": self.compared,
            f"with a score of {BEYOND_USUAL} or more": self.beyond,
            "pairs not judged": self.unjudged,
            "snapshot": self.snapshot,
            **{f"{row['rank']}. {row['tile_key']}": round(row["score"], 2) for row in first},
        }


def find_changes(
    archive: Archive,
    spec: ChangeSpec | Mapping[str, Any],
    toward: "SavedSearch | None" = None,
    *,
    progress: ProgressSink = ignore,
) -> Changes:
    """Rank the places of an archive by their change between two periods.

    Parameters
    ----------
    archive
        At the snapshot in question.
    spec
        The periods and conditions; a mapping of its fields will do.
    toward
        Rank by how much more alike to this search the places became. With a ``min_score``, the
        later acquisition has at least this similarity. Filters of the search are not used.
    progress
        Receives the pairs that are done.

    Raises
    ------
    ConfigError
        The conditions or the blend are invalid, or no place can be judged.
    EncoderMismatchError
        The search is of another encoder.

    Notes
    -----
    Reads the metadata of every row and the vectors of the pairs, twice, a block at a time. Memory:
    some 60 bytes a row of the two periods, and one segment's vectors.
    """
    spec = as_spec(ChangeSpec, spec, "change")
    if toward is not None:
        toward.check_encoder(archive.spec.encoder_fingerprint, f"archive {archive.uri}")
    blend = _blend_of(archive, spec, toward)
    pairs = _pairs(archive, spec)
    moved, similar = np.full(len(pairs), np.nan), np.ones(len(pairs), np.bool_)
    scores, usual, sizes = moved.copy(), moved.copy(), np.zeros(len(pairs), np.int64)
    done = 0
    for group in _groups(archive, pairs):
        chosen = pairs.take(group)
        if toward is None:
            moved[group] = _angles(archive, chosen, blend)
        else:
            moved[group], similar[group] = _gains(archive, chosen, toward)
        least = SMALLEST_SPREAD_DEGREES if toward is None else SMALLEST_SPREAD
        scores[group], usual[group], _ = robust_scores(moved[group], least)
        sizes[group] = len(group)
        done += len(group)
        progress(Progress(stage="pairs", done=done, total=len(pairs), unit="pairs"))
    if not done:
        raise ConfigError(
            f"change: {len(pairs)} places have a tile in both periods ({spec.before} and "
            f"{spec.after}), and a judgement needs {FEWEST_PAIRS}; choose longer periods, or a "
            "larger cloud fraction"
        )
    lowest = -np.inf if spec.min_score is None else spec.min_score
    ranked = np.flatnonzero(pairs.ranked & similar & (scores >= lowest))  # NaN is not
    best = ranked[np.argsort(-scores[ranked], kind="stable")][: spec.k]
    measures = {"score": scores, "moved": moved, "usual": usual, "pairs": sizes}
    kind = "change" if toward is None else f"toward {toward.title}"
    kind += "" if blend is None else f" at blend {blend:g}"
    return Changes(
        table=_table(archive, pairs.rows[best], {n: v[best] for n, v in measures.items()}),
        compared=done,
        beyond=int((scores >= BEYOND_USUAL).sum()),
        unjudged=len(pairs) - done,
        snapshot=archive.snapshot,
        title=f"{kind} from {spec.before} to {spec.after}",
        toward=toward is not None,
    )


def _blend_of(archive: Archive, spec: ChangeSpec, toward: "SavedSearch | None") -> float | None:
    """Return the blend at which vectors are compared; None where they are compared as they are."""
    parts = archive.spec.parts
    if spec.blend is not None and parts is None:
        raise ConfigError(
            f"change: blend is for vectors of two parts, and those of archive {archive.uri} have "
            "one; leave it out"
        )
    if spec.blend is not None and toward is not None:
        raise ConfigError(
            f"change: the search {toward.title!r} has a blend of its own; leave blend out, or save "
            "the search with another one"
        )
    if parts is None or toward is not None:
        return None
    return parts.blend if spec.blend is None else spec.blend


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Rows of one period, one a place: place (n, 3), row, scene (numbers) and whether ranked."""

    place: Int64
    row: Int64
    scene: Int64
    ranked: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pairs:
    """Places with a row in both periods: rows (n, 2), scenes (n, 2), and whether ranked."""

    rows: Int64
    scenes: Int64
    ranked: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Int64) -> "_Pairs":
        return _Pairs(
            rows=self.rows[chosen], scenes=self.scenes[chosen], ranked=self.ranked[chosen]
        )


def _pairs(archive: Archive, spec: ChangeSpec) -> _Pairs:
    """Return the pairs, by place."""
    names = tuple(archive.ledger.grids), tuple(archive.ledger.entries)
    grids, scenes = ({name: n for n, name in enumerate(known)} for known in names)
    parts: tuple[list[Columns], list[Columns]] = ([], [])
    labels = ("labels",) if archive.spec.classes else ()
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal, [*_COLUMNS, *labels])
        if not len(rows["row"]):
            continue
        sidecar = Sidecar(encode_columns(rows, archive.spec.classes), f"segment {segment.id}")
        at_place = sidecar.matching(spec.places)
        numbers = np.column_stack([_numbers(rows["grid"], grids), rows["tile"]])
        scene = _numbers(rows["scene"], scenes)
        for part, where in zip(parts, (spec.before_rows, spec.after_rows), strict=True):
            keep = sidecar.matching(where)
            columns = {"place": numbers, "scene": scene, "ranked": at_place}
            columns |= {name: rows[name] for name in ("row", "datetime", "cloud_fraction")}
            part.append({name: values[keep] for name, values in columns.items()})
    before, after = map(_clearest, parts)
    both = np.concatenate([before.place, after.place])
    place = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    of_before, of_after = place[: len(before.place)], place[len(before.place) :]
    _, first, second = np.intersect1d(of_before, of_after, return_indices=True)
    return _Pairs(
        rows=np.column_stack([before.row[first], after.row[second]]),
        scenes=np.column_stack([before.scene[first], after.scene[second]]),
        ranked=after.ranked[second],
    )


def _numbers(names: npt.NDArray[Any], known: Mapping[str, int]) -> Int64:
    distinct, back = np.unique(names.astype(str), return_inverse=True)
    return np.array([known.get(name, -1) for name in distinct], np.int64)[back]


def _clearest(parts: list[Columns]) -> _Rows:
    """Return the clearest row of each place, the newest of equally clear ones."""
    if not parts:
        none = np.empty(0, np.int64)
        return _Rows(place=np.empty((0, 3), np.int64), row=none, scene=none, ranked=none > 0)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    newest = -rows["datetime"].astype("datetime64[ms]").astype(np.int64)
    place = rows["place"]
    order = np.lexsort([newest, rows["cloud_fraction"], *place.T[::-1]])
    new = np.ones(len(order), np.bool_)
    new[1:] = (place[order][1:] != place[order][:-1]).any(axis=1)
    first = order[new]
    names = ("place", "row", "scene", "ranked")
    return _Rows(**{name: rows[name][first] for name in names})


def _groups(archive: Archive, pairs: _Pairs) -> Iterator[Int64]:
    """Yield the numbers of the pairs that are judged together, at least 30 at a time."""
    entries = tuple(archive.ledger.entries.values())
    seasons = np.array([_season(entry.datetime) for entry in entries])
    waiting = np.arange(len(pairs))
    for codes in (pairs.scenes, seasons[pairs.scenes], np.zeros_like(pairs.scenes)):
        if not len(waiting):
            return
        number = np.unique(codes[waiting], axis=0, return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(number)
        order = np.argsort(number, kind="stable")
        for group in np.split(waiting[order], np.cumsum(sizes)[:-1]):
            if len(group) >= FEWEST_PAIRS:
                yield group
        waiting = waiting[sizes[number] < FEWEST_PAIRS]


def _season(moment: dt.datetime | None) -> int:
    """Return the season of a scene, from 0; -1 for a scene without a date."""
    return -1 if moment is None else moment.month % 12 // 3


def _blocks(
    archive: Archive, pairs: _Pairs, blend: float | None = None
) -> Iterator[tuple[Int64, Float64, Float64]]:
    """Yield numbers of pairs with the unit vectors before and after, in the order of the store."""
    order = np.argsort(pairs.rows[:, 0], kind="stable")
    for start in range(0, len(order), _BLOCK_ROWS):
        part = order[start : start + _BLOCK_ROWS]
        before, after = (_vectors(archive, pairs.rows[part, side], blend) for side in (0, 1))
        yield part, before, after


def _vectors(archive: Archive, rows: Int64, blend: float | None) -> Float64:
    vectors = archive.read(rows, ["embedding"])["embedding"].astype(np.float64)
    if blend is not None and archive.spec.parts is not None:
        vectors = archive.spec.parts.weighted(vectors, blend).astype(np.float64)
    unit: Float64 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _angles(archive: Archive, pairs: _Pairs, blend: float | None) -> Float64:
    """Return the angle (n,) of each pair, each date's mean subtracted."""
    sums = np.zeros((2, archive.spec.dimension))
    for _, before, after in _blocks(archive, pairs, blend):
        sums += np.stack([before.sum(axis=0), after.sum(axis=0)])
    means = sums / len(pairs)
    angles = np.empty(len(pairs))
    for part, before, after in _blocks(archive, pairs, blend):
        angles[part] = centred_angle(before, after, *means)
    return angles


def _gains(
    archive: Archive, pairs: _Pairs, toward: "SavedSearch"
) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Return the gain (n,) in similarity, and whether the later tile reaches the least score."""
    gains, similar = np.empty(len(pairs)), np.ones(len(pairs), np.bool_)
    query = toward.weights
    for part, before, after in _blocks(archive, pairs):
        gains[part] = gain(before, after, query)
        if toward.min_score is not None:
            similar[part] = after @ query >= toward.min_score
    return gains, similar


def _table(archive: Archive, rows: Int64, measures: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    """Return the table of places whose rows (n, 2) are given; see :attr:`Changes.table`."""
    labels = ("labels",) if archive.spec.classes else ()
    after = archive.read(rows[:, 1], [*_COLUMNS, *labels])
    after.setdefault("labels", np.empty((len(rows), 0), np.uint8))
    before = archive.read(rows[:, 0], ["row", "scene", "datetime", "cloud_fraction"])
    table = located(hit_table(after, archive.spec.classes), archive.footprints(after))
    moments = pa.array(before["datetime"], pa.timestamp("ms"))
    earlier = {
        "before_row": pa.array(before["row"]),
        "before_scene": pa.array(before["scene"], pa.string()),
        "before_datetime": moments.cast(pa.timestamp("ms", tz="UTC")),
        "before_cloud_fraction": pa.array(before["cloud_fraction"].astype(np.float32)),
    }
    numbers = np.arange(len(rows), dtype=np.int32)
    heads = {"query": np.zeros_like(numbers), "rank": numbers + 1, **measures}
    columns = {name: pa.array(values) for name, values in heads.items()}
    place = table.column_names.index("bbox")
    names = table.column_names
    columns |= {name: table[name] for name in names[:place]}
    columns |= earlier | {name: table[name] for name in names[place:]}
    return tagged(pa.table(columns))
