"""`skysift search --marks`, `--suggest` and `skysift detect`: from marks to detections and back."""

import csv
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.detections import detect, suggest
from pipeline.search.query import QueryResolver, learn
from pipeline.search.question import Question
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.command_line import run
from tests.support.shard_world import Rows

DIMENSION, ROWS = 16, 800
Array = np.ndarray[Any, Any]


def _vectors(seed: int) -> tuple[Array, Array]:
    """Rows of twelve clusters, the first of which is right."""
    centres = np.random.default_rng(0).normal(size=(12, DIMENSION))
    rng = np.random.default_rng(seed)
    owner = rng.integers(12, size=ROWS)
    return centres[owner] + 0.7 * rng.normal(size=(ROWS, DIMENSION)), owner == 0


class World:
    def __init__(self, folder: Path, seed: int, shards: int, scenes: str = "AB") -> None:
        self.archive, self.index = str(folder / "archive"), str(folder / f"index-{shards}")
        if not Path(self.archive).exists():
            create_archive(self.archive, DIMENSION)
            vectors, _ = _vectors(seed)
            tile = np.stack(np.divmod(np.arange(ROWS, dtype=np.int32), 40), axis=1)
            add_scenes(self.archive, dict.fromkeys(scenes, ROWS // 2), embedding=vectors, tile=tile)
        build_index(self.archive, self.index, IndexSpec(kind="ivf_flat", shards=shards, nlist=4))
        self.rows: Rows = live_rows(self.archive)
        self.right = _vectors(seed)[1]

    def truth(self) -> dict[int, bool]:
        return dict(zip(self.rows["row"].tolist(), self.right.tolist(), strict=True))

    def marks(self, file: Path, count: int) -> Path:
        """Write a file of marks as a person draws it: a tile key, a scene and a mark."""
        rng = np.random.default_rng(1)
        chosen = [rng.choice(np.flatnonzero(self.right == mark), count, False) for mark in (1, 0)]
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [0.0, 0.0]},
                "properties": {
                    "tile_key": self.rows["tile_key"][n],
                    "scene": self.rows["scene"][n],
                    "mark": mark,
                },
            }
            for mark, numbers in zip(("right", "wrong"), chosen, strict=True)
            for n in numbers.tolist()
        ]
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return file


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("first"), 1, 1)


def _answer(*arguments: object) -> dict[str, Any]:
    outcome = run(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    answer: dict[str, Any] = json.loads(outcome.out)
    return answer


def test_marks_suggestions_detections_review_export_and_another_archive(
    world: World, tmp_path: Path
):
    """The whole way of a person who marks until the detections can be trusted."""
    marks, truth = world.marks(tmp_path / "marks.geojson", 6), world.truth()
    index = ("--index", world.index)
    asked = _answer("search", *index, "--marks", marks, "-k", 20)
    own = {f["properties"]["tile_key"] for f in json.loads(marks.read_text())["features"]}
    assert not own & {hit["tile_key"] for hit in asked["hits"] if hit["score"] > 0.999}
    assert sum(truth[hit["row"]] for hit in asked["hits"]) >= 15
    assert "learned from marks" in asked["note"]
    assert asked["hits"][0]["closer_than"] is None

    suggested = tmp_path / "next.geojson"
    more = _answer("search", *index, "--marks", marks, "--suggest", 8, "--out", suggested)
    assert len(more["hits"]) == 8
    document = json.loads(marks.read_text())
    for feature in json.loads(suggested.read_text())["features"]:  # a person marks them
        values = feature["properties"]
        values["mark"] = "right" if truth[values["row"]] else "wrong"
        document["features"].append(feature)
    marks.write_text(json.dumps(document))

    saved, out, kept = (tmp_path / name for name in ("solar.json", "found.parquet", "marks.csv"))
    review, again = tmp_path / "review.geojson", tmp_path / "marks-again.geojson"
    found = _answer(
        "detect", *index, "--marks", marks, "--threshold", 0.4, "--review", 5,
        "--save", saved, "--out", out, "--marks-out", again, "--review-out", review,
    )  # fmt: skip
    frame = geopandas.read_parquet(out)
    assert frame["row"].tolist() == [hit["row"] for hit in found["detections"]]
    probable = frame[frame["mark"].isna()]
    assert (probable["probability"] >= 0.4).all()
    assert frame["mark"].dropna().unique().tolist() == ["right"]
    precision = np.mean([truth[row] for row in probable["row"]])
    assert abs(found["expected"]["precision"] - precision) < 0.25
    assert found["check"] is None
    assert found["marks"]["right"] >= 6
    queue = json.loads(review.read_text())["features"]
    distances = [abs(f["properties"]["probability"] - 0.4) for f in queue]
    assert len(queue) == 5
    assert distances == sorted(distances)
    assert not {f["properties"]["mark"] for f in queue} - {None}

    # The exported marks are the marks again: same query, same detections.
    assert len(json.loads(again.read_text())["features"]) == 20
    repeated = _answer("detect", *index, "--marks", again, "--threshold", 0.4, "--review", 5)
    assert repeated["detections"] == found["detections"]
    assert repeated["expected"] == found["expected"]
    assert _answer("detect", *index, "--saved", saved)["detections"] == found["detections"]
    searched = _answer("search", *index, "--saved", saved)
    assert [hit["row"] for hit in searched["hits"]] == [
        hit["row"] for hit in found["detections"] if hit["mark"] is None
    ]
    csv = run("detect", *index, "--saved", saved, "--marks-out", kept)
    assert csv.code == 0
    assert "expected from the marks; an accuracy check measures them" in csv.out
    assert len(kept.read_text().splitlines()) == 21

    _checked(world, index, saved, tmp_path)

    (tmp_path / "second").mkdir()
    other = World(tmp_path / "second", 2, 1, "CD")
    elsewhere = _answer("detect", "--index", other.index, "--saved", saved)
    assert np.mean([other.truth()[hit["row"]] for hit in elsewhere["detections"]]) > 0.6
    assert elsewhere["marks"] == {"right": 0, "wrong": 0}


def _checked(world: World, index: tuple[str, str], saved: Path, folder: Path) -> None:
    """Draw tiles, mark them as a person does in a table, read them back and keep them."""
    truth, drawn, kept = world.truth(), folder / "check.csv", folder / "checked.json"
    _answer("detect", *index, "--saved", saved, "--check", 60, "--check-out", drawn)
    with drawn.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mark"] for row in rows] == [""] * len(rows)
    for row in rows:
        row["mark"] = "Right" if truth[int(row["row"])] else "wrong"
    with drawn.open("w") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)

    alone = _answer("detect", "--checked", drawn)
    assert alone["marked"] == alone["tiles"] == len(rows)
    of_all = sum({row["stratum"]: int(row["stratum_rows"]) for row in rows}.values())
    assert 0 < alone["below"] <= len(truth) - of_all  # the marks are neither, if they are probable
    assert alone["below"] == int(rows[0]["rows_below"])
    with_index = _answer("detect", *index, "--saved", saved, "--checked", drawn, "--save", kept)
    assert with_index["check"] == alone
    unmarked = [hit for hit in with_index["detections"] if hit["mark"] is None]
    precision = np.mean([truth[hit["row"]] for hit in unmarked])
    low, high = alone["accuracy"][0]["precision_interval"]
    assert low <= precision <= high
    assert alone["accuracy"][0]["rows"] == len(unmarked)
    again = folder / "again.geojson"
    assert _answer("detect", *index, "--saved", kept, "--check-out", again)["check"] == alone
    tiles = [feature["properties"] for feature in json.loads(again.read_text())["features"]]
    assert [one["tile_key"] for one in tiles] == [row["tile_key"] for row in rows]
    assert [one["mark"] for one in tiles] == [row["mark"].lower() for row in rows]
    more = folder / "more.parquet"
    larger = ("--checked", again, "--check", 90, "--check-out", more)
    grown = _answer("detect", *index, "--saved", saved, *larger)["check"]
    assert (grown["marked"], grown["tiles"]) == (len(rows), len(geopandas.read_parquet(more)))
    assert grown["tiles"] > len(rows)
    other = run("detect", *index, "--saved", saved, "--threshold", 0.7, "--checked", again)
    assert other.code == 2
    assert "a check of other detections" in other.err
    printed = run("detect", *index, "--saved", kept)
    assert "drawn at random; in brackets the interval of 90 %" in printed.out
    assert f"and leave out {alone['below']} tiles below" in " ".join(printed.out.split())


def test_shards_decide_neither_about_the_query_nor_about_the_answer(world: World, tmp_path: Path):
    parted = World(Path(world.archive).parent, 1, 5)
    marks = world.marks(tmp_path / "marks.geojson", 6)
    answers = []
    for index in (world.index, parted.index):
        searcher = Searcher.local(index)
        keys = [f["properties"] for f in json.loads(marks.read_text())["features"]]
        resolver = QueryResolver(searcher)
        right, wrong = (
            resolver.marked([(k["tile_key"], k["scene"]) for k in keys if k["mark"] == mark])
            for mark in ("right", "wrong")
        )
        query = learn(searcher, right, wrong)
        hits = searcher.answer(query, 50, nprobe=10**6)
        found = detect(searcher, query, where=Filter(scenes=("A",)))
        answers.append(
            (query.vector.tolist(), hits.rows.tolist(), found.to_arrow().to_pylist(),
             suggest(searcher, query, 7).rows.tolist(), found.expected)
        )  # fmt: skip
        named = {
            mark: [{"tile": k["tile_key"], "scene": k["scene"]} for k in keys if k["mark"] == mark]
            for mark in ("right", "wrong")
        }
        question = Question(searcher=searcher, resolver=resolver).where(scenes=["A"])
        question = question.like(positive=named["right"], negative=named["wrong"])
        assert question.detect().to_arrow().equals(found.to_arrow())
        in_scene = suggest(searcher, query, 7, Filter(scenes=("A",)))
        assert question.suggest(7).rows.tolist() == in_scene.rows.tolist()
        assert {hit["scene"] for hit in in_scene} == {"A"}
        turned = learn(searcher, right[::-1], wrong[::-1])
        np.testing.assert_array_equal(turned.vector, query.vector)
        assert {hit["scene"] for hit in found.to_arrow().to_pylist()} == {"A"}
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give either --marks or --saved"),
        (("--marks", "{few}", "--check", 60), 2, "give that too"),
        (("--checked", "{few}"), 2, "is no accuracy check: it has no column 'stratum'"),
        (("--marks", "{few}"), 2, "at least 10, 3 of each"),
        (("--marks", "{none}"), 2, "no feature has a mark"),
        (("--marks", "{odd}"), 2, "a mark is 'maybe'"),
        (("--marks", "{text}"), 2, "neither GeoJSON nor GeoParquet"),
        (("--marks", "{few}", "--threshold", 1), 2, "threshold"),
        (("--marks", "{few}", "--out", "x.tif"), 2, ".geojson, .parquet or .csv"),
    ],
)
def test_what_cannot_be_detected_is_said_in_one_line(
    world: World, tmp_path: Path, arguments: tuple[object, ...], code: int, words: str
):
    few = world.marks(tmp_path / "few.geojson", 2)
    text = few.read_text()
    files = {
        "few": text,
        "none": text.replace('"mark"', '"remark"'),
        "odd": text.replace('"right"', '"maybe"'),
        "text": "marks",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.geojson").write_text(content)
    given = [str(a).format(**{n: tmp_path / f"{n}.geojson" for n in files}) for a in arguments]
    outcome = run("detect", "--index", world.index, *given)
    assert outcome.code == code
    assert words in outcome.err
