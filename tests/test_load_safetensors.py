"""The .safetensors reader and writer, against the safetensors package."""

import json
import struct

import numpy as np
import pytest
from cases import layer_nodes
from published import MODELS

from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import load_spec, load_tensors
from fastrnn.loaders.safetensors import chunks, save_tensors

DTYPES = [
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
ARRAYS = {dtype: np.arange(24).reshape(4, 6).astype(dtype) for dtype in DTYPES} | {
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "gates.é": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
}  # fmt: skip


def lstm_weights(hidden_size: int = 4, input_size: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "weight_ih_l0": (4 * hidden_size, input_size), "weight_hh_l0": (4 * hidden_size, hidden_size),
        "bias_ih_l0": (4 * hidden_size,), "bias_hh_l0": (4 * hidden_size,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_we_read_what_the_package_writes(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    package.save_file(ARRAYS, tmp_path / "t.safetensors", metadata={"format": "np"})
    found = load_tensors(tmp_path / "t.safetensors")
    assert_same(found, ARRAYS)
    assert not found["float32"].flags.writeable


def test_the_package_reads_what_we_write(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    save_tensors(ARRAYS, tmp_path / "t.safetensors", {"key": "value é"})
    assert_same(package.load_file(tmp_path / "t.safetensors"), ARRAYS)
    with pytest.importorskip("safetensors").safe_open(tmp_path / "t.safetensors", "np") as file:
        assert file.metadata() == {"key": "value é"}


def test_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    package.save_file({"t": bits.view(torch.bfloat16)}, tmp_path / "t.safetensors")
    np.testing.assert_array_equal(
        load_tensors(tmp_path / "t.safetensors")["t"], bits.view(torch.bfloat16).float().numpy()
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_model_of_a_torch_state_dict(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    state = torch.nn.GRU(3, 4, 2, bidirectional=True).to(getattr(torch, dtype)).state_dict()
    package.save_file({f"encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "t.safetensors")
    node = load_spec(tmp_path / "t.safetensors", prefix="encoder.").nodes[0]
    assert (node.op, node.attr("num_layers"), node.attr("direction")) == ("gru", 2, "bidirectional")
    assert_same(node.weights, {name: tensor.float().numpy() for name, tensor in state.items()})
    assert all(array.dtype == np.float32 and array.flags.aligned for array in node.weights.values())
    assert layer_nodes(tmp_path / "t.safetensors", ["encoder"])["encoder"].op == "gru"
    with pytest.raises(FormatError, match=r"prefix='encoder\.'"):
        load_spec(tmp_path / "t.safetensors")


def test_written_arrays_of_any_layout(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"transposed": base.T, "strided": base[::2, 1::2], "big": base.astype(">f4"), "int": base.astype(">i8")}
    save_tensors(arrays, tmp_path / "t.safetensors")
    assert_same(load_tensors(tmp_path / "t.safetensors"), {
        name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()
    })  # fmt: skip


def test_first_tensor_is_aligned():
    data = b"".join(chunks({"a": np.ones(3, np.int8), "b": np.ones(2)}))
    (length,) = struct.unpack_from("<Q", data)
    assert (8 + length) % 64 == 0
    assert json.loads(data[8 : 8 + length])["b"]["data_offsets"] == [0, 16]  # wider elements first: each is aligned


def test_unaligned_file(tmp_path):
    """Others may write a header of any length."""
    raw = b'{"weight_hh_l0":{"dtype":"F32","shape":[4,1],"data_offsets":[0,16]},' \
          b'"weight_ih_l0":{"dtype":"F32","shape":[4,1],"data_offsets":[16,32]}}'  # fmt: skip
    raw += b" " * (-(8 + len(raw)) % 4 + 1)
    values = np.arange(8, dtype="<f4")
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + values.tobytes())
    node = load_spec(tmp_path / "t.safetensors").nodes[0]
    assert node.weights["weight_ih_l0"].ravel().tolist() == [4, 5, 6, 7]
    assert node.weights["weight_ih_l0"].flags.aligned


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors({"a": np.ones(3)}, path)
    mapped = load_tensors(path)["a"]
    with pytest.raises(UnsupportedError, match="complex64"):
        save_tensors({"a": np.ones(3, np.complex64)}, path)
    assert load_tensors(path)["a"].tolist() == [1, 1, 1]
    save_tensors({"a": np.zeros(5)}, path)
    assert load_tensors(path)["a"].tolist() == [0] * 5
    assert mapped.tolist() == [1, 1, 1]  # the old file lives as long as its views
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_written_through_a_link(tmp_path):
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    save_tensors({"a": np.ones(3)}, tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    assert load_tensors(tmp_path / "real.safetensors")["a"].tolist() == [1, 1, 1]


def test_contents_count_for_more_than_the_suffix(tmp_path):
    save_tensors(lstm_weights(), tmp_path / "model.pt")
    assert load_spec(tmp_path / "model.pt").nodes[0].op == "lstm"


def test_silero():
    path = MODELS / "silero_vad" / "silero_vad_16k.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent; set FASTRNN_MODELS to the folder of the shared models")
    package = pytest.importorskip("safetensors.numpy")
    assert_same(load_tensors(path), package.load_file(path))
    node = layer_nodes(path, ["lstm_cell"])["lstm_cell"]
    assert (node.op, node.attr("unbatched")) == ("lstm", True)
    np.testing.assert_array_equal(node.weights["weight_ih_l0"], package.load_file(path)["lstm_cell.weight_ih"])
    with pytest.raises(UnsupportedError, match="conv1"):
        layer_nodes(path, ["conv1"])
