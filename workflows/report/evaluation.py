"""A report of an evaluation: an encoder beside its backbone and chance, with intervals.

Also the scores of each query as a table, for a reader's own statistics.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pipeline.analysis.comparison import LEAST, TWIN, TWINLESS, Comparison
from pipeline.analysis.intervals import Difference
from pipeline.datasets.score import DatasetScores
from workflows.report.html import Cell, ReportData, Table

_SMALLER_IS_BETTER = "surplus"
_PROTOCOL = (
    "Each dataset is searched by queries of its own; off the domain that an encoder learned, its "
    "head may do worse than the features before it. macro mAP and rare mAP are means over labels "
    f"with at least {LEAST} queries and {LEAST} relevant items, rare over the rarest third. "
    "Same scene: share of the first 10 hits of the query's scene class. Surplus: labels of a hit "
    "that the query lacks (fewer is better). No twins: without queries that have a near-duplicate "
    f"in the database, an image whose features have a cosine of {TWIN:g} or more. Intervals hold "
    "95 % of a paired bootstrap over the queries: how sure a difference is for other queries, not "
    "for another training or another split."
)
_INTERVALS = "Differences of the means with their intervals, bold where 0 is left out."


def evaluation_report(
    scores: Sequence[DatasetScores], encoder: str, fingerprint: str, split: str
) -> ReportData:
    """Gather the page: for each dataset its scores, and differences with their intervals.

    Parameters
    ----------
    scores
        With comparisons; the first dataset leads, others show the encoder off its domain.
    encoder, fingerprint
        The encoder and its fingerprint.
    split
        Split of the queries.
    """
    tables = [table for one in scores for table in _tables(one, split)]
    return ReportData(
        title="Evaluation of an encoder",
        summary=(
            f"Retrieval by {encoder}, beside the features of its backbone before the head and "
            "beside random vectors: a head may be bought with what the backbone knew."
        ),
        protocol=_PROTOCOL,
        figures=tuple(_figures(scores[0])),
        tables=tuple(tables),
        facts=(
            ("Skysift", version("skysift")),
            ("Encoder", encoder),
            ("Encoder fingerprint", fingerprint),
            *(("Dataset", one.uri) for one in scores),
        ),
    )


def query_rows(scores: Sequence[DatasetScores]) -> dict[str, list[Any]]:
    """Return columns of the scores of each query by each vectors; NaN where one has no score."""
    parts = [
        {
            "dataset": [one.uri] * len(one.rows),
            "row": one.rows.tolist(),
            "source": one.sources.tolist(),
            "vectors": [name] * len(one.rows),
            "near_duplicate": found.is_near_Q.tolist(),
            **{
                column: values.tolist()
                for column, values in columns.items()
                if values.ndim == 1 and not column.endswith(TWINLESS)
            },
        }
        for one, found in _compared(scores)
        for name, columns in found.by_query.items()
    ]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: [value for part in parts for value in part.get(name, [math.nan] * len(part["row"]))]
        for name in names
    }


def comparison_facts(scores: DatasetScores) -> dict[str, Any]:
    """Return the figures of a comparison as plain values."""
    ((_, found),) = _compared([scores])
    return {
        "vectors": found.means,
        "differences": found.differences,
        "near_duplicates": int(found.is_near_Q.sum()),
        "labels_left_out": list(found.left_out),
    }


def _compared(scores: Sequence[DatasetScores]) -> Iterator[tuple[DatasetScores, Comparison]]:
    for one in scores:
        assert one.comparison is not None, "scored with compared=True"
        yield one, one.comparison


def _figures(first: DatasetScores) -> Iterator[tuple[str, str]]:
    ((_, found),) = _compared([first])
    yield f"{len(first.rows):,}", "queries"
    yield f"{found.items:,}", "images searched"
    yield f"{int(found.is_near_Q.sum()):,}", "queries with a near-duplicate"
    yield str(len(found.left_out)), f"labels too few to score (below {LEAST})"


def _tables(scores: DatasetScores, split: str) -> Iterator[Table]:
    ((_, found),) = _compared([scores])
    columns = tuple(next(iter(found.by_query.values())))
    left_out = f" Labels too few to score: {', '.join(found.left_out)}." if found.left_out else ""
    yield Table(
        title=scores.uri,
        note=(
            f"{len(scores.rows):,} queries of the {split} split search {found.items:,} images; "
            f"{int(found.is_near_Q.sum()):,} have a near-duplicate there.{left_out} The best "
            "figure of a column is bold."
        ),
        corner="Vectors",
        columns=columns,
        rows=tuple(_scores(found.means, columns)),
    )
    compared = tuple(column for column in columns if not column.endswith(TWINLESS))
    for other in next(iter(found.differences.values())):
        yield Table(
            title=f"{scores.uri}, above {other}",
            note=_INTERVALS,
            corner="Vectors",
            columns=compared,
            rows=tuple(
                (name, tuple(_difference(gaps[other][column]) for column in compared))
                for name, gaps in found.differences.items()
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
