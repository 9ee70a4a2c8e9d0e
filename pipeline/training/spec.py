"""What a training run is, in plain values: its settings, its place, its outcome."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from storage.errors import ConfigError
from storage.location import StorageOptions, join_uri

# Settings that may differ between two starts of one run: they decide where and how long it
# runs, not what it learns from.
RUNTIME = frozenset(
    {"workers", "cpus_per_worker", "device", "max_failures", "checkpoint_every_steps"}
    | {"features_uri"}
)
# Settings that a checkpoint depends on; nothing resumes across a change of them.
FIXED = frozenset(
    {"backbone", "backbone_options", "pretrained", "freeze_backbone", "dimension", "hidden"}
    | {"loss", "loss_options", "batch_size", "queue_rows", "sampling_power", "seed"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSpec:
    """Settings of a training run.

    Attributes
    ----------
    backbone, backbone_options, pretrained
        For `encoders.backbones.build.build_backbone`.
    freeze_backbone
        Train only the head: the backbone's features of all images are computed once, kept beside
        the run and held in memory by every worker (4 bytes x features x images).
    dimension, hidden
        Length of a vector; width of the projection head's middle layer.
    embedding
        What the archive stores: the ``projection`` that the loss trained (default: it carries the
        label geometry, is small, and is all that a frozen backbone can learn) or the backbone's
        ``features`` below it (they transfer better to labels that were not trained).
    loss, loss_options
        For `encoders.losses.build_loss`.
    batch_size, epochs
        Rows of the global batch; passes over the training rows.
    learning_rate, weight_decay, warmup_epochs, gradient_clip
        AdamW with a linear warm-up and a cosine to zero; the gradient's norm is clipped.
    sampling_power
        Lift of rare labels by the batch sampler, 0 (none) to 1.
    precision
        ``bf16`` runs the network under autocast.
    queue_rows
        Further keys kept from earlier batches; 0 for none.
    chunk_rows
        Rows encoded at once when a batch does not fit into memory; 0 for all.
    seed
        Of the weights, the batches and the augmentation.
    augment
        Options of `encoders.augment.Augmentation`; None for none. Not used with a frozen backbone.
    monitor, eval_every, eval_rows, patience
        The retrieval metric of the validation split that decides which epoch is best; epochs
        between two evaluations; most training rows in the database it is measured against (the
        queries are at most half as many validation rows); evaluations without a better one before
        training stops (None: never).
    workers, cpus_per_worker, device
        Ray Train workers, CPUs (and torch threads) of each, ``auto``, ``cpu`` or ``gpu``.
    max_failures
        Restarts from the last checkpoint after a worker died.
    checkpoint_every_steps
        Extra checkpoints within an epoch; None for one at the end of each only.
    features_uri
        Folder for the features of a frozen backbone, to share them between runs; the run's own
        when None.
    """

    backbone: str = "tiny-cnn"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    freeze_backbone: bool = False
    dimension: int = 128
    hidden: int = 512
    embedding: Literal["projection", "features"] = "projection"
    loss: str = "macl"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    epochs: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    gradient_clip: float = 1.0
    sampling_power: float = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"
    queue_rows: int = 0
    chunk_rows: int = 0
    seed: int = 0
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

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Return the names of the settings that differ from a stored run's."""
        current = plain(self)
        return [part.name for part in fields(self) if current[part.name] != stored.get(part.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A run: what is trained on, how, and where it is kept."""

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
        """SHA-256 (hexadecimal) over what decides the result."""
        settings = {k: v for k, v in plain(self.spec).items() if k not in RUNTIME}
        text = json.dumps([self.dataset_digest, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes
    ----------
    bundle_uri, fingerprint
        The encoder of the best epoch.
    best_epoch, best_metrics
        That epoch (from 1) and the retrieval metrics of the validation split.
    epochs
        Epochs trained; fewer than asked when training stopped early.
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
    """Return a specification as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return values
