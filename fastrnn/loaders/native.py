"""The native format ``.frnn``: a safetensors file whose metadata hold the whole ModelSpec as JSON.

Any reader of safetensors can open the weights.  The metadata are

    format     "fastrnn"
    version    "2"
    spec       JSON: the graph (nodes, inputs, outputs, constants), nested_state, source, recorded
    checksums  JSON: crc32 of "spec", and of each tensor together with its dtype and shape

A node has op, name, inputs, outputs, attrs, weights, and graphs: the bodies of control flow, each a graph.  Weights,
constants and recorded arrays say which tensor holds them, and each tensor is held once.  The weight ``weight_ih_l0`` of
node ``encoder`` is the tensor ``encoder.weight_ih_l0``, a constant has its own name, the recorded array of x is
``recorded.x``; a name that is taken gets a number.

Version 1 had neither constants, graphs nor recorded arrays, and listed only the names of weights.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..lazy_array import LazyArray, from_file
from ..spec import DTYPES, OPS, Graph, ModelSpec, Node, Tensor
from . import safetensors
from .files import Data, File, name_list, short
from .limits import MAX_NAME_LENGTH, MAX_NESTING

FORMAT, VERSION = "fastrnn", 2


def save_spec(spec: ModelSpec, path: str | os.PathLike[str]) -> None:
    """Write a model as a ``.frnn`` file; the file appears complete or not at all, also after a crash.

    Raises
    ------
    FormatError
        The spec is not valid, or there is something at ``path`` that is no regular file.
    UnsupportedError
        The description is too long for the header.
    """
    tensors, metadata = _describe(spec)
    safetensors.save_tensors(tensors, path, metadata)


def spec_to_bytes(spec: ModelSpec) -> bytes:
    """The bytes of a ``.frnn`` file."""
    return b"".join(safetensors.chunks(*_describe(spec)))


def load_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """Load a model from a ``.frnn`` file; its arrays stay there and are read, and checked, when they are needed."""
    file = File(path)
    return _read(file[:] if file.is_one_of_many else file)[0]


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a ``.frnn`` file; weights are named "node.weight"."""
    return {name: from_file(array) for name, array in _read(File(path))[1].items()}


def spec_from_bytes(buffer: bytes | memoryview) -> ModelSpec:
    """Load a model from the bytes of a ``.frnn`` file; weights and constants are views of ``buffer``.

    Raises
    ------
    UnsupportedError
        A newer version of fastrnn wrote the file.
    FormatError
        The file is damaged; a tensor that does not match its checksum is named.
    """
    return _read(memoryview(buffer))[0]


def supported() -> dict[str, Iterable[str]]:
    """What the format holds, for the table in docs/formats.md."""
    return {"nodes": OPS, "dtypes of constants": DTYPES}


def _checksum(code: str, shape: tuple[int, ...], data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(f"{code}{list(shape)}".encode()))


# Writing


def _describe(spec: ModelSpec) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and metadata of a model."""
    spec.validate()
    tensors: dict[str, Any] = {}

    def hold(name: str, array: np.ndarray) -> str:
        name = taken = name[: MAX_NAME_LENGTH - 8]
        count = 1
        while taken in tensors:
            count += 1
            taken = f"{name}.{count}"
        tensors[taken] = array if isinstance(array, LazyArray) else np.asarray(array)
        return taken

    described = _describe_graph(spec, hold) | {
        "nested_state": spec.nested_state,
        "source": spec.source,
        "recorded": {name: hold(f"recorded.{name}", array) for name, array in spec.recorded.items()},
    }
    text = json.dumps(described, allow_nan=False)
    checksums = {"spec": zlib.crc32(text.encode())}
    for name, array in tensors.items():
        code = safetensors.dtype_code(array.dtype)
        checksums[f"tensor {name}"] = _checksum(code, array.shape, safetensors.array_bytes(array))
    return tensors, {"format": FORMAT, "version": str(VERSION), "spec": text, "checksums": json.dumps(checksums)}


def _describe_graph(graph: Graph, hold: Callable[[str, np.ndarray], str]) -> dict[str, Any]:
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "inputs": list(node.inputs),
            "outputs": list(node.outputs),
            "attrs": {key: _encode(value) for key, value in node.attrs.items()},
            "weights": {key: hold(f"{node.name}.{key}", array) for key, array in node.weights.items()},
            "graphs": {key: _describe_graph(body, hold) for key, body in node.graphs.items()},
        }
        for node in graph.nodes
    ]
    return {
        "nodes": nodes,
        "inputs": [_encode_tensor(t) for t in graph.inputs],
        "outputs": [_encode_tensor(t) for t in graph.outputs],
        "constants": {name: hold(name, array) for name, array in graph.constants.items()},
    }


def _encode(value: Any) -> Any:
    """An attribute as JSON: tuples become lists, and floats that JSON lacks {"float": "inf"}."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "shape": shape, "dtype": tensor.dtype}


# Reading


def _read(file: Data) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The model of a file, and its tensors."""
    entries, metadata, start = safetensors.read_header(file)
    if metadata.get("format") != FORMAT:
        raise FormatError(
            f"the file is not of the format {FORMAT!r}: its metadata say {short(metadata.get('format'))};"
            " load plain weights as .safetensors"
        )
    version = _version(metadata.get("version", ""))
    text = metadata.get("spec", "")
    checksums = safetensors.parse_object(metadata.get("checksums", ""), "the list of checksums")
    bad = [] if checksums.get("spec") == zlib.crc32(text.encode("utf-8", "surrogatepass")) else ["the spec itself"]
    for name, entry in entries.items():
        data = file[start + entry.begin : start + entry.end]
        if checksums.get(f"tensor {name}") != _checksum(entry.code, entry.shape, data):
            bad.append(f"tensor {name}")
    if bad:
        raise FormatError(f"checksums do not match: {name_list(bad)}; the file is damaged, get a fresh copy")
    tensors = {name: _array(file, start, entry, checksums[f"tensor {name}"]) for name, entry in entries.items()}
    described = safetensors.parse_object(text, "its spec")
    spec = _Reader(tensors).spec(described if version > 1 else _from_version_1(described))
    try:
        spec.validate()
    except FormatError as error:
        raise _damaged(str(error)) from None
    return spec, tensors


def _array(file: Data, start: int, entry: safetensors.Entry, checksum: int) -> Any:
    """A tensor of the file; one that is in a file stays there."""
    begin, end = start + entry.begin, start + entry.end
    if not isinstance(file, File):
        return entry.array(file[begin:end])

    def read() -> np.ndarray:
        data = file.read(begin, end)
        if _checksum(entry.code, entry.shape, data) != checksum:
            raise file.changed()
        return entry.array(data)

    return LazyArray(entry.shape, entry.dtype, read)


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise FormatError(f"the version of the file is {short(text)}, expected a number from 1; the file is damaged")
    if int(text) > VERSION:
        raise UnsupportedError(
            f"the file is of version {text}, this fastrnn reads up to {VERSION};"
            " upgrade fastrnn, or save the model again with this one"
        )
    return int(text)


def _from_version_1(value: dict[str, Any]) -> dict[str, Any]:
    """A spec of version 1 in the words of version 2."""
    nodes = []
    for node in _field(value, "nodes", _is_list_of(dict)):
        name, keys = _field(node, "name", _is(str)), _field(node, "weights", _is_list_of(str))
        nodes.append(node | {"weights": {key: f"{name}.{key}" for key in keys}, "graphs": {}})
    return value | {"nodes": nodes, "constants": {}, "recorded": {}}


class _Reader:
    """Makes a model of its description; ``tensors`` are those of the file."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors, self.left = tensors, set(tensors)
        self.missing: list[str] = []

    def spec(self, value: dict[str, Any]) -> ModelSpec:
        graph = self.graph(value, 0)
        spec = ModelSpec(
            graph.nodes,
            graph.inputs,
            graph.outputs,
            graph.constants,
            nested_state=_field(value, "nested_state", _is(bool)),
            source=_field(value, "source", _is(str)),
            recorded=self.arrays(value, "recorded"),
        )
        if self.missing or self.left:
            raise _damaged(
                f"arrays without a tensor of their own: {name_list(self.missing)};"
                f" tensors of no layer: {name_list(self.left)}"
            )
        return spec

    def graph(self, value: dict[str, Any], depth: int) -> Graph:
        if depth > MAX_NESTING:
            raise _damaged(f"bodies are nested deeper than {MAX_NESTING} levels")
        return Graph(
            [self.node(item, depth) for item in _field(value, "nodes", _is_list_of(dict))],
            [_tensor(item) for item in _field(value, "inputs", _is_list_of(dict))],
            [_tensor(item) for item in _field(value, "outputs", _is_list_of(dict))],
            self.arrays(value, "constants"),
        )

    def node(self, value: dict[str, Any], depth: int) -> Node:
        texts = _is_list_of(str)
        return Node(
            _field(value, "op", _is(str)),
            _field(value, "name", _is(str)),
            tuple(_field(value, "inputs", texts)),
            tuple(_field(value, "outputs", texts)),
            {key: _decode(item) for key, item in _field(value, "attrs", _is(dict)).items()},
            self.arrays(value, "weights"),
            {key: self.graph(body, depth + 1) for key, body in _field(value, "graphs", _is_dict_of(dict)).items()},
        )

    def arrays(self, value: dict[str, Any], key: str) -> dict[str, np.ndarray]:
        """Arrays by name; a tensor that two of them ask for would let a small file claim a large model."""
        found = {}
        for name, tensor in _field(value, key, _is_dict_of(str)).items():
            if tensor in self.left:
                self.left.remove(tensor)
                found[name] = self.tensors[tensor]
            else:
                self.missing.append(tensor)
        return found


def _tensor(value: dict[str, Any]) -> Tensor:
    shape = _field(value, "shape", lambda s: s is None or _is_list_of(int, type(None))(s))
    name, dtype = _field(value, "name", _is(str)), _field(value, "dtype", _is(str))
    return Tensor(name, None if shape is None else tuple(shape), dtype)


def _decode(value: Any, depth: int = 0) -> Any:
    """The inverse of ``_encode``; lists become tuples."""
    if isinstance(value, list) and depth < MAX_NESTING:
        return tuple(_decode(item, depth + 1) for item in value)
    if isinstance(value, dict) and list(value) == ["float"] and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _damaged("an attribute has a value of an unknown kind")


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) in kinds for item in value)


def _is_dict_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(type(item) is kind for item in value.values())


def _field(value: dict[str, Any], key: str, good: Callable[[Any], bool]) -> Any:
    if key not in value or not good(value[key]):
        raise _damaged(f"{key!r} is missing or of the wrong kind")
    return value[key]


def _damaged(what: str) -> FormatError:
    return FormatError(f"the spec in the file is damaged: {what}; get a fresh copy of the file")
