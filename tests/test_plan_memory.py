"""What a model keeps for the shapes and values that it has met: how many plans, what they hold, and which go first."""

import gc
import threading
import tracemalloc
import weakref
from itertools import pairwise

import numpy as np
import pytest

import fastrnn
from fastrnn import run_limits
from fastrnn.engine.executable import MAX_PLANS
from fastrnn.engine.plan import Blocks, Plan
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

FREE = (None, None, 4)


def model_of(nodes, inputs, output="y", **constants) -> fastrnn.Model:
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(output, None)], arrays))


def stops() -> fastrnn.Model:
    """The first n steps of x: a plan for each shape of x, and one behind it for each n."""
    cut = Node("slice", "cut", ("x", "zero", "n", "one"), ("part",))
    total = Node("cumsum", "total", ("part",), ("y",), {"axis": 1})
    return model_of([cut, total], [Tensor("x", FREE), Tensor("n", (1,), "int64")], zero=[0], one=[1])


def folds() -> fastrnn.Model:
    """x plus what is computed for its shape when a plan is made."""
    nodes = [
        Node("shape", "sizes", ("x",), ("shape",)),
        Node("fill", "ones", ("shape",), ("filled",), {"value": 1.0, "dtype": "float32"}),
        Node("cumsum", "count", ("filled",), ("counted",), {"axis": 1}),
        Node("binary", "sum", ("x", "counted"), ("y",), {"function": "add"}),
    ]
    return model_of(nodes, [Tensor("x", FREE)])


def chain(op: str, **attrs) -> fastrnn.Model:
    names = ["x", *(f"t{k}" for k in range(20)), "y"]
    nodes = [Node(op, f"n{k}", (a,), (b,), attrs) for k, (a, b) in enumerate(pairwise(names))]
    return model_of(nodes, [Tensor("x", FREE)])


def table() -> fastrnn.Model:
    """The first rows of a table of the model, which plans share."""
    nodes = [
        Node("shape", "sizes", ("x",), ("n",), {"start": 1, "end": 2}),
        Node("slice", "cut", ("table", "zero", "n", "one"), ("rows",)),
        Node("binary", "sum", ("x", "rows"), ("y",), {"function": "add"}),
    ]
    rows = np.ones((1, 5000, 4), np.float32)
    return model_of(nodes, [Tensor("x", FREE)], table=rows, zero=[0], one=[1])


def loops() -> fastrnn.Model:
    """x doubled n times in a body, which grows by a step each time."""
    inner = [
        Node("concat", "grow", ("h", "x"), ("longer",), {"axis": 1}),
        Node("identity", "same", ("go",), ("again",)),
    ]
    tensors = [Tensor("k", (), "int64"), Tensor("go", (), "bool"), Tensor("h", None)]
    body = Graph(inner, tensors, [Tensor("again", (), "bool"), Tensor("longer", None)])
    loop = Node("loop", "loop", ("n", "yes", "x"), ("y",), graphs={"body": body})
    return model_of([loop], [Tensor("x", FREE), Tensor("n", None, "int64")], yes=True)


def x_of(steps: int) -> np.ndarray:
    return np.zeros((1, steps, 4), np.float32)


def plans_of(model: fastrnn.Model) -> list[Plan]:
    return model._executable.memory.plans


def living(model: fastrnn.Model) -> int:
    """Plans that can be reached from a model by way of any level."""
    memory = model._executable.memory
    levels, count = [model._executable, *(body for body, _ in memory.bodies.values())], 0
    while levels:
        plans = list(levels.pop().plans.values())
        count += len(plans)
        levels += [plan.stop.rest for plan in plans if plan.stop is not None]
    return count


def test_plans_of_all_levels_are_counted_together():
    model = stops()
    for steps in range(1, 40):
        for n in range(1, steps + 1):
            model.run({"x": x_of(steps), "n": np.array([n])})
    assert len(plans_of(model)) == living(model) == MAX_PLANS


def test_plans_of_bodies_are_counted_and_made_once():
    model = loops()
    for n in range(4):
        model.run({"x": x_of(2), "n": np.array(n)})
    # The first plan stops at the loop; behind it the result is given; the body met three lengths of h.
    kinds = [plan.stop is not None for plan in plans_of(model)]
    assert (kinds.count(True), len(model._executable.memory.bodies)) == (1, 1)
    ((body, _),) = model._executable.memory.bodies.values()
    assert len(body.plans) == 3
    for n in (3, MAX_PLANS + 30):
        y = model.run({"x": x_of(2), "n": np.array(n)})["y"]
        assert y.shape == (1, 2 * (n + 1), 4)
    assert len(plans_of(model)) == living(model) == MAX_PLANS


def test_the_plan_used_least_recently_goes_first():
    model, used = folds(), {}
    for steps in range(1, 2 * MAX_PLANS):
        model.run({"x": x_of(steps)})
        model.run({"x": x_of(1)})
        used.setdefault(1, plans_of(model)[0])
    kept = plans_of(model)
    assert used[1] in kept
    assert {plan.inputs[0].shape[1] for plan in kept} == {1, *range(MAX_PLANS + 1, 2 * MAX_PLANS)}


def test_a_plan_that_goes_takes_those_behind_it_along_at_once():
    model = stops()
    model.run({"x": x_of(3), "n": np.array([2])})
    first, behind = plans_of(model)
    gone = [weakref.ref(first), weakref.ref(behind), weakref.ref(first.stop.rest)]
    del first, behind
    gc.disable()
    try:
        for steps in range(4, 4 + MAX_PLANS):
            model.run({"x": x_of(steps), "n": np.array([1])})
        assert [to() for to in gone] == [None] * 3, "kept alive by a cycle"
    finally:
        gc.enable()


def test_the_bytes_of_all_plans_have_a_limit(monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_PLAN_BYTES", 1 << 20)
    model = folds()
    for steps in range(1000, 1100):
        y = model.run({"x": x_of(steps)})["y"]
        assert np.array_equal(y[0, :, 0], np.arange(1, steps + 1))
        assert sum(plan.nbytes for plan in plans_of(model)) <= 1 << 20
    assert 40 < len(plans_of(model)) < 66  # of 16 kB each and a little more
    model.run({"x": x_of(200_000)})
    (one,) = plans_of(model)
    assert one.nbytes > 1 << 20, "the last one is kept, whatever it holds"


MODELS = {
    "stops": (stops, lambda k: {"x": x_of(90), "n": np.array([k])}),
    "folds": (folds, lambda k: {"x": x_of(300 + k)}),
    "host steps": (lambda: chain("cumsum", axis=1), lambda k: {"x": x_of(k)}),
    "native steps": (lambda: chain("activation", activation="tanh"), lambda k: {"x": x_of(k)}),
    "a shared table": (table, lambda k: {"x": x_of(1000 + k)}),
    "bodies": (loops, lambda k: {"x": x_of(k), "n": np.array(3)}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_plan_says_that_it_holds_is_what_it_holds(kind):
    """Within a factor; tracemalloc does not see the steps, which are C's."""
    made, feeds = MODELS[kind]
    model = made()
    model.run(feeds(1))
    known = {id(plan) for plan in plans_of(model)}
    gc.collect()
    tracemalloc.start()
    try:
        for k in range(2, 42):
            model.run(feeds(k))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    plans = [plan for plan in plans_of(model) if id(plan) not in known]
    held += sum(plan.program.nbytes - plan.program.constants.nbytes for plan in plans)
    assert 0.8 * held < sum(plan.nbytes for plan in plans) < 2 * held


def test_large_constants_are_shared_not_copied():
    model = table()
    for steps in (4000, 5000):
        assert np.array_equal(model.run({"x": x_of(steps)})["y"], np.ones((1, steps, 4)))
    assert sum(plan.nbytes for plan in plans_of(model)) < 20_000


def test_threads_that_make_plans_at_the_same_time(monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_PLANS", 20)
    model, wrong = stops(), []

    def work(offset: int) -> None:
        for k in range(300):
            steps = 1 + (k * 7 + offset) % 12
            y = model.run({"x": np.ones((1, 12, 4), np.float32), "n": np.array([steps])})["y"]
            if not np.array_equal(y[0, :, 0], np.arange(1, steps + 1)):
                wrong.append(steps)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    model.run({"x": x_of(1), "n": np.array([1])})
    assert len(plans_of(model)) <= 20


def test_what_a_trace_plans_goes_with_it():
    model = stops()
    gc.disable()
    try:
        before = sum(isinstance(thing, Plan) for thing in gc.get_objects())
        model.trace({"x": x_of(3), "n": np.array([2])})
        assert sum(isinstance(thing, Plan) for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_blocks_that_wait_have_a_limit(monkeypatch):
    monkeypatch.setattr(run_limits, "MAX_IDLE_BYTES", 1 << 20)
    blocks = Blocks()
    taken = [blocks.take(100_000) for _ in range(9)]
    for block in taken:
        blocks.put_back(block)
    assert sum(block.nbytes for block in blocks._free) <= 1 << 20
    large = Blocks()
    large.put_back(large.take(1 << 20))
    assert len(large._free) == 1, "one waits, however large"


def test_operators_of_onnx_that_are_ready_have_a_limit(monkeypatch):
    onnx = pytest.importorskip("onnx")
    from fastrnn import onnx_operator

    monkeypatch.setattr(run_limits, "MAX_OPERATOR_BYTES", 200_000)
    monkeypatch.setattr(onnx_operator, "_evaluators", onnx_operator._Evaluators())
    x = np.zeros((2, 3), np.float32)
    for k in range(30):
        node = onnx.helper.make_node("Hardmax", ["x"], ["y"], axis=k % 2, name=f"n{k}")
        graph = onnx.helper.make_graph(
            [node],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [2, 3])],
            [onnx.helper.make_tensor_value_info("y", 1, [2, 3])],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        model = fastrnn.from_onnx(made.SerializeToString())
        assert model(x).sum() == (3, 2)[k % 2]
    assert 1 <= len(onnx_operator._evaluators._kept) < 30
