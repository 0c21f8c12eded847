"""What is certain about the tensors of a graph before it runs: shapes with free dimensions, dtypes, small values.

``Facts`` follows a graph in running order.  A dimension is None where it is free or not known, a shape is None where
not even the number of axes is.  Vectors of whole numbers that shapes are made of are followed by value, so that
``Shape``, ``Gather`` and ``Concat`` in front of a ``Reshape`` tell its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import operators
from ..attributes import MOST_AXES
from ..errors import FastrnnError
from ..spec import GATES, Graph, Node
from .shape_rules import RULES, Shape, common, product, without

MAX_VALUES = 256  # elements of a vector that is followed by value
MAX_DEPTH = 4  # bodies inside bodies whose carried shapes are looked for

COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "and", "or", "xor")
FLOAT_OPS = ("dense", "embedding", "masking", "layer_norm", "batch_norm", "activation", "stack", "conv", *GATES)
BY_VALUE = ("identity", "gather", "slice", "concat", "squeeze", "unsqueeze", "cast")  # exact on objects


class Facts:
    """Shapes, dtypes and values of tensors by name; a name that is missing is not known."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.values: dict[str, np.ndarray] = {}
        self.misfits: set[str] = set()
        """Names of nodes that cannot run on tensors of so many axes.  They may stand where nothing ever runs."""
        self._depth = 0

    def shape(self, name: str) -> Shape:
        """Its shape, None if not known."""
        return self.shapes.get(name)

    def rank(self, name: str) -> int | None:
        """The number of its axes, None if not known."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def is_float(self, name: str) -> bool:
        """Whether it certainly holds floating-point numbers."""
        return self.dtypes.get(name, "").startswith("float")

    def learn(self, name: str, shape: Shape, dtype: str | None, value: np.ndarray | None = None) -> None:
        """Write down what is known about a tensor, instead of what was."""
        for known, fact in ((self.shapes, shape), (self.dtypes, dtype), (self.values, value)):
            if fact is None:
                known.pop(name, None)
            else:
                known[name] = fact  # type: ignore[assignment]

    def enter(self, graph: Graph) -> None:
        """Learn the inputs of a graph as they are declared, and its constants."""
        for tensor in graph.inputs:
            self.learn(tensor.name, tensor.shape, tensor.dtype)
        for name, array in graph.constants.items():
            self.learn(name, array.shape, str(array.dtype), array)

    def follow(self, graph: Graph) -> None:
        """Learn the constants of a graph and all that its nodes write."""
        for name, array in graph.constants.items():
            self.learn(name, array.shape, str(array.dtype), array)
        for node in graph.nodes:
            self.prepare_bodies(node)
            self.add(node)

    def prepare_bodies(self, node: Node) -> None:
        """Learn the inputs of the bodies of a node, and follow them."""
        if not node.graphs:
            return
        self._depth += 1
        if node.op in ("loop", "scan"):
            self._enter_loop(node, node.graphs["body"])
        else:
            for body in node.graphs.values():
                self.follow(body)
        self._depth -= 1

    def _enter_loop(self, node: Node, body: Graph) -> None:
        if node.op == "loop":
            skip, carried, scanned = 2, node.inputs[2:], node.inputs[:0]
            for tensor, dtype in zip(body.inputs, ("int64", "bool")):
                self.learn(tensor.name, (), dtype)
        else:
            count = node.attr("num_scanned")
            skip, carried, scanned = 0, node.inputs[:-count], node.inputs[-count:]
        names = [t.name for t in body.inputs[skip:]]
        axes = (node.attr("axes") if node.op == "scan" else None) or [0] * len(scanned)
        for name, source, axis in zip(names[len(carried) :], scanned, axes):
            shape = self.shape(source)
            self.learn(name, None if shape is None else without(shape, [axis]), self.dtypes.get(source))
        results = [t.name for t in body.outputs[1 if node.op == "loop" else 0 :]]
        shapes = [self.shape(name) if self._depth <= MAX_DEPTH else None for name in carried]
        for _ in range(2):  # what the first step starts with, then what all steps have in common
            for name, source, shape in zip(names, carried, shapes):
                self.learn(name, shape, self.dtypes.get(source))
            self.follow(body)
            after = [self.shape(name) for name in results[: len(carried)]]
            if self._depth > MAX_DEPTH or after == shapes:
                return
            shapes = [common(a, b) for a, b in zip(shapes, after)]
        for name, source, shape, new in zip(names, carried, shapes, after):
            self.learn(name, shape if new == shape else None, self.dtypes.get(source))
        self.follow(body)

    def add(self, node: Node) -> None:
        """Learn what a node writes; its bodies have been followed."""
        shapes = self._shapes_of(node)
        dtypes = self._dtypes_of(node)
        value = self._value_of(node)
        for k, name in enumerate(node.outputs):
            if name:
                self.learn(name, shapes[k] if k < len(shapes) else None, dtypes[k], value if k == 0 else None)

    def _shapes_of(self, node: Node) -> Sequence[Shape]:
        rule = RULES.get(node.op)
        if rule is None:
            return ()
        self.misfits.discard(node.name)
        try:
            result: Any = rule(self, node, *(self.shape(name) for name in node.inputs))
        except (FastrnnError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            if isinstance(error, FastrnnError):
                self.misfits.add(node.name)
            return ()  # a run says what is wrong, or too little is known
        shapes = result if isinstance(result, list) else [result]
        if any(shape is not None and len(shape) > MOST_AXES for shape in shapes):
            self.misfits.add(node.name)
            return ()
        return shapes

    def _dtypes_of(self, node: Node) -> Sequence[str | None]:
        first = self.dtypes.get(next((name for name in node.inputs if name), ""))
        count = len(node.outputs)
        if node.op in ("embedding", "masking"):
            return ["float32", "bool"][:count]
        if node.op in FLOAT_OPS:
            return ["float32"] * count
        if node.op in ("cast", "fill"):
            return [node.attr("dtype")]
        if node.op in ("shape", "size", "argmax"):
            return ["int64"]
        if node.op == "binary" and node.attr("function") in COMPARISONS:
            return ["bool"]
        if node.op == "unary" and node.attr("function") in ("not", "isnan", "isinf"):
            return ["bool"]
        if node.op == "reduce" and node.attr("function") in ("any", "all"):
            return ["bool"]
        if node.op == "where":
            return [self.dtypes.get(node.inputs[1])]
        if node.op == "operator":
            return [None] * count
        if node.op in operators.CONTROL_FLOW:
            return self._dtypes_of_bodies(node)
        return [first] * count

    def _dtypes_of_bodies(self, node: Node) -> list[str | None]:
        skip = 1 if node.op == "loop" else 0
        bodies = [[self.dtypes.get(t.name) for t in body.outputs[skip:]] for body in node.graphs.values()]
        return [kinds[0] if len(set(kinds)) == 1 else None for kinds in zip(*bodies)]

    def _value_of(self, node: Node) -> np.ndarray | None:
        """The value of a small vector of whole numbers as objects, None where a number is not known."""
        if node.op == "shape":
            shape = self.shape(node.inputs[0])
            return None if shape is None else objects(shape[node.attr("start") : node.attr("end")])
        if node.op == "size":
            shape = self.shape(node.inputs[0])
            size = None if shape is None else product(shape)
            return None if size is None else np.array(size, object)
        if node.op not in BY_VALUE or not self._whole(node):
            return None
        given = [self.values.get(name) for name in node.inputs if name]
        if any(array is None or array.size > MAX_VALUES for array in given):
            return None
        first = node.inputs[0]
        if node.op == "concat":
            arrays = [array.astype(object) for array in given if array is not None]
        else:
            arrays = [self.values[first].astype(object), *(a for a in given[1:] if a is not None)]
        if node.op == "cast":
            return arrays[0]
        try:
            return np.asarray(operators.evaluate(node, arrays)[0], object)
        except FastrnnError:
            return None

    def _whole(self, node: Node) -> bool:
        names = node.inputs if node.op == "concat" else node.inputs[:1]
        result = node.attr("dtype") if node.op == "cast" else "int64"
        return result.startswith("int") and all(self.dtypes.get(name, "").startswith("int") for name in names)

    def numbers(self, name: str) -> list[int | None]:
        """The whole numbers of a tensor that holds a shape or the like; TypeError if they are not known."""
        value = self.values.get(name)
        if value is None:
            raise TypeError(f"the value of {name!r} is not known")
        return [None if n is None else int(n) for n in value.ravel()]


def objects(numbers: Iterable[int | None]) -> np.ndarray:
    """A vector of numbers that may be None."""
    return np.array([*numbers, None], object)[:-1]
