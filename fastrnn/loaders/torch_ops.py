"""PyTorch's functions and methods -> nodes: one translator for each name, whether it is called as ``torch.name``,
``torch.nn.functional.name``, ``operator.name`` or ``tensor.name``.

Here are those element by element and of types; ``torch_reductions``, ``torch_shapes``, ``torch_layers`` and
``torch_products`` add theirs.

A translator takes the builder and PyTorch's arguments under PyTorch's names; tensors are ``Ref``.  An argument that it
does not have, or ``UnsupportedError``, makes the call one that fastrnn does not run.
"""

from __future__ import annotations

import builtins
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UnsupportedError
from .torch_build import Builder, Ref

Translator = Callable[..., Any]
FUNCTIONS: dict[str, Translator] = {}
Dims = int | Sequence[int] | None


def op(*names: str) -> Callable[[Translator], Translator]:
    """Register a translator under its own name without underscores at its ends, or under others."""

    def register(translator: Translator) -> Translator:
        for name in names or (translator.__name__.strip("_"),):
            FUNCTIONS[name] = translator
        return translator

    return register


def function_names() -> dict[int, str]:
    """The identity of each function of PyTorch that may be called -> its name in ``FUNCTIONS``."""
    torch = sys.modules["torch"]
    spaces = (
        builtins,
        math,
        operator,
        torch.autograd,
        torch.linalg,
        torch.special,
        torch.nn.utils.rnn,
        torch.nn.functional,
        torch,
    )
    return {id(vars(space)[name]): name for space in spaces for name in FUNCTIONS if name in vars(space)}


def kind_of(value: Any) -> str:
    """ "f", "i" or "b" of a tensor of PyTorch."""
    if value.dtype.is_complex:
        raise UnsupportedError("complex numbers")
    return "f" if value.dtype.is_floating_point else "b" if str(value.dtype) == "torch.bool" else "i"


def axes_of(dim: Dims) -> list[int] | None:
    return None if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)


def refuse(condition: Any, what: str) -> None:
    if condition:
        raise UnsupportedError(what)


# Element by element

_ACTIVATIONS: dict[str, Any] = {
    "relu": "relu", "sigmoid": "sigmoid", "expit": "sigmoid", "tanh": "tanh", "relu6": "relu6", "selu": "selu",
    "silu": "silu", "mish": "mish", "hardsigmoid": ("hard_sigmoid", 1 / 6, 0.5), "hardswish": "hard_swish",
    "softsign": "softsign", "logsigmoid": "log_sigmoid", "exp": "exp", "log": "log", "sqrt": "sqrt", "erf": "erf",
    "reciprocal": "reciprocal",
}  # fmt: skip
_KIND_STAYS = {
    "abs": "abs", "absolute": "abs", "neg": "neg", "negative": "neg", "sign": "sign", "square": "square",
    "floor": "floor", "ceil": "ceil", "round": "round",
}  # fmt: skip
_UNARY = {
    name: name for name in (
        "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "expm1", "log1p",
    )
}  # fmt: skip
_ALSO_UNARY = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "isnan": "isnan", "isinf": "isinf"}


def _activation(value: Any) -> Translator:
    return lambda b, input, inplace=False: b.activation(input, value)


def _same_kind(value: str) -> Translator:
    return lambda b, input: b.cast(b.activation(input, value), b.ref(input).kind)


def _unary(name: str) -> Translator:
    kind = "b" if name.startswith("is") else "f"
    return lambda b, input: b.emit("unary", b.cast(input, "f"), kind=kind, function=name)


FUNCTIONS |= {name: _activation(value) for name, value in _ACTIVATIONS.items()}
FUNCTIONS |= {name: _same_kind(value) for name, value in _KIND_STAYS.items()}
FUNCTIONS |= {name: _unary(value) for name, value in (_UNARY | _ALSO_UNARY).items()}


@op()
def leaky_relu(b: Builder, input: Ref, negative_slope: float = 0.01, inplace: bool = False) -> Ref:
    return b.activation(input, ("leaky_relu", negative_slope))


@op()
def elu(b: Builder, input: Ref, alpha: float = 1.0, inplace: bool = False) -> Ref:
    return b.activation(input, ("elu", alpha))


@op()
def celu(b: Builder, input: Ref, alpha: float = 1.0, inplace: bool = False) -> Ref:
    return b.activation(input, ("celu", alpha))


@op()
def hardtanh(b: Builder, input: Ref, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Ref:
    return b.activation(input, ("hard_tanh", min_val, max_val))


@op()
def gelu(b: Builder, input: Ref, approximate: str = "none") -> Ref:
    return b.activation(input, "gelu" if approximate == "none" else "gelu_tanh")


@op()
def softplus(b: Builder, input: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    # Beyond the threshold PyTorch returns x, from which log(1 + exp(x)) differs by less than float32 shows.
    refuse(threshold < 17, "softplus with a threshold below 17")
    return b.divide(b.activation(b.mul(input, float(beta)), "softplus"), beta) if beta != 1 else b.activation(
        input, "softplus"
    )  # fmt: skip


@op()
def prelu(b: Builder, input: Ref, weight: Ref) -> Ref:
    array = b.array(weight)
    if array is not None and array.size > 1:
        weight = b.constant(array.reshape(-1, *[1] * (input.rank - 2)), weight.name)
    return b.binary("prelu", input, weight)


@op()
def rsqrt(b: Builder, input: Ref) -> Ref:
    return b.activation(b.activation(input, "sqrt"), "reciprocal")


@op("logical_not", "not_")
def _logical_not(b: Builder, input: Ref) -> Ref:
    return b.emit("unary", b.cast(input, "b"), function="not")


@op("invert", "bitwise_not")
def _invert(b: Builder, input: Ref) -> Ref:
    return b.emit("unary", input, function="not" if input.kind == "b" else "bitwise_not")


@op("clamp", "clip")
def _clamp(b: Builder, input: Ref, min: Any = None, max: Any = None) -> Ref:
    if input.kind == "f" and all(isinstance(bound, (int, float)) for bound in (min, max)):
        return b.activation(input, ("hard_tanh", float(min), float(max)))
    input = input if min is None else b.binary("max", input, min)
    return input if max is None else b.binary("min", input, max)


@op()
def clamp_min(b: Builder, input: Ref, min: Any) -> Ref:
    return b.binary("max", input, min)


@op()
def clamp_max(b: Builder, input: Ref, max: Any) -> Ref:
    return b.binary("min", input, max)


# Two operands


def _compare(function: str) -> Translator:
    return lambda b, input, other: b.binary(function, input, other, kind="b")


def _logical(function: str, bits: bool) -> Translator:
    def translate(b: Builder, input: Any, other: Any) -> Ref:
        refuse(bits and b.ref(input).kind != "b", "operations on the bits of integers")
        return b.emit("binary", b.cast(input, "b"), b.cast(other, "b"), function=function)

    return translate


FUNCTIONS |= {
    alias: _compare(function)
    for function, aliases in {
        "equal": ("eq",), "not_equal": ("ne", "not_equal"), "less": ("lt", "less"), "less_equal": ("le", "less_equal"),
        "greater": ("gt", "greater"), "greater_equal": ("ge", "greater_equal"),
    }.items()
    for alias in aliases
}  # fmt: skip
FUNCTIONS |= {f"logical_{name}": _logical(name, False) for name in ("and", "or", "xor")}
FUNCTIONS |= {f"{name}_": _logical(name, True) for name in ("and", "or")}
FUNCTIONS |= {f"bitwise_{name}": _logical(name, True) for name in ("and", "or", "xor")} | {"xor": _logical("xor", True)}


@op("add", "iadd")
def _add(b: Builder, input: Any, other: Any, alpha: Any = 1) -> Any:
    if isinstance(input, (tuple, list)):
        return (*input, *other)  # of shapes
    return b.add(input, other if alpha == 1 else b.mul(other, alpha))


@op("sub", "subtract", "isub")
def _sub(b: Builder, input: Any, other: Any, alpha: Any = 1) -> Ref:
    return b.binary("sub", input, other if alpha == 1 else b.mul(other, alpha))


@op()
def rsub(b: Builder, input: Any, other: Any, alpha: Any = 1) -> Ref:
    return _sub(b, other, input, alpha)


@op("mul", "multiply", "imul")
def _mul(b: Builder, input: Any, other: Any) -> Any:
    if isinstance(input, (tuple, list)):
        return tuple(input) * other
    return b.mul(input, other)


@op("div", "divide", "truediv", "true_divide", "itruediv")
def _div(b: Builder, input: Any, other: Any, rounding_mode: str | None = None) -> Ref:
    if rounding_mode is None:
        return b.divide(input, other)
    refuse(rounding_mode != "floor", f"division with rounding_mode={rounding_mode!r}")
    return floordiv(b, input, other)


@op("floordiv", "floor_divide")
def floordiv(b: Builder, input: Any, other: Any) -> Ref:
    a, c = b.ref(input), b.ref(other)
    if a.kind == "f" or c.kind == "f":
        return b.activation(b.divide(a, c), "floor")
    return b.binary("div", b.binary("sub", a, b.binary("mod", a, c)), c)  # "div" alone rounds toward zero


@op("remainder", "mod")
def _remainder(b: Builder, input: Any, other: Any) -> Ref:
    return b.binary("mod", input, other)


@op()
def fmod(b: Builder, input: Any, other: Any) -> Ref:
    return b.binary("fmod", input, other)


@op("pow")
def _pow(b: Builder, input: Any, exponent: Any) -> Ref:
    if isinstance(exponent, (int, float)) and isinstance(input, Ref) and input.kind == "f":
        known = {2: "square", 0.5: "sqrt", -1: "reciprocal", 1: "linear"}.get(exponent)
        if known:
            return b.activation(input, known)
    return b.binary("pow", input, exponent)


@op("minimum", "fmin")
def minimum(b: Builder, input: Any, other: Any) -> Ref:
    return b.binary("min", input, other)


@op("maximum", "fmax")
def maximum(b: Builder, input: Any, other: Any) -> Ref:
    return b.binary("max", input, other)


@op()
def where(b: Builder, condition: Ref, input: Any, other: Any) -> Ref:
    left, right = b.ref(input), b.ref(other)
    kind = max(left.kind, right.kind, key="bif".index)
    rank = max(condition.rank, left.rank, right.rank)
    return b.emit("where", b.cast(condition, "b"), b.cast(left, kind), b.cast(right, kind), rank=rank, kind=kind)


@op()
def masked_fill(b: Builder, input: Ref, mask: Ref, value: Any) -> Ref:
    return where(b, mask, b.cast(value, input.kind), input)


# Types


@op("to", "float", "double", "half", "bfloat16", "long", "int", "short", "bool", "type", "type_as", "cpu", "cuda")
def _to(b: Builder, input: Ref, *args: Any, **options: Any) -> Ref:
    return b.cast(input, kind_of(b.value))


@op("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout")
def _dropout(b: Builder, input: Ref, p: float = 0.5, training: bool = True, inplace: bool = False) -> Ref:
    return input


@op("contiguous", "detach", "clone", "positive", "pos", "requires_grad", "Variable")
def _nothing(b: Builder, input: Ref, requires_grad: bool = True, memory_format: Any = None) -> Ref:
    return input


@op("getattr")
def _getattr(b: Builder, input: Any, name: str) -> Any:
    if name == "shape":
        return FUNCTIONS["size"](b, input)
    if name == "data" and isinstance(input, Ref):
        return input
    if name in ("T", "mT"):
        refuse(name == "T" and input.rank > 2, "T of more than two axes")
        return b.swap(input, -1, -2) if input.rank > 1 else input
    if isinstance(input, tuple) and name in ("values", "indices"):
        return input[name == "indices"]
    raise UnsupportedError(f"the attribute {name!r}")
