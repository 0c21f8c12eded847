"""Tensors of a program while it is made: where their elements are, and views of them that cost nothing.

Strides count floats.  A :class:`Buffer` is a block of memory that the program owns or is given; any number of
:class:`Value` look at it, each with its shape, strides and offset, as NumPy's views do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

F32 = np.dtype(np.float32)


@dataclass(eq=False)
class Buffer:
    """``size`` floats.  ``slot`` is where they are: "block" (a place is found at the end), "constant", ("input", k)
    or ("output", k); ``offset`` is the place within it."""

    size: int
    slot: Any = "block"
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: floats in a buffer, an array that is known already, or (neither) one that Python holds at run time."""

    shape: tuple[int, ...]
    dtype: np.dtype = F32
    known: np.ndarray | None = None
    buffer: Buffer | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype == F32

    # ---- views ----

    def transpose(self, perm: Sequence[int] | None = None) -> Value:
        order = range(self.ndim)[::-1] if perm is None else [axis % self.ndim for axis in perm]
        return replace(self, shape=tuple(self.shape[k] for k in order), strides=tuple(self.strides[k] for k in order))

    def part(self, axis: int, start: int, count: int, step: int = 1) -> Value:
        """``count`` elements of an axis from ``start`` on, ``step`` apart."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + (start * strides[axis] if count else 0)
        shape[axis], strides[axis] = count, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def index(self, axis: int, at: int) -> Value:
        """One element of an axis, which disappears."""
        axis %= self.ndim
        one = self.part(axis, at, 1)
        return replace(one, shape=_without(one.shape, axis), strides=_without(one.strides, axis))

    def unsqueeze(self, axis: int) -> Value:
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(axis, 1)
        strides.insert(axis, 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def expand(self, shape: Sequence[int]) -> Value:
        """Broadcast to ``shape``: repeated axes have stride 0."""
        more = len(shape) - self.ndim
        sizes, strides = (1,) * more + self.shape, (0,) * more + self.strides
        repeated = tuple(0 if old == 1 else stride for old, stride in zip(sizes, strides))
        return replace(self, shape=tuple(shape), strides=repeated)

    def reshape(self, shape: Sequence[int]) -> Value | None:
        """The same elements in another shape; None where that takes a copy."""
        strides = reshaped_strides(self.shape, self.strides, shape)
        return None if strides is None else replace(self, shape=tuple(shape), strides=strides)

    # ---- how the elements lie ----

    @property
    def order(self) -> list[int]:
        """Axes from the outermost in memory to the innermost; those of a tensor that repeats elements as they stand."""
        if any(stride == 0 and size > 1 for stride, size in zip(self.strides, self.shape)):
            return list(range(self.ndim))
        return sorted(range(self.ndim), key=lambda k: (-abs(self.strides[k]), k))

    @property
    def is_contiguous(self) -> bool:
        return self.is_dense(range(self.ndim))

    def is_dense(self, order: Sequence[int]) -> bool:
        """Whether the elements follow each other without gaps, the axes in this order."""
        expected = 1
        for axis in reversed(order):
            if self.shape[axis] != 1 and self.strides[axis] != expected:
                return False
            expected *= self.shape[axis]
        return True


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return values[:axis] + values[axis + 1 :]


def strides_of(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides of a dense array whose axes lie in this order in memory.

    >>> strides_of((2, 3, 4)), strides_of((2, 3, 4), (0, 2, 1))
    ((12, 4, 1), (12, 1, 3))
    """
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def reshaped_strides(shape: Sequence[int], strides: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Strides that show the same elements in another shape; None where there are none.

    >>> reshaped_strides((2, 3, 4), (12, 4, 1), (6, 4)), reshaped_strides((3, 2), (1, 3), (6,))
    ((4, 1), None)
    """
    if 0 in wanted:
        return strides_of(wanted)
    # Runs of old axes that could be one axis: (elements, stride of the innermost).
    runs: list[list[int]] = []
    for size, stride in zip(shape, strides):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    result = []
    left, stride = runs.pop() if runs else (1, 1)
    for size in reversed(wanted):
        if size == 1:
            result.append(0)
            continue
        if left == 1:
            if not runs:
                return None
            left, stride = runs.pop()
        if left % size:
            return None
        result.append(stride)
        left, stride = left // size, stride * size
    return tuple(reversed(result))


def loops(shape: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Nested loops ``(size, stride, ...)`` over a shape, the first operand's innermost axis last, as few as possible.

    >>> loops((2, 3, 4), (12, 4, 1), (0, 0, 1))
    [(6, 4, 0), (4, 1, 1)]
    """
    axes = [(size, *steps) for size, *steps in zip(shape, *strides) if size != 1]
    axes.sort(key=lambda axis: -abs(axis[1]))
    merged: list[tuple[int, ...]] = []
    for size, *steps in axes:
        if merged and all(outer == size * step for outer, step in zip(merged[-1][1:], steps)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged or [(1, *[1 for _ in strides])]
