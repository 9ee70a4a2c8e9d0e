"""`skysift archive import`: from published embeddings to hits, as a person walks the way."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from fastapi.testclient import TestClient

from storage.archive.reader import Archive
from storage.errors import ConfigError
from tests.support.command_line import run
from tests.support.embeddings import clay_v0, make_chips
from tests.support.paths import REAL_DATA
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.settings import BackendConfig

CLAY = REAL_DATA / "embeddings" / "clay_03WVN_20220610_20220610_v001.gpq"
EARTH_INDEX = REAL_DATA / "embeddings" / "earth_index_21MNT.parquet"


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    return clay_v0(tmp_path / "clay", make_chips(40, 768))


@pytest.fixture(params=["synthetic", "real"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table of Clay v0: written by the test, or the first rows of the real product."""
    if request.param == "synthetic":
        return request.getfixturevalue("synthetic")
    if not CLAY.exists():
        pytest.skip("the real rows of Clay are not here")
    place = tmp_path / "clay" / CLAY.name
    place.parent.mkdir()
    pq.write_table(pq.read_table(CLAY).slice(0, 120), place)
    return place


def test_a_table_becomes_archive_index_and_hits(source: Path, tmp_path: Path):
    table = pq.read_table(source)
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    planned = run("archive", "import", source, "--archive", archive, "--dry-run", "--json").data
    assert (planned["layout"], planned["rows_at_most"]) == ("clay-v0", len(table))
    assert planned["columns"] == {
        "vector": "embeddings",
        "geometry": "geometry",
        "date": "date",
    }
    assert not Path(archive).exists()
    done = run("archive", "import", source, "--archive", archive, "--json")
    assert (done.code, done.data["report"]["rows"]) == (0, len(table))
    again = run("archive", "import", source, "--archive", archive, "--json").data["report"]
    assert (again["rows"], again["done_before"]) == (0, 1)
    assert run("archive", "verify", "--archive", archive).code == 0
    audited = run("archive", "audit", "--archive", archive, "--scenes", source, "--json")
    assert (audited.code, audited.data["complete"]) == (0, True)
    assert run("archive", "info", "--archive", archive, "--json").data["model"] == "Clay v0"
    assert run("index", "build", "--archive", archive, "--index", index).code == 0

    asked = len(table) // 2
    polygon = shapely.from_wkb(table["geometry"][asked].as_py())
    lon, lat = polygon.centroid.x, polygon.centroid.y
    found = run("search", "--index", index, f"--lonlat={lon},{lat}", "-k", "5", "--json").data
    vectors = np.stack(table["embeddings"].to_numpy()).astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    scores = np.delete(unit @ unit[asked], asked)
    hits = found["hits"]
    np.testing.assert_allclose(
        [hit["score"] for hit in hits], np.sort(scores)[-5:][::-1], atol=2e-3
    )
    west, south, east, north = polygon.bounds
    assert found["query"].startswith(f"{lon}, {lat}: tile epsg32")
    assert all(hit["bbox"] != [west, south, east, north] for hit in hits)


def test_a_picture_is_refused_in_one_line_and_the_map_says_why_it_has_none(
    synthetic: Path, tmp_path: Path, ray_session: None
):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    run("archive", "import", synthetic, "--archive", archive)
    run("index", "build", "--archive", archive, "--index", index)
    refused = run("search", "--index", index, "--image", synthetic)
    assert refused.code == 2
    assert "imported embeddings of Clay v0, and there is no encoder" in refused.err
    assert refused.err.count("\n") == 1
    client = TestClient(
        create_app(IndexBackend(BackendConfig(index_uri=index))), base_url="http://127.0.0.1"
    )
    about = client.get("/v1/index").json()
    assert not about["pictures"]
    assert "come without pixels" in about["no_pictures_because"]
    lon, lat = make_chips(40, 768).centres[7]
    answer = client.post("/v1/search", json={"lonlat": [lon, lat], "k": 3}).json()
    assert len(answer["hits"]) == 3
    with pytest.raises(ConfigError, match="ask by place, tile, vector or marks"):
        _ = Archive.open(archive).encoder


def test_bad_rows_end_with_exit_code_3_and_are_named(tmp_path: Path):
    chips = make_chips(6, 768)
    chips.vectors[2] = 0
    path = clay_v0(tmp_path, chips)
    archive = str(tmp_path / "archive")
    done = run("archive", "import", path, "--archive", archive)
    assert done.code == 3
    assert re.search(r"^  vector of zeros +1$", done.out, re.MULTILINE)
    (scene,) = run("archive", "info", "--archive", archive, "--scenes", "--json").data["scenes"]
    assert scene["reason"] == "1 of 6 rows left out: vector of zeros (rows 2)"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--columns", "vektor=embeddings"], "is not NAME=COLUMN"),
        (["--layout", "clay"], "'clay' is not one of 'clay-v0'"),
        (["--layout", "tessera"], "layout 'tessera' is not one of a table"),
        (["--columns", "vector=date"], "not lists of numbers"),
        (["--date", "soon", "--columns", "geometry=geometry"], "names the model of its vectors"),
    ],
)
def test_wrong_options_end_in_one_line(
    arguments: list[str], text: str, synthetic: Path, tmp_path: Path
):
    done = run("archive", "import", synthetic, "--archive", tmp_path / "archive", *arguments)
    assert done.code == 2
    assert text in done.err
    assert done.err.count("\n") == 1


def test_the_export_of_an_archive_can_be_imported_and_described(tmp_path: Path):
    source = clay_v0(tmp_path / "clay", make_chips(20, 768))  # within one UTM zone
    archive, rows = str(tmp_path / "archive"), str(tmp_path / "rows.parquet")
    run("archive", "import", source, "--archive", archive)
    run("archive", "export", "--archive", archive, "--out", rows)
    columns = "vector=embedding,geometry=geometry,date=datetime"
    again = ["--columns", columns, "--model", "own", "--no-centre", "--archive", tmp_path / "again"]
    assert run("archive", "import", rows, *again, "--json").data["report"]["rows"] == 20
    made = Archive.open(str(tmp_path / "again")).read_all(["embedding", "tile_key"])
    before = Archive.open(archive).read_all(["embedding", "tile_key"])
    places = [np.argsort(rows["tile_key"]) for rows in (made, before)]  # exports follow a curve
    assert (made["tile_key"][places[0]] == before["tile_key"][places[1]]).all()
    vectors = made["embedding"][places[0]], before["embedding"][places[1]]
    np.testing.assert_allclose(*vectors, atol=1e-3)
    item = tmp_path / "item.json"
    run("archive", "export", "--archive", archive, "--format", "stac", "--out", item)
    (link,) = json.loads(item.read_text())["links"]
    assert (link["rel"], link["title"]) == ("emb:model", "Clay v0")


def test_the_real_file_without_rows_names_its_model_and_is_empty(tmp_path: Path):
    if not EARTH_INDEX.exists():
        pytest.skip("the real file of Earth Index is not here")
    archive = str(tmp_path / "archive")
    done = run("archive", "import", EARTH_INDEX, "--archive", archive, "--json")
    assert (done.code, done.data["report"]["empty"]) == (0, 1)
    assert run("archive", "info", "--archive", archive, "--json").data["model"] == "SoftCon 2.0.0"
