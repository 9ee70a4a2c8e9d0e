"""Settings, location and result of a training run, in plain values."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from encoders.spec import LoopSpec
from storage.errors import ConfigError
from storage.location import StorageOptions, join_uri

# Settings that may differ between two starts of one run: they decide where a run executes and do
# not change its result.
RUNTIME = frozenset(
    {"workers", "cpus_per_worker", "device", "max_failures", "checkpoint_every_steps"}
    | {"features_uri"}
)
# Settings that a checkpoint depends on: a run cannot resume after a change of one of these.
FIXED = frozenset(
    {"backbone", "backbone_options", "pretrained", "freeze_backbone", "dimension", "hidden"}
    | {"loss", "loss_options", "batch_size", "queue_rows", "sampling_power", "seed"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSpec(LoopSpec):
    """Settings of a training run: those of `encoders.spec.LoopSpec`, the networks and the cluster.

    Attributes
    ----------
    backbone, backbone_options, pretrained
        For `encoders.backbones.build.build_backbone`.
    freeze_backbone
        Train only the head: the features of all images are computed once, stored beside the run and
        held in memory by every worker (4 bytes x features x images).
    dimension, hidden
        Length of a vector; width of the projection head's middle layer.
    embedding
        Embedding that the archive stores: the ``projection`` trained by the loss (default: it
        carries the label geometry, is small, and is the only trained part with a frozen backbone)
        or the backbone's ``features`` before the head (they transfer better to other labels).
    loss, loss_options
        For `encoders.losses.build_loss`.
    augment
        Options of `encoders.augment.Augmentation`; None for no augmentation. Not used with a frozen
        backbone.
    monitor, eval_every, eval_rows, patience
        Retrieval metric on the validation split that selects the best epoch; epochs between two
        evaluations; largest number of training rows in the evaluated database (the queries are at
        most half as many validation rows); evaluations without an improvement before training stops
        (None: never).
    workers, cpus_per_worker, device
        Number of Ray Train workers; CPUs (and torch threads) per worker; ``auto``, ``cpu`` or
        ``gpu``.
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
    dimension: int = 128
    hidden: int = 512
    embedding: Literal["projection", "features"] = "projection"
    loss: str = "macl"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] | None = field(default_factory=dict)
    monitor: str = "nDCG@50"
    eval_every: int = 1
    eval_rows: int = 2000
    patience: int | None = None
    workers: int = 1
    cpus_per_worker: int = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    max_failures: int = 3
    checkpoint_every_steps: int | None = None
    features_uri: str | None = None

    def __post_init__(self) -> None:
        positive = ("dimension", "hidden", "epochs", "eval_every", "eval_rows", "workers")
        for name in (*positive, "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training: {name} is {getattr(self, name)}; give at least 1")
        if self.batch_size < 2 or self.batch_size % self.workers:
            raise ConfigError(
                f"training: batch_size {self.batch_size} cannot be shared evenly by "
                f"{self.workers} workers; give a multiple of {self.workers}"
            )
        if self.embedding not in ("projection", "features"):
            raise ConfigError(
                f"training: embedding {self.embedding!r} is not projection or features"
            )
        if self.freeze_backbone and self.embedding == "features":
            raise ConfigError(
                "training: a frozen backbone's features cannot learn; "
                "set embedding to projection or freeze_backbone to false"
            )
        LoopSpec.__post_init__(self)

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Return the names of the settings that differ from those of a stored run."""
        current = plain(self)
        return [part.name for part in fields(self) if current[part.name] != stored.get(part.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A training run: dataset, settings and output folder."""

    dataset_uri: str
    dataset_digest: str
    spec: TrainingSpec
    output_uri: str
    options: StorageOptions | None = None

    @property
    def bundle_uri(self) -> str:
        """Folder of the trained encoder."""
        return join_uri(self.output_uri, "bundle")

    @property
    def history_uri(self) -> str:
        """The CSV file with one row per epoch."""
        return join_uri(self.output_uri, "history.csv")

    @property
    def board_uri(self) -> str:
        """Folder of the TensorBoard log."""
        return join_uri(self.output_uri, "tensorboard")

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the dataset and the settings that decide the result."""
        settings = {k: v for k, v in plain(self.spec).items() if k not in RUNTIME}
        text = json.dumps([self.dataset_digest, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


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
