"""PyTorch: live modules and state_dicts, against PyTorch itself."""

import copy
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.loaders import load_spec
from fastrnn.loaders.torch import from_object
from fastrnn.spec import ModelSpec

torch = pytest.importorskip("torch")
nn = torch.nn


def save(obj, path, **options) -> Path:
    torch.save(obj, path, **options)
    return path


def assert_same(ours: np.ndarray, tensor) -> None:
    """The same values; bfloat16, which NumPy lacks, as float32."""
    theirs = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs, strict=True)


def run(spec: ModelSpec, x) -> list[np.ndarray]:
    """All outputs of the float64 reference, initial states 0."""
    feeds = {t.name: None for t in spec.inputs} | {"x": np.asarray(x)}
    tensors = {name: array for name, array in feeds.items() if array is not None}
    for node in spec.nodes:
        node.inputs = tuple(name if name in tensors or name not in feeds else "" for name in node.inputs)
        tensors.update(reference.run_node(node, tensors))
    return [tensors[t.name] for t in spec.outputs]


def flat(result) -> list[np.ndarray]:
    """The tensors of PyTorch's nested result in order."""
    if isinstance(result, tuple):
        return [array for part in result for array in flat(part)]
    return [result.detach().numpy()]


# State_dicts

GRID = [
    (cell, layers, bidirectional, bias, proj)
    for cell in ("LSTM", "GRU", "RNN")
    for layers in (1, 2, 3)
    for bidirectional in (False, True)
    for bias in (False, True)
    for proj in ((0, 2) if cell == "LSTM" else (0,))
]


@pytest.mark.parametrize(("cell", "layers", "bidirectional", "bias", "proj"), GRID)
def test_grid(tmp_path, cell, layers, bidirectional, bias, proj):
    """Live module, its state_dict, its .pt file: the same spec, which computes what PyTorch does."""
    torch.manual_seed(0)
    options = {"proj_size": proj} if proj else {}
    module = getattr(nn, cell)(3, 5, layers, bias=bias, bidirectional=bidirectional, **options)
    live = from_object(module)
    node = live.nodes[0]
    assert (node.op, node.name, live.nested_state) == (cell.lower(), cell.lower(), True)
    assert node.attr("batch_first") is False
    assert set(node.weights) == set(module.state_dict())

    path = save(module.state_dict(), tmp_path / "t.pt")
    for spec in (from_object(module.state_dict()), load_spec(path)):
        assert spec.nodes[0].attrs == node.attrs | {"batch_first": True}
        assert (spec.outputs, spec.inputs) == (live.outputs, live.inputs)
        for name, tensor in module.state_dict().items():
            assert_same(spec.nodes[0].weights[name], tensor)

    x = torch.randn(4, 2, 3)
    expected = flat(module(x))
    shapes = {"y": (4, 2), "h": (len(expected[1]), 2), "c": (len(expected[1]), 2)}
    for tensor, ours, theirs in zip(live.outputs, run(copy.deepcopy(live), x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert (*shapes[tensor.name[0]], tensor.shape[-1]) == theirs.shape


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(cell, bias):
    module = getattr(nn, cell)(3, 5, bias=bias)
    for spec in (from_object(module), from_object(module.state_dict())):
        assert spec.nodes[0].attr("unbatched") is True
        assert spec.inputs[0].shape == (None, 3)
        x = torch.randn(4, 3)
        ours = run(spec, x)[1:]  # y is h
        for mine, theirs in zip(ours, flat(module(x)), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_nonlinearity():
    module = nn.RNN(3, 4, nonlinearity="relu")
    assert from_object(module).nodes[0].attr("activation") == "relu"
    assert from_object(module.state_dict()).nodes[0].attr("activation") == "tanh"
    assert from_object(module.state_dict(), nonlinearity="relu").nodes[0].attr("activation") == "relu"
    with pytest.raises(UnsupportedError, match="'gelu'"):
        from_object(module.state_dict(), nonlinearity="gelu")
    with pytest.raises(FormatError, match="'lstm'"):
        from_object(nn.LSTM(3, 4).state_dict(), nonlinearity="relu")


def test_cell_follows_from_shapes_where_the_input_is_as_large():
    """weight_ih alone would not tell these apart."""
    for cell, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        arrays = {"weight_ih_l0": np.zeros((gates * 12, 12), "f"), "weight_hh_l0": np.zeros((gates * 12, 12), "f")}
        assert from_object(arrays).nodes[0].op == cell


def test_prefix():
    model = nn.ModuleDict({"encoder": nn.LSTM(3, 4), "head": nn.Linear(4, 2)})
    state = model.state_dict()
    for prefix in ("encoder.", "encoder"):
        assert set(from_object(state, prefix=prefix).nodes[0].weights) == set(model["encoder"].state_dict())
    with pytest.raises(FormatError, match=r"'head\.bias', 'head\.weight'.*prefix='encoder\.'.*load_layers"):
        from_object(state)
    with pytest.raises(FormatError, match=r"no tensors under the prefix 'decoder\.'.*prefix='encoder\.'"):
        from_object(state, prefix="decoder.")
    with pytest.raises(FormatError, match="no recurrent weights"):
        from_object(model["head"].state_dict())
    with pytest.raises(FormatError, match="no recurrent weights"):
        from_object({})


def test_float_dtypes_become_float32():
    module = nn.GRU(3, 4)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        state = {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}
        for name, array in from_object(state).nodes[0].weights.items():
            assert array.dtype == np.float32
            assert_same(array, state[name].float())


def test_values_that_do_not_fit():
    state = {name: tensor.double() for name, tensor in nn.GRU(3, 4).state_dict().items()}
    state["bias_ih_l0"][:2] = torch.tensor([1e39, float("inf")], dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"'bias_ih_l0': 1 float64 value"):
        from_object(state)
    state["bias_ih_l0"][0] = float("nan")
    assert np.isinf(from_object(state).nodes[0].weights["bias_ih_l0"][1])
    state["bias_ih_l0"] = torch.zeros(12, dtype=torch.int8)
    with pytest.raises(ShapeError, match=r"'bias_ih_l0': is int8"):
        from_object(state)
    state["bias_ih_l0"] = torch.zeros(12, device="meta")
    with pytest.raises(UnsupportedError, match=r"'bias_ih_l0'.*dense"):
        from_object(state)
    state["bias_ih_l0"] = [0.0] * 12
    with pytest.raises(ShapeError, match=r"'bias_ih_l0': is of type list"):
        from_object(state)


def test_missing_tensors_are_named():
    state = dict(nn.LSTM(3, 4, 2, bidirectional=True).state_dict())
    for name in ("weight_hh_l0", "bias_hh_l1_reverse"):
        del state[name]
    with pytest.raises(FormatError, match=r"'bias_hh_l1_reverse', 'weight_hh_l0'"):
        from_object(state)
    state = dict(nn.LSTM(3, 4, 2).state_dict())
    with pytest.raises(FormatError, match="layer 999999, but most layers"):
        from_object(state | {"weight_ih_l999999": state["weight_ih_l1"]})
    with pytest.raises(FormatError, match=r"are missing: .*weight_hh_l1"):
        from_object({"weight_ih_l2": 0, "weight_hh_l0": 0, "weight_ih_l0": 0})
    cell = dict(nn.LSTMCell(3, 4).state_dict())
    del cell["weight_hh"]
    with pytest.raises(FormatError, match="missing: 'weight_hh'"):
        from_object(cell)
    with pytest.raises(FormatError, match="not the weights of one recurrent layer"):
        from_object(cell | state)


def test_wrong_shapes_are_named():
    arrays = {name: tensor.numpy() for name, tensor in nn.GRU(3, 4, 2).state_dict().items()}
    arrays["weight_ih_l1"] = np.zeros((12, 3), "f")
    arrays["bias_hh_l0"] = np.zeros((4, 3), "f")
    with pytest.raises(ShapeError, match=r"bias_hh_l0 has shape \(4, 3\), expected \(12,\).*weight_ih_l1.*\(12, 4\)"):
        from_object(arrays)
    for shape in ((8, 4), (12, 5), (12,), (0, 0), (4, 0)):
        with pytest.raises(ShapeError, match="weight_hh"):
            from_object(arrays | {"weight_hh_l0": np.zeros(shape, "f")})
    with pytest.raises(ShapeError, match="weight_hh"):
        from_object(arrays | {"weight_hr_l0": np.zeros((2, 4), "f"), "weight_hr_l1": np.zeros((2, 4), "f")})


def test_weights_of_live_objects_are_copied():
    module = nn.RNN(2, 3)
    weights = from_object(module).nodes[0].weights["weight_ih_l0"]
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    more = from_object(arrays).nodes[0].weights["weight_ih_l0"]
    before = weights.copy()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    np.testing.assert_array_equal(weights, before)
    np.testing.assert_array_equal(more, before)


# Live modules

ACTIVATIONS = [
    nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardtanh(-0.5, 0.25), nn.LeakyReLU(),
    nn.LeakyReLU(0.3), nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Softplus(),
    nn.Softsign(), nn.Mish(), nn.ReLU6(), nn.Hardswish(), nn.LogSigmoid(), nn.Softmax(-1), nn.LogSoftmax(-1),
    nn.Softmax(1), nn.LogSoftmax(2),
]  # fmt: skip


@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_activations(module):
    shape = (40, 5, 20) if getattr(module, "dim", -1) == 2 else (200, 20)
    x = torch.randn(*shape) * 4
    (ours,) = run(from_object(module), x)
    np.testing.assert_allclose(ours, module(x).numpy(), rtol=1e-5, atol=1e-6)


def trained(module):
    """Give batch normalisation statistics and affine weights that matter."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dtype == torch.float32:
            tensor.data = torch.rand_like(tensor) + 0.1
    return module.eval()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Linear(6, 4, bias=False), (3, 5, 6)),
        (nn.LayerNorm(6), (3, 6)),
        (nn.LayerNorm((5, 6), eps=1e-2), (3, 5, 6)),
        (nn.LayerNorm(6, bias=False), (3, 6)),
        (nn.LayerNorm((5, 6), elementwise_affine=False), (3, 5, 6)),
        (nn.BatchNorm1d(6), (3, 6)),
        (nn.BatchNorm1d(6, eps=1e-2), (3, 6, 5)),
        (nn.BatchNorm1d(6, affine=False), (3, 6)),
    ],
    ids=str,
)
def test_plain_layers(module, shape):
    trained(module)
    x = torch.randn(*shape)
    (ours,) = run(from_object(module), x)
    np.testing.assert_allclose(ours, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_embedding():
    module = nn.Embedding(7, 3, padding_idx=0)
    spec = from_object(module)
    assert (spec.inputs[0].dtype, spec.nodes[0].name) == ("int64", "embedding")
    ids = torch.tensor([[0, 6, 2]])
    np.testing.assert_array_equal(run(spec, ids)[0], module(ids).detach().numpy())


class Y(nn.Module):
    """Passes on y only, which plain PyTorch needs between a recurrent layer and the next."""

    def forward(self, result):
        return result[0]


def with_y(layers):
    """The PyTorch model of our meaning of a Sequential: a recurrent layer that is not the last passes on y."""
    expanded = []
    for layer in layers:
        expanded.append(layer)
        if isinstance(layer, (nn.RNNBase, nn.LSTMCell)) and layer is not layers[-1]:
            expanded.append(Y())
    return nn.Sequential(*expanded)


def test_sequential():
    layers = [
        nn.Embedding(9, 6),
        nn.Dropout(0.5),
        nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
        nn.LayerNorm(10),
        nn.Sequential(nn.Identity(), nn.GRU(10, 4, batch_first=True)),
        nn.Tanh(),
        nn.Linear(4, 3),
        nn.LogSoftmax(dim=2),
    ]
    spec = from_object(nn.Sequential(*layers))
    assert [node.name for node in spec.nodes] == ["0", "2", "3", "4.1", "5", "6", "7"]
    assert [node.op for node in spec.nodes] == [
        "embedding",
        "lstm",
        "layer_norm",
        "gru",
        "activation",
        "dense",
        "activation",
    ]
    assert spec.nested_state is False
    assert [(t.name, t.shape, t.dtype) for t in spec.inputs] == [("x", (None, None), "int64")]
    assert [(t.name, t.shape) for t in spec.outputs] == [("y", (None, None, 3))]
    ids = torch.randint(0, 9, (2, 5))
    torch_model = with_y([*layers[:4], layers[4][1], *layers[5:]]).eval()
    np.testing.assert_allclose(run(spec, ids)[0], torch_model(ids).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_sequential_that_ends_in_a_recurrent_layer(batch_first):
    layers = [nn.Linear(3, 4), nn.LSTM(4, 6, proj_size=2, batch_first=batch_first)]
    spec = from_object(nn.Sequential(OrderedDict(zip(["first", "last"], layers, strict=True))))
    assert spec.nested_state is True
    assert [t.name for t in spec.inputs] == ["x"]
    assert [t.name for t in spec.outputs] == ["y", "h_n", "c_n"]
    assert [node.name for node in spec.nodes] == ["first", "last"]
    assert spec.nodes[1].attr("batch_first") is batch_first
    x = torch.randn(2, 5, 3)
    for ours, theirs in zip(run(spec, x), flat(with_y(layers)(x)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sequential_of_cells():
    layers = [nn.GRUCell(3, 4), nn.LSTMCell(4, 5), nn.Linear(5, 2), nn.Softmax(dim=1)]
    spec = from_object(nn.Sequential(*layers))
    assert spec.inputs[0].shape == (None, 3)
    x = torch.randn(6, 3)
    np.testing.assert_allclose(run(spec, x)[0], with_y(layers)(x).detach().numpy(), atol=1e-6)


def test_sequential_of_nothing():
    x = np.ones((2, 3), np.float32)
    for module in (nn.Sequential(), nn.Sequential(nn.Dropout()), nn.Identity()):
        np.testing.assert_array_equal(run(from_object(module), x)[0], x)


def test_modules_called_like_tensors():
    module = nn.Sequential(OrderedDict([("x", nn.Linear(3, 3)), ("y", nn.ReLU()), ("h_n", nn.GRU(3, 2))]))
    assert [node.name for node in from_object(module).nodes] == ["x", "y", "h_n"]


def test_tied_weights():
    module = nn.RNN(4, 4, 2)
    module.weight_hh_l1 = module.weight_hh_l0
    assert len(from_object(module).nodes[0].weights) == 8


class Subclass(nn.LSTM):
    """Could do anything in forward."""


def test_unsupported_modules_are_all_named():
    hooked = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with_hook = nn.Linear(3, 3)
    with_hook.register_forward_pre_hook(lambda module, args: None)
    module = nn.Sequential(
        nn.Conv3d(3, 3, 3), nn.Fold(2, 2), nn.Sequential(Subclass(3, 3)), nn.Embedding(3, 3, max_norm=1.0), hooked,
        with_hook, nn.BatchNorm1d(3, track_running_stats=False), nn.Softplus(beta=2), nn.Hardshrink(), nn.Linear(3, 3),
    )  # fmt: skip
    with pytest.raises(UnsupportedError) as error:
        from_object(module)
    for part in ("0 (Conv3d)", "1 (Fold)", "2.0 (Subclass, a subclass of nn.LSTM)", "3 (Embedding with max_norm",
                 "4 (ParametrizedLinear", "5 (Linear with forward hooks", "6 (BatchNorm1d without", "7 (Softplus",
                 "8 (Hardshrink)"):  # fmt: skip
        assert part in str(error.value)
    assert "9 (" not in str(error.value)


def test_what_does_not_fit():
    with pytest.raises(ShapeError, match="1: takes 5 features, but gets 4"):
        from_object(nn.Sequential(nn.Linear(3, 4), nn.GRU(5, 2)))
    with pytest.raises(UnsupportedError, match="must be the first layer"):
        from_object(nn.Sequential(nn.Linear(3, 4), nn.Embedding(4, 2)))
    with pytest.raises(UnsupportedError, match="last axis"):
        from_object(nn.Sequential(nn.GRU(3, 4), nn.Softmax(dim=1)))
    with pytest.raises(UnsupportedError, match="last axis"):
        from_object(nn.Softmax(dim=-2))
    with pytest.raises(UnsupportedError, match=r"module or a state_dict|Module or a state_dict"):
        from_object(42)
    with pytest.raises(UnsupportedError, match="pass the part alone"):
        from_object(nn.Sequential(nn.Linear(3, 4)), prefix="0.")
    endless = nn.Sequential()
    endless.append(endless)
    with pytest.raises(UnsupportedError, match="nested deeper"):
        from_object(endless)
