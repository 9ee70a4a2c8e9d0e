"""Fine-tuning: every weight of a small pretrained network, beside its head alone.

    python -m benchmarks.finetune [--epochs 15] [--sets AID] [--forms "head alone"]
    python -m benchmarks.finetune --device gpu

trains MobileNetV2 (`MOBILENET_V2`) with MACL on the multi-label images of AID (`AID_TAR`) and UC
Merced (`UCM_TAR`) as `skysift train` does, and writes ``benchmarks/finetune.json`` and a section of
``docs/results.md``. The CPU has a small budget: one seed and tiles of 128 px. ``--device gpu``
(`make results-gpu`) is the whole: as many workers as GPUs, bfloat16, tiles in their own size, three
seeds. The page has what is finished, which `--scratch` keeps; a stopped run goes on from its last
epoch.

The best epoch is chosen on the validation split; the test split is scored once a run, its queries
against the train and validation rows.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gpu import missing_gpu
from benchmarks.kept_runs import columns_of, kept, publish_section, seconds_of
from benchmarks.measure import machine
from benchmarks.results import ROOT
from benchmarks.soft_labels import SHARES, TILE_PX, labelled_sets
from encoders.bundle import load_encoder
from pipeline.analysis.evaluation import evaluate_labels, same_group_shares
from pipeline.datasets.embed import embed_images
from pipeline.datasets.folder import import_folder
from pipeline.runtime.cluster import ray_session
from pipeline.training.driver import baseline_bundle, train
from pipeline.training.spec import TrainingSpec
from storage.dataset import LabelledDataset, searched_splits
from storage.values import json_digest

COLUMNS = ("nDCG@50", "rare mAP", "Jaccard@10", "same scene@10")
FROZEN, EVERY = "frozen features", "every weight"
_RATE, _BATCH = 1e-3, 128
FORMS: Mapping[str, Mapping[str, Any]] = {
    EVERY: {},
    "head alone": {"freeze_backbone": True},
    FROZEN: {},
    "every weight, one rate": {"backbone_learning_rate": _RATE},
    "every weight, float32": {"precision": "fp32"},
}
"""Forms and what each changes; the last only where the others are trained in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The device and the effort: epochs, seeds, workers; ``tile_px`` None for each set's own."""

    device: Literal["cpu", "gpu"]
    epochs: int
    seeds: int
    workers: int = 1
    tile_px: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms to train."""
        return tuple(FORMS) if self.device == "gpu" else tuple(FORMS)[:-1]

    def spec(self, backbone: Path) -> TrainingSpec:
        """Return the settings that all forms share."""
        on_gpu = self.device == "gpu"
        return TrainingSpec(
            backbone="mobilenet_v2",
            pretrained=str(backbone),
            epochs=self.epochs,
            batch_size=_BATCH,
            learning_rate=_RATE,
            eval_every=min(3, self.epochs),
            device=self.device,
            workers=self.workers,
            precision="bf16" if on_gpu else "fp32",
            chunk_rows=0 if on_gpu else 32,  # a small chunk fits into the caches of a core
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One training: its set, form and seed."""

    set: str
    form: str
    seed: int


def plan(sets: Sequence[str], forms: Sequence[str], seeds: int) -> list[Part]:
    """Return all trainings, the default of each set first."""
    return [
        Part(set=name, form=form, seed=seed)
        for form in forms
        for name in sets
        for seed in range(1 if form == FROZEN else seeds)
    ]


def figures(dataset: str, spec: TrainingSpec, form: str, folder: Path) -> dict[str, float]:
    """Train a form and return the test scores of its best epoch."""
    if form == FROZEN:
        baseline_bundle(dataset, spec, str(folder / "bundle"))
        return scores(dataset, str(folder / "bundle"))
    result = train(dataset, spec, str(folder))
    return {**scores(dataset, result.bundle_uri), "best epoch": result.best_epoch}


def scores(dataset_uri: str, bundle: str) -> dict[str, float]:
    """Return the columns of an encoder: test queries against train and validation rows."""
    dataset = LabelledDataset.open(dataset_uri)
    encoder = load_encoder(bundle, None)
    queries = dataset.indices("test")
    items = dataset.indices(*searched_splits("test"))
    z_QD, z_ND = (embed_images(encoder, dataset, rows) for rows in (queries, items))
    counts_C = dataset.labels[dataset.indices("train")].sum(0)
    found = evaluate_labels(
        z_QD,
        dataset.labels[queries],
        z_ND,
        dataset.labels[items],
        dataset.classes,
        rare_counts=counts_C,
    )
    group_N = dataset.rows["group"]
    same_Q = same_group_shares(z_QD, group_N[queries], z_ND, group_N[items], 10)
    columns = {**found.metrics, "same scene@10": float(same_Q.mean())}
    return {name: columns[name] for name in COLUMNS}


def run(part: Part, dataset: str, spec: TrainingSpec, scratch: Path) -> dict[str, Any]:
    """Return the figures of a training, from the scratch folder if they are known there."""
    told = f"{part.set}, {part.form}, seed {part.seed}"
    spec = replace(spec, seed=part.seed, **FORMS[part.form])
    settings = [told, asdict(spec), LabelledDataset.open(dataset).info.digest]
    folder = scratch / "runs" / json_digest(settings)[:16]
    compute = partial(figures, dataset, spec, part.form, folder)
    return kept(scratch, "finetune", settings, compute)


def collected(found: Mapping[Part, Mapping[str, Any]], budget: Budget) -> dict[str, Any]:
    """Return mean and deviation of every column over the seeds, by set and form."""
    tables: dict[str, Any] = {}
    for part in found:
        runs = [v for p, v in found.items() if (p.set, p.form) == (part.set, part.form)]
        tables.setdefault(part.set, {})[part.form] = {
            **columns_of(runs),
            "minutes": sum(run["seconds"] for run in runs) / 60 / len(runs),
        }
    return {
        "sets": tables,
        "budget": asdict(budget),
        "seconds": seconds_of(found.values()),
        "machine": machine(),
    }


def budget_of(chosen: argparse.Namespace) -> Budget:
    """Return the budget: what the options say, else that of the device.

    Workers share a batch evenly, so there may be fewer than GPUs.
    """
    on_gpu = chosen.device == "gpu"
    most = chosen.workers or (max(1, torch.cuda.device_count()) if on_gpu else 1)
    workers = max(n for n in range(1, most + 1) if _BATCH % n == 0)
    return Budget(
        device=chosen.device,
        epochs=chosen.epochs or (60 if on_gpu else 15),
        seeds=chosen.seeds or (3 if on_gpu else 1),
        workers=workers,
        tile_px={name: TILE_PX.get(name) if on_gpu else 128 for name in chosen.sets},
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--workers", type=int, help="default: one a GPU, one on CPUs")
    parser.add_argument("--sets", nargs="*", choices=tuple(SHARES), default=tuple(SHARES))
    parser.add_argument("--forms", nargs="*", choices=tuple(FORMS), help="default: all")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "finetune")
    parser.add_argument("--output", type=Path, default=ROOT, help="root of docs/ and benchmarks/")
    chosen = parser.parse_args(arguments)
    if chosen.device == "gpu" and (reason := missing_gpu("--device cpu")):
        print(reason, file=sys.stderr)
        return 1
    if (sources := labelled_sets(chosen.sets)) is None:
        return 0
    images, backbone = sources
    budget = budget_of(chosen)
    datasets = {}
    for name, source in images.items():
        px = budget.tile_px[name]
        datasets[name] = str(chosen.scratch / f"{name} {px or 'own'}")
        import_folder(str(source), datasets[name], tile_px=px)
    spec = budget.spec(backbone)
    found: dict[Part, dict[str, Any]] = {}
    with ray_session():
        for part in plan(chosen.sets, chosen.forms or budget.forms, budget.seeds):
            found[part] = run(part, datasets[part.set], spec, chosen.scratch)
            publish_section("finetune", collected(found, budget), chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
