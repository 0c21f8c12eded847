"""Arrays at the border: whatever users have becomes what the kernels take, and nothing else passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import ShapeError
from .float_mode import FloatMode, in_default_mode

F32, INT64 = np.dtype(np.float32), np.dtype(np.int64)


def as_array(value: Any) -> np.ndarray:
    """A NumPy view of an array-like: ndarray, torch tensor, DLPack object, nested list; of no subclass of ndarray."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    refuse_packed(value)
    if hasattr(value, "detach"):  # a torch tensor; NumPy knows no gradients, other devices, bfloat16, nor lazy signs
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError):
            pass  # not on the CPU, or of a dtype that NumPy has no word for: the array protocol may still know
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"not an array: {error}; rows of different lengths have to be padded") from None


def refuse_packed(value: Any) -> None:
    """Raise ``ShapeError`` for a PackedSequence of PyTorch, which is a tuple and no list of sequences."""
    if type(value).__name__ == "PackedSequence":
        raise ShapeError(
            "a PackedSequence, not an array; pass the padded sequences and their lengths: `x, lengths ="
            " torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)`, then `layer(x, lengths=lengths)`"
        )


def c_array(array: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """``array`` as C takes it: of this dtype in the machine's byte order, C-contiguous and aligned, of no subclass.

    Without a copy where it is so already.  Every array that is handed to C comes from here, or was made by NumPy.

    >>> c_array(np.frombuffer(bytes(9), np.float32, 2, offset=1), F32).flags.aligned
    True
    """
    if type(array) is np.ndarray and array.dtype is dtype and (flags := array.flags).c_contiguous and flags.aligned:
        return array  # the common case, in a tenth of the time
    with FloatMode():  # a cast rounds
        return np.require(np.asarray(array), dtype, ["C", "A"])


def as_float32(value: Any, name: str) -> np.ndarray:
    """``value`` as an aligned C-contiguous float32 array, without a copy where it is one already.

    Casts follow NumPy's ``same_kind``, and integers are accepted too; complex numbers, text and objects are a
    :class:`~fastrnn.errors.ShapeError`.

    >>> as_float32([1, 2], "x")
    array([1., 2.], dtype=float32)
    """
    try:
        array = as_array(value)
    except ShapeError as error:  # rows of different lengths
        raise ShapeError(f"{name} is {error}") from None
    if not np.can_cast(array.dtype, F32, "same_kind"):
        raise ShapeError(f"{name} must hold real numbers (float32, or what casts to it), got dtype {array.dtype}")
    return c_array(array, F32)


@in_default_mode
def is_whole(array: np.ndarray) -> bool:
    """Whether all elements are whole numbers or truth values."""
    return array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool(np.all(np.floor(array) == array)))


def check_out(array: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An output array given by the caller: float32, C-contiguous, writable, exactly of ``shape``."""
    if type(array) is np.ndarray and array.dtype is F32 and array.shape == shape and array.flags.carray:
        return array
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"{name} must be a NumPy array to write to, got {type(array).__name__}")
    if array.dtype != F32 or array.shape != shape:
        raise ShapeError(f"{name} must be float32 of shape {shape}, got {array.dtype} of shape {array.shape}")
    if not array.flags.carray:
        raise ShapeError(
            f"{name} must be C-contiguous, aligned and writable; make it with numpy.empty{(shape, 'numpy.float32')}"
        )
    return array
