"""From a whole model to one that carries its state from call to call: spec in, spec out.

A stream calls ``Streamed.spec`` with the next steps and the states of the call before.  However the steps of a sequence
are cut, the outputs, joined along time, have the bits that the whole model gives for the whole sequence.

A model that declares states has them paired (:mod:`fastrnn.graph.state_pairs`).  In any other, time is followed from
the inputs on (:mod:`fastrnn.graph.follow_time`), and what reads earlier steps gets states of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UnsupportedError
from ..spec import GATES, OPS, ModelSpec, Tensor
from .follow_time import Follower, StreamState, fixed_batch, followed_time, sizes_of
from .optimize import drop_dead, optimize
from .state_pairs import axis_of_rows, batch_axes, hint, paired, paired_by_name, refuse_backwards

SAME_VALUES = (
    "identity", "expand", "reshape", "squeeze", "unsqueeze", "transpose", "slice", "gather", "cast", "tile", "split",
    "flatten", "concat", "stack",
)  # fmt: skip
"""Nodes that make zeros of zeros."""


@dataclass(frozen=True)
class Streamed:
    """A spec that takes ``inputs``, then the states, and gives ``outputs``, then the states.

    ``time_axis`` says for each of ``inputs`` and ``outputs`` which axis is time; None: it has no steps, as the frame of
    a model that takes one a call, or the output of the last step so far.  ``batch_axis`` says which is the batch; -1:
    it has none, so the rows take turns or, of an input, share it.
    """

    spec: ModelSpec
    states: tuple[StreamState, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    time_axis: dict[str, int | None]
    batch_axis: dict[str, int]


def streamed(spec: ModelSpec, states: Mapping[str, str] | None = None) -> Streamed:
    """A model that carries its state from call to call.

    Parameters
    ----------
    spec : ModelSpec
    states : dict, optional
        ``{output: input}``: the output of a call that is the input of the next one.  Default: paired by what they feed
        and come from, by name and by shape.

    Raises
    ------
    UnsupportedError
        The model needs steps that come later, or carries nothing; or which inputs are states is not certain.
    """
    spec = _typed(_without_options(spec))
    graph = _without_zeros(optimize(spec))
    pairs = paired(graph, states)
    followed = followed_time(graph, pairs)
    if not pairs and not followed.complete:
        pairs = paired_by_name(graph, by_shape=not followed.has_layers)
        if not pairs:
            raise UnsupportedError(followed.refusal() + hint(graph))
    if pairs and states is None and followed.has_layers and not followed.complete and not followed.fixed:
        raise UnsupportedError(followed.refusal())
    declared = {t.name: t for t in graph.inputs}
    own = [_own_state(declared[i], o, axis) for (i, o), axis in zip(pairs.items(), batch_axes((spec, graph), pairs))]
    if followed.complete and followed.own == set(pairs):
        return _assembled(followed.written(), [*own, *followed.states], followed.time_axis(), followed.row_axis)
    refuse_backwards(graph, pairs)
    rows = {t.name: _frame_rows(spec, graph, t) for t in graph.inputs} | {s.input: s.batch_axis for s in own}
    for name, axis in rows.items():
        size = 1 if axis < 0 else (declared[name].shape or ())[axis]
        if size not in (None, 1):
            raise UnsupportedError(fixed_batch(name, size, axis))
    frames = Follower(graph, {}, set(pairs), rows)
    if frames.problems:
        raise UnsupportedError(frames.refusal())
    return _assembled(graph, own, frames.time_axis(), frames.row_axis)


def _frame_rows(spec: ModelSpec, graph: ModelSpec, tensor: Tensor) -> int:
    """The batch of an input that takes a frame a call: what the layers say, or else the first axis."""
    told = next((axis for form in (spec, graph) if (axis := axis_of_rows(form, tensor.name)) >= 0), -1)
    return told if told >= 0 or (tensor.shape or (0,))[0] not in (None, 1) else 0


def _own_state(tensor: Tensor, output: str, batch_axis: int) -> StreamState:
    shape = tensor.shape or ()
    if batch_axis < 0:
        rest: tuple[int | None, ...] = tuple(1 if n is None else n for n in shape)
    else:
        rest = (*shape[:batch_axis], *shape[batch_axis + 1 :])
    return StreamState(tensor.name, output, rest, batch_axis, tensor.dtype)


def _assembled(
    spec: ModelSpec, states: Sequence[StreamState], time_axis: Mapping[str, int | None], batch_axis: Mapping[str, int]
) -> Streamed:
    """Inputs and outputs in order, with a free axis for time."""

    def free(tensor: Tensor) -> Tensor:
        axis = time_axis[tensor.name]
        if axis is None or tensor.shape is None:
            return tensor
        return replace(tensor, shape=tuple(None if k == axis else n for k, n in enumerate(tensor.shape)))

    taken, given = {s.input for s in states}, {s.output for s in states}
    inputs = [free(t) for t in spec.inputs if t.name not in taken]
    outputs = [free(t) for t in spec.outputs if t.name not in given]
    if spec.nested_state:
        outputs = outputs[:1]  # the others are the states
    declared = {t.name: t for t in (*spec.inputs, *spec.outputs)}
    spec.inputs[:] = [*inputs, *(declared[s.input] for s in states)]
    spec.outputs[:] = [*outputs, *(declared[s.output] for s in states)]
    spec.nested_state = False
    spec.validate()
    names = [t.name for t in (*inputs, *outputs)]
    times, rows = {name: time_axis[name] for name in names}, {name: batch_axis[name] for name in names}
    return Streamed(spec, tuple(states), tuple(inputs), tuple(outputs), times, rows)


def _without_options(spec: ModelSpec) -> ModelSpec:
    """Inputs without a shape that nodes need not have are left out: the states, mask and lengths of a bare layer."""
    optional = {t.name for t in spec.inputs if t.shape is None}
    for node in spec.all_nodes():
        kinds = [*OPS[node.op].inputs, *["x*"] * len(node.inputs)]
        optional -= {name for name, kind in zip(node.inputs, kinds) if not kind.endswith("?")}
    if not optional:
        return spec
    nodes = [replace(n, inputs=tuple("" if name in optional else name for name in n.inputs)) for n in spec.nodes]
    return replace(spec, nodes=nodes, inputs=[t for t in spec.inputs if t.name not in optional])


def _typed(spec: ModelSpec) -> ModelSpec:
    """Inputs without a shape get that which the layers behind them need, where these tell."""
    return replace(spec, inputs=[replace(t, shape=sizes_of(spec, t) or t.shape) for t in spec.inputs])


def _without_zeros(spec: ModelSpec) -> ModelSpec:
    """Initial states of zeros are left out: that is what a layer without them begins with."""
    for node in spec.nodes:
        count = 3 if node.op == "lstm" else 2
        if node.op in GATES and all(not name or _is_zero(spec, name) for name in node.inputs[1:count]):
            node.inputs = (node.inputs[0], *[""] * len(node.inputs[1:count]), *node.inputs[count:])
    drop_dead(spec, set())
    return spec


def _is_zero(spec: ModelSpec, name: str) -> bool:
    """Whether a tensor certainly holds zeros."""
    if name in spec.constants:
        return not np.any(spec.constants[name])
    node = next((node for node in spec.nodes if name in node.outputs), None)
    if node is None or node.op == "fill":
        return node is not None and node.attr("value") == 0
    sources = node.inputs if node.op in ("concat", "stack") else node.inputs[:1]
    return node.op in SAME_VALUES and all(_is_zero(spec, source) for source in sources)
