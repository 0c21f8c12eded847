"""The fields of an ONNX file, walked where they lie: what protobuf would refuse is refused before it is copied."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import FormatError
from .files import Data
from .limits import MAX_FIELDS, MIB


@dataclass
class _Message:
    """Which fields of a message are messages in turn, by their numbers."""

    inner: dict[int, _Message] = field(default_factory=dict)


_LEAF = _Message()  # tensors and types: mostly bytes
_GRAPH, _NODE = _Message(), _Message()
_GRAPH.inner = {1: _NODE, 5: _LEAF, 11: _LEAF, 12: _LEAF, 13: _LEAF, 15: _LEAF}
_NODE.inner = {5: _Message({5: _LEAF, 6: _GRAPH, 10: _LEAF, 11: _GRAPH})}
_MODEL = _Message({7: _GRAPH, 25: _Message({7: _NODE})})

_SIZES = {1: 8, 5: 4}  # of the wire types that have one
_PART = 4096
_LARGE = MIB  # a message from which looking inside is cheaper than copying it


class _Bytes:
    """Single bytes of a file, read some at a time."""

    def __init__(self, data: Data) -> None:
        self._data, self._first, self._part = data, 0, b""

    def __getitem__(self, at: int) -> int:
        if not 0 <= at - self._first < len(self._part):
            self._first, self._part = at, bytes(self._data[at : at + _PART])
        return self._part[at - self._first]


def check_fields(data: Data) -> None:
    """Walk the fields of a ModelProto and of all large messages in it.

    Raises
    ------
    FormatError
        It is none, or has more fields than any model.
    """
    count, waiting = 0, [(_MODEL, 0, len(data))]
    file = _Bytes(data)
    while waiting:
        message, at, end = waiting.pop()
        while at < end:
            count += 1
            if count > MAX_FIELDS:
                raise FormatError(f"more than {MAX_FIELDS} fields; the file is damaged")
            tag, at = _number(file, at, end)
            kind, number = tag & 7, tag >> 3
            if not number:
                raise _damaged(at)
            if kind == 0:
                _, at = _number(file, at, end)
                continue
            if kind == 2:
                size, at = _number(file, at, end)
            else:
                size = _SIZES.get(kind, -1)
            if size < 0 or size > end - at:
                raise _damaged(at)
            inner = message.inner.get(number) if kind == 2 else None
            if inner is not None and (size >= _LARGE or inner is _GRAPH):
                waiting.append((inner, at, at + size))
            at += size


def _number(data: _Bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise _damaged(at)


def _damaged(at: int) -> FormatError:
    return FormatError(f"not an ONNX model, or damaged: no field begins at byte {at}; get a fresh copy of the file")
