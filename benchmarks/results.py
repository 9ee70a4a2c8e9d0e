"""Every loss on the real multi-label set, tuned alike, scored once on the test split.

    python -m benchmarks.results

reads the AID multi-label images (`AID_TAR`) and the frozen MobileNetV2 (`MOBILENET_V2`), by default
from ``../shared/data``, and writes ``docs/results.md``, ``docs/images/frontier.png`` and
``benchmarks/results.json``. Finished runs are kept in `--scratch`, so it can be stopped and started
again. Without the images it exits with a message.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_page import rebuild_page
from benchmarks.results_plan import (
    ABLATION,
    COLUMNS,
    DEFAULT,
    RIVAL,
    SEARCH,
    SHARED_SEARCH,
    Budget,
    exactness_runs,
    selection,
    trials,
    with_settings,
)
from benchmarks.results_runs import (
    Run,
    World,
    load_world,
    measure,
    score,
    score_random,
    seeds,
)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
_TOLD = ("loss", "options", "seed")
PARTS = ("exactness", "ablation", "search")
Spread = dict[str, tuple[float, float]]
Say = Callable[[str], None]


class Bench:
    """Runs the plan over a world, `jobs` runs at once, and collects the figures of the page."""

    def __init__(
        self, world: World, budget: Budget, scratch: Path, say: Say = print, jobs: int = 1
    ) -> None:
        self.world, self.budget, self.scratch, self.say = world, budget, scratch, say
        self.jobs, self.seconds = jobs, 0.0

    def tune(self) -> dict[str, dict[str, Any]]:
        """Return each loss's best run on the validation split, with its score and trials."""
        best: dict[str, dict[str, Any]] = {}
        self._ahead("val", [run for _, run in trials(self.budget)])
        for name, run in trials(self.budget):
            scores = self._measure(run, "val")
            found = best.setdefault(name, {"value": -np.inf, "trials": 0})
            found["trials"] += 1
            if selection(scores) > found["value"]:
                found |= {"run": run, "value": selection(scores), "scores": scores}
        return best

    def spread(self, run: Run) -> Spread:
        """Return mean and standard deviation of a run's test scores over the seeds."""
        found = [self._measure(seeded, "test") for seeded in seeds(run, self.budget.seeds)]
        return {
            name: (float(np.mean(values)), float(np.std(values, ddof=len(found) > 1)))
            for name in COLUMNS
            for values in [[scores[name] for scores in found]]
        }

    def results(self, parts: tuple[str, ...]) -> dict[str, Any]:
        """Run everything and return plain values for JSON."""
        base, tuned = self.budget.base, self.tune()
        plan = {
            f"{loss}, tuned" if loss == DEFAULT else loss: found["run"]
            for loss, found in tuned.items()
        } | {DEFAULT: base}
        dials = exactness_runs(base) if "exactness" in parts else {}
        parted = {
            name: with_settings(base, DEFAULT, settings)
            for name, settings in (ABLATION if "ablation" in parts else {}).items()
        }
        tested = [*plan.values(), *dials.values(), *parted.values()]
        self._ahead("test", [seeded for run in tested for seeded in seeds(run, self.budget.seeds)])
        result: dict[str, Any] = {
            "random": {k: (v, 0.0) for k, v in score_random(self.world, "test").items()},
            "frozen features": {
                k: (v, 0.0) for k, v in score(self.world, self.world.features_NF, "test").items()
            },
            "losses": {name: self.spread(run) for name, run in plan.items()},
            "tuned": {name: _described(found, base) for name, found in tuned.items()},
        }
        if dials:
            result["exactness"] = {str(value): self.spread(run) for value, run in dials.items()}
        if parted:
            result["ablation"] = {name: self.spread(run) for name, run in parted.items()}
        if "search" in parts:
            result["search"] = self.search(tuned)
        return result | {"budget": asdict(base), "seeds": self.budget.seeds}

    def search(self, tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Return validation scores of further settings of MACL and of its rival."""
        runs = {f"{DEFAULT}, default": self.budget.base}
        runs |= {
            f"{DEFAULT}, {name}": with_settings(self.budget.base, DEFAULT, settings)
            for name, settings in {**SEARCH, **SHARED_SEARCH}.items()
        }
        if RIVAL in tuned:
            best: Run = tuned[RIVAL]["run"]
            runs[f"{RIVAL}, tuned"] = best
            runs |= {
                f"{RIVAL}, tuned, {name}": with_settings(best, RIVAL, {**best.options, **settings})
                for name, settings in SHARED_SEARCH.items()
            }
        self._ahead("val", runs.values())
        return {name: self._measure(run, "val") for name, run in runs.items()}

    def _ahead(self, split: str, runs: Iterable[Run]) -> None:
        """Do the runs in processes beside each other; `_measure` then finds them done."""
        distinct = {run.digest(self.world, split): run for run in runs}.values()
        if self.jobs > 1:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(
                self.jobs, context, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                measured = partial(measure, split=split, scratch=self.scratch)
                for _ in pool.map(measured, repeat(self.world), distinct):
                    pass

    def _measure(self, run: Run, split: str) -> dict[str, float]:
        scores = measure(self.world, run, split, self.scratch)
        self.seconds += scores["seconds"]
        options = " ".join(f"{name}={value}" for name, value in run.options.items())
        figures = " ".join(f"{name} {scores[name]:.3f}" for name in COLUMNS)
        self.say(f"{split} {run.loss} seed {run.seed} {options}: {figures}")
        return scores


def _described(found: Mapping[str, Any], base: Run) -> dict[str, Any]:
    plain, usual = asdict(found["run"]), asdict(base)
    other = {name: value for name, value in plain.items() if value != usual[name]}
    return {
        "options": plain["options"] | {k: v for k, v in other.items() if k not in _TOLD},
        "trials": found["trials"],
        "validation": {name: found["scores"][name] for name in COLUMNS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "results")
    parser.add_argument("--output", type=Path, default=ROOT, help="root of docs/ and benchmarks/")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=Budget().seeds)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    chosen = parser.parse_args(arguments)
    images = Path(os.environ.get("AID_TAR", DATA / "aid_multilabel_150px.tar"))
    backbone = Path(
        os.environ.get("MOBILENET_V2", DATA / "weights" / "mobilenet_v2_imagenet_folded")
    )
    if missing := [str(path) for path in (images, backbone) if not path.exists()]:
        print(f"skipped: {' and '.join(missing)} not found; set AID_TAR and MOBILENET_V2")
        return 0
    torch.set_num_threads(1)
    started = time.perf_counter()
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    world = load_world(images, backbone, chosen.scratch)
    bench = Bench(world, replace(Budget(), seeds=chosen.seeds), chosen.scratch, jobs=chosen.jobs)
    result = bench.results(tuple(chosen.parts))
    result["seconds"] = {"runs": bench.seconds, "this call": time.perf_counter() - started}
    (chosen.output / "benchmarks").mkdir(parents=True, exist_ok=True)
    (chosen.output / "benchmarks" / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    rebuild_page(chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
