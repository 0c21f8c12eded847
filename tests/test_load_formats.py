"""The registry: which loader gets a file, and single layers of formats that describe their layers."""

from pathlib import Path

import hostile_native
import hostile_torch
import make_hostile
import numpy as np
import pytest
from cases import layer_nodes
from published import MODELS

from fastrnn import LSTM
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import FORMATS, find_format, load_spec, load_tensors

FILES = {
    "native": hostile_native.frnn(),
    "safetensors": make_hostile.one(),
    "torch": hostile_torch.GOOD_PT,
    "keras": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "onnx": b"\x08\x07\x12\x07pytorch",
}


def test_rows():
    """Each row is complete, names and suffixes are unique, and a valid file is of its own format."""
    suffixes = [suffix for row in FORMATS for suffix in row.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert {row.name for row in FORMATS} == set(FILES), "give the new format a file here"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", ["", ".bin", ".pt", ".safetensors", ".frnn", ".h5", ".onnx"])
def test_contents_decide(tmp_path, name, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FILES[name])
    assert find_format(path).name == name


def test_a_keras_archive_is_told_from_a_torch_archive(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(hostile_torch.pt(b"", {"config.json": b"{}"}).replace(b"m/data.pkl", b"m/data.xxx"))
    assert find_format(path).name == "keras"


@pytest.mark.parametrize(
    ("suffix", "name"), [(".pt", "torch"), (".KERAS", "keras"), (".frnn", "native"), (".onnx", "onnx")]
)
def test_the_suffix_decides_where_the_contents_are_damaged(tmp_path, suffix, name):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"PK\x03\x04 truncated")
    assert find_format(path).name == name


def test_nothing_decides(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"what is this?")
    with pytest.raises(FormatError, match=r"b'what is ', which no known format does; expected one of \.frnn"):
        load_spec(path)
    with pytest.raises(FormatError, match="no known format"):
        load_tensors(path)
    path = tmp_path / "model.ort"
    path.write_bytes(b"\x18\x00\x00\x00ORTM")
    with pytest.raises(UnsupportedError, match="ONNX Runtime's own format"):
        layer_nodes(path, ["a"])


@pytest.mark.parametrize("name", ["native", "safetensors", "torch"])
def test_unknown_options_are_refused(tmp_path, name):
    path = tmp_path / "model"
    path.write_bytes(FILES[name])
    with pytest.raises(UnsupportedError, match=f"read as {name}, which has no option 'config', 'outputs'"):
        load_spec(path, config=1, outputs=["y"])


def models(*parts: str) -> Path:
    pytest.importorskip("h5py")
    path = MODELS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; set FASTRNN_MODELS to the folder of the shared models")
    return path


def test_layers_of_a_keras_model():
    path = models("stock_lstm", "AAPL", "model.keras")
    names = [node.name for node in load_spec(path).nodes if node.weights]
    nodes = layer_nodes(path, names)
    assert {node.op for node in nodes.values()} == {"lstm", "dense"}
    assert nodes[names[0]].inputs == ("x", "h_0", "c_0")
    by_config = layer_nodes(path.with_name("extracted_model.weights.h5"), [names[0]], config=path)
    np.testing.assert_array_equal(by_config[names[0]].weights["weight_hh_l0"], nodes[names[0]].weights["weight_hh_l0"])
    with pytest.raises(FormatError, match=f"{names[0]} is lstm, not gru"):
        layer_nodes(path, {names[0]: "gru"})
    with pytest.raises(FormatError, match="absent"):
        layer_nodes(path, ["absent"])


def test_layers_of_keras_weights_without_a_configuration():
    path = models("textgenrnn", "textgenrnn_weights.hdf5")
    assert layer_nodes(path, {"rnn_1": "LSTM"})["rnn_1"].op == "lstm"
    assert layer_nodes(path, ["rnn_1"])["rnn_1"].op == layer_nodes(path, {"rnn_1": LSTM})["rnn_1"].op == "lstm"
