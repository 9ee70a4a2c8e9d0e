"""A report of any archive: what it holds, what it finds, and how often it finds the same ground."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from pipeline.analysis.evaluation import same_place_recall
from pipeline.analysis.samples import uniform_rows
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.location import StorageOptions, join_uri, read_bytes
from storage.scene import Scene
from workflows.report.html import Answer, Command, ReportData, Score
from workflows.report.tile_images import Gallery, archive_footprints, ledger_summary

_PLACE_QUERIES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSpec:
    """What to show: how many queries, how many hits of each, and which tiles are drawn."""

    title: str
    summary: str
    queries: int = 6
    hits: int = 6
    seed: int = 0


def archive_report(
    searcher: Searcher,
    scenes: Sequence[Scene],
    spec: ReportSpec,
    *,
    training_uri: str | None = None,
    options: StorageOptions | None = None,
) -> ReportData:
    """Gather a report of the archive that an index pins.

    Parameters
    ----------
    searcher
        The index.
    scenes
        The catalog of the archive, to draw tiles from.
    spec
        What to show.
    training_uri
        Folder of the run that trained the encoder, for its curve.
    options
        How to reach scenes and archive.

    Raises
    ------
    NotFoundError
        A tile's scene is not in the catalog.
    SceneError
        A scene can no longer be read.
    """
    manifest = searcher.manifest
    archive = Archive.open(manifest.archive_uri, manifest.snapshot, options)
    answers = _answers(searcher, archive, Gallery(archive, scenes, options), spec)
    marks = tuple(
        (*answer.query.place, str(number))
        for number, answer in enumerate(answers, start=1)
        if answer.query.place
    )
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
        answers_note="Tiles drawn by chance, each with what is most like it in the whole archive.",
        footprints=archive_footprints(archive, marks=marks),
        footprints_note="One square for each place. Numbers mark the queries above.",
        history=_history(training_uri, options) if training_uri else (),
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


def _answers(
    searcher: Searcher, archive: Archive, gallery: Gallery, spec: ReportSpec
) -> tuple[Answer, ...]:
    rows = uniform_rows(archive, spec.queries, spec.seed)
    vectors = archive.read(rows, ["embedding"])["embedding"].astype(np.float32)
    found = searcher.search(vectors, k=min(spec.hits + 1, searcher.manifest.rows))
    answers = []
    for row, query, hits, scores in zip(
        rows, gallery.show(rows), found.rows, found.scores, strict=True
    ):
        kept = np.flatnonzero((hits >= 0) & (hits != row))[: spec.hits]
        answers.append(Answer(query=query, hits=gallery.show(hits[kept], scores[kept])))
    return tuple(answers)


def _commands(index_uri: str, answers: Sequence[Answer]) -> tuple[Command, ...]:
    places = [answer.query.place for answer in answers if answer.query.place]
    index = f"--index {shlex.quote(index_uri)}"
    asked = [f"skysift search {index} --lonlat={lon:.5f},{lat:.5f}" for lon, lat in places[:1]]
    return (
        *(Command(why="Ask by the place of the first query.", line=line) for line in asked),
        Command(why="Answer searches over HTTP.", line=f"skysift serve {index}"),
    )


def _place_scores(archive: Archive) -> tuple[Score, ...]:
    """Score the archive by place; nothing when no place is in two scenes."""
    names = ["embedding", "tile_key", "scene"]
    parts = [archive.read_segment(segment.ordinal, names) for segment in archive.segments]
    if not parts:
        return ()
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    found = same_place_recall(
        columns["embedding"], columns["tile_key"], columns["scene"], most_queries=_PLACE_QUERIES
    )
    if not found["queries"]:
        return ()
    depths = [name for name in found if name.startswith("recall@")]
    return (
        Score(
            name="This archive",
            note=f"{found['queries']:,.0f} queries",
            metrics={f"same place {name}": found[name] for name in depths},
        ),
        Score(
            name="Random ranking",
            note="what chance gets",
            metrics={f"same place {name}": found[f"random {name}"] for name in depths},
        ),
    )


def _history(training_uri: str, options: StorageOptions | None) -> tuple[Mapping[str, float], ...]:
    text = read_bytes(join_uri(training_uri, "history.csv"), options).decode()
    wanted = ("epoch", "loss", "nDCG@50", "rare mAP")
    return tuple(
        {name: float(row[name]) for name in wanted if row.get(name)}
        for row in csv.DictReader(io.StringIO(text))
    )
