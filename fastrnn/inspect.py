"""What a model consists of, read from its description alone: layers, shapes, parameters, work and bytes a step.

A *step* is one time step of one row.  Layers after ``return_sequences=False`` run once a sequence; they are counted
as if they ran at each step, so that the sum is what a streaming step may cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from math import prod

import numpy as np

from . import run_limits
from .errors import ShapeError
from .graph.facts import Facts, Shape
from .spec import GATES, OPS, Graph, ModelSpec, Node, Tensor, activation

WEIGHT_BYTES = 4  # float32, as the engine keeps them

LAYERS = ("pool", "loop", "scan", *(name for name, op in OPS.items() if op.weights or "activation" in op.attrs))
"""Kinds of nodes that have a row of their own in :func:`compact`."""

NAMED_BY_FUNCTION = ("unary", "binary", "reduce")
SHOWN = 4  # kinds of operators that a joined row names

STATES = ("h_0", "c_0", "h_n", "c_n")
"""Inputs and outputs of recurrent nodes that are states: (num_layers * directions, batch, size)."""


@dataclass(frozen=True)
class LayerInfo:
    """One row of :func:`describe`; ``None`` in a shape is a free dimension, a shape of ``None`` is not known.

    ``body`` is the part of a control flow node that the layer belongs to, as "node.then".
    """

    name: str
    kind: str
    detail: str
    input_shape: Shape
    output_shape: Shape
    parameters: int
    macs: int
    weight_bytes: int
    body: str = ""


def describe(spec: ModelSpec) -> list[LayerInfo]:
    """Describe each layer of a model in running order.

    ``macs`` are the multiply-accumulates of a step (of a convolution: of one place), ``weight_bytes`` the float32
    weights that a step reads: all of them, but of an embedding one row.  Layers in bodies stand behind the node that
    runs them, and all bodies count.

    >>> import numpy as np
    >>> from fastrnn.spec import Tensor
    >>> node = Node("dense", "head", ("x",), ("y",), {"activation": "softmax"}, {"weight": np.zeros((10, 64))})
    >>> [row] = describe(ModelSpec([node], [Tensor("x", (None, 64))], [Tensor("y", None)]))
    >>> row.kind, row.detail, row.output_shape, row.macs
    ('dense', 'softmax', (None, 10), 640)
    """
    facts = _facts(spec, {tensor.name: input_shape(spec, tensor) for tensor in spec.inputs})
    return list(_rows(spec, facts, dict(spec.all_constants()), ""))


def _facts(spec: ModelSpec, shapes: Mapping[str, Shape]) -> Facts:
    """What is known about the tensors of a model whose inputs have these shapes."""
    facts = Facts()
    for tensor in spec.inputs:
        facts.learn(tensor.name, shapes[tensor.name], tensor.dtype)
    facts.follow(spec)
    return facts


def _rows(graph: Graph, facts: Facts, constants: Mapping[str, np.ndarray], body: str) -> Iterator[LayerInfo]:
    for node in graph.nodes:
        x, y = (facts.shape(names[0]) if names else None for names in (node.inputs, node.outputs))
        weights = {**node.weights, **_factors(node, constants)}
        parameters = sum(weight.size for weight in weights.values())
        read = node.weights["weight"].shape[1] if node.op == "embedding" else parameters
        macs = _macs(node, weights)
        yield LayerInfo(node.name, node.op, _detail(node), x, y, parameters, macs, read * WEIGHT_BYTES, body)
        for key, inner in node.graphs.items():
            yield from _rows(inner, facts, constants, f"{node.name}.{key}")


def _factors(node: Node, constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Constants that an operator multiplies by as a layer does by its weights."""
    names = node.inputs if node.op == "matmul" else ()
    return {name: constants[name] for name in names if name in constants and constants[name].ndim > 1}


def compact(rows: Iterable[LayerInfo]) -> list[LayerInfo]:
    """The rows with neighbouring operators joined into one that counts them, wherever they stand."""
    joined: list[LayerInfo] = []
    for is_layer, group in groupby(rows, lambda row: row.kind in LAYERS or bool(row.parameters)):
        found = list(group)
        if is_layer or len(found) == 1:
            joined += found
            continue
        counts = Counter(row.detail.split(",")[0] if row.kind in NAMED_BY_FUNCTION else row.kind for row in found)
        words = [name if count == 1 else f"{count} {name}" for name, count in counts.most_common(SHOWN)]
        detail = ", ".join(words + ["..."] * (len(counts) > SHOWN))
        first, last = found[0], found[-1]
        shapes = first.input_shape, last.output_shape
        joined.append(LayerInfo(first.name, f"{len(found)} operators", detail, *shapes, 0, 0, 0, first.body))
    return joined


def total(rows: Sequence[LayerInfo]) -> LayerInfo:
    """The sum of the rows of :func:`describe`."""
    return LayerInfo(
        name="total",
        kind="",
        detail="",
        input_shape=rows[0].input_shape if rows else None,
        output_shape=rows[-1].output_shape if rows else None,
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        weight_bytes=sum(row.weight_bytes for row in rows),
    )


def shape_str(shape: Shape) -> str:
    """A shape as text, ``*`` for a free dimension.

    >>> shape_str((None, 28, 28)), shape_str(None)
    ('(*, 28, 28)', '?')
    """
    return "?" if shape is None else "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out rows as a text table: integers to the right, the rest to the left.

    >>> table(("name", "n"), [("a", 1), ("bc", 1200)])
    'name      n\\na         1\\nbc    1,200'
    """
    cells = [list(row) for row in rows]
    right = [any(isinstance(row[k], int) for row in cells) for k in range(len(header))]
    lines = [list(header)] + [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in cells]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    adjusted = (
        [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in adjusted)


def batch_axes(spec: ModelSpec) -> dict[str, int]:
    """The axis of the batch in each input and output where the recurrent layers tell it; elsewhere it is the first."""
    shapes: dict[str, Shape] = {}
    marks = iter(range(1_000_003, 2_000_000, 2))  # a size of its own for each free dimension, to find it again
    for tensor in spec.inputs:
        shape = input_shape(spec, tensor)
        shapes[tensor.name] = shape and tuple(next(marks) if n is None else n for n in shape)
    facts = _facts(spec, shapes)
    batches = set()
    for node in spec.all_nodes():
        for name, role in zip(node.inputs, _roles(node)) if node.op in GATES else ():
            axis = _batch_axis(node, role)
            shape = facts.shape(name)
            if role in ("x", "h_0", "c_0") and shape is not None and axis < len(shape) - 1:
                batches.add(shape[axis])
    found = {}
    for tensor in chain(spec.inputs, spec.outputs):
        places = [
            k for k, n in enumerate(facts.shape(tensor.name) or ()) if n is not None and n in batches and n > 1_000_000
        ]
        if places:
            found[tensor.name] = places[0]
        elif (read := consumer(spec, tensor.name)) and read[0].op in GATES and read[1] in ("x", "h_0", "c_0"):
            found[tensor.name] = _batch_axis(*read)  # which the file fixes
    return found


def _batch_axis(node: Node, role: str) -> int:
    return 0 if node.attr("unbatched") or (role == "x" and node.attr("batch_first")) else 1


def _roles(node: Node) -> list[str]:
    """What each input and output is to its node, in order."""
    op = OPS[node.op]
    roles = []
    for declared, given in ((op.inputs, node.inputs), (op.outputs, node.outputs)):
        more = declared[-1] if declared else ""
        roles += [role.rstrip("?*") for role, _ in zip_longest(declared[: len(given)], given, fillvalue=more)]
    return roles


def consumer(spec: ModelSpec, tensor: str) -> tuple[Node, str] | None:
    """The first node that reads a tensor, and as what (``x``, ``ids``, ``h_0``, ``mask`` ...)."""
    for node in spec.all_nodes():
        if tensor in node.inputs:
            return node, _roles(node)[node.inputs.index(tensor)]
    return None


def optional_inputs(spec: ModelSpec) -> set[str]:
    """Inputs of the model that may be left out: those that every node that reads them can do without."""
    needed = {tensor.name for tensor in spec.outputs}
    spared: set[str] = set()
    for node in spec.all_nodes():
        for k, name in enumerate(node.inputs):
            declared = OPS[node.op].inputs[k : k + 1]
            (spared if declared and declared[0].endswith("?") else needed).add(name)
        needed.update(tensor.name for body in node.graphs.values() for tensor in body.outputs)
    return {tensor.name for tensor in spec.inputs} & spared - needed


def input_shape(spec: ModelSpec, tensor: Tensor) -> Shape:
    """The shape of an input, from the first node that reads it where the file does not tell."""
    found = consumer(spec, tensor.name)
    if tensor.shape is not None or found is None:
        return tensor.shape
    node, role = found
    if node.op in GATES:
        hidden, out, directions = recurrent_sizes(node)
        rows: tuple[int | None, ...] = (None, None)
        states: tuple[int | None, ...] = (node.attr("num_layers") * directions, None)
        if node.attr("unbatched"):
            rows = states = (None,)
        sizes = {
            "lengths": (None,),
            "x": (*rows, node.weights["weight_ih_l0"].shape[1]),
            "h_0": (*states, out),
            "c_0": (*states, hidden),
        }
        return sizes.get(role, rows)
    if node.op == "embedding":
        return (None, None)
    if node.op == "dense":
        return (None, node.weights["weight"].shape[1])
    if node.op == "layer_norm" and "weight" in node.weights:
        return (None, *node.weights["weight"].shape)
    if node.op == "batch_norm":
        return (None, node.weights["mean"].size)
    return None


def input_sizes(spec: ModelSpec, batch: int, seq_len: int) -> dict[str, tuple[int, ...] | None]:
    """A shape of each input for a call of this size; None where it is not known.

    The batch is the axis that :func:`batch_axes` tells, or else the first free one; other free ones are steps.
    """
    axes = batch_axes(spec)
    sizes: dict[str, tuple[int, ...] | None] = {}
    for tensor in spec.inputs:
        shape = input_shape(spec, tensor)
        rows = axes.get(tensor.name, shape.index(None) if shape and None in shape else 0)
        free = ((batch if k == rows else seq_len) if n is None else n for k, n in enumerate(shape or ()))
        sizes[tensor.name] = None if shape is None else tuple(free)
    return sizes


def check_size(tensor: Tensor, sizes: Sequence[int]) -> None:
    """Refuse to make up an input of more than ``run_limits.MADE_UP`` elements."""
    if prod(sizes) > run_limits.MADE_UP:
        raise ShapeError(
            f"input {tensor.name!r} of shape {tuple(sizes)} would take {prod(sizes)} elements, at most"
            f" {run_limits.MADE_UP} are made up; give it yourself"
        )


def recurrent_sizes(node: Node) -> tuple[int, int, int]:
    """``(hidden_size, output size of one direction, directions)`` of a recurrent node."""
    rows, out = node.weights["weight_hh_l0"].shape
    return rows // len(GATES[node.op]), out, 2 if node.attr("direction") == "bidirectional" else 1


def _macs(node: Node, weights: Mapping[str, np.ndarray]) -> int:
    """Multiply-accumulates of a step: one for each weight but the biases; an embedding only copies."""
    if node.op == "embedding":
        return 0
    if node.op == "batch_norm":
        return node.weights["mean"].size
    return sum(weight.size for name, weight in weights.items() if not name.startswith("bias"))


def _detail(node: Node) -> str:
    """The options of a layer that a reader would ask for, in words."""
    words = []
    if node.op in GATES:
        hidden, out, _ = recurrent_sizes(node)
        layers = node.attr("num_layers")
        words += [f"hidden {hidden}", f"{layers} layers" if layers > 1 else "", node.attr("direction")]
        words += [f"projection {out}" if "weight_hr_l0" in node.weights else ""]
        words += ["peephole" if "peephole_l0" in node.weights else ""]
    for key, default in OPS[node.op].attrs.items():
        value = node.attr(key)
        if key.endswith("activation"):
            value, default = activation(value), activation(default)
        if value != default and key not in ("num_layers", "direction", "proto"):
            text = value[0] if key.endswith("activation") else str(value)
            words.append(text if key in ("activation", "function", "kind") else f"{key}={text}")
    return ", ".join(word for word in words if word)
