"""Saved searches: the file, its versions, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.search.accuracy import Check, CheckedTile
from pipeline.search.marks import Calibration, Stratum
from pipeline.search.saved import Mark, SavedSearch, load_search, save_search
from storage.errors import ConfigError

_MARK = Mark(
    mark="right",
    vector=(0.6000000238418579, 0.800000011920929),
    label="tile a/1/2 of A",
    tile="a/1/2",
    scene="A",
    lonlat=(1.5, -2.5),
    date="2020-01-01T00:00:00+00:00",
)
_SEARCH = SavedSearch(
    title="lakes",
    encoder_fingerprint="abc",
    vector=(1.0, 0.25),
    learned=True,
    filter={"bbox": [0, 0, 1, 1], "scenes": ["A"]},
    marks=(_MARK, Mark(mark="wrong", vector=(1.0, 0.0))),
    calibration=Calibration(slope=9.5, offset=-3.0),
    threshold=0.75,
    review=5,
    check=Check(
        strata=(Stratum(rows=9, lowest=0.75, expected=0.9),),
        tiles=(CheckedTile(tile="a/1/2", scene="A", stratum=1, probability=0.8, mark="wrong"),),
        below=4321,
    ),
)


def test_a_search_comes_back_as_it_was_saved(tmp_path: Path):
    file = str(tmp_path / "lakes.json")
    save_search(_SEARCH, file)
    assert load_search(file) == _SEARCH
    right, wrong = load_search(file).examples
    assert [query.lonlat for query in (*right, *wrong)] == [(1.5, -2.5), None]
    assert right[0].date is not None
    assert right[0].date.year == 2020


def test_a_file_of_version_1_is_read(tmp_path: Path):
    old = {
        "skysift": "saved search", "version": 1, "title": "lakes", "encoder_fingerprint": "abc",
        "vector": [1.0, 0.25], "k": 7, "min_score": 0.5, "distinct": None, "of_words": False,
        "filter": {"scenes": ["A"]},
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    search = load_search(str(tmp_path / "old.json"))
    assert (search.k, search.min_score, search.marks, search.threshold) == (7, 0.5, (), None)


def test_a_file_of_version_2_is_read_without_what_its_calibration_kept(tmp_path: Path):
    file = tmp_path / "old.json"
    save_search(replace(_SEARCH, check=None), str(file))
    old = json.loads(file.read_text()) | {"version": 2}
    del old["check"], old["blend"]
    old["calibration"] |= {"scores": [0.5, 0.25], "right": [True, False], "unlabelled": [0.1]}
    file.write_text(json.dumps(old))
    assert load_search(str(file)) == replace(_SEARCH, check=None)


_HUGE = {"rows": 2**63, "lowest": 0.0, "expected": 0.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 4}, "of format 4, which a later Skysift wrote"),
        ({"skysift": None}, "it is a None of version 3"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"marks": [{"mark": "right", "vector": "AACAPw=="}]}, "another length"),
        ({"marks": [{"mark": "right", "vector": "?"}]}, "no base64"),
        ({"marks": [{"mark": "maybe", "vector": "AACAPwAAgD8="}]}, "mark is 'maybe'"),
        ({"marks": [{"mark": "right", "vector": "AACAPwAAgD8=", "date": "then"}]}, "then"),
        ({"review": -1}, "review"),
        ({"calibration": {"slope": "steep", "offset": 0}}, "slope"),
        ({"calibration": {"slope": -1.0, "offset": 0.0}}, "no rising slope"),
        ({"check": {"strata": [], "tiles": []}}, "a stratum has no rows"),
        ({"check": {"strata": []}}, "it has no 'tiles'"),
        ({"check": {"strata": [_HUGE], "tiles": []}}, "over 9,007"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, change: dict, reason: str):
    file = tmp_path / "lakes.json"
    save_search(_SEARCH, str(file))
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=reason):
        load_search(str(file))
