"""How each kind of node that reads along time treats sequences of different lengths, so that each gives what it gives
alone: one function for each kind.

A function writes the nodes that replace the node, and returns the steps of its outputs, or None where time is along
another axis than the one that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..spec import GATES, ROW_ACTIVATIONS, Node, activation
from .ragged import Given, Made, Ragged, Steps, along, less, no_more
from .ragged_parts import PARTS
from .time_axis import FUTURE, RULES, UnfollowedError, axes_of


def _recurrent(w: Ragged, node: Node, given: Given) -> Made | None:
    name = node.inputs[0]
    rank = len(w.shape(name))
    axis = 0 if rank == 2 or not node.attr("batch_first") else 1
    steps = along(given[0], axis)
    if steps is None or node.attr("unbatched"):
        return None
    w.layers.add(node.name)
    w.whole(name, steps)
    if rank != 3 or len(given[0]) > 1:
        raise UnfollowedError("runs over a single sequence, so its input has no axis for several")
    if w.batch_axis(name) != 1 - axis:
        raise UnfollowedError("runs over the sequences of a batch")
    count = 2 if node.op == "lstm" else 1
    names = [*node.inputs, *[""] * (count + 3 - len(node.inputs))]
    states, (mask, lengths) = names[1 : count + 1], names[count + 1 :]
    no_more(given[1 : count + 1])
    if lengths:
        raise UnfollowedError(f"takes lengths of its own, from {lengths!r}")
    times = (steps,) if node.attr("return_sequences") else ()
    if mask:
        mask, lengths = _masked(w, node, mask, given[count + 1], steps), ""
    else:
        lengths = steps.lengths
        if times:
            w.is_filled(node.outputs[0], steps, 0)
    w.put(replace(node, inputs=(name, *states, mask, lengths)))
    return [times, *[()] * (len(node.outputs) - 1)]


def _masked(w: Ragged, node: Node, mask: str, times: Sequence[Steps], steps: Steps) -> str:
    """A mask that also ends each sequence."""
    ours = along(times, 1)
    if ours is None or replace(ours, axis=steps.axis) != steps:
        raise UnfollowedError("takes a mask that does not come with its steps")
    if node.attr("reverse_output") or (node.attr("zero_output_for_mask") and not node.attr("return_sequences")):
        raise UnfollowedError("gives what it has at the end of a masked sequence")
    return w.filled(mask, ours, False)


def _least(dtype: np.dtype) -> Any:
    return -np.inf if dtype.kind == "f" else False if dtype.kind == "b" else np.iinfo(dtype).min


def _greatest(dtype: np.dtype) -> Any:
    return np.inf if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).max


NEUTRAL: dict[str, Callable[[np.dtype], Any]] = {
    **dict.fromkeys(("sum", "mean", "l1", "l2", "sum_square", "log_sum", "any"), lambda dtype: 0),
    **dict.fromkeys(("prod", "all"), lambda dtype: 1),
    **dict.fromkeys(("max", "log_sum_exp"), _least),
    "min": _greatest,
}
"""The number that changes no result of a reduction."""


def _reduce(w: Ragged, node: Node, given: Given) -> Made | None:
    name, (times, *_) = node.inputs[0], given
    shape = w.shape(name)
    axes = axes_of(range(len(shape)) if node.attr("axes") is None else node.attr("axes"), len(shape))
    over = [steps for steps in times if steps.axis in axes]
    if not over:
        return None
    if len(over) > 1:
        raise UnfollowedError("reduces two axes of time")
    (steps,), function = over, node.attr("function")
    if w.batch_axis(name) in axes:
        raise UnfollowedError("joins the sequences of a batch")
    x = w.filled(name, steps, NEUTRAL[function](w.dtype(name)))
    if function == "mean":
        _mean(w, node, x, steps, axes)
    else:
        w.put(replace(node, inputs=(x,)))
    return [less([t for t in times if t is not steps], axes, node.attr("keepdims"))]


def _mean(w: Ragged, node: Node, x: str, steps: Steps, axes: set[int]) -> None:
    """The sum of a sequence, divided by its own number of elements."""
    name = node.inputs[0]
    shape, batch = w.shape(name), w.batch_axis(name)
    others = [shape[k] for k in axes if k != steps.axis]
    if w.dtype(name).kind != "f" or not all(map(w.is_fixed, others)):
        raise UnfollowedError("takes the mean of what the model does not say the number of")
    rank = len(shape) if node.attr("keepdims") else len(shape) - len(axes)
    at = batch if node.attr("keepdims") else batch - sum(k < batch for k in axes)
    total = w.add("reduce", f"{node.name}/sum", (x,), **{**node.attrs, "function": "sum"})
    counts = w.derived(steps.lengths, ("mul", int(np.prod(others)))) if others else steps.lengths
    counts = w.add("cast", f"{node.name}/counts", (counts,), dtype="float32")
    counts = w.aligned_lengths(counts, rank, at)
    w.put(Node("binary", node.name, (total, counts), node.outputs, {"function": "div"}))


def _argmax(w: Ragged, node: Node, given: Given) -> Made | None:
    name, (times, *_) = node.inputs[0], given
    axis = node.attr("axis") % len(w.shape(name))
    steps = along(times, axis)
    if steps is None:
        return None
    if node.attr("last"):
        raise UnfollowedError("takes the last of the largest steps")
    w.need(steps, 1, node.name)
    outside = (_least if node.attr("largest") else _greatest)(w.dtype(name))
    w.put(replace(node, inputs=(w.filled(name, steps, outside),)))
    return [less([t for t in times if t is not steps], {axis}, node.attr("keepdims"))]


def _softmax(w: Ragged, node: Node, given: Given) -> Made | None:
    name, rank = node.inputs[0], len(w.shape(node.inputs[0]))
    if node.op == "softmax":
        axis = node.attr("axis")
    else:
        kind, alpha, _ = activation(node.attr("activation"))
        if kind not in ROW_ACTIVATIONS:
            return None
        axis = int(alpha)
    steps = along(given[0], axis % max(rank, 1))
    if steps is None:
        return None
    w.put(replace(node, inputs=(w.filled(name, steps, -np.inf),)))
    return [given[0]]


def _cumsum(w: Ragged, node: Node, given: Given) -> Made | None:
    name = node.inputs[0]
    steps = along(given[0], node.attr("axis") % len(w.shape(name)))
    if steps is None:
        return None
    w.whole(name, steps)
    w.put(replace(node, inputs=(w.filled(name, steps, 0) if node.attr("reverse") else name,)))
    return [given[0]]


def _matmul(w: Ragged, node: Node, given: Given) -> Made | None:
    """Sums over time end with each sequence; rows and columns do not meet."""
    shapes = [w.shape(name) for name in node.inputs]
    if min(map(len, shapes)) < 2:
        raise UnfollowedError("multiplies a vector")
    rank = max(map(len, shapes))
    summed = [along(times, len(shape) - k) for times, shape, k in zip(given, shapes, (1, 2))]
    names = list(node.inputs)
    if any(summed):
        left, right = summed
        if left is None or right is None or left.lengths != right.lengths:
            raise UnfollowedError("sums over steps that do not come at the same time")
        names = [w.filled(name, steps, 0) for name, steps in zip(names, (left, right))]
    kept = [
        tuple(replace(t, axis=t.axis + rank - len(shape)) for t in times if t is not steps)
        for times, steps, shape in zip(given, summed, shapes)
    ]
    for times, others, shape in zip(kept, kept[::-1], shapes[::-1]):
        for t in times:
            at = t.axis - rank + len(shape)
            if t.axis < rank - 2 and at >= 0 and shape[at] != 1 and along(others, t.axis) != t:
                raise UnfollowedError("multiplies steps that do not come at the same time")
    w.put(replace(node, inputs=tuple(names)))
    return [tuple({t.axis: t for times in kept for t in times}.values())]


RAGGED: dict[str, Callable[[Ragged, Node, Given], Made | None]] = {
    **dict.fromkeys(tuple(GATES), _recurrent),
    **PARTS,
    **dict.fromkeys(("softmax", "activation"), _softmax),
    "reduce": _reduce,
    "argmax": _argmax,
    "cumsum": _cumsum,
    "matmul": _matmul,
}
"""``rule(graph, node, steps of its inputs)``, for each kind of node that may read along time."""

JOINED = ("binary", "where", "concat", "gather_elements", "stack")
"""Kinds of nodes whose inputs are broadcast to one shape."""


def step_by_step(w: Ragged, node: Node, given: Given) -> Made:
    """The steps of the outputs of a node that treats each step by itself."""
    if node.op not in RULES:
        raise UnfollowedError("is not known to treat each step by itself")
    outputs: Made = [() for _ in node.outputs]
    for part in _one_by_one(w, node, given):
        try:
            made: Any = RULES[node.op](w, node, part)
        except UnfollowedError as reason:
            cause = next(
                (f", which {steps.cause!r} joined with what is in a step" for steps in part if steps and steps.cause),
                "",
            )
            raise UnfollowedError(
                f"works across the steps of a sequence{cause}" if str(reason) == FUTURE else str(reason)
            ) from None
        for k, steps in enumerate(made if isinstance(made, list) else [made]):
            if isinstance(steps, Steps) and k < len(outputs):
                outputs[k] = (*outputs[k], _undivided(w, node, steps) if steps.inner > 1 else steps)
    return outputs


def _undivided(w: Ragged, node: Node, steps: Steps) -> Steps:
    """Elements of steps that became steps themselves, each sequence some times as many."""
    size = steps.size * steps.inner
    if w.shape(node.outputs[0])[steps.axis] != size:
        raise UnfollowedError("makes one axis of the sequences, time and what comes after it")
    lengths = w.derived(steps.lengths, ("mul", steps.inner))
    return replace(steps, size=size, inner=1, lengths=lengths, cause=node.name)


def _one_by_one(w: Ragged, node: Node, given: Given) -> list[list[Steps | None]]:
    """The inputs' steps, one axis of time after the other."""
    if node.op in JOINED:
        ranks = [len(w.shape(name)) if name else 0 for name in node.inputs]
        places = sorted({t.axis - rank for times, rank in zip(given, ranks) for t in times})
        return [[along(times, place + rank) for times, rank in zip(given, ranks)] for place in places]
    first, *others = given
    if first:
        return [[steps, *(times[0] if times else None for times in others)] for steps in first]
    return [[None, *(times[0] if times else None for times in others)]]
