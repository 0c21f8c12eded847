"""Streams: cut anywhere, saved, carried on elsewhere, they give the bits of whole sequences; and what they refuse."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from cases import (
    FMA_ISAS,
    FORWARD,
    VARIANTS,
    Case,
    Late,
    assert_bits,
    assert_close,
    cases,
    misaligned,
    normal,
    parts,
    read_only,
    strided,
)
from hypothesis import given
from hypothesis import strategies as st
from scripts import LAYERS, check

import fastrnn
from fastrnn.loaders import state_bytes

KINDS = ("lstm", "lstm projection", "gru", "gru reset before", "rnn")


def forward(variant: str, **changes) -> Case:
    return Case.of(variant, **FORWARD | changes)


def run(stream, x: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Pieces of x (batch, seq_len, input_size), each a chunk, or a step where it has one."""
    edges = [0, *cuts, x.shape[1]]
    pieces = [
        stream.step(x[:, begin])[:, None] if end == begin + 1 else stream(x[:, begin:end])
        for begin, end in pairwise(edges)
    ]
    return np.concatenate(pieces, axis=1)


# The same bits


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_in_pieces(variant, num_layers, isa):
    for batch, threads in ((1, 1), (3, 1), (33, 2)):
        case = forward(variant, batch=batch, seq_len=12, num_layers=num_layers)
        fastrnn.set_num_threads(threads)
        layer = case.layer()
        y, final = layer(case.x)
        stream = layer.stream(batch)
        for attempt in ("new", "reset"):
            note = f"{attempt} stream of {case} on {isa}"
            assert_bits([run(stream, case.x, [1, 2, 2, 5, 6, 9])], [y], note)
            assert_bits(parts(stream.state), parts(final), note)
            stream.reset()
        assert not any(array.any() for array in parts(stream.state))


@given(
    case=cases(directions=("forward",), **{k: v for k, v in FORWARD.items() if k != "direction"}),
    isa=st.sampled_from(FMA_ISAS),
    threads=st.integers(1, 2),
    data=st.data(),
)
def test_any_cuts(case, isa, threads, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, case.seq_len), max_size=6)))
    fastrnn.set_isa(isa)
    fastrnn.set_num_threads(threads)
    layer = case.layer()
    y, final = layer(case.x)
    stream = layer.stream(case.batch)
    assert_bits([run(stream, case.x, cuts)], [y], f"{case} cut at {cuts}")
    assert_bits(parts(stream.state), parts(final), f"{case} cut at {cuts}")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_that_two_threads_share(kind, isa):
    shapes = {"batch": {"batch": 16, "hidden_size": 100}, "hidden": {"batch": 2, "hidden_size": 300}}
    for split, shape in shapes.items():
        case = forward(kind, input_size=100, seq_len=50, **shape)
        fastrnn.set_num_threads(1)
        layer = case.layer()
        y, _ = layer(case.x)
        fastrnn.set_num_threads(2)
        plan = layer.explain(case.batch, 25)
        assert (plan["split"], plan["threads"]) == (split, 2), "else the test does not test it"
        assert_bits([run(layer.stream(case.batch), case.x, [25])], [y], f"{case} on {isa}")


@pytest.mark.parametrize("kind", KINDS)
def test_backends(kind, backend, isa):
    case = forward(kind, batch=3, seq_len=7)
    stream = case.layer(backend).stream(3)
    y = run(stream, case.x, [1, 3])
    assert_close([y, *parts(stream.state)], case.expected(), f"{case} on {backend}")


def test_time_first_layers_stream_like_others():
    case = forward("gru", batch=2)
    first = Case.of("gru", **FORWARD | {"batch_first": False}).layer()
    assert_bits([first.stream(2)(case.x)], [case.layer()(case.x)[0]], "x of a stream has the batch axis first")


# Ranks and arrays


def test_ranks():
    case = forward("lstm", batch=1, seq_len=4)
    layer, x = case.layer(), case.x[0]
    y = layer(x)[0]
    stream = layer.stream()
    assert_bits(
        [stream.step(x[0]), stream.step(x[1:2])[0], stream(x[2:3]), stream(x[None, 3:])[0]],
        [y[0], y[1], y[2:3], y[3:]],
        "",
    )
    assert stream(x[:0]).shape == (0, 5)
    assert stream(x[None, :0]).shape == (1, 0, 5)
    two = layer.stream(2)
    assert two.step(np.stack([x[0], x[0]])).shape == (2, 5)
    assert two(np.stack([x, x])).shape == (2, 4, 5)


def test_out():
    case = forward("gru", batch=2, seq_len=5)
    layer = case.layer()
    y, _ = layer(case.x)
    stream, one, chunk = layer.stream(2), np.full((2, 5), 7, np.float32), np.full((2, 4, 5), 7, np.float32)
    assert stream.step(case.x[:, 0].copy(), out=one) is one
    assert stream(case.x[:, 1:], out=chunk) is chunk
    assert_bits([one, chunk], [y[:, 0], y[:, 1:]], "batch of 2")
    stream, one, chunk = layer.stream(), np.full(5, 7, np.float32), np.full((4, 5), 7, np.float32)
    assert stream.step(case.x[0, 0], out=one) is one
    assert np.shares_memory(stream(case.x[0, 1:], out=chunk), chunk)
    assert_bits([one, chunk], [y[0, 0], y[0, 1:]], "one sequence")


def test_whatever_becomes_float32():
    case = forward("lstm", batch=2)
    layer, x = case.layer(), case.x
    want = layer.stream(2)(x), layer.stream(2).step(x[:, 0].copy())
    for other in (x.tolist(), x.astype(np.float64), np.asfortranarray(x), misaligned(x), strided(x), read_only(x)):
        step = [row[0] for row in other] if isinstance(other, list) else other[:, 0]
        assert_bits([layer.stream(2)(other), layer.stream(2).step(step)], list(want), type(other))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 3, requires_grad=True)
    layer = forward("gru").layer()
    want = layer(x)[0]
    stream = layer.stream()
    assert_bits([stream.step(x[0]), stream(x[1:])], [want[0], want[1:]], "one sequence that needs a gradient")


# States


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_read_set_copied_and_saved(kind):
    case = forward(kind, batch=3, seq_len=9, num_layers=2)
    layer, x = case.layer(), case.x
    y, final = layer(x)
    stream = layer.stream(3)
    stream(x[:, :4])
    others = {"state": layer.stream(3), "saved": layer.stream(3), "copied": stream.copy()}
    before = stream.state
    others["state"].state = before
    others["saved"].restore(stream.save())
    stream(x[:, 4:])
    for how, other in others.items():
        assert_bits([other(x[:, 4:])], [y[:, 4:]], how)
        assert_bits(parts(other.state), parts(final), how)
    stream.state = before
    for array in parts(before):
        array[...] = np.nan
    assert_bits([stream(x[:, 4:])], [y[:, 4:]], "states that were read or set are the caller's")
    assert [part.shape[:2] for part in parts(before)] == [(2, 3)] * (2 if case.op == "lstm" else 1), (
        "as the layer has it"
    )


RESTORED = (
    LAYERS
    + """
stream = lstm(8, 16).stream(2)
stream.restore(bytes.fromhex(sys.argv[1]))
print(stream.step(inputs(2, 8)).tobytes().hex())
"""
)


def test_another_process_restores():
    rng = np.random.default_rng(0)
    weights = [[rng.uniform(-0.2, 0.2, shape).astype(np.float32)] for shape in ((64, 8), (64, 16))]
    stream = fastrnn.LSTM(*weights).stream(2)
    stream(normal(2, 5, 8))
    data, y = stream.save(), stream.step(normal(2, 8, seed=1))
    assert check(RESTORED, data.hex()).strip() == y.tobytes().hex()


def test_states_that_are_refused():
    stream = forward("lstm", batch=2).layer().stream(2)
    stream(normal(2, 3, 3))
    before = stream.state
    h, c = before
    wrong = {
        r"the tuple \(h, c\), got ndarray": h,
        r"the tuple \(h, c\), got dict": {"h": h, "c": c},
        r"h must be .* = \(1, 2, 5\), got shape \(2, 1, 5\)": (h.swapaxes(0, 1), c),
        r"c must be .* = \(1, 2, 5\), got shape \(1, 1, 5\)": (h, c[:, :1]),
        "c must hold real numbers": (h + 1, c * 1j),
        "h must hold real numbers": (np.full(h.shape, "x"), c),
    }
    for text, state in wrong.items():
        with pytest.raises(fastrnn.ShapeError, match=text):
            stream.state = state
    assert_bits(parts(stream.state), parts(before), "a refused state changes nothing")
    stream.state = [h.tolist(), c.astype(np.float64)]
    assert_bits(parts(stream.state), parts(before), "what casts is taken")


# Bytes


def test_damaged_bytes():
    """At every byte; only blanks of the header, of which nothing depends, may become others."""
    case = forward("lstm", batch=1)
    stream = case.layer().stream()
    stream(case.x)
    data, before = stream.save(), stream.state
    stream.reset()
    for k in range(len(data)):
        for damage in (*(1 << bit for bit in range(8)), 0x29):
            damaged = bytearray(data)
            damaged[k] ^= damage
            try:
                stream.restore(bytes(damaged))
            except fastrnn.FormatError:
                assert not any(array.any() for array in parts(stream.state)), f"byte {k}: the state has changed"
            else:
                assert bytes([data[k], damaged[k]]).isspace(), f"byte {k} ^ {damage} is read"
                assert_bits(parts(stream.state), parts(before), f"byte {k}")
                stream.reset()
    for length in range(len(data)):
        with pytest.raises(fastrnn.FormatError):
            stream.restore(data[:length])
    with pytest.raises(fastrnn.FormatError):
        stream.restore(data + b"\0")
    for kind in (bytearray, memoryview):
        stream.restore(kind(data))
        assert_bits(parts(stream.state), parts(before), kind)


def test_bytes_of_something_else(monkeypatch):
    stream = forward("lstm", batch=1).layer().stream()
    others = forward("gru"), forward("lstm", hidden_size=6), forward("lstm", num_layers=2)
    for other in (*(case.layer().stream() for case in others), forward("lstm").layer().stream(2)):
        with pytest.raises(fastrnn.FormatError, match=r"another network: 'h' .*expected 'h' float32 \(1, 1, 5\)"):
            stream.restore(other.save())
    with pytest.raises(fastrnn.FormatError, match="not a saved state"):
        stream.restore(b"".join(state_bytes.safetensors.chunks({"h": normal(1, 1, 5)})))
    monkeypatch.setattr(state_bytes, "VERSION", "3")
    newer = stream.save()
    monkeypatch.undo()
    with pytest.raises(fastrnn.FormatError, match=r"version '3'.*reads 1 to 2; update fastrnn"):
        stream.restore(newer)


# What is refused


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_layers_that_see_the_future(direction):
    weights = [normal(15, columns) for columns in (3, 5) for _ in range(1 + (direction == "bidirectional"))]
    half = len(weights) // 2
    layer = fastrnn.GRU(weights[:half], weights[half:], name="the encoder", **{direction: True})
    for make in (layer.stream, lambda: layer.pool(8)):
        with pytest.raises(fastrnn.UnsupportedError, match=f"'the encoder' is {direction}"):
            make()
    with pytest.raises(fastrnn.UnsupportedError, match="'gru' is a cell"):
        fastrnn.streams.Stream(forward("gru").cell())


def test_batches_that_are_refused():
    layer = forward("rnn").layer()
    for batch in (0, -1, 1.5, "2", None):
        with pytest.raises(fastrnn.ShapeError, match="batch must be a whole number from 1 to 2147483647, got"):
            layer.stream(batch)
    assert layer.stream(np.int64(2)).step(normal(2, 3)).shape == (2, 5)


def test_inputs_that_are_refused():
    case = forward("lstm", batch=2)
    stream = case.layer().stream(2)
    stream(case.x)
    before = stream.state
    steps = {
        r"\(2, 3\), got shape \(2, 4\)": np.zeros((2, 4)),
        r"\(2, 3\), got shape \(3, 3\)": np.zeros((3, 3), np.float32),
        r"\(2, 3\), got shape \(3,\)": np.zeros(3, np.float32),
        r"\(2, 3\), got shape \(2, 1, 3\)": np.zeros((2, 1, 3), np.float32),
        r"\(2, 3\), got shape \(\)": np.float32(1),
        "complex": np.zeros((2, 3), complex),
        "x is not an array": [[1.0, 2.0, 3.0], [1.0]],
    }
    for text, x in steps.items():
        with pytest.raises(fastrnn.ShapeError, match=text):
            stream.step(x)
    for shape in ((2, 3), (3, 4, 3), (2, 4, 2), (4,), (1, 4, 3)):
        with pytest.raises(fastrnn.ShapeError, match=r"\(rows, seq_len, input_size\) = \(2, any, 3\), got"):
            stream(np.zeros(shape, np.float32))
    assert_bits(parts(stream.state), parts(before), "a refused call moves nothing")


@pytest.mark.parametrize("form", ["step", "chunk", "one step", "one chunk"])
def test_out_that_is_refused(form):
    batch = 1 if form.startswith("one") else 2
    shape = {"step": (2,), "chunk": (2, 4), "one step": (), "one chunk": (4,)}[form]
    stream = forward("gru", input_size=5, batch=batch).layer().stream(batch)
    call = stream.step if form.endswith("step") else stream
    x, good = normal(*shape, 5), np.full((*shape, 5), 7, np.float32)
    before = stream.state
    wrong = {
        "float32 of shape": [good[..., :-1].copy(), good[None], good.astype(np.float64), good.astype(">f4")],
        "C-contiguous": [strided(good), misaligned(good), read_only(good)],
        "NumPy array": [good.tolist(), 7],
        "share no memory": [x],
    }
    for text, arrays in wrong.items():
        for out in arrays:
            with pytest.raises(fastrnn.ShapeError, match=text):
                call(x, out=out)
    assert (good == 7).all()
    assert_bits(parts(stream.state), parts(before), "a refused call moves nothing")


# Threads


def test_a_stream_has_one_owner():
    case = forward("lstm", batch=1)
    stream = case.layer().stream()
    late = Late(case.x[0, 0])
    done = []
    owner = threading.Thread(target=lambda: done.append(stream.step(late)))
    owner.start()
    assert late.asked.wait(60)
    state, data = case.layer().stream().state, case.layer().stream().save()
    calls = (
        lambda: stream.step(case.x[0, 0]),
        lambda: stream(case.x[0]),
        lambda: stream.state,
        lambda: setattr(stream, "state", state),
        lambda: stream.restore(data),
        stream.reset,
        stream.copy,
        stream.save,
    )
    for call in calls:
        with pytest.raises(fastrnn.ConcurrentUseError, match="stream is in use by another thread"):
            call()
    late.go.set()
    owner.join()
    y = case.layer()(case.x)[0][0]
    assert_bits([*done, stream(case.x[0, 1:])], [y[0], y[1:]], "the owner's call is as if alone")


def test_two_threads_never_race():
    """Each call is refused or is a whole step."""
    layer = forward("lstm", input_size=64, hidden_size=200).layer()  # long enough to give the GIL away
    stream, x = layer.stream(4), normal(4, 64)
    start = threading.Barrier(2)

    def steps():
        done = 0
        start.wait()
        while done < 100:
            try:
                stream.step(x)
                done += 1
            except fastrnn.ConcurrentUseError:
                pass

    threads = [threading.Thread(target=steps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = layer.stream(4)
    for _ in range(200):
        alone.step(x)
    assert_bits(parts(stream.state), parts(alone.state), "200 steps of two threads")


def test_errors_leave_a_stream_free():
    stream = forward("gru", batch=1).layer().stream()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            stream.step(Broken())
    assert stream.step(np.zeros(3)).shape == (5,)


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError
