"""What a converter of an ONNX operator works with: inputs and attributes of its node, ``emit`` for nodes of a spec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import OPS, Node
from .files import short


@dataclass
class Value:
    """What a name of the file stands for: a tensor of the spec or, with ``array``, a constant."""

    name: str
    dtype: str = "float32"
    rank: int | None = None
    array: np.ndarray | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype == "float32"


class Host(Protocol):
    """The side of the graph that a ``Call`` needs."""

    def new_constant(self, array: np.ndarray, name: str) -> Value: ...

    def read(self, value: Value) -> str: ...

    def fold(self, node: Node, inputs: Sequence[Value | None]) -> list[np.ndarray] | None: ...

    def array(self, proto: Any, where: str) -> np.ndarray: ...


TEMPORARY = "\0"
"""Names of tensors begin with it until the node is converted; its outputs then get the names of the file."""

# AttributeProto.AttributeType
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_KINDS = {1: "float", 2: "int", 3: "string", 4: "tensor", 5: "graph", 6: "floats", 7: "ints", 8: "strings"}


class Call:
    """One node of the file while it is converted.

    Attributes
    ----------
    name, op_type, version : str, str, int
        ``version`` is that of the opset.
    inputs : list of Value or None
        None where an optional input is absent; reading beyond the end gives None too, see ``get``.
    wanted : list of bool
        Which outputs anything reads.
    nodes : list of Node
        What was emitted so far.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        op_type: str,
        version: int,
        inputs: list[Value | None],
        wanted: list[bool],
        attributes: dict[str, Any],
        proto: Any,
    ):
        self.host, self.name, self.op_type, self.version = host, name, op_type, version
        self.inputs, self.wanted, self.attributes, self.proto = inputs, wanted, attributes, proto
        self.nodes: list[Node] = []
        self.schema: Any = None  # onnx's description of the operator
        self.made: list[Value] = []  # constants
        self._fresh = 0

    # Inputs

    def get(self, k: int) -> Value | None:
        """Input k, or None where it is absent."""
        return self.inputs[k] if k < len(self.inputs) else None

    @property
    def x(self) -> Value:
        return self.need(0)

    def need(self, k: int) -> Value:
        value = self.get(k)
        if value is None:
            raise FormatError(f"input {k} is missing; the file is damaged")
        return value

    def constant(self, k: int, what: str) -> np.ndarray:
        """The elements of an input that must be known at load."""
        value = self.need(k)
        if value.array is None:
            raise UnsupportedError(
                f"its {what} ({short(value.name)}) is computed while the model runs, expected a constant; export the"
                " model with constant folding, or give the weights as initializers"
            )
        return value.array

    def known(self, k: int) -> np.ndarray | None:
        """The elements of an input where they are known."""
        value = self.get(k)
        return None if value is None else value.array

    def numbers(self, k: int) -> list[int] | None:
        """A constant input as a list of integers, None where it is absent; ``Dynamic`` where it is not constant."""
        value = self.get(k)
        if value is None:
            return None
        if value.array is None:
            raise Dynamic
        return [int(n) for n in value.array.reshape(-1)]

    # Attributes

    def _attribute(self, name: str, kind: int, field: str, default: Any) -> Any:
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        if attribute.type != kind:
            found = _KINDS.get(attribute.type, f"type {attribute.type}")
            raise FormatError(f"attribute {short(name)} is {found}, expected {_KINDS[kind]}; the file is damaged")
        return getattr(attribute, field)

    def get_int(self, name: str, default: Any = 0) -> Any:
        return self._attribute(name, _INT, "i", default)

    def get_float(self, name: str, default: Any = 0.0) -> Any:
        return self._attribute(name, _FLOAT, "f", default)

    def get_text(self, name: str, default: str = "") -> str:
        return _decode(self._attribute(name, _STRING, "s", default.encode()))

    def get_ints(self, name: str) -> list[int] | None:
        found = self._attribute(name, _INTS, "ints", None)
        return None if found is None else list(found)

    def get_floats(self, name: str) -> list[float]:
        return list(self._attribute(name, _FLOATS, "floats", ()))

    def get_texts(self, name: str) -> list[str] | None:
        found = self._attribute(name, _STRINGS, "strings", None)
        return None if found is None else [_decode(text) for text in found]

    def get_tensor(self, name: str) -> np.ndarray | None:
        found = self._attribute(name, _TENSOR, "t", None)
        return None if found is None else self.host.array(found, f"attribute {short(name)}")

    def get_graph(self, name: str) -> Any:
        found = self._attribute(name, _GRAPH, "g", None)
        if found is None:
            raise FormatError(f"its body {name!r} is missing; the file is damaged")
        return found

    # Results

    def new(self, array: Any, what: str) -> Value:
        """A constant that the file does not name."""
        self.made.append(self.host.new_constant(np.asarray(array), f"{self.name}/{what}"))
        return self.made[-1]

    def ints_value(self, numbers: Iterable[Any], what: str) -> Value:
        return self.new(np.array(list(numbers), np.int64), what)

    def fresh(self, dtype: str, rank: Any) -> Value:
        """A tensor that no node has written yet: an input of a body."""
        self._fresh += 1
        return Value(f"{TEMPORARY}{self.name}/{self._fresh}", dtype, rank)

    @contextmanager
    def body(self) -> Iterator[list[Node]]:
        """Nodes that are emitted inside go into the list."""
        outer, self.nodes = self.nodes, []
        yield self.nodes
        self.nodes = outer

    def emit(self, op: str, *inputs: Value | None, **options: Any) -> Value:
        """Add a node of one output; see ``emit_many``."""
        return self.emit_many(op, inputs, **options)[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        *,
        outputs: int = 1,
        gives: str | None = None,
        rank: Any = "same",
        weights: dict[str, np.ndarray] | None = None,
        graphs: dict[str, Any] | None = None,
        **attrs: Any,
    ) -> list[Value]:
        """Add a node of the spec, or compute it now where its inputs are constants.

        ``gives``, the dtype, and ``rank`` of the outputs are those of the first input where they are not given.
        Attributes that have their default are left out.
        """
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        defaults = OPS[op].attrs
        attrs = {key: value for key, value in attrs.items() if value != defaults[key]}
        names = [self.fresh("", None).name for _ in range(outputs)]
        read = tuple("" if value is None else self.host.read(value) for value in given)
        node = Node(op, self.name, read, tuple(names), attrs, weights or {}, graphs or {})
        if (arrays := self.host.fold(node, given)) is not None:
            return [self.new(array, "folded") for array in arrays]
        self.nodes.append(node)
        first = next((value for value in given if value is not None), None)
        dtype = gives or (first.dtype if first else "float32")
        rank = (first.rank if first else None) if rank == "same" else rank
        return [Value(name, dtype, rank) for name in names]


class Dynamic(Exception):  # noqa: N818
    """An input that the spec wants as an attribute is not constant: the slow operator takes it."""


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("an attribute is not UTF-8; the file is damaged") from None
