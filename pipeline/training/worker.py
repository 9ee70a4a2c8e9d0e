"""One worker of a training run: a plain class that uses torch and files, but not Ray.

The worker opens the dataset, builds encoder and loss, trains with `encoders.loop`, scores the
validation split, and passes metrics and checkpoints to a callback. A checkpoint is ``state.json``
and ``tensors.safetensors``: model, optimiser, queue, best weights, schedule, sampler and history;
the state holds the SHA-256 of both.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from encoders.bundle import Encoder, new_encoder, save_bundle
from encoders.loop import Floats, TrainingLoop, TrainingRows, map_sharded
from encoders.losses import build_loss
from encoders.losses.core import refusal
from encoders.losses.statistics import LabelStatistics
from encoders.metrics import retrieval_metrics
from encoders.places import PlaceRows
from encoders.projection import mlp_options
from encoders.spec import EncoderSpec
from pipeline.training.log import TrainingLog
from pipeline.training.places import PLACES, place_groups
from pipeline.training.sources import require_sources, source_of
from pipeline.training.spec import TrainingJob, TrainingSpec
from storage.dataset import LabelledDataset, evenly
from storage.errors import ConfigError, DivergedError, NotFoundError
from storage.location import Location, sha256_of_file
from storage.progress import Progress, ProgressSink, ignore
from storage.values import json_digest

FORMAT = "skysift-checkpoint/1"
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_DIGEST_BYTES = 32
_REPORT_INTERVAL_S = 0.5

Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save], None]


@dataclass(slots=True)
class _Best:
    """The best epoch so far; ``stale`` counts the evaluations since."""

    epoch: int = 0
    score: float = -math.inf
    metrics: Mapping[str, float] | None = None
    stale: int = 0


class TrainingWorker:
    """Trains one share of a run.

    The constructor reads and checks the inputs without collective operations; `run` trains.

    Parameters
    ----------
    job
        The run.
    rank, world_size
        Rank of this worker in the process group, and the number of workers; with several workers
        the group is initialised already.
    device
        Torch device.
    progress
        Receives features, steps and epochs, from rank 0 only.
    """

    def __init__(
        self,
        job: TrainingJob,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        progress: ProgressSink = ignore,
    ) -> None:
        self.job, self.spec, self.rank, self.world_size = job, job.spec, rank, world_size
        self.progress = progress if rank == 0 else ignore
        self.dataset = LabelledDataset.open(job.dataset)
        if (found := self.dataset.info.digest) != job.dataset_digest:
            raise ConfigError(
                f"dataset {job.dataset} was replaced after this run was planned: its digest is "
                f"{found[:16]}, the run's is {job.dataset_digest[:16]}; start the command again"
            )
        self.train_rows, self.val_rows = (self.dataset.indices(s) for s in ("train", "val"))
        if not len(self.train_rows):
            raise ConfigError(f"dataset {job.dataset} has no train rows; import it with some")
        self.train_labels = self.dataset.labels[self.train_rows]
        require_sources(job)
        self.encoder = initial_encoder(self.dataset, self.spec).to(device)
        self.loss = build_loss(
            self.spec.loss,
            LabelStatistics.from_labels(self.train_labels),
            dimension=self.spec.dimension,
            heads=self.spec.heads,
            initial_seed=self.spec.seed,
            **self.spec.loss_options,
        )
        learned = self.dataset.soft_labels[self.train_rows]
        if (learned != self.train_labels).any() and not self.loss.takes_probabilities:
            raise ConfigError(f"dataset {job.dataset}: {refusal(self.spec.loss)}")
        self.log = TrainingLog(job.history, job.output / "tensorboard")
        self.best, self.best_weights = _Best(), dict[str, Tensor]()
        self._reported_at = 0.0

    def run(self, checkpoint: Path | None, report: Report) -> dict[str, Any]:
        """Train to the end and write the bundle of the best epoch.

        Parameters
        ----------
        checkpoint
            Folder of the checkpoint to continue from.
        report
            Called by every worker after each epoch with the figures of the epoch and a function
            that writes a checkpoint into a folder (for rank 0).

        Raises
        ------
        DivergedError
            On every worker alike: the training left the finite numbers. No checkpoint holds them.

        Returns
        -------
        dict
            ``fingerprint``, ``best_epoch``, ``best_metrics`` and ``epochs``; the fingerprint is
            empty on ranks other than 0.
        """
        self.loop = self._loop()
        if checkpoint is not None:
            self._restore(checkpoint)
        while self.loop.epoch < self.spec.epochs and not self._is_over():
            self._run_epoch(report)
        fingerprint = self._finish() if self.rank == 0 else ""
        self.log.close()
        return {
            "fingerprint": fingerprint,
            "best_epoch": self.best.epoch,
            "best_metrics": dict(self.best.metrics or {}),
            "epochs": self.loop.epoch,
        }

    def _loop(self) -> TrainingLoop:
        spec = self.spec
        inputs = self._inputs(self.dataset)
        labels = self.dataset.soft_labels[self.train_rows]
        data = TrainingRows(inputs=inputs, rows=self.train_rows, labels=labels)
        return TrainingLoop(
            self.encoder,
            self.loss,
            data,
            spec,
            pretrained=spec.pretrained is not None,
            places=self._places() if spec.place_pairs and spec.place_weight else None,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _inputs(self, dataset: LabelledDataset) -> NDArray[Any]:
        """Return the features of a frozen backbone, else the pixels."""
        return self._features(dataset) if self.spec.freeze_backbone else dataset.images

    def _places(self) -> PlaceRows:
        """Return the acquisitions of places that the driver wrote."""
        places = LabelledDataset.open(self.job.output / PLACES)
        return PlaceRows(
            inputs=self._inputs(places),
            places=place_groups(places),
            weight=self.spec.place_weight,
            batch_size=self.spec.place_batch,
        )

    def _run_epoch(self, report: Report) -> None:
        started, first = time.monotonic(), self.loop.step
        for step in self.loop.run_epoch():
            self._report_step(step, self.loop.total_steps)
            every = self.spec.checkpoint_every_steps
            if every and step % every == 0 and step % self.loop.steps_per_epoch:
                self.loop.require_finite()
                report({"epoch": float(self.loop.epoch), "step": float(step)}, self.save)
        self.loop.require_finite()
        trained = time.monotonic()
        row = {
            "epoch": float(self.loop.epoch),
            "loss": self.loop.epoch_loss,
            "learning_rate": self.loop.learning_rate,
            "images_per_s": (self.loop.step - first) * self.spec.batch_size / (trained - started),
            "train_s": trained - started,
        }
        if self.loop.epoch % self.spec.eval_every == 0 or self.loop.epoch == self.spec.epochs:
            row |= {**self._evaluate(), "evaluate_s": time.monotonic() - trained}
        self.log.add(row)
        report(row, self.save)
        if self.rank == 0:
            self.log.write()
        self._report_step(self.loop.step, self.loop.total_steps, force=True)

    def _evaluate(self) -> dict[str, float]:
        """Score the validation split; keep the weights if the score is the best so far."""
        metrics = self._validation_metrics()
        score = metrics.get(self.spec.monitor, -math.inf) if metrics else float(self.loop.epoch)
        if math.isnan(score) and not self.best_weights:  # the comparison would keep this epoch
            raise ConfigError(
                f"dataset {self.job.dataset}: the validation rows have no {self.spec.monitor}, "
                "because none has a label that counts in it and that a train row has; give them "
                "such labels, another split, or choose another monitor"
            )
        better = score > self.best.score or not self.best_weights
        improved = torch.tensor([float(better)], device=self.encoder.device)
        if dist.is_initialized():
            dist.broadcast(improved, 0)  # only rank 0 has scores; all workers must stop together
        if improved.item():
            self.best = _Best(self.loop.epoch, score, metrics)
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.loop.weights().items()
            }
        else:
            self.best.stale += 1
        return metrics

    def _validation_metrics(self) -> dict[str, float]:
        """Score rankings of training rows for validation rows; {} on ranks other than 0."""
        if not len(self.val_rows):
            return {}
        queries = evenly(self.val_rows, max(1, self.spec.eval_rows // 2))
        known = self.dataset.labelled("train")
        database = evenly(known if len(known) else self.train_rows, self.spec.eval_rows)
        projected = self.spec.embedding == "projection"
        z_QD = self.loop.embed(queries, projected=projected)
        z_ND = self.loop.embed(database, projected=projected)
        if self.rank != 0:
            return {}
        labels = self.dataset.labels
        metrics = retrieval_metrics(
            z_QD, labels[queries], z_ND, labels[database], rare_counts=self.train_labels.sum(0)
        )
        if self.spec.monitor not in metrics:
            raise ConfigError(
                f"training: monitor {self.spec.monitor!r} is no metric; choose one of "
                f"{', '.join(metrics)}"
            )
        return metrics

    def _is_over(self) -> bool:
        return self.spec.patience is not None and self.best.stale >= self.spec.patience

    def _finish(self) -> str:
        """Write the bundle of the best epoch and return its fingerprint."""
        self.log.write()
        self.loop.load_weights(self.best_weights)
        spec = replace(
            self.encoder.spec,
            loss={"name": self.spec.loss, **self.spec.loss_options, **source_of(self.job, "loss")},
            training={
                "dataset": self.job.dataset_digest,
                **_own_importer(self.dataset.info.origin),
                "run": self.job.digest,
                "best_epoch": self.best.epoch,
                "freeze_backbone": self.spec.freeze_backbone,
                "metrics": dict(self.best.metrics or {}),
            },
        )
        backbone, head = self.encoder.backbone, self.encoder.head
        if self.spec.embedding == "features":
            spec = replace(spec, head={"kind": "identity"}, dimension=backbone.dimension)
            head = nn.Identity()
        return save_bundle(Encoder(spec, backbone, head), self.job.bundle)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into a folder."""
        tensors, plain = self.loop.state()
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        state: dict[str, Any] = {
            "format": FORMAT,
            "run": self.job.digest,
            "lineage": self.job.lineage,
            "world_size": self.world_size,
            "loop": plain,
            "best": asdict(self.best),
            "history": self.log.rows,
        }
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(contiguous, folder / _TENSORS)
        state["tensors_sha256"] = sha256_of_file(folder / _TENSORS)
        state["sha256"] = json_digest(state)
        (folder / _STATE).write_text(json.dumps(state))

    def _restore(self, folder: Path) -> None:
        try:
            state = self._checked_state(folder)
            tensors = safetensors.torch.load_file(folder / _TENSORS)
            history, best = state["history"], _Best(**state["best"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"checkpoint {folder.name} of {self.job.output} cannot be read ({error}); "
                "delete the run's folder `checkpoints` to start again"
            ) from error
        prefix = "best."
        self.best_weights = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
        self.loop.restore(rest, state["loop"])
        try:
            self.loop.require_finite()
        except DivergedError as error:
            raise ConfigError(
                f"checkpoint {folder.name} of {self.job.output} holds weights that are not finite; "
                "delete the run's folder `checkpoints` and start with a lower "
                "training.learning_rate"
            ) from error
        self.log.resume(history)
        self.best = best

    def _checked_state(self, folder: Path) -> dict[str, Any]:
        """Read a checkpoint's state; ValueError when a file is damaged or of another run.

        Checkpoints of an older Skysift state no digests.
        """
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        if "sha256" not in state:
            return state
        if state.pop("sha256") != json_digest(state):
            raise ValueError(f"the digest of {_STATE} differs")
        if sha256_of_file(folder / _TENSORS) != state["tensors_sha256"]:
            raise ValueError(f"the digest of {_TENSORS} differs")
        if state["lineage"] != self.job.lineage:
            raise ValueError("it is of a run on another dataset or with other networks")
        return state

    def _features(self, dataset: LabelledDataset) -> Floats:
        """Return the features of every image, computed once and stored as a file."""
        key = _feature_key(self.encoder, dataset)
        output = self.job.output
        file = output.at(self.spec.features_uri or output.uri) / f"features-{key}.npy"
        shape = (len(dataset), self.encoder.backbone.dimension)
        stored = _read_features(file, shape)
        found = torch.tensor([float(stored is not None)], device=self.encoder.device)
        if dist.is_initialized():
            dist.all_reduce(found, dist.ReduceOp.MIN)  # all workers load, or all compute
        if stored is not None and found.item():
            return stored
        total = math.ceil(len(dataset) / self.world_size)

        def encode(chunk: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
            x = torch.from_numpy(np.asarray(chunk)).to(self.encoder.device)
            y: Tensor = self.encoder.backbone(self.encoder.normalise(x))
            return y

        features = map_sharded(
            encode,
            dataset.images,
            np.arange(len(dataset)),
            device=self.encoder.device,
            on_progress=lambda done: self.progress(
                Progress(stage="features", done=done, total=total, unit="images")
            ),
        )
        if self.rank == 0:
            buffer = io.BytesIO()
            np.save(buffer, features)
            file.write(buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())
        return features

    def _report_step(self, step: int, total: int, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._reported_at < _REPORT_INTERVAL_S:
            return
        self._reported_at = now
        note = f"epoch {min(self.loop.epoch + 1, self.spec.epochs)}/{self.spec.epochs}"
        if self.log.rows:
            note += f", loss {self.log.rows[-1]['loss']:.3f}"
        scores = [row[self.spec.monitor] for row in self.log.rows if self.spec.monitor in row]
        if scores:
            note += f", {self.spec.monitor} {scores[-1]:.3f}"
        self.progress(Progress(stage="train", done=step, total=total, unit="batches", note=note))


def initial_encoder(dataset: LabelledDataset, spec: TrainingSpec) -> Encoder:
    """Return the initial encoder: pretrained or random backbone, random head."""
    info = dataset.info
    encoder_spec = EncoderSpec(
        backbone=spec.backbone,
        backbone_options=spec.backbone_options,
        bands=info.bands,
        band_mean=info.band_mean,
        band_std=info.band_std,
        tile_px=info.tile_px,
        resolution_m=info.resolution_m,
        dimension=spec.dimension,
        head=mlp_options(spec.hidden, spec.heads, spec.dropout),
        classes=info.classes,
    )
    return new_encoder(encoder_spec, pretrained=spec.pretrained, seed=spec.seed)


def _own_importer(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return name, options and digest of the source of the user's own importer; {} without one."""
    if "importer_sha256" not in origin:
        return {}
    return {
        "importer": {
            "name": origin["importer"],
            "options": origin["importer_options"],
            "source_sha256": origin["importer_sha256"],
        }
    }


def _feature_key(encoder: Encoder, dataset: LabelledDataset) -> str:
    """Return 16 hexadecimal digits of a hash over the dataset and the backbone's weights."""
    digest = hashlib.sha256(dataset.info.digest.encode())
    digest.update(json.dumps([encoder.spec.backbone, dict(encoder.spec.backbone_options)]).encode())
    for name, value in sorted(encoder.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_features(file: Location, shape: tuple[int, int]) -> Floats | None:
    """Return stored features; None if the file is missing, damaged or of another shape.

    The SHA-256 follows the array.
    """
    try:
        data = memoryview(file.read())
        array, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if hashlib.sha256(array).digest() != digest:
            return None
        stored = np.load(io.BytesIO(array))
    except (NotFoundError, ValueError, EOFError):
        return None
    return stored if stored.shape == shape and stored.dtype == np.float32 else None
