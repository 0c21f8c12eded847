"""Cells written with array operators, in every way that exporters and people write them, are found again."""

import itertools

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.graph.optimize import optimize
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

B, I, H = 3, 5, 4  # noqa: E741


class Builder:
    """Writes nodes one by one; a method returns the name of the tensor that its node writes."""

    def __init__(self, seed=3):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], {}

    def add(self, op, *inputs, outputs=1, **attrs):
        names = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(Node(op, f"n{len(self.nodes)}", inputs, tuple(names), attrs))
        return names if outputs > 1 else names[0]

    def constant(self, *shape, value=None):
        name = f"c{len(self.constants)}"
        array = self.rng.uniform(-0.8, 0.8, shape) if value is None else np.asarray(value)
        self.constants[name] = array
        return name

    def binary(self, function, a, b):
        return self.add("binary", a, b, function=function)

    def act(self, name, x):
        return self.add("activation", x, activation=name)

    def product(self, x, units, size):
        return self.add("matmul", x, self.constant(size, units))

    def dense(self, x, units, size):
        node = self.add("dense", x)
        weights = {"weight": self.rng.uniform(-0.8, 0.8, (units, size)), "bias": self.rng.uniform(-0.8, 0.8, units)}
        self.nodes[-1].weights = weights
        return node

    def rename(self, old, new):
        for node in self.nodes:
            node.inputs = tuple(new if name == old else name for name in node.inputs)
            node.outputs = tuple(new if name == old else name for name in node.outputs)

    def spec(self, outputs, c=True, **shapes):
        """The spec of inputs x, h and perhaps c, in other ``shapes`` or with more inputs."""
        for old, new in outputs.items():
            self.rename(old, new)
        shapes = {"x": (None, I), "h": (None, H), **({"c": (None, H)} if c else {}), **shapes}
        inputs = [Tensor(name, shape) for name, shape in shapes.items() if shape != "none"]
        spec = ModelSpec(self.nodes, inputs, [Tensor(name, None) for name in outputs.values()], self.constants)
        spec.validate()
        return spec


def check(spec, *ops, feeds=None):
    """Optimise; the kinds of nodes that are left, and the same outputs in float64."""
    better = optimize(spec)
    assert [n.op for n in better.nodes] == list(ops)
    rng = np.random.default_rng(1)
    feeds = feeds or {t.name: rng.standard_normal([B if n is None else n for n in t.shape]) for t in spec.inputs}
    expected, got = reference.run(spec, feeds), reference.run(better, feeds)
    for tensor in spec.outputs:
        np.testing.assert_allclose(got[tensor.name], expected[tensor.name], rtol=1e-12, atol=1e-12)
    return better


# How the sums of all gates are written: build(b, x, units) gives their names.


def two_products(b, units):
    return b.binary("add", b.product("x", units, I), b.product("h", units, H))


def bias_last(b, units):
    return b.binary("add", two_products(b, units), b.constant(units))


def bias_between(b, units):
    first = b.binary("add", b.constant(1, units), b.product("h", units, H))
    return b.binary("add", b.product("x", units, I), first)


def two_dense(b, units):
    return b.binary("add", b.dense("h", units, H), b.dense("x", units, I))


def joined(b, units):
    return b.dense(b.add("concat", "x", "h", axis=1), units, I + H)


def joined_from_behind(b, units):
    product = b.product(b.add("concat", "h", "x", axis=-1), units, I + H)
    return b.binary("add", b.constant(units), product)


TOTALS = [two_products, bias_last, bias_between, two_dense, joined, joined_from_behind]


def by_split(b, total, count):
    return b.add("split", total(b, count * H), outputs=count, axis=1)


def by_uneven_split(b, total, count):
    """The last two gates in one part, which is split again."""
    *first, last = b.add("split", total(b, count * H), outputs=count - 1, axis=-1, sizes=[H] * (count - 2) + [2 * H])
    return [*first, *b.add("split", last, outputs=2, axis=-1)]


def by_slices(b, total, count):
    whole, axis = total(b, count * H), b.constant(value=[1])
    bounds = [b.constant(value=[k * H]) for k in range(count + 1)]
    return [b.add("slice", whole, bounds[k], bounds[k + 1], axis) for k in range(count)]


def apart(b, total, count):
    return [total(b, H) for _ in range(count)]


SLICINGS = [by_split, by_uneven_split, by_slices, apart]


def lstm(b, gates, order="ifgo", commuted=False, gate="sigmoid", cell="tanh", hidden="tanh", after=lambda b, k, x: x):
    """From sums to (h, c), the gates standing in an order."""

    def mul(x, y):
        return b.binary("mul", *((y, x) if commuted else (x, y)))

    i, f, g, o = (after(b, k, gates[order.index(k)]) for k in "ifgo")
    i, f, g, o = b.act(gate, i), b.act(gate, f), b.act(cell, g), b.act(gate, o)
    terms = [mul(f, "c"), mul(i, g)]
    c = b.binary("add", *(terms[::-1] if commuted else terms))
    return mul(o, b.act(hidden, c)), c


def lstm_spec(total=bias_last, slicing=by_split, **options):
    b = Builder()
    h, c = lstm(b, slicing(b, total, 4), **options)
    return b.spec({h: "h_n", c: "c_n"})


@pytest.mark.parametrize("slicing", SLICINGS)
@pytest.mark.parametrize("total", TOTALS)
def test_lstm_sums_in_any_form(total, slicing):
    node = check(lstm_spec(total, slicing), "lstm").nodes[0]
    assert node.attr("unbatched")
    assert node.inputs == ("x", "h", "c")
    assert node.outputs == ("h_n", "", "c_n")


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.permutations("ifgo")])
@pytest.mark.parametrize("commuted", [False, True])
def test_lstm_gates_in_any_order(order, commuted):
    check(lstm_spec(order=order, commuted=commuted), "lstm")


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", ["hard_sigmoid", 1 / 6, 0.5], "relu"])
@pytest.mark.parametrize("cell", ["tanh", "relu", "sigmoid", "softsign"])
def test_lstm_activations(gate, cell):
    check(lstm_spec(gate=gate, cell=cell, hidden="elu"), "lstm")


def test_lstm_activation_in_front_of_the_split():
    b = Builder()
    total, (i, f, o) = bias_last(b, 4 * H), range(3)
    gates, g = b.add("split", total, outputs=2, axis=1, sizes=[3 * H, H])
    parts = b.add("split", b.act("sigmoid", gates), outputs=3, axis=1)
    c = b.binary("add", b.binary("mul", parts[f], "c"), b.binary("mul", parts[i], b.act("tanh", g)))
    h = b.binary("mul", b.act("tanh", c), parts[o])
    check(b.spec({h: "h_n", c: "c_n"}), "lstm")


def test_lstm_with_peepholes():
    b = Builder()
    gates = by_split(b, bias_last, 4)
    i, f = (b.binary("add", gates[k], b.binary("mul", "c", b.constant(H))) for k in (0, 1))
    i, f, g = b.act("sigmoid", i), b.act("sigmoid", f), b.act("tanh", gates[2])
    c = b.binary("add", b.binary("mul", f, "c"), b.binary("mul", i, g))
    o = b.act("sigmoid", b.binary("add", b.binary("mul", b.constant(H), c), gates[3]))
    h = b.binary("mul", o, b.act("tanh", c))
    node = check(b.spec({h: "h_n", c: "c_n"}), "lstm").nodes[0]
    assert node.weights["peephole_l0"].shape == (3 * H,)


def test_lstm_with_coupled_gates():
    b = Builder()
    f, g, o = by_split(b, bias_last, 3)
    f, g, o = b.act("sigmoid", f), b.act("tanh", g), b.act("sigmoid", o)
    i = b.binary("sub", b.constant(value=1.0), f)
    c = b.binary("add", b.binary("mul", f, "c"), b.binary("mul", i, g))
    h = b.binary("mul", o, b.act("tanh", c))
    assert check(b.spec({h: "h_n", c: "c_n"}), "lstm").nodes[0].attr("coupled_input_forget")


def test_lstm_of_more_than_two_inputs():
    b = Builder()
    both = b.add("concat", "x", "z", "h", axis=1)
    h, c = lstm(b, b.add("split", b.dense(both, 4 * H, I + 2 + H), outputs=4, axis=1))
    check(b.spec({h: "h_n", c: "c_n"}, z=(None, 2)), "concat", "lstm")


def test_lstm_state_in_one_tensor():
    """Which input is the state follows from where the cell comes from, also where both have its size."""
    b = Builder()
    zero, one = b.constant(value=0), b.constant(value=1)
    h, c = b.add("gather", "state", zero, axis=0), b.add("gather", "state", one, axis=0)
    total = b.binary("add", b.dense(h, 4 * H, H), b.dense("x", 4 * H, H))
    h_n, c_n = lstm(b, b.add("split", total, outputs=4, axis=1))
    b.rename("c", c)
    spec = b.spec({h_n: "h_n", c_n: "c_n"}, c=False, x=(None, H), h="none", state=(2, None, H))
    assert check(spec, "gather", "gather", "lstm").nodes[-1].inputs == ("x", h, c)


def gru(b, slicing, total, after, form, update="keep", order="rzn", gate="sigmoid", cell="tanh"):
    """A GRU; ``after``: the reset gate works on the product."""
    if after:
        xs = slicing(b, lambda b, units: b.dense("x", units, I), 3)
        hs = slicing(b, lambda b, units: b.dense("h", units, H), 3)
        r, z = (b.act(gate, b.binary("add", xs[order.index(k)], hs[order.index(k)])) for k in "rz")
        inner = b.binary("add", xs[order.index("n")], b.binary("mul", r, hs[order.index("n")]))
    else:
        r, z = (b.act(gate, name) for name in by_split(b, total, 2))
        reset = b.binary("mul", "h", r)
        inner = b.binary("add", b.dense("x", H, I), b.product(reset, H, H))
    n = b.act(cell, inner)
    new, old = ("h", n) if update == "keep" else (n, "h")  # what z = 1 and z = 0 give
    if form == "difference":
        return b.binary("add", old, b.binary("mul", b.binary("sub", new, old), z))
    one = b.constant(value=np.ones((1,) if form == "vector" else ()))
    rest = b.binary("mul", b.binary("sub", one, z), old)
    return b.binary("add", *((b.binary("mul", z, new), rest) if form == "first" else (rest, b.binary("mul", new, z))))


@pytest.mark.parametrize("slicing", SLICINGS)
@pytest.mark.parametrize("form", ["first", "last", "vector", "difference"])
@pytest.mark.parametrize("update", ["keep", "take"])
@pytest.mark.parametrize("after", [True, False])
def test_gru(slicing, form, update, after):
    b = Builder()
    node = check(b.spec({gru(b, slicing, joined, after, form, update): "h_n"}, c=False), "gru").nodes[0]
    assert (node.attr("reset_after"), node.attr("update_gate"), node.inputs) == (after, update, ("x", "h"))


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.permutations("rzn")])
def test_gru_gates_in_any_order(order):
    b = Builder()
    check(b.spec({gru(b, by_split, joined, True, "last", order=order): "h_n"}, c=False), "gru")


@pytest.mark.parametrize("total", TOTALS)
def test_gru_with_the_reset_before_the_product(total):
    b = Builder()
    check(b.spec({gru(b, by_split, total, False, "last"): "h_n"}, c=False), "gru")


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn(total, activation):
    b = Builder()
    assert check(b.spec({b.act(activation, total(b, H)): "h_n"}, c=False), "rnn").nodes[0].inputs == ("x", "h")


# What is not certain stays as it is.


def stays(spec):
    assert not {"lstm", "gru", "rnn"} & {n.op for n in check(spec, *(n.op for n in optimize(spec).nodes)).nodes}


def test_a_gate_that_is_read_elsewhere_keeps_its_nodes():
    b = Builder()
    gates = by_split(b, bias_last, 4)
    h, c = lstm(b, gates)
    stays(b.spec({h: "h_n", c: "c_n", gates[0]: "gate"}))
    b = Builder()
    gates = by_split(b, bias_last, 4)
    h, c = lstm(b, gates)
    stays(b.spec({h: "h_n", c: "c_n", b.act("tanh", gates[3]): "gate"}))


def test_weights_that_are_no_constants():
    b = Builder()
    total = b.binary("add", b.product("x", 4 * H, I), b.add("matmul", "h", "u"))
    h, c = lstm(b, b.add("split", total, outputs=4, axis=1))
    stays(b.spec({h: "h_n", c: "c_n"}, u=(H, 4 * H)))


def test_gates_of_different_activations():
    b = Builder()
    i, f, g, o = by_split(b, bias_last, 4)
    c = b.binary("add", b.binary("mul", b.act("sigmoid", f), "c"), b.binary("mul", b.act("relu", i), b.act("tanh", g)))
    stays(b.spec({b.binary("mul", b.act("sigmoid", o), b.act("tanh", c)): "h_n", c: "c_n"}))


def test_an_activation_that_no_cell_has():
    stays(lstm_spec(hidden="exp"))
    stays(lstm_spec(cell="gelu"))


def test_something_between_the_sum_and_a_gate():
    for gate in "ifgo":
        stays(lstm_spec(after=lambda b, k, x, gate=gate: b.binary("mul", x, b.constant(H)) if k == gate else x))


def test_rows_that_may_broadcast():
    spec = lstm_spec()
    spec.inputs[1] = Tensor("h", (1, H))
    stays(spec)
    spec = lstm_spec()
    spec.inputs[2] = Tensor("c", (None, 1))
    stays(spec)


def test_axes_that_are_not_known():
    spec = lstm_spec()
    spec.inputs[0] = Tensor("x", None)
    assert "lstm" not in {n.op for n in optimize(spec).nodes}


def test_a_split_along_the_rows():
    b = Builder()
    total = b.binary("add", b.product("x", H, I), b.product("h", H, H))
    h, c = lstm(b, b.add("split", total, outputs=4, axis=0))
    stays(b.spec({h: "h_n", c: "c_n"}, x=(4, I), h=(4, H), c=(1, H)))


def test_one_minus_z_is_not_two_minus_z():
    b = Builder()
    spec = b.spec({gru(b, by_split, joined, True, "last"): "h_n"}, c=False)
    (one,) = [name for name, array in b.constants.items() if array.size == 1]
    b.constants[one] = np.float64(2)
    stays(spec)


def test_a_gru_that_mixes_in_something_else():
    b = Builder()
    h = gru(b, by_split, joined, True, "difference")
    b.nodes[-2].inputs = tuple("other" if name == b.nodes[-3].outputs[0] else name for name in b.nodes[-2].inputs)
    stays(b.spec({h: "h_n"}, c=False, other=(None, H)))


def test_a_sum_of_two_dense_layers_is_no_rnn_without_a_state():
    b = Builder()
    h = b.act("tanh", b.binary("add", b.dense("x", H, I), b.dense(b.act("exp", "h"), H, H)))
    stays(b.spec({h: "h_n"}, c=False))
    b = Builder()
    h = b.act("tanh", two_dense(b, H))
    stays(b.spec({b.dense(h, 2, H): "y"}, c=False))


# Bodies.


def test_a_cell_in_a_branch():
    b = Builder()
    h, c = lstm(b, by_split(b, bias_last, 4))
    then = Graph(b.nodes, [], [Tensor(h, None)], b.constants)
    choice = Node("if", "if", ("flag",), ("y",), graphs={"then": then, "else": Graph([], [], [Tensor("h", None)])})
    inputs = [Tensor("x", (None, I)), Tensor("h", (None, H)), Tensor("c", (None, H)), Tensor("flag", (), "bool")]
    spec = ModelSpec([choice], inputs, [Tensor("y", None)])
    better = optimize(spec)
    assert [n.op for n in better.nodes[0].graphs["then"].nodes] == ["lstm"]
    assert c not in better.nodes[0].graphs["then"].outputs


def scan_spec(build, axis=0, backwards=0, written=0, states="hc", tap=False):
    """A scan whose body is a cell, all of whose steps are read; ``tap``: an output of x too."""
    b = Builder()
    made = build(b)
    outputs = [*made, made[states.index("h")], *(["x"] if tap else [])]
    body = Graph(b.nodes, [Tensor(n, None) for n in (*states, "x")], [Tensor(n, None) for n in outputs], b.constants)
    attrs = {"axes": [axis], "directions": [backwards]}
    attrs |= {"output_axes": [axis] * (1 + tap), "output_directions": [written] * (1 + tap)}
    initial = [f"{name}_0" for name in states]
    names = [f"{name}_n" for name in states] + ["y", "z"][: 1 + tap]
    scan = Node("scan", "scan", (*initial, "xs"), tuple(names), attrs, graphs={"body": body})
    inputs = [Tensor(name, (B, H)) for name in initial] + [Tensor("xs", (B, None, I) if axis else (None, B, I))]
    return ModelSpec([scan], inputs, [Tensor(name, None) for name in names])


def scan_feeds(spec, seq_len=4):
    rng = np.random.default_rng(2)
    sizes = {tensor.name: [B if len(tensor.shape) == 2 else seq_len, H] for tensor in spec.inputs}
    sizes["xs"] = [seq_len if n is None else n for n in spec.inputs[-1].shape]
    return {name: rng.standard_normal(shape) for name, shape in sizes.items()}


SCANS = {
    "lstm": ("hc", lambda b: lstm(b, by_split(b, bias_last, 4))),
    "lstm, c first": ("ch", lambda b: lstm(b, by_split(b, bias_last, 4))[::-1]),
    "gru": ("h", lambda b: [gru(b, by_split, joined, True, "last")]),
    "gru, reset before": ("h", lambda b: [gru(b, by_split, joined, False, "last", update="take")]),
    "rnn": ("h", lambda b: [b.act("tanh", two_dense(b, H))]),
}


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("backwards", "written"), [(0, 0), (1, 1), (1, 0)])
def test_a_scan_of_a_cell_is_a_layer(kind, axis, backwards, written):
    states, build = SCANS[kind]
    spec = scan_spec(build, axis, backwards, written, states)
    op = kind.split(",")[0]
    squeezes = len(states)
    check(spec, *["unsqueeze"] * squeezes, op, *["squeeze"] * squeezes, feeds=scan_feeds(spec))


def test_a_scan_that_is_no_layer_keeps_its_cell():
    _, build = SCANS["lstm"]
    for spec in (scan_spec(build, written=1), scan_spec(build, tap=True)):
        better = check(spec, "scan", feeds=scan_feeds(spec))
        assert "lstm" in [n.op for n in better.nodes[0].graphs["body"].nodes]
