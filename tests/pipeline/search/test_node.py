"""Search on three Ray nodes of which one goes away; in a process of its own, with its own Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import numpy as np
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

cluster = Cluster()
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
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
assert homes == {node["NodeID"] for node in ray.nodes()}, homes
asked = np.random.default_rng(0).normal(size=(3, 16))
truth = Searcher.local(index).search(asked, 20, nprobe=10**6)
for number in range(1000):
    if number == 300:
        cluster.remove_node(nodes[1])
    hits = searcher.search(asked, 20, nprobe=10**6)
    assert hits.coverage == 1.0
    assert (hits.rows == truth.rows).all()
print("ALL 1000 ANSWERED")
"""


@pytest.mark.slow
def test_a_node_that_goes_away_loses_no_query(tmp_path: Path):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "ALL 1000 ANSWERED" in done.stdout, done.stderr[-2000:]
