"""PyTorch's layers -> nodes: what a live ``torch.nn`` module says of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..spec import GATES, Node
from . import torch_layers as layers
from . import torch_ops as ops
from . import torch_shapes as shapes
from .files import Module
from .state_dict import MODULES as WEIGHTED
from .state_dict import layer_node, wiring
from .torch_build import Builder, Packed, Ref
from .torch_products import attention
from .torch_reductions import softmax

RECURRENT = {name for name, op in WEIGHTED.items() if op in GATES}
NOTHING = {"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"}
PLAIN = WEIGHTED.keys() - RECURRENT

# Class -> activation; None where the module's settings are not those that we compute.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "ReLU": lambda m: "relu",
    "Sigmoid": lambda m: "sigmoid",
    "Tanh": lambda m: "tanh",
    "Hardsigmoid": lambda m: ("hard_sigmoid", 1 / 6, 0.5),
    "Hardtanh": lambda m: ("hard_tanh", float(m.min_val), float(m.max_val)),
    "LeakyReLU": lambda m: ("leaky_relu", float(m.negative_slope)),
    "ELU": lambda m: ("elu", float(m.alpha)),
    "CELU": lambda m: ("celu", float(m.alpha)),
    "SELU": lambda m: "selu",
    "SiLU": lambda m: "silu",
    "GELU": lambda m: {"none": "gelu", "tanh": "gelu_tanh"}.get(m.approximate),
    "Softplus": lambda m: "softplus" if (m.beta, m.threshold) == (1, 20) else None,
    "Softsign": lambda m: "softsign",
    "Mish": lambda m: "mish",
    "ReLU6": lambda m: "relu6",
    "Hardswish": lambda m: "hard_swish",
    "LogSigmoid": lambda m: "log_sigmoid",
    "Softmax": lambda m: "softmax" if m.dim is not None else None,
    "LogSoftmax": lambda m: "log_softmax" if m.dim is not None else None,
}

_OTHER_FORMS = {
    "torch.ao.": "which is quantized; pass the float module that it was made from",
    "torch.jit.": "which is TorchScript; pass the module that it was made from",
    "torch.nn.utils.parametrize": "whose weights are computed;"
    ' torch.nn.utils.parametrize.remove_parametrizations(layer, "weight") stores them',
}
"""Package of a class -> what its modules are, and what to do."""
_REMOVE_HOOKS = "remove them first, as torch.nn.utils.remove_weight_norm(layer) does"

_CONTAINERS = {"Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"}

CHAINED = {*RECURRENT, *NOTHING, *PLAIN, *ACTIVATIONS}
"""Layers that a Sequential needs no example for: they work on any number of axes, or say how many."""


def class_name(module: Any) -> str:
    """Name of the class in torch.nn, or "" for any other class, subclasses included: their forward may differ."""
    name = type(module).__name__
    return name if getattr(sys.modules["torch"].nn, name, None) is type(module) else ""


def is_leaf(module: Any) -> bool:
    """Whether a module is a layer of torch.nn or derived from one, and not a container or a module of the user's."""
    own = [c.__name__ for c in type(module).__mro__ if c.__module__.startswith(("torch.nn", *_OTHER_FORMS))]
    return not _CONTAINERS & set(own[:-1]) and len(own) > 1


def refusal(module: Any) -> str:
    """Why a layer cannot be run, or ""."""
    name = class_name(module)
    for package, what in _OTHER_FORMS.items():
        if type(module).__module__.startswith(package):
            return f"{type(module).__name__}, {what}"
    if not name:
        bases = [c.__name__ for c in type(module).__mro__[1:] if c.__name__ in {*RECURRENT, *PLAIN, *MODULES}]
        return f"{type(module).__name__}, " + (f"a subclass of nn.{bases[0]}" if bases else "not a layer of torch.nn")
    if hooks(module):
        return f"{name} with forward hooks, as weight_norm and spectral_norm set them; {_REMOVE_HOOKS}"
    if name in RECURRENT or name in NOTHING or name == "Sequential":
        return ""
    if name in ACTIVATIONS:
        return "" if ACTIVATIONS[name](module) else f"{module}, of which only the default settings are computed"
    if name not in PLAIN and name not in MODULES:
        return name
    if name == "Embedding" and module.max_norm is not None:
        return "Embedding with max_norm, which changes the weights in the forward pass"
    if name in ("BatchNorm1d", "BatchNorm2d") and module.running_mean is None:
        return f"{name} without running statistics"
    return ""


def hooks(module: Any) -> bool:
    """Whether something beside ``forward`` happens when a module is called."""
    return any(getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))


def node(module: Any, path: str) -> Node:
    """The node of one layer of ``CHAINED``."""
    name = class_name(module)
    if name in ACTIVATIONS:
        return Node(
            "activation", path or "activation", *wiring("activation"), {"activation": ACTIVATIONS[name](module)}
        )
    owned = {**module._parameters, **module._buffers}  # named_parameters() would leave out tied ones
    tensors = {key: tensor for key, tensor in owned.items() if tensor is not None}
    return layer_node(tensors, path, None, Module(name, vars(module)))


# Layers called in a forward method


def call(b: Builder, module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Translate the call of a layer."""
    name = class_name(module)
    if name in RECURRENT:
        return _recurrent(b, module, *args, **options)
    if name in NOTHING:
        return args[0]
    if name in MODULES:
        return MODULES[name](b, module, *args, **options)
    if name in ACTIVATIONS:
        return b.activation(args[0], ACTIVATIONS[name](module))
    made = node(module, b.base)
    x = args[0]
    rank = x.rank + 1 if name == "Embedding" else x.rank
    return b.emit_many(made.op, [x], [(rank, "f")], made.attrs, made.weights)[0]


def _recurrent(b: Builder, m: Any, input: Any, hx: Any = None) -> Any:
    """y and the final states of a layer, the new states of a cell."""
    made = node(m, b.base)
    states = 2 if made.op == "lstm" else 1
    initial = [None] * states if hx is None else list(hx) if states == 2 else [hx]
    lengths = None
    x = input
    if isinstance(input, Packed):
        x, lengths = input.padded, input.lengths
        made.attrs["batch_first"] = input.batch_first
    cell = made.attr("unbatched")
    mask = [None, lengths] if lengths else []
    ranks = [(x.rank, "f")] * (1 + states)
    y, *final = b.emit_many(made.op, [b.cast(x, "f"), *initial, *mask], ranks, made.attrs, made.weights)
    state = tuple(final) if states == 2 else final[0]
    if cell:
        return state
    return (y if lengths is None else Packed(y, lengths, input.batch_first)), state


def _weights(b: Builder, m: Any, *names: str) -> list[Ref | None]:
    """Parameters and buffers of a layer."""
    tensors = [getattr(m, name) for name in names]
    return [None if t is None else b.constant(_array(t), f"{b.base}.{name}") for t, name in zip(tensors, names)]


def _array(tensor: Any) -> Any:
    return tensor.detach().float().numpy()


def _conv(name: str) -> Callable[..., Ref]:
    def translate(b: Builder, m: Any, x: Ref) -> Ref:
        padding = m.padding
        if m.padding_mode != "zeros":
            x = shapes.pad(b, x, m._reversed_padding_repeated_twice, m.padding_mode)
            padding = 0
        weight, bias = _weights(b, m, "weight", "bias")
        return ops.FUNCTIONS[name](b, x, weight, bias, m.stride, padding, m.dilation, m.groups)

    return translate


def _conv_transpose(name: str) -> Callable[..., Ref]:
    def translate(b: Builder, m: Any, x: Ref, output_size: Any = None) -> Ref:
        ops.refuse(output_size is not None, "ConvTranspose with output_size")
        weight, bias = _weights(b, m, "weight", "bias")
        return ops.FUNCTIONS[name](
            b, x, weight, bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation
        )  # fmt: skip

    return translate


def _function(name: str, *settings: str) -> Callable[..., Any]:
    """A function with settings that the module has as attributes of the same names."""

    def translate(b: Builder, m: Any, x: Ref) -> Any:
        return ops.FUNCTIONS[name](b, x, **{key: getattr(m, key) for key in settings})

    return translate


def _padding(mode: str) -> Callable[..., Ref]:
    return lambda b, m, x: shapes.pad(b, x, m.padding, mode, getattr(m, "value", None))


def _group_norm(b: Builder, m: Any, x: Ref) -> Ref:
    return layers.group_norm(b, x, m.num_groups, *_weights(b, m, "weight", "bias"), eps=m.eps)


def _batch_norm(b: Builder, m: Any, x: Ref) -> Ref:
    return layers.batch_norm(b, x, *_weights(b, m, "running_mean", "running_var", "weight", "bias"), eps=m.eps)


def _instance_norm(b: Builder, m: Any, x: Ref) -> Ref:
    weights = _weights(b, m, "running_mean", "running_var", "weight", "bias")
    return layers.instance_norm(b, x, *weights, use_input_stats=m.running_mean is None, eps=m.eps)


def _softmax(logarithm: bool) -> Callable[..., Ref]:
    return lambda b, m, x: softmax(b, x, m.dim, logarithm=logarithm)


MODULES: dict[str, Callable[..., Any]] = {
    **{f"Conv{n}d": _conv(f"conv{n}d") for n in (1, 2)},
    **{f"ConvTranspose{n}d": _conv_transpose(f"conv_transpose{n}d") for n in (1, 2)},
    **{
        f"MaxPool{n}d": _function(
            f"max_pool{n}d", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
        )
        for n in (1, 2)
    },
    "AvgPool1d": _function("avg_pool1d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "AvgPool2d": _function(
        "avg_pool2d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    **{f"AdaptiveAvgPool{n}d": _function(f"adaptive_avg_pool{n}d", "output_size") for n in (1, 2)},
    **{f"AdaptiveMaxPool{n}d": _function(f"adaptive_max_pool{n}d", "output_size", "return_indices") for n in (1, 2)},
    "BatchNorm2d": _batch_norm,
    "GroupNorm": _group_norm,
    "InstanceNorm1d": _instance_norm,
    "InstanceNorm2d": _instance_norm,
    "RMSNorm": lambda b, m, x: layers.rms_norm(b, x, m.normalized_shape, *_weights(b, m, "weight"), eps=m.eps),
    "MultiheadAttention": attention,
    "PReLU": lambda b, m, x: ops.prelu(b, x, *_weights(b, m, "weight")),
    "GLU": _function("glu", "dim"),
    "Softmax": _softmax(False),
    "LogSoftmax": _softmax(True),
    "Flatten": _function("flatten", "start_dim", "end_dim"),
    "Unflatten": lambda b, m, x: shapes.unflatten(b, x, m.dim, m.unflattened_size),
    **{f"{kind}Pad{n}d": _padding(mode) for n in (1, 2) for kind, mode in
       (("Zero", "constant"), ("Constant", "constant"), ("Reflection", "reflect"), ("Replication", "replicate"))},
}  # fmt: skip
"""Class -> translator of its call; beside ``CHAINED``."""

SUPPORTED = sorted(CHAINED | set(MODULES))
