"""Contrastive losses over a global batch, with the gradient of a single process.

Each worker encodes its share of the global batch, gathers the embeddings of all workers (gradients
flow back to the worker that computed a row), sums the terms of its own anchors and divides by the
*global* denominators. After DDP has averaged the gradients over W workers, every parameter's
gradient equals that of one process with the whole batch, for any number of usable anchors per
worker.

Shapes: B local rows, G = W · B global rows, Q rows of the queue, D dimension, C labels.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from encoders.losses.core import Keys, Loss, RatioSums, divide
from storage.errors import ConfigError

Group = dist.ProcessGroup | None

# torch 2.13 renamed both and warns about the old names.
gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def gather_keys(z_BD: Tensor, y_BC: Tensor, group: Group = None) -> tuple[Tensor, Tensor, int]:
    """Return the embeddings and labels of all workers, and the offset of this worker's rows.

    Without an initialised process group the batch itself is returned. B must be the same on every
    worker, as the batch sampler guarantees.

    Parameters
    ----------
    z_BD
        Local embeddings. Gradients of the gathered tensor flow back to the owner of each row.
    y_BC
        Local labels: floats are gathered as they are, other dtypes as bytes.

    Returns
    -------
    z_GD, y_GC, offset
        Rows ``offset .. offset + B`` are this worker's.
    """
    z_GD, offset = gather_rows_of(z_BD, group)
    if z_GD is z_BD:
        return z_BD, y_BC, 0
    sent_BC = y_BC if y_BC.is_floating_point() else y_BC.to(torch.uint8)
    y_GC = _all_gather(sent_BC, group).to(y_BC.dtype)
    return z_GD, y_GC, offset


def gather_rows_of(z_BD: Tensor, group: Group = None) -> tuple[Tensor, int]:
    """Return the rows of all workers, with gradients to their owners, and this worker's offset.

    Without an initialised process group the rows themselves are returned.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return z_BD, 0
    z_GD: Tensor = _Gather.apply(z_BD, group)  # type: ignore[no-untyped-call]
    return z_GD, dist.get_rank(group) * len(z_BD)


def global_loss(
    loss: Loss, z_BD: Tensor, y_BC: Tensor, group: Group = None, queue: "KeyQueue | None" = None
) -> Tensor:
    """Return this worker's part of the loss over the global batch, ready for DDP.

    The mean of the returned values over the workers is the loss of the global batch, and the mean
    of the gradients (as averaged by DDP) is its gradient; do not multiply by W. The parameters of
    the loss need the same averaging: wrap the loss in DDP, or call :func:`average_gradients`.

    Parameters
    ----------
    queue
        Additional keys from earlier batches; this global batch is pushed afterwards.
    """
    z_GD, y_GC, offset = gather_keys(z_BD, y_BC, group)
    keys = (z_GD, y_GC) if queue is None else queue.extend(z_GD, y_GC)
    sums = loss.sums(z_BD, y_BC, keys, offset)
    if queue is not None:
        queue.push(z_GD, y_GC)
    if not dist.is_initialized():
        return divide(sums)
    # The factor W cancels DDP's division, so numerators add up over the workers.
    denominator_T = sums.denominator_T.clone()
    dist.all_reduce(denominator_T, group=group)
    return dist.get_world_size(group) * divide(RatioSums(sums.numerator_T, denominator_T))


def average_gradients(module: nn.Module, group: Group = None) -> None:
    """Average the gradients of a module's parameters over the workers, as DDP does."""
    if not dist.is_initialized():
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # unused on this worker; the collective needs all of them
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


class KeyQueue(nn.Module):
    """The last Q keys of earlier batches (cross-batch memory), for small global batches.

    Keys carry no gradient and were encoded with the weights of their step. Every worker holds the
    same queue, because the whole global batch is pushed. The buffers are part of ``state_dict``.

    References
    ----------
    Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.
    """

    z_QD: Tensor
    y_QC: Tensor
    filled: Tensor

    def __init__(self, rows: int, dimension: int, classes: int) -> None:
        super().__init__()
        if rows < 1:
            raise ConfigError(f"key queue: expected at least one row, got {rows}")
        self.register_buffer("z_QD", torch.zeros(rows, dimension))
        self.register_buffer("y_QC", torch.zeros(rows, classes))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def extend(self, z_GD: Tensor, y_GC: Tensor) -> Keys:
        """Return the keys of the batch followed by the filled rows of the queue, newest first."""
        filled = int(self.filled)
        z_QD, y_QC = self.z_QD[:filled].to(z_GD.dtype), self.y_QC[:filled].to(y_GC.dtype)
        return torch.cat([z_GD, z_QD]), torch.cat([y_GC, y_QC])

    @torch.no_grad()
    def push(self, z_GD: Tensor, y_GC: Tensor) -> None:
        """Prepend a batch and drop the oldest rows."""
        rows = len(self.z_QD)
        new = min(len(z_GD), rows)
        # New tensors instead of an update in place: backward may still need rows of `extend`.
        self.z_QD = torch.cat([z_GD[:new].to(self.z_QD.dtype), self.z_QD[: rows - new]])
        self.y_QC = torch.cat([y_GC[:new].to(self.y_QC.dtype), self.y_QC[: rows - new]])
        self.filled = (self.filled + new).clamp_max(rows)


def cached_backward(
    encode: Callable[[Any], Tensor],
    chunks: Sequence[Any],
    y_BC: Tensor,
    loss: Loss,
    *,
    group: Group = None,
    queue: KeyQueue | None = None,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Accumulate the gradients of a batch that does not fit into memory (GradCache).

    The function encodes every chunk without a graph, computes the loss and its gradient with
    respect to the cached embeddings, then encodes each chunk again with a graph and propagates the
    gradient of its rows. The gradients are those of the whole batch, at the cost of about one more
    forward pass.

    Parameters
    ----------
    encode
        Maps one chunk to its unit-norm embeddings, for example the DDP-wrapped model.
    chunks
        The B local rows in order, split into chunks that fit into memory.
    y_BC
        Labels of all B rows.
    no_sync
        DDP's ``model.no_sync``; used for all chunks but the last, so gradients are reduced once.

    Returns
    -------
    Tensor
        The detached loss; gradients have been added to the parameters' ``grad``.

    Notes
    -----
    Batch-norm layers in training mode compute their statistics per chunk and process each chunk
    twice. Random layers are replayed: the generator state of each chunk is restored for the second
    pass.

    References
    ----------
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
    """
    cached, states = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            cached.append(encode(chunk))
    z_BD = torch.cat(cached).requires_grad_()
    value = global_loss(loss, z_BD, y_BC, group, queue)
    value.backward()  # type: ignore[no-untyped-call]
    if z_BD.grad is None:
        raise ConfigError("cached_backward: the loss does not depend on the embeddings")
    grads = torch.split(z_BD.grad, [len(z) for z in cached])
    resume = _random_state()
    for last, chunk, state, grad in zip(
        range(1 - len(cached), 1), chunks, states, grads, strict=True
    ):
        _restore(state)
        with no_sync() if last else nullcontext():
            encode(chunk).backward(grad)  # type: ignore[no-untyped-call]
    _restore(resume)
    return value.detach()


class _Gather(torch.autograd.Function):
    """All-gather along rows; backward sums the gradients of a row over the workers."""

    @staticmethod
    def forward(ctx: Any, z_BD: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _all_gather(z_BD, group)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> tuple[Tensor, None]:
        rows = len(grad_GD) // dist.get_world_size(ctx.group)
        grad_BD = grad_GD.new_empty(rows, *grad_GD.shape[1:])
        _reduce_scatter(grad_BD, grad_GD.contiguous(), group=ctx.group)
        return grad_BD, None


def _all_gather(x_B: Tensor, group: Group) -> Tensor:
    x_G = x_B.new_empty(len(x_B) * dist.get_world_size(group), *x_B.shape[1:])
    gather_rows(x_G, x_B.detach().contiguous(), group=group)
    return x_G


def _random_state() -> tuple[Tensor, Tensor | None]:
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), gpu


def _restore(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
