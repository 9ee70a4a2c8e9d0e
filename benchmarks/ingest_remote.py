"""Scenes in an object store that takes 50 ms to answer, beside the same scenes on disk."""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ingest_world import job, options_for, write_bundle, write_scenes
from benchmarks.measure import Row
from benchmarks.slow_store import BUCKET
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.runtime.cluster import ray_session
from storage.location import Location

LATENCY_S = 0.05
TILE_PX = 128


def remote(folder: Path, full: bool) -> Iterator[Row]:
    """Tiles/s of the whole pipeline, scenes from a slow store and from disk in turns."""
    scenes = folder / "scenes"
    scenes.mkdir()
    write_scenes(scenes, 48 if full else 24, 4096, 1024)
    bundle = write_bundle(folder / "bundle", TILE_PX, 64)
    away, near = [], []
    with ray_session(cpus=os.cpu_count()), slow_store(scenes) as endpoint:
        for turn in range(3):
            spec = job(str(scenes / "*.tif"), bundle, folder / f"near{turn}", TILE_PX)
            near.append(_rate(spec))
            scenes = Location(f"s3://{BUCKET}/*.tif", options_for(endpoint))
            away.append(_rate(job(scenes, bundle, folder / f"away{turn}", TILE_PX)))
    yield Row(
        what=f"tiles/s through the whole pipeline from an object store that takes "
        f"{1000 * LATENCY_S:.0f} ms to answer, tiny-cnn of width 64, {os.cpu_count()} cores",
        ours=statistics.median(away),
        peer=statistics.median(near),
        against="the same scenes on disk",
        unit="tiles/s",
        ratio=statistics.median(a / b for a, b in zip(away, near, strict=True)),
        goal=0.8,
        note="Whole runs, Ray being up. Four scenes are read side by side in each process "
        "while one batch is encoded. The store runs on the same cores.",
    )


def _rate(spec: IngestSpec) -> float:
    """Return tiles/s of a whole run: with four scenes side by side, tiles arrive in bursts."""
    started = time.perf_counter()
    report = ingest(plan_ingest(spec))
    return report.rows / (time.perf_counter() - started)


@contextmanager
def slow_store(folder: Path, latency_s: float = LATENCY_S) -> Iterator[str]:
    """Serve the files of a folder in a process of their own; yield the endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.slow_store", str(folder), str(port)]
    server = subprocess.Popen([*command, str(latency_s)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
