"""Makes the attack files of test_load_hostile.py: one list of (name, bytes, words that the error must hold).

``python tests/make_hostile.py FOLDER`` writes them for a look by hand.  None does harm when it is only parsed; those
that name a command would create a file called ``CANARY`` in the current folder.
"""

import io
import json
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

CANARY = "fastrnn_canary"
ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from fastrnn.loaders import native, safetensors  # noqa: E402
from fastrnn.loaders.limits import MAX_PICKLE_STEPS  # noqa: E402
from fastrnn.spec import ModelSpec, Node, Tensor  # noqa: E402


class Attack(NamedTuple):
    """A file, and a regular expression that its error must match."""

    name: str
    data: bytes
    error: str


# A pickle assembler: each function gives the opcodes that push one value.


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def ints(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def program(*body: bytes) -> bytes:
    return b"\x80\x02" + b"".join(body) + b"."


def storage(count: int = 12, key: str = "0", dtype: str = "FloatStorage", module: str = "torch") -> bytes:
    return tuple_of(text("storage"), name(module, dtype), text(key), text("cpu"), number(count)) + b"Q"


ORDERED = call(name("collections", "OrderedDict"))
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def tensor(
    offset: bytes = number(0),
    size: bytes = ints(4, 3),
    stride: bytes = ints(3, 1),
    held: bytes = b"",
    more: bytes = b"",
) -> bytes:
    return call(REBUILD, held or storage(), offset, size, stride, b"\x89", ORDERED, *([more] if more else []))


def state(*items: tuple[str, bytes]) -> bytes:
    return program(b"}(", *(text(key) + value for key, value in items), b"u")


def pt(pickle: bytes, members: dict[str, bytes] | None = None, **changes: bytes) -> bytes:
    """A .pt archive; ``changes`` add members."""
    contents = {"m/data.pkl": pickle, "m/byteorder": b"little", "m/data/0": bytes(48), **(members or {}), **changes}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in contents.items():
            archive.writestr(member, data)
    return buffer.getvalue()


GOOD_PT = pt(state(("weight_ih_l0", tensor()), ("weight_hh_l0", tensor(size=ints(4, 1)))))


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


def patched(data: bytes, *patches: tuple[int, bytes]) -> bytes:
    result = bytearray(data)
    for at, new in patches:
        result[at : at + len(new)] = new
    return bytes(result)


def zip_attacks() -> Iterator[Attack]:
    good, end = GOOD_PT, len(GOOD_PT) - 22
    directory = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", directory + 1)
    for label, member in (("absolute", "/etc/passwd"), ("parent", "m/../../x"), ("drive", "C:/x"), ("windows", "m\\x")):
        yield Attack(f"zip_{label}.pt", pt(state(), {member: b""}), "not a path inside")
    yield Attack("zip_nul.pt", pt(state(), {"m/aXb": b""}).replace(b"m/aXb", b"m/a\0b"), "not a path inside")
    yield Attack("zip_latin1.pt", pt(state(), {"m/aXb": b""}).replace(b"m/aXb", b"m/a\xffb"), "not UTF-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m/data.pkl", state())
            archive.writestr("m/data.pkl", state())
        yield Attack("zip_duplicate.pt", buffer.getvalue(), "two members are called 'm/data.pkl'")
    yield Attack("zip_encrypted.pt", patched(good, (6, b"\x01"), (directory + 8, b"\x01")), "encrypted")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("m/data.pkl", bytes(50_000_000))
    yield Attack("zip_bomb.pt", buffer.getvalue(), "compressed")
    yield Attack("zip_other_name.pt", patched(good, (30, b"n")), "two headers")
    yield Attack("zip_local_size.pt", patched(good, (22, b"\xf0")), "two headers")
    yield Attack("zip_packed_size.pt", patched(good, (directory + 20, b"\x01")), "two headers")
    huge = struct.pack("<I", 1 << 30)
    both = patched(good, (18, huge * 2), (directory + 20, huge * 2))
    yield Attack("zip_huge_member.pt", both, "outside of the file")
    yield Attack("zip_no_64_bit_size.pt", patched(good, (directory + 20, b"\xff" * 8)), "64-bit size is missing")
    overlap = patched(good, (second + 42, struct.pack("<I", 0)))
    yield Attack("zip_same_offset.pt", overlap, "two headers")
    yield Attack("zip_crc.pt", good.replace(b"collections", b"collectionz"), "checksum")
    yield Attack("zip_count.pt", patched(good, (end + 8, b"\xff\xff\xff\xff")), "ends before its 65535 members")
    yield Attack("zip_few.pt", patched(good, (end + 8, b"\x01\x00\x01\x00")), "bytes too many")
    yield Attack("zip_offset.pt", patched(good, (end + 16, b"\xff\xff\xff\x7f")), "directory is not where")
    yield Attack("zip_directory_size.pt", patched(good, (end + 12, b"\xff\xff\xff\x7f")), "at most")
    yield Attack("zip_directory.pt", patched(good, (directory, b"PK\x03\x03")), "directory is broken")
    yield Attack("zip_disks.pt", patched(good, (end + 4, b"\x01")), "single archive")
    yield Attack("zip_comment.pt", patched(good, (end + 20, b"\x04")) + b"abcd", "truncated")
    yield Attack("zip_appended.pt", good + b"x", "appended")
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 1 << 62, 1)
    yield Attack("zip_locator.pt", good[:end] + locator + good[end:], "64-bit directory record")
    count, size, begin = struct.unpack_from("<HII", good, end + 10)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, begin + 1)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    yield Attack("zip_two_directories.pt", good[:end] + end64 + locator + good[end:], "records differ")
    for cut in (5, 60, len(good) // 2, directory + 10, len(good) - 1):
        yield Attack(f"zip_cut_{cut}.pt", good[:cut], "truncated")
    yield Attack("zip_prefixed.pt", b"PK\x03\x04" + good, "directory is not where")
    yield Attack("zip_empty.pt", b"PK\x05\x06" + bytes(18), "0 members called data.pkl")
    yield Attack("zip_no_pickle.pt", pt(state()).replace(b"data.pkl", b"data.pkx"), "0 members called data.pkl")
    yield Attack("zip_two_pickles.pt", pt(state(), {"n/data.pkl": state()}), "2 members called data.pkl")
    yield Attack("zip_torchscript.pt", pt(state(), {"m/code/__torch__.py": b"import os"}), "TorchScript")
    yield Attack("zip_byteorder.pt", pt(state(), {"m/byteorder": b"middle"}), "byte order")


def pickle_attacks() -> Iterator[Attack]:
    command = f"touch {CANARY}"
    python = f"open({CANARY!r}, 'w')"
    system = call(name("os", "system"), text(command))
    refused = {
        "system": (system, "os.system"),
        "posix": (call(name("posix", "system"), text(command)), "posix.system"),
        "eval": (call(name("builtins", "eval"), text(python)), "builtins.eval"),
        "old_eval": (call(name("__builtin__", "eval"), text(python)), "__builtin__.eval"),
        "stack_global": (text("builtins") + text("exec") + b"\x93" + tuple_of(text(python)) + b"R", "builtins.exec"),
        "nested": (call(system, system), "os.system"),
        "getattr": (call(name("builtins", "getattr"), REBUILD, text("__globals__")), "builtins.getattr"),
        "attribute": (name("torch._utils", "_rebuild_tensor_v2.__globals__"), "__globals__"),
        "partial": (
            call(name("functools", "partial"), name("os", "system"), text(command)),
            "functools.partial, os.system",
        ),
        "load": (call(name("torch", "load"), text("/etc/passwd")), "torch.load"),
        "load_bytes": (call(name("torch.storage", "_load_from_bytes"), text("x")), "torch.storage._load_from_bytes"),
        "module": (name("torch.nn.modules.rnn", "LSTM") + b")\x81}b", "torch.nn.modules.rnn.LSTM"),
        "new_object": (name("subprocess", "Popen") + tuple_of(text(command)) + b"\x81", "subprocess.Popen"),
        "setstate": (name("os", "environ") + b")\x81" + b"}(" + text("a") + text("b") + b"ub", "os.environ"),
        "argument": (call(REBUILD, system), "os.system"),
        "storage_type": (tensor(held=storage(module="os", dtype="system")), "os.system"),
        "list_item": (b"](" + system + b"e", "os.system"),
        "key": (b"}(" + system + text("a") + b"u", "os.system"),
        "many": (tuple_of(*(name("evil", f"f{k:03}") for k in range(100))), "f000.*and 60 more"),
        "not_text": (number(1) + number(2) + b"\x93", "not text"),
        "surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80" + text("x") + b"\x93", "never builds"),
    }
    for label, (value, words) in refused.items():
        words = words.replace(", ", ".*") if label == "partial" else words
        pattern = words if "*" in words else words.replace(".", r"\.")
        yield Attack(f"pickle_{label}.pt", pt(state(("a", value))), pattern)

    broken = {
        "build_on_dict": (program(b"}}b"), "sets attributes of a plain value"),
        "build_on_tensor": (program(tensor(), b"}b"), "sets attributes of a plain value"),
        "new_of_text": (program(text("a"), b")\x81"), "new object of a plain value"),
        "call_text": (program(text("a"), b")R"), "not a function"),
        "call_without_tuple": (program(REBUILD, b"}R"), "tuple of arguments"),
        "call_with_many": (program(REBUILD, b"(", b"N" * 1000, b"tR"), "tuple of arguments"),
        "inst": (program(b"(", text(command), b"ios\nsystem\n"), "uses INST"),
        "obj": (program(b"(", text(command), b"o"), "uses OBJ"),
        "persid": (program(b"Pabc\n"), "uses PERSID"),
        "ext": (program(b"\x82\x01"), "uses EXT1"),
        "long4": (program(b"\x8b\xff\xff\xff\x7f"), "uses LONG4"),
        "string": (program(b"S'a'\n"), "uses STRING"),
        "buffer": (program(b"\x97"), "uses NEXT_BUFFER"),
        "unknown": (program(b"\xff"), "byte 0xff"),
        "protocol": (b"\x80\xff}.", "protocol 255"),
        "text_length": (program(b"X\xff\xff\xff\xffabc"), "truncated"),
        "text_length_64": (program(b"\x8d" + b"\xff" * 8 + b"abc"), "truncated"),
        "bytes_length_64": (program(b"\x8e" + b"\xff" * 7 + b"\x7f"), "truncated"),
        "utf8": (program(b"X\x01\x00\x00\x00\xff"), "damaged near byte"),
        "global_line": (program(b"cos"), "truncated"),
        "no_stop": (b"\x80\x02}", "truncated"),
        "empty": (b"", "truncated"),
        "two_values": (program(b"}}"), "does not end with one value"),
        "open_mark": (program(b"(}"), "does not end with one value"),
        "no_value": (program(), "does not end with one value"),
        "after_stop": (program(b"}") + system, "does not end with one value"),
        "underflow": (program(b"a"), "damaged near byte"),
        "underflow_2": (program(b"}\x86"), "not there"),
        "underflow_mark": (program(b"u"), "damaged near byte"),
        "memo": (program(b"h\x07"), "before it is made"),
        "memo_far": (program(b"}r\xff\xff\xff\xffj\xfe\xff\xff\xff"), "before it is made"),
        "odd_items": (program(b"}(", text("a"), b"u"), "items in a value"),
        "items_of_list": (program(b"](", text("a"), text("b"), b"u"), "items in a value"),
        "append_to_dict": (program(b"}", text("a"), b"a"), "not a list"),
        "same_key": (state(("a", b"N"), ("a", b"N")), "'a' is stored twice"),
        "same_key_text": (program(b"}(", number(1), b"N", text("1"), b"N", b"u"), "'1' is stored twice"),
        "long_key": (program(b"}\x8a\xff" + b"\x01" * 255, b"Ns"), "an integer of 2033 bits"),
        "tensor_key": (program(b"}(", tensor(), b"N", b"u"), "neither text nor an ordinary number"),
        "deep_key": (program(b"}(", b")" + b"\x85" * 200_000, b"N", b"u"), "a tuple of 1"),
        "steps": (program(b"]" * (MAX_PICKLE_STEPS + 1)), f"more than {MAX_PICKLE_STEPS} steps"),
        "marks": (program(b"(" * 300_000), "does not end with one value"),
        "deep_list": (state(("a", b"]" * 200_000 + b"a" * 199_999)), "nested deeper"),
        "deep_tuple": (state(("a", b")" + b"\x85" * 200_000)), "nested deeper"),
        "deep_dict": (program(b"}", (text("a") + b"}") * 100_000, b"s" * 100_000), "nested deeper"),
        "self_list": (state(("a", b"]q\x00h\x00a")), "nested deeper"),
        "self_dict": (program(b"}q\x00", text("a"), b"h\x00s"), "nested deeper"),
        "laughs": (state(("a", laughs(b"]", tensor()))), "50000 containers"),
        "laughs_of_one": (state(("a", laughs(b"]", tensor(), width=1000, levels=3))), "65536 tensors|50000 containers"),
        "wide_laughs": (state(("a", wide_laughs())), f"more than {MAX_PICKLE_STEPS} values"),
        "long_name": (state(("a" * 1000, tensor())), "1000 characters"),
        "same_name": (state(("a.b", tensor()), ("a", b"}(" + text("b") + tensor() + b"u")), "two tensors are called 'a.b'"),
        "list": (program(b"]"), "a list"),
        "tensor": (program(tensor()), "a single tensor"),
        "ordered": (program(call(name("collections", "OrderedDict"), b"]")), "OrderedDict in an unknown way"),
        "persistent": (program(tuple_of(text("module"), text("a")), b"Q"), "not a storage"),
        "persistent_text": (program(text("a"), b"Q"), "not a storage"),
        "no_tensors": (state(("a", b"N")), "no tensors"),
    }  # fmt: skip
    for label, (data, words) in broken.items():
        yield Attack(f"pickle_{label}.pt", pt(data), words)


def laughs(container: bytes, leaf: bytes, width: int = 10, levels: int = 9) -> bytes:
    """Containers that each hold the one before many times: width ** levels leaves in a few bytes."""
    result = leaf + b"q\x00"
    for level in range(levels):
        result += (
            container
            + b"("
            + b"h"
            + bytes([level])
            + (b"h" + bytes([level])) * (width - 1)
            + b"eq"
            + bytes([level + 1])
        )
    # Only the last value may stay: put the others into a tuple that the list of the caller holds.
    return b"(" + result + b"t"


def wide_laughs() -> bytes:
    """Many references to one long list of numbers: little memory, but long to walk."""
    return b"]q\x00(" + b"N" * 10_000 + b"e" + b"](" + b"h\x00" * 10_000 + b"e\x86"


def storage_attacks() -> Iterator[Attack]:
    big = 1 << 63
    lies = {
        "count": (tensor(held=storage(13)), "should hold 13 elements of float32, but has 48 bytes"),
        "count_small": (tensor(held=storage(11)), "should hold 11"),
        "count_negative": (tensor(held=storage(-12)), "should hold -12"),
        "count_huge": (tensor(held=storage(1 << 600)), "an integer of 601 bits"),
        "count_bool": (tensor(held=storage().replace(number(12), b"\x88")), "wrong types"),
        "dtype": (tensor(held=storage(dtype="DoubleStorage")), "should hold 12 elements of float64"),
        "dtype_text": (tensor(held=tuple_of(text("storage"), text("x"), text("0"), text("cpu"), number(12)) + b"Q"), "wrong types"),
        "odd_bfloat16": (tensor(held=storage(7, dtype="BFloat16Storage")), "should hold 7 elements of bfloat16"),
        "key": (tensor(held=storage(key="1")), "storage '1' is not in the archive"),
        "key_path": (tensor(held=storage(key="../byteorder")), "not in the archive"),
        "offset": (tensor(number(1)), "reaches to byte 52"),
        "offset_negative": (tensor(number(-1)), "integers >= 0"),
        "offset_huge": (tensor(number(big)), "reaches to byte"),
        "offset_wraps": (tensor(number((1 << 64) - 1)), "reaches to byte"),
        "offset_float": (tensor(b"G" + bytes(8)), "integers >= 0"),
        "offset_bool": (tensor(b"\x88"), "integers >= 0"),
        "size": (tensor(size=ints(5, 3)), "reaches to byte 60"),
        "size_negative": (tensor(size=ints(-4, 3)), "integers >= 0"),
        "size_wraps": (tensor(size=ints(1 << 32, 1 << 32)), "reaches to byte"),
        "size_wraps_to_0": (tensor(size=ints(1 << 32, 1 << 32), stride=ints(0, 0)), "expanded view"),
        "size_huge": (tensor(size=ints(1 << 700, 1), stride=ints(0, 0)), "an integer of"),
        "size_empty_huge": (tensor(size=ints(0, big)), "empty tensor"),
        "size_text": (tensor(size=text("ab")), "tuples of at most"),
        "size_tensor": (tensor(size=tuple_of(tensor(), tensor())), "integers >= 0"),
        "size_none": (tensor(size=b"N"), "tuples of at most"),
        "stride": (tensor(stride=ints(4, 1)), "reaches to byte 60"),
        "stride_negative": (tensor(number(11), stride=ints(-3, -1)), "integers >= 0"),
        "stride_huge": (tensor(stride=ints(big, 1)), "reaches to byte"),
        "stride_wraps": (tensor(stride=ints((1 << 64) // 3, 1)), "reaches to byte"),
        "stride_rank": (tensor(stride=ints(1)), "integers >= 0"),
        "rank": (tensor(size=ints(*[1] * 100), stride=ints(*[1] * 100)), "at most 8"),
        "expanded": (tensor(size=ints(1 << 40, 1 << 20), stride=ints(0, 0)), "expanded view"),
        "expanded_little": (tensor(size=ints(5, 3), stride=ints(0, 1)), "expanded view"),
        "negated": (tensor(more=b"}(" + text("neg") + b"\x88u"), "negated"),
        "arguments": (call(REBUILD, storage(), number(0)), "wrong values"),
        "no_arguments": (call(REBUILD), "wrong values"),
        "no_storage": (tensor(held=text("a")), "wrong values"),
        "untyped_v2": (tensor(held=storage(48, dtype="UntypedStorage", module="torch.storage")), "wrong values"),
        "v3": (call(name("torch._utils", "_rebuild_tensor_v3"), storage(), number(0), ints(2), ints(1), b"\x89", b"N", b"}"), "wrong values"),
        "parameter": (call(name("torch._utils", "_rebuild_parameter"), text("a"), b"\x88", b"N"), "wrong values"),
    }  # fmt: skip
    for label, (value, words) in lies.items():
        yield Attack(f"storage_{label}.pt", pt(state(("weight_hh_l0", value))), words)
    # Each bfloat16 tensor is widened when it is read: a thousand views of one storage would take a thousand times its size.
    whole = tensor(size=ints(1 << 18), stride=ints(1), held=storage(1 << 18, dtype="BFloat16Storage"))
    shared = pt(state(*((str(k), whole) for k in range(1000))), {"m/data/0": bytes(1 << 19)})
    yield Attack("storage_shared.pt", shared, "claim 524288000 bytes together")


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
            "missing_tensor": (frnn(node={"weights": ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]}), "without a tensor: 'a.bias_ih_l0'"),
            "unused_tensor": (frnn(node={"weights": ["weight_ih_l0"]}), "tensors of no layer: 'a.weight_hh_l0'"),
            "nodes": (frnn(spec={"nodes": {}}), "'nodes' is missing or of the wrong kind"),
            "node_text": (frnn(spec={"nodes": ["a"]}), "'nodes' is missing"),
            "inputs": (frnn(spec={"inputs": None}), "'inputs' is missing"),
            "tensor_shape": (frnn(spec={"inputs": [{"name": "x", "shape": ["a"], "dtype": "float32"}]}), "'shape' is missing"),
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
    return [
        *zip_attacks(), *pickle_attacks(), *storage_attacks(), *safetensors_attacks(), *native_attacks(), *other_attacks(),
    ]  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for attack in attacks():
        (folder / attack.name).write_bytes(attack.data)
    print(f"{len(attacks())} files in {folder}")


if __name__ == "__main__":
    main()
