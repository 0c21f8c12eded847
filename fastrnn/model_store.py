"""States of many streams of a whole model: arrays by name, gathered before a call of its graph, scattered after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from .arrays import as_array, as_float32, c_array, is_whole
from .errors import ShapeError, UnsupportedError
from .graph.streaming import Streamed, StreamState, streamed
from .inspect import batch_axes
from .spec import Tensor
from .streams import Rows

ROWS_A_CALL = 128
"""Streams that share a call of the graph: enough to use each weight often, few enough that what stands between the
layers stays in the cache.  A frame of silero: 22 us alone, 11 with 128 in a call, 30 with 1,000."""


class ModelStore:
    """Rows of a model's states.

    A frame is what an input takes at one step of one stream, without axes of batch and time.  A model that takes a
    frame a call (an ONNX export with states of its own) and one that takes sequences look alike from here.

    Parameters
    ----------
    constants : mapping
        Inputs that are the same at every step, such as a sampling rate.
    states : mapping of output to input, optional
        Which outputs are states that go into inputs, where their names and shapes do not tell.
    """

    def __init__(self, model: Any, capacity: int, constants: Mapping[str, Any], states: Mapping[str, str] | None):
        self._streamed = streamed(model.spec, states)
        self._set_up(model.rebuilt(self._streamed.spec), constants)
        self._allocate(capacity)

    def _set_up(self, model: Any, constants: Mapping[str, Any]) -> None:
        whole: Streamed = self._streamed
        self._model, self._states = model, whole.states
        unknown = sorted(set(constants) - {t.name for t in whole.inputs})
        if unknown:
            raise ShapeError(f"constants= names {', '.join(unknown)}, the inputs are {_names(whole.inputs)}")
        self._constants = {name: as_array(value) for name, value in constants.items()}
        self._inputs = [t for t in whole.inputs if t.name not in constants]
        self._outputs = list(whole.outputs)
        axes = batch_axes(whole.spec)
        self._batch = {t.name: axes.get(t.name, 0) for t in (*self._inputs, *self._outputs)}
        self._time = whole.time_axis
        fixed = [t.name for t in self._inputs if _fixed(t, self._batch[t.name])]
        fixed += [s.input for s in self._states if s.batch_axis < 0]
        self._one_by_one = bool(fixed)
        self._varying = [s.input for s in self._states if None in s.shape]
        self._features: dict[str, tuple[int, ...]] = {}
        self.frame_ndim = len(self._frame(self._inputs[0].name)) if self._inputs else 0

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        if self._varying and capacity > 1:
            raise UnsupportedError(
                f"{', '.join(self._varying)} changes its length from call to call, so streams cannot share one; use a"
                " stream for each"
            )
        self._arrays = {
            state.input: np.zeros((capacity, *_first(state)), np.dtype(state.dtype)) for state in self._states
        }
        self.bytes_a_row = sum(array.nbytes for array in self._arrays.values()) // capacity

    # ---- running ----

    def step(self, rows: Rows, x: Any, out: Any = None) -> Any:
        batch = self._count(rows)
        frames = self._taken(x, 0)
        single = batch == 1 and all(array.ndim == len(self._frame(name)) for name, array in frames.items())
        if single:
            frames = {name: array[None] for name, array in frames.items()}
        self._check_batch(frames, batch)
        made = self._run(rows, {name: array[:, None] for name, array in frames.items()})
        results = [self._one_step(name, array) for name, array in made.items()]
        if single:
            results = [array[0] for array in results]
        return self._given(results, out)

    def _one_step(self, name: str, array: np.ndarray) -> np.ndarray:
        """The result of one step: without its axis of time, unless a stride made no step or several."""
        return array[:, 0] if self._time[name] is not None and array.shape[1] == 1 else array

    def chunk(self, rows: Rows, x: Any, out: Any = None) -> Any:
        chunks = self._taken(x, 1)
        self._check_batch(chunks, self._count(rows))
        return self._given(list(self._chunk(rows, chunks).values()), out)

    def _chunk(self, rows: Rows, chunks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results of (rows, seq_len, *frame) arrays."""
        steps = {array.shape[1] for array in chunks.values()}
        if len(steps) != 1:
            raise ShapeError(f"the inputs have {', '.join(map(str, sorted(steps)))} steps; give each the same number")
        if self._has_time:
            return self._run(rows, chunks)
        frames = [self._run(rows, {n: a[:, k : k + 1] for n, a in chunks.items()}) for k in range(steps.pop())]
        if not frames:
            return {
                t.name: np.empty((self._count(rows), 0, *self._shape_of(t.name)), np.float32) for t in self._outputs
            }
        return {name: np.stack([made[name] for made in frames], 1) for name in frames[0]}

    @property
    def _has_time(self) -> bool:
        return any(self._time[t.name] is not None for t in self._inputs)

    def _given(self, results: list[np.ndarray], out: Any) -> Any:
        if out is not None:
            targets = out if isinstance(out, (tuple, list)) else [out]
            if [getattr(a, "shape", None) for a in targets] != [a.shape for a in results]:
                raise ShapeError(f"out must have the shapes {', '.join(str(a.shape) for a in results)}")
            for target, array in zip(targets, results):
                target[...] = array
            return out
        return results[0] if len(results) == 1 else tuple(results)

    def check_sequence(self, x: Any, name: str) -> dict[str, np.ndarray]:
        if self._varying:
            raise UnsupportedError(f"{', '.join(self._varying)} changes its length; only a Stream runs such a model")
        taken = self._taken(x, 1, batch=False)
        if len({len(array) for array in taken.values()}) > 1:
            raise ShapeError(f"{name} has inputs of different lengths")
        return taken

    def results(self, x: Mapping[str, np.ndarray]) -> Any:
        steps = len(next(iter(x.values())))
        made = []
        for t in self._outputs:
            shape = self._shape_of(t.name)
            made.append(np.empty((steps, *shape) if self._each_step(t.name) else shape, np.float32))
        return made[0] if len(made) == 1 else tuple(made)

    def _each_step(self, name: str) -> bool:
        """Whether an output has something for each step, not only for the last."""
        return self._time[name] is not None or not self._has_time

    def advance(
        self, rows: np.ndarray, x: list[Any], y: list[Any], begins: np.ndarray | None, steps: np.ndarray
    ) -> None:
        at = np.zeros(len(x), np.int64) if begins is None else np.array(begins)
        left = np.array(steps)
        frames = [tuple(sequence[t.name].shape[1:] for t in self._inputs) for sequence in x]
        if len(set(frames)) > 1:  # those of one shape share calls
            for frame in set(frames):
                alike = [k for k, other in enumerate(frames) if other == frame]
                self.advance(rows[alike], [x[k] for k in alike], [y[k] for k in alike], at[alike], left[alike])
            return
        while (most := int(left.max(initial=0))) > 0:
            # A power of two of steps for all that have so many: few shapes to plan, and rows stay together.
            count = 1 << (most.bit_length() - 1)
            which = np.flatnonzero(left >= count)
            self._advance(rows[which], [x[k] for k in which], [y[k] for k in which], at[which], count)
            at[which] += count
            left[which] -= count

    def _advance(self, rows: np.ndarray, x: list[Any], y: list[Any], begins: np.ndarray, count: int) -> None:
        """``count`` steps of each row."""
        chunks = {}
        for t in self._inputs:
            parts = [sequence[t.name] for sequence in x]
            chunks[t.name] = np.empty((len(x), count, *parts[0].shape[1:]), parts[0].dtype)
            _core.gather_steps(parts, begins, count, chunks[t.name])
        for place, (name, made) in enumerate(self._chunk(rows, chunks).items()):
            targets = y if len(self._outputs) == 1 else [results[place] for results in y]
            if self._each_step(name):
                _core.scatter_steps(c_array(made, made.dtype), targets, begins, count)
            else:
                for target, result in zip(targets, made):
                    target[...] = result

    def _run(self, rows: Rows, chunks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the graph for (rows, steps, *frame) arrays; results are (rows, steps, ...) or (rows, ...)."""
        most, count = 1 if self._one_by_one else ROWS_A_CALL, self._count(rows)
        if count > most:
            places = np.arange(self.capacity) if rows is None else rows
            parts = [
                self._run(places[k : k + most], {n: a[k : k + most] for n, a in chunks.items()})
                for k in range(0, count, most)
            ]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        padded = 0 if rows is None or self._one_by_one else (1 << (count - 1).bit_length()) - count
        if padded and count and rows is not None:
            # Rows that are run for nothing, so that every number of streams is not a shape of its own to plan.
            again = np.concatenate([np.arange(count), np.zeros(padded, np.int64)])
            made = self._call(rows[again], {name: array[again] for name, array in chunks.items()}, count)
            return {name: array[:count] for name, array in made.items()}
        return self._call(rows, chunks, count)

    def _call(self, rows: Rows, chunks: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """The same, whatever the number of rows; the states of the first ``count`` are kept."""
        feeds = dict(self._constants)
        for name, array in chunks.items():
            feeds[name] = self._to_model(name, array)
        for state in self._states:
            held = self._arrays[state.input] if rows is None else self._arrays[state.input][rows]
            feeds[state.input] = np.moveaxis(held, 0, state.batch_axis) if state.batch_axis >= 0 else held[0]
        made = self._model.run(feeds)
        for state in self._states:
            new = made[state.output]
            new = np.moveaxis(new, state.batch_axis, 0) if state.batch_axis >= 0 else new[None]
            if rows is None:
                self._arrays[state.input] = np.ascontiguousarray(new)
            else:
                self._arrays[state.input][rows[:count]] = new[:count]
        return {t.name: self._from_model(t.name, made[t.name]) for t in self._outputs}

    # ---- axes ----

    def _to_model(self, name: str, array: np.ndarray) -> np.ndarray:
        """(rows, steps, *frame) as the model takes it."""
        batch, time = self._batch[name], self._time[name]
        if time is None:
            array = array[:, 0]
            return array[0] if batch < 0 else np.moveaxis(array, 0, batch)
        if batch < 0:
            return np.moveaxis(array[0], 0, time)
        return np.moveaxis(array, (0, 1), (batch, time))

    def _from_model(self, name: str, array: np.ndarray) -> np.ndarray:
        batch, time = self._batch[name], self._time[name]
        if batch < 0:
            return (array if time is None else np.moveaxis(array, time, 0))[None]
        return np.moveaxis(array, batch, 0) if time is None else np.moveaxis(array, (batch, time), (0, 1))

    def _frame(self, name: str) -> tuple[int | None, ...]:
        """The shape of a frame of an input."""
        tensor = next(t for t in self._inputs if t.name == name)
        if tensor.shape is None:
            raise UnsupportedError(f"the file does not tell the shape of input {name!r}; a stream has to know it")
        drop = {self._batch[name], self._time[name]}
        return tuple(n for axis, n in enumerate(tensor.shape) if axis not in drop)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """What an output has for a step of one stream; found by a trial."""
        if not self._features:
            trial = ModelStore.__new__(ModelStore)
            trial._streamed = self._streamed
            trial._set_up(self._model, self._constants)
            trial._allocate(1)
            frames = {}
            for t in self._inputs:
                shape = [1 if n is None else n for n in self._frame(t.name)]
                frames[t.name] = np.zeros((1, 1, *shape), np.dtype(t.dtype))
            made = trial._run(None, frames)
            self._features = {n: a.shape[2:] if self._time[n] is not None else a.shape[1:] for n, a in made.items()}
        return self._features[name]

    def _taken(self, x: Any, axes: int, batch: bool = True) -> dict[str, np.ndarray]:
        """Inputs as arrays: a dict of them, or the only one."""
        if not isinstance(x, Mapping):
            if len(self._inputs) != 1:
                raise ShapeError(f"the model has the inputs {_names(self._inputs)}; give a dict of arrays")
            x = {self._inputs[0].name: x}
        names = [t.name for t in self._inputs]
        if set(x) != set(names):
            raise ShapeError(f"the model takes {', '.join(names)}, got {', '.join(map(str, x))}")
        taken = {}
        for t in self._inputs:
            array = as_float32(x[t.name], t.name) if t.dtype == "float32" else _whole(x[t.name], t)
            frame = self._frame(t.name)
            got = array.shape[array.ndim - len(frame) :] if frame else ()
            ndims = {len(frame) + axes + 1, len(frame) + axes} if batch and axes == 0 else {len(frame) + axes + batch}
            if array.ndim not in ndims or any(n is not None and n != m for n, m in zip(frame, got)):
                lead = ", ".join(["rows"] * batch + ["seq_len"] * axes)
                raise ShapeError(f"{t.name!r} must be ({lead}) and a frame of {frame}, got shape {array.shape}")
            taken[t.name] = array
        return taken

    def _count(self, rows: Rows) -> int:
        return self.capacity if rows is None else len(rows)

    def _check_batch(self, arrays: Mapping[str, np.ndarray], batch: int) -> None:
        wrong = [f"{name} has {len(array)}" for name, array in arrays.items() if len(array) != batch]
        if wrong:
            raise ShapeError(f"there are {batch} streams, but {', '.join(wrong)} rows")

    # ---- states ----

    def read(self, rows: Rows) -> dict[str, np.ndarray]:
        return {name: (array if rows is None else array[rows]).copy() for name, array in self._arrays.items()}

    def write(self, rows: Rows, states: Mapping[str, np.ndarray]) -> None:
        for name, array in states.items():
            if rows is None:
                self._arrays[name] = np.array(array)
            else:
                self._arrays[name][rows] = array

    def shown(self, states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return states

    def taken(self, shown: Any, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not isinstance(shown, Mapping) or set(shown) != set(like):
            got = ", ".join(map(str, shown)) if isinstance(shown, Mapping) else type(shown).__name__
            raise ShapeError(f"the state is a dict of {', '.join(like)}, got {got}")
        arrays = {name: as_array(shown[name]) for name in like}
        free = set(self._varying)
        wrong = [
            f"{name} must be {array.dtype} {array.shape}, got {arrays[name].dtype} {arrays[name].shape}"
            for name, array in like.items()
            if (arrays[name].shape != array.shape and name not in free)
            or not np.can_cast(arrays[name].dtype, array.dtype, "same_kind")
        ]
        if wrong:
            raise ShapeError("; ".join(wrong))
        return {name: c_array(arrays[name], array.dtype) for name, array in like.items()}

    def clear(self, rows: Rows) -> None:
        for state in self._states:
            if rows is None:
                self._arrays[state.input] = np.zeros((self.capacity, *_first(state)), np.dtype(state.dtype))
            else:
                self._arrays[state.input][rows] = 0

    def grown(self, capacity: int) -> ModelStore:
        larger = ModelStore.__new__(ModelStore)
        larger._streamed = self._streamed
        larger._set_up(self._model, self._constants)
        larger._allocate(capacity)
        for name, array in self._arrays.items():
            larger._arrays[name][: self.capacity] = array
        return larger


def _first(state: StreamState) -> Sequence[int]:
    return [state.first if n is None else n for n in state.shape]


def _fixed(tensor: Tensor, batch_axis: int) -> bool:
    """Whether an input takes one stream a call."""
    return batch_axis < 0 or (tensor.shape is not None and tensor.shape[batch_axis] is not None)


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(t.name for t in tensors)


def _whole(value: Any, tensor: Tensor) -> np.ndarray:
    """Whole numbers or truth values of the dtype that an input declares."""
    array = as_array(value)
    if not is_whole(array):
        raise ShapeError(f"input {tensor.name!r} takes whole numbers ({tensor.dtype}), got dtype {array.dtype}")
    return c_array(array, np.dtype(tensor.dtype))
