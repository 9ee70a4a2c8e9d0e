"""Composites: every pixel is the median of what is clear, and the result is a scene."""

import json
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyproj import Transformer

from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.analysis.periods import period_of
from pipeline.composite.driver import make_composites, median_of_days
from pipeline.composite.plan import plan_composites
from pipeline.composite.spec import CompositeSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.tiles.spec import GridSpec
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.errors import SkysiftError
from storage.locks import exclusive_lock
from storage.raster.reader import SceneReader
from storage.scene import CatalogSpec, SceneQuery
from tests.support.stack_world import CRS, LEFT, SIZE_PX, TOP, Series

WIDE = SIZE_PX + 24
ZONE_32 = (1_171_900.0, 5_032_400.0)  # the same ground in the next zone


@pytest.fixture
def series(tmp_path: Path) -> Series:
    """Four June days (one shifted east, two granules of one day) and one day in July."""
    made = Series(tmp_path)
    made.add("a", "2024-06-03T10:00", 1)
    made.add("b", "2024-06-13T10:00", 2)
    made.add("c", "2024-06-23T10:00", 3, column=24)
    made.add("d1", "2024-06-28T10:00:00", 4)
    made.add("d2", "2024-06-28T10:00:09", 5)
    made.add("e", "2024-07-03T10:00", 6)
    return made


def spec_of(series: Series, **more: object) -> CompositeSpec:
    values = {
        "catalog": series.catalog,
        "output_uri": str(series.folder / "out"),
        "bands": ("B04", "B08"),
        "block_bytes": 4 * 4 * 2 * 64 * 64,  # a composite of June takes several blocks
    }
    return CompositeSpec(**(values | more))  # type: ignore[arg-type]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        assert np.isnan(dataset.nodata)
        return dataset.read()


def on_canvas(values: np.ndarray, column: int = 0) -> np.ndarray:
    canvas = np.full((len(values), SIZE_PX, WIDE), np.nan, np.float32)
    canvas[:, :, column : column + SIZE_PX] = values
    return canvas


def nanmedian(stack: list[np.ndarray]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pixels that are never clear
        return np.nanmedian(np.stack(stack), axis=0)


def test_every_pixel_is_the_median_of_the_clear_days(series: Series):
    plan = plan_composites(spec_of(series))
    assert [one.block_px for one in plan.todo] == [64, 128]
    assert [len(one.placed) for one in plan.todo] == [5, 1]
    report = make_composites(plan)
    june, july = report.made
    assert (june[:17], july[:17]) == ("composite-2024-06", "composite-2024-07")
    truth = series.truth
    one_day = np.where(np.isnan(truth["d1"]), truth["d2"], truth["d1"])  # granules of one day
    days = [on_canvas(values) for values in (truth["a"], truth["b"], one_day)]
    days.append(on_canvas(truth["c"], column=24))
    expected = nanmedian(days)
    assert 0 < np.isnan(expected).mean() < 0.3
    np.testing.assert_array_equal(read(series.folder / "out" / f"{june}.tif"), expected)
    np.testing.assert_array_equal(read(series.folder / "out" / f"{july}.tif"), truth["e"])


@pytest.mark.parametrize(
    "grid",
    [
        GridSpec(tile_px=64, crs=CRS, resolution=20.0),
        GridSpec(tile_px=64, crs="EPSG:32632", resolution=10.0, anchor=(3.0, 4.0)),
        GridSpec(tile_px=64, crs="EPSG:4326", resolution=0.0002),
    ],
    ids=["coarser", "next UTM zone", "degrees"],
)
def test_two_crs_and_resolutions_are_read_as_one_reader_reads_them(series: Series, grid: GridSpec):
    """A second zone's scene joins; bands of 10 and 20 m; the truth is one read of each scene."""
    series.add("zone32", "2024-06-18T10:00", 7, crs="EPSG:32632", corner=ZONE_32)
    spec = spec_of(series, bands=("B04", "B11"), grid=grid, period="season")
    plan = plan_composites(spec)
    [composite] = plan.todo
    make_composites(plan)
    layers: dict[str, np.ndarray] = {}
    for placed in composite.placed:
        with SceneReader(placed.scene, composite.pixels) as reader:
            block = reader.read(composite.extent)
        values = np.where(block.cloud, np.float32(np.nan), block.values)
        before = layers.get(placed.day)
        fused = values if before is None else np.where(np.isnan(before), values, before)
        layers[placed.day] = fused
    made = read(series.folder / "out" / f"{composite.id}.tif")
    np.testing.assert_array_equal(made, nanmedian(list(layers.values())))
    assert np.isfinite(made[0]).sum() > 500


def test_scenes_on_different_grids_make_composites_on_each(series: Series):
    series.add("zone32", "2024-06-18T10:00", 7, crs="EPSG:32632", corner=ZONE_32)
    plan = plan_composites(spec_of(series))
    assert [grid.crs for grid in plan.grids] == [CRS, "EPSG:32632"]
    june, july, other = plan.todo
    assert [len(one.placed) for one in plan.todo] == [5, 1, 1]
    assert [one.pixels for one in plan.todo] == [*[plan.grids[0]] * 2, plan.grids[1]]
    assert june.id != other.id
    report = make_composites(plan)
    assert report.made == (june.id, july.id, other.id)
    with rasterio.open(series.folder / "out" / f"{other.id}.tif") as dataset:
        assert dataset.crs.to_epsg() == 32632
        np.testing.assert_array_equal(dataset.read(), series.truth["zone32"])


def test_scenes_without_a_mask_are_counted_and_warned_of(
    series: Series, caplog: pytest.LogCaptureFixture
):
    assert plan_composites(spec_of(series)).unmasked == 0
    assert caplog.text == ""
    plan = plan_composites(spec_of(series, catalog=replace(series.catalog, mask=None)))
    assert plan.summary()["scenes_without_mask"] == 6
    assert "6 of 6 scenes have no cloud mask: their clouds stay" in caplog.text


def test_a_box_bounds_the_composite(series: Series):
    [scene, *_] = read_scenes(series.catalog, ("B04",)).scenes
    whole = plan_composites(spec_of(series)).todo[0].extent
    with rasterio.open(scene.bands[0].href.uri) as dataset:
        xs = [LEFT + 300, LEFT + 500]
        lons, lats = rasterio.warp.transform(dataset.crs, "EPSG:4326", xs, [TOP - 400, TOP - 200])
    box = (lons[0], lats[0], lons[1], lats[1])
    catalog = replace(series.catalog, query=SceneQuery(bbox=box))
    for item in (document := json.loads(Path(catalog.source).read_text()))["features"]:
        item["bbox"] = [14, 44, 19, 46]
    Path(catalog.source).write_text(json.dumps(document))
    [june, _] = plan_composites(spec_of(series, catalog=catalog)).todo
    assert whole.intersection(june.extent) == june.extent
    assert (june.extent.column - whole.column, june.extent.row - whole.row) == (29, 20)
    assert 20 <= june.extent.width <= 22
    make_composites(plan_composites(spec_of(series, catalog=catalog)))
    clipped = read(series.folder / "out" / f"{june.id}.tif")
    make_composites(plan_composites(spec_of(series, output_uri=str(series.folder / "all"))))
    [path] = (series.folder / "all").glob("composite-2024-06-*.tif")
    rows, columns = june.extent.slices_in(whole)
    np.testing.assert_array_equal(clipped, read(path)[:, rows, columns])


def test_only_periods_with_other_sources_are_made_again(series: Series):
    first = make_composites(plan_composites(spec_of(series)))
    assert plan_composites(spec_of(series)).todo == ()
    before = {scene.id: scene.fingerprint for scene in composites_in(series)}
    series.add("f", "2024-07-08T10:00", 8)
    plan = plan_composites(spec_of(series))
    assert [one.id for one in plan.todo] == [first.made[1]]
    assert plan.unchanged == first.made[:1]
    make_composites(plan)
    after = {scene.id: scene.fingerprint for scene in composites_in(series)}
    assert {key for key in after if after[key] != before[key]} == {first.made[1]}


def test_replaced_pixels_behind_an_unchanged_item_make_their_composite_again(series: Series):
    first = make_composites(plan_composites(spec_of(series)))
    file, items = series.folder / "e_10m.tif", sorted(series.folder.glob("*.json"))
    before = [item.read_bytes() for item in items]
    with rasterio.open(file, "r+") as dataset:
        dataset.write(dataset.read() + 1)
    plan = plan_composites(spec_of(series))
    assert [item.read_bytes() for item in items] == before
    assert [one.id for one in plan.todo] == [first.made[1]]
    assert make_composites(plan).made == (first.made[1],)
    assert plan_composites(spec_of(series)).todo == ()


def test_a_second_process_is_refused_while_one_makes_composites(series: Series):
    spec = spec_of(series)
    plan = plan_composites(spec)
    with (
        exclusive_lock(spec.output_uri, "composites", beside="composites"),
        pytest.raises(SkysiftError, match="composites: process"),
    ):
        make_composites(plan)
    assert len(make_composites(plan).made) == len(plan.todo)


def test_a_scene_that_cannot_be_read_is_named_and_the_rest_goes_on(series: Series):
    broken = series.folder / "a_10m.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    plan = plan_composites(spec_of(series))
    assert "truncated" in plan.left_out["a"]
    assert [len(one.placed) for one in plan.todo] == [4, 1]
    (series.folder / "e_20m.tif").unlink()  # not asked for: no matter
    (series.folder / "b_scl.tif").unlink()  # goes away after planning
    report = make_composites(plan)
    assert list(report.failed) == [plan.todo[0].id]
    assert "b_scl.tif does not exist" in report.failed[plan.todo[0].id]
    assert report.made == (plan.todo[1].id,)
    assert [scene.id for scene in composites_in(series)] == [plan.todo[1].id]


def composites_in(series: Series) -> tuple:
    listing = read_scenes(CatalogSpec(source=str(series.folder / "out")), ("B04", "B08"))
    assert listing.rejected == ()
    return listing.scenes


def test_a_composite_is_a_stac_item_with_its_period_and_sources(series: Series):
    make_composites(plan_composites(spec_of(series)))
    june, _ = composites_in(series)
    assert june.datetime == datetime(2024, 6, 1, tzinfo=UTC)
    assert june.end == datetime(2024, 6, 30, 23, 59, 59, tzinfo=UTC)
    assert june.sources == ("a", "b", "c", "d1", "d2")
    assert [(band.scale, band.offset) for band in june.bands] == [(1.0, 0.0)] * 2
    for path in sorted((series.folder / "out").glob("*.json")):
        document = json.loads(path.read_text())
        document["stac_extensions"] = []  # their schemas are not at hand offline
        pystac.validation.validate_dict(document)
    item = json.loads(Path(june.document).read_text())
    with rasterio.open(Path(june.document).with_suffix(".tif")) as raster:
        west, south, east, north = raster.bounds
    outline = np.array(item["geometry"]["coordinates"][0])
    to_degrees = Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
    lons, lats = to_degrees.transform([west, east, east, west], [south, south, north, north])
    for corner in np.stack([lons, lats], axis=1):  # the ground, which is smaller than the box
        assert np.abs(outline - corner).max(axis=1).min() < 1e-6
    derived = [link for link in item["links"] if link["rel"] == "derived_from"]
    assert [link["title"] for link in derived] == list(june.sources)
    assert {link["href"] for link in derived} == {str(series.folder / "series.json")}


@pytest.mark.usefixtures("ray_session")
def test_a_composite_is_embedded_like_any_scene(series: Series, tmp_path: Path):
    make_composites(plan_composites(spec_of(series)))
    encoder = EncoderSpec(
        backbone="tiny-cnn",
        bands=("B04", "B08"),
        band_mean=(0.4, 0.4),
        band_std=(0.2, 0.2),
        tile_px=32,
        dimension=8,
    )
    save_bundle(new_encoder(encoder), str(tmp_path / "bundle"))
    job = IngestSpec(
        catalog=CatalogSpec(source=str(series.folder / "out")),
        encoder_uri=str(tmp_path / "bundle"),
        archive_uri=str(tmp_path / "archive"),
    )
    report = ingest(plan_ingest(job))
    assert (report.embedded, report.quarantined) == (2, {})
    archive = Archive.open(job.archive_uri)
    june, july = archive.scenes()
    assert june.sources == ("a", "b", "c", "d1", "d2")
    assert (june.datetime, june.end) == (
        datetime(2024, 6, 1, tzinfo=UTC),
        datetime(2024, 6, 30, 23, 59, 59, tzinfo=UTC),
    )
    assert june.rows >= 9
    series.add("f", "2024-07-08T10:00", 8)
    make_composites(plan_composites(spec_of(series)))
    assert plan_ingest(job).reprocessed == (july.scene_id,)


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
        elements=st.one_of(st.just(np.nan), st.floats(-(2.0**100), 2.0**100, width=32)),
    )
)
def test_median_is_numpys_bit_for_bit(stack: np.ndarray):
    np.testing.assert_array_equal(median_of_days(stack), nanmedian(list(stack)))


@settings(max_examples=200)
@given(
    st.datetimes(datetime(1972, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from(["month", "season", "year"]),
)
def test_periods_hold_their_moments_and_touch(moment: datetime, kind: str):
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    label, start, end = period_of(moment, kind)  # type: ignore[arg-type]
    assert start <= moment <= end
    assert period_of(start, kind) == period_of(end, kind) == (label, start, end)  # type: ignore[arg-type]
    length = {"month": (28, 31), "season": (89, 92), "year": (365, 366)}[kind]
    assert length[0] <= (end - start).days + 1 <= length[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
@pytest.mark.parametrize("pattern", ["*2024-06*.tif", "*2024-06*.json", "collection.json"])
def test_a_damaged_composite_is_made_again(series: Series, pattern: str, damage: str):
    spec = spec_of(series)
    make_composites(plan_composites(spec))
    out = series.folder / "out"
    (file,) = out.glob(pattern)
    sound = {path.name: path.read_bytes() for path in out.iterdir()}
    data = bytearray(sound[file.name])
    data[len(data) // 2] ^= 1
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-20])
    again = make_composites(plan_composites(spec))
    assert len(again.made) == (0 if pattern == "collection.json" else 1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == sound
    assert make_composites(plan_composites(spec)).made == ()
