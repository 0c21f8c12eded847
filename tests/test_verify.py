"""verify passes what is right, names the layer that is wrong, and compares with frameworks and recordings.

A stand-in that evaluates the reference in float32 shows how verify judges; the tests at the end use the engine.
"""

import importlib
import os
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.errors import FormatError, ShapeError, UnsupportedError
from fastrnn.spec import ModelSpec, Node, Tensor, weight_suffixes

module = importlib.import_module("fastrnn.verify")  # the name fastrnn.verify may be the function
verify = module.verify


class Rounded:
    """A model that computes the reference in float32; ``wrong`` maps a layer to what it does to its outputs."""

    def __init__(self, spec, wrong=None):
        self.spec = self.graph = spec
        self.wrong = wrong or {}

    def trace(self, feeds):
        tensors = {name: np.asarray(array) for name, array in feeds.items()}
        with reference.precision(np.float32):
            for node in self.spec.nodes:
                written = reference.run_node(node, tensors)
                change = self.wrong.get(node.name, lambda array: array)
                tensors |= {name: change(array) for name, array in written.items()}
        return tensors


def tagger():
    """Embedding with a mask, a bidirectional LSTM, LayerNorm, Dense with softmax."""
    rng = np.random.default_rng(3)
    lstm = {}
    for suffix in weight_suffixes(1, "bidirectional"):
        lstm["weight_ih" + suffix] = rng.normal(0, 0.4, (32, 6)).astype(np.float32)
        lstm["weight_hh" + suffix] = rng.normal(0, 0.4, (32, 8)).astype(np.float32)
    nodes = [
        Node(
            "embedding",
            "words",
            ("ids",),
            ("e", "mask"),
            {"mask_zero": True},
            {"weight": rng.normal(0, 1, (20, 6)).astype(np.float32)},
        ),
        Node("lstm", "encoder", ("e", "", "", "mask"), ("h", "h_n"), {"direction": "bidirectional"}, lstm),
        Node("layer_norm", "norm", ("h",), ("n",), {}, {"weight": np.ones(16), "bias": np.zeros(16)}),
        Node("dense", "tags", ("n",), ("y",), {"activation": "softmax"}, {"weight": rng.normal(0, 0.4, (5, 16))}),
    ]
    spec = ModelSpec(nodes, [Tensor("ids", (None, None), "int64")], [Tensor("y", (None, None, 5))])
    spec.validate()
    return spec


@pytest.mark.parametrize("seed", range(5))
def test_rounding_passes(seed):
    report = verify(Rounded(tagger()), seed=seed)
    assert report.ok
    assert [(row.name, row.op) for row in report.layers] == [
        ("words", "embedding"), ("encoder", "lstm"), ("norm", "layer_norm"), ("tags", "dense"),
    ]  # fmt: skip
    assert [row.name for row in report.outputs] == ["y"]
    assert 0 < report.max_abs < 1e-6
    assert report.max_ulp > 0
    assert report.layers[0].max_abs == 0


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [
        ("words", lambda a: a[..., ::-1]),
        ("encoder", lambda a: a + 1e-4 * np.cos(np.arange(a.shape[-1]))),
        ("norm", lambda a: a + 1e-5),
        ("tags", lambda a: np.where(a == a.max(), np.nan, a)),
    ],
)
def test_a_wrong_layer_is_named(layer, wrong):
    report = verify(Rounded(tagger(), {layer: wrong}))
    assert not report.ok
    assert [row.name for row in report.layers if not row.ok] == [layer]
    assert not report.outputs[0].ok
    assert "MISMATCH" in str(report)
    assert layer in str(report)


def test_a_tolerance_replaces_the_rule():
    shifted = Rounded(tagger(), {"tags": lambda a: a + 1e-3})
    assert not verify(shifted, tolerance=1e-4).ok
    assert verify(shifted, tolerance=2e-3).ok


def test_errors_are_counted_in_float32_steps():
    one = np.array([1.0])
    assert module.errors(one + 3 * 2.0**-23, one) == (3 * 2.0**-23, 3.0)
    assert module.errors(np.array([np.nan, np.inf, -np.inf]), np.array([np.nan, np.inf, -np.inf])) == (0.0, 0.0)
    assert module.errors(np.array([np.nan]), one)[0] == np.inf
    assert module.errors(one, np.array([np.nan]))[0] == np.inf
    assert module.errors(np.array([np.inf]), np.array([1e39])) == (0.0, 0.0)  # overflows float32, so inf is right
    assert module.errors(np.array([-np.inf]), np.array([1e39]))[0] == np.inf
    assert module.errors(np.zeros(1), np.array([1e-40]))[1] == 0.0  # a flushed denormal
    assert module.errors(np.zeros((0, 3)), np.zeros((0, 3))) == (0.0, 0.0)


def test_random_inputs_suit_the_graph():
    ids = module.random_inputs(tagger(), seed=1, batch=8, seq_len=11)["ids"]
    assert ids.shape == (8, 11)
    assert ids.dtype == np.int64
    assert 0 <= ids.min() <= ids.max() <= 19
    assert (ids == 0).any()
    weights = {"weight_ih_l0": np.zeros((9, 4)), "weight_hh_l0": np.zeros((9, 3))}
    gru = Node("gru", "gru", ("x", "h_0", "mask"), ("y",), {"batch_first": False}, weights)
    inputs = [Tensor("x", (None, None, 4)), Tensor("h_0", (1, None, 3)), Tensor("mask", (None, None), "bool")]
    feeds = module.random_inputs(ModelSpec([gru], inputs, [Tensor("y", None)]), batch=2, seq_len=5)
    # a mask that the model can do without is left out
    assert {name: array.shape for name, array in feeds.items()} == {"x": (5, 2, 4), "h_0": (1, 2, 3)}
    again = module.random_inputs(ModelSpec([gru], inputs, [Tensor("y", None)]), batch=2, seq_len=5)
    np.testing.assert_array_equal(feeds["x"], again["x"])


def test_given_inputs():
    spec = tagger()
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    assert verify(Rounded(spec), inputs={"ids": ids}).ok
    assert verify(Rounded(spec), inputs=ids).ok
    with pytest.raises(ShapeError, match=r"\['x'\] were given, the model takes \['ids'\]"):
        verify(Rounded(spec), inputs={"x": ids})


def test_recorded_outputs(tmp_path):
    spec = tagger()
    ids = np.array([[1, 2, 0], [3, 4, 5]])
    y = reference.run(spec, {"ids": ids})["y"]
    report = verify(Rounded(spec), {"ids": ids, "y": y})
    assert report.ok
    assert not verify(Rounded(spec), {"ids": ids, "y": y + 1e-4}).ok
    path = tmp_path / "recorded.npz"
    np.savez(path, ids=ids, y=y)
    assert verify(Rounded(spec), path).ok
    assert verify(Rounded(spec), str(path)).ok


def test_recordings_that_do_not_fit(tmp_path):
    spec = tagger()
    ids = np.array([[1, 2, 0]])
    y = reference.run(spec, {"ids": ids})["y"]
    with pytest.raises(ShapeError, match=r"nothing to compare: the model gives \['y'\], the other side has \['z'\]"):
        verify(Rounded(spec), {"ids": ids, "z": y})
    with pytest.raises(ShapeError, match=r"holds the inputs \['ids'\]; leave them out of inputs="):
        verify(Rounded(spec), {"ids": ids, "y": y}, inputs={"ids": ids})
    with pytest.raises(ShapeError, match=r"the model takes \['ids'\]"):
        verify(Rounded(spec), {"y": y})
    with pytest.raises(ShapeError, match=r"'y'.*\(1, 3, 5\).*\(1, 2, 5\)"):
        verify(Rounded(spec), {"ids": ids, "y": y[:, :2]})
    with pytest.raises(UnsupportedError, match=r"cannot compare with 'truth\.txt'"):
        verify(Rounded(spec), "truth.txt")
    with pytest.raises(UnsupportedError, match="cannot compare with a int"):
        verify(Rounded(spec), 3)
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FormatError, match=r"broken\.npz"):
        verify(Rounded(spec), path)
    np.savez(path, ids=np.array([{}], dtype=object), y=y)  # a pickle, which is never read
    with pytest.raises(FormatError, match="plain arrays"):
        verify(Rounded(spec), path)


def test_tensors_that_one_side_lacks():
    """They are named, and the rest is compared: outputs, or inner tensors alone."""
    spec = tagger()
    ids = np.array([[1, 2, 0]])
    tensors = reference.run(spec, {"ids": ids})
    report = verify(Rounded(spec), {"ids": ids, "y": tensors["y"], "logits": tensors["y"], "z": tensors["y"]})
    assert report.ok
    assert report.not_compared == ["logits", "z"]
    assert "not compared, as one side lacks them: logits, z" in str(report)
    report = verify(Rounded(spec), {"ids": ids, "h": tensors["h"]})
    assert report.ok
    assert ([row.name for row in report.layers], report.outputs, report.not_compared) == (["encoder"], [], ["y"])
    assert 0 < report.max_abs < 1e-6
    assert not verify(Rounded(spec), {"ids": ids, "h": tensors["h"] + 1e-3}).ok
    report = verify(Rounded(spec), {"y": tensors["y"]}, inputs={"ids": ids})
    assert report.ok
    assert "given inputs ids (1, 3)" in str(report)


def test_a_report_says_what_was_compared():
    text = str(verify(Rounded(tagger()), batch=2, seq_len=5, seed=3))
    assert "4 layer(s) and 1 output(s) compared, on random inputs ids (2, 5), seed 3" in text
    assert "checks the arithmetic of the graph as it was read" in text
    tensors = reference.run(tagger(), {"ids": np.ones((1, 2), int)})
    text = str(verify(Rounded(tagger()), {"ids": np.ones((1, 2), int), "y": tensors["y"]}))
    assert "1 output(s) compared, on recorded inputs ids (1, 2)" in text
    assert "checks the arithmetic" not in text


def test_random_lengths_suit_torch():
    """At least 1, the longest first and as long as the rows; also where a cast stands between."""
    weights = {"weight_ih_l0": np.zeros((9, 4)), "weight_hh_l0": np.zeros((9, 3))}
    for dtype, nodes, read in (
        ("int64", [], "n"),
        ("int32", [Node("cast", "cast", ("n",), ("n64",), {"dtype": "int64"})], "n64"),
    ):
        gru = Node("gru", "gru", ("x", "", "", read), ("y",), {}, weights)
        inputs = [Tensor("x", (None, None, 4)), Tensor("n", (None,), dtype)]
        spec = ModelSpec([*nodes, gru, Node("cast", "use", ("n",), ("z",), {"dtype": "float32"})], inputs, [])
        for seed in range(20):
            lengths = module.random_inputs(replace(spec, outputs=[Tensor("z", None)]), seed, 5, 6)["n"]
            assert lengths.dtype == dtype
            assert lengths[0] == 6
            assert lengths.min() >= 1
            assert (np.diff(lengths) <= 0).all()
        assert len(set(lengths.tolist())) > 1


# The engine


def test_two_models(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 0.4, shape).astype(np.float32) for shape in ((24, 3), (24, 8), (4, 8))]
    gru, dense = fastrnn.GRU(*parts[:2]), fastrnn.Dense(parts[2])
    model = fastrnn.Sequential(gru, dense)
    fastrnn.save(model, tmp_path / "same.frnn")
    same = fastrnn.load(tmp_path / "same.frnn")
    for other in (same, tmp_path / "same.frnn", str(tmp_path / "same.frnn"), fastrnn.Sequential(gru, dense)):
        report = fastrnn.verify(model, other)
        assert report.ok, str(report)
        assert (report.max_abs, [row.op for row in report.layers]) == (0.0, ["gru", "dense"])
    assert fastrnn.verify(gru, fastrnn.GRU(*parts[:2], name="encoder")).ok
    wrong = fastrnn.Sequential(gru, fastrnn.Dense(parts[2] + np.float32(1e-3)))
    report = fastrnn.verify(model, wrong)
    assert [row.ok for row in (*report.layers, *report.outputs)] == [True, False, False]
    renamed = replace(same.spec, nodes=[replace(node, name="a" + node.name) for node in same.spec.nodes])
    report = fastrnn.verify(model, fastrnn.Model(renamed))
    assert (report.ok, [row.op for row in report.layers], len(report.outputs)) == (True, ["dense"], 1)  # by its output
    assert fastrnn.verify(gru, fastrnn.Sequential(gru)).ok
    with pytest.raises(ShapeError, match=r"one model has 1 output.*the other 2"):
        fastrnn.verify(model, gru)
    with pytest.raises(FileNotFoundError):
        fastrnn.verify(model, tmp_path / "absent.onnx")


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_engine_against_a_module_with_packed_sequences(enforce_sorted, batch_first):
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.GRU(6, 8, batch_first=batch_first, bidirectional=True)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x, lengths):
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted)
            y, h = self.rnn(packed)
            return self.head(rnn.pad_packed_sequence(y, batch_first=batch_first)[0]), h

    torch.manual_seed(0)
    live = Tagger().eval()
    model = fastrnn.from_torch(live, example_inputs=(torch.zeros(2, 2, 6), torch.tensor([2, 1])))
    x, lengths = (tensor.name for tensor in model.inputs)
    given = [7, 2, 4] if not enforce_sorted else [7, 4, 2]
    feeds = {x: np.random.default_rng(0).standard_normal((3, 9, 6) if batch_first else (9, 3, 6)), lengths: given}
    for inputs in (None, feeds):
        report = fastrnn.verify(model, live, inputs=inputs)
        assert report.ok, str(report)
        assert [row.op for row in report.layers] == ["gru", "dense"]
    with torch.no_grad():
        live.rnn.bias_hh_l0_reverse.add_(1e-2)
    assert [row.ok for row in fastrnn.verify(model, live).layers] == [False, False]
    with pytest.raises(UnsupportedError, match=r"does not take.*pass inputs= that suit it"):
        fastrnn.verify(model, live, inputs={x: feeds[x], lengths: [7, 0, 4]})


def sequential(torch):
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.LSTM(8, 16, 2, batch_first=True))


@pytest.mark.parametrize("seed", range(3))
def test_engine_against_the_reference(seed):
    torch = pytest.importorskip("torch")
    report = fastrnn.verify(fastrnn.from_torch(sequential(torch)), seed=seed)
    assert report.ok, str(report)
    assert report.max_abs < 2e-6


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_engine_against_torch(cell, batch_first):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    options = {} if cell.endswith("Cell") else {"batch_first": batch_first, "bidirectional": True}
    live = getattr(torch.nn, cell)(5, 16, **options)
    layer = fastrnn.from_torch(live)
    report = fastrnn.verify(layer, live)
    assert report.ok, str(report)
    with torch.no_grad():
        live.bias_hh.add_(1e-3) if cell.endswith("Cell") else live.bias_hh_l0.add_(1e-3)
    assert not fastrnn.verify(layer, live).ok


def test_engine_against_a_torch_model_layer_by_layer():
    torch = pytest.importorskip("torch")
    live = sequential(torch).train()
    live[1].eval()
    model = fastrnn.from_torch(live)
    report = fastrnn.verify(model, live)
    assert report.ok, str(report)
    assert {"lstm", "dense"} <= {row.op for row in report.layers}
    assert [m.training for m in live] == [True, False, True, True]  # the caller's modes are back
    with torch.no_grad():
        live[0].weight[0, 0] += 1e-2
    report = fastrnn.verify(model, live)
    assert not report.layers[0].ok
    assert not report.ok


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_engine_against_a_keras_model_layer_by_layer():
    pytest.importorskip("torch")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    live = keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(12, 6, mask_zero=True),
            layers.Bidirectional(layers.GRU(8, return_sequences=True)),
            layers.LSTM(7),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model = fastrnn.from_keras(live)
    report = fastrnn.verify(model, live)
    assert report.ok, str(report)
    assert [row.op for row in report.layers] == ["embedding", "gru", "lstm", "dense"]
    kernel = live.layers[2].cell.kernel
    kernel.assign(kernel.numpy() + 0.01) if hasattr(kernel, "numpy") else kernel.assign(kernel + 0.01)
    report = fastrnn.verify(model, live)
    assert [row.ok for row in report.layers] == [True, True, False, False]
