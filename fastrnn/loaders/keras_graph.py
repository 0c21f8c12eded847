"""The graph of a Keras model: which layer is called with which tensors, and the :class:`~fastrnn.spec.ModelSpec` of it.

A model is walked from its outputs, so only the layers that they need are converted.  Masks, which Keras attaches to
tensors behind the scenes, become tensors of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import ModelSpec, Node, Tensor
from .files import name_list, short
from .keras_config import Call, Config, Value, class_and_config, node, number, section, text
from .keras_file import LayerWeights, Version, layer_weights
from .keras_layers import CONVERTERS, RECURRENT, input_value
from .limits import MAX_CALLS, MAX_NAME_LENGTH

MODELS = ("Functional", "Sequential", "Model")


MASK = -1


class Ref(NamedTuple):
    """An output of a call of a layer; ``tensor`` None stands for all of them, ``MASK`` for the mask of the first one."""

    layer: str
    call: int
    tensor: int | None

    @property
    def name(self) -> str:
        """What the tensor is called: the layer, "@" the number of a further call, ":" that of a further output."""
        return self.layer + (f"@{self.call}" if self.call else "") + (f":{self.tensor}" if self.tensor else "")


@dataclass
class _Layer:
    name: str
    class_name: str
    config: Config
    weights: LayerWeights | None = None
    model: _Model | None = None  # of a nested model, once it is parsed
    shared: list[dict[str, np.ndarray]] = field(default_factory=list)  # weights of the nodes of the first call


@dataclass
class _Model:
    """The layers by name, what each call of them gets, and what goes in and comes out."""

    layers: dict[str, _Layer]
    inputs: list[Ref]
    outputs: list[Ref]
    arguments: dict[tuple[str, int], _Arguments]


@dataclass
class _Arguments:
    """The tensors that a call gets."""

    x: list[Ref]
    states: list[Ref]
    masks: list[Ref | None]  # of each x; empty where none is given
    constant: Any = None  # what Keras 3 compares the first tensor with
    problem: str = ""  # why the call is not supported

    @property
    def refs(self) -> list[Ref]:
        return [*self.x, *self.states, *(mask for mask in self.masks if mask)]


def build_spec(
    config: Any, weights: LayerWeights, version: Version, where: str, outputs: Iterable[str] | None = None
) -> ModelSpec:
    """Convert a serialized model; ``outputs`` names the layers or tensors to keep, None keeps all outputs.

    Raises
    ------
    FormatError
        The configuration is damaged or does not fit the weights, or there is no such output.
    UnsupportedError
        It needs layers that are not supported; one error names all of them.
    """
    class_name, inner = _model_config(config)
    if class_name not in MODELS:
        raise UnsupportedError(
            f"{where}: a model of class {short(class_name)}, supported are {', '.join(MODELS)}; take the parts that are,"
            " or single layers with load_layers()"
        )
    graph = _Graph(version, where)
    model = graph.parse(class_name, inner, weights, is_top=True)
    scope = _Scope(graph, model, "", None)
    if outputs is None:
        wanted = model.outputs
        scope.evaluate(model.inputs)
    else:
        wanted = [ref for name in ([outputs] if isinstance(outputs, str) else outputs) for ref in _select(model, name)]
    values = scope.evaluate(wanted)
    graph.raise_problems()
    nodes, tensors = _name_outputs(graph.nodes, [ref.name for ref in scope.expanded(wanted)], values)
    used = {name for n in nodes for name in n.inputs} | {tensor.name for tensor in tensors}
    inputs = [
        Tensor(value.name, value.shape, _input_dtype(value.name, model.layers[ref.layer].config, nodes))
        for ref in model.inputs
        for value in scope.known(ref)
        if outputs is None or value.name in used
    ]
    _check_leftovers(model, scope, weights, where)
    spec = ModelSpec(nodes, inputs, tensors, source=where)
    spec.validate()
    return spec


def layer_spec(serialized: Any, weights: LayerWeights, version: Version, where: str) -> ModelSpec:
    """Convert one serialized layer; its input is called x.  A recurrent layer also gives its final state.

    Raises
    ------
    FormatError, UnsupportedError
        As for a whole model.
    """
    class_name, config = class_and_config(serialized, "the layer")
    shape = section(serialized, "build_config", {}).get("input_shape") if serialized.get("build_config") else None
    name = str(config.get("name") or class_name)
    graph = _Graph(version, where)
    layer = _Layer(name, class_name, {**config, "return_state": False}, weights)
    values = graph.convert(layer, name, [input_value("x", {"batch_shape": shape})], []) or []
    graph.raise_problems()
    nodes, outputs = _name_outputs(graph.nodes, [name], values)
    first, last = nodes[0], nodes[-1]
    x = Tensor("x", None if shape is None else input_value("x", {"batch_shape": shape}).shape, _input_dtype("x", {}, nodes))
    if class_name in RECURRENT:
        x = replace(x, shape=(None, None, first.weights["weight_ih_l0"].shape[1]))
        last.outputs = (name, *(f"{name}/{kind}_n" for kind in ("hc" if last.op == "lstm" else "h")))
    _raise_leftovers(weights, where)
    spec = ModelSpec(nodes, [x], outputs, nested_state=class_name in RECURRENT and len(nodes) == 1, source=where)
    spec.validate()
    return spec


def find_layers(config: Any, weights: LayerWeights, version: Version, where: str, names: Iterable[str]) -> dict[str, Any]:
    """The serialized form and the weights of some layers of a model, by name."""
    class_name, inner = _model_config(config)
    model = _Graph(version, where).parse(class_name, inner, weights, is_top=True)
    missing = [name for name in names if name not in model.layers]
    if missing:
        raise FormatError(f"{where}: no layer is called {name_list(missing)}; its layers: {name_list(model.layers)}")
    return {name: model.layers[name] for name in names}


class _Graph:
    """The nodes of a model and of the models nested in it, and what stands in the way of running them."""

    def __init__(self, version: Version, where: str):
        self.version, self.where = version, where
        self.nodes: list[Node] = []
        self.problems: dict[str, str] = {}
        self._calls = 0

    def parse(self, class_name: str, config: Config, weights: LayerWeights, is_top: bool = False) -> _Model:
        """Read the layers of a model and find their weights."""
        model = _sequential(config) if class_name == "Sequential" else _functional(config)
        # Operations such as a sum are in the list, but Keras does not count them among the layers.
        layers = [layer for layer in model.layers.values() if ".ops." not in layer.class_name]
        names = [(layer.class_name.rpartition(">")[2], layer.name) for layer in layers]
        for layer, part in zip(layers, layer_weights(names, weights, is_top), strict=True):
            layer.weights = part
        return model

    def count_call(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise FormatError(f"{self.where}: more than {MAX_CALLS} calls of layers; the configuration is damaged")

    def convert(
        self, layer: _Layer, name: str, x: list[Value], states: list[Value], problem: str = ""
    ) -> list[Value] | None:
        """Convert a call of a layer; None, and a problem, where that is not possible."""
        try:
            if layer.class_name not in CONVERTERS:
                raise UnsupportedError("this class is not supported")
            if problem or len(x) != 1:
                raise UnsupportedError(problem or f"it is called with {len(x)} tensors, expected 1")
            if layer.weights is None:
                raise FormatError("it has no weights")
            call = Call(name, layer.class_name, layer.config, layer.weights, self.version, x[0], tuple(states))
            nodes, values = CONVERTERS[layer.class_name](call)
        except UnsupportedError as error:
            self.problems[name] = f"{layer.class_name} {layer.name!r}: {error}"
            return None
        except FormatError as error:
            raise FormatError(f"{self.where}: {layer.class_name} {layer.name!r}: {error}") from None
        if not layer.shared:
            layer.shared = [n.weights for n in nodes]
        for new, first in zip(nodes, layer.shared, strict=True):  # further calls share the arrays
            new.weights = first
        self.nodes += nodes
        return values

    def raise_problems(self) -> None:
        """One error for all layers that cannot be run."""
        if self.problems:
            lines = "\n  ".join(self.problems.values())
            raise UnsupportedError(
                f"{self.where}: {len(self.problems)} layer(s) cannot be run:\n  {lines}\nSupported are"
                f" {', '.join(CONVERTERS)}. Replace the others in Keras, or load only what works: outputs=[layer, ...]."
            )


class _Scope:
    """The calls of one model (or of one call of a nested model) and their values."""

    def __init__(self, graph: _Graph, model: _Model, prefix: str, feeds: list[Value] | None):
        self._graph, self._model, self._prefix = graph, model, prefix
        self._feeds = {ref.layer: value for ref, value in zip(model.inputs, feeds or [])}  # noqa: B905
        self._values: dict[tuple[str, int], list[Value] | None] = {}

    @property
    def visited(self) -> set[str]:
        """Names of the layers that were called."""
        return {layer for layer, _ in self._values}

    def evaluate(self, refs: list[Ref]) -> list[Value]:
        """Convert all calls that ``refs`` need and return their values."""
        pending, opened = [ref[:2] for ref in reversed(refs)], set()
        while pending:
            key = pending[-1]
            needed = [] if key in self._values else [ref[:2] for ref in self._call(key).refs]
            if missing := [dependency for dependency in needed if dependency not in self._values]:
                if key in opened:
                    raise FormatError(f"{self._graph.where}: layer {short(key[0])} depends on itself; the file is damaged")
                opened.add(key)
                pending += reversed(missing)
                continue
            pending.pop()
            if key not in self._values:
                self._values[key] = self._run(*key)
        return [value for ref in refs for value in self.known(ref)]

    def known(self, ref: Ref) -> list[Value]:
        """The values of an evaluated reference; none if it was not evaluated, a stand-in if it could not be."""
        if ref[:2] not in self._values:
            return []
        values = self._values[ref[:2]]
        if values is None:
            return [Value(ref.name)]
        if ref.tensor is None:
            return values
        if ref.tensor == MASK:
            return [Value(values[0].mask)]
        if not 0 <= ref.tensor < len(values):
            raise FormatError(
                f"{self._graph.where}: output {ref.tensor} of layer {short(ref.layer)} is used, it has {len(values)}"
            )
        return [values[ref.tensor]]

    def expanded(self, refs: list[Ref]) -> list[Ref]:
        """The evaluated references, those to all outputs of a call one by one."""
        return [
            ref._replace(tensor=k) if ref.tensor is None else ref for ref in refs for k in range(len(self.known(ref)))
        ]

    def _call(self, key: tuple[str, int]) -> _Arguments:
        layer = self._model.layers.get(key[0])
        if layer is not None and layer.class_name == "InputLayer" and key[1] == 0:
            return _Arguments([], [], [])
        if layer is None or key not in self._model.arguments:
            raise FormatError(f"{self._graph.where}: call {key[1]} of layer {short(key[0])} is used, which does not exist")
        return self._model.arguments[key]

    def _run(self, name: str, call: int) -> list[Value] | None:
        graph, layer, arguments = self._graph, self._model.layers[name], self._call((name, call))
        graph.count_call()
        if layer.class_name == "InputLayer":
            if name in self._feeds:
                return [self._feeds[name]]
            try:
                return [input_value(self._prefix + name, layer.config)]
            except UnsupportedError as error:
                graph.problems[self._prefix + name] = f"InputLayer {name!r}: {error}"
                return None
        full_name = self._prefix + Ref(name, call, 0).name
        x, states = ([value for ref in refs for value in self.known(ref)] for refs in (arguments.x, arguments.states))
        for k, mask in enumerate(arguments.masks):
            if mask:
                x[k] = replace(x[k], mask=self.known(mask)[0].name)
        if layer.class_name not in MODELS:
            return graph.convert(layer, full_name, x, states, arguments.problem)
        if layer.model is None:
            assert layer.weights is not None
            layer.model = graph.parse(layer.class_name, layer.config, layer.weights)
        if len(layer.model.inputs) != len(x):
            raise FormatError(
                f"{graph.where}: model {name!r} is called with {len(x)} tensors, it has {len(layer.model.inputs)} inputs"
            )
        return _Scope(graph, layer.model, f"{full_name}/", x).evaluate(layer.model.outputs)


def _model_config(config: Any) -> tuple[str, Config]:
    """Class and configuration of a model, from what it is saved as or from its ``get_config()``."""
    if isinstance(config, dict) and "class_name" not in config:
        class_name = "Functional" if "input_layers" in config else "Sequential"
        return class_name, config
    return class_and_config(config, "the model")


def _layer_list(config: Config) -> list[tuple[dict[str, Any], _Layer]]:
    stored = config.get("layers")
    if not isinstance(stored, list) or len(stored) > MAX_CALLS:
        raise FormatError(f"'layers' is {short(stored)}, expected a list of at most {MAX_CALLS}; the configuration is damaged")
    result = []
    for item in stored:
        class_name, inner = class_and_config(item, "a layer")
        name = text(item.get("name", inner.get("name")), "the name of a layer")
        if len(name) > MAX_NAME_LENGTH:
            raise FormatError(f"the name {short(name)} is longer than {MAX_NAME_LENGTH} characters")
        result.append((item, _Layer(name, class_name, inner)))
    names = [layer.name for _, layer in result]
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) != len(names) else set():
        raise FormatError(f"several layers are called {name_list(twice)}; the configuration is damaged")
    return result


def _sequential(config: Config) -> _Model:
    """A chain: each layer is called once, with the output of the one before."""
    layers = [layer for _, layer in _layer_list(config)]
    if not layers:
        raise FormatError("a Sequential model without layers; add some in Keras")
    if layers[0].class_name != "InputLayer":
        first = layers[0].config
        shape = first.get("batch_input_shape", first.get("batch_shape", config.get("build_input_shape")))
        name = f"{layers[0].name}_input"
        layers.insert(0, _Layer(name, "InputLayer", {"name": name, "batch_shape": shape}))
    refs = [Ref(layer.name, 0, 0) for layer in layers]
    arguments = {(layer.name, 0): _Arguments([ref], [], []) for ref, layer in zip(refs, layers[1:], strict=False)}
    return _Model({layer.name: layer for layer in layers}, refs[:1], refs[-1:], arguments)


def _functional(config: Config) -> _Model:
    layers, arguments = {}, {}
    offsets: dict[str, tuple[int, int]] = {}  # what to subtract from numbers of calls, in arguments and in outputs
    inputs, outputs = (_legacy_refs(config.get(key)) for key in ("input_layers", "output_layers"))
    for item, layer in _layer_list(config):
        calls = item.get("inbound_nodes", [])
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            raise FormatError(f"'inbound_nodes' of {short(layer.name)} is {short(calls)}, expected a list of calls")
        layers[layer.name] = layer
        calls = [call for call in calls if call]
        arguments |= {(layer.name, k): _arguments(call, layer.class_name, layer.name) for k, call in enumerate(calls)}
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
        outputs = [ref._replace(call=ref.call - offsets.get(ref.layer, (0, 0))[1]) for ref in outputs]
        for given in arguments.values():
            for refs in (given.x, given.states, given.masks):
                refs[:] = [ref and ref._replace(call=ref.call - offsets.get(ref.layer, (0, 0))[0]) for ref in refs]
    model = _Model(layers, inputs, outputs, arguments)
    _find_masks(model)
    return model


def _find_masks(model: _Model) -> None:
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


def _operation(model: _Model, kind: str, ref: Ref | None) -> _Arguments | None:
    """What an operation of Keras 3 gets, if ``ref`` is its result."""
    layer = model.layers.get(ref.layer) if ref else None
    if ref is None or layer is None or layer.class_name.rpartition(">")[2] != kind:
        return None
    return model.arguments.get(ref[:2])


def _legacy_refs(value: Any) -> list[Ref]:
    """References written as [layer, call, tensor], in lists and dicts."""
    if isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str):
        if not all(type(n) is int and n >= 0 for n in value[1:3]):
            raise UnsupportedError(f"a constant ({short(value)}) is an argument of a layer; make it a part of the input")
        return [Ref(value[0], value[1], value[2])]
    if isinstance(value, (list, dict)):
        return [ref for item in (value.values() if isinstance(value, dict) else value) for ref in _legacy_refs(item)]
    if value is None:
        return []
    raise FormatError(f"{short(value)} stands where a tensor is expected; the configuration is damaged")


def _refs(value: Any) -> list[Ref]:
    """References inside an argument of a call in Keras 3's form; other values have none."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        return _legacy_refs(section(value, "config").get("keras_history"))
    if isinstance(value, dict) and value.get("class_name") == "__tuple__":
        return _refs(value.get("items"))
    if isinstance(value, (list, dict)):
        return [ref for item in (value.values() if isinstance(value, dict) else value) for ref in _refs(item)]
    return []


def _arguments(call: Any, class_name: str, name: str) -> _Arguments:
    """The tensors of a call: Keras 2 lists references, Keras 3 has args and kwargs."""
    recurrent = class_name in RECURRENT
    if isinstance(call, dict):
        args, kwargs = call.get("args"), call.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise FormatError(f"a call of {short(name)} is {short(call)}; the configuration is damaged")
        names = ("inputs", "initial_state", "mask", "training") if recurrent else ("inputs", "training", "mask")
        given = {**dict(zip(names, args)), **kwargs}  # noqa: B905
        given["inputs"] = [given.pop(name) for name in ("inputs", "sequences") if name in given] + args[len(names) :]
        read, constant = _refs, args[1] if len(args) == 2 else None
    else:
        given = _legacy_kwargs(call, name)
        read, constant = _legacy_refs, None
    x = _refs(given.pop("inputs")) if isinstance(call, dict) else _legacy_refs(call)
    states = read(given.pop("initial_state", None))
    mask = given.pop("mask", None)
    if recurrent and not states:  # Keras 2 appends the initial states to the inputs
        x, states = x[:1], x[1:]
    training = given.pop("training", None)
    others = [key for key, value in given.items() if value is not None]
    problem = "it is called with training=True, which makes its result random" if training is True else ""
    problem = f"it is called with the arguments {name_list(others)}" if others else problem
    masks: list[Ref | None] = []
    if read(mask):
        several = isinstance(mask, list) and len(x) > 1 and len(mask) == len(x)
        masks = [next(iter(read(item)), None) for item in (mask if several else [mask])]
    if len(masks) > len(x) or len(read(mask)) > len(x):
        problem, masks = f"it is called with {len(read(mask))} masks for {len(x)} tensors", []
    return _Arguments(x, states, masks, constant, problem)


def _legacy_kwargs(call: Any, name: str) -> dict[str, Any]:
    """The keyword arguments of a call in Keras 2's form, which stand with its first tensor."""
    if not isinstance(call, list) or not call or not all(isinstance(item, list) for item in call):
        raise FormatError(f"a call of {short(name)} is {short(call)}, expected a list of tensors; the file is damaged")
    kwargs = call[0][3] if len(call[0]) > 3 else {}
    if not isinstance(kwargs, dict):
        raise FormatError(f"the arguments of a call of {short(name)} are {short(kwargs)}; the configuration is damaged")
    return dict(kwargs)


def _select(model: _Model, name: str) -> list[Ref]:
    """The tensors that a name stands for: one tensor, or all model outputs of a layer, or all outputs of a layer."""
    if found := [ref for ref in model.outputs if ref.layer == name]:
        return found
    if found := [ref for ref in model.outputs if ref.name == name]:
        return found
    layer, _, tensor = name.rpartition(":")
    if layer in model.layers and tensor.isdecimal():
        return [Ref(layer, 0, int(tensor))]
    if name not in model.layers:
        raise FormatError(f"there is no layer or output {name!r}; the layers are {name_list(model.layers)}")
    return [Ref(name, 0, None)]


def _name_outputs(nodes: list[Node], names: list[str], values: list[Value]) -> tuple[list[Node], list[Tensor]]:
    """Give the outputs the names of their layers, where a layer such as Dropout passes a tensor of another one on."""
    written = {name for n in nodes for name in n.outputs}
    taken = {value.name for name, value in zip(names, values, strict=True) if name == value.name}
    tensors = []
    for name, value in zip(names, values, strict=True):
        if name != value.name and value.name in written - taken:
            nodes = [_renamed(n, value.name, name) for n in nodes]
            values = [replace(v, name=name) if v.name == value.name else v for v in values]
            taken.add(name)
        elif name != value.name:
            nodes = [*nodes, node("activation", name, (value.name,), (name,), {})]
        tensors.append(Tensor(name, value.shape))
    return nodes, tensors


def _renamed(n: Node, old: str, new: str) -> Node:
    inputs, outputs = (tuple(new if name == old else name for name in names) for names in (n.inputs, n.outputs))
    return replace(n, inputs=inputs, outputs=outputs)


def _input_dtype(name: str, config: Config, nodes: list[Node]) -> str:
    readers = [n for n in nodes if name in n.inputs]
    if readers and all(n.op == "embedding" for n in readers):
        return "int64"
    return "bool" if config.get("dtype") == "bool" else "float32"


def _check_leftovers(model: _Model, scope: _Scope, weights: LayerWeights, where: str) -> None:
    for layer in model.layers.values():
        if layer.name not in scope.visited and layer.weights is not None:
            layer.weights.drop()
    _raise_leftovers(weights, where)


def _raise_leftovers(weights: LayerWeights, where: str) -> None:
    """Tensors that no layer asked for are an error that names all of them."""
    if left := {stored.name for stored in weights.found.values()} - weights.used:
        raise FormatError(
            f"{where}: {len(left)} weight(s) belong to no layer of the configuration: {name_list(left)}; do the"
            " configuration and the weights belong together?"
        )
