"""Extension of a labelled dataset by tiles of an archive, whose labels are probabilities.

The gain is measured first, on labelled rows that are hidden from both teachers and training, and a
dataset that would not gain is not written.

Shapes: N rows, L labelled and U unlabelled rows, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.bundle import load_encoder
from encoders.metrics import Scores, score_retrieval
from pipeline.datasets.archive_tiles import (
    ArchiveTiles,
    append_rows,
    append_tiles,
    tiles_beside,
)
from pipeline.datasets.embed import embed_images
from pipeline.datasets.soft_labels import f1_scores, soft_labels
from pipeline.datasets.spec import SoftLabelSpec
from pipeline.training.head import learned_vectors
from storage.archive.reader import Archive
from storage.dataset import DatasetInfo, LabelledDataset
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, EncoderMismatchError, SkysiftError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

FOLDS = 3
COLUMNS = ("nDCG@50", "macro mAP", "rare mAP", "Jaccard@10")
_FIRST = "nDCG@50"
_FEWEST_LABELLED = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Soft labels on labelled rows that were hidden.

    Attributes
    ----------
    micro_f1, macro_f1
        F1 of the probabilities of .5 and more on the hidden rows: over all labels, and the mean of
        the classes.
    supervised, extended
        Retrieval of the hidden rows among the other labelled rows, by name, after a training with
        those rows alone and with the probabilities of the unlabelled rows too.
    gain, error
        Mean gain of nDCG@50 over the hidden rows, each compared with itself, and the standard error
        of that mean.
    """

    micro_f1: float
    macro_f1: float
    supervised: Mapping[str, float]
    extended: Mapping[str, float]
    gain: float
    error: float

    @property
    def pays(self) -> bool:
        """Whether nDCG@50 gains more than its error, and macro mAP does not fall."""
        return self.gain > self.error and not (
            self.extended["macro mAP"] < self.supervised["macro mAP"]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """An extended dataset: where it is, its rows, and the measurement."""

    output: str
    labelled: int
    added: int
    measured: Measurement
    info: DatasetInfo


def measure(
    features_NF: Floats,
    y_LC: Labels,
    spec: SoftLabelSpec,
    *,
    seed: int = 0,
    steps: int = 360,
    folds: int = FOLDS,
    progress: ProgressSink = ignore,
) -> Measurement:
    """Hide each third of the labelled rows in turn, and compare training with and without.

    Parameters
    ----------
    features_NF
        Features of the L labelled rows, followed by those of the U unlabelled rows.
    y_LC
        Labels of the labelled rows.
    steps
        Steps of each training; two a fold.

    Raises
    ------
    ConfigError
        There are fewer than 30 labelled rows.
    """
    labelled = len(y_LC)
    if labelled < _FEWEST_LABELLED:
        raise ConfigError(
            f"extend: {labelled} labelled train rows are too few to measure a gain on; label at "
            f"least {_FEWEST_LABELLED}"
        )
    fold_L = np.random.default_rng(seed).permutation(labelled) % folds
    found: list[tuple[tuple[float, float], Scores, Scores]] = []
    for fold in range(folds):
        known, hidden = np.flatnonzero(fold_L != fold), np.flatnonzero(fold_L == fold)
        order = np.concatenate([known, hidden, np.arange(labelled, len(features_NF))])
        features, y = features_NF[order], y_LC[order[: len(known) + len(hidden)]]
        found.append(_measure_fold(features, y, len(known), spec, seed, steps))
        progress(Progress(stage="measure", done=fold + 1, total=folds, unit="trainings"))
    f1, supervised, extended = zip(*found, strict=True)
    gain_L = np.concatenate(
        [
            after.by_query[_FIRST] - before.by_query[_FIRST]
            for before, after in zip(supervised, extended, strict=True)
        ]
    )
    gain_L = gain_L[np.isfinite(gain_L)]
    return Measurement(
        micro_f1=float(np.mean([micro for micro, _ in f1])),
        macro_f1=float(np.nanmean([macro for _, macro in f1])),
        supervised=_columns(supervised),
        extended=_columns(extended),
        gain=float(gain_L.mean()),
        error=float(gain_L.std(ddof=1) / np.sqrt(len(gain_L))),
    )


def _measure_fold(
    features_NF: Floats, y_LC: Labels, known: int, spec: SoftLabelSpec, seed: int, steps: int
) -> tuple[tuple[float, float], Scores, Scores]:
    """Return F1, and the scores without and with probabilities; rows: known, hidden, unlabelled."""
    labelled = len(y_LC)
    soft = soft_labels(features_NF, y_LC[:known], spec, seed=seed, steps=steps)
    f1 = f1_scores(soft[: labelled - known] >= 0.5, y_LC[known:])
    rows = np.concatenate([np.arange(known), np.arange(labelled, len(features_NF))])
    labels = np.concatenate([y_LC[:known], soft[labelled - known :]]).astype(np.float32)

    def scores(chosen: NDArray[np.int64], learned: Labels | Floats) -> Scores:
        z = learned_vectors(features_NF, chosen, learned, seed=seed, steps=steps)
        return score_retrieval(z[known:labelled], y_LC[known:], z[:known], y_LC[:known])

    return f1, scores(np.arange(known), y_LC[:known]), scores(rows, labels)


def _columns(folds: Sequence[Scores]) -> dict[str, float]:
    """Return the mean over the folds where a score is defined, by name."""
    return {name: _mean([fold.metrics[name] for fold in folds]) for name in COLUMNS}


def _mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def extend(
    dataset_uri: str | Location,
    archive: Archive,
    output: str | Location,
    spec: SoftLabelSpec | None = None,
    *,
    rows: int = 10_000,
    steps: int = 360,
    seed: int = 0,
    progress: ProgressSink = ignore,
) -> Extension:
    """Write a dataset with further train rows: tiles of an archive, with probabilities for labels.

    Tiles on the ground of the dataset are left out: those it holds, and those in a block of its
    validation or test rows.

    Parameters
    ----------
    dataset_uri
        The labelled dataset; its bands and tile size are those of the archive's encoder.
    archive
        Archive of unlabelled tiles, whose scenes can be read.
    output
        Dataset to write.
    spec
        How scores become probabilities.
    rows
        Largest number of tiles to add, drawn uniformly with ``seed``.
    steps
        Steps of each training of the measurement.

    Raises
    ------
    ConfigError
        There are too few labelled rows, or no tile to add.
    EncoderMismatchError
        Dataset and encoder have other bands or another tile size.
    SkysiftError
        The measured gain is not larger than its error, or macro mAP falls; nothing is written.

    Notes
    -----
    Peak memory is that of `pipeline.datasets.soft_labels.soft_labels` over the labelled and drawn
    rows, and of two strips of a scene. The measurement trains six heads on the features, and
    each round of ``spec`` after the first four more.
    """
    spec, dataset = spec or SoftLabelSpec(), LabelledDataset.open(dataset_uri)
    encoder = load_encoder(archive.encoder)
    if dataset.tile_px != encoder.spec.tile_px:
        raise EncoderMismatchError(
            f"the archive's encoder takes tiles of {encoder.spec.tile_px} px, the dataset has "
            f"{dataset.tile_px} px; choose a matching pair"
        )
    labelled = dataset.labelled("train")
    tiles = tiles_beside(dataset, archive, rows, seed)
    features = np.concatenate(
        [
            embed_images(encoder, dataset, labelled, progress=progress),
            tiles.embedding.astype(np.float32),
        ]
    )
    y_LC = dataset.labels[labelled]
    measured = measure(features, y_LC, spec, seed=seed, steps=steps, progress=progress)
    if not measured.pays:
        raise SkysiftError(
            f"extend: the probabilities do not pay here: {_gains(measured)} (F1 "
            f"{measured.micro_f1:.3f}) on hidden labelled rows; nothing is written; label more "
            "tiles, or use an archive of features that tell the classes apart"
        )
    soft = soft_labels(features, y_LC, spec, seed=seed, steps=steps)
    info = _write(dataset, archive, tiles, soft, output, spec, progress)
    added = info.count - len(dataset)
    return Extension(
        output=str(output), labelled=len(labelled), added=added, measured=measured, info=info
    )


def _gains(measured: Measurement) -> str:
    classes = f"{measured.supervised['macro mAP']:.3f} -> {measured.extended['macro mAP']:.3f}"
    return f"{_FIRST} {measured.gain:+.3f} ± {measured.error:.3f}, macro mAP {classes}"


def _write(
    dataset: LabelledDataset,
    archive: Archive,
    tiles: ArchiveTiles,
    soft_UC: Floats,
    output: str | Location,
    spec: SoftLabelSpec,
    progress: ProgressSink,
) -> DatasetInfo:
    info = dataset.info
    origin = {
        "importer": "extend",
        "dataset": info.digest,
        "dataset_origin": dict(info.origin),
        "archive": archive.uri,
        "snapshot": archive.snapshot,
        "soft_labels": asdict(spec),
    }
    with DatasetWriter(
        output,
        bands=info.bands,
        classes=info.classes,
        resolution_m=info.resolution_m,
        origin=origin,
        normalisation=(info.band_mean, info.band_std),
    ) as writer:
        append_rows(
            writer,
            dataset,
            np.arange(len(dataset)),
            dataset.soft_labels,
            {"soft": dataset.is_soft.tolist()},
        )
        soft = {"soft": [True] * len(tiles)}
        return writer.finish(append_tiles(writer, archive, tiles, soft_UC, soft, progress))
