"""Recurrent nodes of ONNX that no layer runs, as a scan around their equations: weights that are computed while the
model runs (a layer packs its weights once), and coupled gates with an activation that has no mirror image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..spec import GATES, Graph, Tensor
from .onnx_node import Call, Value


def unrolled(call: Call, cell: str, count: int, functions: Sequence[dict[str, Any]]) -> list[list[Value]]:
    """For each direction its y (seq_len, batch, hidden_size), final h and, of an LSTM, c, (batch, hidden_size)."""
    batch_first = call.get_int("layout", 0) == 1
    x = call.emit("transpose", call.x, perm=(1, 0, 2)) if batch_first else call.x
    shape = call.emit("shape", x, gives="int64", rank=1)
    mask = None if call.get(4) is None else _mask(call, shape, call.need(4))
    results = []
    for k in range(count):
        w, r, b, p = (None if v is None else _part(call, v, k) for v in map(call.get, (1, 2, 3, 7)))
        assert w is not None
        assert r is not None
        totals = call.emit("matmul", x, call.emit("transpose", w, perm=(1, 0)), rank=3)
        halves = call.emit_many("split", [b], outputs=2) if b else [None, None]
        totals = _binary(call, "add", totals, halves[0]) if halves[0] else totals
        sizes = (_entry(call, shape, 1), _entry(call, call.emit("shape", r, gives="int64", rank=1), 1))
        zeros = call.emit("concat", *sizes, axis=0, rank=1)
        given = [call.get(5), call.get(6)] if cell == "lstm" else [call.get(5)]
        states = [
            call.emit("fill", zeros, gives="float32", rank=2) if s is None else _part(call, s, k, int(batch_first))
            for s in given
        ]
        step = _Step(call, call.emit("transpose", r, perm=(1, 0)), halves[1], p, functions[k])
        reverse = k == 1 or call.get_text("direction", "forward") == "reverse"
        finals = step.scan(cell, states, totals, mask, reverse)
        results.append([finals[-1], *finals[:-1]])
    return results


class _Step:
    """One step as the body of a scan; the equations are those of ONNX, gates in its order."""

    def __init__(self, call: Call, r: Value, bias: Value | None, peephole: Value | None, functions: dict[str, Any]):
        self.call, self.r, self.bias, self.functions = call, r, bias, functions
        self.peepholes = call.emit_many("split", [peephole], outputs=3) if peephole else []
        self.clip = call.get_float("clip", None)

    def scan(self, cell: str, states: list[Value], totals: Value, mask: Value | None, reverse: bool) -> list[Value]:
        call = self.call
        scanned = [totals, mask] if mask else [totals]
        inputs = [call.fresh(v.dtype, 2) for v in (*states, *scanned)]
        with call.body() as nodes:
            old = inputs[: len(states)]
            new = _STEPS[cell](self, inputs[len(states)], *old)
            y = new[0]
            if mask:
                zero = call.new(np.zeros((), np.float32), "zero")
                y = self.where(inputs[-1], y, zero)
                new = [self.where(inputs[-1], now, before) for now, before in zip(new, old)]
            outputs = [*new, call.emit("identity", y)]
        takes, gives = ([Tensor(v.name, None, v.dtype) for v in values] for values in (inputs, outputs))
        values = call.emit_many(
            "scan",
            [*states, *scanned],
            outputs=len(outputs),
            rank=2,
            gives="float32",
            graphs={"body": Graph(nodes, takes, gives)},
            num_scanned=len(scanned),
            directions=[int(reverse)] * len(scanned),
            output_directions=[int(reverse)],
        )
        values[-1].rank = 3
        return values

    # Terms

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return self.call.emit("where", condition, a, b, gives="float32", rank=2)

    def binary(self, function: str, a: Value, b: Value) -> Value:
        return _binary(self.call, function, a, b)

    def product(self, h: Value, r: Value, bias: Value | None) -> Value:
        y = self.call.emit("matmul", h, r, rank=2)
        return self.binary("add", y, bias) if bias else y

    def activate(self, role: str, x: Value) -> Value:
        if self.clip is not None:
            x = self.call.emit("activation", x, activation=("hard_tanh", -self.clip, self.clip))
        return self.call.emit("activation", x, activation=self.functions[role])

    def split(self, x: Value, count: int, axis: int = -1) -> list[Value]:
        return self.call.emit_many("split", [x], outputs=count, axis=axis)

    def complement(self, x: Value) -> Value:
        return self.binary("sub", self.call.new(np.ones((), np.float32), "one"), x)

    def look(self, gate: Value, k: int, c: Value) -> Value:
        return self.binary("add", gate, self.binary("mul", self.peepholes[k], c)) if self.peepholes else gate

    # Cells

    def lstm(self, total: Value, h: Value, c: Value) -> list[Value]:
        i, o, f, g = self.split(self.binary("add", total, self.product(h, self.r, self.bias)), 4)
        i = self.activate("gate_activation", self.look(i, 0, c))
        if self.call.get_int("input_forget", 0):
            f = self.complement(i)
        else:
            f = self.activate("gate_activation", self.look(f, 2, c))
        g = self.activate("cell_activation", g)
        c = self.binary("add", self.binary("mul", f, c), self.binary("mul", i, g))
        o = self.activate("gate_activation", self.look(o, 1, c))
        return [
            self.binary("mul", o, self.call.emit("activation", c, activation=self.functions["hidden_activation"])),
            c,
        ]

    def gru(self, total: Value, h: Value) -> list[Value]:
        x_z, x_r, x_n = self.split(total, 3)
        weights = self.split(self.r, 3)
        biases: list[Any] = self.split(self.bias, 3) if self.bias else [None] * 3
        z, r = (
            self.activate("gate_activation", self.binary("add", part, self.product(h, w, b)))
            for part, w, b in zip((x_z, x_r), weights, biases)
        )
        if self.call.get_int("linear_before_reset", 0):
            h_n = self.binary("mul", r, self.product(h, weights[2], biases[2]))
        else:
            h_n = self.product(self.binary("mul", r, h), weights[2], biases[2])
        n = self.activate("cell_activation", self.binary("add", x_n, h_n))
        return [self.binary("add", self.binary("mul", self.complement(z), n), self.binary("mul", z, h))]

    def rnn(self, total: Value, h: Value) -> list[Value]:
        return [self.activate("activation", self.binary("add", total, self.product(h, self.r, self.bias)))]


_STEPS: dict[str, Callable[..., list[Value]]] = {"lstm": _Step.lstm, "gru": _Step.gru, "rnn": _Step.rnn}
assert _STEPS.keys() == GATES.keys()


def _binary(call: Call, function: str, a: Value, b: Value) -> Value:
    return call.emit("binary", a, b, function=function, rank=max(a.rank or 0, b.rank or 0))


def _part(call: Call, value: Value, k: int, axis: int = 0) -> Value:
    """What belongs to direction k."""
    rank = None if value.rank is None else value.rank - 1
    return call.emit("gather", value, call.new(np.int64(k), "direction"), axis=axis, rank=rank)


def _entry(call: Call, shape: Value, k: int) -> Value:
    return call.emit("slice", shape, call.ints_value([k], "start"), call.ints_value([k + 1], "end"))


def _mask(call: Call, shape: Value, lengths: Value) -> Value:
    """(seq_len, batch, 1): which steps are real."""
    zero, one = call.new(np.int64(0), "zero"), call.new(np.int64(1), "one")
    seq_len = call.emit("squeeze", _entry(call, shape, 0), axes=(0,), rank=0)
    steps = call.emit("range", zero, seq_len, one, rank=1)
    steps = call.emit("unsqueeze", steps, axes=(1, 2), rank=3)
    lengths = call.emit("cast", lengths, dtype="int64", gives="int64")
    return call.emit(
        "binary", steps, call.emit("unsqueeze", lengths, axes=(1,), rank=2), function="less", gives="bool", rank=3
    )
