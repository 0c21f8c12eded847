"""The neutral description of a model: what a loader returns and the engine builds from.

The convention is PyTorch's: weights are ``(gates * hidden_size, input_size)``, gates stand in the order
i f g o (LSTM) or r z n (GRU), arrays are batch first.  Loaders permute into it with ``GATE_ORDER``.

A ``ModelSpec`` is a list of nodes in the order in which they run.  A node reads named tensors and writes named
tensors, like an ONNX node; its weights and attributes belong to it.  ``OPS`` says what each kind of node takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from . import attributes
from .attributes import AXES, AXIS, LARGEST, MAX_SPATIAL, MOST_AXES, Kind, choice, optional, whole, wholes
from .errors import FormatError, ShapeError
from .lazy_array import dtype_of
from .weight_shapes import GATES, shape_problems, weight_suffixes

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

    A name that ends in ``?`` may be absent (an empty tensor name, or left off at the end); a last one that ends in
    ``*`` stands for any number, each of which may be absent with ``?*``.  ``graphs`` are the bodies of control flow.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    graphs: tuple[str, ...] = ()


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

_WINDOW_ATTRS = {"strides": None, "pads": None, "dilations": None}  # None: ones, zeros, ones

OPS: dict[str, Op] = {
    # Activations are a name or (name, alpha, beta); see ACTIVATIONS.
    # Recurrent weights carry PyTorch's suffix "_l{layer}" or "_l{layer}_reverse".
    "lstm": Op(
        ("x", "h_0?", "c_0?", "mask?", "lengths?"),
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
        ("x", "h_0?", "mask?", "lengths?"),
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
        ("x", "h_0?", "mask?", "lengths?"),
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
    # Convolutions and pools are channels first, (batch, channels, *spatial), with one number a spatial axis; "pads"
    # has those of all beginnings, then those of all ends.  weight is (out, in / groups, *kernel).
    "conv": Op(("x",), ("y",), ("weight", "bias?"), {**_WINDOW_ATTRS, "groups": 1, "activation": "linear"}),
    # weight is (in, out / groups, *kernel)
    "conv_transpose": Op(("x",), ("y",), ("weight", "bias?"), {**_WINDOW_ATTRS, "groups": 1, "output_padding": None}),
    # "mean" divides by the elements inside x, or by the size of the kernel with count_include_pad.
    "pool": Op(
        ("x",),
        ("y",),
        (),
        {**_WINDOW_ATTRS, "kernel": (), "function": "max", "ceil_mode": False, "count_include_pad": False},
    ),
    # ---- Operators on arrays, as NumPy's; functions in fastrnn.operators ----
    "identity": Op(("x",), ("y",)),
    "unary": Op(("x",), ("y",), (), {"function": ""}),  # a key of UNARY
    "binary": Op(("a", "b"), ("y",), (), {"function": ""}),  # a key of BINARY; a and b broadcast
    "where": Op(("condition", "a", "b"), ("y",)),
    "cast": Op(("x",), ("y",), (), {"dtype": "float32"}),
    "matmul": Op(("a", "b"), ("y",)),
    "reduce": Op(("x",), ("y",), (), {"function": "sum", "axes": None, "keepdims": True}),  # REDUCTIONS; None: all axes
    "argmax": Op(("x",), ("y",), (), {"axis": 0, "keepdims": True, "largest": True, "last": False}),
    "cumsum": Op(("x",), ("y",), (), {"axis": 0, "exclusive": False, "reverse": False}),
    "softmax": Op(("x",), ("y",), (), {"axis": -1, "logarithm": False}),
    "shape": Op(("x",), ("y",), (), {"start": 0, "end": None}),
    "size": Op(("x",), ("y",)),
    "reshape": Op(("x", "shape"), ("y",), (), {"zero_copies": True}),  # a 0 in shape copies the size of x
    "flatten": Op(("x",), ("y",), (), {"axis": 1}),
    "squeeze": Op(("x",), ("y",), (), {"axes": None}),  # None: all axes of size 1
    "unsqueeze": Op(("x",), ("y",), (), {"axes": ()}),
    "transpose": Op(("x",), ("y",), (), {"perm": None}),  # None: reversed
    "concat": Op(("x", "x*"), ("y",), (), {"axis": 0}),
    "split": Op(("x",), ("y", "y*"), (), {"axis": 0, "sizes": None}),  # None: equal parts, the last one may be smaller
    "slice": Op(("x", "starts", "ends", "axes?", "steps?"), ("y",)),
    "gather": Op(("x", "indices"), ("y",), (), {"axis": 0}),
    "gather_elements": Op(("x", "indices"), ("y",), (), {"axis": 0}),  # x and indices have one shape but along axis
    "pad": Op(("x", "pads", "value?", "axes?"), ("y",), (), {"mode": "constant"}),  # constant reflect edge wrap
    "expand": Op(("x", "shape"), ("y",)),
    "tile": Op(("x", "repeats"), ("y",)),
    "fill": Op(("shape",), ("y",), (), {"value": 0.0, "dtype": "float32"}),
    "range": Op(("start", "limit", "delta"), ("y",)),
    # ---- Control flow, as ONNX's; a body also sees the tensors around it, and no tensor's name is used twice ----
    "if": Op(("condition",), ("y*",), (), {}, ("then", "else")),
    # body: (iteration, condition, *carried) -> (condition, *carried, *scanned); scanned ones are stacked along axis 0
    "loop": Op(("trip_count?", "condition?", "x*"), ("y*",), (), {}, ("body",)),
    # body: (*carried, *scanned) -> (*carried, *scanned); axes and directions (1: backwards) of those scanned
    "scan": Op(
        ("x*",),
        ("y*",),
        (),
        {"num_scanned": 1, "axes": None, "directions": None, "output_axes": None, "output_directions": None},
        ("body",),
    ),
    # An operator of ONNX's standard set without a kernel here, as its serialized NodeProto in base 64: slow.
    "operator": Op(("x?*",), ("y*",), (), {"kind": "", "version": 0, "proto": ""}),
}

UNARY = (
    "not", "bitwise_not", "isnan", "isinf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "expm1", "log1p",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "pow", "min", "max", "mod", "fmod", "prelu", "equal", "not_equal", "less", "less_equal",
    "greater", "greater_equal", "and", "or", "xor",
)  # fmt: skip
"""``prelu`` is a where a >= 0 else a * b; ``div`` of integers rounds toward zero, ``mod`` has the sign of
b, ``fmod`` that of a."""
REDUCTIONS = (
    "sum", "mean", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp", "any", "all",
)  # fmt: skip

DTYPES = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
"""Of inputs, outputs and constants."""

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
    "celu": (1.0, 0.0),  # max(0, x) + min(0, alpha * (exp(x / alpha) - 1))
    "abs": (0.0, 0.0),
    "neg": (0.0, 0.0),
    "sign": (0.0, 0.0),
    "square": (0.0, 0.0),
    "sqrt": (0.0, 0.0),
    "reciprocal": (0.0, 0.0),
    "log": (0.0, 0.0),
    "erf": (0.0, 0.0),
    "floor": (0.0, 0.0),
    "ceil": (0.0, 0.0),
    "round": (0.0, 0.0),  # half to even
    "softmax": (-1.0, 0.0),  # over axis alpha (always the last); rows, so only in dense and activation nodes
    "log_softmax": (-1.0, 0.0),
}
ROW_ACTIVATIONS = ("softmax", "log_softmax")
CELL_ACTIVATIONS = (  # those that a recurrent cell may use
    "sigmoid", "tanh", "relu", "hard_sigmoid", "linear", "affine", "leaky_relu", "thresholded_relu",
    "scaled_tanh", "elu", "softsign", "softplus",
)  # fmt: skip


_SIZES = optional(wholes(1))
_ACTIVATION = attributes.activation(ACTIVATIONS, ROW_ACTIVATIONS)
KINDS: dict[str, Kind] = {
    "num_layers": whole(1, 2**63 - 1),  # there are weights for each
    "direction": choice(("forward", "reverse", "bidirectional")),
    "merge": choice(("concat", "sum", "mul", "ave")),
    "update_gate": choice(("keep", "take")),
    **dict.fromkeys(("clip", "cell_clip", "proj_clip"), optional(attributes.bound)),
    **dict.fromkeys(("gate_activation", "cell_activation", "hidden_activation", "activation"), _ACTIVATION),
    "conv.activation": attributes.activation(ACTIVATIONS, ROW_ACTIVATIONS, with_rows=False),
    "mask_value": attributes.number,
    "eps": attributes.small,
    "layer_norm.axes": whole(1, MOST_AXES),
    "strides": _SIZES,
    "dilations": _SIZES,
    "kernel": wholes(1),
    "pads": optional(wholes(0)),
    "conv_transpose.pads": optional(wholes()),
    "output_padding": optional(wholes(0)),
    "groups": whole(1),
    "unary.function": choice(UNARY),
    "binary.function": choice(BINARY),
    "reduce.function": choice(REDUCTIONS),
    "pool.function": choice(("max", "mean")),
    "pad.mode": choice(("constant", "reflect", "edge", "wrap")),
    "dtype": choice(DTYPES),
    "axis": AXIS,
    "flatten.axis": whole(-MOST_AXES, MOST_AXES),
    "reduce.axes": optional(AXES),
    "squeeze.axes": optional(AXES),
    "unsqueeze.axes": AXES,
    "perm": optional(attributes.permutation),
    "start": whole(),
    "end": optional(whole()),
    "sizes": optional(wholes(0, count=LARGEST)),
    "value": attributes.number_or_truth,
    "num_scanned": whole(1),
    **dict.fromkeys(("scan.axes", "output_axes"), optional(wholes(-MOST_AXES, MOST_AXES - 1, LARGEST))),
    **dict.fromkeys(("directions", "output_directions"), optional(wholes(0, 1, LARGEST))),
    "version": whole(0),
}
"""What each attribute may be, by "op.attribute" or "attribute"; others are flags and texts, as their defaults are."""


def activation(value: str | tuple | list) -> tuple[str, float, float]:
    """Return ``(name, alpha, beta)`` with the defaults of ``ACTIVATIONS`` filled in; FormatError where there is none.

    >>> activation("hard_sigmoid")
    ('hard_sigmoid', 0.2, 0.5)
    >>> activation(("leaky_relu", 0.3))
    ('leaky_relu', 0.3, 0.0)
    """
    parts: Any = value if isinstance(value, (tuple, list)) and value else (value,)
    name: Any = parts[0]
    given = parts[1:]
    if not isinstance(name, str) or not all(n is None or isinstance(n, Real) for n in given):
        known = ", ".join(ACTIVATIONS)
        raise FormatError(f"an activation is a name, or a name and numbers, got {str(value)[:80]}; known: {known}")
    if name not in ACTIVATIONS:
        raise FormatError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    if expected := _ACTIVATION(value):
        raise FormatError(f"activation {str(value)[:80]} is not known; expected {expected}")
    numbers: list[Any] = [default if k >= len(given) or given[k] is None else float(given[k])
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
    graphs: dict[str, Graph] = field(default_factory=dict)

    def attr(self, key: str) -> Any:
        """The attribute, or its default from ``OPS``."""
        return self.attrs.get(key, OPS[self.op].attrs[key])


@dataclass
class Graph:
    """Nodes in running order between named tensors; ``constants`` are tensors that never change."""

    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def all_nodes(self) -> Iterator[Node]:
        """The nodes, and those of the bodies of control flow."""
        for node in self.nodes:
            yield node
            for graph in node.graphs.values():
                yield from graph.all_nodes()

    def all_constants(self) -> Iterator[tuple[str, np.ndarray]]:
        """The constants, and those of the bodies of control flow."""
        yield from self.constants.items()
        for node in self.nodes:
            for graph in node.graphs.values():
                yield from graph.all_constants()


def reads(nodes: Iterable[Node], outputs: Iterable[str] = ()) -> list[str]:
    """The tensors that nodes and the bodies in them read, and these outputs, each once."""
    names: dict[str, None] = {}
    for node in nodes:
        names.update(dict.fromkeys(name for name in node.inputs if name))
        for graph in node.graphs.values():
            names.update(dict.fromkeys(reads(graph.nodes, [t.name for t in graph.outputs])))
    names.update(dict.fromkeys(outputs))
    return list(names)


@dataclass
class ModelSpec(Graph):
    """A whole model.

    ``nested_state`` asks for PyTorch's shape of result where the last node is recurrent: ``(y, state)``.
    ``recorded`` are arrays of inputs and outputs by name, by which a copy of the model can be checked.
    """

    nested_state: bool = False
    source: str = ""
    recorded: dict[str, np.ndarray] = field(default_factory=dict)

    def validate(self) -> None:
        """Check names, wiring, attributes and weights.

        Raises
        ------
        FormatError
            It is no model; every problem is listed.
        ShapeError
            It is one, with weights of shapes that do not fit each other; every problem is listed.
        """
        problems = list(_graph_problems(self, set(), set()))
        known = {t.name for t in chain(self.inputs, self.outputs)}
        problems += [f"recorded array {name!r} is no input or output" for name in self.recorded if name not in known]
        kind: type[FormatError | ShapeError] = FormatError
        if not problems:
            kind = ShapeError
            problems = [
                f"{node.op} {node.name!r}: {text}"
                for node in self.all_nodes()
                for text in shape_problems(node.op, node.attr, node.weights)
            ]
        if problems:
            raise kind(f"{len(problems)} problem(s) in {self.source or 'the model'}:\n  " + "\n  ".join(problems))


AnyGraph = TypeVar("AnyGraph", bound=Graph)


def with_arrays(graph: AnyGraph, change: Callable[[Any], np.ndarray]) -> AnyGraph:
    """A copy of a graph, with its bodies, whose arrays are what ``change`` makes of them."""

    def changed(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: change(array) for name, array in arrays.items()}

    nodes = [
        replace(
            node,
            weights=changed(node.weights),
            graphs={key: with_arrays(body, change) for key, body in node.graphs.items()},
        )
        for node in graph.nodes
    ]
    whole = replace(graph, nodes=nodes, constants=changed(graph.constants))
    if isinstance(whole, ModelSpec):
        whole.recorded = changed(whole.recorded)
    return whole


def _graph_problems(graph: Graph, known: set[str], names: set[str]) -> Iterable[str]:
    """Problems of a graph inside one whose tensors are ``known``; ``names`` are those of all nodes so far."""
    own: set[str] = set()
    for name in (*(t.name for t in graph.inputs), *graph.constants):
        if name in known:
            yield f"tensor {name!r} is defined twice"
        own.add(name)
        known.add(name)
    for tensor in chain(graph.inputs, graph.outputs):
        if not tensor.name:
            yield "an input or output has no name"
        if tensor.dtype not in DTYPES or any(n is not None and n < 0 for n in tensor.shape or ()):
            yield f"tensor {tensor.name!r} is {tensor.dtype} {tensor.shape}; known dtypes: {', '.join(DTYPES)}"
        elif any(n is not None and n > LARGEST for n in tensor.shape or ()) or len(tensor.shape or ()) > MOST_AXES:
            yield f"tensor {tensor.name!r} has the shape {tensor.shape!r:.80}, which no array has"
    for name, array in graph.constants.items():
        if dtype_of(array).name not in DTYPES:
            yield f"constant {name!r} holds {dtype_of(array)}; known dtypes: {', '.join(DTYPES)}"
    for node in graph.nodes:
        where = f"{node.op} {node.name!r}"
        if node.op not in OPS:
            yield f"{where}: unknown kind of layer; known: {', '.join(OPS)}"
            continue
        if node.name in names:
            yield f"{where}: the name is used twice"
        names.add(node.name)
        op = OPS[node.op]
        yield from (
            f"{where}: reads tensor {t!r}, which nothing before it writes" for t in node.inputs if t and t not in known
        )
        written = [t for t in node.outputs if t]
        yield from (f"{where}: writes tensor {t!r}, which exists already" for t in written if t in known)
        if len(set(written)) < len(written):
            yield f"{where}: writes a tensor twice"
        wrong = [
            *_count_problems("inputs", op.inputs, node.inputs),
            *_count_problems("outputs", op.outputs, node.outputs),
        ]
        wrong += _attr_problems(node)
        if set(node.graphs) != set(op.graphs):
            wrong.append(f"has the bodies {sorted(node.graphs)}, expected {sorted(op.graphs)}")
        # Attributes say which weights there are and what a body takes.
        yield from (f"{where}: {text}" for text in wrong or chain(_weight_problems(node), _body_problems(node)))
        for body in node.graphs.values():
            yield from _graph_problems(body, known, names)
        own.update(written)
        known.update(written)
    yield from (f"output {t.name!r} is written by no layer" for t in graph.outputs if t.name not in known)
    known -= own


def _body_problems(node: Node) -> Iterable[str]:
    """Numbers of inputs and outputs of bodies, and of what a scan says of each."""
    more = 2 if node.op == "loop" else 0  # iteration and condition
    for key, body in node.graphs.items():
        takes = 0 if node.op == "if" else max(len(node.inputs), more)
        scanned = node.attr("num_scanned") if node.op == "scan" else 0
        carried = takes - more - scanned
        gives = max(len(node.outputs), carried) + (1 if more else 0)
        if carried < 0:
            yield f"scans {scanned} tensors, has {takes} inputs"
        if len(body.inputs) != takes or len(body.outputs) < gives:
            yield (
                f"the body {key!r} has {len(body.inputs)} inputs and {len(body.outputs)} outputs,"
                f" expected {takes} and {gives}"
            )
        for name, count in (("", scanned), ("output_", len(body.outputs) - carried)) if node.op == "scan" else ():
            for attr in (f"{name}axes", f"{name}directions"):
                if node.attrs.get(attr) is not None and len(node.attrs[attr]) != count:
                    yield f"{attr} has {len(node.attrs[attr])} numbers, expected {count}"


def layer_problems(node: Node) -> list[str]:
    """What is wrong with the attributes of a layer, or else with which weights it has, or else with their shapes."""
    wrong = [f"{key} must be {expected}, got {node.attrs[key]!r:.80}" for key, expected in _unfit_attributes(node)]
    return wrong or [*_weight_problems(node)] or shape_problems(node.op, node.attr, node.weights)


def _kind_of(op: str, key: str) -> Kind:
    default = attributes.flag if isinstance(OPS[op].attrs[key], bool) else attributes.text
    return KINDS.get(f"{op}.{key}", KINDS.get(key, default))


def _attr_problems(node: Node) -> Iterable[str]:
    known = OPS[node.op].attrs
    yield from (f"attribute {key!r} is missing" for key in known if known[key] == "" and key not in node.attrs)
    yield from (f"unknown attribute {key!r}" for key in node.attrs if key not in known)
    for key, expected in _unfit_attributes(node):
        yield f"attribute {key!r} is {node.attrs[key]!r:.80}, expected {expected}"


def _unfit_attributes(node: Node) -> Iterator[tuple[str, str]]:
    """The attributes that are not of their kind, and what each should be."""
    for key, value in node.attrs.items():
        if key in OPS[node.op].attrs and (expected := _kind_of(node.op, key)(value)):
            yield key, expected


def _count_problems(what: str, declared: tuple[str, ...], given: tuple[str, ...]) -> Iterable[str]:
    more = declared[-1] if declared and declared[-1].endswith("*") else ""
    declared = declared[:-1] if more else declared
    if len(given) > len(declared) and not more:
        yield f"{len(given)} {what}, at most {len(declared)} ({', '.join(declared)}) are known"
    for k, name in enumerate(declared):
        if not name.endswith("?") and (k >= len(given) or not given[k]):
            yield f"{what[:-1]} {name!r} is missing"
    if more == "x*" and not all(given[len(declared) :]):
        yield f"one of its {what} has no name"


def _weight_problems(node: Node) -> Iterable[str]:
    op, suffixes = OPS[node.op], [""]
    if node.op in GATES:
        layers = node.attr("num_layers")
        if layers > len(node.weights):
            yield f"num_layers is {layers}, there are {len(node.weights)} weights"
            return
        suffixes = weight_suffixes(layers, node.attr("direction"))
    required = {name + s for name in op.weights if not name.endswith("?") for s in suffixes}
    optional = {name[:-1] + s for name in op.weights if name.endswith("?") for s in suffixes}
    yield from (f"weight {name!r} is missing" for name in sorted(required - set(node.weights)))
    yield from (f"unknown weight {name!r}" for name in sorted(set(node.weights) - required - optional))
    for name, weight in node.weights.items():
        if dtype_of(weight).kind != "f":
            yield f"weight {name!r} holds {dtype_of(weight)}, expected floating-point numbers"
    if "strides" in op.attrs:
        spatial = len(node.attr("kernel")) if "kernel" in op.attrs else np.ndim(node.weights.get("weight", 0)) - 2
        if not 1 <= spatial <= MAX_SPATIAL and "weight" not in required:
            yield f"the kernel has {spatial} axes, expected 1 to {MAX_SPATIAL}"
        for key in ("strides", "pads", "dilations", "output_padding"):
            count = spatial * 2 if key == "pads" else spatial
            if node.attrs.get(key) is not None and len(node.attrs[key]) != count:
                yield f"{key} has {len(node.attrs[key])} numbers, expected {count}"
