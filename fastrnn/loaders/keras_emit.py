"""Writes the nodes of one call of a Keras layer, and keeps track of the shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import ACTIVATIONS, Node
from .files import short
from .keras_config import Converted, Shape, Value, node
from .limits import MAX_RANK

LOGICAL = ("and", "or", "xor")
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", *LOGICAL)
END = (1 << 63) - 1
"""Where a slice ends that goes to the end of an axis."""


@dataclass(frozen=True)
class Size:
    """The size of an axis of a tensor, which only a run knows."""

    x: Value
    axis: int


Dim = int | Size
Operand = Value | np.ndarray | Sequence[Any] | float


class Emitter:
    """The nodes and constants of one call of a layer, named after it.

    Each method writes an operator of :data:`fastrnn.spec.OPS`, or none where it would change nothing, and returns the
    result.  Axes count from the front; masks do not travel.
    """

    def __init__(self, name: str):
        self._name = name
        self._nodes: list[Node] = []
        self._constants: dict[str, np.ndarray] = {}
        self._counts = Counter[str]()

    def done(self, *values: Value) -> Converted:
        """The finished call; its results get the names of its outputs, where they are not tensors of others."""
        written = {name for n in self._nodes for name in n.outputs} | set(self._constants)
        names: dict[str, str] = {}
        for k, value in enumerate(values):
            if value.name in written:
                names.setdefault(value.name, self._name + (f":{k}" if k else ""))

        def renamed(tensors: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(names.get(name, name) for name in tensors)

        nodes = [
            replace(n, name=names.get(n.outputs[0], n.name), inputs=renamed(n.inputs), outputs=renamed(n.outputs))
            for n in self._nodes
        ]
        constants = {names.get(name, name): array for name, array in self._constants.items()}
        return Converted(nodes, [replace(v, name=names.get(v.name, v.name)) for v in values], constants)

    def include(self, part: Converted) -> list[Value]:
        """Take in another call, made inside this one."""
        self._nodes += part.nodes
        self._constants |= part.constants
        return part.values

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape | None,
        kind: str = "",
        weights: Mapping[str, np.ndarray] | None = None,
        **attrs: Any,
    ) -> Value:
        """One node of one output, of the dtype ``kind`` or that of the first input."""
        if shape is not None and len(shape) > MAX_RANK:
            raise UnsupportedError(f"a tensor of {len(shape)} axes, at most {MAX_RANK} are supported")
        name = self._new(op)
        self._nodes.append(node(op, name, tuple(x.name for x in inputs), (name,), attrs, dict(weights or {})))
        return Value(name, shape, None, kind or inputs[0].dtype)

    def split(self, x: Value, axis: int, sizes: Sequence[int | None]) -> list[Value]:
        """Parts of ``x``; sizes that are not known are equal."""
        shape, name = x.known_shape, self._new("split")
        names = tuple(f"{name}/{k}" for k in range(len(sizes)))
        attrs = {"axis": axis, "sizes": None if None in sizes else list(sizes)}
        self._nodes.append(node("split", name, (x.name,), names, attrs))
        return [
            Value(part, (*shape[:axis], n, *shape[axis + 1 :]), None, x.dtype)
            for part, n in zip(names, sizes, strict=True)
        ]

    def constant(self, value: Any, like: str = "") -> Value:
        """A constant tensor.  Integers become floating-point beside such a tensor, whose dtype is ``like``."""
        array = constant_array(value)
        if array.dtype.kind == "f" or (array.dtype.kind in "iu" and like == "float32"):
            array = array.astype(np.float32)
        elif array.dtype.kind in "iu":
            array = array.astype(np.int64)
        name = self._new("constant")
        self._constants[name] = array
        return Value(name, array.shape, None, str(array.dtype))

    def _new(self, what: str) -> str:
        rank, self._counts[what] = self._counts[what], self._counts[what] + 1
        return f"{self._name}/{what}" + (f"_{rank}" if rank else "")

    # Element by element.

    def cast(self, x: Value, dtype: str) -> Value:
        """``x`` as float32, int64 or bool."""
        return x if x.dtype == dtype else self.emit("cast", [x], x.shape, dtype, dtype=dtype)

    def function(self, name: str, x: Value, *numbers: float) -> Value:
        """An activation or another function of each element."""
        if name in ACTIVATIONS:
            return self.activation((name, *numbers) if numbers else name, x)
        logical = name in ("not", "isnan", "isinf")
        x = self.cast(x, "bool") if name == "not" else x if logical else self.cast(x, "float32")
        return self.emit("unary", [x], x.shape, "bool" if logical else "", function=name)

    def activation(self, value: Any, x: Value) -> Value:
        """An activation, as the spec writes it."""
        return x if value == "linear" else self.emit("activation", [self.cast(x, "float32")], x.shape, activation=value)

    def operands(self, *given: Operand) -> list[Value]:
        """Values of one dtype, constants among them."""
        kinds = {x.dtype for x in given if isinstance(x, Value)}
        like = next((kind for kind in ("float32", "int64", "bool") if kind in kinds), "")
        values = [x if isinstance(x, Value) else self.constant(x, like) for x in given]
        kinds = {x.dtype for x in values}
        widest = next(kind for kind in ("float32", "int64", "bool") if kind in kinds)
        return [self.cast(x, widest) for x in values]

    def binary(self, name: str, a: Operand, b: Operand) -> Value:
        """A function of two tensors that broadcast, or of a tensor and a constant."""
        one, other = self.operands(a, b)
        if name in LOGICAL:
            one, other = self.cast(one, "bool"), self.cast(other, "bool")
        elif one.dtype == "bool" and name not in COMPARISONS:
            one, other = self.cast(one, "int64"), self.cast(other, "int64")
        shape = broadcast(one.shape, other.shape)
        return self.emit("binary", [one, other], shape, "bool" if name in COMPARISONS else "", function=name)

    def where(self, condition: Value, a: Operand, b: Operand) -> Value:
        """``a`` where ``condition`` holds, else ``b``."""
        one, other = self.operands(a, b)
        shape = broadcast(broadcast(one.shape, other.shape), condition.shape)
        return self.emit("where", [self.cast(condition, "bool"), one, other], shape, one.dtype)

    # Along axes.

    def reduce(self, name: str, x: Value, axes: Sequence[int] | None, keepdims: bool = False) -> Value:
        """One of ``REDUCTIONS`` over some axes, or all."""
        shape: Shape | None = None
        if x.shape is not None:
            over = range(len(x.shape)) if axes is None else axes
            shape = tuple(1 if k in over else n for k, n in enumerate(x.shape) if keepdims or k not in over)
        if name in ("any", "all"):
            x = self.cast(x, "bool")
        elif x.dtype == "bool" or name in ("mean", "log_sum_exp"):
            x = self.cast(x, "float32" if name in ("mean", "log_sum_exp") else "int64")
        where = None if axes is None else list(axes)
        return self.emit("reduce", [x], shape, function=name, axes=where, keepdims=keepdims)

    def softmax(self, x: Value, axis: int, logarithm: bool = False) -> Value:
        return self.emit("softmax", [self.cast(x, "float32")], x.shape, axis=axis, logarithm=logarithm)

    def matmul(self, a: Value, b: Value) -> Value:
        """Matrix products over the last two axes, as NumPy's; vectors count as matrices of one row or column."""
        one, other = a.known_shape, b.known_shape
        if not one or not other:
            raise FormatError("a matrix product with a number; the configuration is inconsistent")
        inner = other[-2] if len(other) > 1 else other[0]
        if None not in (one[-1], inner) and one[-1] != inner:
            raise FormatError(f"a matrix product of shapes {one} and {other}; the configuration is inconsistent")
        batch = broadcast(one[:-2], other[:-2]) or ()
        shape = (*batch, *one[-2:-1], *other[-1:]) if len(other) > 1 else (*batch, *one[-2:-1])
        return self.emit("matmul", self.operands(a, b), shape)

    # Shapes.

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        shape = x.known_shape
        if list(perm) == list(range(len(shape))):
            return x
        return self.emit("transpose", [x], tuple(shape[k] for k in perm), perm=list(perm))

    def move(self, x: Value, source: int, target: int) -> Value:
        """``x`` with one axis in another place."""
        order = [k for k in range(len(x.known_shape)) if k != source]
        order.insert(target, source)
        return self.transpose(x, order)

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        """New axes of size 1, where they are in the result."""
        if not axes:
            return x
        shape = list(x.known_shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        return self.emit("unsqueeze", [x], tuple(shape), axes=list(axes))

    def squeeze(self, x: Value, *axes: int) -> Value:
        """Without some axes of size 1."""
        if any(x.known_shape[axis] not in (1, None) for axis in axes):
            raise FormatError(f"axes {list(axes)} of shape {x.shape} are not of size 1; the configuration is damaged")
        shape = tuple(n for k, n in enumerate(x.known_shape) if k not in axes)
        return self.emit("squeeze", [x], shape, axes=list(axes)) if axes else x

    def size(self, x: Value, axis: int) -> Dim:
        """The size of an axis: a number, or what a run finds."""
        n = x.known_shape[axis]
        return Size(x, axis) if n is None else n

    def shape_tensor(self, dims: Sequence[Dim]) -> Value:
        """A shape as a tensor of integers."""
        if all(isinstance(n, int) for n in dims):
            return self.constant(np.array(dims, np.int64))
        parts = [
            self.emit("shape", [n.x], (1,), "int64", start=n.axis, end=n.axis + 1)
            if isinstance(n, Size)
            else self.constant(np.array([n], np.int64))
            for n in dims
        ]
        return self.emit("concat", parts, (len(parts),), axis=0) if len(parts) > 1 else parts[0]

    def reshape(self, x: Value, dims: Sequence[Dim]) -> Value:
        """``x`` in another shape; -1 is what remains."""
        old = x.shape
        shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in dims)
        rest = [k for k, n in enumerate(dims) if n == -1]
        if rest and old is not None and None not in old and None not in (*shape[: rest[0]], *shape[rest[0] + 1 :]):
            shape = _filled(shape, old)
        if old is not None and shape == old and len(rest) < 2 and None not in shape[1:]:
            return x
        exact = list(dims)
        for k, n in enumerate(exact):  # what stays where it is, and one unknown size, need no other node
            if isinstance(n, Size) and n.x.name == x.name and n.axis == k:
                exact[k] = 0
        unknown = [k for k, n in enumerate(exact) if isinstance(n, Size)]
        if len(unknown) == 1 and not rest:
            exact[unknown[0]] = -1
        return self.emit("reshape", [x, self.shape_tensor(exact)], shape, x.dtype)

    def slice(self, x: Value, axis: int, start: int | None, stop: int | None, step: int = 1) -> Value:
        """A part of an axis, as Python's slices."""
        shape = x.known_shape
        n = shape[axis]
        size = None if n is None else len(range(n)[start:stop:step])
        if n is None and start is not None and stop is not None and step == 1 and (start < 0) == (stop < 0):
            size = None  # the axis may be shorter
        if step > 0:
            bounds = 0 if start is None else start, END if stop is None else stop
        else:
            bounds = END if start is None else start, -END if stop is None else stop
        parts = [self.constant(np.array([k], np.int64)) for k in (*bounds, axis, step)]
        return self.emit("slice", [x, *parts], (*shape[:axis], size, *shape[axis + 1 :]))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Tensors behind one another along an axis."""
        values = self.operands(*values)
        shapes = [value.known_shape for value in values]
        if len({len(shape) for shape in shapes}) > 1:
            raise FormatError(f"tensors of shapes {shapes} are concatenated; the configuration is inconsistent")
        shape = [next((n for n in sizes if n is not None), None) for sizes in zip(*shapes)]
        total = [s[axis] for s in shapes]
        shape[axis] = None if None in total else sum(n or 0 for n in total)
        return self.emit("concat", values, tuple(shape), axis=axis)

    def tile(self, x: Value, repeats: Sequence[int]) -> Value:
        """``x`` several times along each axis."""
        shape = tuple(None if n is None else n * times for n, times in zip(x.known_shape, repeats, strict=True))
        return self.emit("tile", [x, self.constant(np.array(repeats, np.int64))], shape)

    def pad(self, x: Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Value:
        """``x`` with more elements around it."""
        shape = tuple(None if n is None else n + a + b for n, a, b in zip(x.known_shape, before, after, strict=True))
        inputs = [x, self.constant(np.array([*before, *after], np.int64))]
        return self.emit("pad", [*inputs, self.constant(value, x.dtype)] if value else inputs, shape)

    def einsum(self, terms: Sequence[str], out: str, values: Sequence[Value]) -> Value:
        """A sum of products over one letter for each axis; no letter twice in a term."""
        (term, *terms), (y, *values) = list(terms), list(values)
        while True:
            needed = set(out).union(*terms)
            if dropped := [k for k, letter in enumerate(term) if letter not in needed]:
                y = self.reduce("sum", y, dropped)
                term = "".join(letter for letter in term if letter in needed)
            if not terms:
                return self.transpose(y, [term.index(letter) for letter in out])
            other, z = terms.pop(0), values.pop(0)
            needed = set(out).union(*terms)
            if dropped := [k for k, letter in enumerate(other) if letter not in needed and letter not in term]:
                z = self.reduce("sum", z, dropped)
                other = "".join(letter for letter in other if letter in needed or letter in term)
            term, y = self._product(term, y, other, z, needed)

    def _product(self, one: str, a: Value, two: str, b: Value, needed: set[str]) -> tuple[str, Value]:
        """Two terms as one matrix product, in the order: common letters, those of the first, those of the second."""
        common = [k for k in one if k in two and k in needed]
        summed = [k for k in one if k in two and k not in needed]
        left, right = ([k for k in term if k not in other] for term, other in ((one, two), (two, one)))
        sizes = {k: self.size(b, n) for n, k in enumerate(two)} | {k: self.size(a, n) for n, k in enumerate(one)}
        a = self.transpose(a, [one.index(k) for k in (*common, *left, *summed)])
        b = self.transpose(b, [two.index(k) for k in (*common, *summed, *right)])
        a = self._merged(a, [[k] for k in common] + [left, summed], sizes)
        b = self._merged(b, [[k] for k in common] + [summed, right], sizes)
        y = self.matmul(a, b)
        letters = [*common, *left, *right]
        if len(left) != 1 or len(right) != 1:
            y = self.reshape(y, [sizes[k] for k in letters])
        return "".join(letters), y

    def _merged(self, x: Value, groups: list[list[str]], sizes: Mapping[str, Dim]) -> Value:
        """``x`` with each group of axes, which stand together, as one."""
        if all(len(group) == 1 for group in groups):
            return x
        dims: list[Dim] = []
        for group in groups:
            known = [sizes[k] for k in group]
            if len(known) == 1:
                dims.append(known[0])
            elif all(isinstance(n, int) for n in known):
                dims.append(prod(n for n in known if isinstance(n, int)))
            else:
                dims.append(-1)
        if dims.count(-1) > 1:
            raise UnsupportedError("sizes of several of its axes are not known; save the model with their sizes")
        return self.reshape(x, dims)


def constant_array(value: Any) -> np.ndarray:
    """Numbers of a configuration, nested in lists, as an array."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.ndim > MAX_RANK:
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise FormatError(
            f"a constant is {short(value)}, expected numbers in lists of one shape; the file is damaged"
        ) from None
    return array


def broadcast(one: Shape | None, other: Shape | None) -> Shape | None:
    """The shape of an operation on two tensors of these shapes."""
    if one is None or other is None:
        return None
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    filled = (1,) * (len(longer) - len(shorter)) + shorter
    if any(None not in (a, b) and a != b and 1 not in (a, b) for a, b in zip(longer, filled, strict=True)):
        raise FormatError(f"tensors of shapes {one} and {other} meet; the configuration is inconsistent")
    return tuple(b if a == 1 else a if b == 1 or a is not None else b for a, b in zip(longer, filled, strict=True))


def _filled(shape: Shape, old: Shape) -> Shape:
    """``shape`` with the size that its one unknown axis has, for the elements of ``old``."""
    total, known = prod(n or 0 for n in old), prod(n for n in shape if n is not None)
    if known == 0 or total % known:
        raise FormatError(f"a tensor of shape {old} cannot take the shape {shape}; the configuration is inconsistent")
    return tuple(total // known if n is None else n for n in shape)
