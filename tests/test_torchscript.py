"""TorchScript archives: weights by name, against torch.jit.load."""

import hostile_script
import numpy as np
import pytest
from hostile_torch import program, tensor

import fastrnn
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import load_tensors

torch = pytest.importorskip("torch")
from test_load_torch import assert_same  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Net(nn.Module):
    """Attributes of every kind that TorchScript stores."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, bidirectional=True)
        self.cell = nn.GRUCell(4, 5)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.tied = nn.Linear(8, 4)
        self.tied.weight = self.head[0].weight
        self.register_buffer("steps", torch.tensor([1, 2, 3]))
        self.register_buffer("absent", None)
        self.small = nn.Parameter(torch.randn(3, 2).half().t())
        self.plain = torch.ones(2, dtype=torch.float64)
        self.table = {"a": torch.zeros(2), "b": torch.ones(1)}
        self.rates, self.scale, self.name, self.flags = [8000, 16000], [0.5], "net", [True]
        self.pair = (1, torch.full((2,), 7.0))

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.head(y[-1]) + torch.tensor([1.0, 2, 3, 4])


def archive(module, path, traced=False):
    module.eval()
    scripted = torch.jit.trace(module, torch.randn(2, 2, 3)) if traced else torch.jit.script(module)
    torch.jit.save(scripted, path)
    return torch.jit.load(path)


@pytest.mark.parametrize("traced", [False, True])
def test_tensors(tmp_path, traced):
    """Every parameter and buffer bit for bit, and the other tensors of its objects."""
    loaded = archive(Net(), tmp_path / "net.jit", traced)
    ours = load_tensors(tmp_path / "net.jit")
    theirs = dict(loaded.named_parameters(remove_duplicate=False)) | dict(loaded.named_buffers())
    assert len(theirs) > 25
    for name, value in theirs.items():
        assert_same(ours[name], value)
    if not traced:
        assert_same(ours["plain"], loaded.plain)
        assert ours["table.b"].tolist() == [1]
        assert ours["pair.1"].tolist() == [7, 7]


def test_layers(tmp_path):
    module = Net()
    archive(module, tmp_path / "net.jit")
    layers = fastrnn.load_layers(tmp_path / "net.jit", ["rnn", "cell", "head.0", "head.1"])
    assert [type(layer).__name__ for layer in layers.values()] == ["LSTM", "GRUCell", "Dense", "BatchNorm"]
    x = torch.randn(2, 3, 3)
    y, _ = layers["rnn"](x.numpy())
    np.testing.assert_allclose(y, module.rnn(x.swapaxes(0, 1))[0].swapaxes(0, 1).detach().numpy(), atol=1e-6)
    assert fastrnn.load(tmp_path / "net.jit", prefix="rnn.").batch_first


def test_constants(tmp_path):
    """A frozen module has its weights among the constants of its program, which have no names."""
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(3, 2).eval()))
    torch.jit.save(frozen, tmp_path / "net.pt")
    assert {array.shape for array in load_tensors(tmp_path / "net.pt").values()} == {(2, 3), (2,)}
    assert all(name.startswith("constants.") for name in load_tensors(tmp_path / "net.pt"))


def test_the_program_is_not_looked_at(tmp_path):
    (tmp_path / "net.jit").write_bytes(hostile_script.GOOD)
    assert list(load_tensors(tmp_path / "net.jit")) == ["rnn.weight"]


def test_a_state_that_is_not_a_dictionary(tmp_path):
    """As classes with a __getstate__ of their own have it."""
    built = hostile_script.CLASS + hostile_script.NEW + tensor() + b"b"
    (tmp_path / "net.jit").write_bytes(hostile_script.script(program(hostile_script.module(("packed", built)))))
    assert list(load_tensors(tmp_path / "net.jit")) == ["packed.0"]


def test_errors(tmp_path):
    path = tmp_path / "net.jit"
    archive(Net(), path)
    model = fastrnn.load(path)
    assert "rnn.weight_ih_l0" in model.tensors
    with pytest.raises(UnsupportedError, match=r"no network.*'head\.0\.bias'.*prefix='cell\.'.*load_layers"):
        model(np.zeros((1, 2, 3)))
    with pytest.raises(FormatError, match="no tensors under the prefix"):
        fastrnn.load(path, prefix="decoder.")
