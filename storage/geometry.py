"""Footprints: boxes in degrees as polygons, whole across the antimeridian."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import shapely.geometry
from shapely.validation import explain_validity

from storage.errors import ConfigError


def footprints(bbox: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """Return the footprints (n,) of boxes (n, 4) w s e n in WGS84 degrees.

    A box whose west is greater than its east crosses the antimeridian and becomes two polygons.
    """
    west, south, east, north = bbox.T
    crossing = west > east
    shapes = shapely.box(west, south, np.where(crossing, 180.0, east), north)
    for index in np.flatnonzero(crossing):
        rest = shapely.box(-180.0, south[index], east[index], north[index])
        shapes[index] = shapely.MultiPolygon([shapes[index], rest])
    return np.asarray(shapes, dtype=object)


Bounds = tuple[float, float, float, float]


Floats = npt.NDArray[np.float64]


Mask = npt.NDArray[np.bool_]


def touches(boxes: Floats, bbox: Bounds) -> Mask:
    """Return which boxes (n, 4) share a point with ``bbox``; either may cross the antimeridian.

    Examples
    --------
    >>> touches(np.array([[179.0, 0.0, -179.0, 1.0]]), (-179.5, 0.5, -178, 2))
    array([ True])
    """
    west, south, east, north = boxes.T
    low, bottom, high, top = bbox
    crossing = west > east
    across = np.zeros(len(boxes), dtype=np.bool_)
    for start, end in [(low, high)] if low <= high else [(low, 180.0), (-180.0, high)]:
        after, before = west <= end, east >= start
        across |= np.where(crossing, after | before, after & before)
    across &= (south <= top) & (north >= bottom)
    return across


def in_polygon(boxes: Floats, wkt: str) -> Mask:
    """Return which boxes (n, 4) intersect a polygon; boxes may cross the antimeridian.

    Examples
    --------
    >>> in_polygon(np.array([[0.0, 0.0, 1.0, 1.0]]), "POLYGON ((2 2, 3 2, 3 3, 2 2))")
    array([False])
    """
    polygon = shapely.from_wkt(wkt)
    mask = touches(boxes, polygon.bounds)
    kept = np.flatnonzero(mask)
    west, south, east, north = boxes[kept].T
    crossing = west > east
    shapely.prepare(polygon)
    inside = shapely.intersects(
        polygon, shapely.box(west, south, np.where(crossing, 180.0, east), north)
    )
    inside |= crossing & shapely.intersects(polygon, shapely.box(-180.0, south, east, north))
    mask[kept] = inside
    return mask


def polygon_wkt(polygon: str | Mapping[str, Any]) -> str:
    """Return a polygon as WKT.

    Parameters
    ----------
    polygon
        WKT, GeoJSON text or a GeoJSON mapping in WGS84 degrees.

    Raises
    ------
    ConfigError
        It is none of these, has no area, is not valid or leaves WGS84 degrees.
    """
    try:
        if isinstance(polygon, str) and not polygon.lstrip().startswith("{"):
            shape = shapely.from_wkt(polygon)
        else:
            geojson = json.loads(polygon) if isinstance(polygon, str) else polygon
            shape = shapely.geometry.shape(geojson.get("geometry", geojson))
    except (shapely.errors.ShapelyError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"filter: polygon {str(polygon)[:60]!r} is neither WKT nor GeoJSON ({reason})"
        ) from error
    if shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
        raise ConfigError(
            f"filter: polygon is a {shape.geom_type}{' without area' if shape.is_empty else ''}; "
            "give a Polygon or MultiPolygon"
        )
    if not shape.is_valid:
        raise ConfigError(
            f"filter: polygon is not valid ({explain_validity(shape)}); "
            "repair it, for example with shapely.make_valid"
        )
    west, south, east, north = shape.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise ConfigError(
            f"filter: polygon bounds {shape.bounds} leave WGS84 degrees; "
            "reproject it, or cut it at the antimeridian"
        )
    return str(shape.wkt)


def touches_polygon(geometry: Mapping[str, Any], wkt: str) -> bool:
    """Tell whether a GeoJSON geometry shares a point with a polygon, both in WGS84 degrees.

    Raises
    ------
    ValueError, KeyError, TypeError
        The geometry is malformed.

    Examples
    --------
    >>> touches_polygon({"type": "Point", "coordinates": [2, 2]}, "POLYGON ((0 0, 3 0, 3 3, 0 0))")
    True
    """
    return bool(shapely.intersects(shapely.from_wkt(wkt), shapely.geometry.shape(dict(geometry))))


def polygon_bounds(wkt: str) -> Bounds:
    """Return west, south, east and north of a polygon."""
    west, south, east, north = shapely.from_wkt(wkt).bounds
    return west, south, east, north
