"""The arithmetic of gates, read back from nodes: sums of products with constant weights, sliced into gates.

A framework that takes a cell apart may write ``dense(x) + dense(h)``, ``dense(concat(x, h))``, a product for each gate
or one that is split, biases anywhere, activations before or after the split.  ``Reader`` sees one thing in all of
them: the activation of a sum of ``weights[t] @ t``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import operators
from ..spec import CELL_ACTIVATIONS, Graph, Node, activation
from .dataflow import Flow

Activation = tuple[str, float, float]


class NoMatch(Exception):  # noqa: N818 - not an error
    """The nodes are not what is looked for."""


@dataclass
class Affine:
    """Sum of ``weights[t] @ t`` over tensors t, of ``plain`` tensors as they are, and of a bias."""

    units: int
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    bias: np.ndarray | None = None

    def __add__(self, other: Affine) -> Affine:
        weights = dict(self.weights)
        for name, weight in other.weights.items():
            weights[name] = weights[name] + weight if name in weights else weight
        biases = [b.astype(np.float64) for b in (self.bias, other.bias) if b is not None]
        return Affine(self.units, weights, self.plain + other.plain, sum(biases) if biases else None)  # type: ignore[arg-type]


class Reader:
    """One attempt to read a cell; ``seen`` are the nodes that it has read, by name."""

    def __init__(self, flow: Flow, home: Graph) -> None:
        self.flow = flow
        self.home = home
        self.seen: dict[str, Node] = {}

    def take(self, name: str, op: str, function: str = "") -> Node:
        """The node that writes a tensor, which has to be of a kind."""
        node = self.flow.writer(name, op)
        if node is None or self.flow.home(node) is not self.home or (function and node.attr("function") != function):
            raise NoMatch
        self.seen[node.name] = node
        return node

    def writes(self, name: str, *ops: str) -> str:
        """The kind of the node that writes a tensor, if it is one of these and of the same graph."""
        node = self.flow.writer(name)
        return node.op if node is not None and node.op in ops and self.flow.home(node) is self.home else ""

    def units(self, name: str) -> int:
        """The size of the last of the two axes of a tensor."""
        units = self._matrix(name)[1]
        if units is None:
            raise NoMatch
        return units

    def rows(self, name: str) -> int | None:
        """The size of the first of the two axes of a tensor."""
        return self._matrix(name)[0]

    def _matrix(self, name: str) -> tuple[int | None, ...]:
        shape = self.flow.facts.shape(name)
        if shape is None or len(shape) != 2:
            raise NoMatch
        return shape

    def gate(self, name: str, part: range | None = None) -> tuple[Activation, Affine]:
        """An activation and what it is of, in the units ``part`` of a tensor; all of them by default."""
        part = range(self.units(name)) if part is None else part
        if self.writes(name, "split", "slice"):
            return self.gate(*self.sliced(name, part))
        if self.writes(name, "dense"):
            node = self.take(name, "dense")
            how, what = node.attr("activation"), self.product(node, part)
        else:
            node = self.take(name, "activation")
            how, what = node.attr("activation"), self.affine(node.inputs[0], part)
        if activation(how)[0] not in CELL_ACTIVATIONS or activation(how)[0] == "linear":
            raise NoMatch
        return activation(how), what

    def affine(self, name: str, part: range | None = None) -> Affine:
        """The sum that a tensor is, in the units ``part``."""
        part = range(self.units(name)) if part is None else part
        if self.writes(name, "split", "slice"):
            return self.affine(*self.sliced(name, part))
        node = self.flow.writer(name)
        if self.writes(name, "dense") and node is not None and activation(node.attr("activation"))[0] == "linear":
            return self.product(self.take(name, "dense"), part)
        if self.writes(name, "binary") and node is not None and node.attr("function") == "add":
            a, b = self.take(name, "binary").inputs
            return self.term(a, name, part) + self.term(b, name, part)
        if part != range(self.units(name)):
            raise NoMatch
        return Affine(len(part), plain=[name])

    def term(self, name: str, total: str, part: range) -> Affine:
        """One side of a sum: a constant vector, or a tensor of the shape of the sum."""
        if self.flow.constant(name) is not None:
            return Affine(len(part), bias=self.vector(name, self.units(total))[part.start : part.stop])
        if self.units(name) != self.units(total):
            raise NoMatch
        return self.affine(name, part)

    def vector(self, name: str, units: int) -> np.ndarray:
        """A constant that is a vector of units wherever it broadcasts."""
        array = self.flow.constant(name)
        if array is None or array.dtype.kind != "f" or array.ndim > 2 or array.size not in (1, units):
            raise NoMatch
        if array.shape[-1:] not in ((), (1,), (units,)) or array.size != max(array.shape[-1:], default=1):
            raise NoMatch
        return np.broadcast_to(array.reshape(-1), (units,))

    def product(self, node: Node, part: range) -> Affine:
        """A dense layer; of a concatenation it is the sum of a product with each part."""
        weight, bias = node.weights["weight"][part.start : part.stop], node.weights.get("bias")
        weights: dict[str, np.ndarray] = {}
        for name, columns in self.pieces(node.inputs[0]):
            piece = weight[:, columns.start : columns.stop]
            weights[name] = weights[name] + piece if name in weights else piece
        return Affine(len(part), weights, bias=None if bias is None else bias[part.start : part.stop])

    def pieces(self, name: str) -> list[tuple[str, range]]:
        """The tensors that a tensor is concatenated from along its last axis, and where each lies in it."""
        size = self.units(name)
        node = self.flow.writer(name, "concat")
        if node is None or not self.writes(name, "concat") or node.attr("axis") not in (-1, 1):
            return [(name, range(size))]
        self.take(name, "concat")
        found, start = [], 0
        for part in node.inputs:
            found += [(inner, range(r.start + start, r.stop + start)) for inner, r in self.pieces(part)]
            start += self.units(part)
        return found

    def sliced(self, name: str, part: range) -> tuple[str, range]:
        """Where in its source the units ``part`` of a slice lie."""
        node = self.take(name, self.writes(name, "split", "slice"))
        source = node.inputs[0]
        size = self.units(source)
        if node.op == "split":
            if node.attr("axis") not in (-1, 1):
                raise NoMatch
            sizes = operators.split_sizes(node, size)
            start = sum(sizes[: node.outputs.index(name)])
        else:
            bounds = [self.flow.constant(bound) if bound else None for bound in node.inputs[1:]]
            if any(bound and array is None for bound, array in zip(node.inputs[1:], bounds)):
                raise NoMatch
            rows, units = operators.slices(2, *bounds)  # type: ignore[arg-type]
            start, step, _ = operators.slice_bounds(units, size)
            if rows != slice(None) or step != 1:
                raise NoMatch
        return source, range(part.start + start, part.stop + start)

    def is_closed(self, *ends: Node) -> bool:
        """Whether nothing but ``ends`` gives anything of what was read to nodes that were not read."""
        inside = self.seen.keys() | {node.name for node in ends}
        names = [name for node in self.seen.values() if node not in ends for name in node.outputs if name]
        return not self.flow.wanted.intersection(names) and all(
            reader.name in inside for name in names for reader in self.flow.readers(name)
        )
