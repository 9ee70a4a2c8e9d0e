"""Jobs on the head of a cluster of several hosts: ``python -m tests.support.host_jobs JOB FOLDER``.

Each job says on its standard output how far it is, for the test to break something in the middle.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from pipeline.training.driver import train
from storage.archive.reader import Archive
from storage.progress import Progress
from storage.scene import CatalogSpec
from tests.support.training_world import LONG

HOSTS, QUERIES = 3, 400


def say(report: Progress) -> None:
    """Print how far the job is."""
    sys.stdout.write(f"progress {report.stage} {report.done} {report.total}\n")
    sys.stdout.flush()


def ingest_job(folder: Path, name: str) -> dict[str, object]:
    """Embed the scenes of the folder."""
    spec = IngestSpec(
        catalog=CatalogSpec(source=str(folder / "scenes/*.tif")),
        encoder_uri=str(folder / "bundle"),
        archive_uri=str(folder / name),
        commit_interval_s=1.0,
    )
    report = ingest(plan_ingest(spec), progress=say)
    return {"rows": report.rows, "quarantined": report.quarantined}


def train_job(folder: Path, name: str) -> dict[str, object]:
    """Train on two hosts."""
    spec = replace(LONG, workers=2, max_failures=3)
    result = train(str(folder / "dataset"), spec, str(folder / name), progress=say)
    return {"fingerprint": result.fingerprint}


def search_job(folder: Path, name: str) -> dict[str, object]:
    """Ask many times, of an index whose shards are on two hosts each."""
    index = str(folder / "index")
    build_index(str(folder / name), index, IndexSpec(kind="flat", shards=2))
    archive = Archive.open(str(folder / name))
    vectors = archive.read_segment(0, ["embedding"])["embedding"].astype(np.float32)
    truth = Searcher.local(index).search(vectors[:4], 5)
    searcher = Searcher.connect(index, replicas=2)
    wrong = 0
    for query in range(QUERIES):
        hits = searcher.search(vectors[:4], 5)
        wrong += hits.coverage < 1 or not np.array_equal(hits.rows, truth.rows)
        say(Progress(stage="search", done=query + 1, total=QUERIES))
    searcher.stop()
    return {"wrong": wrong}


if __name__ == "__main__":
    jobs = {"ingest": ingest_job, "train": train_job, "search": search_job}
    with ray_session():
        while ray.cluster_resources().get("CPU", 0) < HOSTS:
            time.sleep(0.1)  # the last ones are joining
        result = jobs[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
        sys.stdout.write(f"result {json.dumps(result)}\n")
