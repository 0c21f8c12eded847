"""The forward method of a module as a graph of calls, by torch.fx.

Layers of torch.nn are leaves, so recurrent ones stay whole.  Beside its symbolic value each call has the one that
PyTorch computes from an example; ranks, dtypes and the like are read from it, so that a forward method may ask for
them.  Sizes stay symbolic.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter, getitem
from threading import Lock, get_ident
from typing import Any

from ..errors import UnsupportedError
from .torch_modules import class_name, hooks, is_leaf, refusal

_ONE_AT_A_TIME = Lock()
_STATIC_ATTRIBUTES = {"ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_sparse", "is_quantized"}
_STATIC_METHODS = {"dim", "ndimension", "is_floating_point", "is_complex", "get_device", "is_contiguous", "is_cuda"}
_WRAPPED = ("zeros", "ones", "full", "empty", "arange")


class ExampleError(Exception):
    """PyTorch itself cannot run a call on the example."""


def trace(module: Any, examples: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The graph of ``module.forward`` on named arguments, and why layers in it cannot be run.

    An example is a tensor or a nest of tuples; others than those given have their defaults.  Each node of the graph has
    its value from the example in ``node.meta["value"]``.

    Raises
    ------
    ExampleError
        An example is not what the module takes.
    Exception
        Whatever a forward method raises that cannot be captured.
    """
    torch = sys.modules["torch"]
    tracer = _tracer_class()(examples, blind=False)
    with _ONE_AT_A_TIME, _in_eval_mode(module), torch.no_grad(), _unchanged(module):
        graph = tracer.trace(module)
        for node in graph.nodes:
            tracer.value_of(node)
    return graph, list(tracer.refused.values())


def outline(module: Any, names: Sequence[str]) -> Any:
    """The graph of a forward method without values, as far as it can be captured so."""
    tracer = _tracer_class()(dict.fromkeys(names), blind=True)
    with _ONE_AT_A_TIME, _in_eval_mode(module), suppress(Exception), _unchanged(module):
        tracer.trace(module)
    return tracer.graph


@contextmanager
def _in_eval_mode(module: Any) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _unchanged(module: Any) -> Iterator[None]:
    """Undo what a forward method writes into its modules, and refuse it: such a state is lost between calls."""
    parts = dict(module.named_modules())
    before = {path: (dict(vars(part)), dict(part._buffers)) for path, part in parts.items()}
    written = []
    try:
        yield
    finally:
        for path, part in parts.items():
            attributes, buffers = before[path]
            now = part.__dict__
            for key in [key for key in now if key not in attributes or now[key] is not attributes[key]]:
                if not key.startswith("_tensor_constant"):  # fx leaves these
                    written.append(f"{path}.{key}".lstrip("."))
                del now[key]
            written += [
                f"{path}.{key}".lstrip(".") for key, value in part._buffers.items() if value is not buffers[key]
            ]
            now.update(attributes)
            part._buffers.update(buffers)
    if written:
        raise UnsupportedError(
            f"its forward writes {', '.join(sorted(set(written)))}, a state from call to call;"
            " make it an argument and a result"
        )


def _in_assertion(frame: Any) -> bool:
    """Whether the code that is running asks for the truth of a value only to assert it."""
    names = [step.opname for step in _instruction(frame) if step.opname not in ("TO_BOOL", "NOT_TAKEN")]
    return "IF_TRUE" in names[0] and names[1] == "LOAD_ASSERTION_ERROR"


def _instruction(frame: Any) -> list[dis.Instruction]:
    """The instruction that a frame is at, and those after it."""
    return [step for step in dis.get_instructions(frame.f_code) if step.offset >= frame.f_lasti]


def _tracer_class() -> type:
    torch = sys.modules["torch"]
    from torch import fx
    from torch.overrides import TorchFunctionMode

    class CallProxy(fx.Proxy):
        """A symbolic value that knows its rank and type."""

        def __getattr__(self, name: str) -> Any:
            value = self.node.meta.get("value")
            if name in _STATIC_ATTRIBUTES and isinstance(value, torch.Tensor):
                return getattr(value, name)
            if name in ("shape", "data", "T", "mT") or (isinstance(value, tuple) and hasattr(value, name)):
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
            return super().__getattr__(name)

        def __bool__(self) -> bool:
            return _in_assertion(sys._getframe(1)) or super().__bool__()

        def __iter__(self) -> Iterator[Any]:
            value = self.node.meta.get("value")
            if isinstance(value, (tuple, list)):
                return iter([self[k] for k in range(len(value))])  # type: ignore[index]
            step = _instruction(sys._getframe(1))[0]
            if step.opname == "UNPACK_SEQUENCE":  # a, b = x
                return iter([self[k] for k in range(step.argval)])  # type: ignore[index]
            raise TypeError("a loop over an axis of a tensor")

        def __index__(self) -> int:
            raise TypeError("a size of an input as a number of Python's, as in range(x.size(1))")

        def __len__(self) -> int:
            value = self.node.meta.get("value")
            return len(value) if isinstance(value, (tuple, list)) else super().__len__()

    class SizeProxy(CallProxy, torch.SymInt):  # type: ignore[name-defined]
        """A symbolic number.  PyTorch takes it where it takes whole numbers, and leaves the call to the mode."""

        __torch_function__ = torch._C._disabled_torch_function_impl
        __hash__ = object.__hash__
        __int__ = CallProxy.__index__

    class Intercept(TorchFunctionMode):
        """Calls of this thread on tensors that are no symbols, with sizes that are: ``weight.new_zeros(batch, 4)``."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            symbols: list[Any] = []
            fx.node.map_aggregate((args, kwargs), lambda a: symbols.append(a) if isinstance(a, SizeProxy) else a)
            if not symbols:
                return function(*args, **(kwargs or {}))
            name = function.__name__
            if getattr(torch.Tensor, name, None) is function:
                return symbols[0].tracer.create_proxy("call_method", name, args, kwargs or {})
            return symbols[0].tracer.create_proxy("call_function", function, args, kwargs or {})

    class CallTracer(fx.Tracer):
        proxy_buffer_attributes = True

        def __init__(self, examples: Mapping[str, Any], blind: bool):
            functions = tuple(getattr(torch, name) for name in _WRAPPED)
            packing = (torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence)
            super().__init__(autowrap_functions=(*functions, *packing, torch.autograd.Variable))
            self._autowrap_search += [torch, torch.nn.utils.rnn, torch.autograd]
            self.examples, self.blind = examples, blind
            self.running = False  # PyTorch runs a call on the example
            self.thread = get_ident()
            self.refused: dict[str, str] = {}

        def passive(self) -> bool:
            """Whether a call that fx intercepts is not one of the forward method: fx sees those of all threads."""
            return self.running or get_ident() != self.thread

        def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
            given = {name: self.argument(name, example) for name, example in self.examples.items()}
            return (lambda root: root_fn(root, **given)), [self.root]

        def trace(self, root: Any, concrete_args: Any = None) -> Any:
            with Intercept():
                return super().trace(root, concrete_args)

        def argument(self, name: str, example: Any) -> Any:
            if isinstance(example, (tuple, list)):
                return tuple(self.argument(f"{name}_{k}", part) for k, part in enumerate(example))
            if hasattr(example, "__array__"):
                example = torch.as_tensor(example).clone()
            elif not self.blind:
                return example  # an option
            proxy = super().create_proxy("placeholder", name, (), {})
            proxy.node.meta["value"] = example
            return proxy

        def proxy(self, node: Any) -> Any:
            return CallProxy(node, self)

        def is_leaf_module(self, m: Any, path: str) -> bool:
            return is_leaf(m)

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
            return attr_val if self.passive() else super().getattr(attr, attr_val, parameter_proxy_cache)

        def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
            if self.passive():
                return forward(*args, **kwargs)
            path = self.path_of_module(m)
            if self.is_leaf_module(m, path):
                if reason := refusal(m):
                    self.refused[path] = f"{path} ({reason})"
            elif hooks(m):
                self.refused[path] = f"{path} ({type(m).__name__} with forward hooks; remove them first)"
            first = args[0] if args else None
            if isinstance(first, CallProxy) and type(first.node.meta.get("value")) is tuple and class_name(m):
                args = (first[0], *args[1:])  # type: ignore[index]  # in a Sequential a recurrent layer passes its y on
            return super().call_module(m, forward, args, kwargs)

        def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
            if kind == "call_method" and target in _STATIC_METHODS and not self.blind:
                return getattr(args[0].node.meta["value"], target)(*args[1:], **kwargs)
            proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
            return SizeProxy(proxy.node, self) if self.is_size(proxy.node) else proxy

        def is_size(self, node: Any) -> bool:
            """Whether a value is a whole number; where no values are known, whether it is read from a shape."""
            if not self.blind:
                return type(self.value_of(node)) is int
            if node.target is getitem:
                shape = node.args[0]
                return shape.target == "size" or (shape.target is getattr and shape.args[1:] == ("shape",))
            return node.target == "size" and len(node.args) + len(node.kwargs) > 1

        def value_of(self, node: Any) -> Any:
            """What PyTorch computes for a node from the example."""
            if "value" not in node.meta:
                node.meta["value"] = self.compute(node)
            return node.meta["value"]

        def compute(self, node: Any) -> Any:
            if self.blind:
                return None
            args, kwargs = (fx.map_arg(part, self.value_of) for part in (node.args, node.kwargs))
            before, self.running = self.running, True
            try:
                if node.op == "output":
                    return args[0]
                if node.op == "get_attr":
                    value = attrgetter(node.target)(self.root)
                    return value.detach().clone() if isinstance(value, torch.Tensor) else value
                if node.op == "call_module":
                    return self.root.get_submodule(node.target).forward(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                return node.target(*args, **kwargs)
            except Exception as error:
                raise ExampleError(f"{node.target}: {error}") from error
            finally:
                self.running = before

    return CallTracer
