from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.analysis import statistics
from pipeline.analysis.statistics import BandStatistics, band_statistics
from pipeline.runtime.dask import compute, scene_array
from storage.errors import ConfigError, SceneError
from storage.raster.pixel_grid import PixelGrid
from storage.raster.writer import write_geotiff
from storage.scene import BandSource, MaskSource, Scene

SIZE = (90, 130)


def make_scene(folder, name, seed, nodata_rows=0, cloudy=False, scale=0.0001, offset=-0.1):
    """Write two bands of random numbers and return the scene and the values that count."""
    rng = np.random.default_rng(seed)
    numbers = rng.gamma(3, 400, (2, *SIZE)).astype(np.uint16) + 1100
    numbers[:, :nodata_rows] = 0
    mask = rng.integers(0, 5, SIZE).astype(np.uint8) if cloudy else np.zeros(SIZE, np.uint8)
    transform = (10.0, 0.0, 700_000.0 + 2000 * seed, 0.0, -10.0, 5_000_000.0)
    uri, mask_uri = f"{folder}/{name}.tif", f"{folder}/{name}_mask.tif"
    write_geotiff(uri, numbers, "EPSG:32633", transform, nodata=0)
    write_geotiff(mask_uri, mask[None], "EPSG:32633", transform)
    bands = tuple(
        BandSource(name=band, href=uri, index=i, scale=scale, offset=offset, nodata=0)
        for i, band in enumerate(("red", "nir"), start=1)
    )
    scene = Scene(
        id=name,
        datetime=datetime(2024, 6, 18, tzinfo=UTC),
        bands=bands,
        mask=MaskSource(href=mask_uri, cloud_values=(3, 4)),
    )
    counts = (numbers[0] > 0) & (mask < 3)
    return scene, numbers[:, counts].astype(np.float64) * scale + offset


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    made = [
        make_scene(folder, "plain", 0),
        make_scene(folder, "wedge", 1, nodata_rows=40),
        make_scene(folder, "cloudy", 2, cloudy=True),
    ]
    scenes, values = zip(*made, strict=True)
    return folder, scenes, np.concatenate(values, axis=1)


def check(found, values):
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.std, values.std(1), rtol=1e-5)
    np.testing.assert_allclose(found.minimum, values.min(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.maximum, values.max(1), rtol=1e-5)
    for percent, found_values in found.percentiles.items():
        exact = np.percentile(values, percent, axis=1)
        assert (np.abs(found_values - exact) <= found.percentile_error * np.abs(exact)).all()
    assert found.valid_pixels == values.shape[1]


@pytest.mark.parametrize("block_px", [37, 1024])
def test_statistics_equal_numpy_over_the_usable_pixels(archive, block_px):
    _, scenes, values = archive
    found = band_statistics(scenes, block_px=block_px, scenes_per_graph=2)
    assert found.bands == ("red", "nir")
    assert found.scenes == 3
    assert not found.skipped
    check(found, values)


def test_ray_computes_the_same(archive, ray_session):
    found = band_statistics(archive[1], scheduler="ray")
    check(found, archive[2])


def test_a_broken_scene_is_left_out_and_named(archive):
    folder, scenes, values = archive
    broken, _ = make_scene(folder, "broken", 3)
    whole = (folder / "broken.tif").read_bytes()
    (folder / "broken.tif").write_bytes(whole[: len(whole) // 2])
    found = band_statistics([*scenes, broken])
    assert list(found.skipped) == ["broken"]
    assert found.scenes == 3
    check(found, values)


def test_a_scene_that_breaks_while_it_is_read_costs_only_itself(archive, monkeypatch):
    _, scenes, _ = archive
    read = statistics.scene_array

    def fails_late(scene, *args, **kwargs):
        array = read(scene, *args, **kwargs)
        if scene.id != "plain":
            return array

        def fail(block):
            raise SceneError("the disk went away")

        return array.map_blocks(fail, meta=np.empty((0, 0, 0), np.float32))

    monkeypatch.setattr(statistics, "scene_array", fails_late)
    found = band_statistics(scenes)
    assert found.skipped == {"plain": "the disk went away"}
    assert found.scenes == 2


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    scene, _ = make_scene(tmp_path, "empty", 0, nodata_rows=SIZE[0])
    with pytest.raises(SceneError, match="no usable pixel in 1 scenes"):
        band_statistics([scene])


def test_coarser_resolution_keeps_the_mean(archive):
    _, scenes, _ = archive
    exact = band_statistics(scenes[:1])
    coarse = band_statistics(scenes[:1], resolution=40.0)
    assert coarse.valid_pixels < exact.valid_pixels / 10
    np.testing.assert_allclose(coarse.mean, exact.mean, rtol=0.03)


@pytest.mark.parametrize(("resolution", "level"), [(20.0, 0), (40.0, 1)])
def test_statistics_from_overviews_are_those_of_the_overviews(tmp_path, resolution, level):
    """At twice and four times the pixel, exactly the overview's pixels count; error as stated."""
    numbers = np.random.default_rng(5).gamma(2, 500, (2, 1200, 1200)).astype(np.uint16) + 2000
    uri = str(tmp_path / "scene.tif")
    write_geotiff(uri, numbers, "EPSG:32633", (10.0, 0, 700_000.0, 0, -10.0, 5_000_000.0))
    scene = Scene(
        id="scene",
        datetime=datetime(2024, 6, 18, tzinfo=UTC),
        bands=tuple(
            BandSource(name=name, href=uri, index=i, scale=0.0001, offset=-0.1)
            for i, name in enumerate(("red", "nir"), start=1)
        ),
    )
    with rasterio.open(uri, overview_level=level) as overview:
        truth = overview.read().reshape(2, -1).astype(np.float64) * 0.0001 - 0.1
    assert truth.shape[1] == (600 >> level) ** 2
    check(band_statistics([scene], resolution=resolution, block_px=256), truth)


def test_statistics_survive_a_file(archive, tmp_path):
    found = band_statistics(archive[1])
    found.to_json(str(tmp_path / "statistics.json"))
    assert BandStatistics.from_json(str(tmp_path / "statistics.json")) == found


def test_scene_array_is_lazy_and_reads_blocks(archive):
    _, scenes, _ = archive
    pixels = PixelGrid(crs="EPSG:32633", resolution=10.0)
    array = scene_array(scenes[0], pixels, block_px=50)
    assert array.shape == (2, *SIZE)
    assert array.chunks[1:] == ((50, 40), (50, 50, 30))
    whole = scene_array(scenes[0], pixels, block_px=1000).compute(scheduler="synchronous")
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), whole)


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(ConfigError, match="use threads, ray or synchronous"):
        compute([], "dask")


finite = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-30 else v)


@settings(deadline=None, max_examples=60)
@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)), elements=finite
    ),
    cut=st.integers(0, 9),
)
def test_moments_merge_like_the_whole_and_bins_keep_order(values, cut):
    parts = [statistics._measure(values[:, :cut]), statistics._measure(values[:, cut:])]
    merged = statistics._merge(reversed(parts))
    whole = statistics._measure(values)
    np.testing.assert_allclose(merged.mean, values.mean(dtype=float), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(merged.histogram, whole.histogram)
    flat = np.sort(values.ravel())
    bins = statistics._bin_of(flat).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    assert (statistics._bin_edge(bins) <= flat).all()
    for percent in (0, 2, 50, 98, 100):
        # Between two pixels any answer is fair, so compare with the nearest neighbours.
        low = np.percentile(flat, percent, method="lower").astype(float)
        high = np.percentile(flat, percent, method="higher").astype(float)
        answer = statistics._percentile(whole, 0, percent)
        assert low - abs(low) / 128 - 1e-37 <= answer <= high + abs(high) / 128 + 1e-37
