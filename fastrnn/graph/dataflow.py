"""A spec while it is rewritten: who writes and who reads each tensor, what is known of it, and safe edits.

Rules match small patterns with the vocabulary of ``Flow`` (the writer of a tensor, its only reader, a constant) and
rewrite with its edits, which keep all of that true.  The spec in a ``Flow`` has each name of a tensor once in all its
graphs (``copied`` sees to that), so a name means the same in every body.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..spec import Graph, ModelSpec, Node, Tensor
from .facts import Facts
from .shape_rules import Sizes


def copied(spec: ModelSpec) -> ModelSpec:
    """A copy that shares arrays; tensors of bodies get new names where a name stands for several tensors."""
    used: set[str] = set()
    graph = _copied(spec, {}, used)
    return ModelSpec(graph.nodes, graph.inputs, graph.outputs, graph.constants, spec.nested_state, spec.source)


def _copied(graph: Graph, around: Mapping[str, str], used: set[str]) -> Graph:
    names = ChainMap[str, str]({}, around)  # type: ignore[arg-type]  # only the first one is written
    for name in defined(graph):
        names[name] = fresh(name, used)
        used.add(names[name])

    def tensors(given: list[Tensor]) -> list[Tensor]:
        return [Tensor(names.get(t.name, t.name), t.shape, t.dtype) for t in given]

    def renamed(given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(name, name) for name in given)

    nodes = [
        Node(node.op, node.name, renamed(node.inputs), renamed(node.outputs), dict(node.attrs), dict(node.weights))
        for node in graph.nodes
    ]
    for new, node in zip(nodes, graph.nodes):
        new.graphs = {key: _copied(body, names, used) for key, body in node.graphs.items()}
    constants = {names[name]: array for name, array in graph.constants.items()}
    return Graph(nodes, tensors(graph.inputs), tensors(graph.outputs), constants)


def defined(graph: Graph) -> Iterator[str]:
    """The tensors that a graph itself brings: inputs, constants, and what its nodes write."""
    yield from (t.name for t in graph.inputs)
    yield from graph.constants
    for node in graph.nodes:
        yield from (name for name in node.outputs if name)


def fresh(name: str, used: set[str]) -> str:
    """The name, or one like it that is not in use."""
    wanted, k = name, 2
    while name in used:
        name, k = f"{wanted}__{k}", k + 1
    return name


class Flow:
    """The nodes of a spec by what they write and read; edits keep it true until ``finish``.

    ``wanted`` are tensors that must be there in the end: outputs of all graphs, and those to keep.
    """

    def __init__(self, spec: ModelSpec, keep: Iterable[str] = (), shapes: Mapping[str, Sizes] | None = None) -> None:
        self.spec = spec
        self.facts = Facts()
        self.facts.enter(spec)
        self.facts.shapes |= shapes or {}
        self.constants: dict[str, np.ndarray] = {}
        self.wanted = set(keep)
        self.changed = False
        self._writers: dict[str, Node] = {}
        self._readers: dict[str, dict[str, Node]] = {}
        self._homes: dict[str, Graph] = {}
        self._owners: dict[int, Node] = {}
        self._before: dict[str, list[Node]] = {}
        self._gone: set[str] = set()
        self._register(spec)
        self._names = {name for graph in self._graphs(spec) for name in defined(graph)} | self._homes.keys()

    def _register(self, graph: Graph) -> None:
        self.constants |= graph.constants
        self.wanted |= {t.name for t in graph.outputs}
        for node in graph.nodes:
            self._homes[node.name] = graph
            self._attach(node)
            for body in node.graphs.values():
                self._owners[id(body)] = node
                self._register(body)

    def _graphs(self, graph: Graph) -> Iterator[Graph]:
        yield graph
        for node in graph.nodes:
            for body in node.graphs.values():
                yield from self._graphs(body)

    def _attach(self, node: Node) -> None:
        for name in node.inputs:
            self._readers.setdefault(name, {})[node.name] = node
        for name in node.outputs:
            self._writers[name] = node

    def _detach(self, node: Node) -> None:
        for name in node.inputs:
            self._readers[name].pop(node.name, None)
        for name in node.outputs:
            if self._writers.get(name) is node:
                del self._writers[name]
        self.changed = True

    # What there is.

    def writer(self, name: str, op: str = "") -> Node | None:
        """The node that writes a tensor; with ``op``, only if it is of that kind."""
        node = self._writers.get(name) if name else None
        return node if node is not None and op in ("", node.op) else None

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a tensor, those in bodies too."""
        return list(self._readers.get(name, {}).values())

    def inner(self, name: str, reader: Node, op: str = "") -> Node | None:
        """The writer of a tensor that nothing but ``reader`` needs, of the same graph: the two may become one."""
        node = self.writer(name, op)
        if node is None or name in self.wanted or self.home(node) is not self.home(reader):
            return None
        only = self.readers(name) == [reader] and reader.inputs.count(name) == 1
        return node if only else None

    def home(self, node: Node) -> Graph:
        """The graph that a node is in."""
        return self._homes[node.name]

    def owner(self, graph: Graph) -> Node | None:
        """The node whose body a graph is."""
        return self._owners.get(id(graph))

    def alive(self, node: Node) -> bool:
        """Whether a node has not been removed."""
        return node.name not in self._gone

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant tensor."""
        return self.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The value of a constant without axes (one that never adds any)."""
        array = self.constants.get(name)
        return float(array) if array is not None and array.ndim == 0 and array.dtype.kind in "fiu" else None

    # Edits.

    def change(self, node: Node, **fields: Any) -> None:
        """Give a node other fields; it stays where it is."""
        self._detach(node)
        for key, value in fields.items():
            setattr(node, key, value)
        self._attach(node)
        self.facts.add(node)

    def remove(self, *nodes: Node) -> None:
        """Take nodes away."""
        for node in nodes:
            self._detach(node)
            self._gone.add(node.name)

    def absorb(self, first: Node, last: Node, **fields: Any) -> None:
        """Let ``first`` do what ``last`` does to its result."""
        self.remove(last)
        self.change(first, outputs=last.outputs, **fields)

    def insert(self, node: Node, before: Node) -> None:
        """Put a new node in front of another."""
        self._before.setdefault(before.name, []).append(node)
        self._homes[node.name] = self.home(before)
        self._attach(node)
        self.facts.prepare_bodies(node)
        self.facts.add(node)
        self.changed = True

    def make_constant(self, name: str, array: np.ndarray, graph: Graph) -> None:
        """Add a constant tensor."""
        graph.constants[name] = self.constants[name] = array
        self.facts.learn(name, array.shape, str(array.dtype), array)

    def substitute(self, old: str, new: str) -> None:
        """Let all readers of a tensor read another one of the same value."""
        for node in self.readers(old):
            self._detach(node)
            node.inputs = tuple(new if name == old else name for name in node.inputs)
            self._attach(node)

    def fresh(self, name: str) -> str:
        """A name for a new tensor or node."""
        name = fresh(name, self._names)
        self._names.add(name)
        return name

    def inline(self, node: Node, body: Graph) -> None:
        """Put the body of an ``if`` in its place."""
        graph = self.home(node)
        for name, array in body.constants.items():
            self.make_constant(name, array, graph)
        for inner in body.nodes:
            self.insert(inner, node)
        for target, source in zip(node.outputs, body.outputs):
            if target:
                identity = Node("identity", self.fresh(target), (source.name,), (target,))
                self.insert(identity, node)
        self.remove(node)

    def finish(self) -> None:
        """Write the nodes that are left into their graphs."""
        for graph in list(self._graphs(self.spec)):
            graph.nodes[:] = self._laid_out(graph.nodes)

    def _laid_out(self, nodes: Iterable[Node]) -> Iterator[Node]:
        for node in nodes:
            yield from self._laid_out(self._before.get(node.name, ()))
            if self.alive(node):
                yield node
