"""What users get wrong: every answer is an error of ours that names what is there and the likely call."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
from fastrnn.errors import ArgumentError, FastrnnError
from fastrnn.spec import ModelSpec, Node, Tensor

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def lstm():
    return fastrnn.LSTM(normal(16, 3), normal(16, 4))


def gru():
    return fastrnn.GRU(normal(12, 3), normal(12, 4))


def dense():
    return fastrnn.Dense(normal(2, 4))


def network():
    made = fastrnn.Sequential(gru(), dense())
    return fastrnn.Model(replace(made.spec, inputs=[Tensor("x", (None, None, 3))]))


def with_an_option():
    node = Node("reduce", "total", ("x",), ("y",), {"function": "sum"})
    cell = Node("lstm", "l", ("frames", "h"), ("a",), {}, {"weight_ih_l0": normal(8, 3), "weight_hh_l0": normal(8, 2)})
    tensors = [Tensor("frames", (None, None, 3)), Tensor("h", None), Tensor("x", None)]
    return fastrnn.Model(ModelSpec([cell, node], tensors, [Tensor("a", None), Tensor("y", None)]))


X = normal(2, 5, 3)

MISTAKES = {
    "sizes instead of weights": (lambda: fastrnn.LSTM(28, 64), "weight_ih_l0 is 28.*from_torch"),
    "a size": (lambda: fastrnn.Dense(3), "made of trained weights, as arrays; weight is 3"),
    "sizes of a table": (lambda: fastrnn.Embedding(10, 4), r"Embedding\(weight, mask_zero=False"),
    "no weight": (lambda: fastrnn.Dense(None), "weight is None"),
    "no variance": (lambda: fastrnn.BatchNorm(np.ones(3), None), "var is None"),
    "an option of another": (lambda: fastrnn.GRU(normal(12, 3), normal(12, 4), hidden=3), "unknown option.*hidden"),
    "nearly an option": (lambda: fastrnn.GRU(normal(12, 3), normal(12, 4), bidirection=True), "mean 'bidirectional'"),
    "an activation": (lambda: fastrnn.Activation(3), "activation is 3, expected a text"),
    "a number as text": (lambda: fastrnn.LayerNorm(normal(3), eps="1e-5"), "eps is '1e-5', expected a number"),
    "no layers": (lambda: fastrnn.Sequential(), "at least one layer"),
    "a list of layers": (lambda: fastrnn.Sequential([gru(), dense()]), r"Sequential\(\*layers\)"),
    "a model from nothing": (lambda: fastrnn.Model(None), "spec is None, expected a ModelSpec"),
    "load None": (lambda: fastrnn.load(None), "path is None, expected a text or a path"),
    "load bytes": (lambda: fastrnn.load(b"PK"), "path is b'PK'"),
    "load a dict": (lambda: fastrnn.load({}), "path is a dict"),
    "load of text": (lambda: fastrnn.load_tensors(3), "path is 3"),
    "swapped": (lambda: fastrnn.save("m.frnn", gru()), "model and path are swapped"),
    "save without a path": (lambda: fastrnn.save(gru()), "missing a required argument: 'path'"),
    "save a text": (lambda: fastrnn.save("a.pt", "b.frnn"), r"expected a Model or a Layer; fastrnn\.load"),
    "verify a file": (lambda: fastrnn.verify("m.frnn"), r"got 'm\.frnn'; fastrnn\.load"),
    "verify against a number": (lambda: fastrnn.verify(gru(), 3), "cannot compare with"),
    "verify with a seed": (lambda: fastrnn.verify(gru(), seed=-1), "seed is -1, expected a whole number from 0"),
    "torch from a path": (lambda: fastrnn.from_torch("m.pt"), r"fastrnn\.load reads files"),
    "torch with an option": (lambda: fastrnn.from_torch({}, num_threads=2), "did you mean 'threads'"),
    "keras from a path": (lambda: fastrnn.from_keras("m.keras"), "load that"),
    "onnx from a number": (lambda: fastrnn.from_onnx(3), "expected the path or the bytes"),
    "threads as text": (lambda: fastrnn.set_num_threads("two"), "whole number of at least 1, got 'two'"),
    "no threads": (lambda: fastrnn.set_num_threads(0), "at least 1, got 0"),
    "half a thread": (lambda: fastrnn.set_num_threads(1.5), "got 1.5"),
    "an instruction set": (lambda: fastrnn.set_isa("AVX2"), "available: .*generic"),
    "a backend": (lambda: fastrnn.Dense(normal(2, 3), backend="pakced"), "mean 'packed'"),
    "run of an array": (lambda: network().run(X), r"write model\.run\(\{'x': array\}\)"),
    "a wrong input": (lambda: network().run({"y": X}), "unknown: y; missing: x.*takes 'x'"),
    "a wrong output": (lambda: network().run({"x": X}, "z"), "no output named 'z'"),
    "outputs by number": (lambda: network().run({"x": X}, 0), "no output named 0"),
    "trace of an array": (lambda: network().trace(X), "dict of arrays by input name"),
    "an option of no model": (lambda: network()(X, state=None), "unknown: state"),
    "nearly an option of a layer": (lambda: fastrnn.model.as_model(lstm())(X, lengts=[1, 2]), "did you mean 'lengths'"),
    "an absent option": (lambda: with_an_option()(X, np.zeros((1, 2, 2))), r"missing: x\); the model takes"),
    "explain of no rows": (lambda: lstm().explain(-1), "batch is -1, expected a whole number from 1"),
    "explain of less than no steps": (lambda: network().explain(1, -1), "seq_len is -1"),
    "explain of text": (lambda: dense().explain("x"), "batch is 'x'"),
    "warmup": (lambda: lstm().warmup(0, 5), "batch is 0"),
    "a state of h alone": (lambda: lstm()(X, np.zeros((1, 2, 4))), "state"),
    "a pair of states": (lambda: gru()(X, (np.zeros((1, 2, 4)), np.zeros((1, 2, 4)))), r"batch, size\) = \(1, 2, 4\)"),
    "a state without its layers": (lambda: gru()(X, np.zeros((2, 4))), r"batch, size\) = \(1, 2, 4\)"),
    "x as text": (lambda: gru()("abc"), "real numbers"),
    "x of None": (lambda: gru()(None), "real numbers"),
    "ragged x": (lambda: dense()([[1, 2], [3]]), "not an array"),
    "objects": (lambda: dense()(np.array([None, {}], object)), "real numbers"),
    "complex x": (lambda: dense()(np.ones((1, 4), complex)), "complex"),
    "ids of text": (lambda: fastrnn.Embedding(normal(5, 3))(["a"]), "whole numbers"),
    "a pool of text": (lambda: lstm().pool("4"), "capacity must be a whole number"),
    "a stream of a path": (lambda: fastrnn.Stream("m.frnn"), r"fastrnn\.load"),
    "a step without handles": (lambda: lstm().pool(2).step(None, X[:1, 0]), "handles"),
    "restore a number": (lambda: lstm().stream().restore(3), "data is 3, expected bytes"),
    "a batcher of a path": (lambda: fastrnn.Batcher("m.frnn"), r"fastrnn\.load"),
    "a batcher of none": (lambda: fastrnn.Batcher(lstm(), max_batch=0), "max_batch must be a whole number from 1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_typical_mistakes(mistake):
    call, answer = MISTAKES[mistake]
    with pytest.raises(FastrnnError, match=f"(?s){answer}"):
        call()


def test_options_of_files(tmp_path):
    fastrnn.save(network(), tmp_path / "m.frnn")
    with pytest.raises(FastrnnError, match=r"no option 'num_threads' here.*did you mean 'threads'"):
        fastrnn.load(tmp_path / "m.frnn", num_threads=2)
    with pytest.raises(FastrnnError, match="names is 3, expected a text or a list or a dict"):
        fastrnn.load_layers(tmp_path / "m.frnn", 3)
    with pytest.raises(FastrnnError, match="names of layers are texts, got 3"):
        fastrnn.load_layers(tmp_path / "m.frnn", [3])


def test_mistakes_are_type_errors_and_value_errors():
    for kind in (TypeError, ValueError, ArgumentError):
        with pytest.raises(kind):
            fastrnn.Dense(3)


# Mistakes that are made from the signatures

WRONG = {
    "None": None, "text": "x", "int": 3, "negative": -1, "zero": 0, "huge": 10**30, "nan": float("nan"), "half": 1.5,
    "object": object(), "list": [], "dict": {}, "class": int, "bytes": b"ab", "ragged": [[1, 2], [3]], "set": {1},
    "tuple": (None,), "True": True, "complex": np.ones((2, 3, 3), complex), "objects": np.array([None, {}], object),
    "rank 2": normal(2, 3), "rank 4": normal(2, 3, 3, 3), "texts": np.array(["a"]),
}  # fmt: skip
INSIDE = {"run_node", "store", "call_shapes", "rebuilt", "row_size"}
"""What other parts of the package call, not users."""
HARMLESS = {"get_num_threads", "info", "set_num_threads", "set_isa", "set_team"}


def public_calls(path):
    given = {
        "load": (path,), "load_tensors": (path,), "load_layers": (path, ["0_gru"]), "save": (gru(), path),
        "verify": (lstm(),), "LSTM": (normal(16, 3), normal(16, 4)), "GRU": (normal(12, 3), normal(12, 4)),
        "RNN": (normal(4, 3), normal(4, 4)), "Dense": (normal(2, 3),), "Embedding": (normal(5, 3),),
        "LSTMCell": (normal(16, 3), normal(16, 4)), "GRUCell": (normal(12, 3), normal(12, 4)),
        "RNNCell": (normal(4, 3), normal(4, 4)), "BatchNorm": (normal(3), normal(3) ** 2), "Activation": ("relu",),
        "Batcher": (lstm(),), "Pool": (lstm(), 4), "Stream": (lstm(),), "Model": (network().spec,),
        "Sequential": (gru(),), "from_torch": ({"weight_ih_l0": normal(16, 3), "weight_hh_l0": normal(16, 4)},),
        "from_keras": (None,), "from_onnx": (b"x",),
    }  # fmt: skip
    for name in fastrnn.__all__:
        found = getattr(fastrnn, name)
        is_error = isinstance(found, type) and issubclass(found, Exception)
        if callable(found) and not is_error and name not in HARMLESS:
            yield name, found, given.get(name, ())
    for made in (lstm(), network(), dense(), fastrnn.Embedding(normal(5, 3)), lstm().stream(), lstm().pool(3)):
        methods = {"__call__": (X,), "run": ({"x": X},), "trace": ({"x": X},), "step": (X[:1, 0],), "pool": (3,)}
        for name in ("__call__", *(n for n in dir(made) if not n.startswith("_") and n not in INSIDE)):
            method = getattr(made, name, None)
            if callable(method):
                yield f"{type(made).__name__}.{name}", method, methods.get(name, ())


def variations(function, good):
    """Calls with one argument that is wrong."""
    parameters = list(inspect.signature(function).parameters.values())
    for k, parameter in enumerate(parameters):
        for label, value in WRONG.items():
            what = f"{parameter.name}: {label}"
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield what, (value,), {}
            elif k < len(good):
                yield what, (*good[:k], value, *good[k + 1 :]), {}
            elif parameter.kind is not parameter.VAR_KEYWORD:
                yield what, good, {parameter.name: value}


@pytest.mark.filterwarnings("ignore")
def test_no_foreign_exception(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of the calls write files
    fastrnn.save(network(), tmp_path / "m.frnn")
    wrong, calls = [], 0
    for name, function, good in public_calls(tmp_path / "m.frnn"):
        for what, arguments, options in variations(function, good):
            calls += 1
            try:
                made = function(*arguments, **options)
            except (FastrnnError, FileNotFoundError):
                continue
            except Exception as error:
                if not (isinstance(error, TypeError) and error.__traceback__.tb_next is None):  # Python's, at the call
                    wrong.append(f"{name}({what}): {type(error).__name__}: {error}"[:200])
            else:
                if isinstance(made, fastrnn.Batcher):
                    made.close()
    assert calls > 2000
    assert not wrong, "\n".join(wrong)
