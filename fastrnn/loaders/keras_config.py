"""The configuration of a Keras layer: its values, checked, and its activations, translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import OPS, Node
from .files import name_list, short
from .keras_file import LayerWeights, Version
from .limits import MAX_RANK, MAX_UNITS

Shape = tuple[int | None, ...]
Config = Mapping[str, Any]
Activation = str | tuple[str | float, ...]

ACTIVATIONS: dict[str, Activation] = {
    # Keras' name: ours; hard_sigmoid is not here, its slope depends on the version
    "linear": "linear",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": ("leaky_relu", 0.2),
    "elu": "elu",
    "selu": "selu",
    "softplus": "softplus",
    "softsign": "softsign",
    "exponential": "exp",
    "silu": "silu",
    "swish": "silu",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
    "hard_tanh": "hard_tanh",
    "gelu": "gelu",
    "mish": "mish",
    "log_sigmoid": "log_sigmoid",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
}

MODELS = ("Functional", "Sequential", "Model")
"""Classes of models; "Model" is Keras 2's name of "Functional"."""

ACTIVATION_LAYERS = ("Activation", "ReLU", "LeakyReLU", "ThresholdedReLU", "ELU", "Softmax")


class UnknownShapeError(UnsupportedError):
    """A layer needs a shape that the configuration does not tell."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, and the one that masks its steps, if Keras attaches one to it.

    A mask has the first axes of its tensor, as a rule all but the last.
    """

    name: str
    shape: Shape | None = None
    mask: Value | None = None
    dtype: str = "float32"  # or "int64", "bool"
    alias: str = ""  # what tells Keras' tensors apart, where it made another one and we did not, or the other way round

    @property
    def identity(self) -> str:
        """The same for what is one tensor in Keras, whose mask can be taken off or replaced."""
        return self.alias or self.name

    @property
    def features(self) -> int | None:
        """The size of the last axis, if it is known."""
        return self.shape[-1] if self.shape else None

    def require_rank(self, rank: int) -> None:
        """Raise ``FormatError`` unless the tensor can have ``rank`` axes."""
        if self.shape is not None and len(self.shape) != rank:
            raise FormatError(
                f"its input has shape {self.shape}, expected {rank} axes; the configuration is inconsistent"
            )

    @property
    def known_shape(self) -> Shape:
        """The shape, for a layer that needs the number of axes."""
        if self.shape is None:
            raise UnknownShapeError("the shape of its input is not known; save the model with the shape of its inputs")
        return self.shape


@dataclass(frozen=True)
class Call:
    """One call of one layer.

    ``name`` is that of its node and of its first output.  ``inputs`` have no masks: ``masks`` are those that the layer
    reads, ``kept`` those that its outputs' are made of, one for each input or none at all.  ``options`` are its other
    arguments, ``arguments`` those of an operation by place; tensors in them are values.
    """

    name: str
    class_name: str
    config: Config
    weights: LayerWeights
    version: Version
    inputs: tuple[Value, ...]
    states: tuple[Value, ...] = ()
    masks: tuple[Value | None, ...] = ()
    kept: tuple[Value | None, ...] = ()
    options: Config = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    inner: Callable[[str, Config, LayerWeights, Value], Converted] | None = None  # converts a layer or model inside

    @property
    def x(self) -> Value:
        """The tensor, or the first one."""
        return self.inputs[0]

    @property
    def mask(self) -> Value | None:
        """The mask of the first tensor that the layer reads."""
        return self.masks[0] if self.masks else None

    @property
    def kept_mask(self) -> Value | None:
        """The mask of the first output of a layer that keeps steps."""
        return self.kept[0] if self.kept else None


@dataclass
class Converted:
    """What a call becomes: nodes, their constants by name, and the values that come out."""

    nodes: list[Node]
    values: list[Value]
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def node(
    op: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attrs: Config, weights: Any = None
) -> Node:
    """A node without the attributes that have their default and without the absent tensors at the end."""
    given = {key: value for key, value in attrs.items() if value != OPS[op].attrs[key]}
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return Node(op, name, inputs, outputs, given, weights or {})


def section(config: Config, key: str, default: Config | None = None) -> Config:
    """A nested object of a configuration."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, Mapping):
        raise FormatError(f"{key!r} is {short(value)}, expected an object; the configuration is damaged")
    return value


def class_and_config(value: Any, what: str) -> tuple[str, Config]:
    """The class and the configuration of a serialized layer, cell or model; classes of others are prefixed.

    A class that is registered by somebody else, or that comes from another module, is not the one of Keras that has
    the same name.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("class_name"), str):
        raise FormatError(
            f"{what} is {short(value)}, expected an object with a class_name; the configuration is damaged"
        )
    class_name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    if not all(part is None or isinstance(part, str) for part in (module, registered)):
        raise FormatError(f"the module or registered_name of {what} is not a text; the configuration is damaged")
    parts = (module or "keras").split(".")
    if parts[0] not in ("keras", "tf_keras", "tensorflow") or "ops" in parts or registered not in (None, class_name):
        class_name = registered if registered not in (None, class_name) else f"{module}>{class_name}"
    config = value.get("config", {})
    if isinstance(config, list) and class_name == "Sequential":  # Keras before 2.2.3
        config = {"layers": config}
    if not isinstance(config, Mapping):
        raise FormatError(f"the configuration of {what} is {short(config)}, expected an object; the file is damaged")
    return class_name, config


def text(value: Any, what: str) -> str:
    """A text that must be there."""
    if not isinstance(value, str) or not value:
        raise FormatError(f"{what} is {short(value)}, expected a text; the configuration is damaged")
    return value


def integer(config: Config, key: str, most: int = MAX_UNITS) -> int:
    """An integer from 1 to ``most``."""
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(
            f"{key!r} is {short(value)}, expected an integer from 1 to {most}; the configuration is damaged"
        )
    return value


def integers(config: Config, key: str, count: int, default: Any = None, least: int = 1) -> list[int]:
    """``count`` integers from ``least`` to ``MAX_UNITS``; a single one stands for all of them."""
    value = config.get(key, default)
    value = [value] * count if type(value) is int else value
    if (
        not isinstance(value, list)
        or len(value) != count
        or any(type(n) is not int or not least <= n <= MAX_UNITS for n in value)
    ):
        raise FormatError(
            f"{key!r} is {short(value)}, expected {count} integers from {least} to {MAX_UNITS}; the configuration is"
            " damaged"
        )
    return value


def choice(config: Config, key: str, default: str, known: tuple[str, ...]) -> str:
    """One of some words; Keras writes them in lower case, callers may not."""
    value = config.get(key)
    word = default if value is None else value.lower() if isinstance(value, str) else ""
    if word not in known:
        raise UnsupportedError(f"{key!r} is {short(value)}, supported are {', '.join(known)}")
    return word


def axes_of(value: Any, rank: int) -> list[int]:
    """Axes, one or a list of them, counted from the front and sorted."""
    axes = value if isinstance(value, list) else [value]
    if (
        not 0 < len(axes) <= MAX_RANK
        or any(type(a) is not int or not -rank <= a < rank for a in axes)
        or len({a % rank for a in axes}) < len(axes)
    ):
        raise FormatError(f"the axes are {short(value)}, on a tensor of {rank}; the configuration is inconsistent")
    return sorted(a % rank for a in axes)


def axis_of(value: Any, rank: int) -> int:
    """One axis, counted from the front; older versions write a list of one."""
    axes = axes_of(value, rank)
    if len(axes) != 1:
        raise FormatError(f"the axes are {short(value)}, expected one; the configuration is inconsistent")
    return axes[0]


def number(config: Config, key: str, default: float) -> float:
    """A finite number."""
    value = config.get(key, default)
    if isinstance(value, Mapping) and value.get("type") == "ndarray":  # Keras 2.1
        value = value.get("value")
    if type(value) not in (int, float) or not abs(value) < 1e38:
        raise FormatError(f"{key!r} is {short(value)}, expected a number; the configuration is damaged")
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """True or false."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise FormatError(f"{key!r} is {short(value)}, expected true or false; the configuration is damaged")
    return value


def shape_of(value: Any, what: str) -> Shape:
    """A shape whose first axis, the batch, is free, and whose other ones may be."""
    if not isinstance(value, list) or not value or any(n is not None and (type(n) is not int or n < 1) for n in value):
        raise FormatError(
            f"{what} is {short(value)}, expected a list of positive integers or null; the file is damaged"
        )
    return (None, *value[1:])


def activation_of(value: Any, version: Version) -> Activation:
    """Our activation for Keras' ``value``: a name, a serialized function, a serialized layer, or None for linear.

    hard_sigmoid is max(0, min(1, 0.2 x + 0.5)) in Keras 2 and max(0, min(1, x / 6 + 0.5)) in Keras 3.

    >>> activation_of("hard_sigmoid", Version.parse("2.4.0"))
    ('hard_sigmoid', 0.2, 0.5)
    """
    if value is None:
        return "linear"
    if isinstance(value, Mapping):
        name = value.get("class_name")
        if name in ACTIVATION_LAYERS:
            return activation_layer(*class_and_config(value, "an activation"), version)
        if name == "function" and value.get("registered_name") in (None, "function", value.get("config")):
            value = value.get("config")
    if value == "hard_sigmoid":
        return ("hard_sigmoid", 0.2 if version.major < 3 else 1 / 6, 0.5)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        found = value if isinstance(value, str) else _describe(value)
        raise UnsupportedError(f"activation {short(found)}, known are {name_list([*ACTIVATIONS, 'hard_sigmoid'])}")
    return ACTIVATIONS[value]


def activation_layer(class_name: str, config: Config, version: Version) -> Activation:
    """Our activation for a layer of ``ACTIVATION_LAYERS``."""
    if class_name == "Activation":
        return activation_of(config.get("activation"), version)
    if class_name == "LeakyReLU":  # Keras 2 calls the slope alpha
        return ("leaky_relu", number(config, "negative_slope" if "negative_slope" in config else "alpha", 0.3))
    if class_name == "ThresholdedReLU":
        return ("thresholded_relu", number(config, "theta", 1.0))
    if class_name == "ELU":
        return ("elu", number(config, "alpha", 1.0))
    if class_name == "Softmax":
        if config.get("axis", -1) not in (-1, [-1]):
            raise UnsupportedError(f"softmax over axis {short(config['axis'])}, only the last one (-1) is supported")
        return "softmax"
    top, slope, threshold = (
        config.get("max_value"),
        number(config, "negative_slope", 0.0),
        number(config, "threshold", 0.0),
    )
    if top is not None and not slope and not threshold:
        return ("hard_tanh", 0.0, number(config, "max_value", 0.0))  # clip to 0..max_value
    if top is not None or (slope and threshold):
        raise UnsupportedError(
            "ReLU with more than one of max_value, negative_slope and threshold; compose simpler layers"
        )
    if threshold:
        return ("thresholded_relu", threshold)
    return ("leaky_relu", slope) if slope else "relu"


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('registered_name') or value.get('class_name')} ({short(value.get('config'))})"
    return short(value)
