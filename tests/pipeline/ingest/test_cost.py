"""The costs of a plan: what a run then finds, reads and writes; and a disk that is too small."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.ingest.commit import Committer
from pipeline.ingest.cost import _archive_bytes, estimate_cost, machine_bytes
from pipeline.ingest.driver import plan_ingest
from pipeline.ingest.kernels import SceneRows
from pipeline.ingest.spec import IngestPlan, IngestSpec
from pipeline.tiles.grid import TileGrid, grid_for_scene
from pipeline.tiles.read import count_tiles, read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.reader import Archive
from storage.errors import SkysiftError
from storage.progress import Progress
from storage.scene import CatalogSpec
from tests.support.ingest_world import TILE_PX, make_bundle, write_scene
from tests.support.object_store import MotoS3

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def plan(tmp_path: Path) -> IngestPlan:
    """Three scenes of sixteen tiles, one of them with half its data missing."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for month in (5, 6):
        write_scene(scenes, f"site_20240{month}01", seed=month)
    write_scene(scenes, "site_20240701", seed=3, nodata_columns=2 * TILE_PX)
    return plan_ingest(
        IngestSpec(
            catalog=CatalogSpec(source=str(scenes / "*.tif")),
            encoder_uri=make_bundle(tmp_path / "bundle"),
            archive_uri=str(tmp_path / "archives" / "one"),
        )
    )


def test_tiles_and_bytes_are_those_of_the_files(plan: IngestPlan):
    cost = estimate_cost(plan)
    files = list(Path(plan.spec.catalog.source).parent.glob("*.tif"))
    assert cost.read_bytes == sum(path.stat().st_size for path in files)
    grids = [grid_for_scene(scene, GridSpec(tile_px=TILE_PX)) for scene in plan.todo]
    counts = [count_tiles(*pair, TileRules()) for pair in zip(plan.todo, grids, strict=True)]
    assert cost.tiles == sum(counts) == 48
    assert cost.unreadable == {}
    kept = sum(
        len(part)
        for scene, grid in zip(plan.todo, grids, strict=True)
        for part in read_tiles(scene, grid, TileRules())
    )
    assert kept == 40 < cost.tiles


def test_an_unreadable_scene_is_named_and_not_counted(plan: IngestPlan):
    broken = Path(plan.todo[0].bands[0].href.uri)
    broken.write_bytes(broken.read_bytes()[:1000])
    cost = estimate_cost(plan)
    assert list(cost.unreadable) == [plan.todo[0].id]
    assert broken.name in cost.unreadable[plan.todo[0].id]
    assert cost.tiles == 32


def test_a_sample_stands_for_the_rest(plan: IngestPlan):
    many = replace(plan, todo=tuple(scene for scene in plan.todo for _ in range(20)))
    opened: list[Progress] = []
    cost = estimate_cost(many, sample_scenes=6, progress=opened.append)
    assert (len(opened), cost.tiles) == (6, 960)


@pytest.mark.parametrize(("scenes", "tiles"), [(3, 30), (40, 300), (3, 8192), (2, 5000)])
def test_the_archive_grows_by_what_was_foreseen(plan: IngestPlan, scenes: int, tiles: int):
    wide = replace(plan, archive=replace(plan.archive, dimension=64))
    wide = replace(wide, todo=tuple(replace(plan.todo[0], id=f"s{n}") for n in range(scenes)))
    archive = Archive.create(wide.spec.archive_uri, wide.archive)
    before = _size(wide.spec.archive_uri)
    committer = Committer(wide, archive)
    for index in range(scenes):
        committer.add(_rows(index, tiles, wide.archive.dimension))
    committer.commit()
    grown = _size(wide.spec.archive_uri) - before
    foreseen = _archive_bytes(wide, scenes * tiles, scenes)
    assert grown <= foreseen <= 1.6 * grown + 60_000


def test_a_run_that_cannot_fit_the_disk_is_refused(
    plan: IngestPlan, monkeypatch: pytest.MonkeyPatch
):
    cost = estimate_cost(plan)
    assert cost.fits_disk
    cost.require_room()
    asked: list[Path] = []

    def nearly_full(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**6, 10**6 - 1000, 1000)

    monkeypatch.setattr("pipeline.ingest.cost.shutil.disk_usage", nearly_full)
    tight = estimate_cost(plan)
    with pytest.raises(SkysiftError, match="for 48 tiles, but its disk has 1,000 free"):
        tight.require_room()
    assert [path.exists() for path in asked] == [True]


def test_a_run_that_cannot_fit_the_memory_is_refused(plan: IngestPlan, tmp_path: Path):
    cost = estimate_cost(plan)
    cost.require_room()
    tight = replace(cost, machine_bytes=cost.memory_bytes - 1)
    assert tight.summary()["fits"] is False
    with pytest.raises(SkysiftError, match="bytes of memory, but this machine has"):
        tight.require_room()
    with pytest.raises(SkysiftError, match="use fewer CPUs"):
        estimate_cost(plan, cpus=10**6).require_room()
    estimate_cost(plan, cpus=10**6, on_cluster=True).require_room()
    whole = machine_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_bytes(tmp_path) == whole
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_bytes(tmp_path) == 1_000_000


def test_memory_grows_with_cpus_and_batches(plan: IngestPlan):
    small = estimate_cost(plan, cpus=2).memory_bytes
    assert estimate_cost(plan, cpus=4).memory_bytes > 1.3 * small
    larger = replace(plan, spec=replace(plan.spec, batch_tiles=10 * plan.spec.batch_tiles))
    tile_bytes = 3 * TILE_PX**2 * 4
    grown = estimate_cost(larger, cpus=2).memory_bytes - small
    assert grown == 2 * 2 * 9 * plan.spec.batch_tiles * tile_bytes


def test_files_on_s3_count_and_an_object_store_is_never_full(plan: IngestPlan, moto_s3: MotoS3):
    for path in Path(plan.spec.catalog.source).parent.glob("*.tif"):
        moto_s3.location("scenes", path.name).upload(path)
    spec = replace(
        plan.spec,
        catalog=CatalogSpec(source=moto_s3.location("scenes", "*.tif")),
        archive_uri=moto_s3.location("archive"),
    )
    remote = estimate_cost(plan_ingest(spec))
    local = estimate_cost(plan)
    assert (remote.tiles, remote.read_bytes) == (local.tiles, local.read_bytes)
    assert remote.free_bytes is None
    assert remote.fits_disk


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _rows(index: int, tiles: int, dimension: int) -> SceneRows:
    random = np.random.default_rng(index)
    vectors = random.normal(size=(tiles, dimension)).astype(np.float32)
    grid = TileGrid(crs="EPSG:32632", resolution=10.0, tile_px=TILE_PX)
    places = np.stack([np.arange(tiles) % 90, np.arange(tiles) // 90], axis=1).astype(np.int32)
    return SceneRows(
        index=index,
        note={"grid_id": grid.id, "grid": grid.to_dict(), "counts": {}},
        columns={
            "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            "tile": places,
            "window": np.concatenate([places * TILE_PX, places * 0 + TILE_PX], axis=1),
            "bbox": grid.bbox_wgs84(places + np.array([1000, -15000])),
            "valid_fraction": random.uniform(size=tiles).astype(np.float32),
            "cloud_fraction": random.uniform(size=tiles).astype(np.float32),
        },
    )
