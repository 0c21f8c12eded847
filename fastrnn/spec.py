"""The neutral description of a model: what a loader returns and the engine builds from.

The convention is PyTorch's: weights are ``(gates * hidden_size, input_size)``, gates stand in the order
i f g o (LSTM) or r z n (GRU), arrays are batch first.  Loaders permute into it with ``GATE_ORDER``.

A ``ModelSpec`` is a list of nodes in the order in which they run.  A node reads named tensors and writes named
tensors, like an ONNX node; its weights and attributes belong to it.  ``OPS`` says what each kind of node takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import FormatError

GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": "n"}
"""Gates of each cell, in our order (PyTorch's)."""

GATE_ORDER = {
    "torch": {"lstm": "ifgo", "gru": "rzn", "rnn": "n"},
    "keras": {"lstm": "ifgo", "gru": "zrn", "rnn": "n"},  # Keras writes c for g and h for n
    "onnx": {"lstm": "iofg", "gru": "zrn", "rnn": "n"},  # ONNX writes c for g and h for n
}
"""The order in which each format stores the gate blocks of its weights."""


def reorder_gates(array: np.ndarray, cell: str, source: str, axis: int = 0) -> np.ndarray:
    """Permute the gate blocks along ``axis`` from the order of format ``source`` into ours."""
    stored, ours = GATE_ORDER[source][cell], GATES[cell]
    if stored == ours:
        return array
    blocks = np.split(array, len(stored), axis)
    return np.concatenate([blocks[stored.index(gate)] for gate in ours], axis)


@dataclass(frozen=True)
class Tensor:
    """A named input or output; ``None`` in the shape is a free dimension (batch, time)."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Op:
    """What a kind of node takes: its inputs and outputs in order, its weights and its attributes with defaults.

    A name that ends in ``?`` may be absent (an empty tensor name, or left off at the end).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


_RECURRENT_ATTRS = {
    "num_layers": 1,
    "direction": "forward",  # "forward", "reverse", "bidirectional"
    "merge": "concat",  # of two directions: "concat", "sum", "mul", "ave"
    "batch_first": True,
    "return_sequences": True,  # False: y is the last output of each direction, (batch, features)
    "reverse_output": False,  # Keras' go_backwards: y in the order of processing instead of the order of time
    "zero_output_for_mask": False,  # masked steps give zeros instead of the previous output
    "unbatched": False,  # a single cell step or layer made for 2-D input (nn.LSTMCell): x is (batch, features)
    "clip": None,  # bound on every pre-activation
}

OPS: dict[str, Op] = {
    # Activations are a name or (name, alpha, beta); see ACTIVATIONS.
    # Recurrent weights carry PyTorch's suffix "_l{layer}" or "_l{layer}_reverse".
    "lstm": Op(
        ("x", "h_0?", "c_0?", "mask?"),
        ("y", "h_n?", "c_n?"),
        ("weight_ih", "weight_hh", "bias_ih?", "bias_hh?", "weight_hr?", "peephole?"),
        {
            **_RECURRENT_ATTRS,
            "gate_activation": "sigmoid",  # of i, f, o
            "cell_activation": "tanh",  # of g
            "hidden_activation": "tanh",  # of c in h = o * tanh(c)
            "coupled_input_forget": False,  # i = 1 - f
            "cell_clip": None,  # bound on c
            "proj_clip": None,  # bound on h after the projection
        },
    ),
    "gru": Op(
        ("x", "h_0?", "mask?"),
        ("y", "h_n?"),
        ("weight_ih", "weight_hh", "bias_ih?", "bias_hh?"),
        {
            **_RECURRENT_ATTRS,
            "gate_activation": "sigmoid",  # of r, z
            "cell_activation": "tanh",  # of n
            "reset_after": True,
            "update_gate": "keep",  # z = 1 keeps the old state; "take": z = 1 takes the new one
        },
    ),
    "rnn": Op(
        ("x", "h_0?", "mask?"),
        ("y", "h_n?"),
        ("weight_ih", "weight_hh", "bias_ih?", "bias_hh?"),
        {**_RECURRENT_ATTRS, "activation": "tanh"},
    ),
    "dense": Op(("x",), ("y",), ("weight", "bias?"), {"activation": "linear"}),  # weight is (out, in)
    # mask_zero: the second output is a mask, True where the id is not 0.
    "embedding": Op(("ids",), ("y", "mask?"), ("weight",), {"mask_zero": False}),
    # A step is masked where all its features equal mask_value; masked steps become zeros.
    "masking": Op(("x",), ("y", "mask"), (), {"mask_value": 0.0}),
    # Over the trailing axes that weight has (or "axes" of them, where there is no weight).
    "layer_norm": Op(("x",), ("y",), ("weight?", "bias?"), {"eps": 1e-5, "axes": 1}),
    # y = (x - mean) / sqrt(var + eps) * weight + bias over the features axis (the last, or 1 if channels_first).
    "batch_norm": Op(("x",), ("y",), ("mean", "var", "weight?", "bias?"), {"eps": 1e-5, "channels_first": False}),
    "activation": Op(("x",), ("y",), (), {"activation": "linear"}),
    # The states of directions, (batch, features) each in Keras, as one (directions, batch, features); and back.
    "stack": Op(("x_0", "x_1?"), ("y",), ()),
    "unstack": Op(("x",), ("y_0", "y_1?"), ()),
}

ACTIVATIONS: dict[str, tuple[float, float]] = {
    # name: default (alpha, beta); the formula is in fastrnn.reference.ACTIVATIONS
    "linear": (0.0, 0.0),
    "sigmoid": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "relu": (0.0, 0.0),
    "hard_sigmoid": (0.2, 0.5),  # max(0, min(1, alpha * x + beta)); Keras 3 and PyTorch: alpha = 1/6
    "affine": (1.0, 0.0),  # alpha * x + beta
    "leaky_relu": (0.01, 0.0),
    "thresholded_relu": (1.0, 0.0),  # x if x > alpha else 0
    "scaled_tanh": (1.0, 1.0),  # alpha * tanh(beta * x)
    "elu": (1.0, 0.0),
    "softsign": (0.0, 0.0),  # x / (1 + |x|)
    "softplus": (0.0, 0.0),  # log(1 + exp(x))
    "exp": (0.0, 0.0),
    "selu": (1.6732632423543772, 1.0507009873554805),  # beta * elu(x, alpha)
    "silu": (0.0, 0.0),  # x * sigmoid(x)
    "gelu": (0.0, 0.0),  # exact, with erf
    "gelu_tanh": (0.0, 0.0),
    "mish": (0.0, 0.0),  # x * tanh(softplus(x))
    "relu6": (0.0, 0.0),
    "hard_tanh": (-1.0, 1.0),  # clip to alpha..beta
    "hard_swish": (0.0, 0.0),  # x * max(0, min(1, x / 6 + 1/2))
    "log_sigmoid": (0.0, 0.0),
    "softmax": (-1.0, 0.0),  # over axis alpha (always the last); rows, so only in dense and activation nodes
    "log_softmax": (-1.0, 0.0),
}
ROW_ACTIVATIONS = ("softmax", "log_softmax")
CELL_ACTIVATIONS = (  # those that a recurrent cell may use
    "sigmoid", "tanh", "relu", "hard_sigmoid", "linear", "affine", "leaky_relu", "thresholded_relu",
    "scaled_tanh", "elu", "softsign", "softplus",
)  # fmt: skip


def activation(value: str | tuple | list) -> tuple[str, float, float]:
    """Return ``(name, alpha, beta)`` with the defaults of ``ACTIVATIONS`` filled in.

    >>> activation("hard_sigmoid")
    ('hard_sigmoid', 0.2, 0.5)
    >>> activation(("leaky_relu", 0.3))
    ('leaky_relu', 0.3, 0.0)
    """
    name, *given = (value,) if isinstance(value, str) else value
    if name not in ACTIVATIONS:
        raise FormatError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    numbers = [default if k >= len(given) or given[k] is None else float(given[k])
               for k, default in enumerate(ACTIVATIONS[name])]  # fmt: skip
    return (name, *numbers)


@dataclass
class Node:
    """One layer: ``op`` is a key of ``OPS``, ``name`` is unique and is what errors and reports call it."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def attr(self, key: str) -> Any:
        """The attribute, or its default from ``OPS``."""
        return self.attrs.get(key, OPS[self.op].attrs[key])


@dataclass
class ModelSpec:
    """A graph of nodes in running order.

    ``nested_state`` asks for PyTorch's shape of result where the last node is recurrent: ``(y, state)``.
    """

    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    nested_state: bool = False
    source: str = ""

    def validate(self) -> None:
        """Check names, wiring, attributes and weights; one ``FormatError`` lists every problem."""
        problems = list(self._problems())
        if problems:
            raise FormatError(
                f"{len(problems)} problem(s) in {self.source or 'the model'}:\n  " + "\n  ".join(problems)
            )

    def _problems(self) -> Iterable[str]:
        known = {t.name for t in self.inputs}
        names: set[str] = set()
        for node in self.nodes:
            where = f"{node.op} {node.name!r}"
            if node.op not in OPS:
                yield f"{where}: unknown kind of layer; known: {', '.join(OPS)}"
                continue
            if node.name in names:
                yield f"{where}: the name is used twice"
            names.add(node.name)
            op = OPS[node.op]
            yield from (
                f"{where}: reads tensor {t!r}, which nothing before it writes"
                for t in node.inputs
                if t and t not in known
            )
            yield from (f"{where}: writes tensor {t!r}, which exists already" for t in node.outputs if t in known)
            yield from (f"{where}: unknown attribute {key!r}" for key in node.attrs if key not in op.attrs)
            yield from _count_problems(where, "inputs", op.inputs, node.inputs)
            yield from _count_problems(where, "outputs", op.outputs, node.outputs)
            yield from _weight_problems(where, op, node)
            known |= {t for t in node.outputs if t}
        yield from (f"output {t.name!r} is written by no layer" for t in self.outputs if t.name not in known)


def _count_problems(where: str, what: str, declared: tuple[str, ...], given: tuple[str, ...]) -> Iterable[str]:
    if len(given) > len(declared):
        yield f"{where}: {len(given)} {what}, at most {len(declared)} ({', '.join(declared)}) are known"
    for k, name in enumerate(declared):
        if not name.endswith("?") and (k >= len(given) or not given[k]):
            yield f"{where}: {what[:-1]} {name!r} is missing"


def weight_suffixes(num_layers: int, direction: str) -> list[str]:
    """Suffixes of recurrent weights in the order in which they are stacked.

    >>> weight_suffixes(2, "bidirectional")
    ['_l0', '_l0_reverse', '_l1', '_l1_reverse']
    """
    ends = ["", "_reverse"] if direction == "bidirectional" else [""]
    return [f"_l{layer}{end}" for layer in range(num_layers) for end in ends]


def _weight_problems(where: str, op: Op, node: Node) -> Iterable[str]:
    suffixes = [""]
    if node.op in GATES:
        suffixes = weight_suffixes(node.attr("num_layers"), node.attr("direction"))
    required = {name + s for name in op.weights if not name.endswith("?") for s in suffixes}
    optional = {name[:-1] + s for name in op.weights if name.endswith("?") for s in suffixes}
    yield from (f"{where}: weight {name!r} is missing" for name in sorted(required - set(node.weights)))
    yield from (f"{where}: unknown weight {name!r}" for name in sorted(set(node.weights) - required - optional))
