"""Published streaming models, frame by frame over whole recordings, against what their own runtime gave."""

from __future__ import annotations

import numpy as np
import pytest
from published import SILERO, published, silero_frames

import fastrnn


def silero(name: str) -> tuple[fastrnn.Model, dict[str, np.ndarray]]:
    model = fastrnn.load(published("silero_vad") / f"{name}.onnx")
    feeds = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    return model, {tensor.name: feeds[tensor.name] for tensor in model.inputs if tensor.name in feeds}


@pytest.mark.parametrize("name", SILERO)
def test_silero_over_the_whole_recording(name):
    model, feeds = silero(name)
    with np.load(published("silero_vad") / "reference_io.npz") as recorded:
        expected = recorded["prob_ort"]
    found = []
    for frame in silero_frames():
        made = model.run({**feeds, "input": frame[None]})
        feeds["state"] = made["stateN"]
        found.append(made["output"][0, 0])
    assert len(found) == len(expected) == 1875
    assert np.abs(np.array(found) - expected).max() <= 2e-6


@pytest.mark.parametrize("name", SILERO)
def test_silero_runs_on_the_lstm_kernel(name):
    """Also where the exporter took the cell apart; and nothing in it is slow."""
    model, _ = silero(name)
    rows = model.explain(batch=1, seq_len=576)
    assert any(row["op"] == "lstm" and row["kernel"].endswith("lstm") for row in rows)
    lstms = [layer for layer in model.layers.values() if isinstance(layer, fastrnn.LSTM)]
    assert lstms
    assert {(layer.input_size, layer.hidden_size) for layer in lstms} == {(128, 128)}
    assert [row for row in rows if row["slow"] and row["op"] in ("operator", "loop", "scan")] == []


def test_silero_has_the_same_bits_in_any_batch():
    model, feeds = silero("silero_vad_16k_op15")
    batch, state = silero_frames()[100:107], np.random.default_rng(0).normal(size=(2, 7, 128)).astype(np.float32)
    whole = model.run({**feeds, "input": batch, "state": state})
    for row in range(7):
        one = model.run({**feeds, "input": batch[row : row + 1], "state": state[:, row : row + 1]})
        assert np.array_equal(one["output"], whole["output"][row : row + 1])
        assert np.array_equal(one["stateN"], whole["stateN"][:, row : row + 1])


def test_dtln_over_the_recorded_frames():
    with np.load(published("dtln") / "reference_io.npz") as recorded:
        frame, mask, cleaned = (recorded[name] for name in ("frames", "ort_mask", "ort_frames_out"))
    first, second = (fastrnn.load(published("dtln") / f"model_{k}.onnx") for k in (1, 2))
    states = [np.zeros((1, 2, 128, 2), np.float32) for _ in range(2)]
    for k, samples in enumerate(frame):
        spectrum = np.fft.rfft(samples)
        made, states[0] = first(np.abs(spectrum).astype(np.float32)[None, None], states[0])
        assert np.abs(made[0, 0] - mask[k]).max() <= 5e-6
        estimate = np.fft.irfft(np.abs(spectrum).astype(np.float32) * made[0, 0] * np.exp(1j * np.angle(spectrum)))
        made, states[1] = second(estimate.astype(np.float32)[None, None], states[1])
        assert np.abs(made[0, 0] - cleaned[k]).max() <= 5e-6
    assert len(frame) == 200
    assert sum(isinstance(layer, fastrnn.LSTMCell) for layer in second.layers.values()) == 2, "cells made of MatMul"


@pytest.mark.parametrize("name", ["AAPL/model.keras", "MSFT_1cf95fa/model.keras"])
def test_stock_lstm(name):
    model = fastrnn.load(published("stock_lstm") / name)
    with np.load(published("stock_lstm") / "reference_io.npz") as recorded:
        x, y = (recorded[f"{name.split('/')[0]}:{what}"] for what in ("x", "y"))
    assert np.abs(model(x) - y).max() <= 1e-6
