"""The functions that arithmetic between Keras layers is made of, as operators of the spec.

Each takes an emitter and the arguments of the operation of Keras 3 of that name, which are NumPy's; tensors are values.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

from ..errors import FormatError, UnsupportedError
from . import keras_moves as moves
from .files import short
from .keras_config import Value, axes_of
from .keras_emit import Emitter, Operand
from .keras_merge import l2_normalized
from .keras_moves import dtype_of, one_axis, tensor, tensors_of


def _unary(name: str, *numbers: float) -> Callable[..., Value]:
    return lambda emit, x: emit.function(name, tensor(emit, x), *numbers)


def _binary(name: str) -> Callable[..., Value]:
    return lambda emit, x1, x2: emit.binary(name, x1, x2)


def _divide(emit: Emitter, x1: Operand, x2: Operand) -> Value:
    values = emit.operands(x1, x2)
    return emit.binary("div", *(emit.cast(x, "float32") for x in values))


def _power(emit: Emitter, x1: Operand, x2: Operand) -> Value:
    if isinstance(x1, Value) and x1.dtype == "float32" and type(x2) in (int, float):
        if x2 == 2:
            return emit.function("square", x1)
        if x2 == 0.5:
            return emit.function("sqrt", x1)
    return emit.binary("pow", x1, x2)


def _floor_divide(emit: Emitter, x1: Operand, x2: Operand) -> Value:
    quotient = _divide(emit, x1, x2)
    kinds = {x.dtype for x in emit.operands(x1, x2)}
    floor = emit.function("floor", quotient)
    return floor if "float32" in kinds else emit.cast(floor, "int64")


def _reduce(name: str) -> Callable[..., Value]:
    def function(emit: Emitter, x: Value, axis: Any = None, keepdims: bool = False) -> Value:
        rank = len(x.known_shape)
        axes = list(range(rank)) if axis is None else axes_of(axis, rank)
        return emit.reduce(name, x, axes, bool(keepdims))

    return function


def _variance(emit: Emitter, x: Value, axis: Any = None, keepdims: bool = False) -> Value:
    rank = len(x.known_shape)
    axes = list(range(rank)) if axis is None else axes_of(axis, rank)
    centred = emit.binary("sub", x, emit.reduce("mean", x, axes, keepdims=True))
    return emit.reduce("mean", emit.function("square", centred), axes, bool(keepdims))


def _deviation(emit: Emitter, x: Value, axis: Any = None, keepdims: bool = False) -> Value:
    return emit.function("sqrt", _variance(emit, x, axis, keepdims))


def _norm(emit: Emitter, x: Value, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Value:
    names: dict[Any, str] = {None: "l2", "euclidean": "l2", 2: "l2", 1: "l1"}
    if (
        not isinstance(ord, (str, int, float, type(None)))
        or ord not in names
        or (ord is not None and len(x.known_shape if axis is None else axes_of(axis, len(x.known_shape))) > 1)
    ):
        raise UnsupportedError(f"a norm of order {short(ord)}, supported are 1 and 2 along one axis")
    return _reduce(names[ord])(emit, x, axis, keepdims)


def _arg(largest: bool) -> Callable[..., Value]:
    def function(emit: Emitter, x: Value, axis: Any = None, keepdims: bool = False) -> Value:
        if axis is None:
            raise UnsupportedError("the index in the flattened tensor; name an axis")
        axis = one_axis(axis, x)
        shape = tuple(1 if k == axis else n for k, n in enumerate(x.known_shape) if keepdims or k != axis)
        return emit.emit("argmax", [x], shape, "int64", axis=axis, keepdims=bool(keepdims), largest=largest)

    return function


def _cumsum(emit: Emitter, x: Value, axis: Any = 0) -> Value:
    return emit.emit("cumsum", [x], x.shape, axis=one_axis(axis, x))


def _softmax(emit: Emitter, x: Value, axis: Any = -1) -> Value:
    return emit.softmax(x, one_axis(axis, x))


def _log_softmax(emit: Emitter, x: Value, axis: Any = -1) -> Value:
    return emit.softmax(x, one_axis(axis, x), logarithm=True)


def _clip(emit: Emitter, x: Value, x_min: Operand, x_max: Operand) -> Value:
    if isinstance(x_min, (int, float)) and isinstance(x_max, (int, float)) and x.dtype == "float32":
        return emit.function("hard_tanh", x, x_min, x_max)
    return emit.binary("min", emit.binary("max", x, x_min), x_max)


def _where(emit: Emitter, condition: Operand, x1: Operand, x2: Operand) -> Value:
    return emit.where(tensor(emit, condition), x1, x2)


def _cast(emit: Emitter, x: Value, dtype: Any) -> Value:
    return emit.cast(x, dtype_of(dtype))


def _matmul(emit: Emitter, x1: Operand, x2: Operand, transpose_a: bool = False, transpose_b: bool = False) -> Value:
    values = [tensor(emit, x) for x in (x1, x2)]
    for k, turned in enumerate((transpose_a, transpose_b)):
        rank = len(values[k].known_shape)
        if turned:
            values[k] = emit.transpose(values[k], [*range(rank - 2), rank - 1, rank - 2])
    return emit.matmul(*(emit.cast(x, "float32") for x in values))


def _dot(emit: Emitter, x1: Operand, x2: Operand) -> Value:
    a, b = tensor(emit, x1), tensor(emit, x2)
    if len(b.known_shape) > 2 or not a.known_shape or not b.known_shape:
        raise UnsupportedError("a dot product with a tensor of more than 2 axes; use matmul")
    return _matmul(emit, a, b)


def _einsum(emit: Emitter, *operands: Operand, subscripts: Any) -> Value:
    values = [tensor(emit, x) for x in operands]
    if not isinstance(subscripts, str) or subscripts.count("->") != 1:
        raise UnsupportedError(f"'subscripts' is {short(subscripts)}, expected such as 'bij,bjk->bik'")
    left, out = subscripts.replace(" ", "").split("->")
    terms = left.split(",")
    if len(terms) != len(values):
        raise FormatError(f"{len(values)} tensors for {short(subscripts)}; the configuration is inconsistent")
    free = [k for k in string.ascii_letters if k not in subscripts]
    hidden = 0
    for k, value in enumerate(values):
        rank = len(value.known_shape)
        if "..." in terms[k]:
            count = rank - len(terms[k].replace("...", ""))
            hidden = max(hidden, count)
            terms[k] = terms[k].replace("...", "".join(free[len(free) - count :] if count > 0 else ""))
        if len(terms[k]) != rank or not terms[k].isalpha() or len(set(terms[k])) < rank:
            raise UnsupportedError(f"{short(subscripts)} for a tensor of {rank} axes; each letter once in a term")
    out = out.replace("...", "".join(free[len(free) - hidden :] if hidden else ""))
    if not set(out) <= set("".join(terms)) or len(set(out)) < len(out):
        raise UnsupportedError(f"{short(subscripts)}; each letter of the result once, and from the terms")
    return emit.einsum(terms, out, values)


def _normalize(emit: Emitter, x: Value, axis: Any = -1, order: Any = 2, epsilon: Any = None) -> Value:
    if order != 2:
        raise UnsupportedError(f"a normalisation of order {short(order)}, supported is 2")
    return l2_normalized(emit, x, axes_of(axis, len(x.known_shape)), 1e-7 if epsilon is None else float(epsilon))


def _l2_normalize(emit: Emitter, x: Value, axis: Any = None, epsilon: float = 1e-12) -> Value:
    """TensorFlow's, whose bound is that of the square."""
    rank = len(x.known_shape)
    return l2_normalized(emit, x, axes_of(list(range(rank)) if axis is None else axis, rank), float(epsilon) ** 0.5)


def _leaky_relu(slope: float) -> Callable[..., Value]:
    def function(emit: Emitter, x: Value, negative_slope: Any = slope) -> Value:
        return emit.function("leaky_relu", x, float(negative_slope))

    return function


def _elu(emit: Emitter, x: Value, alpha: Any = 1.0) -> Value:
    return emit.function("elu", x, float(alpha))


def _gelu(tanh: bool) -> Callable[..., Value]:
    def function(emit: Emitter, x: Value, approximate: Any = tanh) -> Value:
        return emit.function("gelu_tanh" if approximate else "gelu", x)

    return function


def _rsqrt(emit: Emitter, x: Value) -> Value:
    return emit.function("reciprocal", emit.function("sqrt", x))


def _add_n(emit: Emitter, inputs: Any) -> Value:
    values = tensors_of(inputs)
    total = emit.operands(*values)
    y = total[0]
    for x in total[1:]:
        y = emit.binary("add", y, x)
    return y


def _shape(emit: Emitter, x: Value) -> Value:
    """The shape of a tensor, TensorFlow's."""
    return emit.emit("shape", [x], (len(x.known_shape),), "int64")


def _identity(emit: Emitter, x: Operand) -> Value:
    return tensor(emit, x)


FUNCTIONS: dict[str, Callable[..., Value | list[Value]]] = {
    **{
        name: _binary(function)
        for name, function in {
            "Add": "add", "Subtract": "sub", "Multiply": "mul", "Maximum": "max", "Minimum": "min", "Mod": "mod",
            "Fmod": "fmod", "Equal": "equal", "NotEqual": "not_equal", "Less": "less", "LessEqual": "less_equal",
            "Greater": "greater", "GreaterEqual": "greater_equal", "LogicalAnd": "and", "LogicalOr": "or",
            "LogicalXor": "xor",
        }.items()
    },
    **{
        name: _unary(function)
        for name, function in {
            "Negative": "neg", "Absolute": "abs", "Sign": "sign", "Square": "square", "Sqrt": "sqrt",
            "Reciprocal": "reciprocal", "Exp": "exp", "Expm1": "expm1", "Log": "log", "Log1p": "log1p", "Erf": "erf",
            "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sin": "sin", "Cos": "cos", "Tan": "tan",
            "Arcsin": "asin", "Arccos": "acos", "Arctan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh",
            "Arcsinh": "asinh", "Arccosh": "acosh", "Arctanh": "atanh", "LogicalNot": "not", "Isnan": "isnan",
            "Isinf": "isinf", "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Softplus": "softplus",
            "Softsign": "softsign", "Silu": "silu", "LogSigmoid": "log_sigmoid", "HardSilu": "hard_swish",
            "Selu": "selu", "Mish": "mish", "HardTanh": "hard_tanh",
        }.items()
    },
    "HardSigmoid": _unary("hard_sigmoid", 1 / 6, 0.5),
    "LeakyRelu": _leaky_relu(0.2),
    "Elu": _elu,
    "Gelu": _gelu(True),
    "Rsqrt": _rsqrt,
    "Divide": _divide,
    "FloorDivide": _floor_divide,
    "Power": _power,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    **{
        name: _reduce(function)
        for name, function in {
            "Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Prod": "prod", "Any": "any", "All": "all",
            "Logsumexp": "log_sum_exp",
        }.items()
    },
    "Var": _variance,
    "Std": _deviation,
    "Norm": _norm,
    "Argmax": _arg(True),
    "Argmin": _arg(False),
    "Cumsum": _cumsum,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Normalize": _normalize,
    "L2Normalize": _l2_normalize,
    "Matmul": _matmul,
    "Dot": _dot,
    "Einsum": _einsum,
    "Reshape": moves.reshape,
    "ExpandDims": moves.expand_dims,
    "Squeeze": moves.squeeze,
    "Transpose": moves.transpose,
    "Swapaxes": moves.swapaxes,
    "Moveaxis": moves.moveaxis,
    "Concatenate": moves.concatenate,
    "Stack": moves.stack,
    "Split": moves.split,
    "SizedSplit": moves.sized_split,
    "Unstack": moves.unstack,
    "Take": moves.take,
    "GetItem": moves.get_item,
    "Tile": moves.tile,
    "Repeat": moves.repeat,
    "BroadcastTo": moves.broadcast_to,
    "Flip": moves.flip,
    "Pad": moves.pad,
    "ZerosLike": moves.like(0),
    "OnesLike": moves.like(1),
    "AddN": _add_n,
    "Shape": _shape,
    "Identity": _identity,
    "ConvertToTensor": _identity,
}  # fmt: skip
"""Operation of Keras 3, or one of ours: ``function(emit, *arguments)``, with the names that Keras 3 gives them."""
