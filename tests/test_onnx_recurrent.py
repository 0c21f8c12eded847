"""RNN, LSTM and GRU of ONNX: its own node tests, and every attribute and input against ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_cases
import pytest
from onnx_cases import assert_close, bind, engines, floats, model, node, node_cases, ours, spec_of, theirs
from tolerances import TWO_FLOAT32

from fastrnn.errors import FormatError, UnsupportedError

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")
HIDDEN, FEATURES, STEPS, BATCH = 3, 2, 4, 3


def recurrent(
    op: str,
    direction: str = "forward",
    *,
    bias: bool = True,
    lengths: bool = False,
    h: bool = False,
    c: bool = False,
    peepholes: bool = False,
    layout: int = 0,
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c"),
    opset: int = 14,
    **attrs: Any,
) -> tuple[Any, dict[str, np.ndarray]]:
    """A model of one node with all that is asked for, and feeds for it."""
    directions, rows = 1 + (direction == "bidirectional"), GATES[op] * HIDDEN
    state = (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN)
    weights = {"W": floats(directions, rows, FEATURES, scale=0.3), "R": floats(directions, rows, HIDDEN, scale=0.3)}
    feeds = {"X": floats(*((BATCH, STEPS) if layout else (STEPS, BATCH)), FEATURES, seed=1)}
    inputs = ["X", "W", "R", "B" if bias else "", "L" if lengths else "", "H" if h else ""]
    if bias:
        weights["B"] = floats(directions, 2 * rows, seed=2, scale=0.5)
    if lengths:
        feeds["L"] = np.array([STEPS, 1, STEPS - 1], np.int32)
    if h:
        feeds["H"] = floats(*state, seed=3)
    if op == "LSTM":
        inputs += ["C" if c else "", "P" if peepholes else ""]
        if c:
            feeds["C"] = floats(*state, seed=4)
        if peepholes:
            weights["P"] = floats(directions, 3 * HIDDEN, seed=5)
    if layout:
        attrs["layout"] = layout
    names = outputs if op == "LSTM" else [name for name in outputs if name != "Y_c"]
    made = node(op, inputs, names, name="cell", hidden_size=HIDDEN, direction=direction, **attrs)
    return model([made], feeds, [name for name in names if name], weights, opset), feeds


def check(proto: Any, feeds: dict[str, np.ndarray], where: object = "") -> None:
    """Reference and engine against ONNX Runtime."""
    want = theirs(proto, feeds)
    assert_close(ours(proto, feeds), want, TWO_FLOAT32, where)
    assert_close(engines(proto, feeds), want, TWO_FLOAT32, where)


@pytest.mark.parametrize("fixed", [True, False], ids=["initializers", "inputs"])
def test_node_tests_of_onnx(fixed):
    """As they are, with weights that come while the model runs, and with weights known at load."""
    cases = [case for case in node_cases() if case.model.graph.node[0].op_type in GATES]
    assert len(cases) >= 18
    for case in cases:
        for given, want in case.data_sets:
            feeds = {v.name: np.asarray(a) for v, a in zip(case.model.graph.input, given)}
            proto = case.model
            if fixed:
                proto, feeds = bind(proto, feeds, [name for name in feeds if name not in ("X", "sequence_lens")])
            assert_close(ours(proto, feeds), want, 1e-5, case.name)
            assert_close(engines(proto, feeds), want, 1e-5, case.name)
            kinds = {n.op for n in spec_of(proto).all_nodes()}
            assert (case.model.graph.node[0].op_type.lower() in kinds) == fixed, case.name
            assert "operator" not in kinds, case.name


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lengths": True},
    {"bias": False},
    {"h": True},
    {"h": True, "lengths": True},
    {"clip": 0.3, "lengths": True},
    {"outputs": ("Y",)},
    {"outputs": ("", "Y_h")},
    {"opset": 7},
    {"opset": 22},
]
LSTM_OPTIONS: list[dict[str, Any]] = [
    {"peepholes": True, "h": True, "c": True},
    {"peepholes": True, "clip": 0.2, "lengths": True},
    {"input_forget": 1},
    {"input_forget": 1, "peepholes": True, "clip": 0.4, "c": True},
    {"outputs": ("", "", "Y_c")},
]
GRU_OPTIONS: list[dict[str, Any]] = [{"linear_before_reset": 1}, {"linear_before_reset": 1, "clip": 0.3, "h": True}]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_options(op, direction):
    """ONNX Runtime is right where ONNX's own reference ignores an input; weights may come at run time in all cases."""
    for options in OPTIONS + {"LSTM": LSTM_OPTIONS, "GRU": GRU_OPTIONS, "RNN": []}[op]:
        proto, feeds = recurrent(op, direction, **options)
        check(proto, feeds, options)
        for names in ("WRBP", "R"):
            moved = [proto.graph.initializer[k] for k in range(len(proto.graph.initializer))]
            chosen = {t.name: onnx_cases.numpy_helper.to_array(t) for t in moved if t.name in names}
            late = onnx_cases.onnx.ModelProto()
            late.CopyFrom(proto)
            del late.graph.initializer[:]
            late.graph.initializer.extend(t for t in moved if t.name not in names)
            late.graph.input.extend(onnx_cases.value(name, array) for name, array in chosen.items())
            check(late, feeds | chosen, (options, names))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first(op, direction):
    """layout=1 (which ONNX Runtime does not run) is layout=0 with other axes."""
    options: dict[str, Any] = {"h": True, "lengths": True, **({"c": True, "peepholes": True} if op == "LSTM" else {})}
    proto, feeds = recurrent(op, direction, **options)
    y, *states = ours(proto, feeds)
    turned = {"X": (1, 0, 2), "H": (1, 0, 2), "C": (1, 0, 2), "L": (0,)}
    other, _ = recurrent(op, direction, layout=1, **options)
    got = ours(other, {name: a.transpose(turned[name]) for name, a in feeds.items()})
    assert_close(got, [y.transpose(2, 0, 1, 3), *(s.transpose(1, 0, 2) for s in states)], 0)


FUNCTIONS = {
    # how many of alpha and beta each takes
    "Sigmoid": 0, "Tanh": 0, "Relu": 0, "Softsign": 0, "Softplus": 0, "LeakyRelu": 1, "ThresholdedRelu": 1, "Elu": 1,
    "Affine": 2, "ScaledTanh": 2, "HardSigmoid": 2,
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_activations(function):
    for op, direction in itertools.product(GATES, ("reverse", "bidirectional")):
        count = {"LSTM": 3, "GRU": 2, "RNN": 1}[op] * (1 + (direction == "bidirectional"))
        attrs: dict[str, Any] = {"activations": [function] * count}
        takes = FUNCTIONS[function]
        if takes > 0:
            attrs["activation_alpha"] = [0.3 + 0.1 * k for k in range(count)]
        if takes > 1:
            attrs["activation_beta"] = [0.1 + 0.05 * k for k in range(count)]
        check(*recurrent(op, direction, **attrs), where=(op, direction))


@pytest.mark.parametrize(
    "attrs",
    [
        {"activations": ["sigmoid", "TANH", "Tanh", "HardSigmoid", "Relu", "Softsign"]},
        {
            "activations": ["HardSigmoid", "LeakyRelu", "Tanh", "Sigmoid", "Elu", "Affine"],
            "activation_alpha": [0.1, 0.2, 0.3, 0.4],
            "activation_beta": [0.5, 0.6],
        },
        {"activations": ["HardSigmoid", "Tanh", "Tanh"] * 2, "activation_alpha": [0.1, 0.7]},  # defaults for the rest
        {"activations": ["HardSigmoid", "Tanh", "Tanh"] * 2, "input_forget": 1},
        {"activations": ["Softsign", "Tanh", "Tanh"] * 2, "input_forget": 1},
        {"activations": ["Sigmoid", "Tanh", "Tanh", "Tanh", "Relu", "Tanh"], "input_forget": 1, "clip": 0.5},
    ],
)
def test_activations_of_each_direction(attrs):
    for lengths in (False, True):
        check(*recurrent("LSTM", "bidirectional", h=True, c=True, lengths=lengths, **attrs), where=lengths)


def test_weights_assembled_by_nodes_become_weights():
    """As exporters write it: gates of a framework's order sliced and joined, biases stacked, all of it folded."""
    w, r, b = floats(4 * HIDDEN, FEATURES), floats(4 * HIDDEN, HIDDEN, seed=1), floats(8 * HIDDEN, seed=2)
    nodes = [node("Constant", [], ["w"], value=onnx_cases.numpy_helper.from_array(w.T.astype(np.float16)))]
    nodes += [node("Cast", ["w"], ["wc"], to=1), node("Transpose", ["wc"], ["wt"], perm=[1, 0])]
    for k in range(4):
        nodes.append(node("Constant", [], [f"s{k}"], value_ints=[k * HIDDEN]))
        nodes.append(node("Constant", [], [f"e{k}"], value_ints=[(k + 1) * HIDDEN]))
        nodes.append(node("Slice", ["wt", f"s{k}", f"e{k}", "zero"], [f"w{k}"]))
    nodes.append(node("Concat", ["w0", "w3", "w1", "w2"], ["joined"], axis=0))
    nodes.append(node("Identity", ["joined"], ["same"]))
    nodes.append(node("Unsqueeze", ["same", "zero"], ["W"]))
    nodes.append(node("Reshape", ["r", "shape"], ["R"]))
    nodes.append(node("Reshape", ["b", "flat"], ["B"]))
    nodes.append(node("LSTM", ["X", "W", "R", "B"], ["Y"], name="cell", hidden_size=HIDDEN))
    weights = {
        "zero": np.array([0]), "r": r, "b": b, "shape": np.array([1, -1, HIDDEN]), "flat": np.array([1, 8 * HIDDEN]),
    }  # fmt: skip
    feeds = {"X": floats(STEPS, BATCH, FEATURES)}
    proto = model(nodes, feeds, ["Y"], weights)
    assert [n.op for n in spec_of(proto).nodes] == ["lstm", "unsqueeze"]
    assert not spec_of(proto).constants
    check(proto, feeds)


def test_constant_states_become_constants():
    proto, feeds = recurrent("LSTM", h=True, c=True)
    bound, left = bind(proto, feeds, ["H", "C"])
    spec = spec_of(bound)
    assert set(spec.constants) == {"H", "C"}
    assert [t.name for t in spec.inputs] == ["X"]
    assert_close(ours(bound, left), ours(proto, feeds), 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"activations": ["Sigmoid", "Tanh", "Swish"]}, UnsupportedError, "LSTM 'cell': .* no activation 'Swish'"),
        ({"activations": ["Sigmoid", "Tanh"]}, FormatError, "2 activations, expected 3"),
        ({"direction": "sideways"}, FormatError, "direction 'sideways'"),
        ({"hidden_size": 7}, FormatError, "hidden_size is 7, R has 3"),
        ({"clip": [1.0]}, FormatError, "attribute 'clip' is floats, expected float"),
        ({"clop": 1.0}, FormatError, "unknown attributes 'clop'"),
    ],
)
def test_what_does_not_fit_is_named(change, error, words):
    proto, _ = recurrent("LSTM")
    (cell,) = proto.graph.node
    kept = [a for a in cell.attribute if a.name not in change]
    del cell.attribute[:]
    cell.attribute.extend([*kept, *(onnx_cases.helper.make_attribute(key, v) for key, v in change.items())])
    with pytest.raises(error, match=f"(?s){words}.*;"):
        spec_of(proto)


def test_weights_of_wrong_shapes_are_all_named():
    proto, _ = recurrent("GRU")
    for tensor in proto.graph.initializer:
        if tensor.name in "WB":
            tensor.CopyFrom(onnx_cases.numpy_helper.from_array(floats(1, 5, 2), tensor.name))
    with pytest.raises(FormatError, match=r"W has shape .* expected \(1, 9, 2\); B has shape .* expected \(1, 18\)"):
        spec_of(proto)
