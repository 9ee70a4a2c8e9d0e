"""Speed of a loss step beside pytorch-metric-learning's SupCon, and the cost of chunking.

    python -m benchmarks.losses [--rows 2048 8192 32768]

The step (forward and backward, B = 1,024, D = 128, 17 labels, float32) is measured in turns, so
that other work on the machine touches both alike; the median of the ratios of neighbours counts.
Memory is the growth of the peak of a fresh process around one step.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch
from pytorch_metric_learning.losses import SupConLoss  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import Row, in_turns, publish
from encoders.losses import LabelStatistics, build_loss, loss_names
from encoders.losses.core import CHUNK_PAIRS

BATCH, DIMENSION, LABELS = 1024, 128, 17
LIMIT = 1.2  # times the step of pytorch-metric-learning's SupCon
_MIB = 1024  # ru_maxrss counts KiB


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, LabelStatistics]:
    """Return unit vectors (rows, D), long-tailed labels (rows, C) and the statistics of a few."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, LABELS)) < np.geomspace(0.7, 0.01, LABELS)).astype(np.uint8)
    z = normalize(torch.from_numpy(rng.standard_normal((rows, DIMENSION), np.float32)))
    return z, torch.from_numpy(labels), LabelStatistics.from_labels(labels[:256])


def step(loss: Callable[[Tensor], Tensor], z_BD: Tensor) -> float:
    """Return the seconds of one forward and backward pass."""
    leaf = z_BD.clone().requires_grad_()
    started = time.perf_counter()
    loss(leaf).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def step_row(name: str, turns: int, rows: int = BATCH) -> Row:
    """Return a loss's step beside SupCon's."""
    z_BD, y_BC, counts = batch(rows)
    loss = build_loss(name, counts, dimension=DIMENSION)
    ours, theirs = partial(_of, loss, y_BC), partial(_of, SupConLoss(), torch.arange(rows) % LABELS)
    own, other, ratio = in_turns(partial(step, ours, z_BD), partial(step, theirs, z_BD), turns)
    return Row(
        what=f"loss {name}: a step of {rows:,} x {DIMENSION}, {LABELS} labels",
        ours=1e3 * own,
        peer=1e3 * other,
        unit="ms",
        against="SupCon of pytorch-metric-learning",
        ratio=ratio,
        goal=LIMIT,
        direction="at most",
    )


def memory_row(rows: int) -> Row:
    """Return the peak growth of one step of the default loss beside one full matrix of pairs."""
    found = memory(rows)
    full = 4 * rows * rows / 2**20
    return Row(
        what=f"loss macl: peak memory of a step of {rows:,} rows ({found['seconds']:.1f} s)",
        ours=found["peak_mib"],
        peer=full,
        unit="MiB",
        against="one matrix of all pairs",
        ratio=found["peak_mib"] / full,
        note=f"rows in chunks of {CHUNK_PAIRS:,} pairs, evaluated once more in the backward pass",
    )


def _of(loss: Callable[[Tensor, Tensor], Tensor], y: Tensor, z: Tensor) -> Tensor:
    return loss(z, y)


def memory(rows: int, name: str = "macl") -> dict[str, float]:
    """Return seconds and MiB of peak growth of one step, measured in a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_one_step, args=(rows, name, sender)
    )
    process.start()
    sender.close()
    found: dict[str, float] = receiver.recv()
    process.join()
    return found


def _one_step(rows: int, name: str, sender: Connection) -> None:
    torch.set_num_threads(1)
    z_BD, y_BC, counts = batch(rows)
    loss = build_loss(name, counts, dimension=DIMENSION)
    step(lambda z: loss(z, y_BC[:64]), z_BD[:64])  # libraries are loaded before the count starts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = step(lambda z: loss(z, y_BC), z_BD)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sender.send({"rows": rows, "seconds": seconds, "peak_mib": grown / _MIB})


def main(arguments: list[str] | None = None) -> int:
    """Publish the measurements; exit code 1 when the default loss is too slow."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--losses", nargs="*", default=list(loss_names()))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="*", default=[2048, 8192, 32768])
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    steps = {name: step_row(name, chosen.turns) for name in chosen.losses}
    publish("losses", [*steps.values(), *(memory_row(rows) for rows in chosen.rows)])
    return int("macl" in steps and not steps["macl"].met)


if __name__ == "__main__":
    raise SystemExit(main())
