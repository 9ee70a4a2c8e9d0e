"""A search in the order in which people think of it: like which examples, where, how many hits.

    index.like(lonlat=(103.75, 17.92)).where(since="2024-01-01").top(20)

Each step returns a new question, so a question can be kept and continued in several ways. The
answer is that of :meth:`pipeline.search.searcher.Searcher.answer`, as on the command line.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.search.detections import REVIEWED, THRESHOLD, Detections, detect, suggest
from pipeline.search.examples import (
    Example,
    Image,
    LonLat,
    Vectors,
    named_example,
    unnamed_example,
)
from pipeline.search.hits import Hits, Pictures
from pipeline.search.query import Query, QueryResolver, learn
from pipeline.search.searcher import DEFAULT_LIMIT, Searcher
from storage.dates import Moment
from storage.display import Described
from storage.errors import ConfigError
from storage.geometry import GeoInterface, polygon_wkt
from storage.index.filter import Filter
from storage.index.plan import SearchPlan


@dataclass(frozen=True, kw_only=True, repr=False)
class Question(Described):
    """Examples and conditions, to be answered by an index.

    Attributes
    ----------
    searcher, resolver
        The index, and the maker of its queries.
    pictures
        Draws the tiles of the answers; None for answers without pictures.
    positive, negative
        The examples for and against.
    blend
        Weight of the appearance part; None for that of the encoder.
    filter
        Which rows may be returned.
    """

    searcher: Searcher
    resolver: QueryResolver
    pictures: Pictures | None = None
    positive: tuple[Query, ...] = ()
    negative: tuple[Query, ...] = ()
    blend: float | None = None
    filter: Filter = field(default_factory=Filter)

    def facts(self) -> dict[str, Any]:
        """Return the examples, the conditions and the index."""
        given = {n: getattr(self.filter, n) for n in Filter.__dataclass_fields__}
        return {
            "like": [query.label for query in self.positive],
            "unlike": [query.label for query in self.negative],
            "where": {name: value for name, value in given.items() if value not in (None, ())},
            "index": f"{self.searcher.index}, {self.searcher.manifest.rows:,} rows",
        }

    def like(
        self,
        *,
        lonlat: LonLat | None = None,
        date: Moment | None = None,
        image: Image | None = None,
        bands: Sequence[int] | None = None,
        text: str | None = None,
        tile: str | None = None,
        scene: str | None = None,
        vector: Vectors | None = None,
        positive: Iterable[Example] = (),
        negative: Iterable[Example] = (),
    ) -> "Question":
        """Add examples; several make one query (:func:`pipeline.search.query.learn`).

        Fewer than ten count as their mean, those against with half the weight; from ten on the
        query is learned from them.

        Parameters
        ----------
        lonlat
            Longitude and latitude in WGS84 degrees, or a point of shapely: the tile there.
        date
            With ``lonlat``: the acquisition nearest to this, in place of the newest.
        image
            A PNG, JPEG or GeoTIFF, or pixel values (C, h, w) in the encoder's bands.
        bands
            With ``image``: the number of its band, from 1, for each band of the encoder; 0 for a
            band that the image lacks.
        text
            Words such as ``solar farm in desert``, where the encoder has a text tower.
        tile
            The key of a tile.
        scene
            With ``tile``: of this scene, in place of the newest.
        vector
            One vector (D,), or several (n, D), of the index's encoder.
        positive, negative
            Further examples for and against. Each is a hit of an earlier answer, a mapping of the
            names above, or a value whose kind is plain: (lon, lat), the key of a tile, the file of
            a picture, pixel values or a vector.

        Raises
        ------
        ConfigError
            A value is not of its kind, or there is no example at all.
        NotFoundError
            The index has no such tile.
        EncoderMismatchError
            The encoder that would embed an image or words is not the archive's.

        Examples
        --------
        >>> index.like(lonlat=(103.75, 17.92), date="2024-06-18")                 # doctest: +SKIP
        >>> index.like(text="solar farm in desert")                               # doctest: +SKIP
        >>> index.like(positive=[hits_[0], "chip.png"], negative=[(103.8, 17.9)])  # doctest: +SKIP
        """
        for name, examples in (("positive", positive), ("negative", negative)):
            if isinstance(examples, (str, bytes, Mapping)) or not isinstance(examples, Iterable):
                raise ConfigError(f"like: {name} is {examples!r:.60}; give a list of examples")
        added = named_example(
            self.resolver,
            lonlat=lonlat,
            date=date,
            image=image,
            bands=bands,
            text=text,
            tile=tile,
            scene=scene,
            vector=vector,
        )
        added += [query for each in positive for query in unnamed_example(self.resolver, each)]
        against = [query for each in negative for query in unnamed_example(self.resolver, each)]
        if not added and not against:
            raise ConfigError(
                "like: give an example: lonlat, image, text, tile, vector or positive"
            )
        return self._with(positive=(*self.positive, *added), negative=(*self.negative, *against))

    def where(
        self,
        conditions: Filter | Mapping[str, Any] | None = None,
        /,
        *,
        bbox: Sequence[float] | None = None,
        polygon: str | Mapping[str, Any] | GeoInterface | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        max_cloud_fraction: float | None = None,
        scenes: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        tiles: Sequence[str] | None = None,
    ) -> "Question":
        """Restrict the hits; conditions hold together, and a later one replaces its like.

        Parameters
        ----------
        conditions
            A filter, or a mapping of the names below.
        bbox
            West, south, east, north in WGS84 degrees.
        polygon
            WKT, GeoJSON, or a geometry of shapely or geopandas, in WGS84 degrees.
        since, until
            First and last time: a date or datetime, or either as ISO 8601 text; UTC.
        max_cloud_fraction
            Largest cloud fraction of a tile, in [0, 1].
        scenes, tiles
            Ids of scenes, keys of tiles: any of them.
        labels
            Class names: all of them.

        Raises
        ------
        ConfigError
            A condition does not exist or is invalid.
        """
        whole = Filter.of(conditions)
        given: dict[str, Any] = {
            "bbox": bbox,
            "polygon": None if polygon is None else polygon_wkt(polygon),
            "since": since,
            "until": until,
            "max_cloud_fraction": max_cloud_fraction,
            "scenes": scenes,
            "labels": labels,
            "tiles": tiles,
        }
        stated = {n: v for n in given if (v := getattr(whole, n)) not in (None, ())}
        stated |= {name: value for name, value in given.items() if value is not None}
        return self._with(filter=replace(self.filter, **stated))

    def top(
        self,
        k: int = 10,
        *,
        distinct: str | None = None,
        keep_own: bool = False,
        nprobe: int | None = None,
        require_complete: bool = True,
    ) -> Hits:
        """Return the k tiles most like the examples; the examples' own tiles are left out.

        Parameters
        ----------
        k, distinct, keep_own, nprobe, require_complete
            As in :meth:`pipeline.search.searcher.Searcher.answer`.

        Raises
        ------
        ConfigError
            There is no example, or a setting is invalid.
        SearchUnavailableError
            A shard did not answer, and a complete answer is required.
        """
        return self._answer(
            k=k,
            distinct=distinct,
            keep_own=keep_own,
            nprobe=nprobe,
            require_complete=require_complete,
        )

    def above(
        self, score: float, *, limit: int = DEFAULT_LIMIT, distinct: str | None = None
    ) -> Hits:
        """Return every tile whose score is at least ``score``, up to ``limit``.

        Parameters
        ----------
        score
            Least cosine similarity, from -1 to 1.
        limit
            Most hits; ``Hits.truncated`` tells whether there are more.
        distinct
            As in :meth:`pipeline.search.searcher.Searcher.answer`.

        Raises
        ------
        ConfigError
            There is no example, or a setting is invalid.
        SearchUnavailableError
            A shard did not answer.
        """
        return self._answer(min_score=score, limit=limit, distinct=distinct)

    def suggest(self, count: int = 10) -> Hits:
        """Return the tiles whose marks would teach most: give them to :meth:`like` when marked.

        Parameters
        ----------
        count
            Tiles to mark.

        Raises
        ------
        ConfigError
            There is no example, or the count is below 1.
        SearchUnavailableError
            A shard did not answer.
        """
        hits = suggest(self.searcher, self._query(), count, self.filter)
        return replace(hits, pictures=self.pictures)

    def detect(self, threshold: float = THRESHOLD, *, review: int = REVIEWED) -> Detections:
        """Return every place with the probability that it is like the examples.

        Parameters
        ----------
        threshold
            Least probability of a detection, between 0 and 1.
        review
            Tiles to review, nearest to the threshold.

        Raises
        ------
        ConfigError
            There are fewer than ten examples, or fewer than three for or three against.
        SearchUnavailableError
            A shard did not answer.
        """
        return detect(
            self.searcher, self._query(), threshold=threshold, where=self.filter, review=review
        )

    def blended(self, blend: float | None) -> "Question":
        """Choose what the hits are like, for an encoder of two parts.

        Parameters
        ----------
        blend
            Weight of the appearance part, from 0 (labels only) to 1 (appearance only); None for
            that of the encoder. The answer refuses a blend for an encoder of one part.

        Examples
        --------
        >>> index.like(lonlat=(103.75, 17.92)).blended(0.5).top(20)               # doctest: +SKIP
        """
        return self._with(blend=blend)

    def explain(self, k: int = 10) -> SearchPlan:
        """Return how :meth:`top` would be answered, without searching."""
        return self.searcher.explain(min(k, self.searcher.manifest.rows), self.filter)

    def _query(self) -> Query:
        if not self.positive:
            raise ConfigError(
                "search: there is no example to be like; .like(lonlat=...), image=, text=, tile=, "
                "vector= or positive= gives one"
            )
        return learn(self.searcher, self.positive, self.negative, blend=self.blend)

    def _answer(self, **settings: Any) -> Hits:
        hits = self.searcher.answer(self._query(), where=self.filter, **settings)
        return replace(hits, pictures=self.pictures)

    def _with(self, **changes: Any) -> "Question":
        fields = {name: getattr(self, name) for name in Question.__dataclass_fields__}
        return Question(**{**fields, **changes})
