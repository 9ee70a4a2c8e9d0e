"""One run of the results page: a projection head trained on frozen features, then scored.

The loop, the losses, the sampler and the metrics are the product's own (``encoders``); only Ray is
left out, since a head trains in seconds. A finished run is kept as a small JSON file named by a
digest of everything that decides its figures, so an interrupted benchmark goes on where it was.

Shapes: N rows of the labelled set, F features, C labels.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from encoders.loop import TrainingLoop, TrainingRows
from encoders.losses import LabelStatistics, build_loss, loss_options
from encoders.metrics import random_ranking_metrics, retrieval_metrics
from encoders.sampling import LabelAwareBatchSampler
from encoders.spec import LoopSpec
from pipeline.datasets.folder import import_folder
from pipeline.training.head import head_encoder
from pipeline.training.spec import TrainingSpec
from pipeline.training.worker import initial_encoder
from storage.dataset import LabelledDataset, searched_splits

K = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The labelled set as the head sees it.

    Attributes
    ----------
    features_NF
        Frozen features, float32.
    labels_NC
        Multi-hot labels, uint8.
    split_N
        ``train``, ``val`` or ``test``.
    statistics
        Label counts of the train split.
    digest
        Changes with the images, the labels or the backbone.
    """

    features_NF: NDArray[np.float32]
    labels_NC: NDArray[np.uint8]
    split_N: NDArray[np.object_]
    statistics: LabelStatistics
    digest: str

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Return the row numbers of the splits, one split after the other."""
        parts = [np.flatnonzero(self.split_N == split) for split in splits]
        return np.concatenate(parts).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Settings that decide the figures of a run in a world.

    `temperature_end`: the temperature of the loss at the end, approached linearly by epoch.
    """

    loss: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 1e-3
    dimension: int = 128
    hidden: int = 512
    queue_rows: int = 0
    sampling_power: float = 0.5
    temperature_end: float | None = None
    heads: int = 1
    dropout: float = 0.0

    def digest(self, world: World, split: str) -> str:
        """Return 16 hexadecimal digits that name the run."""
        settings = plain(self)
        settings["options"] = {**loss_options(self.loss), **self.options}
        text = json.dumps([settings, world.digest, split, K], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(run: Run) -> dict[str, Any]:
    """Return the settings of a run as JSON values, those added later only where they differ."""
    settings = {name: value for name, value in asdict(run).items() if value is not None}
    return {k: v for k, v in settings.items() if (k, v) not in (("heads", 1), ("dropout", 0.0))}


def load_world(images: Path, backbone: Path, scratch: Path, tile_px: int | None = None) -> World:
    """Import the images, compute the frozen backbone's features once, and keep both in ``scratch``.

    Raises
    ------
    NotFoundError
        The images or the weights do not exist.
    """
    uri = str(scratch / "dataset")
    import_folder(str(images), uri, tile_px=tile_px)
    dataset = LabelledDataset.open(uri)
    weights = hashlib.sha256()
    for path in sorted(backbone.iterdir()):
        weights.update(path.read_bytes())
    digest = hashlib.sha256((dataset.info.digest + weights.hexdigest()).encode()).hexdigest()[:16]
    cache = scratch / f"features-{digest}.npy"
    if not cache.exists():
        spec = TrainingSpec(backbone="mobilenet_v2", pretrained=str(backbone), freeze_backbone=True)
        part = cache.with_suffix(".part.npy")
        np.save(part, initial_encoder(dataset, spec).features(dataset.images))
        part.rename(cache)
    return World(
        features_NF=np.load(cache),
        labels_NC=dataset.labels,
        split_N=dataset.split,
        statistics=LabelStatistics.from_labels(dataset.labels[dataset.indices("train")]),
        digest=digest,
    )


def score(world: World, z_ND: NDArray[np.float32], split: str) -> dict[str, float]:
    """Score embeddings of all rows: queries of ``split`` against the rows known before it."""
    queries, items = world.rows(split), world.rows(*searched_splits(split))
    y_NC = world.labels_NC
    return retrieval_metrics(
        z_ND[queries],
        y_NC[queries],
        z_ND[items],
        y_NC[items],
        K,
        rare_counts=y_NC[world.rows("train")].sum(0),
    )


def score_random(world: World, split: str) -> dict[str, float]:
    """Score a random ranking."""
    queries, items = world.rows(split), world.rows(*searched_splits(split))
    counts_C = world.labels_NC[world.rows("train")].sum(0)
    y_QC, y_NC = world.labels_NC[queries], world.labels_NC[items]
    return random_ranking_metrics(y_QC, y_NC, K, rare_counts=counts_C)


def train(world: World, run: Run) -> NDArray[np.float32]:
    """Train a head and return the embeddings of all rows, (N, D)."""
    rows = world.rows("train")
    labels = world.labels_NC[rows]
    loss = build_loss(
        run.loss,
        world.statistics,
        dimension=run.dimension,
        heads=run.heads,
        initial_seed=run.seed,
        **run.options,
    )
    loop = TrainingLoop(
        head_encoder(
            world.features_NF.shape[1], run.dimension, run.hidden, run.seed, run.heads, run.dropout
        ),
        loss,
        TrainingRows(inputs=world.features_NF, rows=rows, labels=labels),
        LoopSpec(
            epochs=run.epochs,
            batch_size=run.batch_size,
            learning_rate=run.learning_rate,
            sampling_power=run.sampling_power,
            queue_rows=run.queue_rows,
            seed=run.seed,
            freeze_backbone=True,
        ),
    )
    loop.sampler = _Remembering(labels, run.batch_size, seed=run.seed, power=run.sampling_power)
    while loop.epoch < run.epochs:
        if run.temperature_end is not None:
            gone = loop.epoch / run.epochs * (run.temperature_end - run.options["temperature"])
            for part in loss.modules():
                if hasattr(part, "temperature"):
                    part.temperature = run.options["temperature"] + gone
        for _ in loop.run_epoch():
            pass
    return loop.embed(np.arange(len(world.features_NF)))


def measure(world: World, run: Run, split: str, scratch: Path) -> dict[str, float]:
    """Return a run's scores on a split and its ``seconds``, from the scratch folder if known."""
    record = scratch / "runs" / f"{run.digest(world, split)}.json"
    if record.exists():
        found: dict[str, float] = json.loads(record.read_text())["scores"]
        return found
    started = time.perf_counter()
    scores = score(world, train(world, run), split)
    scores["seconds"] = time.perf_counter() - started
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(json.dumps({"run": asdict(run), "split": split, "scores": scores}))
    part.rename(record)
    return scores


def seeds(run: Run, count: int) -> list[Run]:
    """Return the run with seeds 0 to ``count - 1``."""
    return [replace(run, seed=seed) for seed in range(count)]


class _Remembering(LabelAwareBatchSampler):
    """The product's sampler; its batches are composed once for all runs with the same seed."""

    _plans: ClassVar[dict[tuple[Any, ...], NDArray[np.int64]]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Compose the batches of an epoch, or take those that an earlier run composed."""
        labels = hashlib.sha256(self.labels_NC.tobytes()).hexdigest()
        key = (labels, self.batch_size, self.seed, self.power, epoch)
        if key not in self._plans:
            super().set_epoch(epoch)
            self._plans[key] = self.plan_LB
        self.epoch, self._start, self.plan_LB = epoch, 0, self._plans[key]
