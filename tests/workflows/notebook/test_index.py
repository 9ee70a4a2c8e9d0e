"""The front door on the demo: it opens what is there, draws hits, and finds a running cluster."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import skysift
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.errors import ConfigError, NotFoundError
from tests.support.command_line import run
from workflows.demo.run import DemoResult
from workflows.notebook.index import Index
from workflows.notebook.recipe import Recipe

PLACE = (18.0963, 48.7107)


@pytest.fixture(scope="module")
def index(demo: DemoResult) -> Index:
    return Index.open(str(demo.folder / "index"), cluster=False)


def test_a_folder_is_opened_as_what_it_holds(demo):
    assert isinstance(skysift.open(demo.folder / "index"), Index)
    assert isinstance(skysift.open(str(demo.folder / "archive")), Archive)
    for folder in (demo.folder / "indx", demo.folder):  # the second holds an index's folder
        with pytest.raises(NotFoundError, match="neither an index nor an archive") as caught:
            skysift.open(str(folder))
        assert "`skysift index build`" in str(caught.value)


def test_python_and_the_command_line_answer_alike(demo, index):
    hits = index.like(lonlat=PLACE).where(since="2024-10-01").top(5)
    options = ["--lonlat", "{},{}".format(*PLACE), "--since", "2024-10-01", "-k", "5", "--json"]
    said = run("search", "--index", demo.folder / "index", *options).data
    assert [hit["tile_key"] for hit in hits] == [hit["tile_key"] for hit in said["hits"]]
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in said["hits"]])
    assert hits.queries[0].label == said["query"]


def test_hits_have_a_picture_each_and_the_query_comes_first(index):
    hits = index.like(lonlat=PLACE).top(5)
    html = hits._repr_html_()
    assert html.count("<img src='data:image/jpeg;base64,") == 6
    query, first = html.index(">query<"), html.index(">1<")
    assert query < html.index(f">{hits.queries[0].tile}<") < first
    there = pickle.loads(pickle.dumps(hits))
    assert (list(there), there.pictures) == (list(hits), None)
    sheet = hits.sheet(columns=5, side_px=64)
    assert sheet.size[0] == 5 * (64 + 12) + 12


def test_pictures_that_cannot_be_drawn_are_named_below_the_table(demo, monkeypatch):
    index = Index.open(str(demo.folder / "index"), cluster=False)

    def gone(scene_id):
        raise NotFoundError(f"the archive does not know the files of {scene_id}")

    monkeypatch.setattr(index.archive, "scene", gone)
    html = index.like(lonlat=PLACE).top(3)._repr_html_()
    assert "4 without a picture: the archive does not know" in html


def test_pixels_are_embedded_by_the_archives_encoder(index, demo):
    dataset = skysift.LabelledDataset.open(str(demo.folder / "dataset"))
    for number in (0, len(dataset) // 2):
        (hit,) = index.like(image=dataset.images[number]).top(1)
        row = dataset.rows.iloc[number]
        assert (hit["tile_key"], hit["scene"]) == (row["tile_key"], row["scene"])
        assert hit["score"] > 0.999
        assert index.like(positive=[dataset.images[number]]).top(1).rows[0, 0] == hit["row"]
    with pytest.raises(ConfigError, match="has 3 bands, the encoder needs 4"):
        index.like(image=dataset.images[0][:3])


def test_search_actors_are_used_where_they_run_and_only_there(demo, index, ray_session):
    uri = str(demo.folder / "index")
    Searcher.connect(uri).stop()
    assert Index.open(uri).facts()["searched by"] == "this process"
    started = Index.open(uri, cluster=True)
    try:
        found = skysift.open(uri)
        assert found.facts()["searched by"] == "search actors of the cluster"
        there, here = (i.like(lonlat=PLACE).top(20) for i in (found, index))
        assert there.to_arrow().equals(here.to_arrow())
        assert Index.open(uri, cluster=False).facts()["searched by"] == "this process"
    finally:
        started.searcher.stop()


def test_a_recipe_carries_out_its_stages(demo: DemoResult, tmp_path: Path):
    changes = {
        "archive.uri": str(tmp_path / "archive"),
        "index.uri": str(tmp_path / "index"),
        "index.shards": 1,
        "catalog.query.until": "2024-07-01",
    }
    recipe = Recipe.load(str(demo.recipe), changes)
    plan, cost = recipe.plan_ingest()
    assert f"scenes to embed     {len(plan.todo)}" in repr(plan)
    report = recipe.ingest()
    assert report.rows == len(recipe.open_archive()) <= cost.tiles
    assert recipe.build_index().rows == report.rows
    assert len(recipe.open_index().like(lonlat=PLACE).top(3)) == 3
    assert len(recipe.open_dataset()) > 0
    assert recipe.ingest().done_before == len(plan.todo) + len(plan.rejected)
    assert str(tmp_path / "archive") in repr(recipe)


def test_a_recipe_says_what_is_missing_and_which_key_does_not_exist():
    with pytest.raises(ConfigError, match=r"archive\.uri is not given: .*Recipe\.load\(") as caught:
        Recipe.load().open_archive()
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="archiv"):
        Recipe.load(None, {"archiv.uri": "x"})


def test_objects_name_their_facts(demo, index):
    archive = index.archive
    shown = {
        "Archive": archive,
        "Encoder": skysift.Encoder.load(archive.encoder),
        "Index": index,
        "Searcher": index.searcher,
        "LabelledDataset": skysift.LabelledDataset.open(str(demo.folder / "dataset")),
        "SearchPlan": index.explain(5),
        "IndexPlan": Recipe.load(str(demo.recipe)).plan_index(),
    }
    for name, one in shown.items():
        lines = repr(one).splitlines()
        assert lines[0] == f"<{name}>"
        assert len(lines) == 1 + len(one.facts())
        assert one._repr_html_().count("<tr>") == len(one.facts())
    assert f"rows      {len(archive):,}" in repr(archive)
    assert archive.spec.encoder_fingerprint[:16] in repr(archive)


def test_importing_the_front_door_is_fast():
    code = "import time; t = time.perf_counter(); import skysift; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.2
