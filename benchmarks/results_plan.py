"""Runs of the results page: the trials of each loss, the ablation, exactness, the search.

Every loss gets the same number of trials (`TRIALS_EACH`) on the validation split, one seed, and the
same budget of epochs, rows and head. Its best trial by `selection` goes to the test split.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from benchmarks.results_runs import Run

COLUMNS = (
    "nDCG@50",
    "WAP@50",
    "R@50",
    "mAP",
    "macro mAP",
    "rare mAP",
    "mAP J>=0.6",
    "Jaccard@10",
)
COVERAGE, EXACTNESS = "rare mAP", "mAP J>=0.6"
BAR_COLUMNS, BAR = ("nDCG@50", "rare mAP"), 0.032
TRIALS_EACH = 4
DEFAULT = "macl"
_BASE = Run(loss=DEFAULT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Common settings and numbers of the runs; the defaults make the page."""

    base: Run = _BASE
    seeds: int = 3
    losses: tuple[str, ...] = ()


def _grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


_TEMPERATURES = _grid(temperature=(0.07, 0.12, 0.2, 0.3))
# The name up to a comma is the loss.
TRIALS: Mapping[str, list[dict[str, Any]]] = {
    "macl": [{}, {"temperature": 0.1}, {"beta": 1.5}, {"gamma": -1.5}],
    "mulsupcon": _grid(temperature=(0.05, 0.07, 0.09, 0.12)),
    "mulsupcon, falling temperature": _grid(temperature=(0.2, 0.3), temperature_end=(0.06, 0.1)),
    "msc": _grid(alpha=(0.0, 2.0, 5.0, 10.0)),
    "grn": _grid(temperature=(0.05, 0.1, 0.2, 0.4)),
    "supcon-any": _TEMPERATURES,
    "supcon-all": _TEMPERATURES,
    "simdis": _TEMPERATURES,
    "jaccard": _TEMPERATURES,
    "jspcl": _grid(share=(0.1, 0.5), temperature=(0.1, 0.2)),
    "slcl": _TEMPERATURES,
    "icl": _grid(share=(0.3, 0.5, 0.7, 0.9)),
    "probmcl": _grid(threshold=(0.2, 0.35), temperature=(0.1, 0.2)),
    "ifnd": _TEMPERATURES,
    "cbml": [{}, {"positive_scale": 0.1}, {"negative_scale": 0.2}, {"positive_scale": 0.05}],
    "triplet": _grid(margin=(0.05, 0.1, 0.2, 0.4)),
    # Without options, only the learning rate is tuned.
    "bce": _grid(learning_rate=(4e-3, 8e-3, 16e-3, 32e-3)),
}

DEFAULT_ROW = "as it is"
GAIN = "weights that copy nDCG's gain (beta 0, discount 1, DTS off)"
ABLATION: Mapping[str, dict[str, Any]] = {
    DEFAULT_ROW: {},
    GAIN: {"beta": 0.0, "discount": 1.0, "gamma": 0.0, "alpha": 0.0},
    "no reweighting (PLR off)": {"reweighting": "none"},
    "single labels instead of label sets": {"reweighting": "labels"},
    "label pairs instead of label sets (beta 1)": {"reweighting": "pairs", "beta": 1.0},
    "further labels of a set count in full (discount 1)": {"discount": 1.0},
    "no temperature scaling (DTS off)": {"gamma": 0.0, "alpha": 0.0},
    "DTS: overlap softer (alpha +0.2)": {"alpha": 0.2},
    "DTS: rare anchors softer (gamma +1)": {"gamma": 1.0},
    "DTS: temperature falling from 0.2": {"temperature_start": 0.2},
    "a prototype for each label (prototypes 1)": {"prototypes": 1.0},
    "hard negatives up-weighted (kappa 4)": {"kappa": 4.0},
    "one mean over all pairs (reduction total)": {"reduction": "total"},
    "batches without lifted rare labels": {"sampling_power": 0.0},
}

DIAL = (0.0, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0)

# Against this baseline, with the settings that are not specific to MACL.
RIVAL = "mulsupcon"
SHARED_SEARCH: Mapping[str, dict[str, Any]] = {
    "queue of 1,024 keys": {"queue_rows": 1024},
    "dimension 256": {"dimension": 256},
    "batch 512": {"batch_size": 512},
    "batch 128": {"batch_size": 128},
}
SEARCH: Mapping[str, dict[str, Any]] = {
    "temperature 0.05": {"temperature": 0.05},
    "temperature 0.07": {"temperature": 0.07},
    "temperature 0.1": {"temperature": 0.1},
    "discount 0.3": {"discount": 0.3},
    "beta 1.5": {"beta": 1.5},
    "discount 0.5": {"discount": 0.5},
    "temperature 0.07, discount 0.5": {"temperature": 0.07, "discount": 0.5},
    "temperature 0.1, beta 1.5, discount 0.3": {"temperature": 0.1, "beta": 1.5, "discount": 0.3},
    "gamma -1.5": {"gamma": -1.5},
    "alpha 0": {"alpha": 0.0},
    "gamma 0": {"gamma": 0.0},
    "temperature falling from 0.2": {"temperature_start": 0.2},
    "prototypes 1": {"prototypes": 1.0},
    "label pairs, beta 1.25, prototypes 2": {
        "reweighting": "pairs",
        "beta": 1.25,
        "prototypes": 2.0,
    },
}


def selection(scores: Mapping[str, float]) -> float:
    """Return the objective of the tuning: the sum of the bar's two columns."""
    return sum(scores[name] for name in BAR_COLUMNS)


def with_settings(base: Run, loss: str, settings: Mapping[str, Any]) -> Run:
    """Return a run with the options of a loss; fields of `Run` are set on the run.

    Examples
    --------
    >>> run = with_settings(Run(loss="macl"), "bce", {"learning_rate": 0.5})
    >>> run.loss, run.learning_rate, run.options
    ('bce', 0.5, {})
    """
    own = {name: value for name, value in settings.items() if name in _OWN}
    options = {name: value for name, value in settings.items() if name not in _OWN}
    return replace(base, loss=loss, options=options, **own)


_OWN = tuple(part.name for part in fields(Run) if part.name not in ("loss", "options", "seed"))


def trials(budget: Budget) -> Iterator[tuple[str, Run]]:
    """Yield every trial of the tuning under the name of its row."""
    for name in budget.losses or tuple(TRIALS):
        for settings in TRIALS[name]:
            yield name, with_settings(budget.base, name.partition(",")[0], settings)


def exactness_runs(run: Run) -> dict[float, Run]:
    """Return a run of MACL with its exactness turned up."""
    return {value: replace(run, options={**run.options, "exactness": value}) for value in DIAL}
