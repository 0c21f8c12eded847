"""Damaged and hostile ONNX files: an error that says what is wrong, little memory, and no file but the model's own."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_cases import floats, graph, helper, model, node, numpy_helper, onnx
from scripts import check

from fastrnn.errors import FastrnnError, FormatError
from fastrnn.loaders import limits, load_spec, load_tensors
from fastrnn.loaders import onnx as loader

X = {"x": floats(3, 4)}
SECONDS, BYTES_MORE = 5, 24 << 20
RAW, TYPED, INTS = (onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "DOUBLE", "INT8"))


def tensor(**fields: Any) -> Any:
    """A model with one initializer of these fields."""
    proto = model([node("Add", ["x", "w"], ["y"])], X, ["y"])
    proto.graph.initializer.append(onnx.TensorProto(name="w", **fields))
    return proto


def grows(made: list[Any], weights: dict[str, np.ndarray]) -> Any:
    return model([*made, node("Identity", ["big"], ["y"])], X, ["y"], weights)


def chain(count: int, op: str = "Concat", **attrs: Any) -> Any:
    """Each node reads the one before it twice."""
    nodes = [node(op, [f"t{k}", f"t{k}"], [f"t{k + 1}"], **attrs) for k in range(count)]
    return model([*nodes, node("Identity", [f"t{count}"], ["y"])], X, ["y"], {"t0": floats(64)})


def functions(calls: int, depth: int) -> Any:
    """A function that calls another one twice, which calls another one twice, ..."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    made = []
    for k in range(depth):
        inner = "Relu" if k == 0 else f"f{k - 1}"
        nodes = [node(inner, [f"a{j}"], [f"a{j + 1}"], domain="f" if k else "") for j in range(calls)]
        made.append(helper.make_function("f", f"f{k}", ["a0"], [f"a{calls}"], nodes, opsets))
    top = node(f"f{depth - 1}", ["x"], ["y"], domain="f")
    return model([top], X, ["y"], opsets=opsets[1:], functions=made)


def recursion() -> Any:
    proto = functions(1, 2)
    proto.functions[0].node[0].CopyFrom(node("f1", ["a0"], ["a1"], domain="f"))
    return proto


def nested(depth: int) -> Any:
    made = node("Relu", ["x"], ["y"])
    for _ in range(depth):
        made = node("If", ["c"], ["y"], then_branch=graph([made], [], ["y"]), else_branch=graph([made], [], ["y"]))
    return model([made], X | {"c": np.array(True)}, ["y"])


def many_nodes(count: int) -> Any:
    proto = model([], X, ["x"])
    proto.graph.node.extend([node("Relu", ["x"], [""])] * count)
    return proto


def twice_defined() -> Any:
    return model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], X, ["y"])


def bad_text() -> Any:
    made = node("LSTM", ["x", "x", "x"], ["y"], direction=b"\xff\xfe")
    return model([made], X, ["y"])


BIG = np.array([1 << 30, 1 << 30])
ATTACKS: dict[str, tuple[Callable[[], Any], str]] = {
    # what makes a model, and words of the error
    "data_short": (lambda: tensor(dims=[4], data_type=RAW, raw_data=bytes(15)), "15 bytes of data, expected 16"),
    "data_long": (lambda: tensor(dims=[4], data_type=RAW, raw_data=bytes(17)), "17 bytes of data, expected 16"),
    "data_huge": (lambda: tensor(dims=[1 << 40], data_type=RAW, raw_data=bytes(4)), "4 bytes of data, expected 4398"),
    "data_missing": (lambda: tensor(dims=[1 << 40], data_type=RAW), "0 elements for the shape"),
    "data_wraps": (lambda: tensor(dims=[1 << 32, 1 << 32], data_type=RAW, raw_data=b""), "0 bytes of data"),
    "data_negative": (lambda: tensor(dims=[-1, 4], data_type=RAW, raw_data=bytes(16)), "not a list of integers >= 0"),
    "data_empty": (lambda: tensor(dims=[0, 1 << 40], data_type=RAW, raw_data=b""), "an empty tensor"),
    "data_rank": (lambda: tensor(dims=[1] * 9, data_type=RAW, raw_data=bytes(4)), "9 dimensions, at most 8"),
    "data_field": (lambda: tensor(dims=[1], data_type=TYPED, float_data=[1.0]), "0 elements for the shape"),
    "data_two_fields": (lambda: tensor(dims=[1], data_type=RAW, float_data=[1.0], int64_data=[1]), "elements for the"),
    "data_beyond_int8": (lambda: tensor(dims=[1], data_type=INTS, int32_data=[300]), "elements that no int8 holds"),
    "data_type": (lambda: tensor(dims=[1], data_type=77, raw_data=b"a"), "its data type 77 is unknown"),
    "data_string": (lambda: tensor(dims=[1], data_type=8, string_data=[b"a"]), "holds string, which is not read"),
    "fill": (lambda: grows([node("ConstantOfShape", ["s"], ["big"])], {"s": BIG}), "takes more than"),
    "expand": (lambda: grows([node("Expand", ["w", "s"], ["big"])], {"s": BIG, "w": floats(1)}), "takes more than"),
    "tile": (lambda: grows([node("Tile", ["w", "s"], ["big"])], {"s": BIG, "w": floats(1, 1)}), "takes more than"),
    "range": (
        lambda: grows([node("Range", ["a", "b", "c"], ["big"])], dict(zip("abc", np.array([0, 1 << 50, 1])))),
        "takes more than",
    ),
    "pad": (lambda: grows([node("Pad", ["w", "s"], ["big"])], {"s": BIG, "w": floats(1)}), "takes more than"),
    "broadcast": (
        lambda: grows([node("Add", ["a", "b"], ["big"])], {"a": floats(4000, 1), "b": floats(1, 4000)}),
        "takes more than",
    ),
    "outer_product": (
        lambda: grows([node("MatMul", ["a", "b"], ["big"])], {"a": floats(4000, 1), "b": floats(1, 4000)}),
        "takes more than",
    ),
    "gather": (
        lambda: grows([node("Gather", ["a", "b"], ["big"])], {"a": floats(1, 4000), "b": np.zeros(4000, np.int64)}),
        "takes more than",
    ),
    "doubling": (lambda: chain(50, axis=0), "takes more than"),
    "functions": (lambda: functions(2, 30), "nodes, those of bodies and functions"),
    "recursion": (recursion, "more than 32 deep"),
    "nested_deep": (lambda: nested_chain(20), "its body 'else_branch' is missing"),
    "nodes": (lambda: many_nodes(limits.MAX_NODES + 1), "more than 32768 nodes"),
    "defined_twice": (twice_defined, "tensor 'y' is defined twice"),
    "undefined": (lambda: model([node("Neg", ["z"], ["y"])], X, ["y"]), "Neg 'Neg': reads 'z', which nothing before"),
    "cycle": (lambda: model([node("Neg", ["y"], ["z"]), node("Neg", ["z"], ["y"])], X, ["y"]), "reads 'y', which"),
    "no_output": (lambda: model([], X, ["y"]), "output 'y' is written by no node"),
    "text": (bad_text, "an attribute is not UTF-8"),
    "long_name": (lambda: model([node("Neg", ["x"], ["y" * 600])], X, ["y" * 600]), "has 600 characters"),
    "sparse": (lambda: sparse(), "sparse initializers"),
    "bad_axes": (
        lambda: model([node("Squeeze", ["x", "a"], ["y"])], X, ["y"], {"a": np.float32([np.nan])}),
        "cannot convert float NaN",
    ),
    "bad_slice": (
        lambda: grows([node("Slice", ["w", "a", "a", "b"], ["big"])], {"w": floats(2), "a": BIG[:1], "b": BIG[:1]}),
        "cannot slice axis 1073741824",
    ),
    "bad_pool": (lambda: model([node("MaxPool", ["x"], ["y"], kernel_shape=[0])], X, ["y"]), "does not fit a kernel"),
    "problems": (
        lambda: model([node(f"Odd{k}", ["x"], [f"y{k}"]) for k in range(999)], X, [f"y{k}" for k in range(999)]),
        "(?s)999 problem.*and 969 more",
    ),
}  # fmt: skip


def nested_chain(depth: int) -> Any:
    """One branch inside of another, small but deep."""
    made = node("Relu", ["x"], ["y"])
    for _ in range(depth):
        made = node("If", ["c"], ["y"], then_branch=graph([made], [], ["y"]))
    return model([made], X | {"c": np.array(True)}, ["y"])


def sparse() -> Any:
    proto = model([node("Relu", ["x"], ["y"])], X, ["y"])
    values, indices = numpy_helper.from_array(floats(1), "w"), numpy_helper.from_array(np.array([5]), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))
    return proto


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, tmp_path):
    make, words = ATTACKS[name]
    path = tmp_path / "attack.onnx"
    path.write_bytes(make().SerializeToString())
    start = time.process_time()
    with pytest.raises(FastrnnError, match=words) as error:
        load_spec(path)
    assert time.process_time() - start < SECONDS
    if path.stat().st_size < 100_000:  # counting takes time
        tracemalloc.start()
        try:
            with pytest.raises(FastrnnError):
                load_spec(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 100 * path.stat().st_size + BYTES_MORE
    assert "attack.onnx" in str(error.value)
    assert ";" in str(error.value), "no hint of what to do"
    assert len(str(error.value)) < 6000


def test_what_is_below_the_limits_loads():
    """The attacks are refused for their size, not for what they are."""
    for proto in (nested(6), functions(2, 5), chain(10, axis=0), many_nodes(1000)):
        loader.from_object(proto.SerializeToString()).validate()


@pytest.mark.parametrize(
    "data", [b"\x08\x08", b"\x08\x08\x12\x04" + bytes(50), b"not a model", b"\x08\x08\x12\x07pytorch:\x05abc"]
)
def test_bytes_that_are_no_model(data, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for load in (load_spec, load_tensors):
        with pytest.raises(FormatError, match=r"model\.onnx.*not an ONNX model, or damaged.*;"):
            load(path)


def test_a_cut_file_is_an_error_wherever_it_ends(tmp_path):
    data = model([node("MatMul", ["x", "w"], ["y"])], X, ["y"], {"w": floats(4, 2)}).SerializeToString()
    for size in range(1, len(data)):
        try:
            loader.from_object(data[:size])
        except FastrnnError:
            continue
        pytest.fail(f"the first {size} of {len(data)} bytes load")


# ---- External data ----

WEIGHT = floats(4, 2)


def external(folder: Path, location: str = "weights.bin", **entries: object) -> Path:
    """A model whose weight is in another file."""
    proto = tensor(dims=[4, 2], data_type=RAW, data_location=1)
    for key, text in {"location": location, **entries}.items():
        proto.graph.initializer[0].external_data.add(key=key, value=str(text))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path):
    """The folder of a model, beside a file that it must not read."""
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    made = tmp_path / "model"
    made.mkdir()
    return made


def test_external_data(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "weights.bin").write_bytes(bytes(64) + WEIGHT.tobytes() + b"more")
    for location in ("sub/weights.bin", "./sub/weights.bin"):
        path = external(folder, location, offset=64, length=32)
        np.testing.assert_array_equal(load_tensors(path)["w"], WEIGHT)
        np.testing.assert_array_equal(load_spec(path).constants["w"], WEIGHT)
        np.testing.assert_array_equal(load_tensors(external(folder, location, offset=64))["w"], WEIGHT)


def test_external_data_as_onnx_writes_it(folder):
    path = folder / "model.onnx"
    proto = model([node("MatMul", ["x", "w"], ["y"])], X, ["y"], {"w": WEIGHT})
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0, convert_attribute=True)
    np.testing.assert_array_equal(load_spec(path).nodes[0].weights["weight"].T, WEIGHT)


LOCATIONS: dict[str, tuple[str, Callable[[Path], object] | None, str]] = {
    # location, what is there, words of the error
    "absolute": ("/etc/passwd", None, "expected a relative path inside"),
    "parent": ("../outside.bin", None, "expected a relative path inside"),
    "hidden_parent": ("a/../../outside.bin", None, "expected a relative path inside"),
    "backslashes": ("..\\outside.bin", None, "expected a relative path inside"),
    "drive": ("C:outside.bin", None, "expected a relative path inside"),
    "empty": ("", None, "expected a relative path inside"),
    "dot": (".", None, "expected a relative path inside"),
    "nul": ("a\0b", None, "expected a relative path inside"),
    "missing": ("weights.bin", None, r"cannot be opened \(No such file"),
    "link": ("weights.bin", lambda folder: (folder / "weights.bin").symlink_to("../outside.bin"), "cannot be opened"),
    "link_inside": ("a", lambda folder: (folder / "a").symlink_to("model.onnx"), "cannot be opened"),
    "folder_link": ("up/outside.bin", lambda folder: (folder / "up").symlink_to(".."), "cannot be opened"),
    "hard_link": ("a", lambda folder: os.link(folder.parent / "outside.bin", folder / "a"), "no regular file"),
    "folder": ("sub", lambda folder: (folder / "sub").mkdir(), "no regular file"),
    "pipe": ("pipe", lambda folder: os.mkfifo(folder / "pipe"), "no regular file"),
    "empty_file": ("none", lambda folder: (folder / "none").touch(), "which has 0"),
}


@pytest.mark.parametrize("name", LOCATIONS)
def test_external_data_elsewhere(name, folder):
    location, make, words = LOCATIONS[name]
    path = external(folder, location)
    if make:
        make(folder)
    for load in (load_spec, load_tensors):
        with pytest.raises(FormatError, match=f"tensor 'w': .*{words}.*;"):
            load(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 1}, "bytes 1 to 33 of 'weights.bin', which has 32"),
        ({"offset": -4}, "entry for external data is damaged"),
        ({"offset": 1 << 62, "length": 32}, "bytes 4611686018427387904 to"),
        ({"length": 16}, "its shape needs 32"),
        ({"length": "many"}, "entry for external data is damaged"),
        ({"offset": "9" * 5000}, "entry for external data is damaged"),
        ({"__class__": "a"}, "entry for external data is damaged"),
    ],
)
def test_external_data_out_of_bounds(entries, words, folder):
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(FormatError, match=f"{words}.*"):
        load_spec(external(folder, **entries))


def test_external_data_that_many_tensors_share(folder):
    """A file of 4 KiB is not 400 MiB of weights."""
    (folder / "weights.bin").write_bytes(bytes(4096))
    proto = tensor(dims=[1024], data_type=RAW, data_location=1)
    proto.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    for k in range(1000):
        proto.graph.initializer.append(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"w{k}"
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    for load in (load_spec, load_tensors):
        with pytest.raises(FormatError, match="more than 8 times the files"):
            load(path)


def test_bytes_have_no_external_data(folder):
    data = external(folder).read_bytes()
    with pytest.raises(FormatError, match="a model from bytes has no folder; load it from its path"):
        loader.from_object(data)


OPENED = """
import os, sys
import fastrnn.loaders as loaders
path, seen = os.environ["MODEL"], []
loaders.load_spec(path)  # imports what it needs
sys.addaudithook(lambda event, args: seen.append(os.path.basename(os.fspath(args[0]))) if event == "open" else None)
loaders.load_spec(path)
print(*seen)
"""


def test_no_other_file_is_opened(folder, monkeypatch):
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = external(folder)
    monkeypatch.setenv("MODEL", str(path))
    assert set(check(OPENED).split()) == {"model.onnx", "model", "weights.bin"}
