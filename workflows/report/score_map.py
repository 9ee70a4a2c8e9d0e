"""A map of the similarity of every place to a query, as one PMTiles file.

The file holds the vector tiles of :mod:`workflows.service.layers` for all zooms, so MapLibre, QGIS
and GDAL show it without a service.

References
----------
PMTiles 3, https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md.
"""

import gzip
from typing import TYPE_CHECKING, Any

from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from pipeline.search.query import Query, blended
from storage.errors import ConfigError
from storage.geometry import unwrapped
from storage.location import Location
from workflows.service.layers import Layers, to_text

if TYPE_CHECKING:
    from pipeline.search.searcher import Searcher

_SCALE = 10**7
_MOST_LATITUDE = 85.0511


def check_score_map(uri: str | Location) -> None:
    """Check that a score map can be written to a file of this name.

    Raises
    ------
    ConfigError
        The name does not end in .pmtiles.
    """
    if not str(uri).lower().endswith(".pmtiles"):
        raise ConfigError(f"a score map cannot be written to {str(uri)!r}: end it in .pmtiles")


def write_score_map(searcher: "Searcher", query: Query, uri: str | Location) -> int:
    """Write the similarity of every place of an index to a query; return the number of map tiles.

    The zooms go from 0 to the first at which most places are drawn with their own outlines;
    programs enlarge those. Layers and properties are those of ``/v1/scores``.

    Raises
    ------
    ConfigError
        The name does not end in .pmtiles.
    """
    check_score_map(uri)
    query = blended(searcher, query)
    layers, like = Layers(searcher), to_text(query.weights)
    places = [(z, x, y) for z in range(layers.deepest + 1) for x, y in layers.tiles(z)]
    with Location.of(uri).staged() as path, path.open("wb") as stream:
        writer = Writer(stream)
        for tile_id, at in sorted((zxy_to_tileid(*at), at) for at in places):
            writer.write_tile(tile_id, gzip.compress(layers.scores(like, at), mtime=0))
        writer.finalize(_header(searcher, layers.deepest), _about(query, layers.deepest))
    return len(places)


def _header(searcher: "Searcher", deepest: int) -> dict[str, Any]:
    west, south, east, north = unwrapped([searcher.manifest.bbox])[0].tolist()
    south, north = max(south, -_MOST_LATITUDE), min(north, _MOST_LATITUDE)
    around = east > 180
    west, east = (-180.0, 180.0) if around else (west, east)
    edges = {"min_lon": west, "min_lat": south, "max_lon": east, "max_lat": north}
    edges |= {"center_lon": (west + east) / 2, "center_lat": (south + north) / 2}
    return {
        "tile_type": TileType.MVT,
        "tile_compression": Compression.GZIP,
        "min_zoom": 0,
        "max_zoom": deepest,
        "center_zoom": deepest,
        **{f"{name}_e7": round(value * _SCALE) for name, value in edges.items()},
    }


def _about(query: Query, deepest: int) -> dict[str, Any]:
    fields = {"score": "Number"}
    return {
        "name": f"like {query.label}",
        "description": "Score of every place for a query.",
        "vector_layers": [
            {"id": name, "fields": more, "minzoom": 0, "maxzoom": deepest}
            for name, more in (
                ("scores", fields),
                ("scores-places", {**fields, "tile": "String"}),
            )
        ],
    }
