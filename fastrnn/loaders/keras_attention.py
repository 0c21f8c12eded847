"""Keras' attention layers, as dense layers, matrix products and a softmax."""

from __future__ import annotations

from dataclasses import replace

from ..errors import FormatError, UnsupportedError
from .keras_config import Call, Converted, Value, choice, flag, integer
from .keras_emit import Emitter
from .keras_file import LayerWeights
from .keras_masks import check_mask

_MASKED = -1e9
"""What Keras puts where a mask excludes a score."""


def attention(call: Call) -> Converted:
    """Attention and AdditiveAttention of [query, value] or [query, value, key]."""
    emit, config = Emitter(call.name), call.config
    if not 2 <= len(call.inputs) <= 3:
        raise FormatError(
            f"it is called with {len(call.inputs)} tensors, expected 2 or 3; the configuration is damaged"
        )
    if any(len(x.known_shape) < 3 for x in call.inputs):
        raise UnsupportedError("its inputs have fewer than 3 axes; give it (batch, time, features)")
    query, value, key = (*call.inputs, call.inputs[1])[:3]
    rank, additive = len(query.known_shape), call.class_name == "AdditiveAttention"
    mode = "additive" if additive else choice(config, "score_mode", "dot", ("dot", "concat"))
    used = flag(config, "use_scale", additive)
    size = (query.features,) if additive else ()
    scale = call.weights.take(0, "scale", size) if used else None
    if mode == "dot":
        score = emit.matmul(query, emit.transpose(key, [*range(rank - 2), rank - 1, rank - 2]))
        score = score if scale is None else emit.function("affine", score, float(scale))
    else:
        both = emit.binary("add", emit.unsqueeze(query, rank - 1), emit.unsqueeze(key, rank - 2))
        if mode == "concat" and scale is not None:
            both = emit.function("affine", both, float(scale))
        score = emit.function("tanh", both)
        if additive and scale is not None:
            score = emit.binary("mul", score, scale)
        score = emit.reduce("sum", score, [rank])
        if mode == "concat":
            weight = call.weights.take(int(scale is not None), "concat_score_weight", ())
            score = emit.function("affine", score, float(weight))
    query_mask, value_mask = call.masks[:2] or (None, None)
    for given in (query_mask, value_mask):
        check_mask(given, rank - 1)
    mask = emit.unsqueeze(value_mask, rank - 2) if value_mask else None
    if flag(call.options, "use_causal_mask") or flag(config, "causal"):  # the second one until Keras 2.9
        mask = _and(emit, mask, causal_mask(emit, query, rank - 2, key, rank - 2))
    weights = emit.softmax(emit.where(mask, score, _MASKED) if mask else score, rank - 1)
    y = emit.matmul(weights, value)
    if query_mask:
        y = emit.where(emit.unsqueeze(query_mask, rank - 1), y, 0.0)
    y = replace(y, mask=call.kept_mask)
    return emit.done(y, *([weights] if flag(call.options, "return_attention_scores") else []))


def _and(emit: Emitter, one: Value | None, other: Value | None) -> Value | None:
    return emit.binary("and", one, other) if one and other else one or other


def causal_mask(emit: Emitter, query: Value, query_axis: int, key: Value, key_axis: int) -> Value:
    """(T, S), True where the step of the key is not after that of the query."""
    steps = []
    for x, axis in ((query, query_axis), (key, key_axis)):
        size = emit.emit("shape", [x], (1,), "int64", start=axis, end=axis + 1)
        bounds = [emit.constant(0), emit.squeeze(size, 0), emit.constant(1)]
        steps.append(emit.emit("range", bounds, (x.known_shape[axis],), "int64"))
    return emit.binary("greater_equal", emit.unsqueeze(steps[0], 1), steps[1])


def multi_head_attention(call: Call) -> Converted:
    """MultiHeadAttention of (batch, time, features): dense layers, one for all heads, around two matrix products."""
    emit, config = Emitter(call.name), call.config
    if flag(config, "use_gate") or config.get("sliding_window") is not None:
        raise UnsupportedError("use_gate or sliding_window is set; use plain attention")
    if not 2 <= len(call.inputs) <= 3:
        raise FormatError(
            f"it is called with {len(call.inputs)} tensors, expected 2 or 3; the configuration is damaged"
        )
    query, value, key = (*call.inputs, call.inputs[1])[:3]
    axes = config.get("attention_axes")
    if any(len(x.known_shape) != 3 for x in (query, value, key)) or axes not in (None, 1, -2, [1], [-2]):
        raise UnsupportedError("it works on other than (batch, time, features); reshape its inputs in Keras")
    heads, size = integer(config, "num_heads"), integer(config, "key_dim")
    value_size = size if config.get("value_dim") is None else integer(config, "value_dim")
    bias = flag(config, "use_bias", True)
    out = config.get("output_shape")
    out = out if isinstance(out, list) else [query.features if out is None else out]
    if len(out) != 1:
        raise UnsupportedError("'output_shape' has several axes; reshape its output in Keras")

    def project(x: Value, path: str, name: str, width: int, scale: float = 1.0) -> Value:
        part = call.weights.part(path, name)
        kernel = part.take(0, "kernel", (x.features, heads, width))
        weights = {"weight": kernel.reshape(len(kernel), -1).T.copy()}
        if bias:
            weights["bias"] = part.take(1, "bias", (heads, width)).reshape(-1)
        shape = (*x.known_shape[:-1], heads * width)
        activation = "linear" if scale == 1 else ("affine", scale)
        y = emit.emit("dense", [x], shape, "float32", weights=weights, activation=activation)
        y = emit.reshape(y, [emit.size(y, 0), emit.size(y, 1), heads, width])
        return emit.transpose(y, [0, 2, 1, 3])

    queries = project(query, "query_dense", "query", size, size**-0.5)
    keys = project(key, "key_dense", "key", size)
    values = project(value, "value_dense", "value", value_size)
    score = emit.matmul(queries, emit.transpose(keys, [0, 1, 3, 2]))
    mask = _head_mask(call, emit, query, key)
    if mask:
        score = emit.where(mask, score, _MASKED)
    weights = emit.softmax(score, 3)
    y = emit.transpose(emit.matmul(weights, values), [0, 2, 1, 3])
    y = emit.reshape(y, [emit.size(y, 0), emit.size(y, 1), heads * value_size])
    return emit.done(
        replace(_head_output(emit, call.weights, y, (heads, value_size), out[0], bias), mask=call.kept_mask),
        *([weights] if flag(call.options, "return_attention_scores") else []),
    )


def _head_output(
    emit: Emitter, weights: LayerWeights, y: Value, heads: tuple[int, int], features: int | None, bias: bool
) -> Value:
    part = weights.part("output_dense", "attention_output")
    kernel = part.take(0, "kernel", (*heads, features))
    arrays = {"weight": kernel.reshape(-1, kernel.shape[-1]).T.copy()}
    if bias:
        arrays["bias"] = part.take(1, "bias", (features,))
    return emit.emit("dense", [y], (*y.known_shape[:-1], kernel.shape[-1]), weights=arrays)


def _head_mask(call: Call, emit: Emitter, query: Value, key: Value) -> Value | None:
    """What each query may attend to, as (batch, heads, T, S)."""
    mask: Value | None = None
    for k, read in enumerate(call.masks):
        check_mask(read, 2)
        mask = _and(emit, mask, emit.unsqueeze(read, 1 if k else 2) if read else None)
    if flag(call.options, "use_causal_mask"):
        mask = _and(emit, mask, causal_mask(emit, query, 1, key, 1))
    if (given := call.options.get("attention_mask")) is not None:
        given = given if isinstance(given, Value) else emit.constant(given)
        given = emit.cast(_for_heads(emit, given), "bool")
        mask = given if mask is None else emit.binary("and", given, _for_heads(emit, mask))
    return None if mask is None else _for_heads(emit, mask)


def _for_heads(emit: Emitter, mask: Value) -> Value:
    """A mask (T, S) or (batch, T, S) with an axis for the heads."""
    return emit.unsqueeze(mask, *range(len(mask.known_shape) - 2, 2))
