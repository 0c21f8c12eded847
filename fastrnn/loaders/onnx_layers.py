"""Operators of ONNX with weights or windows: dense, convolutions, pools, normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .onnx_node import Call, Dynamic, Value
from .onnx_slow import slow

Array = np.ndarray


def broadcast_rank(*values: Value) -> int | None:
    """The rank of element-wise results."""
    ranks = [value.rank for value in values if value.rank is not None]
    return max(ranks) if len(ranks) == len(values) else None


def binary(call: Call, function: str, a: Value, b: Value, dtype: str | None = None) -> Value:
    return call.emit("binary", a, b, function=function, gives=dtype, rank=broadcast_rank(a, b))


def _matmul(call: Call) -> Value:
    a, b = call.x, call.need(1)
    if b.array is not None and b.array.ndim == 2 and b.is_float and a.array is None:
        return call.emit("dense", a, weights={"weight": np.ascontiguousarray(b.array.T)})
    known = all(value.rank is not None and value.rank >= 2 for value in (a, b))
    return call.emit("matmul", a, b, rank=broadcast_rank(a, b) if known else None)


def _gemm(call: Call) -> Value:
    """alpha * A B + beta * C"""
    a, b, c = call.x, call.need(1), call.get(2)
    alpha, beta = call.get_float("alpha", 1.0), call.get_float("beta", 1.0)
    if call.get_int("transA", 0):
        a = call.emit("transpose", a, perm=(1, 0))
    if b.array is not None and b.array.ndim == 2 and b.is_float and a.array is None:
        weight = b.array if call.get_int("transB", 0) else b.array.T
        weights = {"weight": np.ascontiguousarray(weight * np.float32(alpha) if alpha != 1 else weight)}
        units = len(weight)
        if c is not None and c.array is not None and c.array.shape in ((), (1,), (units,), (1, 1), (1, units)):
            bias = np.float32(beta) * c.array.reshape(-1)
            weights["bias"] = np.ascontiguousarray(np.broadcast_to(bias, units))
            c = None
        y = call.emit("dense", a, weights=weights, rank=2)
    else:
        if call.get_int("transB", 0):
            b = call.emit("transpose", b, perm=(1, 0))
        y = call.emit("matmul", a, b, rank=2)
        y = y if alpha == 1 else binary(call, "mul", y, call.new(_like(alpha, y), "alpha"))
    if c is not None:
        c = c if beta == 1 else binary(call, "mul", c, call.new(_like(beta, c), "beta"))
        y = binary(call, "add", y, c)
    return y


def _like(number: float, value: Value) -> Array:
    return np.array(number, value.dtype)


# Windows


def _window(call: Call, kernel: Sequence[int]) -> dict[str, Any]:
    """Strides and dilations, checked; None for ones."""
    n, stated = len(kernel), call.get_ints("kernel_shape")
    least = {"strides": 1, "dilations": 1, "pads": 0}
    found = {name: call.get_ints(name) for name in least}
    given = {name: numbers for name, numbers in found.items() if numbers is not None}
    if (
        any(len(numbers) != (2 * n if name == "pads" else n) for name, numbers in given.items())
        or any(min(numbers) < least[name] for name, numbers in given.items())
        or min(kernel) < 1
        or (stated is not None and stated != list(kernel))
    ):
        raise FormatError(f"its window does not fit a kernel of {list(kernel)}; the file is damaged")
    return {name: numbers if numbers and set(numbers) != {least[name]} else None for name, numbers in found.items()}


def _padded(call: Call, kernel: Sequence[int], window: dict[str, Any], outside: float | None) -> Value:
    """x, and in ``window`` the pads that auto_pad means; where they depend on the size of x they are made of
    ``outside`` before the window runs.  Without an ``outside`` that is the slow operator's."""
    x, mode = call.x, call.get_text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return x
    window["pads"] = None
    if mode == "VALID":
        return x
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise FormatError(f"auto_pad {mode!r} is unknown; the file is damaged")
    n = len(kernel)
    strides, dilations = window["strides"] or [1] * n, window["dilations"] or [1] * n
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    if set(strides) == {1}:
        ends = [(span - 1) // 2 if mode == "SAME_LOWER" else span - 1 - (span - 1) // 2 for span in spans]
        window["pads"] = [*(span - 1 - end for span, end in zip(spans, ends)), *ends]
        return x
    if outside is None:
        raise Dynamic
    # (ceil(size / stride) - 1) * stride + span - size, at least 0
    size = call.emit("shape", x, start=2, gives="int64", rank=1)
    stride, zero = call.ints_value(strides, "strides"), call.ints_value([0] * n, "zeros")
    steps = binary(call, "div", binary(call, "sub", size, call.ints_value([1] * n, "ones")), stride)
    reach = binary(call, "add", binary(call, "mul", steps, stride), call.ints_value(spans, "spans"))
    total = binary(call, "max", binary(call, "sub", reach, size), zero)
    half = binary(call, "div", total, call.ints_value([2] * n, "twos"))
    rest = binary(call, "sub", total, half)
    begin, end = (rest, half) if mode == "SAME_LOWER" else (half, rest)
    none = call.ints_value([0, 0], "none")
    pads = call.emit("concat", none, begin, none, end, axis=0, gives="int64", rank=1)
    return call.emit("pad", x, pads, call.new(np.float32(outside), "outside"))


def _conv(call: Call) -> Any:
    weight, bias = call.known(1), call.get(2)
    if weight is None or (bias is not None and bias.array is None) or not call.x.is_float:
        return slow(call)
    groups = call.get_int("group", 1)
    if weight.ndim < 3 or groups < 1 or len(weight) % groups or (bias and bias.array.shape != weight.shape[:1]):  # type: ignore[union-attr]
        raise FormatError(f"W of shape {weight.shape} in {groups} groups with its bias fits no input")
    kernel = weight.shape[2:]
    window = _window(call, kernel)
    x = _padded(call, kernel, window, 0.0)
    weights = {"weight": weight} | ({"bias": bias.array} if bias else {})
    return call.emit("conv", x, weights=weights, groups=groups, rank=weight.ndim, **window)


def _conv_transpose(call: Call) -> Any:
    weight, bias = call.known(1), call.get(2)
    constant = weight is not None and (bias is None or bias.array is not None)
    groups = call.get_int("group", 1)
    if weight is None or not constant or not call.x.is_float or call.get_ints("output_shape") is not None:
        if groups != 1:  # more the slow operator does not do
            raise UnsupportedError(
                "ConvTranspose in groups with weights made at run time or output_shape; export it with constant weights"
            )
        return slow(call)
    channels = (weight.shape[1] * groups,) if weight.ndim > 2 else ()
    if not channels or groups < 1 or len(weight) % groups or (bias and bias.array.shape != channels):  # type: ignore[union-attr]
        raise FormatError(f"W of shape {weight.shape} in {groups} groups with its bias fits no input")
    kernel = weight.shape[2:]
    window = _window(call, kernel)
    more = call.get_ints("output_padding")
    if more is not None and (len(more) != len(kernel) or min(more) < 0):
        raise FormatError(f"output_padding {more} does not fit a kernel of {list(kernel)}; the file is damaged")
    mode = call.get_text("auto_pad", "NOTSET")
    if mode != "NOTSET":
        window["pads"] = None
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        ones = [1] * len(kernel)
        strides, dilations = window["strides"] or ones, window["dilations"] or ones
        totals = [(k - 1) * d + 1 + extra - s for k, d, s, extra in zip(kernel, dilations, strides, more or [0] * 9)]
        if min(totals) < 0:
            return slow(call)
        halves = [total // 2 for total in totals]
        rests = [total - half for total, half in zip(totals, halves)]
        window["pads"] = [*halves, *rests] if mode == "SAME_UPPER" else [*rests, *halves]
    weights = {"weight": weight} | ({"bias": bias.array} if bias else {})
    return call.emit(
        "conv_transpose", call.x, weights=weights, groups=groups, output_padding=more, rank=weight.ndim, **window
    )


def _pool(function: str) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        kernel = call.get_ints("kernel_shape")
        if not call.x.is_float or any(call.wanted[1:]) or not kernel:
            return slow(call)
        window = _window(call, kernel)
        x = _padded(call, kernel, window, -np.inf if function == "max" else None)
        options = {"ceil_mode": bool(call.get_int("ceil_mode", 0))}
        if function == "mean":
            options["count_include_pad"] = bool(call.get_int("count_include_pad", 0))
        return call.emit("pool", x, kernel=kernel, function=function, rank=len(kernel) + 2, **window, **options)

    return convert


def _global_pool(function: str) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        if call.x.rank is None or call.x.rank < 3:
            return slow(call)
        return call.emit("reduce", call.x, function=function, axes=tuple(range(2, call.x.rank)))

    return convert


# Normalisations


def _batch_norm(call: Call) -> Any:
    if call.get_int("training_mode", 0) or any(call.wanted[1:]):
        raise UnsupportedError("BatchNormalization in training mode; export the model for inference")
    constants = [call.known(k) for k in (1, 2, 3, 4)]
    if call.get_int("spatial", 1) != 1:
        raise UnsupportedError("BatchNormalization that is not spatial; convert it with onnx.version_converter")
    if any(array is None for array in constants):
        y = binary(call, "sub", _flat(call, call.x, 0), _per_channel(call, 3))
        total = binary(call, "add", _per_channel(call, 4), call.new(np.float32(call.get_float("epsilon", 1e-5)), "eps"))
        return _scaled(call, binary(call, "div", y, call.emit("activation", total, activation="sqrt")))
    if any(array.ndim != 1 or array.shape != constants[0].shape for array in constants):  # type: ignore[union-attr]
        raise FormatError("its scale, bias, mean and variance have different shapes; the file is damaged")
    weights = dict(zip(("weight", "bias", "mean", "var"), constants))
    return call.emit("batch_norm", call.x, weights=weights, eps=call.get_float("epsilon", 1e-5), channels_first=True)


def _axes_from(call: Call, axis: int) -> int:
    """How many trailing axes there are from ``axis`` on."""
    if axis < 0:
        return -axis
    if call.x.rank is None or axis >= call.x.rank:
        raise Dynamic
    return call.x.rank - axis


def _layer_norm(call: Call) -> Any:
    if any(call.wanted[1:]):
        return slow(call)
    axes, scale, bias = _axes_from(call, call.get_int("axis", -1)), call.need(1), call.get(2)
    eps = call.get_float("epsilon", 1e-5)
    if all(value is None or (value.array is not None and value.array.ndim == axes) for value in (scale, bias)):
        weights = {"weight": scale.array} | ({"bias": bias.array} if bias else {})
        return call.emit("layer_norm", call.x, weights=weights, eps=eps)
    y = binary(call, "mul", call.emit("layer_norm", call.x, axes=axes, eps=eps), scale)
    return binary(call, "add", y, bias) if bias else y


def _rms_norm(call: Call) -> Any:
    x, axes = call.x, tuple(range(-_axes_from(call, call.get_int("axis", -1)), 0))
    squares = call.emit("activation", x, activation="square")
    mean = call.emit("reduce", squares, function="mean", axes=axes)
    total = binary(call, "add", mean, call.new(np.float32(call.get_float("epsilon", 1e-5)), "epsilon"))
    y = binary(call, "div", x, call.emit("activation", total, activation="sqrt"))
    return binary(call, "mul", y, call.need(1))


def _per_channel(call: Call, k: int) -> Value:
    """Input k, (channels,), to multiply (batch, channels, rest) with."""
    return call.emit("unsqueeze", call.need(k), axes=(1,), rank=2)


def _flat(call: Call, x: Value, channels: int) -> Value:
    return call.emit("reshape", x, call.ints_value((0, channels, -1), "shape"), rank=3)


def _scaled(call: Call, y: Value) -> Value:
    """y * scale + bias of each channel, in the shape of x."""
    y = binary(call, "add", binary(call, "mul", y, _per_channel(call, 1)), _per_channel(call, 2))
    shape = call.emit("shape", call.x, gives="int64", rank=1)
    return call.emit("reshape", y, shape, zero_copies=False, rank=call.x.rank)


def _instance_norm(call: Call) -> Any:
    y = call.emit("layer_norm", _flat(call, call.x, 0), eps=call.get_float("epsilon", 1e-5))
    return _scaled(call, y)


def _group_norm(call: Call) -> Any:
    y = call.emit("layer_norm", _flat(call, call.x, call.get_int("num_groups")), eps=call.get_float("epsilon", 1e-5))
    if call.version >= 21:  # scale and bias of each channel; of each group before
        shape = call.emit("shape", call.x, gives="int64", rank=1)
        y = _flat(call, call.emit("reshape", y, shape, zero_copies=False, rank=call.x.rank), 0)
    return _scaled(call, y)


def _lp_norm(call: Call) -> Any:
    """x / norm along an axis, 0 where the norm is 0."""
    x, p = call.x, call.get_int("p", 2)
    if p not in (1, 2):
        raise FormatError(f"p is {p}, expected 1 or 2; the file is damaged")
    norm = call.emit("reduce", x, function=f"l{p}", axes=(call.get_int("axis", -1),))
    zero, one = call.new(np.float32(0), "zero"), call.new(np.float32(1), "one")
    is_zero = binary(call, "equal", norm, zero, "bool")
    return binary(call, "div", x, call.emit("where", is_zero, one, norm, gives="float32", rank=norm.rank))


LAYERS: dict[str, Callable[[Call], Any]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("mean"),
    "GlobalMaxPool": _global_pool("max"),
    "GlobalAveragePool": _global_pool("mean"),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
}
