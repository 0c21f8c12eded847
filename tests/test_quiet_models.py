"""Quiet after warm-up, whole models: a run takes memory for its outputs only, and plans do not pile up."""

import pytest
from scripts import LAYERS, check
from test_quiet import MALLOC, compile_library

MODELS = (
    LAYERS
    + """
import ctypes, gc, tracemalloc
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

rng = np.random.default_rng(0)
CONV = {"weight": weights(rng, 32, 16, 3), "bias": weights(rng, 32)}
LSTM = {"weight_ih_l0": weights(rng, 128, 32), "weight_hh_l0": weights(rng, 128, 32)}
DENSE = {"weight": weights(rng, 8, 32)}

def model(nodes, outputs, dtypes=("float32",), **constants):
    inputs = [Tensor(name, None, dtype) for name, dtype in zip(("x", "n"), dtypes)]
    arrays = {name: np.array(value) for name, value in constants.items()}
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(name, None) for name in outputs], arrays), threads=2)

# Native steps only: a product, a chain in blocks, a layer, a sum.
network = [
    Node("conv", "conv", ("x",), ("features",), {"pads": [1, 1]}, CONV),
    Node("activation", "square", ("features",), ("squares",), {"activation": "square"}),
    Node("activation", "root", ("squares",), ("roots",), {"activation": "sqrt"}),
    Node("binary", "sum", ("roots", "features"), ("added",), {"function": "add"}),
    Node("matmul", "matmul", ("added", "turned"), ("correlations",)),
    Node("transpose", "turn", ("added",), ("turned",), {"perm": (0, 2, 1)}),
    Node("lstm", "lstm", ("turned",), ("hidden", "h_n", "c_n"), {}, LSTM),
    Node("reduce", "mean", ("hidden",), ("means",), {"function": "mean", "axes": [1], "keepdims": False}),
    Node("dense", "dense", ("means",), ("y",), {"activation": "tanh"}, DENSE),
]
network[4], network[5] = network[5], network[4]

# A step in NumPy, a shape that is an input, a branch.
part = Graph([Node("slice", "part", ("x", "zero", "n"), ("first",))], [], [Tensor("first", None)])
whole = Graph([Node("identity", "whole", ("x",), ("all",))], [], [Tensor("all", None)])
questions = [
    Node("binary", "less", ("n", "eight"), ("few",), {"function": "less"}),
    Node("if", "choice", ("few",), ("chosen",), graphs={"then": part, "else": whole}),
    Node("cumsum", "cumsum", ("chosen",), ("y",), {"axis": 1}),
]
MODELS = {
    "network": (model(network, ("y", "correlations")), {"x": inputs(3, 16, 400)}),
    "questions": (model(questions, ("y",), ("float32", "int64"), zero=[0], eight=[8]), {"x": inputs(9, 40), "n": [5]}),
}
net, feeds = MODELS[sys.argv[1]]

def runs(n):
    for _ in range(n):
        net.run(feeds)

runs(20)
results = sum(array.nbytes for array in net.run(feeds).values())
"""
)

OUTPUTS_ONLY = (
    MODELS
    + """
counter = ctypes.CDLL(None)
counter.malloc_bytes.restype = ctypes.c_size_t
gc.disable()
before = counter.malloc_bytes()
runs(200)
taken = (counter.malloc_bytes() - before) / 200
np.empty(100_000)
assert counter.malloc_bytes() - before > 200 * taken, "the counter does not count"
assert taken < results + 2048, f"{taken:.0f} bytes a run, its results are {results}"
"""
)


@pytest.fixture(scope="module")
def malloc(tmp_path_factory):
    """A library to preload, which counts."""
    return str(compile_library(tmp_path_factory.mktemp("malloc"), MALLOC))


def test_a_run_takes_memory_for_its_outputs_only(malloc):
    check(OUTPUTS_ONLY, "network", LD_PRELOAD=malloc)


FLAT = (
    MODELS
    + """
tracemalloc.start()
runs(2000)
gc.collect()  # free lists of Python are full after runs, and empty after this
before, _ = tracemalloc.get_traced_memory()
runs(2000)
gc.collect()
after, _ = tracemalloc.get_traced_memory()
# NumPy keeps some shapes of arrays for later; an object of any kind that stayed would be twice as much.
assert after - before < 32 * 2000, f"{after - before} bytes more after 2000 runs"
tracemalloc.reset_peak()
runs(1)
_, peak = tracemalloc.get_traced_memory()
assert peak - after < 2 * results + 16384, f"{peak - after} bytes at once in a run, its results are {results}"
"""
)


@pytest.mark.parametrize("what", ["network", "questions"])
def test_runs_do_not_add_up(what):
    check(FLAT, what)


PLANS = (
    MODELS
    + """
from fastrnn.engine.executable import MAX_PLANS

def shapes(first, last):
    for n in range(first, last):
        net.run({"x": np.zeros((3, 16, n), np.float32)} if sys.argv[1] == "network" else feeds | {"n": [n - 10_000]})
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

net.run({**feeds, "x": np.zeros((9, 16, 4 * MAX_PLANS), np.float32)})  # the largest block
tracemalloc.start()
begin = tracemalloc.get_traced_memory()[0]
full = shapes(1, MAX_PLANS + 20) - begin
more = shapes(MAX_PLANS + 20, 2 * MAX_PLANS) - begin
assert more < 1.1 * full + 4096, f"{full} bytes for the first plans, {more} after as many more"
"""
)


@pytest.mark.parametrize("what", ["network", "questions"])
def test_plans_of_other_shapes_and_values_do_not_add_up(what):
    check(PLANS, what)
