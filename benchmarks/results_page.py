"""Writes the results page: tables, the bar met or not, and the figure of the frontier."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results_plan import (
    BAR,
    BAR_COLUMNS,
    COLUMNS,
    COVERAGE,
    DEFAULT,
    DEFAULT_ROW,
    EXACTNESS,
    GAIN,
    TRIALS_EACH,
    selection,
)
from benchmarks.results_runs import K
from benchmarks.results_sections import SECTIONS, search_verdict

TUNED = f"{DEFAULT}, tuned"
_ANY_SLACK = 0.005


def baselines(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the test scores of every loss that is not ours."""
    return {n: s for n, s in result["losses"].items() if n not in (DEFAULT, TUNED)}


def gains(result: Mapping[str, Any], name: str = DEFAULT) -> dict[str, tuple[str, float]]:
    """Return, for each column of the bar, the best baseline and our lead over it."""
    others, ours = baselines(result), result["losses"][name]
    best = {c: max(others, key=lambda n: others[n][c][0]) for c in BAR_COLUMNS}
    return {c: (n, ours[c][0] - others[n][c][0]) for c, n in best.items()}


def dominated_by(
    scores: Mapping[str, Sequence[float]], settings: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    """Return the settings better on every column; `mAP` may be half a point behind.

    Examples
    --------
    >>> low = {name: (0.5, 0.0) for name in COLUMNS}
    >>> high = {name: (0.6, 0.0) for name in COLUMNS}
    >>> dominated_by(low, {"a": high, "b": low}), dominated_by(high, {"b": low})
    (['a'], [])
    """
    return [
        value
        for value, ours in settings.items()
        if all(
            ours[c][0] >= scores[c][0] - _ANY_SLACK if c == "mAP" else ours[c][0] > scores[c][0]
            for c in COLUMNS
            if c != f"R@{K}"  # relevance by any shared label, like mAP
        )
    ]


def write_page(result: Mapping[str, Any], folder: Path) -> None:
    """Write ``results.md`` and, with exactness, ``images/frontier.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_opening(result), _losses(result), _bar(result), _tuning(result)]
    if "exactness" in result:
        (folder / "images").mkdir(exist_ok=True)
        draw_frontier(result, folder / "images" / "frontier.png")
        parts.append(_frontier(result))
    parts += [_ablation(result)] if "ablation" in result else []
    parts += [_search(result)] if "search" in result else []
    parts += [section(result[name]) for name, section in SECTIONS.items() if name in result]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n")


def rebuild_page(root: Path) -> None:
    """Write the page below ``root`` from the figures of all its benchmarks that are there."""
    figures = root / "benchmarks"
    if not (figures / "results.json").exists():
        return
    names = ("results", *SECTIONS)
    found = {n: json.loads(f.read_text()) for n in names if (f := figures / f"{n}.json").exists()}
    write_page(found.pop("results") | found, root / "docs")


def draw_frontier(result: Mapping[str, Any], path: Path) -> None:
    """Draw coverage against exactness: MACL along its dial, every other loss as a point."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.subplots()
        points = {**baselines(result), "frozen features": result["frozen features"]}
        nearest = max(points, key=lambda name: points[name][COVERAGE][0])
        upwards = sorted(points, key=lambda name: points[name][EXACTNESS][0])
        for place, name in enumerate(upwards):
            _point(axes, points[name], name, side=-1 if place % 2 or name == nearest else 1)
        line = list(result["exactness"].values())
        x, y = ([scores[column][0] for scores in line] for column in (COVERAGE, EXACTNESS))
        x_off, y_off = ([scores[column][1] for scores in line] for column in (COVERAGE, EXACTNESS))
        axes.errorbar(x, y, y_off, x_off, color="#1b4f72", marker="o", lw=2, elinewidth=0.8)
        for value, left, up in zip(result["exactness"], x, y, strict=True):
            text = f"{float(value):g}"
            axes.annotate(text, (left, up), (5, 5), textcoords="offset points", c="#1b4f72")
        axes.set_xlabel("coverage: mAP of the rarest third of the labels")
        axes.set_ylabel("exactness: mAP, relevant from Jaccard 0.6 on")
        axes.set_title("MACL along its exactness dial (blue) and the other losses", loc="left")
        axes.grid(alpha=0.25)
        figure.savefig(path, dpi=140)


def _point(axes: Axes, scores: Mapping[str, Sequence[float]], name: str, side: int) -> None:
    """Draw a point with its name to the right (1) or to the left (-1)."""
    point = scores[COVERAGE][0], scores[EXACTNESS][0]
    axes.plot(*point, "o", color="#7f8c99", ms=5)
    align = "left" if side > 0 else "right"
    axes.annotate(
        name, point, (6 * side, -3), textcoords="offset points", color="#444", size=8, ha=align
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scores(scores: Mapping[str, Sequence[float]]) -> list[str]:
    return [
        f"{scores[c][0]:.3f} ± {scores[c][1]:.3f}" if scores[c][1] else f"{scores[c][0]:.3f}"
        for c in COLUMNS
    ]


def _opening(result: Mapping[str, Any]) -> str:
    budget, seconds = result["budget"], result["seconds"]["runs"]
    return f"""# Results on real labelled images

Made by `python -m benchmarks.results` (do not edit). AID multi-label: 3,000 aerial images at
150 x 150 px, 17 labels, its own split (train 1,917, val 483, test 600). Research use only; at this
resolution the figures do not compare with published ones.

A projection head ({budget["hidden"]} hidden units, {budget["dimension"]} dimensions) is trained on
frozen ImageNet MobileNetV2 features. The budget is the same for every loss: {budget["epochs"]}
epochs, batches of {budget["batch_size"]} from the label-aware sampler, AdamW with learning rate
{budget["learning_rate"]:g}. Test queries search the train and validation images. Figures are the
mean ± standard deviation over {result["seeds"]} seeds.

Machine: {platform.machine()}, {os.cpu_count()} cores, a run on each, torch
{torch.__version__}. All runs together took {seconds:,.0f} s. Figures in full:
`benchmarks/results.json`."""


def _losses(result: Mapping[str, Any]) -> str:
    ours = [n for n in (DEFAULT, TUNED) if n in result["losses"]]
    others = baselines(result)
    order = sorted(others, key=lambda n: -selection({c: others[n][c][0] for c in COLUMNS}))
    rows = [[name, *_scores(result["losses"][name])] for name in [*ours, *order]]
    rows += [[name, *_scores(result[name])] for name in ("frozen features", "random")]
    return f"""## Every loss, test split

`{DEFAULT}` has its default options; every other row the best of {TRIALS_EACH} trials on the
validation split. mAP and R@{K} count any shared label as relevant, which a random ranking nearly
reaches; "rare" is the rarest third of the labels; `docs/glossary.md` and `encoders/metrics.py` say
what each column is.

{_table(["loss", *COLUMNS], rows)}"""


def _bar(result: Mapping[str, Any]) -> str:
    lines = []
    for name in (n for n in (DEFAULT, TUNED) if n in result["losses"]):
        leads = gains(result, name)
        met = all(lead >= BAR for _, lead in leads.values())
        figures = ", ".join(
            f"{100 * lead:+.1f} points of {c} against {other}" for c, (other, lead) in leads.items()
        )
        lines.append(f"- **{name}: {'met' if met else 'not met'}.** {figures}.")
    return f"""## The bar

At least {100 * BAR:.1f} points ahead of the best tuned baseline, in {" and in ".join(BAR_COLUMNS)}:

{chr(10).join(lines)}{_beside(result)}"""


def _beside(result: Mapping[str, Any]) -> str:
    """Return how the bar looks after equal effort of tuning, where that is measured."""
    if "leads" not in result:
        return ""
    lines = "\n".join(search_verdict(result["leads"]["search"]))
    return f"""

After {result["leads"]["trials"]} random settings for each of the two
([how](#how-sure-the-lead-is)):

{lines}"""


def _tuning(result: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            ", ".join(f"{k} {v:g}" for k, v in found["options"].items()) or "its defaults",
            str(found["trials"]),
            *(f"{found['validation'][c]:.3f}" for c in BAR_COLUMNS),
        ]
        for name, found in result["tuned"].items()
    ]
    return f"""## What the tuning chose

One seed, validation split, the largest sum of {" and ".join(BAR_COLUMNS)}. Every loss:
{TRIALS_EACH} trials (listed in `benchmarks/results_plan.py`). "Falling temperature" lends the
strongest baseline what is part of MACL's dynamic temperature (`temperature_start`). MACL's defaults
were chosen on the validation split too, in a wider search over two or three seeds; the last table
shows neighbours of them.

{_table(["loss", "chosen", "trials", *(f"{c}, val" for c in BAR_COLUMNS)], rows)}"""


def _frontier(result: Mapping[str, Any]) -> str:
    rows = [[f"{float(v):g}", *_scores(scores)] for v, scores in result["exactness"].items()]
    beaten = {n: dominated_by(s, result["exactness"]) for n, s in baselines(result).items()}
    won = [f"{n} (at {', '.join(f'{float(v):g}' for v in by)})" for n, by in beaten.items() if by]
    left = [n for n, by in beaten.items() if not by]
    return f"""## Coverage against exactness

One dial, the option `exactness`, moves MACL from sharing many and rare labels to having the same
label set.

![Coverage against exactness](images/frontier.png)

{_table(["exactness", *COLUMNS], rows)}

A setting dominates a baseline when its mean is better on every column (mAP at most .005 behind;
R@{K}, which counts any shared label too, is left out).

- Dominated: {"; ".join(won) or "none"}.
- Not dominated: {", ".join(left) or "none"}."""


def _ablation(result: Mapping[str, Any]) -> str:
    ablation = result["ablation"]
    rows = [[name, *_scores(scores)] for name, scores in ablation.items()]
    return f"""## What each part of MACL does

The default with one change, test split; the second row has several.

{_table(["MACL", *COLUMNS], rows)}

{_gain_in_words(ablation[DEFAULT_ROW], ablation[GAIN])}"""


def _gain_in_words(default: Mapping[str, Any], gain: Mapping[str, Any]) -> str:
    """Return which row explains the lead in nDCG, and which part lifts rare labels."""
    told = " and ".join(
        f"{column} {gain[column][0]:.3f} (the default {default[column][0]:.3f})"
        for column in BAR_COLUMNS
    )
    return f"""Where the lead in nDCG@50 comes from: label sets with beta 0 and discount 1 weigh a
pair by 2^r - 1 for r shared labels, which is the gain that nDCG adds up. Without rarity and
temperature scaling such weights reach {told}:
the weights copy this metric; rarity lifts rare labels."""


def _search(result: Mapping[str, Any]) -> str:
    rows = [[n, *(f"{s[c]:.3f}" for c in COLUMNS)] for n, s in result["search"].items()]
    return f"""## What else was tried

MACL's default with other settings, and the strongest baseline with those that are not a loss's
own; validation split, one seed. MACL's defaults were chosen among such settings.

{_table(["setting", *COLUMNS], rows)}"""
