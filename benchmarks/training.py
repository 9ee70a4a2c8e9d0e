"""Images per second of Ray Train workers, beside bare PyTorch loops on the same model and data.

    python -m benchmarks.training [--full]

One worker is compared with a loop that a person would write (no Ray, no process group, no
checkpoints), two workers with one, and that gain with what two bare loops at once gain on the same
cores: memory bandwidth leaves no program more. All of them take turns; the first epoch of each run
warms up and does not count. Every process has one thread.

Two models: a vision transformer, bound by its matrix products, and the small CNN, bound by memory
and by the exchanges of batch norm.
"""

import argparse
import csv
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, publish
from encoders.augment import Augmentation, row_generators
from encoders.loop import TrainingLoop
from encoders.losses import LabelStatistics, build_loss
from pipeline.runtime.cluster import ray_session
from pipeline.training.driver import train
from pipeline.training.spec import TrainingJob, TrainingSpec
from pipeline.training.worker import TrainingWorker, initial_encoder
from storage.dataset import LabelledDataset, read_info
from storage.dataset_writer import DatasetWriter
from storage.location import Location

BANDS, LABELS = ("red", "green", "blue", "nir"), 17
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much is measured: images, their side, epochs that count, and turns."""

    images: int
    tile_px: int = 64
    epochs: int = 3
    turns: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The trained network; ``two_workers`` is the required gain of a second worker, if any."""

    name: str
    backbone: str
    options: Mapping[str, Any]
    size: Size
    full: Size
    two_workers: float | None = None


MODELS = (
    Model(
        name="vision transformer of 1.4 M weights, 257 tokens",
        backbone="vit",
        options={
            "config": {
                "hidden_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "intermediate_size": 768,
                "image_size": 64,
                "patch_size": 4,
            }
        },
        size=Size(images=256, epochs=2, turns=5),
        full=Size(images=512, epochs=3, turns=7),
        two_workers=1.8,
    ),
    Model(
        name="tiny-cnn",
        backbone="tiny-cnn",
        options={"width": 32},
        size=Size(images=768),
        full=Size(images=4096, epochs=5, turns=5),
    ),
)


def specification(model: Model, size: Size, workers: int = 1) -> TrainingSpec:
    """Return the run that is measured: MACL, augmentation, a global batch of 128."""
    return TrainingSpec(
        backbone=model.backbone,
        backbone_options=model.options,
        epochs=size.epochs + 1,
        eval_rows=64,
        workers=workers,
        device="cpu",
    )


def write_dataset(uri: str, size: Size) -> None:
    """Write noise with long-tailed labels, half of the rows again as validation."""
    rng = np.random.default_rng(0)
    count = size.images + 32
    labels = (rng.random((count, LABELS)) < np.geomspace(0.7, 0.02, LABELS)).astype(np.uint8)
    labels[labels.sum(1) == 0, 0] = 1
    shape = (count, len(BANDS), size.tile_px, size.tile_px)
    images = rng.integers(0, 4000, shape, np.uint16)
    classes = [f"label-{number}" for number in range(LABELS)]
    splits = ["train"] * size.images + ["val"] * 32
    with DatasetWriter(uri, bands=BANDS, classes=classes) as writer:
        rows = {"source": [str(row) for row in range(count)], "split": splits}
        writer.append(images, labels, rows)
        writer.finish()


def ray_train(uri: str, spec: TrainingSpec, folder: Path) -> float:
    """Return the median images/s of a run's epochs."""
    result = train(uri, spec, str(folder))
    with Path(result.history_csv).open() as stream:
        rates = [float(row["images_per_s"]) for row in csv.DictReader(stream)]
    return statistics.median(rates[1:])


def bare_loops(uri: str, spec: TrainingSpec, processes: int) -> float:
    """Return images/s of parallel bare loops, each in a process with its share of a batch.

    They share nothing but the machine.
    """
    spec = replace(spec, batch_size=spec.batch_size // processes)
    barrier = _SPAWN.Barrier(processes)
    receiver, sender = _SPAWN.Pipe(duplex=False)
    running = [
        _SPAWN.Process(target=_bare_process, args=(uri, spec, processes, barrier, sender))
        for _ in range(processes)
    ]
    for process in running:
        process.start()
    rates = [receiver.recv() for _ in running]
    for process in running:
        process.join()
    return float(sum(rates))


def _bare_process(uri: str, spec: TrainingSpec, share: int, barrier: Any, sender: Any) -> None:
    torch.set_num_threads(1)
    epochs = _bare_loop(LabelledDataset.open(uri), spec, share)
    next(epochs)  # warms up
    rates = []
    for _ in range(spec.epochs - 1):
        barrier.wait()
        rates.append(next(epochs))
    sender.send(statistics.median(rates))


def _bare_loop(dataset: LabelledDataset, spec: TrainingSpec, share: int) -> Iterator[float]:
    """Train, and yield images/s after each epoch over one ``share``-th of the images."""
    rows = dataset.indices("train")
    encoder = initial_encoder(dataset, spec)
    loss = build_loss(
        spec.loss, LabelStatistics.from_labels(dataset.labels[rows]), dimension=spec.dimension
    )
    weights = [*encoder.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    augment = Augmentation()
    encoder.train()
    while True:
        order = np.random.default_rng(0).permutation(rows)[: len(rows) // share]
        batches = np.split(order, len(order) // spec.batch_size)
        started = time.perf_counter()
        for batch in batches:
            x = torch.from_numpy(dataset.images[np.sort(batch)])
            y = torch.from_numpy(dataset.labels[np.sort(batch)])
            optimizer.zero_grad(set_to_none=True)
            generators = row_generators(0, 0, range(len(x)))
            z = encoder.project(encoder.backbone(augment(encoder.normalise(x), generators)))
            loss(z, y).backward()
            torch.nn.utils.clip_grad_norm_(weights, spec.gradient_clip)
            optimizer.step()
        yield len(order) / (time.perf_counter() - started)


class _WaitTimed(TrainingLoop):
    """The worker's own loop; it adds up the seconds in which no batch was ready."""

    waited_s = 0.0

    def _prefetched(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = super()._prefetched(start)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def waiting_share(uri: str, spec: TrainingSpec) -> float:
    """Return the share of an epoch's time in which the worker waited for data."""
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_wait_process, args=(uri, spec, sender))
    process.start()
    share: float = receiver.recv()
    process.join()
    return share


def _wait_process(uri: str, spec: TrainingSpec, sender: Any) -> None:
    torch.set_num_threads(1)
    digest = read_info(uri).digest
    worker = TrainingWorker(
        TrainingJob(
            dataset=Location(uri), dataset_digest=digest, spec=spec, output=Location("unused")
        )
    )
    data = worker._loop().data
    loop = _WaitTimed(worker.encoder, worker.loss, data, spec)
    shares = []
    for _ in range(spec.epochs):
        loop.waited_s, started = 0.0, time.perf_counter()
        for _ in loop.run_epoch():
            pass
        shares.append(loop.waited_s / (time.perf_counter() - started))
    sender.send(statistics.median(shares[1:]))


def measure(model: Model, size: Size, folder: Path) -> list[Row]:
    """Return the rows of one model; needs a running Ray."""
    uri = str(folder / "dataset")
    write_dataset(uri, size)
    one, two = specification(model, size), specification(model, size, workers=2)
    turns: list[dict[str, float]] = []
    for number in range(size.turns):
        turns.append(
            {
                "ray_one": ray_train(uri, one, folder / f"one-{number}"),
                "bare_one": bare_loops(uri, one, 1),
                "ray_two": ray_train(uri, two, folder / f"two-{number}"),
                "bare_two": bare_loops(uri, two, 2),
            }
        )
        print({name: round(value, 1) for name, value in turns[-1].items()}, flush=True)
    return _rows(model, turns, waiting_share(uri, one), size)


def _rows(model: Model, turns: Sequence[dict[str, float]], waiting: float, size: Size) -> list[Row]:
    def median(name: str) -> float:
        return statistics.median(turn[name] for turn in turns)

    def ratio(above: str, below: str) -> float:
        return statistics.median(turn[above] / turn[below] for turn in turns)

    what = f"{model.name}, {len(BANDS)} bands of {size.tile_px} px, MACL, global batch 128"
    limit = ratio("bare_two", "bare_one")
    gain = ratio("ray_two", "ray_one")
    return [
        Row(
            what=f"One Ray Train worker: {what}",
            ours=median("ray_one"),
            peer=median("bare_one"),
            unit="images/s",
            against="bare PyTorch loop",
            ratio=ratio("ray_one", "bare_one"),
            goal=0.95,
            note="Training steps; the evaluation after an epoch is left out on both sides.",
        ),
        Row(
            what=f"Two Ray Train workers beside one: {what}",
            ours=median("ray_two"),
            peer=median("ray_one"),
            unit="images/s",
            against="one worker",
            ratio=gain,
            goal=model.two_workers,
            note=f"Two bare loops at once, which share nothing, make {limit:.2f} times one.",
        ),
        Row(
            what=f"Two Ray Train workers beside two bare loops at once: {what}",
            ours=median("ray_two"),
            peer=median("bare_two"),
            unit="images/s",
            against="two bare loops",
            ratio=ratio("ray_two", "bare_two"),
            note="The cost of exchanging keys, gradients and (CNN) the moments of batch norm.",
        ),
        Row(
            what=f"Waiting for data, share of the steps' time of one worker: {model.name}",
            ours=100 * waiting,
            unit="%",
            ratio=waiting,
            goal=0.02,
            direction="at most",
            note="The next batch is read from a memory map while one is trained on.",
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="more images, epochs and turns")
    parser.add_argument("--model", choices=[model.backbone for model in MODELS])
    chosen = parser.parse_args(arguments)
    rows: list[Row] = []
    with ray_session(cpus=2), tempfile.TemporaryDirectory(prefix="skysift-bench-") as folder:
        for model in MODELS:
            if chosen.model in (None, model.backbone):
                place = Path(folder, model.backbone)
                rows += measure(model, model.full if chosen.full else model.size, place)
    publish("training", rows, partial=chosen.model is not None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
