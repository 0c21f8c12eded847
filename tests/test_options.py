"""An option that is accepted has an effect; one that could have none is refused."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
from cases import normal

import fastrnn
from fastrnn.errors import FastrnnError, ShapeError
from fastrnn.spec import GATES, OPS

LAYERS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
CELLS = {"lstm": fastrnn.LSTMCell, "gru": fastrnn.GRUCell, "rnn": fastrnn.RNNCell}
BOTH = {"bidirectional": True}
BACKWARDS = {"reverse": True}

# option: a value that changes the result, and the options beside which it does
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "direction": ("reverse", {}),
    "bidirectional": (True, {}),
    "reverse": (True, {}),
    "merge": ("sum", BOTH),
    "batch_first": (False, {}),
    "return_sequences": (False, {}),
    "reverse_output": (True, BACKWARDS),
    "zero_output_for_mask": (True, {}),
    "clip": (0.1, {}),
    "gate_activation": ("hard_sigmoid", {}),
    "cell_activation": ("relu", {}),
    "hidden_activation": ("relu", {}),
    "activation": ("relu", {}),
    "coupled_input_forget": (True, {}),
    "cell_clip": (0.01, {}),
    "proj_clip": (0.01, {"weight_hr": True}),
    "reset_after": (False, {}),
    "update_gate": ("take", {}),
}
IDLE = ("num_layers",)  # the weights say it; any other number is an error


def build(cls: Any, **options: Any) -> fastrnn.LSTM:
    """A layer of random weights, of as many directions as the options say."""
    gates, projected = len(GATES[cls.op]), options.pop("weight_hr", None)
    directions = 1 + (bool(options.get("bidirectional")) or options.get("direction") == "bidirectional")
    size = 4 if projected else 5
    shapes = [(gates * 5, 3), (gates * 5, size), (gates * 5,), (gates * 5,)]
    rng = np.random.default_rng(0)
    weights = [[rng.standard_normal(shape) for _ in range(directions)] for shape in shapes]
    if projected:
        options["weight_hr"] = rng.standard_normal((size, 5))
    return cls(*(each if directions > 1 else each[0] for each in weights), **options)


def results(layer: Any) -> list[np.ndarray]:
    """Everything that a call gives, with masked steps and without."""
    if layer.single_step:
        made = [layer(normal(3, 3))]
    else:
        x = normal(4, 4, 3)
        made = [layer(x), layer(x, mask=np.arange(16).reshape(4, 4) % 3 > 0)]
    flat: list[np.ndarray] = []
    while made:
        part = made.pop()
        flat.append(part) if isinstance(part, np.ndarray) else made.extend(part)
    return flat


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def known_options(cls: Any) -> list[str]:
    """As the error for an unknown one lists them."""
    with pytest.raises(TypeError, match=r"unknown option.*colour") as error:
        build(cls, colour="red")
    return re.split("known: ", str(error.value))[1].split(", ")


@pytest.mark.parametrize("cls", [*LAYERS.values(), *CELLS.values()], ids=lambda cls: cls.__name__)
def test_every_option_of_a_recurrent_layer_has_an_effect(cls):
    for option in known_options(cls):
        if option in IDLE:
            continue
        value, beside = OPTIONS[option]
        assert not same(results(build(cls, **beside)), results(build(cls, **beside, **{option: value}))), option


@pytest.mark.parametrize("op", LAYERS)
def test_no_attribute_is_left_out_of_the_options(op):
    assert set(known_options(LAYERS[op])) == {*OPS[op].attrs, "bidirectional", "reverse"} - {"unbatched"}
    assert not {"direction", "batch_first", "merge", "num_layers"} & set(known_options(CELLS[op]))


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
def test_the_ways_to_say_a_direction_agree(cls):
    for direction, flag in (("reverse", "reverse"), ("bidirectional", "bidirectional")):
        assert same(results(build(cls, direction=direction)), results(build(cls, **{flag: True})))
        assert build(cls, direction=direction).node.attrs == build(cls, **{flag: True}).node.attrs
        assert same(results(build(cls, direction=direction)), results(build(cls, direction=direction, **{flag: True})))
    for wrong in (
        {"direction": "forward", "reverse": True},
        {"direction": "reverse", "reverse": False},
        {"direction": "reverse", "bidirectional": True},
        {"direction": "backwards"},
        {"bidirectional": True, "reverse": True},
    ):
        with pytest.raises(ShapeError, match=r"contradict|exclude|direction must be one of"):
            build(cls, **wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2}, "num_layers is 2, the weights are those of 1"),
        ({"merge": "sum"}, "merge joins two directions"),
        ({"reverse_output": True}, "reverse_output is for direction='reverse'"),
        ({"proj_clip": 1.0}, "without weight_hr there is none"),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(options, message):
    with pytest.raises(ShapeError, match=message):
        build(fastrnn.LSTM, **options)


@pytest.mark.parametrize("cls", [*LAYERS.values(), *CELLS.values()], ids=lambda cls: cls.__name__)
def test_a_stated_number_of_layers(cls):
    if not cls.single_step:
        assert same(results(build(cls, num_layers=1)), results(build(cls)))
    assert build(cls, name="encoder").name == "encoder"
    assert build(cls, backend="blas").explain()["backend"] == "blas"


def test_a_cell_stays_a_cell_in_a_file(tmp_path):
    """Its options say nothing of sequences, and its graph takes no lengths and no mask."""
    for cls in CELLS.values():
        cell, x = build(cls), normal(2, 3)
        fastrnn.save(cell, tmp_path / "cell.frnn")
        model = fastrnn.load(tmp_path / "cell.frnn")
        assert same(results(model._bare), results(cell))
        assert [t.name for t in model.inputs] == ["x", "h_0", "c_0"][: 2 + (cls.op == "lstm")]
        np.testing.assert_array_equal(model.run({"x": x})["h_n"], results_of(cell, x))
        with pytest.raises(TypeError):
            cell(x, mask=np.ones((2, 1)))


def results_of(cell: Any, x: np.ndarray) -> np.ndarray:
    """The new h."""
    state = cell(x)
    return state[0] if isinstance(state, tuple) else state


# ---- Layers without time, loaders, models: (option, value, what shows the effect) ----

X = normal(2, 4, 3)
STATEMENTS = {
    "Dense": (
        lambda **o: fastrnn.Dense(normal(2, 3), **o),
        {"bias": np.ones(2), "activation": "relu"},
        lambda layer: layer(X),
    ),
    "Embedding": (
        lambda **o: fastrnn.Embedding(normal(5, 3), **o),
        {"mask_zero": True},
        lambda layer: fastrnn.Sequential(layer, build(fastrnn.GRU))(np.array([[1, 0, 2]]))[0],
    ),
    "Masking": (lambda **o: fastrnn.Masking(**o), {"mask_value": X[0, 0, 0]}, lambda layer: layer(X[:1, :1, :1])),
    "LayerNorm": (
        lambda **o: fastrnn.LayerNorm(**o),
        {"weight": np.full(3, 2.0), "bias": np.ones(3), "eps": 1.0, "axes": 2},
        lambda layer: layer(X),
    ),
    "BatchNorm": (
        lambda **o: fastrnn.BatchNorm(np.zeros(3), np.ones(3), **o),
        {"weight": np.full(3, 2.0), "bias": np.ones(3), "eps": 1.0, "channels_first": True},
        lambda layer: layer(normal(3, 3, 3) if layer.node.attr("channels_first") else X),
    ),
    "Activation": (lambda **o: fastrnn.Activation("relu", **o), {}, lambda layer: layer(X)),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_option_of_a_layer_without_time_has_an_effect(name):
    make, values, shown = STATEMENTS[name]
    parameters = inspect.signature(getattr(fastrnn, name)).parameters
    optional = {key for key, parameter in parameters.items() if parameter.default is not parameter.empty}
    assert optional - {"name", "backend"} == set(values)
    for option, value in values.items():
        assert not np.array_equal(shown(make()), shown(make(**{option: value}))), option
    assert make(name="other").name == "other"
    if "backend" in optional:
        assert make(backend="blas").explain()["backend"] == "blas"


def test_axes_that_contradict_the_weight():
    weight = np.ones((4, 3))
    np.testing.assert_array_equal(fastrnn.LayerNorm(weight)(X), fastrnn.LayerNorm(weight, axes=2)(X))
    with pytest.raises(ShapeError, match="axes is 1, weight and bias have 2"):
        fastrnn.LayerNorm(weight, axes=1)


def test_options_of_loaders_and_models_that_could_have_no_effect(tmp_path):
    torch = pytest.importorskip("torch")
    module, dense = torch.nn.GRU(3, 5), fastrnn.Dense(normal(2, 3))
    torch.save(module.state_dict(), tmp_path / "gru.pt")
    fastrnn.save(dense, tmp_path / "dense.frnn")
    model, layer = fastrnn.Sequential(dense), build(fastrnn.GRU)
    for refused in (
        lambda: fastrnn.from_torch(module, prefix="a."),
        lambda: fastrnn.from_torch(module, nonlinearity="relu"),
        lambda: fastrnn.from_torch(module.state_dict(), nonlinearity="relu"),
        lambda: fastrnn.from_torch(module.state_dict(), example_inputs=X),
        lambda: fastrnn.load(tmp_path / "gru.pt", nonlinearity="relu"),
        lambda: fastrnn.load(tmp_path / "gru.pt", outputs=["y"]),
        lambda: fastrnn.load(tmp_path / "dense.frnn", prefix="a."),
        lambda: fastrnn.load(tmp_path / "dense.frnn", verify=True),
        lambda: fastrnn.load_layers(tmp_path / "gru.pt", [""], config="x"),
        lambda: model.stream(constants={"sr": 1}),
        lambda: model.stream(states={"y": "x"}),
        lambda: fastrnn.Stream(layer, constants={"sr": 1}),
        lambda: fastrnn.Batcher(layer, constants={"sr": 1}),
        lambda: fastrnn.Batcher(layer, states={"y": "x"}),
    ):
        with pytest.raises(FastrnnError):
            refused()
