"""Random recurrent layers over all variants, with their inputs and what the float64 reference says of them.

A :class:`Case` is a value: equal cases have equal weights and inputs, so the reference runs once for all instruction
sets and backends, and an assertion that names a case says how to make it again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tolerances import RECURRENT

import fastrnn
from fastrnn import loaders, reference
from fastrnn.spec import GATES, Node, weight_suffixes

ISAS = fastrnn.info()["isas"]
FMA_ISAS = [isa for isa in ISAS if isa != "generic"]  # the same bits; SSE2 has no FMA, and is the documented exception

POSITIVE = ("sqrt", "reciprocal", "log")  # activations that are not defined everywhere, or not bounded near 0

CLASSES = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
CELLS = {"lstm": fastrnn.LSTMCell, "gru": fastrnn.GRUCell, "rnn": fastrnn.RNNCell}
SIZES = (1, 2, 7, 9, 15, 16, 17, 33, 100)  # one, odd, and both sides of every vector length
SUM_BLOCKS = (130, 257)  # dot products of two and three blocks of 128
MERGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda a, b: (a + b) * np.float32(0.5),
}
DIRECTIONS = ("forward", "reverse", *(f"bidirectional {merge}" for merge in MERGES))

FORWARD = {"direction": "forward", "batch_first": True, "state": False}  # what streams take

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm projection": ("lstm", {"proj": True}),
    "lstm projection clipped": ("lstm", {"proj": True, "proj_clip": 0.1}),
    "lstm peephole": ("lstm", {"peephole": True}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm clip": ("lstm", {"clip": 0.4}),
    "lstm cell_clip": ("lstm", {"cell_clip": 0.3}),
    "lstm hard": (
        "lstm",
        {"gate_activation": "hard_sigmoid", "cell_activation": "relu", "hidden_activation": "softsign"},
    ),
    "lstm everything": (
        "lstm",
        {"proj": True, "peephole": True, "coupled_input_forget": True, "clip": 0.8, "cell_clip": 0.5, "proj_clip": 0.2},
    ),
    "gru": ("gru", {}),
    "gru reset before": ("gru", {"reset_after": False}),
    "gru take": ("gru", {"update_gate": "take"}),
    "gru take reset before": ("gru", {"update_gate": "take", "reset_after": False}),
    "gru clip": ("gru", {"clip": 0.4}),
    "gru clip reset before": ("gru", {"clip": 0.4, "reset_after": False}),
    "gru hard": ("gru", {"gate_activation": "hard_sigmoid", "cell_activation": "relu"}),
    "gru hard take": ("gru", {"gate_activation": "hard_sigmoid", "update_gate": "take", "reset_after": False}),
    "rnn": ("rnn", {}),
    "rnn relu": ("rnn", {"activation": "relu"}),
    "rnn clip": ("rnn", {"clip": 0.4}),
}
"""Every cell and every option of its equations."""


@dataclass(frozen=True)
class Case:
    """A recurrent layer and a call of it; what is at its default is left out of the text."""

    op: str = "lstm"
    input_size: int = 3
    hidden_size: int = 5
    batch: int = 2
    seq_len: int = 4
    proj: bool = False
    peephole: bool = False
    bias: bool = True
    state: bool = True
    direction: str = "forward"
    """One of ``DIRECTIONS``."""
    options: tuple[tuple[str, Any], ...] = ()
    """The other attributes of the node."""
    scale: float = 1.2
    """Of the weights."""
    seed: int = 0

    @classmethod
    def of(cls, variant: str, **changes: Any) -> Case:
        """A case of one of ``VARIANTS``; ``changes`` are fields or attributes."""
        op, options = VARIANTS[variant]
        known = {field.name for field in fields(cls)}
        merged = options | changes
        attrs = {key: value for key, value in merged.items() if key not in known}
        return cls(op, **{k: v for k, v in merged.items() if k in known}, options=tuple(attrs.items()))

    def __str__(self) -> str:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        given = {f.name: own[f.name] for f in fields(self) if f.name in own and own[f.name] != f.default}
        return f"Case({', '.join(f'{k}={v!r}' for k, v in (given | dict(self.options)).items())})"

    @property
    def attrs(self) -> dict[str, Any]:
        direction, *merge = self.direction.split()
        return dict(self.options) | {"direction": direction} | ({"merge": merge[0]} if merge else {})

    @functools.cached_property
    def node(self) -> Node:
        """The layer as the reference takes it."""
        rng = np.random.default_rng(self.seed)
        node = Node(self.op, self.op, ("x",), ("y",), self.attrs)
        rows = len(GATES[self.op]) * self.hidden_size
        output = self.output_size
        for k, suffix in enumerate(weight_suffixes(node.attr("num_layers"), node.attr("direction"))):
            inputs = self.input_size if k < self.directions else self.directions * output
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs), "weight_hh": (rows, output)}
            if self.bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if self.proj:
                shapes["weight_hr"] = (output, self.hidden_size)
            if self.peephole:
                shapes["peephole"] = (3 * self.hidden_size,)
            for name, shape in shapes.items():
                bound = self.scale / np.sqrt(max(1, shape[1])) if len(shape) > 1 else 0.4
                node.weights[name + suffix] = rng.uniform(-bound, bound, shape).astype(np.float32)
        return node

    @property
    def directions(self) -> int:
        return 2 if self.direction.startswith("bidirectional") else 1

    @property
    def output_size(self) -> int:
        return max(1, self.hidden_size // 2) if self.proj else self.hidden_size

    def layer(self, backend: str | None = "packed") -> Any:
        """The same layer made from arrays by the public class."""
        attrs, weights = self.attrs, self.node.weights
        direction, num_layers = attrs.pop("direction"), attrs.pop("num_layers", 1)
        suffixes = weight_suffixes(num_layers, direction)
        arrays = {
            name: [weights[name + suffix] for suffix in suffixes]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole")
            if name + "_l0" in weights
        }
        attrs |= {"bidirectional": direction == "bidirectional", "reverse": direction == "reverse"}
        return CLASSES[self.op](**arrays, **attrs, backend=backend)

    @functools.cached_property
    def x(self) -> np.ndarray:
        shape = (self.batch, self.seq_len) if self.node.attr("batch_first") else (self.seq_len, self.batch)
        return self._normal(1, *shape, self.input_size)

    @functools.cached_property
    def initial(self) -> Any:
        """The initial state as the layer takes it: None, h or (h, c)."""
        if not self.state:
            return None
        count = self.node.attr("num_layers") * self.directions
        h = self._normal(2, count, self.batch, self.output_size)
        return (h, self._normal(3, count, self.batch, self.hidden_size)) if self.op == "lstm" else h

    def cell(self, backend: str | None = "packed") -> Any:
        """The cell of the same weights, for a case of one layer in one direction."""
        options = {key: value for key, value in self.options if key not in ("num_layers", "batch_first")}
        weights = {name[:-3]: array for name, array in self.node.weights.items()}
        return CELLS[self.op](**weights, **options, backend=backend)

    def _normal(self, stream: int, *shape: int) -> np.ndarray:
        return np.random.default_rng([self.seed, stream]).standard_normal(shape, np.float32)

    def expected(self, lengths: np.ndarray | None = None, mask: np.ndarray | None = None) -> list[np.ndarray]:
        """y, h_n and, of an LSTM, c_n in float64."""
        frozen = None if lengths is None else tuple(lengths.tolist())
        return reference_of(self, frozen, None if mask is None else tuple(map(tuple, mask.tolist())))


@functools.cache
def reference_of(case: Case, lengths: tuple | None, mask: tuple | None) -> list[np.ndarray]:
    call = {"lengths": None if lengths is None else np.array(lengths, np.int64), "mask": mask}
    results = reference.recurrent(case.node, case.x, *parts(case.initial), **call)
    return [array for array in results if array is not None]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers that are the same at every call."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def parts(state: Any) -> list[np.ndarray]:
    """A state as a list: nothing, [h] or [h, c]."""
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def flat(result: tuple[np.ndarray, Any]) -> list[np.ndarray]:
    """What a layer returns, as [y, h] or [y, h, c]."""
    y, state = result
    return [y, *parts(state)]


def assert_close(ours: list[np.ndarray], want: list[np.ndarray], note: Any, tolerance: float = RECURRENT) -> None:
    """Every array has the shape, the type and, within the tolerance, the values that the reference gives."""
    for k, (a, b) in enumerate(zip(ours, want, strict=True)):
        assert a.shape == b.shape, f"array {k} has shape {a.shape}, expected {b.shape}: {note}"
        assert a.dtype == np.float32, f"array {k} is {a.dtype}: {note}"
        worst = error(a, b)
        assert worst <= tolerance, f"array {k} has error {worst:.2e}, at most {tolerance:.0e}: {note}"


def error(ours: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to values above 1; NaN where only one side has it."""
    return float(np.max(np.abs(ours - want) / np.maximum(1, np.abs(want)), initial=0))


def assert_bits(ours: list[np.ndarray], want: list[np.ndarray], note: Any) -> None:
    """The same bits, so that -0 is not 0; but NaN equals NaN."""
    for k, (a, b) in enumerate(zip(ours, want, strict=True)):
        assert a.shape == b.shape, f"array {k} of {len(ours)} has shape {a.shape}, expected {b.shape}: {note}"
        same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        assert same.all(), f"array {k} of {len(ours)} differs at {np.argwhere(~same)[:3].tolist()}: {note}"


# Arrays of unusual form.


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same numbers at an address that is no multiple of four."""
    view = np.frombuffer(bytearray(x.nbytes + 1), np.float32, x.size, 1).reshape(x.shape)
    view[...] = x
    assert not view.size or not view.flags.aligned
    return view


def strided(x: np.ndarray) -> np.ndarray:
    room = np.full([2 * n + 1 for n in x.shape], np.nan, np.float32)
    view = room[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


class Late:
    """An array that is not there before its event is: whoever takes it waits, at a known place of a call."""

    def __init__(self, x: np.ndarray):
        self.x, self.asked, self.go = x, threading.Event(), threading.Event()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.asked.set()
        assert self.go.wait(60)
        return self.x


def read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view


def out_for(case: Case) -> list[np.ndarray]:
    """Arrays to write the result of a case to."""
    return [np.full_like(array, 7.0) for array in flat(case.layer()(case.x, case.initial))]


# For hypothesis: layers small enough to be many, some of them large enough to be split over threads.


@st.composite
def cases(
    draw: st.DrawFn, variants: tuple[str, ...] = tuple(VARIANTS), directions: tuple[str, ...] = DIRECTIONS, **fixed: Any
) -> Case:
    """Any layer; ``fixed`` are fields or attributes that stay as given."""
    sizes = st.integers(1, 40) | st.sampled_from((64, 100, 130, 257))
    drawn = {
        "hidden_size": draw(sizes),
        "input_size": draw(sizes),
        "batch": draw(st.integers(1, 8) | st.just(17)),
        "seq_len": draw(st.integers(1, 9) | st.just(40)),
        "num_layers": draw(st.sampled_from((1, 1, 2, 3))),
        "direction": draw(st.sampled_from(directions)),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "state": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    return Case.of(draw(st.sampled_from(variants)), **(drawn | fixed))


def take(case: Case, rows: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Rows of the batch of x or y (the first array) and of states."""
    axis = 0 if case.node.attr("batch_first") else 1
    return [np.take(array, rows, axis if k == 0 else 1) for k, array in enumerate(arrays)]


def state_of(case: Case, parts_: list[np.ndarray]) -> Any:
    """Back from a list of parts to a state as the layer takes it."""
    return None if not parts_ else tuple(parts_) if case.op == "lstm" else parts_[0]


def layer_nodes(path, names, **options) -> dict[str, Node]:
    """Single layers of a file, each of which is one node."""
    specs = loaders.load_layer_specs(path, names, **options)
    assert all(len(spec.nodes) == 1 for spec in specs.values())
    return {name: spec.nodes[0] for name, spec in specs.items()}
