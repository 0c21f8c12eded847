"""Convolutions and pools as steps.

Inside, channels stand last: the windows of one axis are then rows that overlap in memory, and need no copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import operators
from ..errors import ShapeError
from ..spec import Node
from .builder import Builder, Lowering, Values
from .convolution import Convolution
from .lower_arrays import known, padded
from .lower_layers import product
from .tensors import F32, Value


def _channels_last(b: Builder, x: Value, spatial: int, name: str, channels: int | None = None) -> Value:
    """x with its channels at the end; ``channels`` are how many it must have."""
    if x.ndim != spatial + 2 or channels not in (None, x.shape[1]):
        taken = "channels" if channels is None else channels
        raise ShapeError(f"{name!r} takes (batch, {taken}) and {spatial} more axes, got shape {x.shape}")
    x = b.floats(x)
    return x.transpose([0, *range(2, x.ndim), 1])


def _channels_first(x: Value) -> Value:
    """The inverse."""
    return x.transpose([0, x.ndim - 1, *range(1, x.ndim - 1)])


def _conv(b: Builder, node: Node, layer: Convolution, x: Values) -> Values:
    spatial = len(layer.kernel)
    last = _channels_last(b, x[0], spatial, node.name, layer.channels)
    strides, begins, ends, dilations = operators.window(node, layer.kernel)
    out = operators.output_sizes(node, x[0].shape[2:], layer.kernel)
    source = padded(b, last, begins, ends, 0.0, range(1, spatial + 1))
    y = b.new((x[0].shape[0], *out, layer.features))
    if y.size == 0:
        return [_channels_first(y)]
    if layer.depthwise:
        taps = _taps(b, source, layer.kernel, out, strides, dilations, range(1, spatial + 1))
        for k, tap in enumerate(taps):
            weight = known(b, layer.taps[k])
            if k == 0:
                b.binary_to(y, "mul", tap, weight)
            else:
                b.binary_to(y, "add", y, b.binary("mul", tap, weight))
        if layer.bias is not None:
            b.binary_to(y, "add", y, known(b, layer.bias))
        return [_channels_first(b.activate(layer.activation, y) if layer.activation else y)]
    for g, handle in enumerate(layer.handles):
        part = source.part(spatial + 1, g * layer.group_channels, layer.group_channels)
        target = y.part(spatial + 1, g * layer.group_features, layer.group_features)
        _windows_times(b, layer, handle, part, target, out, strides, dilations)
    return [_channels_first(y)]


def _windows_times(
    b: Builder,
    layer: Convolution,
    handle: Any,
    x: Value,
    y: Value,
    out: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> None:
    """The rows of all windows of x times a packed kernel."""
    batch, spatial, channels = x.shape[0], len(out), x.shape[-1]
    rows, k = math.prod(out), math.prod(layer.kernel) * channels
    flat_y = y.reshape((batch * rows, y.shape[-1]))
    assert flat_y is not None
    windows = x
    for axis in range(1, spatial + 1):
        windows = windows.part(axis, 0, out[axis - 1], strides[axis - 1])
    for axis, (size, dilation) in enumerate(zip(layer.kernel, dilations)):
        windows = _kernel_axis(windows, x, axis + 1, size, dilation)
    # (batch, *out, channels, *kernel) -> (batch, *out, *kernel, channels)
    windows = windows.transpose([*range(spatial + 1), *range(spatial + 2, 2 * spatial + 2), spatial + 1])
    flat_x = windows.reshape((batch * rows, k)) if channels == 1 or windows.strides[-1] == 1 else None
    if flat_x is None or (k > 1 and flat_x.strides[1] != 1):
        flat_x = b.copy(windows).reshape((batch * rows, k))
    assert flat_x is not None
    product(b, handle, flat_x, flat_y)


def _kernel_axis(windows: Value, x: Value, axis: int, size: int, dilation: int) -> Value:
    """One more axis at the end: the elements of each window along ``axis``."""
    grown = windows.unsqueeze(windows.ndim)
    return Value(
        (*grown.shape[:-1], size),
        F32,
        None,
        grown.buffer,
        grown.offset,
        (*grown.strides[:-1], x.strides[axis] * dilation),
    )


def _taps(
    b: Builder,
    x: Value,
    kernel: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    axes: Sequence[int],
) -> list[Value]:
    """For each element of the kernel, what it meets in all windows."""
    count = math.prod(kernel)
    b.budget.spend(count * math.prod(out), steps=count)
    taps = []
    for at in np.ndindex(*kernel):
        view = x
        for axis, start, count, stride, dilation in zip(axes, at, out, strides, dilations):
            view = view.part(axis, start * dilation, count, stride)
        taps.append(view)
    return taps


def _conv_transpose(b: Builder, node: Node, layer: Convolution, x: Values) -> Values:
    spatial = len(layer.kernel)
    last = _channels_last(b, x[0], spatial, node.name, layer.channels)
    strides, begins, ends, dilations = operators.window(node, layer.kernel)
    sizes, batch = x[0].shape[2:], x[0].shape[0]
    out = operators.transposed_sizes(node, sizes, layer.kernel)
    whole = [
        max(o + begin + max(end, 0), (n - 1) * s + (k - 1) * d + 1)
        for o, begin, end, n, s, k, d in zip(out, begins, ends, sizes, strides, layer.kernel, dilations)
    ]
    y = b.new((batch, *whole, layer.features))
    if layer.bias is None:
        b.fill(y, 0.0)
    else:
        b.copy_to(y, known(b, layer.bias))
    rows, taps = batch * math.prod(sizes), math.prod(layer.kernel)
    for g, handle in enumerate(layer.handles):
        if not rows:
            continue
        part = b.contiguous(last.part(spatial + 1, g * layer.group_channels, layer.group_channels))
        flat = b.reshape(part, (rows, layer.group_channels))
        terms = b.new((rows, taps * layer.group_features))
        product(b, handle, flat, terms)
        each = terms.reshape((batch, *sizes, taps, layer.group_features))
        assert each is not None
        for k, at in enumerate(np.ndindex(*layer.kernel)):
            target = y.part(spatial + 1, g * layer.group_features, layer.group_features)
            for axis in range(spatial):
                target = target.part(axis + 1, at[axis] * dilations[axis], sizes[axis], strides[axis])
            b.binary_to(target, "add", target, each.index(spatial + 1, k))
    for axis, (begin, size) in enumerate(zip(begins, out)):
        y = y.part(axis + 1, begin, size)
    return [_channels_first(y)]


def _pool(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    kernel, ceil_mode = tuple(node.attr("kernel")), node.attr("ceil_mode")
    spatial = len(kernel)
    source = _channels_last(b, x[0], spatial, node.name)
    strides, begins, ends, dilations = operators.window(node, kernel)
    out = operators.output_sizes(node, x[0].shape[2:], kernel, ceil_mode)
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, strides, kernel, dilations)]
    more = [max(end, r - n - begin, 0) for end, r, n, begin in zip(ends, reach, x[0].shape[2:], begins)]
    largest = node.attr("function") == "max"
    source = padded(b, source, begins, more, -math.inf if largest else 0.0, range(1, spatial + 1))
    y = b.new((x[0].shape[0], *out, x[0].shape[1]))
    if y.size:
        first, *others = _taps(b, source, kernel, out, strides, dilations, range(1, spatial + 1))
        b.copy_to(y, first)
        for tap in others:
            b.binary_to(y, "max" if largest else "add", y, tap)
        if not largest:
            b.budget.spend(sum(o * k for o, k in zip(out, kernel)))
            counts = np.moveaxis(operators.pool_counts(node, x[0].shape, ceil_mode), 1, -1)
            b.binary_to(y, "div", y, known(b, counts.astype(np.float32)))
    return [_channels_first(y)]


LOWERINGS: dict[str, Lowering] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "pool": _pool,
}
