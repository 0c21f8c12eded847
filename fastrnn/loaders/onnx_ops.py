"""Operators of ONNX on arrays, and ``CONVERTERS``, the table of all that run natively.

A converter takes a :class:`~fastrnn.loaders.onnx_node.Call` and returns its outputs.  An operator of the standard set
without a converter, or one whose converter raises ``Dynamic``, runs as it is: slowly (``onnx_slow``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .onnx_control import CONTROL_FLOW
from .onnx_file import OTHER_TYPES, dtype_name
from .onnx_layers import LAYERS, binary, broadcast_rank
from .onnx_node import Call, Value
from .onnx_recurrent import RECURRENT
from .onnx_slow import slow

Converter = Callable[[Call], Any]

_ACTIVATIONS: dict[str, tuple[str, dict[str, float]]] = {
    # name and the attributes that are alpha and beta, with their defaults
    "Abs": ("abs", {}),
    "Ceil": ("ceil", {}),
    "Celu": ("celu", {"alpha": 1.0}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Erf": ("erf", {}),
    "Exp": ("exp", {}),
    "Floor": ("floor", {}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": ("hard_swish", {}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "Log": ("log", {}),
    "Mish": ("mish", {}),
    "Neg": ("neg", {}),
    "Reciprocal": ("reciprocal", {}),
    "Relu": ("relu", {}),
    "Round": ("round", {}),
    "Selu": ("selu", {"alpha": 1.6732631921768188, "gamma": 1.0507010221481323}),
    "Sigmoid": ("sigmoid", {}),
    "Sign": ("sign", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "Sqrt": ("sqrt", {}),
    "Tanh": ("tanh", {}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
}
_UNARY = {
    "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "BitwiseNot": "bitwise_not", "Cos": "cos", "Cosh": "cosh", "IsNaN": "isnan", "Not": "not", "Sin": "sin",
    "Sinh": "sinh", "Tan": "tan",
}  # fmt: skip
_ARITHMETIC = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "PRelu": "prelu"}
_VARIADIC = {"Max": "max", "Min": "min", "Sum": "add"}
_LOGIC = {
    "And": "and", "Or": "or", "Xor": "xor", "Equal": "equal", "Less": "less", "LessOrEqual": "less_equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal",
}  # fmt: skip
_REDUCTIONS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL1": "l1", "ReduceL2": "l2", "ReduceSumSquare": "sum_square", "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
}  # fmt: skip


# Element-wise


def _activation(name: str, parameters: dict[str, float]) -> Converter:
    def convert(call: Call) -> Any:
        if not call.x.is_float:
            return _integer_activation(call, name)
        values = [call.get_float(key, default) for key, default in parameters.items()]
        return call.emit("activation", call.x, activation=(name, *values) if values else name)

    return convert


def _integer_activation(call: Call, name: str) -> Any:
    if name not in ("abs", "neg", "relu") or call.x.dtype.startswith("u"):
        return slow(call)
    zero = call.new(np.zeros((), call.x.dtype), "zero")
    other = zero if name == "relu" else binary(call, "sub", zero, call.x, call.x.dtype)
    return other if name == "neg" else binary(call, "max", call.x, other)


def _gelu(call: Call) -> Value:
    how = call.get_text("approximate", "none")
    if how not in ("none", "tanh"):
        raise FormatError(f"approximate is {how!r}, expected none or tanh; the file is damaged")
    return call.emit("activation", call.x, activation="gelu_tanh" if how == "tanh" else "gelu")


def _swish(call: Call) -> Value:
    alpha = call.get_float("alpha", 1.0)
    if alpha == 1:
        return call.emit("activation", call.x, activation="silu")
    scaled = binary(call, "mul", call.x, call.new(np.float32(alpha), "alpha"))
    return binary(call, "mul", call.x, call.emit("activation", scaled, activation="sigmoid"))


def _clip(call: Call) -> Any:
    low: Value | None
    high: Value | None
    if call.version < 11:
        low, high = (
            call.new(np.float32(call.get_float(key)), key) if key in call.attributes else None for key in ("min", "max")
        )
    else:
        low, high = call.get(1), call.get(2)
    x = call.x
    bounds = [None if v is None or v.array is None or v.array.size != 1 else v.array.item() for v in (low, high)]
    if x.is_float and None not in bounds and bounds[0] <= bounds[1]:  # type: ignore[operator]
        return call.emit("activation", x, activation="relu6" if bounds == [0, 6] else ("hard_tanh", *bounds))
    if x.is_float and bounds[0] == 0 and high is None:
        return call.emit("activation", x, activation="relu")
    x = binary(call, "max", x, low, x.dtype) if low else x
    return binary(call, "min", x, high, x.dtype) if high else x


def _unary(function: str) -> Converter:
    dtype = "bool" if function in ("isnan", "not") else None
    return lambda call: call.emit("unary", call.x, function=function, gives=dtype)


def _isinf(call: Call) -> Any:
    if call.get_int("detect_positive", 1) and call.get_int("detect_negative", 1):
        return call.emit("unary", call.x, function="isinf", gives="bool")
    return slow(call)


def _binary(function: str, dtype: str | None = None) -> Converter:
    return lambda call: binary(call, function, call.x, call.need(1), dtype)


def _mod(call: Call) -> Value:
    return binary(call, "fmod" if call.get_int("fmod", 0) else "mod", call.x, call.need(1))


def _variadic(function: str) -> Converter:
    def convert(call: Call) -> Value:
        result = call.x
        for k in range(1, len(call.inputs)):
            result = binary(call, function, result, call.need(k))
        return result

    return convert


def _mean(call: Call) -> Value:
    total = _variadic("add")(call)
    return binary(call, "div", total, call.new(np.array(len(call.inputs), np.float32), "count"))


def _where(call: Call) -> Value:
    condition, a, b = call.x, call.need(1), call.need(2)
    return call.emit("where", condition, a, b, gives=a.dtype, rank=broadcast_rank(condition, a, b))


def _cast(call: Call) -> Value:
    code = call.get_int("to", 0)
    dtype = dtype_name(code)
    if dtype is None:
        raise UnsupportedError(f"casts to {OTHER_TYPES.get(code, f'type {code}')}, which is not run; remove it")
    return _cast_to(call, dtype)


def _cast_to(call: Call, dtype: str) -> Value:
    if dtype == call.x.dtype:
        return call.x
    return call.emit("cast", call.x, dtype=dtype, gives=dtype)


# Constants and shapes


def _constant(call: Call) -> Value:
    found = set(call.attributes)
    if len(found) != 1 or not found & {"value", "value_float", "value_floats", "value_int", "value_ints"}:
        raise UnsupportedError(
            f"a constant given by {', '.join(sorted(found)) or 'nothing'}; arrays of numbers can be read"
        )
    (key,) = found
    array = {
        "value": lambda: call.get_tensor(key),
        "value_float": lambda: np.float32(call.get_float(key)),
        "value_floats": lambda: np.array(call.get_floats(key), np.float32),
        "value_int": lambda: np.int64(call.get_int(key)),
        "value_ints": lambda: np.array(call.get_ints(key), np.int64),
    }[key]()
    return call.new(array, "value")


def _fill(call: Call) -> Value:
    value = call.get_tensor("value")
    value = np.zeros(1, np.float32) if value is None else value
    if value.size != 1:
        raise FormatError(f"its value has {value.size} elements, expected 1; the file is damaged")
    dtype = "float32" if value.dtype.kind == "f" else value.dtype.name
    rank = None if call.x.array is None else call.x.array.size
    return call.emit("fill", call.x, value=value.item(), dtype=dtype, gives=dtype, rank=rank)


def _dropout(call: Call) -> list[Value | None]:
    training = call.get(2)
    if training is not None and (training.array is None or training.array.any()):
        raise UnsupportedError("Dropout in training mode; export the model for inference")
    mask = None
    if any(call.wanted[1:]):
        shape = call.emit("shape", call.x, gives="int64", rank=1)
        mask = call.emit("fill", shape, value=True, dtype="bool", gives="bool", rank=call.x.rank)
    return [call.x, mask]


def _shape(call: Call) -> Value:
    end = call.get_int("end", None)
    return call.emit("shape", call.x, start=call.get_int("start", 0), end=end, gives="int64", rank=1)


def _axes(call: Call, since: int) -> list[int] | None:
    """Axes: an attribute before version ``since``, then an input."""
    return call.get_ints("axes") if call.version < since else call.numbers(1)


def _squeeze(call: Call) -> Value:
    axes = _axes(call, 13)
    rank = None if axes is None or call.x.rank is None else call.x.rank - len(axes)
    return call.emit("squeeze", call.x, axes=axes, rank=rank)


def _unsqueeze(call: Call) -> Value:
    axes = _axes(call, 13)
    if axes is None:
        raise FormatError("its axes are missing; the file is damaged")
    return call.emit("unsqueeze", call.x, axes=axes, rank=None if call.x.rank is None else call.x.rank + len(axes))


def _reshape(call: Call) -> Value:
    shape = call.need(1)
    rank = None if shape.array is None else shape.array.size
    return call.emit("reshape", call.x, shape, zero_copies=not call.get_int("allowzero", 0), rank=rank)


def _transpose(call: Call) -> Value:
    return call.emit("transpose", call.x, perm=call.get_ints("perm"))


def _concat(call: Call) -> Value:
    return call.emit("concat", *(call.need(k) for k in range(len(call.inputs))), axis=call.get_int("axis", 0))


def _split(call: Call) -> list[Value]:
    sizes = call.get_ints("split") if call.version < 13 else call.numbers(1)
    count = len(call.wanted)
    if (sizes is not None and len(sizes) != count) or call.get_int("num_outputs", count) != count:
        raise FormatError(f"its sizes and its {count} outputs do not agree; the file is damaged")
    return call.emit_many("split", [call.x], outputs=count, axis=call.get_int("axis", 0), sizes=sizes)


def _slice(call: Call) -> Value:
    if call.version >= 10:
        return call.emit("slice", *(call.get(k) for k in range(len(call.inputs))))
    bounds = [call.get_ints(key) for key in ("starts", "ends", "axes")]
    if bounds[0] is None or bounds[1] is None:
        raise FormatError("its starts or ends are missing; the file is damaged")
    values = (None if b is None else call.ints_value(b, key) for b, key in zip(bounds, ("starts", "ends", "axes")))
    return call.emit("slice", call.x, *values)


def _gather(call: Call) -> Value:
    x, indices = call.x, call.need(1)
    rank = None if None in (x.rank, indices.rank) else x.rank + indices.rank - 1  # type: ignore[operator]
    return call.emit("gather", x, indices, axis=call.get_int("axis", 0), rank=rank)


def _gather_elements(call: Call) -> Value:
    return call.emit("gather_elements", call.x, call.need(1), axis=call.get_int("axis", 0))


def _pad(call: Call) -> Value:
    mode = call.get_text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise FormatError(f"mode is {mode!r}, expected constant, reflect, edge or wrap; the file is damaged")
    if call.version >= 11:
        return call.emit("pad", call.x, call.need(1), call.get(2), call.get(3), mode=mode)
    pads = call.get_ints("pads")
    if pads is None:
        raise FormatError("its pads are missing; the file is damaged")
    value = call.new(np.float32(call.get_float("value", 0.0)), "value")
    return call.emit("pad", call.x, call.ints_value(pads, "pads"), value, mode=mode)


def _expand(call: Call) -> Value:
    shape = call.need(1)
    rank = None if shape.array is None or call.x.rank is None else max(call.x.rank, shape.array.size)
    return call.emit("expand", call.x, shape, rank=rank)


def _flatten(call: Call) -> Value:
    return call.emit("flatten", call.x, axis=call.get_int("axis", 1), rank=2)


def _range(call: Call) -> Value:
    return call.emit("range", call.x, call.need(1), call.need(2), rank=1)


# Along axes


def _reduce(function: str, since: int) -> Converter:
    def convert(call: Call) -> Any:
        axes = _axes(call, since)
        if not axes:
            if call.get_int("noop_with_empty_axes", 0):
                return call.x if function in ("sum", "mean", "max", "min", "prod") else slow(call)
            axes = None
        keep = bool(call.get_int("keepdims", 1))
        rank = call.x.rank
        if not keep:
            rank = 0 if axes is None else None if rank is None else rank - len(axes)
        return call.emit("reduce", call.x, function=function, axes=axes, keepdims=keep, rank=rank)

    return convert


def _argmax(largest: bool) -> Converter:
    def convert(call: Call) -> Value:
        keep, rank = bool(call.get_int("keepdims", 1)), call.x.rank
        return call.emit(
            "argmax",
            call.x,
            axis=call.get_int("axis", 0),
            keepdims=keep,
            largest=largest,
            last=bool(call.get_int("select_last_index", 0)),
            gives="int64",
            rank=rank if keep or rank is None else rank - 1,
        )

    return convert


def _cumsum(call: Call) -> Value:
    axis = (call.numbers(1) or [0])[0]
    exclusive, reverse = bool(call.get_int("exclusive", 0)), bool(call.get_int("reverse", 0))
    return call.emit("cumsum", call.x, axis=axis, exclusive=exclusive, reverse=reverse)


def _softmax(logarithm: bool) -> Converter:
    def convert(call: Call) -> Value:
        x = call.x
        axis = call.get_int("axis", -1 if call.version >= 13 else 1)
        if call.version >= 13 or axis == -1 or (x.rank is not None and axis == x.rank - 1):
            return call.emit("softmax", x, axis=axis if call.version >= 13 else -1, logarithm=logarithm)
        # Before version 13: over all axes from this one on.
        flat = call.emit("softmax", call.emit("flatten", x, axis=axis, rank=2), logarithm=logarithm)
        shape = call.emit("shape", x, gives="int64", rank=1)
        return call.emit("reshape", flat, shape, zero_copies=False, rank=x.rank)

    return convert


CONVERTERS: dict[str, Converter] = {
    **{op: _activation(name, parameters) for op, (name, parameters) in _ACTIVATIONS.items()},
    **{op: _unary(function) for op, function in _UNARY.items()},
    **{op: _binary(function) for op, function in _ARITHMETIC.items()},
    **{op: _binary(function, "bool") for op, function in _LOGIC.items()},
    **{op: _variadic(function) for op, function in _VARIADIC.items()},
    **{op: _reduce(function, 13 if op == "ReduceSum" else 18) for op, function in _REDUCTIONS.items()},
    **LAYERS,
    **RECURRENT,
    "ArgMax": _argmax(True),
    "ArgMin": _argmax(False),
    "Cast": _cast,
    "CastLike": lambda call: _cast_to(call, call.need(1).dtype),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _fill,
    "CumSum": _cumsum,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gelu": _gelu,
    "Identity": lambda call: call.x,
    "IsInf": _isinf,
    "LogSoftmax": _softmax(True),
    "Mean": _mean,
    "Mod": _mod,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call: call.emit("size", call.x, gives="int64", rank=0),
    "Slice": _slice,
    "Softmax": _softmax(False),
    "Split": _split,
    "Squeeze": _squeeze,
    "Swish": _swish,
    "Tile": lambda call: call.emit("tile", call.x, call.need(1)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

NATIVE = tuple(sorted({*CONVERTERS, *CONTROL_FLOW}))
"""Operators that run without the onnx package's implementations."""
