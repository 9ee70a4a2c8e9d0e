"""Sections of the results page that benchmarks of their own measure, each from its figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def soft_labels(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.soft_labels`."""
    lines = [
        "## Few labels, and probabilities for the other rows",
        "",
        "Made by `python -m benchmarks.soft_labels`. A share of the train rows keeps its labels;",
        "the others get probabilities from frozen features as by `skysift dataset extend`. MACL's",
        f"default, 360 steps, {found['seeds']} draws, mean ± standard deviation. F1 is that of the",
        "probabilities of .5 and more. The command extends where its measured gain is larger than",
        f"its error. All runs took {found['seconds']:,.0f} s.",
    ]
    for name, shares in found["sets"].items():
        for share, table in shares.items():
            columns = list(next(iter(table.values())))
            lines += ["", f"### {name}, {share} of the labels", ""]
            if decision := table.get("decision"):
                taken = f"{sum(decision['extends'])} of {len(decision['extends'])}"
                lines += [f"Extends {taken} draws; gain {_figure(decision['gain'])}.", ""]
            lines += [
                f"| training | {' | '.join(columns)} | F1 |",
                f"| --- |{' --- |' * (len(columns) + 1)}",
            ]
            for method, scores in table.items():
                if method != "decision":
                    cells = [_figure(scores[c]) for c in columns]
                    f1 = _figure(scores["F1"]) if "F1" in scores else ""
                    lines.append(f"| {method} | {' | '.join(cells)} | {f1} |")
    return "\n".join(lines)


def suggest(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.suggest`."""
    lines = [
        "## Which rows to label",
        "",
        "Made by `python -m benchmarks.suggest`. The first 2 % of the train rows are random;",
        "each strategy chooses the rows up to 10 %. A head is trained on these alone, and with",
        "probabilities for the labels of all other rows, as above. MACL's default, 360 steps,",
        f"{found['seeds']} draws, mean ± standard deviation; a lead is over the random draw of the",
        f"same seed. All runs took {found['seconds']:,.0f} s.",
        "",
        *_verdict(found["sets"]),
    ]
    for name, trainings in found["sets"].items():
        for training, table in trainings.items():
            columns = [*_LEADS, "Jaccard@10"]
            head = [*columns, *(f"lead, {column}" for column in _LEADS)]
            lines += ["", f"### {name}, {training}", ""]
            lines += [f"| rows | {' | '.join(head)} |", f"| --- |{' --- |' * len(head)}"]
            for strategy, scores in table.items():
                cells = [_figure(scores[c]) for c in columns]
                ahead = scores.get("ahead")
                cells += [_lead(ahead[c]) if ahead else "" for c in _LEADS]
                lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines)


_LEADS = ("nDCG@50", "rare mAP")


def _verdict(sets: Mapping[str, Any]) -> list[str]:
    """Return the mean lead of each strategy and of probabilities, over sets and columns."""
    alone, soft = "labelled rows only", "with probabilities"
    lines = []
    for strategy in next(iter(sets.values()))[alone]:
        if "ahead" not in next(iter(sets.values()))[alone][strategy]:
            continue
        leads = [
            f"{100 * table[strategy]['ahead'][column][0]:+.1f}"
            for trainings in sets.values()
            for table in (trainings[alone], trainings[soft])
            for column in _LEADS
        ]
        lines.append(f"- {strategy} against at random, points: {', '.join(leads)}.")
    gains = [
        f"{100 * (t[soft]['at random'][c][0] - t[alone]['at random'][c][0]):+.1f}"
        for t in sets.values()
        for c in _LEADS
    ]
    lines.append(f"- probabilities for the other rows, drawn at random: {', '.join(gains)}.")
    head = [
        f"Leads of {' and '.join(_LEADS)} for {' and '.join(sets)}; of strategies first without,",
        "then with probabilities:",
    ]
    return [*head, "", *lines]


def place_pairs(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.place_pairs`."""
    lines = [
        "## Places as supervision",
        "",
        "Made by `python -m benchmarks.place_pairs`. Two series of five dates; each is held out in",
        "turn, pairs come from the other four. r@k: share of the tiles of the date held out that",
        "find their own tile among the first k of the other dates. nDCG@50 is that of AID's test",
        "queries, whose labels train `macl` and the one head. Two parts weigh the place head by w.",
        'Mean ± standard deviation over the dates. "Uncovered": pairs from the western half of the',
        f"ground, queries from the eastern half. All runs took {found['seconds']:,.0f} s.",
    ]
    for name, grounds in found["series"].items():
        for ground, table in grounds.items():
            columns = list(next(iter(table.values())))
            lines += ["", f"### {name}, {found['tiles'][name]:,} tiles, {ground} ground", ""]
            lines += [f"| vectors | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
            for form, scores in table.items():
                cells = [_figure(scores[column]) for column in columns]
                lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lead(value: Sequence[float]) -> str:
    return f"{value[0]:+.3f} ± {value[1]:.3f}"


def _figure(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "soft_labels": soft_labels,
    "suggest": suggest,
    "place_pairs": place_pairs,
}
"""Sections by the name of their benchmark, in the order of the page."""
