"""Layers that PyTorch also has as functions -> nodes; registered in ``torch_ops.FUNCTIONS``, used by the modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .torch_build import Builder, Ref
from .torch_ops import op, refuse

Sizes = int | Sequence[int]


def weight_array(b: Builder, weight: Ref | None, what: str) -> np.ndarray | None:
    """The numbers of a weight of a layer."""
    if weight is None:
        return None
    array = b.array(weight)
    refuse(array is None, f"a {what} that is computed")
    return array


def spread(value: Any, n: int) -> list[Any]:
    """A number for each of n axes."""
    numbers = [value] * n if isinstance(value, (int, Ref)) else list(value)
    return numbers * n if len(numbers) == 1 else numbers


@op()
def linear(b: Builder, input: Ref, weight: Ref, bias: Ref | None = None) -> Ref:
    matrix = b.array(weight)
    if matrix is not None and matrix.ndim == 2 and (bias is None or b.array(bias) is not None):
        offset = None if bias is None else b.array(bias)
        return b.layer("dense", b.cast(input, "f"), {"weight": matrix, "bias": offset})
    y = b.matmul(input, b.swap(weight, 0, -1))
    return y if bias is None else b.add(y, bias)


@op()
def embedding(
    b: Builder,
    input: Ref,
    weight: Ref,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Ref:
    refuse(max_norm is not None, "embedding with max_norm, which changes the weights in the forward pass")
    table = b.array(weight)
    if table is None:
        return b.emit("gather", weight, input, rank=input.rank + 1, kind="f", axis=0)
    return b.layer("embedding", input, {"weight": table}, rank=input.rank + 1)


# Normalisations


@op()
def layer_norm(
    b: Builder, input: Ref, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Ref:
    arrays = {"weight": weight_array(b, weight, "weight"), "bias": weight_array(b, bias, "bias")}
    return b.layer("layer_norm", input, arrays, eps=eps, axes=len(normalized_shape))


@op()
def rms_norm(b: Builder, input: Ref, normalized_shape: Sequence[int], weight: Any = None, eps: Any = None) -> Ref:
    axes = range(-len(normalized_shape), 0)
    mean = b.reduce("mean", b.activation(input, "square"), list(axes), True)
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    y = b.divide(input, b.activation(b.add(mean, eps), "sqrt"))
    return y if weight is None else b.mul(y, weight)


@op()
def batch_norm(
    b: Builder,
    input: Ref,
    running_mean: Ref | None,
    running_var: Ref | None,
    weight: Ref | None = None,
    bias: Ref | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Ref:
    refuse(running_mean is None or running_var is None, "batch normalisation without running statistics")
    given = {"mean": running_mean, "var": running_var, "weight": weight, "bias": bias}
    arrays = {key: weight_array(b, ref, key) for key, ref in given.items()}
    return b.layer("batch_norm", input, arrays, eps=eps, channels_first=True)


def _scaled(b: Builder, x: Ref, weight: Ref | None, bias: Ref | None) -> Ref:
    """y = x * weight + bias along axis 1."""
    shape = [-1, *[1] * (x.rank - 2)]
    x = x if weight is None else b.mul(x, b.reshape(weight, shape))
    return x if bias is None else b.add(x, b.reshape(bias, shape))


@op()
def group_norm(
    b: Builder, input: Ref, num_groups: int, weight: Ref | None = None, bias: Ref | None = None, eps: float = 1e-5
) -> Ref:
    flat = b.reshape(input, [b.size(input, 0), num_groups, -1])
    y = b.layer("layer_norm", flat, {}, eps=eps, axes=1)
    return _scaled(b, b.reshape(y, [b.size(input, k) for k in range(input.rank)]), weight, bias)


@op()
def instance_norm(
    b: Builder,
    input: Ref,
    running_mean: Ref | None = None,
    running_var: Ref | None = None,
    weight: Ref | None = None,
    bias: Ref | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Ref:
    if not use_input_stats:
        return batch_norm(b, input, running_mean, running_var, weight, bias, eps=eps)
    return _scaled(b, b.layer("layer_norm", input, {}, eps=eps, axes=input.rank - 2), weight, bias)


# Convolutions and pools.


def _batched(b: Builder, x: Ref, n: int, run: Callable[[Ref], Ref]) -> Ref:
    """``run`` on x with the axis of the batch, which an input with only channels and n axes lacks."""
    return b.squeeze(run(b.unsqueeze(x, 0)), 0) if x.rank == n + 1 else run(x)


def _conv(n: int) -> Any:
    def translate(
        b: Builder,
        input: Ref,
        weight: Ref,
        bias: Ref | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Ref:
        array = weight_array(b, weight, "weight")
        assert array is not None
        dilations = spread(dilation, n)
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, array.shape[2:])]
            pads = [p // 2 for p in total] + [p - p // 2 for p in total]
        else:
            pads = spread(padding, n) * 2
        weights = {"weight": array, "bias": weight_array(b, bias, "bias")}
        attrs: dict[str, Any] = {"strides": spread(stride, n), "pads": pads, "dilations": dilations, "groups": groups}
        return _batched(b, input, n, lambda x: b.layer("conv", x, weights, **attrs))

    return translate


def _conv_transpose(n: int) -> Any:
    def translate(
        b: Builder,
        input: Ref,
        weight: Ref,
        bias: Ref | None = None,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> Ref:
        weights = {"weight": weight_array(b, weight, "weight"), "bias": weight_array(b, bias, "bias")}
        attrs: dict[str, Any] = {
            "strides": spread(stride, n), "pads": spread(padding, n) * 2, "output_padding": spread(output_padding, n),
            "groups": groups, "dilations": spread(dilation, n),
        }  # fmt: skip
        return _batched(b, input, n, lambda x: b.layer("conv_transpose", x, weights, **attrs))

    return translate


def _pool(b: Builder, input: Ref, n: int, kernel: Sizes, stride: Any, padding: Sizes, **attrs: Any) -> Ref:
    sizes = spread(kernel, n)
    if all(b.is_size(size, input, axis - n) for axis, size in enumerate(sizes)):  # over all there is
        refuse(stride not in (None, [], ()) or padding != 0, "pooling over a whole axis in strides")
        return b.reduce(attrs["function"], input, list(range(-n, 0)), True)
    strides = spread(stride, n) if stride not in (None, [], ()) else sizes
    attrs |= {"kernel": sizes, "strides": strides, "pads": spread(padding, n) * 2}
    return _batched(b, input, n, lambda x: b.emit("pool", b.cast(x, "f"), **attrs))


def _max_pool(n: int) -> Any:
    def translate(
        b: Builder,
        input: Ref,
        kernel_size: Sizes,
        stride: Any = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Ref:
        refuse(return_indices, "max pooling with return_indices")
        more = {"function": "max", "dilations": spread(dilation, n), "ceil_mode": ceil_mode}
        return _pool(b, input, n, kernel_size, stride, padding, **more)

    return translate


def _avg_pool(n: int) -> Any:
    def translate(
        b: Builder,
        input: Ref,
        kernel_size: Sizes,
        stride: Any = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Ref:
        refuse(divisor_override is not None, "average pooling with divisor_override")
        more = {"function": "mean", "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        return _pool(b, input, n, kernel_size, stride, padding, **more)

    return translate


def _adaptive_pool(function: str, n: int) -> Any:
    def translate(b: Builder, input: Ref, output_size: Any, return_indices: bool = False) -> Ref:
        refuse(any(size != 1 for size in spread(output_size, n)), "adaptive pooling to another size than 1")
        refuse(return_indices, "max pooling with return_indices")
        return b.reduce(function, input, list(range(-n, 0)), True)

    return translate


for _n in (1, 2):
    op(f"conv{_n}d")(_conv(_n))
    op(f"conv_transpose{_n}d")(_conv_transpose(_n))
    op(f"max_pool{_n}d")(_max_pool(_n))
    op(f"avg_pool{_n}d")(_avg_pool(_n))
    op(f"adaptive_avg_pool{_n}d")(_adaptive_pool("mean", _n))
    op(f"adaptive_max_pool{_n}d")(_adaptive_pool("max", _n))
