"""States of a live sequence as bytes: a small safetensors file whose metadata are

format     "fastrnn-state"
version    "2"
graph      fingerprint of the graph of the network, with the dtype that it computes in
network    fingerprint of the graph and the weights
checksum   crc32 of version, graph and network, and of the names, dtypes, shapes and elements

Version 1 had no fingerprints.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..fingerprint import Fingerprint
from . import safetensors
from .files import short

FORMAT, VERSION = "fastrnn-state", "2"


def state_to_bytes(states: Mapping[str, np.ndarray], fingerprint: Fingerprint) -> bytes:
    """States by name as bytes."""
    origin = {"version": VERSION, "graph": fingerprint.graph, "network": fingerprint.network}
    metadata = {"format": FORMAT, **origin, "checksum": str(_checksum(states, origin))}
    return b"".join(safetensors.chunks(states, metadata))


def state_from_bytes(
    data: bytes, expected: Mapping[str, np.ndarray], fingerprint: Fingerprint, any_weights: bool = False
) -> dict[str, np.ndarray]:
    """The states in ``data``, which must have the shapes and dtypes of ``expected``, and the network's fingerprint.

    With ``any_weights`` they may be of a network with the same graph and other weights, or of version 1.

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
    version = metadata.get("version")
    if version not in ("1", VERSION):
        raise FormatError(f"the state has version {short(version)}, this fastrnn reads 1 to {VERSION}; update fastrnn")
    found = {name: entry.array(file[start + entry.begin : start + entry.end]) for name, entry in entries.items()}
    origin = {key: metadata.get(key, "") for key in ("version", "graph", "network")} if version == VERSION else {}
    if metadata.get("checksum") != str(_checksum(found, origin)):
        raise FormatError("the checksum of the state does not match; the bytes are damaged")
    if origin.get("graph") == fingerprint.graph:
        found = _renamed(found, expected)
    if _kinds(found) != _kinds(expected):
        raise FormatError(f"the state is of another network: {_text(found)}; expected {_text(expected)}")
    if not origin:
        if not any_weights:
            raise FormatError(
                "the state is of version 1, which does not say of which network it is; where you know that it is of"
                " this one, restore it with any_weights=True"
            )
    elif origin["graph"] != fingerprint.graph:
        raise FormatError(
            "the state is of another network: its shapes are the same, its graph, constants= or states= are not;"
            " restore it where they are as they were when it was saved"
        )
    elif origin["network"] != fingerprint.network and not any_weights:
        raise FormatError(
            "the state is of another network: its graph is the same, its weights are not; restore it into the network"
            " that it was saved from, or with any_weights=True into one that was trained further"
        )
    return found


def _renamed(found: dict[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """States of a network whose nodes have other names, in the same order; a file has large elements first."""
    names = sorted(expected, key=lambda name: -expected[name].itemsize)
    return dict(zip(names, found.values())) if len(found) == len(names) and set(found) != set(names) else found


def _checksum(states: Mapping[str, np.ndarray], origin: Mapping[str, str]) -> int:
    total = zlib.crc32("".join(f"{key} {text} " for key, text in origin.items()).encode("utf-8", "surrogatepass"))
    for name in sorted(states):
        array = states[name]
        total = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), total)
        total = zlib.crc32(safetensors.array_bytes(array), total)
    return total


def _kinds(states: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in states.items()}


def _text(states: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{short(name)} {array.dtype} {array.shape}" for name, array in states.items())
