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
from fastrnn.spec import Graph, ModelSpec, Node, Tensor


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


# ---- Steps, sizes and dtypes ----


def words(*heads: Node, dtype: str = "float32") -> fastrnn.Model:
    lstm = {"weight_ih_l0": normal(12, 4), "weight_hh_l0": normal(12, 3)}
    nodes = [
        Node("embedding", "words", ("ids",), ("x",), {}, {"weight": normal(11, 4)}),
        Node("lstm", "lstm", ("x",), ("h",), {}, lstm),
        *heads,
    ]
    outputs = [Tensor(heads[-1].outputs[0] if heads else "h", None, dtype)]
    return fastrnn.Model(ModelSpec(nodes, [Tensor("ids", (None, None), "int64")], outputs))


def test_a_step_of_a_token():
    """A token is a frame without axes; a step of it has the shape of a step of a frame."""
    model = words()
    want = model(np.array([[3, 5]]))[0]
    pool = model.pool(3)
    for token, other in ((3, 5), (np.int64(3), np.int64(5)), (np.array(3), np.array(5))):
        stream, handle = model.stream(), pool.open()
        assert_bits([stream.step(token), stream.step(other)], list(want), "a stream")
        assert_bits([pool.step([handle], token), pool.step([handle], other)], list(want), "a pool")
        pool.close(handle)
    pair = model.stream(2)
    assert_bits([pair.step(np.array([3, 5]))], [model(np.array([[3], [5]]))[:, 0]], "a batch of 2")
    assert model.stream().step(np.array([3])).shape == (1, 3)
    with pytest.raises(fastrnn.ShapeError):
        pair.step(3)


def test_tokens_beside_frames():
    """Inputs of several ranks, in whatever order the dict has them."""
    gru = {"weight_ih_l0": normal(9, 6), "weight_hh_l0": normal(9, 3)}
    nodes = [
        Node("embedding", "words", ("ids",), ("a",), {}, {"weight": normal(11, 4)}),
        Node("concat", "join", ("a", "x"), ("b",), {"axis": -1}),
        Node("gru", "gru", ("b",), ("y",), {}, gru),
    ]
    inputs = [Tensor("ids", (None, None), "int64"), Tensor("x", (None, None, 2))]
    model = fastrnn.Model(ModelSpec(nodes, inputs, [Tensor("y", None)]))
    ids, x = np.array([[3, 1, 4, 1], [5, 9, 2, 6]]), normal(2, 4, 2)
    want = model(ids, x)
    stream, pool, pair = model.stream(), model.pool(2), model.stream(2)
    handles = [pool.open(), pool.open()]
    assert_bits([stream.step({"x": x[0, 0], "ids": 3})], [want[0, 0]], "a step")
    assert_bits([stream({"x": x[0, 1:], "ids": ids[0, 1:]})], [want[0, 1:]], "a chunk")
    assert_bits([pair.step({"x": x[:, 0], "ids": ids[:, 0]})], [want[:, 0]], "a step of two")
    assert_bits([pool.step(handles[:1], {"x": x[0, 0], "ids": 3})], [want[0, 0]], "a step of one in a pool")
    chunks = [{"x": x[0, 1:], "ids": ids[0, 1:]}, {"x": x[1], "ids": ids[1]}]
    assert_bits(pool.step(handles, chunks), [want[0, 1:], want[1]], "chunks in a pool")


def test_results_of_other_dtypes():
    """Rows of a pool and of a batcher have the dtype of the model's output."""
    model = words(Node("argmax", "best", ("h",), ("y",), {"axis": -1}), dtype="int64")
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    want = model(ids[None])[0]
    pool = model.pool(2)
    found = pool.step([pool.open()], [ids])
    assert_bits([*found, model.stream()(ids[:0])], [want, want[:0]], "a pool")
    with fastrnn.Batcher(model) as batcher:
        assert_bits([batcher.submit(ids).result()], [want], "a batcher")


def test_an_input_without_time_counts_at_every_step():
    """However the steps are cut, each has the vector that came with it."""
    nodes = [
        Node("binary", "add", ("x", "speaker"), ("a",), {"function": "add"}),
        Node("gru", "gru", ("a",), ("y",), {}, {"weight_ih_l0": normal(9, 3), "weight_hh_l0": normal(9, 3)}),
    ]
    inputs = [Tensor("x", (None, None, 3)), Tensor("speaker", (None, 1, 3))]
    model = fastrnn.Model(ModelSpec(nodes, inputs, [Tensor("y", None)]))
    x, speaker = normal(6, 3), normal(1, 3)
    want = model(x[None], speaker[None])[0]
    same = np.repeat(speaker[None], 6, 0)
    assert_bits([model.stream()({"x": x, "speaker": same})], [want], "one speaker")
    assert_bits([model.stream(constants={"speaker": speaker[None]})(x)], [want], "as a constant")
    changing, stream = normal(6, 1, 3), model.stream()
    steps = [stream.step({"x": x[k], "speaker": changing[k]}) for k in range(6)]
    assert_bits([model.stream()({"x": x, "speaker": changing})], [np.stack(steps)], "another one at each step")


@pytest.mark.parametrize(
    "name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_openvino_16k", "silero_vad_op18_ifless"]
)
def test_frames_of_any_size_in_chunks_and_batchers(name):
    """Sizes that the file leaves free come from the first frame."""
    model, x = fastrnn.load(published("silero_vad") / f"{name}.onnx"), frames()[:30]
    constants = {tensor.name: 16000 for tensor in model.inputs if tensor.name == "sr"}
    if constants:
        for make in (model.stream, lambda: model.pool(20), lambda: fastrnn.Batcher(model)):
            with pytest.raises(fastrnn.ShapeError, match=r"pass constants=\{'sr': \.\.\.\}"):
                make()
    state, want = np.zeros((2, 1, 128), np.float32), []
    for frame in x:
        made = model.run({"input": frame[None], "state": state, **constants})
        state = made["stateN"]
        want.append(made["output"][0])
    want = np.stack(want)
    pool = model.pool(3, constants=constants)
    handles = [pool.open(), pool.open()]
    assert_bits(pool.step(handles, [x[:7], x[:3]]), [want[:7], want[:3]], "chunks")
    assert_bits(pool.step(handles, [x[7:7], x[3:5]]), [want[7:7], want[3:5]], "more chunks")
    with fastrnn.Batcher(model, constants=constants) as batcher, batcher.open() as session:
        futures = [batcher.submit(x), batcher.submit(x[:4]), session.submit(x[:9]), session.submit(x[9:])]
        found = [future.result() for future in futures]
    assert_bits(found, [want, want[:4], want[:9], want[9:]], "a batcher")


# ---- Where a sequence begins ----


def test_reset_goes_back_to_the_state_that_the_model_declares():
    begin, weights = normal(1, 1, 3), {"weight_ih_l0": normal(9, 4), "weight_hh_l0": normal(9, 3)}
    nodes = [
        Node("shape", "rows", ("x",), ("rows",), {"end": 1}),
        Node("concat", "sizes", ("one", "rows", "three"), ("sizes",)),
        Node("expand", "learned", ("begin", "sizes"), ("h_0",)),
        Node("gru", "gru", ("x", "h_0"), ("y",), {}, weights),
    ]
    constants = {"begin": begin, "one": np.array([1]), "three": np.array([3])}
    model = fastrnn.Model(ModelSpec(nodes, [Tensor("x", (None, None, 4))], [Tensor("y", None)], constants))
    layer, x = fastrnn.GRU(weights["weight_ih_l0"], weights["weight_hh_l0"]), normal(3, 6, 4)
    want = model(x)
    assert_bits([want], [layer(x, np.repeat(begin, 3, 1))[0]], "the whole")
    stream, pool = model.stream(3), model.pool(2)
    handle, other = pool.open(), pool.open()
    for _ in range(2):
        assert_bits([stream(x[:, :2]), stream(x[:, 2:])], [want[:, :2], want[:, 2:]], "a stream")
        assert_bits(pool.step([other, handle], [x[0], x[1]]), [want[0], want[1]], "a pool")
        stream.reset()
        pool.reset(handle)
        pool.close(other)
        pool.grow(pool.capacity + 1)
        other = pool.open()
    with fastrnn.Batcher(model) as batcher, batcher.open() as session:
        futures = [batcher.submit(x[0]), session.submit(x[1, :2]), session.submit(x[1, 2:])]
        found = [future.result() for future in futures]
    assert_bits(found, [want[0], want[1, :2], want[1, 2:]], "a batcher")


@pytest.mark.parametrize("kind", ["layer", "model"])
def test_reset_goes_back_to_the_state_that_a_stream_was_given(kind):
    layer = fastrnn.LSTM(normal(20, 4), normal(20, 5))
    net = layer if kind == "layer" else fastrnn.Sequential(layer, fastrnn.Dense(np.eye(5)))
    x, given = normal(6, 4), (normal(1, 1, 5), normal(1, 1, 5))
    want, zeros = layer(x[None], given)[0][0], layer(x[None])[0][0]
    stream, pool = net.stream(), net.pool(2)
    state = given if kind == "layer" else {k: v.swapaxes(0, 1) for k, v in zip(stream.state, given, strict=True)}
    handle, other = pool.open(), pool.open()
    stream.state = state
    pool.set_state(handle, state)
    pool.export(handle)
    for _ in range(2):
        assert_bits([stream(x)], [want], "a stream")
        assert_bits(pool.step([handle, other], [x, x[:3]]), [want, zeros[:3]], "a pool")
        stream.state = stream.state  # on the way: no new beginning
        pool.set_state(handle, pool.state(handle))
        stream.reset()
        pool.reset(handle)
        pool.reset(other)
    copy = stream.copy()
    copy.step(x[0])
    copy.reset()
    assert_bits([copy(x)], [want], "a copy")
    pool.close(handle)
    assert_bits(pool.step([pool.open()], [x]), [zeros], "another stream in its place")


# ---- What is refused while it is made ----


def gru_over(shape: tuple, *before: Node, features: int = 4, **attrs) -> fastrnn.Model:
    weights = {"weight_ih_l0": normal(9, features), "weight_hh_l0": normal(9, 3)}
    nodes = [*before, Node("gru", "gru", (before[-1].outputs[0] if before else "x",), ("y",), attrs, weights)]
    return fastrnn.Model(ModelSpec(nodes, [Tensor("x", shape)], [Tensor("y", None)]))


REFUSED = {
    "no batch": (lambda: gru_over((None, 4)), r"'x' has no axis for a batch beside axis 0, its time"),
    "fixed batch": (lambda: gru_over((3, None, 4)), r"'x' has a fixed batch of 3 in axis 0"),
    "fixed batch behind time": (
        lambda: gru_over((None, 3, 4), batch_first=False),
        r"'x' has a fixed batch of 3 in axis 1",
    ),
    "bands as the batch": (
        lambda: gru_over(
            (1, None, 8, 4),
            Node("transpose", "bands", ("x",), ("a",), {"perm": [2, 0, 1, 3]}),
            Node("squeeze", "fold", ("a",), ("b",), {"axes": [1]}),
            Node("transpose", "turn", ("b",), ("c",), {"perm": [1, 0, 2]}),
        ),
        "'x' has layers over axis 2, which is fixed, and axis 1 is free",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_axes_that_are_not_certain_are_refused(case):
    make, reason = REFUSED[case]
    model = make()
    for live in (model.stream, lambda: model.pool(4), lambda: fastrnn.Batcher(model)):
        with pytest.raises(fastrnn.UnsupportedError, match=reason):
            live()


def test_time_before_a_batch_of_one():
    model, x = gru_over((None, 1, 4), batch_first=False), normal(7, 1, 4)
    want, stream, pool = model(x)[:, 0], model.stream(), model.pool(2)
    assert_bits([stream.step(x[0, 0]), stream(x[1:, 0])], [want[0], want[1:]], "a stream")
    assert_bits(pool.step([pool.open(), pool.open()], [x[:, 0], x[:2, 0]]), [want, want[:2]], "a pool")


def test_states_that_change_their_length_stay_alone():
    """Also in a pool of one: refused when it is made."""
    nodes = [
        Node("conv", "conv", ("x",), ("a",), {"strides": (2,)}, {"weight": normal(4, 4, 3)}),
        Node("transpose", "steps", ("a",), ("b",), {"perm": (0, 2, 1)}),
    ]
    model = gru_over((None, 4, None), *nodes)
    x = normal(11, 4)
    stream = model.stream()
    found = np.concatenate([stream(x[:4]), stream(x[4:])])
    assert_bits([found], [model(x.T[None].copy())[0]], "a stream")
    for make in (lambda: model.pool(1), lambda: fastrnn.Batcher(model, max_batch=1)):
        with pytest.raises(fastrnn.UnsupportedError, match=r"conv\.history changes its length"):
            make()


@pytest.mark.parametrize(
    "node",
    [
        Node("pad", "n", ("k", "x"), ("y",), {"mode": "edge"}),
        Node("slice", "n", ("k", "x", "x"), ("y",)),
        Node("expand", "n", ("k", "x"), ("y",)),
        Node("tile", "n", ("k", "x"), ("y",)),
    ],
    ids=lambda node: node.op,
)
def test_steps_given_for_sizes_are_refused(node):
    spec = ModelSpec([node], [Tensor("x", (2, 3, 4))], [Tensor("y", None)], {"k": np.float32(1)[None]})
    with pytest.raises(fastrnn.FastrnnError):
        fastrnn.Model(spec).stream()


def test_sizes_that_are_no_list_are_refused():
    node = Node("reshape", "n", ("x", "k"), ("y",))
    sizes = {"k": np.array([[0, -1, 2]])}
    spec = ModelSpec([node], [Tensor("x", (None, None, 4))], [Tensor("y", None)], sizes)
    with pytest.raises(fastrnn.FastrnnError):
        fastrnn.Model(spec).stream()


def test_a_state_of_another_shape_is_refused():
    """A sum over a scan may be broadcast to more axes than the state has."""
    body = Graph(
        [Node("binary", "add", ("h", "u"), ("g",), {"function": "add"}), Node("identity", "copy", ("g",), ("o",))],
        [Tensor("h", (None, 4)), Tensor("u", (None, 4))],
        [Tensor("g", None), Tensor("o", None)],
    )
    scan = Node(
        "scan",
        "scan",
        ("h0", "x"),
        ("h1", "y"),
        {"num_scanned": 1, "axes": (1,), "output_axes": (1,)},
        {},
        {"body": body},
    )
    inputs = [Tensor("h0", (None, 4)), Tensor("x", (1, 1))]
    model = fastrnn.Model(ModelSpec([scan], inputs, [Tensor("h1", None), Tensor("y", None)]))
    x = np.ones((1, 1, 1), np.float32)

    def stream_step() -> None:
        model.stream().step(x)

    def pool_step() -> None:
        pool = model.pool(2)
        pool.step([pool.open()], x)

    for step in (stream_step, pool_step):
        with pytest.raises(fastrnn.FastrnnError):
            step()
