"""Scores of the dial's benchmark: forms of a vector, their columns by query, and intervals.

Shapes: N rows, D dimension, Q queries, M labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.dial_world import (
    BASELINES,
    FOLDS,
    LOSSES,
    Floats,
    Head,
    Table,
    appearance_part,
    label_part,
    two_parts,
)
from benchmarks.results_runs import K
from pipeline.analysis.comparison import (
    FROZEN,
    RANDOM,
    LabelledRows,
    Values,
    above,
    near_duplicates,
    random_vectors,
    scene_scores_by_query,
    scores_by_query,
)
from pipeline.analysis.evaluation import same_place_recall
from pipeline.analysis.intervals import plain_mean
from storage.dataset import searched_splits

COVERAGE = ("nDCG@50", "rare mAP")
ALIKE = ("mAP J>=0.6", "Jaccard@10", "same scene@10")
UNSEEN = ("same scene@1", "same scene@10", "Jaccard@10")
PLACES = ("r@1", "r@10")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Vectors to score: of a loss alone, of two parts with a width and a weight of the first."""

    base: str
    width: int = 0
    weight: float = 0.0

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.base}, w {self.weight:g}" if self.width else self.base

    @property
    def seeds(self) -> bool:
        """Whether another seed gives other vectors."""
        return self.base != FROZEN


def vectors(
    table: Table, scratch: Path, form: Form, source: str, seed: int, fold: int | None = None
) -> Floats:
    """Return the vectors of all rows, by a head of ``source``."""
    if form.base == FROZEN:
        return table.features_NF
    if form.base == RANDOM:
        return random_vectors(len(table.features_NF), seed)
    head = Head(source=source, loss=form.base, seed=seed, fold=fold)
    label = label_part(table, scratch, head)
    if not form.width:
        return label
    appearance = appearance_part(table, scratch, table.learned(head), form.width)
    return two_parts(appearance, label, form.weight)


def by_labels(table: Table, z_ND: Floats, name: str, split: str) -> dict[str, Values]:
    """Return each column by query, (Q,) or (Q, M): a split of a set, which searches its own."""
    queries, items = table.rows(name, split), table.rows(name, *searched_splits(split))
    groups = table.group_N.astype(str)
    rows = LabelledRows(
        y_QC=table.labels_NC[queries],
        y_NC=table.labels_NC[items],
        counts_C=table.labels_NC[table.rows(name, "train")].sum(0).astype(float),
        group_Q=groups[queries],
        group_N=groups[items],
    )
    found = scores_by_query(z_ND[queries], z_ND[items], rows, K)
    return {
        "nDCG@50": found["nDCG@50"],
        "rare mAP": found["rare mAP, any"],
        "mAP J>=0.6": found["mAP J>=0.6"],
        "Jaccard@10": found["Jaccard@10"],
        "same scene@10": found["same scene@10"],
        "rare mAP, 5 and more": found["rare mAP"],
        "surplus@10": found["surplus@10"],
        "nDCG@50, no twins": np.where(twins(table, name, split), np.nan, found["nDCG@50"]),
    }


def twins(table: Table, name: str, split: str) -> NDArray[np.bool_]:
    """Return which queries have an item that frozen features find nearly equal, (Q,)."""
    queries, items = table.rows(name, split), table.rows(name, *searched_splits(split))
    return near_duplicates(table.features_NF[queries], table.features_NF[items])


def by_unseen_class(table: Table, z_ND: Floats, source: str, fold: int) -> dict[str, Values]:
    """Return each column by query: rows of classes left out search all other rows of the set."""
    queries, items = table.unseen(source, fold), table.rows(source)
    groups = table.group_N.astype(str)
    rows = LabelledRows(
        y_QC=table.labels_NC[queries],
        y_NC=table.labels_NC[items],
        counts_C=table.labels_NC[table.rows(source, "train")].sum(0).astype(float),
        group_Q=groups[queries],
        group_N=groups[items],
        exclude_self=np.searchsorted(items, queries),
    )
    return scene_scores_by_query(z_ND[queries], z_ND[items], rows)


def by_place(table: Table, z_ND: Floats, series: str) -> dict[str, float]:
    """Return how often a tile of a series finds its own place on another date."""
    rows = table.rows(series)
    found = same_place_recall(
        z_ND[rows], table.group_N[rows].astype(str), table.split_N[rows].astype(str), k=(1, 10)
    )
    return {f"r@{k}": found[f"recall@{k}"] for k in (1, 10)}


def label_scores(
    table: Table,
    scratch: Path,
    forms: Sequence[Form],
    source: str,
    target: str,
    split: str,
    seeds: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Values]]]:
    """Return the columns of forms by seed, and the columns by query, mean of the seeds."""
    runs, means = {}, {}
    for form in forms:
        numbers = range(seeds) if form.seeds else (0,)
        each = [
            by_labels(table, vectors(table, scratch, form, source, seed), target, split)
            for seed in numbers
        ]
        runs[form.name] = _by_run(each)
        means[form.name] = {c: np.mean([one[c] for one in each], axis=0) for c in each[0]}
    return runs, means


def unseen_scores(
    table: Table, scratch: Path, forms: Sequence[Form], source: str
) -> tuple[dict[str, Any], dict[str, dict[str, Values]]]:
    """Return the columns of forms by fold, and by query: the queries of all folds."""
    runs, queries = {}, {}
    for form in forms:
        each = [
            by_unseen_class(table, vectors(table, scratch, form, source, fold, fold), source, fold)
            for fold in range(FOLDS)
        ]
        runs[form.name] = _by_run(each)
        queries[form.name] = {c: np.concatenate([one[c] for one in each]) for c in each[0]}
    return runs, queries


def place_scores(
    table: Table, scratch: Path, forms: Sequence[Form], source: str, series: str, seeds: int
) -> dict[str, dict[str, list[float]]]:
    """Return recall of the same place on another date, by seed."""
    found = {}
    for form in forms:
        each = [
            by_place(table, vectors(table, scratch, form, source, seed), series)
            for seed in (range(seeds) if form.seeds else (0,))
        ]
        found[form.name] = {name: [one[name] for one in each] for name in PLACES}
    return found


def _by_run(each: Sequence[Mapping[str, Values]]) -> dict[str, list[float]]:
    return {column: [plain_mean(one[column]) for one in each] for column in each[0]}


def gaps(by_query: Mapping[str, Mapping[str, Values]], names: Sequence[str]) -> dict[str, Any]:
    """Return the intervals of some rows over frozen features and each baseline."""
    others = [name for name in (FROZEN, *BASELINES) if name in by_query]
    return {
        name: {
            other: {
                column: [found.mean, found.low, found.high]
                for column, found in above(columns, by_query[other]).items()
            }
            for other in others
        }
        for name in names
        for columns in [by_query[name]]
    }


def alone(names: Sequence[str]) -> list[Form]:
    """Return the forms that have one part."""
    return [Form(base=name) for name in (RANDOM, FROZEN, *names)]


def along(base: str, width: int, weights: Sequence[float]) -> list[Form]:
    """Return the forms of two parts along the dial."""
    assert base in LOSSES
    return [Form(base=base, width=width, weight=weight) for weight in weights]
