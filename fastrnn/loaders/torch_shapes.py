"""PyTorch's functions that re-arrange, cut, join and make tensors -> nodes; registered in ``torch_ops.FUNCTIONS``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .torch_build import Builder, Packed, Ref
from .torch_index import getitem
from .torch_ops import FUNCTIONS, Dims, Translator, axes_of, kind_of, op, refuse, where

FUNCTIONS["getitem"] = getitem


def sizes_of(sizes: tuple[Any, ...], named: Any = None) -> list[Any]:
    """``x.view(2, 3)`` and ``x.view((2, 3))``."""
    if named is not None:
        return list(named)
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else list(sizes)


@op()
def size(b: Builder, input: Ref, dim: int | None = None) -> Any:
    return tuple(b.size(input, k) for k in range(input.rank)) if dim is None else b.size(input, dim)


@op()
def numel(b: Builder, input: Ref) -> Ref:
    return b.emit("size", input, rank=0, kind="i")


@op("view", "reshape")
def _reshape(b: Builder, input: Ref, *sizes: Any, shape: Any = None, size: Any = None) -> Ref:
    wanted = sizes_of(sizes, shape if shape is not None else size)
    refuse(any(not isinstance(n, (int, Ref)) for n in wanted), "a view as another dtype")
    return b.reshape(input, wanted)


@op("view_as", "reshape_as")
def _reshape_as(b: Builder, input: Ref, other: Ref) -> Ref:
    return b.reshape(input, size(b, other))


@op()
def flatten(b: Builder, input: Ref, start_dim: int = 0, end_dim: int = -1) -> Ref:
    if input.rank == 0:
        return b.unsqueeze(input, 0)
    start, end = start_dim % input.rank, end_dim % input.rank
    if start == end:
        return input
    return b.reshape(input, [*(b.size(input, k) for k in range(start)), -1,
                             *(b.size(input, k) for k in range(end + 1, input.rank))])  # fmt: skip


@op()
def unflatten(b: Builder, input: Ref, dim: int, sizes: Sequence[Any]) -> Ref:
    dim %= input.rank
    rest = [b.size(input, k) for k in range(input.rank)]
    return b.reshape(input, [*rest[:dim], *sizes, *rest[dim + 1 :]])


@op()
def squeeze(b: Builder, input: Ref, dim: Dims = None) -> Ref:
    """Which axes have size 1 is what the example says."""
    gone = input.rank - b.value.dim()
    axes = axes_of(dim)
    if axes is None:
        return b.emit("squeeze", input, rank=b.value.dim(), axes=None)
    refuse(gone not in (0, len(axes)), "squeeze of several axes of which some have more elements than one")
    return b.squeeze(input, *axes) if gone else input


@op()
def unsqueeze(b: Builder, input: Ref, dim: int) -> Ref:
    return b.unsqueeze(input, dim)


@op("transpose", "swapaxes", "swapdims")
def _transpose(b: Builder, input: Ref, dim0: int, dim1: int) -> Ref:
    return b.swap(input, dim0, dim1)


@op()
def permute(b: Builder, input: Ref, *dims: Any) -> Ref:
    return b.transpose(input, sizes_of(dims))


@op()
def t(b: Builder, input: Ref) -> Ref:
    return b.swap(input, 0, -1)


@op("cat", "concat", "concatenate")
def _cat(b: Builder, tensors: Sequence[Ref], dim: int = 0, axis: int | None = None) -> Ref:
    kind = max((x.kind for x in tensors), key="bif".index)
    return b.emit("concat", *(b.cast(x, kind) for x in tensors), axis=dim if axis is None else axis)


@op()
def stack(b: Builder, tensors: Sequence[Ref], dim: int = 0) -> Ref:
    return _cat(b, [b.unsqueeze(x, dim) for x in tensors], dim % (tensors[0].rank + 1))


def _split(b: Builder, x: Ref, dim: int) -> list[Ref]:
    """Parts of the sizes that they have in the example; another size of x is an error when it is run."""
    sizes = [part.shape[dim] for part in b.value]
    return b.emit_many("split", [x], [(x.rank, x.kind)] * len(sizes), {"axis": dim % x.rank, "sizes": sizes})


@op("split", "split_with_sizes")
def split(b: Builder, tensor: Ref, split_size_or_sections: Any, dim: int = 0) -> tuple[Ref, ...]:
    return tuple(_split(b, tensor, dim))


@op()
def chunk(b: Builder, input: Ref, chunks: int, dim: int = 0) -> tuple[Ref, ...]:
    outputs = [(input.rank, input.kind)] * len(b.value)
    return tuple(b.emit_many("split", [input], outputs, {"axis": dim % input.rank}))


@op()
def unbind(b: Builder, input: Ref, dim: int = 0) -> tuple[Ref, ...]:
    outputs, sizes = [(input.rank, input.kind)] * len(b.value), [1] * len(b.value)
    parts = b.emit_many("split", [input], outputs, {"axis": dim % input.rank, "sizes": sizes})
    return tuple(b.squeeze(part, dim) for part in parts)


@op()
def narrow(b: Builder, input: Ref, dim: int, start: Any, length: Any) -> Ref:
    fixed = isinstance(start, int) and isinstance(length, int)
    return b.part(input, dim, start, start + length if fixed else b.add(start, length))


@op()
def select(b: Builder, input: Ref, dim: int, index: Any) -> Ref:
    return b.emit("gather", input, index, rank=input.rank - 1, axis=dim % input.rank)


@op()
def index_select(b: Builder, input: Ref, dim: int, index: Ref) -> Ref:
    return b.emit("gather", input, index, axis=dim % input.rank)


@op("gather", "take_along_dim")
def _gather(b: Builder, input: Ref, dim: int, index: Any) -> Ref:
    return b.emit("gather_elements", input, index, axis=dim % input.rank)


@op()
def expand(b: Builder, input: Ref, *sizes: Any) -> Ref:
    wanted = [1 if isinstance(n, int) and n == -1 else n for n in sizes_of(sizes)]
    return b.emit("expand", input, b.vector(wanted), rank=len(wanted))


@op()
def expand_as(b: Builder, input: Ref, other: Ref) -> Ref:
    return b.emit("expand", input, b.emit("shape", other, rank=1, kind="i"), rank=other.rank)


@op("repeat", "tile")
def repeat(b: Builder, input: Ref, *sizes: Any) -> Ref:
    counts = sizes_of(sizes)
    counts = [1] * (input.rank - len(counts)) + counts
    return b.emit("tile", b.unsqueeze(input, *range(len(counts) - input.rank)), b.vector(counts), rank=len(counts))


@op()
def flip(b: Builder, input: Ref, *dims: Any) -> Ref:
    axes = [axis % input.rank for axis in sizes_of(dims)]
    n = len(axes)
    return b.emit("slice", input, [-1] * n, [-(2**62)] * n, axes, [-1] * n)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@op()
def pad(b: Builder, input: Ref, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Ref:
    """PyTorch names the last axis first; we name all beginnings, then all ends."""
    axes = [input.rank - 1 - k for k in range(len(pad) // 2)]
    fill = b.cast(0.0 if value is None else value, input.kind)
    return b.emit("pad", input, b.vector([*pad[::2], *pad[1::2]]), fill, axes, mode=_PAD_MODES[mode])


# New tensors


def _fill(b: Builder, shape: Ref, value: float) -> Ref:
    kind = kind_of(b.value)
    made = {"f": float, "i": int, "b": bool}[kind](value)
    dtype = {"f": "float32", "i": "int64", "b": "bool"}[kind]
    return b.emit("fill", shape, rank=b.value.dim(), kind=kind, value=made, dtype=dtype)


def _filled(value: float, skip: int) -> Translator:
    """``torch.zeros(sizes)``, and ``x.new_zeros(sizes)`` whose first argument is not needed."""

    def translate(b: Builder, *args: Any, size: Any = None, dtype: Any = None, device: Any = None,
                  requires_grad: bool = False) -> Ref:  # fmt: skip
        return _fill(b, b.vector(sizes_of(args[skip:], size)), value)

    return translate


def _like(value: float) -> Translator:
    return lambda b, input, dtype=None, device=None: _fill(b, b.emit("shape", input, rank=1, kind="i"), value)


for _name, _value in (("zeros", 0.0), ("ones", 1.0), ("empty", 0.0)):  # memory that is not set may as well be 0
    FUNCTIONS |= {_name: _filled(_value, 0), f"new_{_name}": _filled(_value, 1), f"{_name}_like": _like(_value)}


FUNCTIONS |= {"new": _filled(0.0, 1), "zero": _like(0.0)}


@op()
def fill(b: Builder, input: Ref, value: float) -> Ref:
    return _fill(b, b.emit("shape", input, rank=1, kind="i"), value)


@op()
def full(b: Builder, size: Any, fill_value: Any, dtype: Any = None, device: Any = None) -> Ref:
    if isinstance(fill_value, Ref):
        return b.emit("expand", b.cast(fill_value, kind_of(b.value)), b.vector(size), rank=len(size))
    return _fill(b, b.vector(size), fill_value)


@op()
def new_full(b: Builder, input: Ref, size: Any, fill_value: Any, dtype: Any = None, device: Any = None) -> Ref:
    return full(b, size, fill_value)


@op()
def full_like(b: Builder, input: Ref, fill_value: float, dtype: Any = None, device: Any = None) -> Ref:
    return _fill(b, b.emit("shape", input, rank=1, kind="i"), fill_value)


@op()
def arange(b: Builder, *bounds: Any, step: Any = 1, dtype: Any = None, device: Any = None) -> Ref:
    start, end, step = (0, *bounds, step) if len(bounds) == 1 else (*bounds, step) if len(bounds) == 2 else bounds
    made = b.emit("range", *(b.cast(n, "i") for n in (start, end, step)), rank=1, kind="i")
    return b.cast(made, kind_of(b.value))


def _triangle(compare: str) -> Translator:
    def translate(b: Builder, input: Ref, diagonal: int = 0) -> Ref:
        rows, columns = (b.emit("range", 0, b.size(input, axis), 1, rank=1, kind="i") for axis in (-2, -1))
        inside = b.binary(compare, b.binary("sub", columns, b.unsqueeze(rows, 1)), diagonal, kind="b")
        return where(b, inside, input, b.cast(0, input.kind))

    return translate


FUNCTIONS |= {"triu": _triangle("greater_equal"), "tril": _triangle("less_equal")}


# Sequences of different lengths


@op()
def pack_padded_sequence(
    b: Builder, input: Ref, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> Packed:
    return Packed(input, b.cast(lengths, "i"), batch_first)


@op()
def pad_packed_sequence(
    b: Builder,
    sequence: Packed,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: Any = None,
) -> tuple[Ref, Ref]:
    """PyTorch cuts the result after the longest sequence."""
    refuse(padding_value != 0, "pad_packed_sequence with a padding_value")
    padded = sequence.padded
    if total_length is None:
        longest = b.reduce("max", sequence.lengths)
        padded = b.part(padded, 1 if sequence.batch_first else 0, 0, longest)
    return (b.swap(padded, 0, 1) if batch_first != sequence.batch_first else padded), sequence.lengths
