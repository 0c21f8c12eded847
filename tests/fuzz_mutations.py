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
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.loaders import native, safetensors
from fastrnn.spec import ACTIVATIONS, BINARY, DTYPES, OPS, REDUCTIONS, UNARY

OPCODES = [
    b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"K\x00", b"X\x00\x00\x00\x00", b"N", b"\x88", b"]",
    b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"Q", b"b", b"s", b"u", b"e", b"a", b"h\x00",
    b"cos\nsystem\n",
]  # fmt: skip
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
CHOICES: dict[str, tuple[str, ...]] = {
    "unary.function": UNARY, "binary.function": BINARY, "reduce.function": REDUCTIONS, "pool.function": ("max", "mean"),
    "pad.mode": ("constant", "reflect", "edge", "wrap"), "cast.dtype": DTYPES, "fill.dtype": DTYPES,
}  # fmt: skip
TEXTS = ("forward", "reverse", "bidirectional", "concat", "sum", "mul", "ave", "keep", "take", "", "x", "constant")
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
    """Change the model in a .frnn file: its text, values in it, attributes, wires, tensors; its checksums are right."""
    entries, metadata, start = safetensors.read_header(memoryview(data))
    tensors = {name: entry.array(data[start + entry.begin : start + entry.end]) for name, entry in entries.items()}
    kind = rng.random()
    if kind < 0.1:
        metadata["spec"] = mutate(metadata["spec"].encode(), rng).decode("latin-1")
    elif kind < 0.25:
        metadata["spec"] = mutate_json(metadata["spec"].encode(), rng).decode("latin-1")
    else:
        described = json.loads(metadata["spec"])
        for _ in range(rng.choice((1, 1, 2, 3))):
            change = rng.choice((change_attribute, change_attribute, change_attribute, change_wires, change_tensor))
            change(described, tensors, rng)
        metadata["spec"] = json.dumps(described)
    checksums = {"spec": zlib.crc32(metadata["spec"].encode())}
    for name, array in tensors.items():
        held = safetensors.array_bytes(array)
        checksums[f"tensor {name}"] = native._checksum(safetensors.dtype_code(array.dtype), array.shape, held)
    metadata["checksums"] = json.dumps(checksums)
    return b"".join(safetensors.chunks(tensors, metadata))


def graphs_of(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The graph of a described model, and its bodies."""
    found = [described]
    for graph in found:
        found += [body for node in graph["nodes"] for body in node["graphs"].values()]
    return found


def nodes_of(described: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for graph in graphs_of(described) for node in graph["nodes"]]


def number_near(number: float, rng: random.Random) -> Any:
    nearby = [number + 1, number - 1, -number, number * 2, 0, 1, -1, 2, 3, 7, 8, 9, 64]
    return rng.choice([*nearby, *nearby, 1000, 10**5, 10**6, -(10**6), 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1])


def wild(value: Any, rng: random.Random) -> Any:
    """A value like another one: of its kind and near, of its kind and extreme, or of another kind."""
    kind = rng.random()
    if kind < 0.12:
        return deepcopy(rng.choice([*VALUES, {"float": "nan"}, {"float": "inf"}, [0, 0], 0.5, False]))
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return number_near(value, rng)
    if isinstance(value, str):
        return rng.choice((*ACTIVATIONS, *TEXTS))
    if isinstance(value, list):
        return wild_list(value, kind, rng)
    return deepcopy(rng.choice((0, 1, -1, 2, [0], [1], [-1], [0, 1], [1, 0], [2, 0, 1], [1] * 4, 1e-3, 0.5)))


def wild_list(items: list[Any], kind: float, rng: random.Random) -> list[Any]:
    items = list(items)
    if not items or kind > 0.9:
        return items * rng.choice((2, 3, 10, 1000)) or [rng.choice((0, 1, -1, 2))]
    if kind < 0.6:
        at = rng.randrange(len(items))
        items[at] = wild(items[at], rng)
    elif kind < 0.7:
        items.append(rng.choice(items))
    elif kind < 0.8:
        rng.shuffle(items)
    else:
        items.pop()
    return items


def change_attribute(described: dict[str, Any], tensors: dict[str, Any], rng: random.Random) -> None:
    """Give a node an attribute of its kind that it lacks, or another value of one that it has."""
    node = rng.choice(nodes_of(described) or [None])
    attrs = OPS[node["op"]].attrs if node and node["op"] in OPS else {}
    if not attrs:
        change_wires(described, tensors, rng)
        return
    key = rng.choice(list(attrs))
    value = node["attrs"].get(key, attrs[key])
    choices = CHOICES.get(f"{node['op']}.{key}")
    if choices and rng.random() < 0.9:
        node["attrs"][key] = rng.choice(choices)
    else:
        node["attrs"][key] = wild(list(value) if isinstance(value, tuple) else value, rng)


def change_wires(described: dict[str, Any], tensors: dict[str, Any], rng: random.Random) -> None:
    """Let a node read, write or be something else, stand twice, or go; give a tensor another shape or dtype."""
    graphs = graphs_of(described)
    graph = rng.choice(graphs)
    nodes = graph["nodes"]
    kind = rng.randrange(7)
    if kind == 0 or not nodes:
        tensor = rng.choice([*graph["inputs"], *graph["outputs"], *described["inputs"]] or [{"shape": None}])
        if rng.random() < 0.4:
            tensor["dtype"] = rng.choice(DTYPES)
        else:
            tensor["shape"] = wild(tensor["shape"] if tensor["shape"] is not None else [None, 2, 3], rng)
        return
    at = rng.randrange(len(nodes))
    node = nodes[at]
    names = [t["name"] for g in graphs for t in g["inputs"]] + [name for g in graphs for name in g["constants"]]
    names += [name for other in nodes_of(described) for name in other["outputs"]] + [""]
    if kind == 1 and node["inputs"]:
        node["inputs"][rng.randrange(len(node["inputs"]))] = rng.choice(names)
    elif kind == 2:
        node["inputs"].append(rng.choice(names))
    elif kind == 3 and node["inputs"]:
        del node["inputs"][rng.randrange(len(node["inputs"]))]
    elif kind == 4:
        rng.shuffle(node["inputs"])
    elif kind == 5 and not node["weights"] and not node["graphs"]:
        change_kind(node, rng)
    elif not node["weights"] and not node["graphs"]:
        repeat_node(graph, at, rng.choice((1, 2, 8)))


def change_kind(node: dict[str, Any], rng: random.Random) -> None:
    """Another kind of node, with the attributes that it has too."""
    node["op"] = rng.choice([op for op in OPS if not OPS[op].weights and not OPS[op].graphs])
    attrs = OPS[node["op"]].attrs
    node["attrs"] = {key: value for key, value in node["attrs"].items() if key in attrs}
    for key in attrs:
        if choices := CHOICES.get(f"{node['op']}.{key}"):
            node["attrs"].setdefault(key, rng.choice(choices))


def repeat_node(graph: dict[str, Any], at: int, count: int) -> None:
    """A chain of a node, each of which reads what the one before makes."""
    nodes = graph["nodes"]
    first = nodes[at]
    for k in range(count):
        again = deepcopy(first)
        again["name"] = f"{first['name']}_{k}"
        again["inputs"] = [*nodes[at]["outputs"][:1], *first["inputs"][1:]]
        again["outputs"] = [f"{name}_{k}" for name in first["outputs"]]
        at += 1
        nodes.insert(at, again)
    old, new = first["outputs"][:1], nodes[at]["outputs"][:1]
    for reader in nodes[at + 1 :]:
        reader["inputs"] = [new[0] if [name] == old else name for name in reader["inputs"]]
    for tensor in graph["outputs"]:
        tensor["name"] = new[0] if [tensor["name"]] == old else tensor["name"]


def change_tensor(described: dict[str, Any], tensors: dict[str, Any], rng: random.Random) -> None:
    """Give a weight or a constant another shape or dtype, or other numbers."""
    if not tensors:
        change_attribute(described, tensors, rng)
        return
    name = rng.choice(list(tensors))
    tensors[name] = changed_array(np.array(tensors[name]), rng)


def changed_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(6)
    if kind == 0:
        array = array.reshape(-1)
    elif kind == 1:
        array = array[None] if rng.random() < 0.5 else array[..., None]
    elif kind == 2 and array.ndim:
        array = array[: rng.choice((0, 1, max(len(array) - 1, 0)))]
    elif kind == 3:
        with np.errstate(all="ignore"):
            array = array.astype(rng.choice(DTYPES))
    elif kind == 4 and array.ndim > 1:
        array = np.moveaxis(array, 0, -1)
    elif array.size and array.dtype.kind == "f":
        number = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e6))
        array.reshape(-1)[rng.randrange(array.size)] = min(number, float(np.finfo(array.dtype).max))
    elif array.size and array.dtype.kind == "i":
        bounds = np.iinfo(array.dtype)
        number = number_near(int(array.flat[0]), rng)
        array.reshape(-1)[rng.randrange(array.size)] = min(max(number, bounds.min), bounds.max)
    return np.ascontiguousarray(array) if array.ndim else array


def mutate_proto(data: bytes, rng: random.Random) -> bytes:
    """Change fields of an ONNX model: numbers, texts and bytes anew, messages repeated, swapped and dropped."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        messages = all_messages(model)
        if rng.random() < 0.6:
            change_operator(messages, rng)
            continue
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


def change_operator(messages: list[Any], rng: random.Random) -> None:
    """Give an ONNX operator an attribute of its kind, another kind or input, or a constant other numbers."""
    import onnx

    nodes = [m for m in messages if isinstance(m, onnx.NodeProto)]
    arrays = [m for m in messages if isinstance(m, onnx.TensorProto) and m.data_location != 1]
    kind = rng.randrange(4)
    if kind == 0 and arrays:
        proto = rng.choice(arrays)
        with suppress(Exception):  # what was damaged before is no array to onnx
            array = changed_array(np.array(onnx.numpy_helper.to_array(proto)), rng)
            proto.CopyFrom(onnx.numpy_helper.from_array(array, proto.name))
    elif nodes:
        node = rng.choice(nodes)
        if kind == 1 and node.input:
            names = [text for m in nodes for text in (*m.output, *m.input)]
            node.input[rng.randrange(len(node.input))] = rng.choice([*names, ""])
        elif kind == 2:
            node.op_type = rng.choice(operator_names())
        else:
            change_onnx_attribute(node, rng)


def change_onnx_attribute(node: Any, rng: random.Random) -> None:
    import onnx

    try:
        attributes = onnx.defs.get_schema(node.op_type, 17, "").attributes
    except onnx.defs.SchemaError:
        return
    if not attributes:
        return
    name = rng.choice(sorted(attributes))
    kind = onnx.AttributeProto.AttributeType.Value(attributes[name].type.name)
    old = next((a for a in node.attribute if a.name == name), onnx.AttributeProto())
    new = onnx.AttributeProto(name=name, type=kind)
    if kind == onnx.AttributeProto.INT:
        new.i = min(max(number_near(old.i, rng), -(2**63)), 2**63 - 1)
    elif kind == onnx.AttributeProto.FLOAT:
        new.f = rng.choice((0.0, -1.0, 1e30, float("nan"), 0.5, 2.0))
    elif kind == onnx.AttributeProto.STRING:
        new.s = rng.choice(MODES).encode()
    elif kind == onnx.AttributeProto.INTS:
        items = wild_list(list(old.ints) or [1], rng.random(), rng)
        new.ints.extend(n for n in items if isinstance(n, int) and abs(n) < 2**63)
    else:
        return
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, new])


MODES = (
    "constant", "reflect", "edge", "wrap", "forward", "reverse", "bidirectional", "linear", "nearest", "cubic",
    "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "floor", "ceil", "half_pixel", "align_corners", "mean", "DCR",
)  # fmt: skip


@cache
def operator_names() -> list[str]:
    from fastrnn.loaders.onnx_ops import NATIVE

    return sorted(NATIVE)


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
