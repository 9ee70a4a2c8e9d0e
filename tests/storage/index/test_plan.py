"""The plan of a search: shards, nprobe, scan or probe, and how it reads."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigError
from storage.index.filter import Filter
from storage.index.plan import SearchPlan, plan_search
from storage.index.quantizer import ShardParameters, set_threads
from storage.index.search import ShardSet
from tests.support.shard_world import make_rows, make_shards

DIMENSION = 16


def manifest(nprobe: int = 4, rerank: int = 1) -> Any:
    """Four shards of 100 rows, each in its own year and its own quarter of the world."""
    shards = [
        SimpleNamespace(
            name=f"shard-{number}",
            bbox=(-180 + 90 * number, 0, -91 + 90 * number, 10),
            since=f"{2020 + number}-01-01",
            until=f"{2020 + number}-12-31",
            live_rows=100,
        )
        for number in range(4)
    ]
    return SimpleNamespace(
        version="0001-abcdef01", shards=shards, rows=400, classes=("water",), nprobe=nprobe,
        rerank=rerank,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("where", "shards", "nprobe"),
    [
        (Filter(), ["shard-0", "shard-1", "shard-2", "shard-3"], 4),
        (Filter(until="2021-06-01"), ["shard-0", "shard-1"], 8),
        (Filter(bbox=(95, 1, 96, 2)), ["shard-3"], 16),
        (Filter(until="2021-06-01", bbox=(95, 1, 96, 2)), [], 4),
        (Filter(labels=("water",)), ["shard-0", "shard-1", "shard-2", "shard-3"], 4),
    ],
)
def test_shards_out_of_range_are_left_out_and_the_others_probed_more_widely(
    where: Filter, shards: list[str], nprobe: int
):
    plan = plan_search(manifest(), 5, where)
    assert (list(plan.shards), plan.nprobe_requested, plan.nprobe) == (shards, 4, nprobe)
    assert (plan.rows, plan.all_rows, plan.all_shards) == (100 * len(shards), 400, 4)
    assert plan_search(manifest(), 5, where, nprobe=2).nprobe == max(nprobe // 2, 2)


@pytest.mark.parametrize(
    ("k", "where", "nprobe", "message"),
    [
        (0, Filter(), None, "k is 0, but index version 0001-abcdef01 holds 400 rows"),
        (401, Filter(), None, "give 1 to 400"),
        (5, Filter(), 0, "nprobe is 0; give at least 1"),
        (5, Filter(labels=("sea",)), None, "no class is named 'sea'; the archive has water"),
    ],
)
def test_a_search_that_makes_no_sense_gets_no_plan(
    k: int, where: Filter, nprobe: int | None, message: str
):
    with pytest.raises(ConfigError, match=message):
        plan_search(manifest(), k, where, nprobe)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray[Any, Any]]:
    set_threads(1)
    return make_rows(3000, DIMENSION, seed=1)


def shard_set(rows: dict[str, np.ndarray[Any, Any]], kind: Any, exact: bool = False) -> ShardSet:
    parameters = ShardParameters(kind=kind, dimension=DIMENSION, nlist=32, pq_bytes=8)
    return ShardSet(make_shards(rows, parameters, (1500,), exact))


def plan_of(shards: ShardSet, **settings: Any) -> SearchPlan:
    defaults: dict[str, Any] = {"k": 5, "where": Filter(), "nprobe": 4}
    return SearchPlan(shards=tuple(shards.shards), **(defaults | settings))


def test_few_selected_rows_are_scanned_and_many_are_probed(
    rows: dict[str, np.ndarray[Any, Any]],
):
    shards = shard_set(rows, "ivf_flat")
    probed = shards.explain(plan_of(shards))
    assert (probed.selected, probed.rows, probed.nprobe, probed.lists) == (3000, 3000, 4, 32)
    assert (probed.candidates, probed.rescored) == (7, 0)
    where = Filter(max_cloud_fraction=0.01)
    scanned = shards.explain(plan_of(shards, where=where))
    keep = rows["cloud_fraction"] <= np.float32(0.01)
    assert (scanned.selected, scanned.nprobe) == (keep.sum(), 0)
    none = shards.explain(plan_of(shards, where=Filter(until="1999-01-01")))
    assert (none.selected, str(none)) == (0, "no row selected")


def test_a_filter_widens_the_probe_within_the_lists_that_hold_selected_rows(
    rows: dict[str, np.ndarray[Any, Any]],
):
    shards = shard_set(rows, "ivf_flat")
    half = shards.explain(plan_of(shards, where=Filter(max_cloud_fraction=0.5)))
    assert 7 <= half.nprobe <= 9
    few = shards.explain(plan_of(shards, where=Filter(max_cloud_fraction=0.003)))
    assert few.lists == few.nprobe < 32 or few.nprobe == 0


def test_lossy_shards_with_exact_vectors_rescore_and_scan_when_every_list_is_wanted(
    rows: dict[str, np.ndarray[Any, Any]],
):
    shards = shard_set(rows, "ivf_sq8", exact=True)
    tuned = shards.explain(plan_of(shards, rerank=4))
    assert (tuned.candidates, tuned.rescored) == (41, 40)
    assert shards.explain(plan_of(shards, nprobe=32, rerank=4)).nprobe == 0


def test_a_plan_reads_as_lines(rows: dict[str, np.ndarray[Any, Any]]):
    shards = shard_set(rows, "ivf_flat")
    plan = plan_search(manifest(), 5, Filter(until="2021-06-01"))
    work = shards.explain(plan_of(shards))
    assert str(replace(plan, passes=(work, work))).splitlines() == [
        "5 hits of each query",
        "2 of 4 shards can hold a match, 200 of 400 rows",
        "nprobe 4, widened to 8 for the shards left out",
        "node 0: 3,000 of 3,000 rows selected: probe 4 of 32 lists (32 hold a selected row), "
        "7 candidates, rescore those near the last hit",
        "node 1: 3,000 of 3,000 rows selected: probe 4 of 32 lists (32 hold a selected row), "
        "7 candidates, rescore those near the last hit",
    ]
