"""What Dask computes is the same on this process's threads and on the Ray cluster, bit for bit."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.landcover import tile_labels
from pipeline.analysis.statistics import band_statistics
from pipeline.composite.driver import make_composites
from pipeline.composite.plan import plan_composites
from pipeline.composite.spec import CompositeSpec
from pipeline.tiles.grid import TileGrid
from storage.catalog.read import read_scenes
from storage.raster.pixel_grid import Window
from storage.raster.writer import write_geotiff
from tests.support.stack_world import CRS, LEFT, TOP, Series

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    made = Series(tmp_path_factory.mktemp("series"))
    for day in range(1, 6):
        made.add(f"day{day}", f"2024-06-{day:02}T10:00", day, column=8 * day)
    return made


def test_composites(series: Series):
    spec = CompositeSpec(
        catalog=series.catalog,
        output_uri=str(series.folder / "threads"),
        bands=("B04", "B11"),
        block_bytes=64 * 64 * 4 * 10,
    )
    again = replace(spec, output_uri=str(series.folder / "ray"))
    make_composites(plan_composites(spec))
    report = make_composites(plan_composites(again), scheduler="ray")
    for name in report.made:
        one, other = (Path(f"{s.output_uri}/{name}.tif").read_bytes() for s in (spec, again))
        assert one == other
    assert report.failed == {}


def test_band_statistics(series: Series):
    scenes = read_scenes(series.catalog, ("B04", "B11")).scenes
    on_threads = band_statistics(scenes, block_px=40)
    on_ray = band_statistics(scenes, block_px=40, scheduler="ray")
    assert asdict(on_ray) == asdict(on_threads)
    assert on_ray.valid_pixels > 10_000


def test_tile_labels(tmp_path: Path):
    classes = np.random.default_rng(0).integers(0, 4, (1, 700, 700)).astype(np.uint8)
    uri = str(tmp_path / "classes.tif")
    write_geotiff(uri, classes, CRS, (10.0, 0.0, LEFT, 0.0, -10.0, TOP), nodata=0)
    grid = TileGrid(crs=CRS, resolution=10.0, tile_px=32)
    tiles = grid.tiles_over(Window(column=70_000, row=-500_000, width=700, height=700))
    names = {1: "water", 2: "forest", 3: "town"}
    on_threads = tile_labels(uri, grid, tiles, names)
    on_ray = tile_labels(uri, grid, tiles, names, scheduler="ray")
    np.testing.assert_array_equal(on_ray.fractions, on_threads.fractions)
    np.testing.assert_array_equal(on_ray.labels, on_threads.labels)
    assert on_ray.tile_keys.tolist() == on_threads.tile_keys.tolist()
    assert np.median(on_ray.fractions) > 0.2
