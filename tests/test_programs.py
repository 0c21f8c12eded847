"""Graphs of array operators: every operator against its float64 function, in every layout, and what plans keep."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.spec import BINARY, REDUCTIONS, Graph, ModelSpec, Node, Tensor

RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(nodes, feeds, outputs, constants=None) -> fastrnn.Model:
    """A model whose inputs are declared as the feeds are."""
    inputs = [Tensor(name, None, str(a.dtype)) for name, a in feeds.items()]
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(name, None) for name in outputs], constants or {}))


def check(nodes, feeds, outputs=("y",), constants=None, tolerance=2e-6) -> fastrnn.Model:
    """The model gives what the reference gives, in shape, kind and value."""
    model = model_of(nodes, feeds, outputs, constants)
    exact = reference.run(model.spec, feeds)
    for _ in range(2):  # the second run uses the plan of the first
        made = model.run(feeds)
        for name in outputs:
            wanted = np.asarray(exact[name])
            assert made[name].shape == wanted.shape, name
            assert (made[name].dtype.kind == "f") == (wanted.dtype.kind == "f"), name
            scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0))) if wanted.size else 1.0
            np.testing.assert_allclose(made[name], wanted, rtol=0, atol=tolerance * scale, equal_nan=True)
    return model


X = floats(2, 3, 4)
ONE_INPUT = [
    ("identity", {}, {}),
    ("transpose", {"perm": (2, 0, 1)}, {}),
    ("transpose", {}, {}),
    ("softmax", {"axis": 1}, {}),
    ("softmax", {"axis": -1, "logarithm": True}, {}),
    ("flatten", {"axis": 1}, {}),
    ("flatten", {"axis": 0}, {}),
    ("unsqueeze", {"axes": (0, 2)}, {}),
    ("unsqueeze", {"axes": (-1,)}, {}),
    ("reshape", {}, {"shape": ints(0, -1)}),
    ("reshape", {}, {"shape": ints(4, 6)}),
    ("expand", {}, {"shape": ints(5, 1, 3, 1)}),
    ("tile", {}, {"repeats": ints(2, 1, 3)}),
    ("gather", {"axis": 1}, {"indices": ints(2, 1, 0)}),
    ("gather", {"axis": 2}, {"indices": ints(0, 3, 1)}),
    ("gather", {"axis": 1}, {"indices": np.array(-1)}),
    ("gather", {"axis": 0}, {"indices": np.array([[0, 1], [1, 1]])}),
    ("slice", {}, {"starts": ints(1), "ends": ints(2**62), "axes": ints(2)}),
    ("slice", {}, {"starts": ints(-1, 0), "ends": ints(-(2**62), 2), "axes": ints(1, 2), "steps": ints(-1, 1)}),
    ("slice", {}, {"starts": ints(2), "ends": ints(1)}),
    ("pad", {}, {"pads": ints(0, 1, 2, 0, 0, 3)}),
    ("pad", {}, {"pads": ints(0, -1, 1, 0, 0, -2), "value": np.float32(2)}),
    ("pad", {"mode": "reflect"}, {"pads": ints(1, 2, 3, 0, 1, 2)}),
    ("pad", {"mode": "edge"}, {"pads": ints(4, 1), "value": None, "axes": ints(-1)}),
    ("pad", {"mode": "wrap"}, {"pads": ints(1, 2), "value": None, "axes": ints(1)}),
    ("cumsum", {"axis": 1, "exclusive": True, "reverse": True}, {}),
    ("argmax", {"axis": 1}, {}),
    ("argmax", {"axis": -1, "largest": False, "last": True, "keepdims": False}, {}),
    ("cast", {"dtype": "int64"}, {}),
    ("cast", {"dtype": "bool"}, {}),
    ("cast", {"dtype": "float64"}, {}),
    ("unary", {"function": "sin"}, {}),
    ("unary", {"function": "isnan"}, {}),
    ("shape", {"start": 1}, {}),
    ("size", {}, {}),
    *(("activation", {"activation": name}, {}) for name in ("abs", "neg", "sign", "square", "floor", "round", "erf")),
    *(("reduce", {"function": name, "axes": (1,)}, {}) for name in REDUCTIONS if name != "log_sum"),
    *(("reduce", {"function": name, "axes": (0, -1), "keepdims": False}, {}) for name in ("sum", "max", "l2")),
    ("reduce", {"function": "mean"}, {}),
]


def views_of(x: np.ndarray):
    """Nodes that make the tensor ``x`` by other ways in memory, with what they need."""
    yield [Node("identity", "as it is", ("in",), ("x",))], x
    yield [Node("transpose", "turned", ("in",), ("x",), {"perm": (1, 2, 0)})], np.transpose(x, (2, 0, 1))
    wide = np.concatenate([x, x + 1], 2)
    half = Node("split", "half", ("in",), ("x", "rest"), {"axis": 2})
    yield [half], wide


@pytest.mark.parametrize(("op", "attrs", "more"), ONE_INPUT)
def test_operator_on_every_layout(op, attrs, more):
    for nodes, source in views_of(X):
        names = tuple(name if array is not None else "" for name, array in more.items())
        constants = {name: np.asarray(array) for name, array in more.items() if array is not None}
        node = Node(op, "node", ("x", *names), ("y",), attrs)
        check([*nodes, node], {"in": source}, constants=constants)
        if constants:  # the same, when the values come with the call
            check([*nodes, node], {"in": source, **constants})


@pytest.mark.parametrize("function", BINARY)
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (3, 1), (1, 1, 1), (), (2, 1, 4)])
def test_binary(function, shape):
    a, b = np.abs(X) + 0.5, np.abs(floats(*shape)) + 0.5
    if function in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        a, b = np.round(a), np.round(b)
    if function in ("and", "or", "xor"):
        a, b = a > 1, b > 1
    node = Node("binary", "node", ("a", "b"), ("y",), {"function": function})
    check([node], {"a": a, "b": b})
    turned = Node("transpose", "turned", ("in",), ("a",), {"perm": (2, 0, 1)})
    check([turned, node], {"in": np.transpose(a, (1, 2, 0)).copy(), "b": b})


def test_scalars_stay_scalars():
    half = {"half": np.array(0.5, np.float32)}
    check([Node("binary", "add", ("half", "x"), ("y",), {"function": "add"})], {"x": floats()}, constants=half)
    then = Graph(
        [Node("binary", "inner", ("x", "half"), ("sum",), {"function": "add"})], [], [Tensor("sum", None)], half
    )
    body = Graph([Node("identity", "same", ("x",), ("copy",))], [], [Tensor("copy", None)])
    choice = Node("if", "choice", ("condition",), ("y",), graphs={"then": then, "else": body})
    for condition in (True, False):
        check([choice], {"x": floats(), "condition": np.array(condition)})


@pytest.mark.parametrize("ndim", [5, 8, 9])
def test_many_axes(ndim):
    x = floats(*[2] * ndim)
    nodes = [
        Node("transpose", "turned", ("x",), ("t",), {"perm": [*range(1, ndim), 0]}),
        Node("binary", "sum", ("t", "x"), ("s",), {"function": "add"}),
        Node("reduce", "total", ("s",), ("r",), {"function": "sum", "axes": [1, 3]}),
        Node("tile", "twice", ("r", "repeats"), ("y",)),
    ]
    constants = {"repeats": ints(*[2] * ndim)}
    check(nodes, {"x": x}, ("s", "r", "y"), constants)
    tanh = Node("activation", "tanh", ("t",), ("z",), {"activation": "tanh"})
    if ndim <= 8:
        check([*nodes, tanh], {"x": x}, ("z",), constants)
        return
    with pytest.raises(fastrnn.UnsupportedError, match=r"'tanh'.* 9 axes, at most 8"):
        model_of([*nodes, tanh], {"x": x}, ("z",), constants).run({"x": x})


def test_rows_that_overlap(backend):
    """One row, one row many times, windows, and rows from the last to the first: what a BLAS does not take."""
    weights = {"weight": floats(5, 4), "bias": floats(5)}
    dense = Node("dense", "dense", ("rows",), ("y",), {}, weights)
    ways = {
        (): Node("unsqueeze", "one", ("x",), ("rows",), {"axes": [0]}),
        (1,): Node("expand", "many", ("x", "shape"), ("rows",)),
        (6,): Node("slice", "back", ("x", "last", "first", "axis", "step"), ("rows",)),
    }
    constants = {"shape": ints(7, 4), "last": ints(-1), "first": ints(-100), "axis": ints(0), "step": ints(-1)}
    for shape, node in ways.items():
        x = floats(*shape, 4)
        spec = model_of([node, dense], {"x": x}, ("y",), constants).spec
        made = fastrnn.Model(spec, backend=backend).run({"x": x})["y"]
        np.testing.assert_allclose(made, reference.run(spec, {"x": x})["y"], rtol=0, atol=3e-6, err_msg=node.name)
    filters = Node("conv", "filter", ("x",), ("y",), {}, {"weight": floats(6, 2, 3), "bias": floats(6)})
    x = floats(2, 2, 9)
    spec = model_of([filters], {"x": x}, ("y",)).spec
    made = fastrnn.Model(spec, backend=backend).run({"x": x})["y"]
    np.testing.assert_allclose(made, reference.run(spec, {"x": x})["y"], rtol=0, atol=3e-6)


def test_integers_and_conditions():
    a, b = ints(7, -7, 6), ints(2, 2, -4)
    for function in ("add", "div", "mod", "fmod", "pow", "less"):
        check([Node("binary", "n", ("a", "b"), ("y",), {"function": function})], {"a": a, "b": np.abs(b)})
    check([Node("binary", "n", ("a", "b"), ("y",), {"function": "div"})], {"a": a, "b": b})
    nodes = [
        Node("binary", "n", ("a", "zero"), ("positive",), {"function": "greater"}),
        Node("where", "w", ("positive", "x", "other"), ("y",)),
        Node("unary", "not", ("positive",), ("z",), {"function": "not"}),
    ]
    check(nodes, {"a": a, "x": floats(2, 3), "other": floats(3)}, ("y", "z"), {"zero": np.array(0)})
    check([Node("activation", "abs", ("a",), ("y",), {"activation": "abs"})], {"a": a})


@pytest.mark.parametrize(
    ("a", "b"),
    [((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((2, 1, 4, 5), (3, 5, 6)), ((5,), (5, 3)), ((2, 4, 5), (5,)), ((5,), (5,)),
     ((60, 130), (130, 70)), ((2, 0, 3), (3, 2)), ((2, 3, 0), (0, 2))],
)  # fmt: skip
def test_matmul(a, b):
    node = Node("matmul", "node", ("a", "b"), ("y",))
    check([node], {"a": floats(*a), "b": floats(*b)})
    if len(b) > 1:
        perm = (*range(len(b) - 2), len(b) - 1, len(b) - 2)
        turned = Node("transpose", "turned", ("in",), ("b",), {"perm": perm})
        check([turned, node], {"a": floats(*a), "in": floats(*(b[k] for k in perm))})


def window_cases():
    for spatial, kernel in [((9,), (3,)), ((7,), (1,)), ((6, 8), (3, 2))]:
        n = len(spatial)
        for strides in (1, 2, 3):
            for pads in ([0] * 2 * n, [1] * 2 * n, [1] * n + [0] * n):
                for dilations in (1, 2):
                    yield spatial, kernel, {"strides": [strides] * n, "pads": pads, "dilations": [dilations] * n}


@pytest.mark.parametrize(("spatial", "kernel", "attrs"), list(window_cases()))
def test_windows(spatial, kernel, attrs):
    x = floats(2, 4, *spatial)
    last = Node("transpose", "last", ("in",), ("x",), {"perm": (0, len(spatial) + 1, *range(1, len(spatial) + 1))})
    turned = np.moveaxis(x, 1, -1).copy()
    for groups, features in ((1, 5), (2, 6), (4, 4), (4, 8)):
        weights = {"weight": floats(features, 4 // groups, *kernel), "bias": floats(features)}
        conv = Node("conv", "c", ("x",), ("y",), {**attrs, "groups": groups, "activation": "tanh"}, weights)
        check([conv], {"x": x})
        check([last, conv], {"in": turned})
        weights = {"weight": floats(4, features // groups, *kernel), "bias": floats(features)}
        node = Node("conv_transpose", "t", ("x",), ("y",), {**attrs, "groups": groups}, weights)
        check([node], {"x": x}, tolerance=4e-6)
    narrow = {"weight": floats(4, 2, *[1] * len(spatial))}  # more is cropped than there is
    check([Node("conv_transpose", "t", ("x",), ("y",), {"pads": [5] * 2 * len(spatial)}, narrow)], {"x": x})
    for function in ("max", "mean"):
        for more in ({}, {"ceil_mode": True}, {"count_include_pad": True}):
            pool = Node("pool", "p", ("x",), ("y",), {**attrs, "kernel": kernel, "function": function, **more})
            check([pool], {"x": x})


def test_normalisations_of_channels():
    w = {name: np.abs(floats(3)) + 0.1 for name in ("mean", "var", "weight", "bias")}
    for first in (True, False):
        x = floats(2, 3, 5) if first else floats(2, 5, 3)
        check([Node("batch_norm", "n", ("x",), ("y",), {"channels_first": first}, w)], {"x": x})
    check([Node("layer_norm", "n", ("x",), ("y",), {"axes": 2})], {"x": floats(2, 3, 5)})


def test_concat_split_stack():
    nodes = [
        Node("concat", "c", ("a", "b", "a"), ("joined",), {"axis": -2}),
        Node("split", "s", ("joined",), ("y", "z"), {"axis": 1, "sizes": [3, 4]}),
        Node("stack", "k", ("y", "y"), ("both",)),
        Node("unstack", "u", ("both",), ("first", "second")),
    ]
    check(nodes, {"a": floats(2, 2, 3), "b": floats(2, 3, 3)}, ("y", "z", "both", "second"))


def test_recurrent_layers_in_every_layout():
    weights = {"weight_ih_l0": floats(32, 4), "weight_hh_l0": floats(32, 8)}
    time_first = Node("transpose", "t", ("in",), ("x",), {"perm": (1, 0, 2)})
    for attrs in (
        {},
        {"batch_first": False},
        {"return_sequences": False},
        {"direction": "reverse", "reverse_output": True},
    ):
        node = Node("lstm", "n", ("x",), ("y", "h", "c"), attrs, weights)
        check([node], {"x": floats(3, 5, 4)}, ("y", "h", "c"), tolerance=1e-5)
        check([time_first, node], {"in": floats(5, 3, 4)}, ("y", "h", "c"), tolerance=1e-5)
    node = Node("lstm", "n", ("x", "h0", "c0", "", "lengths"), ("y", "h", "c"), {}, weights)
    feeds = {"x": floats(3, 5, 4), "h0": floats(1, 3, 8), "c0": floats(1, 3, 8), "lengths": ints(5, 0, 2)}
    check([node], feeds, ("y", "h", "c"), tolerance=1e-5)
    cell = Node("lstm", "n", ("x", "h0", "c0"), ("y", "h", "c"), {"unbatched": True}, weights)
    check([cell], {"x": floats(3, 4), "h0": floats(3, 8), "c0": floats(3, 8)}, ("y", "h", "c"), tolerance=1e-5)


# ---- Control flow ----


def branches() -> Node:
    then = Graph([Node("binary", "sum", ("x", "x"), ("doubled",), {"function": "add"})], [], [Tensor("doubled", None)])
    other = Graph(
        [Node("slice", "part", ("x", "zero", "two"), ("first",))],
        [],
        [Tensor("first", None)],
        {"zero": ints(0), "two": ints(2)},
    )
    return Node("if", "choice", ("condition",), ("y",), graphs={"then": then, "else": other})


@pytest.mark.parametrize("condition", [True, False])
def test_if_at_run_time(condition):
    after = Node("activation", "after", ("y",), ("z",), {"activation": "neg"})
    check([branches(), after], {"x": floats(5, 2), "condition": np.array(condition)}, ("y", "z"))


def test_if_on_a_shape_is_no_question_at_run_time():
    nodes = [
        Node("shape", "s", ("x",), ("sizes",), {"end": 1}),
        Node("binary", "eq", ("sizes", "five"), ("condition",), {"function": "equal"}),
        branches(),
    ]
    for rows in (5, 4):
        model = check(nodes, {"x": floats(rows, 2)}, constants={"five": ints(5)})
        assert model._executable.plan([floats(rows, 2)]).stop is None


def test_loop_and_scan_around_a_cell():
    weights = {"weight_ih_l0": floats(6, 4), "weight_hh_l0": floats(6, 6)}
    cell = Node("rnn", "cell", ("x_t", "h"), ("y_t", "h_new"), {"unbatched": True}, weights)
    scan = Node(
        "scan",
        "scan",
        ("h0", "x"),
        ("h_n", "y"),
        {"num_scanned": 1, "axes": [1], "output_axes": [1]},
        graphs={
            "body": Graph(
                [cell], [Tensor("h", None), Tensor("x_t", None)], [Tensor("h_new", None), Tensor("y_t", None)]
            )
        },
    )
    check([scan], {"h0": floats(3, 6), "x": floats(3, 5, 4)}, ("h_n", "y"), tolerance=1e-5)
    body = Graph(
        [
            Node("gather", "at", ("x", "i"), ("x_t",), {"axis": 1}),
            cell,
            Node("binary", "more", ("i", "last"), ("go_on",), {"function": "less"}),
        ],
        [Tensor("i", ()), Tensor("go", ()), Tensor("h", None)],
        [Tensor("go_on", ()), Tensor("h_new", None), Tensor("y_t", None)],
        {"last": np.array(2)},
    )
    loop = Node("loop", "loop", ("count", "", "h0"), ("h_n", "y"), graphs={"body": body})
    feeds = {"h0": floats(3, 6), "x": floats(3, 5, 4)}
    for count in (2, 5):  # the condition ends the second one after four turns
        check([loop], {**feeds, "count": np.array(count)}, ("h_n", "y"), tolerance=1e-5)


# ---- Plans ----


def network() -> tuple[list[Node], dict[str, np.ndarray]]:
    """A bit of everything, with a long element-wise chain."""
    weights = {"weight": floats(6, 4, 3), "bias": floats(6)}
    lstm = {"weight_ih_l0": floats(32, 6), "weight_hh_l0": floats(32, 8)}
    nodes = [
        Node("conv", "conv", ("x",), ("features",), {"pads": [1, 1]}, weights),
        Node("activation", "square", ("features",), ("squares",), {"activation": "square"}),
        Node("binary", "shift", ("squares", "one"), ("shifted",), {"function": "add"}),
        Node("activation", "root", ("shifted",), ("roots",), {"activation": "sqrt"}),
        Node("binary", "both", ("roots", "features"), ("both_",), {"function": "mul"}),
        Node("transpose", "turn", ("both_",), ("sequence",), {"perm": (0, 2, 1)}),
        Node("lstm", "lstm", ("sequence",), ("hidden", "h_n"), {}, lstm),
        Node("reduce", "mean", ("hidden",), ("y",), {"function": "mean", "axes": (1,), "keepdims": False}),
    ]
    return nodes, {"one": np.array(1, np.float32)}


def test_chains_run_in_blocks():
    nodes, constants = network()
    x = floats(3, 4, 5000)
    model = check(nodes[:5], {"x": x}, ("both_",), constants, tolerance=1e-5)
    kernels, _ = model._executable.describe([x])
    assert kernels[1][0].name == "square"
    few = model.run({"x": x[:, :, :50]})["both_"]
    assert np.array_equal(few[:, :, :49], model.run({"x": x})["both_"][:, :, :49])


def test_bits_do_not_depend_on_batch_threads_or_isa():
    nodes, constants = network()
    x = floats(40, 4, 30)
    first = None
    for isa in [name for name in fastrnn.info()["isas"] if name != "generic"]:
        fastrnn.set_isa(isa)
        model = model_of(nodes, {"x": x}, ("y", "h_n"), constants)
        for threads in (1, 2):
            fastrnn.set_num_threads(threads)
            whole = model.run({"x": x})
            first = first or whole
            assert all(np.array_equal(first[name], whole[name]) for name in whole)
            for rows in (slice(0, 1), slice(7, 9), slice(20, 40)):
                part = model.run({"x": x[rows]})
                assert np.array_equal(part["y"], first["y"][rows])
                assert np.array_equal(part["h_n"], first["h_n"][:, rows])


def test_a_model_keeps_the_instruction_set_it_was_built_with():
    """Also where plans are made later, of other shapes, after a stop and in bodies; generic is the one that differs."""
    tuned = [name for name in fastrnn.info()["isas"] if name != "generic"]
    if not tuned:
        pytest.skip("one kind of bits on this machine")
    fastrnn.set_isa(tuned[0])
    body = Graph([Node("activation", "in", ("x",), ("s",), {"activation": "sigmoid"})], [], [Tensor("s", None)])
    other = Graph([Node("identity", "same", ("x",), ("u",))], [], [Tensor("u", None)])
    nodes = [
        Node("if", "choice", ("condition",), ("t",), graphs={"then": body, "else": other}),
        Node("softmax", "after", ("t",), ("y",)),
    ]
    feeds = {"x": floats(40, 99), "condition": np.array(True)}
    models = [model_of(nodes, feeds, ("y", "t")) for _ in range(2)]
    wanted = models[0].run(feeds)
    fastrnn.set_isa("generic")
    assert not np.array_equal(model_of(nodes, feeds, ("y", "t")).run(feeds)["t"], wanted["t"]), "no difference to see"
    for made in (models[1].run(feeds), models[0].trace(feeds)):
        assert all(np.array_equal(made[name], wanted[name]) for name in wanted)


def test_many_threads_run_one_model():
    nodes, constants = network()
    xs = [floats(1 + k % 3, 4, 10 + k % 4) for k in range(24)]
    model = model_of(nodes, {"x": xs[0]}, ("y",), constants)
    wanted = [model.run({"x": x})["y"] for x in xs]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for k in range(200):
            at = (k * 7 + offset) % len(xs)
            if not np.array_equal(model.run({"x": xs[at]})["y"], wanted[at]):
                wrong.append(at)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_plans_are_kept_for_the_shapes_used_last():
    from fastrnn.engine.executable import MAX_PLANS

    nodes, constants = network()
    model = model_of(nodes, {"x": floats(1, 4, 9)}, ("y",), constants)
    for length in range(3, 3 + 2 * MAX_PLANS):
        model.run({"x": floats(1, 4, length)})
    assert len(model._executable.memory.plans) == MAX_PLANS


def test_a_result_is_the_callers_own():
    nodes = [Node("shape", "s", ("x",), ("sizes",)), Node("identity", "i", ("x",), ("same",))]
    model = model_of(nodes, {"x": X}, ("sizes", "same", "c"), {"c": floats(3)})
    for name, array in model.run({"x": X}).items():
        wanted = array.copy()
        array[...] = 0
        assert np.array_equal(model.run({"x": X})[name], wanted), name
        assert not np.shares_memory(array, X)


def test_shapes_that_do_not_fit_name_the_node():
    bad = Node("concat", "join", ("a", "b"), ("y",), {"axis": 0})
    model = model_of([bad], {"a": X, "b": X}, ("y",))
    with pytest.raises(fastrnn.ShapeError, match="join"):
        model.run({"a": floats(2, 3), "b": floats(2, 4)})
    node = Node("conv", "filter", ("x",), ("y",), {}, {"weight": floats(2, 3, 3)})
    with pytest.raises(fastrnn.ShapeError, match=r"filter.*3"):
        model_of([node], {"x": X}, ("y",)).run({"x": floats(1, 4, 9)})


def test_empty_batches():
    nodes, constants = network()
    model = model_of(nodes, {"x": floats(1, 4, 9)}, ("y", "h_n"), constants)
    made = model.run({"x": floats(0, 4, 9)})
    assert made["y"].shape == (0, 8)
    assert made["h_n"].shape == (1, 0, 8)
