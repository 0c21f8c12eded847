"""Bytes of an ONNX file -> ModelProto and arrays, all checked against what is there before memory is taken.

The onnx package is used for its protobuf classes alone.  External data are opened by us: regular files in the folder
of the model or below it, reached without a symbolic link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arguments import advice, described
from ..errors import FormatError, UnsupportedError
from .files import Data, File, need, short, view_array
from .limits import MAX_NAME_LENGTH, MAX_NESTING, MAX_PROTO, MAX_SHARING, MAX_TENSORS, check_shape
from .onnx_wire import check_fields

Source = Any  # a path, bytes or a ModelProto

_TYPES = {
    # TensorProto.DataType: name, bytes an element, the field that holds it where raw_data does not
    1: ("float32", 4, "float_data"), 2: ("uint8", 1, "int32_data"), 3: ("int8", 1, "int32_data"),
    4: ("uint16", 2, "int32_data"), 5: ("int16", 2, "int32_data"), 6: ("int32", 4, "int32_data"),
    7: ("int64", 8, "int64_data"), 9: ("bool", 1, "int32_data"), 10: ("float16", 2, "int32_data"),
    11: ("float64", 8, "double_data"), 12: ("uint32", 4, "uint64_data"), 13: ("uint64", 8, "uint64_data"),
    16: ("bfloat16", 2, "int32_data"),
}  # fmt: skip
_FIELDS = {
    "float_data": "float32", "int32_data": "int32", "int64_data": "int64", "double_data": "float64",
    "uint64_data": "uint64",
}  # fmt: skip
_STORED = {"bfloat16": "uint16", "float16": "uint16"}  # bits of these stand in int32_data

OTHER_TYPES = {
    8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2",
    20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip


def dtype_name(code: int) -> str | None:
    """Our dtype of a ``TensorProto.DataType``: every floating-point one is float32; None for those we do not have.

    >>> dtype_name(11), dtype_name(7), dtype_name(8)
    ('float32', 'int64', None)
    """
    name = _TYPES.get(code, (None,))[0]
    return "float32" if name and "float" in name else name


class OnnxFile:
    """A parsed model and the folder of its external data (None: there is none)."""

    def __init__(self, source: Source):
        try:
            import onnx
        except ImportError:
            raise need("onnx", "onnx") from None
        self.folder: str | None = None
        if isinstance(source, onnx.ModelProto):
            self.model, self.size = source, source.ByteSize()
        else:
            if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
                raise UnsupportedError(
                    "expected the path or the bytes of an ONNX file, or a ModelProto, got"
                    f" {described(source)}{advice(source)}"
                )
            if isinstance(source, (bytes, bytearray, memoryview)):
                data: Data = memoryview(source).cast("B")
            else:
                data = File(source)
                self.folder = os.path.dirname(os.path.abspath(source))  # noqa: PTH100, PTH120
            self.size = len(data)
            if self.size > MAX_PROTO:
                raise FormatError(f"it has {self.size} bytes, protobuf reads at most {MAX_PROTO}; use external data")
            check_fields(data)
            try:
                self.model = onnx.ModelProto.FromString(bytes(data[:]))
            except Exception as error:  # of protobuf, whichever implementation it has
                raise FormatError(
                    f"not an ONNX model, or damaged: protobuf says {short(str(error))}; get a fresh copy of the file"
                ) from None
        if not self.model.HasField("graph"):
            raise FormatError("not an ONNX model, or damaged: it has no graph; get a fresh copy of the file")
        self.opsets = opset_versions(self.model.opset_import)
        self._external: dict[str, Data] = {}
        self._room = MAX_SHARING * self.size

    def array(self, proto: Any, where: str) -> np.ndarray:
        """The elements of a TensorProto in their own dtype; bfloat16 is widened to float32.

        Raises
        ------
        FormatError
            Shape, dtype and data do not agree, or the data are not where they may be.
        UnsupportedError
            It holds strings, complex or numbers below 8 bits.
        """
        if proto.data_type not in _TYPES:
            name = OTHER_TYPES.get(proto.data_type)
            if name is None:
                raise FormatError(f"{where}: its data type {proto.data_type} is unknown; the file is damaged")
            raise UnsupportedError(f"{where}: holds {name}, which is not read; convert it to float32")
        if proto.HasField("segment"):
            raise UnsupportedError(f"{where}: is stored in segments, which are not read; save the model again")
        dtype, itemsize, field = _TYPES[proto.data_type]
        shape = tuple(proto.dims)
        count = check_shape(shape, where)
        if proto.data_location == 1:
            data = self._external_data(proto, count * itemsize, where)
        elif proto.HasField("raw_data"):
            data = proto.raw_data
        else:
            values = getattr(proto, field)
            if len(values) != count or any(len(getattr(proto, other)) for other in _FIELDS if other != field):
                raise FormatError(f"{where}: {len(values)} elements for the shape {shape}; the file is damaged")
            wide = np.array(values, _FIELDS[field])
            array = wide.astype(_STORED.get(dtype, dtype)).reshape(shape)
            if array.dtype.kind != "f" and (array.reshape(-1) != wide).any():
                raise FormatError(f"{where}: elements that no {dtype} holds; the file is damaged")
            return view_array(memoryview(array.tobytes()), dtype, shape, 0) if dtype in _STORED else array
        if len(data) != count * itemsize:
            raise FormatError(
                f"{where}: {len(data)} bytes of data, expected {count * itemsize} for {dtype} of shape {shape};"
                " the file is damaged"
            )
        return view_array(data, dtype, shape, 0)

    def _external_data(self, proto: Any, size: int, where: str) -> bytes | memoryview:
        entries = {entry.key: entry.value for entry in proto.external_data}
        unknown = set(entries) - {"location", "offset", "length", "checksum", "basepath"}
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError:
            offset = -1
        location = entries.get("location")
        if unknown or not isinstance(location, str) or offset < 0 or length < 0:  # bytes: it is not UTF-8
            raise FormatError(f"{where}: its entry for external data is damaged")
        if self.folder is None:
            raise FormatError(
                f"{where}: its data are in the file {short(location)}, and a model from bytes has no folder;"
                " load it from its path"
            )
        if location not in self._external:
            self._external[location] = open_external(self.folder, location, where)
            self._room += MAX_SHARING * len(self._external[location])
        data = self._external[location]
        if length != size or offset + length > len(data):
            raise FormatError(
                f"{where}: bytes {offset} to {offset + length} of {short(location)}, which has {len(data)}; its shape"
                f" needs {size}; the files do not belong together"
            )
        self._room -= size
        if self._room < 0:
            raise FormatError(f"{where}: the tensors take more than {MAX_SHARING} times the files; they are damaged")
        return data[offset : offset + length]


def opset_versions(imports: Any) -> dict[str, int]:
    """Version of each domain's operators; the standard domain is ""."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}


def open_external(folder: str, location: str, where: str) -> Data:
    """A file of external data; it must be a regular file inside of ``folder`` with one name and no link on its way.

    Raises
    ------
    FormatError
        It is something else, or not there.
    """
    parts = location.replace("\\", "/").split("/")
    while parts and parts[0] == ".":
        del parts[0]
    if not parts or any(part in ("", ".", "..") for part in parts) or "\0" in location or ":" in parts[0]:
        raise FormatError(
            f"{where}: external data at {short(location)}, expected a relative path inside of the model's folder;"
            " the file may be hostile"
        )
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for k, part in enumerate(parts):
            kind = os.O_DIRECTORY if k < len(parts) - 1 else os.O_NONBLOCK
            try:
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=handle)
            except OSError as error:
                raise FormatError(
                    f"{where}: external data at {short(location)} cannot be opened ({error.strerror}); put the file"
                    " beside the model, not a symbolic link to it"
                ) from None
            os.close(handle)
            handle = inner
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise FormatError(
                f"{where}: external data at {short(location)} are no regular file of their own (a hard link, a"
                " folder, a device); put a copy of the file beside the model"
            )
        if status.st_size == 0:
            return b""
        return File.of_handle(os.dup(handle), location)
    finally:
        os.close(handle)


def all_graphs(model: Any) -> Iterator[Any]:
    """The graph and the bodies in it, functions included; as deep as ``MAX_NESTING``."""
    waiting = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while waiting:
        graph, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise FormatError(f"bodies inside of bodies, more than {MAX_NESTING} deep; the file is damaged")
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append((attribute.g, depth + 1))
                waiting.extend((body, depth + 1) for body in attribute.graphs)


def load_tensors(source: Source) -> dict[str, np.ndarray]:
    """All initializers and constants of a model by name, those in bodies included; bfloat16 is widened to float32.

    A name that stands in several bodies gets ``@1``, ``@2``, ... the second time.
    """
    file = OnnxFile(source)
    arrays: dict[str, np.ndarray] = {}
    for graph in all_graphs(file.model):
        protos = [(proto.name, proto) for proto in getattr(graph, "initializer", ())]
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                protos += [(node.output[0], a.t) for a in node.attribute if a.HasField("t")]
        for name, proto in protos:
            unique, k = name, 1
            while unique in arrays:
                unique, k = f"{name}@{k}", k + 1
            if len(arrays) >= MAX_TENSORS or len(unique) > MAX_NAME_LENGTH:
                raise FormatError(f"more than {MAX_TENSORS} tensors or {MAX_NAME_LENGTH} characters in {short(name)}")
            arrays[unique] = file.array(proto, f"tensor {short(name)}")
    return arrays
