"""The native format ``.frnn``: a safetensors file whose metadata hold the whole ModelSpec as JSON.

Any reader of safetensors can open the weights.  The metadata are

    format     "fastrnn"
    version    "1"
    spec       JSON: nodes (op, name, inputs, outputs, attrs, names of weights), inputs, outputs, nested_state, source
    checksums  JSON: crc32 of "spec", and of each tensor together with its dtype and shape

and the weight ``weight_ih_l0`` of node ``encoder`` is the tensor ``encoder.weight_ih_l0``.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import OPS, ModelSpec, Node, Tensor
from . import safetensors
from .files import map_file, name_list, short, write_file
from .limits import MAX_LAYERS, MAX_NESTING

FORMAT, VERSION = "fastrnn", 1


def save_spec(spec: ModelSpec, path: str | os.PathLike[str]) -> None:
    """Write a model as a ``.frnn`` file; the file appears complete or not at all, also after a crash.

    Raises
    ------
    FormatError
        The spec is not valid.
    UnsupportedError
        An attribute or a dtype cannot be stored.
    """
    tensors, metadata = _describe(spec)
    write_file(path, safetensors.chunks(tensors, metadata))


def spec_to_bytes(spec: ModelSpec) -> bytes:
    """The bytes of a ``.frnn`` file."""
    return b"".join(safetensors.chunks(*_describe(spec)))


def load_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """Load a model from a ``.frnn`` file; the weights are read-only views of the mapped file."""
    return spec_from_bytes(map_file(path))


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all weights of a ``.frnn`` file, named "node.weight"."""
    spec = load_spec(path)
    return {f"{node.name}.{key}": array for node in spec.nodes for key, array in node.weights.items()}


def spec_from_bytes(buffer: bytes | memoryview) -> ModelSpec:
    """Load a model from the bytes of a ``.frnn`` file; the weights are views of ``buffer``.

    Raises
    ------
    UnsupportedError
        A newer version of fastrnn wrote the file.
    FormatError
        The file is damaged; a tensor that does not match its checksum is named.
    """
    file = memoryview(buffer)
    entries, metadata, start = safetensors.read_header(file)
    if metadata.get("format") != FORMAT:
        raise FormatError(
            f"the file is not of the format {FORMAT!r}: its metadata say {short(metadata.get('format'))};"
            " load plain weights as .safetensors"
        )
    _check_version(metadata.get("version", ""))
    text = metadata.get("spec", "")
    checksums = _parse(metadata.get("checksums", ""))
    bad = [] if checksums.get("spec") == zlib.crc32(text.encode("utf-8", "surrogatepass")) else ["the spec itself"]
    for name, entry in entries.items():
        data = file[start + entry.begin : start + entry.end]
        if checksums.get(f"tensor {name}") != _checksum(entry.code, entry.shape, data):
            bad.append(f"tensor {name}")
    if bad:
        raise FormatError(f"checksums do not match: {name_list(bad)}; the file is damaged, get a fresh copy")
    spec, names = _spec(_parse(text))
    missing, unused = names - set(entries), set(entries) - names
    if missing or unused:
        raise FormatError(f"weights without a tensor: {name_list(missing)}; tensors of no layer: {name_list(unused)}")
    for node in spec.nodes:
        node.weights = {
            key: safetensors.read_entry(file[start:], entries[f"{node.name}.{key}"]) for key in node.weights
        }
    try:
        spec.validate()
    except FormatError as error:
        raise _damaged(str(error)) from None
    return spec


def _describe(spec: ModelSpec) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and metadata of a model."""
    spec.validate()
    tensors = {f"{node.name}.{key}": array for node in spec.nodes for key, array in node.weights.items()}
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "inputs": list(node.inputs),
            "outputs": list(node.outputs),
            "attrs": {key: _encode(value, f"{node.name}: attribute {key!r}") for key, value in node.attrs.items()},
            "weights": list(node.weights),
        }
        for node in spec.nodes
    ]
    text = json.dumps(
        {
            "nodes": nodes,
            "inputs": [_encode_tensor(t) for t in spec.inputs],
            "outputs": [_encode_tensor(t) for t in spec.outputs],
            "nested_state": spec.nested_state,
            "source": spec.source,
        },
        allow_nan=False,
    )
    checksums = {"spec": zlib.crc32(text.encode())}
    for name, array in tensors.items():
        code = safetensors.dtype_code(array.dtype)
        checksums[f"tensor {name}"] = _checksum(code, array.shape, safetensors.array_bytes(array))
    return tensors, {"format": FORMAT, "version": str(VERSION), "spec": text, "checksums": json.dumps(checksums)}


def _checksum(code: str, shape: tuple[int, ...], data: memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(f"{code}{list(shape)}".encode()))


def _check_version(version: str) -> None:
    if not (version.isascii() and version.isdigit() and len(version) < 10) or int(version) < 1:
        raise FormatError(f"the version of the file is {short(version)}, expected a number from 1; the file is damaged")
    if int(version) > VERSION:
        raise UnsupportedError(
            f"the file is of version {version}, this fastrnn reads up to {VERSION};"
            " upgrade fastrnn, or save the model again with this one"
        )


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the metadata are not JSON ({type(error).__name__}); the file is damaged") from None
    if not isinstance(value, dict):
        raise FormatError("the metadata are not a JSON object; the file is damaged")
    return value


def _encode(value: Any, where: str) -> Any:
    """An attribute as JSON: tuples become lists, and floats that JSON lacks {"float": "inf"}."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_encode(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value).__name__
    raise UnsupportedError(f"{where} is of type {kind}, which .frnn files do not hold; use numbers, text or tuples")


def _decode(value: Any, depth: int = 0) -> Any:
    """The inverse of ``_encode``; lists become tuples."""
    if isinstance(value, list) and depth < MAX_NESTING:
        return tuple(_decode(item, depth + 1) for item in value)
    if isinstance(value, dict) and list(value) == ["float"] and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _damaged("an attribute has a value of an unknown kind")


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "shape": shape, "dtype": tensor.dtype}


def _spec(value: dict[str, Any]) -> tuple[ModelSpec, set[str]]:
    """The model of a parsed JSON object, with empty arrays for the weights, and the names of its tensors."""
    nodes = [_node(item) for item in _field(value, "nodes", _is_list_of(dict))]
    spec = ModelSpec(
        nodes,
        [_tensor(item) for item in _field(value, "inputs", _is_list_of(dict))],
        [_tensor(item) for item in _field(value, "outputs", _is_list_of(dict))],
        _field(value, "nested_state", _is(bool)),
        _field(value, "source", _is(str)),
    )
    return spec, {f"{node.name}.{key}" for node in nodes for key in node.weights}


def _node(value: dict[str, Any]) -> Node:
    texts = _is_list_of(str)
    node = Node(
        _field(value, "op", _is(str)),
        _field(value, "name", _is(str)),
        tuple(_field(value, "inputs", texts)),
        tuple(_field(value, "outputs", texts)),
        {key: _decode(item) for key, item in _field(value, "attrs", _is(dict)).items()},
        {key: np.empty(0, np.float32) for key in _field(value, "weights", texts)},
    )
    known = OPS[node.op].attrs if node.op in OPS else {}
    for key, item in node.attrs.items():
        if key in known and not _fits(item, known[key]):
            raise _damaged(f"{key!r} of {short(node.name)} is {short(item)}, unlike its default {known[key]!r}")
    return node


def _tensor(value: dict[str, Any]) -> Tensor:
    shape = _field(value, "shape", lambda s: s is None or _is_list_of(int, type(None))(s))
    name, dtype = _field(value, "name", _is(str)), _field(value, "dtype", _is(str))
    return Tensor(name, None if shape is None else tuple(shape), dtype)


def _fits(value: Any, default: Any) -> bool:
    """Whether an attribute is of the kind of its default; whole numbers count layers or axes."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int and 1 <= value <= MAX_LAYERS
    if isinstance(default, str):  # a choice, or an activation: a name or (name, numbers)
        name, *numbers = value if isinstance(value, tuple) and value else (value,)
        return isinstance(name, str) and all(n is None or type(n) in (int, float) for n in numbers)
    return value is None or type(value) in (int, float)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) in kinds for item in value)


def _field(value: dict[str, Any], key: str, good: Callable[[Any], bool]) -> Any:
    if key not in value or not good(value[key]):
        raise _damaged(f"{key!r} is missing or of the wrong kind")
    return value[key]


def _damaged(what: str) -> FormatError:
    return FormatError(f"the spec in the file is damaged: {what}; get a fresh copy of the file")
