import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import ray
import yaml
from fastapi.testclient import TestClient

from pipeline.analysis.landcover import TileLabels
from pipeline.search.query import QueryResolver, blended
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.errors import ConfigError, NotFoundError
from tests.support.demo_world import SMALL, Stopped
from workflows.demo.evaluate import METRICS, RANKINGS
from workflows.demo.run import run_demo
from workflows.report.rendering import TileRenderer
from workflows.report.tile_images import archive_footprints, ledger_summary, tile_cards
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.settings import BackendConfig


def test_a_stopped_demo_goes_on_where_it_was(demo):
    skipped = [stage.name for stage in demo.stages if stage.skipped]
    assert skipped == ["world", "statistics", "labels", "dataset", "training", "untrained"]
    archive = Archive.open(str(demo.folder / "archive"))
    tiles = [key for s in archive.segments for key in _pairs(archive, s.ordinal)]
    assert len(tiles) == len(set(tiles)) == len(archive) > 100
    assert sorted(entry.state for entry in archive.scenes()) == ["embedded"] * 4 + ["empty"]


def _pairs(archive, ordinal):
    part = archive.read_segment(ordinal, ["scene", "tile_key"])
    return list(zip(part["scene"], part["tile_key"], strict=True))


def test_a_second_run_does_nothing_again(demo):
    before = demo.report.stat().st_mtime_ns
    again = run_demo(demo.folder, spec=SMALL)
    assert all(stage.skipped for stage in again.stages)
    assert again.scores == demo.scores
    assert again.commands == demo.commands
    assert again.report.stat().st_mtime_ns == before


def test_no_ground_is_in_two_splits(demo):
    rows = LabelledDataset.open(str(demo.folder / "dataset")).rows
    assert rows.groupby("tile_key")["split"].nunique().max() == 1
    assert rows.groupby("tile_key")["scene"].nunique().max() == 2
    assert {"train", "test"} <= set(rows["split"])


def test_scores_cover_the_dial_and_the_rankings_to_compare_with(demo):
    assert tuple(demo.scores) == RANKINGS
    for metrics in demo.scores.values():
        assert all(np.isfinite(metrics[name]) for name in METRICS)
    places = [demo.scores[name]["same place R@10"] for name in ("labels only", "appearance only")]
    assert places[0] != places[1]


def test_queries_are_held_out_and_never_answer_with_their_own_ground(demo):
    record = json.loads((demo.folder / "searches.json").read_text())
    archive = Archive.open(str(demo.folder / "archive"))
    dataset = LabelledDataset.open(str(demo.folder / "dataset"))
    held_out = set(dataset.rows["tile_key"].iloc[dataset.indices("test")])
    places = archive.read(record["queries"], ["tile_key"])["tile_key"]
    assert set(places) <= held_out
    assert len(record["queries"]) >= 3
    for place, hits, scores in zip(places, record["hits"], record["scores"], strict=True):
        assert len(hits) >= 30
        assert place not in archive.read(hits, ["tile_key"])["tile_key"]
        assert scores == sorted(scores, reverse=True)


def test_the_report_shows_the_run(demo):
    html = demo.report.read_text()
    archive = Archive.open(str(demo.folder / "archive"))
    assert archive.spec.encoder_fingerprint in html
    assert html.count("data:image/jpeg") >= 3 * 7
    assert "4 embedded" in html
    assert "33a-20240807" in html  # the overcast scene and why it gave nothing
    assert all(command.split(" -r ")[0] in html for command in demo.commands)


def test_the_recipe_names_what_the_demo_made(demo):
    recipe = yaml.safe_load(demo.recipe.read_text())
    labels = TileLabels.from_parquet(recipe["ingest"]["labels_uri"])
    assert len(Archive.open(recipe["archive"]["uri"])) <= 4 * len(labels)


def test_tile_images_and_map_follow_the_archive(demo):
    archive = Archive.open(str(demo.folder / "archive"))
    with pytest.raises(NotFoundError, match="give the catalog that was ingested"):
        tile_cards(TileRenderer(archive, []), archive.live_rows(0)[:1])
    footprints = archive_footprints(archive)
    places = archive.read_segment(0, ["tile_key"])["tile_key"]
    assert len(footprints.corners) >= len(set(places))
    counts = [(footprints.class_index == i).sum() for i in range(len(archive.spec.classes))]
    assert sum(counts) == len(footprints.corners)
    assert ledger_summary(archive).tiles == len(archive)


def test_other_settings_redo_what_depends_on_them_also_in_a_moved_folder(demo, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(demo.folder, moved)
    again = run_demo(moved, spec=replace(SMALL, shards=1))
    redone = [stage.name for stage in again.stages if not stage.skipped]
    assert redone == ["index", "search", "report"]
    assert len(list(moved.glob("index/*/shard-*.faiss"))) == 1
    assert again.scores == demo.scores


def test_a_lost_output_is_made_again(demo, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(demo.folder, copy)
    run_demo(copy, spec=SMALL)
    before = (copy / "scores.json").read_bytes()
    (copy / "scores.json").unlink()
    again = run_demo(copy, spec=SMALL)
    assert [stage.name for stage in again.stages if not stage.skipped] == ["scores"]
    assert (copy / "scores.json").read_bytes() == before


def test_other_settings_after_a_stop_start_clean(tmp_path):
    folder = tmp_path / "demo"

    def stop(report):
        if report.stage == "statistics":
            raise Stopped

    for seed in (7, 8):
        with pytest.raises(Stopped):
            run_demo(folder, spec=replace(SMALL, scene_px=128, seed=seed), progress=stop)
        assert json.loads((folder / "world" / "world.json").read_text())["seed"] == seed
    record = json.loads((folder / "demo.json").read_text())
    assert (list(record["seconds"]), record["settings"]["seed"]) == (["world"], 8)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"settings": {}})])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(ConfigError, match=r"demo\.json is not a demo's record"):
        run_demo(tmp_path)


def test_the_library_a_ray_task_the_command_line_and_http_give_the_same_answer(demo):
    example = json.loads((demo.folder / "searches.json").read_text())["example"]
    index, tile, scene = str(demo.folder / "index"), example["tile_key"], example["scene"]
    searcher = Searcher.connect(index)
    query = blended(searcher, QueryResolver(searcher).tile(tile, scene))
    hits = searcher.answer(query, k=10)
    task = ray.remote(lambda: Searcher.connect(index).answer(query, k=10)).remote()
    in_task = ray.get(task)
    assert in_task.rows.tolist() == hits.rows.tolist()
    assert in_task.scores.tolist() == hits.scores.tolist()
    expected = [
        (hit["tile_key"], hit["scene"], pytest.approx(hit["score"]))
        for hit in hits.to_arrow().to_pylist()
    ]
    assert len(expected) == 10
    options = ["--tile", tile, "--scene", scene, "-k", "10", "--json"]
    command_line = subprocess.run(
        [sys.executable, "-m", "workflows.cli", "search", "-r", str(demo.recipe), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(command_line.stdout)["hits"]
    assert [(hit["tile_key"], hit["scene"], hit["score"]) for hit in printed] == expected
    app = create_app(IndexBackend(BackendConfig(index_uri=index)))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/search", json={"tile": tile, "scene": scene, "k": 10}).json()
    assert [(hit["tile_key"], hit["scene"], hit["score"]) for hit in answer["hits"]] == expected


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="give a new or an empty folder"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "keep me"
