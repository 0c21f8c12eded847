"""What an error tells the user to run is run here, and does what the error says.

Those of files that are not read are in test_foreign_files.py, the export line of PyTorch modules in
test_torch_whole.py.
"""

import ast
import contextlib
import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fastrnn
from fastrnn import cli
from fastrnn.errors import FormatError, ShapeError, UnsupportedError

ROOT = Path(fastrnn.__file__).parent
PYPROJECT = ROOT.parent / "pyproject.toml"


def commands(error: BaseException) -> list[str]:
    return re.findall("`(.*?)`", str(error))


def onnx_file(path: Path, op: str, opsets: dict[str, int], domain: str = "") -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in opsets.items()])
    if not opsets:
        del model.opset_import[:]
    model.ir_version = 7
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opsets", [{"": 6}, {"": 1}, {"": 0}, {}])
def test_old_and_missing_versions_of_onnx(opsets, tmp_path, monkeypatch):
    """The printed lines make a file that runs."""
    monkeypatch.chdir(tmp_path)
    path = onnx_file(tmp_path / "old.onnx", "Relu", opsets)
    with pytest.raises(UnsupportedError, match="version") as error:
        fastrnn.load(path)
    space = {"onnx": onnx, "path": path}
    for line in commands(error.value):
        exec(line, space)
    (made,) = set(tmp_path.glob("*.onnx")) - {path}
    np.testing.assert_array_equal(fastrnn.load(made)(-np.ones((2, 3), np.float32)), 0)


@pytest.mark.parametrize(
    ("domain", "op", "advice"),
    [
        *(
            ("com.microsoft", op, "load the float model that was quantized")
            for op in ("DynamicQuantizeLSTM", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
                       "QAttention", "MatMulNBits", "DequantizeLinear", "QOrderedMatMul")
        ),
        *(
            ("com.microsoft", op, "load the model from before it")
            for op in ("FusedMatMul", "EmbedLayerNormalization", "Gelu", "Attention", "SkipLayerNormalization")
        ),
        ("com.microsoft.nchwc", "Conv", "load the model from before it"),
        ("ai.onnx.ml", "Scaler", "export the network alone"),
        ("mine", "Foo", "export the model with these alone"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("standard", [{"": 17}, {}])
def test_operators_of_other_domains(domain, op, advice, standard, tmp_path):
    """With and without a version of the standard operators, which such a file need not name."""
    path = onnx_file(tmp_path / "own.onnx", op, {domain: 1, **standard}, domain)
    with pytest.raises(UnsupportedError, match=rf"is of the domain '{domain}', .*{advice}") as error:
        fastrnn.load(path)
    assert "version_converter" not in str(error.value)


def test_packed_sequences():
    """Whole models, streams and batchers say what they were given, as layers do; what is printed runs."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    net = Net()
    model = fastrnn.from_torch(net, example_inputs=(torch.zeros(2, 5, 3),))
    layers = fastrnn.Sequential(fastrnn.from_torch(net.rnn), fastrnn.from_torch(net.out))
    rows = [torch.randn(5, 3), torch.randn(2, 3)]
    packed = torch.nn.utils.rnn.pack_sequence(rows)
    for made in (model, layers):
        pool = made.pool(2)
        handle = pool.open()
        with fastrnn.Batcher(made) as batcher:
            calls = [
                made,
                made.stream(1).step,
                lambda x, p=pool, h=handle: p.step([h], x),
                lambda x, b=batcher: b.submit(x).result(),
            ]
            for call in calls:
                with pytest.raises(ShapeError, match="a PackedSequence, not an array") as error:
                    call(packed)
        unpack, call = commands(error.value)
        space = {"torch": torch, "packed": packed, "layer": made}
        exec(unpack, space)
        y = eval(call, space)
        for k, row in enumerate(rows):
            np.testing.assert_allclose(y[k, : len(row)], net(row[None])[0].detach(), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of PyTorch
def test_weights_of_quantized_modules(tmp_path):
    """They are called that, not absent."""
    torch = pytest.importorskip("torch")
    torch.backends.quantized.engine = next(e for e in torch.backends.quantized.supported_engines if e != "none")
    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 4), "out": torch.nn.Linear(4, 2)})
    packed = torch.ao.quantization.quantize_dynamic(net, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8)
    path = tmp_path / "packed.pt"
    torch.save(packed.state_dict(), path)
    for call in (
        lambda: fastrnn.load_layers(path, ["rnn"]),
        lambda: fastrnn.load_layers(path, {"out": "dense"}),
        lambda: fastrnn.load(path, prefix="rnn."),
        lambda: fastrnn.from_torch(packed.state_dict(), prefix="rnn."),
    ):
        with pytest.raises(UnsupportedError, match=r"quantized.*float module"):
            call()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "model."])
def test_prefixes_that_wrappers_put_before_names(wrapper, tmp_path):
    """DataParallel, compile and FSDP: both calls that the error prints give the layer."""
    torch = pytest.importorskip("torch")
    rnn = torch.nn.GRU(3, 4, batch_first=True)
    path = tmp_path / "wrapped.pt"
    torch.save({f"{wrapper}rnn.{key}": value for key, value in rnn.state_dict().items()}, path)
    x = np.ones((2, 3, 3), np.float32)
    want = rnn(torch.from_numpy(x))[0].detach()
    with pytest.raises(FormatError, match="pass prefix=") as error:
        fastrnn.load(path, prefix=wrapper)
    prefix = re.search("pass prefix='(.*?)'", str(error.value))[1]
    name = re.search(r"load_layers\(path, \['(.*?)'", str(error.value))[1]
    for layer in (fastrnn.load(path, prefix=prefix), fastrnn.load_layers(path, [name])[name]):
        np.testing.assert_allclose(layer(x)[0] if isinstance(layer(x), tuple) else layer(x), want, atol=1e-6)


def literals() -> list[tuple[str, str]]:
    """All texts of the package but docstrings; what is filled in reads as ``{}``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)} | inside
        for node in ast.walk(tree):
            if id(node) in silent:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((path.name, node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                found.append((path.name, "".join(parts)))
    return found


TEXTS = literals()


def test_python_calls_that_are_printed_exist():
    """``fastrnn.name`` is public, and takes the keywords that stand in the text."""
    seen = set()
    for file, text in TEXTS:
        for name in re.findall(r"(?<![\w/.])fastrnn\.(\w+)(?=\(| |,|$|`)", text):
            if name not in ("onnx", "pt"):
                assert name in fastrnn.__all__, f"{file}: {text!r}"
                seen.add(name)
    assert seen >= {"load", "load_layers", "from_torch", "save"}


def test_command_lines_that_are_printed_exist():
    """`fastrnn COMMAND` is a command, and knows the options that stand behind it."""
    seen = set()
    for file, text in TEXTS:
        for line in re.findall(r"`fastrnn ([^`]*)`", text):
            command, *words = line.split()
            if command == "COMMAND":
                continue
            text_of_help = help_of(command)
            for option in (word.split("=")[0] for word in words if word.startswith("--")):
                assert option in text_of_help, f"{file}: {text!r}"
            seen.add(command)
    assert seen >= {"doctor", "inspect", "convert", "run"}


def help_of(command: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0, command
    return text.getvalue()


def test_extras_that_are_printed_exist():
    """`pip install "fastrnn[extra]"` brings the package that is missing."""
    extras = {
        name: re.findall(r'"([\w-]+)', listed)
        for name, listed in re.findall(r"^(\w+) = \[(.*?)\]", PYPROJECT.read_text(), re.MULTILINE | re.DOTALL)
    }
    asked = {text: re.findall(r"fastrnn\[([\w{}]+)\]", text) for _, text in TEXTS}
    named = {extra for found in asked.values() for extra in found} - {"{}"}
    assert named
    assert named <= set(extras)
    for package, extra in missing_packages():
        assert package in extras[extra], (package, extra)


def missing_packages() -> list[tuple[str, str]]:
    """The package and the extra of each call of ``files.need``."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need":
                found.append(tuple(ast.literal_eval(argument) for argument in node.args))
    assert found
    return found


def test_state_of_a_network_trained_further():
    """`any_weights=True` takes it."""
    one, other = (fastrnn.GRU(np.full((12, 3), value, np.float32), np.ones((12, 4), np.float32)) for value in (1, 2))
    state = one.stream(1).save()
    with pytest.raises(FormatError, match="with any_weights=True into one that was trained further"):
        other.stream(1).restore(state)
    other.stream(1).restore(state, any_weights=True)


def test_models_without_recorded_outputs(tmp_path):
    """Both ways that the error names store them."""
    layer = fastrnn.GRU(np.ones((12, 3), np.float32), np.ones((12, 4), np.float32))
    plain, made = tmp_path / "plain.frnn", tmp_path / "made.frnn"
    fastrnn.save(layer, plain)
    with pytest.raises(UnsupportedError, match="`fastrnn convert --verify 1` store them"):
        fastrnn.load(plain, verify=True)
    assert cli.main(["convert", str(plain), "--output", str(made), "--verify", "1"]) == 0
    fastrnn.load(made, verify=True)


def test_hints_of_the_command_line_are_commands(tmp_path, capsys):
    """`fastrnn inspect` of the file that had the wrong shape names what the hint says it does, `--force` overwrites."""
    layer = fastrnn.GRU(np.ones((12, 3), np.float32), np.ones((12, 4), np.float32))
    model, wrong, out = tmp_path / "m.frnn", tmp_path / "x.npy", tmp_path / "y.npz"
    fastrnn.save(layer, model)
    np.save(wrong, np.ones((1, 2, 5), np.float32))
    run = ["run", str(model), "--input", f"x={wrong}", "--output", str(out)]
    assert cli.main(run) == 2
    assert "`fastrnn inspect FILE`" in capsys.readouterr().err
    assert cli.main(["inspect", str(model)]) == 0
    assert "3" in capsys.readouterr().out
    np.save(wrong, np.ones((1, 2, 3), np.float32))
    out.write_bytes(b"")
    assert cli.main(run) == 2
    assert "pass --force to overwrite" in capsys.readouterr().err
    assert cli.main([*run, "--force"]) == 0
    assert cli.main(["doctor"]) == 0
