"""PyTorch: live modules, state_dicts and .pt files, against PyTorch itself."""

import copy
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.loaders import load_layer_nodes, load_spec, load_tensors
from fastrnn.loaders.torch import from_object
from fastrnn.spec import ModelSpec

torch = pytest.importorskip("torch")
nn = torch.nn

MODELS = Path(os.environ.get("FASTRNN_MODELS", Path(__file__).parents[2] / "shared" / "models"))

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


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


# .pt files


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_file_dtypes(tmp_path, dtype):
    tensors = {
        "matrix": torch.arange(24).reshape(4, 6).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "vector": torch.tensor([1, 0, 2]).to(dtype),
        "empty": torch.zeros(0, 5).to(dtype),
    }
    found = load_tensors(save(tensors, tmp_path / "t.pt"))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)


def test_file_float_bits(tmp_path):
    """Every bit pattern of the 16-bit floats comes through, NaN and subnormals included."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        tensor = bits.view(dtype)
        found = load_tensors(save({"t": tensor}, tmp_path / "t.pt"))["t"]
        np.testing.assert_array_equal(found.astype(np.float32), tensor.float().numpy())


def test_file_views(tmp_path):
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    tensors = {
        "base": base,
        "transposed": base.permute(3, 1, 0, 2),
        "sliced": base[:, 1:, ::2, 3:4],
        "offset": base[1, 2],
        "row": base[0, 0, 0],
        "diagonal": torch.diagonal(base[0, :, :3]),
        "one": base[1:, 2:, 3:, 4:],
        "again": base,
    }
    found = load_tensors(save(tensors, tmp_path / "t.pt"))
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)
    assert not found["base"].flags.writeable
    assert np.shares_memory(found["base"], found["offset"])  # no copies: two views of the mapped file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_file_protocols(tmp_path, protocol):
    state = nn.LSTM(3, 4).state_dict()
    found = load_tensors(save(state, tmp_path / "t.pt", pickle_protocol=protocol))
    for name, tensor in state.items():
        assert_same(found[name], tensor)


def test_file_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"t": torch.ones(3)}, tmp_path / "t.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_tensors(path)["t"].tolist() == [1, 1, 1]


def test_file_nested_checkpoint(tmp_path):
    layer = nn.GRU(3, 4)
    head = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2, 3))[0].sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3, "best": 0.5, "name": "net", "bytes": b"\xff", "classes": {"a", "b"}, "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"), "dtype": torch.float32, "big": 10**30, "none": None, "ids": {0: "a", 1.5: "b"},
        "optimizer": optimizer.state_dict(),
        "state_dict": OrderedDict([*((f"rnn.{k}", v) for k, v in layer.state_dict().items()),
                                   *((f"head.{k}", v) for k, v in head.state_dict().items())]),
        "parameters": list(head.parameters()),
    }  # fmt: skip
    path = save(checkpoint, tmp_path / "t.pt")
    found = load_tensors(path)
    assert_same(found["state_dict.rnn.weight_ih_l0"], layer.weight_ih_l0)
    assert_same(found["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert_same(found["parameters.1"], head.bias)

    nodes = load_layer_nodes(path, ["rnn", "state_dict.head"])
    assert [nodes[name].op for name in nodes] == ["gru", "dense"]
    assert_same(nodes["rnn"].weights["weight_hh_l0"], layer.weight_hh_l0)
    assert_same(nodes["state_dict.head"].weights["bias"], head.bias)

    with pytest.raises(FormatError, match=r"prefix='state_dict.rnn.'.*load_layers"):
        load_spec(path)
    spec = load_spec(path, prefix="state_dict.rnn")
    assert spec.nodes[0].op == "gru"
    path.write_bytes(bytes(path.stat().st_size))  # the model does not depend on the file any more
    assert_same(spec.nodes[0].weights["weight_ih_l0"], layer.weight_ih_l0)


def test_file_of_parameters(tmp_path):
    layer = nn.RNN(2, 3)
    layer.weight_ih_l0.note = "an attribute"
    spec = load_spec(save(dict(layer.named_parameters()), tmp_path / "t.pt"))
    assert_same(spec.nodes[0].weights["weight_ih_l0"], layer.weight_ih_l0)


def test_file_refused(tmp_path):
    path = tmp_path / "t.pt"
    with pytest.raises(UnsupportedError, match=r"torch\.nn\.modules\.rnn\.LSTM.*state_dict"):
        load_spec(save(nn.LSTM(2, 3), path))
    with pytest.raises(UnsupportedError, match=r"before PyTorch 1\.6.*state_dict"):
        load_spec(save(nn.LSTM(2, 3).state_dict(), path, _use_new_zipfile_serialization=False))
    with pytest.raises(UnsupportedError, match="a single tensor"):
        load_tensors(save(torch.ones(3), path))
    with pytest.raises(UnsupportedError, match=r"expanded.*contiguous"):
        load_tensors(save({"t": torch.ones(1).expand(1000)}, path))
    with pytest.raises(UnsupportedError, match="_rebuild_sparse_tensor"):
        load_tensors(save({"t": torch.eye(3).to_sparse()}, path))
    with pytest.raises(UnsupportedError, match="_rebuild_meta_tensor"):
        load_tensors(save({"t": torch.ones(3, device="meta")}, path))
    with pytest.raises(UnsupportedError, match="float8_e4m3fn"):
        load_tensors(save({"t": torch.ones(3).to(torch.float8_e4m3fn)}, path))
    with pytest.raises(UnsupportedError, match=r"multiarray\.scalar', 'numpy\.dtype'"):
        load_tensors(save({"t": torch.ones(3), "loss": np.float64(0.5)}, path))


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.LSTM(2, 3)), path)
    with pytest.raises(UnsupportedError, match=r"TorchScript.*state_dict"):
        load_spec(path)


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
        nn.Conv1d(3, 3, 3), nn.Flatten(), nn.Sequential(Subclass(3, 3)), nn.Embedding(3, 3, max_norm=1.0), hooked,
        with_hook, nn.BatchNorm1d(3, track_running_stats=False), nn.Softplus(beta=2), nn.PReLU(), nn.Linear(3, 3),
    )  # fmt: skip
    with pytest.raises(UnsupportedError) as error:
        from_object(module)
    for part in ("0 (Conv1d)", "1 (Flatten)", "2.0 (Subclass, a subclass of nn.LSTM)", "3 (Embedding with max_norm",
                 "4 (ParametrizedLinear", "5 (Linear with forward hooks", "6 (BatchNorm1d without", "7 (Softplus",
                 "8 (PReLU)"):  # fmt: skip
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


# Layers of larger files


def test_load_layer_nodes(tmp_path):
    model = nn.ModuleDict({
        "rnn": nn.RNN(3, 4), "cell": nn.LSTMCell(4, 5), "fc": nn.Linear(5, 2), "words": nn.Embedding(9, 3),
        "norm": nn.LayerNorm(5), "batch": nn.BatchNorm1d(5), "conv": nn.Conv1d(3, 3, 3),
    })  # fmt: skip
    path = save(model.state_dict(), tmp_path / "t.pt")
    nodes = load_layer_nodes(path, ["rnn", "cell.", "fc", "batch"])
    assert {name: node.op for name, node in nodes.items()} == {
        "rnn": "rnn", "cell.": "lstm", "fc": "dense", "batch": "batch_norm",
    }  # fmt: skip
    assert nodes["batch"].attr("channels_first") is True
    assert_same(nodes["batch"].weights["var"], model["batch"].running_var)
    assert nodes["rnn"].inputs == ("x", "h_0")

    class LayerNorm:
        op = "layer_norm"

    nodes = load_layer_nodes(path, {"norm": LayerNorm, "words": "embedding", "rnn": None})
    assert [node.op for node in nodes.values()] == ["layer_norm", "embedding", "rnn"]
    assert_same(nodes["norm"].weights["weight"], model["norm"].weight)

    with pytest.raises(FormatError, match=r"'a', 'b'.*its layers.*'norm'"):
        load_layer_nodes(path, ["a", "rnn", "b"])
    for name in ("words", "norm", "conv"):
        with pytest.raises(UnsupportedError, match="pass a mapping"):
            load_layer_nodes(path, [name])
    for name, kind in (("rnn", "gru"), ("fc", "layer_norm"), ("norm", "dense"), ("fc", "embedding"), ("fc", "lstm")):
        with pytest.raises((FormatError, ShapeError)):
            load_layer_nodes(path, {name: kind})
    with pytest.raises(UnsupportedError, match="fc: conv"):
        load_layer_nodes(path, {"fc": "conv"})
    with pytest.raises(UnsupportedError, match="fc: activation"):
        load_layer_nodes(path, {"fc": "activation"})
    with pytest.raises(UnsupportedError, match="list of names"):
        load_layer_nodes(path, "fc")
    with pytest.raises(UnsupportedError, match="no option 'prefix'"):
        load_layer_nodes(path, ["fc"], prefix="x")


def test_load_layer_nodes_in_two_places(tmp_path):
    state = {f"rnn.{k}": v for k, v in nn.GRU(3, 4).state_dict().items()}
    path = save({"model": state, "ema": {k: v + 1 for k, v in state.items()}}, tmp_path / "t.pt")
    with pytest.raises(FormatError, match=r"'ema\.rnn', 'model\.rnn'"):
        load_layer_nodes(path, ["rnn"])
    nodes = load_layer_nodes(path, ["ema.rnn", "model.rnn"])
    assert_same(nodes["ema.rnn"].weights["bias_hh_l0"], state["rnn.bias_hh_l0"] + 1)
    path = save(nn.GRU(3, 4).state_dict(), tmp_path / "t.pt")
    assert load_layer_nodes(path, [""])[""].name == "gru"


# A real checkpoint


def test_emotion_bilstm():
    folder = MODELS / "emotion_bilstm"
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set FASTRNN_MODELS to the folder of the shared models")
    path = folder / "models" / "emotion_bilstm_attention.pt"
    theirs = torch.load(path, weights_only=True)["state_dict"]
    ours = load_tensors(path)
    assert set(ours) == {f"state_dict.{name}" for name in theirs}
    for name, tensor in theirs.items():
        assert_same(ours[f"state_dict.{name}"], tensor)
    recorded = np.load(folder / "reference_io.npz")
    spec = load_spec(path, prefix="state_dict.bilstm.")
    results = run(spec, recorded["lstm_in_first32"])
    for name, array in zip(("lstm_out_first32", "hn_first32", "cn_first32"), results, strict=True):
        np.testing.assert_allclose(array, recorded[name], atol=2e-6)
