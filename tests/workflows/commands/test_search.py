"""`skysift search` with many examples: combined, subtracted, one by one, by score."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest

from pipeline.indexing.driver import build_index
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run
from tests.support.shard_world import Rows, passes

DIMENSION = 16


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Rows]:
    """An index of 300 rows in two scenes."""
    folder = tmp_path_factory.mktemp("world")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 150, "B": 150})
    build_index(archive, index)
    return index, live_rows(archive)


def _search(index: str, *arguments: object) -> dict[str, Any]:
    outcome = run("search", "--index", index, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    answer: dict[str, Any] = json.loads(outcome.out)
    return answer


def _direction(rows: Rows, positive: list[int], negative: list[int]) -> np.ndarray[Any, Any]:
    vectors = rows["embedding"].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[positive].mean(0) - (0.5 * vectors[negative].mean(0) if negative else 0)


def test_examples_for_and_against_make_one_query_without_themselves(world: tuple[str, Rows]):
    index, rows = world
    named = [("--tile", 3), ("--tile", 40), ("--not-tile", 90)]
    arguments = [part for flag, n in named for part in (flag, rows["tile_key"][n])]
    answer = _search(index, *arguments, "--scene", "A", "-k", 12)
    wanted = _direction(rows, [3, 40], [90])
    hits = Searcher.local(index).search(wanted.astype(np.float32), 30).rows[0].tolist()
    own = rows["row"][[3, 40, 90]].tolist()
    assert [hit["row"] for hit in answer["hits"]] == [row for row in hits if row not in own][:12]
    assert answer["query"].count(" + ") == answer["query"].count(" - ") == 1
    kept = _search(index, *arguments, "--scene", "A", "-k", 12, "--include-self")
    assert [hit["row"] for hit in kept["hits"]] == hits[:12]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--like-scene", "B", "--like-bbox", 0, -60, 90, 60],
         Filter(scenes=("B",), bbox=(0, -60, 90, 60))),
        (["--like-scene", "A", "--like-polygon", "POLYGON((0 0,90 0,90 60,0 60,0 0))"],
         Filter(scenes=("A",), bbox=(0, 0, 90, 60))),
        (["--like-label", "water", "--like-label", "crops", "--like-until", "2023-06-30"],
         Filter(labels=("water", "crops"), until="2023-06-30")),
    ],
)  # fmt: skip
def test_a_region_or_a_label_set_asks_with_its_tiles(
    world: tuple[str, Rows], arguments: list[object], where: Filter
):
    index, rows = world
    members = [n for n in range(300) if passes(where, rows, n)]
    assert len(members) > 3
    answer = _search(index, *arguments, "-k", 9, "--include-self")
    hits = Searcher.local(index).search(_direction(rows, members, []).astype("f4"), 9)
    assert [hit["row"] for hit in answer["hits"]] == hits.rows[0].tolist()


def test_each_example_asks_alone_and_all_hits_go_to_one_file(
    world: tuple[str, Rows], tmp_path: Path
):
    index, rows = world
    out = tmp_path / "hits.parquet"
    answer = _search(index, "--like-scene", "A", "--each", "-k", 7, "--out", out)
    assert (answer["queries"], answer["hits"]) == (150, 150 * 7)
    frame = geopandas.read_parquet(out)
    assert frame.crs.to_epsg() == 4326 or frame.crs.to_string() == "OGC:CRS84"
    assert frame.geometry.is_valid.all()
    searcher = Searcher.local(index)
    in_scene = rows["tile_key"][:150].tolist()
    alone = [key for key in in_scene if in_scene.count(key) == 1]  # the world repeats some keys
    by_label = dict(iter(frame.groupby("asked")))
    for key in alone:
        n, hits = in_scene.index(key), by_label[f"tile {key} of A"]
        found = searcher.search(rows["embedding"][n].astype(np.float32), 8).rows[0].tolist()
        assert hits["row"].tolist() == [row for row in found if row != rows["row"][n]][:7]
        assert hits["rank"].tolist() == list(range(1, 8))
    assert len(alone) > 100
    assert frame["query"].tolist() == np.arange(150).repeat(7).tolist()
    by_row = {row: n for n, row in enumerate(rows["row"].tolist())}
    west, south, east, north = rows["bbox"][by_row[int(frame["row"].iloc[0])]]
    if west < east:
        np.testing.assert_allclose(frame.geometry.iloc[0].bounds, (west, south, east, north))
    assert not list(tmp_path.glob(".writing-*"))


def test_all_hits_above_a_score_come_and_a_cut_is_told(world: tuple[str, Rows], tmp_path: Path):
    index, rows = world
    vector = tmp_path / "q.npy"
    np.save(vector, rows["embedding"][:5].astype(np.float32))
    scores = Searcher.local(index).search(rows["embedding"][:5].astype("f4").mean(0), 300).scores
    level = float(scores[0, 30])
    shared = ["--vector", vector, "--min-score", level]
    mean = _search(index, *shared)
    whole = (mean["truncated"], min(hit["score"] for hit in mean["hits"]) >= level)
    assert whole == (False, True)
    cut = run("search", "--index", index, *shared, "--limit", 3)
    assert "1 queries have more hits than 3: raise --limit" in cut.out
    each = _search(index, *shared, "--each", "--limit", 4, "--out", tmp_path / "h.parquet")
    assert each["queries"] == 5
    assert each["hits"] <= 20


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--tile", "g/1/1", "--each"], "--each writes GeoParquet"),
        (["--tile", "g/1/1", "--each", "--out", "x.csv"], "--each writes GeoParquet"),
        (["--tile", "g/1/1", "--not-tile", "g/2/2", "--each", "--out", "x.parquet"], "one by one"),
        (["--not-tile", "g/1/1"], "give an example"),
        (["--like-scene", "nowhere"], "no tile of the archive matches"),
        (["--like-label", "seas"], "no class is named 'seas'"),
        (["--like-scene", "A", "--min-score", "7"], "score is 7.0"),
    ],
)
def test_unusable_examples_are_named(world: tuple[str, Rows], arguments: list[object], word: str):
    outcome = run("search", "--index", world[0], *arguments)
    assert outcome.code in (1, 2)
    assert word in outcome.err


def test_explain_prints_the_plan_instead_of_hits(world: tuple[str, Rows]):
    index, rows = world
    where = ["--max-cloud-fraction", 0.5]
    selected = int((rows["cloud_fraction"] <= np.float32(0.5)).sum())
    arguments = ["--tile", rows["tile_key"][3], "-k", 5, *where, "--explain"]
    shown = run("search", "--index", index, *arguments)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[:2] == [
        "5 hits of each query",
        "1 of 1 shards can hold a match, 300 of 300 rows",
    ]
    assert f"{selected} of 300 rows selected: " in shown.out.splitlines()[-1]
    plan = _search(index, *arguments)
    assert (plan["k"], plan["shards"], plan["where"]["max_cloud_fraction"]) == (
        5,
        ["shard-00000"],
        0.5,
    )
    assert [work["selected"] for work in plan["passes"]] == [selected]


def test_a_search_is_kept_run_again_and_drawn(world: tuple[str, Rows], tmp_path: Path):
    """A kept search leaves out its example, as the search did that was kept."""
    index, rows = world
    kept, drawn = tmp_path / "kept.json", tmp_path / "map.pmtiles"
    asked = ("--tile", rows["tile_key"][3], "--scene", "A", "--label", "water", "-k", 9)
    first = _search(index, *asked, "--save", kept, "--score-map", drawn)
    assert drawn.read_bytes().startswith(b"PMTiles")
    answer = _search(index, "--saved", kept, "--out", tmp_path / "hits.geojson")
    assert len(first["hits"]) == 9
    assert answer["hits"] == first["hits"]
    document = json.loads(kept.read_text())
    for name, value, words in (
        ("encoder_fingerprint", "0" * 64, "of encoder 0000"),
        ("k", 0, "k is below 1"),
        ("vector", [], "zero"),
        ("filter", {"colour": "red"}, "colour"),
        ("version", 4, "of format 4"),
        ("stars", [], "stars"),
    ):
        kept.write_text(json.dumps({**document, name: value}))
        outcome = run("search", "--index", index, "--saved", kept)
        assert outcome.code in (1, 2)
        assert words in outcome.err
    both = run("search", "--index", index, "--saved", kept, "--tile", rows["tile_key"][3])
    assert both.code == 2
