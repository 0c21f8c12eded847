"""Keras' layers that scale: normalisations, Rescaling, PReLU, Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import FormatError, UnsupportedError
from .files import short
from .keras_config import Call, Converted, Shape, Value, activation_layer, axes_of, axis_of, flag, node, number
from .keras_emit import Emitter
from .keras_merge import l2_normalized


def _weights(call: Call, shape: Shape) -> dict[str, np.ndarray]:
    """The scale and the shift of a normalisation, where it has them."""
    weights: dict[str, np.ndarray] = {}
    for key, name, label in (("scale", "weight", "gamma"), ("center", "bias", "beta")):
        if flag(call.config, key, True):
            weights[name] = call.weights.take(len(weights), label, shape)
    return weights


def layer_normalization(call: Call) -> Converted:
    """LayerNormalization over any axes; others than the last ones come between two transposes."""
    emit, x, axis = Emitter(call.name), call.x, call.config.get("axis", -1)
    if x.shape is None and axis not in (-1, [-1]):
        raise UnsupportedError(
            "'axis' is not the last one and the rank of the input is unknown; save it with its input"
        )
    rank = len(x.shape) if x.shape else 1
    axes = axes_of(axis, rank)
    shape = tuple(x.shape[k] if x.shape else None for k in axes)
    eps = number(call.config, "epsilon", 1e-3)
    if flag(call.config, "rms_scaling"):  # over the deviation from the mean, which is not subtracted
        gamma = call.weights.take(0, "gamma", shape)
        centred = emit.binary("sub", x, emit.reduce("mean", x, axes, keepdims=True))
        y = emit.binary("mul", _over_root(emit, x, centred, axes, eps), _spread(gamma, axes, rank))
        return emit.done(y)
    weights = _weights(call, shape)
    order = [*(k for k in range(rank) if k not in axes), *axes]
    inside = x if x.shape is None else emit.transpose(x, order)
    attrs = {"eps": eps, "axes": len(axes)}
    y = emit.emit("layer_norm", [inside], inside.shape, "float32", weights=weights, **attrs)
    if x.shape is not None:
        y = emit.transpose(y, [order.index(k) for k in range(rank)])
    return emit.done(y)


def _over_root(emit: Emitter, x: Value, deviation: Value, axes: Sequence[int], eps: float) -> Value:
    """``x`` over the root of the mean square of ``deviation``."""
    square = emit.reduce("mean", emit.function("square", deviation), axes, keepdims=True)
    return emit.binary("div", x, emit.function("sqrt", emit.function("affine", square, 1.0, eps)))


def _spread(weight: np.ndarray, axes: Sequence[int], rank: int) -> np.ndarray:
    """A weight of some axes, to broadcast over the others."""
    shape = [1] * rank
    for axis, n in zip(axes, weight.shape, strict=True):
        shape[axis] = n
    return weight.reshape(shape)


def rms_normalization(call: Call) -> Converted:
    """RMSNormalization: over the root of the mean square."""
    emit, x = Emitter(call.name), call.x
    axes = axes_of(call.config.get("axis", -1), len(x.known_shape))
    scale = call.weights.take(0, "scale", tuple(x.known_shape[k] for k in axes))
    y = _over_root(emit, x, x, axes, number(call.config, "epsilon", 1e-6))
    return emit.done(emit.binary("mul", y, scale))  # Keras aligns it with the last axes, whichever were named


def unit_normalization(call: Call) -> Converted:
    """UnitNormalization: over the length."""
    emit, x = Emitter(call.name), call.x
    y = l2_normalized(emit, x, axes_of(call.config.get("axis", -1), len(x.known_shape)), 1e-12)
    return emit.done(y)


def group_normalization(call: Call) -> Converted:
    """GroupNormalization: a layer normalisation of each group of channels, then a scale and a shift of each channel."""
    emit, x, config = Emitter(call.name), call.x, call.config
    rank = len(x.known_shape)
    axis = axis_of(config.get("axis", -1), rank)
    channels, groups = x.known_shape[axis], config.get("groups", 32)
    groups = channels if groups == -1 else groups
    if type(groups) is not int or channels is None or groups < 1 or channels % groups or axis == 0:
        raise FormatError(f"{short(groups)} groups of {channels} channels; the configuration is inconsistent")
    inside = emit.move(x, axis, 1)
    y = emit.reshape(inside, [emit.size(inside, 0), groups, -1])
    y = emit.emit("layer_norm", [y], y.shape, "float32", eps=number(config, "epsilon", 1e-3))
    y = emit.reshape(y, [emit.size(inside, k) for k in range(rank)])
    weights = _weights(call, (channels,))
    for name, function in (("weight", "mul"), ("bias", "add")):
        if name in weights:
            y = emit.binary(function, y, weights[name].reshape(channels, *(1,) * (rank - 2)))
    return emit.done(emit.move(y, 1, axis))


def batch_normalization(call: Call) -> Converted:
    """BatchNormalization with the recorded statistics, over any axis."""
    x, axis = call.x, call.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    rank = len(x.shape) if x.shape else None
    if type(axis) is not int or (axis >= 0 and rank is None):
        raise UnsupportedError(
            f"'axis' is {short(axis)} on an input of {rank or 'unknown'} axes, expected one axis of them"
        )
    axis = axis_of(axis, rank) if rank else axis
    is_last = axis in (-1, None if rank is None else rank - 1)
    if flag(call.config, "renorm"):
        raise UnsupportedError("renorm is set; train it without")
    shape = (None,) if x.shape is None else (x.shape[axis],)
    names = [name for key, name in (("scale", "gamma"), ("center", "beta")) if flag(call.config, key, True)]
    names += ["moving_mean", "moving_variance"]
    ours = {"gamma": "weight", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    weights = {ours[name]: call.weights.take(k, name, shape) for k, name in enumerate(names)}
    attrs = {"eps": number(call.config, "epsilon", 1e-3), "channels_first": axis == 1 and not is_last}
    if is_last or axis == 1:
        y = replace(x, name=call.name)
        return Converted([node("batch_norm", call.name, (x.name,), (y.name,), attrs, weights)], [y])
    emit = Emitter(call.name)
    inside = emit.move(x, axis, len(x.known_shape) - 1)
    y = emit.emit("batch_norm", [inside], inside.shape, "float32", weights=weights, **attrs)
    return emit.done(emit.move(y, len(x.known_shape) - 1, axis))


def normalization(call: Call) -> Converted:
    """Normalization with the mean and variance that it was adapted to, or that its configuration has."""
    emit, x, config = Emitter(call.name), call.x, call.config
    rank, axis = len(x.known_shape), config.get("axis", -1)
    axes = [] if axis is None or axis == [] else axes_of(axis, rank)
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None:
        shape = tuple(x.known_shape[k] for k in axes)
        parts = [call.weights.take(k, name, shape) for k, name in enumerate(("mean", "variance"))]
        mean, variance = (_spread(part, axes, rank) for part in parts)
        call.weights.drop()  # the count of samples
    else:
        try:
            mean, variance = (np.asarray(part, np.float32) for part in (mean, variance))
        except (TypeError, ValueError):
            raise FormatError("'mean' and 'variance' are no lists of numbers; the configuration is damaged") from None
    deviation = np.maximum(np.sqrt(variance), np.float32(1e-7))
    if flag(config, "invert"):
        y = emit.binary("add", emit.binary("mul", emit.cast(x, "float32"), deviation), mean)
    else:
        y = emit.binary("div", emit.binary("sub", emit.cast(x, "float32"), mean), deviation)
    return emit.done(y)


def rescaling(call: Call) -> Converted:
    """Rescaling: x * scale + offset, numbers or one for each of the last features."""
    emit, config = Emitter(call.name), call.config
    if all(not isinstance(config.get(key, 0.0), list) for key in ("scale", "offset")):
        y = emit.function("affine", call.x, number(config, "scale", 1.0), number(config, "offset", 0.0))
    else:
        scale, offset = (_numbers(config.get(key, 0.0), key) for key in ("scale", "offset"))
        y = emit.binary("add", emit.binary("mul", emit.cast(call.x, "float32"), scale), offset)
    return emit.done(y)


def _numbers(value: object, key: str) -> np.ndarray:
    items = value if isinstance(value, list) else [value]
    return np.array([number({key: item}, key, 0.0) for item in items], np.float32)


def prelu(call: Call) -> Converted:
    """PReLU: a slope for each element, or one for all along the shared axes."""
    emit, x = Emitter(call.name), call.x
    rank, shared = len(x.known_shape), call.config.get("shared_axes")
    axes = axes_of(shared, rank) if shared not in (None, []) else []
    shape = tuple(1 if k in axes else n for k, n in enumerate(x.known_shape) if k)
    y = emit.binary("prelu", x, call.weights.take(0, "alpha", shape))
    return emit.done(y)


def softmax(call: Call) -> Converted:
    """Softmax over any axes; a mask of the shape of the tensor leaves elements out."""
    emit, x, axis = Emitter(call.name), call.x, call.config.get("axis", -1)
    mask = call.mask
    if mask and len(mask.known_shape) != len(x.known_shape):
        raise UnsupportedError("it gets a mask of steps, with which it excludes features; use Activation('softmax')")
    if axis in (-1, [-1]) and mask is None:
        value = activation_layer(call.class_name, {}, call.version)
        if x.shape is not None and len(x.shape) < 2:
            raise UnsupportedError(f"a softmax of shape {x.shape}; give it a batch axis and features")
        return emit.done(emit.activation(value, x))
    rank = len(x.known_shape)
    axes = axes_of(axis, rank)
    inside = emit.where(mask, x, -1e9) if mask else x
    if len(axes) == 1:
        y = emit.softmax(inside, axes[0])
    else:
        y = emit.function("exp", emit.binary("sub", inside, emit.reduce("log_sum_exp", inside, axes, keepdims=True)))
    return emit.done(emit.where(mask, y, 0.0) if mask else y)
