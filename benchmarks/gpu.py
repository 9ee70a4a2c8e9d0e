"""What the GPUs of this machine do: gradients, training, FAISS and embedding.

    python -m benchmarks.gpu [--only PART ...] [--device cpu --workers 2 --small]

`make test-gpu` runs it where there is a GPU. ``--device cpu`` takes gloo and the cores for NCCL and
the GPUs, ``--small`` few rows: so the code of all parts runs where there is no GPU. Figures of a
GPU are kept in ``benchmarks/gpu.json``. Fine-tuning is measured by `benchmarks.finetune`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.ingest_world import encode_for, job, steady_rate, write_bundle, write_scenes
from benchmarks.measure import Row, publish, seconds, table
from benchmarks.training import MODELS, Size, ray_train, specification, write_dataset
from benchmarks.vectors import archive_of, clustered
from encoders.gather_check import TOLERANCE, check_gather
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from pipeline.training.spec import TrainingSpec
from workflows.doctor.facts import Facts, gather

LOSS, QUERIES, K = "macl", 200, 10
SAME_HITS, LEAST_GAIN, LEAST_SHARE = 0.99, 0.8, 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The device, the largest number of workers (one a GPU), and whether sizes are small."""

    device: Literal["cpu", "gpu"] = "gpu"
    workers: int = 1
    small: bool = False

    @property
    def network(self) -> str:
        """The library that workers exchange keys and gradients by."""
        return "NCCL" if self.device == "gpu" else "gloo"


def gradients(setting: Setting, folder: Path) -> Iterator[Row]:
    """Loss and gradient of keys gathered by 2 to N workers beside one process, in float64."""
    counts = range(2, setting.workers + 1)
    if not counts:
        print("gradients: skipped; two workers need two GPUs")
        return
    for found in check_gather(LOSS, workers=counts, device=setting.device):
        scale = max(1.0, found.largest_gradient, abs(found.loss))
        yield Row(
            what=f"{LOSS}, keys of {found.workers} workers by {setting.network}: largest "
            "difference of loss and gradient from one process, float64",
            ours=found.difference,
            unit="",
            ratio=found.difference / scale,
            goal=TOLERANCE,
            direction="at most",
        )


def training(setting: Setting, folder: Path) -> Iterator[Row]:
    """Images a second at 1 to N workers, and in bfloat16 beside float32."""
    model = MODELS[1] if setting.small else MODELS[0]
    size = Size(images=128, epochs=1) if setting.small else Size(images=8192, epochs=3)
    uri = str(folder / "noise")
    write_dataset(uri, size)
    counts = [n for n in range(1, setting.workers + 1) if TrainingSpec().batch_size % n == 0]
    specs = {n: replace(specification(model, size, n), device=setting.device) for n in counts}
    rates = {n: ray_train(uri, spec, folder / f"workers{n}") for n, spec in specs.items()}

    def row(kind: str, rate: float, against: str, goal: float | None = None) -> Row:
        return Row(
            what=f"training, {model.name}, {kind}",
            ours=rate,
            unit="images/s",
            peer=rates[1],
            against=against,
            ratio=rate / rates[1],
            goal=goal,
        )

    for count, rate in rates.items():
        goal = LEAST_GAIN * count if count > 1 else None
        yield row(f"{count} workers by {setting.network}, float32", rate, "one worker", goal)
    half = ray_train(uri, replace(specs[1], precision="bf16"), folder / "bf16")
    yield row("one worker, bfloat16", half, "float32")


def index(setting: Setting, folder: Path) -> Iterator[Row]:
    """Build and search with FAISS's GPUs in sight and out of sight, each in its own process."""
    rows = 20_000 if setting.small else 1_000_000
    archive = archive_of(folder / "archive", np.concatenate(list(clustered(rows))))
    found: dict[str, Any] = {}
    for kind in ("gpu", "cpu"):
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if "cpu" in (kind, setting.device) else {}
        output = folder / f"{kind}.npz"
        command = [sys.executable, "-m", "benchmarks.gpu", "--one-index", archive, str(output)]
        subprocess.run(command, env={**os.environ, **hidden}, check=True)
        found[kind] = np.load(output)
    own, peer = found["gpu"], found["cpu"]
    same = np.mean(
        [len(set(a) & set(b)) / K for a, b in zip(own["rows"], peer["rows"], strict=True)]
    )
    what = f"{rows:,} x 128, ivf_sq8"
    for part in ("build", "search"):
        yield Row(
            what=f"FAISS sees {int(own['gpus'])} GPUs: {part} of {what}",
            ours=float(own[part]),
            unit="s",
            peer=float(peer[part]),
            against="the same package on the CPU",
            ratio=float(own[part] / peer[part]),
        )
    yield Row(
        what=f"share of the CPU's {K} hits that the index of the GPU finds, {what}",
        ours=float(same),
        unit="",
        ratio=float(same),
        goal=SAME_HITS,
        note="Rows may change lists where two centres are equally near.",
    )


def one_index(archive: str, output: Path) -> None:
    """Build an index and search it in this process; keep seconds and hits."""
    with tempfile.TemporaryDirectory() as folder:
        spec = IndexSpec(kind="ivf_sq8", shards=1)
        build_s = seconds(lambda: build_index(archive, folder, spec))
        searcher, queries = Searcher.local(folder), np.concatenate(list(clustered(QUERIES)))
        searcher.search(queries, K)
        hits: list[Any] = []
        search_s = seconds(lambda: hits.append(searcher.search(queries, K)))
    found = hits[0].rows.reshape(QUERIES, K)
    gpus = Facts(**gather()).faiss_gpus or 0
    np.savez(output, build=build_s, search=search_s, rows=found, gpus=gpus)


def embedding(setting: Setting, folder: Path) -> Iterator[Row]:
    """Tiles a second of an ingest on Ray for each GPU, beside the encoder alone: who waits."""
    side, copies = (256, 24) if setting.small else (4096, 12)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = write_scenes(folder, copies, side, 256)
    bundle = write_bundle(folder / "bundle", 64, 8 if setting.small else None)
    tiles, took_s = encode_for(bundle, 1.0 if setting.small else 10.0)
    spec = job(str(Path(scenes[0]).parent / "*.tif"), bundle, folder / "embedded", 64)
    rate = steady_rate(spec) / setting.workers
    share = rate / (tiles / took_s)
    waits = "the encoder is busy" if share >= LEAST_SHARE else "the encoder waits for reading"
    yield Row(
        what=f"embedding on Ray, tiles/s for each of {setting.workers} {setting.device}s",
        ours=rate,
        unit="tiles/s",
        peer=tiles / took_s,
        against="the encoder alone, pixels in memory",
        ratio=share,
        goal=LEAST_SHARE,
        note=f"{waits[0].upper()}{waits[1:]}.",
    )


Part = Callable[[Setting, Path], Iterator[Row]]
PARTS: dict[str, Part] = {
    "gradients": gradients,
    "training": training,
    "index": index,
    "embedding": embedding,
}


def missing_gpu(on_cpu: str) -> str:
    """Return why the GPUs cannot be measured here; empty where they can.

    ``on_cpu`` are the options that run the same code without one.
    """
    if torch.cuda.is_available():
        return ""
    facts = Facts(**gather())
    seen = "; ".join(facts.gpus) or facts.gpu_fault or "nvidia-smi is not installed"
    return (
        f"no CUDA device: torch {torch.__version__} sees none ({seen}); `skysift doctor --gpus 1` "
        f"names what to repair, {on_cpu} runs the same code on the CPU"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and keep it where it is of a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--workers", type=int, help="largest number; the GPUs of this machine")
    parser.add_argument("--small", action="store_true", help="few rows: whether it runs at all")
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--one-index", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one_index:
        one_index(chosen.one_index[0], Path(chosen.one_index[1]))
        return 0
    if chosen.device == "gpu" and (reason := missing_gpu("--device cpu --workers 2 --small")):
        print(reason, file=sys.stderr)
        return 1
    workers = chosen.workers or max(1, torch.cuda.device_count())
    setting = Setting(device=chosen.device, workers=workers, small=chosen.small)
    rows: list[Row] = []
    with ray_session(), tempfile.TemporaryDirectory(prefix="skysift-gpu-") as folder:
        for name in chosen.only:
            print(f"== {name}", flush=True)
            part = list(PARTS[name](setting, Path(folder, name)))
            print(table(part), flush=True)
            rows += part
    if setting.device == "gpu" and not setting.small:
        publish("gpu", rows, partial=len(chosen.only) < len(PARTS))
    return int(any(row.met is False for row in rows)) if not setting.small else 0


if __name__ == "__main__":
    raise SystemExit(main())
