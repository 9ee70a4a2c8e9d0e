"""One HTML page about a run: scores, tile images, maps, curves and versions.

The page is self-contained: it opens offline, from a mail or a memory stick. Its input is plain
data, so the demo and a run on real scenes make it in the same way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from storage.location import Location
from workflows.report.charts import (
    PALETTE,
    UNLABELLED,
    Footprints,
    MapPanel,
    footprint_maps,
    line_chart,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One row of the score table: a system and its metrics by name."""

    name: str
    note: str = ""
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TileCard:
    """A tile with its image and its description.

    Attributes
    ----------
    picture
        A ``data:`` URI.
    title
        Scene id, or another name.
    date
        Day of acquisition.
    labels
        Label names; empty when none are known.
    score
        Similarity to the query; None for the query itself.
    place
        Longitude and latitude of its centre, or None.
    """

    picture: str
    title: str
    date: str = ""
    labels: tuple[str, ...] = ()
    score: float | None = None
    place: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A query with its hits, best first."""

    query: TileCard
    hits: tuple[TileCard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerSummary:
    """Numbers of scenes by their state, and the reasons of scenes without tiles."""

    embedded: int
    empty: int
    quarantined: int
    tiles: int
    remarks: tuple[tuple[str, str, str], ...] = ()  # scene, state, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Wall-clock seconds of one stage."""

    stage: str
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command to try next, and why."""

    why: str
    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure of a table, with a line below it; ``strong`` where it is to be seen first."""

    text: str
    below: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of figures.

    Attributes
    ----------
    title, note
        Its heading and a sentence or two below it.
    corner
        What the rows are.
    columns
        Names of the columns after the first.
    rows
        The name of each row, and its cells in the order of the columns.
    """

    title: str
    note: str = ""
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """The content of a report; a part that is empty or None is left out of the page.

    Attributes
    ----------
    title, summary
        Description of the run, in a few words and in a sentence or two.
    figures
        A few numbers for the top of the page, each with its meaning.
    metrics
        Metric names of the score table, in order; ``scores`` has one row a system.
    protocol
        How the scores were made: the queries, the database, the exclusions.
    tables
        Further tables of figures, below the scores.
    history
        One mapping an epoch: ``epoch``, ``loss`` and validation metrics.
    facts
        Versions, seed, fingerprints and snapshot of the run.
    """

    title: str
    summary: str
    figures: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    protocol: str = ""
    tables: tuple[Table, ...] = ()
    answers: tuple[Answer, ...] = ()
    answers_note: str = ""
    footprints: Footprints | None = None
    footprints_note: str = ""
    history: tuple[Mapping[str, float], ...] = ()
    ledger: LedgerSummary | None = None
    timings: tuple[Timing, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[Command, ...] = ()


def write_report(data: ReportData, uri: str | Path | Location) -> None:
    """Write the report as one HTML file; it appears whole or not at all."""
    Location.of(uri).write(render_report(data).encode())


def render_report(data: ReportData) -> str:
    """Return the report as an HTML document with nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("workflows.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        data=data,
        best=_best(data),
        bars=_bars(data),
        curves=_curves(data.history),
        maps=_maps(data.footprints),
        legend=_legend(data.footprints),
        total_s=sum(t.seconds for t in data.timings),
        longest_s=max((t.seconds for t in data.timings), default=1.0) or 1.0,
    )


def _best(data: ReportData) -> dict[str, float]:
    """Return the best value of each metric; a smaller ANMRR is better, a larger other."""
    best: dict[str, float] = {}
    for metric in data.metrics:
        values = [s.metrics[metric] for s in data.scores if metric in s.metrics]
        if values:
            best[metric] = min(values) if "ANMRR" in metric else max(values)
    return best


def _bars(data: ReportData) -> dict[str, float]:
    """Return the length of each system's bar, in percent, from the first metric."""
    if not data.metrics:
        return {}
    values = {s.name: s.metrics.get(data.metrics[0], 0.0) for s in data.scores}
    most = max([1e-9, *values.values()])
    return {name: 100 * max(value, 0.0) / most for name, value in values.items()}


def _curves(history: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Draw each figure of the training history that changed, as (title, SVG)."""
    if len(history) < 2:
        return []
    epochs = [float(row["epoch"]) for row in history]
    names = [name for name in dict.fromkeys(k for row in history for k in row) if name != "epoch"]
    curves: list[tuple[str, str]] = []
    for name in names:
        values = [row.get(name) for row in history]
        if sum(value is not None and math.isfinite(value) for value in values) > 1:
            colour = PALETTE[len(curves) % len(PALETTE)]
            drawing = line_chart(name, epochs, values, x_label="epoch", colour=colour)
            curves.append((name, drawing))
    return curves


def _maps(footprints: Footprints | None) -> list[MapPanel]:
    if footprints is None or not len(footprints.corners):
        return []
    return footprint_maps(footprints)


def _legend(footprints: Footprints | None) -> list[tuple[str, str, int]]:
    """Return colour, class name and number of tiles, for the classes that occur."""
    if footprints is None:
        return []
    rows = []
    for i, name in enumerate(footprints.classes):
        count = int((footprints.class_index == i).sum())
        if count:
            rows.append((footprints.colour(i), name, count))
    without = int((footprints.class_index < 0).sum())
    if without:
        rows.append((UNLABELLED, "no label", without))
    return rows
