"""Change as a query: against brute force, with known changes, and with nothing changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.search import change
from pipeline.search.change import ChangeSpec, find_changes
from pipeline.search.saved import SavedSearch
from storage.archive.reader import Archive
from storage.errors import ConfigError, EncoderMismatchError
from storage.formats import write_hits
from storage.index.filter import Filter
from storage.parts import DEFAULT_BLEND, Parts
from tests.support.archive_world import FINGERPRINT, create_archive
from tests.support.dated_world import add_scene
from tests.support.shard_world import GRID
from workflows.report.contact_sheet import tiles_of_hits

DIMENSION, COUNT = 128, 120
CHANGED = (5, 40, 77)


def _unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit


@pytest.fixture
def world(tmp_path: Path) -> tuple[str, np.ndarray[Any, Any]]:
    """One ground in four scenes: seasons shift all tiles, and three tiles change for good."""
    rng = np.random.default_rng(4)
    place = str(tmp_path / "archive")
    create_archive(place, DIMENSION)
    ground = rng.normal(size=(COUNT, DIMENSION))
    summer, autumn = 0.7 * rng.normal(size=(2, DIMENSION))

    def seen(ground: np.ndarray[Any, Any], season: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return ground + season + 0.15 * rng.normal(size=ground.shape)

    later = ground.copy()
    later[list(CHANGED)] = rng.normal(size=(len(CHANGED), DIMENSION))
    add_scene(place, "A", "2019-07-01", seen(ground, summer))
    cloud = np.where(np.arange(COUNT) < 10, 0.9, 0.0)
    add_scene(place, "B", "2019-08-01", rng.normal(size=ground.shape), cloud=0.5)
    add_scene(place, "C", "2024-10-01", seen(later, autumn), cloud=cloud)
    add_scene(place, "D", "2020-07-01", seen(ground, summer))
    return place, later


def test_the_places_that_changed_come_first_and_stand_out(world):
    found = find_changes(Archive.open(world[0]), {"before": "2019", "after": "2024", "k": 5})
    rows = found.table.to_pylist()
    assert {row["tile_key"] for row in rows[:3]} == {f"{GRID}/{n}/0" for n in CHANGED}
    assert (found.compared, found.unjudged) == (COUNT, 0)
    assert 3 <= found.beyond <= 4  # of 117 places that did not change, about one is called so
    assert rows[2]["score"] > 5 * rows[3]["score"]
    assert {(row["before_scene"], row["scene"]) for row in rows} == {("A", "C")}
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert "3" in repr(found)
    assert len(found) == len(list(found)) == len(found.to_pandas()) == 5


def test_ground_that_did_not_change_has_no_change_beyond_the_usual(world):
    found = find_changes(Archive.open(world[0]), {"before": "2019", "after": "2020"})
    assert found.compared == COUNT
    assert found.beyond == 0


@pytest.mark.parametrize("block", [7, 8192])
def test_it_is_the_brute_force_answer(world, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(change, "_BLOCK_ROWS", block)
    archive = Archive.open(world[0])
    rows = archive.read_all(["embedding", "scene", "tile"])
    of = {
        scene: _unit(rows["embedding"][rows["scene"] == scene].astype(np.float64))
        for scene in ("A", "C")
    }
    centred = [_unit(vectors - vectors.mean(0)) for vectors in of.values()]
    moved = np.degrees(np.arccos((centred[0] * centred[1]).sum(1)))
    spread = 1.4826 * np.median(np.abs(moved - np.median(moved)))
    scores = (moved - np.median(moved)) / spread
    found = find_changes(archive, {"before": "2019", "after": "2024", "k": COUNT})
    table = found.table.to_pandas()
    expected = np.argsort(-scores)
    assert table["tile_key"].tolist() == [f"{GRID}/{n}/0" for n in expected]
    np.testing.assert_allclose(table["moved"], moved[expected], atol=1e-9)
    np.testing.assert_allclose(table["score"], scores[expected], atol=1e-7)
    assert table["usual"].unique().tolist() == pytest.approx([np.median(moved)])


def test_vectors_of_two_parts_move_by_the_part_that_the_blend_weighs(tmp_path: Path):
    """Some places look different later, others have other labels."""
    rng = np.random.default_rng(8)
    place, parts = str(tmp_path / "archive"), Parts(appearance=60, labels=20)
    create_archive(place, parts.dimension, parts=parts)
    ground = rng.normal(size=(COUNT, parts.dimension))
    ground[:, 60:] *= np.sqrt(3)
    later = ground.copy()
    later[:10, :60], later[10:20, 60:] = rng.normal(size=(10, 60)), rng.normal(size=(10, 20))
    for name, date, seen in (("A", "2019-07-01", ground), ("C", "2024-07-01", later)):
        noisy = seen + 0.1 * rng.normal(size=ground.shape)
        split = np.split(noisy, [60], axis=1)
        add_scene(place, name, date, np.concatenate([_unit(part) for part in split], axis=1))
    archive = Archive.open(place)

    def first(**spec: float) -> set[int]:
        table = find_changes(archive, {"before": "2019", "after": "2024", "k": 10, **spec}).table
        return {int(key.rsplit("/", 2)[1]) for key in table["tile_key"].to_pylist()}

    assert first(blend=1) == set(range(10))
    assert first(blend=0) == set(range(10, 20))
    assert first() == first(blend=DEFAULT_BLEND) == set(range(10, 20))
    changed = parts.query(later[0], DEFAULT_BLEND)
    search = SavedSearch(
        title="s",
        encoder_fingerprint=FINGERPRINT,
        vector=tuple(changed.tolist()),
        blend=DEFAULT_BLEND,
        min_score=0.9,  # of the blended score, whose cosine similarity is lower
    )
    toward = find_changes(archive, {"before": "2019", "after": "2024"}, search)
    assert toward.table["tile_key"].to_pylist() == [f"{GRID}/0/0"]
    with pytest.raises(ConfigError, match="'s' has a blend of its own; leave blend out"):
        find_changes(archive, {"before": "2019", "after": "2024", "blend": 1}, search)


def test_a_blend_is_for_vectors_of_two_parts(world):
    with pytest.raises(ConfigError, match="blend is for vectors of two parts"):
        find_changes(Archive.open(world[0]), {"before": "2019", "after": "2024", "blend": 1})


def test_conditions_select_what_is_ranked_and_not_what_is_usual(world):
    archive, periods = Archive.open(world[0]), {"before": "2019", "after": "2024", "k": COUNT}
    whole = find_changes(archive, periods).table.to_pandas().set_index("tile_key")
    part = find_changes(archive, {**periods, "where": {"bbox": (0.352, 0.001, 0.458, 0.002)}})
    frame = part.table.to_pandas().set_index("tile_key")
    assert sorted(frame.index) == sorted(f"{GRID}/{n}/0" for n in range(35, 46))
    assert frame["score"].equals(whole.loc[frame.index, "score"])
    assert part.compared == COUNT
    clear = find_changes(archive, {**periods, "where": Filter(max_cloud_fraction=0.1)})
    assert clear.compared == COUNT - 10
    other = find_changes(archive, {**periods, "where": Filter(scenes=("B", "C"))})
    assert set(other.table["before_scene"].to_pylist()) == {"B"}
    best = find_changes(archive, {**periods, "min_score": 10})
    assert len(best) == 3
    water = find_changes(archive, {**periods, "where": {"labels": ("crops",)}})
    assert len(water) == COUNT // 3


def test_toward_a_saved_search_ranks_by_the_gain(world):
    place, later = world
    archive = Archive.open(place)
    search = SavedSearch(
        title="mine", encoder_fingerprint=FINGERPRINT, vector=tuple(later[40].tolist()), k=3
    )
    periods = {"before": "2019", "after": "2024", "k": 5}
    found = find_changes(archive, periods, search)
    assert found.table["tile_key"][0].as_py() == f"{GRID}/40/0"
    assert found.title == "toward mine from 2019 to 2024"
    strict = SavedSearch(
        title="mine", encoder_fingerprint=FINGERPRINT, vector=search.vector, min_score=0.9999
    )
    assert len(find_changes(archive, periods, strict)) == 0
    other = SavedSearch(title="other", encoder_fingerprint="ff", vector=search.vector)
    with pytest.raises(EncoderMismatchError, match="'other' is of encoder ff"):
        find_changes(archive, periods, other)


def test_pairs_of_few_are_judged_by_their_season_or_not_at_all(tmp_path: Path):
    rng, place = np.random.default_rng(0), str(tmp_path / "archive")
    create_archive(place, DIMENSION)
    for number, start in enumerate(range(0, 60, 20)):
        for year in (2019, 2024):
            add_scene(
                place,
                f"{year}-{number}",
                f"{year}-07-0{1 + number}",
                rng.normal(size=(20, DIMENSION)),
                columns=np.arange(start, start + 20),
            )
    archive = Archive.open(place)
    found = find_changes(archive, {"before": "2019", "after": "2024"})
    assert (found.compared, found.unjudged) == (60, 0)
    assert set(found.table["pairs"].to_pylist()) == {60}
    few = {"before": "2019", "after": "2024", "where": {"scenes": ("2019-0", "2024-0")}}
    with pytest.raises(ConfigError, match="20 places have a tile in both periods"):
        find_changes(archive, few)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"before": "2024", "after": "2019"}, "give two periods in their order"),
        ({"before": "2019/..", "after": "2024"}, "does not end before"),
        ({"before": "../..", "after": "2024"}, "change: before is '../..'"),
        ({"before": "late", "after": "2024"}, "change: before is 'late'; give a year"),
        ({"before": "2019", "after": "2024", "k": 0}, "k is 0"),
        ({"before": "2019", "after": "2024", "where": {"since": "2019"}}, "since"),
    ],
)
def test_periods_that_are_none_are_refused(spec: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message.replace("..", r"\.\.")):
        ChangeSpec(**spec)


@pytest.mark.parametrize("ending", ["geojson", "parquet", "csv"])
def test_changes_are_written_as_hits_are(world, ending: str, tmp_path: Path):
    import geopandas
    import pandas as pd

    found = find_changes(Archive.open(world[0]), {"before": "2019", "after": "2024", "k": 4})
    file = tmp_path / f"changes.{ending}"
    write_hits(found.table, str(file))
    read = {"geojson": geopandas.read_file, "parquet": geopandas.read_parquet, "csv": pd.read_csv}
    frame = read[ending](file)
    assert frame["tile_key"].tolist() == found.table["tile_key"].to_pylist()
    assert frame["before_scene"].tolist() == ["A"] * 4
    sheet = tiles_of_hits(str(file))
    assert [tile.scene for tile in sheet] == ["A", "C"] * 4
    assert [tile.tile_key for tile in sheet[1::2]] == [tile.tile_key for tile in sheet[::2]]
    assert {tile.date for tile in sheet} == {"2019-07-01", "2024-10-01"}
