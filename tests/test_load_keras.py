"""Keras models, live and from files: the specs that the loader makes, run by the reference, against Keras itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import ISAS
from tolerances import TWO_FLOAT32

import fastrnn
from fastrnn import reference
from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.loaders.keras import from_object, load_layers, load_spec, load_tensors

os.environ.setdefault("KERAS_BACKEND", "torch")
h5py = pytest.importorskip("h5py")
ATOL = 2e-6  # Keras computes in float32, the reference in float64; networks of a few units
STEPS, FEATURES, BATCH = 5, 3, 4


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


@pytest.fixture
def layers(keras):
    keras.utils.set_random_seed(1)
    return keras.layers


def randomize(model) -> None:
    """Fill all weights, biases too, which Keras starts at 0 (a running variance must be positive)."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        value = rng.uniform(-0.8, 0.8, variable.shape)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)


def sequences(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (BATCH, STEPS, FEATURES)).astype(np.float32)


def masked_sequences() -> np.ndarray:
    """Steps of zeros at the start, in the middle, at the end, everywhere and nowhere."""
    x = sequences()
    x[0, :2] = x[1, 2] = x[1, 4] = x[2] = 0
    return x


def run(spec, *inputs):
    """The outputs of a spec, in order."""
    result = reference.run(spec, {tensor.name: array for tensor, array in zip(spec.inputs, inputs, strict=True)})
    return [result[tensor.name] for tensor in spec.outputs]


def check(model, *inputs, atol: float = ATOL):
    """Convert a live model with random weights; the reference and every instruction set must give what Keras does."""
    randomize(model)
    expected = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    expected = [y.detach().numpy() for y in (expected if isinstance(expected, (list, tuple)) else [expected])]
    spec = from_object(model)
    compare(spec, run(spec, *inputs), expected, atol)
    for isa in ISAS:
        fastrnn.set_isa(isa)
        outputs = fastrnn.Model(spec).run({tensor.name: x for tensor, x in zip(spec.inputs, inputs, strict=True)})
        compare(spec, list(outputs.values()), expected, max(atol, TWO_FLOAT32))
    return spec


def compare(spec, outputs, expected, atol: float) -> None:
    for tensor, ours, theirs in zip(spec.outputs, outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert len(tensor.shape) == theirs.ndim
        assert all(n in (None, m) for n, m in zip(tensor.shape, theirs.shape, strict=True))
        error = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
        assert error.max(initial=0) <= atol, tensor.name


def recurrent_model(keras, make, *, masked: bool = False, states: int = 0, directions: int = 1):
    x = keras.Input((STEPS, FEATURES), name="x")
    inputs = [x] + [keras.Input((4,), name=f"s{k}") for k in range(states * directions)]
    h = keras.layers.Masking(name="masking")(x) if masked else x
    return keras.Model(inputs, make(h, initial_state=inputs[1:]) if states else make(h))


CELLS = {
    "lstm": ("LSTM", {}),
    "lstm no bias": ("LSTM", {"use_bias": False}),
    "lstm relu, hard_sigmoid": ("LSTM", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}),
    "gru": ("GRU", {"reset_after": True}),
    "gru no bias": ("GRU", {"reset_after": True, "use_bias": False}),
    "gru reset before": ("GRU", {"reset_after": False}),
    "gru reset before, no bias": ("GRU", {"reset_after": False, "use_bias": False, "activation": "softsign"}),
    "rnn": ("SimpleRNN", {}),
    "rnn relu": ("SimpleRNN", {"activation": "relu", "use_bias": False}),
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("return_state", [False, True], ids=["", "state"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_layer(keras, layers, cell, go_backwards, return_sequences, return_state, masked):
    name, options = CELLS[cell]
    options = {
        **options,
        "go_backwards": go_backwards,
        "return_sequences": return_sequences,
        "return_state": return_state,
    }
    model = recurrent_model(keras, getattr(layers, name)(4, name="layer", **options), masked=masked)
    check(model, masked_sequences() if masked else sequences())


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru reset before", "rnn"])
def test_bidirectional(keras, layers, cell, return_sequences, merge, masked):
    name, options = CELLS[cell]
    inner = getattr(layers, name)(4, return_sequences=return_sequences, return_state=merge == "sum", **options)
    model = recurrent_model(keras, layers.Bidirectional(inner, merge_mode=merge, name="both"), masked=masked)
    spec = check(model, masked_sequences() if masked else sequences())
    assert [node.attr("direction") for node in spec.nodes if node.op in reference.GATES] == ["bidirectional"]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_initial_state_in_and_out(keras, layers, name, directions):
    make = getattr(layers, name)(4, return_sequences=True, return_state=True)
    make = layers.Bidirectional(make) if directions == 2 else make
    states = (2 if name == "LSTM" else 1) * directions
    model = recurrent_model(keras, make, states=states // directions, directions=directions)
    check(model, sequences(), *[sequences(BATCH, 4, seed=k + 1) for k in range(states)])


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_output_of_masked_steps(keras, layers, zero, return_sequences):
    layer = layers.LSTM(4, zero_output_for_mask=zero, return_sequences=return_sequences)
    check(recurrent_model(keras, layer, masked=True), masked_sequences())


def test_options_that_change_no_number(keras, layers):
    """unroll, stateful (a first call) and both kinds of dropout."""
    x = keras.Input((STEPS, FEATURES), batch_size=BATCH)
    y = layers.LSTM(4, stateful=True, return_sequences=True, dropout=0.3, recurrent_dropout=0.2)(x)
    y = layers.GRU(4, unroll=True, return_sequences=True, activity_regularizer="l2")(layers.SpatialDropout1D(0.5)(y))
    model = keras.Model(x, layers.Bidirectional(layers.SimpleRNN(3, stateful=True))(y))
    assert check(model, sequences()).inputs[0].shape == (None, STEPS, FEATURES)  # a batch of any size


def test_cells(keras, layers):
    x = keras.Input((None, FEATURES))
    a = layers.RNN(layers.LSTMCell(4), return_sequences=True, go_backwards=True, return_state=True, name="a")(x)
    b = layers.Bidirectional(layers.RNN(layers.GRUCell(3, reset_after=False), return_sequences=True), name="b")(a[0])
    stack = layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2), layers.LSTMCell(2), layers.SimpleRNNCell(5)])
    check(keras.Model(x, [*a, layers.RNN(stack, name="c")(b)]), sequences())


def test_stacked_cells_backwards_and_masked(keras, layers):
    stack = layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2)])
    layer = layers.RNN(stack, return_sequences=True, go_backwards=True)
    check(recurrent_model(keras, layer, masked=True), masked_sequences())


def test_backward_layer_of_its_own(keras, layers):
    both = layers.Bidirectional(
        layers.LSTM(4, return_sequences=True, name="there"),
        backward_layer=layers.LSTM(4, return_sequences=True, go_backwards=True, name="back"),
    )
    check(recurrent_model(keras, both), sequences())


ACTIVATIONS = [
    "linear", "sigmoid", "tanh", "relu", "relu6", "leaky_relu", "elu", "selu", "softplus", "softsign", "exponential",
    "silu", "swish", "hard_silu", "hard_swish", "hard_tanh", "hard_sigmoid", "gelu", "mish", "log_sigmoid", "softmax",
    "log_softmax", None,
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(keras, layers, activation):
    x = keras.Input((FEATURES,))
    model = keras.Model(x, [layers.Dense(4, activation=activation)(x), layers.Activation(activation or "linear")(x)])
    check(model, 3 * sequences(16, FEATURES), atol=4e-6)


def test_activation_layers(keras, layers):
    made = [
        layers.ReLU(), layers.ReLU(max_value=6.0), layers.ReLU(max_value=1.5), layers.ReLU(negative_slope=0.2),
        layers.ReLU(threshold=0.5), layers.LeakyReLU(), layers.LeakyReLU(negative_slope=0.1), layers.ELU(alpha=0.7),
        layers.Softmax(),
    ]  # fmt: skip
    x = keras.Input((FEATURES,))
    inside = [layers.Dense(4, activation=layer) for layer in (layers.LeakyReLU(0.4), layers.ReLU(max_value=0.5))]
    check(keras.Model(x, [layer(x) for layer in made + inside]), 2 * sequences(16, FEATURES))


def test_cell_activations(keras, layers):
    x = keras.Input((STEPS, FEATURES))
    names = ["linear", "leaky_relu", "elu", "softsign", "softplus", "hard_sigmoid"]
    check(
        keras.Model(x, [layers.GRU(3, activation=name, recurrent_activation="softsign")(x) for name in names]),
        sequences(),
    )


def test_masks_travel_through_the_graph(keras, layers):
    """From the embedding through layers that keep it, used by each recurrent layer, dropped after the last output."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    y = layers.Embedding(7, 4, mask_zero=True, name="embedding")(ids)
    y = layers.Dropout(0.5)(layers.Dense(3, activation="tanh")(y))
    y = layers.BatchNormalization()(layers.Activation("tanh")(y))
    y = layers.TimeDistributed(layers.Dense(4))(layers.LayerNormalization()(y))
    y = layers.LSTM(4, return_sequences=True)(layers.LeakyReLU(0.2)(y))
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(y)
    last = layers.SimpleRNN(3)(y)
    model = keras.Model(ids, [y, last, layers.Dense(2)(last)])
    spec = check(model, np.array([[1, 2, 3, 0, 0], [0, 0, 4, 0, 5], [0, 0, 0, 0, 0], [6, 6, 6, 6, 6]]))
    assert spec.inputs[0].dtype == "int64"
    masks = [node.inputs[-1] for node in spec.nodes if node.op in reference.GATES]
    assert masks == ["embedding/mask"] * 3


def test_explicit_mask(keras, layers):
    x, mask = keras.Input((STEPS, FEATURES), name="x"), keras.Input((STEPS,), dtype="bool", name="mask")
    model = keras.Model([x, mask], layers.LSTM(4, return_sequences=True)(x, mask=mask))
    keep = np.random.default_rng(3).random((BATCH, STEPS)) < 0.6
    assert check(model, sequences(), keep).inputs[1].dtype == "bool"


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_normalization(keras, layers, scale, center):
    options = {"scale": scale, "center": center}
    x = keras.Input((STEPS, FEATURES))
    made = [
        layers.LayerNormalization(**options), layers.LayerNormalization(axis=[1, 2], epsilon=1e-5, **options),
        layers.LayerNormalization(axis=2, **options), layers.BatchNormalization(**options),
        layers.BatchNormalization(axis=1, epsilon=0.1, **options),
        layers.TimeDistributed(layers.LayerNormalization(axis=1, **options)),
    ]  # fmt: skip
    check(keras.Model(x, [layer(x) for layer in made]), sequences())


def test_training_only_layers_pass_the_tensor_on(keras, layers):
    made = [
        layers.Dropout(0.3), layers.GaussianNoise(0.1), layers.GaussianDropout(0.1), layers.AlphaDropout(0.1),
        layers.ActivityRegularization(0.1), layers.TimeDistributed(layers.Dropout(0.2)), layers.Identity(),
    ]  # fmt: skip
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), layers.LSTM(4, return_sequences=True), *made])
    spec = check(model, sequences())
    assert [node.op for node in spec.nodes] == ["lstm"]
    assert [tensor.name for tensor in spec.outputs] == [made[-1].name]


def test_outputs_that_are_the_same_tensor(keras, layers):
    x = keras.Input((FEATURES,), name="x")
    y = layers.Dense(2, name="y")(x)
    spec = check(
        keras.Model(x, [y, layers.Dropout(0.5, name="z")(y), layers.Dropout(0.5, name="w")(x)]), sequences(4, 3)
    )
    assert [tensor.name for tensor in spec.outputs] == ["y", "z", "w"]


def test_shared_layer(keras, layers):
    a, b = keras.Input((STEPS, FEATURES), name="a"), keras.Input((STEPS, FEATURES), name="b")
    lstm, dense = layers.LSTM(4, name="lstm"), layers.Dense(4, name="dense")
    model = keras.Model([a, b], [lstm(a), lstm(b), dense(dense(lstm(b)))])
    spec = check(model, sequences(), sequences(seed=1))
    first, second = (next(node for node in spec.nodes if node.name == name) for name in ("lstm", "lstm@1"))
    assert first.weights["weight_ih_l0"] is second.weights["weight_ih_l0"]


def nested_model(keras, layers):
    """Models in models in models, one called twice; names are unique in each model only."""
    inner, deep = (
        keras.Sequential([layers.Dense(3, name="one"), layers.BatchNormalization(name="two")], name=name)
        for name in ("inner", "deep")
    )
    p, q = keras.Input((None, 3), name="p"), keras.Input((None, 3), name="q")
    pair = keras.Model([p, q], [layers.GRU(3, name="one")(p), layers.GRU(2, name="gru")(deep(q))], name="pair")
    x = keras.Input((None, FEATURES), name="x")
    h = layers.LSTM(3, return_sequences=True, name="one")(layers.Masking(name="skip")(x))
    left, right = pair([h, inner(h)])
    return keras.Model(x, [left, layers.Dense(2, name="last")(right), inner(x)])


def test_calls_of_nested_models_are_counted_right(keras, layers, tmp_path):
    """Keras 3 counts those of a functional model from 1 in the outputs and from 0 elsewhere."""
    p, x = keras.Input((FEATURES,), name="p"), keras.Input((FEATURES,), name="x")
    inner = keras.Model(p, layers.Dense(FEATURES, name="dense")(p), name="inner")
    first = inner(x)
    second = inner(layers.Dense(FEATURES, activation="tanh", name="between")(first))
    model = keras.Model(x, [first, layers.Dense(2, name="last")(second)])
    spec = check(model, sequences(BATCH, FEATURES))
    assert [tensor.name for tensor in spec.outputs] == ["inner", "last"]
    model.save(tmp_path / "m.keras")
    assert same_spec(spec, load_spec(tmp_path / "m.keras"))


@pytest.mark.parametrize("offset", [0, 1])
def test_calls_of_nested_models_in_keras_2(tmp_path, offset):
    """There they are counted from 1 everywhere, or from 0 where the nested model was built late."""
    inner = [keras2_layer("InputLayer", "p", batch_input_shape=[None, 3])]
    inner.append(keras2_layer("Dense", "dense", ["p", 0, 0, {}], units=3, use_bias=False))
    nested = {**keras2_functional(inner, ["p"], ["dense"]), "name": "inner"}
    nested["inbound_nodes"] = [[["x", 0, 0, {}]], [["inner", offset, 0, {}]]]
    x = keras2_layer("InputLayer", "x", batch_input_shape=[None, 3])
    config = keras2_functional([x, nested], ["x"], ["inner"])
    config["config"]["output_layers"] = [["inner", offset + 1, 0]]
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3)
    spec = load_spec(keras2_file(tmp_path / "m.h5", config, {"inner/dense/kernel:0": kernel}))
    np.testing.assert_allclose(run(spec, np.eye(3))[0], kernel @ kernel)


def test_nested_models(keras, layers):
    assert [t.name for t in check(nested_model(keras, layers), masked_sequences()).outputs] == [
        "pair",
        "last",
        "inner@1",
    ]


def test_live_layers(keras, layers):
    """A bare recurrent layer gives its output and final state in our shapes; another one its output."""
    for name in ("LSTM", "GRU", "SimpleRNN"):
        layer = getattr(layers, name)(4, return_sequences=True, return_state=True)
        expected = layer(sequences())
        randomize(layer)
        expected = [array.detach().numpy() for array in layer(sequences())]
        spec = from_object(layer)
        (node,) = spec.nodes
        assert spec.nested_state
        assert spec.inputs[0].shape == (None, None, FEATURES)
        result = reference.run(spec, {"x": sequences()})
        for key, theirs in zip(node.outputs, expected, strict=True):
            np.testing.assert_allclose(result[key].reshape(theirs.shape), theirs, rtol=0, atol=ATOL)
    dense = layers.Dense(2)
    dense.build((None, FEATURES))
    spec = from_object(dense)
    assert not spec.nested_state
    np.testing.assert_allclose(
        run(spec, sequences(4, 3))[0], dense(sequences(4, 3)).detach().numpy(), rtol=0, atol=ATOL
    )


def renamed_layers(keras, layers):
    """Names in an order and of a kind that tell nothing of the classes; several layers of one class."""
    x = keras.Input((None, FEATURES), name="x")
    y = layers.Masking(name="lstm_7")(x)
    y = layers.LSTM(4, return_sequences=True, dropout=0.2, name="zz")(y)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True, name="inside"), name="aa")(
        layers.Dropout(0.1, name="b")(y)
    )
    y = layers.BatchNormalization(name="gru")(y)
    y = layers.TimeDistributed(layers.Dense(3, name="lstm"), name="dense_3")(y)
    y = layers.RNN(layers.LSTMCell(3), return_sequences=True, name="dense")(y)
    y = layers.LSTM(5, return_sequences=True, name="lstm")(y)
    y = layers.Bidirectional(layers.LSTM(2, name="x1"), merge_mode="sum", name="lstm_1")(y)
    return keras.Model(x, [layers.Dense(2, name="embedding")(layers.LayerNormalization(name="a")(y)), y])


def sequential_model(keras, layers):
    return keras.Sequential(
        [
            keras.Input((None,)),
            layers.Embedding(9, 4, mask_zero=True),
            layers.GRU(3, return_sequences=True, reset_after=False),
            layers.GRU(3, name="again"),
            layers.Dense(2, activation="softmax"),
        ],
        name="gru",
    )


def same_spec(a, b) -> bool:
    assert [vars(t) for t in a.inputs + a.outputs] == [vars(t) for t in b.inputs + b.outputs]
    assert len(a.nodes) == len(b.nodes)
    for left, right in zip(a.nodes, b.nodes, strict=True):
        assert (left.op, left.name, left.inputs, left.outputs) == (right.op, right.name, right.inputs, right.outputs)
        assert left.attrs == right.attrs
        assert left.weights.keys() == right.weights.keys()
        assert all(np.array_equal(left.weights[key], right.weights[key]) for key in left.weights)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [renamed_layers, sequential_model, nested_model])
def test_three_containers_and_the_live_model_are_one_spec(keras, layers, tmp_path, make):
    model = make(keras, layers)
    integers = make is sequential_model
    x = np.array([[1, 2, 0, 0], [3, 8, 1, 2]]) if integers else masked_sequences()
    model.compile("adam", "mse")
    targets = [
        np.zeros(array.shape) for array in (lambda y: y if isinstance(y, list) else [y])(model.predict(x, verbose=0))
    ]
    model.fit(x, targets if len(targets) > 1 else targets[0], verbose=0)  # the optimizer has a state to leave out
    spec = check(model, x)
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
    model.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(model.to_json())
    assert same_spec(spec, load_spec(tmp_path / "m.keras"))
    assert same_spec(spec, load_spec(tmp_path / "m.h5"))
    for config in (tmp_path / "m.keras", tmp_path / "m.h5", tmp_path / "m.json", model, model.get_config()):
        assert same_spec(spec, load_spec(tmp_path / "m.weights.h5", config=config))
    with pytest.raises(FormatError, match="config="):
        load_spec(tmp_path / "m.weights.h5")


def test_frozen_layers_in_h5(keras, layers, tmp_path):
    """Keras stores what can be trained first; names tell which is which."""
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2)])
    model.layers[0].forward_layer.trainable = False
    spec = check(model, sequences())
    model.save(tmp_path / "m.h5")
    assert same_spec(spec, load_spec(tmp_path / "m.h5"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types(keras, layers, tmp_path, dtype):
    lstm = layers.LSTM(3, recurrent_initializer="glorot_uniform", dtype=dtype)
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), lstm, layers.Dense(2, dtype=dtype)])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        spec = load_spec(tmp_path / name)
        assert all(array.dtype == np.float32 for node in spec.nodes for array in node.weights.values())
        assert same_spec(spec, from_object(model))


def test_outputs(keras, layers, tmp_path):
    model = renamed_layers(keras, layers)
    model.save(tmp_path / "m.keras")
    spec = load_spec(tmp_path / "m.keras", outputs=["zz"])
    assert [node.name for node in spec.nodes] == ["lstm_7", "zz"]
    spec = load_spec(tmp_path / "m.keras", outputs=["lstm_1", "b", "gru"])
    assert [tensor.name for tensor in spec.outputs] == ["lstm_1", "b", "gru"]
    with pytest.raises(FormatError, match="no layer or output 'nowhere'"):
        load_spec(tmp_path / "m.keras", outputs=["nowhere"])


def test_outputs_leave_out_inputs_and_layers_that_cannot_run(keras, layers):
    a, b = keras.Input((STEPS, FEATURES), name="a"), keras.Input((STEPS, FEATURES), name="b")
    lstm = layers.LSTM(4, return_state=True, name="lstm")(a)
    model = keras.Model([a, b], [*lstm, layers.Conv3D(2, 1, name="conv")(layers.Reshape((STEPS, FEATURES, 1, 1))(b))])
    with pytest.raises(UnsupportedError, match="Conv3D 'conv'"):
        from_object(model)
    spec = from_object(model, outputs=["lstm"])
    assert [tensor.name for tensor in spec.inputs] == ["a"]
    assert [tensor.name for tensor in spec.outputs] == ["lstm", "lstm:1", "lstm:2"]
    assert [tensor.name for tensor in from_object(model, outputs=["lstm:2"]).outputs] == ["lstm:2"]


def test_all_that_is_unsupported_is_named_at_once(keras, layers):
    x = keras.Input((STEPS, FEATURES))
    y = layers.Lambda(lambda x: x + 1, name="code")(x)
    y = layers.TimeDistributed(layers.Lambda(lambda x: x + 1), name="wrapped")(y)
    y = layers.LSTM(3, return_sequences=True, activation="gelu", name="odd")(layers.Add(name="sum")([x, y]))
    y = layers.UpSampling2D(2, "channels_last", "bilinear", name="smooth")(layers.Reshape((STEPS, 3, 1))(y))
    y = layers.Dropout(0.5, name="random")(y, training=True)
    with pytest.raises(UnsupportedError) as error:
        from_object(keras.Model(x, keras.ops.median(y, axis=1)))
    for part in ("Lambda 'code'", "'wrapped'", "'odd'", "'smooth'", "'random'", "Median", "outputs="):
        assert part in str(error.value)
    assert "'sum'" not in str(error.value)


def test_custom_classes_are_not_the_ones_of_keras(keras, layers):
    @keras.saving.register_keras_serializable("mine")
    class LSTM(keras.layers.LSTM):
        pass

    model = keras.Sequential([keras.Input((STEPS, FEATURES)), LSTM(3, name="other")])
    with pytest.raises(UnsupportedError, match="mine>LSTM 'other'"):
        from_object(model)


def test_a_softmax_with_a_mask_of_steps_is_refused(keras, layers):
    x = keras.Input((FEATURES, FEATURES))
    model = keras.Model(x, layers.Softmax(name="soft")(layers.Masking()(x)))
    with pytest.raises(UnsupportedError, match="'soft': it gets a mask"):
        from_object(model)


def test_objects_that_are_not_built_or_not_keras(keras, layers):
    with pytest.raises(UnsupportedError, match="not built"):
        from_object(layers.LSTM(3))
    with pytest.raises(UnsupportedError, match="not built"):
        from_object(keras.Sequential([layers.LSTM(3)]))
    with pytest.raises(UnsupportedError, match="expected a Keras"):
        from_object(object())


def test_sequential_that_was_built_late(keras, layers, tmp_path):
    model = keras.Sequential([layers.LSTM(4, return_sequences=True), layers.Dense(2)])
    model(sequences())
    spec = check(model, sequences())
    model.save(tmp_path / "m.keras")
    assert same_spec(spec, load_spec(tmp_path / "m.keras"))


# Files of Keras 2, written by hand.


def keras2_layer(class_name: str, name: str, *inputs, **config) -> dict:
    return {
        "class_name": class_name,
        "name": name,
        "config": {"name": name, **config},
        "inbound_nodes": [list(inputs)] if inputs else [],
    }


def keras2_file(path: Path, config: dict | None, weights: dict[str, np.ndarray], version: str = "2.4.0") -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        if config:
            file.attrs["model_config"] = json.dumps(config)
        for name, array in weights.items():
            file[f"model_weights/{name}" if config else name] = array
    return path


def keras2_functional(layers: list[dict], inputs: list[str], outputs: list[str]) -> dict:
    refs = ([[name, 0, 0] for name in names] for names in (inputs, outputs))
    inner = dict(zip(("input_layers", "output_layers"), refs, strict=True), name="model", layers=layers)
    return {"class_name": "Model", "config": inner}


def lstm_weights(units: int = 4, prefix: str = "lstm/lstm/lstm_cell", suffix: str = ":0") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"kernel": (FEATURES, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
    return {f"{prefix}/{key}{suffix}": rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(("version", "slope"), [("2.2.4-tf", 0.2), ("2.1.5", 0.2), ("2.15.0", 0.2), ("3.0.0", 1 / 6)])
def test_hard_sigmoid_follows_the_version(tmp_path, version, slope):
    layer = keras2_layer(
        "LSTM", "lstm", units=4, recurrent_activation="hard_sigmoid", batch_input_shape=[None, None, 3]
    )
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    spec = load_spec(keras2_file(tmp_path / "m.h5", config, lstm_weights(), version))
    assert spec.nodes[0].attr("gate_activation") == ("hard_sigmoid", slope, 0.5)
    assert [(tensor.name, tensor.shape) for tensor in spec.inputs] == [("lstm_input", (None, None, 3))]


def test_keras_1_is_refused(tmp_path):
    config = {"class_name": "Sequential", "config": [keras2_layer("LSTM", "lstm", output_dim=4)]}
    with pytest.raises(UnsupportedError, match=r"Keras 1\.2\.2"):
        load_spec(keras2_file(tmp_path / "m.h5", config, lstm_weights(), "1.2.2"))


@pytest.mark.parametrize("suffix", ["", ":0", "_1:0"])
def test_keras_2_graph(tmp_path, suffix):
    """References as nested lists, initial states behind the inputs, keyword arguments with the first tensor."""
    states = [["h", 0, 0, {}], ["c", 0, 0, {}]]
    layers = [
        keras2_layer("InputLayer", "x", batch_input_shape=[None, None, 3]),
        keras2_layer("InputLayer", "h", batch_input_shape=[None, 4]),
        keras2_layer("InputLayer", "c", batch_input_shape=[None, 4]),
        keras2_layer("Masking", "masking", ["x", 0, 0, {}], mask_value=0.0),
        keras2_layer("LSTM", "lstm", ["masking", 0, 0, {"training": None}], *states, units=4, return_state=True),
        keras2_layer("Dropout", "dropout", ["lstm", 0, 2, {}], rate=0.5),
    ]
    config = keras2_functional(layers, ["x", "h", "c"], ["lstm", "dropout"])
    weights = lstm_weights(suffix=suffix)
    spec = load_spec(keras2_file(tmp_path / "m.h5", config, weights))
    x, h, c = masked_sequences(), sequences(BATCH, 4, seed=1), sequences(BATCH, 4, seed=2)
    y, final_c = run(spec, x, h, c)
    kernel, recurrent_kernel, bias = weights.values()
    for t in range(STEPS):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent_kernel + bias, 4, 1)
        keep = (x[:, t] != 0).any(1, keepdims=True)
        new_c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h, c = np.where(keep, np.tanh(new_c) / (1 + np.exp(-o)), h), np.where(keep, new_c, c)
    np.testing.assert_allclose(final_c, c, rtol=0, atol=1e-5)
    np.testing.assert_allclose(y[[0, 1, 3]], h[[0, 1, 3]], rtol=0, atol=1e-5)
    assert not y[2].any()  # no step at all: the output of Keras is 0, not the initial state


def test_keras_2_initial_state_as_keyword(tmp_path):
    layers = [
        keras2_layer("InputLayer", "x", batch_input_shape=[None, None, 3]),
        keras2_layer("InputLayer", "h", batch_input_shape=[None, 4]),
        keras2_layer("InputLayer", "c", batch_input_shape=[None, 4]),
        keras2_layer("LSTM", "lstm", ["x", 0, 0, {"initial_state": [["h", 0, 0], ["c", 0, 0]]}], units=4),
    ]
    spec = load_spec(
        keras2_file(tmp_path / "m.h5", keras2_functional(layers, ["x", "h", "c"], ["lstm"]), lstm_weights())
    )
    assert spec.nodes[-1].inputs == ("x", "lstm/h_0", "lstm/c_0")


def test_gru_without_reset_after_resets_before(tmp_path):
    rng = np.random.default_rng(0)
    config = {"class_name": "Sequential", "config": {"layers": [keras2_layer("GRU", "gru", units=2)]}}
    weights = {"gru/gru/kernel:0": rng.normal(size=(3, 6)), "gru/gru/recurrent_kernel:0": rng.normal(size=(2, 6))}
    spec = load_spec(keras2_file(tmp_path / "m.h5", config, weights | {"gru/gru/bias:0": np.zeros(6)}))
    assert spec.nodes[0].attr("reset_after") is False
    with pytest.raises(ShapeError, match=r"'bias' has shape \(2, 6\)"):
        load_spec(keras2_file(tmp_path / "n.h5", config, weights | {"gru/gru/bias:0": np.zeros((2, 6))}))


@pytest.mark.parametrize(("version", "zero"), [("2.2.4", False), ("2.2.4-tf", True), ("2.9.0", True)])
def test_masked_bidirectional_before_tensorflow(tmp_path, version, zero):
    inner = {"class_name": "LSTM", "config": {"name": "lstm", "units": 4, "return_sequences": True}}
    layer = keras2_layer("Bidirectional", "both", merge_mode="concat", layer=inner)
    config = {"class_name": "Sequential", "config": [layer]}
    weights = lstm_weights(prefix="both/both/forward_lstm") | lstm_weights(prefix="both/both/backward_lstm")
    spec = load_spec(keras2_file(tmp_path / "m.h5", config, weights, version))
    assert spec.nodes[0].attr("zero_output_for_mask") is zero


def to_cudnn(kernel: np.ndarray, recurrent_kernel: np.ndarray, gates: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain kernels in the layout of CuDNN: the memory of each block is that of its transpose."""
    blocks = [np.ascontiguousarray(block.T).reshape(block.shape) for block in np.hsplit(kernel, gates)]
    return np.hstack(blocks), np.hstack([block.T for block in np.hsplit(recurrent_kernel, gates)])


@pytest.mark.parametrize("as_class", ["LSTM", "CuDNNLSTM", "GRU", "CuDNNGRU"])
def test_cudnn_layout(tmp_path, as_class):
    """Only the length of the bias tells; CuDNN keeps an input and a recurrent bias."""
    gates = 4 if "LSTM" in as_class else 3
    rng = np.random.default_rng(1)
    kernel, recurrent_kernel = rng.normal(size=(3, gates * 4)), rng.normal(size=(4, gates * 4))
    bias = rng.normal(size=(2, gates * 4))
    plain = {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias if gates == 3 else bias.sum(0)}
    cudnn = dict(
        zip(("kernel", "recurrent_kernel"), to_cudnn(kernel, recurrent_kernel, gates), strict=True), bias=bias.ravel()
    )
    options = {"units": 4} | ({"reset_after": True} if as_class == "GRU" else {})
    specs = []
    for class_name, weights in ((as_class, cudnn), (as_class.removeprefix("CuDNN"), plain)):
        options |= {"reset_after": True} if class_name == "GRU" else {}
        config = {"class_name": "Sequential", "config": {"layers": [keras2_layer(class_name, "rnn", **options)]}}
        named = {f"rnn/rnn/{key}:0": array.astype(np.float32) for key, array in weights.items()}
        specs.append(load_spec(keras2_file(tmp_path / f"{class_name}{len(specs)}.h5", config, named, "2.2.4")))
    outputs = [run(spec, sequences())[0] for spec in specs]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5)


def test_early_tensorflow_paths(tmp_path):
    """TensorFlow 2.12 to 2.15 wrote other paths into .weights.h5, and counted layers with weights twice at first."""
    layers = [keras2_layer("Dense", name, units=n, use_bias=True) for name, n in (("a", 3), ("b", 2), ("c", 4))]
    layers[0]["config"]["batch_input_shape"] = [None, 3]
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=(3, 3)), rng.normal(size=3)), (rng.normal(size=(3, 2)), rng.normal(size=2)),
              (rng.normal(size=(2, 4)), rng.normal(size=4))]  # fmt: skip
    for names in (("dense", "dense_1", "dense_2"), ("dense", "dense_2", "dense_4")):
        with h5py.File(tmp_path / "m.weights.h5", "w") as file:
            for name, pair in zip(names, arrays, strict=True):
                for k, array in enumerate(pair):
                    file[f"_layer_checkpoint_dependencies/{name}/vars/{k}"] = array
        spec = load_spec(tmp_path / "m.weights.h5", config={"class_name": "Sequential", "config": {"layers": layers}})
        x = expected = sequences(4, 3)
        for weight, bias in arrays:
            expected = expected @ weight + bias
        np.testing.assert_allclose(run(spec, x)[0], expected, rtol=0, atol=1e-5)


def test_seed_generators_are_left_out(tmp_path):
    """Keras 3.0 saved the state of random number generators."""
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.ones((3, 2)), np.ones(2)
        file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], np.uint32)
        file["optimizer/vars/0"] = np.array(3)
    layers = [keras2_layer("Dense", "a", units=2, use_bias=True), keras2_layer("Dropout", "b", rate=0.5)]
    config = {"class_name": "Sequential", "config": {"layers": layers}}
    assert len(load_spec(tmp_path / "m.weights.h5", config=config).nodes) == 1
    assert list(load_tensors(tmp_path / "m.weights.h5")) == ["layers/dense/vars/0", "layers/dense/vars/1"]


def test_left_over_weights_are_named(tmp_path):
    config = {"class_name": "Sequential", "config": {"layers": [keras2_layer("LSTM", "lstm", units=4)]}}
    weights = lstm_weights() | {"other/other/kernel:0": np.ones((2, 2)), "lstm/lstm/extra:0": np.ones(2)}
    with pytest.raises(FormatError, match=r"2 weight.*lstm/lstm/extra:0'.*other/other/kernel:0'"):
        load_spec(keras2_file(tmp_path / "m.h5", config, weights))


def test_load_layers_by_name(keras, layers, tmp_path):
    model = renamed_layers(keras, layers)
    randomize(model)
    model.save(tmp_path / "m.keras")
    specs = load_layers(tmp_path / "m.keras", ["zz", "lstm_1"])
    assert list(specs) == ["zz", "lstm_1"]
    assert specs["lstm_1"].nodes[0].attr("merge") == "sum"
    np.testing.assert_array_equal(
        specs["zz"].nodes[0].weights["weight_ih_l0"].T, model.get_layer("zz").get_weights()[0]
    )
    by_path = load_layers(tmp_path / "m.keras", {"layers/lstm": "LSTM"})["layers/lstm"]
    assert by_path.nodes[0].weights.keys() == specs["zz"].nodes[0].weights.keys()
    with pytest.raises(FormatError, match="'nowhere'"):
        load_layers(tmp_path / "m.keras", ["nowhere"])
    with pytest.raises(FormatError, match="no weight starts with 'nowhere'"):
        load_layers(tmp_path / "m.keras", {"nowhere": "LSTM"})


def test_files_need_neither_keras_nor_tensorflow(tmp_path):
    config = {"class_name": "Sequential", "config": {"layers": [keras2_layer("LSTM", "lstm", units=4)]}}
    path = keras2_file(tmp_path / "m.h5", config, lstm_weights())
    code = (
        "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = sys.modules['torch'] = None\n"
        "from fastrnn.loaders.keras import load_spec; print(load_spec(sys.argv[1]).nodes[0].op)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "lstm", done.stderr


def test_without_h5py_the_error_says_what_to_install(tmp_path, monkeypatch):
    config = {"class_name": "Sequential", "config": {"layers": [keras2_layer("LSTM", "lstm", units=4)]}}
    path = keras2_file(tmp_path / "m.h5", config, lstm_weights())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnsupportedError, match=r'pip install "fastrnn\[keras\]"'):
        load_spec(path)
