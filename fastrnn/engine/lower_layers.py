"""Layers with packed weights, as steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..layers import BatchNorm, Dense, Embedding, LayerNorm
from ..recurrent import Recurrent
from ..spec import ROW_ACTIVATIONS, Node, activation
from .builder import Builder, Lowering, Values
from .lower_arrays import inverse, joined, known, softmax_axis, softmax_last
from .tensors import F32, Value


def _dense(b: Builder, node: Node, layer: Dense, x: Values) -> Values:
    y = dense_rows(b, layer, x[0])
    if layer.row_activation is None:
        return [y]
    return [softmax_last(b, y, layer.row_activation == "log_softmax")]


def dense_rows(b: Builder, layer: Any, x: Value) -> Value:
    """A dense layer over the last axis of x, whose rows may lie apart."""
    x = b.floats(x)
    if x.ndim == 0 or x.shape[-1] != layer.input_size:
        raise ShapeError(f"{layer.name!r} takes arrays whose last axis is {layer.input_size}, got shape {x.shape}")
    rows = math.prod(x.shape[:-1])
    flat = x.reshape((rows, layer.input_size)) if x.shape[-1] == 1 or x.strides[-1] == 1 else None
    if flat is None:
        flat = b.copy(x).reshape((rows, layer.input_size))
    assert flat is not None
    y = b.new((*x.shape[:-1], layer.output_size))
    product(b, layer._handle, flat, y.reshape((rows, layer.output_size)))
    return y


def product(b: Builder, handle: Any, x: Value, y: Value | None) -> None:
    """y = x W^T of rows; both may have gaps between their rows."""
    assert y is not None
    rows, k = x.shape
    if handle.backend == "blas" and x.strides[0] < k:  # a BLAS takes no rows that overlap or go backwards
        x = b.copy(x) if rows > 1 else replace(x, strides=(k, 1))
    if rows:
        flops = 2.0 * y.size * k
        strides = {"a_row": x.strides[0], "y_row": y.strides[0]}
        b.step("dense", values={"y": y, "a": x}, flops=flops, rows=rows, layer=handle, **strides)


def _recurrent(b: Builder, node: Node, layer: Recurrent, x: Values) -> Sequence[Value]:
    count = 2 if layer.has_c else 1
    sequence, states, gates = x[0], x[1 : 1 + count], [v for v in x[1 + count :] if v is not None]
    plan = layer.call_shapes(sequence.shape)
    if gates:  # which steps run is known only at run time
        return _recurrent_by_call(b, layer, x, plan)
    sequence = b.floats(sequence)
    if sequence.shape[-1] != 1 and sequence.strides[-1] != 1:
        sequence = b.copy(sequence)
    batch, seq_len = plan.batch, plan.seq_len
    given = [
        None if state is None else b.contiguous(b.reshape(state, shape)) if state.size == math.prod(shape) else state
        for state, shape in zip([*states, *[None] * count], plan.states)
    ]
    wrong = [(s.shape, shape) for s, shape in zip(given, plan.states) if s is not None and s.shape != shape]
    if wrong:
        raise ShapeError(f"{node.name!r}: a state has shape {wrong[0][0]}, expected {wrong[0][1]}")
    finals = [b.new(shape) for shape in plan.states]
    y = None if plan.last_only else b.new(plan.y)
    values = {"a": sequence, "y_2": finals[0]}
    values |= {name: value for name, value in zip("bc", given) if value is not None}
    if layer.has_c:
        values["y_3"] = finals[1]
    x_strides = [stride if size > 1 else 0 for stride, size in zip(sequence.strides, sequence.shape)]
    batch_axis, time_axis = plan.axes
    y_strides = (0, 0)
    if y is not None:
        values["y"] = y
        y_strides = (
            0 if batch_axis is None else y.strides[batch_axis],
            0 if time_axis is None else y.strides[time_axis],
        )
        if plan.flips and seq_len and time_axis is not None:
            values["y"] = y.part(time_axis, seq_len - 1, seq_len, -1)
            y_strides = (y_strides[0], -y_strides[1])
    b.step(
        "recurrent",
        values=values,
        flops=layer.flops_a_step * batch * seq_len,
        layer=layer._handle,
        batch=batch,
        seq_len=seq_len,
        x_strides=tuple(0 if axis is None else x_strides[axis] for axis in (batch_axis, time_axis)),
        y_strides=y_strides,
    )
    if y is None:
        y = b.reshape(_merged(b, finals[0], plan.directions, node.attr("merge")), plan.y)
    return [y, *(b.reshape(final, shape) for final, shape in zip(finals, plan.finals))]


def _merged(b: Builder, h_n: Value, directions: int, merge: str) -> Value:
    """The final h of the directions of the last layer, as one."""
    parts = [h_n.index(0, h_n.shape[0] - directions + k) for k in range(directions)]
    if directions == 1:
        return parts[0]
    if merge == "concat":
        return joined(b, parts, 1)
    y = b.binary("mul" if merge == "mul" else "add", *parts)
    return b.activate(("affine", 0.5, 0.0), y) if merge == "ave" else y


def _recurrent_by_call(b: Builder, layer: Recurrent, x: Values, plan: Any) -> Values:
    outputs = [b.held(plan.y, F32), *(b.held(shape, F32) for shape in plan.finals)]
    present = [k for k, value in enumerate(x) if value is not None]

    def call(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        inputs: list[Any] = [None] * len(x)
        for k, array in zip(present, arrays):
            inputs[k] = array
        return layer.run_node(inputs)

    b.host(call, [x[k] for k in present], outputs)
    return outputs


def _embedding(b: Builder, node: Node, layer: Embedding, x: Values) -> Values:
    y = b.held((*x[0].shape, layer.node.weights["weight"].shape[1]), F32)
    mask = b.held(x[0].shape, bool)
    b.host(lambda ids: layer.run_node([ids]), [x[0]], [y, mask])
    return [y, mask]


def _masking(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    y, mask = b.held(x[0].shape, F32), b.held(x[0].shape[:-1], bool)
    b.host(lambda a: layer.run_node([a]), [x[0]], [y, mask])
    return [y, mask]


def _layer_norm(b: Builder, node: Node, layer: LayerNorm, x: Values) -> Values:
    n = layer.row_size(x[0].shape)
    extra = {key: known(b, array) for key, array in (("b", layer.weight), ("c", layer.bias)) if array is not None}
    return [b.rows("layer_norm", x[0], n, value=node.attr("eps"), **extra)]


def _batch_norm(b: Builder, node: Node, layer: BatchNorm, x: Values) -> Values:
    axis = 1 if node.attr("channels_first") and x[0].ndim > 1 else x[0].ndim - 1
    n = len(layer._scale)
    if x[0].ndim == 0 or x[0].shape[axis] != n:
        raise ShapeError(f"{node.name!r} takes arrays whose axis {axis} is {n}, got shape {x[0].shape}")
    order = [k for k in range(x[0].ndim) if k != axis] + [axis]
    rows = b.ordered(x[0], order).transpose(order)
    y = b.rows("scale_shift", rows, n, b=known(b, layer._scale), c=known(b, layer._shift))
    return [y.transpose(inverse(order))]


def _activation(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    name, alpha, _ = activation(node.attr("activation"))
    if name in ROW_ACTIVATIONS:
        return [softmax_axis(b, x[0], int(alpha), name == "log_softmax")]
    return [b.activate(node.attr("activation"), x[0])]


def _stack(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    parts = [value for value in x if value is not None]
    if len({part.shape for part in parts}) > 1:
        raise ShapeError(
            f"{node.name!r} stacks shapes {', '.join(str(part.shape) for part in parts)}; they must be one"
        )
    return [joined(b, [b.floats(value).unsqueeze(0) for value in parts], 0)]


def _unstack(b: Builder, node: Node, layer: Any, x: Values) -> Values:
    if x[0].shape[:1] != (len(node.outputs),):
        raise ShapeError(f"{node.name!r} takes {len(node.outputs)} parts from shape {x[0].shape}")
    return [b.floats(x[0]).index(0, k) for k in range(x[0].shape[0])]


LOWERINGS: dict[str, Lowering] = {
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn": _recurrent,
    "dense": _dense,
    "embedding": _embedding,
    "masking": _masking,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "activation": _activation,
    "stack": _stack,
    "unstack": _unstack,
}
