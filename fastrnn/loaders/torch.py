"""PyTorch: live modules, state_dicts and ``.pt`` files -> ModelSpec.

PyTorch's convention is ours, so weights keep their names and layout.  PyTorch itself is never imported: a live object
has brought it, and files are read by ``torch_file``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import ShapeError, UnsupportedError
from ..spec import GATES, ModelSpec, Node, Tensor
from .limits import MAX_NESTING
from .state_dict import bare_spec, plain_node, recurrent_node, recurrent_tensors, spec_from_state_dict, wiring
from .torch_file import read_checkpoint as open_tensors

__all__ = ["from_object", "load_spec", "load_tensors", "open_tensors"]

_RECURRENT = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}
_NOTHING = {"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"}
_PLAIN = {"Linear": "dense", "Embedding": "embedding", "LayerNorm": "layer_norm", "BatchNorm1d": "batch_norm"}

# Class -> activation; None where the module's settings are not those that we compute.
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "ReLU": lambda m: "relu",
    "Sigmoid": lambda m: "sigmoid",
    "Tanh": lambda m: "tanh",
    "Hardsigmoid": lambda m: ("hard_sigmoid", 1 / 6, 0.5),
    "Hardtanh": lambda m: ("hard_tanh", float(m.min_val), float(m.max_val)),
    "LeakyReLU": lambda m: ("leaky_relu", float(m.negative_slope)),
    "ELU": lambda m: ("elu", float(m.alpha)),
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


def from_object(obj: Any, *, prefix: str = "", nonlinearity: str | None = None) -> ModelSpec:
    """Describe a live PyTorch module, or the recurrent layer of a state_dict.  The weights are copied.

    Parameters
    ----------
    obj : torch.nn.Module or mapping
        ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, their cells, ``nn.Sequential`` of supported layers, one such layer; or a
        mapping from names to tensors or arrays.
    prefix : str
        For a mapping: take only the names that start so ("encoder.").
    nonlinearity : {"tanh", "relu"}, optional
        For the mapping of a simple RNN, which does not say it; default "tanh".

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
        return spec_from_state_dict(obj, prefix=prefix, nonlinearity=nonlinearity, source="the state_dict")
    if not any((c.__module__, c.__name__) == ("torch.nn.modules.module", "Module") for c in type(obj).__mro__):
        raise UnsupportedError(
            f"from_torch takes a torch.nn.Module or a state_dict, got an object of type {type(obj).__name__};"
            " fastrnn.load reads files"
        )
    if prefix or nonlinearity:
        raise UnsupportedError(
            "prefix= and nonlinearity= are for a state_dict; a module says both itself: pass the part alone"
        )
    return _from_module(obj)


def _from_module(module: Any) -> ModelSpec:
    modules = list(_layers(module, "", 0))
    refused = [f"{path or 'the module'} ({reason})" for path, layer in modules if (reason := _refusal(layer))]
    if refused:
        raise UnsupportedError(
            f"cannot run {', '.join(refused)}; supported in a Sequential: "
            + ", ".join(sorted({*_RECURRENT, *_NOTHING, *_PLAIN, *_ACTIVATIONS}))
            + ". Pass the supported part, or its state_dict() with prefix="
        )
    modules = [(path, layer) for path, layer in modules if _class(layer) not in _NOTHING]
    source = type(module).__name__
    if len(modules) == 1 and modules[0][1] is module and _class(module) in _RECURRENT:
        return bare_spec(_node(module, ""), source)
    chain = _Chain()
    for path, layer in modules:
        chain.add(_node(layer, path), layer)
    return chain.spec(source)


def _layers(module: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The layers of nested Sequentials in order, with their dotted paths."""
    if _class(module) != "Sequential" or _refusal(module):
        yield path, module
        return
    if depth > MAX_NESTING:
        raise UnsupportedError(f"{path}: Sequentials are nested deeper than {MAX_NESTING} levels; flatten the model")
    for key, child in module._modules.items():
        yield from _layers(child, f"{path}.{key}" if path else key, depth + 1)


def _class(module: Any) -> str:
    """Name of the class in torch.nn, or "" for any other class, subclasses included: their forward may differ."""
    name = type(module).__name__
    return name if getattr(sys.modules["torch"].nn, name, None) is type(module) else ""


def _refusal(module: Any) -> str:
    """Why a module cannot be run, or ""."""
    name = _class(module)
    if not name:
        bases = [c.__name__ for c in type(module).__mro__[1:] if c.__name__ in _RECURRENT | set(_PLAIN)]
        return f"{type(module).__name__}, " + (f"a subclass of nn.{bases[0]}" if bases else "not a layer of torch.nn")
    if any(getattr(module, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        return f"{name} with forward hooks, as weight_norm and spectral_norm set them; remove them first"
    if name in _RECURRENT or name in _NOTHING or name == "Sequential":
        return ""
    if name in _ACTIVATIONS:
        return "" if _ACTIVATIONS[name](module) else f"{module}, of which only the default settings are computed"
    if name not in _PLAIN:
        return name
    if name == "Embedding" and module.max_norm is not None:
        return "Embedding with max_norm, which changes the weights in the forward pass"
    if name == "BatchNorm1d" and module.running_mean is None:
        return "BatchNorm1d without running statistics"
    return ""


def _node(module: Any, path: str) -> Node:
    """The node of one supported layer."""
    name = _class(module)
    if name in _ACTIVATIONS:
        return Node(
            "activation", path or "activation", *wiring("activation"), {"activation": _ACTIVATIONS[name](module)}
        )
    owned = {**module._parameters, **module._buffers}  # named_parameters() would leave out tied ones
    tensors = {key: tensor for key, tensor in owned.items() if tensor is not None}
    if name in _RECURRENT:
        simple = name.startswith("RNN")
        return recurrent_node(
            tensors,
            path,
            op=name.removesuffix("Cell").lower(),
            nonlinearity=module.nonlinearity if simple else None,
            batch_first=getattr(module, "batch_first", True),
        )
    op = _PLAIN[name]
    if op == "layer_norm" and not tensors:
        return Node(op, path or op, *wiring(op), {"eps": module.eps, "axes": len(module.normalized_shape)})
    node = plain_node(tensors, path or op, op)
    if name in ("LayerNorm", "BatchNorm1d"):
        node.attrs["eps"] = module.eps
    return node


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
        spec = ModelSpec(self.nodes, [Tensor("x", shape, dtype)], outputs, last.op in GATES, source)
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
