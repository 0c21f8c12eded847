"""What runs each node of a model: kernels, views, NumPy, or something slow, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .arrays import F32
from .engine.executable import Executable
from .errors import FastrnnError
from .inspect import check_size, input_sizes
from .layers import Layer
from .spec import GATES, ModelSpec, Node, Tensor

SLOW = {
    "operator": "runs in the reference evaluator of the onnx package; its bits may depend on the machine",
    "loop": "its body starts anew for each turn",
    "scan": "its body starts anew for each step",
    "numpy": "runs in NumPy; the bits of functions and sums may depend on the machine",
}
"""Reasons for which a node is slow."""
_QUICK = ("embedding", "masking", "cast", "shape", "size", "where", "gather")  # in NumPy, which only copies there


def explain(
    spec: ModelSpec, executable: Executable, packed: Mapping[str, Any], batch: int, seq_len: int
) -> list[dict[str, Any]]:
    """A row for each node in the order of running, for inputs of this batch and length.

    ``kernel`` names what computes: C kernels, "view" (nothing is done), "numpy" or "onnx"; "?" where it depends on
    the elements of a tensor.  ``slow`` is a reason, or empty.
    """
    rows = []
    for node, kernel in _kernels(spec, executable, batch, seq_len):
        layer = packed.get(node.name)
        if isinstance(layer, Layer):
            row = layer.explain(batch, seq_len)
        else:
            nbytes = 0 if layer is None else layer.nbytes
            row = {"layer": node.name, "op": node.op, "kernel": kernel, "backend": _backend(kernel), "nbytes": nbytes}
        rows.append(row | {"slow": _reason(node, kernel)})
    return rows


def _kernels(spec: ModelSpec, executable: Executable, batch: int, seq_len: int) -> Iterator[tuple[Node, str]]:
    sizes = input_sizes(spec, batch, seq_len)
    try:
        arrays = [_zeros(tensor, sizes[tensor.name] or ()) for tensor in spec.inputs]
        known, stop = executable.describe(arrays)
    except FastrnnError:  # no inputs of these sizes
        known, rest = [], executable.nodes
    else:
        rest = [] if stop is None else [*([stop.node] if stop.node is not None else []), *stop.rest.nodes]
    yield from known
    yield from _unknown(rest)


def _unknown(nodes: list[Node]) -> Iterator[tuple[Node, str]]:
    """Nodes whose shapes are known only at run time, and those of the bodies in them."""
    for node in nodes:
        yield node, {"operator": "onnx", "loop": "python", "scan": "python"}.get(node.op, "?")
        for body in node.graphs.values():
            yield from _unknown(body.nodes)


def _zeros(tensor: Tensor, sizes: tuple[int, ...]) -> np.ndarray:
    """An input of this size that takes no memory."""
    check_size(tensor, sizes)
    return np.broadcast_to(np.zeros((), F32 if tensor.dtype.startswith("float") else tensor.dtype), sizes)


def _backend(kernel: str) -> str:
    return kernel if kernel in ("numpy", "onnx", "python", "?") else "packed"


def _reason(node: Node, kernel: str) -> str:
    if node.op in SLOW:
        return SLOW[node.op]
    in_python = "numpy" in kernel and node.op not in (*_QUICK, *GATES)  # lengths and masks come by way of NumPy
    return SLOW["numpy"] if in_python else ""
