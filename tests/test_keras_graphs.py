"""Graphs of Keras models: arithmetic between layers, constants, keyword tensors, several inputs and outputs."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from keras_models import check, compare, normal, randomize

from fastrnn.errors import UnsupportedError
from fastrnn.loaders.keras import from_object, load_layers, load_spec
from fastrnn.loaders.keras_functions import FUNCTIONS

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore")
L, ops = keras.layers, keras.ops

ONES = np.arange(12, dtype=np.float32).reshape(1, 3, 4) / 6

TABLE = {
    # what is tried: operations on x (batch, 3, 4), z (batch, 3, 4), positive p (batch, 4)
    "binary": lambda x, z, p: [
        x + z, x - 1.5, 2 - x, x * p[:, None], x / p[:, None, :], p**2, p**0.5, 2.0**x, p**p, x // 0.5, x % 0.7,
        ops.maximum(x, z), ops.minimum(x, 0.1), x + ONES, ops.divide(1, p), ops.mod(x, p[:, None]),
        ops.fmod(x, 0.7), -x, abs(x),
    ],
    "comparisons": lambda x, z, p: [
        ops.where(x > z, x, z), ops.where(x <= 0, 0.0, x), ops.where((x > 0) & (z < 0), 1.0, z),
        ops.cast(x >= z, "float32"),
        ops.cast(ops.logical_not(ops.equal(x, x)), "float32"), ops.cast((x < 0) | (z > 0), "int32") + 1,
        ops.where(ops.not_equal(x, z), x, -1.0), ops.cast(ops.logical_xor(x > 0, z > 0), "float32"),
        ops.cast(ops.isnan(x), "float32") + ops.cast(ops.isinf(z), "float32"),
    ],
    "functions": lambda x, z, p: [
        ops.exp(x), ops.log(p), ops.sqrt(p), ops.square(x), ops.tanh(x), ops.sigmoid(x), ops.relu(x), ops.gelu(x),
        ops.gelu(x, approximate=False), ops.silu(x), ops.softplus(x), ops.softsign(x), ops.elu(x, 0.7), ops.selu(x),
        ops.leaky_relu(x, 0.3), ops.relu6(x), ops.hard_sigmoid(x), ops.hard_silu(x), ops.log_sigmoid(x), ops.rsqrt(p),
        ops.erf(x), ops.floor(x), ops.ceil(x), ops.round(x), ops.sign(x), ops.sin(x), ops.cos(x), ops.tan(x),
        ops.arcsin(ops.tanh(x)), ops.arccos(ops.tanh(x)), ops.arctan(x), ops.sinh(x), ops.cosh(x), ops.arcsinh(x),
        ops.arccosh(p + 1), ops.arctanh(ops.tanh(x)), ops.expm1(x), ops.log1p(p), ops.reciprocal(p),
        ops.clip(x, -0.5, 0.7),
        ops.negative(x), ops.absolute(x), ops.stop_gradient(x) + 1, ops.copy(x) * 2, ops.hard_tanh(x),
    ],
    "reductions": lambda x, z, p: [
        ops.sum(x, axis=1), ops.mean(x, axis=(1, 2), keepdims=True), ops.max(x, axis=-1),
        ops.min(x, axis=1, keepdims=True),
        ops.prod(x, axis=2), ops.var(x, axis=1), ops.std(x, axis=-1, keepdims=True), ops.logsumexp(x, axis=1),
        ops.norm(x, axis=-1), ops.norm(x, ord=1, axis=1), ops.cast(ops.argmax(x, axis=1), "float32"),
        ops.cast(ops.argmin(x, axis=-1), "float32"), ops.cumsum(x, axis=1), ops.softmax(x, axis=1), ops.log_softmax(x),
        ops.normalize(x, axis=1), ops.cast(ops.any(x > 1, axis=1), "float32"),
        ops.cast(ops.all(x > -1, axis=-1), "float32"),
        ops.amax(x, axis=1), ops.sum(ops.cast(x > 0, "int32"), axis=1),
    ],
    "products": lambda x, z, p: [
        ops.matmul(x, ops.transpose(z, (0, 2, 1))), x @ np.ones((4, 2), np.float32), ops.einsum("bij,bkj->bik", x, z),
        ops.einsum("bij,bj->bi", x, p), ops.einsum("...j,jk->...k", x, np.ones((4, 5), np.float32)),
        ops.einsum("bij,bij,bj->b", x, z, p), ops.einsum("bij->bj", x), ops.einsum("bij,bkl->bikjl", x, z),
        ops.einsum("bij,bij->bij", x, z), ops.dot(x, np.ones((4, 3), np.float32)),
        ops.einsum("ij,bjk->bik", np.eye(3, dtype=np.float32), x),
    ],
    "shapes": lambda x, z, p: [
        ops.reshape(x, (-1, 12)), ops.reshape(x, (-1, 2, 6)), ops.expand_dims(x, -1), ops.expand_dims(x, (1, 3)),
        ops.squeeze(ops.expand_dims(x, 2), 2), ops.transpose(x, (0, 2, 1)), ops.swapaxes(x, 1, -1),
        ops.moveaxis(x, 1, 2),
        ops.concatenate([x, z], axis=1), ops.concatenate([x, z, x], -1), ops.stack([x, z], axis=1),
        ops.stack([x, z], -1),
        *ops.split(x, 3, axis=1), *ops.split(x, [1, 3], axis=2), *ops.unstack(x, axis=1), ops.tile(x, (1, 2, 1)),
        ops.repeat(x, 2, axis=1), ops.flip(x, axis=1), ops.pad(x, ((0, 0), (1, 2), (0, 1))),
        ops.take(x, [2, 0], axis=1),
        ops.broadcast_to(ops.reshape(ops.sum(x, axis=(0, 2)), (1, 3)), (2, 3)), ops.zeros_like(x) + 1,
        ops.ones_like(z) * x,
    ],
    "items": lambda x, z, p: [
        x[:, 0], x[:, -1], x[:, 1:], x[:, :, 1:3], x[..., 0], x[:, None], x[:, ::2], x[:, -2:, :-1],
        x[:, 1:2, None, 3], x[:, 0, 0], p[:, 2:], x[:, 5:],
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_operations(case, tmp_path):
    x, z, p = keras.Input((3, 4), name="x"), keras.Input((3, 4), name="z"), keras.Input((4,), name="p")
    outputs = TABLE[case](x, z, p)
    inputs = normal(5, 3, 4), normal(5, 3, 4, seed=1), np.abs(normal(5, 4, seed=2)) + 0.2
    check(keras.Model([x, z, p], outputs), *inputs, folder=tmp_path)


def test_every_function_is_tried(tmp_path):
    """The table of this file, or that of TensorFlow's functions, reaches each function of the loader."""
    x, z, p = keras.Input((3, 4), name="x"), keras.Input((3, 4), name="z"), keras.Input((4,), name="p")
    made = {output._keras_history.operation.__class__.__name__ for make in TABLE.values() for output in make(x, z, p)}
    inside = {"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "Any", "All", "Isnan", "Isinf"}
    inside |= {"LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot", "ZerosLike", "OnesLike", "Argmax", "Argmin"}
    by_another_name = {"Divide", "Identity", "Squeeze", "HardTanh"}
    of_tensorflow = {"L2Normalize", "SizedSplit", "AddN", "Shape", "Mish", "ConvertToTensor"}
    assert set(FUNCTIONS) - made - inside - by_another_name - of_tensorflow == set()


def several():
    """Inputs and outputs as objects, a model inside called twice, a layer called on what it made."""
    a, b = keras.Input((None, 3), name="a"), keras.Input((3,), name="b")
    dense = L.Dense(3, activation="tanh", name="dense")
    gru = L.GRU(3, return_sequences=True, name="gru")
    inner = keras.Model({"second": b, "first": a}, {"u": gru(a, initial_state=b), "t": dense(dense(b))}, name="inner")
    p, q = keras.Input((None, 3), name="p"), keras.Input((3,), name="q")
    one = inner({"first": p, "second": q})
    two = inner({"first": one["u"], "second": one["t"] * 2})
    last = L.Attention(name="attention")([two["u"], p])
    return keras.Model({"q": q, "p": p}, {"z": last, "y": two["t"] + one["t"], "w": ops.mean(two["u"], axis=1)})


def test_inputs_and_outputs_by_name(tmp_path):
    model = several()
    randomize(model)
    p, q = normal(4, 5, 3), normal(4, 3, seed=1)
    expected = model({"p": p, "q": q})
    model.save(tmp_path / "m.keras")
    for spec in (from_object(model), load_spec(tmp_path / "m.keras")):
        assert sorted(tensor.name for tensor in spec.inputs) == ["p", "q"]
        feeds = {"p": p, "q": q}
        names = [tensor.name for tensor in spec.outputs]
        assert len(names) == 3
        compare(spec, [np.asarray(expected[key].detach()) for key in "wyz"], *(feeds[t.name] for t in spec.inputs))
        weights = [n.weights for n in spec.nodes if n.op == "gru"]
        assert weights[0]["weight_ih_l0"] is weights[1]["weight_ih_l0"]


def test_outputs_take_only_what_they_need(tmp_path):
    x, z = keras.Input((3, 4), name="x"), keras.Input((3, 4), name="z")
    y = L.LSTM(2, return_sequences=True, name="lstm")(x + z)
    bad = L.Lambda(lambda t: t, name="bad")(y)
    model = keras.Model([x, z], [L.Add(name="sum")([y, bad]), L.Conv1D(3, 2, name="conv")(x * 2.0)])
    randomize(model)
    with pytest.raises(UnsupportedError, match=r"1 layer(.|\n)*Lambda 'bad'"):
        from_object(model)
    spec = from_object(model, outputs=["conv", "lstm"])
    assert [tensor.name for tensor in spec.outputs] == ["conv", "lstm"]
    spec = from_object(model, outputs=["conv"])
    assert [tensor.name for tensor in spec.inputs] == ["x"]
    assert [n.op for n in spec.nodes if n.op != "transpose"] == ["binary", "conv"]
    outputs = model([a := normal(2, 3, 4), normal(2, 3, 4, seed=1)])
    compare(spec, [np.asarray(outputs[1].detach())], a)


def test_an_operation_that_is_not_known_is_named():
    x = keras.Input((3, 4))
    with pytest.raises(UnsupportedError, match=r"Median(.|\n)*not supported"):
        from_object(keras.Model(x, ops.median(x, axis=1)))


def test_single_layers(tmp_path):
    x = keras.Input((6, 4), name="x")
    y = L.Conv1D(3, 2, padding="causal", name="conv")(x)
    both = L.Bidirectional(L.LSTM(2), merge_mode=None, name="both")(y)
    model = keras.Model(x, [*both, L.GroupNormalization(3, name="norm")(y), L.Add(name="sum")([y, y])])
    randomize(model)
    model.save(tmp_path / "m.keras")
    specs = load_layers(tmp_path / "m.keras", ["conv", "both", "norm"])
    array = normal(2, 6, 4)
    inside = np.asarray(model.get_layer("conv")(array).detach())
    compare(specs["conv"], [inside], array)
    compare(specs["both"], [np.asarray(t.detach()) for t in model.get_layer("both")(inside)], inside)
    compare(specs["norm"], [np.asarray(model.get_layer("norm")(inside).detach())], inside)
    with pytest.raises(UnsupportedError, match="several tensors"):
        load_layers(tmp_path / "m.keras", ["sum"])


def test_constants_are_shared_by_all_calls():
    x = keras.Input((6, 4), name="x")
    layer = L.PReLU(name="slopes")
    model = keras.Model(x, layer(layer(layer(x))))
    spec = check(model, normal(2, 6, 4))
    assert len(spec.constants) == 3
    assert len({id(array) for array in spec.constants.values()}) == 1


def test_specs_can_be_stored():
    """Attributes are plain values, constants arrays of the three dtypes."""
    spec = from_object(several())
    for node in spec.nodes:
        assert json.loads(json.dumps(node.attrs)).keys() == node.attrs.keys()
        assert all(type(part) in (int, float, str, bool, type(None)) for part in _leaves(node.attrs))
    assert {str(array.dtype) for array in spec.constants.values()} <= {"float32", "int64", "bool"}


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
