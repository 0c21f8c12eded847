"""A workload as an ONNX model, for ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from workloads import Workload

from fastrnn.spec import GATE_ORDER, GATES, Node, weight_suffixes

OPSET = 14
IR_VERSION = 8  # what the engines of the last years read; the newest onnx package would write more


def feeds(work: Workload) -> dict[str, np.ndarray]:
    """The inputs of the model: x time first, the state of each layer on its own, lengths as int32."""
    directions = 1 + work.bidirectional
    arrays = {"x": np.ascontiguousarray(work.x.swapaxes(0, 1))}
    for name, state in zip(work.rnn.inputs[1:], work.state, strict=True):
        for layer in range(work.rnn.attr("num_layers")):
            arrays[f"{name}_l{layer}"] = state[layer * directions : (layer + 1) * directions]
    if work.lengths is not None:
        arrays["lengths"] = work.lengths.astype(np.int32)
    return arrays


def build(work: Workload) -> bytes:
    """The serialised model; every dimension is fixed, which suits both engines best.

    The first output is (seq_len, directions, batch, hidden_size) as the operator writes it where nothing asks for
    another layout, else (seq_len, batch, features), or (batch, classes) with a head.  The final states follow it.
    """
    from onnx import TensorProto, helper, numpy_helper

    seq_len, batch, features = *work.x.shape[1::-1], work.hidden_size * (1 + work.bidirectional)
    layers, states = work.rnn.attr("num_layers"), work.rnn.inputs[1:]
    attributes: dict[str, Any] = {"hidden_size": work.hidden_size, "direction": work.rnn.attr("direction")}
    if work.rnn.op == "gru":
        attributes["linear_before_reset"] = 1

    nodes, finals, constants = [], [], dict(work.head.weights) if work.head else {}
    lengths = "lengths" if work.lengths is not None else ""
    x = "x"
    for layer in range(layers):
        constants |= _weights(work, layer)
        reads = [x, f"W{layer}", f"R{layer}", f"B{layer}", lengths, *(f"{name}_l{layer}" for name in states)]
        writes = [f"Y{layer}", *(f"{name[0]}_n_l{layer}" for name in states)]
        if work.head and layer + 1 == layers:
            writes = ["", "h_n"]
        nodes.append(helper.make_node(work.rnn.op.upper(), reads, writes, **attributes))
        finals += writes[1:]
        x = writes[0]
        if layer + 1 < layers or (work.bidirectional and not work.head):
            constants["sequence"] = np.array([seq_len, batch, features])
            nodes.append(helper.make_node("Transpose", [x], [f"T{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"T{layer}", "sequence"], [f"x{layer + 1}"]))
            x = f"x{layer + 1}"
    results = [x, *finals]
    if work.head:
        constants["row"] = np.array([batch, features])
        nodes.append(helper.make_node("Transpose", ["h_n"], ["h_t"], perm=[1, 0, 2]))
        nodes.append(helper.make_node("Reshape", ["h_t", "row"], ["h"]))
        nodes.append(helper.make_node("Gemm", ["h", "weight", "bias"], ["logits"], transB=1))
        results = ["logits"]

    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds(work).items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model.SerializeToString()


def _in_onnx_order(array: np.ndarray, cell: str) -> np.ndarray:
    """The blocks of gates of a weight or bias as ONNX has them."""
    blocks = np.split(array, len(GATES[cell]))
    return np.concatenate([blocks[GATES[cell].index(gate)] for gate in GATE_ORDER["onnx"][cell]])


def _weights(work: Workload, layer: int) -> dict[str, np.ndarray]:
    """W, R and B of a layer, both directions stacked, gates in ONNX's order."""
    directions = 1 + work.bidirectional
    suffixes = weight_suffixes(layer + 1, work.rnn.attr("direction"))[-directions:]

    def stacked(name: str) -> np.ndarray:
        return np.stack([_in_onnx_order(work.rnn.weights[name + suffix], work.rnn.op) for suffix in suffixes])

    bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    return {f"W{layer}": stacked("weight_ih"), f"R{layer}": stacked("weight_hh"), f"B{layer}": bias}


def of_layers(nodes: Sequence[Node], x: np.ndarray) -> bytes:
    """A row of LSTM and dense layers, batch first, on an input like ``x``; the last LSTM gives its final h.

    Layers are nodes of a fastrnn spec, in PyTorch's convention, of one direction.
    """
    from onnx import TensorProto, helper, numpy_helper

    made, constants = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])], {"axis": np.array([0])}
    constants["directions"] = np.array([1])
    tensor = "t"
    for k, node in enumerate(nodes):
        weights = node.weights
        if node.op == "lstm":
            zeros = np.zeros(len(weights["weight_ih_l0"]), np.float32)
            biases = [_in_onnx_order(weights.get(f"{name}_l0", zeros), "lstm") for name in ("bias_ih", "bias_hh")]
            constants[f"W{k}"] = _in_onnx_order(weights["weight_ih_l0"], "lstm")[None]
            constants[f"R{k}"] = _in_onnx_order(weights["weight_hh_l0"], "lstm")[None]
            constants[f"B{k}"] = np.concatenate(biases)[None]
            last = not node.attr("return_sequences")
            writes = ["", f"y{k}"] if last else [f"y{k}"]
            hidden = weights["weight_hh_l0"].shape[1]
            made.append(helper.make_node("LSTM", [tensor, f"W{k}", f"R{k}", f"B{k}"], writes, hidden_size=hidden))
            made.append(helper.make_node("Squeeze", [f"y{k}", "axis" if last else "directions"], [f"s{k}"]))
            tensor = f"s{k}"
        else:
            constants |= {f"weight{k}": weights["weight"], f"bias{k}": weights["bias"]}
            made.append(helper.make_node("Gemm", [tensor, f"weight{k}", f"bias{k}"], [f"g{k}"], transB=1))
            tensor = f"g{k}"
            if node.attr("activation") == "relu":
                made.append(helper.make_node("Relu", [tensor], [f"r{k}"]))
                tensor = f"r{k}"
    graph = helper.make_graph(
        made,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model.SerializeToString()
