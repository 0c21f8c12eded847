"""The recurrent layers: LSTM, GRU and simple RNN, and their single cells.

Each class says what its network computes and which weights and options it takes; how it is called is in
:mod:`fastrnn.recurrent`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from .arguments import checked, near
from .errors import ArgumentError, ShapeError, UnsupportedError
from .layers import make_node
from .recurrent import Cell, Recurrent
from .spec import GATES, OPS, Node, activation, weight_suffixes


def _parts(name: str, value: Any) -> list[Any]:
    """The arrays of one parameter: a sequence of matrices (vectors, for biases and peepholes) is one for each layer."""
    axes = 2 if name.startswith("weight") else 1
    several = isinstance(value, (list, tuple)) and len(value) > 0 and np.ndim(value[0]) == axes
    return list(value) if several else [value]


def _named(values: dict[str, Any], suffixes: list[str]) -> dict[str, Any]:
    """Spread parameters over suffixed names."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        parts = _parts(name, value)
        if len(parts) != len(suffixes):
            raise ShapeError(
                f"{name} must be {len(suffixes)} arrays, one for each of {', '.join(suffixes)}; got {len(parts)}"
            )
        named |= {name + suffix: part for suffix, part in zip(suffixes, parts)}
    return named


_OF_A_SEQUENCE = (
    "num_layers", "direction", "bidirectional", "reverse", "merge", "batch_first", "return_sequences", "reverse_output",
    "zero_output_for_mask",
)  # fmt: skip
"""Options that say nothing of a single step: a cell has none of them."""


def _recurrent_node(op: str, name: str, weights: dict[str, Any], options: dict[str, Any], cell: bool) -> Node:
    known = [*OPS[op].attrs, "bidirectional", "reverse"]
    known = [key for key in known if key != "unbatched" and not (cell and key in _OF_A_SEQUENCE)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        what = f"a single {op} cell" if cell else op
        raise ArgumentError(
            f"unknown option(s) of {what}: {', '.join(unknown)}; known: {', '.join(known)}{near(unknown[0], known)}"
        )
    direction = _direction(options)
    directions = 2 if direction == "bidirectional" else 1
    count = max(1, len(_parts("weight_ih", weights["weight_ih"])) // directions)
    attrs = {key: value for key, value in options.items() if key in OPS[op].attrs}
    attrs |= {"direction": direction, "num_layers": attrs.get("num_layers", count), "unbatched": cell}
    problems = list(_idle_options(attrs, weights))
    if attrs["num_layers"] != count:
        problems.append(f"num_layers is {attrs['num_layers']!r}, the weights are those of {count}")
    if problems:
        raise ShapeError(f"{op} {name!r}: " + "; ".join(problems))
    node = make_node(op, name, _named(weights, weight_suffixes(count, direction)), attrs)
    return replace(node, inputs=tuple(t for t in node.inputs if t not in ("mask", "lengths"))) if cell else node


def _direction(options: dict[str, Any]) -> str:
    """``direction=``, or what ``bidirectional=`` and ``reverse=`` say; who gives more than one must not contradict."""
    asked = [key for key in ("bidirectional", "reverse") if options.get(key)]
    if len(asked) == 2:
        raise ShapeError("bidirectional and reverse exclude each other")
    direction = options.get("direction", asked[0] if asked else "forward")
    for key in ("bidirectional", "reverse"):
        if key in options and bool(options[key]) != (direction == key):
            raise ShapeError(f"direction={direction!r} and {key}={options[key]!r} contradict each other; give one")
    return direction


def _idle_options(attrs: dict[str, Any], weights: dict[str, Any]) -> Iterable[str]:
    """Options that would have no effect beside the others."""
    if attrs.get("merge") in ("sum", "mul", "ave") and attrs["direction"] != "bidirectional":
        yield "merge joins two directions; a layer of one has nothing to join"
    if attrs.get("reverse_output") and attrs["direction"] == "forward":
        yield "reverse_output is for direction='reverse'; a forward layer computes in the order of time"
    if attrs.get("proj_clip") is not None and weights.get("weight_hr") is None:
        yield "proj_clip bounds the projected h; without weight_hr there is none"


class LSTM(Recurrent):
    """Long short-term memory.

    Computes, for each time step,

        i, f, g, o = split(weight_ih @ x + bias_ih + weight_hh @ h + bias_hh)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = weight_hr @ (sigmoid(o) * tanh(c))          without weight_hr: h = sigmoid(o) * tanh(c)

    Weights are copied and packed once; the layer is then immutable and may be called from several threads at a time.

    Parameters
    ----------
    weight_ih : (4 * hidden_size, input_size) float32
        Gates in the order i, f, g, o.  With several layers or directions each parameter is a sequence of arrays:
        layer 0, layer 0 reverse, layer 1, ...
    weight_hh : (4 * hidden_size, hidden_size or proj_size) float32
    bias_ih, bias_hh : (4 * hidden_size,) float32, optional
    weight_hr : (proj_size, hidden_size) float32, optional
        Projection (Sak et al. 2014).
    peephole : (3 * hidden_size,) float32, optional
        Weights from c to i, f and o (Gers and Schmidhuber 2000).
    direction : "forward", "reverse" or "bidirectional"
        From the first step to the last, the other way, or both; ``bidirectional=True`` and ``reverse=True`` say the
        same.
    merge : "concat", "sum", "mul" or "ave"
        How the last layer joins two directions.
    batch_first : bool
        x and y are (batch, seq_len, features); False: (seq_len, batch, features).
    return_sequences : bool
        False: y is the last output of each direction alone, (batch, features), as :meth:`last` makes it.
    reverse_output : bool
        The outputs of ``direction="reverse"`` stay in the order in which they are computed (Keras' go_backwards).
    zero_output_for_mask : bool
        Masked steps give zeros rather than the output before them.
    num_layers : int, optional
        What the weights say; another number is an error.
    gate_activation, cell_activation, hidden_activation : str or (str, alpha, beta)
        Of i f o, of g, and of c in h.
    coupled_input_forget : bool
        i = 1 - sigmoid(f); the rows of i are not used.
    clip, cell_clip, proj_clip : float, optional
        Bounds on the pre-activations, on c, and on the projected h.
    backend : "packed" or "blas", optional

    Raises
    ------
    ShapeError
        Shapes do not fit together; all of them are named.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> layer = LSTM(rng.standard_normal((32, 4)), rng.standard_normal((32, 8)))
    >>> y, (h, c) = layer(np.zeros((2, 5, 4)))
    >>> y.shape, h.shape, c.shape
    ((2, 5, 8), (1, 2, 8), (1, 2, 8))
    """

    op = "lstm"
    gates = len(GATES["lstm"])
    has_c = True

    @checked()
    def __init__(
        self,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any = None,
        bias_hh: Any = None,
        *,
        weight_hr: Any = None,
        peephole: Any = None,
        name: str = "lstm",
        backend: str | None = None,
        **options: Any,
    ):
        weights = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
        weights |= {"weight_hr": weight_hr, "peephole": peephole}
        super().__init__(_recurrent_node("lstm", name, weights, options, self.single_step), backend)

    def _activations(self) -> tuple[Any, Any, Any]:
        return self.node.attr("gate_activation"), self.node.attr("cell_activation"), self.node.attr("hidden_activation")

    def _options(self) -> dict[str, Any]:
        return {key: self.node.attr(key) for key in ("cell_clip", "proj_clip", "coupled_input_forget")}


class _Plain(Recurrent):
    """What GRU and RNN are made from: no projection, no peepholes."""

    @checked()
    def __init__(
        self,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any = None,
        bias_hh: Any = None,
        *,
        name: str | None = None,
        backend: str | None = None,
        **options: Any,
    ):
        weights = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
        super().__init__(_recurrent_node(self.op, name or self.op, weights, options, self.single_step), backend)


class GRU(_Plain):
    """Gated recurrent unit (Cho et al. 2014).

    Computes, for each time step,

        r, z = sigmoid(split(weight_ih @ x + bias_ih + weight_hh @ h + bias_hh))
        n = tanh(W_in @ x + b_in + r * (W_hn @ h + b_hn))       reset_after (PyTorch, CuDNN, Keras' default)
        n = tanh(W_in @ x + b_in + W_hn @ (r * h) + b_hn)       else
        h = n + z * (h - n)

    Parameters
    ----------
    weight_ih : (3 * hidden_size, input_size) float32
        Gates in the order r, z, n; see :class:`LSTM` for several layers and the options shared with it.
    weight_hh : (3 * hidden_size, hidden_size) float32
    bias_ih, bias_hh : (3 * hidden_size,) float32, optional
    reset_after : bool
        Where the reset gate acts; the two are different networks.
    update_gate : "keep" or "take"
        z = 1 keeps the old state, or takes the new one (the convention of some papers).
    """

    op = "gru"
    gates = len(GATES["gru"])

    def _activations(self) -> tuple[Any, Any, Any]:
        return self.node.attr("gate_activation"), self.node.attr("cell_activation"), "linear"

    def _options(self) -> dict[str, Any]:
        return {"reset_before": not self.node.attr("reset_after")}

    def _weights(self, suffix: str) -> list[np.ndarray | None]:
        """With "take", 1 - z is the gate that keeps: 1 - sigmoid(x) = sigmoid(-x), so z's rows are negated."""
        arrays = super()._weights(suffix)
        if self.node.attr("update_gate") == "keep":
            return arrays
        name, _, beta = activation(self.node.attr("gate_activation"))
        if name != "sigmoid" and (name, beta) != ("hard_sigmoid", 0.5):
            raise UnsupportedError(
                f'{self.name!r}: update_gate="take" needs a gate activation with f(-x) = 1 - f(x) '
                f"(sigmoid, or hard_sigmoid with beta 0.5), got {name!r}"
            )
        z = slice(self.hidden_size, 2 * self.hidden_size)
        negated = [None if array is None else array.copy() for array in arrays]
        for array in negated:
            if array is not None:
                array[z] *= -1
        return negated


class RNN(_Plain):
    """Simple recurrent network (Elman 1990): ``h = tanh(weight_ih @ x + bias_ih + weight_hh @ h + bias_hh)``.

    Parameters
    ----------
    weight_ih : (hidden_size, input_size) float32
        See :class:`LSTM` for several layers and the options shared with it.
    weight_hh : (hidden_size, hidden_size) float32
    bias_ih, bias_hh : (hidden_size,) float32, optional
    activation : str or (str, alpha, beta)
    """

    op = "rnn"
    gates = len(GATES["rnn"])

    def _activations(self) -> tuple[Any, Any, Any]:
        return "linear", self.node.attr("activation"), "linear"


class LSTMCell(Cell, LSTM):
    """One step of an LSTM: ``h, c = cell(x, (h, c))``."""


class GRUCell(Cell, GRU):
    """One step of a GRU: ``h = cell(x, h)``."""


class RNNCell(Cell, RNN):
    """One step of a simple RNN: ``h = cell(x, h)``."""
