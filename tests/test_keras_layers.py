"""Each Keras layer in its options, alone or beside others on one input: live and from files, against Keras itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from keras_models import check, normal, randomize

from fastrnn import reference
from fastrnn.errors import UnsupportedError
from fastrnn.loaders.keras import from_object
from fastrnn.loaders.keras_layers import CONVERTERS

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore")
L = keras.layers

BOTH = ("channels_last", "channels_first")

TABLE = {
    # what is tried: shape of the input, layers
    "conv1d": ((7, 4), lambda: [
        L.Conv1D(3, 2), L.Conv1D(3, 3, padding="same", activation="relu"), L.Conv1D(4, 3, strides=2, padding="same"),
        L.Conv1D(2, 3, padding="causal", dilation_rate=2, use_bias=False), L.Conv1D(4, 2, groups=2),
        L.Conv1D(3, 2, strides=3), L.Conv1D(3, 2, data_format="channels_first"),
        L.Conv1D(2, 4, padding="same", strides=2, data_format="channels_first"),
        L.Conv1D(2, 2, padding="causal", strides=2),
    ]),
    "conv1d of any length": ((None, 4), lambda: [
        L.Conv1D(3, 4, padding="same"), L.Conv1D(3, 4, padding="same", strides=3), L.Conv1D(3, 2, padding="causal"),
        L.MaxPooling1D(3, padding="same"), L.GlobalAveragePooling1D(), L.GlobalMaxPooling1D(keepdims=True),
        L.UpSampling1D(2), L.ZeroPadding1D(2), L.Cropping1D((1, 2)), L.AveragePooling1D(2), L.Permute((2, 1)),
    ]),
    "conv2d": ((6, 5, 4), lambda: [
        L.Conv2D(3, 2), L.Conv2D(3, (3, 2), padding="same", strides=2, activation="tanh"),
        L.Conv2D(4, 3, dilation_rate=(2, 1), groups=2), L.Conv2D(2, (1, 3), use_bias=False, padding="same"),
        L.Conv2D(3, 2, data_format="channels_first"),
    ]),
    "other convolutions, 1-D": ((7, 4), lambda: [
        L.SeparableConv1D(3, 2, depth_multiplier=2), L.SeparableConv1D(3, 3, padding="same", use_bias=False),
        L.SeparableConv1D(5, 2, strides=2, activation="relu", data_format="channels_first"),
        L.DepthwiseConv1D(3, depth_multiplier=2, activation="sigmoid"), L.DepthwiseConv1D(2, padding="same", strides=2),
        L.Conv1DTranspose(3, 3), L.Conv1DTranspose(3, 2, strides=3), L.Conv1DTranspose(2, 4, strides=2, padding="same"),
        L.Conv1DTranspose(2, 3, padding="same", activation="relu"), L.Conv1DTranspose(2, 3, dilation_rate=2),
        L.Conv1DTranspose(2, 2, data_format="channels_first", use_bias=False),
        L.Conv1DTranspose(2, 3, strides=2, output_padding=1),
    ]),
    "other convolutions, 2-D": ((5, 6, 3), lambda: [
        L.SeparableConv2D(4, 2, depth_multiplier=2), L.SeparableConv2D(2, (2, 3), padding="same", strides=2),
        L.DepthwiseConv2D((2, 3), depth_multiplier=2), L.DepthwiseConv2D(3, padding="same", dilation_rate=2),
        L.Conv2DTranspose(3, 2, strides=2), L.Conv2DTranspose(2, (4, 2), strides=2, padding="same"),
        L.Conv2DTranspose(2, 3, data_format="channels_first"),
    ]),
    "pools, 1-D": ((7, 3), lambda: [
        L.MaxPooling1D(), L.MaxPooling1D(3, strides=1, padding="same"), L.AveragePooling1D(3),
        L.AveragePooling1D(3, strides=2, padding="same"), L.MaxPooling1D(2, data_format="channels_first"),
        L.GlobalMaxPooling1D(), L.GlobalAveragePooling1D(), L.GlobalAveragePooling1D(data_format="channels_first"),
        L.GlobalMaxPooling1D(keepdims=True),
    ]),
    "pools, 2-D": ((6, 5, 3), lambda: [
        L.MaxPooling2D(), L.MaxPooling2D((3, 2), strides=(1, 2), padding="same"), L.AveragePooling2D(2, padding="same"),
        L.AveragePooling2D((2, 3), strides=1), L.GlobalMaxPooling2D(), L.GlobalAveragePooling2D(keepdims=True),
        L.GlobalAveragePooling2D(data_format="channels_first"), L.MaxPooling2D(2, data_format="channels_first"),
    ]),
    "shapes, 2 axes": ((12,), lambda: [
        L.Flatten(), L.Reshape((3, 4)), L.Reshape((2, -1, 2)), L.Reshape((-1,)), L.RepeatVector(5), L.Permute((1,)),
    ]),
    "shapes, 3 axes": ((4, 6), lambda: [
        L.Flatten(), L.Flatten(data_format="channels_first"), L.Reshape((24,)), L.Reshape((2, -1)), L.Permute((2, 1)),
        L.ZeroPadding1D(2), L.ZeroPadding1D((0, 3)), L.Cropping1D(1), L.Cropping1D((2, 0)), L.UpSampling1D(3),
        L.ZeroPadding1D(1, data_format="channels_first"),
    ]),
    "shapes, 4 axes": ((4, 6, 3), lambda: [
        L.Flatten(), L.Flatten(data_format="channels_first"), L.Reshape((-1, 9)), L.Permute((3, 1, 2)),
        L.ZeroPadding2D(), L.ZeroPadding2D((1, 2)), L.ZeroPadding2D(((0, 1), (2, 3))), L.Cropping2D(((1, 0), (2, 1))),
        L.Cropping2D(1), L.UpSampling2D(), L.UpSampling2D((1, 3)), L.UpSampling2D(2, data_format="channels_first"),
        L.ZeroPadding2D(1, data_format="channels_first"), L.Cropping2D((1, 1), data_format="channels_first"),
    ]),
    "shapes of unknown sizes": ((None, 6), lambda: [
        L.Flatten(), L.Reshape((-1, 3)), L.Reshape((6, -1)), L.Permute((2, 1)),
    ]),
    "normalisations": ((4, 6), lambda: [
        L.LayerNormalization(axis=[1, 2], epsilon=1e-5), L.LayerNormalization(scale=False),
        L.LayerNormalization(center=False), L.LayerNormalization(rms_scaling=True, axis=1),
        L.BatchNormalization(axis=1), L.BatchNormalization(scale=False, center=False), L.GroupNormalization(3),
        L.GroupNormalization(2, axis=1, epsilon=0.1), L.GroupNormalization(-1, scale=False, center=False, epsilon=0.1),
        L.UnitNormalization(), L.UnitNormalization(axis=[1, 2]), L.RMSNormalization(), 
        L.Normalization(), L.Normalization(axis=1), L.Normalization(axis=None), L.Normalization(axis=(1, 2)),
        L.Normalization(mean=2.0, variance=0.5), L.Normalization(mean=[1.0] * 6, variance=[2.0] * 6, invert=True),
        L.Rescaling(0.5, 2.0), L.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], offset=1.0),
    ]),
    "normalisations, 4 axes": ((4, 2, 6), lambda: [
        L.LayerNormalization(axis=[1, 3]), L.BatchNormalization(axis=2),
        L.BatchNormalization(axis=1, epsilon=0.1), L.GroupNormalization(2), L.GroupNormalization(2, axis=2),
        L.RMSNormalization(axis=[2, 3]),
    ]),
    "normalisations of any length": ((None, 6), lambda: [
        L.GroupNormalization(2), L.LayerNormalization(), L.UnitNormalization(axis=1), L.BatchNormalization(),
    ]),
    "activations": ((4, 6), lambda: [
        L.PReLU(), L.PReLU(shared_axes=[1]), L.PReLU(shared_axes=[1, 2]), L.LeakyReLU(), L.ELU(0.5), L.Softmax(),
        L.Softmax(axis=1), L.Softmax(axis=[1, 2]), L.ReLU(2.0, 0.1, 0.5), L.ReLU(max_value=1.0, negative_slope=0.2),
        L.ReLU(negative_slope=0.3, threshold=0.2), L.Activation("hard_tanh"), L.ReLU(max_value=1.5, threshold=0.5),
    ]),
    "nothing to do": ((4, 6, 3, 2), lambda: [
        L.SpatialDropout3D(0.5), L.TimeDistributed(L.SpatialDropout2D(0.5)), L.Dropout(0.2), L.Identity(),
    ]),
    "einsum": ((4, 6), lambda: [
        L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", activation="relu"),
        L.EinsumDense("ab...,bc->ac...", (3,)), L.EinsumDense("...x,xy->...y", (3,), bias_axes="y"),
        L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        L.EinsumDense("abc,bcd->ad", (5,), bias_axes="d"), L.EinsumDense("abc,cd->adb", (5, 4), bias_axes="d"),
        L.EinsumDense("abc,bd->acd", (6, 2)),
    ]),
    "time distributed": ((4, 6, 3), lambda: [
        L.TimeDistributed(layer)
        for layer in (
            L.Conv1D(2, 3), L.Flatten(), L.LSTM(2), L.MaxPooling1D(2), L.GlobalAveragePooling1D(), L.Dense(2),
            L.Bidirectional(L.GRU(2, return_sequences=True)), L.LayerNormalization(axis=[1, 2]), L.LayerNormalization(),
            L.BatchNormalization(), L.Reshape((9, 2)), L.TimeDistributed(L.Dense(2)), L.Dropout(0.3), L.PReLU(),
            keras.Sequential([keras.Input((6, 3)), L.Conv1D(4, 2, activation="relu"), L.Flatten(), L.Dense(2)]),
        )
    ]),
    "time distributed, any length": ((None, 5, 5, 1), lambda: [
        L.TimeDistributed(L.Conv2D(2, 3)), L.TimeDistributed(L.GlobalMaxPooling2D()), L.TimeDistributed(L.Flatten()),
    ]),
    "recurrent": ((5, 3), lambda: [
        L.RNN([L.LSTMCell(3), L.GRUCell(2)], return_state=True), L.RNN(L.GRUCell(2, reset_after=False)),
        L.Bidirectional(L.LSTM(3), merge_mode=None), L.RNN(L.StackedRNNCells([L.SimpleRNNCell(2)]), return_state=True),
        L.Bidirectional(L.GRU(2, return_sequences=True, return_state=True), merge_mode=None),
        L.Bidirectional(L.RNN([L.LSTMCell(3), L.GRUCell(2)], return_sequences=True, return_state=True)),
        L.Bidirectional(L.RNN(L.LSTMCell(3), go_backwards=True), "sum", backward_layer=L.RNN(L.LSTMCell(3))),
        L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(2, go_backwards=True)),
        L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True), merge_mode="ave"),
        L.Bidirectional(L.SimpleRNN(2), "mul", backward_layer=L.SimpleRNN(2, activation="relu", go_backwards=True)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_layers(case, tmp_path):
    shape, make = TABLE[case]
    x = keras.Input(shape)
    outputs = [y for layer in make() for y in _listed(layer(x))]
    check(keras.Model(x, outputs), 2 * normal(3, *(7 if n is None else n for n in shape)), folder=tmp_path)


def _listed(outputs) -> list:
    return [outputs] if not isinstance(outputs, (list, tuple)) else [y for item in outputs for y in _listed(item)]


MERGES = {
    "add": lambda: L.Add(), "multiply": lambda: L.Multiply(), "average": lambda: L.Average(),
    "maximum": lambda: L.Maximum(), "minimum": lambda: L.Minimum(), "concatenate": lambda: L.Concatenate(),
    "concatenate steps": lambda: L.Concatenate(axis=1),
}  # fmt: skip
IDS = np.array([[1, 2, 3, 0, 5], [0, 0, 4, 0, 5], [1, 0, 0, 0, 0], [6, 6, 6, 6, 6]])


@pytest.mark.parametrize("masks", ["all", "some", "none"])
@pytest.mark.parametrize("name", MERGES)
def test_merges_and_what_becomes_of_masks(name, masks, tmp_path):
    """The mask shows in what an LSTM and an average over time make of the result."""
    ids, x, z = keras.Input((5,), name="ids"), keras.Input((5, 4), name="x"), keras.Input((5, 4), name="z")
    parts = [L.Embedding(7, 4, mask_zero=masks != "none")(ids), x, z]
    if masks == "all":
        parts[1:] = [L.Masking()(x), L.Masking(1.0)(z)]
    y = MERGES[name]()(parts)
    model = keras.Model([ids, x, z], [y, L.LSTM(3)(y), L.GRU(2)(y), L.GlobalAveragePooling1D()(y)])
    a, b = normal(4, 5, 4), normal(4, 5, 4, seed=1)
    a[0, 1:3] = a[2, 4] = 0
    b[1, 2] = b[0, 4] = b[0, 0] = 1
    check(model, IDS, a, b, folder=tmp_path if masks == "all" else None)


def test_merges_of_other_shapes(tmp_path):
    a, b, c = keras.Input((5, 4)), keras.Input((1, 4)), keras.Input((4,))
    outputs = [L.Add()([a, b, c]), L.Subtract()([a, b]), L.Maximum()([c, a]), L.Multiply()([b, c])]
    model = keras.Model([a, b, c], outputs)
    check(model, normal(2, 5, 4), normal(2, 1, 4, seed=1), normal(2, 4, seed=2), folder=tmp_path)


def test_dot(tmp_path):
    a, b, c, d = keras.Input((5, 4)), keras.Input((6, 4)), keras.Input((4,)), keras.Input((3, 4, 2))
    outputs = [
        L.Dot(2)([a, b]), L.Dot((2, 2), normalize=True)([a, b]), L.Dot(-1)([c, a]), L.Dot((2, 1))([a, c]),
        L.Dot(1)([c, c]), L.Dot((2, 2))([a, d]), L.Dot((1, -1))([c, b]),
    ]  # fmt: skip
    inputs = normal(2, 5, 4), normal(2, 6, 4, seed=1), normal(2, 4, seed=2), normal(2, 3, 4, 2, seed=3)
    check(keras.Model([a, b, c, d], outputs), *inputs, folder=tmp_path)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("length", [5, None])
def test_attention(masked, length, tmp_path):
    """A query that may attend to nothing has no defined result, so the first steps are all there."""
    q, v, k = keras.Input((length, 4), name="q"), keras.Input((length, 4), name="v"), keras.Input((length, 4), name="k")
    a, b = (L.Masking()(q), L.Masking()(v)) if masked else (q, v)
    outputs = [
        L.Attention()([a, b]), L.Attention(use_scale=True)([a, b, k]),
        *L.Attention()([a, b], return_attention_scores=True),
        L.Attention(score_mode="concat")([a, b]), L.Attention(score_mode="concat", use_scale=True)([a, b]),
        L.Attention()([a, b], use_causal_mask=True), L.AdditiveAttention()([a, b]),
        L.AdditiveAttention(use_scale=False)([a, b, k]), L.AdditiveAttention()([a, b], use_causal_mask=True),
        L.LSTM(3)(L.Attention()([a, b])),
    ]  # fmt: skip
    arrays = [normal(3, 5, 4, seed=seed) for seed in range(3)]
    arrays[0][0, 3:] = arrays[1][0, 4] = arrays[1][1, 2] = 0
    check(keras.Model([q, v, k], outputs), *arrays, folder=tmp_path if length else None)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("length", [5, None])
def test_multi_head_attention(masked, length, tmp_path):
    """Each call has a mask of its own: Keras 3.15 takes the mask off the tensors that a call gets."""
    q, v = keras.Input((length, 4), name="q"), keras.Input((length, 6), name="v")
    pairs = keras.Input((length, length), dtype="bool", name="pairs")
    make = L.MultiHeadAttention

    def b():
        return L.Masking()(v) if masked else v

    outputs = [
        make(2, 3)(q, b()), make(2, 3, value_dim=4, use_bias=False)(q, b()), make(1, 3, output_shape=5)(q, b(), b()),
        make(3, 2, dropout=0.3)(q, b(), use_causal_mask=True), make(2, 3)(q, q, use_causal_mask=True),
        *make(2, 2)(q, b(), return_attention_scores=True), make(2, 3)(q, b(), attention_mask=pairs),
        make(2, 2)(q, b(), attention_mask=pairs, use_causal_mask=True), L.GRU(2)(make(2, 3)(L.Masking()(q), q)),
    ]  # fmt: skip
    x, y = normal(3, 5, 4), normal(3, 5, 6, seed=1)
    y[0, 3:] = y[1, 2] = x[2, 3:] = 0
    keep = np.random.default_rng(2).random((3, 5, 5)) < 0.7
    keep[:, :, 0] = True
    check(keras.Model([q, v, pairs], outputs), x, y, keep, folder=tmp_path if length else None)


def test_states_of_stacked_cells_in_and_out(tmp_path):
    x = keras.Input((5, 3))
    states = [[keras.Input((3,)), keras.Input((3,))], keras.Input((2,)), keras.Input((4,))]
    cells = [L.LSTMCell(3), L.GRUCell(2), L.SimpleRNNCell(4)]
    outputs = L.RNN(cells, return_sequences=True, return_state=True)(x, initial_state=states)
    flat = [*states[0], *states[1:]]
    given = [normal(4, n, seed=k) for k, n in enumerate((3, 3, 2, 4))]
    check(keras.Model([x, *flat], _listed(outputs)), normal(4, 5, 3), *given, folder=tmp_path)


def test_softmax_with_a_mask_of_elements():
    x, keep = keras.Input((4, 6), name="x"), keras.Input((4, 6), dtype="bool", name="keep")
    model = keras.Model([x, keep], [L.Softmax()(x, mask=keep), L.Softmax(axis=1)(x, mask=keep)])
    check(model, normal(3, 4, 6), np.random.default_rng(0).random((3, 4, 6)) < 0.7)


def test_masked_bidirectional_without_merge():
    x = keras.Input((5, 3))
    masked = L.Masking()(x)
    pairs = [L.Bidirectional(L.LSTM(3, return_sequences=seq), merge_mode=None)(masked) for seq in (True, False)]
    both = L.Bidirectional(L.RNN([L.LSTMCell(2), L.GRUCell(2)], return_sequences=True))(masked)
    array = normal(4, 5, 3)
    array[0, :2] = array[1, 3] = array[2] = 0
    check(keras.Model(x, [*pairs[0], *pairs[1], L.GRU(2)(pairs[0][1]), both]), array)


REFUSED = {
    "Lambda": lambda x: L.Lambda(lambda y: y * 2, name="bad")(x),
    "ConvLSTM1D": lambda x: L.ConvLSTM1D(2, 2, name="bad")(L.Reshape((4, 3, 2))(x)),
    "TimeDistributed": lambda x: L.TimeDistributed(L.Lambda(lambda y: y), name="bad")(x),
    "Conv3D": lambda x: L.Conv3D(2, 1, name="bad")(L.Reshape((4, 3, 2, 1))(x)),
    "UpSampling2D": lambda x: L.UpSampling2D(interpolation="bilinear", name="bad")(L.Reshape((4, 3, 2))(x)),
    "MultiHeadAttention": lambda x: L.MultiHeadAttention(2, 3, name="bad")(*[L.Reshape((4, 3, 2))(x)] * 2),
}


@pytest.mark.parametrize("class_name", REFUSED)
def test_what_is_refused_is_named(class_name):
    x = keras.Input((4, 6))
    with pytest.raises(UnsupportedError, match=f"{class_name} 'bad'"):
        from_object(keras.Model(x, REFUSED[class_name](x)))


def test_a_layer_normalization_of_an_axis_in_the_middle():
    """PyTorch's backend refuses a single axis that is not the last, so the layer over the last one is the measure."""
    x, specs = normal(2, 4, 4), []
    for axis in (1, 2):
        layer = L.LayerNormalization(axis=axis, name="y")
        layer.build((None, 4, 4))
        randomize(layer)
        specs.append(from_object(layer))
    ours, theirs = (reference.run(spec, {"x": a})["y"] for spec, a in zip(specs, (x, x.swapaxes(1, 2)), strict=True))
    np.testing.assert_allclose(ours, theirs.swapaxes(1, 2), rtol=0, atol=1e-12)


def test_every_converter_is_tried():
    """The tests of the Keras loader name each class."""
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*keras*.py")]
    assert [name for name in CONVERTERS if not any(name in text for text in texts)] == []
