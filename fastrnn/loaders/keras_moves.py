"""Functions between Keras layers that move elements: shapes, parts, indices, repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .files import short
from .keras_config import Value, axes_of, axis_of
from .keras_emit import Dim, Emitter, Operand
from .keras_shapes import repeated
from .limits import MAX_RANK, MAX_UNITS

MAX_PARTS = 1024
"""Into which an axis may be split."""


def tensor(emit: Emitter, x: Operand) -> Value:
    return x if isinstance(x, Value) else emit.constant(x)


def one_axis(axis: Any, x: Value) -> int:
    return axis_of(axis, len(x.known_shape))


def whole_numbers(value: Any, what: str, most: int = MAX_RANK) -> list[int]:
    """Integers of a list, or one alone; an array counts as a list."""
    items = value.tolist() if isinstance(value, np.ndarray) else value
    items = items if isinstance(items, list) else [items]
    if len(items) > most or any(type(n) is not int or abs(n) > MAX_UNITS for n in items):
        raise UnsupportedError(f"{what} is {short(value)}, only constant integers are supported")
    return items


def reshape(emit: Emitter, x: Value, newshape: Any) -> Value:
    dims = newshape if isinstance(newshape, list) else whole_numbers(newshape, "a shape")
    exact: list[Dim] = []
    for k, n in enumerate(dims):
        if n is None and k < len(x.known_shape):  # the batch, or an axis without a size
            exact.append(emit.size(x, k))
        else:
            exact += whole_numbers(n, "a shape")
    if sum(n == -1 for n in exact) > 1 or any(isinstance(n, int) and n < -1 for n in exact):
        raise FormatError(f"a shape is {short(newshape)}; the configuration is damaged")
    return emit.reshape(x, exact)


def expand_dims(emit: Emitter, x: Operand, axis: Any) -> Value:
    x = tensor(emit, x)
    count = len(axis) if isinstance(axis, list) else 1
    return emit.unsqueeze(x, *axes_of(axis, len(x.known_shape) + count))


def squeeze(emit: Emitter, x: Value, axis: Any = None) -> Value:
    if axis in (None, []):
        if None in x.known_shape[1:]:
            raise UnsupportedError("all axes of size 1 of a tensor with unknown sizes; name the axes")
        return emit.squeeze(x, *(k for k, n in enumerate(x.known_shape) if n == 1))
    return emit.squeeze(x, *axes_of(axis, len(x.known_shape)))


def transpose(emit: Emitter, x: Value, axes: Any = None) -> Value:
    rank = len(x.known_shape)
    order = list(range(rank))[::-1] if axes is None else [n % rank for n in whole_numbers(axes, "the order of axes")]
    if sorted(order) != list(range(rank)):
        raise FormatError(f"the order {order} of {rank} axes; the configuration is inconsistent")
    return emit.transpose(x, order)


def swapaxes(emit: Emitter, x: Value, axis1: Any, axis2: Any) -> Value:
    order = list(range(len(x.known_shape)))
    one, other = one_axis(axis1, x), one_axis(axis2, x)
    order[one], order[other] = other, one
    return emit.transpose(x, order)


def moveaxis(emit: Emitter, x: Value, source: Any, destination: Any) -> Value:
    rank = len(x.known_shape)
    old, new = ([n % rank for n in whole_numbers(axes, "an axis")] for axes in (source, destination))
    order = [k for k in range(rank) if k not in old]
    for axis, place in sorted(zip(new, old)):
        order.insert(axis, place)
    return transpose(emit, x, order)


def concatenate(emit: Emitter, xs: Any, axis: Any = 0) -> Value:
    values = emit.operands(*tensors_of(xs))
    return emit.concat(values, 0 if axis is None else one_axis(axis, values[0]))


def tensors_of(xs: Any) -> list[Any]:
    if not isinstance(xs, list) or not any(isinstance(x, Value) for x in xs):
        raise FormatError(f"expected a list of tensors, got {short(xs)}; the configuration is damaged")
    return xs


def stack(emit: Emitter, x: Any, axis: Any = 0) -> Value:
    values = emit.operands(*tensors_of(x))
    axis = axis_of(axis, len(values[0].known_shape) + 1)
    return emit.concat([emit.unsqueeze(value, axis) for value in values], axis)


def split(emit: Emitter, x: Value, indices_or_sections: Any, axis: Any = 0) -> list[Value]:
    axis = one_axis(axis, x)
    n = x.known_shape[axis]
    given = whole_numbers(indices_or_sections, "the number of parts", MAX_PARTS)
    if not isinstance(indices_or_sections, (list, np.ndarray)):
        (count,) = given
        if not 0 < count <= MAX_PARTS or (n or 0) % count:
            raise FormatError(f"{count} equal parts of {n} elements; the configuration is inconsistent")
        return emit.split(x, axis, [None if n is None else n // count] * count)
    if n is None:
        raise UnsupportedError("parts of an axis of unknown size; save the model with its size")
    return sized_split(emit, x, [b - a for a, b in zip([0, *given], [*given, n])], axis)


def sized_split(emit: Emitter, x: Value, sizes: Any, axis: Any = 0) -> list[Value]:
    """As TensorFlow's: a number of parts, or their sizes."""
    if not isinstance(sizes, (list, np.ndarray)):
        return split(emit, x, sizes, axis)
    axis, given = one_axis(axis, x), whole_numbers(sizes, "the sizes of parts", MAX_PARTS)
    n = x.known_shape[axis]
    if min(given) < 0 or (n is not None and sum(given) != n):
        raise FormatError(f"parts of {given} of {n} elements; the configuration is inconsistent")
    return emit.split(x, axis, given)


def unstack(emit: Emitter, x: Value, num: Any = None, axis: Any = 0) -> list[Value]:
    axis = one_axis(axis, x)
    count = x.known_shape[axis] if num is None else num
    if type(count) is not int or not 0 < count <= MAX_PARTS:
        raise UnsupportedError(f"{short(count)} parts of an axis; expected 1 to {MAX_PARTS}")
    parts = [x] if count == 1 else emit.split(x, axis, [1] * count)
    return [emit.squeeze(part, axis) for part in parts]


def take(emit: Emitter, x: Value, indices: Operand, axis: Any = None) -> Value:
    if axis is None:
        raise UnsupportedError("elements of the flattened tensor; name an axis")
    axis = one_axis(axis, x)
    where = tensor(emit, indices)
    if where.dtype != "int64" and not isinstance(indices, Value):
        raise FormatError(f"the indices are {short(indices)}, expected integers; the configuration is damaged")
    where = emit.cast(where, "int64")
    shape = (*x.known_shape[:axis], *where.known_shape, *x.known_shape[axis + 1 :])
    return emit.emit("gather", [x, where], shape, axis=axis)


def get_item(emit: Emitter, x: Value, key: Any) -> Value:
    """Numbers, slices, ``...`` and new axes, as NumPy's basic indexing."""
    keys = list(key) if isinstance(key, list) else [key]
    if len(keys) > 2 * MAX_RANK:
        raise FormatError(f"{len(keys)} indices; the configuration is damaged")
    rank, used = len(x.known_shape), sum(part is not None and part is not Ellipsis for part in keys)
    if used > rank or sum(part is Ellipsis for part in keys) > 1:
        raise FormatError(f"{used} indices for {rank} axes; the configuration is inconsistent")
    y, axis, dropped, added, out = x, 0, [], [], 0
    for part in keys:
        if part is None:
            added.append(out)
            out += 1
        elif part is Ellipsis:
            axis, out = axis + rank - used, out + rank - used
        elif isinstance(part, slice):
            if (part.start, part.stop, part.step) not in ((None, None, None), (0, None, None), (0, None, 1)):
                y = emit.slice(y, axis, part.start, part.stop, 1 if part.step is None else part.step or 1)
            axis, out = axis + 1, out + 1
        elif type(part) is int:
            n = y.known_shape[axis]
            if n is not None and not -n <= part < n:
                raise FormatError(f"index {part} of an axis of {n} elements; the configuration is inconsistent")
            y = emit.slice(y, axis, part, part + 1 if part != -1 else None)
            y = replace(y, shape=(*y.known_shape[:axis], 1, *y.known_shape[axis + 1 :]))
            dropped.append(axis)
            axis += 1
        else:
            raise UnsupportedError(f"an index {short(part)}, supported are constant integers and slices")
    return emit.unsqueeze(emit.squeeze(y, *dropped), *added)


def tile(emit: Emitter, x: Value, repeats: Any) -> Value:
    given = whole_numbers(repeats, "the number of repeats")
    rank = len(x.known_shape)
    x = emit.unsqueeze(x, *range(len(given) - rank))
    given = [1] * (rank - len(given)) + given
    if min(given) < 1:
        raise FormatError(f"{given} repeats; the configuration is damaged")
    return emit.tile(x, given)


def repeat(emit: Emitter, x: Value, repeats: Any, axis: Any = None) -> Value:
    given = whole_numbers(repeats, "the number of repeats")
    if axis is None or len(given) != 1 or given[0] < 1:
        raise UnsupportedError("repeats of the flattened tensor, or one for each element; name an axis and a number")
    return repeated(emit, x, one_axis(axis, x), given[0])


def broadcast_to(emit: Emitter, x: Operand, shape: Any) -> Value:
    x = tensor(emit, x)
    dims = shape if isinstance(shape, list) else [shape]
    if None in dims:
        raise UnsupportedError("a shape with unknown sizes; save the model with known ones")
    sizes = whole_numbers(dims, "a shape")
    return emit.emit("expand", [x, emit.constant(np.array(sizes, np.int64))], tuple(sizes))


def flip(emit: Emitter, x: Value, axis: Any = None) -> Value:
    rank = len(x.known_shape)
    for k in range(rank) if axis is None else axes_of(axis, rank):
        x = emit.slice(x, k, None, None, -1)
    return x


def pad(emit: Emitter, x: Value, pad_width: Any, mode: Any = "constant", constant_values: Any = 0) -> Value:
    rows = pad_width.tolist() if isinstance(pad_width, np.ndarray) else pad_width
    pairs = [whole_numbers(row, "a padding") for row in rows] if isinstance(rows, list) else []
    if len(pairs) != len(x.known_shape) or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise UnsupportedError(f"a padding of {short(pad_width)}; give two numbers for each axis")
    value = 0 if constant_values is None else constant_values
    if str(mode).lower() != "constant" or type(value) not in (int, float):
        raise UnsupportedError(f"a padding of mode {short(mode)} with {short(value)}; pad with a constant number")
    return emit.pad(x, [pair[0] for pair in pairs], [pair[1] for pair in pairs], value)


def like(number: int) -> Callable[..., Value]:
    def function(emit: Emitter, x: Value, dtype: Any = None) -> Value:
        kind = x.dtype if dtype is None else dtype_of(dtype)
        shape = emit.emit("shape", [x], (len(x.known_shape),), "int64")
        return emit.emit("fill", [shape], x.shape, kind, value=number, dtype=kind)

    return function


def dtype_of(name: Any) -> str:
    """Our dtype for one of Keras."""
    text = str(name)
    return "bool" if text == "bool" else "int64" if text.startswith(("int", "uint")) else "float32"
