"""Keras' layers that move elements: Flatten, Reshape, Permute, RepeatVector, padding, cropping, repeating, einsum."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from string import ascii_letters

from ..errors import FormatError, UnsupportedError
from .files import short
from .keras_config import Call, Converted, Value, activation_of, choice, integer, integers
from .keras_conv import channels_first, rank_of
from .keras_emit import Dim, Emitter
from .limits import MAX_RANK, MAX_UNITS


def flatten(call: Call) -> Converted:
    """Flatten: all axes behind the batch as one; what is channels first goes last before that."""
    emit = Emitter(call.name)
    x = call.x
    if x.shape is None:
        return emit.done(emit.emit("flatten", [x], (None, None)))
    if len(x.shape) == 1:
        return emit.done(emit.unsqueeze(x, 1))
    if channels_first(call.config):
        x = emit.move(x, 1, len(x.known_shape) - 1)
    rest = x.known_shape[1:]
    size = None if None in rest else prod(n or 0 for n in rest)
    return emit.done(emit.emit("flatten", [x], (x.known_shape[0], size)))


def reshape(call: Call) -> Converted:
    """Reshape: the axes behind the batch in a new shape, -1 being what remains."""
    emit, target = Emitter(call.name), call.config.get("target_shape")
    if (
        not isinstance(target, list)
        or len(target) >= MAX_RANK
        or any(type(n) is not int or not (n == -1 or 0 < n <= MAX_UNITS) for n in target)
        or target.count(-1) > 1
    ):
        raise FormatError(f"'target_shape' is {short(target)}, expected sizes, at most one of them -1")
    x = call.x
    if x.shape is None:
        x = replace(x, shape=(None, None))  # only the batch has to be there
    if -1 not in target:
        y = emit.reshape(x, [-1, *target])
        return emit.done(replace(y, shape=(x.known_shape[0], *target)))
    rest = x.known_shape[1:]
    size = None if None in rest or call.x.shape is None else prod(n or 0 for n in rest)
    known = prod(n for n in target if n != -1)
    if size is not None and size % known:
        raise FormatError(f"{size} elements do not fit 'target_shape' {target}; the configuration is inconsistent")
    dims: list[Dim] = [emit.size(x, 0), *(size // known if n == -1 and size is not None else n for n in target)]
    return emit.done(emit.reshape(x, dims))


def permute(call: Call) -> Converted:
    """Permute: the axes behind the batch in another order, counted from 1."""
    emit, dims = Emitter(call.name), call.config.get("dims")
    if (
        not isinstance(dims, list)
        or len(dims) >= MAX_RANK
        or sorted(map(str, dims)) != [str(k + 1) for k in range(len(dims))]
    ):
        raise FormatError(f"'dims' is {short(dims)}, expected the numbers from 1 in some order")
    call.x.require_rank(len(dims) + 1)
    x = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (len(dims) + 1))
    return emit.done(emit.transpose(x, [0, *dims]))


def repeat_vector(call: Call) -> Converted:
    """RepeatVector: (batch, features) as every one of n steps."""
    emit, n = Emitter(call.name), integer(call.config, "n")
    call.x.require_rank(2)
    x = call.x if call.x.shape is not None else replace(call.x, shape=(None, None))
    return emit.done(emit.tile(emit.unsqueeze(x, 1), [1, n, 1]))


def _amounts(call: Call, key: str, rank: int) -> list[list[int]]:
    """What stands before and after each spatial axis; one number stands for both, or for all."""
    value = call.config.get(key, 1)
    value = [value] * rank if type(value) is int or (rank == 1 and isinstance(value, list)) else value
    if not isinstance(value, list) or len(value) != rank:
        raise FormatError(f"{key!r} is {short(value)}, expected {rank} pairs of integers; the configuration is damaged")
    return [integers({key: pair}, key, 2, least=0) for pair in value]


def zero_padding(call: Call) -> Converted:
    """ZeroPadding1D, ZeroPadding2D."""
    emit, rank = Emitter(call.name), rank_of(call.class_name)
    call.x.require_rank(rank + 2)
    x = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (rank + 2))
    first = 2 if channels_first(call.config) else 1
    before, after = [0] * (rank + 2), [0] * (rank + 2)
    for axis, (begin, end) in enumerate(_amounts(call, "padding", rank), first):
        before[axis], after[axis] = begin, end
    return emit.done(emit.pad(x, before, after))


def cropping(call: Call) -> Converted:
    """Cropping1D, Cropping2D."""
    emit, rank = Emitter(call.name), rank_of(call.class_name)
    call.x.require_rank(rank + 2)
    y = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (rank + 2))
    first = 2 if channels_first(call.config) else 1
    for axis, (begin, end) in enumerate(_amounts(call, "cropping", rank), first):
        n = y.known_shape[axis]
        if n is not None and begin + end >= n:
            raise FormatError(f"'cropping' leaves nothing of {n} elements; the configuration is inconsistent")
        if begin or end:
            y = emit.slice(y, axis, begin, -end if end else None)
    return emit.done(y)


def up_sampling(call: Call) -> Converted:
    """UpSampling1D, UpSampling2D: each element several times."""
    emit, rank = Emitter(call.name), rank_of(call.class_name)
    choice(call.config, "interpolation", "nearest", ("nearest",))
    sizes = integers(call.config, "size", rank, 2)
    call.x.require_rank(rank + 2)
    y = call.x if call.x.shape is not None else replace(call.x, shape=(None,) * (rank + 2))
    first = 2 if channels_first(call.config) else 1
    for axis, times in enumerate(sizes, first):
        y = repeated(emit, y, axis, times)
    return emit.done(y)


def repeated(emit: Emitter, x: Value, axis: int, times: int) -> Value:
    """Each element of an axis several times."""
    if times == 1:
        return x
    shape = x.known_shape
    y = emit.tile(emit.unsqueeze(x, axis + 1), [times if k == axis + 1 else 1 for k in range(len(shape) + 1)])
    n = shape[axis]
    dims: list[Dim] = [emit.size(x, k) for k in range(len(shape))]
    dims[axis] = -1 if n is None else n * times
    return emit.reshape(y, dims)


def einsum_dense(call: Call) -> Converted:
    """EinsumDense: a sum of products with a kernel, such as "abc,cd->abd"; a dense layer where it is one."""
    emit, config = Emitter(call.name), call.config
    equation = config.get("equation")
    found = re.fullmatch(r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?", str(equation))
    rank = len(call.x.known_shape)
    if not found or (found[1] and found[3]) or found[1] != found[5] or found[3] != found[7]:
        raise UnsupportedError(f"'equation' is {short(equation)}; known are such as 'abc,cd->abd' and '...b,bc->...c'")
    term, kernel_term, out = found[2], found[4], found[6]
    hidden = "".join(k for k in ascii_letters if k not in term + kernel_term + out)[: max(rank - len(term), 0)]
    if found[1]:
        term, out = hidden + term, hidden + out
    elif found[3]:
        term, out = term + hidden, out + hidden
    if len(term) != rank or any(len(set(t)) < len(t) for t in (term, kernel_term, out)):
        raise FormatError(f"'equation' {short(equation)} does not fit {rank} axes; the configuration is inconsistent")
    if not set(out) <= set(term + kernel_term):
        raise FormatError(f"'equation' {short(equation)} makes an axis of nothing; the configuration is damaged")
    sizes = dict(zip(term, call.x.known_shape))
    kernel = call.weights.take(0, "kernel", tuple(sizes.get(k) for k in kernel_term))
    sizes |= dict(zip(kernel_term, kernel.shape))
    bias_axes = config.get("bias_axes")
    bias = None
    if bias_axes is not None:
        if not isinstance(bias_axes, str) or not bias_axes or not set(bias_axes) <= set(out):
            raise FormatError(f"'bias_axes' is {short(bias_axes)}, not letters of the output; the file is damaged")
        behind = out[min(map(out.find, bias_axes)) :]
        bias = call.weights.take(1, "bias", tuple(sizes[k] if k in bias_axes else 1 for k in behind))
    activation = activation_of(config.get("activation"), call.version)
    inner, outer = kernel_term[:1], kernel_term[1:]
    if len(kernel_term) == 2 and term[-1:] == inner and out == term[:-1] + outer and bias_axes in (None, outer):
        weights = {"weight": kernel.T.copy(), **({"bias": bias} if bias is not None else {})}
        shape = (*call.x.known_shape[:-1], kernel.shape[1])
        return emit.done(emit.emit("dense", [call.x], shape, "float32", weights=weights, activation=activation))
    y = emit.einsum([term, kernel_term], out, [call.x, emit.constant(kernel)])
    y = y if bias is None else emit.binary("add", y, bias)
    return emit.done(emit.activation(activation, y))
