"""Model files that are cut, rewritten or removed while a model of them is in use: no signal, no wrong bits."""

import copy
import gc
import os
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripts import ROOT, check, run

import fastrnn
from fastrnn.errors import FormatError
from fastrnn.loaders.files import File
from fastrnn.loaders.native import spec_to_bytes
from fastrnn.loaders.safetensors import save_tensors
from fastrnn.spec import ModelSpec, Node, Tensor

DIGITS = ROOT / "examples" / "digits"
RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32) / 4


def words():
    """Layers of which a call reads weights as they are in the file, and of which it reads packed ones."""
    made = fastrnn.Sequential(
        fastrnn.Embedding(normal(50, 8)),
        fastrnn.LayerNorm(1 + normal(8), normal(8)),
        fastrnn.LSTM(normal(24, 8), normal(24, 6), normal(24), normal(24)),
        fastrnn.BatchNorm(normal(6), 1 + normal(6) ** 2, channels_first=False),
        fastrnn.Dense(normal(3, 6), normal(3)),
    )
    return fastrnn.Model(replace(made.spec, inputs=[Tensor("x", (None, None), "int64")]))


def graph():
    """Constants of the graph, and the taps of a convolution of each channel."""
    weights = {"weight": normal(4, 1, 3), "bias": normal(4)}
    nodes = [
        Node("conv", "taps", ("x",), ("a",), {"groups": 4, "strides": (1,)}, weights),
        Node("binary", "shift", ("a", "by"), ("b",), {"function": "add"}),
        Node("concat", "join", ("b", "more"), ("y",), {"axis": 0}),
    ]
    constants = {"by": normal(4, 5), "more": normal(2, 4, 5)}
    return fastrnn.Model(ModelSpec(nodes, [Tensor("x", (None, 4, 7))], [Tensor("y", None)], constants))


MODELS = {"words": (words, RNG.integers(0, 50, (2, 9))), "graph": (graph, normal(2, 4, 7))}


def cut(path):
    os.truncate(path, 3)


def halved(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    path.write_bytes(b"")


def other_elements(path):
    """Of the same size, in the same instant as far as the file says."""
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data[: -len(data) // 2] + bytes(255 - byte for byte in data[-len(data) // 2 :]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grown(path):
    with path.open("ab") as file:
        file.write(b"more")


def another_model(path):
    data = spec_to_bytes(words().spec)
    with path.open("wb") as file:  # as cp does
        file.write(data)


CHANGES = (cut, halved, emptied, other_elements, grown, another_model)


def loaded(tmp_path, name):
    make, x = MODELS[name]
    path = tmp_path / "m.frnn"
    fastrnn.save(make(), path, recorded={"x": x})
    return fastrnn.load(path), path, x


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_calls_go_on_and_the_rest_says_so(tmp_path, name, change):
    model, path, x = loaded(tmp_path, name)
    want, nbytes = model(x), model.nbytes
    stream = model.stream() if name == "words" else None
    (tmp_path / "old").write_bytes(b"old")
    change(path)
    np.testing.assert_array_equal(model(x), want)
    if name == "words":
        np.testing.assert_array_equal(model(x[:1, :7]), want[:1, :7])  # a plan that is made now
    np.testing.assert_array_equal(model.run({"x": x})[model.outputs[0].name], want)
    assert model.nbytes == nbytes
    assert model.explain()
    if stream is not None:
        np.testing.assert_array_equal(np.ravel(stream.step(x[0, 0])), want[0, 0])
        np.testing.assert_array_equal(model.pool(2).network(x), want)
    attempts = {
        "save": lambda: fastrnn.save(model, tmp_path / "old"),
        "save back": lambda: fastrnn.save(model, path),
        "pickle": lambda: pickle.dumps(model),
        "deepcopy": lambda: copy.deepcopy(model),
        "tensors": lambda: model.tensors,
        "verify": lambda: fastrnn.verify(model),
        "verify recorded": lambda: fastrnn.verify(model, "recorded"),
    }
    if model.layers:
        attempts["layers"] = lambda: pickle.dumps(model.layers)
    for attempt in attempts.values():
        with pytest.raises(FormatError, match=r"m\.frnn' has changed since it was opened; load it again"):
            attempt()
    assert (tmp_path / "old").read_bytes() == b"old"
    for what in (fastrnn.load, fastrnn.load_tensors):
        if change is not another_model:
            with pytest.raises(FormatError):
                what(path)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_is_replaced_or_removed_is_no_changed_file(tmp_path, name):
    model, path, x = loaded(tmp_path, name)
    want = model(x)
    path.chmod(0o600)
    fastrnn.save(model, path)  # over the file that it is read from
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(x), want)
    fastrnn.save(words(), path)
    fastrnn.save(model, tmp_path / "again.frnn")
    path.unlink()
    np.testing.assert_array_equal(copy.deepcopy(model)(x), want)
    assert fastrnn.verify(model).ok
    np.testing.assert_array_equal(fastrnn.load(tmp_path / "again.frnn")(x), want)
    assert all(type(array) is np.ndarray for array in model.tensors.values())


def test_what_a_call_reads_is_counted():
    table, taps, bias, matrix = normal(50, 8), normal(4, 1, 3), normal(4), normal(3, 6)
    assert fastrnn.Embedding(table).nbytes == table.nbytes
    assert fastrnn.LayerNorm(bias, bias).nbytes == 2 * bias.nbytes
    assert fastrnn.BatchNorm(bias, bias**2 + 1).nbytes == 2 * bias.nbytes
    assert fastrnn.Dense(matrix).nbytes >= matrix.nbytes
    made = graph()
    constants = sum(array.nbytes for _, array in made.graph.all_constants())
    assert constants >= (4 * 5 + 2 * 4 * 5) * 4
    assert made.nbytes == constants + taps.nbytes + bias.nbytes


def test_weights_stand_once_in_memory(tmp_path):
    """What is packed is no array any more; the table of the embedding is one, once."""
    table = normal(20_000, 16)
    wide = normal(2_000, 1_000)
    layers = fastrnn.Embedding(table), fastrnn.Dense(normal(1_000, 16)), fastrnn.Dense(wide)
    fastrnn.save(fastrnn.Sequential(*layers), tmp_path / "m.frnn")
    fastrnn.load(tmp_path / "m.frnn")  # imports
    tracemalloc.start()
    model = fastrnn.load(tmp_path / "m.frnn")
    held, peak = tracemalloc.get_traced_memory()
    assert held < table.nbytes + 500_000
    assert peak < table.nbytes + 2.2 * wide.nbytes
    pool = model.rebuilt(model.spec)
    assert tracemalloc.get_traced_memory()[0] < table.nbytes + 700_000
    tracemalloc.stop()
    assert pool.nbytes == model.nbytes


def test_arrays_given_to_layers_are_copied():
    table, scale = normal(50, 8), normal(8)
    layers = fastrnn.Embedding(table), fastrnn.LayerNorm(scale, scale), fastrnn.BatchNorm(scale, scale**2 + 1)
    ids, x = np.arange(50), normal(3, 8)
    want = [layer(given) for layer, given in zip(layers, (ids, x, x), strict=True)]
    table[...], scale[...] = 0, 0
    for layer, given, y in zip(layers, (ids, x, x), want, strict=True):
        np.testing.assert_array_equal(layer(given), y)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(given), y)


def test_mapped_arrays_given_to_layers_are_copied(tmp_path):
    np.save(tmp_path / "table.npy", normal(5_000, 64))
    code = """
import numpy as np, sys, fastrnn, os, pickle
table = np.load(sys.argv[1], mmap_mode="r")
layers = fastrnn.Embedding(table), fastrnn.Dense(table[:3])
want = layers[0]([4000])
os.truncate(sys.argv[1], 200)
assert (layers[0]([4000]) == want).all()
pickle.dumps(layers)
"""
    check(code, tmp_path / "table.npy")


def test_open_files(tmp_path, monkeypatch):
    fastrnn.save(words(), tmp_path / "m.frnn")

    def open_files():
        names = Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else pytest.skip("no /proc")
        gc.collect()
        return sum(os.path.realpath(name) == str(tmp_path / "m.frnn") for name in names)

    model = fastrnn.load(tmp_path / "m.frnn")
    assert open_files() == 1
    assert fastrnn.load_tensors(tmp_path / "m.frnn")
    for _ in range(100):
        fastrnn.load(tmp_path / "m.frnn")
    assert open_files() == 1
    del model
    assert open_files() == 0
    # Files are left to a host that has few to open.
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    model = fastrnn.load(tmp_path / "m.frnn")
    assert open_files() == 0
    (tmp_path / "m.frnn").write_bytes(b"new")
    assert fastrnn.verify(model).ok


def test_reading_a_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    file = File(path)
    assert (len(file), file[:3], file[98:200], file[5:5], file[50:20]) == (100, b"\0\1\2", b"bc", b"", b"")
    assert file[:] == bytes(range(100))
    os.utime(path, (1, 1))
    assert file.read(0, 2) == b"\0\1"
    with pytest.raises(FormatError, match="has changed"):
        file[:2]
    os.truncate(path, 50)
    with pytest.raises(FormatError, match="has changed"):
        file.read(0, 2)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a regular file"):
        File(tmp_path / "fifo")


UNDER_LOAD = """
import sys, threading
import numpy as np
import fastrnn

path, rewritten, x, options = sys.argv[1], sys.argv[2], np.load(sys.argv[3]), eval(sys.argv[4])
with open(rewritten, "rb") as file:
    data = file.read()
# Those of other contents are no models.
others = [data[: len(data) // 2], data[:100], data + data, bytes(len(data) - 1), data[:-40], b"", data]

def load():
    return fastrnn.load(path, **options)

def results(model):
    if not model.inputs:  # weights alone
        return [(name, array.tobytes()) for name, array in sorted(model.tensors.items())]
    y = model(x)
    return [(y[0] if isinstance(y, tuple) else y).tobytes()]

def rewrite():
    for contents in others * 4:
        with open(rewritten, "wb") as file:  # as cp does, a piece at a time
            for begin in range(0, len(contents), len(data) // 3 + 1):
                file.write(contents[begin : begin + len(data) // 3 + 1])
                file.flush()

model = load()
want = results(model)
writer = threading.Thread(target=rewrite)
writer.start()
tries = 0
while writer.is_alive() or tries < 3:
    tries += 1
    assert not model.inputs or results(model) == want
    try:
        assert results(load()) == want, "a mixture of two files"
    except fastrnn.FastrnnError:
        pass
writer.join()
assert results(load()) == want
"""


def a_native_file(folder):
    fastrnn.save(words(), folder / "m.frnn")
    return folder / "m.frnn", MODELS["words"][1], {}


def a_file_of_digits(suffix):
    def make(folder):
        (folder / f"m{suffix}").write_bytes((DIGITS / f"gru{suffix}").read_bytes())
        return folder / f"m{suffix}", normal(2, 8, 8), {}

    return make


def a_bare_layer(folder):
    save_tensors({"weight_ih_l0": normal(240, 30), "weight_hh_l0": normal(240, 60)}, folder / "m.safetensors")
    return folder / "m.safetensors", normal(2, 9, 30), {}


def a_torch_layer(folder):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.LSTM(30, 60).state_dict(), folder / "m.pt")
    return folder / "m.pt", normal(9, 2, 30), {}


def weights_of_keras(folder):
    with zipfile.ZipFile(DIGITS / "gru.keras") as archive:
        (folder / "m.weights.h5").write_bytes(archive.read("model.weights.h5"))
    return folder / "m.weights.h5", normal(2, 8, 8), {"config": str(DIGITS / "gru.keras")}


def an_onnx_file(external):
    def make(folder):
        onnx = pytest.importorskip("onnx")
        from onnx import TensorProto, helper, numpy_helper

        given = [numpy_helper.from_array(normal(1, 240, k), name) for name, k in (("w", 30), ("r", 60))]
        node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=60)
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, 30])
        proto = helper.make_model(
            helper.make_graph([node], "g", [x], [y], given), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        options = {"save_as_external_data": True, "location": "data", "size_threshold": 0} if external else {}
        onnx.save(proto, folder / "m.onnx", **options)
        return folder / "m.onnx", normal(9, 2, 30), {}

    return make


FILES = {
    "frnn": a_native_file,
    "safetensors": a_bare_layer,
    "safetensors, many layers": a_file_of_digits(".safetensors"),
    "pt": a_torch_layer,
    "pt, many layers": a_file_of_digits(".pt"),
    "keras": a_file_of_digits(".keras"),
    "weights.h5": weights_of_keras,
    "onnx": an_onnx_file(False),
    "onnx, external data": an_onnx_file(True),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_rewritten_under_load(tmp_path, kind):
    path, x, options = FILES[kind](tmp_path)
    np.save(tmp_path / "x.npy", x)
    rewritten = tmp_path / "data" if "external" in kind else path
    done = run(UNDER_LOAD, path, rewritten, tmp_path / "x.npy", repr(options))
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
