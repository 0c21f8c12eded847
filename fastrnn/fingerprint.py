"""What a state belongs to, in short: digests of a network's graph, and of its graph with its weights.

Two networks have one digest where they compute the same, whatever their nodes and tensors are called, in whatever order
nodes, attributes and weights are listed, and whether a default is written out.  Instruction set, threads and backend do
not enter, nor does what only says how a network is called: shapes of inputs, recorded arrays, where it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np

from .spec import OPS, Graph, Node, activation

ARITHMETIC = "float32"
"""The dtype that kernels compute in."""

_CALL = ("batch_first", "return_sequences", "reverse_output", "zero_output_for_mask", "unbatched", "merge")
"""Attributes of a recurrent layer that say what a call takes and gives, and not what a step does."""


@dataclass(frozen=True)
class Fingerprint:
    """``graph`` is that of all networks of one architecture, ``network`` of one with its weights."""

    graph: str
    network: str

    def of(self, *more: Any) -> Fingerprint:
        """The same for a network of which more is fixed: texts, numbers, arrays, and tuples of them."""
        return Fingerprint(_digest(self.graph, *more), _digest(self.network, *more))


def of_layer(node: Node) -> Fingerprint:
    """Of a recurrent layer, as far as its steps go."""
    attrs = {key: value for key, value in node.attrs.items() if key not in _CALL}
    graph = _digest(ARITHMETIC, node.op, _attributes(node.op, attrs), _weights(node, values=False))
    return Fingerprint(graph, _digest(graph, _weights(node, values=True)))


def of_model(graph: Graph) -> Fingerprint:
    """Of a model: what its outputs are made of, in their order, from its inputs, in theirs."""
    start = {t.name: _one(_digest(k, t.dtype)) for k, t in enumerate(graph.inputs)}
    made = _made(graph, start)
    inputs = tuple(t.dtype for t in graph.inputs)
    return Fingerprint(*(_digest(ARITHMETIC, inputs, *(made[t.name][k] for t in graph.outputs)) for k in range(2)))


_Pair = tuple[str, str]


def _one(digest: str) -> _Pair:
    """Of what holds no weights."""
    return digest, digest


def _made(graph: Graph, known: Mapping[str, _Pair]) -> dict[str, _Pair]:
    """Each tensor of a graph as digests of all that it is made of, without and with the weights."""
    made = {"": _one(""), **known}
    made |= {name: _constant(np.asarray(array)) for name, array in graph.constants.items()}
    for node in graph.nodes:
        sources = [made[name] for name in node.inputs]
        while sources and not sources[-1][0]:
            sources.pop()
        outputs = len(node.outputs) if OPS[node.op].outputs[-1].endswith("*") else 0  # a split has as many parts
        bodies = [_body(key, body, made) for key, body in sorted(node.graphs.items())]
        pair = tuple(
            _digest(
                node.op,
                _attributes(node.op, node.attrs),
                _weights(node, values=bool(k)),
                outputs,
                tuple(body[k] for body in bodies),
                tuple(source[k] for source in sources),
            )
            for k in range(2)
        )
        for place, name in enumerate(node.outputs):
            made[name] = _digest(place, pair[0]), _digest(place, pair[1])
    return made


def _body(key: str, body: Graph, around: Mapping[str, _Pair]) -> _Pair:
    inside = {t.name: _one(_digest("body", k, t.dtype)) for k, t in enumerate(body.inputs)}
    made = _made(body, {**around, **inside})
    graph, network = (_digest(key, len(body.inputs), *(made[t.name][k] for t in body.outputs)) for k in range(2))
    return graph, network


def _constant(array: np.ndarray) -> _Pair:
    """Whole numbers are shapes, axes and choices, and belong to the graph; others, and those of 8 bits, are weights."""
    shape, whole = _digest("constant", array.dtype.name, array.shape), _digest("constant", array)
    weights = array.dtype.kind == "f" or (array.dtype.itemsize == 1 and array.dtype.kind in "iu")
    return (shape if weights else whole), whole


def _attributes(op: str, attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """All attributes, those that are not given too."""
    full = {**OPS[op].attrs, **attrs}
    return tuple((key, activation(full[key]) if key.endswith("activation") else full[key]) for key in sorted(full))


def _weights(node: Node, *, values: bool) -> tuple[Any, ...]:
    """As the kernels take them: whatever floats a file holds become float32."""
    arrays = sorted(node.weights.items(), key=lambda item: item[0])
    return tuple((key, np.asarray(a, np.float32) if values else a.shape) for key, a in arrays)


def _digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            sha.update(piece)
    return sha.hexdigest()[:32]


def _pieces(value: Any) -> Iterable[bytes | memoryview]:
    """A value as bytes that no other value has; numbers that are equal are one."""
    if isinstance(value, np.ndarray):
        yield f"a{value.dtype.name}{value.shape};".encode()
        yield np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    elif isinstance(value, (tuple, list)):
        yield f"t{len(value)};".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, (Number, np.generic)) and not isinstance(value, np.str_):
        number: Any = value.item() if isinstance(value, np.generic) else value
        whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        yield f"n{int(number) if whole else number!r};".encode()
    else:
        text = b"" if value is None else str(value).encode("utf-8", "surrogatepass")
        yield f"{'-' if value is None else 's'}{len(text)};".encode() + text
