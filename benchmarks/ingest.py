"""Ingest beside its limits: encoder, rasterio, plain Zarr; start, memory and growth.

    python -m benchmarks.ingest [--full] [--only NAME ...]

With ``--only`` the other rows of ``benchmarks/ingest.json`` are kept.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import ingest_archive, ingest_reading, ingest_remote
from benchmarks.ingest_world import (
    encode_for,
    job,
    one_thread,
    plain_loop,
    steady_rate,
    watched_memory,
    write_bundle,
    write_scenes,
)
from benchmarks.measure import Row, publish
from pipeline.ingest.driver import LOCAL_TILES
from pipeline.runtime.cluster import ray_session

CORES = os.cpu_count() or 1
TILE_PX = 128


def throughput(folder: Path, full: bool) -> Iterator[Row]:
    """Tiles/s of the pipeline beside those of its encoder alone, and of a loop without Ray."""
    names = write_scenes(folder, 12, 4096, 1024)
    for width, copies in ((None, 1), (8, 8)):
        scenes = folder / f"scenes{width}"
        scenes.mkdir()
        for name, copy in itertools.product(names, range(copies * (2 if full else 1))):
            os.link(name, scenes / f"copy{copy}_{Path(name).name}")
        bundle = write_bundle(folder / f"bundle{width}", TILE_PX, width)
        limits, rates = [], []
        with ray_session(cpus=CORES):
            for turn in range(3):
                archive = folder / f"archive{width}-{turn}"
                limits.append(_alone(bundle, sorted(map(str, scenes.iterdir())) if width else []))
                rates.append(steady_rate(job(str(scenes / "*.tif"), bundle, archive, TILE_PX)))
        encoder = f"tiny-cnn of width {width}" if width else "ResNet-18"
        yield Row(
            what=f"tiles/s through the whole pipeline, {encoder}, {TILE_PX} px, {CORES} cores",
            ours=statistics.median(rates),
            peer=statistics.median(limits),
            against=f"{'a rasterio loop that encodes' if width else 'the encoder alone'}, "
            f"{CORES} processes",
            unit="tiles/s",
            ratio=statistics.median(ours / peer for ours, peer in zip(rates, limits, strict=True)),
            goal=0.9,
            note="Between the first and the last fifth of the tiles: without start and tail. "
            "Limit: the cores, which the encoder shares with reading and Ray's processes.",
        )


def _alone(bundle: str, names: list[str], seconds: float = 5.0) -> float:
    """Return tiles/s of one process a core that encodes, and first reads if scenes are given."""
    with ProcessPoolExecutor(CORES, get_context("spawn"), one_thread) as pool:
        for warm in [pool.submit(encode_for, bundle, 0.1) for _ in range(CORES)]:
            warm.result()
        if not names:
            runs = [pool.submit(encode_for, bundle, seconds) for _ in range(CORES)]
        else:
            runs = [
                pool.submit(plain_loop, names[core::CORES], TILE_PX, bundle)
                for core in range(CORES)
            ]
        return sum(tiles / took for tiles, took in (run.result() for run in runs))


def first_tile(folder: Path, full: bool) -> Iterator[Row]:
    """Seconds from the command in a cold process to the first embedded tile, and to its end."""
    bundle = write_bundle(folder / "bundle", TILE_PX, 32)
    scenes = folder / "scenes"
    scenes.mkdir()
    write_scenes(scenes, LOCAL_TILES // 128, 2048, 1024)
    firsts: dict[bool, list[float]] = {True: [], False: []}
    wholes: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(5 if full else 3):
        for here in firsts:
            marked, started = folder / f"first-{here}-{turn}", time.time()
            command = [sys.executable, "-m", "benchmarks.ingest_first", str(marked)]
            command += [
                str(LOCAL_TILES if here else 0),
                "ingest",
                "--scenes",
                str(scenes / "*.tif"),
            ]
            command += ["--encoder", bundle, "--archive", str(folder / f"archive-{here}-{turn}")]
            subprocess.run(command, check=True, capture_output=True)
            wholes[here].append(time.time() - started)
            firsts[here].append(float(marked.read_text()) - started)
    for here, way in (
        (True, "In one process: so small a run of a local catalog does without Ray."),
        (False, "What a larger run waits. Limit: starting Ray, then importing ray.data, torch and "
         "rasterio in each worker. The plan is made while Ray starts."),
    ):  # fmt: skip
        yield Row(
            what=f"seconds from `skysift ingest` of {LOCAL_TILES:,} tiles to the first embedded "
            f"tile, {'without' if here else 'with'} Ray, {CORES} cores, cold",
            ours=statistics.median(firsts[here]),
            unit="s",
            ratio=statistics.median(firsts[here]),
            goal=10.0,
            direction="at most",
            note=way,
        )
    yield Row(
        what=f"`skysift ingest` of {LOCAL_TILES:,} tiles, tiny-cnn (width 32), {CORES} cores, cold",
        ours=statistics.median(wholes[True]),
        unit="s",
        peer=statistics.median(wholes[False]),
        against="with Ray",
        ratio=statistics.median(
            ours / peer for ours, peer in zip(wholes[True], wholes[False], strict=True)
        ),
        goal=1.0,
        direction="at most",
        note="Larger runs start Ray.",
    )


def memory(folder: Path, full: bool) -> Iterator[Row]:
    """Peak memory of every kind of process on Ray, from few scenes to many."""
    few, many = (10, 1000) if full else (10, 100)
    names = write_scenes(folder, many, 512, 512)
    bundle = write_bundle(folder / "bundle", TILE_PX, 16)
    peaks = []
    for count in (few, many):
        part = folder / f"scenes{count}"
        part.mkdir()
        for name in names[:count]:
            (part / Path(name).name).symlink_to(name)
        command = [sys.executable, "-m", "benchmarks.ingest_first", str(folder / f"first{count}")]
        command += ["0", "ingest", "--encoder", bundle, "--scenes", str(part / "*.tif")]
        command += ["--archive", str(folder / f"archive{count}")]
        with watched_memory() as found:
            subprocess.run(command, check=True, capture_output=True)
        peaks.append(found)
    for kind in sorted(peaks[0].keys() & peaks[1].keys()):
        before, after = (found[kind] / 1e6 for found in peaks)
        if before > 40:
            yield Row(
                what=f"peak private memory of {kind}, {many} scenes",
                ours=after,
                peer=before,
                against=f"{few} scenes",
                unit="MB",
                ratio=after / before,
                goal=1.1,
                direction="at most",
            )


MEASURES: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "reading": ingest_reading.reading,
    "mixed": ingest_reading.mixed,
    "writes": ingest_archive.writes,
    "growth": ingest_archive.growth,
    "first": first_tile,
    "throughput": throughput,
    "remote": ingest_remote.remote,
    "memory": memory,
}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="*", choices=MEASURES, default=[])
    given = parser.parse_args()
    rows: list[Row] = []
    whole = False
    try:
        for name in given.only or MEASURES:
            with tempfile.TemporaryDirectory(prefix="skysift-bench-") as folder:
                rows += MEASURES[name](Path(folder), given.full)
        whole = not given.only
    finally:  # what was measured before a failure counts
        publish("ingest", rows, partial=not whole)


if __name__ == "__main__":
    main()
