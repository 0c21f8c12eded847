"""Where time goes: the axis that a tensor's steps are along, followed through a graph.

One rule for each kind of node: from the times of what it reads to the times of what it writes, on the sizes of a whole
sequence.  A rule raises :class:`UnfollowedError` where a step of the result needs steps that come later, or where it
is not known which steps it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from ..spec import GATES, ROW_ACTIVATIONS, Node, activation

FUTURE = "reads steps that have not come yet"


class Kind(Enum):
    """What a tensor without steps is that is not the same throughout a stream."""

    LAST = "what is known after the last step"
    STATE = "carried by the caller"
    UNKNOWN = "made by a node that could not be followed"


@dataclass(frozen=True)
class Time:
    """The steps of a tensor.

    Its element n along time comes with step ``n * stride + offset`` of the input, ``clock`` is (stride, offset).
    ``zeros`` are steps at the beginning that the tensor would have and that only its readers add; ``tail`` are
    steps beyond the end that it would have and that never come, because of the padding of the node ``cause``.
    """

    axis: int
    size: int
    inner: int = 1  # elements of one step inside the axis
    clock: tuple[int, int] = (1, 0)
    zeros: int = 0
    tail: int = 0
    cause: str = field(default="", compare=False)


Of = Time | Kind | None


class UnfollowedError(Exception):
    """Why a node cannot run step by step."""


class Sizes(Protocol):
    """What a rule may ask for: the sizes of tensors for a whole sequence."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape; UnfollowedError where it is not known."""


Given = Sequence[Of]


def the_time(given: Given) -> Time:
    """The time of the first input, which is the data of a node: what else it takes are sizes and places."""
    if not isinstance(given[0], Time):
        raise UnfollowedError("takes steps for sizes")
    return given[0]


def axes_of(axes: Iterable[int], rank: int) -> set[int]:
    return {axis % rank for axis in axes}


def untouched(time: Time, axes: Iterable[int], rank: int) -> Time:
    """The time, if it is along none of these axes."""
    if time.axis in axes_of(axes, rank):
        raise UnfollowedError(FUTURE)
    return time


def less(time: Time, axes: Iterable[int]) -> Time:
    """The time when these other axes are gone."""
    return replace(time, axis=time.axis - sum(axis < time.axis for axis in axes))


def aligned(f: Sizes, node: Node, given: Given) -> Time:
    """The time of a result to which the inputs are broadcast."""
    shapes = [f.shape(name) for name in node.inputs if name]
    rank = max(map(len, shapes))
    times = [replace(t, axis=t.axis + rank - len(s)) for s, t in zip(shapes, given) if isinstance(t, Time)]
    if any(t != times[0] for t in times):
        raise UnfollowedError("joins steps that do not come at the same time")
    for shape, time in zip(shapes, given):
        at = times[0].axis - rank + len(shape)
        if not isinstance(time, Time) and at >= 0 and shape[at] != 1:
            raise UnfollowedError(f"takes a tensor of fixed length ({shape[at]} steps)")
    return times[0]


def _element_wise(f: Sizes, node: Node, given: Given) -> Time:
    return aligned(f, node, given)


def _features(count: Callable[[Node], int]) -> Rule:
    """A rule of nodes that read the last axes."""

    def rule(f: Sizes, node: Node, given: Given) -> Time:
        return untouched(the_time(given), range(-count(node), 0), len(f.shape(node.inputs[0])))

    return rule


def _norm_axes(node: Node) -> int:
    return node.weights["weight"].ndim if "weight" in node.weights else node.attr("axes")


def _batch_norm(f: Sizes, node: Node, given: Given) -> Time:
    return untouched(the_time(given), [1 if node.attr("channels_first") else -1], len(f.shape(node.inputs[0])))


def _activation(f: Sizes, node: Node, given: Given) -> Time:
    name, alpha, _ = activation(node.attr("activation"))
    axes = [int(alpha)] if name in ROW_ACTIVATIONS else []
    return untouched(the_time(given), axes, len(f.shape(node.inputs[0])))


def _along_axis(f: Sizes, node: Node, given: Given) -> Time:
    return untouched(aligned(f, node, given), [node.attr("axis")], len(f.shape(node.inputs[0])))


def _split(f: Sizes, node: Node, given: Given) -> list[Of]:
    return [_along_axis(f, node, given)] * len(node.outputs)


def _reduce(f: Sizes, node: Node, given: Given) -> Time:
    rank = len(f.shape(node.inputs[0]))
    axes = [node.attr("axis")] if node.op == "argmax" else node.attr("axes")
    axes = axes_of(range(rank) if axes is None else axes, rank)
    time = untouched(the_time(given), axes, rank)
    return time if node.attr("keepdims") else less(time, axes)


def _reshaped(f: Sizes, node: Node, given: Given) -> Time:
    """Elements keep their order, so the elements between a step and the next tell the new axis."""
    time, before, after = the_time(given), f.shape(node.inputs[0]), f.shape(node.outputs[0])
    if time.size == 1:  # no distance to the next
        if before[: time.axis + 1] == after[: time.axis + 1]:
            return time
        raise UnfollowedError("reshapes an axis of one step")
    stride = time.inner * math.prod(before[time.axis + 1 :])
    for axis, size in enumerate(after):
        rest = math.prod(after[axis + 1 :])
        if rest <= stride < rest * size:
            if stride % rest or (rest * size) % (stride * time.size):
                break
            return replace(time, axis=axis, inner=stride // rest)
    raise UnfollowedError("spreads steps over several axes")


def _squeeze(f: Sizes, node: Node, given: Given) -> Time:
    shape, axes = f.shape(node.inputs[0]), node.attr("axes")
    gone = {k for k, n in enumerate(shape) if n == 1} if axes is None else axes_of(axes, len(shape))
    return less(untouched(the_time(given), gone, len(shape)), gone)


def _unsqueeze(f: Sizes, node: Node, given: Given) -> Time:
    time = the_time(given)
    new = axes_of(node.attr("axes"), len(f.shape(node.inputs[0])) + len(node.attr("axes")))
    rest = [k for k in range(len(f.shape(node.inputs[0])) + len(new)) if k not in new]
    return replace(time, axis=rest[time.axis])


def _transpose(f: Sizes, node: Node, given: Given) -> Time:
    time, perm = the_time(given), node.attr("perm")
    rank = len(f.shape(node.inputs[0]))
    return replace(time, axis=rank - 1 - time.axis if perm is None else list(perm).index(time.axis))


def _repeated(f: Sizes, node: Node, given: Given) -> Time:
    """``expand`` and ``tile``: axes come in front, others become longer."""
    time, before, after = the_time(given), f.shape(node.inputs[0]), f.shape(node.outputs[0])
    moved = replace(time, axis=time.axis + len(after) - len(before))
    if before[time.axis] != after[moved.axis]:
        raise UnfollowedError("repeats steps")
    return moved


def _others(f: Sizes, node: Node, given: Given) -> Time:
    """``slice`` and ``pad`` of other axes."""
    time = the_time(given)
    if f.shape(node.inputs[0])[time.axis] != f.shape(node.outputs[0])[time.axis]:
        raise UnfollowedError("takes fixed steps")
    return time


def _gather(f: Sizes, node: Node, given: Given) -> Time:
    x, indices = given[:2]
    rank, more = (len(f.shape(name)) for name in node.inputs)
    axis = node.attr("axis") % rank
    if not isinstance(x, Time):
        assert isinstance(indices, Time)
        return replace(indices, axis=axis + indices.axis)
    if isinstance(indices, Time):
        raise UnfollowedError("takes from each step by the indices of all")
    if x.axis == axis:
        raise UnfollowedError("takes fixed steps")
    return replace(x, axis=x.axis + more - 1) if x.axis > axis else x


def _matmul(f: Sizes, node: Node, given: Given) -> Time:
    """Rows of a and columns of b do not meet, and neither do matrices."""
    ranks = [len(f.shape(name)) for name in node.inputs]
    if min(ranks) < 2:
        return _by_vector(ranks, given)
    for time, rank, summed in zip(given, ranks, (-1, -2)):
        if isinstance(time, Time):
            untouched(time, [summed], rank)
    rank = max(ranks)
    times = [replace(t, axis=t.axis + rank - r) for r, t in zip(ranks, given) if isinstance(t, Time)]
    if all(time.axis < rank - 2 for time in times):
        return aligned(f, node, given)  # each step has a matrix
    if len(times) > 1:
        raise UnfollowedError(FUTURE)
    return times[0]


def _by_vector(ranks: Sequence[int], given: Given) -> Time:
    """A product with a vector: the axis that is summed over goes."""
    if isinstance(given[ranks.index(1)], Time):
        raise UnfollowedError(FUTURE)
    time = given[1 - ranks.index(1)]
    assert isinstance(time, Time)
    summed = [-1] if ranks[1] == 1 else [-2]
    return less(untouched(time, summed, max(ranks)), axes_of(summed, max(ranks)))


def _windows(f: Sizes, node: Node, given: Given) -> Time:
    """Time is the batch; windows over time are another matter."""
    return untouched(the_time(given), range(1, len(f.shape(node.inputs[0]))), len(f.shape(node.inputs[0])))


def _recurrent(f: Sizes, node: Node, given: Given) -> list[Of]:
    """A layer along another axis, for each step by itself; those along time are another matter."""
    x = given[0]
    rank = len(f.shape(node.inputs[0]))
    if not isinstance(x, Time) or any(node.inputs[1:]):
        raise UnfollowedError("takes states, a mask or lengths that come step by step")
    untouched(x, [-1], rank)
    if node.attr("unbatched"):
        return [x] * len(node.outputs)
    along = 0 if rank == 2 or not node.attr("batch_first") else 1
    untouched(x, [along], rank)
    y = x if node.attr("return_sequences") else less(x, [along])
    return [y, *[replace(x, axis=1)] * (len(node.outputs) - 1)]


def _stack(f: Sizes, node: Node, given: Given) -> Time:
    time = aligned(f, node, given)
    return replace(time, axis=time.axis + 1)


def _unstack(f: Sizes, node: Node, given: Given) -> list[Of]:
    return [less(untouched(the_time(given), [0], len(f.shape(node.inputs[0]))), [0])] * len(node.outputs)


def _masking(f: Sizes, node: Node, given: Given) -> list[Of]:
    return [untouched(the_time(given), [-1], len(f.shape(node.inputs[0])))] * 2


Rule = Callable[[Sizes, Node, Given], Of | list[Of]]

RULES: dict[str, Rule] = {
    **dict.fromkeys(("binary", "where", "unary", "cast", "identity"), _element_wise),
    **dict.fromkeys(("softmax", "cumsum", "concat", "gather_elements"), _along_axis),
    **dict.fromkeys(("reshape", "flatten"), _reshaped),
    **dict.fromkeys(("expand", "tile"), _repeated),
    **dict.fromkeys(("slice", "pad"), _others),
    **dict.fromkeys(("reduce", "argmax"), _reduce),
    **dict.fromkeys(("conv", "conv_transpose", "pool"), _windows),
    **dict.fromkeys(tuple(GATES), _recurrent),
    "activation": _activation,
    "batch_norm": _batch_norm,
    "dense": _features(lambda node: 1),
    "layer_norm": _features(_norm_axes),
    "masking": _masking,
    "embedding": lambda f, node, given: [the_time(given)] * 2,
    "split": _split,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "transpose": _transpose,
    "gather": _gather,
    "matmul": _matmul,
    "stack": _stack,
    "unstack": _unstack,
}
"""``rule(sizes, node, times of its inputs)`` gives the time of its output, or the list of those of its outputs."""
