"""Bad scenes among the sources are left out with a reason, and the other composites are made."""

from pathlib import Path

import pytest
import rasterio

from pipeline.composite.driver import make_composites
from pipeline.composite.plan import plan_composites
from pipeline.composite.spec import CompositeSpec
from pipeline.tiles.spec import GridSpec
from storage.catalog.read import read_scenes
from storage.errors import SceneError
from storage.scene import BandMapping, CatalogSpec
from tests.support.bad_scenes import BAD
from tests.support.ingest_world import write_scene
from workflows.labels import label_scenes

BANDS = {f"b{number}": BandMapping(index=number) for number in (1, 2, 3)}


def test_every_kind_of_bad_source_is_named_and_the_good_composite_is_made(tmp_path: Path):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    good = write_scene(scenes, "good_19990501", seed=1)
    kinds = {f"{kind}_{2000 + year}0501": kind for year, kind in enumerate(BAD)}
    for name, kind in kinds.items():
        BAD[kind](scenes / f"{name}.tif", 1)
    spec = CompositeSpec(
        catalog=CatalogSpec(source=str(scenes), bands=BANDS),
        output_uri=str(tmp_path / "out"),
        bands=tuple(BANDS),
        period="year",
        grid=GridSpec(crs="EPSG:32632", resolution=10),
    )
    plan = plan_composites(spec)
    report = make_composites(plan, scheduler="synchronous")
    damaged = next(name for name, kind in kinds.items() if kind == "damaged-in-its-middle")
    assert report.left_out.keys() == kinds.keys() - {damaged}
    [(failed, reason)] = report.failed.items()
    assert damaged[-8:-4] in failed
    assert damaged in reason
    [made] = report.made
    with (
        rasterio.open(tmp_path / "out" / f"{made}.tif") as composite,
        rasterio.open(good) as source,
    ):
        assert (composite.read() == source.read()).all()


@pytest.mark.parametrize("kind", BAD)
def test_labels_of_a_bad_scene_are_refused_by_its_name(tmp_path: Path, kind: str):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    landcover = write_scene(tmp_path, "landcover", seed=1)
    BAD[kind](scenes / "bad_20240601.tif", 1)
    catalog = CatalogSpec(source=str(scenes), bands=BANDS)
    listing = read_scenes(catalog, tuple(BANDS))
    grid = GridSpec(tile_px=32)
    if kind == "damaged-in-its-middle":
        label_scenes(listing.scenes, grid, str(landcover), {1: "one"})  # reads headers only
        return
    with pytest.raises(SceneError, match=r"^scene bad_20240601: "):
        label_scenes(listing.scenes, grid, str(landcover), {1: "one"})
