"""A search group that loses a node under load; in a process of its own, with its own Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import threading
import time
import numpy as np
import ray
from concurrent.futures import ThreadPoolExecutor
from ray._private.state import actors
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
reader = cluster.add_node(num_cpus=1)
group = [cluster.add_node(num_cpus=1, resources={"search": 1}) for _ in range(3)]
ray.init(address=cluster.address, logging_level="WARNING", log_to_driver=False)
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.searcher import Searcher
from tests.support.archive_world import add_scenes, create_archive

archive, index = sys.argv[1] + "/archive", sys.argv[1] + "/index"
create_archive(archive, 16)
add_scenes(archive, {"A": 300, "B": 300})
build_index(archive, index, IndexSpec(kind="ivf_flat", shards=6, nlist=4))
searcher = Searcher.connect(index, replicas=2)
homes = {a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE"}
assert homes == {node.node_id for node in group}, homes
queries = np.random.default_rng(0).normal(size=(3, 16))
truth = Searcher.local(index).search(queries, 20, nprobe=10**6)
ended, counts = threading.Event(), [0] * 4

def client(number):
    slowest = 0.0
    while not ended.is_set():
        started = time.monotonic()
        hits = searcher.search(queries, 20, nprobe=10**6)
        slowest = max(slowest, time.monotonic() - started)
        assert hits.coverage == 1.0
        assert (hits.rows == truth.rows).all()
        counts[number] += 1
    return slowest

def answered(more):
    wanted, until = sum(counts) + more, time.monotonic() + 60
    while sum(counts) < wanted and not any(one.done() for one in clients):
        assert time.monotonic() < until, counts
        time.sleep(0.01)

with ThreadPoolExecutor(len(counts)) as pool:
    clients = [pool.submit(client, number) for number in range(len(counts))]
    try:
        answered(200)
        cluster.remove_node(group[1])
        answered(400)
        cluster.add_node(num_cpus=1, resources={"search": 1})
        answered(200)
    finally:
        ended.set()
    slowest = max(one.result() for one in clients)
print(f"ALL {sum(counts)} ANSWERED, the slowest in {slowest:.2f} s")
"""


@pytest.mark.slow
def test_a_search_group_that_loses_a_node_under_load_answers_every_query(tmp_path: Path):
    """Four clients ask while a node is killed and another one joins; a reader holds no shard."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "ANSWERED" in done.stdout, done.stderr[-2000:]
