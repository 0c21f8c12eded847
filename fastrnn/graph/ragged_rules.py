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

from .. import operators
from ..spec import GATES, ROW_ACTIVATIONS, Node, activation
from .histories import END
from .ragged import Ragged, Steps, moved
from .time_axis import FUTURE, RULES, UnfollowedError, axes_of

Given = Sequence[tuple[Steps, ...]]
Made = list[tuple[Steps, ...]]

UNKNOWN_NUMBERS = "takes steps by numbers that are not known"


def along(times: Sequence[Steps], axis: int) -> Steps | None:
    """The steps that are along an axis."""
    return next((steps for steps in times if steps.axis == axis), None)


def no_more(times: Sequence[Sequence[Steps]]) -> None:
    if any(times):
        raise UnfollowedError("takes more than one tensor of steps")


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
    return [_less([t for t in times if t is not steps], axes, node.attr("keepdims"))]


def _less(times: Sequence[Steps], axes: set[int], keepdims: bool) -> tuple[Steps, ...]:
    return tuple(times) if keepdims else moved(times, lambda axis: axis - sum(k < axis for k in axes))


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
    return [_less([t for t in times if t is not steps], {axis}, node.attr("keepdims"))]


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


def _from_which_end(w: Ragged, name: str, steps: Steps, number: int, longer: int) -> tuple[bool, int]:
    """Whether a place is counted from the end of a sequence, and which it is."""
    size, more = steps.size, (w.longer.shape(name) or ())[steps.axis]
    if number == longer:
        return number < 0, number
    if more is None or longer - more != number - size:
        raise UnfollowedError(UNKNOWN_NUMBERS)
    return True, number - size


def _gather(w: Ragged, node: Node, given: Given) -> Made | None:
    name = node.inputs[0]
    axis = node.attr("axis") % len(w.shape(name))
    steps = along(given[0], axis)
    if steps is None:
        return None
    no_more(given[1:])
    w.whole(name, steps)
    indices, longer = (w.value(node.inputs[1], facts) for facts in (w.facts, w.longer))
    if indices is None or longer is None or indices.ndim > 1:
        raise UnfollowedError(UNKNOWN_NUMBERS)
    places = [_from_which_end(w, name, steps, int(n), int(m)) for n, m in zip(indices.ravel(), longer.ravel())]
    numbers = [number for _, number in places]
    rest = [t for t in given[0] if t is not steps]
    if not any(from_end for from_end, _ in places):
        w.need(steps, max(numbers, default=-1) + 1, node.name)
        w.put(node)
    elif all(from_end and number < 0 for from_end, number in places):
        picked = w.from_end(name, steps, numbers, node.name)
        kind, attrs = ("squeeze", {"axes": [axis]}) if indices.ndim == 0 else ("identity", {})
        w.put(Node(kind, node.name, (picked,), node.outputs, attrs))
    else:
        raise UnfollowedError("takes steps from both ends")
    return [_less(rest, {axis} if indices.ndim == 0 else set(), keepdims=False)]


def _slice(w: Ragged, node: Node, given: Given) -> Made | None:
    name, rank = node.inputs[0], len(w.shape(node.inputs[0]))
    names = [*node.inputs[1:], "", ""][:4]
    bounds, longer = ([w.value(n, facts) if n else None for n in names] for facts in (w.facts, w.longer))
    if any(n and value is None for n, value in zip(names, bounds)):
        raise UnfollowedError(UNKNOWN_NUMBERS)
    parts = operators.slices(rank, *bounds)  # type: ignore[arg-type]
    parts_longer = operators.slices(rank, *longer)  # type: ignore[arg-type]
    over = [t for t in given[0] if parts[t.axis] != slice(None)]
    no_more(given[1:])
    if not over:
        return None
    if len(over) > 1:
        raise UnfollowedError("slices two axes of time")
    (steps,) = over
    w.whole(name, steps)
    cut, rest = parts[steps.axis], [t for t in given[0] if t is not steps]
    others = [(k, part) for k, part in enumerate(parts) if k != steps.axis and part != slice(None)]
    start, end = (
        None if a is None else _from_which_end(w, name, steps, a, b)
        for a, b in zip((cut.start, cut.stop), (parts_longer[steps.axis].start, parts_longer[steps.axis].stop))
    )
    step = 1 if cut.step is None else cut.step
    open_end = end is None or end[1] >= 2**31 - 1 or end == (True, 0)
    first, last = (False, 0) if start is None else start, (True, 0) if open_end or end is None else end
    size = w.shape(node.outputs[0])[steps.axis]
    if step == -1 and end is None and (start is None or start == (True, -1) or first[1] >= 2**31 - 1):
        _sliced(w, node, w.reversed(name, steps), others)
        return [given[0]]
    if first[0] and first[1] < 0 and step == 1 and last[0]:
        picked = w.from_end(name, steps, range(first[1], last[1]), node.name)
        _sliced(w, node, picked, others)
        return [tuple(rest)]
    if first[0] or step < 1 or (step > 1 and not last[0]):
        raise UnfollowedError("takes steps from the middle of a sequence")
    begin = first[1]
    if not last[0] and last[1] - begin == 1:
        w.need(steps, last[1], node.name)
        w.put(node)
        return [tuple(rest)]
    more: list[tuple[str, int]] = [("add", last[1])] if last[0] else [("min", last[1])]
    more += [("add", step - 1 - begin), ("max", step - 1), ("div", step)]
    w.put(node)
    return [(*rest, replace(steps, size=size, lengths=w.derived(steps.lengths, *more)))]


def _sliced(w: Ragged, node: Node, name: str, others: Sequence[tuple[int, slice]]) -> None:
    """The parts of a slice along the other axes."""
    if not others:
        w.put(Node("identity", node.name, (name,), node.outputs))
        return
    whole = [(part.start or 0, END if part.stop is None else part.stop, part.step or 1) for _, part in others]
    if any(step < 0 for _, _, step in whole):
        raise UnfollowedError("slices time and another axis backwards")
    starts, ends, steps = (w.number(numbers) for numbers in zip(*whole))
    w.put(replace(node, inputs=(name, starts, ends, w.number([k for k, _ in others]), steps)))


def _window(w: Ragged, node: Node, given: Given) -> Made | None:
    """A convolution or a pool: what its windows see beyond a sequence is the padding that they would see there."""
    name, times = node.inputs[0], given[0]
    over = [t for t in times if t.axis >= 2]
    if not over:
        return None
    if len(times) > 1:
        raise UnfollowedError("runs over two axes of time")
    (steps,) = over
    w.whole(name, steps)
    weight = node.weights.get("weight")
    kernel = tuple(node.attr("kernel")) if weight is None else weight.shape[2:]
    strides, begins, ends, dilations = operators.window(node, kernel)
    k = steps.axis - 2
    stride, begin, end, span = strides[k], begins[k], ends[k], (kernel[k] - 1) * dilations[k] + 1
    if span > 1 or stride > 1:
        w.windows.add(node.name)
    is_max = node.op == "pool" and node.attr("function") == "max"
    is_mean = node.op == "pool" and not is_max
    ceil_mode = node.op == "pool" and node.attr("ceil_mode")
    if is_mean and (ceil_mode or (end and not node.attr("count_include_pad"))):
        raise UnfollowedError("divides the last windows by the steps that they have")
    if ceil_mode and stride > span - end:
        raise UnfollowedError("may drop the window at the end (ceil_mode)")
    if node.op == "conv_transpose":
        extra = (node.attr("output_padding") or [0] * len(kernel))[k]
        more = [("add", -1), ("mul", stride), ("add", span + extra - begin - end), ("max", 0)]
    else:
        more = [("add", begin + end - span + stride + (stride - 1) * ceil_mode), ("max", 0), ("div", stride)]
    reads_beyond = end > 0 or ceil_mode or node.op == "conv_transpose"
    w.put(replace(node, inputs=(w.filled(name, steps, -np.inf if is_max else 0) if reads_beyond else name,)))
    size = w.shape(node.outputs[0])[steps.axis]
    return [(replace(steps, size=size, lengths=w.derived(steps.lengths, *more)),)]


def _pad(w: Ragged, node: Node, given: Given) -> Made | None:
    name, rank, times = node.inputs[0], len(w.shape(node.inputs[0])), given[0]
    pads, value, axes = ([*node.inputs[1:], "", "", ""])[:3]
    numbers, which = w.value(pads), w.value(axes) if axes else None
    if numbers is None or w.depends(pads) or (axes and which is None):
        raise UnfollowedError("pads by numbers that are not known")
    widths = operators.pad_widths(rank, numbers, which)
    over = [t for t in times if widths[t.axis] != (0, 0)]
    if not over:
        return None
    if len(over) > 1:
        raise UnfollowedError("pads two axes of time")
    (steps,) = over
    w.whole(name, steps)
    begin, end = widths[steps.axis]
    mode, x = node.attr("mode"), name
    if mode == "constant":
        if end > 0:
            outside = w.spec.constants.get(value) if value else np.float32(0)
            if outside is None:
                raise UnfollowedError("pads with a number that is not known")
            x = w.filled(name, steps, outside.reshape(()).item())
    elif end > 0 or mode not in ("reflect", "edge"):
        raise UnfollowedError(f"continues the sequence at its end ({mode})")
    else:
        w.need(steps, begin + (mode == "reflect") if begin > 0 else 0, node.name)
    w.put(replace(node, inputs=(x, *node.inputs[1:])))
    lengths = w.derived(steps.lengths, ("add", begin + end), ("max", 0))
    size = w.shape(node.outputs[0])[steps.axis]
    return [(*(t for t in times if t is not steps), replace(steps, size=size, lengths=lengths))]


def _concat(w: Ragged, node: Node, given: Given) -> Made | None:
    """Along time: what follows a sequence begins behind its own last step."""
    axis = node.attr("axis") % len(w.shape(node.inputs[0]))
    found = [along(times, axis) for times in given]
    if not any(found):
        return None
    if any(len(times) > (steps is not None) for times, steps in zip(given, found)):
        raise UnfollowedError("joins tensors with two axes of time")
    sizes = [w.shape(name)[axis] for name in node.inputs]
    if not all(steps is not None or w.is_fixed(size) for steps, size in zip(found, sizes)):
        raise UnfollowedError("puts steps of a number that is not known behind others")
    result, before, steps = node.inputs[0], sizes[0], found[0]
    for name, size, following in zip(node.inputs[1:], sizes[1:], found[1:]):
        joined = w.add("concat", f"{node.name}/joined", (result, name), axis=axis)
        like = node.outputs[0]
        if steps is None:
            result = joined
            more = None if following is None else w.derived(following.lengths, ("add", before))
        else:
            result = w.closed_up(joined, like, steps, name, axis)
            more = w.joined(steps.lengths, size if following is None else following.lengths)
        before += size
        known = following if steps is None else steps
        steps = None if known is None or more is None else replace(known, size=before, lengths=more)
    w.put(Node("identity", node.name, (result,), node.outputs))
    assert steps is not None
    return [(steps,)]


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
    **dict.fromkeys(("conv", "conv_transpose", "pool"), _window),
    **dict.fromkeys(("softmax", "activation"), _softmax),
    "reduce": _reduce,
    "argmax": _argmax,
    "cumsum": _cumsum,
    "gather": _gather,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
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
