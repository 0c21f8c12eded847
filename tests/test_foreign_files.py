"""Files that are not read: the error says what they are, and what it prints to do works."""

import bz2
import contextlib
import gzip
import importlib.util
import io
import json
import lzma
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import hostile_torch
import numpy as np
import pytest

import fastrnn
from fastrnn.errors import FastrnnError, UnsupportedError

GOOD = hostile_torch.GOOD_PT


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_dot_", "."), data)
    return buffer.getvalue()


def tarred(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight_ih_l0=np.ones((4, 3)), weight_hh_l0=np.ones((4, 1)))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    return buffer.getvalue()


NAM = json.dumps({"architecture": "LSTM", "weights": [1.0, 2.0]}).encode()
FILES = {
    "agent.zip": (zipped(data=b"{}", policy_dot_pth=GOOD), "Stable-Baselines3"),
    "model.zip": (zipped(model_dot_pt=GOOD, notes_dot_txt=b""), r"zip archive with 'model\.pt' in it"),
    "wrapped.pt": (zipped(model_dot_pt=GOOD), r"zip archive with 'model\.pt' in it"),
    "arrays.npz": (arrays(), "archive of NumPy arrays"),
    "array.npy": (array(), "one array of NumPy"),
    "config.json": (b'{"class_name": "Sequential"}', "JSON, which holds no weights.*config="),
    "amp.nam": (NAM, "Neural Amp Modeler"),
    "graph.pb": (b"\x08\x01\x12\x05abcde", "graph of TensorFlow"),
    "frozen.pb": (b"\x0a\x10\x0a\x05input\x12\x0bPlaceholder", "graph of TensorFlow"),
    "model.ckpt.index": (bytes(60), "checkpoint of TensorFlow"),
    "small.tflite": (b"\x1c\0\0\0TFL3" + bytes(30), "TensorFlow Lite"),
    "words.gguf": (b"GGUF\x03\0\0\0" + bytes(30), r"GGUF.*\.safetensors"),
    "data.pkl": (pickle.dumps({"a": 1}), "bare pickle, which runs code"),
    "old.pkl": (pickle.dumps({"a": 1}, protocol=0), "bare pickle, which runs code"),
    "pickled.pt": (pickle.dumps({"a": 1}), "bare pickle, which runs code"),
    "forest.joblib": (pickle.dumps({"a": 1}), "pickle of joblib"),
    "net.pdparams": (pickle.dumps({"a": 1}), "PaddlePaddle"),
    "net.mlmodel": (b"\x08\x04\x12\x30" + b"x" * 48, "Core ML"),
    "net.engine": (b"ptrt" + bytes(40), "TensorRT"),
    "net.ort": (b"\x18\0\0\0ORTM" + bytes(30), r"ONNX Runtime.*load the \.onnx"),
    "net.xml": (b"<?xml version='1.0'?><net/>", "OpenVINO"),
    "net.mat": (b"MATLAB 5.0 MAT-file" + bytes(110), "MATLAB"),
    "net.t7": (b"\x04\0\0\0\1\0\0\0", "Lua Torch"),
    "net.caffemodel": (b"\x0a\x05abcde", "Caffe"),
    "model.tar": (tarred("w"), "tar archive"),
    "model.tar.gz": (tarred("w:gz"), "tar archive"),
    "it's.nemo": (tarred("w"), "tar archive"),
    "model.pt.gz": (gzip.compress(GOOD), "compressed with gzip"),
    "gzipped.pt": (gzip.compress(GOOD), "compressed with gzip"),
    "model.pt.bz2": (bz2.compress(GOOD), "compressed with bzip2"),
    "model.pt.xz": (lzma.compress(GOOD), "compressed with xz"),
    "page.pt": (b"<!DOCTYPE html><html></html>", "web page"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
}


NOT_REAL = {"scipy.io.loadmat": (ValueError,), "joblib.load": (ValueError,)}
"""Readers that see that the samples are none."""


def steps(message: str) -> list[str]:
    """What a message prints to run."""
    return [step for step in re.findall(r"`(.+?)`", message) if re.search(r"\(|^python |^pip ", step)]


def run_step(step: str, folder: Path) -> None:
    """Run a printed command, or code with the packages that it names; not what needs a package that is not here."""
    if step.startswith("pip "):
        return
    if step.startswith("python -m"):
        command = shlex.split(step)
        if importlib.util.find_spec(command[2].partition(".")[0]) is not None:
            subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True)
        return
    names = re.findall(r"(?<![.)'\w])((?:[a-z]\w*\.)*[a-z]\w*)\.\w+\(", step)
    space = {}
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            return
        space[name.partition(".")[0]] = sys.modules[name.partition(".")[0]]
    with contextlib.suppress(*NOT_REAL.get(step.partition("(")[0], ())):
        exec(step, space)


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is(tmp_path, monkeypatch, name):
    data, words = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    for load in (fastrnn.load, lambda path: fastrnn.load_layers(path, ["rnn"])):
        with pytest.raises(UnsupportedError, match=f"{name}.* is .*{words}.*;|{words}") as error:
            load(name)
    for step in steps(str(error.value)):
        run_step(step, tmp_path)
    unpacked = [path for path in ("unpacked", "extracted/model.pt", "extracted/policy.pth") if Path(path).exists()]
    assert bool(unpacked) == (GOOD in data or "compressed" in words or "tar" in words)
    for path in unpacked:
        assert fastrnn.load(path)


def test_every_kind_has_a_file():
    from fastrnn.loaders.foreign import FOREIGN

    patterns = " ".join(words for _, words in FILES.values()) + " program that torch.export saved"
    for kind in FOREIGN:
        first = re.findall(r"[A-Z]\w+|gzip|bzip2|xz|tar|page|pickle|export", kind.what)
        assert any(word in patterns for word in first), kind.what


def test_exported_programs(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    torch.export.save(torch.export.export(module, (torch.ones(1, 3),)), "net.pt2")
    with pytest.raises(UnsupportedError, match=r"torch\.export saved") as error:
        fastrnn.load("net.pt2")
    for step in steps(str(error.value)):
        run_step(step, tmp_path)
    assert fastrnn.load_layers("weights.pt", ["0"])["0"].output_size == 2


def test_old_pickles_of_pytorch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.GRU(2, 3).state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"before PyTorch 1\.6") as error:
        fastrnn.load("old.pt")
    for step in steps(str(error.value)):
        run_step(step, tmp_path)
    assert fastrnn.load("new.pt").layers


def test_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("saved").mkdir()
    Path("saved/saved_model.pb").write_bytes(b"\x08\x01\x12\x05abcde")
    with pytest.raises(UnsupportedError, match="SavedModel"):
        fastrnn.load("saved")
    Path("model").mkdir()
    with pytest.raises(FastrnnError, match="is a directory, expected a file"):
        fastrnn.load("model")
    Path("model/weights.pt").write_bytes(GOOD)
    with pytest.raises(FastrnnError, match=r"'weights\.pt'.*name the file") as error:
        fastrnn.load("model")
    for step in steps(str(error.value)):
        run_step(step, tmp_path)
