"""The command line, from files to files; in this process, but where the process itself is the subject."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from published import MODELS

import fastrnn
from fastrnn import array_files, cli, cli_bench, cli_run, doctor
from fastrnn.errors import FormatError
from fastrnn.loaders import FORMATS
from fastrnn.spec import ModelSpec, Node, Tensor
from fastrnn.verify import random_inputs

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def weights(rng, *shape):
    return rng.normal(0, 0.4, shape).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder, rng):
    """A GRU and a classifier in net.frnn."""
    gru = fastrnn.GRU(weights(rng, 24, 3), weights(rng, 24, 8), weights(rng, 24), weights(rng, 24))
    made = fastrnn.Sequential(gru, fastrnn.Dense(weights(rng, 4, 8), activation="softmax"))
    fastrnn.save(made, folder / "net.frnn")
    return made


@pytest.fixture
def layer(folder, rng):
    """A bare bidirectional LSTM in lstm.frnn, whose outputs are y, h_n, c_n."""
    parts = [weights(rng, 20, 3), weights(rng, 20, 3)], [weights(rng, 20, 5), weights(rng, 20, 5)]
    made = fastrnn.LSTM(*parts, bidirectional=True)
    fastrnn.save(made, folder / "lstm.frnn")
    return made


def fails(capsys, *argv):
    """Run a command that must fail; its error text."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastrnn: error: ")
    assert "\nhint: " in err
    assert "Traceback" not in err
    return err


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for name in ("inspect", "run", "verify", "bench", "doctor"):
        assert name in out
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify"])
    assert stop.value.code == 2


def test_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout == f"fastrnn {fastrnn.__version__}\n"


# inspect


def test_inspect(model, capsys):
    assert cli.main(["inspect", "net.frnn"]) == 0
    out = capsys.readouterr().out
    assert "hidden 8" in out
    assert "softmax" in out
    assert cli.main(["inspect", "net.frnn", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    gru, dense = found["layers"]
    assert (gru["kind"], gru["parameters"], gru["macs"]) == ("gru", 24 * (3 + 8 + 2), 24 * 11)
    assert (dense["kind"], dense["macs"], dense["weight_bytes"]) == ("dense", 32, 128)
    assert found["total"] == {"parameters": 312 + 32, "macs": 264 + 32, "weight_bytes": 4 * 344}
    assert dense["output_shape"] == [None, None, 4]


def test_a_reader_may_stop_early(model):
    command = f"{sys.executable} -m fastrnn inspect net.frnn --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stderr == ""


# run


def test_run_npy(model, rng, folder, capsys):
    x = weights(rng, 5, 7, 3)
    np.save("x.npy", x)
    for size in ("1", "2", "100"):
        assert cli.main(["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--batch-size", size, "--force"]) == 0
        np.testing.assert_array_equal(np.load("y.npy"), model(x))
    assert "(5, 7, 4)" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["net.frnn", "x.npy", "y.npy"]


def test_run_json(model, rng, capsys):
    np.save("x.npy", weights(rng, 5, 7, 3))
    assert cli.main(["run", "net.frnn", "-i", "x=x.npy", "-o", "out/", "--threads", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    [name] = (tensor.name for tensor in model.outputs)
    found = json.loads(out)
    assert found["outputs"] == {name: [5, 7, 4]}
    assert np.load(found["files"][0]).shape == (5, 7, 4)
    assert err == ""  # no progress but on a terminal


def test_run_csv(model, rng, folder):
    x = np.round(weights(rng, 6, 3), 3)
    np.savetxt("x.csv", x, delimiter=",", header="a,b,c", comments="")
    assert cli.main(["run", "net.frnn", "-i", "x.csv", "-o", "y.csv"]) == 0
    written = np.loadtxt("y.csv", delimiter=",", dtype=np.float32)
    np.testing.assert_array_equal(written, model(np.loadtxt("x.csv", delimiter=",", skiprows=1)[None])[0])


def test_run_states_and_lengths(layer, rng, capsys):
    x, h, c = weights(rng, 4, 6, 3), weights(rng, 2, 4, 5), weights(rng, 2, 4, 5)
    np.savez("feeds.npz", x=x, h_0=h, c_0=c)
    lengths = np.array([3, 0, 6, 1])
    command = ["run", "lstm.frnn", "-i", "feeds.npz", "-o", "out.npz", "--force"]
    for extra, options in ([], {}), (["--lengths", "3,0,6,1", "--batch-size", "3"], {"lengths": lengths}):
        y, (h_n, c_n) = layer(x, (h, c), **options)
        assert cli.main(command + extra) == 0
        with np.load("out.npz") as out:
            for name, want in {"y": y, "h_n": h_n, "c_n": c_n}.items():
                np.testing.assert_array_equal(out[name], want)
    np.save("lengths.npy", lengths)
    assert cli.main([*command[:-2], "y.npy", "--outputs", "y", "--lengths", "lengths.npy"]) == 0
    np.testing.assert_array_equal(np.load("y.npy"), layer(x, (h, c), lengths=lengths)[0])


def test_run_time_first(rng, folder):
    torch = pytest.importorskip("torch")
    live = torch.nn.GRU(3, 5)
    layer = fastrnn.from_torch(live)
    fastrnn.save(layer, "gru.frnn")
    x = weights(rng, 6, 4, 3)
    np.save("x.npy", x)
    assert cli.main(["run", "gru.frnn", "-i", "x.npy", "-o", "out.npz", "--batch-size", "3"]) == 0
    y, h_n = layer(x)
    with np.load("out.npz") as out:
        np.testing.assert_array_equal(out["y"], y)
        np.testing.assert_array_equal(out["h_n"], h_n)
    np.savetxt("x.csv", x[:, 0], delimiter=",")
    assert cli.main(["run", "gru.frnn", "-i", "x.csv", "-o", "y.csv", "--outputs", "y"]) == 0
    np.testing.assert_allclose(np.loadtxt("y.csv", delimiter=","), y[:, 0], rtol=1e-7)


def test_run_ids_from_csv(rng, folder):
    embedding = fastrnn.Embedding(weights(rng, 9, 3), mask_zero=True)
    gru = fastrnn.GRU(weights(rng, 15, 3), weights(rng, 15, 5))
    model = fastrnn.Sequential(embedding, gru)
    fastrnn.save(model, "words.frnn")
    (folder / "ids.csv").write_text("word\n3\n8\n0\n")
    assert cli.main(["run", "words.frnn", "-i", "ids.csv", "-o", "out.npz"]) == 0
    y, h_n = model(np.array([[3, 8, 0]]))
    with np.load("out.npz") as out:
        written = {name: out[name] for name in out.files}
    np.testing.assert_array_equal(written[model.outputs[0].name], y[0])
    np.testing.assert_array_equal(written[model.outputs[1].name], h_n[:, 0])
    np.save("ids.npy", np.array([[1.5]]))
    assert cli.main(["run", "words.frnn", "-i", "ids.npy", "-o", "no.npz"]) == 2


def test_nothing_is_overwritten_or_half_written(model, rng, folder, capsys, monkeypatch):
    np.save("x.npy", weights(rng, 2, 3, 3))
    command = ["run", "net.frnn", "-i", "x.npy", "-o", "y.npy"]
    (folder / "y.npy").write_bytes(b"precious")
    assert "y.npy" in fails(capsys, *command)
    assert (folder / "y.npy").read_bytes() == b"precious"

    def full_disk(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device", "y.npy")

    monkeypatch.setattr(np, "save", full_disk)
    assert "No space left on device" in fails(capsys, *command, "--force")
    assert (folder / "y.npy").read_bytes() == b"precious"
    assert sorted(path.name for path in folder.iterdir()) == ["net.frnn", "x.npy", "y.npy"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["run", "absent.frnn", "-i", "x.npy", "-o", "y.npy"], "absent.frnn"),
        (["run", "net.frnn", "-i", "absent.npy", "-o", "y.npy"], "No such file or directory: absent.npy"),
        (["run", "net.frnn", "-i", "z=x.npy", "-o", "y.npy"], "--input z=x.npy"),
        (["run", "net.frnn", "-i", "feeds.npz", "-o", "y.npy"], "['other', 'x'] were given, the model takes ['x']"),
        (["run", "net.frnn", "-i", "wide.npy", "-o", "y.npy"], "(2, 3, 9)"),
        (["run", "net.frnn", "-i", "objects.npy", "-o", "y.npy"], "not a .npy file of plain numbers"),
        (["run", "net.frnn", "-i", "words.csv", "-o", "y.npy"], "words.csv"),
        (["run", "net.frnn", "-i", "x.npy", "-o", "y.txt"], "expected a name that ends in .npy, .npz, .csv"),
        (["run", "net.frnn", "-i", "x.npy", "-o", "y.csv"], "a table has two dimensions"),
        (
            ["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--lengths", "1,9"],
            "lengths must lie in 0 .. 3, got 1 .. 9",
        ),
        (["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--lengths", "1,2,3"], "3 numbers, the inputs have 2 rows"),
        (["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--lengths", "1,x"], "expected whole numbers"),
        (["run", "net.frnn", "-i", "x.npy", "-o", "y.npy", "--outputs", "z"], "--outputs names ['z']"),
        (["run", "lstm.frnn", "-i", "x.npy", "-o", "y.npy"], "3 outputs (y, h_n, c_n); choose one with --outputs"),
        (["inspect", "notes.txt"], "notes.txt"),
        (["verify", "net.frnn", "--against", "x.npy"], "cannot compare with 'x.npy'"),
        (["verify", "net.frnn", "--against", "feeds.npz"], "nothing to compare: the model gives ['1_dense.y']"),
        (["verify", "net.frnn", "--against", "absent.onnx"], "absent.onnx"),
        (["verify", "net.frnn", "-i", "wrong=x.npy"], "the model has no input 'wrong', it takes ['x']"),
        (["run", "net.frnn", "-i", "wrong=x.npy", "-o", "y.npy"], "the model has no input 'wrong', it takes ['x']"),
        (["inspect", "net.frnn", "--prefix", "a."], "prefix"),
    ],
)
def test_errors(model, layer, rng, folder, capsys, argv, text):
    x = weights(rng, 2, 3, 3)
    np.save("x.npy", x)
    np.save("wide.npy", weights(rng, 2, 3, 9))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("feeds.npz", x=x, other=x)
    (folder / "words.csv").write_text("1,2,3\nx,y,z\n")
    (folder / "notes.txt").write_text("not a model")
    before = sorted(path.name for path in folder.iterdir())
    assert text in fails(capsys, *argv)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_errors_as_json(folder, capsys):
    assert cli.main(["inspect", "absent.frnn", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == "FileNotFoundError"
    assert "absent.frnn" in error["message"]
    assert error["hint"]
    assert "absent.frnn" in err


def test_progress_is_for_terminals(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    times = iter([0.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr(cli_run.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with cli_run._progress(90) as report:
        for done in (10, 40, 90):
            report(done)
    assert sys.stderr.getvalue() == "\r40/90 rows, 2 s, 2 s left \r90/90 rows, 3 s, 0 s left \n"


def test_csv_files(folder):
    path = folder / "a.csv"
    for text, want in {"1,2\n3,4\n": [[1, 2], [3, 4]], "a,b\n1,nan\n\n": [[1, np.nan]], "5\n": [[5]]}.items():
        path.write_text(text)
        np.testing.assert_array_equal(array_files.read(path), want)
    for text in ("", "a,b\n", "1,2\n3\n"):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"a\.csv"):
            array_files.read(path)


def side_inputs() -> fastrnn.Model:
    """Rows, a number and a table that all rows share, and two outputs, one of them without rows."""
    rng = np.random.default_rng(0)
    nodes = [
        Node(
            "gru",
            "gru",
            ("x", "h_0"),
            ("y", "h_n"),
            {},
            fastrnn.GRU(weights(rng, 6, 3), weights(rng, 6, 2)).node.weights,
        ),
        Node("binary", "scale", ("y", "gain"), ("scaled",), {"function": "mul"}),
        Node("binary", "shift", ("scaled", "table"), ("shifted",), {"function": "add"}),
        Node("reduce", "top", ("table",), ("largest",), {"function": "max", "axes": (0, 1), "keepdims": False}),
    ]
    inputs = [Tensor("x", (None, None, 3)), Tensor("h_0", (1, None, 2)), Tensor("gain", ()), Tensor("table", (1, 2))]
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor("shifted", None), Tensor("largest", None)]))


@pytest.mark.parametrize("size", ["1", "2", "100"])
def test_run_inputs_whose_first_axes_differ(folder, rng, size):
    """States have the rows on axis 1, and what has none goes with every chunk."""
    model = side_inputs()
    feeds = {
        "x": weights(rng, 5, 4, 3),
        "h_0": weights(rng, 1, 5, 2),
        "gain": np.float32(2),
        "table": weights(rng, 1, 2),
    }
    fastrnn.save(model, "net.frnn")
    np.savez("feeds.npz", **feeds)
    assert cli.main(["run", "net.frnn", "-i", "feeds.npz", "-o", "y.npz", "--batch-size", size]) == 0
    with np.load("y.npz") as out:
        for name, want in model.run(feeds).items():
            np.testing.assert_array_equal(out[name], want)


def test_run_does_not_cut_what_meets_across_rows(folder, rng):
    """A softmax over the rows, and a sum of them."""
    nodes = [
        Node("reduce", "mean", ("x",), ("m",), {"function": "mean", "axes": (0,), "keepdims": True}),
        Node("binary", "apart", ("x", "m"), ("y",), {"function": "sub"}),
    ]
    model = fastrnn.Model(ModelSpec(nodes, [Tensor("x", (None, 3))], [Tensor("y", None), Tensor("m", None)]))
    x = weights(rng, 7, 3)
    fastrnn.save(model, "net.frnn")
    np.save("x.npy", x)
    assert cli.main(["run", "net.frnn", "-i", "x.npy", "-o", "y.npz", "--batch-size", "2"]) == 0
    with np.load("y.npz") as out:
        for name, want in model.run({"x": x}).items():
            np.testing.assert_array_equal(out[name], want)


# inspect: weights, and the graph that runs


def test_inspect_shows_the_graph_that_runs(folder, capsys, rng):
    nodes = [
        Node("dense", "head", ("x",), ("a",), {}, {"weight": weights(rng, 4, 3)}),
        Node("activation", "relu", ("a",), ("y",), {"activation": "relu"}),
    ]
    fastrnn.save(fastrnn.Model(ModelSpec(nodes, [Tensor("x", (None, 3))], [Tensor("y", None)])), "net.frnn")
    for options, kinds in ((), ["dense"]), (("--as-written",), ["dense", "activation"]):
        assert cli.main(["inspect", "net.frnn", "--json", *options]) == 0
        assert [row["kind"] for row in json.loads(capsys.readouterr().out)["layers"]] == kinds
        assert cli.main(["inspect", "net.frnn", *options]) == 0
        assert "--as-written" in capsys.readouterr().out or options


def test_inspect_of_weights(folder, capsys):
    """Tensors and what they may be, in place of an error."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    parts = {"rnn": nn.LSTM(3, 5), "cell": nn.GRUCell(3, 5), "words": nn.Embedding(7, 3), "head": nn.Linear(5, 2)}
    torch.save(nn.ModuleDict(parts | {"norm": nn.LayerNorm(5), "conv": nn.Conv1d(3, 4, 2)}).state_dict(), "net.pt")
    assert cli.main(["inspect", "net.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "words.weight", "shape": [7, 3], "dtype": "float32"} in found["tensors"]
    kinds = {row["name"]: row["kinds"] for row in found["possible_layers"]}
    assert kinds["words"][:2] == ["dense", "embedding"]
    assert (kinds["rnn"], kinds["cell"], kinds["head"], "conv" in kinds) == (["lstm"], ["gru"], ["dense"], False)
    assert "layer_norm" in kinds["norm"]
    assert cli.main(["inspect", "net.pt"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "load_layers" in line)
    assert "dense or embedding" in out
    assert "rnn" in eval(line.partition(" builds")[0], {"fastrnn": fastrnn}) or "head" in line
    assert cli.main(["inspect", "net.pt", "--prefix", "rnn."]) == 0
    assert "lstm" in capsys.readouterr().out
    assert "no tensors" in fails(capsys, "inspect", "net.pt", "--prefix", "absent.")


def test_help_names_every_suffix(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    out = capsys.readouterr().out
    for row in FORMATS:
        assert all(suffix in out for suffix in row.suffixes)


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("bench", "--seconds", ["nan", "inf", "-1", "soon"]),
        ("verify", "--tolerance", ["nan", "-1e-3", "little"]),
        ("verify", "--seed", ["-1", "1.5"]),
        ("bench", "--batch", ["0", "1,x", ""]),
        ("run", "--threads", ["0", "two"]),
    ],
)
def test_numbers_that_are_none(model, capsys, command, option, values):
    for value in values:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "net.frnn", option, value])
        assert stop.value.code == 2
        assert option in capsys.readouterr().err


# verify


def test_verify_against_another_file(model, capsys):
    fastrnn.save(model, "same.frnn")
    assert cli.main(["verify", "net.frnn", "--against", "same.frnn"]) == 0
    assert "against same.frnn" in capsys.readouterr().out
    dense = model.layers["1_dense"]
    moved = fastrnn.Dense(dense.node.weights["weight"] * np.float32(1.01), activation="softmax")
    fastrnn.save(fastrnn.Sequential(model.layers["0_gru"], moved), "moved.frnn")
    assert cli.main(["verify", "net.frnn", "--against", "moved.frnn"]) == 1
    np.save("x.npy", np.ones((1, 2, 3), np.float32))
    assert cli.main(["verify", "net.frnn", "--against", "same.frnn", "-i", "x.npy", "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["inputs"] == "given inputs x (1, 2, 3)"
    )


def test_verify(model, layer, capsys):
    for file in ("net.frnn", "lstm.frnn"):
        assert cli.main(["verify", file, "--batch", "2", "--seq-len", "9", "--seed", "5"]) == 0
    assert "ok: against the float64 reference" in capsys.readouterr().out
    assert cli.main(["verify", "net.frnn", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert [row["op"] for row in found["layers"]] == ["gru", "dense"]
    assert 0 < found["max_abs"] < 1e-6


def test_verify_against_a_recording(model, rng, capsys):
    x = weights(rng, 2, 3, 3)
    [name] = (tensor.name for tensor in model.outputs)
    np.savez("right.npz", **{"x": x, name: model(x)})
    assert cli.main(["verify", "net.frnn", "--against", "right.npz"]) == 0
    np.savez("wrong.npz", **{"x": x, name: model(x) + np.float32(1e-3)})
    assert cli.main(["verify", "net.frnn", "--against", "wrong.npz"]) == 1
    assert "MISMATCH" in capsys.readouterr().out
    np.savez("wrong.npz", **{"x": x, name: np.full((2, 3, 4), np.nan, np.float32)})
    assert cli.main(["verify", "net.frnn", "--against", "wrong.npz", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["max_abs"] == "inf"  # JSON itself has no infinity


def test_verify_a_real_model(capsys):
    path = MODELS / "stock_lstm" / "AAPL" / "model.keras"
    if not path.exists():
        pytest.skip(f"no {path}; set FASTRNN_MODELS to the folder of trained models")
    pytest.importorskip("h5py")
    assert cli.main(["verify", str(path), "--seq-len", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["op"] for row in found["layers"]] == ["lstm", "lstm", "dense", "dense"]


# bench


def test_bench(model, capsys):
    threads = fastrnn.get_num_threads()
    command = ["bench", "net.frnn", "--batch", "1,3", "--seq-len", "5,7", "--threads", "1", "--seconds", "0.01"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert [(row["batch"], row["seq_len"]) for row in rows] == [(1, 5), (1, 7), (3, 5), (3, 7)]
    for plan in found["plans"]:
        kernels = [layer["kernel"] for layer in plan["layers"]]
        assert kernels == [layer["kernel"] for layer in fastrnn.load("net.frnn").explain()]
    for row in rows:
        assert row["calls"] > 0
        assert 0 < row["median_us"] <= row["p99_us"]
        steps = row["batch"] * row["seq_len"] / (row["median_us"] * 1e-6)
        assert row["steps_per_s"] == pytest.approx(steps)
        assert row["gflops"] == pytest.approx(2e-9 * 296 * steps)
    assert cli.main(command) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    assert fastrnn.get_num_threads() == threads


def test_bench_reports_the_length_that_a_file_fixes(tmp_path, capsys):
    node = fastrnn.RNN(np.eye(2), np.eye(2)).node
    spec = ModelSpec([replace(node, inputs=("x",))], [Tensor("x", (None, 6, 2))], [Tensor("y", None)])
    fastrnn.save(fastrnn.Model(spec), tmp_path / "fixed.frnn")
    assert cli.main(["bench", str(tmp_path / "fixed.frnn"), "--seq-len", "100", "--seconds", "0.01", "--json"]) == 0
    assert {row["seq_len"] for row in json.loads(capsys.readouterr().out)["rows"]} == {6}


def test_bench_leaves_out_sizes_that_a_file_fixes(folder, capsys):
    node = fastrnn.RNN(np.eye(2), np.eye(2)).node
    spec = ModelSpec([replace(node, inputs=("x",))], [Tensor("x", (3, None, 2))], [Tensor("y", None)])
    fastrnn.save(fastrnn.Model(spec), "fixed.frnn")
    assert cli.main(["bench", "fixed.frnn", "--batch", "1,8", "--seq-len", "4,5", "--seconds", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [(row["batch"], row["seq_len"]) for row in json.loads(out)["rows"]] == [(3, 4), (3, 5)]
    assert err == "batch 1, 8: the file fixes it at 3\n"


def test_bench_counts_the_products_that_are_done(rng):
    """Padding is skipped and a last step is one step, so neither counts as if it were more."""
    gru = fastrnn.GRU(weights(rng, 24, 3), weights(rng, 24, 8))
    head = fastrnn.Dense(weights(rng, 4, 8))
    words = fastrnn.Embedding(weights(rng, 9, 3), mask_zero=True)
    x, ids = weights(rng, 2, 5, 3), np.array([[1, 2, 0, 0, 0], [1, 2, 3, 4, 0]])
    a_step, a_row = 2.0 * 24 * 11, 2.0 * 32
    for model, feed, want in (
        (fastrnn.Sequential(gru, head), x, 10 * a_step + 10 * a_row),
        (fastrnn.Sequential(gru.last(), head), x, 10 * a_step + 2 * a_row),
        (fastrnn.Sequential(words, gru, head), ids, 6 * a_step + 10 * a_row),
    ):
        assert cli_bench.flops(model.graph, model.trace({"x": feed})) == want
    feeds = random_inputs(fastrnn.Sequential(words, gru).spec, 0, 4, 50, padded=False)
    assert feeds["x"].min() == 1


# doctor


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("FASTRNN_TEST", "7")
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["isas"]
    assert facts["environment"]["FASTRNN_TEST"] == "7"
    assert facts["versions"]["numpy"] == np.__version__
    assert str(facts["thread_limits"]["affinity"]) in facts["threads_why"]
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("CPU", "ISA", "threads", "BLAS", "OpenMP", fastrnn.__version__, "FASTRNN_TEST=7"):
        assert word in out


def test_doctor_sees_duplicate_openmp_runtimes(folder):
    maps = folder / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 fe:00 1    /usr/lib/libgomp.so.1.0.0\n"
        "7f01-7f02 r--p 00001000 fe:00 1    /usr/lib/libgomp.so.1.0.0\n"
        "7f02-7f03 r-xp 00000000 fe:00 2    /opt/with space/libiomp5.so\n"
        "7f03-7f04 rw-p 00000000 00:00 0\n"
        "7f04-7f05 r-xp 00000000 fe:00 3    /usr/lib/libc.so.6\n"
    )
    found = doctor.openmp_runtimes(str(maps))
    assert found == ["/opt/with space/libiomp5.so", "/usr/lib/libgomp.so.1.0.0"]
    assert doctor.openmp_runtimes(str(folder / "absent")) == []
    facts = {
        "openmp": {"runtimes": found},
        "thread_limits": {"affinity": 2},
        "threads": 8,
        "blas": {"problem": "SciPy is broken"},
        "isa": "avx2",
        "isas": ["avx512", "avx2"],
    }
    problems = doctor.problems(facts)
    assert len(problems) == 4
    assert problems[0].startswith("2 OpenMP runtimes")
    good = facts | {"openmp": {"runtimes": []}, "threads": 2, "blas": {"problem": None}, "isa": "avx512"}
    assert doctor.problems(good) == []
    (portable,) = doctor.problems(good | {"isa": "generic", "isas": ["generic"]})
    assert 'backend="blas"' in portable
