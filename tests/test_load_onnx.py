"""ONNX files as graphs: names, constants, bodies, functions, parts of a model, real models."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import layer_nodes
from onnx_cases import (
    assert_close,
    engines,
    floats,
    graph,
    helper,
    model,
    node,
    numpy_helper,
    onnx,
    ours,
    spec_of,
    theirs,
)
from published import MODELS
from tolerances import TWO_FLOAT32

import fastrnn
from fastrnn import reference
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import find_format, load_spec, load_tensors
from fastrnn.loaders import onnx as loader

X = {"x": floats(3, 4)}
BOOL, INT, FLOAT = onnx.TensorProto.BOOL, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT


def typed(name: str, kind: int, shape: list[Any] | None = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None) -> Any:
    made = graph(nodes, inputs, [], weights)
    made.output.extend(outputs)
    return made


def ops(proto: Any) -> list[str]:
    return [n.op for n in spec_of(proto).nodes]


def check(proto: Any, feeds: dict[str, np.ndarray], tolerance: float = TWO_FLOAT32) -> None:
    want = theirs(proto, feeds)
    assert_close(ours(proto, feeds), want, tolerance)
    assert_close(engines(proto, feeds), want, tolerance)


# ---- Names, types, constants ----


def test_names_and_types_are_those_of_the_file():
    nodes = [node("Relu", ["x:0"], ["h"]), node("Shape", ["h"], ["s"]), node("Neg", ["h"], ["y/0"], name="last")]
    proto = model(nodes, {}, ["y/0", "s"])
    proto.graph.input.append(typed("x:0", onnx.TensorProto.DOUBLE, ["batch", 4, None]))
    proto.graph.input.append(typed("unused", onnx.TensorProto.INT32, []))
    spec = spec_of(proto)
    assert [(t.name, t.shape, t.dtype) for t in spec.inputs] == [
        ("x:0", (None, 4, None), "float32"),
        ("unused", (), "int32"),
    ]
    assert [(t.name, t.dtype) for t in spec.outputs] == [("y/0", "float32"), ("s", "int64")]
    assert [(n.op, n.name) for n in spec.nodes] == [("activation", "Relu"), ("shape", "Shape"), ("activation", "last")]


def test_nodes_without_names_and_names_used_twice():
    nodes = [node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"], name="Relu")]
    assert [n.name for n in spec_of(model(nodes, X, ["y"])).nodes] == ["Relu", "Relu@1", "Relu@2"]


def test_an_output_may_be_an_input_a_constant_or_another_output():
    nodes = [node("Identity", ["x"], ["a"]), node("Identity", ["w"], ["b"]), node("Neg", ["x"], ["c"])]
    nodes += [node("Identity", ["c"], ["d"]), node("Constant", [], ["e"], value_float=2.5)]
    proto = model(nodes, X, ["a", "b", "c", "d", "e", "w"], {"w": floats(2)})
    check(proto, X)
    assert set(spec_of(proto).constants) == {"b", "e", "w"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("raw", [True, False])
def test_floating_point_becomes_float32(dtype, raw):
    array = floats(3, 2).astype(dtype)
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": floats(4, 3)}, ["y"])
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    data = array.tobytes() if raw else array.reshape(-1)
    proto.graph.initializer.append(helper.make_tensor("w", kind, array.shape, data, raw=raw))
    (dense,) = spec_of(proto).nodes
    assert dense.weights["weight"].dtype == np.float32
    np.testing.assert_array_equal(dense.weights["weight"].T, array.astype(np.float32))


def test_bfloat16_and_numbers_beyond_float32():
    proto = model([node("Concat", ["a", "b"], ["y"], axis=0)], {}, ["y"])
    proto.graph.initializer.append(helper.make_tensor("a", onnx.TensorProto.BFLOAT16, [2], [1.5, -2]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1e300, -np.inf, np.nan]), "b"))
    want = np.float32([1.5, -2, np.finfo(np.float32).max, -np.inf, np.nan])
    np.testing.assert_array_equal(spec_of(proto).constants["y"], want)


@pytest.mark.parametrize(
    "array",
    [np.array([1, -2], np.int8), np.array([3, 70000], np.uint32), np.array([True, False]), np.array([-(2**40)])],
)
def test_integers_and_bools_keep_their_type(array):
    for raw in (True, False):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = helper.make_tensor("w", kind, array.shape, array.tobytes() if raw else array, raw=raw)
        constant = node("Constant", [], ["y"], value=tensor)
        found = spec_of(model([constant], X, ["y"])).constants["y"]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_initializers_that_are_also_inputs_are_constants():
    proto = model([node("MatMul", ["x", "w"], ["y"])], X | {"w": floats(4, 2)}, ["y"], {"w": floats(4, 2)})
    assert [t.name for t in spec_of(proto).inputs] == ["x"]
    assert ops(proto) == ["dense"]


def test_sniffing(tmp_path):
    """By content where the suffix says nothing; by suffix where the content is unusual."""
    data = model([node("Relu", ["x"], ["y"])], X, ["y"]).SerializeToString()
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    assert find_format(path).name == "onnx"
    assert ops_of(load_spec(path)) == ["activation"]


def ops_of(spec: Any) -> list[str]:
    return [n.op for n in spec.nodes]


# ---- Bodies ----


def branches(then: list[Any], other: list[Any], output: str = "r", **weights: np.ndarray) -> dict[str, Any]:
    names = [typed(output, FLOAT)]
    return {"then_branch": body(then, [], names, weights), "else_branch": body(other, [], names)}


def test_an_if_with_a_constant_condition_is_its_branch():
    """Also where the condition is computed of constants, inside of another branch, of constants around it."""
    inner = branches([node("MatMul", ["x", "w"], ["r"])], [node("StringNormalizer", ["x"], ["r"])])
    outer = [node("Not", ["no"], ["yes"]), node("If", ["yes"], ["r"], **inner)]
    made = node("If", ["c"], ["y"], **branches(outer, [node("Neg", ["x"], ["r"])]))
    for condition, want in ((True, ["dense", "identity"]), (False, ["activation", "identity"])):
        weights = {"c": np.array(condition), "no": np.array(False), "w": floats(4, 2)}
        assert ops(model([made], X, ["y"], weights)) == want
    feeds = X | {"c": np.array(True)}
    proto = model([made], feeds, ["y"], {"no": np.array(False), "w": floats(4, 2)})
    assert [n.op for n in spec_of(proto).all_nodes()] == ["if", "dense", "activation"]


def test_an_if_at_run_time_sees_what_is_around_it():
    then = [node("MatMul", ["h", "w"], ["r"], name="inside")]
    other = [node("Identity", ["h"], ["r"])]
    nodes = [node("Relu", ["x"], ["h"]), node("If", ["c"], ["y"], **branches(then, other, w=floats(4, 4)))]
    for condition in (True, False):
        feeds = X | {"c": np.array(condition)}
        check(model(nodes, feeds, ["y"]), feeds)


def test_names_inside_of_bodies_are_unique_over_the_model():
    """Branches may use the same names, and those of constants in the other branch."""
    then = [node("Neg", ["x"], ["t"], name="n"), node("Add", ["t", "k"], ["r"], name="m")]
    other = [node("Exp", ["x"], ["t"], name="n"), node("Mul", ["t", "k"], ["r"], name="m")]
    made = branches(then, other, k=np.float32(3))
    made["else_branch"].initializer.append(numpy_helper.from_array(np.float32(5), "k"))
    nodes = [node("If", ["c"], ["y"], **made), node("If", ["c"], ["z"], **made)]
    feeds = X | {"c": np.array(False)}
    proto = model(nodes, feeds, ["y", "z"])
    check(proto, feeds)
    names = [t for n in spec_of(proto).all_nodes() for t in (n.name, *n.outputs)]
    assert max(Counter(names).values()) == 1


def loop_around_a_cell() -> tuple[Any, dict[str, np.ndarray]]:
    """h is carried, each h is collected; the weights stand outside, a constant inside."""
    nodes = [
        node("Gather", ["x", "k"], ["x_k"], axis=0),
        node("MatMul", ["x_k", "w"], ["a"]),
        node("MatMul", ["h", "u"], ["b"]),
        node("Sum", ["a", "b", "bias"], ["t"]),
        node("Tanh", ["t"], ["h_next"]),
        node("Identity", ["go"], ["go_on"]),
        node("Identity", ["h_next"], ["h_k"]),
    ]
    inputs = [typed("k", INT, []), typed("go", BOOL, []), typed("h", FLOAT, [2, 3])]
    outputs = [typed("go_on", BOOL), typed("h_next", FLOAT), typed("h_k", FLOAT)]
    inside = body(nodes, inputs, outputs, {"bias": floats(3)})
    made = node("Loop", ["steps", "", "h_0"], ["h_n", "hs"], name="over time", body=inside)
    feeds = {"x": floats(5, 2, 4), "h_0": floats(2, 3), "steps": np.array(5)}
    return model([made], feeds, ["h_n", "hs"], {"w": floats(4, 3), "u": floats(3, 3)}), feeds


def test_loop():
    proto, feeds = loop_around_a_cell()
    check(proto, feeds)
    (loop,) = spec_of(proto).nodes
    assert (loop.op, loop.name) == ("loop", "over time")
    assert [n.op for n in loop.graphs["body"].nodes].count("dense") == 2


@pytest.mark.parametrize(("backwards", "axis"), [(0, 0), (1, 0), (1, 1)])
def test_scan(backwards, axis):
    nodes = [node("Add", ["total", "part"], ["next"]), node("Mul", ["next", "part"], ["out"])]
    kinds = [typed(name, FLOAT, [4]) for name in ("total", "part", "next", "out")]
    made = node(
        "Scan",
        ["start", "x"],
        ["last", "all"],
        body=body(nodes, kinds[:2], kinds[2:]),
        num_scan_inputs=1,
        scan_input_directions=[backwards],
        scan_input_axes=[axis],
        scan_output_axes=[1],
        scan_output_directions=[1 - backwards],
    )
    feeds = {"start": floats(4), "x": floats(4, 4, seed=1)}
    check(model([made], feeds, ["last", "all"]), feeds)


def test_bodies_of_the_wrong_form_are_named():
    proto, _ = loop_around_a_cell()
    (loop,) = proto.graph.node
    del loop.attribute[0].g.input[-1]
    with pytest.raises(FormatError, match="Loop 'over time': its body has 2 inputs, expected 3"):
        spec_of(proto)


# ---- Functions of the file ----


def test_functions_are_put_in_place_of_their_calls():
    scale = helper.make_node("Constant", [], ["k"])
    scale.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=1))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    nodes = [scale, node("Mul", ["a", "k"], ["b"]), node("Relu", ["b"], ["c"])]
    scaled = helper.make_function("mine", "scaled", ["a"], ["c"], nodes, opsets[:1], ["factor"])
    inner = node("scaled", ["a"], ["b"], domain="mine", factor=2.0)
    twice = helper.make_function("mine", "twice", ["a"], ["c"], [inner, node("Add", ["b", "b"], ["c"])], opsets)
    proto = model(
        [node("twice", ["x"], ["h"], domain="mine"), node("scaled", ["h"], ["y"], domain="mine", factor=-1.0)],
        X,
        ["h", "y"],
        opsets=opsets[1:],
        functions=[scaled, twice],
    )
    check(proto, X)
    assert ops(proto) == ["binary", "activation", "binary", "binary", "activation", "identity", "identity"]


# ---- Parts ----


def tagger() -> Any:
    nodes = [
        node("Gemm", ["x", "w"], ["h"], name="first"),
        node("Frobnicate", ["h"], ["odd"], name="strange", domain="mine"),
        node("Split", ["h"], ["a", "b"], name="halves", axis=1),
        node("LSTM", ["z", "W", "R"], ["Y", "Y_h"], name="cell", hidden_size=2),
        node("Add", ["odd", "Y"], ["y"], name="last"),
        node("Bernoulli", ["odd"], ["noise"], name="random"),
    ]
    weights = {"w": floats(4, 6), "W": floats(1, 8, 3), "R": floats(1, 8, 2)}
    return model(nodes, X | {"z": floats(2, 3, 3)}, ["y", "noise"], weights)


def test_all_problems_are_in_one_error():
    with pytest.raises(
        UnsupportedError, match=r"(?s)2 problem.*Frobnicate 'strange': .*domain 'mine'.*Bernoulli 'random': makes"
    ):
        spec_of(tagger())


@pytest.mark.parametrize(
    ("outputs", "nodes", "inputs", "tensors"),
    [
        (["h"], ["first"], ["x"], ["h"]),
        (["halves"], ["first", "halves"], ["x"], ["a", "b"]),
        (["cell", "h"], ["first", "cell", "cell/unsqueeze"], ["x", "z"], ["Y", "Y_h", "h"]),
        (["x"], [], ["x"], ["x"]),
    ],
)
def test_outputs_take_a_part_of_the_model(outputs, nodes, inputs, tensors):
    """Tensors, or nodes for all that they write; what they do not need is no problem."""
    spec = spec_of(tagger(), outputs=outputs)
    assert [n.name for n in spec.nodes] == nodes
    assert [t.name for t in spec.inputs] == inputs
    assert [t.name for t in spec.outputs] == tensors


def test_unknown_outputs_are_named():
    with pytest.raises(FormatError, match=r"no tensors or nodes called 'nobody' in the model; known: .*'cell'"):
        spec_of(tagger(), outputs=["h", "nobody"])


def test_single_layers(tmp_path):
    path = tmp_path / "tagger.onnx"
    onnx.save(tagger(), path)
    layers = layer_nodes(path, ["cell", "first"])
    assert {name: (n.op, n.inputs[0], n.outputs[0]) for name, n in layers.items()} == {
        "cell": ("lstm", "x", "y"),
        "first": ("dense", "x", "y"),
    }
    np.testing.assert_array_equal(layers["first"].weights["weight"], floats(4, 6).T)
    assert layer_nodes(path, {"cell": "lstm"})["cell"].op == "lstm"
    with pytest.raises(UnsupportedError, match=r"(?s)tagger\.onnx.*Frobnicate 'strange'"):
        layer_nodes(path, ["strange"])
    with pytest.raises(
        FormatError, match="no node called 'halves' with weights in the model; such nodes: 'cell', 'first'"
    ):
        layer_nodes(path, ["halves"])


def test_tensors(tmp_path):
    """Initializers and Constant nodes, those of branches too, as they are stored."""
    constant = node("Constant", [], ["k"], value=numpy_helper.from_array(np.float64([1, 2]), "other name"))
    made = node(
        "If", ["c"], ["y"], **branches([constant, node("Neg", ["k"], ["r"])], [node("Neg", ["x"], ["r"])], k2=X["x"])
    )
    path = tmp_path / "model.onnx"
    onnx.save(model([made], X, ["y"], {"c": np.array(True), "k": np.arange(3)}), path)
    tensors = load_tensors(path)
    assert {name: a.dtype.name for name, a in tensors.items()} == {
        "c": "bool",
        "k": "int64",
        "k2": "float32",
        "k@1": "float64",
    }


def test_a_model_proto_its_bytes_and_its_file_are_the_same(tmp_path):
    proto = model([node("MatMul", ["x", "w"], ["y"])], X, ["y"], {"w": floats(4, 2)})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    for source in (proto, proto.SerializeToString(), bytearray(proto.SerializeToString()), path, str(path)):
        (dense,) = loader.from_object(source).nodes
        np.testing.assert_array_equal(dense.weights["weight"].T, floats(4, 2))


def test_from_onnx():
    proto = model([node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], X, ["h", "y"], {"w": floats(4, 2)})
    net = fastrnn.from_onnx(proto.SerializeToString(), outputs=["y"])
    assert [t.name for t in net.outputs] == ["y"]
    assert_close([net(X["x"])], [np.maximum(X["x"] @ floats(4, 2), 0)], TWO_FLOAT32)


@pytest.mark.parametrize("version", [6, 999])
def test_versions_that_are_not_read(version):
    proto = model([node("Relu", ["x"], ["y"])], X, ["y"], opset=version)
    with pytest.raises(UnsupportedError, match=rf"uses version {version} of ONNX's operators, 7 to \d+ are read"):
        spec_of(proto)


# ---- Real models ----


def real(name: str) -> tuple[Path, dict[str, np.ndarray]]:
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"no {path}; set FASTRNN_MODELS to the folder of the models")
    with np.load(path.parent / "reference_io.npz") as recorded:
        return path, dict(recorded)


def frames_of_silero(count: int) -> np.ndarray:
    """Frames of 512 samples with the 64 before them."""
    import wave

    with wave.open(str(MODELS / "silero_vad" / "test.wav")) as file:
        samples = np.frombuffer(file.readframes(512 * count), "<i2").astype(np.float32) / 32768
    padded = np.concatenate([np.zeros(64, np.float32), samples])
    return np.stack([padded[512 * k : 512 * k + 576] for k in range(count)])


@pytest.mark.parametrize(
    "name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_openvino_16k"]
)
def test_silero(name):
    path, recorded = real(f"silero_vad/{name}.onnx")
    spec = load_spec(path)
    spec.validate()
    state, rate = np.zeros((2, 1, 128)), np.array(16000)
    for k, frame in enumerate(frames_of_silero(20)):
        feeds = {"input": frame[None], "state": state, "sr": rate}
        tensors = reference.run(spec, {t.name: feeds[t.name] for t in spec.inputs})
        state = tensors["stateN"]
        assert abs(tensors["output"][0, 0] - recorded["prob_ort"][k]) < 2e-6, k
    cells = [n.op for n in spec.all_nodes()].count("lstm")
    assert cells == {"silero_vad": 4, "silero_vad_16k_op15": 2, "silero_vad_op18_ifless": 0}.get(name, 1)


def test_dtln():
    first, recorded = real("dtln/model_1.onnx")
    specs = [load_spec(first), load_spec(first.with_name("model_2.onnx"))]
    states = [np.zeros((1, 2, 128, 2))] * 2
    for k, (mag, phase) in enumerate(itertools.islice(zip(recorded["mag"], recorded["phase"]), 20)):
        tensors = reference.run(specs[0], {"input_2": mag[None, None], "input_3": states[0]})
        mask, states[0] = tensors["activation_2"][0, 0], tensors["tf_op_layer_stack_2"]
        assert np.abs(mask - recorded["ort_mask"][k]).max() < 5e-6, k
        frame = np.fft.irfft(mag * mask * np.exp(1j * phase))
        tensors = reference.run(specs[1], {"input_4": frame[None, None], "input_5": states[1]})
        states[1] = tensors["tf_op_layer_stack_5"]
        assert np.abs(tensors["conv1d_3"][0, 0] - recorded["ort_frames_out"][k]).max() < 5e-6, k


def test_single_layers_of_a_real_model():
    path, _ = real("silero_vad/silero_vad_openvino_16k.onnx")
    (name,) = [n.name for n in load_spec(path).nodes if n.op == "lstm"]
    assert layer_nodes(path, [name])[name].weights["weight_hh_l0"].shape == (512, 128)
