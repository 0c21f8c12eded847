"""Nodes and constants of a graph that is written from another one, under names that nothing has yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..spec import ModelSpec, Node
from .dataflow import defined, fresh


class Writer:
    """A new graph beside ``spec``, whose names it keeps apart from."""

    def __init__(self, spec: ModelSpec) -> None:
        self.nodes: list[Node] = []
        self.constants = dict(spec.constants)
        self._used = set(defined(spec)) | {node.name for node in spec.all_nodes()}
        for node in spec.all_nodes():
            self._used.update(node.outputs, *(defined(body) for body in node.graphs.values()))

    def put(self, node: Node) -> None:
        """Write a node."""
        self.nodes.append(node)

    def fresh(self, name: str) -> str:
        """A name for a new tensor or node."""
        name = fresh(name, self._used)
        self._used.add(name)
        return name

    def add(self, op: str, name: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Write a new node of one output, whose name it returns."""
        name = self.fresh(name)
        output = output or name
        self.put(Node(op, name, tuple(inputs), (output,), attrs))
        return output

    def number(self, value: Any) -> str:
        """A constant of whole numbers."""
        array = np.asarray(value, np.int64)
        name = self.fresh(f"numbers/{'_'.join(map(str, array.ravel().tolist()))}")
        self.constants[name] = array
        return name
