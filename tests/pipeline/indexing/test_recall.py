"""The recall of an index of two-part vectors: measured at the ends of the blend, kept and told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.searcher import Searcher
from storage.index.manifest import read_manifest, write_manifest
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run
from tests.support.two_parts import two_part_encoder

COUNT = 250  # all of them are queries of the measurement
TARGET = 0.9
BLENDS = ("0", "0.15", "1")
Floats = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of tiles of some colours and patterns, as an encoder of two parts sees them."""
    folder = tmp_path_factory.mktemp("recall")
    rng = np.random.default_rng(5)
    patterns = rng.normal(0, 60, (12, 3, 32, 32)).astype(np.float32)
    kinds, colours = rng.integers(0, 12, COUNT), rng.uniform(20, 220, (COUNT, 3, 1, 1))
    tiles = (colours + patterns[kinds] * rng.uniform(0.2, 1, (COUNT, 1, 1, 1))).astype(np.float32)
    encoder = two_part_encoder(tiles, kinds, 24)
    archive = str(folder / "archive")
    create_archive(archive, encoder.spec.dimension, parts=encoder.spec.parts)
    add_scenes(archive, {"A": COUNT}, embedding=encoder(tiles))
    build_index(archive, str(folder / "index"), IndexSpec(kind="ivf_flat", nlist=16, recall=TARGET))
    return folder


def _recall(folder: Path, blend: float, nprobe: int) -> float:
    """Return the recall@10 of a blend over all rows, by brute force in float64."""
    rows = live_rows(str(folder / "archive"))
    searcher = Searcher.local(str(folder / "index"))
    parts = searcher.manifest.parts
    assert parts
    whole = rows["embedding"].astype(np.float64)
    split = np.split(whole, [parts.appearance], axis=1)
    p, label = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in split)
    truth = blend * (p @ p.T) + (1 - blend) * (label @ label.T)
    np.fill_diagonal(truth, -np.inf)
    least = np.sort(truth, axis=1)[:, -10]
    queries = np.stack([parts.query(vector, blend) for vector in whole])
    found = searcher.search(queries, 11, nprobe=nprobe).rows
    position = {row: number for number, row in enumerate(rows["row"].tolist())}
    right = [
        sum(truth[own, position[row]] >= least[own] - 1e-4 for row in hits if row >= 0)
        for own, hits in enumerate(found.tolist())
    ]
    return float(np.mean(np.minimum(right, 10)) / 10)


def test_recall_is_that_of_each_end_of_the_blend_and_the_worst_decides(folder: Path):
    manifest = read_manifest(str(folder / "index"))
    assert tuple(manifest.recall_by_blend) == BLENDS
    for nprobe in (2, 3, 4):
        measured = [manifest.recall_by_blend[blend][str(nprobe)] for blend in BLENDS]
        true = [_recall(folder, float(blend), nprobe) for blend in BLENDS]
        assert measured == pytest.approx(true, abs=0.004)
        assert manifest.recall[str(nprobe)] == min(measured) < max(measured) - 0.01
    reached = [int(n) for n, recall in manifest.recall.items() if recall >= TARGET]
    assert manifest.nprobe == min(reached)


def test_index_build_info_and_doctor_say_the_recall_of_each_blend(folder: Path):
    index, archive = folder / "index", folder / "archive"
    manifest = read_manifest(str(index))
    each = ", ".join(f"blend {b}: {manifest.recalls[b]:.3f}" for b in BLENDS)
    worst = f"{min(manifest.recalls.values()):.3f}"
    recipe = folder / "recipe.yaml"
    lists = f"kind: ivf_flat, nlist: 16, recall: {TARGET}"
    recipe.write_text(f"archive: {{uri: {archive}}}\nindex: {{uri: {index}, {lists}}}\n")
    for command in (("index", "build"), ("index", "info"), ("doctor", "--no-ray")):
        said = run(*command, "-r", recipe).out
        assert f"{worst} ({each})" in said, said
    assert read_manifest(str(index)).version == manifest.version
    write_manifest(Location(str(index)), replace(manifest, recall_by_blend={}))
    assert f"{worst} ({each})" in run("index", "build", "-r", recipe).out  # one of before
