"""Specs that carry their state: the same bits as the whole sequence, and clear errors where there is no stream."""

from __future__ import annotations

import itertools
import os
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import MODELS

import fastrnn
from fastrnn.errors import UnsupportedError
from fastrnn.graph.state_pairs import paired_by_name, stem
from fastrnn.graph.streaming import Streamed, streamed
from fastrnn.spec import GATES, ModelSpec, Node, Tensor

END = 2**63 - 1
RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def recurrent(
    name: str, inputs: str | tuple, outputs: str | tuple, features: int, units: int, op="lstm", **attrs
) -> Node:
    inputs, outputs = ((names,) if isinstance(names, str) else names for names in (inputs, outputs))
    rows = len(GATES[op]) * units
    weights = {}
    for layer in range(attrs.get("num_layers", 1)):
        for end in ("", "_reverse") if attrs.get("direction") == "bidirectional" else ("",):
            weights |= {
                f"weight_ih_l{layer}{end}": array(rows, units if layer else features),
                f"weight_hh_l{layer}{end}": array(rows, units),
                f"bias_ih_l{layer}{end}": array(rows),
            }
    return Node(op, name, inputs, outputs, attrs, weights)


def spec_of(nodes: list[Node], x: tuple, y: str = "y", constants: dict | None = None) -> ModelSpec:
    spec = ModelSpec(nodes, [Tensor("x", x)], [Tensor(y, None)], constants or {})
    spec.validate()
    return spec


def starts(made: Streamed, batch: int) -> dict[str, np.ndarray]:
    states = {}
    for state in made.states:
        shape = [state.first if n is None else n for n in state.shape]
        if state.batch_axis >= 0:
            shape.insert(state.batch_axis, batch)
        states[state.input] = np.zeros(shape, state.dtype)
        if state.initial is not None:
            at = state.batch_axis
            states[state.input][...] = state.initial if at < 0 else np.expand_dims(state.initial, at)
    return states


def play(made: Streamed, feeds: dict[str, np.ndarray], cuts: list[int], batch: int = 2) -> dict[str, np.ndarray]:
    """The outputs of the chunks that end at ``cuts``, joined along time; without time, those of the last chunk."""
    model = fastrnn.Model(made.spec)
    states = starts(made, batch)
    parts: dict[str, list[np.ndarray]] = {t.name: [] for t in made.outputs}
    lengths = {array.shape[made.time_axis[name]] for name, array in feeds.items() if made.time_axis[name] is not None}
    (length,) = lengths
    edges = [0, *sorted(cuts), length]
    for first, last in itertools.pairwise(edges):
        chunk = {
            name: whole if made.time_axis[name] is None else whole.take(range(first, last), made.time_axis[name])
            for name, whole in feeds.items()
        }
        results = model.run({**chunk, **states})
        states = {state.input: results[state.output] for state in made.states}
        for state in made.states:
            kept = states[state.input].shape
            given_shape = kept if state.batch_axis < 0 else np.delete(kept, state.batch_axis)
            assert all(n in (None, m) for n, m in zip(state.shape, given_shape, strict=True))
        for name, part in parts.items():
            part.append(results[name])
    return {
        name: part[-1] if made.time_axis[name] is None else np.concatenate(part, made.time_axis[name])
        for name, part in parts.items()
    }


def check(spec: ModelSpec, feeds: dict[str, np.ndarray], *all_cuts: list[int], batch: int = 2) -> Streamed:
    """The bits of the whole model, whatever the cuts."""
    made = streamed(spec)
    whole = fastrnn.Model(spec).run(feeds)
    length = next(a.shape[made.time_axis[n]] for n, a in feeds.items() if made.time_axis[n] is not None)
    for cuts in all_cuts or ([], [length // 2], list(range(1, length)), [0, 3, 3, length]):
        for name, found in play(made, feeds, cuts, batch).items():
            assert found.shape == whole[name].shape, (name, cuts)
            assert np.array_equal(found, whole[name]), (name, cuts)
    return made


def refusal(spec: ModelSpec) -> str:
    with pytest.raises(UnsupportedError) as error:
        streamed(spec)
    return str(error.value)


# ---- Sequences ----


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_recurrent_layer_carries_its_states(op, batch_first, return_sequences):
    attrs = {"batch_first": batch_first, "return_sequences": return_sequences, "num_layers": 2}
    spec = spec_of([recurrent("a", "x", "y", 3, 4, op, **attrs)], (None, None, 3))
    made = check(spec, {"x": array(2, 9, 3) if batch_first else array(9, 2, 3)})
    assert [(s.shape, s.batch_axis) for s in made.states] == [((2, 4), 1)] * (2 if op == "lstm" else 1)
    assert made.time_axis == {"x": int(batch_first), "y": int(batch_first) if return_sequences else None}
    assert [t.name for t in made.spec.inputs] == ["x", *(s.input for s in made.states)]
    assert [t.name for t in made.spec.outputs] == ["y", *(s.output for s in made.states)]


WINDOWS = [(k, s, d) for k in (1, 2, 3, 5) for s in (1, 2, 3, 7) for d in (1, 2) if k > 1 or d == 1]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), WINDOWS)
@pytest.mark.parametrize("padding", ["causal", "valid", "some"])
@given(cuts=st.lists(st.integers(0, 40), max_size=12))
@settings(max_examples=6, deadline=None)
def test_convolutions_keep_what_the_next_windows_need(kernel, stride, dilation, padding, cuts):
    span = (kernel - 1) * dilation + 1
    pad = {"causal": span - 1, "valid": 0, "some": 3}[padding]
    conv = {"strides": [stride], "dilations": [dilation], "pads": [pad, 0]}
    nodes = [
        Node("conv", "conv", ("x",), ("a",), conv, {"weight": array(4, 3, kernel), "bias": array(4)}),
        Node("transpose", "steps", ("a",), ("b",), {"perm": [0, 2, 1]}),
        recurrent("gru", "b", "y", 4, 5, "gru"),
    ]
    made = check(spec_of(nodes, (None, 3, None)), {"x": array(2, 3, 40)}, cuts)
    history = [s for s in made.states if "history" in s.input]
    assert bool(history) == (span > 1 or stride > 1 or pad > 0)
    if stride == 1 and padding == "causal" and history:
        assert history[0].shape == (3, span - 1)


@pytest.mark.parametrize("function", ["max", "mean"])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2), (2, 5)])
@given(cuts=st.lists(st.integers(0, 30), max_size=12))
@settings(max_examples=6, deadline=None)
def test_pools_keep_what_the_next_windows_need(function, kernel, stride, cuts):
    nodes = [
        Node("pool", "pool", ("x",), ("a",), {"kernel": [kernel], "strides": [stride], "function": function}),
        Node("transpose", "steps", ("a",), ("b",), {"perm": [0, 2, 1]}),
        recurrent("rnn", "b", "y", 3, 2, "rnn", return_sequences=False),
    ]
    check(spec_of(nodes, (None, 3, None)), {"x": array(2, 3, 30)}, cuts)


@pytest.mark.parametrize("readers", ["conv", "dense"])
def test_zeros_in_front_belong_to_the_convolution_behind_them_or_come_once(readers):
    """And what a convolution with padding on both sides makes too much is cut off, as PyTorch's causal ones do."""
    constants = {
        "pads": np.array([0, 0, 4, 0, 0, 0]),
        "start": np.array([0]),
        "end": np.array([-2]),
        "at": np.array([2]),
    }
    conv = {"weight": array(3, 3, 3)}
    nodes = [
        Node("conv", "both", ("x",), ("a",), {"pads": [2, 2]}, conv),
        Node("activation", "relu", ("a",), ("b",), {"activation": "relu"}),
        Node("slice", "cut", ("b", "start", "end", "at"), ("c",)),
        Node("pad", "pad", ("c", "pads"), ("d",)),
        Node("conv", "wide", ("d",), ("e",), {"dilations": [2]}, conv)
        if readers == "conv"
        else Node("activation", "exp", ("d",), ("e",), {"activation": "exp"}),
        Node("transpose", "steps", ("e",), ("f",), {"perm": [0, 2, 1]}),
        recurrent("lstm", "f", "y", 3, 4),
    ]
    made = check(spec_of(nodes, (None, 3, None), constants=constants), {"x": array(2, 3, 17)})
    shapes = {s.input: (s.shape, s.first) for s in made.states}
    assert shapes["both.history"] == ((3, 2), 0)
    expected = {"wide.history": ((3, 4), 0)} if readers == "conv" else {"pad.zeros": ((3, None), 4)}
    assert expected.items() <= shapes.items()


def test_the_last_step_and_the_sum_so_far():
    constants = {"last": np.array(-1), "from": np.array([-1]), "to": np.array([END]), "at": np.array([1])}
    nodes = [
        recurrent("lstm", "x", ("a", "h", "c"), 3, 4),
        Node("cumsum", "sum", ("a",), ("b",), {"axis": 1}),
        Node("gather", "taken", ("b", "last"), ("d",), {"axis": 1}),
        Node("slice", "cut", ("a", "from", "to", "at"), ("e",)),
    ]
    outputs = [Tensor(name, None) for name in "bdehc"]
    spec = ModelSpec(nodes, [Tensor("x", (None, None, 3))], outputs, constants)
    made = check(spec, {"x": array(2, 8, 3)})
    assert made.time_axis == {"x": 1, "b": 1, **dict.fromkeys("dehc")}


def test_axes_that_move_and_merge():
    """Frames through a dense layer as rows of one batch, and a layer over the frequencies of each frame."""
    constants = {"rows": np.array([-1, 6, 2]), "six": np.array([6]), "flat": np.array([24])}
    nodes = [
        Node("reshape", "rows of frames", ("x", "rows"), ("a",)),
        recurrent("over frequencies", "a", "b", 2, 4, "gru", direction="bidirectional", merge="sum"),
        Node("shape", "batch and time", ("x",), ("s",), {"end": 2}),
        Node("concat", "frames", ("s", "flat"), ("t",)),
        Node("reshape", "as frames", ("b", "t"), ("d",)),
        Node("transpose", "time first", ("d",), ("e",), {"perm": [1, 0, 2]}),
        recurrent("over time", "e", "y", 24, 3, batch_first=False),
    ]
    made = check(spec_of(nodes, (None, None, 6, 2), constants=constants), {"x": array(2, 7, 6, 2)})
    assert [s.input for s in made.states] == ["over time.h", "over time.c"]
    assert made.time_axis == {"x": 1, "y": 0}


def test_a_model_of_fixed_length_takes_any():
    constants = {"split": np.array([-1, 12, 3, 2]), "join": np.array([-1, 12, 6])}
    nodes = [
        Node("reshape", "split", ("x", "split"), ("a",)),
        Node("reduce", "sum", ("a",), ("b",), {"axes": [3]}),
        Node("binary", "scale", ("a", "b"), ("c",), {"function": "mul"}),
        Node("reshape", "join", ("c", "join"), ("d",)),
        recurrent("lstm", "d", "y", 6, 4),
    ]
    made = check(spec_of(nodes, (None, 12, 6), constants=constants), {"x": array(2, 12, 6)})
    assert made.inputs == (Tensor("x", (None, None, 6)),)
    assert play(made, {"x": array(2, 40, 6)}, [3])["y"].shape == (2, 40, 4)


def test_several_inputs_come_in_step():
    nodes = [
        recurrent("lstm", "x", "a", 3, 4),
        Node("concat", "join", ("a", "more"), ("b",), {"axis": -1}),
        Node("binary", "shift", ("b", "speaker"), ("y",), {"function": "add"}),
    ]
    inputs = [Tensor("x", (None, None, 3)), Tensor("more", (None, None, 2)), Tensor("speaker", (None, 1, 6))]
    spec = ModelSpec(nodes, inputs, [Tensor("y", None)])
    made = check(spec, {"x": array(2, 6, 3), "more": array(2, 6, 2), "speaker": array(2, 1, 6)})
    assert made.time_axis == {"x": 1, "more": 1, "speaker": None, "y": 1}


@pytest.mark.parametrize("options", [{}, {"zero_output_for_mask": True}])
@given(ids=st.lists(st.integers(0, 2), min_size=20, max_size=20), cuts=st.lists(st.integers(0, 10), max_size=6))
@settings(max_examples=40, deadline=None)
def test_masked_steps_repeat_outputs_of_earlier_calls(options, ids, cuts):
    nodes = [
        Node("embedding", "words", ("x",), ("a", "mask"), {"mask_zero": True}, {"weight": array(3, 3)}),
        recurrent("one", ("a", "", "", "mask"), "b", 3, 4, num_layers=2, **options),
        recurrent("two", ("b", "", "mask"), "y", 4, 3, "gru", return_sequences=False),
    ]
    spec = ModelSpec(nodes, [Tensor("x", (None, None), "int64")], [Tensor("b", None), Tensor("y", None)])
    check(spec, {"x": np.array(ids).reshape(2, 10)}, cuts)


BLOCKS = ("dense", "norm", "softmax", "causal", "valid", "strided", "pool", "gru", "lstm", "residual", "time first")


def stack_of(blocks: list[str]) -> ModelSpec:
    """Layers in a row over (batch, time, 3)."""
    nodes: list[Node] = []
    windows = {"causal": ([2, 0], 1), "valid": ([0, 0], 1), "strided": ([0, 0], 2)}
    for k, block in enumerate(blocks):
        x, y = f"t{k}", f"t{k + 1}"
        if block in ("causal", "valid", "strided", "pool"):
            nodes.append(Node("transpose", f"{y}/in", (x,), (f"{y}/in",), {"perm": [0, 2, 1]}))
            pads, stride = windows.get(block, ([0, 0], 3))
            window = {"strides": [stride], "pads": pads}
            layer = (
                ("pool", {"kernel": [2], **window}, {})
                if block == "pool"
                else ("conv", window, {"weight": array(3, 3, 3)})
            )
            nodes.append(Node(layer[0], f"{y}/{block}", (f"{y}/in",), (f"{y}/out",), *layer[1:]))
            nodes.append(Node("transpose", y, (f"{y}/out",), (y,), {"perm": [0, 2, 1]}))
        elif block == "time first":
            nodes.append(Node("transpose", f"{y}/in", (x,), (f"{y}/in",), {"perm": [1, 0, 2]}))
            nodes.append(recurrent(f"{y}/rnn", f"{y}/in", f"{y}/out", 3, 3, "rnn", batch_first=False))
            nodes.append(Node("transpose", y, (f"{y}/out",), (y,), {"perm": [1, 0, 2]}))
        elif block in GATES:
            nodes.append(recurrent(y, x, y, 3, 3, block))
        elif block == "residual":
            nodes.append(
                Node("dense", f"{y}/dense", (x,), (f"{y}/out",), {"activation": "tanh"}, {"weight": array(3, 3)})
            )
            nodes.append(Node("binary", y, (x, f"{y}/out"), (y,), {"function": "add"}))
        else:
            layer = {
                "dense": ("dense", {}, {"weight": array(3, 3)}),
                "norm": ("layer_norm", {}, {"weight": array(3), "bias": array(3)}),
                "softmax": ("softmax", {"axis": -1}, {}),
            }[block]
            nodes.append(Node(layer[0], y, (x,), (y,), *layer[1:]))
    spec = ModelSpec(nodes, [Tensor("t0", (None, None, 3))], [Tensor(f"t{len(blocks)}", None)])
    spec.validate()
    return spec


@given(
    blocks=st.lists(st.sampled_from(BLOCKS), max_size=6).map(lambda blocks: [*blocks, "gru"]),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_any_stack_of_layers_at_any_cuts(blocks, cuts):
    check(stack_of(blocks), {"t0": array(2, 30, 3)}, cuts)


# ---- Whole models of frameworks ----


def test_keras_models():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    front = keras.Sequential(
        [
            keras.Input((None, 5), name="x"),
            layers.Conv1D(6, 3, strides=2, padding="causal"),
            layers.MaxPooling1D(2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.LSTM(7, return_sequences=True),
            layers.TimeDistributed(layers.Dense(3)),
            layers.Softmax(),
            layers.GRU(4),
        ]
    )
    check(fastrnn.from_keras(front).spec, {"x": array(2, 23, 5)})
    x = keras.Input((None, 8, 3), name="x")
    y = layers.ZeroPadding2D(((2, 0), (1, 1)))(x)
    y = layers.Permute((1, 3, 2))(layers.Conv2D(4, 3)(y))
    y = layers.LSTM(3, return_sequences=True)(layers.TimeDistributed(layers.Flatten())(y))
    y = layers.SeparableConv1D(5, 3)(layers.ZeroPadding1D((2, 0))(y))
    made = check(fastrnn.from_keras(keras.Model(x, y)).spec, {"x": array(2, 11, 8, 3)})
    assert all(None not in state.shape for state in made.states)
    x = keras.Input((12, 8, 8, 1), name="x")
    y = layers.TimeDistributed(layers.Conv2D(3, 3, strides=2, padding="same"))(x)
    y = layers.TimeDistributed(layers.Flatten())(y)
    check(fastrnn.from_keras(keras.Model(x, layers.LSTM(5)(y))).spec, {"x": array(2, 12, 8, 8, 1)})
    x = keras.Input((None,), name="x")
    y = layers.LSTM(3, return_sequences=True)(layers.Embedding(6, 4, mask_zero=True)(x))
    y = layers.GRU(4, return_sequences=True)(layers.LayerNormalization()(layers.Add()([y, y])))
    check(fastrnn.from_keras(keras.Model(x, y)).spec, {"x": RNG.integers(0, 3, (2, 12))})


def test_torch_modules():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 3, padding=4, dilation=2)
            self.rnn = nn.LSTM(6, 5, batch_first=True, num_layers=2)
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            y = torch.relu(self.conv(x.transpose(1, 2))[:, :, :-4])
            y = nn.functional.avg_pool1d(nn.functional.pad(y, (2, 0)), 3, 1)
            y, _ = self.rnn(y.transpose(1, 2))
            return self.out(y), self.out(y[:, -1])

    made = check(fastrnn.from_torch(Causal()).spec, {"x": array(2, 13, 4)})
    assert list(made.time_axis.values()) == [1, 1, None]
    check(fastrnn.from_torch(nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5, num_layers=2))).spec, {"x": array(9, 2, 3)})


def test_a_bare_layer_leaves_its_options_out():
    made = check(fastrnn.Sequential(fastrnn.GRU(array(12, 3), array(12, 4))).spec, {"x": array(2, 5, 3)})
    assert [t.name for t in made.inputs] == ["x"]
    assert [t.name for t in made.outputs] == ["0_gru.y"]


# ---- States of the model's own ----


def folder(name: str) -> Path:
    if not (MODELS / name).is_dir():
        pytest.skip(f"{MODELS / name} is absent; set FASTRNN_MODELS to the folder of the published models")
    return MODELS / name


@pytest.mark.parametrize(
    "name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_openvino_16k", "silero_vad_op18_ifless"]
)
def test_silero_declares_its_state(name):
    made = streamed(fastrnn.load(folder("silero_vad") / f"{name}.onnx").spec)
    (state,) = made.states
    assert (state.input, state.output, state.shape, state.batch_axis) == ("state", "stateN", (2, 128), 1)
    assert set(made.time_axis.values()) == {None}
    assert made.outputs[0].name == "output"
    model = fastrnn.Model(made.spec)
    feeds = {"state": np.zeros((2, 1, 128), np.float32)} | {
        t.name: np.array(16000) for t in made.inputs if t.name == "sr"
    }
    with np.load(folder("silero_vad") / "reference_io.npz") as recorded:
        expected = recorded["prob_ort"][:20]
    with wave.open(str(folder("silero_vad") / "test.wav")) as file:
        samples = np.frombuffer(file.readframes(512 * 20), "<i2").astype(np.float32) / 32768
    samples = np.concatenate([np.zeros(64, np.float32), samples])
    for k, probability in enumerate(expected):
        results = model.run({**feeds, "input": samples[None, 512 * k : 512 * k + 576]})
        feeds["state"] = results["stateN"]
        assert abs(results["output"].item() - probability) <= 2e-6


@pytest.mark.parametrize(
    ("name", "data", "pair"),
    [
        ("model_1", ("input_2", "activation_2"), ("input_3", "tf_op_layer_stack_2")),
        ("model_2", ("input_4", "conv1d_3"), ("input_5", "tf_op_layer_stack_5")),
    ],
)
def test_dtln_declares_its_state(name, data, pair):
    made = streamed(fastrnn.load(folder("dtln") / f"{name}.onnx").spec)
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in made.states] == [(*pair, (2, 128, 2), 0)]
    assert made.time_axis == dict.fromkeys(data)


def with_states(inputs: dict[str, tuple], outputs: dict[str, tuple], nodes: list[Node] | None = None) -> ModelSpec:
    """A model of these inputs and outputs; without ``nodes`` each output is made from all inputs somehow."""
    given = [Tensor(name, shape) for name, shape in inputs.items()]
    wanted = [Tensor(name, shape) for name, shape in outputs.items()]
    kinds = [Node("operator", name, tuple(inputs), (name,), {"kind": "?", "proto": "?"}) for name in outputs]
    return ModelSpec(nodes or kinds, given, wanted)


@pytest.mark.parametrize(
    ("before", "after"),
    [("h_in", "h_out"), ("h0", "hn"), ("c_0", "c_n"), ("state", "stateN"), ("past", "present"), ("prev_h", "next_h")],
)
def test_names_that_say_before_and_after(before, after):
    assert stem(before) == stem(after)
    assert bool(stem(before)) == (before != "past")


def test_pairs_by_name():
    shape = (1, None, 4)
    spec = with_states(
        {"x": (None, 4), "cache_1_in": shape, "cache_2_in": shape, "h0": shape},
        {"y": (None, 4), "hn": shape, "cache_2_out": shape, "cache_1_out": shape},
    )
    assert paired_by_name(spec) == {"cache_1_in": "cache_1_out", "cache_2_in": "cache_2_out", "h0": "hn"}


def test_data_is_no_state_even_if_names_and_shapes_agree():
    frame = (1, 1, 8)
    spec = with_states({"frame_in": frame, "h_in": (1, 4)}, {"frame_out": frame, "h_out": (1, 4)})
    assert paired_by_name(spec) == {"h_in": "h_out"}
    assert streamed(spec).time_axis == {"frame_in": None, "frame_out": None}
    spec = with_states({"frame_in": frame}, {"frame_out": frame})
    assert paired_by_name(spec) == {}


def test_sequences_are_no_states_even_if_names_and_shapes_agree():
    sequence = (None, None, 3)
    nodes = [recurrent(name, f"{name}_in", f"{name}_out", 3, 3, "gru") for name in ("sound", "image")]
    spec = with_states(
        {"sound_in": sequence, "image_in": sequence}, {"sound_out": sequence, "image_out": sequence}, nodes
    )
    made = check(spec, {"sound_in": array(2, 5, 3), "image_in": array(2, 5, 3)})
    assert [s.input for s in made.states] == ["sound.h", "image.h"]
    assert paired_by_name(spec) == {}


def test_an_initial_state_without_its_final_one():
    nodes = [recurrent("gru", ("x", "h_0"), "y", 3, 4, "gru")]
    spec = with_states({"x": (None, None, 3), "h_0": (1, None, 4)}, {"y": (None, None, 4)}, nodes)
    assert "'h_0' float32 (1, ?, 4)" in refusal(spec)


def test_pairs_by_the_layer_whose_state_they_are():
    """Names and shapes say nothing, the graph does; and the batch axis follows from it."""
    constants = {"one": np.array([0]), "two": np.array([1])}
    nodes = [
        Node("gather", "p", ("b", "one"), ("h_b",), {"axis": 1}),
        Node("transpose", "q", ("h_b",), ("h_0",), {"perm": [1, 0, 2]}),
        Node("gather", "r", ("b", "two"), ("c_b",), {"axis": 1}),
        Node("transpose", "s", ("c_b",), ("c_0",), {"perm": [1, 0, 2]}),
        recurrent("lstm", ("a", "h_0", "c_0"), ("y", "h", "c"), 4, 4, batch_first=False),
        Node("concat", "t", ("h", "c"), ("u",)),
        Node("transpose", "v", ("u",), ("z",), {"perm": [1, 0, 2]}),
    ]
    shape = (1, 2, 4)
    spec = with_states({"a": (1, 1, 4), "b": shape}, {"y": (1, 1, 4), "z": shape}, nodes)
    spec.constants |= constants
    made = streamed(spec)
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in made.states] == [("b", "z", (2, 4), 0)]


def test_declared_states_beside_a_free_time_axis():
    nodes = [recurrent("lstm", ("x", "p", "q"), ("y", "r", "s"), 3, 4)]
    state = (1, None, 4)
    spec = with_states(
        {"x": (None, None, 3), "p": state, "q": state}, {"y": (None, None, 4), "s": state, "r": state}, nodes
    )
    made = streamed(spec)
    assert [(s.input, s.output) for s in made.states] == [("p", "r"), ("q", "s")]
    assert made.time_axis == {"x": 1, "y": 1}
    zeros = np.zeros((1, 2, 4), np.float32)
    x = array(2, 9, 3)
    whole = fastrnn.Model(spec).run({"x": x, "p": zeros, "q": zeros})
    assert np.array_equal(play(made, {"x": x}, [2, 5])["y"], whole["y"])


def test_states_that_the_caller_names():
    shape = (1, 4)
    inputs, outputs = {"x": (1, 8), "p": shape, "q": shape}, {"y": (1, 8), "r": shape, "s": shape}
    made = streamed(with_states(inputs, outputs), states={"r": "q", "s": "p"})
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in made.states] == [
        ("q", "r", (1, 4), -1),
        ("p", "s", (1, 4), -1),
    ]
    message = refusal(with_states(inputs, outputs))
    assert "states=" in message
    assert all(repr(name) in message for name in "pqrs")
    with pytest.raises(UnsupportedError, match=r"'t' is no output.*'y' float32 \(1, 8\) does not fit input 'p'"):
        streamed(with_states(inputs, outputs), states={"t": "q", "y": "p"})


def test_pairs_that_are_not_certain():
    """h is paired by name; two caches of one shape are not."""
    cache = (1, 3, 4)
    spec = with_states(
        {"x": (1, 8), "h_in": (1, 4), "p": cache, "q": cache}, {"y": (1, 8), "h_out": (1, 4), "r": cache, "s": cache}
    )
    message = refusal(spec)
    assert "'p' float32 (1, 3, 4): 'r' float32 (1, 3, 4), 's'" in message
    assert 'states={"output": "input"}' in message


def test_states_of_a_layer_in_both_directions():
    nodes = [recurrent("both ways", ("x", "h_in"), ("y", "h_out"), 3, 4, "gru", direction="bidirectional")]
    state = (2, None, 4)
    spec = with_states({"x": (None, None, 3), "h_in": state}, {"y": (None, None, 8), "h_out": state}, nodes)
    assert "'both ways'" in refusal(spec)
    assert "not come yet" in refusal(spec)


# ---- What cannot be a stream ----


def after_gru(*nodes: Node, constants: dict | None = None, y: str = "y") -> ModelSpec:
    return spec_of([recurrent("gru", "x", "a", 3, 4, "gru"), *nodes], (None, None, 3), y, constants)


FUTURE = {
    "softmax": Node("softmax", "bad", ("a",), ("y",), {"axis": 1}),
    "mean": Node("reduce", "bad", ("a",), ("y",), {"axes": [1], "function": "mean"}),
    "argmax": Node("argmax", "bad", ("a",), ("y",), {"axis": 1}),
    "flatten": Node("flatten", "bad", ("a",), ("y",)),
    "same": Node("conv", "bad", ("a",), ("y",), {"pads": [1, 1]}, {"weight": array(2, 4, 3)}),
    "backwards": recurrent("bad", "a", "y", 4, 3, "gru", direction="reverse"),
    "both": recurrent("bad", "a", "y", 4, 3, "gru", direction="bidirectional"),
    "sum": Node("cumsum", "bad", ("a",), ("y",), {"axis": 1, "reverse": True}),
    "first": Node("gather", "bad", ("a", "zero"), ("y",), {"axis": 1}),
    "cut": Node("slice", "bad", ("a", "ones", "twos", "ones"), ("y",)),
    "positions": Node("binary", "bad", ("a", "positions"), ("y",), {"function": "add"}),
    "attention": Node("matmul", "bad", ("a", "b"), ("y",)),
    "own operator": Node("operator", "bad", ("a",), ("y",), {"kind": "?", "proto": "?"}),
}


@pytest.mark.parametrize("case", FUTURE)
def test_layers_that_need_other_steps_are_named(case):
    constants = {"zero": np.array(0), "ones": np.array([1]), "twos": np.array([2]), "positions": array(9, 4)}
    nodes = [FUTURE[case]]
    if case in ("same", "attention"):
        nodes.insert(0, Node("transpose", "turned", ("a",), ("b",), {"perm": [0, 2, 1]}))
    if case == "same":
        nodes[1] = Node("conv", "bad", ("b",), ("y",), nodes[1].attrs, nodes[1].weights)
    message = refusal(after_gru(*nodes, constants=constants))
    assert "'bad'" in message
    assert message.startswith("1 layer(s)")


def test_all_such_layers_are_named_at_once():
    nodes = [
        Node("transpose", "turned", ("a",), ("b",), {"perm": [0, 2, 1]}),
        Node("conv", "same", ("b",), ("c",), {"pads": [1, 1]}, {"weight": array(4, 4, 3)}),
        Node("transpose", "back", ("c",), ("d",), {"perm": [0, 2, 1]}),
        recurrent("both", "d", "e", 4, 2, direction="bidirectional"),
        Node("softmax", "weights", ("e",), ("f",), {"axis": 1}),
        Node("reduce", "mean", ("f",), ("y",), {"axes": [1]}),
    ]
    message = refusal(after_gru(*nodes))
    assert message.startswith("4 layer(s)")
    assert all(name in message for name in ("conv 'same'", "lstm 'both'", "softmax 'weights'", "reduce 'mean'"))


def test_layers_behind_one_that_changes_the_number_of_steps_are_named_too():
    nodes = [
        Node("transpose", "turned", ("a",), ("b",), {"perm": [0, 2, 1]}),
        Node("conv_transpose", "up", ("b",), ("c",), {"strides": [2]}, {"weight": array(4, 4, 2)}),
        Node("transpose", "back", ("c",), ("d",), {"perm": [0, 2, 1]}),
        recurrent("both", "d", "e", 4, 2, direction="bidirectional"),
        Node("reduce", "mean", ("e",), ("f",), {"axes": [1]}),
        Node("operator", "strange", ("e",), ("g",), {"kind": "?", "proto": "?"}),
        recurrent("backwards", "g", "y", 4, 2, direction="reverse"),
    ]
    message = refusal(after_gru(*nodes))
    assert all(name in message for name in ("'up'", "'both'", "'strange'", "'backwards'")), message


def test_what_is_known_at_the_end_does_not_reach_earlier_steps():
    decoder = [
        recurrent("encoder", "x", ("a", "h"), 3, 4, "gru"),
        recurrent("decoder", ("a", "h"), "y", 4, 4, "gru"),
    ]
    assert "'decoder'" in refusal(spec_of(decoder, (None, None, 3)))


def test_a_sequence_model_that_cannot_stream_is_no_model_of_frames():
    """Though the second input and the second output have one shape."""
    nodes = [
        recurrent("both", "x", "a", 3, 2, direction="bidirectional"),
        Node("binary", "scale", ("a", "scales"), ("y",), {"function": "mul"}),
        Node("activation", "abs", ("scales",), ("z",), {"activation": "abs"}),
    ]
    spec = with_states({"x": (None, 9, 3), "scales": (None, 9, 4)}, {"y": (None, 9, 4), "z": (None, 9, 4)}, nodes)
    message = refusal(spec)
    assert "'both' runs in both directions" in message
    assert 'as states={"output": "input"}' in message


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("batch", [None, 1])
def test_learned_initial_states(op, batch):
    """Constants, and what is repeated for each row of the batch; each layer has its own."""
    count = 2 if op == "lstm" else 1
    begins = {f"{which}_0": array(2, 1, 4) for which in "hc"[:count]}
    names, nodes = list(begins), []
    if batch is None:
        nodes.append(Node("shape", "rows", ("x",), ("rows",), {"end": 1}))
        nodes.append(Node("concat", "sizes", ("two", "rows", "four"), ("sizes",)))
        nodes += [Node("expand", f"all {name}", (name, "sizes"), (f"all {name}",)) for name in names]
        names = [f"all {name}" for name in names]
    nodes.append(recurrent("layer", ("x", *names), "y", 3, 4, op, num_layers=2))
    constants = {**begins, "two": np.array([2]), "four": np.array([4])}
    made = check(
        spec_of(nodes, (batch, None, 3), constants=constants), {"x": array(batch or 2, 5, 3)}, batch=batch or 2
    )
    for state, value in zip(made.states, begins.values(), strict=True):
        assert np.array_equal(state.initial, value[:, 0])


def test_initial_states_that_are_zeros_or_not_known():
    nodes = [recurrent("gru", ("x", "h_0"), "y", 3, 4, "gru")]
    check(spec_of(nodes, (None, None, 3), constants={"h_0": np.zeros((1, 2, 4), np.float32)}), {"x": array(2, 5, 3)})
    assert "differs from row to row" in refusal(spec_of(nodes, (None, None, 3), constants={"h_0": array(1, 2, 4)}))
    nodes.insert(0, Node("dense", "begin", ("speaker",), ("h_0",), {}, {"weight": array(4, 2)}))
    spec = ModelSpec(nodes, [Tensor("x", (None, None, 3)), Tensor("speaker", (None, 2))], [Tensor("y", None)])
    assert "gru 'gru' begins with a state that is computed from an input" in refusal(spec)


def test_lengths_and_numbers_of_steps():
    nodes = [recurrent("gru", ("x", "", "", "lengths"), "y", 3, 4, "gru")]
    spec = ModelSpec(nodes, [Tensor("x", (None, None, 3)), Tensor("lengths", (None,), "int64")], [Tensor("y", None)])
    assert "'gru' takes lengths" in refusal(spec)
    count = [
        Node("shape", "count", ("a",), ("n",), {"start": 1, "end": 2}),
        Node("cast", "bad", ("n",), ("m",), {"dtype": "float32"}),
        Node("binary", "scaled", ("a", "m"), ("y",), {"function": "div"}),
    ]
    assert "'bad'" in refusal(after_gru(*count))


def test_a_model_without_state():
    spec = spec_of([Node("dense", "dense", ("x",), ("y",), {}, {"weight": array(2, 3)})], (None, None, 3))
    assert "has no recurrent layer, convolution or pool" in refusal(spec)


def test_frames_whose_rows_meet():
    """A model that declares its state is refused too where rows of the batch meet."""
    state = (1, None, 4)
    nodes = [
        recurrent("gru", ("x", "h_in"), ("a", "h_out"), 3, 4, "gru"),
        Node("softmax", "bad", ("a",), ("y",), {"axis": 0}),
    ]
    spec = with_states({"x": (None, 1, 3), "h_in": state}, {"y": (None, 1, 4), "h_out": state}, nodes)
    assert "softmax 'bad' works along the batch" in refusal(spec)
