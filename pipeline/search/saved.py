"""Saved searches: a query that is a small file, to run again, to share, and to show as a layer.

A file is one JSON document, ``{"skysift": "saved search", "version": 3, ...}`` with the fields of
:class:`SavedSearch`. The query is its vector, which belongs to the encoder and not to an archive,
so a file made on one archive runs on another of the same encoder. Each mark keeps its vector, from
which the query is learned again with more marks, and its place and date, from which it can be made
again for another encoder. Files of version 1, without marks, and of version 2, without an accuracy
check, are read.
"""

import base64
import binascii
import datetime as dt
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from pipeline.search.accuracy import Check, CheckedTile
from pipeline.search.detections import REVIEWED, THRESHOLD, Detections, detect
from pipeline.search.hits import Hits
from pipeline.search.marks import Calibration, Stratum
from pipeline.search.query import LEARNED, WORDS, Query, QueryResolver, blend_remark, blended
from pipeline.search.searcher import DEFAULT_LIMIT, Searcher
from storage.errors import ConfigError, EncoderMismatchError, SkysiftError
from storage.index.filter import Filter
from storage.index.ranking import Float64
from storage.location import Location
from storage.values import check_types, refuse_later

_KIND = "saved search"
VERSION = 3
_HEAD_BYTES = 1024
_MOST_BYTES = 64 * 1024 * 1024
_FILTERS = ("bbox", "polygon", "since", "until", "max_cloud_fraction", "scenes", "labels")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """An example that is right or wrong.

    Attributes
    ----------
    mark
        ``right`` or ``wrong``.
    vector
        Its vector (D,) of the search's encoder: in a file the base64 of float32 values, lowest byte
        first.
    label
        For people.
    tile, scene
        The tile's key and the scene of its archive; None where the example is no tile.
    lonlat, date
        The middle of the tile in WGS84 degrees, and its acquisition in ISO 8601 and UTC.
    """

    mark: Literal["right", "wrong"]
    vector: tuple[float, ...]
    label: str = ""
    tile: str | None = None
    scene: str | None = None
    lonlat: tuple[float, float] | None = None
    date: str | None = None

    @classmethod
    def of(cls, query: Query, mark: Literal["right", "wrong"]) -> "Mark":
        """Return the mark of an example."""
        return cls(
            mark=mark,
            vector=tuple(query.vector.tolist()),
            label=query.label,
            tile=query.tile,
            scene=query.scene,
            lonlat=query.lonlat,
            date=None if query.date is None else query.date.isoformat(),
        )

    def query(self) -> Query:
        """Return the example; its row is unknown, since the archive may be another."""
        return Query(
            vector=np.array(self.vector, dtype=np.float32),
            label=self.label,
            tile=self.tile,
            scene=self.scene,
            lonlat=self.lonlat,
            date=None if self.date is None else dt.datetime.fromisoformat(self.date),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedSearch:
    """A query, and how it is answered.

    Attributes
    ----------
    title
        For people.
    encoder_fingerprint
        The encoder that the vector is of.
    vector
        The query (D,).
    k
        Most hits.
    min_score
        Least cosine similarity of a hit; None takes the best ``k``, whatever their score.
    distinct
        ``place`` for one hit a place.
    blend
        Weight of the appearance part that the query was made with; None for vectors of one part.
    of_words, learned
        Whether words are part of the query, and whether it was learned from marks
        (:class:`pipeline.search.query.Query`).
    filter
        Conditions on the hits, by the names of :class:`storage.index.filter.Filter`.
    marks
        The marks that the query was made of.
    calibration
        What its scores mean; None where the marks are too few.
    threshold
        Least probability of a detection, between 0 and 1; None without detections.
    review
        The number of tiles nearest to the threshold that people look at.
    check
        The accuracy check of its detections; None where there is none.
    """

    title: str
    encoder_fingerprint: str
    vector: tuple[float, ...]
    k: int = 100
    min_score: float | None = None
    distinct: str | None = None
    blend: float | None = None
    of_words: bool = False
    learned: bool = False
    filter: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    calibration: Calibration | None = None
    threshold: float | None = None
    review: int = REVIEWED
    check: Check | None = None

    @classmethod
    def of(
        cls, searcher: Searcher, query: Query, where: Filter | None = None, **settings: Any
    ) -> "SavedSearch":
        """Return the search of a query, with its marks and, where it has none, the default blend.

        Parameters
        ----------
        searcher, query, where
            The index, the query, and the conditions on the hits.
        settings
            Fields of the search: ``title``, ``k``, ``min_score``, ``distinct``, ``calibration``,
            ``threshold``, ``review``, ``check``.
        """
        query = blended(searcher, query)
        marks = [Mark.of(example, "right") for example in query.right or (query,)]
        marks += [Mark.of(example, "wrong") for example in query.wrong]
        return cls(
            encoder_fingerprint=searcher.manifest.encoder_fingerprint,
            vector=tuple(query.vector.tolist()),
            blend=query.blend,
            of_words=query.of_words,
            learned=query.learned,
            filter=plain_filter(where or Filter()),
            marks=tuple(marks),
            **{"title": query.label, **settings},
        )

    @property
    def weights(self) -> Float64:
        """The vector (D,) whose dot product with a vector of unit length is the score."""
        vector = np.array(self.vector, dtype=np.float32)
        return Query(vector=vector, label=self.title, blend=self.blend).weights

    @property
    def where(self) -> Filter:
        """The filter.

        Raises
        ------
        ConfigError
            It has an unknown or an invalid condition.
        """
        unknown = sorted(set(self.filter) - set(_FILTERS))
        if unknown:
            raise ConfigError(
                f"saved search {self.title!r}: no filter is named {unknown[0]!r}; give "
                f"{', '.join(_FILTERS)}"
            )
        several = {n: tuple(v) for n, v in self.filter.items() if n in ("scenes", "labels")}
        return Filter(**{**self.filter, **several})

    def at(self, threshold: float) -> "SavedSearch":
        """Return the search whose hits are the detections at a probability between 0 and 1.

        Raises
        ------
        ConfigError
            The search has no calibration.
        """
        if self.calibration is None:
            raise ConfigError(
                f"saved search {self.title!r} has no calibration, so a threshold says nothing; "
                "make it with `skysift detect --marks FILE --save`"
            )
        score = min(max(self.calibration.score_at(threshold), -1.0), 1.0)
        return replace(self, threshold=threshold, min_score=score, k=max(self.k, DEFAULT_LIMIT))

    @property
    def examples(self) -> tuple[list[Query], list[Query]]:
        """The right and the wrong examples that the query was made of."""
        right, wrong = (
            [mark.query() for mark in self.marks if mark.mark == name]
            for name in ("right", "wrong")
        )
        return right, wrong

    def check_encoder(self, fingerprint: str, holder: str) -> None:
        """Check that an index or archive, the ``holder``, has vectors of the search's encoder.

        Raises
        ------
        EncoderMismatchError
            They are of another encoder.
        """
        if self.encoder_fingerprint != fingerprint:
            raise EncoderMismatchError(
                f"saved search {self.title!r} is of encoder {self.encoder_fingerprint[:16]}, but "
                f"{holder} holds vectors of {fingerprint[:16]}; make the search again: "
                "--marks FILE --save FILE"
            )

    def query(self, searcher: Searcher) -> Query:
        """Return the query for an index; marks that are tiles of the index are its own rows.

        Raises
        ------
        EncoderMismatchError
            The index holds vectors of another encoder.
        SearchUnavailableError
            A shard did not answer.
        """
        self.check_encoder(searcher.manifest.encoder_fingerprint, f"index {searcher.index}")
        rows = _rows_of(searcher, self.marks)
        right, wrong = (
            tuple(replace(one, row=rows.get((one.tile, one.scene))) for one in examples)
            for examples in self.examples
        )
        notes = [(WORDS, self.of_words), (LEARNED, self.learned)]
        return Query(
            vector=np.array(self.vector, dtype=np.float32),
            label=self.title,
            note="; ".join(note for note, holds in notes if holds),
            examples=tuple(sorted(rows.values())),
            of_words=self.of_words,
            learned=self.learned,
            blend=self.blend,
            remark="" if self.blend is None else blend_remark(self.blend),
            right=right,
            wrong=wrong,
        )

    def detect(self, searcher: Searcher, **settings: Any) -> Detections:
        """Return the detections of the search in its region.

        Parameters
        ----------
        searcher
            The index.
        settings
            Those of :func:`pipeline.search.detections.detect`, in place of the search's own.

        Raises
        ------
        EncoderMismatchError
            The index holds vectors of another encoder.
        ConfigError
            The search has too few marks.
        SearchUnavailableError
            A shard did not answer.
        """
        own: dict[str, Any] = {
            "threshold": self.threshold or THRESHOLD,
            "where": self.where,
            "review": self.review,
            "calibration": self.calibration,
        }
        return detect(searcher, self.query(searcher), **{**own, **settings})

    def answer(self, searcher: Searcher) -> Hits:
        """Run the search.

        Raises
        ------
        EncoderMismatchError
            The index holds vectors of another encoder.
        ConfigError
            The search is not one of this index.
        SearchUnavailableError
            A shard did not answer.
        """
        query = self.query(searcher)
        if self.min_score is None:
            return searcher.answer(query, self.k, self.where, distinct=self.distinct)
        return searcher.answer(
            query, where=self.where, min_score=self.min_score, limit=self.k, distinct=self.distinct
        )


def _rows_of(searcher: Searcher, marks: Sequence[Mark]) -> dict[tuple[str | None, str | None], int]:
    """Return the rows of an index that are marks, by tile and scene."""
    wanted = {(mark.tile, mark.scene) for mark in marks if mark.tile and mark.scene}
    if not wanted:
        return {}
    tiles, scenes = (tuple(sorted(set(names))) for names in zip(*wanted, strict=True))
    found = searcher.find(Filter(tiles=tiles, scenes=scenes), len(tiles) * len(scenes))
    keys = zip(found["tile_key"].to_pylist(), found["scene"].to_pylist(), strict=True)
    rows = zip(found["row"].to_pylist(), keys, strict=True)
    return {key: row for row, key in rows if key in wanted}


def plain_filter(where: Filter) -> dict[str, Any]:
    """Return the conditions of a filter as JSON values, as a saved search keeps them."""
    values = {name: getattr(where, name) for name in _FILTERS}
    values |= {name: values[name] and values[name].isoformat() for name in ("since", "until")}
    return {name: value for name, value in values.items() if value not in (None, ())}


def save_search(search: SavedSearch, uri: str | Location) -> None:
    """Write a search as a file.

    Raises
    ------
    ConfigError
        The name does not end in .json.
    """
    place = Location.of(uri)
    if PurePosixPath(place.uri).suffix.lower() != ".json":
        raise ConfigError(f"a search cannot be saved as {place}: end the name in .json")
    place.write(search_document(search))


def search_document(search: SavedSearch) -> bytes:
    """Return the content of the file of a search."""
    document = {"skysift": _KIND, "version": VERSION, **asdict(search)}
    document["marks"] = [{**asdict(mark), "vector": _text(mark.vector)} for mark in search.marks]
    return (json.dumps(document, indent=1) + "\n").encode()


def load_search(uri: str | Location) -> SavedSearch:
    """Read a saved search.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        The file is not a saved search, or one of a later Skysift.
    """
    place = Location.of(uri)
    return read_search(place.read(), str(place))


def read_search(data: bytes, name: str) -> SavedSearch:
    """Return the saved search of a file's content; ``name`` is the file's name for people.

    Raises
    ------
    ConfigError
        It is not a saved search, or one of a later Skysift.
    """
    try:
        search = _of_document(_document(data, name))
        check_types(search)
        _check(search)
    except KeyError as error:
        raise _not_a_search(name, f"it has no {error.args[0]!r}") from error
    except RecursionError as error:
        raise _not_a_search(name, "it is nested too deeply") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise _not_a_search(name, str(error)) from error
    except SkysiftError as error:
        raise ConfigError(str(error)) from error
    return search


def _not_a_search(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{name} is not a saved search: {reason}; write one with `skysift search --save FILE`, "
        "or save one on the map"
    )


def _document(data: bytes, name: str) -> dict[str, Any]:
    """Return the fields of a file, once it says that it is a saved search.

    Raises
    ------
    ValueError
        It is something else.
    SkysiftError
        A later Skysift wrote it.
    """
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, more than {_MOST_BYTES:,}")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or "skysift" not in document:
        raise ValueError(f'it does not begin with {{"skysift": "{_KIND}"')
    kind, version = document.pop("skysift"), document.pop("version", None)
    if kind == _KIND:
        refuse_later(f"saved search {name}", version, VERSION)
    if kind != _KIND or version not in range(1, VERSION + 1):
        raise ValueError(f"it is a {kind!r} of version {version!r}, not of 1 to {VERSION}")
    return document


def marks_of(place: Location, resolver: QueryResolver) -> tuple[list[Query], list[Query]] | None:
    """Return the right and wrong marks of a file if it is a saved search, else None.

    Raises
    ------
    ConfigError
        The saved search is damaged, or has no marks.
    NotFoundError, EncoderMismatchError
        See :func:`marks_in`.
    """
    if f'"{_KIND}"'.encode() not in place.read()[:_HEAD_BYTES]:
        return None
    search = load_search(place)
    if not search.marks:
        raise ConfigError(f"{place} is a saved search without marks; make it again from marks")
    return marks_in(search, resolver)


def marks_in(search: SavedSearch, resolver: QueryResolver) -> tuple[list[Query], list[Query]]:
    """Return the right and wrong marks of a search for an index.

    Marks of the encoder of the index keep their vectors; those that are tiles of the index have
    their rows. Marks of another encoder become the tiles of the index with their keys and scenes,
    else those at their places, of the acquisitions nearest to their dates.

    Raises
    ------
    NotFoundError
        The index has no tile at the place of a mark of another encoder.
    EncoderMismatchError
        It is of another encoder, and a mark has no place.
    """
    if search.encoder_fingerprint == resolver.searcher.manifest.encoder_fingerprint:
        query = search.query(resolver.searcher)
        return list(query.right), list(query.wrong)
    known = _rows_of(resolver.searcher, search.marks).keys()
    right, wrong = search.examples
    return _same_tiles(resolver, right, known), _same_tiles(resolver, wrong, known)


def _same_tiles(
    resolver: QueryResolver, examples: Sequence[Query], known: Set[tuple[str | None, str | None]]
) -> list[Query]:
    """Return the tiles of an index for examples of another encoder, by key or place and date."""
    found = []
    for example in examples:
        if example.tile is not None and (example.tile, example.scene) in known:
            found.append(resolver.tile(example.tile, example.scene))
            continue
        if example.lonlat is None:
            raise EncoderMismatchError(
                f"the mark {example.label!r} is of another encoder and has no place, as pictures "
                "and words have none; give it again"
            )
        date = None if example.date is None else example.date.isoformat()
        found.append(resolver.point(*example.lonlat, date=date))
    return found


def _of_document(document: dict[str, Any]) -> SavedSearch:
    """Return the search of the fields of a file."""
    marks = [
        Mark(**{**mark, "vector": _numbers(mark["vector"]), "lonlat": _pair(mark.get("lonlat"))})
        for mark in document.pop("marks", ())
    ]
    calibration = document.pop("calibration", None)
    if calibration is not None:
        calibration = Calibration(slope=calibration["slope"], offset=calibration["offset"])
    check = document.pop("check", None)
    if check is not None:
        check = Check(
            strata=tuple(Stratum(**stratum) for stratum in check["strata"]),
            tiles=tuple(CheckedTile(**tile) for tile in check["tiles"]),
            below=check.get("below"),
        )
    vector = tuple(float(value) for value in document.pop("vector"))
    return SavedSearch(
        **document, vector=vector, marks=tuple(marks), calibration=calibration, check=check
    )


def _check(search: SavedSearch) -> None:
    """Check the values of a search.

    Raises
    ------
    ValueError
        A value is impossible.
    """
    vectors = [search.vector, *(mark.vector for mark in search.marks)]
    if not all(np.isfinite(vector).all() and any(vector) for vector in vectors):
        raise ValueError("a vector is not finite or zero")
    if {len(vector) for vector in vectors} != {len(search.vector)}:
        raise ValueError("the vectors of its marks have another length than its own")
    if search.k < 1 or search.review < 0:
        raise ValueError("k is below 1, or review below 0")
    if search.blend is not None and not 0 <= search.blend <= 1:
        raise ValueError(f"blend is {search.blend}, not from 0 to 1")
    if search.threshold is not None and not 0 < search.threshold < 1:
        raise ValueError(f"threshold is {search.threshold}, not between 0 and 1")
    known = search.calibration
    if known is not None and not (
        np.isfinite([known.slope, known.offset]).all() and known.slope > 0
    ):
        raise ValueError("its calibration has no rising slope")
    for mark in search.marks:
        if mark.date is not None:
            dt.datetime.fromisoformat(mark.date)
    _ = search.where


def _text(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").tolist())
    except binascii.Error as error:
        raise ValueError(f"the vector of a mark is no base64 ({error})") from error


def _pair(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
