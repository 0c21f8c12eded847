"""Results do not depend on the floating-point mode of the caller, and leave it as it is: what Python computes.

Kernels of C are in test_guest.py.
"""

import ctypes
import ctypes.util
import platform
import struct
from contextlib import contextmanager

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.operators import BINARY, REDUCTIONS, UNARY
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="sets MXCSR, a register of x86-64")

libm = ctypes.CDLL(ctypes.util.find_library("m"))
MXCSR_AT = 28  # in x86-64's fenv_t
NORMAL, FLAGS = 0x1F80, 0x3F
MODES = {
    "down": NORMAL | 0x2000,
    "up": NORMAL | 0x4000,
    "toward zero": NORMAL | 0x6000,
    "denormals are zero": NORMAL | 0x8040,
    "up, denormals are zero": NORMAL | 0x4000 | 0x8040,
}


def mxcsr(value=None):
    """The register; with a value, set to that."""
    state = (ctypes.c_char * 64)()
    libm.fegetenv(state)
    if value is not None:
        struct.pack_into("I", state, MXCSR_AT, value)
        libm.fesetenv(state)
    return struct.unpack_from("I", state, MXCSR_AT)[0]


@contextmanager
def mode(value):
    before = mxcsr()
    mxcsr(value)
    try:
        yield
        assert mxcsr() & ~FLAGS == value, "the mode is another one after the call"
    finally:
        mxcsr(before)


def bits(result):
    """All arrays of a result as bytes."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        return [bits(part) for part in result]
    return np.asarray(result).tobytes()


def check(made, use=lambda thing: thing):
    """What is made and used in any mode is what it is in the normal one: made there, used there, or both."""
    usual = made()
    wanted = bits(use(usual))
    for name, value in MODES.items():
        with mode(value):
            there = use(usual)
        assert bits(there) == wanted, f"used where the mode is: {name}"
        with mode(value):
            built = made()
        assert bits(use(built)) == wanted, f"made where the mode is: {name}"


RNG = np.random.default_rng(11)
X = RNG.normal(size=(3, 40, 4)).astype(np.float32)
X[0, 0] = 1e-40, 3e-39, -1e-41, 0.0
POSITIVE = np.abs(X) + np.float32(0.5)
IDS = np.argsort(X, axis=1)


def model_of(nodes, feeds, outputs=("y",), constants=None):
    inputs = [Tensor(name, None, str(a.dtype)) for name, a in feeds.items()]
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(n, None) for n in outputs], constants or {}))


OPERATORS = {
    **{
        f"unary {name}": ("unary", {"function": name}, {"x": X}) for name in UNARY if name not in ("not", "bitwise_not")
    },
    "unary not": ("unary", {"function": "not"}, {"x": X > 0}),
    "unary bitwise_not": ("unary", {"function": "bitwise_not"}, {"x": IDS}),
    **{
        f"binary {name}": ("binary", {"function": name}, {"x": X, "z": POSITIVE[:, ::-1].copy()})
        for name in BINARY
        if name not in ("and", "or", "xor")
    },
    **{f"binary {name}": ("binary", {"function": name}, {"x": X > 0, "z": X > 1}) for name in ("and", "or", "xor")},
    **{f"reduce {name}": ("reduce", {"function": name, "axes": (1,)}, {"x": POSITIVE}) for name in REDUCTIONS},
    "reduce of integers": ("reduce", {"function": "mean", "axes": (1,)}, {"x": IDS}),
    "cumsum": ("cumsum", {"axis": 1}, {"x": X}),
    "cumsum, exclusive": ("cumsum", {"axis": 1, "exclusive": True, "reverse": True}, {"x": X}),
    "where": ("where", {}, {"c": X > 0, "x": X, "z": POSITIVE}),
    "argmax": ("argmax", {"axis": 1}, {"x": X}),
    "cast to integers": ("cast", {"dtype": "int64"}, {"x": X * 9}),
    "cast of integers": ("cast", {"dtype": "float32"}, {"x": IDS + (1 << 40) + 1}),
    "gather": ("gather", {"axis": 1}, {"x": X, "i": IDS[0, :, 0]}),
    "gather_elements": ("gather_elements", {"axis": 1}, {"x": X, "i": IDS}),
    "softmax": ("softmax", {"axis": 1}, {"x": X}),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operators(case):
    op, attrs, feeds = OPERATORS[case]
    check(lambda: model_of([Node(op, "n", tuple(feeds), ("y",), attrs)], feeds), lambda model: model.run(feeds))


def test_operators_of_the_onnx_package():
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("LpNormalization", ["x"], ["y"], axis=1)
    values = [onnx.helper.make_tensor_value_info(name, 1, X.shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    check(lambda: fastrnn.from_onnx(made.SerializeToString()), lambda model: model(X))


def test_bodies_of_loops_and_scans():
    scan_body = Graph(
        [
            Node("cumsum", "sums", ("h_t",), ("s",), {"axis": 0}),
            Node("binary", "add", ("s", "x_t"), ("h2",), {"function": "add"}),
        ],
        [Tensor("h_t", None), Tensor("x_t", None)],
        [Tensor("h2", None)],
    )
    loop_body = Graph(
        [
            Node("unary", "sine", ("t",), ("t2",), {"function": "sin"}),
            Node("identity", "same", ("go",), ("again",)),
        ],
        [Tensor("k", (), "int64"), Tensor("go", (), "bool"), Tensor("t", None)],
        [Tensor("again", (), "bool"), Tensor("t2", None)],
    )
    nodes = [
        Node("scan", "scan", ("h", "x"), ("h_n",), {"num_scanned": 1}, {}, {"body": scan_body}),
        Node("loop", "loop", ("times", "", "h_n"), ("y",), {}, {}, {"body": loop_body}),
    ]
    feeds = {"h": X[0, :3], "x": X[:, 1:4], "times": np.array(3)}
    check(lambda: model_of(nodes, feeds), lambda model: model.run(feeds))


def test_constants_that_are_computed():
    """When the model is built, and when a plan is made."""
    nodes = [
        Node("unary", "sine", ("table",), ("a",), {"function": "sin"}),
        Node("cumsum", "total", ("a",), ("b",), {"axis": 0}),
        Node("shape", "sizes", ("x",), ("s",)),
        Node("fill", "thirds", ("s",), ("f",), {"value": 1 / 3, "dtype": "float32"}),
        Node("cumsum", "more", ("f",), ("g",), {"axis": 1}),
        Node("binary", "product", ("g", "b"), ("h",), {"function": "mul"}),
        Node("binary", "sum", ("x", "h"), ("y",), {"function": "add"}),
    ]
    feeds = {"x": X}
    check(lambda: model_of(nodes, feeds, constants={"table": POSITIVE[0]}), lambda model: model.run(feeds))


def weights(*shapes):
    """Float64: they are rounded when a layer is built."""
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape) for shape in shapes]


def lstm(**options):
    return fastrnn.LSTM(*weights((24, 4), (24, 6), (24,), (24,)), **options)


BUILT = {
    "biases that are added": (lstm, lambda layer: layer(X)),
    "batch norm": (lambda: fastrnn.BatchNorm(*weights(4), *np.abs(weights(4, 4)), *weights(4)), lambda layer: layer(X)),
    "joined weights": (
        lambda: fastrnn.Sequential(
            fastrnn.Dense(*weights((5, 4), 5)), fastrnn.BatchNorm(*weights(5), np.abs(weights(5)[0]))
        ),
        lambda model: model(X),
    ),
    "inputs that are cast": (lstm, lambda layer: layer(X.astype(np.float64) / 3, (H.astype(np.float64) / 3,) * 2)),
    "integers that are cast": (lstm, lambda layer: layer((X * 1e9).astype(np.int64) + 1)),
    "a state that is cast": (lambda: lstm().stream(3), lambda stream: _state_of(stream)),
    "masking": (lambda: fastrnn.Masking(0.0), lambda layer: layer(X)),
    "masking in a model": (lambda: fastrnn.Sequential(fastrnn.Masking(0.0), lstm()), lambda model: model(X)),
}
H = RNG.normal(size=(1, 3, 6)).astype(np.float32)


def _state_of(stream):
    stream.state = (H.astype(np.float64) / 3, H.astype(np.float64) / 7)
    return stream.step(X[:, 0])


@pytest.mark.parametrize("case", BUILT)
def test_layers(case):
    check(*BUILT[case])


@pytest.mark.parametrize("merge", ["sum", "mul", "ave"])
def test_the_last_outputs_of_two_directions(merge):
    pairs = [weights((24, n), (24, n)) for n in (4, 6)]
    check(lambda: fastrnn.LSTM(*pairs, bidirectional=True, merge=merge).last(), lambda layer: layer(X))


def test_weights_of_files_that_are_scaled(tmp_path):
    onnx = pytest.importorskip("onnx")
    initializers = [onnx.numpy_helper.from_array(w.astype(np.float32), n) for w, n in zip(weights((4, 5), 5), "wb")]
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.3, beta=0.7)
    values = [onnx.helper.make_tensor_value_info(name, 1, [None, n]) for name, n in (("x", 4), ("y", 5))]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], initializers)
    path = tmp_path / "scaled.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    check(lambda: fastrnn.load(path), lambda model: model(X[0]))


def test_the_reference_and_what_judges_by_it():
    model = fastrnn.Sequential(lstm(), fastrnn.Dense(*weights((3, 6), 3), activation="softmax"))
    check(lambda: model.spec, lambda spec: reference.run(spec, {"x": X}))
    check(lambda: model, lambda model: [row.max_abs for row in fastrnn.verify(model).layers])
