"""Whole PyTorch modules as people write them: captured with and without an example; and what is refused."""

import math
import re
import threading

import numpy as np
import pytest

import fastrnn
from fastrnn.errors import UnsupportedError

torch = pytest.importorskip("torch")
from test_load_torch import Subclass, trained  # noqa: E402
from test_torch_fx import check  # noqa: E402
from torch.autograd import Variable  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

nn = torch.nn
F = torch.nn.functional


class Base(nn.Module):
    def __init__(self, bidirectional=False):
        super().__init__()
        self.embedding = nn.Embedding(11, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 4, 2, batch_first=True, dropout=0.3, bidirectional=bidirectional)
        self.gru = nn.GRU(5, 5, batch_first=True)
        self.head = nn.Linear(8 if bidirectional else 4, 3)
        self.dropout = nn.Dropout(0.2)


class ZeroStates(Base):
    """States made in forward, in three ways."""

    def forward(self, x):
        h = torch.zeros(2, x.size(0), 4).to(x.device)
        c = Variable(torch.zeros(2, x.shape[0], 4))
        self.lstm.flatten_parameters()
        y, (h, _) = self.lstm(x, (h.detach(), c.requires_grad_()))
        return self.head(y[:, -1, :]) + self.head(h.view(2, -1, 4)[-1])


class Characters(Base):
    """A state that is optional, and is made from a parameter where it is absent."""

    def start(self, batch):
        weight = next(self.parameters()).data
        return weight.new(2, batch, 4).zero_(), weight.new_zeros(2, batch, 4)

    def forward(self, ids, hidden=None):
        if hidden is None:
            hidden = self.start(ids.size(0))
        if ids.dim() != 2:
            raise ValueError("ids must be (batch, time)")
        y, hidden = self.lstm(self.dropout(self.embedding(ids)), hidden)
        return self.head(y.contiguous().view(-1, 4)), hidden


class Sentences(Base):
    """Packed sequences, both directions' last states."""

    def __init__(self):
        super().__init__(bidirectional=True)

    def forward(self, ids, lengths):
        x = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, (h, _) = self.lstm(x)
        y, _ = pad_packed_sequence(packed, batch_first=True)
        return self.head(torch.cat((h[-2, :, :], h[-1, :, :]), dim=1)), y


class Copier(Base):
    """The last state at every step."""

    def forward(self, x):
        _, steps, _ = x.shape
        _, h = self.gru(x)
        return self.gru(h[-1].unsqueeze(1).repeat(1, steps, 1))[0]


class Attention(Base):
    def __init__(self):
        super().__init__()
        self.key, self.score = nn.Linear(4, 4, bias=False), nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        dot = F.softmax(torch.bmm(y, h[-1].unsqueeze(2)).squeeze(2), 1)
        additive = torch.softmax(torch.tanh(self.key(y)) @ self.score, dim=-1)
        context = torch.bmm(y.transpose(1, 2), dot.unsqueeze(2)).squeeze(2) + (additive[:, None, :] @ y)[:, 0]
        return {"context": self.head(context), "weights": (dot, additive)}


class Images(nn.Module):
    """Columns of an image as steps."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.rnn, self.head = nn.GRU(48, 5, bidirectional=True), nn.Linear(10, 7)

    def forward(self, x):
        x = self.cnn(x)
        batch, channels, height, width = x.size()
        y, _ = self.rnn(x.reshape(batch, channels * height, width).permute(2, 0, 1))
        steps, batch, features = y.size()
        return F.log_softmax(self.head(y.view(steps * batch, features)).view(steps, batch, -1), dim=2)


class Windows(nn.Module):
    """Convolutions of several widths, the largest value over time."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(12, 2)
        self.convolutions = nn.ModuleList([nn.Conv1d(6, 4, k) for k in (2, 3, 4)])

    def forward(self, ids):
        x = self.embedding(ids).permute(0, 2, 1)
        found = [F.relu(conv(x)) for conv in self.convolutions]
        found = [F.max_pool1d(y, y.size(2)).squeeze(2) for y in found]
        return torch.sigmoid(self.head(torch.cat(found, 1)))


class Twins(Base):
    def forward(self, left, right):
        a, b = (self.lstm(self.embedding(ids))[1][0][-1] for ids in (left, right))
        return torch.exp(-torch.sum(torch.abs(a - b), dim=1)), F.cosine_similarity(a, b)


class Residual(Base):
    def __init__(self):
        super().__init__()
        self.norm, self.batch_norm = nn.LayerNorm(5), trained(nn.BatchNorm1d(5))

    def forward(self, x):
        x = self.norm(x + self.gru(x)[0])
        x += 1
        return self.batch_norm(x.transpose(1, 2)).transpose(1, 2)


class Decoder(Base):
    """One step; the states are arguments."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(5, 4)

    def forward(self, x, state):
        h, c = self.cell(x, state)
        return F.log_softmax(self.head(h), 1), (h, c)


class Unrolled(Base):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 4)

    def forward(self, x):
        h, steps = torch.zeros(x.size(0), 4), []
        for t in range(3):
            h = self.cell(x[:, t], h)
            steps.append(h)
        return self.head(torch.stack(steps, 1))


class Positions(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 250).reshape(1, 50, 5))
        self.scale = math.sqrt(5)

    def forward(self, x):
        return self.gru(x * self.scale + self.table[:, : x.size(1)])[0].mean(1)


class LastSteps(Base):
    def forward(self, ids, lengths):
        y, _ = self.gru(self.embedding(ids))
        mask = torch.arange(ids.size(1), device=ids.device).expand(ids.size(0), -1) < lengths.unsqueeze(1)
        mean = (y * mask.unsqueeze(-1).float()).sum(1) / lengths.unsqueeze(1).float()
        last = y.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.size(2))).squeeze(1)
        return mean, last, y[torch.arange(y.size(0)), lengths - 1]


class Flag(Base):
    def forward(self, x, reverse=False):
        if self.training:
            x = x + torch.randn_like(x)
        return self.gru(x.flip(1) if reverse else x)[0]


def ids(*shape):
    return torch.randint(0, 11, shape)


WHOLE = [  # a module, arguments of two sizes, and whether they can be told without an example
    (ZeroStates, lambda b, t: (torch.randn(b, t, 5),), True),
    (Characters, lambda b, t: (ids(b, t),), True),
    (Sentences, lambda b, t: (ids(b, t), torch.arange(b) + 2), True),
    (Copier, lambda b, t: (torch.randn(b, t, 5),), True),
    (Attention, lambda b, t: (torch.randn(b, t, 5),), True),
    (Images, lambda b, t: (torch.randn(b, 1, 32, 4 * t),), False),
    (Windows, lambda b, t: (ids(b, t),), True),
    (Twins, lambda b, t: (ids(b, t), ids(b, t + 1)), True),
    (Residual, lambda b, t: (torch.randn(b, t, 5),), True),
    (Decoder, lambda b, t: (torch.randn(b, 5), (torch.randn(b, 4), torch.randn(b, 4))), True),
    (Unrolled, lambda b, t: (torch.randn(b, t, 5),), True),
    (Positions, lambda b, t: (torch.randn(b, t, 5),), True),
    (LastSteps, lambda b, t: (ids(b, t), torch.arange(b) + 2), True),
    (Flag, lambda b, t: (torch.randn(b, t, 5),), True),
]


@pytest.mark.parametrize(("kind", "arguments", "told"), WHOLE, ids=[row[0].__name__ for row in WHOLE])
def test_whole(kind, arguments, told):
    torch.manual_seed(0)
    module = kind()
    calls = [arguments(2, 5), arguments(4, 7)]
    check(module, *calls, example=calls[0])
    module.train()
    if told:
        check(module, *calls)
    else:
        with pytest.raises(UnsupportedError, match=r"example_inputs=\(x,\)"):
            fastrnn.from_torch(module)


def test_names():
    """Inputs have the names of the arguments; outputs positions or keys."""
    model = fastrnn.from_torch(Decoder())
    assert [t.name for t in model.inputs] == ["x", "state_0", "state_1"]
    assert [t.shape for t in model.inputs] == [(None, 5), (None, 4), (None, 4)]
    assert [t.name for t in model.outputs] == ["output_0", "output_1", "output_2"]
    assert list(model.layers) == ["cell", "head"]
    model = fastrnn.from_torch(Attention())
    assert [t.name for t in model.outputs] == ["context", "weights_0", "weights_1"]
    assert [t.name for t in fastrnn.from_torch(Flag()).outputs] == ["output"]
    assert fastrnn.from_torch(Characters()).inputs[0].dtype == "int64"


def test_sequential_beyond_chains():
    """Layers that need to know the number of axes; a recurrent layer still passes its y on."""
    layers = [nn.Conv1d(5, 4, 3), nn.ReLU(), nn.LSTM(8, 6, batch_first=True), nn.Flatten(), nn.Linear(24, 2)]
    x = torch.randn(2, 5, 10)
    model = fastrnn.from_torch(nn.Sequential(*layers), example_inputs=x)
    expected = layers[4](layers[3](layers[2](layers[1](layers[0](x)))[0])).detach().numpy()
    np.testing.assert_allclose(model(x.numpy()), expected, atol=1e-6)
    y, (h, c) = fastrnn.from_torch(nn.Sequential(*layers[:3]), example_inputs=x)(x.numpy())
    assert (y.shape, h.shape, c.shape) == ((2, 4, 6), (1, 2, 6), (1, 2, 6))
    (output,) = fastrnn.from_torch(nn.Conv1d(5, 4, 3)).outputs
    assert output.shape == (None, None, None)


def test_other_threads_use_pytorch_meanwhile():
    """torch.fx sees the calls of all threads; those of others pass."""
    stop, errors = threading.Event(), []
    other = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def work():
        while not stop.is_set():
            try:
                other(torch.ones(1, 3))
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(5):
        fastrnn.from_torch(Attention())
    stop.set()
    thread.join()
    assert not errors


class Waiting(nn.Module):
    """Its forward waits for another thread to look at PyTorch."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 4, batch_first=True)
        self.look = lambda: None

    def forward(self, x):
        n = x.size(0)
        h = self.gru.weight_ih_l0.new_zeros(1, n, 4) + x.new_zeros(n, 4) + self.gru.bias_ih_l0.new_zeros(n, 4)
        self.look()
        return self.gru(x, h)[0]


def test_tensors_of_other_threads_are_the_same_meanwhile():
    """While a forward is captured, another thread sees no other torch.Tensor, and its tensors are tensors."""
    module, seen, inside = Waiting(), [], threading.Lock()
    before = dict(vars(torch.Tensor))
    n = torch.tensor(3).item()

    def look():
        made = torch.ones(2).new_zeros(n, 4)
        seen.append((dict(vars(torch.Tensor)) == before, type(made), made.shape, torch.ones(2).new(n).shape))

    def wait():
        with inside:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()

    module.look = wait
    check(module, (torch.randn(2, 3, 5),))
    assert set(seen) == {(True, torch.Tensor, torch.Size([3, 4]), torch.Size([3]))}


def test_assertions_are_passed_over():
    """pytest rewrites those of this file, so the class is made from a text."""
    source = """
class Careful(Base):
    def forward(self, x):
        assert x.size(1) > 0
        assert x.shape[-1] == 5, "features"
        return self.gru(x)[0]
"""
    exec(source, globals(), made := {})
    check(made["Careful"](), (torch.randn(2, 3, 5),))


# What is refused


class Refused(Base):
    def __init__(self):
        super().__init__()
        self.fold, self.own, self.pair = nn.Fold(2, 2), Subclass(5, 4), nn.Bilinear(5, 5, 2)
        self.unused = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        y, _ = self.own(self.gru(x)[0])
        return self.pair(x, x), torch.sort(y)[0], y.unfold(1, 2, 1), torch.fft.rfft(y).abs(), F.relu(y)


class Loop(Base):
    def __init__(self):
        super().__init__()
        self.pair = nn.Bilinear(5, 5, 2)

    def forward(self, x):
        for t in range(x.size(1)):
            x = x + x[:, t : t + 1]
        return x


class Branch(Base):
    def forward(self, x):
        return x if x.sum() > 0 else self.gru(x)[0]


class Steps(Base):
    """As many nodes as steps."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 4)

    def forward(self, x):
        h = None
        for step in self.gru(x)[0].unbind(1):
            h = self.cell(step, h)
        return h


class Remembers(Base):
    hidden = None

    def forward(self, x):
        y, self.hidden = self.gru(x, self.hidden)
        return y


class View(Base):
    def forward(self, x):
        y = x * 2
        part = y[:, 0]
        y.add_(1)
        return part


class Random(Base):
    def forward(self, x):
        return self.gru(x + torch.rand_like(x))[0]


class Text(Base):
    def forward(self, x):
        return self.gru(x)[0], "done"


class Many(Base):
    def forward(self, words, pixels, extra):
        return self.gru(self.embedding(words))[0] + pixels.view(-1, 2, 3, 5) + extra @ extra


class Weighted(Base):
    def __init__(self):
        super().__init__()
        self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))

    def forward(self, x):
        return self.normed(x)


REFUSED = {
    Refused: ["own (Subclass, a subclass of nn.LSTM)", "pair (Bilinear)", "(sort)", "(unfold)", "(fft_rfft)"],
    Loop: ["range(x.size(1))", "pair (Bilinear)"],
    Branch: ["control flow must not depend on the data"],
    Steps: ["depends on the size of an axis that is free; pass example_inputs="],
    Remembers: ["its forward writes hidden, a state from call to call"],
    View: ["in place, of a tensor that getitem is a view of"],
    Random: ["rand_like"],
    Text: ["values that are not tensors (output_1)"],
    Many: ["pass an example of its arguments", "example_inputs=(words, pixels, extra,)"],
    Weighted: [
        "normed (ParametrizedLinear, whose weights are computed; torch.nn.utils.parametrize.remove_parametrizations"
    ],
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_refused(kind):
    """One error: all that cannot be run, then the export; the module is as before."""
    module = kind()
    before = {path: set(vars(part)) for path, part in module.named_modules()}
    with pytest.raises(UnsupportedError) as error:
        fastrnn.from_torch(module)
    message = str(error.value)
    for part in REFUSED[kind]:
        assert part in message
    assert "unused" not in message
    assert "relu" not in message
    assert message.endswith(f'fastrnn.load("{kind.__name__}.onnx")')
    assert before == {path: set(vars(part)) for path, part in module.named_modules()}
    assert all(part.training for part in module.modules())


def test_export_line():
    with pytest.raises(UnsupportedError) as error:
        fastrnn.from_torch(Refused())
    line = re.search(r"Export it instead: (.*), then fastrnn\.load", str(error.value))[1]
    assert line == (
        'torch.onnx.export(Refused(...).eval(), (x,), "Refused.onnx", input_names=["x"],'
        ' dynamic_axes={"x": {0: "batch", 1: "time"}}, dynamo=False)'
    )


def test_hooks():
    module = Flag()
    module.register_forward_hook(lambda module, args, result: result)
    with pytest.raises(UnsupportedError, match="forward hooks"):
        fastrnn.from_torch(module)
    module = Flag()
    module.gru.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(UnsupportedError, match=r"gru \(GRU with forward hooks"):
        fastrnn.from_torch(module)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.ones(2, 5, 4), r"cannot run it on example_inputs \(gru: input\.size"),
        ((torch.ones(2, 5, 5), False, 1), "has 3 values, forward takes 2"),
        ({"y": torch.ones(1)}, "lacks x"),
    ],
    ids=["shape", "count", "name"],
)
def test_wrong_examples(example, words):
    with pytest.raises(UnsupportedError, match=words):
        fastrnn.from_torch(Flag(), example_inputs=example)


def test_sizes_of_the_example():
    """Which the module uses always, as the user says."""
    x = torch.randn(2, 3, 5)
    check(Steps(), (x,), (torch.randn(4, 3, 5),), example=x)
    with pytest.raises(fastrnn.ShapeError, match=r"splits into|the axis has 4"):
        fastrnn.from_torch(Steps(), example_inputs=x)(np.zeros((2, 4, 5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precisions(dtype):
    """The guessed example has that of the module; fastrnn computes in float32."""
    x = torch.randn(2, 4, 5)
    expected = Flag().eval()
    model = fastrnn.from_torch(expected.to(dtype))
    assert model.inputs[0].dtype == "float32"
    np.testing.assert_allclose(model(x.numpy()), expected.float()(x).detach().numpy(), atol=1e-6)


def test_examples_are_left_alone():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.add_(1)

    x = torch.zeros(2)
    model = fastrnn.from_torch(InPlace(), example_inputs=x)
    assert x.tolist() == [0, 0]
    assert model(np.zeros(3, np.float32)).tolist() == [1, 1, 1]
    assert fastrnn.from_torch(Flag(), example_inputs={"x": torch.ones(2, 5, 5), "reverse": True}).spec.nodes


# What errors print to do


class Branch(nn.Module):
    """Axis 1 is features here, and its flow depends on the data."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 4)

    def forward(self, x):
        return self.cell(x) if x.sum() < 1e9 else x


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return self.conv(x).amax((2, 3)) if x.sum() < 1e9 else x


class PackedBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(9, 5), nn.GRU(5, 4, batch_first=True)

    def forward(self, ids, lengths):
        x = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, h = self.gru(x)
        return (pad_packed_sequence(y, batch_first=True)[0], h) if lengths.sum() > 0 else (ids, ids)


class StateBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x, state):
        y, (h, c) = self.lstm(x, state)
        return (y, h, c) if y.sum() < 1e9 else (x, h, c)


EXPORTED = [
    (Branch, {"x": torch.randn(3, 5)}),
    (Image, {"x": torch.randn(2, 1, 6, 7)}),
    (PackedBranch, {"ids": torch.arange(8).reshape(2, 4), "lengths": torch.tensor([2, 4])}),
    (StateBranch, {"x": torch.randn(2, 3, 5), "state": (torch.randn(1, 2, 4), torch.randn(1, 2, 4))}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "examples"), EXPORTED, ids=lambda value: getattr(value, "__name__", ""))
def test_the_printed_export_works(tmp_path, monkeypatch, kind, examples):
    """The text of the error, run as it stands, gives a model with the module's results."""
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = kind().eval()
    with pytest.raises(UnsupportedError) as error:
        fastrnn.from_torch(module)
    export, load = re.search(r"Export it instead: (.*), then (fastrnn\.load\(.*\))$", str(error.value)).groups()
    exec(export, {"torch": torch, kind.__name__: lambda *_: module, **examples})
    model = eval(load, {"fastrnn": fastrnn})
    theirs = module(*examples.values())
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    flat = [part for value in examples.values() for part in (value if isinstance(value, tuple) else (value,))]
    results = model(*(value.numpy() for value in flat))
    for ours, wanted in zip(results if isinstance(results, tuple) else (results,), theirs, strict=True):
        np.testing.assert_allclose(ours, wanted.detach(), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.jit.script(net).save("loaded.pt")
    given = [torch.jit.script(net), torch.jit.trace(net, torch.ones(1, 3)), torch.jit.load("loaded.pt")]
    for module in (*given, torch.jit.script(nn.LSTM(2, 3)), torch.jit.freeze(given[0])):
        with pytest.raises(UnsupportedError, match="TorchScript") as error:
            fastrnn.from_torch(module)
        line, load = re.search(r"(torch\.jit\.save\(.*?\)), then (.*?) and", str(error.value)).groups()
        exec(line, {"torch": torch, "module": module})
        assert eval(load, {"fastrnn": fastrnn})


@pytest.mark.filterwarnings("ignore")
def test_parts_of_other_forms_are_named():
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    scripted = nn.Sequential(torch.jit.script(nn.Linear(3, 2)), nn.ReLU())
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    for module, words in ((quantized, "quantized; pass the float module"), (scripted, "TorchScript; pass the module"),
                          (normed, "remove_parametrizations"), (old, "remove_weight_norm")):  # fmt: skip
        with pytest.raises(UnsupportedError, match=words):
            fastrnn.from_torch(module)
    nn.utils.parametrize.remove_parametrizations(normed[0], "weight")
    nn.utils.remove_weight_norm(old[0])
    assert fastrnn.from_torch(normed)
    assert fastrnn.from_torch(old)


def test_wrapped_modules():
    """torch.compile and DataParallel compute what the module in them does."""
    gru = nn.GRU(3, 4)
    for module in (torch.compile(gru), nn.DataParallel(gru), torch.compile(nn.DataParallel(gru))):
        assert type(fastrnn.from_torch(module)) is fastrnn.GRU
