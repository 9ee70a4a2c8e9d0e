"""The training loop of one worker: a plain class that uses torch, but neither Ray nor files.

Without a process group the loop trains in one process; in a group each worker contrasts its own
anchors with the keys of all workers, so W workers compute the gradient of one process with the
whole batch. Augmentation depends only on (seed, step, row of the global batch), so neither the
number of workers nor a restart from the state after any step changes the result. Random layers of a
network (dropout) draw for each worker.

Shape legend: N rows, B rows of this worker's batch, C bands or classes, F features, D dimension.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from encoders.augment import Augmentation, row_generators
from encoders.batch_norm import convert_sync_batch_norm
from encoders.bundle import Encoder
from encoders.gather import KeyQueue, average_gradients, cached_backward, gather_rows, global_loss
from encoders.losses.core import Loss
from encoders.places import PlaceRows, place_loss
from encoders.sampling import LabelAwareBatchSampler
from encoders.spec import LoopSpec
from storage.errors import ConfigError, DivergedError
from storage.prefetch import prefetch

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_CHUNK = 128
_PRETRAINED_RATE = 0.1  # of a pretrained backbone, as a share of the head's learning rate


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """The training set.

    Attributes
    ----------
    inputs
        Raw pixel values (N, C, H, W; a memory map is read batch by batch), or features (N, F) when
        the backbone is frozen.
    rows, labels
        Row numbers of the training rows (n,), and their labels (n, K): multi-hot, or float32
        probabilities. Batches are composed by the labels of .5 and more.
    """

    inputs: NDArray[Any]
    rows: Ints
    labels: NDArray[Any]


class TrainingLoop:
    """Trains an encoder, step by step.

    Parameters
    ----------
    encoder
        Encoder on its device; trained in place.
    loss
        Loss from `encoders.losses.build_loss`; its parameters are trained too.
    data, spec
        The training rows, and the settings of the optimisation.
    pretrained
        The backbone has pretrained weights: its batch norm keeps its statistics (exact across
        workers too), and its learning rate is lower; see `LoopSpec.backbone_learning_rate`.
    places
        Acquisitions of places, whose pairs are a second loss; None for the labels alone.
    rank, world_size
        Rank of this worker in the process group, and the number of workers.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: Loss,
        data: TrainingRows,
        spec: LoopSpec,
        *,
        pretrained: bool = False,
        places: PlaceRows | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.encoder, self.data, self.spec, self.rank = encoder, data, spec, rank
        self.places, self.world_size = places, world_size
        self.pretrained = pretrained
        self.augment = None if spec.augment is None else Augmentation(**spec.augment)
        self.loss = loss.to(encoder.device)
        self.sampler = LabelAwareBatchSampler(
            data.labels >= 0.5,
            spec.batch_size,
            seed=spec.seed,
            rank=rank,
            world_size=world_size,
            power=spec.sampling_power,
        )
        encoder.backbone.requires_grad_(not spec.freeze_backbone)
        encoder.head.requires_grad_(True)
        self.network: nn.Module = _Network(encoder, spec.freeze_backbone)
        if world_size > 1:
            convert_sync_batch_norm(encoder.backbone)
            self.network = DistributedDataParallel(self.network)
        self.queue: KeyQueue | None = None
        if spec.queue_rows:
            classes = data.labels.shape[1]
            self.queue = KeyQueue(spec.queue_rows, encoder.dimension, classes).to(encoder.device)
        self.optimizer = AdamW(self._parameter_groups(), lr=spec.learning_rate)
        self.average = _copies(self.trained_weights()) if spec.ema_decay else None
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = spec.epochs * self.steps_per_epoch
        self.step = 0
        self.epoch_loss = math.nan

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.step // self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        warmup = max(1.0, self.spec.warmup_epochs * self.steps_per_epoch)
        if self.step < warmup:
            return self.spec.learning_rate * (self.step + 1) / (warmup + 1)
        done = (self.step - warmup) / max(1.0, self.total_steps - warmup)
        return self.spec.learning_rate * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def run_epoch(self) -> Iterator[int]:
        """Train to the end of the current epoch; yield the number of completed steps after each.

        Afterwards ``epoch_loss`` is the mean loss of the epoch's global batches.

        Raises
        ------
        DivergedError
            The loss or the gradient is not finite; the step is not taken.
        """
        self._set_training()
        epoch, done = self.epoch, self.step % self.steps_per_epoch
        if done == 0 or self.sampler.epoch != epoch:
            self.sampler.set_epoch(epoch)
        total = torch.zeros((), device=self.encoder.device)
        for x, y_BC in self._prefetched(done):
            total += self._train_step(x, y_BC)
            self.step += 1
            yield self.step
        self.epoch_loss = float(self._mean_over_workers(total)) / (self.steps_per_epoch - done)
        if not math.isfinite(self.epoch_loss):
            raise self._diverged(f"the loss became {self.epoch_loss}")

    def require_finite(self) -> None:
        """Check the weights, which are the same on every worker.

        Raises
        ------
        DivergedError
            A weight is infinite or not a number.
        """
        for name, value in self.trained_weights().items():
            if not value.isfinite().all():
                raise self._diverged(f"the weights {name} are not finite")

    def embed(self, rows: Ints, *, projected: bool = True) -> Floats:
        """Return the unit vectors of input rows, (n, D); each worker encodes its share."""

        def encode(chunk: NDArray[Any]) -> Tensor:
            x = torch.from_numpy(np.asarray(chunk)).to(self.encoder.device)
            features = (
                x if self.spec.freeze_backbone else self.encoder.backbone(self.encoder.normalise(x))
            )
            if projected:
                return self.encoder.project(features)
            return nn.functional.normalize(features.float(), dim=1)

        self.encoder.eval()
        with self._averaged():
            return map_sharded(encode, self.data.inputs, rows, device=self.encoder.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state to resume from: tensors by name, and plain values for JSON."""
        tensors = {f"encoder.{name}": value for name, value in self.trained_weights().items()}
        tensors |= {f"average.{name}": value for name, value in (self.average or {}).items()}
        tensors |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        if self.queue is not None:
            tensors |= {f"queue.{name}": v for name, v in self.queue.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        done = self.step % self.steps_per_epoch
        sampler = self.sampler.state_dict(done) if done else None
        return tensors, {"step": self.step, "seed": self.spec.seed, "sampler": sampler}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from a `state`; the number of workers may differ.

        Raises
        ------
        ConfigError
            The state belongs to another network, loss or sampling.
        """
        parts: dict[str, dict[str, Tensor]] = {
            name: {} for name in ("encoder", "average", "loss", "queue")
        }
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = value
            elif part in parts:
                parts[part][rest] = value
        try:
            self.load_weights(parts["encoder"])
            if self.average is not None:  # an average that was not kept begins here
                kept = parts["average"] or self.trained_weights()
                self.average = {name: kept[name].to(value) for name, value in self.average.items()}
            self.loss.load_state_dict(parts["loss"])
            if self.queue is not None:
                self.queue.load_state_dict(parts["queue"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"checkpoint: it belongs to another network or loss "
                f"({str(error).partition(chr(10))[0]}); resume with the settings it was made with"
            ) from error
        self.step = int(plain["step"])
        if plain["sampler"] is not None:
            self.sampler.load_state_dict(plain["sampler"])

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the weights of the encoder that training changes, by name."""
        state = self.encoder.state_dict()
        return {
            k: v for k, v in state.items() if not self.spec.freeze_backbone or k.startswith("head.")
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to evaluate and to keep: their moving average, if there is one."""
        return self.trained_weights() if self.average is None else self.average

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights from `trained_weights`."""
        self.encoder.load_state_dict({**self.encoder.state_dict(), **weights})

    def _set_training(self) -> None:
        self.encoder.train()
        frozen = self.spec.freeze_backbone
        for module in self.encoder.backbone.modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if frozen or (is_norm and self.pretrained):
                module.eval()

    def _train_step(self, x: Tensor, y_BC: Tensor) -> Tensor:
        """Take one step on raw pixels or features; return this worker's part of the loss."""
        # Random layers draw by worker; a resumed run repeats the draws of a step.
        draws = np.random.SeedSequence((self.spec.seed, self.step, self.rank))
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0] >> 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["rate"]
        self.loss.progress = self.step / self.total_steps
        x = self._prepared(x, self.rank * len(x))
        self.optimizer.zero_grad(set_to_none=True)
        chunk_rows = self.spec.chunk_rows
        if chunk_rows and len(x) > chunk_rows:
            network = self.network
            value = cached_backward(
                self._encode,
                torch.split(x, chunk_rows),
                y_BC,
                self.loss,
                queue=self.queue,
                no_sync=network.no_sync if _is_grouped(network) else nullcontext,
            )
        else:
            value = global_loss(self.loss, self._encode(x), y_BC, queue=self.queue)
            value.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.loss)
        if self.places is not None:
            value = value.detach() + self._place_backward(self.places)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.spec.gradient_clip)
        # The norm is the same on all workers, so that all of them stop here or none does.
        if not norm.isfinite():
            loss = self._mean_over_workers(value.detach())
            raise self._diverged(f"the loss is {float(loss):g} with a gradient of {float(norm):g}")
        self.optimizer.step()
        self._update_average()
        return value.detach()

    def _prepared(self, x: Tensor, first: int) -> Tensor:
        """Return features as they are, and pixels normalised and augmented.

        ``first`` is the number of the first row in the global batch of the step.
        """
        if self.spec.freeze_backbone:
            return x
        x = self.encoder.normalise(x)
        if self.augment is None:
            return x
        rows = range(first, first + len(x))
        return self.augment(x, row_generators(self.spec.seed, self.step, rows))

    def _place_backward(self, places: PlaceRows) -> Tensor:
        """Add the gradient of the pairs of places; return this worker's part of their loss.

        DDP averages the gradients that are there already, which are equal on all workers, and so
        leaves them as they are.
        """
        pairs = places.draw(self.spec.seed, self.step, self.rank, self.world_size)
        rows = np.stack(pairs, axis=1).ravel()  # pair after pair: a worker's rows are contiguous
        x = torch.from_numpy(np.asarray(places.inputs[rows])).to(self.encoder.device)
        # Behind the rows of the labelled batch, so that no generator is used twice.
        x = self._prepared(x, self.spec.batch_size + self.rank * len(x))
        z_2BD = self._encode(x)
        first_BD, second_BD = z_2BD[::2], z_2BD[1::2]
        value = places.weight * place_loss(first_BD, second_BD)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Give the encoder the averaged weights for a block, if there are any."""
        if self.average is None:
            yield
            return
        last = _copies(self.trained_weights())
        self.load_weights(self.average)
        try:
            yield
        finally:
            self.load_weights(last)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # Until there are enough steps for the decay, the average is over those that there are.
        decay = min(self.spec.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.trained_weights().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _diverged(self, fault: str) -> DivergedError:
        step = min(self.step + 1, self.total_steps)
        where = f"step {step} of {self.total_steps} (epoch {-(-step // self.steps_per_epoch)})"
        return DivergedError(
            f"training diverged in {where}: {fault}, learning rate {self.learning_rate:.3g}; "
            "lower training.learning_rate, with --resume to go on from the last checkpoint, or "
            "begin in another output"
        )

    @staticmethod
    def _mean_over_workers(value: Tensor) -> Tensor:
        if dist.is_initialized():
            dist.all_reduce(value)
            value /= dist.get_world_size()
        return value

    def _encode(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            z_BD: Tensor = self.network(x)
        return z_BD

    def _prefetched(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the remaining batches of the epoch; read the next batch during a step."""
        device = self.encoder.device

        def read(batch: list[int]) -> tuple[Tensor, Tensor]:
            x = torch.from_numpy(np.asarray(self.data.inputs[self.data.rows[batch]]))
            return x.to(device), torch.from_numpy(self.data.labels[batch]).to(device)

        self.sampler.load_state_dict(self.sampler.state_dict(start))
        return prefetch(read, self.sampler)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Decay matrices and filters, but not biases, norms and the parameters of the loss.

        The parameters have the same order with any learning rates, by which checkpoints name them.
        """
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        in_backbone = {id(p) for p in self.encoder.backbone.parameters()}
        backbone = [p for p in trained if id(p) in in_backbone]
        head = [p for p in trained if id(p) not in in_backbone]
        decay, rate = self.spec.weight_decay, self._backbone_rate()

        def group(parameters: list[nn.Parameter], decay: float, rate: float) -> dict[str, Any]:
            return {"params": parameters, "weight_decay": decay, "rate": rate}

        groups = [
            group([p for p in backbone if p.ndim >= 2], decay, rate),
            group([p for p in head if p.ndim >= 2], decay, 1.0),
            group([p for p in backbone if p.ndim < 2], 0.0, rate),
            group([p for p in head if p.ndim < 2] + list(self.loss.parameters()), 0.0, 1.0),
        ]
        return [part for part in groups if part["params"]]

    def _backbone_rate(self) -> float:
        """Return the learning rate of the backbone as a share of the head's."""
        if self.spec.backbone_learning_rate is not None:
            return self.spec.backbone_learning_rate / self.spec.learning_rate
        return _PRETRAINED_RATE if self.pretrained else 1.0


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def _is_grouped(network: nn.Module) -> TypeGuard[DistributedDataParallel]:
    return isinstance(network, DistributedDataParallel)


class _Network(nn.Module):
    """The differentiated part: normalised pixels or features to unit vectors."""

    def __init__(self, encoder: Encoder, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.project(x if self.frozen else self.encoder.backbone(x))


def map_sharded(
    encode: Callable[[NDArray[Any]], Tensor],
    inputs: NDArray[Any],
    rows: Ints,
    *,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Floats:
    """Apply ``encode`` to input rows, each worker to its share; all workers get all results.

    Parameters
    ----------
    encode
        Maps a chunk of inputs to (chunk, width) float32; called in inference mode.
    rows
        Row numbers of ``inputs`` (any array or memory map), at least one, (n,).
    device
        Device on which the shares are exchanged.
    on_progress
        Called with the number of completed rows of this worker.

    Returns
    -------
    ndarray
        (n, width) float32, in the order of ``rows``.
    """
    grouped = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    # The collective needs equal shares: the padding repeats the first rows and is cut off below.
    padded = np.resize(rows, math.ceil(len(rows) / world) * world)
    own = np.split(padded, world)[rank]
    parts = []
    with torch.inference_mode():
        for start in range(0, len(own), _CHUNK):
            parts.append(encode(inputs[own[start : start + _CHUNK]]).to(device, torch.float32))
            on_progress(min(start + _CHUNK, len(own)))
    result = torch.cat(parts)
    if world > 1:
        share = result.contiguous()
        result = share.new_empty(world * len(share), share.shape[1])
        gather_rows(result, share)
    out: Floats = result[: len(rows)].cpu().numpy()
    return out
