"""Whatever lies among the scenes, the good scenes are embedded and every scene is accounted for."""

import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio._err import CPLE_AppDefinedError

import pipeline.tiles.read
from pipeline.ingest.cost import estimate_cost
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.kernels import Batch, ReadScenes, SceneCollector
from pipeline.ingest.spec import IngestSpec
from storage.archive.audit import verify
from storage.archive.reader import Archive
from storage.scene import BandMapping, CatalogSpec
from tests.support.bad_scenes import BAD, hand_made, mutated
from tests.support.fuzz import faults_of
from tests.support.ingest_world import make_bundle, write_scene

BANDS = {f"b{number}": BandMapping(index=number) for number in (1, 2, 3)}
Rows = dict[tuple[str, str], bytes]


@dataclass(frozen=True)
class World:
    """An encoder, and the rows of a run over good scenes alone."""

    bundle: str
    good: Path
    rows: Rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("good")
    for number in range(3):
        write_scene(folder, f"good_2024050{number + 1}", seed=number)
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"))
    spec = _spec(folder, bundle, folder.parent / "alone")
    assert ingest(plan_ingest(spec), local=True).embedded == 3
    return World(bundle, folder, _rows(spec))


def _spec(scenes: Path, bundle: str, archive: Path) -> IngestSpec:
    return IngestSpec(
        catalog=CatalogSpec(source=str(scenes), bands=BANDS),
        encoder_uri=bundle,
        archive_uri=str(archive),
        batch_tiles=1,
    )


def _rows(spec: IngestSpec) -> Rows:
    """Every row by scene and tile with the bytes of its columns."""
    archive = Archive.open(spec.archive_uri)
    assert verify(archive) == []
    found: Rows = {}
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal)
        names = sorted(rows.keys() - {"scene", "scene_index", "tile_key", "row"})
        for number, key in enumerate(zip(rows["scene"], rows["tile_key"], strict=True)):
            found[key] = b"".join(np.asarray(rows[name][number]).tobytes() for name in names)
    return found


def _run_among(world: World, folder: Path) -> dict[str, tuple[str, str]]:
    """Ingest good and bad scenes twice; return state and reason of every scene."""
    scenes = folder / "scenes"
    for path in world.good.iterdir():
        (scenes / path.name).write_bytes(path.read_bytes())
    spec = _spec(scenes, world.bundle, folder / "archive")
    plan = plan_ingest(spec)
    estimate_cost(plan, cpus=1)
    report = ingest(plan, local=True)
    states = {
        one.scene_id: (one.state, one.reason) for one in Archive.open(spec.archive_uri).scenes()
    }
    assert states.keys() == {path.stem for path in scenes.iterdir()}
    assert report.quarantined.keys() == {n for n, (s, _) in states.items() if s == "quarantined"}
    rows = _rows(spec)
    assert {key: rows[key] for key in rows if key[0].startswith("good")} == world.rows
    again = plan_ingest(spec)
    assert (again.todo, again.rejected) == ((), ())
    return states


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_scene_is_quarantined_with_one_line_and_the_others_are_embedded(
    world: World, tmp_path: Path, kind: str
):
    (tmp_path / "scenes").mkdir()
    BAD[kind](tmp_path / "scenes" / "bad_20240601.tif", 1)
    state, reason = _run_among(world, tmp_path)["bad_20240601"]
    assert state == "quarantined"
    assert reason.isprintable()
    assert 20 < len(reason) < 1200


def test_the_same_file_with_true_numbers_is_embedded(world: World, tmp_path: Path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "true_20240601.tif").write_bytes(hand_made())
    assert _run_among(world, tmp_path)["true_20240601"] == ("embedded", "")


def _random_mixture(world: World, seed: int) -> None:
    """Some bad and some mutated scenes among the good ones."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenes").mkdir()
        for number in range(20):
            make = mutated if rng.random() < 0.9 else BAD[rng.choice(list(BAD))]
            make(folder / "scenes" / f"bad_202406{number + 10}.tif", rng.randrange(10**9))
        _run_among(world, folder)


def test_good_scenes_among_random_bad_ones_keep_their_rows(world: World):
    assert faults_of(partial(_random_mixture, world), range(2), limit_s=60) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_good_scenes_among_many_random_bad_ones_keep_their_rows(world: World):
    assert faults_of(partial(_random_mixture, world), range(1000, 1100), limit_s=60) == []


@pytest.mark.parametrize(
    "error",
    [
        CPLE_AppDefinedError(1, 1, "strange"),
        TypeError("strange"),
        ValueError("strange"),
        OverflowError("strange"),
        MemoryError("strange"),
        KeyError("strange"),
        ZeroDivisionError("strange"),
        RecursionError("strange"),
        UnicodeDecodeError("utf8", b"\xff", 0, 1, "strange"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_after_the_first_tiles_is_a_quarantined_scene(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    (tmp_path / "scenes").mkdir()
    write_scene(tmp_path / "scenes", "bad_20240601", seed=9)
    reader = pipeline.tiles.read.SceneReader
    calls = itertools.count()

    def read(self: Any, window: Any) -> Any:
        if self.scene.id == "bad_20240601" and next(calls) == 2:
            raise error
        return whole(self, window)

    whole = reader.read
    monkeypatch.setattr(reader, "read", read)
    state, reason = _run_among(world, tmp_path)["bad_20240601"]
    assert next(calls) == 3
    assert state == "quarantined"
    assert type(error).__name__ in reason
    assert "strange" in reason


def test_a_scene_that_fails_in_its_middle_is_whole_for_the_collector(world: World, tmp_path: Path):
    BAD["damaged-in-its-middle"](tmp_path / "bad_20240601.tif", 1)
    spec = replace(_spec(tmp_path, world.bundle, tmp_path / "archive"), batch_tiles=3)
    batches: Iterator[Batch] = ReadScenes(plan_ingest(spec))({"scene": np.array([0])})
    collector, parts = SceneCollector(), list(batches)
    assert len(parts) > 1  # tiles came before the damage
    [scene] = [rows for part in parts for rows in collector.add(part)]
    assert "cannot be read at rows" in scene.note["reason"]
