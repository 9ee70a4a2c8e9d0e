"""A score map opens in GDAL, and says of every place what a search says."""

from pathlib import Path

import numpy as np
import pyogrio
import pytest
from pmtiles.reader import MmapSource, Reader

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.query import Query
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from tests.support.archive_world import add_scenes, create_archive, live_rows
from tests.support.indexing_world import patch_out_ray
from workflows.report.score_map import write_score_map

DIMENSION = 8


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("map")
    create_archive(str(folder / "archive"), DIMENSION)
    add_scenes(str(folder / "archive"), {"a": 40, "b": 30}, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        build_index(str(folder / "archive"), str(folder / "index"), IndexSpec(kind="flat"))
    return Searcher.local(str(folder / "index"))


def test_every_place_has_its_best_score(searcher: Searcher, tmp_path: Path):
    query = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)
    target = tmp_path / "map.pmtiles"
    count = write_score_map(searcher, Query(vector=query, label="noise"), str(target))
    with target.open("rb") as stream:
        reader = Reader(MmapSource(stream))
        assert reader.header()["addressed_tiles_count"] == count
        assert reader.metadata()["name"] == "like noise"
    frame = pyogrio.read_dataframe(target, layer="scores-places", use_arrow=False)
    rows = live_rows(searcher.archive.uri)
    scores = rows["embedding"].astype(np.float64) @ (query / np.linalg.norm(query))
    best: dict[str, float] = {}
    for key, score in zip(rows["tile_key"], scores.tolist(), strict=True):
        best[key] = max(score, best.get(key, -1.0))
    shown = dict(zip(frame["tile"], frame["score"], strict=True))
    assert len(shown) > 0.5 * len(best)  # at the deepest zoom, at least half of the places
    for key, score in shown.items():
        assert score == pytest.approx(best[key], abs=0.003)
    assert write_score_map(searcher, Query(vector=query, label="noise"), str(target)) == count


def test_another_name_is_refused(searcher: Searcher, tmp_path: Path):
    query = Query(vector=np.ones(DIMENSION, np.float32), label="q")
    with pytest.raises(ConfigError, match="pmtiles"):
        write_score_map(searcher, query, str(tmp_path / "map.mbtiles"))
    assert not list(tmp_path.iterdir())
