"""The native format: what goes in comes out, any reader of safetensors opens it, damage is found."""

import json
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import hostile_native
import hostile_torch
import numpy as np
import pytest
from cases import layer_nodes
from fuzz_operators import operator_specs
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn.errors
from fastrnn import reference
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import load_spec, load_tensors
from fastrnn.loaders.native import save_spec, spec_from_bytes, spec_to_bytes
from fastrnn.loaders.safetensors import save_tensors
from fastrnn.spec import ACTIVATIONS, DTYPES, OPS, ROW_ACTIVATIONS, Graph, ModelSpec, Node, Tensor


def a_model() -> ModelSpec:
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    recurrent = Node(
        "lstm", "encoder", ("e", "", "", "m"), ("a", "", ""),
        {
            "num_layers": 1, "direction": "reverse", "gate_activation": ("hard_sigmoid", 1 / 6, 0.5), "clip": None,
            "cell_clip": 3.5, "batch_first": False, "coupled_input_forget": True,
        },
        {"weight_ih_l0": array(8, 3), "weight_hh_l0": array(8, 2), "peephole_l0": array(6,)},
    )  # fmt: skip
    nodes = [
        Node("embedding", "words", ("ids",), ("e", "m"), {"mask_zero": True}, {"weight": array(5, 3)}),
        recurrent,
        Node("activation", "clamp", ("a",), ("b",), {"activation": ("hard_tanh", 0.0, float("inf"))}),
        Node("layer_norm", "norm", ("b",), ("c",), {"eps": np.float32(1e-3), "axes": 2}),
        Node("dense", "été", ("c",), ("y",), {"activation": "softmax"}, {"weight": array(2, 2), "bias": array(2)}),
    ]
    return ModelSpec(nodes, [Tensor("ids", (None, None), "int64")], [Tensor("y", None)], source="words.keras")


def assert_same(found: ModelSpec, expected: ModelSpec) -> None:
    assert (found.nested_state, found.source) == (expected.nested_state, expected.source)
    assert_same_arrays(found.recorded, expected.recorded)
    assert_same_graph(found, expected)


def assert_same_arrays(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def assert_same_graph(found: Graph, expected: Graph) -> None:
    assert (found.inputs, found.outputs) == (expected.inputs, expected.outputs)
    assert_same_arrays(found.constants, expected.constants)
    for ours, theirs in zip(found.nodes, expected.nodes, strict=True):
        assert (ours.op, ours.name, ours.inputs, ours.outputs) == (
            theirs.op,
            theirs.name,
            theirs.inputs,
            theirs.outputs,
        )
        assert ours.attrs == {k: tuple(v) if isinstance(v, list) else v for k, v in theirs.attrs.items()}
        assert {k: type(v) for k, v in ours.attrs.items() if k != "eps" and not isinstance(v, tuple)} == {
            k: type(v) for k, v in theirs.attrs.items() if k != "eps" and not isinstance(v, (tuple, list))
        }
        assert_same_arrays(ours.weights, theirs.weights)
        assert list(ours.graphs) == list(theirs.graphs)
        for name, body in theirs.graphs.items():
            assert_same_graph(ours.graphs[name], body)


def test_round_trip(tmp_path):
    spec = a_model()
    save_spec(spec, tmp_path / "m.frnn")
    assert (tmp_path / "m.frnn").read_bytes() == spec_to_bytes(spec)
    for found in (load_spec(tmp_path / "m.frnn"), spec_from_bytes(spec_to_bytes(spec))):
        assert_same(found, spec)
        assert not found.nodes[0].weights["weight"].flags.writeable
    assert spec_to_bytes(load_spec(tmp_path / "m.frnn")) == spec_to_bytes(spec)
    assert type(load_spec(tmp_path / "m.frnn").nodes[3].attrs["eps"]) is float


def test_constants_and_bodies_come_back(tmp_path):
    spec = hostile_native.branching_spec()
    spec.constants |= {dtype: np.array([[1, 0]], dtype) for dtype in DTYPES}
    spec.constants |= {"none": np.zeros((0, 3), np.int32), "c.weight": np.ones(1, "f"), "x" * 2000: np.ones(2, "f")}
    save_spec(spec, tmp_path / "m.frnn")
    found = load_spec(tmp_path / "m.frnn")
    assert_same(found, spec)
    assert not found.constants["int32"].flags.writeable
    assert not found.nodes[2].graphs["then"].constants["step_then"].flags.owndata
    x = np.ones((1, 2, 4), np.float32)
    np.testing.assert_array_equal(reference.run(found, {"x": x})["y"], reference.run(spec, {"x": x})["y"])


@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in operator_specs()])
def test_every_operator_comes_back(spec):
    assert_same(spec_from_bytes(spec_to_bytes(spec)), spec)


def test_every_operator_is_tried():
    assert {node.op for _, spec in operator_specs() for node in spec.all_nodes()} == OPS.keys() - {"operator"}


def version_1(spec: ModelSpec) -> bytes:
    """A file as version 1 wrote it."""
    tensors = {f"{node.name}.{key}": array for node in spec.nodes for key, array in node.weights.items()}
    described = {
        "nodes": [
            {"op": node.op, "name": node.name, "inputs": node.inputs, "outputs": node.outputs, "attrs": node.attrs,
             "weights": list(node.weights)}
            for node in spec.nodes
        ],
        "inputs": [vars(tensor) for tensor in spec.inputs],
        "outputs": [vars(tensor) for tensor in spec.outputs],
        "nested_state": spec.nested_state,
        "source": spec.source,
    }  # fmt: skip
    text, data, header, begin = json.dumps(described), b"", {}, 0
    checksums = {"spec": zlib.crc32(text.encode())}
    for name, array in tensors.items():
        checksums[f"tensor {name}"] = zlib.crc32(array.tobytes(), zlib.crc32(f"F32{list(array.shape)}".encode()))
        data += array.tobytes()
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, len(data)]}
        begin = len(data)
    metadata = {"format": "fastrnn", "version": "1", "spec": text, "checksums": json.dumps(checksums)}
    head = json.dumps({"__metadata__": metadata, **header}).encode()
    return len(head).to_bytes(8, "little") + head + data


def test_version_1_opens():
    spec = a_model()
    spec.nodes[2].attrs, spec.nodes[3].attrs["eps"] = {"activation": "relu"}, 1e-3  # what JSON has
    assert_same(spec_from_bytes(version_1(spec)), spec)
    damaged = version_1(spec).replace(rb"\"weights\": [\"weight\"]", rb"\"weights\": [\"weighs\"]")
    with pytest.raises(FormatError, match="the spec itself"):
        spec_from_bytes(damaged)


def test_bytes_like_buffers():
    data = spec_to_bytes(a_model())
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).data):
        assert_same(spec_from_bytes(buffer), a_model())


def test_attributes_of_any_value_come_back():
    numbers = st.one_of(st.none(), st.floats(allow_nan=False, width=32), st.integers(-(2**63), 2**63))
    bounds = st.one_of(st.none(), st.floats(0, exclude_min=True, width=32), st.integers(1, 2**63))
    names = st.sampled_from([name for name in ACTIVATIONS if name not in ROW_ACTIVATIONS])

    @settings(max_examples=50, deadline=None)
    @given(bounds, st.tuples(names, numbers, numbers))
    def check(bound, activation):
        node = Node("rnn", "a", ("x",), ("y",), {"clip": bound, "activation": activation})
        node.weights = {"weight_ih_l0": np.ones((1, 1), "f"), "weight_hh_l0": np.ones((1, 1), "f")}
        spec = ModelSpec([node], [Tensor("x", None)], [Tensor("y", None)])
        assert spec_from_bytes(spec_to_bytes(spec)).nodes[0].attrs == node.attrs

    check()


def test_weights_of_any_layout():
    spec = a_model()
    weights = spec.nodes[4].weights
    weights["weight"] = np.asfortranarray(weights["weight"])
    weights["bias"] = weights["bias"].astype(">f8")[::-1]
    found = spec_from_bytes(spec_to_bytes(spec)).nodes[4].weights
    np.testing.assert_array_equal(found["weight"], weights["weight"])
    np.testing.assert_array_equal(found["bias"], weights["bias"])


def test_the_safetensors_package_opens_it(tmp_path):
    package = pytest.importorskip("safetensors")
    save_spec(a_model(), tmp_path / "m.frnn")
    with package.safe_open(tmp_path / "m.frnn", "np") as file:
        assert set(file.keys()) == set(load_tensors(tmp_path / "m.frnn"))
        np.testing.assert_array_equal(file.get_tensor("été.bias"), a_model().nodes[4].weights["bias"])
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("fastrnn", "2")
    assert [node["op"] for node in json.loads(metadata["spec"])["nodes"]] == [
        "embedding", "lstm", "activation", "layer_norm", "dense",
    ]  # fmt: skip


def test_every_damaged_byte_is_found():
    """A change of any byte is an error, or changes nothing (as in the padding of the header)."""
    spec = a_model()
    data = spec_to_bytes(spec)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x04
        try:
            found = spec_from_bytes(changed)
        except (FormatError, UnsupportedError):
            continue
        assert_same(found, spec)


def test_saved_with_the_usual_permissions(tmp_path):
    save_spec(a_model(), tmp_path / "m.frnn")
    (tmp_path / "other").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "m.frnn").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.frnn"
    save_spec(a_model(), path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_spec(a_model(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.frnn"]


def test_plain_weights_are_no_model(tmp_path):
    save_tensors({"weight": np.ones(2, "f")}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match="not of the format 'fastrnn': its metadata say None"):
        spec_from_bytes((tmp_path / "m.safetensors").read_bytes())


def test_what_cannot_be_saved():
    spec = a_model()
    spec.nodes[0].attrs["mask_zero"] = object()
    with pytest.raises(FormatError, match=r"'words': attribute 'mask_zero' is <object .*expected True or False"):
        spec_to_bytes(spec)
    spec = a_model()
    spec.nodes[0].attrs["unknown"] = 1
    with pytest.raises(FormatError, match="unknown attribute 'unknown'"):
        spec_to_bytes(spec)


def test_layers_of_a_native_file(tmp_path):
    save_spec(a_model(), tmp_path / "m.frnn")
    nodes = layer_nodes(tmp_path / "m.frnn", {"encoder": "lstm", "words": None})
    assert nodes["encoder"].inputs == ("x", "h_0", "c_0")
    assert nodes["encoder"].attr("cell_clip") == 3.5
    assert list(nodes) == ["encoder", "words"]
    with pytest.raises(FormatError, match=r"'decoder'.*its layers.*'encoder'"):
        layer_nodes(tmp_path / "m.frnn", ["decoder"])
    with pytest.raises(FormatError, match="encoder is lstm, not gru"):
        layer_nodes(tmp_path / "m.frnn", {"encoder": "gru"})


def test_reading_needs_only_numpy(tmp_path):
    """None of the packages that write these formats is imported, not even if it is there."""
    save_spec(a_model(), tmp_path / "m.frnn")
    (tmp_path / "m.pt").write_bytes(hostile_torch.GOOD_PT)
    save_tensors({"weight_ih_l0": np.ones((3, 2)), "weight_hh_l0": np.ones((3, 1))}, tmp_path / "m.safetensors")
    script = """if True:
        import sys, numpy as np
        from fastrnn.loaders import load_spec
        from fastrnn.loaders.torch import from_object
        for suffix in ("frnn", "pt", "safetensors"):
            load_spec(f"m.{suffix}")
        from_object({"weight_ih_l0": np.ones((4, 2)), "weight_hh_l0": np.ones((4, 1))})
        found = {"torch", "safetensors", "h5py", "keras", "onnx"} & set(sys.modules)
        assert not found, found
    """
    paths = [str(Path(fastrnn.errors.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


def test_options_of_other_formats_are_refused(tmp_path):
    save_spec(a_model(), tmp_path / "m.frnn")
    with pytest.raises(UnsupportedError, match=r"read as native, which has no option 'prefix'"):
        load_spec(tmp_path / "m.frnn", prefix="a.")


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_without_axes_stay_arrays(dtype, tmp_path):
    """NumPy makes scalars of them at the first operation."""
    node = Node("identity", "same", ("x",), ("y",))
    spec = ModelSpec([node], [Tensor("x", ())], [Tensor("y", ())], {"k": np.array(1, dtype)})
    save_spec(spec, tmp_path / "number.frnn")
    found = load_spec(tmp_path / "number.frnn").constants["k"]
    assert (np.asarray(found).dtype, np.shape(found), found == 1) == (np.dtype(dtype), (), True)
    fastrnn.Model(load_spec(tmp_path / "number.frnn"))
