"""Runs that would not end: a limit on the turns of loops, and Ctrl-C, after which everything goes on as before."""

import signal
from itertools import pairwise

import numpy as np
import pytest

import fastrnn
from fastrnn import operators, reference, run_limits
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

X = np.ones((2, 3), np.float32)


def body_of(*inner: Node, wide: bool = True) -> Graph:
    """A body that carries t and goes on for ever."""
    again = Node("identity", f"again_{inner[0].name}", (f"go_{inner[0].name}",), (f"go_on_{inner[0].name}",))
    name = inner[0].name
    inputs = [Tensor(f"k_{name}", (), "int64"), Tensor(f"go_{name}", (), "bool"), Tensor(f"t_{name}", None)]
    return Graph([*inner, again], inputs, [Tensor(f"go_on_{name}", (), "bool"), Tensor(f"{name}_t", None)])


def loop(name: str, x: str, y: str, *inner: Node, times: str = "") -> Node:
    return Node("loop", name, (times, "", x), (y,), {}, {}, {"body": body_of(*inner)})


def sums(name: str) -> Node:
    """A host step, which a test can listen to."""
    return Node("cumsum", name, (f"t_{name}",), (f"{name}_t",), {"axis": 0})


def model_of(*nodes: Node, **constants: np.ndarray) -> fastrnn.Model:
    return fastrnn.Model(ModelSpec(list(nodes), [Tensor("x", None)], [Tensor("y", None)], constants))


def nest() -> fastrnn.Model:
    """An endless loop of loops that end."""
    inner = loop("inner", "t_first", "first_t", sums("second"), times="few")
    first = Node("identity", "first", ("t_first",), ("unused",))
    outer = Node("loop", "outer", ("", "", "x"), ("y",), {}, {}, {"body": body_of(first, inner)})
    return model_of(outer, few=np.array(10))


MODELS = {"one loop": lambda: model_of(loop("outer", "x", "y", sums("first"))), "loops in a loop": nest}


@pytest.mark.parametrize("kind", MODELS)
def test_a_loop_without_an_end(kind, monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_TURNS", 25)
    model = MODELS[kind]()
    for run in (model.run, lambda feeds: reference.run(model.spec, feeds)):
        for _ in range(2):  # the count begins anew
            with pytest.raises(fastrnn.errors.UnsupportedError, match=r"(outer|inner)'? goes on after 25 turns"):
                run({"x": X})


def test_loops_that_end_are_counted_one_by_one(monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_TURNS", 25)
    model = model_of(
        loop("a", "x", "z", sums("first"), times="most"),
        loop("b", "z", "y", sums("second"), times="most"),
        most=np.array(25),
    )
    for _ in range(3):
        assert model.run({"x": X})["y"].shape == X.shape


def test_a_scan_by_itself_makes_the_steps_that_its_input_has(monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_TURNS", 25)
    add = Node("binary", "add", ("h_t", "x_t"), ("h_next",), {"function": "add"})
    body = Graph([add], [Tensor("h_t", None), Tensor("x_t", None)], [Tensor("h_next", None)])
    scan = Node("scan", "scan", ("h", "x"), ("y",), {"num_scanned": 1}, {}, {"body": body})
    assert model_of(scan, h=np.zeros(3, np.float32)).run({"x": np.ones((60, 3), np.float32)})["y"][0] == 60


@pytest.fixture
def interrupt_at(monkeypatch):
    """Ctrl-C while cumsum runs for the n-th time; the calls are counted."""
    calls = []
    run = operators.FUNCTIONS["cumsum"]

    def listening(node, x):
        calls.append(node.name)
        if len(calls) == at[0]:
            signal.raise_signal(signal.SIGINT)
        return run(node, x)

    at = [0]
    monkeypatch.setitem(operators.FUNCTIONS, "cumsum", listening)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda n: (calls.clear(), at.__setitem__(0, n), calls)[2]
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", MODELS)
def test_control_c_ends_an_endless_loop_at_once(kind, interrupt_at):
    model = MODELS[kind]()
    for _ in range(2):
        calls = interrupt_at(40)
        with pytest.raises(KeyboardInterrupt):
            model.run({"x": X})
        assert len(calls) == 40
    assert operators._turns.depth == 0


def test_a_model_goes_on_after_control_c(interrupt_at):
    nodes = [
        Node(op, f"n{k}", (f"t{k}" if k else "x",), (f"t{k + 1}",), {"axis": 1}) for k, op in enumerate(["cumsum"] * 4)
    ]
    model = model_of(*nodes, Node("identity", "end", ("t4",), ("y",)))
    wanted = model.run({"x": X})["y"]
    for n in range(1, 5):
        interrupt_at(n)
        with pytest.raises(KeyboardInterrupt):
            model.run({"x": X})
    interrupt_at(0)
    assert np.array_equal(model.run({"x": X})["y"], wanted)


def test_a_stream_of_a_model_keeps_its_state_at_control_c(interrupt_at):
    """A call that ends so has moved nothing: the step can be made again."""
    rng = np.random.default_rng(0)
    gru = Node(
        "gru", "gru", ("f",), ("y", "h_n"), {}, {"weight_ih_l0": floats(rng, 18, 4), "weight_hh_l0": floats(rng, 18, 6)}
    )
    total = Node("cumsum", "total", ("x",), ("f",), {"axis": 2})
    spec = ModelSpec([total, gru], [Tensor("x", (None, None, 4))], [Tensor("y", None)])
    model, x = fastrnn.Model(spec), floats(rng, 5, 4)
    interrupt_at(0)
    wanted = model(x[None])[0]
    stream, made = model.stream(), []
    for frame in x:
        interrupt_at(1)
        with pytest.raises(KeyboardInterrupt):
            stream.step(frame)
        interrupt_at(0)
        made.append(stream.step(frame))
    assert np.array_equal(np.reshape(made, wanted.shape), wanted)


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def matmuls(count: int) -> fastrnn.Model:
    names = ["x", *(f"t{k}" for k in range(count - 1)), "y"]
    return model_of(*(Node("matmul", f"to_{y}", (x, "x"), (y,)) for x, y in pairwise(names)))


LONG = {
    "a program": (lambda: matmuls(60), lambda: np.zeros((1024, 1024), np.float32)),
    "a dense layer": (
        lambda: fastrnn.Dense(np.zeros((2048, 1024), np.float32)),
        lambda: np.zeros((20_000, 1024), np.float32),
    ),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("threads", [1, 2])
def test_control_c_during_one_call_of_c(kind, threads):
    """Signals that come while C runs are told to Python one by one; those of a call that never asks would be one."""
    fastrnn.set_num_threads(threads)
    made, x = LONG[kind]
    call, array, seen = made(), x(), []

    def handler(*_):
        seen.append(True)
        if len(seen) == 3:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with pytest.raises(KeyboardInterrupt):
            call(array)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    small = array[:3] if kind == "a dense layer" else array[:2, :2].copy()
    assert not call(small).any()
