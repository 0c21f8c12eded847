"""Keras' layers that merge several inputs, and what becomes of their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from string import ascii_letters

from ..errors import FormatError
from .files import short
from .keras_config import Call, Converted, Value, axis_of, flag
from .keras_emit import Emitter, Operand


def mask_of(x: Value) -> Value | None:
    """The mask of a tensor as a value."""
    return Value(x.mask, None if x.shape is None else x.shape[:-1], "", "bool") if x.mask else None


_MERGES = {"Add": "add", "Subtract": "sub", "Multiply": "mul", "Average": "add", "Maximum": "max", "Minimum": "min"}


def merge(call: Call) -> Converted:
    """Add, Subtract, Multiply, Average, Maximum, Minimum: tensors of fewer axes get new ones behind the batch."""
    emit, count = Emitter(call.name), len(call.inputs)
    if call.class_name == "Subtract" and count != 2:
        raise FormatError(f"it is called with {count} tensors, expected 2; the configuration is inconsistent")
    ranks = [None if x.shape is None else len(x.shape) for x in call.inputs]
    known = [rank for rank in ranks if rank is not None]
    inputs = [
        x
        if rank is None or rank == max(known)
        else replace(emit.unsqueeze(x, *range(1, 1 + max(known) - rank)), mask=x.mask)
        for x, rank in zip(call.inputs, ranks, strict=True)
    ]
    y, total = inputs[0], mask_of(inputs[0])
    by_mask = call.version.major > 2  # Keras 2 merges masked steps as all others
    if call.class_name == "Multiply" and by_mask:
        inputs = [_unless_masked(emit, x, x, 1.0) for x in inputs]
        y = inputs[0]
    for x in inputs[1:]:
        mask = mask_of(x)
        if call.class_name in ("Maximum", "Minimum") and by_mask:
            x, y = _unless_masked(emit, x, x, y), (_under(emit, total, y, x) if total else y)
        y = emit.binary(_MERGES[call.class_name], y, x)
        total = emit.binary("or", total, mask) if total and mask else None
    if call.class_name == "Multiply" and by_mask and total:
        y = _under(emit, total, y, 0.0)
    if call.class_name == "Average":
        y = emit.function("affine", y, 1 / count)
    mask = total if call.version.major > 2 else _all_masks(emit, [mask for x in inputs if (mask := mask_of(x))])
    return emit.done(replace(y, mask=mask.name if mask else ""))


def _under(emit: Emitter, mask: Value, a: Operand, b: Operand) -> Value:
    """``a`` at the steps of a mask, ``b`` at the others."""
    return emit.where(emit.unsqueeze(mask, len(mask.known_shape)), a, b)


def _unless_masked(emit: Emitter, x: Value, a: Operand, b: Operand) -> Value:
    """``a``, but ``b`` where ``x`` is masked; it keeps the mask."""
    mask = mask_of(x)
    return replace(_under(emit, mask, a, b), mask=x.mask) if mask else x


def _all_masks(emit: Emitter, masks: Sequence[Value]) -> Value | None:
    """Steps that no mask excludes."""
    return reduce(lambda a, b: emit.binary("and", a, b), masks) if masks else None


def concatenate(call: Call) -> Converted:
    """Concatenate; its mask is that of any part in Keras 3, of all parts in Keras 2."""
    emit, axis = Emitter(call.name), call.config.get("axis", -1)
    rank = len(call.x.known_shape)
    if any(len(x.known_shape) != rank for x in call.inputs):
        raise FormatError("it is called with tensors of several ranks; the configuration is inconsistent")
    axis = axis_of(axis, rank)
    y = emit.concat(call.inputs, axis)
    masks = [mask_of(x) for x in call.inputs]
    mask = None
    if any(masks):
        if axis == rank - 1:
            given = [mask for mask in masks if mask]
            if call.version.major < 3:
                mask = _all_masks(emit, given)
            elif len(given) == len(masks):
                mask = reduce(lambda a, b: emit.binary("or", a, b), given)
            else:  # a part without a mask has all steps
                mask = _all_steps(emit, y)
        else:
            parts = [m or _all_steps(emit, x) for m, x in zip(masks, call.inputs, strict=True)]
            mask = emit.concat(parts, axis)
    return emit.done(replace(y, mask=mask.name if mask else ""))


def _all_steps(emit: Emitter, x: Value) -> Value:
    """A mask of ``x`` that excludes nothing."""
    rank = len(x.known_shape)
    shape = emit.emit("shape", [x], (rank - 1,), "int64", end=rank - 1)
    return emit.emit("fill", [shape], x.known_shape[:-1], "bool", value=1, dtype="bool")


def dot(call: Call) -> Converted:
    """Dot: a sum of products over one axis of each of two tensors."""
    if len(call.inputs) != 2:
        raise FormatError(f"it is called with {len(call.inputs)} tensors, expected 2; the configuration is damaged")
    emit, axes = Emitter(call.name), call.config.get("axes")
    axes = axes if isinstance(axes, list) else [axes, axes]
    if len(axes) != 2:
        raise FormatError(f"'axes' is {short(axes)}, expected an integer or two; the configuration is damaged")
    ranks = [len(x.known_shape) for x in call.inputs]
    places = [axis_of(axis, rank) for axis, rank in zip(axes, ranks, strict=True)]
    if 0 in places or min(ranks) < 2:
        raise FormatError("it sums over the batch; the configuration is inconsistent")
    inputs = list(call.inputs)
    if flag(call.config, "normalize"):
        inputs = [l2_normalized(emit, x, [axis]) for x, axis in zip(inputs, places, strict=True)]
    terms = []
    for rank, axis, letters in zip(ranks, places, (ascii_letters[2:26], ascii_letters[26:]), strict=True):
        terms.append("a" + "".join("b" if k == axis else letters[k] for k in range(1, rank)))
    out = "a" + "".join(k for term in terms for k in term if k not in "ab")
    y = emit.einsum(terms, out, inputs)
    return emit.done(emit.unsqueeze(y, 1) if len(y.known_shape) == 1 else y)


def l2_normalized(emit: Emitter, x: Value, axes: Sequence[int], epsilon: float = 1e-7) -> Value:
    """``x`` over its length along some axes."""
    length = emit.function("sqrt", emit.reduce("sum_square", x, axes, keepdims=True))
    return emit.binary("div", x, emit.binary("max", length, epsilon))
