"""States of many streams of one recurrent layer, advanced in place by the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from .arrays import as_array, as_float32, check_out
from .errors import ShapeError, UnsupportedError
from .fingerprint import Fingerprint
from .streams import Rows


def check_causal(layer: Any) -> None:
    """Refuse a layer that reads steps which have not come yet."""
    direction = layer.node.attr("direction")
    if direction != "forward":
        raise UnsupportedError(
            f"{layer.name!r} is {direction}: it reads a sequence from its end, which a stream does not have;"
            " run whole sequences"
        )


class LayerStore:
    """Rows of one recurrent layer."""

    alone = ""

    def __init__(self, layer: Any, capacity: int):
        check_causal(layer)
        self.layer, self.capacity = layer, capacity
        self._states = _core.RowStates(layer._handle, capacity)
        self._names = ("h", "c") if layer.has_c else ("h",)
        self._last = not layer.node.attr("return_sequences")
        self.bytes_a_row = sum(array.nbytes for array in self._arrays()) // max(capacity, 1)

    def is_sequence(self, x: Any) -> bool:
        return as_array(x).ndim == 2

    def _arrays(self) -> list[np.ndarray]:
        return [self._states.h, self._states.c] if self._states.c is not None else [self._states.h]

    def step(self, rows: Rows, x: Any, out: Any = None) -> np.ndarray:
        y = self._states.step(x, out, rows, self.layer._threads())
        if y is not None:
            return y
        array, batch = as_float32(x, "x"), self.capacity if rows is None else len(rows)
        shape = (batch, self.layer.input_size)
        single = array.ndim == 1 and batch == 1
        if array.shape != (shape[1:] if single else shape):
            raise ShapeError(f"x must be (rows, input_size) = {shape}, got shape {array.shape}")
        if out is not None:
            check_out(out, (*array.shape[:-1], self.layer.output_size), "out")
            if np.may_share_memory(out, array):
                raise ShapeError("out must share no memory with x; allocate it apart")
        y = self._states.step(array, out, rows, self.layer._threads())
        assert y is not None
        return y

    def chunk(self, rows: Rows, x: Any, out: Any = None) -> np.ndarray:
        array, batch = as_float32(x, "x"), self.capacity if rows is None else len(rows)
        if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != self.layer.input_size:
            raise ShapeError(
                f"x must be (rows, seq_len, input_size) = ({batch}, any, {self.layer.input_size}), got {array.shape}"
            )
        shape = (batch, self.layer.output_size) if self._last else (*array.shape[:2], self.layer.output_size)
        y = np.empty(shape, np.float32) if out is None else check_out(out, shape, "out")
        if out is not None and np.may_share_memory(out, array):
            raise ShapeError("out must share no memory with x; allocate it apart")
        self._states.chunk(array, None if self._last else y, rows, self.layer._threads())
        if self._last:
            y[...] = self._outputs_so_far(rows)
        return y

    def _outputs_so_far(self, rows: Rows) -> np.ndarray:
        """y of the last step of each row: that is the h of the last layer."""
        h: np.ndarray = self._states.h[-1]
        return h if rows is None else h[rows]

    def check_sequence(self, x: Any, name: str) -> np.ndarray:
        array = as_float32(x, name)
        if array.ndim != 2 or array.shape[1] != self.layer.input_size:
            raise ShapeError(f"{name} must be (seq_len, {self.layer.input_size}), got shape {array.shape}")
        return array

    def results(self, x: np.ndarray) -> np.ndarray:
        shape = (self.layer.output_size,) if self._last else (len(x), self.layer.output_size)
        return np.empty(shape, np.float32)

    def advance(
        self, rows: np.ndarray, x: list[Any], y: list[Any], begins: np.ndarray | None, steps: np.ndarray
    ) -> None:
        most, wanted = int(steps.max(initial=0)), None if self._last else y
        self._states.advance(x, wanted, begins, steps, most, rows, self.layer._threads())
        if self._last:
            for target, output in zip(y, self._outputs_so_far(rows)):
                target[...] = output

    def read(self, rows: Rows) -> dict[str, np.ndarray]:
        at = slice(None) if rows is None else rows
        return {name: array[:, at].swapaxes(0, 1).copy() for name, array in zip(self._names, self._arrays())}

    def write(self, rows: Rows, states: Mapping[str, np.ndarray]) -> None:
        at = slice(None) if rows is None else rows
        for name, array in zip(self._names, self._arrays()):
            array[:, at] = np.swapaxes(states[name], 0, 1)

    def fingerprint(self) -> Fingerprint:
        found: Fingerprint = self.layer.fingerprint()
        return found

    def clear(self, rows: Rows) -> None:
        at = slice(None) if rows is None else rows
        for array in self._arrays():
            array[:, at] = 0

    def shown(self, states: dict[str, np.ndarray]) -> Any:
        arrays = tuple(array.swapaxes(0, 1).copy() for array in states.values())
        return arrays if self.layer.has_c else arrays[0]

    def taken(self, shown: Any, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = [as_float32(part, name) for name, part in zip(like, self.layer._state_parts(shown))]
        for k, (name, array) in enumerate(like.items()):
            shape = (array.shape[1], array.shape[0], array.shape[2])
            if shape[1] == 1 and parts[k].ndim == 2:  # as a call of one sequence gives it
                parts[k] = parts[k][:, None]
            part = parts[k]
            if part.shape != shape:
                raise ShapeError(f"{name} must be (num_layers, batch, size) = {shape}, got shape {part.shape}")
        return {name: part.swapaxes(0, 1) for name, part in zip(like, parts)}

    def grown(self, capacity: int) -> LayerStore:
        larger = LayerStore(self.layer, capacity)
        for new, old in zip(larger._arrays(), self._arrays()):
            new[:, : self.capacity] = old
        return larger
