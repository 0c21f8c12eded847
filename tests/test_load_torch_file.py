"""PyTorch's .pt files, against PyTorch itself."""

from collections import OrderedDict

import numpy as np
import pytest
from cases import layer_nodes
from published import MODELS

from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.loaders import load_spec, load_tensors

torch = pytest.importorskip("torch")
from test_load_torch import assert_same, run, save  # noqa: E402

nn = torch.nn

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


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
    assert np.shares_memory(found["base"], found["offset"])  # no copies: two views of one storage


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

    nodes = layer_nodes(path, ["rnn", "state_dict.head"])
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
    with pytest.raises(UnsupportedError, match=r"before PyTorch 1\.6.*torch\.save"):
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
        load_tensors(save({"loss": np.float64(0.5)}, path))


# Layers of larger files


def test_load_layer_specs(tmp_path):
    model = nn.ModuleDict({
        "rnn": nn.RNN(3, 4), "cell": nn.LSTMCell(4, 5), "fc": nn.Linear(5, 2), "words": nn.Embedding(9, 3),
        "norm": nn.LayerNorm(5), "batch": nn.BatchNorm1d(5), "conv": nn.Conv1d(3, 3, 3),
    })  # fmt: skip
    path = save(model.state_dict(), tmp_path / "t.pt")
    nodes = layer_nodes(path, ["rnn", "cell.", "fc", "batch"])
    assert {name: node.op for name, node in nodes.items()} == {
        "rnn": "rnn", "cell.": "lstm", "fc": "dense", "batch": "batch_norm",
    }  # fmt: skip
    assert nodes["batch"].attr("channels_first") is True
    assert_same(nodes["batch"].weights["var"], model["batch"].running_var)
    assert nodes["rnn"].inputs == ("x", "h_0")

    class LayerNorm:
        op = "layer_norm"

    nodes = layer_nodes(path, {"norm": LayerNorm, "words": "embedding", "rnn": None})
    assert [node.op for node in nodes.values()] == ["layer_norm", "embedding", "rnn"]
    assert_same(nodes["norm"].weights["weight"], model["norm"].weight)

    with pytest.raises(FormatError, match=r"'a', 'b'.*its layers.*'norm'"):
        layer_nodes(path, ["a", "rnn", "b"])
    for name in ("words", "norm", "conv"):
        with pytest.raises(UnsupportedError, match="pass a mapping"):
            layer_nodes(path, [name])
    for name, kind in (("rnn", "gru"), ("fc", "layer_norm"), ("norm", "dense"), ("fc", "embedding"), ("fc", "lstm")):
        with pytest.raises((FormatError, ShapeError)):
            layer_nodes(path, {name: kind})
    with pytest.raises(UnsupportedError, match="fc: conv"):
        layer_nodes(path, {"fc": "conv"})
    with pytest.raises(UnsupportedError, match="fc: activation"):
        layer_nodes(path, {"fc": "activation"})
    with pytest.raises(UnsupportedError, match="list of names"):
        layer_nodes(path, "fc")
    with pytest.raises(UnsupportedError, match="no option 'prefix'"):
        layer_nodes(path, ["fc"], prefix="x")


def test_load_layer_specs_in_two_places(tmp_path):
    state = {f"rnn.{k}": v for k, v in nn.GRU(3, 4).state_dict().items()}
    path = save({"model": state, "ema": {k: v + 1 for k, v in state.items()}}, tmp_path / "t.pt")
    with pytest.raises(FormatError, match=r"'ema\.rnn', 'model\.rnn'"):
        layer_nodes(path, ["rnn"])
    nodes = layer_nodes(path, ["ema.rnn", "model.rnn"])
    assert_same(nodes["ema.rnn"].weights["bias_hh_l0"], state["rnn.bias_hh_l0"] + 1)
    path = save(nn.GRU(3, 4).state_dict(), tmp_path / "t.pt")
    assert layer_nodes(path, [""])[""].name == "gru"


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
