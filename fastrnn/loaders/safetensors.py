"""The ``.safetensors`` format: an 8-byte length, a JSON header, and the bytes of the tensors without holes.

Tensors are read when they are asked for (bfloat16 and bool are converted).  Names are PyTorch's, so a model is built by
the same rules as from a state_dict.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..file_writer import write_file
from ..lazy_array import from_file
from ..spec import ModelSpec
from .files import Data, File, TensorFile, name_list, short, view_array
from .limits import MAX_HEADER_SIZE, MAX_NAME_LENGTH, MAX_TENSORS, check_shape
from .state_dict import layer_kinds, spec_from_state_dict

_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
_CODES = {dtype: code for code, (dtype, _) in _DTYPES.items()}
_ALIGNMENT = 64  # of the first tensor; others follow by falling item size, so each is aligned to its own


@dataclass(frozen=True)
class Entry:
    """A tensor of the header: its dtype code, shape and span of bytes after the header."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        name = _DTYPES[self.code][0]
        return np.dtype("float32" if name == "bfloat16" else name)

    def array(self, data: bytes | memoryview) -> np.ndarray:
        """The tensor that these bytes of the span are."""
        return view_array(data, _DTYPES[self.code][0], self.shape, 0)


def load_spec(path: str | os.PathLike[str], *, prefix: str = "", nonlinearity: str | None = None) -> ModelSpec:
    """Load the recurrent layer whose weights a ``.safetensors`` file holds under PyTorch's names.

    ``prefix`` and ``nonlinearity`` are as in ``loaders.torch.from_object``.
    """
    return spec_from_state_dict(open_tensors(path), prefix=prefix, nonlinearity=nonlinearity, source=os.fspath(path))


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a ``.safetensors`` file; bfloat16 is widened to float32."""
    return dict(open_tensors(path))


def open_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Read the header; tensors are read when asked for."""
    file = File(path)
    entries, _, start = read_header(file)

    def read(name: str) -> np.ndarray:
        entry = entries[name]
        return entry.array(file[start + entry.begin : start + entry.end])

    return TensorFile(entries, read)


def supported() -> dict[str, Iterable[str]]:
    """What the format holds, for the table in docs/formats.md."""
    return {"layers": layer_kinds(), "dtypes": (dtype for dtype, _ in _DTYPES.values())}


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a ``.safetensors`` file; the file appears complete or not at all."""
    write_file(path, lambda file: file.writelines(chunks(tensors, metadata)))


def read_header(file: Data) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Return the tensors of a file, its metadata, and where the data begin.

    Raises
    ------
    FormatError
        The header is damaged, or the spans of the tensors overlap, leave holes or do not end with the file.
    UnsupportedError
        Tensors have dtypes that NumPy does not know.
    """
    if len(file) < 8:
        raise _damaged(f"it has {len(file)} bytes, too few for a header")
    (length,) = struct.unpack("<Q", file[:8])
    if length > min(MAX_HEADER_SIZE, len(file) - 8):
        raise _damaged(f"its header claims {length} bytes of the {len(file)}, at most {MAX_HEADER_SIZE} are read")
    text = bytes(file[8 : 8 + length])
    if not text.startswith(b"{"):
        raise _damaged("its header does not start with {")
    header = parse_object(text, "its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise _damaged("its __metadata__ is not a dictionary of text")
    if len(header) > MAX_TENSORS:
        raise _damaged(f"it has {len(header)} tensors, at most {MAX_TENSORS} are read")
    entries = {name: _entry(name, value) for name, value in header.items()}
    unknown = [f"{name}: {entry.code}" for name, entry in entries.items() if entry.code not in _DTYPES]
    if unknown:
        raise UnsupportedError(f"tensors of dtypes that are not read: {name_list(unknown)}; convert them to F32")
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        size = check_shape(entry.shape, f"tensor {short(name)}") * _DTYPES[entry.code][1]
        if entry.begin != position or entry.end - entry.begin != size:
            raise _damaged(
                f"tensor {short(name)} spans bytes {short(entry.begin)} to {short(entry.end)}, expected {position} to"
                f" {short(position + size)} from its shape and the tensors before it"
            )
        position = entry.end
    if position != len(file) - 8 - length:
        raise _damaged(f"its tensors end at byte {short(position)} of {len(file) - 8 - length}")
    return entries, metadata, 8 + length


def chunks(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a file, header first, without a copy of contiguous arrays."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    position = 0
    for name, array in arrays:
        end = position + array.nbytes
        header[name] = {"dtype": dtype_code(array.dtype), "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER_SIZE:
        raise UnsupportedError(
            f"the header would take {len(text)} bytes, at most {MAX_HEADER_SIZE} are read; use shorter names"
        )
    yield struct.pack("<Q", len(text)) + text
    for _, array in arrays:
        yield array_bytes(array)


def array_bytes(array: np.ndarray) -> memoryview:
    """The elements of an array as they are stored: in C order, little-endian."""
    stored = np.ascontiguousarray(from_file(array), array.dtype.newbyteorder("<"))
    return memoryview(stored.reshape(-1).view(np.uint8).data)


def dtype_code(dtype: np.dtype) -> str:
    """The format's name of a NumPy dtype.

    >>> dtype_code(np.dtype("float32"))
    'F32'
    """
    if dtype.name not in _CODES:
        raise UnsupportedError(f"safetensors holds no arrays of {dtype}; convert them to float32")
    return _CODES[dtype.name]


def parse_object(text: bytes | str, what: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no name twice, no NaN and no infinity; ``what`` it is, for errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise _damaged(f"{what} has a name twice")
        return result

    def no_constant(name: str) -> None:
        raise _damaged(f"{what} holds {name}")

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8 and integers of thousands of digits
        raise _damaged(f"{what} is not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise _damaged(f"{what} is not a JSON object")
    return value


def _entry(name: str, value: Any) -> Entry:
    match value:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(value) == 3:
            pass
        case _:
            raise _damaged(f"tensor {short(name)} is not described by dtype, shape and data_offsets")
    if len(name) > MAX_NAME_LENGTH:
        raise _damaged(f"the name {short(name)} has {len(name)} characters")
    return Entry(code, tuple(shape), begin, end)


def _damaged(what: str) -> FormatError:
    return FormatError(f"the safetensors file is damaged: {what}; get a fresh copy of the file")
