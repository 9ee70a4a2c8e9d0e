"""An import of pixel embeddings that is killed at any moment is finished by the next run."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.archive.audit import verify
from storage.archive.reader import Archive
from storage.errors import NotFoundError
from tests.support import embeddings
from tests.support.ingest_forks import Forks, Run, evenly, forks

SIDE_PX = (8, 536)
"""Of a raster: three blocks of 128 tiles of 2 px, the last one narrower."""
KILLS = 6


@pytest.fixture(scope="module")
def processes() -> Iterator[Forks]:
    with forks() as server:
        yield server


def alphaearth(folder: Path) -> Path:
    stored = np.random.default_rng(1).integers(-127, 128, (64, *SIDE_PX)).astype(np.int8)
    stored[:, :4, 20:30] = -128
    embeddings.write_alphaearth(folder, stored)
    return folder


def tessera(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    stored = rng.integers(-127, 128, (1, 8, *SIDE_PX)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (1, *SIDE_PX)).astype(np.float32)
    scales[0, :4, 20:30] = np.inf
    place = folder / "utm.zarr"
    embeddings.write_zarr(str(place), stored, scales=scales, attributes={}, years=[2024])
    return place


def rows_of(uri: str) -> dict[tuple[str, str], bytes]:
    """The vectors by scene and tile, none twice; none of an archive that is not there."""
    try:
        archive = Archive.open(uri)
    except NotFoundError:
        return {}
    found = archive.read_all(["scene", "tile_key", "embedding"])
    keys = list(zip(found["scene"], found["tile_key"], strict=True))
    assert len(set(keys)) == len(keys) == len(archive)
    assert verify(archive) == []
    return {key: vector.tobytes() for key, vector in zip(keys, found["embedding"], strict=True)}


@pytest.mark.parametrize("product", [alphaearth, tessera])
def test_every_tile_is_there_once_after_a_kill(product, processes: Forks, tmp_path: Path):
    source = product(tmp_path / "pixels")
    once = Run(source=str(source), archive=str(tmp_path / "whole"), tile_px=2)
    [outcome] = processes.run(once)
    whole = rows_of(once.archive)
    assert (outcome.error, outcome.rows) == ("", len(whole))
    assert len(whole) == 4 * 268 - 2 * 5
    kept = []
    for number, line in enumerate(evenly(outcome.lines, KILLS)):
        killed = replace(once, archive=str(tmp_path / f"killed{number}"), kill_at=line)
        [end] = processes.run(killed)
        assert end.signal == signal.SIGKILL
        before = rows_of(killed.archive)
        assert before.items() <= whole.items()
        kept.append(len(before))
        [again] = processes.run(replace(killed, kill_at=None))
        assert (again.error, again.rows) == ("", len(whole) - len(before))
        assert rows_of(killed.archive) == whole
    assert len(set(kept)) > 2  # kills before, between and after commits
