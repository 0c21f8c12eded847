"""Keras' recurrent layers: LSTM, GRU, SimpleRNN, their CuDNN variants, RNN(cell) and Bidirectional.

Keras stores ``kernel`` (input_size, gates * units) and ``recurrent_kernel`` (units, gates * units), the gates in the
order of ``GATE_ORDER["keras"]``.  We want their transposes, in our order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import CELL_ACTIVATIONS, GATES, Node, activation, reorder_gates
from .files import short
from .keras_config import (
    Call,
    Config,
    Converted,
    Shape,
    Value,
    activation_of,
    class_and_config,
    flag,
    integer,
    node,
    section,
)
from .keras_emit import Emitter
from .keras_file import LayerWeights, Version, snake_case
from .keras_masks import check_mask
from .limits import MAX_LAYERS

CELLS = {
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "CuDNNLSTM": "lstm",
    "GRU": "gru",
    "GRUCell": "gru",
    "CuDNNGRU": "gru",
    "SimpleRNN": "rnn",
    "SimpleRNNCell": "rnn",
}
"""Class of a Keras layer or cell: our op."""

_STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


@dataclass(frozen=True)
class _Cell:
    """What one direction computes: op, units, its attributes, and its weights without a suffix."""

    op: str
    units: int
    attrs: dict[str, Any]
    weights: dict[str, np.ndarray]

    def named(self, suffix: str) -> dict[str, np.ndarray]:
        return {name + suffix: array for name, array in self.weights.items()}


def recurrent(call: Call) -> Converted:
    """LSTM, GRU, SimpleRNN or RNN(cell): one node; RNN over stacked cells: one node for each of them."""
    call.x.require_rank(3)
    cells = _cells(call.class_name, call.config, call.weights)
    reverse, x = flag(call.config, "go_backwards"), call.x
    kinds = [_STATES[CELLS.get(class_name, "rnn")] for class_name, *_ in cells]
    counts, backwards = [len(names) for names in kinds], _is_reversed(call)
    states = _states_of_cells(call, counts, backwards)
    nodes: list[Node] = []
    finals: list[list[Value]] = []
    for k, (class_name, config, weights) in enumerate(cells):
        last = k == len(cells) - 1
        cell = _cell(class_name, config, weights, x.features, call.version)
        attrs = _loop(call.config, last)
        attrs |= {"direction": "reverse" if reverse else "forward"}
        attrs |= {"reverse_output": reverse and last and attrs["return_sequences"]}
        part = replace(call, name=call.name if last else f"{call.name}/{k}", inputs=(x,), states=states[k])
        first = 1 + sum(counts[k + 1 :] if backwards else counts[:k])
        more, values = _emit(part, cell, attrs, cell.named("_l0"), cell.units, call.name, first)
        nodes += more
        finals.append(values[1:])
        x = Value(values[0].name, values[0].shape)
    finals = finals[::-1] if backwards else finals
    return Converted(nodes, [values[0], *(value for part in finals for value in part)])


def _is_reversed(call: Call) -> bool:
    """Whether the states of stacked cells stand in the order from the last cell to the first."""
    cell = call.config.get("cell")
    config = section(cell, "config", {}) if isinstance(cell, Mapping) else {}
    return isinstance(config.get("cells"), list) and flag(config, "reverse_state_order")


def _states_of_cells(call: Call, counts: list[int], backwards: bool) -> list[tuple[Value, ...]]:
    """The initial states of each cell."""
    if len(counts) == 1 or not call.states:
        return [call.states] * len(counts)
    if call.version.standalone:
        raise UnsupportedError(
            "initial states of stacked cells, the order of which differs between versions of Keras 2"
        )
    if len(call.states) != sum(counts):
        raise FormatError(f"it gets {len(call.states)} initial states, expected {sum(counts)}; check the graph")
    order = range(len(counts))[:: -1 if backwards else 1]
    parts: list[tuple[Value, ...]] = [()] * len(counts)
    start = 0
    for k in order:
        parts[k] = call.states[start : start + counts[k]]
        start += counts[k]
    return parts


_MERGES = {"sum": "add", "ave": "add", "mul": "mul"}


def bidirectional(call: Call) -> Converted:
    """Bidirectional(layer): one node of two directions, the output of the second one in order of time.

    Two layers that differ in more than their weights, or of stacked cells, run one after the other.
    """
    call.x.require_rank(3)
    mode = call.config.get("merge_mode", "concat")
    if mode not in ("concat", "sum", "mul", "ave", None):
        raise UnsupportedError(f"merge_mode {short(mode)}; known are concat, sum, mul, ave and none")
    layers = _layers(call)
    loops = [_loop(config, True) for _, config, _ in layers]
    # Keras forces this on both layers; before it was a part of TensorFlow it did not know it.
    for loop in loops:
        loop["zero_output_for_mask"] = loop["return_sequences"] and not call.version.standalone
    cells = [_cells(class_name, config, weights) for class_name, config, weights in layers]
    backwards = [flag(config, "go_backwards") for _, config, _ in layers]
    same = [flag(config, key) for key in ("return_state", "return_sequences") for _, config, _ in layers]
    if same[0] != same[1] or same[2] != same[3]:
        raise UnsupportedError("its two layers return different things; run them as two layers")
    if [len(part) for part in cells] == [1, 1] and backwards == [False, True]:
        forward, backward = (_cell(*part[0], call.x.features, call.version) for part in cells)
        first, second = ((c.op, c.units, c.attrs, set(c.weights)) for c in (forward, backward))
        if first == second:
            attrs = {**loops[0], "direction": "bidirectional", "merge": mode or "concat"}
            weights = forward.named("_l0") | backward.named("_l0_reverse")
            inner = replace(call, config=layers[0][1])
            size = (1 if mode in _MERGES else 2) * forward.units
            if mode:
                return Converted(*_emit(inner, forward, attrs, weights, size))
            inner = replace(inner, name=f"{call.name}/both")
            nodes, values = _emit(inner, forward, attrs, weights, size)
            return _parted(call, Converted(nodes, values), forward.units)
    return _one_after_the_other(call, layers, mode)


def _layers(call: Call) -> list[tuple[str, Config, LayerWeights]]:
    """Class, configuration and weights of the two layers of a Bidirectional."""
    class_name, config = class_and_config(call.config.get("layer"), "the wrapped layer")
    name = str(config.get("name", "")).removeprefix("forward_")
    forward = _direction(call, class_name, "forward_layer", f"forward_{name}", name)
    config_2: Config
    if call.config.get("backward_layer") is None:
        backwards = not flag(config, "go_backwards")
        class_2, config_2 = class_name, {**config, "go_backwards": backwards}
        names = [f"backward_{name}"]
    else:
        class_2, config_2 = class_and_config(call.config["backward_layer"], "the backward layer")
        names = [str(config_2.get("name", "")), f"backward_{name}"]
    backward = _direction(call, class_2, "backward_layer", *names)
    return [(class_name, config, forward), (class_2, config_2, backward)]


def _parted(call: Call, part: Converted, units: int) -> Converted:
    """The outputs of the two directions one by one."""
    emit = Emitter(call.name)
    both, *states = emit.include(part)
    shape = both.known_shape
    halves = emit.split(both, len(shape) - 1, [units, units])
    return emit.done(*(replace(half, mask=both.mask) for half in halves), *states)


def _one_after_the_other(call: Call, layers: list[tuple[str, Config, LayerWeights]], mode: str | None) -> Converted:
    """Two layers, the output of the second one turned, and what merges them."""
    emit, outputs, states = Emitter(call.name), [], []
    half = len(call.states) // 2
    given = (call.states[:half], call.states[half:])
    for k, (class_name, stated, weights) in enumerate(layers):
        zero = flag(stated, "return_sequences") and not call.version.standalone
        config = {**stated, "zero_output_for_mask": zero or flag(stated, "zero_output_for_mask")}
        name = f"{call.name}/{('forward', 'backward')[k]}"
        part = replace(call, name=name, class_name=class_name, config=config, weights=weights, states=given[k])
        output, *final = emit.include(recurrent(part))
        outputs.append(emit.slice(output, 1, None, None, -1) if k and flag(config, "return_sequences") else output)
        states += final
    mask = outputs[0].mask
    if mode == "concat":
        outputs = [emit.concat(outputs, len(outputs[0].known_shape) - 1)]
    elif mode:
        merged = emit.binary(_MERGES[mode], *outputs)
        outputs = [emit.function("affine", merged, 0.5) if mode == "ave" else merged]
    return emit.done(*(replace(output, mask=mask) for output in outputs), *states)


def _cells(class_name: str, config: Config, weights: LayerWeights) -> list[tuple[str, Config, LayerWeights]]:
    """Class, configuration and weights of the cells of a recurrent layer, the first to run first."""
    weights = weights.part("cell")
    if class_name in CELLS:
        return [(class_name, config, weights)]
    class_name, config = class_and_config(config.get("cell"), "the cell")
    if class_name != "StackedRNNCells":
        return [(class_name, config, weights)]
    stack = config.get("cells")
    if not isinstance(stack, list) or not 1 <= len(stack) <= MAX_LAYERS:
        raise FormatError(f"'cells' is {short(stack)}, expected 1 to {MAX_LAYERS} cells; the configuration is damaged")
    cells, ranks = [], Counter[str]()
    for serialized in stack:
        class_name, config = class_and_config(serialized, "a cell")
        snake = snake_case(class_name)
        path = f"cells/{snake}_{ranks[snake]}" if ranks[snake] else f"cells/{snake}"
        ranks[snake] += 1
        name = str(config.get("name") or "") if len(stack) > 1 else ""
        cells.append((class_name, config, weights.part(path, name)))
    return cells


def _direction(call: Call, class_name: str, path: str, *names: str) -> LayerWeights:
    """The weights of one of the two layers of a Bidirectional."""
    if class_name not in CELLS and class_name != "RNN":
        raise UnsupportedError(f"it wraps a layer of class {short(class_name)}, only recurrent layers are supported")
    parts = [call.weights.part(path, name) for name in names]
    return next((part for part in parts if part.found), parts[0])


def _loop(config: Config, last: bool) -> dict[str, Any]:
    """The attributes of the loop over time.

    ``stateful`` needs nothing: a call starts from zeros, as Keras' first one does; a stream keeps its state.
    """
    if config.get("time_major"):
        raise UnsupportedError("time_major is set; transpose the input in Keras")
    if config.get("num_constants"):
        raise UnsupportedError("it takes constants; concatenate them with the input in Keras")
    return {
        "return_sequences": not last or flag(config, "return_sequences"),
        "zero_output_for_mask": flag(config, "zero_output_for_mask"),
    }


def _cell(class_name: str, config: Config, weights: LayerWeights, features: int | None, version: Version) -> _Cell:
    """Read one cell.  A configuration without units or use_bias, which a caller wrote, is completed by the weights."""
    if class_name not in CELLS:
        raise UnsupportedError(f"its cell is of class {short(class_name)}, supported are {', '.join(CELLS)}")
    op, cudnn_class = CELLS[class_name], class_name.startswith("CuDNN")
    if "units" not in config and (stored := weights.shape(1, "recurrent_kernel")):
        config = {**config, "units": stored[0]}
    units = integer(config, "units")
    rows = len(GATES[op]) * units
    has_bias = cudnn_class or flag(config, "use_bias", weights.shape(2, "bias") is not None)
    attrs = {
        "activation" if op == "rnn" else "cell_activation": _cell_activation(config, "activation", "tanh", version)
    }
    if op != "rnn":
        attrs["gate_activation"] = _cell_activation(config, "recurrent_activation", "sigmoid", version)
    if op == "lstm":
        attrs["hidden_activation"] = attrs["cell_activation"]
    shapes: list[Shape] = [(rows,)]
    if op == "lstm":
        shapes = [(2 * rows,)] if cudnn_class else [(rows,), (2 * rows,)]
    elif op == "gru":
        attrs["reset_after"] = cudnn_class or flag(config, "reset_after")
        if attrs["reset_after"]:
            shapes = [(2 * rows,)] if cudnn_class else [(2, rows), (2 * rows,)]
    kernel = weights.take(0, "kernel", (features, rows))
    recurrent_kernel = weights.take(1, "recurrent_kernel", (units, rows))
    bias = weights.take(2, "bias", *shapes) if has_bias else None
    is_cudnn = bias is not None and bias.shape == (2 * rows,)
    arrays = {"weight_ih": _ours(kernel, op, is_cudnn), "weight_hh": _ours(recurrent_kernel, op, False)}
    if is_cudnn:  # the recurrent blocks of CuDNN are transposed already
        arrays["weight_hh"] = reorder_gates(np.concatenate(np.hsplit(recurrent_kernel, len(GATES[op]))), op, "keras")
    if bias is not None:
        names = ("bias_ih", "bias_hh")
        arrays |= {name: reorder_gates(row, op, "keras") for name, row in zip(names, bias.reshape(-1, rows))}
    return _Cell(op, units, attrs, arrays)


def _ours(kernel: np.ndarray, op: str, is_cudnn: bool) -> np.ndarray:
    """Turn a kernel (input_size, gates * units) into (gates * units, input_size).

    A CuDNN layer keeps each gate's block as (input_size, units), yet its memory is that of our (units, input_size).
    """
    if is_cudnn:
        blocks = np.hsplit(kernel, len(GATES[op]))
        kernel = np.concatenate([block.reshape(block.shape[::-1]) for block in blocks])
    else:
        kernel = kernel.T
    return np.ascontiguousarray(reorder_gates(kernel, op, "keras"))


def _cell_activation(config: Config, key: str, default: str, version: Version) -> Any:
    value = activation_of(config.get(key, default), version)
    name = activation(value)[0]
    if name not in CELL_ACTIVATIONS:
        raise UnsupportedError(f"{key} {name!r} inside a cell, supported there are {', '.join(CELL_ACTIVATIONS)}")
    return value


def _emit(
    call: Call,
    cell: _Cell,
    attrs: dict[str, Any],
    weights: dict[str, np.ndarray],
    features: int,
    outer: str = "",
    first: int = 1,
) -> tuple[list[Node], list[Value]]:
    """The node of a cell, with the nodes that join the initial states of its directions and part the final ones.

    These are outputs of the layer from number ``first`` on.
    """
    kinds, name, x = _STATES[cell.op], call.name, call.x
    directions = 2 if attrs["direction"] == "bidirectional" else 1
    nodes, inputs = [], [x.name]
    if call.states and len(call.states) != len(kinds) * directions:
        raise FormatError(
            f"it gets {len(call.states)} initial states, expected {len(kinds) * directions}; check the graph"
        )
    for k, kind in enumerate(kinds):
        states = call.states[k :: len(kinds)]
        for state in states:
            state.require_rank(2)
            if state.features not in (None, cell.units):
                raise FormatError(
                    f"an initial state has shape {state.shape}, expected (None, {cell.units}); check the graph"
                )
        inputs.append(f"{name}/{kind}_0" if states else "")
        if states:
            nodes.append(Node("stack", inputs[-1], tuple(state.name for state in states), (inputs[-1],)))
    check_mask(call.mask, 2)
    mask = call.kept_mask if attrs["return_sequences"] else None
    shape: Shape = (None, x.shape[1] if x.shape else None, features) if attrs["return_sequences"] else (None, features)
    values = [Value(name, shape, mask)]
    finals: tuple[str, ...] = ()
    if flag(call.config, "return_state"):
        finals = tuple(f"{name}/{kind}_n" for kind in kinds)
        outer = outer or name
        values += [Value(f"{outer}:{first + k}", (None, cell.units)) for k in range(len(kinds) * directions)]
    inputs.append(call.mask.name if call.mask else "")
    nodes.append(node(cell.op, name, tuple(inputs), (name, *finals), attrs | cell.attrs, weights))
    for k, final in enumerate(finals):
        nodes.append(Node("unstack", final, (final,), tuple(value.name for value in values[1 + k :: len(kinds)])))
    return nodes, values
