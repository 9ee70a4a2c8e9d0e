"""Ingest: every scene accounted for, every tile once, whatever the order or the stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

import pipeline.ingest.driver
import pipeline.ingest.on_ray
from encoders.bundle import load_encoder
from pipeline.analysis.landcover import TileLabels
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.kernels import Batch, EmbedScenes, SceneCollector
from pipeline.ingest.spec import IngestSpec
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.audit import verify
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.errors import (
    ArchiveConflictError,
    EncoderMismatchError,
    GridError,
    SkysiftError,
)
from storage.progress import Event
from storage.scene import CatalogSpec
from tests.support.counted_reads import counted_reads
from tests.support.ingest_world import SIZE_PX, TILE_PX, make_bundle, rows_of, write_scene
from tests.support.object_store import MotoS3


@pytest.fixture
def job(tmp_path: Path) -> IngestSpec:
    """Two scenes of one ground on two days, one scene of another day with half its data."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_scene(scenes, "site_20240501", seed=1)
    write_scene(scenes, "site_20240601", seed=2)
    write_scene(scenes, "site_20240701", seed=3, nodata_columns=2 * TILE_PX)
    return IngestSpec(
        catalog=CatalogSpec(source=str(scenes / "*.tif")),
        encoder_uri=make_bundle(tmp_path / "bundle"),
        archive_uri=str(tmp_path / "archive"),
    )


@pytest.mark.usefixtures("ray_session")
def test_every_tile_is_archived_once_with_the_vector_of_its_pixels(job: IngestSpec):
    report = ingest(plan_ingest(job))
    assert (report.embedded, report.rows, report.quarantined) == (3, 16 + 16 + 8, {})
    archive = Archive.open(job.archive_uri)
    assert archive.snapshot == report.snapshot
    assert verify(archive) == []
    encoder = load_encoder(job.encoder_uri)
    scenes = {scene.id: scene for scene in read_scenes(job.catalog, encoder.bands).scenes}
    rows = archive.read_segment(0)
    assert rows["datetime"].min() == np.datetime64("2024-05-01")
    for scene_id, scene in scenes.items():
        grid = grid_for_scene(scene, GridSpec(tile_px=TILE_PX))
        mine = rows["scene"] == scene_id
        parts = list(read_tiles(scene, grid, TileRules()))
        truth = np.concatenate([encoder(part.pixels) for part in parts])
        tiles = np.concatenate([part.tiles for part in parts])
        np.testing.assert_array_equal(rows["tile"][mine], tiles)
        np.testing.assert_allclose(rows["embedding"][mine], truth, atol=1e-3)
        assert rows["tile_key"][mine].tolist() == grid.keys(tiles)
    first = rows["tile_key"][rows["scene"] == "site_20240501"]
    second = rows["tile_key"][rows["scene"] == "site_20240601"]
    assert first.tolist() == second.tolist()


def test_scenes_read_side_by_side_give_the_vectors_of_their_own_pixels(job: IngestSpec):
    plan = plan_ingest(job)
    stage, collector = EmbedScenes(plan), SceneCollector()
    indexes = np.tile(np.arange(len(plan.todo), dtype=np.int64), 4)
    with ThreadPoolExecutor(len(indexes)) as pool:
        runs = list(pool.map(lambda index: list(stage({"scene": np.array([index])})), indexes))
    encoder = load_encoder(job.encoder_uri)
    for index, batches in zip(indexes.tolist(), runs, strict=True):
        [rows] = [rows for batch in batches for rows in collector.add(batch)]
        grid = grid_for_scene(plan.todo[index], plan.grid)
        parts = list(read_tiles(plan.todo[index], grid, job.rules))
        truth = np.concatenate([encoder(part.pixels) for part in parts])
        assert rows.index == index
        np.testing.assert_array_equal(
            rows.columns["tile"], np.concatenate([part.tiles for part in parts])
        )
        np.testing.assert_allclose(rows.columns["embedding"], truth, atol=1e-5)


@pytest.mark.usefixtures("ray_session")
def test_only_new_and_changed_scenes_are_embedded_again(job: IngestSpec):
    first = ingest(plan_ingest(job))
    again = ingest(plan_ingest(job))
    assert (again.rows, again.done_before, again.snapshot) == (0, 3, first.snapshot)
    before = rows_of(job.archive_uri)
    scenes = Path(job.catalog.source).parent
    time.sleep(0.01)
    write_scene(scenes, "site_20240601", seed=9, nodata_columns=3 * TILE_PX)
    write_scene(scenes, "site_20240801", seed=4)
    plan = plan_ingest(job)
    assert plan.reprocessed == ("site_20240601",)
    assert [scene.id for scene in plan.todo] == ["site_20240601", "site_20240801"]
    report = ingest(plan)
    assert report.rows == 4 + 16
    assert len(rows_of(job.archive_uri)) == len(before) - 16 + 4 + 16
    assert verify(Archive.open(job.archive_uri)) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("together", [1, 3])
def test_a_bad_scene_is_quarantined_with_its_reason_and_an_empty_one_is_said_to_be(
    job: IngestSpec, monkeypatch: pytest.MonkeyPatch, together: int
):
    monkeypatch.setattr(pipeline.ingest.on_ray, "scenes_a_task", lambda *_: together)
    scenes = Path(job.catalog.source).parent
    whole = (scenes / "site_20240501.tif").read_bytes()
    (scenes / "bad_20240901.tif").write_bytes(whole[: len(whole) // 2])
    write_scene(scenes, "dark_20240902", seed=5, nodata_columns=SIZE_PX)
    events: list[Event] = []
    report = ingest(plan_ingest(job), events=events.append)
    assert list(report.quarantined) == ["bad_20240901"]
    told = {one.scene: (one.state, one.rows, one.reason) for one in events if one.scene}
    assert {name: told[name][:2] for name in told} == {
        "site_20240501": ("embedded", 16),
        "site_20240601": ("embedded", 16),
        "site_20240701": ("embedded", 8),
        "dark_20240902": ("empty", 0),
        "bad_20240901": ("quarantined", 0),
    }
    assert told["bad_20240901"][2] == report.quarantined["bad_20240901"]
    others = [(one.event, one.scenes, one.rows) for one in events if not one.scene]
    assert others == [("started", 4, None), ("committed", 5, 40), ("finished", 5, 40)]
    assert (report.embedded, report.empty) == (3, 1)
    states = {s.scene_id: (s.state, s.reason) for s in Archive.open(job.archive_uri).scenes()}
    assert states["bad_20240901"][0] == "quarantined"
    assert "bad_20240901.tif" in states["bad_20240901"][1]
    assert states["dark_20240902"][0] == "empty"
    assert "16 with too little data" in states["dark_20240902"][1]
    assert ingest(plan_ingest(job)).quarantined == {}
    (scenes / "bad_20240901.tif").write_bytes(whole)
    retried = ingest(plan_ingest(replace(job, retry_quarantined=True)))
    assert retried.rows == 16


def test_a_plan_names_its_encoder_for_any_folder(job: IngestSpec, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_ingest(replace(job, encoder_uri="bundle"))
    assert str(plan.spec.encoder_uri) == plan.archive.encoder_uri == str(tmp_path / "bundle")


def test_another_encoder_or_grid_is_refused(job: IngestSpec, tmp_path: Path):
    ingest(replace(plan_ingest(job), todo=()))
    other = make_bundle(tmp_path / "other", seed=1)
    ours, theirs = (load_encoder(uri).fingerprint[:16] for uri in (job.encoder_uri, other))
    with pytest.raises(EncoderMismatchError, match=f"{ours}.*{theirs}"):
        plan_ingest(replace(job, encoder_uri=other))
    with pytest.raises(GridError, match="was made with grid"):
        plan_ingest(replace(job, grid=GridSpec(tile_px=TILE_PX, resolution=20.0)))
    with pytest.raises(GridError, match="tiles are 64 px, but encoder"):
        plan_ingest(replace(job, grid=GridSpec(tile_px=64)))


def test_an_ingest_reads_the_encoder_and_opens_the_archive_once_for_plan_and_once_for_work(
    job: IngestSpec, monkeypatch: pytest.MonkeyPatch
):
    with counted_reads(monkeypatch) as counts:
        plan = plan_ingest(job)
        assert counts == {"weights": 1}
        assert ingest(plan, local=True).embedded == 3
    assert counts["weights"] == 2
    assert counts["opens"] <= 2
    assert counts["folds"] == 1
    write_scene(Path(job.catalog.source).parent, "site_20240801", seed=4)
    with counted_reads(monkeypatch) as counts:
        assert ingest(plan_ingest(job), local=True).embedded == 1
    assert counts == {"weights": 2, "opens": 1, "folds": 1}
    assert rows_of(job.archive_uri) == set(_expected(job))


def test_a_commit_between_plan_and_run_is_seen(job: IngestSpec):
    ingest(replace(plan_ingest(job), todo=()), local=True)
    early, late = plan_ingest(job), plan_ingest(job)
    assert ingest(early, local=True).embedded == 3
    assert ingest(late, local=True).snapshot == Archive.open(job.archive_uri).snapshot
    assert rows_of(job.archive_uri) == set(_expected(job))


def test_a_plan_for_a_new_archive_is_checked_against_one_made_since(
    job: IngestSpec, tmp_path: Path
):
    plan = plan_ingest(replace(job, encoder_uri=make_bundle(tmp_path / "other", seed=1)))
    ingest(plan_ingest(job), local=True)
    with pytest.raises(EncoderMismatchError, match="holds vectors of encoder"):
        ingest(plan, local=True)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("local", [True, False])
def test_an_encoder_replaced_between_plan_and_run_is_refused(job: IngestSpec, local: bool):
    plan = plan_ingest(job)
    before = load_encoder(job.encoder_uri).fingerprint[:16]
    make_bundle(Path(job.encoder_uri), seed=1)
    after = load_encoder(job.encoder_uri).fingerprint[:16]
    with pytest.raises(EncoderMismatchError, match=f"was {before} and is {after} now"):
        ingest(plan, local=local)
    assert len(Archive.open(job.archive_uri)) == 0


def test_a_grid_without_a_tile_size_takes_the_encoders(job: IngestSpec):
    plan = plan_ingest(replace(job, grid=GridSpec(resolution=20.0)))
    assert plan.grid == GridSpec(tile_px=TILE_PX, resolution=20.0)
    assert plan.archive.grid["tile_px"] == TILE_PX


@pytest.mark.usefixtures("ray_session")
def test_labels_follow_their_tiles(job: IngestSpec, tmp_path: Path):
    keys = sorted(key for _, key in _expected(job))
    table = TileLabels(
        tile_keys=np.array(keys[:10], object),
        fractions=np.array([[0.7, 0.0], [0.1, 0.6]] * 5, np.float32),
        mapped=np.ones(10, np.float32),
        classes=("water", "forest"),
        min_fraction=0.2,
    )
    labels_uri = str(tmp_path / "labels.parquet")
    table.to_parquet(labels_uri)
    ingest(plan_ingest(replace(job, labels_uri=labels_uri)))
    archive = Archive.open(job.archive_uri)
    assert archive.spec.classes == ("water", "forest")
    assert table.labels.tolist() == [[1, 0], [0, 1]] * 5
    truth = dict(zip(table.tile_keys, table.labels.tolist(), strict=True))
    rows = archive.read_segment(0)
    for key, labels in zip(rows["tile_key"], rows["labels"].tolist(), strict=True):
        assert labels == truth.get(key, [0, 0])


def _expected(job: IngestSpec) -> list[tuple[str, str]]:
    pairs = []
    for scene in read_scenes(job.catalog, ("b1", "b2", "b3")).scenes:
        grid = grid_for_scene(scene, GridSpec(tile_px=TILE_PX))
        for part in read_tiles(scene, grid, TileRules()):
            pairs += [(scene.id, key) for key in grid.keys(part.tiles)]
    return pairs


@pytest.mark.usefixtures("ray_session")
def test_everything_may_live_on_s3(job: IngestSpec, moto_s3: MotoS3):
    for path in Path(job.catalog.source).parent.glob("*.tif"):
        moto_s3.location("scenes", path.name).upload(path)
    for path in Path(job.encoder_uri).iterdir():
        moto_s3.location("bundle", path.name).upload(path)
    remote = replace(
        job,
        catalog=CatalogSpec(source=moto_s3.location("scenes", "*.tif")),
        encoder_uri=moto_s3.location("bundle"),
        archive_uri=moto_s3.location("archive"),
    )
    plan = plan_ingest(remote)
    report = ingest(plan)
    assert (report.rows, report.quarantined) == (40, {})
    assert rows_of(remote.archive_uri) == set(_expected(job))
    assert plan.summary()["archive"] == moto_s3.uri("archive")
    secret = moto_s3.options.secret_access_key
    assert secret
    assert secret not in f"{plan!r} {plan.summary()}"
    assert plan_ingest(remote).done == 3


def test_a_small_run_embeds_in_its_own_process_what_ray_would(job: IngestSpec, tmp_path: Path):
    before = ray.is_initialized()
    report = ingest(plan_ingest(job), local=True)
    assert ray.is_initialized() == before
    assert report.embedded == 3
    assert rows_of(job.archive_uri) == set(_expected(job))
    assert verify(Archive.open(job.archive_uri)) == []


def test_ctrl_c_lets_the_encoder_end_and_keeps_finished_scenes(
    job: IngestSpec, monkeypatch: pytest.MonkeyPatch
):
    embedded, embed = [], EmbedScenes.__call__

    def interrupted(self: EmbedScenes, batch: Batch) -> Iterator[Batch]:
        if embedded:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the signal would be raised here, as inside torch
        yield from embed(self, batch)
        embedded.append(batch)

    monkeypatch.setattr(EmbedScenes, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(plan_ingest(job), local=True)
    assert len(embedded) == 2
    assert len(Archive.open(job.archive_uri).scenes()) == 1
    monkeypatch.undo()
    assert ingest(plan_ingest(job), local=True).embedded == 2


@pytest.mark.usefixtures("ray_session")
def test_scenes_that_workers_lose_are_an_error_and_the_others_stay(
    job: IngestSpec, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_ingest(job)
    stages = pipeline.ingest.driver._batches_on_ray

    def lossy(*arguments: object):
        for batch in stages(*arguments):
            kept = batch["scene"] != 1
            yield {name: values[kept] for name, values in batch.items()}

    monkeypatch.setattr(pipeline.ingest.driver, "_batches_on_ray", lossy)
    with pytest.raises(SkysiftError, match="1 of 3 scenes did not come back"):
        ingest(plan)
    monkeypatch.undo()
    assert [entry.state for entry in Archive.open(job.archive_uri).scenes()] == ["embedded"] * 2
    assert ingest(plan_ingest(job)).embedded == 1
    assert rows_of(job.archive_uri) == set(_expected(job))


KILLED_RUN = """
import sys
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from storage.scene import CatalogSpec
source, encoder, archive = sys.argv[1:]
spec = IngestSpec(catalog=CatalogSpec(source=source), encoder_uri=encoder, archive_uri=archive,
                  segment_rows=1, commit_interval_s=0.0)
ingest(plan_ingest(spec), progress=lambda report: print(report.done, flush=True))
"""


def test_a_killed_run_loses_no_commit_and_the_next_one_finishes(job: IngestSpec):
    scenes = Path(job.catalog.source).parent
    for number in range(12):
        write_scene(scenes, f"more_202502{number + 1:02d}", seed=20 + number)
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, job.catalog.source, job.encoder_uri, job.archive_uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with run:
        assert run.stdout is not None
        next(line for line in run.stdout if int(line) >= 2)
        run.kill()
    survived = Archive.open(job.archive_uri)
    assert 2 <= len(survived.scenes()) < 15
    assert verify(survived) == []
    report = ingest(plan_ingest(job))
    assert report.done_before == len(survived.scenes())
    assert rows_of(job.archive_uri) == set(_expected(job))


def test_rows_of_a_scene_come_together_from_batches_in_any_order():
    random = np.random.default_rng(0)
    sizes = {0: 5, 1: 0, 2: 7}
    rows = [
        {"scene": scene, "status": 0, "tiles": 0, "note": "", "tile": (number % 3, number // 3)}
        for scene, size in sizes.items()
        for number in range(size)
    ] + [
        {"scene": s, "status": 1, "tiles": n, "note": json.dumps({"n": n}), "tile": (0, 0)}
        for s, n in sizes.items()
    ]
    for _ in range(20):
        order = random.permutation(len(rows))
        cuts = np.sort(random.integers(0, len(rows), 4))
        collector = SceneCollector()
        done = {}
        for part in np.split(order, cuts):
            chosen = [rows[i] for i in part]
            batch = {
                name: np.array([row[name] for row in chosen], dtype=kind).reshape(
                    (-1, 2) if name == "tile" else (-1,)
                )
                for name, kind in (
                    ("scene", "i4"),
                    ("status", "i1"),
                    ("tiles", "i4"),
                    ("note", object),
                    ("tile", "i4"),
                )
            }
            for scene in collector.add(batch):
                assert scene.index not in done
                done[scene.index] = scene
        assert {index: len(scene) for index, scene in done.items()} == sizes
        assert done[2].columns["tile"].tolist() == [[n % 3, n // 3] for n in range(7)]


def test_an_archive_that_is_gone_or_another_since_the_plan_is_refused(job: IngestSpec):
    ingest(plan_ingest(job), local=True)
    write_scene(Path(str(job.catalog.source)).parent, "site_20240801", seed=4)
    plan = plan_ingest(job)
    assert (plan.done, len(plan.todo)) == (3, 1)
    shutil.rmtree(str(job.archive_uri))
    with pytest.raises(ArchiveConflictError, match="was deleted since the run was planned"):
        ingest(plan, local=True)
    assert not Path(str(job.archive_uri)).exists()
    Archive.create(job.archive_uri, plan.archive)
    with pytest.raises(ArchiveConflictError, match="lost 3 scenes since the run was planned"):
        ingest(plan, local=True)
    assert ingest(plan_ingest(job), local=True).embedded == 4
