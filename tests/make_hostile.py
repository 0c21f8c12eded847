"""Makes the attack files of test_load_hostile.py: one list of (name, bytes, words that the error must hold).

``python tests/make_hostile.py FOLDER`` writes them for a look by hand.  None does harm when it is only parsed; those
that name a command would create a file called ``fastrnn_canary`` in the current folder.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile_native import native_attacks
from hostile_script import script_attacks
from hostile_torch import (
    CANARY,
    Attack,
    call,
    name,
    pickle_attacks,
    program,
    storage_attacks,
    text,
    zip_attacks,
)


def st(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file of any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(dtype: object = "F32", shape: object = (2,), span: object = (0, 8), data: int = 8, **more: object) -> bytes:
    return st({"w": {"dtype": dtype, "shape": shape, "data_offsets": span, **more}}, bytes(data))


def safetensors_attacks() -> Iterator[Attack]:
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    deep = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    yield from (
        Attack(f"st_{label}.safetensors", data, words)
        for label, (data, words) in {
            "short": (b"\x01\x00\x00", "too few"),
            "length": (st({}, length=1 << 20), "its header claims 1048576 bytes"),
            "length_64": (st({}, length=(1 << 64) - 1), "its header claims"),
            "length_wraps": (st({}, length=(1 << 64) - 8), "its header claims"),
            "length_0": (st(b"") + b"{}", "does not start with {"),
            "list": (st([]), "does not start with {"),
            "space": (st(b' {"__metadata__":{}}'), "does not start with {"),
            "bom": (st(b"\xef\xbb\xbf{}"), "does not start with {"),
            "json": (st(b'{"a":'), "not JSON"),
            "utf8": (st(b'{"\xff":1}'), "not JSON"),
            "deep": (st(deep), "RecursionError"),
            "digits": (st(b'{"a":' + b"9" * 100_000 + b"}"), "not JSON|not described"),
            "nan": (st(b'{"a":NaN}'), "holds NaN"),
            "same_name": (st(b'{"a":1,"a":2}'), "a name twice"),
            "same_field": (st(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "a name twice"),
            "same_metadata": (st(b'{"__metadata__":{},"__metadata__":{}}'), "a name twice"),
            "metadata_number": (st({"__metadata__": {"a": 1}}), "not a dictionary of text"),
            "metadata_text": (st({"__metadata__": "a"}), "not a dictionary of text"),
            "entry_number": (st({"w": 1}), "not described by"),
            "missing_field": (st({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "not described by"),
            "extra_field": (one(more=1), "not described by"),
            "dtype_unknown": (one("F8_E4M3"), "w: F8_E4M3"),
            "dtype_number": (one(4), "not described by"),
            "shape_text": (one(shape="2"), "not described by"),
            "shape_negative": (one(shape=[-2, -1]), "integers >= 0"),
            "shape_float": (one(shape=[2.0]), "integers >= 0"),
            "shape_bool": (one(shape=[True, 2]), "integers >= 0"),
            "shape_wraps": (one(shape=[1 << 32, 1 << 32], span=(0, 0), data=0), "expected 0 to"),
            "shape_huge": (one(shape=[1 << 600], span=(0, 0), data=0), "an integer of"),
            "shape_large": (one(shape=[3]), "spans bytes 0 to 8, expected 0 to 12"),
            "shape_rank": (one(shape=[1] * 1000), "at most 8"),
            "shape_empty": (one(shape=[0, 1 << 62], span=(0, 0), data=0), "empty tensor"),
            "span_late": (one(span=(8, 16), data=16), "expected 0 to 8"),
            "span_long": (one(span=(0, 16)), "expected 0 to 8"),
            "span_reversed": (one(span=(8, 0)), "expected 0 to 8"),
            "span_negative": (one(span=(-8, 0)), "expected 0 to 8|not described by"),
            "span_three": (one(span=(0, 8, 8)), "not described by"),
            "span_float": (one(span=(0.0, 8.0)), "not described by"),
            "span_huge": (one(span=(1 << 600, 1 << 601)), "an integer of"),
            "span_past_end": (one(data=4), "end at byte 8 of 4"),
            "trailing": (one(data=9), "end at byte 8 of 9"),
            "overlap": (st({"a": good, "b": good}, bytes(8)), "expected 8 to 16"),
            "hole": (st({"a": good, "b": good | {"data_offsets": [16, 24]}}, bytes(24)), "expected 8 to 16"),
            "odd_bfloat16": (one("BF16", span=(0, 3), data=3), "expected 0 to 4"),
            "long_name": (st({"w" * 1000: good}, bytes(8)), "1000 characters"),
            "many": (st({str(k): good | {"shape": [0], "data_offsets": [0, 0]} for k in range(66_000)}), "at most"),
            "surrogate": (st(b'{"\\ud800":1}'), "not described by"),
        }.items()
    )


def other_attacks() -> Iterator[Attack]:
    yield Attack("empty.pt", b"", "is empty")
    yield Attack("text.pt", b"hello", "truncated")
    yield Attack("bare.pt", program(call(name("os", "system"), text(f"touch {CANARY}"))), "bare pickle")
    yield Attack("legacy.pt", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"x" * 100, "before PyTorch 1.6")
    yield Attack("unknown.bin", b"\x7fELF" + bytes(100), "no known format")
    yield Attack("model.onnx", b"\x08\x07\x12\x07pytorch" + bytes(50), "not an ONNX model, or damaged")
    yield Attack("model.ort", b"\x18\x00\x00\x00ORTM" + bytes(50), "ONNX Runtime's own format")
    yield Attack("plain.frnn", st({}), "not of the format|no tensors")


def attacks() -> list[Attack]:
    """All attack files."""
    groups = (
        zip_attacks,
        pickle_attacks,
        storage_attacks,
        script_attacks,
        safetensors_attacks,
        native_attacks,
        other_attacks,
    )
    return [attack for group in groups for attack in group()]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for attack in attacks():
        (folder / attack.name).write_bytes(attack.data)
    print(f"{len(attacks())} files in {folder}")


if __name__ == "__main__":
    main()
