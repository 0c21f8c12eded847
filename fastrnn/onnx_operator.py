"""Operators of ONNX without a kernel here, through the implementations of the onnx package's own reference evaluator.

They are slow, and outside the promise of the same bits.  A node of the kind ``operator`` holds its NodeProto, with
inputs called x0, x1, ... and outputs y0, y1, ...
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .errors import ShapeError, UnsupportedError
from .spec import Node

Array = np.ndarray


def run(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Outputs of the operator; floating-point ones have the precision of the inputs.

    Raises
    ------
    ShapeError
        The implementation cannot run on these inputs.
    UnsupportedError
        It gives something other than arrays; or onnx is not installed.
    """
    evaluator = check(node)
    feeds = {f"x{k}": array for k, array in enumerate(inputs) if array is not None}
    try:
        with np.errstate(all="ignore"):
            results = evaluator.run(None, feeds)
    except Exception as error:  # whatever the implementation meets: it checks little
        raise ShapeError(f"{node.attr('kind')} {node.name!r} cannot run: {str(error).splitlines()[:1]}") from None
    if not all(isinstance(array, (np.ndarray, np.generic)) for array in results):
        raise UnsupportedError(f"{node.attr('kind')} {node.name!r} gives something other than arrays")
    precision = next((a.dtype for a in inputs if a is not None and a.dtype.kind == "f"), np.float32)
    arrays = [np.asarray(array) for array in results]
    return tuple(a.astype(precision, copy=False) if a.dtype.kind == "f" else a for a in arrays)


def check(node: Node) -> Any:
    """What runs the operator; ``UnsupportedError`` where the onnx package that is installed has nothing for it."""
    try:
        return _evaluator(node.attr("proto"), node.attr("version"))
    except UnsupportedError:
        raise
    except Exception as error:
        text = str(error).splitlines()[:1]
        raise UnsupportedError(
            f"{node.attr('kind')} {node.name!r}: the onnx package cannot run it: {text}; update onnx"
        ) from None


@lru_cache(maxsize=1024)
def _evaluator(proto: str, version: int) -> Any:
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError:
        raise UnsupportedError('this needs onnx, which is not installed: pip install "fastrnn[onnx]"') from None
    node = onnx.NodeProto.FromString(base64.b64decode(proto))
    values = [[onnx.ValueInfoProto(name=name) for name in names if name] for names in (node.input, node.output)]
    graph = onnx.GraphProto(name="operator", node=[node], input=values[0], output=values[1])
    opset = onnx.OperatorSetIdProto(domain="", version=version)
    return ReferenceEvaluator(onnx.ModelProto(ir_version=onnx.IR_VERSION, opset_import=[opset], graph=graph))
