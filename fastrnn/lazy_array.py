"""Arrays that stay in their file: weights that are packed already need no second place in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class LazyArray(NDArrayOperatorsMixin):
    """An array whose elements are read when they are asked for; everything that an array can do, it does with a copy.

    Parameters
    ----------
    shape, dtype
    source : callable
        Reads the elements and checks that they are still those that were loaded; ``FormatError`` where they are not.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, source: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._source = shape, dtype, source
        self._last: Callable[[], np.ndarray | None] = lambda: None

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def read(self) -> np.ndarray:
        """The array, from the file."""
        array = self._source()
        self._last = weakref.ref(array)
        return array

    def held(self) -> np.ndarray:
        """The array that was read last, if something still holds it; else it is read."""
        array = self._last()
        return self.read() if array is None else array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.held()
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(in_memory, inputs), **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"an array has no attribute {name!r}")
        return getattr(self.held(), name)

    def __getitem__(self, key: Any) -> Any:
        return self.held()[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Callable[..., np.ndarray], tuple[np.ndarray]]:
        return np.asarray, (self.read(),)

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


def in_memory(array: Any) -> Any:
    """The elements of a lazy array, as they were loaded; anything else as it is."""
    return array.held() if isinstance(array, LazyArray) else array


def from_file(array: Any) -> Any:
    """The elements of a lazy array, read again, so that a file that has changed is noticed; anything else as it is."""
    return array.read() if isinstance(array, LazyArray) else array


def dtype_of(array: Any) -> np.dtype:
    """The dtype of an array or array-like; a lazy array is not read for it."""
    return array.dtype if isinstance(array, LazyArray) else np.asarray(array).dtype
