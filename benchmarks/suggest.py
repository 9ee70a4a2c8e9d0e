"""Which rows to label: drawn at random, by coverage of the features, or those in most doubt.

    python -m benchmarks.suggest

reads the images of `benchmarks.soft_labels` and writes ``benchmarks/suggest.json`` and a section of
``docs/results.md``. Features and finished runs are kept in `--scratch`.

The first 2 % of the train rows are drawn at random and have labels; each strategy chooses the rows
up to 10 %. Doubt is measured by the entropy of a logistic regression, fitted again after every 2 %.
A head is then trained on these rows alone, and with probabilities for the labels of all others.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.kept_runs import (
    columns_of,
    kept,
    mean_and_deviation,
    parser_of,
    publish_section,
    run_all,
    seconds_of,
)
from benchmarks.results_runs import World
from benchmarks.soft_labels import COLUMNS, SHARES, load_worlds, scored
from encoders.projection import half_whitened
from pipeline.datasets.coverage import covering_rows
from pipeline.datasets.soft_labels import f1_scores, logistic_scores, soft_labels
from pipeline.datasets.spec import SoftLabelSpec
from pipeline.training.head import learned_vectors

START, SHARE = 0.02, 0.1
RANDOM = "at random"
_DIRECTIONS, _FIRST_SEED = 128, 70
_SOFT = SoftLabelSpec(directions=(_DIRECTIONS,))
Rows = NDArray[np.int64]
Choose = Callable[[NDArray[np.float32], NDArray[np.uint8], Rows, Rows, int, int], Rows]


def at_random(x_ND: Any, y_NC: Any, known: Rows, others: Rows, count: int, seed: int) -> Rows:
    """Choose uniformly."""
    rng = np.random.default_rng(seed)
    chosen: Rows = rng.choice(others, count, replace=False)
    return chosen


def by_coverage(x_ND: Any, y_NC: Any, known: Rows, others: Rows, count: int, seed: int) -> Rows:
    """Choose by `pipeline.datasets.coverage.covering_rows`, as `skysift dataset suggest` does."""
    return others[covering_rows(x_ND[others], x_ND[known], count)]


def by_distance(x_ND: Any, y_NC: Any, known: Rows, others: Rows, count: int, seed: int) -> Rows:
    """Choose the row that is farthest from all chosen ones, again and again (k-centre)."""
    candidates_ND = x_ND[others]
    nearest_N = (candidates_ND @ x_ND[known].T).max(axis=1)
    chosen: list[int] = []
    while len(chosen) < count:
        row = int(nearest_N.argmin())
        chosen.append(row)
        np.maximum(nearest_N, candidates_ND @ candidates_ND[row], out=nearest_N)
        nearest_N[row] = np.inf
    return others[chosen]


def by_entropy(x_ND: Any, y_NC: Any, known: Rows, others: Rows, count: int, seed: int) -> Rows:
    """Choose the rows whose labels a logistic regression is least sure of, in rounds."""
    chosen, each = known, max(1, round(count * START / (SHARE - START)))
    while len(chosen) < len(known) + count:
        rest = np.setdiff1d(others, chosen)
        p = expit(logistic_scores(x_ND[chosen], y_NC[chosen], x_ND[rest])).clip(1e-6, 1 - 1e-6)
        doubt = -(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(1)
        most = min(each, len(known) + count - len(chosen))
        chosen = np.concatenate([chosen, rest[np.argsort(-doubt, kind="stable")[:most]]])
    return chosen[len(known) :]


STRATEGIES: dict[str, Choose] = {
    RANDOM: at_random,
    "coverage": by_coverage,
    "k-centre": by_distance,
    "entropy": by_entropy,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One run: a set, a seed, a strategy, and whether the other rows get probabilities."""

    world: str
    seed: int
    strategy: str
    soft: bool
    steps: int = 360


def figures(world: World, part: Part) -> dict[str, float]:
    """Return the scores of a run."""
    train, y_NC = world.rows("train"), world.labels_NC
    rng = np.random.default_rng(_FIRST_SEED + part.seed)
    known: Rows = np.sort(rng.choice(train, round(START * len(train)), replace=False))
    white_ND = np.zeros((len(y_NC), _DIRECTIONS), np.float32)
    white_ND[train] = half_whitened(world.features_NF[train], _DIRECTIONS)
    count = round(SHARE * len(train)) - len(known)
    others = np.setdiff1d(train, known)
    more = STRATEGIES[part.strategy](white_ND, y_NC, known, others, count, part.seed)
    labelled = np.concatenate([known, more])
    learned = partial(learned_vectors, world.features_NF, seed=part.seed, steps=part.steps)
    if not part.soft:
        return scored(world, learned(labelled, y_NC[labelled]))
    others = np.setdiff1d(train, labelled)
    rows = np.concatenate([labelled, others])
    soft = soft_labels(world.features_NF[rows], y_NC[labelled], _SOFT)
    vectors = learned(rows, np.concatenate([y_NC[labelled], soft]).astype(np.float32))
    return {**scored(world, vectors), "F1": f1_scores(soft >= 0.5, y_NC[others])[0]}


def run(worlds: dict[str, World], scratch: Path, part: Part) -> dict[str, Any]:
    """Return the figures of a run, from the scratch folder if it is known there."""
    world = worlds[part.world]
    settings = [asdict(part), world.digest, START, SHARE]
    return kept(scratch, "suggest", settings, partial(figures, world, part))


def collected(found: dict[Part, dict[str, float]]) -> dict[str, Any]:
    """Return mean and deviation of every column over the seeds, by set, training and strategy.

    ``ahead`` is the mean lead of a strategy over the random draw, with its standard error.
    """
    tables: dict[str, Any] = {}
    for part in found:
        runs = {p.seed: v for p, v in found.items() if _row(p) == _row(part)}
        drawn = {p.seed: v for p, v in found.items() if _row(p) == (*_row(part)[:2], RANDOM)}
        table = tables.setdefault(part.world, {}).setdefault(_training(part), {})
        row: dict[str, Any] = dict(columns_of(list(runs.values())))
        table[part.strategy] = row
        if part.strategy != RANDOM:
            row["ahead"] = {
                name: mean_and_deviation([runs[seed][name] - drawn[seed][name] for seed in runs])
                for name in COLUMNS
            }
    return tables


def _row(part: Part) -> tuple[str, bool, str]:
    return part.world, part.soft, part.strategy


def _training(part: Part) -> str:
    return "with probabilities" if part.soft else "labelled rows only"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", choices=tuple(SHARES), default=tuple(SHARES))
    chosen = parser.parse_args(arguments)
    worlds = load_worlds(chosen.scratch, chosen.sets)
    if worlds is None:
        return 0
    plan = [
        Part(world=name, seed=seed, strategy=strategy, soft=soft)
        for seed in range(chosen.seeds)
        for name in worlds
        for soft in (False, True)
        for strategy in STRATEGIES
    ]
    found = run_all(partial(run, worlds, chosen.scratch), plan, chosen.jobs)
    result = {
        "sets": collected(found),
        "seeds": chosen.seeds,
        "seconds": seconds_of(found.values()),
    }
    publish_section("suggest", result, chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
