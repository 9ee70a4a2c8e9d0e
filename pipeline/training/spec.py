"""Settings, location and result of a training run, in plain values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from encoders.spec import LoopSpec, dimension_of_each
from storage.errors import ConfigError
from storage.location import Location
from storage.values import Count, Fraction, NonNegative, json_digest

# Settings that may differ between two starts of one run: they decide where a run executes and do
# not change its result.
RUNTIME = frozenset(
    {"workers", "cpus_per_worker", "device", "max_failures", "checkpoint_every_steps"}
    | {"features_uri"}
)
# Settings that later versions added, with the values of runs before: they are part of a digest only
# where they differ, so that a finished run stays the same run.
ADDED: Mapping[str, Any] = {
    "backbone_learning_rate": None,
    "ema_decay": 0.0,
    "heads": 1,
    "dropout": 0.0,
    "place_pairs": None,
    "place_weight": 0.25,
    "place_batch": 128,
    "place_cloud": 0.1,
    "place_season_days": None,
    "most_places": 5_000,
}
# Settings that a checkpoint depends on: a run cannot resume after a change of one of these.
FIXED = frozenset(
    {"backbone", "backbone_options", "pretrained", "freeze_backbone", "dimension", "hidden"}
    | {"heads", "loss", "loss_options", "batch_size", "queue_rows", "sampling_power", "seed"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSpec(LoopSpec):
    """Settings of a training run: those of `encoders.spec.LoopSpec`, the networks and the cluster.

    Attributes
    ----------
    backbone
        Name of the network for `encoders.backbones.build.build_backbone`.
    backbone_options
        Options of that network.
    pretrained
        Folder of the backbone's weights, or their id on the model hub; None for random weights.
    freeze_backbone
        Train only the head: the features of all images are computed once, stored beside the run and
        held in memory by every worker (4 bytes x features x images).
    dimension
        Length of a vector.
    hidden
        Width of the projection head's middle layer.
    heads
        Number of projection heads, which share the dimension and learn apart: the cosine of two
        vectors is the mean of theirs.
    dropout
        Share of the features that each head does not see in a training step.
    embedding
        Embedding that the archive stores: the ``projection`` trained by the loss (default: it
        carries the label geometry, is small, and is the only trained part with a frozen backbone)
        or the backbone's ``features`` before the head (they transfer better to other labels).
    loss
        Name of the loss for `encoders.losses.build_loss`, or ``package.module:Name`` of one's own.
    loss_options
        Options of that loss.
    place_pairs
        Archive, or catalog of scenes, of several dates of the same ground, whose pairs of
        acquisitions of a tile are a second loss; None for none.
    place_weight
        Weight of that loss; with 0 the pairs are kept beside the run for a part of their own.
    place_batch
        Pairs of the global batch.
    place_cloud
        Largest cloud fraction of a tile of a pair.
    place_season_days
        Most days of the year between an acquisition and the clearest one of its place; None for
        any season.
    most_places
        Largest number of places, drawn by `seed`; the pixels of their tiles are stored beside the
        run.
    monitor
        Retrieval metric on the validation split that selects the best epoch.
    eval_every
        Epochs between two evaluations.
    eval_rows
        Largest number of training rows in the evaluated database; the queries are at most half as
        many validation rows.
    patience
        Evaluations without an improvement before training stops; None for never.
    workers
        Number of Ray Train workers.
    cpus_per_worker
        CPUs (and torch threads) of each worker.
    device
        Device of the workers: ``cpu``, ``gpu``, or ``auto`` for a GPU if there is one.
    max_failures
        Restarts from the last checkpoint after a worker died.
    checkpoint_every_steps
        Additional checkpoints within an epoch; None for checkpoints at the end of epochs only.
    features_uri
        Folder for the features of a frozen backbone, shared between runs; the folder of the run
        when None.
    """

    backbone: str = "tiny-cnn"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    dimension: Count = 128
    hidden: Count = 512
    heads: Count = 1
    dropout: Fraction = 0.0
    embedding: Literal["projection", "features"] = "projection"
    loss: str = "macl"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    place_pairs: str | None = None
    place_weight: NonNegative = 0.25
    place_batch: Count = 128
    place_cloud: Fraction = 0.1
    place_season_days: Count | None = None
    most_places: Count = 5_000
    monitor: str = "nDCG@50"
    eval_every: Count = 1
    eval_rows: Count = 2000
    patience: Count | None = None
    workers: Count = 1
    cpus_per_worker: Count = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    max_failures: int = 3
    checkpoint_every_steps: Count | None = None
    features_uri: str | None = None

    def __post_init__(self) -> None:
        LoopSpec.__post_init__(self)
        if self.batch_size < 2 or self.batch_size % self.workers:
            raise ConfigError(
                f"training: batch_size {self.batch_size} cannot be shared evenly by "
                f"{self.workers} workers; give a multiple of {self.workers}"
            )
        if self.embedding not in ("projection", "features"):
            raise ConfigError(
                f"training: embedding {self.embedding!r} is not projection or features"
            )
        dimension_of_each(self.dimension, self.heads)
        if self.dropout == 1:
            raise ConfigError("training: dropout 1 leaves no features; give less than 1")
        if self.freeze_backbone and self.embedding == "features":
            raise ConfigError(
                "training: a frozen backbone's features cannot learn; "
                "set embedding to projection or freeze_backbone to false"
            )

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Return the names of the settings that differ from those of a stored run."""
        current = plain(self)
        before = {**ADDED, **stored}
        return [part.name for part in fields(self) if current[part.name] != before.get(part.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A training run: dataset, settings, output folder, and the digests of one's own code.

    Attributes
    ----------
    sources
        The setting that names code of one's own, to the digest of its source
        (`encoders.plugins.Plugin.digest`).
    """

    dataset: Location
    dataset_digest: str
    spec: TrainingSpec
    output: Location
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> Location:
        """Folder of the trained encoder."""
        return self.output / "bundle"

    @property
    def history(self) -> Location:
        """The CSV file with one row per epoch."""
        return self.output / "history.csv"

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the dataset and the settings that decide the result."""
        settings = {k: v for k, v in self._settings().items() if k not in RUNTIME}
        return self._digest_of(settings)

    @property
    def lineage(self) -> str:
        """SHA-256 (hexadecimal) over the dataset and the settings that no resumption changes."""
        settings = {k: v for k, v in self._settings().items() if k in FIXED}
        return self._digest_of(settings)

    def _settings(self) -> dict[str, Any]:
        """Return the settings, those of `ADDED` only where they differ."""
        known = plain(self.spec)
        return {k: v for k, v in known.items() if k not in ADDED or v != ADDED[k]}

    def _digest_of(self, settings: Mapping[str, Any]) -> str:
        own = [dict(self.sources)] if self.sources else []
        return json_digest([self.dataset_digest, settings, *own])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """Result of a training run.

    Attributes
    ----------
    bundle_uri, fingerprint
        The encoder of the best epoch.
    best_epoch, best_metrics
        Number of the best epoch (from 1) and its retrieval metrics on the validation split.
    epochs
        Number of trained epochs; fewer than ``spec.epochs`` when training stopped early.
    history_csv
        URI of the table of epochs.
    """

    bundle_uri: str
    fingerprint: str
    best_epoch: int
    best_metrics: Mapping[str, float]
    epochs: int
    history_csv: str


def plain(spec: TrainingSpec) -> dict[str, Any]:
    """Return the settings as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return values
