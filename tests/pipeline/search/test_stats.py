"""What search actors count, and where it can be read: the meter, Prometheus, `index stats`."""

import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.actor import NodeState
from pipeline.search.fleet import running_nodes
from pipeline.search.searcher import Searcher
from pipeline.search.stats import SearchStats
from tests.support.archive_world import add_scenes, create_archive
from tests.support.command_line import run


def test_the_meter_tells_percentiles_rate_and_work():
    now = [100.0]
    meter = SearchStats(clock=lambda: now[0])
    for number in range(1, 101):
        now[0] += 0.1
        meter.answered(number / 1000, 4)
    meter.scanned(4, 8, {"a": 300})
    meter.scanned(1, 2, {"a": 50})
    reading = meter.read()
    assert (reading.messages, reading.queries) == (100, 400)
    np.testing.assert_allclose(reading.queries_per_s, 40)
    np.testing.assert_allclose(
        (reading.p50_ms, reading.p95_ms, reading.p99_ms), (50.5, 95.05, 99.01)
    )
    work = reading.shards["a"]
    assert (work.queries, work.probes, work.rows_scanned) == (5, 10, 350)
    assert meter.between(97, 100) == [0.098, 0.099, 0.1]
    now[0] += 120
    assert meter.read().queries_per_s == 0


def test_the_meter_forgets_old_messages_but_not_their_number():
    meter = SearchStats(clock=lambda: 1.0)
    for number in range(5000):
        meter.answered(float(number), 1)
    assert meter.read().messages == 5000
    assert meter.between(0, 906) == [904.0, 905.0]
    assert meter.between(4998, 5000) == [4998.0, 4999.0]


def _scraped(index: str) -> dict[str, float]:
    """The samples of an index at the node's Prometheus endpoint, by name and shard."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(ray_skysift_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        shard = re.search(r'shard="([^"]+)"', labels)
        if f'index="{index}"' in labels:
            found[f"{name}/{shard[1]}" if shard else name] = float(value)
    return found


def test_actors_report_to_prometheus_and_to_the_command_line(ray_session: None, tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, 16)
    add_scenes(archive, {"A": 200, "B": 200})
    build_index(archive, index, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    assert "no search actor runs" in run("index", "stats", "--index", index).out
    client = Searcher.connect(index)
    try:
        for _ in range(10):
            client.search(np.eye(16)[:3], 5, nprobe=2)
        (state,) = running_nodes(client.index, client.manifest.version).values()
        assert isinstance(state, NodeState)
        assert (state.meter.messages, state.meter.queries) == (10, 30)
        assert 0 < state.meter.p50_ms <= state.meter.p95_ms <= state.meter.p99_ms
        assert state.rows == {shard.name: shard.rows for shard in client.manifest.shards}
        for work in state.meter.shards.values():
            assert (work.queries, work.probes) == (30, 60)
            assert 0 < work.rows_scanned <= 30 * 200
        told = run("index", "stats", "--index", index, "--json").data["actors"]
        assert [actor["meter"]["queries"] for actor in told.values()] == [30]
        table = run("index", "stats", "--index", index).out
        assert re.search(r"shard-00001 .* 30 +60 ", table)
        name = "ray_skysift_search_"
        wanted = {f"{name}queries_total": 30, f"{name}seconds_count": 10}
        for shard, work in state.meter.shards.items():
            wanted[f"{name}probes_total/{shard}"] = work.probes
            wanted[f"{name}rows_scanned_total/{shard}"] = work.rows_scanned
        deadline = time.monotonic() + 60
        while wanted.items() - _scraped(index).items():
            assert time.monotonic() < deadline, (wanted, _scraped(index))
            time.sleep(0.5)
    finally:
        client.stop()


def test_an_actor_that_does_not_answer_is_named(ray_session: None, tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, 16)
    add_scenes(archive, {"A": 60})
    manifest = build_index(archive, index, IndexSpec(shards=1))
    path = tmp_path / "index" / manifest.shards[0].index.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    client = Searcher.connect(index)
    try:
        assert "actor 1x1/0 does not answer" in run("index", "stats", "--index", index).out
    finally:
        client.stop()


@pytest.mark.parametrize(("flag", "word"), [("9999-00000000", "has no version"), (None, "no fin")])
def test_stats_of_what_is_not_there_is_an_error(tmp_path: Path, flag: str | None, word: str):
    arguments = ["--version", flag] if flag else []
    outcome = run("index", "stats", "--index", tmp_path, *arguments)
    assert (outcome.code, word in outcome.err) == (1, True)
