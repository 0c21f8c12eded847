"""Layers from Keras weights without a configuration, as from PyTorch's; weights of other shapes than the layer has."""

from __future__ import annotations

import os

import numpy as np
import pytest
from keras_models import randomize

import fastrnn
from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.loaders.keras import load_spec

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore")
L = keras.layers

LAYERS = {
    # name: the layer, our class, whether the weights alone tell what it is
    "lstm": (lambda: L.LSTM(4, return_sequences=True), fastrnn.LSTM, True),
    "lstm_no_bias": (lambda: L.LSTM(4, return_sequences=True, use_bias=False), fastrnn.LSTM, True),
    "gru": (lambda: L.GRU(4, return_sequences=True), fastrnn.GRU, True),
    "gru_before": (lambda: L.GRU(4, return_sequences=True, reset_after=False), fastrnn.GRU, True),
    "simple": (lambda: L.SimpleRNN(4, return_sequences=True), fastrnn.RNN, True),
    "cell": (lambda: L.RNN(L.GRUCell(4), return_sequences=True), fastrnn.GRU, True),
    "both": (lambda: L.Bidirectional(L.LSTM(4, return_sequences=True)), fastrnn.LSTM, True),
    "both_gru": (lambda: L.Bidirectional(L.GRU(2, return_sequences=True)), fastrnn.GRU, True),
    "dense": (lambda: L.Dense(5), fastrnn.Dense, True),
    "norm": (L.LayerNormalization, fastrnn.LayerNorm, False),
    "batch": (L.BatchNormalization, fastrnn.BatchNorm, True),
}


def saved(tmp_path):
    """A model of one call of each layer, and its file with weights under paths and one with weights under names."""
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, [layer(x) for layer in (make() for make, *_ in LAYERS.values())])
    for layer, name in zip(model.layers[1:], LAYERS, strict=True):
        layer.name = name
    randomize(model)
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "named.h5", "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        for layer in model.layers[1:]:
            for variable in layer.weights:
                file[f"{layer.name}/{layer.name}/{variable.path.partition('/')[2]}:0"] = variable.numpy()
    return model


def groups(path) -> dict[str, str]:
    """Where the weights of each layer start in a file of paths: by class and rank."""
    ranks: dict[str, int] = {}
    found = {}
    for name, (make, *_) in LAYERS.items():
        snake = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "simple_rnn", "RNN": "rnn", "Dense": "dense"}.get(
            type(layer := make()).__name__
        ) or {"Bidirectional": "bidirectional", "LayerNormalization": "layer_normalization"}.get(
            type(layer).__name__, "batch_normalization"
        )
        rank = ranks[snake] = ranks.get(snake, -1) + 1
        found[name] = f"layers/{snake}" + (f"_{rank}" if rank else "")
    return found


@pytest.mark.parametrize("form", ["class", "op", "list"])
def test_layers_without_configuration(form, tmp_path):
    model = saved(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = dict(zip(LAYERS, (y.detach().numpy() for y in model(x, training=False)), strict=True))
    for file, places in (("m.weights.h5", groups(tmp_path)), ("named.h5", {name: name for name in LAYERS})):
        for name, (_, ours, certain) in LAYERS.items():
            place = places[name]
            if form == "list" and not certain:
                with pytest.raises(UnsupportedError, match="LayerNormalization"):
                    fastrnn.load_layers(tmp_path / file, [place])
                continue
            kinds = {"class": {place: ours}, "op": {place: ours.op}, "list": [place]}[form]
            layer = fastrnn.load_layers(tmp_path / file, kinds)[place]
            y = layer(x)
            y = y[0] if isinstance(y, tuple) else y
            eps = 1e-3 if name in ("norm", "batch") else 1e-5
            np.testing.assert_allclose(y, expected[name], rtol=eps, atol=eps, err_msg=f"{file} {name}")


def test_another_kind_is_named(tmp_path):
    saved(tmp_path)
    for file, place in (("m.weights.h5", "gru"), ("m.weights.h5", "layers/gru"), ("named.h5", "gru")):
        with pytest.raises(FormatError, match=r"asked for LSTM, but they can be those of GRU"):
            fastrnn.load_layers(tmp_path / file, {place: fastrnn.LSTM})


def test_what_weights_do_not_tell(tmp_path):
    """A matrix alone is a dense layer or a table; a GRU without biases resets before or after."""
    model = keras.Sequential(
        [keras.Input((None,)), L.Embedding(7, 3), L.GRU(4, use_bias=False), L.Dense(2, use_bias=False)]
    )
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UnsupportedError, match="Dense or Embedding"):
        fastrnn.load_layers(tmp_path / "m.weights.h5", ["embedding"])
    assert (
        fastrnn.load_layers(tmp_path / "m.weights.h5", {"embedding": fastrnn.Embedding})["embedding"].op == "embedding"
    )
    assert fastrnn.load_layers(tmp_path / "m.weights.h5", {"dense": "dense"})["dense"].op == "dense"
    for names in (["gru"], {"gru": fastrnn.GRU}):
        with pytest.raises(UnsupportedError, match="reset_after"):
            fastrnn.load_layers(tmp_path / "m.weights.h5", names)


def test_cudnn_layout_by_class(tmp_path):
    """The biases of CuDNN lie behind one another; a class of ours finds that out as the text does."""
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["keras_version"] = "2.2.4"
        for name, gates in (("a", 4), ("b", 3)):
            file[f"{name}/{name}/kernel:0"] = rng.normal(size=(3, gates * 2)).astype(np.float32)
            file[f"{name}/{name}/recurrent_kernel:0"] = rng.normal(size=(2, gates * 2)).astype(np.float32)
            file[f"{name}/{name}/bias:0"] = rng.normal(size=2 * gates * 2).astype(np.float32)
    x = rng.normal(size=(2, 4, 3)).astype(np.float32)
    text = fastrnn.load_layers(tmp_path / "w.h5", {"a": "CuDNNLSTM", "b": "CuDNNGRU"})
    for kinds in ({"a": fastrnn.LSTM, "b": fastrnn.GRU}, ["a", "b"], {"a": "LSTM", "b": "GRU"}):
        for name, layer in fastrnn.load_layers(tmp_path / "w.h5", kinds).items():
            np.testing.assert_array_equal(layer(x)[0], text[name](x)[0])


OTHERS = {
    "attention": lambda x: L.MultiHeadAttention(2, 3)(x, x),
    "conv": lambda x: L.Conv1D(4, 2)(x), "separable": lambda x: L.SeparableConv1D(4, 2)(x),
    "depthwise": lambda x: L.DepthwiseConv1D(2)(x), "transposed": lambda x: L.Conv1DTranspose(4, 2)(x),
    "einsum": lambda x: L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")(x), "prelu": lambda x: L.PReLU()(x),
    "group": lambda x: L.GroupNormalization(1)(x), "additive": lambda x: L.AdditiveAttention()([x, x]),
    "time": lambda x: L.TimeDistributed(L.Dense(4))(x),
    **{name: lambda x, make=make: make()(x) for name, (make, *_) in LAYERS.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_shape(name, tmp_path):
    """Every weight of every layer, one element longer or turned, is a ShapeError that names it; one less is none."""
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, OTHERS[name](x))
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    config, places = model.get_config(), []
    with h5py.File(path) as file:
        file.visititems(lambda key, item: places.append(key) if isinstance(item, h5py.Dataset) else None)
    load_spec(path, config=config)
    for place in places:
        if "seed" in place:
            continue
        with h5py.File(path, "r+") as file:
            whole = file[place][()]
            wrong = [np.zeros((whole.shape[0] + 1, *whole.shape[1:]), np.float32), whole[None], None]
            wrong += [whole.T] if whole.shape != whole.T.shape else []
        for array in wrong:
            with h5py.File(path, "r+") as file:
                del file[place]
                if array is not None:
                    file[place] = array
            with pytest.raises(FormatError if array is None else ShapeError):
                load_spec(path, config=config)
            with h5py.File(path, "r+") as file:
                if place in file:
                    del file[place]
                file[place] = whole
    with h5py.File(path, "r+") as file:
        file[places[0].rpartition("/")[0] + "/9"] = np.zeros(3, np.float32)
    with pytest.raises(FormatError, match="belong to no layer"):
        load_spec(path, config=config)
