"""What the matches of all cells share: their inputs, states and weights, what has to hold, and the new node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..spec import Graph, Node, activation
from .affine import Affine, NoMatch, Reader
from .dataflow import Flow

SHAPE_OPS = ("identity", "unsqueeze", "squeeze", "reshape", "transpose", "gather", "slice", "split", "concat", "stack")


def matches(match: Callable[..., None], *args: Any) -> bool:
    """Whether a match succeeds; it rewrites when it does."""
    try:
        match(*args)
    except NoMatch:
        return False
    return True


def is_complement(flow: Flow, name: str, gate: str) -> bool:
    """Whether a tensor is 1 - gate."""
    node = flow.writer(name, "binary")
    if node is None or node.attr("function") != "sub" or node.inputs[1] != gate:
        return False
    one = flow.constant(node.inputs[0])
    return one is not None and one.size == 1 and one.ndim <= 2 and bool(one.reshape(()) == 1)


def diagonal(reader: Reader, gate: Affine, cell: str) -> np.ndarray | None:
    """The vector with which a gate looks at the cell."""
    if not gate.plain:
        return None
    if len(gate.plain) > 1:
        raise NoMatch
    node = reader.take(gate.plain[0], "binary", "mul")
    names = [name for name in node.inputs if name != cell]
    if len(names) != 1:
        raise NoMatch
    return reader.vector(names[0], gate.units).astype(np.float64)


def inputs_of(reader: Reader, gates: Sequence[Affine], cell: str, state: str = "") -> tuple[list[str], str]:
    """The inputs of a cell and its state h: given, or that of the right size that is most like one."""
    names = list(dict.fromkeys(name for gate in gates for name in gate.weights))
    if not state:
        fitting = [name for name in names if reader.units(name) == gates[0].units]
        if not fitting:
            raise NoMatch
        states, root = carried(reader.flow, reader.home), root_of(reader.flow, cell)
        state = max(fitting, key=lambda name: (name in states, root_of(reader.flow, name) == root, names.index(name)))
    x = [name for name in names if name != state]
    if not x or state not in names:
        raise NoMatch
    return x, state


def root_of(flow: Flow, name: str) -> str:
    """The tensor that a state is a part of."""
    while (node := flow.writer(name)) is not None and node.op in SHAPE_OPS:
        name = node.inputs[0]
    return name


def check_cell(reader: Reader, h: str, c: str, tensors: Sequence[str], gates: Sequence[Affine], *ends: Node) -> None:
    """All gates have the same units, all tensors certainly the same rows, and nothing is read from outside."""
    units = gates[0].units
    rows = {reader.rows(name) for name in tensors}
    if any(gate.units != units for gate in gates) or len(rows) != 1:
        raise NoMatch
    if reader.units(h) != units or reader.units(c) != units or not reader.is_closed(*ends):
        raise NoMatch


def weights_of(gates: Sequence[Affine], x: Sequence[str], h: str) -> dict[str, np.ndarray]:
    """Weights of a recurrent node of these gates; the inputs x are concatenated."""
    dtype = np.result_type(*(w for gate in gates for w in gate.weights.values()))
    sizes = {name: w.shape[1] for gate in gates for name, w in gate.weights.items()}

    def block(gate: Affine, name: str) -> np.ndarray:
        return gate.weights.get(name, np.zeros((gate.units, sizes[name]), dtype))

    weights = {
        "weight_ih_l0": np.concatenate([np.concatenate([block(gate, name) for name in x], 1) for gate in gates]),
        "weight_hh_l0": np.concatenate([block(gate, h) for gate in gates]),
    }
    if any(gate.bias is not None for gate in gates):
        rows = [np.zeros(gate.units) if gate.bias is None else gate.bias for gate in gates]
        weights["bias_ih_l0"] = np.concatenate(rows)
    return {key: array.astype(dtype) for key, array in weights.items()}


def options(**activations: Any) -> dict[str, Any]:
    """Attributes of activations, a name where it says all."""
    full = {key: activation(value) for key, value in activations.items()}
    return {key: value[0] if activation(value[0]) == value else list(value) for key, value in full.items()}


def become_cell(
    flow: Flow,
    node: Node,
    op: str,
    x: Sequence[str],
    states: tuple[str, ...],
    outputs: tuple[str, ...],
    attrs: dict[str, Any],
    weights: dict[str, np.ndarray],
) -> None:
    source = x[0]
    if len(x) > 1:
        source = flow.fresh(f"{node.name}_x")
        flow.insert(Node("concat", flow.fresh(f"{node.name}_concat"), tuple(x), (source,), {"axis": -1}), node)
    attrs = {**attrs, "unbatched": True}
    flow.change(node, op=op, inputs=(source, *states), outputs=outputs, attrs=attrs, weights=weights)


def carried(flow: Flow, graph: Graph) -> dict[str, str]:
    """What the body of a loop takes from the step before, and what it gives to the next for it."""
    node = flow.owner(graph)
    if node is None or node.op == "if":
        return {}
    skip, count = (2, len(node.inputs) - 2) if node.op == "loop" else (0, len(node.inputs) - node.attr("num_scanned"))
    outputs = graph.outputs[1:] if node.op == "loop" else graph.outputs
    return {t.name: same_as(flow, new.name) for t, new in zip(graph.inputs[skip : skip + count], outputs)}


def same_as(flow: Flow, name: str) -> str:
    """The tensor that an identity stands for."""
    while (node := flow.writer(name, "identity")) is not None:
        name = node.inputs[0]
    return name


def reaches_output(flow: Flow, name: str) -> bool:
    """Whether a tensor is an output, laid out in another way perhaps."""
    waiting, met = [name], set()
    while waiting:
        name = waiting.pop()
        if name in flow.wanted:
            return True
        met.add(name)
        for node in flow.readers(name):
            if node.op in SHAPE_OPS:
                waiting += [out for out in node.outputs if out not in met]
    return False
