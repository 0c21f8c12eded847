"""Live PyTorch modules: the same numbers on a grid of options and on PyTorch's own samples; promise 2 on errors."""

from __future__ import annotations

import functools
import itertools
import re

import numpy as np
import pytest
from cases import error, flat, parts
from tolerances import PEER_FACTOR, PEER_FLOOR, TWO_FLOAT32

import fastrnn

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

RECURRENT = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
GRID = [("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})]


def numbers(result) -> list[np.ndarray]:
    """Outputs of a module, as arrays; a packed y is padded."""
    y, state = result if isinstance(result, tuple) else (result, None)
    if isinstance(y, nn.utils.rnn.PackedSequence):
        y = nn.utils.rnn.pad_packed_sequence(y)[0]
    return [t.detach().numpy() for t in (y, *parts(state))]


def assert_near(ours: list[np.ndarray], theirs: list[np.ndarray], note: object) -> None:
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape, f"array {k}: {a.shape}, expected {b.shape}: {note}"
        assert error(a, b) <= TWO_FLOAT32, f"array {k}: error {error(a, b):.1e}: {note}"


def initial(module, *batch: int):
    """A random state of the module's own shape."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(count, *batch, module.proj_size or module.hidden_size)
    return (h, torch.randn(count, *batch, module.hidden_size)) if module.mode == "LSTM" else h


def as_numpy(state):
    return None if state is None else tuple(t.numpy() for t in state) if isinstance(state, tuple) else state.numpy()


@pytest.mark.parametrize(("name", "extra"), GRID)
def test_grid(name, extra, isa, backend):
    torch.manual_seed(0)
    flags = itertools.product((1, 2, 3), (False, True), (False, True), (False, True), (False, True))
    for k, (layers, both, bias, batch_first, with_state) in enumerate(flags):
        sizes = ((3, 5), (17, 16), (9, 33))[k % 3]
        options = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": batch_first} | extra
        module = RECURRENT[name](*sizes, **options).eval()
        layer = fastrnn.from_torch(module, backend=backend)
        assert layer.batch_first == batch_first
        for batch in (4, None):
            shape = () if batch is None else (batch,)
            x = torch.randn(*((*shape, 6) if batch_first else (6, *shape)), sizes[0])
            state = initial(module, *shape) if with_state else None
            note = f"{name} {sizes} {options} batch {batch} state {with_state}"
            with torch.no_grad():
                assert_near(flat(layer(x, state)), numbers(module(x, state)), note)
            assert_near(flat(layer(x.numpy(), as_numpy(state))), numbers(module(x, state)), note)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name, isa, backend):
    torch.manual_seed(1)
    extras = [{}, {"nonlinearity": "relu"}] if name == "RNNCell" else [{}]
    for extra, bias, batch, with_state in itertools.product(extras, (True, False), (None, 0, 1, 5), (True, False)):
        module = getattr(nn, name)(7, 9, bias=bias, **extra)
        cell = fastrnn.from_torch(module, backend=backend)
        shape = () if batch is None else (batch,)
        x, h, c = torch.randn(*shape, 7), torch.randn(*shape, 9), torch.randn(*shape, 9)
        state = None if not with_state else (h, c) if name == "LSTMCell" else h
        with torch.no_grad():
            theirs = [t.numpy() for t in parts(module(x, state))]
        result = cell(x, state)
        assert isinstance(result, tuple) == (name == "LSTMCell")
        assert_near(parts(result), theirs, f"{name} {extra} bias {bias} batch {batch} state {with_state}")


@pytest.mark.parametrize(("name", "extra"), GRID)
def test_packed_sequences(name, extra, isa, backend):
    """A packed sequence is a padded one with lengths, in PyTorch sorted or not."""
    torch.manual_seed(2)
    for both, layers, batch_first, ordered in itertools.product((False, True), (1, 2), (False, True), (False, True)):
        module = RECURRENT[name](4, 6, num_layers=layers, bidirectional=both, batch_first=batch_first, **extra)
        lengths = torch.tensor([5, 4, 2, 1] if ordered else [2, 5, 1, 4])
        x = torch.randn(4, 5, 4) if batch_first else torch.randn(5, 4, 4)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=ordered)
        state = initial(module, 4)
        with torch.no_grad():
            y, theirs = module(packed, state)
            y = nn.utils.rnn.pad_packed_sequence(y, batch_first)[0]
        ours = flat(fastrnn.from_torch(module, backend=backend)(x, state, lengths))
        assert_near(
            ours,
            [y.numpy(), *(t.numpy() for t in parts(theirs))],
            f"{name} {extra} {both} {layers} {batch_first} {ordered}",
        )


@pytest.fixture(scope="module")
def samples():
    """(module, its arguments) of every sample that PyTorch tests its six recurrent modules with."""
    common = pytest.importorskip("torch.testing._internal.common_modules")
    found = []
    for info in common.module_db:
        if info.module_cls not in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell):
            continue
        functions = [info.module_inputs_func]
        if info.module_cls in (nn.RNN, nn.GRU):  # PyTorch asks for its packed samples on some devices only
            functions.append(functools.partial(functions[0], with_packed_sequence=True))
        for function, training in itertools.product(functions, (False, True)):
            for sample in function(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training):
                build, call = sample.constructor_input, sample.forward_input
                module = info.module_cls(*build.args, **build.kwargs).train(training)
                found.append((module, call.args, call.kwargs, f"{info.name}({build.args} {build.kwargs})"))
    return found


def test_pytorchs_own_samples(samples, isa, backend):
    kinds = {type(module) for module, *_ in samples}
    assert kinds == {nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell}
    packed = 0
    for module, args, kwargs, note in samples:
        assert not kwargs
        layer = fastrnn.from_torch(module, backend=backend)
        with torch.no_grad():
            theirs = module(*args)
        if isinstance(module, nn.RNNCellBase):
            assert_near(parts(layer(*args)), [t.numpy() for t in parts(theirs)], note)
            continue
        x, *state = args
        if isinstance(x, nn.utils.rnn.PackedSequence):
            packed += 1
            x, lengths = nn.utils.rnn.pad_packed_sequence(x, module.batch_first)
            y = nn.utils.rnn.pad_packed_sequence(theirs[0], module.batch_first)[0]
            assert_near(
                flat(layer(x, *state, lengths=lengths)), [y.numpy(), *(t.numpy() for t in parts(theirs[1]))], note
            )
        else:
            assert_near(flat(layer(x, *state)), numbers(theirs), note)
    assert packed, "no packed sample was met"


TWO_BY_TWO = {"num_layers": 2, "bidirectional": True}
PROMISE = [
    # name, options, input_size, hidden_size, batch, seq_len
    ("LSTM", {}, 16, 32, 4, 50),
    ("LSTM", TWO_BY_TWO, 40, 64, 2, 30),
    ("LSTM", {"proj_size": 16}, 32, 64, 3, 20),
    ("LSTM", {}, 256, 256, 1, 20),
    ("LSTM", {}, 512, 512, 2, 10),
    ("GRU", {}, 16, 32, 4, 50),
    ("GRU", TWO_BY_TWO, 40, 64, 2, 30),
    ("GRU", {}, 256, 256, 1, 20),
    ("RNN", {}, 64, 128, 4, 40),
    ("RNN", {"nonlinearity": "relu"}, 64, 128, 4, 40),
]


@pytest.mark.parametrize("shape", PROMISE, ids=lambda s: f"{s[0]}-{s[2]}-{s[3]}" + "".join(f"-{k}" for k in s[1]))
def test_promise_of_errors(shape, isa):
    """Error against the float64 reference: at most twice PyTorch's own, or 2e-7, over three seeds."""
    name, options, input_size, hidden_size, batch, seq_len = shape
    ours, peers = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        module = RECURRENT[name](input_size, hidden_size, batch_first=True, **options)
        x, state = torch.randn(batch, seq_len, input_size), initial(module, batch)
        layer = fastrnn.from_torch(module, backend="packed")
        states = [t.numpy() for t in parts(state)]
        want = [a for a in fastrnn.reference.recurrent(layer.node, x.numpy(), *states) if a is not None]
        with torch.no_grad():
            theirs = numbers(module(x, state))
        ours.append(max(np.abs(a - b).max() for a, b in zip(flat(layer(x, state)), want, strict=True)))
        peers.append(max(np.abs(a - b).max() for a, b in zip(theirs, want, strict=True)))
    bound = max(PEER_FACTOR * max(peers), PEER_FLOOR)
    assert max(ours) <= bound, f"errors {ours}, PyTorch's {peers}, at most {bound:.2e}"


def test_a_packed_sequence_is_named():
    """The error says how to pass it, and that works."""
    gru = nn.GRU(3, 4, batch_first=True)
    layer = fastrnn.from_torch(gru)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 3), torch.tensor([5, 2]), batch_first=True)
    for given in (layer, fastrnn.Sequential(layer), layer.last()):
        with pytest.raises(fastrnn.ShapeError, match="PackedSequence") as error:
            given(packed)
    space = {"torch": torch, "packed": packed, "layer": layer}
    unpack, call = re.findall("`(.*?)`", str(error.value))
    exec(unpack, space)
    _, h = eval(call, space)
    np.testing.assert_allclose(h, gru(packed)[1].detach(), atol=1e-6)
