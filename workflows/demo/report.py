"""The demo's report: the output of its stages in words, pictures and numbers."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from pipeline.analysis.statistics import BandStatistics
from storage.archive.reader import Archive
from storage.index.manifest import IndexManifest, read_manifest
from storage.scene import Scene
from workflows.demo.evaluate import METRICS
from workflows.demo.landscape import COLOURS
from workflows.report.archive import training_history
from workflows.report.html import Command, ReportData, Score, Timing, write_report
from workflows.report.rendering import TileRenderer
from workflows.report.tile_images import archive_footprints, drawn_answers, ledger_summary

_HITS = 6
_Pairs = tuple[tuple[str, str], ...]
_LIBRARIES = ("ray", "dask", "torch", "faiss-cpu", "icechunk", "zarr", "rasterio", "numpy")
_ENCODERS = {
    "trained": ("Trained", "as searched: some appearance beside the labels"),
    "labels only": ("Labels only", "--blend 0: MACL, negatives gathered from both workers"),
    "appearance only": ("Appearance only", "--blend 1: what the trained network sees"),
    "untrained": ("Untrained", "the weights that training started from"),
    "random": ("Random ranking", "the score of chance with these labels"),
}


def write_page(
    folder: Path,
    seed: int,
    scenes: Sequence[Scene],
    timings: tuple[Timing, ...],
    commands: _Pairs,
) -> None:
    """Draw the report of a demo from the outputs of its stages, as ``report.html`` beside them."""
    scores, searches = (
        json.loads((folder / name).read_text()) for name in ("scores.json", "searches.json")
    )
    manifest = read_manifest(str(folder / "index"))
    archive = Archive.open(str(folder / "archive"), manifest.snapshot)
    hits = [rows[:_HITS] for rows in searches["hits"]]
    renderer = TileRenderer(archive, scenes)
    answers = drawn_answers(renderer, searches["queries"], hits, searches["scores"])
    data = ReportData(
        title="Skysift demo",
        summary=(
            f"A made-up archive of {len(scenes)} Sentinel-2-like scenes over two UTM zones "
            "and two seasons; an encoder trained on it with the multi-label contrastive loss "
            "MACL; and searches of the archive. The scenes are synthetic. The "
            "computation is real, and all of it ran on this machine."
        ),
        figures=(
            (str(len(scenes)), "scenes"),
            (f"{len(archive):,}", "tiles embedded"),
            (str(len(manifest.shards)), "index shards"),
            (f"{scores['trained']['rare mAP']:.2f}", "rare-label mAP, trained"),
            (f"{scores['untrained']['rare mAP']:.2f}", "untrained"),
            (f"{searches['median_ms']:.1f} ms", "median search"),
        ),
        metrics=METRICS,
        scores=tuple(
            Score(name=name, note=note, metrics={m: scores[key][m] for m in METRICS})
            for key, (name, note) in _ENCODERS.items()
        ),
        protocol=(
            f"{scores['counts']['queries']:.0f} tiles of the summer day search "
            f"{scores['counts']['items']:.0f} tiles of the autumn day. All lie on ground that "
            "training did not see, and a query's own ground is left out. Macro mAP is the mean "
            "over the labels of how well tiles with a label find others with it, rare mAP the "
            "same for the rarest third. nDCG counts shared labels; in mAP J>=0.6 a hit counts when "
            "it has nearly the same labels. Same place R@10: how often the ground itself, on the "
            "other day, is among the first ten. Bars show macro mAP."
        ),
        answers=answers,
        answers_note=(
            "Held-out tiles query the whole archive, both seasons; their own ground is left out. "
            "Labels that a hit shares with its query are green. All pictures of a zone have "
            "the same brightness."
        ),
        footprints=archive_footprints(archive, colours=COLOURS, answers=answers),
        footprints_note=(
            "One square for each place, coloured by its rarest label. Gaps are clouds and nodata. "
            "Numbers mark the queries above."
        ),
        history=training_history(str(folder / "encoder")),
        ledger=ledger_summary(archive),
        timings=timings,
        facts=_facts(folder, seed, archive, manifest),
        commands=tuple(Command(why=why, line=line) for why, line in commands),
    )
    write_report(data, folder / "report.html")


def _facts(folder: Path, seed: int, archive: Archive, manifest: IndexManifest) -> _Pairs:
    bands = BandStatistics.from_json(str(folder / "statistics.json"))
    reflectances = (
        f"{band} {mean:.3f} ± {std:.3f}"
        for band, mean, std in zip(bands.bands, bands.mean, bands.std, strict=True)
    )
    run = json.loads((folder / "encoder" / "run.json").read_text())
    return (
        ("Skysift", f"{version('skysift')} on Python {python_version()}"),
        ("Libraries", ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)),
        ("Seed", str(seed)),
        ("Reflectance (Dask)", f"{', '.join(reflectances)}; {bands.valid_pixels:,} pixels"),
        ("Encoder fingerprint", archive.spec.encoder_fingerprint),
        ("Best epoch", str(run["result"]["best_epoch"])),
        ("Archive snapshot", archive.snapshot),
        ("Index version", manifest.version),
    )
