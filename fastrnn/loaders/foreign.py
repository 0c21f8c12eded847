"""Files of formats that are not read: what they are, and the next step that works."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import FastrnnError, FormatError, UnsupportedError
from .files import Data, name_list

MODELS = (".frnn", ".safetensors", ".pt", ".pth", ".jit", ".keras", ".h5", ".hdf5", ".onnx")
"""Suffixes of files that are read."""


@dataclass(frozen=True)
class Foreign:
    """A kind of file.

    It is told by bytes at a place of it, by members of an archive, or, where these say nothing, by its suffix.  Code in
    the advice stands in backticks; ``{path}`` is the file as a literal of Python, ``{word}`` as a word of a shell.
    """

    what: str
    advice: str
    marks: tuple[tuple[int, bytes], ...] = ()
    members: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    surely: bool = False
    """Whether the suffix counts for more than contents that look like ONNX."""


_SOURCE = "load the model that it was made from, or its weights"
_UNPACK = "unpack it, `open('unpacked', 'wb').write({module}.open({{path}}).read())`, and load the file `unpacked`"
_EXTRACT = "extract it, `python -m {module} -e {{word}} extracted`, and load the model file in the folder `extracted`"
_THEN = " fastrnn.from_torch takes a module or tensors by name"
_TFLITE = "convert it: `pip install tf2onnx`, then `python -m tf2onnx.convert --tflite {word} --output model.onnx`"
_SAVED = (
    "in TensorFlow, `tf.keras.models.load_model({path}).save('model.keras')`, or `pip install tf2onnx`, then"
    " `python -m tf2onnx.convert --saved-model {word} --output model.onnx`"
)

FOREIGN = (
    Foreign(
        "a web page, not a model",
        "download the file itself (its raw form), not the page that shows it",
        tuple((0, word) for word in (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")),
    ),
    Foreign(
        "a pointer of Git LFS, not the model",
        "fetch the file itself with Git LFS",
        ((0, b"version https://git-lfs"),),
    ),
    Foreign(
        "a model that Stable-Baselines3 saved",
        "take its policy out, `python -m zipfile -e {word} extracted`, then"
        " `fastrnn.load('extracted/policy.pth').tensors` and fastrnn.load_layers",
        members=("policy.pth",),
    ),
    Foreign(
        "a program that torch.export saved",
        "in PyTorch, `torch.save(torch.export.load({path}).state_dict, 'weights.pt')`, then"
        " `fastrnn.load('weights.pt').tensors` and fastrnn.load_layers",
        members=("models/model.json", "serialized_exported_program.json", "archive_format"),
        suffixes=(".pt2",),
    ),
    Foreign(
        "an archive of NumPy arrays",
        "where they have PyTorch's names, `fastrnn.from_torch(dict(numpy.load({path})))`, with prefix= if there are"
        " more; else give them to fastrnn.LSTM, GRU or RNN",
        members=(".npy",),
        suffixes=(".npz",),
    ),
    Foreign(
        "one array of NumPy",
        "`numpy.load({path})` reads it; give it to fastrnn.LSTM, GRU or RNN as the weight that it is",
        ((0, b"\x93NUMPY"),),
    ),
    Foreign(
        "a model of Neural Amp Modeler: text, with the weights in one list",
        "load the checkpoint (.ckpt) of its training, or read the list,"
        " `numpy.asarray(json.load(open({path}))['weights'], 'float32')`, and cut it into the weights of fastrnn.LSTM",
        suffixes=(".nam",),
    ),
    Foreign(
        "JSON, which holds no weights",
        "where it is the configuration of a Keras model, load the weights with it:"
        " fastrnn.load('model.weights.h5', config={path})",
        ((0, b"{"), (0, b"[")),
        suffixes=(".json",),
    ),
    Foreign("a TensorFlow Lite model", _TFLITE, ((4, b"TFL3"),), suffixes=(".tflite",)),
    Foreign(
        "a graph of TensorFlow",
        _SAVED.replace("{path}", "folder").replace("{word}", "FOLDER") + ", with the folder of its SavedModel",
        suffixes=(".pb", ".pbtxt"),
        surely=True,
    ),
    Foreign(
        "a checkpoint of TensorFlow",
        "in TensorFlow, build the model, load its weights and save it:"
        " model.load_weights(...), model.save('model.keras')",
        suffixes=(".index", ".meta"),
    ),
    Foreign(
        "a model in GGUF, most of them quantized", "load the .safetensors file that it was made from", ((0, b"GGUF"),)
    ),
    Foreign("a Core ML model", _SOURCE, suffixes=(".mlmodel", ".mlpackage"), surely=True),
    Foreign(
        "a TensorRT engine, compiled for one GPU",
        _SOURCE,
        ((0, b"ptrt"), (0, b"ftrt")),
        suffixes=(".engine", ".plan", ".trt"),
    ),
    Foreign(
        "ONNX Runtime's own format", "load the .onnx file that it was made from", ((4, b"ORTM"),), suffixes=(".ort",)
    ),
    Foreign(
        "weights of PaddlePaddle",
        "in Python, `fastrnn.from_torch(dict(paddle.load({path})), prefix='rnn.')` with the"
        " names of PyTorch, or export the model to ONNX",
        suffixes=(".pdparams", ".pdmodel", ".pdiparams"),
    ),
    Foreign("OpenVINO's format", _SOURCE, ((0, b"<?xml"),), suffixes=(".xml",)),
    Foreign(
        "a file of MATLAB", "`scipy.io.loadmat({path})` reads its arrays", ((0, b"MATLAB 5.0"),), suffixes=(".mat",)
    ),
    Foreign("a file of Lua Torch", _SOURCE, suffixes=(".t7",)),
    Foreign("a Caffe model", _SOURCE, suffixes=(".caffemodel", ".prototxt")),
    Foreign(
        "a tar archive",
        _EXTRACT.format(module="tarfile"),
        ((257, b"ustar"),),
        suffixes=(".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".nemo"),
    ),
    Foreign("compressed with gzip", _UNPACK.format(module="gzip"), ((0, b"\x1f\x8b"),)),
    Foreign("compressed with bzip2", _UNPACK.format(module="bz2"), ((0, b"BZh"),)),
    Foreign("compressed with xz", _UNPACK.format(module="lzma"), ((0, b"\xfd7zXZ\0"),)),
    Foreign("a pickle of joblib", "if you trust it, `joblib.load({path})` in Python;" + _THEN, suffixes=(".joblib",)),
    Foreign(
        "a bare pickle, which runs code when it is loaded",
        "if you trust it, `pickle.load(open({path}, 'rb'))` in Python;" + _THEN,
        ((0, b"\x80"),),
        suffixes=(".pkl", ".pickle"),
    ),
)
"""More particular kinds first."""


def foreign(path: str | os.PathLike[str], file: Data, members: Collection[str], surely: bool) -> Foreign | None:
    """The kind of a file that is not read; ``surely`` asks for those alone that look like a format that is read."""
    name = Path(path).name.lower()
    for row in FOREIGN:
        marked = any(file[at : at + len(mark)] == mark for at, mark in row.marks)
        held = bool(row.members) and any(member.endswith(row.members) for member in members)
        if (marked or held or name.endswith(row.suffixes)) and (row.surely or not surely):
            return row
    return None


def refused(path: str | os.PathLike[str], kind: Foreign) -> UnsupportedError:
    """The error for a file of such a kind."""
    name = os.fspath(path)
    advice = kind.advice.replace("{path}", repr(name)).replace("{word}", shlex.quote(name))
    return UnsupportedError(f"{name!r} is {kind.what}; {advice}")


def refused_archive(path: str | os.PathLike[str], members: Collection[str]) -> UnsupportedError | None:
    """The error for a zip file with models in it."""
    inside = [name for name in members if Path(name).suffix.lower() in MODELS]
    if not inside:
        return None
    word = shlex.quote(os.fspath(path))
    return UnsupportedError(
        f"{os.fspath(path)!r} is a zip archive with {name_list(inside, 8)} in it; extract it,"
        f" `python -m zipfile -e {word} extracted`, and load the model file in the folder `extracted`"
    )


def refused_folder(path: str | os.PathLike[str]) -> FastrnnError:
    """The error for a folder; it names the model files in it."""
    folder, name = Path(path), os.fspath(path)
    if (folder / "saved_model.pb").is_file():
        advice = _SAVED.replace("{path}", repr(name)).replace("{word}", shlex.quote(name))
        return UnsupportedError(f"{name!r} is the folder of a SavedModel of TensorFlow; {advice}")
    inside = sorted(file.name for file in islice(folder.iterdir(), 1000) if file.suffix.lower() in MODELS)
    if not inside:
        return FormatError(f"{name!r} is a directory, expected a file; name the model file inside it")
    return FormatError(
        f"{name!r} is a directory with {name_list(inside, 8)} in it; name the file,"
        f" `fastrnn.load({str(folder / inside[0])!r})`"
    )
