"""Damaged and hostile Keras files: an error of fastrnn with a useful text, no code run, memory bounded by the file."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import FastrnnError, FormatError, ShapeError, UnsupportedError
from fastrnn.loaders import limits
from fastrnn.loaders.keras import load_layers, load_spec, load_tensors

h5py = pytest.importorskip("h5py")

UNITS, FEATURES = 4, 3
SHAPES = {"kernel": (FEATURES, 4 * UNITS), "recurrent_kernel": (UNITS, 4 * UNITS), "bias": (4 * UNITS,)}
PATHS = dict(
    zip(("layers/lstm/cell/vars/0", "layers/lstm/cell/vars/1", "layers/lstm/cell/vars/2"), SHAPES, strict=True)
)


def layer(class_name: str = "LSTM", name: str = "lstm", /, **config) -> dict:
    config = {"name": name, "units": UNITS, "use_bias": True, "batch_shape": [None, None, FEATURES], **config}
    return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}


def sequential(*layers: dict) -> dict:
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": list(layers or [layer()])}}


def functional(*layers: dict, inputs=(("x", 0, 0),), outputs=(("lstm", 0, 0),)) -> dict:
    config = {"name": "m", "layers": list(layers), "input_layers": list(inputs), "output_layers": list(outputs)}
    return {"module": "keras", "class_name": "Functional", "config": config}


def tensor(*history) -> dict:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": list(history)}}


def call(*args, **kwargs) -> dict:
    return {"args": list(args), "kwargs": kwargs}


def node(class_name: str, name: str, *calls, **config) -> dict:
    return {**layer(class_name, name, **config), "name": name, "inbound_nodes": list(calls)}


def graph(*calls, **options) -> dict:
    """An input x and an LSTM that is called with ``calls``."""
    return functional(node("InputLayer", "x"), node("LSTM", "lstm", *calls), **options)


def hdf5(write=None, **changes) -> bytes:
    """The weights of one LSTM; ``write(file)`` may spoil them."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for path, name in PATHS.items():
            if changes.get(name, True) is not None:
                file[path] = changes.get(name, np.ones(SHAPES[name], np.float32))
        if write:
            write(file)
    return buffer.getvalue()


def archive(
    config=None, weights: bytes | None = None, metadata=None, compression=zipfile.ZIP_STORED, **more: bytes
) -> bytes:
    """A .keras file; ``more`` are further members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        metadata = {"keras_version": "3.1.0"} if metadata is None else metadata
        file.writestr("metadata.json", metadata if isinstance(metadata, (str, bytes)) else json.dumps(metadata))
        config = sequential() if config is None else config
        file.writestr("config.json", config if isinstance(config, (str, bytes)) else json.dumps(config))
        file.writestr("model.weights.h5", hdf5() if weights is None else weights)
        for name, content in more.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path):
    """``refused(data, text)``: loading ``data`` is an error that contains ``text`` and the name of the file."""

    def check(data: bytes, text: str, error: type | tuple[type, ...] = FormatError, **options) -> None:
        path = tmp_path / "model.keras"
        path.write_bytes(data)
        with pytest.raises(error) as caught:
            load_spec(path, **options)
        assert text in str(caught.value)
        assert str(caught.value).startswith("model.keras")

    return check


def test_the_harmless_file_loads(tmp_path):
    for data, config in ((archive(), None), (hdf5(), sequential()), (archive(graph(call(tensor("x", 0, 0)))), None)):
        (tmp_path / "m").write_bytes(data)
        (lstm,) = load_spec(tmp_path / "m", config=config).nodes
        assert lstm.weights["weight_ih_l0"].shape == (4 * UNITS, FEATURES)


# The zip archive.


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "C:x", "a\\b"])
def test_paths_out_of_the_archive(refused, name):
    refused(archive(**{name: b""}), "not a path inside" if name != "C:x" else "C:x")


@pytest.mark.parametrize("name", ["assets/vocabulary.txt", "code.py", "model.weights.npz"])
def test_other_members(refused, name):
    refused(archive(**{name: b"x"}), name, UnsupportedError)


@pytest.mark.parametrize("missing", ["metadata.json", "config.json", "model.weights.h5"])
def test_missing_members(refused, missing):
    with zipfile.ZipFile(io.BytesIO(archive())) as full, zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name in full.namelist():
            if name != missing:
                file.writestr(name, full.read(name))
    refused(buffer.getvalue(), f"lacks '{missing}'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(refused):
    with zipfile.ZipFile(buffer := io.BytesIO(archive()), "a") as file:
        file.writestr("config.json", json.dumps(sequential(layer("Dense", "d"))))
    refused(buffer.getvalue(), "two members")


def test_compressed_archives(refused, tmp_path):
    (tmp_path / "m.keras").write_bytes(archive(compression=zipfile.ZIP_DEFLATED))
    assert len(load_spec(tmp_path / "m.keras").nodes) == 1
    refused(archive(compression=zipfile.ZIP_LZMA), "compressed", UnsupportedError)
    refused(archive(compression=zipfile.ZIP_DEFLATED, weights=hdf5() + bytes(10 << 20)), "times its packed size")


def test_changed_bytes_fail_the_checksum(refused):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(archive(compression=compression))
        data[data.index(b"config.json") + 30] ^= 1
        refused(bytes(data), "")


def test_encrypted_member(refused):
    data = bytearray(archive())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    refused(bytes(data), "encrypted", UnsupportedError)


# JSON.


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("", "not valid JSON"), ("{", "not valid JSON"), ("[]", "a list"), ('"x"', "a str"), ("\xff", "not valid JSON"),
        ('{"a": NaN}', "not valid JSON"), ('{"a": Infinity}', "not valid JSON"),
        ('{"a": 1, "a": 2}', "key stands twice"),
        ('{"a": 1' + "0" * 5000 + "}", "not valid JSON"), ("[" * 100_000, "not valid JSON"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested deeper"), (b"\xff\xfe{", "not valid JSON"),
        (" " * (limits.MAX_CONFIG_SIZE + 1), "larger than"),
    ],
)  # fmt: skip
def test_json(refused, config, text):
    refused(archive(config), text)


@pytest.mark.parametrize("metadata", [{}, {"keras_version": 3}, {"keras_version": "x"}, [], {"keras_version": ""}])
def test_metadata(refused, metadata):
    refused(archive(metadata=metadata), "")


# The configuration.

BAD_NUMBERS = [0, -1, 10**12, 10**400, 4.0, "4", None, True, [4], {}]


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_units(refused, value):
    for class_name in ("LSTM", "GRU", "SimpleRNN", "Dense"):
        refused(archive(sequential(layer(class_name, units=value))), "'units'" if value is not None else "units")


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_embedding_sizes(refused, value):
    for key in ("input_dim", "output_dim"):
        refused(archive(sequential(layer("Embedding", **{"input_dim": 3, "output_dim": 2, key: value}))), f"'{key}'")


@pytest.mark.parametrize(
    "key", ["use_bias", "return_sequences", "return_state", "go_backwards", "zero_output_for_mask"]
)
@pytest.mark.parametrize("value", [1, "true", [], 0.5])
def test_flags(refused, key, value):
    refused(archive(sequential(layer(**{key: value}))), f"'{key}'")


@pytest.mark.parametrize("shape", [[], "x", 3, [None, None, -3], [None, 10**30, "3"], [None, None, 3.5], {}])
def test_input_shapes(refused, shape):
    refused(archive(sequential(layer(batch_shape=shape))), "")


@pytest.mark.parametrize("shape", [[None, 3], [None, None, 5], [None, None, 10**30], [None, None, None, 3]])
def test_input_shapes_that_do_not_fit(refused, shape):
    refused(archive(sequential(layer(batch_shape=shape))), "'lstm'", (FormatError, ShapeError))


@pytest.mark.parametrize("config", [
    {"class_name": "Sequential"}, {"class_name": "Sequential", "config": None},
    {"class_name": "Sequential", "config": {}},
    {"class_name": "Sequential", "config": {"layers": {}}}, {"class_name": "Sequential", "config": {"layers": []}},
    {"class_name": "Sequential", "config": {"layers": [1]}}, {"class_name": "Sequential", "config": {"layers": [{}]}},
    {"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM", "config": 3}]}},
    {"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM", "config": {}}]}},
    {"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM", "config": {"name": ""}}]}},
    {"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM", "config": {"name": "x" * 5000}}]}},
    {"class_name": 3, "config": {}}, {}, {"class_name": "Functional", "config": {"layers": [], "input_layers": []}},
    sequential(layer(), layer()), sequential(*[layer("Dropout", f"d{k}") for k in range(limits.MAX_CALLS + 1)]),
])  # fmt: skip
def test_models(refused, config):
    refused(archive(config), "")


@pytest.mark.parametrize("config", [
    graph(), graph(call()), graph(call(tensor("nowhere", 0, 0))), graph(call(tensor("x", 1, 0))),
    graph(call(tensor("x", 0, 1))), graph(call(tensor("x", -1, 0))), graph(call(tensor("x", 0, -1))),
    graph(call(tensor("x", 0))), graph(call(tensor("x", "0", 0))), graph(call(tensor(3, 0, 0))), graph({"args": 3}),
    graph({"args": [], "kwargs": []}), graph(3), graph([3]), graph([[]]), graph([["x", 0]]), graph([["x", 0, 0, 3]]),
    graph(call(tensor("lstm", 0, 0))), graph(call(tensor("x", 0, 0)), outputs=[["lstm", 7, 0]]),
    graph(call(tensor("x", 0, 0)), outputs=[["lstm", 0, 3]]), graph(call(tensor("x", 0, 0)), outputs=[["no", 0, 0]]),
    graph(call(tensor("x", 0, 0)), outputs=[]), graph(call(tensor("x", 0, 0)), inputs=[]),
    graph(call(tensor("x", 0, 0)), inputs=[["lstm", 0, 0]]), graph(call(tensor("x", 0, 0)), inputs=[["no", 0, 0]]),
    graph(call(tensor("x", 0, 0), initial_state=[tensor("x", 0, 0), tensor("x", 0, 0)])),
    graph(call(tensor("x", 0, 0), initial_state=[tensor("x", 0, 0)])),
    graph(call(tensor("x", 0, 0), mask=tensor("lstm", 0, 0))),
    functional(node("InputLayer", "x"), node("LSTM", "lstm", call(tensor("a", 0, 0))),
               node("Dropout", "a", call(tensor("b", 0, 0))), node("Dropout", "b", call(tensor("a", 0, 0)))),
])  # fmt: skip
def test_graphs(refused, config):
    refused(archive(config), "", FastrnnError)


def test_many_calls_of_one_layer_share_its_weights(refused, tmp_path):
    calls = [call(tensor("x", 0, 0)) for _ in range(limits.MAX_CALLS + 10)]
    outputs = [["lstm", k, 0] for k in range(len(calls))]
    refused(archive(graph(*calls, outputs=outputs)), "")
    (tmp_path / "m").write_bytes(archive(graph(*calls[:500], outputs=outputs[:500])))
    nodes = load_spec(tmp_path / "m").nodes
    assert len({id(lstm.weights["weight_ih_l0"]) for lstm in nodes}) == 1


def test_models_nested_in_themselves_grow_no_further(refused):
    """Each model calls the next one twice: 2^k calls."""
    inner = functional(node("InputLayer", "x"), outputs=[["x", 0, 0]])
    for _ in range(12):
        calls = [call(tensor("x", 0, 0)), call(tensor("inner", 0, 0))]
        nested = {"class_name": "Functional", "config": {**inner["config"], "name": "inner"}, "name": "inner"}
        inner = functional(node("InputLayer", "x"), {**nested, "inbound_nodes": calls}, outputs=[["inner", 2, 0]])
    refused(archive(inner), "calls of layers")


ATTACKS = [
    layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAAAAAAAAEAAAAD"}}),
    layer("TFSMLayer", filepath="/tmp/saved_model"), layer("keras.src.layers.core.lambda_layer>Lambda"),
    {**layer("LSTM"), "module": "os", "class_name": "system"}, {**layer(), "module": "builtins"},
    {**layer(), "registered_name": "evil>LSTM"}, {**layer(), "module": "keras.src.ops.numpy"},
    layer("RNN", cell={"class_name": "Lambda", "config": {}}),
    layer("RNN", cell={"class_name": "LSTM>x", "config": {}}),
    layer("TimeDistributed", layer=layer("Lambda")), layer("Bidirectional", layer=layer("Lambda")),
    layer(activation={"class_name": "function", "config": "system", "module": "os"}),
    layer(activation={"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}),
    layer(activation="eval"), layer(recurrent_activation=[1]), layer(activation={"class_name": "Lambda", "config": {}}),
    layer("Bidirectional", layer=layer("Bidirectional", layer=layer())), layer("Activation", activation="sparsemax"),
    layer("RNN", cell={"class_name": "StackedRNNCells", "config": {"cells": [layer("Lambda")]}}),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_run_or_looked_up(refused, attack):
    refused(archive(sequential(attack)), "", UnsupportedError)


@pytest.mark.parametrize("config", [
    layer("RNN"), layer("RNN", cell=3), layer("RNN", cell={"class_name": "StackedRNNCells", "config": {"cells": []}}),
    layer("RNN", cell={"class_name": "StackedRNNCells", "config": {"cells": 3}}), layer("Bidirectional"),
    layer("Bidirectional", layer=3), layer("TimeDistributed", layer=None), layer("LayerNormalization", axis="x"),
    layer("LayerNormalization", epsilon="x"), layer("LayerNormalization", axis=[]), layer("Masking", mask_value=[0]),
    layer("LeakyReLU", alpha="x"), layer("ReLU", max_value="6"), layer("ReLU", threshold=1e300),
])  # fmt: skip
def test_damaged_layers(refused, config):
    refused(archive(sequential(config)), "")


def test_layers_and_weights_that_do_not_belong_together(refused):
    refused(
        archive(sequential(layer(units=5))),
        "'kernel' has shape (3, 16), its configuration asks for (3, 20)",
        ShapeError,
    )
    refused(archive(sequential(layer(use_bias=False))), "layers/lstm/cell/vars/2")
    refused(archive(sequential(layer("GRU", "gru"))), "'kernel' is missing")
    refused(archive(weights=hdf5(bias=None)), "'bias' is missing")
    refused(archive(weights=hdf5(bias=np.ones((2, 16), "f4"))), "(16,) or (32,)", ShapeError)
    refused(archive(weights=hdf5(kernel=np.ones((3, 16, 1), "f4"))), "(3, 16, 1)", ShapeError)


GIANT = 1 << 24
IMAGE = {"batch_shape": [None, 4, 4, 3]}
STEPS = {"batch_shape": [None, 4, 3]}


@pytest.mark.parametrize("config", [
    layer("ZeroPadding1D", padding=[0, -1], **STEPS), layer("ZeroPadding1D", padding=10**12, **STEPS),
    layer("ZeroPadding2D", padding=[[1, 1]], **IMAGE), layer("Cropping1D", cropping=[2, 2], **STEPS),
    layer("Cropping2D", cropping="x", **IMAGE), layer("UpSampling1D", size=0, **STEPS),
    layer("UpSampling2D", size=[1, 10**9], **IMAGE), layer("RepeatVector", n=10**12, batch_shape=[None, 3]),
    layer("RepeatVector", n=None, batch_shape=[None, 3]), layer("Reshape", target_shape=[10**12, -1], **STEPS),
    layer("Reshape", target_shape=[-1, -1], **STEPS), layer("Reshape", target_shape=[0], **STEPS),
    layer("Reshape", target_shape=[1] * 100, **STEPS), layer("Reshape", target_shape=[5], **STEPS),
    layer("Reshape", target_shape="x", **STEPS), layer("Permute", dims=[1, 1], **STEPS),
    layer("Permute", dims=[[], 1], **STEPS), layer("Permute", dims=list(range(1, 9)), **STEPS),
    layer("MaxPooling1D", pool_size=[0], **STEPS), layer("MaxPooling1D", pool_size=9, **STEPS),
    layer("MaxPooling2D", strides=[1, 2, 3], **IMAGE), layer("MaxPooling2D", pool_size=10**10, **IMAGE),
    layer("Conv1D", filters=4, kernel_size=[2], **STEPS), layer("Conv1D", filters=10**9, kernel_size=2, **STEPS),
    layer("Conv1D", filters=4, kernel_size=2, groups=0, **STEPS), layer("Conv1D", filters=4, kernel_size=2, groups=3),
    layer("Conv1D", filters=4, kernel_size=2, strides=[-1], **STEPS),
    layer("Conv2D", filters=4, kernel_size=2, **STEPS),
    layer("DepthwiseConv1D", kernel_size=2, depth_multiplier=0, **STEPS), layer("PReLU", shared_axes=[9], **STEPS),
    layer("SeparableConv1D", filters=None, kernel_size=2, **STEPS), layer("GroupNormalization", groups=2, **STEPS),
    layer("GroupNormalization", groups="x", **STEPS), layer("GroupNormalization", axis=[1, 2], **STEPS),
    layer("BatchNormalization", axis=7, **STEPS), layer("LayerNormalization", axis=[1] * 10**5, **STEPS),
    layer("UnitNormalization", axis=[0.5], **STEPS), layer("Softmax", axis=[1, 1], **STEPS),
    layer("Normalization", mean=[[1], [1, 2]], variance=[1], **STEPS), layer("Normalization", mean="x", **STEPS),
    layer("Normalization", mean=[1, 2], variance=[1, 2], **STEPS), layer("Rescaling", scale=["x"], **STEPS),
    layer("EinsumDense", equation="abc,cd->abd" * 9, output_shape=[3], **STEPS),
    layer("EinsumDense", equation="aab,bc->ac", output_shape=[3], **STEPS), layer("EinsumDense", equation=3, **STEPS),
    layer("EinsumDense", equation="abc,cd->abe", output_shape=[3], **STEPS),
    layer("TimeDistributed", layer=layer("Conv1D", filters=2, kernel_size=2), **IMAGE), layer("Dot", axes=1, **STEPS),
    layer("TimeDistributed", layer=sequential(layer("LSTM"))), layer("Concatenate", axis=9, **STEPS),
    layer("MultiHeadAttention", num_heads=2, key_dim=3, **STEPS), layer("Attention", **STEPS),
])  # fmt: skip
def test_layers_that_move_and_slide(refused, config):
    refused(archive(sequential(config)), "", FastrnnError)


SIZES = [
    layer("ZeroPadding1D", padding=[GIANT, GIANT], **STEPS), layer("ZeroPadding2D", padding=GIANT, **IMAGE),
    layer("RepeatVector", n=GIANT, batch_shape=[None, 3]), layer("UpSampling2D", size=[GIANT, GIANT], **IMAGE),
    layer("Reshape", target_shape=[GIANT, GIANT, GIANT], batch_shape=[None, None]),
    layer("MaxPooling1D", pool_size=GIANT, padding="same", **STEPS),
    layer("AveragePooling2D", pool_size=GIANT, strides=GIANT, batch_shape=[None, GIANT, GIANT, 1]),
]  # fmt: skip


def test_sizes_without_weights_take_no_memory(tmp_path):
    """They are numbers in a spec until it runs."""
    with h5py.File(buffer := io.BytesIO(), "w"):
        pass
    for k, config in enumerate(SIZES):
        path = tmp_path / f"{k}.keras"
        path.write_bytes(archive(sequential(config), buffer.getvalue()))
        assert load_with_little_memory(path, 50 << 20).isdecimal()


def op(class_name: str, *calls, **config) -> dict:
    """An operation of Keras 3 on an input x of shape (None, 4, 3)."""
    module = {"module": "keras.src.ops.numpy", "registered_name": class_name}
    x = node("InputLayer", "x", **STEPS)
    return functional(x, {**node(class_name, "y", *calls), "config": config, **module}, outputs=(("y", 0, 0),))


def tf(class_name: str, inputs: list, **config) -> dict:
    """A function of TensorFlow of an input x."""
    return functional(node("InputLayer", "x"), node(class_name, "y", inputs, **config), outputs=(("y", 0, 0),))


T = tensor("x", 0, 0)


@pytest.mark.parametrize("config", [
    op("Add", call(T)), op("Add", call(T, T, T)), op("Add", call(T, "x")), op("Add", call(T, None)),
    op("Add", call(T, [[1], [1, 2]])), op("Add", call(T, [1, 2])), op("Add", call("a", "b")), op("Add", call({}, {})),
    op("Add", call(T, 10**400)), op("Add", call(T, {"class_name": "__numpy__", "config": {"value": [[1], 2]}})),
    op("Add", call(T, {"class_name": "__numpy__", "config": {"value": ["x"], "dtype": "object"}})),
    op("Mean", call(T), axis=7), op("Mean", call(T), axis="x"), op("Mean", call(T), axis=[1, 1]), op("Mean", call()),
    op("Mean", call(T), axis=[1] * 10**5), op("Reshape", call(T), newshape=[10**12]),
    op("Reshape", call(T), newshape={}),
    op("Reshape", call(T), newshape=[1] * 10**5), op("Reshape", call(T), newshape=[-1, -1]),
    op("GetItem", call(T, 3)), op("GetItem", call(T, [None] * 10**5)), op("GetItem", call(T, [0, 0, 0, 0])),
    op("GetItem", call(T, T)), op("GetItem", call(T, {"class_name": "__slice__", "config": {"start": T, "stop": 1}})),
    op("GetItem", call(T, {"start": "x", "stop": None, "step": None})), op("GetItem", call(T, [0, "x"])),
    op("Transpose", call(T), axes=[0, 0, 1]), op("Transpose", call(T), axes=[0.5]), op("Squeeze", call(T), axis=1),
    op("Concatenate", call([]), axis=0), op("Concatenate", call([T, T]), axis=9), op("Concatenate", call(T), axis=0),
    op("Split", call(T), indices_or_sections=0, axis=1), op("Split", call(T), indices_or_sections=3, axis=1),
    op("Split", call(T), indices_or_sections=10**7, axis=0), op("Split", call(T), indices_or_sections="x", axis=1),
    op("Unstack", call(T), num=10**7, axis=0), op("Tile", call(T), repeats=[-1]), op("Tile", call(T), repeats=[2] * 99),
    op("Repeat", call(T), repeats=10**12, axis=1), op("BroadcastTo", call(T), shape=[10**12]), op("Cast", call(3)),
    op("Pad", call(T), pad_width=3), op("Pad", call(T), pad_width=[[0, 0], [0, -1], [0, 0]]),
    op("Take", call(T, [["x"]])),
    op("Take", call(T, [[1], [1, 2]]), axis=1), op("Einsum", call(T, T), subscripts="abc,abc->" + "d" * 10**5),
    op("Einsum", call(T, T), subscripts="aaa,abc->a"), op("Einsum", call(T), subscripts=3), op("Einsum", call(T)),
    op("Matmul", call(T, 3)), op("Matmul", call(T, T)), op("LeakyRelu", call(T), negative_slope="x"),
    op("Where", call(T)), op("Clip", call(T), x_min={}, x_max=[]), op("Norm", call(T), ord=[1], axis=1),
    op("ExpandDims", call(T), axis=[*range(9)]), op("ExpandDims", call(T), axis=99), op("Moveaxis", call(T), source=1),
    op("Stack", call([T, T]), axis=5), op("Softmax", call(T), axis=None), op("eval", call(T)), op("__class__", call(T)),
    tf("TFOpLambda", ["x", 0, 0, {}], function="io.read_file"), tf("TFOpLambda", ["x", 0, 0, {}], function=3),
    tf("TFOpLambda", ["_CONSTANT_VALUE", -1, [[1], 2], {}], function="math.exp"),
    tf("TensorFlowOpLayer", [["x", 0, 0, {}]], node_def="{" * 10**5),
    tf("TensorFlowOpLayer", [["x", 0, 0, {}]], node_def='{"op": "ReadFile"}'),
    tf("TensorFlowOpLayer", [["x", 0, 0, {}]], node_def={"op": "Mean", "attr": {"keep_dims": {"i": "9" * 5000}}}),
    tf("TensorFlowOpLayer", [["x", 0, 0, {}]], node_def={"op": "Mean"}, constants={"9" * 5000: 1}),
])  # fmt: skip
def test_operations(refused, config):
    refused(archive(config), "", FastrnnError)


def test_operators_are_counted(refused):
    """Each call splits an axis into as many parts as it may."""
    calls = [call(T) for _ in range(100)]
    config = op("Unstack", *calls, num=1024, axis=0)
    config["config"]["output_layers"] = [["y", k, 0] for k in range(100)]
    refused(archive(config), "operators")


# HDF5.


def replace(path: str, make):
    def write(file):
        del file[path]
        make(file, path)

    return write


KERNEL = "layers/lstm/cell/vars/0"


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file of somebody else, with a dataset of the right shape."""
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.full(SHAPES["kernel"], 7, np.float32)
    return path


def test_links(refused, secret):
    for link in (h5py.ExternalLink(str(secret), "data"), h5py.SoftLink("/layers/lstm/cell/vars/1")):
        refused(
            archive(weights=hdf5(replace(KERNEL, lambda f, p, link=link: f.__setitem__(p, link)))), type(link).__name__
        )
        refused(archive(weights=hdf5(lambda f, link=link: f.__setitem__("layers/more", link))), type(link).__name__)
        refused(hdf5(lambda f, link=link: f.__setitem__("optimizer", link)), "Link", config=sequential())


def test_external_storage(refused, secret):
    def make(file, path):
        file.create_dataset(path, SHAPES["kernel"], "f4", external=[(str(secret), 0, 4 * 48)])

    refused(archive(weights=hdf5(replace(KERNEL, make))), "in another file")


def test_virtual_dataset(refused, secret):
    def make(file, path):
        layout = h5py.VirtualLayout(SHAPES["kernel"], "f4")
        layout[:] = h5py.VirtualSource(str(secret), "data", SHAPES["kernel"])
        file.create_virtual_dataset(path, layout)

    refused(archive(weights=hdf5(replace(KERNEL, make))), "virtual")


def test_cycles_and_second_names(refused):
    refused(archive(weights=hdf5(lambda f: f["layers"].__setitem__("again", f["layers"]))), "a second link")
    refused(archive(weights=hdf5(lambda f: f.__setitem__("layers/root", f["/"]))), "a second link")
    refused(archive(weights=hdf5(lambda f: f.__setitem__("copy", f[KERNEL]))), "a second link")


def test_depth_and_number(refused, monkeypatch):
    refused(archive(weights=hdf5(lambda f: f.create_group("/".join("g" * 200)))), "nested deeper")
    refused(archive(weights=hdf5(lambda f: f.create_group("g" * 5000))), "longer than")
    monkeypatch.setattr("fastrnn.loaders.hdf5.MAX_OBJECTS", 5)
    refused(archive(), "more than 5")


@pytest.mark.parametrize("dtype", ["i4", "u1", "S8", "c8", np.dtype([("a", "f4"), ("b", "f4")]), "f4 array", "object"])
def test_other_types(refused, dtype):
    def make(file, path):
        if dtype == "f4 array":
            file.create_dataset(path, SHAPES["kernel"], np.dtype(("f4", (2,))))
        elif dtype == "object":
            file.create_dataset(path, SHAPES["kernel"], h5py.string_dtype())
        else:
            file.create_dataset(path, data=np.zeros(SHAPES["kernel"], dtype))

    refused(archive(weights=hdf5(replace(KERNEL, make))), "", FastrnnError)


def test_committed_types_and_empty_dataspaces(refused):
    refused(archive(weights=hdf5(lambda f: f.__setitem__("type", np.dtype("f4")))), "neither a group nor a dataset")
    refused(archive(weights=hdf5(replace(KERNEL, lambda f, p: f.__setitem__(p, h5py.Empty("f4"))))), "no shape")
    refused(archive(weights=hdf5(replace(KERNEL, lambda f, p: f.create_group(p)))), "'kernel' is missing")


HUGE = (1 << 20, 1 << 20)


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (1 << 10, 1 << 10)}, {"chunks": (1 << 10, 1 << 10), "compression": "gzip"}]
)
def test_declared_sizes(refused, options):
    """A shape of terabytes that the configuration agrees with, and no data behind it."""
    units = HUGE[1] // 4
    path = archive(
        sequential(layer(units=units, batch_shape=[None, None, HUGE[0]])),
        hdf5(replace(KERNEL, lambda f, p: f.create_dataset(p, HUGE, "f4", **options))),
    )
    refused(path, "declares")


@pytest.mark.parametrize("units", [1 << 16])
def test_declared_sizes_are_read_by_no_one_else(tmp_path, units):
    data = hdf5(replace(KERNEL, lambda f, p: f.create_dataset(p, HUGE, "f4", chunks=(1, 1 << 20))))
    (tmp_path / "m.weights.h5").write_bytes(data)
    with pytest.raises(FormatError, match="declares"):
        load_tensors(tmp_path / "m.weights.h5")
    with pytest.raises(FormatError, match="declares"):
        load_layers(tmp_path / "m.weights.h5", {"layers/lstm": {"class_name": "LSTM", "config": {"units": 1 << 18}}})


def raw_chunk(name: str, shape, chunks, chunk: bytes, **options):
    """A chunked dataset whose first chunk is ``chunk``, as it stands in the file."""

    def make(file, path=name):
        dataset = file.create_dataset(path, shape, "f4", chunks=chunks, **options)
        dataset.id.write_direct_chunk((0,) * len(shape), chunk)

    return make


def test_chunks(refused, tmp_path):
    shape, good = SHAPES["kernel"], np.ones(SHAPES["kernel"], np.float32)
    packed = zlib.compress(good.tobytes())
    bad = {
        "inflates to more": zlib.compress(bytes(50 << 20), 9), "inflates to less": zlib.compress(b"1234"),
        "is no gzip": b"\0" * 50, "is cut": packed[:-6],
    }  # fmt: skip
    for data in bad.values():
        chunk = raw_chunk(KERNEL, shape, shape, data, compression="gzip")
        refused(archive(weights=hdf5(replace(KERNEL, lambda f, p, make=chunk: make(f)))), "")
    for options in ({"compression": "lzf"}, {"fletcher32": True}, {"scaleoffset": 3}):

        def make(file, path, options=options):
            file.create_dataset(path, data=good, **options)

        refused(archive(weights=hdf5(replace(KERNEL, make))), "only gzip (1) and shuffle (2)", UnsupportedError)

    def twice(file, path):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(shape)
        plist.set_deflate(9)
        plist.set_deflate(9)
        h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), plist)
        file[path][...] = 1

    refused(archive(weights=hdf5(replace(KERNEL, twice))), "each once", UnsupportedError)

    def compressed(file, path):
        file.create_dataset(
            path, data=np.arange(48, dtype="f4").reshape(shape), compression="gzip", shuffle=True, chunks=(2, 5)
        )

    (tmp_path / "good").write_bytes(archive(weights=hdf5(replace(KERNEL, compressed))))
    weight = load_spec(tmp_path / "good").nodes[0].weights["weight_ih_l0"]
    np.testing.assert_array_equal(weight.T, np.arange(48).reshape(shape))


def test_attributes(tmp_path):
    """model_config and keras_version of every kind but one text."""
    for name in ("model_config", "keras_version"):
        for value in (3, [1.0, 2.0], np.array(["a", "b"], dtype=object), h5py.Empty("f4"), b"\xff\xfe", ""):
            with h5py.File(tmp_path / "m.h5", "w") as file:
                file.attrs["keras_version"], file.attrs["model_config"] = "2.4.0", json.dumps(sequential())
                file.attrs[name] = value
                file["model_weights/lstm/lstm/kernel:0"] = np.ones(3)
            with pytest.raises(FastrnnError):
                load_spec(tmp_path / "m.h5")


CHILD = """
import resource, sys
from fastrnn.errors import FastrnnError
from fastrnn.loaders import keras
import h5py
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
try:
    print(len(keras.load_spec(sys.argv[1]).nodes))
except FastrnnError as error:
    print(error)
"""


def load_with_little_memory(path: Path, size: int) -> str:
    """What loading gives in a process that may take ``size`` bytes more than it has."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    arguments = [sys.executable, "-c", CHILD, str(path), str(size)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.stdout.strip()


def test_many_attributes_are_not_read(tmp_path):
    """Keras looks at lists of names, which could name one long text a million times; here they are not needed."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, shape in SHAPES.items():
            file[f"model_weights/lstm/lstm/{name}:0"] = np.ones(shape, np.float32)
        file.attrs["keras_version"], file.attrs["model_config"] = "2.4.0", json.dumps(sequential())
        for group in (file, file["model_weights"], file["model_weights/lstm"]):
            for k in range(1000):
                group.attrs[f"weight_names{k}"] = [b"nowhere", b"../kernel"]
            group.attrs["layer_names"] = [b"other", b"layers"]
    assert len(load_spec(tmp_path / "m.h5").nodes) == 1


def test_a_configuration_that_was_edited_in_place(tmp_path):
    """Old attributes and texts stay in the file as garbage, which is no damage."""
    path = tmp_path / "m.h5"
    path.write_bytes(legacy())
    for k in range(30):
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            config["config"]["layers"][0]["config"]["note"] = "x" * (40 * k if k % 3 else 9000)
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = f"2.{k}.0"
        assert len(load_spec(path).nodes) == 1


def test_other_files(refused):
    refused(b"hello, world", "neither")
    refused(b"PK\x03\x04" + bytes(100), "zip")
    refused(b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file is damaged")
    refused(b"\x89HDF\r\n\x1a\n", "HDF5 file is damaged")
    refused(archive(weights=b"not HDF5"), "does not start as an HDF5 file")
    refused(archive(weights=b""), "does not start as an HDF5 file")


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_spec(tmp_path / "nowhere.keras")
    with pytest.raises(FormatError, match="is a directory"):
        load_spec(tmp_path)
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        load_spec(tmp_path / "empty.h5")


@pytest.mark.parametrize("config", [3, object(), {"layers": {1, 2}}, [], {"class_name": object()}, "nowhere.json"])
def test_configurations_of_other_kinds(tmp_path, config):
    (tmp_path / "m.weights.h5").write_bytes(hdf5())
    with pytest.raises((FastrnnError, FileNotFoundError)):
        load_spec(tmp_path / "m.weights.h5", config=config)


def legacy() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["keras_version"], file.attrs["model_config"] = "2.4.0", json.dumps(sequential())
        for name, shape in SHAPES.items():
            file[f"model_weights/lstm/lstm/{name}:0"] = np.ones(shape, np.float32)
    return buffer.getvalue()


def test_texts_that_claim_more_than_the_file_holds(tmp_path):
    """HDF5 itself would take 4 GB before it looks, or never come back."""
    data = legacy()
    heap = data.index(b"GCOL")
    for text in (json.dumps(sequential()), "2.4.0"):
        reference = data.index(struct.pack("<IQ", len(text), heap))
        damaged = data[:reference] + b"\xff\xff\xff\xff" + data[reference + 4 :]
        (tmp_path / "m").write_bytes(damaged)
        assert "longer than the file" in load_with_little_memory(tmp_path / "m", 100 << 20)
    for step in (0, 8, 2**63, 2**64 - 8):
        (tmp_path / "m").write_bytes(data[: heap + 16] + struct.pack("<8xQ", step) + data[heap + 32 :])
        with pytest.raises(FormatError, match="has no end"):
            load_spec(tmp_path / "m")


def outcome(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    try:
        load_spec(path)
    except FastrnnError as error:
        return type(error).__name__
    return "loaded"


def test_truncated_files(tmp_path):
    for data in (archive(), legacy()):
        for size in [*range(1, len(data), max(1, len(data) // 60)), len(data) - 1]:
            assert outcome(tmp_path / "m", data[:size]) != "loaded"


@pytest.mark.parametrize("make", [archive, legacy])
def test_random_damage(tmp_path, make):
    """Bytes flipped, runs overwritten, fields set to extremes: always an error of fastrnn or a model."""
    data, rng = make(), random.Random(1)
    seen = set()
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            if rng.random() < 0.5:
                damaged[at] ^= 1 << rng.randrange(8)
            else:
                value = rng.choice((0, 0xFF, 0x7F, 0x80))
                damaged[at : at + rng.choice((1, 2, 4, 8))] = bytes([value]) * rng.choice((1, 2, 4, 8))
        if make is archive and rng.random() < 0.8:  # let the weights be what is damaged, not the zip
            damaged = archive(weights=bytes(_damage(hdf5(), rng)))
        seen.add(outcome(tmp_path / "m", bytes(damaged)))
    assert "FormatError" in seen


def _damage(data: bytes, rng: random.Random) -> bytearray:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(data) - 8)
        if rng.random() < 0.5:
            damaged[at] = rng.randrange(256)
        else:
            damaged[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**63, 2**64 - 1, 2**32, len(data), 2**40)))
    return damaged


def test_random_configurations(tmp_path):
    """Parts of a good configuration replaced by values of other kinds."""
    rng, values = random.Random(2), [None, 0, -1, 1.5, "x", [], {}, True, [[]], {"class_name": "LSTM"}, 10**15]
    good = json.dumps(graph(call(tensor("x", 0, 0), mask=None)))
    for _ in range(300):
        config = json.loads(good)
        places: list = []
        pending: list = [config]
        while pending:
            item = pending.pop()
            keys = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in keys]
            pending += [item[key] for key in keys if isinstance(item[key], (dict, list))]
        for place, key in rng.sample(places, rng.choice((1, 1, 2))):
            place[key] = rng.choice(values)
        outcome(tmp_path / "m", archive(config))


def test_memory_stays_near_the_size_of_the_file(tmp_path):
    """A file of 10 MB whose weights inflate to ten gigabytes, and one that claims to."""
    rows = (10 << 30) // 4 // 1024
    chunk = zlib.compress(bytes(4 << 20), 9)
    for name, step in (("bomb", 1024), ("claim", rows)):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            options = {"chunks": (1024, 1024), "compression": "gzip"}
            dataset = file.create_dataset("layers/embedding/vars/0", (rows, 1024), "f4", **options)
            for row in range(0, rows, step):
                dataset.id.write_direct_chunk((row, 0), chunk)
        config = sequential(layer("Embedding", "e", input_dim=rows, output_dim=1024, batch_shape=[None, None]))
        (tmp_path / name).write_bytes(archive(config, buffer.getvalue()))
        assert "times the size of the file" in load_with_little_memory(tmp_path / name, 100 << 20)
