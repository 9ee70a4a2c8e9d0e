"""A report of any archive: its content, hits of a few queries, and recall of the same place."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from pipeline.analysis.evaluation import same_place_recall
from pipeline.search.query import Query
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.archive.samples import uniform_rows
from storage.location import Location
from workflows.report.html import Answer, Command, ReportData, Score
from workflows.report.rendering import TileRenderer
from workflows.report.tile_images import archive_footprints, drawn_answers, ledger_summary

_PLACE_QUERIES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSpec:
    """Content of the report: numbers of queries and hits, and the seed that draws the queries."""

    title: str
    summary: str
    queries: int = 6
    hits: int = 6
    seed: int = 0


def archive_report(
    searcher: Searcher,
    renderer: TileRenderer,
    spec: ReportSpec,
    *,
    training_uri: str | Location | None = None,
) -> ReportData:
    """Gather a report of the archive that an index pins.

    Parameters
    ----------
    searcher
        The index.
    renderer
        Draws tiles of the archive at the snapshot of the index.
    spec
        Content of the report.
    training_uri
        Folder of the run that trained the encoder, for its curve.

    Raises
    ------
    NotFoundError
        A tile's scene is not in the catalog.
    SceneError
        A scene can no longer be read.
    """
    manifest = searcher.manifest
    archive, answers = renderer.archive, _answers(searcher, renderer, spec)
    scores = _place_scores(archive)
    return ReportData(
        title=spec.title,
        summary=spec.summary,
        figures=(
            (f"{len(archive.scenes()):,}", "scenes"),
            (f"{len(archive):,}", "tiles embedded"),
            (str(len(manifest.shards)), "index shards"),
        ),
        metrics=tuple(scores[0].metrics) if scores else (),
        scores=scores,
        protocol=(
            "A tile searches the other scenes; it succeeds at k when its own ground, on another "
            "day, is among the first k hits."
        ),
        answers=answers,
        answers_note="Random tiles, each with the most similar tiles of the whole archive.",
        footprints=archive_footprints(archive, answers=answers),
        footprints_note="One square for each place. Numbers mark the queries above.",
        history=training_history(training_uri) if training_uri else (),
        ledger=ledger_summary(archive),
        facts=(
            ("Skysift", version("skysift")),
            ("Archive", manifest.archive_uri),
            ("Archive snapshot", manifest.snapshot),
            ("Encoder fingerprint", manifest.encoder_fingerprint),
            ("Index version", f"{manifest.version} ({manifest.parameters.kind})"),
        ),
        commands=_commands(searcher.index.uri, answers),
    )


def _answers(searcher: Searcher, renderer: TileRenderer, spec: ReportSpec) -> tuple[Answer, ...]:
    rows = uniform_rows(renderer.archive, spec.queries, spec.seed)
    vectors = renderer.archive.read(rows, ["embedding"])["embedding"].astype(np.float32)
    queries = [
        Query(vector=vector, label="tile", row=row)
        for vector, row in zip(vectors, rows.tolist(), strict=True)
    ]
    hits = searcher.answer(queries, spec.hits)
    counts = (hits.rows >= 0).sum(axis=1)
    return drawn_answers(
        renderer,
        rows,
        [row[:count] for row, count in zip(hits.rows, counts, strict=True)],
        [score[:count] for score, count in zip(hits.scores, counts, strict=True)],
    )


def _commands(index_uri: str, answers: Sequence[Answer]) -> tuple[Command, ...]:
    places = [answer.query.place for answer in answers if answer.query.place]
    index = f"--index {shlex.quote(index_uri)}"
    searches = [f"skysift search {index} --lonlat={lon:.5f},{lat:.5f}" for lon, lat in places[:1]]
    return (
        *(Command(why="Search by the place of the first query.", line=line) for line in searches),
        Command(why="Answer searches over HTTP.", line=f"skysift serve {index}"),
    )


def _place_scores(archive: Archive) -> tuple[Score, ...]:
    """Score the archive by place; empty when no place is in two scenes."""
    columns = archive.read_all(["embedding", "tile_key", "scene"])
    recall = same_place_recall(
        columns["embedding"], columns["tile_key"], columns["scene"], most_queries=_PLACE_QUERIES
    )
    if not recall["queries"]:
        return ()
    depths = [name for name in recall if name.startswith("recall@")]
    return (
        Score(
            name="This archive",
            note=f"{recall['queries']:,.0f} queries",
            metrics={f"same place {name}": recall[name] for name in depths},
        ),
        Score(
            name="Random ranking",
            note="the score of chance",
            metrics={f"same place {name}": recall[f"random {name}"] for name in depths},
        ),
    )


def training_history(training_uri: str | Location) -> tuple[Mapping[str, float], ...]:
    """Return loss and validation metrics of each epoch of a training run, for a report."""
    text = (Location.of(training_uri) / "history.csv").read().decode()
    titles = {"epoch": "epoch", "loss": "loss"}
    titles |= {name: f"{name}, validation" for name in ("nDCG@50", "rare mAP")}
    return tuple(
        {title: float(row[name]) for name, title in titles.items() if row.get(name)}
        for row in csv.DictReader(io.StringIO(text))
    )
