"""The shapes that nodes give, from the shapes of what they read: one rule for each kind of node.

A dimension is None where it is free or not known.  A rule raises ``ShapeError`` where the node cannot run on tensors of
so many axes, and may raise anything where too little is known; whether sizes fit is seen when they are planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from .. import operators
from ..attributes import MOST_AXES
from ..errors import ShapeError
from ..spec import Node

Sizes = tuple[int | None, ...]
Shape = Sizes | None


class Known(Protocol):
    """What a rule may ask for beside the shapes of its inputs: values of small tensors, shapes inside bodies."""

    values: Mapping[str, np.ndarray]

    def shape(self, name: str) -> Shape:
        """The shape of a tensor, None if not known."""

    def numbers(self, name: str) -> list[int | None]:
        """The whole numbers of a tensor that holds a shape or the like; TypeError if they are not known."""


def axis_of(axis: int, rank: int) -> int:
    """The axis counted from the front; ShapeError where a tensor of so many axes has none such."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} of {rank} axes")
    return axis % rank


def axes_of(axes: Iterable[int], rank: int) -> list[int]:
    """The same of several, all different."""
    found = [axis_of(axis, rank) for axis in axes]
    if len(set(found)) < len(found):
        raise ShapeError(f"axes {list(axes)} of {rank} axes are not all different")
    return found


def common(a: Shape, b: Shape) -> Shape:
    """What two shapes agree on."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(m if m == n else None for m, n in zip(a, b))


def broadcast(*shapes: Shape) -> Shape:
    """The shape of an element-wise result.

    >>> broadcast((None, 1, 4), (3, 4))
    (None, 3, 4)
    """
    ranks = [len(s) for s in shapes if s is not None]
    if len(ranks) < len(shapes):
        return None
    result: list[int | None] = []
    for sizes in zip(*((1,) * (max(ranks) - len(s)) + s for s in shapes if s is not None)):
        wide = {n for n in sizes if n != 1}
        fixed = wide - {None}
        result.append(fixed.pop() if fixed else None if wide else 1)
    return tuple(result)


def without(shape: Sequence[int | None], axes: Iterable[int]) -> tuple[int | None, ...]:
    """The shape less some axes."""
    gone = axes_of(axes, len(shape))
    return tuple(n for k, n in enumerate(shape) if k not in gone)


def product(sizes: Iterable[int | None]) -> int | None:
    """The number of elements, None if not known."""
    known = list(sizes)
    return None if None in known else math.prod(known)  # type: ignore[arg-type]


def _same(facts: Known, node: Node, x: Sizes, *others: Shape) -> Shape:
    return x


def _element_wise(facts: Known, node: Node, *inputs: Shape) -> Shape:
    return broadcast(*inputs)


def _dense(facts: Known, node: Node, x: Sizes) -> Shape:
    if not x:
        raise ShapeError("no axis of features")
    return (*x[:-1], len(node.weights["weight"]))


def _recurrent(facts: Known, node: Node, x: Sizes, *others: Shape) -> list[Shape]:
    hidden = node.weights["weight_hh_l0"]
    sizes = [hidden.shape[1], len(hidden) // 4] if node.op == "lstm" else [hidden.shape[1]]
    if node.attr("unbatched"):
        return [(*x[:-1], sizes[0]), *((*x[:-1], size) for size in sizes)]
    both = node.attr("direction") == "bidirectional"
    features = sizes[0] * (2 if both and node.attr("merge") == "concat" else 1)
    time = 0 if len(x) == 2 or not node.attr("batch_first") else 1
    y: Shape = (*x[:-1], features)
    if not node.attr("return_sequences"):
        y = without((*x[:-1], features), [time])
    count = node.attr("num_layers") * (2 if both else 1)
    return [y, *((count, *without(x, [time])[:-1], size) for size in sizes)]


def _matmul(facts: Known, node: Node, a: Sizes, b: Sizes) -> Shape:
    batch = broadcast(a[:-2], b[:-2])
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return None if batch is None else (*batch, *rows, *columns)


def _reduce(facts: Known, node: Node, x: Sizes) -> Shape:
    axes = range(len(x)) if node.attr("axes") is None else node.attr("axes")
    return _reduced(x, axes, node.attr("keepdims"))


def _reduced(x: Sizes, axes: Iterable[int], keepdims: bool) -> Shape:
    gone = axes_of(axes, len(x))
    return tuple(1 if k in gone else n for k, n in enumerate(x)) if keepdims else without(x, gone)


def _reshape(facts: Known, node: Node, x: Shape, shape: Shape) -> Shape:
    if node.inputs[1] not in facts.values:
        length = None if shape is None else shape[0]
        if length is not None and length > MOST_AXES:
            raise ShapeError(f"a shape of {length} axes")
        return None if length is None else (None,) * length
    wanted = facts.numbers(node.inputs[1])
    result: list[int | None] = []
    for k, n in enumerate(wanted):
        copied = n == 0 and node.attr("zero_copies")
        result.append((None if x is None or k >= len(x) else x[k]) if copied else n)
    if -1 in result:
        at = result.index(-1)
        total = None if x is None else product(x)
        rest = product(result[:at] + result[at + 1 :])
        result[at] = None if total is None or not rest else total // rest
        if result[at] is None and x is not None and None not in wanted:
            result[at] = _remaining(x, result[:at] + result[at + 1 :])
    return tuple(result)


def _remaining(x: Sizes, others: list[int | None]) -> int | None:
    """What -1 stands for where the free dimension of x is copied: (None, 4, 5) as (0, -1) is 20."""
    free = sum(n is None for n in x)
    if free != 1 or others.count(None) != 1:
        return None
    total, rest = product(n for n in x if n is not None), product(n for n in others if n is not None)
    return total // rest if total is not None and rest and total % rest == 0 else None


def _flatten(facts: Known, node: Node, x: Sizes) -> Shape:
    if not -len(x) <= node.attr("axis") <= len(x):
        raise ShapeError(f"axis {node.attr('axis')} of {len(x)} axes")
    axis = node.attr("axis") + (len(x) if node.attr("axis") < 0 else 0)
    return product(x[:axis]), product(x[axis:])


def _squeeze(facts: Known, node: Node, x: Sizes) -> Shape:
    axes = node.attr("axes")
    if axes is not None:
        return without(x, axes)
    return None if None in x else tuple(n for n in x if n != 1)


def _unsqueeze(facts: Known, node: Node, x: Sizes) -> Shape:
    rank = len(x) + len(node.attr("axes"))
    new = axes_of(node.attr("axes"), rank)
    rest = iter(x)
    return tuple(1 if k in new else next(rest) for k in range(rank))


def _transpose(facts: Known, node: Node, x: Sizes) -> Shape:
    perm = node.attr("perm")
    if perm is not None and len(perm) != len(x):
        raise ShapeError(f"perm {list(perm)} of {len(x)} axes")
    return x[::-1] if perm is None else tuple(x[k] for k in perm)


def _concat(facts: Known, node: Node, *inputs: Shape) -> Shape:
    known = [s for s in inputs if s is not None]
    if not known:
        return None
    axis = axis_of(node.attr("axis"), len(known[0]))
    if len({len(s) for s in known}) > 1:
        raise ShapeError(f"shapes {', '.join(map(str, known))} do not fit each other")
    result: list[int | None] = [next((s[k] for s in known if s[k] is not None), None) for k in range(len(known[0]))]
    parts = [s[axis] for s in known]
    result[axis] = None if len(known) < len(inputs) or None in parts else sum(n or 0 for n in parts)
    return tuple(result)


def _split(facts: Known, node: Node, x: Sizes) -> list[Shape]:
    axis = axis_of(node.attr("axis"), len(x))
    size = x[axis]
    sizes: Sequence[int | None]
    if size is None and node.attr("sizes") is None:
        sizes = [None] * len(node.outputs)
    else:
        sizes = operators.split_sizes(node, size or 0)
        if len(sizes) != len(node.outputs):
            raise ShapeError(f"an axis in {len(node.outputs)} parts of {list(sizes)}")
    return [(*x[:axis], n, *x[axis + 1 :]) for n in sizes]


def _slice(facts: Known, node: Node, x: Sizes, *bounds: Shape) -> Shape:
    names = (*node.inputs[1:], "", "")[:4]
    known = [facts.values.get(name) for name in names]
    result = list(x)
    if any(name and array is None for name, array in zip(names, known)):
        axes = facts.numbers(names[2]) if names[2] else range(len(x))
        for axis in axes:
            result[axis or 0] = None
        return tuple(result)
    for array in known:
        if array is not None and None in array.ravel().tolist():
            return (None,) * len(x)
    for k, part in enumerate(operators.slices(len(x), *known)):  # type: ignore[arg-type]
        size = x[k]
        if part != slice(None):
            result[k] = None if size is None else operators.slice_bounds(part, size)[2]
    return tuple(result)


def _gather(facts: Known, node: Node, x: Sizes, indices: Sizes) -> Shape:
    axis = axis_of(node.attr("axis"), len(x))
    return (*x[:axis], *indices, *x[axis + 1 :])


def _pad(facts: Known, node: Node, x: Sizes, *others: Shape) -> Shape:
    names = (*node.inputs[1:], "", "")[:3]
    if names[0] not in facts.values or (names[2] and names[2] not in facts.values):
        return (None,) * len(x)
    widths = operators.pad_widths(len(x), facts.values[names[0]], facts.values.get(names[2]))
    return tuple(None if n is None else n + a + b for n, (a, b) in zip(x, widths))


def _expand(facts: Known, node: Node, x: Shape, shape: Shape) -> Shape:
    return broadcast(x, tuple(facts.numbers(node.inputs[1])))


def _tile(facts: Known, node: Node, x: Sizes, repeats: Shape) -> Shape:
    times = facts.numbers(node.inputs[1])
    return tuple(None if n is None or m is None else n * m for n, m in zip(x, times, strict=True))


def _fill(facts: Known, node: Node, shape: Shape) -> Shape:
    return tuple(facts.numbers(node.inputs[0]))


def _range(facts: Known, node: Node, *bounds: Shape) -> Shape:
    known = [facts.values.get(name) for name in node.inputs]
    if any(array is None for array in known):
        return (None,)
    start, limit, delta = (array.reshape(()).item() for array in known if array is not None)
    return (max(0, math.ceil((limit - start) / delta)),)


def _windows(facts: Known, node: Node, x: Sizes) -> Shape:
    """Convolutions and pools."""
    weight = node.weights.get("weight")
    kernel = tuple(node.attr("kernel")) if weight is None else weight.shape[2:]
    spatial = [n or 0 for n in x[2:]]
    channels: int | None
    if node.op == "conv_transpose":
        assert weight is not None
        channels, sizes = weight.shape[1] * node.attr("groups"), operators.transposed_sizes(node, spatial, kernel)
    elif weight is not None:
        channels, sizes = len(weight), operators.output_sizes(node, spatial, kernel)
    else:
        channels, sizes = x[1], operators.output_sizes(node, spatial, kernel, node.attr("ceil_mode"))
    return (x[0], channels, *(None if n is None else size for n, size in zip(x[2:], sizes, strict=True)))


def _if(facts: Known, node: Node, *inputs: Shape) -> list[Shape]:
    then, other = ([facts.shape(t.name) for t in node.graphs[key].outputs] for key in ("then", "else"))
    return [common(a, b) for a, b in zip(then, other)]


def _loop(facts: Known, node: Node, *inputs: Shape) -> list[Shape]:
    """A carried tensor is the initial one where no step runs; one of the same shape is what the body shows."""
    loop = node.op == "loop"
    results = [facts.shape(t.name) for t in node.graphs["body"].outputs[1 if loop else 0 :]]
    initial = [facts.shape(name) for name in (node.inputs[2:] if loop else node.inputs)]
    count = len(initial) - (0 if loop else node.attr("num_scanned"))
    carried = [common(a, b) for a, b in zip(initial[:count], results[:count])]
    axes = (node.attr("output_axes") if node.op == "scan" else None) or [0] * (len(results) - count)
    stacked = [None if s is None else _inserted(s, axis) for s, axis in zip(results[count:], axes)]
    return [*carried, *stacked]


def _along(facts: Known, node: Node, x: Sizes) -> Shape:
    """Of the same shape, along one of its axes."""
    axis_of(node.attr("axis"), max(len(x), 1))
    return x


def _stack(facts: Known, node: Node, x: Sizes, *others: Shape) -> Shape:
    return (sum(map(bool, node.inputs)), *x)


def _unstack(facts: Known, node: Node, x: Sizes) -> list[Shape]:
    if not x:
        raise ShapeError("no axis of parts")
    return [x[1:]] * len(node.outputs)


def _inserted(shape: Sizes, axis: int) -> Shape:
    at = axis_of(axis, len(shape) + 1)
    return (*shape[:at], None, *shape[at:])


RULES: dict[str, Callable[..., Shape | list[Shape]]] = {
    **dict.fromkeys(("lstm", "gru", "rnn"), _recurrent),
    **dict.fromkeys(("identity", "activation", "unary", "cast", "layer_norm", "batch_norm"), _same),
    **dict.fromkeys(("cumsum", "softmax"), _along),
    **dict.fromkeys(("binary", "where"), _element_wise),
    **dict.fromkeys(("conv", "conv_transpose", "pool"), _windows),
    **dict.fromkeys(("loop", "scan"), _loop),
    "dense": _dense,
    "embedding": lambda facts, node, ids: [(*ids, node.weights["weight"].shape[1]), ids],
    "masking": lambda facts, node, x: [x, x[:-1]],
    "stack": _stack,
    "unstack": _unstack,
    "matmul": _matmul,
    "reduce": _reduce,
    "argmax": lambda facts, node, x: _reduced(x, [node.attr("axis")], node.attr("keepdims")),
    "shape": lambda facts, node, x: (len(x[node.attr("start") : node.attr("end")]),),
    "size": lambda facts, node, x: (),
    "reshape": _reshape,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "transpose": _transpose,
    "concat": _concat,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "pad": _pad,
    "expand": _expand,
    "tile": _tile,
    "fill": _fill,
    "range": _range,
    "if": _if,
}
"""``rule(facts, node, *shapes of its inputs)`` gives the shape, or the list of shapes, that a node writes."""
