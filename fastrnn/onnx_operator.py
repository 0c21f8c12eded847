"""Operators of ONNX without a kernel here, through the implementations of the onnx package's own reference evaluator.

They are slow, and outside the promise of the same bits.  A node of the kind ``operator`` holds its NodeProto, with
inputs called x0, x1, ... and outputs y0, y1, ...
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import run_limits
from .errors import ShapeError, UnsupportedError
from .onnx_operator_work import check_work
from .spec import Node

Array = np.ndarray


def run(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Outputs of the operator; floating-point ones have the precision of the inputs.

    Raises
    ------
    ShapeError
        The implementation cannot run on these inputs.
    UnsupportedError
        It would cost far more than its inputs are large, or gives something other than arrays; or onnx is not
        installed.
    """
    evaluator = check(node)
    check_work(node, inputs)
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
        return _evaluators.get(node.attr("proto"), node.attr("version"))
    except UnsupportedError:
        raise
    except Exception as error:
        text = str(error).splitlines()[:1]
        raise UnsupportedError(
            f"{node.attr('kind')} {node.name!r}: the onnx package cannot run it: {text}; update onnx"
        ) from None


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


class _Evaluators:
    """Evaluators that are ready, those used last, of at most ``MAX_OPERATOR_BYTES``."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Any] = {}

    def get(self, proto: str, version: int) -> Any:
        """The evaluator of an operator, made where it is not there."""
        key = proto, version
        found = self._kept.pop(key, None)
        made = _evaluator(proto, version) if found is None else found
        self._kept[key] = made  # a dict keeps the order in which keys came: this is the last one now
        if found is None:
            self._make_room()
        return made

    def _make_room(self) -> None:
        kept = list(self._kept)
        sizes = [len(proto) + (16 << 10) for proto, _ in kept]  # an evaluator of a small operator takes about 16 KiB
        held = sum(sizes)
        for key, size in zip(kept[:-1], sizes):
            if held <= run_limits.MAX_OPERATOR_BYTES:
                break
            held -= size
            self._kept.pop(key, None)


_evaluators = _Evaluators()
