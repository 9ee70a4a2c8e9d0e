"""The command line: every verb end to end on a small world, and each mistake in one line."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image

from storage.raster.writer import write_geotiff
from tests.support.command_line import run
from tests.support.listening import listening_ports
from workflows.cli import VERBS, cli

REPOSITORY = Path(__file__).resolve().parents[2]
TILE_PX = 32
PLACE = "6.7838,43.3285"  # within the scenes
RECIPE = """\
name: small
catalog:
  source: {folder}/scenes
tiles:
  min_valid_fraction: 0.5
encoder:
  bundle: {folder}/bundle
  backbone: tiny-cnn
  bands: [b1, b2, b3]
  tile_px: 32
archive:
  uri: {folder}/archive
index:
  uri: {folder}/index
  shards: 2
"""


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def _write_scene(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ground = np.random.default_rng(0).integers(40, 215, (3, 4, 4)).repeat(TILE_PX, 1)
    pixels = ground.repeat(TILE_PX, 2) + rng.integers(-39, 40, (3, 4 * TILE_PX, 4 * TILE_PX))
    write_geotiff(
        str(folder / f"{name}.tif"),
        pixels.astype(np.uint8),
        "EPSG:32632",
        (10, 0, 320_000, 0, -10, 4_800_000),
        nodata=0,
        block_px=128,
        descriptions=("b1", "b2", "b3"),
    )


@dataclass(frozen=True)
class _World:
    folder: Path

    @property
    def recipe(self) -> str:
        return str(self.folder / "recipe.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_session) -> _World:
    """Three scenes of one ground, embedded and indexed by the command line."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "scenes").mkdir()
    for month in (5, 6, 7):
        _write_scene(folder / "scenes", f"site_20240{month}01", month)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    world = _World(folder)
    for command in (["encoder", "make"], ["ingest"], ["index", "build"]):
        outcome = run(*command, "-r", world.recipe)
        assert outcome.code == 0, outcome.err
    return world


@pytest.fixture
def spoilt(world, tmp_path) -> _World:
    """The same scenes beside their archive of their own, to be damaged."""
    shutil.copytree(world.folder / "scenes", tmp_path / "scenes")
    shutil.copytree(world.folder / "bundle", tmp_path / "bundle")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    return _World(tmp_path)


# ---------------------------------------------------------------- help


def test_help_comes_at_once_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from workflows.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'rasterio', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.8  # 0.06 s of processor time; the machine may be busy


def _verbs() -> Iterator[list[str]]:
    for name in VERBS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        yield [name]
        yield from ([name, inner] for inner in getattr(command, "commands", {}))


@pytest.mark.parametrize("verb", list(_verbs()), ids=" ".join)
def test_every_verb_has_help_and_every_leaf_an_example_and_json(verb):
    outcome = run(*verb, "--help")
    assert outcome.code == 0
    if "Commands:" not in outcome.out:
        assert "--json" in outcome.out
        assert f"skysift {' '.join(verb)}" in outcome.out.partition("Example:")[2]


# ---------------------------------------------------------------- the chain


def test_the_plan_is_printed_and_nothing_is_written(spoilt):
    outcome = run("ingest", "-r", spoilt.recipe, "--dry-run", "--json")
    assert outcome.data["scenes_to_embed"] == 3
    assert list((spoilt.folder / "archive").rglob("*")) == []


def test_of_many_rejected_scenes_a_person_is_told_the_first(world, tmp_path):
    scene = next(world.folder.rglob("*.tif"))
    for number in range(12):
        (tmp_path / f"undated-{number:02d}.tif").symlink_to(scene)
    command = (
        "ingest",
        "-r",
        world.recipe,
        "--scenes",
        tmp_path,
        "--archive",
        tmp_path / "archive",
    )
    shown = run(*command, "--dry-run").out
    assert re.search(r"^scenes rejected +12$", shown, re.MULTILINE), shown
    assert shown.count("has no date in its name") == 10
    assert "and 2 more; --json names all" in shown
    assert len(run(*command, "--dry-run", "--json").data["scenes_rejected"]) == 12


def test_an_archive_is_not_made_among_other_files(world, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused = run("ingest", "-r", world.recipe, "--archive", tmp_path)
    assert refused.code == 2
    assert "notes.txt is; give an empty place" in refused.err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_archive_is_described_audited_verified_and_exported(world, tmp_path):
    info = run("archive", "info", "-r", world.recipe, "--scenes", "--json").data
    assert (info["rows"], info["scenes embedded"]) == (48, 3)
    assert {scene["state"] for scene in info["scenes"]} == {"embedded"}
    assert run("archive", "audit", "-r", world.recipe, "--json").data["complete"] is True
    assert run("archive", "verify", "-r", world.recipe, "--json").data["faults"] == []
    out = tmp_path / "rows.parquet"
    assert run("archive", "export", "-r", world.recipe, "--out", out, "--json").data["rows"] == 48
    assert len(geopandas.read_parquet(out)) == 48


def test_ingest_again_does_nothing_and_a_lost_scene_fails_the_audit(world):
    again = run("ingest", "-r", world.recipe, "--json").data["report"]
    assert (again["embedded"], again["done_before"]) == (0, 3)
    _write_scene(world.folder / "scenes", "site_20240801", 8)
    audit = run("archive", "audit", "-r", world.recipe, "--json")
    (world.folder / "scenes" / "site_20240801.tif").unlink()
    assert audit.code == 1
    assert audit.data["missing"] == ["site_20240801"]


def test_an_index_is_verified_updated_and_a_flipped_byte_found(world, tmp_path):
    shutil.copytree(world.folder / "index", tmp_path / "index")
    index = ["--index", tmp_path / "index"]
    assert run("index", "verify", *index).code == 0
    assert run("index", "update", *index, "--json").data["shards"]
    shard = next((tmp_path / "index").rglob("shard-*.faiss"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    broken = run("index", "verify", *index)
    assert broken.code == 1
    assert shard.name in broken.out


def test_search_by_tile_finds_the_same_ground_on_other_days_and_not_itself(world):
    hits = _search(world, f"--lonlat={PLACE}", "-k", 2)
    assert len(hits) == 2
    key, scene = hits[0]["tile_key"], hits[0]["scene"]
    found = _search(world, "--tile", key, "--scene", scene, "-k", 2)
    assert [hit["rank"] for hit in found] == [1, 2]
    assert {hit["tile_key"] for hit in found} == {key}
    assert scene not in {hit["scene"] for hit in found}
    kept = _search(world, "--tile", key, "--scene", scene, "-k", 1, "--include-self")
    assert (kept[0]["scene"], round(kept[0]["score"], 3)) == (scene, 1.0)
    later = _search(world, "--tile", key, "-k", 40, "--since", "2024-06-02")
    assert {hit["scene"] for hit in later} == {"site_20240701"}


def _search(world: _World, *arguments: object) -> list[dict]:
    outcome = run("search", "-r", world.recipe, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.data["hits"]


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_search_by_image_and_by_vector(world, tmp_path, suffix):
    path = tmp_path / f"query.{suffix}"
    if suffix == "png":
        rng = np.random.default_rng(5)
        Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path)
        hits = _search(world, "--image", path, "-k", 3)
    else:
        info = run("archive", "info", "-r", world.recipe, "--json").data
        np.save(path, np.ones(info["dimension"]))
        hits = _search(world, "--vector", path, "-k", 3)
    assert len(hits) == 3
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]


def test_hits_are_written_for_other_programs_and_shown_in_eighty_columns(world, tmp_path):
    query = ["search", "-r", world.recipe, f"--lonlat={PLACE}", "-k", 4]
    for suffix in ("geojson", "parquet"):
        assert run(*query, "--out", tmp_path / f"hits.{suffix}").code == 0
        read = geopandas.read_parquet if suffix == "parquet" else geopandas.read_file
        frame = read(tmp_path / f"hits.{suffix}")
        crs = ("OGC", "CRS84") if suffix == "parquet" else ("EPSG", "4326")
        assert (len(frame), frame.crs.to_authority()) == (4, crs)
        assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert run(*query, "--out", tmp_path / "hits.csv").code == 0
    assert (tmp_path / "hits.csv").read_text().count("\n") == 5
    shown = run(*query).out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "site_20240701" in shown


def test_retrieval_is_scored_by_place_beside_chance(world):
    found = run("evaluate", "-r", world.recipe, "--same-place", "--json").data
    assert found["queries"] == 48
    assert found["recall@10"] > found["random recall@10"]
    unlabelled = run("evaluate", "-r", world.recipe)
    assert unlabelled.code == 1 or unlabelled.code == 2
    assert "--same-place" in unlabelled.err


def test_a_report_is_drawn(world, tmp_path):
    out = tmp_path / "report.html"
    assert run("report", "-r", world.recipe, "--out", out, "--queries", 2).code == 0
    page = out.read_text()
    assert "site_20240501" in page
    assert "data:image" in page
    alone = tmp_path / "alone.html"
    index = world.folder / "index"
    assert run("report", "--index", index, "--out", alone, "--queries", 2).code == 0
    assert "data:image" in alone.read_text()


def test_a_sheet_needs_the_archive_alone(world, tmp_path):
    sheets = [tmp_path / name for name in ("alone.png", "listed.png")]
    archive = ["--archive", world.folder / "archive", "--count", 3]
    scenes = ["--scenes", world.folder / "scenes"]
    for out, more in zip(sheets, ([], scenes), strict=True):
        done = run("archive", "sheet", *archive, *more, "--out", out)
        assert done.code == 0, done.err
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    noted = run("archive", "remember", *archive[:2], *scenes, "--json").data
    assert len(noted["scenes"]) == 3
    assert (noted["missing"], noted["changed"]) == ([], [])


def test_a_dataset_is_imported_trained_on_and_scored(world, tmp_path):
    folder = tmp_path / "images"
    (folder / "images").mkdir(parents=True)
    lines = ["image,split,dark,light"]
    rng = np.random.default_rng(3)
    for number in range(36):
        light = number % 2
        pixels = rng.integers(0, 100, (32, 32, 3)) + 150 * light
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        split = ("train", "train", "test", "val")[number // 9]
        lines.append(f"{number}.png,{split},{1 - light},{light}")
    (folder / "labels.csv").write_text("\n".join(lines))
    dataset, output = tmp_path / "dataset", tmp_path / "run"
    imported = run("dataset", "import", "--source", folder, "--dataset", dataset, "--json")
    assert imported.data["info"]["count"] == 36, imported.err
    small = ["batch_size=12", "dimension=8", "hidden=16", "device=cpu", "warmup_epochs=0.0"]
    sets = [part for value in small for part in ("--set", f"training.{value}")]
    command = ["train", "--dataset", dataset, "--output", output, "--epochs", 1, *sets, "--json"]
    trained = run(*command)
    assert trained.code == 0, trained.err
    assert run(*command).data["fingerprint"] == trained.data["fingerprint"]
    bundle = trained.data["bundle_uri"]
    info = run("encoder", "info", "--encoder", bundle, "--json").data
    assert (info["fingerprint"], info["dimension"]) == (trained.data["fingerprint"], 8)
    scores = run("evaluate", "--dataset", dataset, "--encoder", bundle, "-k", 5, "--json").data
    assert (scores["queries"], scores["items"]) == (9, 27)
    assert set(scores["metrics"]) == set(scores["random"])
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"dataset: {{uri: {dataset}}}\ntraining: {{output: {output}}}\n")
    again = run("evaluate", "-r", recipe, "-k", 5, "--json")  # after `skysift train -r own.yaml`
    assert again.data == scores, again.err
    early = run("evaluate", "-r", recipe, "--set", f"training.output={tmp_path / 'later'}")
    assert early.code == 2
    assert "skysift train" in early.err


def test_the_same_commands_work_on_an_object_store(world, moto_s3):
    for folder in ("scenes", "bundle"):
        for path in (world.folder / folder).iterdir():
            moto_s3.location(folder, path.name).upload(path)
    store = {
        "storage.endpoint_url": moto_s3.options.endpoint_url,
        "storage.region": moto_s3.options.region,
        "storage.access_key_id": moto_s3.options.access_key_id,
        "storage.secret_access_key": moto_s3.options.secret_access_key,
        "catalog.source": moto_s3.uri("scenes"),
        "encoder.bundle": moto_s3.uri("bundle"),
        "archive.uri": moto_s3.uri("archive"),
        "index.uri": moto_s3.uri("index"),
    }
    common = [part for item in store.items() for part in ("--set", "=".join(item))] + ["--json"]
    report = run("ingest", *common)
    assert report.code == 0, report.err
    assert report.data["report"]["rows"] == 48
    assert run("archive", "audit", *common).data["complete"] is True
    assert run("index", "build", *common).data["version"]
    assert run("index", "verify", *common).data["problems"] == []
    drawn = world.folder / "sheet-of-s3.png"
    assert (
        run("archive", "sheet", *common, "--set", "catalog.source=null", "--out", drawn).code == 0
    )
    assert drawn.stat().st_size > 10_000
    page = world.folder / "report-of-s3.html"
    alone = ("--set", "catalog.source=null", "--out", page, "--queries", 2)
    assert run("report", *common, *alone).code == 0
    assert page.read_text().count("data:image/jpeg;base64,") >= 4
    here = _search(world, f"--lonlat={PLACE}", "-k", 5)
    there = run("search", *common, f"--lonlat={PLACE}", "-k", 5).data["hits"]
    assert [(h["tile_key"], h["scene"]) for h in there] == [
        (h["tile_key"], h["scene"]) for h in here
    ]
    wrong = run("archive", "info", *common, "--archive", "s3://no-such-bucket/archive")
    assert (wrong.code, wrong.err.count("\n")) == (1, 1), wrong.err
    assert "s3://no-such-bucket/archive" in wrong.err


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ingest"], "catalog.source is not given: use --scenes"),
        (["ingst"], "No such command 'ingst'"),
        (["search", "--index", "/nowhere"], "give an example: --image"),
        (["search", "--index", "/nowhere", "--lonlat=91"], "LON,LAT"),
        (["search", "--index", "/nowhere", "--lonlat=7,43"], "/nowhere"),
        (["search", "--index", "x", "--lonlat=7,43", "-k", "0"], "--k: search.k: expected"),
        (["ingest", "-r", "naip-serie"], "did you mean naip-series?"),
        (["ingest", "--set", "gird.tile_px=4"], "did you mean grid?"),
        (["ingest", "--bbox", "5", "0", "4", "-1"], "--bbox: catalog.query.bbox"),
        (["serve", "coast=/nowhere", "--host", "0.0.0.0"], "SKYSIFT_TOKEN"),
        (["archive", "info", "--archive", "/nowhere"], "--archive: archive.uri"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, word, monkeypatch):
    monkeypatch.delenv("SKYSIFT_TOKEN", raising=False)
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert word in outcome.err


def test_a_name_that_is_not_utf_8_is_refused():
    outcome = run("archive", "info", "--archive", "work/a\udcff")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "a\\udcff' is not UTF-8" in outcome.err
    assert "is not UTF-8" not in run("archive", "info", "--archive", "work/Zürich").err


def test_a_spoilt_scene_is_set_aside_and_the_others_go_on(spoilt):
    damaged = spoilt.folder / "scenes" / "site_20240601.tif"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    first = run("ingest", "-r", spoilt.recipe, "--json")
    assert first.code == 3, first.err
    report = first.data["report"]
    assert (report["embedded"], list(report["quarantined"])) == (2, ["site_20240601"])
    assert run("archive", "audit", "-r", spoilt.recipe).code == 0
    _write_scene(spoilt.folder / "scenes", "site_20240601", 6)
    again = run("ingest", "-r", spoilt.recipe, "--retry-quarantined", "--json")
    assert (again.code, again.data["report"]["embedded"]) == (0, 1)


@pytest.mark.parametrize("name", ["\x1b]0;pwned\x07\x1b[31mRED\nspoofed  9", "sur\ud800id"])
def test_an_odd_id_is_set_aside_once_and_spoils_no_list(spoilt, name):
    scene = spoilt.folder / "scenes" / "site_20240501.tif"
    file = {"href": str(scene), "type": "image/tiff"}
    asset = {"px": file | {"eo:bands": [{"name": f"b{number}"} for number in (1, 2, 3)]}}
    item = {"type": "Feature", "stac_version": "1.0.0", "geometry": None, "links": []}
    item |= {"properties": {"datetime": "2024-05-01T00:00:00Z"}, "assets": asset}
    features = [item | {"id": name}, item | {"id": "good"}]
    catalog = spoilt.folder / "catalog.json"
    catalog.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    common = ("-r", spoilt.recipe, "--scenes", catalog)
    events = spoilt.folder / "events.jsonl"
    first = run("ingest", *common, "--events", events, "--json")
    assert (first.code, first.data["report"]["embedded"]) == (3, 1), first.err
    assert len(first.data["report"]["quarantined"]) == 1
    again = run("ingest", *common, "--json").data["report"]
    assert (again["quarantined"], again["snapshot"]) == ({}, first.data["report"]["snapshot"])
    for command in (("info", "--scenes", "-r", spoilt.recipe), ("audit", *common)):
        outcome = run("archive", *command)
        assert outcome.code == 0, outcome.err
        assert all(line.isprintable() for line in outcome.out.split("\n"))
        assert "\nspoofed" not in outcome.out
    assert all(json.loads(line) for line in events.read_text(encoding="utf-8").splitlines())


def test_a_picture_asks_from_another_folder_than_the_ingest(spoilt, tmp_path, monkeypatch):
    monkeypatch.chdir(spoilt.folder)
    here = ("--archive", "archive", "--index", "index")
    made = run("ingest", "--scenes", "scenes", "--encoder", "bundle", *here[:2])
    assert made.code == 0, made.err
    assert run("index", "build", *here).code == 0
    monkeypatch.chdir("/")
    picture = next((spoilt.folder / "scenes").glob("*.tif"))
    command = ("search", "--index", spoilt.folder / "index", "--image", picture, "-k", 1, "--json")
    assert len(run(*command).data["hits"]) == 1
    (spoilt.folder / "bundle").rename(spoilt.folder / "elsewhere")
    moved = run(*command)
    assert (moved.code, moved.err.count("\n")) == (1, 1)
    assert "--encoder" in moved.err


def test_an_encoder_names_the_scenes_that_its_statistics_lack(spoilt):
    good, *_ = sorted((spoilt.folder / "scenes").glob("*.tif"))
    (spoilt.folder / "scenes" / "cut.tif").write_bytes(good.read_bytes()[:3000])
    (spoilt.folder / "scenes" / "text.tif").write_text("no raster")
    made = run("encoder", "make", "-r", spoilt.recipe, "--json")
    assert made.code == 3, made.err
    assert {"cut", "text"} == set(made.data["left_out"])
    assert run("ingest", "-r", spoilt.recipe, "--json").data["report"]["quarantined"].keys() == {
        "cut",
        "text",
    }


def test_an_archive_of_another_encoder_is_refused(world, spoilt):
    made = run("encoder", "make", "-r", spoilt.recipe, "--set", "encoder.seed=1")
    assert made.code == 0, made.err
    bundle, archive = spoilt.folder / "bundle", world.folder / "archive"
    mixed = run("ingest", "-r", spoilt.recipe, "--encoder", bundle, "--archive", archive)
    assert mixed.code == 1
    assert mixed.err.count("\n") == 1


def test_no_catalog_no_band_and_an_unknown_tile_are_one_line(world, spoilt):
    (spoilt.folder / "empty").mkdir()
    empty = run("ingest", "-r", spoilt.recipe, "--scenes", spoilt.folder / "empty")
    assert (empty.code, empty.err.count("\n")) == (1, 1)
    assert "holds no scenes" in empty.err
    unknown = run("search", "-r", world.recipe, "--lonlat=0,0")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)
    assert "no tile at" in unknown.err


def test_a_full_disk_is_one_line_and_the_same_command_finishes_later(world, spoilt):
    """The archive lies on a small tmpfs that another file fills."""
    disk = spoilt.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        command = ["ingest", "-r", spoilt.recipe, "--archive", disk / "archive"]
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(bytes(4096))
                stream.flush()
        full = run(*command)
        assert full.code == 1
        assert full.err.count("\n") == 1, full.err
        assert "free some space" in full.err
        rows = disk / "rows.parquet"
        export = run("archive", "export", "-r", world.recipe, "--out", rows)
        assert export.code == 1
        assert export.err.count("\n") == 1, export.err
        assert "no space left on the disk" in export.err
        filler.unlink()
        assert run(*command, "--json").data["report"]["rows"] == 48
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------- processes of their own


def _start(*arguments: str, **variables: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_ingest_says_so_in_one_line_and_is_completed_later(spoilt):
    for number in range(12, 28):
        _write_scene(spoilt.folder / "scenes", f"site_202408{number}", number)
    process = _start("ingest", "-r", spoilt.recipe, "--set", "ingest.segment_rows=16")
    deadline = time.monotonic() + 120
    while not (spoilt.folder / "archive").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode != 0:  # the run may have won the race
        assert process.returncode == 130
        said = [line for line in err.splitlines() if not line.startswith("ingest:")]
        assert said == [
            "skysift: interrupted; what was committed is kept, and the same command continues"
        ]
    assert run("ingest", "-r", spoilt.recipe, "--json").code == 0
    info = run("archive", "info", "-r", spoilt.recipe, "--json").data
    assert (info["rows"], info["scenes embedded"]) == (19 * 16, 19)
    assert run("archive", "verify", "-r", spoilt.recipe).code == 0


@pytest.mark.parametrize(
    ("listens", "variables"),
    [
        ("HAProxy listens", {}),
        pytest.param(
            "the HTTP proxy listens", {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, marks=pytest.mark.slow
        ),
    ],
)
def test_serve_answers_over_http_at_one_port_and_stops_on_ctrl_c(world, listens, variables):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    index, token = str(world.folder / "index"), "t" * 32
    words = ("serve", "--index", index, "--host", "0.0.0.0", "--port", str(port))
    process = _start(*words, SKYSIFT_TOKEN=token, **variables)
    try:
        assert f"http://0.0.0.0:{port}" in process.stdout.readline()
        opened = {(at, number) for at, number in listening_ports(process.pid) if not at.is_loopback}
        assert opened == {(IPv4Address("0.0.0.0"), port)}
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/search",
            data=json.dumps(
                {"lonlat": [float(part) for part in PLACE.split(",")], "k": 3}
            ).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = json.load(answer)["hits"]
        told = _search(world, f"--lonlat={PLACE}", "-k", 3)
        assert [hit["row"] for hit in served] == [hit["row"] for hit in told]
        picture = f"http://127.0.0.1:{port}/v1/tiles/{served[0]['tile_key']}/thumbnail.png"
        request = urllib.request.Request(picture, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["Content-Type"] == "image/png"
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out == ""  # after the address, not even Ray's own notes
    *stages, last = err.strip().splitlines()
    assert last == "stopped"
    assert [line for line in stages if not re.fullmatch(r" *\d+\.\d s  \S.*", line)] == []
    assert {"starting Ray", "Ray runs", listens, "ready"} <= {
        line.split("  ")[-1] for line in stages
    }


def test_prints_of_libraries_do_not_reach_stdout(monkeypatch):
    def noisy() -> dict[str, str]:
        sys.stdout.write("(raylet) WARNING: 8 worker processes have been started\n")
        return {"demo": "a world"}

    monkeypatch.setattr("workflows.recipe.load.packaged_recipes", noisy)
    listed = run("recipe", "list", "--json")
    assert "demo" in listed.out
    assert listed.data
    assert "(raylet)" in listed.err
