"""The exactness test of gathered negatives, for any loss: many workers against one process.

A loss that is a sum of ratios of sums (:mod:`encoders.losses.core`) has the same gradient on any
number of workers. This module runs real worker processes that gather their keys, and compares loss
and gradients with those of one process that holds the whole batch, in float64. The workers have
different numbers of usable anchors, which is where a mean per worker goes wrong.

Shapes: G rows of the global batch, F features, D embedding dimension, C labels.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from encoders.gather import average_gradients, global_loss
from encoders.losses import build_loss
from encoders.losses.core import Loss
from encoders.losses.statistics import LabelStatistics
from storage.errors import ConfigError, SkysiftError

ROWS_PER_WORKER, FEATURES, DIMENSION, CLASSES = 6, 5, 4, 4
TOLERANCE = 1e-9
_TIMEOUT = timedelta(seconds=60)

Device = Literal["cpu", "gpu"]
Step = tuple[Tensor, list[Tensor]]
"""A loss, and the gradients of all parameters of the encoder and of the loss."""
Backward = Callable[[nn.Module, Loss, Tensor, Tensor, dist.ProcessGroup | None], Tensor]
"""Propagates the gradient of the loss of a worker's rows, and returns the loss without a graph."""


def plain_backward(
    model: nn.Module, loss: Loss, x_BF: Tensor, y_BC: Tensor, group: dist.ProcessGroup | None
) -> Tensor:
    """Take one step with the keys of all workers."""
    value = global_loss(loss, normalize(model(x_BF)), y_BC, group)
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


class Case(NamedTuple):
    """A loss, its options, and how its gradient is propagated (a function of a module)."""

    name: str
    options: Mapping[str, Any]
    backward: Backward = plain_backward


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherResult:
    """Loss and gradient of some workers beside those of one process.

    Attributes
    ----------
    workers
        Number of workers.
    loss, gathered_loss
        The loss of one process with the whole batch, and of the workers.
    largest_gradient
        Largest absolute value in the gradient of one process.
    difference
        Largest absolute difference of the two losses and of the two gradients.
    """

    workers: int
    loss: float
    gathered_loss: float
    largest_gradient: float
    difference: float

    @property
    def is_exact(self) -> bool:
        """Whether they agree within `TOLERANCE` of the largest value; NaN never does."""
        scale = max(1.0, self.largest_gradient, abs(self.loss))
        return self.difference <= TOLERANCE * scale


def check_gather(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    workers: Sequence[int] = (2, 3, 4),
    device: Device = "cpu",
) -> list[GatherResult]:
    """Compare the gathered gradient of a loss with the gradient of one process.

    Parameters
    ----------
    name, options
        Of the loss, as for :func:`encoders.losses.build_loss`.
    workers
        Numbers of workers to compare, each from 2 on. As many processes as the largest run at once.
    device
        Where the workers compute: ``cpu`` with gloo, or ``gpu`` with NCCL and a GPU for each.

    Returns
    -------
    list of GatherResult
        One for each number of workers.

    Raises
    ------
    ConfigError
        The loss cannot be built or raises, its gradient is zero or not finite, or a number of
        workers is less than 2.
    """
    options = dict(options or {})
    if not workers or min(workers) < 2:
        raise ConfigError(f"gather test: workers are {list(workers)}; give numbers from 2 on")
    alone = [_alone(name, options, count) for count in workers]
    [gathered] = gathered_steps([Case(name, options)], workers, device)
    return [
        _compare(count, one, many)
        for count, one, many in zip(workers, alone, gathered, strict=True)
    ]


def one_process_step(name: str, options: Mapping[str, Any], workers: int) -> Step:
    """Return loss and gradients of one process with the whole batch of these workers."""
    x_GF, y_GC = small_batch(workers)
    model, loss = small_encoder(), small_loss(name, options, y_GC)
    value = loss(normalize(model(x_GF)), _labels_for(loss, y_GC))
    value.backward()
    return value.detach(), gradients_of(model, loss)


def gathered_steps(
    cases: Sequence[Case], workers: Sequence[int], device: Device = "cpu"
) -> list[list[Step]]:
    """Return the steps of worker processes, averaged as DDP does.

    Returns
    -------
    list of list of Step
        For each case one step for each number of workers.

    Raises
    ------
    ConfigError
        A worker failed.
    """
    with tempfile.TemporaryDirectory(prefix="skysift-gather-") as scratch:
        folder = Path(scratch)
        try:
            arguments = folder, tuple(cases), tuple(workers), device
            spawn(_worker, arguments, nprocs=max(workers))  # type: ignore[no-untyped-call]
        except (ProcessRaisedException, ProcessExitedException) as error:
            reason = (str(error).strip().splitlines() or ["it ended"])[-1]
            names = ", ".join(dict.fromkeys(case.name for case in cases))
            raise ConfigError(f"loss {names}: a gathering worker failed ({reason})") from error
        return [
            [_read(_file(folder, case, count)) for count in workers] for case in range(len(cases))
        ]


def _alone(name: str, options: Mapping[str, Any], workers: int) -> Step:
    """Return the step of one process; ConfigError where it compares nothing."""
    try:
        value, gradients = one_process_step(name, options, workers)
    except SkysiftError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"loss {name}: it raises {type(error).__name__} ({reason}) on a batch of "
            f"{ROWS_PER_WORKER * workers} rows in float64"
        ) from error
    if not all(torch.isfinite(part).all() for part in (value, *gradients)):
        raise ConfigError(f"loss {name}: the loss or its gradient is not finite on one process")
    if not any(part.abs().max() > TOLERANCE for part in gradients):
        raise ConfigError(f"loss {name}: its gradient is zero, which compares nothing")
    return value, gradients


def _compare(workers: int, alone: Step, gathered: Step) -> GatherResult:
    differences = [
        float((got - want).abs().max())
        for got, want in zip((gathered[0], *gathered[1]), (alone[0], *alone[1]), strict=True)
    ]
    return GatherResult(
        workers=workers,
        loss=float(alone[0]),
        gathered_loss=float(gathered[0]),
        largest_gradient=max(float(part.abs().max()) for part in alone[1]),
        difference=float(np.max(differences)),  # keeps NaN
    )


def small_batch(workers: int) -> tuple[Tensor, Tensor]:
    """Return features and labels of a batch whose workers have 6, 3, 1 and some usable anchors."""
    rng = np.random.default_rng(workers)
    rows = ROWS_PER_WORKER * workers
    x_GF = torch.tensor(rng.normal(size=(rows, FEATURES)))
    y_GC = torch.tensor((rng.random((rows, CLASSES)) < 0.4).astype(np.float64))
    y_GC[:ROWS_PER_WORKER, 0] = 1
    y_GC[ROWS_PER_WORKER + 3 : ROWS_PER_WORKER + 6] = 0
    y_GC[2 * ROWS_PER_WORKER + 1 : 3 * ROWS_PER_WORKER] = 0
    return x_GF, y_GC


def small_encoder() -> nn.Module:
    """Return a network from F features to D, float64, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, DIMENSION)
        return nn.Sequential(*layers).double()


def small_loss(name: str, options: Mapping[str, Any], y_GC: Tensor) -> Loss:
    """Return a loss in float64, with the label statistics of a batch."""
    statistics = LabelStatistics.from_labels(y_GC.numpy())
    return build_loss(name, statistics, dimension=DIMENSION, **options).double()


def _labels_for(loss: Loss, y_GC: Tensor) -> Tensor:
    """Return the labels, every other row as probabilities where the loss takes them."""
    if not loss.takes_probabilities:
        return y_GC
    p_GC = torch.where(y_GC > 0, 0.9, 0.15).to(y_GC) * (y_GC.sum(1, keepdim=True) > 0)
    p_GC[::2] = y_GC[::2]
    return p_GC


def gradients_of(*modules: nn.Module) -> list[Tensor]:
    """Return the gradient of every parameter, zero where the loss does not use it."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def _worker(
    rank: int, folder: Path, cases: tuple[Case, ...], workers: tuple[int, ...], device: Device
) -> None:
    """Take one step of each case in each group of workers; the first worker writes the results."""
    torch.set_num_threads(1)
    if device == "gpu":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "gpu" else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=max(workers),
        timeout=_TIMEOUT,
    )
    for count in workers:
        group = dist.new_group(list(range(count)))
        for number, case in enumerate(cases):
            if rank < count:
                place = torch.device("cuda", rank) if device == "gpu" else torch.device("cpu")
                value, gradients = _gathered_step(case, count, group, place)
                step = [part.cpu().contiguous() for part in (value, *gradients)]
                parts = {str(at): part for at, part in enumerate(step)}
                if rank == 0:
                    safetensors.torch.save_file(parts, _file(folder, number, count))
    dist.barrier()
    dist.destroy_process_group()


def _gathered_step(
    case: Case, workers: int, group: dist.ProcessGroup | None, place: torch.device
) -> Step:
    x_GF, y_GC = small_batch(workers)
    first = dist.get_rank(group) * ROWS_PER_WORKER
    own = slice(first, first + ROWS_PER_WORKER)
    model = DistributedDataParallel(small_encoder().to(place), process_group=group)
    loss = small_loss(case.name, case.options, y_GC).to(place)
    x_BF, y_BC = x_GF[own].to(place), _labels_for(loss, y_GC)[own].to(place)
    value = case.backward(model, loss, x_BF, y_BC, group)
    average_gradients(loss, group)
    dist.all_reduce(value, group=group)
    return value / workers, gradients_of(model.module, loss)


def _file(folder: Path, case: int, workers: int) -> Path:
    return folder / f"{case}-{workers}.safetensors"


def _read(path: Path) -> Step:
    tensors = safetensors.torch.load_file(path)
    value, *gradients = (tensors[f"{i}"] for i in range(len(tensors)))
    return value, gradients
