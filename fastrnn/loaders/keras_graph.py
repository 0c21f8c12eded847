"""The graph of a Keras model as its configuration has it: which layer is called with which tensors.

Keras 2 lists for each call ``[layer, call, tensor, arguments]`` of every input; Keras 3 writes out args and kwargs,
with ``keras_history`` in the place of tensors.  Sequential models are chains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError, UnsupportedError
from .files import name_list, short
from .keras_config import Config, class_and_config, number, section, text
from .keras_file import LayerWeights, layer_weights
from .keras_layers import RECURRENT
from .limits import MAX_CALLS, MAX_NAME_LENGTH

MODELS = ("Functional", "Sequential", "Model")
"""Classes of models; "Model" is Keras 2's name of "Functional"."""

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
    shared: list[dict[str, np.ndarray]] = field(default_factory=list)  # weights of the nodes of the first call


@dataclass
class Model:
    """The layers by name, what each call of them gets, and what goes in and comes out."""

    layers: dict[str, Layer]
    inputs: list[Ref]
    outputs: list[Ref]
    arguments: dict[tuple[str, int], Arguments]


@dataclass
class Arguments:
    """The tensors that a call gets."""

    x: list[Ref]
    states: list[Ref]
    masks: list[Ref | None]  # of each x; empty where none is given
    constant: Any = None  # what Keras 3 compares the first tensor with
    problem: str = ""  # why the call is not supported

    def subtract(self, offsets: dict[str, int]) -> None:
        """Count the calls of some layers from another number."""
        self.x, self.states = ([ref.minus(offsets) for ref in refs] for refs in (self.x, self.states))
        self.masks = [ref.minus(offsets) if ref else None for ref in self.masks]

    @property
    def refs(self) -> list[Ref]:
        """All references."""
        return [*self.x, *self.states, *(mask for mask in self.masks if mask)]


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
    layers = [layer for layer in model.layers.values() if ".ops." not in layer.class_name]
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
        name = text(item.get("name", inner.get("name")), "the name of a layer")
        if len(name) > MAX_NAME_LENGTH or name in names:
            raise FormatError(f"the name {short(name)} is longer than {MAX_NAME_LENGTH} characters, or used twice")
        names.add(name)
        result.append((item, Layer(name, class_name, inner)))
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
    arguments = {(layer.name, 0): Arguments([ref], [], []) for ref, layer in zip(refs, layers[1:], strict=False)}
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
        layer = model.layers[name]
        if layer.class_name == "Embedding" and layer.config.get("mask_zero") is True and given.x:
            makers[given.x[0], "embedding"] = Ref(name, call, MASK)
        if layer.class_name == "Masking" and given.x:
            makers[given.x[0], number(layer.config, "mask_value", 0.0)] = Ref(name, call, MASK)
    for given in model.arguments.values():
        for k, ref in enumerate(given.masks):
            compared = _operation(model, "NotEqual", ref)
            key: Any = "embedding" if compared and compared.constant == 0 else None
            if not compared and (reduced := _operation(model, "Any", ref)):
                compared = _operation(model, "NotEqual", reduced.x[0] if reduced.x else None)
                key = compared.constant if compared else None
            if compared and compared.x and type(key) in (str, int, float):
                given.masks[k] = makers.get((compared.x[0], key), ref)


def _operation(model: Model, kind: str, ref: Ref | None) -> Arguments | None:
    """What an operation of Keras 3 gets, if ``ref`` is its result."""
    layer = model.layers.get(ref.layer) if ref else None
    if ref is None or layer is None or layer.class_name.rpartition(">")[2] != kind:
        return None
    return model.arguments.get(ref[:2])


def _arguments(call: Any, layer: Layer) -> Arguments:
    """What a call gets; one that gets more than tensors in known places is a problem, which may not matter."""
    try:
        constant = None
        if isinstance(call, dict):
            given, constant = _keras3_call(call, layer)
        else:
            given = _keras2_call(call, layer)
        x, states, mask = given.pop("inputs"), _refs(given.pop("initial_state", None)), given.pop("mask", None)
        if layer.class_name in RECURRENT and not states:  # Keras 2 appends the initial states to the inputs
            x, states = x[:1], x[1:]
        several = isinstance(mask, list) and len(mask) == len(x) > 1
        masks = [_refs(item) for item in (mask if several else [mask])] if _refs(mask) else []
        if any(len(refs) > 1 for refs in masks):
            raise UnsupportedError(f"it is called with several masks for {len(x)} tensor(s); pass one for each")
        if given.pop("training", None) is True:
            raise UnsupportedError("it is called with training=True, which makes its result random")
        if others := [key for key, value in given.items() if value is not None]:
            raise UnsupportedError(f"it is called with the arguments {name_list(others)}, which are not supported")
        return Arguments(x, states, [next(iter(refs), None) for refs in masks], constant)
    except UnsupportedError as error:
        return Arguments(_refs(call), [], [], problem=str(error))


def _keras3_call(call: dict[str, Any], layer: Layer) -> tuple[dict[str, Any], Any]:
    """Arguments by name, the tensors in "inputs" as references; and a second argument that is not a tensor."""
    args, kwargs = call.get("args"), call.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise FormatError(f"a call of {short(layer.name)} is {short(call)}; the configuration is damaged")
    recurrent = layer.class_name in RECURRENT
    names = ("inputs", "initial_state", "mask", "training") if recurrent else ("inputs", "training", "mask")
    constant = args[1] if len(args) == 2 and not _refs(args[1]) else None
    given = {**dict(zip(names, args)), **kwargs}
    tensors = [given.pop(name) for name in ("inputs", "sequences") if name in given] + args[len(names) :]
    return {**given, "inputs": _refs(tensors)}, constant


def _keras2_call(call: Any, layer: Layer) -> dict[str, Any]:
    """The same for a list of inputs; the keyword arguments stand with the first one."""
    if not isinstance(call, list) or not all(isinstance(item, list) and item for item in call):
        raise FormatError(
            f"a call of {short(layer.name)} is {short(call)}, expected a list of tensors; the file is damaged"
        )
    kwargs = call[0][3] if len(call[0]) > 3 else {}
    if not isinstance(kwargs, dict):
        raise FormatError(f"the arguments of a call of {short(layer.name)} are {short(kwargs)}; the file is damaged")
    tensors = [ref for item in call for ref in _refs(item[:3])]
    if len(tensors) != len(call):
        raise UnsupportedError("it is called with a constant; make it a part of the input")
    return {**kwargs, "inputs": tensors}


def _refs(value: Any) -> list[Ref]:
    """All references inside a value: [layer, call, tensor], or Keras 3's tensors; what is neither has none."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        return _refs(section(value, "config").get("keras_history"))
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        return [Ref(value[0], value[1], value[2])] if all(type(n) is int and n >= 0 for n in value[1:3]) else []
    if isinstance(value, (list, dict)):
        return [ref for item in (value.values() if isinstance(value, dict) else value) for ref in _refs(item)]
    return []
