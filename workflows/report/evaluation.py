"""A report of an evaluation: an encoder beside its backbone and chance, with intervals.

In its domain and off it: on datasets, for scene classes that training never had, and for the same
ground on another date. Also the scores of each query as a table, for a reader's own statistics.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline.analysis.comparison import LEAST, TWIN, TWINLESS, Comparison
from pipeline.analysis.intervals import Difference
from pipeline.datasets.score import Compared, DatasetScores
from workflows.report.html import Cell, ReportData, Table

_SMALLER_IS_BETTER = "surplus"
_PROTOCOL = (
    "Each dataset is searched by queries of its own; off the domain that an encoder learned, its "
    "head may do worse than the features before it. macro mAP and rare mAP are means over labels "
    f"with at least {LEAST} queries and {LEAST} relevant items, rare over the rarest third. "
    "Same scene: share of the first hits of the query's scene class. Surplus: labels of a hit "
    "that the query lacks (fewer is better). No twins: without queries that have a near-duplicate "
    f"in the database, an image whose features have a cosine of {TWIN:g} or more. Same place: "
    "share of the tiles that find their own place among the first hits in the other scenes. "
    "Intervals hold 95 % of a paired bootstrap over the queries, of places for the same place: "
    "how sure a difference is for other queries, not for another training or another split."
)
_INTERVALS = "Differences of the means with their intervals, bold where 0 is left out."
_BEST = "The best figure of a column is bold."


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the report: some queries, and what they search.

    Attributes
    ----------
    kind
        Name of the queries in the table of queries.
    title, note
        Its heading and the sentences below it.
    found
        The queries and their scores.
    """

    kind: str
    title: str
    note: str
    found: Compared


def sections_of(
    scores: Sequence[DatasetScores], places: Sequence[Compared], split: str
) -> list[Section]:
    """Return the parts of the report: each dataset, its classes left out, each archive.

    Parameters
    ----------
    scores
        With comparisons; the first dataset leads, others show the encoder off its domain.
    places
        Archives scored by place.
    split
        Split of the queries.
    """
    sections = []
    for one in scores:
        assert one.compared is not None, "scored with compared=True"
        sections.append(_dataset_section(one.compared, split))
        if one.unseen is not None:
            note = f"{_sizes(one.unseen)} of the same dataset. {one.unseen.note}"
            title = f"{one.uri}, scene classes left out of training"
            sections.append(
                Section(kind="classes left out", title=title, note=note, found=one.unseen)
            )
    for found in places:
        title = f"{found.uri}, same place on another date"
        note = f"{_sizes(found)} of other scenes at most. {found.note}"
        sections.append(Section(kind="same place", title=title, note=note, found=found))
    return sections


def _dataset_section(found: Compared, split: str) -> Section:
    near_Q, few = found.comparison.is_near_Q, found.comparison.left_out
    assert near_Q is not None
    left_out = f" Labels too few to score: {', '.join(few)}." if few else ""
    note = (
        f"{_sizes(found)}; {int(near_Q.sum()):,} have a near-duplicate there."
        f"{left_out} {found.note}"
    )
    return Section(kind=split, title=found.uri, note=note.strip(), found=found)


def _sizes(found: Compared) -> str:
    return f"{len(found):,} queries search {found.comparison.items:,} images"


def evaluation_report(sections: Sequence[Section], encoder: str, fingerprint: str) -> ReportData:
    """Gather the page: for each section its scores, and differences with their intervals.

    Parameters
    ----------
    sections
        See `sections_of`.
    encoder, fingerprint
        The encoder and its fingerprint.
    """
    return ReportData(
        title="Evaluation of an encoder",
        summary=(
            f"Retrieval by {encoder}, beside the features of its backbone before the head and "
            "beside random vectors: a head may be bought with what the backbone knew."
        ),
        protocol=_PROTOCOL,
        figures=tuple(_figures(sections[0].found)),
        tables=tuple(table for section in sections for table in _tables(section)),
        facts=(
            ("Skysift", version("skysift")),
            ("Encoder", encoder),
            ("Encoder fingerprint", fingerprint),
            *(("Data", uri) for uri in dict.fromkeys(section.found.uri for section in sections)),
        ),
    )


def query_rows(sections: Sequence[Section]) -> dict[str, list[Any]]:
    """Return columns of the scores of each query by each vectors.

    A score is NaN where a query has none, and None where its section has no such column.
    """
    parts = [
        {
            "dataset": [found.uri] * len(found),
            "queries": [section.kind] * len(found),
            "source": found.sources.tolist(),
            "vectors": [name] * len(found),
            **({} if found.rows is None else {"row": found.rows.tolist()}),
            **_near(found.comparison),
            **{
                column: values.tolist()
                for column, values in columns.items()
                if values.ndim == 1 and not column.endswith(TWINLESS)
            },
        }
        for section in sections
        for found in [section.found]
        for name, columns in found.comparison.by_query.items()
    ]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: [value for part in parts for value in part.get(name, [None] * len(part["source"]))]
        for name in names
    }


def _near(comparison: Comparison) -> dict[str, list[Any]]:
    near_Q = comparison.is_near_Q
    return {} if near_Q is None else {"near_duplicate": near_Q.tolist()}


def comparison_facts(found: Compared) -> dict[str, Any]:
    """Return the figures of a comparison as plain values."""
    comparison = found.comparison
    facts: dict[str, Any] = {
        "queries": len(found),
        "items": comparison.items,
        "vectors": comparison.means,
        "differences": comparison.differences,
    }
    if comparison.is_near_Q is not None:
        facts["near_duplicates"] = int(comparison.is_near_Q.sum())
        facts["labels_left_out"] = list(comparison.left_out)
    return facts | ({"note": found.note} if found.note else {})


def _figures(first: Compared) -> Iterator[tuple[str, str]]:
    near_Q = first.comparison.is_near_Q
    assert near_Q is not None, "the first section is a dataset"
    yield f"{len(first):,}", "queries"
    yield f"{first.comparison.items:,}", "images searched"
    yield f"{int(near_Q.sum()):,}", "queries with a near-duplicate"
    yield str(len(first.comparison.left_out)), f"labels too few to score (below {LEAST})"


def _tables(section: Section) -> Iterator[Table]:
    found = section.found.comparison
    columns = tuple(next(iter(found.by_query.values())))
    yield Table(
        title=section.title,
        note=f"{section.note} {_BEST}",
        corner="Vectors",
        columns=columns,
        rows=tuple(_scores(found.means, columns)),
    )
    differences = found.differences
    compared = tuple(column for column in columns if not column.endswith(TWINLESS))
    for other in next(iter(differences.values())):
        yield Table(
            title=f"{section.title}, above {other}",
            note=_INTERVALS,
            corner="Vectors",
            columns=compared,
            rows=tuple(
                (name, tuple(_difference(gaps[other][column]) for column in compared))
                for name, gaps in differences.items()
            ),
        )


def _scores(
    means: Mapping[str, Mapping[str, float]], columns: Sequence[str]
) -> Iterator[tuple[str, tuple[Cell, ...]]]:
    best = {}
    for column in columns:
        values = [row[column] for row in means.values() if math.isfinite(row[column])]
        smaller = column.startswith(_SMALLER_IS_BETTER)
        best[column] = (min if smaller else max)(values, default=math.nan)
    for name, row in means.items():
        cells = (Cell(text=_number(row[c]), strong=row[c] == best[c]) for c in columns)
        yield name, tuple(cells)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _difference(gap: Difference) -> Cell:
    if not math.isfinite(gap.mean):
        return Cell(text="n/a")
    return Cell(
        text=f"{gap.mean:+.3f}",
        below=f"[{gap.low:+.3f}, {gap.high:+.3f}]",
        strong=gap.low > 0 or gap.high < 0,
    )
