"""Live PyTorch modules of any kind -> ModelSpec: capture forward, translate each call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from ..errors import FastrnnError, UnsupportedError
from ..spec import ModelSpec, Tensor
from . import torch_modules
from .torch_build import Builder, Ref
from .torch_examples import OTHER_SIZES, SIZES, Guess, guesses, matching, named, options, required
from .torch_ops import FUNCTIONS, function_names, kind_of
from .torch_trace import ExampleError, trace

_NO_RESULT = {"_assert", "manual_seed"}


def spec_of(module: Any, example_inputs: Any = None) -> ModelSpec:
    """Capture ``module.forward`` and describe it.

    Parameters
    ----------
    module : torch.nn.Module
        Taken as in ``eval()``.  Arguments with a default are left at it unless there is an example.
    example_inputs : tensor, tuple or mapping, optional
        What forward takes, for its ranks and dtypes; by default made from the layers that the arguments reach.

    Raises
    ------
    UnsupportedError
        It names all layers and calls that cannot be run, and the call that exports the module to ONNX.
    """
    try:
        if torch_modules.hooks(module):
            raise UnsupportedError("it has forward hooks; remove them first")
        if example_inputs is not None:
            return _of_example(module, example_inputs)
        return _of_guess(module)
    except UnsupportedError as error:
        raise UnsupportedError(f"{type(module).__name__}: {error}. {export_hint(module)}") from None


def export_hint(module: Any) -> str:
    """How to take the other way, through ONNX."""
    found = options(module, required(module), sure=True)
    likely = {name: guesses[0] if guesses else Guess(("batch",)) for name, guesses in found.items()}
    inputs = dict(_flat_guesses(likely))
    names = ", ".join(f'"{name}"' for name in inputs)
    axes = ", ".join(f'"{name}": {_free_axes(guess)}' for name, guess in inputs.items())
    arguments = ", ".join(found) + ("," if len(found) == 1 else "")
    file = f'"{type(module).__name__}.onnx"'
    return (
        f"Export it instead: torch.onnx.export({type(module).__name__}(...).eval(), ({arguments}), {file},"
        f" input_names=[{names}], dynamic_axes={{{axes}}}, dynamo=False), then fastrnn.load({file})"
    )


def _free_axes(guess: Guess) -> str:
    """The axes of an argument that vary, as torch.onnx.export takes them."""
    return "{" + ", ".join(f'{axis}: "{n}"' for axis, n in enumerate(guess.shape) if isinstance(n, str)) + "}"


def _of_example(module: Any, example_inputs: Any) -> ModelSpec:
    choices, examples = options(module, required(module)), named(module, example_inputs)
    try:
        traced = _traced(module, examples)
    except ExampleError as error:
        raise UnsupportedError(f"PyTorch cannot run it on example_inputs ({_line(error)})") from None
    shapes = {name: matching(example, choices.get(name, [])) for name, example in examples.items()}
    return _Translation(module, *traced, shapes).spec()


def _of_guess(module: Any) -> ModelSpec:
    choices = options(module, required(module))
    failures: list[Exception] = []
    for guess in guesses(choices):
        try:
            spec = _Translation(module, *_traced(module, _tensors(module, guess, SIZES)), guess).spec()
            _check_free(spec, module, guess)
            return spec
        except (ExampleError, _CaptureError) as error:
            failures.append(error)
    if isinstance(failures[0], _CaptureError):
        raise failures[0]
    raise UnsupportedError(
        "what its forward takes cannot be told from its layers; pass an example of its arguments:"
        f" fastrnn.from_torch(module, example_inputs=({', '.join(choices)},))"
        f" (the first guess failed at {_line(failures[0])})" + _also_refused(module)
    )


def _check_free(spec: ModelSpec, module: Any, guess: Mapping[str, Any]) -> None:
    """Refuse a spec that would be another one for other free sizes: the guessed ones mean nothing."""
    try:
        other = _Translation(module, *_traced(module, _tensors(module, guess, OTHER_SIZES)), guess).spec()
    except ExampleError:
        return  # layers fix the sizes
    pairs = zip_longest(spec.nodes, other.nodes)
    different = next((a or b for a, b in pairs if a is None or b is None or (a.op, a.attrs) != (b.op, b.attrs)), None)
    if different is not None:
        raise UnsupportedError(
            f"{different.name} depends on the size of an axis that is free; pass example_inputs= with the sizes that"
            " are always used"
        )


class _CaptureError(UnsupportedError):
    """torch.fx cannot capture the forward method, at least not on this example."""


def _also_refused(module: Any) -> str:
    """What else stands in the way."""
    refused, pending = [], list(module.named_children())
    while pending:
        path, part = pending.pop(0)
        if not torch_modules.is_leaf(part):
            pending += [(f"{path}.{name}", child) for name, child in part.named_children()]
        elif reason := torch_modules.refusal(part):
            refused.append(f"{path} ({reason})")
    return f"; cannot run {', '.join(refused)} either" if refused else ""


def _tensors(module: Any, guess: Any, free: Mapping[str, int]) -> Any:
    """Examples of guessed shapes in the precision of the module."""
    if isinstance(guess, Guess):
        floating = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), None)
        return guess.tensor(floating, free)
    if isinstance(guess, Mapping):
        return {name: _tensors(module, part, free) for name, part in guess.items()}
    return tuple(_tensors(module, part, free) for part in guess)


def _traced(module: Any, examples: Mapping[str, Any]) -> tuple[Any, list[str]]:
    try:
        return trace(module, examples)
    except (ExampleError, FastrnnError):
        raise
    except Exception as error:
        raise _CaptureError(
            f"its forward cannot be captured by torch.fx ({_line(error)}; control flow must not depend on the data)"
            + _also_refused(module)
        ) from None


def _line(error: BaseException) -> str:
    """The beginning of an error's message, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


class _Translation:
    """From the graph of calls to the spec."""

    def __init__(self, module: Any, graph: Any, refused: list[str], arguments: Mapping[str, Any]):
        self.module, self.graph = module, graph
        self.problems = list(refused)
        self.builder = Builder()
        self.values: dict[Any, Any] = {}
        self.names = function_names()
        self.guesses = dict(_flat_guesses(arguments))
        self.inputs: list[Tensor] = []
        self.result: Any = None
        self.in_a_row = torch_modules.class_name(module) == "Sequential"

    def spec(self) -> ModelSpec:
        for node in self.graph.nodes:
            self.builder.base, self.builder.value = node.name, node.meta["value"]
            try:
                self.values[node] = getattr(self, "_" + node.op)(node)
            except UnsupportedError as error:
                self.problems.append(f"{node.name} ({error})")
                self.values[node] = None
        if self.problems:
            raise UnsupportedError(f"cannot run {', '.join(dict.fromkeys(self.problems))}")
        return self._finished()

    def _read(self, argument: Any) -> Any:
        from torch import fx

        return fx.map_arg(argument, lambda node: self.values[node])

    def _placeholder(self, node: Any) -> Ref:
        value, name = node.meta["value"], self.builder.unique("x" if self.in_a_row else node.target)
        guess = self.guesses.get(node.target)
        shape = guess.free() if isinstance(guess, Guess) else (None,) * value.dim()
        dtype = str(value.dtype).removeprefix("torch.")
        kind = kind_of(value)
        self.inputs.append(Tensor(name, shape, "float32" if kind == "f" else dtype))
        return Ref(name, value.dim(), kind)

    def _get_attr(self, node: Any) -> Ref:
        value = node.meta["value"]
        return self.builder.constant(value.numpy(force=True), node.target)

    def _call_module(self, node: Any) -> Any:
        module = self.module.get_submodule(node.target)
        if torch_modules.refusal(module):
            return None  # named by the trace
        self.builder.base = node.target
        result = self._translated(
            node, lambda *args, **options: torch_modules.call(self.builder, module, args, options)
        )
        if getattr(module, "inplace", False):
            self._overwrite(node, result)
        return result

    def _call_function(self, node: Any) -> Any:
        if getattr(node.target, "__name__", "") in _NO_RESULT:
            return None
        name = self.names.get(id(node.target), "")
        if not name:
            raise UnsupportedError(getattr(node.target, "__name__", str(node.target)))
        return self._call(node, name)

    def _call_method(self, node: Any) -> Any:
        name = node.target
        if name == "where":  # x.where(condition, y)
            x, condition, *rest = self._read(node.args)
            return FUNCTIONS["where"](self.builder, condition, x, *rest)
        return self._call(node, name)

    def _call(self, node: Any, name: str) -> Any:
        in_place = name not in FUNCTIONS and name.endswith("_")
        name = name.rstrip("_") if in_place else name
        if name not in FUNCTIONS:
            raise UnsupportedError(name)
        result = self._translated(node, lambda *args, **options: FUNCTIONS[name](self.builder, *args, **options))
        if (in_place or node.kwargs.get("inplace") or (name.startswith("i") and name in _IN_PLACE)) and node.args:
            self._overwrite(node, result)
        return result

    def _translated(self, node: Any, translate: Any) -> Any:
        args, options = self._read(node.args), self._read(node.kwargs)
        if any(self.values[other] is None for other in node.all_input_nodes if other.meta["value"] is not None):
            return None  # of a call that is named already
        try:
            return translate(*args, **options)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise UnsupportedError(f"{_target(node)} with these arguments: {_line(error)}") from None

    def _overwrite(self, node: Any, result: Any) -> None:
        """A call changed its first argument: later readers of that tensor see the result."""
        old = self.values[node.args[0]]
        later = set(list(self.graph.nodes)[list(self.graph.nodes).index(node) + 1 :])
        storage = node.args[0].meta["value"].untyped_storage().data_ptr()
        for other, value in list(self.values.items()):
            if value is old:
                self.values[other] = result
            elif isinstance(value, Ref) and set(other.users) & later and _storage(other) == storage:
                raise UnsupportedError(f"{_target(node)} in place, of a tensor that {other.name} is a view of")

    def _output(self, node: Any) -> None:
        self.result = self._read(node.args[0])

    # The finished model

    def _finished(self) -> ModelSpec:
        b = self.builder
        flat = _flattened(self.result, "output")
        strange = [name for name, value in flat if not isinstance(value, (Ref, int, float))]
        if strange or not flat:
            raise UnsupportedError(f"forward returns values that are not tensors ({', '.join(strange) or 'none'})")
        nested = self.in_a_row and len(flat) > 1
        names = ["y", "h_n", "c_n"] if self.in_a_row else [name for name, _ in flat]
        written = {tensor for node in b.nodes for tensor in node.outputs}
        renamed: dict[str, str] = {}
        outputs = []
        for name, (_, value) in zip(names, flat):
            name = b.unique(name)
            ref = b.ref(value)
            if ref.name not in written or ref.name in renamed:  # an argument, a constant, or given twice
                b.base = name
                ref = b.emit("identity", ref)
            renamed[ref.name] = name
            dtype = {"f": "float32", "i": "int64", "b": "bool"}[ref.kind]
            outputs.append(Tensor(name, (None,) * ref.rank, dtype))
        self._prune(set(renamed))
        for node in b.nodes:
            node.inputs = tuple(renamed.get(name, name) for name in node.inputs)
            node.outputs = tuple(renamed.get(name, name) for name in node.outputs)
        read = {name for node in b.nodes for name in node.inputs}
        constants = {name: array for name, array in b.arrays.items() if name in read}
        spec = ModelSpec(
            b.nodes, self.inputs, outputs, constants, nested_state=nested, source=type(self.module).__name__
        )
        spec.validate()
        return spec

    def _prune(self, needed: set[str]) -> None:
        """Drop nodes that no output depends on."""
        kept = []
        for node in reversed(self.builder.nodes):
            if needed & set(node.outputs):
                kept.append(node)
                needed |= set(node.inputs)
        self.builder.nodes = kept[::-1]


_IN_PLACE = {"iadd", "isub", "imul", "itruediv"}


def _storage(node: Any) -> int | None:
    value = node.meta["value"]
    return value.untyped_storage().data_ptr() if hasattr(value, "untyped_storage") else None


def _target(node: Any) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _flat_guesses(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Guesses by the names of placeholders."""
    found = []
    for name, value in arguments.items():
        if isinstance(value, Guess) or not isinstance(value, (tuple, list)):
            found.append((name, value))
        else:
            found += _flat_guesses({f"{name}_{k}": part for k, part in enumerate(value)})
    return found


def _flattened(result: Any, name: str) -> list[tuple[str, Any]]:
    """Tensors of nested tuples and dictionaries in order: ``name``, ``name_0`` and so on, or the keys."""
    if isinstance(result, Mapping):
        return [leaf for key, value in result.items() for leaf in _flattened(value, str(key))]
    if isinstance(result, (tuple, list)):
        leaves = [leaf for value in result if value is not None for leaf in _flattened(value, name)]
        return [(f"{name}_{k}", value) for k, (_, value) in enumerate(leaves)]
    return [(name, result)]
