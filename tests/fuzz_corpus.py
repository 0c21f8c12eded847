"""Small valid model files of every format, from which fuzz_loaders.py makes others."""

import argparse
import io
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_native
import hostile_script
import hostile_torch
import numpy as np
from fuzz_operators import operator_specs

from fastrnn.loaders import native, safetensors
from fastrnn.spec import ModelSpec, Node, Tensor


@dataclass(frozen=True)
class Seed:
    """A file, what ``load_spec`` needs to know about it, and the files beside it."""

    name: str
    data: bytes
    options: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)


def lstm_spec() -> ModelSpec:
    rng = np.random.default_rng(0)
    weights = {
        f"{name}_l0{end}": rng.standard_normal(shape).astype(np.float32)
        for end in ("", "_reverse")
        for name, shape in (("weight_ih", (8, 3)), ("weight_hh", (8, 2)), ("bias_ih", (8,)), ("bias_hh", (8,)))
    }
    attrs = {"direction": "bidirectional", "gate_activation": ("hard_sigmoid", 0.2, 0.5), "clip": None}
    nodes = [
        Node("lstm", "rnn", ("x",), ("a",), attrs, weights),
        Node("dense", "head", ("a",), ("y",), {}, {"weight": np.ones((2, 4), np.float32)}),
    ]
    return ModelSpec(nodes, [Tensor("x", (None, None, 3))], [Tensor("y", None)])


def native_seeds() -> Iterator[Seed]:
    yield Seed("lstm.frnn", native.spec_to_bytes(lstm_spec()))
    branching = hostile_native.branching_spec()
    branching.inputs[0] = Tensor("x", (None, 2, None))
    yield Seed("if.frnn", native.spec_to_bytes(branching))
    yield Seed("lstm.safetensors", b"".join(safetensors.chunks(lstm_spec().nodes[0].weights, {"a": "b"})))


def torch_seeds() -> Iterator[Seed]:
    """A checkpoint and a TorchScript archive; by PyTorch where it is installed."""
    try:
        import torch
    except ImportError:
        yield Seed("plain.pt", hostile_torch.GOOD_PT)
        yield Seed("script.jit", hostile_script.GOOD)
        return
    weights = lstm_spec().nodes[0].weights
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state": {key: torch.from_numpy(array).half() for key, array in weights.items()}}, buffer)
    yield Seed("checkpoint.pt", buffer.getvalue())
    buffer = io.BytesIO()
    module = torch.nn.LSTM(3, 2, bidirectional=True)
    options = argparse.Namespace(rate=np.float64(0.5), mean=np.ones(2), counts=Counter("aab"))
    torch.save({"options": options, "optimizer": torch.optim.SGD(module.parameters()), "net": module}, buffer)
    yield Seed("objects.pt", buffer.getvalue(), {"prefix": "net."})
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))), buffer)
    yield Seed("script.jit", buffer.getvalue())


def keras_seeds() -> Iterator[Seed]:
    """The containers of Keras, where it is installed."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import h5py  # noqa: F401
        import keras
    except ImportError:
        return
    layers = keras.layers
    stack = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2), layers.Dense(2, activation="softmax")])
    x = keras.Input((4, 3))
    masked = layers.Masking()(x)
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True))(masked)
    graph = keras.Model(x, layers.Dense(1)(layers.Concatenate()([both, layers.TimeDistributed(layers.Dense(2))(x)])))
    filtered = layers.Conv1D(2, 2, padding="same")(x)
    attended = layers.Attention()([filtered, filtered])
    means = keras.ops.mean(attended * 2.0 + keras.ops.square(filtered), axis=1)
    merged = layers.Add()([layers.GlobalMaxPooling1D()(filtered), means])
    arithmetic = keras.Model(x, layers.Reshape((1, 2))(layers.BatchNormalization()(merged)))
    with tempfile.TemporaryDirectory() as folder:
        for model, name, options in (
            (arithmetic, "arithmetic.keras", {}),
            (stack, "stack.keras", {}),
            (graph, "graph.keras", {}),
            (stack, "stack.h5", {}),
            (stack, "stack.weights.h5", {"config": stack.get_config()}),
        ):
            path = Path(folder) / name
            (model.save_weights if options else model.save)(path)
            yield Seed(name, path.read_bytes(), options)


def onnx_seeds() -> Iterator[Seed]:
    """An LSTM, an If with a Loop in it, operators, and a model with external data, where onnx is installed."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return

    def tensor(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, list(shape))

    def constant(name: str, array: Any) -> Any:
        return numpy_helper.from_array(np.asarray(array), name)

    def model(nodes: list, inputs: list, outputs: list, constants: list) -> Any:
        graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    rng = np.random.default_rng(1)
    w, r, b = (rng.standard_normal(shape).astype("f") for shape in ((1, 8, 3), (1, 8, 2), (1, 16)))
    lstm = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "h"], "lstm", hidden_size=2, clip=3.0)
    squeeze = helper.make_node("Squeeze", ["y", "axis"], ["z"], "squeeze")
    made = model(
        [lstm, squeeze], [tensor("x", "t", "b", 3)], [tensor("z", "t", "b", 2), tensor("h", 1, "b", 2)],
        [constant("w", w), constant("r", r), constant("b", b), constant("axis", np.array([1]))],
    )  # fmt: skip
    yield Seed("lstm.onnx", made.SerializeToString())

    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "x"], ["sum"])], "step",
        [tensor("k", kind=TensorProto.INT64), tensor("go", kind=TensorProto.BOOL), tensor("v", "b", 3)],
        [tensor("on", kind=TensorProto.BOOL), tensor("sum", "b", 3)],
    )  # fmt: skip
    then = helper.make_graph(
        [helper.make_node("Loop", ["count", "", "x"], ["looped"], "loop", body=step)],
        "then",
        [],
        [tensor("looped", "b", 3)],
    )
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["relu"])], "else", [], [tensor("relu", "b", 3)])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["positive"], "greater"),
        helper.make_node("If", ["positive"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    constants = [constant("count", np.array(3)), constant("zero", np.array(0, "f"))]
    yield Seed("if.onnx", model(nodes, [tensor("x", "b", 3)], [tensor("y", "b", 3)], constants).SerializeToString())

    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], "conv", pads=[1, 1], strides=[2]),
        helper.make_node("Shape", ["c"], ["size"], "shape"),
        helper.make_node("Gather", ["size", "zero"], ["rows"], "gather"),
        helper.make_node("Concat", ["rows", "rest"], ["wanted"], "concat", axis=0),
        helper.make_node("Reshape", ["c", "wanted"], ["flat"], "reshape"),
        helper.make_node("MatMul", ["flat", "matrix"], ["m"], "matmul"),
        helper.make_node("Pad", ["m", "pads"], ["p"], "pad", mode="reflect"),
        helper.make_node("Softmax", ["p"], ["y"], "softmax", axis=-1),
    ]
    constants = [
        constant("kernel", rng.standard_normal((2, 3, 3)).astype("f")), constant("zero", np.array([0])),
        constant("rest", np.array([-1, 2])), constant("matrix", rng.standard_normal((2, 4)).astype("f")),
        constant("pads", np.array([0, 0, 1, 0, 0, 1])),
    ]  # fmt: skip
    made = model(nodes, [tensor("x", "b", 3, 8)], [tensor("y", None, None, None)], constants)
    yield Seed("operators.onnx", made.SerializeToString())

    matrix = constant("matrix", rng.standard_normal((3, 4)).astype("f"))
    outside = TensorProto(name="matrix", data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "16"), ("length", "48")):
        outside.external_data.add(key=key, value=value)
    node = helper.make_node("MatMul", ["x", "matrix"], ["y"], "matmul")
    made = model([node], [tensor("x", "b", 3)], [tensor("y", "b", 4)], [outside])
    yield Seed("external.onnx", made.SerializeToString(), beside={"weights.bin": bytes(16) + matrix.raw_data})


def operator_seeds() -> Iterator[Seed]:
    """A small file for each kind of node and many of its attributes."""
    for name, spec in operator_specs():
        yield Seed(f"{name}.frnn", native.spec_to_bytes(spec))


MOST_BYTES, MOST_ELEMENTS, MOST_CASES = 3000, 2000, 4  # of ONNX's own tests


def onnx_operator_seeds() -> Iterator[Seed]:
    """ONNX's own tests of single operators: some small ones of each, also with all inputs but the first known."""
    try:
        from onnx_cases import bind, node_cases
    except ImportError:
        return
    counts: Counter[str] = Counter()
    for case in sorted(node_cases(), key=lambda case: case.model.ByteSize()):
        kind, feeds = case.model.graph.node[0].op_type, case.data_sets[0][0]
        size = sum(np.size(a) for a in feeds if isinstance(a, (np.ndarray, np.generic)))
        if case.model.ByteSize() > MOST_BYTES or size > MOST_ELEMENTS or counts[kind] >= MOST_CASES:
            continue
        counts[kind] += 1
        yield Seed(f"{case.name}.onnx", case.model.SerializeToString())
        given = {v.name: a for v, a in zip(case.model.graph.input, feeds)}
        if len(given) > 1 and all(isinstance(a, (np.ndarray, np.generic)) and a.size < 200 for a in feeds):
            bound = bind(case.model, given, list(given)[1:])[0]
            if bound.ByteSize() <= MOST_BYTES:
                yield Seed(f"{case.name}_bound.onnx", bound.SerializeToString())


def corpus(every_operator: bool = False) -> list[Seed]:
    """A few seeds for each format that can be made here, and for each kind of node; with ``every_operator`` also
    ONNX's own tests, which take a while to make."""
    more = onnx_operator_seeds() if every_operator else ()
    return [*native_seeds(), *operator_seeds(), *torch_seeds(), *keras_seeds(), *onnx_seeds(), *more]
