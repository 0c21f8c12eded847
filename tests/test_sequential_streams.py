"""Layers in a row as streams, pools and batchers, whatever comes first: the bits of the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from cases import assert_bits, normal

import fastrnn
from fastrnn.layers import Layer

BATCH, STEPS, FEATURES, HIDDEN = 3, 7, 4, 5
GATES = {fastrnn.LSTM: 4, fastrnn.GRU: 3, fastrnn.RNN: 1}
FRONTS: dict[str, tuple[Sequence[Layer], int]] = {
    "the recurrent layer": ((), FEATURES),
    "dense": ((fastrnn.Dense(normal(6, FEATURES)),), 6),
    "masking": ((fastrnn.Masking(0.0),), FEATURES),
    "layer norm": ((fastrnn.LayerNorm(normal(FEATURES), normal(FEATURES)),), FEATURES),
    "batch norm": ((fastrnn.BatchNorm(normal(FEATURES), abs(normal(FEATURES))),), FEATURES),
    "activation": ((fastrnn.Activation("tanh"),), FEATURES),
    "activation, norm, dense": (
        (fastrnn.Activation("relu"), fastrnn.LayerNorm(normal(FEATURES)), fastrnn.Dense(normal(6, FEATURES))),
        6,
    ),
    "embedding": ((fastrnn.Embedding(normal(9, FEATURES)),), FEATURES),
    "embedding with a mask": ((fastrnn.Embedding(normal(9, FEATURES), mask_zero=True),), FEATURES),
    "embedding, dense": ((fastrnn.Embedding(normal(9, FEATURES)), fastrnn.Dense(normal(6, FEATURES))), 6),
}


def layer(kind: type, features: int, **options) -> Layer:
    rows = GATES[kind] * HIDDEN
    return kind(normal(rows, features) / 2, normal(rows, HIDDEN) / 2, **options)


def inputs(front: str) -> np.ndarray:
    if front.startswith("embedding"):
        return np.arange(BATCH * STEPS).reshape(BATCH, STEPS) * 5 % 9
    x = normal(BATCH, STEPS, FEATURES)
    x[:, :2] *= front != "masking"
    return x


def check(model: fastrnn.Model, x: np.ndarray, want: np.ndarray, each: bool, note: str) -> None:
    """``want`` is (batch, seq_len, ...), or (batch, ...) of a model that gives the last step so far."""
    last, rest = (want[:, -1], want[:, 2:]) if each else (want, want)
    stream = model.stream(BATCH)
    stream(x[:, :2])
    assert_bits([stream(x[:, 2:])], [rest], note)
    stream = model.stream()
    assert_bits([[stream.step(frame) for frame in x[0]][-1]], [last[0]], note)
    pool = model.pool(BATCH + 1)
    handles = [pool.open() for _ in x]
    pool.step(handles, [x[0][:2], x[1][:0], x[2]])
    assert_bits(pool.step(handles, [x[0][2:], x[1], x[2][:0]])[:2], [rest[0], want[1]], note)
    if not each:  # nothing new, and still the answer so far
        assert_bits(pool.step(handles, [row[:0] for row in x]), list(want), note)
    with fastrnn.Batcher(model) as batcher, batcher.open() as session:
        futures = [batcher.submit(row) for row in x] + [session.submit(x[0][:2]), session.submit(x[0][2:])]
        found = [future.result() for future in futures]
        assert_bits([*found[:BATCH], found[-1]], [*want, rest[0]], note)


@pytest.mark.parametrize("front", FRONTS)
def test_any_first_layer(front):
    before, features = FRONTS[front]
    x = inputs(front)
    for k, batch_first in enumerate((True, True, True, False)):
        if not batch_first and front in ("masking", "embedding with a mask"):
            continue  # a mask is (batch, seq_len)
        recurrent = layer(list(GATES)[k % 3], features, batch_first=batch_first)
        head = fastrnn.Dense(normal(2, HIDDEN))
        second = layer(fastrnn.GRU, HIDDEN, batch_first=batch_first)
        for rest, each in (
            ([recurrent, head], True),
            ([recurrent.last(), head], False),
            ([recurrent, fastrnn.LayerNorm(normal(HIDDEN)), second, head], True),
            ([recurrent, second], True),
        ):
            model = fastrnn.Sequential(*before, *rest)
            want = model(x if batch_first else x.swapaxes(0, 1).copy())
            want = want[0] if isinstance(want, tuple) else want
            want = want if batch_first or not each else np.ascontiguousarray(want.swapaxes(0, 1))
            check(model, x, want, each, f"{front}, {model}")


def test_layers_of_a_file(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.ModuleDict(
        {"rnn": torch.nn.LSTM(FEATURES, HIDDEN, batch_first=True), "head": torch.nn.Linear(HIDDEN, 2)}
    )
    torch.save(net.state_dict(), tmp_path / "net.pt")
    layers = fastrnn.load_layers(tmp_path / "net.pt", ["rnn", "head"])
    model, x = fastrnn.Sequential(layers["rnn"], layers["head"]), normal(BATCH, STEPS, FEATURES)
    check(model, x, model(x), True, "load_layers")


def test_what_is_refused():
    both = fastrnn.GRU([normal(15, 4)] * 2, [normal(15, 5)] * 2, bidirectional=True, name="both")
    gru, late = layer(fastrnn.GRU, 4), layer(fastrnn.GRU, HIDDEN)
    late_first = layer(fastrnn.GRU, HIDDEN, batch_first=False)
    models = {
        r"2 layer\(s\).*'0_both' runs in both.*'1_back' runs backwards": (
            both, fastrnn.GRU(normal(15, 10), normal(15, 5), direction="reverse", name="back"),
        ),
        "'2_gru' works along the batch": (gru.last(), fastrnn.Dense(normal(5, 5)), late),
        "'1_gru'": (gru, late_first),
        "has no recurrent layer": (fastrnn.Dense(normal(4, 4)), fastrnn.Activation("tanh")),
    }  # fmt: skip
    for reason, layers in models.items():
        model = fastrnn.Sequential(*layers)
        for make in (model.stream, lambda m=model: m.pool(4), lambda m=model: fastrnn.Batcher(m)):
            with pytest.raises(fastrnn.UnsupportedError, match=f"(?s){reason}"):
                make()
