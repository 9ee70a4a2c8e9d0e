"""Building and growing an index, beside bare FAISS on the same vectors and threads.

    python -m benchmarks.index [--rows N] [--full] [--folder FOLDER]

Clustered vectors of 128 dimensions (`benchmarks.vectors`), written into an archive once and kept in
the folder. ``--full`` measures a million rows, and ten million inside 6 GB.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.measure import Row, in_turns, publish, seconds
from benchmarks.vectors import add_rows, clustered, make_archive
from pipeline.indexing.driver import build_index, compact_index, plan_build, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.indexing.steps import threads_for
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from storage.index.kinds import Kind
from storage.index.manifest import IndexManifest
from storage.progress import Progress

DIMENSION = 128
QUERIES = 200
DRIFT_QUERIES = 2000
BUDGET_BYTES = 6_000_000_000
ADDED_ROWS = 100_000
_LOADED = """
import json, os, sys
from storage.index.files import VerifiedFiles
from storage.index.manifest import read_manifest
def rss(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, manifest = rss(), read_manifest(sys.argv[1])
files = VerifiedFiles(sys.argv[1])
kept = [files.load(shard) for shard in manifest.shards]
print(json.dumps(rss() - before))
"""


class Stages:
    """A progress sink that remembers how long each stage took."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def __call__(self, report: Progress) -> None:
        """Note the time."""
        now = time.perf_counter()
        self._started.setdefault(report.stage, now)
        self._ended[report.stage] = now

    def text(self) -> str:
        """Return the seconds of each stage as a text."""
        spans = {name: self._ended[name] - self._started[name] for name in self._started}
        return ", ".join(f"{name} {span:.1f} s" for name, span in spans.items())


def built(archive: str, folder: Path, spec: IndexSpec, stages: Stages) -> IndexManifest:
    """Build an index where none is."""
    shutil.rmtree(folder, ignore_errors=True)
    return build_index(archive, str(folder), spec, progress=stages)


def against_faiss(archive: str, folder: Path, kind: Kind, turns: int) -> Row:
    """Compare a build with FAISS training and adding vectors that are in memory already."""
    spec = IndexSpec(kind=kind, shards=1)
    plan = plan_build(archive, spec)
    rows = np.concatenate(list(clustered(plan.rows)))
    sample = rows[np.random.default_rng(0).choice(len(rows), plan.sample_rows, replace=False)]
    stages = Stages()

    def bare() -> None:
        faiss.omp_set_num_threads(threads_for(1))
        lists = faiss.IndexFlatIP(DIMENSION), DIMENSION, plan.parameters.nlist
        index = (
            faiss.IndexIVFPQFastScan(*lists, plan.parameters.parts, 4, faiss.METRIC_INNER_PRODUCT)
            if kind == "ivf_pq4"
            else faiss.IndexIVFScalarQuantizer(
                *lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
            )
        )
        index.train(sample)
        index.add(rows)

    def ours() -> None:
        nonlocal stages
        stages = Stages()
        built(archive, folder, spec, stages)

    own, peer, ratio = in_turns(ours, bare, turns)
    return Row(
        what=f"build {plan.rows:,} x {DIMENSION} ({kind}), archive to published version",
        ours=own,
        unit="s",
        peer=peer,
        against="FAISS train + add of vectors in memory",
        ratio=ratio,
        goal=1.15,
        direction="at most",
        note=f"{stages.text()}; the rest reads the archive, writes and hashes files",
    )


def growth(archive: str, folder: Path) -> list[Row]:
    """Grow an index by rows of the same kind, three times, then compact it."""
    archive = f"{archive}-grown"
    shutil.rmtree(archive, ignore_errors=True)
    shutil.copytree(archive.removesuffix("-grown"), archive)
    manifest = built(archive, folder, IndexSpec(kind="ivf_flat"), Stages())
    for seed in (1, 2, 3):
        add_rows(archive, ADDED_ROWS, seed=seed)
        stages = Stages()
        update_s = seconds(partial(update_index, str(folder), progress=stages))
    stages_text = stages.text()
    compact_s = seconds(lambda: compact_index(str(folder)))
    rebuild_s = seconds(lambda: built(archive, folder, IndexSpec(kind="ivf_flat"), Stages()))
    after = manifest.rows + 3 * ADDED_ROWS
    return [
        Row(
            what=f"update of an index of {manifest.rows:,} rows by {ADDED_ROWS:,} more",
            ours=update_s,
            unit="s",
            ratio=update_s,
            goal=10,
            direction="at most",
            note=stages_text,
        ),
        Row(
            what=f"compaction of {after:,} rows after three updates",
            ours=compact_s,
            unit="s",
            peer=rebuild_s,
            against="building again",
            ratio=compact_s / rebuild_s,
            note="copies stored codes; columns are sorted and encoded again",
        ),
    ]


def drift(folder: Path, rows: int) -> list[Row]:
    """Add a fifth of rows, ever more unlike those of the build: recall lost, and the advice."""
    found = []
    for shift in (0.0, 0.1, 0.2, 0.3, 1.0):
        work = folder / f"drift-{shift}"
        archive, index = make_archive(work, rows, clusters=500), work / "index"
        built(archive, index, IndexSpec(kind="ivf_flat"), Stages())
        before = recall(index, 0.0, 0)
        add_rows(archive, rows // 5, clusters=500, seed=7, shift=shift)
        manifest = update_index(str(index))
        after = recall(index, shift, 1 / 6)
        lost = 100 * (before - after)
        found.append(
            Row(
                what=f"recall@10 lost to 20 % more rows, shifted by {shift:.1f}",
                ours=lost,
                unit="points",
                ratio=0.0 if manifest.advice else lost,
                goal=1.0,
                direction="at most",
                note=f"drift {manifest.drift:.2f}; {manifest.advice or 'no advice'}",
            )
        )
        shutil.rmtree(work)
    return found


def recall(index: Path, shift: float, share: float) -> float:
    """Return recall@10 at the tuned nprobe, of queries drawn like the rows are."""
    queries = next(clustered(DRIFT_QUERIES, clusters=500, seed=98))
    new = round(share * DRIFT_QUERIES)
    if new:
        queries[:new] = next(clustered(new, clusters=500, seed=99, shift=shift))
    return agreement(Searcher.local(str(index)), queries)


def agreement(searcher: Searcher, queries: np.ndarray) -> float:
    """Return which share of the exact 10 best a search with default settings finds."""
    tuned = searcher.search(queries, 10).rows
    exact = searcher.search(queries, 10, nprobe=searcher.manifest.parameters.nlist).rows
    return float(
        np.mean(
            [len(set(a) & set(b)) / 10 for a, b in zip(tuned.tolist(), exact.tolist(), strict=True)]
        )
    )


def within_budget(archive: str, folder: Path, budget: int) -> list[Row]:
    """Build under a memory budget; measure what is loaded, recall and the time of one query."""
    stages, spec = Stages(), IndexSpec(memory_bytes=budget)
    build_s = seconds(lambda: built(archive, folder, spec, stages))
    searcher = Searcher.local(str(folder))
    manifest = searcher.manifest
    found = agreement(searcher, next(clustered(QUERIES, seed=99)))
    queries = next(clustered(QUERIES, seed=97))
    times = [seconds(partial(searcher.search, query, 10)) for query in queries]
    p50_ms = 1000 * statistics.median(times)
    name = (
        f"{manifest.rows:,} x {DIMENSION} inside {budget / 1e9:g} GB ({manifest.parameters.kind})"
    )
    loaded = int(
        subprocess.run(
            [sys.executable, "-c", _LOADED, str(folder)], check=True, capture_output=True
        ).stdout
    )
    return [
        Row(what=f"{name}: build", ours=build_s, unit="s", ratio=build_s, note=stages.text()),
        Row(
            what=f"{name}: memory of a process when loaded",
            ours=loaded / 1e9,
            unit="GB",
            peer=budget / 1e9,
            against="budget",
            ratio=loaded / budget,
            goal=1.0,
            direction="at most",
            note=f"predicted {manifest.predicted_bytes / 1e9:.2f} GB, "
            f"counted {manifest.measured_bytes / 1e9:.2f} GB",
        ),
        Row(
            what=f"{name}: recall@10 at {manifest.nprobe} of {manifest.parameters.nlist} lists",
            ours=found,
            unit="",
            ratio=found,
            goal=spec.recall,
        ),
        Row(
            what=f"{name}: one query, in this process, p50",
            ours=p50_ms,
            unit="ms",
            ratio=p50_ms,
            goal=25,
            direction="at most",
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--full", action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "skysift-bench"
    )
    parser.add_argument("--only", choices=("faiss", "growth", "drift", "budget"))
    chosen = parser.parse_args(arguments)
    rows = chosen.rows or (1_000_000 if chosen.full else 200_000)
    most = chosen.rows or (10_000_000 if chosen.full else 200_000)
    index, found = chosen.folder / "index", []
    parts: dict[str, Callable[[], Any]] = {
        "faiss": lambda: [
            against_faiss(make_archive(chosen.folder, rows), index, kind, 5)
            for kind in ("ivf_flat", "ivf_pq4")
        ],
        "growth": lambda: growth(make_archive(chosen.folder, rows), index),
        "drift": lambda: drift(chosen.folder, 30_000),
        "budget": lambda: within_budget(
            make_archive(chosen.folder, most), index, BUDGET_BYTES * most // 10_000_000
        ),
    }
    with ray_session():
        for name, part in parts.items():
            if chosen.only in (None, name):
                found += part()
    shutil.rmtree(index, ignore_errors=True)
    publish("index", found, partial=chosen.only is not None)


if __name__ == "__main__":
    main()
