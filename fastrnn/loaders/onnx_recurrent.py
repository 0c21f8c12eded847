"""RNN, LSTM and GRU of ONNX, with every attribute and input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import ACTIVATIONS, GATES, reorder_gates
from .files import short
from .onnx_node import Call, Value
from .onnx_unrolled import unrolled

Array = np.ndarray

_FUNCTIONS = {
    # lower case, as ONNX Runtime compares: our name, and how many of alpha and beta it takes
    "sigmoid": ("sigmoid", 0), "tanh": ("tanh", 0), "relu": ("relu", 0), "softsign": ("softsign", 0),
    "softplus": ("softplus", 0), "leakyrelu": ("leaky_relu", 1), "thresholdedrelu": ("thresholded_relu", 1),
    "elu": ("elu", 1), "affine": ("affine", 2), "scaledtanh": ("scaled_tanh", 2), "hardsigmoid": ("hard_sigmoid", 2),
}  # fmt: skip
_DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}
_ROLES = {
    "lstm": ("gate_activation", "cell_activation", "hidden_activation"),
    "gru": ("gate_activation", "cell_activation"),
    "rnn": ("activation",),
}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def _convert(call: Call) -> list[Value | None]:
    cell = call.op_type.lower()
    direction, layout = call.get_text("direction", "forward"), call.get_int("layout", 0)
    if direction not in _DIRECTIONS or layout not in (0, 1):
        raise FormatError(f"direction {short(direction)}, layout {layout}: such there are not; the file is damaged")
    count = _DIRECTIONS[direction]
    functions = _activations(call, cell, count)
    coupled = cell == "lstm" and bool(call.get_int("input_forget", 0))
    fixed = all(value is None or value.array is not None for value in map(call.get, (1, 2, 3, 7)))
    if not fixed or (coupled and not all(_is_odd(given["gate_activation"]) for given in functions)):
        return _joined(call, unrolled(call, cell, count, functions), layout)
    weights = _weights(call, cell, count)
    if coupled:
        weights = [_coupled(part) for part in weights]
    layer = _Layer(call, cell, layout, weights, functions)
    if count == 2 and functions[0] != functions[1]:  # each direction has activations of its own
        return layer.apart()
    return layer.whole(direction)


class _Layer:
    """A recurrent node of the spec and what turns its outputs into ONNX's."""

    def __init__(self, call: Call, cell: str, layout: int, weights: list[dict[str, Array]], functions: list[Any]):
        self.call, self.cell, self.layout, self.weights, self.functions = call, cell, layout, weights, functions
        self.options: dict[str, Any] = {"batch_first": layout == 1, "clip": call.get_float("clip", None)}
        if cell == "lstm":
            self.options["coupled_input_forget"] = bool(call.get_int("input_forget", 0))
        if cell == "gru":
            self.options["reset_after"] = bool(call.get_int("linear_before_reset", 0))
        self.states = [call.get(5), call.get(6)] if cell == "lstm" else [call.get(5)]
        if layout == 1:  # ours are (directions, batch, hidden) always
            self.states = [state and call.emit("transpose", state, perm=(1, 0, 2)) for state in self.states]
        self.outputs = max((k + 1 for k, wanted in enumerate(call.wanted) if wanted), default=1)

    def emit(self, direction: str, states: Sequence[Value | None], which: slice) -> list[Value]:
        parts, given = self.weights[which], self.functions[which][0]
        named = {name + end: a for end, part in zip(("_l0", "_l0_reverse"), parts) for name, a in part.items()}
        inputs = [self.call.x, *states, None, self.call.get(4)]
        return self.call.emit_many(
            self.cell,
            inputs,
            outputs=self.outputs,
            rank=3,
            weights=named,
            direction=direction,
            **self.options,
            **given,
        )

    def whole(self, direction: str) -> list[Value | None]:
        call = self.call
        y, *finals = self.emit(direction, self.states, slice(None))
        if direction != "bidirectional":
            y = call.emit("unsqueeze", y, axes=(1 + self.layout,), rank=4)
        else:
            hidden = self.weights[0]["weight_hh"].shape[1]
            y = call.emit("reshape", y, call.ints_value((0, 0, 2, hidden), "shape"), rank=4)
            y = y if self.layout == 1 else call.emit("transpose", y, perm=(0, 2, 1, 3))
        if self.layout == 1:
            finals = [call.emit("transpose", final, perm=(1, 0, 2)) for final in finals]
        return [y, *finals]

    def apart(self) -> list[Value | None]:
        call = self.call
        pairs = [call.emit_many("split", [s], outputs=2, axis=0) if s else [None, None] for s in self.states]
        each = [
            self.emit(end, [pair[k] for pair in pairs], slice(k, k + 1)) for k, end in enumerate(("forward", "reverse"))
        ]
        y = [call.emit("unsqueeze", part[0], axes=(1 + self.layout,), rank=4) for part in each]
        finals = [call.emit("concat", *pair, axis=0) for pair in zip(*(part[1:] for part in each))]
        if self.layout == 1:
            finals = [call.emit("transpose", final, perm=(1, 0, 2)) for final in finals]
        return [call.emit("concat", *y, axis=1 + self.layout), *finals]


def _joined(call: Call, each: list[list[Value]], layout: int) -> list[Value | None]:
    """ONNX's outputs from those of each direction, y (seq_len, batch, hidden) and states (batch, hidden)."""
    ys = [call.emit("transpose", part[0], perm=(1, 0, 2)) if layout else part[0] for part in each]
    columns = [(1 + layout, ys), *((layout, list(states)) for states in zip(*(part[1:] for part in each)))]
    results: list[Value | None] = []
    for axis, values in columns:
        rank = (values[0].rank or 0) + 1
        results.append(
            call.emit("concat", *(call.emit("unsqueeze", v, axes=(axis,), rank=rank) for v in values), axis=axis)
        )
    return results


def _weights(call: Call, cell: str, count: int) -> list[dict[str, Array]]:
    """The weights of each direction in our order of gates."""
    gates = len(GATES[cell])
    w, r = call.constant(1, "W"), call.constant(2, "R")
    b = call.constant(3, "B") if call.get(3) else None
    p = call.constant(7, "P") if cell == "lstm" and call.get(7) else None
    hidden = r.shape[-1] if r.ndim == 3 else 0
    stated = call.get_int("hidden_size", hidden)
    expected = {
        "W": (w, (count, gates * hidden, w.shape[-1] if w.ndim else 0)),
        "R": (r, (count, gates * hidden, hidden)),
        "B": (b, (count, 2 * gates * hidden)),
        "P": (p, (count, 3 * hidden)),
    }
    wrong = [
        f"{name} has shape {array.shape}, expected {shape}"
        for name, (array, shape) in expected.items()
        if array is not None and (array.shape != shape or array.dtype != np.float32)
    ]
    if wrong or stated != hidden or not hidden:
        raise FormatError(f"{'; '.join(wrong) or f'hidden_size is {stated}, R has {hidden}'}; the file is damaged")
    parts = []
    for k in range(count):
        part = {"weight_ih": reorder_gates(w[k], cell, "onnx"), "weight_hh": reorder_gates(r[k], cell, "onnx")}
        if b is not None:
            halves = np.split(b[k], 2)
            part |= {name: reorder_gates(half, cell, "onnx") for name, half in zip(("bias_ih", "bias_hh"), halves)}
        if p is not None:
            i, o, f = np.split(p[k], 3)
            part["peephole"] = np.concatenate([i, f, o])
        parts.append(part)
    return parts


def _activations(call: Call, cell: str, count: int) -> list[dict[str, Any]]:
    """Activations of each direction by role; alphas and betas go to those functions, in order, that take them."""
    names = call.get_texts("activations") or list(_DEFAULTS[cell]) * count
    roles = _ROLES[cell]
    if len(names) != len(roles) * count:
        raise FormatError(f"{len(names)} activations, expected {len(roles) * count}; the file is damaged")
    unknown = sorted({name for name in names if name.lower() not in _FUNCTIONS})
    if unknown:
        raise UnsupportedError(
            f"a cell has no activation {', '.join(map(short, unknown))}; it has {', '.join(_FUNCTIONS)}"
        )
    alphas, betas = iter(call.get_floats("activation_alpha")), iter(call.get_floats("activation_beta"))
    found: list[Any] = []
    for name in names:
        ours, takes = _FUNCTIONS[name.lower()]
        alpha, beta = ACTIVATIONS[ours]
        alpha = next(alphas, alpha) if takes > 0 else alpha
        beta = next(betas, beta) if takes > 1 else beta
        found.append((ours, alpha, beta) if takes else ours)
    return [dict(zip(roles, found[k : k + len(roles)])) for k in range(0, len(found), len(roles))]


def _is_odd(gate: Any) -> bool:
    """Whether 1 - f(x) is f(-x)."""
    return gate == "sigmoid" or (gate[0] in ("hard_sigmoid", "affine") and gate[2] == 0.5)


def _coupled(part: dict[str, Array]) -> dict[str, Array]:
    """ONNX couples f = 1 - i where we have i = 1 - f: with the weights of i, negated, f is that 1 - i."""
    result = {}
    for name, array in part.items():
        i, _, *others = np.split(array, 3 if name == "peephole" else 4)
        result[name] = np.concatenate([i, -i, *others])
    return result


RECURRENT: dict[str, Callable[[Call], Any]] = {"LSTM": _convert, "GRU": _convert, "RNN": _convert}
