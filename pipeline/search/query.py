"""Query vectors from a picture, words, a place, a tile, an archive row or several examples."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.search.marks import LEAST_MARKS, learned_vector, marks_in_words
from pipeline.search.searcher import Searcher
from storage.dates import parse_moment
from storage.errors import ConfigError, EncoderMismatchError, NotFoundError, PictureBandsError
from storage.geometry import EDGES, centres, wrapped
from storage.index.filter import Filter
from storage.location import Location
from storage.parts import EVEN_BLEND
from storage.raster.picture import fit_picture, read_picture

if TYPE_CHECKING:
    from encoders.bundle import Encoder

Float32 = npt.NDArray[np.float32]

FEATURELESS = (
    "the picture is of one colour: a high score says that a tile has as little in it, not that it "
    "shows the same"
)
WORDS = (
    "scores of words are lower than scores between tiles, and say nothing by themselves: compare "
    "them with each other"
)
LEARNED = (
    "scores of a query that was learned from marks are lower than scores between tiles: compare "
    "them with each other, or take the probabilities of detections"
)
_BLENDED = (
    "blend {:g}: scores weigh appearance by {:g} and labels by {:g}; compare them with scores of "
    "the same blend"
)
_LEAST_CONTRAST = 0.02
"""Deviation in a picture, in deviations of the encoder's bands, below which it is of one colour."""
_CANDIDATES = 10_000
_LABELS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query vector (D,) float32 and its origin.

    ``row`` is the archive row that has this vector, ``examples`` are the rows it was combined from;
    both are left out of the hits. ``label`` names the query for people. ``tile`` and ``scene`` are
    those of a query that is a tile of the archive, ``lonlat`` (WGS84 degrees) and ``date`` (UTC)
    its middle and its acquisition. ``note`` is what people have to know about the hits:
    :data:`FEATURELESS` for a picture without contrast, :data:`WORDS` for words, :data:`LEARNED` for
    a query that was learned from marks; empty otherwise. ``of_words``: words are part of the query.
    ``learned``: the vector was learned from marks. ``blend``: the weight of the appearance part, in
    a query of :func:`blended`; None in others. ``remark`` says what the scores of such a query are.
    ``right`` and ``wrong`` are the marks, or the examples, that the query was made of.
    """

    vector: Float32
    label: str
    row: int | None = None
    examples: tuple[int, ...] = ()
    tile: str | None = None
    scene: str | None = None
    lonlat: tuple[float, float] | None = None
    date: dt.datetime | None = None
    note: str = ""
    of_words: bool = False
    learned: bool = False
    blend: float | None = None
    remark: str = ""
    right: "tuple[Query, ...]" = ()
    wrong: "tuple[Query, ...]" = ()

    @property
    def own_scale(self) -> bool:
        """Whether the scores between tiles are no measure of the scores of this query."""
        return self.of_words or self.learned or self.blend not in (None, EVEN_BLEND)

    @property
    def scale(self) -> float:
        """The score of the query over its cosine similarity: the length of a blended query."""
        return 1.0 if self.blend is None else float(np.linalg.norm(self.vector.astype(np.float64)))

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The vector (D,) whose dot product with a vector of unit length is the score."""
        return np.asarray(units([self])[0] * self.scale)

    @property
    def rows(self) -> tuple[int, ...]:
        """The archive rows that the query is made of."""
        return self.examples if self.row is None else (self.row, *self.examples)


class QueryResolver:
    """Makes queries for one index from places, tiles and pictures.

    Parameters
    ----------
    searcher
        The index. It finds rows and their vectors; only a lossy index without exact vectors leaves
        the vectors to the archive.
    encoder
        The encoder that the archive was made with; needed for pictures and words only.
    load
        Loads the encoder when the first picture or words come, in place of ``encoder``.

    Raises
    ------
    EncoderMismatchError
        The archive was made with another encoder.
    """

    def __init__(
        self,
        searcher: Searcher,
        encoder: "Encoder | None" = None,
        *,
        load: "Callable[[], Encoder] | None" = None,
    ) -> None:
        self._searcher = searcher
        self._encoder = None if encoder is None else self._checked(encoder)
        self._load = load

    def _checked(self, encoder: "Encoder") -> "Encoder":
        expected = self._searcher.manifest.encoder_fingerprint
        if encoder.fingerprint != expected:
            raise EncoderMismatchError(
                f"queries would be embedded by encoder {encoder.fingerprint[:16]}, but index "
                f"{self._searcher.index} holds vectors of {expected[:16]}; use that bundle"
            )
        return encoder

    def _needed_encoder(self, label: str) -> "Encoder":
        if self._encoder is None and self._load is not None:
            self._encoder = self._checked(self._load())
        if self._encoder is None:
            raise ConfigError(f"{label}: this needs an encoder to embed it; give its bundle")
        return self._encoder

    @property
    def searcher(self) -> Searcher:
        """The index."""
        return self._searcher

    @property
    def dimension(self) -> int:
        """Number of values of a vector of the index."""
        return self._searcher.manifest.parameters.dimension

    def image(self, href: str | Location, indexes: Sequence[int] | None = None) -> Query:
        """Embed a PNG, JPEG or GeoTIFF, see `storage.raster.picture`, cut to a tile.

        Parameters
        ----------
        href
            The picture; a plain URI is reached as the index is.
        indexes
            Its bands, from 1, in the order of the encoder's; all by default. 0 stands for a band
            that it lacks, see :func:`chosen_bands`.

        Raises
        ------
        SceneError
            The file is not a picture.
        ConfigError
            The picture has another number of bands than the encoder, or there is no encoder.
        """
        location = href if isinstance(href, Location) else self._searcher.index.at(href)
        self._needed_encoder(location.uri)  # before the picture is read
        if indexes is None or 0 not in indexes:
            return self.pixels(read_picture(location, indexes).values, label=location.uri)
        return self.pixels(read_picture(location).values, label=location.uri, bands=indexes)

    def pixels(
        self, values: Float32, label: str = "pixels", bands: Sequence[int] | None = None
    ) -> Query:
        """Embed pixel values (C, h, w) float32, NaN where invalid, in the encoder's bands.

        Parameters
        ----------
        values, label
            The pixels, and their name for people.
        bands
            The band of the values for each of the encoder's, see :func:`chosen_bands`.

        Raises
        ------
        PictureBandsError
            The number of bands differs from the encoder's.
        ConfigError
            No pixel is valid, or there is no encoder.
        """
        encoder = self._needed_encoder(label)
        if bands is not None:
            values = chosen_bands(values, bands, encoder.spec.band_mean, label)
        if len(values) != len(encoder.bands):
            more = len(values) > len(encoder.bands)
            raise PictureBandsError(
                f"{label} has {len(values)} bands, the encoder needs {len(encoder.bands)} "
                f"({', '.join(encoder.bands)}); "
                f"{'choose bands by number' if more else 'take a picture with these bands'}",
                bands=len(values),
            )
        if not np.isfinite(values).any():
            raise ConfigError(f"{label} has no valid pixel; choose another picture")
        tile = fit_picture(values, encoder.tile_px)
        note = "" if _contrast(tile, encoder.spec.band_std) >= _LEAST_CONTRAST else FEATURELESS
        return Query(vector=encoder(tile[None])[0], label=label, note=note)

    def text(self, words: str) -> Query:
        """Embed words, such as ``solar farm in desert``, by the text tower of the encoder.

        Raises
        ------
        ConfigError
            The encoder has no text tower, the words are empty or too many, or there is no encoder.
        """
        (vector,) = self._needed_encoder("text").embed_text([words])
        return Query(vector=vector, label=f'"{words.strip()}"', note=WORDS, of_words=True)

    def point(self, lon: float, lat: float, date: dt.date | str | None = None) -> Query:
        """Take the tile that contains a place, from the scene nearest to a date or the newest.

        Parameters
        ----------
        lon, lat
            WGS84 degrees.
        date
            Date or time (ISO 8601 when text; naive means UTC).

        Raises
        ------
        NotFoundError
            No row's box contains the point.
        ConfigError
            The date or the degrees are invalid.
        """
        moment = None if date is None else parse_moment(date, "query: date")
        where = Filter(bbox=(lon, lat, lon, lat))
        found, vectors = self._searcher.find_vectors(where, _CANDIDATES)
        rows = found.to_pydict()
        if not rows["row"]:
            west, south, east, north = self._searcher.manifest.bbox
            raise NotFoundError(
                f"the index has no tile at lon {lon}, lat {lat}; its tiles lie between "
                f"lon {west:.4f} and {east:.4f}, lat {south:.4f} and {north:.4f}"
            )
        times = [when.timestamp() for when in rows["datetime"]]
        if moment is not None:
            ages = [abs(when - moment.timestamp()) for when in times]
        else:
            ages = [-when for when in times]
        boxes = np.array([rows[edge] for edge in EDGES]).T
        x, y = centres(boxes).T
        distances = np.abs(wrapped(x - lon)) + np.abs(y - lat)
        best = min(range(len(ages)), key=lambda i: (ages[i], distances[i], rows["tile_key"][i]))
        (vector,) = self._exact(rows["row"][best : best + 1], vectors[best : best + 1])
        return _query(rows, vector, best, f"{lon}, {lat}")

    def tile(self, tile_key: str, scene: str | None = None) -> Query:
        """Take a tile by its key, from one scene or the newest.

        Raises
        ------
        NotFoundError
            The archive has no such tile, or not in that scene.
        """
        where = Filter(tiles=(tile_key,), scenes=(scene,) if scene else ())
        found, vectors = self._searcher.find_vectors(where, _CANDIDATES)
        rows = found.to_pydict()
        if not rows["row"]:
            raise NotFoundError(
                f"the archive has no tile {tile_key}{f' of scene {scene}' if scene else ''}; "
                "search by lon,lat to see the keys at a place"
            )
        best = max(range(len(rows["row"])), key=lambda i: (rows["datetime"][i], rows["scene"][i]))
        (vector,) = self._exact(rows["row"][best : best + 1], vectors[best : best + 1])
        return _query(rows, vector, best, tile_key)

    def marked(self, tiles: Sequence[tuple[str, str | None]]) -> list[Query]:
        """Take many tiles by key and scene, with one look into the index; see :meth:`tile`.

        Raises
        ------
        NotFoundError
            The archive has no such tile.
        """
        if len(tiles) < 2 or not all(scene for _, scene in tiles):
            return [self.tile(key, scene) for key, scene in tiles]
        keys, scenes = (
            tuple(sorted({str(n) for n in names})) for names in zip(*tiles, strict=True)
        )
        where = Filter(tiles=keys, scenes=scenes)
        found, vectors = self._searcher.find_vectors(where, len(keys) * len(scenes))
        rows = found.to_pydict()
        vectors = self._exact(rows["row"], vectors)
        names = zip(rows["tile_key"], rows["scene"], strict=True)
        places = {name: number for number, name in enumerate(names)}
        return [
            _query(rows, vectors[place := places[key, str(scene)]], place, key)
            if (key, scene) in places
            else self.tile(key, scene)  # which says that it is not there
            for key, scene in tiles
        ]

    def tiles(self, where: Filter, limit: int = _CANDIDATES) -> list[Query]:
        """Take every tile that matches a filter: a region of a scene, a set of labels.

        Raises
        ------
        NotFoundError
            No tile matches.
        ConfigError
            More than ``limit`` tiles match, or the filter is invalid.
        """
        found, vectors = self._searcher.find_vectors(where, limit + 1)
        if not len(found):
            raise NotFoundError("no tile of the archive matches the examples' filter; widen it")
        if len(found) > limit:
            raise ConfigError(
                f"more than {limit:,} tiles match the examples' filter; narrow it by scene, place "
                "or date"
            )
        rows = found.to_pydict()
        vectors = self._exact(rows["row"], vectors)
        return [_query(rows, vectors[number], number) for number in range(len(found))]

    def row(self, row: int) -> Query:
        """Take an archive row.

        Raises
        ------
        NotFoundError
            The row does not exist or is not live at the index's snapshot.
        """
        (vector,) = self._searcher.archive.read([row], ["embedding"])["embedding"]
        return Query(vector=vector.astype(np.float32), label=f"row {row}", row=row)

    def _exact(self, rows: Sequence[int], stored: Float32) -> Float32:
        """Return the archive's vectors (n, D) of rows, given the vectors that the index stores."""
        manifest = self._searcher.manifest
        if manifest.parameters.lossy and manifest.rerank == 1:  # stored vectors are approximations
            return self._searcher.archive.read(rows, ["embedding"])["embedding"].astype(np.float32)
        return stored


def load_archive_encoder(searcher: Searcher, bundle: str | Location | None = None) -> "Encoder":
    """Load the encoder that the archive of an index was made with.

    Parameters
    ----------
    searcher
        The index.
    bundle
        The folder of the encoder, where it is no longer where the archive says.

    Raises
    ------
    NotFoundError
        There is no bundle at that place.
    """
    from encoders.bundle import load_encoder  # brings torch, which other queries do without

    if bundle is not None:
        return load_encoder(bundle)
    archive = searcher.archive
    try:
        return load_encoder(archive.encoder)
    except NotFoundError as error:
        raise NotFoundError(
            f"the archive's encoder was {archive.spec.encoder_uri!r} ({error}); "
            "give the bundle with --encoder, or encoder= in Python"
        ) from error


def chosen_bands(
    values: Float32, bands: Sequence[int], means: Sequence[float], label: str
) -> Float32:
    """Return the bands that an encoder needs of a picture (C, h, w).

    Parameters
    ----------
    values
        The picture.
    bands
        Number, from 1, of the picture's band for each band of the encoder; 0 fills the band with
        its mean, which says nothing to the encoder.
    means
        The mean of each band of the encoder.
    label
        The picture's name, for messages.

    Raises
    ------
    PictureBandsError
        The picture lacks a band that is named, or no band of it is used.

    Examples
    --------
    >>> picture = np.ones((2, 1, 1), np.float32)
    >>> chosen_bands(picture, [2, 0], [5.0, 7.0], "x").ravel().tolist()
    [1.0, 7.0]
    """
    if (
        len(bands) != len(means)
        or not any(bands)
        or not 0 <= min(bands) <= max(bands) <= len(values)
    ):
        raise PictureBandsError(
            f"{label} has {len(values)} bands and the encoder needs {len(means)}, but bands "
            f"{', '.join(map(str, bands))} were chosen; give one number for each band of the "
            f"encoder, from 1 to {len(values)}, or 0 for a band that the picture lacks",
            bands=len(values),
        )
    gap = np.isnan(values).all(axis=0)
    parts = [
        values[band - 1] if band else np.where(gap, np.nan, mean).astype(np.float32)
        for band, mean in zip(bands, means, strict=True)
    ]
    return np.stack(parts)


def combine(positive: Sequence[Query], negative: Sequence[Query] = ()) -> Query:
    """Combine examples into one query (Rocchio).

    The vector is the mean of the positive unit vectors minus half the mean of the negative unit
    vectors. A single positive example without negative examples is returned unchanged.

    Raises
    ------
    ConfigError
        There is no positive example.

    References
    ----------
    J. Rocchio, Relevance feedback in information retrieval, 1971.
    """
    if not positive:
        raise ConfigError("a combined query needs at least one positive example")
    if len(positive) == 1 and not negative:
        return positive[0]
    vector = _mean(positive) - (0.5 * _mean(negative) if negative else 0)
    return _made_of(positive, negative, vector)


def learn(
    searcher: Searcher,
    right: Sequence[Query],
    wrong: Sequence[Query] = (),
    *,
    blend: float | None = None,
) -> Query:
    """Make one query of marks: their means, or from ten marks on the direction of the right ones.

    From :data:`pipeline.search.marks.LEAST_MARKS` marks on, right and wrong together, the vector is
    that of :func:`pipeline.search.marks.learned_vector`, with a sample of the archive's rows as
    weak examples of what is wrong; of fewer marks it is that of :func:`combine`. The same marks
    make the same vector, in any order, however the index is sharded.

    ``blend`` is that of :func:`blended`. A query that is learned weighs the parts of the vectors as
    its marks tell, and takes none.

    Raises
    ------
    ConfigError
        There is no right mark, or the blend does not go with the index or the marks.
    NotFoundError
        The archive, whose rows are sampled, is not there.
    """
    if not right or len(right) + len(wrong) < LEAST_MARKS:
        return blended(searcher, combine(right, wrong), blend)
    if blend is not None:
        raise ConfigError(
            f"search: a query that is learned from {len(right) + len(wrong)} marks weighs "
            "appearance and labels itself; leave blend out, or give fewer than "
            f"{LEAST_MARKS} examples"
        )
    marked = {row for query in (*right, *wrong) for row in query.rows}
    vector = learned_vector(units(right), units(wrong), searcher.unlabelled(marked))
    return _made_of(right, wrong, vector, learned=True)


def blended(searcher: Searcher, query: Query, blend: float | None = None) -> Query:
    """Return the query that weighs the parts of an index's vectors.

    Parameters
    ----------
    searcher, query
        The index, and a query of its encoder.
    blend
        Weight of the appearance part, from 0 (labels only) to 1 (appearance only); None for that of
        the encoder. None returns a query as it is that has a blend or was learned, and any query
        where the encoder has one part.

    Raises
    ------
    ConfigError
        The encoder has one part, or the blend is not from 0 to 1.
    """
    parts = searcher.manifest.parts
    if blend is None and (parts is None or query.learned or query.blend is not None):
        return query
    if parts is None:
        raise ConfigError(
            f"search: blend is for vectors of two parts, and those of index {searcher.index} have "
            "one; leave it out, or make an encoder with `skysift encoder make --trained`"
        )
    weight = parts.blend if blend is None else blend
    return replace(
        query,
        vector=parts.query(query.vector, weight).astype(np.float32),
        blend=weight,
        remark=blend_remark(weight),
        right=query.right or (query,),
    )


def blend_remark(blend: float) -> str:
    """Return what the scores of a blend are, for people."""
    return _BLENDED.format(blend, blend, 1 - blend)


def units(queries: Sequence[Query]) -> npt.NDArray[np.float64]:
    """Return the vectors (n, D) of queries with unit length."""
    if not queries:
        return np.empty((0, 0), dtype=np.float64)
    vectors = np.stack([query.vector for query in queries]).astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _made_of(
    right: Sequence[Query],
    wrong: Sequence[Query],
    vector: npt.NDArray[np.float64],
    *,
    learned: bool = False,
) -> Query:
    """Return the query of a vector (D,) that was made of examples."""
    label = _labels(right, " + ") + (f" - {_labels(wrong, ' - ')}" if wrong else "")
    if learned:
        label = marks_in_words(len(right), len(wrong))
    noted = [*right, *(query for query in wrong if query.of_words)]
    notes = [query.note for query in noted if query.note] + ([LEARNED] if learned else [])
    return Query(
        vector=np.asarray(vector, dtype=np.float32),
        label=label,
        examples=tuple(sorted({row for query in (*right, *wrong) for row in query.rows})),
        note="; ".join(dict.fromkeys(notes)),
        of_words=any(query.of_words for query in (*right, *wrong)),
        learned=learned,
        right=tuple(right),
        wrong=tuple(wrong),
    )


def _query(rows: dict[str, list[Any]], vector: Float32, index: int, origin: str = "") -> Query:
    """Return the query of one of the rows that were found, with its exact vector (D,)."""
    label = f"tile {rows['tile_key'][index]} of {rows['scene'][index]}"
    lon, lat = centres([[rows[edge][index] for edge in EDGES]])[0].tolist()
    return Query(
        vector=vector,
        label=f"{origin}: {label}" if origin else label,
        row=int(rows["row"][index]),
        tile=rows["tile_key"][index],
        scene=rows["scene"][index],
        lonlat=(lon, lat),
        date=rows["datetime"][index],
    )


def _contrast(tile: Float32, deviations: Sequence[float]) -> float:
    """Return the largest deviation of the bands of a tile (C, h, w), in those of the encoder."""
    bands = zip(tile, deviations, strict=True)
    found = (
        float(band[valid].std()) / deviation
        for band, deviation in bands
        if (valid := np.isfinite(band)).any()
    )
    return max(found, default=0.0)


def _labels(queries: Sequence[Query], separator: str) -> str:
    labels = separator.join(query.label for query in queries[:_LABELS])
    return labels if len(queries) <= _LABELS else f"{labels} and {len(queries) - _LABELS} more"


def _mean(queries: Sequence[Query]) -> npt.NDArray[np.float64]:
    return np.asarray(units(queries).mean(axis=0))
