"""Makes a program: lowerings ask for steps, the builder finds their memory.

A program is a list of *steps*.  Native ones become ``frnn_program_step`` (``src_c/fastrnn.h``) and run in C, host ones
are Python functions on NumPy arrays.  Intermediate floats share one block; a buffer's place in it is free again after
the last step that uses it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from ..arrays import c_array
from ..spec import Node, activation
from .budget import Budget
from .spans import Spans
from .tensors import F32, Buffer, Value, loops, strides_of

MAX_AXES = 8  # FRNN_MAX_AXES
_ALIGN = 16  # floats: a cache line
_COPIED = 1024  # elements up to which a constant is copied to the others of its plan; larger ones are shared by plans
_NEIGHBOURS = 256  # buffers in use at the same time between which a place is looked for
_CHAIN = 4096  # elements from which running element-wise steps block by block is worth it


class NeedsValue(Exception):  # noqa: N818 (a question, not an error)
    """What a node does depends on the elements of one of its inputs, which are not known before the program runs."""

    def __init__(self, name: str):
        self.name = name


@dataclass
class HostStep:
    """``function(*arrays)`` gives arrays for ``outputs``."""

    function: Callable[..., Sequence[np.ndarray]]
    inputs: list[Value]
    outputs: list[Value]


@dataclass
class NativeStep:
    """Fields of a frnn_program_step; ``values`` are its operands by name."""

    fields: dict[str, Any]
    values: dict[str, Value]


@dataclass
class Segment:
    """Native steps from ``first`` up to ``last``, run by one call."""

    first: int
    last: int


@dataclass
class Builder:
    """Collects steps for one instruction set; ``shared`` are constants that stay where they are."""

    budget: Budget
    isa_kernels: _core.RowKernels = field(default_factory=_core.RowKernels)
    steps: list[NativeStep | HostStep] = field(default_factory=list)
    inputs: list[Buffer] = field(default_factory=list)
    shared: list[np.ndarray] = field(default_factory=list)
    _constants: dict[int, tuple[np.ndarray, Value, np.ndarray]] = field(default_factory=dict)
    _constant_size: int = 0

    # ---- tensors ----

    def new(self, shape: Sequence[int], order: Sequence[int] | None = None) -> Value:
        """Memory for a tensor, its axes in this order."""
        shape = tuple(shape)
        self.budget.spend(math.prod(shape), steps=0)
        return Value(shape, F32, None, Buffer(math.prod(shape)), 0, strides_of(shape, order))

    def input(self, shape: Sequence[int]) -> Value:
        """A contiguous array that each run brings along."""
        value = self.new(shape)
        assert value.buffer is not None
        value.buffer.slot = ("input", len(self.inputs))
        self.inputs.append(value.buffer)
        return value

    def floats(self, value: Value) -> Value:
        """The tensor in a buffer: constants are given a place there."""
        if value.buffer is not None:
            return value
        assert value.known is not None, "a tensor that only Python holds cannot be an operand"
        kept = self._constants.get(id(value.known))
        if kept is None:
            array = c_array(value.known, F32)
            if array.size < _COPIED:
                buffer = Buffer(array.size, "constant", self._constant_size)
                self._constant_size += _aligned(array.size)
            else:
                buffer = Buffer(array.size, ("shared", len(self.shared)))
                self.shared.append(array)
            kept = array, Value(array.shape, F32, None, buffer, 0, strides_of(array.shape)), value.known
            self._constants[id(value.known)] = kept
        return kept[1]

    def contiguous(self, value: Value) -> Value:
        """The tensor with its elements in order; a copy where they are not."""
        value = self.floats(value)
        return value if value.is_contiguous else self.copy(value)

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """The tensor with its axes in this order in memory, without gaps; a copy where it is not."""
        value = self.floats(value)
        return value if value.is_dense(order) else self.copy(value, order)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The elements in another shape; a copy only where the strides cannot tell."""
        value = self.floats(value)
        view = value.reshape(shape)
        if view is None:
            view = self.copy(value).reshape(shape)
            assert view is not None
        return view

    # ---- native steps ----

    def step(self, kind: str, /, values: dict[str, Value], flops: float = 0.0, **fields: Any) -> None:
        """A native step; constants among its operands are given a place."""
        flops += fields["n"] * fields.get("rows", 1) if "n" in fields else 0
        flops += math.prod(axis[0] for axis in fields.get("loops", ())) if kind in ("copy", "fill") else 0
        self.budget.spend(sum(value.size for value in values.values()), flops)
        operands = {name: self.floats(value) for name, value in values.items()}
        self.steps.append(NativeStep({"kind": kind, **fields}, operands))

    def copy_to(self, target: Value, source: Value) -> None:
        """target = source, broadcast."""
        if target.size == 0:
            return
        source = self.floats(source).expand(target.shape)
        axes = [(size, y, a, 0) for size, y, a in loops(target.shape, target.strides, source.strides)]
        self.step("copy", values={"y": target, "a": source}, loops=axes)

    def copy(self, value: Value, order: Sequence[int] | None = None) -> Value:
        target = self.new(value.shape, order)
        self.copy_to(target, value)
        return target

    def fill(self, target: Value, number: float) -> None:
        if target.size:
            axes = [(size, y, 0, 0) for size, y in loops(target.shape, target.strides)]
            self.step("fill", values={"y": target}, loops=axes, value=number)

    def binary_to(self, target: Value, function: str, a: Value, b: Value) -> None:
        if target.size == 0:
            return
        a, b = self.floats(a).expand(target.shape), self.floats(b).expand(target.shape)
        axes = loops(target.shape, target.strides, a.strides, b.strides)
        self.step("binary", values={"y": target, "a": a, "b": b}, loops=axes, binary=function, n=target.size)

    def binary(self, function: str, a: Value, b: Value) -> Value:
        """a (function) b, broadcast; the result lies in memory as the larger of them does."""
        a, b = self.floats(a), self.floats(b)
        shape = np.broadcast_shapes(a.shape, b.shape)
        model = (a if a.size >= b.size else b).expand(shape)
        target = self.new(shape, model.order)
        self.binary_to(target, function, a, b)
        return target

    def activate(self, function: Any, x: Value) -> Value:
        """An element-wise activation."""
        x = self.floats(x)
        order = x.order
        dense = self.ordered(x, order)
        target = dense if dense is not x else self.new(x.shape, order)  # in place on a copy
        if x.size:
            self.step("activate", values={"y": target, "a": dense}, activation=activation(function), n=x.size)
        return target

    def rows(self, kind: str, x: Value, n: int, **fields: Any) -> Value:
        """A function of contiguous rows of ``n`` elements that gives as many."""
        x = self.contiguous(x)
        more: dict[str, Value] = {name: fields.pop(name) for name in ("b", "c") if name in fields}
        y = self.new(x.shape)
        if x.size:
            self.step(kind, values={"y": y, "a": x, **more}, rows=x.size // n, n=n, **fields)
        return y

    def reduce(self, function: str, x: Value, rows: int, n: int) -> Value:
        """One number for each contiguous row of ``n`` elements."""
        x = self.contiguous(x)
        y = self.new((rows,))
        if rows:
            self.step("reduce", values={"y": y, "a": x}, reduction=function, rows=rows, n=n)
        return y

    # ---- host steps ----

    def host(
        self, function: Callable[..., Sequence[np.ndarray]], inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> None:
        self.steps.append(HostStep(function, list(inputs), list(outputs)))

    def held(self, shape: Sequence[int], dtype: Any) -> Value:
        """A tensor that a host step makes: floats get memory, others stay NumPy arrays."""
        dtype = np.dtype(dtype)
        self.budget.spend(math.prod(shape))
        return self.new(shape) if dtype.kind == "f" else Value(tuple(shape), dtype)

    # ---- the end ----

    def finish(self, outputs: Sequence[Value]) -> tuple[list[Value], list[Segment | HostStep], _core.Program, int]:
        """Outputs, each in the array of a run; items to run in order; the native steps; floats of the block."""
        results = []
        targets = 0
        for value in outputs:
            if not value.is_float:
                results.append(value)
                continue
            whole = (
                value.buffer is not None
                and value.buffer.slot == "block"
                and value.buffer.size == value.size
                and value.is_contiguous
            )
            if not whole:
                value = self.copy(value)
            assert value.buffer is not None
            value.buffer.slot = ("output", targets)
            targets += 1
            results.append(value)
        live = [value.buffer for value in results if value.buffer is not None]
        chains = self._chains()
        size = self._place(live, chains)
        slots: dict[Any, int] = {"block": 0, "constant": 1}
        slots |= {("input", k): 2 + k for k in range(len(self.inputs))}
        slots |= {("output", k): 2 + len(self.inputs) + k for k in range(targets)}
        slots |= {("shared", k): 2 + len(self.inputs) + targets + k for k in range(len(self.shared))}
        items: list[Segment | HostStep] = []
        native = []
        for k, step in enumerate(self.steps):
            if isinstance(step, HostStep):
                items.append(step)
                continue
            operands = {
                name: (slots[value.buffer.slot], value.buffer.offset + value.offset)  # type: ignore[union-attr]
                for name, value in step.values.items()
            }
            native.append({**step.fields, **operands, "chain": chains.get(k, 0)})
            if not items or isinstance(items[-1], HostStep):
                items.append(Segment(len(native) - 1, len(native)))
            items[-1].last = len(native)  # type: ignore[union-attr]
        constants = np.zeros(self._constant_size, np.float32)
        for array, value, _ in self._constants.values():
            assert value.buffer is not None
            if value.buffer.slot == "constant":
                constants[value.buffer.offset : value.buffer.offset + array.size] = np.ravel(array)
        program = _core.Program(
            native, constants, len(self.inputs), targets, self.shared, self.budget.flops, self.isa_kernels
        )
        return results, items, program, size

    def _place(self, live: Iterable[Buffer], chains: dict[int, int]) -> int:
        """Give each buffer of the block its place, and return the size of the block.  ``live``: used after the end."""
        spans: dict[Buffer, list[int]] = {}
        times = list(range(len(self.steps)))
        for first, count in chains.items():  # the steps of a chain run at the same time
            times[first : first + count] = [first] * count
        for k, step in enumerate(self.steps):
            values = [*step.inputs, *step.outputs] if isinstance(step, HostStep) else step.values.values()
            for value in values:
                if value.buffer is not None and value.buffer.slot == "block":
                    spans.setdefault(value.buffer, [times[k], times[k]])[1] = times[k]
        for buffer in live:
            if buffer in spans:
                spans[buffer][1] = len(self.steps)
        placed, crowded = Spans[Buffer](len(self.steps) + 1), list[tuple[int, int, Buffer]]()
        end = 0
        for buffer, (first, last) in sorted(spans.items(), key=lambda item: -item[0].size):
            offset, others = 0, placed.meeting(first, last, _NEIGHBOURS)
            if others is None:
                crowded.append((first, last, buffer))
                continue
            for other in sorted(others, key=lambda b: b.offset):
                if offset + buffer.size <= other.offset:
                    break
                offset = max(offset, _aligned(other.offset + other.size))
            buffer.offset = offset
            placed.add(first, last, buffer)
            end = max(end, offset + buffer.size)
        return _behind(crowded, end)

    def _chains(self) -> dict[int, int]:
        """Runs of element-wise steps over the same elements: index of the first, and how many."""
        chains: dict[int, int] = {}
        chain = _Chain()
        for k, step in enumerate(self.steps):
            if not (isinstance(step, NativeStep) and chain.takes(step)):
                chain = _Chain()
                if not (isinstance(step, NativeStep) and chain.takes(step)):
                    continue
            first = k + 1 - chain.count
            if chain.count > 1:
                chains[first] = chain.count
        return chains


def _behind(crowded: list[tuple[int, int, Buffer]], end: int) -> int:
    """Places behind all others for buffers with their spans, each where one of its size is no longer used."""
    free: dict[int, list[tuple[int, int]]] = {}  # by size, the time from which a place is free, and where it is
    for first, last, buffer in sorted(crowded, key=lambda span: span[:2]):
        places = free.setdefault(buffer.size, [])
        if places and places[0][0] <= first:
            _, buffer.offset = heapq.heappop(places)
        else:
            buffer.offset = _aligned(end)
            end = buffer.offset + buffer.size
        heapq.heappush(places, (last + 1, buffer.offset))
    return end


class _Chain:
    """Element-wise steps that may run block by block: what one writes, others read or write at the same place only."""

    def __init__(self) -> None:
        self.count, self._n = 0, 0
        self._read: dict[Buffer, set[Any]] = {}
        self._written: dict[Buffer, set[Any]] = {}

    def takes(self, step: NativeStep) -> bool:
        """Add a step, if it can be one of them."""
        if not _is_flat(step) or (self.count and step.fields["n"] != self._n):
            return False
        places = {
            name: (value.buffer, value.offset if _stride(step, name) else "one element")
            for name, value in step.values.items()
        }
        buffer, place = places.pop("y")
        assert buffer is not None
        clashes = [self._written.get(b, set()) - {at} for b, at in places.values() if b is not None]
        if any(clashes) or (self._read.get(buffer, set()) | self._written.get(buffer, set())) - {place}:
            return False
        for b, at in places.values():
            if b is not None:
                self._read.setdefault(b, set()).add(at)
        self._written.setdefault(buffer, set()).add(place)
        self.count, self._n = self.count + 1, step.fields["n"]
        return True


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _stride(step: NativeStep, operand: str) -> int:
    return 1 if step.fields["kind"] == "activate" else step.fields["loops"][0][" yab".index(operand)]


def _is_flat(step: NativeStep) -> bool:
    """Whether a step goes over many contiguous elements one by one."""
    if step.fields["kind"] not in ("activate", "binary") or step.fields["n"] < _CHAIN:
        return False
    if step.fields["kind"] == "activate":
        return True
    axes = step.fields["loops"]
    return len(axes) == 1 and axes[0][1] == 1 and axes[0][2] in (0, 1) and axes[0][3] in (0, 1)


Values = list[Value]
Lowering = Callable[[Builder, Node, Any, Values], Sequence[Value]]
"""What makes steps for a node: builder, node, what was packed for it, its inputs (None: absent) -> its outputs."""
