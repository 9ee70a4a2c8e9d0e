"""Saved searches: a query that is a small file, to run again, to share, and to show as a layer.

A file is one JSON document, ``{"skysift": "saved search", "version": 1, ...}`` with the fields of
:class:`SavedSearch`. The query is its vector, which belongs to the encoder and not to an archive,
so a file made on one archive runs on another of the same encoder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.search.hits import Hits
from pipeline.search.query import WORDS, Query
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError, EncoderMismatchError
from storage.index.filter import Filter
from storage.location import Location
from storage.values import check_types

_KIND = "saved search"
_VERSION = 1
_MOST_BYTES = 8 * 1024 * 1024
_FILTERS = ("bbox", "polygon", "since", "until", "max_cloud_fraction", "scenes", "labels")


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
    of_words
        Whether words are part of the query (:class:`pipeline.search.query.Query`).
    filter
        Conditions on the hits, by the names of :class:`storage.index.filter.Filter`.
    """

    title: str
    encoder_fingerprint: str
    vector: tuple[float, ...]
    k: int = 100
    min_score: float | None = None
    distinct: str | None = None
    of_words: bool = False
    filter: Mapping[str, Any] = field(default_factory=dict)

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
        expected = searcher.manifest.encoder_fingerprint
        if self.encoder_fingerprint != expected:
            raise EncoderMismatchError(
                f"saved search {self.title!r} is of encoder {self.encoder_fingerprint[:16]}, but "
                f"index {searcher.index} holds vectors of {expected[:16]}; make the search again"
            )
        vector = np.array(self.vector, dtype=np.float32)
        note = WORDS if self.of_words else ""
        query = Query(vector=vector, label=self.title, note=note, of_words=self.of_words)
        if self.min_score is None:
            return searcher.answer(query, self.k, self.where, distinct=self.distinct)
        return searcher.answer(
            query, where=self.where, min_score=self.min_score, limit=self.k, distinct=self.distinct
        )


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
    document = {"skysift": _KIND, "version": _VERSION, **asdict(search)}
    place.write((json.dumps(document, indent=1) + "\n").encode())


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
    data = place.read()
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, more than {_MOST_BYTES:,}")
        document = json.loads(data)
        kind, version = document.pop("skysift"), document.pop("version")
        if (kind, version) != (_KIND, _VERSION):
            raise ValueError(f"it is a {kind!r} of version {version!r}, not of {_VERSION}")
        document["vector"] = tuple(float(value) for value in document["vector"])
        search = SavedSearch(**document)
        check_types(search)
        if search.k < 1 or not np.isfinite(search.vector).all() or not any(search.vector):
            raise ValueError("k is below 1, or the vector is not finite or zero")
        _ = search.where
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{place} is not a saved search ({error}); write one with `skysift search --save`"
        ) from error
    return search
