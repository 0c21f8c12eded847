"""Keras' layers that slide a window: convolutions and pools; and pools over everything.

Keras' kernels are (window, in, out) and its tensors channels last unless they say otherwise; ours are (out, in, window)
and channels first, so most layers come between two transposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import FormatError, UnsupportedError
from .keras_config import Call, Config, Converted, Shape, Value, activation_of, choice, flag, integer, integers
from .keras_emit import Emitter
from .keras_masks import check_mask

Pads = tuple[list[int], list[int]]


def channels_first(config: Config) -> bool:
    """Whether ``data_format`` is that of the spec; Keras 2 writes None for its default."""
    return choice(config, "data_format", "channels_last", ("channels_last", "channels_first")) == "channels_first"


def rank_of(class_name: str) -> int:
    """The number of spatial axes that the name of a class ends in, before "D", "DTranspose"."""
    return int(class_name.removesuffix("Transpose")[-2])


def enter(emit: Emitter, call: Call) -> tuple[Value, int]:
    """The input as (batch, channels, *spatial), and the number of spatial axes."""
    rank = rank_of(call.class_name)
    call.x.require_rank(rank + 2)
    x = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (rank + 2))
    return (x if channels_first(call.config) else emit.move(x, rank + 1, 1)), rank


def leave(emit: Emitter, call: Call, y: Value) -> Converted:
    """The finished call, its output in the layer's own data format."""
    return emit.done(y if channels_first(call.config) else emit.move(y, 1, len(y.known_shape) - 1))


def _same_pads(spatial: Shape, spans: Sequence[int], strides: Sequence[int]) -> Pads | None:
    """What makes the output ceil(size / stride) long, the odd one behind; None where that needs an unknown size."""
    before, after = [], []
    for n, span, stride in zip(spatial, spans, strides, strict=True):
        if n is None and stride > 1 and span > 1:
            return None
        total = max(span - (stride if n is None else n % stride or stride), 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before, after


def _padded(emit: Emitter, x: Value, spans: Sequence[int], strides: Sequence[int], value: float) -> Value:
    """``x`` with the same padding, worked out from its size in each run."""
    rank = len(spans)
    sizes = emit.emit("shape", [x], (rank,), "int64", start=2, end=2 + rank)
    steps = np.array(strides, np.int64)
    over = emit.binary("mod", sizes, steps)
    over = emit.where(emit.binary("equal", over, 0), steps, over)
    total = emit.binary("max", emit.binary("sub", np.array(spans, np.int64), over), 0)
    before = emit.binary("div", total, 2)
    pads = emit.concat([before, emit.binary("sub", total, before)], 0)
    axes = emit.constant(np.arange(2, 2 + rank))
    shape = (*x.known_shape[:2], *(None,) * rank)
    return emit.emit("pad", [x, pads, emit.constant(float(value)), axes], shape)


def _windows(spatial: Shape, spans: Sequence[int], strides: Sequence[int], pads: Pads) -> Shape:
    sizes = [
        None if n is None else (n + before + after - span) // stride + 1
        for n, span, stride, before, after in zip(spatial, spans, strides, *pads, strict=True)
    ]
    if any(n is not None and n < 1 for n in sizes):
        raise FormatError(f"its window is larger than its input {spatial}; the configuration is inconsistent")
    return tuple(sizes)


def _conv(
    emit: Emitter, call: Call, x: Value, weights: dict[str, np.ndarray], groups: int = 1, activation: object = "linear"
) -> Value:
    """A convolution with the strides, padding and dilation of the layer; ``weights`` are in our order."""
    out, _, *kernel = weights["weight"].shape
    rank = len(kernel)
    strides, dilations = (integers(call.config, key, rank, 1) for key in ("strides", "dilation_rate"))
    spans = [dilation * (k - 1) + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    x, pads = _pads_of(emit, call, x, spans, strides, 0.0)
    shape = (x.known_shape[0], out, *_windows(x.known_shape[2:], spans, strides, pads))
    return emit.emit(
        "conv",
        [x],
        shape,
        "float32",
        weights=weights,
        strides=None if set(strides) == {1} else strides,
        dilations=None if set(dilations) == {1} else dilations,
        pads=[*pads[0], *pads[1]] if any(map(any, pads)) else None,
        groups=groups,
        activation=activation,
    )


def _pads_of(
    emit: Emitter, call: Call, x: Value, spans: Sequence[int], strides: Sequence[int], value: float
) -> tuple[Value, Pads]:
    rank, words = len(spans), ("valid", "same", "causal")
    padding = choice(call.config, "padding", "valid", words if rank == 1 else words[:2])
    none: Pads = ([0] * rank, [0] * rank)
    if padding == "valid":
        return x, none
    if padding == "causal":
        return x, ([spans[0] - 1], [0])
    pads = _same_pads(x.known_shape[2:], spans, strides)
    return (x, pads) if pads else (_padded(emit, x, spans, strides, value), none)


def _kernel_size(call: Call, rank: int) -> list[int]:
    return integers(call.config, "kernel_size", rank)


def _bias(call: Call, index: int, size: int | None) -> dict[str, np.ndarray]:
    stored = flag(call.config, "use_bias", call.weights.shape(index, "bias") is not None)
    return {"bias": call.weights.take(index, "bias", (size,))} if stored else {}


def conv(call: Call) -> Converted:
    """Conv1D, Conv2D.  Without a configuration filters and window follow from the kernel."""
    emit, config = Emitter(call.name), call.config
    rank, stored = rank_of(call.class_name), call.weights.shape(0, "kernel")
    if "kernel_size" not in config and stored and len(stored) == rank + 2:  # written by a caller
        config = {**config, "kernel_size": list(stored[:rank]), "filters": stored[-1]}
        call = replace(call, config=config)
    x, rank = enter(emit, call)
    groups = integer(config, "groups") if "groups" in config else 1
    filters, channels = integer(config, "filters"), x.known_shape[1]
    if filters % groups or (channels or 0) % groups:
        raise FormatError(f"{channels} channels to {filters} in {groups} groups; the configuration is inconsistent")
    part = None if channels is None else channels // groups
    kernel = call.weights.take(0, "kernel", (*_kernel_size(call, rank), part, filters))
    weights = {"weight": np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))), **_bias(call, 1, filters)}
    return leave(
        emit, call, _conv(emit, call, x, weights, groups, activation_of(config.get("activation"), call.version))
    )


def _depthwise(call: Call, x: Value, rank: int, label: str) -> tuple[np.ndarray, int]:
    """The weight of a convolution of each channel by itself, and the number of channels."""
    multiplier = integer(call.config, "depth_multiplier") if "depth_multiplier" in call.config else 1
    kernel = call.weights.take(0, label, (*_kernel_size(call, rank), x.known_shape[1], multiplier))
    weight = np.moveaxis(kernel, (-2, -1), (0, 1)).reshape(-1, 1, *kernel.shape[:rank])
    return np.ascontiguousarray(weight), kernel.shape[-2]


def depthwise_conv(call: Call) -> Converted:
    """DepthwiseConv1D, DepthwiseConv2D: each channel by itself."""
    emit = Emitter(call.name)
    x, rank = enter(emit, call)
    label = "depthwise_kernel" if call.weights.shape(0, "depthwise_kernel") else "kernel"  # Keras 2, Keras 3
    weight, channels = _depthwise(call, x, rank, label)
    activation = activation_of(call.config.get("activation"), call.version)
    weights = {"weight": weight, **_bias(call, 1, len(weight))}
    return leave(emit, call, _conv(emit, call, x, weights, channels, activation))


def separable_conv(call: Call) -> Converted:
    """SeparableConv1D, SeparableConv2D: each channel by itself, then all of them at each place."""
    emit, filters = Emitter(call.name), integer(call.config, "filters")
    x, rank = enter(emit, call)
    weight, channels = _depthwise(call, x, rank, "depthwise_kernel")
    y = _conv(emit, call, x, {"weight": weight}, channels)
    point = call.weights.take(1, "pointwise_kernel", (*(1,) * rank, len(weight), filters))
    weights = {"weight": np.ascontiguousarray(np.moveaxis(point, (-1, -2), (0, 1))), **_bias(call, 2, filters)}
    activation = activation_of(call.config.get("activation"), call.version)
    shape = (y.known_shape[0], filters, *y.known_shape[2:])
    return leave(emit, call, emit.emit("conv", [y], shape, weights=weights, activation=activation))


def conv_transpose(call: Call) -> Converted:
    """Conv1DTranspose, Conv2DTranspose."""
    emit, config = Emitter(call.name), call.config
    x, rank = enter(emit, call)
    filters = integer(config, "filters")
    kernel = call.weights.take(0, "kernel", (*_kernel_size(call, rank), filters, x.known_shape[1]))
    weights = {"weight": np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))), **_bias(call, 1, filters)}
    strides, dilations = (integers(config, key, rank, 1) for key in ("strides", "dilation_rate"))
    given = None if config.get("output_padding") is None else integers(config, "output_padding", rank, least=0)
    same = choice(config, "padding", "valid", ("valid", "same")) == "same"
    begins, ends, more, sizes = [], [], [], []
    for k, (size, stride, dilation) in enumerate(zip(kernel.shape, strides, dilations)):
        span = dilation * (size - 1) + 1
        extra = given[k] if given else None
        if not same:  # the output has all that the windows reach, and no less than the strides
            begin, end = 0, -(max(stride - span, 0) if extra is None else extra)
        else:
            total = span - stride if extra is None else span - span % 2 - extra
            begin = max(total // 2, 0)
            end = total - begin
        n = x.known_shape[2 + k]
        sizes.append(None if n is None else (n - 1) * stride + span - begin - end)
        begins.append(begin)
        ends.append(max(end, 0))
        more.append(max(-end, 0))
    y = emit.emit(
        "conv_transpose",
        [x],
        (x.known_shape[0], filters, *sizes),
        "float32",
        weights=weights,
        strides=strides,
        dilations=dilations,
        pads=[*begins, *ends],
        output_padding=more,
    )
    return leave(emit, call, emit.activation(activation_of(config.get("activation"), call.version), y))


def pool(call: Call) -> Converted:
    """MaxPooling and AveragePooling in 1 and 2 dimensions; an average counts no padding."""
    emit, config = Emitter(call.name), call.config
    x, rank = enter(emit, call)
    kernel = integers(config, "pool_size", rank, 2)
    strides = kernel if config.get("strides") is None else integers(config, "strides", rank)
    largest = call.class_name.startswith("Max")
    same = choice(config, "padding", "valid", ("valid", "same")) == "same"
    if same and not largest and _same_pads(x.known_shape[2:], kernel, strides) is None:
        raise UnsupportedError("an average with padding 'same' over an unknown size; save it with the size")
    x, pads = _pads_of(emit, call, x, kernel, strides, -np.inf)
    shape = (*x.known_shape[:2], *_windows(x.known_shape[2:], kernel, strides, pads))
    y = emit.emit(
        "pool",
        [x],
        shape,
        "float32",
        kernel=kernel,
        strides=strides,
        pads=[*pads[0], *pads[1]] if any(map(any, pads)) else None,
        function="max" if largest else "mean",
    )
    return leave(emit, call, y)


def global_pool(call: Call) -> Converted:
    """GlobalMaxPooling and GlobalAveragePooling; the average over time counts no masked step."""
    emit, rank = Emitter(call.name), rank_of(call.class_name)
    call.x.require_rank(rank + 2)
    x = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (rank + 2))
    first = 2 if channels_first(call.config) else 1
    axes, keepdims = list(range(first, first + rank)), flag(call.config, "keepdims")
    if call.class_name == "GlobalAveragePooling1D" and call.mask:
        check_mask(call.mask, 2)
        mask = emit.unsqueeze(call.mask, 3 - first)
        total = emit.reduce("sum", emit.where(mask, x, 0.0), axes, keepdims)
        count = emit.reduce("sum", emit.cast(mask, "float32"), axes, keepdims)
        return emit.done(emit.binary("div", total, count))
    name = "max" if call.class_name.startswith("GlobalMax") else "mean"
    return emit.done(emit.reduce(name, x, axes, keepdims))
