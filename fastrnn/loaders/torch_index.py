"""``x[...]`` of PyTorch -> nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedError
from .torch_build import Builder, Ref

_END = 2**62


def getitem(b: Builder, input: Any, index: Any) -> Any:
    """A part of a tensor: slices first, then numbers and tensors of indices, then new axes."""
    if not isinstance(input, Ref):
        return input[index]
    items = _expanded(input.rank, index if isinstance(index, tuple) else (index,))
    x = _sliced(b, input, [item for item in items if item is not None])
    numbers, arrays = {}, {}
    for axis, item in enumerate(item for item in items if item is not None):
        if isinstance(item, (list, Ref)) and not (isinstance(item, Ref) and item.rank == 0):
            arrays[axis] = b.ref(item)
        elif not isinstance(item, slice):
            numbers[axis] = item
    if any(array.kind == "b" for array in arrays.values()):
        raise UnsupportedError("an index of truth values, of which the result has a shape that depends on the data")
    if arrays and (numbers or None in items):
        numbers, arrays = {}, arrays | {axis: b.ref(n) for axis, n in numbers.items()}
        if None in items:
            raise UnsupportedError("an index of tensors and new axes together")
    for axis in sorted(numbers, reverse=True):
        x = b.emit("gather", x, b.cast(numbers[axis], "i"), rank=x.rank - 1, axis=axis)
    if arrays:
        x = _gathered(b, x, arrays)
    new = []
    at = 0
    for item in items:
        if item is None:
            new.append(at)
        at += item is None or isinstance(item, slice)
    return b.unsqueeze(x, *new)


def _expanded(rank: int, index: Sequence[Any]) -> list[Any]:
    """An item for each axis, and None for each new one."""
    items = list(index)
    if any(isinstance(item, bool) for item in items):
        raise UnsupportedError("an index of a truth value")
    places = [k for k, item in enumerate(items) if item is Ellipsis]
    free = rank - sum(item is not None and item is not Ellipsis for item in items)
    at = places[0] if places else len(items)
    return [*items[:at], *[slice(None)] * free, *items[at + len(places) :]]


def _sliced(b: Builder, x: Ref, items: Sequence[Any]) -> Ref:
    cuts = [(axis, item) for axis, item in enumerate(items) if isinstance(item, slice) and item != slice(None)]
    if not cuts:
        return x
    steps = [1 if item.step is None else item.step for _, item in cuts]
    starts = [0 if item.start is None else item.start for _, item in cuts]
    ends = [_END if item.stop is None else item.stop for _, item in cuts]
    more = [steps] if any(step != 1 for step in steps) else []
    return b.emit("slice", x, b.vector(starts), b.vector(ends), [axis for axis, _ in cuts], *more)


def _gathered(b: Builder, x: Ref, arrays: dict[int, Ref]) -> Ref:
    """Index with tensors, which broadcast among each other, on axes that stand side by side."""
    first, *others = axes = sorted(arrays)
    if axes != list(range(first, first + len(axes))):
        raise UnsupportedError("an index of tensors on axes that do not stand side by side")
    index = b.cast(arrays[first], "i")
    if others:  # as one axis
        index = b.binary("mod", index, b.size(x, first))  # negative ones count from the end
        for axis in others:
            count = b.size(x, axis)
            index = b.add(b.mul(index, count), b.binary("mod", b.cast(arrays[axis], "i"), count))
        sizes = [b.size(x, k) for k in range(x.rank)]
        x = b.reshape(x, [*sizes[:first], -1, *sizes[axes[-1] + 1 :]])
    return b.emit("gather", x, index, rank=x.rank - 1 + index.rank, axis=first)
