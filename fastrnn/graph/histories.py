"""What a node that reads earlier steps carries from call to call, as nodes around it.

Recurrent nodes carry h and c, windows the steps that the next ones begin with, sums over time the sum so far.  A
function here returns the times of the node's outputs, having written the nodes that replace it, or None where time is
along another axis than the one that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from .. import operators
from ..spec import GATES, Node
from .time_axis import FUTURE, RULES, Given, Kind, Of, Sizes, Time, UnfollowedError

END = np.iinfo(np.int64).max
DIRECTIONS = {"reverse": "runs backwards", "bidirectional": "runs in both directions"}


class Draft(Sizes, Protocol):
    """The graph that is being written, and what is known of the one that is read."""

    reached: set[str]
    """Recurrent nodes, and windows of more than one step, that run over time."""

    def problem(self, node: str, reason: str) -> None:
        """Remember why a node cannot run step by step."""

    def put(self, node: Node) -> None:
        """Write a node."""

    def add(self, op: str, name: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Write a new node of one output, whose name it returns."""

    def fresh(self, name: str) -> str:
        """A name for a new tensor."""

    def number(self, value: Any) -> str:
        """A constant of whole numbers."""

    def batch_axis(self, name: str) -> int:
        """The axis that is the batch, -1 where none certainly is."""

    def value(self, name: str) -> np.ndarray | None:
        """The whole numbers of a small tensor, None where they are not known."""

    def initial(self, name: str) -> np.ndarray | None:
        """The elements of a tensor that depends on nothing but sizes, for a batch of at most 2; else None."""

    def state(
        self,
        name: str,
        like: str,
        shape: Sequence[int],
        batch_axis: int,
        varies: int | None = None,
        first: int = 0,
        initial: np.ndarray | None = None,
    ) -> tuple[str, str]:
        """A new state of the dtype of ``like``, at first the same for all rows: its input's and its output's name."""

    def readers(self, name: str) -> list[Node] | None:
        """The nodes that read a tensor; None where it is an output too."""

    def sized(self, size: int) -> str:
        """An input with an axis of this size."""

    def is_free(self, size: int) -> bool:
        """Whether the caller chooses a size that is not the number of steps."""


def settle(d: Draft, time: Time) -> Time:
    """The time of a tensor whose steps beyond the end are needed."""
    if time.tail:
        d.problem(time.cause, f"is padded at the end, so it {FUTURE}")
    return replace(time, tail=0)


def whole_axis(d: Draft, name: str, time: Time) -> None:
    if d.shape(name)[time.axis] != time.size:
        raise UnfollowedError("has one axis for time and something else")


def _recurrent(d: Draft, node: Node, given: Given) -> list[Of] | None:
    time, shape = given[0], d.shape(node.inputs[0])
    along = 0 if len(shape) == 2 or not node.attr("batch_first") else 1
    if node.attr("unbatched") or not isinstance(time, Time) or time.axis != along:
        return None
    time = settle(d, time)
    whole_axis(d, node.inputs[0], time)
    d.reached.add(node.name)
    count = 2 if node.op == "lstm" else 1
    names = [*node.inputs, *[""] * (count + 3 - len(node.inputs))]
    kinds = [*given, *[None] * (count + 3 - len(given))]
    states, (mask, lengths) = names[1 : count + 1], names[count + 1 :]
    if node.attr("direction") != "forward":
        d.problem(node.name, f"{DIRECTIONS[node.attr('direction')]}, so it {FUTURE}")
    if lengths:
        d.problem(node.name, "takes lengths, which say where a sequence ends")
    if mask and kinds[count + 1] != replace(time, axis=1):
        d.problem(node.name, "takes a mask that does not come with its steps")
    outputs = [*node.outputs, "", ""][: count + 1]
    if not any(kind is Kind.STATE for kind in kinds[1 : count + 1]):
        hidden = node.weights["weight_hh_l0"]
        layers = node.attr("num_layers") * (2 if node.attr("direction") == "bidirectional" else 1)
        rows = shape[1 - along : 2 - along] if len(shape) == 3 else ()
        sizes = [hidden.shape[1], len(hidden) // 4]
        copies = []
        for k, size in enumerate(sizes[:count]):
            of = f"{node.name}.{'hc'[k]}"
            whole = (layers, *rows, size)
            begin = _initial(d, node, states[k], whole, bool(mask))
            states[k], new = d.state(of, node.inputs[0], whole, 1 if rows else -1, initial=begin)
            if outputs[k + 1]:
                copies.append((f"{of}/copy", (outputs[k + 1],), new))
            else:
                outputs[k + 1] = new
        repeats = mask and not node.attr("zero_output_for_mask")
        if repeats:
            outputs[0] = d.fresh(f"{node.name}/y")
        d.put(replace(node, inputs=(names[0], *states, mask, lengths), outputs=tuple(outputs)))
        for copy in copies:
            d.add("identity", *copy)
        if repeats:
            _repeat(d, node, along, outputs[0], states[0], mask)
    else:
        if mask and not (node.attr("zero_output_for_mask") and node.attr("return_sequences")):
            d.problem(node.name, "takes a mask beside a state that the caller carries")
        d.put(node)
    y: Of = time if node.attr("return_sequences") else Kind.LAST
    return [y, *[Kind.LAST] * count][: len(outputs)]


def _initial(d: Draft, node: Node, name: str, whole: Sequence[int], masked: bool) -> np.ndarray | None:
    """The state of shape ``whole`` that a layer begins a sequence with, for a small batch; None: zeros."""
    if not name:
        return None
    value = d.initial(name)
    if value is None or value.size % (whole[0] * whole[-1]):
        raise UnfollowedError("begins with a state that is computed from an input")
    value = value.reshape(whole[0], -1, whole[-1])
    if masked and np.any(value):
        raise UnfollowedError("begins with a state and takes a mask; masked steps in front give zeros")
    if len(whole) == 3 and d.is_free(whole[1]) and np.any(value != value[:, :1]):
        raise UnfollowedError("begins with a state that differs from row to row of the batch")
    return value if len(whole) == 3 else value[:, 0]


def _repeat(d: Draft, node: Node, along: int, y: str, h_0: str, mask: str) -> None:
    """Masked steps repeat the output before them; before the first real step of a call that is one of earlier calls."""
    name = node.name
    last = d.add("gather", f"{name}/h_0", (h_0, d.number(-1)), axis=0)
    real = d.add("cast", f"{name}/real", (mask,), dtype="int64")
    if node.attr("return_sequences"):
        last = d.add("unsqueeze", f"{name}/before", (last,), axes=[along])
        real = d.add("cumsum", f"{name}/count", (real,), axis=1)
        real = d.add("unsqueeze", f"{name}/rows", (real,), axes=[2])
        if along == 0:
            real = d.add("transpose", f"{name}/steps", (real,), perm=[1, 0, 2])
    else:
        real = d.add("reduce", f"{name}/count", (real,), axes=[1])
    real = d.add("cast", f"{name}/any", (real,), dtype="bool")
    d.add("where", f"{name}/repeated", (real, y, last), node.outputs[0])


def _window(d: Draft, node: Node, given: Given) -> list[Of] | None:
    """A convolution or a pool: the windows that end in this call need steps of earlier ones."""
    time, name = given[0], node.inputs[0]
    if not isinstance(time, Time) or time.axis < 2:
        return None
    weight = node.weights.get("weight")
    kernel = tuple(node.attr("kernel")) if weight is None else weight.shape[2:]
    strides, begins, ends, dilations = operators.window(node, kernel)
    k = time.axis - 2
    stride, begin, end = strides[k], begins[k] + time.zeros, ends[k]
    span = (kernel[k] - 1) * dilations[k] + 1
    whole_axis(d, name, time)
    if node.op == "conv_transpose":
        extra = node.attr("output_padding") or [0] * len(kernel)
        if (span, stride, begin, end, extra[k]) != (1, 1, 0, 0, 0):
            raise UnfollowedError("is a transposed convolution over time, which is not carried")
        d.put(node)
        return [time]
    if span > 1 or stride > 1:
        time = settle(d, time)
    if end and stride > 1:
        d.problem(node.name, f"is padded at the end, so it {FUTURE}")
    if node.op == "pool":
        if node.attr("ceil_mode") and stride > 1:
            d.problem(node.name, "makes a smaller window at the end (ceil_mode)")
        if begins[k] and (node.attr("function") == "max" or not node.attr("count_include_pad")):
            d.problem(node.name, "is padded, and pads of a pool are not carried")
    pads = [*begins, *ends]
    pads[k] = pads[k + len(kernel)] = 0
    new = replace(node, attrs={**node.attrs, "pads": pads})
    if node.op == "pool":
        new.attrs["ceil_mode"] = False if stride > 1 else node.attr("ceil_mode")
    if span > 1 or stride > 1 or begin:
        d.reached.add(node.name)
        new.inputs = (_with_history(d, node, time.axis, span, stride, begin),)
    d.put(new)
    clock = time.clock[0] * stride, time.clock[1] + time.clock[0] * (span - 1 - begin)
    size = d.shape(node.outputs[0])[time.axis]
    cause = node.name if end else time.cause
    return [Time(time.axis, size, clock=clock, tail=time.tail + (end if stride == 1 else 0), cause=cause)]


def _with_history(d: Draft, node: Node, axis: int, span: int, stride: int, begin: int) -> str:
    """The steps from the first one of the next window on; before the first call they are ``begin`` zeros.

    Where windows leave steps out, these count as steps of the window after them, in front.
    """
    name, gap = node.inputs[0], max(0, stride - span)
    fixed = stride == 1 and begin == span - 1
    shape = list(d.shape(name))
    shape[axis] = begin + gap
    old, new = d.state(f"{node.name}.history", name, shape, 0, None if fixed else axis, begin + gap)
    steps = d.add("concat", f"{node.name}/steps", (old, name), axis=axis)
    at = d.number([axis])
    if stride == 1 and span > 1:
        start = d.number([1 - span])
    else:
        length = d.add("shape", f"{node.name}/length", (steps,), start=axis, end=axis + 1)
        more = d.add("binary", f"{node.name}/more", (length, d.number([span + gap - stride])), function="sub")
        more = d.add("binary", f"{node.name}/some", (more, d.number([0])), function="max")
        windows = d.add("binary", f"{node.name}/windows", (more, d.number([stride])), function="div")
        start = d.add("binary", f"{node.name}/next", (windows, d.number([stride])), function="mul")
    d.add("slice", f"{node.name}/kept", (steps, start, d.number([END]), at), new)
    if not gap:
        return steps
    return d.add("slice", f"{node.name}/seen", (steps, d.number([gap]), d.number([END]), at))


def _gather(d: Draft, node: Node, given: Given) -> list[Of] | None:
    time = given[0]
    indices = d.value(node.inputs[1])
    if not isinstance(time, Time) or time.axis != node.attr("axis") % len(d.shape(node.inputs[0])):
        return None
    if indices is None or indices.size != 1 or indices.item() != -1:
        raise UnfollowedError("takes fixed steps")
    return _last(d, node, time)


def _last(d: Draft, node: Node, given: Time) -> list[Of]:
    """The last step so far, also where a call brings none."""
    time, name = settle(d, given), node.inputs[0]
    whole_axis(d, name, time)
    shape = list(d.shape(name))
    shape[time.axis] = 1
    old, new = d.state(f"{node.name}.last", name, shape, d.batch_axis(name))
    steps = d.add("concat", f"{node.name}/steps", (old, name), axis=time.axis)
    d.add("slice", f"{node.name}/kept", (steps, d.number([-1]), d.number([END]), d.number([time.axis])), new)
    d.put(replace(node, inputs=(steps, *node.inputs[1:])))
    return [Kind.LAST]


def _slice(d: Draft, node: Node, given: Given) -> list[Of] | None:
    time, name = given[0], node.inputs[0]
    if not isinstance(time, Time):
        raise UnfollowedError("slices by numbers that come step by step")
    rank = len(d.shape(name))
    bounds = [d.value(n) if n else None for n in [*node.inputs[1:], "", ""][:4]]
    if any(n and value is None for n, value in zip(node.inputs[1:], bounds)):
        raise UnfollowedError("slices by numbers that are not known")
    parts = operators.slices(rank, *bounds)  # type: ignore[arg-type]
    part = parts[time.axis]
    whole = d.shape(name)[time.axis] == time.size
    start, end, step = part.start or 0, part.stop, 1 if part.step is None else part.step
    open_end = end is None or end >= 2**31 - 1
    if step == 1 and start == 0 and open_end:
        return None
    if step == 1 and start == -1 and open_end and whole:
        return _last(d, node, time)
    others = [p for k, p in enumerate(parts) if k != time.axis and p != slice(None)]
    if step == 1 and start == 0 and not open_end and -time.tail <= end < 0 and whole and not others:
        d.put(Node("identity", node.name, (name,), node.outputs))
        return [replace(time, size=time.size + end, tail=time.tail + end)]
    raise UnfollowedError("takes fixed steps")


def _pad(d: Draft, node: Node, given: Given) -> list[Of] | None:
    time, name = given[0], node.inputs[0]
    pads, value, axes = ([*node.inputs[1:], "", "", ""])[:3]
    numbers, which = d.value(pads), d.value(axes) if axes else None
    if not isinstance(time, Time) or numbers is None or (axes and which is None):
        raise UnfollowedError("pads by numbers that are not known")
    widths = operators.pad_widths(len(d.shape(name)), numbers, which)
    begin, end = widths[time.axis]
    if (begin, end) == (0, 0):
        return None
    if end > 0 or node.attr("mode") != "constant":
        raise UnfollowedError(FUTURE)
    if end < 0 or begin < 0:
        raise UnfollowedError("takes fixed steps")
    if value and np.any(d.value(value)):
        raise UnfollowedError("pads with another number than 0")
    time = settle(d, time)
    whole_axis(d, name, time)
    widths[time.axis] = (0, 0)
    rest = d.number([*(a for a, _ in widths), *(b for _, b in widths)])
    size = time.size + begin
    if _only_windows(d, node.outputs[0], time.axis):
        d.put(replace(node, inputs=(name, rest)))
        return [replace(time, size=size, zeros=time.zeros + begin)]
    shape = list(d.shape(name))
    shape[time.axis] = begin
    old, new = d.state(f"{node.name}.zeros", name, shape, d.batch_axis(name), time.axis, begin)
    steps = d.add("concat", f"{node.name}/steps", (old, name), axis=time.axis)
    zero = d.number([0])
    d.add("slice", f"{node.name}/none", (steps, zero, zero, d.number([time.axis])), new)
    d.put(replace(node, inputs=(steps, rest)))
    return [replace(time, size=size, clock=(time.clock[0], time.clock[1] - begin * time.clock[0]))]


def _only_windows(d: Draft, name: str, axis: int) -> bool:
    """Whether nothing but windows over time reads a tensor."""
    readers = d.readers(name)
    for node in readers or ():
        if node.op == "transpose":
            rank = len(d.shape(name))
            perm = list(node.attr("perm") or reversed(range(rank)))
            if not _only_windows(d, node.outputs[0], perm.index(axis)):
                return False
        elif node.op not in ("conv", "pool") or axis < 2:
            return False
    return bool(readers)


def _cumsum(d: Draft, node: Node, given: Given) -> list[Of] | None:
    time, name = given[0], node.inputs[0]
    shape = list(d.shape(name))
    if not isinstance(time, Time) or time.axis != node.attr("axis") % len(shape):
        return None
    time = settle(d, time)
    whole_axis(d, name, time)
    if node.attr("reverse"):
        raise UnfollowedError(FUTURE)
    if node.attr("exclusive"):
        raise UnfollowedError("is an exclusive sum over time, which is not carried")
    shape[time.axis] = 1
    old, new = d.state(f"{node.name}.sum", name, shape, d.batch_axis(name))
    steps = d.add("concat", f"{node.name}/steps", (old, name), axis=time.axis)
    sums = d.add("cumsum", f"{node.name}/sums", (steps,), axis=time.axis)
    at, end = d.number([time.axis]), d.number([END])
    d.add("slice", f"{node.name}/kept", (sums, d.number([-1]), end, at), new)
    d.add("slice", node.name, (sums, d.number([1]), end, at), node.outputs[0])
    return [time]


def _reshape(d: Draft, node: Node, given: Given) -> list[Of] | None:
    """Time takes the length that is left, which may be 0, or another one than the model was made for."""
    name, wanted = node.inputs
    time = RULES["reshape"](d, node, given)
    assert isinstance(time, Time)
    before, after, numbers = d.shape(name), d.shape(node.outputs[0]), d.value(wanted)
    if numbers is not None and numbers.shape != (len(after),):
        raise UnfollowedError(f"takes its sizes from a tensor of shape {numbers.shape}")
    parts: list[Any] = []
    for k, size in enumerate(after):
        if k == time.axis:
            parts.append(-1)
        elif not d.is_free(size):
            parts.append(size)
        elif numbers is not None and numbers[k] > 0:
            bounds = [d.number([n]) for n in (k, k + 1, 0)]
            parts.append(d.add("slice", f"{node.name}/size", (wanted, *bounds)))
        else:
            source = name if size in before else d.sized(size)
            at = d.shape(source).index(size)
            parts.append(d.add("shape", f"{node.name}/size", (source,), start=at, end=at + 1))
    if any(isinstance(part, str) for part in parts):
        vectors = [part if isinstance(part, str) else d.number([part]) for part in parts]
        shape = d.add("concat", f"{node.name}/shape", vectors, axis=0)
    else:
        shape = d.number(parts)
    d.put(replace(node, inputs=(name, shape), attrs={"zero_copies": False}))
    return [time]


CARRIES: dict[str, Callable[[Draft, Node, Given], list[Of] | None]] = {
    **dict.fromkeys(tuple(GATES), _recurrent),
    **dict.fromkeys(("conv", "conv_transpose", "pool"), _window),
    "gather": _gather,
    "slice": _slice,
    "pad": _pad,
    "cumsum": _cumsum,
    "reshape": _reshape,
}
"""``carry(draft, node, times of its inputs)``, for each kind of node that may read other steps than its own."""
