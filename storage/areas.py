"""Areas as people have them, as one shape in WGS84 degrees: files, GeoJSON, objects, any CRS.

:func:`storage.geometry.polygon_wkt` checks the shape. A file is read only where a program names it
by a path; a text is never a file's name here, because requests hold texts.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry

from storage.errors import ConfigError, NotFoundError

TEXT_SUFFIXES = (".geojson", ".json", ".wkt", ".txt")
_MAGIC = {
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\x00\x00\x27\x0a",
    ".fgb": b"fgb",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
}
"""First bytes. GDAL opens what the content claims to be, and some formats name further files."""
SUFFIXES = (*TEXT_SUFFIXES, *_MAGIC)
_MOST_BYTES = 64 * 1024 * 1024
_SRID = re.compile(r"\s*SRID=(\d+);", re.IGNORECASE)
_AUTHORITY_CODE = re.compile(
    r"(?:urn:(?:ogc|x-ogc):def:crs:)?(EPSG|OGC|ESRI):(?:[\w.]*:)?(\w+)", re.IGNORECASE
)
_FEW_POINTS = 1_000
_STEPS = 128


def area_shape(area: Any) -> Any:
    """Return an area in any form as one shapely shape in WGS84 degrees.

    Parameters
    ----------
    area
        A path (:class:`os.PathLike`) of GeoJSON, WKT, GeoPackage, Shapefile, FlatGeobuf or
        GeoParquet; WKT or GeoJSON as text; a GeoJSON mapping; an object with
        ``__geo_interface__``. The CRS is that of the file, of GeoJSON's member ``crs``, of EWKT's
        ``SRID=``, or of the object's ``crs``; else WGS84. Polygons of a collection are joined.

    Raises
    ------
    ConfigError, NotFoundError
        The file is not readable, too large or has several layers.
    ValueError, LookupError, TypeError, AttributeError, ShapelyError
        The area is none of these, or its CRS is not known.
    """
    if isinstance(area, os.PathLike):
        return _of_file(Path(area))
    if isinstance(area, str):
        return _of_text(area)
    return _of_geojson(area)


def is_area_file(text: str) -> bool:
    """Tell whether a text looks like the name of a file that :func:`area_shape` reads.

    Examples
    --------
    >>> is_area_file("fields.GPKG"), is_area_file("POLYGON ((0 0, 1 0, 1 1, 0 0))")
    (True, False)
    """
    return text.strip().lower().endswith(SUFFIXES)


def _of_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path} is no area; give a file that ends in {', '.join(SUFFIXES)}")
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ConfigError(
                f"{path} has {size:,} bytes, an area at most {_MOST_BYTES:,}; simplify it"
            )
        if suffix in TEXT_SUFFIXES:
            return _of_text(path.read_text(encoding="utf-8-sig"))
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); write it again") from error
    if not head.startswith(_MAGIC[suffix]):
        raise ConfigError(f"{path} does not begin as a {suffix} file does; write it again")
    return _of_table(path, suffix)


def _of_table(path: Path, suffix: str) -> Any:
    import geopandas

    try:
        if suffix.endswith("parquet"):
            frame = geopandas.read_parquet(path)
        else:
            layers = list(geopandas.list_layers(path)["name"])
            if len(layers) != 1:
                raise ConfigError(
                    f"{path} has {len(layers)} layers ({', '.join(layers)}); "
                    "export the layer of the area to a file of its own"
                )
            frame = geopandas.read_file(path, columns=[])
    except ConfigError:
        raise
    except Exception as error:  # GDAL's and Arrow's readers raise whatever they like
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be read as an area ({reason})") from error
    geometry = getattr(frame, "geometry", ())
    return _in_degrees(_joined(geometry), getattr(frame, "crs", None))


def _of_text(text: str) -> Any:
    if text.lstrip().startswith("{"):
        return _of_geojson(json.loads(text))
    srid = _SRID.match(text)
    shape = shapely.from_wkt(text[srid.end() :] if srid else text)
    return _in_degrees(shape, f"EPSG:{srid[1]}" if srid else None)


def _of_geojson(document: Any) -> Any:
    geojson = getattr(document, "__geo_interface__", document)
    crs = getattr(document, "crs", None) or _stated_crs(geojson)
    if crs is None and isinstance(document, shapely.Geometry) and shapely.get_srid(document):
        crs = f"EPSG:{shapely.get_srid(document)}"
    if geojson.get("type") == "FeatureCollection":
        members = [feature["geometry"] for feature in geojson["features"]]
    elif geojson.get("type") == "GeometryCollection":
        members = geojson["geometries"]
    else:
        return _in_degrees(shapely.geometry.shape(geojson.get("geometry", geojson)), crs)
    return _in_degrees(_joined(map(shapely.geometry.shape, members)), crs)


def _stated_crs(geojson: Mapping[str, Any]) -> str | None:
    """Return the CRS of GeoJSON of 2008, which many programs still write.

    Only a code of an authority counts: a request could make PROJ open files by other texts.
    """
    if geojson.get("crs") is None:
        return None
    name = str(geojson["crs"]["properties"].get("name"))
    code = _AUTHORITY_CODE.fullmatch(name)
    if code is None:
        raise ValueError(f"its crs {name:.60} is not a code such as EPSG:32648")
    return f"{code[1].upper()}:{code[2]}"


def _joined(shapes: Iterable[Any]) -> Any:
    """Return shapes as one; a shape that cannot be joined is returned, for the caller's checks."""
    found = list(shapes)
    if any(shape is None for shape in found):
        raise ValueError("one of its features has no geometry")
    odd = (s for s in found if s.geom_type not in ("Polygon", "MultiPolygon") or not s.is_valid)
    return next(odd, None) or shapely.union_all(found)


def _in_degrees(shape: Any, crs: Any) -> Any:
    """Return a shape of a CRS in WGS84 degrees; None means that it is already.

    Edges that are straight in the CRS are followed by further points.
    """
    if crs is None:
        return shape
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    try:
        known = CRS.from_user_input(crs)
        if known.to_epsg() == 4326 or known.to_authority() == ("OGC", "CRS84"):
            return shape
        transformer = Transformer.from_crs(known, "EPSG:4326", always_xy=True)
    except ProjError as error:
        raise ValueError(f"its CRS {crs!s:.60} is not known") from error
    west, south, east, north = shape.bounds
    longest = max(east - west, north - south)
    # Outlines of many points are close to their edges already.
    if known.is_projected and longest > 0 and shapely.get_num_coordinates(shape) <= _FEW_POINTS:
        shape = shapely.segmentize(shape, longest / _STEPS)
    moved = shapely.transform(shape, lambda xy: np.stack(transformer.transform(*xy.T), axis=1))
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise ValueError(f"its coordinates have no place in its CRS {known.name}")
    return _cut_at_antimeridian(moved)


def _cut_at_antimeridian(shape: Any) -> Any:
    """Return a shape whose rings jump between -180 and 180 as parts on both sides."""
    parts = []
    for polygon in shapely.get_parts(shape).tolist():
        steps = np.diff(shapely.get_coordinates(shapely.get_exterior_ring(polygon))[:, 0])
        jumps = int((np.abs(steps) > 180).sum())
        if jumps % 2:
            raise ValueError("it encloses a pole; give a box, or parts that do not touch the pole")
        if not jumps:
            parts.append(polygon)
            continue
        eastward = shapely.transform(polygon, lambda xy: np.stack([xy[:, 0] % 360, xy[:, 1]], 1))
        beyond = shapely.intersection(eastward, shapely.box(180, -90, 360, 90))
        parts.append(shapely.intersection(eastward, shapely.box(0, -90, 180, 90)))
        parts.append(shapely.transform(beyond, lambda xy: xy - [360, 0]))
    return shape if len(parts) == shapely.get_num_geometries(shape) else shapely.union_all(parts)
