"""PyTorch: live modules, state_dicts and ``.pt`` files -> ModelSpec.

PyTorch's convention is ours, so weights keep their names and layout.  PyTorch itself is never imported: a live object
has brought it, and files are read by ``torch_file``.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import ShapeError, UnsupportedError
from ..spec import GATES, ModelSpec, Node, Tensor
from .limits import MAX_NESTING
from .state_dict import bare_spec, layer_kinds, recurrent_tensors, spec_from_state_dict, wiring
from .torch_file import read_checkpoint as open_tensors
from .torch_fx import export_hint, spec_of
from .torch_modules import CHAINED, NOTHING, RECURRENT, SUPPORTED, class_name, is_leaf, node, refusal
from .torch_ops import FUNCTIONS

__all__ = ["from_object", "load_spec", "load_tensors", "open_tensors"]


def load_spec(path: str | os.PathLike[str], *, prefix: str = "", nonlinearity: str | None = None) -> ModelSpec:
    """Load the recurrent layer whose state_dict a ``.pt`` or ``.pth`` file holds, without PyTorch.

    Parameters
    ----------
    path : path
        A file of ``torch.save(module.state_dict(), path)``.
    prefix, nonlinearity
        As in ``from_object``; nested dictionaries are joined with dots (``prefix="state_dict.encoder."``).

    Raises
    ------
    FormatError, UnsupportedError, ShapeError
        See ``torch_file.read_checkpoint`` and ``state_dict.recurrent_node``.
    """
    return spec_from_state_dict(open_tensors(path), prefix=prefix, nonlinearity=nonlinearity, source=os.fspath(path))


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a ``.pt`` file by name; bfloat16 is widened to float32, other dtypes stay."""
    return dict(open_tensors(path))


def supported() -> dict[str, Iterable[str]]:
    """What files hold and ``from_torch`` takes, for the table in docs/formats.md."""
    return {"layers of files": layer_kinds(), "modules": SUPPORTED, "functions and methods": sorted(FUNCTIONS)}


def from_object(
    obj: Any, *, prefix: str = "", nonlinearity: str | None = None, example_inputs: Any = None
) -> ModelSpec:
    """Describe a live PyTorch module, or the recurrent layer of a state_dict.  The weights are copied.

    Parameters
    ----------
    obj : torch.nn.Module or mapping
        ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, their cells, ``nn.Sequential`` of supported layers, one such layer, any
        module whose forward torch.fx can capture; or a mapping from names to tensors or arrays.
    prefix : str
        For a mapping: take only the names that start so ("encoder.").
    nonlinearity : {"tanh", "relu"}, optional
        For the mapping of a simple RNN, which does not say it; default "tanh".
    example_inputs : tensor, tuple or mapping, optional
        For a module: what its forward takes, where its layers do not tell; only ranks and dtypes matter.

    Returns
    -------
    ModelSpec
        In a Sequential a recurrent layer passes its y on, and only one at the end gives (y, state).

    Raises
    ------
    UnsupportedError
        A module is of a class, or has settings, that fastrnn does not run; the error names all of them.
    FormatError, ShapeError
        The tensors of a mapping are not those of one recurrent layer.
    """
    if isinstance(obj, Mapping):
        if example_inputs is not None:
            raise UnsupportedError("example_inputs= are for the forward of a module; a state_dict has none")
        return spec_from_state_dict(obj, prefix=prefix, nonlinearity=nonlinearity, source="the state_dict")
    classes = {f"{c.__module__}.{c.__name__}" for c in type(obj).__mro__}
    if "torch.jit._script.ScriptModule" in classes:
        raise UnsupportedError(
            "this is TorchScript, whose Python code is gone: pass the module that it was made from to from_torch; or"
            ' torch.jit.save(module, "module.pt"), then fastrnn.load("module.pt").tensors and fastrnn.load_layers'
        )
    if "torch.nn.modules.module.Module" not in classes:
        raise UnsupportedError(
            f"from_torch takes a torch.nn.Module or a state_dict, got an object of type {type(obj).__name__};"
            " fastrnn.load reads files"
        )
    if prefix or nonlinearity:
        raise UnsupportedError(
            "prefix= and nonlinearity= are for a state_dict; a module says both itself: pass the part alone"
        )
    return _from_module(unwrapped(obj), example_inputs)


def is_layer(obj: Any) -> bool:
    """Whether ``from_object`` describes one layer, not a model with inputs and outputs of its own."""
    return isinstance(obj, Mapping) or class_name(unwrapped(obj)) in CHAINED


_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def unwrapped(module: Any) -> Any:
    """The module in those of torch.compile and of training on several devices, which compute the same."""
    while type(module).__module__.startswith("torch.") and type(module).__name__ in _WRAPPERS:
        module = getattr(module, _WRAPPERS[type(module).__name__])
    return module


def _from_module(module: Any, example_inputs: Any) -> ModelSpec:
    if class_name(module) not in {"", "Sequential", *CHAINED} and not refusal(module):
        module = sys.modules["torch"].nn.Sequential(OrderedDict({class_name(module).lower(): module}))
    if is_leaf(module) or class_name(module) == "Sequential":
        modules = list(_layers(module, "", 0))
        refused = [f"{path or 'the module'} ({reason})" for path, layer in modules if (reason := refusal(layer))]
        if refused and all(map(is_leaf, dict(modules).values())):
            raise UnsupportedError(
                f"cannot run {', '.join(refused)}; supported: {', '.join(SUPPORTED)}. Pass the supported part, or its"
                f" state_dict() with prefix=. {export_hint(module)}"
            )
        if all(class_name(layer) in CHAINED for _, layer in modules):
            return _chained(module, modules)
    return spec_of(module, example_inputs)


def _chained(module: Any, modules: list[tuple[str, Any]]) -> ModelSpec:
    """Layers in a row, for which no example is needed."""
    modules = [(path, layer) for path, layer in modules if class_name(layer) not in NOTHING]
    source = type(module).__name__
    if len(modules) == 1 and modules[0][1] is module and class_name(module) in RECURRENT:
        return bare_spec(node(module, ""), source)
    chain = _Chain()
    for path, layer in modules:
        chain.add(node(layer, path), layer)
    return chain.spec(source)


def _layers(module: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The layers of nested Sequentials in order, with their dotted paths."""
    if class_name(module) != "Sequential" or refusal(module):
        yield path, module
        return
    if depth > MAX_NESTING:
        raise UnsupportedError(f"{path}: Sequentials are nested deeper than {MAX_NESTING} levels; flatten the model")
    for key, child in module._modules.items():
        yield from _layers(child, f"{path}.{key}" if path else key, depth + 1)


class _Chain:
    """Nodes one after the other; follows rank and features so that a mismatch is an error while building."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.embedded = 0  # 1 after an embedding, which adds an axis
        self.input_rank: int | None = None
        self.input_features: int | None = None
        self.features: int | None = None

    def add(self, node: Node, module: Any) -> None:
        """Append a node; it reads what the last one writes."""
        if node.op == "embedding" and self.nodes:
            raise UnsupportedError(
                f"{node.name} (Embedding) stands after {self.nodes[-1].name}; it must be the first layer"
            )
        node.inputs = (f"{self.nodes[-1].name}.y" if self.nodes else "x",)
        node.outputs = (f"{node.name}.y",)
        if node.op in GATES:
            self._need_rank(2 if node.attr("unbatched") else 3, node.name)
        elif isinstance(dim := getattr(module, "dim", None), int) and dim != -1:  # Softmax
            self._need_rank(dim + 1, node.name)
        takes, gives = _features(node)
        if takes is not None and self.features is not None and takes != self.features:
            raise ShapeError(
                f"{node.name}: takes {takes} features, but gets {self.features}; the Sequential does not fit"
            )
        if self.input_features is None and self.features is None and not self.embedded:
            self.input_features = takes
        self.features = gives if gives is not None else self.features
        self.embedded |= node.op == "embedding"
        self.nodes.append(node)

    def _need_rank(self, rank: int, name: str) -> None:
        rank -= self.embedded
        if rank < 1 or self.input_rank not in (None, rank):
            raise UnsupportedError(
                f"{name}: needs an input of {rank} axes where the layers before need {self.input_rank};"
                " a softmax must be over the last axis (dim=-1)"
            )
        self.input_rank = rank

    def spec(self, source: str) -> ModelSpec:
        """The finished model."""
        if not self.nodes:
            self.add(Node("activation", "identity", ("x",), ("y",)), None)
        last = self.nodes[-1]
        last.outputs = wiring(last.op)[1]
        if last.op in GATES:
            outputs = recurrent_tensors(last, last.outputs)
        else:
            rank = None if self.input_rank is None else self.input_rank + self.embedded
            outputs = [Tensor("y", None if rank is None else (*[None] * (rank - 1), self.features))]
        shape = None if self.input_rank is None else (*[None] * (self.input_rank - 1), self.input_features)
        dtype = "int64" if self.nodes[0].op == "embedding" else "float32"
        spec = ModelSpec(self.nodes, [Tensor("x", shape, dtype)], outputs, nested_state=last.op in GATES, source=source)
        spec.validate()
        return spec


def _features(node: Node) -> tuple[int | None, int | None]:
    """Size of the last axis that a node takes and gives, where its weights say it."""
    if node.op in GATES:
        directions = 2 if node.attr("direction") == "bidirectional" else 1
        return node.weights["weight_ih_l0"].shape[1], node.weights["weight_hh_l0"].shape[1] * directions
    weight = node.weights.get("weight")
    if weight is None or node.op == "batch_norm":  # batch_norm: over axis 1, not the last
        return None, None
    return (None if node.op == "embedding" else weight.shape[-1]), (
        weight.shape[0] if node.op == "dense" else weight.shape[-1]
    )
