"""Batch norm over the global batch, on any device.

With plain batch norm every worker normalises by the statistics of its own rows, so W workers
compute a different gradient from one process with the whole batch. The synchronised batch norm of
torch supports CUDA only; this module exchanges two vectors per layer through any process group and
leaves the passes over the pixels to the kernels of the plain layer.

Shape legend: B rows of this worker's batch, C channels, H and W pixels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with training statistics over the rows of all workers.

    Every worker must have the same number of rows and pixels. Weights and buffers have the names of
    the plain layer, so state dicts are interchangeable. Without a process group of several workers,
    and in evaluation mode, the layer behaves as the plain layer.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise a batch; a collective operation in training mode."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        if not self.training or world == 1:
            return super().forward(x_BCHW)
        exact_BCHW = x_BCHW.to(self.weight.dtype)  # bfloat16 under autocast is too coarse
        y_BCHW, mean_C, var_C = _Normalise.apply(  # type: ignore[no-untyped-call]
            exact_BCHW.contiguous(), self.weight, self.bias, self.eps, world
        )
        self._update_running(mean_C, var_C, world * x_BCHW.numel() // len(mean_C))
        out: Tensor = y_BCHW.to(x_BCHW.dtype)
        return out

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, var_C: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(var_C * (count / max(1, count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def convert_sync_batch_norm(module: nn.Module) -> None:
    """Replace every plain `BatchNorm2d` below a module by `GlobalBatchNorm2d`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d and child.affine:
            layer = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            layer.load_state_dict(child.state_dict())
            layer.to(child.weight).train(child.training)
            layer.requires_grad_(child.weight.requires_grad)  # a frozen layer stays frozen
            setattr(module, name, layer)
        else:
            convert_sync_batch_norm(child)


class _Normalise(torch.autograd.Function):
    """Normalise by the moments over the pixels of all workers; return y, mean and variance.

    With ``g`` the gradient of y, ``x̂`` the normalised pixels and ``w`` the weight::

        dx = w / σ · (g - mean(g) - x̂ mean(g x̂)),    means over the pixels of all workers

    which is ``a g + b x + c`` with three numbers per channel.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, world: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C, var_C = torch.batch_norm_update_stats(x_BCHW, None, None, 0.0)
        # Means and mean squares add up over equal shares, variances do not.
        moments_2C = torch.stack([mean_C, var_C + mean_C.square()])
        dist.all_reduce(moments_2C)
        mean_C, square_C = moments_2C / world
        var_C = (square_C - mean_C.square()).clamp_min(0)
        y_BCHW = nn.functional.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, eps=eps)
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, var_C)
        ctx.eps, ctx.world = eps, world
        ctx.mark_non_differentiable(mean_C, var_C)
        return y_BCHW, mean_C, var_C

    @staticmethod
    def backward(
        ctx: Any, grad_BCHW: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_BCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        inverse_C = torch.rsqrt(var_C + ctx.eps)
        # The kernel returns Σ g x̂ and Σ g of this worker's pixels in one pass.
        _, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad_BCHW.contiguous(), x_BCHW, weight_C, mean_C, var_C, mean_C, inverse_C,
            False, ctx.eps, [False, True, True],
        )  # fmt: skip
        sums_2C = torch.stack([grad_bias_C, grad_weight_C])
        dist.all_reduce(sums_2C)
        mean_g_C, mean_gx_C = sums_2C / (ctx.world * x_BCHW.numel() // len(mean_C))
        of_g_C = weight_C * inverse_C
        of_x_C = -of_g_C * inverse_C * mean_gx_C
        rest_C = -of_g_C * mean_g_C - of_x_C * mean_C
        of_g, of_x, rest = (v[:, None, None] for v in (of_g_C, of_x_C, rest_C))
        grad_x_BCHW = torch.addcmul(rest, x_BCHW, of_x).addcmul_(grad_BCHW, of_g)
        return grad_x_BCHW, grad_weight_C, grad_bias_C, None, None
