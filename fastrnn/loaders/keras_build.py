"""The :class:`~fastrnn.spec.ModelSpec` of a Keras model or layer.

A model is walked from its outputs, so only the layers that they need are converted.  Masks, which Keras attaches to
tensors behind the scenes, become tensors of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FormatError, ShapeError, UnsupportedError
from ..spec import GATES, ModelSpec, Node, Tensor
from .files import name_list, short
from .keras_config import MODELS, Call, Config, Converted, UnknownShapeError, Value, class_and_config, node, section
from .keras_file import LayerWeights, Version
from .keras_graph import MASK, Arguments, Layer, Model, Ref, classes_in, parse_model, refs_in, run_order, with_refs
from .keras_layers import CONVERTERS, RECURRENT, SEVERAL, UNSUPPORTED, input_value
from .keras_masks import keeps_mask, masks_of_call, returns_its_input, unmasks
from .keras_operations import is_operation, operation
from .limits import MAX_CALL_NODES, MAX_CALLS


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
    model = parse_model(config, weights, is_top=True)
    graph = _Graph(version)
    scope = _Scope(graph, model, "", None)
    if outputs is None:
        wanted = model.outputs
        scope.evaluate(model.inputs)
    else:
        wanted = [ref for name in ([outputs] if isinstance(outputs, str) else outputs) for ref in _select(model, name)]
        if not wanted:
            raise FormatError(f"outputs= is empty; name some of {name_list(model.layers)}")
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
    for layer in model.layers.values():
        if layer.name not in scope.visited and layer.weights is not None:
            layer.weights.drop()
    _check_leftovers(weights)
    spec = ModelSpec(nodes, inputs, tensors, _used(graph.constants, nodes, tensors), source=where)
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
    name = str(config.get("name") or class_name)
    if class_name in SEVERAL:
        raise UnsupportedError(f"{class_name} {name!r} takes several tensors; load the model that calls it")
    x = input_value("x", {"batch_shape": section(serialized, "build_config", {}).get("input_shape")})
    graph = _Graph(version)
    config = _without_states(config)
    call = Call(name, class_name, config, weights, version, (x,), inner=graph.inner(name))
    values = graph.convert(Layer(name, class_name, config, weights), call)
    graph.raise_problems()
    values = values or []
    names = [name + (f":{k}" if k else "") for k in range(len(values))]
    nodes, outputs = _name_outputs(graph.nodes, names, values)
    if class_name in RECURRENT:
        first = next(n for n in nodes if n.op in GATES)
        x = Value("x", (None, None, first.weights["weight_ih_l0"].shape[1]))
    if nodes and nodes[-1].op in GATES:
        nodes[-1].outputs = (name, *(f"{name}/{kind}_n" for kind in ("hc" if nodes[-1].op == "lstm" else "h")))
    _check_leftovers(weights)
    inputs = [Tensor("x", x.shape, _input_dtype("x", {}, nodes))]
    single = class_name in RECURRENT and len(nodes) == 1
    spec = ModelSpec(nodes, inputs, outputs, _used(graph.constants, nodes, outputs), nested_state=single, source=where)
    spec.validate()
    return spec


def find_layers(
    config: Any, weights: LayerWeights, names: list[str]
) -> tuple[dict[str, tuple[dict[str, Any], LayerWeights]], list[str]]:
    """The serialized form and the weights of some layers of a model, by name; and the names of all layers."""
    layers = parse_model(config, weights, is_top=True).layers
    found = {
        name: ({"class_name": layer.class_name, "config": layer.config, "build_config": layer.build}, layer.weights)
        for name, layer in layers.items()
        if name in names and layer.weights is not None
    }
    return found, list(layers)


def _without_states(config: Config) -> Config:
    """The configuration of a layer, and of those that it wraps, with return_state false."""
    wrapped = {
        key: {**config[key], "config": {**section(config[key], "config"), "return_state": False}}
        for key in ("layer", "backward_layer")
        if isinstance(config.get(key), dict)
    }
    return {**config, **wrapped, "return_state": False}


class _Graph:
    """The nodes of a model and of the models nested in it, and what stands in the way of running them."""

    def __init__(self, version: Version):
        self.version = version
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.problems: dict[str, str] = {}
        self.masks: dict[str, Value | None] = {}  # where another one was attached since the tensor was made
        self._calls = 0

    def mask_of(self, value: Value) -> Value | None:
        """The mask that is attached to a tensor now."""
        return self.masks.get(value.identity, value.mask)

    def constant(self, name: str, array: np.ndarray) -> Value:
        """A tensor that a layer is called with, and that never changes."""
        if not array.ndim:
            raise FormatError(
                f"{name!r} is a number, expected a tensor with a batch axis; the configuration is damaged"
            )
        self.constants[name] = array.astype(np.float32)
        return Value(name, array.shape)

    def count_call(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise FormatError(f"more than {MAX_CALLS} calls of layers; the configuration is damaged")

    def convert(self, layer: Layer, call: Call, problem: str = "", complete: bool = True) -> list[Value] | None:
        """Convert a call of a layer; None, and a problem, where that is not possible.

        What lacks an input, because it is not ``complete``, shows only the problems of its own.
        """
        try:
            part = self._converted(layer, call, problem)
        except UnsupportedError as error:
            if complete or not isinstance(error, UnknownShapeError):
                self.problems[call.name] = f"{layer.class_name} {layer.name!r}: {error}"
            return None
        except (FormatError, ShapeError) as error:
            if not complete:
                return None
            raise type(error)(f"{layer.class_name} {layer.name!r}: {error}") from None
        if not returns_its_input(layer.class_name, self.version):
            made = {name for n in part.nodes for name in n.outputs}
            for k, value in enumerate(part.values):
                if value.name not in made:
                    part.values[k] = replace(value, alias=f"{call.name}:{k}")
        for arrays in (*(n.weights for n in part.nodes), part.constants):
            arrays.update({name: _shared(layer, array) for name, array in arrays.items()})
        self.nodes += part.nodes
        self.constants |= part.constants
        if len(self.nodes) > MAX_CALL_NODES:
            raise FormatError(f"more than {MAX_CALL_NODES} operators; the configuration is damaged")
        return part.values

    def _converted(self, layer: Layer, call: Call, problem: str) -> Converted:
        name, several = layer.class_name, layer.class_name in SEVERAL
        if is_operation(name):
            return operation(call)
        if name not in CONVERTERS:
            raise UnsupportedError(UNSUPPORTED.get(name, "this class is not supported"))
        if problem or (len(call.inputs) != 1 and not several) or not call.inputs:
            raise UnsupportedError(problem or f"it is called with {len(call.inputs)} tensors, expected 1")
        if layer.weights is None:
            raise FormatError("it has no weights")
        part = CONVERTERS[name](call)
        if keeps_mask(name, self.version):
            part.values[0] = replace(part.values[0], mask=call.kept_mask)
        return part

    def inner(self, name: str) -> Callable[[str, Config, LayerWeights, Value], Converted]:
        """What converts the layer or model that a layer called ``name`` wraps."""

        def convert(class_name: str, config: Config, weights: LayerWeights, x: Value) -> Converted:
            self.count_call()
            path = f"{name}/{config.get('name') or class_name}"
            if class_name not in MODELS:
                layer = Layer(path, class_name, config, weights)
                call = Call(path, class_name, config, weights, self.version, _unmasked([x]), inner=self.inner(path))
                call = replace(call, masks=(x.mask,), kept=(x.mask,))
                return self._converted(layer, call, "")
            model = parse_model({"class_name": class_name, "config": config}, weights)
            nodes, constants, self.nodes, self.constants = self.nodes, self.constants, [], {}
            try:
                values = _Scope(self, model, f"{path}/", [x]).evaluate(model.outputs)
                return Converted(self.nodes, values, self.constants)
            finally:
                self.nodes, self.constants = nodes, constants

        return convert

    def raise_problems(self) -> None:
        """One error for all layers that cannot be run."""
        if self.problems:
            lines = "\n  ".join(self.problems.values())
            raise UnsupportedError(
                f"{len(self.problems)} layer(s) cannot be run:\n  {lines}\nSupported are {', '.join(CONVERTERS)},"
                " and arithmetic. Replace the others in Keras, or load only what works: outputs=[layer, ...]."
            )


def _shared(layer: Layer, array: np.ndarray) -> np.ndarray:
    """The array that a call of the layer before has, if it is equal."""
    for known in layer.shared:
        if known.shape == array.shape and known.dtype == array.dtype and np.array_equal(known, array):
            return known
    layer.shared.append(array)
    return array


class _Scope:
    """The calls of one model (or of one call of a nested model) and their values."""

    def __init__(self, graph: _Graph, model: Model, prefix: str, feeds: list[Value] | None):
        self._graph, self._model, self._prefix = graph, model, prefix
        self._feeds = {ref.layer: value for ref, value in zip(model.inputs, feeds or [])}
        self._values: dict[tuple[str, int], list[Value] | None] = {}
        self._order = run_order(model) if any(unmasks(name, graph.version) for name in classes_in(model)) else []

    @property
    def visited(self) -> set[str]:
        """Names of the layers that were called."""
        return {layer for layer, _ in self._values}

    def evaluate(self, refs: list[Ref]) -> list[Value]:
        """Convert all calls that ``refs`` need and return their values."""
        if self._order:
            self._run_in_order(refs)
        self._run_needed([ref[:2] for ref in reversed(refs)])
        return [value for ref in refs for value in self.known(ref)]

    def _run_in_order(self, refs: list[Ref]) -> None:
        """Convert the calls in Keras' order, in which some of them take masks off."""
        needed, pending = set(), [ref[:2] for ref in refs]
        while pending:
            key = pending.pop()
            if key not in needed:
                needed.add(key)
                pending += [ref[:2] for ref in self._call(key).refs]
        for key in self._order:
            if key in needed:
                self._run_needed([key])
            elif unmasks(self._model.layers[key[0]].class_name, self._graph.version):
                self._take_masks_off(self._call(key))

    def _run_needed(self, pending: list[tuple[str, int]]) -> None:
        """Convert these calls, the last one first, and before each of them those that it needs."""
        opened = set()
        while pending:
            key = pending[-1]
            needed = [] if key in self._values else [ref[:2] for ref in self._call(key).refs]
            if missing := [dependency for dependency in needed if dependency not in self._values]:
                if key in opened:
                    raise FormatError(f"layer {short(key[0])} depends on itself; the file is damaged")
                opened.add(key)
                pending += reversed(missing)
                continue
            pending.pop()
            if key not in self._values:
                self._values[key] = self._run(*key)

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
            assert values[0].mask is not None
            return [values[0].mask]
        if not 0 <= ref.tensor < len(values):
            raise FormatError(f"output {ref.tensor} of layer {short(ref.layer)} is used, it has {len(values)}")
        return [values[ref.tensor]]

    def expanded(self, refs: list[Ref]) -> list[Ref]:
        """The evaluated references, those to all outputs of a call one by one."""
        return [
            ref._replace(tensor=k) if ref.tensor is None else ref for ref in refs for k in range(len(self.known(ref)))
        ]

    def _call(self, key: tuple[str, int]) -> Arguments:
        layer = self._model.layers.get(key[0])
        if layer is not None and layer.class_name == "InputLayer" and key[1] == 0:
            return Arguments([])
        if layer is None or key not in self._model.arguments:
            raise FormatError(f"call {key[1]} of layer {short(key[0])} is used, which does not exist")
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
        x: list[Value] = []
        for given in arguments.x:
            x += self.known(given) if isinstance(given, Ref) else [graph.constant(f"{full_name}/input_{len(x)}", given)]
        states = [value for ref in arguments.states for value in self.known(ref)]
        named = [self.known(mask)[0] if mask else None for mask in arguments.masks]
        attached = [graph.mask_of(value) for value in x]
        read, kept = masks_of_call(layer.class_name, graph.version, attached, named, bool(states))
        if layer.class_name not in MODELS or arguments.problem:
            parts = (arguments.options, arguments.places)
            options, places = (with_refs(part, lambda ref: self.known(ref)[0]) for part in parts)
            weights = layer.weights or LayerWeights(True, {})
            call_of = Call(full_name, layer.class_name, layer.config, weights, graph.version, _unmasked(x))
            call_of = replace(call_of, states=tuple(states), masks=read, kept=kept, inner=graph.inner(full_name))
            call_of = replace(call_of, options=options, arguments=tuple(places))
            complete = all(self._values[ref[:2]] is not None for ref in arguments.refs)
            values = graph.convert(layer, call_of, arguments.problem, complete)
            if unmasks(layer.class_name, graph.version):
                self._take_masks_off(arguments)
            return values
        if layer.model is None:
            assert layer.weights is not None
            layer.model = parse_model({"class_name": layer.class_name, "config": layer.config}, layer.weights)
        if len(layer.model.inputs) != len(x):
            raise FormatError(
                f"model {name!r} is called with {len(x)} tensors, it has {len(layer.model.inputs)} inputs"
            )
        feeds = [replace(value, mask=mask) for value, mask in zip(x, read, strict=True)]
        if named:
            graph.masks |= {value.identity: value.mask for value in feeds if value.mask}
        return _Scope(graph, layer.model, f"{full_name}/", feeds).evaluate(layer.model.outputs)

    def _take_masks_off(self, arguments: Arguments) -> None:
        self._graph.masks |= {value.identity: None for ref in refs_in(arguments.x) for value in self.known(ref)}


def _unmasked(values: Iterable[Value]) -> tuple[Value, ...]:
    """Tensors without their masks, which a layer gets one by one."""
    return tuple(replace(value, mask=None) for value in values)


def _select(model: Model, name: str) -> list[Ref]:
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
    for k, name in enumerate(names):
        value = values[k]
        if name != value.name and value.name in written - taken:
            nodes = [_renamed(n, value.name, name) for n in nodes]
            values = [replace(v, name=name) if v.name == value.name else v for v in values]
            taken.add(name)
        elif name != value.name:
            nodes = [*nodes, node("activation", name, (value.name,), (name,), {})]
        tensors.append(Tensor(name, value.shape))
    return nodes, tensors


def _used(constants: dict[str, np.ndarray], nodes: list[Node], outputs: list[Tensor]) -> dict[str, np.ndarray]:
    read = {name for n in nodes for name in n.inputs} | {tensor.name for tensor in outputs}
    return {name: array for name, array in constants.items() if name in read}


def _renamed(n: Node, old: str, new: str) -> Node:
    inputs, outputs = (tuple(new if name == old else name for name in names) for names in (n.inputs, n.outputs))
    return replace(n, inputs=inputs, outputs=outputs)


def _input_dtype(name: str, config: Config, nodes: list[Node]) -> str:
    readers = [n for n in nodes if name in n.inputs]
    if any(n.op == "embedding" for n in readers):
        return "int64"
    return input_value(name, config).dtype


def _check_leftovers(weights: LayerWeights) -> None:
    """Tensors that no layer asked for are an error that names all of them."""
    if left := {stored.name for stored in weights.found.values()} - weights.used:
        raise FormatError(
            f"{len(left)} weight(s) belong to no layer of the configuration: {name_list(left)}; do the configuration"
            " and the weights belong together?"
        )
