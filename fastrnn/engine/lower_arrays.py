"""Array operators as steps: views where nothing moves, else copies, element-wise kernels and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import operators
from ..errors import ShapeError
from ..operator_sizes import work
from ..spec import Node
from .builder import MAX_AXES, Builder, Lowering, Values
from .tensors import F32, Value


def known(b: Builder, array: np.ndarray) -> Value:
    """An array as a tensor of the program."""
    return b.floats(Value(array.shape, F32, array))


def by_numpy(b: Builder, node: Node, x: Values) -> Sequence[Value]:
    """The node as a host step: its NumPy function.  Its shapes come from a run on zeros."""
    present = [k for k, value in enumerate(x) if value is not None]

    def run(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        inputs: list[Any] = [None] * len(x)
        for k, array in zip(present, arrays):
            inputs[k] = array
        return operators.evaluate(node, inputs)

    b.budget.spend(work_of(node, x))
    trial = [
        value.known if value.known is not None else np.zeros(value.shape, value.dtype)
        for value in (x[k] for k in present)
    ]
    outputs = [b.held(array.shape, array.dtype) for array in run(*trial)]
    b.host(run, [x[k] for k in present], outputs)
    return outputs


def work_of(node: Node, x: Values) -> int:
    """Elements that the NumPy function of a node reads and writes at most."""
    shown = [None if value is None else _array_like(value) for value in x]
    return sum(array.size for array in shown if array is not None) + work(node, shown)


def _array_like(value: Value) -> np.ndarray:
    """The elements where they are known, else zeros that take no memory."""
    return np.broadcast_to(np.zeros((), value.dtype), value.shape) if value.known is None else value.known


# ---- Rows along any axis ----


def inverse(perm: Sequence[int]) -> list[int]:
    return [int(k) for k in np.argsort(perm)]


def axis_of(axis: int, ndim: int, name: str) -> int:
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{name!r} has axis {axis}, its input has {ndim} axes")
    return axis % ndim


def softmax_last(b: Builder, x: Value, logarithm: bool) -> Value:
    return b.rows("softmax", x, x.shape[-1] if x.ndim else 1, logarithm=logarithm)


def softmax_axis(b: Builder, x: Value, axis: int, logarithm: bool) -> Value:
    x = b.floats(x)
    if x.ndim == 0:
        return softmax_last(b, x, logarithm)
    axis %= x.ndim
    order = [k for k in range(x.ndim) if k != axis] + [axis]
    return softmax_last(b, x.transpose(order), logarithm).transpose(inverse(order))


def _softmax(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    axis = axis_of(node.attr("axis"), max(x[0].ndim, 1), node.name)
    return [softmax_axis(b, x[0], axis, node.attr("logarithm"))]


_COMPOSED = {"l2": ("sum_square", "sqrt"), "log_sum": ("sum", "log")}


def _reduce(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    function = node.attr("function")
    if function in ("log_sum_exp", "any", "all"):
        return by_numpy(b, node, x)
    value, given = b.floats(x[0]), node.attr("axes")
    axes = range(value.ndim) if given is None else sorted({axis_of(axis, value.ndim, node.name) for axis in given})
    kept = [k for k in range(value.ndim) if k not in axes]
    sizes = [value.shape[k] for k in kept]
    n = math.prod(value.shape[k] for k in axes)
    first, *then = _COMPOSED.get(function, (function,))
    if n == 0:
        return by_numpy(b, node, x)
    rows = math.prod(sizes)
    y = b.reduce(first, value.transpose([*kept, *axes]), rows, n)
    for name in then:
        y = b.activate(name, y)
    shape = [1 if k in axes else size for k, size in enumerate(value.shape)] if node.attr("keepdims") else sizes
    return [b.reshape(y, shape)]


# ---- Views and copies ----


def joined(b: Builder, parts: Sequence[Value], axis: int) -> Value:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    y = b.new(shape)
    at = 0
    for part in parts:
        b.copy_to(y.part(axis, at, part.shape[axis]), part)
        at += part.shape[axis]
    return y


def _concat(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    parts = [b.floats(value) for value in x if value is not None]
    axis = axis_of(node.attr("axis"), parts[0].ndim, node.name)
    rest = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    if len(rest) > 1 or len({part.ndim for part in parts}) > 1:
        raise ShapeError(f"{node.name!r} joins shapes {', '.join(str(part.shape) for part in parts)} along axis {axis}")
    return [parts[0] if len(parts) == 1 else joined(b, parts, axis)]


def _split(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    axis = axis_of(node.attr("axis"), x[0].ndim, node.name)
    sizes = operators.split_sizes(node, x[0].shape[axis])
    if sum(sizes) != x[0].shape[axis]:
        raise ShapeError(f"{node.name!r} splits into {sizes}, the axis has {x[0].shape[axis]} elements")
    starts = np.cumsum([0, *sizes])
    return [b.floats(x[0]).part(axis, int(start), size) for start, size in zip(starts, sizes)]


def _slice(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    value = b.floats(x[0])
    bounds = [None if v is None else v.known for v in x[1:]]
    for axis, part in enumerate(operators.slices(value.ndim, *bounds)):  # type: ignore[arg-type]
        start, step, count = operators.slice_bounds(part, value.shape[axis])
        value = value.part(axis, start, count, step)
    return [value]


def _reshape(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    assert x[1].known is not None
    wanted = operators.numbers(x[1].known)
    return [b.reshape(x[0], operators.new_shape(x[0].shape, wanted, node.attr("zero_copies")))]


def _squeeze(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    value, axes = b.floats(x[0]), node.attr("axes")
    drop = (
        {k for k, size in enumerate(value.shape) if size == 1}
        if axes is None
        else {axis_of(a, value.ndim, node.name) for a in axes}
    )
    wrong = [k for k in drop if value.shape[k] != 1]
    if wrong:
        raise ShapeError(f"{node.name!r} drops axis {wrong[0]} of shape {value.shape}, which has more than 1 element")
    for axis in sorted(drop, reverse=True):
        value = value.index(axis, 0)
    return [value]


def _unsqueeze(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    value, axes = b.floats(x[0]), node.attr("axes")
    ndim = value.ndim + len(axes)
    for axis in sorted(axis_of(a, ndim, node.name) for a in axes):
        value = value.unsqueeze(axis)
    return [value]


def _transpose(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    perm = node.attr("perm")
    if perm is not None and sorted(axis % max(x[0].ndim, 1) for axis in perm) != list(range(x[0].ndim)):
        raise ShapeError(f"{node.name!r} has perm {list(perm)}, its input has {x[0].ndim} axes")
    return [b.floats(x[0]).transpose(perm)]


def _expand(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    assert x[1].known is not None
    wanted = np.broadcast_shapes(x[0].shape, tuple(operators.numbers(x[1].known)))
    return [b.floats(x[0]).expand(wanted)]


def _tile(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    assert x[1].known is not None
    value, repeats = b.floats(x[0]), operators.numbers(x[1].known)
    if len(repeats) != value.ndim or 2 * value.ndim > MAX_AXES:
        return list(by_numpy(b, node, x))
    shape = [size * count for size, count in zip(value.shape, repeats)]
    for axis in reversed(range(value.ndim)):
        value = value.unsqueeze(axis)
    pairs = [n for count, size in zip(repeats, x[0].shape) for n in (count, size)]
    return [b.reshape(value.expand(pairs), shape)]


def _gather(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    axis = axis_of(node.attr("axis"), x[0].ndim, node.name)
    if x[1].known is None:
        return by_numpy(b, node, x)
    size, at = x[0].shape[axis], np.asarray(x[1].known)
    if at.size and not -size <= at.min() <= at.max() < size:
        raise ShapeError(f"{node.name!r} takes elements {at.min()} to {at.max()} of an axis of {size}")
    at = at % size if size else at
    if at.ndim == 0:
        return [b.floats(x[0]).index(axis, int(at))]
    steps = {int(step) for step in np.diff(at)} if at.ndim == 1 else {0, 1}
    if at.size and len(steps) <= 1:
        return [b.floats(x[0]).part(axis, int(at.flat[0]), at.size, *steps)]
    return by_numpy(b, node, x)


def _pad(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    pads = x[1].known
    axes = x[3].known if len(x) > 3 and x[3] is not None else None
    assert pads is not None
    widths = operators.pad_widths(x[0].ndim, pads, axes)
    value = b.floats(x[0])
    for axis, (before, after) in enumerate(widths):  # negative ones crop
        value = value.part(axis, max(-before, 0), max(value.shape[axis] - max(-before, 0) - max(-after, 0), 0))
    widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    mode = node.attr("mode")
    if mode == "constant":
        outside = 0.0 if len(x) < 3 or x[2] is None else float(np.reshape(x[2].known, ()))  # type: ignore[arg-type]
        begins, ends = zip(*widths) if widths else ((), ())
        return [padded(b, value, begins, ends, outside, range(value.ndim))]
    for axis, (before, after) in enumerate(widths):
        value = _extended(b, value, axis, before, after, mode, node.name)
    return [value]


def padded(
    b: Builder, x: Value, begins: Sequence[int], ends: Sequence[int], outside: float, axes: Sequence[int]
) -> Value:
    """x, channels last, with its spatial axes padded."""
    if not any((*begins, *ends)):
        return x
    shape = list(x.shape)
    for axis, begin, end in zip(axes, begins, ends):
        shape[axis] += begin + end
    padded = b.new(shape)
    b.fill(padded, outside)
    inner = padded
    for axis, begin in zip(axes, begins):
        inner = inner.part(axis, begin, x.shape[axis])
    b.copy_to(inner, x)
    return padded


def _extended(b: Builder, x: Value, axis: int, before: int, after: int, mode: str, name: str) -> Value:
    """An axis continued on both sides by its own elements."""
    if not before and not after:
        return x
    n = x.shape[axis]
    most = {"reflect": n - 1, "wrap": n, "edge": before + after if n else -1}[mode]
    if max(before, after) > most:
        raise ShapeError(f"{name!r} pads an axis of {n} elements by {max(before, after)} in mode {mode}")
    shape = list(x.shape)
    shape[axis] = before + n + after
    y = b.new(shape)
    b.copy_to(y.part(axis, before, n), x)
    sources = {
        "reflect": (x.part(axis, before, before, -1), x.part(axis, n - 2, after, -1)),
        "wrap": (x.part(axis, n - before, before), x.part(axis, 0, after)),
        "edge": (x.part(axis, 0, before, 0), x.part(axis, n - 1, after, 0)),
    }[mode]
    b.copy_to(y.part(axis, 0, before), sources[0])
    b.copy_to(y.part(axis, before + n, after), sources[1])
    return y


# ---- Arithmetic ----

_ARITHMETIC = ("add", "sub", "mul", "div", "pow", "min", "max", "prelu")


def _binary(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    function = node.attr("function")
    if function not in _ARITHMETIC:
        return by_numpy(b, node, x)
    return [b.binary(function, x[0], x[1])]


def _matmul(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    left, right = b.floats(x[0]), b.floats(x[1])
    if 0 in (left.ndim, right.ndim) or left.shape[-1] != right.shape[max(right.ndim - 2, 0)]:
        raise ShapeError(f"{node.name!r} multiplies shapes {left.shape} and {right.shape}, which do not fit")
    m = left.unsqueeze(0) if left.ndim == 1 else left
    n = right.unsqueeze(1) if right.ndim == 1 else right
    outer = np.broadcast_shapes(m.shape[:-2], n.shape[:-2])
    rows, k, columns = m.shape[-2], m.shape[-1], n.shape[-1]
    if k > 1 and m.strides[-1] != 1:
        m = b.copy(m)
    y = b.new((*outer, rows, columns))
    if y.size and k:
        a, c = m.expand((*outer, rows, k)), n.expand((*outer, k, columns))
        count = len(outer)
        axes = fold_axes(outer, y.strides[:count], a.strides[:count], c.strides[:count])
        b.step(
            "matmul",
            values={"y": y, "a": a, "b": c},
            flops=2.0 * y.size * k,
            loops=[*axes, (1, 0, 0, 0)],
            rows=rows,
            n=columns,
            k=k,
            a_row=a.strides[-2],
            b_row=c.strides[-2],
            b_column=c.strides[-1],
            y_row=columns,
        )
    else:
        b.fill(y, 0.0)
    if right.ndim == 1:
        y = y.index(-1, 0)
    return [y.index(y.ndim - (1 if right.ndim == 1 else 2), 0) if left.ndim == 1 else y]


def fold_axes(shape: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """The axes of nested loops that have more than one index, in order."""
    return [(size, *steps) for size, *steps in zip(shape, *strides) if size > 1]


def _cast(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    to_float = np.dtype(node.attr("dtype")).kind == "f"
    return [x[0]] if to_float and x[0].is_float else by_numpy(b, node, x)


def _flatten(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    return [b.reshape(x[0], operators.flat_shape(x[0].shape, node.attr("axis")))]


LOWERINGS: dict[str, Lowering] = {
    "identity": lambda b, node, layer, x: [x[0]],
    "binary": _binary,
    "cast": _cast,
    "matmul": _matmul,
    "reduce": _reduce,
    "softmax": _softmax,
    "reshape": _reshape,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "transpose": _transpose,
    "concat": _concat,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "pad": _pad,
    "expand": _expand,
    "tile": _tile,
}
