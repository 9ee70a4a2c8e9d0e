"""The operators that a network of one's own may be made of.

Each is a function of its tensors and numbers: none reads or writes a file, calls code by name,
draws random numbers, or returns memory that was never written. An operator that is not listed is
refused.

`aten` names the operators of torch itself; torch keeps their schemas compatible from release to
release. ``operator``, ``math`` and ``sym_*`` compute sizes.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from storage.errors import ConfigError

_BY_SUBJECT = {
    "arithmetic": """
        abs add addcdiv addcmul atan atan2 bitwise_and bitwise_not bitwise_or ceil clamp
        clamp_max clamp_min cos cosh deg2rad div erf erfc exp exp2 expm1 floor
        floor_divide fmod frac hypot lerp log log10 log1p log2 logaddexp maximum minimum
        mul neg pow rad2deg reciprocal remainder round rsqrt rsub sgn sign sin sinc sinh
        sqrt square sub tan tanh trunc xlogy
    """,
    "comparison and choice": """
        eq ge gt isfinite isinf isnan le logical_and logical_not logical_or logical_xor lt
        masked_fill nan_to_num ne where
    """,
    "activations": """
        _log_softmax _prelu_kernel _softmax celu elu gelu glu hardsigmoid hardswish
        hardtanh leaky_relu log_sigmoid log_softmax mish prelu relu relu6 selu sigmoid
        silu softmax softplus softshrink threshold
    """,
    "products": """
        addbmm addmm addmv baddbmm bilinear bmm dot einsum inner linear matmul mm mv outer
        scaled_dot_product_attention tensordot vdot
    """,
    "convolutions, pooling and norms": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d _native_batch_norm_legit
        _native_batch_norm_legit_no_training adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        avg_pool1d avg_pool2d avg_pool3d batch_norm conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d convolution group_norm instance_norm layer_norm
        max_pool1d max_pool2d max_pool2d_with_indices max_pool3d native_group_norm
        native_layer_norm rms_norm
    """,
    "dropout, which does nothing outside of training": """
        alpha_dropout dropout feature_alpha_dropout feature_dropout
    """,
    "sums over dimensions": """
        all amax amin any argmax argmin argsort cummax cummin cumprod cumsum
        frobenius_norm linalg_norm linalg_vector_norm logcumsumexp logsumexp max mean
        median min nansum norm prod sort std std_mean sum topk var var_mean
    """,
    "shapes": """
        alias atleast_1d atleast_2d atleast_3d broadcast_to cat channel_shuffle chunk
        clone column_stack concat contiguous detach detach_ diagonal dstack expand
        expand_as flatten flip hstack lift_fresh_copy meshgrid moveaxis movedim narrow
        native_channel_shuffle numpy_T permute pixel_shuffle pixel_unshuffle ravel repeat
        reshape reshape_as roll rot90 select slice slice_copy
        slice_scatter select_scatter split split_with_sizes squeeze stack swapaxes
        swapdims sym_numel sym_size sym_storage_offset sym_stride t tensor_split tile
        transpose unbind unflatten unfold unsafe_split unsqueeze view view_as vstack
        _unsafe_view
    """,
    "parts by index": """
        _unsafe_index _unsafe_masked_index embedding gather im2col index
        index_add index_copy index_fill index_put index_select masked_scatter one_hot
        scatter scatter_add scatter_reduce take take_along_dim tril triu
        tril_indices triu_indices
    """,
    "padding and resizing": """
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d
        affine_grid_generator constant_pad_nd grid_sampler grid_sampler_2d pad
        reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
        upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
        upsample_nearest2d col2im
    """,
    "types": """
        _to_copy cpu imag real to type_as view_as_complex view_as_real
    """,
    "frequencies": """
        fft_fft fft_fft2 fft_fftfreq fft_fftshift fft_ifft fft_ifft2 fft_ifftshift
        fft_irfft fft_irfft2 fft_rfft fft_rfft2 fft_rfftfreq complex polar
    """,
    "constants": """
        arange copy eye fill full full_like linspace new_full new_ones new_zeros ones
        ones_like scalar_tensor zero zeros zeros_like
    """,
    "distances": """
        cdist cosine_similarity pairwise_distance
    """,
}
_ATEN = frozenset(name for names in _BY_SUBJECT.values() for name in names.split())
_ARITHMETIC = (
    *("add", "and_", "eq", "floordiv", "ge", "gt", "le", "lt"),
    *("mod", "mul", "ne", "neg", "or_", "pos", "sub", "truediv"),
)
_SIZES: Mapping[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
    },
}
_NAME = re.compile(r"aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
_ONLY_FALSE = {"train", "training"}


def refuse_forbidden(names: Iterable[str]) -> None:
    """Refuse operators that are not allowed, all in one message.

    Raises
    ------
    ConfigError
        At least one is not allowed.
    """
    forbidden = sorted({name for name in names if not _is_allowed(name)})
    if forbidden:
        shown = ", ".join(forbidden[:4]) + (", ..." if len(forbidden) > 4 else "")
        raise ConfigError(
            f"the network uses {shown}, which {'is' if len(forbidden) == 1 else 'are'} not allowed "
            "in an encoder; leave that out of the network's forward, and export it again "
            "(encoders/backbones/operators.py has the list)"
        )


def operator_named(name: str) -> Callable[..., Any]:
    """Return an allowed operator.

    Raises
    ------
    ConfigError
        It is not allowed, or this torch has no such operator.
    """
    refuse_forbidden([name])
    if name in _SIZES:
        return _SIZES[name]
    _, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ConfigError(
            f"torch {torch.__version__} has no operator {name}; export the network again by this "
            "torch"
        )
    if any(argument.is_out for argument in found._schema.arguments):
        raise ConfigError(f"operator {name} writes into a tensor that it is given; leave it out")
    return found


def written_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the arguments that a call writes into, and refuse one in training mode.

    Raises
    ------
    ConfigError
        The call drops numbers at random, or takes the statistics of the batch.
    """
    schema = getattr(function, "_schema", None)
    if schema is None:
        return []
    written = []
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    given.update(kwargs)
    for argument in schema.arguments:
        value = given.get(argument.name, argument.default_value)
        is_trained = argument.name in _ONLY_FALSE and value is not False
        if is_trained or (argument.name == "dropout_p" and value != 0):
            raise ConfigError(
                f"{schema.name.replace('::', '.')} is in training mode, where the vector of a tile "
                "depends on chance or on other tiles; call .eval() before torch.export.export"
            )
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(value)
    return written


def _is_allowed(name: str) -> bool:
    if name in _SIZES:
        return True
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    # ``relu_`` writes its result over its argument: allowed where ``relu`` is.
    return match[1] in _ATEN or match[1].removesuffix("_") in _ATEN
