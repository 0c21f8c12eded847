"""States of a live sequence as bytes: a small safetensors file whose metadata are

format     "fastrnn-state"
version    "1"
checksum   crc32 of the names, dtypes, shapes and elements
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from . import safetensors
from .files import short

FORMAT, VERSION = "fastrnn-state", "1"


def state_to_bytes(states: Mapping[str, np.ndarray]) -> bytes:
    """States by name as bytes."""
    metadata = {"format": FORMAT, "version": VERSION, "checksum": str(_checksum(states))}
    return b"".join(safetensors.chunks(states, metadata))


def state_from_bytes(data: bytes, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The states in ``data``, which must have the names, shapes and dtypes of ``expected``.

    Raises
    ------
    FormatError
        The bytes are damaged, of a newer version, or of another network.
    """
    file = memoryview(data)
    try:
        entries, metadata, start = safetensors.read_header(file)
    except UnsupportedError as error:
        raise FormatError(f"these bytes are not a saved state, or are damaged: {error}") from None
    if metadata.get("format") != FORMAT:
        raise FormatError("these bytes are not a saved state; Stream.save() and Pool.export() make them")
    if metadata.get("version") != VERSION:
        raise FormatError(
            f"the state has version {short(metadata.get('version'))}, this fastrnn reads {VERSION}; update fastrnn"
        )
    found = {name: entry.array(file[start + entry.begin : start + entry.end]) for name, entry in entries.items()}
    if metadata.get("checksum") != str(_checksum(found)):
        raise FormatError("the checksum of the state does not match; the bytes are damaged")
    if _kinds(found) != _kinds(expected):
        raise FormatError(f"the state is of another network: {_text(found)}; expected {_text(expected)}")
    return found


def _checksum(states: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(states):
        array = states[name]
        total = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), total)
        total = zlib.crc32(safetensors.array_bytes(array), total)
    return total


def _kinds(states: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in states.items()}


def _text(states: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{short(name)} {array.dtype} {array.shape}" for name, array in states.items())
