"""Nodes that take, drop, add or join steps, as :mod:`fastrnn.graph.ragged_rules` has those that read along time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .. import operators
from ..spec import Node
from .histories import END
from .ragged import Given, Made, Ragged, Steps, along, less, no_more
from .time_axis import UnfollowedError

UNKNOWN_NUMBERS = "takes steps by numbers that are not known"


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
    return [less(rest, {axis} if indices.ndim == 0 else set(), keepdims=False)]


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


PARTS: dict[str, Callable[[Ragged, Node, Given], Made | None]] = {
    **dict.fromkeys(("conv", "conv_transpose", "pool"), _window),
    "gather": _gather,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
}
"""``rule(graph, node, steps of its inputs)``, for each kind of node here."""
