"""Footprints: boxes in degrees as polygons, whole across the antimeridian."""

import numpy as np
import numpy.typing as npt
import shapely


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
