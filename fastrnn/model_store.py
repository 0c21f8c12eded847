"""States of many streams of a whole model: arrays by name, gathered before a call of its graph, scattered after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from .arrays import as_array, as_float32, c_array, is_whole
from .errors import ShapeError, UnsupportedError
from .fingerprint import Fingerprint
from .graph.streaming import Streamed, StreamState
from .spec import Tensor
from .streams import Rows

ROWS_A_CALL = 128
"""Streams that share a call of the graph: enough to use each weight often, few enough that what stands between the
layers stays in the cache.  A frame of silero: 22 us alone, 11 with 128 in a call, 30 with 1,000."""

MAX_FRAMES = 64
"""Shapes of frames for which a store remembers what a step gives."""


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
        self._streamed, built = model.streamed(states)
        self._set_up(built, constants)
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
        self._batch, self._time = whole.batch_axis, whole.time_axis
        self._check_inputs()
        fixed = [t.name for t in self._inputs if _fixed(t, self._batch[t.name])]
        fixed += [s.input for s in self._states if s.batch_axis < 0]
        self._one_by_one = bool(fixed)
        self._varying = [s.input for s in self._states if None in s.shape]
        self._made: dict[tuple[tuple[int, ...], ...], dict[str, np.ndarray]] = {}
        self._has_time = any(self._time[t.name] is not None for t in self._inputs)
        self.alone = (
            f"{', '.join(self._varying)} changes its length from call to call, so streams cannot share one; use a"
            " stream for each"
            if self._varying
            else ""
        )

    def _check_inputs(self) -> None:
        """Refuse inputs of which a row and a step cannot have one of their own."""
        unknown = [repr(t.name) for t in self._inputs if t.shape is None]
        if unknown:
            raise UnsupportedError(
                f"neither the model nor its layers tell the shape of input {', '.join(unknown)}, which a stream needs"
            )
        rows = any(self._batch[t.name] >= 0 for t in self._inputs)
        shared = [t.name for t in self._inputs if not t.shape or (rows and self._batch[t.name] < 0)]
        if shared:
            form = ", ".join(f"{name!r}: ..." for name in shared)
            raise ShapeError(
                f"{', '.join(map(repr, shared))} has no axis for a batch: it is the same at every step of all streams;"
                f" pass constants={{{form}}}"
            )
        if not self._inputs:
            raise ShapeError("all inputs are constants or states; a stream needs one that comes step by step")

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        if capacity > 1 and self.alone:
            raise UnsupportedError(self.alone)
        self._arrays = {state.input: _first(state, capacity) for state in self._states}
        self.bytes_a_row = sum(array.nbytes for array in self._arrays.values()) // capacity

    def is_sequence(self, x: Any) -> bool:
        name = self._inputs[0].name
        part: Any = x.get(name) if isinstance(x, Mapping) else x
        return as_array(part).ndim == len(self._frame(name)) + 1

    # ---- running ----

    def step(self, rows: Rows, x: Any, out: Any = None) -> Any:
        batch = self._count(rows)
        frames = self._taken(x, 0)
        alone = [name for name, array in frames.items() if array.ndim == len(self._frame(name))]
        if alone and batch != 1:
            raise ShapeError(f"there are {batch} streams, but {', '.join(map(repr, alone))} is one frame")
        single = len(alone) == len(frames)
        frames |= {name: frames[name][None] for name in alone}
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
        if self._has_time and not self._changes(chunks):
            return self._run(rows, chunks)
        frames = [self._run(rows, {n: a[:, k : k + 1] for n, a in chunks.items()}) for k in range(steps.pop())]
        if not frames:
            made = self._made_of(tuple(array.shape[2:] for array in chunks.values()))
            return {name: np.empty((self._count(rows), 0, *a.shape), a.dtype) for name, a in made.items()}
        if not self._has_time:
            return {name: np.stack([made[name] for made in frames], 1) for name in frames[0]}
        return {
            name: frames[-1][name] if self._time[name] is None else np.concatenate([made[name] for made in frames], 1)
            for name in frames[0]
        }

    def _changes(self, chunks: Mapping[str, np.ndarray]) -> bool:
        """Whether an input that has no time, of a model whose others have, is not the same at all steps."""
        return any(self._time[n] is None and a.shape[1] > 1 and np.any(a != a[:, :1]) for n, a in chunks.items())

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
        taken = self._taken(x, 1, batch=False)
        if len({len(array) for array in taken.values()}) > 1:
            raise ShapeError(f"{name} has inputs of different lengths")
        return taken

    def results(self, x: Mapping[str, np.ndarray]) -> Any:
        steps, one = len(next(iter(x.values()))), self._made_of(tuple(x[t.name].shape[1:] for t in self._inputs))
        made = [np.empty((steps, *a.shape) if self._each_step(name) else a.shape, a.dtype) for name, a in one.items()]
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
        idle = np.flatnonzero(left == 0)
        if idle.size and not all(self._each_step(t.name) for t in self._outputs):  # what is known after no step more
            self._advance(rows[idle], [x[k] for k in idle], [y[k] for k in idle], at[idle], 0)
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
            feeds[state.input] = _as_taken(held, state.batch_axis)
        made = self._model.run(feeds)
        for state in self._states:
            new, held = _rows_first(made[state.output], state.batch_axis, 1), self._arrays[state.input]
            if new.ndim != held.ndim or (rows is not None and new.shape[1:] != held.shape[1:]):
                raise ShapeError(
                    f"the state {state.output!r} has shape {new.shape[1:]}, {state.input!r} takes {held.shape[1:]}; the"
                    " model gives states that it does not take, pass states={output: input} if others belong together"
                )
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
        shape = next(t.shape for t in self._inputs if t.name == name) or ()
        drop = {self._batch[name], self._time[name]}
        return tuple(n for axis, n in enumerate(shape) if axis not in drop)

    def _made_of(self, frames: tuple[tuple[int, ...], ...]) -> dict[str, np.ndarray]:
        """What a step of one stream gives for frames of these shapes, in the order of the inputs; found by a trial."""
        made = self._made.get(frames)
        if made is None:
            trial = self._like(1)
            zeros = {t.name: np.zeros((1, 1, *f), np.dtype(t.dtype)) for t, f in zip(self._inputs, frames)}
            made = {n: _one_step(a[0], self._time[n] is not None) for n, a in trial._run(None, zeros).items()}
            if len(self._made) >= MAX_FRAMES:
                self._made.clear()
            self._made[frames] = made
        return made

    def _like(self, capacity: int) -> ModelStore:
        """Another store of the same model, at the beginning."""
        other = ModelStore.__new__(ModelStore)
        other._streamed = self._streamed
        other._set_up(self._model, self._constants)
        other._allocate(capacity)
        return other

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
        return {s.input: _as_taken(states[s.input], s.batch_axis).copy() for s in self._states}

    def taken(self, shown: Any, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        axes = {s.input: s.batch_axis for s in self._states}
        if not isinstance(shown, Mapping) or set(shown) != set(like):
            got = ", ".join(map(str, shown)) if isinstance(shown, Mapping) else type(shown).__name__
            raise ShapeError(f"the state is a dict of {', '.join(like)}, got {got}")
        arrays = {name: as_array(shown[name]) for name in like}
        free = set(self._varying)
        wanted = {name: _as_taken(array, axes[name]) for name, array in like.items()}
        wrong = [
            f"{name} must be {array.dtype} {array.shape}, got {arrays[name].dtype} {arrays[name].shape}"
            for name, array in wanted.items()
            if (arrays[name].ndim != array.ndim if name in free else arrays[name].shape != array.shape)
            or not np.can_cast(arrays[name].dtype, array.dtype, "same_kind")
        ]
        if wrong:
            raise ShapeError("; ".join(wrong))
        found = {name: c_array(arrays[name], array.dtype) for name, array in like.items()}
        return {name: _rows_first(array, axes[name], len(like[name])) for name, array in found.items()}

    def fingerprint(self) -> Fingerprint:
        found: Fingerprint = self._model.fingerprint(self._constants, {s.input: s.output for s in self._states})
        return found

    def clear(self, rows: Rows) -> None:
        for state in self._states:
            if rows is None:
                self._arrays[state.input] = _first(state, self.capacity)
            else:
                self._arrays[state.input][rows] = 0 if state.initial is None else state.initial

    def grown(self, capacity: int) -> ModelStore:
        larger = self._like(capacity)
        for name, array in self._arrays.items():
            larger._arrays[name][: self.capacity] = array
        return larger


def _first(state: StreamState, rows: int) -> np.ndarray:
    """What rows begin with."""
    first = np.zeros([rows, *(state.first if n is None else n for n in state.shape)], np.dtype(state.dtype))
    if state.initial is not None:
        first[...] = state.initial
    return first


def _as_taken(array: np.ndarray, batch_axis: int) -> np.ndarray:
    """A state with its rows first as the model takes it; several of one that has no axis for them stay apart."""
    if batch_axis < 0:
        return array[0] if len(array) == 1 else array
    return np.moveaxis(array, 0, batch_axis)


def _rows_first(array: np.ndarray, batch_axis: int, rows: int) -> np.ndarray:
    if batch_axis < 0:
        return array[None] if rows == 1 else array
    return np.moveaxis(array, batch_axis, 0)


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


def _one_step(array: np.ndarray, has_time: bool) -> np.ndarray:
    """An array like what a single step has in a result, whose steps may be none."""
    return np.empty(array.shape[1:], array.dtype) if has_time else array
