"""What a model consists of, read from its description alone: layers, shapes, parameters, work and bytes a step.

A *step* is one time step of one row.  Layers after ``return_sequences=False`` run once a sequence; they are counted
as if they ran at each step, so that the sum is what a streaming step may cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .spec import GATES, OPS, ModelSpec, Node, Tensor, activation

Shape = tuple[int | None, ...] | None

WEIGHT_BYTES = 4  # float32, as the engine keeps them

STATES = ("h_0", "c_0", "h_n", "c_n")
"""Inputs and outputs of recurrent nodes that are states: (num_layers * directions, batch, size)."""


@dataclass(frozen=True)
class LayerInfo:
    """One row of :func:`describe`; ``None`` in a shape is a free dimension, a shape of ``None`` is not known."""

    name: str
    kind: str
    detail: str
    input_shape: Shape
    output_shape: Shape
    parameters: int
    macs: int
    weight_bytes: int


def describe(spec: ModelSpec) -> list[LayerInfo]:
    """Describe each layer of a model in running order.

    ``macs`` are the multiply-accumulates of a step, ``weight_bytes`` the float32 weights that a step reads: all of
    them, but of an embedding one row.

    >>> import numpy as np
    >>> from fastrnn.spec import Tensor
    >>> node = Node("dense", "head", ("x",), ("y",), {"activation": "softmax"}, {"weight": np.zeros((10, 64))})
    >>> [row] = describe(ModelSpec([node], [Tensor("x", (None, 64))], [Tensor("y", None)]))
    >>> row.kind, row.detail, row.output_shape, row.macs
    ('dense', 'softmax', (None, 10), 640)
    """
    shapes = {tensor.name: input_shape(spec, tensor) for tensor in spec.inputs}
    rows = []
    for node in spec.nodes:
        x = shapes.get(node.inputs[0])
        written = _output_shapes(node, x)
        shapes.update((name, shape) for name, shape in zip(node.outputs, written, strict=False) if name)
        parameters = sum(weight.size for weight in node.weights.values())
        read = node.weights["weight"].shape[1] if node.op == "embedding" else parameters
        rows.append(
            LayerInfo(node.name, node.op, _detail(node), x, written[0], parameters, _macs(node), read * WEIGHT_BYTES)
        )
    return rows


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


def batch_axis(spec: ModelSpec, tensor: str, ndim: int) -> int:
    """The axis of the batch in an input or output: 1 for states and for time-first sequences, else 0."""
    for node in spec.nodes:
        if node.op in GATES and not node.attr("unbatched"):
            roles = zip(node.inputs + node.outputs, _roles(node), strict=True)
            if any(name == tensor and role in STATES for name, role in roles):
                return 1
    return 1 if ndim >= 3 and time_first(spec) else 0


def _roles(node: Node) -> list[str]:
    """What each input and output is to its node, in order."""
    op = OPS[node.op]
    return [role.rstrip("?") for role in op.inputs[: len(node.inputs)] + op.outputs[: len(node.outputs)]]


def time_first(spec: ModelSpec) -> bool:
    """Whether sequences of the model are (time, batch, features)."""
    return any(node.op in GATES and not node.attr("batch_first") for node in spec.nodes)


def consumer(spec: ModelSpec, tensor: str) -> tuple[Node, str] | None:
    """The first node that reads a tensor, and as what (``x``, ``ids``, ``h_0``, ``mask`` ...)."""
    for node in spec.nodes:
        if tensor in node.inputs:
            return node, _roles(node)[node.inputs.index(tensor)]
    return None


def optional_inputs(spec: ModelSpec) -> set[str]:
    """Inputs of the model that may be left out: those that every node that reads them can do without."""
    needed = {
        name
        for node in spec.nodes
        for name, role in zip(node.inputs, OPS[node.op].inputs, strict=False)
        if not role.endswith("?")
    }
    return {tensor.name for tensor in spec.inputs} - needed


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
        sizes = {"x": (*rows, node.weights["weight_ih_l0"].shape[1]), "h_0": (*states, out), "c_0": (*states, hidden)}
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


def recurrent_sizes(node: Node) -> tuple[int, int, int]:
    """``(hidden_size, output size of one direction, directions)`` of a recurrent node."""
    rows, out = node.weights["weight_hh_l0"].shape
    return rows // len(GATES[node.op]), out, 2 if node.attr("direction") == "bidirectional" else 1


def _output_shapes(node: Node, x: Shape) -> list[Shape]:
    """The shapes of a node's outputs, in the order of ``OPS``, from that of its first input."""
    if node.op in GATES:
        return _recurrent_shapes(node, x)
    if node.op == "dense":
        return [x and (*x[:-1], node.weights["weight"].shape[0])]
    if node.op == "embedding":
        return [None if x is None else (*x, node.weights["weight"].shape[1]), x]
    if node.op == "masking":
        return [x, x and x[:-1]]
    if node.op == "stack":
        return [None if x is None else (len(node.inputs), *x)]
    if node.op == "unstack":
        return [x and x[1:]] * len(node.outputs)
    return [x]


def _recurrent_shapes(node: Node, x: Shape) -> list[Shape]:
    hidden, out, directions = recurrent_sizes(node)
    features = out * (directions if node.attr("merge") == "concat" else 1)
    if x is None:
        return [None, None, None]
    if node.attr("unbatched"):
        return [(*x[:-1], size) for size in (features, out, hidden)]
    batch = x[:-2] if node.attr("batch_first") else x[1:-1]  # () for a sequence without a batch axis
    y = (*x[:-1], features) if node.attr("return_sequences") else (*batch, features)
    count = node.attr("num_layers") * directions
    return [y, (count, *batch, out), (count, *batch, hidden)]


def _macs(node: Node) -> int:
    """Multiply-accumulates of a step: one for each weight but the biases; an embedding only copies."""
    if node.op == "embedding":
        return 0
    if node.op == "batch_norm":
        return node.weights["mean"].size
    return sum(weight.size for name, weight in node.weights.items() if not name.startswith("bias"))


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
        if value != default and key not in ("num_layers", "direction"):
            text = value[0] if key.endswith("activation") else str(value)
            words.append(text if key == "activation" else f"{key}={text}")
    return ", ".join(word for word in words if word)
