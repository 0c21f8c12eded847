"""PyTorch's sums, extremes, norms and softmax -> nodes; registered in ``torch_ops.FUNCTIONS``."""

from __future__ import annotations

from typing import Any

from .torch_build import Builder, Ref
from .torch_ops import FUNCTIONS, Dims, Translator, axes_of, kind_of, op, refuse


@op("sum", "nansum")
def _sum(b: Builder, input: Ref, dim: Dims = None, keepdim: bool = False, dtype: Any = None, axis: Dims = None) -> Ref:
    return b.reduce("sum", b.cast(input, kind_of(b.value)), axes_of(axis if dim is None else dim), keepdim)


@op()
def mean(b: Builder, input: Ref, dim: Dims = None, keepdim: bool = False, dtype: Any = None, axis: Dims = None) -> Ref:
    return b.reduce("mean", b.cast(input, "f"), axes_of(axis if dim is None else dim), keepdim)


@op()
def prod(b: Builder, input: Ref, dim: Dims = None, keepdim: bool = False, dtype: Any = None) -> Ref:
    return b.reduce("prod", input, axes_of(dim), keepdim)


@op()
def amax(b: Builder, input: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    return b.reduce("max", input, axes_of(dim), keepdim)


@op()
def amin(b: Builder, input: Ref, dim: Dims = None, keepdim: bool = False) -> Ref:
    return b.reduce("min", input, axes_of(dim), keepdim)


def _extreme(function: str) -> Translator:
    def translate(b: Builder, input: Ref, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Ref):
            return b.binary(function, input, dim)
        if dim is None:
            return b.reduce(function, input)
        index = argmax(b, input, dim, keepdim) if function == "max" else argmin(b, input, dim, keepdim)
        return b.reduce(function, input, [dim], keepdim), index

    return translate


FUNCTIONS |= {"max": _extreme("max"), "min": _extreme("min")}


@op()
def argmax(b: Builder, input: Ref, dim: int | None = None, keepdim: bool = False, largest: bool = True) -> Ref:
    if dim is None:
        input, dim = b.reshape(input, [-1]), 0
    rank = input.rank if keepdim else input.rank - 1
    return b.emit("argmax", input, rank=rank, kind="i", axis=dim % input.rank, keepdims=keepdim, largest=largest)


@op()
def argmin(b: Builder, input: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
    return argmax(b, input, dim, keepdim, largest=False)


def _any_all(function: str) -> Translator:
    return lambda b, input, dim=None, keepdim=False: b.reduce(function, b.cast(input, "b"), axes_of(dim), keepdim)


FUNCTIONS |= {"any": _any_all("any"), "all": _any_all("all")}


@op()
def logsumexp(b: Builder, input: Ref, dim: Dims, keepdim: bool = False) -> Ref:
    return b.reduce("log_sum_exp", input, axes_of(dim), keepdim)


@op()
def cumsum(b: Builder, input: Ref, dim: int, dtype: Any = None) -> Ref:
    return b.emit("cumsum", b.cast(input, kind_of(b.value)), axis=dim % input.rank)


@op("norm", "vector_norm")
def norm(
    b: Builder, input: Ref, p: Any = 2, dim: Dims = None, keepdim: bool = False, dtype: Any = None, ord: Any = None
) -> Ref:
    function = {1: "l1", 2: "l2", "fro": "l2", None: "l2"}.get(p if ord is None else ord)
    refuse(function is None, f"norm of order {p}")
    return b.reduce(str(function), input, axes_of(dim), keepdim)


@op()
def normalize(b: Builder, input: Ref, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Ref:
    return b.divide(input, b.binary("max", norm(b, input, p, dim, True), eps))


@op()
def cosine_similarity(b: Builder, x1: Ref, x2: Ref, dim: int = 1, eps: float = 1e-8) -> Ref:
    return b.reduce("sum", b.mul(*(normalize(b, x, 2.0, dim, eps) for x in (x1, x2))), [dim])


@op()
def var(
    b: Builder, input: Ref, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: int | None = None
) -> Ref:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    axes = list(range(input.rank)) if dim is None else axes_of(dim) or []
    middle = b.reduce("mean", input, axes, True)
    total = b.reduce("sum", b.activation(b.binary("sub", input, middle), "square"), axes, keepdim)
    count: Any = 1
    for axis in axes:
        count = b.mul(b.size(input, axis), count)
    return b.divide(total, b.binary("sub", count, int(unbiased) if correction is None else correction))


@op()
def std(b: Builder, input: Ref, *args: Any, **options: Any) -> Ref:
    return b.activation(var(b, input, *args, **options), "sqrt")


@op()
def softmax(
    b: Builder, input: Ref, dim: int | None = None, dtype: Any = None, _stacklevel: int = 3, logarithm: bool = False
) -> Ref:
    refuse(dim is None, "softmax without dim")
    return b.emit("softmax", b.cast(input, "f"), axis=dim, logarithm=logarithm)


@op()
def log_softmax(b: Builder, input: Ref, dim: int | None = None, dtype: Any = None, _stacklevel: int = 3) -> Ref:
    return softmax(b, input, dim, logarithm=True)
