"""Operators of ONNX: its own node tests, and each converter against ONNX Runtime over the versions of the operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx_cases import (
    assert_close,
    bind,
    engines,
    floats,
    helper,
    model,
    node,
    node_cases,
    numpy_helper,
    onnx,
    ours,
    spec_of,
    theirs,
    theirs_or_none,
)
from tolerances import TWO_FLOAT32

from fastrnn.errors import FastrnnError, FormatError, UnsupportedError
from fastrnn.loaders.onnx_ops import CONVERTERS, NATIVE

NODE_TESTS, NATIVE_TESTS = 1500, 780
"""Of ONNX's node tests that many at least run, and that many without a slow operator."""

INEXACT = {
    # what the test expects was written with few digits, or is not what ONNX's own implementation computes
    "test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic", "test_roialign_aligned_false",
    "test_roialign_aligned_true", "test_quantizelinear_blocked_symmetric",
}  # fmt: skip
WIDTH = {"test_bitcast_float64_to_int64"}  # bits of a float64 are gone
LOW_PRECISION = {10, 16}  # float16, bfloat16: expected outputs are rounded


def arrays_of(case: Any) -> list[tuple[dict[str, Any], list[Any]]]:
    """Feeds and outputs of a case; empty where they are not all arrays of types that we have."""
    found = []
    for given, want in case.data_sets:
        arrays = [*given, *want]
        if not all(isinstance(a, (np.ndarray, np.generic)) and a.dtype.kind in "fiub" for a in arrays):
            return []
        found.append(({v.name: np.asarray(a) for v, a in zip(case.model.graph.input, given)}, want))
    return found


def runs(proto: Any, data: list[Any], name: str) -> str:
    """What came of a case: "native", "slow" or the error of a file that is not supported."""
    try:
        spec = spec_of(proto)
    except UnsupportedError as error:
        return str(error)
    types = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    for feeds, want in data:
        given = {v.name: feeds[v.name] for v in proto.graph.input if v.name in feeds}
        given = {key: a.astype(np.float32) if a.dtype.kind == "f" else a for key, a in given.items()}
        assert_close(engines(proto, given), want, 1e-2 if types & LOW_PRECISION else 1e-5, name)
    return "slow" if any(n.op == "operator" for n in spec.all_nodes()) else "native"


@pytest.mark.parametrize("fixed", [False, True], ids=["inputs", "initializers"])
def test_node_tests_of_onnx(fixed):
    """Every one of arrays runs, as it is and with all inputs but the first one known at load."""
    outcomes: Counter[str] = Counter()
    for case in node_cases():
        data = arrays_of(case)
        if not data or case.name in INEXACT | WIDTH:
            continue
        proto = case.model
        if fixed:
            if len(data) > 1 or len(data[0][0]) < 2:
                continue
            proto, left = bind(proto, data[0][0], list(data[0][0])[1:])
            data = [(left, data[0][1])]
        outcomes[runs(proto, data, case.name)] += 1
    assert outcomes["native"] + outcomes["slow"] >= (600 if fixed else NODE_TESTS), outcomes
    assert outcomes["native"] >= (400 if fixed else NATIVE_TESTS), outcomes
    errors = [text for text in outcomes if text not in ("native", "slow")]
    expected = (
        "makes random numbers", "training mode", "casts to", "of the domain", "sequences, optional", "Scan before",
        "version 1 of ONNX's operators", "no operator of version", "strings, sequences", "No registered impl",
        "ConvTranspose in groups",
    )  # fmt: skip
    assert [text for text in errors if not any(words in text for words in expected)] == []


X = {"x": floats(2, 3, 4)}
IMAGE = {"x": floats(2, 3, 7, 6)}
ONE = np.array([1])
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, ...]]] = [
    # operator, feeds, constants, attributes, versions of the operators
    ("Softmax", X, {}, {}, (7, 11, 13, 18)),
    ("Softmax", X, {}, {"axis": 2}, (7, 11, 13)),
    ("Softmax", X, {}, {"axis": 0}, (7, 11, 13)),
    ("Softmax", X, {}, {"axis": -2}, (11, 13)),
    ("LogSoftmax", X, {}, {"axis": 1}, (7, 11, 13)),
    ("Squeeze", {"x": floats(1, 3, 1)}, {}, {"axes": [0]}, (7, 11)),
    ("Squeeze", {"x": floats(1, 3, 1)}, {"axes": np.array([-1])}, {}, (13, 21)),
    ("Squeeze", {"x": floats(1, 3, 1)}, {}, {}, (7, 13)),
    ("Unsqueeze", X, {}, {"axes": [0, 2]}, (7, 11)),
    ("Unsqueeze", X, {"axes": np.array([-1, 0])}, {}, (13, 21)),
    ("Split", X, {}, {"axis": 2}, (7, 11)),
    ("Split", X, {}, {"axis": 2, "split": [1, 3]}, (7, 11)),
    ("Split", X, {"split": np.array([3, 1])}, {"axis": -1}, (13,)),
    ("Split", X, {}, {"axis": 1, "num_outputs": 2}, (18,)),
    ("Slice", X, {}, {"starts": [1, 0], "ends": [9, -1], "axes": [1, 2]}, (7,)),
    ("Slice", X, {}, {"starts": [1], "ends": [2]}, (7,)),
    ("Slice", X, {"s": np.array([3]), "e": np.array([-9]), "a": np.array([2]), "t": np.array([-2])}, {}, (10, 13)),
    ("Slice", X, {"s": np.array([-1]), "e": np.array([-(2**63)]), "a": np.array([2]), "t": np.array([-1])}, {}, (13,)),
    ("Pad", X, {}, {"pads": [0, 1, 2, 0, 0, 1], "value": 1.5}, (7, 10)),
    ("Pad", X, {"p": np.array([0, 1, 2, 0, 0, 1])}, {"mode": "reflect"}, (11, 13)),
    ("Pad", X, {"p": np.array([0, -1, 2, 0, 0, 1]), "v": np.float32(2)}, {}, (11, 18)),
    ("Pad", X, {"p": np.array([1, 2]), "": None, "a": np.array([2])}, {"mode": "edge"}, (18,)),
    ("Clip", X, {}, {"min": -0.5, "max": 0.5}, (7,)),
    ("Clip", X, {}, {"max": 0.5}, (7,)),
    ("Clip", X, {"low": np.float32(0)}, {}, (11, 13)),
    ("Clip", X, {"low": np.float32(0), "high": np.float32(6)}, {}, (11, 13)),
    ("Clip", X, {"": None, "high": np.float32(0.1)}, {}, (13,)),
    ("Clip", {"x": np.arange(-4, 4)}, {"low": np.int64(-2), "high": np.int64(1)}, {}, (13,)),
    ("ReduceSum", X, {}, {"axes": [1], "keepdims": 0}, (7, 11)),
    ("ReduceSum", X, {"axes": np.array([1, -1])}, {}, (13, 18)),
    ("ReduceSum", X, {}, {"noop_with_empty_axes": 1}, (13,)),
    ("ReduceMean", X, {}, {"axes": [-1]}, (7, 13)),
    ("ReduceMean", X, {"axes": np.array([0])}, {"keepdims": 0}, (18,)),
    ("ReduceMax", X, {}, {}, (7, 13, 18)),
    ("ReduceL2", X, {"axes": np.array([2])}, {}, (18,)),
    ("ReduceLogSumExp", X, {}, {"axes": [0, 1]}, (7, 13)),
    ("ArgMax", X, {}, {"axis": 1}, (7, 11, 13)),
    ("ArgMin", {"x": np.float32([[1, 0, 0, 2]])}, {}, {"axis": -1, "keepdims": 0, "select_last_index": 1}, (12,)),
    ("CumSum", X, {"axis": np.array(1)}, {"exclusive": 1, "reverse": 1}, (11, 14)),
    ("Dropout", X, {}, {"ratio": 0.4}, (7, 10)),
    ("Dropout", X, {"ratio": np.float32(0.4)}, {}, (12, 13)),
    ("Gather", X, {"i": np.array([[0, -1]])}, {"axis": 1}, (7, 11, 13)),
    ("GatherElements", X, {"i": np.array([[[0, -1]], [[1, 0]]])}, {"axis": 2}, (11, 13)),
    ("Concat", X | {"z": floats(2, 1, 4)}, {}, {"axis": -2}, (11, 13)),
    ("Reshape", X, {"s": np.array([0, -1])}, {}, (7, 13, 14)),
    ("Reshape", {"x": floats(0, 3)}, {"s": np.array([3, 0])}, {"allowzero": 1}, (14,)),
    ("Flatten", X, {}, {"axis": 2}, (7, 11, 13)),
    ("Flatten", X, {}, {"axis": -1}, (11, 13)),
    ("Expand", X, {"s": np.array([5, 1, 1, 1])}, {}, (8, 13)),
    ("Tile", X, {"r": np.array([1, 2, 3])}, {}, (7, 13)),
    ("Transpose", X, {}, {}, (7, 13)),
    ("Shape", X, {}, {}, (7, 13)),
    ("Shape", X, {}, {"start": -2, "end": 2}, (15, 19)),
    ("ConstantOfShape", {"x": np.array([2, 3])}, {}, {"value": numpy_helper.from_array(np.array([7], np.int32))}, (9,)),
    ("Range", {"x": np.array(1)}, {"limit": np.array(9), "delta": np.array(3)}, {}, (11,)),
    ("Cast", {"x": np.float32([-1.7, 0, 2.5])}, {}, {"to": 7}, (7, 9, 13, 19)),
    ("Cast", {"x": np.float32([-1.7, 0, 2.5])}, {}, {"to": 9}, (13,)),
    ("Cast", {"x": np.array([1, 2])}, {}, {"to": 11}, (13,)),
    ("CastLike", {"x": np.float32([1.5])}, {"like": np.array([1])}, {}, (15,)),
    ("Where", {"x": np.array([[True], [False]])}, {"a": floats(2, 3), "b": floats(3, seed=1)}, {}, (9, 16)),
    ("Neg", {"x": np.array([1, -2])}, {}, {}, (7, 13)),
    ("Abs", {"x": np.array([1, -2], np.int8)}, {}, {}, (13,)),
    ("Relu", {"x": np.array([1, -2], np.int32)}, {}, {}, (14,)),
    ("Sign", {"x": np.array([1, -2, 0])}, {}, {}, (13,)),
    ("Div", {"x": np.array([7, -7, 6])}, {"b": np.array([2])}, {}, (7, 14)),
    ("Mod", {"x": np.array([7, -7, 6])}, {"b": np.array([4])}, {}, (10, 13)),
    ("Mod", X, {"b": np.float32(0.4)}, {"fmod": 1}, (10, 13)),
    ("Pow", {"x": np.float32([1.5, 2])}, {"b": np.array([3, 2])}, {}, (12, 15)),
    ("PRelu", X, {"slope": floats(3, 1)}, {}, (7, 9, 16)),
    ("Sum", X | {"z": floats(4), "w": floats(3, 1)}, {}, {}, (8, 13)),
    ("Mean", X | {"z": floats(4), "w": floats(3, 1)}, {}, {}, (8, 13)),
    ("Max", X | {"z": floats(4)}, {}, {}, (8, 13)),
    ("HardSwish", X, {}, {}, (14,)),
    ("HardSigmoid", X, {}, {"alpha": 0.3}, (7,)),
    ("Selu", X, {}, {}, (7,)),
    ("Celu", X, {}, {"alpha": 0.7}, (12,)),
    ("ThresholdedRelu", X, {}, {}, (10,)),
    ("Gelu", X, {}, {"approximate": "tanh"}, (20,)),
    ("Mish", X, {}, {}, (18,)),
    ("Hardmax", X, {}, {}, (13,)),
    ("IsInf", {"x": np.float32([np.inf, 1, -np.inf])}, {}, {"detect_negative": 0}, (10,)),
    ("MatMul", X, {"w": floats(4, 5)}, {}, (7, 13)),
    ("MatMul", X, {"w": floats(2, 4, 5)}, {}, (9, 13)),
    ("MatMul", {"x": floats(4)}, {"w": floats(4, 5)}, {}, (13,)),
    ("Gemm", {"x": floats(3, 2)}, {"w": floats(4, 3), "c": floats(4)}, {"transA": 1, "transB": 1}, (7, 11, 13)),
    ("Gemm", {"x": floats(2, 3)}, {"w": floats(3, 4), "c": floats(2, 1)}, {"alpha": 0.5, "beta": 2.0}, (7, 13)),
    ("Gemm", {"x": floats(2, 3)}, {"w": floats(3, 4), "c": floats(1)}, {"beta": 2.0}, (13,)),
    ("Gemm", {"x": floats(2, 3)}, {"w": floats(3, 4)}, {"alpha": 0.5}, (11, 13)),
    ("Conv", {"x": floats(2, 4, 9)}, {"w": floats(6, 2, 3), "b": floats(6)}, {"group": 2, "dilations": [2]}, (7, 11)),
    ("Conv", IMAGE, {"w": floats(4, 3, 3, 2)}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, (7, 22)),
    *(
        ("Conv", IMAGE, {"w": floats(4, 3, k, k)}, {"auto_pad": pad, "strides": [s, s]}, (11,))
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for k in (2, 3)
        for s in (1, 2, 3)
    ),
    ("ConvTranspose", {"x": floats(2, 4, 5)}, {"w": floats(4, 3, 3), "b": floats(6)}, {"group": 2}, (7, 11)),
    (
        "ConvTranspose",
        {"x": floats(1, 2, 4, 3)},
        {"w": floats(2, 3, 3, 3)},
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        (11,),
    ),
    (
        "ConvTranspose",
        {"x": floats(1, 2, 4)},
        {"w": floats(2, 3, 3)},
        {"auto_pad": "SAME_UPPER", "strides": [2]},
        (11,),
    ),
    (
        "ConvTranspose",
        {"x": floats(1, 2, 4)},
        {"w": floats(2, 3, 4)},
        {"auto_pad": "SAME_LOWER", "strides": [1]},
        (11,),
    ),
    ("ConvTranspose", {"x": floats(1, 2, 4)}, {"w": floats(2, 3, 3)}, {"output_shape": [9], "strides": [2]}, (11,)),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}, (7, 8)),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 3]}, (10, 12)),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [2, 2], "dilations": [2, 3]}, (10, 22)),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, (11,)),
    ("MaxPool", IMAGE, {}, {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER"}, (11,)),
    ("AveragePool", IMAGE, {}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, (7, 11)),
    ("AveragePool", IMAGE, {}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}, (7, 19)),
    ("AveragePool", IMAGE, {}, {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}, (11,)),
    ("AveragePool", IMAGE, {}, {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, (11, 19)),
    ("GlobalAveragePool", IMAGE, {}, {}, (7, 22)),
    ("GlobalMaxPool", IMAGE, {}, {}, (7,)),
    (
        "BatchNormalization",
        IMAGE,
        {"s": floats(3), "b": floats(3, seed=1), "m": floats(3, seed=2), "v": np.abs(floats(3, seed=3))},
        {"epsilon": 1e-3},
        (7, 9, 14, 15),
    ),
    ("InstanceNormalization", IMAGE, {"s": floats(3), "b": floats(3, seed=1)}, {}, (7, 22)),
    ("LayerNormalization", X, {"s": floats(4), "b": floats(4, seed=1)}, {}, (17,)),
    ("LayerNormalization", X, {"s": floats(3, 4)}, {"axis": 1, "epsilon": 1e-2}, (17,)),
    ("LayerNormalization", X, {"s": floats(4)}, {"axis": 1}, (17,)),
    ("GroupNormalization", {"x": floats(2, 4, 5)}, {"s": floats(4), "b": floats(4, seed=1)}, {"num_groups": 2}, (21,)),
    ("LpNormalization", X, {}, {"axis": 1, "p": 1}, (7, 22)),
    ("LpNormalization", X, {}, {}, (7,)),
    ("DequantizeLinear", {"x": np.array([[1, 2]], np.uint8)}, {"s": np.float32([0.5, 2])}, {"axis": 1}, (13, 19)),
    ("TopK", X, {"k": np.array([2])}, {}, (10, 11)),
    ("OneHot", {"x": np.array([1, 3])}, {"d": np.array(5), "v": np.float32([0, 1])}, {}, (9, 11)),
    ("Einsum", X, {"b": floats(4, 5)}, {"equation": "bij,jk->bik"}, (12,)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}"[:60])
def test_operator(case):
    op, feeds, weights, attrs, versions = case
    count = {"Split": len(attrs.get("split", (1, 1))), "TopK": 2}.get(op, 1)
    outputs = [f"y{k}" for k in range(count)]
    constants = {name: np.asarray(array) for name, array in weights.items() if name}
    for version in versions:
        made = node(op, [*feeds, *weights], outputs, **attrs)
        proto = model([made], feeds, outputs, constants, version)
        want = theirs(proto, feeds)
        assert_close(ours(proto, feeds), want, TWO_FLOAT32, version)
        assert_close(engines(proto, feeds), want, TWO_FLOAT32, version)
        late = feeds | constants  # the same with nothing known at load
        proto = model([made], late, outputs, {}, version)
        if "group" in attrs and op == "ConvTranspose":
            with pytest.raises(UnsupportedError, match="ConvTranspose in groups"):
                spec_of(proto)
        elif (want := theirs_or_none(proto, late)) is not None:
            assert_close(ours(proto, late), want, TWO_FLOAT32, version)


def test_versions_change_what_is_read():
    """Before version 13 the axes of Squeeze are an attribute; what does not fit the version is an error."""
    for version, axes, inputs in ((13, {"axes": [0]}, ["x"]), (11, {}, ["x", "a"])):
        proto = model(
            [node("Squeeze", inputs, ["y"], **axes)], {"x": floats(1, 2)}, ["y"], {"a": np.array([0])}, version
        )
        with pytest.raises(FormatError, match=r"unknown attributes 'axes'|2 inputs and 1 outputs, expected 1 to 1"):
            spec_of(proto)


def test_folding_computes_what_running_computes():
    """A node of constants gives the constant that the node gives at run time."""
    skipped = 0
    for op, feeds, weights, attrs, versions in CASES:
        if op in ("Split", "TopK"):
            continue
        constants = {name: np.asarray(a) for name, a in weights.items() if name}
        made = [node(op, [*feeds, *weights], ["y"], **attrs)]
        proto, _ = bind(model(made, feeds, ["y"], constants, versions[-1]), feeds, list(feeds))
        spec = spec_of(proto)
        skipped += bool(spec.nodes)
        if not spec.nodes:
            assert list(spec.constants) == ["y"]
            want = ours(model(made, feeds, ["y"], constants, versions[-1]), feeds, np.float32)
            assert_close([spec.constants["y"]], want, 1e-6, (op, attrs))
    assert skipped < len(CASES) / 2


def test_slow_operators_keep_the_precision_of_their_inputs():
    proto = model([node("Hardmax", ["x"], ["y"])], X, ["y"])
    assert ours(proto, X, np.float32)[0].dtype == np.float32
    assert ours(proto, X, np.float64)[0].dtype == np.float64
    (slow,) = spec_of(proto).nodes
    assert (slow.op, slow.attrs["kind"], slow.attrs["version"]) == ("operator", "Hardmax", 18)
    assert isinstance(slow.attrs["proto"], str)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (node("RandomNormal", [], ["y"], shape=[2]), "RandomNormal 'here': makes random numbers"),
        (node("SequenceConstruct", ["x"], ["y"]), "works on sequences"),
        (node("StringNormalizer", ["x"], ["y"]), "works on sequences, optional values or strings"),
        (node("Gelu", ["x"], ["y"], domain="com.microsoft"), r"of the domain 'com\.microsoft'"),
        (node("Scaler", ["x"], ["y"], domain="ai.onnx.ml"), r"of the domain 'ai\.onnx\.ml'"),
        (node("Frobnicate", ["x"], ["y"]), "no operator of version 18 of ONNX's standard set"),
        (node("Upsample", ["x", "s"], ["y"]), "no operator of version 18"),
        (node("Cast", ["x"], ["y"], to=8), "casts to string"),
        (node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], training_mode=1), "training mode"),
    ],
)
def test_what_is_not_run_is_named(made, words):
    made.name = "here"
    proto = model([made], {"x": floats(2, 3)}, ["y"], {"s": floats(3)})
    with pytest.raises(UnsupportedError, match=f"(?s)1 problem.*{made.op_type} 'here'.*{words}.*;|{words}"):
        spec_of(proto)


def test_the_table_names_operators_of_onnx():
    for op in NATIVE:
        assert onnx.defs.get_schema(op, onnx.defs.onnx_opset_version()).name == op
    tested = {case.model.graph.node[0].op_type for case in node_cases()}
    assert set(CONVERTERS) <= tested | {"CastLike"}


def test_an_implementation_that_fails_is_a_shape_error():
    proto = model([node("Einsum", ["x"], ["y"], equation="ab->a")], X, ["y"])
    with pytest.raises(FastrnnError, match="Einsum 'Einsum' cannot run"):
        ours(proto, X)


def test_nothing_is_the_wrong_type_of_attribute():
    made = helper.make_node("Softmax", ["x"], ["y"], axis=1.0)
    with pytest.raises(FormatError, match=r"attribute 'axis' is float, expected int; the file is damaged"):
        spec_of(model([made], X, ["y"]))
