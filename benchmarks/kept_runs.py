"""Runs of a benchmark on labelled sets: several at once, each kept in a scratch folder."""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.results import ROOT
from benchmarks.results_page import rebuild_page

Part = TypeVar("Part")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of the options that every such benchmark has."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "results")
    parser.add_argument("--output", type=Path, default=ROOT, help="root of docs/ and benchmarks/")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    return parser


def kept(
    scratch: Path, name: str, settings: Sequence[Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the figures of a run and its ``seconds``, from the scratch folder if known there.

    ``settings`` are JSON values that tell the run from all others of its ``name``.
    """
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    record = scratch / f"{name}-{digest}.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    started = time.perf_counter()
    result = compute()
    result["seconds"] = time.perf_counter() - started
    record.write_text(json.dumps(result))
    print(settings[0], json.dumps(result), flush=True)
    return result


def run_all(
    run: Callable[[Part], dict[str, Any]], plan: Sequence[Part], jobs: int
) -> dict[Part, dict[str, Any]]:
    """Do every run of a plan, several at a time, with a thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return dict(zip(plan, pool.map(run, plan), strict=True))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation, 0 of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))


def columns_of(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and deviation of every figure of runs that differ by their seed."""
    names = [name for name in runs[0] if name != "seconds"]
    return {name: mean_and_deviation([run[name] for run in runs]) for name in names}


def seconds_of(runs: Iterable[Mapping[str, Any]]) -> float:
    """Return the time that runs took together."""
    return sum(run["seconds"] for run in runs)


def publish_section(name: str, result: Mapping[str, Any], output: Path) -> None:
    """Keep the figures of a benchmark and write the results page again."""
    folder = output / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    rebuild_page(output)
