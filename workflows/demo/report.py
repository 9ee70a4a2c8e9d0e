"""The demo's report: what its stages left, put into words, pictures and numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from pipeline.analysis.statistics import BandStatistics
from storage.archive.reader import Archive
from storage.location import read_bytes
from storage.scene import Scene
from workflows.demo.evaluate import METRICS
from workflows.demo.landscape import COLOURS
from workflows.demo.stages import Done
from workflows.report.html import Answer, Command, ReportData, Score, Timing, write_report
from workflows.report.tile_images import Gallery, archive_footprints, ledger_summary

_HITS = 6
_CURVES = {
    "loss": "loss",
    "nDCG@50": "nDCG@50, validation",
    "rare mAP": "rare mAP, validation",
}
_LIBRARIES = ("ray", "dask", "torch", "faiss-cpu", "icechunk", "zarr", "rasterio", "numpy")
_STAGES = {
    "world": "Make the world",
    "statistics": "Band statistics (Dask)",
    "labels": "Tile labels (Dask)",
    "dataset": "Labelled tiles",
    "training": "Training (Ray Train, 2 workers)",
    "untrained": "Untrained encoder",
    "ingest": "Tiles and embeddings (Ray Data)",
    "index": "Index (Ray tasks)",
    "search": "Searches (library, Ray task, command line)",
    "scores": "Scores",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What the stages of a demo left, as the page needs it."""

    folder: Path
    seed: int
    scenes: tuple[Scene, ...]
    stages: Sequence[Done]
    commands: tuple[tuple[str, str], ...]

    def result(self, stage: str) -> Mapping[str, Any]:
        """Return what a stage came to."""
        return next(done.result for done in self.stages if done.name == stage)


def write_page(left: Results, target: Path) -> None:
    """Draw the report of a demo into an HTML file."""
    archive = Archive.open(str(left.folder / "archive"), left.result("index")["snapshot"])
    answers = _answers(left, archive)
    marks = tuple(
        (*answer.query.place, str(number))
        for number, answer in enumerate(answers, start=1)
        if answer.query.place
    )
    scores, search = left.result("scores"), left.result("search")
    data = ReportData(
        title="Skysift demo",
        summary=(
            f"A made-up archive of {len(left.scenes)} Sentinel-2-like scenes over two UTM zones "
            "and two seasons; an encoder trained on it with the multi-label contrastive loss "
            "MACL; and what a search of the archive finds. The scenes are synthetic. The "
            "computation is real, and all of it ran on this machine."
        ),
        figures=(
            (str(len(left.scenes)), "scenes"),
            (f"{len(archive):,}", "tiles embedded"),
            (str(left.result("index")["shards"]), "index shards"),
            (f"{scores['trained']['rare mAP']:.2f}", "rare-label mAP, trained"),
            (f"{scores['untrained']['rare mAP']:.2f}", "untrained"),
            (f"{search['median_ms']:.1f} ms", "median search"),
        ),
        metrics=METRICS,
        scores=_scores(scores),
        protocol=_protocol(scores["counts"]),
        answers=answers,
        answers_note=(
            "Held-out tiles ask the whole archive, both seasons; their own ground is left out. "
            "Labels that a hit shares with its query are green. Each picture is stretched by its "
            "scene's own brightness."
        ),
        footprints=archive_footprints(archive, colours=COLOURS, marks=marks),
        footprints_note=(
            "One square for each place, coloured by its rarest label. Gaps are clouds and nodata. "
            "Numbers mark the queries above."
        ),
        history=_history(left.folder / "encoder" / "history.csv"),
        ledger=ledger_summary(archive),
        timings=tuple(
            Timing(stage=_STAGES[done.name], seconds=done.seconds)
            for done in left.stages
            if done.name in _STAGES
        ),
        facts=_facts(left, archive),
        commands=tuple(Command(why=why, line=line) for why, line in left.commands),
    )
    write_report(data, target)


def _answers(left: Results, archive: Archive) -> tuple[Answer, ...]:
    found = left.result("search")
    gallery = Gallery(archive, left.scenes)
    queries = gallery.show(np.array(found["queries"], np.int64))
    return tuple(
        Answer(query=query, hits=gallery.show(hits[:_HITS], scores[:_HITS]))
        for query, hits, scores in zip(queries, found["hits"], found["scores"], strict=True)
    )


def _scores(found: Mapping[str, Mapping[str, float]]) -> tuple[Score, ...]:
    names = {
        "trained": ("Trained", "MACL, negatives gathered from both workers"),
        "untrained": ("Untrained", "the weights that training started from"),
        "random": ("Random ranking", "what chance gets with these labels"),
    }
    return tuple(
        Score(name=name, note=note, metrics={m: found[key][m] for m in METRICS})
        for key, (name, note) in names.items()
    )


def _protocol(counts: Mapping[str, float]) -> str:
    return (
        f"{counts['queries']:.0f} tiles of the summer day search {counts['items']:.0f} tiles of "
        "the autumn day. All lie on ground that training did not see, and a query's own ground "
        "is left out. Macro mAP is the mean over the labels of how well tiles with a label find "
        "others with it, rare mAP the same for the rarest third. In plain mAP a hit counts when "
        "it shares any label, which most do by chance. Same place R@10: how often the ground "
        "itself, on the other day, is among the first ten. Bars show macro mAP."
    )


def _history(path: Path) -> tuple[dict[str, float], ...]:
    rows = csv.DictReader(io.StringIO(read_bytes(str(path)).decode()))
    wanted = {"epoch": "epoch", **_CURVES}
    return tuple({to: float(row[n]) for n, to in wanted.items() if row.get(n)} for row in rows)


def _facts(left: Results, archive: Archive) -> tuple[tuple[str, str], ...]:
    bands = BandStatistics.from_json(str(left.folder / "statistics.json"))
    reflectances = (
        f"{band} {mean:.3f} ± {std:.3f}"
        for band, mean, std in zip(bands.bands, bands.mean, bands.std, strict=True)
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    search = left.result("search")
    return (
        ("Skysift", f"{version('skysift')} on Python {python_version()}"),
        ("Libraries", libraries),
        ("Seed", str(left.seed)),
        ("Reflectance (Dask)", f"{', '.join(reflectances)}; {bands.valid_pixels:,} pixels"),
        ("Encoder fingerprint", archive.spec.encoder_fingerprint),
        ("Best epoch", str(left.result("training")["best_epoch"])),
        ("Archive snapshot", archive.snapshot),
        ("Index version", left.result("index")["version"]),
        ("Same answer from", ", ".join(search["asked_from"])),
    )
