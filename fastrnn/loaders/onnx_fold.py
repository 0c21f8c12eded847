"""Constants computed at load: weights that are sliced, joined and transposed become arrays.

What a node would make is bounded before it is made; a model may compute only so much (``limits.MAX_FOLDED``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from .. import operators, reference
from ..errors import FormatError
from ..spec import Node
from .limits import MAX_FOLDED, MAX_FOLDING

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


def _no_more(node: Node, *arrays: Array | None) -> int:
    return sum(a.size for a in arrays if a is not None)


_SAME = (  # at most as many elements as there are in the inputs
    "activation", "argmax", "cast", "concat", "cumsum", "flatten", "identity", "reduce", "reshape", "slice", "softmax",
    "split", "squeeze", "transpose", "unary", "unsqueeze",
)  # fmt: skip
_SIZES: dict[str, Callable[..., int]] = {
    # Elements that a node makes, or a bound on them; nodes of other kinds are left to the engine
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
}
_SLOW = (  # operators of ONNX that make at most as many elements as they read, or one row for each axis
    "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Compress", "DepthToSpace", "DequantizeLinear",
    "NonZero", "ReverseSequence", "ScatterElements", "ScatterND", "Shrink", "SpaceToDepth", "TopK",
    "Trilu", "Unique",
)  # fmt: skip
_SLOW_GROWTH = 8  # NonZero: an index for each of at most MAX_RANK axes


class Folder:
    """Computes nodes of constants within the limit for a file of ``size`` bytes."""

    def __init__(self, size: int):
        self.limit = self.room = MAX_FOLDED + MAX_FOLDING * size

    def fold(self, node: Node, inputs: Sequence[Array | None]) -> list[Array] | None:
        """The outputs of a node, or None where it is left to run in the model.

        Raises
        ------
        FormatError
            It would take more than a file of this size may ask for.
        ShapeError
            It does not fit its inputs.
        """
        slow = node.op == "operator" and node.attr("kind") in _SLOW
        if node.op not in _SIZES and not slow:
            return None
        if node.op == "activation" and any(a is not None and a.dtype.kind != "f" for a in inputs):
            return None
        try:
            count = _no_more(node, *inputs) * _SLOW_GROWTH if slow else _SIZES[node.op](node, *inputs)
        except (ArithmeticError, ValueError, IndexError, TypeError) as error:
            raise FormatError(f"it does not fit its inputs: {error}") from None
        self.room -= 8 * count + sum(a.nbytes for a in inputs if a is not None)
        if self.room < 0:
            raise FormatError(
                f"computing the constants of the model takes more than {self.limit} bytes; the file is damaged"
            )
        names = dict(zip(node.inputs, inputs))
        with reference.precision(np.float32):
            results = reference.run_node(node, {name: a for name, a in names.items() if a is not None})
        return [results[name] for name in node.outputs]
