"""How much the operators of :mod:`fastrnn.operators` make of what they read, without running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from . import operators
from .spec import Node

Array = np.ndarray


def _broadcast(node: Node, *arrays: Array) -> int:
    return prod(np.broadcast_shapes(*(a.shape for a in arrays)))


def _matmul(node: Node, a: Array, b: Array) -> int:
    return a.size // max(1, *a.shape[-1:]) * (b.size // max(1, *b.shape[-2:-1]))


def _range(node: Node, start: Array, limit: Array, delta: Array) -> int:
    first, last, step = (float(np.reshape(a, ())) for a in (start, limit, delta))
    return int(max((last - first) / step, 0)) + 1 if step else 0


def _pad(node: Node, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None) -> int:
    return prod(max(n + a + b, 0) for n, (a, b) in zip(x.shape, operators.pad_widths(x.ndim, pads, axes)))


def _gather(node: Node, x: Array, indices: Array) -> int:
    return x.size // max(x.shape[node.attr("axis")], 1) * indices.size


def _conv_transpose(node: Node, x: Array) -> int:
    weight = node.weights["weight"]
    out = prod(operators.transposed_sizes(node, x.shape[2:], weight.shape[2:]))
    return x.shape[0] * (weight.shape[1] * node.attr("groups") * out + prod(x.shape[2:]) * weight.size)


def _pool(node: Node, x: Array) -> int:
    kernel = tuple(node.attr("kernel"))
    return prod(x.shape[:2]) * prod(operators.output_sizes(node, x.shape[2:], kernel, True)) * prod(kernel)


def _no_more(node: Node, *arrays: Array | None) -> int:
    return sum(a.size for a in arrays if a is not None)


_SAME = (  # at most as many elements as there are in the inputs
    "activation", "argmax", "cast", "concat", "cumsum", "flatten", "identity", "reduce", "reshape", "slice", "softmax",
    "split", "squeeze", "transpose", "unary", "unsqueeze",
)  # fmt: skip
SIZES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(_SAME, _no_more),
    "shape": lambda node, x: x.ndim,
    "size": lambda node, x: 1,
    "binary": _broadcast,
    "where": _broadcast,
    "matmul": _matmul,
    "gather": _gather,
    "gather_elements": lambda node, x, indices: indices.size,
    "pad": _pad,
    "expand": lambda node, x, shape: prod(np.broadcast_shapes(x.shape, tuple(operators.numbers(shape)))),
    "tile": lambda node, x, repeats: x.size * prod(operators.numbers(repeats)),
    "fill": lambda node, shape: prod(operators.numbers(shape)),
    "range": _range,
    "conv_transpose": _conv_transpose,
    "pool": _pool,
}
"""``function(node, *inputs)``: elements that an operator makes, or a bound on them."""


def made(node: Node, inputs: Sequence[Array | None]) -> int:
    """Elements that an operator makes of its inputs at most; optional ones that are absent are None."""
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    return SIZES[node.op](node, *given)


def work(node: Node, inputs: Sequence[Array | None]) -> int:
    """Elements that its NumPy function goes through at most: of a product, all that are multiplied."""
    count = made(node, inputs)
    first = inputs[0] if inputs else None
    if node.op == "matmul" and first is not None:
        count *= max(1, *first.shape[-1:])
    return count
