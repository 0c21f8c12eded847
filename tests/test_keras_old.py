"""Files as Keras 2.1 to 2.15 wrote them, made by hand: their configurations, names of weights, and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders.keras import load_layers, load_spec

h5py = pytest.importorskip("h5py")
rng = np.random.default_rng(0)


def layer(class_name: str, name: str, *calls, **config) -> dict:
    """An entry of a functional model; ``calls`` are lists of inputs."""
    return {"class_name": class_name, "config": {"name": name, **config}, "name": name, "inbound_nodes": list(calls)}


def entry(name: str, *shape, dtype: str = "float32") -> dict:
    return layer("InputLayer", name, batch_input_shape=[None, *shape], dtype=dtype, sparse=False)


def ref(name: str, call: int = 0, tensor: int = 0, **kwargs) -> list:
    return [name, call, tensor, kwargs]


def functional(layers: list[dict], inputs: list[str], outputs: list) -> dict:
    outputs = [name if isinstance(name, list) else [name, 0, 0] for name in outputs]
    inner = {"name": "model_1", "layers": layers, "input_layers": [[name, 0, 0] for name in inputs]}
    return {"class_name": "Model", "config": {**inner, "output_layers": outputs}}


def save(path: Path, config: dict, weights: dict[str, np.ndarray], version: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = np.bytes_(version), np.bytes_("tensorflow")
        file.attrs["model_config"] = np.bytes_(json.dumps(config))
        for name, array in weights.items():
            file[f"model_weights/{name}"] = array.astype(np.float32)
    return path


def run(spec, *inputs) -> list[np.ndarray]:
    result = reference.run(spec, dict(zip((tensor.name for tensor in spec.inputs), inputs, strict=True)))
    return [result[tensor.name] for tensor in spec.outputs]


def arrays(*shapes) -> list[np.ndarray]:
    return [rng.normal(size=shape) for shape in shapes]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


INITIALIZER = {"class_name": "VarianceScaling", "config": {"scale": 1.0, "mode": "fan_avg", "seed": None}}


@pytest.mark.parametrize("version", ["2.1.5", "2.2.0", "2.2.4", "2.3.1", "2.4.0", "2.15.0"])
def test_a_sequential_model(tmp_path, version):
    """A list of layers until 2.2.2; weights below the layer twice, of a convolution, a normalisation, a GRU."""
    layers = [
        layer("Conv1D", "conv1d_1", batch_input_shape=[None, 8, 3], filters=4, kernel_size=[3], strides=[1],
              padding="valid", dilation_rate=[1], activation="linear", use_bias=True, kernel_initializer=INITIALIZER),
        layer("BatchNormalization", "batch_normalization_1", axis=-1, epsilon=0.001, center=True, scale=True),
        layer("LeakyReLU", "leaky_re_lu_1", alpha={"type": "ndarray", "value": 0.2}),
        layer("ThresholdedReLU", "thresholded_re_lu_1", theta=0.1),
        layer("MaxPooling1D", "max_pooling1d_1", strides=[2], pool_size=[2], padding="valid"),
        layer("GRU", "gru_1", units=2, activation="tanh", recurrent_activation="hard_sigmoid", use_bias=True,
              return_sequences=True, implementation=1),
        layer("TimeDistributed", "time_distributed_1", layer={
            "class_name": "Dense", "config": {"name": "dense_1", "units": 2, "activation": "relu", "use_bias": True}}),
        layer("Flatten", "flatten_1"),
        layer("Dropout", "dropout_1", rate=0.5, noise_shape=None, seed=None),
    ]  # fmt: skip
    for item in layers:
        del item["inbound_nodes"], item["name"]
    config = {"class_name": "Sequential", "config": layers if version < "2.2.3" else {"name": "s", "layers": layers}}
    kernel, bias, gamma, beta, mean = arrays((3, 3, 4), (4,), (4,), (4,), (4,))
    var = rng.uniform(0.5, 2, 4)
    w, u, b, k, c = arrays((4, 6), (2, 6), (6,), (2, 2), (2,))
    weights = {
        "conv1d_1/conv1d_1/kernel:0": kernel, "conv1d_1/conv1d_1/bias:0": bias,
        "batch_normalization_1/batch_normalization_1/gamma:0": gamma,
        "batch_normalization_1/batch_normalization_1/beta:0": beta,
        "batch_normalization_1/batch_normalization_1/moving_mean:0": mean,
        "batch_normalization_1/batch_normalization_1/moving_variance:0": var,
        "gru_1/gru_1/kernel:0": w, "gru_1/gru_1/recurrent_kernel:0": u, "gru_1/gru_1/bias:0": b,
        "time_distributed_1/time_distributed_1/kernel:0": k, "time_distributed_1/time_distributed_1/bias:0": c,
    }  # fmt: skip
    spec = load_spec(save(tmp_path / "m.h5", config, weights, version))
    x = rng.normal(size=(2, 8, 3))
    y = np.stack([np.einsum("bti,tio->bo", x[:, t : t + 3], kernel) for t in range(6)], 1) + bias
    y = (y - mean) / np.sqrt(var + 0.001) * gamma + beta
    y = np.where(y < 0, 0.2 * y, y)
    y = np.where(y > 0.1, y, 0).reshape(2, 3, 2, 4).max(2)
    h, steps = np.zeros((2, 2)), []
    for t in range(3):
        z, r = (np.clip(0.2 * (y[:, t] @ w[:, s] + h @ u[:, s] + b[s]) + 0.5, 0, 1) for s in (slice(2), slice(2, 4)))
        n = np.tanh(y[:, t] @ w[:, 4:] + (r * h) @ u[:, 4:] + b[4:])
        h = z * h + (1 - z) * n
        steps.append(np.maximum(h @ k + c, 0))
    np.testing.assert_allclose(run(spec, x)[0], np.stack(steps, 1).reshape(2, 6), rtol=0, atol=1e-6)


def test_weights_of_a_model_inside_a_model(tmp_path):
    """A nested model is one group; a Bidirectional layer has its two layers in one."""
    units = 2
    inner = {
        "class_name": "Sequential", "name": "sequential_1", "inbound_nodes": [[ref("x")]],
        "config": [
            {"class_name": "Bidirectional", "config": {
                "name": "bidirectional_1", "batch_input_shape": [None, 4, 3], "merge_mode": "concat",
                "layer": {"class_name": "LSTM", "config": {"name": "lstm_1", "units": units}},
            }},
            {"class_name": "Dense", "config": {"name": "dense_1", "units": 1, "use_bias": False}},
        ],
    }  # fmt: skip
    config = functional([entry("x", 4, 3), inner], ["x"], [["sequential_1", 1, 0]])
    shapes = {"kernel": (3, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
    parts = {
        f"{way}_lstm_1": dict(zip(shapes, arrays(*shapes.values()), strict=True)) for way in ("forward", "backward")
    }
    weights = {
        f"sequential_1/bidirectional_1/{way}/{name}:0": array
        for way, part in parts.items()
        for name, array in part.items()
    }
    weights["sequential_1/dense_1/kernel:0"] = np.ones((2 * units, 1))
    spec = load_spec(save(tmp_path / "m.h5", config, weights, "2.1.6"))
    x = rng.normal(size=(2, 4, 3))
    total = 0
    for way, sequence in (("forward_lstm_1", x), ("backward_lstm_1", x[:, ::-1])):
        h = c = np.zeros((2, units))
        kernel, recurrent_kernel, bias = parts[way].values()
        for t in range(4):
            i, f, g, o = np.split(sequence[:, t] @ kernel + h @ recurrent_kernel + bias, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        total = total + h.sum(1, keepdims=True)
    np.testing.assert_allclose(run(spec, x)[0], total, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("class_name", "expected"), [
    ("Add", lambda a, b: a + b), ("Multiply", lambda a, b: a * b), ("Subtract", lambda a, b: a - b),
    ("Average", lambda a, b: (a + b) / 2), ("Maximum", np.maximum), ("Minimum", np.minimum),
    ("Concatenate", lambda a, b: np.concatenate([a, b], -1)), ("Dot", lambda a, b: np.einsum("bti,bsi->bts", a, b)),
])  # fmt: skip
def test_merges(tmp_path, class_name, expected):
    options = {"axis": -1} if class_name == "Concatenate" else {"axes": -1} if class_name == "Dot" else {}
    layers = [entry("a", 3, 4), entry("b", 3, 4), layer(class_name, "y", [ref("a"), ref("b")], **options)]
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["a", "b"], ["y"]), {}, "2.2.4"))
    a, b = arrays((2, 3, 4), (2, 3, 4))
    np.testing.assert_allclose(run(spec, a, b)[0], expected(a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("class_name", "version", "expected"), [
    ("Concatenate", "2.2.4", np.logical_and), ("Add", "2.2.4", np.logical_and), ("Maximum", "2.15.0", np.logical_and),
    ("Concatenate", "3.12.0", np.logical_or), ("Add", "3.4.0", np.logical_or), ("Add", "3.15.0", np.logical_or),
    ("Add", "3.3.3", lambda a, b: a | True), ("Concatenate", "3.0.0", lambda a, b: a | True),
])  # fmt: skip
def test_masks_of_merges_follow_the_version(tmp_path, class_name, version, expected):
    """Keras 2 keeps the steps that all parts have, Keras 3.4 those that any has; between them merges lost masks."""
    layers = [
        entry("a", 4, 2), entry("b", 4, 2), layer("Masking", "m", [ref("a")], mask_value=0.0),
        layer("Masking", "n", [ref("b")], mask_value=0.0), layer(class_name, "y", [ref("m"), ref("n")], axis=-1),
        layer("GlobalAveragePooling1D", "mean", [ref("y")], data_format="channels_last"),
    ]  # fmt: skip
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["a", "b"], ["y", "mean"]), {}, version))
    a, b = arrays((2, 4, 2), (2, 4, 2))
    a[0, :2] = b[0, 1:3] = b[1, 3] = 0
    y, mean = run(spec, a, b)
    keep = expected((a != 0).any(-1), (b != 0).any(-1))[..., None]
    np.testing.assert_allclose(mean, (y * keep).sum(1) / keep.sum(1), rtol=0, atol=1e-6)


def test_one_mask_of_two_in_keras_2(tmp_path):
    layers = [
        entry("a", 4, 2), entry("b", 4, 2), layer("Masking", "m", [ref("a")], mask_value=0.0),
        layer("Add", "y", [ref("m"), ref("b")]), layer("GlobalAveragePooling1D", "mean", [ref("y")]),
    ]  # fmt: skip
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["a", "b"], ["mean"]), {}, "2.3.0"))
    a, b = arrays((2, 4, 2), (2, 4, 2))
    a[0, :2] = 0
    np.testing.assert_allclose(run(spec, a, b)[0][0], (a + b)[0, 2:].mean(0), rtol=0, atol=1e-6)


def op(function: str, first, class_name: str = "TFOpLambda", **kwargs) -> dict:
    """A function of TensorFlow as Keras 2.4 to 2.15 wrote it; the first argument stands outside of any list."""
    first = [*first, {**kwargs, "name": None}] if isinstance(first[0], str) else [[*r, kwargs] for r in first]
    return layer(class_name, "y", first, trainable=True, dtype="float32", function=function)


X, Z = ["x", 0, 0], ["z", 0, 0]
COLON = {"start": None, "stop": None, "step": None}
FUNCTIONS = [
    (op("math.add", X, y=Z), lambda x, z: x + z), (op("__operators__.add", X, y=1.5), lambda x, z: x + 1.5),
    (op("math.subtract", ["_CONSTANT_VALUE", -1, 2.0], y=X), lambda x, z: 2 - x),
    (op("math.multiply", X, y=[[1.0, 2.0, 3.0, 4.0]]), lambda x, z: x * [1, 2, 3, 4]),
    (op("math.truediv", X, y=4.0), lambda x, z: x / 4), (op("math.pow", X, y=2.0), lambda x, z: x**2),
    (op("math.reduce_mean", X, axis=1, keepdims=True), lambda x, z: x.mean(1, keepdims=True)),
    (op("math.reduce_sum", X, axis=[-1]), lambda x, z: x.sum(-1)),
    (op("math.reduce_max", X, axis=1), lambda x, z: x.max(1)),
    (op("expand_dims", X, axis=-1), lambda x, z: x[..., None]), (op("math.tanh", X), lambda x, z: np.tanh(x)),
    (op("concat", [X, Z], axis=-1), lambda x, z: np.concatenate([x, z], -1)),
    (op("nn.relu", X), lambda x, z: x.clip(0)),
    (op("stack", [X, Z], axis=1), lambda x, z: np.stack([x, z], 1)), (op("math.exp", X), lambda x, z: np.exp(x)),
    (op("linalg.matmul", X, b=Z, transpose_b=True), lambda x, z: x @ z.swapaxes(1, 2)),
    (op("reshape", X, shape=[-1, 12]), lambda x, z: x.reshape(2, 12)), (op("math.abs", X), lambda x, z: np.abs(x)),
    (op("compat.v1.transpose", X, perm=[0, 2, 1]), lambda x, z: x.swapaxes(1, 2)),
    (op("transpose", X, perm=[0, 2, 1]), lambda x, z: x.swapaxes(1, 2)), (op("math.sqrt", X), lambda x, z: np.sqrt(x)),
    (op("nn.softmax", X, axis=1), lambda x, z: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    (op("clip_by_value", X, clip_value_min=-0.5, clip_value_max=0.5), lambda x, z: x.clip(-0.5, 0.5)),
    (op("math.l2_normalize", X, axis=-1), lambda x, z: x / np.sqrt((x * x).sum(-1, keepdims=True))),
    (op("tile", X, multiples=[1, 2, 1]), lambda x, z: np.tile(x, (1, 2, 1))),
    (op("gather", X, indices=[2, 0], axis=1), lambda x, z: x[:, [2, 0]]), (op("math.square", X), lambda x, z: x * x),
    (op("nn.leaky_relu", X, alpha=0.3), lambda x, z: np.where(x < 0, 0.3 * x, x)),
    (op("math.negative", X), lambda x, z: -x),
    (op("cast", X, dtype="float32"), lambda x, z: x), (op("math.maximum", X, y=Z), np.maximum),
    (op("__operators__.getitem", X, "SlicingOpLambda", slice_spec=[COLON, {**COLON, "start": 1}]),
     lambda x, z: x[:, 1:]),
    (op("__operators__.getitem", X, "SlicingOpLambda", slice_spec=[COLON, -1, {**COLON, "stop": 2}]),
     lambda x, z: x[:, -1, :2]),
]  # fmt: skip


@pytest.mark.parametrize(("item", "expected"), FUNCTIONS, ids=[item["config"]["function"] for item, _ in FUNCTIONS])
def test_functions_of_tensorflow(tmp_path, item, expected):
    layers = [entry("x", 3, 4), entry("z", 3, 4), item]
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["x", "z"], ["y"]), {}, "2.9.0"))
    x, z = (np.abs(a) if "sqrt" in item["config"]["function"] else a for a in arrays((2, 3, 4), (2, 3, 4)))
    ours = run(spec, x, z)[0]
    np.testing.assert_allclose(ours, expected(x, z), rtol=0, atol=1e-6)
    assert [n in (None, m) for n, m in zip(spec.outputs[0].shape, ours.shape, strict=True)] == [True] * ours.ndim


def test_a_layer_called_with_a_constant(tmp_path):
    layers = [entry("x", 3, 4), layer("Add", "y", [ref("x"), ["_CONSTANT_VALUE", -1, [[[1.0, 2.0, 3.0, 4.0]]], {}]])]
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["x"], ["y"]), {}, "2.9.0"))
    (x,) = arrays((2, 3, 4))
    np.testing.assert_allclose(run(spec, x)[0], x + np.arange(1, 5), rtol=0, atol=1e-6)
    layers[1]["inbound_nodes"][0][1][2] = 3.0
    with pytest.raises(FormatError, match="is a number"):
        load_spec(save(tmp_path / "n.h5", functional(layers, ["x"], ["y"]), {}, "2.9.0"))


def test_a_split_has_several_outputs(tmp_path):
    layers = [entry("x", 3, 4), op("split", X, num_or_size_splits=[1, 3], axis=-1)]
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["x"], [["y", 0, 0], ["y", 0, 1]]), {}, "2.9.0"))
    (x,) = arrays((2, 3, 4))
    for ours, theirs in zip(run(spec, x), (x[..., :1], x[..., 1:]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def graph_node(op_name: str, *inputs: list, constants: dict | None = None, **attr) -> dict:
    """A node of a TensorFlow graph, as TensorFlow 1.13 to 2.3 wrote it."""
    node_def = {"name": "y", "op": op_name, "input": ["a"] * (len(inputs) + len(constants or {})), "attr": attr}
    calls = [[*r, {}] for r in inputs]
    return layer(
        "TensorFlowOpLayer", "y", calls, trainable=True, node_def=json.dumps(node_def), constants=constants or {}
    )


NODES = [
    (graph_node("AddV2", X, Z, T={"type": "DT_FLOAT"}), lambda x, z: x + z),
    (graph_node("Sub", X, constants={"0": 1.0}), lambda x, z: 1 - x),
    (graph_node("Mul", X, constants={"1": 3.0}), lambda x, z: 3 * x), (graph_node("Tanh", X), lambda x, z: np.tanh(x)),
    (graph_node("Mean", X, constants={"1": [1]}, keep_dims={"b": True}), lambda x, z: x.mean(1, keepdims=True)),
    (graph_node("Sum", X, constants={"1": 2}), lambda x, z: x.sum(2)),
    (graph_node("ExpandDims", X, constants={"1": 1}), lambda x, z: x[:, None]),
    (graph_node("ConcatV2", X, Z, constants={"2": -1}, N={"i": "2"}), lambda x, z: np.concatenate([x, z], -1)),
    (graph_node("Pack", X, Z, axis={"i": "1"}), lambda x, z: np.stack([x, z], 1)),
    (graph_node("BatchMatMulV2", X, Z, adj_y={"b": True}), lambda x, z: x @ z.swapaxes(1, 2)),
    (graph_node("Transpose", X, constants={"1": [0, 2, 1]}), lambda x, z: x.swapaxes(1, 2)),
    (graph_node("StridedSlice", X, constants={"1": [0, -1], "2": [0, 0], "3": [1, 1]}, begin_mask={"i": "1"},
                end_mask={"i": "1"}, shrink_axis_mask={"i": "2"}), lambda x, z: x[:, -1]),
    (graph_node("StridedSlice", X, constants={"1": [0, 1], "2": [0, 3], "3": [1, 1]}, begin_mask={"i": "1"},
                end_mask={"i": "1"}), lambda x, z: x[:, 1:3]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "expected"), NODES, ids=lambda value: value["class_name"] if isinstance(value, dict) else ""
)
def test_nodes_of_a_tensorflow_graph(tmp_path, item, expected):
    layers = [entry("x", 3, 4), entry("z", 3, 4), item]
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["x", "z"], ["y"]), {}, "2.2.4-tf"))
    x, z = arrays((2, 3, 4), (2, 3, 4))
    np.testing.assert_allclose(run(spec, x, z)[0], expected(x, z), rtol=0, atol=1e-6)


def test_unknown_functions_are_named(tmp_path):
    layers = [entry("x", 3, 4), op("linalg.det", X), {**graph_node("Roll", ["y", 0, 0]), "name": "z"}]
    layers[2]["config"]["name"] = "z"
    path = save(tmp_path / "m.h5", functional(layers, ["x"], ["z"]), {}, "2.9.0")
    with pytest.raises(UnsupportedError, match=r"2 layer(.|\n)*tf\.linalg\.det(.|\n)*Roll"):
        load_spec(path)


def test_attention_called_with_keywords(tmp_path):
    """The value of a MultiHeadAttention stands among the keywords of the query."""
    layers = [
        entry("q", 3, 4), entry("v", 5, 4), layer("Attention", "a", [ref("q"), ref("v")], use_scale=False, causal=True),
        layer("MultiHeadAttention", "m", [ref("q", value=["v", 0, 0], return_attention_scores=True)], num_heads=2,
              key_dim=3, value_dim=3, use_bias=False, output_shape=None, attention_axes=[1], dropout=0.0),
    ]  # fmt: skip
    shapes = {"query/kernel": (4, 2, 3), "key/kernel": (4, 2, 3), "value/kernel": (4, 2, 3)}
    weights = dict(zip([*shapes, "attention_output/kernel"], arrays(*shapes.values(), (2, 3, 4)), strict=True))
    config = functional(layers, ["q", "v"], ["a", "m", ["m", 0, 1]])
    named = {f"m/m/{name}:0": array for name, array in weights.items()}
    spec = load_spec(save(tmp_path / "m.h5", config, named, "2.9.0"))
    q, v = arrays((2, 3, 4), (2, 5, 4))
    causal, heads, scores = run(spec, q, v)
    score = np.where(np.tri(3, 5, dtype=bool), np.exp(q @ v.swapaxes(1, 2)), 0)
    np.testing.assert_allclose(causal, score / score.sum(-1, keepdims=True) @ v, rtol=0, atol=1e-6)
    query, key, value, out = weights.values()
    score = np.exp(np.einsum("btc,cnh,bsd,dnh->bnts", q, query, v, key) / 3**0.5)
    score /= score.sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, score, rtol=0, atol=1e-6)
    np.testing.assert_allclose(heads, np.einsum("bnts,bsd,dnh,nhc->btc", score, v, value, out), rtol=0, atol=1e-5)


def test_depthwise_kernels_have_another_name(tmp_path):
    layers = [
        entry("x", 5, 5, 2),
        layer("DepthwiseConv2D", "d", [ref("x")], kernel_size=[2, 2], strides=[1, 1], padding="same",
              depth_multiplier=1, dilation_rate=[1, 1], use_bias=False, activation="linear"),
    ]  # fmt: skip
    weights = {"d/d/depthwise_kernel:0": np.ones((2, 2, 2, 1))}
    spec = load_spec(save(tmp_path / "m.h5", functional(layers, ["x"], ["d"]), weights, "2.3.1"))
    (x,) = arrays((1, 5, 5, 2))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    total = sum(padded[:, i : i + 5, j : j + 5] for i in (0, 1) for j in (0, 1))
    np.testing.assert_allclose(run(spec, x)[0], total, rtol=0, atol=1e-6)


def test_single_layers_need_no_configuration(tmp_path):
    """What the weights tell need not be written."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["keras_version"] = "2.1.5"
        shapes = {"c/c/kernel:0": (2, 3, 4), "c/c/bias:0": (4,), "e/e/embeddings:0": (7, 3), "d/d/kernel:0": (4, 2)}
        for name, array in zip(shapes, arrays(*shapes.values()), strict=True):
            file[name] = array.astype(np.float32)
    specs = load_layers(tmp_path / "w.h5", {"c": "Conv1D", "e": "Embedding", "d": "Dense"})
    assert specs["e"].nodes[0].weights["weight"].shape == (7, 3)
    assert specs["d"].nodes[0].weights["weight"].shape == (2, 4)
    assert run(specs["c"], np.zeros((1, 5, 3)))[0].shape == (1, 4, 4)
    with pytest.raises(FormatError, match="no weight starts with 'x'"):
        load_layers(tmp_path / "w.h5", {"x": "Dense"})
