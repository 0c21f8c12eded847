"""How recurrent layers are checked, built and called: shapes, states, lengths and masks.

The cells are in :mod:`fastrnn.cells`, their mathematics in :mod:`fastrnn.reference`, the time loop in C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import _core, runtime
from .arguments import checked, described
from .arrays import F32, as_array, as_float32, check_out, refuse_packed
from .errors import ShapeError, UnsupportedError
from .fingerprint import Fingerprint, of_layer
from .float_mode import in_default_mode
from .layer_store import LayerStore
from .layers import Inputs, Layer, Outputs
from .sequences import check_lengths, pad
from .spec import CELL_ACTIVATIONS, Node, activation, weight_suffixes
from .streams import Pool, Store, Stream

State = Any  # h, or (h, c)
_WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole")


@dataclass(frozen=True)
class CallShapes:
    """What a call as a node of a graph takes and gives: shapes, and where batch and time are in x and y (None: not)."""

    batch: int
    seq_len: int
    axes: tuple[int | None, int | None]
    y: tuple[int, ...]
    states: list[tuple[int, ...]]
    finals: list[tuple[int, ...]]
    last_only: bool
    flips: bool
    directions: int


class Recurrent(Layer):
    """What LSTM, GRU and RNN share: the call.

    Attributes
    ----------
    input_size, hidden_size, output_size, num_layers : int
    bidirectional, batch_first : bool
    """

    gates: ClassVar[int]
    has_c: ClassVar[bool] = False
    _fingerprint: Fingerprint | None = None
    single_step: ClassVar[bool] = False

    # ---- building ----

    def _activations(self) -> tuple[Any, Any, Any]:
        """Of the gates, of the candidate, and of the cell's output."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """What the handle takes besides shapes, weights and activations."""
        return {}

    def _weights(self, suffix: str) -> list[np.ndarray | None]:
        return [self.node.weights.get(name + suffix) for name in _WEIGHT_NAMES]

    def _build(self) -> None:
        node, w = self.node, self.node.weights
        self.hidden_size = w["weight_hh_l0"].shape[0] // self.gates
        self.output_size = w["weight_hh_l0"].shape[1]
        self.input_size = w["weight_ih_l0"].shape[1]
        self.num_layers = node.attr("num_layers")
        self.bidirectional = node.attr("direction") == "bidirectional"
        self.batch_first = node.attr("batch_first")
        self._directions = 2 if self.bidirectional else 1
        merge = node.attr("merge")
        self._features = self.output_size * (self._directions if merge == "concat" else 1)
        self._states = self.num_layers * self._directions
        chosen = [activation(value) for value in self._activations()]
        unfit = sorted({name for name, *_ in chosen if name not in CELL_ACTIVATIONS})
        if unfit:
            raise UnsupportedError(
                f"{self.name!r}: a {self.op} cell cannot use {unfit}; known: {', '.join(CELL_ACTIVATIONS)}"
            )
        self._used_backend = runtime.choose_backend(self._backend)
        options: dict[str, Any] = {
            "cell_clip": None,
            "proj_clip": None,
            "coupled_input_forget": False,
            "reset_before": False,
        }
        options |= self._options()
        options |= dict(zip(("gate", "candidate", "hidden"), chosen))
        self._handle = _core.RecurrentHandle(
            self.op,
            [tuple(self._weights(suffix)) for suffix in weight_suffixes(self.num_layers, node.attr("direction"))],
            self.input_size,
            self.hidden_size,
            self.output_size if "weight_hr_l0" in w else 0,
            self.num_layers,
            self._directions,
            node.attr("direction") == "reverse",
            merge,
            clip=node.attr("clip"),
            backend=self._used_backend,
            **options,
        )
        self._last_only = not node.attr("return_sequences")
        if node.attr("reverse_output") and self.bidirectional:
            raise UnsupportedError(
                f"{self.name!r}: reverse_output orders the steps of one direction; flip a half of y after the call"
            )
        self._reverse_output = bool(node.attr("reverse_output")) and node.attr("direction") == "reverse"
        self._plain = not self._last_only and not self._reverse_output
        self._zero_masked = bool(node.attr("zero_output_for_mask"))

    def last(self) -> Recurrent:
        """The same layer giving only the last output of each direction: y is (batch, features)."""
        node = self.node
        return type(self).from_node(
            Node(node.op, node.name, node.inputs, node.outputs, node.attrs | {"return_sequences": False}, node.weights),
            self._backend,
        )

    @property
    def nbytes(self) -> int:
        return self._handle.nbytes

    @checked(batch=1, seq_len=0)
    def explain(self, batch: int = 1, seq_len: int = 100) -> dict[str, Any]:
        """How a call of this size runs: kernel, backend, instruction set, split over threads, bytes of weights.

        The kernel is that of the cell: ``"lstm"``, ``"gru"``, ``"gru_reset_before"`` or ``"rnn"``; with ``" variant"``
        where its gates are not the standard ones, ``" + projection"``, and ``"blas + "`` before it.
        """
        plan = self._handle.explain(batch, seq_len, self._threads())
        return super().explain(batch, seq_len) | {"backend": self._used_backend} | plan

    # ---- calling ----

    def __call__(
        self,
        x: Any,
        state: State = None,
        lengths: Any = None,
        *,
        mask: Any = None,
        out: Any = None,
        outputs: str | None = None,
    ) -> tuple[np.ndarray, State]:
        """Run whole sequences.

        Parameters
        ----------
        x : (batch, seq_len, input_size) float32
            Time first where ``batch_first`` is False.  (seq_len, input_size) is one sequence: y and the states then
            have no batch axis.  A list of (t_i, input_size) arrays is a ragged batch.
        state : h, or (h, c) for LSTM, optional
            Each (num_layers * directions, batch, output_size); c has hidden_size.  Zeros by default.
        lengths : (batch,) integers in 0 .. seq_len, optional
            Steps that each sequence has; y is 0 beyond them.
        mask : (batch, seq_len) bool, optional
            Keras' semantics: a masked step leaves the state alone and repeats the output.
        out : (y, state), optional
            Arrays to write to: float32, C-contiguous, of the exact shape, sharing no memory with an input.
        outputs : "all" or "last", optional
            "last": y is (batch, features), the last output of each direction.

        Returns
        -------
        y : (batch, seq_len, features) float32
        state : h, or (h, c)

        Raises
        ------
        ShapeError
            Anything does not fit; said before any memory is taken.
        """
        if self._plain and lengths is None and mask is None and outputs is None:
            done = self._handle.forward_exact(x, state, out, self.batch_first, self._features, self._threads())
            if done is not None:
                return done
        refuse_packed(x)
        if isinstance(x, (list, tuple)) and (not x or as_array(x[0]).ndim == 2):
            x, lengths = self._pad(x, lengths, mask)
        x = as_float32(x, "x")
        unbatched = x.ndim == 2
        if unbatched:
            x = x[None] if self.batch_first else x[:, None]
            mask = as_array(mask)[None] if mask is not None and as_array(mask).ndim == 1 else mask
            lengths = [lengths] if lengths is not None and as_array(lengths).ndim == 0 else lengths
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ShapeError(self._x_message(x, unbatched))
        batch, seq_len = x.shape[:2] if self.batch_first else (x.shape[1], x.shape[0])
        h_0, c_0 = (None, None) if state is None else self._take_state(state, batch, unbatched)
        last = self._last_only if outputs is None else self._check_outputs(outputs)
        if out is None:
            h_n, c_n = self._new_state(batch)
            y = None if last else np.empty((*x.shape[:2], self._features), np.float32)
            y_last = None
        else:
            y, y_last, h_n, c_n = self._take_out(out, x, batch, last, unbatched, [h_0, c_0])
        if lengths is None and mask is None:
            times, padding = None, "zero"
        else:
            lengths, times, padding = self._take_lengths(lengths, mask, batch, seq_len)
        ragged_reverse = self._reverse_output and lengths is not None and times is None
        flips = self._reverse_output and not ragged_reverse
        self._handle.forward(
            x,
            self.batch_first,
            h_0,
            c_0,
            y,
            h_n,
            c_n,
            lengths,
            times,
            padding,
            flips,
            self._threads(),
        )
        if ragged_reverse and y is not None:
            for row, length in zip(y if self.batch_first else y.swapaxes(0, 1), lengths):
                row[:length] = row[:length][::-1]
        if last:
            y = self._last_output(h_n, y_last, lengths if times is not None else None, mask)
        if unbatched:
            y, h_n, c_n = self._unbatch(y, h_n, c_n, last)
        assert y is not None
        return y, ((h_n, c_n) if self.has_c else h_n)

    def fingerprint(self) -> Fingerprint:
        """What the states of its streams belong to.  It is made when it is first asked for: all weights are read."""
        if self._fingerprint is None:
            self._fingerprint = of_layer(self.node)  # two threads make the same
        return self._fingerprint

    def stream(self, batch: int = 1) -> Stream:
        """A live sequence, or ``batch`` that advance together; see :class:`fastrnn.streams.Stream`.

        Raises
        ------
        UnsupportedError
            The layer is bidirectional or reverse.
        """
        return Stream(self, batch)

    def pool(self, capacity: int, *, idle_limit: float | None = None) -> Pool:
        """Live sequences by the thousand; see :class:`fastrnn.streams.Pool`."""
        return Pool(self, capacity, idle_limit=idle_limit)

    def store(self, capacity: int, constants: Any = None, states: Any = None) -> Store:
        """States of ``capacity`` streams, for :mod:`fastrnn.streams`."""
        if constants is not None or states is not None:
            raise UnsupportedError("constants= and states= are for models; a layer knows its own states")
        return LayerStore(self, capacity)

    @checked(batch=1, seq_len=0)
    def warmup(self, batch: int, seq_len: int) -> None:
        """Take the memory and start the threads that a call of this size needs, so that the first real one is fast."""
        x = np.zeros((batch, seq_len, self.input_size) if self.batch_first else (seq_len, batch, self.input_size), F32)
        self(x)

    def _x_message(self, x: np.ndarray, unbatched: bool) -> str:
        axes = "(batch, seq_len" if self.batch_first else "(seq_len, batch"
        got = x.shape if not unbatched else x.shape[1:] if self.batch_first else (x.shape[0], x.shape[2])
        return f"x must be {axes}, {self.input_size}) or (seq_len, {self.input_size}), got shape {got}"

    def _pad(self, rows: Sequence[Any], lengths: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        if lengths is not None or mask is not None:
            raise ShapeError("a list of sequences has its own lengths; lengths and mask go with a padded array")
        arrays = [as_float32(row, f"x[{k}]") for k, row in enumerate(rows)]
        wrong = [f"x[{k}] is {a.shape}" for k, a in enumerate(arrays) if a.ndim != 2 or a.shape[1] != self.input_size]
        if wrong:
            raise ShapeError(f"each sequence must be (seq_len, {self.input_size}): {', '.join(wrong)}")
        found = np.array([len(a) for a in arrays], np.int64)
        sizes = len(arrays), int(found.max(initial=0))
        axes = (0, 1) if self.batch_first else (1, 0)
        return pad(arrays, (*(sizes[k] for k in axes), self.input_size), F32, *axes), found

    def _state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        shapes = [(self._states, batch, self.output_size)]
        return [*shapes, (self._states, batch, self.hidden_size)] if self.has_c else shapes

    def _state_parts(self, state: State) -> Sequence[Any]:
        if not self.has_c:
            return [state]
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise ShapeError(f"the state of an LSTM is the tuple (h, c), got {type(state).__name__}")
        return state

    def _take_state(self, state: State, batch: int, unbatched: bool) -> tuple[np.ndarray, np.ndarray | None]:
        arrays = []
        for name, part, shape in zip("hc", self._state_parts(state), self._state_shapes(batch)):
            array = as_float32(part, name)
            if unbatched and array.ndim == 2:
                array = array[:, None]
            if array.shape != shape:
                raise ShapeError(f"{name} must be (num_layers * directions, batch, size) = {shape}, got {array.shape}")
            arrays.append(array)
        return arrays[0], (arrays[1] if self.has_c else None)

    def _new_state(self, batch: int) -> tuple[np.ndarray, np.ndarray | None]:
        h = np.empty((self._states, batch, self.output_size), np.float32)
        return h, (np.empty((self._states, batch, self.hidden_size), np.float32) if self.has_c else None)

    def _check_outputs(self, outputs: str) -> bool:
        if not isinstance(outputs, str) or outputs not in ("all", "last"):
            raise ShapeError(f'outputs must be "all" or "last", got {described(outputs)}')
        return outputs == "last"

    def _take_out(
        self, out: Any, x: np.ndarray, batch: int, last: bool, unbatched: bool, states: list[np.ndarray | None]
    ) -> tuple[Any, Any, np.ndarray, np.ndarray | None]:
        """y (None where only the last output is wanted), the last output, h and c to write to."""
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise ShapeError(f"out must be the tuple (y, state), got {type(out).__name__}")
        y_shape: tuple[int, ...] = (batch, self._features) if last else (*x.shape[:2], self._features)
        axis = 0 if last or self.batch_first else 1
        shapes = self._state_shapes(batch)
        given = [out[0], *self._state_parts(out[1])]
        wanted = [y_shape, *shapes]
        if unbatched:
            wanted = [y_shape[:axis] + y_shape[axis + 1 :], *[(s[0], s[2]) for s in shapes]]
        arrays = [check_out(a, shape, f"out {name}") for name, a, shape in zip("yhc", given, wanted)]
        others = [a for a in (x, *states) if a is not None]
        for k, array in enumerate(arrays):
            if any(np.may_share_memory(array, other) for other in (*others, *arrays[:k])):
                raise ShapeError("out must share no memory with an input or within itself; allocate it apart")
        arrays = [a.reshape(shape) for a, shape in zip(arrays, [y_shape, *shapes])]
        return None if last else arrays[0], arrays[0] if last else None, arrays[1], arrays[2] if self.has_c else None

    @in_default_mode
    def _take_lengths(
        self, lengths: Any, mask: Any, batch: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Steps to run: how many, which (None: the first ones), and what y holds elsewhere."""
        if mask is None:
            return check_lengths(lengths, batch, seq_len), None, "zero"
        if lengths is not None:
            raise ShapeError("lengths and mask together are ambiguous; give one of them")
        mask = as_array(mask)
        if mask.shape != (batch, seq_len) or mask.dtype.kind not in "biuf":
            raise ShapeError(
                f"mask must be (batch, seq_len) = {(batch, seq_len)} of bool, got {mask.dtype} of shape {mask.shape}"
            )
        mask = mask.astype(bool)
        times = np.argsort(~mask, axis=1, kind="stable")  # steps to run first, each part in the order of time
        return mask.sum(1, dtype=np.int64), times, "zero" if self._zero_masked else "repeat"

    @in_default_mode
    def _last_output(self, h_n: np.ndarray, y: np.ndarray | None, steps: np.ndarray | None, mask: Any) -> np.ndarray:
        """The final h of each direction of the last layer, merged.  ``steps``: real steps of masked rows."""
        finals = list(h_n[-self._directions :])
        if steps is not None:
            # Keras: a row without any step gives zeros, and zero_output_for_mask looks at the last step.
            for k, final in enumerate(finals):
                final = np.where((steps > 0)[:, None], final, np.float32(0))
                if self._zero_masked:
                    reverse = k == 1 or self.node.attr("direction") == "reverse"
                    at_end = (
                        as_array(mask)[:, slice(1) if reverse else slice(-1, None)]
                        .astype(bool)
                        .any(axis=1, keepdims=True)
                    )
                    final = np.where(at_end, final, np.float32(0))
                finals[k] = final
        merge = self.node.attr("merge")
        if len(finals) == 1 or merge == "concat":
            result = np.concatenate(finals, -1)  # a copy: y never shares memory with h_n
        elif merge == "mul":
            result = finals[0] * finals[1]
        else:
            result = (finals[0] + finals[1]) * np.float32(0.5 if merge == "ave" else 1)
        if y is None:
            return result
        y[...] = result
        return y

    def _unbatch(
        self, y: Any, h: np.ndarray, c: np.ndarray | None, last: bool
    ) -> tuple[Any, np.ndarray, np.ndarray | None]:
        axis = 0 if last or self.batch_first else 1
        return y.squeeze(axis), h.squeeze(1), None if c is None else c.squeeze(1)

    def run_node(self, inputs: Inputs) -> Outputs:
        x, *rest = inputs
        states = rest[: 2 if self.has_c else 1]
        mask, lengths = (*rest[len(states) :], None, None)[:2]
        y, state = self(x, self._graph_state(states), lengths, mask=mask)
        return (y, *state) if self.has_c else (y, state)

    def call_shapes(self, x: tuple[int, ...]) -> CallShapes:
        """The shapes of a node's outputs for that of its input; (seq_len, input_size) is one sequence."""
        if len(x) not in (2, 3) or x[-1] != self.input_size:
            raise ShapeError(f"{self.name!r}: " + self._x_message(np.broadcast_to(np.float32(0), x), False))
        single = len(x) == 2
        axes = (None, 0) if single else (0, 1) if self.batch_first else (1, 0)
        batch = 1 if axes[0] is None else x[axes[0]]
        y = (*x[:-1], self._features)
        if self._last_only:
            y = (self._features,) if single else (batch, self._features)
        states = self._state_shapes(batch)
        finals = [(shape[0], shape[2]) for shape in states] if single else states
        return CallShapes(
            batch,
            x[axes[1]],
            axes,
            y,
            list(states),
            list(finals),
            self._last_only,
            self._reverse_output,
            self._directions,
        )

    @property
    def flops_a_step(self) -> float:
        """Floating-point operations of one step of one row."""
        return self._handle.nbytes / 2

    def _graph_state(self, states: Sequence[Any]) -> State:
        """State from graph tensors: (batch, size) stands for one layer of one direction; a missing part is zeros."""
        if all(s is None for s in states):
            return None
        given = next(s for s in states if s is not None)
        batch = given.shape[-2] if as_array(given).ndim > 1 else 1
        parts = []
        for part, shape in zip([*states, *[None] * 2], self._state_shapes(batch)):
            parts.append(
                np.zeros(shape, np.float32)
                if part is None
                else np.reshape(part, shape)
                if np.size(part) == np.prod(shape)
                else part
            )
        return tuple(parts) if self.has_c else parts[0]


class Cell(Recurrent):
    """A single step: x is (batch, input_size) or (input_size,), the states have no layer axis, as PyTorch's cells."""

    single_step = True

    def __call__(self, x: Any, state: State = None) -> Any:  # type: ignore[override]
        x = as_float32(x, "x")
        if x.ndim not in (1, 2):
            raise ShapeError(f"x must be (batch, {self.input_size}) or ({self.input_size},), got shape {x.shape}")
        axis = x.ndim - 1
        if state is not None:
            parts = [as_float32(part, "state") for part in self._state_parts(state)]
            wrong = [part.shape for part in parts if part.ndim != x.ndim]
            if wrong:
                raise ShapeError(f"the state must have {x.ndim} axes as x has, got shape {wrong[0]}")
            parts = [part[None] if axis else part[None, None] for part in parts]
            state = tuple(parts) if self.has_c else parts[0]
        x = x[:, None] if self.batch_first else x[None]
        if axis == 0:
            x = x.reshape(1, 1, -1)
        _, state = super().__call__(x, state)
        parts = [part[0] if axis else part[0, 0] for part in self._state_parts(state)]
        return tuple(parts) if self.has_c else parts[0]

    def store(self, capacity: int, constants: Any = None, states: Any = None) -> Store:
        raise UnsupportedError(f"{self.name!r} is a cell; a stream takes the layer: LSTM, GRU or RNN")

    def call_shapes(self, x: tuple[int, ...]) -> CallShapes:
        if len(x) not in (1, 2) or x[-1] != self.input_size:
            raise ShapeError(f"{self.name!r}: x must be (batch, {self.input_size}) or ({self.input_size},), got {x}")
        batch = x[0] if len(x) == 2 else 1
        states = self._state_shapes(batch)
        finals = [(*x[:-1], shape[2]) for shape in states]
        axes = (0, None) if len(x) == 2 else (None, None)
        return CallShapes(batch, 1, axes, finals[0], list(states), finals, True, False, 1)

    def run_node(self, inputs: Inputs) -> Outputs:
        x, *rest = inputs
        states = rest[: 2 if self.has_c else 1]
        state = None
        if any(s is not None for s in states):
            state = tuple(states) if self.has_c else states[0]
        result = self(x, state)
        return (result[0], *result) if self.has_c else (result, result)
