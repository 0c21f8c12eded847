"""The end of a conversion: a ModelSpec of what the outputs need, or one error for all problems in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import FormatError, UnsupportedError
from ..spec import Graph, ModelSpec, Node, Tensor
from .files import name_list, short
from .onnx_build import PROBLEM, Builder
from .onnx_schema import declared, is_untaken

_MOST = 30  # problems that an error tells


def whole_model(builder: Builder) -> ModelSpec:
    """What the outputs of the builder need, and all inputs where these are those of the model."""
    graph = builder.file.model.graph
    nodes = list(builder.top.nodes)
    results = []
    for name in builder.outputs:
        value = builder.output(builder.top, name)
        if value.array is not None:
            builder.constants[name] = value.array
        elif value.name != name:
            nodes.append(Node("identity", builder.node_name("Identity"), (value.name,), (name,)))
        shape, _ = builder.top.declared.get(name, (None, ""))
        results.append(Tensor(name, shape, value.dtype))
    needed = _prune(nodes, [t.name for t in results])
    _raise_problems(nodes)
    given = {t.name for t in graph.initializer}
    inputs = [
        Tensor(t.name, *declared(t))
        for t in graph.input
        if t.name not in given and (t.name in needed or (builder.is_whole and not is_untaken(t)))
    ]
    constants = {name: array for name, array in builder.constants.items() if name in needed}
    return ModelSpec(nodes, inputs, results, constants)


def single_layer(builder: Builder, name: str) -> ModelSpec:
    """The node of a name alone, wherever it stands."""
    nodes = {node.name: node for node in Graph(builder.top.nodes, [], []).all_nodes()}
    if name not in nodes or not (nodes[name].weights or nodes[name].op == PROBLEM):
        known = name_list(node.name for node in nodes.values() if node.weights)
        raise FormatError(f"no node called {short(name)} with weights in the model; such nodes: {known or 'none'}")
    _raise_problems([nodes[name]])
    return ModelSpec([nodes[name]], [], [])


def _prune(nodes: list[Node], outputs: Iterable[str]) -> set[str]:
    """Drop the nodes that nothing needs, in place; returns the tensors that are needed."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            continue
        kept.append(node)
        needed.update(t for t in node.inputs if t)
        for graph in node.graphs.values():
            needed |= _prune(graph.nodes, [t.name for t in graph.outputs])
    nodes[:] = kept[::-1]
    return needed


def _raise_problems(nodes: Sequence[Node]) -> None:
    """One error for all placeholders that are left."""
    found = [node for node in Graph(list(nodes), [], []).all_nodes() if node.op == PROBLEM]
    if not found:
        return
    texts = [f"{node.attrs['kind']} {short(node.name)}: {node.attrs[PROBLEM]}" for node in found[:_MOST]]
    texts += [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    kind = FormatError if any(node.attrs["damaged"] for node in found) else UnsupportedError
    raise kind(f"{len(found)} problem(s) in the model:\n  " + "\n  ".join(texts))
