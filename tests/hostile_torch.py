"""Attacks on .pt files: zip archives that lie, pickles that run things or explode, views outside of their storage."""

import io
import struct
import warnings
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from fastrnn.loaders.limits import MAX_PICKLE_STEPS

CANARY = "fastrnn_canary"


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


def within() -> bytes:
    """An archive with a member in the data of another one: two readers may see two models."""
    inner = pt(state(), {})
    inner = inner[: inner.index(b"PK\x01\x02")]
    size = inner.index(b"PK\x03\x04", 1)  # of the first member with its header
    data = pt(state(), {"m/outer": inner[:size]})
    first, last = data.index(b"PK\x01\x02"), data.index(inner[:size], 1)
    return patched(data, (first + 42, struct.pack("<I", last)))


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
    yield Attack("zip_inside.pt", within(), "members overlap")
    claimed = struct.pack("<I", 1 << 30)
    yield Attack("zip_size.pt", patched(good, (22, claimed), (directory + 24, claimed)), "claims 1073741824 bytes")
    far = patched(good, (second + 42, struct.pack("<I", 1 << 30)))
    yield Attack("zip_far_member.pt", far, "outside of the file")
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
    yield Attack("zip_byteorder.pt", pt(state(), {"m/byteorder": b"middle"}), "byte order")


def commands() -> dict[str, tuple[bytes, str]]:
    """Values whose making would run something or import something, and the name that their error must have."""
    command = f"touch {CANARY}"
    python = f"open({CANARY!r}, 'w')"
    system = call(name("os", "system"), text(command))
    return {
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
        "argument": (call(call(name("os", "system"), system), system), "os.system"),
        "storage_type": (storage(module="os", dtype="system"), "os.system"),
        "options": (name("evil", "New") + b")" + b"}" + text("a") + system + b"s" + b"\x92", "os.system"),
        "extension": (name("copyreg", "_reconstructor") + tuple_of(name("os", "system"), b"N", b"N") + b"R", "copyreg"),
        "list_item": (b"](" + system + b"e", "os.system"),
        "key": (b"}(" + system + text("a") + b"u", "os.system"),
        "many": (tuple_of(*(name("evil", f"f{k:03}") for k in range(100))), "f000.*and 60 more"),
        "not_text": (number(1) + number(2) + b"\x93", "not text"),
        "surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80" + text("x") + b"\x93", "never builds"),
    }


def pickle_attacks() -> Iterator[Attack]:
    command = f"touch {CANARY}"
    system = call(name("os", "system"), text(command))
    for label, (value, words) in commands().items():
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
        "long4": (program(b"\x8b\xff\xff\xff\x7f"), "truncated"),
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
        "same_number": (program(b"}(", number(1), b"N", number(1), b"N", b"u"), "'1' is stored twice"),
        "same_key_by_position": (program(b"}(", text("#1"), b"N", b")N", b"u"), "'#1' is stored twice"),
        "long_key": (program(b"}\x8a\xff" + b"\x01" * 255, b"Ns"), "no tensors"),
        "deep_key": (program(b"}(", b")" + b"\x85" * 200_000, b"N", b"u"), "no tensors"),
        "steps": (program(b"N0" * (MAX_PICKLE_STEPS // 2 + 1)), f"more than {MAX_PICKLE_STEPS} steps"),
        "global_of_any_length": (program(b"c" + b"x" * 100_000 + b"\ny\n"), "more than 1024 bytes"),
        "pop_nothing": (program(b"0"), "damaged near byte"),
        "pop_no_mark": (program(b"1"), "damaged near byte"),
        "options_of_text": (program(text("a"), b")}\x92"), "new object of a plain value"),
        "call_of_a_list": (program(name("a", "b"), b"]R"), "tuple of arguments"),
        "new_of_a_list": (program(name("a", "b"), b"]\x81"), "new object of a plain value"),
        "built_twice": (program(name("a", "b"), b")\x81}b}b"), "sets attributes of a plain value"),
        "bytearray_length": (program(b"\x96" + b"\xff" * 7 + b"\x7f"), "truncated"),
        "marks": (program(b"(" * 300_000), "does not end with one value"),
        "deep_list": (state(("a", b"]" * 200_000 + b"a" * 199_999)), "no tensors"),
        "deep_tuple": (state(("a", b")" + b"\x85" * 200_000)), "no tensors"),
        "deep_dict": (program(b"}", (text("a") + b"}") * 100_000, b"s" * 100_000), "no tensors"),
        "deep_record": (state(("a", deep_record())), "no tensors"),
        "deep_tensor": (state(("a", b"]" * 2_000 + tensor() + b"a" * 2_000)), "no tensors|nested deeper"),
        "deep_tensor_33": (state(("a", b"]" * 33 + tensor() + b"a" * 33)), "nested deeper"),
        "self_list": (state(("a", b"]q\x00h\x00a")), "no tensors"),
        "self_dict": (program(b"}q\x00", text("a"), b"h\x00s"), "no tensors"),
        "zigzag": (program(zigzag()), "no tensors|nested deeper"),
        "laughs": (state(("a", laughs(b"]", tensor()))), "50000 containers"),
        "laughs_of_one": (state(("a", laughs(b"]", tensor(), width=1000, levels=3))), "65536 tensors|50000 containers"),
        "wide_laughs": (state(("a", wide_laughs())), "no tensors"),
        "wide_laughs_with_a_tensor": (state(("a", wide_laughs(tensor()))), f"more than {MAX_PICKLE_STEPS} values"),
        "long_name": (state(("a" * 1000, tensor())), "1000 characters"),
        "same_name": (state(("a.b", tensor()), ("a", b"}" + text("b") + tensor() + b"s")), "are called 'a.b'"),
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


def wide_laughs(leaf: bytes = b"N") -> bytes:
    """Many references to one long list of numbers: little memory, but long to walk."""
    return b"]q\x00(" + b"N" * 10_000 + leaf + b"e" + b"](" + b"h\x00" * 10_000 + b"e\x86"


def deep_record(depth: int = 100_000) -> bytes:
    """Objects that were each made from the one before."""
    return name("a", "B") + b"q\x00" + b"h\x00" * depth + b")\x81" + b"\x85\x81" * depth


def zigzag(length: int = 3_000) -> bytes:
    """A chain of lists of which every second one is found last: marking what holds the tensor at its end takes many
    rounds."""
    lists = b"".join(b"]r" + struct.pack("<I", k) for k in range(length))
    order = [*range(0, length, 2), *range(1, length, 2)]
    links = b"".join(b"j" + struct.pack("<I", k) + b"j" + struct.pack("<I", k + 1) + b"a0" for k in range(length - 1))
    end = b"j" + struct.pack("<I", length - 1) + tensor() + b"a0"
    seen = b"".join(b"j" + struct.pack("<I", k) for k in order)
    return b"(" + lists + b"1" + links + end + b"}" + text("a") + b"](" + seen + b"es"


def storage_attacks() -> Iterator[Attack]:
    big = 1 << 63
    lies = {
        "count": (tensor(held=storage(13)), "should hold 13 elements of float32, but has 48 bytes"),
        "count_small": (tensor(held=storage(11)), "should hold 11"),
        "count_negative": (tensor(held=storage(-12)), "should hold -12"),
        "count_huge": (tensor(held=storage(1 << 600)), "an integer of 601 bits"),
        "count_bool": (tensor(held=storage().replace(number(12), b"\x88")), "wrong types"),
        "dtype": (tensor(held=storage(dtype="DoubleStorage")), "should hold 12 elements of float64"),
        "dtype_text": (tensor(held=storage().replace(name("torch", "FloatStorage"), text("float32"))), "wrong types"),
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
        "v3": (tensor(more=text("float32")).replace(b"_v2", b"_v3"), "wrong values"),
        "parameter": (call(name("torch._utils", "_rebuild_parameter"), text("a"), b"\x88", b"N"), "wrong values"),
    }  # fmt: skip
    for label, (value, words) in lies.items():
        yield Attack(f"storage_{label}.pt", pt(state(("weight_hh_l0", value))), words)
    # Each bfloat16 tensor is widened when it is read, so a thousand views would take a thousand times the storage.
    whole = tensor(size=ints(1 << 18), stride=ints(1), held=storage(1 << 18, dtype="BFloat16Storage"))
    shared = pt(state(*((str(k), whole) for k in range(1000))), {"m/data/0": bytes(1 << 19)})
    yield Attack("storage_shared.pt", shared, "claim 524288000 bytes together")
