"""What an operator of the onnx package may cost: its outputs are inferred before it runs, and its loops counted."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from . import run_limits
from .errors import UnsupportedError
from .spec import Node

LOOPS = {"kernel_shape": 1, "max_gram_length": 1, "max_skip_count": 1, "sampling_ratio": 2}
"""Attributes that say how often something is done for each element, and how many axes that has."""

SMALL = 64  # elements of an input whose values may decide the shapes of outputs

Known = tuple[tuple[int, ...], str, bytes]


def check_work(node: Node, inputs: Sequence[np.ndarray | None]) -> None:
    """Refuse to run an operator that would cost more than inputs of these sizes are a reason for.

    Raises
    ------
    UnsupportedError
        It would; the node is named.
    """
    known = tuple(
        None if a is None else (a.shape, a.dtype.str, a.tobytes() if a.size <= SMALL else b"") for a in inputs
    )
    work = _work(node.attr("proto"), node.attr("version"), known)
    limit = run_limits.OPERATOR_WORK + run_limits.OPERATOR_EACH * sum(a.size for a in inputs if a is not None)
    if work > limit:
        raise UnsupportedError(
            f"{node.attr('kind')} {node.name!r}: running it takes {work} elements, at most {limit} for inputs of these"
            " sizes; its attributes are damaged, or it is far too slow for this"
        )


@lru_cache(maxsize=256)
def _work(proto: str, version: int, known: tuple[Known | None, ...]) -> int:
    """Elements that an operator makes, each as often as its attributes say."""
    import onnx

    node = onnx.NodeProto.FromString(base64.b64decode(proto))
    times = 1
    for attribute in node.attribute:
        axes = LOOPS.get(attribute.name, 0)
        numbers = list(attribute.ints) or [attribute.i]
        times *= max(prod(max(abs(n), 1) for n in numbers) ** axes, 1)
    values, constants = [], []
    for k, one in enumerate(known):
        if one is None:
            continue
        shape, dtype, data = one
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        values.append(onnx.helper.make_tensor_value_info(f"x{k}", kind, shape))
        if data or 0 in shape:
            array = np.frombuffer(data, dtype).reshape(shape)
            constants.append(onnx.numpy_helper.from_array(array, f"x{k}"))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "operator", values, outputs, constants)
    opsets = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=onnx.IR_VERSION)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # of the onnx package: a run says what is wrong
        return times
    return times * sum(map(_elements, inferred.graph.output))


def _elements(value: Any) -> int:
    """Of an output; those of an axis that is not inferred depend on the elements, and are bounded by them."""
    return prod(dim.dim_value if dim.HasField("dim_value") else 1 for dim in value.type.tensor_type.shape.dim)
