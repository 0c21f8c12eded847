"""What is read from a description alone: rows for every kind of node, and inputs that suit a graph."""

import numpy as np
import pytest
from hostile_native import branching_spec

from fastrnn import reference
from fastrnn.inspect import batch_axes, compact, describe, optional_inputs, total
from fastrnn.spec import OPS, Graph, ModelSpec, Node, Tensor
from fastrnn.verify import random_inputs


def ones(*shape):
    return np.ones(shape, np.float32)


def tensors(**shapes):
    return [Tensor(name, shape) for name, shape in shapes.items()]


def exported(batch_first: bool) -> ModelSpec:
    """An LSTM and a projection as exporters write them, batch first outside and time first inside, or the reverse."""
    time = 1 if batch_first else 0
    nodes = [
        Node("transpose", "swap", ("x",), ("xt",), {"perm": (1, 0, 2)}),
        Node("lstm", "rnn", ("xt", "h", "c"), ("y", "hn"), {"batch_first": batch_first},
             {"weight_ih_l0": ones(8, 3), "weight_hh_l0": ones(8, 2)}),
        Node("binary", "scale", ("y", "k"), ("z",), {"function": "mul"}),
        Node("reduce", "mean", ("z",), ("zz",), {"function": "mean", "axes": (time,), "keepdims": False}),
        Node("matmul", "project", ("zz", "w"), ("out",)),
    ]  # fmt: skip
    inputs = tensors(x=(None, None, 3), h=(1, None, 2), c=(1, None, 2))
    return ModelSpec(nodes, inputs, tensors(out=None, hn=None, y=None), {"k": np.array(2.0, "f"), "w": ones(2, 4)})


def test_operators_have_rows():
    rows = describe(exported(False))
    assert [row.kind for row in rows] == ["transpose", "lstm", "binary", "reduce", "matmul"]
    assert [row.output_shape for row in rows[:2]] == [(None, None, 3), (None, None, 2)]
    assert (rows[4].output_shape, rows[4].parameters, rows[4].macs) == ((None, 4), 8, 8)
    assert [row.detail for row in rows[2:4]] == ["mul", "mean, axes=(0,), keepdims=False"]
    assert total(rows).parameters == 40 + 8


def test_neighbouring_operators_become_one_row():
    rows = compact(describe(exported(False)))
    assert [row.name for row in rows] == ["swap", "rnn", "scale", "project"]
    assert (rows[2].kind, rows[2].detail, rows[2].output_shape) == ("2 operators", "mul, mean", (None, 2))
    assert total(rows).macs == 48


def test_bodies_have_rows():
    spec = branching_spec()
    spec.inputs[0] = Tensor("x", (None, 2, None))
    rows = describe(spec)
    assert [(row.name, row.body) for row in rows[2:]] == [("i", ""), ("add_then", "i.then"), ("add_else", "i.else")]
    assert [(row.name, row.detail) for row in compact(rows)[1:]] == [("r", "2 add, any, if")]
    assert (rows[0].macs, rows[0].output_shape, rows[0].detail) == (12, (None, 2, None), "pads=(1, 1)")


@pytest.mark.parametrize("op", OPS)
def test_every_operator_has_a_row(op):
    """Of a node about whose inputs nothing is known."""
    suffix = "_l0" if "num_layers" in OPS[op].attrs else ""
    weights = {name.rstrip("?") + suffix: ones(4, 4, 4) if op.startswith("conv") else ones(4, 4)
               for name in OPS[op].weights}  # fmt: skip
    names = tuple(f"x{k}" for k in range(max(1, len(OPS[op].inputs))))
    attrs = {"function": "sin"} if op == "unary" else {"function": "add"} if op == "binary" else {}
    taken = tensors() if op == "if" else tensors(i=None, c=None, v=None) if op == "loop" else tensors(v=None)
    bodies = {name: Graph([], taken, tensors(x0=None, x1=None)) for name in OPS[op].graphs}
    node = Node(op, "node", names, ("y",), attrs, weights, bodies)
    [row] = describe(ModelSpec([node], tensors(**dict.fromkeys(names)), tensors(y=None)))
    assert (row.kind, row.parameters) == (op, sum(weight.size for weight in weights.values()))


def test_batch_axes():
    assert batch_axes(exported(False)) == {"x": 0, "h": 1, "c": 1, "hn": 1, "y": 1, "out": 0}
    assert batch_axes(exported(True)) == {"x": 1, "h": 1, "c": 1, "hn": 1, "y": 0, "out": 0}
    assert batch_axes(branching_spec()) == {}


@pytest.mark.parametrize("batch_first", [False, True])
def test_random_inputs_fit_together(batch_first):
    spec = exported(batch_first)
    feeds = random_inputs(spec, batch=4, seq_len=5)
    assert feeds["x"].shape == ((5, 4, 3) if batch_first else (4, 5, 3))
    assert feeds["h"].shape == (1, 4, 2)
    assert optional_inputs(spec) == {"h", "c"}
    found = reference.run(spec, feeds)
    assert found["hn"].shape == (1, 4, 2)


def test_random_inputs_of_any_dtype():
    inputs = [Tensor("rate", (), "int64"), Tensor("flag", (), "bool"), Tensor("fixed", (1, 2, 3)),
              Tensor("double", (None,), "float64"), Tensor("level", ()),
              Tensor("bytes", (2, None), "uint8")]  # fmt: skip
    feeds = random_inputs(ModelSpec([], inputs, inputs[:1]), batch=7)
    assert {name: (array.shape, str(array.dtype)) for name, array in feeds.items()} == {
        "rate": ((), "int64"),
        "flag": ((), "bool"),
        "fixed": ((1, 2, 3), "float32"),
        "double": ((7,), "float64"),
        "level": ((), "float32"),
        "bytes": ((2, 7), "uint8"),
    }
