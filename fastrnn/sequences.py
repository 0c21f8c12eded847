"""Sequences of different lengths as users give them: lists of arrays, and lengths beside a padded array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import INT64, as_array, c_array, refuse_packed
from .errors import ShapeError
from .graph.lengths import Place, WithLengths
from .spec import Tensor


def check_lengths(lengths: Any, batch: int, seq_len: int) -> np.ndarray:
    """Lengths as (batch,) int64; ShapeError if they are none of sequences in a padded array of this size."""
    array = as_array(lengths)
    if array.shape != (batch,) or (array.dtype.kind not in "iu" and array.size):
        raise ShapeError(f"lengths must be ({batch},) integers, got {array.dtype} of shape {array.shape}")
    array = c_array(array, INT64)
    if array.size and (array.min() < 0 or array.max() > seq_len):
        raise ShapeError(f"lengths must lie in 0 .. {seq_len}, got {array.min()} .. {array.max()}")
    return array


def pad(rows: Sequence[np.ndarray], shape: Sequence[int], dtype: Any, batch: int, time: int) -> np.ndarray:
    """Sequences in one array of ``shape``, with zeros behind them; ``batch`` and ``time`` are axes of it.

    >>> pad([np.array([1, 2]), np.array([3])], (2, 2), int, 0, 1)
    array([[1, 2],
           [3, 0]])
    """
    padded = np.zeros(shape, dtype)
    for row, sequence in zip(np.moveaxis(padded, (batch, time), (0, 1)), rows):
        steps = np.moveaxis(sequence, time - (time > batch), 0)
        row[: len(steps)] = steps
    return padded


def is_list_of_sequences(value: Any, batch: int = 0) -> bool:
    """Whether a list holds sequences that NumPy would not stack as an array whose batch is this axis."""
    if not isinstance(value, (list, tuple)):
        return False
    sizes = [len(row) if isinstance(row, (list, tuple)) else tuple(np.shape(row)) for row in value]
    arrays = all(isinstance(size, tuple) and size for size in sizes)
    return not value or len(set(sizes)) > 1 or (batch > 0 and arrays)


def as_batch(plan: WithLengths, feeds: Mapping[str, Any], lengths: Any) -> dict[str, Any]:
    """The inputs of a model that takes lengths: lists padded, and the lengths of all sequences beside them.

    Raises
    ------
    ShapeError
        Sequences and lengths do not fit together, or a sequence has fewer steps than a node needs.
    """
    arrays = dict(feeds)
    found: dict[str, list[int]] = {}
    tensors = {tensor.name: tensor for tensor in plan.spec.inputs if tensor.name in plan.places}
    for name, place in plan.places.items():
        value = feeds.get(name)
        refuse_packed(value)
        if isinstance(value, (list, tuple)) and (lengths is None or is_list_of_sequences(value, place.batch)):
            arrays[name], found[name] = _padded(tensors[name], place, value)
    if lengths is not None and found:
        raise ShapeError("a list of sequences has its own lengths; lengths= goes with a padded array")
    if len({tuple(numbers) for numbers in found.values()}) > 1:
        given = "; ".join(f"{name!r}: {numbers}" for name, numbers in found.items())
        raise ShapeError(f"the sequences of all inputs must have the same lengths, got {given}")
    sizes = {}
    for name, place in plan.places.items():
        if arrays.get(name) is not None:
            array = arrays[name] = as_array(arrays[name])
            if array.ndim != place.rank:
                raise ShapeError(f"input {name!r} must have {place.rank} axes, got shape {array.shape}")
            sizes[name] = array.shape[place.batch], array.shape[place.time]
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{name!r}: {size}" for name, size in sizes.items())
        raise ShapeError(f"lengths are those of all inputs with sequences, whose (batch, seq_len) differ: {given}")
    batch, seq_len = next(iter(sizes.values()), (0, 0))
    numbers = check_lengths(next(iter(found.values())) if found else lengths, batch, seq_len)
    for need in plan.needs:
        short = numbers[~need.holds(numbers)]
        if short.size:
            raise ShapeError(f"{need.node!r} needs more steps than a sequence of length {short.min()} has")
    return {**arrays, plan.lengths: numbers}


def _padded(tensor: Tensor, place: Place, rows: Sequence[Any]) -> tuple[np.ndarray, list[int]]:
    """Sequences as an array of an input, as long as the longest one or as the input always is."""
    batch, time, rank = place
    own = time - (time > batch)
    try:
        sequences = [as_array(row) for row in rows]
        dtype = np.result_type(*sequences) if sequences else np.dtype(tensor.dtype)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"input {tensor.name!r} is no list of arrays: {error}") from None
    shapes = [list(sequence.shape) for sequence in sequences]
    rest = {(*shape[:own], *shape[own + 1 :]) for shape in shapes}
    if any(len(shape) != rank - 1 for shape in shapes) or len(rest) > 1:
        given = ", ".join(str(tuple(shape)) for shape in shapes[:8])
        raise ShapeError(
            f"input {tensor.name!r}: each sequence must be an array of rank {rank - 1}, of the same sizes but for"
            f" axis {own}, got {given}"
        )
    declared = list(tensor.shape or (None,) * rank)
    lengths = [shape[own] for shape in shapes]
    sizes = shapes[0] if shapes else [n or 0 for k, n in enumerate(declared) if k != batch]
    sizes[own] = declared[time] or max(lengths, default=0)
    if max(lengths, default=0) > sizes[own]:
        raise ShapeError(f"input {tensor.name!r} takes {sizes[own]} steps, the longest sequence has {max(lengths)}")
    sizes.insert(batch, len(sequences))
    return pad(sequences, sizes, dtype, batch, time), lengths
