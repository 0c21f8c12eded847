"""The Keras layers that are supported, and how each becomes nodes of a :class:`~fastrnn.spec.ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import ROW_ACTIVATIONS
from ..spec import activation as spec_activation
from .files import short
from .keras_config import (
    ACTIVATION_LAYERS,
    Call,
    Config,
    Converted,
    Value,
    activation_layer,
    activation_of,
    class_and_config,
    flag,
    integer,
    node,
    number,
    shape_of,
    trailing_axes,
)
from .keras_recurrent import CELLS, bidirectional, recurrent


def dense(call: Call) -> Converted:
    """Dense: y = activation(x kernel + bias) over the last axis."""
    x, config = call.x, call.config
    if "units" not in config and (stored := call.weights.shape(0, "kernel")):  # written by a caller
        config = {**config, "units": stored[-1]}
    units = integer(config, "units")
    weights = {"weight": call.weights.take(0, "kernel", (x.features, units)).T.copy()}
    if flag(config, "use_bias", call.weights.shape(1, "bias") is not None):
        weights["bias"] = call.weights.take(1, "bias", (units,))
    attrs = {"activation": activation_of(config.get("activation"), call.version)}
    y = Value(call.name, (*x.shape[:-1], units) if x.shape else None, x.mask)
    return [node("dense", call.name, (x.name,), (y.name,), attrs, weights)], [y]


def embedding(call: Call) -> Converted:
    """Embedding: rows of a table, and with mask_zero a mask that is False where the id is 0."""
    rows, size = integer(call.config, "input_dim"), integer(call.config, "output_dim")
    weights = {"weight": call.weights.take(0, "embeddings", (rows, size))}
    mask = f"{call.name}/mask" if flag(call.config, "mask_zero") else ""
    y = Value(call.name, (*call.x.shape, size) if call.x.shape else None, mask)
    outputs = (y.name, mask) if mask else (y.name,)
    return [node("embedding", call.name, (call.x.name,), outputs, {"mask_zero": bool(mask)}, weights)], [y]


def masking(call: Call) -> Converted:
    """Masking: steps whose features all equal mask_value are masked, and zero."""
    y = Value(call.name, call.x.shape, f"{call.name}/mask")
    attrs = {"mask_value": number(call.config, "mask_value", 0.0)}
    return [node("masking", call.name, (call.x.name,), (y.name, y.mask), attrs)], [y]


def layer_normalization(call: Call) -> Converted:
    """LayerNormalization over trailing axes."""
    if flag(call.config, "rms_scaling"):
        raise UnsupportedError(
            "rms_scaling is set, which is another normalization; only LayerNormalization's own is run"
        )
    axes = trailing_axes(call.config.get("axis", -1), len(call.x.shape) if call.x.shape else None)
    shape = call.x.shape[-axes:] if call.x.shape else (None,) * axes
    weights: dict[str, np.ndarray] = {}
    for key, name, label in (("scale", "weight", "gamma"), ("center", "bias", "beta")):
        if flag(call.config, key, True):
            weights[name] = call.weights.take(len(weights), label, shape)
    attrs = {"eps": number(call.config, "epsilon", 1e-3), "axes": axes}
    y = replace(call.x, name=call.name)
    return [node("layer_norm", call.name, (call.x.name,), (y.name,), attrs, weights)], [y]


def batch_normalization(call: Call) -> Converted:
    """BatchNormalization with the recorded statistics, over the last axis or axis 1."""
    x, axis = call.x, call.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    rank = len(x.shape) if x.shape else None
    if type(axis) is not int or (axis >= 0 and rank is None):
        raise UnsupportedError(
            f"'axis' is {short(axis)} on an input of {rank or 'unknown'} axes, supported are -1 and 1"
        )
    is_last = axis in (-1, None if rank is None else rank - 1)
    if not is_last and axis != 1:
        raise UnsupportedError(f"'axis' is {axis}, supported are the last one and 1")
    if flag(call.config, "renorm"):
        raise UnsupportedError("renorm is set; train it without")
    shape = (None,) if x.shape is None else (x.shape[-1 if is_last else 1],)
    names = [name for key, name in (("scale", "gamma"), ("center", "beta")) if flag(call.config, key, True)]
    names += ["moving_mean", "moving_variance"]
    ours = {"gamma": "weight", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    weights = {ours[name]: call.weights.take(k, name, shape) for k, name in enumerate(names)}
    attrs = {"eps": number(call.config, "epsilon", 1e-3), "channels_first": not is_last}
    y = replace(x, name=call.name)
    return [node("batch_norm", call.name, (x.name,), (y.name,), attrs, weights)], [y]


def activation(call: Call) -> Converted:
    """Activation, ReLU, LeakyReLU, ThresholdedReLU, ELU, Softmax."""
    value = activation_layer(call.class_name, call.config, call.version)
    if call.class_name == "Softmax" and call.x.mask:
        raise UnsupportedError("it gets a mask, with which it excludes features; use Activation('softmax')")
    if spec_activation(value)[0] in ROW_ACTIVATIONS and call.x.shape is not None and len(call.x.shape) < 2:
        raise FormatError(f"softmax over an input of shape {call.x.shape}; the configuration is inconsistent")
    y = replace(call.x, name=call.name)
    return [node("activation", call.name, (call.x.name,), (y.name,), {"activation": value})], [y]


def nothing(call: Call) -> Converted:
    """Layers that only work in training: the tensor passes through."""
    return [], [call.x]


def time_distributed(call: Call) -> Converted:
    """TimeDistributed(layer) of a layer that works on the last axis alone: the layer itself."""
    class_name, config = class_and_config(call.config.get("layer"), "the wrapped layer")
    if class_name not in _LAST_AXIS:
        raise UnsupportedError(f"it wraps a layer of class {short(class_name)}, supported are {', '.join(_LAST_AXIS)}")
    shape = call.x.shape
    if shape is not None and len(shape) < 3:
        raise FormatError(f"its input has shape {shape}, expected at least 3 axes; the configuration is inconsistent")
    weights = call.weights.part("layer")
    x = replace(call.x, shape=None if shape is None else (shape[0], *shape[2:]))
    nodes, (y,) = CONVERTERS[class_name](replace(call, class_name=class_name, config=config, weights=weights, x=x))
    return nodes, [replace(y, shape=None if shape is None or y.shape is None else (*shape[:2], *y.shape[1:]))]


_TRAINING_ONLY = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
)
_LAST_AXIS = ("Dense", "LayerNormalization", *ACTIVATION_LAYERS, *_TRAINING_ONLY)

CONVERTERS: dict[str, Callable[[Call], Converted]] = {
    **{class_name: recurrent for class_name in CELLS if not class_name.endswith("Cell")},
    "RNN": recurrent,
    "Bidirectional": bidirectional,
    "Dense": dense,
    "TimeDistributed": time_distributed,
    "Embedding": embedding,
    "Masking": masking,
    "LayerNormalization": layer_normalization,
    "BatchNormalization": batch_normalization,
    **dict.fromkeys(ACTIVATION_LAYERS, activation),
    **dict.fromkeys((*_TRAINING_ONLY, "Identity"), nothing),
}
"""Class of a Keras layer: what turns a call of it into nodes and values."""

RECURRENT = tuple(name for name, converter in CONVERTERS.items() if converter in (recurrent, bidirectional))


def input_value(name: str, config: Config) -> Value:
    """The value that an InputLayer declares."""
    if config.get("sparse") or config.get("ragged"):
        raise UnsupportedError("a sparse or ragged input; use a dense one, with a mask for steps that do not exist")
    shape = config.get("batch_shape", config.get("batch_input_shape"))  # Keras 3, Keras 2
    return Value(name, None if shape is None else shape_of(shape, "the shape of the input"))
