"""The answer to a search, and how partial answers are merged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.display import Picture, in_words, table_html
from storage.errors import ConfigError
from storage.formats import located
from storage.geoarrow import tagged
from storage.geometry import Mask
from storage.index.pairs import ORDINARY, Float64, PairScores
from storage.index.pairs import in_words as share_in_words
from storage.index.ranking import Float32, Int64, best_in_order
from storage.index.search import SearchResult
from storage.index.sidecar import Columns, hit_table, row_keys
from storage.outlines import tile_outlines

if TYPE_CHECKING:
    import geopandas
    import pandas as pd
    from matplotlib.axes import Axes
    from PIL.Image import Image

    from pipeline.search.query import Query

ReadColumns = Callable[[Int64], Columns]
"""Reads the columns of the rows at places (m,), in their order."""


SHOWN_HITS = 20
"""Most hits that are shown where an answer is printed, and in a notebook."""
_SHOWN = ("query", "rank", "score", "closer_than", "datetime", "tile_key", "scene")
_PICTURE = "picture"


class Pictures(Protocol):
    """Draws tiles of the archive that was searched."""

    def thumbnails(self, tiles: Sequence[tuple[str, str]]) -> tuple[list[Picture], str]:
        """Return the picture of each (scene id, tile key), and why some of them are missing.

        A picture that cannot be drawn is empty.
        """

    def sheet(self, hits: pa.Table, title: str, columns: int, side_px: int) -> "Image":
        """Draw the rows of a table of hits on one page."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Hits:
    """The answer to a batch of Q queries.

    The length is the number of hits of all queries. Iteration gives each hit as a dict, with the
    names of :meth:`to_arrow`. The metadata of the rows are read when they are first asked for.

    Attributes
    ----------
    scores
        (Q, k) float32 cosine similarities, highest first; -inf where there are fewer rows.
    rows
        (Q, k) int64 archive rows at ``snapshot``; -1 where there are fewer.
    places
        (Q, k) int64 places of the rows in the index
        (:class:`storage.index.search.SearchResult`); -1 where there are fewer.
    coverage
        Share of the shards in question that answered; below 1 only when that was allowed.
    missing
        Names of the shards that did not answer.
    snapshot, version
        The archive's snapshot and the index's version that were searched.
    classes
        Names of the columns of ``labels``.
    truncated
        Numbers of the queries of a search by score that more rows reach than the limit.
    pairs
        The scores between random rows of the archive; None in an index of before.
    grids
        The tile grids of the archive, which give tiles their footprints.
    queries
        The queries; empty in the answer to vectors.
    pictures
        Draws the tiles of hits; None where nothing was given to draw them with.
    """

    scores: Float32
    rows: Int64
    places: Int64
    coverage: float
    missing: tuple[str, ...]
    snapshot: str
    version: str
    classes: tuple[str, ...]
    truncated: tuple[int, ...] = ()
    pairs: PairScores | None = None
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    read_columns: ReadColumns = field(repr=False, compare=False)
    queries: "tuple[Query, ...]" = field(default=(), repr=False, compare=False)
    pictures: Pictures | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return int((self.rows >= 0).sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_arrow().to_pylist())

    def __repr__(self) -> str:
        shown = self._shown()
        lines = [f"<{self._title()}>"]
        if len(shown):
            lines.append(shown.to_pandas().to_string(index=False))
        return "\n".join([*lines, *self._notes(len(shown))])

    def _repr_html_(self) -> str:
        shown = self._shown()
        notes = self._notes(len(shown))
        columns, rows = shown.column_names, list(zip(*shown.to_pydict().values(), strict=True))
        if self.pictures is not None and rows:
            tiles = list(
                zip(shown["scene"].to_pylist(), shown["tile_key"].to_pylist(), strict=True)
            )
            asked = [query for query in self.queries if query.scene and query.tile]
            if len(self.queries) == len(asked) == 1:  # the query's own tile comes first
                tiles.insert(0, (str(asked[0].scene), str(asked[0].tile)))
                of_query = {"rank": "query", "scene": asked[0].scene, "tile_key": asked[0].tile}
                rows.insert(0, tuple(of_query.get(name, "") for name in columns))
            drawn, missing = self.pictures.thumbnails(tiles)
            columns = [_PICTURE, *columns]
            rows = [(picture, *row) for picture, row in zip(drawn, rows, strict=True)]
            notes += [missing] if missing else []
        return table_html(self._title(), columns, rows, notes)

    def _shown(self) -> pa.Table:
        """Return the first hits with the columns that people read, days and shares in words."""
        table = self.to_arrow().slice(0, SHOWN_HITS)
        several = len(self.rows) > 1
        names = [n for n in _SHOWN if n in table.column_names and (several or n != "query")]
        words = {
            "datetime": [f"{when:%Y-%m-%d}" for when in table["datetime"].to_pylist()],
            "closer_than": [
                None if share is None else share_in_words(share)
                for share in table["closer_than"].to_pylist()
            ],
        }
        return pa.table(
            {n: pa.array(words[n], pa.string()) if n in words else table[n] for n in names}
        )

    def _title(self) -> str:
        count = f"{len(self):,} hit{'' if len(self) == 1 else 's'}"
        if len(self.queries) == 1:
            return f"{count} like {self.queries[0].label}"
        return count if len(self.rows) == 1 else f"{count} of {len(self.rows):,} queries"

    def _notes(self, shown: int) -> list[str]:
        notes = []
        if len(self) > shown:
            notes.append(f"and {len(self) - shown:,} more; to_pandas() has all")
        if self.ordinary:
            named = "" if len(self.rows) == 1 else f" (queries {in_words(self.ordinary)})"
            notes.append(f"nothing in the archive is like the query{named}")
        if self.truncated:
            notes.append("more rows reach the score than the limit allows")
        said = [text for query in self.queries for text in (query.note, query.remark) if text]
        notes += dict.fromkeys(said)
        if self.missing:
            notes.append(f"{self.coverage:.0%} of the shards answered")
        return notes

    @cached_property
    def columns(self) -> Columns:
        """The side-car's columns of the rows that are present, query by query.

        Raises
        ------
        SearchUnavailableError
            The columns were not read yet, and a shard did not answer.
        """
        return self.read_columns(self.places[self.rows >= 0])

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields with the columns that were read.

        Hits travel without the searcher and without the drawer of pictures.
        """
        known = _KnownColumns(places=self.places[self.rows >= 0], columns=self.columns)
        return {**self.__dict__, "read_columns": known, "pictures": None}

    @property
    def closer_than(self) -> Float64 | None:
        """The share (Q, k) of random pairs of rows with a lower score; None in an old index.

        NaN for queries of words or learned from marks, whose scores the pairs do not measure.
        """
        if self.pairs is None:
            return None
        shares = self.pairs.share_below(self.scores)
        for number, query in enumerate(self.queries):
            if query.own_scale:
                shares[number] = np.nan
        return shares

    @property
    def ordinary(self) -> tuple[int, ...]:
        """Numbers of the queries that nothing is like: the best hit is as close as random rows."""
        shares = self.closer_than
        if shares is None:
            return ()
        shown = self.rows[:, :1] >= 0
        return tuple(np.flatnonzero((shares[:, :1] < ORDINARY) & shown).tolist())

    def to_arrow(self) -> pa.Table:
        """Return one row a hit: ``query`` (from 0) and :data:`storage.formats.HIT_COLUMNS`.

        ``rank`` counts from 1. ``closer_than`` is the share of random pairs of rows with a lower
        score; null where :attr:`closer_than` is. ``geometry`` is the footprint of
        the tile (WKB, WGS84 degrees), ``bbox`` the box around it. The column is tagged as GeoArrow,
        which lonboard, geopandas and other readers recognise.
        """
        query, rank = np.nonzero(self.rows >= 0)
        columns = self.columns
        shapes = tile_outlines(self.grids, columns["grid"], columns["tile"], columns["bbox"])
        table = tagged(located(hit_table(columns, self.classes), shapes))
        heads: list[tuple[str, npt.NDArray[Any]]] = [
            ("query", query.astype(np.int32)),
            ("rank", (rank + 1).astype(np.int32)),
            ("score", self.scores[query, rank]),
        ]
        shares = self.closer_than
        closer = pa.nulls(len(query), pa.float64()) if shares is None else shares[query, rank]
        for place, (name, values) in enumerate(heads):
            table = table.add_column(place, name, pa.array(values))
        closer = pa.array(closer, pa.float64(), from_pandas=True)  # NaN is null
        return table.add_column(len(heads), "closer_than", closer)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export :meth:`to_arrow` to any reader of the Arrow PyCapsule interface."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> "pd.DataFrame":
        """Return :meth:`to_arrow` as a data frame, one row a hit."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_geodataframe(self) -> "geopandas.GeoDataFrame":
        """Return :meth:`to_arrow` as a GeoDataFrame in OGC:CRS84, longitude first."""
        import geopandas  # slow, and few searches need it

        return geopandas.GeoDataFrame.from_arrow(self.to_arrow())

    def plot(self, **options: Any) -> "Axes":
        """Draw the footprints, coloured by score; options go to ``GeoDataFrame.plot``.

        Raises
        ------
        ConfigError
            There is no hit to draw.
        """
        self._require_some()
        settings: dict[str, Any] = {"column": "score", "legend": True, "cmap": "viridis", **options}
        axes: Axes = self.to_geodataframe().plot(**settings)
        axes.set(title=self._title(), xlabel="longitude, degrees", ylabel="latitude, degrees")
        return axes

    def sheet(self, *, count: int = 24, columns: int = 6, side_px: int = 192) -> "Image":
        """Draw the first hits on one page: picture, score, date, place and scene of each.

        Parameters
        ----------
        count
            Tiles at most.
        columns
            Tiles in a row.
        side_px
            Side of the picture of a tile.

        Returns
        -------
        PIL.Image.Image
            Shown by a notebook; ``.save("hits.png")`` writes a file.

        Raises
        ------
        ConfigError
            There is no hit, or the searcher was not given what to draw tiles with.
        NotFoundError, SceneError
            A tile cannot be drawn.
        """
        self._require_some()
        if self.pictures is None:
            raise ConfigError(
                "hits: these come without pictures; search an index that skysift.open(...) "
                "returned, or write them to a file and use `skysift archive sheet --hits`"
            )
        return self.pictures.sheet(self.to_arrow().slice(0, count), self._title(), columns, side_px)

    def _require_some(self) -> None:
        if not len(self):
            raise ConfigError("hits: there is no hit to draw; widen the filter or lower the score")

    def where(self, keep: Mask, most: int) -> "Hits":
        """Return the first ``most`` hits of each query that a mask (Q, k) keeps."""
        keep = keep & (self.rows >= 0)
        rank = keep.cumsum(axis=1) - 1
        keep &= rank < most
        query, rank = np.nonzero(keep)[0], rank[keep]
        scores, rows, places = _blank(len(keep), min(most, keep.shape[1]))
        scores[query, rank] = self.scores[keep]
        rows[query, rank] = self.rows[keep]
        places[query, rank] = self.places[keep]
        return replace(self, scores=scores, rows=rows, places=places)


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownColumns:
    """The columns of rows at places (n,), which are read again from memory."""

    places: Int64
    columns: Columns

    def __call__(self, places: Int64) -> Columns:
        order = np.argsort(self.places)
        found = order[np.searchsorted(self.places[order], places)]
        return {name: values[found] for name, values in self.columns.items()}


def together(parts: Sequence[tuple[Int64, Hits]], queries: int) -> Hits:
    """Return the hits of searches for some of the queries each, given the queries' numbers."""
    width = max(int((hits.rows >= 0).sum(axis=1).max(initial=0)) for _, hits in parts)
    scores, rows, places = _blank(queries, width)
    for numbers, hits in parts:
        columns = slice(hits.rows.shape[1])
        scores[numbers, columns] = hits.scores[:, :width]
        rows[numbers, columns] = hits.rows[:, :width]
        places[numbers, columns] = hits.places[:, :width]
    return replace(
        parts[0][1],
        scores=scores,
        rows=rows,
        places=places,
        coverage=min(hits.coverage for _, hits in parts),
        missing=tuple(sorted({name for _, hits in parts for name in hits.missing})),
    )


def merge(
    answers: Sequence[SearchResult], queries: int, k: int, read_columns: ReadColumns
) -> SearchResult:
    """Merge answers over different shards into one."""
    if not answers:
        scores, rows, places = _blank(queries, k)
        return SearchResult(scores=scores, rows=rows, places=places)
    scores, rows, places = (
        np.concatenate([getattr(answer, name) for answer in answers], axis=1)
        for name in ("scores", "rows", "places")
    )
    # Equal scores of an answer are in order, so the numbers of its hits are.
    numbers = np.arange(scores.size).reshape(scores.shape)

    def keys(numbers: Int64) -> list[tuple[str, str]]:
        return row_keys(read_columns(places.ravel()[numbers]))

    scores, found = best_in_order(
        scores, np.where(rows < 0, -1, numbers), k, np.arange(0, scores.size, k), keys
    )
    rows, places = (np.where(found < 0, -1, all_.ravel()[found]) for all_ in (rows, places))
    return SearchResult(scores=scores, rows=rows, places=places)


def _blank(queries: int, k: int) -> tuple[Float32, Int64, Int64]:
    """Return scores, rows and places (Q, k) of no hits."""
    none = np.full((queries, k), -1, dtype=np.int64)
    return np.full((queries, k), -np.inf, dtype=np.float32), none, none.copy()
