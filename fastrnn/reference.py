"""The mathematics of fastrnn in float64 NumPy, one equation a line: the oracle of the tests and the text to read.

Conventions are those of :mod:`fastrnn.spec`: weights are ``(gates * hidden_size, input_size)``, gates stand in the
order i f g o or r z n, arrays are batch first.  Nothing here is fast, and nothing here knows the engine.

Sources: Hochreiter and Schmidhuber (1997) and Gers et al. (2000, 2002) for the LSTM, its forget gate and its
peepholes; Cho et al. (2014) for the GRU; Sak et al. (2014) for the projection; Greff et al. (2017) for the coupled
input and forget gates; the manuals of PyTorch, Keras and ONNX for everything that they call an option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from . import operators
from . import spec as _spec
from .errors import ShapeError
from .float_mode import in_default_mode
from .spec import GATES, Graph, ModelSpec, Node, weight_suffixes

Array = np.ndarray

_precision: ContextVar[type] = ContextVar("precision", default=np.float64)


@contextmanager
def precision(dtype: type) -> Iterator[None]:
    """Evaluate the same equations in another precision inside a ``with`` block.

    In float32 the distance to float64 shows what rounding alone does to a layer; :mod:`fastrnn.verify` judges by it.

    >>> with precision(np.float32):
    ...     activate("tanh", np.array([0.5])).dtype
    dtype('float32')
    """
    token = _precision.set(dtype)
    try:
        yield
    finally:
        _precision.reset(token)


def _real(x: Any) -> Array:
    return np.asarray(x, _precision.get())


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "linear": lambda x, alpha, beta: x,
    "sigmoid": lambda x, alpha, beta: _sigmoid(x),
    "tanh": lambda x, alpha, beta: np.tanh(x),
    "relu": lambda x, alpha, beta: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leaky_relu": lambda x, alpha, beta: np.where(x < 0, alpha * x, x),
    "thresholded_relu": lambda x, alpha, beta: np.where(x <= alpha, 0, x),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "elu": lambda x, alpha, beta: _elu(x, alpha),
    "softsign": lambda x, alpha, beta: x / (1 + np.abs(x)),
    "softplus": lambda x, alpha, beta: _softplus(x),
    "exp": lambda x, alpha, beta: np.exp(x),
    "selu": lambda x, alpha, beta: beta * _elu(x, alpha),
    "silu": lambda x, alpha, beta: x * _sigmoid(x),
    "gelu": lambda x, alpha, beta: x / 2 * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x, alpha, beta: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "mish": lambda x, alpha, beta: x * np.tanh(_softplus(x)),
    "relu6": lambda x, alpha, beta: np.clip(x, 0, 6),
    "hard_tanh": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "hard_swish": lambda x, alpha, beta: x * np.clip(x / 6 + 0.5, 0, 1),
    "log_sigmoid": lambda x, alpha, beta: -_softplus(-x),
    "celu": lambda x, alpha, beta: np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0),
    "abs": lambda x, alpha, beta: np.abs(x),
    "neg": lambda x, alpha, beta: -x,
    "sign": lambda x, alpha, beta: np.sign(x),
    "square": lambda x, alpha, beta: x * x,
    "sqrt": lambda x, alpha, beta: np.sqrt(x),
    "reciprocal": lambda x, alpha, beta: 1 / x,
    "log": lambda x, alpha, beta: np.log(x),
    "erf": lambda x, alpha, beta: 1 - _erfc(x),
    "floor": lambda x, alpha, beta: np.floor(x),
    "ceil": lambda x, alpha, beta: np.ceil(x),
    "round": lambda x, alpha, beta: np.round(x),
    "softmax": lambda x, alpha, beta: np.exp(_log_softmax(x)),
    "log_softmax": lambda x, alpha, beta: _log_softmax(x),
}
"""The formula of each activation of :data:`fastrnn.spec.ACTIVATIONS`, as ``function(x, alpha, beta)``."""


def activate(value: str | tuple | list, x: Array) -> Array:
    """Apply an activation, given as a name or ``(name, alpha, beta)``, to ``x``.

    >>> activate(("leaky_relu", 0.5), np.array([-2.0, 3.0]))
    array([-1.,  3.])
    """
    name, alpha, beta = _spec.activation(value)
    with np.errstate(all="ignore"):  # exp(-x) = inf is the right limit: sigmoid gives 0
        return _real(ACTIVATIONS[name](_real(x), alpha, beta))


# Cells: one time step.  x is (batch, input_size), h and c are (batch, hidden_size).


def lstm_cell(
    x: Array,
    h: Array,
    c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | float = 0.0,
    bias_hh: Array | float = 0.0,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    *,
    gate_activation: Any = "sigmoid",
    cell_activation: Any = "tanh",
    hidden_activation: Any = "tanh",
    coupled_input_forget: bool = False,
    clip: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
) -> tuple[Array, Array]:
    """One step of an LSTM; returns ``(h, c)``.

    ``weight_hr`` (proj_size, hidden_size) projects h; ``peephole`` (3 * hidden_size,) holds the weights with which
    i, f and o look at the cell, i and f at the old one, o at the new one.  With ``coupled_input_forget`` the input
    gate is 1 - f and its own weights have no effect.

    >>> one = np.ones((1, 1))
    >>> h, c = lstm_cell(one, one, one, np.zeros((4, 1)), np.zeros((4, 1)))
    >>> float(c[0, 0]), float(h[0, 0] / np.tanh(0.5))
    (0.5, 0.5)
    """
    total = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    i, f, g, o = np.split(total, 4, axis=-1)
    if peephole is not None:
        p_i, p_f, p_o = np.split(peephole, 3)
        i = i + p_i * c
        f = f + p_f * c
    f = activate(gate_activation, _clip(f, clip))
    i = 1 - f if coupled_input_forget else activate(gate_activation, _clip(i, clip))
    g = activate(cell_activation, _clip(g, clip))
    c = _clip(f * c + i * g, cell_clip)
    if peephole is not None:
        o = o + p_o * c
    o = activate(gate_activation, _clip(o, clip))
    h = o * activate(hidden_activation, c)
    if weight_hr is not None:
        h = h @ weight_hr.T
    return _clip(h, proj_clip), c


def gru_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | float = 0.0,
    bias_hh: Array | float = 0.0,
    *,
    gate_activation: Any = "sigmoid",
    cell_activation: Any = "tanh",
    reset_after: bool = True,
    update_gate: str = "keep",
    clip: float | None = None,
) -> Array:
    """One step of a GRU; returns h.

    ``reset_after`` says whether the reset gate works on the product ``U_n h + b_hn`` (PyTorch, CuDNN, Keras' default)
    or on h before the product (Cho et al., ONNX' default).  ``update_gate="keep"``: z = 1 keeps the old h.

    >>> one = np.ones((1, 1))
    >>> float(gru_cell(one, one, np.zeros((3, 1)), np.zeros((3, 1)))[0, 0])
    0.5
    """
    x_r, x_z, x_n = np.split(x @ weight_ih.T + bias_ih, 3, axis=-1)
    h_r, h_z, h_n = np.split(h @ weight_hh.T + bias_hh, 3, axis=-1)
    r = activate(gate_activation, _clip(x_r + h_r, clip))
    z = activate(gate_activation, _clip(x_z + h_z, clip))
    if not reset_after:
        w_n = np.split(weight_hh, 3)[2]
        b_n = np.split(np.broadcast_to(bias_hh, len(weight_hh)), 3)[2]
        h_n = (r * h) @ w_n.T + b_n
    n = activate(cell_activation, _clip(x_n + r * h_n if reset_after else x_n + h_n, clip))
    return z * h + (1 - z) * n if update_gate == "keep" else (1 - z) * h + z * n


def rnn_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | float = 0.0,
    bias_hh: Array | float = 0.0,
    *,
    activation: Any = "tanh",
    clip: float | None = None,
) -> Array:
    """One step of a simple (Elman) network; returns h.

    >>> one = np.ones((1, 1))
    >>> float(rnn_cell(one, one, 2 * one, 3 * one, activation="relu")[0, 0])
    5.0
    """
    return activate(activation, _clip(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh, clip))


_CELLS: dict[str, Callable[..., Any]] = {"lstm": lstm_cell, "gru": gru_cell, "rnn": rnn_cell}


# Layers: the loop over time, directions and stacked layers.


@in_default_mode
def recurrent(
    node: Node,
    x: Array,
    h_0: Array | None = None,
    c_0: Array | None = None,
    mask: Array | None = None,
    lengths: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """Run an lstm, gru or rnn node; returns ``(y, h_n, c_n)``, with ``c_n`` None where the cell has no c.

    Parameters
    ----------
    x : array
        (B, T, I), or (T, B, I) where the node is not batch first.  (T, I) is one sequence without a batch axis; then
        y, states, mask lack it too.  For an ``unbatched`` node (a cell) x is (B, I) or (I,): one step.
    h_0, c_0 : array, optional
        (num_layers * directions, B, H or proj_size); zeros when absent.  A cell's are (B, H) or (H,).
    mask : array, optional
        (B, T), Keras' semantics: where it is False the state stays and y repeats the output of the step before, in
        the order of processing (zeros before the first), or is zero with ``zero_output_for_mask``.
    lengths : array, optional
        (B,) real steps of each row: y is zero beyond them, the reverse direction starts at the last real step, and
        the final state is that of the last real step, the initial one for length 0.

    Where ``return_sequences`` is False y is the last output of each direction, (B, features): the final h, or what
    the mask made of it.  Only the last of stacked layers obeys that and ``merge``; the others concatenate in order
    of time.
    """
    if mask is not None and lengths is not None:
        raise ShapeError(f"{node.op} {node.name!r}: both mask and lengths were given; pass the one that applies")
    x = _real(x)
    cell, rows = node.attr("unbatched"), x.shape[:-1]
    single = x.ndim == (1 if cell else 2)
    if cell:
        x = x.reshape(-1, 1, x.shape[-1])
    elif single:
        x = x[None]
    elif not node.attr("batch_first"):
        x = x.swapaxes(0, 1)
    batch, seq_len = x.shape[:2]
    count, step_mask = np.full(batch, seq_len), None
    if lengths is not None:
        count = np.reshape(lengths, batch)
    if mask is not None:
        step_mask = np.reshape(mask, (batch, seq_len)).astype(bool)

    suffixes = weight_suffixes(node.attr("num_layers"), node.attr("direction"))
    states = _initial_states(node, suffixes, batch, h_0, c_0)
    directions = 2 if node.attr("direction") == "bidirectional" else 1
    finals: list[tuple[Array, ...]] = []
    for start in range(0, len(suffixes), directions):
        last = start + directions == len(suffixes)
        outputs = []
        for k in range(start, start + directions):
            reverse = node.attr("direction") == "reverse" or k > start
            output, final = _direction(node, suffixes[k], x, states[k], count, step_mask, reverse, last)
            outputs.append(output)
            finals.append(final)
        x = _merge(node.attr("merge") if last else "concat", outputs)

    y = x
    if y.ndim == 3 and not cell and not single and not node.attr("batch_first"):
        y = y.swapaxes(0, 1)
    stacked = [np.stack(arrays) for arrays in zip(*finals, strict=True)]
    if cell:
        y = y.reshape(*rows, y.shape[-1])
        stacked = [a.reshape(*rows, a.shape[-1]) for a in stacked]
    elif single:
        y, stacked = y[0], [a[:, 0] for a in stacked]
    return y, stacked[0], stacked[1] if len(stacked) > 1 else None


def _initial_states(
    node: Node, suffixes: list[str], batch: int, h_0: Array | None, c_0: Array | None
) -> list[tuple[Array, ...]]:
    """The (h,) or (h, c) of each layer and direction, zeros where none is given."""
    states = []
    for k, suffix in enumerate(suffixes):
        rows, h_size = node.weights["weight_hh" + suffix].shape
        parts = [(h_0, h_size), (c_0, rows // 4)] if node.op == "lstm" else [(h_0, h_size)]
        shapes = [(len(suffixes), batch, size) for _, size in parts]
        given = [np.zeros(shape) if a is None else a for (a, _), shape in zip(parts, shapes, strict=True)]
        states.append(tuple(_real(a).reshape(shape)[k] for a, shape in zip(given, shapes, strict=True)))
    return states


def _direction(
    node: Node,
    suffix: str,
    x: Array,
    state: tuple[Array, ...],
    lengths: Array,
    mask: Array | None,
    reverse: bool,
    last: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """One direction of one layer over (B, T, I); returns its output and its final state."""
    step = _CELLS[node.op]
    names = [name.rstrip("?") for name in _spec.OPS[node.op].weights]
    weights = {name: _real(node.weights[name + suffix]) for name in names if name + suffix in node.weights}
    options = {name: node.attr(name) for name in step.__kwdefaults__ or ()}

    # order[b, s] is the time that row b processes at step s.  It is its own inverse.
    steps = np.arange(x.shape[1])
    order = np.broadcast_to(steps, x.shape[:2])
    if reverse:
        order = np.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    live = steps < lengths[:, None]
    if mask is not None:
        live = np.take_along_axis(mask, order, axis=1)
    x = np.take_along_axis(x, order[..., None], axis=1)

    repeat = mask is not None and not node.attr("zero_output_for_mask")
    output = np.zeros_like(state[0])
    y = np.zeros((*x.shape[:2], output.shape[-1]), output.dtype)
    for s in steps:
        new = step(x[:, s], *state, **weights, **options)
        new = new if isinstance(new, tuple) else (new,)
        now = live[:, s, None]
        output = np.where(now, new[0], output if repeat else 0.0)
        state = tuple(np.where(now, a, old) for a, old in zip(new, state, strict=True))
        y[:, s] = output

    if last and not node.attr("return_sequences"):
        return (state[0] if mask is None else output), state
    if last and node.attr("reverse_output"):
        return y, state
    return np.take_along_axis(y, order[..., None], axis=1), state


def _merge(mode: str, outputs: list[Array]) -> Array:
    """Join the outputs of the directions of a layer."""
    if len(outputs) == 1:
        return outputs[0]
    forward, backward = outputs
    if mode == "concat":
        return np.concatenate([forward, backward], axis=-1)
    if mode == "mul":
        return forward * backward
    return (forward + backward) / (2 if mode == "ave" else 1)


# The other layers.


def dense(node: Node, x: Array) -> Array:
    """y = activation(x W^T + b) over the last axis."""
    y = _real(x) @ _real(node.weights["weight"]).T
    if "bias" in node.weights:
        y = y + _real(node.weights["bias"])
    return activate(node.attr("activation"), y)


def embedding(node: Node, ids: Array) -> tuple[Array, Array]:
    """Rows of the table, and the mask that is True where the id is not 0."""
    ids, rows = np.asarray(ids).astype(np.int64), len(node.weights["weight"])
    if ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise ShapeError(
            f"embedding {node.name!r}: ids from {ids.min()} to {ids.max()}, the table has the rows 0 to {rows - 1}; "
            "map other ids to one of them before the call"
        )
    return _real(node.weights["weight"])[ids], ids != 0


def masking(node: Node, x: Array) -> tuple[Array, Array]:
    """Mask the steps whose features all equal ``mask_value``, compared in float32 as the framework does."""
    mask = (np.asarray(x, np.float32) != np.float32(node.attr("mask_value"))).any(-1)
    return np.where(mask[..., None], _real(x), 0.0), mask


def layer_norm(node: Node, x: Array) -> Array:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over the trailing axes of each sample."""
    x, weight = _real(x), node.weights.get("weight")
    axes = tuple(range(-(node.attr("axes") if weight is None else weight.ndim), 0))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + node.attr("eps"))
    return _scale(y, node)


def batch_norm(node: Node, x: Array) -> Array:
    """y = (x - mean) / sqrt(var + eps) * weight + bias with the recorded mean and var of each feature."""
    x, mean, var = (_real(a) for a in (x, node.weights["mean"], node.weights["var"]))
    if node.attr("channels_first"):
        x = x.swapaxes(1, -1)
    y = _scale((x - mean) / np.sqrt(var + node.attr("eps")), node)
    return y.swapaxes(1, -1) if node.attr("channels_first") else y


def _scale(y: Array, node: Node) -> Array:
    weight, bias = node.weights.get("weight"), node.weights.get("bias")
    y = y if weight is None else y * _real(weight)
    return y if bias is None else y + _real(bias)


# The graph.


def _recurrent_op(node: Node, *inputs: Array | None, lengths: Array | None = None) -> tuple[Array | None, ...]:
    names = [name.rstrip("?") for name in _spec.OPS[node.op].inputs]
    given: dict[str, Any] = dict(zip(names, inputs, strict=False))
    if given.get("lengths") is None:
        given["lengths"] = lengths
    return recurrent(node, **given)


OPS: dict[str, Callable[..., tuple[Array | None, ...]]] = {
    "lstm": _recurrent_op,
    "gru": _recurrent_op,
    "rnn": _recurrent_op,
    "dense": lambda node, x: (dense(node, x),),
    "embedding": embedding,
    "masking": masking,
    "layer_norm": lambda node, x: (layer_norm(node, x),),
    "batch_norm": lambda node, x: (batch_norm(node, x),),
    "activation": lambda node, x: (activate(node.attr("activation"), x),),
    "stack": lambda node, *x: (np.stack([_real(a) for a in x if a is not None]),),
    "unstack": lambda node, x: tuple(x),
    "conv": lambda node, x: (activate(node.attr("activation"), operators.conv(node, _real(x))),),
}
"""How each layer of :data:`fastrnn.spec.OPS` runs: ``function(node, *inputs)`` returns all its outputs.  The other
kinds of nodes are :mod:`fastrnn.operators`, on arrays of float64."""


@in_default_mode
def run_node(node: Node, tensors: Mapping[str, Array], lengths: Array | None = None) -> dict[str, Array]:
    """Run one node on the tensors that it reads, optional ones where they are there; returns those that it writes."""
    inputs = [tensors.get(name) for name in node.inputs]
    whole = node.op == "activation" and np.asarray(inputs[0]).dtype.kind in "iu"
    if node.op in OPS and not whole:
        extra = {"lengths": lengths} if node.op in GATES and lengths is not None else {}
        outputs = OPS[node.op](node, *inputs, **extra)
    else:
        given = [a if a is None or a.dtype.kind != "f" else _real(a) for a in inputs]
        outputs = operators.evaluate(node, given, lambda graph, feeds: _run_body(graph, tensors, feeds))
        outputs = tuple(_real(a) if a.dtype.kind == "f" else a for a in outputs)
    return {name: array for name, array in zip(node.outputs, outputs, strict=False) if name and array is not None}


@in_default_mode
def run(spec: ModelSpec, feeds: Mapping[str, Array], lengths: Array | None = None) -> dict[str, Array]:
    """Run a whole graph; returns every tensor in it by name, the feeds included.

    Optional inputs of the first layers (states, masks) may be left out; ``lengths`` goes to every recurrent layer.

    >>> node = Node("dense", "double", ("x",), ("y",), weights={"weight": np.array([[2.0]])})
    >>> graph = ModelSpec([node], [_spec.Tensor("x", (None, 1))], [_spec.Tensor("y", (None, 1))])
    >>> run(graph, {"x": np.array([[3.0]])})["y"]
    array([[6.]])
    """
    tensors = {name: np.asarray(array) for name, array in feeds.items()}
    return _run_nodes(spec, tensors, lengths)


def _run_nodes(graph: Graph, tensors: dict[str, Array], lengths: Array | None = None) -> dict[str, Array]:
    tensors |= {name: np.asarray(array) for name, array in graph.constants.items()}
    for node in graph.nodes:
        tensors.update(run_node(node, tensors, lengths))
    return tensors


def _run_body(graph: Graph, around: Mapping[str, Array], feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs of the body of a control flow node, which sees the tensors around it."""
    tensors = _run_nodes(graph, {**around, **feeds})
    return [tensors[t.name] for t in graph.outputs]


def _clip(x: Array, bound: float | None) -> Array:
    return x if bound is None else np.clip(x, -bound, bound)
