"""Streams and pools of whole models: the bits of whole sequences, or of a model that is called with its states."""

from __future__ import annotations

import wave
from itertools import pairwise

import numpy as np
import pytest
from cases import assert_bits, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from published import published

import fastrnn
from fastrnn.errors import UnknownStreamError
from fastrnn.spec import ModelSpec, Node, Tensor


def tagger() -> fastrnn.Model:
    """A causal convolution, two recurrent layers and a head, on sequences of 4 features."""
    conv = {"weight": normal(6, 4, 3) / 3, "bias": normal(6)}
    lstm = {"weight_ih_l0": normal(20, 6) / 3, "weight_hh_l0": normal(20, 5) / 3}
    gru = {"weight_ih_l0": normal(9, 5) / 3, "weight_hh_l0": normal(9, 3) / 3}
    nodes = [
        Node("transpose", "turn", ("x",), ("columns",), {"perm": (0, 2, 1)}),
        Node("conv", "conv", ("columns",), ("front",), {"pads": (4, 0), "dilations": (2,)}, conv),
        Node("transpose", "back", ("front",), ("rows",), {"perm": (0, 2, 1)}),
        Node("lstm", "lstm", ("rows",), ("h",), {}, lstm),
        Node("gru", "gru", ("h",), ("g",), {}, gru),
        Node("dense", "head", ("g",), ("y",), {"activation": "tanh"}, {"weight": normal(2, 3)}),
    ]
    return fastrnn.Model(ModelSpec(nodes, [Tensor("x", (None, None, 4))], [Tensor("y", None)]))


@pytest.fixture(scope="module")
def model() -> fastrnn.Model:
    return tagger()


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 20), max_size=5), batch=st.integers(1, 3))
def test_a_stream_in_pieces(model, cuts, batch):
    x = normal(batch, 20, 4)
    edges, stream = [0, *sorted(cuts), 20], model.stream(batch)
    pieces = [stream(x[:, a:b]) if b != a + 1 else stream.step(x[:, a])[:, None] for a, b in pairwise(edges)]
    assert_bits([np.concatenate(pieces, 1)], [model(x)], f"cut at {cuts}")


def test_a_stream_of_one(model):
    x = normal(9, 4)
    y = model(x[None])[0]
    stream, out = model.stream(), np.empty(2, np.float32)
    assert stream.step(x[0], out=out) is out
    saved, state, copy = stream.save(), stream.state, stream.copy()
    assert_bits([out, stream(x[1:])], [y[0], y[1:]], "one")
    stream.restore(saved)
    assert_bits([stream(x[1:])], [y[1:]], "restored")
    stream.state = state
    assert_bits([stream(x[1:]), copy(x[1:])], [y[1:], y[1:]], "state set, copied")
    stream.reset()
    assert_bits([stream(x)], [y], "reset")
    assert len(state) >= 4, "h and c, h, and what the convolution keeps"


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_a_pool_under_any_schedule(model, seed):
    rng = np.random.default_rng(seed)
    pool, x = model.pool(3), rng.standard_normal((8, 30, 4)).astype(np.float32)
    pool.grow(8)
    handles, y, at = [pool.open() for _ in range(8)], [[] for _ in range(8)], [0] * 8
    for _ in range(8):
        rows = rng.permutation(8)[: rng.integers(0, 9)].tolist()
        counts = [1] * len(rows) if rng.random() < 0.5 else rng.integers(0, 4, len(rows)).tolist()
        chunks = [x[row, at[row] : at[row] + count] for row, count in zip(rows, counts, strict=True)]
        one_each = rows and max(counts) == min(counts) == 1
        made = pool.step([handles[row] for row in rows], np.concatenate(chunks) if one_each else chunks)
        for row, count, part in zip(rows, counts, made, strict=True):
            y[row].append(part[None] if one_each else part)
            at[row] += count
        moved = int(rng.integers(8))
        data = pool.export(handles[moved])
        pool.close(handles[moved])
        handles[moved] = pool.restore(data)
    whole = model(x)
    for row in range(8):
        assert_bits([np.concatenate([np.empty((0, 2), np.float32), *y[row]])], [whole[row, : at[row]]], f"row {row}")


def test_what_is_refused(model):
    pool, stream, x = model.pool(4), model.stream(), normal(2, 4)
    handles = [pool.open(), pool.open()]
    pool.step(handles, x)
    before = [pool.state(handle) for handle in handles]
    for wrong in (x[:, :3], x[:1], [x, x[:, :3]], [x], np.full((2, 4), 1j)):
        with pytest.raises(fastrnn.ShapeError):
            pool.step(handles, wrong)
    for wrong in (normal(4, 3), normal(3), normal(2, 4, 4)):
        with pytest.raises(fastrnn.ShapeError):
            stream(wrong)
    with pytest.raises(UnknownStreamError):
        pool.step([handles[0], 1], x)
    with pytest.raises(fastrnn.FormatError, match="another network"):
        pool.restore(fastrnn.GRU(normal(9, 4), normal(9, 3)).stream().save())
    with pytest.raises(fastrnn.ShapeError, match="a dict of"):
        stream.state = {"h": x}
    with pytest.raises(fastrnn.ShapeError, match=r"constants= names sr, the inputs are x"):
        model.stream(constants={"sr": 16000})
    for handle, old in zip(handles, before, strict=True):
        assert_bits(list(pool.state(handle).values()), list(old.values()), "a refused call moves nothing")


def test_one_stream_s_nan_reaches_no_other(model):
    x = normal(6, 5, 4)
    pool = model.pool(6)
    handles = [pool.open() for _ in range(6)]
    bad = x.copy()
    bad[2, 1] = np.nan
    y = np.stack([pool.step(handles, bad[:, t]) for t in range(5)], 1)
    others = [0, 1, 3, 4, 5]
    assert np.isnan(y[2, -1]).any()
    assert_bits([y[others]], [model(x)[others]], "others")


def frames() -> np.ndarray:
    with wave.open(str(published("silero_vad") / "test.wav")) as file:
        samples = np.frombuffer(file.readframes(64 + 512 * 300), "<i2").astype(np.float32) / 32768
    return np.lib.stride_tricks.sliding_window_view(samples, 576)[::512].copy()


@pytest.mark.parametrize(
    "name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_openvino_16k"]
)
def test_silero(name):
    """A stream and a pool beside calls that carry the state themselves."""
    model, x = fastrnn.load(published("silero_vad") / f"{name}.onnx"), frames()
    constants = {"sr": np.array(16000)} if any(t.name == "sr" for t in model.inputs) else {}
    state, want = np.zeros((2, 1, 128), np.float32), []
    for frame in x:
        made = model.run({"input": frame[None], "state": state, **constants})
        state = made["stateN"]
        want.append(made["output"][0])
    stream = model.stream(constants=constants)
    assert_bits([np.stack([stream.step(frame) for frame in x])], [np.stack(want)], "a stream")
    pool, places = model.pool(5, constants=constants), np.arange(5) * 20
    handles = [pool.open() for _ in places]
    for turn in range(len(x) - 80):  # each reads from its own place
        y = pool.step(handles, x[places + turn])
        if turn == 0:
            first = y
    alone = [model.stream(constants=constants) for _ in places]
    assert_bits([first], [np.stack([s.step(x[at]) for s, at in zip(alone, places, strict=True)])], "first frames")
    assert_bits([y[:1]], [want[len(x) - 81][None]], "the last frame of the first")


def test_frames_of_several_sizes_and_whole_numbers():
    """A model that takes any frame: streams whose frames differ share a pool, each with its own."""
    nodes = [
        Node("cast", "cast", ("x",), ("floats",), {"dtype": "float32"}),
        Node("reduce", "sum", ("floats",), ("total",), {"axes": (1,)}),
        Node("binary", "add", ("total", "state"), ("new",), {"function": "add"}),
        Node("activation", "double", ("new",), ("y",), {"activation": ("affine", 2.0, 0.0)}),
    ]
    inputs = [Tensor("x", (None, None), "int64"), Tensor("state", (None, 1))]
    model = fastrnn.Model(ModelSpec(nodes, inputs, [Tensor("y", (None, 1)), Tensor("new", (None, 1))]))
    pool = model.pool(4, states={"new": "state"})
    handles = [pool.open() for _ in range(3)]
    chunks = [np.arange(12).reshape(4, 3), np.arange(35, dtype=np.int32).reshape(7, 5), np.ones((1, 3))]
    for found, chunk in zip(pool.step(handles, chunks), chunks):
        assert np.array_equal(found[:, 0], 2 * np.cumsum(chunk.sum(1)).astype(np.float32))
    with pytest.raises(fastrnn.ShapeError, match="whole numbers"):
        pool.step(handles[:1], [np.full((2, 3), 0.5)])


def test_frames_of_any_rank():
    """Ids are frames without an axis, images have several; by that chunks and lists of chunks are told."""
    table = normal(11, 4)
    lstm = {"weight_ih_l0": normal(12, 4), "weight_hh_l0": normal(12, 3)}
    words = [
        Node("embedding", "words", ("ids",), ("x",), {}, {"weight": table}),
        Node("lstm", "lstm", ("x",), ("y",), {}, lstm),
    ]
    model = fastrnn.Model(ModelSpec(words, [Tensor("ids", (None, None), "int64")], [Tensor("y", None)]))
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    want = model(ids[None])[0]
    stream = model.stream()
    assert_bits([stream(ids[:3]), stream(ids[3:])], [want[:3], want[3:]], "chunks of ids")
    pool = model.pool(3)
    handles = [pool.open() for _ in range(2)]
    assert_bits(pool.step(handles, [ids[:5], ids[:2]]), [want[:5], want[:2]], "lists of ids")
    assert_bits([pool.step(handles, ids[[5, 2]])], [want[[5, 2]]], "a step of ids")

    flat = [
        Node("reshape", "flat", ("images", "shape"), ("x",)),
        Node("lstm", "lstm", ("x",), ("y",), {}, lstm),
    ]
    images = [Tensor("images", (None, None, 2, 2))]
    model = fastrnn.Model(ModelSpec(flat, images, [Tensor("y", None)], {"shape": np.array([0, 0, 4])}))
    film = normal(6, 2, 2)
    stream = model.stream()
    found = [np.stack([stream.step(image) for image in film[:2]]), stream(film[2:])]
    want = model(film[None])[0]
    assert_bits(found, [want[:2], want[2:]], "images")
