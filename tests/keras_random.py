"""Random Keras models with masks, initial states, wrappers, merges and models in models; Keras 2 and 3 both make them.

What a model computes depends on its masks everywhere: ``random_model(keras, seed)`` makes the same one each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, STEPS, UNITS, WORDS = 3, 4, 3, 7


class RandomGraph:
    """Tensors of a graph that grows: sequences (batch, time, UNITS), vectors (batch, UNITS), and those of sequences."""

    def __init__(self, keras: Any, rng: np.random.Generator, attention: bool = True):
        self.L, self.keras, self.rng = keras.layers, keras, rng
        self.is_keras3 = not keras.__version__.startswith("2.")
        self.sequences: list[Any] = []
        self.vectors: list[Any] = []
        self.nested: list[Any] = []  # (batch, time, inner time, UNITS)
        self.keep: Any = None  # a mask that layers may be called with
        self.depth = 0
        self.moves: list[Callable[[], None]] = [
            *[self.recurrent] * 3, *[self.bidirectional] * 2, *[self.time_distributed] * 2, *[self.merge] * 2,
            self.concatenate, *[self.layer] * 2, self.arithmetic, self.rearrange, self.pool, *[self.model] * 2,
        ]  # fmt: skip
        if attention:
            self.moves += [self.attention, self.heads]

    def one_of(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def like(self, x: Any, count: int) -> list[Any]:
        """``x`` and others of its shape."""
        return [x, *(self.one_of([y for y in self.sequences if y.shape[1] == x.shape[1]]) for _ in range(count - 1))]

    def grow(self, moves: int) -> None:
        while moves:
            before = len(self.sequences), len(self.vectors), len(self.nested)
            self.one_of(self.moves)()
            moves -= before != (len(self.sequences), len(self.vectors), len(self.nested))

    def recurrent_layer(self) -> Any:
        L, options = self.L, {"return_sequences": self.chance(0.7), "go_backwards": self.chance(0.2)}
        if self.chance(0.2):
            options["zero_output_for_mask"] = True
        kind = self.one_of(["LSTM", "GRU", "GRU before", "SimpleRNN", "cell", "stack"])
        if kind == "cell":
            return L.RNN(self.one_of([L.LSTMCell, L.GRUCell, L.SimpleRNNCell])(UNITS), **options)
        if kind == "stack":
            return L.RNN([L.GRUCell(UNITS), L.LSTMCell(UNITS)], **options)
        if kind.startswith("GRU"):
            return L.GRU(UNITS, reset_after=kind == "GRU", **options)
        return getattr(L, kind)(UNITS, **options)

    def call(self, layer: Any, x: Any, states: int) -> list[Any]:
        """A recurrent layer on a sequence, with states or a mask now and then; all its outputs."""
        given: dict[str, Any] = {}
        if states and self.chance(0.4):
            given["initial_state"] = [self.one_of(self.vectors) for _ in range(states)]
        if self.keep is not None and x.shape[1] == self.keep.shape[1] and self.chance(0.15):
            given["mask"] = self.keep
        y = layer(x, **given)
        return list(y) if isinstance(y, (list, tuple)) else [y]

    def add(self, outputs: list[Any]) -> None:
        for y in outputs:
            (self.sequences if len(y.shape) == 3 else self.vectors).append(y)

    def recurrent(self) -> None:
        layer = self.recurrent_layer()
        stacked = type(layer).__name__ == "RNN" and type(layer.cell).__name__ == "StackedRNNCells"
        states = 0 if stacked else len(np.atleast_1d(layer.cell.state_size))
        layer.return_state = not stacked and self.chance(0.3)
        self.add(self.call(layer, self.one_of(self.sequences), states))

    def bidirectional(self) -> None:
        layer = self.recurrent_layer()
        stacked = type(layer).__name__ == "RNN" and type(layer.cell).__name__ == "StackedRNNCells"
        states = 0 if stacked else 2 * len(np.atleast_1d(layer.cell.state_size))
        layer.go_backwards, layer.return_state = False, not stacked and self.chance(0.3)
        mode = self.one_of(["sum", "mul", "ave", None, "concat"])
        y, *more = self.call(self.L.Bidirectional(layer, merge_mode=mode), self.one_of(self.sequences), states)
        self.add([self.L.Dense(UNITS)(y) if mode == "concat" else y, *more])

    def layer(self) -> None:
        L = self.L
        make = self.one_of([
            lambda: L.Dense(UNITS, activation="tanh"), L.LayerNormalization, L.BatchNormalization, L.LeakyReLU,
            L.PReLU, lambda: L.Dropout(0.5), lambda: L.Activation("relu"), lambda: L.Masking(0.0),
            lambda: L.SpatialDropout1D(0.1), lambda: L.GaussianNoise(0.1), L.UnitNormalization,
            lambda: L.Activation("linear"), getattr(L, "Identity", L.ELU), lambda: L.Rescaling(0.5),
            lambda: L.Reshape((-1, UNITS)),
        ])  # fmt: skip
        x = self.one_of(self.sequences)
        layer = L.Activation("tanh") if make is L.PReLU and x.shape[1] is None else make()
        self.sequences.append(layer(x))

    def arithmetic(self) -> None:
        x, y = self.like(self.one_of(self.sequences), 2)
        cast = (lambda a: self.keras.ops.cast(a, "float32")) if self.is_keras3 else (lambda a: a * 1.0)
        self.sequences.append(self.one_of([lambda: x + y, lambda: x * 0.5, lambda: x - y, lambda: cast(x)])())

    def merge(self) -> None:
        L, count = self.L, 2 if self.chance(0.7) else 3
        parts = self.like(self.one_of(self.sequences), count)
        if self.chance(0.15):
            parts[-1] = self.one_of(self.vectors)
        kinds = [L.Add, L.Average, L.Multiply, L.Maximum, L.Minimum] + ([L.Subtract] if count == 2 else [])
        self.sequences.append(self.one_of(kinds)()(parts))

    def concatenate(self) -> None:
        x, y = self.like(self.one_of(self.sequences), 2)
        if self.chance(0.6):
            self.sequences.append(self.L.Dense(UNITS)(self.L.Concatenate()([x, y])))
        elif x.shape[1] is not None and x.shape[1] <= 2 * STEPS:
            self.sequences.append(self.L.Concatenate(axis=1)([x, y]))

    def rearrange(self) -> None:
        L, x = self.L, self.one_of(self.sequences)
        make = self.one_of([
            lambda: L.Conv1D(UNITS, 2, padding="same"), lambda: L.ZeroPadding1D(int(x.shape[1] is not None)),
            lambda: L.UpSampling1D(1),
            lambda: L.MaxPooling1D(2, 1, "same"), lambda: L.Cropping1D((0, 0)),
        ])  # fmt: skip
        if x.shape[1] is None or x.shape[1] <= 2 * STEPS:
            self.sequences.append(make()(x))

    def pool(self) -> None:
        L = self.L
        if self.chance(0.3):
            self.sequences.append(L.RepeatVector(STEPS)(self.one_of(self.vectors)))
        else:
            make = self.one_of([L.GlobalAveragePooling1D, L.GlobalMaxPooling1D])
            self.vectors.append(make()(self.one_of(self.sequences)))

    def attention(self) -> None:
        L, parts = self.L, self.like(self.one_of(self.sequences), 2 if self.chance(0.7) else 3)
        self.sequences.append(self.one_of([L.Attention, L.AdditiveAttention])()(parts))

    def heads(self) -> None:
        parts = self.like(self.one_of(self.sequences), self.one_of([2, 2, 3]))
        self.sequences.append(self.L.MultiHeadAttention(2, 2, use_bias=self.chance(0.7))(*parts))

    def time_distributed(self) -> None:
        """Over sequences of sequences: what it makes of a mask of each of them differs between versions."""
        L = self.L
        if self.nested and self.chance(0.6):
            x = self.one_of(self.nested)
            if self.chance(0.3):
                self.nested.append(L.TimeDistributed(L.Dense(UNITS))(x))
                return
            inside = self.recurrent_layer()
            inside.return_sequences = False
            if self.chance(0.3):
                inside.go_backwards = False
                inside = L.Bidirectional(inside, merge_mode="sum")
            elif self.chance(0.2):
                inside = L.GlobalAveragePooling1D()
            y = L.TimeDistributed(inside)(x)
            # In Keras 3 its mask has an axis more than such a sequence may have.
            self.sequences.append(L.Reshape((-1, UNITS))(y) if self.is_keras3 else y)
            return
        x = self.one_of(self.sequences)
        v = self.keras.Input((UNITS,))
        inside = self.one_of([
            lambda: L.Dense(UNITS), lambda: L.BatchNormalization(), lambda: L.Activation("tanh"),
            lambda: self.keras.Model(v, L.Add()([L.Dense(UNITS)(v), v])),
            lambda: self.keras.Sequential([L.Dense(UNITS, activation="relu"), L.Dense(UNITS)]),
        ])()  # fmt: skip
        self.sequences.append(L.TimeDistributed(inside)(x))

    def model(self) -> None:
        """A model inside, called once or twice."""
        if self.depth > 1:
            return
        x = self.one_of(self.sequences)
        if self.chance(0.3):
            inside = self.keras.Sequential([self.L.Dense(UNITS), self.L.GRU(UNITS, return_sequences=True)])
            self.add([inside(x)])
            return
        graph = RandomGraph(self.keras, self.rng, attention=self.moves[-1] == self.heads)
        graph.depth = self.depth + 1
        p, q, v = self.keras.Input(x.shape[1:]), self.keras.Input(x.shape[1:]), self.keras.Input((UNITS,))
        graph.sequences, graph.vectors = [p, q], [v]
        graph.grow(int(self.rng.integers(1, 4)))
        outputs = [y for y in (graph.sequences[-1], graph.vectors[-1]) if all(y is not z for z in (p, q, v))]
        inside = self.keras.Model([p, q, v], outputs)
        for _ in range(1 + self.chance(0.3)):
            y = inside([*self.like(x, 2), self.one_of(self.vectors)])
            self.add(list(y) if isinstance(y, (list, tuple)) else [y])


def random_model(keras: Any, seed: int, attention: bool = True) -> tuple[Any, list[np.ndarray]]:
    """A model with random weights, and inputs for it: words and features with masked steps, two states and a mask."""
    rng = np.random.default_rng(seed)
    graph = RandomGraph(keras, rng, attention)
    L, steps = keras.layers, STEPS if rng.random() < 0.7 else None
    ids, x = keras.Input((steps,), dtype="int32", name="ids"), keras.Input((steps, UNITS), name="x")
    pages = keras.Input((STEPS, 2, UNITS), name="pages")
    states = [keras.Input((UNITS,), name=name) for name in ("s", "t")]
    graph.keep = keras.Input((steps,), dtype="bool", name="keep")
    words = L.Embedding(WORDS, UNITS, mask_zero=graph.chance(0.8))(ids)
    graph.sequences = [words, L.Masking()(x), x]
    graph.vectors, graph.nested = list(states), [L.Masking()(pages), pages]
    graph.grow(int(rng.integers(3, 8)))
    outputs = [*graph.sequences[-2:], *graph.vectors[-2:]]
    outputs += [L.GlobalAveragePooling1D()(y) for y in graph.sequences[-2:]]  # whose masks show here
    inputs = [ids, x, pages, *states, graph.keep]
    outputs = [y for y in outputs if all(y is not z for z in inputs)]
    model = keras.Model(inputs, outputs)
    for variable in model.weights:
        if "seed" not in variable.name:  # few values, which compress well
            values = rng.integers(-12, 13, variable.shape) / 16
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    keep = rng.random((BATCH, STEPS)) < 0.7
    keep[:, 1] = True
    numbers = [rng.integers(-16, 17, shape) / 8 for shape in ((BATCH, STEPS, UNITS), (BATCH, STEPS, 2, UNITS))]
    numbers[0] *= keep[::-1, :, None]
    numbers[1] *= (rng.random((BATCH, STEPS, 2)) < 0.8)[..., None]
    feeds = [rng.integers(1, WORDS, (BATCH, STEPS)) * keep, *numbers, *rng.integers(-8, 9, (2, BATCH, UNITS)) / 8]
    return model, [feeds[0].astype(np.int32), *(a.astype(np.float32) for a in feeds[1:]), keep[:, ::-1].copy()]
