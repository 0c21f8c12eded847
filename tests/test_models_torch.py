"""Real PyTorch checkpoints made by others, whole: their recorded outputs are the expected ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from published import published

import fastrnn
from fastrnn import reference
from fastrnn.loaders.torch import from_object


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def agreeing(logits: np.ndarray) -> int:
    """How many of the authors' own predictions are the same."""
    path = published("emotion_bilstm")
    names = json.loads((path / "models" / "label_mapping.json").read_text())
    with (path / "outputs" / "test_predictions.csv").open(encoding="utf-8") as file:
        theirs = [row["predicted_emotion"] for row in csv.DictReader(file)]
    return sum(names[str(k)] == label for k, label in zip(logits.argmax(1), theirs, strict=True))


def emotion() -> tuple[Path, dict[str, np.ndarray]]:
    path = published("emotion_bilstm")
    return path / "models" / "emotion_bilstm_attention.pt", dict(np.load(path / "reference_io.npz"))


def test_emotion_by_layers():
    """The LSTM and the dense layers by name from the nested checkpoint; attention in NumPy."""
    path, recorded = emotion()
    kinds = {
        "embedding": fastrnn.Embedding, "bilstm": fastrnn.LSTM, "attention.score": "dense",
        "classifier.0": fastrnn.Dense, "classifier.3": fastrnn.Dense,
    }  # fmt: skip
    layers = fastrnn.load_layers(path, kinds)
    ids = recorded["ids"].astype(np.int64)
    h, _ = layers["bilstm"](layers["embedding"](ids))
    scores = np.tanh(layers["attention.score"](h)[..., 0])
    weights = softmax(np.where(ids != 0, scores, np.finfo(np.float32).min), 1)
    context = (h * weights[..., None]).sum(1)
    logits = layers["classifier.3"](np.maximum(layers["classifier.0"](context), 0))
    assert agreeing(logits) == 1080
    np.testing.assert_allclose(softmax(logits, 1), recorded["prob"], atol=2e-6)


def test_emotion_tensors():
    path, _ = emotion()
    model = fastrnn.load(path)
    assert model.tensors["state_dict.bilstm.weight_ih_l0"].shape == (256, 96)
    assert len(model.tensors) == 15
    with pytest.raises(fastrnn.UnsupportedError, match=r"prefix='state_dict\.bilstm\.'.*load_layers"):
        model(np.zeros((1, 40)))


def emotion_module(state: dict):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.score = nn.Linear(size, 1)

        def forward(self, h, mask):
            scores = torch.tanh(self.score(h)).squeeze(-1)
            weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=1)
            return torch.sum(h * weights.unsqueeze(-1), dim=1), weights

    class Emotion(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(193, 96, padding_idx=0)
            self.bilstm = nn.LSTM(96, 64, batch_first=True, bidirectional=True)
            self.attention = Attention(128)
            self.classifier = nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 6))

        def forward(self, ids, return_attention=False):
            h, _ = self.bilstm(self.embedding(ids))
            context, weights = self.attention(h, ids.ne(0))
            logits = self.classifier(context)
            return (logits, weights) if return_attention else logits

    module = Emotion()
    module.load_state_dict(state)
    return module


def test_emotion_as_a_module():
    """The whole network by from_torch, and its graph by the reference: the authors' 1080 labels."""
    torch = pytest.importorskip("torch")
    path, recorded = emotion()
    module = emotion_module(torch.load(path, weights_only=True)["state_dict"])
    ids = recorded["ids"].astype(np.int64)
    model = fastrnn.from_torch(module)
    assert [t.name for t in (*model.inputs, *model.outputs)] == ["ids", "output"]
    logits = model(ids)
    assert agreeing(logits) == 1080
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-5)
    exact = reference.run(from_object(module), {"ids": ids[:64]})["output"]
    np.testing.assert_allclose(logits[:64], exact, atol=1e-5)


def test_silero_safetensors():
    """Frame by frame: the cell by name, the convolutions as raw arrays in NumPy."""
    path = published("silero_vad")
    recorded = np.load(path / "reference_io.npz")
    model = fastrnn.load(path / "silero_vad_16k.safetensors")
    cell = fastrnn.load_layers(path / "silero_vad_16k.safetensors", {"lstm_cell": fastrnn.LSTMCell})["lstm_cell"]
    weight, bias = model.tensors["final_conv.weight"][0, :, 0], model.tensors["final_conv.bias"]
    state, steps, probability = None, [], []
    for x in recorded["st_lstm_in"]:
        state = cell(x[None], state)
        steps.append(state[0][0])
        probability.append(1 / (1 + np.exp(-(np.maximum(steps[-1], 0) @ weight + bias[0]))))
    np.testing.assert_allclose(steps, recorded["st_lstm_h"], atol=1e-4)
    np.testing.assert_allclose(probability, recorded["st_prob"][:400], atol=1e-4)


def test_silero_torchscript():
    """The same bits as PyTorch's own loader gives, and the recorded states from them."""
    path = published("silero_vad")
    tensors = fastrnn.load(path / "silero_vad.jit").tensors
    recorded = np.load(path / "reference_io.npz")
    cell = fastrnn.load_layers(path / "silero_vad.jit", {"_model.decoder.rnn": "lstm"})["_model.decoder.rnn"]
    state, steps = None, []
    for x in recorded["jit_lstm_in"]:
        state = cell(x[None], state)
        steps.append(state[0][0])
    np.testing.assert_allclose(steps, recorded["jit_lstm_h"], atol=1e-4)
    torch = pytest.importorskip("torch")
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        theirs = torch.jit.load(path / "silero_vad.jit")
    named = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    assert len(named) == 30
    for name, tensor in named.items():
        np.testing.assert_array_equal(tensors[name], tensor.detach().numpy(), strict=True)


def test_silero_as_a_module():
    """The whole network in PyTorch's words, with the safetensors weights, one chunk after the other."""
    torch = pytest.importorskip("torch")
    nn, f = torch.nn, torch.nn.functional
    path = published("silero_vad")

    class Silero(nn.Module):
        def __init__(self):
            super().__init__()
            self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
            self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
            self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
            self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
            self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
            self.lstm_cell = nn.LSTMCell(128, 128)
            self.final_conv = nn.Conv1d(128, 1, 1)

        def forward(self, x, state):
            x = f.pad(x.unsqueeze(1), (0, 64), mode="reflect")
            real, imaginary = self.stft_conv(x).chunk(2, dim=1)
            x = torch.sqrt(real**2 + imaginary**2)
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = torch.relu(conv(x))
            h, c = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
            y = torch.sigmoid(self.final_conv(h.relu().unsqueeze(-1)))
            return y.squeeze(1).mean(dim=1, keepdim=True), torch.stack([h, c])

    safetensors = pytest.importorskip("safetensors.torch")
    module = Silero()
    module.load_state_dict(safetensors.load_file(path / "silero_vad_16k.safetensors"))
    model = fastrnn.from_torch(module, example_inputs=(torch.zeros(1, 576), torch.zeros(2, 1, 128)))
    chunks = silero_chunks(path / "test.wav")[:400]
    state, probability = np.zeros((2, 1, 128), np.float32), []
    for chunk in chunks:
        y, state = model(chunk[None], state)
        probability.append(y[0, 0])
    np.testing.assert_allclose(probability, np.load(path / "reference_io.npz")["st_prob"][:400], atol=1e-4)


def silero_chunks(path: Path) -> np.ndarray:
    """Frames of 512 samples, each behind the last 64 of the one before."""
    import wave

    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    samples = np.pad(samples, (64, -len(samples) % 512))
    return np.lib.stride_tricks.sliding_window_view(samples, 576)[::512]
