"""Two parts and a dial: what each weight of appearance against labels finds, beside one part.

    python -m benchmarks.dial

reads the multi-label images of AID (`AID_TAR`) and UC Merced (`UCM_TAR`), the frozen MobileNetV2
(`MOBILENET_V2`) and two series of five dates (``../shared/data``), and writes
``benchmarks/dial.json`` and a section of ``docs/results.md``. Features, heads and finished parts
are kept in `--scratch`.

Loss of the label part, width of the appearance part and weight are chosen on the validation splits
of both sets, by the rule of `chosen`; the test splits are scored once, with that choice.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.dial_scores import (
    ALIKE,
    COVERAGE,
    PLACES,
    UNSEEN,
    Form,
    alone,
    along,
    gaps,
    label_scores,
    place_scores,
    twins,
    unseen_scores,
)
from benchmarks.dial_world import (
    BASELINES,
    FOLDS,
    LOSSES,
    PEER,
    SETS,
    Head,
    Table,
    label_part,
    table_of,
)
from benchmarks.kept_runs import (
    kept,
    mean_and_deviation,
    parser_of,
    publish_section,
    run_all,
    seconds_of,
)
from benchmarks.place_pairs import SERIES, load_series
from benchmarks.results import DATA
from benchmarks.soft_labels import load_worlds
from pipeline.analysis.comparison import FROZEN

WEIGHTS = (0.0, 0.1, 0.2, 0.225, 0.25, 0.3, 0.5, 0.7, 1.0)
WIDTHS = (128, 256, 512)
TRIED = (0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Weights of the validation split; the ends of the dial give one part up."""
EVEN = 0.5
ELSEWHERE = ("AID", "UC Merced")
"""Heads of the first on the second, where no column should be below frozen features at `EVEN`."""
LABEL_LOSSES = tuple(name for name in LOSSES if name not in (*BASELINES, PEER))
DEFAULT = "macl"
UNSEEN_LOSS = BASELINES[0]
PLACE_NAMES = {"test": "", "unseen": "unseen classes of ", "places": "same place, "}
SCORED = (*COVERAGE, *ALIKE)
SLACK = 0.005
_REVISION = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Scores of some forms: ``kind`` is ``val``, ``test``, ``unseen`` or ``places``.

    Heads learned from ``source``; the queries and the database are those of ``target``. The forms
    ``compared`` get intervals.
    """

    kind: str
    source: str
    target: str
    forms: tuple[Form, ...]
    seeds: int
    compared: tuple[str, ...] = ()


def figures(table: Table, scratch: Path, part: Part) -> dict[str, Any]:
    """Return the columns of each form by seed or fold, and intervals where queries are scored."""
    if part.kind == "places":
        scores = place_scores(table, scratch, part.forms, part.source, part.target, part.seeds)
        return {"runs": scores}
    if part.kind == "unseen":
        runs, queries = unseen_scores(table, scratch, part.forms, part.source)
    else:
        runs, queries = label_scores(
            table, scratch, part.forms, part.source, part.target, part.kind, part.seeds
        )
    return {"runs": runs, "gaps": gaps(queries, part.compared)}


def run(table: Table, scratch: Path, part: Part) -> dict[str, Any]:
    """Return the figures of a part, from the scratch folder if they are known there."""
    told = f"{part.kind}, {part.target} with the head of {part.source}, {part.forms[-1].name}"
    settings = [told, asdict(part), table.digest, table.epochs, _REVISION]
    return kept(scratch, "dial", settings, partial(figures, table, scratch, part))


def train_head(table: Table, scratch: Path, head: Head) -> dict[str, Any]:
    """Train a head, so that the parts find its vectors."""

    def compute() -> dict[str, Any]:
        label_part(table, scratch, head)
        return {}

    settings = [asdict(head), table.digest, table.epochs, len(table.set_N)]
    return kept(scratch, "dial-head", settings, compute)


def seed_heads(names: Sequence[str], seeds: int) -> list[Head]:
    """Return the heads of all losses and seeds."""
    return [
        Head(source=name, loss=loss, seed=seed)
        for name in names
        for loss in LOSSES
        for seed in range(seeds)
    ]


def fold_heads(names: Sequence[str], losses: Sequence[str]) -> list[Head]:
    """Return the heads that never saw the scene classes of a fold."""
    return [
        Head(source=name, loss=loss, seed=fold, fold=fold)
        for name in names
        for loss in dict.fromkeys(losses)
        for fold in range(FOLDS)
    ]


def trials(names: Sequence[str], seeds: int) -> list[Part]:
    """Return the parts of the validation split: every loss, width and weight."""
    return [
        Part(kind="val", source=name, target=name, forms=tuple(forms), seeds=seeds)
        for name in names
        for forms in (
            alone((DEFAULT, *BASELINES)),
            *(along(loss, width, TRIED) for loss in LABEL_LOSSES for width in WIDTHS),
        )
    ] + [
        Part(kind="val", source=ELSEWHERE[0], target=ELSEWHERE[1], forms=tuple(forms), seeds=seeds)
        for forms in (along(loss, width, (EVEN,)) for loss in LABEL_LOSSES for width in WIDTHS)
    ]


def margins(
    row: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return how far a row is above what a searcher would lose with it.

    That is the best baseline in the columns of coverage, frozen features in those of likeness.
    """
    best = {column: max(others[name][column] for name in BASELINES) for column in COVERAGE}
    known = {column: others[FROZEN][column] for column in ALIKE}
    return {column: row[column] - value for column, value in (best | known).items()}


def chosen(found: Mapping[Part, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return all settings of two parts, the one that the rule chooses first.

    The rule: the least margin is that of any column on either set, and at `EVEN` over frozen
    features `ELSEWHERE`. The shortest vector whose least margin is not below 0, and of its weights
    that with the largest; where there is none, the largest of all. The rest follow by least margin.
    """
    alone_of = {part.target: run["runs"] for part, run in found.items() if not part.forms[-1].width}
    others = {
        name: {form: means(row) for form, row in rows.items()} for name, rows in alone_of.items()
    }
    settings: dict[tuple[str, int, float], dict[str, dict[str, float]]] = {}
    away: dict[tuple[str, int], dict[str, float]] = {}
    for part, result in found.items():
        for form in (form for form in part.forms if form.width):
            row, known = means(result["runs"][form.name]), others[part.target]
            if part.source != part.target:
                gaps = {column: row[column] - known[FROZEN][column] for column in SCORED}
                away[form.base, form.width] = gaps
                continue
            key = form.base, form.width, form.weight
            settings.setdefault(key, {})[part.target] = margins(row, known)
    listed = [
        {"loss": loss, "appearance": width, "blend": weight}
        | {"margins": by_set, "elsewhere": away[loss, width]}
        | {"least": min(v for row in (*by_set.values(), away[loss, width]) for v in row.values())}
        for (loss, width, weight), by_set in settings.items()
    ]
    whole = [one for one in listed if one["least"] >= 0]
    choice = min(whole or listed, key=lambda one: (_length(one) if whole else 0, -one["least"]))
    rest = (one for one in listed if one is not choice)
    return [choice, *sorted(rest, key=lambda one: -one["least"])]


def _length(setting: Mapping[str, Any]) -> int:
    """Return the length of a vector of two parts."""
    return int(setting["appearance"] + LOSSES[setting["loss"]].dimension)


def means(row: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each column over the seeds."""
    return {column: mean_and_deviation(values)[0] for column, values in row.items()}


def tests(names: Sequence[str], choice: Mapping[str, Any], seeds: int) -> list[Part]:
    """Return the parts that are scored once: in domain, off domain, unseen classes, places."""
    loss, width = choice["loss"], choice["appearance"]
    weights = sorted({*WEIGHTS, choice["blend"]})
    dials = [*along(DEFAULT, width, weights), *along(loss, width, weights)]
    forms = tuple(dict.fromkeys([*alone((*BASELINES, PEER, DEFAULT, loss)), *dials]))
    few = tuple(dict.fromkeys([*alone((UNSEEN_LOSS, DEFAULT, loss)), *dials]))
    compared = tuple(
        dict.fromkeys(form.name for form in along(loss, width, (choice["blend"], 0.5)))
    )
    return [
        *(
            Part(kind="test", source=s, target=t, forms=forms, seeds=seeds, compared=compared)
            for s, t in product(names, names)
        ),
        *(
            Part(kind="unseen", source=n, target=n, forms=few, seeds=seeds, compared=compared)
            for n in names
        ),
        *(
            Part(kind="places", source=n, target=t, forms=few, seeds=seeds)
            for n, t in product(names, SERIES)
        ),
    ]


def collected(
    validated: Mapping[Part, Mapping[str, Any]],
    settings: Sequence[Mapping[str, Any]],
    tested: Mapping[Part, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return mean and deviation of every column, intervals, the choice and the bars."""
    alone_of = {p.target: r["runs"] for p, r in validated.items() if not p.forms[-1].width}
    tables: dict[str, Any] = {"test": {}, "unseen": {}, "places": {}}
    intervals: dict[str, Any] = {"test": {}, "unseen": {}}
    for part, found in tested.items():
        rows = {
            form: {column: mean_and_deviation(values) for column, values in row.items()}
            for form, row in found["runs"].items()
        }
        tables[part.kind].setdefault(part.target, {})[part.source] = rows
        if part.compared:
            intervals[part.kind].setdefault(part.target, {})[part.source] = found["gaps"]
    validation = {
        name: {form: means(row) for form, row in rows.items()} for name, rows in alone_of.items()
    }
    return {
        "validation": {"alone": validation, "settings": settings},
        **tables,
        "intervals": intervals,
        "bars": {
            loss: bars(tables, loss) for loss in dict.fromkeys((settings[0]["loss"], DEFAULT))
        },
    }


def bars(tables: Mapping[str, Any], loss: str) -> dict[str, Any]:
    """Return, for each bar, how far each column is above it; it is met where none is below 0.

    ``labels alone``: at w 0 no column is more than .005 below the label part alone. ``even``: at
    w .5 none is below frozen features. ``at once``: at some w none is below as `margins` says.
    """
    ends: dict[str, Any] = {"labels alone": {}, "even": {}, "at once": {}}
    for kind, by_target in tables.items():
        for target, by_source in by_target.items():
            for source, rows in by_source.items():
                row = {
                    name: {c: v[0] for c, v in columns.items()} for name, columns in rows.items()
                }
                columns = {"test": SCORED, "unseen": UNSEEN, "places": PLACES}[kind]
                place = f"{PLACE_NAMES[kind]}{target}, head of {source}"
                for bar, form, other, slack in (
                    ("labels alone", f"{loss}, w 0", loss, SLACK),
                    ("even", f"{loss}, w 0.5", FROZEN, 0.0),
                ):
                    ends[bar][place] = {c: row[form][c] - row[other][c] + slack for c in columns}
                if kind == "test" and source == target:
                    ends["at once"][target] = {
                        form.rpartition(" ")[2]: margins(row[form], row)
                        for form in row
                        if form.startswith(f"{loss}, w ")
                    }
    return ends


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    worlds = load_worlds(options.scratch, SETS)
    if worlds is None or not (DATA / "scenes").exists():
        print(f"skipped: {DATA / 'scenes'} or a labelled set not found")
        return 0
    weights = DATA / "weights" / "mobilenet_v2_imagenet_folded"
    backbone = Path(os.environ.get("MOBILENET_V2", weights))
    series = {n: load_series(n, worlds["AID"], options.scratch, backbone) for n in SERIES}
    table = table_of(worlds, series, options.scratch)
    do, learn = (partial(work, table, options.scratch) for work in (run, train_head))
    heads = run_all(learn, seed_heads(SETS, options.seeds), options.jobs)
    validated = run_all(do, trials(SETS, options.seeds), options.jobs)
    settings = chosen(validated)
    losses = (UNSEEN_LOSS, DEFAULT, settings[0]["loss"])
    heads |= run_all(learn, fold_heads(SETS, losses), options.jobs)
    tested = run_all(do, tests(SETS, settings[0], options.seeds), options.jobs)
    near = {name: twins(table, name, "test") for name in SETS}
    result = collected(validated, settings, tested) | {
        "twins": {name: [int(found.sum()), len(found)] for name, found in near.items()},
        "seeds": options.seeds,
        "seconds": seconds_of([*heads.values(), *validated.values(), *tested.values()]),
    }
    publish_section("dial", result, options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
