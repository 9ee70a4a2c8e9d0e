"""Boxes, polygons and footprints in WGS84 degrees; the only place that handles the antimeridian.

A box is (west, south, east, north). Longitudes lie between -180 and 180; a box whose west is
greater than its east crosses the antimeridian. GeoJSON of such a box is cut at 180 degrees, as
RFC 7946 requires.
"""

import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely
import shapely.geometry
from shapely.validation import explain_validity

from storage.areas import area_shape, is_area_file
from storage.errors import ConfigError, SkysiftError

EDGES = ("west", "south", "east", "north")
BBox = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_POLE = 90 - 1e-9
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What shapely raises for a document that is no geometry."""


def check_bbox(bbox: Sequence[float], subject: str) -> BBox:
    """Return a box as four floats.

    Raises
    ------
    ConfigError
        The values are not west, south, east, north in degrees.

    Examples
    --------
    >>> check_bbox([170, -20, -170, -10], "filter")
    (170.0, -20.0, -170.0, -10.0)
    """
    try:
        values = tuple(float(value) for value in bbox)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{subject}: bbox is {bbox!r}; give four numbers: west, south, east, north"
        ) from error
    if len(values) != 4:
        raise ConfigError(f"{subject}: bbox {bbox} has {len(values)} numbers; give w, s, e, n")
    if not are_boxes(np.array([values]))[0]:
        raise ConfigError(
            f"{subject}: bbox {values} is not west, south, east, north in WGS84 degrees; "
            "check the order (south <= north; west > east only across the antimeridian)"
        )
    west, south, east, north = values
    return west, south, east, north


def usable_bbox(numbers: Sequence[float]) -> BBox | None:
    """Return a bbox of GeoJSON, with or without heights, as a box; None when it is no place.

    Longitudes may count from 0 to 360.

    Raises
    ------
    ValueError
        There are not four or six numbers.

    Examples
    --------
    >>> usable_bbox([170, -20, 0, 190, -10, 500])
    (170.0, -20.0, -170.0, -10.0)
    >>> usable_bbox([0, 50, 1, 49]) is None
    True
    """
    if len(numbers) not in (4, 6):
        raise ValueError(f"bbox has {len(numbers)} numbers, not 4 or 6")
    half = len(numbers) // 2
    west, south, east, north = (float(numbers[i]) for i in (0, 1, half, half + 1))
    if math.isfinite(west) and math.isfinite(east) and max(abs(west), abs(east)) > 180:
        low, high = wrapped([west, east]).tolist()
        around = east - west >= 360
        west, east = (-180.0, 180.0) if around else (low, 180.0 if high == -180 else high)
    return (
        (west, south, east, north) if are_boxes(np.array([[west, south, east, north]]))[0] else None
    )


def are_boxes(boxes: Floats) -> Mask:
    """Return which rows (n, 4) are boxes in degrees, south not above north; NaN is none.

    Examples
    --------
    >>> are_boxes(np.array([[170.0, 0, -170, 1], [0, 1, 1, 0], [0, 0, 181, 1]]))
    array([ True, False, False])
    """
    west, south, east, north = boxes.T
    longitudes = (np.abs(west) <= 180) & (np.abs(east) <= 180)
    mask: Mask = longitudes & (south >= -90) & (south <= north) & (north <= 90)
    return mask


def unwrapped(boxes: npt.ArrayLike) -> Floats:
    """Return boxes (n, 4) with east never below west: above 180 where a box crosses.

    Examples
    --------
    >>> unwrapped([[179.0, 0.0, -179.0, 1.0], [10.0, 0.0, 11.0, 1.0]])
    array([[179.,   0., 181.,   1.],
           [ 10.,   0.,  11.,   1.]])
    """
    result = np.array(boxes, dtype=np.float64)
    result[:, 2] += 360.0 * (result[:, 0] > result[:, 2])
    return result


def wrapped(longitudes: npt.ArrayLike) -> Floats:
    """Return longitudes as the same meridians from -180 (included) to 180 (excluded).

    Examples
    --------
    >>> wrapped([181.0, -180.0, 10.0])
    array([-179., -180.,   10.])
    """
    return (np.asarray(longitudes, dtype=np.float64) + 180) % 360 - 180


def cut(bbox: BBox) -> list[BBox]:
    """Return a box as boxes that do not cross the antimeridian: itself, or its two parts.

    Examples
    --------
    >>> cut((179.0, 0.0, -179.0, 1.0))
    [(179.0, 0.0, 180.0, 1.0), (-180.0, 0.0, -179.0, 1.0)]
    """
    west, south, east, north = bbox
    if west <= east:
        return [bbox]
    return [(west, south, 180.0, north), (-180.0, south, east, north)]


def centres(boxes: npt.ArrayLike) -> Floats:
    """Return longitude and latitude (n, 2) of the middles of boxes (n, 4).

    Examples
    --------
    >>> centres([[178.0, 0.0, -179.0, 1.0], [10.0, 0.0, 11.0, 1.0]])
    array([[179.5,   0.5],
           [ 10.5,   0.5]])
    """
    west, south, east, north = unwrapped(boxes).T
    longitudes = (west + east) / 2
    longitudes = np.where(longitudes > 180, longitudes - 360, longitudes)
    return np.stack([longitudes, (south + north) / 2], axis=1)


def hilbert(points: Floats) -> npt.NDArray[np.uint32]:
    """Return the distances (n,) along a Hilbert curve of longitudes and latitudes (n, 2).

    The curve has 2**16 steps along each side of the world; near places are mostly near on it.

    Examples
    --------
    >>> hilbert(np.array([[-180.0, -90], [-179.99, -90], [180, -90]])).tolist()
    [0, 1, 4294967295]
    """
    x, y = ((points + np.array([180, 90])) / [360, 180] * 65536).clip(0, 65535).astype(np.int64).T
    distance = np.zeros(len(points), dtype=np.int64)
    side = 1 << 15
    while side:
        right, up = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ up)
        turned = right & ~up
        x, y = np.where(turned, 65535 - x, x), np.where(turned, 65535 - y, y)
        x, y = np.where(up, x, y), np.where(up, y, x)
        side >>= 1
    return distance.astype(np.uint32)


def enclosing(boxes: npt.ArrayLike) -> BBox:
    """Return the box around boxes (n, 4), at least one.

    The result crosses the antimeridian when one of the boxes does and at most half the globe is
    between its edges; it spans all longitudes when more is.

    Examples
    --------
    >>> enclosing([[179.0, 0.0, -179.0, 1.0], [-179.0, 0.0, -178.0, 2.0]])
    (179.0, 0.0, -178.0, 2.0)
    >>> enclosing([[179.0, 0.0, -179.0, 1.0], [0.0, 0.0, 1.0, 2.0]])
    (-180.0, 0.0, 180.0, 2.0)
    """
    west, south, east, north = np.asarray(boxes, dtype=np.float64).T
    low, high = west.min(), east.max()
    crossing = west > east
    if crossing.any():
        # Around 180 degrees, boxes that do not cross lie in one hemisphere each.
        low, high = west[west >= 0].min(initial=180), east[east < 0].max(initial=-180)
        around = np.where(crossing, (west >= 0) & (east < 0), (west >= 0) == (east >= 0))
        if not around.all() or low - high < 180:
            low, high = -180.0, 180.0
    return float(low), float(south.min()), float(high), float(north.max())


def around_points(longitudes: Floats, latitudes: Floats) -> Floats:
    """Return the boxes (n, 4) around points (n, m).

    A box crosses the antimeridian when that makes it at most half the globe wide; points that are
    further apart either way give all longitudes.

    Examples
    --------
    >>> around_points(np.array([[170.0, 180.0, -175.0]]), np.array([[0.0, 5.0, 2.0]]))
    array([[ 170.,    0., -175.,    5.]])
    >>> around_points(np.array([[-180.0, -60.0, 60.0, 180.0]]), np.zeros((1, 4)))
    array([[-180.,    0.,  180.,    0.]])
    """
    longitudes = wrapped(longitudes)
    west, east = longitudes.min(axis=1), longitudes.max(axis=1)
    across = east - west > 180
    eastward = np.where(longitudes < 0, longitudes + 360, longitudes)
    low, high = eastward.min(axis=1), eastward.max(axis=1)
    whole = across & (high - low > 180)
    west = np.where(whole, -180, np.where(across, low, west))
    # A box that ends at the antimeridian ends at 180; -180 would make the box cross.
    east = np.where(whole | (across & (high == 180)), 180, np.where(across, high - 360, east))
    return np.stack([west, latitudes.min(axis=1), east, latitudes.max(axis=1)], axis=1)


def footprints(boxes: Floats) -> npt.NDArray[np.object_]:
    """Return boxes (n, 4) as shapely polygons (n,).

    A box that crosses the antimeridian becomes two polygons. The ground of a tile is smaller than
    its box; :mod:`storage.outlines` has it.
    """
    west, south, east, north = boxes.T
    crossing = west > east
    shapes = shapely.box(west, south, np.where(crossing, 180.0, east), north)
    for index in np.flatnonzero(crossing):
        rest = shapely.box(-180.0, south[index], east[index], north[index])
        shapes[index] = shapely.MultiPolygon([shapes[index], rest])
    return np.asarray(shapes, dtype=object)


def areas(longitudes: Floats, latitudes: Floats) -> npt.NDArray[np.object_]:
    """Return the areas (n,) within rings of points (n, m) in degrees as shapely polygons.

    An area across the antimeridian becomes two polygons; one around a pole reaches to the pole.
    Neighbouring points are less than 180 degrees of longitude apart; the first is not repeated.

    Examples
    --------
    >>> areas(np.array([[179.0, -179, -179, 179]]), np.array([[0.0, 0, 1, 1]]))[0].bounds
    (-180.0, 0.0, 180.0, 1.0)
    """
    closed = np.unwrap(np.hstack([longitudes, longitudes[:, :1]]), period=360, axis=1)
    polar = np.abs(closed[:, -1] - closed[:, 0]) > 180
    polar |= (np.abs(latitudes) >= _POLE).any(axis=1)
    closed -= 360 * np.floor((closed.min(axis=1, keepdims=True) + 180) / 360)
    shapes = np.asarray(
        shapely.polygons(np.stack([closed[:, :-1], latitudes], axis=2)), dtype=object
    )
    for index in np.flatnonzero(polar):
        shapes[index] = shapely.Polygon(_around_pole(longitudes[index], latitudes[index]))
    for index in np.flatnonzero(shapely.bounds(shapes)[:, 2] > 180):
        east = shapely.intersection(shapes[index], shapely.box(-180, -90, 180, 90))
        west = shapely.intersection(shapes[index], shapely.box(180, -90, 540, 90))
        west = shapely.transform(west, lambda points: points - [360, 0])
        parts = [part for shape in (east, west) for part in getattr(shape, "geoms", [shape])]
        shapes[index] = shapely.union_all([part for part in parts if part.area])
    return shapes


def _around_pole(longitudes: Floats, latitudes: Floats) -> Floats:
    """Return the ring of an area that touches or contains a pole, which has every longitude."""
    pole, count = math.copysign(90.0, latitudes.mean()), len(longitudes)
    ring = []
    for index, latitude in enumerate(latitudes.tolist()):
        if abs(latitude) < _POLE:
            ring.append((longitudes[index], latitude))
        else:
            near = longitudes[index - 1], longitudes[(index + 1) % count]
            ring += [(longitude, pole) for longitude in near]
    points = np.array([*ring, ring[0]])
    points[:, 0] = np.unwrap(points[:, 0], period=360)
    first, last = points[0, 0], points[-1, 0]
    if abs(last - first) > 180:
        points = np.vstack([points, [(last, pole), (first, pole)]])
    points[:, 0] -= 360 * math.floor((points[:, 0].min() + 180) / 360)
    return points


def geojson_footprints(boxes: npt.ArrayLike) -> list[dict[str, Any]]:
    """Return boxes (n, 4) as GeoJSON geometries.

    Examples
    --------
    >>> [geometry["type"] for geometry in geojson_footprints([[179, 0, -179, 1], [0, 0, 1, 1]])]
    ['MultiPolygon', 'Polygon']
    """
    return geojson(footprints(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)))


def geojson(shapes: npt.NDArray[np.object_]) -> list[dict[str, Any]]:
    """Return shapely geometries (n,) as GeoJSON geometries."""
    return [json.loads(text) for text in shapely.to_geojson(shapes)]


def from_geojson(geometries: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.object_]:
    """Return GeoJSON geometries as shapely geometries (n,)."""
    texts = [json.dumps(geometry) for geometry in geometries]
    return np.asarray(shapely.from_geojson(np.array(texts, dtype=object)), dtype=object)


def covers(geometry: Mapping[str, Any], longitudes: Floats, latitudes: Floats) -> Mask:
    """Return the mask of the points (n,) in WGS84 degrees that lie inside a GeoJSON geometry.

    Examples
    --------
    >>> box = geojson_footprints([(9.0, 48.0, 10.0, 49.0)])[0]
    >>> covers(box, np.array([9.5, 10.5]), np.array([48.5, 48.5])).tolist()
    [True, False]
    """
    (shape,) = from_geojson([geometry])
    shapely.prepare(shape)
    return np.asarray(shapely.contains_xy(shape, longitudes, latitudes))


def clip(rings: Floats, window: tuple[float, float, float, float]) -> list[Floats]:
    """Return the parts of convex rings (n, m, 2) in a window: points (k, 2), without repetition.

    The points of a ring beyond the window are none.

    Examples
    --------
    >>> clip(np.array([[[0.0, 0], [4, 0], [4, 4]]]), (1, 0, 9, 9))[0].shape
    (4, 2)
    """
    shapes = np.asarray(shapely.polygons(rings), dtype=object)
    bounds = shapely.bounds(shapes)
    low, high = window[:2], window[2:]
    beyond = (bounds[:, :2] < low).any(axis=1) | (bounds[:, 2:] > high).any(axis=1)
    found = list(rings)
    for index in np.flatnonzero(beyond):
        points = shapely.get_coordinates(shapely.clip_by_rect(shapes[index], *window))[:-1]
        turned = len(points) > 2 and shapely.is_ccw(shapely.LinearRing(points)) != shapely.is_ccw(
            shapely.LinearRing(rings[index])
        )
        found[index] = points[::-1] if turned else points
    return found


def touches(boxes: Floats, bbox: BBox) -> Mask:
    """Return which boxes (n, 4) share a point with ``bbox``; either may cross the antimeridian.

    The meridians 180 and -180 are the same.

    Examples
    --------
    >>> boxes = np.array([[179.0, 0.0, -179.0, 1.0], [170.0, 0.0, 180.0, 1.0]])
    >>> touches(boxes, (-179.5, 0.5, -178, 2)), touches(boxes, (-180.0, 0.0, -170.0, 1.0))
    (array([ True, False]), array([ True,  True]))
    """
    west, south, east, north = boxes.T
    low, bottom, high, top = unwrapped([bbox])[0]
    crossing = west > east
    furthest = 180
    if crossing.any():
        east, furthest = np.where(crossing, east + 360, east), 540
    mask = np.zeros(len(boxes), dtype=np.bool_)
    for shift in (-360, 0, 360):
        if low + shift <= furthest and high + shift >= -180:  # most boxes need one pass only
            mask |= (west <= high + shift) & (east >= low + shift)
    mask &= (south <= top) & (north >= bottom)
    return mask


def intersects_polygon(boxes: Floats, wkt: str) -> Mask:
    """Return which boxes (n, 4) intersect a polygon; boxes may cross the antimeridian.

    Examples
    --------
    >>> intersects_polygon(np.array([[0.0, 0.0, 1.0, 1.0]]), "POLYGON ((2 2, 3 2, 3 3, 2 2))")
    array([False])
    """
    polygon = shapely.from_wkt(wkt)
    mask = touches(boxes, polygon.bounds)
    candidates = np.flatnonzero(mask)
    west, south, east, north = boxes[candidates].T
    crossing = west > east
    shapely.prepare(polygon)
    inside = shapely.intersects(
        polygon, shapely.box(west, south, np.where(crossing, 180.0, east), north)
    )
    inside |= crossing & shapely.intersects(polygon, shapely.box(-180.0, south, east, north))
    mask[candidates] = inside
    return mask


class GeoInterface(Protocol):
    """A geometry of shapely, geopandas or another library that states itself as GeoJSON."""

    @property
    def __geo_interface__(self) -> Mapping[str, Any]:
        """The geometry as a GeoJSON mapping."""


def polygon_wkt(
    polygon: "str | os.PathLike[str] | Mapping[str, Any] | GeoInterface", subject: str = "filter"
) -> str:
    """Return an area in any form as WKT in WGS84 degrees.

    Parameters
    ----------
    polygon
        WKT or GeoJSON as text, a GeoJSON mapping, an object with ``__geo_interface__`` (of shapely,
        geopandas), or the path, as :class:`pathlib.Path`, of a file of GeoJSON, WKT, GeoPackage,
        Shapefile, FlatGeobuf or GeoParquet. GeoJSON may be a geometry, a Feature, or a
        FeatureCollection or GeometryCollection, whose polygons are joined. An area that states
        another CRS than WGS84 is transformed.
    subject
        Beginning of messages.

    Raises
    ------
    ConfigError
        The polygon is none of these, has no area, is not valid or leaves WGS84 degrees.
    NotFoundError
        The file does not exist.
    """
    try:
        shape = area_shape(polygon)
    except SkysiftError:
        raise
    except (shapely.errors.ShapelyError, *_MALFORMED) as error:
        raise ConfigError(f"{subject}: {_misfit(polygon, error)}") from error
    if shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
        raise ConfigError(
            f"{subject}: polygon is a {shape.geom_type}"
            f"{' without area' if shape.is_empty else ''}; give a Polygon or MultiPolygon"
        )
    if not shape.is_valid:
        raise ConfigError(
            f"{subject}: polygon is not valid ({explain_validity(shape)}); "
            "repair it, for example with shapely.make_valid"
        )
    west, south, east, north = shape.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise ConfigError(
            f"{subject}: polygon bounds {shape.bounds} leave WGS84 degrees; "
            "state its CRS, reproject it, or cut it at the antimeridian"
        )
    return str(shape.wkt)


def _misfit(polygon: Any, error: Exception) -> str:
    """Return why an area in some form is none."""
    reason = str(error).partition("\n")[0]
    if isinstance(polygon, os.PathLike):
        return f"{os.fspath(polygon)} is no area ({reason})"
    shown = repr(polygon[:60]) if isinstance(polygon, str) else reprlib.repr(polygon)
    if isinstance(polygon, str) and is_area_file(polygon):
        return f"polygon {shown} is a text, not a path; read the file by --polygon or pathlib.Path"
    return f"polygon {shown} is neither WKT nor GeoJSON ({reason})"


def touches_polygon(geometry: Mapping[str, Any], wkt: str) -> bool:
    """Tell whether a GeoJSON geometry shares a point with a polygon, both in WGS84 degrees.

    Raises
    ------
    ValueError, KeyError, TypeError
        The geometry is malformed or empty.

    Examples
    --------
    >>> touches_polygon({"type": "Point", "coordinates": [2, 2]}, "POLYGON ((0 0, 3 0, 3 3, 0 0))")
    True
    """
    shape = shapely.geometry.shape(dict(geometry))
    if shape.is_empty or not np.isfinite(shape.bounds).all():
        raise ValueError(f"the {shape.geom_type} is empty or not finite")
    return bool(shapely.intersects(shapely.from_wkt(wkt), shape))


def geojson_of(geometry: bytes | str) -> dict[str, Any]:
    """Return a geometry in WKB, WKT or GeoJSON's text as GeoJSON.

    Raises
    ------
    ShapelyError
        It is none of these.

    Examples
    --------
    >>> geojson_of("POINT (1 2)")
    {'type': 'Point', 'coordinates': [1.0, 2.0]}
    """
    if isinstance(geometry, bytes):
        shape = shapely.from_wkb(geometry)
    elif geometry.lstrip().startswith("{"):
        shape = shapely.from_geojson(geometry)
    else:
        shape = shapely.from_wkt(geometry)
    found: dict[str, Any] = json.loads(shapely.to_geojson(shape))
    return found


def footprint_wkt(bbox: BBox) -> str:
    """Return the footprint of a box as WKT."""
    return str(footprints(np.array([bbox]))[0].wkt)


def polygon_bounds(wkt: str) -> BBox:
    """Return west, south, east and north of a polygon."""
    west, south, east, north = shapely.from_wkt(wkt).bounds
    return west, south, east, north
