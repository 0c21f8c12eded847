"""Small valid models of every kind of node with many of its attributes, from which fuzz_loaders.py makes others."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastrnn.spec import ACTIVATIONS, BINARY, GATES, REDUCTIONS, ROW_ACTIVATIONS, UNARY, Graph, ModelSpec, Node, Tensor

FREE = (None, None, 4)  # batch, steps, features
IMAGE = (None, 2, 6)  # batch, channels, places


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def one(
    op: str,
    attrs: dict[str, Any] | None = None,
    inputs: dict[str, tuple] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    outputs: int = 1,
    dtype: str = "float32",
    graphs: dict[str, Graph] | None = None,
    order: tuple[str, ...] = (),
) -> ModelSpec:
    """A model of one node, which reads the inputs, then the constants, or all of them in another order."""
    inputs = {"x": FREE} if inputs is None else inputs
    constants = constants or {}
    names = tuple(f"y{k}" for k in range(outputs))
    node = Node(op, "n", order or (*inputs, *constants), names, attrs or {}, weights or {}, graphs or {})
    tensors = [Tensor(name, shape, dtype) for name, shape in inputs.items()]
    return ModelSpec([node], tensors, [Tensor(name, None) for name in names], constants)


def recurrent(
    op: str, layers: int = 1, both: bool = False, size: int = 4, projected: bool = False
) -> dict[str, np.ndarray]:
    gates, hidden, found = len(GATES[op]), 2, {}
    out = 1 if projected else hidden
    for layer in range(layers):
        for end in ("", "_reverse") if both else ("",):
            suffix = f"_l{layer}{end}"
            found[f"weight_ih{suffix}"] = floats(gates * hidden, size if layer == 0 else out * (2 if both else 1))
            found[f"weight_hh{suffix}"] = floats(gates * hidden, out, seed=1)
            found[f"bias_ih{suffix}"] = floats(gates * hidden, seed=2)
            if projected:
                found[f"weight_hr{suffix}"] = floats(out, hidden, seed=3)
    return found


def recurrent_specs() -> Iterator[tuple[str, ModelSpec]]:
    for op in GATES:
        states = 3 if op == "lstm" else 2
        yield f"{op}_plain", one(op, weights=recurrent(op), outputs=states)
        yield (
            f"{op}_both",
            one(op, {"direction": "bidirectional", "num_layers": 2}, weights=recurrent(op, 2, True), outputs=states),
        )
        for merge in ("sum", "mul", "ave"):
            attrs = {"direction": "bidirectional", "merge": merge, "return_sequences": merge == "mul"}
            yield f"{op}_{merge}", one(op, attrs, weights=recurrent(op, 1, True))
        attrs = {"direction": "reverse", "reverse_output": True, "clip": 1.5, "batch_first": False}
        yield f"{op}_reverse", one(op, attrs, weights=recurrent(op), outputs=states)
        cell = dict.fromkeys(["x"], (None, 4)) | dict.fromkeys(["h", "c"][: states - 1], (None, 2))
        yield f"{op}_cell", one(op, {"unbatched": True}, cell, weights=recurrent(op), outputs=states)
        given = {"x": FREE} | dict.fromkeys(["h", "c"][: states - 1], (1, None, 2))
        yield f"{op}_states", one(op, {"return_sequences": False}, given, weights=recurrent(op), outputs=states)
        inputs = [Tensor("x", FREE), Tensor("m", (None, None), "bool"), Tensor("l", (None,), "int64")]
        none = [""] * (states - 1)
        for name, more in (("mask", (*none, "m")), ("lengths", (*none, "", "l"))):
            node = Node(op, "n", ("x", *more), ("y", "h"), {"zero_output_for_mask": name == "mask"}, recurrent(op))
            kept = [t for t in inputs if t.name in node.inputs]
            yield f"{op}_{name}", ModelSpec([node], kept, [Tensor("y", None), Tensor("h", None)])
    attrs = {"coupled_input_forget": True, "cell_clip": 2.0, "hidden_activation": ["scaled_tanh", 1.0, 0.5]}
    yield "lstm_options", one("lstm", attrs, weights=recurrent("lstm") | {"peephole_l0": floats(6)})
    yield "lstm_projected", one("lstm", {"proj_clip": 0.5}, weights=recurrent("lstm", projected=True), outputs=3)
    attrs = {"reset_after": False, "update_gate": "take", "gate_activation": ["hard_sigmoid", 0.2, 0.5]}
    yield "gru_options", one("gru", attrs, weights=recurrent("gru"))
    yield "rnn_relu", one("rnn", {"activation": "relu"}, weights=recurrent("rnn"))


def layer_specs() -> Iterator[tuple[str, ModelSpec]]:
    dense = {"weight": floats(3, 4), "bias": floats(3)}
    for name in ("linear", "softmax", "gelu"):
        yield f"dense_{name}", one("dense", {"activation": name}, weights=dense)
    for name in ACTIVATIONS:
        axis = [name, -1.0] if name in ROW_ACTIVATIONS else name
        yield f"activation_{name}", one("activation", {"activation": axis})
    ids = {"ids": (None, None)}
    yield (
        "embedding",
        one("embedding", {"mask_zero": True}, ids, weights={"weight": floats(5, 3)}, outputs=2, dtype="int64"),
    )
    yield "masking", one("masking", {"mask_value": 1.0}, outputs=2)
    yield "layer_norm", one("layer_norm", {"eps": 1e-3}, weights={"weight": floats(4), "bias": floats(4)})
    yield "layer_norm_axes", one("layer_norm", {"axes": 2})
    moments = {"mean": floats(4), "var": np.abs(floats(4)) + 1}
    yield "batch_norm", one("batch_norm", {"eps": 1e-3}, weights={**moments, "weight": floats(4), "bias": floats(4)})
    two = {"mean": floats(2), "var": np.ones(2, np.float32)}
    yield "batch_norm_first", one("batch_norm", {"channels_first": True}, {"x": IMAGE}, weights=two)
    yield "stack", one("stack", inputs={"a": (None, 4), "b": (None, 4)})
    yield "unstack", one("unstack", inputs={"x": (2, None, 4)}, outputs=2)
    kernel = {"weight": floats(4, 2, 3), "bias": floats(4)}
    yield "conv", one("conv", {"pads": [1, 1], "strides": [2], "dilations": [1]}, {"x": IMAGE}, weights=kernel)
    yield (
        "conv_causal",
        one("conv", {"pads": [4, 0], "dilations": [2], "activation": "relu"}, {"x": (None, 2, None)}, weights=kernel),
    )
    yield "conv_groups", one("conv", {"groups": 2}, {"x": IMAGE}, weights={"weight": floats(4, 1, 3)})
    depthwise = {"weight": floats(2, 1, 3)}
    yield "conv_depthwise", one("conv", {"groups": 2, "activation": "tanh"}, {"x": IMAGE}, weights=depthwise)
    image = {"x": (None, 2, 5, 4)}
    yield (
        "conv_2d",
        one("conv", {"pads": [1, 0, 1, 0], "strides": [2, 1]}, image, weights={"weight": floats(3, 2, 3, 2)}),
    )
    back = {"weight": floats(2, 3, 3), "bias": floats(3)}
    attrs = {"strides": [2], "pads": [1, 0], "output_padding": [1]}
    yield "conv_transpose", one("conv_transpose", attrs, {"x": IMAGE}, weights=back)
    yield (
        "conv_transpose_groups",
        one("conv_transpose", {"groups": 2}, {"x": IMAGE}, weights={"weight": floats(2, 1, 3)}),
    )
    for function in ("max", "mean"):
        attrs = {"function": function, "kernel": [3], "strides": [2], "pads": [1, 1], "ceil_mode": True}
        yield f"pool_{function}", one("pool", attrs, {"x": IMAGE})
        attrs = {
            "function": function,
            "kernel": [2, 2],
            "count_include_pad": True,
            "dilations": [1, 2],
            "pads": [1, 1, 0, 0],
        }
        yield f"pool_2d_{function}", one("pool", attrs, image)


def array_specs() -> Iterator[tuple[str, ModelSpec]]:
    fixed = {"x": (2, 3, 4)}
    yield "identity", one("identity")
    for function in UNARY:
        dtype = {"not": "bool", "bitwise_not": "int64"}.get(function, "float32")
        yield f"unary_{function}", one("unary", {"function": function}, dtype=dtype)
    for function in BINARY:
        dtype = "bool" if function in ("and", "or", "xor") else "float32"
        yield f"binary_{function}", one("binary", {"function": function}, {"a": FREE, "b": (4,)}, dtype=dtype)
        if dtype != "bool":
            yield (
                f"binary_{function}_whole",
                one("binary", {"function": function}, {"a": FREE, "b": (4,)}, dtype="int64"),
            )
            yield f"binary_{function}_constant", one("binary", {"function": function}, constants={"k": floats(4)})
    where = Node("where", "n", ("c", "a", "b"), ("y",))
    tensors = [Tensor("c", (None, 1), "bool"), Tensor("a", (None, 4)), Tensor("b", (4,))]
    yield "where", ModelSpec([where], tensors, [Tensor("y", None)])
    for dtype in ("int64", "bool", "float32", "uint8", "float16"):
        yield f"cast_{dtype}", one("cast", {"dtype": dtype})
    yield "matmul", one("matmul", inputs={"a": (None, 3, 4), "b": (None, 4, 2)})
    yield "matmul_vector", one("matmul", inputs={"a": (None, 4), "b": (4,)})
    yield "matmul_constant", one("matmul", constants={"k": floats(4, 3)})
    for k, function in enumerate(REDUCTIONS):
        dtype = "bool" if function in ("any", "all") else "float32"
        axes = ([-1], [0, 2], None, [1])[k % 4]
        yield (
            f"reduce_{function}",
            one("reduce", {"function": function, "axes": axes, "keepdims": k % 2 == 0}, dtype=dtype),
        )
    yield "argmax", one("argmax", {"axis": -1, "keepdims": False})
    yield "argmin", one("argmax", {"axis": 1, "largest": False, "last": True})
    yield "cumsum", one("cumsum", {"axis": 1})
    yield "cumsum_reverse", one("cumsum", {"axis": -1, "exclusive": True, "reverse": True})
    yield "softmax", one("softmax", {"axis": 1, "logarithm": True})
    yield "softmax_last", one("softmax", {"axis": -1})
    yield "shape", one("shape", {"start": 1, "end": 3})
    yield "size", one("size")
    yield "reshape", one("reshape", constants={"k": whole(0, -1, 2)})
    yield "reshape_zero", one("reshape", {"zero_copies": False}, fixed, {"k": whole(4, 6)})
    yield "flatten", one("flatten", {"axis": 2})
    yield "squeeze", one("squeeze", {"axes": [1]}, {"x": (None, 1, 4)})
    yield "squeeze_all", one("squeeze", {}, {"x": (1, 3, 1)})
    yield "unsqueeze", one("unsqueeze", {"axes": [0, -1]})
    yield "transpose", one("transpose", {"perm": [1, 0, 2]})
    yield "transpose_all", one("transpose")
    yield "concat", one("concat", {"axis": -1}, {"a": FREE, "b": FREE, "c": FREE})
    yield "split", one("split", {"axis": 2}, outputs=2)
    yield "split_sizes", one("split", {"axis": -1, "sizes": [1, 3]}, outputs=2)
    bounds = {"starts": whole(0, 1), "ends": whole(9, -1), "axes": whole(1, 2), "steps": whole(2, 1)}
    yield "slice", one("slice", constants=bounds)
    yield "slice_back", one("slice", {}, fixed, {"s": whole(-1), "e": whole(-(2**63)), "a": whole(2), "t": whole(-1)})
    yield "gather", one("gather", {"axis": 2}, constants={"k": whole(0, -1, 2)})
    yield "gather_last", one("gather", {"axis": 1}, constants={"k": np.array(-1)})
    yield "gather_table", one("gather", {}, {"i": (None, None)}, {"k": floats(5, 3)}, dtype="int64", order=("k", "i"))
    yield "gather_elements", one("gather_elements", {"axis": 1}, fixed, {"k": np.zeros((2, 2, 4), np.int64)})
    for mode, pads in (
        ("constant", (0, 1, 0, 0, 1, -1)),
        ("reflect", (0, 1, 0, 0, 0, 2)),
        ("edge", (0, 0, 3, 0, 0, 1)),
        ("wrap", (0, 1, 1, 0, 1, 1)),
    ):
        yield f"pad_{mode}", one("pad", {"mode": mode}, fixed, {"k": whole(*pads)})
    value = {"k": whole(1, 2), "v": np.float32(1.5), "a": whole(-1)}
    yield "pad_axes", one("pad", {}, constants=value)
    yield "expand", one("expand", inputs={"x": (2, 1, 4)}, constants={"k": whole(3, 1, 5, 4)[1:]})
    yield "tile", one("tile", inputs=fixed, constants={"k": whole(1, 2, 3)})
    yield "fill", one("fill", {"value": 1.5, "dtype": "float32"}, {"s": (2,)}, dtype="int64")
    yield "fill_constant", one("fill", {"value": 7, "dtype": "int64"}, {}, {"k": whole(2, 3)})
    yield "range", one("range", inputs={}, constants={"a": np.array(0), "b": np.array(9), "c": np.array(2)})
    yield "range_given", one("range", inputs={"a": (), "b": (), "c": ()}, dtype="int64")


def control_specs() -> Iterator[tuple[str, ModelSpec]]:
    then = Graph([Node("activation", "relu", ("x",), ("t",), {"activation": "relu"})], [], [Tensor("t", None)])
    other = Graph([Node("unsqueeze", "wide", ("x",), ("e",), {"axes": [0]})], [], [Tensor("e", None)])
    tensors = [Tensor("x", FREE), Tensor("go", (), "bool")]
    node = Node("if", "if", ("go",), ("y",), {}, {}, {"then": then, "else": other})
    yield "if", ModelSpec([node], tensors, [Tensor("y", None)])
    for trips, carried in ((3, FREE), (0, (None, 4))):
        inner = [Tensor("i", (), "int64"), Tensor("c", (), "bool"), Tensor("v", carried)]
        nodes = [
            Node("binary", "add", ("v", "k"), ("w",), {"function": "add"}),
            Node("identity", "same", ("c",), ("d",)),
            Node("reduce", "sum", ("w",), ("s",), {"axes": [-1], "keepdims": False}),
        ]
        body = Graph(nodes, inner, [Tensor("d", ()), Tensor("w", None), Tensor("s", None)], {"k": floats(4)})
        constants = {"n": np.array(trips), "c0": np.array(True)}
        node = Node("loop", "loop", ("n", "c0", "x"), ("y", "z"), {}, {}, {"body": body})
        yield (
            f"loop_{trips}",
            ModelSpec([node], [Tensor("x", carried)], [Tensor("y", None), Tensor("z", None)], constants),
        )
    for directions in (None, [1]):
        inner = [Tensor("h", (None, 4)), Tensor("u", (None, 4))]
        body = Graph(
            [Node("binary", "add", ("h", "u"), ("g",), {"function": "add"}), Node("identity", "copy", ("g",), ("o",))],
            inner,
            [Tensor("g", None), Tensor("o", None)],
        )
        attrs = {"num_scanned": 1, "axes": [1], "directions": directions, "output_axes": [1]}
        node = Node("scan", "scan", ("h0", "x"), ("h1", "y"), attrs, {}, {"body": body})
        yield (
            f"scan_{directions}",
            ModelSpec([node], [Tensor("h0", (None, 4)), Tensor("x", FREE)], [Tensor("h1", None), Tensor("y", None)]),
        )
    cell = Node("rnn", "cell", ("u", "h"), ("g",), {"unbatched": True}, recurrent("rnn"))
    body = Graph(
        [cell, Node("identity", "copy", ("g",), ("o",))],
        [Tensor("h", (None, 2)), Tensor("u", (None, 4))],
        [Tensor("g", None), Tensor("o", None)],
    )
    node = Node("scan", "scan", ("h0", "x"), ("h1", "y"), {"axes": [0]}, {}, {"body": body})
    yield (
        "scan_cell",
        ModelSpec([node], [Tensor("h0", (None, 2)), Tensor("x", FREE)], [Tensor("h1", None), Tensor("y", None)]),
    )


def chain_specs() -> Iterator[tuple[str, ModelSpec]]:
    """What the passes look for: neighbours that become one node, shapes made by arithmetic, cells taken apart."""

    def chain(*parts: tuple, shape: tuple = FREE) -> ModelSpec:
        nodes, constants, last = [], {}, "x"
        for k, (op, attrs, *more) in enumerate(parts):
            weights = more[0] if more and isinstance(more[0], dict) else {}
            names = []
            for j, array in enumerate(() if weights else more):
                constants[f"k{k}_{j}"] = array
                names.append(f"k{k}_{j}")
            nodes.append(Node(op, f"n{k}", (last, *names), (f"t{k}",), attrs, weights))
            last = f"t{k}"
        return ModelSpec(nodes, [Tensor("x", shape)], [Tensor(last, None)], constants)

    dense, function = {"weight": floats(3, 4)}, {"function": "add"}
    yield (
        "product",
        chain(("matmul", {}, floats(4, 3)), ("binary", function, floats(3)), ("activation", {"activation": "relu"})),
    )
    yield "norm", chain(("dense", {}, dense), ("batch_norm", {}, {"mean": floats(3), "var": np.ones(3, np.float32)}))
    yield (
        "transposes",
        chain(
            ("transpose", {"perm": [1, 0, 2]}),
            ("transpose", {"perm": [1, 0, 2]}),
            ("squeeze", {"axes": [1]}),
            shape=(None, 1, 4),
        ),
    )
    lstm = recurrent("lstm")
    yield (
        "time_major",
        chain(
            ("transpose", {"perm": [1, 0, 2]}),
            ("lstm", {}, lstm),
            ("transpose", {"perm": [1, 0, 2]}),
            ("dense", {}, {"weight": floats(3, 2)}),
        ),
    )
    yield (
        "reshapes",
        chain(
            ("reshape", {}, whole(-1, 4)),
            ("dense", {}, dense),
            ("reshape", {}, whole(1, -1, 3)),
            ("activation", {"activation": "tanh"}),
        ),
    )
    yield (
        "views",
        chain(
            ("unsqueeze", {"axes": [1]}),
            ("squeeze", {"axes": [1]}),
            ("flatten", {"axis": 2}),
            ("reshape", {}, whole(1, -1, 4)),
        ),
    )
    swap = ("transpose", {"perm": [0, 2, 1]})
    yield "convolutions", chain(
        swap, ("conv", {}, {"weight": floats(3, 4, 1)}), swap,
        swap, ("pad", {}, whole(0, 0, 2, 0, 0, 0)), ("conv", {"activation": "relu"}, {"weight": floats(2, 3, 3)}),
        swap, ("gru", {"return_sequences": False}, recurrent("gru", size=2)),
    )  # fmt: skip
    yield (
        "power",
        chain(
            ("binary", {"function": "pow"}, np.float32(2)),
            ("reduce", {"function": "mean", "axes": [-1]}),
            ("binary", function, np.float32(1e-5)),
            ("activation", {"activation": "sqrt"}),
        ),
    )
    yield (
        "pools",
        chain(
            ("transpose", {"perm": [0, 2, 1]}),
            ("pool", {"kernel": [2], "function": "mean"}),
            ("pool", {"kernel": [2], "strides": [2]}),
            ("transpose", {"perm": [0, 2, 1]}),
            ("cumsum", {"axis": 1}),
        ),
    )
    nodes = [
        Node("shape", "shape", ("x",), ("s",)),
        Node("gather", "batch", ("s", "zero"), ("b",)),
        Node("unsqueeze", "vector", ("b",), ("v",), {"axes": [0]}),
        Node("concat", "sizes", ("v", "rest"), ("w",), {"axis": 0}),
        Node("reshape", "reshape", ("x", "w"), ("y",)),
        Node("lstm", "lstm", ("y",), ("out",), {}, lstm),
    ]
    constants = {"zero": np.array(0), "rest": whole(-1, 4)}
    yield "shapes", ModelSpec(nodes, [Tensor("x", FREE)], [Tensor("out", None)], constants)
    gates = [
        Node("dense", "of_x", ("x",), ("a",), {}, {"weight": floats(8, 4), "bias": floats(8)}),
        Node("dense", "of_h", ("h",), ("b",), {}, {"weight": floats(8, 2)}),
        Node("binary", "total", ("a", "b"), ("g",), function),
        Node("split", "gates", ("g",), ("i", "f", "n", "o"), {"axis": 1}),
        *(
            Node("activation", f"act_{k}", (k,), (f"{k}{k}",), {"activation": "tanh" if k == "n" else "sigmoid"})
            for k in "ifno"
        ),
        Node("binary", "keep", ("ff", "c"), ("fc",), {"function": "mul"}),
        Node("binary", "take", ("ii", "nn"), ("in",), {"function": "mul"}),
        Node("binary", "cell", ("fc", "in"), ("c1",), function),
        Node("activation", "hidden", ("c1",), ("ac",), {"activation": "tanh"}),
        Node("binary", "out", ("oo", "ac"), ("h1",), {"function": "mul"}),
    ]
    tensors = [Tensor("x", (None, 4)), Tensor("h", (None, 2)), Tensor("c", (None, 2))]
    yield "taken_apart", ModelSpec(gates, tensors, [Tensor("h1", None), Tensor("c1", None)])


def operator_specs() -> Iterator[tuple[str, ModelSpec]]:
    """Name and spec; together they have every kind of node but ``operator``, which ONNX's files bring."""
    for specs in (recurrent_specs, layer_specs, array_specs, control_specs, chain_specs):
        yield from specs()
