"""Ways to damage a model file: its bytes, or what they mean, with the checksums made right."""

import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastrnn.loaders import safetensors

OPCODES = [
    b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"K\x00", b"X\x00\x00\x00\x00", b"N", b"\x88", b"]",
    b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"Q", b"b", b"s", b"u", b"e", b"a", b"h\x00",
    b"cos\nsystem\n",
]  # fmt: skip
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
VALUES = [None, 0, -1, 1.5, "x", "", [], {}, True, [[]], 10**15, 2**63 - 1, -(2**63), 1e300, "lstm", [1, 1], [0]]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a file in one to eight places: bits, numbers, pieces moved, repeated, dropped; headers more than data."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not result:
            break
        at = rng.randrange(len(result) if rng.random() < 0.5 else min(len(result), 2048))
        kind = rng.randrange(8)
        if kind == 0:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at] = rng.randrange(256)
        elif kind == 2:
            layout = rng.choice("BHIQ")
            number = struct.pack("<" + layout, rng.choice(INTERESTING) % (1 << 8 * struct.calcsize(layout)))
            result[at : at + len(number)] = number
        elif kind == 3:
            del result[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            piece = result[at : at + rng.randrange(1, 64)]
            result[at:at] = piece * rng.choice((1, 2, 100))
        elif kind == 5:
            del result[at:]
        elif kind == 6:
            digits = [k for k, byte in enumerate(result[:4096]) if chr(byte).isdigit()]
            if digits:
                result[rng.choice(digits)] = ord(rng.choice('0123456789-.e"[{'))
        else:
            source = rng.randrange(len(result))
            piece = result[source : source + rng.randrange(1, 64)]
            result[at : at + len(piece)] = piece
    return bytes(result)


def mutate_member(data: bytes, rng: random.Random) -> bytes:
    """Change one member of a zip file and write the archive anew, so that its checksums are right."""
    buffer = io.BytesIO()
    structured = rng.random() < 0.7
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        names = source.namelist()
        chosen = rng.choice([n for n in names if n.endswith((".pkl", ".json", ".h5"))] or names)
        for name in names:
            contents = source.read(name)
            if name == chosen:
                contents = (STRUCTURED.get(Path(name).suffix, mutate) if structured else mutate)(contents, rng)
            target.writestr(name, contents)
    return buffer.getvalue()


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Move, repeat, drop and swap whole opcodes, which keeps more of a pickle alive than changing its bytes."""
    positions = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    opcodes = [data[start:end] for start, end in pairwise(positions)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(1, len(opcodes)), rng.randrange(1, len(opcodes))
        kind = rng.randrange(4)
        if kind == 0 and len(opcodes) > 2:
            del opcodes[at]
        elif kind == 1:
            opcodes.insert(at, opcodes[other])
        elif kind == 2:
            opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
        else:
            opcodes[at] = rng.choice(OPCODES)
    return b"".join(opcodes)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, repeat, move and drop values of a JSON text."""
    root = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = json_places(root)
        place, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            place[key] = deepcopy(rng.choice(VALUES))
        elif kind == 1:
            other, source = rng.choice(places)
            place[key] = deepcopy(other[source])  # its own, or it might hold itself
        elif kind == 2 and place is not root:
            del place[key]
        elif isinstance(place[key], list) and place[key]:
            place[key].extend(deepcopy(place[key]) * rng.choice((1, 2, 20)))
        elif isinstance(place[key], (int, float)):
            place[key] = rng.choice((place[key] + 1, place[key] - 1, -place[key], place[key] * 2, 1 << 40))
    return json.dumps(root[0]).encode()


def json_places(root: list) -> list[tuple[Any, Any]]:
    """Every value as the container that holds it and its key or index."""
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            places += [(item, key) for key in (item if isinstance(item, dict) else range(len(item)))]
            waiting += item.values() if isinstance(item, dict) else item
    return places


def mutate_native(data: bytes, rng: random.Random) -> bytes:
    """Change the spec of a .frnn file and make its checksum right."""
    entries, metadata, start = safetensors.read_header(memoryview(data))
    old = zlib.crc32(metadata["spec"].encode())
    change = mutate if rng.random() < 0.3 else mutate_json
    metadata["spec"] = change(metadata["spec"].encode(), rng).decode("latin-1")
    new = zlib.crc32(metadata["spec"].encode())
    metadata["checksums"] = metadata["checksums"].replace(str(old), str(new))
    tensors = {name: entry.array(data[start + entry.begin : start + entry.end]) for name, entry in entries.items()}
    return b"".join(safetensors.chunks(tensors, metadata))


def mutate_proto(data: bytes, rng: random.Random) -> bytes:
    """Change fields of an ONNX model: numbers, texts and bytes anew, messages repeated, swapped and dropped."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        messages = all_messages(model)
        message = rng.choice(messages)
        names = [descriptor.name for descriptor, _ in message.ListFields()]
        if not names:
            continue
        name = rng.choice(names)
        value = getattr(message, name)
        if isinstance(value, (int, float, str, bytes)):
            with suppress(ValueError):  # an enumeration takes only its own numbers
                setattr(message, name, changed_scalar(value, messages, rng))
        elif hasattr(value, "append") and len(value):
            at, other = rng.randrange(len(value)), rng.randrange(len(value))
            kind = rng.randrange(4)
            if kind == 0:
                del value[at]
            elif kind == 1:
                value.append(value[other])
            elif isinstance(value[at], (int, float, str, bytes)):
                value[at] = changed_scalar(value[at], messages, rng)
            elif at != other:
                kept = type(value[at])()
                kept.CopyFrom(value[at])
                value[at].CopyFrom(value[other])
                value[other].CopyFrom(kept)
        elif rng.random() < 0.3:
            message.ClearField(name)
    return model.SerializeToString()


def all_messages(root: Any) -> list[Any]:
    """A message and all within it."""
    found, waiting = [], [root]
    while waiting:
        message = waiting.pop()
        found.append(message)
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else value
    return found


def changed_scalar(value: Any, messages: list[Any], rng: random.Random) -> Any:
    """Another value of the same type: an extreme one, one nearby, or one that another place has."""
    if isinstance(value, bytes):
        return mutate(value, rng)
    if isinstance(value, str):
        fields = [getattr(message, name, "") for message in messages for name in ("name", "op_type", "key", "value")]
        texts = [text for text in fields if isinstance(text, str)]
        return rng.choice([*texts, value + "x", "", "../weights.bin", "/etc/passwd", "weights.bin"])
    nearby = [value + 1, value - 1, -value, 0, 1, 2, 7]
    extreme = [2**31 - 1, -(2**31)] if abs(value) < 2**31 else [2**63 - 1]
    return type(value)(rng.choice([*nearby, *extreme]))


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".pkl": mutate_pickle,
    ".json": mutate_json,
    ".frnn": mutate_native,
    ".onnx": mutate_proto,
    ".keras": mutate_member,
    ".pt": mutate_member,
    ".jit": mutate_member,
}
"""What knows the meaning of a file, or of a member of an archive, by its suffix."""
