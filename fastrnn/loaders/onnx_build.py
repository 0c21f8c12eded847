"""An ONNX graph -> ModelSpec: scopes of names, constants, bodies, called functions, and the problems of all nodes.

A node that cannot be converted leaves a placeholder, so that only those that the outputs need are problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FastrnnError, FormatError, UnsupportedError
from ..spec import Graph, Node, Tensor
from .files import name_list, short
from .limits import MAX_EXPANSION, MAX_NAME_LENGTH, MAX_NESTING, MAX_NODES
from .onnx_control import CONTROL_FLOW
from .onnx_file import OnnxFile, all_graphs, opset_versions
from .onnx_fold import Folder
from .onnx_node import TEMPORARY, Call, Dynamic, Value
from .onnx_ops import CONVERTERS
from .onnx_recurrent import RECURRENT
from .onnx_schema import check_schema, check_version, declared, is_untaken, other_domain
from .onnx_slow import slow

PROBLEM = "problem"
"""The op of a placeholder, whose attributes hold what is wrong and with which operator."""


@dataclass
class Scope:
    """Names that nodes may read, and the list that they are emitted into."""

    nodes: list[Node]
    opsets: dict[str, int]
    around: Scope | None = None
    exact: bool = False  # tensors keep the names of the file
    depth: int = 0
    values: dict[str, Value] = field(default_factory=dict)
    declared: dict[str, tuple[tuple[int | None, ...] | None, str]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # attributes of the call of a function

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.around
        return None

    def inner(self, nodes: list[Node], **changes: Any) -> Scope:
        """The scope of a body."""
        if self.depth >= MAX_NESTING:
            raise FormatError(f"bodies and functions, more than {MAX_NESTING} deep; the file is damaged")
        options = {"opsets": self.opsets, "around": self, "given": self.given, **changes}
        return Scope(nodes, depth=self.depth + 1, **options)


class Builder:
    """Converts one model, for its own outputs or for those asked for: tensors, or nodes for all their outputs."""

    def __init__(self, file: OnnxFile, outputs: Sequence[str] | None = None):
        self.file, graph = file, file.model.graph
        self.is_whole = outputs is None
        self.outputs = list(dict.fromkeys(t.name for t in graph.output) if outputs is None else _chosen(graph, outputs))
        self.constants: dict[str, np.ndarray] = {}
        self.folder = Folder(file.size)
        self.functions = {(f.domain, f.name, f.overload): f for f in file.model.functions}
        self._count = 0
        self._constant_names: dict[int, Value] = {}
        self._tensors = set[str]()  # names in use
        self._nodes = set[str]()
        self._repeats: Counter[str] = Counter()
        self._read = set(self.outputs)
        stored = 0
        for part in all_graphs(file.model):
            stored += len(part.node)
            _check_names(part)
            self._read.update(name for node in part.node for name in node.input)
            self._read.update(getattr(v, "name", v) for v in part.output)
        self._most = min(MAX_NODES, MAX_EXPANSION * (stored + 64))
        self.top = Scope([], file.opsets, exact=True)
        self._tensors.update(t.name for t in (*graph.initializer, *graph.input))
        self._tensors.update(name for node in graph.node for name in node.output)

    # Names and constants: what a Call asks for.

    def unique(self, name: str, used: set[str]) -> str:
        """``name``, or with a number where it is in use."""
        result = name = name[:MAX_NAME_LENGTH]
        while result in used or not result:
            self._repeats[name] += 1
            result = f"{name}@{self._repeats[name]}"
        used.add(result)
        return result

    def new_constant(self, array: np.ndarray, name: str) -> Value:
        array = _narrow(array)
        return Value(self.unique(name, self._tensors), array.dtype.name, array.ndim, array)

    def read(self, value: Value) -> str:
        """The name of a value as a tensor of the spec."""
        if value.array is not None:
            self.constants[value.name] = value.array
        return value.name

    def fold(self, node: Node, inputs: Sequence[Value | None]) -> list[np.ndarray] | None:
        if not inputs or any(value is not None and value.array is None for value in inputs):
            return None
        return self.folder.fold(node, [None if value is None else value.array for value in inputs])

    def array(self, proto: Any, where: str) -> np.ndarray:
        return self.file.array(proto, where)

    # Graphs

    def build(self) -> None:
        graph = self.file.model.graph
        check_version(self.file.opsets, any(node.domain in ("", "ai.onnx") for node in graph.node))
        self._enter(graph, self.top)
        for proto in graph.input:
            if proto.name not in self.top.values:
                shape, dtype = declared(proto)
                if is_untaken(proto):
                    dtype = ""
                self._bind_name(self.top, proto.name, Value(proto.name, dtype, None if shape is None else len(shape)))
        self.convert(graph.node, self.top)

    def _enter(self, graph: Any, scope: Scope) -> None:
        """Initializers and declared types of a graph."""
        if len(graph.sparse_initializer):
            names = name_list(t.values.name for t in graph.sparse_initializer)
            raise UnsupportedError(f"sparse initializers {names} are not read; store them dense")
        for proto in graph.initializer:
            array = _narrow(self.array(proto, f"tensor {short(proto.name)}"))
            name = proto.name if scope.exact else self.unique(proto.name, self._tensors)
            self._bind_name(scope, proto.name, Value(name, array.dtype.name, array.ndim, array))
        for proto in (*graph.value_info, *graph.output):
            scope.declared[proto.name] = declared(proto)

    def _bind_name(self, scope: Scope, name: str, value: Value) -> None:
        if name in scope.values:
            raise FormatError(f"tensor {short(name)} is defined twice; the file is damaged")
        if len(name) > MAX_NAME_LENGTH:
            raise FormatError(
                f"the name {short(name)} has {len(name)} characters, at most {MAX_NAME_LENGTH}; shorten it"
            )
        scope.values[name] = value

    def body(self, graph: Any, scope: Scope, inputs: Sequence[Value]) -> tuple[Graph, list[Value]]:
        """A body as a graph; ``inputs`` say the types of those that do not declare one."""
        nodes: list[Node] = []
        inner = scope.inner(nodes)
        if len(graph.input) != len(inputs):
            raise FormatError(f"its body has {len(graph.input)} inputs, expected {len(inputs)}; the file is damaged")
        tensors = []
        for proto, like in zip(graph.input, inputs):
            shape, dtype = declared(proto)
            typed = proto.type.HasField("tensor_type") and proto.type.tensor_type.elem_type
            rank = like.rank if shape is None else len(shape)
            value = Value(self.unique(proto.name, self._tensors), dtype if typed else like.dtype, rank)
            self._bind_name(inner, proto.name, value)
            tensors.append(Tensor(value.name, shape, value.dtype))
        self._enter(graph, inner)
        self.convert(graph.node, inner)
        outputs, own = [], {name for node in nodes for name in node.outputs} | {t.name for t in tensors}
        for proto in graph.output:
            value = self.output(inner, proto.name)
            if value.name not in own:  # of the graph around it, or there already
                copy = Value(self.unique(f"{proto.name}", self._tensors), value.dtype, value.rank)
                nodes.append(Node("identity", self.node_name("Identity"), (self.read(value),), (copy.name,)))
                value = copy
            own.discard(value.name)
            outputs.append(value)
        results = [Tensor(value.name, None, value.dtype) for value in outputs]
        return Graph(nodes, tensors, results), outputs

    def inline(self, graph: Any, scope: Scope) -> list[Value]:
        """Convert a body into the list of the nodes around it; returns its outputs."""
        inner = scope.inner(scope.nodes)
        self._enter(graph, inner)
        self.convert(graph.node, inner)
        return [self.output(inner, proto.name) for proto in graph.output]

    def output(self, scope: Scope, name: str) -> Value:
        value = scope.find(name)
        if value is None:
            raise FormatError(f"output {short(name)} is written by no node; the file is damaged")
        return value

    # Nodes

    def node_name(self, name: str) -> str:
        return self.unique(name, self._nodes)

    def convert(self, protos: Iterable[Any], scope: Scope) -> None:
        for proto in protos:
            self._count += 1
            if self._count > self._most:
                raise FormatError(
                    f"more than {self._most} nodes, those of bodies and functions included; split the model"
                )
            self._convert_node(proto, scope)

    def _convert_node(self, proto: Any, scope: Scope) -> None:
        name = self.node_name(proto.name or proto.op_type)
        inputs = [scope.find(t) if t else None for t in proto.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {a.name: scope.given.get(a.ref_attr_name) if a.ref_attr_name else a for a in proto.attribute}
        attributes = {key: a for key, a in attributes.items() if a is not None}
        wanted = [bool(t) and t in self._read for t in proto.output]
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        version = scope.opsets.get(domain, 0)
        call = Call(self, name, proto.op_type, version, inputs, wanted, attributes, proto)
        try:
            absent = [t for t in proto.input if t and scope.find(t) is None]
            if absent:
                raise FormatError(f"reads {name_list(absent)}, which nothing before it writes; the file is damaged")
            untaken = [value.name for value in inputs if value is not None and not value.dtype]
            if untaken:
                raise UnsupportedError(
                    f"reads {name_list(untaken)}: strings, sequences, complex numbers and numbers below 8 bits are"
                    " not taken"
                )
            function = self.functions.get((proto.domain, proto.op_type, proto.overload))
            results: Sequence[Value | None]
            if function is not None:
                results = self._call_function(function, call, scope)
            else:
                results = self._convert_call(call, domain, scope)
        except (UnsupportedError, FormatError) as error:
            call.nodes, results = self._placeholder(call, error)
        except (FastrnnError, ArithmeticError, ValueError, IndexError, TypeError) as error:
            call.nodes, results = self._placeholder(call, FormatError(f"{error}; the file is damaged"))
        self._bind(call, results, scope)

    def _convert_call(self, call: Call, domain: str, scope: Scope) -> Sequence[Value | None]:
        if domain:
            raise UnsupportedError(f"is of the domain {short(domain)}, {other_domain(domain, call.op_type)}")
        call.schema = check_schema(call)
        if call.op_type in CONTROL_FLOW:
            return CONTROL_FLOW[call.op_type](call, self, scope)
        try:
            converter = CONVERTERS.get(call.op_type, slow)
            results = converter(call)
        except Dynamic:
            call.nodes.clear()
            results = slow(call)
        return [results] if isinstance(results, Value) else list(results)

    def _call_function(self, function: Any, call: Call, scope: Scope) -> list[Value]:
        """The nodes of a function of the file, in place of its call."""
        if len(call.inputs) > len(function.input) or len(call.wanted) > len(function.output):
            raise FormatError(f"the function {short(function.name)} is called with too many inputs or outputs")
        given = {a.name: a for a in function.attribute_proto} | call.attributes
        changes = {"opsets": opset_versions(function.opset_import), "around": None, "given": given}
        inner = scope.inner(scope.nodes, **changes)
        inner.values = {name: value for name, value in zip(function.input, call.inputs) if value is not None}
        self.convert(function.node, inner)
        return [self.output(inner, name) for name in function.output[: len(call.wanted)]]

    def _placeholder(self, call: Call, error: FastrnnError) -> tuple[list[Node], list[Value]]:
        """A node that stands for a problem; whoever needs its outputs has that problem."""
        read = tuple(value.name for value in call.inputs if value is not None and value.array is None)
        names = tuple(f"{TEMPORARY}{k}" for k in range(len(call.wanted)))
        problem = {PROBLEM: str(error), "kind": call.op_type, "damaged": isinstance(error, FormatError)}
        return [Node(PROBLEM, call.name, read, names, problem)], [Value(name) for name in names]

    def _bind(self, call: Call, results: Sequence[Value | None], scope: Scope) -> None:
        """Give the outputs of a node their names in the file."""
        made = {name for node in call.nodes for name in node.outputs}
        inside = [graph for node in call.nodes for graph in node.graphs.values()] if call.op_type in RECURRENT else []
        made.update(t.name for graph in inside for t in graph.inputs)
        made.update(name for graph in inside for node in graph.nodes for name in node.outputs)
        renamed: dict[str, str] = {}
        for name, value in zip(call.proto.output, results):
            if not name or value is None:
                continue
            if value.name in made and value.name not in renamed:
                renamed[value.name] = name if scope.exact else self.unique(name, self._tensors)
            elif any(value is constant for constant in call.made) and value.name not in self.constants:
                value.name = name if scope.exact else self.unique(name, self._tensors)
            final = Value(renamed.get(value.name, value.name), value.dtype, value.rank, value.array)
            if final.rank is None and (shape := scope.declared.get(name, (None, ""))[0]) is not None:
                final.rank = len(shape)
            self._bind_name(scope, name, final)
        for name in made - renamed.keys():
            renamed[name] = self.unique(name.removeprefix(TEMPORARY), self._tensors)
        main = next((n for n in call.nodes if n.weights or n.graphs), call.nodes[-1] if call.nodes else None)
        for node in (*call.nodes, *(node for graph in inside for node in graph.nodes)):
            node.inputs = tuple(renamed.get(t, t) for t in node.inputs)
            node.outputs = tuple(renamed.get(t, t) for t in node.outputs)
            if node is not main:
                node.name = self.node_name(f"{call.name}/{node.op}")
        for graph in inside:
            graph.inputs = [Tensor(renamed[t.name], t.shape, t.dtype) for t in graph.inputs]
            graph.outputs = [Tensor(renamed[t.name], t.shape, t.dtype) for t in graph.outputs]
        scope.nodes += call.nodes


def _check_names(graph: Any) -> None:
    """Protobuf gives bytes for a text that is not UTF-8."""
    values = (*graph.input, *graph.output, *getattr(graph, "initializer", ()))
    names = [getattr(v, "name", v) for v in values]
    names += [t for node in graph.node for t in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    if not all(isinstance(name, str) for name in names):
        raise FormatError("a name is not UTF-8; the file is damaged")


def _chosen(graph: Any, outputs: Sequence[str]) -> dict[str, None]:
    """The tensors that names of tensors and nodes stand for."""
    tensors = {t.name for t in (*graph.input, *graph.initializer)} | {t for node in graph.node for t in node.output}
    nodes = {node.name: node.output for node in graph.node if node.name}
    unknown = [name for name in outputs if not name or (name not in tensors and name not in nodes)]
    if unknown:
        known = name_list({*nodes, *tensors} - {""})
        raise FormatError(f"no tensors or nodes called {name_list(unknown)} in the model; known: {known}")
    return dict.fromkeys(t for name in outputs for t in ([name] if name in tensors else nodes[name]) if t)


_LARGEST = float(np.finfo(np.float32).max)


def _narrow(array: np.ndarray) -> np.ndarray:
    """Every floating-point array is float32; what is finite stays finite."""
    if array.dtype.kind != "f" or array.dtype == np.float32:
        return array
    if array.dtype.itemsize > 4:
        array = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array)
    return array.astype(np.float32)
