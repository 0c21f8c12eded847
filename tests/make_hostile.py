"""Makes the attack files of test_load_hostile.py: one list of (name, bytes, words that the error must hold).

``python tests/make_hostile.py FOLDER`` writes them for a look by hand.  None does harm when it is only parsed; those
that name a command would create a file called ``fastrnn_canary`` in the current folder.
"""

import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile_torch import (
    CANARY,
    Attack,
    call,
    name,
    patched,
    pickle_attacks,
    program,
    storage_attacks,
    text,
    zip_attacks,
)

from fastrnn.loaders import native, safetensors
from fastrnn.spec import ModelSpec, Node, Tensor

WEIGHTS = ("weight_ih_l0", "weight_hh_l0")


def st(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file of any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(dtype: object = "F32", shape: object = (2,), span: object = (0, 8), data: int = 8, **more: object) -> bytes:
    return st({"w": {"dtype": dtype, "shape": shape, "data_offsets": span, **more}}, bytes(data))


def good_spec() -> ModelSpec:
    weights = {"weight_ih_l0": np.ones((4, 3), np.float32), "weight_hh_l0": np.ones((4, 1), np.float32)}
    node = Node("lstm", "a", ("x",), ("y",), {"num_layers": 1}, weights)
    return ModelSpec([node], [Tensor("x", (None, None, 3))], [Tensor("y", (None, None, 1))])


def frnn(
    change: dict | None = None, spec: dict | None = None, node: dict | None = None, **tensors: np.ndarray
) -> bytes:
    """A .frnn file with right checksums whose metadata, spec or first node are changed."""
    arrays, metadata = native._describe(good_spec())
    parsed = json.loads(metadata["spec"]) | (spec or {})
    parsed["nodes"] = [parsed["nodes"][0] | node] if node is not None else parsed["nodes"]
    metadata["spec"] = json.dumps(parsed)
    checksums = json.loads(metadata["checksums"]) | {"spec": zlib.crc32(metadata["spec"].encode())}
    for key, array in tensors.items():
        checksums[f"tensor {key}"] = zlib.crc32(array.tobytes(), zlib.crc32(f"F32{list(array.shape)}".encode()))
    metadata |= {"checksums": json.dumps(checksums)} | (change or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return b"".join(safetensors.chunks(arrays | tensors, metadata))


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


def native_attacks() -> Iterator[Attack]:
    nested: list = []
    for _ in range(100):
        nested = [nested]
    extra = np.zeros(2, np.float32)
    good = frnn()
    begin = good.index(b'"format"')
    yield from (
        Attack(f"frnn_{label}.frnn", data, words)
        for label, (data, words) in {
            "newer": (frnn({"version": "2"}), "version 2.*reads up to 1"),
            "newest": (frnn({"version": "999999999"}), "upgrade"),
            "version_0": (frnn({"version": "0"}), "version of the file is '0'"),
            "version_text": (frnn({"version": "one"}), "version of the file is 'one'"),
            "version_long": (frnn({"version": "1" * 100_000}), "version of the file"),
            "version_missing": (frnn({"version": None}), "version of the file is ''"),
            "tensor_bit": (patched(good, (len(good) - 1, b"\x01")), "checksums do not match: 'tensor a.weight_hh_l0'"),
            "spec_bit": (good.replace(rb'\"nested_state\": false', rb'\"nested_state\": true '), "the spec itself"),
            "shape_bit": (good.replace(b"[4,3]", b"[3,4]"), "checksums do not match: 'tensor a.weight_ih_l0'"),
            "no_checksums": (frnn({"checksums": None}), "not JSON"),
            "checksums_list": (frnn({"checksums": "[]"}), "not a JSON object"),
            "checksums_empty": (frnn({"checksums": "{}"}), "'the spec itself'"),
            "no_spec": (frnn({"spec": None}), "the spec itself"),
            "extra_tensor": (frnn(**{"a.b": extra}), "tensors of no layer: 'a.b'"),
            "missing_tensor": (frnn(node={"weights": [*WEIGHTS, "bias_ih_l0"]}), "without a tensor: 'a.bias_ih_l0'"),
            "unused_tensor": (frnn(node={"weights": ["weight_ih_l0"]}), "tensors of no layer: 'a.weight_hh_l0'"),
            "nodes": (frnn(spec={"nodes": {}}), "'nodes' is missing or of the wrong kind"),
            "node_text": (frnn(spec={"nodes": ["a"]}), "'nodes' is missing"),
            "inputs": (frnn(spec={"inputs": None}), "'inputs' is missing"),
            "tensor_shape": (frnn(spec={"inputs": [{"name": "x", "shape": ["a"]}]}), "'shape' is missing"),
            "nested_state": (frnn(spec={"nested_state": 1}), "'nested_state' is missing"),
            "op": (frnn(node={"op": "lambda"}), "unknown kind of layer"),
            "op_number": (frnn(node={"op": 1}), "'op' is missing"),
            "name": (frnn(node={"name": ["a"]}), "'name' is missing"),
            "cycle": (frnn(node={"inputs": ["y"]}), "reads tensor 'y'"),
            "attribute": (frnn(node={"attrs": {"code": "import os"}}), "unknown attribute 'code'"),
            "attribute_dict": (frnn(node={"attrs": {"clip": {"a": 1}}}), "unknown kind"),
            "attribute_deep": (frnn(node={"attrs": {"clip": nested}}), "unknown kind"),
            "attribute_text": (frnn(node={"attrs": {"clip": "1"}}), "'clip' of 'a' is '1'"),
            "layers_text": (frnn(node={"attrs": {"num_layers": "1"}}), "'num_layers' of 'a' is '1'"),
            "layers_huge": (frnn(node={"attrs": {"num_layers": 1 << 40}}), "'num_layers' of 'a'"),
            "layers_0": (frnn(node={"attrs": {"num_layers": 0}}), "'num_layers' of 'a'"),
            "layers_bool": (frnn(node={"attrs": {"num_layers": True}}), "'num_layers' of 'a'"),
            "layers_many": (frnn(node={"attrs": {"num_layers": 2}}), "weight 'weight_hh_l1' is missing"),
            "direction": (frnn(node={"attrs": {"direction": 1}}), "'direction' of 'a' is 1"),
            "activation": (frnn(node={"attrs": {"gate_activation": ["a", "b"]}}), "'gate_activation' of 'a'"),
            "batch_first": (frnn(node={"attrs": {"batch_first": "no"}}), "'batch_first' of 'a'"),
            "cut": (good[:-3], "end at byte"),
            "garbled": (patched(good, (begin, b"\x00\x00")), "not JSON"),
        }.items()
    )  # fmt: skip


def other_attacks() -> Iterator[Attack]:
    yield Attack("empty.pt", b"", "is empty")
    yield Attack("text.pt", b"hello", "truncated")
    yield Attack("bare.pt", program(call(name("os", "system"), text(f"touch {CANARY}"))), "bare pickle")
    yield Attack("legacy.pt", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"x" * 100, "before PyTorch 1.6")
    yield Attack("unknown.bin", b"\x7fELF" + bytes(100), "no known format")
    yield Attack("model.onnx", b"\x08\x07\x12\x07pytorch" + bytes(50), "does not read ONNX yet")
    yield Attack("plain.frnn", st({}), "not of the format|no tensors")


def attacks() -> list[Attack]:
    """All attack files."""
    groups = (zip_attacks, pickle_attacks, storage_attacks, safetensors_attacks, native_attacks, other_attacks)
    return [attack for group in groups for attack in group()]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for attack in attacks():
        (folder / attack.name).write_bytes(attack.data)
    print(f"{len(attacks())} files in {folder}")


if __name__ == "__main__":
    main()
