"""Scans over a cell become layers."""

from __future__ import annotations

from typing import Any

from ..spec import GATES, Graph, Node
from .affine import NoMatch
from .cell_parts import carried, matches, same_as
from .dataflow import Flow


def recognize_layer(flow: Flow, node: Node) -> None:
    """A scan whose body is one cell is a layer."""
    matches(_layer, flow, node, node.graphs["body"])


def _layer(flow: Flow, scan: Node, body: Graph) -> None:
    cell, states = _only_cell(body), carried(flow, body)
    scanned = [same_as(flow, t.name) for t in body.outputs[len(states) :]]
    if scan.attr("num_scanned") != 1 or flow.facts.rank(scan.inputs[-1]) != 3:
        raise NoMatch
    if cell.inputs[0] != body.inputs[-1].name or set(scanned) - {cell.outputs[0]}:
        raise NoMatch
    if states != dict(zip(cell.inputs[1:], (cell.outputs[0], *cell.outputs[2:]))):
        raise NoMatch
    attrs = {key: value for key, value in cell.attrs.items() if key != "unbatched"} | _in_time(scan, len(scanned))
    initial = {name: flow.fresh(f"{scan.name}_{name}") for name in states}
    final = {name: flow.fresh(f"{scan.name}_{name}") for name in states}
    y = flow.fresh(f"{scan.name}_y")
    inputs = (scan.inputs[-1], *(initial[name] for name in cell.inputs[1:]))
    outputs = (y, *(final[name] for name in cell.inputs[1:]))
    nodes: list[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]]] = [
        *(("unsqueeze", (a,), (b,), {"axes": [0]}) for a, b in zip(scan.inputs, initial.values())),
        (cell.op, inputs, outputs, attrs),
        *(("squeeze", (a,), (b,), {"axes": [0]}) for a, b in zip(final.values(), scan.outputs) if b),
        *(("identity", (y,), (name,), {}) for name in scan.outputs[len(states) :] if name),
    ]
    flow.remove(scan)
    for op, inputs, outputs, options in nodes:
        new = Node(op, flow.fresh(f"{scan.name}_{op}"), inputs, outputs, options)
        new.weights = cell.weights if op == cell.op else {}
        flow.insert(new, scan)


def _in_time(scan: Node, count: int) -> dict[str, Any]:
    """The attributes of a layer that goes through time as a scan of ``count`` outputs does."""
    axes = {axis % 3 for axis in (*(scan.attr("axes") or [0]), *(scan.attr("output_axes") or [0] * count))}
    backwards, written = (scan.attr("directions") or [0])[0], set(scan.attr("output_directions") or [0])
    if axes not in ({0}, {1}) or len(written) > 1 or (not backwards and written == {1}):
        raise NoMatch
    attrs: dict[str, Any] = {"batch_first": axes == {1}}
    return attrs | ({"direction": "reverse", "reverse_output": written == {0}} if backwards else {})


def _only_cell(body: Graph) -> Node:
    nodes = [node for node in body.nodes if node.op != "identity"]
    if len(nodes) != 1 or nodes[0].op not in GATES or not nodes[0].attr("unbatched"):
        raise NoMatch
    return nodes[0]
