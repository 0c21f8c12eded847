"""The Keras layers that are supported, and how each becomes nodes of a :class:`~fastrnn.spec.ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import FormatError, UnsupportedError
from ..spec import ROW_ACTIVATIONS
from ..spec import activation as spec_activation
from .files import short
from .keras_attention import attention, multi_head_attention
from .keras_config import (
    ACTIVATION_LAYERS,
    MODELS,
    Call,
    Config,
    Converted,
    Shape,
    Value,
    activation_layer,
    activation_of,
    axes_of,
    class_and_config,
    flag,
    integer,
    node,
    number,
    shape_of,
)
from .keras_conv import conv, conv_transpose, depthwise_conv, global_pool, pool, separable_conv
from .keras_emit import Emitter
from .keras_merge import concatenate, dot, merge
from .keras_norm import (
    batch_normalization,
    group_normalization,
    layer_normalization,
    normalization,
    prelu,
    rescaling,
    rms_normalization,
    softmax,
    unit_normalization,
)
from .keras_recurrent import CELLS, bidirectional, recurrent
from .keras_shapes import (
    cropping,
    einsum_dense,
    flatten,
    permute,
    repeat_vector,
    reshape,
    up_sampling,
    zero_padding,
)


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
    y = Value(call.name, (*x.shape[:-1], units) if x.shape else None)
    return Converted([node("dense", call.name, (x.name,), (y.name,), attrs, weights)], [y])


def embedding(call: Call) -> Converted:
    """Embedding: rows of a table, and with mask_zero a mask that is False where the id is 0."""
    config, stored = call.config, call.weights.shape(0, "embeddings")
    if stored and len(stored) == 2:  # a caller need not write them
        config = {"input_dim": stored[0], "output_dim": stored[1], **config}
    rows, size = integer(config, "input_dim"), integer(config, "output_dim")
    weights = {"weight": call.weights.take(0, "embeddings", (rows, size))}
    mask = Value(f"{call.name}/mask", call.x.shape, None, "bool") if flag(config, "mask_zero") else None
    y = Value(call.name, (*call.x.shape, size) if call.x.shape else None, mask)
    outputs = (y.name, mask.name) if mask else (y.name,)
    nodes = [node("embedding", call.name, (call.x.name,), outputs, {"mask_zero": mask is not None}, weights)]
    return Converted(nodes, [y])


def masking(call: Call) -> Converted:
    """Masking: steps whose features all equal mask_value are masked, and zero."""
    mask = Value(f"{call.name}/mask", call.x.shape[:-1] if call.x.shape else None, None, "bool")
    attrs = {"mask_value": number(call.config, "mask_value", 0.0)}
    nodes = [node("masking", call.name, (call.x.name,), (call.name, mask.name), attrs)]
    return Converted(nodes, [Value(call.name, call.x.shape, mask)])


def activation(call: Call) -> Converted:
    """Activation, ReLU, LeakyReLU, ThresholdedReLU, ELU."""
    if call.class_name == "ReLU" and (composed := _relu(call)):
        return composed
    value = activation_layer(call.class_name, call.config, call.version)
    if spec_activation(value)[0] in ROW_ACTIVATIONS and call.x.shape is not None and len(call.x.shape) < 2:
        raise FormatError(f"softmax over an input of shape {call.x.shape}; the configuration is inconsistent")
    alias = call.x.identity if value == "linear" else ""
    y = replace(call.x, name=call.name, dtype="float32", alias=alias)
    return Converted([node("activation", call.name, (call.x.name,), (y.name,), {"activation": value})], [y])


def _relu(call: Call) -> Converted | None:
    """A ReLU of several options, which no activation is; None for the others."""
    config, top = call.config, call.config.get("max_value")
    slope, threshold = (number(config, key, 0.0) for key in ("negative_slope", "threshold"))
    if sum((top is not None, bool(slope), bool(threshold))) < 2:
        return None
    emit, x = Emitter(call.name), call.x
    above = x if top is None else emit.binary("min", x, number(config, "max_value", 0.0))
    below = emit.function("affine", x, slope, -slope * threshold)
    return emit.done(emit.where(emit.binary("greater_equal", x, threshold), above, below))


def nothing(call: Call) -> Converted:
    """Layers that only work in training: the tensor passes through."""
    return Converted([], [call.x])


def time_distributed(call: Call) -> Converted:
    """TimeDistributed(layer): the layer itself where it works on the last axes alone, else on a batch of all steps."""
    class_name, config = class_and_config(call.config.get("layer"), "the wrapped layer")
    shape, weights = call.x.shape, call.weights.part("layer")
    if shape is not None and len(shape) < 3:
        raise FormatError(f"its input has shape {shape}, expected at least 3 axes; the configuration is inconsistent")
    rest = None if shape is None else (shape[0], *shape[2:])
    step_mask = call.mask and replace(call.mask, shape=call.mask.shape and (None, *call.mask.shape[2:]))
    if class_name in _LAST_AXIS or (class_name == "LayerNormalization" and _is_trailing(config, rest)):
        inside = replace(call, class_name=class_name, config=config, weights=weights, masks=(step_mask,))
        part = CONVERTERS[class_name](replace(inside, inputs=(replace(call.x, shape=rest),)))
        (y,) = part.values
        shape = None if shape is None or y.shape is None else (*shape[:2], *y.shape[1:])
        part.values = [replace(y, shape=shape, mask=call.kept_mask)]
        return part
    if class_name not in CONVERTERS and class_name not in MODELS:
        raise UnsupportedError(f"it wraps a layer of class {short(class_name)}, which is not supported")
    assert call.inner is not None
    emit, x = Emitter(call.name), call.x
    rows = replace(_each_step(emit, x), mask=call.mask and _each_step(emit, call.mask))
    values = emit.include(call.inner(class_name, config, weights, rows))
    if len(values) != 1:
        raise UnsupportedError(f"it wraps a layer of {len(values)} outputs; wrap layers of one")
    (y,) = values
    mask = call.kept_mask
    if call.version.major < 3 and y.mask:  # the mask that the layer inside attaches, at each step
        mask = _all_steps(emit, x, y.mask)
    elif call.version.major < 3 and mask and len(mask.known_shape) > 2:
        mask = emit.reduce("any", mask, range(2, len(mask.known_shape)))
    return emit.done(replace(_all_steps(emit, x, y), mask=mask))


def _each_step(emit: Emitter, x: Value) -> Value:
    """A tensor (batch, time, ...) as a batch of all steps."""
    return emit.reshape(x, [-1, *(emit.size(x, k) for k in range(2, len(x.known_shape)))])


def _all_steps(emit: Emitter, x: Value, rows: Value) -> Value:
    """A batch of all steps of ``x`` as (batch, time, ...)."""
    dims = [emit.size(x, 0), emit.size(x, 1), *(emit.size(rows, k) for k in range(1, len(rows.known_shape)))]
    return emit.reshape(rows, dims)


def _is_trailing(config: Config, shape: Shape | None) -> bool:
    """Whether a layer's axes are the last ones of such a tensor."""
    axis, rank = config.get("axis", -1), 0 if shape is None else len(shape)
    axes = axes_of(axis, rank) if rank else []
    return axis in (-1, [-1]) or (bool(axes) and axes == list(range(rank - len(axes), rank)))


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
_LAST_AXIS = ("Dense", *ACTIVATION_LAYERS, *_TRAINING_ONLY)
_DIMENSIONS = ("1D", "2D")

CONVERTERS: dict[str, Callable[[Call], Converted]] = {
    **{class_name: recurrent for class_name in CELLS if not class_name.endswith("Cell")},
    "RNN": recurrent,
    "Bidirectional": bidirectional,
    "TimeDistributed": time_distributed,
    "Masking": masking,
    "Embedding": embedding,
    "Dense": dense,
    "EinsumDense": einsum_dense,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), merge),
    "Concatenate": concatenate,
    "Dot": dot,
    **dict.fromkeys(("Attention", "AdditiveAttention"), attention),
    "MultiHeadAttention": multi_head_attention,
    **{f"Conv{n}": conv for n in _DIMENSIONS},
    **{f"SeparableConv{n}": separable_conv for n in _DIMENSIONS},
    **{f"DepthwiseConv{n}": depthwise_conv for n in _DIMENSIONS},
    **{f"Conv{n}Transpose": conv_transpose for n in _DIMENSIONS},
    **{f"{kind}Pooling{n}": pool for kind in ("Max", "Average") for n in _DIMENSIONS},
    **{f"Global{kind}Pooling{n}": global_pool for kind in ("Max", "Average") for n in _DIMENSIONS},
    **{f"ZeroPadding{n}": zero_padding for n in _DIMENSIONS},
    **{f"Cropping{n}": cropping for n in _DIMENSIONS},
    **{f"UpSampling{n}": up_sampling for n in _DIMENSIONS},
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "RepeatVector": repeat_vector,
    "LayerNormalization": layer_normalization,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "UnitNormalization": unit_normalization,
    "RMSNormalization": rms_normalization,
    "Normalization": normalization,
    "Rescaling": rescaling,
    **dict.fromkeys(ACTIVATION_LAYERS, activation),
    "Softmax": softmax,
    "PReLU": prelu,
    **dict.fromkeys((*_TRAINING_ONLY, "Identity"), nothing),
}
"""Class of a Keras layer: what turns a call of it into nodes and values."""

RECURRENT = tuple(name for name, converter in CONVERTERS.items() if converter in (recurrent, bidirectional))
SEVERAL = tuple(
    name
    for name, converter in CONVERTERS.items()
    if converter in (merge, concatenate, dot, attention, multi_head_attention)
)
"""Those that are called with several tensors."""

_ATTENTION_OPTIONS = ("use_causal_mask", "return_attention_scores")
OPTIONS = {
    "Attention": _ATTENTION_OPTIONS,
    "AdditiveAttention": _ATTENTION_OPTIONS,
    "MultiHeadAttention": (*_ATTENTION_OPTIONS, "attention_mask"),
}
"""What else a call may name, besides tensors, masks and initial states."""


UNSUPPORTED = {
    "Lambda": "its code is Python that a file brings along, which is never run",
    **{f"ConvLSTM{n}D": "recurrent layers of convolutions are not supported" for n in (1, 2, 3)},
}
"""Why some well-known classes are not supported."""


def input_value(name: str, config: Config) -> Value:
    """The value that an InputLayer declares."""
    if config.get("sparse") or config.get("ragged"):
        raise UnsupportedError("a sparse or ragged input; use a dense one, with a mask for steps that do not exist")
    shape = config.get("batch_shape", config.get("batch_input_shape"))  # Keras 3, Keras 2
    stated = str(config.get("dtype"))
    dtype = "bool" if stated == "bool" else "int64" if stated.startswith(("int", "uint")) else "float32"
    return Value(name, None if shape is None else shape_of(shape, "the shape of the input"), None, dtype)
