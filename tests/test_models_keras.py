"""Real Keras models, made by others: what they compute, beside recordings of Keras and of the authors' equations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from published import published

import fastrnn
from fastrnn import reference
from fastrnn.errors import UnsupportedError
from fastrnn.loaders.keras import load_layers, load_spec, load_tensors

h5py = pytest.importorskip("h5py")
ATOL = 2e-6  # Keras computes in float32, the reference in float64


def run(spec, *inputs) -> list[np.ndarray]:
    result = reference.run(spec, {tensor.name: array for tensor, array in zip(spec.inputs, inputs, strict=True)})
    return [result[tensor.name] for tensor in spec.outputs]


def same_weights(a, b) -> bool:
    pairs = zip(a.nodes, b.nodes, strict=True)
    return all(np.array_equal(x.weights[key], y.weights[key]) for x, y in pairs for key in x.weights)


def test_fdeep_recurrent():
    """All outputs but those of the ConvLSTM layers, from all three containers."""
    folder = published("fdeep_recurrent")
    recorded = np.load(folder / "reference_io.npz")
    with h5py.File(folder / "recurrent.h5") as file:
        config = json.loads(file.attrs["model_config"])["config"]
    names = [name + (f":{tensor}" if tensor else "") for name, _, tensor in config["output_layers"]]
    supported = list(dict.fromkeys(name.partition(":")[0] for name in names if "conv" not in name))
    with pytest.raises(UnsupportedError, match=r"9 layer(.|\n)*ConvLSTM1D 'conv_lstm1d'(.|\n)*ConvLSTM3D"):
        load_spec(folder / "recurrent.keras")
    specs = [load_spec(folder / name, outputs=supported) for name in ("recurrent.keras", "recurrent.h5")]
    for config in ("recurrent.keras", "recurrent.h5"):
        specs.append(load_spec(folder / "recurrent.weights.h5", config=folder / config, outputs=supported))
    assert [tensor.name for tensor in specs[0].inputs] == ["input_layer"]
    assert [tensor.name for tensor in specs[0].outputs] == [name for name in names if "conv" not in name]
    assert all(same_weights(specs[0], spec) for spec in specs[1:])
    for tensor, output in zip(specs[0].outputs, run(specs[0], recorded["in0"]), strict=True):
        expected = recorded[f"out{names.index(tensor.name):02d}"]
        np.testing.assert_allclose(output, expected, rtol=0, atol=ATOL, err_msg=tensor.name)


@pytest.mark.parametrize("name", ["AAPL", "MSFT_1cf95fa"])
def test_stock_lstm(name):
    folder = published("stock_lstm")
    recorded = np.load(folder / "reference_io.npz")
    spec = load_spec(folder / name / "model.keras")
    (y,) = run(spec, recorded[f"{name}:x"])
    np.testing.assert_allclose(y, recorded[f"{name}:y"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(y, recorded[f"{name}:y64"], rtol=0, atol=1e-12)
    if name == "AAPL":
        weights = folder / name / "extracted_model.weights.h5"
        assert same_weights(spec, load_spec(weights, config=folder / name / "model.keras"))


class TextGenerator:
    """textgenrnn: weights in CuDNN's layout without a configuration, and a layer of the author's own between them."""

    def __init__(self, file: Path):
        self.layers = fastrnn.load_layers(
            file, {"embedding": "Embedding", "rnn_1": "LSTM", "rnn_2": "LSTM", "output": "Dense"}
        )
        self.attention = load_tensors(file)["attention/attention/attention_W:0"]

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        x = self.layers["embedding"](ids)
        first, _ = self.layers["rnn_1"](x)
        second, _ = self.layers["rnn_2"](first)
        features = np.concatenate([x, first, second], -1)
        score = (features @ self.attention)[..., 0]
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True) + 1e-7
        scores = self.layers["output"]((features * weight[..., None]).sum(1))
        return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), first, second


@pytest.fixture(scope="module")
def generator():
    return TextGenerator(published("textgenrnn", "textgenrnn_weights.hdf5"))


def test_textgenrnn_computes_what_its_author_wrote(generator):
    recorded = np.load(published("textgenrnn", "reference_io.npz"))
    ids, *expected = (recorded[f"textgenrnn_weights.hdf5:{key}"] for key in ("ids", "prob", "lstm1", "lstm2"))
    for ours, theirs in zip(generator(ids), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_textgenrnn_writes_english(generator):
    """Weights that are read in the wrong layout give noise."""
    vocabulary = json.loads(published("textgenrnn", "textgenrnn_vocab.json").read_text())
    letters = {number: letter for letter, number in vocabulary.items()}
    text, choose = ["<s>"], np.random.default_rng(0)
    while len(text) < 90:
        ids = [vocabulary[letter] for letter in text][-40:]
        probability = generator(np.array([[0] * (40 - len(ids)) + ids]))[0][0].astype(np.float64)
        probability[0] = 0
        sharp = np.maximum(probability, 1e-12) ** 5
        letter = letters[int(choose.choice(len(sharp), p=sharp / sharp.sum()))]
        if letter == "<s>":
            break
        text.append(letter)
    words = "".join(text[1:]).lower().split()
    assert len(set(words) & {"the", "a", "for", "to", "of", "and", "in", "is", "on", "with", "i", "what"}) >= 2


def test_dtln():
    """Weights alone, of a model with Lambda layers: single layers are taken out."""
    folder = published("dtln")
    recorded = np.load(folder / "reference_io.npz")
    sigmoid = {"class_name": "Dense", "config": {"activation": "sigmoid"}}
    convolution = {"class_name": "Conv1D", "config": {"use_bias": False}}
    norm = {"class_name": "LayerNormalization", "config": {"epsilon": 1e-7}}
    kinds = {
        **dict.fromkeys(("lstm", "lstm_1", "lstm_2", "lstm_3"), "LSTM"), "dense": sigmoid, "dense_1": sigmoid,
        "conv1d": convolution, "conv1d_1": convolution, "layer_normalization": norm,
    }  # fmt: skip
    specs = load_layers(folder / "model.h5", kinds)

    def through(x: np.ndarray, *names: str) -> np.ndarray:
        for name in names:
            (x,) = run(specs[name], x)[:1]
        return x

    mag = recorded["mag"][None].astype(np.float64)
    mask = through(mag, "lstm", "lstm_1", "dense")
    np.testing.assert_allclose(mask[0], recorded["torch_mask"].reshape(mask[0].shape), rtol=0, atol=5e-6)
    np.testing.assert_allclose(mask[0], recorded["ort_mask"].reshape(mask[0].shape), rtol=0, atol=5e-6)
    frames = np.fft.irfft(mag * mask * np.exp(1j * recorded["phase"]))
    encoded = through(frames, "conv1d")
    masked = encoded * through(encoded, "layer_normalization", "lstm_2", "lstm_3", "dense_1")
    np.testing.assert_allclose(through(masked, "conv1d_1")[0], recorded["ort_frames_out"], rtol=0, atol=5e-6)
