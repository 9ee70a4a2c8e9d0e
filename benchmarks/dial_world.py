"""Heads of the dial's benchmark: labelled sets and series as one table of frozen features.

A head is trained as on the results page, on the train rows of one set, and gives vectors of all
rows: of its own set, of the other, and of the tiles of two series. Vectors are kept in the scratch
folder, so a stopped benchmark goes on where it was.

Shapes: N rows of all sets and series, F features, C labels.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.place_pairs import Series
from benchmarks.results_runs import Run, World, plain, train
from encoders.losses import LabelStatistics
from encoders.projection import appearance_head
from storage.dataset import LabelledDataset
from storage.parts import Parts

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SETS = ("AID", "UC Merced")
FOLDS, _FOLD_SEED = 5, 3
WIDTH = 128
"""Width of a label part."""
_ENSEMBLE = Run(
    loss="macl",
    options={"exactness": 0.1, "discount": 1.0},
    heads=4,
    dropout=0.1,
    sampling_power=0.0,
    dimension=WIDTH,
)
LOSSES: Mapping[str, Run] = {
    "macl": Run(loss="macl", dimension=WIDTH),
    "macl, exactness 0.2": Run(loss="macl", options={"exactness": 0.2}, dimension=WIDTH),
    "macl, 4 heads": _ENSEMBLE,
    "macl, 4 heads of 64": replace(_ENSEMBLE, dimension=2 * WIDTH),
    "mulsupcon": Run(loss="mulsupcon", options={"temperature": 0.07}, dimension=WIDTH),
    "mulsupcon, falling temperature": Run(
        loss="mulsupcon", options={"temperature": 0.2}, temperature_end=0.1, dimension=WIDTH
    ),
    "mulsupcon, 4 heads": Run(
        loss="mulsupcon",
        options={"temperature": 0.2},
        temperature_end=0.1,
        heads=4,
        dropout=0.1,
        sampling_power=0.0,
        dimension=WIDTH,
    ),
}
"""MACL alone and in candidates for a label part, and the strongest baseline as tuned for the page.

4 heads: with exactness .1, discount 1, dropout .1 and no lift of rare labels, which were found
among some tens of settings on the validation split of AID.
"""
BASELINES = ("mulsupcon", "mulsupcon, falling temperature")
PEER = "mulsupcon, 4 heads"
"""The baseline in the form of the label part: no bar asks for it, and fairness does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A head: the set whose train rows it learned from, its loss, and its seed.

    With a ``fold``, it learned from all rows of the set but those of that fold's scene classes.
    """

    source: str
    loss: str
    seed: int
    fold: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of the labelled sets and of the series, one after the other.

    ``set_N`` names the set or series of each row; ``split_N`` is its split, ``group_N`` its scene
    class, or the tile of a series, whose date is in ``split_N``. ``digest`` changes with the
    images and the backbone.
    """

    features_NF: Floats
    labels_NC: NDArray[np.uint8]
    set_N: NDArray[np.object_]
    split_N: NDArray[np.object_]
    group_N: NDArray[np.object_]
    digest: str
    epochs: int = 40
    folds: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def rows(self, name: str, *splits: str) -> Ints:
        """Return the rows of a set or series, of all splits without any."""
        is_in = self.set_N == name
        if not splits:
            return np.flatnonzero(is_in)
        return np.concatenate([np.flatnonzero(is_in & (self.split_N == s)) for s in splits])

    def learned(self, head: Head) -> Ints:
        """Return the rows that a head learned from."""
        if head.fold is None:
            return self.rows(head.source, "train")
        rows = self.rows(head.source)
        return rows[~np.isin(self.group_N[rows], self.folds[head.source][head.fold])]

    def unseen(self, source: str, fold: int) -> Ints:
        """Return the rows of the scene classes of a fold."""
        rows = self.rows(source)
        return rows[np.isin(self.group_N[rows], self.folds[source][fold])]


def table_of(worlds: Mapping[str, World], series: Mapping[str, Series], scratch: Path) -> Table:
    """Return all rows; scene classes are dealt to the folds at random."""
    groups = {
        name: LabelledDataset.open(str(scratch / (name if name != "AID" else "") / "dataset")).rows[
            "group"
        ]
        for name in worlds
    }
    classes = next(iter(worlds.values())).labels_NC.shape[1]
    no_labels = {name: np.zeros((len(s.date), classes), np.uint8) for name, s in series.items()}
    names = [*worlds, *series]
    parts = [*worlds.values(), *series.values()]
    counts = [len(_features(part)) for part in parts]
    tiles = {
        name: [f"{name}/{column}/{row}" for column, row in s.tile] for name, s in series.items()
    }
    return Table(
        features_NF=np.concatenate([_features(part) for part in parts]),
        labels_NC=np.concatenate([*(w.labels_NC for w in worlds.values()), *no_labels.values()]),
        set_N=np.repeat(np.array(names, dtype=object), counts),
        split_N=np.concatenate(
            [
                *(world.split_N for world in worlds.values()),
                *(one.date.astype(str).astype(object) for one in series.values()),
            ]
        ),
        group_N=np.concatenate(
            [
                np.asarray([*groups[name]] if name in groups else tiles[name], object)
                for name in names
            ]
        ),
        digest="-".join(world.digest for world in worlds.values()),
        folds={name: _folds(sorted(set(groups[name]))) for name in worlds},
    )


def _features(part: World | Series) -> Floats:
    return part.features_NF if isinstance(part, World) else part.features


def _folds(classes: list[str]) -> tuple[tuple[str, ...], ...]:
    """Return the scene classes of each fold."""
    order = np.random.default_rng(_FOLD_SEED).permutation(np.asarray(classes, object))
    return tuple(tuple(order[fold::FOLDS].tolist()) for fold in range(FOLDS))


def label_part(table: Table, scratch: Path, head: Head) -> Floats:
    """Return the vectors (N, D) that a head gives all rows."""
    run = replace(LOSSES[head.loss], seed=head.seed, epochs=table.epochs)
    rows = table.learned(head)

    def compute() -> Floats:
        split_N = np.full(len(table.set_N), "other", object)
        split_N[rows] = "train"
        world = World(
            features_NF=table.features_NF,
            labels_NC=table.labels_NC,
            split_N=split_N,
            statistics=LabelStatistics.from_labels(table.labels_NC[rows]),
            digest=table.digest,
        )
        return train(world, run)

    return _kept(table, scratch, rows, plain(run), compute)


def appearance_part(table: Table, scratch: Path, rows: Ints, width: int) -> Floats:
    """Return the appearance part (N, width) of all rows, fitted to some."""

    def compute() -> Floats:
        head, _ = appearance_head(table.features_NF[rows], width)
        with torch.inference_mode():
            scores = head(torch.from_numpy(table.features_NF))
            unit: Floats = torch.nn.functional.normalize(scores).numpy()
        return unit

    return _kept(table, scratch, rows, {"appearance": width, "roots": True}, compute)


def _kept(
    table: Table,
    scratch: Path,
    rows: Ints,
    settings: Mapping[str, Any],
    compute: Callable[[], Floats],
) -> Floats:
    """Return vectors of all rows that were fitted to some, from the scratch folder if known."""
    told = json.dumps([settings, table.digest, len(table.set_N)], sort_keys=True).encode()
    record = scratch / f"dial-{hashlib.sha256(told + rows.tobytes()).hexdigest()[:16]}.npy"
    if not record.exists():
        part = record.with_suffix(f".{os.getpid()}.npy")
        np.save(part, compute())
        part.rename(record)
    found: Floats = np.load(record)
    return found


def two_parts(appearance: Floats, label: Floats, weight: float) -> Floats:
    """Return vectors whose cosine is the blended score, of parts in float16 as in an archive."""
    stored = (np.concatenate([appearance, label], axis=1) / np.sqrt(2)).astype(np.float16)
    parts = Parts(appearance=appearance.shape[1], labels=label.shape[1])
    return parts.weighted(stored, weight)
