"""How each kind of node becomes steps: the table ``LOWERINGS``.

A lowering gets the builder, the node, what was prepared for it at load (a layer with packed weights, or None) and its
inputs, all shapes known, and returns its outputs.  Whatever is not here, or not on floats, runs as its NumPy function
of :mod:`fastrnn.operators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import operators
from ..errors import ShapeError, UnsupportedError
from ..spec import Node
from . import lower_arrays as arrays
from . import lower_layers as layers
from . import lower_windows as windows
from .builder import MAX_AXES, Builder, Lowering, NeedsValue, Values
from .tensors import F32, Value

LOWERINGS: dict[str, Lowering] = {**layers.LOWERINGS, **windows.LOWERINGS, **arrays.LOWERINGS}

OF_ANY_DTYPE = ("embedding", "cast", "identity")

VALUE_INPUTS: dict[str, tuple[int, ...]] = {
    "reshape": (1,),
    "slice": (1, 2, 3, 4),
    "pad": (1, 2, 3),
    "expand": (1,),
    "tile": (1,),
    "fill": (0,),
    "range": (0, 1, 2),
    "if": (0,),
}
"""Inputs whose elements decide the shapes of a node's outputs, or which nodes run."""


def lower(b: Builder, node: Node, layer: Any, x: Values) -> Sequence[Value]:
    """Steps for one node; returns its outputs.

    Raises
    ------
    NeedsValue
        One of ``VALUE_INPUTS`` is not known yet.
    ShapeError
        The shapes of the inputs do not fit the node.
    UnsupportedError
        An input of a layer has too many axes.
    """
    if node.op in ("shape", "size"):
        (array,) = operators.evaluate(node, [np.broadcast_to(np.float32(0), x[0].shape)])
        return [Value(array.shape, array.dtype, array)]
    for k in VALUE_INPUTS.get(node.op, ()):
        if k < len(x) and x[k] is not None and x[k].known is None:
            raise NeedsValue(node.inputs[k])
    present = [value for value in x if value is not None]
    is_layer = node.op in LOWERINGS and node.op not in operators.FUNCTIONS
    if not is_layer and all(value.known is not None for value in present):
        b.budget.spend(arrays.work_of(node, x))
        results = operators.evaluate(node, [None if value is None else value.known for value in x])
        return [Value(a.shape, a.dtype, a) for a in map(_own_dtype, results)]
    if node.op not in LOWERINGS or not (x[0].is_float or node.op in OF_ANY_DTYPE):
        if is_layer and node.op != "activation":
            raise ShapeError(f"{node.op} {node.name!r} takes floats, got {x[0].dtype}")
        return arrays.by_numpy(b, node, x)
    most = max((value.ndim for value in present), default=0)
    if is_layer and most > MAX_AXES:
        raise UnsupportedError(f"{node.op} {node.name!r}: an input has {most} axes, at most {MAX_AXES} are run")
    if is_layer or (most <= MAX_AXES and _all_float(node, x)):
        return LOWERINGS[node.op](b, node, layer, x)
    return arrays.by_numpy(b, node, x)


def _all_float(node: Node, x: Values) -> bool:
    """Whether all inputs that are not indices or bounds are floats."""
    which = VALUE_INPUTS.get(node.op, (1,) if node.op == "gather" else ())
    return node.op in OF_ANY_DTYPE or all(
        value is None or value.is_float for k, value in enumerate(x) if k not in which
    )


def _own_dtype(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != F32 else array
