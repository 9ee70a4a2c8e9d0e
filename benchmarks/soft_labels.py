"""Few labels: training with the labelled rows alone, and with probabilities for the other rows.

    python -m benchmarks.soft_labels

reads the multi-label images of AID (`AID_TAR`) and UC Merced (`UCM_TAR`) and the frozen MobileNetV2
(`MOBILENET_V2`), by default from ``../shared/data``, and writes ``benchmarks/soft_labels.json`` and
a section of ``docs/results.md``. Features and finished runs are kept in `--scratch`.

A share of the train rows keeps its labels, drawn at random; the others lose theirs. Test queries
search the train and validation rows by their true labels, as on the rest of the page.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kept_runs import (
    columns_of,
    kept,
    parser_of,
    publish_section,
    run_all,
    seconds_of,
)
from benchmarks.results import DATA
from benchmarks.results_runs import World, load_world, score
from pipeline.datasets.extend import measure
from pipeline.datasets.soft_labels import f1_scores, soft_labels
from pipeline.datasets.spec import SoftLabelSpec
from pipeline.training.head import HEAD, learned_vectors
from pipeline.training.spec import TrainingSpec

COLUMNS = ("nDCG@50", "rare mAP", "macro mAP", "mAP J>=0.6", "Jaccard@10")
SUPERVISED, DECISION = "labelled rows only", "decision by query"
DEFAULT = "ramp, four widths"
FOUR_HEADS = ", 4 heads of 64, discount 0.5"
"""A method with heads that learn apart."""
_ONE_WIDTH = (128,)
METHODS = {
    DEFAULT: SoftLabelSpec(),
    "ramp, band 0.75": SoftLabelSpec(directions=_ONE_WIDTH),
    "ramp, band 0.5": SoftLabelSpec(directions=_ONE_WIDTH, band=0.5),
    "cap": SoftLabelSpec(directions=_ONE_WIDTH, method="cap"),
    "band": SoftLabelSpec(directions=_ONE_WIDTH, method="band", band=0.5),
    "f1": SoftLabelSpec(directions=_ONE_WIDTH, method="f1"),
}
SHARES = {"AID": (0.1, 0.2), "UC Merced": (0.05, 0.1, 0.2)}
TILE_PX = {"UC Merced": 256}  # some of its images are a few pixels smaller
_FIRST_SEED = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One run: a set, a share of labelled rows, a seed and a method (or the decision)."""

    world: str
    share: float
    seed: int
    method: str
    steps: int = 360


def figures(world: World, part: Part) -> dict[str, float]:
    """Return the scores of a run; of the decision the measured gain and its error."""
    train = world.rows("train")
    rng = np.random.default_rng(_FIRST_SEED + part.seed)
    count = round(part.share * len(train))
    labelled = np.sort(rng.choice(train, count, replace=False))
    others = np.setdiff1d(train, labelled)
    rows, y_LC = np.concatenate([labelled, others]), world.labels_NC[labelled]
    features = world.features_NF[rows]
    if part.method == DECISION:
        found = measure(features, y_LC, SoftLabelSpec(), seed=part.seed, steps=part.steps)
        return {"gain": found.gain, "error": found.error, "extends": float(found.pays)}
    method = part.method.removesuffix(FOUR_HEADS)
    spec = HEAD if method == part.method else _four_heads()
    learned = partial(
        learned_vectors, world.features_NF, seed=part.seed, steps=part.steps, spec=spec
    )
    if method == SUPERVISED:
        return scored(world, learned(labelled, y_LC))
    soft = soft_labels(features, y_LC, METHODS[method], seed=part.seed, steps=part.steps)
    micro, _ = f1_scores(soft >= 0.5, world.labels_NC[others])
    vectors = learned(rows, np.concatenate([y_LC, soft]).astype(np.float32))
    return {**scored(world, vectors), "F1": micro}


def _four_heads() -> TrainingSpec:
    """Return the settings of four heads, chosen on the validation split of AID."""
    return replace(HEAD, loss_options={"discount": 0.5}, dimension=256, heads=4)


def scored(world: World, vectors: Any) -> dict[str, float]:
    """Return the columns of the page for the vectors of all rows, test split."""
    scores = score(world, vectors, "test")
    return {name: scores[name] for name in COLUMNS}


def run(worlds: dict[str, World], scratch: Path, part: Part) -> dict[str, Any]:
    """Return the figures of a run, from the scratch folder if it is known there."""
    world = worlds[part.world]
    return kept(scratch, "soft", [asdict(part), world.digest], partial(figures, world, part))


def parts(worlds: dict[str, World], seeds: int) -> list[Part]:
    """Return all runs."""
    return [
        Part(world=name, share=share, seed=seed, method=method)
        for method in dict.fromkeys(
            (SUPERVISED, DEFAULT, DECISION, *METHODS, SUPERVISED + FOUR_HEADS, DEFAULT + FOUR_HEADS)
        )
        for name in worlds
        for share in SHARES[name]
        for seed in range(seeds)
    ]


def collected(found: dict[Part, dict[str, float]]) -> dict[str, Any]:
    """Return mean and deviation of every column over the seeds, by set, share and method."""
    tables: dict[str, Any] = {}
    for part in found:
        table = tables.setdefault(part.world, {}).setdefault(f"{part.share:.0%}", {})
        runs = [v for p, v in found.items() if _row(p) == _row(part)]
        table[part.method] = columns_of(runs)
        if part.method == DECISION:
            table[DECISION]["extends"] = [run["extends"] > 0 for run in runs]
    return tables


def _row(part: Part) -> tuple[str, float, str]:
    return part.world, part.share, part.method


def labelled_sets(names: Sequence[str]) -> tuple[dict[str, Path], Path] | None:
    """Return the images of the sets by name, and the backbone; None, with a note, without them."""
    sets = {
        "AID": Path(os.environ.get("AID_TAR", DATA / "aid_multilabel_150px.tar")),
        "UC Merced": Path(os.environ.get("UCM_TAR", DATA / "ucm_multilabel_256px.tar")),
    }
    sets = {name: path for name, path in sets.items() if name in names}
    weights = DATA / "weights" / "mobilenet_v2_imagenet_folded"
    backbone = Path(os.environ.get("MOBILENET_V2", weights))
    if missing := [str(path) for path in (*sets.values(), backbone) if not path.exists()]:
        print(f"skipped: {' and '.join(missing)} not found; set AID_TAR, UCM_TAR, MOBILENET_V2")
        return None
    return sets, backbone


def load_worlds(scratch: Path, names: Sequence[str]) -> dict[str, World] | None:
    """Return the sets by name with frozen features; None, with a note, without their data."""
    if (found := labelled_sets(names)) is None:
        return None
    sets, backbone = found
    worlds = {}
    for name, images in sets.items():
        folder = scratch / (name if name != "AID" else "")
        folder.mkdir(parents=True, exist_ok=True)
        worlds[name] = load_world(images, backbone, folder, TILE_PX.get(name))
    return worlds


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", choices=tuple(SHARES), default=tuple(SHARES))
    chosen = parser.parse_args(arguments)
    worlds = load_worlds(chosen.scratch, chosen.sets)
    if worlds is None:
        return 0
    plan = parts(worlds, chosen.seeds)
    found = run_all(partial(run, worlds, chosen.scratch), plan, chosen.jobs)
    result = {
        "sets": collected(found),
        "seeds": chosen.seeds,
        "seconds": seconds_of(found.values()),
    }
    publish_section("soft_labels", result, chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
