"""Attacks on .frnn files: headers that lie, and specs that do not describe a model, all with right checksums."""

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hostile_torch import Attack, patched

from fastrnn.loaders import native, safetensors
from fastrnn.loaders.limits import MAX_NESTING
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

WEIGHTS = ("weight_ih_l0", "weight_hh_l0")


def good_spec() -> ModelSpec:
    weights = {"weight_ih_l0": np.ones((4, 3), np.float32), "weight_hh_l0": np.ones((4, 1), np.float32)}
    node = Node("lstm", "a", ("x",), ("y",), {"num_layers": 1}, weights)
    return ModelSpec([node], [Tensor("x", (None, None, 3))], [Tensor("y", (None, None, 1))])


def branching_spec() -> ModelSpec:
    """A graph with constants, two bodies and a recorded array."""
    bodies = {
        name: Graph(
            [Node("binary", f"add_{name}", ("x", f"step_{name}"), (f"z_{name}",), {"function": "add"})],
            [],
            [Tensor(f"z_{name}", (None, 2))],
            {f"step_{name}": np.full((1, 2, 1), k, np.float32)},
        )
        for k, name in enumerate(("then", "else"))
    }
    nodes = [
        Node("conv", "c", ("x",), ("v",), {"pads": (1, 1)}, {"weight": np.ones((2, 2, 3), np.float32)}),
        Node("reduce", "r", ("flags",), ("any",), {"function": "any", "keepdims": False}),
        Node("if", "i", ("any",), ("y",), graphs=bodies),
    ]
    constants = {"flags": np.array([True, False]), "count": np.array(3, np.int64)}
    recorded = {"x": np.zeros((1, 2), np.float32), "y": np.zeros((1, 2), np.float32)}
    return ModelSpec(nodes, [Tensor("x", None)], [Tensor("y", None)], constants, recorded=recorded)


def frnn(
    change: dict | None = None,
    edit: Callable[[dict], Any] | None = None,
    spec: ModelSpec | None = None,
    text: Callable[[str], str] = str,
    **tensors: np.ndarray,
) -> bytes:
    """A .frnn file with right checksums: metadata changed, the spec edited as objects or as text, tensors added."""
    arrays, metadata = native._describe(spec or good_spec())
    described = json.loads(metadata["spec"])
    if edit is not None:
        edit(described)
    metadata["spec"] = text(json.dumps(described))
    checksums = json.loads(metadata["checksums"]) | {"spec": zlib.crc32(metadata["spec"].encode())}
    for name, array in tensors.items():
        data = safetensors.array_bytes(array)
        checksums[f"tensor {name}"] = native._checksum(safetensors.dtype_code(array.dtype), array.shape, data)
    metadata |= {"checksums": json.dumps(checksums)} | (change or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return b"".join(safetensors.chunks(arrays | tensors, metadata))


def node(**fields: Any) -> bytes:
    """Fields of the only node changed."""
    return frnn(edit=lambda spec: spec["nodes"][0].update(fields))


def attrs(**values: Any) -> bytes:
    return node(attrs=values)


def top(**fields: Any) -> bytes:
    """Fields of the spec itself changed."""
    return frnn(edit=lambda spec: spec.update(fields))


def branching(edit: Callable[[dict], Any], **tensors: np.ndarray) -> bytes:
    return frnn(edit=edit, spec=branching_spec(), **tensors)


TENSOR = {"name": "v", "shape": None, "dtype": "float32"}
EMPTY = {"nodes": [], "inputs": [], "outputs": [], "constants": {}}


def deep_bodies(spec: dict) -> None:
    """A body within a body, and so on."""
    body = EMPTY
    for k in range(MAX_NESTING + 1):
        inner = {**spec["nodes"][2], "name": f"i{k}", "graphs": {"then": body, "else": EMPTY}}
        body = {**EMPTY, "nodes": [inner]}
    spec["nodes"][2]["graphs"]["then"] = body


def many_bodies(spec: dict) -> None:
    """Many nodes with bodies, each of which sees the tensors of all nodes before it."""
    node = {"op": "if", "inputs": ["x"], "attrs": {}, "weights": {}, "graphs": {"then": EMPTY, "else": EMPTY}}
    spec["nodes"] = [{**node, "name": f"{k}", "outputs": [f"t{k}"]} for k in range(10_000)]


def header_attacks() -> Iterator[tuple[str, bytes, str]]:
    good = frnn()
    begin = good.index(b'"format"')
    yield "newer", frnn({"version": "3"}), "version 3.*reads up to 2"
    yield "newest", frnn({"version": "999999999"}), "upgrade"
    yield "version_0", frnn({"version": "0"}), "version of the file is '0'"
    yield "version_text", frnn({"version": "one"}), "version of the file is 'one'"
    yield "version_sign", frnn({"version": "+2"}), r"version of the file is '\+2'"
    yield "version_digits", frnn({"version": "²"}), "version of the file is '²'"
    yield "version_long", frnn({"version": "1" * 100_000}), "version of the file"
    yield "version_missing", frnn({"version": None}), "version of the file is ''"
    yield "version_older", frnn({"version": "1"}), "'weights' is missing or of the wrong kind"
    yield "tensor_bit", patched(good, (len(good) - 1, b"\x01")), "checksums do not match: 'tensor a.weight_hh_l0'"
    nested_state = good.replace(rb"\"nested_state\": false", rb"\"nested_state\": true ")
    yield "spec_bit", nested_state, "the spec itself"
    yield "shape_bit", good.replace(b"[4,3]", b"[3,4]"), "checksums do not match: 'tensor a.weight_ih_l0'"
    yield "no_checksums", frnn({"checksums": None}), "not JSON"
    yield "checksums_list", frnn({"checksums": "[]"}), "not a JSON object"
    yield "checksums_empty", frnn({"checksums": "{}"}), "'the spec itself'"
    yield "checksums_twice", frnn({"checksums": '{"spec": 1, "spec": 2}'}), "a name twice"
    yield "no_spec", frnn({"spec": None}), "the spec itself"
    yield "cut", good[:-3], "end at byte"
    yield "garbled", patched(good, (begin, b"\x00\x00")), "not JSON"


def spec_attacks() -> Iterator[tuple[str, bytes, str]]:
    nested: list = []
    for _ in range(100):
        nested = [nested]
    yield "spec_list", frnn(text=lambda text: "[]"), "not a JSON object"
    yield "spec_nan", frnn(text=lambda text: text.replace('"num_layers": 1', '"clip": NaN')), "holds NaN"
    yield "spec_twice", frnn(text=lambda text: text.replace('"op"', '"op": "gru", "op"')), "a name twice"
    yield "spec_deep", frnn(text=lambda text: "[" * 100_000), "RecursionError"
    yield "nodes", top(nodes={}), "'nodes' is missing or of the wrong kind"
    yield "node_text", top(nodes=["a"]), "'nodes' is missing"
    yield "inputs", top(inputs=None), "'inputs' is missing"
    yield "tensor_shape", top(inputs=[{"name": "x", "shape": ["a"]}]), "'shape' is missing"
    yield "tensor_negative", top(inputs=[{"name": "x", "shape": [-1], "dtype": "float32"}]), r"'x' is float32 \(-1,\)"
    yield "tensor_dtype", top(inputs=[{"name": "x", "shape": None, "dtype": "object"}]), "'x' is object"
    yield "nested_state", top(nested_state=1), "'nested_state' is missing"
    yield "op", node(op="lambda"), "unknown kind of layer"
    yield "op_number", node(op=1), "'op' is missing"
    yield "name", node(name=["a"]), "'name' is missing"
    yield "cycle", node(inputs=["y"]), "reads tensor 'y'"
    yield "no_inputs", node(inputs=[]), "input 'x' is missing"
    yield "writes_input", node(outputs=["x"]), "writes tensor 'x', which exists"
    yield "attribute", attrs(code="import os"), "unknown attribute 'code'"
    yield "attribute_dict", attrs(clip={"a": 1}), "unknown kind"
    yield "attribute_deep", attrs(clip=nested), "unknown kind"
    yield "attribute_text", attrs(clip="1"), "'clip' is '1', expected a positive number"
    yield "layers_text", attrs(num_layers="1"), "'num_layers' is '1', expected a whole number >= 1"
    yield "layers_huge", attrs(num_layers=1 << 40), "num_layers is 1099511627776, there are 2 weights"
    yield "layers_huger", attrs(num_layers=1 << 80), "expected a whole number"
    yield "layers_0", attrs(num_layers=0), "'num_layers' is 0"
    yield "layers_bool", attrs(num_layers=True), "'num_layers' is True"
    yield "layers_many", attrs(num_layers=2), "weight 'weight_hh_l1' is missing"
    yield "direction", attrs(direction=1), "'direction' is 1, expected one of forward"
    yield "activation", attrs(gate_activation=["a", "b"]), r"'gate_activation' is \('a', 'b'\), expected a text"
    yield "batch_first", attrs(batch_first="no"), "'batch_first' is 'no', expected True or False"


def array_attacks() -> Iterator[tuple[str, bytes, str]]:
    extra, held = np.zeros(2, np.float32), {key: f"a.{key}" for key in WEIGHTS}
    integers = np.ones((4, 1), np.int64)
    yield "extra_tensor", frnn(**{"a.b": extra}), "tensors of no layer: 'a.b'"
    yield "missing_tensor", node(weights=held | {"bias_ih_l0": "b"}), "without a tensor of their own: 'b'"
    yield "unused_tensor", node(weights={"weight_ih_l0": "a.weight_ih_l0"}), "tensors of no layer: 'a.weight_hh_l0'"
    yield "shared_tensor", node(weights=held | {"bias_ih_l0": "a.weight_hh_l0"}), "of their own: 'a.weight_hh_l0'"
    yield "weights_list", node(weights=list(WEIGHTS)), "'weights' is missing or of the wrong kind"
    yield "weights_number", node(weights=held | {"bias_ih_l0": 1}), "'weights' is missing"
    wrong = frnn(edit=lambda s: s["nodes"][0].update(weights=held | {"weight_hh_l0": "w"}), w=integers)
    yield "weight_unused", wrong, "tensors of no layer: 'a.weight_hh_l0'"
    spec = good_spec()
    spec.nodes[0].weights["weight_hh_l0"] = np.ones((4, 1), np.float64)
    data = frnn(spec=spec)  # eight bytes an element, whichever kind
    as_integers = data.replace(b'"F64"', b'"I64"')
    old = native._checksum("F64", (4, 1), memoryview(np.ones((4, 1)).tobytes()))
    new = native._checksum("I64", (4, 1), memoryview(np.ones((4, 1)).tobytes()))
    assert len(str(old)) == len(str(new))
    yield "weight_integers", as_integers.replace(str(old).encode(), str(new).encode()), "holds int64, expected floating"
    yield "constants_list", top(constants=[]), "'constants' is missing"
    yield "constant_missing", top(constants={"k": "nowhere"}), "of their own: 'nowhere'"
    yield "constant_twice", branching(lambda s: s["constants"].update(x="e"), e=extra), "'x' is defined twice"
    yield "recorded_number", top(recorded={"x": 1}), "'recorded' is missing"
    recorded = branching(lambda s: s["recorded"].update(hidden="e"), e=extra)
    yield "recorded_unknown", recorded, "recorded array 'hidden' is no input or output"


def body_attacks() -> Iterator[tuple[str, bytes, str]]:
    def branch(edit: Callable[[dict], Any]) -> bytes:
        return branching(lambda spec: edit(spec["nodes"][2]))

    def conv(**values: Any) -> bytes:
        return branching(lambda spec: spec["nodes"][0]["attrs"].update(values))

    yield "body_missing", branch(lambda n: n["graphs"].pop("else")), "tensors of no layer: 'step_else'"
    yield "bodies_list", branch(lambda n: n.update(graphs=[])), "'graphs' is missing"
    yield "body_list", branch(lambda n: n["graphs"].update({"else": []})), "'graphs' is missing"
    yield "body_unknown", branch(lambda n: n["graphs"].update({"more": n["graphs"].pop("else")})), "has the bodies"
    yield (
        "body_of_lstm",
        frnn(edit=lambda s: s["nodes"][0].update(graphs={"then": dict(s, nodes=[], constants={})})),
        ("has the bodies.*'then'"),
    )
    inner = branch(lambda n: n["graphs"]["then"]["nodes"][0].update(inputs=["z_else", "step_then"]))
    yield "body_reads_other", inner, "reads tensor 'z_else'"
    yield "body_name", branch(lambda n: n["graphs"]["then"]["nodes"][0].update(name="c")), "name is used twice"
    yield "body_outputs", branch(lambda n: n["graphs"]["then"].update(outputs=[])), "0 outputs, expected 0 and 1"
    yield "body_inputs", branch(lambda n: n["graphs"]["then"].update(inputs=[dict(TENSOR, name="p")])), "has 1 inputs"
    body = {**EMPTY, "constants": {"step_then": "step_then", "step_else": "step_else"}}
    loop = {"op": "loop", "graphs": {"body": body}}
    yield "loop", branch(lambda n: n.update(loop, inputs=["count", "any", "x"])), "0 outputs, expected 3 and 2"
    scan = {"op": "scan", "inputs": ["x"], "graphs": {"body": {**body, "inputs": [TENSOR], "outputs": [TENSOR]}}}
    yield "scan", branch(lambda n: n.update(scan, attrs={"num_scanned": 3})), "scans 3 tensors, has 1 inputs"
    yield "scan_axes", branch(lambda n: n.update(scan, attrs={"axes": [0, 1]})), "axes has 2 numbers, expected 1"
    yield "body_output", branch(lambda n: n["graphs"]["then"]["outputs"][0].update(name="q")), "'q' is written by no"
    yield "bodies_deep", branching(deep_bodies), "bodies are nested deeper"
    yield "bodies_many", frnn(edit=many_bodies), "tensors of no layer"
    yield "function", branching(lambda s: s["nodes"][1]["attrs"].update(function="eval")), "'eval', expected one of sum"
    yield "pads_many", conv(pads=[1, 1, 1]), "pads has 3 numbers, expected 2"
    yield "pads_negative", conv(pads=[-1, 1]), "'pads' is .* expected whole numbers >= 0"
    yield "strides_0", conv(strides=[0]), "'strides' is"
    yield "groups_0", conv(groups=0), "'groups' is 0, expected a whole number >= 1"


def native_attacks() -> Iterator[Attack]:
    for group in (header_attacks, spec_attacks, array_attacks, body_attacks):
        for label, data, words in group():
            yield Attack(f"frnn_{label}.frnn", data, words)
