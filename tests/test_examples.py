"""The example and the comparison run as a user starts them: from another folder, as a process of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from published import published

import fastrnn

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits"
NETWORKS = {"gru": fastrnn.GRU, "bilstm": fastrnn.LSTM}
SUFFIXES = (".pt", ".safetensors", ".keras")
HAVE_H5PY = importlib.util.find_spec("h5py") is not None


def run(script: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the fastrnn that these tests import."""
    env = os.environ | {"PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS / "data" / "held_out.npz") as data:
        return data["images"].astype(np.float32) / 16, data["labels"]


def test_digits_reads_the_held_out_images(tmp_path):
    done = run(DIGITS / "run.py", "--no-peers", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = dict(re.findall(r"^(\w+\.\w+) +([\d.]+)%", done.stdout, re.MULTILINE))
    expected = {name + suffix for name in NETWORKS for suffix in SUFFIXES if HAVE_H5PY or suffix != ".keras"}
    assert set(accuracy) == expected
    assert all(float(percent) >= 97 for percent in accuracy.values()), accuracy
    assert "All results are right." in done.stdout
    assert (tmp_path / "out" / "digits.png").exists() == bool(importlib.util.find_spec("matplotlib"))


def test_digits_fails_on_wrong_weights(tmp_path):
    shutil.copytree(DIGITS, tmp_path / "examples" / "digits", ignore=shutil.ignore_patterns("out", "__pycache__"))
    shutil.copytree(ROOT / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "examples" / "digits" / "gru.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = (-np.frombuffer(data[start:], "<f4")).tobytes()
    path.write_bytes(data)

    done = run(tmp_path / "examples" / "digits" / "run.py", "--no-peers", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED gru.safetensors: accuracy" in done.stdout
    assert "FAILED gru.pt" not in done.stdout


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NETWORKS)
def test_weight_files_are_small(name, suffix):
    assert (DIGITS / f"{name}{suffix}").stat().st_size < 300_000


@pytest.mark.parametrize("name", NETWORKS)
def test_containers_agree(name):
    """The same weights give the same bits, whatever they come from."""
    x, labels = held_out()
    logits = {}
    for suffix in (".pt", ".safetensors"):
        layers = fastrnn.load_layers(DIGITS / f"{name}{suffix}", {"rnn": NETWORKS[name], "head": fastrnn.Dense})
        logits[suffix] = fastrnn.Sequential(layers["rnn"].last(), layers["head"])(x)
    if HAVE_H5PY:
        logits[".keras"] = fastrnn.load(DIGITS / f"{name}.keras")(x)
    assert (logits[".pt"].argmax(1) == labels).mean() >= 0.97
    for suffix, values in logits.items():
        assert np.array_equal(values, logits[".pt"]), suffix


@pytest.mark.parametrize(("mode", "cell"), [("seq", "LSTM"), ("step", "GRU"), ("ragged", "RNN")])
def test_compare(tmp_path, mode, cell):
    """Every installed engine computes the same network; compare.py itself fails where one does not."""
    seq_len = 1 if mode == "step" else 9
    arguments = f"--mode {mode} --cell {cell} --shapes 3,{seq_len},5,7 --rounds 1 --json result.json".split()
    done = run(ROOT / "bench" / "compare.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert row["shape"] == [3, seq_len, 5, 7]
    assert set(row["us"]) == set(row["errors"]) >= {"fastrnn"}
    assert f"| 3 | {seq_len} | 5 | 7 |" in done.stdout


# ---- Published models ----


def test_voice_activity(tmp_path):
    done = run(ROOT / "examples" / "voice_activity.py", published("silero_vad"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "60.0 s of audio" in done.stdout
    spoken = re.findall(r"speech from +([\d.]+) s to +([\d.]+) s", done.stdout)
    assert 30 < sum(float(end) - float(begin) for begin, end in spoken) < 55


@pytest.mark.parametrize("network", ["silero_vad", None])
def test_voice_pool(tmp_path, network):
    folder = [published(network)] if network else []
    script = ROOT / "examples" / "voice_pool.py"
    done = run(script, *folder, "--streams", 20, "--seconds", 0.4, "--batch", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 streams, a frame of" in done.stdout
    assert re.search(r"real-time factor \d+\.\d+: [1-9]\d* frames", done.stdout)
    assert "the first stream of each process has the same bits as alone" in done.stdout


def test_noise_suppression(tmp_path):
    """Speech in white noise comes out with less than half of the noise's power."""
    speech = published("silero_vad") / "test.wav"
    with wave.open(str(speech)) as file:
        clean = np.frombuffer(file.readframes(16_000 * 8), "<i2").astype(np.float32) / 32768
    noisy = clean + 0.02 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    write_wave(tmp_path / "noisy.wav", noisy)
    script = ROOT / "examples" / "noise_suppression.py"
    done = run(script, published("dtln"), "noisy.wav", "clean.wav", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with wave.open(str(tmp_path / "clean.wav")) as file:
        result = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    assert len(result) == len(noisy)
    assert np.mean((result - clean) ** 2) < 0.5 * np.mean((noisy - clean) ** 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.wav", "noisy.wav"]


def write_wave(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


@pytest.mark.skipif(not HAVE_H5PY, reason="reading HDF5 takes h5py")
def test_text_generation(tmp_path):
    """English words come out; in the other reading of the weights it would be noise."""
    script = ROOT / "examples" / "text_generation.py"
    done = run(script, published("textgenrnn"), "--count", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    letters = sum(word.strip(".,:?!()'\"").isalpha() for word in words)
    assert len(words) > 10
    assert letters > 0.8 * len(words), done.stdout
    assert {"the", "The", "a", "to", "of", "in"} & set(words), done.stdout
