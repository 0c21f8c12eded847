"""Sequences of different lengths through whole models: each has the bits that it has alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from cases import DIRECTIONS, VARIANTS, Case, assert_bits, flat, normal
from test_streaming_graph import array, recurrent
from test_streaming_random import drawn

import fastrnn
from fastrnn import cli
from fastrnn.errors import FastrnnError, ShapeError, UnsupportedError
from fastrnn.graph.lengths import with_lengths
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

END = 2**63 - 1
LENGTHS = (5, 9, 2, 7, 9, 3)
WITH_ZERO = (5, 0, 9, 1)


def sequences(lengths, *features: int) -> list[np.ndarray]:
    return [array(length, *features) for length in lengths]


def ids(lengths) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 9, n) for n in lengths]


def padded(rows, batch: int = 0, time: int = 1) -> np.ndarray:
    """Rows beside each other; what is beyond them must not matter, so it is NaN where it can be."""
    longest = max(map(len, rows))
    filled = [np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows]
    for row, length in zip(filled, map(len, rows)):
        if row.dtype.kind == "f":
            row[length:] = np.nan
    return np.moveaxis(np.stack(filled), (0, 1), (batch, time))


def check(model, rows, batch: int = 0, time: int = 1, others=None) -> None:
    """Lengths, and a list, against a loop over the sequences."""
    model, others = fastrnn.model.as_model(model), others or {}
    name = model.inputs[0].name
    lengths = [len(row) for row in rows]
    together = model.run({name: padded(rows, batch, time), **others}, lengths=lengths)
    lists = model.run({name: [np.moveaxis(row, 0, time - (time > batch)) for row in rows], **others})
    for key, array_ in together.items():
        assert np.array_equal(lists[key], array_, equal_nan=array_.dtype.kind == "f"), f"{key} of a list"
    for k, row in enumerate(rows):
        one_row = {key: value[k : k + 1] for key, value in others.items()}
        alone = model.run({name: padded([row], batch, time), **one_row})
        for key, want in alone.items():
            sizes = enumerate(zip(together[key].shape, want.shape))
            got = np.take(together[key], [k], next(axis for axis, size in sizes if size == (len(rows), 1)))
            part = tuple(map(slice, want.shape))
            what = f"{key} of row {k}, {len(row)} steps"
            assert np.array_equal(got[part], want, equal_nan=want.dtype.kind == "f"), what
            got[part] = 0
            assert not got.any(), f"{what}: not 0 beyond them"


# Layers in a row


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequential(variant):
    standard = variant in ("lstm", "gru", "gru reset before", "rnn")
    for direction in DIRECTIONS if standard else ("bidirectional concat",):
        for zero in (False, True):
            case = Case.of(variant, input_size=6, hidden_size=5, direction=direction, state=False)
            rnn, rows = case.layer(), ids(WITH_ZERO if zero else LENGTHS)
            head = fastrnn.Dense(normal(3, rnn._features, seed=1), activation="softmax")
            embedding = fastrnn.Embedding(normal(9, 6), mask_zero=zero)
            check(fastrnn.Sequential(embedding, rnn.last(), head), rows)
            if standard:
                check(fastrnn.Sequential(embedding, rnn, head), rows)
                check(fastrnn.Sequential(embedding, rnn), rows)


def test_all_layers_in_a_row(isa):
    both = Case.of("lstm", input_size=4, hidden_size=4, direction="bidirectional concat", num_layers=2).layer()
    model = fastrnn.Sequential(
        fastrnn.Dense(normal(6, 6), normal(6)),
        fastrnn.Activation("tanh"),
        fastrnn.LayerNorm(normal(6), normal(6)),
        fastrnn.BatchNorm(normal(6), np.abs(normal(6))),
        fastrnn.Masking(),
        Case.of("gru", input_size=6, hidden_size=4).layer(),
        both,
        fastrnn.Dense(normal(3, 8)),
        fastrnn.Activation("softmax"),
    )
    check(model, sequences(LENGTHS, 6))


def test_padding_is_wrong_without_lengths_and_right_with_them():
    model = fastrnn.Sequential(
        fastrnn.Embedding(normal(9, 6)), Case.of("gru", input_size=6, hidden_size=8).layer().last(),
        fastrnn.Dense(normal(3, 8)),
    )  # fmt: skip
    x = padded(ids((5, 2)))
    alone = model(x[1:, :2])
    assert np.abs(model(x)[1] - alone[0]).max() > 0.01
    for y in (
        model(x, lengths=[5, 2]), model(x=x, lengths=(5, 2)), model([x[0], x[1, :2]]),
        model([x[0].tolist(), x[1, :2].tolist()]), model.run({"x": x}, lengths=np.array([5, 2]))[model.outputs[0].name],
    ):  # fmt: skip
        assert_bits([y[1:]], [alone], "the second row")
    assert model([]).shape == (0, 3)
    assert model(np.zeros((2, 0), int), lengths=[0, 0]).shape == (2, 3)


def test_a_bare_layer_stays_what_it_is():
    for batch_first in (True, False):
        case = Case.of("lstm", batch=3, seq_len=4, batch_first=batch_first, state=False)
        model = fastrnn.model.as_model(case.layer())
        want = flat(case.layer()(case.x, lengths=[4, 0, 2]))
        assert_bits(flat(model(case.x, lengths=[4, 0, 2])), want, "called")
        assert_bits(list(model.run({"x": case.x}, lengths=[4, 0, 2]).values()), want, "by names")
    node = case.layer().node
    spec = ModelSpec([node], [Tensor("x", None)], [Tensor(n, None) for n in node.outputs], nested_state=True)
    node.inputs = ("x",)
    assert_bits(list(fastrnn.Model(spec).run({"x": case.x}, lengths=[4, 0, 2]).values()), want, "without the input")


# Nodes behind a recurrent layer


def behind(*nodes: Node, constants=None, outputs=("out",), x=(None, None, 3), **attrs) -> fastrnn.Model:
    """A GRU of 4 units over x, and what reads its y."""
    given = {key: np.asarray(value) for key, value in (constants or {}).items()}
    first = recurrent("rnn", "x", "y", 3, 4, "gru", **attrs)
    spec = ModelSpec([first, *nodes], [Tensor("x", x)], [Tensor(name, None) for name in outputs], given)
    spec.validate()
    return fastrnn.Model(spec)


def one(op: str, constants=None, inputs=("y",), weights=None, **attrs) -> fastrnn.Model:
    constants = {key: np.asarray(value) for key, value in (constants or {}).items()}
    return behind(Node(op, "node", (*inputs, *constants), ("out",), attrs, weights or {}), constants=constants)


def cut(start: int, end: int = END, step: int = 1, axis: int = 1) -> fastrnn.Model:
    return one("slice", {"starts": [start], "ends": [end], "axes": [axis], "steps": [step]})


def window(op: str, kernel: int, pads=(0, 0), stride: int = 1, dilation: int = 1, **attrs) -> fastrnn.Model:
    weights = {} if op == "pool" else {"weight": array(4, 4, kernel), "bias": array(4)}
    attrs |= {"pads": list(pads), "strides": [stride], "dilations": [dilation]}
    attrs |= {"kernel": [kernel]} if op == "pool" else {}
    return behind(
        Node("transpose", "before", ("y",), ("channels",), {"perm": [0, 2, 1]}),
        Node(op, "node", ("channels",), ("made",), attrs, weights),
        Node("transpose", "after", ("made",), ("out",), {"perm": [0, 2, 1]}),
    )


REDUCTIONS = ("sum", "mean", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum_exp")
AXIS = {"axes": [1], "keepdims": False}
EXACT = {
    **{f"reduce {name}": (lambda name=name: one("reduce", function=name, **AXIS), WITH_ZERO) for name in REDUCTIONS},
    "reduce, axes kept": (lambda: one("reduce", function="mean", axes=[1], keepdims=True), WITH_ZERO),
    "argmax": (lambda: one("argmax", axis=1), LENGTHS),
    "argmin": (lambda: one("argmax", axis=1, largest=False, keepdims=False), LENGTHS),
    "softmax over time": (lambda: one("softmax", axis=1), LENGTHS),
    "logarithm of a softmax over time": (lambda: one("softmax", axis=1, logarithm=True), LENGTHS),
    "softmax of features": (lambda: one("softmax", axis=-1), LENGTHS),
    "sums so far": (lambda: one("cumsum", axis=1), LENGTHS),
    "sums to come": (lambda: one("cumsum", axis=1, reverse=True), LENGTHS),
    "last step": (lambda: one("gather", {"at": -1}, axis=1), LENGTHS),
    "steps from the end": (lambda: one("gather", {"at": [-1, -2]}, axis=1), LENGTHS),
    "first steps": (lambda: one("gather", {"at": [1, 0]}, axis=1), LENGTHS),
    "last steps by a slice": (lambda: cut(-2), LENGTHS),
    "all but the first": (lambda: cut(1), WITH_ZERO),
    "all but the last two": (lambda: cut(0, -2), WITH_ZERO),
    "the first four at most": (lambda: cut(0, 4), WITH_ZERO),
    "every second": (lambda: cut(0, END, 2), WITH_ZERO),
    "reversed": (lambda: cut(-1, -(2**63) + 1, -1), WITH_ZERO),
    "pads": (lambda: one("pad", {"pads": [0, 2, 0, 0, 1, 0]}), WITH_ZERO),
    "pads of a number": (lambda: one("pad", {"pads": [0, 0, 0, 0, 2, 0], "value": np.float32(3)}), WITH_ZERO),
    "crops": (lambda: one("pad", {"pads": [0, -1, 0, 0, -1, 0]}), WITH_ZERO),
    "reflected before": (lambda: one("pad", {"pads": [0, 1, 0, 0, 0, 0]}, mode="reflect"), LENGTHS),
    "convolution": (lambda: window("conv", 3), WITH_ZERO),
    "convolution, causal": (lambda: window("conv", 3, (4, 0), dilation=2), WITH_ZERO),
    "convolution, same": (lambda: window("conv", 3, (1, 1)), WITH_ZERO),
    "convolution, stride": (lambda: window("conv", 5, (2, 2), 2), WITH_ZERO),
    "transposed convolution": (lambda: window("conv_transpose", 4, (1, 1), 2), LENGTHS),
    "largest of windows": (lambda: window("pool", 3, (1, 1), 2), WITH_ZERO),
    "largest of windows, also of small ones": (lambda: window("pool", 2, (0, 0), 2, ceil_mode=True), WITH_ZERO),
    "mean of windows": (lambda: window("pool", 2, (0, 0), 2, function="mean"), WITH_ZERO),
    "mean of windows and pads": (
        lambda: window("pool", 3, (1, 1), 1, function="mean", count_include_pad=True), WITH_ZERO,
    ),
    "flattened": (lambda: one("flatten"), WITH_ZERO),
    "normalised features": (lambda: one("layer_norm", weights={"weight": array(4)}), LENGTHS),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_nodes_that_read_along_time(name):
    make, lengths = EXACT[name]
    check(make(), sequences(lengths, 3))


@pytest.mark.parametrize("order", [("start", "y"), ("y", "start"), ("y", "y"), ("y", "start", "start")])
def test_steps_are_joined_without_a_gap(order):
    nodes = [
        Node("slice", "first", ("y", "zero", "one", "one"), ("start",)),
        Node("concat", "node", order, ("out",), {"axis": 1}),
    ]
    check(behind(*nodes, constants={"zero": [0], "one": [1]}), sequences(LENGTHS, 3))


def test_attention():
    """Softmax over time and a weighted sum; and between all pairs of steps."""
    pooled = behind(
        Node("dense", "score", ("y",), ("s",), {}, {"weight": array(1, 4)}),
        Node("softmax", "weights", ("s",), ("w",), {"axis": 1}),
        Node("transpose", "turned", ("w",), ("row",), {"perm": [0, 2, 1]}),
        Node("matmul", "sums", ("row", "y"), ("out",)),
        direction="bidirectional",
        merge="sum",
    )
    check(pooled, sequences(WITH_ZERO, 3))
    pairs = behind(
        Node("transpose", "turned", ("y",), ("keys",), {"perm": [0, 2, 1]}),
        Node("matmul", "scores", ("y", "keys"), ("s",)),
        Node("softmax", "weights", ("s",), ("w",)),
        Node("matmul", "sums", ("w", "y"), ("seen",)),
        Node("reduce", "mean", ("seen",), ("out",), {"function": "mean", **AXIS}),
        outputs=("out", "seen", "w"),
    )
    check(pairs, sequences(LENGTHS, 3))


def test_numbers_of_steps():
    """A mean that is written as a sum and a division, and one that takes the steps apart from the batch."""
    sizes = [
        Node("shape", "size", ("y",), ("t",), {"start": 1, "end": 2}),
        Node("squeeze", "number", ("t",), ("n",), {"axes": [0]}),
    ]
    mean = behind(
        *sizes,
        Node("cast", "float", ("n",), ("count",)),
        Node("reduce", "sum", ("y",), ("total",), {"function": "sum", **AXIS}),
        Node("binary", "mean", ("total", "count"), ("out",), {"function": "div"}),
    )
    check(mean, sequences(LENGTHS, 3))
    rows = behind(
        Node("reshape", "apart", ("y", "flat"), ("rows",)),
        Node("dense", "dense", ("rows",), ("made",), {}, {"weight": array(2, 4)}),
        Node("shape", "sizes", ("x",), ("b",), {"start": 0, "end": 1}),
        Node("concat", "target", ("b", "rest"), ("shape",)),
        Node("reshape", "back", ("made", "shape"), ("out",)),
        constants={"flat": [-1, 4], "rest": [-1, 2]},
    )
    check(rows, sequences(WITH_ZERO, 3))
    positions = behind(
        *sizes,
        Node("range", "positions", ("zero", "n", "one"), ("at",)),
        Node("embedding", "table", ("at",), ("place",), {}, {"weight": array(20, 4)}),
        Node("binary", "sum", ("y", "place"), ("out",), {"function": "add"}),
        constants={"zero": np.int64(0), "one": np.int64(1)},
    )
    check(positions, sequences(LENGTHS, 3))


def test_what_is_repeated_for_each_step():
    """As exporters write an expand whose target has -1 in it."""
    nodes = [
        Node("reduce", "mean", ("y",), ("pooled",), {"function": "mean", "axes": [1]}),
        Node("shape", "size", ("x",), ("t",), {"start": 1, "end": 2}),
        Node("concat", "wanted", ("less", "t", "less"), ("target",)),
        Node("binary", "is", ("target", "less"), ("unknown",), {"function": "equal"}),
        Node("where", "size_or_one", ("unknown", "one", "target"), ("shape",)),
        Node("expand", "repeated", ("pooled", "shape"), ("wide",)),
        Node("concat", "node", ("y", "wide"), ("out",), {"axis": -1}),
    ]
    check(behind(*nodes, constants={"less": [-1], "one": [1]}), sequences(LENGTHS, 3))


def test_bodies_do_not_see_lengths():
    body = Graph([Node("cast", "inner", ("t",), ("count",))], [], [Tensor("count", None)])
    other = Graph([Node("cast", "other", ("t",), ("number",))], [], [Tensor("number", None)])
    nodes = [
        Node("shape", "size", ("y",), ("t",), {"start": 1, "end": 2}),
        Node("if", "choice", ("which",), ("n",), {}, {}, {"then": body, "else": other}),
        Node("binary", "node", ("y", "n"), ("out",), {"function": "mul"}),
    ]
    first = recurrent("rnn", "x", "y", 3, 4, "gru")
    inputs = [Tensor("x", (None, None, 3)), Tensor("which", (), "bool")]
    model = fastrnn.Model(ModelSpec([first, *nodes], inputs, [Tensor("out", None)]))
    with pytest.raises(UnsupportedError, match="if 'choice' calculates with the length"):
        model(array(2, 5, 3), True, lengths=[5, 2])


def test_plans_with_and_without_lengths_share_one_memory():
    model = one("gather", {"at": -1}, axis=1)
    for steps in range(1, 5):
        model(array(2, steps, 3))
        model(array(2, steps, 3), lengths=[steps, 1])
    assert len(model._executable.memory.plans) == 8


def test_time_first():
    model = behind(Node("gather", "node", ("y", "at"), ("out",), {"axis": 0}), constants={"at": -1}, batch_first=False)
    check(model, sequences(LENGTHS, 3), batch=1, time=0)
    model = behind(Node("identity", "node", ("y",), ("out",)), batch_first=False)
    check(model, sequences(WITH_ZERO, 3), batch=1, time=0)


def test_random_graphs_are_right_or_refused():
    taken = 0
    for seed in range(200):
        found = drawn(seed)
        if found is None or not found[0].outputs or found[1][:2] != (2, 12):
            continue
        spec, shape = found
        try:
            fastrnn.Model(spec).run({"x": array(*shape)})
            plan = with_lengths(spec)
        except FastrnnError:
            continue
        lengths = np.array([12, 5, 8, 4, 7])
        if plan.places["x"][:2] == (0, 1) and all(need.holds(lengths).all() for need in plan.needs):
            check(fastrnn.Model(spec), sequences(lengths, *shape[2:]))
            taken += 1
    assert taken > 10


# What cannot


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            lambda: behind(
                Node("transpose", "turned", ("y",), ("t",), {"perm": [0, 2, 1]}),
                Node("dense", "node", ("t",), ("out",), {}, {"weight": array(3, 9)}),
            ),
            "dense 'node' works across the steps",
        ),
        (lambda: window("pool", 3, (1, 1), function="mean"), "pool 'node' divides the last windows"),
        (lambda: one("layer_norm", weights={"weight": array(9, 4)}), "layer_norm 'node' works across the steps"),
        (lambda: one("reduce", function="sum", axes=[0]), "reduce 'node' joins the sequences of a batch"),
        (lambda: one("pad", {"pads": [0, 0, 0, 0, 1, 0]}, mode="reflect"), "pad 'node' continues the sequence"),
        (lambda: cut(-3, 4), "slice 'node' takes steps from the middle"),
        (lambda: one("gather", {"at": [0, -1]}, axis=1), "gather 'node' takes steps from both ends"),
        (lambda: one("tile", {"repeats": [1, 2, 1]}), "tile 'node' repeats steps"),
        (lambda: one("operator", kind="Det", version=17, proto=""), "operator 'node' is not known to treat each step"),
    ],
)  # fmt: skip
def test_what_cannot_respect_lengths_is_named(model, text):
    x = array(2, 9, 3)
    with pytest.raises(UnsupportedError, match=text):
        model().run({"x": x}, lengths=[9, 4])


def test_all_problems_are_named_and_calls_without_lengths_go_on():
    flat_ = Node("flatten", "joined", ("y",), ("f",))
    dense = Node("dense", "head", ("f",), ("a",), {}, {"weight": array(3, 36)})
    wide = Node("layer_norm", "wide", ("y",), ("b",), {}, {"weight": array(9, 4)})
    model = behind(flat_, dense, wide, outputs=("a", "b"))
    with pytest.raises(UnsupportedError, match=r"2 layer\(s\)(?s:.*)dense 'head'.*'joined'(?s:.*)layer_norm 'wide'"):
        model.run({"x": array(2, 9, 3)}, lengths=[9, 4])
    assert model(array(2, 9, 3))[0].shape == (2, 3)
    plain = fastrnn.Model(ModelSpec([Node("dense", "d", ("x",), ("y",), {}, {"weight": array(2, 3)})],
                                    [Tensor("x", (None, 3))], [Tensor("y", None)]))  # fmt: skip
    with pytest.raises(UnsupportedError, match="nothing in the model tells which"):
        plain(array(2, 3), lengths=[1, 2])


def test_lengths_that_do_not_fit():
    model = one("gather", {"at": -1}, axis=1)
    x = array(3, 6, 3)
    for lengths, text in (
        ([5, 2], r"\(3,\) integers"), ([7, 2, 1], r"0 \.\. 6, got 1 \.\. 7"), ([-1, 2, 1], r"0 \.\. 6"),
        ([1.5, 2, 1], "integers"), (3, r"\(3,\) integers"), 
        ([6, 0, 1], "'node' needs more steps than a sequence of length 0"),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=text):
            model(x, lengths=lengths)
    with pytest.raises(ShapeError, match="has its own lengths"):
        model([x[0], x[1, :2]], lengths=[6, 2])
    with pytest.raises(ShapeError, match="rank 2, of the same sizes but for axis 0"):
        model([x[0], array(2, 5)])
    for rows in ([[[1.0, 2.0], [3.0]], [[4.0]]], [x[0], "text"], [x[0], None], [1.0, [2.0]]):
        with pytest.raises(ShapeError, match="input 'x'"):
            model(rows)
    with pytest.raises(ShapeError, match="give arrays"):
        model.trace({"x": [x[0], x[1, :2]]})


# Several inputs, and names


def two_inputs(join: str = "concat") -> fastrnn.Model:
    a, b = (recurrent(name, name, f"{name}_y", 3, 4, "lstm", return_sequences=join != "last") for name in "xz")
    node = Node("concat", "node", ("x_y", "z_y"), ("out",), {"axis": -1})
    inputs = [Tensor("x", (None, None, 3)), Tensor("z", (None, None, 3))]
    return fastrnn.Model(ModelSpec([a, b, node], inputs, [Tensor("out", None)]))


@pytest.mark.parametrize("join", ["concat", "last"])
def test_lengths_are_those_of_all_inputs_with_sequences(join):
    model, (x, z) = two_inputs(join), (array(3, 7, 3), array(3, 7, 3))
    lengths = (7, 2, 4)
    y = model(x, z=z, lengths=lengths)
    assert_bits([model([r[:n] for r, n in zip(x, lengths)], [r[:n] for r, n in zip(z, lengths)])], [y], "lists")
    for k, n in enumerate(lengths):
        want = model(x[k : k + 1, :n], z[k : k + 1, :n])
        assert_bits([y[k : k + 1][tuple(map(slice, want.shape))]], [want], f"row {k}")
    with pytest.raises(ShapeError, match=r"'x': \(3, 7\), 'z': \(3, 5\)"):
        model(x, z[:, :5], lengths=[5, 2, 4])
    with pytest.raises(ShapeError, match="must have the same lengths, got 'x': "):
        model([x[0], x[1, :2]], [z[0], z[1, :3]])


def test_inputs_without_steps_are_left_alone():
    shift = Node("unsqueeze", "row", ("speaker",), ("s",), {"axes": [1]})
    total = Node("binary", "node", ("y", "s"), ("out",), {"function": "mul"})
    first = recurrent("rnn", "x", "y", 3, 4, "gru")
    inputs = [Tensor("x", (None, None, 3)), Tensor("speaker", (None, 4))]
    model = fastrnn.Model(ModelSpec([first, shift, total], inputs, [Tensor("out", None)]))
    check(model, sequences(LENGTHS, 3), others={"speaker": array(len(LENGTHS), 4)})


def test_an_input_of_the_name_comes_first():
    node = recurrent("rnn", ("ids", "", "", "lengths"), "y", 3, 4, "gru")
    inputs = [Tensor("ids", (None, None, 3)), Tensor("lengths", (None,), "int64")]
    model = fastrnn.Model(ModelSpec([node], inputs, [Tensor("y", None)]))
    x, lengths = array(2, 5, 3), [5, 2]
    want = model.run({"ids": x, "lengths": lengths})["y"]
    assert not want[1, 2:].any()
    for y in (model(x, lengths=lengths), model(ids=x, lengths=lengths), model.run({"ids": x}, lengths=lengths)["y"]):
        assert_bits([y], [want], "by name")
    inputs[1] = Tensor("steps", (None,), "int64")
    node.inputs = ("ids", "", "", "steps")
    model = fastrnn.Model(ModelSpec([node], inputs, [Tensor("y", None)]))
    with pytest.raises(UnsupportedError, match="gru 'rnn' takes lengths of its own, from 'steps'"):
        model(x, steps=lengths, lengths=lengths)


# Other frameworks


class Heads:
    """Modules with the usual ways to read a recurrent layer."""

    def __init__(self, torch) -> None:
        class Module(torch.nn.Module):
            def __init__(self, head, rnn=torch.nn.LSTM, features=8, **options):
                super().__init__()
                self.rnn = rnn(3, 4, **{"batch_first": True, "bidirectional": True, **options})
                self.norm, self.score = torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)
                self.fc, self.head = torch.nn.Linear(features, 2), head

            def forward(self, x):
                y, state = self.rnn(x)
                return self.fc(self.head(self, y, state))

        def attended(m, y, state):
            return (torch.softmax(m.score(torch.tanh(y)), dim=1) * m.norm(y)).sum(1)

        self.modules = {
            "last": Module(lambda m, y, s: y[:, -1], num_layers=2),
            "gru": Module(lambda m, y, s: y[:, -1, :], torch.nn.GRU),
            "states": Module(lambda m, y, s: torch.cat([s[0][-2], s[0][-1]], -1)),
            "mean and largest": Module(lambda m, y, s: torch.cat([y.mean(1), y.amax(1)], -1), features=16),
            "deviation": Module(lambda m, y, s: y.std(1), torch.nn.RNN),
            "attention": Module(attended),
            "all": Module(lambda m, y, s: torch.relu(m.norm(y) + y)),
            "pool": Module(lambda m, y, s: torch.nn.functional.adaptive_avg_pool1d(y.transpose(1, 2), 1).squeeze(-1)),
        }


def test_modules_of_torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for module in Heads(torch).modules.values():
        check(fastrnn.from_torch(module.eval()), sequences(LENGTHS, 3))


@pytest.mark.parametrize("name", ["last", "states", "mean and largest", "attention"])
@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    file, axes = io.BytesIO(), {"sound": {0: "batch", 1: "time"}}
    module = Heads(torch).modules[name].eval()
    torch.onnx.export(module, (torch.zeros(2, 5, 3),), file, input_names=["sound"], dynamic_axes=axes, dynamo=False)
    model = fastrnn.from_onnx(file.getvalue())
    check(model, sequences(LENGTHS, 3))
    x = padded(sequences(LENGTHS, 3))
    assert_bits([model(sound=x, lengths=LENGTHS)], [model(x, lengths=LENGTHS)], "by name")


def test_functional_models_of_keras():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    x, tokens = keras.Input((None, 3)), keras.Input((None,), dtype="int32")
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True), merge_mode="ave")(x)
    masked = layers.Embedding(9, 3, mask_zero=True)(tokens)
    back = layers.GRU(4, go_backwards=True, return_sequences=True)(
        layers.Conv1D(3, 3, padding="same", activation="relu")(x)
    )
    for given, made in (
        (x, layers.Dense(2)(layers.GlobalAveragePooling1D()(both))),
        (x, [layers.Dense(2)(layers.LSTM(4)(both)), layers.TimeDistributed(layers.Dense(2))(both)]),
        (x, layers.GlobalMaxPooling1D()(layers.Attention()([both, both]))),
        (x, layers.SimpleRNN(3, go_backwards=True)(back)),
        (tokens, layers.Dense(2)(layers.Bidirectional(layers.GRU(4))(masked))),
        (tokens, layers.GlobalAveragePooling1D()(layers.LSTM(4, return_sequences=True)(masked))),
    ):
        model = fastrnn.from_keras(keras.Model(given, made))
        check(model, ids(LENGTHS) if given is tokens else sequences(LENGTHS, 3))


# Command line


def test_run_with_lengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gru = Case.of("gru", input_size=3, hidden_size=8, direction="bidirectional concat").layer()
    model = fastrnn.Sequential(gru.last(), fastrnn.Dense(normal(4, 16)))
    fastrnn.save(model, "net.frnn")
    x = padded(sequences(LENGTHS, 3))
    np.save("x.npy", x)
    command = ["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--lengths", ",".join(map(str, LENGTHS)), "--force"]
    for size in ("1", "4", "100"):
        assert cli.main([*command, "--batch-size", size]) == 0
        assert_bits([np.load("y.npy")], [model(x, lengths=LENGTHS)], size)


def test_run_gives_lengths_to_an_input_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = recurrent("rnn", ("x", "", "", "lengths"), "y", 3, 4, "gru")
    spec = ModelSpec([node], [Tensor("x", (None, None, 3)), Tensor("lengths", (None,), "int64")], [Tensor("y", None)])
    model = fastrnn.Model(spec)
    fastrnn.save(model, "net.frnn")
    x = array(2, 5, 3)
    np.save("x.npy", x)
    assert cli.main(["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--lengths", "5,2", "--batch-size", "1"]) == 0
    assert_bits([np.load("y.npy")], [model(x, [5, 2])], "rows")
