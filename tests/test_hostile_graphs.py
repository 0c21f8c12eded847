"""Graphs that load and ask for the impossible: every operator with attributes of any kind, sizes without bound."""

import numpy as np
import pytest
from fuzz_operators import operator_specs
from fuzz_phases import PHASES, Subject

import fastrnn
from fastrnn import run_limits
from fastrnn.errors import FastrnnError, FormatError, ShapeError, UnsupportedError
from fastrnn.spec import OPS, ModelSpec, Node, Tensor

WILD = [
    None, True, 0, -1, 3, 64, 2**31, 2**40, 2**63, -(2**63), 10**400, 0.5, float("nan"), float("inf"), 1e300, "", "x",
    "softmax", (), (0,), (-1,), (5,), (0, 0), (1, 0), (0, 5), (1,) * 40, (0,) * 100_000, (2**40,), ((1,),),
    ("relu", "x"), ("softmax", 2.0), ("relu", 1.0, 2.0, 3.0), (0.5,),
]  # fmt: skip


def first_specs() -> dict[str, ModelSpec]:
    """A model whose first node is of each kind."""
    found: dict[str, ModelSpec] = {}
    for _, spec in operator_specs():
        found.setdefault(spec.nodes[0].op, spec)
    return found


def use(spec: ModelSpec, folder) -> list[str]:
    """Everything that a user may do with a model; the phases that refused."""
    subject, refused = Subject(spec, folder), []
    for phase in PHASES:
        try:
            phase(subject)
        except FastrnnError:
            refused.append(phase.__name__)
            if phase.__name__ in ("build", "run"):
                break
    return refused


@pytest.mark.parametrize("op", sorted(OPS.keys() - {"operator"}))
def test_attributes_of_any_value(op, tmp_path):
    """Each ends in a model that works, or in a FastrnnError."""
    spec = first_specs()[op]
    node = spec.nodes[0]
    good, messages = dict(node.attrs), []
    for key in OPS[op].attrs:
        for value in WILD:
            node.attrs = {**good, key: value}
            try:
                spec.validate()
            except (FormatError, ShapeError) as error:
                messages.append(str(error))
                continue
            with np.errstate(all="ignore"):
                use(spec, tmp_path)
    assert all(node.name in message and len(message) < 2000 for message in messages)
    assert bool(messages) == bool(OPS[op].attrs)


K = 10**6
BIG = 2**40
ONE_TAP = {"weight": np.ones((3, 3, 1), np.float32)}
GREEDY = {
    "pool": (Node("pool", "n", ("x",), ("y",), {"kernel": (K,), "pads": (K, K), "function": "mean"}), {}),
    "pool_of_pads": (Node("pool", "n", ("x",), ("y",), {"kernel": (1,), "pads": (BIG >> 10, 0)}), {}),
    "unsqueeze": (Node("unsqueeze", "n", ("x",), ("y",), {"axes": tuple(range(100_000))}), {}),
    "conv": (Node("conv", "n", ("x",), ("y",), {"pads": (BIG >> 10, 0)}, ONE_TAP), {}),
    "conv_transpose": (Node("conv_transpose", "n", ("x",), ("y",), {"strides": (BIG >> 10,)}, ONE_TAP), {}),
    "expand": (Node("expand", "n", ("x", "k"), ("z",)), {"k": np.array([BIG, 1, 1, 1])}),
    "tile": (Node("tile", "n", ("x", "k"), ("y",)), {"k": np.array([1, BIG, 1])}),
    "tile_whole": (Node("tile", "n", ("k", "k"), ("y",)), {"k": np.array([BIG])}),
    "pad": (Node("pad", "n", ("x", "k"), ("y",)), {"k": np.array([0, 0, 0, 0, 0, BIG])}),
    "fill": (Node("fill", "n", ("k",), ("y",)), {"k": np.array([BIG])}),
    "fill_whole": (Node("fill", "n", ("k",), ("y",), {"dtype": "int64"}), {"k": np.array([1 << 20, 1 << 20])}),
    "range": (
        Node("range", "n", ("a", "b", "c"), ("y",)), {"a": np.array(0), "b": np.array(BIG), "c": np.array(1)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_sizes_without_bound(name):
    """What a small file asks for is refused before it is taken, by a message that names the node."""
    node, constants = GREEDY[name]
    nodes = [node]
    if "z" in node.outputs:  # a view, until something reads it
        nodes.append(Node("activation", "reader", ("z",), ("y",), {"activation": "relu"}))
    spec = ModelSpec(nodes, [Tensor("x", (2, 3, 8))], [Tensor("y", None)], constants)
    with pytest.raises(FastrnnError, match=r"'(n|reader)'"):
        fastrnn.Model(spec).run({"x": np.ones((2, 3, 8), np.float32)})


def test_a_chain_of_doublings():
    """Each node is small; together they are not."""
    nodes = [Node("concat", f"n{k}", (f"t{k}", f"t{k}"), (f"t{k + 1}",)) for k in range(60)]
    spec = ModelSpec(nodes, [Tensor("t0", (None, 4))], [Tensor("t60", None)])
    with pytest.raises(UnsupportedError, match=r"concat 'n\d+'.*elements, at most"):
        fastrnn.Model(spec).run({"t0": np.ones((1, 4), np.float32)})


def test_limits_grow_with_the_inputs_and_the_weights():
    """A large input is no reason to refuse: each element may become thousands."""
    table = np.ones((2, 1024), np.float32)
    node = Node("embedding", "n", ("ids",), ("y",), {}, {"weight": table})
    spec = ModelSpec([node], [Tensor("ids", (None,), "int64")], [Tensor("y", None)])
    count = 2 * run_limits.WORK // table.shape[1]
    assert fastrnn.Model(spec)(np.zeros(count, np.int64)).shape == (count, 1024)
