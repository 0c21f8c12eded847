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
from .keras_file import Version
from .keras_masks import Masks, check_mask

_MERGES = {"Add": "add", "Subtract": "sub", "Multiply": "mul", "Average": "add", "Maximum": "max", "Minimum": "min"}


def merge(call: Call) -> Converted:
    """Add, Subtract, Multiply, Average, Maximum, Minimum: tensors of fewer axes get new ones behind the batch."""
    emit, count = Emitter(call.name), len(call.inputs)
    if call.class_name == "Subtract" and count != 2:
        raise FormatError(f"it is called with {count} tensors, expected 2; the configuration is inconsistent")
    ranks = [None if x.shape is None else len(x.shape) for x in call.inputs]
    rank = max((rank for rank in ranks if rank is not None), default=None)
    whole = [own in (None, rank) for own in ranks]
    inputs = [
        x if fits or own is None or rank is None else emit.unsqueeze(x, *range(1, 1 + rank - own))
        for x, own, fits in zip(call.inputs, ranks, whole, strict=True)
    ]
    masks: Masks = call.kept or (None,) * count
    if call.version >= (3, 4):  # others merge masked steps as all steps
        read = [mask if fits else None for mask, fits in zip(masks, whole, strict=True)]  # reshaped tensors have none
    else:
        read = [None] * count
    for mask in read:
        check_mask(mask, (rank or 0) - 1)
    if call.class_name == "Multiply":
        inputs = [_unless_masked(emit, x, mask, 1.0) for x, mask in zip(inputs, read, strict=True)]
    y, total = inputs[0], read[0]
    for x, mask in zip(inputs[1:], read[1:], strict=True):
        if call.class_name in ("Maximum", "Minimum"):
            x = _unless_masked(emit, x, mask, y)
            y = _unless_masked(emit, y, total, x)
        y = emit.binary(_MERGES[call.class_name], y, x)
        total = emit.binary("or", total, mask) if total and mask else None
    if call.class_name == "Multiply":
        y = _unless_masked(emit, y, total, 0.0)
    if call.class_name == "Average":
        y = emit.function("affine", y, 1 / count)
    return emit.done(replace(y, mask=_merged_mask(emit, call.version, masks, total)))


def _merged_mask(emit: Emitter, version: Version, masks: Masks, union: Value | None) -> Value | None:
    """The mask of a merge: steps that all masks have in Keras 2, that any of them has, if all are there, in Keras 3."""
    given = [mask for mask in masks if mask]
    if version.major < 3:
        return reduce(lambda a, b: emit.binary("and", a, b), given) if given else None
    if union is None and len(given) == len(masks):
        union = reduce(lambda a, b: emit.binary("or", a, b), given)
    return union


def _unless_masked(emit: Emitter, x: Value, mask: Value | None, other: Operand) -> Value:
    """``x``, but ``other`` where ``x`` is masked."""
    return emit.where(emit.unsqueeze(mask, len(mask.known_shape)), x, other) if mask else x


def concatenate(call: Call) -> Converted:
    """Concatenate; its mask is that of any part in Keras 3, of all parts in Keras 2."""
    emit, axis = Emitter(call.name), call.config.get("axis", -1)
    rank = len(call.x.known_shape)
    if any(len(x.known_shape) != rank for x in call.inputs):
        raise FormatError("it is called with tensors of several ranks; the configuration is inconsistent")
    axis = axis_of(axis, rank)
    y = emit.concat(call.inputs, axis)
    masks: Masks = call.kept or (None,) * len(call.inputs)
    for given in masks:
        check_mask(given, rank - 1)
    mask = None
    if any(masks) and axis != rank - 1:
        parts = [m or _all_steps(emit, x) for m, x in zip(masks, call.inputs, strict=True)]
        mask = emit.concat(parts, axis)
    elif any(masks):  # a part without a mask has all steps
        mask = _merged_mask(emit, call.version, masks, None) or _all_steps(emit, y)
    return emit.done(replace(y, mask=mask))


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
