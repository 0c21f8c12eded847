"""Constants computed at load: weights that are sliced, joined and transposed become arrays.

What a node would make is bounded before it is made; a model may compute only so much (``limits.MAX_FOLDED``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import reference
from ..errors import FormatError
from ..operator_sizes import SIZES, made
from ..spec import Node
from .limits import MAX_FOLDED, MAX_FOLDING

Array = np.ndarray


_SLOW = (  # operators of ONNX that make at most as many elements as they read, or one row for each axis
    "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Compress", "DepthToSpace", "DequantizeLinear",
    "NonZero", "ReverseSequence", "ScatterElements", "ScatterND", "Shrink", "SpaceToDepth", "TopK",
    "Trilu", "Unique",
)  # fmt: skip
FOLDED = SIZES.keys() - {"conv_transpose", "pool"}  # those too are left to the engine
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
        if node.op not in FOLDED and not slow:
            return None
        if node.op == "activation" and any(a is not None and a.dtype.kind != "f" for a in inputs):
            return None
        try:
            count = sum(a.size for a in inputs if a is not None) * _SLOW_GROWTH if slow else made(node, inputs)
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
