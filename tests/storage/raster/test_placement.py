"""Where a raster says it is: places on the Earth pass, everything else is refused."""

import math

import numpy as np
import pytest
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import from_origin

from storage.raster.geotiff import placement_fault, reproject

SINUSOIDAL = "ESRI:54008"
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
SITE = "+proj=tmerc +lat_0=45 +lon_0=10 +units=m"
FULL_DISC = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"
ROTATED = Affine.translation(5e5, 5e6) * Affine.rotation(30) * Affine.scale(10, -10)


@pytest.mark.parametrize(
    ("crs", "transform", "side_px"),
    [
        ("EPSG:32648", from_origin(5e5, 2e6, 10, 10), 10980),
        ("EPSG:32648", from_origin(5e5, -2e6, 30, 30), 7000),  # Landsat, south of the equator
        ("EPSG:32648", from_origin(5e5, 2e6, 0.003, 0.003), 999),  # a drone
        ("EPSG:32601", from_origin(166021 - 1600, 1e5, 50, 50), 64),  # over the antimeridian
        ("EPSG:32633", ROTATED, 64),
        ("EPSG:32633", Affine(10, 0, 5e5, 0, 10, 5e6), 64),  # south-up
        ("EPSG:4326", from_origin(-180.125, 90.125, 0.25, 0.25), 721),  # centres of pixels on poles
        ("EPSG:4326", from_origin(0, 90, 0.5, 0.5), 360),  # from 0 to 360
        ("EPSG:4326", from_origin(179.9, 0.1, 0.003, 0.003), 64),
        ("EPSG:4807", from_origin(3, 57, 1e-3, 1e-3), 64),  # grads
        ("EPSG:2263", from_origin(985000, 210000, 32, 32), 64),  # feet
        ("EPSG:32648+5773", from_origin(5e5, 2e6, 10, 10), 64),  # with heights beside
        ("EPSG:3413", from_origin(-3200, 3200, 100, 100), 64),  # over the pole
        ("EPSG:3857", from_origin(-20037508, 20037508, 156543, 156543), 256),
        ("EPSG:3857", from_origin(20.2e6, -2e6, 10, 10), 64),  # further than the antimeridian
        ("EPSG:6933", from_origin(-17367530, 7314540, 36032, 36032), 406),
        (SINUSOIDAL, from_origin(-20015109, 1111950, 463, 463), 2400),  # half beyond the edge
        (FULL_DISC, from_origin(-5.5e6, 5.5e6, 3000, 3000), 3666),  # corners in space
        (SITE, from_origin(20, 20, 0.02, 0.02), 500),
        ("EPSG:28992", from_origin(155000, 463000, 0.25, 0.25), 64),
    ],
)
def test_places_on_the_earth_pass(crs: str, transform: Affine, side_px: int):
    assert placement_fault(CRS.from_user_input(crs), transform, side_px, side_px) == ""


@pytest.mark.parametrize(
    ("crs", "transform", "why"),
    [
        ("EPSG:4326", from_origin(5e5, 2e6, 10, 10), "x from 500000 to 500640"),
        ("EPSG:4326", from_origin(10, 95, 1e-4, 1e-4), "to 95 in EPSG:4326"),
        ("EPSG:4326", from_origin(18, 105, 1e-4, 1e-4), "to 105 in EPSG:4326"),
        ("EPSG:4326", from_origin(2000, 5, 1e-4, 1e-4), "x from 2000"),
        ("EPSG:32648", from_origin(105, 18, 1e-4, 1e-4), "pixels of 0.0001 m"),
        ("EPSG:32648", from_origin(5e5, 2e6, 1e-9, 1e-9), "pixels of 1e-09 m"),
        ("EPSG:32648", from_origin(5e5, 2e6, 1e8, 1e8), "pixels of 1e+08 m"),
        ("EPSG:32648", from_origin(5e5, 2e7, 10, 10), "y from 19999360 to 20000000"),
        ("EPSG:32648", from_origin(1e300, 2e6, 10, 10), "x from 1e+300"),
        ("EPSG:3857", from_origin(1e9, 1e6, 10, 10), "x from 1000000000"),
        ("EPSG:3857", from_origin(1e6, 3e8, 10, 10), "y from 299999360"),
        ("EPSG:3035", from_origin(4e7, 3e6, 10, 10), "x from 40000000"),
        ("EPSG:5773", from_origin(5e5, 2e6, 10, 10), "EPSG:5773, whose coordinates are no places"),
        ("EPSG:4978", from_origin(5e5, 2e6, 10, 10), "EPSG:4978, whose coordinates are no places"),
        (LOCAL, from_origin(5e5, 2e6, 10, 10), "whose coordinates are no places"),
        ("IAU_2015:30100", from_origin(10, 10, 1e-4, 1e-4), "cannot be where it says"),  # Moon
    ],
)
def test_nowhere_on_the_earth_is_refused(crs: str, transform: Affine, why: str):
    fault = placement_fault(CRS.from_user_input(crs), transform, 64, 64)
    assert why in fault
    assert "correct its CRS" in fault or "assign the CRS" in fault


def test_a_point_without_a_place_does_not_lose_the_others():
    """Against pyproj, point by point; GDAL fails a call of which one point has no place."""
    crs = CRS.from_epsg(3035)
    xs, ys = np.array([4e6, 4e9, 5e6, 1e300]), np.array([3e6, 3e6, 2e6, 3e6])
    lons, lats = reproject(crs, CRS.from_epsg(4326), xs, ys)
    truth = Transformer.from_crs(3035, 4326, always_xy=True)
    for number in (0, 2):
        place = truth.transform(xs[number], ys[number])
        assert (lons[number], lats[number]) == pytest.approx(place, abs=1e-7)
    assert [math.isfinite(lons[number]) for number in range(4)] == [True, False, True, False]
