"""The graph of a Keras model as its configuration has it: which layer is called with which tensors.

Keras 2 lists for each call ``[layer, call, tensor, arguments]`` of every input; Keras 3 writes out args and kwargs,
with ``keras_history`` in the place of tensors.  Sequential models are chains.  Arithmetic between layers stands in the
list of layers too: as operations in Keras 3, as layers that name a function of TensorFlow in Keras 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError, UnsupportedError
from .files import name_list, short
from .keras_config import MODELS, Config, class_and_config, number, section, text
from .keras_emit import constant_array
from .keras_file import LayerWeights, layer_weights
from .keras_layers import OPTIONS, RECURRENT
from .keras_moves import dtype_of
from .keras_operations import is_operation, operation_class
from .limits import MAX_CALLS, MAX_NAME_LENGTH

MASK = -1


class Ref(NamedTuple):
    """An output of a call of a layer; ``tensor`` None stands for all of them, ``MASK`` for the mask of the first."""

    layer: str
    call: int
    tensor: int | None

    @property
    def name(self) -> str:
        """What the tensor is called: the layer, "@" the number of a further call, ":" that of a further output."""
        return self.layer + (f"@{self.call}" if self.call else "") + (f":{self.tensor}" if self.tensor else "")

    def minus(self, offsets: dict[str, int]) -> Ref:
        """The same with another number of the call, for layers in ``offsets``."""
        return self._replace(call=self.call - offsets.get(self.layer, 0))


@dataclass
class Layer:
    """A layer of a model, as its configuration has it."""

    name: str
    class_name: str
    config: Config
    weights: LayerWeights | None = None
    model: Model | None = None  # of a nested model, once it is parsed
    build: Any = None  # what Keras 3 says of its input
    shared: list[np.ndarray] = field(default_factory=list)  # its weights and constants, which all calls share


@dataclass
class Model:
    """The layers by name, what each call of them gets, and what goes in and comes out."""

    layers: dict[str, Layer]
    inputs: list[Ref]
    outputs: list[Ref]
    arguments: dict[tuple[str, int], Arguments]


@dataclass
class Arguments:
    """What a call gets.  ``options`` and ``places`` may hold references, at any depth."""

    x: list[Ref | np.ndarray]
    states: list[Ref] = field(default_factory=list)
    masks: list[Ref | None] = field(default_factory=list)  # of each x; empty where none is given
    options: dict[str, Any] = field(default_factory=dict)  # other arguments by name
    places: list[Any] = field(default_factory=list)  # those of an operation
    order: list[Ref] = field(default_factory=list)  # all references, in the order in which Keras meets them
    problem: str = ""  # why the call is not supported

    def subtract(self, offsets: dict[str, int]) -> None:
        """Count the calls of some layers from another number."""
        for part in ("x", "states", "masks", "options", "places", "order"):
            setattr(self, part, with_refs(getattr(self, part), lambda ref: ref.minus(offsets)))

    @property
    def refs(self) -> list[Ref]:
        """All references."""
        found: list[Ref] = []
        with_refs([self.x, self.states, self.masks, self.options, self.places], found.append)
        return found


def with_refs(value: Any, function: Callable[[Ref], Any]) -> Any:
    """A structure with the results of ``function`` in the place of references."""
    if isinstance(value, Ref):
        return function(value)
    if isinstance(value, list):
        return [with_refs(item, function) for item in value]
    if isinstance(value, dict):
        return {key: with_refs(item, function) for key, item in value.items()}
    return value


def parse_model(config: Any, weights: LayerWeights, is_top: bool = False) -> Model:
    """Read the graph of a model from its serialized form or its ``get_config()``; find the weights of its layers."""
    class_name, inner = "Functional" if "input_layers" in config else "Sequential", config
    if "class_name" in config:
        class_name, inner = class_and_config(config, "the model")
    if class_name not in MODELS:
        raise UnsupportedError(
            f"a model of class {short(class_name)}, supported are {', '.join(MODELS)}; take the parts that are, or"
            " single layers with load_layers()"
        )
    model = _sequential(inner) if class_name == "Sequential" else _functional(inner)
    # Operations such as a sum are in the list, but Keras does not count them among the layers.
    layers = [layer for layer in model.layers.values() if not is_operation(layer.class_name)]
    names = [(layer.class_name.rpartition(">")[2], layer.name) for layer in layers]
    for layer, part in zip(layers, layer_weights(names, weights, is_top), strict=True):
        layer.weights = part
    return model


def _layer_list(config: Config) -> list[tuple[Config, Layer]]:
    """The layers of a model, each with its entry in the configuration."""
    stored = config.get("layers")
    if not isinstance(stored, list) or len(stored) > MAX_CALLS:
        raise FormatError(f"'layers' is {short(stored)}, expected a list of at most {MAX_CALLS}; the file is damaged")
    result, names = [], set()
    for item in stored:
        class_name, inner = class_and_config(item, "a layer")
        class_name = operation_class(class_name, item, inner)
        name = text(item.get("name", inner.get("name")), "the name of a layer")
        if len(name) > MAX_NAME_LENGTH or name in names:
            raise FormatError(f"the name {short(name)} is longer than {MAX_NAME_LENGTH} characters, or used twice")
        names.add(name)
        result.append((item, Layer(name, class_name, inner, build=item.get("build_config"))))
    return result


def _sequential(config: Config) -> Model:
    """A chain: each layer is called once, with the output of the one before."""
    layers = [layer for _, layer in _layer_list(config)]
    if not layers:
        raise FormatError("a Sequential model without layers; add some in Keras")
    if layers[0].class_name != "InputLayer":
        first = layers[0].config
        shape = first.get("batch_input_shape", first.get("batch_shape", config.get("build_input_shape")))
        name = f"{layers[0].name}_input"
        layers.insert(0, Layer(name, "InputLayer", {"name": name, "batch_shape": shape}))
    refs = [Ref(layer.name, 0, 0) for layer in layers]
    arguments = {(layer.name, 0): Arguments([ref]) for ref, layer in zip(refs, layers[1:], strict=False)}
    return Model({layer.name: layer for layer in layers}, refs[:1], refs[-1:], arguments)


def _functional(config: Config) -> Model:
    """A graph of layers, models among them."""
    layers: dict[str, Layer] = {}
    arguments: dict[tuple[str, int], Arguments] = {}
    offsets: dict[str, tuple[int, int]] = {}  # what to subtract from numbers of calls, in arguments and in outputs
    inputs, outputs = (_refs(config.get(key)) for key in ("input_layers", "output_layers"))
    for item, layer in _layer_list(config):
        calls = item.get("inbound_nodes", [])
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            raise FormatError(f"'inbound_nodes' of {short(layer.name)} is {short(calls)}, expected a list of calls")
        layers[layer.name] = layer
        calls = [call for call in calls if call]
        arguments |= {(layer.name, k): _arguments(call, layer) for k, call in enumerate(calls)}
        if layer.class_name in MODELS and calls and isinstance(calls[0], dict):
            offsets[layer.name] = (0, int(layer.class_name != "Sequential"))
    if not inputs or not outputs:
        raise FormatError("the model has no input_layers or no output_layers; the configuration is damaged")
    for ref in inputs:
        if ref.layer not in layers or layers[ref.layer].class_name != "InputLayer":
            raise FormatError(f"input {short(ref.layer)} is not an InputLayer; the configuration is damaged")
    # A nested model may start with a call of its own, which is not saved but counted: by Keras 3 in the outputs, by
    # Keras 2 everywhere, if at all; all saved calls are used there, so the largest number tells.
    uses = [*outputs, *(ref for given in arguments.values() for ref in given.refs)]
    for name, layer in layers.items():
        if layer.class_name in MODELS and name not in offsets:
            count = sum(key[0] == name for key in arguments)
            offsets[name] = (1, 1) if any(ref.layer == name and ref.call >= count for ref in uses) else (0, 0)
    if offsets:
        outputs = [ref.minus({name: offset for name, (_, offset) in offsets.items()}) for ref in outputs]
        for given in arguments.values():
            given.subtract({name: offset for name, (offset, _) in offsets.items()})
    model = Model(layers, inputs, outputs, arguments)
    _find_masks(model)
    return model


def _find_masks(model: Model) -> None:
    """Keras 3 writes masks into the graph as operations; let those refer to the layers that make these masks.

    NotEqual(ids, 0) is the mask of an Embedding of the ids, Any(NotEqual(x, value)) that of a Masking of x.
    """
    makers: dict[tuple[Ref, Any], Ref] = {}
    for (name, call), given in model.arguments.items():
        layer, x = model.layers[name], given.x[0] if given.x else None
        if layer.class_name == "Embedding" and layer.config.get("mask_zero") is True and isinstance(x, Ref):
            makers[x, "embedding"] = Ref(name, call, MASK)
        if layer.class_name == "Masking" and isinstance(x, Ref):
            makers[x, number(layer.config, "mask_value", 0.0)] = Ref(name, call, MASK)

    def maker(ref: Ref) -> Ref:
        compared = _operation(model, "NotEqual", ref)
        bound = compared.places[-1] if compared else None
        key: Any = "embedding" if type(bound) is int and bound == 0 else None
        if not compared and (reduced := _operation(model, "Any", ref)):
            compared = _operation(model, "NotEqual", reduced.places[0] if reduced.places else None)
            key = compared.places[-1] if compared else None
        if compared and isinstance(compared.places[0], Ref) and type(key) in (str, int, float):
            return makers.get((compared.places[0], key), ref)
        return ref

    for given in model.arguments.values():
        for part in ("masks", "options", "places"):
            setattr(given, part, with_refs(getattr(given, part), maker))


def classes_in(model: Model) -> set[str]:
    """The classes of the layers of a model and of those nested in it."""
    found, pending = set(), [dict(layer.config) | {"class_name": layer.class_name} for layer in model.layers.values()]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found |= {item["class_name"]} if isinstance(item.get("class_name"), str) else set()
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return found


def run_order(model: Model) -> list[tuple[str, int]]:
    """The calls in the order in which Keras 3 makes them: by their distance to the outputs.

    The order among those of the same distance is that in which they are met on the way back from the outputs, as in
    ``keras.src.ops.function.map_graph``.
    """
    forward: list[tuple[str, int]] = []  # each call behind those that it needs
    parents: dict[tuple[str, int], list[tuple[str, int]]] = {}
    pending: list[tuple[tuple[str, int], bool]] = [(ref[:2], False) for ref in reversed(model.outputs)]
    while pending:
        key, is_complete = pending.pop()
        if is_complete:
            forward.append(key)
        elif key not in parents:
            given = model.arguments.get(key)
            parents[key] = [ref[:2] for ref in given.order] if given else []
            pending.append((key, True))
            pending += [(parent, False) for parent in reversed(parents[key])]
    depths: dict[tuple[str, int], int] = {}
    of_layers: dict[str, int] = {}
    for key in reversed(forward):
        depth = max(depths.setdefault(key, 0), of_layers.get(key[0], 0))
        depths[key] = of_layers[key[0]] = depth
        for parent in parents[key]:
            depths[parent] = max(depth + 1, depths.get(parent, 0))
    return sorted(depths, key=lambda key: -depths[key])


def _operation(model: Model, kind: str, ref: Any) -> Arguments | None:
    """What an operation of Keras 3 gets, if ``ref`` is its result."""
    layer = model.layers.get(ref.layer) if isinstance(ref, Ref) else None
    if layer is None or layer.class_name.rpartition(">")[2] != kind or not is_operation(layer.class_name):
        return None
    given = model.arguments.get(ref[:2])
    return given if given and given.places else None


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "RNN": ("inputs", "initial_state", "mask", "training"),
    "Attention": ("inputs", "mask"),
    "AdditiveAttention": ("inputs", "mask"),
    "MultiHeadAttention": (
        "query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask", "return_attention_scores",
        "training", "use_causal_mask",
    ),
}  # fmt: skip
"""The parameters of calls in order, where they are not those of most layers."""


def _arguments(call: Any, layer: Layer) -> Arguments:
    """What a call gets; one that gets what is not supported is a problem, which may not matter."""
    if isinstance(call, dict):
        args, kwargs = _keras3_call(call, layer)
    else:
        args, kwargs = _keras2_call(call, layer)
    order = refs_in([args, [kwargs[key] for key in sorted(kwargs)]])
    if is_operation(layer.class_name):
        return Arguments([], places=args, options=kwargs, order=order)
    names = _PARAMETERS.get(
        "RNN" if layer.class_name in RECURRENT else layer.class_name, ("inputs", "training", "mask")
    )
    given = {**dict(zip(names, args)), **kwargs}
    if layer.class_name == "MultiHeadAttention":
        heads = [key for key in ("query", "value", "key") if given.get(key) is not None]
        given["mask"] = [given.pop(f"{key}_mask", None) for key in heads]
        given["inputs"] = [given.pop(key) for key in heads] + ([given.pop("inputs")] if "inputs" in given else [])
    tensors = [given.pop(name) for name in ("inputs", "sequences") if name in given] + args[len(names) :]
    x, states, mask = _flat(tensors), _flat(given.pop("initial_state", None)), given.pop("mask", None)
    if layer.class_name in RECURRENT and not states:  # Keras 2 appends the initial states to the inputs
        x, states = x[:1], x[1:]
    problem = ""
    if not all(isinstance(item, Ref) for item in (*states, *_flat(mask))):
        problem = "it is called with a mask or states that are constants; make them inputs"
    if isinstance(mask, list) and len(mask) <= len(x) and all(item is None or isinstance(item, Ref) for item in mask):
        masks = mask if any(mask) else []
    else:
        masks = list(refs_in(mask))
        if len(masks) > 1:
            problem = f"it is called with several masks for {len(x)} tensor(s); pass one for each"
    if given.pop("training", None) is True:
        problem = "it is called with training=True, which makes its result random"
    known = OPTIONS.get(layer.class_name, ())
    if others := [key for key, value in given.items() if value is not None and key not in known]:
        problem = f"it is called with the arguments {name_list(others)}, which are not supported"
    options = {key: value for key, value in given.items() if value is not None}
    if problem:  # only what it needs is of interest
        x = [*refs_in(x), *refs_in(states), *refs_in(masks), *refs_in(options)]
        return Arguments(x, order=order, problem=problem)
    return Arguments(x, states, masks, options, order=order)


def _keras3_call(call: dict[str, Any], layer: Layer) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by place and by name."""
    args, kwargs = call.get("args"), call.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise FormatError(f"a call of {short(layer.name)} is {short(call)}; the configuration is damaged")
    return [_value(item, False) for item in args], {key: _value(item, False) for key, item in kwargs.items()}


def _keras2_call(call: Any, layer: Layer) -> tuple[list[Any], dict[str, Any]]:
    """The same for a list of inputs; the keyword arguments stand with the first one.

    A function of TensorFlow gets one input or constant that is not inside a list.
    """
    damaged = f"a call of {short(layer.name)} is {short(call)}, expected a list of tensors; the file is damaged"
    if not isinstance(call, list) or not call:
        raise FormatError(damaged)
    alone = isinstance(call[0], str)
    items = [call] if alone else call
    if not all(isinstance(item, list) and len(item) >= 3 and isinstance(item[0], str) for item in items):
        raise FormatError(damaged)
    kwargs = items[0][3] if len(items[0]) > 3 else {}
    if not isinstance(kwargs, dict):
        raise FormatError(f"the arguments of a call of {short(layer.name)} are {short(kwargs)}; the file is damaged")
    values = [_value(item[:3], True) for item in items]
    return [values[0] if alone else values], {key: _value(item, True) for key, item in kwargs.items()}


_CONSTANT = "_CONSTANT_VALUE"


def _value(value: Any, keras2: bool) -> Any:
    """An argument: references, lists and objects of them, slices, arrays, or plain values."""
    if isinstance(value, list):
        if (
            keras2
            and len(value) in (3, 4)
            and isinstance(value[0], str)
            and not any(isinstance(n, str) for n in value[1:3])
        ):
            return constant_array(value[2]) if value[0] == _CONSTANT else _ref(value)
        return [_value(item, keras2) for item in value]
    if not isinstance(value, dict):
        return value
    kind, config = value.get("class_name"), value.get("config")
    if kind == "__keras_tensor__":
        return _ref(section(value, "config").get("keras_history"))
    if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
        return _array(config)
    if kind == "__tuple__":
        return _value(value.get("items"), keras2)
    if kind == "__ellipsis__":
        return Ellipsis
    part = config if kind == "__slice__" and isinstance(config, dict) else value
    if set(part) == {"start", "stop", "step"}:  # Keras 2 writes only this
        bounds = [part[key] for key in ("start", "stop", "step")]
        if any(bound is not None and type(bound) is not int for bound in bounds):
            raise UnsupportedError("a slice whose bounds are tensors; use constant ones")
        return slice(*bounds)
    return {key: _value(item, keras2) for key, item in value.items()}


def _array(config: dict[str, Any]) -> np.ndarray:
    """A constant array, as Keras 3 writes it."""
    return constant_array(config.get("value")).astype(dtype_of(config.get("dtype")))


def _ref(history: Any) -> Ref:
    if (
        not isinstance(history, list)
        or len(history) not in (3, 4)
        or not isinstance(history[0], str)
        or any(type(n) is not int or n < 0 for n in history[1:3])
    ):
        raise FormatError(f"a tensor is {short(history)}, expected [layer, call, tensor]; the configuration is damaged")
    return Ref(*history[:3])


def _flat(value: Any) -> list[Any]:
    """The references and arrays of an argument, numbers as arrays."""
    if isinstance(value, (Ref, np.ndarray)):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _flat(item)]
    return [] if value is None else [constant_array(value)]


def refs_in(value: Any) -> list[Ref]:
    """All references inside an argument."""
    found: list[Ref] = []
    with_refs(value, found.append)
    return found


def _refs(value: Any) -> list[Ref]:
    """The inputs or outputs of a model: [layer, call, tensor], or lists and objects of them, in order of names."""
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        return [_ref(value)]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [ref for item in value for ref in _refs(item)] if isinstance(value, list) else []
