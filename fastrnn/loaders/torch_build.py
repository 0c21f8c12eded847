"""Nodes of a spec one after the other, as the translators of PyTorch's functions and modules write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..spec import OPS, Node
from .state_dict import as_float32


@dataclass(frozen=True)
class Ref:
    """A tensor of the spec.  ``kind`` is "f", "i" or "b" as in NumPy; a number made of sizes has rank 0."""

    name: str
    rank: int
    kind: str


@dataclass(frozen=True)
class Packed:
    """What ``pack_padded_sequence`` gives: the padded sequence, and its lengths."""

    padded: Ref
    lengths: Ref
    batch_first: bool


class Builder:
    """Collects nodes and constants.

    ``base`` is the name for the nodes of the call that is being translated, and ``value`` the tensor (or number, or
    tuple of them) that PyTorch computed for it from the example: it tells ranks, dtypes and how many parts there are.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.names: set[str] = set()
        self.base = ""
        self.value: Any = None
        self._sizes: dict[tuple[str, int], Ref] = {}
        self._size_of: dict[str, tuple[str, int]] = {}
        self._as_vector: dict[str, Ref] = {}

    def unique(self, name: str) -> str:
        """``name``, or ``name@1`` and so on where it is taken."""
        found, k = name, 0
        while found in self.names:
            k += 1
            found = f"{name}@{k}"
        self.names.add(found)
        return found

    def constant(self, value: Any, name: str = "") -> Ref:
        """A tensor that never changes; floating-point ones become float32."""
        name = name or f"{self.base}.constant"
        array = np.asarray(value)
        array = as_float32(array, name) if array.dtype.kind == "f" else np.array(array, order="C")
        if array.dtype.kind not in "fiub":
            raise UnsupportedError(f"{name} is {array.dtype}")
        found = self.unique(name)
        self.arrays[found] = array
        return Ref(found, array.ndim, "i" if array.dtype.kind == "u" else array.dtype.kind)

    def ref(self, value: Any) -> Ref:
        """A tensor for whatever an argument may be: a tensor, a number, a list of numbers."""
        if isinstance(value, Ref):
            return value
        if isinstance(value, (list, tuple)) and any(isinstance(n, Ref) for n in value):
            return self.vector(value)
        if isinstance(value, (bool, int, float, list, tuple)):
            return self.constant(value)
        raise UnsupportedError(f"an argument of type {type(value).__name__}")

    def array(self, value: Any) -> np.ndarray | None:
        """The numbers of a tensor that never changes, else None."""
        return self.arrays.get(value.name) if isinstance(value, Ref) else None

    def emit(self, op: str, *inputs: Any, rank: int | None = None, kind: str | None = None, **attrs: Any) -> Ref:
        """Append a node with one output; rank and kind are those of the first input unless said."""
        refs = [None if value is None else self.ref(value) for value in inputs]
        first = refs[0]
        assert first is not None
        rank, kind = first.rank if rank is None else rank, kind or first.kind
        return self.emit_many(op, refs, [(rank, kind)], attrs)[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Ref | None],
        outputs: Iterable[tuple[int, str]],
        attrs: Mapping[str, Any] | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> list[Ref]:
        """Append a node; ``outputs`` are their ranks and kinds."""
        name = self.unique(self.base)
        declared = [what.rstrip("?*") for what in OPS[op].outputs]
        wanted = list(outputs)
        if OPS[op].outputs[-1].endswith("*"):
            declared = [f"{declared[0]}_{k}" for k in range(len(wanted))]
        refs = [Ref(self.unique(f"{name}.{what}"), *about) for what, about in zip(declared, wanted)]
        given = [ref.name if ref else "" for ref in inputs]
        while given and not given[-1]:
            given.pop()
        node = Node(op, name, tuple(given), tuple(ref.name for ref in refs), dict(attrs or {}), dict(weights or {}))
        self.nodes.append(node)
        return refs

    def layer(
        self, op: str, x: Ref, weights: Mapping[str, np.ndarray | None], rank: int | None = None, **attrs: Any
    ) -> Ref:
        """Append a layer with weights, of which those that are None are left out."""
        given = {key: array for key, array in weights.items() if array is not None}
        return self.emit_many(op, [x], [(x.rank if rank is None else rank, "f")], attrs, given)[0]

    # Shapes

    def size(self, x: Ref, axis: int) -> Ref:
        """The number of elements along an axis, as a number."""
        axis %= x.rank
        key = x.name, axis
        if key not in self._sizes:
            shape = self.emit("shape", x, rank=1, kind="i", start=axis, end=axis + 1)
            self._sizes[key] = self.emit("squeeze", shape, rank=0, axes=[0])
            self._size_of[self._sizes[key].name] = key
            self._as_vector[self._sizes[key].name] = shape
        return self._sizes[key]

    def is_size(self, n: Any, x: Ref, axis: int) -> bool:
        """Whether a number is the size of x along an axis, whatever that will be."""
        return isinstance(n, Ref) and self._size_of.get(n.name) == (x.name, axis % x.rank)

    def vector(self, numbers: Sequence[int | Ref]) -> Ref:
        """Numbers as one tensor with one axis."""
        if not any(isinstance(n, Ref) for n in numbers):
            return self.constant(np.array(numbers, np.int64).reshape(-1))
        parts: list[Ref] = []
        run: list[int] = []
        for n in (*numbers, None):
            if isinstance(n, int):
                run.append(n)
                continue
            if run:
                parts.append(self.constant(np.array(run, np.int64)))
                run = []
            if n is not None:
                known = self._as_vector.get(n.name)
                parts.append(known or (self.emit("unsqueeze", n, rank=1, axes=[0]) if n.rank == 0 else n))
        return parts[0] if len(parts) == 1 else self.emit("concat", *parts, axis=0)

    def reshape(self, x: Ref, sizes: Sequence[int | Ref]) -> Ref:
        """Numbers of x in another shape; a size of x that stays at its axis is copied without being read."""
        copied = [axis < x.rank and self.is_size(n, x, axis) for axis, n in enumerate(sizes)]
        wanted = [0 if copy else n for n, copy in zip(sizes, copied)]
        return self.emit("reshape", x, self.vector(wanted), rank=len(wanted), zero_copies=any(copied))

    def transpose(self, x: Ref, perm: Sequence[int]) -> Ref:
        axes = [axis % x.rank for axis in perm]
        return x if axes == sorted(axes) else self.emit("transpose", x, perm=axes)

    def swap(self, x: Ref, a: int, b: int) -> Ref:
        """x with two axes swapped."""
        perm = list(range(x.rank))
        perm[a], perm[b] = perm[b], perm[a]
        return self.transpose(x, perm)

    def unsqueeze(self, x: Ref, *axes: int) -> Ref:
        rank = x.rank + len(axes)
        return self.emit("unsqueeze", x, rank=rank, axes=sorted(a % rank for a in axes)) if axes else x

    def squeeze(self, x: Ref, *axes: int) -> Ref:
        return self.emit("squeeze", x, rank=x.rank - len(axes), axes=sorted(a % x.rank for a in axes)) if axes else x

    def part(self, x: Ref, axis: int, start: int | Ref, end: int | Ref) -> Ref:
        """A slice along one axis."""
        return self.emit("slice", x, self.vector([start]), self.vector([end]), [axis % x.rank])

    # Arithmetic

    def cast(self, x: Any, kind: str) -> Ref:
        """x as floating-point numbers ("f"), integers ("i") or truth values ("b")."""
        x = self.ref(x)
        if x.kind == kind:
            return x
        array = self.arrays.get(x.name)
        dtype = {"f": "float32", "i": "int64", "b": "bool"}[kind]
        if array is not None:
            return self.constant(array.astype(dtype), x.name)
        return self.emit("cast", x, kind=kind, dtype=dtype)

    def activation(self, x: Any, activation: Any) -> Ref:
        if activation == "linear":
            return self.ref(x)
        return self.emit("activation", self.cast(x, "f"), activation=activation)

    def binary(self, function: str, a: Any, b: Any, kind: str | None = None) -> Ref:
        """A function of two operands of one kind, the higher of theirs; the result has it too unless said."""
        order = "bif"
        kinds = [value.kind if isinstance(value, Ref) else np.asarray(value).dtype.kind for value in (a, b)]
        common = max(kinds, key=order.index)
        left, right = (self.cast(value, common) for value in (a, b))
        return self.emit("binary", left, right, rank=max(left.rank, right.rank), kind=kind or common, function=function)

    def add(self, a: Any, b: Any) -> Ref:
        return self.binary("add", a, b)

    def mul(self, a: Any, b: Any) -> Ref:
        return self.binary("mul", a, b)

    def divide(self, a: Any, b: Any) -> Ref:
        return self.binary("div", self.cast(a, "f"), self.cast(b, "f"))

    def matmul(self, a: Ref, b: Ref) -> Ref:
        rank = max(a.rank, b.rank, 2) - (a.rank == 1) - (b.rank == 1)
        return self.emit("matmul", self.cast(a, "f"), self.cast(b, "f"), rank=rank)

    def reduce(self, function: str, x: Ref, axes: Sequence[int] | None = None, keepdims: bool = False) -> Ref:
        which = None if axes is None else sorted(axis % x.rank for axis in axes)
        rank = x.rank if keepdims else 0 if which is None else x.rank - len(which)
        kind = "b" if function in ("any", "all") else "i" if x.kind == "b" else x.kind
        return self.emit("reduce", x, rank=rank, kind=kind, function=function, axes=which, keepdims=keepdims)
