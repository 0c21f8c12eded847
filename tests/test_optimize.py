"""The optimiser: fewer nodes, the same results, the same names."""

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.graph.optimize import optimize
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def node(op, inputs, outputs, weights=None, graphs=None, **attrs):
    inputs, outputs = inputs.split(), outputs.split()
    return Node(op, f"{op}_{outputs[0]}", tuple(inputs), tuple(outputs), attrs, weights or {}, graphs or {})


def model(nodes, inputs, outputs, **constants):
    """A spec with inputs ``{name: shape}``."""
    tensors = [Tensor(name, shape) for name, shape in inputs.items()]
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    spec = ModelSpec(nodes, tensors, [Tensor(name, None) for name in outputs.split()], arrays)
    spec.validate()
    return spec


def check(spec, ops, keep=(), rng=None, batch=3):
    """Optimise, compare all outputs in float64, and the kinds of nodes that are left."""
    rng = rng or np.random.default_rng(5)
    before = repr(spec)
    better = optimize(spec, keep)
    assert repr(spec) == before
    assert [n.op for n in better.nodes] == ops.split()
    feeds = {t.name: rng.standard_normal([batch if n is None else n for n in t.shape]) for t in spec.inputs}
    expected, got = reference.run(spec, feeds), reference.run(better, feeds)
    for name in [*(t.name for t in spec.outputs), *keep]:
        np.testing.assert_allclose(got[name], expected[name], **EXACT, err_msg=name)
        assert got[name].shape == expected[name].shape
    return better


def test_constants_fold(rng):
    w = rng.standard_normal((4, 3))
    nodes = [
        node("transpose", "w", "wt", perm=[1, 0]),
        node("concat", "wt wt", "ww", axis=1),
        node("matmul", "x ww", "y"),
    ]
    better = check(model(nodes[1:], {"x": (None, 4)}, "y", wt=w), "dense")
    assert not better.constants
    check(model(nodes, {"x": (None, 3)}, "y", w=w), "dense")


def test_a_huge_result_is_not_folded():
    nodes = [
        node("fill", "shape", "big", value=1.0),
        node("slice", "big a b", "part"),
        node("binary", "x part", "y", function="add"),
    ]
    spec = model(nodes, {"x": (1,)}, "y", shape=[1 << 40], a=[0], b=[1])
    assert [n.op for n in optimize(spec).nodes] == ["fill", "slice", "binary"]


def test_shapes_of_known_sizes_fold():
    nodes = [
        node("shape", "x", "s"),
        node("gather", "s one", "t", axis=0),
        node("concat", "minus t", "target", axis=0),
        node("reshape", "x target", "y"),
    ]
    spec = model(nodes, {"x": (None, 2, 5)}, "y", one=[1], minus=[-1])
    assert optimize(spec).constants["target"].tolist() == [-1, 2]
    check(spec, "reshape")


def test_a_free_dimension_is_no_constant():
    nodes = [node("shape", "x", "s"), node("gather", "s zero", "t", axis=0), node("reshape", "x t", "y")]
    check(model(nodes, {"x": (None, 1)}, "y", zero=[0]), "shape gather reshape")


def test_a_free_size_is_not_another_one(rng):
    """Rows that are the batch and time together come apart by the size of the batch: what is left is time, not 1."""
    nodes = [
        node("shape", "z", "n"),
        node("concat", "n rest", "to", axis=0),
        node("reshape", "x to", "y"),
        node("shape", "y", "steps", start=1, end=2),
    ]
    spec = model(nodes, {"x": (None, 2), "z": (None,)}, "steps", rest=[-1, 2])
    feeds = {"x": rng.standard_normal((12, 2)), "z": np.zeros(3)}
    assert reference.run(optimize(spec), feeds)["steps"] == [4]


def test_dead_nodes_and_constants_go_but_inputs_stay(rng):
    nodes = [node("binary", "x c", "dead", function="add"), node("activation", "x", "y", activation="tanh")]
    better = check(model(nodes, {"x": (None, 2), "unread": (1,)}, "y", c=rng.standard_normal(2)), "activation")
    assert [t.name for t in better.inputs] == ["x", "unread"]
    assert not better.constants


def test_tensors_to_keep_stay(rng):
    nodes = [
        node("dense", "x", "h", {"weight": rng.standard_normal((3, 2))}),
        node("activation", "h", "y", activation="tanh"),
    ]
    spec = model(nodes, {"x": (None, 2)}, "y")
    check(spec, "dense")
    check(spec, "dense activation", keep=["h"])


NOTHING = {
    "identity": node("identity", "h", "i"),
    "linear": node("activation", "h", "i"),
    "cast": node("cast", "h", "i", dtype="float64"),
    "concat": node("concat", "h", "i", axis=1),
    "split": node("split", "h", "i", axis=0),
    "slice": node("slice", "h zero huge", "i"),
    "squeeze": node("squeeze", "h", "i", axes=[]),
    "transpose": node("transpose", "h", "i", perm=[0, 1]),
    "pad": node("pad", "h none", "i"),
    "times one": node("binary", "one h", "i", function="mul"),
    "over one": node("binary", "h one", "i", function="div"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nodes_that_do_nothing_go(kind):
    constants = {"none": [0] * 4, "zero": [0], "huge": [2**63 - 1], "one": 1.0}
    first, last = node("activation", "x", "h", activation="exp"), node("activation", "i", "y", activation="tanh")
    check(model([first, NOTHING[kind], last], {"x": (None, 2)}, "y", **constants), "activation activation")


def test_an_output_keeps_its_name_when_an_identity_goes():
    exp, same = node("activation", "x", "h", activation="exp"), node("identity", "h", "y")
    check(model([exp, same], {"x": (None, 2)}, "y"), "activation")
    check(model([exp, same], {"x": (None, 2)}, "y h"), "activation identity")
    check(model([node("identity", "x", "y")], {"x": (None, 2)}, "y"), "identity")


def branches(condition="flag"):
    then = Graph([node("binary", "x c", "t", function="add")], [], [Tensor("t", None)], {"c": np.array([3.0])})
    other = Graph([node("binary", "x c", "u", function="mul")], [], [Tensor("u", None)], {"c": np.array([5.0])})
    return node("if", condition, "y", graphs={"then": then, "else": other})


@pytest.mark.parametrize("flag", [True, False])
def test_a_known_branch_is_taken(flag):
    check(model([branches()], {"x": (None, 2)}, "y", flag=flag), "binary")


def test_a_condition_at_run_time_stays():
    nodes = [
        node("reduce", "x", "s", function="sum", keepdims=False),
        node("binary", "s zero", "flag", function="less"),
        branches(),
    ]
    check(model(nodes, {"x": (None, 2)}, "y", zero=0.0), "reduce binary if")


def test_a_condition_on_shapes_is_known_where_they_are():
    nodes = [
        node("shape", "x", "s"),
        node("size", "s", "rank"),
        node("gather", "s last", "n", axis=0),
        node("binary", "n rank", "flag", function="greater"),
        branches(),
    ]
    spec = model(nodes, {"x": (None, None)}, "y", last=1)
    check(spec, "shape gather binary if")
    assert [n.op for n in optimize(spec, shapes={"x": (3, 5)}).nodes] == ["binary"]


def test_an_unread_output_of_a_branch_takes_its_nodes_along():
    then = Graph(
        [node("unary", "x", "a", function="sin"), node("unary", "x", "b", function="cos")],
        [],
        [Tensor("a", None), Tensor("b", None)],
    )
    other = Graph(
        [node("unary", "x", "c", function="tan"), node("unary", "x", "d", function="atan")],
        [],
        [Tensor("c", None), Tensor("d", None)],
    )
    nodes = [
        node("reduce", "x", "s", function="max", keepdims=False),
        node("if", "s", "y unread", graphs={"then": then, "else": other}),
    ]
    better = check(model(nodes, {"x": (None, 2)}, "y"), "reduce if")
    assert [n.attr("function") for n in better.all_nodes() if n.op == "unary"] == ["sin", "tan"]


def test_equal_operators_become_one():
    nodes = [
        node("slice", "x a b", "p"),
        node("slice", "x a2 b", "q"),
        node("slice", "x a other", "r"),
        node("binary", "p q", "s", function="add"),
        node("binary", "s r", "y", function="mul"),
    ]
    check(model(nodes, {"x": (4, 2)}, "y", a=[1], a2=[1], b=[3], other=[2]), "slice slice binary binary")


def test_a_body_reuses_what_is_around_it_but_not_the_other_way():
    then = Graph([node("unary", "x", "a", function="sin")], [], [Tensor("a", None)])
    other = Graph(
        [node("unary", "x", "b", function="sin"), node("binary", "b b", "c", function="add")], [], [Tensor("c", None)]
    )
    choice = node("if", "s", "v", graphs={"then": then, "else": other})
    low = node("reduce", "x", "s", function="max", keepdims=False)
    around, end = node("unary", "x", "o", function="sin"), node("binary", "v o", "y", function="mul")
    better = check(model([around, low, choice, end], {"x": (None,)}, "y"), "unary reduce if binary")
    assert [n.op for n in better.nodes[2].graphs["else"].nodes] == ["binary"]
    check(model([low, choice, around, end], {"x": (None,)}, "y"), "reduce if unary binary")


@pytest.mark.parametrize("bias", [(3,), (1, 3), (), (1,), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("order", ["h b", "b h"])
def test_dense_takes_bias_and_activation(rng, bias, order):
    nodes = [
        node("matmul", "x w", "h"),
        node("binary", order, "s", function="add"),
        node("activation", "s", "y", activation=("leaky_relu", 0.3)),
    ]
    spec = model(nodes, {"x": (None, 5, 2)}, "y", w=rng.standard_normal((2, 3)), b=rng.standard_normal(bias))
    better = check(spec, "dense")
    assert better.nodes[0].weights["bias"].shape == (3,)


def test_a_bias_that_adds_axes_or_features_is_none(rng):
    nodes = [node("matmul", "x w", "h"), node("binary", "h b", "y", function="add")]
    check(
        model(nodes, {"x": (None, 2)}, "y", w=rng.standard_normal((2, 3)), b=rng.standard_normal((1, 1, 3))),
        "dense binary",
    )
    check(model(nodes, {"x": (None, 2)}, "y", w=rng.standard_normal((2, 1)), b=rng.standard_normal(4)), "dense binary")
    check(
        model(nodes, {"x": (3, 2)}, "y", w=rng.standard_normal((2, 3)), b=rng.standard_normal((3, 1))), "dense binary"
    )


def test_a_product_that_others_read_stays_as_it_is(rng):
    nodes = [node("matmul", "x w", "h"), node("binary", "h b", "y", function="add")]
    constants = {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)}
    check(model(nodes, {"x": (None, 2)}, "y h", **constants), "dense binary")
    more = [*nodes, node("activation", "h", "z", activation="tanh")]
    check(model(more, {"x": (None, 2)}, "y z", **constants), "dense binary activation")


def test_softmax_over_the_last_axis_joins(rng):
    nodes = [node("matmul", "x w", "h"), node("softmax", "h", "y", axis=1)]
    w = rng.standard_normal((2, 3))
    check(model(nodes, {"x": (None, 2)}, "y", w=w), "dense")
    check(model(nodes, {"x": (None, 4, 2)}, "y", w=w), "dense softmax")


@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_a_convolution_takes_its_bias(rng, kind):
    conv = node(kind, "x", "h", {"weight": rng.standard_normal((2, 2, 3))})
    nodes = [conv, node("binary", "h b", "y", function="add")]
    check(model(nodes, {"x": (None, 2, 7)}, "y", b=rng.standard_normal((2, 1))), kind)
    check(model(nodes, {"x": (None, 2, 7)}, "y", b=rng.standard_normal((1, 2, 1))), kind)
    check(model(nodes, {"x": (None, 2, 2)}, "y", b=rng.standard_normal(1)), kind)
    long = 5 if kind == "conv" else 9
    check(model(nodes, {"x": (None, 2, 7)}, "y", b=rng.standard_normal(long)), f"{kind} binary")


@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalisation_scales_a_convolution(rng, bias):
    conv = node(
        "conv",
        "x",
        "h",
        {"weight": rng.standard_normal((4, 2, 3)), **({"bias": rng.standard_normal(4)} if bias else {})},
    )
    moments = {
        "mean": rng.standard_normal(4),
        "var": rng.uniform(0.5, 2, 4),
        "weight": rng.standard_normal(4),
        "bias": rng.standard_normal(4),
    }
    norm = node("batch_norm", "h", "n", moments, channels_first=True)
    check(model([conv, norm, node("activation", "n", "y", activation="relu")], {"x": (None, 2, 7)}, "y"), "conv")


def test_batch_normalisation_scales_a_dense_layer(rng):
    dense = node("dense", "x", "h", {"weight": rng.standard_normal((4, 2))})
    norm = node("batch_norm", "h", "y", {"mean": rng.standard_normal(4), "var": rng.uniform(0.5, 2, 4)})
    check(model([dense, norm], {"x": (None, 5, 2)}, "y"), "dense")
    norm.attrs["channels_first"] = True
    check(model([dense, norm], {"x": (None, 2)}, "y"), "dense")
    check(model([dense, norm], {"x": (None, 4, 2)}, "y"), "dense batch_norm")


def test_powers_are_activations():
    nodes = [
        node("binary", "x two", "a", function="pow"),
        node("binary", "x x", "b", function="mul"),
        node("binary", "a b", "s", function="add"),
        node("binary", "s half", "y", function="pow"),
    ]
    better = check(model(nodes, {"x": (None, 3)}, "y", two=2.0, half=0.5), "activation binary activation")
    assert [n.attr("activation") for n in better.nodes[::2]] == ["square", "sqrt"]


def test_silu_is_one_activation():
    nodes = [node("activation", "x", "s", activation="sigmoid"), node("binary", "s x", "y", function="mul")]
    check(model(nodes, {"x": (None, 3)}, "y"), "activation")
    check(model(nodes, {"x": (None, 3)}, "y s"), "activation binary")


def test_transposes_and_squeezes_cancel():
    nodes = [
        node("transpose", "x", "a", perm=[1, 2, 0]),
        node("transpose", "a", "b", perm=[2, 0, 1]),
        node("unsqueeze", "b", "c", axes=[-1]),
        node("squeeze", "c", "d", axes=[3]),
        node("activation", "d", "y", activation="tanh"),
    ]
    check(model(nodes, {"x": (None, 3, 4)}, "y"), "activation")


def test_axes_that_come_and_go():
    nodes = [
        node("squeeze", "x", "a", axes=[1]),
        node("unsqueeze", "a", "b", axes=[0]),
        node("reshape", "b to", "c"),
        node("activation", "c", "y", activation="tanh"),
    ]
    check(model(nodes, {"x": (None, 1, 4)}, "y", to=[-1, 1, 4]), "activation")
    check(model(nodes, {"x": (None, 1, 4)}, "y", to=[1, -1, 4]), "reshape activation")


def test_a_transpose_of_axes_of_one_element_goes():
    nodes = [node("transpose", "x", "a", perm=[1, 0, 2]), node("activation", "a", "y", activation="tanh")]
    check(model(nodes, {"x": (1, 1, 4)}, "y"), "activation")
    check(model(nodes, {"x": (2, 2, 4)}, "y"), "transpose activation")
    nodes = [node("transpose", "x", "a", perm=[2, 1, 0]), node("activation", "a", "y", activation="tanh")]
    check(model(nodes, {"x": (4, 1, 4)}, "y"), "transpose activation")


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_layer_takes_the_order_of_its_axes(rng, batch_first):
    """As ONNX files from Keras have it: y of a layer has an axis of directions."""
    weights = {"weight_ih_l0": rng.standard_normal((8, 3)), "weight_hh_l0": rng.standard_normal((8, 2))}
    nodes = [
        node("transpose", "x", "swapped", perm=[1, 0, 2]),
        node("lstm", "swapped", "h h_n", weights, batch_first=batch_first),
        node("unsqueeze", "h", "directions", axes=[1]),
        node("transpose", "directions", "batch", perm=[2, 1, 0, 3]),
        node("squeeze", "batch", "y", axes=[1]),
    ]
    better = check(model(nodes, {"x": (None, 4, 3)}, "y h_n"), "lstm")
    assert better.nodes[0].attr("batch_first") is not batch_first


@pytest.mark.parametrize("eps", ["v eps", "eps v"])
def test_normalisation_that_was_taken_apart(rng, eps):
    nodes = [
        node("reduce", "x", "m", function="mean", axes=[2]),
        node("binary", "x m", "d", function="sub"),
        node("binary", "x m", "d2", function="sub"),
        node("binary", "d2 two", "s", function="pow"),
        node("reduce", "s", "v", function="mean", axes=[-1]),
        node("binary", eps, "e", function="add"),
        node("activation", "e", "r", activation="sqrt"),
        node("binary", "d r", "q", function="div"),
        node("binary", "gain q", "g", function="mul"),
        node("binary", "g shift", "y", function="add"),
    ]
    constants = {"two": 2.0, "eps": 1e-3, "gain": rng.standard_normal(3), "shift": rng.standard_normal(3)}
    better = check(model(nodes, {"x": (None, 4, 3)}, "y", **constants), "layer_norm")
    assert sorted(better.nodes[0].weights) == ["bias", "weight"]
    nodes[0].attrs["axes"] = [1]
    assert "layer_norm" not in [n.op for n in optimize(model(nodes, {"x": (None, 4, 3)}, "y", **constants)).nodes]


def test_keras_tensordot_is_dense(rng):
    nodes = [
        node("reshape", "x rows", "r"),
        node("matmul", "r w", "m"),
        node("reshape", "m back", "t"),
        node("binary", "t b", "u", function="add"),
        node("activation", "u", "y", activation="sigmoid"),
    ]
    constants = {"rows": [-1, 3], "back": [-1, 4, 2], "w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}
    check(model(nodes, {"x": (None, 4, 3)}, "y", **constants), "dense")
    constants["back"] = [4, -1, 2]
    check(model(nodes, {"x": (None, 4, 3)}, "y", **constants), "reshape dense reshape")
    constants["back"] = [8, -1]
    constants["b"] = rng.standard_normal(4)
    check(model(nodes, {"x": (4, 4, 3)}, "y", **constants), "reshape dense reshape binary activation")


def test_a_convolution_of_one_tap_between_transposes_is_dense(rng):
    nodes = [
        node("transpose", "x", "a", perm=[0, 2, 1]),
        node("conv", "a", "b", {"weight": rng.standard_normal((5, 3, 1)), "bias": rng.standard_normal(5)}),
        node("transpose", "b", "y", perm=[0, 2, 1]),
    ]
    check(model(nodes, {"x": (None, 4, 3)}, "y"), "dense")
    nodes[1].attrs["strides"] = [2]
    check(model(nodes, {"x": (None, 4, 3)}, "y"), "transpose conv transpose")


def test_bodies_of_loops_are_optimised_too(rng):
    body = Graph(
        [
            node("identity", "go", "on"),
            node("matmul", "h w", "m"),
            node("binary", "m b", "n", function="add"),
            node("activation", "n", "next", activation="tanh"),
        ],
        [Tensor("k", (), "int64"), Tensor("go", (), "bool"), Tensor("h", None)],
        [Tensor("on", None), Tensor("next", None), Tensor("next", None)],
    )
    loop = node("loop", "trips always x", "last all", graphs={"body": body})
    spec = model(
        [loop],
        {"x": (None, 3)},
        "last all",
        trips=4,
        always=True,
        w=rng.standard_normal((3, 3)),
        b=rng.standard_normal(3),
    )
    better = check(spec, "loop")
    assert [n.op for n in better.nodes[0].graphs["body"].nodes] == ["identity", "dense"]
