"""Damage to any file at rest is found before a wrong answer, and the advised command mends it.

The files are those of a real folder, so a new kind of file is damaged as well. Training runs and
their checkpoints are damaged in tests/pipeline/training/test_integrity.py.
"""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.bundle import load_encoder
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.errors import SkysiftError
from storage.index.quantizer import set_threads
from storage.raster.writer import write_geotiff
from tests.support.command_line import run
from tests.support.indexing_world import patch_out_ray
from workflows.report.contact_sheet import tiles_of_hits

RECIPE = """\
catalog: {{source: {folder}/scenes}}
grid: {{tile_px: 32}}
encoder:
  {{bundle: {folder}/bundle, backbone: tiny-cnn, bands: [b1, b2, b3], tile_px: 32,
    band_mean: [120, 120, 120], band_std: [40, 40, 40], backbone_options: {{width: 8}}}}
archive: {{uri: {folder}/archive}}
index: {{uri: {folder}/index, kind: ivf_sq8, nlist: 2}}
dataset: {{uri: {folder}/dataset, source: {folder}/labelled, tile_px: 16}}
"""
QUERIES = np.random.default_rng(3).normal(size=(3, 64)).astype(np.float32)
PIXELS = np.random.default_rng(4).integers(0, 255, (2, 3, 32, 32)).astype(np.float32)


def command(folder: Path, *words: str) -> tuple[int, str]:
    """Run a command with the recipe of a folder; return its exit code and its output."""
    done = run(*words, "-r", folder / "recipe.yaml")
    return done.code, done.out + done.err


def archive_content(folder: Path) -> object:
    """Every value of every live row, by scene and tile."""
    archive, rows = Archive.open(str(folder / "archive")), {}
    for segment in archive.segments:
        columns = archive.read_segment(segment.ordinal)
        for n, key in enumerate(zip(columns["scene"], columns["tile_key"], strict=True)):
            rows[key] = [
                np.asarray(v[n]).tolist()
                for k, v in columns.items()
                if k not in ("row", "scene_index")
            ]
    return rows


def index_answer(folder: Path) -> object:
    """The hits of three queries, everything but the rows' numbers."""
    hits = Searcher.local(str(folder / "index")).search(QUERIES, k=30, nprobe=100)
    return hits.to_arrow().drop_columns(["row"]).to_pylist()


def bundle_answer(folder: Path) -> object:
    """The vectors of two tiles."""
    return load_encoder(str(folder / "bundle"))(PIXELS).tolist()


def dataset_content(folder: Path) -> object:
    """Images, labels, rows and statistics."""
    data = LabelledDataset.open(str(folder / "dataset"))
    return data.images.tolist(), data.labels.tolist(), data.rows.to_dict("list"), data.info


def hits_content(folder: Path) -> object:
    """The tiles of saved hits."""
    return [tiles_of_hits(folder / "hits" / name) for name in ("hits.geojson", "hits.parquet")]


def composite_content(folder: Path) -> object:
    """The files of the composites, after the command that makes them has run again."""
    code, text = composite(folder)
    assert code == 0, text
    return {file.name: file.read_bytes() for file in (folder / "composites").iterdir()}


def composite(folder: Path) -> tuple[int, str]:
    return command(folder, "composite", "--out", str(folder / "composites"))


def save_hits(folder: Path) -> None:
    for name in ("hits.geojson", "hits.parquet"):
        code, text = command(
            folder, "search", "--lonlat=6.7838,43.3285", "--out", str(folder / "hits" / name)
        )
        assert code == 0, text


def mend(folder: Path, advice: str) -> None:
    """Run the command that a message names."""
    if "verify --mend" in advice:
        steps = [("archive", "verify", "--mend"), ("ingest",)]
    elif match := re.search(r"archive tag (\S+) --delete", advice):
        steps = [("archive", "tag", match[1], "--delete")]
    elif match := re.search(r"first of these snapshots that can be read: ([\w, ]+);", advice):
        any(command(folder, "archive", "rollback", name)[0] == 0 for name in match[1].split(", "))
        steps = [("ingest",)]
    elif match := re.search(r"makes one of these versions current: ([\w, -]+)", advice):
        steps = [("index", "rollback", "--to", match[1].split(", ")[-1])]
    elif "skysift index build" in advice or "rollback --to" in advice:
        steps = [("index", "build")]
    elif "skysift encoder make" in advice:
        steps = [("encoder", "make")]
    elif "skysift dataset import" in advice or "import the dataset again" in advice:
        steps = [("dataset", "import")]
    elif "repeat the search" in advice:
        save_hits(folder)
        steps = []
    else:
        raise AssertionError(f"no command is named: {advice}")
    for step in steps:
        code, text = command(folder, *step)
        assert code == 0, f"{step}: {text} (advised by: {advice})"


PROBES: dict[str, Callable[[Path], Any]] = {
    "archive": archive_content,
    "index": index_answer,
    "bundle": bundle_answer,
    "dataset": dataset_content,
    "hits": hits_content,
    "composites": composite_content,
}


@dataclass(frozen=True)
class World:
    """A folder, an earlier state of it, and its answers then and now."""

    now: Path
    before: Path
    answers: dict[str, Any]
    earlier: dict[str, Any]

    def files(self) -> list[Path]:
        """Every file of the stores, by its path within the world."""
        found = (file for store in PROBES for file in (self.now / store).rglob("*"))
        return sorted(file.relative_to(self.now) for file in found if file.is_file())


def _scene(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    write_geotiff(
        str(folder / f"{name}.tif"),
        rng.integers(1, 255, (3, 128, 128)).astype(np.uint8),
        "EPSG:32632",
        (10, 0, 320_000, 0, -10, 4_800_000),
        nodata=0,
        block_px=128,
        descriptions=("b1", "b2", "b3"),
    )


@pytest.fixture(scope="module")
def without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        set_threads(1)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, without_ray: None) -> World:
    """Three scenes of which one came later, and everything that is made of them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "scenes").mkdir()
    (folder / "labelled").mkdir()
    (folder / "hits").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    rng = np.random.default_rng(0)
    lines = ["image,a,b"]
    for n in range(6):
        pixels = rng.integers(1, 255, (3, 16, 16)).astype(np.uint8)
        place = (10, 0, 320_000, 0, -10, 4_800_000)
        write_geotiff(str(folder / f"labelled/{n}.tif"), pixels, "EPSG:32632", place, cog=False)
        lines.append(f"{n}.tif,{n % 2},1")
    (folder / "labelled" / "labels.csv").write_text("\n".join(lines))
    for month in (5, 6):
        _scene(folder / "scenes", f"site_20240{month}01", month)
    for words in ("encoder make", "ingest", "index build", "dataset import"):
        code, text = command(folder, *words.split())
        assert code == 0, text
    assert composite(folder)[0] == 0
    save_hits(folder)
    assert command(folder, "archive", "tag", "first")[0] == 0
    earlier = {store: probe(folder) for store, probe in PROBES.items()}
    before = Path(shutil.copytree(folder, tmp_path_factory.mktemp("before") / "world"))
    _scene(folder / "scenes", "site_20240701", 7)
    for words in ("ingest", "index update"):
        code, text = command(folder, *words.split())
        assert code == 0, text
    assert composite(folder)[0] == 0
    save_hits(folder)
    answers = {store: probe(folder) for store, probe in PROBES.items()}
    return World(folder, before, answers, earlier)


def damaged(world: World, file: Path, kind: str, seed: int) -> bool:
    """Damage a file of the world; false where that kind of damage changes nothing there."""
    draw, path = random.Random(f"{seed}{file}{kind}"), world.now / file
    data = path.read_bytes()
    if kind == "flip" and data:
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
    elif kind == "cut" and data:
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        beside = [other for other in path.parent.iterdir() if other.is_file()]
        others = [other for other in beside if other.suffix == path.suffix]
        other = draw.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "roll back" and (world.before / file).is_file():
        shutil.copyfile(world.before / file, path)
    return not path.is_file() or path.read_bytes() != data


def check(world: World, file: Path, kind: str, seed: int = 0) -> str:
    """Damage a file, ask, mend as advised, ask again; return how the damage was met."""
    store, kept = file.parts[0], world.now.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(world.now, kept)
    try:
        if not damaged(world, file, kind, seed):
            return "unchanged"
        return _met(world, store)
    finally:
        shutil.rmtree(world.now)
        shutil.copytree(kept, world.now)


def _met(world: World, store: str) -> str:
    probe, truth = PROBES[store], world.answers[store]
    for attempt in range(3):
        try:
            found = probe(world.now)
        except SkysiftError as error:
            mend(world.now, " ".join(str(error).split()))
            continue
        if found == truth:
            return "mended" if attempt else "harmless"
        if store == "hits":  # the file of an earlier search is a file of hits
            triples = zip(found, truth, world.earlier[store], strict=True)
            assert all(one in (now, then) for one, now, then in triples), "other hits"
            return "hits of an earlier search"
        # An older state that is whole is an answer of its time; a command brings it forward.
        assert found == world.earlier[store], "another answer, without a word"
        words = {"archive": ("ingest",), "index": ("index", "update")}[store]
        assert command(world.now, *words)[0] == 0
    raise AssertionError("the advised commands do not mend it")


KINDS = ("flip", "cut", "swap", "roll back", "delete")


def test_one_file_of_each_kind_is_damaged_and_mended(world: World):
    kinds = {(file.parent, file.suffix): file for file in world.files()}
    for number, file in enumerate(kinds.values()):
        kind = KINDS[number % len(KINDS)]
        try:
            check(world, file, kind)
        except AssertionError as error:
            raise AssertionError(f"{kind} {file}: {error}") from error


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_damaged_and_mended(world: World, kind: str):
    wrong: list[str] = []
    for file in world.files():
        for seed in range(3 if kind == "flip" else 1):
            try:
                check(world, file, kind, seed)
            except (AssertionError, Exception) as error:
                wrong.append(f"{file}: {type(error).__name__}: {error}")
    assert not wrong
