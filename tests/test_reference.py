"""The float64 reference against PyTorch, Keras, ONNX and the identities that the equations obey."""

import itertools
import os

import numpy as np
import pytest

from fastrnn import operators, reference, spec
from fastrnn.errors import ShapeError
from fastrnn.spec import ModelSpec, Node, Tensor, reorder_gates

EXACT = 1e-12  # float64 against float64: only the order of sums differs
FLOAT32 = 2e-6  # the other side computes in float32

BATCH, SEQ_LEN, INPUT, HIDDEN = 3, 5, 4, 6


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def random_node(op, rng, input_size=INPUT, hidden_size=HIDDEN, proj_size=0, **attrs):
    """A recurrent node with random float32 weights, biases included."""
    node = Node(op, op, ("x",), ("y",), attrs)
    gates = len(spec.GATES[op])
    out = proj_size or hidden_size
    directions = 2 if node.attr("direction") == "bidirectional" else 1
    for k, suffix in enumerate(spec.weight_suffixes(node.attr("num_layers"), node.attr("direction"))):
        size = input_size if k < directions else out * directions
        shapes = {"weight_ih": (gates * hidden_size, size), "weight_hh": (gates * hidden_size, out)}
        shapes |= {"bias_ih": (gates * hidden_size,), "bias_hh": (gates * hidden_size,)}
        if proj_size:
            shapes["weight_hr"] = (proj_size, hidden_size)
        for name, shape in shapes.items():
            node.weights[name + suffix] = rng.uniform(-0.7, 0.7, shape).astype(np.float32)
    return node


def test_every_op_and_activation_is_there():
    assert set(reference.OPS) | set(operators.FUNCTIONS) | set(operators.CONTROL_FLOW) == set(spec.OPS)
    assert set(reference.ACTIVATIONS) == set(spec.ACTIVATIONS)


# PyTorch


def from_torch(module, **attrs):
    op = module.mode.lower().split("_")[0]
    attrs |= {"num_layers": module.num_layers, "batch_first": module.batch_first}
    attrs["direction"] = "bidirectional" if module.bidirectional else "forward"
    if op == "rnn":
        attrs["activation"] = module.nonlinearity
    return Node(op, op, ("x",), ("y",), attrs, {k: v.detach().numpy() for k, v in module.named_parameters()})


def torch_call(torch, module, x, states):
    """Run a torch module on arrays; returns (y, h_n[, c_n]) as arrays."""
    states = [torch.from_numpy(s) for s in states]
    with torch.no_grad():
        y, state = module(x, tuple(states) if len(states) > 1 else states[0])
    return y, [s.numpy() for s in (state if isinstance(state, tuple) else (state,))]


def torch_module(torch, cell, num_layers=1, bidirectional=False, **options):
    torch.manual_seed(1)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell]
    return kind(INPUT, HIDDEN, num_layers, bidirectional=bidirectional, dtype=torch.float64, **options)


def torch_states(module, rng, *batch):
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or HIDDEN] + ([HIDDEN] if module.mode == "LSTM" else [])
    return [rng.standard_normal((count, *batch, size)) for size in sizes]


TORCH_GRID = [
    (cell, dict(num_layers=layers, bidirectional=both, bias=bias, batch_first=first, **extra))
    for cell, extra in [
        ("lstm", {}),
        ("lstm", {"proj_size": 2}),
        ("gru", {}),
        ("rnn", {"nonlinearity": "tanh"}),
        ("rnn", {"nonlinearity": "relu"}),
    ]
    for layers, both, bias, first in itertools.product([1, 3], [False, True], [True, False], [True, False])
]


@pytest.mark.parametrize(("cell", "options"), TORCH_GRID)
def test_torch(cell, options, rng):
    torch = pytest.importorskip("torch")
    module = torch_module(torch, cell, **options)
    shape = (BATCH, SEQ_LEN) if module.batch_first else (SEQ_LEN, BATCH)
    x, states = rng.standard_normal((*shape, INPUT)), torch_states(module, rng, BATCH)
    want, want_states = torch_call(torch, module, torch.from_numpy(x), states)
    y, *state = reference.recurrent(from_torch(module), x, *states)
    np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=EXACT)
    for ours, theirs in zip(state, want_states, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_without_a_batch_axis(cell, batch_first, rng):
    torch = pytest.importorskip("torch")
    module = torch_module(torch, cell, 2, True, batch_first=batch_first)
    x, states = rng.standard_normal((SEQ_LEN, INPUT)), torch_states(module, rng)
    want, want_states = torch_call(torch, module, torch.from_numpy(x), states)
    y, *state = reference.recurrent(from_torch(module), x, *states)
    np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=EXACT)
    for ours, theirs in zip(state, want_states, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch_packed(cell, bidirectional, rng):
    torch = pytest.importorskip("torch")
    module = torch_module(torch, cell, 2, bidirectional, batch_first=True)
    lengths = np.array([2, 5, 1])
    x, states = rng.standard_normal((BATCH, SEQ_LEN, INPUT)), torch_states(module, rng, BATCH)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
    )
    want, want_states = torch_call(torch, module, packed, states)
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(want, batch_first=True, total_length=SEQ_LEN)
    for row, length in enumerate(lengths):
        x[row, length:] = np.nan  # padding must not matter
    y, *state = reference.recurrent(from_torch(module), x, *states, lengths=lengths)
    np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=EXACT)
    for ours, theirs in zip(state, want_states, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch", [(), (BATCH,)])
def test_torch_cells(cell, batch, rng):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    kind = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}[cell]
    module = kind(INPUT, HIDDEN, dtype=torch.float64)
    weights = {name + "_l0": value.detach().numpy() for name, value in module.named_parameters()}
    node = Node(cell, cell, ("x",), ("y",), {"unbatched": True}, weights)
    x = rng.standard_normal((*batch, INPUT))
    states = [rng.standard_normal((*batch, HIDDEN)) for _ in range(2 if cell == "lstm" else 1)]
    given = [torch.from_numpy(s) for s in states]
    with torch.no_grad():
        want = module(torch.from_numpy(x), tuple(given) if len(given) > 1 else given[0])
    y, *state = reference.recurrent(node, x, *states)
    for ours, theirs in zip([y, *state], (want[0], *want) if cell == "lstm" else (want, want), strict=False):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=EXACT)


TORCH_ACTIVATIONS = {
    "sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu", "leaky_relu": "leaky_relu", "elu": "elu",
    "softsign": "softsign", "softplus": "softplus", "selu": "selu", "silu": "silu", "gelu": "gelu",
    "mish": "mish", "relu6": "relu6", "hard_tanh": "hardtanh", "hard_swish": "hardswish",
    "log_sigmoid": "logsigmoid",
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
def test_torch_activations(name):
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-15, 15, 301), [1e-6, -1e-6, np.nan]])
    want = getattr(torch.nn.functional, TORCH_ACTIVATIONS[name])(torch.from_numpy(x)).numpy()
    # torch's softplus is the identity above 20 and its log1p(exp(x)) differs in the last digits
    np.testing.assert_allclose(reference.activate(name, x), want, rtol=1e-10, atol=EXACT)


def test_torch_activations_with_parameters():
    torch = pytest.importorskip("torch")
    functional, x = torch.nn.functional, np.linspace(-4, 4, 90).reshape(9, 10)
    given = torch.from_numpy(x)
    for value, want in {
        ("hard_sigmoid", 1 / 6): functional.hardsigmoid(given),
        ("leaky_relu", 0.3): functional.leaky_relu(given, 0.3),
        ("elu", 0.5): functional.elu(given, 0.5),
        ("hard_tanh", -2.0, 0.5): functional.hardtanh(given, -2.0, 0.5),
        ("thresholded_relu", 0.7): functional.threshold(given, 0.7, 0.0),
        ("gelu_tanh",): functional.gelu(given, approximate="tanh"),
        ("softmax",): functional.softmax(given, -1),
        ("log_softmax",): functional.log_softmax(given, -1),
        ("affine", 2.0, 1.0): 2 * given + 1,
        ("scaled_tanh", 2.0, 0.5): 2 * torch.tanh(0.5 * given),
        ("exp",): given.exp(),
        ("linear",): given,
    }.items():
        np.testing.assert_allclose(
            reference.activate(value, x), want.numpy(), rtol=1e-12, atol=EXACT, err_msg=str(value)
        )


def test_torch_layers(rng):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    x = rng.standard_normal((2, 3, 4))

    def check(module, op, weights, **attrs):
        node = Node(op, op, ("x",), ("y",), attrs, {k: getattr(module, v).detach().numpy() for k, v in weights.items()})
        want = module.eval()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(reference.OPS[op](node, x)[0], want, rtol=0, atol=EXACT)

    affine = {"weight": "weight", "bias": "bias"}
    double = torch.float64
    check(torch.nn.Linear(4, 5, dtype=double), "dense", affine)
    check(torch.nn.Linear(4, 5, bias=False, dtype=double), "dense", {"weight": "weight"})
    check(torch.nn.LayerNorm(4, eps=1e-3, dtype=double), "layer_norm", affine, eps=1e-3)
    check(torch.nn.LayerNorm((3, 4), elementwise_affine=False), "layer_norm", {}, axes=2)
    norm = torch.nn.LayerNorm((3, 4), dtype=double)
    torch.nn.init.normal_(norm.weight)
    check(norm, "layer_norm", affine)
    norm = torch.nn.BatchNorm1d(3, dtype=double)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    norm.running_var[:] = torch.tensor([0.5, 1.5, 2.5])
    check(norm, "batch_norm", affine | {"mean": "running_mean", "var": "running_var"}, channels_first=True)


# Keras, in float32 on its torch backend


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    return pytest.importorskip("keras")


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # keras on torch


def to_numpy(tensor):
    return tensor.detach().cpu().numpy()


def keras_weights(layer, op, suffix):
    kernel, recurrent, *bias = layer.get_weights()
    weights = {"weight_ih": reorder_gates(kernel.T, op, "keras"), "weight_hh": reorder_gates(recurrent.T, op, "keras")}
    for name, value in zip(("bias_ih", "bias_hh"), np.atleast_2d(bias[0]) if bias else (), strict=False):
        weights[name] = reorder_gates(value, op, "keras")
    return {name + suffix: value for name, value in weights.items()}


def randomize(layer, rng):
    layer.set_weights([rng.uniform(-0.7, 0.7, w.shape) for w in layer.get_weights()])


KERAS_CELLS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"reset_after": True}),
    "gru before": ("GRU", {"reset_after": False}),
    "rnn": ("SimpleRNN", {}),
}
MASKS = {
    "no mask": None,
    "mask": np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool),
}


@pytest.mark.parametrize("cell", KERAS_CELLS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_keras(keras, cell, backwards, mask, rng):
    kind, options = KERAS_CELLS[cell]
    op = cell.split()[0]
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT)).astype(np.float32)
    for sequences, zero_output in itertools.product([False, True], [False, True] if mask == "mask" else [False]):
        layer = getattr(keras.layers, kind)(
            HIDDEN, return_sequences=sequences, return_state=True, go_backwards=backwards, **options
        )
        layer.zero_output_for_mask = zero_output
        layer.build(x.shape)
        randomize(layer, rng)
        attrs = {"return_sequences": sequences, "zero_output_for_mask": zero_output, "reverse_output": backwards}
        attrs |= {"direction": "reverse" if backwards else "forward"}
        attrs |= options
        node = Node(op, op, ("x",), ("y",), attrs, keras_weights(layer, op, "_l0"))
        want = [to_numpy(a) for a in layer(x, mask=MASKS[mask])]
        y, *state = reference.recurrent(node, x, mask=MASKS[mask])
        for ours, theirs in zip([y, *(s[0] for s in state if s is not None)], want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_keras_bidirectional(keras, merge, sequences, mask, rng):
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT)).astype(np.float32)
    for cell, op in (("LSTM", "lstm"), ("GRU", "gru")):
        inner = getattr(keras.layers, cell)(HIDDEN, return_sequences=sequences)
        layer = keras.layers.Bidirectional(inner, merge_mode=merge)
        layer.build(x.shape)
        randomize(layer, rng)
        weights = keras_weights(layer.forward_layer, op, "_l0") | keras_weights(layer.backward_layer, op, "_l0_reverse")
        attrs = {"direction": "bidirectional", "merge": merge, "return_sequences": sequences}
        attrs["zero_output_for_mask"] = sequences  # Bidirectional forces it upon both of its layers
        node = Node(op, op, ("x",), ("y",), attrs, weights)
        y = reference.recurrent(node, x, mask=MASKS[mask])[0]
        np.testing.assert_allclose(y, to_numpy(layer(x, mask=MASKS[mask])), rtol=0, atol=FLOAT32)


def test_keras_activations_in_the_cell(keras, rng):
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT)).astype(np.float32)
    options = {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}
    layer = keras.layers.LSTM(HIDDEN, **options)
    layer.build(x.shape)
    randomize(layer, rng)
    attrs = {"gate_activation": ("hard_sigmoid", 1 / 6, 0.5), "cell_activation": "softsign"}
    attrs |= {"hidden_activation": "softsign", "return_sequences": False}
    node = Node("lstm", "lstm", ("x",), ("y",), attrs, keras_weights(layer, "lstm", "_l0"))
    np.testing.assert_allclose(reference.recurrent(node, x)[0], to_numpy(layer(x)), rtol=0, atol=FLOAT32)


def test_keras_masks_and_norms(keras, rng):
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT)).astype(np.float32)
    x[0, 2] = 0.1
    x[1, 3, 0] = 0.1
    layer = keras.layers.Masking(0.1)
    y, mask = reference.masking(Node("masking", "m", ("x",), ("y", "mask"), {"mask_value": 0.1}), x)
    np.testing.assert_array_equal(mask, to_numpy(layer.compute_mask(x)))
    np.testing.assert_array_equal(y, to_numpy(layer(x)))

    layer = keras.layers.Embedding(9, 4, mask_zero=True)
    ids = np.array([[3, 0, 8], [0, 0, 1]])
    want = to_numpy(layer(ids))
    node = Node("embedding", "e", ("ids",), ("y", "mask"), {"mask_zero": True}, {"weight": layer.get_weights()[0]})
    y, mask = reference.embedding(node, ids)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(mask, to_numpy(layer.compute_mask(ids)))

    layer = keras.layers.BatchNormalization(epsilon=1e-2)
    layer.build(x.shape)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    names = ("weight", "bias", "mean", "var")
    weights = dict(zip(names, layer.get_weights(), strict=True))
    node = Node("batch_norm", "b", ("x",), ("y",), {"eps": 1e-2}, weights)
    np.testing.assert_allclose(reference.batch_norm(node, x), to_numpy(layer(x)), rtol=0, atol=FLOAT32)


# ONNX: the options that its reference evaluator implements


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("case", ["lstm", "peephole", "gru 0", "gru 1"])
def test_onnx(direction, case, rng):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    op = case.split()[0].replace("peephole", "lstm")
    attrs = {"linear_before_reset": int(case[-1])} if op == "gru" else {}
    names = ["x", "w", "r", "b"] + (["", "h", "c", "p"] if op == "lstm" else ["", "h"])
    count = 2 if direction == "bidirectional" else 1
    gates = len(spec.GATES[op])
    feeds = {
        "x": rng.standard_normal((SEQ_LEN, BATCH, INPUT)),
        "w": rng.uniform(-0.7, 0.7, (count, gates * HIDDEN, INPUT)),
        "r": rng.uniform(-0.7, 0.7, (count, gates * HIDDEN, HIDDEN)),
        "b": rng.uniform(-0.7, 0.7, (count, 2 * gates * HIDDEN)),
        "h": rng.standard_normal((count, BATCH, HIDDEN)),
        "c": rng.standard_normal((count, BATCH, HIDDEN)),
        "p": rng.uniform(-0.7, 0.7, (count, 3 * HIDDEN)) * (case == "peephole"),
    }
    outputs = ["y", "y_h", "y_c"][: 3 if op == "lstm" else 2]
    onnx_node = onnx.helper.make_node(op.upper(), names, outputs, hidden_size=HIDDEN, direction=direction, **attrs)
    double = onnx.TensorProto.DOUBLE
    graph = onnx.helper.make_graph(
        [onnx_node],
        "g",
        [onnx.helper.make_tensor_value_info(n, double, feeds[n].shape) for n in names if n],
        [onnx.helper.make_tensor_value_info(n, double, None) for n in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    want = ReferenceEvaluator(model).run(None, {n: feeds[n] for n in names if n})

    node = Node(op, op, ("x",), ("y",), {"direction": direction, "batch_first": False})
    if op == "gru":
        node.attrs["reset_after"] = bool(attrs["linear_before_reset"])
    for k, suffix in enumerate(spec.weight_suffixes(1, direction)):
        bias_ih, bias_hh = np.split(feeds["b"][k], 2)
        blocks = {"weight_ih": feeds["w"][k], "weight_hh": feeds["r"][k], "bias_ih": bias_ih, "bias_hh": bias_hh}
        node.weights |= {name + suffix: reorder_gates(value, op, "onnx") for name, value in blocks.items()}
        if op == "lstm":
            i, o, f = np.split(feeds["p"][k], 3)
            node.weights["peephole" + suffix] = np.concatenate([i, f, o])
    states = [feeds["h"], feeds["c"]] if op == "lstm" else [feeds["h"]]
    y, *state = reference.recurrent(node, feeds["x"], *states)
    np.testing.assert_allclose(y, np.concatenate(list(want[0].swapaxes(0, 1)), -1), rtol=0, atol=EXACT)
    for ours, theirs in zip(state, want[1:], strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


# Identities


def test_update_gate_take_is_the_negated_update_gate(rng):
    keep = random_node("gru", rng)
    take = random_node("gru", rng, update_gate="take")
    for name, value in keep.weights.items():
        take.weights[name] = value.copy()
        take.weights[name][HIDDEN : 2 * HIDDEN] *= -1
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    np.testing.assert_allclose(reference.recurrent(keep, x)[0], reference.recurrent(take, x)[0], rtol=0, atol=EXACT)


def test_coupled_gates_ignore_the_input_gate(rng):
    node = random_node("lstm", rng, coupled_input_forget=True)
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    y = reference.recurrent(node, x)[0]
    for value in node.weights.values():
        value[:HIDDEN] = np.nan
    np.testing.assert_array_equal(reference.recurrent(node, x)[0], y)
    # f = 1, so i = 0: the cell never changes
    for name in ("bias_ih_l0", "bias_hh_l0"):
        node.weights[name][HIDDEN : 2 * HIDDEN] = 1e3
    c_0 = rng.standard_normal((1, BATCH, HIDDEN))
    np.testing.assert_array_equal(reference.recurrent(node, x, c_0=c_0)[2], c_0)


def test_clips(rng):
    x = 100 * rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    _, _, c_n = reference.recurrent(random_node("lstm", rng, cell_clip=0.25), x)
    assert np.abs(c_n).max() == 0.25
    y, _, _ = reference.recurrent(random_node("lstm", rng, proj_size=3, proj_clip=0.125), x)
    assert np.abs(y).max() == 0.125
    y, _, _ = reference.recurrent(random_node("rnn", rng, clip=0.5), x)
    assert np.abs(y).max() == np.tanh(0.5)
    # gates between sigmoid(-1) and sigmoid(1), candidate within tanh(1): the first h is bounded by both
    y, _, _ = reference.recurrent(random_node("gru", rng, clip=1.0), x[:, :1])
    assert np.abs(y).max() <= np.tanh(1.0) / (1 + np.exp(-1.0))


@pytest.mark.parametrize("op", spec.GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lengths_equal_each_row_alone(op, direction, rng):
    node = random_node(op, rng, direction=direction, num_layers=2)
    lengths = np.array([3, 0, 5])
    x = rng.standard_normal((3, SEQ_LEN, INPUT))
    count = len(spec.weight_suffixes(2, direction))
    states = [rng.standard_normal((count, 3, HIDDEN)) for _ in range(2 if op == "lstm" else 1)]
    y, *state = reference.recurrent(node, x, *states, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, *alone_state = reference.recurrent(node, x[row, :length], *(s[:, row] for s in states))
        np.testing.assert_allclose(y[row, :length], alone, rtol=0, atol=EXACT)
        assert not y[row, length:].any()
        for ours, theirs in zip(state, alone_state, strict=True):
            if theirs is not None:
                np.testing.assert_allclose(ours[:, row], theirs, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(state[0][:, 1], states[0][:, 1])


@pytest.mark.parametrize("op", spec.GATES)
def test_chunks_equal_the_whole(op, rng):
    node = random_node(op, rng, num_layers=2)
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    whole, *final = reference.recurrent(node, x)
    first, *state = reference.recurrent(node, x[:, :2])
    second, *state = reference.recurrent(node, x[:, 2:], *(s for s in state if s is not None))
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=0, atol=EXACT)
    np.testing.assert_allclose(state[0], final[0], rtol=0, atol=EXACT)


@pytest.mark.parametrize("op", spec.GATES)
def test_reverse_is_forward_on_the_reversed_sequence(op, rng):
    forward = random_node(op, rng)
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    want, want_h, _ = reference.recurrent(forward, x[:, ::-1])
    for reverse_output in (False, True):
        attrs = {"direction": "reverse", "reverse_output": reverse_output}
        y, h_n, _ = reference.recurrent(Node(op, op, ("x",), ("y",), attrs, forward.weights), x)
        np.testing.assert_array_equal(y, want if reverse_output else want[:, ::-1])
        np.testing.assert_array_equal(h_n, want_h)


@pytest.mark.parametrize("op", spec.GATES)
@pytest.mark.parametrize(("batch", "seq_len"), [(0, 3), (2, 0), (0, 0)])
def test_empty(op, batch, seq_len, rng):
    node = random_node(op, rng, direction="bidirectional", num_layers=2)
    h_0 = rng.standard_normal((4, batch, HIDDEN))
    y, h_n, _ = reference.recurrent(node, np.zeros((batch, seq_len, INPUT)), h_0)
    assert y.shape == (batch, seq_len, 2 * HIDDEN)
    assert h_n.shape == h_0.shape
    if not seq_len:
        np.testing.assert_array_equal(h_n, h_0)


@pytest.mark.parametrize("op", spec.GATES)
def test_nan_stays_in_its_row_and_masked_steps_do_not_matter(op, rng):
    node = random_node(op, rng, direction="bidirectional")
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    clean = reference.recurrent(node, x)[0]
    x[1, 2] = np.nan
    y = reference.recurrent(node, x)[0]
    assert np.isnan(y[1, 2]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    mask = np.ones((BATCH, SEQ_LEN), bool)
    mask[1, 2] = False
    assert np.isfinite(reference.recurrent(node, x, mask=mask)[0]).all()


def test_activations_at_the_ends():
    ends = np.array([-np.inf, np.inf, np.nan])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(reference.activate("sigmoid", ends), [0, 1, np.nan])
        np.testing.assert_array_equal(reference.activate("tanh", ends), [-1, 1, np.nan])
        np.testing.assert_array_equal(reference.activate("hard_sigmoid", ends), [0, 1, np.nan])
        np.testing.assert_array_equal(reference.activate("softplus", ends), [0, np.inf, np.nan])
        np.testing.assert_array_equal(reference.activate("sigmoid", np.array([-1e4])), [0])
        np.testing.assert_allclose(reference.activate("softmax", np.array([1e4, 0, 1e4])), [0.5, 0, 0.5])
        # tanh near 0 and sigmoid far below 0 keep their relative accuracy
        np.testing.assert_allclose(reference.activate("sigmoid", np.array([-50.0])), np.exp(-50.0), rtol=1e-15)


def test_mask_and_lengths_together_are_an_error(rng):
    with pytest.raises(ShapeError, match="both mask and lengths"):
        reference.recurrent(
            random_node("gru", rng), np.zeros((1, 2, INPUT)), mask=np.ones((1, 2)), lengths=np.array([1])
        )


def test_embedding_ids_out_of_range_are_an_error():
    node = Node("embedding", "words", ("ids",), ("y",), weights={"weight": np.eye(3)})
    with pytest.raises(ShapeError, match=r"embedding 'words': ids from -1 to 3.*rows 0 to 2"):
        reference.embedding(node, np.array([-1, 3]))


def test_run_a_graph(rng):
    """Masking feeds a GRU whose final state starts another one; every tensor comes back by name."""
    first = random_node("gru", rng)
    first.name, first.inputs, first.outputs = "first", ("masked", "", "mask"), ("", "h")
    second = random_node("gru", rng)
    second.name, second.inputs, second.outputs = "second", ("x", "h", "mask"), ("y", "h_n")
    graph = ModelSpec(
        [Node("masking", "masking", ("x",), ("masked", "mask")), first, second],
        [Tensor("x", (None, None, INPUT))],
        [Tensor("y", (None, None, HIDDEN))],
    )
    graph.nodes[1].outputs = ("unused", "h")
    graph.validate()
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    x[0, 3:] = 0
    tensors = reference.run(graph, {"x": x})
    assert set(tensors) == {"x", "masked", "mask", "unused", "h", "y", "h_n"}
    h = reference.recurrent(first, x, lengths=np.array([3, 5, 5]))[1]
    np.testing.assert_array_equal(tensors["h"], h)
    y = reference.recurrent(second, x, h, mask=tensors["mask"])[0]
    np.testing.assert_array_equal(tensors["y"], y)


@pytest.mark.parametrize("op", spec.GATES)
def test_precision_is_kept_throughout(op, rng):
    node = random_node(op, rng, num_layers=2, direction="bidirectional", merge="ave")
    x = rng.standard_normal((BATCH, SEQ_LEN, INPUT))
    exact = reference.recurrent(node, x)[0]
    with reference.precision(np.float32):
        rounded = reference.recurrent(node, x)
        for name in spec.ACTIVATIONS:
            assert reference.activate(name, x).dtype == np.float32
    assert all(a.dtype == np.float32 for a in rounded if a is not None)
    assert 1e-9 < np.abs(rounded[0] - exact).max() < 1e-6
    assert reference.activate("tanh", x).dtype == np.float64
