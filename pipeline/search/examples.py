"""Examples as people write them in Python, made into queries.

An example is a place, a picture, words, a tile, a vector, a hit of an earlier answer, or a query.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.search.detections import RIGHT, WRONG
from pipeline.search.query import Query, QueryResolver
from pipeline.search.saved import marks_of
from storage.dates import Moment
from storage.errors import ConfigError
from storage.formats import read_records
from storage.geometry import GeoInterface
from storage.index.sidecar import TILE_KEY
from storage.location import Location

LonLat = Sequence[float] | GeoInterface
"""Longitude and latitude in WGS84 degrees, or a point of shapely."""
Image = str | os.PathLike[str] | Location | npt.NDArray[Any]
"""A PNG, JPEG or GeoTIFF, or pixel values (C, h, w) in the encoder's bands, NaN where invalid."""
Vectors = npt.ArrayLike
"""One vector (D,), or several (n, D), of the index's encoder; of any length but zero."""
Example = Query | Mapping[str, Any] | LonLat | Image | Vectors
"""An example without its name; a mapping has the names of :func:`named_example`, or is a hit."""

_NAMES = ("lonlat", "date", "image", "bands", "text", "tile", "scene", "vector")
_GOES_WITH = {"date": "lonlat", "bands": "image", "scene": "tile"}


def named_example(
    resolver: QueryResolver,
    *,
    lonlat: LonLat | None = None,
    date: Moment | None = None,
    image: Image | None = None,
    bands: Sequence[int] | None = None,
    text: str | None = None,
    tile: str | None = None,
    scene: str | None = None,
    vector: Vectors | None = None,
) -> list[Query]:
    """Return the queries of examples that are given by name.

    Parameters
    ----------
    resolver
        Finds tiles and embeds pictures.
    lonlat, date
        The tile at a place, from the scene nearest to a date or the newest.
    image, bands
        A picture, and its bands from 1 in the encoder's order
        (:meth:`pipeline.search.query.QueryResolver.image`).
    text
        Words, for an encoder with a text tower.
    tile, scene
        A tile by its key, of one scene or the newest.
    vector
        One vector or several; each is an example.

    Raises
    ------
    ConfigError
        A value is not of its kind, or goes with a value that is not given.
    NotFoundError
        The index has no such tile.
    """
    given = {"date": date, "bands": bands, "scene": scene}
    owners = {"lonlat": lonlat, "image": image, "tile": tile}
    for name, value in given.items():
        if value is not None and owners[_GOES_WITH[name]] is None:
            raise ConfigError(f"like: {name} goes with {_GOES_WITH[name]}; give that too")
    found = []
    if lonlat is not None:
        found.append(resolver.point(*_degrees(lonlat), date=date))
    if image is not None:
        found.append(_picture(resolver, image, bands))
    if text is not None:
        found.append(resolver.text(_text(text, "text")))
    if tile is not None:
        found.append(resolver.tile(_text(tile, "tile"), scene and _text(scene, "scene")))
    if vector is not None:
        found += _vectors(resolver, vector)
    return found


def unnamed_example(resolver: QueryResolver, value: Example) -> list[Query]:
    """Return the queries of an example whose kind follows from its value.

    A text is the key of a tile if it has that form and is no file, else the file of a picture. Two
    numbers are longitude and latitude. A mapping is a hit, or has the names of
    :func:`named_example`.

    Raises
    ------
    ConfigError
        The value is no example.
    NotFoundError
        The index has no such tile.
    """
    if isinstance(value, Query):
        return [value]
    if isinstance(value, Mapping):
        return _of_mapping(resolver, value)
    if isinstance(value, str) and TILE_KEY.fullmatch(value) and not Path(value).exists():
        return [resolver.tile(value)]
    if isinstance(value, (str, os.PathLike, Location)):
        return [_picture(resolver, value, None)]
    if hasattr(value, "__geo_interface__"):
        return [resolver.point(*_degrees(value))]
    if np.shape(value) == (2,):
        return [resolver.point(*_degrees(value))]
    array = _numbers(value)
    if array.ndim == 3:
        return [resolver.pixels(array)]
    return _vectors(resolver, array)


def read_marks(resolver: QueryResolver, uri: str | Location) -> tuple[list[Query], list[Query]]:
    """Return the right and the wrong marks of a file.

    Parameters
    ----------
    resolver
        Of the index.
    uri
        GeoJSON or GeoParquet whose features have the property ``mark``, ``right`` or ``wrong``; or
        a saved search. A feature is the tile that its ``tile_key`` and ``scene`` name, else the
        tile at its middle, of the acquisition nearest to its ``datetime`` or the newest. Features
        without a mark are left out.

    Raises
    ------
    NotFoundError
        There is no such file, or the index lacks a tile of it.
    ConfigError
        The file is neither, or has no mark.
    """
    place = Location.of(uri)
    if place.uri.lower().endswith(".json") and (saved := marks_of(place, resolver)):
        return saved
    marked = [record for record in read_records(place) if record.get("mark") is not None]
    unknown = sorted({str(r["mark"]) for r in marked if r["mark"] not in (RIGHT, WRONG)})
    if unknown or not marked:
        raise ConfigError(
            f"{place}: {f'a mark is {unknown[0]!r}' if unknown else 'no feature has a mark'}; give "
            f"features with the property mark, {RIGHT!r} or {WRONG!r}"
        )
    named = [record for record in marked if record.get("tile_key")]
    tiles = resolver.marked([(record["tile_key"], record.get("scene")) for record in named])
    found = iter(tiles)
    right: list[Query] = []
    wrong: list[Query] = []
    for record in marked:
        if record.get("tile_key"):
            query = next(found)
        elif record["lonlat"] is None:
            raise ConfigError(
                f"{place}: a mark has neither a geometry nor a tile_key; draw it, or name its tile"
            )
        else:
            query = resolver.point(
                record["lonlat"][0], record["lonlat"][1], date=record.get("datetime")
            )
        (right if record["mark"] == RIGHT else wrong).append(query)
    return right, wrong


def _of_mapping(resolver: QueryResolver, value: Mapping[str, Any]) -> list[Query]:
    if "tile_key" in value:  # a hit of an earlier answer
        return [resolver.tile(_text(value["tile_key"], "tile_key"), value.get("scene"))]
    unknown = [name for name in value if name not in _NAMES]
    if unknown or not value:
        raise ConfigError(
            f"like: an example has no field {', '.join(map(repr, unknown)) or 'at all'}; "
            f"give a hit, or a mapping with {', '.join(_NAMES)}"
        )
    return named_example(resolver, **value)


def _picture(resolver: QueryResolver, image: Image, bands: Sequence[int] | None) -> Query:
    if isinstance(image, Location):
        return resolver.image(image, bands)
    if isinstance(image, (str, os.PathLike)):
        return resolver.image(os.fspath(image), bands)
    pixels = _numbers(image)
    if pixels.ndim != 3:
        raise ConfigError(
            f"like: image is an array of shape {pixels.shape}; give bands, height, width"
        )
    return resolver.pixels(pixels, bands=bands)


def _vectors(resolver: QueryResolver, vector: Vectors) -> list[Query]:
    vectors = np.atleast_2d(_numbers(vector))
    if vectors.ndim != 2 or vectors.shape[1] != resolver.dimension or not len(vectors):
        raise ConfigError(
            f"like: vectors have shape {np.shape(vector)}; the index's encoder makes vectors of "
            f"{resolver.dimension} values"
        )
    return [
        Query(vector=each, label="vector" if len(vectors) == 1 else f"vector {number}")
        for number, each in enumerate(vectors)
    ]


def _degrees(lonlat: Any) -> tuple[float, float]:
    geojson = getattr(lonlat, "__geo_interface__", None)
    if geojson is not None:
        lonlat = geojson.get("geometry", geojson).get("coordinates", ())
    values = np.asarray(lonlat, dtype=object).ravel().tolist()
    try:
        lon, lat = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"like: lonlat is {lonlat!r:.60}; give longitude and latitude, such as (103.75, 17.92)"
        ) from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ConfigError(
            f"like: lonlat {lon:g}, {lat:g} is outside -180..180, -90..90; longitude comes first"
        )
    return lon, lat


def _numbers(value: Any) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"like: {value!r:.60} is no example; give a place, a picture, a tile, a vector or a hit"
        ) from error


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"like: {name} is {value!r:.60}; give its text")
    return value
