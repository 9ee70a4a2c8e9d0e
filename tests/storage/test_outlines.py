"""Footprints against the ellipsoid: the tile's own ground, everywhere on the globe."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from pipeline.tiles.grid import TileGrid
from storage.outlines import hull_outline, outlines, tile_bounds, tile_corners, tile_outlines

GEOD = Geod(ellps="WGS84")


def area_m2(shape) -> float:
    return abs(GEOD.geometry_area_perimeter(shape)[0])


def tile_at(grid: TileGrid, lon: float, lat: float) -> np.ndarray:
    x, y = Transformer.from_crs(4326, grid.crs, always_xy=True).transform(lon, lat)
    side = grid.resolution * grid.tile_px
    return np.array([[int(x // side), int(-y // side)]], np.int32)


def true_area_m2(grid: TileGrid, tile: np.ndarray) -> float:
    """The area within many points of the tile's edges, of which nothing is left out."""
    left, bottom, right, top = tile_bounds(grid.to_dict(), tile)[0]
    edge = shapely.segmentize(shapely.box(left, bottom, right, top), (right - left) / 500)
    x, y = shapely.get_coordinates(edge).T
    lon, lat = Transformer.from_crs(grid.crs, 4326, always_xy=True).transform(x, y)
    return abs(GEOD.polygon_area_perimeter(lon, lat)[0])


def outline(grid: TileGrid, tile: np.ndarray):
    return tile_outlines({grid.id: grid.to_dict()}, [grid.id], tile, grid.bbox_wgs84(tile))[0]


def test_a_footprint_is_the_ground_of_its_tile_and_not_its_box():
    """At 48.7 degrees north, near the edge of a zone, the box is 7.6 % too large."""
    grid = TileGrid(crs="EPSG:32631", resolution=10.0, tile_px=64)
    tile = tile_at(grid, 5.9, 48.7)
    shape, true = outline(grid, tile), true_area_m2(grid, tile)
    assert len(shape.exterior.coords) == 5
    assert area_m2(shape) == pytest.approx(true, rel=1e-6)
    box = shapely.box(*grid.bbox_wgs84(tile)[0])
    assert area_m2(box) / true == pytest.approx(1.076, abs=0.002)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(
        [
            ("EPSG:32601", (179.0, 181.0), (-70.0, 70.0)),
            ("EPSG:32760", (176.0, 181.0), (-70.0, 70.0)),
            ("EPSG:4326", (-179.9, 179.9), (-80.0, 80.0)),
            ("EPSG:3035", (-5.0, 30.0), (36.0, 68.0)),
            ("EPSG:3413", (-180.0, 180.0), (62.0, 89.9)),
            ("EPSG:3031", (-180.0, 180.0), (-89.9, -62.0)),
        ]
    ),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    side_px=st.sampled_from([64, 512, 4096]),
)
def test_every_footprint_has_its_tiles_area_and_middle(case, place, side_px):
    crs, lons, lats = case
    lon, lat = (
        low + (high - low) * at for (low, high), at in zip((lons, lats), place, strict=True)
    )
    grid = TileGrid(crs=crs, resolution=1e-4 if crs == "EPSG:4326" else 10.0, tile_px=side_px)
    tile = tile_at(grid, lon, lat)
    shape = outline(grid, tile)
    assert shape.is_valid
    assert shape.bounds[0] >= -180
    assert shape.bounds[2] <= 180
    if abs(lat) < 89:  # the oracle knows no poles
        assert area_m2(shape) == pytest.approx(true_area_m2(grid, tile), rel=2e-3)
    left, bottom, right, top = tile_bounds(grid.to_dict(), tile)[0]
    to_wgs84 = Transformer.from_crs(crs, 4326, always_xy=True)
    middle = to_wgs84.transform((left + right) / 2, (bottom + top) / 2)
    assert shape.distance(shapely.Point(middle)) < 1e-9  # which may lie on the cut


@pytest.mark.parametrize("corner", [(-5000, -5000), (0, 0), (-5120, 0), (-9000, -300)])
def test_a_tile_at_a_pole_reaches_to_the_pole(corner):
    left, bottom = corner
    bounds = np.array([[left, bottom, left + 10_000, bottom + 10_000]], dtype=np.float64)
    (shape,) = outlines("EPSG:3413", bounds)
    assert shape.is_valid
    assert shape.bounds[3] == 90
    scale = 0.9698  # of lengths in EPSG:3413 at the pole
    assert area_m2(shape) == pytest.approx(1e8 / scale**2, rel=0.02)


def test_an_unknown_grid_leaves_the_box():
    boxes = np.array([[179.0, 0.0, -179.0, 1.0]])
    (shape,) = tile_outlines({}, ["g"], [[1, 2]], boxes)
    assert shape.geom_type == "MultiPolygon"
    assert tile_corners({}, ["g"], [[1, 2]], boxes)[0].tolist() == [
        [179, 0], [-179, 0], [-179, 1], [179, 1],
    ]  # fmt: skip


def test_a_scene_is_the_hull_of_its_tiles():
    grid = TileGrid(crs="EPSG:32631", resolution=10.0, tile_px=64)
    column, row = tile_at(grid, 5.9, 48.7)[0]
    tiles = np.array([[column + i, row + j] for i in range(20) for j in range(30)])
    (shape,) = hull_outline({grid.id: grid.to_dict()}, grid.id, tiles, (0.0, 0.0, 1.0, 1.0))
    tiled = shapely.union_all([outline(grid, tile[None]).buffer(1e-7) for tile in tiles])
    assert area_m2(shape) == pytest.approx(area_m2(tiled), rel=1e-3)
    assert shape.symmetric_difference(tiled).area < 1e-3 * shape.area
