"""Layers of the map that colour every place of an index.

The colour is the similarity to a query, or the principal components of the vectors.

Search actors multiply their vectors with a few directions (:meth:`Searcher.project`); this module
keeps one number, or colour, of each place and cuts map tiles. Where places are smaller than a few
pixels, the tiles show squares of the map: the most alike place of each, or the mean colour.
"""

import base64
import binascii
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.search.searcher import Searcher
from storage.archive.samples import uniform_rows
from storage.errors import ConfigError
from storage.geometry import Mask, clip
from storage.index.files import VerifiedFiles
from storage.index.manifest import ShardEntry
from storage.index.ranking import canonical_queries
from storage.index.sidecar import Sidecar
from storage.outlines import tile_corners
from workflows.service.vector_tiles import (
    EXTENT,
    Value,
    box_rings,
    encode_rings,
    mercator,
    mercator_points,
)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

TileNumber = tuple[int, int, int]
Paint = Callable[[Int64], Mapping[str, Sequence[Value]]]
Blend = Callable[[Int64, Int64], Mapping[str, Sequence[Value]]]

_CELLS = 64
"""Squares along a side of a tile, for places smaller than these."""
_MARGIN = EXTENT // 16
_TURN = np.array([1.0, 0, 1, 0])
_KEPT_QUERIES = 16
_SAMPLE_ROWS = 4096
_SPREAD = (2.0, 98.0)
"""Percentiles of a component that become its darkest and its brightest colour."""


def to_text(vector: npt.ArrayLike) -> str:
    """Return the weights (D,) of a query as text for an address: the base64 of float16 values."""
    halves = np.asarray(vector, dtype="<f2")
    return base64.urlsafe_b64encode(halves.tobytes()).decode().rstrip("=")


def from_text(text: str, dimension: int) -> Float64:
    """Read the text of :func:`to_text` as the weights (1, D) of a query.

    Raises
    ------
    ConfigError
        The text is not that of a vector of this index.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
        halves = np.frombuffer(data, dtype="<f2")
    except (binascii.Error, ValueError) as error:
        raise ConfigError(
            "`like` is not the text of a vector; take it from the answer to a search"
        ) from error
    return canonical_queries(halves, dimension) * np.linalg.norm(halves.astype(np.float64))


class Layers:
    """The coloured places of one version of an index; safe to use from several threads."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._scores: OrderedDict[bytes, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def scores(self, like: str, at: TileNumber) -> bytes:
        """Return a map tile of the similarity of each place to a vector.

        The layer ``scores-places`` has the ``score`` of the most similar date of each place, and
        its ``tile`` key; ``scores`` has squares with the highest ``score`` of the places in them.

        Raises
        ------
        ConfigError
            The text of the vector is invalid.
        """
        scores = self._scores_of(from_text(like, self._searcher.manifest.parameters.dimension))

        def paint(numbers: Int64) -> dict[str, list[float]]:
            return {"score": _rounded(scores[numbers])}

        def blend(numbers: Int64, first: Int64) -> dict[str, list[float]]:
            return {"score": _rounded(np.maximum.reduceat(scores[numbers], first))}

        return self._places.tile("scores", at, paint, blend)

    def colours(self, at: TileNumber) -> bytes:
        """Return a map tile of the first three principal components as red, green and blue.

        The layers ``colours-places`` and ``colours`` have a ``colour`` as ``#rrggbb``; a square has
        the mean of its places.
        """
        colours = self._colours

        def paint(numbers: Int64) -> dict[str, list[str]]:
            return {"colour": _hex(colours[numbers])}

        def blend(numbers: Int64, first: Int64) -> dict[str, list[str]]:
            sums = np.add.reduceat(colours[numbers].astype(np.float64), first, axis=0)
            return {"colour": _hex(sums / np.diff([*first.tolist(), len(numbers)])[:, None])}

        return self._places.tile("colours", at, paint, blend)

    def tiles(self, zoom: int) -> list[tuple[int, int]]:
        """Return the columns and rows of the map tiles of a zoom that hold places."""
        return self._places.tiles(zoom)

    @property
    def deepest(self) -> int:
        """The first zoom at which most places are drawn as they are, not as squares."""
        return self._places.deepest

    def _scores_of(self, query: Float64) -> Float32:
        key = query.tobytes()
        with self._lock:  # the tiles of a view come together, and share the first one's work
            if key not in self._scores:
                found = self._places.gathered(self._searcher.project(query), np.maximum)
                self._scores[key] = found[:, 0]
                if len(self._scores) > _KEPT_QUERIES:
                    self._scores.popitem(last=False)
            self._scores.move_to_end(key)
            return self._scores[key]

    @cached_property
    def _places(self) -> "_Places":
        return _Places(self._searcher)

    @cached_property
    def _colours(self) -> npt.NDArray[np.uint8]:
        """The colour (n, 3) of each place: the mean of its dates."""
        mean, axes, low, high = self._components
        found = self._places.gathered(self._searcher.project(axes), np.add)
        means = found / self._places.dates[:, None] - mean @ axes.T
        return (255 * np.clip((means - low) / (high - low), 0, 1)).round().astype(np.uint8)

    @cached_property
    def _components(self) -> tuple[Float64, Float64, Float64, Float64]:
        """Mean (D,) and axes (3, D) of a sample of vectors, and the range (3,) along each axis."""
        archive = self._searcher.archive
        rows = uniform_rows(archive, _SAMPLE_ROWS)
        vectors = archive.read(rows, ["embedding"])["embedding"].astype(np.float64)
        mean = vectors.mean(axis=0)
        axes = np.linalg.eigh(np.cov(vectors.T))[1][:, :-4:-1].T
        axes = np.pad(axes, ((0, 3 - len(axes)), (0, 0)))
        # An axis has no direction: its largest value is made positive, so colours are repeatable.
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
        axes = axes * np.where(largest < 0, -1, 1)
        low, high = np.percentile((vectors - mean) @ axes.T, _SPREAD, axis=0)
        return mean, axes, low, np.maximum(high, low + 1e-9)


class _Places:
    """The places of an index on the map: one for each tile key, whatever its dates.

    Attributes
    ----------
    dates
        The number (n,) of live rows of each place.
    """

    def __init__(self, searcher: Searcher) -> None:
        files = VerifiedFiles(searcher.index)
        self._live: dict[str, Int64] = {}
        grids: dict[str, int] = {}
        parts = []
        for shard in searcher.manifest.shards:
            sidecar = Sidecar(files.open(shard.columns), shard.columns.path)
            live = self._live[shard.name] = _live(files, shard)
            names, code, tile = sidecar.tiles
            numbers = np.array([grids.setdefault(name, len(grids)) for name in names], np.int64)
            parts.append((numbers[code[live]], tile[live], sidecar.bbox[live]))
        grid, tile, boxes = (np.concatenate(part) for part in zip(*parts, strict=True))
        self._order = np.lexsort((tile[:, 1], tile[:, 0], grid))
        keys = np.column_stack([grid, tile])[self._order]
        self._starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        self._keys, self._grids = keys[self._starts], list(grids)
        self.dates: Int64 = np.diff([*self._starts.tolist(), len(keys)])
        self._wgs84, self._known = boxes[self._order[self._starts]], searcher.grids
        self._box = np.ascontiguousarray(mercator(self._wgs84).T)
        left, top, right, bottom = self._box
        self._middle = np.stack([(left + right) / 2 % 1, (top + bottom) / 2])
        self._side = np.maximum(right - left, bottom - top)

    def gathered(self, rows: Mapping[str, npt.NDArray[np.float16]], join: np.ufunc) -> Float32:
        """Return values (n, m) of places, joined from those of the rows of each shard."""
        live = [rows[name][positions] for name, positions in self._live.items()]
        values = np.concatenate(live).astype(np.float32)[self._order]
        return np.asarray(join.reduceat(values, self._starts, axis=0))

    def tile(self, name: str, at: TileNumber, paint: Paint, blend: Blend) -> bytes:
        """Return a map tile.

        Parameters
        ----------
        name
            Of the layer.
        at
            Zoom, column and row of the tile.
        paint
            Returns the properties of places, given their numbers.
        blend
            Returns the properties of squares, given the numbers of places, ordered by square, and
            the position of the first of each square.
        """
        zoom, x, y = at
        span = 1 / 2**zoom
        low, high = np.array([x, y]) * span, np.array([x + 1, y + 1]) * span
        small = self._side < span / _CELLS
        layers = []
        if len(inside := np.flatnonzero(small & _between(self._middle, low, high))):
            offset = (self._middle[:, inside].T - low) * (_CELLS / span)
            squares, columns = _squares(inside, offset, blend)
            layers.append(encode_rings(name, box_rings(squares), columns))
        shown = ~small & _touching(self._box, low, high)
        far = self._box[2] > 1  # across the antimeridian: also at the other side of the map
        again = ~small & far & ~shown & _touching(self._box - _TURN[:, None], low, high)
        if len(numbers := np.flatnonzero(shown | again)):
            points = self._corners(numbers) - low
            points[again[numbers], :, 0] -= 1
            rings, kept = _in_tile(points * (EXTENT / span))
            numbers = numbers[kept]
            keys = [self._key(number) for number in numbers.tolist()]
            layers.append(encode_rings(f"{name}-places", rings, {**paint(numbers), "tile": keys}))
        return b"".join(layers)

    @property
    def deepest(self) -> int:
        """The first zoom at which the median place is no smaller than a square."""
        return max(0, math.ceil(-math.log2(float(np.median(self._side)) * _CELLS)))

    def tiles(self, zoom: int) -> list[tuple[int, int]]:
        """Return the columns and rows of the map tiles that hold places, by column."""
        count, found = 2**zoom, set()
        left, top, right, bottom = np.floor(self._box * count).astype(np.int64)
        # A place is a few map tiles wide at most at the zooms of a score map.
        for x in range(int((right - left).max()) + 1):
            for y in range(int((bottom - top).max()) + 1):
                inside = (left + x <= right) & (top + y <= bottom)
                at = np.stack([(left + x)[inside] % count, (top + y)[inside].clip(0, count - 1)])
                found |= set(map(tuple, np.unique(at, axis=1).T.tolist()))
        return sorted(found)

    def _corners(self, numbers: Int64) -> Float64:
        """Return the corners (n, 4, 2) of places in the unit square, clockwise on the screen."""
        grids = np.array(self._grids, dtype=object)[self._keys[numbers, 0]]
        corners = tile_corners(self._known, grids, self._keys[numbers, 1:], self._wgs84[numbers])
        points = mercator_points(corners[:, ::-1])
        points[..., 0] += points[..., 0] < self._box[0, numbers, None] - 0.5  # past 180 degrees
        return points

    def _key(self, number: int) -> str:
        grid, column, row = self._keys[number].tolist()
        return f"{self._grids[grid]}/{column}/{row}"


def _between(points: Float64, low: Float64, high: Float64) -> Mask:
    """Return the mask (n,) of points (2, n) at or above ``low`` and below ``high``."""
    (x, y), (left, top), (right, bottom) = points, low, high
    return np.asarray((x >= left) & (x < right) & (y >= top) & (y < bottom))


def _touching(boxes: Float64, low: Float64, high: Float64) -> Mask:
    """Return the mask (n,) of boxes (4, n) that share ground with a tile."""
    (left, top), (right, bottom) = low, high
    return np.asarray(
        (boxes[2] > left) & (boxes[0] < right) & (boxes[3] > top) & (boxes[1] < bottom)
    )


def _squares(
    numbers: Int64, offset: Float64, blend: Blend
) -> tuple[Int64, Mapping[str, Sequence[Value]]]:
    """Return the squares that hold places, and their properties.

    ``offset`` (n, 2) are the places in squares from the corner of the tile.
    """
    own = np.clip(offset.astype(np.int64), 0, _CELLS - 1)
    square = own[:, 1] * _CELLS + own[:, 0]
    order = np.argsort(square, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(square[order]) > 0])
    corner = own[order[first]] * (EXTENT // _CELLS)
    return np.hstack([corner, corner + EXTENT // _CELLS]), blend(numbers[order], first)


def _in_tile(points: Float64) -> tuple[list[list[list[int]]], Int64]:
    """Return polygons (n, 4, 2) without what lies far beyond the tile, and which are left."""
    low, high = -_MARGIN, EXTENT + _MARGIN
    shapes = clip(points, (low, low, high, high))
    kept = [number for number, ring in enumerate(shapes) if len(ring) >= 3]
    rings = [np.rint(shapes[number]).astype(np.int64).tolist() for number in kept]
    return rings, np.array(kept, dtype=np.int64)


def _live(files: VerifiedFiles, shard: ShardEntry) -> Int64:
    """Return the positions (n,) of a shard's live rows."""
    live = np.ones(shard.rows, dtype=np.bool_)
    if shard.dead:
        live[files.open(shard.dead).view(np.int64)] = False
    return np.flatnonzero(live)


def _rounded(scores: Float32) -> list[float]:
    rounded: list[float] = np.round(scores.astype(np.float64), 3).tolist()
    return rounded


def _hex(colours: npt.NDArray[Any]) -> list[str]:
    return [f"#{bytes(colour).hex()}" for colour in np.rint(colours).astype(np.uint8)]
