"""The array operators of :data:`fastrnn.spec.OPS` in NumPy: what each computes, on arrays of any dtype.

The text to read, the oracle of the tests in float64, and what folds constants and runs integers.  Floating-point
arrays keep their precision: float32 in, float32 out.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from . import run_limits
from .errors import FastrnnError, ShapeError, UnsupportedError
from .spec import Graph, Node

Array = np.ndarray
Bodies = Callable[[Graph, Mapping[str, Array]], list[Array]]


def _divide(a: Array, b: Array) -> Array:
    if np.result_type(a, b).kind not in "iu":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    return quotient + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0)))  # toward zero


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "pow": lambda a, b: np.power(a, b).astype(a.dtype, copy=False),
    "min": np.minimum,
    "max": np.maximum,
    "mod": np.mod,
    "fmod": np.fmod,
    "prelu": lambda a, b: np.where(a < 0, a * b, a),
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}

UNARY: dict[str, Callable[[Any], Any]] = {
    "not": np.logical_not,
    "bitwise_not": np.bitwise_not,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "expm1": np.expm1,
    "log1p": np.log1p,
}


def _log_sum_exp(x: Array, axes: Any, keepdims: bool) -> Array:
    top = x.max(axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(np.exp(x - top).sum(axes, keepdims=True)) + top
    return total if keepdims else total.reshape(x.sum(axes).shape)


def _summed(x: Array) -> Any:
    """The dtype of a sum: that of x, where NumPy would widen integers."""
    return x.dtype if x.dtype.kind != "b" else np.int64


def _bounds(x: Array) -> tuple[Any, Any]:
    """The least and the greatest number of a dtype: what the maximum and minimum of nothing are."""
    if x.dtype.kind in "fb":
        return (-np.inf, np.inf) if x.dtype.kind == "f" else (False, True)
    return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max


REDUCTIONS: dict[str, Callable[[Any, Any, bool], Any]] = {
    "sum": lambda x, axes, keep: x.sum(axes, _summed(x), keepdims=keep),
    "mean": lambda x, axes, keep: x.mean(axes, keepdims=keep).astype(x.dtype),
    "max": lambda x, axes, keep: x.max(axes, keepdims=keep, initial=_bounds(x)[0]),
    "min": lambda x, axes, keep: x.min(axes, keepdims=keep, initial=_bounds(x)[1]),
    "prod": lambda x, axes, keep: x.prod(axes, _summed(x), keepdims=keep),
    "l1": lambda x, axes, keep: np.abs(x).sum(axes, _summed(x), keepdims=keep),
    "l2": lambda x, axes, keep: np.sqrt((x * x).sum(axes, _summed(x), keepdims=keep)).astype(x.dtype),
    "sum_square": lambda x, axes, keep: (x * x).sum(axes, _summed(x), keepdims=keep),
    "log_sum": lambda x, axes, keep: np.log(x.sum(axes, _summed(x), keepdims=keep)).astype(x.dtype),
    "log_sum_exp": _log_sum_exp,
    "any": lambda x, axes, keep: x.astype(bool).any(axes, keepdims=keep),
    "all": lambda x, axes, keep: x.astype(bool).all(axes, keepdims=keep),
}


def _reduce(node: Node, x: Array) -> Array:
    axes = node.attr("axes")
    axes = None if axes is None else tuple(axes)
    return np.asarray(REDUCTIONS[node.attr("function")](x, axes, node.attr("keepdims")))


def _argmax(node: Node, x: Array) -> Array:
    axis = node.attr("axis")
    find = np.argmax if node.attr("largest") else np.argmin
    found = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if node.attr("last") else find(x, axis)
    return np.expand_dims(found, axis) if node.attr("keepdims") else np.asarray(found)


def _cumsum(node: Node, x: Array) -> Array:
    axis = node.attr("axis")
    x = np.flip(x, axis) if node.attr("reverse") else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    if node.attr("exclusive"):
        y = y - x
    return np.flip(y, axis) if node.attr("reverse") else y


def _softmax(node: Node, x: Array) -> Array:
    axis = node.attr("axis")
    shifted = x - x.max(axis, keepdims=True, initial=-np.inf)
    total = np.exp(shifted).sum(axis, keepdims=True)
    return shifted - np.log(total) if node.attr("logarithm") else np.exp(shifted) / total


def numbers(array: Array) -> list[int]:
    """Whole numbers of a tensor that holds a shape, axes or the like."""
    return [int(n) for n in np.ravel(array)]


def new_shape(shape: Sequence[int], wanted: Sequence[int], zero_copies: bool) -> tuple[int, ...]:
    """The shape that ``reshape`` gives: at most one -1 is what remains, a 0 copies."""
    result = [shape[k] if n == 0 and zero_copies and k < len(shape) else n for k, n in enumerate(wanted)]
    total = math.prod(shape)
    if -1 in result:
        rest = math.prod(n for n in result if n != -1)
        result[result.index(-1)] = total // rest if rest else 0
    if math.prod(result) != total or min(result, default=0) < 0:
        raise ShapeError(f"{total} elements of shape {tuple(shape)} do not fit the shape {list(wanted)}")
    return tuple(result)


def slices(
    ndim: int, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> tuple[slice, ...]:
    """What to index with for ``slice``; ends beyond an axis mean its end."""
    index = [slice(None)] * ndim
    first = numbers(starts)
    which = range(len(first)) if axes is None else numbers(axes)
    strides = [1] * len(first) if steps is None else numbers(steps)
    for axis, start, end, step in zip(which, first, numbers(ends), strides):
        if not -ndim <= axis < ndim or step == 0:
            raise ShapeError(f"cannot slice axis {axis} of {ndim} axes in steps of {step}")
        # Going down, an end before the first element is "to the first": Python writes None for it.
        index[axis] = slice(start, None if step < 0 and end < -(2**31) + 1 else end, step)
    return tuple(index)


def slice_bounds(part: slice, size: int) -> tuple[int, int, int]:
    """``(start, step, count)`` of a slice of an axis of ``size`` elements."""
    start, stop, step = part.indices(size)
    return start, step, len(range(start, stop, step))


def pad_widths(ndim: int, pads: Array, axes: Array | None) -> list[tuple[int, int]]:
    """What to add before and after each axis."""
    given = numbers(pads)
    which = range(ndim) if axes is None else [axis % ndim for axis in numbers(axes)]
    widths = [(0, 0)] * ndim
    for k, axis in enumerate(which):
        widths[axis] = given[k], given[k + len(given) // 2]
    return widths


def _pad(node: Node, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None) -> Array:
    widths = pad_widths(x.ndim, pads, axes)
    # Negative pads crop.
    x = x[tuple(slice(max(-a, 0), x.shape[k] - max(-b, 0)) for k, (a, b) in enumerate(widths))]
    widths = [(max(a, 0), max(b, 0)) for a, b in widths]
    if node.attr("mode") == "constant":
        return np.pad(x, widths, constant_values=0 if value is None else np.asarray(value).reshape(()))
    return np.pad(x, widths, mode=node.attr("mode"))


def split_sizes(node: Node, size: int) -> list[int]:
    """Sizes of the parts of ``split``."""
    if node.attr("sizes") is not None:
        return list(node.attr("sizes"))
    count = len(node.outputs)
    part = -(-size // count)
    return [max(0, min(part, size - k * part)) for k in range(count)]


def _split(node: Node, x: Array) -> tuple[Array, ...]:
    sizes = split_sizes(node, x.shape[node.attr("axis")])
    if sum(sizes) != x.shape[node.attr("axis")]:
        raise ShapeError(f"{node.name!r} splits into {sizes}, the axis has {x.shape[node.attr('axis')]} elements")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], node.attr("axis")))


def _squeeze(node: Node, x: Array) -> Array:
    axes = node.attr("axes")
    return np.squeeze(x, None if axes is None else tuple(axes))


def _gather(node: Node, x: Array, indices: Array) -> Array:
    return np.take(x, np.asarray(indices), axis=node.attr("axis"))  # negative indices count from the end


def _gather_elements(node: Node, x: Array, indices: Array) -> Array:
    axis = node.attr("axis") % x.ndim
    if x.ndim != indices.ndim or any(m > n for k, (n, m) in enumerate(zip(x.shape, indices.shape)) if k != axis):
        raise ShapeError(f"{node.name!r}: indices of shape {indices.shape} do not fit x of shape {x.shape}")
    part = tuple(slice(None if k == axis else m) for k, m in enumerate(indices.shape))
    return np.take_along_axis(x[part], np.asarray(indices), axis)


def _matmul(node: Node, a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(a, b))


def _cast(node: Node, x: Array) -> Array:
    dtype = np.dtype(node.attr("dtype"))
    if dtype.kind == "f" and x.dtype.kind == "f":
        return x  # one precision throughout, whichever it is
    with np.errstate(invalid="ignore"):
        return x.astype(dtype)


# Windows: convolutions and pools over (batch, channels, *spatial).


def window(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """``(strides, pads at the beginnings, pads at the ends, dilations)``, defaults filled in."""
    n = len(kernel)
    strides = list(node.attr("strides") or [1] * n)
    pads = list(node.attr("pads") or [0] * (2 * n))
    dilations = list(node.attr("dilations") or [1] * n)
    return strides, pads[:n], pads[n:], dilations


def output_sizes(node: Node, spatial: Sequence[int], kernel: Sequence[int], ceil_mode: bool = False) -> list[int]:
    """Windows along each spatial axis."""
    sizes = []
    for n, k, stride, begin, end, dilation in zip(spatial, kernel, *window(node, kernel)):
        room = n + begin + end - dilation * (k - 1) - 1
        count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (count - 1) * stride >= n + begin:
            count -= 1  # a window that begins behind the data is not one
        sizes.append(max(count, 0))
    return sizes


def windows(x: Array, node: Node, kernel: Sequence[int], outside: float, ceil_mode: bool = False) -> Array:
    """All windows of x: (batch, channels, *out, *kernel); ``outside`` stands where a window leaves x."""
    strides, begins, ends, dilations = window(node, kernel)
    out = output_sizes(node, x.shape[2:], kernel, ceil_mode)
    if 0 in out:
        return np.empty((*x.shape[:2], *out, *kernel), x.dtype)
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, strides, kernel, dilations)]
    more = [max(end, r - n - begin) for end, r, n, begin in zip(ends, reach, x.shape[2:], begins)]
    x = np.pad(x, [(0, 0), (0, 0), *zip(begins, more)], constant_values=outside)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    at = tuple(slice(0, (o - 1) * s + 1, s) for o, s in zip(out, strides))
    index = (slice(None), slice(None), *at, *(slice(None, None, d) for d in dilations))
    return view[index]


def conv(node: Node, x: Array) -> Array:
    """Convolution without its activation."""
    weight, bias = node.weights["weight"].astype(x.dtype), node.weights.get("bias")
    kernel, groups = weight.shape[2:], node.attr("groups")
    n = len(kernel)
    if x.ndim != n + 2 or x.shape[1] != weight.shape[1] * groups:
        raise ShapeError(
            f"{node.name!r} takes (batch, {weight.shape[1] * groups}) and {n} more axes, got shape {x.shape}"
        )
    view = windows(x, node, kernel, 0.0)
    parts = []
    for part, w in zip(np.split(view, groups, 1), np.split(weight, groups)):
        parts.append(np.tensordot(part, w, axes=([1, *range(2 + n, 2 + 2 * n)], range(1, 2 + n))))
    y = np.moveaxis(np.concatenate(parts, -1), -1, 1)
    return y if bias is None else y + bias.reshape(-1, *[1] * n).astype(x.dtype)


def transposed_sizes(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Spatial sizes of the output of ``conv_transpose``."""
    more = node.attr("output_padding") or [0] * len(kernel)
    return [
        max((n - 1) * stride - begin - end + dilation * (k - 1) + 1 + extra, 0)
        for n, k, extra, stride, begin, end, dilation in zip(spatial, kernel, more, *window(node, kernel))
    ]


def _conv_transpose(node: Node, x: Array) -> Array:
    weight, bias = node.weights["weight"].astype(x.dtype), node.weights.get("bias")
    kernel, groups = weight.shape[2:], node.attr("groups")
    strides, begins, ends, dilations = window(node, kernel)
    out = transposed_sizes(node, x.shape[2:], kernel)
    whole = [o + b + max(e, 0) for o, b, e in zip(out, begins, ends)]
    y = np.zeros((x.shape[0], weight.shape[1] * groups, *whole), x.dtype)
    per_group = y.reshape(x.shape[0], groups, weight.shape[1], *whole)
    for g, (part, w) in enumerate(zip(np.split(x, groups, 1), np.split(weight, groups))):
        for tap in product(*map(range, kernel)):
            at = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, x.shape[2:], strides)
            )
            term = np.tensordot(part, np.moveaxis(w, (0, 1), (-2, -1))[tap], axes=(1, 0))
            target: Any = (slice(None), g, slice(None), *at)
            per_group[target] += np.moveaxis(term, -1, 1)
    inner = (slice(None), slice(None), *(slice(b, b + o) for b, o in zip(begins, out)))
    y = y[inner]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(kernel)).astype(x.dtype)


def _pool(node: Node, x: Array) -> Array:
    kernel = tuple(node.attr("kernel"))
    axes = tuple(range(-len(kernel), 0))
    ceil_mode = node.attr("ceil_mode")
    if node.attr("function") == "max":
        return windows(x, node, kernel, -np.inf, ceil_mode).max(axes)
    total = windows(x, node, kernel, 0.0, ceil_mode).sum(axes, x.dtype)
    return total / pool_counts(node, x.shape, ceil_mode).astype(x.dtype)


def pool_counts(node: Node, shape: Sequence[int], ceil_mode: bool) -> Array:
    """What each window of a mean is divided by, (1, 1, *out): its elements that are inside x.

    With ``count_include_pad`` those in the padding count too, but not what only ``ceil_mode`` adds.
    """
    kernel, inclusive = tuple(node.attr("kernel")), node.attr("count_include_pad")
    counts = np.ones(())
    sizes = output_sizes(node, shape[2:], kernel, ceil_mode)
    for n, k, out, stride, begin, end, dilation in zip(shape[2:], kernel, sizes, *window(node, kernel)):
        at = np.arange(out)[:, None] * stride - begin + np.arange(k) * dilation
        low, high = (-begin, n + end) if inclusive else (0, n)
        counts = np.multiply.outer(counts, ((at >= low) & (at < high)).sum(1))
    return counts[None, None]


# Control flow.  ``bodies`` runs a graph on named tensors and returns its outputs.


def _if(node: Node, bodies: Bodies, condition: Array) -> list[Array]:
    return bodies(node.graphs["then" if np.all(condition) else "else"], {})


class _Turns(threading.local):
    """Turns of the loops of a thread that run now, counted from the outermost on."""

    depth, made = 0, 0

    def __enter__(self) -> None:
        if self.depth == 0:
            self.made = 0
        self.depth += 1

    def __exit__(self, *error: object) -> None:
        self.depth -= 1

    def count(self, node: Node) -> None:
        self.made += 1
        if self.made > run_limits.MAX_TURNS:
            raise UnsupportedError(
                f"{node.op} {node.name!r} goes on after {run_limits.MAX_TURNS} turns, those of the loops around and"
                " inside it included; if that is no mistake of the model, set fastrnn.run_limits.MAX_TURNS"
            )


_turns = _Turns()


class _Stacks:
    """What the turns of a loop give to be stacked, within a bound that grows with what the loop reads."""

    def __init__(self, node: Node, count: int, inputs: Sequence[Array | None]) -> None:
        self.node = node
        self.kept: list[list[Array]] = [[] for _ in range(count)]
        self.room = run_limits.STACKED + run_limits.WORK_EACH * sum(a.size for a in inputs if a is not None)

    def add(self, values: Sequence[Array]) -> None:
        """The results of one turn."""
        self.room -= sum(value.size for value in values)
        if self.room < 0:
            raise UnsupportedError(
                f"{self.node.op} {self.node.name!r} stacks more elements than inputs of its size are a reason for"
                " (fastrnn.run_limits.STACKED); run it on less at a time"
            )
        for kept, value in zip(self.kept, values):
            kept.append(value)


def _loop(node: Node, bodies: Bodies, *inputs: Array | None) -> list[Array]:
    trip_count, condition, *carried = (*inputs, None, None)[: max(len(inputs), 2)]
    body = node.graphs["body"]
    limit = math.inf if trip_count is None else int(np.reshape(trip_count, ()))
    going = condition is None or bool(np.all(condition))
    scanned = _Stacks(node, len(body.outputs) - 1 - len(carried), inputs)
    done = 0
    names = [t.name for t in body.inputs]
    with _turns:
        while going and done < limit:
            _turns.count(node)
            values = (np.asarray(done, np.int64), np.asarray(going), *carried)
            again, *results = bodies(body, {n: v for n, v in zip(names, values) if v is not None})
            carried = list(results[: len(carried)])
            scanned.add(results[len(carried) :])
            going = bool(np.all(again))
            done += 1
    return [*carried, *(np.stack(kept) if kept else np.zeros(0, np.float32) for kept in scanned.kept)]  # type: ignore[list-item]


def _scan(node: Node, bodies: Bodies, *inputs: Array) -> list[Array]:
    body, count = node.graphs["body"], node.attr("num_scanned")
    carried, scanned = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = node.attr("axes") or [0] * count
    backwards = node.attr("directions") or [0] * count
    moved = [np.moveaxis(x, axis, 0)[:: -1 if back else 1] for x, axis, back in zip(scanned, axes, backwards)]
    names = [t.name for t in body.inputs]
    results = _Stacks(node, len(body.outputs) - len(carried), inputs)
    with _turns:
        for parts in zip(*moved):
            if _turns.depth > 1:
                _turns.count(node)
            new = bodies(body, dict(zip(names, (*carried, *parts))))
            carried = new[: len(carried)]
            results.add(new[len(carried) :])
    out_axes = node.attr("output_axes") or [0] * len(results.kept)
    out_backwards = node.attr("output_directions") or [0] * len(results.kept)
    stacked = [
        np.moveaxis(np.stack(kept[:: -1 if back else 1]), 0, axis) if kept else np.zeros(0, np.float32)
        for kept, axis, back in zip(results.kept, out_axes, out_backwards)
    ]
    return [*carried, *stacked]


def _range(node: Node, *bounds: Array) -> Array:
    start, limit, delta = (np.reshape(bound, ())[()] for bound in bounds)
    return np.arange(start, limit, delta, np.asarray(start).dtype)  # type: ignore[call-overload]


def _operator(node: Node, *inputs: Array | None) -> tuple[Array, ...]:
    from .onnx_operator import run

    return run(node, inputs)


WHOLE_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: x,
    "abs": np.abs,
    "neg": np.negative,
    "sign": np.sign,
    "square": np.square,
    "relu": lambda x: np.maximum(x, 0),
    "floor": lambda x: x,
    "ceil": lambda x: x,
    "round": lambda x: x,
}
"""Activations of integers; those of floats are in :data:`fastrnn.reference.ACTIVATIONS` and in the kernels."""


def _activation(node: Node, x: Any) -> Array:
    name = node.attr("activation")
    if x.dtype.kind == "f" or name not in WHOLE_NUMBERS:
        raise UnsupportedError(f"activation {node.name!r}: {name} of {x.dtype}; cast it to float before")
    return np.asarray(WHOLE_NUMBERS[name](x))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv_transpose": _conv_transpose,
    "pool": _pool,
    "identity": lambda node, x: x,
    "unary": lambda node, x: UNARY[node.attr("function")](x),
    "binary": lambda node, a, b: np.asarray(BINARY[node.attr("function")](a, b)),
    "where": lambda node, condition, a, b: np.where(condition, a, b),
    "cast": _cast,
    "matmul": _matmul,
    "reduce": _reduce,
    "argmax": _argmax,
    "cumsum": _cumsum,
    "softmax": _softmax,
    "shape": lambda node, x: np.array(x.shape[node.attr("start") : node.attr("end")], np.int64),
    "size": lambda node, x: np.array(x.size, np.int64),
    "reshape": lambda node, x, shape: x.reshape(new_shape(x.shape, numbers(shape), node.attr("zero_copies"))),
    "flatten": lambda node, x: x.reshape(flat_shape(x.shape, node.attr("axis"))),
    "squeeze": _squeeze,
    "unsqueeze": lambda node, x: np.expand_dims(x, tuple(node.attr("axes"))),
    "transpose": lambda node, x: np.transpose(x, node.attr("perm")),
    "concat": lambda node, *x: np.concatenate(x, node.attr("axis")),
    "split": _split,
    "slice": lambda node, x, *bounds: x[slices(x.ndim, *bounds)],
    "gather": _gather,
    "gather_elements": _gather_elements,
    "pad": _pad,
    "expand": lambda node, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(numbers(shape)))),
    "tile": lambda node, x, repeats: np.tile(x, numbers(repeats)),
    "fill": lambda node, shape: np.full(numbers(shape), node.attr("value"), node.attr("dtype")),
    "range": _range,
    "operator": _operator,
}
"""``function(node, *inputs)`` of each operator without a body; several outputs are a tuple."""

CONTROL_FLOW: dict[str, Callable[..., list[Array]]] = {"if": _if, "loop": _loop, "scan": _scan}
"""``function(node, bodies, *inputs)``."""


def flat_shape(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """The shape that ``flatten`` gives: the axes before ``axis`` as one, the others as one."""
    axis = axis + len(shape) if axis < 0 else axis
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def evaluate(node: Node, inputs: Sequence[Array | None], bodies: Bodies | None = None) -> tuple[Array, ...]:
    """Outputs of one operator; optional inputs that are absent are None.

    Raises
    ------
    ShapeError
        The inputs do not fit the operator; the node is named.
    """
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    try:
        with np.errstate(all="ignore"):
            if node.op == "activation":
                result: Any = _activation(node, *given)
            elif node.op in CONTROL_FLOW:
                if bodies is None:
                    raise UnsupportedError(f"{node.op} {node.name!r}: its bodies cannot be run here")
                result = CONTROL_FLOW[node.op](node, bodies, *given)
            elif node.op in FUNCTIONS:
                result = FUNCTIONS[node.op](node, *given)
            else:
                raise TypeError("it takes floating-point numbers")
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        if isinstance(error, FastrnnError):
            raise
        shapes = ", ".join("-" if a is None else f"{a.dtype} {a.shape}" for a in given)
        raise ShapeError(f"{node.op} {node.name!r} cannot run on {shapes}: {error}") from None
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
