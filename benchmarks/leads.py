"""How sure MACL's lead is: equal effort of tuning for the strongest losses, and other splits.

    python -m benchmarks.leads

reads AID, UC Merced and the choice of `benchmarks.dial` (``benchmarks/dial.json``), and writes
``benchmarks/leads.json`` and a section of ``docs/results.md``. Features, heads and finished runs
are kept in `--scratch`.

Tuning: each loss of `RANGES` gets `TRIALS` settings, drawn at random with a fixed seed, one seed of
training, AID's validation split; the one with the largest sum of nDCG@50 and rare mAP is scored on
the test split. Other splits: each scene class keeps its own numbers of train, validation and test
rows, and which of its rows they are is drawn at random.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.dial_scores import ALIKE, COVERAGE, Form, by_labels, twins, vectors
from benchmarks.dial_world import BASELINES, LOSSES, SETS, Table, table_of
from benchmarks.kept_runs import (
    kept,
    mean_and_deviation,
    parser_of,
    publish_section,
    run_all,
    seconds_of,
)
from benchmarks.results import ROOT
from benchmarks.results_plan import COLUMNS, DEFAULT, selection, with_settings
from benchmarks.results_runs import Run, World, measure, seeds
from benchmarks.soft_labels import load_worlds
from pipeline.analysis.intervals import plain_mean

Draw = Callable[[np.random.Generator], Any]
TUNED_ON = "AID"
TRIALS, SPLITS = 24, 5
SHOWN = (*COVERAGE, *ALIKE)
_FIRST_SEED = 70
_CONFIDENCE = 0.95


def _between(low: float, high: float) -> Draw:
    return lambda rng: round(float(rng.uniform(low, high)), 3)


def _by_factor(low: float, high: float) -> Draw:
    return lambda rng: float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def _of(*values: float) -> Draw:
    return lambda rng: values[rng.integers(len(values))]


_COMMON: Mapping[str, tuple[str, Draw]] = {
    "learning_rate": ("3e-4 to 3e-3 (logarithmic)", _by_factor(3e-4, 3e-3)),
    "batch_size": ("128, 256 or 512", _of(128, 256, 512)),
    "sampling_power": ("0, 0.5 or 1", _of(0.0, 0.5, 1.0)),
}
RANGES: Mapping[str, Mapping[str, tuple[str, Draw]]] = {
    DEFAULT: {
        "temperature": ("0.04 to 0.2 (logarithmic)", _by_factor(0.04, 0.2)),
        "beta": ("0.5 to 3", _between(0.5, 3)),
        "discount": ("0.1 to 1 (logarithmic)", _by_factor(0.1, 1)),
        "alpha": ("-0.3 to 0.3", _between(-0.3, 0.3)),
        "gamma": ("-2 to 1", _between(-2, 1)),
        **_COMMON,
    },
    "mulsupcon, falling temperature": {
        "temperature": ("0.05 to 0.5 (logarithmic)", _by_factor(0.05, 0.5)),
        "temperature_end": ("0.04 to 0.15 (logarithmic)", _by_factor(0.04, 0.15)),
        **_COMMON,
    },
}
"""Ranges of each loss, as text and as draws; the loss is the name up to a comma."""


def drawn(name: str, trials: int = TRIALS) -> list[Run]:
    """Return the random settings of a loss as runs, the same at each call."""
    rng = np.random.default_rng(_FIRST_SEED)
    loss = name.partition(",")[0]
    return [
        with_settings(Run(loss=DEFAULT), loss, {s: draw(rng) for s, (_, draw) in ranges.items()})
        for ranges in [RANGES[name]] * trials
    ]


def scored(
    world: World, scratch: Path, split: str, runs: Sequence[Run], jobs: int
) -> list[dict[str, float]]:
    """Return the scores of runs on a split, several runs at a time."""
    numbers = range(len(runs))
    return [*run_all(partial(_measured, world, scratch, split, runs), numbers, jobs).values()]


def _measured(
    world: World, scratch: Path, split: str, runs: Sequence[Run], number: int
) -> dict[str, float]:
    return measure(world, runs[number], split, scratch)


def search(
    world: World, scratch: Path, count: int, jobs: int, trials: int = TRIALS
) -> tuple[dict[str, Any], float]:
    """Return each loss's best of the settings drawn, with its test scores, and the seconds."""
    plan = {name: drawn(name, trials) for name in RANGES}
    validated = scored(world, scratch, "val", [r for runs in plan.values() for r in runs], jobs)
    found: dict[str, Any] = {}
    for name, scores in zip(plan, np.reshape(validated, (len(plan), trials)), strict=True):
        best = int(np.argmax([selection(each) for each in scores]))
        settings = asdict(plan[name][best])
        found[name] = {
            "ranges": {setting: told for setting, (told, _) in RANGES[name].items()},
            "chosen": {s: (settings | settings["options"])[s] for s in RANGES[name]},
            "validation": {column: scores[best][column] for column in COVERAGE},
            "run": settings,
        }
    runs = {name: Run(**one["run"]) for name, one in found.items()}
    runs[f"{DEFAULT}, default"] = LOSSES[DEFAULT]
    tested = scored(
        world, scratch, "test", [s for r in runs.values() for s in seeds(r, count)], jobs
    )
    for name, scores in zip(runs, np.reshape(tested, (len(runs), count)), strict=True):
        found.setdefault(name, {})["test"] = {
            column: mean_and_deviation([each[column] for each in scores]) for column in COLUMNS
        }
    return found, seconds_of([*validated, *tested])


def resplit(table: Table, number: int) -> Table:
    """Return a table whose rows have other splits, in each scene class as many as before."""
    rng = np.random.default_rng(_FIRST_SEED + number)
    split_N = table.split_N.copy()
    for name in dict.fromkeys(table.set_N):
        for group in sorted(set(table.group_N[table.rows(name)])):
            rows = np.flatnonzero((table.set_N == name) & (table.group_N == group))
            split_N[rows] = rng.permutation(split_N[rows])
    return replace(table, split_N=split_N)


def split_scores(table: Table, scratch: Path, part: tuple[str, int, Form]) -> dict[str, Any]:
    """Return the columns of a form on one of the other splits of a set, one seed of training."""
    name, number, form = part
    run = LOSSES[form.base]

    def compute() -> dict[str, Any]:
        other = resplit(table, number)
        found = by_labels(other, vectors(other, scratch, form, name, 0), name, "test")
        near = int(twins(other, name, "test").sum())
        return {column: plain_mean(values) for column, values in found.items()} | {"twins": near}

    told = f"{name}, split {number}, {form.name}"
    return kept(
        scratch, "leads", [told, asdict(run), asdict(form), table.digest, table.epochs], compute
    )


def forms(choice: Mapping[str, Any]) -> list[Form]:
    """Return the vectors that are scored on the other splits: ours alone, baselines, the dial's."""
    blended = Form(base=choice["loss"], width=choice["appearance"], weight=choice["blend"])
    return [*(Form(base=name) for name in (DEFAULT, *BASELINES)), blended]


def compared(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return the rows by mean and deviation, and the leads of ours over each baseline."""
    others = [name for name in rows if name.startswith("mulsupcon")]
    return {
        "rows": {
            name: {c: mean_and_deviation([run[c] for run in runs]) for c in SHOWN}
            for name, runs in rows.items()
        },
        "leads": {
            name: {
                other: {
                    c: spread([a[c] - b[c] for a, b in zip(runs, rows[other], strict=True)])
                    for c in SHOWN
                }
                for other in others
            }
            for name, runs in rows.items()
            if name not in others
        },
        "twins": [int(run["twins"]) for run in rows[others[0]]],
    }


def spread(gaps: Sequence[float]) -> dict[str, float]:
    """Return the mean of differences, its 95 % interval by Student's t, the least and largest.

    Examples
    --------
    >>> found = spread([0.25, 0.25, 0.25])
    >>> found["mean"], found["low"], found["high"], found["least"]
    (0.25, 0.25, 0.25, 0.25)
    """
    mean, deviation = mean_and_deviation(gaps)
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(gaps) - 1))
    half = quantile * deviation / len(gaps) ** 0.5
    ends = {"low": mean - half, "high": mean + half, "least": min(gaps), "largest": max(gaps)}
    return {"mean": mean, **ends}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--sets", nargs="*", choices=SETS, default=[TUNED_ON], help="sets of new splits"
    )
    options = parser.parse_args(arguments)
    worlds = load_worlds(options.scratch, SETS)
    if worlds is None:
        return 0
    found, spent = search(worlds[TUNED_ON], options.scratch, options.seeds, options.jobs)
    table = table_of(worlds, {}, options.scratch)
    choice = json.loads((ROOT / "benchmarks/dial.json").read_text())["validation"]["settings"][0]
    plan = [
        (name, number, form)
        for name in options.sets
        for form in forms(choice)
        for number in range(SPLITS)
    ]
    done = run_all(partial(split_scores, table, options.scratch), plan, options.jobs)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in options.sets}
    for (name, _, form), scores in done.items():
        rows[name].setdefault(form.name, []).append(scores)
    result = {
        "search": found,
        "trials": TRIALS,
        "splits": {name: compared(of) for name, of in rows.items()},
        "seeds": options.seeds,
        "seconds": spent + seconds_of(done.values()),
    }
    publish_section("leads", result, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
