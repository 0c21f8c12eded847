"""``fastrnn convert``, and files that say how their model ran."""

import json
from dataclasses import replace
from pathlib import Path

import hostile_torch
import numpy as np
import pytest
from cases import FMA_ISAS
from hostile_native import branching_spec
from published import MODELS

import fastrnn
from fastrnn import cli, tolerance
from fastrnn.loaders.native import load_spec, save_spec
from fastrnn.spec import Tensor


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An LSTM in lstm.pt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lstm.pt").write_bytes(hostile_torch.GOOD_PT)
    return fastrnn.load("lstm.pt")


def lstm(rng=None):
    rng = rng or np.random.default_rng(3)
    return fastrnn.LSTM(*(rng.standard_normal(shape).astype(np.float32) for shape in ((20, 3), (20, 5))))


def test_convert(source, capsys):
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.frnn"]) == 0
    out = capsys.readouterr().out
    assert "1 nodes, 16 parameters" in out
    assert "recorded" not in out
    x = np.ones((2, 4, 3), np.float32)
    np.testing.assert_array_equal(fastrnn.load("lstm.frnn")(x)[0], source(x)[0])
    assert load_spec("lstm.frnn").recorded == {}
    with pytest.raises(fastrnn.UnsupportedError, match=r"holds no recorded outputs; .*convert --verify 1"):
        fastrnn.load("lstm.frnn", verify=True)


def test_convert_records_a_run(source, capsys):
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.frnn", "--verify", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "source": "lstm.pt", "output": "lstm.frnn", "bytes": Path("lstm.frnn").stat().st_size, "nodes": 1,
        "parameters": 16, "verified": 3,
    }  # fmt: skip
    recorded = load_spec("lstm.frnn").recorded
    assert recorded.keys() >= {"x", "y", "h_n", "c_n"}
    assert recorded["x"].shape == (2, 10, 3)
    fastrnn.load("lstm.frnn", verify=True)
    assert cli.main(["verify", "lstm.frnn", "--against", "recorded"]) == 0
    assert cli.main(["verify", "lstm.pt", "--against", "recorded"]) == 2
    assert "holds no recorded arrays" in capsys.readouterr().err


def test_given_inputs(source, capsys):
    np.save("x.npy", np.full((1, 4, 3), 2, np.float32))
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.frnn", "--verify", "1", "-i", "x.npy"]) == 2
    assert "a state has shape (1, 2, 1), expected (1, 1, 1)" in capsys.readouterr().err  # random, for two rows
    np.savez("feeds.npz", x=np.load("x.npy"), h_0=np.ones((1, 1, 1)), c_0=np.ones((1, 1, 1)))
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.frnn", "--verify", "1", "-i", "feeds.npz"]) == 0
    assert load_spec("lstm.frnn").recorded["x"].tolist() == np.load("x.npy").tolist()


def test_nothing_is_overwritten(source, capsys):
    Path("out.frnn").write_bytes(b"precious")
    assert cli.main(["convert", "lstm.pt", "-o", "out.frnn"]) == 2
    assert "there already: out.frnn" in capsys.readouterr().err
    assert Path("out.frnn").read_bytes() == b"precious"
    assert cli.main(["convert", "lstm.pt", "-o", "out.frnn", "--force"]) == 0
    fastrnn.load("out.frnn")
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.onnx"]) == 2
    assert "expected a name that ends in .frnn" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["lstm.pt", "out.frnn"]


def test_options_of_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensor, state = hostile_torch.tensor, hostile_torch.state
    (tmp_path / "two.pt").write_bytes(
        hostile_torch.pt(
            state(*((f"{name}.weight_{end}_l0", tensor(size=hostile_torch.ints(4, n)))
                    for name in "ab" for end, n in (("ih", 3), ("hh", 1))))
        )
    )  # fmt: skip
    assert cli.main(["convert", "two.pt", "-o", "a.frnn"]) == 2
    assert "prefix" in capsys.readouterr().err
    assert not Path("a.frnn").exists()
    assert cli.main(["convert", "two.pt", "-o", "a.frnn", "--prefix", "a."]) == 0


def test_a_model_that_differs_is_not_written(source, capsys, monkeypatch):
    runs = iter(range(100))

    def run(self, feeds):
        return {"y": np.full(3, next(runs))}

    monkeypatch.setattr(fastrnn.Model, "run", run)
    assert cli.main(["convert", "lstm.pt", "-o", "lstm.frnn", "--verify", "2"]) == 2
    assert "gives other outputs ['y']; nothing was written" in capsys.readouterr().err
    assert not Path("lstm.frnn").exists()


def test_a_recording_holds_on_every_instruction_set(tmp_path, isa, monkeypatch):
    fastrnn.save(lstm(), tmp_path / "m.frnn", recorded={"x": np.linspace(-2, 2, 60).reshape(2, 10, 3)})
    asked, exact = [], tolerance.reference_run
    monkeypatch.setattr(tolerance, "reference_run", lambda *given: asked.append(1) or exact(*given))
    for other in FMA_ISAS:
        fastrnn.set_isa(other)
        fastrnn.load(tmp_path / "m.frnn", verify=True)
        assert bool(asked) == (isa == "generic")  # SSE2 has no FMA: other bits, the same within the tolerance


def test_a_recording_that_does_not_hold(tmp_path):
    path = tmp_path / "m.frnn"
    fastrnn.save(lstm(), path, recorded={"x": np.ones((2, 10, 3))})
    spec = load_spec(path)
    save_spec(replace(spec, recorded=spec.recorded | {"y": spec.recorded["y"] + np.float32(1e-3)}), path)
    with pytest.raises(
        fastrnn.FormatError, match=r"m\.frnn' does not give what it recorded: output 'y' is up to 0\.001"
    ):
        fastrnn.load(path, verify=True)
    save_spec(replace(spec, recorded=spec.recorded | {"y": spec.recorded["y"][:, :1]}), path)
    with pytest.raises(fastrnn.FormatError, match=r"is float32 \(2, 10, 5\), recorded was float32 \(2, 1, 5\)"):
        fastrnn.load(path, verify=True)
    fastrnn.load(path)


def test_a_recording_of_another_framework(tmp_path):
    """Its outputs are given, and differ by rounding."""
    layer, x = lstm(), np.ones((1, 5, 3), np.float32)
    y = np.nextafter(layer(x)[0], np.float32(2))
    fastrnn.save(layer, tmp_path / "m.frnn", recorded={"x": x, "y": y})
    np.testing.assert_array_equal(fastrnn.load(tmp_path / "m.frnn", verify=True).spec.recorded["y"], y)
    with pytest.raises(fastrnn.ShapeError, match=r"arrays \['z'\] are neither inputs nor outputs"):
        fastrnn.save(layer, tmp_path / "m.frnn", recorded={"x": x, "z": y})


def test_a_recording_of_operators_and_bodies(tmp_path):
    spec = replace(branching_spec(), recorded={}, inputs=[Tensor("x", (None, 2, None))])
    fastrnn.save(fastrnn.Model(spec), tmp_path / "m.frnn", recorded={"x": np.ones((3, 2, 5))})
    model = fastrnn.load(tmp_path / "m.frnn", verify=True)
    assert model.spec.recorded["y"].shape == (3, 2, 5)
    fastrnn.save(model, tmp_path / "copy.frnn")
    assert (tmp_path / "copy.frnn").read_bytes() == (tmp_path / "m.frnn").read_bytes()


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("stock_lstm/AAPL/model.keras", []),
        ("stock_lstm/AAPL/extracted_model.weights.h5", ["--config", str(MODELS / "stock_lstm/AAPL/model.keras")]),
        ("dtln/model_1.onnx", []),
    ],
)
def test_published_models(path, options, tmp_path):
    pytest.importorskip("h5py")
    path = MODELS / path
    if not path.exists():
        pytest.skip(f"{path} is absent; set FASTRNN_MODELS to the folder of the shared models")
    out = tmp_path / "out.frnn"
    assert cli.main(["convert", str(path), "-o", str(out), "--verify", "2", *options]) == 0
    fastrnn.load(out, verify=True)
