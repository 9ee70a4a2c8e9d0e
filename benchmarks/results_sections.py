"""Sections of the results page that benchmarks of their own measure, each from its figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results_plan import BAR


def leads(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.leads`."""
    searched = found["search"]
    lines = [
        "## How sure the lead is",
        "",
        "Made by `python -m benchmarks.leads`. A lead may be luck in two ways: less tuning of the",
        f"others, and one split. All runs took {found['seconds']:,.0f} s.",
        "",
        "### Equal effort of tuning, AID",
        "",
        f"MACL and the strongest baseline get {found['trials']} settings each, drawn at random",
        "with a fixed seed from the ranges below; one seed of training, the largest sum of",
        f"{' and '.join(_LEADS)} on the validation split. The test split is scored once,",
        f"mean ± standard deviation over {found['seeds']} seeds.",
        "",
    ]
    for name in (name for name, one in searched.items() if "ranges" in one):
        one = searched[name]
        told = "; ".join(f"{s} {words}" for s, words in one["ranges"].items())
        chosen = ", ".join(f"{s} {value:g}" for s, value in one["chosen"].items())
        values = ", ".join(f"{c} {v:.3f}" for c, v in one["validation"].items())
        lines.append(f"- {name}: {told}. Chosen: {chosen} (validation: {values}).")
    columns = list(next(iter(searched.values()))["test"])
    lines += ["", f"| loss | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, one in searched.items():
        row = f"{name}, {found['trials']} settings" if "ranges" in one else name
        lines.append(f"| {row} | {' | '.join(_figure(one['test'][c]) for c in columns)} |")
    lines += ["", *search_verdict(searched)]
    return "\n".join([*lines, *_splits(found["splits"])])


def search_verdict(searched: Mapping[str, Any]) -> list[str]:
    """Return how far MACL, searched and as it is, is above the searched baseline."""
    (other,) = (n for n, one in searched.items() if "ranges" in one and n != "macl")
    lines = []
    for name in ("macl", "macl, default"):
        gaps = [searched[name]["test"][c][0] - searched[other]["test"][c][0] for c in _LEADS]
        points = zip(_LEADS, gaps, strict=True)
        told = " and ".join(f"{100 * gap:+.1f} points of {column}" for column, gap in points)
        met = "reaches" if all(gap >= BAR for gap in gaps) else "does not reach"
        row = f"{name}, searched" if name == "macl" else name
        lines.append(f"- {row}: {told} over the searched baseline; it {met} {100 * BAR:g} in each.")
    return lines


def _splits(sets: Mapping[str, Any]) -> list[str]:
    """Return the tables of the other splits, and the leads with their intervals."""
    lines = []
    for name, found in sets.items():
        columns = list(next(iter(found["rows"].values())))
        count = len(found["twins"])
        lines += [
            "",
            f"### {count} other splits of {name}",
            "",
            "Each scene class keeps its own numbers of train, validation and test rows; its rows",
            "are dealt to them at random, with a fixed seed. One seed of training, the settings of",
            "the first tables; mean ± standard deviation over the splits. Test queries with",
            f"a near-duplicate: {', '.join(map(str, found['twins']))}.",
            "",
            f"| vectors | {' | '.join(columns)} |",
            f"| --- |{' --- |' * len(columns)}",
        ]
        for row, scores in found["rows"].items():
            lines.append(f"| {row} | {' | '.join(_figure(scores[c]) for c in columns)} |")
        lines += [
            "",
            "Differences on the same split: mean, 95 % interval over the splits by Student's t,",
            "least and largest.",
            "",
            f"| difference | {' | '.join(columns)} |",
            f"| --- |{' --- |' * len(columns)}",
        ]
        lines += [
            f"| {own} over {other} | {' | '.join(_spread(gaps[c]) for c in columns)} |"
            for own, others in found["leads"].items()
            for other, gaps in others.items()
        ]
    return lines


def _spread(gap: Mapping[str, float]) -> str:
    return (
        f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], "
        f"{gap['least']:+.3f} to {gap['largest']:+.3f}"
    )


def soft_labels(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.soft_labels`."""
    lines = [
        "## Few labels, and probabilities for the other rows",
        "",
        "Made by `python -m benchmarks.soft_labels`. A share of the train rows keeps its labels;",
        "the others get probabilities from frozen features as by `skysift dataset extend`. MACL's",
        f"default, 360 steps, {found['seeds']} draws, mean ± standard deviation. F1 is that of the",
        "probabilities of .5 and more. Four widths: teachers in 64, 128, 256, 512 directions, else",
        "in 128. 4 heads of 64 numbers learn apart, without dropout; they and discount .5 were",
        "chosen among six forms on AID's validation split; all others are one head of 128. The",
        "command extends where nDCG@50 gains more than its error on hidden rows and",
        f"macro mAP does not fall. All runs took {found['seconds']:,.0f} s.",
    ]
    for name, shares in found["sets"].items():
        for share, table in shares.items():
            columns = list(next(iter(table.values())))
            lines += ["", f"### {name}, {share} of the labels", ""]
            if decision := table.get("decision by query"):
                taken = f"{sum(decision['extends'])} of {len(decision['extends'])}"
                lines += [f"Extends {taken} draws; measured gain {_figure(decision['gain'])}.", ""]
            lines += [
                f"| training | {' | '.join(columns)} | F1 |",
                f"| --- |{' --- |' * (len(columns) + 1)}",
            ]
            for method, scores in table.items():
                if method != "decision by query":
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


def dial(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.dial`."""
    settings = found["validation"]["settings"]
    first, best = settings[0], max(settings, key=lambda one: one["least"])
    lines = [
        "## Two parts and a dial",
        "",
        "Made by `python -m benchmarks.dial`. A vector has an appearance part (half-whitened",
        "principal components of the square roots of the frozen features of the training rows)",
        "and a label part; w is the weight of the first, chosen by a query. Heads are trained as",
        "above. 4 heads share the dimension (4 x 32 or 4 x 64) and learn apart, with dropout .1",
        "of the features, exactness .1, discount 1 and batches without lifted rare labels, found",
        "among some tens of settings on the validation split of AID. No bar compares with the",
        "baseline in that form (mulsupcon, 4 heads, falling temperature); it stands beside it.",
        f"Mean ± standard deviation over {found['seeds']} seeds, of unseen classes over 5 folds.",
        f"Baselines have the settings tuned above. All runs took {found['seconds']:,.0f} s.",
        "All rows, those of MACL's default along the dial too, are in `benchmarks/dial.json`.",
        "",
        "**The setting** is chosen on the validation splits of AID and UC Merced by one rule. A",
        "margin is what a column is above the best baseline (nDCG@50, rare mAP) or above frozen",
        "features (mAP J>=0.6, Jaccard@10, same scene@10), on either set, or above frozen",
        "features in any column at w .5 on UC Merced with the head of AID. The shortest vector",
        "without a margin below 0 is taken, at its best w; where there is none, the largest",
        f"least margin of all. Of {len(settings)} settings this is **{_setting(first)}**,",
        f"with a least margin of {first['least']:+.3f}; the largest is {best['least']:+.3f}, of",
        f"{_setting(best)}.",
        "",
        *_dial_bars(found["bars"]),
        "",
        "surplus@10: labels of a hit that the query does not have. 5 and more: of labels with at",
        "least 5 queries and 5 relevant items. No twins: without queries that have an item whose",
        f"frozen features have a cosine of .93 or more ({_twins(found['twins'])}).",
    ]
    for kind, title in _DIAL_KINDS.items():
        for target, by_source in found[kind].items():
            for source, table in by_source.items():
                columns = list(next(iter(table.values())))
                lines += ["", f"### {title.format(target=target, source=source)}", ""]
                lines += [f"| vectors | {' | '.join(columns)} |"]
                lines += [f"| --- |{' --- |' * len(columns)}"]
                shown = (f for f in table if ", w " not in f or f.startswith(f"{first['loss']}, w"))
                for form in shown:
                    cells = [_figure(table[form][column]) for column in columns]
                    lines.append(f"| {form} | {' | '.join(cells)} |")
                gaps = found["intervals"].get(kind, {}).get(target, {}).get(source, {})
                lines += _dial_gaps(gaps, first)
    return "\n".join(lines)


_DIAL_KINDS = {
    "test": "{target}, with the head of {source}",
    "unseen": "{target}, scene classes that training never saw",
    "places": "Same place on another date, {target}, with the head of {source}",
}
_DIALBARS = {
    "labels alone": "At w 0 no column is more than .005 below the label part alone",
    "even": "At w .5 no column is below frozen features",
}


def _twins(twins: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{count} of {queries} of {name}" for name, (count, queries) in twins.items())


def _setting(choice: Mapping[str, Any]) -> str:
    return f"{choice['loss']}, {choice['appearance']} numbers of appearance, w {choice['blend']:g}"


def _dial_bars(bars: Mapping[str, Any]) -> list[str]:
    """Return the bars of each loss: where they are met, and the columns that miss them."""
    lines = []
    for loss, found in bars.items():
        lines += [f"Bars with the label part {loss}:", ""]
        for bar, text in _DIALBARS.items():
            verdicts = {place: _verdict_of(margins) for place, margins in found[bar].items()}
            met = [place for place, verdict in verdicts.items() if verdict == "met"]
            lines.append(f"- {text}: met in {len(met)} of {len(verdicts)} ({'; '.join(met)}).")
            missed = ((place, text) for place, text in verdicts.items() if text != "met")
            lines += [f"  - {place}: {verdict}." for place, verdict in missed]
        for place, by_weight in found["at once"].items():
            met = [w for w, margins in by_weight.items() if min(margins.values()) >= 0]
            best = max(by_weight, key=lambda w: min(by_weight[w].values()))
            verdict = f"met at w {', '.join(met)}" if met else _verdict_of(by_weight[best])
            near = "" if met else f" (nearest at w {best})"
            lines.append(f"- At some w no margin is below 0; {place}: {verdict}{near}.")
        lines.append("")
    return lines[:-1]


def _verdict_of(margins: Mapping[str, float]) -> str:
    missed = [f"{column} by {-gap:.3f}" for column, gap in margins.items() if gap < 0]
    return f"missed in {', '.join(missed)}" if missed else "met"


def _dial_gaps(gaps: Mapping[str, Any], choice: Mapping[str, Any]) -> list[str]:
    """Return the differences of the chosen form and of w .5, with their intervals."""
    weights = dict.fromkeys((choice["blend"], 0.5))
    lines = []
    for form in (f"{choice['loss']}, w {weight:g}" for weight in weights):
        for other, columns in gaps.get(form, {}).items():
            told = [
                f"{c} {d:+.3f} [{low:+.3f}, {high:+.3f}]" for c, (d, low, high) in columns.items()
            ]
            lines.append(f"- {form} against {other}: {', '.join(told)}.")
    head = ["", "Differences, with 95 % intervals of a paired bootstrap over the queries:", ""]
    return [*head, *lines] if lines else []


def finetune(found: Mapping[str, Any]) -> str:
    """Return the section of `benchmarks.finetune`."""
    budget = found["budget"]
    device, seeds = budget["device"], budget["seeds"]
    how = "python -m benchmarks.finetune" if device == "cpu" else "make results-gpu"
    tiles = [f"{n} {px or 'full'} px" for n, px in budget["tile_px"].items()]
    lines = [
        "## Fine-tuning every weight",
        "",
        f"Made by `{how}`: MobileNetV2 with MACL's default by `skysift train`, {budget['epochs']}",
        f"epochs of batches of 128, {_workers(budget)}, {_seeds(seeds)}. Tiles:",
        f"{', '.join(tiles)}, those of frozen features too. The head learns",
        "at a rate of .001, the backbone at a tenth of it, or of it too (one rate). The best epoch",
        "is that of the validation split. Test queries search the train and validation rows.",
        "Images are augmented where every weight is trained; the head alone learns from features",
        "computed once. The minutes have the scoring in them.",
        f"All runs took {found['seconds']:,.0f} s.",
    ]
    for name, table in found["sets"].items():
        columns = list(next(iter(table.values())))
        lines += ["", f"### Fine-tuning on {name}", ""]
        lines += [f"| trained | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for form, scores in table.items():
            cells = [_finetuned(column, scores, seeds) for column in columns]
            lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _workers(budget: Mapping[str, Any]) -> str:
    one = "core" if budget["device"] == "cpu" else "GPU"
    return f"one {one}" if budget["workers"] == 1 else f"{budget['workers']} {one}s"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean ± standard deviation of {count} seeds"


def _finetuned(column: str, scores: Mapping[str, Any], seeds: int) -> str:
    """Return a cell: a score, with its deviation of several seeds, an epoch or minutes."""
    if column not in scores:
        return ""
    if column == "minutes":
        return f"{scores[column]:.1f}"
    if column == "best epoch":
        return f"{scores[column][0]:.0f}"
    return _figure(scores[column]) if seeds > 1 else f"{scores[column][0]:.3f}"


def _lead(value: Sequence[float]) -> str:
    return f"{value[0]:+.3f} ± {value[1]:.3f}"


def _figure(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "leads": leads,
    "soft_labels": soft_labels,
    "suggest": suggest,
    "place_pairs": place_pairs,
    "dial": dial,
    "finetune": finetune,
}
"""Sections by the name of their benchmark, in the order of the page."""
